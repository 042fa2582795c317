"""Which files of a BIDS derivative hold points, of which scan, and whose labels they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cmb_bids.errors import UsageError
from cmb_bids.evaluate.points import CALCIFICATION, CANDIDATE, MICROBLEED, kind_of

# What tells scans apart. The others say which image of a scan, or of what, a file is.
SCAN_ENTITIES = ("sub", "ses", "sample", "acq", "ce", "rec", "dir", "run", "mod", "flip", "inv")
# Of several files about the same kind of lesion, the first in this order is meant.
SUFFIXES = ("dseg", "points", "mask", "probseg")
TABLE, IMAGES = ".tsv", (".nii.gz", ".nii")
_PAIR = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9+]+)")


class PointFiles(NamedTuple):
    """A table, an image or both that hold points of one scan: ``stem`` is their common name."""

    stem: str
    suffix: str
    description: str
    table: Path | None
    image: Path | None

    @property
    def kind(self) -> str | None:
        """Kind of lesion that the name speaks of."""
        return kind_of(f"{self.description} {self.suffix}")


def entities_of(name: str) -> dict[str, str]:
    """Entities of a BIDS name, in its order: ``{"sub": "01", "desc": "cmb"}``."""
    parts = name.split(".")[0].split("_")
    return {m[1]: m[2] for m in map(_PAIR.fullmatch, parts) if m}


def scan_of(name: str) -> str:
    """The scan a file belongs to: those of its entities that tell scans apart."""
    pairs = entities_of(name).items()
    return "_".join(f"{key}-{value}" for key, value in pairs if key in SCAN_ENTITIES)


def _split(path: Path) -> tuple[str, str, str, str] | None:
    """Stem, suffix, description and extension of a table or image; None for other files."""
    extension = next((e for e in (TABLE, *IMAGES) if path.name.endswith(e)), None)
    if extension is None:
        return None
    stem = path.name.removesuffix(extension)
    found = entities_of(stem)
    last = stem.rsplit("_", 1)[-1]
    suffix = "" if _PAIR.fullmatch(last) else last
    description = " ".join(found[key] for key in ("desc", "label") if key in found)
    return stem, suffix, description, extension


def find_point_files(
    folder: Path, description: str | None = None
) -> dict[str, dict[str | None, PointFiles]]:
    """Files of points below a derivative dataset, by scan and kind.

    Parameters
    ----------
    folder : Path
        With ``sub-*`` folders.
    description : str, optional
        Take files of this ``desc`` or ``label`` alone; they hold microbleeds unless their rows
        say otherwise.

    Returns
    -------
    dict of dict
        Scan to kind (None: the name does not say) to files.

    Raises
    ------
    UsageError
        Several files of a scan hold the same kind.
    """
    sets: dict[str, dict[str, PointFiles]] = {}
    for path in sorted(folder.glob("sub-*/**/*")):
        split = _split(path)
        if split is None or not path.is_file():
            continue
        stem, suffix, said, extension = split
        if description is not None and description not in said.split():
            continue
        scan = sets.setdefault(scan_of(stem), {})
        known = scan.get(stem, PointFiles(stem, suffix, said, None, None))
        is_table = extension == TABLE
        scan[stem] = known._replace(table=path) if is_table else known._replace(image=path)
    chosen = {
        scan: _choose(list(files.values()), folder, description is not None)
        for scan, files in sets.items()
    }
    return {scan: files for scan, files in chosen.items() if files}


def _rank(files: PointFiles, asked: bool) -> int | None:
    """Place among the files of a scan, best first; None for what holds no points."""
    if files.suffix in ("dseg", "points"):
        return SUFFIXES.index(files.suffix)
    if files.suffix in ("scans", "sessions", "events") or (files.kind is None and not asked):
        return None
    return SUFFIXES.index(files.suffix) if files.suffix in SUFFIXES else len(SUFFIXES)


def _choose(files: list[PointFiles], folder: Path, asked: bool) -> dict[str | None, PointFiles]:
    """The files of one scan to read, by kind."""
    chosen: dict[str | None, PointFiles] = {}
    ranked = [(rank, one) for one in files if (rank := _rank(one, asked)) is not None]
    for kind in (MICROBLEED, CALCIFICATION, CANDIDATE, None):
        mine = [(rank, one) for rank, one in ranked if one.kind == kind]
        # What a name does not speak of is read only where no name speaks of microbleeds.
        if not mine or (kind is None and MICROBLEED in chosen):
            continue
        best = min(rank for rank, _ in mine)
        meant = [one for rank, one in mine if rank == best]
        if len(meant) > 1:
            raise UsageError(
                folder,
                f"{' and '.join(one.stem for one in meant)} may both be the "
                f"{kind or 'microbleed'} labels of one scan",
                "Say which: --description (results) or --labels-description (labels)",
            )
        chosen[kind] = meant[0]
    return chosen


def agree(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Whether two names may be of one scan: of one subject, with no entity that differs."""
    return first.get("sub") == second.get("sub") and all(
        second[key] == value for key, value in first.items() if key in second
    )


def pair_scans(results: Sequence[str], labels: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Which labels belong to which result.

    Names need not be alike: labels are often named by subject alone. Two names fit when they
    share the subject and differ in no entity that both have. Several results of one session may
    share labels, for they share scanner coordinates; those of several sessions may not.

    Returns
    -------
    pairs : dict
        Result to labels.
    doubtful : set
        Results that fit several labels, or labels that fit several sessions.
    """
    pairs, doubtful = {}, set()
    parsed = {name: entities_of(name) for name in {*results, *labels}}
    of_subject: dict[str, list[str]] = {}
    for name in labels:
        of_subject.setdefault(parsed[name].get("sub", ""), []).append(name)
    for result in results:
        fits = [
            name
            for name in of_subject.get(parsed[result].get("sub", ""), [])
            if agree(parsed[result], parsed[name])
        ]
        if result in fits:
            fits = [result]
        if len(fits) == 1:
            pairs[result] = fits[0]
        elif fits:
            doubtful.add(result)
    sessions: dict[str, set[str]] = {}
    for result, name in pairs.items():
        if "ses" not in parsed[name]:
            sessions.setdefault(name, set()).add(parsed[result].get("ses", ""))
    unclear = {result for result, name in pairs.items() if len(sessions.get(name, ())) > 1}
    return {r: n for r, n in pairs.items() if r not in unclear}, doubtful | unclear
