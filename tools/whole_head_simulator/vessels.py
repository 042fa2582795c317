"""Veins: the named ones, those that walk, and painting them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from whole_head_simulator.fine import FineMap, splat_tube
from whole_head_simulator.geometry import F, unit
from whole_head_simulator.head import Head
from whole_head_simulator.settings import TEMPLATE_CENTRE

GALEN = (0, -38, 9)
RAY_START = TEMPLATE_CENTRE + np.array([0, 0, 4])


class Vein(NamedTuple):
    """Its kind, path (n, 3) in grid mm, and radius (mm), one or one for each point."""

    kind: str
    path: np.ndarray
    radius: float | np.ndarray


class Course(NamedTuple):
    """Control points (template mm, right side), how far each strays (mm), and radius (mm).

    A pair of radii is drawn from.
    """

    points: tuple[tuple[float, float, float], ...]
    wobble: float
    radius: float | tuple[float, float]

    def draw_radius(self, rng: np.random.Generator) -> float:
        """Radius of one such vein; nothing is drawn where it is given."""
        return rng.uniform(*self.radius) if isinstance(self.radius, tuple) else self.radius


DEEP_COURSES = (
    # internal cerebral, thalamostriate, septal, basal
    Course(((2, 3, 5), (2.2, -12, 11), (2, -26, 11), GALEN), 0.4, 0.85),
    Course(((21, -14, 17), (16, -4, 16), (7, 3, 9), (2, 3, 5)), 0.6, (0.4, 0.75)),
    Course(((4, 27, 9), (2.5, 14, 12), (2, 3, 5)), 0.5, (0.3, 0.55)),
    Course(((13, 5, -15), (18, -11, -11), (15, -26, -5), (5, -36, 5), GALEN), 0.8, (0.5, 0.9)),
)
SIGMOID_SINUS = ((44, -42, -38), (38, -34, -52), (33, -28, -62))  # from the transverse sinus on


def smooth_path(path: np.ndarray, sigma: float) -> np.ndarray:
    """A path (n, 3) smoothed along itself; ``sigma`` in points."""
    return ndimage.gaussian_filter1d(path, sigma, axis=0, mode="nearest")


def spline(
    rng: np.random.Generator, head: Head, points: Sequence[Sequence[float]] | np.ndarray,
    wobble: float = 1.0, at_least: int = 60,
) -> np.ndarray:  # fmt: skip
    """A smooth path through control points.

    Parameters
    ----------
    rng : numpy.random.Generator
        Moves each control point.
    head : Head
    points : array_like of shape (n, 3)
        Template mm.
    wobble : float
        How far (mm, standard deviation) control points move.
    at_least : int
        Points of the path, whose spacing is .7 mm or less.

    Returns
    -------
    ndarray of shape (m, 3)
        Grid mm.
    """
    moved = np.asarray(points, float) + rng.normal(0, wobble, (len(points), 3))
    corners = head.frame.from_template(moved)
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))]
    places = np.linspace(0, length[-1], max(at_least, int(length[-1] / 0.7)))
    path = np.stack([np.interp(places, length, corners[:, axis]) for axis in range(3)], 1)
    return smooth_path(path, 3.5 / (places[1] - places[0]))


def _on_skull(head: Head, directions: np.ndarray) -> np.ndarray:
    """Where rays from the middle of the head, in template directions (n, 3), meet the skull."""
    start = head.frame.from_template(RAY_START)[0]
    ends = head.frame.from_template(RAY_START + 60 * np.asarray(directions, float))
    away = np.arange(30, 125, 0.5)
    points = start + unit(ends - start)[:, None, :] * away[None, :, None]
    distance = head.grid.sample(head.hulls.inner_skull, points.reshape(-1, 3))
    first = np.argmax(distance.reshape(len(ends), -1) > -0.5, 1)
    return points[np.arange(len(ends)), first]


def sagittal_sinus(head: Head) -> np.ndarray:
    """Course (n, 3) of the superior sagittal sinus, front to back, grid mm."""
    angle = np.deg2rad(np.linspace(32, 192, 120))
    directions = np.stack([0 * angle, np.cos(angle), np.sin(angle)], 1)
    return smooth_path(_on_skull(head, directions), 3)


def sinuses(rng: np.random.Generator, head: Head, sagittal: np.ndarray) -> list[Vein]:
    """Superior sagittal, transverse with sigmoid, and straight sinus.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws how wide they are.
    head : Head
    sagittal : ndarray of shape (n, 3)
        As `sagittal_sinus` has it.

    Returns
    -------
    list of Vein
    """
    radius = np.linspace(1.2, 3.4, len(sagittal)) * rng.uniform(0.85, 1.1)
    veins = [Vein("sinus", sagittal, radius)]
    torcula = sagittal[-1]
    for side in (-1, 1):
        turn = np.linspace(0, 1, 60)
        directions = (side * np.sin(turn * 1.25), -np.cos(turn * 1.25), -0.21 - 0.16 * turn)
        transverse = _on_skull(head, np.stack(directions, 1))
        transverse = smooth_path(np.concatenate([[torcula], transverse]), 2)
        ends = head.frame.from_template(np.array(SIGMOID_SINUS) * [side, 1, 1])
        starts = np.r_[transverse[-1:], ends[:-1]]
        legs = [np.linspace(a, b, 12)[1:] for a, b in zip(starts, ends, strict=True)]
        path = smooth_path(np.concatenate([transverse, *legs]), 2)
        veins.append(Vein("sinus", path, rng.uniform(1.8, 3.3)))
    corners = head.frame.from_template([GALEN, (0, -50, 8), (0, -68, 2)])
    corners = np.concatenate([corners, [torcula]])
    places = np.linspace(0, 3, 90)
    path = np.stack([np.interp(places, range(4), corners[:, axis]) for axis in range(3)], 1)
    return [*veins, Vein("deep", smooth_path(path, 5), 1.6)]


def deep_veins(rng: np.random.Generator, head: Head) -> list[Vein]:
    """Internal cerebral, thalamostriate, septal and basal veins, and those of the striatum."""
    veins = []
    for side in (-1, 1):
        for course in DEEP_COURSES:
            path = spline(rng, head, np.array(course.points) * [side, 1, 1], course.wobble)
            veins.append(Vein("deep", path, course.draw_radius(rng)))
        for _ in range(rng.integers(2, 6)):
            veins.append(_striate_vein(rng, head, side))
    return veins


def _striate_vein(rng: np.random.Generator, head: Head, side: int) -> Vein:
    """A short vein that runs up through the putamen."""
    low = np.array([side * rng.uniform(20, 30), rng.uniform(-10, 14), rng.uniform(-6, 2)])
    middle = low + np.array([rng.normal(0, 1.5), rng.normal(0, 1.5), 7])
    high = low + np.array([side * -2 + rng.normal(0, 2), rng.normal(0, 2), 15])
    path = spline(rng, head, np.array([low, middle, high]), wobble=0.3, at_least=20)
    return Vein("striate", path, rng.uniform(0.15, 0.3))


def pontine_veins(rng: np.random.Generator, head: Head) -> list[Vein]:
    """Veins that run up the front of the pons."""
    veins = []
    for _ in range(rng.integers(2, 6)):
        x = rng.uniform(-14, 14)
        course = [
            [x, -11 - abs(x) * 0.25, -42],
            [x * 0.9, -10 - abs(x) * 0.25, -30],
            [x * 0.7, -12 - abs(x) * 0.2, -16],
        ]
        path = spline(rng, head, course, wobble=0.8, at_least=30)
        veins.append(Vein("pontine", path, rng.uniform(0.25, 0.5)))
    return veins


def paint_veins(
    rng: np.random.Generator, fine: FineMap, veins: Sequence[Vein], widening: float
) -> float:
    """Put veins into the fine map, in place.

    Parameters
    ----------
    rng : numpy.random.Generator
    fine : FineMap
        Empty as yet.
    veins : sequence of Vein
    widening : float
        What all radii are multiplied with.

    Returns
    -------
    float
        Susceptibility (ppm) of blood in all of them.
    """
    for vein in veins:
        radius = np.broadcast_to(np.asarray(vein.radius, float), len(vein.path)) * widening
        splat_tube(rng, fine, vein.path, radius)
    np.clip(fine.chi, 0, 1, out=fine.chi)
    chi = rng.uniform(0.3, 0.6)
    fine.chi *= F(chi)
    return chi
