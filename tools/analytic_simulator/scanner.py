"""From the painted head to the complex images that a scanner reconstructs."""

from __future__ import annotations

import numpy as np
from scipy import fft

from analytic_simulator.anatomy import Slab
from analytic_simulator.geometry import F
from analytic_simulator.protocol import Protocol
from analytic_simulator.settings import GYROMAGNETIC_MHZ_PER_T
from analytic_simulator.tissue import Signal, Volumes


def crop_spectrum(image: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Keep the ``count`` lowest spatial frequencies of one axis of an image.

    The first voxel stays where it is, and so does the mean.
    """
    length = image.shape[axis]
    if count == length:
        return image
    spectrum = fft.fft(image, axis=axis)
    tail = count // 2
    kept = np.r_[0 : count - tail, length - tail : length]
    return fft.ifft(np.take(spectrum, kept, axis=axis), axis=axis) * F(count / length)


def pad_spectrum(image: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Interpolate one axis of an image to ``count`` voxels, with zeros in k-space."""
    length = image.shape[axis]
    if count == length:
        return image
    spectrum = np.moveaxis(fft.fft(image, axis=axis), axis, 0)
    padded = np.zeros((count, *spectrum.shape[1:]), spectrum.dtype)
    tail = length // 2
    padded[: length - tail] = spectrum[: length - tail]
    padded[count - tail :] = spectrum[length - tail :]
    return fft.ifft(np.moveaxis(padded, 0, axis), axis=axis) * F(count / length)


def gradient_echo(
    protocol: Protocol, slab: Slab, volumes: Volumes, field: np.ndarray, steep: np.ndarray,
    echo_time: float,
) -> np.ndarray:  # fmt: skip
    """Complex signal of one echo, sliced but not yet cropped within the plane.

    Parameters
    ----------
    protocol : Protocol
    slab : Slab
    volumes : Volumes
        Of the fine grid.
    field : ndarray
        Shift of the field (ppm) on the fine grid.
    steep : ndarray
        Its squared change within a voxel (`field.steepness`).
    echo_time : float
        Seconds.

    Returns
    -------
    ndarray of complex64, shape (fine x, fine y, slices with margin)
        Its phase is right-handed: it grows with the field.
    """
    nx, ny, nz = slab.fine.shape
    slices = nz // slab.fine_slices
    turns = F(2 * np.pi * GYROMAGNETIC_MHZ_PER_T * protocol.field_t * echo_time)
    echo = np.empty((nx, ny, slices), np.complex64)
    for start in range(0, nx, 8):  # some planes at a time, for memory
        part = slice(start, start + 8)
        # Spins that are spread evenly over a range of phase; to second order a Gaussian.
        loss = -F(echo_time) * volumes.decay[part] - steep[part] * (turns * turns / 24)
        magnitude = volumes.amplitude[part] * np.exp(loss)
        phase = field[part] * turns
        signal = np.empty(magnitude.shape, np.complex64)
        signal.real, signal.imag = magnitude * np.cos(phase), magnitude * np.sin(phase)
        if protocol.slices_with_gaps:
            parts = signal.reshape(len(signal), ny, slices, slab.fine_slices)
            echo[part] = parts[..., : slab.fine_slices - 1].mean(-1)
        else:
            echo[part] = crop_spectrum(signal, slices, 2)
    return echo


class Receiver:
    """What coils, motion and noise do to an image; the same for every echo.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws bias, phase of the coils and motion.
    protocol : Protocol
    slab : Slab
    white : Signal
        Of white matter, to which the noise refers.
    """

    def __init__(
        self, rng: np.random.Generator, protocol: Protocol, slab: Slab, white: Signal
    ) -> None:
        self.slab = slab
        self.acquired = [
            max(2 * round(n * share / 2), 2)
            for n, share in zip(slab.matrix[:2], protocol.acquired_share, strict=True)
        ]
        slices = slab.matrix[2] + 2 * slab.margin
        shape = (*self.acquired, slices)
        x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=F) for n in shape],
                              indexing="ij", sparse=True)  # fmt: skip
        bias = _drawn_polynomial(rng, x, y, z, 0.12) + F(rng.uniform(0, 0.35)) * (x**2 + y**2)
        bias = np.exp(bias + F(rng.normal(0, 0.15)) * z).astype(F)
        self.bias = bias * _slab_profile(slices, slab.margin)[None, None]
        ramp = F(rng.uniform(-np.pi, np.pi)) + F(rng.normal(0, 3)) * x + F(rng.normal(0, 3)) * y
        ramp = ramp + F(rng.normal(0, 1.5)) * z + _drawn_polynomial(rng, x, y, z, 0.7)
        self.coil_phase = ramp
        extent = slab.matrix[0] * protocol.voxel[0]
        self.motion = _motion(rng, self.acquired[0], extent, protocol.motion)
        last = white.amplitude * np.exp(-white.decay * protocol.echo_times[-1])
        self.noise = last / protocol.snr

    def receive(self, rng: np.random.Generator, echo: np.ndarray) -> np.ndarray:
        """The image (x, y, slices kept) of an echo, with noise."""
        image = crop_spectrum(crop_spectrum(echo, self.acquired[0], 0), self.acquired[1], 1)
        image = image.astype(np.complex64)
        image *= self.bias
        image *= np.exp(1j * self.coil_phase).astype(np.complex64)
        if self.motion is not None:
            image = fft.ifft(fft.fft(image, axis=0) * self.motion, axis=0)
        image = image[:, :, self.slab.margin : self.slab.margin + self.slab.matrix[2]]
        noise = rng.standard_normal(image.shape, dtype=F)
        noise = noise + 1j * rng.standard_normal(image.shape, dtype=F)
        image = (image + F(self.noise) * noise).astype(np.complex64)
        image = pad_spectrum(image, self.slab.matrix[0], 0)
        return pad_spectrum(image, self.slab.matrix[1], 1).astype(np.complex64)


def _drawn_polynomial(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, z: np.ndarray, spread: float
) -> np.ndarray:
    """A smooth random function over the slab, coordinates -1..1."""
    terms = (x * y, x * z, y * z, x**2, y**2, z**2, x**2 * y, y**2 * x, y**3)
    return np.asarray(sum(F(rng.normal(0, spread)) * term for term in terms))


def _slab_profile(slices: int, margin: int) -> np.ndarray:
    """Excitation of each slice: less at the edges of the slab."""
    number = np.arange(slices)
    below = np.clip((number - margin + 1.5) / 3, 0.35, 1)
    return (below * np.clip((slices - margin + 0.5 - number) / 3, 0.35, 1)).astype(F)


def _motion(
    rng: np.random.Generator, lines: int, extent: float, strength: float
) -> np.ndarray | None:
    """Factor of each line of k-space for jerks, breathing and its phase; None without motion."""
    if not strength:
        return None
    k = np.fft.fftfreq(lines)
    number = np.arange(lines)
    jerked = (rng.random(lines) < 0.15) & (np.abs(k) > 0.02)
    shift = np.where(jerked, rng.normal(0, 1.5 * strength, lines), 0)
    shift = shift + 0.35 * strength * np.sin(2 * np.pi * number / rng.uniform(4, 9))
    breath = 1j * 0.25 * strength * np.sin(2 * np.pi * number / rng.uniform(3, 7))
    factor = np.exp(2j * np.pi * k * shift / (extent / lines) + breath)
    return factor.astype(np.complex64)[:, None, None]


def acquire(
    rng: np.random.Generator, protocol: Protocol, slab: Slab, volumes: Volumes,
    field: np.ndarray, steep: np.ndarray, white: Signal,
) -> list[np.ndarray]:  # fmt: skip
    """Complex images (x, y, z), one an echo; white matter has an amplitude of about 1 at TE 0.

    The parameters are those of `gradient_echo` and `Receiver`.
    """
    receiver = Receiver(rng, protocol, slab, white)
    images = []
    for echo_time in protocol.echo_times:
        echo = gradient_echo(protocol, slab, volumes, field, steep, echo_time)
        images.append(receiver.receive(rng, echo) / white.amplitude)
    return images
