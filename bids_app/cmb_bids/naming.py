"""BIDS names: reading them, and naming every file this project writes.

Names are pure text here; nothing in this module opens an image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cmb_bids import __version__

# Every entity of BIDS 1.10 in the order names must hold them: key in names -> long name.
ENTITIES: dict[str, str] = {
    "sub": "subject",
    "ses": "session",
    "sample": "sample",
    "task": "task",
    "tracksys": "tracksys",
    "acq": "acquisition",
    "nuc": "nucleus",
    "voi": "volume",
    "ce": "ceagent",
    "trc": "tracer",
    "stain": "staining",
    "rec": "reconstruction",
    "dir": "direction",
    "run": "run",
    "mod": "modality",
    "echo": "echo",
    "flip": "flip",
    "inv": "inv",
    "mt": "mt",
    "part": "part",
    "proc": "proc",
    "hemi": "hemisphere",
    "space": "space",
    "split": "split",
    "recording": "recording",
    "chunk": "chunk",
    "seg": "segmentation",
    "res": "resolution",
    "den": "density",
    "label": "label",
    "desc": "desc",
}
_KEYS = {long: short for short, long in ENTITIES.items()}
_ORDER = {long: position for position, long in enumerate(ENTITIES.values())}
_VALUE = re.compile(r"[0-9a-zA-Z+]+")

# What a scan leaves in the derivative dataset. Phase images exist for complex scans only.
PHASE_IMAGES = ("unwrapped", "highpass")
SEGMENTATIONS = ("candidates", "cmb", "calcification")

DESCRIPTIONS: dict[str, str] = {
    "unwrapped": "Unwrapped phase, right-handed (paramagnetic positive), radians.",
    "highpass": "High-pass-filtered phase, right-handed (paramagnetic positive), radians.",
    "swi": "Susceptibility-weighted image: magnitude times a mask made from high-pass phase.",
    "minip": (
        "Minimum-intensity projection of the susceptibility-weighted image through a slab; "
        "of the magnitude where a scan has no phase."
    ),
    "brain": "Brain mask.",
    "candidates": "Spots that may be microbleeds, found by fast radial symmetry.",
    "cmb": "Cerebral microbleeds, definite and possible; each has its own label.",
    "calcification": "Calcifications; each has its own label.",
}


def parse_name(name: str) -> tuple[dict[str, str], str, str]:
    """Take a BIDS file name apart.

    Parameters
    ----------
    name : str
        A file name without its folder.

    Returns
    -------
    entities : dict
        Long entity names to their values, as text, in the order of the name. Keys that BIDS
        does not know keep their own spelling.
    suffix : str
        What stands between the last ``_`` and the extension; empty where there is no suffix.
    extension : str
        From the first dot on.
    """
    stem, dot, extension = name.partition(".")
    *pairs, suffix = stem.split("_")
    entities = {}
    for pair in pairs:
        key, dash, value = pair.partition("-")
        if dash:
            entities[ENTITIES.get(key, key)] = value
    return entities, suffix, dot + extension


def build_name(entities: Mapping[str, str | None], ending: str = "") -> str:
    """Join entities in the order of BIDS, then ``ending``.

    Parameters
    ----------
    entities : mapping
        Long entity names to values; those without a value are left out.
    ending : str
        Suffix and extension, e.g. ``T2starw.nii.gz``.
    """
    known = sorted(
        (name for name, value in entities.items() if value not in (None, "")),
        key=lambda name: (_ORDER.get(name, len(_ORDER)), name),
    )
    pairs = [f"{_KEYS.get(name, name)}-{entities[name]}" for name in known]
    return "_".join([*pairs, ending] if ending else pairs)


def participant_folder(subject: str, session: str | None) -> str:
    """``sub-01`` or ``sub-01/ses-A``."""
    return f"sub-{subject}/ses-{session}" if session else f"sub-{subject}"


def clean_label(label: str, key: str) -> str:
    """A label without its key: ``sub-01`` and ``01`` are both ``01``."""
    return label.strip().removeprefix(f"{key}-")


def is_label(value: str) -> bool:
    """Whether BIDS allows ``value`` as a label."""
    return _VALUE.fullmatch(value) is not None


def scan_outputs(scan: Mapping[str, Any]) -> list[str]:
    """Every file, relative to the output directory, that a complete scan leaves.

    Parameters
    ----------
    scan : mapping
        A scan of the manifest (`cmb_bids.inputs`).
    """
    anat = f"{scan['folder']}/anat/{scan['prefix']}"
    suffix = scan["output_suffix"]
    images = [f"{anat}_desc-minip_{suffix}"]
    if scan["kind"] == "complex":
        images += [f"{anat}_part-phase_desc-{name}_{suffix}" for name in PHASE_IMAGES]
        images += [f"{anat}_desc-swi_{suffix}"]
    images += [f"{anat}_desc-brain_mask"]
    tables = [f"{anat}_desc-{name}_dseg" for name in SEGMENTATIONS]
    return (
        [image + extension for image in images for extension in (".nii.gz", ".json")]
        + [table + extension for table in tables for extension in (".nii.gz", ".tsv", ".json")]
        + [f"logs/scans/{scan['folder']}/{scan['prefix']}/scan_row.json"]
    )


# Pictures of a scan for its participant's page.
FIGURES = ("overview", "cmb", "calcification")


def scan_figures(folder: str, prefix: str) -> dict[str, str]:
    """The pictures of a scan, relative to the output directory, by name (`FIGURES`)."""
    return {name: f"{folder}/figures/{prefix}_desc-{name}.png" for name in FIGURES}


def participant_page(folder: str) -> str:
    """The page of the participant whose scans are in ``folder`` (or in a session below it)."""
    return f"{folder.partition('/')[0]}.html"


def scans_table(folder: str) -> str:
    """Name of the table with a row per scan of one participant (and session)."""
    return f"{folder}/{folder.replace('/', '_')}_scans.tsv"


# --------------------------------------------------------------------------- sidecars


def describe_image(name: str, scan: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON beside a derivative image.

    Parameters
    ----------
    name : str
        A key of `DESCRIPTIONS`.
    scan : mapping
        The scan's file (`cmb_bids.inputs.write_scan_files`).
    """
    sidecar: dict[str, Any] = {"Description": DESCRIPTIONS[name], "Sources": scan["sources"]}
    if name == "brain":
        return {"Type": "Brain", **sidecar, "SpatialReference": _reference(scan)}
    sidecar["SkullStripped"] = False
    if name in SEGMENTATIONS:
        sidecar["SpatialReference"] = _reference(scan)
        return {**sidecar, **CANDIDATE_COLUMNS} if name == "candidates" else sidecar
    sidecar["Units"] = "rad" if name in PHASE_IMAGES else "arbitrary"
    times = [echo["echo_time_s"] for echo in scan["echoes"]]
    if all(time is not None for time in times) and times:
        # One number is a BIDS EchoTime; an image combined from several has no single one.
        sidecar |= {"EchoTime": times[0]} if len(times) == 1 else {"CombinedEchoTimes": times}
    if scan.get("field_strength_t"):
        sidecar["MagneticFieldStrength"] = scan["field_strength_t"]
    return sidecar


def _reference(scan: Mapping[str, Any]) -> str:
    return scan["sources"][0] if scan["sources"] else "orig"


CANDIDATE_COLUMNS: dict[str, dict[str, Any]] = {
    "index": {"Description": "Label of the candidate in the image of the same name."},
    "name": {"Description": "What the row is: a candidate."},
    "x": {"Description": "Centre, scanner right.", "Units": "mm"},
    "y": {"Description": "Centre, scanner anterior.", "Units": "mm"},
    "z": {"Description": "Centre, scanner superior.", "Units": "mm"},
    "score": {"Description": "Strength of radial symmetry; ranks candidates of one scan only."},
    "radius_mm": {"Description": "Radius at which the symmetry is strongest.", "Units": "mm"},
    "contrast": {"Description": "Image the candidate is strongest on."},
}


# ------------------------------------------------------------------ files of the dataset

_IGNORED = """work
logs
*.html
sub-*/figures
sub-*/ses-*/figures
group_*
# BIDS wants an echo in every MEGRE name; the images here combine all echoes.
**/*_MEGRE.*
"""

_README = """# Cerebral microbleeds (cmb-bids {version})

Made by cmb-bids from the BIDS dataset "{name}". For research; not a medical device.

- `sub-*/[ses-*/]*_scans.tsv`: one row per scan with its counts and checks. `scans.json` describes
  the columns. A header-only lesion table plus a row here means processed, none found; no row here
  means not processed.
- `sub-*/[ses-*/]anat/*_desc-cmb_dseg.tsv`: one row per microbleed, definite or possible;
  `*_desc-calcification_dseg.tsv` the same for calcifications, `*_desc-candidates_dseg.tsv` every
  spot looked at. The image beside each table labels its rows; x, y, z are scanner mm (RAS+).
- `*_desc-swi_*`, `*_desc-minip_*`, `*_part-phase_desc-unwrapped_*`, `*_part-phase_desc-highpass_*`,
  `*_desc-brain_mask`: the images the lesions were found on. Phase is in radians, right-handed
  (paramagnetic positive).
- `sub-*.html` with `sub-*/[ses-*/]figures`: each scan in pictures. `group.html`: the cohort.
- `phenotype/microbleeds.tsv`, `group_microbleeds.csv`: totals of the group level.
- `logs/scans`: what was done to each scan, by stage. Keep it: a re-run uses it to do only what is
  missing or changed. `logs/<run>`: messages of one run. `work`: may be deleted at any time.
"""


def dataset_files(
    bids_dir: Path, output_dir: Path, raw_description: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of the files at the top of the derivative dataset, by name.

    Text stands for itself; dictionaries become JSON. ``participants.tsv`` and ``scans.json`` are
    not among them, as they depend on what has been processed (`cmb_bids.run.write_participants`,
    `cmb_bids.run.write_scans_table`).
    """
    name = raw_description.get("Name") or bids_dir.name
    source: dict[str, Any] = {"URL": _location(bids_dir, output_dir)}
    if raw_description.get("DatasetDOI"):
        source["DOI"] = raw_description["DatasetDOI"]
    description = {
        "Name": f"Cerebral microbleeds of {name}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [_generated_by()],
        "SourceDatasets": [source],
        "DatasetLinks": {"raw": _location(bids_dir, output_dir)},
    }
    rows = [f"desc-{key}\t{text}" for key, text in DESCRIPTIONS.items()]
    return {
        "dataset_description.json": description,
        "README.md": _README.format(version=__version__, name=name),
        ".bidsignore": _IGNORED,
        "descriptions.tsv": "\n".join(["desc_id\tdescription", *rows]) + "\n",
        "descriptions.json": {
            "desc_id": {"Description": "Value of the desc entity."},
            "description": {"Description": "What files with it hold."},
        },
    }


def _generated_by() -> dict[str, Any]:
    made = {"Name": "cmb-bids", "Version": __version__}
    tag = os.environ.get("CMB_BIDS_CONTAINER_TAG")
    if tag:
        return {**made, "Container": {"Type": "docker", "Tag": tag}}
    return made


def _location(bids_dir: Path, output_dir: Path) -> str:
    """Where the raw dataset is: relative where the output lies inside it, which moves along."""
    if output_dir.is_relative_to(bids_dir):
        return "../" * len(output_dir.relative_to(bids_dir).parts)
    return bids_dir.as_uri()


def bids_uris(paths: Iterable[str], bids_dir: str) -> list[str]:
    """Raw files as BIDS URIs of the dataset linked as ``raw``."""
    return [f"bids:raw:{os.path.relpath(path, bids_dir)}" for path in paths]


def methods_text(config: Mapping[str, Any]) -> str:
    """Text for the methods section of a paper, as the configuration has it (Markdown)."""
    phase, swi = config.get("phase", {}), config.get("swi", {})
    unwrapped = {
        "romeo": "unwrapped with ROMEO (Dymerska et al., 2021)",
        "laplacian": "unwrapped with the Laplacian method (Schofield and Zhu, 2003)",
        "none": "not unwrapped",
    }[phase.get("unwrapping", "romeo")]
    filtered = {
        "homodyne": "homodyne filtering in the slice plane (half height at "
        f"{phase.get('homodyne_half_height_per_mm', 0.0625)} cycles/mm)",
        "gaussian": "subtraction of a Gaussian of the unwrapped phase (sigma "
        f"{phase.get('gaussian_sigma_mm', 4.0)} mm)",
    }[phase.get("highpass", "homodyne")]
    return f"""# Methods

Cerebral microbleeds were counted with cmb-bids {__version__}. Phase was scaled to radians, its
polarity made right-handed (paramagnetic positive), {unwrapped} and high-pass filtered by
{filtered}. Susceptibility-weighted images were formed by multiplying the magnitude with the phase
mask raised to the power of {swi.get("power", 4)} (Haacke et al., 2004), and projected by minimum
intensity over {swi.get("minimum_projection_mm", 8.0)} mm. The brain was masked by N4 bias
correction (Tustison et al., 2010) and registration to a whole-head template with ANTs (Avants et
al., 2011). Candidates were found with a three-dimensional fast radial symmetry transform (Loy and
Zelinsky, 2003), screened by learnt features and a small network, and sorted into microbleeds,
calcifications and others by a residual network that sees the susceptibility-weighted image and the
high-pass phase, after the approach of Liu et al. (2019); where it doubted between microbleed and
calcification, the sign of a magnetic dipole fitted to the phase decided. Scans without phase were
read by a network that sees the magnitude alone. The networks were trained on simulated images.
Lesions of {_diameters(config)} mm were counted, by the regions of MARS (Gregoire et al., 2009) and
BOMBS (Cordonnier et al., 2009). The workflow runs on Snakemake (Mölder et al., 2021) and nipype
(Gorgolewski et al., 2011); data follow BIDS (Gorgolewski et al., 2016).

## References

- Avants BB et al. NeuroImage 2011;54:2033-2044.
- Cordonnier C et al. Stroke 2009;40:94-99.
- Dymerska B et al. Magn Reson Med 2021;85:2294-2308.
- Gorgolewski K et al. Front Neuroinform 2011;5:13.
- Gorgolewski KJ et al. Sci Data 2016;3:160044.
- Gregoire SM et al. Neurology 2009;73:1759-1766.
- Haacke EM et al. Magn Reson Med 2004;52:612-618.
- Liu S et al. NeuroImage 2019;198:271-282.
- Loy G, Zelinsky A. IEEE Trans Pattern Anal Mach Intell 2003;25:959-973.
- Mölder F et al. F1000Research 2021;10:33.
- Schofield MA, Zhu Y. Opt Lett 2003;28:1194-1196.
- Tustison NJ et al. IEEE Trans Med Imaging 2010;29:1310-1320.
"""


def _diameters(config: Mapping[str, Any]) -> str:
    lesions = config.get("lesions", {})
    smallest = lesions.get("minimum_diameter_mm", 2.0)
    return f"{smallest:g}-{lesions.get('maximum_diameter_mm', 10.0):g}"
