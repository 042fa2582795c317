"""Candidates: places that could be a microbleed or a parenchymal calcification.

This stage has to find nearly every lesion within a fixed budget of candidates per scan; telling
lesions from their mimics is the network's work. The rule, in full, is in docs/candidates.md:

1. Work in the mask's bounding box, on a grid no finer than ``working_pixel_mm``.
2. Look for dark, radially symmetric places (`cmb_bids.frst`) in up to three contrasts: bias
   normalised magnitude, SWI, and phase coherence (dark where the phase turns fast, whichever the
   sign, so that it sees calcification, and needs no unwrapping).
3. Keep the local maxima of each contrast and describe each one (`cmb_bids.place_features`): its
   radial symmetry, its depth against its surroundings, how *enclosed* it is (a lesion is darker
   than its surroundings in nearly all directions, a vessel is as dark as itself in two of them),
   its curvatures, and how well the phase around fits a dipole.
4. Rank by a small learnt function of these (`cmb_bids.candidate_ranking`) and keep the best
   ``maximum_places``.
5. Look at those with a small network (`cmb_bids.screening`), merge neighbours, keep the likeliest
   ``maximum_candidates``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from cmb_bids.candidate_ranking import MAGNITUDE_ALONE, WITH_PHASE, load_ranking
from cmb_bids.frst import Sizes, fast_radial_symmetry, smoothed
from cmb_bids.place_features import (
    Contrast,
    PhaseAround,
    describe_places,
    fill_outside,
    sample,
)
from cmb_bids.same_lesion import suppress_neighbours
from cmb_bids.screening import lesion_log_odds
from cmb_bids.volumes import b0_direction, voxel_sizes, voxel_to_world

COLUMNS = ("index", "name", "x", "y", "z", "i", "j", "k", "score", "radius_mm", "contrast")


COLUMNS_DESCRIBED: dict[str, dict[str, str]] = {
    "index": {"Description": "Label of the candidate in the image beside this table, best first"},
    "name": {"Description": "Kind of entry: candidate"},
    "x": {"Description": "Position, scanner RAS+ x", "Units": "mm"},
    "y": {"Description": "Position, scanner RAS+ y", "Units": "mm"},
    "z": {"Description": "Position, scanner RAS+ z", "Units": "mm"},
    "i": {"Description": "Position along the first voxel axis, from 0, fractional"},
    "j": {"Description": "Position along the second voxel axis, from 0, fractional"},
    "k": {"Description": "Position along the third voxel axis, from 0, fractional"},
    "score": {
        "Description": "Logarithm of the odds of being a lesion of either kind, by screening"
    },
    "radius_mm": {"Description": "Radius at which the symmetry is strongest", "Units": "mm"},
    "contrast": {"Description": "Contrast the candidate was found in: magnitude, swi or phase"},
}

SAME_SPOT_MM = 0.6  # places nearer than this are described once
SAME_DARK_SPOT_MM = 1.2  # and nearer than this the network looks at the better ranked one alone


@dataclass(frozen=True)
class CandidateConfig:
    """The ``candidates`` section of the configuration.

    Attributes
    ----------
    radii_mm : tuple of float
        Radii looked for. A microbleed looks 2-10 mm wide.
    alpha : float
        Radial strictness of the symmetry transform.
    gradient_sigma_mm : float
        Smoothing before gradients are taken.
    noise_factor : float
        Gradients vote above this multiple of the median gradient in the brain.
    strong_factor : float
        Gradients count as full strength from this multiple of the same median on.
    working_pixel_mm : float
        Finer grids are averaged to about this size; thicker slices stay as they are.
    mask_dilation_mm : float
        The mask is grown by this much, so that lesions at the cortical edge are found.
    merge_distance_mm : float
        Candidates closer than this are one.
    maxima_per_contrast : int
        Local maxima of each contrast that are described and ranked.
    maximum_places : int
        Places, the best ranked ones, that the screening network looks at.
    maximum_candidates : int
        Candidates kept per scan.
    """

    radii_mm: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
    alpha: float = 2.0
    gradient_sigma_mm: float = 0.6
    noise_factor: float = 1.0
    strong_factor: float = 5.0
    working_pixel_mm: float = 0.75
    mask_dilation_mm: float = 2.0
    merge_distance_mm: float = 2.5
    maxima_per_contrast: int = 2000
    maximum_places: int = 1500
    maximum_candidates: int = 150


class _Grid(NamedTuple):
    """The working grid: voxel ``w`` of it lies at ``origin + scale * w`` of the scan's grid."""

    origin: np.ndarray
    scale: np.ndarray
    shape: tuple[int, int, int]
    voxel_sizes_mm: np.ndarray
    weights: tuple[np.ndarray | None, ...]
    box: tuple[slice, ...]

    def to_scan(self, places: np.ndarray) -> np.ndarray:
        return self.origin + self.scale * places


def _working_grid(mask: np.ndarray, sizes: np.ndarray, config: CandidateConfig) -> _Grid:
    """Bounding box of the mask with a margin, averaged where voxels are finer than needed."""
    margin_mm = config.mask_dilation_mm + max(config.radii_mm)
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = tuple(
        slice(max(part.start - pad, 0), min(part.stop + pad, length))
        for part, pad, length in zip(
            found, np.ceil(margin_mm / sizes).astype(int), mask.shape, strict=True
        )
    )
    weights, origin, scale, shape = [], [], [], []
    for part, size in zip(box, sizes, strict=True):
        old = part.stop - part.start
        # A little finer than asked is not worth averaging: it blurs without saving much.
        new = (
            old
            if size > 0.85 * config.working_pixel_mm
            else max(round(old * size / config.working_pixel_mm), 1)
        )
        step = old / new
        weights.append(None if new == old else _averaging_weights(old, new))
        origin.append(part.start + (step - 1) / 2)
        scale.append(step)
        shape.append(new)
    return _Grid(
        np.array(origin),
        np.array(scale),
        (shape[0], shape[1], shape[2]),
        sizes * np.array(scale),
        tuple(weights),
        box,
    )


def _averaging_weights(old: int, new: int) -> np.ndarray:
    """Weights (new, old) that average a line of ``old`` samples over ``new`` equal stretches."""
    edges = np.arange(new + 1) * old / new
    start, stop = edges[:-1, None], edges[1:, None]
    sample = np.arange(old)[None, :]
    overlap = np.minimum(stop, sample + 1) - np.maximum(start, sample)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _on_grid(image: np.ndarray, grid: _Grid) -> np.ndarray:
    """An image of the scan's shape, cropped and averaged to the working grid (float32)."""
    out = np.asarray(image[grid.box], dtype=np.float32)
    for axis, weights in enumerate(grid.weights):
        if weights is not None:
            out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def phase_coherence(
    real: np.ndarray,
    imaginary: np.ndarray,
    voxel_sizes_mm: Sizes,
    sigma_mm: float = 0.8,
) -> np.ndarray:
    """How much the phase agrees with its neighbourhood: length of the local mean of exp(i phase).

    Parameters
    ----------
    real, imaginary : (x, y, z) arrays
        Cosine and sine of the high-pass filtered phase.
    voxel_sizes_mm : (3,) sequence
    sigma_mm : float
        Width of the Gaussian neighbourhood.

    Returns
    -------
    (x, y, z) float32 array
        1 where the phase is even, towards 0 where it turns within the neighbourhood: the dipole
        of a lesion of either sign.
    """
    return np.hypot(
        smoothed(real, voxel_sizes_mm, sigma_mm), smoothed(imaginary, voxel_sizes_mm, sigma_mm)
    )


def _local_maxima(strength: np.ndarray, inside: np.ndarray, most: int) -> np.ndarray:
    """Voxels (n, 3) that no neighbour exceeds, the strongest ``most`` inside, best first."""
    highest = ndimage.maximum_filter(strength, size=3, mode="nearest")
    peaks = np.stack(np.nonzero((strength >= highest) & (strength > 0) & inside), axis=1)
    order = np.argsort(-strength[tuple(peaks.T)], kind="stable")[:most]
    return peaks[order]


def _contrast_images(
    normalized: np.ndarray,
    swi: np.ndarray | None,
    highpass: np.ndarray | None,
    mask: np.ndarray,
    grid: _Grid,
) -> dict[str, np.ndarray]:
    """The images to look at on the working grid; values that are not finite become 0."""
    images = {"magnitude": _on_grid(_finite(normalized), grid)}
    if swi is not None:
        # Relative to the brain, as the magnitude is: scanners' units differ a thousandfold.
        finite = _finite(swi)
        level = max(float(np.median(finite[mask])), 1e-6)
        images["swi"] = _on_grid(finite / np.float32(level), grid)
    if highpass is not None:
        phase = _finite(highpass)[grid.box]
        whole = tuple(slice(None) for _ in range(3))
        local = grid._replace(box=whole)
        # Averaging unit vectors, not angles: a wrap inside a working voxel does no harm.
        real, imaginary = _on_grid(np.cos(phase), local), _on_grid(np.sin(phase), local)
        images["phase"] = phase_coherence(real, imaginary, grid.voxel_sizes_mm)
    return images


def _finite(image: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _contrasts(
    images: dict[str, np.ndarray], inside: np.ndarray, grid: _Grid, config: CandidateConfig
) -> list[Contrast]:
    """Fill each image outside the mask and compute its radial symmetry."""
    contrasts = []
    for name, image in images.items():
        filled = fill_outside(image, inside, grid.voxel_sizes_mm)
        symmetry = fast_radial_symmetry(
            filled,
            grid.voxel_sizes_mm,
            config.radii_mm,
            inside,
            alpha=config.alpha,
            gradient_sigma_mm=config.gradient_sigma_mm,
            noise_factor=config.noise_factor,
            strong_factor=config.strong_factor,
        )
        contrasts.append(Contrast(name, filled, symmetry.peak, symmetry.radius_mm))
    return contrasts


def _dark_centroids(
    image: np.ndarray, places: np.ndarray, voxel_sizes_mm: np.ndarray
) -> np.ndarray:
    """Move each place (n, 3) to the centre of the dark spot it is on, at most 2 mm away.

    Mean shift: centroid of how much darker than the local mean the image is, under a Gaussian
    window of 1.2 mm, repeated. A window so small follows the spot and not its neighbours.
    """
    darkness = smoothed(image, voxel_sizes_mm, 4.0) - image
    np.maximum(darkness, 0, out=darkness)
    reach = np.maximum(2.4, voxel_sizes_mm)
    axes = [np.linspace(-r, r, 2 * int(np.ceil(r / 0.6)) + 1) for r in reach]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    width = np.maximum(1.2, 0.6 * voxel_sizes_mm)
    window = np.exp(-0.5 * ((offsets / width) ** 2).sum(axis=1))
    moved = places.astype(float)
    for _ in range(4):
        weights = window * sample(darkness, moved[:, None, :] + offsets / voxel_sizes_mm)
        total = weights.sum(axis=1, keepdims=True)
        step = (weights @ offsets) / np.maximum(total, 1e-6)
        candidate = moved + step / voxel_sizes_mm
        away = np.linalg.norm((candidate - places) * voxel_sizes_mm, axis=1)
        moved = np.where((away <= 2.0)[:, None], candidate, moved)
    return moved


def empty_candidates() -> pd.DataFrame:
    """The table of a scan without candidates: header only, columns typed."""
    kinds = {"index": np.int64, "name": object, "contrast": object}
    return pd.DataFrame({name: pd.Series(dtype=kinds.get(name, float)) for name in COLUMNS})


def find_candidates(
    normalized: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    swi: np.ndarray | None = None,
    highpass: np.ndarray | None = None,
    config: CandidateConfig | None = None,
    threads: int | None = None,
) -> pd.DataFrame:
    """Places that could be a microbleed or a calcification, best first.

    Parameters
    ----------
    normalized : (x, y, z) array
        Bias-corrected magnitude, about 1 in tissue.
    mask : (x, y, z) array of bool
        The brain.
    affine : (4, 4) array
        Voxel to scanner mm.
    swi : (x, y, z) array, optional
        Susceptibility-weighted image, any units.
    highpass : (x, y, z) array, optional
        High-pass filtered phase in radians, wrapped or not.
    config : CandidateConfig, optional
    threads : int, optional
        CPU threads of the screening network; default: as many as torch is set to.

    Returns
    -------
    DataFrame
        One row per candidate: ``index`` (from 1), ``name``, ``x y z`` (scanner mm), ``i j k``
        (fractional voxels), ``score``, ``radius_mm`` and ``contrast`` (where it was seen best).
        Header only where the mask is empty or nothing is dark.

    Raises
    ------
    ValueError
        Images and mask differ in shape.
    """
    config = config or CandidateConfig()
    places = propose_places(normalized, mask, affine, swi, highpass, config)
    best = choose_candidates(places, normalized, mask, affine, swi, highpass, config, threads)
    return empty_candidates() if best.empty else best[list(COLUMNS)]


def choose_candidates(
    places: pd.DataFrame,
    normalized: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    swi: np.ndarray | None,
    highpass: np.ndarray | None,
    config: CandidateConfig,
    threads: int | None = None,
) -> pd.DataFrame:
    """The likeliest of the places: ranked, screened, merged.

    Parameters
    ----------
    places : DataFrame
        As `propose_places` returns it; may be empty.
    normalized, mask, affine, swi, highpass, config, threads
        As `find_candidates`.

    Returns
    -------
    DataFrame
        The kept rows, best first, with ``index``, ``name`` and ``score`` added.
    """
    if places.empty:
        return places
    ranked = rank_places(places, config)
    with_phase = swi is not None and highpass is not None
    odds = lesion_log_odds(
        swi if swi is not None and with_phase else normalized,
        highpass if with_phase else None,
        mask,
        affine,
        ranked[["x", "y", "z"]].to_numpy(),
        ranked["score"].to_numpy(),
        threads,
    )
    ranked = ranked.assign(score=odds)
    best = merged(ranked, config.merge_distance_mm, config.maximum_candidates)
    return best.assign(index=np.arange(1, len(best) + 1), name="candidate")


def rank_places(places: pd.DataFrame, config: CandidateConfig) -> pd.DataFrame:
    """The places (not empty) with the ranking's ``score``, merged, the best ``maximum_places``."""
    ranking = load_ranking(WITH_PHASE if "symmetry_phase" in places else MAGNITUDE_ALONE)
    scored = places.assign(score=ranking.score(places))
    return merged(scored, SAME_DARK_SPOT_MM, config.maximum_places)


def merged(places: pd.DataFrame, distance_mm: float, most: int) -> pd.DataFrame:
    """Places by their ``score``, those within ``distance_mm`` of a better one left out."""
    points = places[["x", "y", "z"]].to_numpy()
    kept = suppress_neighbours(points, places["score"].to_numpy(), distance_mm)
    return places.iloc[kept[:most]].reset_index(drop=True)


def propose_places(
    normalized: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    swi: np.ndarray | None,
    highpass: np.ndarray | None,
    config: CandidateConfig,
) -> pd.DataFrame:
    """Every local maximum of every contrast with its features, unranked and unmerged.

    Parameters
    ----------
    normalized, mask, affine, swi, highpass, config
        As `find_candidates`.

    Returns
    -------
    DataFrame
        ``x y z i j k radius_mm contrast`` and the features of
        `cmb_bids.place_features.describe_places`; empty where
        there is no brain or nothing dark in it.

    Raises
    ------
    ValueError
        Images and mask differ in shape.
    """
    mask = np.asarray(mask, dtype=bool)
    for image in (normalized, swi, highpass):
        if image is not None and image.shape != mask.shape:
            raise ValueError(f"an image has shape {image.shape}, the mask {mask.shape}")
    if not mask.any():
        return pd.DataFrame()
    sizes = voxel_sizes(affine)
    grid = _working_grid(mask, sizes, config)
    brain = _on_grid(mask, grid) > 0.5
    if not brain.any():
        return pd.DataFrame()
    rim_mm = _signed_distance(brain, grid.voxel_sizes_mm)
    inside = rim_mm <= config.mask_dilation_mm
    contrasts = _contrasts(
        _contrast_images(normalized, swi, highpass, mask, grid), inside, grid, config
    )
    table = _distinct(
        [_places_of(contrast, inside, grid, config) for contrast in contrasts], grid.voxel_sizes_mm
    )
    if table.empty:
        return table
    places = table[["a", "b", "c"]].to_numpy()
    in_scan = grid.to_scan(places)
    table[["i", "j", "k"]] = in_scan
    table[["x", "y", "z"]] = voxel_to_world(affine, in_scan)
    around = None
    if highpass is not None:
        around = PhaseAround(_finite(highpass), mask, sizes, b0_direction(affine))
    features = describe_places(
        contrasts,
        places,
        table["radius_mm"].to_numpy(),
        brain,
        rim_mm,
        grid.voxel_sizes_mm,
        around,
        in_scan,
    )
    return pd.concat([table.drop(columns=["a", "b", "c"]), features], axis=1)


def _distinct(found: Sequence[pd.DataFrame], voxel_sizes_mm: np.ndarray) -> pd.DataFrame:
    """All places, those that several contrasts (or maxima) moved to the same spot once.

    The one that ranks best in its contrast stands for the others.
    """
    rank = np.concatenate([np.arange(len(part)) for part in found])
    table = pd.concat(found, ignore_index=True)
    points = table[["a", "b", "c"]].to_numpy() * voxel_sizes_mm
    kept = suppress_neighbours(points, -rank, SAME_SPOT_MM)
    return table.iloc[kept].reset_index(drop=True)


def _signed_distance(brain: np.ndarray, voxel_sizes_mm: np.ndarray) -> np.ndarray:
    """Distance (mm) of each voxel to the brain's surface, negative inside."""
    outside = ndimage.distance_transform_edt(~brain, sampling=voxel_sizes_mm)
    inside = ndimage.distance_transform_edt(brain, sampling=voxel_sizes_mm)
    return (outside - inside).astype(np.float32)


def _places_of(
    contrast: Contrast,
    inside: np.ndarray,
    grid: _Grid,
    config: CandidateConfig,
) -> pd.DataFrame:
    """Local maxima of one contrast, moved to the centre of the dark spot in that contrast."""
    peaks = _local_maxima(contrast.symmetry, inside, config.maxima_per_contrast)
    places = _dark_centroids(contrast.image, peaks, grid.voxel_sizes_mm)
    table = pd.DataFrame(places, columns=["a", "b", "c"])
    table["radius_mm"] = contrast.radius_mm[tuple(peaks.T)].astype(float)
    table["contrast"] = contrast.name
    return table


def label_candidates(table: pd.DataFrame, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A small ball per candidate, labelled with its ``index``.

    Parameters
    ----------
    table : DataFrame
        As `find_candidates` returns it: ``index``, ``i j k`` and ``radius_mm``.
    shape : (3,) tuple
        Of the scan.
    affine : (4, 4) array

    Returns
    -------
    (x, y, z) array of int16
        0 outside. Each ball has the candidate's radius, within 1 to 2.5 mm, and at least the
        voxel the candidate is in; where balls meet, the better candidate keeps the voxel.
    """
    labels = np.zeros(shape, dtype=np.int16)
    sizes = voxel_sizes(affine)
    worst_first = table.sort_values("index", ascending=False)
    numbers = worst_first["index"].to_numpy(dtype=np.int16)
    centres = worst_first[["i", "j", "k"]].to_numpy(dtype=float)
    radii = worst_first["radius_mm"].clip(1.0, 2.5).to_numpy(dtype=float)
    for number, centre, radius in zip(numbers, centres, radii, strict=True):
        box = tuple(
            slice(max(int(np.floor(c - radius / size)), 0), int(np.ceil(c + radius / size)) + 1)
            for c, size in zip(centre, sizes, strict=True)
        )
        axes = [
            (np.arange(part.start, min(part.stop, length)) - c) * size
            for part, length, c, size in zip(box, shape, centre, sizes, strict=True)
        ]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        labels[box][x**2 + y**2 + z**2 <= radius**2] = number
    # Last, so that no candidate is lost under a better neighbour's ball.
    nearest = np.clip(np.rint(centres), 0, np.array(shape) - 1).astype(int)
    labels[tuple(nearest.T)] = numbers
    return labels
