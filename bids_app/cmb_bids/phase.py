"""From the echoes of a complex gradient-echo scan to a susceptibility-weighted image.

The order of things: head mask, unwrapping, high-pass, combination over echoes, polarity,
SWI and minimum-intensity projection. Arrays in, arrays and a report out; no paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from cmb_bids.errors import BadData, UsageError
from cmb_bids.head import block_mean, coarse_steps, core_of_head, head_mask, noise_level
from cmb_bids.highpass import already_filtered, gaussian_highpass, homodyne, unwrap_isolated
from cmb_bids.phase_scaling import SCALES, TURN, wrap
from cmb_bids.polarity import Polarity, find_polarity
from cmb_bids.swi import (
    ECHO_COMBINATIONS,
    SwiConfig,
    combine_magnitudes,
    combine_phases,
    minimum_projection,
    reference_echo_time,
    weight_by_phase,
)
from cmb_bids.unwrapping import consistent_echoes, laplacian, romeo
from cmb_bids.volumes import slice_axis, voxel_sizes

OFFSET_SIGMA_MM = 8.0  # coil phase is smoother than this
# ROMEO wants a few voxels each way.
SMALLEST_FOR_ROMEO = 3


@dataclass(frozen=True)
class PhaseConfig:
    """Keys of the section ``phase``.

    Parameters
    ----------
    scale : str
        How phase is stored; one of `cmb_bids.phase_scaling.SCALES`.
    polarity : str
        ``auto``, ``right-handed`` or ``left-handed``: of the input.
    unwrapping : str
        ``romeo``, ``laplacian`` or ``none``.
    highpass : str
        ``homodyne`` (needs no unwrapping) or ``gaussian`` (of the unwrapped phase).
    homodyne_half_height_per_mm : float
        Where the low-pass window is 1/2, in cycles per mm.
    gaussian_sigma_mm : float
        Of the background, in mm.
    """

    scale: str = "auto"
    polarity: str = "auto"
    unwrapping: str = "romeo"
    highpass: str = "homodyne"
    homodyne_half_height_per_mm: float = 0.0625
    gaussian_sigma_mm: float = 4.0


class SwiResult(NamedTuple):
    """What a scan becomes; all images (x, y, z) float32 on the scan's own grid.

    ``magnitude`` combined over echoes; ``unwrapped`` and ``highpass`` in radians, right-handed,
    at the reference echo time; ``swi``; ``minip``; ``report`` plain values for JSON.
    """

    magnitude: np.ndarray
    unwrapped: np.ndarray
    highpass: np.ndarray
    swi: np.ndarray
    minip: np.ndarray
    report: dict[str, Any]


class MagnitudeResult(NamedTuple):
    """A scan without phase: ``magnitude``, its ``minip`` (x, y, z) and the ``report``."""

    magnitude: np.ndarray
    minip: np.ndarray
    report: dict[str, Any]


def check_config(phase_config: PhaseConfig, swi_config: SwiConfig) -> None:
    """Refuse values that no stage knows.

    Raises
    ------
    UsageError
        Names the key, its value and what is allowed.
    """
    allowed = {
        "phase.scale": (phase_config.scale, SCALES),
        "phase.polarity": (phase_config.polarity, ("auto", "right-handed", "left-handed")),
        "phase.unwrapping": (phase_config.unwrapping, ("romeo", "laplacian", "none")),
        "phase.highpass": (phase_config.highpass, ("homodyne", "gaussian")),
        "swi.echo_combination": (swi_config.echo_combination, ECHO_COMBINATIONS),
    }
    for key, (value, choices) in allowed.items():
        if value not in choices:
            raise UsageError(key, f"is {value!r}", f"Use one of {', '.join(choices)}")
    if (phase_config.highpass, phase_config.unwrapping) == ("gaussian", "none"):
        raise UsageError(
            "phase.highpass",
            "is gaussian, which filters unwrapped phase, but phase.unwrapping is none",
            "Use homodyne, or unwrap with romeo or laplacian",
        )


def process_complex(
    magnitudes: Sequence[np.ndarray],
    phases: Sequence[np.ndarray],
    echo_times_s: Sequence[float],
    affine: np.ndarray,
    phase_config: PhaseConfig | None = None,
    swi_config: SwiConfig | None = None,
    field_strength_t: float | None = None,
    across_slices: int | None = None,
    n_threads: int = 1,
) -> SwiResult:
    """Magnitude and phase of all echoes to SWI.

    Parameters
    ----------
    magnitudes, phases : sequences of (x, y, z) arrays
        One per echo; phase in radians, wrapped or not, of any polarity.
    echo_times_s : sequence of float
        Seconds, positive, all different.
    affine : (4, 4) array
        Voxel to scanner mm.
    phase_config, swi_config : optional
        Defaults where absent.
    field_strength_t : float, optional
        Tesla; limits the reference echo time.
    across_slices : int, optional
        The axis across slices; otherwise told by the affine.
    n_threads : int

    Returns
    -------
    SwiResult

    Raises
    ------
    BadData
        No signal in a magnitude, or shapes or numbers of echoes differ.
    UsageError
        A value in the configuration is not known.
    """
    phase_config, swi_config = phase_config or PhaseConfig(), swi_config or SwiConfig()
    check_config(phase_config, swi_config)
    order = np.argsort(np.asarray(echo_times_s, dtype=float), kind="stable")
    times = [float(echo_times_s[e]) for e in order]
    magnitudes = clean_magnitudes([magnitudes[e] for e in order])
    phases = [np.nan_to_num(phases[e]).astype(np.float32, copy=False) for e in order]
    _check_echoes(magnitudes, phases, times)
    sizes = voxel_sizes(affine)
    axis = slice_axis(affine) if across_slices is None else across_slices
    reference = swi_config.reference_echo_time_s or reference_echo_time(times, field_strength_t)

    head, _ = head_mask(sum(magnitudes[1:], magnitudes[0]), sizes)
    core, _ = core_of_head(magnitudes[-1], head, sizes)
    combined, weights = combine_magnitudes(magnitudes, times, head, swi_config.echo_combination)
    filtered = already_filtered(magnitudes[-1], phases[-1], core, sizes, axis, n_threads)
    if filtered:
        unwrapping, filtering = "none", "none"
        unwrapped_echoes = high_echoes = phases
    else:
        unwrapping, filtering = phase_config.unwrapping, phase_config.highpass
        if unwrapping == "romeo" and min(head.shape) < SMALLEST_FOR_ROMEO:
            unwrapping = "laplacian"
        unwrapped_echoes = unwrap_echoes(
            phases, magnitudes, times, head, sizes, unwrapping, n_threads
        )
        high_echoes = highpass_echoes(
            magnitudes, phases, unwrapped_echoes, head, sizes, axis, phase_config, n_threads
        )
    high = (
        combine_phases(consistent_echoes(high_echoes, times), magnitudes, times, reference) * head
    )
    if unwrapping == "none":
        # Combining wrapped echoes would be meaningless: the echo closest to the reference is kept.
        unwrapped = phases[int(np.argmin(np.abs(np.asarray(times) - reference)))] * head
    else:
        unwrapped = combine_unwrapped(unwrapped_echoes, magnitudes, times, reference, head, sizes)
    polarity = find_polarity(
        None if filtered else _low_orders(unwrapped, unwrapping, phases, head, sizes, n_threads),
        high,
        magnitudes[-1],
        core,
        affine,
        phase_config.polarity,
        n_threads,
    )
    high = (high * np.float32(polarity.sign)).astype(np.float32)
    unwrapped = (unwrapped * np.float32(polarity.sign)).astype(np.float32)
    swi = weight_by_phase(combined, high, swi_config.power)
    minip = minimum_projection(
        swi, head, swi_config.minimum_projection_mm, float(sizes[axis]), axis
    )
    report = {
        "kind": "complex",
        **_polarity_report(polarity),
        "prefiltered": filtered,
        "unwrapping": unwrapping,
        "highpass": filtering,
        "reference_echo_time_s": reference,
        "residual_phase_rad": _robust_deviation(high[core]),
        **_magnitude_report(magnitudes, times, weights, head, core, sizes, axis, swi_config),
    }
    return SwiResult(combined, unwrapped, high, swi, minip, report)


def process_magnitude(
    magnitudes: Sequence[np.ndarray],
    echo_times_s: Sequence[float | None],
    affine: np.ndarray,
    swi_config: SwiConfig | None = None,
    across_slices: int | None = None,
) -> MagnitudeResult:
    """A scan without phase: combined magnitude and its minimum-intensity projection.

    Parameters
    ----------
    magnitudes : sequence of (x, y, z) arrays
    echo_times_s : sequence of float or None
        Seconds; where one is unknown, echoes are combined as the root mean square.
    affine : (4, 4) array
    swi_config : optional
    across_slices : int, optional

    Returns
    -------
    MagnitudeResult

    Raises
    ------
    BadData
        No signal, or shapes differ.
    """
    swi_config = swi_config or SwiConfig()
    check_config(PhaseConfig(), swi_config)
    known = [t for t in echo_times_s if t is not None]
    times = [float(t) for t in known] if len(known) == len(magnitudes) else None
    magnitudes = clean_magnitudes(magnitudes)
    _check_shapes(magnitudes)
    sizes = voxel_sizes(affine)
    axis = slice_axis(affine) if across_slices is None else across_slices
    head, _ = head_mask(sum(magnitudes[1:], magnitudes[0]), sizes)
    core, _ = core_of_head(magnitudes[-1], head, sizes)
    combined, weights = combine_magnitudes(magnitudes, times, head, swi_config.echo_combination)
    minip = minimum_projection(
        combined, head, swi_config.minimum_projection_mm, float(sizes[axis]), axis
    )
    report = {
        "kind": "magnitude",
        **_magnitude_report(magnitudes, times, weights, head, core, sizes, axis, swi_config),
    }
    return MagnitudeResult(combined, minip, report)


def unwrap_echoes(
    phases: Sequence[np.ndarray],
    magnitudes: Sequence[np.ndarray],
    echo_times_s: Sequence[float],
    head: np.ndarray,
    sizes_mm: np.ndarray,
    method: str,
    n_threads: int = 1,
) -> list[np.ndarray]:
    """Unwrap each echo by the method named; ``none`` hands the phases back.

    Returns
    -------
    list of (x, y, z) float32 arrays
        Radians, zero outside the head unless the method is ``none``.
    """
    if method == "romeo":
        return romeo(phases, magnitudes, echo_times_s, head, n_threads)
    if method == "laplacian":
        return [laplacian(phase, head, sizes_mm, n_threads) for phase in phases]
    return list(phases)


def highpass_echoes(
    magnitudes: Sequence[np.ndarray],
    phases: Sequence[np.ndarray],
    unwrapped: Sequence[np.ndarray],
    head: np.ndarray,
    sizes_mm: np.ndarray,
    axis: int,
    config: PhaseConfig,
    n_threads: int = 1,
) -> list[np.ndarray]:
    """High-pass each echo: homodyne of the wrapped, or Gaussian of the unwrapped phase."""
    if config.highpass == "gaussian":
        return [gaussian_highpass(u, head, sizes_mm, config.gaussian_sigma_mm) for u in unwrapped]
    half_height = config.homodyne_half_height_per_mm
    return [
        unwrap_isolated(homodyne(magnitude, phase, sizes_mm, axis, half_height, n_threads), axis)
        for magnitude, phase in zip(magnitudes, phases, strict=True)
    ]


def combine_unwrapped(
    unwrapped: Sequence[np.ndarray],
    magnitudes: Sequence[np.ndarray],
    echo_times_s: Sequence[float],
    reference_s: float,
    head: np.ndarray,
    sizes_mm: np.ndarray,
) -> np.ndarray:
    """Unwrapped echoes to the phase that the field alone gives at the reference echo time.

    The coils' own phase, which is there at echo time zero, is what the first two echoes
    extrapolate to, smoothed. It is subtracted; then `combine_phases`. A single echo is left as it
    is, coil phase included: nothing tells the two apart.

    Parameters
    ----------
    unwrapped, magnitudes : sequences of (x, y, z) arrays
        Radians and any unit, in order of echo time.
    echo_times_s : sequence of float
    reference_s : float
        Seconds.
    head : (x, y, z) boolean array
    sizes_mm : (3,) array

    Returns
    -------
    (x, y, z) float32 array
        Radians, zero outside the head.
    """
    if len(unwrapped) == 1:
        return unwrapped[0] * np.float32(reference_s / echo_times_s[0]) * head
    first, second = echo_times_s[:2]
    step = unwrapped[1] - unwrapped[0]
    # Each echo is unwrapped up to whole turns; the frequency the scanner is tuned to is near 0.
    step -= np.float32(TURN * np.round(np.median(step[head]) / TURN)) if head.any() else 0
    offset = unwrapped[0] - step * np.float32(first / (second - first))
    offset = _smooth(offset, magnitudes[0] * head, sizes_mm, OFFSET_SIGMA_MM)
    without = [(echo - offset) * head for echo in unwrapped]
    without = consistent_echoes(without, echo_times_s)
    return combine_phases(without, magnitudes, echo_times_s, reference_s) * head


def _smooth(
    image: np.ndarray, weight: np.ndarray, sizes_mm: np.ndarray, sigma_mm: float
) -> np.ndarray:
    """Weighted Gaussian mean, worked out on a coarse grid and interpolated back."""
    steps = coarse_steps(sizes_mm)
    sigma = sigma_mm / (np.asarray(sizes_mm) * steps)
    total = gaussian_filter(block_mean(image * weight, steps), sigma, mode="constant")
    norm = gaussian_filter(block_mean(weight, steps), sigma, mode="constant")
    floor = 1e-4 * float(norm.max()) if norm.size else 0.0
    coarse = np.divide(total, norm, out=np.zeros_like(total), where=norm > floor)
    return _interpolated(coarse, steps, image.shape)


def _interpolated(
    coarse: np.ndarray, steps: tuple[int, int, int], shape: tuple[int, ...]
) -> np.ndarray:
    """Linear interpolation of block means back to single voxels."""
    fine = zoom(coarse, steps, order=1, mode="nearest", grid_mode=True)
    return fine[tuple(slice(0, n) for n in shape)].astype(np.float32)


def _low_orders(
    unwrapped: np.ndarray,
    method: str,
    phases: Sequence[np.ndarray],
    head: np.ndarray,
    sizes_mm: np.ndarray,
    n_threads: int,
) -> np.ndarray:
    """What the head's own field is looked for in; without an unwrapper, the Laplacian."""
    if method != "none":
        return unwrapped
    # The step between echoes is free of coil phase.
    wrapped = phases[0] if len(phases) == 1 else wrap(phases[-1] - phases[0])
    return laplacian(wrapped, head, sizes_mm, n_threads)


def clean_magnitudes(magnitudes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """float32, with what is not finite or negative set to zero."""
    return [
        np.maximum(np.nan_to_num(m, posinf=0, neginf=0), 0).astype(np.float32, copy=False)
        for m in magnitudes
    ]


def _check_shapes(images: Sequence[np.ndarray]) -> None:
    if not images:
        raise BadData("scan", "has no echoes", "Give at least one magnitude image")
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise BadData(
            "scan", f"its images differ in shape: {sorted(shapes)}", "Give all on one grid"
        )
    for echo, image in enumerate(images, start=1):
        if not image.any():
            raise BadData(
                f"magnitude of echo {echo}",
                "is zero everywhere",
                "Convert the scan again or leave it out",
            )


def _check_echoes(
    magnitudes: Sequence[np.ndarray], phases: Sequence[np.ndarray], times: Sequence[float]
) -> None:
    _check_shapes(magnitudes)
    if not len(magnitudes) == len(phases) == len(times):
        raise BadData(
            "scan",
            f"has {len(magnitudes)} magnitudes, {len(phases)} phases and {len(times)} echo times",
            "Give one of each per echo",
        )
    if {p.shape for p in phases} != {magnitudes[0].shape}:
        raise BadData("scan", "magnitude and phase differ in shape", "Give both on one grid")
    if min(times) <= 0 or len(set(times)) != len(times):
        raise BadData(
            "EchoTime",
            f"is not positive and different for each echo: {times} s",
            "Mend EchoTime (seconds) in the sidecars",
        )


def _robust_deviation(values: np.ndarray) -> float | None:
    if values.size == 0:
        return None
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 4) if np.isfinite(value) else None


def _polarity_report(polarity: Polarity) -> dict[str, Any]:
    return {
        "polarity_sign": polarity.sign,
        "polarity_correlation": _finite(polarity.correlation),
        "polarity_vein_score": _finite(polarity.vein_score),
        "polarity_evidence": polarity.evidence,
        "polarity_confidence": polarity.confidence,
    }


def _magnitude_report(
    magnitudes: Sequence[np.ndarray],
    times: Sequence[float] | None,
    weights: Sequence[float],
    head: np.ndarray,
    core: np.ndarray,
    sizes_mm: np.ndarray,
    axis: int,
    config: SwiConfig,
) -> dict[str, Any]:
    noise, from_air = noise_level(magnitudes[-1])
    region = core if core.any() else head
    signal = float(np.median(magnitudes[-1][region])) if region.any() else 0.0
    rule = config.echo_combination if times is not None else "sum-of-squares"
    return {
        "echo_times_s": list(times) if times is not None else None,
        "echo_combination": rule if len(magnitudes) > 1 else "single echo",
        "echo_weights": [round(w, 4) for w in weights],
        "signal_to_noise": _finite(signal / noise) if noise > 0 else None,
        "noise_from": "air" if from_air else "differences",
        "head_volume_ml": round(float(head.sum() * np.prod(sizes_mm) / 1000), 1),
        "slice_axis": axis,
        "voxel_size_mm": [round(float(s), 4) for s in sizes_mm],
    }
