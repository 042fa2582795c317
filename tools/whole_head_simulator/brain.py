"""Ventricles, cerebellar folia, and how deep each place lies in tissue."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np

from whole_head_simulator.cortex import Folds, fold, great_fissures, sulci
from whole_head_simulator.frame import Frame
from whole_head_simulator.geometry import F, Points, capsule, ellipsoid, smooth_minimum
from whole_head_simulator.hulls import Hulls, mirrored

# Lateral ventricle (right): from, to (template mm), radius at either end (mm).
LATERAL_VENTRICLE = (
    ((9, 30, 0), (10, 20, 11), 3.2, 5.0),
    ((10, 20, 11), (13, 0, 19), 5.0, 5.2),
    ((13, 0, 19), (18, -22, 21), 5.2, 5.5),
    ((18, -22, 21), (26, -40, 13), 5.5, 7.0),
    ((26, -40, 13), (24, -66, 6), 6.5, 2.5),
    ((26, -40, 13), (33, -32, -6), 6.0, 3.0),
    ((33, -32, -6), (31, -12, -18), 2.8, 2.2),
)


class Brain(NamedTuple):
    """What is tissue and what is fluid, on the head's grid.

    Attributes
    ----------
    folds : Folds
    depth : ndarray of float32
        Into tissue from the nearest fluid, mm; negative in fluid. In brainstem and cerebellum
        stretched, so that little or much of them is cortex.
    lateral_ventricles, ventricles : ndarray of float32
        Signed distances, mm; of the lateral ones alone, and of all.
    """

    folds: Folds
    depth: np.ndarray
    lateral_ventricles: np.ndarray
    ventricles: np.ndarray


def build_brain(
    rng: np.random.Generator, frame: Frame, points: Points, hulls: Hulls, age: float
) -> Brain:
    """Draw a brain.

    Parameters
    ----------
    rng : numpy.random.Generator
    frame : Frame
    points : sequence of three ndarray
        Template coordinates of the head's grid.
    hulls : Hulls
    age : float
        0 to 1.

    Returns
    -------
    Brain
    """
    folds = fold(rng, frame, hulls.depth)
    fluid = sulci(rng, frame, hulls.depth, folds, age)
    fluid = np.minimum(fluid, great_fissures(rng, frame, points, age))
    cerebrum = np.minimum(-hulls.cerebrum, fluid).astype(F)
    size = rng.uniform(0.75, 1.0) + 0.55 * age
    lateral = _lateral_ventricles(points, size).astype(F)
    ventricles = np.minimum(lateral, _other_ventricles(points, age)).astype(F)
    cerebellum = _cerebellum(rng, frame, points, hulls.cerebellum)
    brainstem = -hulls.brainstem * F(5)
    depth = np.maximum(np.maximum(cerebrum, cerebellum), np.minimum(brainstem, 15))
    # Four times the distance: there is no cortex along ventricles.
    depth = np.minimum(depth, np.where(ventricles < 8, ventricles * 4, 40)).astype(F)
    return Brain(folds, depth, lateral, ventricles)


def _lateral_ventricles(points: Points, size: float) -> np.ndarray:
    right = mirrored(points)
    parts = (
        capsule(right, first, last, first_radius * size, last_radius * size)
        for first, last, first_radius, last_radius in LATERAL_VENTRICLE
    )
    whole = reduce(lambda a, b: smooth_minimum(a, b, 3), parts)
    return np.maximum(whole, 1.6 - np.abs(points[0]))  # septum


def _other_ventricles(points: Points, age: float) -> np.ndarray:
    third = ellipsoid(points, (0, -10, 0), (2.2 + 2.2 * age, 17, 12))
    fourth = ellipsoid(points, (0, -43, -32), (6.5, 5.5, 10))
    aqueduct = capsule(points, (0, -27, -4), (0, -38, -24), 1.0, 1.2)
    return np.minimum(third, np.minimum(fourth, aqueduct))


def _cerebellum(
    rng: np.random.Generator, frame: Frame, points: Points, hull: np.ndarray
) -> np.ndarray:
    """Depth into cerebellar tissue between the folia, which fan out from the fourth ventricle."""
    x, y, z = points
    phase = frame.noise(rng, 6) * F(0.9)
    spacing_mm = rng.uniform(3.6, 4.8)
    away = np.sqrt(((y + 48) / 1.0) ** 2 + ((z + 30) * 1.3) ** 2 + (0.35 * np.abs(x)) ** 2)
    angle = np.arctan2(z + 30, -(y + 46)) * 20
    turns = angle * (0.5 + away / 50) / spacing_mm + phase
    from_fissure = np.abs((turns % 1) - 0.5) * spacing_mm
    outer = np.clip(1 - (-hull) / 11, 0, 1)  # 1 at the surface
    folia = from_fissure * 1.4 - 0.5 * outer - 0.1 + 4 * (1 - outer) * (outer < 0.3)
    return np.minimum(-hull * 1.4, np.where(outer > 0, folia, 9)).astype(F)
