"""Measure the brain mask of scans whose true brain is known.

    cmb-lab simulate OURS --participants 6 --protocol ukb 3T 1.5T --seed 901
    python tools/second_simulator OTHER --participants 6 --seed 72 --protocol mixed
    python tools/measure_masks.py OURS OTHER

Each argument is a BIDS dataset with ``derivatives/truth``. Printed is a row per scan: Dice of mask
and true brain, their volumes, the share of the true brain that the mask has lost (of all of it,
and of its lowest third by height in front and at the back: frontal base and temporal poles,
cerebellum and stem), the share of the mask that is no brain, and the seconds the stage took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmb_bids.brain import extract_brain
from cmb_bids.phase import process_magnitude
from cmb_bids.volumes import read_json, read_volume, voxel_to_world

LOW_SHARE = 1 / 3
HEADER = (
    "| scan | Dice | mask / truth (ml) | lost | of the low front | of the low back | "
    "not brain | gate | s |"
)


def find_scans(dataset: Path) -> Iterator[tuple[str, list[Path], Path]]:
    """Name, magnitudes (one per echo) and true mask of every scan of a dataset."""
    for truth in sorted(
        (dataset / "derivatives" / "truth").glob("sub-*/**/*_desc-brain_mask.nii*")
    ):
        name = truth.name.split("_desc-brain_mask")[0]
        folder = dataset / truth.parent.relative_to(dataset / "derivatives" / "truth")
        echoes = sorted(folder.glob(f"{name}_*part-mag_*.nii*"))
        yield name, echoes, truth


def load_scan(echoes: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The magnitude, echoes combined as the pipeline does, and its affine."""
    volumes = [read_volume(path) for path in echoes]
    times = [read_json(f"{str(path).split('.nii')[0]}.json").get("EchoTime") for path in echoes]
    affine = volumes[0].affine
    return process_magnitude([v.data for v in volumes], times, affine).magnitude, affine


def low_parts(truth: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest third of the true brain, in front and at the back; voxel indices."""
    where = np.argwhere(truth)
    world = voxel_to_world(affine, where)
    low = world[:, 2] < np.quantile(world[:, 2], LOW_SHARE)
    front = world[:, 1] > np.median(world[:, 1])
    return where[low & front], where[low & ~front]


def describe(name: str, magnitude: np.ndarray, affine: np.ndarray, truth: np.ndarray) -> str:
    """Row of one scan."""
    begin = time.perf_counter()
    found = extract_brain(magnitude, affine)
    seconds = time.perf_counter() - begin
    mask = found.mask
    both = (mask & truth).sum()
    millilitre = abs(np.linalg.det(affine[:3, :3])) / 1000
    lost = [1 - mask[tuple(part.T)].mean() for part in low_parts(truth, affine)]
    return (
        f"| {name} | {2 * both / (mask.sum() + truth.sum()):.3f} | "
        f"{mask.sum() * millilitre:.0f} / {truth.sum() * millilitre:.0f} | "
        f"{1 - both / truth.sum():.3f} | {lost[0]:.3f} | {lost[1]:.3f} | "
        f"{1 - both / mask.sum():.3f} | {found.report['gate']} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("datasets", nargs="+", type=Path, metavar="DATASET")
    print(HEADER + "\n|---|---|---|---|---|---|---|---|---|")
    for dataset in parser.parse_args().datasets:
        for name, echoes, mask_file in find_scans(dataset):
            magnitude, affine = load_scan(echoes)
            truth = read_volume(mask_file).data > 0
            print(describe(name, magnitude, affine, truth), flush=True)
