"""Signed distances, random waves, rotations and lines: the pieces the head is made of.

Signed distances are in mm and negative inside. Points come as three arrays x, y, z that broadcast.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

F = np.float32


@dataclass(frozen=True)
class Grid:
    """A grid along the slab's axes: centre of the first voxel and spacing (3,) in mm, shape."""

    origin: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, int, int]

    def axes(self) -> list[np.ndarray]:
        """Centres (mm) along x, y and z."""
        return [
            (o + h * np.arange(n)).astype(F)
            for o, h, n in zip(self.origin, self.spacing, self.shape, strict=True)
        ]

    def index(self, point: np.ndarray) -> tuple[int, ...]:
        """The voxel that holds a point (3,), or the nearest where the point lies outside."""
        nearest = np.round((point - self.origin) / self.spacing).astype(int)
        return tuple(np.clip(nearest, 0, np.array(self.shape) - 1))


def rotation(about_x: float, about_y: float, about_z: float) -> np.ndarray:
    """Matrix (3, 3) that turns about x, then y, then z, by angles in degrees."""
    a, b, c = np.deg2rad([about_x, about_y, about_z])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def unit(vector: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of length 1; what has no length stays so."""
    return vector / (np.linalg.norm(vector, axis=-1, keepdims=True) + 1e-6)


class Waves:
    """A smooth random field of about unit variance: a sum of plane waves.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws directions, lengths and phases.
    length : float
        Wave length in mm.
    count : int
        Number of waves.
    spread : float
        Standard deviation of the logarithm of their lengths.
    """

    def __init__(
        self, rng: np.random.Generator, length: float, count: int = 20, spread: float = 0.2
    ) -> None:
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        lengths = length * np.exp(rng.normal(0, spread, (count, 1)))
        self.wave_vectors = (direction * (2 * np.pi / lengths)).astype(F)
        self.phases = rng.uniform(0, 2 * np.pi, count).astype(F)
        self.amplitude = F(np.sqrt(2.0 / count))

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Values at points (mm)."""
        total = np.zeros(np.broadcast(x, y, z).shape, F)
        for k, phase in zip(self.wave_vectors, self.phases, strict=True):
            total += np.cos(k[0] * x + k[1] * y + k[2] * z + phase)
        return total * self.amplitude


def ellipsoid(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: Sequence[float], radii: Sequence[float]
) -> np.ndarray:
    """Signed distance from an ellipsoid, exact to first order at its surface; 0 at its centre."""
    a, b, c = ((p - F(o)) / F(r) for p, o, r in zip((x, y, z), centre, radii, strict=True))
    scaled = np.sqrt(a * a + b * b + c * c)
    slope = np.sqrt((a / F(radii[0])) ** 2 + (b / F(radii[1])) ** 2 + (c / F(radii[2])) ** 2)
    distance = scaled * (scaled - 1) / (slope + F(1e-6))
    return np.maximum(distance, -F(min(radii)))


def capsules(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, points: Sequence[Sequence[float]]
) -> np.ndarray:
    """Signed distance from a chain of tapered capsules; ``points`` are (x, y, z, radius)."""
    nearest: np.ndarray | None = None
    for first, last in itertools.pairwise(points):
        p, q = np.asarray(first, F), np.asarray(last, F)
        d = q[:3] - p[:3]
        along = ((x - p[0]) * d[0] + (y - p[1]) * d[1] + (z - p[2]) * d[2]) / F(d @ d)
        t = np.clip(along, 0, 1)
        distance = np.sqrt(
            (x - p[0] - t * d[0]) ** 2 + (y - p[1] - t * d[1]) ** 2 + (z - p[2] - t * d[2]) ** 2
        )
        distance -= p[3] + t * (q[3] - p[3])
        nearest = distance if nearest is None else np.minimum(nearest, distance)
    assert nearest is not None
    return nearest


def box(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance from where both ``u`` and ``v`` are negative; distances themselves."""
    return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0)


def smooth_minimum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Union of two signed distances, rounded over ``width`` mm."""
    share = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * share - width * share * (1 - share)


def smooth_maximum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Intersection of two signed distances, rounded over ``width`` mm."""
    return -smooth_minimum(-a, -b, width)


def covered(distance: np.ndarray, width: float) -> np.ndarray:
    """Share (0..1) of a voxel of ``width`` mm inside what the signed distance is of."""
    return np.clip(F(0.5) - distance / F(width), 0, 1)


def wobbly_line(
    rng: np.random.Generator, points: Sequence[Sequence[float]] | np.ndarray, wobble: float,
    step: float = 0.3,
) -> np.ndarray:  # fmt: skip
    """A smooth line through control points.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the wobble.
    points : array_like of shape (n, 3)
        Control points (mm).
    wobble : float
        How far (mm, standard deviation) the line strays.
    step : float
        Spacing of the result, mm.

    Returns
    -------
    ndarray of shape (m, 3)
    """
    corners = np.asarray(points, float)
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))]
    count = max(int(length[-1] / step), 4)
    places = np.linspace(0, length[-1], count)
    line = np.stack([np.interp(places, length, corners[:, i]) for i in range(3)], 1)
    line = ndimage.gaussian_filter1d(line, 3.0 / step, axis=0, mode="nearest")
    if wobble:
        noise = rng.normal(size=(count, 3))
        stray = ndimage.gaussian_filter1d(noise, 3.5 / step, axis=0, mode="reflect")
        line = line + wobble * stray / (stray.std() + 1e-6)
    return line
