"""Microbleeds and calcifications: spheres in the substance of the brain."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from random_walk_simulator.grid import Grid
from random_walk_simulator.head import Head

MICROBLEED, CALCIFICATION = "microbleed", "calcification"
APART_MM = 9.0
TRIES = 4000
GROUP_SHARES = {"free": 0.3, "some": 0.45, "many": 0.25}
# How many microbleeds a participant of a group has: lowest, and one more than the highest.
COUNTS = {"some": (1, 6), "many": (8, 20)}


class Lesion(NamedTuple):
    """A sphere: centre and diameter in mm, susceptibility in ppm."""

    name: str
    centre: np.ndarray
    diameter: float
    chi: float


def draw_lesions(rng: np.random.Generator, head: Head, grid: Grid) -> tuple[str, list[Lesion]]:
    """Draw the group and its lesions, and paint them into the head.

    Parameters
    ----------
    rng : numpy.random.Generator
    head : Head
        Its maps are changed.
    grid : Grid

    Returns
    -------
    group : str
    lesions : list of Lesion
        Microbleeds first. Fewer than drawn where the brain has no place left.
    """
    group = str(rng.choice(list(GROUP_SHARES), p=list(GROUP_SHARES.values())))
    counts = {name: int(rng.integers(low, high)) for name, (low, high) in COUNTS.items()}
    lesions: list[Lesion] = []
    _place(rng, head, grid, lesions, MICROBLEED, counts.get(group, 0))
    _place(rng, head, grid, lesions, CALCIFICATION, int(rng.integers(0, 7)))
    return group, lesions


def _place(
    rng: np.random.Generator, head: Head, grid: Grid, lesions: list[Lesion], name: str, count: int
) -> None:
    """Add lesions of one kind, apart from each other, from veins and from the surface."""
    for _ in range(TRIES):
        if not count:
            return
        centre = np.array([rng.uniform(-1, 1) for _ in range(3)]) * head.semiaxes * 0.95
        voxel = tuple(grid.nearest(centre))
        if not head.substance[voxel] or head.veins[voxel] or head.depth[voxel] > 0.96:
            continue
        if any(np.linalg.norm(centre - other.centre) < APART_MM for other in lesions):
            continue
        radius = float(np.clip(np.exp(rng.normal(np.log(1.3), 0.35)), 0.8, 3.2))
        chi = rng.uniform(0.6, 2.0) if name == MICROBLEED else -rng.uniform(0.6, 1.8)
        _paint(head, grid, lesion := Lesion(name, centre, 2 * radius, chi))
        lesions.append(lesion)
        count -= 1


def _paint(head: Head, grid: Grid, lesion: Lesion) -> None:
    ball = grid.ball(lesion.centre, lesion.diameter / 2)
    assert ball is not None  # The field of view is larger than the head.
    window, inside = ball
    head.susceptibility[window][inside] = lesion.chi
    head.decay[window][inside] = 120
    head.density[window][inside] = 0.4
