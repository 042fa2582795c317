"""What one scan's lesions add up to: counts, pattern, burden class and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cmb_bids.columns import FAIL, PASS, SCAN_COLUMNS, WARN
from cmb_bids.lesions import DEFINITE, POSSIBLE

LOBAR, DEEP, INFRATENTORIAL = "lobar", "deep", "infratentorial"

BURDEN_CLASSES = {"0": (0, 0), "1": (1, 1), "2-4": (2, 4), "5-10": (5, 10), ">10": (11, None)}
POLARITIES = {1: "right-handed", -1: "left-handed"}
UNSURE_POLARITY = {
    "weak": "nothing in the image shows the sign of the phase; right-handed was assumed",
    "conflicting": "head and veins disagree about the sign of the phase; the head was believed",
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
    """Counts, pattern and probabilities of one scan.

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
    distribution = poisson_binomial(counted["probability"].astype(float))
    placed = len(definite) == 0 or sum(by_class.values()) > 0
    return {
        "cmb_definite": len(definite),
        "cmb_possible": int((counted["certainty"] == POSSIBLE).sum()),
        **{f"cmb_{c}": number if placed else None for c, number in by_class.items()},
        "pattern": name_pattern(*by_class.values()) if placed else None,
        "burden_class": burden_class(len(definite)),
        "cmb_expected": round(float(counted["probability"].astype(float).sum()), 4),
        **{
            name: round(probability_of_at_least(distribution, count), 4)
            for name, count in EXCEEDANCES.items()
        },
        "cmb_not_counted": len(microbleeds) - len(counted),
        "cmb_volume_mm3": round(float(definite["volume_mm3"].astype(float).sum()), 2),
    }


def judge_quality(
    phase_report: Mapping[str, Any], brain_report: Mapping[str, Any]
) -> tuple[str, str | None]:
    """Verdict on a scan (pass, warn or fail) and its reasons, from the stages' reports."""
    reasons = []
    failed = brain_report.get("gate") != PASS
    if failed:
        reasons.append(str(brain_report.get("reason") or "the brain mask failed its check"))
    confidence = phase_report.get("polarity_confidence")
    if confidence in UNSURE_POLARITY:
        reasons.append(UNSURE_POLARITY[confidence])
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
        "mask_source": brain_report.get("source"),
        "mask_volume_ml": _rounded(brain_report.get("volume_ml"), 1),
        "mask_coverage": _rounded(brain_report.get("coverage"), 3),
        "polarity": POLARITIES.get(phase_report.get("polarity_sign") or 0),
        "polarity_confidence": phase_report.get("polarity_confidence"),
    }


def _rounded(value: Any, digits: int) -> float | None:
    """A number rounded, None where there is none."""
    return None if value is None or not np.isfinite(value) else round(float(value), digits)


def summarise_scan(
    scan: Mapping[str, Any],
    microbleeds: pd.DataFrame,
    calcifications: pd.DataFrame,
    phase_report: Mapping[str, Any],
    brain_report: Mapping[str, Any],
    classify_report: Mapping[str, Any],
) -> dict[str, Any]:
    """The row of the scans table for one scan.

    Parameters
    ----------
    scan : mapping
        The scan's description: ``filename``, ``source_filename``, ``kind`` (complex or
        magnitude), ``version``, ``field_strength_t``, ``echoes``.
    microbleeds, calcifications : DataFrame
        Lesion tables (`cmb_bids.lesions.TABLE_COLUMNS`), possibly empty.
    phase_report, brain_report, classify_report : mapping
        What the stages reported. Keys used: ``polarity_sign``, ``polarity_confidence``;
        ``gate``, ``reason``, ``source``, ``volume_ml``, ``coverage``; ``model``, ``version``,
        ``channels``.

    Returns
    -------
    dict
        Keys are those of `SCAN_COLUMNS`, in that order; None is missing. Where the brain mask
        failed its check every number of lesions is None.
    """
    numbers = count_microbleeds(microbleeds)
    numbers["calcification"] = len(calcifications)
    status, reason = judge_quality(phase_report, brain_report)
    if status == FAIL:
        numbers = _not_counted(numbers)
    row = {
        "filename": scan["filename"],
        "source_filename": scan.get("source_filename"),
        "qc_status": status,
        "qc_reason": reason,
        **numbers,
        **_describe_scan(scan, phase_report, brain_report, classify_report),
    }
    return {name: row[name] for name in SCAN_COLUMNS}
