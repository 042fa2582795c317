"""The magnetic field: dipole convolution, and air, bone and tissue of the head, shimmed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft

from whole_head_simulator.geometry import F, Grid
from whole_head_simulator.head import Head

STEEP_PPM_PER_MM = 0.05  # signal is lost there
SHIMMED_MM = 70  # from the centre of the slab, up and down
UNIT_MM = 80.0  # unit of the coordinates of the harmonics


def dipole_field(
    chi: np.ndarray, spacing: Sequence[float] | np.ndarray, direction: np.ndarray
) -> np.ndarray:
    """Field of a map of susceptibility, which repeats itself at its borders.

    Parameters
    ----------
    chi : ndarray of shape (nz, ny, nx)
        Susceptibility in ppm.
    spacing : sequence of three floats
        Voxel size along x, y and z, mm.
    direction : ndarray of shape (3,)
        Unit vector (x, y, z) of the static field.

    Returns
    -------
    ndarray of shape (nz, ny, nx)
        Shift of the field in ppm, with the sphere of Lorentz.
    """
    spectrum = fft.rfftn(chi)
    nz, ny, nx = chi.shape
    kx = fft.rfftfreq(nx, spacing[0])[None, :]
    ky = fft.fftfreq(ny, spacing[1])[:, None]
    for i, kz in enumerate(fft.fftfreq(nz, spacing[2])):  # plane by plane, for memory
        square = kx**2 + ky**2 + kz**2
        square[square == 0] = np.inf
        along = kx * direction[0] + ky * direction[1] + kz * direction[2]
        spectrum[i] *= (1 / 3 - along**2 / square).astype(F)
    return fft.irfftn(spectrum, s=chi.shape, overwrite_x=True)


def harmonics(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Iterator[np.ndarray]:
    """Solid harmonics up to the second order, one after the other, for memory."""
    yield 1 + 0 * x
    yield x
    yield y
    yield z
    yield x * y
    yield x * z
    yield y * z
    yield x**2 - y**2
    yield 2 * z**2 - x**2 - y**2


def unit_lines(grid: Grid) -> list[np.ndarray]:
    """Coordinates of a grid along x, y and z for `harmonics`, which broadcast."""
    x, y, z = ((line / UNIT_MM).astype(F) for line in grid.lines())
    return [x[None, None, :], y[None, :, None], z[:, None, None]]


class Background(NamedTuple):
    """Field (ppm) of the head on its grid, and flat indices of some samples of the brain."""

    field: np.ndarray
    brain: np.ndarray

    def is_steep(self, grid: Grid) -> np.ndarray:
        """Mask of where the field takes the signal away."""
        slopes = np.gradient(self.field, float(grid.spacing[0]))
        return np.sqrt(sum(slope**2 for slope in slopes)) > STEEP_PPM_PER_MM


def background_field(rng: np.random.Generator, head: Head, direction: np.ndarray) -> Background:
    """Field of a head, shimmed to second order over the brain, not quite.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws how well the scanner shims.
    head : Head
    direction : ndarray of shape (3,)
        Unit vector of the static field in the frame *grid*.

    Returns
    -------
    Background
    """
    chi, grid = head.matter.chi, head.grid
    nz, ny, nx = chi.shape
    # Room around the head, so that its repetitions are far.
    padded = np.zeros([fft.next_fast_len(int(n * 1.25), real=True) for n in chi.shape], F)
    padded[:nz, :ny, :nx] = chi
    field = dipole_field(padded, grid.spacing, direction)[:nz, :ny, :nx].copy()
    low = np.abs(grid.lines()[2]) < SHIMMED_MM
    brain = np.flatnonzero((head.matter.brain > 0.5) & low[:, None, None])[::37]
    z, y, x = np.unravel_index(brain, chi.shape)
    lines = unit_lines(grid)
    samples = [line.ravel()[i] for line, i in zip(lines, (x, y, z), strict=True)]
    matrix = np.stack(list(harmonics(*samples)), 1)
    weights = np.linalg.lstsq(matrix, field.reshape(-1)[brain], rcond=None)[0]
    weights += rng.normal(0, 0.012, len(weights))
    for weight, harmonic in zip(weights, harmonics(*lines), strict=True):
        field -= F(weight) * harmonic
    return Background(field, brain)
