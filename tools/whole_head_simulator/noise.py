"""Smooth and band-passed random volumes."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

from whole_head_simulator.geometry import F, interpolate_along


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smooth noise of unit variance.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
    sigma : float
        Of the Gaussian that smooths it, in samples. Where it is large, the noise is made on a
        thinned grid and interpolated.

    Returns
    -------
    ndarray of float32
    """
    thinned = max(1, int(sigma / 2.5))
    small = [int(np.ceil(count / thinned)) + 3 for count in shape]
    white = rng.standard_normal(small).astype(F)
    noise = ndimage.gaussian_filter(white, sigma / thinned, mode="wrap")
    noise /= noise.std()
    for axis in range(3):
        noise = interpolate_along(noise, np.arange(shape[axis]) / thinned, axis)
    return noise


def band_passed_noise(
    rng: np.random.Generator, shape: tuple[int, ...], wave_length: float, width: float
) -> np.ndarray:
    """Noise of unit variance made of waves of about one length.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
    wave_length : float
        In samples.
    width : float
        Of the band, relative to its middle.

    Returns
    -------
    ndarray of float32
        Periodic, and somewhat larger than ``shape`` where that is faster to transform.
    """
    whole = tuple(fft.next_fast_len(int(count), real=True) for count in shape)
    z, y = (fft.fftfreq(count) for count in whole[:2])
    x = fft.rfftfreq(whole[2])
    frequency = np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)
    band = np.exp(-0.5 * ((frequency * wave_length - 1) / width) ** 2).astype(F)
    spectrum = fft.rfftn(rng.standard_normal(whole).astype(F))
    noise = fft.irfftn(spectrum * band, s=whole)
    return (noise / noise.std()).astype(F)
