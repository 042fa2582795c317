"""Participants and the BIDS files of their scans and of the truth."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from random_walk_simulator.grid import PROTOCOLS, Grid, Protocol
from random_walk_simulator.head import build_head
from random_walk_simulator.lesions import CALCIFICATION, MICROBLEED, Lesion, draw_lesions
from random_walk_simulator.scanner import acquire

VENDORS = ("Siemens", "GE", "Philips")
COLUMNS = ("index", "name", "x", "y", "z", "diameter_mm", "susceptibility_ppm")
LISTED = {MICROBLEED: "microbleeds", CALCIFICATION: "calcifications"}
DATASET = {"Name": "Random-walk simulator", "BIDSVersion": "1.10.0", "DatasetType": "raw",
           "License": "CC0", "GeneratedBy": [{"Name": "random_walk_simulator"}]}  # fmt: skip
TRUTH = DATASET | {"Name": "Truth of the random-walk simulator", "DatasetType": "derivative",
                   "DatasetLinks": {"raw": "../.."}}  # fmt: skip


def simulate(number: int, seed: int) -> tuple[np.ndarray, Protocol, str, list[Lesion], bool]:
    """Simulate a participant, who is counted from 0.

    Returns
    -------
    image : ndarray of complex, shape (x, y, z)
    protocol : Protocol
        They take turns.
    group : str
    lesions : list of Lesion
    left_handed : bool
        Whether the scanner stores the other sign of phase.
    """
    rng = np.random.default_rng([seed, number])
    protocol = PROTOCOLS[number % len(PROTOCOLS)]
    grid = Grid(protocol)
    head = build_head(rng, grid, protocol.field_t)
    group, lesions = draw_lesions(rng, head, grid)
    image = acquire(rng, head, grid, protocol)
    return image, protocol, group, lesions, bool(rng.random() < 0.5)


def write_scan(
    label: str, vendor: str, image: np.ndarray, protocol: Protocol, left_handed: bool, folder: Path
) -> None:
    """Write magnitude and phase (12 bits, -4096 to 4096) with their sidecars."""
    voxel, middle = np.array(protocol.voxel_mm), (np.array(image.shape) - 1) / 2
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = -middle * voxel
    phase = np.angle(image) * (-1 if left_handed else 1)
    magnitude = np.abs(image)
    parts = {
        "mag": magnitude / np.percentile(magnitude, 99) * 1500,
        "phase": phase / np.pi * 4096,
    }
    for part, values in parts.items():
        path = folder / f"sub-{label}_part-{part}_T2starw"
        folder.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.round(values).astype(np.int16), affine), f"{path}.nii.gz")
        about: dict[str, Any] = {
            "MagneticFieldStrength": protocol.field_t, "EchoTime": protocol.echo_time_s,
            "RepetitionTime": 0.03, "FlipAngle": 15, "MRAcquisitionType": "3D",
            "Manufacturer": vendor, "SliceThickness": protocol.voxel_mm[2],
        }  # fmt: skip
        _write_json(path.with_suffix(".json"), about)


def write_truth(label: str, lesions: list[Lesion], folder: Path) -> None:
    """Write a table of the microbleeds and one of the calcifications."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, described in LISTED.items():
        mine = [lesion for lesion in lesions if lesion.name == name]
        rows = [
            (i + 1, name, *np.round(one.centre, 3), round(one.diameter, 3), round(one.chi, 4))
            for i, one in enumerate(mine)
        ]
        table = pd.DataFrame(rows, columns=COLUMNS)
        table.to_csv(folder / f"sub-{label}_desc-{described}_dseg.tsv", sep="\t", index=False)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="random_walk_simulator",
        description="Simulate labelled SWI of a crude head with veins that walk at random.",
    )
    parser.add_argument("output", type=Path, help="BIDS dataset to write")
    parser.add_argument("--participants", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="of the N, only these: 01 02")
    options = parser.parse_args(arguments)
    output, truth = options.output, options.output / "derivatives" / "truth"
    _write_json(output / "dataset_description.json", DATASET)
    _write_json(truth / "dataset_description.json", TRUTH)
    readme = "Simulated gradient-echo scans, no human data: see docs/random_walk_simulator.md\n"
    (output / "README").write_text(readme, encoding="utf-8")
    width = max(2, len(str(options.participants)))
    labels = [f"{i + 1:0{width}d}" for i in range(options.participants)]
    wanted = {label.removeprefix("sub-") for label in options.only or labels}
    rows = []
    for number, label in enumerate(labels):
        protocol, vendor = PROTOCOLS[number % len(PROTOCOLS)], VENDORS[number % len(VENDORS)]
        rows.append((f"sub-{label}", protocol.name, vendor))
        if label not in wanted:
            continue
        image, protocol, group, lesions, left_handed = simulate(number, options.seed)
        write_scan(label, vendor, image, protocol, left_handed, output / f"sub-{label}" / "anat")
        write_truth(label, lesions, truth / f"sub-{label}" / "anat")
        print(f"sub-{label} {protocol.name} {group} {len(lesions)} lesions", flush=True)
    table = pd.DataFrame(rows, columns=["participant_id", "protocol", "manufacturer"])
    table.to_csv(output / "participants.tsv", sep="\t", index=False)
    return 0
