"""How each vendor stores magnitude and phase: scale, sign and number type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PhaseScale:
    """A way of storing phase. ``units`` is the BIDS ``Units`` (rad or arbitrary)."""

    name: str
    manufacturer: str
    units: str
    polarity: str  # the vendor's usual one, used for "--polarity vendor"


PHASE_SCALES = {
    scale.name: scale
    for scale in (
        PhaseScale("siemens", "Siemens", "arbitrary", "right-handed"),
        PhaseScale("siemens-unsigned", "Siemens", "arbitrary", "right-handed"),
        PhaseScale("philips", "Philips", "arbitrary", "right-handed"),
        PhaseScale("ge", "GE", "rad", "left-handed"),
        PhaseScale("radians", "Siemens", "rad", "right-handed"),
    )
}


def wrap(phase: np.ndarray) -> np.ndarray:
    """Wrap radians into [-pi, pi)."""
    return (np.mod(phase + np.pi, 2 * np.pi) - np.pi).astype(np.float32)


def store_phase(phase: np.ndarray, scale: str, polarity: str) -> np.ndarray:
    """Right-handed radians to what the vendor's files hold.

    Parameters
    ----------
    phase : (x, y, z) float
        Radians, paramagnetic positive.
    scale : str
        siemens: int16 within +-4096; siemens-unsigned: uint16 0..4095; philips: float32
        milliradian; ge and radians: float32 radian.
    polarity : str
        right-handed or left-handed (sign flipped before storing).

    Returns
    -------
    (x, y, z) array of the vendor's number type
    """
    wrapped = wrap(-phase if polarity == "left-handed" else phase)
    if scale == "siemens":
        return np.clip(np.rint(wrapped * (4096 / np.pi)), -4096, 4095).astype(np.int16)
    if scale == "siemens-unsigned":
        return np.clip(np.rint((wrapped + np.pi) * (2048 / np.pi)), 0, 4095).astype(np.uint16)
    if scale == "philips":
        return (wrapped * 1000).astype(np.float32)
    if scale in ("ge", "radians"):
        return wrapped
    raise ValueError(f"unknown phase scale '{scale}'")


def store_magnitudes(magnitudes: list[np.ndarray]) -> list[np.ndarray]:
    """All echoes on one integer scale, 99.9th percentile of the first echo at 2500."""
    top = max(float(np.percentile(magnitudes[0][::2, ::2, ::2], 99.9)), 1e-9)
    return [np.clip(np.rint(m * (2500 / top)), 0, 32767).astype(np.int16) for m in magnitudes]
