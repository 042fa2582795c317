"""From the head's maps to complex images: dipole field, decay, coils, voxels, noise."""

from __future__ import annotations

import numpy as np
from scipy import fft

from random_walk_simulator.grid import Grid, Protocol
from random_walk_simulator.head import Head

GYROMAGNETIC_RATIO = 42.577e6 * 2 * np.pi  # rad / s / T


def dipole_field(susceptibility: np.ndarray, spacing: np.ndarray, field_t: float) -> np.ndarray:
    """Field shift in tesla of a map in ppm, the static field along z (Salomir 2003)."""
    kx, ky, kz = (
        np.fft.fftfreq(n, step).astype(np.float32)
        for n, step in zip(susceptibility.shape, spacing, strict=True)
    )
    kz = kz[: len(kz) // 2 + 1]
    kx, ky, kz = np.meshgrid(kx, ky, kz, indexing="ij", sparse=True)
    squared = kx**2 + ky**2 + kz**2
    squared[0, 0, 0] = 1
    spectrum = fft.rfftn(susceptibility, workers=1)
    spectrum *= 1 / 3 - kz**2 / squared
    return fft.irfftn(spectrum, s=susceptibility.shape, workers=1) * 1e-6 * field_t


def acquire(rng: np.random.Generator, head: Head, grid: Grid, protocol: Protocol) -> np.ndarray:
    """The image of a head: complex, of the shape of the protocol's matrix."""
    field = dipole_field(head.susceptibility, grid.spacing, protocol.field_t)
    field -= field[head.brain].mean()
    turned = GYROMAGNETIC_RATIO * field * protocol.echo_time_s
    signal = head.density * np.exp(-protocol.echo_time_s * head.decay)
    signal = signal * np.exp(1j * turned).astype(np.complex64)
    x, y, z = (line / size for line, size in zip(grid.axes(), (90, 100, 80), strict=True))
    coil = (0.5 + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.3, 0.3) * y) * 2
    coil = coil + rng.uniform(-3, 3) * x * y
    uneven = 0.1 * (x**2 + (y / 1.1) ** 2 + z**2) * rng.uniform(0, 1)
    signal *= np.exp(1j * coil).astype(np.complex64) * (1 - uneven).astype(np.float32)
    blocks = np.stack([grid.matrix, protocol.finer], axis=1).ravel()
    image = signal.reshape(blocks).mean((1, 3, 5))
    noise = rng.standard_normal(image.shape) + 1j * rng.standard_normal(image.shape)
    return image + 0.5 / protocol.signal_to_noise * noise
