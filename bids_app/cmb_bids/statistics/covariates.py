"""Covariates as studies write them: found by name, read as numbers or levels, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

AGE_NAMES = ("age", "age_years", "age_year", "age_yr", "age_y", "age_at_scan", "age_at_mri",
             "age_at_imaging", "age_at_visit", "age_at_baseline", "participant_age")  # fmt: skip
SEX_NAMES = ("sex", "gender", "sex_at_birth", "biological_sex", "participant_sex")
SITE_NAMES = ("site", "site_id", "siteid", "study_site", "center", "centre", "scanner_site",
              "imaging_site", "imaging_centre", "imaging_center", "assessment_centre",
              "institution", "hospital")  # fmt: skip
FEMALE = {"f", "female", "w", "woman", "women", "girl"}
MALE = {"m", "male", "man", "men", "boy"}
MISSING_TEXTS = {"", "n/a", "na", "nan", "none", "null", "unknown", "missing", "."}
OLDEST = 120.0  # years; what lies beyond is a code for missing, or another unit
FEWEST_IN_LEVEL = 10  # participants; a rarer level says nothing and makes models unstable
MOST_LEVELS = 20

NUMERIC, CATEGORICAL = "numeric", "categorical"


class Covariate(NamedTuple):
    """One covariate over all participants.

    ``values`` is a float Series (numeric) or one of text (categorical), missing as NaN or None;
    ``notes`` say what was not taken over as it stood.
    """

    name: str
    kind: str
    values: pd.Series
    notes: tuple[str, ...] = ()


def find_column(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """The first column whose name is one of ``names``, whatever its case, spaces or hyphens."""
    plain = {re.sub(r"[\s\-.]+", "_", str(column).strip().lower()): column for column in columns}
    return next((plain[name] for name in names if name in plain), None)


def as_text(values: pd.Series) -> pd.Series:
    """Values as stripped text, missing (n/a, empty, NaN) as None."""
    # A column has few distinct values beside its length; only those are looked at.
    codes, distinct = pd.factorize(values.astype(object))
    read = np.array([*map(_read_text, distinct), None], dtype=object)
    return pd.Series(read[codes], index=values.index, dtype=object)


def _read_text(value: object) -> str | None:
    """One value as text; whole numbers that were once floats name the same level."""
    text = str(value).strip()
    if re.fullmatch(r"-?\d+\.0", text):
        text = text[:-2]
    return None if text.lower() in MISSING_TEXTS else text


def as_numbers(values: pd.Series) -> pd.Series:
    """Values as floats; missing, infinite or not a number as NaN."""
    numbers = pd.to_numeric(as_text(values), errors="coerce").astype(float)
    return numbers.where(np.isfinite(numbers))


def _some(values: Iterable[object], most: int = 3) -> str:
    """A few of the distinct values, quoted."""
    distinct = list(dict.fromkeys(str(v) for v in values))
    more = "" if len(distinct) <= most else f" and {len(distinct) - most} more"
    return ", ".join(f"'{v}'" for v in distinct[:most]) + more


def read_age(values: pd.Series, name: str = "age") -> Covariate:
    """Age in years. An age capped for privacy, as BIDS asks ('89+'), is taken as its number."""
    text = as_text(values)
    capped = text.map(lambda v: bool(v) and re.fullmatch(r"\d+(\.\d+)?\s*\+", v) is not None)
    ages = as_numbers(text.map(lambda v: v.rstrip("+ ") if v else v))
    notes = []
    if capped.any():
        notes.append(
            f"{int(capped.sum())} capped ages ({_some(text[capped])}) are taken as that number"
        )
    strange = text.notna() & ages.isna()
    if strange.any():
        notes.append(
            f"{int(strange.sum())} values of '{name}' are no number ({_some(text[strange])}) and "
            "count as missing"
        )
    impossible = ages.notna() & ~ages.between(0, OLDEST)
    if impossible.any():
        notes.append(
            f"{int(impossible.sum())} ages outside 0 to {OLDEST:g} years "
            f"({_some(text[impossible])}) count as missing"
        )
    return Covariate(name, NUMERIC, ages.mask(impossible), tuple(notes))


def read_sex(
    values: pd.Series, name: str = "sex", levels: Mapping[str, str] | None = None
) -> Covariate:
    """Sex as F and M where the words or participants.json say so; other codes as they are."""
    meanings = {str(code).lower(): text for code, text in (levels or {}).items()}

    def read(value: str | None) -> str | None:
        if value is None:
            return None
        said = meanings.get(value.lower(), value)
        words = set(re.findall(r"[a-z]+", said.lower()))
        if words & FEMALE:
            return "F"
        if words & MALE:
            return "M"
        return None if said.lower() in MISSING_TEXTS else value

    sexes = as_text(values).map(read).astype(object)
    codes = sorted({v for v in sexes.dropna() if v not in ("F", "M")})
    notes = []
    if codes:
        notes.append(
            f"'{name}' has the levels {_some(codes)}, which nothing says to be female or male; "
            "they are kept as they are (name them under Levels in participants.json)"
        )
    return Covariate(name, CATEGORICAL, sexes, tuple(notes))


def read_covariate(
    values: pd.Series, name: str, levels: Mapping[str, str] | None = None
) -> Covariate:
    """A covariate of the user's, as numbers where it is numeric and has no ``Levels``.

    A column with numbers and up to a tenth of other text is numeric, with the text as missing.
    Two numeric values (0 and 1) are two levels.
    """
    text = as_text(values)
    numbers = as_numbers(text)
    known, numeric = int(text.notna().sum()), int(numbers.notna().sum())
    if not levels and known and numeric >= 0.9 * known and numbers.nunique() > 2:
        strange = text.notna() & numbers.isna()
        notes: tuple[str, ...] = ()
        if strange.any():
            notes = (
                f"{int(strange.sum())} values of '{name}' are no number ({_some(text[strange])}) "
                "and count as missing",
            )
        return Covariate(name, NUMERIC, numbers, notes)
    meanings = levels or {}
    named = text.map(lambda v: v if v is None else meanings.get(v, v)).astype(object)
    return Covariate(name, CATEGORICAL, named)


def why_unusable(covariate: Covariate) -> str | None:
    """Why a covariate cannot go into a model; None where it can."""
    values = covariate.values.dropna()
    if values.empty:
        return "no participant with a result has a value"
    if values.nunique() == 1:
        return f"it is the same for everybody ({values.iloc[0]})"
    if covariate.kind == CATEGORICAL:
        if values.nunique() > MOST_LEVELS:
            return f"it has {values.nunique()} levels, more than {MOST_LEVELS}"
        if (values.value_counts() >= FEWEST_IN_LEVEL).sum() < 2:
            return f"fewer than two of its levels have {FEWEST_IN_LEVEL} participants"
    return None


def without_rare_levels(covariate: Covariate) -> Covariate:
    """A categorical covariate with levels of fewer than `FEWEST_IN_LEVEL` as missing."""
    if covariate.kind != CATEGORICAL:
        return covariate
    counts = covariate.values.value_counts()
    rare = sorted(counts.index[counts < FEWEST_IN_LEVEL])
    if not rare:
        return covariate
    note = (
        f"{int(counts[rare].sum())} participants with a rare level of '{covariate.name}' "
        f"({_some(rare)}: fewer than {FEWEST_IN_LEVEL} each) are left out of the models"
    )
    values = covariate.values.where(~covariate.values.isin(rare), None).astype(object)
    return covariate._replace(values=values, notes=(*covariate.notes, note))
