"""All contenders on the same test cases: metrics, intervals over participants, paired tests.

Each case gives counts (lesions, hits, calls, ...), and every metric is a ratio of sums of counts,
so that resampling participants is a matrix product. Intervals are percentiles of 1000 bootstrap
resamples of participants, the same resamples for all contenders. A paired test asks whether two
contenders are exchangeable: their counts are swapped participant by participant at random
(approximate randomisation), 10,000 times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cmb_bids.evaluate.subsets import SIZE_EDGES_MM as APPARENT_SIZE_EDGES_MM
from cmb_bids.training.contenders import CONTENDERS, REFERENCE
from cmb_bids.training.judging import read_scores
from cmb_bids.training.labels import CALCIFICATION, MICROBLEED
from cmb_bids.training.scoring import (
    SIZE_EDGES_MM,
    ScoredCase,
    calibration_error,
    candidate_recall,
    froc,
    matched,
)
from cmb_bids.training.shards import load_case, split_of
from cmb_bids.training.steps import cases_of
from cmb_bids.volumes import read_json, write_json, write_table

RESAMPLES = 1000
SWAPS = 10_000
COUNTS = (
    "cases",
    "lesions",
    "hits",
    "calls",
    "free_cases",
    "free_calls",
    "calcifications",
    "calcifications_called",
)
# Metric -> numerator and denominator, sums over cases.
METRICS: dict[str, Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]] = {
    "sensitivity": lambda c: (c["hits"], c["lesions"]),
    "precision": lambda c: (c["hits"], c["calls"]),
    "f1": lambda c: (2 * c["hits"], c["lesions"] + c["calls"]),
    "false_positives_per_case": lambda c: (c["calls"] - c["hits"], c["cases"]),
    "false_positives_per_lesion_free_case": lambda c: (c["free_calls"], c["free_cases"]),
    "calcifications_called_microbleed": lambda c: (
        c["calcifications_called"],
        c["calcifications"],
    ),
}
REGION = "mars_class"
CONTRAST_EDGES = (0.0, 5.0, 10.0, 20.0, np.inf)  # of the core at the last echo, over the noise
NOT_MEASURED = "not measured"


def counts_of(case: ScoredCase, threshold: float) -> np.ndarray:
    """Counts (8,) of one case at a threshold, in the order of `COUNTS`."""
    calls = case.called(threshold)
    lesions, hits = len(case.microbleeds), int(matched(case.microbleeds_mm, calls).sum())
    calcified = case.labels == CALCIFICATION
    mistaken = case.probabilities[calcified, MICROBLEED] >= threshold
    free = lesions == 0
    row = (1, lesions, hits, len(calls), free, free * len(calls), calcified.sum(), mistaken.sum())
    return np.array(row, dtype=float)


def metrics_of(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of sums (..., 8) of counts; NaN where one is not defined."""
    by_name = {name: sums[..., i] for i, name in enumerate(COUNTS)}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: np.where(below > 0, above / below, np.nan)
            for name, (above, below) in ((n, ratio(by_name)) for n, ratio in METRICS.items())
        }


def resampled(counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sums (1000, 8) of counts (cases, 8) over bootstrap resamples of the cases."""
    n = len(counts)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return drawn @ counts


def with_intervals(counts: np.ndarray, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Each metric of counts (cases, 8) with its 95 % interval over participants."""
    if not len(counts):
        return {name: dict.fromkeys(("value", "low", "high")) for name in METRICS}
    whole, drawn = metrics_of(counts.sum(axis=0)), metrics_of(resampled(counts, seed))
    return {name: _interval(float(whole[name]), drawn[name]) for name in METRICS}


def paired(
    counts: np.ndarray, reference: np.ndarray, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Each metric's difference from the reference, its interval, and the p of exchangeability.

    Parameters
    ----------
    counts, reference : (cases, 8) arrays
        Of the same cases in the same order.
    """
    observed = _difference(counts.sum(axis=0), reference.sum(axis=0))
    drawn = _difference(resampled(counts, seed), resampled(reference, seed))
    swap = np.random.default_rng([seed, 1]).integers(0, 2, (SWAPS, len(counts))).astype(float)
    change = swap @ (reference - counts)
    swapped = _difference(counts.sum(axis=0) + change, reference.sum(axis=0) - change)
    result = {}
    for name in METRICS:
        row = _interval(float(observed[name]), drawn[name])
        as_far = np.abs(swapped[name]) >= abs(float(observed[name])) - 1e-12
        row["p"] = (
            None if row["value"] is None else round(float((1 + as_far.sum()) / (1 + SWAPS)), 4)
        )
        result[name] = {"difference": row.pop("value"), **row}
    return result


def before_and_after(
    before: Sequence[ScoredCase],
    after: Sequence[ScoredCase],
    thresholds: Sequence[float],
    participants: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Metrics of two networks on the same cases, and the paired difference.

    Parameters
    ----------
    before, after : sequence of ScoredCase
        The same cases in the same order, as each network sees them.
    thresholds : sequence of float
        The definite threshold of each network.
    participants : sequence of str, optional
        Of each case; without them each case is a participant of its own.

    Returns
    -------
    dict
        ``before``, ``after`` and ``difference`` (metrics with intervals over participants, the
        last with p), ``calibration_error``.
    """
    counts = [
        _by_participant(np.array([counts_of(case, threshold) for case in cases]), participants)
        for cases, threshold in zip((before, after), thresholds, strict=True)
    ]
    errors = [
        calibration_error(
            np.concatenate([case.probabilities for case in cases]),
            np.concatenate([case.labels for case in cases]),
        )
        for cases in (before, after)
    ]
    return {
        "before": with_intervals(counts[0]),
        "after": with_intervals(counts[1]),
        "difference": paired(counts[1], counts[0]),
        "calibration_error": {"before": errors[0], "after": errors[1]},
    }


def _by_participant(counts: np.ndarray, participants: Sequence[str] | None) -> np.ndarray:
    """Counts (participants, 8) of counts (cases, 8)."""
    if participants is None:
        return counts
    _, part = np.unique(np.asarray(participants), return_inverse=True)
    sums = np.zeros((int(part.max()) + 1, counts.shape[1]))
    np.add.at(sums, part, counts)
    return sums


def _difference(one: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    first, second = metrics_of(one), metrics_of(other)
    return {name: first[name] - second[name] for name in METRICS}


def _interval(value: float, drawn: np.ndarray) -> dict[str, float | None]:
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(defined):
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(defined, [2.5, 97.5])
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def by_stratum(cases: Sequence[ScoredCase], threshold: float) -> dict[str, dict[str, Any]]:
    """Metrics with intervals by clinical group and protocol; sensitivity by size and region."""
    counts = np.array([counts_of(case, threshold) for case in cases])
    tables: dict[str, dict[str, Any]] = {}
    for what in ("group", "protocol"):
        of_case = np.array([getattr(case, what) for case in cases])
        tables[what] = {
            name: {
                "cases": int((of_case == name).sum()),
                "microbleeds": int(counts[of_case == name, COUNTS.index("lesions")].sum()),
                **with_intervals(counts[of_case == name]),
            }
            for name in sorted(set(of_case))
        }
    tables["core diameter"] = _sensitivity_where(cases, threshold, _size_classes)
    tables["apparent diameter"] = _sensitivity_where(cases, threshold, _apparent_classes)
    tables["by definition"] = _sensitivity_where(cases, threshold, _by_definition)
    tables["contrast to noise"] = _sensitivity_where(cases, threshold, _contrast_classes)
    tables["region"] = _sensitivity_where(cases, threshold, lambda lesions: lesions[REGION])
    return tables


def _size_classes(lesions: pd.DataFrame) -> pd.Series:
    return _classes(lesions["diameter_mm"], SIZE_EDGES_MM, " mm")


def _apparent_classes(lesions: pd.DataFrame) -> pd.Series:
    return _classes(lesions["apparent_diameter_mm"], APPARENT_SIZE_EDGES_MM, " mm")


def _by_definition(lesions: pd.DataFrame) -> pd.Series:
    """Microbleeds are those that look 2 to 10 mm (STRIVE); smaller ones are simulated too."""
    looks = pd.to_numeric(lesions["apparent_diameter_mm"])
    named = looks.between(2, 10).map({True: "looks 2-10 mm", False: "smaller or larger"})
    return named.where(looks.notna(), NOT_MEASURED)


def _contrast_classes(lesions: pd.DataFrame) -> pd.Series:
    return _classes(lesions["contrast_to_noise"].clip(lower=0), CONTRAST_EDGES, "")


def _classes(values: pd.Series, edges: Sequence[float], unit: str) -> pd.Series:
    """Names of the class each value falls in; the last class has no upper end."""
    names = [f"{a:g}-{b:g}{unit}" for a, b in pairwise(edges[:-1])]
    names.append(f"{edges[-2]:g}{unit} and more")
    classes = pd.cut(pd.to_numeric(values), list(edges), labels=names, right=False)
    return classes.astype(object).fillna(NOT_MEASURED).astype(str)


def _by_number(name: str) -> tuple[float, str]:
    """What names of classes are sorted by: the number they begin with, else the name."""
    number = re.match(r"[0-9.]+", name)
    return (float(number.group()) if number else 0.0, name)


def _sensitivity_where(
    cases: Sequence[ScoredCase], threshold: float, classes: Callable[[pd.DataFrame], pd.Series]
) -> dict[str, Any]:
    """Sensitivity by a class of the lesions; intervals over participants all the same."""
    kinds = [classes(case.microbleeds).to_numpy(dtype=object) for case in cases]
    hits = [matched(case.microbleeds_mm, case.called(threshold)) for case in cases]
    table = {}
    for name in sorted({kind for of_case in kinds for kind in of_case}, key=_by_number):
        counts = np.zeros((len(cases), len(COUNTS)))
        counts[:, COUNTS.index("lesions")] = [(kind == name).sum() for kind in kinds]
        counts[:, COUNTS.index("hits")] = [
            hit[kind == name].sum() for hit, kind in zip(hits, kinds, strict=True)
        ]
        table[name] = {
            "microbleeds": int(counts[:, COUNTS.index("lesions")].sum()),
            "sensitivity": with_intervals(counts)["sensitivity"],
        }
    return table


def compare_scores(
    scores: Mapping[str, tuple[Sequence[ScoredCase], Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """One entry per contender.

    Parameters
    ----------
    scores : mapping
        Contender's name -> its test cases, and the description stored with its scores.

    Returns
    -------
    list of dict
        ``name``, ``title``, ``threshold``, ``metrics``, ``by``, ``froc``,
        ``against_reference``, ...
    """
    counts, thresholds = {}, {}
    for name, (cases, description) in scores.items():
        thresholds[name] = float(description["calibration"]["definite"])
        counts[name] = np.array([counts_of(case, thresholds[name]) for case in cases])
    entries = []
    for name, (cases, description) in scores.items():
        contender = CONTENDERS[name]
        entry = {
            "name": name,
            "title": contender.title,
            "candidates": contender.kind,
            "ranked_by": description.get("ranked_by"),
            "threshold": thresholds[name],
            "metrics": with_intervals(counts[name]),
            "froc": froc(cases),
            "candidate_recall": candidate_recall(cases),
            "expected_calibration_error": calibration_error(
                np.concatenate([case.probabilities for case in cases]),
                np.concatenate([case.labels for case in cases]),
            ),
            "by": by_stratum(cases, thresholds[name]),
        }
        # Shipped networks learned longer, from more cases: beside the others, not against them.
        if REFERENCE in counts and name != REFERENCE and not contender.shipped:
            entry["against_reference"] = paired(counts[name], counts[REFERENCE])
        entries.append(entry)
    return entries


def compare(summary: Path, names: Sequence[str], folder: Path, output: Path, command: str) -> None:
    """Compare contenders on the test cases.

    Parameters
    ----------
    summary : path
        ``cases.json``.
    names : sequence of str
        Of contenders.
    folder : path
        Holds ``scores`` and ``weights``, as the steps before left them.
    output : path
        JSON; the same as a long table in ``*_table.tsv`` beside it.
    command : str
        That repeats the run.
    """
    test = [path for path in cases_of(summary) if split_of(path) == "test"]
    read = {
        name: read_scores(folder / "scores" / f"{name}.npz", CONTENDERS[name], test)
        for name in names
    }
    entries = compare_scores(read)
    for entry in entries:
        record = folder / "weights" / f"{entry['name']}.json"
        if record.is_file():
            training = read_json(record)
            entry["training"] = {k: training[k] for k in ("cases", "steps", "parameters", "seed")}
    any_cases = next(iter(read.values()))[0]
    content = {
        "simulated": True,
        "command": command,
        "reference": REFERENCE,
        "cases": len(test),
        "microbleeds": sum(len(case.microbleeds) for case in any_cases),
        "cases_with_swi_for_magnitude": sum(
            bool(load_case(path, ()).recipe.get("swi_as_magnitude")) for path in test
        ),
        "bootstrap_resamples": RESAMPLES,
        "random_swaps": SWAPS,
        "data_keys": read_json(summary)["keys"],
        "contenders": entries,
    }
    write_json(output, content)
    table = output.with_name(f"{output.stem}_table.tsv")
    write_table(table, long_table(entries), LONG_TABLE_DESCRIBED)


LONG_TABLE_DESCRIBED = {
    "contender": {"Description": "Detector; simulated test cases, the same for all"},
    "stratum": {"Description": "What the cases or lesions are divided by; all: nothing"},
    "value_of_stratum": {"Description": "Which part"},
    "metric": {"Description": "At the definite threshold, chosen on validation cases"},
    "value": {"Description": "The metric"},
    "low": {"Description": "Lower end of the 95 % interval, bootstrap over participants"},
    "high": {"Description": "Upper end of the 95 % interval"},
    "p": {"Description": "Paired randomisation test against SWI + phase"},
}


def long_table(entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per contender, stratum and metric."""
    rows = []
    for entry in entries:
        tests = entry.get("against_reference", {})
        for metric, row in entry["metrics"].items():
            p = tests.get(metric, {}).get("p")
            rows.append((entry["name"], "all", "all", metric, *_ends(row), p))
        for stratum, parts in entry["by"].items():
            for part, values in parts.items():
                rows += [
                    (entry["name"], stratum, part, metric, *_ends(values[metric]), None)
                    for metric in METRICS
                    if metric in values
                ]
    return pd.DataFrame(rows, columns=list(LONG_TABLE_DESCRIBED))


def _ends(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return row["value"], row["low"], row["high"]
