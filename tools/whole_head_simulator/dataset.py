"""Participants, their scans with the truth, and the BIDS files."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from whole_head_simulator.acquisition import Acquisition, draw_acquisition
from whole_head_simulator.echo import build_echo
from whole_head_simulator.field import background_field, dipole_field
from whole_head_simulator.fine import FineMap
from whole_head_simulator.head import build_head
from whole_head_simulator.lesions import CALCIFICATION, MICROBLEED, Lesion, place_lesions
from whole_head_simulator.scanner import Received, acquire
from whole_head_simulator.settings import GROUPS, PROTOCOLS, Protocol
from whole_head_simulator.storage import Stored, sidecar, store
from whole_head_simulator.vessels import paint_veins
from whole_head_simulator.walks import draw_veins

COLUMNS = ("index", "name", "x", "y", "z", "diameter_mm", "susceptibility_ppm", "region")
DATASET = {"Name": "Whole-head simulator", "BIDSVersion": "1.10.0", "DatasetType": "raw",
           "License": "CC0", "GeneratedBy": [{"Name": "whole_head_simulator"}]}  # fmt: skip
TRUTH = DATASET | {
    "Name": "Truth of the whole-head simulator",
    "DatasetType": "derivative",
    "DatasetLinks": {"raw": "../.."},
}
LISTED = {MICROBLEED: "microbleeds", CALCIFICATION: "calcifications"}


class Participant(NamedTuple):
    """Who is scanned and how; ``number`` counts from 0."""

    label: str
    number: int
    group: str
    protocol: Protocol


class Simulated(NamedTuple):
    """A scan with its truth.

    ``vein_chi`` is the susceptibility (ppm) of venous blood, ``veins`` how many there are, and
    ``brain_ml`` the volume of the brain.
    """

    acquisition: Acquisition
    received: Received
    stored: Stored
    lesions: list[Lesion]
    vein_chi: float
    veins: int
    brain_ml: float


def draw_participants(count: int) -> list[Participant]:
    """A cohort.

    Parameters
    ----------
    count : int

    Returns
    -------
    list of Participant
        Groups take turns so that their shares are those of Liu et al. 2019 throughout; protocols
        take turns too.
    """
    total = sum(GROUPS.values())
    have = dict.fromkeys(GROUPS, 0)
    width = max(2, len(str(count)))
    people = []
    for i in range(count):
        behind = {name: share / total * (i + 1) - have[name] for name, share in GROUPS.items()}
        group = max(behind, key=lambda name: behind[name])
        have[group] += 1
        people.append(Participant(f"{i + 1:0{width}d}", i, group, PROTOCOLS[i % len(PROTOCOLS)]))
    return people


def simulate(seed: int, number: int, group: str, protocol: Protocol) -> Simulated:
    """Simulate one participant.

    Parameters
    ----------
    seed : int
    number : int
        Of the participant; the same seed and number give the same scan.
    group : str
        Clinical group.
    protocol : Protocol

    Returns
    -------
    Simulated
    """
    rng = np.random.default_rng([seed, number])
    acquisition = draw_acquisition(rng, protocol)
    head = build_head(rng, group, acquisition.head_turn, protocol.head_mm)
    background = background_field(rng, head, acquisition.field_direction)
    veins, widening = draw_veins(rng, head)
    fine = FineMap.empty(acquisition.fine)
    vein_chi = paint_veins(rng, fine, veins, widening)
    lesions = place_lesions(
        rng, head, group, fine, background.is_steep(head.grid),
        float(acquisition.field_of_view_mm[2]) / 2,
    )  # fmt: skip
    grid, matter, brain_ml = head.grid, head.matter, head.brain_ml
    del head  # most of it is not needed any more
    shift = dipole_field(fine.chi, fine.grid.spacing, acquisition.field_direction)
    echo = build_echo(rng, acquisition, grid, matter, background, fine, shift)
    received = acquire(rng, echo)
    stored = store(rng, acquisition, received)
    return Simulated(acquisition, received, stored, lesions, vein_chi, len(veins), brain_ml)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_scan(label: str, scan: Simulated, folder: Path) -> None:
    """Write magnitude and phase of a participant with their sidecars."""
    folder.mkdir(parents=True, exist_ok=True)
    affine, vendor = scan.stored.affine, scan.stored.vendor
    for part, data in (("mag", scan.stored.magnitude), ("phase", scan.stored.phase)):
        path = folder / f"sub-{label}_part-{part}_T2starw"
        image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, path.with_suffix(".nii.gz"))
        about = sidecar(scan.acquisition, scan.received, vendor, part)
        _write_json(path.with_suffix(".json"), about)


def truth_table(name: str, scan: Simulated) -> pd.DataFrame:
    """Table of the lesions of one kind; places in world mm."""
    mine = [lesion for lesion in scan.lesions if lesion.name == name]
    rows = [
        (i, name, *np.round(scan.acquisition.world(lesion.centre), 3), round(lesion.diameter, 3),
         round(lesion.chi, 4), lesion.region)
        for i, lesion in enumerate(mine, start=1)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def write_truth(label: str, scan: Simulated, folder: Path) -> None:
    """Write a table of the microbleeds and one of the calcifications of a participant."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, described in LISTED.items():
        path = folder / f"sub-{label}_desc-{described}_dseg.tsv"
        truth_table(name, scan).to_csv(path, sep="\t", index=False)


def write_dataset_files(output: Path) -> None:
    """Descriptions of the dataset and of its truth."""
    _write_json(output / "dataset_description.json", DATASET)
    _write_json(output / "derivatives" / "truth" / "dataset_description.json", TRUTH)
    readme = "Simulated gradient-echo scans, no human data: see docs/whole_head_simulator.md\n"
    (output / "README").write_text(readme, encoding="utf-8")


def write_participants(people: list[Participant], output: Path) -> None:
    """Write the participants table; the manufacturer is known of those that have been scanned."""
    rows = []
    for person in people:
        stem = f"sub-{person.label}"
        path = output / stem / "anat" / f"{stem}_part-mag_T2starw.json"
        vendor = json.loads(path.read_text())["Manufacturer"] if path.exists() else "n/a"
        rows.append((stem, person.group, person.protocol.name, vendor))
    columns = ["participant_id", "group", "protocol", "manufacturer"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(output / "participants.tsv", sep="\t", index=False)


def _summary(person: Participant, scan: Simulated) -> str:
    """One line about a scan."""
    counts = {name: sum(one.name == name for one in scan.lesions) for name in LISTED}
    remarks = {
        "phase negated": scan.stored.negated,
        "oblique": scan.acquisition.oblique,
        "motion": scan.received.moved,
        "2D": scan.received.two_dimensional,
    }
    words = [
        f"sub-{person.label} {person.group} {person.protocol.name} {scan.stored.vendor}",
        f"brain {scan.brain_ml:.0f} ml",
        f"SNR {scan.received.snr:.0f}",
        f"{scan.veins} veins of {scan.vein_chi:.2f} ppm",
        *(f"{count} {LISTED[name]}" for name, count in counts.items()),
        *(remark for remark, is_so in remarks.items() if is_so),
    ]
    return ", ".join(words)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="whole_head_simulator",
        description="Simulate labelled SWI of whole heads with dense veins.",
    )
    parser.add_argument("output", type=Path, help="BIDS dataset to write")
    parser.add_argument("--participants", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="of the N, only these: 01 02")
    options = parser.parse_args(arguments)
    output, people = options.output, draw_participants(options.participants)
    write_dataset_files(output)
    wanted = {label.removeprefix("sub-") for label in options.only or ()}
    for person in people:
        if wanted and person.label not in wanted:
            continue
        start = time.perf_counter()
        scan = simulate(options.seed, person.number, person.group, person.protocol)
        stem = f"sub-{person.label}"
        write_scan(person.label, scan, output / stem / "anat")
        write_truth(person.label, scan, output / "derivatives" / "truth" / stem / "anat")
        print(f"{_summary(person, scan)}, {time.perf_counter() - start:.0f} s", flush=True)
    write_participants(people, output)
    return 0
