"""When a place is part of a lesion: one rule for training, listing and counting.

Training ignores the second candidate on one lesion, so that a network's probabilities are those of
candidates that are not; the lesion stage lists one of them, and the expected count takes one.
"""

from __future__ import annotations

import numpy as np

SAME_PLACE_MM = 3.0  # a place this close is on the lesion, however small
FARTHEST_MM = 5.0  # and never beyond, the distance at which detections are scored
BEYOND_EDGE_MM = 1.5  # a centroid may lie this far outside a large lesion's edge (blooming)


def reach_mm(diameter_mm: np.ndarray) -> np.ndarray:
    """How far (n,) from the centre of lesions of these diameters (n,) a place is part of them."""
    radius = np.asarray(diameter_mm, dtype=float) / 2
    return np.clip(radius + BEYOND_EDGE_MM, SAME_PLACE_MM, FARTHEST_MM)
