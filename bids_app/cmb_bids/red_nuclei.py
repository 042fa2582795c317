"""The red nuclei, which are no microbleeds however round and dark they are.

Iron darkens them on susceptibility-weighted images of nearly every adult: two ovals of 5 to 7 mm,
one on each side of the midbrain. What tells them from a lesion is the other one, which a network
that sees 18 mm hardly does. So a call at their place is one of them when its mirror image holds
an oval like it. A bleed inside one of them is darker or smaller than the other, and stays.
"""

from __future__ import annotations

import numpy as np

from cmb_bids.anatomy import to_mni
from cmb_bids.lesion_drawing import Blob, DrawingConfig, draw_blob
from cmb_bids.volumes import voxel_sizes, voxel_to_world, world_to_voxel

PLACE_MNI_MM = (5.0, -21.0, -10.0)  # of the right one in MNI152 space; the left one mirrors it
REACH_MM = 7.0  # from there: heads differ, and an affine registration leaves some millimetres
ALIKE_DEPTH = 0.67  # the shallower one is at least this share of the deeper one
ALIKE_VOLUME = 0.4  # the smaller one is at least this share of the larger one
LEAST_VOLUME_MM3 = 25.0  # a sphere of 3.6 mm
SEED_RADIUS_MM = 3.0  # the other one's darkest voxel is sought this near its place


def is_red_nucleus(
    blob: Blob,
    point_mm: np.ndarray,
    image: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
    mni_affine: object,
    config: DrawingConfig,
) -> bool:
    """Whether a call is at the place of a red nucleus, and what is drawn opposite is its like.

    Parameters
    ----------
    blob : Blob
        The call, drawn.
    point_mm : (3,) array
        The call, scanner mm.
    image, brain, affine, config
        What it was drawn on, as `cmb_bids.lesion_drawing.draw_blob` takes them.
    mni_affine : (4, 4) array-like or None
        Scanner to MNI152 mm; None where the head was not registered: then nothing is told.
    """
    place = mirrored_mm(point_mm, mni_affine)
    if place is None:
        return False
    (point,) = world_to_voxel(affine, place[None])
    other = draw_blob(image, brain, affine, point, SEED_RADIUS_MM, config)
    if other is None or other.covers(blob.seed) or blob.covers(other.seed):
        return False
    voxel_mm3 = float(np.prod(voxel_sizes(affine)))
    pair = (blob, other)
    depths = [float(one.depth[one.inside].mean()) for one in pair]
    volumes = [voxel_mm3 * np.count_nonzero(one.inside) for one in pair]
    return are_alike((depths[0], depths[1]), (volumes[0], volumes[1]))


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
