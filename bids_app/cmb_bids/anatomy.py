"""Where a lesion lies: region labels and the two rating scales that name them.

The region image of a scan holds one integer per voxel; the right hemisphere's labels are the
left's plus 100. MARS (Gregoire et al., Neurology 2009;73:1759-1766) and BOMBS (Cordonnier et al.,
Stroke 2009;40:94-99) are both given because they disagree on white matter: what MARS calls deep
and periventricular white matter, or corpus callosum, BOMBS counts with the lobes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from cmb_bids.volumes import voxel_sizes, voxel_to_world, world_to_voxel

RIGHT = 100
OUTSIDE = 0
VENTRICLE = 41
NEAREST_MM = 5.0
# Centres this close to the other side's half of the same structure lie on the midline.
MIDLINE_MM = 1.5

ATLAS = "atlas"  # who named a region, where the built-in atlas did

REGION_COLUMNS = ["hemisphere", "mars_region", "mars_class", "bombs_region", "bombs_class"]


class Structure(NamedTuple):
    """One atlas structure and what either scale calls it."""

    name: str
    mars_region: str
    mars_class: str
    bombs_region: str
    bombs_class: str


class Place(NamedTuple):
    """What a code of a region image stands for where a parcellation came before the atlas.

    ``label`` is the atlas label (with its side), ``name`` the parcellation's own name, ``source``
    says who decided: ``parcellation``, or ``parcellation+atlas`` where the atlas divided it.
    """

    label: int
    name: str
    source: str


def _lobe(name: str) -> Structure:
    return Structure(name, name, "lobar", "cortex", "lobar")


def _lobar_white(lobe: str) -> Structure:
    return Structure(f"{lobe}_wm", lobe, "lobar", "subcortical_white_matter", "lobar")


def _nucleus(name: str) -> Structure:
    return Structure(name, "basal_ganglia", "deep", "basal_ganglia", "deep")


def _capsule(name: str) -> Structure:
    return Structure(name, name, "deep", "internal_external_capsule", "deep")


def _deep_white(name: str) -> Structure:
    return Structure(name, name, "deep", "subcortical_white_matter", "lobar")


def _below(name: str) -> Structure:
    return Structure(name, name, "infratentorial", name, "posterior_fossa")


STRUCTURES: dict[int, Structure] = {
    1: _lobe("frontal"),
    2: _lobe("parietal"),
    3: _lobe("temporal"),
    4: _lobe("occipital"),
    5: _lobe("insula"),
    11: _lobar_white("frontal"),
    12: _lobar_white("parietal"),
    13: _lobar_white("temporal"),
    14: _lobar_white("occipital"),
    21: _nucleus("caudate"),
    22: _nucleus("putamen"),
    23: _nucleus("pallidum"),
    24: Structure("thalamus", "thalamus", "deep", "thalamus", "deep"),
    25: _capsule("internal_capsule"),
    26: _capsule("external_capsule"),
    27: _deep_white("corpus_callosum"),
    28: _deep_white("deep_white_matter"),
    31: _below("brainstem"),
    32: _below("cerebellum"),
}
# Only these reach across the midline; a lobe's medial surface is left or right.
_UNPAIRED = (27, 31, 32)


def structure_of(label: int) -> Structure | None:
    """The structure of an atlas label of either side; None for CSF, outside and unknown labels."""
    return STRUCTURES.get(int(label) % RIGHT)


def hemisphere_of(label: int) -> str | None:
    """``left`` or ``right`` of an atlas label; None where it names no structure."""
    if structure_of(label) is None:
        return None
    return "right" if int(label) >= RIGHT else "left"


def regions_to_mars(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MARS region and class of every label.

    Parameters
    ----------
    labels : (...) integer array
        Atlas labels, either hemisphere.

    Returns
    -------
    region, class : (...) object arrays
        None for CSF, outside and unknown labels.
    """
    return _lookup(labels, "mars_region"), _lookup(labels, "mars_class")


def regions_to_bombs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BOMBS region and class of every label; see `regions_to_mars`."""
    return _lookup(labels, "bombs_region"), _lookup(labels, "bombs_class")


def _lookup(labels: np.ndarray, field: str) -> np.ndarray:
    table = np.full(2 * RIGHT, None, dtype=object)
    for label, structure in STRUCTURES.items():
        table[[label, label + RIGHT]] = getattr(structure, field)
    labels = np.asarray(labels)
    known = (labels >= 0) & (labels < 2 * RIGHT)
    return table[np.where(known, labels, 0).astype(int)]


def label_lesions(
    points_mm: np.ndarray,
    regions: np.ndarray,
    affine: np.ndarray,
    places: Mapping[int, Place] | None = None,
) -> pd.DataFrame:
    """Name the region of each point on both scales.

    A point on CSF or outside takes the nearest labelled voxel within 5 mm: lesions of the cortex
    abut sulci, and an atlas carried to a single brain is a millimetre or two off.

    Parameters
    ----------
    points_mm : (n, 3) array
        Scanner mm.
    regions : (x, y, z) integer array
        Atlas labels, or codes of ``places``, on the scan's grid; all 0 where there is neither.
    affine : (4, 4) array
        Voxel to scanner mm.
    places : mapping, optional
        What the codes of a parcellation stand for (`cmb_bids.parcellation.merge_regions`).

    Returns
    -------
    DataFrame
        A row per point: ``label`` (of the atlas; 0 where unknown), ``structure`` (the name in
        parcellation or atlas), ``region_source`` (atlas, parcellation or parcellation+atlas),
        ``hemisphere`` (left, right, midline), ``mars_region``, ``mars_class``, ``bombs_region``,
        ``bombs_class``; None where unknown.
    """
    points = np.asarray(points_mm, dtype=float).reshape(-1, 3)
    known = places_of_atlas() | dict(places or {})
    names = ["label", "structure", "region_source", *REGION_COLUMNS]
    columns: dict[str, list[str | int | None]] = {name: [] for name in names}
    for point in points:
        codes, distances = _codes_near(point, regions, affine, known)
        place = known[int(codes[0])] if codes.size else Place(OUTSIDE, "", "")
        labels = np.array([known[int(code)].label for code in codes], dtype=int)
        structure = structure_of(place.label)
        columns["label"].append(place.label)
        columns["structure"].append(place.name or None)
        columns["region_source"].append(place.source or None)
        columns["hemisphere"].append(_hemisphere(place.label, labels, distances))
        for field in REGION_COLUMNS[1:]:
            columns[field].append(getattr(structure, field) if structure else None)
    return pd.DataFrame(columns).astype(
        {name: "int64" if name == "label" else object for name in columns}
    )


def places_of_atlas() -> dict[int, Place]:
    """The atlas's own labels of both sides, as `Place`."""
    return {
        label + side: Place(label + side, structure.name, ATLAS)
        for label, structure in STRUCTURES.items()
        for side in (0, RIGHT)
    }


def _codes_near(
    point: np.ndarray, regions: np.ndarray, affine: np.ndarray, known: Mapping[int, Place]
) -> tuple[np.ndarray, np.ndarray]:
    """Known codes within reach of a point, nearest first, and their distances in mm.

    The voxel that holds the point is at distance 0, whatever its size.
    """
    nothing = np.zeros(0, dtype=int), np.zeros(0)
    if not np.isfinite(point).all():
        return nothing
    centre = world_to_voxel(affine, point)[0]
    # Any oblique affine keeps a 5 mm sphere within this many voxels; sheared ones are padded.
    reach = np.ceil(NEAREST_MM / voxel_sizes(affine)).astype(int) + 1
    nearest = np.rint(centre).astype(int)
    low = np.maximum(nearest - reach, 0)
    high = np.minimum(nearest + reach + 1, regions.shape)
    if (high <= low).any():
        return nothing
    box = regions[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(int)
    where = np.argwhere(np.isin(box, list(known)))
    if where.size == 0:
        return nothing
    distances = np.linalg.norm(voxel_to_world(affine, where + low) - point, axis=1)
    distances[(where + low == nearest).all(axis=1)] = 0.0
    order = np.argsort(distances, kind="stable")
    order = order[distances[order] <= NEAREST_MM]
    return box[tuple(where[order].T)], distances[order]


def _hemisphere(label: int, labels: np.ndarray, distances: np.ndarray) -> str | None:
    side = hemisphere_of(label)
    if side is None or label % RIGHT not in _UNPAIRED:
        return side
    other = label - RIGHT if label >= RIGHT else label + RIGHT
    return "midline" if (distances[labels == other] <= MIDLINE_MM).any() else side


def to_mni(points_mm: np.ndarray, mni_affine: object) -> np.ndarray:
    """MNI coordinates of points.

    Parameters
    ----------
    points_mm : (n, 3) array
        Scanner mm.
    mni_affine : (4, 4) array-like or None
        Scanner to MNI152 mm, as the brain stage reports it.

    Returns
    -------
    (n, 3) array
        MNI152 mm; NaN where there is no affine.
    """
    points = np.asarray(points_mm, dtype=float).reshape(-1, 3)
    if mni_affine is None:
        return np.full(points.shape, np.nan)
    return voxel_to_world(np.asarray(mni_affine, dtype=float), points).reshape(-1, 3)
