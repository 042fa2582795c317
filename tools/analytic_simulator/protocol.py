"""How a participant is scanned and how the vendor stores it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PROTOCOLS = ("1p5T", "3T", "ukb")
VENDORS = ("Siemens", "GE", "Philips")
# In-plane and slice spacing (mm), and how often each is met.
VOXELS_1P5T = ((0.5, 0.5, 2.0), (1.0, 1.0, 2.0), (0.9, 0.9, 2.0)), (0.45, 0.35, 0.2)
VOXELS_3T = (
    ((0.5, 0.5, 1.0), (0.5, 0.5, 1.5), (0.7, 0.7, 0.7), (0.6, 0.6, 1.5), (0.5, 0.5, 2.0)),
    (0.15, 0.25, 0.15, 0.25, 0.2),
)
# How each vendor stores phase, how often, and the sign that three quarters of its scans have.
STORAGE = {
    "Siemens": (("siemens4095", "siemens4096", "rad"), (0.45, 0.3, 0.25), 1),
    "Philips": (("philips_mrad", "philips_rad", "rad"), (0.4, 0.4, 0.2), 1),
    "GE": (("ge3142", "realimag", "rad"), (0.4, 0.4, 0.2), -1),
}


@dataclass(frozen=True)
class Protocol:
    """What the scanner is set to; lengths in mm, times in s, angles in degrees."""

    name: str
    field_t: float
    echo_times: tuple[float, ...]
    repetition_time: float
    flip_deg: float
    voxel: tuple[float, float, float]  # as reconstructed
    vendor: str
    slices_with_gaps: bool  # two-dimensional, 20 % of each slice not excited
    acquired_share: tuple[float, float]  # of k-space in the plane; the rest is filled with zeros
    snr: float  # of white matter at the last echo
    motion: float  # 0: none
    oblique_deg: float  # about x
    oblique_roll_deg: float  # about y
    cut: str  # part of the head beyond the slab: none, top, bottom
    axes: str  # orientation of the stored array
    phase_storage: str
    phase_sign: int  # 1: right-handed, as the physics has it; -1: left-handed
    alternating_sign: bool  # every second slice is stored negated
    suffix: str


def draw_protocol(rng: np.random.Generator, which: str) -> Protocol:
    """Draw a protocol.

    Parameters
    ----------
    rng : numpy.random.Generator
        Advanced by the draws.
    which : str
        One of `PROTOCOLS`, or ``mixed`` to draw that too.

    Returns
    -------
    Protocol
        A two-echo scan comes with the suffix MEGRE.
    """
    if which == "mixed":
        which = str(rng.choice(PROTOCOLS, p=[0.3, 0.4, 0.3]))
    timing = {"1p5T": _draw_1p5t, "3T": _draw_3t, "ukb": _draw_ukb}[which](rng)
    field_t, echo_times, repetition_time, flip_deg, voxel, vendor = timing
    with_gaps = which != "ukb" and voxel[2] >= 1.5 and rng.random() < 0.12
    acquired = (1.0, 1.0)
    if rng.random() < 0.3:
        acquired = (float(rng.uniform(0.6, 0.8)), float(rng.uniform(0.65, 0.95)))
    snr = float(np.exp(rng.uniform(np.log(15), np.log(60))))
    motion = float(rng.uniform(0.1, 0.5)) if rng.random() < 0.2 else 0.0
    oblique = float(rng.uniform(-20, 20)) if rng.random() < 0.7 else 0.0
    roll = float(rng.uniform(-6, 6)) if oblique and rng.random() < 0.4 else 0.0
    cut = str(rng.choice(["none", "top", "bottom"], p=[0.82, 0.09, 0.09]))
    axes = str(rng.choice(["LAS", "RAS", "LPS", "RPI", "PSR"], p=[0.5, 0.25, 0.12, 0.08, 0.05]))
    names, chances, usual = STORAGE[vendor]
    storage = str(rng.choice(names, p=chances))
    sign = usual if rng.random() < 0.75 else -usual
    alternating = storage == "realimag" and rng.random() < 0.3
    if len(echo_times) > 1:
        suffix = "MEGRE"
    else:
        suffix = str(rng.choice(["T2starw", "swi", "GRE"], p=[0.6, 0.2, 0.2]))
    return Protocol(
        which, field_t, echo_times, repetition_time, flip_deg, voxel, vendor, with_gaps, acquired,
        snr, motion, oblique, roll, cut, axes, storage, sign, alternating, suffix,
    )  # fmt: skip


Timing = tuple[float, tuple[float, ...], float, float, tuple[float, float, float], str]


def _draw_1p5t(rng: np.random.Generator) -> Timing:
    voxels, chances = VOXELS_1P5T
    voxel = voxels[rng.choice(3, p=chances)]
    flip = float(rng.choice([15, 20]))
    return 1.5, (0.040,), 0.050, flip, voxel, str(rng.choice(VENDORS, p=[0.5, 0.25, 0.25]))


def _draw_3t(rng: np.random.Generator) -> Timing:
    voxels, chances = VOXELS_3T
    voxel = voxels[rng.choice(5, p=chances)]
    repetition = float(rng.uniform(0.027, 0.032))
    return 3.0, (0.020,), repetition, 15.0, voxel, str(rng.choice(VENDORS, p=[0.4, 0.3, 0.3]))


def _draw_ukb(rng: np.random.Generator) -> Timing:
    echoes = (0.00942, 0.020) if rng.random() < 0.6 else (0.020,)
    vendor = "Siemens" if rng.random() < 0.7 else str(rng.choice(["GE", "Philips"]))
    return 3.0, echoes, 0.027, 15.0, (0.8, 0.8, 3.0), vendor
