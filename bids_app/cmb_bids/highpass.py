"""High-pass filters for phase, defined in mm and never in voxels."""

from __future__ import annotations

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter

HALF_HEIGHT_PER_MM = 0.0625  # n = 64 on a 256 mm field of view
GAUSSIAN_TRUNCATION = 3.0  # standard deviations
# Phase that a vendor has filtered has next to nothing left below its cut-off. In simulated and
# real brains raw phase gave 1.1 to 2.5 rad, the same filtered 0.002 to 0.12.
FILTERED_LOW_RMS_RAD = 0.3
# A voxel is a wrap where it and at least so many of the eight around it in its slice are beyond
# this phase with opposite signs.
ISOLATED_RAD = 1.5
ISOLATED_NEIGHBOURS = 4
ISOLATED_PASSES = 3  # a wrap of several voxels is undone from its edge
FILTERED_WRAPPED_SHARE = 0.02


def homodyne(
    magnitude: np.ndarray,
    phase: np.ndarray,
    sizes_mm: np.ndarray,
    axis: int,
    half_height_per_mm: float = HALF_HEIGHT_PER_MM,
    n_threads: int = 1,
) -> np.ndarray:
    """Phase of the complex image divided by its own low-passed self, slice by slice.

    Needs no unwrapping. The low-pass is a separable Hanning window in k-space, fixed in cycles
    per mm, so that it is the same whatever the matrix and the voxel size [1]_. It is applied to
    the even extension of the image (a cosine transform), so that what leaves one side of a tight
    field of view does not enter at the other. Each slice's echo is first moved to the centre of
    k-space (its mean phase slope is taken out of the low-pass and put back), so that a slope does
    not break at the edge of the image, nor push anatomy out of the window.

    Parameters
    ----------
    magnitude, phase : (x, y, z) arrays
        Any unit; radians, wrapped or not.
    sizes_mm : (3,) array
        Voxel edge lengths in mm.
    axis : int
        Across slices; not filtered.
    half_height_per_mm : float
        Where the window is 1/2, in cycles per mm; it is zero at twice that.
    n_threads : int

    Returns
    -------
    (x, y, z) float32 array
        Radians in [-pi, pi].

    References
    ----------
    .. [1] Haacke EM et al., Magn Reson Med 2004;52:612-618; Wang Y et al., J Magn Reson Imaging
       2000;12:661-670 (64 x 64 central filter). Stated in mm here.
    """
    signal = np.empty(phase.shape, dtype=np.complex64)
    np.multiply(magnitude, np.cos(phase), out=signal.real, casting="same_kind")
    np.multiply(magnitude, np.sin(phase), out=signal.imag, casting="same_kind")
    in_plane = [a for a in range(3) if a != axis]
    for along in in_plane:
        signal *= _opposite_slope(signal, along, axis)
    low = np.empty_like(signal)
    for source, target in ((signal.real, low.real), (signal.imag, low.imag)):
        target[...] = _lowpass(source, sizes_mm, in_plane, half_height_per_mm, n_threads)
    signal *= np.conj(low, out=low)
    return np.angle(signal)


def unwrap_isolated(highpass: np.ndarray, axis: int) -> np.ndarray:
    """High-passed phase without the wraps of few voxels, which go on beyond a half turn instead.

    What homodyne filtering leaves wraps where the field is steep. In the dark fluid beside a sinus
    a wrap is a bright dot in a negative band, and so a dark dot on the susceptibility-weighted
    image, like a microbleed; in a vein or a microbleed it is a hole. Larger wraps stay.

    Parameters
    ----------
    highpass : (x, y, z) array
        Radians in [-pi, pi].
    axis : int
        Across slices; voxels are compared within them.

    Returns
    -------
    (x, y, z) float32 array
        Radians.
    """
    slices = np.array(np.moveaxis(highpass, axis, 2), dtype=np.float32, order="C")
    inner = slices[1:-1, 1:-1]
    flat = slices.reshape(-1)
    row, column = (np.array(slices.strides[:2]) // slices.itemsize).astype(int)
    around = [i * row + j * column for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    for _ in range(ISOLATED_PASSES):
        place = np.nonzero(np.abs(inner) > ISOLATED_RAD)
        strong = np.ravel_multi_index((place[0] + 1, place[1] + 1, place[2]), slices.shape)
        sign = np.sign(flat[strong])
        opposite = sum(
            (flat[strong + step] * sign < -ISOLATED_RAD).astype(np.int8) for step in around
        )
        wraps = opposite >= ISOLATED_NEIGHBOURS
        if not np.any(wraps):
            break
        flat[strong[wraps]] -= np.float32(2 * np.pi) * sign[wraps]
    return np.moveaxis(slices, 2, axis)


def _opposite_slope(signal: np.ndarray, along: int, axis: int) -> np.ndarray:
    """Unit phasors that undo each slice's mean phase slope along an in-plane axis."""
    moved = np.moveaxis(signal, (axis, along), (0, 1))
    steps = np.sum(moved[:, 1:] * np.conj(moved[:, :-1]), axis=(1, 2), dtype=np.complex64)
    slope = np.angle(steps).astype(np.float32)
    ramp = np.exp(-1j * slope[:, None] * np.arange(moved.shape[1], dtype=np.float32))
    shape = [1, 1, 1]
    shape[axis], shape[along] = ramp.shape
    return (ramp if axis < along else ramp.T).reshape(shape).astype(np.complex64)


def _lowpass(
    image: np.ndarray, sizes_mm: np.ndarray, axes: list[int], half_height: float, n_threads: int
) -> np.ndarray:
    spectrum = np.ascontiguousarray(image, dtype=np.float32)
    for axis in axes:
        window = hanning_window(image.shape[axis], float(sizes_mm[axis]), half_height)
        shape = [1, 1, 1]
        shape[axis] = -1
        spectrum = fft.dct(spectrum, axis=axis, norm="ortho", workers=n_threads)
        spectrum *= window.reshape(shape)
        spectrum = fft.idct(spectrum, axis=axis, norm="ortho", workers=n_threads)
    return spectrum


def hanning_window(length: int, size_mm: float, half_height_per_mm: float) -> np.ndarray:
    """Hanning window (length,) over the frequencies of a cosine transform.

    1 at zero, 1/2 at ``half_height_per_mm`` cycles per mm, 0 from twice that on.
    """
    frequency = np.arange(length) / (2.0 * length * size_mm)
    window = 0.5 * (1 + np.cos(0.5 * np.pi * frequency / half_height_per_mm))
    return np.where(frequency < 2 * half_height_per_mm, window, 0).astype(np.float32)


def masked_gaussian(
    image: np.ndarray, weight: np.ndarray, sizes_mm: np.ndarray, sigma_mm: float
) -> np.ndarray:
    """Gaussian mean of an image over where it has weight (normalised convolution).

    Parameters
    ----------
    image, weight : (x, y, z) arrays
        The weight is not negative; where it is zero the image is not looked at.
    sizes_mm : (3,) array
        Voxel edge lengths in mm.
    sigma_mm : float
        Standard deviation in mm.

    Returns
    -------
    (x, y, z) float32 array
        Zero where no weight is in reach.
    """
    sigma = sigma_mm / np.asarray(sizes_mm, dtype=float)
    weight = weight.astype(np.float32)
    total = gaussian_filter(
        np.where(weight > 0, image, 0).astype(np.float32) * weight,
        sigma,
        truncate=GAUSSIAN_TRUNCATION,
        mode="constant",
    )
    norm = gaussian_filter(weight, sigma, truncate=GAUSSIAN_TRUNCATION, mode="constant")
    return np.divide(total, norm, out=np.zeros_like(total), where=norm > 1e-6)


def gaussian_highpass(
    unwrapped: np.ndarray, mask: np.ndarray, sizes_mm: np.ndarray, sigma_mm: float
) -> np.ndarray:
    """Unwrapped phase minus its Gaussian mean within the mask; zero outside.

    The plane through the whole is subtracted first: at the edge of the mask a mean has only one
    side to draw on, and a slope would stay.

    Parameters
    ----------
    unwrapped : (x, y, z) array
        Radians.
    mask : (x, y, z) boolean array
    sizes_mm : (3,) array
        Voxel edge lengths in mm.
    sigma_mm : float

    Returns
    -------
    (x, y, z) float32 array
        Radians, not bounded by pi.
    """
    level = unwrapped - plane_through(unwrapped, mask)
    smooth = masked_gaussian(level, mask, sizes_mm, sigma_mm)
    return np.where(mask, level - smooth, 0).astype(np.float32)


def plane_through(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Least-squares plane (x, y, z) through an image where the mask is true."""
    # A few thousand voxels settle four coefficients.
    indices = np.flatnonzero(mask)[:: max(1, int(mask.sum()) // 20000)]
    if indices.size < 4:
        return np.zeros(image.shape, dtype=np.float32)
    points = np.stack(np.unravel_index(indices, image.shape), axis=1).astype(float)
    design = np.column_stack([np.ones(len(points)), points])
    values = image.ravel()[indices].astype(float)
    constant, *slopes = np.linalg.lstsq(design, values, rcond=None)[0]
    x, y, z = np.ogrid[tuple(slice(0, n) for n in image.shape)]
    plane = constant + slopes[0] * x + slopes[1] * y + slopes[2] * z
    return np.asarray(plane, dtype=np.float32)


def already_filtered(
    magnitude: np.ndarray,
    phase: np.ndarray,
    mask: np.ndarray,
    sizes_mm: np.ndarray,
    axis: int,
    n_threads: int = 1,
) -> bool:
    """Whether low orders are gone and hardly anything wraps: a vendor's filtered phase.

    Parameters
    ----------
    magnitude, phase : (x, y, z) arrays
        Any unit; radians.
    mask : (x, y, z) boolean array
        About the brain: skull and scalp wrap after any filter.
    sizes_mm : (3,) array
    axis : int
        Across slices.
    n_threads : int

    Returns
    -------
    bool
    """
    low_rms, wrapped_share = low_order_content(magnitude, phase, mask, sizes_mm, axis, n_threads)
    return low_rms < FILTERED_LOW_RMS_RAD and wrapped_share < FILTERED_WRAPPED_SHARE


def low_order_content(
    magnitude: np.ndarray,
    phase: np.ndarray,
    mask: np.ndarray,
    sizes_mm: np.ndarray,
    axis: int,
    n_threads: int = 1,
) -> tuple[float, float]:
    """Root mean square of the slowly varying phase (rad), and share of neighbours a wrap apart."""
    bright = mask & (magnitude > 0.3 * float(np.median(magnitude[mask]))) if mask.any() else mask
    if not bright.any() or min(n for a, n in enumerate(mask.shape) if a != axis) < 8:
        return float("inf"), 1.0
    in_plane = [a for a in range(3) if a != axis]
    # A quarter of the homodyne's cut-off: no vendor's filter leaves anything there.
    slow = [
        _lowpass(magnitude * part, sizes_mm, in_plane, HALF_HEIGHT_PER_MM / 4, n_threads)
        for part in (np.cos(phase), np.sin(phase))
    ]
    angle = np.arctan2(slow[1][bright], slow[0][bright])
    wraps = [np.abs(np.diff(phase, axis=a))[_pairs(bright, a)] > np.pi for a in in_plane]
    count = sum(int(w.size) for w in wraps)
    share = sum(int(w.sum()) for w in wraps) / max(count, 1)
    return float(np.sqrt(np.mean(angle**2))), share


def _pairs(mask: np.ndarray, axis: int) -> np.ndarray:
    along = np.moveaxis(mask, axis, 0)
    return np.moveaxis(along[1:] & along[:-1], 0, axis)
