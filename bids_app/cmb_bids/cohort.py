"""The group level: many scans rows into one table per participant and one per scan.

Works from derivatives alone. Tables are read as text, line by line: forty thousand small files
take seconds that way and minutes with a data frame each.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmb_bids import __version__
from cmb_bids.columns import FAIL, PASS, SCAN_COLUMNS, WARN
from cmb_bids.errors import BadData, InputMissing
from cmb_bids.volumes import read_json, write_json, written_whole

MISSING = "n/a"
Row = dict[str, str]

PROCESSED, NOT_PROCESSED = "processed", "not_processed"

# Columns that the group level adds in front of the scans columns.
KEY_COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant."},
    "session_id": {"Description": "Session; n/a for a participant without sessions."},
}
STATUS_COLUMNS: dict[str, dict[str, Any]] = {
    "processing": {
        "Description": "Whether a result exists.",
        "Levels": {
            PROCESSED: "There is a scans row, even where it holds no lesion",
            NOT_PROCESSED: (
                "No scans row: the scan failed or was never run. Every result is n/a; this is "
                "not a count of zero"
            ),
        },
    },
}
TOTAL_COLUMNS: dict[str, dict[str, Any]] = {
    "cmb_total": {"Description": "Definite and possible counted microbleeds together."},
}
PHENOTYPE_COLUMNS: dict[str, dict[str, Any]] = {
    "n_scans": {
        "Description": "Number of scans of the participant, of all sessions, with a result."
    },
}
MEASUREMENT_TOOL = {
    "Description": (
        "Cerebral microbleeds counted by cmb-bids on susceptibility-weighted MRI. One row per "
        "participant. Where several scans exist the row shows one of them, named in 'filename': "
        "the best by quality check (pass before warn before fail), then complex before "
        "magnitude-only input, then the first session, then the shortest and alphabetically first "
        "file name. Scans are never added up, for they show the same lesions; every session is in "
        "group_microbleeds.csv. Research use only."
    ),
}
_QUALITY_ORDER = {PASS: 0, WARN: 1, FAIL: 2}
_INPUT_ORDER = {"complex": 0, "magnitude": 1}


@dataclass(frozen=True)
class GroupSummary:
    """What the group level found, for the person at the terminal.

    ``participants`` and ``scans`` with a result, those ``not_processed`` (participants or
    sessions) and
    ``flagged`` (scans with qc_status fail), ``positive`` (participants with a definite
    microbleed), ``microbleeds`` (definite, over participants), and the files written.
    """

    participants: int
    scans: int
    not_processed: int
    flagged: int
    positive: int
    microbleeds: int
    files: tuple[Path, ...]


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a TSV as dictionaries of text, in the order of the file.

    Raises
    ------
    BadData
        The file has no header, a row of another length, or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            lines = stream.read().splitlines()
    except UnicodeDecodeError as error:
        raise BadData(path, "is not UTF-8 text", "Save it as UTF-8") from error
    except OSError as error:
        raise InputMissing(
            path, f"cannot be read ({error.strerror})", "Check its permissions"
        ) from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise BadData(path, "is empty", "Remove it and run the participant level again")
    names = lines[0].split("\t")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(names):
            raise BadData(
                path,
                f"has {len(cells)} cells in row {number} under {len(names)} column names",
                "Mend the row, or remove the file and run the participant level again",
            )
        rows.append(dict(zip(names, cells, strict=True)))
    return rows


def _folders(parent: Path, prefix: str) -> list[str]:
    """Names of the sub-folders that start with a prefix, sorted."""
    with os.scandir(parent) as entries:
        return sorted(e.name for e in entries if e.name.startswith(prefix) and e.is_dir())


def _tables_of(participant: Path) -> Iterator[tuple[str, str]]:
    """Session label (n/a for none) and path of each scans table a participant ought to have."""
    name = participant.name
    with os.scandir(participant) as entries:
        inside = {entry.name: entry.path for entry in entries}
    sessions = sorted(entry for entry in inside if entry.startswith("ses-"))
    own = f"{name}_scans.tsv"
    if own in inside or not sessions:
        yield MISSING, os.path.join(participant, own)
    for session in sessions:
        yield session, os.path.join(inside[session], f"{name}_{session}_scans.tsv")


def gather_scans(derivatives_dir: Path) -> tuple[list[Row], list[Row]]:
    """Every scans row below a derivative dataset, and the folders that have none.

    Returns
    -------
    rows : list of dict
        ``participant_id``, ``session_id``, then the columns of the scans table.
    empty : list of dict
        ``participant_id`` and ``session_id`` of each participant or session folder without rows.

    Raises
    ------
    BadData
        A scans table is damaged or lacks a column the group level needs.
    """
    rows: list[Row] = []
    empty: list[Row] = []
    for participant in _folders(derivatives_dir, "sub-"):
        for session, path in _tables_of(derivatives_dir / participant):
            key = {"participant_id": participant, "session_id": session}
            found = read_rows(path) if os.path.isfile(path) else []
            if found and not {"filename", "cmb_definite"} <= found[0].keys():
                raise BadData(
                    path,
                    "has no column 'filename' or 'cmb_definite'",
                    "Remove it and run the participant level again",
                )
            rows += [{**key, **row} for row in found]
            empty += [] if found else [key]
    return rows, empty


def read_participants(derivatives_dir: Path) -> tuple[dict[str, Row], list[str]]:
    """participants.tsv by participant, and its column names after ``participant_id``.

    Both are empty where the derivative has no such file.

    Raises
    ------
    BadData
        It has no ``participant_id``, or one participant twice.
    """
    path = derivatives_dir / "participants.tsv"
    if not path.is_file():
        return {}, []
    rows = read_rows(path)
    known: dict[str, Row] = {}
    for row in rows:
        label = row.get("participant_id")
        if not label or label in known:
            problem = f"names {label} twice" if label else "has no column 'participant_id'"
            raise BadData(path, problem, "Mend the file")
        known[label] = row
    columns = [name for name in (rows[0] if rows else {}) if name != "participant_id"]
    return known, columns


def _as_count(row: Mapping[str, str], name: str) -> int | None:
    """A count in a row, None where it is missing.

    Raises
    ------
    BadData
        The cell is neither a whole number nor n/a.
    """
    text = row.get(name, MISSING)
    if text == MISSING:
        return None
    try:
        number = float(text)  # a table once opened in a spreadsheet may say 2.0
        return int(number) if number.is_integer() else int(text)
    except ValueError:
        raise BadData(
            f"{row['participant_id']} {row.get('filename', '')}".strip(),
            f"has '{text}' in column '{name}' of its scans table",
            "Remove the table and run the participant level again",
        ) from None


def _with_total(row: Row) -> Row:
    """The row with ``cmb_total`` and ``processing``."""
    definite, possible = _as_count(row, "cmb_definite"), _as_count(row, "cmb_possible")
    total = MISSING if definite is None or possible is None else str(definite + possible)
    return {**row, "processing": PROCESSED, "cmb_total": total}


def preference(row: Mapping[str, str]) -> tuple[int, int, str, int, str]:
    """Sort key that puts the scan to show for a participant first (`MEASUREMENT_TOOL`)."""
    filename = row.get("filename", "")
    return (
        _QUALITY_ORDER.get(row.get("qc_status", ""), len(_QUALITY_ORDER)),
        _INPUT_ORDER.get(row.get("input", ""), len(_INPUT_ORDER)),
        row.get("session_id", MISSING),
        len(filename),
        filename,
    )


def choose_scans(rows: Iterable[Row]) -> list[Row]:
    """One row per participant, the preferred scan, with ``n_scans``."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["participant_id"], []).append(row)
    chosen = []
    for _, scans in sorted(groups.items()):
        best = min(scans, key=preference)
        chosen.append({**best, "n_scans": str(len(scans))})
    return chosen


def list_unprocessed(
    rows: Iterable[Row], empty: Iterable[Row], participants: Iterable[str]
) -> list[Row]:
    """A row for every folder without results and every participant without a folder.

    Their results are all n/a, which is not a count of zero.
    """
    empty = list(empty)
    seen = {row["participant_id"] for row in [*rows, *empty]}
    never = [
        {"participant_id": label, "session_id": MISSING}
        for label in sorted(set(participants) - seen)
    ]
    return [{**key, "processing": NOT_PROCESSED} for key in [*empty, *never]]


def _scan_columns(rows: Iterable[Row]) -> list[str]:
    """Known scans columns in their order, then any other a newer version wrote."""
    extra: dict[str, None] = {}
    known = {*KEY_COLUMNS, *STATUS_COLUMNS, *TOTAL_COLUMNS, *SCAN_COLUMNS}
    for row in rows:
        extra.update(dict.fromkeys(name for name in row if name not in known))
    return [*SCAN_COLUMNS, *extra]


def _write_cells(path: Path, columns: list[str], rows: Iterable[Row], delimiter: str) -> None:
    """Write rows of text, whole or not at all; a missing cell is n/a."""
    with written_whole(path) as beside, open(beside, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(
            stream,
            delimiter=delimiter,
            lineterminator="\n",
            # BIDS tables know no quotes: a quote mark is a character like any other.
            quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
            quotechar='"' if delimiter == "," else None,
        )
        writer.writerow(columns)
        writer.writerows([row.get(name) or MISSING for name in columns] for row in rows)


def _describe_phenotype(columns: Iterable[str]) -> dict[str, Any]:
    """JSON of the phenotype table."""
    known = {**KEY_COLUMNS, **STATUS_COLUMNS, **PHENOTYPE_COLUMNS, **TOTAL_COLUMNS, **SCAN_COLUMNS}
    fallback = {"Description": "Written by another version of cmb-bids."}
    return {
        "MeasurementToolMetadata": {**MEASUREMENT_TOOL, "SoftwareVersion": __version__},
        **{name: known.get(name, fallback) for name in columns if name != "participant_id"},
    }


def _describe_participants(derivatives_dir: Path, columns: Iterable[str]) -> dict[str, Any]:
    """Descriptions of the columns that come from participants.tsv, the user's own where given."""
    path = derivatives_dir / "participants.json"
    said = read_json(path) if path.is_file() else {}
    return {name: said.get(name, {"Description": "From participants.tsv."}) for name in columns}


def collect_group(derivatives_dir: str | os.PathLike[str]) -> GroupSummary:
    """Write the group tables of a derivative dataset.

    ``phenotype/microbleeds.tsv`` and ``.json`` hold one row per participant, as BIDS wants it;
    ``group_microbleeds.csv`` and ``.json`` one row per scan, joined with participants.tsv.
    Participants of participants.tsv, or with a folder, that have no scans row are listed as not
    processed.

    Parameters
    ----------
    derivatives_dir : path-like
        The output directory of the participant level.

    Returns
    -------
    GroupSummary

    Raises
    ------
    InputMissing
        The directory does not exist or holds no scans row.
    BadData
        A table is damaged.
    CannotCreate, IOFailure
        The tables cannot be written.
    """
    directory = Path(derivatives_dir)
    if not directory.is_dir():
        raise InputMissing(directory, "no such directory", "Run the participant level first")
    rows, empty = gather_scans(directory)
    if not rows:
        raise InputMissing(
            directory,
            "no sub-*_scans.tsv with a row in it was found",
            "Run the participant level first, with the same output directory",
        )
    participants, covariates = read_participants(directory)
    scans = [_with_total(row) for row in rows]
    absent = list_unprocessed(rows, empty, participants)
    chosen = choose_scans(scans)
    written = [
        *_write_phenotype(directory, chosen, absent),
        *_write_wide(directory, scans, absent, participants, covariates),
    ]
    return _summarise(scans, chosen, absent, written)


def _write_phenotype(directory: Path, chosen: list[Row], absent: list[Row]) -> list[Path]:
    """phenotype/microbleeds.tsv and .json."""
    sessions = any(row["session_id"] != MISSING for row in [*chosen, *absent])
    columns = [
        *(name for name in KEY_COLUMNS if name != "session_id" or sessions),
        *STATUS_COLUMNS,
        *PHENOTYPE_COLUMNS,
        *(name for name in _scan_columns(chosen) if name not in PHENOTYPE_COLUMNS),
        *TOTAL_COLUMNS,
    ]
    people = {row["participant_id"]: {"n_scans": "0", **row} for row in reversed(absent)}
    people |= {row["participant_id"]: row for row in chosen}
    rows = [people[label] for label in sorted(people)]
    table = directory / "phenotype" / "microbleeds.tsv"
    # The description goes first: a table without its JSON would be invalid, the reverse is not.
    write_json(table.with_suffix(".json"), _describe_phenotype(columns))
    _write_cells(table, columns, rows, "\t")
    return [table, table.with_suffix(".json")]


def _write_wide(
    directory: Path,
    scans: list[Row],
    absent: list[Row],
    participants: dict[str, Row],
    covariates: list[str],
) -> list[Path]:
    """group_microbleeds.csv and its description, covariates before the results."""
    own = [*KEY_COLUMNS, *STATUS_COLUMNS, *_scan_columns(scans), *TOTAL_COLUMNS]
    # A covariate that shares a name with one of our columns keeps both apart.
    renamed = {name: f"participants_{name}" if name in own else name for name in covariates}
    columns = [*KEY_COLUMNS, *renamed.values(), *(c for c in own if c not in KEY_COLUMNS)]
    rows = sorted(
        [*scans, *absent],
        key=lambda row: (row["participant_id"], row["session_id"], row.get("filename", "")),
    )
    joined = []
    for row in rows:
        person = participants.get(row["participant_id"], {})
        extra = {new: person.get(old, MISSING) for old, new in renamed.items()}
        joined.append({**extra, **row})
    described = {**KEY_COLUMNS, **STATUS_COLUMNS, **SCAN_COLUMNS, **TOTAL_COLUMNS}
    described |= {
        renamed[name]: text for name, text in _describe_participants(directory, covariates).items()
    }
    fallback = {"Description": "Written by another version of cmb-bids."}
    table = directory / "group_microbleeds.csv"
    write_json(table.with_suffix(".json"), {c: described.get(c, fallback) for c in columns})
    _write_cells(table, columns, joined, ",")
    return [table, table.with_suffix(".json")]


def _summarise(
    scans: list[Row], chosen: list[Row], absent: list[Row], written: list[Path]
) -> GroupSummary:
    """Totals over the tables."""
    counts = [_as_count(row, "cmb_definite") for row in chosen]
    return GroupSummary(
        participants=len(chosen),
        scans=len(scans),
        not_processed=len(absent),
        flagged=sum(row.get("qc_status") == FAIL for row in scans),
        positive=sum(bool(n) for n in counts),
        microbleeds=sum(n or 0 for n in counts),
        files=tuple(written),
    )
