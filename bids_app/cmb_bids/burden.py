"""What one scan's lesions add up to: counts, pattern, burden class and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from cmb_bids.columns import (
    BOMBS_SIZE_LIMIT_MM,
    BOMBS_SIZES,
    FAIL,
    PASS,
    SCAN_COLUMNS,
    WARN,
    bombs_columns,
    mars_columns,
    unplaced_column,
)
from cmb_bids.lesions import DEFINITE, POSSIBLE
from cmb_bids.quality import QualityConfig, find_reasons
from cmb_bids.same_lesion import FARTHEST_MM, suppress_neighbours

LOBAR, DEEP, INFRATENTORIAL = "lobar", "deep", "infratentorial"

BURDEN_CLASSES = {"0": (0, 0), "1": (1, 1), "2-4": (2, 4), "5-10": (5, 10), ">10": (11, None)}
POLARITIES = {1: "right-handed", -1: "left-handed"}
UNSURE_POLARITY = {
    "weak": "the image hardly shows the sign of the phase; polarity says which was assumed",
    "conflicting": "head and veins disagree about the sign of the phase; the clearer was believed",
}
EXCEEDANCES = {"p_ge_1": 1, "p_ge_2": 2, "p_gt_4": 5, "p_gt_10": 11}  # P(count >= this)


def poisson_binomial(probabilities: Iterable[float]) -> np.ndarray:
    """Distribution of the number of successes among independent trials.

    Parameters
    ----------
    probabilities : n floats in 0 to 1

    Returns
    -------
    (n + 1,) array
        P(count = k) for k = 0 to n.

    Raises
    ------
    ValueError
        A probability is missing or outside 0 to 1.
    """
    distribution: np.ndarray = np.ones(1)
    for p in probabilities:
        if not 0 <= p <= 1:
            raise ValueError(f"{p!r} is no probability")
        distribution = np.convolve(distribution, [1 - p, p])
    return distribution


def probability_of_at_least(distribution: np.ndarray, count: int) -> float:
    """P(number >= count) from `poisson_binomial`'s distribution."""
    return float(np.clip(distribution[count:].sum(), 0.0, 1.0))


def burden_class(count: int) -> str:
    """Burden class of a count: 0, 1, 2-4, 5-10 or >10.

    Raises
    ------
    ValueError
        The count is negative.
    """
    for name, (first, last) in BURDEN_CLASSES.items():
        if count >= first and (last is None or count <= last):
            return name
    raise ValueError(f"{count} is no count")


def name_pattern(lobar: int, deep: int, infratentorial: int) -> str:
    """The distribution pattern of a scan's microbleeds."""
    elsewhere = deep + infratentorial
    if lobar and elsewhere:
        return "mixed"
    if lobar:
        return "strictly_lobar"
    return "strictly_deep_infratentorial" if elsewhere else "none"


def count_microbleeds(microbleeds: pd.DataFrame) -> dict[str, Any]:
    """Counts and pattern of one scan.

    Parameters
    ----------
    microbleeds : DataFrame
        Lesion table of the microbleeds (`cmb_bids.lesions.TABLE_COLUMNS`); may be empty.

    Returns
    -------
    dict
        Columns of the scans row. Where definite lesions were counted but none has a place (no
        atlas), the three regional counts and the pattern are None, not zero.
    """
    counted = microbleeds[microbleeds["counted"].astype(bool)]
    definite = counted[counted["certainty"] == DEFINITE]
    by_class = {c: int((definite["mars_class"] == c).sum()) for c in (LOBAR, DEEP, INFRATENTORIAL)}
    placed = len(definite) == 0 or sum(by_class.values()) > 0
    return {
        "cmb_definite": len(definite),
        "cmb_possible": int((counted["certainty"] == POSSIBLE).sum()),
        **{f"cmb_{c}": number if placed else None for c, number in by_class.items()},
        "pattern": name_pattern(*by_class.values()) if placed else None,
        "burden_class": burden_class(len(definite)),
        "cmb_not_counted": len(microbleeds) - len(counted),
        "cmb_volume_mm3": round(float(definite["volume_mm3"].astype(float).sum()), 2),
        **count_by_region(counted),
    }


def count_by_region(counted: pd.DataFrame) -> dict[str, int | None]:
    """Counts by region and side on MARS, and by region, side and size on BOMBS.

    Parameters
    ----------
    counted : DataFrame
        The counted rows of a lesion table; may be empty.

    Returns
    -------
    dict
        A value for each column of `cmb_bids.columns` that begins with ``mars_`` or ``bombs_``.
        The columns of a scale add up to the number of lesions of each certainty. Where none of
        them has a place on the scale, the regions are None and all are ``unplaced``.
    """
    size = np.where(counted["diameter_mm"].astype(float) < BOMBS_SIZE_LIMIT_MM, *BOMBS_SIZES)
    scales: list[tuple[str, Callable[[str], Mapping[Any, str]], list[str]]] = [
        ("mars", mars_columns, ["mars_region", "hemisphere"]),
        ("bombs", bombs_columns, ["bombs_region", "hemisphere", "size"]),
    ]
    numbers: dict[str, int | None] = {}
    for scale, columns_of, fields in scales:
        for certainty in (DEFINITE, POSSIBLE):
            chosen = counted.assign(size=size)[counted["certainty"] == certainty]
            keys = list(chosen[fields].itertuples(index=False, name=None))
            unplaced = unplaced_column(scale, certainty)
            numbers |= _tally(columns_of(certainty), keys, unplaced)
    return numbers


def _tally(
    names: Mapping[Any, str], keys: Sequence[tuple[Any, ...]], unplaced: str
) -> dict[str, int | None]:
    """How many keys fall on each named column; the others are ``unplaced``."""
    tally: dict[str, int | None] = dict.fromkeys(names.values(), 0)
    placed = [names[key] for key in keys if key in names]
    for name in placed:
        tally[name] = (tally[name] or 0) + 1
    if keys and not placed:
        tally = dict.fromkeys(tally)
    return {**tally, unplaced: len(keys) - len(placed)}


def chances_of_microbleeds(lesions: pd.DataFrame, candidates: pd.DataFrame) -> np.ndarray:
    """Probability of everything that may be one microbleed that counts.

    A listed lesion stands for all candidates on it, and of several unlisted candidates on one
    spot the likeliest does. A listed lesion outside the counted diameters has no chance; an
    unlisted candidate, which is not drawn, is taken to have a diameter that counts.

    Parameters
    ----------
    lesions : DataFrame
        All listed lesions, microbleeds and calcifications: ``x y z`` (mm), ``diameter_mm``,
        ``probability``, ``counted``.
    candidates : DataFrame
        All candidates with ``x y z`` (mm) and ``p_microbleed``; a missing one is no chance.

    Returns
    -------
    (n,) array
        Of the counted lesions first, in their order.
    """
    counted = lesions["counted"].astype(bool).to_numpy()
    listed = lesions["probability"].astype(float).to_numpy()[counted]
    points = candidates[["x", "y", "z"]].to_numpy(dtype=float).reshape(-1, 3)
    chances = np.nan_to_num(candidates["p_microbleed"].to_numpy(dtype=float))
    centres = lesions[["x", "y", "z"]].to_numpy(dtype=float).reshape(-1, 3)
    # Training ignores what lies this near a microbleed, so that it has no probability of its own.
    free = ~(cdist(points, centres) <= FARTHEST_MM).any(axis=1)
    kept = free & (chances > 0)
    points, chances = points[kept], chances[kept]
    return np.concatenate([listed, chances[suppress_neighbours(points, chances, FARTHEST_MM)]])


def estimate_count(chances: np.ndarray) -> dict[str, float]:
    """Expected count and how likely the count exceeds the limits of the burden classes.

    Parameters
    ----------
    chances : (n,) array
        From `chances_of_microbleeds`.
    """
    distribution = poisson_binomial(chances)
    return {
        "cmb_expected": round(float(np.sum(chances)), 4),
        **{
            name: round(probability_of_at_least(distribution, count), 4)
            for name, count in EXCEEDANCES.items()
        },
    }


def judge_quality(
    phase_report: Mapping[str, Any],
    brain_report: Mapping[str, Any],
    quality: Mapping[str, float | None],
    limits: QualityConfig,
) -> tuple[str, str | None]:
    """Verdict on a scan (pass, warn or fail) and its reasons.

    Only a brain mask that failed its check fails a scan: without a brain there is nothing to
    count in. All else warns.

    Parameters
    ----------
    phase_report, brain_report : mapping
        What the stages reported.
    quality : mapping
        From `cmb_bids.quality.measure_quality`.
    limits : QualityConfig
    """
    reasons = []
    failed = brain_report.get("gate") != PASS
    if failed:
        reasons.append(str(brain_report.get("reason") or "the brain mask failed its check"))
    elif brain_report.get("warning"):
        reasons.append(str(brain_report["warning"]))
    confidence = phase_report.get("polarity_confidence")
    if confidence in UNSURE_POLARITY:
        reasons.append(UNSURE_POLARITY[confidence])
    parcellation = brain_report.get("parcellation") or {}
    if parcellation.get("reason"):
        reasons.append(str(parcellation["reason"]))
    reasons += find_reasons(quality, limits)
    status = FAIL if failed else WARN if reasons else PASS
    # A reason goes into one cell of a table.
    text = "; ".join(" ".join(reason.split()).rstrip(".") for reason in reasons)
    return status, text or None


def _not_counted(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a scan whose counts cannot be trusted: every number of lesions is missing."""
    return dict.fromkeys(row, None)


def _describe_scan(
    scan: Mapping[str, Any],
    phase_report: Mapping[str, Any],
    brain_report: Mapping[str, Any],
    classify_report: Mapping[str, Any],
) -> dict[str, Any]:
    """What went in: inputs, model, mask."""
    echo_times = [echo.get("echo_time_s") for echo in scan.get("echoes", [])]
    known = [f"{1000 * float(t):.4g}" for t in echo_times if t is not None]
    channels = classify_report.get("channels")
    model = [classify_report.get("model") or classify_report.get("name")]
    model.append(classify_report.get("version"))
    return {
        "input": scan["kind"],
        "channels": "+".join(channels) if isinstance(channels, list) else channels,
        "model": " ".join(str(part) for part in model if part) or None,
        "version": scan.get("version"),
        "field_strength_t": scan.get("field_strength_t"),
        "echo_times_ms": ",".join(known) or None,
        "voxel_size_mm": "x".join(f"{edge:.3g}" for edge in scan.get("voxel_size_mm", [])) or None,
        "mask_source": brain_report.get("source"),
        "mask_volume_ml": _rounded(brain_report.get("volume_ml"), 1),
        "mask_coverage": _rounded(brain_report.get("coverage"), 3),
        "polarity": POLARITIES.get(phase_report.get("polarity_sign") or 0),
        "polarity_confidence": phase_report.get("polarity_confidence"),
        "polarity_evidence": phase_report.get("polarity_evidence"),
        "polarity_head_correlation": _rounded(phase_report.get("polarity_correlation"), 3),
        "polarity_vein_score": _rounded(phase_report.get("polarity_vein_score"), 3),
        "parcellation": _used_parcellation(brain_report),
    }


def _used_parcellation(brain_report: Mapping[str, Any]) -> str | None:
    """File name of the parcellation that came before the atlas; None where the atlas was alone."""
    parcellation = brain_report.get("parcellation") or {}
    return Path(parcellation["file"]).name if parcellation.get("used") else None


def _describe_quality(quality: Mapping[str, float | None]) -> dict[str, float | None]:
    """The measures of quality, rounded to what they are worth."""
    digits = {
        "signal_to_noise": 1,
        "residual_phase_rad": 3,
        "phase_jump_share": 5,
        "phase_missing_share": 5,
        "motion_ghosting": 4,
        "brain_left_out_share": 4,
    }
    return {name: _rounded(quality.get(name), n) for name, n in digits.items()}


def _rounded(value: Any, digits: int) -> float | None:
    """A number rounded, None where there is none."""
    return None if value is None or not np.isfinite(value) else round(float(value), digits)


def summarise_scan(
    scan: Mapping[str, Any],
    microbleeds: pd.DataFrame,
    calcifications: pd.DataFrame,
    candidates: pd.DataFrame,
    phase_report: Mapping[str, Any],
    brain_report: Mapping[str, Any],
    classify_report: Mapping[str, Any],
    quality: Mapping[str, float | None],
    limits: QualityConfig | None = None,
) -> dict[str, Any]:
    """The row of the scans table for one scan.

    Parameters
    ----------
    scan : mapping
        The scan's description: ``filename``, ``source_filename``, ``kind`` (complex or
        magnitude), ``version``, ``field_strength_t``, ``echoes``, ``voxel_size_mm``.
    microbleeds, calcifications : DataFrame
        Lesion tables (`cmb_bids.lesions.TABLE_COLUMNS`), possibly empty.
    candidates : DataFrame
        All candidates with ``x y z`` (mm) and ``p_microbleed``, possibly empty.
    phase_report, brain_report, classify_report : mapping
        What the stages reported. Keys used: ``polarity_sign``, ``polarity_confidence``,
        ``polarity_evidence``, ``polarity_correlation``, ``polarity_vein_score``;
        ``gate``, ``reason``, ``source``, ``volume_ml``, ``coverage``; ``model``, ``version``,
        ``channels``.
    quality : mapping
        From `cmb_bids.quality.measure_quality`.
    limits : QualityConfig, optional

    Returns
    -------
    dict
        Keys are those of `SCAN_COLUMNS`, in that order; None is missing. Where the brain mask
        failed its check every number of lesions is None.
    """
    numbers = count_microbleeds(microbleeds)
    numbers["calcification"] = len(calcifications)
    numbers["calcification_definite"] = int((calcifications["certainty"] == DEFINITE).sum())
    lesions = pd.concat([microbleeds, calcifications]) if len(calcifications) else microbleeds
    numbers |= estimate_count(chances_of_microbleeds(lesions, candidates))
    status, reason = judge_quality(phase_report, brain_report, quality, limits or QualityConfig())
    if status == FAIL:
        numbers = _not_counted(numbers)
    row = {
        "filename": scan["filename"],
        "source_filename": scan.get("source_filename"),
        "qc_status": status,
        "qc_reason": reason,
        **numbers,
        **_describe_scan(scan, phase_report, brain_report, classify_report),
        **_describe_quality(quality),
    }
    return {name: row[name] for name in SCAN_COLUMNS}
