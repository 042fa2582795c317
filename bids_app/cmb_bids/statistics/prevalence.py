"""Prevalence by age band and sex, and what it would be with a faultless detector."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from cmb_bids.statistics.participants import OUTCOMES
from cmb_bids.statistics.settings import Detector

ALL = "all"
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate with the limits of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def wilson_interval(positive: int, n: int) -> Interval:
    """A share with Wilson's score interval (Wilson 1927, JASA 22:209).

    Raises
    ------
    ValueError
        There is nobody, or more positives than people.
    """
    if not 0 <= positive <= n or n == 0:
        raise ValueError(f"{positive} of {n} is no share")
    low, high = proportion_confint(positive, n, alpha=1 - CONFIDENCE, method="wilson")
    return Interval(positive / n, float(low), float(high))


def corrected_prevalence(positive: int, n: int, detector: Detector) -> Interval:
    """Prevalence corrected for sensitivity and specificity, with the uncertainty of all three.

    Estimate of Rogan & Gladen (1978, Am J Epidemiol 107:71), held inside 0 to 1; interval of
    Lang & Reiczigel (2014, Prev Vet Med 113:13, equations 4, 6, 7, 16 and 17).

    Parameters
    ----------
    positive, n : int
        Participants called positive, and all of them.
    detector : Detector
        Its shares and the sizes of the samples they come from.

    Raises
    ------
    ValueError
        There is nobody, or more positives than people.
    """
    if not 0 <= positive <= n or n == 0:
        raise ValueError(f"{positive} of {n} is no share")
    z = float(norm.ppf(0.5 + CONFIDENCE / 2))
    youden = detector.sensitivity + detector.specificity - 1
    estimate = (positive / n + detector.specificity - 1) / youden
    # Each share is drawn towards one half, as if a few more people had been seen.
    n_with, n_without, n_seen = detector.n_with + 2, detector.n_without + 2, n + z**2
    sensitivity = (detector.n_with * detector.sensitivity + 1) / n_with
    specificity = (detector.n_without * detector.specificity + 1) / n_without
    apparent = (positive + z**2 / 2) / n_seen
    drawn = sensitivity + specificity - 1
    centre = (apparent + specificity - 1) / drawn
    of_sensitivity = sensitivity * (1 - sensitivity) / n_with
    of_specificity = specificity * (1 - specificity) / n_without
    shift = 2 * z**2 * (centre * of_sensitivity - (1 - centre) * of_specificity)
    variance = apparent * (1 - apparent) / n_seen
    variance += centre**2 * of_sensitivity + (1 - centre) ** 2 * of_specificity
    half = z * np.sqrt(variance) / drawn
    low, high = np.clip([centre + shift - half, centre + shift + half], 0, 1)
    estimate = float(np.clip(estimate, 0, 1))
    # Near zero the shift can pass the estimate, which the interval is to hold.
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))


def _groups(people: pd.DataFrame) -> list[tuple[str, str, pd.Series]]:
    """Age band, sex and members of each group: everybody, each band, each sex, each of both."""
    bands = [ALL, *_in_order(people["age_band"])]
    sexes = [ALL, *sorted(people["sex"].dropna().unique())]
    everybody = pd.Series(True, index=people.index)
    return [
        (
            band,
            sex,
            (everybody if band == ALL else people["age_band"] == band)
            & (everybody if sex == ALL else people["sex"] == sex),
        )
        for band in bands
        for sex in sexes
    ]


def _in_order(bands: pd.Series) -> list[str]:
    """Age bands from young to old."""
    return sorted(bands.dropna().unique(), key=lambda b: -1.0 if b[0] == "<" else _first_age(b))


def _first_age(band: str) -> float:
    return float(band.rstrip("+").split("-")[0])


def tabulate_prevalence(people: pd.DataFrame) -> list[dict[str, Any]]:
    """Prevalence of each of the `OUTCOMES` by age band and sex, with Wilson intervals.

    Parameters
    ----------
    people : DataFrame
        A row per participant: the outcomes (1, 0, NaN), ``age_band``, ``sex``.

    Returns
    -------
    list of dict
        ``outcome``, ``age_band``, ``sex`` ('all' for everybody, of unknown age or sex too),
        ``n``, ``positive``, ``prevalence``, ``low``, ``high``. Groups of nobody have no row.
    """
    rows = []
    groups = _groups(people)
    for outcome in OUTCOMES:
        values = people[outcome].to_numpy(dtype=float)
        known = ~np.isnan(values)
        for band, sex, members in groups:
            inside = members.to_numpy() & known
            n, positive = int(inside.sum()), int(values[inside].sum())
            if n:
                interval = wilson_interval(positive, n)
                rows.append(
                    {"outcome": outcome, "age_band": band, "sex": sex, "n": n,
                     "positive": positive, "prevalence": interval.estimate,
                     "low": interval.low, "high": interval.high}
                )  # fmt: skip
    return rows


def correct_prevalence(rows: list[dict[str, Any]], detector: Detector) -> list[dict[str, Any]]:
    """The rows of outcome 'any', corrected with what was measured of the detector.

    Only 'any': sensitivity and specificity of a class or a pattern are another thing.
    """
    corrected = []
    for row in rows:
        if row["outcome"] == "any":
            interval = corrected_prevalence(row["positive"], row["n"], detector)
            corrected.append(
                {
                    **row,
                    "prevalence": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "sensitivity": detector.sensitivity,
                    "specificity": detector.specificity,
                    "source": detector.source,
                }
            )
    return corrected
