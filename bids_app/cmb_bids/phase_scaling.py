"""Stored phase to radians.

Vendors and converters store phase as radians, as integers over a full turn, or as thousandths of
a radian, and lose the header's slope on the way. The rule here recognises each by its range and
refuses anything else: stretching min..max to a turn is wrong whenever nothing wraps.
"""

from __future__ import annotations

from os import PathLike
from typing import NamedTuple

import numpy as np

from cmb_bids.errors import BadData

TURN = 2.0 * np.pi
# Rounding on the way to disk may push a value past the end of its range by this much.
OVERSHOOT = 0.01
# A range counts as spanned from here on: noise in air visits all of it, but not its very ends.
SPANNED = 0.9
SIEMENS_HALF_TURN = 4096.0
SIEMENS_UNSIGNED_TURN = 4096.0
MILLIRADIAN_HALF_TURN = 3142.0

# Share of the signal by which neighbouring slices must disagree to be taken for half a turn off.
ALTERNATING = 0.25

# What phase.scale may be set to: how the file holds phase. "stored" is radians once the header's
# slope is ignored; "siemens" is either of its two ranges.
SCALES = ("auto", "radians", "siemens", "milliradian", "stored")


class ScaledPhase(NamedTuple):
    """Phase ``radians`` (x, y, z) in [-pi, pi], where it was ``valid``, and the ``rule`` used."""

    radians: np.ndarray
    valid: np.ndarray
    rule: str


def scale_phase(
    stored: np.ndarray,
    slope: float = 1.0,
    intercept: float = 0.0,
    units: str | None = None,
    scale: str = "auto",
    path: str | PathLike[str] = "phase image",
) -> ScaledPhase:
    """Turn a phase image as stored into radians.

    Tried in order, each on finite values only: (1) ``Units`` is rad and the header's scaling
    gives at most a turn; (2) the scaled values fill a turn although the header's ``Units`` do not
    say so, or they make no sense and the unscaled floats fill a turn; (3) Siemens, -4096..4096 or
    0..4095 for a turn; (4) thousandths of a radian; rules 3 and 4 on scaled and then on stored
    values; (5) refuse.

    Parameters
    ----------
    stored : (x, y, z) array
        Values on disk, any integer or float type.
    slope, intercept : float
        Of the header; a slope of zero or not finite counts as 1.
    units : str, optional
        ``Units`` of the sidecar: ``rad``, ``arbitrary`` or None.
    scale : str
        One of `SCALES`; anything but ``auto`` is obeyed.
    path : path-like
        Named in messages.

    Returns
    -------
    ScaledPhase
        float32 radians in [-pi, pi]; 0 where the image was not finite.

    Raises
    ------
    BadData
        No rule recognises the range; or the image is constant or holds nothing finite.
    """
    if scale not in SCALES:
        raise BadData(path, f"phase.scale is {scale!r}", f"Use one of {', '.join(SCALES)}")
    if not np.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    intercept = intercept if np.isfinite(intercept) else 0.0
    valid = np.isfinite(stored)
    if not valid.any():
        raise BadData(path, "holds no finite value", "Convert the phase image again")
    low, high = _range(stored, valid)
    if low == high and scale == "auto":
        raise BadData(
            path, f"is {low:g} everywhere, which is no phase", "Convert the phase image again"
        )
    if scale == "auto":
        rule = _recognise(stored, low, high, slope, intercept, units)
    else:
        rule = _obeyed(scale, low, high, slope, intercept)
    if rule is None:
        ends = sorted((low * slope + intercept, high * slope + intercept))
        raise BadData(
            path,
            f"spans {ends[0]:.6g} to {ends[1]:.6g} (stored {low:.6g} to {high:.6g}, Units "
            f"{units or 'missing'}), which is no known phase scale",
            "Set phase.scale in the configuration to one of "
            f"{', '.join(SCALES[1:])}, or convert the phase again with Units in its sidecar",
        )
    factor, offset = _factor_and_offset(rule, slope, intercept)
    radians = np.where(valid, stored, 0).astype(np.float32)
    # In place: a phase image is large, and this is one of several held at once.
    radians *= np.float32(factor)
    radians += np.float32(offset)
    if max(abs(low * factor + offset), abs(high * factor + offset)) > np.pi:
        radians = wrap(radians)
    radians[~valid] = 0
    return ScaledPhase(radians, valid, rule)


def wrap(phase: np.ndarray) -> np.ndarray:
    """Bring phase to [-pi, pi]; values already there, the ends included, stay as they are."""
    outside = np.abs(phase) > np.pi
    turns = np.round(phase / TURN) * outside
    wrapped = phase - (TURN * turns).astype(phase.dtype)
    return np.clip(wrapped, -np.pi, np.pi).astype(phase.dtype, copy=False)


def _range(stored: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    if valid.all():
        return float(stored.min()), float(stored.max())
    return float(stored[valid].min()), float(stored[valid].max())


def _recognise(
    stored: np.ndarray,
    low: float,
    high: float,
    slope: float,
    intercept: float,
    units: str | None,
) -> str | None:
    """Name of the scale, or None; the order is the rule."""
    ends = sorted((low * slope + intercept, high * slope + intercept))
    scaled_low, scaled_high = ends
    rescaled = (slope, intercept) != (1.0, 0.0)
    floats = np.issubdtype(stored.dtype, np.floating)
    stored_is_a_turn = floats and _fills_a_turn(low, high)
    in_radians = (units or "").strip().lower() in ("rad", "radian", "radians")
    # A bogus slope can also shrink radians to next to nothing: unscaled floats that fill a turn
    # are then the better witness.
    if in_radians and _within_a_turn(scaled_low, scaled_high):
        shrunk = rescaled and stored_is_a_turn and not _fills_a_turn(scaled_low, scaled_high)
        return "stored-radians" if shrunk else "radians"
    if _fills_a_turn(scaled_low, scaled_high):
        return "radians"
    if rescaled and stored_is_a_turn:
        return "stored-radians"
    for prefix, (first, last) in (("", ends), ("stored-", [low, high])):
        rule = _integer_scale(first, last)
        if rule is not None:
            return prefix + rule
        if not rescaled:
            break
    # The Siemens converter's own slope and intercept name the scale, whatever the range.
    if (slope, intercept) == (2.0, -4096.0) and scaled_low >= -4096 and scaled_high <= 4096:
        return "siemens-signed"
    return None


def _obeyed(scale: str, low: float, high: float, slope: float, intercept: float) -> str:
    """The rule that a configured scale stands for, given the range."""
    if scale == "siemens":
        ends = sorted((low * slope + intercept, high * slope + intercept))
        fits = max(abs(ends[0]), abs(ends[1])) <= SIEMENS_HALF_TURN * (1 + OVERSHOOT)
        prefix, first = ("", ends[0]) if fits else ("stored-", low)
        return prefix + ("siemens-signed" if first < 0 else "siemens-unsigned")
    return {"radians": "radians", "milliradian": "milliradian", "stored": "stored-radians"}[scale]


def _within_a_turn(low: float, high: float) -> bool:
    # Either -pi..pi or 0..2 pi, and not all one value.
    return 0 < high - low <= TURN * (1 + OVERSHOOT) and max(abs(low), abs(high)) <= TURN * (
        1 + OVERSHOOT
    )


def _fills_a_turn(low: float, high: float) -> bool:
    return _within_a_turn(low, high) and high - low >= SPANNED * TURN


def _integer_scale(low: float, high: float) -> str | None:
    span = high - low
    largest = max(abs(low), abs(high))
    if low < 0 and largest <= MILLIRADIAN_HALF_TURN * (1 + OVERSHOOT):
        return "milliradian" if span >= SPANNED * 2 * MILLIRADIAN_HALF_TURN else None
    if low < 0 and largest <= SIEMENS_HALF_TURN:
        return "siemens-signed" if span >= SPANNED * 2 * SIEMENS_HALF_TURN else None
    if low >= 0 and high <= SIEMENS_UNSIGNED_TURN:
        return "siemens-unsigned" if span >= SPANNED * SIEMENS_UNSIGNED_TURN else None
    return None


def _factor_and_offset(rule: str, slope: float, intercept: float) -> tuple[float, float]:
    """Factor and offset that turn *stored* values into radians under a rule."""
    if rule.startswith("stored-"):
        rule, slope, intercept = rule.removeprefix("stored-"), 1.0, 0.0
    factor, offset = {
        "radians": (1.0, 0.0),
        "siemens-signed": (np.pi / SIEMENS_HALF_TURN, 0.0),
        "siemens-unsigned": (TURN / SIEMENS_UNSIGNED_TURN, -np.pi),
        "milliradian": (1e-3, 0.0),
    }[rule]
    return slope * factor, intercept * factor + offset


def combine_real_imaginary(
    real: np.ndarray, imaginary: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Magnitude and phase of a complex image, with alternate slices' sign mended.

    Some GE exports multiply every second slice by -1 (a Fourier shift left undone). Neighbouring
    slices then disagree by half a turn nearly everywhere, which anatomy never does.

    Parameters
    ----------
    real, imaginary : (x, y, z) arrays
        In the same arbitrary units; what is not finite counts as zero.
    axis : int
        Across slices.

    Returns
    -------
    magnitude : (x, y, z) float32 array
    phase : (x, y, z) float32 array
        Radians in [-pi, pi].
    flipped : bool
        Whether every second slice was turned.
    """
    signal = np.empty(real.shape, dtype=np.complex64)
    signal.real = np.nan_to_num(real, posinf=0, neginf=0)
    signal.imag = np.nan_to_num(imaginary, posinf=0, neginf=0)
    flipped = _alternates(signal, axis)
    if flipped:
        np.moveaxis(signal, axis, 0)[1::2] *= -1
    return np.abs(signal), np.angle(signal), flipped


def mend_alternate_slices(
    magnitude: np.ndarray, phase: np.ndarray, axis: int
) -> tuple[np.ndarray, bool]:
    """Phase of which every second slice is half a turn off, mended as in `combine_real_imaginary`.

    Parameters
    ----------
    magnitude : (x, y, z) array
        Any unit.
    phase : (x, y, z) array
        Radians.
    axis : int
        Across slices.

    Returns
    -------
    phase : (x, y, z) float32 array
        Radians in [-pi, pi]; as it came where nothing was to mend.
    flipped : bool
        Whether every second slice was turned.
    """
    strength = np.nan_to_num(magnitude, posinf=0, neginf=0).astype(np.float32)
    if not _alternates(strength * np.exp(1j * phase).astype(np.complex64), axis):
        return phase, False
    mended = np.moveaxis(phase.astype(np.float32), axis, 0)
    mended[1::2] = wrap(mended[1::2] + np.float32(np.pi))
    return np.moveaxis(mended, 0, axis), True


def _alternates(signal: np.ndarray, axis: int) -> bool:
    """Whether neighbouring slices of a complex image disagree by half a turn throughout."""
    along = np.moveaxis(signal, axis, 0)
    if along.shape[0] < 2:
        return False
    agreement = np.real(np.sum(along[1:] * np.conj(along[:-1]), axis=(1, 2), dtype=complex))
    size = np.sum(np.abs(along[1:] * along[:-1]), axis=(1, 2), dtype=float)
    # One sign for the whole stack: a few slices without signal must not decide.
    return bool(agreement.sum() < -ALTERNATING * max(size.sum(), np.finfo(float).tiny))
