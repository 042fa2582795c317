"""A simulated scan as the pipeline's own stages leave it, before candidates are sought.

Kept on disk where asked, so that what follows (candidates, patches) can be changed and tried
without simulating again.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.signal import resample

from cmb_bids.head import block_mean, coarse_steps, spread
from cmb_bids.intensity import normalize_magnitude
from cmb_bids.phase import PhaseConfig, process_complex
from cmb_bids.simulate import SimulatedScan, simulate_scan
from cmb_bids.swi import SwiConfig
from cmb_bids.training.fingerprint import MODULES_BEHIND_IMAGES, fingerprint
from cmb_bids.training.recipes import Recipe, draw_recipe
from cmb_bids.training.shards import case_path, split_at
from cmb_bids.volumes import voxel_sizes, world_to_voxel, written_whole

BIAS_SIGMA_MM = 25.0
IMAGES = ("mask", "swi", "highpass", "normalized")
CROP_MARGIN_MM = 20.0  # patches and the places' surroundings reach no farther into what counts


@dataclass(frozen=True)
class ProcessedCase:
    """One simulated scan as the pipeline's own stages leave it, before candidates are sought.

    ``conditions``: the recipe and what it led to, as numbers and text. ``truth``: a row per lesion
    and vein crossing. The images (x, y, z) end `CROP_MARGIN_MM` beyond the brain.
    """

    conditions: dict[str, Any]
    truth: pd.DataFrame
    affine: np.ndarray
    mask: np.ndarray
    swi: np.ndarray
    highpass: np.ndarray
    normalized: np.ndarray

    @property
    def as_magnitude(self) -> np.ndarray:
        """What a scan without phase would offer: the magnitude, or a scanner-made SWI."""
        if not self.conditions["swi_as_magnitude"]:
            return self.normalized
        return normalise(
            self.swi, self.mask, self.affine, bool(self.conditions["shading_corrected"])
        )


def process_case(index: int, seed: int, kept: Path | None = None) -> ProcessedCase:
    """Simulate case ``index``, take its mask with the errors masks have, and process it.

    Parameters
    ----------
    index, seed : int
        Decide everything.
    kept : path, optional
        A folder: the case is read from it where it is there, else written to it. What follows can
        then be changed and tried without simulating again.
    """
    path = kept_path(kept, index, seed) if kept is not None else None
    if path is not None and path.is_file():
        return _read_processed(path)
    rng = np.random.default_rng([seed, index])
    spec, recipe = draw_recipe(rng, split_at(index) == "train")
    scan = simulate_scan(spec, oversampling=recipe.oversampling)
    scan = interpolated(cut_short(scan, recipe.uncovered), recipe.zero_filling)
    mask = disturbed_mask(
        scan.brain_mask, scan.affine, recipe.mask_shift_mm, recipe.mask_wobble_mm, rng
    )
    swi, highpass, magnitude = process_scan(scan, recipe)
    normalized = normalise(magnitude, mask, scan.affine, recipe.shading_corrected)
    conditions = dataclasses.asdict(recipe) | {
        "voxel_mm": spec.protocol.voxel_mm,
        "echo_times_s": spec.echo_times_s,
        "signal_to_noise": spec.signal_to_noise,
        "obliquity_deg": spec.obliquity_deg,
        "slice_gap": spec.protocol.slice_gap,
        "short_veins": spec.short_veins,
        "age": spec.age,
    }
    case = _cropped(
        ProcessedCase(conditions, scan.truth, scan.affine, mask, swi, highpass, normalized)
    )
    if path is not None:
        _write_processed(case, path)
    return case


def kept_path(folder: Path, index: int, seed: int) -> Path:
    """Where a processed case is kept; other code behind it, another file."""
    key = fingerprint({"seed": seed}, MODULES_BEHIND_IMAGES)
    return case_path(folder / key, index)


def _cropped(case: ProcessedCase) -> ProcessedCase:
    """The case without what lies far from the brain: nothing that follows looks there."""
    sizes = voxel_sizes(case.affine)
    found = ndimage.find_objects(case.mask.astype(np.uint8))
    if not found:
        return case
    pads = np.ceil(CROP_MARGIN_MM / sizes).astype(int)
    starts = [max(part.start - pad, 0) for part, pad in zip(found[0], pads, strict=True)]
    box = tuple(
        slice(start, part.stop + pad)
        for start, part, pad in zip(starts, found[0], pads, strict=True)
    )
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ starts
    images: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(case, name)[box]) for name in IMAGES
    }
    return dataclasses.replace(case, affine=affine, **images)


def _write_processed(case: ProcessedCase, path: Path) -> None:
    described = {"conditions": case.conditions, "truth": case.truth.to_dict("records")}
    with written_whole(path) as beside:
        np.savez(
            beside,
            affine=case.affine,
            description=np.frombuffer(json.dumps(described).encode(), dtype=np.uint8),
            **{name: getattr(case, name) for name in IMAGES},
        )


def _read_processed(path: Path) -> ProcessedCase:
    with np.load(path, allow_pickle=False) as arrays:
        described = json.loads(arrays["description"].tobytes())
        return ProcessedCase(
            described["conditions"],
            pd.DataFrame(described["truth"]),
            arrays["affine"],
            *(arrays[name] for name in IMAGES),
        )


def cut_short(scan: SimulatedScan, uncovered: tuple[float, float]) -> SimulatedScan:
    """The scan without these shares of its slices, at the lower and the upper end.

    What lies there is neither imaged nor in the truth.
    """
    slices = scan.brain_mask.shape[2]
    start, stop = (round(slices * share) for share in (uncovered[0], 1 - uncovered[1]))
    if (start, stop) == (0, slices):
        return scan
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, 2] * start
    points = scan.truth[["x", "y", "z"]].to_numpy(dtype=float)
    height = world_to_voxel(scan.affine, points)[:, 2]
    covered = (height > start - 0.5) & (height < stop - 0.5)
    images: dict[str, Any] = {
        name: getattr(scan, name)[:, :, start:stop]
        for name in ("brain_mask", "regions", "lesion_labels")
    }
    return dataclasses.replace(
        scan,
        magnitudes=[image[:, :, start:stop] for image in scan.magnitudes],
        phases=[image[:, :, start:stop] for image in scan.phases],
        affine=affine,
        truth=scan.truth[covered].reset_index(drop=True),
        **images,
    )


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
