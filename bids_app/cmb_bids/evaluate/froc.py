"""Free-response operating characteristic: sensitivity against false positives per scan."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from cmb_bids.evaluate.counts import Sums
from cmb_bids.evaluate.matching import (
    MATCHING_DISTANCE_MM,
    is_ignored,
    match_points,
    positions,
    reach_of,
    rows_of_scans,
    within_reach,
)

FROC_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MOST_THRESHOLDS = 2000
MOST_CURVE_POINTS = 200


class Steps(NamedTuple):
    """Hits and false positives (levels,) of one scan at each of its probabilities, descending."""

    levels: np.ndarray
    hits: np.ndarray
    false: np.ndarray


def scan_steps(
    lesions: np.ndarray,
    excused: np.ndarray,
    points: np.ndarray,
    probability: np.ndarray,
    distance_mm: float = MATCHING_DISTANCE_MM,
    seconds_count: bool = True,
) -> Steps:
    """Match one scan at every threshold.

    Matching is repeated, for a detection below the threshold must not take a lesion from one
    above it.

    Parameters
    ----------
    lesions : (n, 3) array
        Centres in mm of the lesions that count.
    excused : (m,) array of bool
        Detections that lie on an ignored lesion.
    points : (m, 3) array
    probability : (m,) array
    distance_mm : float
    seconds_count : bool
        Whether a second detection on a lesion is false. Of candidates it is not: they are merged
        later.
    """
    order = np.argsort(-probability, kind="stable")
    points, probability, excused = points[order], probability[order], excused[order]
    near = within_reach(lesions, np.full(len(lesions), distance_mm), points)
    if not seconds_count:
        excused = excused | near
    ends = np.flatnonzero(np.diff(probability, append=-np.inf)) + 1  # ties enter together
    hits, false = np.zeros(len(ends)), np.zeros(len(ends))
    paired, before = np.zeros(len(points), dtype=bool), 0
    for step, end in enumerate(ends):
        if near[before:end].any():
            use = np.flatnonzero(near[:end])
            paired[:] = False
            paired[use[match_points(lesions, points[use], distance_mm)[:, 1]]] = True
        hits[step] = paired[:end].sum()
        false[step] = (~paired[:end] & ~excused[:end]).sum()
        before = end
    return Steps(probability[ends - 1], hits, false)


def all_steps(
    scans: pd.DataFrame,
    lesions: pd.DataFrame,
    detections: pd.DataFrame,
    distance_mm: float = MATCHING_DISTANCE_MM,
    seconds_count: bool = True,
) -> list[Steps]:
    """`scan_steps` of each scan; detections without a probability are left out."""
    detections = detections[detections["probability"].notna()]
    centres, points = positions(lesions), positions(detections)
    probability = detections["probability"].to_numpy(dtype=float)
    ignored, reach = is_ignored(lesions), reach_of(lesions, distance_mm)
    lesions_of, points_of = rows_of_scans(lesions), rows_of_scans(detections)
    none = np.zeros(0, dtype=int)
    steps = []
    for scan in scans["scan"]:
        mine, there = lesions_of.get(scan, none), points_of.get(scan, none)
        counted, out = mine[~ignored[mine]], mine[ignored[mine]]
        excused = within_reach(centres[out], reach[out], points[there])
        found = (excused, points[there], probability[there])
        steps.append(scan_steps(centres[counted], *found, distance_mm, seconds_count))
    return steps


def froc_sums(
    scans: pd.DataFrame,
    lesions: pd.DataFrame,
    detections: pd.DataFrame,
    distance_mm: float = MATCHING_DISTANCE_MM,
    prefix: str = "",
    seconds_count: bool = True,
) -> tuple[np.ndarray, Sums]:
    """Hits and false positives of each scan at the thresholds of all.

    Parameters
    ----------
    scans, lesions, detections : DataFrame
        ``scan``; ``scan x y z ignored``; ``scan x y z probability``.
    distance_mm : float
    prefix : str
        Put before the names.
    seconds_count : bool
        As `scan_steps`.

    Returns
    -------
    thresholds : (t,) array
        Descending; at most `MOST_THRESHOLDS`, thinned out evenly.
    sums : dict
        (scans, t) arrays ``froc_hits`` and ``froc_false``.
    """
    steps = all_steps(scans, lesions, detections, distance_mm, seconds_count)
    levels = [one.levels for one in steps]
    thresholds = np.unique(np.concatenate(levels))[::-1] if levels else np.zeros(0)
    if len(thresholds) > MOST_THRESHOLDS:
        kept = np.linspace(0, len(thresholds) - 1, MOST_THRESHOLDS).astype(int)
        thresholds = thresholds[kept]
    hits, false = (np.zeros((len(scans), len(thresholds))) for _ in range(2))
    for row, one in enumerate(steps):
        reached = np.searchsorted(-one.levels, -thresholds, side="right")
        hits[row] = np.concatenate([[0], one.hits])[reached]
        false[row] = np.concatenate([[0], one.false])[reached]
    return thresholds, {f"{prefix}froc_hits": hits, f"{prefix}froc_false": false}


def _curve(sums: Sums, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """False positives per scan and sensitivity (rows, t + 1), the first without a detection."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = sums[f"{prefix}froc_false"] / sums["scans"]
        sensitivity = sums[f"{prefix}froc_hits"] / sums["lesions"]
    none = np.zeros((len(rate), 1))
    start = np.where(sums["lesions"] > 0, none, np.nan)
    return np.hstack([none, rate]), np.hstack([start, sensitivity])


def rate_name(rate: float, prefix: str = "") -> str:
    """Name of the sensitivity at a rate."""
    return f"{prefix}sensitivity_at_{rate:g}_false_positives"


def froc_metrics(sums: Sums, prefix: str = "") -> dict[str, np.ndarray]:
    """Best sensitivity within each of `FROC_RATES`, and their mean, a value per row."""
    rate, sensitivity = _curve(sums, prefix)
    metrics = {
        rate_name(allowed, prefix): np.where(rate <= allowed, sensitivity, 0).max(axis=1)
        for allowed in FROC_RATES
    }
    mean = np.mean(list(metrics.values()), axis=0)
    return metrics | {f"{prefix}froc_mean_sensitivity": mean}


def froc_table(
    sums: Sums,
    thresholds: np.ndarray,
    intervals: dict[str, tuple[float, float]],
    basis: str,
    prefix: str = "",
) -> pd.DataFrame:
    """The FROC at `FROC_RATES`.

    Parameters
    ----------
    sums : dict
        One row: the cohort.
    thresholds : (t,) array
    intervals : dict
        Of the metrics of `froc_metrics`.
    basis : str
        What was ranked: ``listed`` or ``candidates``.
    prefix : str

    Returns
    -------
    DataFrame
        ``basis false_positives_per_scan threshold sensitivity sensitivity_low sensitivity_high
        reached``: the threshold is missing where no detection may be made; ``reached`` says
        whether the detections are numerous enough to spend the allowance.
    """
    rate, sensitivity = (values[0] for values in _curve(sums, prefix))
    cuts = np.concatenate([[np.nan], thresholds])
    rows = []
    for allowed in FROC_RATES:
        within = np.flatnonzero(rate <= allowed)
        best = within[np.argmax(np.nan_to_num(sensitivity[within], nan=-1))]
        low, high = intervals.get(rate_name(allowed, prefix), (np.nan, np.nan))
        reached = bool(rate[-1] >= allowed)
        rows.append((basis, allowed, cuts[best], sensitivity[best], low, high, reached))
    names = "basis false_positives_per_scan threshold sensitivity sensitivity_low sensitivity_high"
    return pd.DataFrame(rows, columns=[*names.split(), "reached"])


def froc_curve(sums: Sums, thresholds: np.ndarray, basis: str, prefix: str = "") -> pd.DataFrame:
    """The whole curve, thinned out where it has more than `MOST_CURVE_POINTS` points.

    Returns
    -------
    DataFrame
        ``basis threshold false_positives_per_scan sensitivity``.
    """
    rate, sensitivity = (values[0] for values in _curve(sums, prefix))
    keep = np.unique(np.linspace(0, len(rate) - 1, MOST_CURVE_POINTS).astype(int))
    corners = np.flatnonzero(np.diff(np.nan_to_num(sensitivity), append=-1))
    if len(corners) < MOST_CURVE_POINTS:  # where the curve rises must not be thinned out
        keep = np.unique(np.concatenate([[0, len(rate) - 1], corners, corners + 1]))
        keep = keep[keep < len(rate)]
    return pd.DataFrame(
        {
            "basis": basis,
            "threshold": np.concatenate([[np.nan], thresholds])[keep],
            "false_positives_per_scan": rate[keep],
            "sensitivity": sensitivity[keep],
        }
    )
