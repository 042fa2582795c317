"""From the signal to complex images: k-space with motion, slices, noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

from whole_head_simulator.echo import EchoModel, draw_blood_decay
from whole_head_simulator.geometry import F, Grid
from whole_head_simulator.settings import Protocol

ROWS = 32  # resampled along z at a time, for memory


class Received(NamedTuple):
    """A complex image [z, y, x] as it comes off the scanner, right-handed, and how it was made.

    ``noise_sd`` is that of the noise before the image was evened out, ``snr`` that of white matter.
    """

    image: np.ndarray
    noise_sd: float
    snr: float
    moved: bool
    two_dimensional: bool


def crop_spectrum(array: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Resample one axis by cropping its k-space.

    Parameters
    ----------
    array : ndarray of complex
    count : int
        Samples that are kept, at most as many as there are.
    axis : int

    Returns
    -------
    ndarray of complex
        Its mean is that of ``array`` and its first sample lies where it lay.
    """
    before = array.shape[axis]
    if before == count:
        return array
    half = count // 2
    kept = [*range(count - half), *range(before - half, before)]
    return fft.ifft(np.take(fft.fft(array, axis=axis), kept, axis), axis=axis) * F(count / before)


def taper(frequency: np.ndarray, spacing: float, share: float) -> np.ndarray:
    """Cosine filter that falls to 0 over the outermost ``share`` of k-space along one axis."""
    if not share:
        return np.ones_like(frequency)
    relative = np.abs(frequency * spacing * 2)
    edge = 0.5 * (1 + np.cos(np.pi * (relative - 1 + share) / max(share, 1e-6)))
    return np.where(relative > 1 - share, edge, 1)


def draw_modulation(rng: np.random.Generator, protocol: Protocol) -> tuple[np.ndarray, bool]:
    """Draw what motion and the filter do to each line of k-space.

    Parameters
    ----------
    rng : numpy.random.Generator
    protocol : Protocol

    Returns
    -------
    modulation : ndarray of complex64, shape (ny, nx)
        Factor on k-space, in the order of the transform.
    moved : bool
        Whether there is motion to be seen.
    """
    columns, lines, _ = protocol.matrix
    kx = fft.fftfreq(columns, protocol.voxel_mm[0])[None]
    ky = fft.fftfreq(lines, protocol.voxel_mm[1])[:, None]
    moved = bool(rng.random() < 0.4)
    amplitude_mm = rng.uniform(0.06, 0.22) if moved else rng.uniform(0, 0.05)
    period = rng.uniform(2.5, 9)  # lines
    order = fft.ifftshift(np.arange(lines))
    beat = 2 * np.pi * fft.ifftshift(np.arange(lines) - lines // 2) / period
    swing = amplitude_mm * np.sin(beat + rng.uniform(0, 6.28))
    drift = amplitude_mm * np.cumsum(rng.standard_normal(lines))[order] * 0.04
    shift_mm = swing + drift
    strength = rng.uniform(0.05, 0.15) if moved else 0.02
    breath = strength * np.sin(beat + rng.uniform(0, 6.28))
    aside = rng.uniform(0, 0.8)
    along = ky * np.sqrt(1 - aside**2) + kx * aside
    modulation = np.exp(1j * (2 * np.pi * shift_mm[:, None] * along + breath[:, None]))
    modulation = modulation.astype(np.complex64)
    share = rng.choice([0, 0.15, 0.3])
    modulation = modulation * taper(kx, protocol.voxel_mm[0], share)
    modulation = modulation * taper(ky, protocol.voxel_mm[1], share)
    return modulation.astype(np.complex64), moved


def slab_profile(height_mm: float, half_height_mm: float, slice_mm: float) -> float:
    """Share of the excitation at a height: it falls off within the outermost slices."""
    inside = min(height_mm + half_height_mm, half_height_mm - height_mm)
    return float(np.clip(0.25 + inside / (1.5 * slice_mm), 0, 1))


def acquire(rng: np.random.Generator, echo: EchoModel) -> Received:
    """Scan.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws motion, filter, slices and noise.
    echo : EchoModel

    Returns
    -------
    Received
    """
    protocol = echo.acquisition.protocol
    modulation, moved = draw_modulation(rng, protocol)
    two_dimensional = bool(protocol.field_t < 2 and rng.random() < 0.4)
    blood_decay = draw_blood_decay(rng, protocol)
    planes = _planes(echo, blood_decay, modulation, two_dimensional)
    count = protocol.matrix[2]
    image = _slices(planes, count) if two_dimensional else _partitions(planes, count)
    del planes
    fine, matrix = protocol.fine_matrix, protocol.matrix
    image *= F(matrix[0] * matrix[1] / (fine[0] * fine[1]))
    snr = rng.uniform(*protocol.snr)
    noise_sd = echo.signals["white"] / snr
    evened = rng.random() < 0.4
    for number, plane in enumerate(image):
        real, imaginary = (rng.standard_normal(plane.shape, dtype=F) for _ in range(2))
        plane += (real + 1j * imaginary) * F(noise_sd)
        if evened:
            coils = nearest_plane(
                echo.sensitivity, echo.reader.head, echo.acquisition.image, number
            )
            plane /= coils ** F(0.85)
    return Received(image, noise_sd, snr, moved, two_dimensional)


def _planes(
    echo: EchoModel, blood_decay: float, modulation: np.ndarray, two_dimensional: bool
) -> np.ndarray:
    """Every fine plane with the in-plane resolution of the image, not yet scaled."""
    acquisition, protocol = echo.acquisition, echo.acquisition.protocol
    lines, columns = modulation.shape
    down, right = lines // 2, columns // 2
    planes = np.empty((protocol.fine_matrix[2], lines, columns), np.complex64)
    half_height = acquisition.field_of_view_mm[2] / 2
    for number in range(len(planes)):
        signal = echo.plane(number, blood_decay)
        if not two_dimensional:
            height = echo.reader.height_mm(number)
            signal *= F(slab_profile(height, half_height, protocol.voxel_mm[2]))
        spectrum = fft.fft2(signal)
        spectrum = np.concatenate([spectrum[: lines - down], spectrum[-down:]])
        spectrum = np.concatenate([spectrum[:, : columns - right], spectrum[:, -right:]], 1)
        planes[number] = fft.ifft2(spectrum * modulation)
    return planes


def _slices(planes: np.ndarray, count: int) -> np.ndarray:
    """Two-dimensional slices: fine planes weighted with a smoothed box about each slice."""
    finer = len(planes) // count
    profile = np.array([0.5] + [1.0] * (finer - 1) + [0.5])
    profile /= profile.sum()
    image = np.empty((count, *planes.shape[1:]), np.complex64)
    for number in range(count):
        total = 0
        for offset, weight in enumerate(profile, start=-(len(profile) // 2)):
            total = total + weight * planes[np.clip(number * finer + offset, 0, len(planes) - 1)]
        image[number] = total
    return image


def _partitions(planes: np.ndarray, count: int) -> np.ndarray:
    """Partitions of a slab: k-space cropped along z too."""
    image = np.empty((count, *planes.shape[1:]), np.complex64)
    for first in range(0, planes.shape[1], ROWS):
        rows = slice(first, first + ROWS)
        image[:, rows] = crop_spectrum(planes[:, rows], count, 0)
    return image


def nearest_plane(volume: np.ndarray, grid: Grid, image: Grid, number: int) -> np.ndarray:
    """Values (y, x) of a volume at the sample nearest to each pixel of a slice of an image."""
    x, y, z = (
        (line - first) / step
        for line, first, step in zip(image.lines(), grid.origin, grid.spacing, strict=True)
    )
    columns = np.clip(np.round(x).astype(int), 0, grid.shape[2] - 1)
    rows = np.clip(np.round(y).astype(int), 0, grid.shape[1] - 1)
    return volume[int(z[number])][np.ix_(rows, columns)]
