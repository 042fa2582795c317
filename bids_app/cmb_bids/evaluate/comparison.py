"""One tool against another on the same scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from cmb_bids.errors import NothingMatched
from cmb_bids.evaluate.bootstrap import interval, resampling_weights, total, weigh
from cmb_bids.evaluate.cohort import Cohort
from cmb_bids.evaluate.counts import Sums
from cmb_bids.evaluate.matching import HIT, MATCHING_DISTANCE_MM, MISSED
from cmb_bids.evaluate.metrics import Figures, metrics_of
from cmb_bids.evaluate.scored import score_cohort


def restrict(cohort: Cohort, scans: set[str]) -> Cohort:
    """The cohort without the other scans."""

    def kept(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["scan"].isin(scans)].reset_index(drop=True)

    return replace(
        cohort,
        scans=kept(cohort.scans),
        truth=kept(cohort.truth),
        microbleeds=kept(cohort.microbleeds),
        calcifications=kept(cohort.calcifications),
        candidates=kept(cohort.candidates),
    )


def compare_cohorts(
    reference: Cohort,
    other: Cohort,
    distance_mm: float = MATCHING_DISTANCE_MM,
    samples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Hold two tools against each other on the scans that both were scored on.

    Parameters
    ----------
    reference, other : Cohort
        Read against the same labels.
    distance_mm, samples, seed
        As `evaluate_cohort`; there are as many permutations as samples.

    Returns
    -------
    DataFrame
        As `compare`, with ``reference``, ``other``, ``scans`` and ``participants`` (that both
        have) and, in the row of the sensitivity, the columns of `mcnemar`.

    Raises
    ------
    NothingMatched
        No scan has a result of both.
    """
    shared = _shared_scans(reference, other)
    if not shared:
        raise NothingMatched(
            other.name,
            f"shares no labelled scan with {reference.name}",
            "Give results of the same scans",
        )
    own_names = {name: name for name in shared.values()}
    first = score_cohort(_renamed(restrict(reference, set(own_names)), own_names), distance_mm)
    second = score_cohort(_renamed(restrict(other, set(shared)), shared), distance_mm)
    weights = resampling_weights(len(first.sums["scans"]), samples, seed)
    table = compare(first.sums, second.sums, weights, samples, seed)
    table.insert(0, "reference", reference.name)
    table.insert(1, "other", other.name)
    table["scans"] = len(shared)
    table["participants"] = len(first.sums["scans"])
    same = mcnemar(first.matched.lesions, second.matched.lesions)
    for name, value in same.items():
        table[name] = pd.Series(value, index=table.index[table["metric"] == "sensitivity"])
    return table


def _shared_scans(reference: Cohort, other: Cohort) -> dict[str, str]:
    """Scans of ``other`` by the reference's name of the same scan.

    The same name, or else the same labels where these are of one scan of each tool alone.
    """
    known = set(reference.scans["scan"])
    of_labels = dict(zip(reference.scans["labels"], reference.scans["scan"], strict=True))
    uses = [Counter(cohort.scans["labels"]) for cohort in (reference, other)]
    shared = {}
    for scan, labels in zip(other.scans["scan"], other.scans["labels"], strict=True):
        if scan in known:
            shared[scan] = scan
        elif all(count[labels] == 1 for count in uses):
            shared[scan] = of_labels[labels]
    return shared


def _renamed(cohort: Cohort, names: dict[str, str]) -> Cohort:
    """The cohort under the reference's names of its scans, in order of name."""

    def renamed(table: pd.DataFrame) -> pd.DataFrame:
        table = table.assign(scan=table["scan"].map(names))
        return table.sort_values("scan", kind="stable").reset_index(drop=True)

    return replace(
        cohort,
        scans=renamed(cohort.scans),
        truth=renamed(cohort.truth),
        microbleeds=renamed(cohort.microbleeds),
        calcifications=renamed(cohort.calcifications),
        candidates=renamed(cohort.candidates),
    )


def compare(
    reference: Sums, other: Sums, weights: np.ndarray, permutations: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Difference of two tools on the same participants: interval and paired test.

    The interval comes from resamples that draw the same participants for both. The test swaps
    the two tools' results of a participant at random: if the tools were alike, that would
    change nothing.

    Parameters
    ----------
    reference, other : dict
        (participants, k) sums in one order of participants.
    weights : (samples, participants) array
        From `resampling_weights`.
    permutations, seed : int

    Returns
    -------
    DataFrame
        ``metric reference_value other_value difference difference_low difference_high p_value``
        (two-sided; missing for the FROC) of each figure that both have; the difference is other
        minus reference.
    """
    values = [_single(metrics_of(total(sums))) for sums in (reference, other)]
    drawn = [metrics_of(weigh(sums, weights)) for sums in (reference, other)]
    # Thresholds of two tools have nothing to do with each other: no swapping of FROC sums.
    shared = [name for name in reference if name in other and "froc" not in name]
    people = len(reference["scans"])
    swap = np.random.default_rng(seed).integers(0, 2, (permutations, people)).astype(float)
    swapped = [
        metrics_of({k: swap @ b[k] + (1 - swap) @ a[k] for k in shared})
        for a, b in ((reference, other), (other, reference))
    ]
    rows = []
    for name in (name for name in values[0] if name in values[1]):
        first, second = values[0][name], values[1][name]
        low, high = interval(drawn[1][name] - drawn[0][name])
        p_value = float("nan")
        if name in swapped[0]:
            chance = np.abs(swapped[0][name] - swapped[1][name])
            p_value = _p_value(abs(second - first), chance)
        rows.append((name, first, second, second - first, low, high, p_value))
    names = "metric reference_value other_value difference difference_low difference_high p_value"
    return pd.DataFrame(rows, columns=names.split())


def _single(figures: Figures) -> dict[str, float]:
    return {name: float(values[0]) for name, values in figures.items()}


def _p_value(difference: float, chance: np.ndarray) -> float:
    """Share of the permutations at least as different, the observed one among them."""
    chance = chance[np.isfinite(chance)]
    if not np.isfinite(difference) or len(chance) == 0:
        return float("nan")
    return float((1 + (chance >= difference - 1e-12).sum()) / (1 + len(chance)))


def mcnemar(reference: pd.DataFrame, other: pd.DataFrame) -> Mapping[str, float]:
    """Exact McNemar test of the same lesions under two tools.

    It takes lesions for independent, which those of one brain are not: beside the test by
    participants it says how many lesions the tools disagree on.

    Parameters
    ----------
    reference, other : DataFrame
        The same lesions in the same order, with ``outcome``.

    Returns
    -------
    mapping
        ``only_reference``, ``only_other`` (lesions that one alone hit), ``mcnemar_p``.
    """
    counted = reference["outcome"].isin([HIT, MISSED]).to_numpy()
    first = (reference["outcome"] == HIT).to_numpy()[counted]
    second = (other["outcome"] == HIT).to_numpy()[counted]
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    unlike = only_first + only_second
    p_value = float(binomtest(only_first, unlike).pvalue) if unlike else 1.0
    return {"only_reference": only_first, "only_other": only_second, "mcnemar_p": p_value}
