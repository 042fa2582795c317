"""Grids, signed distances and rotations.

Signed distances are in mm and negative inside. Points come as three arrays x, y, z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

F = np.float32
Points = Sequence[np.ndarray]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of length 1; what has no length stays so."""
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)


def rotation(pitch: float, roll: float, yaw: float) -> np.ndarray:
    """Matrix (3, 3) that turns about x, then y, then z, by angles in degrees."""
    a, b, c = np.deg2rad([pitch, roll, yaw])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


@dataclass(frozen=True)
class Grid:
    """Samples along the axes of the image.

    Attributes
    ----------
    origin, spacing : ndarray of shape (3,)
        First sample and distance between samples along x, y and z, mm.
    shape : tuple of int
        Samples along z, y and x.
    """

    origin: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, ...]

    @property
    def matrix(self) -> np.ndarray:
        """Samples along x, y and z."""
        return np.array(self.shape[::-1])

    def lines(self) -> list[np.ndarray]:
        """Coordinates (mm) of the samples along x, y and z."""
        return [
            first + step * np.arange(count)
            for first, step, count in zip(self.origin, self.spacing, self.shape[::-1], strict=True)
        ]

    def nearest(self, point: np.ndarray) -> np.ndarray:
        """Index along x, y and z of the sample nearest to a point (3,); may lie outside."""
        return np.round((point - self.origin) / self.spacing).astype(int)

    def holds(self, index: np.ndarray, margin: int) -> bool:
        """Whether an index along x, y and z has at least ``margin`` samples on every side."""
        return bool((index >= margin).all() and (index < self.matrix - margin).all())

    def sample(self, volume: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Values (n,) of a volume at points (n, 3), linear; the border's value outside."""
        index = (np.atleast_2d(points) - self.origin) / self.spacing
        return ndimage.map_coordinates(volume, index[:, ::-1].T, order=1, mode="nearest")

    def slope(self, volume: np.ndarray, points: np.ndarray, reach_mm: float = 1.0) -> np.ndarray:
        """Gradient (n, 3) per mm of a volume at points (n, 3), from values ``reach_mm`` away."""
        slopes = np.empty((len(points), 3))
        for axis in range(3):
            away = np.zeros(3)
            away[axis] = reach_mm
            ahead, behind = (self.sample(volume, points + side * away) for side in (1, -1))
            slopes[:, axis] = (ahead - behind) / (2 * reach_mm)
        return slopes

    def pick(
        self, rng: np.random.Generator, mask: np.ndarray, count: int, jitter: float = 0.4
    ) -> np.ndarray:
        """Random points (count, 3) in a mask, up to ``jitter`` samples off its samples.

        Where the mask is empty, nothing is drawn and there are no points.
        """
        inside = np.flatnonzero(mask)
        if not len(inside):
            return np.zeros((0, 3))
        chosen = rng.choice(inside, count)
        index = np.array(np.unravel_index(chosen, mask.shape))[::-1].T
        return (index + rng.uniform(-jitter, jitter, (count, 3))) * self.spacing + self.origin


def interpolate_along(array: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis of a volume at fractional indices."""
    places = np.clip(places, 0, array.shape[axis] - 1.0001)
    before = places.astype(int)
    shape = [1, 1, 1]
    shape[axis] = -1
    share = (places - before).astype(F).reshape(shape)
    return np.take(array, before, axis) * (1 - share) + np.take(array, before + 1, axis) * share


def ramp(value: np.ndarray, width: float = 1.0) -> np.ndarray:
    """0 where a value is well below 0, 1 where it is well above, straight over ``width``."""
    return np.clip(np.asarray(value, F) / F(width) + F(0.5), 0, 1)


def sigmoid(value: np.ndarray) -> np.ndarray:
    """Logistic function."""
    return 1 / (1 + np.exp(-np.clip(value, -30, 30)))


def ellipsoid(points: Points, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Signed distance from an ellipsoid, exact to first order at its surface; 0 at its centre."""
    away = [p - F(c) for p, c in zip(points, centre, strict=True)]
    a, b, c = radii
    scaled = np.sqrt((away[0] / F(a)) ** 2 + (away[1] / F(b)) ** 2 + (away[2] / F(c)) ** 2)
    slope = np.sqrt((away[0] / F(a**2)) ** 2 + (away[1] / F(b**2)) ** 2 + (away[2] / F(c**2)) ** 2)
    return scaled * (scaled - 1) / np.maximum(slope, F(1e-4))


def capsule(
    points: Points, first: Sequence[float], last: Sequence[float],
    first_radius: float, last_radius: float,
) -> np.ndarray:  # fmt: skip
    """Signed distance from a rod with round ends whose radius changes from end to end."""
    start, course = np.asarray(first, float), np.asarray(last, float) - np.asarray(first, float)
    away = [p - F(s) for p, s in zip(points, start, strict=True)]
    x, y, z = (F(length) for length in course)
    along = (away[0] * x + away[1] * y + away[2] * z) / F(course @ course)
    along = np.clip(along, 0, 1)
    distance = np.sqrt(
        (away[0] - along * x) ** 2 + (away[1] - along * y) ** 2 + (away[2] - along * z) ** 2
    )
    return distance - (F(first_radius) + along * F(last_radius - first_radius))


def smooth_minimum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Union of two signed distances, rounded over ``width`` mm."""
    share = np.clip(0.5 + 0.5 * (b - a) / F(width), 0, 1)
    return b * (1 - share) + a * share - F(width) * share * (1 - share)
