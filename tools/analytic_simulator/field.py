"""The magnetic field: dipole convolution, air and bone, shim, steepness within a voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage

from analytic_simulator.anatomy import Anatomy
from analytic_simulator.geometry import F, covered
from analytic_simulator.settings import (
    BONE_PPM,
    BULK_MM,
    BULK_POINTS,
    FIELD_LIMIT_PPM,
    TISSUE_PPM,
)


def dipole_field(
    chi: np.ndarray, spacing: Sequence[float] | np.ndarray, direction: np.ndarray
) -> np.ndarray:
    """Field of a map of susceptibility.

    Parameters
    ----------
    chi : ndarray of shape (nx, ny, nz)
        Susceptibility in ppm.
    spacing : sequence of three floats
        Voxel size in mm.
    direction : ndarray of shape (3,)
        Unit vector of the static field.

    Returns
    -------
    ndarray of shape (nx, ny, nz)
        Shift of the field in ppm, with the sphere of Lorentz; its mean is 0.
    """
    spectrum = fft.rfftn(chi)
    n = chi.shape
    kx, ky = (np.fft.fftfreq(n[i], spacing[i]).astype(F) for i in (0, 1))
    kz = np.fft.rfftfreq(n[2], spacing[2]).astype(F)
    b = direction.astype(F)
    along_yz = ky[:, None] * b[1] + kz[None] * b[2]
    square_yz = ky[:, None] ** 2 + kz[None] ** 2
    for i in range(n[0]):  # plane by plane, for memory
        square = square_yz + kx[i] ** 2
        if i == 0:
            square[0, 0] = 1
        kernel = F(1 / 3) - (along_yz + kx[i] * b[0]) ** 2 / square
        if i == 0:
            kernel[0, 0] = 0
        spectrum[i] *= kernel
    return fft.irfftn(spectrum, s=n)


def bulk_field(rng: np.random.Generator, anatomy: Anatomy, slices_mm: float) -> np.ndarray:
    """Field of air and bone over the slab, shimmed.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws how well the scanner shims.
    anatomy : Anatomy
    slices_mm : float
        Extent of the kept slices; the shim is for the brain within them.

    Returns
    -------
    ndarray
        ppm on the coarse grid.
    """
    axes = anatomy.grid.axes()
    whole = _bulk_of_head(anatomy)
    index = [(line + BULK_MM * BULK_POINTS / 2) / BULK_MM for line in axes]
    field = ndimage.map_coordinates(
        ndimage.spline_filter(whole, 3, output=F), np.meshgrid(*index, indexing="ij"),
        order=3, prefilter=False, output=F,
    )  # fmt: skip
    brain = brain_of(anatomy) < 0
    brain[:, :, np.abs(axes[2]) > slices_mm / 2] = False
    _shim(rng, field, axes, brain)
    return np.clip(field, -FIELD_LIMIT_PPM, FIELD_LIMIT_PPM)


def brain_of(anatomy: Anatomy) -> np.ndarray:
    """Signed distance (mm) from the brain, sulci and ventricles included, on the coarse grid."""
    levels = anatomy.levels
    return np.minimum(np.minimum(levels["cerebrum"], levels["cerebellum"]), levels["brainstem"])


def _bulk_of_head(anatomy: Anatomy) -> np.ndarray:
    """Field (ppm) of tissue against air, and of bone, on a grid that holds the whole head."""
    head, slab = anatomy.head, anatomy.slab
    line = (BULK_MM * (np.arange(BULK_POINTS) - BULK_POINTS / 2)).astype(F)
    inner, skin, air = head.shell(*head.to_canonical(*slab.head_mm([line] * 3)))
    tissue = covered(skin, BULK_MM) * (1 - covered(air, BULK_MM))
    skull = covered(inner - F(head.skull_mm), BULK_MM)
    bone = tissue * skull * (1 - covered(inner, BULK_MM))
    chi = F(TISSUE_PPM) * tissue + F(BONE_PPM) * bone
    return dipole_field(chi, (BULK_MM,) * 3, slab.field_direction)


def _shim(
    rng: np.random.Generator, field: np.ndarray, axes: Sequence[np.ndarray], brain: np.ndarray
) -> None:
    """Take the polynomial of second order in the brain off a field, nearly, in place."""
    x, y, z = np.meshgrid(*[line / 100 for line in axes], indexing="ij")
    terms = [np.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y,
             2 * z * z - x * x - y * y]  # fmt: skip
    chosen = np.flatnonzero(brain)[::23]
    matrix = np.stack([term.ravel()[chosen] for term in terms], 1)
    weights = np.linalg.lstsq(matrix, field.ravel()[chosen], rcond=None)[0]
    weights[1:4] += rng.normal(0, 0.03, 3)
    weights[0] += rng.normal(0, 0.03)
    for weight, term in zip(weights, terms, strict=True):
        field -= F(weight) * term


def steepness(field: np.ndarray) -> np.ndarray:
    """Squared change of a field across one voxel (ppm^2), summed over the three axes."""
    total = np.zeros(field.shape, F)
    last = len(field) - 1
    for i, here in enumerate(field):
        change = field[min(i + 1, last)] - field[max(i - 1, 0)]
        change *= F(0.5)
        total[i] += change * change
        change = np.zeros_like(here)
        change[1:-1] = (here[2:] - here[:-2]) * F(0.5)
        total[i] += change * change
        change = np.zeros_like(here)
        change[:, 1:-1] = (here[:, 2:] - here[:, :-2]) * F(0.5)
        total[i] += change * change
    return total
