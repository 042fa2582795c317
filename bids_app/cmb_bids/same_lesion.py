"""When a place is part of a lesion: one rule for training, listing and counting.

Training ignores the second candidate on one lesion, so that a network's probabilities are those of
candidates that are not; the lesion stage lists one of them, and the expected count takes one. Where
slices are thick a lesion shows in two of them, and has a place in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

LEAST_MM = 3.0  # a place this close is on the lesion, however small
BEYOND_SLICE_MM = 1.0  # places in neighbouring slices are this much farther apart at most
FARTHEST_MM = 5.0  # never beyond, the distance at which detections are scored
BEYOND_EDGE_MM = 1.5  # a centroid may lie this far outside a large lesion's edge (blooming)


def same_place_mm(voxel_sizes_mm: Sequence[float] | np.ndarray) -> float:
    """How near two places are one in a scan of these voxels (3,): 3 mm, or a slice and 1 mm."""
    thickest = float(np.max(voxel_sizes_mm))
    return float(np.clip(thickest + BEYOND_SLICE_MM, LEAST_MM, FARTHEST_MM))


def reach_mm(diameter_mm: np.ndarray, same_place: float = LEAST_MM) -> np.ndarray:
    """How far (n,) from the centre of lesions of these diameters (n,) a place is part of them.

    ``same_place`` is the scan's `same_place_mm`.
    """
    radius = np.asarray(diameter_mm, dtype=float) / 2
    return np.clip(radius + BEYOND_EDGE_MM, same_place, FARTHEST_MM)


def suppress_neighbours(points: np.ndarray, scores: np.ndarray, distance_mm: float) -> np.ndarray:
    """Indices of the points that no better point lies within ``distance_mm`` of, best first.

    Parameters
    ----------
    points : (n, 3) array
        Positions in mm.
    scores : (n,) array
    distance_mm : float

    Returns
    -------
    (kept,) array of int
        Equal scores keep the earlier point.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    if len(order) == 0:
        return order
    tree = cKDTree(points)
    gone = np.zeros(len(points), dtype=bool)
    kept = []
    for index in order:
        if gone[index]:
            continue
        kept.append(index)
        gone[tree.query_ball_point(points[index], distance_mm)] = True
    return np.array(kept, dtype=int)
