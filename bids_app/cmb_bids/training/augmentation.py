"""Augmentation: patches varied as scans vary, and lesions put where mimics are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cmb_bids.patches import PatchGeometry
from cmb_bids.resnet import CONTRAST_AND_PHASE
from cmb_bids.training.labels import MICROBLEED, OTHER

PatchArray = TypeVar("PatchArray", np.ndarray, Tensor)

TRANSPLANT_MM = (4.0, 8.0)  # from its centre on a lesion's patch fades, and is gone
CENTRE_VOXELS = 2  # to each side of a patch's centre: what decides whether a lesion can be seen
LESION_CONTRAST = 0.75  # only lesions darker than this are still to be seen on another ground
SAME_SLICES = 1.2  # ratio of two slice thicknesses within which a lesion looks alike in both
GROUND_CONTRAST = 0.5  # nor can any, or a vein, be seen on a ground that is darker than this


def augment(
    stored: Tensor,
    margin: tuple[int, int, int],
    rng: np.random.Generator,
    channels: Sequence[str] = CONTRAST_AND_PHASE,
) -> Tensor:
    """Vary a batch as scans vary.

    Shifts of up to the margin; flips along any axis and exchange of the in-plane axes (all leave a
    dipole along the last axis a dipole); contrast, phase and noise jittered; the phase now and
    then weakened, so that the network does not lean on it alone.

    Parameters
    ----------
    stored : (n, channels, X + 2 mx, Y + 2 my, Z + 2 mz) tensor
    margin : (mx, my, mz)
    rng : Generator
    channels : sequence of str, optional
        What the channels are: ``highpass`` is phase, anything else contrast.

    Returns
    -------
    (n, channels, X, Y, Z) tensor
    """
    patches = torch.stack([_moved(patch, margin, rng) for patch in stored])
    n = len(patches)

    def factors(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (n, 1, 1, 1)).astype(np.float32))

    noise_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
    noise = torch.randn(patches.shape, generator=noise_rng)
    for i, name in enumerate(channels):
        image = patches[:, i]
        if name == "highpass":
            strength = factors(0.7, 1.3) * torch.where(factors(0, 1) < 0.05, 0.2, 1.0)
            noisy = image * strength + noise[:, i] * factors(0, 0.08) * (image != 0)
            patches[:, i] = noisy.clamp(-math.pi, math.pi)
        else:
            contrast = image.clamp(min=0) ** factors(0.75, 1.3) * factors(0.88, 1.12)
            patches[:, i] = (contrast + noise[:, i] * factors(0, 0.05) * (contrast > 0)).clamp(0, 3)
    return patches


def _moved(patch: Tensor, margin: tuple[int, int, int], rng: np.random.Generator) -> Tensor:
    """One stored patch (channels, ...) shifted within its margin, flipped, turned."""
    starts = [int(rng.integers(0, 2 * m + 1)) for m in margin]
    window = [
        slice(start, start + size - 2 * m)
        for start, size, m in zip(starts, patch.shape[1:], margin, strict=True)
    ]
    return turned(patch[(slice(None), *window)], rng)


def turned(moved: Tensor, rng: np.random.Generator) -> Tensor:
    """A patch (channels, X, Y, Z) flipped, and its in-plane axes exchanged, at random."""
    flips = [axis + 1 for axis in range(3) if rng.random() < 0.5]
    moved = torch.flip(moved, flips) if flips else moved
    if rng.random() < 0.5 and moved.shape[1] == moved.shape[2]:
        moved = moved.transpose(1, 2)
    return moved


def transplanted(
    stored: Tensor,
    labels: np.ndarray,
    share: float,
    rng: np.random.Generator,
    channels: Sequence[str] = CONTRAST_AND_PHASE,
    slice_mm: np.ndarray | None = None,
) -> Tensor:
    """A batch in which some microbleeds were put where a mimic of the same batch is.

    Few microbleeds touch a vein or lie beside air by chance, and a network that has hardly met one
    there takes it for one of the mimics that are common there. Here it meets both on equal terms.
    Each is put where slices are about as thick as its own: a dot in two slices of 3 mm would
    look like a vein among slices of 1.5 mm.

    Parameters
    ----------
    stored : (n, channels, X, Y, Z) tensor
    labels : (n,) array
        0 microbleed, 2 other.
    share : float
        Of the microbleeds that can still be seen elsewhere.
    rng : Generator
    channels : sequence of str, optional
        As in `transplant`; the first is a contrast.
    slice_mm : (n,) array, optional
        Thickness of the slices that each patch was cut from; by default all count as alike.

    Returns
    -------
    (n, channels, X, Y, Z) tensor
    """
    if not share:
        return stored
    darkest, median = _at_the_centre(stored[:, 0])
    lesions = np.flatnonzero((labels == MICROBLEED) & (darkest < LESION_CONTRAST))
    grounds = np.flatnonzero((labels == OTHER) & (median > GROUND_CONTRAST))
    lesions = lesions[rng.random(len(lesions)) < share]
    thickness = np.ones(len(labels)) if slice_mm is None else slice_mm
    apart = np.abs(np.log(thickness[lesions][:, None] / thickness[grounds]))
    alike = apart <= np.log(SAME_SLICES)
    lesions, alike = lesions[alike.any(axis=1)], alike[alike.any(axis=1)]
    if not len(lesions):
        return stored
    there = stored[[rng.choice(grounds[fits]) for fits in alike]]
    there = torch.stack([turned(patch, rng) for patch in there])
    placed = stored.clone()
    placed[lesions] = transplant(stored[lesions], there, channels)
    return placed


def _at_the_centre(contrast: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The least and the median contrast (n,) around the centre of patches (n, X, Y, Z)."""
    centre = middle_of(contrast).flatten(1)
    return centre.amin(1).numpy(), centre.median(1).values.numpy()


def middle_of(patches: PatchArray) -> PatchArray:
    """What lies within `CENTRE_VOXELS` of the centre of patches (..., X, Y, Z)."""
    x, y, z = (slice(n // 2 - CENTRE_VOXELS, n // 2 + CENTRE_VOXELS) for n in patches.shape[-3:])
    return patches[..., x, y, z]


def transplant(
    lesions: Tensor, grounds: Tensor, channels: Sequence[str] = CONTRAST_AND_PHASE
) -> Tensor:
    """Lesions put into other patches, so that a microbleed is met against whatever looks like one.

    Phase of sources adds and their loss of signal multiplies. What surrounds a lesion at home fades
    out between `TRANSPLANT_MM` from its centre. Beyond the mask (zero) the ground stays.

    Parameters
    ----------
    lesions, grounds : (n, channels, X, Y, Z) tensors
        Contrast relative to the tissue around (1), phase relative to it (0); the same geometry.
    channels : sequence of str, optional
        What the channels are: ``highpass`` is phase, anything else contrast.

    Returns
    -------
    (n, channels, X, Y, Z) tensor
    """
    fade = _fade(tuple(lesions.shape[2:]))
    placed = grounds.clone()
    for i, name in enumerate(channels):
        lesion, ground = lesions[:, i], grounds[:, i]
        if name == "highpass":
            placed[:, i] = torch.where(ground == 0, ground, ground + fade * lesion)
        else:
            loss = torch.where(lesion > 0, 1 + fade * (lesion - 1), 1.0)
            placed[:, i] = ground * loss
    return placed


@cache
def _fade(shape: tuple[int, int, int]) -> Tensor:
    """What is left of a lesion's patch (X, Y, Z): 1 near its centre, 0 far from it."""
    near, far = TRANSPLANT_MM
    axes = [
        (torch.arange(n) - (n - 1) / 2) * size
        for n, size in zip(shape, PatchGeometry().spacing_mm, strict=True)
    ]
    squares = [axis**2 for axis in axes]
    distance = torch.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])
    place = ((distance - near) / (far - near)).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(math.pi * place)
