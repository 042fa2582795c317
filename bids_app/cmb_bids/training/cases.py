"""One simulated scan through the pipeline: from a seed to labelled patches.

Candidates are the pipeline's, never the truth's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from cmb_bids.candidates import (
    CandidateConfig,
    choose_candidates,
    empty_candidates,
    propose_places,
)
from cmb_bids.frst import smoothed
from cmb_bids.patches import PatchGeometry, classifier_patches
from cmb_bids.place_features import fill_outside
from cmb_bids.same_lesion import same_place_mm
from cmb_bids.training.fit import MARGIN_VOXELS
from cmb_bids.training.labels import label_candidates
from cmb_bids.training.processed import ProcessedCase, process_case
from cmb_bids.training.shards import CandidateSet, Case, split_at
from cmb_bids.volumes import voxel_sizes, world_to_voxel

LOG_SIGMAS_MM = (0.9, 1.4, 2.1, 3.0)
TRUTH_COLUMNS = (
    *("name", "x", "y", "z", "diameter_mm", "apparent_diameter_mm"),
    *("susceptibility_ppm", "contrast_to_noise", "mars_class"),
)


def make_case(index: int, seed: int, kept: Path | None = None) -> Case:
    """Simulate case ``index``, process it, label and cut its candidates.

    Parameters
    ----------
    index : int
        Decides the split and, with ``seed``, everything random.
    seed : int
    kept : path, optional
        Where processed scans are kept, as `process_case` says.

    Returns
    -------
    Case
        Candidates with phase (``complex``) and as a magnitude-only scan (``magnitude``).
    """
    case = process_case(index, seed, kept)
    # Classical detectors have nothing to learn: they are asked on held-out cases alone.
    ask = split_at(index) != "train"
    found = {"complex": cut_candidates(case, case.normalized, case.swi, case.highpass, ask)}
    if case.conditions["magnitude_too"]:
        found["magnitude"] = cut_candidates(case, case.as_magnitude, baselines=ask)
    truth = case.truth[list(TRUTH_COLUMNS)].to_dict("records")
    return Case(index, case.conditions, truth, found)


def cut_candidates(
    case: ProcessedCase,
    normalized: np.ndarray,
    swi: np.ndarray | None = None,
    highpass: np.ndarray | None = None,
    baselines: bool = True,
) -> CandidateSet:
    """Find the candidates of one kind of scan, label them, cut them with a margin."""
    config = CandidateConfig()
    places = propose_places(normalized, case.mask, case.affine, swi, highpass, config)
    table = choose_candidates(
        places, normalized, case.mask, case.affine, swi, highpass, config, threads=1
    )
    if table.empty:
        table = empty_candidates()
    points = table[["x", "y", "z"]].to_numpy(dtype=float).reshape(-1, 3)
    geometry = PatchGeometry().with_margin(MARGIN_VOXELS)
    contrast = normalized if swi is None else swi
    patches = classifier_patches(contrast, highpass, case.mask, case.affine, points, geometry)
    strengths: dict[str, np.ndarray] = {}
    if baselines:
        symmetries = [name for name in table if name.startswith("symmetry_")]
        strengths = {
            f"frst_{name.removeprefix('symmetry_')}": np.exp(table[name].to_numpy(dtype=np.float32))
            for name in symmetries
        }
        strengths["laplacian_of_gaussian"] = laplacian_of_gaussian(
            contrast, case.mask, case.affine, points
        )
    return CandidateSet(
        patches.astype(np.float16),
        points,
        label_candidates(points, case.truth, same_place_mm(voxel_sizes(case.affine))),
        table["score"].to_numpy(dtype=np.float32),
        strengths,
    )


def laplacian_of_gaussian(
    contrast: np.ndarray, mask: np.ndarray, affine: np.ndarray, points_mm: np.ndarray
) -> np.ndarray:
    """The classical blob detector at each candidate: a baseline, not part of the pipeline.

    The strongest scale-normalised response (Lindeberg 1998) to a dark blob among
    `LOG_SIGMAS_MM`, within a voxel of the point, of the contrast relative to brain.
    """
    sizes = voxel_sizes(affine)
    relative = np.where(mask, contrast, 0) / max(float(np.median(contrast[mask])), 1e-6)
    filled = fill_outside(relative.astype(np.float32), mask, sizes)
    nearest = np.rint(world_to_voxel(affine, points_mm)).astype(int)
    nearest = np.clip(nearest, 0, np.array(mask.shape) - 1)
    best = np.full(len(points_mm), -np.inf, dtype=np.float32)
    for sigma in LOG_SIGMAS_MM:
        # Second derivatives per mm^2, as differences of the smoothed image.
        smooth = smoothed(filled, sizes, sigma)
        response = sigma**2 * sum(_second_difference(smooth, a) / s**2 for a, s in enumerate(sizes))
        response = ndimage.maximum_filter(response, size=3)
        best = np.maximum(best, response[tuple(nearest.T)])
    return best


def _second_difference(image: np.ndarray, axis: int) -> np.ndarray:
    return ndimage.correlate1d(image, np.array([1.0, -2.0, 1.0], np.float32), axis=axis)
