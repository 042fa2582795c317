"""The reference table behind the page's calculator, and the same arithmetic in Python.

For a count of one age and sex the mid-distribution percentile is the share of people with fewer
plus half the share with as many (Parzen 2004, Statistical Science 19:652): counts are mostly zero,
and with plain percentiles everybody without a lesion would be at 0 or at 88. The z-score is the
normal quantile of that percentile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cmb_bids.report.figures import sex_name
from cmb_bids.report.page import Widget, read_asset

DECIMALS = 5
ALMOST_ALL = 1 - 0.5 * 10.0**-DECIMALS


class Position(NamedTuple):
    """Where a count stands among people of one age and sex; shares from 0 to 1.

    ``beyond``: the count is larger than the table knows, and the percentile a lower bound.
    """

    fewer: float
    as_many: float
    percentile: float
    z: float
    beyond: bool


def build_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The reference rows as the page's script reads them.

    Parameters
    ----------
    rows : sequence of mapping
        ``sex``, ``age`` (years), ``n_near``, ``probabilities`` (of 0, 1, ... lesions).

    Returns
    -------
    list of dict
        By sex: ``sex``, ``name``, rising ``ages``, ``near`` (participants near each age) and
        ``cumulative``: for each age the share with at most 0, 1, ... lesions, rounded, up to the
        count that leaves nobody.
    """
    table = []
    for sex in dict.fromkeys(str(row["sex"]) for row in rows):
        own = sorted((r for r in rows if str(r["sex"]) == sex), key=lambda r: r["age"])
        table.append(
            {
                "sex": sex,
                "name": sex_name(sex),
                "ages": [float(row["age"]) for row in own],
                "near": [row.get("n_near") for row in own],
                "cumulative": [_cumulative(row["probabilities"]) for row in own],
            }
        )
    return table


def _cumulative(probabilities: Sequence[float]) -> list[float]:
    total, shares = 0.0, []
    for probability in probabilities:
        total += float(probability)
        shares.append(round(min(total, 1.0), DECIMALS))
        if total >= ALMOST_ALL:
            break
    return shares


def find_position(by_sex: Mapping[str, Any], age: float, count: int) -> Position:
    """Where a count stands; the page's script does the same.

    Parameters
    ----------
    by_sex : mapping
        One element of `build_table`.
    age : float
        Years; between two ages of the table shares are interpolated.
    count : int
        Lesions, at least 0.

    Raises
    ------
    ValueError
        The age is outside the table, or the count below zero.
    """
    from scipy.stats import norm

    ages = by_sex["ages"]
    if not ages or not ages[0] <= age <= ages[-1]:
        raise ValueError(f"age {age:g} is outside the data")
    if count < 0:
        raise ValueError(f"{count} is no count")
    after = next(i for i, known in enumerate(ages) if known >= age)
    before = after if ages[after] == age else after - 1
    weight = 0.0 if after == before else (age - ages[before]) / (ages[after] - ages[before])
    pair = by_sex["cumulative"][before], by_sex["cumulative"][after]

    def at_most(k: int) -> float:
        low, high = (0.0 if k < 0 else shares[min(k, len(shares) - 1)] for shares in pair)
        return low + weight * (high - low)

    fewer, upto = at_most(count - 1), at_most(count)
    beyond = all(count >= len(shares) for shares in pair)
    percentile = fewer + (upto - fewer) / 2
    return Position(fewer, upto - fewer, percentile, float(norm.ppf(percentile)), beyond)


def make_calculator(rows: Sequence[Mapping[str, Any]]) -> Widget:
    """The calculator as a block of a page."""
    markup, script = read_asset("calculator.html"), read_asset("calculator.js")
    return Widget("burden-calculator", markup, script, build_table(rows))
