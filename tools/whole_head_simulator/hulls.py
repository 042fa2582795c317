"""Hulls of the brain's parts, of the skull's inside, and depth below the folding surface."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from scipy import ndimage

from whole_head_simulator.frame import Frame
from whole_head_simulator.geometry import F, Points, capsule, ellipsoid, sigmoid, smooth_minimum

Line = TypeVar("Line", float, np.ndarray)
SYLVIAN_MM = 37  # of the bottom of the Sylvian fissure, from the midline


class Hulls(NamedTuple):
    """Signed distances (template mm) on the head's grid; ``depth`` is positive within cerebrum.

    ``inner_skull`` holds the brain with its cisterns. ``depth`` (mm) is measured from the hull and
    from its great fissures.
    """

    cerebrum: np.ndarray
    cerebellum: np.ndarray
    brainstem: np.ndarray
    inner_skull: np.ndarray
    depth: np.ndarray


def mirrored(points: Points) -> Points:
    """The same points with all of them on the right."""
    return np.abs(points[0]), points[1], points[2]


def callosal_ellipse(points: Points) -> np.ndarray:
    """Below 1 within the ellipse (y, z) that the corpus callosum runs along."""
    _, y, z = points
    return ((y + 5) / 39) ** 2 + ((z - 3) / 27) ** 2


def sylvian_height(y: Line) -> Line:
    """Height (template mm) of the Sylvian fissure."""
    return -7 - 0.45 * (y - 8)


def build_hulls(frame: Frame) -> Hulls:
    """Hulls of a head.

    Distances that reach far are measured on the halved grid.

    Parameters
    ----------
    frame : Frame

    Returns
    -------
    Hulls
    """
    points = frame.halved_points()
    hemispheres, temporal = _hemispheres(points), _temporal_lobes(points)
    cerebrum = smooth_minimum(hemispheres, temporal, 3)
    cerebellum = np.maximum(_cerebellum(points), 1.5 - temporal)
    brainstem = _brainstem(points)
    inside = np.minimum(np.minimum(cerebrum, cerebellum - 1.5), brainstem - 3.5)
    for centre, radii in (((0, -18, -14), (27, 27, 15)), ((0, -60, -17), (50, 37, 15))):
        inside = np.minimum(inside, ellipsoid(points, centre, radii))
    spacing, blur = 2 * frame.spacing_mm, 1 / frame.spacing_mm
    away = ndimage.distance_transform_edt(inside > 0) - ndimage.distance_transform_edt(inside <= 0)
    # Near the surface the formula is more exact than counting samples.
    inner_skull = np.where(np.abs(inside) < 2.5, inside, away * spacing / frame.scale)
    inner_skull = ndimage.gaussian_filter(inner_skull.astype(F), 1.6 * blur)
    folding = (cerebrum < 0) & ~_great_fissures(points)
    depth = ndimage.distance_transform_edt(folding) * spacing / frame.scale
    depth = ndimage.gaussian_filter(depth.astype(F), 0.8 * blur)
    volumes = (cerebrum.astype(F), cerebellum.astype(F), brainstem.astype(F), inner_skull, depth)
    return Hulls(*map(frame.refine, volumes))


def _tentorium(points: Points) -> np.ndarray:
    """How far the tentorium rises above its edge, towards the midline and the front."""
    x, y, _ = points
    return 10 * np.exp(-((np.abs(x) / 26) ** 2)) * np.clip((y + 98) / 45, 0, 1)


def _hemispheres(points: Points) -> np.ndarray:
    x, y, z = points
    hull = smooth_minimum(
        ellipsoid(points, (0, -17, 15), (67, 87, 61)),
        ellipsoid(points, (0, -44, 20), (67, 58, 55)), 6,
    )  # fmt: skip
    hull = smooth_minimum(hull, ellipsoid(points, (0, 26, 8), (50, 44, 43)), 6)
    # The floor: orbits in front, tentorium behind.
    front, back = sigmoid((y - 10) / 4), sigmoid((-36 - y) / 4)
    orbital = -13 + 6 * np.clip((np.abs(x) - 8) / 25, 0, 1)
    floor = -9 + front * orbital + back * (-6 + _tentorium(points))
    return np.maximum(hull, (floor - z).astype(F) * F(0.85))


def _temporal_lobes(points: Points) -> np.ndarray:
    x, y, z = mirrored(points)
    tilted = (x * F(0.985) + z * F(0.17), y, z * F(0.985) - x * F(0.17))
    lobe = ellipsoid(tilted, (36, -13, -27.5), (23, 43, 20))
    floor = -60 + 44 * sigmoid((-33 - y) / 3)
    return np.maximum(lobe, (floor - z).astype(F) * F(0.8))


def _cerebellum(points: Points) -> np.ndarray:
    hull = smooth_minimum(
        ellipsoid(mirrored(points), (23, -63, -36), (30, 32, 24)),
        ellipsoid(points, (0, -60, -29), (15, 28, 22)), 5,
    )  # fmt: skip
    roof = -9 - 8 + _tentorium(points)
    return np.maximum(hull, (points[2] - roof).astype(F) * F(0.85))


def _brainstem(points: Points) -> np.ndarray:
    """Midbrain, pons, medulla, spinal cord and the middle cerebellar peduncles."""
    stem = smooth_minimum(
        ellipsoid(points, (0, -24, -9), (17, 13, 12)),
        ellipsoid(points, (0, -25, -31), (17.5, 14, 17)), 4,
    )  # fmt: skip
    stem = smooth_minimum(stem, capsule(points, (0, -32, -44), (0, -42, -72), 8.5, 6.5), 4)
    stem = np.minimum(stem, capsule(points, (0, -42, -72), (0, -50, -150), 6.5, 5))
    peduncle = capsule(mirrored(points), (13, -33, -32), (24, -52, -35), 8, 6)
    return smooth_minimum(stem, peduncle, 3)


def _great_fissures(points: Points) -> np.ndarray:
    """Where the interhemispheric and the Sylvian fissure and the insula are."""
    x, y, z = mirrored(points)
    beyond_callosum = (callosal_ellipse(points) > 1) & (z > -12)
    between = (x < 1.6) & (beyond_callosum | (y > 36) | (y < -46))
    below = np.abs(z - sylvian_height(y))
    sylvian = (below < 2) & (x > 36) & (y < 24) & (y > -44)
    insula = (np.abs(x - SYLVIAN_MM) < 1.2) & (below < 10) & (y < 24) & (y > -32)
    return between | sylvian | insula
