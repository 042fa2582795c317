"""From scans to people: one row per participant, the outcomes, and the covariates."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from cmb_bids.burden import BURDEN_CLASSES
from cmb_bids.cohort_scans import PROCESSED, choose_scans
from cmb_bids.columns import FAIL
from cmb_bids.statistics import covariates as reading
from cmb_bids.statistics.covariates import Covariate, as_numbers, as_text
from cmb_bids.statistics.protocol import read_protocol
from cmb_bids.statistics.settings import AnalysisSettings

PATTERNS = ("none", "strictly_lobar", "strictly_deep_infratentorial", "mixed")
# Outcome -> what it means, for the tables' dictionaries and the page.
OUTCOMES = {
    "any": "At least one definite microbleed",
    "lobar": "At least one definite lobar microbleed, with or without others",
    "deep_infratentorial": (
        "At least one definite deep or infratentorial microbleed, with or without others"
    ),
    "strictly_lobar": "Definite microbleeds, all lobar",
    "strictly_deep_infratentorial": "Definite microbleeds, all deep or infratentorial",
    "mixed": "Definite microbleeds, lobar and deep or infratentorial",
}


class Cohort(NamedTuple):
    """What the statistics start from.

    ``people``: a row per analysed participant with ``count``, ``possible``, ``burden_class``,
    ``pattern``, the `OUTCOMES` (1, 0 or NaN), ``age``, ``sex``, ``age_band``;
    ``everybody``: the scans row of each processed participant, failed quality or not;
    ``totals``: participants by fate; ``adjusting``: covariates of the models, protocol last;
    ``named``: covariates asked for; ``left_out``: name -> reason; ``roles``: the columns of age,
    sex and site; ``notes``: what was not taken over as it stood.
    """

    people: pd.DataFrame
    everybody: pd.DataFrame
    totals: dict[str, int]
    adjusting: list[Covariate]
    named: list[str]
    left_out: dict[str, str]
    roles: dict[str, str | None]
    protocol: Covariate
    notes: list[str]


def _column(scans: pd.DataFrame, name: str) -> pd.Series:
    """A column of participants.tsv, which has another name where a result has the same."""
    renamed = f"participants_{name}"
    return scans[renamed] if renamed in scans else scans[name]


def _has_column(scans: pd.DataFrame, name: str) -> bool:
    return name in scans or f"participants_{name}" in scans


def read_outcomes(scans: pd.DataFrame) -> pd.DataFrame:
    """Counts as numbers and the `OUTCOMES` as 1, 0 or NaN, a row per participant."""
    empty = pd.Series(np.nan, index=scans.index)

    def numbers(name: str) -> pd.Series:
        return as_numbers(scans[name]) if name in scans else empty

    count, lobar = numbers("cmb_definite"), numbers("cmb_lobar")
    elsewhere = numbers("cmb_deep") + numbers("cmb_infratentorial")
    pattern = as_text(scans["pattern"]) if "pattern" in scans else empty.astype(object)
    # Nothing found is the pattern 'none', whether or not an atlas could be carried over.
    pattern = pattern.where(pattern.isin(PATTERNS), None).mask(count == 0, "none")
    lobar, elsewhere = lobar.mask(count == 0, 0), elsewhere.mask(count == 0, 0)
    outcomes = {
        "count": count,
        "possible": numbers("cmb_possible"),
        "burden_class": name_burden(count),
        "pattern": pattern,
        "any": (count > 0).astype(float).where(count.notna()),
        "lobar": (lobar > 0).astype(float).where(lobar.notna()),
        "deep_infratentorial": (elsewhere > 0).astype(float).where(elsewhere.notna()),
    }
    for name in PATTERNS[1:]:
        outcomes[name] = (pattern == name).astype(float).where(pattern.notna())
    return pd.DataFrame(outcomes, index=scans.index)


def band_ages(ages: pd.Series, edges: tuple[float, ...]) -> pd.Series:
    """Age bands in words: '<45', '45-54', ..., '85+'; missing ages as None."""
    names = [f"<{edges[0]:g}"]
    names += [f"{a:g}-{b - 1:g}" for a, b in pairwise(edges)]
    names.append(f"{edges[-1]:g}+")
    position = np.searchsorted(np.asarray(edges), ages.to_numpy(), side="right")
    bands = np.array(names, dtype=object)[position]
    return pd.Series(bands, index=ages.index, dtype=object).where(ages.notna(), None)


def name_burden(counts: pd.Series) -> pd.Series:
    """Burden class of each count; missing where the count is."""
    classes = pd.Series(None, index=counts.index, dtype=object)
    for name, (first, last) in BURDEN_CLASSES.items():
        classes[counts.between(first, np.inf if last is None else last)] = name
    return classes


def _recognised(settings: AnalysisSettings, scans: pd.DataFrame) -> dict[str, str | None]:
    """The columns that hold age, sex and site."""
    names = {"age": reading.AGE_NAMES, "sex": reading.SEX_NAMES, "site": reading.SITE_NAMES}
    found: dict[str, str | None] = {}
    for role, common in names.items():
        said = getattr(settings, role)
        found[role] = said if said and _has_column(scans, said) else None
        if said is None:
            found[role] = reading.find_column(scans.columns, common)
    return found


def _read(
    scans: pd.DataFrame, name: str, role: str | None, settings: AnalysisSettings
) -> Covariate:
    """One covariate, read by what it is."""
    values, levels = _column(scans, name), settings.levels.get(name)
    if role == "age":
        return reading.read_age(values, name)
    if role == "sex":
        return reading.read_sex(values, name, levels)
    read = reading.read_covariate(values, name, levels)
    if role == "site":  # sites 1, 2 and 3 are no amounts
        return Covariate(name, reading.CATEGORICAL, as_text(values))
    return read


def _choose_covariates(
    people: pd.DataFrame,
    settings: AnalysisSettings,
    roles: dict[str, str | None],
    read: dict[str, Covariate],
) -> tuple[list[Covariate], list[str], dict[str, str]]:
    """Covariates of the models, those asked for, and why some of them are left out."""
    by_column = {column: role for role, column in roles.items() if column}
    chosen = settings.covariates
    named = list(chosen) if chosen is not None else ["age", "sex"]
    adjusting, left_out = [], {}
    for name in named:
        column = name if chosen is not None else roles[name]
        if column is None or not _has_column(people, column):
            left_out[name] = "no column of participants.tsv has it"
            continue
        role = by_column.get(column)
        one = read[role] if role in read else _read(people, column, role, settings)
        reason = reading.why_unusable(one)
        share = float(one.values.notna().mean()) if len(one.values) else 0.0
        if reason is None and chosen is None and share < 0.5:
            reason = f"only {share:.0%} of the participants have a value (name it to use it)"
        if reason:
            left_out[name] = reason
        else:
            adjusting.append(reading.without_rare_levels(one))
    return adjusting, named, left_out


def prepare(scans: pd.DataFrame, settings: AnalysisSettings) -> Cohort:
    """One row per participant, with outcomes and covariates.

    Parameters
    ----------
    scans : DataFrame
        ``participant_id``, the columns of the scans table and those of participants.tsv; as
        text or numbers. Participants without a result have ``processing`` 'not_processed'.
    settings : AnalysisSettings

    Returns
    -------
    Cohort
    """
    everybody = choose_scans(scans).reset_index(drop=True)
    processed = pd.Series(True, index=everybody.index)
    if "processing" in everybody:
        processed = everybody["processing"] == PROCESSED
    failed = pd.Series(False, index=everybody.index)
    if "qc_status" in everybody:
        failed = processed & (everybody["qc_status"] == FAIL)
    outcomes = read_outcomes(everybody)
    analysed = processed & ~failed & outcomes["count"].notna()
    source = everybody[analysed].reset_index(drop=True)
    roles = _recognised(settings, source)
    read = {role: _read(source, column, role, settings) for role, column in roles.items() if column}
    adjusting, named, left_out = _choose_covariates(source, settings, roles, read)
    protocol = read_protocol(source)
    reason = reading.why_unusable(protocol)
    if reason:
        left_out[protocol.name] = reason
    else:
        adjusting.append(reading.without_rare_levels(protocol))
    missing = pd.Series(None, index=source.index, dtype=object)
    ages = read["age"].values if "age" in read else missing.astype(float)
    people = outcomes[analysed].reset_index(drop=True)
    people = people.assign(
        age=ages,
        sex=read["sex"].values if "sex" in read else missing,
        age_band=band_ages(ages, settings.age_bands),
    )
    notes = [note for one in [*read.values(), *adjusting] for note in one.notes]
    return Cohort(
        people=people,
        everybody=everybody[processed].reset_index(drop=True),
        totals=_count_participants(people, processed, failed),
        adjusting=adjusting,
        named=named,
        left_out=left_out,
        roles=roles,
        protocol=protocol,
        notes=list(dict.fromkeys(notes)),
    )


def _count_participants(
    people: pd.DataFrame, processed: pd.Series, failed: pd.Series
) -> dict[str, int]:
    """Participants by what became of them."""
    return {
        "total": len(processed),
        "processed": int(processed.sum()),
        "not_processed": int((~processed).sum()),
        "failed_quality": int(failed.sum()),
        "analysed": len(people),
        "positive": int((people["count"] > 0).sum()),
        "possible_only": int(((people["count"] == 0) & (people["possible"] > 0)).sum()),
    }
