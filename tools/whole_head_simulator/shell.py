"""What is around the brain: skull with marrow, scalp, face, neck, eyes and air."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from whole_head_simulator.frame import Frame
from whole_head_simulator.geometry import F, Points, capsule, ellipsoid, ramp, smooth_minimum
from whole_head_simulator.hulls import mirrored
from whole_head_simulator.noise import band_passed_noise


class Shell(NamedTuple):
    """Shares (0 to 1) of each sample of the head's grid.

    ``brain`` is the share inside the skull; ``muscle`` is the strength (about 1) of the signal of
    muscle, which is streaky.
    """

    air: np.ndarray
    bone: np.ndarray
    marrow: np.ndarray
    fat: np.ndarray
    eye: np.ndarray
    muscle: np.ndarray
    brain: np.ndarray


def build_shell(
    rng: np.random.Generator, frame: Frame, points: Points, inner_skull: np.ndarray, age: float
) -> Shell:
    """Draw what is around a brain.

    Parameters
    ----------
    rng : numpy.random.Generator
    frame : Frame
    points : sequence of three ndarray
        Template coordinates of the head's grid.
    inner_skull : ndarray
        Signed distance from the brain with its cisterns, mm.
    age : float
        0 to 1; brains shrink.

    Returns
    -------
    Shell
    """
    gap = F(1.8 + 1.6 * age)
    from_skull = inner_skull - gap
    skull_mm = _skull_thickness(rng, frame, points)
    scalp_mm = rng.uniform(5.0, 8.0) + 1.0 * frame.noise(rng, 20)
    skin = _skin(rng, points, from_skull - skull_mm - scalp_mm)
    air = _air(rng, frame, points, from_skull, skull_mm)
    air = np.maximum(ramp(-air, 1.4), ramp(skin, 1.4))
    bone = ramp(from_skull, 1.0) * ramp(gap + skull_mm - inner_skull, 1.4) * (1 - air)
    _, y, z = points
    jaw = np.abs(ellipsoid(points, (0, 30, -75), (46, 48, 26))) - 5
    jaw = ramp(-jaw, 2) * (z < -62) * (y > 10)
    bone = np.maximum(bone, 0.8 * jaw * (1 - air))
    middle = np.abs(from_skull - 0.55 * skull_mm)
    marrow = ramp(1.6 - middle, 1.5) * bone * ramp(skull_mm - 5, 2)
    fat = ramp(skin + 3.8 + 1.2 * frame.noise(rng, 10), 1.5) * ramp(-skin - 1.2, 1.2)
    orbit = ramp(-ellipsoid(mirrored(points), (31, 46, -25), (17, 24, 15)), 1.5)
    eye = ramp(-ellipsoid(mirrored(points), (32, 62, -24), (12, 12, 12)), 1.2)
    fat = np.maximum(fat, orbit) * (1 - eye)
    streaks = rng.standard_normal(frame.grid.shape).astype(F)
    streaks = ndimage.gaussian_filter(streaks, 1.2 / frame.spacing_mm)
    muscle = 1 + 0.12 * streaks / streaks.std()
    volumes = (air, bone, marrow, fat, eye, muscle, ramp(gap - inner_skull, 0.8))
    return Shell(*(volume.astype(F) for volume in volumes))


def _skull_thickness(rng: np.random.Generator, frame: Frame, points: Points) -> np.ndarray:
    """Thickness (mm) of the skull, greatest at the back and above the nose."""
    x, y, z = points
    back = np.exp(-((y + 100) ** 2 + (z + 10) ** 2 + x**2) / 2e3)
    front = np.exp(-((y - 72) ** 2 + (z - 2) ** 2 + x**2) / 500)
    thickness = rng.uniform(5.0, 7.5) + 1.3 * frame.noise(rng, 18) + 2.5 * back + 4 * front
    return np.clip(thickness, 3, 14)


def _skin(rng: np.random.Generator, points: Points, cap: np.ndarray) -> np.ndarray:
    """Signed distance (mm) from the skin: a cap with face, neck and nose."""
    x, y, z = points
    skin = smooth_minimum(cap, ellipsoid(points, (0, 40, -56), (57, 46, 62)), 10)
    neck = np.sqrt((x / 1.05) ** 2 + (y + 28 + 0.12 * (z + 80)) ** 2) - rng.uniform(50, 58)
    skin = smooth_minimum(skin, np.maximum(neck, z + 50), 10)
    return smooth_minimum(skin, ellipsoid(points, (0, 86, -42), (13, 11, 20)), 5)


def _air(
    rng: np.random.Generator, frame: Frame, points: Points, from_skull: np.ndarray,
    skull_mm: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Signed distance (mm) from air inside the head; never within 2 mm of the brain's space."""
    noise = band_passed_noise(rng, frame.grid.shape, 7 / frame.spacing_mm, 0.4)
    walls = np.abs(noise[tuple(slice(count) for count in frame.grid.shape)]) * 3
    size = rng.uniform(0.8, 1.2)
    air = np.minimum(_nasal_air(points, walls, size), _ears_and_throat(points, walls, size))
    if rng.random() < 0.8:
        x, _, _ = points
        frontal = _frontal_sinus(points, from_skull, skull_mm, size)
        air = np.minimum(air, np.maximum(frontal, 1.2 - np.abs(x - 1)))
    return np.maximum(air, 2.0 - from_skull)


def _nasal_air(points: Points, walls: np.ndarray, size: float) -> np.ndarray:
    """Nasal cavity; maxillary, ethmoid and sphenoid sinuses."""
    right = mirrored(points)
    cavity = ellipsoid(right, (7, 56, -44), (4.5, 27, 17))
    maxillary = ellipsoid(right, (30, 52, -48), (12 * size, 14, 14))
    ethmoid = np.maximum(ellipsoid(right, (9, 52, -27), (7.5, 19, 8)), 1.2 - walls)
    sphenoid = ellipsoid(right, (8, 24, -36), (8 * size, 10, 9 * size))
    sphenoid = np.maximum(sphenoid, 1 - right[0])
    return np.minimum(np.minimum(cavity, maxillary), np.minimum(ethmoid, sphenoid))


def _ears_and_throat(points: Points, walls: np.ndarray, size: float) -> np.ndarray:
    """Mastoid cells, ear canals, pharynx and mouth."""
    right = mirrored(points)
    mastoid = ellipsoid(right, (50, -34, -42), (10, 13 * size, 15))
    mastoid = np.maximum(mastoid, 0.6 - walls)
    canal = capsule(right, (56, -20, -36), (95, -22, -38), 3, 4)
    pharynx = capsule(points, (0, 8, -62), (0, -2, -150), 9, 8)
    mouth = ellipsoid(points, (0, 45, -80), (22, 26, 5))
    return np.minimum(np.minimum(mastoid, canal), np.minimum(pharynx, mouth))


def _frontal_sinus(
    points: Points, from_skull: np.ndarray, skull_mm: np.ndarray, size: float
) -> np.ndarray:
    """Between the tables of the frontal bone."""
    x, y, z = points
    between = np.maximum(1.5 - from_skull, from_skull - skull_mm + 1.5)
    wide = np.abs(x - 2) - 17 * size
    return np.maximum(between, np.maximum(wide, np.maximum(58 - y, np.abs(z - 2) - 14)))
