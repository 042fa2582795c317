"""A lesion's extent: the dark region around a point, and which regions are one lesion.

A lesion is drawn as the dark region around a point that is at least half as deep as its darkest
voxel (full width at half depth), which is how a blurred sphere keeps its diameter. All lengths
are mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from cmb_bids.lesion_size import equivalent_diameter
from cmb_bids.volumes import voxel_sizes

# How two detections are told to be one lesion, and where a vessel that touches a lesion is cut.
ONE_LESION_DEPTH = 0.75  # no ridge shallower than this share of the shallower one's depth
SHELL_FILL = 0.10  # a lesion fills at least this share of a spherical shell round its centre
SHELL_MM = 1.0  # thickness of those shells, at least
SEED_RADIUS_MM = (1.5, 3.0)  # the darkest voxel is sought this near the candidate
# How the tissue that a small lesion lies in is told from its own noise and from what lies beyond.
TISSUE_SHELLS_MM = ((2.0, 4.0), (3.0, 5.0), (4.0, 7.0), (6.0, 10.0))  # from the darkest voxel
TISSUE_CONTRAST = 0.45  # of the contrast to the wider surroundings, at least
TISSUE_NOISE = 8.0  # standard deviations that the mean of a lesion is away from it, at least
SOLID_FILL = 0.7  # a lesion that is too large by itself fills this share of a ball in its middle


@dataclass(frozen=True)
class DrawingConfig:
    """How a lesion is drawn.

    Attributes
    ----------
    growth_radius_mm : float
        A lesion reaches at most this far from its darkest voxel.
    background_radius_mm : float
        Radius of the neighbourhood whose median is the tissue the lesion is dark against.
    depth_fraction : float
        A voxel belongs to the lesion when it is at least this share of the full depth.
    """

    growth_radius_mm: float = 8.0
    background_radius_mm: float = 10.0
    depth_fraction: float = 0.5


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


def _offsets_from(voxel: tuple[int, ...], affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Where each voxel of a box (a, b, c, 3) lies from one of them, mm."""
    steps = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) - voxel
    return steps @ np.asarray(affine, dtype=float)[:3, :3].T


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
    config: DrawingConfig,
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
    config : DrawingConfig

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
    offsets = _offsets_from(seed, affine, values.shape)
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


def without_what_it_touches(blob: Blob, affine: np.ndarray, largest_mm: float) -> Blob:
    """A lesion that was drawn too large, cut from the bone, air or vessel that it ran into.

    Beside the skull a lesion is drawn together with it. What is farther from the lesion's darkest
    voxel than a lesion reaches is then the other thing, and the border between them lies where a
    path from one to the other is brightest (watershed), or in the middle of it where no ridge
    parts them. A lesion that is large by itself fills the ball around that voxel, and stays as it
    is.

    Parameters
    ----------
    blob : Blob
    affine : (4, 4) array
        Voxel to scanner mm.
    largest_mm : float
        Diameter up to which a lesion is drawn as it is.

    Returns
    -------
    Blob
    """
    volume = np.count_nonzero(blob.inside) * float(np.prod(voxel_sizes(affine)))
    if equivalent_diameter(volume) <= largest_mm:
        return blob
    seed = tuple(int(v) for v in np.subtract(blob.seed, blob.origin))
    near = np.linalg.norm(_offsets_from(seed, affine, blob.inside.shape), axis=-1) <= largest_mm / 2
    if np.count_nonzero(blob.inside & near) >= SOLID_FILL * np.count_nonzero(near):
        return blob
    markers = np.where(blob.inside & ~near, 2, 0)
    markers[seed] = 1
    ridges = -np.minimum(blob.depth, ONE_LESION_DEPTH * blob.seed_depth)
    basins = watershed(ridges, markers, mask=blob.inside)
    return blob._replace(inside=_connected_to(basins == 1, seed))


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


def point_blob(point: np.ndarray, shape: tuple[int, ...]) -> Blob:
    """A lesion of the single voxel under a point."""
    origin = np.clip(np.rint(point), 0, np.subtract(shape, 1)).astype(int)
    one = np.ones((1, 1, 1))
    seed = (int(origin[0]), int(origin[1]), int(origin[2]))
    return Blob(origin, one.astype(bool), one, seed)
