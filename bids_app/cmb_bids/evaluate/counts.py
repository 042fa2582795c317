"""A matched cohort, reduced to sums of each scan: all that figures and resampling need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from cmb_bids.evaluate.cohort import Cohort
from cmb_bids.evaluate.matching import (
    FALSE,
    HIT,
    IGNORED,
    MATCHING_DISTANCE_MM,
    MISSED,
    counted_detections,
    definite_detections,
    ignored_lesions,
    match_scans,
    positions,
    rows_of_scans,
)
from cmb_bids.evaluate.points import CALCIFICATION, MICROBLEED, OTHER

BURDEN_EDGES = (0, 1, 2, 5, 11)
BURDEN_NAMES = ("0", "1", "2-4", "5-10", ">10")
Sums = dict[str, np.ndarray]  # name -> (rows, k); a row is a scan, a participant or a resample


@dataclass
class Matched:
    """Points of a cohort with what became of each, for the scans in ``scans``.

    ``lesions``: labelled microbleeds with ``outcome``, ``distance_mm``, ``partner`` and
    ``has_candidate``. ``detections``: definite ones with ``outcome``. ``listed``: definite and
    possible ones with ``outcome`` of a matching of their own. ``candidates`` with ``outcome``;
    a second one on a lesion is ignored.
    ``calcifications``: labelled ones with ``called`` (microbleed), ``recognised`` (as a
    calcification) and ``has_candidate``. Scans of one derivative, in one order throughout.
    """

    scans: pd.DataFrame
    lesions: pd.DataFrame
    detections: pd.DataFrame
    listed: pd.DataFrame
    candidates: pd.DataFrame
    calcifications: pd.DataFrame
    distance_mm: float


def match_cohort(cohort: Cohort, distance_mm: float = MATCHING_DISTANCE_MM) -> Matched:
    """Match everything that is matched: definite and listed detections, candidates, calcium.

    Parameters
    ----------
    cohort : Cohort
    distance_mm : float
    """
    scans, found = cohort.scans, cohort.microbleeds
    truth, detections, called = match_detections(
        cohort, found[definite_detections(found)], distance_mm
    )
    lesions = _of_kind(cohort.truth, MICROBLEED)
    listed = match_scans(scans, lesions, found[counted_detections(found)], distance_mm)[1]
    near, candidates = match_scans(scans, lesions, cohort.candidates, distance_mm)
    truth["has_candidate"] = (near["outcome"] == HIT).to_numpy()
    # Candidates are not merged yet: a second one on a lesion says nothing false.
    distance, _ = nearest(candidates, lesions[~lesions["ignored"]])
    second = (candidates["outcome"] == FALSE) & (distance <= distance_mm)
    candidates.loc[second, "outcome"] = IGNORED
    calcified = _of_kind(cohort.truth, CALCIFICATION)
    for column, points in (
        ("recognised", cohort.calcifications),
        ("has_candidate", cohort.candidates),
    ):
        outcome = match_scans(scans, calcified, points, distance_mm)[0]["outcome"]
        called[column] = (outcome == HIT).to_numpy()
    truth = _explain_misses(truth, cohort, distance_mm)
    detections = _explain_false(detections, cohort, distance_mm)
    return Matched(scans, truth, detections, listed, candidates, called, distance_mm)


def match_detections(
    cohort: Cohort, found: pd.DataFrame, distance_mm: float = MATCHING_DISTANCE_MM
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Match detections to the labelled microbleeds, and what is left to the calcifications.

    Returns
    -------
    lesions, detections : DataFrame
        As `match_scans`.
    calcifications : DataFrame
        Labelled ones with ``called``: a detection that hit no microbleed is paired with it.
    """
    lesions = _of_kind(cohort.truth, MICROBLEED)
    lesions, detections = match_scans(cohort.scans, lesions, found, distance_mm)
    free = detections[detections["outcome"] == FALSE].drop(columns="outcome")
    calcified = _of_kind(cohort.truth, CALCIFICATION)
    called = match_scans(cohort.scans, calcified, free, distance_mm)[0]
    called["called"] = (called["outcome"] == HIT).to_numpy()
    return lesions, detections, called


def _of_kind(truth: pd.DataFrame, kind: str) -> pd.DataFrame:
    rows = truth[truth["kind"] == kind].reset_index(drop=True)
    return rows.assign(ignored=ignored_lesions(rows))


# ------------------------------------------------------------------ why


def _explain_misses(lesions: pd.DataFrame, cohort: Cohort, distance_mm: float) -> pd.DataFrame:
    """Add ``lost_at``: how far each missed lesion got, and its nearest candidate."""
    found = cohort.microbleeds
    definite, counted = definite_detections(found), counted_detections(found)
    stages = [  # the last that applies stays
        ("candidate_rejected", cohort.candidates),
        ("called_calcification", cohort.calcifications),
        ("called_possible", found[counted & ~definite]),
        ("not_counted", found[~counted]),
        ("taken_by_neighbour", found[definite]),
    ]
    lost = pd.Series(None, index=lesions.index, dtype=object)
    missed = (lesions["outcome"] == MISSED).to_numpy()
    if cohort.scans["has_candidates"].any():
        with_candidates = cohort.scans.loc[cohort.scans["has_candidates"], "scan"]
        lost[missed & lesions["scan"].isin(with_candidates).to_numpy()] = "no_candidate"
    for name, points in stages:
        distance, _ = nearest(lesions, points)
        lost[missed & (distance <= distance_mm)] = name
    distance, row = nearest(lesions, cohort.candidates)
    lesions = lesions.assign(lost_at=lost, candidate_distance_mm=distance)
    if "probability" in cohort.candidates:
        values = cohort.candidates["probability"].to_numpy(dtype=float)
        known = np.where(row >= 0, values[row] if len(values) else np.nan, np.nan)
        lesions["candidate_probability"] = np.where(distance <= distance_mm, known, np.nan)
    return lesions


def _explain_false(detections: pd.DataFrame, cohort: Cohort, distance_mm: float) -> pd.DataFrame:
    """Add ``lies_on``: the labelled thing that is no microbleed, and the nearest microbleed."""
    kinds = cohort.truth["kind"]
    mimics = cohort.truth[kinds.isin([CALCIFICATION, OTHER])]
    distance, row = nearest(detections, mimics)
    names = np.array([*mimics["name"].astype(str), "n/a"], dtype=object)
    lies_on = names[row]
    lies_on[distance > distance_mm] = None
    twin, _ = nearest(detections, cohort.truth[kinds == MICROBLEED])
    second = (detections["outcome"] == FALSE).to_numpy() & (twin <= distance_mm)
    lies_on[second] = "microbleed hit by another"
    return detections.assign(lies_on=lies_on, nearest_lesion_mm=twin)


def nearest(points: pd.DataFrame, others: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Distance (n,) in mm to the nearest of ``others`` in the same scan, and its row (n,).

    Infinite and -1 where the scan has none.
    """
    distance, row = np.full(len(points), np.inf), np.full(len(points), -1)
    here, there = positions(points), positions(others)
    rows_there = rows_of_scans(others)
    for scan, mine in rows_of_scans(points).items():
        if scan in rows_there:
            between = cdist(here[mine], there[rows_there[scan]])
            distance[mine] = between.min(axis=1)
            row[mine] = rows_there[scan][between.argmin(axis=1)]
    return distance, row


# ------------------------------------------------------------------ sums


def tally(scans: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Number of rows (scans,) that a table has of each scan."""
    return scans["scan"].map(rows.groupby("scan").size()).fillna(0).to_numpy(dtype=float)


def burden_class(counts: np.ndarray) -> np.ndarray:
    """Class 0..4 of each count: none, one, 2-4, 5-10, more than 10."""
    return np.searchsorted(BURDEN_EDGES, np.asarray(counts), side="right") - 1


def detection_sums(
    scans: pd.DataFrame, lesions: pd.DataFrame, detections: pd.DataFrame
) -> dict[str, np.ndarray]:
    """Lesions, hits and false positives of each scan, and what a scan as a whole was called.

    Parameters
    ----------
    scans, lesions, detections : DataFrame
        As in `Matched`; the points may be a subset.

    Returns
    -------
    dict
        (scans,) arrays: ``scans lesions ignored hits false_positives lesion_free
        lesion_free_false_positives bearing bearing_called lesion_free_clean``. A scan whose only
        lesions are ignored ones is not lesion-free.
    """
    ignored = lesions["outcome"] == IGNORED
    counted, hits = (
        tally(scans, lesions[~ignored]),
        tally(scans, lesions[lesions["outcome"] == HIT]),
    )
    false = tally(scans, detections[detections["outcome"] == FALSE])
    free = (tally(scans, lesions) == 0).astype(float)
    called, bearing = hits + false > 0, counted > 0
    return {
        "scans": np.ones(len(scans)),
        "lesions": counted,
        "ignored": tally(scans, lesions[ignored]),
        "hits": hits,
        "false_positives": false,
        "lesion_free": free,
        "lesion_free_false_positives": false * free,
        "bearing": bearing.astype(float),
        "bearing_called": (bearing & called).astype(float),
        "lesion_free_clean": free * ~called,
    }


def candidate_sums(matched: Matched, lesions: pd.DataFrame | None = None) -> Sums:
    """Candidates of each scan that has a table of them, and the lesions they reach."""
    scans = matched.scans
    lesions = matched.lesions if lesions is None else lesions
    has = scans["has_candidates"].to_numpy(dtype=float)
    counted = lesions[lesions["outcome"] != IGNORED]
    calcified = matched.calcifications[~matched.calcifications["ignored"]]
    return {
        "candidate_scans": has,
        "candidates": has * tally(scans, matched.candidates),
        "candidate_lesions": has * tally(scans, counted),
        "candidate_hits": has * tally(scans, counted[counted["has_candidate"]]),
        "candidate_calcifications": has * tally(scans, calcified),
        "candidate_calcification_hits": has * tally(scans, calcified[calcified["has_candidate"]]),
    }


def calcification_sums(scans: pd.DataFrame, calcifications: pd.DataFrame) -> Sums:
    """Labelled calcifications of each scan, and what the tool called them.

    Parameters
    ----------
    scans, calcifications : DataFrame
        As in `Matched`; ``recognised`` may be missing.
    """
    rows = calcifications[~calcifications["ignored"]]
    sums = {
        "calcifications": tally(scans, rows),
        "calcifications_called_microbleed": tally(scans, rows[rows["called"]]),
    }
    if "recognised" in rows:
        tells = scans["has_calcifications"].to_numpy(dtype=float)
        sums["calcifications_told"] = tells * tally(scans, rows)
        sums["calcifications_recognised"] = tells * tally(scans, rows[rows["recognised"]])
    return sums


def agreement_sums(truth: np.ndarray, called: np.ndarray) -> Sums:
    """What kappa of the burden class and the correlation of the counts need of each scan.

    Parameters
    ----------
    truth, called : (scans,) arrays
        Counts.
    """
    classes = len(BURDEN_NAMES)
    confusion = np.zeros((len(truth), classes * classes))
    cell = burden_class(truth) * classes + burden_class(called)
    confusion[np.arange(len(truth)), cell] = 1
    t, c = np.asarray(truth, dtype=float), np.asarray(called, dtype=float)
    moments = np.stack([np.ones_like(t), t, c, t * t, c * c, t * c], axis=1)
    return {"confusion": confusion, "moments": moments}


def as_columns(sums: dict[str, np.ndarray]) -> Sums:
    """Every (n,) array as (n, 1)."""
    return {name: values.reshape(len(values), -1) for name, values in sums.items()}
