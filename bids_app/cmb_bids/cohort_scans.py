"""The scans of a cohort: every scans table below a derivative dataset, as one table of text.

Tables are read as text, line by line, and kept by column with equal
texts stored once: forty thousand small files take seconds that way and minutes, and gigabytes,
with a data frame each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cmb_bids.columns import FAIL, PASS, SCAN_COLUMNS, WARN
from cmb_bids.errors import BadData, CmbError, InputMissing

MISSING = "n/a"
PROCESSED, NOT_PROCESSED, DAMAGED = "processed", "not_processed", "damaged"
NEEDED = ("filename", "cmb_definite")
COUNTS = ("cmb_definite", "cmb_possible")
REMEDY = "Remove it and run the participant level again"
# Column names that a scans table shares with the keys before it.
KEYS = ("participant_id", "session_id")
_QUALITY_ORDER = {PASS: 0, WARN: 1, FAIL: 2}
_INPUT_ORDER = {"complex": 0, "magnitude": 1}


class Problem(NamedTuple):
    """A table that could not be used: whose it is, and what is wrong with it."""

    participant_id: str
    session_id: str
    message: str


# -------------------------------------------------------------------------------- reading


def read_cells(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Column names and rows of a TSV, all as text.

    Raises
    ------
    InputMissing
        It is not there or cannot be read.
    BadData
        The file has no header, a column twice, a row of another length, or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            lines = stream.read().splitlines()
    except UnicodeDecodeError as error:
        raise BadData(path, "is not UTF-8 text", "Save it as UTF-8") from error
    except OSError as error:
        raise InputMissing(
            path, f"cannot be read ({error.strerror})", "Check that it is there and its permissions"
        ) from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise BadData(path, "is empty", REMEDY)
    names = tuple(map(sys.intern, lines[0].split("\t")))
    if len(set(names)) < len(names):
        raise BadData(path, "has two columns of one name", "Rename one, or make the file anew")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(names):
            raise BadData(
                path,
                f"has {len(cells)} cells in row {number} under {len(names)} column names",
                "Mend the row, or remove the file and run the participant level again",
            )
        rows.append(list(map(sys.intern, cells)))
    return names, rows


class Pile:
    """Rows under different column names, put into one table at the end.

    Rows with the same names lie together as lists; a row costs a pointer a cell.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, ...], list[list[str]]] = {}
        self._order: dict[tuple[str, ...], list[int]] = {}
        self._count = 0

    def add(self, names: tuple[str, ...], cells: list[str]) -> None:
        """Add one row."""
        self._rows.setdefault(names, []).append(cells)
        self._order.setdefault(names, []).append(self._count)
        self._count += 1

    def to_table(self, first: Iterable[str] = ()) -> pd.DataFrame:
        """All rows in the order they came, text; a column a row does not have is n/a.

        Parameters
        ----------
        first : iterable of str
            Columns to begin with, in this order, whether or not a row has them.
        """
        parts = [
            pd.DataFrame(rows, columns=list(names), index=self._order[names], dtype=object)
            for names, rows in self._rows.items()
        ]
        columns = dict.fromkeys(first)
        for names in self._rows:
            columns.update(dict.fromkeys(names))
        if not parts:
            return pd.DataFrame(columns=list(columns), dtype=object)
        whole = parts[0] if len(parts) == 1 else pd.concat(parts).sort_index()
        whole = whole.reindex(columns=list(columns))
        # A copy lies in one piece, however many columns had to be added.
        return whole.where(whole.notna(), MISSING).replace("", MISSING).copy()


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


def read_scans_table(path: str) -> tuple[tuple[str, ...], list[list[str]]]:
    """Column names and rows of a scans table that the group level can use.

    Raises
    ------
    BadData
        As `read_cells`, or it lacks a column, or a count is no whole number.
    """
    names, rows = read_cells(path)
    for needed in NEEDED:
        if needed not in names:
            raise BadData(path, f"has no column '{needed}'", REMEDY)
    taken = set(names) & set(KEYS)
    if taken:
        raise BadData(path, f"has a column '{min(taken)}', which is the group level's", REMEDY)
    for column in (names.index(name) for name in COUNTS if name in names):
        for row in rows:
            row[column] = _checked_count(row[column], names[column], path)
    return names, rows


def _checked_count(text: str, column: str, path: str) -> str:
    """A count as BIDS writes it; a table once opened in a spreadsheet may say 2.0."""
    if text in (MISSING, "") or text.isdecimal():
        return text or MISSING
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number < 0 or not number.is_integer():
        raise BadData(path, f"has '{text}' in column '{column}', which is no count", REMEDY)
    return str(int(number))


def gather_scans(derivatives_dir: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """Every scans row below a derivative dataset, and every folder without one.

    Returns
    -------
    scans : DataFrame of text
        ``participant_id``, ``session_id``, ``processing``, then the columns of the scans tables:
        those of this version first. A participant or session folder without rows, or with a
        damaged table, has one row of n/a.
    problems : list of Problem
        Damaged tables.
    """
    pile, problems = Pile(), []
    keys = (*KEYS, "processing")
    for participant in _folders(derivatives_dir, "sub-"):
        for session, path in _tables_of(derivatives_dir / participant):
            rows: list[list[str]] = []
            state = NOT_PROCESSED
            try:
                if os.path.isfile(path):
                    names, rows = read_scans_table(path)
            except CmbError as error:
                problems.append(Problem(participant, session, str(error)))
                state = DAMAGED
            for row in rows:
                pile.add((*keys, *names), [participant, session, PROCESSED, *row])
            if not rows:
                pile.add(keys, [participant, session, state])
    return pile.to_table([*keys, *SCAN_COLUMNS]), problems


def read_participants(derivatives_dir: Path) -> pd.DataFrame:
    """participants.tsv as text, indexed by ``participant_id``; empty where there is none.

    Raises
    ------
    BadData
        It has no ``participant_id``, or one participant twice.
    """
    path = derivatives_dir / "participants.tsv"
    if not path.is_file():
        return pd.DataFrame(index=pd.Index([], name="participant_id"))
    names, rows = read_cells(path)
    if "participant_id" not in names:
        raise BadData(path, "has no column 'participant_id'", "Mend the file")
    table = pd.DataFrame(rows, columns=list(names), dtype=object)
    repeated = table["participant_id"][table["participant_id"].duplicated()]
    if len(repeated):
        raise BadData(path, f"names {repeated.iloc[0]} twice", "Mend the file")
    return table.set_index("participant_id").replace("", MISSING)


# -------------------------------------------------------------------------------- joining


def add_totals(scans: pd.DataFrame) -> pd.DataFrame:
    """The scans with ``cmb_total``, definite and possible together."""
    parts = [pd.to_numeric(scans[name], errors="coerce") for name in COUNTS]
    total = parts[0] + parts[1]
    text = total.map(lambda n: MISSING if n != n else str(int(n))).astype(object)
    return scans.assign(cmb_total=text)


def add_unseen(scans: pd.DataFrame, participants: Iterable[str]) -> pd.DataFrame:
    """The scans with a row of n/a for every participant without a folder."""
    never = sorted(set(participants) - set(scans["participant_id"]))
    if not never:
        return scans
    rows = pd.DataFrame(MISSING, index=range(len(never)), columns=scans.columns, dtype=object)
    return pd.concat(
        [scans, rows.assign(participant_id=never, processing=NOT_PROCESSED)], ignore_index=True
    )


def choose_scans(scans: pd.DataFrame) -> pd.DataFrame:
    """One row per participant: the scan that stands for them.

    A result before none; then the best by quality check (pass, warn, fail), complex before
    magnitude-only input, the first session, the shortest and alphabetically first file name.

    Parameters
    ----------
    scans : DataFrame
        ``participant_id`` and, where known, ``processing``, ``qc_status``, ``input``,
        ``session_id``, ``filename``.

    Returns
    -------
    DataFrame
        Rows of ``scans``, by participant.
    """
    if not scans["participant_id"].duplicated().any():
        return scans.sort_values("participant_id", kind="stable")

    def text(name: str) -> pd.Series:
        known = scans[name] if name in scans else pd.Series(MISSING, index=scans.index)
        return known.astype(object).where(known.notna(), MISSING).astype(str)

    order = pd.DataFrame(
        {
            "participant": scans["participant_id"],
            "absent": text("processing").isin([NOT_PROCESSED, DAMAGED]),
            "quality": text("qc_status").map(_QUALITY_ORDER).fillna(len(_QUALITY_ORDER)),
            "input": text("input").map(_INPUT_ORDER).fillna(len(_INPUT_ORDER)),
            "session": text("session_id"),
            "length": text("filename").str.len(),
            "filename": text("filename"),
        }
    )
    order = order.sort_values(list(order.columns), kind="stable")
    return scans.loc[order.index[~order["participant"].duplicated()]]


def count_scans(scans: pd.DataFrame) -> pd.Series:
    """Number of scans with a result, by participant."""
    return (scans["processing"] == PROCESSED).groupby(scans["participant_id"]).sum()


def name_covariates(columns: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Column of participants.tsv -> its name beside results, which keep theirs."""
    own = set(taken)
    return {name: f"participants_{name}" if name in own else name for name in columns}


def join_covariates(
    table: pd.DataFrame, participants: pd.DataFrame, renamed: Mapping[str, str]
) -> pd.DataFrame:
    """The table with covariates between its keys and its results."""
    joined = participants.rename(columns=dict(renamed)).reindex(table["participant_id"])
    joined = joined.where(joined.notna(), MISSING).astype(object).set_index(table.index)
    keys = list(KEYS)
    rest = [name for name in table.columns if name not in keys]
    return pd.concat([table[keys], joined, table[rest]], axis=1)
