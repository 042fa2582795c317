"""Where the template lies in the grid of one participant's head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whole_head_simulator.geometry import F, Grid, interpolate_along
from whole_head_simulator.noise import smooth_noise
from whole_head_simulator.settings import HEAD_EXTENT_MM, HEAD_ORIGIN_MM, TEMPLATE_CENTRE


@dataclass(frozen=True)
class Frame:
    """A template that is scaled, turned, moved and bent.

    Attributes
    ----------
    grid : Grid
        Of the head; even along all axes.
    halved : Grid
        Twice as coarse, and one sample longer.
    scale : float32
        Mean size of this head over that of the template.
    matrix : ndarray of shape (3, 3)
        Turns and scales grid mm to template mm.
    shift : ndarray of shape (3,)
        Grid mm of the template's centre.
    warp : list of ndarray
        What the bend adds to template x, y and z (mm), on the halved grid.
    """

    grid: Grid
    halved: Grid
    scale: np.float32
    matrix: np.ndarray
    shift: np.ndarray
    warp: list[np.ndarray]

    @property
    def spacing_mm(self) -> float:
        """Spacing of the head's grid."""
        return float(self.grid.spacing[0])

    def noise(self, rng: np.random.Generator, sigma_mm: float) -> np.ndarray:
        """Smooth noise of unit variance on the head's grid."""
        return smooth_noise(rng, self.grid.shape, sigma_mm / self.spacing_mm)

    def refine(self, volume: np.ndarray) -> np.ndarray:
        """A volume of the halved grid on the head's grid, linear."""
        for axis in range(3):
            volume = interpolate_along(volume, np.arange(self.grid.shape[axis]) / 2.0, axis)
        return volume

    def halved_points(self) -> list[np.ndarray]:
        """Template x, y and z of every sample of the halved grid."""
        x, y, z = (line.astype(F) for line in self.halved.lines())
        lines = (x[None, None, :], y[None, :, None], z[:, None, None])
        moved = [line - F(shift) for line, shift in zip(lines, self.shift, strict=True)]
        return [
            sum(F(self.matrix[i, j]) * moved[j] for j in range(3))
            + F(TEMPLATE_CENTRE[i]) + self.warp[i]
            for i in range(3)
        ]  # fmt: skip

    def from_template(self, points: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
        """Grid mm (n, 3) of template points (n, 3): the bend inverted by fixed point."""
        targets = np.atleast_2d(np.asarray(points, float))
        back = np.linalg.inv(self.matrix)
        places = (targets - TEMPLATE_CENTRE) @ back.T + self.shift
        for _ in range(4):
            bend = np.stack([self.halved.sample(volume, places) for volume in self.warp], 1)
            places = (targets - bend - TEMPLATE_CENTRE) @ back.T + self.shift
        return places


def draw_frame(rng: np.random.Generator, turn: np.ndarray, spacing_mm: float) -> Frame:
    """Draw how large one head is, where it lies and how it is bent.

    Parameters
    ----------
    rng : numpy.random.Generator
    turn : ndarray of shape (3, 3)
        Rotation from the head's axes to those of the grid.
    spacing_mm : float
        Of the head's grid.

    Returns
    -------
    Frame
    """
    size = rng.uniform(0.945, 1.03)
    scale = size * np.array(
        [rng.uniform(0.97, 1.03), rng.uniform(0.97, 1.02), rng.uniform(0.97, 1.02)]
    )
    shift = rng.normal(0, [2, 3, 2.0])
    shape = tuple(int(extent / spacing_mm) + 1 for extent in reversed(HEAD_EXTENT_MM))
    halved_shape = tuple((count + 1) // 2 + 1 for count in shape)
    grid = Grid(HEAD_ORIGIN_MM, np.full(3, spacing_mm), shape)
    halved = Grid(HEAD_ORIGIN_MM, np.full(3, 2 * spacing_mm), halved_shape)
    warp = []
    for _ in range(3):
        wide = smooth_noise(rng, halved_shape, 13 / spacing_mm)
        wide = wide * F(rng.uniform(1.0, 2.2))
        warp.append(wide + smooth_noise(rng, halved_shape, 6 / spacing_mm) * F(0.5))
    matrix = np.diag(1 / scale) @ turn.T
    return Frame(grid, halved, F(scale.mean()), matrix, shift, warp)
