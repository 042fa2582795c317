"""From covariates to the columns of a regression, and back to names a reader knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import qr

from cmb_bids.statistics import protocol
from cmb_bids.statistics.covariates import NUMERIC, Covariate

INTERCEPT = "intercept"
AGE_STEP = 10.0  # years: a ratio per year hardly differs from 1


class Design(NamedTuple):
    """Columns of a regression.

    ``matrix`` (n, k) with the intercept first, ``names`` (k,) of its columns, ``rows`` (n,)
    positions in the cohort of those with all values, ``sources`` (k,) the covariate behind each
    column, ``reference`` what a categorical covariate is compared with, ``notes``.
    """

    matrix: np.ndarray
    names: list[str]
    rows: np.ndarray
    sources: list[str]
    reference: str
    notes: list[str]

    def take(self, keep: np.ndarray) -> Design:
        """The design of some of its rows (a mask)."""
        return self._replace(matrix=self.matrix[keep], rows=self.rows[keep])


def _numeric_column(one: Covariate, values: np.ndarray, is_age: bool) -> tuple[str, np.ndarray]:
    """A centred column in steps a ratio can be read of: 10 years, else a standard deviation."""
    step = AGE_STEP if is_age else float(values.std(ddof=1))
    unit = f"per {AGE_STEP:g} years" if is_age else f"per SD of {step:.3g}"
    return f"{one.name} ({unit})", (values - values.mean()) / step


def build_design(
    covariates: Sequence[Covariate], usable: np.ndarray, age_column: str | None = None
) -> Design:
    """The columns for participants who have every covariate.

    Numeric covariates are centred; age counts in steps of 10 years, others in standard
    deviations. Categorical ones are compared with their commonest level. Columns that say what
    others say already are dropped, the protocol's first, and the notes name them.

    Parameters
    ----------
    covariates : sequence of Covariate
        Values of all participants, in one order.
    usable : (N,) boolean array
        Participants whose outcome is known.
    age_column : str, optional
        Name of the covariate that is age in years.

    Returns
    -------
    Design
        Covariates that are alike for all that remain are left out, with a note.
    """
    complete = usable.copy()
    for one in covariates:
        complete &= one.values.notna().to_numpy()
    rows = np.flatnonzero(complete)
    columns, names, sources = [np.ones(len(rows))], [INTERCEPT], [INTERCEPT]
    references, notes = [], []
    for one in covariates:
        values = one.values.iloc[rows]
        if values.nunique() < 2:
            if len(rows):
                notes.append(f"'{one.name}' is the same for all {len(rows)} participants here")
            continue
        if one.kind == NUMERIC:
            is_age = one.name == age_column
            name, column = _numeric_column(one, values.to_numpy(dtype=float), is_age)
            columns.append(column)
            names.append(name)
            sources.append(one.name)
            continue
        levels = values.value_counts().sort_index().sort_values(ascending=False, kind="stable")
        references.append(f"{one.name}: {levels.index[0]}")
        for level in sorted(levels.index[1:]):
            columns.append((values == level).to_numpy(dtype=float))
            names.append(f"{one.name}: {level} (against {levels.index[0]})")
            sources.append(one.name)
    matrix = np.column_stack(columns)
    design = Design(matrix, names, rows, sources, "; ".join(references), notes)
    missing = int(usable.sum()) - len(rows)
    if missing:
        notes.append(f"{missing} participants without all covariates are left out")
    return _without_aliases(design)


def _without_aliases(design: Design) -> Design:
    """The design without columns that are sums of those before them."""
    if len(design.matrix) == 0:
        return design
    kept: list[int] = []
    for column in range(design.matrix.shape[1]):
        trial = design.matrix[:, [*kept, column]]
        scaled = trial / np.maximum(np.linalg.norm(trial, axis=0), 1e-300)
        triangle = np.abs(np.diag(qr(scaled, mode="r")[0]))
        if triangle[-1] > 1e-7:
            kept.append(column)
    gone = [c for c in range(design.matrix.shape[1]) if c not in kept]
    if not gone:
        return design
    said = ", ".join(design.names[c] for c in gone)
    note = f"left out, because other covariates say it already: {said}"
    if any(design.sources[c] == protocol.NAME for c in gone):
        note += "; the protocol cannot be told apart from them"
    return design._replace(
        matrix=design.matrix[:, kept],
        names=[design.names[c] for c in kept],
        sources=[design.sources[c] for c in kept],
        notes=[*design.notes, note],
    )


def without_empty_levels(design: Design, counts: np.ndarray) -> tuple[Design, np.ndarray]:
    """The design without levels in which nobody has a count, whose rate ratio would be zero.

    Returns
    -------
    design : Design
    keep : (n,) boolean array
        The rows that remain.
    """
    keep = np.ones(len(counts), dtype=bool)
    empty = []
    for column, name in enumerate(design.names):
        level = design.matrix[:, column] > 0
        two_valued = np.isin(design.matrix[:, column], (0.0, 1.0)).all()
        if design.names[column] != INTERCEPT and two_valued and not counts[level].any():
            keep &= ~level
            empty.append((column, name))
    if not empty:
        return design, keep
    stay = [c for c in range(design.matrix.shape[1]) if c not in {column for column, _ in empty}]
    said = ", ".join(name for _, name in empty)
    note = (
        f"nobody has a microbleed in: {said}; their ratio cannot be estimated and their "
        f"{int((~keep).sum())} participants are left out here"
    )
    smaller = design._replace(
        matrix=design.matrix[:, stay],
        names=[design.names[c] for c in stay],
        sources=[design.sources[c] for c in stay],
        notes=[*design.notes, note],
    ).take(keep)
    return smaller, keep
