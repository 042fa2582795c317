"""From the painted head to the images a scanner reconstructs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import fft as sfft

from second_simulator.head import Anatomy, Grid
from second_simulator.lesions import Spot, transfer_factors
from second_simulator.settings import GYROMAGNETIC_MHZ_PER_T, Protocol
from second_simulator.tissue import Properties, fine_slabs


class Scan(NamedTuple):
    """Images (echo, z, y, x): magnitude, phase in radians (right-handed); voxel size, noise."""

    magnitude: np.ndarray
    phase: np.ndarray
    spacing: np.ndarray
    noise: float


def receive_field(
    rng: np.random.Generator, anatomy: Anatomy, coils: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Sum-of-squares sensitivity and what coil combination leaves of phase, on the coarse block."""
    grid = anatomy.grid
    x, y, z = (a.astype(np.float32) for a in grid.axes())
    x, y, z = (np.broadcast_to(a, grid.shape)[anatomy.inner] for a in (x, y, z))
    power = np.zeros(x.shape, np.float32)
    joined = np.zeros(x.shape, np.complex64)
    middle = tuple(n // 2 for n in x.shape)
    for coil in range(coils):
        angle = 2 * np.pi * (coil + rng.uniform(-0.2, 0.2)) / coils
        place = np.array([125 * np.cos(angle), 145 * np.sin(angle), rng.uniform(-40, 70)])
        away = [a - np.float32(b) for a, b in zip((x, y, z), place, strict=True)]
        strength = 1 / (away[0] ** 2 + away[1] ** 2 + away[2] ** 2 + 75.0**2)
        turn = np.arctan2(away[1], away[0]) + np.float32(rng.normal(0, 0.006)) * z
        turn += np.float32(rng.uniform(0, 6))
        one = strength * np.exp(1j * turn)
        power += strength**2
        joined += np.conj(one[middle]) / abs(one[middle]) * one * strength
    sensitivity = np.sqrt(power)
    return sensitivity / sensitivity[middle], joined / np.abs(joined)


def background_phase(rng: np.random.Generator, grid: Grid, block: np.ndarray) -> np.ndarray:
    """Echo shift (a ramp) and eddy currents (a bowl), radians on the coarse block's shape."""
    lines = [np.linspace(-1, 1, n, dtype=np.float32) for n in block.shape]
    z, y, x = lines[0][:, None, None], lines[1][:, None], lines[2]
    ramp = rng.normal(0, 3, 3)
    bowl = rng.normal(0, 0.8, 3)
    return (
        ramp[0] * z + ramp[1] * y + ramp[2] * x + bowl[0] * z**2 + bowl[1] * y**2 + bowl[2] * x**2
    )


def kspace_weights(
    rng: np.random.Generator, shape: tuple[int, int, int], voxel: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights over kx, over (kz, ky), and the (ky, kx) factor of motion; unshifted order."""
    kz, ky, kx = (sfft.fftfreq(n).astype(np.float32) * 2 for n in shape)
    along = np.ones_like(kx)
    if rng.random() < 0.4:  # asymmetric echo
        along *= kx > -rng.uniform(0.7, 0.9)
    plane = np.ones((len(kz), len(ky)), np.float32)
    if rng.random() < 0.5:  # elliptical shutter
        plane *= np.hypot(kz[:, None], ky) <= 1.0
    if rng.random() < 0.35:  # partial Fourier
        plane *= ky < rng.uniform(0.5, 0.8)
    kind = rng.choice(["none", "fermi", "cosine"], p=[0.35, 0.3, 0.35])
    if kind == "fermi":
        along = along / (1 + np.exp((np.abs(kx) - 0.93) / 0.03))
        plane = plane / (1 + np.exp((np.hypot(kz[:, None], ky) - 0.95) / 0.04))
    elif kind == "cosine":
        edge = rng.uniform(0.5, 0.85)

        def taper(k: np.ndarray) -> np.ndarray:
            return np.cos(np.pi / 2 * np.clip((np.abs(k) - edge) / (1.05 - edge), 0, 1)) ** 2

        along, plane = along * taper(kx), plane * taper(kz)[:, None] * taper(ky)
    restless = rng.random() < 0.2
    moved = np.cumsum(rng.normal(0, 1, (2, len(ky))) * (rng.random((2, len(ky))) < 0.008), axis=1)
    moved *= rng.uniform(0.5, 1.2) if restless else rng.uniform(0, 0.15)
    moved -= moved[:, [len(ky) // 2]]
    breath = rng.uniform(0.005, 0.06) * np.sin(
        2 * np.pi * rng.uniform(0.03, 0.3) * np.arange(len(ky)) + rng.uniform(0, 6)
    )
    moved, breath = sfft.ifftshift(moved, axes=1), sfft.ifftshift(breath)
    turn = kx[None] * (np.pi * moved[0] / voxel[0])[:, None]
    turn = turn + (ky * np.pi * moved[1] / voxel[1] + breath)[:, None]
    return (
        along.astype(np.float32),
        plane.astype(np.float32),
        np.exp(1j * turn).astype(np.complex64),
    )


def acquire(
    spectrum: np.ndarray, weights: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    output: tuple[int, int, int],
) -> np.ndarray:  # fmt: skip
    """Weight a k-space (z, y, x; unshifted), pad it with zeros to ``output`` and transform it."""
    along, plane, motion = weights
    spectrum = spectrum * plane[:, :, None]
    spectrum *= along
    if motion is not None:
        spectrum *= motion
    ratio = np.prod(output) / np.prod(spectrum.shape)
    if output != spectrum.shape:
        spectrum = _resize_spectrum(spectrum, output)
    return sfft.ifftn(spectrum, overwrite_x=True) * np.float32(ratio)


def _resize_spectrum(spectrum: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Crop or zero-pad an unshifted spectrum about its centre."""
    for axis, n in enumerate(shape):
        old = spectrum.shape[axis]
        keep = min(old, n)
        head, tail = (keep + 1) // 2, keep // 2
        parts = [
            np.take(spectrum, range(head), axis=axis),
            np.take(spectrum, range(old - tail, old), axis=axis),
        ]
        if n > old:
            gap = list(spectrum.shape)
            gap[axis] = n - old
            parts.insert(1, np.zeros(gap, spectrum.dtype))
        spectrum = np.concatenate(parts, axis=axis)
    return spectrum


def scan_head(
    rng: np.random.Generator, protocol: Protocol, grid: Grid, slices: int, volumes: Properties,
    shifts: tuple[np.ndarray, np.ndarray], spots: list[Spot], direction: np.ndarray,
    anatomy: Anatomy, vendor: str,
) -> Scan:  # fmt: skip
    """Gradient echoes of the painted head as the scanner reconstructs them."""
    extent = np.array(grid.shape[::-1]) * grid.spacing
    counts = np.round(extent / protocol.voxel).astype(int)[::-1]
    acquired = (int(counts[0]), int(counts[1]), int(counts[2]))
    output = _reconstructed(rng, acquired, protocol, vendor)
    margin = (acquired[0] - slices) // 2
    weights = kspace_weights(rng, acquired, protocol.voxel)
    sensitivity, joined = receive_field(rng, anatomy)
    ramp = background_phase(rng, grid, sensitivity)
    white = volumes.amplitude[volumes.brain]
    level = float(np.median(white[:: max(1, len(white) // 100000)]))
    level *= float(np.exp(-protocol.echo_times[0] * 18 * protocol.field_t / 3))
    noise = level / rng.uniform(*protocol.snr)
    combined = rng.choice([1, 6]) if vendor != "GE" else 6
    factors = [spot.effect or transfer_factors(spot, grid, direction, protocol) for spot in spots]
    magnitudes, phases = [], []
    out_grid = Grid(output, extent / np.array(output[::-1]), np.zeros(3))
    block = np.stack([sensitivity, joined.real, joined.imag, ramp])
    for echo, echo_time in enumerate(protocol.echo_times):
        signal = _signal(protocol, echo_time, volumes, shifts)
        for place, factor in factors:
            signal[place] *= factor[echo]
        spectrum = _resize_spectrum(sfft.fftn(signal, overwrite_x=True), acquired)
        spectrum *= np.float32(np.prod(acquired) / np.prod(grid.shape))
        # The centre of the first voxel of both grids differs by half the difference of their sizes.
        for axis in range(3):
            k = sfft.fftfreq(acquired[axis], 1.0)
            step = (1 - acquired[axis] / grid.shape[axis]) / 2
            step -= (1 - acquired[axis] / output[axis]) / 2
            line = np.exp(2j * np.pi * k * step).astype(np.complex64)
            spectrum *= line.reshape([-1 if i == axis else 1 for i in range(3)])
        clean = acquire(spectrum, weights, output)
        static = rng.standard_normal((*acquired, 2), dtype=np.float32).view(np.complex64)[..., 0]
        static *= np.float32(noise * np.sqrt(np.prod(acquired)))
        static = acquire(static, (weights[0], weights[1], None), output)
        magnitude = np.empty(output, np.float32)
        phase = np.empty(output, np.float32)
        for part, (sense, real, imaginary, bend) in fine_slabs(block, out_grid):
            turn = torch.exp(1j * (bend * (1 + 0.3 * echo))) * torch.complex(real, imaginary)
            image = clean[part] * (sense * turn).numpy() + static[part]
            extra = rng.standard_gamma(combined - 1, image.shape, dtype=np.float32)
            magnitude[part] = np.sqrt(np.abs(image) ** 2 + 2 * noise**2 * extra)
            phase[part] = np.angle(image)
        kept = slice(margin, output[0] - margin)
        magnitudes.append(magnitude[kept])
        phases.append(phase[kept])
    return Scan(np.stack(magnitudes), np.stack(phases), out_grid.spacing, float(noise))


def _reconstructed(
    rng: np.random.Generator, acquired: tuple[int, int, int], protocol: Protocol, vendor: str
) -> tuple[int, int, int]:
    """Matrix after the scanner's interpolation: square pixels, or GE's finer ones."""
    z, y, x = acquired
    if protocol.voxel[0] != protocol.voxel[1] and rng.random() < 0.4:
        return z, round(y * protocol.voxel[1] / protocol.voxel[0]), x
    if vendor == "GE" and protocol.voxel[0] > 0.6:
        return z, 2 * round(y * 0.6), 2 * round(x * 0.6)
    return acquired


def _signal(
    protocol: Protocol, echo_time: float, volumes: Properties,
    shifts: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Complex signal (z, y, x) of one echo on the fine grid."""
    signal = np.empty(volumes.amplitude.shape, np.complex64)
    turns = np.float32(2 * np.pi * GYROMAGNETIC_MHZ_PER_T * protocol.field_t * echo_time)
    for start in range(0, len(signal), 8):
        part = slice(start, start + 8)
        loss = np.exp(-np.float32(echo_time) * volumes.decay[part])
        # Spins of one voxel of the simulation lose step where the field of the head is steep.
        loss *= np.abs(np.sinc(turns / (2 * np.pi) * shifts[1][part]))
        size = torch.from_numpy(volumes.amplitude[part] * loss.astype(np.float32))
        angle = torch.from_numpy(turns * (shifts[0][part] + volumes.shift[part]))
        signal[part] = torch.polar(size, angle).numpy()
    return signal
