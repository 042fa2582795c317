"""Parcellations among the derivatives a user gives: which fits which scan, which none.

Names only; no image is opened here. Read are BIDS names (``*_dseg.nii.gz``), SynthSeg's own
(``*_synthseg.nii.gz``) and FreeSurfer's folders (``sub-01/mri/aparc+aseg.mgz``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmb_bids.naming import SEGMENTATIONS, parse_name

FREESURFER = "freesurfer"
SUFFIXES = ("dseg", "synthseg")
EXTENSIONS = (".nii.gz", ".nii", ".mgz")
# Spaces whose world coordinates are those of the scanner in the same session.
SCANNER_SPACES = ("", "orig", "scanner", "T1w", "T2starw", "MEGRE", "GRE", "swi", "individual")
# FreeSurfer's volumes, the best first.
FREESURFER_VOLUMES = ("aparc+aseg.mgz", "aparc.DKTatlas+aseg.mgz", "wmparc.mgz", "aseg.mgz")
# A word in a name that says whose numbering is used, and how much the parcellation tells.
_FREESURFER_WORDS = ("aparc", "wmparc", "synthseg", "aseg", "freesurfer", "fastsurfer")


class Parcellation(NamedTuple):
    """A parcellation of one participant, by its names.

    ``table`` is its lookup table; None where there is none. ``numbering`` is `FREESURFER` where
    the name says that its numbers are FreeSurfer's, else None.
    """

    image: str
    entities: dict[str, str]
    table: str | None
    numbering: str | None


def find_parcellations(derivatives: Sequence[Path], participant: str) -> list[Parcellation]:
    """Every parcellation of one participant in the derivative datasets, in their order.

    Parameters
    ----------
    derivatives : sequence of Path
        Tops of derivative datasets, or FreeSurfer's folder of subjects.
    participant : str
        Label, without ``sub-``.
    """
    found: list[Parcellation] = []
    for root in derivatives:
        tables = _tables(root, root)
        for folder in _image_folders(root / f"sub-{participant}"):
            near = {**tables, **_tables(folder, root), **_tables(folder.parent, root)}
            found += [
                _parcellation(folder / name, near)
                for name in sorted(os.listdir(folder))
                if _is_parcellation(name)
            ]
        found += _freesurfer_folders(root, participant)
    return found


def _image_folders(folder: Path) -> list[Path]:
    """Where a participant's images are: ``sub-01``, its sessions, and ``anat`` in each."""
    if not folder.is_dir():
        return []
    sessions = sorted(f for f in folder.glob("ses-*") if f.is_dir())
    levels = [folder, *sessions]
    return [f for level in levels for f in (level, level / "anat") if f.is_dir()]


def _is_parcellation(name: str) -> bool:
    entities, suffix, extension = parse_name(name)
    ours = entities.get("desc") in SEGMENTATIONS
    return suffix in SUFFIXES and extension in EXTENSIONS and not ours


def _tables(folder: Path, root: Path) -> dict[str, tuple[dict[str, str], int]]:
    """Lookup tables in one folder: path -> entities and depth below the dataset's top."""
    if not folder.is_relative_to(root):
        return {}
    depth = len(folder.relative_to(root).parts)
    return {
        str(folder / name): (parse_name(name)[0], depth)
        for name in os.listdir(folder)
        if name.endswith(tuple(f"{suffix}.tsv" for suffix in SUFFIXES))
    }


def _parcellation(path: Path, tables: Mapping[str, tuple[Mapping[str, str], int]]) -> Parcellation:
    """A parcellation with the nearest lookup table that has no entity the image lacks."""
    entities, suffix, _ = parse_name(path.name)
    applying = [
        (depth, len(keys), table)
        for table, (keys, depth) in tables.items()
        if keys.items() <= entities.items()
    ]
    words = f"{'_'.join(entities.values())}_{suffix}".lower().replace("+", "")
    known = any(word in words for word in _FREESURFER_WORDS)
    table = max(applying)[2] if applying else None
    return Parcellation(str(path), entities, table, FREESURFER if known else None)


def _freesurfer_folders(root: Path, participant: str) -> list[Parcellation]:
    """FreeSurfer's own folders: ``sub-01`` or, with sessions, ``sub-01_ses-A``."""
    found = []
    for folder in sorted([root / f"sub-{participant}", *root.glob(f"sub-{participant}_*")]):
        entities = parse_name(f"{folder.name}_x")[0]
        for name in FREESURFER_VOLUMES:
            if (folder / "mri" / name).is_file():
                found.append(Parcellation(str(folder / "mri" / name), entities, None, FREESURFER))
                break
    return found


def choose_parcellation(
    scan: Mapping[str, Any], parcellations: Iterable[Parcellation], sessions: int
) -> tuple[dict[str, Any] | None, list[str]]:
    """The parcellation that fits a scan best, and why others of the participant cannot be used.

    Parameters
    ----------
    scan : mapping
        A scan of the manifest.
    parcellations : iterable of Parcellation
        Of the same participant.
    sessions : int
        How many sessions the participant has: with one, a parcellation need not name it.

    Returns
    -------
    dict or None
        ``image``, ``table``, ``numbering``.
    list of str
        A message for each that is refused for its space, session or lack of a lookup table.
    """
    usable: list[tuple[tuple[int, ...], Parcellation]] = []
    refused = []
    for parcellation in parcellations:
        why = _objection(scan, parcellation, sessions)
        if why:
            refused.append(f"{parcellation.image}: {why}")
        else:
            usable.append((_rank(scan, parcellation), parcellation))
    if not usable:
        return None, refused
    best = min(usable, key=lambda item: (item[0], item[1].image))[1]
    return {"image": best.image, "table": best.table, "numbering": best.numbering}, refused


def _objection(scan: Mapping[str, Any], parcellation: Parcellation, sessions: int) -> str | None:
    """Why a parcellation cannot be used for a scan, and what to do; None if it can."""
    space = parcellation.entities.get("space", "")
    if space not in SCANNER_SPACES:
        return (
            f"is in space {space}, not in the scan's. Carry it to the scan with its own transform "
            "and name it space-T2starw or without space"
        )
    theirs, own = parcellation.entities.get("session"), scan["entities"].get("session")
    if theirs != own and not (theirs is None and sessions == 1):
        return (
            f"is of {f'session {theirs}' if theirs else 'no session'}, the scan of "
            f"{f'session {own}' if own else 'none'}: the head lay otherwise. Give one of the "
            "same session, or one resampled to the scan and named after it"
        )
    if parcellation.table is None and parcellation.numbering is None:
        return (
            "has no lookup table. Put a table with the columns index and name beside it, of the "
            "same name with .tsv, or call it desc-aseg or desc-synthseg if its numbers are "
            "FreeSurfer's"
        )
    return None


def _rank(scan: Mapping[str, Any], parcellation: Parcellation) -> tuple[int, ...]:
    """Order of preference: made from the scan itself, most entities shared, most structures."""
    own = scan["entities"]
    rest = {
        key: value
        for key, value in parcellation.entities.items()
        if key not in ("desc", "space", "seg", "segmentation", "atlas", "label", "session")
    }
    agree = sum(own.get(key) == value for key, value in rest.items())
    name = os.path.basename(parcellation.image).lower()
    words = [k for k, word in enumerate(_FREESURFER_WORDS) if word in name.replace("+", "")]
    # Without any such word it may be a plain segmentation into three tissues; a described one
    # is the user's own choice and comes first.
    described = parcellation.table is not None and any(
        key in parcellation.entities for key in ("desc", "segmentation", "atlas")
    )
    kind = words[0] if words else (-1 if described else len(_FREESURFER_WORDS))
    scanned = parcellation.entities.get("space", "") in ("T2starw", "MEGRE", "GRE", "swi")
    return (-int(scanned), -agree, len(rest) - agree, kind)
