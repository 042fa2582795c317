"""Deep grey nuclei with their iron, and lesions of white matter."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from whole_head_simulator.brain import Brain
from whole_head_simulator.frame import Frame
from whole_head_simulator.geometry import F, Points, capsule, ellipsoid, ramp
from whole_head_simulator.hulls import mirrored


class Nucleus(NamedTuple):
    """Susceptibility (ppm) and how it is drawn, and share of grey matter.

    Iron that gathers with age scales the susceptibility where ``iron`` is set.
    """

    chi: float
    iron: bool
    spread: tuple[float, float]
    grey: float


NUCLEI = {
    "thalamus": Nucleus(0.02, False, (0.5, 1.8), 0.75),
    "caudate": Nucleus(0.04, True, (0.8, 1.3), 1.0),
    "putamen": Nucleus(0.04, True, (0.8, 1.4), 1.0),
    "pallidum": Nucleus(0.13, True, (0.8, 1.25), 0.45),
    "substantia_nigra": Nucleus(0.11, True, (0.8, 1.3), 0.5),
    "red_nucleus": Nucleus(0.10, True, (0.8, 1.3), 0.4),
    "dentate": Nucleus(0.15, True, (0.7, 1.2), 0.4),
}


class DeepGrey(NamedTuple):
    """Susceptibility (ppm), share of grey matter, and the mask of each nucleus by its name."""

    chi: np.ndarray
    grey: np.ndarray
    masks: dict[str, np.ndarray]


def _distance(name: str, points: Points) -> np.ndarray:
    """Signed distance (mm) from a nucleus on either side."""
    right = mirrored(points)
    x, y, z = right
    if name == "thalamus":
        return ellipsoid(right, (11.5, -18, 7), (8.5, 14.5, 9))
    if name == "caudate":
        head = ellipsoid(right, (13.5, 15, 6), (4.8, 10, 8.5))
        return np.minimum(head, capsule(right, (15.5, 6, 14), (22, -22, 22), 3.2, 1.5))
    if name == "putamen":
        return ellipsoid((x - 0.18 * (y - 2), y, z), (27, 2, 1), (5.5, 15.5, 9.5))
    if name == "pallidum":
        return ellipsoid((x - 0.2 * (y + 3), y, z), (19.5, -3, -1), (4.2, 8.5, 6))
    if name == "substantia_nigra":
        tilted = (x + 0.6 * (y + 18), y, z + 0.25 * (y + 18))
        return ellipsoid(tilted, (10, -17, -11), (2.2, 7, 3.2))
    if name == "red_nucleus":
        return ellipsoid(right, (5.2, -20, -8), (3.0, 3.2, 3.6))
    if name == "dentate":
        shell = ellipsoid(right, (16, -58, -35), (6.5, 9, 6.5))
        shell = np.maximum(shell, -ellipsoid(right, (14.5, -56, -35), (4.5, 6.5, 4)))
        return shell + 0.8 * np.sin(x * 1.9 + z * 1.7 + y * 1.3)  # crumpled
    raise KeyError(name)


def build_nuclei(
    rng: np.random.Generator, frame: Frame, points: Points, brain: Brain, age: float
) -> DeepGrey:
    """Draw the nuclei.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws how much iron each holds.
    frame : Frame
    points : sequence of three ndarray
        Template coordinates of the head's grid.
    brain : Brain
    age : float
        0 to 1.

    Returns
    -------
    DeepGrey
    """
    iron = rng.uniform(0.7, 1.0) + 0.6 * age
    chi, grey = np.zeros(frame.grid.shape, F), np.zeros(frame.grid.shape, F)
    masks = {}
    for name, nucleus in NUCLEI.items():
        share = ramp(-_distance(name, points), 1.6)
        stronger = iron if nucleus.iron else 1.0
        drawn = nucleus.chi * stronger * rng.uniform(*nucleus.spread)
        masks[name] = share > 0.5
        chi = chi * (1 - share) + share * F(drawn)
        grey = np.maximum(grey, share * F(nucleus.grey))
    chi = ndimage.gaussian_filter(chi, 0.6 / frame.spacing_mm) * ramp(brain.depth)
    return DeepGrey(chi, grey, masks)


def white_matter_lesions(
    rng: np.random.Generator, frame: Frame, brain: Brain, cerebrum: np.ndarray, age: float
) -> np.ndarray:
    """How much of a lesion of white matter there is (0 to 1), mostly around the ventricles.

    Parameters
    ----------
    rng : numpy.random.Generator
    frame : Frame
    brain : Brain
    cerebrum : ndarray
        Signed distance from its hull, mm.
    age : float
        0 to 1; the young have none.

    Returns
    -------
    ndarray of float32
    """
    near = np.exp(-np.maximum(brain.lateral_ventricles, 0) / 5)
    lesions = np.clip(frame.noise(rng, 4) - 1.5 + 1.3 * age * near, 0, 1) * (age > 0.35)
    return (np.clip(lesions * 2, 0, 1) * ramp(brain.depth - 3.5) * (cerebrum < 0)).astype(F)
