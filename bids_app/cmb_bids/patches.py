"""Small blocks of image around candidates, on one grid in mm whatever the acquisition.

A patch is what the network sees of a candidate: 18 x 18 x 20 mm, enough for the largest microbleed
that is counted (10 mm) with its dipole, and for a vein to leave the patch and so be recognised as
one. Its grid is 0.75 mm in the plane of a usual susceptibility-weighted scan and 1 mm across slices
of 1.2 to 3 mm: a candidate lies anywhere between them, and a grid as coarse as the slices would mix
two where a small lesion is in one.

Patches lie along the voxel axes, permuted and flipped to the closest right-anterior-superior
order, so that slices are never interpolated obliquely and the last axis is the one close to the
main field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy.ndimage import maximum_filter

from cmb_bids.volumes import voxel_sizes, world_to_voxel

POINTS_PER_CHUNK = 32  # bounds the memory of gathered blocks (about 20 MB at 0.3 mm)
BRAIN_RIM_MM = 3.0  # kept around the mask, which may cut into the cortex
CONTRAST_LIMIT = 3.0  # of the local brain median
FEWEST_BRAIN_VOXELS = 50  # below this many the median of a patch says nothing about brain


@dataclass(frozen=True)
class PatchGeometry:
    """Grid of a patch: voxels and mm per voxel along right, anterior, superior."""

    shape: tuple[int, int, int] = (24, 24, 20)
    spacing_mm: tuple[float, float, float] = (0.75, 0.75, 1.0)

    def with_margin(self, voxels: tuple[int, int, int]) -> PatchGeometry:
        """The same grid with ``voxels`` more at both ends of each axis."""
        x, y, z = (n + 2 * m for n, m in zip(self.shape, voxels, strict=True))
        return PatchGeometry((x, y, z), self.spacing_mm)


def cut_patches(
    volumes: Sequence[np.ndarray],
    affine: np.ndarray,
    points_mm: np.ndarray,
    geometry: PatchGeometry | None = None,
) -> np.ndarray:
    """Resample blocks around points.

    Linear interpolation where the patch grid is finer than the voxels; the same triangle widened
    to the patch spacing (an average) where it is coarser, so that thin voxels do not alias.
    The image is continued beyond its edges; non-finite values count as zero.

    Parameters
    ----------
    volumes : sequence of (x, y, z) arrays
        Images on one grid, one per channel.
    affine : (4, 4) array
        Voxel to scanner mm of all of them.
    points_mm : (n, 3) array
        Centres, scanner mm.
    geometry : PatchGeometry, optional
        Default: 24 x 24 x 20 voxels of 0.75 x 0.75 x 1 mm.

    Returns
    -------
    (n, channels, X, Y, Z) float32 array
        Axes run to the right, anterior and superior as closely as the voxel axes allow.

    Raises
    ------
    ValueError
        No volume is given, or their shapes differ.
    """
    geometry = geometry or PatchGeometry()
    shapes = {np.shape(volume) for volume in volumes}
    if len(shapes) != 1:
        raise ValueError(f"patches need volumes of one shape, not {sorted(shapes)}")
    (shape,) = shapes
    centres = world_to_voxel(affine, points_mm)
    patches = np.zeros((len(centres), len(volumes), *geometry.shape), dtype=np.float32)
    orientation = nib.orientations.io_orientation(affine).astype(int)
    axis_to, signs = orientation[:, 0], orientation[:, 1]
    for start in range(0, len(centres), POINTS_PER_CHUNK):
        chunk = slice(start, start + POINTS_PER_CHUNK)
        samplers = [
            _axis_sampler(
                centres[chunk, axis], shape[axis], size, axis_to[axis], signs[axis], geometry
            )
            for axis, size in enumerate(voxel_sizes(affine))
        ]
        for channel, volume in enumerate(volumes):
            stored_order = _sample(np.asarray(volume), samplers)
            axes = [0, *(1 + np.argsort(axis_to))]
            patches[chunk, channel] = np.transpose(stored_order, axes)
    return patches


def _axis_sampler(
    centres: np.ndarray,
    length: int,
    voxel_mm: float,
    patch_axis: int,
    sign: int,
    geometry: PatchGeometry,
) -> tuple[np.ndarray, np.ndarray]:
    """Source indices (n, block) and weights (n, samples, block) along one stored axis."""
    samples, spacing = geometry.shape[patch_axis], geometry.spacing_mm[patch_axis]
    offsets = sign * (np.arange(samples) - (samples - 1) / 2) * spacing / voxel_mm
    reach = max(1.0, spacing / voxel_mm)
    first = np.floor(centres + offsets.min() - reach).astype(int)
    block = int(np.ceil(np.ptp(offsets) + 2 * reach)) + 2
    source = first[:, None] + np.arange(block)
    positions = centres[:, None] + offsets
    weights = 1 - np.abs(positions[:, :, None] - source[:, None, :]) / reach
    weights = np.maximum(weights, 0)
    weights /= weights.sum(axis=2, keepdims=True)
    return np.clip(source, 0, length - 1), weights.astype(np.float32)


def _sample(volume: np.ndarray, samplers: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Gather blocks and weigh them axis by axis: (n, samples, samples, samples)."""
    (i, weights_i), (j, weights_j), (k, weights_k) = samplers
    blocks = volume[i[:, :, None, None], j[:, None, :, None], k[:, None, None, :]]
    blocks = np.nan_to_num(blocks.astype(np.float32), posinf=0, neginf=0)
    n, length_i, length_j, length_k = blocks.shape
    blocks = np.matmul(weights_i, blocks.reshape(n, length_i, -1)).reshape(
        n, -1, length_j, length_k
    )
    blocks = np.matmul(weights_j[:, None], blocks)
    return np.matmul(blocks, np.swapaxes(weights_k, 1, 2)[:, None])


def normalise_patches(
    contrast: np.ndarray, phase: np.ndarray | None, mask: np.ndarray, geometry: PatchGeometry
) -> np.ndarray:
    """Bring patches to values that do not depend on scanner or coil.

    Contrast is divided by the median of the brain in the patch (which also takes out what is
    left of the coil's shading) and clipped at 3; phase is clipped to +-pi. Beyond 3 mm outside the
    brain mask both are zero: what lies there differs most between scanners and says least.

    Parameters
    ----------
    contrast : (n, X, Y, Z) array
        SWI or magnitude, arbitrary units.
    phase : (n, X, Y, Z) array or None
        High-passed phase, radians, right-handed.
    mask : (n, X, Y, Z) array
        Brain mask, 0 to 1.
    geometry : PatchGeometry
        Its spacing gives the rim.

    Returns
    -------
    (n, 1 or 2, X, Y, Z) float32 array
    """
    inside = mask > 0.5
    rim = [1, *(2 * round(BRAIN_RIM_MM / spacing) + 1 for spacing in geometry.spacing_mm)]
    near_brain = maximum_filter(inside, size=rim, mode="nearest") if inside.size else inside
    scale = _median_where(contrast, inside)[:, None, None, None]
    channels = [np.clip(contrast / scale, 0, CONTRAST_LIMIT)]
    if phase is not None:
        channels.append(np.clip(phase, -np.pi, np.pi))
    return np.stack([np.where(near_brain, c, 0) for c in channels], axis=1).astype(np.float32)


def _median_where(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Median (n,) of each patch inside its mask; of all its positive voxels where that is empty."""
    n = len(values)
    if not n:
        return np.ones(0, dtype=np.float32)
    flat, chosen = values.reshape(n, -1), inside.reshape(n, -1)
    enough = chosen.sum(axis=1) >= FEWEST_BRAIN_VOXELS
    chosen = np.where(enough[:, None], chosen, flat > 0)
    count = chosen.sum(axis=1)
    ordered = np.sort(np.where(chosen, flat, np.inf), axis=1)
    median = ordered[np.arange(n), np.maximum(count - 1, 0) // 2]
    return np.where((count > 0) & (median > 0), median, 1).astype(np.float32)


def classifier_patches(
    contrast: np.ndarray,
    highpass: np.ndarray | None,
    mask: np.ndarray,
    affine: np.ndarray,
    points_mm: np.ndarray,
    geometry: PatchGeometry | None = None,
) -> np.ndarray:
    """The network's input for each candidate.

    Parameters
    ----------
    contrast : (x, y, z) array
        SWI where there is phase, else the normalised magnitude.
    highpass : (x, y, z) array or None
        High-passed phase, radians, right-handed.
    mask : (x, y, z) array
        Brain mask.
    affine : (4, 4) array
        Voxel to scanner mm.
    points_mm : (n, 3) array
        Candidates, scanner mm.
    geometry : PatchGeometry, optional

    Returns
    -------
    (n, 1 or 2, X, Y, Z) float32 array
        Contrast relative to the local brain median, then phase in radians.
    """
    geometry = geometry or PatchGeometry()
    volumes = [contrast, mask] if highpass is None else [contrast, mask, highpass]
    raw = cut_patches(volumes, affine, points_mm, geometry)
    phase = None if highpass is None else raw[:, 2]
    return normalise_patches(raw[:, 0], phase, raw[:, 1], geometry)
