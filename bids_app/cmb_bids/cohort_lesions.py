"""The lesions of all scans of a cohort, in one table."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from cmb_bids.cohort_scans import KEYS, MISSING, PROCESSED, Pile, Problem, read_cells
from cmb_bids.columns import LESION_COLUMNS
from cmb_bids.errors import CmbError

# Kind of lesion -> the description in the name of its table.
KINDS = {"microbleed": "desc-cmb", "calcification": "desc-calcification"}
LESION_KEYS = (*KEYS, "filename", "kind")


def lesion_table(filename: str, kind: str) -> str | None:
    """The table of a kind of lesions, from the name of the scan's microbleed image.

    None where the name is not one of ours.
    """
    stem = filename.removesuffix(".gz").removesuffix(".nii")
    own = f"_{KINDS['microbleed']}_"
    if stem == filename or own not in stem:
        return None
    return f"{stem.replace(own, f'_{KINDS[kind]}_')}.tsv"


def gather_lesions(directory: Path, scans: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Every lesion of every scan, as text.

    Parameters
    ----------
    directory : Path
        The derivative dataset.
    scans : DataFrame of text
        ``participant_id``, ``session_id``, ``filename``, ``processing``.

    Returns
    -------
    lesions : DataFrame of text
        `LESION_KEYS`, then the columns of the lesion tables; a row per lesion, counted or not.
    problems : list of Problem
        Tables that are missing or damaged.
    """
    pile, problems = Pile(), []
    root = os.fspath(directory)
    done = scans[scans["processing"] == PROCESSED]
    keys = zip(done["participant_id"], done["session_id"], done["filename"], strict=True)
    for participant, session, filename in keys:
        folder = os.path.join(participant, *([] if session == MISSING else [session]))
        for kind in KINDS:
            name = lesion_table(filename, kind)
            if name is None:
                message = f"{participant}: '{filename}' does not name a table of lesions"
                problems.append(Problem(participant, session, message))
                break
            try:
                names, rows = read_cells(os.path.join(root, folder, name))
            except CmbError as error:
                problems.append(Problem(participant, session, str(error)))
                continue
            for row in rows:
                pile.add((*LESION_KEYS, *names), [participant, session, filename, kind, *row])
    return pile.to_table([*LESION_KEYS, *LESION_COLUMNS]), problems
