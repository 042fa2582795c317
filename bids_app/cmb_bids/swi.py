"""Susceptibility-weighted images: phase mask, echo combination and minimum-intensity projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import minimum_filter1d

# Phase of a vein grows with field times echo time; beyond 25 ms at 3 T contrast turns to blooming.
LONGEST_REFERENCE_TESLA_SECONDS = 0.075
ECHO_COMBINATIONS = ("contrast", "sum-of-squares", "last")


@dataclass(frozen=True)
class SwiConfig:
    """Keys of the section ``swi``.

    Parameters
    ----------
    power : int
        How often the phase mask is multiplied in.
    minimum_projection_mm : float
        Thickness of the minimum-intensity projection in mm.
    echo_combination : str
        How magnitudes of several echoes become one; see `combine_magnitudes`.
    reference_echo_time_s : float or None
        Echo time in seconds that combined phase is scaled to; None: `reference_echo_time`.
    """

    power: int = 4
    minimum_projection_mm: float = 8.0
    echo_combination: str = "contrast"
    reference_echo_time_s: float | None = None


def phase_mask(highpass: np.ndarray) -> np.ndarray:
    """Haacke's mask: 1 for diamagnetic phase, falling from 1 to 0 over 0..pi of paramagnetic phase.

    Haacke EM et al., Magn Reson Med 2004;52:612-618.

    Parameters
    ----------
    highpass : (x, y, z) array
        Radians, right-handed (paramagnetic positive). Beyond pi, as echoes combined without
        wraps may go, the mask stays 0.

    Returns
    -------
    (x, y, z) float32 array
        In 0..1.
    """
    return np.clip(1 - highpass / np.float32(np.pi), 0, 1).astype(np.float32)


def weight_by_phase(magnitude: np.ndarray, highpass: np.ndarray, power: int = 4) -> np.ndarray:
    """Magnitude times the phase mask to a power: the susceptibility-weighted image.

    Parameters
    ----------
    magnitude : (x, y, z) array
    highpass : (x, y, z) array
        Radians, right-handed.
    power : int

    Returns
    -------
    (x, y, z) float32 array
    """
    mask = phase_mask(highpass)
    return (magnitude * mask**power).astype(np.float32)


def minimum_projection(
    image: np.ndarray, mask: np.ndarray, thickness_mm: float, size_mm: float, axis: int
) -> np.ndarray:
    """Sliding minimum across slices, on the image's own grid, over what lies within the mask.

    Air is darker than any vein: it takes no part. Outside the mask the image stays as it is.

    Parameters
    ----------
    image : (x, y, z) array
    mask : (x, y, z) boolean array
    thickness_mm : float
        Rounded to whole slices, at least one. An even number of slices reaches one slice further
        towards the first.
    size_mm : float
        Distance between slices.
    axis : int
        Across slices.

    Returns
    -------
    (x, y, z) float32 array
    """
    n_slices = max(1, round(thickness_mm / size_mm))
    lifted = np.where(mask, image, np.inf).astype(np.float32)
    # "nearest" repeats an end slice, which a minimum does not notice.
    lowest = minimum_filter1d(lifted, size=n_slices, axis=axis, mode="nearest")
    return np.where(mask, lowest, image).astype(np.float32)


def reference_echo_time(
    echo_times_s: Sequence[float], field_strength_t: float | None = None
) -> float:
    """Echo time that combined phase is scaled to, in seconds.

    The longest echo's, so that noise is never blown up, but with several echoes no more than
    25 ms at 3 T (75 ms T: 50 ms at 1.5 T, 11 ms at 7 T), where SWI has its customary contrast.
    A single echo is left at its own time. Unknown field: 3 T.
    """
    longest = max(echo_times_s)
    if len(echo_times_s) == 1:
        return float(longest)
    limit = LONGEST_REFERENCE_TESLA_SECONDS / (field_strength_t or 3.0)
    return float(max(min(echo_times_s), min(longest, limit)))


def combine_magnitudes(
    magnitudes: Sequence[np.ndarray],
    echo_times_s: Sequence[float] | None,
    mask: np.ndarray,
    rule: str = "contrast",
) -> tuple[np.ndarray, list[float]]:
    """One magnitude image out of several echoes.

    ``contrast`` weighs each echo by its echo time and by its median signal in the head. A little
    more R2* changes an echo by -TE times its signal, so that this is the matched filter for it:
    no linear combination shows a faint microbleed with less noise. Weights are the same for all
    voxels, so that the combination neither flattens contrast nor follows coil shading.
    ``sum-of-squares`` is the root mean square; ``last`` the longest echo.

    Parameters
    ----------
    magnitudes : sequence of (x, y, z) arrays
    echo_times_s : sequence of float or None
        Seconds; None (unknown) gives the root mean square.
    mask : (x, y, z) boolean array
        The head.
    rule : str
        One of `ECHO_COMBINATIONS`.

    Returns
    -------
    magnitude : (x, y, z) float32 array
    weights : list of float
        Of sum 1.
    """
    n = len(magnitudes)
    if n == 1:
        return magnitudes[0].astype(np.float32, copy=False), [1.0]
    if rule == "sum-of-squares" or echo_times_s is None:
        total = sum(m.astype(np.float32) ** 2 for m in magnitudes)
        return np.sqrt(total / np.float32(n)).astype(np.float32), [1.0 / n] * n
    if rule == "last":
        weights = [float(t == max(echo_times_s)) for t in echo_times_s]
    else:
        weights = [
            t * (float(np.median(m[mask])) if mask.any() else 1.0)
            for t, m in zip(echo_times_s, magnitudes, strict=True)
        ]
    total_weight = sum(weights) or 1.0
    weights = [w / total_weight for w in weights]
    combined = np.zeros(magnitudes[0].shape, dtype=np.float32)
    for weight, magnitude in zip(weights, magnitudes, strict=True):
        combined += np.float32(weight) * magnitude
    return combined, weights


def combine_phases(
    phases: Sequence[np.ndarray],
    magnitudes: Sequence[np.ndarray],
    echo_times_s: Sequence[float],
    reference_s: float,
) -> np.ndarray:
    """One phase image out of several echoes, scaled to a reference echo time.

    The weighted least-squares fit of phase = rate * echo time. Noise of phase goes as one over
    magnitude, so that the weight of an echo is its squared magnitude, voxel by voxel: where a
    late echo has lost its signal, the early ones speak.

    Parameters
    ----------
    phases : sequence of (x, y, z) arrays
        Radians without coil phase (high-passed, or offset removed), consistent over echoes.
    magnitudes : sequence of (x, y, z) arrays
    echo_times_s : sequence of float
        Seconds.
    reference_s : float
        Seconds.

    Returns
    -------
    (x, y, z) float32 array
        Radians at the reference echo time; 0 where no echo has signal.
    """
    above = np.zeros(phases[0].shape, dtype=np.float32)
    below = np.zeros_like(above)
    for phase, magnitude, time in zip(phases, magnitudes, echo_times_s, strict=True):
        weight = magnitude.astype(np.float32) ** 2 * np.float32(time / reference_s)
        above += weight * phase
        below += weight * np.float32(time / reference_s)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
