"""Which part of the brain a simulated lesion lies in, found again from the case's seed.

Cases keep where their lesions are, not in which region. The simulator's labels follow from the
seed without any physics, in about a second.
"""

from __future__ import annotations

import logging

import numpy as np

from cmb_bids.simulate.head import load_head
from cmb_bids.simulate.lesions import mars_class
from cmb_bids.simulate.scan import box_frame, grid_affine, make_pose, sample_labels, spec_rng
from cmb_bids.training.cases import draw_recipe
from cmb_bids.training.shards import Case, split_at
from cmb_bids.volumes import world_to_voxel

log = logging.getLogger(__name__)
UNKNOWN = "unknown"


def mars_classes(case: Case, seed: int, points_mm: np.ndarray) -> list[str]:
    """Lobar, deep or infratentorial, for each place in a simulated case.

    Parameters
    ----------
    case : Case
    seed : int
        Of the data, as `cmb_bids.training.cases.make_case` was given it.
    points_mm : (n, 3) array
        Scanner mm.

    Returns
    -------
    list of str
        ``unknown`` outside all regions, and for all where the code no longer draws this case.
    """
    rng = np.random.default_rng([seed, case.index])
    spec, recipe = draw_recipe(rng, split_at(case.index) == "train")
    if recipe.seed != case.recipe.get("seed") or recipe.protocol != case.recipe.get("protocol"):
        log.warning("case %d is of other code or another seed: no regions", case.index)
        return [UNKNOWN] * len(points_mm)
    protocol, head = spec.protocol, load_head()
    frame = box_frame(spec, spec_rng(spec, 2))
    pose = make_pose(spec, head, frame)
    affine = grid_affine(frame, protocol.matrix, protocol.field_of_view_mm)
    _, regions, _ = sample_labels(head, pose, affine, protocol.matrix)
    voxels = np.rint(world_to_voxel(affine, points_mm)).astype(int)
    voxels = np.clip(voxels, 0, np.array(regions.shape) - 1)
    return [mars_class(int(regions[i, j, k])) or UNKNOWN for i, j, k in voxels]
