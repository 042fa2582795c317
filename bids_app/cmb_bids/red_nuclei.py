"""The red nuclei, which are no microbleeds however round and dark they are.

Iron darkens them on susceptibility-weighted images of nearly every adult: two ovals of 5 to 7 mm,
one on each side of the midbrain. What tells them from a lesion is the other one, which a network
that sees 18 mm hardly does. So a call at their place is one of them when its mirror image holds
an oval like it. A bleed inside one of them is darker or smaller than the other, and stays.
"""

from __future__ import annotations

import numpy as np

from cmb_bids.anatomy import to_mni
from cmb_bids.volumes import voxel_to_world

PLACE_MNI_MM = (5.0, -21.0, -10.0)  # of the right one in MNI152 space; the left one mirrors it
REACH_MM = 7.0  # from there: heads differ, and an affine registration leaves some millimetres
ALIKE_DEPTH = 0.67  # the shallower one is at least this share of the deeper one
ALIKE_VOLUME = 0.4  # the smaller one is at least this share of the larger one
LEAST_VOLUME_MM3 = 25.0  # a sphere of 3.6 mm


def mirrored_mm(point_mm: np.ndarray, mni_affine: object) -> np.ndarray | None:
    """Where the other red nucleus would be, if a point is at the place of one.

    Parameters
    ----------
    point_mm : (3,) array
        Scanner mm.
    mni_affine : (4, 4) array-like or None
        Scanner to MNI152 mm; None where the head was not registered.

    Returns
    -------
    (3,) array or None
        Scanner mm; None where the point is elsewhere or its place is not known.
    """
    if mni_affine is None:
        return None
    (there,) = to_mni(point_mm, mni_affine)
    expected = np.array(PLACE_MNI_MM) * (np.sign(there[0]), 1, 1)
    if np.linalg.norm(there - expected) > REACH_MM:
        return None
    back = np.linalg.inv(np.asarray(mni_affine, dtype=float))
    return voxel_to_world(back, there * (-1, 1, 1)).reshape(3)


def are_alike(depths: tuple[float, float], volumes_mm3: tuple[float, float]) -> bool:
    """Whether two dark regions are as dark and as large as each other, and as large as a nucleus.

    ``depths`` are mean losses of signal against the tissue around, ``volumes_mm3`` their sizes.
    """
    return (
        min(depths) >= ALIKE_DEPTH * max(depths)
        and min(volumes_mm3) >= ALIKE_VOLUME * max(volumes_mm3)
        and min(volumes_mm3) >= LEAST_VOLUME_MM3
    )
