"""Participants, their scans with the truth, and the BIDS files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from second_simulator.head import (
    Anatomy,
    Grid,
    MapsMissing,
    build_anatomy,
    build_grids,
    load_tissue_maps,
    rotation,
)
from second_simulator.lesions import Spot, _shape_of, place_calcifications, place_microbleeds
from second_simulator.scanner import Scan, scan_head
from second_simulator.settings import (
    AGES,
    ARTERIES,
    COHORT,
    DEEP_VEINS,
    PROTOCOLS,
    VEIN_PPM,
    Protocol,
)
from second_simulator.tissue import (
    Properties,
    blend_tubes,
    bulk_field,
    dipole_field,
    fine_slabs,
    paint,
    tissue_signals,
)
from second_simulator.vessels import (
    _drawn,
    _polyline,
    cortical_veins,
    dural_sinuses,
    medullary_veins,
    perivascular_spaces,
)


class Participant(NamedTuple):
    """Who is scanned, how, and by whom."""

    label: str
    group: str
    age: float
    sex: str
    protocol: Protocol
    vendor: str


class Simulated(NamedTuple):
    """A scan with its truth; images (echo, x, y, z), masks (x, y, z), as they are stored."""

    participant: Participant
    magnitude: np.ndarray
    phase: np.ndarray
    affine: np.ndarray
    brain: np.ndarray
    labels: dict[str, np.ndarray]
    tables: dict[str, pd.DataFrame]
    noise: float


def draw_participants(count: int, seed: int, protocol: str) -> list[Participant]:
    """The cohort: groups as in Liu et al. 2019 in random order, protocols in turn."""
    rng = np.random.default_rng([seed, 2**20])
    names = list(PROTOCOLS) if protocol == "mixed" else [protocol]
    decks = [rng.permutation(COHORT) for _ in range(count // len(COHORT) + 1)]
    groups = np.concatenate(decks)[:count]
    people = []
    for i, group in enumerate(groups):
        mean, spread = AGES[str(group)]
        age = float(np.clip(rng.normal(mean, spread), 19, 92))
        chosen = PROTOCOLS[names[i % len(names)]]
        vendor = (
            "Siemens" if chosen.name == "ukb" else str(rng.choice(["Siemens", "Philips", "GE"]))
        )
        sex = str(rng.choice(["F", "M"]))
        people.append(Participant(f"{i + 1:02d}", str(group), round(age), sex, chosen, vendor))
    return people


def simulate(participant: Participant, maps: dict[str, np.ndarray], seed: int) -> Simulated:
    """Simulate one participant; the same seed and label give the same scan."""
    rng = np.random.default_rng([seed, int(participant.label)])
    protocol, age = participant.protocol, participant.age
    slices = int(rng.integers(*protocol.slices, endpoint=True))
    grid, coarse, inner = build_grids(protocol, slices)
    oblique = rotation(rng.normal(0, 3), rng.normal(0, 9), rng.normal(0, 4))
    direction = oblique.T @ np.array([0, 0, 1.0])
    anatomy = build_anatomy(rng, coarse, inner, maps, age)
    signals = tissue_signals(protocol, rng.uniform(*protocol.flip_deg))
    volumes = paint(anatomy, grid, maps, signals, protocol.field_t)
    _add_vessels(rng, anatomy, grid, volumes, signals, age)
    shifts = _total_field(anatomy, grid, volumes, direction)
    spots = place_microbleeds(rng, anatomy, participant.group, grid, direction, protocol)
    spots += place_calcifications(rng, anatomy, age, protocol.field_t)
    # A lesion beyond the slab is not in the image: it is not in the truth either.
    half = slices * protocol.voxel[2] / 2 - 2
    spots = [spot for spot in spots if abs(spot.centre[2]) < half]
    scan = scan_head(rng, protocol, grid, slices, volumes, shifts, spots, direction, anatomy,
                     participant.vendor)  # fmt: skip
    return _with_truth(rng, participant, scan, spots, anatomy, grid, oblique)


def _add_vessels(
    rng: np.random.Generator, anatomy: Anatomy, grid: Grid, volumes: Properties,
    signals: dict[str, Any], age: float,
) -> None:  # fmt: skip
    sinuses = dural_sinuses(anatomy)
    veins = [_polyline(line, radius) for line, radius in sinuses]
    veins += _drawn(rng, anatomy, DEEP_VEINS, taper=0.8)
    veins += medullary_veins(rng, anatomy)
    veins.append(cortical_veins(rng, anatomy, sinuses))
    spaces = perivascular_spaces(rng, anatomy, age)
    arteries = np.vstack(_drawn(rng, anatomy, ARTERIES))
    blend_tubes(volumes, grid, spaces, signals["csf"], 0.0)
    blend_tubes(volumes, grid, arteries, signals["artery"], 0.0)
    chi = VEIN_PPM * rng.uniform(0.75, 1.35)
    blend_tubes(volumes, grid, np.vstack(veins), signals["vein"], chi)


def _total_field(
    anatomy: Anatomy, grid: Grid, volumes: Properties, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Field (ppm) of head and tissue on the fine grid, and its change across a fine slice."""
    total = dipole_field(volumes.chi, grid.spacing, direction)
    change = np.empty_like(total)
    bulk = bulk_field(anatomy, direction)
    steep = np.gradient(bulk, anatomy.grid.spacing[2], axis=0) * np.float32(grid.spacing[2])
    for part, field_part in fine_slabs(bulk[None], grid, mode="bicubic"):
        total[part] += field_part[0].numpy()
    for part, steep_part in fine_slabs(steep[None], grid):
        change[part] = steep_part[0].numpy()
    return total, change


def _with_truth(
    rng: np.random.Generator, participant: Participant, scan: Scan, spots: list[Spot],
    anatomy: Anatomy, grid: Grid, oblique: np.ndarray,
) -> Simulated:  # fmt: skip
    """Turn to (x, y, z), lay out in scanner space, and write down what is where."""
    shape = scan.magnitude.shape[:0:-1]
    first = -(np.array(shape) - 1) / 2 * scan.spacing
    affine = np.eye(4)
    affine[:3, :3] = oblique * scan.spacing
    isocentre = rng.normal(0, (2, 10, 15))
    affine[:3, 3] = oblique @ first + isocentre
    place = Grid((shape[2], shape[1], shape[0]), scan.spacing, first)
    points = [p - o for p, o in zip(place.axes(), anatomy.grid.first, strict=True)]
    index = np.broadcast_arrays(*(points[i] / anatomy.grid.spacing[i] for i in (2, 1, 0)))
    brain = ndimage.map_coordinates(anatomy.layers["brain"], index, order=1, mode="nearest") < 0
    labels, tables = {}, {}
    for name in ("microbleed", "calcification"):
        mine = [spot for spot in spots if spot.name == name]
        image = _label_image(mine, place)
        rows = [
            _row(i + 1, spot, scan, image, brain, oblique @ spot.centre + isocentre)
            for i, spot in enumerate(mine)
        ]
        columns = ["index", "name", "x", "y", "z", "diameter_mm", "apparent_diameter_mm",
                   "susceptibility_ppm", "contrast_to_noise", "mars_class"]  # fmt: skip
        tables[name] = pd.DataFrame(rows, columns=columns)
        labels[name] = image.T
    magnitude, phase = scan.magnitude.transpose(0, 3, 2, 1), scan.phase.transpose(0, 3, 2, 1)
    brain = brain.T
    if rng.random() < 0.5:  # stored from right to left, as converters of DICOM do
        affine[:3, 3] += affine[:3, 0] * (shape[0] - 1)
        affine[:3, 0] *= -1
        magnitude, phase, brain = magnitude[:, ::-1], phase[:, ::-1], brain[::-1]
        labels = {name: image[::-1] for name, image in labels.items()}
    return Simulated(participant, magnitude, phase, affine, brain, labels, tables, scan.noise)


def _label_image(spots: list[Spot], grid: Grid) -> np.ndarray:
    """Number of the spot whose core each voxel (z, y, x) lies in; at least one voxel each."""
    image = np.zeros(grid.shape, np.int16)
    for number, spot in enumerate(spots, start=1):
        centre = np.round(grid.index(spot.centre)[:, 0]).astype(int)
        reach = np.ceil(spot.radii.max() * 1.3 / grid.spacing[::-1]).astype(int)
        part = tuple(
            slice(max(0, c - r), min(n, c + r + 1))
            for c, r, n in zip(centre, reach, grid.shape, strict=True)
        )
        axes = grid.axes()
        offsets = [axes[i][tuple(part[j] if axes[i].shape[j] > 1 else slice(None)
                   for j in range(3))] - spot.centre[i] for i in range(3)]  # fmt: skip
        inside = _shape_of(spot, offsets, float(grid.spacing.min())) > 0.5
        image[part][inside] = number
        image[tuple(np.clip(centre, 0, np.array(grid.shape) - 1))] = number
    return image


def _row(
    number: int, spot: Spot, scan: Scan, image: np.ndarray, brain: np.ndarray, world: np.ndarray
) -> dict[str, Any]:
    """One line of the truth; the contrast is that of the core's mean, at the last echo.

    A calcification wholly inside the next of its cluster has no voxel left in the label image: it
    keeps its line, without a contrast.
    """
    core = np.argwhere(image == number)
    contrast = _contrast(number, core, scan, image, brain) if len(core) else np.nan
    return {
        "index": number,
        "name": spot.name,
        **dict(zip("xyz", np.round(world, 3), strict=True)),
        "diameter_mm": round(float(2 * np.cbrt(np.prod(spot.radii))), 3),
        "apparent_diameter_mm": round(spot.apparent_mm, 3) if spot.apparent_mm else "n/a",
        "susceptibility_ppm": round(spot.chi, 4),
        "contrast_to_noise": round(float(contrast), 3),
        "mars_class": spot.region,
    }


def _contrast(
    number: int, core: np.ndarray, scan: Scan, image: np.ndarray, brain: np.ndarray
) -> float:
    """Brain within 5 mm less the mean of the core, over the noise."""
    low = np.maximum(core.min(0) - np.ceil(5 / scan.spacing[::-1]).astype(int), 0)
    high = core.max(0) + np.ceil(5 / scan.spacing[::-1]).astype(int) + 1
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    values, about = scan.magnitude[-1][part], (image[part] == 0) & brain[part]
    around = np.median(values[about]) if about.any() else np.nan
    return float((around - values[image[part] == number].mean()) / scan.noise)


DATASET = {"Name": "Second simulator", "BIDSVersion": "1.10.0", "DatasetType": "raw",
           "License": "CC0", "GeneratedBy": [{"Name": "second_simulator"}]}  # fmt: skip


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_image(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def stored_magnitude(simulated: Simulated, echo: int) -> np.ndarray:
    """Magnitude as the vendor stores it: 12 bits, or more."""
    image = simulated.magnitude[echo]
    typical = np.median(simulated.magnitude[0][simulated.brain])
    top = {"Siemens": (420, 4095), "GE": (2600, 32767), "Philips": (9000, 32767)}
    level, most = top[simulated.participant.vendor]
    return np.clip(np.round(image * (level / typical)), 0, most).astype(np.int16)


def stored_phase(simulated: Simulated, echo: int) -> np.ndarray:
    """Phase in the vendor's scale and sign.

    Siemens: 12 bits, right-handed, signed or (older) unsigned. Philips: milliradian, right-handed,
    -pi where there is no signal. GE: whole milliradian, left-handed.
    """
    phase, person = simulated.phase[echo], simulated.participant
    if person.vendor == "Siemens":
        if int(person.label) % 4 == 3:
            return np.clip(np.round(phase / np.pi * 2048 + 2048), 0, 4095).astype(np.int16)
        return (2 * np.clip(np.round(phase / np.pi * 2048), -2048, 2047)).astype(np.int16)
    if person.vendor == "GE":
        return np.round(-1000 * phase).astype(np.int16)
    calm = ndimage.uniform_filter(simulated.magnitude[echo], 5)
    return np.where(calm < 2.2 * simulated.noise, -1000 * np.pi, 1000 * phase).astype(np.float32)


def write_scan(simulated: Simulated, output: Path) -> None:
    """Write one participant's raw images and their truth."""
    person = simulated.participant
    echoes = len(person.protocol.echo_times)
    stem = f"sub-{person.label}_acq-{person.protocol.name}"
    raw = output / f"sub-{person.label}" / "anat"
    exported = person.vendor == "GE" and int(person.label) % 3 == 0
    for echo, echo_time in enumerate(person.protocol.echo_times):
        entity = f"_echo-{echo + 1}" if echoes > 1 else ""
        suffix = "MEGRE" if echoes > 1 else "T2starw"
        meta = {
            "Manufacturer": person.vendor,
            "MagneticFieldStrength": person.protocol.field_t,
            "EchoTime": echo_time,
            "RepetitionTimeExcitation": person.protocol.repetition_time,
            "MRAcquisitionType": "3D",
        }
        if exported:  # real and imaginary, the sign of every second slice turned
            sign = np.where(np.arange(simulated.magnitude.shape[3]) % 2, -1, 1)
            scale = 2600 / np.median(simulated.magnitude[0][simulated.brain])
            size = simulated.magnitude[echo] * scale * sign
            turn = -simulated.phase[echo]
            images = {"real": size * np.cos(turn), "imag": size * np.sin(turn)}
            images = {n: np.clip(np.round(i), -32767, 32767).astype(np.int16)
                      for n, i in images.items()}  # fmt: skip
        else:
            images = {
                "mag": stored_magnitude(simulated, echo),
                "phase": stored_phase(simulated, echo),
            }
        for part, image in images.items():
            name = f"{stem}{entity}_part-{part}_{suffix}"
            _write_image(raw / f"{name}.nii.gz", image, simulated.affine)
            _write_json(
                raw / f"{name}.json", meta | ({} if part == "mag" else {"Units": "arbitrary"})
            )
    truth = output / "derivatives" / "truth" / f"sub-{person.label}" / "anat"
    for kind, name in (("microbleed", "microbleeds"), ("calcification", "calcifications")):
        _write_image(
            truth / f"{stem}_desc-{name}_dseg.nii.gz", simulated.labels[kind], simulated.affine
        )
        simulated.tables[kind].to_csv(
            truth / f"{stem}_desc-{name}_dseg.tsv", sep="\t", index=False, na_rep="n/a"
        )
    _write_image(truth / f"{stem}_desc-brain_mask.nii.gz", simulated.brain.astype(np.uint8),
                 simulated.affine)  # fmt: skip


def write_arrays(simulated: Simulated, folder: Path) -> None:
    """Save one scan as plain arrays with its truth as CSV, for checks that need no BIDS."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"sub-{simulated.participant.label}"
    np.savez(
        f"{stem}.npz", magnitudes=simulated.magnitude, phases=simulated.phase,
        echo_times_s=np.array(simulated.participant.protocol.echo_times),
        affine=simulated.affine, brain_mask=simulated.brain,
        field_strength_t=simulated.participant.protocol.field_t,
    )  # fmt: skip
    pd.concat(simulated.tables.values()).to_csv(f"{stem}.csv", index=False)


def write_dataset_files(people: list[Participant], output: Path) -> None:
    """Descriptions of the dataset and of its truth, and the participants table."""
    _write_json(output / "dataset_description.json", DATASET)
    (output / "README").write_text(
        "Simulated gradient-echo scans, no human data: see docs/second_simulator.md\n",
        encoding="utf-8",
    )
    truth = {"Name": "Truth of the second simulator", "DatasetType": "derivative"}
    path = output / "derivatives" / "truth" / "dataset_description.json"
    _write_json(path, DATASET | truth)
    rows = [
        {"participant_id": f"sub-{p.label}", "group": p.group, "age": int(p.age), "sex": p.sex,
         "protocol": p.protocol.name, "manufacturer": p.vendor}
        for p in people
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(output / "participants.tsv", sep="\t", index=False)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="second_simulator",
        description="Simulate labelled SWI, independently of cmb-lab simulate.",
    )
    parser.add_argument("output", type=Path, help="BIDS dataset to write")
    parser.add_argument("--participants", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--protocol", choices=[*PROTOCOLS, "mixed"], default="mixed")
    parser.add_argument("--maps", type=Path, help=".npz with t1, gm, wm; default: nilearn's maps")
    parser.add_argument("--arrays", type=Path, help="folder for plain arrays (.npz) as well")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="of the N, only these: 01 02")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        maps = load_tissue_maps(options.maps)
    except MapsMissing as missing:
        print(missing, file=sys.stderr)
        return 66
    people = draw_participants(options.participants, options.seed, options.protocol)
    write_dataset_files(people, options.output)
    for person in people:
        if options.only and person.label not in options.only:
            continue
        simulated = simulate(person, maps, options.seed)
        write_scan(simulated, options.output)
        if options.arrays:
            write_arrays(simulated, options.arrays)
        counts = {name: len(table) for name, table in simulated.tables.items()}
        print(f"sub-{person.label} {person.group} {person.protocol.name} {person.vendor} {counts}")
    return 0
