"""From classified candidates to lesions: what each is, its extent, its size, where it lies.

A candidate is a point with three probabilities. It becomes a lesion when the probability of
being a microbleed, or a calcification, passes a threshold. A lesion is then drawn as the dark
region around the point that is at least half as deep as its darkest voxel (full width at half
depth), which is how a blurred sphere keeps its diameter. All lengths are mm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist, pdist
from skimage.segmentation import watershed

from cmb_bids.anatomy import Place, label_lesions, to_mni
from cmb_bids.columns import LESION_COLUMNS
from cmb_bids.moments import NO_PHASE, Phase, judge, measure_moments
from cmb_bids.red_nuclei import are_alike, mirrored_mm
from cmb_bids.same_lesion import FARTHEST_MM, same_place_mm, suppress_neighbours
from cmb_bids.volumes import voxel_sizes, voxel_to_world, world_to_voxel

MICROBLEED = "microbleed"
CALCIFICATION = "calcification"
CALCIFICATION_PROBABILITY = 0.5
# From which a microbleed within 5 mm of a surer one is a second one. Training teaches nothing of
# what lies there: what is doubtful is the first one's bloom, or iron around it.
NEIGHBOUR_PROBABILITY = 0.95
NEIGHBOUR_DEPTH = 0.75  # and it is at least this share as dark as the surer one
DEFINITE = "definite"
POSSIBLE = "possible"

FALLBACK_THRESHOLDS = {DEFINITE: 0.5, POSSIBLE: 0.2}  # for a model whose report states none

REGION_COLUMNS = [
    "hemisphere",
    "mars_region",
    "mars_class",
    "bombs_region",
    "bombs_class",
    "structure",
    "region_source",
]
MNI_COLUMNS = ["x_mni", "y_mni", "z_mni"]
TABLE_COLUMNS = list(LESION_COLUMNS)


@dataclass(frozen=True)
class LesionConfig:
    """What makes a candidate a lesion, and how a lesion is drawn.

    Attributes
    ----------
    definite_probability, possible_probability : float or None
        Thresholds on the network's probability; None takes those of the model.
    minimum_diameter_mm : float
        Extent from which a lesion is counted (STRIVE: 2 mm); smaller ones are listed.
    maximum_diameter_mm : float
        Apparent diameter up to which a lesion is counted (STRIVE: 10 mm); larger ones are listed.
    growth_radius_mm : float
        A lesion reaches at most this far from its darkest voxel.
    background_radius_mm : float
        Radius of the neighbourhood whose median is the tissue the lesion is dark against.
    depth_fraction : float
        A voxel belongs to the lesion when it is at least this share of the full depth.
    """

    definite_probability: float | None = None
    possible_probability: float | None = None
    minimum_diameter_mm: float = 2.0
    maximum_diameter_mm: float = 10.0
    growth_radius_mm: float = 8.0
    background_radius_mm: float = 10.0
    depth_fraction: float = 0.5


# How two detections are told to be one lesion, and where a vessel that touches a lesion is cut.
ONE_LESION_DEPTH = 0.75  # no ridge shallower than this share of the shallower one's depth
SHELL_FILL = 0.10  # a lesion fills at least this share of a spherical shell round its centre
SHELL_MM = 1.0  # thickness of those shells, at least
SEED_RADIUS_MM = (1.5, 3.0)  # the darkest voxel is sought this near the candidate
FARTHEST_CENTROID_MM = 3.0  # from the candidate; beyond, the candidate says where the lesion is
RED_NUCLEUS_RADIUS_MM = 3.0  # the other one's darkest voxel is sought this near its place
# How the tissue that a small lesion lies in is told from its own noise and from what lies beyond.
TISSUE_SHELLS_MM = ((2.0, 4.0), (3.0, 5.0), (4.0, 7.0), (6.0, 10.0))  # from the darkest voxel
TISSUE_CONTRAST = 0.45  # of the contrast to the wider surroundings, at least
TISSUE_NOISE = 8.0  # standard deviations that the mean of a lesion is away from it, at least


class Blob(NamedTuple):
    """One drawn lesion in a box of the image.

    ``origin`` (3,) is the box's first voxel, ``inside`` (a, b, c) its voxels in the box,
    ``depth`` (a, b, c) how far each voxel is below the tissue around (1 = to zero signal),
    ``seed`` (3,) its darkest voxel in whole-image indices.
    """

    origin: np.ndarray
    inside: np.ndarray
    depth: np.ndarray
    seed: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box, as slices of the whole image."""
        first, last = self.origin, self.origin + self.inside.shape
        return (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))

    @property
    def seed_depth(self) -> float:
        """Depth at the darkest voxel."""
        return float(self.depth[tuple(np.subtract(self.seed, self.origin))])

    def covers(self, voxel: tuple[int, int, int]) -> bool:
        """Whether a voxel of the whole image is inside."""
        local = np.subtract(voxel, self.origin)
        if (local < 0).any() or (local >= self.inside.shape).any():
            return False
        return bool(self.inside[tuple(local)])


def decide_thresholds(
    config: LesionConfig, model_thresholds: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """Thresholds (definite, possible): the configuration's, else the model's, else 0.5 and 0.2.

    Raises
    ------
    ValueError
        The possible threshold is above the definite one, or one is outside 0 to 1.
    """
    stated = {**FALLBACK_THRESHOLDS, **(model_thresholds or {})}
    definite = config.definite_probability
    possible = config.possible_probability
    definite = float(stated[DEFINITE] if definite is None else definite)
    # A user who lowers only the definite threshold means the possible one to follow.
    possible = min(float(stated[POSSIBLE]), definite) if possible is None else float(possible)
    if not 0 < possible <= definite <= 1:
        raise ValueError(
            f"lesion thresholds must satisfy 0 < possible <= definite <= 1; "
            f"got possible {possible:g} and definite {definite:g}"
        )
    return definite, possible


def decide_classes(
    probabilities: pd.DataFrame, definite: float, possible: float
) -> tuple[np.ndarray, np.ndarray]:
    """Class and certainty of each candidate.

    The likelier of microbleed and calcification: a microbleed when its probability passes a
    threshold, a calcification when it is likelier than everything else together. The thresholds
    were chosen for microbleeds; nobody counts possible calcifications.

    Parameters
    ----------
    probabilities : DataFrame of n rows
        ``p_microbleed`` and ``p_calcification``; missing values count as zero.
    definite, possible : float
        Thresholds of microbleeds, possible <= definite.

    Returns
    -------
    lesion_class, certainty : (n,) arrays of str
        Both empty strings for a candidate that is neither.
    """
    microbleed = probabilities["p_microbleed"].to_numpy(dtype=float, na_value=0.0)
    calcification = probabilities["p_calcification"].to_numpy(dtype=float, na_value=0.0)
    microbleed, calcification = np.nan_to_num(microbleed), np.nan_to_num(calcification)
    is_microbleed = (microbleed >= calcification) & (microbleed >= possible)
    is_calcification = ~is_microbleed & (calcification >= CALCIFICATION_PROBABILITY)
    lesion_class = np.where(
        is_microbleed, MICROBLEED, np.where(is_calcification, CALCIFICATION, "")
    )
    sure = is_calcification | (is_microbleed & (microbleed >= definite))
    certainty = np.where(sure, DEFINITE, np.where(is_microbleed, POSSIBLE, ""))
    return lesion_class, certainty


def _box_round(
    point: np.ndarray, radius_mm: float, affine: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, tuple[slice, ...], np.ndarray]:
    """The box round a voxel: its origin, slices, and each voxel's distance (mm) to the point."""
    centre = np.clip(np.rint(point), 0, np.subtract(shape, 1)).astype(int)
    reach = np.ceil(radius_mm / voxel_sizes(affine)).astype(int)
    first = np.maximum(centre - reach, 0)
    last = np.minimum(centre + reach + 1, shape)
    slices = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    axes = [np.arange(s.start, s.stop) for s in slices]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    distance = np.linalg.norm((offsets - point) @ np.asarray(affine, float)[:3, :3].T, axis=-1)
    return first, slices, distance


def _cut_tails(inside: np.ndarray, distance: np.ndarray, thickness: float) -> np.ndarray:
    """Cut a region beyond the distance where it fills little of the sphere around its centre.

    A vessel that touches a lesion passes through a sphere round the lesion in a small spot; the
    lesion itself fills the sphere until its own edge. The first sparse shell is kept, for it may
    hold that edge. Shells thinner than a slice would be sparse where they pass between slices.
    """
    shell = np.floor(distance / thickness).astype(int)
    whole = np.bincount(shell.ravel())
    filled = np.bincount(shell[inside], minlength=whole.size)
    sparse = np.flatnonzero(filled < SHELL_FILL * whole)
    return inside if sparse.size == 0 else inside & (shell <= sparse[0])


def _connected_to(inside: np.ndarray, voxel: tuple[int, ...]) -> np.ndarray:
    """The face-connected part of a region that holds a voxel."""
    labels, _ = ndimage.label(inside)
    return (labels == labels[voxel]) & (labels > 0)


def _grow(
    deep: np.ndarray,
    depth: np.ndarray,
    seed: tuple[int, ...],
    offsets: np.ndarray,
    shell_mm: float,
) -> np.ndarray:
    """The connected part of what is deep enough that holds the seed, holes filled, without tails.

    ``offsets`` (a, b, c, 3) are mm from the seed; ``shell_mm`` is for `_cut_tails`.
    """
    deep[seed] = True
    # Filled first: a shell with the bright rim of a wrap in it would look sparse, and be cut.
    inside = ndimage.binary_fill_holes(_connected_to(deep, seed))
    weights = np.maximum(depth[inside], 0)
    centre = (offsets[inside] * weights[:, None]).sum(axis=0) / weights.sum()
    cut = _cut_tails(inside, np.linalg.norm(offsets - centre, axis=-1), shell_mm)
    kept = _connected_to(cut, seed) if cut[seed] else inside
    if 2 * np.count_nonzero(kept) < np.count_nonzero(inside):
        # What the lesion ran into is larger than the lesion: the centre was not the lesion's.
        cut = _cut_tails(inside, np.linalg.norm(offsets, axis=-1), shell_mm)
        kept = _connected_to(cut, seed)
    return kept


def _noise(values: np.ndarray, usable: np.ndarray) -> float:
    """Standard deviation of noise, robust, from voxels two steps apart.

    Neighbours are alike in images that were interpolated to twice their matrix.
    """
    steps = []
    for axis in range(3):
        here, known = np.moveaxis(values, axis, 0), np.moveaxis(usable, axis, 0)
        steps.append((here[2:] - here[:-2])[known[2:] & known[:-2]])
    apart = np.abs(np.concatenate(steps))
    return 1.4826 / np.sqrt(2) * float(np.median(apart)) if apart.size else 0.0


def _tissue_around(
    values: np.ndarray,
    usable: np.ndarray,
    distance: np.ndarray,
    seed: tuple[int, ...],
    wider: float,
    radius_mm: float,
    depth_fraction: float,
) -> float:
    """What the image shows in the tissue a lesion lies in.

    A small lesion in a dark nucleus is dark against the nucleus, not against the white matter
    beyond: at half of that depth it would be the nucleus that is drawn. So the tissue is the
    nearest shell around the darkest voxel, beyond the candidate's radius, that is much brighter
    than it, that the lesion drawn against it hardly enters, and beyond which nothing is as dark as
    the lesion (as it is beyond a bright rim of wrapped phase). That lesion must stand out from
    noise, lest it be a dark spot of a large faint one. Where no shell is that, the tissue is
    ``wider``, the median of all around.
    """
    darkest = values[seed]
    shells = [
        usable & (distance >= near) & (distance < far)
        for near, far in TISSUE_SHELLS_MM
        if near >= radius_mm
    ]
    shells = [shell for shell in shells if shell.any()]
    levels = [float(np.median(values[shell])) for shell in shells]
    noise = _noise(values, usable)
    for position, (shell, level) in enumerate(zip(shells, levels, strict=True)):
        edge = level - depth_fraction * (level - darkest)
        if level - darkest < TISSUE_CONTRAST * (wider - darkest) or min(levels[position:]) < edge:
            continue
        drawn = usable & (values <= edge)
        drawn[seed] = True
        drawn = _connected_to(drawn, seed)
        if np.count_nonzero(drawn & shell) >= SHELL_FILL * np.count_nonzero(shell):
            continue
        contrast = level - float(values[drawn].mean())
        if contrast * np.sqrt(np.count_nonzero(drawn)) >= TISSUE_NOISE * noise:
            return level
    return wider


def draw_blob(
    image: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    point: np.ndarray,
    radius_mm: float,
    config: LesionConfig,
) -> Blob | None:
    """Draw the dark region around a point.

    Region growing from the darkest voxel near the point, through voxels at least
    ``depth_fraction`` as deep against the tissue around, within ``growth_radius_mm`` and the
    brain mask.

    Parameters
    ----------
    image : (x, y, z) array
        Lesions are dark; any positive scale.
    mask : (x, y, z) bool array
        Brain.
    affine : (4, 4) array
        Voxel to scanner mm.
    point : (3,) array
        Voxel indices, fractional.
    radius_mm : float
        The candidate's radius.
    config : LesionConfig

    Returns
    -------
    Blob or None
        None where there is nothing darker than the tissue around.
    """
    reach = max(config.background_radius_mm, config.growth_radius_mm)
    origin, slices, distance = _box_round(point, reach, affine, image.shape)
    values = image[slices].astype(np.float64)
    usable = np.isfinite(values) & mask[slices]
    nearest = distance == distance.min()
    seekable = usable & ((distance <= np.clip(radius_mm, *SEED_RADIUS_MM)) | nearest)
    if not seekable.any():  # a candidate at the very edge of the mask
        seekable = nearest & np.isfinite(values)
    around = usable & (distance <= config.background_radius_mm)
    if not seekable.any() or not around.any():
        return None
    background = float(np.median(values[around]))
    darkest = np.argmin(np.where(seekable, values, np.inf))
    seed = tuple(int(v) for v in np.unravel_index(darkest, values.shape))
    if background <= 0 or values[seed] >= background:
        return None
    steps = np.stack(np.meshgrid(*[np.arange(n) for n in values.shape], indexing="ij"), -1) - seed
    offsets = steps @ np.asarray(affine, dtype=float)[:3, :3].T
    from_seed = np.linalg.norm(offsets, axis=-1)
    background = _tissue_around(
        values, usable, from_seed, seed, background, radius_mm, config.depth_fraction
    )
    depth = np.where(np.isfinite(values), 1 - values / background, 0.0)
    deep = usable & (depth >= config.depth_fraction * depth[seed])
    deep &= from_seed <= config.growth_radius_mm
    shell_mm = max(SHELL_MM, float(voxel_sizes(affine).max()))
    inside = _grow(deep, depth, seed, offsets, shell_mm)
    inside &= usable | deep
    first, second, third = (int(v) for v in np.add(seed, origin))
    return Blob(origin, inside, depth, (first, second, third))


def is_one_lesion(one: Blob, other: Blob) -> bool:
    """Whether two drawings show the same lesion.

    They do when a path from one's darkest voxel to the other's never rises above
    `ONE_LESION_DEPTH` of the shallower one's depth, or when one encloses the other without
    being connected to it (the bright rim of a phase wrap inside a large lesion). Two neighbours
    with a visible gap between them stay two.
    """
    if one.seed == other.seed:
        return True
    if not (one.covers(other.seed) or other.covers(one.seed)):
        return False
    holder, held = (one, other) if one.covers(other.seed) else (other, one)
    here = tuple(np.subtract(holder.seed, holder.origin))
    there = tuple(np.subtract(held.seed, holder.origin))
    shallower = min(holder.depth[here], holder.depth[there])
    if shallower <= 0:
        return True  # a filled hole: bright, but enclosed
    labels, _ = ndimage.label(holder.inside & (holder.depth >= ONE_LESION_DEPTH * shallower))
    return bool(labels[here] == labels[there])


def group_blobs(blobs: list[Blob]) -> list[list[int]]:
    """Positions of the blobs that are one lesion, in the order of their first member."""
    group = list(range(len(blobs)))
    for j in range(len(blobs)):
        for i in range(j):
            if group[i] != group[j] and is_one_lesion(blobs[i], blobs[j]):
                keep, drop = sorted((group[i], group[j]))
                group = [keep if g == drop else g for g in group]
    return [[k for k, g in enumerate(group) if g == first] for first in sorted(set(group))]


def paint_lesions(
    groups: list[list[Blob]], image: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Label image (int16): lesion k of ``groups`` gets k + 1, no voxel belongs to two.

    Voxels that two lesions claim go to the one whose basin they lie in (watershed of ``image``
    from the darkest voxels).
    """
    labels = np.zeros(shape, dtype=np.int16)
    contested = np.zeros(shape, dtype=bool)
    for label, blobs in enumerate(groups, start=1):
        for blob in blobs:
            here = labels[blob.slices]
            contested[blob.slices] |= blob.inside & (here != 0) & (here != label)
            here[blob.inside & (here == 0)] = label
    if not contested.any():
        return labels
    markers = np.zeros(shape, dtype=np.int32)
    for label, blobs in enumerate(groups, start=1):
        for blob in blobs:
            markers[blob.seed] = label
    drawn = ndimage.find_objects((labels > 0).astype(np.uint8))[0]
    basins = np.zeros(shape, dtype=np.int32)
    basins[drawn] = watershed(np.nan_to_num(image[drawn]), markers[drawn], mask=labels[drawn] > 0)
    for label, blobs in enumerate(groups, start=1):
        for blob in blobs:
            mine = blob.inside & contested[blob.slices] & (basins[blob.slices] == label)
            labels[blob.slices][mine] = label
    for label, blobs in enumerate(groups, start=1):
        labels[blobs[0].seed] = label  # a lesion never loses its darkest voxel
    return labels


def equivalent_diameter(volume_mm3: np.ndarray | float) -> np.ndarray | float:
    """Diameter (mm) of the sphere of a volume (mm3)."""
    return np.cbrt(6 * np.asarray(volume_mm3) / np.pi)


def greatest_extent(voxels: np.ndarray, affine: np.ndarray) -> float:
    """Greatest distance (mm) between two corners of a set of voxels (Feret diameter).

    Parameters
    ----------
    voxels : (n, 3) integer array
        Indices of one voxel or more; each is a parallelepiped with corners half a step away.
    affine : (4, 4) array
        Voxel to scanner mm.
    """
    half = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), -1).reshape(8, 3)
    corners = np.unique((voxels[:, None] + half).reshape(-1, 3), axis=0)
    # The two farthest points of a set are corners of its hull, which are few.
    hull = corners[ConvexHull(corners).vertices]
    return float(pdist(hull @ np.asarray(affine, dtype=float)[:3, :3].T).max())


def _measure(labels: np.ndarray, count: int, affine: np.ndarray) -> pd.DataFrame:
    """Centroid (scanner mm), diameter, volume and extent of labels 1 to ``count``."""
    centroids, voxels, extent = np.zeros((count, 3)), np.zeros(count), np.zeros(count)
    for position, box in enumerate(ndimage.find_objects(labels, max_label=count)):
        where = np.argwhere(labels[box] == position + 1)
        centroids[position] = where.mean(axis=0) + [s.start for s in box]
        voxels[position] = len(where)
        extent[position] = greatest_extent(where, affine)
    world = voxel_to_world(affine, centroids)
    volume = voxels * abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3]))
    return pd.DataFrame(
        {
            "x": world[:, 0].round(2),
            "y": world[:, 1].round(2),
            "z": world[:, 2].round(2),
            "diameter_mm": np.round(equivalent_diameter(volume), 2),
            "volume_mm3": volume.round(2),
            "extent_mm": extent.round(2),
        }
    )


def empty_table() -> pd.DataFrame:
    """The lesion table of a scan without lesions, with ``lesion_class`` in front."""
    return pd.DataFrame({name: [] for name in ["lesion_class", *TABLE_COLUMNS]})


def segment_lesions(
    candidates: pd.DataFrame,
    probabilities: pd.DataFrame,
    normalized: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    swi: np.ndarray | None = None,
    regions: np.ndarray | None = None,
    config: LesionConfig | None = None,
    model_thresholds: Mapping[str, float] | None = None,
    gate_passed: bool = True,
    places: Mapping[int, Place] | None = None,
    mni_affine: Sequence[Sequence[float]] | None = None,
    phase: Phase | str = NO_PHASE,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Turn classified candidates into lesions with an extent, a size and a place.

    Parameters
    ----------
    candidates : DataFrame
        ``index``, ``x``, ``y``, ``z`` (scanner mm) and ``radius_mm``.
    probabilities : DataFrame
        ``index``, ``p_microbleed``, ``p_calcification`` of each candidate.
    normalized : (x, y, z) array
        Bias-corrected magnitude.
    mask : (x, y, z) array
        Brain, nonzero inside.
    affine : (4, 4) array
        Voxel to scanner mm.
    swi : (x, y, z) array, optional
        Susceptibility-weighted image; microbleeds are drawn on it where given. Calcifications
        are always drawn on the magnitude: the susceptibility weighting darkens the poles of
        their field, not the calcification.
    regions : (x, y, z) integer array, optional
        Atlas labels; without it the place of a lesion is missing.
    config : LesionConfig, optional
    model_thresholds : mapping, optional
        ``definite`` and ``possible`` thresholds of the model.
    gate_passed : bool
        Whether the brain mask can be trusted; if not, no lesion is counted.
    places : mapping, optional
        What codes in ``regions`` stand for, where a parcellation came before the atlas.
    mni_affine : (4, 4) nested sequence, optional
        Scanner to MNI152 mm; without it MNI coordinates are missing, and red nuclei are not told
        from microbleeds.
    phase : Phase or str
        What magnetic moments are fitted to, or why they cannot be.

    Returns
    -------
    table : DataFrame
        ``lesion_class`` (microbleed or calcification), then `TABLE_COLUMNS`; the most probable
        lesions first.
    labels : (x, y, z) int16 array
        Label ``index`` on the voxels of each lesion.

    Raises
    ------
    ValueError
        Images differ in shape, or the thresholds are inconsistent.
    """
    config = config or LesionConfig()
    for image in (mask, swi, regions):
        if image is not None and image.shape != normalized.shape:
            raise ValueError(f"image of shape {image.shape} on a grid of {normalized.shape}")
    definite, possible = decide_thresholds(config, model_thresholds)
    same_place = same_place_mm(voxel_sizes(affine))
    found = _keep_lesions(candidates, probabilities, definite, possible, same_place)
    brain = np.asarray(mask) > 0
    microbleed_image = normalized if swi is None else swi
    blobs: list[Blob] = []
    rows: list[dict[str, Any]] = []
    points = world_to_voxel(affine, found[["x", "y", "z"]].to_numpy(dtype=float))
    for row, point in zip(found.to_dict("records"), points, strict=True):
        image = microbleed_image if row["lesion_class"] == MICROBLEED else normalized
        blob = draw_blob(image, brain, affine, point, float(row["radius_mm"]), config)
        if blob is None:  # not darker than around: a point lesion of one voxel
            blob = _point_blob(point, normalized.shape)
        elif row["lesion_class"] == MICROBLEED and _is_red_nucleus(
            blob, row, image, brain, affine, mni_affine, config
        ):
            continue
        if _is_edge_of_a_surer_one(blob, row, blobs, rows):
            continue
        blobs.append(blob)
        rows.append(row)
    if not blobs:
        return empty_table(), np.zeros(normalized.shape, dtype=np.int16)
    groups = group_blobs(blobs)
    labels = paint_lesions(
        [[blobs[k] for k in group] for group in groups], microbleed_image, normalized.shape
    )
    # `found` is sorted, so the first member of a group is its most probable one.
    table = pd.DataFrame([rows[group[0]] for group in groups])
    table = _complete(table, _measure(labels, len(groups), affine))
    points = table[["x", "y", "z"]].to_numpy(dtype=float)
    table[MNI_COLUMNS] = to_mni(points, mni_affine).round(2)
    if regions is None:
        table = table.assign(**dict.fromkeys(REGION_COLUMNS, None))
    else:
        table[REGION_COLUMNS] = label_lesions(points, regions, affine, places)[REGION_COLUMNS]
    table = _add_moments(table, labels, phase, normalized, brain, affine)
    table["counted"] = _is_counted(table, config) & gate_passed
    return table[["lesion_class", *TABLE_COLUMNS]], labels


def _keep_lesions(
    candidates: pd.DataFrame,
    probabilities: pd.DataFrame,
    definite: float,
    possible: float,
    same_place: float,
) -> pd.DataFrame:
    """Candidates that are lesions, the most probable first, ties by position.

    One within ``same_place`` mm of a more probable one is left out: it is the same lesion, its halo
    in the phase or what it touches, and drawn for itself it would be counted twice. So is a
    microbleed below `NEIGHBOUR_PROBABILITY` within `FARTHEST_MM` of a surer one; what is drawn then
    has to be nearly as dark, too (`_is_edge_of_a_surer_one`).
    """
    wanted = ["index", "p_microbleed", "p_calcification"]
    found = candidates.merge(probabilities[wanted], on="index", validate="one_to_one")
    found["lesion_class"], found["certainty"] = decide_classes(found, definite, possible)
    found = found[found["lesion_class"] != ""].copy()
    found["probability"] = found["p_microbleed"].fillna(0.0).astype(float)
    found["p_calcification"] = found["p_calcification"].fillna(0.0).astype(float)
    found["likelier"] = found[["probability", "p_calcification"]].max(axis=1)
    found = found.sort_values(
        ["likelier", "x", "y", "z"], ascending=[False, True, True, True], kind="stable"
    )
    points = found[["x", "y", "z"]].to_numpy(dtype=float)
    found = found.iloc[suppress_neighbours(points, found["likelier"].to_numpy(), same_place)]
    found = found[~_doubtful_neighbours(found)]
    return found.reset_index(drop=True)


def _doubtful_neighbours(found: pd.DataFrame) -> np.ndarray:
    """Which rows (n,), sorted from the likeliest, are microbleeds that a surer one accounts for."""
    microbleed = (found["lesion_class"] == MICROBLEED).to_numpy()
    points = found[["x", "y", "z"]].to_numpy(dtype=float)
    beside_a_likelier = np.tril(cdist(points, points) <= FARTHEST_MM, -1)
    doubtful = microbleed & (found["probability"].to_numpy() < NEIGHBOUR_PROBABILITY)
    return doubtful & (beside_a_likelier & microbleed).any(axis=1)


def _position_mm(row: Mapping[str, Any]) -> np.ndarray:
    """Where a candidate is (3,), scanner mm."""
    return np.array([row["x"], row["y"], row["z"]], dtype=float)


def _is_red_nucleus(
    blob: Blob,
    row: Mapping[str, Any],
    image: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
    mni_affine: Sequence[Sequence[float]] | None,
    config: LesionConfig,
) -> bool:
    """Whether a call is at the place of a red nucleus, and what is drawn opposite is its like."""
    place = mirrored_mm(_position_mm(row), mni_affine)
    if place is None:
        return False
    (point,) = world_to_voxel(affine, place[None])
    other = draw_blob(image, brain, affine, point, RED_NUCLEUS_RADIUS_MM, config)
    if other is None or other.covers(blob.seed) or blob.covers(other.seed):
        return False
    voxel_mm3 = float(np.prod(voxel_sizes(affine)))
    pair = (blob, other)
    depths = [float(one.depth[one.inside].mean()) for one in pair]
    volumes = [voxel_mm3 * np.count_nonzero(one.inside) for one in pair]
    return are_alike((depths[0], depths[1]), (volumes[0], volumes[1]))


def _is_edge_of_a_surer_one(
    blob: Blob, row: Mapping[str, Any], blobs: Sequence[Blob], rows: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether a microbleed is much fainter than a surer one beside it.

    The network, which was taught nothing about such places, sees the surer one off the centre of
    the patch. ``blobs`` and ``rows`` are the surer ones.
    """
    if row["lesion_class"] != MICROBLEED:
        return False
    return any(
        other["lesion_class"] == MICROBLEED
        and np.linalg.norm(_position_mm(row) - _position_mm(other)) <= FARTHEST_MM
        and blob.seed_depth < NEIGHBOUR_DEPTH * drawn.seed_depth
        for drawn, other in zip(blobs, rows, strict=True)
    )


def _point_blob(point: np.ndarray, shape: tuple[int, ...]) -> Blob:
    """A lesion of the single voxel under a point."""
    origin = np.clip(np.rint(point), 0, np.subtract(shape, 1)).astype(int)
    one = np.ones((1, 1, 1))
    seed = (int(origin[0]), int(origin[1]), int(origin[2]))
    return Blob(origin, one.astype(bool), one, seed)


def _is_counted(table: pd.DataFrame, config: LesionConfig) -> np.ndarray:
    """Whether lesions are within the limits of size.

    A lesion of one or two thick voxels has the volume of a sphere under 2 mm though it is longer
    in the image, and a reader measures what is longest: the lower limit is on the extent. The
    upper one stays on the diameter, because an extent includes the edges of voxels.
    """
    large_enough = table["extent_mm"] >= config.minimum_diameter_mm
    return (large_enough & (table["diameter_mm"] <= config.maximum_diameter_mm)).to_numpy()


def _complete(table: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Add index, name and measures to the rows of the lesions.

    A lesion is where its voxels are on average, unless that is far from the candidate: then it was
    drawn together with something larger that it touches, whose middle is not the lesion's.
    """
    points = table[["x", "y", "z"]].to_numpy(dtype=float)
    centroids = measured[["x", "y", "z"]].to_numpy(dtype=float)
    near = np.linalg.norm(centroids - points, axis=1) <= FARTHEST_CENTROID_MM
    measured = measured.assign(
        **dict(zip("xyz", np.where(near[:, None], centroids, points.round(2)).T, strict=True))
    )
    table = table.drop(columns=["x", "y", "z"]).reset_index(drop=True)
    table = pd.concat([table, measured], axis=1)
    table["index"] = np.arange(1, len(table) + 1)
    table["name"] = [
        f"{kind}-{index}" for kind, index in zip(table["lesion_class"], table["index"], strict=True)
    ]
    for column in ("probability", "p_calcification"):
        table[column] = table[column].round(4)
    return table


def _add_moments(
    table: pd.DataFrame,
    labels: np.ndarray,
    phase: Phase | str,
    magnitude: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
) -> pd.DataFrame:
    """Add the magnetic moments, and whether they agree with the network's classes."""
    points = table[["x", "y", "z"]].to_numpy(dtype=float)
    moments = measure_moments(points, labels, phase, magnitude, brain, affine)
    moments["moment_verdict"] = [
        judge(moment, sd, kind == MICROBLEED)
        for moment, sd, kind in zip(
            moments["moment_ppm_mm3"],
            moments["moment_sd_ppm_mm3"],
            table["lesion_class"],
            strict=True,
        )
    ]
    return pd.concat([table, moments], axis=1)


def split_class(
    table: pd.DataFrame, labels: np.ndarray, lesion_class: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """Table (`TABLE_COLUMNS`) and label image of one class, numbered from 1.

    Parameters
    ----------
    table, labels
        As `segment_lesions` returns them.
    lesion_class : str
        ``microbleed`` or ``calcification``.
    """
    chosen = table[table["lesion_class"] == lesion_class].reset_index(drop=True)
    renumber = np.zeros(len(table) + 1, dtype=np.int16)
    renumber[chosen["index"].to_numpy(dtype=int)] = np.arange(1, len(chosen) + 1)
    chosen["index"] = np.arange(1, len(chosen) + 1)
    chosen["name"] = [f"{lesion_class}-{index}" for index in chosen["index"]]
    return chosen[TABLE_COLUMNS], renumber[labels]
