"""Participants, their scans with the truth, and the BIDS files."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from analytic_simulator.anatomy import Anatomy, build_anatomy
from analytic_simulator.field import brain_of, bulk_field, dipole_field, steepness
from analytic_simulator.geometry import Grid
from analytic_simulator.head import Head
from analytic_simulator.lesions import (
    CALCIFICATION,
    MICROBLEED,
    Lesion,
    label_image,
    paint_lesion,
    place_lesions,
)
from analytic_simulator.protocol import PROTOCOLS, Protocol, draw_protocol
from analytic_simulator.scanner import acquire
from analytic_simulator.settings import AGES, GROUPS
from analytic_simulator.storage import (
    Storage,
    Stored,
    draw_storage,
    sidecar,
    stored_parts,
    turn_affine,
    turn_array,
)
from analytic_simulator.tissue import paint, tissue_signals
from analytic_simulator.vessels import add_vessels

COLUMNS = ("index", "name", "x", "y", "z", "diameter_mm", "susceptibility_ppm", "region")
DATASET = {"Name": "Analytic simulator", "BIDSVersion": "1.10.0", "DatasetType": "raw",
           "License": "CC0", "GeneratedBy": [{"Name": "analytic_simulator"}]}  # fmt: skip
TRUTH = DATASET | {
    "Name": "Truth of the analytic simulator",
    "DatasetType": "derivative",
    "DatasetLinks": {"raw": "../.."},
}
LISTED = {MICROBLEED: "microbleeds", CALCIFICATION: "calcifications"}


class Participant(NamedTuple):
    """Who is scanned and how; ``number`` counts from 0."""

    label: str
    number: int
    group: str
    age: int
    sex: str
    protocol: Protocol


class Simulated(NamedTuple):
    """A scan with its truth.

    Complex images (echo of (x, y, z)) along right, anterior and superior, right-handed; brain
    mask and label images along the axes that are stored, with their ``affine``.
    """

    participant: Participant
    images: list[np.ndarray]
    storage: Storage
    affine: np.ndarray
    brain: np.ndarray
    labels: dict[str, np.ndarray]
    tables: dict[str, pd.DataFrame]


def scan_draws(seed: int, number: int, which: str) -> tuple[np.random.Generator, Protocol]:
    """The protocol of a participant, and the generator that draws the rest of the scan."""
    rng = np.random.default_rng([seed, number, 2])
    return rng, draw_protocol(rng, which)


def draw_participants(count: int, seed: int, which: str) -> list[Participant]:
    """Draw a cohort.

    Parameters
    ----------
    count : int
    seed : int
    which : str
        Protocol of all, or ``mixed``.

    Returns
    -------
    list of Participant
        Groups take turns so that their shares are those of Liu et al. 2019 throughout.
    """
    total = sum(GROUPS.values())
    have = dict.fromkeys(GROUPS, 0)
    width = max(2, len(str(count)))
    people = []
    for i in range(count):
        behind = {name: share / total * (i + 1) - have[name] for name, share in GROUPS.items()}
        group = max(behind, key=lambda name: behind[name])
        have[group] += 1
        rng = np.random.default_rng([seed, i, 1])
        age = int(rng.uniform(*AGES[group]))
        sex = str(rng.choice(["M", "F"], p=[0.7, 0.3] if group == "TBI" else [0.5, 0.5]))
        protocol = scan_draws(seed, i, which)[1]
        people.append(Participant(f"{i + 1:0{width}d}", i, group, age, sex, protocol))
    return people


def simulate(rng: np.random.Generator, participant: Participant) -> Simulated:
    """Simulate one participant.

    Parameters
    ----------
    rng : numpy.random.Generator
        As `scan_draws` leaves it: the same seed and number give the same scan.
    participant : Participant

    Returns
    -------
    Simulated
    """
    protocol, age = participant.protocol, participant.age
    anatomy = build_anatomy(rng, Head(rng, age), protocol)
    slab = anatomy.slab
    bulk = bulk_field(rng, anatomy, slab.matrix[2] * protocol.voxel[2])
    signals = tissue_signals(rng, protocol, age)
    volumes, field = paint(rng, anatomy, signals, bulk)
    add_vessels(rng, anatomy, volumes, signals, protocol.field_t)
    lesions = place_lesions(rng, anatomy, participant.group, age, protocol)
    for lesion in lesions:
        paint_lesion(lesion, slab.fine, volumes)
    field += dipole_field(volumes.chi, slab.fine.spacing, slab.field_direction)
    images = acquire(rng, protocol, slab, volumes, field, steepness(field), signals["white"])
    return _with_truth(participant, images, draw_storage(rng, protocol), anatomy, lesions)


def _with_truth(
    participant: Participant, images: list[np.ndarray], storage: Storage, anatomy: Anatomy,
    lesions: list[Lesion],
) -> Simulated:  # fmt: skip
    """Write down what is where, in scanner space and in the stored images."""
    protocol, slab = participant.protocol, anatomy.slab
    grid = slab.image_grid(protocol)
    labels, tables = {}, {}
    for name in LISTED:
        mine = [lesion for lesion in lesions if lesion.name == name]
        rows = [_row(i + 1, lesion, anatomy) for i, lesion in enumerate(mine)]
        tables[name] = pd.DataFrame(rows, columns=COLUMNS)
        labels[name] = turn_array(label_image(mine, grid), protocol.axes)
    affine = turn_affine(slab.affine(protocol), grid.shape, protocol.axes)
    brain = turn_array(_brain_mask(anatomy, grid), protocol.axes)
    return Simulated(participant, images, storage, affine, brain, labels, tables)


def _row(number: int, lesion: Lesion, anatomy: Anatomy) -> dict[str, Any]:
    """One line of the truth."""
    return {
        "index": number,
        "name": lesion.name,
        **dict(zip("xyz", np.round(anatomy.slab.world(lesion.centre), 3), strict=True)),
        "diameter_mm": round(lesion.diameter, 3),
        "susceptibility_ppm": round(lesion.chi, 4),
        "region": lesion.region,
    }


def _brain_mask(anatomy: Anatomy, grid: Grid) -> np.ndarray:
    """Whether each voxel of the image lies in the brain, sulci and ventricles included."""
    coarse = anatomy.grid
    lines = [
        (o + h * np.arange(n) - first) / step
        for o, h, n, first, step in zip(
            grid.origin, grid.spacing, grid.shape, coarse.origin, coarse.spacing, strict=True
        )
    ]
    index = np.meshgrid(*lines, indexing="ij")
    return ndimage.map_coordinates(brain_of(anatomy), index, order=1, mode="nearest") < 0


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_image(
    path: Path, data: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    if np.issubdtype(data.dtype, np.integer):
        image.header.set_slope_inter(slope, intercept)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)


def write_scan(simulated: Simulated, output: Path) -> None:
    """Write one participant's raw images and their truth."""
    person, protocol = simulated.participant, simulated.participant.protocol
    stem = f"sub-{person.label}"
    raw = output / stem / "anat"
    names = []
    for echo, image in enumerate(simulated.images):
        entity = f"_echo-{echo + 1}" if len(simulated.images) > 1 else ""
        for stored in stored_parts(image, protocol, simulated.storage, echo):
            name = f"{stem}{entity}_part-{stored.part}_{protocol.suffix}"
            _write_part(raw / name, stored, simulated.affine, sidecar(protocol, echo))
            names.append(f"bids:raw:{stem}/anat/{name}.nii.gz")
    truth = output / "derivatives" / "truth" / stem / "anat"
    conditions = {"Description": "Cores of the lesions that were simulated", "Manual": False,
                  "Sources": names, "Group": person.group, "Age": person.age,
                  "Conditions": asdict(protocol) | asdict(simulated.storage)}  # fmt: skip
    for name, described in LISTED.items():
        path = truth / f"{stem}_desc-{described}_dseg"
        _write_image(path.with_suffix(".nii.gz"), simulated.labels[name], simulated.affine)
        _write_json(path.with_suffix(".json"), conditions)
        simulated.tables[name].to_csv(path.with_suffix(".tsv"), sep="\t", index=False)
    mask = truth / f"{stem}_desc-brain_mask.nii.gz"
    _write_image(mask, simulated.brain.astype(np.uint8), simulated.affine)


def _write_part(path: Path, stored: Stored, affine: np.ndarray, about: dict[str, Any]) -> None:
    """Write one raw image and its sidecar; ``path`` has no extension."""
    image = path.with_suffix(".nii.gz")
    _write_image(image, stored.data, affine, stored.slope, stored.intercept)
    _write_json(path.with_suffix(".json"), about | stored.about)


def write_dataset_files(people: list[Participant], output: Path) -> None:
    """Descriptions of the dataset and of its truth, and the participants table."""
    _write_json(output / "dataset_description.json", DATASET)
    _write_json(output / "derivatives" / "truth" / "dataset_description.json", TRUTH)
    (output / "README").write_text(
        "Simulated gradient-echo scans, no human data: see docs/analytic_simulator.md\n",
        encoding="utf-8",
    )
    # Suffixes that scanners' converters write and BIDS does not know.
    (output / ".bidsignore").write_text("**/*_swi.*\n**/*_GRE.*\n", encoding="utf-8")
    rows = [
        {"participant_id": f"sub-{p.label}", "age": p.age, "sex": p.sex, "group": p.group,
         "protocol": p.protocol.name, "manufacturer": p.protocol.vendor}
        for p in people
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(output / "participants.tsv", sep="\t", index=False)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="analytic_simulator",
        description="Simulate labelled SWI of a head made of formulas.",
    )
    parser.add_argument("output", type=Path, help="BIDS dataset to write")
    parser.add_argument("--participants", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--protocol", choices=[*PROTOCOLS, "mixed"], default="mixed")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="of the N, only these: 01 02")
    options = parser.parse_args(arguments)
    people = draw_participants(options.participants, options.seed, options.protocol)
    write_dataset_files(people, options.output)
    wanted = {label.removeprefix("sub-") for label in options.only or ()}
    for person in people:
        if wanted and person.label not in wanted:
            continue
        rng, _ = scan_draws(options.seed, person.number, options.protocol)
        simulated = simulate(rng, person)
        write_scan(simulated, options.output)
        counts = {name: len(table) for name, table in simulated.tables.items()}
        protocol = person.protocol
        print(f"sub-{person.label} {person.group} {protocol.name} {protocol.vendor} {counts}")
    return 0
