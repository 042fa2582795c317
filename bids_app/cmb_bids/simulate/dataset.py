"""A simulated cohort as a raw BIDS dataset, and its truth as a derivative beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import cmb_bids
from cmb_bids.errors import CannotCreate, UsageError
from cmb_bids.simulate.scan import SimulatedScan, simulate_scan
from cmb_bids.simulate.subject import SubjectSpec, sample_subject
from cmb_bids.simulate.vendor import PHASE_SCALES, store_magnitudes, store_phase
from cmb_bids.volumes import read_json, write_json, write_table, write_text, write_volume

BIDS_VERSION = "1.10.0"
TRUTH_FOLDER = Path("derivatives") / "truth"
PARTICIPANT_COLUMNS = {
    "age": {"Description": "Age of the simulated participant", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "group": {
        "Description": "Clinical group whose lesion load and places were simulated",
        "Levels": {
            "healthy": "healthy volunteer",
            "haemodialysis": "on maintenance haemodialysis",
            "tbi": "after traumatic brain injury",
            "stroke": "after stroke",
            "population": "population study, UK Biobank-like prevalence",
        },
    },
    "protocol": {"Description": "Simulated acquisition protocol"},
}
TRUTH_DESCRIBED = {
    "index": {"Description": "Row number; the value of a microbleed's or calcification's voxels"},
    "name": {
        "Description": "What it is",
        "Levels": {
            "microbleed": "cerebral microbleed (paramagnetic)",
            "calcification": "calcification (diamagnetic)",
            "vein": "a place where a vein crosses the slices steeply and looks like a dot",
        },
    },
    "x": {"Description": "Centre, scanner RAS+ x", "Units": "mm"},
    "y": {"Description": "Centre, scanner RAS+ y", "Units": "mm"},
    "z": {"Description": "Centre, scanner RAS+ z", "Units": "mm"},
    "diameter_mm": {
        "Description": "True diameter (sphere of equal volume; for a vein, its lumen)",
        "Units": "mm",
    },
    "apparent_diameter_mm": {
        "Description": "Diameter as seen, blooming included: sphere of the volume below half "
        "contrast in the magnitude of the last echo",
        "Units": "mm",
    },
    "susceptibility_ppm": {"Description": "Magnetic susceptibility against tissue", "Units": "ppm"},
    "contrast_to_noise": {
        "Description": "Surroundings minus core in the magnitude of the last echo, over the "
        "standard deviation of the noise"
    },
    "hemisphere": {"Description": "Side (left or right); n/a outside labelled brain"},
    "mars_region": {"Description": "Region of the MARS scale; n/a outside labelled tissue"},
    "mars_class": {"Description": "lobar, deep or infratentorial; n/a outside labelled tissue"},
    "site": {"Description": "Structure it was placed in"},
}


@dataclass(frozen=True)
class Participant:
    """One participant of a plan: who, and how the scanner's files hold it."""

    label: str
    spec: SubjectSpec
    phase_scale: str
    polarity: str


@dataclass(frozen=True)
class CohortPlan:
    """What to simulate. Every participant follows from these values alone."""

    participants: int
    protocols: tuple[str, ...] = ("ukb",)
    groups: tuple[str, ...] = ("healthy", "haemodialysis", "tbi", "stroke")
    polarity: str = "vendor"
    phase_scale: str = "siemens"
    obliquity_deg: float | None = None
    signal_to_noise: float | None = None
    noise: float = 1.0
    lesion_load: float = 1.0
    mimic_load: float = 1.0
    seed: int = 0
    magnitude_only: bool = False

    def members(self) -> Iterator[Participant]:
        """The participants, in order; a longer plan starts like a shorter one."""
        width = max(2, len(str(self.participants)))
        for number in range(self.participants):
            rng = np.random.default_rng([self.seed, number])
            subject_seed = int(rng.integers(0, 2**62))
            scale = self.phase_scale
            if scale == "mixed":
                scale = str(rng.choice(list(PHASE_SCALES)))
            polarity = self.polarity
            if polarity == "mixed":
                polarity = str(rng.choice(["right-handed", "left-handed"]))
            elif polarity == "vendor":
                polarity = PHASE_SCALES[scale].polarity
            spec = sample_subject(
                subject_seed,
                self.protocols[number % len(self.protocols)],
                self.groups[number % len(self.groups)],
                obliquity_deg=self.obliquity_deg,
                signal_to_noise=self.signal_to_noise,
                noise=self.noise,
                lesion_load=self.lesion_load,
                mimic_load=self.mimic_load,
            )
            yield Participant(f"{number + 1:0{width}d}", spec, scale, polarity)


def image_names(participant: Participant, magnitude_only: bool) -> list[tuple[int, str, str]]:
    """(echo index, part, file stem) of every raw image of a participant."""
    echoes = len(participant.spec.echo_times_s)
    suffix = participant.spec.protocol.suffix
    names = []
    for echo in range(echoes):
        entity = f"_echo-{echo + 1}" if echoes > 1 else ""
        for part in ("mag",) if magnitude_only else ("mag", "phase"):
            names.append((echo, part, f"sub-{participant.label}{entity}_part-{part}_{suffix}"))
    return names


def sidecar(participant: Participant, echo: int, part: str) -> dict[str, Any]:
    """The JSON beside one image."""
    spec, protocol = participant.spec, participant.spec.protocol
    scale = PHASE_SCALES[participant.phase_scale]
    content: dict[str, Any] = {
        "Modality": "MR",
        "MagneticFieldStrength": protocol.field_strength_t,
        "Manufacturer": scale.manufacturer,
        "ManufacturersModelName": "cmb-lab simulator",
        "MRAcquisitionType": "3D",
        "ScanningSequence": "GR",
        "SequenceVariant": "SP",
        "ImageType": ["DERIVED", "SECONDARY", "M" if part == "mag" else "P"],
        "EchoTime": spec.echo_times_s[echo],
        "RepetitionTime": protocol.repetition_time_s,
        "FlipAngle": protocol.flip_angle_deg,
        "SliceThickness": protocol.voxel_mm[2],
    }
    if len(spec.echo_times_s) > 1:
        content["EchoNumber"] = echo + 1
    content["Units"] = scale.units if part == "phase" else "arbitrary"
    return content


def is_whole(folder: Path, participant: Participant, magnitude_only: bool) -> bool:
    """Every file of the participant is there (the truth table is written last)."""
    anat = folder / f"sub-{participant.label}" / "anat"
    stems = [stem for _, _, stem in image_names(participant, magnitude_only)]
    truth = folder / TRUTH_FOLDER / f"sub-{participant.label}" / "anat"
    files = [anat / f"{stem}{ext}" for stem in stems for ext in (".nii.gz", ".json")]
    files.append(truth / f"sub-{participant.label}_desc-truth_dseg.tsv")
    return all(file.exists() for file in files)


def write_scan(
    folder: Path, participant: Participant, scan: SimulatedScan, magnitude_only: bool
) -> None:
    """Write one participant's raw images and truth."""
    name = f"sub-{participant.label}"
    anat = folder / name / "anat"
    magnitudes = store_magnitudes(scan.magnitudes)
    for echo, part, stem in image_names(participant, magnitude_only):
        if part == "mag":
            stored = magnitudes[echo]
        else:
            stored = store_phase(scan.phases[echo], participant.phase_scale, participant.polarity)
        write_volume(anat / f"{stem}.nii.gz", stored, scan.affine)
        write_json(anat / f"{stem}.json", sidecar(participant, echo, part))
    truth = folder / TRUTH_FOLDER / name / "anat"
    source = [
        f"bids:raw:{name}/anat/{stem}.nii.gz" for _, _, stem in image_names(participant, True)
    ]
    write_volume(truth / f"{name}_desc-brain_mask.nii.gz", scan.brain_mask, scan.affine, np.uint8)
    write_json(
        truth / f"{name}_desc-brain_mask.json",
        {
            "Type": "Brain",
            "Sources": source,
            "Description": "True brain, with sulci and ventricles",
        },
    )
    write_volume(
        truth / f"{name}_desc-truth_dseg.nii.gz", scan.lesion_labels, scan.affine, np.uint16
    )
    described = {
        "Description": "True cores of microbleeds and calcifications; the table also lists vein "
        "crossings, which have no voxels",
        "Manual": False,
        "Sources": source,
        "SimulationSeed": participant.spec.seed,
        "PhasePolarity": participant.polarity,
        "PhaseScale": participant.phase_scale,
        "ObliquityDegrees": round(participant.spec.obliquity_deg, 2),
    }
    write_json(truth / f"{name}_desc-truth_dseg.json", described | TRUTH_DESCRIBED)
    # The table comes last: where it stands, the participant is whole.
    write_table(truth / f"{name}_desc-truth_dseg.tsv", scan.truth)


def simulate_participant(
    folder: Path,
    participant: Participant,
    magnitude_only: bool,
    device: str,
    oversampling: Any,
    threads: int,
) -> str:
    """Simulate and write one participant (one job of a pool)."""
    import numba
    import torch

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.get_num_threads()))
    scan = simulate_scan(participant.spec, device, oversampling)
    write_scan(folder, participant, scan, magnitude_only)
    return participant.label


def write_dataset_files(folder: Path, plan: CohortPlan, members: list[Participant]) -> None:
    """Descriptions, README and participants table of the dataset and of its truth."""
    generator = {"Name": "cmb-lab simulate", "Version": cmb_bids.__version__}
    write_json(
        folder / "dataset_description.json",
        {
            "Name": "Simulated cerebral microbleeds",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "License": "CC0",
            "Authors": ["cmb-lab simulate"],
            "GeneratedBy": [generator],
        },
    )
    write_text(folder / "README.md", README.format(version=cmb_bids.__version__, seed=plan.seed))
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{m.label}" for m in members],
            "age": [m.spec.age for m in members],
            "sex": [m.spec.sex for m in members],
            "group": [m.spec.group for m in members],
            "protocol": [m.spec.protocol.name for m in members],
        }
    )
    write_table(folder / "participants.tsv", table, PARTICIPANT_COLUMNS)
    write_json(
        folder / TRUTH_FOLDER / "dataset_description.json",
        {
            "Name": "Truth of the simulated cerebral microbleeds",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "License": "CC0",
            "GeneratedBy": [generator],
            "DatasetLinks": {"raw": "../.."},
            "SourceDatasets": [{"URL": "bids:raw:"}],
        },
    )
    write_text(folder / TRUTH_FOLDER / "README.md", TRUTH_README)


README = """# Simulated cerebral microbleeds

Gradient-echo scans (magnitude and phase) made by `cmb-lab simulate` {version}, seed {seed}.
No person was scanned. Where every microbleed, calcification and steep vein is: `derivatives/truth`.

Phase is stored as the vendor named in the sidecar would store it, scale and sign included.
Figures got on these data are not comparable with figures on patients.
"""
TRUTH_README = """# Truth

`*_desc-truth_dseg.tsv` lists every microbleed, calcification and steep vein crossing;
`*_desc-truth_dseg.nii.gz` holds the cores of the microbleeds and calcifications, labelled by
`index`; `*_desc-brain_mask.nii.gz` is the true brain. Columns are described in the JSON files.
"""


def check_settings(folder: Path, plan: CohortPlan, oversampling: Any) -> None:
    """Refuse to mix two simulations in one directory; note the settings of a new one.

    Raises
    ------
    UsageError
        The directory holds a dataset simulated with other settings, or something else.
    CannotCreate
        The directory cannot be made.
    """
    settings = asdict(plan) | {"oversampling": oversampling, "version": cmb_bids.__version__}
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
    note = folder / "code" / "simulation.json"
    if note.exists():
        # The number of participants may grow: the first ones stay what they are.
        before = read_json(note)
        width = max(2, len(str(before.get("participants", 0))))
        same_width = width == max(2, len(str(plan.participants)))
        changed = [k for k in settings if k != "participants" and before.get(k) != settings[k]]
        if changed or not same_width:
            raise UsageError(
                folder,
                f"holds a dataset simulated with other settings ({', '.join(changed) or 'size'})",
                "Use the same settings to go on with it, or another output directory",
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(
            folder, "is not empty and no simulated dataset", "Give a new or empty output directory"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreate(
            folder, f"cannot be created ({error.strerror})", "Give a directory you may write to"
        ) from error
    write_json(note, settings)


def simulate_dataset(
    folder: Path,
    plan: CohortPlan,
    *,
    device: str = "cpu",
    oversampling: float | tuple[float, float, float] | None = None,
    workers: int = 1,
    report: Any = None,
) -> list[str]:
    """Simulate what is missing of a cohort.

    Parameters
    ----------
    folder : Path
        Dataset to write or to go on with.
    plan : CohortPlan
    device : str
        cpu or cuda.
    oversampling : float or three floats, optional
        As `simulate_scan`.
    workers : int
        Participants simulated at once, each in its own process.
    report : callable (str), optional
        Called with the label of each participant that was written.

    Returns
    -------
    list of str
        Labels simulated now (those already whole are left alone).
    """
    folder = Path(folder)
    check_settings(folder, plan, oversampling)
    members = list(plan.members())
    write_dataset_files(folder, plan, members)
    missing = [m for m in members if not is_whole(folder, m, plan.magnitude_only)]
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        available = os.cpu_count() or 1
    workers = max(1, min(workers, len(missing) or 1))
    threads = max(1, available // workers)
    done: list[str] = []

    def note(label: str) -> None:
        done.append(label)
        if report is not None:
            report(label)

    if workers == 1:
        for member in missing:
            note(
                simulate_participant(
                    folder, member, plan.magnitude_only, device, oversampling, threads
                )
            )
        return done
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                simulate_participant,
                folder,
                member,
                plan.magnitude_only,
                device,
                oversampling,
                threads,
            )
            for member in missing
        ]
        for job in as_completed(jobs):
            note(job.result())
    return sorted(done)
