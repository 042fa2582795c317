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
from scipy.signal import resample

from cmb_bids.brain import normalize_magnitude
from cmb_bids.candidates import (
    CandidateConfig,
    empty_candidates,
    propose_places,
    rank_places,
)
from cmb_bids.frst import smoothed
from cmb_bids.head import block_mean, coarse_steps, spread
from cmb_bids.patches import PatchGeometry, classifier_patches
from cmb_bids.phase import PhaseConfig, process_complex
from cmb_bids.place_features import fill_outside
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
from cmb_bids.volumes import voxel_sizes, world_to_voxel

PROTOCOL_SHARES = {"ukb": 0.38, "3T": 0.30, "1.5T": 0.28, "7T": 0.04}
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
LOG_SIGMAS_MM = (0.9, 1.4, 2.1, 3.0)
MAGNITUDE_SHARE = 0.4  # of the training cases also serve the one-channel model: it saves time
TRUTH_COLUMNS = (
    *("name", "x", "y", "z", "diameter_mm", "apparent_diameter_mm"),
    *("susceptibility_ppm", "contrast_to_noise", "mars_class"),
)


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
    zero_filling: tuple[float, float, float]
    mask_shift_mm: float
    mask_wobble_mm: float
    shading_corrected: bool
    magnitude_too: bool
    swi_as_magnitude: bool


@dataclass(frozen=True)
class ProcessedCase:
    """One simulated scan as the pipeline's own stages leave it, before candidates are sought."""

    spec: SubjectSpec
    recipe: Recipe
    scan: SimulatedScan
    affine: np.ndarray
    mask: np.ndarray
    swi: np.ndarray
    highpass: np.ndarray
    normalized: np.ndarray

    @property
    def as_magnitude(self) -> np.ndarray:
        """What a scan without phase would offer: the magnitude, or a scanner-made SWI."""
        if not self.recipe.swi_as_magnitude:
            return self.normalized
        return normalise(self.swi, self.mask, self.affine, self.recipe.shading_corrected)


def process_case(index: int, seed: int) -> ProcessedCase:
    """Simulate case ``index``, take its mask with the errors masks have, and process it."""
    rng = np.random.default_rng([seed, index])
    spec, recipe = draw_recipe(rng, split_at(index) == "train")
    scan = interpolated(simulate_scan(spec, oversampling=recipe.oversampling), recipe.zero_filling)
    mask = disturbed_mask(
        scan.brain_mask, scan.affine, recipe.mask_shift_mm, recipe.mask_wobble_mm, rng
    )
    swi, highpass, magnitude = process_scan(scan, recipe)
    normalized = normalise(magnitude, mask, scan.affine, recipe.shading_corrected)
    return ProcessedCase(spec, recipe, scan, scan.affine, mask, swi, highpass, normalized)


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
    case = process_case(index, seed)
    spec, recipe = case.spec, case.recipe
    # Classical detectors have nothing to learn: they are asked on held-out cases alone.
    ask = split_at(index) != "train"
    found = {"complex": cut_candidates(case, case.normalized, case.swi, case.highpass, ask)}
    if recipe.magnitude_too:
        found["magnitude"] = cut_candidates(case, case.as_magnitude, baselines=ask)
    conditions = dataclasses.asdict(recipe) | {
        "voxel_mm": spec.protocol.voxel_mm,
        "echo_times_s": spec.echo_times_s,
        "signal_to_noise": spec.signal_to_noise,
        "obliquity_deg": spec.obliquity_deg,
        "age": spec.age,
    }
    truth = case.scan.truth[list(TRUTH_COLUMNS)].to_dict("records")
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
    return spec, draw_processing(rng, name, group, seed, training)


def draw_processing(
    rng: np.random.Generator, protocol: str, group: str, seed: int, training: bool
) -> Recipe:
    """How a scan is stored, filtered, masked and corrected.

    Held-out scans are filtered as the pipeline does by default three times in four; what is
    varied about the others, and about all training scans, a user may find in the field or set.
    """
    plain = not training and bool(rng.random() < 0.75)
    wide = 1.0 if training else 0.5
    half_height = 0.0625 * float(np.exp(rng.uniform(-0.5, 0.5) * wide))
    return Recipe(
        protocol=protocol,
        group=group,
        seed=seed,
        oversampling=OVERSAMPLING[protocol],
        left_handed=bool(rng.random() < 0.3),
        phase_levels=int(rng.choice([4096, 6284, 8192])),
        highpass="gaussian" if rng.random() < 0.25 and not plain else "homodyne",
        homodyne_half_height_per_mm=0.0625 if plain else half_height,
        gaussian_sigma_mm=4.0 * float(np.exp(rng.uniform(-0.6, 0.6) * wide)),
        swi_power=4 if plain else int(rng.choice([3, 4, 4, 5] if training else [4])),
        zero_filling=_draw_zero_filling(rng, protocol, training),
        mask_shift_mm=float(np.clip(rng.normal(0.4, 1.2), -2.5, 3.0)),
        mask_wobble_mm=float(rng.uniform(0, 2.5)),
        shading_corrected=bool(rng.random() < 0.85),
        magnitude_too=not training or bool(rng.random() < MAGNITUDE_SHARE),
        swi_as_magnitude=bool(rng.random() < 0.3),
    )


def _draw_zero_filling(
    rng: np.random.Generator, protocol: str, training: bool
) -> tuple[float, float, float]:
    """How much finer the scanner stores the images than it acquired them, by axis."""
    chance, in_plane, across = rng.random(), rng.uniform(1.2, 1.8), rng.uniform(1.3, 2.0)
    if not training or protocol == "7T":
        return (1.0, 1.0, 1.0)
    if chance < 0.12:
        return (float(in_plane), float(in_plane), 1.0)
    return (1.0, 1.0, float(across)) if chance < 0.3 else (1.0, 1.0, 1.0)


def interpolated(scan: SimulatedScan, factors: tuple[float, float, float]) -> SimulatedScan:
    """The scan as stored after zero-filling in k-space, which many scanners do.

    Only what processing reads is changed: images, affine and brain mask.
    """
    old = np.array(scan.brain_mask.shape)
    new = 2 * np.round(old * factors / 2).astype(int)
    if (new <= old).all():
        return scan
    affine = scan.affine.copy()
    affine[:3, :3] = scan.affine[:3, :3] * (old / new)
    magnitudes, phases = [], []
    for magnitude, phase in zip(scan.magnitudes, scan.phases, strict=True):
        image = (magnitude * np.exp(1j * phase)).astype(np.complex64)
        for axis, (before, after) in enumerate(zip(old, new, strict=True)):
            if after != before:
                image = resample(image, int(after), axis=axis)
        magnitudes.append(np.abs(image).astype(np.float32))
        phases.append(np.angle(image).astype(np.float32))
    nearest = [
        np.minimum(np.round(np.arange(n) * o / n), o - 1) for n, o in zip(new, old, strict=True)
    ]
    mask = scan.brain_mask[np.ix_(*(index.astype(int) for index in nearest))]
    return dataclasses.replace(
        scan, magnitudes=magnitudes, phases=phases, affine=affine, brain_mask=mask
    )


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
    """More lesions than a cohort has, and every condition beyond what a cohort varies."""
    microbleeds = int(min(60, 4 + rng.geometric(1 / 28))) if rng.random() < 0.88 else 0
    factor = float(rng.uniform(0.7, 1.4))
    protocol = dataclasses.replace(
        spec.protocol,
        flip_angle_deg=spec.protocol.flip_angle_deg * float(rng.uniform(0.6, 1.5)),
    )
    return dataclasses.replace(
        spec,
        protocol=protocol,
        microbleeds=microbleeds,
        microbleed_diameter_mm=float(rng.uniform(1.7, 3.0)),
        microbleed_diameter_spread=float(rng.uniform(0.3, 0.6)),
        mimic_load=float(rng.uniform(2.0, 9.0)),
        echo_times_s=tuple(round(t * factor, 5) for t in spec.echo_times_s),
        signal_to_noise=spec.signal_to_noise * float(rng.uniform(0.6, 1.25)),
        vein_density=spec.vein_density * float(np.exp(rng.normal(0, 0.3))),
        vein_calibre=spec.vein_calibre * float(np.exp(rng.normal(0, 0.2))),
        vein_susceptibility_ppm=float(rng.uniform(0.2, 0.7)),
        ghost=float(rng.uniform(0.01, 0.06)) if rng.random() < 0.3 else 0.0,
        motion_mm=float(rng.uniform(0.2, 1.2)) if rng.random() < 0.25 else 0.0,
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
    case: ProcessedCase,
    normalized: np.ndarray,
    swi: np.ndarray | None = None,
    highpass: np.ndarray | None = None,
    baselines: bool = True,
) -> CandidateSet:
    """Find the candidates of one kind of scan, label them, cut them with a margin."""
    config = CandidateConfig()
    places = propose_places(normalized, case.mask, case.affine, swi, highpass, config)
    table = rank_places(places, config)
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
        label_candidates(points, pd.DataFrame(case.scan.truth)),
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
