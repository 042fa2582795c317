"""All figures of a cohort: overall and by subset, with intervals."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd

from cmb_bids.evaluate.bootstrap import (
    Interval,
    interval,
    participant_sums,
    resampling_weights,
    total,
    weigh,
)
from cmb_bids.evaluate.calibration import reliability_table
from cmb_bids.evaluate.cohort import WITHOUT_LABELS, Cohort, read_cohort
from cmb_bids.evaluate.counts import as_columns
from cmb_bids.evaluate.details import false_alarm_table, lesion_table, scan_table
from cmb_bids.evaluate.froc import froc_curve, froc_table
from cmb_bids.evaluate.matching import MATCHING_DISTANCE_MM
from cmb_bids.evaluate.metrics import CANDIDATE_PREFIX
from cmb_bids.evaluate.scored import Scored, score_cohort
from cmb_bids.evaluate.subsets import (
    NO_INTERVAL_FOR,
    certainty_subset,
    lesion_subsets,
    metrics_rows,
    scan_subsets,
)

OVERALL = ("all", "all")


def sensitivity_of_all_labelled(scored: Scored, samples: int, seed: int) -> tuple[float, Interval]:
    """Sensitivity when the lesions of labelled scans without a usable result count as missed."""
    scans, others = scored.matched.scans, scored.cohort.others
    lost = others[others["lesions"].notna()]
    people = pd.concat([scans["participant_id"], lost["participant_id"]], ignore_index=True)
    lesions = np.concatenate([scored.scan_sums["lesions"][:, 0], lost["lesions"].astype(float)])
    hits = np.concatenate([scored.scan_sums["hits"][:, 0], np.zeros(len(lost))])
    sums = participant_sums(as_columns({"lesions": lesions, "hits": hits}), people)
    drawn = weigh(sums, resampling_weights(people.nunique(), samples, seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        limits = interval((drawn["hits"] / drawn["lesions"])[:, 0])
    return (float(hits.sum() / lesions.sum()) if lesions.sum() else float("nan")), limits


def basis_tables(scored: Scored, weights: np.ndarray, limits: dict) -> dict[str, pd.DataFrame]:
    """FROC at given rates, its curve, and reliability, of what is listed and of candidates."""
    froc, curve, reliability = [], [], []
    whole, drawn = total(scored.sums), weigh(scored.sums, weights)
    for basis, thresholds in scored.thresholds.items():
        prefix = CANDIDATE_PREFIX if basis == "candidates" else ""
        froc.append(froc_table(whole, thresholds, limits, basis, prefix))
        curve.append(froc_curve(whole, thresholds, basis, prefix))
        reliability.append(reliability_table(whole, drawn, basis, prefix))
    return {
        "froc": pd.concat(froc, ignore_index=True) if froc else pd.DataFrame(),
        "froc_curve": pd.concat(curve, ignore_index=True) if curve else pd.DataFrame(),
        "reliability": pd.concat(reliability, ignore_index=True) if reliability else pd.DataFrame(),
    }


def evaluate_cohort(
    cohort: Cohort,
    distance_mm: float = MATCHING_DISTANCE_MM,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a cohort.

    Parameters
    ----------
    cohort : Cohort
    distance_mm : float
    samples : int
        Bootstrap samples.
    seed : int

    Returns
    -------
    dict
        ``metrics`` (name to value), ``intervals`` (name to (low, high)), ``metrics_table`` (all
        subsets), the tables ``froc froc_curve reliability scans lesions false_alarms``,
        ``unprocessed`` and ``unlabelled`` (names of scans), ``simulated``, ``name``, ``scored``.
    """
    scored = score_cohort(cohort, distance_mm)
    people = len(scored.sums["scans"])
    weights = resampling_weights(people, samples, seed)
    rows = metrics_rows(scored.sums, weights, *OVERALL)
    all_labelled, limits_of_all = sensitivity_of_all_labelled(scored, samples, seed)
    low, high = limits_of_all
    extra = {"metric": "sensitivity_all_labelled", "value": all_labelled, "low": low, "high": high}
    rows.append({"by": "all", "group": "all"} | extra)
    metrics = {row["metric"]: row["value"] for row in rows}
    limits = {r["metric"]: (r["low"], r["high"]) for r in rows}
    if "certainty" in cohort.microbleeds:
        named = ("certainty", "definite_and_possible")
        rows += metrics_rows(certainty_subset(scored), weights, *named)
    for by, group, sums in [*scan_subsets(scored), *lesion_subsets(scored)]:
        rows += metrics_rows(sums, weights, by, group)
    others = cohort.others
    return {
        "name": cohort.name,
        "simulated": cohort.simulated,
        "participants": people,
        "metrics": {k: _count(k, v) for k, v in metrics.items()},
        "intervals": {k: v for k, v in limits.items() if k not in NO_INTERVAL_FOR},
        "metrics_table": pd.DataFrame(rows),
        **basis_tables(scored, weights, limits),
        "scans": scan_table(scored),
        "lesions": lesion_table(scored.matched),
        "false_alarms": false_alarm_table(scored.matched),
        "unprocessed": others.loc[others["status"] != WITHOUT_LABELS, "scan"].tolist(),
        "unlabelled": others.loc[others["status"] == WITHOUT_LABELS, "scan"].tolist(),
        "scored": scored,
    }


def _count(name: str, value: float) -> float | int:
    return int(value) if name in NO_INTERVAL_FOR and np.isfinite(value) else value


def evaluate_derivatives(
    derivatives_dir: str | os.PathLike[str],
    labels_dir: str | os.PathLike[str],
    distance_mm: float = MATCHING_DISTANCE_MM,
    samples: int = 1000,
    seed: int = 0,
    **reading: Any,
) -> dict[str, Any]:
    """Score a derivative dataset of any tool against a labels derivative.

    Parameters
    ----------
    derivatives_dir : path-like
        Holds tables or images of points: ``sub-*_desc-{cmb,calcification,candidates}_dseg``, or
        what `cmb_bids.evaluate.cohort.find_point_files` takes for them.
    labels_dir : path-like
        A BIDS derivative with ``*_desc-*_dseg`` point tables or label images.
    distance_mm, samples, seed
        As `evaluate_cohort`.
    **reading
        As `read_cohort`: ``description``, ``labels_description``, ``images_dir``.

    Returns
    -------
    dict
        As `evaluate_cohort`.

    Raises
    ------
    InputMissing, NothingMatched, UsageError
        As `read_cohort`.
    """
    cohort = read_cohort(derivatives_dir, labels_dir, **reading)
    return evaluate_cohort(cohort, distance_mm, samples, seed)
