"""How vendors store the images: parts, scales, signs, orientation, and what they say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from analytic_simulator.geometry import F
from analytic_simulator.protocol import Protocol

MODELS = {
    "Siemens": {1.5: "Avanto", 3.0: "Skyra"},
    "GE": {1.5: "Signa HDxt", 3.0: "DISCOVERY MR750"},
    "Philips": {1.5: "Ingenia", 3.0: "Achieva"},
}
PHILIPS_SLOPE = 1.7
COMPLEX_SCALE = 900


class Stored(NamedTuple):
    """One image as it lies in a file, and what its sidecar says of this part alone.

    The value of a voxel is ``slope * data + intercept``.
    """

    part: str
    data: np.ndarray
    about: dict[str, Any]
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class Storage:
    """What differs between scanners of one vendor."""

    magnitude_style: str
    magnitude_scale: float
    air_is_marked: bool  # Philips: phase is -pi where there is no signal
    with_magnitude: tuple[bool, ...]  # beside real and imaginary, for each echo


def draw_storage(rng: np.random.Generator, protocol: Protocol) -> Storage:
    """Draw how the images of one participant are stored."""
    styles = ["int16", "int16small", "float_small", "float_large"]
    style = str(rng.choice(styles, p=[0.5, 0.15, 0.15, 0.2]))
    scales = [rng.uniform(300, 1200), rng.uniform(60, 150), rng.uniform(0.3, 1.0),
              10 ** rng.uniform(5, 7)]  # fmt: skip
    scale = scales[styles.index(style)]
    echoes = protocol.echo_times
    if protocol.phase_storage == "realimag":
        beside = tuple(protocol.alternating_sign or rng.random() < 0.5 for _ in echoes)
        return Storage("int16", COMPLEX_SCALE, False, beside)
    marked = protocol.phase_storage.startswith("philips") and rng.random() < 0.5
    return Storage(style, scale, marked, (True,) * len(echoes))


def turn_array(array: np.ndarray, axes: str) -> np.ndarray:
    """An array along right, anterior and superior, turned to the axes that are stored."""
    return nib.orientations.apply_orientation(array, _turn(axes))


def turn_affine(affine: np.ndarray, shape: tuple[int, ...], axes: str) -> np.ndarray:
    """The affine of an array of this shape after `turn_array`."""
    return affine @ nib.orientations.inv_ornt_aff(_turn(axes), shape)


def _turn(axes: str) -> np.ndarray:
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    return nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(tuple("RAS")), wanted)


def stored_parts(
    image: np.ndarray, protocol: Protocol, storage: Storage, echo: int
) -> Iterator[Stored]:
    """Parts of one echo as they are stored.

    Parameters
    ----------
    image : ndarray of complex64, shape (x, y, z)
        Right-handed, along right, anterior and superior.
    protocol : Protocol
    storage : Storage
    echo : int
        Its number, from 0.

    Yields
    ------
    Stored
        Magnitude and phase; or real and imaginary, perhaps with the magnitude.
    """
    image = np.conj(image) if protocol.phase_sign < 0 else image.copy()
    if protocol.alternating_sign:
        image[:, :, 1::2] *= -1
    image = turn_array(image, protocol.axes)
    if protocol.phase_storage == "realimag":
        parts = {"real": image.real, "imag": image.imag}
        if storage.with_magnitude[echo]:
            parts["mag"] = np.abs(image)
        for part, data in parts.items():
            kind = "M" if part == "mag" else part.upper()
            whole = np.round(data * F(COMPLEX_SCALE)).astype(np.int16)
            yield Stored(part, whole, _image_type(kind))
        return
    yield _stored_magnitude(np.abs(image), protocol.vendor, storage)
    yield _stored_phase(image, protocol.phase_storage, storage.air_is_marked)


def _image_type(kind: str) -> dict[str, Any]:
    return {"ImageType": ["ORIGINAL", "PRIMARY", kind]}


def _stored_magnitude(magnitude: np.ndarray, vendor: str, storage: Storage) -> Stored:
    magnitude = magnitude * F(storage.magnitude_scale)
    if storage.magnitude_style.startswith("float"):
        return Stored("mag", magnitude.astype(F), _image_type("M"))
    whole = np.round(np.clip(magnitude, 0, 32767)).astype(np.int16)
    slope = PHILIPS_SLOPE if vendor == "Philips" else 1.0
    return Stored("mag", whole, _image_type("M"), slope)


def _stored_phase(image: np.ndarray, how: str, air_is_marked: bool) -> Stored:
    """Phase in radians, Siemens' 12 bits, Philips' scaled 12 bits or GE's whole milliradians."""
    phase = np.angle(image).astype(F)
    about = _image_type("P") | {"Units": "arbitrary"}
    if how == "rad":
        return Stored("phase", phase, about | {"Units": "rad"})
    if how == "ge3142":
        return Stored("phase", np.round(phase * 1000).astype(np.int16), about)
    if how.startswith("siemens"):
        levels = np.clip(np.round((phase + np.pi) / np.pi * 2048), 0, 4095).astype(np.int16)
        if how == "siemens4095":
            return Stored("phase", levels, about)
        return Stored("phase", levels, about, 2.0, -4096.0)
    if air_is_marked:
        size = np.abs(image)
        phase = np.where(size < 0.06 * np.percentile(size, 99), F(-np.pi), phase)
    levels = np.clip(np.round((phase + np.pi) * (4095 / 2 / np.pi)), 0, 4095).astype(np.int16)
    unit = 1000.0 if how == "philips_mrad" else 1.0
    if unit == 1:
        about["Units"] = "rad"
    return Stored("phase", levels, about, 2 * np.pi * unit / 4095, -np.pi * unit)


def sidecar(protocol: Protocol, echo: int) -> dict[str, Any]:
    """What the JSON file of every part of an echo says."""
    thickness = protocol.voxel[2] * (0.8 if protocol.slices_with_gaps else 1)
    content = {
        "Manufacturer": protocol.vendor,
        "ManufacturersModelName": MODELS[protocol.vendor][protocol.field_t],
        "MagneticFieldStrength": protocol.field_t,
        "EchoTime": protocol.echo_times[echo],
        "RepetitionTime": round(protocol.repetition_time, 5),
        "FlipAngle": protocol.flip_deg,
        "MRAcquisitionType": "2D" if protocol.slices_with_gaps else "3D",
        "ScanningSequence": "GR",
        "SliceThickness": round(thickness, 3),
        "SpacingBetweenSlices": protocol.voxel[2],
    }
    return content | ({"EchoNumber": echo + 1} if len(protocol.echo_times) > 1 else {})
