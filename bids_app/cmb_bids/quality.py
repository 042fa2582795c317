"""How good a scan is: noise, ghosts of motion, and what is left in the filtered phase.

Everything is measured on images the pipeline has anyway, relative to the brain's own signal, so
that the figures of one scanner can be set beside another's. `find_reasons` says which of them are
outside what the networks were trained and tested on; it never says that a scan must not be
counted, which the brain mask alone decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from cmb_bids.head import block_mean, coarse_steps, core_of_head, head_mask, large_pieces, spread
from cmb_bids.volumes import slice_axis, voxel_sizes

# Standard deviation of a normal distribution over its median absolute deviation.
NORMAL_PER_MAD = 1.4826
# Differences that grow by more than this with the distance show that noise is correlated. In
# white noise anatomy alone makes them grow, by up to 1.15 (simulated).
CORRELATED_GROWTH = 1.3
LONGEST_STRIDE = 3
SMALLEST_SAMPLE = 500  # voxels
# Coarse blocks brighter than this share of the brain are no air.
AIR_SHARE_OF_BRAIN = 0.2
AIR_OVER_DARKEST = 1.5
MARGIN_MM = 6.0  # between the head and what is taken for air: ringing and fat
ZEROED_SHARE = 0.5  # of the air: beyond it the image was masked


# What a share is of, where it is not the brain.
SHARES_OF = {
    "motion_ghosting": "the brain's signal",
    "brain_left_out_share": "what looks like brain",
}


@dataclass(frozen=True)
class QualityConfig:
    """Limits of the quality check; the section ``quality`` of the configuration.

    Attributes
    ----------
    minimum_signal_to_noise : float
    maximum_residual_phase_rad : float
        Robust standard deviation of the high-passed phase in the brain.
    maximum_phase_jump_share, maximum_phase_missing_share : float
        Shares of the brain.
    maximum_motion_ghosting : float
        Share of the brain's signal.
    maximum_brain_left_out : float
        Share of what looks like brain that the mask leaves out.
    """

    minimum_signal_to_noise: float = 10.0
    maximum_residual_phase_rad: float = 0.5
    maximum_phase_jump_share: float = 0.02
    maximum_phase_missing_share: float = 0.02
    maximum_motion_ghosting: float = 0.03
    maximum_brain_left_out: float = 0.07


def measure_quality(
    magnitude: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    highpass: np.ndarray | None = None,
    phase_encoding_axis: int | None = None,
) -> dict[str, float | None]:
    """The quality columns of a scan's row.

    Parameters
    ----------
    magnitude : (x, y, z) array
        Bias-corrected or not, of any scale.
    mask : (x, y, z) array
        Brain, nonzero inside; may be empty.
    affine : (4, 4) array
        Voxel to scanner mm.
    highpass : (x, y, z) array, optional
        High-passed phase, radians.
    phase_encoding_axis : int, optional
        0, 1 or 2; where it is not known, both axes of the slice plane are asked.

    Returns
    -------
    dict
        ``signal_to_noise``, ``motion_ghosting``, ``residual_phase_rad``, ``phase_jump_share``,
        ``phase_missing_share``, ``brain_left_out_share``; None where it cannot be measured.

    Raises
    ------
    ValueError
        Images differ in shape.
    """
    for image in (mask, highpass):
        if image is not None and image.shape != magnitude.shape:
            raise ValueError(f"image of shape {image.shape} on a grid of {magnitude.shape}")
    brain = np.asarray(mask) > 0
    image = np.nan_to_num(magnitude.astype(np.float32, copy=False), posinf=0, neginf=0)
    return {
        "signal_to_noise": signal_to_noise(image, brain),
        "motion_ghosting": motion_ghosting(image, brain, affine, phase_encoding_axis),
        **measure_phase(highpass, brain),
        "brain_left_out_share": brain_left_out(image, brain, affine),
    }


# ---------------------------------------------------------------- mask

# Necks and faces look like brain. They are below the lowest fifth of the mask by height, and, where
# the mask has lost the cerebellum, further than this below its top.
LOWEST_SHARE = 20.0  # per cent
BRAIN_HEIGHT_MM = 110.0


def brain_left_out(magnitude: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> float | None:
    """Share of what looks like brain that the mask leaves out.

    A registration that settles with the head tilted loses the frontal base or the cerebellum and
    keeps a plausible volume. What looks like brain is found without registration: bright tissue
    that the dark skull parts from the scalp (`cmb_bids.head.core_of_head`), above the lowest
    fifth of the mask or within `BRAIN_HEIGHT_MM` of its top.

    Parameters
    ----------
    magnitude : (x, y, z) array
        Finite.
    brain : (x, y, z) bool array
    affine : (4, 4) array

    Returns
    -------
    float or None
        None where the mask is empty or nothing looks like brain.
    """
    sizes = voxel_sizes(affine)
    steps = coarse_steps(sizes)
    masked = block_mean(brain.astype(np.float32), steps) > 0.5
    if not masked.any():
        return None
    head, _ = head_mask(np.maximum(magnitude, 0), sizes)
    _, core = core_of_head(magnitude, head, sizes)
    slope = np.asarray(affine, dtype=float)[2, :3] * steps
    along = [np.arange(n) * s for n, s in zip(core.shape, slope, strict=True)]
    height = along[0][:, None, None] + along[1][:, None] + along[2]
    lowest = min(
        np.percentile(height[masked], LOWEST_SHARE), height[masked].max() - BRAIN_HEIGHT_MM
    )
    seen = core & (height >= lowest)
    return float((seen & ~masked).sum() / seen.sum()) if seen.any() else None


def find_phase_encoding(sidecar: Mapping[str, Any]) -> int | None:
    """Voxel axis that a BIDS sidecar says phase was encoded along; None where it does not.

    ``PhaseEncodingDirection`` (i, j or k, perhaps with a minus), or dcm2niix's
    ``PhaseEncodingAxis`` where the scanner did not tell the sign.
    """
    said = sidecar.get("PhaseEncodingDirection") or sidecar.get("PhaseEncodingAxis") or ""
    return {"i": 0, "j": 1, "k": 2}.get(str(said)[:1])


# ---------------------------------------------------------------- noise


def signal_to_noise(magnitude: np.ndarray, brain: np.ndarray) -> float | None:
    """Median of the brain over the standard deviation of the noise inside it.

    Noise is told from anatomy as the diagonal of a wavelet decomposition does (Coupe P et al.,
    Med Image Anal 2010;14:483-493): mixed differences along all three axes, in the more
    homogeneous half of the brain, by their median absolute deviation. No air is needed. Where
    the image was interpolated, neighbours share their noise and differ less than the noise is
    strong: differences are then taken over more voxels, axis by axis, until they grow no more.

    Parameters
    ----------
    magnitude : (x, y, z) array
        Finite.
    brain : (x, y, z) boolean array

    Returns
    -------
    float or None
        None where the brain is too small to tell, or there is no noise at all.
    """
    box = _bounding_box(brain)
    if box is None:
        return None
    image, inside = magnitude[box], brain[box]
    inside = inside & _homogeneous(image, inside)
    axes = [axis for axis, n in enumerate(image.shape) if n > LONGEST_STRIDE]
    strides = [1 if axis in axes else 0 for axis in range(3)]
    level = _difference_level(image, inside, strides)
    for axis in axes:
        for stride in range(2, LONGEST_STRIDE + 1):
            longer = [stride if a == axis else s for a, s in enumerate(strides)]
            grown = _difference_level(image, inside, longer)
            if not level or not grown or grown <= CORRELATED_GROWTH * level:
                break
            strides, level = longer, grown
    signal = float(np.median(magnitude[brain]))
    return signal / level if level else None


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The box round a mask; None where it is empty."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else None


def _homogeneous(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Voxels whose surroundings change least: the lower half of the gradients inside."""
    smooth = ndimage.uniform_filter(image, 3)
    steepness = np.zeros_like(smooth)
    for axis, n in enumerate(image.shape):
        if n > 1:
            steepness += np.abs(np.gradient(smooth, axis=axis))
    return steepness <= np.median(steepness[inside])


def _difference_level(
    image: np.ndarray, inside: np.ndarray, strides: Sequence[int]
) -> float | None:
    """Robust deviation of the mixed difference over ``strides`` voxels, as of single voxels."""
    difference, seen, terms = image, inside, 1
    for axis, stride in enumerate(strides):
        if stride:
            ahead, behind = _shifted(axis, stride)
            difference = difference[ahead] - difference[behind]
            seen = seen[ahead] & seen[behind]
            terms *= 2
    values = difference[seen]
    if values.size < SMALLEST_SAMPLE:
        return None
    return NORMAL_PER_MAD * float(np.median(np.abs(values))) / float(np.sqrt(terms))


def _shifted(axis: int, stride: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of an array that pair each voxel with the one ``stride`` behind it."""
    ahead, behind = [slice(None)] * 3, [slice(None)] * 3
    ahead[axis], behind[axis] = slice(stride, None), slice(None, -stride)
    return tuple(ahead), tuple(behind)


# ---------------------------------------------------------------- motion


def motion_ghosting(
    magnitude: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
    phase_encoding_axis: int | None = None,
) -> float | None:
    """Ghosts in the air, as a share of the brain's signal.

    Motion between phase-encoding steps repeats the head along that axis. The root of the mean
    square of the air that shares its line along the axis with the brain is compared with that
    of the air in the corners of the same slices, which shares no line of the slice plane with it:
    what it has more of is ghost, for noise is the same in both.

    Parameters
    ----------
    magnitude : (x, y, z) array
        Finite.
    brain : (x, y, z) boolean array
    affine : (4, 4) array
    phase_encoding_axis : int, optional
        Where it is not known, or across slices, the axis of the slice plane with more ghosts.

    Returns
    -------
    float or None
        0 where there is no more signal than in the corners; None where the image shows too
        little air, or air was set to zero.
    """
    across = slice_axis(affine)
    plane = [axis for axis in range(3) if axis != across]
    air = _find_air(magnitude, brain, voxel_sizes(affine))
    air &= _shadow(brain, plane[0], plane[1])
    if air.sum() < SMALLEST_SAMPLE or (magnitude[air] == 0).mean() > ZEROED_SHARE:
        return None
    beside = {axis: _shadow(brain, axis) for axis in plane}
    corners = air & ~beside[plane[0]] & ~beside[plane[1]]
    signal = float(np.median(magnitude[brain]))
    if corners.sum() < SMALLEST_SAMPLE or signal <= 0:
        return None
    floor = _mean_square(magnitude[corners])
    asked = [phase_encoding_axis] if phase_encoding_axis in plane else plane
    found = []
    for axis in asked:
        other = plane[1] if axis == plane[0] else plane[0]
        along = air & beside[axis] & ~beside[other]
        if along.sum() >= SMALLEST_SAMPLE:
            found.append(max(0.0, _mean_square(magnitude[along]) - floor))
    return float(np.sqrt(max(found))) / signal if found else None


def _shadow(brain: np.ndarray, *axes: int) -> np.ndarray:
    """Voxels that share a line along an axis (or a plane along two) with the brain."""
    return np.broadcast_to(brain.any(axis=axes, keepdims=True), brain.shape)


def _mean_square(values: np.ndarray) -> float:
    return float(np.mean(values.astype(np.float64) ** 2))


def _find_air(magnitude: np.ndarray, brain: np.ndarray, sizes_mm: np.ndarray) -> np.ndarray:
    """Voxels well outside the head: dark blocks that no bright ones enclose."""
    if not brain.any():
        return np.zeros(brain.shape, dtype=bool)
    steps = coarse_steps(sizes_mm)
    coarse = block_mean(magnitude, steps)
    signal = float(np.median(magnitude[brain]))
    lit = coarse[coarse > 0]
    darkest = float(np.percentile(lit, 10)) if lit.size else 0.0
    head = coarse > max(AIR_SHARE_OF_BRAIN * signal, AIR_OVER_DARKEST * darkest)
    # Single bright blocks are ghosts or noise; a dark skull parts the scalp from the brain.
    head = large_pieces(head | (block_mean(brain.astype(np.float32), steps) > 0))
    margin = np.ceil(MARGIN_MM / (sizes_mm * np.asarray(steps))).astype(int)
    for axis in range(3):
        head = ndimage.maximum_filter1d(head, 2 * int(margin[axis]) + 1, axis=axis)
    return ~spread(ndimage.binary_fill_holes(head), steps, magnitude.shape)


# ---------------------------------------------------------------- phase


def measure_phase(highpass: np.ndarray | None, brain: np.ndarray) -> dict[str, float | None]:
    """What the high-pass filter has left in the brain.

    Parameters
    ----------
    highpass : (x, y, z) array or None
        Radians.
    brain : (x, y, z) boolean array

    Returns
    -------
    dict
        ``residual_phase_rad``: robust standard deviation, which veins and lesions hardly move;
        ``phase_jump_share``: share of the neighbouring pairs of brain voxels that differ by more
        than pi; ``phase_missing_share``: share of the brain that is not finite or exactly zero,
        as where phase was never stored. None without phase or brain.
    """
    names = ("residual_phase_rad", "phase_jump_share", "phase_missing_share")
    if highpass is None or not brain.any():
        return dict.fromkeys(names)
    usable = brain & np.isfinite(highpass) & (highpass != 0)
    missing = 1 - float(usable.sum()) / float(brain.sum())
    if not usable.any():
        return dict(zip(names, (None, None, missing), strict=True))
    values = highpass[usable]
    residual = NORMAL_PER_MAD * float(np.median(np.abs(values - np.median(values))))
    return dict(zip(names, (residual, _jump_share(highpass, usable), missing), strict=True))


def _jump_share(phase: np.ndarray, usable: np.ndarray) -> float | None:
    """Share of the pairs of face neighbours that are more than pi apart."""
    pairs = jumps = 0
    for axis in range(3):
        ahead, behind = _shifted(axis, 1)
        both = usable[ahead] & usable[behind]
        pairs += int(both.sum())
        jumps += int((np.abs(phase[ahead][both] - phase[behind][both]) > np.pi).sum())
    return jumps / pairs if pairs else None


# ---------------------------------------------------------------- verdict


def find_reasons(
    quality: Mapping[str, float | None], config: QualityConfig | None = None
) -> list[str]:
    """What of a scan's quality is outside the limits, in words; empty where nothing is.

    Parameters
    ----------
    quality : mapping
        From `measure_quality`; what is None is not judged.
    config : QualityConfig, optional
    """
    config = config or QualityConfig()
    reasons = []
    snr = quality.get("signal_to_noise")
    if snr is not None and snr < config.minimum_signal_to_noise:
        reasons.append(
            f"the image is noisy (signal to noise {snr:.1f}, "
            f"at least {config.minimum_signal_to_noise:g} is expected)"
        )
    residual, limit = quality.get("residual_phase_rad"), config.maximum_residual_phase_rad
    if residual is not None and residual > limit:
        reasons.append(
            f"the filtered phase is uneven (deviation {residual:.2f} rad, "
            f"at most {limit:g} is expected)"
        )
    shares = {
        "phase_jump_share": (config.maximum_phase_jump_share, "the filtered phase jumps at"),
        "phase_missing_share": (config.maximum_phase_missing_share, "phase is missing in"),
        "motion_ghosting": (config.maximum_motion_ghosting, "ghosts of motion or flow have"),
        "brain_left_out_share": (config.maximum_brain_left_out, "the mask leaves out"),
    }
    for name, (limit, said) in shares.items():
        share = quality.get(name)
        if share is not None and share > limit:
            what = SHARES_OF.get(name, "the brain")
            reasons.append(f"{said} {share:.1%} of {what} (at most {limit:.1%} is expected)")
    return reasons
