"""Compare the built-in regions with an atlas that other people drew.

    apt-get download mricron-data && dpkg -x mricron-data_*.deb mricron
    python tools/compare_atlas.py mricron/usr/share/mricron/templates/jhu189.nii.gz
    python tools/compare_atlas.py JHU189 --regions atlas_mni.nii.gz --to-mni identity

The reference is the parcellation of Faria et al. (NeuroImage 2012;61:613-621) as MRIcron carries
it: 189 structures of a single brain in MNI space, white matter drawn on diffusion tensor images by
others, for another purpose. It is not shipped, and nothing of the built-in regions is taken from
it; its lookup table is the part of this script that says what each number is on MARS. White
matter bundles that no definition of MARS settles (fronto-occipital, sagittal stratum, superior
longitudinal fasciculus) count as lobar in the first row and as deep in the second.

Without arguments the shipped regions are compared, through the affine to MNI space, which costs
agreement where head and MNI template differ in more than an affine. Printed are the share of voxels
of the same class, where both have one, and the table of classes.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_bids.anatomy import regions_to_mars

CLASSES = ("lobar", "deep", "infratentorial")
# First and last number of the reference's structures, and their class.
GROUPS = (
    (1, 76, "lobar"),  # gyri with the white matter beneath, insula, amygdala, hippocampus
    (77, 90, "deep"),  # basal ganglia, thalamus, hypothalamus, basal forebrain
    (91, 116, "infratentorial"),  # red nucleus, substantia nigra, brainstem, cerebellum
    (117, 138, "deep"),  # corona radiata, callosum, tapetum, internal and external capsule
    (139, 142, "lobar"),  # cingulum
    (143, 146, "deep"),  # fornix
    (147, 148, "unsettled"),  # inferior fronto-occipital fasciculus
    (149, 150, "deep"),  # posterior thalamic radiation
    (151, 152, "unsettled"),  # sagittal stratum
    (153, 154, "deep"),  # superior fronto-occipital fasciculus
    (155, 156, "unsettled"),  # superior longitudinal fasciculus
    (157, 158, "lobar"),  # uncinate fasciculus
    (159, 170, "deep"),  # small structures of the basal forebrain and hypothalamus
    (182, 189, "lobar"),  # posterior insula and temporal gyri; 171 to 181 are ventricles
)


def reference_classes(unsettled: str) -> np.ndarray:
    """Class of each number of the reference, None for fluid."""
    table = np.full(256, None, dtype=object)
    for first, last, name in GROUPS:
        table[first : last + 1] = unsettled if name == "unsettled" else name
    return table


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels (x, y, z) and their affine."""
    image = nib.load(path)
    return np.squeeze(np.asarray(image.dataobj)).astype(np.int32), image.affine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shipped = Path(str(files("cmb_bids") / "data"))
    parser.add_argument("reference", type=Path, help="jhu189.nii.gz")
    parser.add_argument("--regions", type=Path, default=shipped / "template_regions.nii.gz")
    parser.add_argument("--to-mni", default=str(shipped / "template_to_mni.txt"))
    options = parser.parse_args()
    regions, affine = read(options.regions)
    to_mni = np.eye(4) if options.to_mni == "identity" else np.loadtxt(options.to_mni)
    reference, reference_affine = read(options.reference)
    chain = np.linalg.inv(reference_affine) @ to_mni @ affine
    carried = ndimage.affine_transform(
        reference, chain[:3, :3], chain[:3, 3], output_shape=regions.shape, order=0
    )
    ours = regions_to_mars(regions)[1]
    print("| unsettled bundles | voxels | class agrees |\n|---|---|---|")
    for unsettled in ("lobar", "deep"):
        theirs = reference_classes(unsettled)[carried]
        both = (ours != None) & (theirs != None)  # noqa: E711
        print(f"| {unsettled} | {both.sum()} | {(ours == theirs)[both].mean():.3f} |", flush=True)
        if unsettled == "lobar":
            counts = [[int(((theirs == a) & (ours == b)).sum()) for b in CLASSES] for a in CLASSES]
    print("\nReference (rows) and built-in regions, unsettled bundles lobar:")
    for name, row in zip(CLASSES, counts, strict=True):
        print(f"{name:>15} {row}")


if __name__ == "__main__":
    main()
