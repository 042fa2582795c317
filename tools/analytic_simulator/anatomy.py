"""Where the slab lies in the scanner and in the head, and the head on its coarse grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from analytic_simulator.geometry import F, Grid, rotation
from analytic_simulator.head import Head, Levels
from analytic_simulator.protocol import Protocol
from analytic_simulator.settings import (
    COARSE_MM,
    FIELD_OF_VIEW_MM,
    FINE_MM,
    FINE_SLICE_MM,
    MARGIN_MM,
    SLAB_MM,
)


@dataclass(frozen=True)
class Slab:
    """The imaged slab.

    Attributes
    ----------
    matrix : tuple of int
        Reconstructed voxels along x, y and z.
    margin : int
        Slices simulated on either side of them.
    fine_slices : int
        Slices of the fine grid in one of the image.
    fine, coarse : Grid
        Grids of the signal and of the signed distances.
    to_world, centre : ndarray of shape (3, 3) and (3,)
        World mm of slab mm: ``to_world @ point + centre``.
    to_head, head_offset : ndarray of shape (3, 3) and (3,)
        Head mm of slab mm: ``to_head @ point + head_offset``.
    """

    matrix: tuple[int, int, int]
    margin: int
    fine_slices: int
    fine: Grid
    coarse: Grid
    to_world: np.ndarray
    centre: np.ndarray
    to_head: np.ndarray
    head_offset: np.ndarray

    @property
    def field_direction(self) -> np.ndarray:
        """Unit vector (3,) of the static field along the slab's axes."""
        return self.to_world.T @ np.array([0, 0, 1.0])

    def head_mm(self, axes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Head coordinates, three arrays, of the points of a grid with these axes (slab mm)."""
        x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None]
        turn = self.to_head.astype(F)
        return [
            turn[i, 0] * x + turn[i, 1] * y + turn[i, 2] * z + F(self.head_offset[i])
            for i in range(3)
        ]

    def from_head(self, points: np.ndarray) -> np.ndarray:
        """Slab coordinates (n, 3) of head coordinates (n, 3)."""
        return (points.astype(float) - self.head_offset) @ self.to_head

    def world(self, point: np.ndarray) -> np.ndarray:
        """World coordinates (3,) of a point of the slab (3,)."""
        return self.centre + self.to_world @ point

    def image_grid(self, protocol: Protocol) -> Grid:
        """The reconstructed voxels in slab mm."""
        first = self.fine.origin.copy()
        first[2] += self.margin * protocol.voxel[2]
        if protocol.slices_with_gaps:  # a slice is the mean of all but its last fine one
            first[2] += (self.fine_slices - 2) / 2 * self.fine.spacing[2]
        return Grid(first, np.array(protocol.voxel), self.matrix)

    def affine(self, protocol: Protocol) -> np.ndarray:
        """World mm of voxel indices (4, 4), before the array is stored along other axes."""
        grid = self.image_grid(protocol)
        affine = np.eye(4)
        affine[:3, :3] = self.to_world @ np.diag(protocol.voxel)
        affine[:3, 3] = self.world(grid.origin)
        return affine


def place_slab(rng: np.random.Generator, head: Head, protocol: Protocol) -> Slab:
    """Lay the head into the scanner and the slab onto the head.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws how the head lies and how well the slab is placed.
    head : Head
    protocol : Protocol

    Returns
    -------
    Slab
    """
    turn = rotation(rng.normal(0, 5), rng.normal(0, 2.5), rng.normal(0, 3))
    moved = rng.normal(0, [4, 8, 10])
    yaw = rng.uniform(-3, 3) if protocol.oblique_deg else 0
    to_world = rotation(protocol.oblique_deg, protocol.oblique_roll_deg, yaw)
    low, high = SLAB_MM
    high = high - 22 if protocol.cut == "top" else high
    low = low + 24 if protocol.cut == "bottom" else low
    aimed = np.array([0, -14, (low + high) / 2 + 2.0])
    centre = turn @ (aimed * head.scale) + moved + rng.normal(0, 1.5, 3)
    matrix, margin, fine_slices, fine = _fine_grid(
        protocol, round((high - low) / protocol.voxel[2])
    )
    shape = [int(np.ceil(n * h / COARSE_MM)) + 2 for n, h in
             zip(fine.shape, fine.spacing, strict=True)]  # fmt: skip
    coarse = Grid(fine.origin - 0.3, np.full(3, COARSE_MM), (shape[0], shape[1], shape[2]))
    return Slab(matrix, margin, fine_slices, fine, coarse, to_world, centre,
                turn.T @ to_world, turn.T @ (centre - moved))  # fmt: skip


def _fine_grid(protocol: Protocol, slices: int) -> tuple[tuple[int, int, int], int, int, Grid]:
    """Matrix, slices of margin, fine slices in one slice, and the fine grid."""
    across = protocol.voxel[:2]
    matrix = [2 * round(f / v / 2) for f, v in zip(FIELD_OF_VIEW_MM, across, strict=True)]
    extent = [n * v for n, v in zip(matrix, across, strict=True)]
    fine = [
        n if v <= 0.5 else fft.next_fast_len(max(int(np.ceil(f / FINE_MM)), n))
        for n, v, f in zip(matrix, across, extent, strict=True)
    ]
    thickness = protocol.voxel[2]
    # With gaps, a slice is four fine slices of five.
    parts = 5 if protocol.slices_with_gaps else max(1, round(thickness / FINE_SLICE_MM))
    least = int(np.ceil(MARGIN_MM / thickness))
    margin = least
    while margin <= least + 4 and not _is_fast((slices + 2 * margin) * parts):
        margin += 1
    total = slices + 2 * margin
    spacing = np.array([extent[0] / fine[0], extent[1] / fine[1], thickness / parts])
    origin = np.array([-extent[0] / 2, -extent[1] / 2, -total * thickness / 2])
    shape = (fine[0], fine[1], total * parts)
    return (matrix[0], matrix[1], slices), margin, parts, Grid(origin, spacing, shape)


def _is_fast(length: int) -> bool:
    """Whether a Fourier transform of this length is a fast one."""
    return fft.next_fast_len(length) == length


@dataclass
class Anatomy:
    """A head in its slab: signed distances on the coarse grid (``levels``, mm, by structure)."""

    head: Head
    slab: Slab
    levels: Levels

    @property
    def grid(self) -> Grid:
        """The coarse grid."""
        return self.slab.coarse

    def gradient(self, name: str) -> list[np.ndarray]:
        """Slope of a signed distance along x, y and z."""
        return np.gradient(self.levels[name], float(self.grid.spacing[0]))

    def pick(self, rng: np.random.Generator, where: np.ndarray, count: int) -> np.ndarray:
        """Draw points.

        Parameters
        ----------
        rng : numpy.random.Generator
        where : ndarray of bool
            Voxels of the coarse grid.
        count : int

        Returns
        -------
        ndarray of shape (count, 3), or (0, 3) where there is no voxel
            Slab mm.
        """
        places = np.flatnonzero(where)
        if len(places) == 0:
            return np.zeros((0, 3))
        chosen = np.unravel_index(rng.choice(places, count), where.shape)
        spacing = self.grid.spacing
        within = rng.uniform(-0.5, 0.5, (count, 3)) * spacing
        return self.grid.origin + spacing * np.stack(chosen, 1) + within


def build_anatomy(rng: np.random.Generator, head: Head, protocol: Protocol) -> Anatomy:
    """Place the slab and work out every structure on its coarse grid."""
    slab = place_slab(rng, head, protocol)
    coarse = slab.coarse
    levels = head.level_sets(slab.head_mm(coarse.axes()), float(coarse.spacing[0]))
    return Anatomy(head, slab, levels)
