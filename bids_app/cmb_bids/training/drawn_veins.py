"""Veins drawn into patches: those that run across slices, and so look like a dot in each.

Few of a simulated head's veins run along the main field for a centimetre, and a network that has
met few of them calls them microbleeds: in every slice they are round, dark and paramagnetic. Only
the slices above and below tell. Here such veins are drawn by the physics of the simulator
(`cmb_bids.simulate.physics`), alone and without noise, into patches that hold no lesion (which
stay what they are) and beside lesions (so that a vein nearby never speaks against one).

They are seen in slices as thick as those of the patch: a dot in two slices of 3 mm may be a lesion,
in four of 1.5 mm it is a vein.

Some are broken: a vein near the limit of what is resolved is seen here and there along its way, as
dots in a row. Each of the dots looks like a lesion, only the row tells; it runs in any direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from cmb_bids.head import block_mean
from cmb_bids.patches import PatchGeometry
from cmb_bids.resnet import CONTRAST_AND_PHASE
from cmb_bids.simulate.physics import dipole_field
from cmb_bids.simulate.protocols import GYROMAGNETIC_RATIO_HZ_PER_T
from cmb_bids.simulate.veins import VesselTree, rasterise
from cmb_bids.swi import phase_mask
from cmb_bids.training.augmentation import GROUND_CONTRAST, middle_of, turned
from cmb_bids.training.labels import CALCIFICATION, MICROBLEED, OTHER

# Veins that are drawn of each slice thickness, each once; flipped and turned they are sixteen times
# as many.
POOL = 150
SLICES_MM = (1.0, 1.25, 1.6, 2.0, 2.5, 3.1)  # that veins are drawn in: the nearest is taken
FINER = 2  # grid that veins are drawn on, per voxel of a patch and axis
STEP_MM = 0.3  # along a vein
RADIUS_MM = (0.3, 1.1)
SUSCEPTIBILITY_PPM = (0.25, 0.6)  # of venous blood against tissue
TESLA_SECONDS = (0.025, 0.075)  # field times echo time: 9 ms at 3 T to 50 ms at 1.5 T
SIGNAL = (0.3, 1.0)  # of the magnitude in blood, relative to tissue
TILT_DEGREES = 22.0  # standard deviation of a vein's direction around the main field's
BEND_PER_MM = 0.25  # radians that its direction turns by, at most; where it lies flat it is faint
LENGTH_MM = (1.0, 16.0)  # of either part, up and down
TAPER_MM = (0.3, 3.0)  # over which its ends get narrow
# Shorter veins could be lesions: this many mm, times their width, and times the slices.
LEAST_LENGTH_MM, LEAST_LENGTH_WIDTHS, LEAST_LENGTH_SLICES = 4.5, 4.0, 3.0
BROKEN = 0.4  # of the veins that are drawn
BEAD_MM, GAP_MM = (0.5, 3.0), (0.8, 3.0)  # along a broken vein: what is seen, and what is not
IN_A_GAP = 0.1  # of a broken vein's radius
LEAST_BROKEN_MM = 10.0  # shorter, it may show no second bead
OFF_CENTRE_MM = 0.7  # standard deviation of what a candidate is off the vein it lies on
PIXEL_MM = (0.5, 1.0)  # that a vein is averaged over, in the plane
HIGHPASS_MM = 3.0  # Gaussian, in the plane: half height at 0.0625 per mm
BESIDE_MM = (3.0, 7.0)  # from a lesion, in the plane
SEEN = 0.8  # only a vein that leaves less contrast than this at its middle becomes a candidate


def _direction(rng: np.random.Generator) -> np.ndarray:
    tilt = np.radians(rng.normal(0, TILT_DEGREES))
    turn = rng.uniform(0, 2 * np.pi)
    return np.array([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)])


def _half(direction: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Points (n, 3) mm from the origin on, along a curve that starts in this direction."""
    bend = rng.uniform(0, BEND_PER_MM) * STEP_MM
    axis = np.cross(direction, rng.standard_normal(3))
    axis /= np.linalg.norm(axis)
    points, heading = [np.zeros(3)], direction
    for _ in range(max(1, round(length / STEP_MM))):
        heading = heading + bend * np.cross(axis, heading)
        heading = heading / np.linalg.norm(heading)
        points.append(points[-1] + STEP_MM * heading)
    return np.array(points)


def draw_path(
    rng: np.random.Generator, radius_mm: float, slice_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """A vein through the origin: its points (n, 3) mm and radii (n,) mm, narrow at its ends.

    A broken one has next to no radius in its gaps, and some at the origin.
    """
    broken = rng.random() < BROKEN
    up, down = _drawn_length(rng, LENGTH_MM), _drawn_length(rng, LENGTH_MM)
    least = max(
        LEAST_BROKEN_MM if broken else LEAST_LENGTH_MM,
        LEAST_LENGTH_WIDTHS * 2 * radius_mm,
        LEAST_LENGTH_SLICES * slice_mm,
    )
    longer = max(1.0, least / (up + down))
    direction = _any_direction(rng) if broken else _direction(rng)
    above = _half(direction, up * longer, rng)
    below = _half(-direction, down * longer, rng)
    points = np.concatenate([below[:0:-1], above])
    along = STEP_MM * np.arange(len(points))
    to_end = np.minimum(along, along[-1] - along)
    radii = radius_mm * np.clip((to_end + STEP_MM) / rng.uniform(*TAPER_MM), 0.1, 1)
    if broken:
        radii = np.where(_in_gaps(rng, along - along[len(below) - 1]), IN_A_GAP * radius_mm, radii)
    return points, radii


def _any_direction(rng: np.random.Generator) -> np.ndarray:
    direction = rng.standard_normal(3)
    return direction / np.linalg.norm(direction)


def _in_gaps(rng: np.random.Generator, along: np.ndarray) -> np.ndarray:
    """Whether places (n,) mm along a broken vein lie in gaps; 0 is on the middle of a bead."""
    bead = _drawn_length(rng, BEAD_MM)
    gaps = np.zeros(len(along), dtype=bool)
    for side in (-1, 1):
        end = bead / 2
        while end < np.abs(along).max():
            begin, end = end, end + _drawn_length(rng, GAP_MM)
            gaps |= (side * along > begin) & (side * along < end)
            end += _drawn_length(rng, BEAD_MM)
    return gaps


def _drawn_length(rng: np.random.Generator, between: tuple[float, float]) -> float:
    """As often from one to two as from two to four."""
    return float(np.exp(rng.uniform(*np.log(between))))


def draw_vein(
    geometry: PatchGeometry, rng: np.random.Generator, slice_mm: float, power: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """What one vein does to a patch that it runs through, near the centre.

    Parameters
    ----------
    geometry : PatchGeometry
        The last axis is the main field's.
    rng : Generator
    slice_mm : float
        Thickness of the slices that the patch is cut from; where they lie is drawn.
    power : int
        Of the phase mask in the contrast; 0 where the contrast is the magnitude.

    Returns
    -------
    loss : (X, Y, Z) float32 array
        1 where the vein changes nothing, 0 where no signal is left.
    phase : (X, Y, Z) float32 array
        High-passed, radians, right-handed.
    """
    spacing = tuple(size / FINER for size in geometry.spacing_mm)
    shape = tuple(FINER * n for n in geometry.shape)
    pixel = rng.uniform(*PIXEL_MM)
    points, radii = draw_path(rng, _drawn_length(rng, RADIUS_MM), slice_mm)
    centre = np.array([(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)])
    points = points + centre + rng.normal(0, OFF_CENTRE_MM, 3) * (1, 1, 0)
    tree = VesselTree.join([(points, radii)])
    share = rasterise(tree, shape, spacing)  # type: ignore[arg-type]
    susceptibility = torch.from_numpy(share * np.float32(rng.uniform(*SUSCEPTIBILITY_PPM)))
    field = dipole_field(susceptibility, spacing, np.array([0.0, 0.0, 1.0]))  # type: ignore[arg-type]
    radians = 2 * np.pi * GYROMAGNETIC_RATIO_HZ_PER_T * 1e-6 * rng.uniform(*TESLA_SECONDS)
    signal = (1 - share * (1 - rng.uniform(*SIGNAL))) * np.exp(1j * radians * field.numpy())
    sigmas = np.array([pixel, pixel, 0]) / np.sqrt(12) / spacing
    acquired, resampled = slices_of(geometry, slice_mm, rng.random())
    seen = block_mean(gaussian_filter(signal, sigmas, mode="nearest"), (FINER, FINER, 1)) @ acquired
    plane = np.array([HIGHPASS_MM, HIGHPASS_MM, 0]) / (*geometry.spacing_mm[:2], 1)
    lowpass = gaussian_filter(seen, plane, mode="nearest")
    phase = np.angle(seen * np.conj(lowpass))
    loss = np.minimum(np.abs(seen) * phase_mask(phase) ** power, 1.0)
    return (loss @ resampled).astype(np.float32), (phase @ resampled).astype(np.float32)


def slices_of(
    geometry: PatchGeometry, slice_mm: float, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices from the fine grid along the last axis to slices, and from these to a patch.

    The first (fine planes, slices) averages over each slice, the second (slices, planes of the
    patch) interpolates as `cmb_bids.patches.cut_patches` does. ``offset`` from 0 to 1 says where
    between two slices the patch begins.
    """
    planes, spacing = geometry.shape[2], geometry.spacing_mm[2]
    fine = (np.arange(FINER * planes) + 0.5) * spacing / FINER
    reach = max(slice_mm, spacing)
    # Where a slice lies partly beyond the patch, what is inside stands for it.
    centres = np.arange((offset - 0.5) * slice_mm, (planes * spacing) + slice_mm / 2, slice_mm)
    apart = np.abs(fine[:, None] - centres)
    share = np.clip((slice_mm + spacing / FINER) / 2 - apart, 0, spacing / FINER)
    centres, share = centres[share.any(axis=0)], share[:, share.any(axis=0)]
    at = (np.arange(planes) + 0.5) * spacing
    weight = np.maximum(1 - np.abs(centres[:, None] - at) / reach, 0)
    return share / share.sum(axis=0), weight / weight.sum(axis=0)


@cache
def kept_vein(number: int, geometry: PatchGeometry, slice_mm: float, power: int) -> Tensor:
    """Loss and phase (2, X, Y, Z) of the vein of this number, drawn when first asked for."""
    rng = np.random.default_rng([POOL, number])
    while True:
        loss, phase = draw_vein(geometry, rng, slice_mm, power)
        if middle_of(loss).min() < SEEN:
            return torch.from_numpy(np.stack([loss, phase])).half()


def with_veins(
    stored: Tensor,
    labels: np.ndarray,
    share: float,
    rng: np.random.Generator,
    channels: Sequence[str] = CONTRAST_AND_PHASE,
    power: int = 4,
    slice_mm: np.ndarray | None = None,
) -> Tensor:
    """A batch in which veins run through some mimics and beside some lesions.

    Parameters
    ----------
    stored : (n, channels, X, Y, Z) tensor
        Contrast relative to the tissue around (1), phase relative to it (0).
    labels : (n,) array
        0 microbleed, 1 calcification, 2 other. They stay true.
    share : float
        Of the patches of each.
    rng : Generator
    channels : sequence of str, optional
        What the channels are: ``highpass`` is phase, anything else contrast.
    power : int, optional
        Of the phase mask in the contrast; 0 where the contrast is the magnitude.
    slice_mm : (n,) array, optional
        Thickness of the slices that each patch was cut from; drawn where it is not known.

    Returns
    -------
    (n, channels, X, Y, Z) tensor
    """
    chosen = rng.random(len(labels)) < share
    through = np.flatnonzero(chosen & (labels == OTHER) & _is_bright(stored))
    beside = np.flatnonzero(chosen & np.isin(labels, (MICROBLEED, CALCIFICATION)))
    if not len(through) and not len(beside):
        return stored
    drawn = stored.clone()
    for i in (*through, *beside):
        aside = (0, 0) if labels[i] == OTHER else _aside(rng)
        number = int(rng.integers(POOL))
        thick = rng.choice(SLICES_MM) if slice_mm is None else nearest_slice(slice_mm[i])
        vein = turned(kept_vein(number, _geometry_of(stored), float(thick), power).float(), rng)
        loss, phase = torch.roll(vein, aside, (1, 2))
        for channel, name in enumerate(channels):
            image = stored[i, channel]
            if name == "highpass":
                drawn[i, channel] = torch.where(image == 0, image, image + phase)
            else:
                drawn[i, channel] = image * loss
    return drawn


def nearest_slice(slice_mm: float) -> float:
    """The thickness that veins are drawn in for a patch of such slices."""
    return min(SLICES_MM, key=lambda known: abs(np.log(known / slice_mm)))


def _geometry_of(stored: Tensor) -> PatchGeometry:
    x, y, z = stored.shape[2:]
    return PatchGeometry((x, y, z))


def _is_bright(stored: Tensor) -> np.ndarray:
    """Whether the ground (n,) at the centre of patches would show a vein."""
    return np.median(middle_of(stored[:, 0].numpy()), axis=(1, 2, 3)) > GROUND_CONTRAST


def _aside(rng: np.random.Generator) -> tuple[int, int]:
    """Voxels in the plane that a vein beside a lesion is away from it."""
    turn, distance = rng.uniform(0, 2 * np.pi), rng.uniform(*BESIDE_MM)
    across, along = PatchGeometry().spacing_mm[:2]
    return round(distance * np.cos(turn) / across), round(distance * np.sin(turn) / along)
