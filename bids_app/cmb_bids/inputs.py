"""The raw dataset: which scans it holds, and what each scan consists of.

The dataset is walked once; everything later reads the manifest made here. Names in BIDS are
``key-value`` pairs, so they are split directly (microseconds a file) rather than matched against
pybids' patterns (a millisecond a file, twenty seconds for 4000 participants), and a subject's
``anat`` and ``swi`` folders are all that is looked into.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from cmb_bids import __version__
from cmb_bids.errors import BadData, InputMissing, InvalidDataset, NothingMatched
from cmb_bids.given_parcellations import choose_parcellation, find_parcellations
from cmb_bids.naming import (
    ENTITIES,
    bids_uris,
    build_name,
    clean_label,
    is_label,
    parse_name,
    participant_folder,
)
from cmb_bids.volumes import read_json, write_json

logger = logging.getLogger(__name__)

SUFFIXES = ("T2starw", "MEGRE", "swi", "GRE")
BIDS_SUFFIXES = ("T2starw", "MEGRE")  # the others are behind .bidsignore, from before BIDS had them
FOLDERS = ("anat", "swi")
IMAGE_EXTENSIONS = (".nii.gz", ".nii")
LOOKED_FOR = (
    "sub-*/[ses-*/]anat/ (or swi/) *_part-mag_* with *_part-phase_*, *_part-real_* with "
    "*_part-imag_*, or magnitude alone, ending in _T2starw, _MEGRE, _GRE or _swi (.nii.gz or .nii)"
)
# Values of an entity that mark a scanner's projection: slabs, not a scan.
PROJECTIONS = ("minip", "mip")
LONGEST_LIST = 16  # sidecars of some converters hold thousands of numbers; they are left behind
# Who was scanned, and when, has no place in the files kept beside the results.
PERSONAL = ("Patient", "Accession", "StudyID", "StudyInstance", "SeriesInstance", "StudyDate",
            "AcquisitionDate", "Institution", "DeviceSerial", "StationName")  # fmt: skip
# What the workflow must know of a scan before its first job runs.
MANIFEST_KEYS = ("id", "folder", "prefix", "output_suffix", "kind", "raw", "mask", "parcellation",
                 "source")  # fmt: skip

_MANIFEST_ONLY = ("raw", "mask", "parcellation", "source")

REPORT = "report"  # pictures of a scan; its counts do not depend on it
# The sections of the science configuration a stage reads. A change elsewhere leaves it alone.
STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "phase": ("phase", "swi"),
    "brain": ("brain",),
    "candidates": ("candidates",),
    "classify": ("network",),
    "lesions": ("lesions", "network", "quality"),
    REPORT: ("swi",),
}


@dataclass(frozen=True)
class Selection:
    """What of a dataset to process; None selects everything."""

    participants: tuple[str, ...] | None = None
    sessions: tuple[str, ...] | None = None
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class Index:
    """The scans found, as dictionaries ready for JSON, and what the user should know."""

    scans: list[dict[str, Any]]
    warnings: list[str]
    description: dict[str, Any]


# ------------------------------------------------------------------------ the dataset's files


def check_dataset(bids_dir: Path, skip_validation: bool = False) -> dict[str, Any]:
    """Read ``dataset_description.json``; refuse what is not a raw BIDS dataset.

    Parameters
    ----------
    bids_dir : Path
        Top of the dataset.
    skip_validation : bool
        Go on without a valid ``dataset_description.json``.

    Raises
    ------
    InputMissing
        There is no such directory.
    InvalidDataset
        It is not BIDS, has no participants, or holds this program's own results.
    """
    if not bids_dir.is_dir():
        raise InputMissing(bids_dir, "there is no such directory", "Check BIDS_DIR")
    path = bids_dir / "dataset_description.json"
    try:
        description = read_json(path)
    except InputMissing as error:
        if not skip_validation:
            raise InvalidDataset(
                path,
                "is missing, so this is not a BIDS dataset",
                "Check BIDS_DIR, write the file, or pass --skip-bids-validation",
            ) from error
        description = {}
    except BadData as error:
        if not skip_validation:
            raise InvalidDataset(path, error.what, "Mend the file") from error
        description = {}
    if not skip_validation and not {"Name", "BIDSVersion"} <= description.keys():
        raise InvalidDataset(
            path, "lacks Name or BIDSVersion", "Add them, or pass --skip-bids-validation"
        )
    makers = description.get("GeneratedBy") or []
    if any(isinstance(maker, dict) and maker.get("Name") == "cmb-bids" for maker in makers):
        raise InvalidDataset(
            bids_dir, "holds results of cmb-bids, not raw data", "Give the raw dataset as BIDS_DIR"
        )
    return description


def list_participants(bids_dir: Path) -> list[str]:
    """Labels of the ``sub-*`` directories, sorted.

    Raises
    ------
    InvalidDataset
        There are none.
    """
    found = [
        entry.name.removeprefix("sub-")
        for entry in os.scandir(bids_dir)
        if entry.name.startswith("sub-") and is_label(entry.name[4:]) and entry.is_dir()
    ]
    if not found:
        raise InvalidDataset(
            bids_dir, "holds no participant (no sub-* directory)", "Check BIDS_DIR"
        )
    return sorted(found)


def choose(available: Sequence[str], wanted: Iterable[str] | None, key: str, where: Path | str):
    """Labels of ``available`` that are ``wanted``; every wanted one must be there.

    Raises
    ------
    NothingMatched
        Names the labels that are not in the dataset.
    """
    if wanted is None:
        return list(available)
    labels = list(dict.fromkeys(clean_label(label, key) for label in wanted))
    absent = [label for label in labels if label not in set(available)]
    if absent or not labels:
        some = ", ".join(f"{key}-{label}" for label in available[:5])
        raise NothingMatched(
            where,
            f"has no {', '.join(f'{key}-{label}' for label in absent) or f'{key} label'}",
            f"Choose among the {len(available)} there: {some}{' ...' * (len(available) > 5)}",
        )
    return [label for label in available if label in set(labels)]


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


def walk_participant(folder: Path, remembered: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Images and sidecars of one participant.

    Parameters
    ----------
    folder : Path
        ``sub-01`` in the dataset.
    remembered : mapping, optional
        What this function returned before. Folders and sidecars that have not been modified
        since are not read again.

    Returns
    -------
    dict
        ``folders``: relative folder -> [time of modification, names of files, subfolders];
        ``sidecars``: relative path -> [time of modification, content].
    """
    before = remembered or {"folders": {}, "sidecars": {}}
    found: dict[str, Any] = {"folders": {}, "sidecars": {}}
    for name, level in _folders(folder):
        modified = _modified(level)
        old = before["folders"].get(name)
        if not old or old[0] != modified:
            old = [modified, *_list_folder(level)]
        found["folders"][name] = old
        for sidecar in (file for file in old[1] if file.endswith(".json")):
            relative = f"{name}/{sidecar}" if name else sidecar
            modified = _modified(folder / relative)
            known = before["sidecars"].get(relative)
            if not known or known[0] != modified:
                known = [modified, _read_sidecar(folder / relative)]
            found["sidecars"][relative] = known
    return found


def _folders(folder: Path) -> Iterable[tuple[str, Path]]:
    """The participant's folder, its sessions, and the image folders in each."""
    sessions = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.startswith("ses-") and entry.is_dir()
    )
    for base in ["", *sessions]:
        yield base, folder / base
        for kind in FOLDERS:
            if (folder / base / kind).is_dir():
                yield f"{base}/{kind}" if base else kind, folder / base / kind


def _list_folder(folder: Path) -> tuple[list[str]]:
    # Not filtered by is_file(): a link into a store that has not been fetched must be reported.
    return (sorted(name for name in os.listdir(folder) if _is_wanted(name)),)


def _is_wanted(name: str) -> bool:
    stem, _, extension = name.partition(".")
    return extension in ("json", "nii", "nii.gz") and stem.rpartition("_")[2] in SUFFIXES


def _read_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar's plain values; ``_unreadable`` says what is wrong with it."""
    try:
        content = read_json(path)
    except (BadData, InputMissing, OSError) as error:
        return {"_unreadable": str(error)}
    return {
        key: value
        for key, value in content.items()
        if _is_plain(value) and not key.startswith(PERSONAL)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= LONGEST_LIST and all(map(_is_plain, value))
    return not isinstance(value, dict)


# --------------------------------------------------------------------------- the scans


def inherit_sidecar(
    name: str, folder: str, sidecars: Mapping[str, tuple[dict[str, str], str, dict[str, Any]]]
) -> dict[str, Any]:
    """What the sidecars that apply to an image say together (BIDS inheritance).

    A sidecar applies that lies in the image's folder or above it, has its suffix, and no entity
    that the image lacks. The nearer folder wins, then the sidecar with more entities.

    Parameters
    ----------
    name, folder : str
        The image and its folder, relative to the dataset.
    sidecars : mapping
        Path relative to the dataset -> entities, suffix, content.
    """
    entities, suffix, _ = parse_name(name)
    applying = []
    for path, (keys, kind, content) in sidecars.items():
        level = path.rpartition("/")[0]
        above = not level or folder == level or folder.startswith(f"{level}/")
        if above and kind == suffix and keys.items() <= entities.items():
            applying.append((level.count("/") + bool(level), len(keys), path, content))
    merged: dict[str, Any] = {}
    for *_, content in sorted(applying, key=lambda item: item[:3]):
        merged |= content
    return merged


def _matches(entities: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a scan's entities are what one entry of the filter file asks for."""
    for name, value in wanted.items():
        have = entities.get(name)
        options = value if isinstance(value, list) else [value]
        if not any(_is_value(have, option) for option in options):
            return False
    return True


def _is_value(have: str | None, option: Any) -> bool:
    if option is None:
        return have is None
    if have is None or option == "*":
        return have is not None and option == "*"
    if have.isdigit() and str(option).isdigit():
        return int(have) == int(option)
    return have == str(option)


def read_filters(path: Path) -> dict[str, dict[str, Any]]:
    """Read a ``--bids-filter-file``.

    Keys are suffixes (``T2starw``, ``MEGRE``, ``swi``, ``GRE``, in any case) or ``scan`` for all
    of them; values map entities to a value, a list of values, null (must be absent) or ``"*"``
    (must be present).

    Raises
    ------
    BadData
        A key or an entity is unknown.
    """
    known = {suffix.lower(): suffix for suffix in (*SUFFIXES, "scan")}
    entities = {**ENTITIES, **{name: name for name in ENTITIES.values()}}
    entities |= {"suffix": "suffix", "datatype": "datatype"}
    filters: dict[str, dict[str, Any]] = {}
    for key, wanted in read_json(path).items():
        if key.lower() not in known or not isinstance(wanted, dict):
            raise BadData(
                path,
                f'has "{key}", which is no suffix with a table of entities',
                f"Use {', '.join((*SUFFIXES, 'scan'))}",
            )
        unknown = [entity for entity in wanted if entity not in entities]
        if unknown:
            raise BadData(
                path, f'filters by "{unknown[0]}", which is no BIDS entity', "Mend its spelling"
            )
        filters[known[key.lower()]] = {entities[name]: value for name, value in wanted.items()}
    return filters


def find_scans(
    participant: str, walked: Mapping[str, Any], above: Mapping[str, dict[str, Any]], bids_dir: Path
) -> list[dict[str, Any]]:
    """The scans of one participant.

    Parameters
    ----------
    participant : str
        Label.
    walked : mapping
        From `walk_participant`.
    above : mapping
        Sidecars at the top of the dataset: name -> content.
    bids_dir : Path
        Top of the dataset.
    """
    top = f"sub-{participant}"
    sidecars = {f"{top}/{path}": content for path, (_, content) in walked["sidecars"].items()}
    parsed = {
        path: (*parse_name(path.rpartition("/")[2])[:2], content)
        for path, content in {**above, **sidecars}.items()
    }
    groups: dict[tuple[Any, ...], list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for folder, (_, names) in walked["folders"].items():
        if folder.rpartition("/")[2] not in FOLDERS:
            continue
        for name in names:
            entities, suffix, extension = parse_name(name)
            projection = any(value.lower() in PROJECTIONS for value in entities.values())
            if extension not in IMAGE_EXTENSIONS or projection:
                continue
            own = tuple((k, v) for k, v in sorted(entities.items()) if k not in ("echo", "part"))
            groups[folder, own, suffix].append((f"{top}/{folder}/{name}", entities))
    scans = [
        _make_scan(participant, folder, dict(own), suffix, files, parsed, bids_dir)
        for (folder, own, suffix), files in sorted(groups.items())
    ]
    return _drop_scanner_products(scans)


def _make_scan(
    participant: str,
    folder: str,
    entities: dict[str, str],
    suffix: str,
    files: list[tuple[str, dict[str, str]]],
    sidecars: Mapping[str, Any],
    bids_dir: Path,
) -> dict[str, Any]:
    """One scan out of its files: echoes put in order, parts put together."""
    by_echo: dict[str, dict[str, str]] = defaultdict(dict)
    for path, own in sorted(files, reverse=True):  # reversed: .nii.gz wins over .nii
        by_echo[own.get("echo", "")].setdefault(own.get("part", ""), path)
    warnings: list[str] = []
    kind, parts, problem = _choose_parts(by_echo, warnings)
    order = sorted(parts, key=lambda echo: (int(echo) if echo.isdigit() else 0, echo))
    echoes = [
        _make_echo(number, echo, parts[echo], sidecars, bids_dir)
        for number, echo in enumerate(order, start=1)
    ]
    session = entities.get("session")
    raw = [path for echo in echoes for path in _images(echo)]
    problem = problem or _misplaced(participant, folder, entities, files)
    problem = problem or _unreadable(raw, echoes)
    first = echoes[0]["magnitude_sidecar"] if echoes else {}
    source = raw[0] if raw else str(bids_dir / sorted(path for path, _ in files)[0])
    return {
        "id": build_name(entities, suffix),
        "entities": entities,
        "suffix": suffix,
        "datatype": folder.rpartition("/")[2],
        "folder": participant_folder(participant, session),
        "kind": kind,
        "echoes": echoes,
        "field_strength_t": _number(first.get("MagneticFieldStrength")),
        "manufacturer": first.get("Manufacturer"),
        "source": os.path.relpath(source, bids_dir / participant_folder(participant, session)),
        "raw": raw if not problem else [],
        "problem": problem,
        "warnings": [f"{source}: {text}" for text in warnings],
    }


def _choose_parts(
    by_echo: Mapping[str, Mapping[str, str]], warnings: list[str]
) -> tuple[str, dict[str, dict[str, str]], str | None]:
    """What is used of each echo: kind of the scan, echo -> part -> path, and what is wrong."""
    complete: dict[str, dict[str, str]] = {}
    alone: dict[str, dict[str, str]] = {}
    broken: list[str] = []
    for echo, parts in by_echo.items():
        magnitude = parts.get("mag") or parts.get("")
        if magnitude and "phase" in parts:
            complete[echo] = {"magnitude": magnitude, "phase": parts["phase"]}
        elif "real" in parts and "imag" in parts:
            complete[echo] = {"real": parts["real"], "imaginary": parts["imag"]}
        elif magnitude:
            alone[echo] = {"magnitude": magnitude}
        else:
            broken.append(next(iter(parts.values())))
    if complete:
        left = [next(iter(parts.values())) for parts in alone.values()] + broken
        if left:
            warnings.append(f"echoes without a partner image are not used: {', '.join(left)}")
        return "complex", complete, None
    if alone:
        if broken:
            warnings.append(f"echoes without magnitude are not used: {', '.join(broken)}")
        warnings.append(
            "no phase image beside this magnitude: read by the magnitude-only network, which "
            "cannot tell calcification from blood"
        )
        return "magnitude", alone, None
    lacking = "magnitude" if any("phase" in parts for parts in by_echo.values()) else "counterpart"
    problem = f"has no {lacking} image beside it"
    return "complex", {}, problem


def _make_echo(
    number: int, label: str, paths: Mapping[str, str], sidecars: Mapping[str, Any], bids_dir: Path
) -> dict[str, Any]:
    said = {
        part: inherit_sidecar(path.rpartition("/")[2], path.rpartition("/")[0], sidecars)
        for part, path in paths.items()
    }
    magnitude = said.get("magnitude") or said.get("real") or {}
    phase = said.get("phase") or said.get("imaginary") or {}
    time = _number(magnitude.get("EchoTime"))
    echo: dict[str, Any] = {
        "echo": int(label) if label.isdigit() else number,
        "echo_time_s": time if time is not None else _number(phase.get("EchoTime")),
    }
    for part in ("magnitude", "phase", "real", "imaginary"):
        echo[part] = str(bids_dir / paths[part]) if part in paths else None
    return {**echo, "magnitude_sidecar": magnitude, "phase_sidecar": phase}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _images(echo: Mapping[str, Any]) -> list[str]:
    return [echo[part] for part in ("magnitude", "phase", "real", "imaginary") if echo[part]]


def _misplaced(
    participant: str, folder: str, entities: Mapping[str, str], files: Sequence[tuple[str, Any]]
) -> str | None:
    session = folder.partition("/")[0].removeprefix("ses-") if folder.startswith("ses-") else None
    if entities.get("subject") != participant or entities.get("session") != session:
        return f"{files[0][0]} does not carry the labels of the folder it lies in"
    bad = [value for value in entities.values() if not is_label(value)]
    return f"{files[0][0]} has a label BIDS does not allow ({bad[0]!r})" if bad else None


def _unreadable(raw: Iterable[str], echoes: Iterable[Mapping[str, Any]]) -> str | None:
    for path in raw:
        if not os.access(path, os.R_OK):
            broken = os.path.islink(path) and not os.path.exists(path)
            why = "a link to a file that is not there (not fetched?)" if broken else "unreadable"
            return f"{path} is {why}"
    for echo in echoes:
        for sidecar in (echo["magnitude_sidecar"], echo["phase_sidecar"]):
            if "_unreadable" in sidecar:
                return str(sidecar["_unreadable"])
    return None


def _drop_scanner_products(scans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the scanner's own SWI of a scan whose magnitude and phase are there.

    Both would count the same microbleeds, once each.
    """
    complete = {_acquisition(scan) for scan in scans if scan["kind"] == "complex"}
    return [
        scan
        for scan in scans
        if not (scan["suffix"] == "swi" and scan["kind"] == "magnitude")
        or _acquisition(scan) not in complete
    ]


def _acquisition(scan: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(scan["entities"].items()))


# ---------------------------------------------------------------------------- output names


def name_outputs(scans: Sequence[dict[str, Any]]) -> None:
    """Give each scan the start (``prefix``) and suffix of its outputs' names, in place.

    Suffixes BIDS does not know become an acquisition (``swi`` -> ``acq-swi``, as in BIDS'
    ``acq-swi_T2starw``). Masks and lesion images carry no suffix, so a scan whose entities are
    those of another takes its suffix into the acquisition, too.
    """
    for scan in scans:
        known = scan["suffix"] in BIDS_SUFFIXES
        scan["output_suffix"] = scan["suffix"] if known else "T2starw"
        scan["prefix"] = build_name(scan["entities"])
        acquisition = scan["entities"].get("acquisition", "")
        if not known and not acquisition.lower().endswith(scan["suffix"].lower()):
            scan["prefix"] = _add_to_acquisition(scan["prefix"], scan["suffix"])
    shared = Counter(scan["prefix"] for scan in scans)
    for scan in scans:
        if shared[scan["prefix"]] > 1 and scan["suffix"] != "T2starw":
            scan["prefix"] = _add_to_acquisition(scan["prefix"], scan["suffix"])
    seen: dict[str, str] = {}
    for number, scan in enumerate(scans):
        other = seen.setdefault(scan["prefix"], scan["source"])
        if other != scan["source"]:
            scan["problem"] = f"{scan['source']} and {other} would have outputs of the same name"
            scan["raw"] = []
            scan["prefix"] = f"{scan['prefix']}_{number}"


def _add_to_acquisition(prefix: str, suffix: str) -> str:
    entities = parse_name(f"{prefix}_")[0]
    return build_name({**entities, "acquisition": entities.get("acquisition", "") + suffix})


# -------------------------------------------------------------------------- brain masks


def find_masks(derivatives: Sequence[Path], participant: str) -> list[tuple[str, dict[str, str]]]:
    """Brain masks of one participant in derivative datasets: path and entities.

    Masks in another space (``space-``) cannot be used.
    """
    found = []
    for root in derivatives:
        for _, folder in (
            _folders(root / f"sub-{participant}") if (root / f"sub-{participant}").is_dir() else ()
        ):
            for name in sorted(os.listdir(folder)):
                entities, suffix, extension = parse_name(name)
                is_mask = suffix == "mask" and entities.get("desc") == "brain"
                native = entities.get("space", "orig") == "orig"
                if is_mask and native and extension in IMAGE_EXTENSIONS:
                    found.append((str(folder / name), entities))
    return found


def match_mask(
    scan: Mapping[str, Any], masks: Iterable[tuple[str, Mapping[str, str]]]
) -> str | None:
    """The mask that fits a scan best: same session, no entity that differs, most that agree."""
    best: tuple[int, int, str] | None = None
    for path, entities in masks:
        wanted = {**scan["entities"], **parse_name(scan["prefix"] + "_x")[0]}
        rest = {k: v for k, v in entities.items() if k not in ("desc", "space", "echo", "part")}
        own = scan["entities"]
        if rest.get("session") != own.get("session"):
            continue
        agree = sum(v in (own.get(k), wanted.get(k)) for k, v in rest.items())
        differ = len(rest) - agree
        if differ and any(k in own for k, v in rest.items() if v not in (own[k], wanted[k])):
            continue  # another run or acquisition of the same participant
        candidate = (-agree, differ, path)
        best = candidate if best is None or candidate < best else best
    return best[2] if best else None


def derivative_paths(given: Iterable[str]) -> list[Path]:
    """Derivative datasets named as ``PATH`` or ``NAME=PATH``.

    Raises
    ------
    InputMissing
        One is not a directory.
    """
    paths = []
    for text in given:
        path = Path(text.partition("=")[2] or text) if not Path(text).exists() else Path(text)
        if not path.is_dir():
            raise InputMissing(path, "there is no such directory", "Check --derivatives")
        paths.append(path.resolve())
    return paths


# ------------------------------------------------------------------------------- the index


def index_dataset(
    bids_dir: Path,
    selection: Selection | None = None,
    derivatives: Sequence[Path] = (),
    database_dir: Path | None = None,
    skip_validation: bool = False,
) -> Index:
    """Find every scan of the selected participants.

    Parameters
    ----------
    bids_dir : Path
        Top of the raw dataset; absolute.
    selection : Selection, optional
        Participants, sessions and filters.
    derivatives : sequence of Path
        Derivative datasets that may hold brain masks and parcellations.
    database_dir : Path, optional
        Where the walk is remembered; what has not been modified since is not read again.
    skip_validation : bool
        As in `check_dataset`.

    Raises
    ------
    InputMissing, InvalidDataset
        As `check_dataset`, `list_participants`; InputMissing too when no scan can be used.
    NothingMatched
        A label is absent, or labels and filters together leave nothing.
    """
    selection = selection or Selection()
    description = check_dataset(bids_dir, skip_validation)
    everybody = list_participants(bids_dir)
    participants = choose(everybody, selection.participants, "sub", bids_dir)
    walked = _walk(bids_dir, participants, database_dir)
    above = {
        name: _read_sidecar(bids_dir / name)
        for name in sorted(os.listdir(bids_dir))
        if name.endswith(".json") and _is_wanted(name)
    }
    _check_sessions(walked, selection, bids_dir)
    scans: list[dict[str, Any]] = []
    warnings: list[str] = []
    everything = 0
    for participant in participants:
        found = find_scans(participant, walked[participant], above, bids_dir)
        everything += len(found)
        found = [scan for scan in found if _is_selected(scan, selection)]
        name_outputs(found)
        warnings += _add_derivatives(found, derivatives, participant)
        for scan in found:
            warnings += scan.pop("warnings")
        if not found:
            warnings.append(f"sub-{participant}: no scan to process")
        scans += found
    if not everything:
        raise InputMissing(bids_dir, "no participant has a usable scan", f"Looked for {LOOKED_FOR}")
    if not scans:
        raise NothingMatched(
            bids_dir, "no scan is left by the labels and filters", "Check them against the dataset"
        )
    return Index(scans, warnings, description)


def _add_derivatives(
    scans: Sequence[dict[str, Any]], derivatives: Sequence[Path], participant: str
) -> list[str]:
    """Add the user's own mask and parcellation to each scan; return what could not be used."""
    masks = find_masks(derivatives, participant)
    parcellations = find_parcellations(derivatives, participant)
    sessions = len({scan["entities"].get("session") for scan in scans})
    warnings = []
    for scan in scans:
        scan["mask"] = match_mask(scan, masks)
        scan["parcellation"], refused = choose_parcellation(scan, parcellations, sessions)
        if scan["parcellation"] is None and refused:
            warnings += [f"{scan['id']}: {text}. The built-in atlas is used" for text in refused]
            scan["parcellation"] = {"image": None, "refused": "; ".join(refused)}
        elif derivatives and not scan["mask"] and not scan["parcellation"]:
            warnings.append(
                f"{scan['id']}: no brain mask and no parcellation in the derivatives given; "
                "making the mask and using the built-in atlas"
            )
    return warnings


def _is_selected(scan: Mapping[str, Any], selection: Selection) -> bool:
    entities = {**scan["entities"], "suffix": scan["suffix"], "datatype": scan["datatype"]}
    sessions = selection.sessions
    if sessions is not None and entities.get("session") not in {
        clean_label(label, "ses") for label in sessions
    }:
        return False
    wanted = [selection.filters.get(key, {}) for key in ("scan", scan["suffix"])]
    return all(_matches(entities, entry) for entry in wanted)


def _check_sessions(
    walked: Mapping[str, Mapping[str, Any]], selection: Selection, bids_dir: Path
) -> None:
    names = {folder.partition("/")[0] for seen in walked.values() for folder in seen["folders"]}
    available = sorted(name.removeprefix("ses-") for name in names if name.startswith("ses-"))
    choose(available, selection.sessions, "ses", bids_dir)


def _walk(
    bids_dir: Path, participants: Sequence[str], database_dir: Path | None
) -> dict[str, dict[str, Any]]:
    """Walk the participants' folders, with the memory kept in ``database_dir``."""
    memory: dict[str, Any] = {}
    database = database_dir / "index.json" if database_dir else None
    if database and database.is_file():
        content = read_json(database)
        same = content.get("dataset") == str(bids_dir) and content.get("version") == __version__
        memory = content["participants"] if same else {}
    walked = {
        label: walk_participant(bids_dir / f"sub-{label}", memory.get(label))
        for label in participants
    }
    fresh = {**memory, **walked}
    if database and fresh != memory:
        content = {"dataset": str(bids_dir), "version": __version__, "participants": fresh}
        write_json(database, content)
    return walked


# ------------------------------------------------------------- manifest and scan files


def write_manifest(
    index: Index,
    path: Path,
    *,
    bids_dir: Path,
    output_dir: Path,
    work_dir: Path,
    config: Mapping[str, Any],
    random_seed: int = 0,
) -> dict[str, Any]:
    """Write the scan files and the manifest that names them; return the manifest.

    Parameters
    ----------
    index : Index
        From `index_dataset`.
    path : Path
        The manifest; logs of this run go beside it.
    bids_dir, output_dir, work_dir : Path
        Absolute.
    config : mapping
        The science configuration.
    random_seed : int
        Seed of everything random.
    """
    manifest = {
        "version": __version__,
        "run": path.parent.name,
        "bids_dir": str(bids_dir),
        "output_dir": str(output_dir),
        "work_dir": str(work_dir),
        "log_dir": str(path.parent),
        "config": config,
        "network_digest": network_digest((config.get("network") or {}).get("model", "shipped")),
        "random_seed": random_seed,
        "scans": [{key: scan[key] for key in MANIFEST_KEYS} for scan in index.scans],
    }
    for scan in index.scans:
        write_scan_files(scan, manifest)
    write_json(path, manifest)
    return manifest


def write_scan_files(scan: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Write what each stage must know of a scan, where that differs from what is on disk.

    A stage runs again when its file is newer than its outputs, so an unchanged file is left
    untouched. Each holds the configuration of its own stage only: a change of one stage's
    settings does not repeat the stages before it.
    """
    folder = scan_state(manifest["output_dir"], scan)
    anat = f"anat/{scan['prefix']}_desc-cmb_dseg.nii.gz"
    bids_dir = manifest["bids_dir"]
    for stage, sections in STAGE_SECTIONS.items():
        content = {
            **{key: value for key, value in scan.items() if key not in _MANIFEST_ONLY},
            "sources": bids_uris(scan["raw"], bids_dir),
            "filename": anat,
            "source_filename": scan["source"],
            "mask": scan["mask"] if stage == "brain" else None,
            "parcellation": scan["parcellation"] if stage == "brain" else None,
            "config": {name: manifest["config"].get(name, {}) for name in sections},
            "version": manifest["version"],
            "random_seed": manifest["random_seed"],
        }
        if "network" in sections:
            content["network_digest"] = manifest["network_digest"]
        text = json.dumps(content, sort_keys=True)
        for kind in ("complex", "magnitude"):
            path = folder / f"{kind}_{stage}.json"
            if kind != scan["kind"]:
                path.unlink(missing_ok=True)
            elif not path.is_file() or json.dumps(read_json(path), sort_keys=True) != text:
                write_json(path, content)


def network_digest(model: str) -> str:
    """What tells a network from another of the same name, which may have been trained since.

    Parameters
    ----------
    model : str
        ``shipped``, a safetensors file, or a directory that holds networks.
    """
    shipped = Path(str(files("cmb_bids"))) / "data" / "models"
    place = shipped if model == "shipped" else Path(model)
    paths = sorted(place.glob("microbleed-*.safetensors")) if place.is_dir() else [place]
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():  # where it is not, the stage that needs it says so
            digest.update(path.read_bytes())
    return digest.hexdigest()


def scan_state(output_dir: str | Path, scan: Mapping[str, Any]) -> Path:
    """Where the small files of a scan are kept: its stages' files, reports and provenance."""
    return Path(output_dir) / "logs" / "scans" / scan["folder"] / scan["prefix"]


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest written by `write_manifest`."""
    return read_json(Path(path))
