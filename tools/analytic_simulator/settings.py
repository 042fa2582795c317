"""What is simulated: grids, tissues, cohort, and the courses of the named vessels."""

from __future__ import annotations

from typing import NamedTuple

GYROMAGNETIC_MHZ_PER_T = 42.577
COARSE_MM = 1.25  # grid of the signed distances
BULK_MM, BULK_POINTS = 2.5, 160  # grid of the field of air and bone, which reaches beyond the slab
FINE_MM, FINE_SLICE_MM = 0.53, 0.65  # grid of the signal, at most
FIELD_OF_VIEW_MM = (180.0, 225.0)
SLAB_MM = (-60.0, 84.0)  # lowest and highest slice, canonical
MARGIN_MM = 8.0  # simulated above and below the slices that are kept
TISSUE_PPM, BONE_PPM = -9.4, -2.0  # soft tissue against air; bone against soft tissue
FIELD_LIMIT_PPM = 6.0

CEREBRUM_CENTRE, CEREBRUM_RADII = (0, -17, 12), (67, 88, 66)

# Liu et al. 2019: 13 haemodialysis, 9 traumatic brain injury, 9 stroke, 10 healthy.
GROUPS = {"haemodialysis": 13, "TBI": 9, "stroke": 9, "healthy": 10}
AGES = {"haemodialysis": (38, 82), "TBI": (18, 65), "stroke": (50, 88), "healthy": (22, 80)}
# How many have microbleeds, and how many more than one those have on average.
LESIONS = {"TBI": (0.8, 8), "haemodialysis": (0.6, 4), "stroke": (0.65, 5)}
MOST_LESIONS = 40
# Chances of lobar, deep and mixed microbleeds.
PATTERNS = {
    "stroke": (0.35, 0.35, 0.3),
    "haemodialysis": (0.25, 0.35, 0.4),
}
# Chances of the places of each pattern; lesions.microbleed_places says what they are.
PLACES = {
    "lobar": {"lobar": 0.93, "cerebellum": 0.07},
    "deep": {
        "basal_ganglia": 0.34,
        "thalamus": 0.26,
        "brainstem": 0.14,
        "dentate": 0.1,
        "capsules": 0.1,
        "deep_white_matter": 0.06,
    },
    "tbi": {
        "junction": 0.62,
        "callosum": 0.14,
        "deep_white_matter": 0.09,
        "lobar": 0.05,
        "brainstem": 0.05,
        "basal_ganglia": 0.03,
        "cerebellum": 0.02,
    },
}


class Tissue(NamedTuple):
    """Proton density, T1 (ms) at 3 T and 1.5 T, R2* (1/s) at 3 T, susceptibility (ppm).

    Iron that gathers with age scales R2* and susceptibility where ``iron`` is set. A range is
    drawn from.
    """

    density: float | tuple[float, float]
    t1_3t: float
    t1_1p5t: float
    decay: float
    chi: float | tuple[float, float]
    iron: bool = False


TISSUES = {
    "white": Tissue(0.67, 850, 620, 20, -0.03),
    "grey": Tissue((0.84, 0.92), 1350, 1050, 17, 0.02),
    "csf": Tissue((1.0, 1.45), 4200, 4200, 2, (-0.02, 0.01)),
    "caudate": Tissue(0.80, 1250, 950, 24, 0.04, iron=True),
    "putamen": Tissue(0.80, 1200, 920, 28, 0.05, iron=True),
    "pallidum": Tissue(0.74, 1000, 780, 44, 0.13, iron=True),
    "thalamus": Tissue(0.77, 1150, 880, 22, 0.02),
    "red_nucleus": Tissue(0.74, 1000, 800, 38, 0.10, iron=True),
    "substantia_nigra": Tissue(0.74, 1000, 800, 42, 0.11, iron=True),
    "dentate": Tissue(0.76, 1050, 820, 38, 0.13, iron=True),
    "muscle": Tissue(0.75, 1300, 1000, 32, 0),
    "fat": Tissue(0.85, 380, 300, 40, 0),
    "bone": Tissue(0.04, 400, 350, 400, 0),
    "marrow": Tissue(0.30, 450, 400, 90, 0),
    "pineal": Tissue(0.8, 1400, 1100, 20, 0.02),
    "choroid_plexus": Tissue(0.85, 1700, 1400, 24, 0.05),
    "vein": Tissue(0.85, 1700, 1400, 50, 0),
}
DECAY_1P5T = 0.62  # R2* at 1.5 T over that at 3 T, but for fluid


class Course(NamedTuple):
    """A vessel by its canonical control points (mm, right side) and radius (mm, or a range).

    All points of one participant move together by ``shift`` (mm) and the line wobbles by
    ``wobble`` (mm).
    """

    points: tuple[tuple[float, float, float], ...]
    wobble: float
    radius: float | tuple[float, float]
    shift: float = 0.0


TORCULA = (0.0, -100.0, -4.0)
STRAIGHT_SINUS = Course(((0, -40, 6), (0, -55, 4), (0, -78, -4), TORCULA), 0.3, 2.2)
TRANSVERSE_SINUS = Course(
    (TORCULA, (30, -95, -13), (55, -70, -17), (59, -52, -24), (50, -42, -42), (40, -35, -60)),
    0.3, 3.2,
)  # fmt: skip
SIDE_VEINS = (
    # internal cerebral, anterior septal, thalamostriate, another septal
    Course(((3, 4, 12), (2.2, -10, 12.5), (2, -26, 10), (1.5, -36, 9), (0, -42, 6)), 0.4,
           (0.8, 1.2)),
    Course(((14, 16, 16), (13, 6, 12), (5, 3, 11), (3, 3, 12)), 0.4, (0.35, 0.7), 0.5),
    Course(((17, -14, 17), (14, 0, 14), (5, 4, 11)), 0.5, (0.4, 0.7), 0.5),
    Course(((2.5, 24, 6), (2.5, 10, 11), (3, 4, 12)), 0.3, (0.3, 0.6)),
    # basal, atrial, cavernous sinus, superficial middle cerebral
    Course(((10, 0, -17), (16, -14, -13), (15, -28, -4), (6, -38, 3), (0, -42, 6)), 0.6,
           (0.6, 1.1), 0.5),
    Course(((20, -42, 14), (10, -38, 11), (2, -36, 9)), 0.5, (0.3, 0.6)),
    Course(((10, 10, -30), (11, 0, -30), (12, -10, -32)), 0.3, 3.0),
    Course(((50, 15, -8), (46, 5, -4), (48, -8, 2), (52, -22, 9)), 1.0, (0.5, 0.9), 1.0),
)  # fmt: skip
SIDE_ARTERIES = (
    # internal carotid, middle, anterior and posterior cerebral, vertebral
    Course(((14, 4, -60), (12, 6, -36), (9, 2, -28), (8, 4, -18)), 0.4, 2.2),
    Course(((8, 4, -18), (22, 4, -17), (36, 4, -14), (42, 2, -6), (44, -8, 2)), 0.8, 1.3),
    Course(((8, 4, -18), (2, 14, -14), (1.5, 34, -2), (1.5, 38, 14), (1.5, 22, 30), (1.5, -4, 34)),
           0.5, 1.0),
    Course(((0, -12, -20), (8, -18, -17), (14, -30, -10), (16, -45, -2)), 0.6, 1.0),
    Course(((12, -36, -70), (5, -24, -52), (0, -14, -44)), 0.5, 1.5),
)  # fmt: skip
BASILAR = Course(((0, -12, -44), (0, -11, -32), (0, -12, -20)), 0.6, 1.6)
