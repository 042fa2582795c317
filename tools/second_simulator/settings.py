"""What is simulated: protocols, tissues, cohort, and the drawn parts of the head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GYROMAGNETIC_MHZ_PER_T = 42.577
COARSE_MM = 1.5
EXTRA_SLICES_MM = 9.0
AIR_PPM, BONE_PPM, FAT_PPM, FAT_SHIFT_PPM = 9.4, -2.0, 0.65, -3.4
GREY_PPM, WHITE_PPM, VEIN_PPM = 0.02, -0.03, 0.43
MAP_NAMES = ("t1", "gm", "wm")
MAP_ORIGIN = np.array([-98.0, -134.0, -72.0])
# Liu et al. 2019: 13 haemodialysis, 9 traumatic brain injury, 9 stroke, 10 healthy.
COHORT = ("haemodialysis",) * 13 + ("tbi",) * 9 + ("stroke",) * 9 + ("healthy",) * 10
MEAN_LESIONS = {"haemodialysis": 5.0, "tbi": 7.0, "stroke": 5.0, "healthy": 0.25}
# Weights of lobar, deep and infratentorial places.
PLACES = {
    "haemodialysis": (0.5, 0.3, 0.2),
    "tbi": (0.75, 0.15, 0.1),
    "stroke": (0.45, 0.35, 0.2),
    "healthy": (0.7, 0.2, 0.1),
}
AGES = {"haemodialysis": (58, 12), "tbi": (38, 14), "stroke": (68, 10), "healthy": (55, 15)}


@dataclass(frozen=True)
class Protocol:
    """What the scanner is set to; lengths in mm, times in s."""

    name: str
    field_t: float
    echo_times: tuple[float, ...]
    repetition_time: float
    flip_deg: tuple[float, float]
    voxel: tuple[float, float, float]
    fine: tuple[float, float, float]  # simulation grid over acquisition grid
    field_of_view: tuple[float, float]
    slices: tuple[int, int]
    snr: tuple[float, float]  # of white matter at the first echo


PROTOCOLS = {
    "1.5T": Protocol("1p5T", 1.5, (0.040,), 0.049, (15, 20), (0.5, 1, 2), (1.2, 1.6, 2.0),
                     (190, 224), (64, 74), (9, 20)),
    "3T": Protocol("3T", 3.0, (0.020,), 0.028, (12, 16), (0.5, 0.5, 2), (1.15, 1.15, 2.0),
                   (184, 222), (64, 74), (11, 24)),
    "ukb": Protocol("ukb", 3.0, (0.0094, 0.020), 0.027, (14, 16), (0.8, 0.8, 3), (1.4, 1.4, 3.0),
                    (192, 230), (46, 50), (22, 45)),
}  # fmt: skip

# T1 (s) at 1.5 T and 3 T, proton density, R2* (1/s) at 1.5 T and 3 T.
TISSUES = {
    "grey": ((1.10, 1.35), 0.84, (10.5, 16.0)),
    "white": ((0.70, 0.95), 0.66, (13.5, 20.0)),
    "csf": ((4.0, 4.2), 1.0, (2.5, 4.0)),
    "vein": ((1.45, 1.75), 0.80, (18.0, 50.0)),
    "fat": ((0.26, 0.34), 0.90, (22.0, 35.0)),
    "muscle": ((0.95, 1.30), 0.75, (25.0, 35.0)),
    "marrow": ((0.30, 0.38), 0.35, (45.0, 80.0)),
    "bone": ((0.5, 0.6), 0.06, (250.0, 400.0)),
}

# Iron-rich grey matter: MNI centre of the right one, radii, yaw and pitch (degrees), ppm.
NUCLEI = {
    "caudate_head": ((12.5, 14, 5), (4.5, 8, 8.5), 12, 0, 0.04),
    "caudate_body": ((16, -3, 18), (3.5, 14, 4), 12, -10, 0.035),
    "putamen": ((26, 3, 0), (5, 15, 9.5), 14, 0, 0.04),
    "pallidum": ((19, -3, -1), (3.5, 8.5, 5.5), 22, 0, 0.13),
    "thalamus": ((11, -18, 8), (6.5, 12.5, 8), 28, 0, 0.02),
    "substantia_nigra": ((10, -17, -12), (2.6, 6.5, 3), 38, 15, 0.11),
    "red_nucleus": ((5, -20, -8), (2.8, 3.2, 3.8), 0, 0, 0.10),
    "dentate": ((15, -58, -34), (6, 8.5, 5), 25, 20, 0.15),
}

# Air in the head: MNI centre (right side), radii. The midline ones are drawn twice, harmlessly.
AIR_SPACES = (
    ((11, 73, -2), (13, 5, 12)),
    ((6, 45, -40), (5, 17, 9)),
    ((7, 14, -42), (8, 12, 8)),
    ((30, 36, -67), (13, 15, 15)),
    ((4, 42, -62), (6, 26, 17)),
    ((0, 2, -88), (11, 9, 28)),
    ((54, -42, -46), (7, 10, 13)),
    ((64, -20, -38), (17, 3.5, 3.5)),
)

# Deep veins and large arteries as MNI points of the right side, radius in mm.
DEEP_VEINS = (
    (((2.5, -2, 13), (3, -15, 15), (2.5, -30, 14), (1, -41, 9)), 1.0),
    (((20, -22, 26), (17, -10, 23), (11, 0, 18), (2.5, -2, 13)), 0.7),
    (((7, 24, 12), (5, 12, 16), (3.5, 3, 16), (2.5, -2, 13)), 0.5),
    (((26, -40, 20), (18, -38, 20), (8, -40, 13), (1, -41, 9)), 0.6),
    (((11, 3, -16), (19, -10, -14), (19, -24, -8), (11, -34, 0), (1, -41, 7)), 0.7),
)
ARTERIES = (
    (((14, 2, -34), (13, 6, -24), (14, 2, -18), (22, 2, -18), (34, 4, -16), (42, 2, -6)), 1.3),
    (((13, 4, -18), (4, 14, -18), (2, 26, -10), (2, 34, 6)), 1.0),
    (((0, -18, -36), (0, -17, -26), (0, -17, -19), (8, -20, -16), (18, -28, -10)), 1.2),
)
