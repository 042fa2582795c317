"""What a small lesion does to the complex signal of the voxels about it.

The lesion is drawn on a fine grid of its own, with its own dipole field. The mean over each voxel
of its complex signal, relative to the tissue's, is a factor by which the measured signal is
multiplied: phases add, losses of signal multiply. That takes the tissue within a voxel as even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cmb_bids.simulate.lesions import Lesion, occupancy
from cmb_bids.simulate.physics import dipole_field, gradient_echo_blocks

FINE_SHARE = 3.0  # fine voxels to a lesion's radius, at least
MOST_PARTS = 8  # of a voxel along an axis
REACH_RADII, REACH_MM = 6.0, 1.0  # how far the dipole field is followed
FADE = 0.25  # over the last quarter of the way it fades out
SEEN = 0.7  # a voxel is part of what is seen where SWI has lost 30 % or more


@dataclass(frozen=True)
class Effect:
    """A lesion's factors: ``slices`` of the image and a complex array of that size per echo.

    ``sign`` is that of its susceptibility.
    """

    slices: tuple[slice, slice, slice]
    factors: list[np.ndarray]
    sign: float


def lesion_effect(
    lesion: Lesion,
    shape: tuple[int, ...],
    voxel_mm: np.ndarray,
    b0: np.ndarray,
    echo_times_s: Sequence[float],
    field_strength_t: float,
) -> Effect:
    """Factors for the voxels about a lesion.

    Parameters
    ----------
    lesion : Lesion
        ``centre_mm`` along the voxel axes, from the centre of the first voxel.
    shape : three ints
        Of the image.
    voxel_mm : (3,) array
    b0 : (3,) array
        Unit vector of the main field along the voxel axes.
    echo_times_s : sequence of float
    field_strength_t : float

    Returns
    -------
    Effect
        Right-handed: a paramagnetic lesion's phase is positive inside.

    Raises
    ------
    ValueError
        The lesion lies outside the image.
    """
    voxel_mm = np.asarray(voxel_mm, dtype=float)
    radius = lesion.diameter_mm / 2
    parts = np.clip(np.ceil(voxel_mm * FINE_SHARE / radius), 1, MOST_PARTS).astype(int)
    far = REACH_RADII * radius + REACH_MM
    reach = np.ceil(far / voxel_mm).astype(int)
    nearest = np.rint(lesion.centre_mm / voxel_mm).astype(int)
    low, high = nearest - reach, nearest + reach + 1
    if (high <= 0).any() or (low >= shape).any():
        raise ValueError(f"a lesion at {lesion.centre_mm} mm lies outside an image of {shape}")
    fine_mm = voxel_mm / parts
    counts = (high - low) * parts
    first = (low - 0.5) * voxel_mm + fine_mm / 2
    x, y, z = ((int(n), float(mm)) for n, mm in zip(counts, fine_mm, strict=True))
    fine_shape = (x[0], y[0], z[0])
    filled = np.zeros(fine_shape, np.float32)
    drawn = occupancy(lesion, fine_shape, fine_mm, -first)
    if drawn is not None:
        filled[drawn[0]] = drawn[1]
    field = dipole_field(
        torch.from_numpy(lesion.susceptibility_ppm * filled), (x[1], y[1], z[1]), np.asarray(b0)
    )
    field *= torch.from_numpy(_fading(lesion.centre_mm, first, fine_mm, counts, far))
    inside = torch.from_numpy(filled)
    signal = 1 + inside * (lesion.signal - 1)
    factors = [
        _mean_over_voxels(
            gradient_echo_blocks(
                signal, inside * lesion.rate_per_s, field, echo_time, field_strength_t
            )(0, fine_shape[0]).numpy(),
            parts,
        )
        for echo_time in echo_times_s
    ]
    slices, kept = _within(shape, low, high)
    sign = float(np.sign(lesion.susceptibility_ppm))
    return Effect(slices, [factor[kept] for factor in factors], sign)


def _fading(
    centre_mm: np.ndarray, first: np.ndarray, fine_mm: np.ndarray, counts: np.ndarray, far: float
) -> np.ndarray:
    """One near the lesion, zero at the border of its block, so that no step is left there."""
    squares = [
        np.square(start + mm * np.arange(n) - c).astype(np.float32)
        for start, mm, n, c in zip(first, fine_mm, counts, centre_mm, strict=True)
    ]
    distance = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])
    return np.clip((1 - distance / far) / FADE, 0, 1)


def _mean_over_voxels(fine: np.ndarray, parts: np.ndarray) -> np.ndarray:
    split = [v for n, p in zip(fine.shape, parts, strict=True) for v in (n // p, p)]
    return fine.reshape(split).mean(axis=(1, 3, 5))


def _within(
    shape: tuple[int, ...], low: np.ndarray, high: np.ndarray
) -> tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]:
    """What of a block lies in the image: as slices of the image, and of the block."""
    start, stop = np.maximum(low, 0), np.minimum(high, shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    i, j, k = (slice(int(a), int(b)) for a, b in zip(start - low, stop - low, strict=True))
    return (x, y, z), (i, j, k)


def seen_diameter_mm(effect: Effect, voxel_mm: np.ndarray) -> float:
    """Diameter of the ball of the voxels that lose 30 % or more on SWI at the last echo.

    A calcification is measured as on SWI of the other sign, so as a microbleed would be.
    """
    factor = effect.factors[-1]
    turned = np.clip(np.angle(factor) * effect.sign, 0, np.pi)
    lost = np.abs(factor) * (1 - turned / np.pi) ** 4 < SEEN
    return float((6 * lost.sum() * np.prod(voxel_mm) / np.pi) ** (1 / 3))


def implant(
    images: Sequence[np.ndarray], effects: Sequence[Effect], rng: np.random.Generator
) -> list[np.ndarray]:
    """Complex images with lesions in them.

    Parameters
    ----------
    images : sequence of (x, y, z) complex arrays
        One per echo, right-handed phase; left as they are.
    effects : sequence of Effect
    rng : Generator
        Of the noise put back: a factor weakens noise with the signal, a scanner does not.
    """
    done = []
    for echo, image in enumerate(images):
        changed = image.astype(np.complex64)
        noise_sd = noise_of(image)
        for effect in effects:
            factor = effect.factors[echo]
            lost = np.sqrt(np.clip(1 - np.abs(factor) ** 2, 0, 1))
            noise = rng.standard_normal((2, *factor.shape)) * noise_sd
            changed[effect.slices] *= factor
            changed[effect.slices] += lost * (noise[0] + 1j * noise[1])
        done.append(changed)
    return done


def noise_of(image: np.ndarray) -> float:
    """Standard deviation of the noise of the real and the imaginary part.

    From the median of second differences along the first axis where there is signal: tissue varies
    slowly from voxel to voxel, noise does not. Interpolated images hold less noise at that scale,
    and less is found. Zero where the image is too small to tell.
    """
    if image.shape[0] < 3:
        return 0.0
    second = image[:-2] - 2 * image[1:-1] + image[2:]
    there = np.abs(image[1:-1]) > 0.5 * np.abs(image).mean()
    values = second[there]
    if values.size == 0:
        return 0.0
    # 0.6745: median of the absolute value of a standard normal number; 6 = 1 + 4 + 1.
    spread = np.median(np.abs(np.concatenate([values.real, values.imag])))
    return float(spread / 0.6745 / np.sqrt(6))
