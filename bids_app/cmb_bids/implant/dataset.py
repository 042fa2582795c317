"""Real scans with known lesions in them: a raw BIDS dataset, and its truth as a derivative."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import cmb_bids
from cmb_bids.columns import FAIL
from cmb_bids.errors import BadData, CannotCreate, CmbError, InputMissing, UsageError
from cmb_bids.implant.effect import Effect, implant, noise_of, seen_diameter_mm
from cmb_bids.implant.places import (
    CALCIFICATION,
    MICROBLEED,
    Acquisition,
    draw_lesions,
    free_tissue,
)
from cmb_bids.inputs import Selection, index_dataset, scan_state
from cmb_bids.interfaces.phase import ComplexEchoes, read_complex
from cmb_bids.naming import build_name
from cmb_bids.phase import PhaseConfig
from cmb_bids.simulate.dataset import BIDS_VERSION, TRUTH_DESCRIBED, TRUTH_FOLDER
from cmb_bids.simulate.lesions import Lesion, measure_lesion
from cmb_bids.volumes import (
    read_json,
    read_on_grid,
    read_table,
    voxel_sizes,
    voxel_to_world,
    write_json,
    write_table,
    write_text,
    write_volume,
)

GENERATOR = "cmb-lab implant"
TOP_FILES = ("participants.json", ".bidsignore")
COLUMNS = [
    *("index", "name", "x", "y", "z", "diameter_mm", "apparent_diameter_mm"),
    *("susceptibility_ppm", "contrast_to_noise", "site", "certainty"),
]
DESCRIBED = {name: TRUTH_DESCRIBED[name] for name in COLUMNS if name in TRUTH_DESCRIBED} | {
    "apparent_diameter_mm": {
        "Description": "Diameter as seen, blooming included: ball of the voxels that lose 30 % or "
        "more on SWI at the last echo",
        "Units": "mm",
    },
    "site": {"Description": "implanted, or found (a detection in the scan before)"},
    "certainty": {
        "Description": "Whether it is known to be there",
        "Levels": {
            "definite": "it was implanted",
            "possible": "it was found in the scan before: what it is nobody knows, so that it is "
            "neither hit nor false",
        },
    },
}


@dataclass(frozen=True)
class ImplantPlan:
    """How many lesions go into each scan, and what the sidecars do not say.

    ``field_strength_t`` is used for scans whose sidecar gives none.
    """

    microbleeds: int = 8
    calcifications: int = 2
    seed: int = 0
    field_strength_t: float | None = None


def implant_dataset(
    bids_dir: Path,
    results_dir: Path,
    output_dir: Path,
    plan: ImplantPlan,
    participants: tuple[str, ...] | None = None,
    report: Callable[[str], None] = print,
) -> list[str]:
    """Copy a dataset's scans with lesions put into them, and write where these are.

    Parameters
    ----------
    bids_dir : Path
        Raw scans, magnitude and phase.
    results_dir : Path
        What cmb-bids made of them: masks, SWI, polarity of the phase, and what was found.
    output_dir : Path
        New or empty.
    plan : ImplantPlan
    participants : tuple of str, optional
        Labels; all by default.
    report : callable (str)
        Told of every scan, written or not.

    Returns
    -------
    list of str
        Scans that could not be used.

    Raises
    ------
    UsageError, CannotCreate
        The output directory is in use or cannot be made.
    InvalidDataset, InputMissing, NothingMatched
        As `index_dataset`; InputMissing too where no scan could be used.
    """
    if not results_dir.is_dir():
        raise InputMissing(results_dir, "is not a directory", "Give the output of cmb-bids")
    index = index_dataset(bids_dir.resolve(), Selection(participants=participants))
    _make_folder(output_dir)
    failed = []
    for number, scan in enumerate(index.scans):
        try:
            count = implant_scan(scan, results_dir, output_dir, plan, [plan.seed, number])
            report(f"{scan['id']}: {count}")
        except CmbError as error:
            failed.append(scan["id"])
            report(f"{scan['id']} is left out: {error}")
    if len(failed) == len(index.scans):
        raise InputMissing(bids_dir, "no scan could be used", "See what is said of each scan above")
    _write_dataset_files(bids_dir, output_dir)
    return failed


def implant_scan(
    scan: Mapping[str, Any], results_dir: Path, output_dir: Path, plan: ImplantPlan, seed: list[int]
) -> str:
    """Write one scan with lesions, and its truth; say how many there are.

    Raises
    ------
    CmbError
        The scan has no phase, no usable result, or no room for lesions.
    """
    if scan["problem"]:
        raise BadData(scan["source"], scan["problem"], "Mend or remove it")
    if scan["kind"] != "complex":
        raise BadData(scan["source"], "has no phase", "Only magnitude with phase can be used")
    result = _Result(scan, results_dir)
    field_strength = scan["field_strength_t"] or plan.field_strength_t
    if not field_strength:
        raise BadData(
            scan["source"],
            "MagneticFieldStrength is in no sidecar",
            "Add it, or give --field-strength",
        )
    echoes = read_complex(dict(scan), PhaseConfig(scale=result.phase_scale))
    shape = echoes.magnitudes[0].shape
    acquisition = Acquisition(
        shape, echoes.affine, tuple(echoes.echo_times_s), float(field_strength)
    )
    rng = np.random.default_rng(seed)
    free = free_tissue(result.image("swi", shape), result.image("mask", shape), echoes.affine)
    known = result.found()
    points = known[["x", "y", "z"]].to_numpy(dtype=float)
    placed: list[tuple[Lesion, Effect]] = []
    for name, count in ((MICROBLEED, plan.microbleeds), (CALCIFICATION, plan.calcifications)):
        new = draw_lesions(name, count, free, acquisition, points, rng)
        places = [lesion.centre_mm / voxel_sizes(echoes.affine) for lesion, _ in new]
        points = np.vstack([points, voxel_to_world(echoes.affine, np.array(places))])
        placed += new
    if not placed:
        raise BadData(
            scan["source"],
            "holds no place where a lesion would look 2 mm wide",
            "Look at its brain mask and SWI; at a short echo time none can be seen",
        )
    sign = result.polarity_sign
    images = [
        (m * np.exp(1j * sign * p)).astype(np.complex64)
        for m, p in zip(echoes.magnitudes, echoes.phases, strict=True)
    ]
    changed = implant(images, [effect for _, effect in placed], rng)
    table = _truth(placed, echoes, changed[-1], known)
    _write_images(scan, output_dir, echoes, changed, sign, float(field_strength))
    _write_truth(scan, output_dir, echoes.affine, placed, table, shape)
    counts = table.loc[table["certainty"] == "definite", "name"].value_counts()
    return ", ".join(f"{n} {name}s" for name, n in counts.items())


class _Result:
    """What cmb-bids made of a scan."""

    def __init__(self, scan: Mapping[str, Any], results_dir: Path) -> None:
        self.anat = results_dir / scan["folder"] / "anat"
        self.prefix, self.suffix = scan["prefix"], scan["output_suffix"]
        state = scan_state(results_dir, scan)
        row = read_json(_made(state / "scan_row.json"))
        if row.get("qc_status") == FAIL:
            raise BadData(
                state / "scan_row.json",
                f"quality check failed: {row.get('qc_reason')}",
                "Only scans that can be counted are used",
            )
        report = read_json(_made(state / f"{self.suffix}_phase.json"))
        self.polarity_sign = float(report["polarity_sign"])
        stage = read_json(_made(state / "complex_phase.json"))
        self.phase_scale = str(stage["config"].get("phase", {}).get("scale", "auto"))

    def image(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """SWI or brain mask."""
        described = "desc-brain_mask" if name == "mask" else f"desc-{name}_{self.suffix}"
        return read_on_grid(_made(self.anat / f"{self.prefix}_{described}.nii.gz"), shape)

    def found(self) -> pd.DataFrame:
        """Everything found in the scan before, with ``name`` and ``x y z``."""
        tables = []
        for name, described in ((MICROBLEED, "cmb"), (CALCIFICATION, "calcification")):
            path = _made(self.anat / f"{self.prefix}_desc-{described}_dseg.tsv")
            table = read_table(path)[["x", "y", "z", "diameter_mm"]].astype(float)
            tables.append(table.assign(name=name))
        return pd.concat(tables, ignore_index=True)


def _made(path: Path) -> Path:
    """The path, where cmb-bids has written it."""
    if not path.is_file():
        raise InputMissing(path, "is not there", "Run cmb-bids on this dataset first, to its end")
    return path


def _truth(
    placed: list[tuple[Lesion, Effect]],
    echoes: ComplexEchoes,
    last_echo: np.ndarray,
    known: pd.DataFrame,
) -> pd.DataFrame:
    """A row per implanted lesion, then one per microbleed that had been found before."""
    sizes = voxel_sizes(echoes.affine)
    magnitude, noise_sd = np.abs(last_echo), noise_of(last_echo)
    rows: list[tuple[Any, ...]] = []
    for lesion, effect in placed:
        voxel = lesion.centre_mm / sizes
        radius = lesion.diameter_mm / 2
        contrast, _ = measure_lesion(magnitude, noise_sd, sizes, voxel, radius)
        apparent = seen_diameter_mm(effect, sizes)
        x, y, z = voxel_to_world(echoes.affine, voxel[None])[0]
        strength = lesion.susceptibility_ppm
        measured = (lesion.diameter_mm, apparent, strength, contrast, lesion.site, "definite")
        rows.append((0, lesion.name, x, y, z, *measured))
    for row in known[known["name"] == MICROBLEED].to_dict("records"):
        place = (row["x"], row["y"], row["z"], row["diameter_mm"])
        rows.append((0, MICROBLEED, *place, None, None, None, "found", "possible"))
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["index"] = np.arange(1, len(table) + 1)
    numbers = table.columns[2:9]
    table[numbers] = table[numbers].astype(float).round(3)
    return table


def _write_images(
    scan: Mapping[str, Any],
    output_dir: Path,
    echoes: ComplexEchoes,
    images: list[np.ndarray],
    sign: float,
    field_strength_t: float,
) -> None:
    """Magnitude and phase of every echo, with the sidecars of the source."""
    folder = output_dir / scan["folder"] / scan["datatype"]
    several = len(scan["echoes"]) > 1
    for echo, image, seconds in zip(scan["echoes"], images, echoes.echo_times_s, strict=True):
        common = {"EchoTime": seconds, "MagneticFieldStrength": field_strength_t}
        parts = {
            "mag": (np.abs(image), echo["magnitude_sidecar"], {}),
            # The sign is left as it was: finding it is a part of what is tried.
            "phase": (np.angle(image) * sign, echo["phase_sidecar"], {"Units": "rad"}),
        }
        for part, (values, said, own) in parts.items():
            entities = scan["entities"] | {"part": part}
            if several:
                entities["echo"] = str(echo["echo"])
            path = folder / build_name(entities, scan["suffix"])
            write_volume(f"{path}.nii.gz", values.astype(np.float32), echoes.affine)
            write_json(f"{path}.json", {**said, **common, **own})


def _write_truth(
    scan: Mapping[str, Any],
    output_dir: Path,
    affine: np.ndarray,
    placed: list[tuple[Lesion, Effect]],
    table: pd.DataFrame,
    shape: tuple[int, ...],
) -> None:
    """Cores as labels and the table; the table last, so that where it stands all is whole."""
    path = output_dir / TRUTH_FOLDER / scan["folder"] / "anat" / f"{scan['prefix']}_desc-truth_dseg"
    write_volume(f"{path}.nii.gz", draw_cores(placed, shape, affine), affine, np.uint16)
    described = {
        "Description": "Cores of the microbleeds and calcifications that were implanted",
        "Manual": False,
    }
    write_json(f"{path}.json", described | DESCRIBED)
    write_table(f"{path}.tsv", table)


def draw_cores(
    placed: list[tuple[Lesion, Effect]], shape: tuple[int, ...], affine: np.ndarray
) -> np.ndarray:
    """Labels (x, y, z) of the voxels whose centre is in a core; a small one has its nearest."""
    sizes = voxel_sizes(affine)
    labels = np.zeros(shape, np.uint16)
    for number, (lesion, _) in enumerate(placed, start=1):
        centre = lesion.centre_mm / sizes
        reach = np.ceil(lesion.diameter_mm / 2 / sizes).astype(int) + 1
        low = np.maximum(np.rint(centre).astype(int) - reach, 0)
        high = np.minimum(np.rint(centre).astype(int) + reach + 1, shape)
        axes = [
            ((np.arange(a, b) - c) * s) ** 2
            for a, b, c, s in zip(low, high, centre, sizes, strict=True)
        ]
        inside = axes[0][:, None, None] + axes[1][:, None] + axes[2] <= lesion.diameter_mm**2 / 4
        box = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        box[inside] = number
        nearest = np.clip(np.rint(centre).astype(int), 0, np.array(shape) - 1)
        labels[tuple(nearest)] = number
    return labels


def _make_folder(folder: Path) -> None:
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(folder, "is not empty", "Give a new or empty output directory")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreate(
            folder, f"cannot be created ({error.strerror})", "Give a directory you may write to"
        ) from error


def _write_dataset_files(bids_dir: Path, folder: Path) -> None:
    for name in TOP_FILES:
        if (bids_dir / name).is_file():
            shutil.copyfile(bids_dir / name, folder / name)
    if (bids_dir / "participants.tsv").is_file():
        table = read_table(bids_dir / "participants.tsv")
        written = [(folder / str(name)).is_dir() for name in table["participant_id"]]
        write_table(folder / "participants.tsv", table[written])
    generator = {"Name": GENERATOR, "Version": cmb_bids.__version__}
    common = {"BIDSVersion": BIDS_VERSION, "GeneratedBy": [generator]}
    source = read_json(bids_dir / "dataset_description.json")
    name = f"{source.get('Name', 'Scans')}, with simulated lesions"
    write_json(folder / "dataset_description.json", {"Name": name, "DatasetType": "raw", **common})
    write_text(folder / "README.md", README.format(version=cmb_bids.__version__))
    write_json(
        folder / TRUTH_FOLDER / "dataset_description.json",
        {
            "Name": f"Truth of: {name}",
            "DatasetType": "derivative",
            **common,
            "DatasetLinks": {"raw": "../.."},
            "SourceDatasets": [{"URL": "bids:raw:"}],
        },
    )
    write_text(folder / TRUTH_FOLDER / "README.md", README.format(version=cmb_bids.__version__))


README = """# Real scans with simulated lesions

Made by `cmb-lab implant` {version}: microbleeds and calcifications were simulated and put into the
complex signal of real scans. Nobody has these lesions. Where they are: `derivatives/truth`,
`*_desc-truth_dseg.tsv`. What had been found in the scans before is listed there as *possible*,
which `cmb-lab evaluate` counts as neither hit nor false.
"""
