"""How vendors store magnitude and phase, and what they say of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from whole_head_simulator.acquisition import Acquisition
from whole_head_simulator.geometry import F
from whole_head_simulator.scanner import Received
from whole_head_simulator.settings import VENDORS

SIEMENS_HALF_TURN, GE_PER_RADIAN = 4096, 1000
AXES_FLIPPED = ((0.5, (0,)), (0.7, (0, 1)), (1.0, ()))  # cumulative chances of x, x and y, none


class Stored(NamedTuple):
    """Magnitude and phase as they lie in files.

    Attributes
    ----------
    magnitude : ndarray of int16, shape (nx, ny, nz)
    phase : ndarray of shape (nx, ny, nz)
        In the vendor's units.
    affine : ndarray of shape (4, 4)
        From voxels to world mm.
    vendor : str
    negated : bool
        Whether the vendor stores phase left-handed.
    """

    magnitude: np.ndarray
    phase: np.ndarray
    affine: np.ndarray
    vendor: str
    negated: bool


def store(rng: np.random.Generator, acquisition: Acquisition, received: Received) -> Stored:
    """Store an image as a vendor does.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the vendor and what differs between its scanners.
    acquisition : Acquisition
    received : Received

    Returns
    -------
    Stored
    """
    vendor = VENDORS[rng.choice(3, p=acquisition.protocol.vendor_chances)]
    negated = bool(vendor == "GE" and rng.random() < 0.7)
    magnitude = np.abs(received.image)
    phase = np.angle(received.image).astype(F)
    if negated:
        phase = -phase
    if vendor == "Philips" and rng.random() < 0.5:
        mark_air(phase, magnitude, 2.2 * received.noise_sd)
    middle = magnitude[len(magnitude) // 2]
    scale = rng.uniform(500, 1500) / np.median(middle[middle > 4 * received.noise_sd])
    magnitude = np.clip(np.round(magnitude * scale), 0, 32000).astype(np.int16)
    chance = rng.random()
    flipped = next(axes for most, axes in AXES_FLIPPED if chance < most)
    affine = flip_affine(acquisition.affine(), magnitude.shape[::-1], flipped)
    magnitude, phase = (np.flip(a.transpose(2, 1, 0), flipped) for a in (magnitude, phase))
    return Stored(magnitude, vendor_phase(phase, vendor), affine, vendor, negated)


def mark_air(phase: np.ndarray, magnitude: np.ndarray, threshold: float) -> None:
    """Set phase to -pi, in place, where there is no signal out to the border of the slice."""
    low = ndimage.uniform_filter(magnitude, (1, 5, 5)) < threshold
    for number, empty in enumerate(low):
        labels, count = ndimage.label(empty)
        if not count:
            continue
        border = np.unique(np.r_[labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        phase[number][np.isin(labels, border[border > 0])] = -np.pi


def flip_affine(affine: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """The affine of an array (x, y, z) of this shape that has been flipped along some axes."""
    affine = affine.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
    return affine


def vendor_phase(phase: np.ndarray, vendor: str) -> np.ndarray:
    """Phase in radians as whole numbers of Siemens or GE, or as radians of Philips."""
    if vendor == "Siemens":
        levels = np.round(phase / np.pi * SIEMENS_HALF_TURN)
        return np.clip(levels, -SIEMENS_HALF_TURN, SIEMENS_HALF_TURN).astype(np.int16)
    if vendor == "GE":
        return np.clip(np.round(phase * GE_PER_RADIAN), -3142, 3142).astype(np.int16)
    return phase.astype(F)


def sidecar(acquisition: Acquisition, received: Received, vendor: str, part: str) -> dict[str, Any]:
    """What the JSON file of one part (``mag`` or ``phase``) says."""
    protocol = acquisition.protocol
    content = {
        "Modality": "MR",
        "Manufacturer": vendor,
        "MagneticFieldStrength": protocol.field_t,
        "EchoTime": protocol.echo_time_s,
        "RepetitionTime": acquisition.repetition_s,
        "FlipAngle": acquisition.flip_deg,
        "MRAcquisitionType": "2D" if received.two_dimensional else "3D",
        "SliceThickness": protocol.voxel_mm[2],
        "ScanningSequence": "GR",
        "SequenceVariant": "SP",
    }
    if part == "phase":
        content["Units"] = "rad" if vendor == "Philips" else "arbitrary"
    return content
