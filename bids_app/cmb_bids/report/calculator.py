"""The reference table behind the page's calculator.

The script does what `cmb_bids.statistics.reference.place_on_reference` does, on a table that is
small enough for a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmb_bids.report.figures import sex_name
from cmb_bids.report.page import Widget, read_asset

DECIMALS = 5
ALMOST_ALL = 1 - 0.5 * 10.0**-DECIMALS


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


def make_calculator(rows: Sequence[Mapping[str, Any]]) -> Widget:
    """The calculator as a block of a page."""
    markup, script = read_asset("calculator.html"), read_asset("calculator.js")
    return Widget("burden-calculator", markup, script, build_table(rows))
