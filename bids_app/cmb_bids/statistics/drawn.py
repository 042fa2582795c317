"""Cohorts drawn from known effects, to hold the statistics against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from cmb_bids.burden import burden_class, name_pattern
from cmb_bids.columns import LESION_COLUMNS, PASS, SCAN_COLUMNS
from cmb_bids.volumes import write_json, write_table

YOUNGEST, OLDEST = 45.0, 85.0
# Protocol -> share of the participants, and what its scans say of it.
PROTOCOLS: dict[str, tuple[float, dict[str, str]]] = {
    "A": (0.6, {"field_strength_t": "3", "echo_times_ms": "9.4,20", "input": "complex"}),
    "B": (0.4, {"field_strength_t": "1.5", "echo_times_ms": "40", "input": "magnitude"}),
}
SITES = ("north", "south", "west")
LOBAR_SHARE = 0.7


def draw_people(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Participants with ``age`` (years, uniform 45 to 85), ``sex``, ``protocol`` and ``site``."""
    shares = [share for share, _ in PROTOCOLS.values()]
    return pd.DataFrame(
        {
            "age": rng.uniform(YOUNGEST, OLDEST, n).round(1),
            "sex": rng.choice(["F", "M"], n, p=[0.55, 0.45]),
            "protocol": rng.choice(list(PROTOCOLS), n, p=shares),
            "site": rng.choice(SITES, n),
        }
    )


def linear_predictor(people: pd.DataFrame, effects: Mapping[str, float]) -> np.ndarray:
    """Sum of effects (n,): ``intercept`` (a woman of 65 with protocol A), ``age`` per 10 years,
    ``sex`` of men, ``protocol`` of B.
    """  # fmt: skip
    return np.asarray(
        effects["intercept"]
        + effects["age"] * (people["age"] - 65) / 10
        + effects["sex"] * (people["sex"] == "M")
        + effects["protocol"] * (people["protocol"] == "B"),
        dtype=float,
    )


def draw_binary(linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Outcomes 1 or 0 (n,) with these log odds."""
    return (rng.random(len(linear)) < expit(linear)).astype(float)


def draw_counts(log_mean: np.ndarray, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Negative binomial counts (n,) with variance mu + alpha mu^2."""
    mean = np.exp(log_mean)
    return rng.poisson(mean * rng.gamma(1 / alpha, alpha, len(mean))).astype(float)


def draw_positive_counts(
    log_mean: np.ndarray, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Negative binomial counts (n,) given that they are not zero."""
    counts = draw_counts(log_mean, alpha, rng)
    while (zero := counts == 0).any():
        counts[zero] = draw_counts(log_mean[zero], alpha, rng)
    return counts


def as_scans(people: pd.DataFrame, counts: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Scans rows of text, one per participant, with these numbers of definite microbleeds.

    Parameters
    ----------
    people : DataFrame
        From `draw_people`.
    counts : (n,) array
        Definite microbleeds; seven in ten are lobar, the others deep.

    Returns
    -------
    DataFrame of text
        ``participant_id``, ``session_id``, ``age``, ``sex``, ``site`` and all columns of the
        scans table, of which those that no statistic reads are n/a.
    """
    whole = counts.astype(int)
    lobar = rng.binomial(whole, LOBAR_SHARE)
    deep = whole - lobar
    labels = [f"sub-{number:05d}" for number in range(len(people))]
    possible = rng.poisson(0.2, len(people)).astype(str)
    calcifications = rng.poisson(0.5, len(people)).astype(str)
    columns: dict[str, Any] = dict.fromkeys(SCAN_COLUMNS, "n/a")
    columns |= {
        "filename": [f"anat/{label}_desc-cmb_dseg.nii.gz" for label in labels],
        "cmb_definite": whole.astype(str),
        "cmb_possible": possible,
        "cmb_lobar": lobar.astype(str),
        "cmb_deep": deep.astype(str),
        "cmb_infratentorial": "0",
        "calcification": calcifications,
        "calcification_definite": calcifications,
        "pattern": [name_pattern(a, b, 0) for a, b in zip(lobar, deep, strict=True)],
        "burden_class": [burden_class(count) for count in whole],
        "qc_status": PASS,
        "mask_volume_ml": rng.normal(1350, 100, len(people)).round(1).astype(str),
    }
    if "signal_to_noise" in columns:
        columns["signal_to_noise"] = rng.normal(30, 5, len(people)).round(2).astype(str)
    for name in next(iter(PROTOCOLS.values()))[1]:
        columns[name] = [PROTOCOLS[protocol][1][name] for protocol in people["protocol"]]
    keys = {
        "participant_id": labels,
        "session_id": "n/a",
        "age": people["age"].astype(str),
        "sex": people["sex"],
        "site": people["site"],
    }
    return pd.DataFrame({**keys, **columns}, index=people.index, dtype=object)


def draw_cohort(n: int, seed: int) -> pd.DataFrame:
    """Scans rows of ``n`` participants, about an eighth of whom have microbleeds."""
    rng = np.random.default_rng(seed)
    people = draw_people(n, rng)
    effects = {"intercept": -2.0, "age": 0.5, "sex": 0.3, "protocol": -0.4}
    return as_scans(people, draw_counts(linear_predictor(people, effects), 4.0, rng), rng)


# ------------------------------------------------------------------------------- on disk


def write_derivatives(folder: Path, n: int, seed: int) -> None:
    """The tables of a drawn cohort, as the participant level would leave them.

    Parameters
    ----------
    folder : Path
        Gets ``bids`` (a raw dataset without images) and ``derivatives``.
    n : int
        Participants, one scan each.
    seed : int
    """
    scans = draw_cohort(n, seed)
    raw, output = folder / "bids", folder / "derivatives"
    about = {"Name": "Drawn cohort", "BIDSVersion": "1.10.0"}
    raw.mkdir(parents=True)
    write_json(raw / "dataset_description.json", {**about, "DatasetType": "raw"})
    (raw / "sub-00000" / "anat").mkdir(parents=True)
    people = scans[["participant_id", "age", "sex", "site"]]
    write_table(raw / "participants.tsv", people)
    output.mkdir()
    write_json(output / "dataset_description.json", {**about, "DatasetType": "derivative"})
    columns = list(SCAN_COLUMNS)
    header = "\t".join(columns)
    rng = np.random.default_rng([seed, 1])
    for label, *cells in scans[["participant_id", *columns]].itertuples(index=False, name=None):
        anat = output / label / "anat"
        anat.mkdir(parents=True)
        row = dict(zip(columns, cells, strict=True))
        path = output / label / f"{label}_scans.tsv"
        path.write_text(f"{header}\n" + "\t".join(map(str, cells)) + "\n")
        shown = {"microbleed": int(row["cmb_definite"]) + int(row["cmb_possible"]),
                 "calcification": int(row["calcification"])}  # fmt: skip
        for kind, number in shown.items():
            name = {"microbleed": "cmb", "calcification": "calcification"}[kind]
            table = _lesion_table(kind, number, rng)
            (anat / f"{label}_desc-{name}_dseg.tsv").write_text(table)


def _lesion_table(kind: str, number: int, rng: np.random.Generator) -> str:
    """A lesion table with so many rows, at random places in the brain."""
    lines = ["\t".join(LESION_COLUMNS)]
    for index in range(1, number + 1):
        x, y, z = rng.normal([0, -20, 15], [30, 35, 20]).round(1)
        known = {
            "index": index, "name": f"{kind}-{index}", "x": x, "y": y, "z": z,
            "x_mni": x, "y_mni": y, "z_mni": z, "probability": round(rng.uniform(0.3, 1), 3),
            "p_calcification": round(rng.uniform(0, 0.3), 3), "certainty": "definite",
            "counted": "true", "diameter_mm": round(rng.uniform(2, 8), 2),
            "hemisphere": "left" if x < 0 else "right", "mars_region": "frontal",
            "mars_class": "lobar",
        }  # fmt: skip
        lines.append("\t".join(str(known.get(name, "n/a")) for name in LESION_COLUMNS))
    return "\n".join(lines) + "\n"
