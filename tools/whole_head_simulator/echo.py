"""The signal of a gradient echo on the fine grid, plane by plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whole_head_simulator.acquisition import Acquisition
from whole_head_simulator.field import Background, harmonics, unit_lines
from whole_head_simulator.fine import FineMap
from whole_head_simulator.geometry import F, Grid, unit
from whole_head_simulator.head import Matter
from whole_head_simulator.noise import smooth_noise
from whole_head_simulator.settings import FAT_SHIFT, GYROMAGNETIC, TISSUES, Protocol

COILS = 10
CORTEX_MM = 2.6
LESION_SIGNAL = 0.14  # more of it in lesions of white matter
IRON_DECAY = 115.0  # R2* per ppm at 3 T (1/s)
BLOOD_DECAY, BLOOD_EXTRA = 127.0, 3.0  # per ppm and on top of that, at 3 T (1/s)


def ernst(density: float, t1_s: float, repetition_s: float, flip_deg: float) -> float:
    """Steady-state signal of a spoiled gradient echo at echo time 0."""
    flip, left = np.deg2rad(flip_deg), np.exp(-repetition_s / t1_s)
    return density * np.sin(flip) * (1 - left) / (1 - np.cos(flip) * left)


def tissue_signals(rng: np.random.Generator, acquisition: Acquisition) -> dict[str, float]:
    """Draw the signal of each tissue at the echo time; the names are those of ``TISSUES``."""
    protocol = acquisition.protocol
    signals = {}
    for name, tissue in TISSUES.items():
        t1_s, decay = tissue.t1_3t, tissue.decay_3t
        if protocol.field_t <= 2:
            t1_s, decay = tissue.t1_1p5t, tissue.decay_1p5t
        t1_s = t1_s * rng.uniform(0.96, 1.04)
        brighter = rng.uniform(1.02, 1.2) if name == "grey" else 1
        start = ernst(
            brighter * tissue.density, t1_s, acquisition.repetition_s, acquisition.flip_deg
        )
        decay = decay * rng.uniform(0.92, 1.08)
        signals[name] = start * np.exp(-decay * protocol.echo_time_s)
    return signals


def outer_signals(signals: dict[str, float], matter: Matter) -> tuple[np.ndarray, np.ndarray]:
    """Signal around the brain, of water and of fat, on the head's grid."""
    shell = matter.shell
    soft = 1 - shell.bone
    muscle = signals["muscle"] * shell.muscle * soft * (1 - shell.fat) * (1 - shell.eye)
    eye = signals["csf"] * shell.eye * soft
    bone = shell.bone * (signals["bone"] + shell.marrow * signals["fat"] * 0.35)
    water = (muscle + eye + bone) * (1 - shell.air)
    fat = 1.15 * signals["fat"] * shell.fat * soft * (1 - shell.air)
    return water.astype(F), fat.astype(F)


def coil_sensitivity(rng: np.random.Generator, grid: Grid, brain: np.ndarray) -> np.ndarray:
    """Draw how much the coils receive, about 1 in the brain.

    Parameters
    ----------
    rng : numpy.random.Generator
    grid : Grid
        Of the head.
    brain : ndarray of int
        Flat indices of samples of the brain.

    Returns
    -------
    ndarray of float32
    """
    x, y, z = unit_lines(grid)
    total = np.zeros(grid.shape, F)
    for _ in range(COILS):
        place = unit(rng.standard_normal(3) * [1, 1, 0.7]) * 1.55
        strength = rng.uniform(0.5, 1.2)
        away = 0.35 + (x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2
        total += (strength / away**1.1).astype(F)
    total /= total.reshape(-1)[brain].mean()
    return total ** F(rng.uniform(0.5, 1.2))


def coil_phase(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Draw the phase (radians) that coils and transmitter add, on the head's grid."""
    phase = np.zeros(grid.shape, F)
    for harmonic in harmonics(*unit_lines(grid)):
        phase += F(rng.normal(0, 0.9)) * harmonic
    strength = F(rng.uniform(0.2, 0.6))
    phase += strength * smooth_noise(rng, grid.shape, 32 / float(grid.spacing[0]))
    return phase


def phase_per_ppm(acquisition: Acquisition) -> float:
    """Phase (radians) at the echo time of a shift of the field by 1 ppm."""
    protocol = acquisition.protocol
    return GYROMAGNETIC * protocol.field_t * protocol.echo_time_s * 1e-6


def draw_blood_decay(rng: np.random.Generator, protocol: Protocol) -> float:
    """Draw how much veins and lesions of 1 ppm decay until the echo (exponent)."""
    decay = BLOOD_DECAY * protocol.field_t / 3 * protocol.echo_time_s
    return decay * rng.uniform(0.9, 1.1)


class PlaneReader:
    """Reads planes of the fine grid out of volumes of the head's grid, linear.

    Parameters
    ----------
    head, fine : Grid
        The fine grid lies within that of the head.
    """

    def __init__(self, head: Grid, fine: Grid) -> None:
        self.head = head
        places = [
            (line - first) / step
            for line, first, step in zip(fine.lines(), head.origin, head.spacing, strict=True)
        ]
        self._x, self._y, self._z = places
        self._ix, self._iy = self._x.astype(int), self._y.astype(int)
        self._after_x = (self._x - self._ix).astype(F)[None]
        self._after_y = (self._y - self._iy).astype(F)[:, None]

    def height_mm(self, number: int) -> float:
        """Height (grid mm) of a plane of the fine grid."""
        return self._z[number] * self.head.spacing[2] + self.head.origin[2]

    def read(self, volume: np.ndarray, number: int) -> np.ndarray:
        """The plane (y, x) with a number of the fine grid."""
        below = int(self._z[number])
        share = F(self._z[number] - below)
        plane = volume[below] * (1 - share) + volume[below + 1] * share
        plane = plane[self._iy] * (1 - self._after_y) + plane[self._iy + 1] * self._after_y
        return plane[:, self._ix] * (1 - self._after_x) + plane[:, self._ix + 1] * self._after_x


@dataclass(frozen=True)
class EchoModel:
    """Everything the signal is made of.

    Attributes
    ----------
    acquisition : Acquisition
    reader : PlaneReader
    matter : Matter
    signals : dict of str to float
        As `tissue_signals` has them.
    water, fat : ndarray
        Signal around the brain, on the head's grid.
    sensitivity, phase : ndarray
        Of coils; the phase (radians) has that of the background field as well.
    fine : FineMap
    shift : ndarray of shape (nz, ny, nx)
        Field (ppm) of the fine map.
    """

    acquisition: Acquisition
    reader: PlaneReader
    matter: Matter
    signals: dict[str, float]
    water: np.ndarray
    fat: np.ndarray
    sensitivity: np.ndarray
    phase: np.ndarray
    fine: FineMap
    shift: np.ndarray

    def brain_plane(self, number: int, blood_decay: float) -> np.ndarray:
        """Magnitude (y, x) of the brain's signal in one plane of the fine grid."""
        protocol, read = self.acquisition.protocol, self.reader.read
        white, grey, csf = (F(self.signals[name]) for name in ("white", "grey", "csf"))
        depth, nuclei = read(self.matter.depth, number), read(self.matter.deep_grey, number)
        tissue = np.clip(depth / F(0.7) + F(0.5), 0, 1)
        cortex = np.clip((F(CORTEX_MM) - depth) / F(1.2) + F(0.5), 0, 1)
        grey_share = np.maximum(cortex, nuclei)
        lesions = 1 + F(LESION_SIGNAL) * read(self.matter.white_lesions, number)
        signal = (1 - tissue) * csf + tissue * (white + grey_share * (grey - white)) * lesions
        iron = np.abs(read(self.matter.iron, number))
        iron_decay = F(IRON_DECAY * protocol.field_t / 3)
        signal *= np.exp(-protocol.echo_time_s * iron_decay * iron * tissue)
        chi = np.abs(self.fine.chi[number])
        extra = F(BLOOD_EXTRA * protocol.field_t / 3 * protocol.echo_time_s)
        signal *= np.exp(-F(blood_decay) * chi - extra * (chi > 0.02))
        self.fine.weaken(signal, number)
        return signal

    def plane(self, number: int, blood_decay: float) -> np.ndarray:
        """Complex signal (y, x) of one plane of the fine grid.

        Parameters
        ----------
        number : int
            Of the plane.
        blood_decay : float
            As `draw_blood_decay` has it.

        Returns
        -------
        ndarray of complex64
        """
        read, radians = self.reader.read, phase_per_ppm(self.acquisition)
        protocol = self.acquisition.protocol
        radians_of_fat = GYROMAGNETIC * protocol.field_t * protocol.echo_time_s * FAT_SHIFT
        fat_phase = np.exp(-1j * radians_of_fat)
        brain = read(self.matter.shell.brain, number)
        water = self.brain_plane(number, blood_decay) * brain + read(self.water, number) * (
            1 - brain
        )
        fat = read(self.fat, number) * (1 - brain)
        signal = water + fat * np.complex64(fat_phase)
        phase = read(self.phase, number) + F(radians) * self.shift[number]
        signal *= read(self.sensitivity, number) * np.exp(np.complex64(1j) * phase)
        return signal.astype(np.complex64)


def build_echo(
    rng: np.random.Generator, acquisition: Acquisition, head: Grid, matter: Matter,
    background: Background, fine: FineMap, shift: np.ndarray,
) -> EchoModel:  # fmt: skip
    """Draw what the signal is made of, besides the head, its field, veins and lesions.

    Parameters
    ----------
    rng : numpy.random.Generator
    acquisition : Acquisition
    head : Grid
    matter : Matter
        On the head's grid.
    background : Background
    fine : FineMap
    shift : ndarray of shape (nz, ny, nx)
        Field (ppm) of the fine map.

    Returns
    -------
    EchoModel
    """
    signals = tissue_signals(rng, acquisition)
    water, fat = outer_signals(signals, matter)
    sensitivity = coil_sensitivity(rng, head, background.brain)
    phase = background.field * F(phase_per_ppm(acquisition)) + coil_phase(rng, head)
    reader = PlaneReader(head, fine.grid)
    return EchoModel(
        acquisition, reader, matter, signals, water, fat, sensitivity, phase, fine, shift
    )
