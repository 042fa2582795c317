"""The fine map of susceptibility that veins and lesions are painted into."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from whole_head_simulator.geometry import F, Grid, unit

GOLDEN_ANGLE = 2.39996  # spreads points over a disc evenly
Part = tuple[slice, ...]


@dataclass
class FineMap:
    """Susceptibility and loss of signal on the fine grid.

    Attributes
    ----------
    grid : Grid
    chi : ndarray of float32
        ppm, on top of that of the tissue.
    losses : list of (Part, ndarray)
        Boxes of the grid, and what the signal in them is multiplied with.
    """

    grid: Grid
    chi: np.ndarray
    losses: list[tuple[Part, np.ndarray]] = field(default_factory=list)

    @classmethod
    def empty(cls, grid: Grid) -> FineMap:
        """A map without anything in it."""
        return cls(grid, np.zeros(grid.shape, F))

    def weaken(self, signal: np.ndarray, number: int) -> None:
        """Take from the signal (y, x) of one plane what lesions take, in place."""
        for (planes, *part), factor in self.losses:
            if planes.start <= number < planes.stop:
                signal[tuple(part)] *= factor[number - planes.start]

    def mean_around(self, index: np.ndarray, reach_mm: float) -> float:
        """Mean susceptibility of a box around an index along x, y and z."""
        half = np.maximum(1, np.round(reach_mm / self.grid.spacing).astype(int))
        box = tuple(slice(i - h, i + h + 1) for i, h in zip(index[::-1], half[::-1], strict=True))
        return self.chi[box].mean()


def splat_tube(
    rng: np.random.Generator, fine: FineMap, path: np.ndarray, radius: np.ndarray
) -> None:
    """Add the share of each voxel that a tube fills, in place, however thin the tube is.

    Parameters
    ----------
    rng : numpy.random.Generator
        Turns the points that the cross-section is made of.
    fine : FineMap
        ``chi`` holds shares instead of ppm as yet.
    path : ndarray of shape (n, 3)
        Grid mm.
    radius : ndarray of shape (n,)
        mm.
    """
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))]
    if length[-1] < 0.5:
        return
    large = radius.max() > 1.2
    step = 0.4 if large else 0.2
    places = np.arange(step / 2, length[-1], step)
    line = np.stack([np.interp(places, length, path[:, axis]) for axis in range(3)], 1)
    radius = np.interp(places, length, radius)
    along = unit(np.gradient(line, axis=0)) if len(line) > 1 else np.array([[0, 0, 1.0]])
    aside = np.where(np.abs(along[:, 2:3]) < 0.8, [[0, 0, 1.0]], [[1.0, 0, 0]])
    across = unit(np.cross(along, aside))
    other = np.cross(along, across)
    # The cross-section is a sunflower of points, each with the same share of the volume.
    count = int(np.clip(np.pi * radius.max() ** 2 / (0.1 if large else 0.03), 5, 400))
    number = np.arange(count)
    away = np.sqrt((number + 0.5) / count)
    angle = number * GOLDEN_ANGLE + rng.uniform(0, 6.28)
    offsets = (
        across[:, None, :] * np.cos(angle)[None, :, None]
        + other[:, None, :] * np.sin(angle)[None, :, None]
    )
    points = line[:, None, :] + radius[:, None, None] * away[None, :, None] * offsets
    voxel = float(np.prod(fine.grid.spacing))
    shares = np.repeat(np.pi * radius**2 * step / count / voxel, count).astype(F)
    _splat_points(fine, points.reshape(-1, 3), shares)


def _splat_points(fine: FineMap, points: np.ndarray, shares: np.ndarray) -> None:
    """Spread shares of volume at points (n, 3) over the eight voxels around each."""
    places = (points - fine.grid.origin) / fine.grid.spacing
    index = np.floor(places).astype(int)
    after = (places - index).astype(F)
    inside = ((index >= 0) & (index < fine.grid.matrix - 1)).all(1)
    index, after, shares = index[inside], after[inside], shares[inside]
    _, ny, nx = fine.grid.shape
    flat = fine.chi.reshape(-1)
    first = (index[:, 2] * ny + index[:, 1]) * nx + index[:, 0]
    for corner in range(8):
        x, y, z = corner & 1, corner >> 1 & 1, corner >> 2
        weight = shares * (after[:, 0] if x else 1 - after[:, 0])
        weight = weight * (after[:, 1] if y else 1 - after[:, 1])
        weight = weight * (after[:, 2] if z else 1 - after[:, 2])
        np.add.at(flat, first + (z * ny + y) * nx + x, weight)


def paint_ovoid(
    rng: np.random.Generator, fine: FineMap, centre: np.ndarray, diameter: float, chi: float,
    kept: float,
) -> float:  # fmt: skip
    """Put an ovoid with an uneven surface and an uneven inside into the fine map, in place.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws its shape.
    fine : FineMap
    centre : ndarray of shape (3,)
        Grid mm.
    diameter : float
        mm, about.
    chi : float
        ppm, in the mean.
    kept : float
        Signal over that of the tissue it lies in.

    Returns
    -------
    float
        Diameter (mm) of the sphere of the same volume; 0 where it lies outside the grid.
    """
    grid = fine.grid
    ratio = np.exp(rng.normal(0, 0.16, 3))
    ratio /= np.prod(ratio) ** (1 / 3)
    radii = diameter / 2 * np.clip(ratio, 0.7, 1.5)
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    reach = radii.max() * 1.35 + 1
    low = np.maximum(np.floor((centre - reach - grid.origin) / grid.spacing).astype(int), 0)
    high = np.ceil((centre + reach - grid.origin) / grid.spacing).astype(int) + 1
    high = np.minimum(high, grid.matrix)
    if (high <= low).any():
        return 0.0
    offsets = _thirds(grid, low, high, centre) @ axes
    inside = (_relative_distance(rng, offsets, radii) < 1).astype(F)
    size = (high - low)[::-1]
    share = inside.reshape(size[0], 3, size[1], 3, size[2], 3).mean((1, 3, 5))
    part = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
    uneven = 1 + 0.15 * ndimage.gaussian_filter(rng.standard_normal(share.shape), 1.0)
    fine.chi[part] = fine.chi[part] * (1 - share) + share * F(chi) * uneven.astype(F)
    if kept < 1:
        fine.losses.append((part, 1 - share * F(1 - kept)))
    return float((6 / np.pi * share.sum() * np.prod(grid.spacing)) ** (1 / 3))


def _thirds(grid: Grid, low: np.ndarray, high: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Offsets [z, y, x, 3] from a centre (mm) of points, three a voxel along each axis."""
    third = (np.arange(3) - 1) / 3
    lines = []
    for axis in range(3):
        index = (np.arange(low[axis], high[axis])[:, None] + third).ravel()
        lines.append(index * grid.spacing[axis] + grid.origin[axis] - centre[axis])
    z, y, x = np.meshgrid(*lines[::-1], indexing="ij")
    return np.stack([x, y, z], -1)


def _relative_distance(
    rng: np.random.Generator, offsets: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """Distance from the centre over that of the surface, which three waves make uneven."""
    scaled = np.linalg.norm(offsets / radii, axis=-1)
    direction = offsets / (np.linalg.norm(offsets, axis=-1, keepdims=True) + 1e-6)
    waves, phases = rng.standard_normal((3, 3)) * 1.6, rng.uniform(0, 6.28, 3)
    height = sum(np.sin(direction @ waves[i] * 1.6 + phases[i]) for i in range(3))
    return scaled / (1 + 0.07 * height)
