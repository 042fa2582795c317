"""Sulci and gyri, and the great fissures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from whole_head_simulator.frame import Frame
from whole_head_simulator.geometry import F, Points
from whole_head_simulator.hulls import SYLVIAN_MM, callosal_ellipse, sylvian_height
from whole_head_simulator.noise import band_passed_noise

FOLDED_MM = 40  # depth to which the folding wave is known


class Folds(NamedTuple):
    """The folding wave on the head's grid.

    Attributes
    ----------
    wave : ndarray of float32
        Sulci are where it is 0.
    known : ndarray of bool
        Where it has a value.
    distance : ndarray of float32
        From the nearest sulcal sheet, mm.
    """

    wave: np.ndarray
    known: np.ndarray
    distance: np.ndarray


def fold(rng: np.random.Generator, frame: Frame, depth: np.ndarray) -> Folds:
    """Fold the surface.

    Parameters
    ----------
    rng : numpy.random.Generator
    frame : Frame
    depth : ndarray
        Below the hull and the great fissures, mm.

    Returns
    -------
    Folds
        Of band-passed noise that is read near the surface, so that it hardly changes along the
        depth.
    """
    spacing = frame.spacing_mm
    inwards = np.gradient(ndimage.gaussian_filter(depth, 1.5 / spacing), spacing)
    steep = np.sqrt(inwards[0] ** 2 + inwards[1] ** 2 + inwards[2] ** 2) + F(1e-3)
    length_mm = rng.uniform(18.5, 23)
    noise = band_passed_noise(rng, frame.grid.shape, length_mm / spacing, 0.28)
    known = (depth > 0) & (depth < FOLDED_MM)
    index = np.array(np.nonzero(known), F)
    for axis in range(3):
        index[axis] -= F(0.8 / spacing) * depth[known] * inwards[axis][known] / steep[known]
    index += frame.noise(rng, 4)[known] * F(1.2 / spacing)  # wobbling sheets
    wave = np.zeros(frame.grid.shape, F)
    wave[known] = ndimage.map_coordinates(noise, index, order=1, mode="wrap")
    del noise, index, inwards, steep
    wave = ndimage.gaussian_filter(wave, 0.8 / spacing)
    z, y, x = np.gradient(wave, spacing)
    slope = np.sqrt(z**2 + y**2 + x**2)
    return Folds(wave, known, np.abs(wave) / np.maximum(slope, F(0.05)))


def sulci(
    rng: np.random.Generator, frame: Frame, depth: np.ndarray, folds: Folds, age: float
) -> np.ndarray:
    """Signed distance (mm) from the fluid in the sulci.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws how deep and how wide they are, which differs from place to place.
    frame : Frame
    depth : ndarray
        Below the hull and the great fissures, mm.
    folds : Folds
    age : float
        0 to 1; sulci of older brains are wider and deeper.

    Returns
    -------
    ndarray of float32
    """
    reach = 15.5 + 6 * np.tanh(frame.noise(rng, 9)) + 2 * age
    width = 0.4 + 0.85 * age + 0.35 * frame.noise(rng, 12)
    width = np.clip(width * (1.25 - depth / reach), -0.3, 2.4)
    over = np.maximum(depth - reach, 0)
    below = np.sqrt(folds.distance**2 + over**2)
    signed = np.where(over > 0, below, folds.distance - width).astype(F)
    signed[~folds.known] = 9  # far
    return signed


def great_fissures(
    rng: np.random.Generator, frame: Frame, points: Points, age: float
) -> np.ndarray:
    """Signed distance (mm) from the fluid in the interhemispheric and Sylvian fissures.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws how the sheets undulate.
    frame : Frame
    points : sequence of three ndarray
        Template coordinates of the head's grid.
    age : float
        0 to 1.

    Returns
    -------
    ndarray of float32
    """
    x, y, z = points
    across, lengthwise = x + frame.noise(rng, 12), y
    outside = np.maximum(0, (1 - np.sqrt(callosal_ellipse(points))) * 32)
    ends = np.minimum(np.maximum(36 - lengthwise, 0), np.maximum(lengthwise + 46, 0))
    low = np.minimum(np.maximum(-12 - z, 0), ends)
    beside = np.minimum(np.where(z > -12, outside, np.maximum(low, outside)), ends)
    between = np.sqrt(across**2 + beside**2) - (0.9 + 0.9 * age)
    height = z - (sylvian_height(y) + 3 * frame.noise(rng, 9))
    side = np.abs(x) + F(2.2) * frame.noise(rng, 7)
    beyond = np.maximum(np.maximum(y - 24, -44 - y), 0)
    inside = np.maximum(SYLVIAN_MM - side, 0)
    sylvian = np.sqrt((0.91 * height) ** 2 + inside**2 + beyond**2) - (1.0 + 1.0 * age)
    beyond = np.maximum(np.maximum(y - 24, -32 - y), 0)
    above = np.maximum(np.abs(height) - 11, 0)
    insula = np.sqrt((side - SYLVIAN_MM) ** 2 + above**2 + beyond**2) - (0.8 + 0.7 * age)
    return np.minimum(between, np.minimum(sylvian, insula)).astype(F)
