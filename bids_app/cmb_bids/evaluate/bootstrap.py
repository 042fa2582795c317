"""Intervals and comparisons that know that lesions of one brain are alike.

Participants are resampled, or two tools' results of a participant swapped, never single lesions
or scans. A resample is a vector of weights of the participants, so that a thousand of them are one
matrix product with the participants' sums.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cmb_bids.evaluate.counts import Sums
from cmb_bids.evaluate.metrics import Figures

LEVEL = 0.95
Interval = tuple[float, float]
NO_INTERVAL = (float("nan"), float("nan"))


def participant_sums(sums: Sums, participants: pd.Series) -> Sums:
    """Sums of scans (scans, k) added up by participant (participants, k)."""
    codes, names = pd.factorize(participants, sort=True)
    membership = np.zeros((len(names), len(codes)))
    membership[codes, np.arange(len(codes))] = 1
    return {name: membership @ values for name, values in sums.items()}


def resampling_weights(participants: int, samples: int, seed: int = 0) -> np.ndarray:
    """How often each participant is drawn in each resample with replacement.

    Returns
    -------
    (samples, participants) array
        Empty where there are fewer than two participants: nothing could be said.
    """
    if participants < 2 or samples < 1:
        return np.zeros((0, participants))
    share = np.full(participants, 1 / participants)
    return np.random.default_rng(seed).multinomial(participants, share, samples).astype(float)


def weigh(sums: Sums, weights: np.ndarray) -> Sums:
    """Sums of each resample: (samples, participants) by (participants, k)."""
    return {name: weights @ values for name, values in sums.items()}


def total(sums: Sums) -> Sums:
    """Sums of all rows, as one row."""
    return {name: values.sum(axis=0, keepdims=True) for name, values in sums.items()}


def interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """Percentile interval (low, high) of the resamples where the figure exists."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return NO_INTERVAL
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(figures: Figures) -> dict[str, Interval]:
    """`interval` of each figure."""
    return {name: interval(values) for name, values in figures.items()}
