"""What is simulated: protocols, tissues, cohort, and where microbleeds lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GYROMAGNETIC = 267.522e6  # rad/s/T
FAT_SHIFT = 3.4e-6  # chemical shift of fat against water
AIR_PPM = 9.4

TEMPLATE_CENTRE = np.array([0.0, -17.0, 12.0])  # of the slab, about
HEAD_ORIGIN_MM = np.array([-98.0, -115.0, -142.0])  # first sample of the head's grid
HEAD_EXTENT_MM = (196.0, 230.0, 246.0)


class Protocol(NamedTuple):
    """What the scanner is set to, and how finely that is simulated.

    Triples are along x, y and z; ``fine_matrix`` is the matrix of the grid of veins and lesions
    over the same field of view. Pairs are drawn from, evenly. ``vendor_chances`` belong to
    `VENDORS`; ``snr`` is of white matter; ``head_mm`` is the spacing of the head's grid.
    """

    name: str
    field_t: float
    echo_time_s: float
    repetition_s: tuple[float, float]
    flip_deg: tuple[float, float]
    voxel_mm: tuple[float, float, float]
    matrix: tuple[int, int, int]
    fine_matrix: tuple[int, int, int]
    snr: tuple[float, float]
    vendor_chances: tuple[float, float, float]
    head_mm: float = 1.0


VENDORS = ("Siemens", "GE", "Philips")
PROTOCOLS = (
    Protocol("1p5T", 1.5, 0.040, (0.049, 0.057), (15, 20), (0.5, 1.0, 2.0), (384, 224, 76),
             (480, 448, 228), (13, 26), (0.4, 0.35, 0.25)),
    Protocol("3T", 3.0, 0.020, (0.027, 0.034), (12, 17), (0.5, 0.5, 2.0), (384, 448, 76),
             (480, 560, 228), (14, 30), (0.4, 0.35, 0.25)),
    Protocol("ukb", 3.0, 0.020, (0.026, 0.028), (13, 16), (0.8, 0.8, 3.0), (240, 280, 50),
             (384, 448, 200), (22, 45), (0.7, 0.15, 0.15)),
)  # fmt: skip


class Tissue(NamedTuple):
    """Proton density; T1 (s) and R2* (1/s) at 3 T and at 1.5 T."""

    density: float
    t1_3t: float
    decay_3t: float
    t1_1p5t: float
    decay_1p5t: float


TISSUES = {
    "white": Tissue(0.70, 0.85, 20.0, 0.65, 14.0),
    "grey": Tissue(0.82, 1.35, 16.5, 1.05, 11.5),
    "csf": Tissue(1.0, 4.0, 2.5, 4.0, 1.8),
    "fat": Tissue(0.95, 0.37, 28.0, 0.28, 20.0),
    "muscle": Tissue(0.78, 1.3, 33.0, 0.95, 25.0),
    "bone": Tissue(0.3, 0.4, 250.0, 0.35, 200.0),
}

# Liu et al. 2019: 13 haemodialysis, 9 traumatic brain injury, 9 stroke, 10 healthy.
GROUPS = {"haemodialysis": 13, "TBI": 9, "stroke": 9, "healthy": 10}
# How old brains look, from 0 (young) to 1: atrophy, iron and calcium come with it.
AGEING = {"haemodialysis": 0.55, "TBI": 0.25, "stroke": 0.75, "healthy": 0.45}


class Burden(NamedTuple):
    """How many have no microbleed (a share), and how many those have that have some.

    The number is ``at_least`` more than a negative binomial of this mean and shape.
    """

    without: float
    at_least: int
    mean: float
    shape: float
    most: int


BURDENS = {
    "haemodialysis": Burden(0.25, 1, 5, 0.9, 25),
    "TBI": Burden(0.12, 2, 9, 1.1, 40),
    "stroke": Burden(0.22, 1, 5, 0.9, 30),
}
HEALTHY_WITHOUT = 0.82  # the others have one or two
# Chances of the places; lesions.microbleed_places says what they are.
PLACES = {
    "haemodialysis": {"lobar": 0.3, "junction": 0.16, "deep": 0.34, "brainstem": 0.08,
                      "cerebellum": 0.12},
    "TBI": {"lobar": 0.18, "junction": 0.47, "deep": 0.1, "callosum": 0.13, "brainstem": 0.07,
            "cerebellum": 0.05},
    "stroke": {"lobar": 0.24, "junction": 0.1, "deep": 0.43, "brainstem": 0.1, "cerebellum": 0.13},
    "healthy": {"lobar": 0.5, "junction": 0.2, "deep": 0.16, "brainstem": 0.05,
                "cerebellum": 0.09},
}  # fmt: skip
# Two of five with stroke have microbleeds as amyloid makes them.
AMYLOID_SHARE, AMYLOID_PLACES = 0.4, {"lobar": 0.72, "junction": 0.28}
