"""A parcellation of the user's own in place of the built-in atlas.

Names of structures, as FreeSurfer, SynthSeg and other tools spell them, are mapped to the
structures of `cmb_bids.anatomy` by an ordered list of rules. A name that leaves the place open on
the rating scales, such as the undivided cerebral white matter of FreeSurfer's aseg, is divided by
the built-in atlas: each of its voxels takes the nearest atlas label among those the name allows.
``docs/anatomy.md`` has the rules as a table.

FreeSurfer's numbering: Fischl et al., Neuron 2002;33:341-355, and Desikan et al., NeuroImage
2006;31:968-980. SynthSeg (Billot et al., Med Image Anal 2023;86:102789) uses the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cmb_bids.anatomy import OUTSIDE, RIGHT, STRUCTURES, VENTRICLE, Place
from cmb_bids.head import block_mean, coarse_steps
from cmb_bids.volumes import voxel_sizes, voxel_to_world

# Codes of the merged image from here on stand for structures of the parcellation.
FIRST_CODE = 1000
DIVIDED_BY_ATLAS = "parcellation+atlas"
BY_PARCELLATION = "parcellation"
# Background this near a parcel is a sulcus and left to the parcel; beyond it the atlas decides.
GAP_MM = 2.0
# The atlas is searched for the nearest allowed label on a grid of about this voxel size.
SEARCH_MM = 2.0
# A parcellation with less of itself inside the scan's brain mask belongs to another scan.
MINIMUM_INSIDE = 0.8
# Farther off than this, the head has moved between the two scans.
MAXIMUM_SHIFT_MM = 4.0
# Smaller parcellations cannot be laid on the mask: their outline is not that of the brain.
WHOLE_BRAIN_SHARE = 0.6
_SHIFT_SEARCH_MM = 30.0
_BLUR_MM = 8.0

_CORTEX = (1, 2, 3, 4, 5)
_LOBAR_WHITE = (11, 12, 13, 14)
_WHITE = (*_LOBAR_WHITE, 25, 26, 27, 28)
_DEEP = (21, 22, 23, 24, 25, 26, 27, 28)

# The first pattern found in the normalised name decides. Several labels: the atlas divides.
RULES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"ventric|\bvent\b|choroid|cavum", (VENTRICLE,)),
    (r"\bcsf\b|cerebrospinal|background|unknown|skull|scalp|vessel|\bvein", (OUTSIDE,)),
    (r"unclassified|sinus|optic (chi|ner|tract)|\beyes?\b|\bdura|medial ?wall", (OUTSIDE,)),
    # infratentorial
    (r"(cerebral|cerebri) ?peduncle|crus cerebri", (31,)),
    (r"peduncle", (31, 32)),
    (r"cerebell|cerebelum|vermis|vermal|dentate nuc|flocc", (32,)),
    (r"brain ?stem|midbrain|mesenceph|\bpons\b|pontine|medulla|tegment|tectum|collicul", (31,)),
    (r"red ?nuc|substantia nigra|\bsnigra|periaqueduct|lemnisc|corticospinal|\bscp\b", (31,)),
    (r"infratentorial|posterior fossa", (31, 32)),
    # deep
    (r"ventral ?dc|diencephal", (24, 25, 31)),
    (r"thalamic radiation|corona ?radiata|fornix|periventric|deep white|centrum|tapetum", (28,)),
    (r"thalam|geniculate|pulvinar|mammill", (24,)),
    (r"internal caps|limb of|lenticular part of", (25,)),
    (r"(external|extreme) caps|claustrum", (26,)),
    (r"caudate", (21,)),
    (r"putamen|accumb|lentiform|lenticular|striat|basal gangl|basal forebrain", (22,)),
    (r"pallid|globus", (23,)),
    (r"non ?wm ?hypoint", (21, 22, 23, 24)),
    (r"hypointens", _WHITE),
    (r"(peri|sub)callos", (1,)),
    (r"callos|^cc\b|\bcc (ant|mid|cent|post)|splenium|genu|forceps", (27,)),
    (r"deep gr[ae]y|sub ?cortical gr[ae]y", (21, 22, 23, 24)),
    (r"fascicul|stratum", _WHITE),
    # lobes
    (r"insula|insular|\bins\b|insul", (5,)),
    (r"hippo ?campus|hippocamp|amygdal|para ?hippo|entorh|subicul|uncus|perirhin", (3,)),
    (r"occipital fusi", (4,)),
    (r"fusi|temporal gyr|temporal pole|temporo ?occip", (3,)),
    (r"precun|parieto ?occip|retrosplen|isthmus", (2,)),
    (r"lingual|calcarin|cuneus|occip|\boc\b(?! temp)", (4,)),
    (r"pars ?(oper|orb|tri)", (1,)),
    (r"mid post|post\w* ?cingul|cingul[\w ]* post|\bpcc\b|marginalis", (2,)),
    (r"cingul[\w ]* (ant|mid)|ant\w* ?cingul|mid\w* ?cingul|\bacc\b", (1,)),
    (r"pariet|post ?central|supra ?marg|angular|intrapar", (2,)),
    (r"temp|heschl|collat|planum (pol|temp)|banks|\bsts\b", (3,)),
    (r"front|precentral|subcentral|\bcentral\b|para ?central|orbit|rectus", (1,)),
    (r"rolandic|operc|motor|olfact|juxtapos|subcallosal", (1,)),
    (r"cingul", (1, 2)),
    # undivided
    (r"cerebral ?w(hite|m)|unsegmentedw|sub ?cortical w(hite|m)|uncinate", _WHITE),
    (r"white ?matter|\bwm\b", (*_WHITE, 31, 32)),
    (r"cortex|\bcortical|\bctx\b", _CORTEX),
    (r"gr[ae]y ?matter|\bgm\b", (*_CORTEX, 21, 22, 23, 24, 31, 32)),
    (r"\blobar\b", (*_CORTEX, *_LOBAR_WHITE)),
    (r"\bdeep\b", _DEEP),
)
_COMPILED = tuple((re.compile(pattern), labels) for pattern, labels in RULES)
_LEFT = re.compile(r"\b(left|lh|l)\b")
_RIGHT = re.compile(r"\b(right|rh|r)\b")
_WHITE_NAME = re.compile(r"\bwm\b|white ?matter")


class Structure(NamedTuple):
    """A label of a parcellation: its name, the atlas labels it may be, and its side.

    ``labels`` are those of the left hemisphere; ``side`` is ``left``, ``right`` or None where
    the name does not say.
    """

    name: str
    labels: tuple[int, ...]
    side: str | None


class Alignment(NamedTuple):
    """How a parcellation lies on a brain mask.

    ``inside`` is the share of it inside the mask, ``shift_mm`` the length of the translation
    that would lay it best; None where the parcellation is not one of a whole brain.
    """

    inside: float
    shift_mm: float | None


# ---------------------------------------------------------------- names

_ASEG = {
    2: "Cerebral-White-Matter", 3: "Cerebral-Cortex", 4: "Lateral-Ventricle", 5: "Inf-Lat-Vent",
    7: "Cerebellum-White-Matter", 8: "Cerebellum-Cortex", 10: "Thalamus", 11: "Caudate",
    12: "Putamen", 13: "Pallidum", 17: "Hippocampus", 18: "Amygdala", 26: "Accumbens-area",
    28: "VentralDC", 30: "vessel", 31: "choroid-plexus",
}  # fmt: skip
_ASEG_RIGHT = {
    2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54,
    26: 58, 28: 60, 30: 62, 31: 63,
}  # fmt: skip
_ASEG_MIDLINE = {
    0: "Unknown", 14: "3rd-Ventricle", 15: "4th-Ventricle", 16: "Brain-Stem", 24: "CSF",
    72: "5th-Ventricle", 77: "WM-hypointensities", 80: "non-WM-hypointensities",
    85: "Optic-Chiasm", 251: "CC_Posterior", 252: "CC_Mid_Posterior", 253: "CC_Central",
    254: "CC_Mid_Anterior", 255: "CC_Anterior", 5001: "Left-UnsegmentedWhiteMatter",
    5002: "Right-UnsegmentedWhiteMatter",
}  # fmt: skip
# Desikan-Killiany, in the order of FreeSurfer's numbers from 1000 (left) and 2000 (right).
_DESIKAN = (
    "unknown", "bankssts", "caudalanteriorcingulate", "caudalmiddlefrontal", "corpuscallosum",
    "cuneus", "entorhinal", "fusiform", "inferiorparietal", "inferiortemporal",
    "isthmuscingulate", "lateraloccipital", "lateralorbitofrontal", "lingual",
    "medialorbitofrontal", "middletemporal", "parahippocampal", "paracentral", "parsopercularis",
    "parsorbitalis", "parstriangularis", "pericalcarine", "postcentral", "posteriorcingulate",
    "precentral", "precuneus", "rostralanteriorcingulate", "rostralmiddlefrontal",
    "superiorfrontal", "superiorparietal", "superiortemporal", "supramarginal", "frontalpole",
    "temporalpole", "transversetemporal", "insula",
)  # fmt: skip


def freesurfer_names() -> dict[int, str]:
    """Names of FreeSurfer's numbers: aseg, aparc+aseg (Desikan-Killiany), wmparc, SynthSeg."""
    names = dict(_ASEG_MIDLINE)
    for number, name in _ASEG.items():
        names[number] = f"Left-{name}"
        names[_ASEG_RIGHT[number]] = f"Right-{name}"
    for start, prefix in ((1000, "ctx-lh"), (2000, "ctx-rh"), (3000, "wm-lh"), (4000, "wm-rh")):
        names |= {start + k: f"{prefix}-{name}" for k, name in enumerate(_DESIKAN)}
    return names


def interpret_name(name: str) -> Structure | None:
    """What a structure's name means on the rating scales.

    Parameters
    ----------
    name : str
        As the lookup table spells it, in any case, words parted by ``-``, ``_``, ``.`` or spaces.

    Returns
    -------
    Structure or None
        None where no rule fits.
    """
    text = " ".join(re.split(r"[\W_]+", name.lower())).strip()
    side = "left" if _LEFT.search(text) else "right" if _RIGHT.search(text) else None
    found = next((labels for pattern, labels in _COMPILED if pattern.search(text)), None)
    if found is None:
        return None
    if _WHITE_NAME.search(text):
        if found in ((1,), (2,), (3,), (4,)):
            found = (found[0] + 10,)
        elif found in ((5,), (1, 2)):  # no scale knows white matter of the insula
            found = _WHITE
    return Structure(name, found, side)


def interpret_names(
    names: Mapping[int, str],
) -> tuple[dict[int, Structure], dict[int, str]]:
    """Structures by label, and the names by label that no rule fits.

    Parameters
    ----------
    names : mapping
        Label to name; 0 is background whatever it is called.
    """
    known, unknown = {}, {}
    for label, name in names.items():
        structure = interpret_name(name)
        if structure is not None:
            known[int(label)] = structure
        elif label != 0:
            unknown[int(label)] = name
    return known, unknown


# ---------------------------------------------------------------- images


def resample_labels(
    labels: np.ndarray, labels_affine: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> np.ndarray:
    """A label image on another grid, nearest neighbour through scanner space; 0 outside.

    Parameters
    ----------
    labels : (x, y, z) integer array
    labels_affine, affine : (4, 4) arrays
        Voxel to scanner mm of the labels and of the wanted grid.
    shape : (3,) int
        Wanted grid.

    Returns
    -------
    (x, y, z) int32 array
    """
    matrix = np.linalg.inv(labels_affine) @ affine
    return ndimage.affine_transform(
        labels.astype(np.int32), matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=0
    )


def measure_alignment(parcels: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> Alignment:
    """How well a parcellation lies on the scan's brain.

    Parameters
    ----------
    parcels, mask : (x, y, z) boolean arrays
        Parcellated voxels and brain mask on the scan's grid.
    affine : (4, 4) array
        Voxel to scanner mm.

    Returns
    -------
    Alignment
        ``inside`` is 0 where either is empty. The shift is that of the highest correlation of
        the two outlines, within 30 mm; it does not see a rotation.
    """
    if not parcels.any() or not mask.any():
        return Alignment(0.0, None)
    inside = float((parcels & mask).sum() / parcels.sum())
    sizes = voxel_sizes(affine)
    steps = coarse_steps(sizes, 3.0)
    # Sulci are background to some tools and brain to others: outlines are compared closed.
    outline = ndimage.binary_closing(block_mean(parcels.astype(np.float32), steps) > 0.5, None, 2)
    brain = block_mean(mask.astype(np.float32), steps) > 0.5
    if outline.sum() < WHOLE_BRAIN_SHARE * brain.sum():
        return Alignment(inside, None)
    shift = _best_shift(outline, brain, sizes * np.asarray(steps))
    return Alignment(inside, round(float(np.linalg.norm(shift)), 1))


def _best_shift(outline: np.ndarray, brain: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Translation (mm along the voxel axes) from outline to brain, by correlation."""
    reach = np.ceil(_SHIFT_SEARCH_MM / sizes).astype(int) + 1
    shape = [n + 2 * int(r) + 1 for n, r in zip(outline.shape, reach, strict=True)]
    # Blurred, because an outline that is smaller all round slides freely inside the larger one.
    blurred = [
        ndimage.gaussian_filter(image.astype(np.float32), _BLUR_MM / sizes, mode="constant")
        for image in (brain, outline)
    ]
    first, second = (np.fft.rfftn(image, shape) for image in blurred)
    correlation = np.fft.irfftn(first * np.conj(second), shape)
    window = [np.r_[0:r, -r + 1 : 0] for r in reach]
    near = correlation[np.ix_(*window)]
    best = np.unravel_index(int(np.argmax(near)), near.shape)
    peak = [int(w[b]) for w, b in zip(window, best, strict=True)]
    offset = np.array(peak, dtype=float)
    for axis in range(3):
        before, here, after = (
            correlation[tuple(p + step * (a == axis) for a, p in enumerate(peak))]
            for step in (-1, 0, 1)
        )
        bend = before - 2 * here + after
        if bend < 0:
            offset[axis] += 0.5 * (before - after) / bend
    return offset * sizes


def merge_regions(
    labels: np.ndarray,
    structures: Mapping[int, Structure],
    atlas: np.ndarray,
    affine: np.ndarray,
) -> tuple[np.ndarray, dict[int, Place]]:
    """Put a parcellation in front of the atlas.

    Parameters
    ----------
    labels : (x, y, z) integer array
        The parcellation on the scan's grid.
    structures : mapping
        Its labels that are understood (`interpret_names`).
    atlas : (x, y, z) integer array
        Atlas labels of the same scan; all 0 where none could be carried over.
    affine : (4, 4) array
        Voxel to scanner mm.

    Returns
    -------
    regions : (x, y, z) int16 array
        Atlas labels where the parcellation says nothing, codes from `FIRST_CODE` on elsewhere;
        0 where it says fluid or nothing that the scales know.
    places : dict
        Code to what it stands for.
    """
    steps = coarse_steps(voxel_sizes(affine), SEARCH_MM)
    regions = atlas.astype(np.int16)
    regions[_background_beside(labels, affine)] = OUTSIDE
    search = _AtlasSearch(atlas, steps, affine, labels)
    places: dict[int, Place] = {}
    present, compact = np.unique(labels, return_inverse=True)
    boxes = ndimage.find_objects(compact.reshape(labels.shape).astype(np.int32) + 1)
    for label, box in zip(present.tolist(), boxes, strict=True):
        structure = structures.get(label)
        if structure is None or label == 0 or box is None:
            continue
        where = tuple(np.argwhere(labels[box] == label).T + [[s.start] for s in box])
        chosen = search.choose(where, structure)
        source = BY_PARCELLATION if len(structure.labels) == 1 else DIVIDED_BY_ATLAS
        codes = np.zeros(chosen.shape, np.int16)
        for final in np.unique(chosen).tolist():
            if final % RIGHT in STRUCTURES:
                code = FIRST_CODE + len(places)
                places[code] = Place(final, structure.name, source)
                codes[chosen == final] = code
        regions[where] = codes
    return regions, places


def _background_beside(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Background within `GAP_MM` of a parcel: sulci between the parcels of a cortex."""
    parcels = labels != 0
    reach = np.maximum(np.round(GAP_MM / voxel_sizes(affine)).astype(int), 0)
    grown = parcels
    for axis, steps in enumerate(reach):
        grown = ndimage.maximum_filter1d(grown.astype(np.uint8), 2 * int(steps) + 1, axis) > 0
    return grown & ~parcels


class _AtlasSearch:
    """Finds the nearest atlas label among some, on a grid a few voxels wide."""

    def __init__(
        self,
        atlas: np.ndarray,
        steps: tuple[int, int, int],
        affine: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        self.atlas, self.steps, self.affine = atlas, steps, affine
        self.coarse = atlas[tuple(slice(s // 2, None, s) for s in steps)]
        self.sizes = voxel_sizes(affine) * np.asarray(steps)
        self.filled: dict[tuple[int, ...], np.ndarray | None] = {}
        self.labels = labels

    def choose(self, where: tuple[np.ndarray, ...], structure: Structure) -> np.ndarray:
        """Atlas label (with its side) of each voxel of a structure; 0 where it cannot be told."""
        here = self.atlas[where].astype(int)
        if len(structure.labels) == 1:
            base = np.full(here.shape, structure.labels[0])
        else:
            nearest = self._nearest(where, structure.labels)
            allowed = np.isin(here % RIGHT, structure.labels)
            base = np.where(allowed, here % RIGHT, nearest % RIGHT)
        return np.where(base > 0, base + RIGHT * self._right(where, structure.side), 0)

    def _nearest(self, where: tuple[np.ndarray, ...], labels: tuple[int, ...]) -> np.ndarray:
        if labels not in self.filled:
            some = np.isin(self.coarse % RIGHT, labels)
            self.filled[labels] = None
            if some.any():
                index = ndimage.distance_transform_edt(
                    ~some, self.sizes, return_distances=False, return_indices=True
                )
                self.filled[labels] = self.coarse[tuple(index)]
        filled = self.filled[labels]
        if filled is None:
            return np.zeros(where[0].shape, int)
        at = tuple(
            np.minimum(w // s, n - 1)
            for w, s, n in zip(where, self.steps, self.coarse.shape, strict=True)
        )
        return filled[at].astype(int)

    def _right(self, where: tuple[np.ndarray, ...], side: str | None) -> np.ndarray:
        if side is not None:
            return np.full(where[0].shape, side == "right")
        nearest = self._nearest(where, tuple(STRUCTURES))
        if nearest.any():
            return nearest >= RIGHT
        # No atlas: the parcellated brain's own middle.
        middle = voxel_to_world(self.affine, np.argwhere(self.labels[::4, ::4, ::4]) * 4)[:, 0]
        return voxel_to_world(self.affine, np.stack(where, axis=1))[:, 0] > middle.mean()
