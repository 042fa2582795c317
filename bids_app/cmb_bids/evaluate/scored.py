"""A matched cohort with its sums, before any figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmb_bids.evaluate.bootstrap import participant_sums
from cmb_bids.evaluate.calibration import calibration_sums
from cmb_bids.evaluate.cohort import Cohort
from cmb_bids.evaluate.counts import (
    Matched,
    Sums,
    agreement_sums,
    as_columns,
    calcification_sums,
    candidate_sums,
    detection_sums,
    match_cohort,
)
from cmb_bids.evaluate.froc import froc_sums
from cmb_bids.evaluate.matching import MATCHING_DISTANCE_MM
from cmb_bids.evaluate.metrics import CANDIDATE_PREFIX


@dataclass(frozen=True)
class Scored:
    """A matched cohort with its sums: a row per scan, and per participant.

    ``thresholds`` of the FROC by basis (``listed``, ``candidates``).
    """

    cohort: Cohort
    matched: Matched
    scan_sums: Sums
    sums: Sums
    thresholds: dict[str, np.ndarray]


def score_cohort(cohort: Cohort, distance_mm: float = MATCHING_DISTANCE_MM) -> Scored:
    """Match a cohort and add it up; no figure yet."""
    matched = match_cohort(cohort, distance_mm)
    scans, lesions = matched.scans, matched.lesions
    detected = detection_sums(scans, lesions, matched.detections)
    sums = as_columns(
        detected
        | candidate_sums(matched)
        | calcification_sums(scans, matched.calcifications)
        | agreement_sums(detected["lesions"], detected["hits"] + detected["false_positives"])
    )
    thresholds = {}
    for basis, prefix, points in (
        ("listed", "", matched.listed),
        ("candidates", CANDIDATE_PREFIX, matched.candidates),
    ):
        if "probability" in points and points["probability"].notna().any():
            sums |= calibration_sums(scans, points, prefix)
            thresholds[basis], curve = froc_sums(
                scans, lesions, points, distance_mm, prefix, seconds_count=basis == "listed"
            )
            sums |= curve
    people = participant_sums(sums, scans["participant_id"])
    return Scored(cohort, matched, sums, people, thresholds)
