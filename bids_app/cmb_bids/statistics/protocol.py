"""The protocol factor: scans that were acquired alike share a level.

Field strength, echo time and voxel size change the number of microbleeds seen two to three times
over, so a cohort of several protocols is adjusted for them.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from cmb_bids.statistics.covariates import CATEGORICAL, FEWEST_IN_LEVEL, Covariate, as_text

NAME = "protocol"
OTHER, UNKNOWN = "other protocols", "unknown protocol"
FIELD_STRENGTHS_T = (0.5, 1.0, 1.5, 3.0, 7.0)
MOST_PROTOCOLS = 12
# What makes a protocol: column of the scans table and how its value is worded.
COLUMNS = ("field_strength_t", "echo_times_ms", "voxel_size_mm", "input")


def _field_strength(text: str | None) -> str | None:
    """'2.89362' and '3' are both 3 T."""
    try:
        field = float(text or "")
    except ValueError:
        return None
    nearest = min(FIELD_STRENGTHS_T, key=lambda known: abs(known - field))
    return f"{nearest if abs(nearest - field) <= 0.15 else field:g} T"


def _rounded(text: str | None, digits: int) -> list[str] | None:
    """Numbers in a text, rounded: sites differ in the last digit of what their headers say."""
    numbers = re.findall(r"\d+(?:\.\d+)?", text or "")
    return [f"{round(float(number), digits):g}" for number in numbers] or None


def _echo_times(text: str | None) -> str | None:
    times = _rounded(text, 0)
    return f"TE {'/'.join(times)} ms" if times else None


def _voxel(text: str | None) -> str | None:
    edges = _rounded(text, 1)
    return f"{'x'.join(edges)} mm" if edges else None


def _input(text: str | None) -> str | None:
    return text


_WORDED = {
    "field_strength_t": _field_strength,
    "echo_times_ms": _echo_times,
    "voxel_size_mm": _voxel,
    "input": _input,
}


def name_protocols(scans: pd.DataFrame) -> pd.Series:
    """The protocol of each scan in words, '3 T, TE 9/20 ms, 0.8x0.8x3 mm, complex'.

    What a scan does not say is left out; a scan that says nothing is 'unknown protocol'.
    """
    columns = [name for name in COLUMNS if name in scans]
    if not columns or scans.empty:
        return pd.Series(UNKNOWN, index=scans.index, dtype=object)
    said = pd.DataFrame({name: as_text(scans[name]) for name in columns})
    # A cohort has a few protocols beside its many scans; only those are put into words.
    codes = said.groupby(columns, dropna=False, sort=False).ngroup().to_numpy()
    first = np.unique(codes, return_index=True)[1]
    names = np.empty(len(first), dtype=object)
    for code, row in enumerate(said.iloc[first].itertuples(index=False)):
        words = [_WORDED[name](text) for name, text in zip(columns, row, strict=True)]
        names[code] = ", ".join(word for word in words if word) or UNKNOWN
    return pd.Series(names[codes], index=scans.index, dtype=object)


def read_protocol(scans: pd.DataFrame) -> Covariate:
    """The protocol as a covariate; rare ones are one level together.

    Parameters
    ----------
    scans : DataFrame
        One row per participant, with those of `COLUMNS` that exist.

    Returns
    -------
    Covariate
        Levels with fewer than `FEWEST_IN_LEVEL` participants, and those beyond the
        `MOST_PROTOCOLS` commonest, are ``other protocols``.
    """
    named = name_protocols(scans)
    counts = named.value_counts()
    common = counts.index[counts >= FEWEST_IN_LEVEL][:MOST_PROTOCOLS]
    rare = ~named.isin(common)
    notes = []
    if rare.any() and len(common):
        kinds = named[rare].nunique()
        notes.append(
            f"{kinds} protocols with few participants ({int(rare.sum())} together) are one level, "
            f"'{OTHER}'"
            if kinds > 1
            else f"{int(rare.sum())} participants have a protocol of their own, '{OTHER}'"
        )
        named = named.where(~rare, OTHER)
    return Covariate(NAME, CATEGORICAL, named, tuple(notes))
