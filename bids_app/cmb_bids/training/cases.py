"""One simulated scan through the pipeline: from a seed to labelled patches.

Candidates are the pipeline's, never the truth's. Scans to train on carry more lesions and more
varied grids than any cohort; scans to calibrate and test on keep the protocols as they are and the
lesion loads of a patient cohort, so that the figures mean something.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from cmb_bids.brain import normalize_magnitude
from cmb_bids.candidates import find_candidates
from cmb_bids.head import block_mean, coarse_steps, spread
from cmb_bids.patches import PatchGeometry, classifier_patches
from cmb_bids.phase import PhaseConfig, process_complex
from cmb_bids.simulate import (
    PAPER_COHORT,
    PROTOCOLS,
    Protocol,
    SimulatedScan,
    SubjectSpec,
    sample_subject,
    simulate_scan,
)
from cmb_bids.swi import SwiConfig
from cmb_bids.training.fit import MARGIN_VOXELS
from cmb_bids.training.labels import label_candidates
from cmb_bids.training.shards import CandidateSet, Case, split_at
from cmb_bids.volumes import voxel_sizes

PROTOCOL_SHARES = {"ukb": 0.40, "3T": 0.30, "1.5T": 0.22, "7T": 0.08}
# Voxels of training scans, relative to the protocol's: in-plane, across slices.
VOXEL_FACTORS = {
    "ukb": ((0.85, 1.2), (0.75, 1.1)),
    "3T": ((1.2, 1.7), (0.8, 1.4)),
    "1.5T": ((1.0, 1.5), (0.9, 1.4)),
    "7T": ((1.5, 2.1), (1.2, 1.9)),
}
OVERSAMPLING = {
    "ukb": (1.0, 1.0, 2.0),
    "3T": (1.0, 1.0, 1.5),
    "1.5T": (1.0, 1.25, 1.5),
    "7T": (1.0, 1.0, 1.0),
}
BIAS_SIGMA_MM = 25.0
MAGNITUDE_SHARE = 0.4  # of the training cases also serve the one-channel model: it saves time
TRUTH_COLUMNS = ("name", "x", "y", "z", "diameter_mm", "susceptibility_ppm", "contrast_to_noise")


@dataclass(frozen=True)
class Recipe:
    """How one case is made; every random choice but those of the simulator itself."""

    protocol: str
    group: str
    seed: int
    oversampling: tuple[float, float, float]
    left_handed: bool
    phase_levels: int
    highpass: str
    homodyne_half_height_per_mm: float
    gaussian_sigma_mm: float
    swi_power: int
    mask_shift_mm: float
    mask_wobble_mm: float
    shading_corrected: bool
    magnitude_too: bool
    swi_as_magnitude: bool


def make_case(index: int, seed: int) -> Case:
    """Simulate case ``index``, process it, label and cut its candidates.

    Parameters
    ----------
    index : int
        Decides the split and, with ``seed``, everything random.
    seed : int

    Returns
    -------
    Case
        Candidates with phase (``complex``) and as a magnitude-only scan (``magnitude``).
    """
    rng = np.random.default_rng([seed, index])
    training = split_at(index) == "train"
    spec, recipe = draw_recipe(rng, training)
    scan = simulate_scan(spec, oversampling=recipe.oversampling)
    mask = disturbed_mask(
        scan.brain_mask, scan.affine, recipe.mask_shift_mm, recipe.mask_wobble_mm, rng
    )
    swi, highpass, magnitude = process_scan(scan, recipe)
    normalized = normalise(magnitude, mask, scan.affine, recipe.shading_corrected)
    found = {"complex": cut_candidates(scan, mask, normalized, swi, highpass)}
    if recipe.magnitude_too:
        alone = normalized
        if recipe.swi_as_magnitude:
            alone = normalise(swi, mask, scan.affine, recipe.shading_corrected)
        found["magnitude"] = cut_candidates(scan, mask, alone)
    conditions = dataclasses.asdict(recipe) | {
        "voxel_mm": spec.protocol.voxel_mm,
        "echo_times_s": spec.echo_times_s,
        "signal_to_noise": spec.signal_to_noise,
        "obliquity_deg": spec.obliquity_deg,
        "age": spec.age,
    }
    truth = scan.truth[list(TRUTH_COLUMNS)].to_dict("records")
    return Case(index, conditions, truth, found)


def draw_recipe(rng: np.random.Generator, training: bool) -> tuple[SubjectSpec, Recipe]:
    """A participant, a scan and a way of processing it."""
    name = str(rng.choice(list(PROTOCOL_SHARES), p=list(PROTOCOL_SHARES.values())))
    groups = list(PAPER_COHORT)
    shares = np.array([PAPER_COHORT[group] for group in groups], dtype=float)
    group = str(rng.choice(groups, p=shares / shares.sum()))
    seed = int(rng.integers(2**31))
    protocol = PROTOCOLS[name]
    if training:
        protocol = varied_protocol(protocol, VOXEL_FACTORS[name], rng)
    spec = sample_subject(seed, protocol, group)
    if training:
        spec = enriched(spec, rng)
    gaussian = bool(rng.random() < 0.2)
    recipe = Recipe(
        protocol=name,
        group=group,
        seed=seed,
        oversampling=OVERSAMPLING[name],
        left_handed=bool(rng.random() < 0.3),
        phase_levels=int(rng.choice([4096, 6284, 8192])),
        highpass="gaussian" if gaussian else "homodyne",
        homodyne_half_height_per_mm=float(rng.uniform(0.05, 0.08)),
        gaussian_sigma_mm=float(rng.uniform(3.0, 5.0)),
        swi_power=4,
        mask_shift_mm=float(np.clip(rng.normal(0, 1.2), -2.5, 2.5)),
        mask_wobble_mm=float(rng.uniform(0, 2.5)),
        shading_corrected=bool(rng.random() < 0.85),
        magnitude_too=not training or bool(rng.random() < MAGNITUDE_SHARE),
        swi_as_magnitude=bool(rng.random() < 0.3),
    )
    return spec, recipe


def varied_protocol(
    protocol: Protocol,
    factors: tuple[tuple[float, float], tuple[float, float]],
    rng: np.random.Generator,
) -> Protocol:
    """The protocol with other voxels over the same field of view."""
    in_plane, across = rng.uniform(*factors[0]), rng.uniform(*factors[1])
    wanted = np.array(protocol.voxel_mm) * [in_plane, in_plane, across]
    field_of_view = np.array(protocol.field_of_view_mm)
    matrix = 2 * np.round(field_of_view / wanted / 2).astype(int)
    voxel = field_of_view / matrix
    return dataclasses.replace(
        protocol,
        matrix=(int(matrix[0]), int(matrix[1]), int(matrix[2])),
        voxel_mm=(float(voxel[0]), float(voxel[1]), float(voxel[2])),
    )


def enriched(spec: SubjectSpec, rng: np.random.Generator) -> SubjectSpec:
    """More microbleeds and calcifications than a cohort has, and other echo times."""
    microbleeds = int(min(55, rng.geometric(1 / 25))) if rng.random() < 0.85 else 0
    factor = float(rng.uniform(0.8, 1.3))
    return dataclasses.replace(
        spec,
        microbleeds=microbleeds,
        mimic_load=float(rng.uniform(2.0, 9.0)),
        echo_times_s=tuple(round(t * factor, 5) for t in spec.echo_times_s),
    )


def process_scan(scan: SimulatedScan, recipe: Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SWI, high-passed phase and magnitude as the pipeline makes them.

    The polarity is told, not detected: detection is tested elsewhere and takes seconds.
    """
    sign = -1.0 if recipe.left_handed else 1.0
    step = 2 * np.pi / recipe.phase_levels
    phases = [(np.round(sign * p / step) * step).astype(np.float32) for p in scan.phases]
    result = process_complex(
        scan.magnitudes,
        phases,
        scan.echo_times_s,
        scan.affine,
        PhaseConfig(
            polarity="left-handed" if recipe.left_handed else "right-handed",
            unwrapping="laplacian" if recipe.highpass == "gaussian" else "none",
            highpass=recipe.highpass,
            homodyne_half_height_per_mm=recipe.homodyne_half_height_per_mm,
            gaussian_sigma_mm=recipe.gaussian_sigma_mm,
        ),
        SwiConfig(power=recipe.swi_power),
        field_strength_t=scan.spec.protocol.field_strength_t,
    )
    return result.swi, result.highpass, result.magnitude


def normalise(
    magnitude: np.ndarray, mask: np.ndarray, affine: np.ndarray, shading_corrected: bool
) -> np.ndarray:
    """Magnitude relative to brain; the shading a wide masked average in place of N4 (seconds)."""
    shading = None
    if shading_corrected and mask.any():
        sizes = voxel_sizes(affine)
        steps = coarse_steps(sizes, 4.0)
        sigma = BIAS_SIGMA_MM / (sizes * steps)
        weight = block_mean(mask.astype(np.float32), steps)
        inside = block_mean(np.where(mask, magnitude, 0).astype(np.float32), steps)
        smooth = ndimage.gaussian_filter(inside, sigma) / np.maximum(
            ndimage.gaussian_filter(weight, sigma), 1e-3
        )
        level = float(np.median(smooth[weight > 0.5])) if (weight > 0.5).any() else 1.0
        shading = spread(np.clip(smooth / level, 0.2, 5.0), steps, magnitude.shape)
    return normalize_magnitude(magnitude, mask, shading)


def disturbed_mask(
    mask: np.ndarray,
    affine: np.ndarray,
    shift_mm: float,
    wobble_mm: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The brain mask with its surface moved, as a registered mask errs.

    The blurred mask stands for the distance to its surface (which a signed distance would give
    at ten times the cost): its level set is moved by a constant and by a smooth random field.
    """
    sizes = voxel_sizes(affine)
    steps = coarse_steps(sizes, 2.0)
    blur_mm = 3.0
    coarse = block_mean(mask.astype(np.float32), steps)
    coarse_mm = sizes * steps
    blurred = ndimage.gaussian_filter(coarse, blur_mm / coarse_mm)
    field = ndimage.gaussian_filter(
        rng.standard_normal(coarse.shape).astype(np.float32), 15.0 / coarse_mm
    )
    field *= wobble_mm / max(float(field.std()), 1e-6)
    # Near the surface the blurred mask falls by 1 / (blur sqrt(2 pi)) per mm.
    level = 0.5 - (shift_mm + field) / (blur_mm * np.sqrt(2 * np.pi))
    moved = blurred - np.clip(level, 0.1, 0.9)
    return spread(moved, steps, mask.shape) > 0


def cut_candidates(
    scan: SimulatedScan,
    mask: np.ndarray,
    normalized: np.ndarray,
    swi: np.ndarray | None = None,
    highpass: np.ndarray | None = None,
) -> CandidateSet:
    """Find the candidates of one kind of scan, label them, cut them with a margin."""
    table = find_candidates(normalized, mask, scan.affine, swi, highpass)
    points = table[["x", "y", "z"]].to_numpy(dtype=float).reshape(-1, 3)
    geometry = PatchGeometry().with_margin(MARGIN_VOXELS)
    contrast = normalized if swi is None else swi
    patches = classifier_patches(contrast, highpass, mask, scan.affine, points, geometry)
    return CandidateSet(
        patches.astype(np.float16),
        points,
        label_candidates(points, pd.DataFrame(scan.truth)),
        table["score"].to_numpy(dtype=np.float32),
    )
