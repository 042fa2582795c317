"""Fast radial symmetry transform in three dimensions, in millimetres.

Every voxel with a clear gradient votes for the place where the centre of a dark ball would be,
were the voxel on the ball's surface: a radius ``n`` mm *against* the gradient, which points from
dark to bright and so away from the centre of a dark ball. Where many votes of one radius meet
there is a radially symmetric dark object of that radius. Bright objects send their votes outward
and are not found.

Source of the method: Loy G, Zelinsky A. Fast radial symmetry for detecting points of interest.
IEEE Trans Pattern Anal Mach Intell 2003;25(8):959-973, which is two-dimensional and in voxels.
What is different here:

* distances are mm, so the same radii serve any voxel size, slices thicker than pixels included;
* votes are shared among the eight voxels around the place they fall on (rounding would move the
  vote by up to half a slice);
* ``k_n``, the number of votes that a ball of radius ``n`` collects at its centre, grows with the
  ball's surface and depends on the voxel size: it is measured on a drawn ball, not tabulated;
* gradient magnitudes are given in units of the image's noise and clipped at a few times that, so
  that one vein or air-tissue edge cannot outweigh everything else. A clear ideal ball scores
  about 1 at its radius whatever the contrast, voxel size and radius are;
* votes are smoothed before O_n and M_n are combined, not after: in three dimensions and with
  trilinear shares the votes of a real, slightly oval lesion do not fall on one voxel;
* besides the mean over radii, which favours middling sizes, the best radius is returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
from scipy import ndimage

SUBSAMPLES = 4  # per axis and voxel, when the calibration ball is drawn
Sizes = Sequence[float] | np.ndarray  # voxel edge lengths along x, y, z


class RadialSymmetry(NamedTuple):
    """What `fast_radial_symmetry` returns, each float32 of the image's shape (x, y, z).

    Attributes
    ----------
    strength
        Mean over radii of the symmetry F_n; 0 where nothing votes.
    peak
        Symmetry at the best radius; 1 or more at the centre of a clear ball.
    radius_mm
        That radius; 0 where there is none.
    """

    strength: np.ndarray
    peak: np.ndarray
    radius_mm: np.ndarray


def _compiled(function: Callable) -> Callable:
    """Compile with numba, keeping the machine code on disk where there is a place for it.

    Compiling takes about a second. A read-only installation without a home directory (another
    user id in a container) has no place for numba's cache; then each process compiles afresh.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@_compiled
def _cast_votes(
    places: np.ndarray,
    directions: np.ndarray,
    strengths: np.ndarray,
    step: np.ndarray,
    orientation: np.ndarray,
    magnitude: np.ndarray,
) -> None:
    """Add each voter's vote, shared trilinearly, to ``orientation`` and ``magnitude`` in place.

    ``places`` (voters, 3) in voxels, ``directions`` (voters, 3) unit gradients in mm,
    ``step`` (3,) the radius in voxels along each axis.
    """
    size_x, size_y, size_z = orientation.shape
    for voter in range(places.shape[0]):
        x = places[voter, 0] - directions[voter, 0] * step[0]
        y = places[voter, 1] - directions[voter, 1] * step[1]
        z = places[voter, 2] - directions[voter, 2] * step[2]
        low_x, low_y, low_z = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
        for corner_x in range(low_x, low_x + 2):
            weight_x = 1.0 - abs(x - corner_x)
            if corner_x < 0 or corner_x >= size_x:
                continue
            for corner_y in range(low_y, low_y + 2):
                weight_y = weight_x * (1.0 - abs(y - corner_y))
                if corner_y < 0 or corner_y >= size_y:
                    continue
                for corner_z in range(low_z, low_z + 2):
                    if corner_z < 0 or corner_z >= size_z:
                        continue
                    weight = weight_y * (1.0 - abs(z - corner_z))
                    orientation[corner_x, corner_y, corner_z] += weight
                    magnitude[corner_x, corner_y, corner_z] += weight * strengths[voter]


def gradient_per_mm(
    image: np.ndarray, voxel_sizes_mm: Sizes, sigma_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient of a smoothed image along each voxel axis, in intensity per mm.

    Parameters
    ----------
    image : (x, y, z) array
        Finite values.
    voxel_sizes_mm : (3,) sequence
        Voxel edge lengths.
    sigma_mm : float
        Gaussian smoothing before the central differences. Axes whose voxels are coarser than
        this are smoothed by the acquisition already and the Gaussian leaves them nearly alone.

    Returns
    -------
    tuple of three (x, y, z) float32 arrays
        Zero along an axis with a single voxel.
    """
    smooth = smoothed(image, voxel_sizes_mm, sigma_mm)
    parts = []
    for axis, size in enumerate(voxel_sizes_mm):
        if smooth.shape[axis] < 2:
            parts.append(np.zeros_like(smooth))
        else:
            parts.append(np.gradient(smooth, np.float32(size), axis=axis))
    return parts[0], parts[1], parts[2]


def smoothed(image: np.ndarray, voxel_sizes_mm: Sizes, sigma_mm: float) -> np.ndarray:
    """The image (x, y, z) after a Gaussian of ``sigma_mm``, float32."""
    sigmas = [sigma_mm / size for size in voxel_sizes_mm]
    return ndimage.gaussian_filter(
        np.asarray(image, dtype=np.float32), sigmas, mode="nearest", truncate=3.0
    )


class _Voters(NamedTuple):
    """Voxels that vote: indices (n, 3), unit gradients (n, 3), strengths (n,) within 0..1."""

    places: np.ndarray
    directions: np.ndarray
    strengths: np.ndarray


def _choose_voters(
    gradient: tuple[np.ndarray, np.ndarray, np.ndarray],
    mask: np.ndarray,
    noise_factor: float,
    strong_factor: float,
) -> _Voters:
    """The voxels whose gradient is above noise, inside the mask.

    The median gradient magnitude in the mask stands for the noise: most of a brain is tissue
    without edges. An image without noise has a median of zero; then half the steepest gradient
    counts as strong. Rounding errors of a constant image are no gradient.
    """
    squared = gradient[0] ** 2
    squared += gradient[1] ** 2
    squared += gradient[2] ** 2
    magnitude = np.sqrt(squared, out=squared)
    inside = magnitude[mask]
    steepest = float(inside.max()) if inside.size else 0.0
    if steepest <= 1e-12:
        nobody = np.empty((0, 3), np.float32)
        return _Voters(nobody, nobody, np.empty(0, np.float32))
    noise = float(np.median(inside))
    threshold = max(noise_factor * noise, 1e-3 * steepest)
    strong = strong_factor * noise if noise > 1e-6 * steepest else 0.5 * steepest
    votes = mask & (magnitude > threshold)
    chosen = magnitude[votes]
    places = np.stack(np.nonzero(votes), axis=1).astype(np.float32)
    directions = np.stack([part[votes] for part in gradient], axis=1) / chosen[:, None]
    return _Voters(places, directions, np.minimum(chosen / strong, 1.0).astype(np.float32))


def _votes_of_radius(
    voters: _Voters,
    shape: tuple[int, ...],
    voxel_sizes_mm: Sizes,
    radius_mm: float,
    smoothing: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed orientation and magnitude projections O_n and M_n, each (x, y, z) float32."""
    orientation = np.zeros(shape, dtype=np.float32)
    magnitude = np.zeros(shape, dtype=np.float32)
    if len(voters.places):
        step = (radius_mm / np.asarray(voxel_sizes_mm)).astype(np.float32)
        _cast_votes(*voters, step, orientation, magnitude)
    sigma_mm = smoothing * radius_mm
    return smoothed(orientation, voxel_sizes_mm, sigma_mm), smoothed(
        magnitude, voxel_sizes_mm, sigma_mm
    )


def draw_ball(
    shape: tuple[int, int, int],
    centre: Sequence[float],
    radius_mm: float,
    voxel_sizes_mm: Sizes,
) -> np.ndarray:
    """Share of each voxel that a ball covers: (x, y, z) float32 within 0..1.

    ``centre`` is in voxels. Partial volume is counted on ``SUBSAMPLES`` points per axis.
    """
    offsets = (np.arange(SUBSAMPLES) + 0.5) / SUBSAMPLES - 0.5
    squared: np.ndarray = np.zeros((1, 1, 1))
    for axis in range(3):
        points = (np.arange(shape[axis])[:, None] + offsets).ravel() - centre[axis]
        distance = (points * voxel_sizes_mm[axis]) ** 2
        squared = squared + distance.reshape([-1 if other == axis else 1 for other in range(3)])
    fine = (squared <= radius_mm**2).astype(np.float32)
    coarse = fine.reshape(shape[0], SUBSAMPLES, shape[1], SUBSAMPLES, shape[2], SUBSAMPLES).mean(
        axis=(1, 3, 5)
    )
    return coarse.astype(np.float32)


@lru_cache(maxsize=256)
def votes_of_ideal_ball(
    radius_mm: float,
    voxel_sizes_mm: tuple[float, float, float],
    gradient_sigma_mm: float,
    smoothing: float,
) -> float:
    """k_n: the votes that a drawn dark ball of this radius collects at its centre.

    The ball sits on a voxel centre of the given grid, with partial volume at its surface, and
    every voxel steeper than half its steepest gradient votes. At least 1.
    """
    margin = radius_mm + 4 * gradient_sigma_mm
    half = [int(np.ceil(margin / size)) + 1 for size in voxel_sizes_mm]
    shape = (2 * half[0] + 1, 2 * half[1] + 1, 2 * half[2] + 1)
    ball = -draw_ball(shape, half, radius_mm, voxel_sizes_mm)
    gradient = gradient_per_mm(ball, voxel_sizes_mm, gradient_sigma_mm)
    voters = _choose_voters(gradient, np.ones(shape, dtype=bool), 0.0, 0.0)
    steep = voters.strengths >= 1.0
    voters = _Voters(*(part[steep] for part in voters))
    orientation, _ = _votes_of_radius(voters, shape, voxel_sizes_mm, radius_mm, smoothing)
    return max(float(orientation[tuple(half)]), 1e-3)


def fast_radial_symmetry(
    image: np.ndarray,
    voxel_sizes_mm: Sizes,
    radii_mm: Sequence[float],
    mask: np.ndarray | None = None,
    *,
    alpha: float = 2.0,
    gradient_sigma_mm: float = 0.6,
    noise_factor: float = 1.0,
    strong_factor: float = 5.0,
    smoothing: float = 0.25,
    threads: int | None = None,
) -> RadialSymmetry:
    """Radial symmetry of dark objects at every voxel.

    For each radius n (mm), F_n = (M_n / k_n) (min(O_n, k_n) / k_n)^alpha with the orientation
    projection O_n (votes) and the magnitude projection M_n (votes weighted by gradient strength),
    both smoothed by a Gaussian of ``smoothing`` n. k_n is the votes of an ideal ball.

    Parameters
    ----------
    image : (x, y, z) array
        Any number type. Values that are not finite are replaced by the median of the others and
        do not vote.
    voxel_sizes_mm : (3,) sequence
        Voxel edge lengths in mm. The transform is in the voxel frame, so orientation and
        obliquity of the affine play no part.
    radii_mm : sequence
        Radii of the balls to look for.
    mask : (x, y, z) array of bool, optional
        Where voxels may vote (default everywhere). Centres may lie outside.
    alpha : float
        Radial strictness: how strongly objects whose surface is only partly there are held back.
    gradient_sigma_mm : float
        Smoothing before gradients are taken.
    noise_factor : float
        A gradient votes above this multiple of the median gradient magnitude in the mask.
    strong_factor : float
        Gradients count as full strength from this multiple of the same median on.
    smoothing : float
        Width of the Gaussian over the votes, as a multiple of the radius.
    threads : int, optional
        Radii computed at the same time; the result does not depend on it. Default: 2, or 1 where
        the process may use a single processor.

    Returns
    -------
    RadialSymmetry

    Raises
    ------
    ValueError
        The image is not three-dimensional, or the mask has another shape.
    """
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(f"the image has {image.ndim} dimensions, not 3")
    finite = np.isfinite(image)
    votes_allowed = finite if mask is None else finite & np.asarray(mask, dtype=bool)
    if not finite.all():
        image = np.where(finite, image, np.median(image[finite]) if finite.any() else 0)
    sizes = tuple(float(size) for size in voxel_sizes_mm)
    gradient = gradient_per_mm(image, sizes, gradient_sigma_mm)
    voters = _choose_voters(gradient, votes_allowed, noise_factor, strong_factor)
    del gradient

    def symmetry_of_radius(radius: float) -> np.ndarray:
        most = votes_of_ideal_ball(float(radius), sizes, float(gradient_sigma_mm), smoothing)
        orientation, symmetry = _votes_of_radius(voters, image.shape, sizes, radius, smoothing)
        np.minimum(orientation, most, out=orientation)
        symmetry *= (orientation / most) ** alpha
        symmetry /= most
        return symmetry

    strength = np.zeros(image.shape, dtype=np.float32)
    peak = np.zeros(image.shape, dtype=np.float32)
    radius_mm = np.zeros(image.shape, dtype=np.float32)
    with ThreadPoolExecutor(max_workers=_thread_count(threads)) as pool:
        # map keeps the order of the radii, so the sum is the same however many threads there are.
        for radius, symmetry in zip(radii_mm, pool.map(symmetry_of_radius, radii_mm), strict=True):
            strength += symmetry
            better = symmetry > peak
            peak[better] = symmetry[better]
            radius_mm[better] = radius
    strength /= max(len(radii_mm), 1)
    return RadialSymmetry(strength, peak, radius_mm)


def _thread_count(threads: int | None) -> int:
    """Two threads pay; more would each hold two volumes."""
    if threads is not None:
        return max(int(threads), 1)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable or 1, 2)
