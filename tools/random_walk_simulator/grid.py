"""Grids centred on the head, protocols, balls drawn into arrays, and smooth noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

FIELD_OF_VIEW_MM = (176, 208, 150)


class Protocol(NamedTuple):
    """How a scan is taken: field in tesla, voxel in mm, echo time in s, signal to noise in tissue.

    ``finer`` is how many steps of the simulation's grid there are along each edge of a voxel.
    """

    name: str
    field_t: float
    voxel_mm: tuple[float, float, float]
    echo_time_s: float
    signal_to_noise: float
    finer: tuple[int, int, int] = (2, 2, 2)


PROTOCOLS = (
    Protocol("1p5T", 1.5, (0.9, 0.9, 2.0), 0.040, 22),
    Protocol("3T", 3.0, (0.6, 0.6, 1.5), 0.020, 28),
    Protocol("ukb", 3.0, (0.8, 0.8, 3.0), 0.020, 35, (2, 2, 3)),
)


class Grid:
    """The fine grid of a protocol.

    Attributes
    ----------
    matrix, shape : ndarray of int, shape (3,)
        Voxels of the image and of the fine grid.
    spacing : ndarray, shape (3,)
        Of the fine grid, mm.
    """

    def __init__(self, protocol: Protocol) -> None:
        voxel, finer = np.array(protocol.voxel_mm), np.array(protocol.finer)
        self.spacing = voxel / finer
        self.matrix = (np.round(np.array(FIELD_OF_VIEW_MM) / voxel / 2) * 2).astype(int)
        self.shape = self.matrix * finer
        self.lines = [
            (np.arange(n) - (n - 1) / 2) * step
            for n, step in zip(self.shape, self.spacing, strict=True)
        ]

    def axes(self) -> list[np.ndarray]:
        """Coordinates along x, y and z that broadcast to the grid's shape."""
        lines = [line.astype(np.float32) for line in self.lines]
        return np.meshgrid(*lines, indexing="ij", sparse=True)

    def nearest(self, point: np.ndarray) -> np.ndarray:
        """Index of the voxel that is nearest to a point."""
        first = [line[0] for line in self.lines]
        return np.round((point - first) / self.spacing).astype(int)

    def ball(
        self, centre: np.ndarray, radius: float
    ) -> tuple[tuple[slice, slice, slice], np.ndarray] | None:
        """Window round a ball, and its voxels whose middle is inside; None off the grid."""
        middle, reach = self.nearest(centre), np.ceil(radius / self.spacing).astype(int) + 1
        if (middle - reach < 0).any() or (middle + reach >= self.shape).any():
            return None
        x, y, z = (slice(m - r, m + r + 1) for m, r in zip(middle, reach, strict=True))
        parts = zip(self.lines, (x, y, z), centre, strict=True)
        away = np.ix_(*((line[window] - at) ** 2 for line, window, at in parts))
        return (x, y, z), away[0] + away[1] + away[2] < radius**2

    def smooth_noise(self, rng: np.random.Generator, size_mm: float) -> np.ndarray:
        """Noise of unit variance whose lumps are about so large."""
        coarse = [
            max(4, int(np.ceil(n * step / (size_mm / 2))))
            for n, step in zip(self.shape, self.spacing, strict=True)
        ]
        noise = ndimage.gaussian_filter(rng.standard_normal(coarse), 1.5)
        factors = [n / m for n, m in zip(self.shape, coarse, strict=True)]
        return ndimage.zoom(noise / noise.std(), factors, order=1).astype(np.float32)
