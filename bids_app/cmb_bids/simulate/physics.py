"""From susceptibility to complex images: dipole field, gradient echo, k-space crop.

Everything here is torch, so it runs on a CPU and a GPU alike. Phase is right-handed: a
paramagnetic source raises the field at its poles and the phase with it.

The dipole kernel is that of Salomir 2003 and Marques & Bowtell 2005, with the direction of the
main field anywhere in the grid's frame.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from cmb_bids.simulate.protocols import GYROMAGNETIC_RATIO_HZ_PER_T


def dipole_field(
    susceptibility: torch.Tensor,
    voxel_mm: tuple[float, float, float],
    b0: np.ndarray,
    smoothing_voxels: float = 0.35,
) -> torch.Tensor:
    """Field shift (ppm of the main field) of a susceptibility map, periodic boundaries.

    Parameters
    ----------
    susceptibility : (x, y, z) float32
        ppm, relative to the surroundings. Pad it when sources stand near an edge.
    voxel_mm : three floats
        Voxel size of the grid.
    b0 : (3,)
        Unit vector of the main field in the grid's axes.
    smoothing_voxels : float
        Sigma, in voxels, of a Gaussian over the sources. Without it sharp edges ring through the
        volume: where the field is oblique, the kernel jumps at the edge of k-space. More than a
        third of a voxel weakens the field beside small lesions, which then look too faint.

    Returns
    -------
    (x, y, z) float32
        With the Lorentz sphere; mean zero.
    """
    shape = susceptibility.shape
    device = susceptibility.device
    spectrum = torch.fft.rfftn(susceptibility)
    kx, ky = (
        torch.fft.fftfreq(n, float(v), device=device)
        for n, v in zip(shape[:2], voxel_mm[:2], strict=True)
    )
    kz = torch.fft.rfftfreq(shape[2], float(voxel_mm[2]), device=device)
    gaussians = [
        torch.exp(-2 * (np.pi * smoothing_voxels * float(v) * k) ** 2)
        for k, v in zip((kx, ky, kz), voxel_mm, strict=True)
    ]
    kz = kz[None, None]
    ky = ky[None, :, None]
    step = max(1, int(8e6 // max(1, shape[1] * kz.shape[-1])))
    for start in range(0, shape[0], step):
        block = kx[start : start + step, None, None]
        along = block * float(b0[0]) + (ky * float(b0[1]) + kz * float(b0[2]))
        square = block * block + (ky * ky + kz * kz)
        square.clamp_(min=1e-12)
        kernel = (1.0 / 3.0) - along.square_().div_(square)
        kernel *= gaussians[0][start : start + step, None, None]
        kernel *= gaussians[1][:, None] * gaussians[2]
        spectrum[start : start + step] *= kernel
    spectrum[0, 0, 0] = 0
    return torch.fft.irfftn(spectrum, s=shape)


def sphere_field(
    points_mm: np.ndarray, radius_mm: float, susceptibility_ppm: float, b0: np.ndarray
) -> np.ndarray:
    """Closed form: field (ppm) of a sphere at the origin, zero inside (Lorentz corrected)."""
    distance = np.linalg.norm(points_mm, axis=-1)
    safe = np.maximum(distance, 1e-9)
    cosine = points_mm @ np.asarray(b0) / safe
    outside = susceptibility_ppm / 3.0 * (radius_mm / safe) ** 3 * (3 * cosine**2 - 1)
    return np.where(distance > radius_mm, outside, 0.0)


def cubic_weights(
    coarse_size: int, coarse_start: float, coarse_step: float, targets: np.ndarray
) -> torch.Tensor:
    """Catmull-Rom weights (targets, coarse) that interpolate one axis; clamped at the ends."""
    position = np.clip((targets - coarse_start) / coarse_step, 0, coarse_size - 1.0001)
    base = position.astype(int)
    t = position - base
    taps = (
        0.5 * (-t + 2 * t**2 - t**3),
        0.5 * (2 - 5 * t**2 + 3 * t**3),
        0.5 * (t + 4 * t**2 - 3 * t**3),
        0.5 * (-(t**2) + t**3),
    )
    weights = np.zeros((len(targets), coarse_size), np.float32)
    rows = np.arange(len(targets))
    for offset, tap in zip((-1, 0, 1, 2), taps, strict=True):
        np.add.at(weights, (rows, np.clip(base + offset, 0, coarse_size - 1)), tap)
    return torch.from_numpy(weights)


def add_interpolated(
    target: torch.Tensor, coarse: torch.Tensor, weights: list[torch.Tensor]
) -> None:
    """Add a coarse map, interpolated separably, to `target` in place."""
    wx, wy, wz = (w.to(target.device) for w in weights)
    plane = torch.einsum("xyz,kz->xyk", coarse, wz)
    plane = torch.einsum("xyk,jy->xjk", plane, wy)
    flat = plane.reshape(plane.shape[0], -1)
    step = max(1, int(8e6 // flat.shape[1]))
    for start in range(0, target.shape[0], step):
        block = wx[start : start + step] @ flat
        target[start : start + step] += block.reshape(-1, *target.shape[1:])


def _crop(spectrum: torch.Tensor, axis: int, keep: int) -> torch.Tensor:
    """Keep the `keep` lowest frequencies of an unshifted spectrum along one axis."""
    size = spectrum.shape[axis]
    if keep == size:
        return spectrum
    low, high = (keep + 1) // 2, keep // 2
    return torch.cat(
        [spectrum.narrow(axis, 0, low), spectrum.narrow(axis, size - high, high)], dim=axis
    )


def _centre(spectrum: torch.Tensor, axis: int, fine_size: int) -> torch.Tensor:
    """From the k-space of the fine grid to that of the object, on the acquisition grid's centres.

    The first voxel's centre lies further in by half the difference of the voxel sizes: a linear
    phase. And the fine grid holds averages over its voxels, where a scanner samples the transform
    of the object itself: their sinc is divided out.
    """
    size = spectrum.shape[axis]
    frequency = torch.fft.fftfreq(size, 1.0 / size, device=spectrum.device)
    angle = np.pi * (1.0 / size - 1.0 / fine_size) * frequency
    shape = [1, 1, 1]
    shape[axis] = size
    averaged = torch.sinc(frequency / fine_size)
    return spectrum.mul_(torch.polar(1 / averaged, angle).reshape(shape))


def acquire(
    make_block: Callable[[int, int], torch.Tensor],
    fine_shape: tuple[int, int, int],
    matrix: tuple[int, int, int],
    device: torch.device,
    slice_gap: float | None = None,
) -> torch.Tensor:
    """k-space (matrix, unshifted) of a fine complex image that is made block by block.

    Parameters
    ----------
    make_block : callable (start, stop) -> complex64 (stop - start, y, z)
        The fine image's planes along x.
    fine_shape, matrix : three ints
        Fine grid and acquisition grid over the same field of view.
    slice_gap : float, optional
        Share of the distance between slices that is not excited, of slices that are acquired one
        by one; without it the last axis is encoded like the others.

    Returns
    -------
    complex64 (matrix)
        Scaled so that `torch.fft.ifftn` gives an image with the mean of the fine image.
    """
    nx, ny, nz = fine_shape
    slices = None
    if slice_gap is not None:
        slices = slice_profiles(nz, matrix[2], slice_gap).to(device)
    partial = torch.empty((nx, matrix[1], matrix[2]), dtype=torch.complex64, device=device)
    step = max(1, int(6e6 // (ny * nz)))
    for start in range(0, nx, step):
        stop = min(start + step, nx)
        block = make_block(start, stop)
        if slices is None:
            block = _crop(torch.fft.fft(block, dim=2), 2, matrix[2])
        else:
            block = torch.fft.fft(block @ slices, dim=2)
        partial[start:stop] = _crop(torch.fft.fft(block, dim=1), 1, matrix[1])
    spectrum = _crop(torch.fft.fft(partial, dim=0), 0, matrix[0]).contiguous()
    for axis in range(3 if slices is None else 2):
        spectrum = _centre(spectrum, axis, fine_shape[axis])
    return spectrum.mul_(float(np.prod(matrix)) / float(np.prod(fine_shape)))


def slice_profiles(fine: int, slices: int, gap: float) -> torch.Tensor:
    """What of each fine plane is in each slice (fine, slices), complex64; sums to fine / slices.

    Slices lie evenly over the fine planes, and are excited evenly but for the gaps between them.
    """
    step = fine / slices
    centres = (np.arange(slices) + 0.5) * step
    half = step * (1 - gap) / 2
    planes = np.arange(fine)[:, None]
    inside = np.minimum(planes + 1, centres + half) - np.maximum(planes, centres - half)
    weights = inside.clip(0) / (1 - gap)
    return torch.from_numpy(weights.astype(np.complex64))


def gradient_echo_blocks(
    signal: torch.Tensor,
    rate: torch.Tensor,
    field_ppm: torch.Tensor,
    echo_time_s: float,
    field_strength_t: float,
) -> Callable[[int, int], torch.Tensor]:
    """Complex gradient-echo signal at one echo time, as a maker of x blocks.

    signal exp(-TE R2*) exp(i 2 pi gamma B0 field TE)
    """
    radians_per_ppm = (
        2 * np.pi * GYROMAGNETIC_RATIO_HZ_PER_T * field_strength_t * echo_time_s * 1e-6
    )

    def block(start: int, stop: int) -> torch.Tensor:
        magnitude = torch.exp(rate[start:stop] * (-echo_time_s)).mul_(signal[start:stop])
        return torch.polar(magnitude, field_ppm[start:stop] * radians_per_ppm)

    return block


def tukey_window(size: int, taper: float, device: torch.device) -> torch.Tensor:
    """Unshifted k-space window: flat, with a cosine taper over the outer share `taper`."""
    radius = torch.fft.fftfreq(size, 1.0 / size, device=device).abs() / (size / 2)
    if taper <= 0:
        return torch.ones_like(radius)
    edge = ((radius - (1 - taper)) / taper).clamp(0, 1)
    return 0.5 * (1 + torch.cos(np.pi * 0.8 * edge))
