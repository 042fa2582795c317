"""What each candidate of a simulated scan is, by its distance to the simulated lesions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cmb_bids.same_lesion import FARTHEST_MM, LEAST_MM, reach_mm

MICROBLEED, CALCIFICATION, OTHER, IGNORED = 0, 1, 2, -1
LABEL_OF_NAME = {"microbleed": MICROBLEED, "calcification": CALCIFICATION}


def label_candidates(
    points_mm: np.ndarray, truth: pd.DataFrame, same_place: float = LEAST_MM
) -> np.ndarray:
    """Label candidates one-to-one with lesions.

    A candidate belongs to a lesion within 3 mm (a slice and 1 mm where slices are thicker), or
    within its radius and 1.5 mm where that is more, but not beyond 5 mm. Of several on one lesion
    the one that the Hungarian matching chooses carries the label; the others are ignored, for they
    are neither a second lesion nor a mimic. So is whatever lies within 5 mm of a microbleed, the
    distance at which detections are scored: mostly its bloom, which shows farther than its core,
    and taught as a mimic it would speak against plain lesions.

    Parameters
    ----------
    points_mm : (n, 3) array
        Candidates, scanner mm.
    truth : DataFrame
        Columns ``name``, ``x``, ``y``, ``z``, ``diameter_mm``; rows other than microbleeds and
        calcifications are not used.
    same_place : float, optional
        Of the scan, mm (`cmb_bids.same_lesion.same_place_mm`).

    Returns
    -------
    (n,) int8 array
        0 microbleed, 1 calcification, 2 other, -1 ignored.
    """
    points_mm = np.asarray(points_mm, dtype=float).reshape(-1, 3)
    labels = np.full(len(points_mm), OTHER, dtype=np.int8)
    lesions = truth[truth["name"].isin(list(LABEL_OF_NAME))]
    if not len(points_mm) or not len(lesions):
        return labels
    distances = cdist(points_mm, lesions[["x", "y", "z"]].to_numpy(dtype=float))
    near = distances <= reach_mm(lesions["diameter_mm"].to_numpy(dtype=float), same_place)
    labels[near.any(axis=1)] = IGNORED
    rows, columns = linear_sum_assignment(np.where(near, distances, 1e3))
    kinds = lesions["name"].map(LABEL_OF_NAME).to_numpy(dtype=np.int8)
    beside = distances[:, kinds == MICROBLEED] <= FARTHEST_MM
    labels[beside.any(axis=1)] = IGNORED
    for row, column in zip(rows, columns, strict=True):
        if near[row, column]:
            labels[row] = kinds[column]
    return labels


def ranked_hits(
    points_mm: np.ndarray, scores: np.ndarray, lesions_mm: np.ndarray, reach_mm: float = 5.0
) -> np.ndarray:
    """Which candidates hit a lesion when they are called in the order of their score.

    Each takes the nearest lesion within reach that no better candidate has taken, so that one
    pass serves every threshold.

    Parameters
    ----------
    points_mm : (n, 3) array
    scores : (n,) array
        Higher is more likely.
    lesions_mm : (m, 3) array
    reach_mm : float, optional

    Returns
    -------
    (n,) bool array
    """
    hits = np.zeros(len(scores), dtype=bool)
    if not len(scores) or not len(lesions_mm):
        return hits
    distances = cdist(points_mm, lesions_mm)
    for candidate in np.argsort(-np.asarray(scores), kind="stable"):
        nearest = int(np.argmin(distances[candidate]))
        if distances[candidate, nearest] <= reach_mm:
            hits[candidate] = True
            distances[:, nearest] = np.inf
    return hits
