"""Where there is signal: a quick head mask, and the coarse grid that quick questions use."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

COARSE_MM = 3.0
# Of the bright end of the head: below this is air, whatever the coil's shading does.
AIR_FRACTION = 0.1
SHADING_MM = 30.0
RAYLEIGH_FRACTION = 0.15  # of bright tissue: corners dimmer than this are air
FLOOR_FRACTION = 0.4  # likewise, where all eight corners are alike
ALIKE = 1.5  # largest over smallest mean of the corners
BRIGHT_FRACTION = 0.55  # of the surroundings' mean
CORE_EROSIONS = 3
PIECE_SHARE = 0.01  # of the largest piece of the head: smaller ones are noise or ghosts


def coarse_steps(sizes_mm: np.ndarray, target_mm: float = COARSE_MM) -> tuple[int, int, int]:
    """Voxels per coarse voxel along each axis, so that its edge is close to ``target_mm``."""
    # A little more than the ratio: slices of 2 mm are 1.99999996 or 2.00000004 by their affines.
    ratio = target_mm / np.asarray(sizes_mm, dtype=float) + 1e-3
    steps = np.maximum(1, np.round(ratio)).astype(int)
    return int(steps[0]), int(steps[1]), int(steps[2])


def block_mean(image: np.ndarray, steps: tuple[int, int, int]) -> np.ndarray:
    """Mean over blocks of ``steps`` voxels; a partial block at the end is averaged as it is.

    Parameters
    ----------
    image : (x, y, z) array
        Real or complex.
    steps : (3,) int

    Returns
    -------
    (ceil(x / steps[0]), ...) array
    """
    for axis, step in enumerate(steps):
        if step == 1:
            continue
        starts = np.arange(0, image.shape[axis], step)
        counts = np.diff(np.append(starts, image.shape[axis])).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = -1
        image = np.add.reduceat(image, starts, axis=axis) / counts.reshape(shape)
    return image


def spread(coarse: np.ndarray, steps: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Repeat each coarse voxel over its block, cut to ``shape``."""
    for axis, step in enumerate(steps):
        coarse = np.repeat(coarse, step, axis=axis)
    return coarse[tuple(slice(0, n) for n in shape)]


def noise_level(magnitude: np.ndarray) -> tuple[float, bool]:
    """Standard deviation of the noise in either channel, and whether air was there to tell.

    Where the corners of the image are air, their values tell: `air_level`. Where they are not (a
    crop, or air set to zero), the difference of next-but-one neighbours is used, which anatomy
    inflates: the figure is then an upper bound.
    """
    positive = magnitude[magnitude > 0]
    if positive.size < 8:
        return 0.0, False
    air = air_level(magnitude)
    if air is not None:
        return air[1], True
    second = magnitude - 0.5 * (np.roll(magnitude, 1, axis=0) + np.roll(magnitude, -1, axis=0))
    inside = second[magnitude > 0.2 * float(np.percentile(positive, 95))]
    if inside.size < 8:
        return 0.0, False
    return float(1.4826 * np.median(np.abs(inside)) / np.sqrt(1.5)), False


def air_level(magnitude: np.ndarray) -> tuple[float, float] | None:
    """Mean of air, and the noise's standard deviation in either channel; None without air.

    Air of one coil follows the Rayleigh law: its mean is 1.91 times its deviation. The sum of
    squares of many coils (non-central chi) has a floor instead: several times its deviation, and
    no longer small against tissue. Such corners are air where all of them are alike.
    """
    bright = float(np.percentile(magnitude[magnitude > 0], 95))
    corners = [part[part > 0] for part in _corners(magnitude)]
    filled = [part for part in corners if part.size > 50]
    values = np.concatenate(corners)
    if values.size <= 500 or not filled:
        return None
    mean, deviation = float(values.mean()), float(values.std())
    means = [float(part.mean()) for part in filled]
    even = len(means) == len(corners) and max(means) < ALIKE * min(means)
    if deviation <= 0 or mean >= (FLOOR_FRACTION if even else RAYLEIGH_FRACTION) * bright:
        return None
    # The deviation of a chi law of many channels is that of the channel over the root of two.
    floor = mean > 2.5 * deviation
    return mean, float(np.sqrt(2)) * deviation if floor else mean / 1.2533


def _corners(magnitude: np.ndarray) -> list[np.ndarray]:
    """The values in each of the eight corners of the image."""
    edge = [max(1, n // 12) for n in magnitude.shape]
    ends = [(slice(0, e), slice(n - e, n)) for e, n in zip(edge, magnitude.shape, strict=True)]
    return [magnitude[x, y, z].ravel() for x in ends[0] for y in ends[1] for z in ends[2]]


def head_mask(
    magnitude: np.ndarray, sizes_mm: np.ndarray, fill: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Where the head is: native and coarse.

    Parameters
    ----------
    magnitude : (x, y, z) array
        Not negative.
    sizes_mm : (3,) array
        Voxel edge lengths in mm.
    fill : bool
        Fill holes and narrow gaps, so that voids (microbleeds, bone) belong to the head.

    Returns
    -------
    mask : (x, y, z) boolean array
    coarse : boolean array on the grid of `coarse_steps`
    """
    steps = coarse_steps(sizes_mm)
    coarse = block_mean(magnitude.astype(np.float32, copy=False), steps)
    bright = float(np.percentile(coarse, 98)) if coarse.size else 0.0
    air = air_level(magnitude) if (magnitude > 0).any() else None
    threshold = AIR_FRACTION * bright
    if air is not None:
        # Averaging takes the spread of air away and leaves its mean.
        threshold = max(threshold, min(1.5 * air[0], 0.5 * bright))
    mask = coarse > threshold
    # Where air has a floor, skull and air look alike and the scalp is a piece of its own.
    mask = _largest(_filled(large_pieces(mask)) if fill else mask)
    return spread(mask, steps, magnitude.shape), mask


def core_of_head(
    magnitude: np.ndarray, head: np.ndarray, sizes_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Roughly the brain, without its rim: a place to look for witnesses, not a brain mask.

    Bright tissue, eroded until the dark skull parts it from the scalp; the largest piece.

    Parameters
    ----------
    magnitude : (x, y, z) array
    head : (x, y, z) boolean array
        Filled.
    sizes_mm : (3,) array
        Voxel edge lengths in mm.

    Returns
    -------
    core : (x, y, z) boolean array
    coarse : boolean array on the grid of `coarse_steps`
    """
    steps = coarse_steps(sizes_mm)
    coarse = block_mean(magnitude.astype(np.float32, copy=False), steps)
    inside = block_mean(head.astype(np.float32), steps) > 0.5
    if not inside.any():
        return np.zeros(head.shape, dtype=bool), inside
    # Against its surroundings, so that coil shading does not matter.
    sigma = SHADING_MM / (np.asarray(sizes_mm) * steps)
    shading = ndimage.gaussian_filter(coarse, sigma, mode="nearest")
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma, mode="nearest")
    bright = inside & (coarse * weight > BRIGHT_FRACTION * shading)
    # What the grid cuts off goes on beyond it.
    eroded = _largest(ndimage.binary_erosion(bright, iterations=CORE_EROSIONS, border_value=1))
    grown = ndimage.binary_dilation(eroded, iterations=CORE_EROSIONS - 1)
    core = grown & ndimage.binary_erosion(bright, border_value=1)
    return spread(core, steps, head.shape), core


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, n = ndimage.label(mask)
    if n < 2:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def large_pieces(mask: np.ndarray) -> np.ndarray:
    """The largest piece and those of at least `PIECE_SHARE` of its size."""
    labels, n = ndimage.label(mask)
    if n < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= PIECE_SHARE * sizes.max())[labels]


def _filled(mask: np.ndarray) -> np.ndarray:
    """Close gaps of two coarse voxels and fill what is enclosed in each of the three planes."""
    padded = np.pad(mask, 2)
    closed = ndimage.binary_closing(padded, ndimage.generate_binary_structure(3, 1), iterations=2)
    closed = closed[2:-2, 2:-2, 2:-2]
    filled = closed.copy()
    for axis in range(3):
        for index in range(mask.shape[axis]):
            where: list[slice | int] = [slice(None)] * 3
            where[axis] = index
            filled[tuple(where)] |= ndimage.binary_fill_holes(closed[tuple(where)])
    return filled
