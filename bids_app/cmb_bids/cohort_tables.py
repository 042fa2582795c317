"""The group level's tables on disk, each with a dictionary of its columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cmb_bids import __version__
from cmb_bids.cohort_lesions import LESION_KEYS
from cmb_bids.cohort_scans import DAMAGED, KEYS, MISSING, NOT_PROCESSED, PROCESSED, name_covariates
from cmb_bids.columns import LESION_COLUMNS, SCAN_COLUMNS
from cmb_bids.volumes import read_json, write_json, written_whole

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
            DAMAGED: "The scans table could not be read. Every result is n/a",
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
LESION_KEY_COLUMNS: dict[str, dict[str, Any]] = {
    **KEY_COLUMNS,
    "filename": {"Description": "The scan, as 'filename' in group_microbleeds.csv names it."},
    "kind": {
        "Description": "Kind of lesion.",
        "Levels": {
            "microbleed": "From the scan's desc-cmb table",
            "calcification": "From the scan's desc-calcification table",
        },
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
OTHER_VERSION = {"Description": "Written by another version of cmb-bids."}


def write_cells(path: Path, table: pd.DataFrame) -> None:
    """Write text, whole or not at all: commas and quotes in a CSV, neither in a TSV."""
    columns = [table[name].tolist() for name in table.columns]
    with written_whole(path) as beside, open(beside, "w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".csv":
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(table.columns)
            writer.writerows(zip(*columns, strict=True))
        else:
            # BIDS tables know no quotes: a quote mark is a character like any other.
            stream.write("\t".join(table.columns) + "\n")
            stream.writelines("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


def _write_described(path: Path, table: pd.DataFrame, described: Mapping[str, Any]) -> list[Path]:
    """A table and the JSON beside it."""
    # The description goes first: a table without its JSON would be invalid, the reverse is not.
    write_json(path.with_suffix(".json"), described)
    write_cells(path, table)
    return [path, path.with_suffix(".json")]


def write_phenotype(directory: Path, chosen: pd.DataFrame) -> list[Path]:
    """phenotype/microbleeds.tsv and .json.

    Parameters
    ----------
    directory : Path
    chosen : DataFrame of text
        A row per participant, with ``n_scans`` and ``cmb_total``.
    """
    keys = [name for name in KEYS if name != "session_id" or (chosen[name] != MISSING).any()]
    first = [*keys, *STATUS_COLUMNS, *PHENOTYPE_COLUMNS]
    rest = [n for n in chosen.columns if n not in (*KEYS, *first, *TOTAL_COLUMNS)]
    columns = [*first, *rest, *TOTAL_COLUMNS]
    known = {**KEY_COLUMNS, **STATUS_COLUMNS, **PHENOTYPE_COLUMNS, **TOTAL_COLUMNS, **SCAN_COLUMNS}
    described = {
        "MeasurementToolMetadata": {**MEASUREMENT_TOOL, "SoftwareVersion": __version__},
        **{name: known.get(name, OTHER_VERSION) for name in columns if name != "participant_id"},
    }
    return _write_described(directory / "phenotype" / "microbleeds.tsv", chosen[columns], described)


def describe_covariates(directory: Path, renamed: Mapping[str, str]) -> dict[str, Any]:
    """Columns that come from participants.tsv, in the user's own words where given."""
    path = directory / "participants.json"
    said = read_json(path) if path.is_file() else {}
    fallback = {"Description": "From participants.tsv."}
    return {new: said.get(old, fallback) for old, new in renamed.items()}


def write_scans(directory: Path, joined: pd.DataFrame, renamed: Mapping[str, str]) -> list[Path]:
    """group_microbleeds.csv and .json: a row per scan, covariates before the results.

    Parameters
    ----------
    directory : Path
    joined : DataFrame of text
        From `cmb_bids.cohort_scans.join_covariates`.
    renamed : mapping
        Column of participants.tsv -> its name in ``joined``.
    """
    known = {**KEY_COLUMNS, **STATUS_COLUMNS, **SCAN_COLUMNS, **TOTAL_COLUMNS}
    return _write_wide(directory / "group_microbleeds.csv", joined, known, renamed)


def write_lesions(directory: Path, lesions: pd.DataFrame, participants: pd.DataFrame) -> list[Path]:
    """group_lesions.csv and .json: a row per lesion, covariates before what was measured.

    Parameters
    ----------
    directory : Path
    lesions : DataFrame of text
        From `cmb_bids.cohort_lesions.gather_lesions`.
    participants : DataFrame of text
        From `cmb_bids.cohort_scans.read_participants`.
    """
    renamed = name_covariates(participants.columns, lesions.columns)
    values = participants.rename(columns=renamed).reindex(lesions["participant_id"])
    values = values.where(values.notna(), MISSING).astype(object).set_index(lesions.index)
    keys = list(LESION_KEYS)
    rest = [name for name in lesions.columns if name not in keys]
    joined = pd.concat([lesions[keys], values, lesions[rest]], axis=1)
    known = {**LESION_KEY_COLUMNS, **{k: v for k, v in LESION_COLUMNS.items() if k not in keys}}
    return _write_wide(directory / "group_lesions.csv", joined, known, renamed)


def _write_wide(
    path: Path, joined: pd.DataFrame, known: Mapping[str, Any], renamed: Mapping[str, str]
) -> list[Path]:
    described = {**known, **describe_covariates(path.parent, renamed)}
    said = {name: described.get(name, OTHER_VERSION) for name in joined.columns}
    return _write_described(path, joined, said)


def as_table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    """Rows of numbers as a table of text; None is n/a."""
    columns = list(columns)
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object)


def _cell(value: Any) -> str:
    if value is None or value != value or value == "":
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
