"""Draw one scan's results for the README: SWI, high-pass phase and projection, lesions marked.

python tools/draw_example.py DERIVATIVES PARTICIPANT docs/images/example.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cmb_bids.volumes import read_table, read_volume, voxel_sizes, world_to_voxel

IMAGES = {
    "SWI": ("*_desc-swi_*.nii.gz", None),
    "high-pass phase": ("*_part-phase_desc-highpass_*.nii.gz", (-1.0, 1.0)),
    "minimum-intensity projection, 8 mm": ("*_desc-minip_*.nii.gz", None),
}
KINDS = {"cmb": ("microbleed", "#ff3b30"), "calcification": ("calcification", "#32ade6")}


def lesions(anat: Path, affine: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Kind, certainty and voxel position of every lesion listed."""
    found = []
    for kind in KINDS:
        table = read_table(next(anat.glob(f"*_desc-{kind}_dseg.tsv")))
        positions = world_to_voxel(affine, table[["x", "y", "z"]].to_numpy())
        found += [
            (kind, sure, place) for sure, place in zip(table["certainty"], positions, strict=True)
        ]
    return found


def busiest_slices(found: list[tuple[str, str, np.ndarray]], inside: np.ndarray) -> list[int]:
    """Two slices of the brain, apart from each other, that show most lesions."""
    shown = inside.sum(axis=(0, 1)) / inside.sum()
    for _, sure, place in found:
        shown[round(float(place[2]))] += 5 if sure == "definite" else 1
    shown = np.convolve(shown, [0.6, 1, 0.6], mode="same")
    first = int(np.argmax(shown))
    shown[max(0, first - 6) : first + 7] = -1
    return [first, int(np.argmax(shown))]


def draw(derivatives: Path, participant: str, output: Path) -> None:
    """Draw two axial slices of every image, with the lesions within 3 mm circled."""
    anat = derivatives / participant / "anat"
    mask = read_volume(next(anat.glob("*_desc-brain_mask.nii.gz")))
    inside = mask.data > 0.5
    box = [slice(max(0, w.min() - 8), w.max() + 8) for w in np.nonzero(inside)[:2]]
    sizes = voxel_sizes(mask.affine)
    found = lesions(anat, mask.affine)
    slices = busiest_slices(found, inside)
    figure, axes = plt.subplots(2, 3, figsize=(12.6, 9.4), facecolor="black")
    for column, (title, (pattern, window)) in enumerate(IMAGES.items()):
        data = read_volume(next(anat.glob(pattern))).data
        low, high = window or (0.0, float(np.percentile(data[inside], 99.5)))
        for row, k in enumerate(slices):
            axis = axes[row, column]
            panel = data[box[0], box[1], k].T
            axis.imshow(
                panel, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=sizes[1] / sizes[0]
            )
            axis.contour(inside[box[0], box[1], k].T, [0.5], colors="#ffd60a", linewidths=0.5)
            for kind, sure, place in found:
                if abs(place[2] - k) * sizes[2] <= 3.1:
                    axis.plot(
                        place[0] - box[0].start, place[1] - box[1].start, "o", ms=15, mfc="none",
                        mec=KINDS[kind][1], mew=1.6, ls="" if sure == "definite" else "--",
                        alpha=1.0 if sure == "definite" else 0.55,
                    )  # fmt: skip
            axis.set_axis_off()
        axes[0, column].set_title(title, color="white", fontsize=12)
    handles = [
        plt.Line2D([], [], marker="o", ls="", ms=10, mfc="none", mec=color, label=name)
        for name, color in KINDS.values()
    ]
    handles.append(plt.Line2D([], [], color="#ffd60a", lw=1, label="brain mask"))
    figure.legend(
        handles=handles, loc="lower center", ncols=3, facecolor="black", labelcolor="white",
        frameon=False, title="Simulated scan. Faint circles: possible.", title_fontsize=10,
    ).get_title().set_color("white")  # fmt: skip
    figure.subplots_adjust(0.005, 0.075, 0.995, 0.96, 0.01, 0.01)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("derivatives", type=Path)
    parser.add_argument("participant")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    draw(options.derivatives, options.participant, options.output)
