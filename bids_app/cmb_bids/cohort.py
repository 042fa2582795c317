"""The group level: tables, statistics and page of everybody in a derivative dataset.

Works from derivatives alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cmb_bids.cohort_lesions import gather_lesions
from cmb_bids.cohort_scans import (
    PROCESSED,
    Problem,
    add_totals,
    add_unseen,
    choose_scans,
    count_scans,
    gather_scans,
    join_covariates,
    name_covariates,
    read_participants,
)
from cmb_bids.cohort_statistics import read_settings, write_statistics
from cmb_bids.cohort_tables import write_lesions, write_phenotype, write_scans
from cmb_bids.columns import FAIL
from cmb_bids.errors import BadData, InputMissing


@dataclass(frozen=True)
class GroupSummary:
    """What the group level found, for the person at the terminal.

    ``participants`` and ``scans`` with a result, those ``not_processed`` (participants or
    sessions) and ``flagged`` (scans with qc_status fail), ``positive`` (participants with a
    definite microbleed), ``microbleeds`` (definite, over participants), ``problems`` (tables that
    could not be used) and the files written.
    """

    participants: int
    scans: int
    not_processed: int
    flagged: int
    positive: int
    microbleeds: int
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]


def collect_group(
    derivatives_dir: str | os.PathLike[str],
    section: Mapping[str, Any] | None = None,
    covariates: Iterable[str] | None = None,
) -> GroupSummary:
    """Write the group tables, statistics and page of a derivative dataset.

    ``phenotype/microbleeds.tsv`` holds one row per participant, as BIDS wants it;
    ``group_microbleeds.csv`` one per scan and ``group_lesions.csv`` one per lesion, both joined
    with participants.tsv; ``group_statistics.json`` and the tables beside it the statistics
    (`cmb_bids.statistics`), ``group.html`` the page. A damaged table of one scan is named and left
    out; it stops nobody else's.

    Parameters
    ----------
    derivatives_dir : path-like
        The output directory of the participant level.
    section : mapping, optional
        Section ``group`` of the configuration.
    covariates : iterable of str, optional
        Columns the models adjust for, in place of the configuration's.

    Returns
    -------
    GroupSummary

    Raises
    ------
    InputMissing
        The directory does not exist or holds no scans row.
    BadData
        participants.tsv is damaged, or every scans table is.
    UsageError
        The configuration names a column that participants.tsv does not have.
    CannotCreate, IOFailure
        The tables cannot be written.
    """
    directory = Path(derivatives_dir)
    if not directory.is_dir():
        raise InputMissing(directory, "no such directory", "Run the participant level first")
    scans, problems = gather_scans(directory)
    _refuse_nothing(directory, scans, problems)
    participants = read_participants(directory)
    settings = read_settings(directory, section, covariates, participants, scans)
    scans = add_totals(add_unseen(scans, participants.index))
    scans = scans.sort_values(["participant_id", "session_id", "filename"], ignore_index=True)
    chosen = choose_scans(scans)
    chosen = chosen.assign(n_scans=count_scans(scans).reindex(chosen["participant_id"]).to_numpy())
    renamed = name_covariates(participants.columns, scans.columns)
    lesions, missing = gather_lesions(directory, scans)
    files = [
        *write_phenotype(directory, chosen),
        *write_scans(directory, join_covariates(scans, participants, renamed), renamed),
        *write_lesions(directory, lesions, participants),
    ]
    files += write_statistics(
        directory, join_covariates(chosen, participants, renamed), settings, lesions
    )
    return _summarise(scans, chosen, [*problems, *missing], files)


def _refuse_nothing(directory: Path, scans: pd.DataFrame, problems: list[Problem]) -> None:
    """A cohort without a single result is an error, not a set of empty tables."""
    if (scans["processing"] == PROCESSED).any():
        return
    if problems:
        raise BadData(
            directory,
            f"no scans table can be used; the first problem: {problems[0].message}",
            "Mend them, or run the participant level again",
        )
    raise InputMissing(
        directory,
        "no sub-*_scans.tsv with a row in it was found",
        "Run the participant level first, with the same output directory",
    )


def _summarise(
    scans: pd.DataFrame, chosen: pd.DataFrame, problems: list[Problem], files: list[Path]
) -> GroupSummary:
    """Totals over the tables."""
    counts = pd.to_numeric(chosen["cmb_definite"], errors="coerce").fillna(0)
    processed = scans["processing"] == PROCESSED
    return GroupSummary(
        participants=int((chosen["processing"] == PROCESSED).sum()),
        scans=int(processed.sum()),
        not_processed=int((~processed).sum()),
        flagged=int((scans["qc_status"] == FAIL).sum()),
        positive=int((counts > 0).sum()),
        microbleeds=int(counts.sum()),
        problems=tuple(problems),
        files=tuple(files),
    )
