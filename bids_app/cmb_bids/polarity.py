"""Which way round the phase is: right-handed means that paramagnetic adds positive phase.

Two witnesses. The head's own field against air is known well enough to be recognised in the
unwrapped phase. And small things that are dark in magnitude (veins, iron) are paramagnetic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from cmb_bids.head import block_mean, coarse_steps, head_mask, spread
from cmb_bids.volumes import b0_direction, voxel_sizes

TISSUE_AGAINST_AIR_PPM = -9.4
# Two real heads gave 0.51 to 0.56; below this the head has not spoken.
HEAD_CORRELATION = 0.2
# Share of the grid that must be air for the head to have a field worth modelling.
AIR_SHARE = 0.1
# Standard deviations; whole brains give 1 to 2, and a small crop of one 0.4.
VEIN_SCORE = 0.25
STRONG = 1.5  # times what it takes to be heard
SMALLEST_VEINS = 100  # voxels of vein
# A voxel whose two shorter edges are longer than this shows no veins.
VEIN_VOXEL_MM = 1.25


class Polarity(NamedTuple):
    """What to multiply the phase by, and why.

    ``sign`` +1 or -1; ``correlation`` with the head's own field (NaN: not asked);
    ``vein_score`` of dark spots (positive: paramagnetic; NaN: not asked); ``evidence``
    ``head``, ``veins``, ``head and veins``, ``configuration`` or ``none``; ``confidence``
    ``certain``, ``strong``, ``moderate``, ``conflicting`` or ``weak`` (neither was heard by
    itself: with evidence ``none`` right-handed was assumed).
    """

    sign: int
    correlation: float
    vein_score: float
    evidence: str
    confidence: str


def dipole_kernel(
    shape: tuple[int, ...], sizes_mm: np.ndarray, b0: np.ndarray, real_input: bool = True
) -> np.ndarray:
    """Fourier transform of the dipole field: 1/3 - (k.b0)^2 / k^2.

    Parameters
    ----------
    shape : (3,)
        Of the padded grid.
    sizes_mm : (3,) array
    b0 : (3,) array
        Unit vector along the voxel axes.
    real_input : bool
        Half of the last axis only, for `scipy.fft.rfftn`.

    Returns
    -------
    float32 array
        Zero at k = 0 (the Lorentz-sphere convention leaves a constant free).
    """
    k = [np.fft.fftfreq(n, d).astype(np.float32) for n, d in zip(shape, sizes_mm, strict=True)]
    if real_input:
        k[2] = np.fft.rfftfreq(shape[2], sizes_mm[2]).astype(np.float32)
    kx, ky, kz = np.ix_(*k)
    along = kx * np.float32(b0[0]) + ky * np.float32(b0[1]) + kz * np.float32(b0[2])
    square = kx**2 + ky**2 + kz**2
    square[0, 0, 0] = 1
    kernel = np.float32(1 / 3) - along**2 / square
    kernel[0, 0, 0] = 0
    return kernel


def head_field(mask: np.ndarray, sizes_mm: np.ndarray, b0: np.ndarray) -> np.ndarray:
    """Field of a head of water-like tissue in air, in ppm.

    Parameters
    ----------
    mask : (x, y, z) boolean array
        Where the head is. What touches the edge of the grid is taken to go on beyond it: a neck
        does not end with the field of view.
    sizes_mm : (3,) array
    b0 : (3,) array
        Unit vector along the voxel axes.

    Returns
    -------
    (x, y, z) float32 array
    """
    beyond = [max(4, n // 2) for n in mask.shape]
    padded = np.pad(mask, [(b, b) for b in beyond], mode="edge")
    # A margin of air, so that periodic images stay away from one another.
    shape = [fft.next_fast_len(n + n // 4, real=True) for n in padded.shape]
    susceptibility = np.zeros(shape, dtype=np.float32)
    susceptibility[tuple(slice(0, n) for n in padded.shape)] = padded * TISSUE_AGAINST_AIR_PPM
    kernel = dipole_kernel(tuple(shape), sizes_mm, b0)
    field = fft.irfftn(fft.rfftn(susceptibility) * kernel, s=shape)
    inner = tuple(slice(b, b + n) for b, n in zip(beyond, mask.shape, strict=True))
    return field[inner].astype(np.float32)


def remove_polynomial(values: np.ndarray, points: np.ndarray, order: int) -> np.ndarray:
    """Residual (n,) of values (n,) after a least-squares polynomial in points (n, 3)."""
    scaled = (points - points.mean(axis=0)) / max(float(np.ptp(points, axis=0).max()), 1e-6)
    columns = [
        scaled[:, 0] ** i * scaled[:, 1] ** j * scaled[:, 2] ** k
        for i in range(order + 1)
        for j in range(order + 1 - i)
        for k in range(order + 1 - i - j)
    ]
    design = np.stack(columns, axis=1)
    coefficients, *_ = np.linalg.lstsq(design, values, rcond=None)
    return values - design @ coefficients


def head_correlation(
    unwrapped: np.ndarray,
    tissue: np.ndarray,
    core: np.ndarray,
    affine: np.ndarray,
    order: int = 2,
) -> float:
    """Correlation of unwrapped phase with the head's own field, both without low orders.

    Parameters
    ----------
    unwrapped : (x, y, z) array
        Radians on a coarse grid.
    tissue : (x, y, z) boolean array
        What gives signal: sinuses and other air cavities are not in it.
    core : (x, y, z) boolean array
        Where to compare: about the brain. Scalp and skull wrap, and fat is shifted.
    affine : (4, 4) array
        Of the coarse grid.
    order : int
        Of the polynomial that is removed (coil phase, shim).

    Returns
    -------
    float
        -1..1, NaN where the grid holds too little head or too little air.
    """
    sizes = voxel_sizes(affine)
    if core.sum() < 500 or 1 - tissue.mean() < AIR_SHARE:
        return float("nan")
    points = np.argwhere(core) * sizes
    field = head_field(tissue, sizes, b0_direction(affine))
    model = remove_polynomial(field[core].astype(float), points, order)
    seen = remove_polynomial(unwrapped[core].astype(float), points, order)
    # Wrong wraps and sinuses are far out: let them vote, but not decide.
    seen = np.clip(seen, *np.percentile(seen, (1, 99)))
    model = np.clip(model, *np.percentile(model, (1, 99)))
    if seen.std() < 1e-9 or model.std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(seen, model)[0, 1])


def local_susceptibility(
    highpass: np.ndarray, affine: np.ndarray, threshold: float = 0.15, n_threads: int = 1
) -> np.ndarray:
    """Sign and rough size of local sources: thresholded division by the dipole kernel.

    A vein's own field is positive along B0 and negative across it, so that its phase alone does
    not tell its sign; its susceptibility does.

    Parameters
    ----------
    highpass : (x, y, z) array
        Radians, zero outside the head.
    affine : (4, 4) array
    threshold : float
        Kernel values closer to zero than this are pushed out to it.
    n_threads : int

    Returns
    -------
    (x, y, z) float32 array
        In the phase's unit, of arbitrary scale.
    """
    shape = [fft.next_fast_len(n + 8, real=True) for n in highpass.shape]
    kernel = dipole_kernel(tuple(shape), voxel_sizes(affine), b0_direction(affine))
    kernel = np.where(kernel < 0, -1, 1) * np.maximum(np.abs(kernel), np.float32(threshold))
    spectrum = fft.rfftn(highpass.astype(np.float32), s=shape, workers=n_threads)
    spectrum /= kernel.astype(np.float32)
    spectrum[0, 0, 0] = 0
    source = fft.irfftn(spectrum, s=shape, workers=n_threads)
    return source[tuple(slice(0, n) for n in highpass.shape)]


def vein_score(
    highpass: np.ndarray,
    magnitude: np.ndarray,
    core: np.ndarray,
    affine: np.ndarray,
    n_threads: int = 1,
) -> float:
    """How paramagnetic the darkest small structures of the brain are.

    Parameters
    ----------
    highpass : (x, y, z) array
        Radians.
    magnitude : (x, y, z) array
        Of the longest echo.
    core : (x, y, z) boolean array
        About the brain.
    affine : (4, 4) array
    n_threads : int

    Returns
    -------
    float
        Mean susceptibility of the darkest hundredth, in standard deviations of the rest
        (positive: dark is paramagnetic; about 1 to 2 on whole brains, .4 on a small crop). NaN
        where there is too little to look at or voxels are too coarse for veins.
    """
    sizes = voxel_sizes(affine)
    if min(highpass.shape) < 8 or np.sort(sizes)[1] > VEIN_VOXEL_MM:
        return float("nan")
    inner = _inside(core, sizes)
    if inner.sum() < 100 * SMALLEST_VEINS:
        return float("nan")
    # What a closing wider than a vein and narrower than a gyrus fills up.
    width = [int(2 * max(1, round(1.6 / size)) + 1) for size in sizes]
    floor = np.float32(max(float(magnitude.max()) * 1e-3, 1e-30))
    logarithm = np.log(np.maximum(magnitude, floor)).astype(np.float32)
    darkness = ndimage.grey_closing(logarithm, size=width) - logarithm
    dark = inner & (darkness >= np.percentile(darkness[inner], 99))
    source = local_susceptibility(np.where(core, highpass, 0), affine, n_threads=n_threads)
    inside, outside = source[dark], source[inner & ~dark]
    middle = float(np.median(outside))
    deviation = 1.4826 * float(np.median(np.abs(outside - middle)))
    if deviation <= 0:
        return float("nan")
    # Clipped, so that a few calcifications or wraps cannot speak for all.
    return float(np.clip((inside - middle) / deviation, -3, 3).mean())


def _inside(core: np.ndarray, sizes_mm: np.ndarray) -> np.ndarray:
    """The core with its gaps closed (large veins make some), without its outer 6 mm. The edge of
    the grid is no surface of the brain, but a filter's last two voxels there are not trusted."""
    steps = coarse_steps(sizes_mm)
    coarse = np.pad(block_mean(core.astype(np.float32), steps) > 0.5, 3, mode="edge")
    closed = ndimage.binary_closing(coarse, iterations=2)
    inner = ndimage.binary_erosion(closed, iterations=2, border_value=1)[3:-3, 3:-3, 3:-3]
    fine = np.zeros(core.shape, dtype=bool)
    middle = (slice(2, -2),) * 3
    fine[middle] = spread(inner, steps, core.shape)[middle]
    return fine


def find_polarity(
    unwrapped: np.ndarray | None,
    highpass: np.ndarray,
    magnitude: np.ndarray,
    core: np.ndarray,
    affine: np.ndarray,
    said: str = "auto",
    n_threads: int = 1,
) -> Polarity:
    """Decide the sign that makes phase right-handed.

    Parameters
    ----------
    unwrapped : (x, y, z) array or None
        Radians, before polarity; None when low orders are gone (vendor-filtered phase).
    highpass : (x, y, z) array
        Radians, before polarity.
    magnitude : (x, y, z) array
        Of the longest echo.
    core : (x, y, z) boolean array
        About the brain; see `cmb_bids.head.core_of_head`.
    affine : (4, 4) array
    said : str
        ``auto``, ``right-handed`` or ``left-handed``: what the configuration says of the input.
    n_threads : int

    Returns
    -------
    Polarity
    """
    correlation = float("nan")
    if unwrapped is not None:
        correlation = _coarse_correlation(unwrapped, magnitude, core, affine)
    veins = vein_score(highpass, magnitude, core, affine, n_threads)
    if said != "auto":
        sign = 1 if said == "right-handed" else -1
        return Polarity(sign, correlation, veins, "configuration", "certain")
    return _decide(correlation, veins)


def _decide(correlation: float, veins: float) -> Polarity:
    """Whoever speaks, decides; where both do and disagree, the more certain of the two.

    Where neither is heard by itself, two that whisper the same are believed if together they would
    be heard: a bare guess would be wrong for every scanner whose phase is left-handed.
    """
    head_says = correlation / HEAD_CORRELATION if np.isfinite(correlation) else 0.0
    veins_say = veins / VEIN_SCORE if np.isfinite(veins) else 0.0
    heard = {
        name: says for name, says in (("head", head_says), ("veins", veins_say)) if abs(says) >= 1
    }
    if not heard:
        together = head_says + veins_say
        if head_says * veins_say > 0 and abs(together) >= 1:
            sign = 1 if together > 0 else -1
            return Polarity(sign, correlation, veins, "head and veins", "weak")
        return Polarity(1, correlation, veins, "none", "weak")
    agree = len({says > 0 for says in heard.values()}) == 1
    louder = max(heard, key=lambda name: abs(heard[name]))
    evidence = "head and veins" if agree and len(heard) == 2 else louder
    sign = 1 if heard[louder] > 0 else -1
    confidence = "strong" if abs(heard[louder]) >= STRONG else "moderate"
    return Polarity(sign, correlation, veins, evidence, confidence if agree else "conflicting")


def _coarse_correlation(
    unwrapped: np.ndarray, magnitude: np.ndarray, core: np.ndarray, affine: np.ndarray
) -> float:
    sizes = voxel_sizes(affine)
    steps = coarse_steps(sizes)
    weight = block_mean(core.astype(np.float32), steps)
    mean = block_mean(np.where(core, unwrapped, 0).astype(np.float32), steps)
    mean = np.divide(mean, weight, out=np.zeros_like(mean), where=weight > 0)
    _, tissue = head_mask(magnitude, sizes, fill=False)
    coarse = np.array(affine, dtype=float)
    coarse[:3, :3] *= np.asarray(steps, dtype=float)
    return head_correlation(mean, tissue, weight > 0.5, coarse)
