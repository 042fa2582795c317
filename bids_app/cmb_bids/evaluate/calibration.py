"""Whether a probability of .7 is right seven times in ten: reliability, its error, Brier score."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cmb_bids.evaluate.counts import Sums
from cmb_bids.evaluate.matching import HIT, IGNORED

BINS = 10


def bin_of(probability: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin (n,) of equal width that each probability falls into; 1 belongs to the last."""
    return np.minimum((np.asarray(probability, dtype=float) * bins).astype(int), bins - 1)


def calibration_sums(
    scans: pd.DataFrame, detections: pd.DataFrame, prefix: str = "", bins: int = BINS
) -> Sums:
    """What reliability needs of each scan.

    Parameters
    ----------
    scans : DataFrame
    detections : DataFrame
        With ``scan``, ``probability`` and ``outcome``; ignored ones and those without a
        probability are left out.
    prefix : str
        Put before the names.
    bins : int

    Returns
    -------
    dict
        (scans, bins) arrays ``bin_size``, ``bin_said`` (sum of probabilities), ``bin_was``
        (lesions); (scans, 1) ``squared_error``.
    """
    known = detections[(detections["outcome"] != IGNORED) & detections["probability"].notna()]
    probability = np.clip(known["probability"].to_numpy(dtype=float), 0, 1)
    was = (known["outcome"] == HIT).to_numpy(dtype=float)
    number = dict(zip(scans["scan"], range(len(scans)), strict=True))
    row = known["scan"].map(number).to_numpy(dtype=int)
    sums = {name: np.zeros((len(scans), bins)) for name in ("bin_size", "bin_said", "bin_was")}
    cell = (row, bin_of(probability, bins))
    np.add.at(sums["bin_size"], cell, 1)
    np.add.at(sums["bin_said"], cell, probability)
    np.add.at(sums["bin_was"], cell, was)
    error = np.zeros((len(scans), 1))
    np.add.at(error[:, 0], row, (probability - was) ** 2)
    return {prefix + name: values for name, values in (sums | {"squared_error": error}).items()}


def calibration_metrics(sums: Sums, prefix: str = "") -> dict[str, np.ndarray]:
    """Expected and largest calibration error and Brier score, a value per row of ``sums``.

    The expected error is the mean distance of the probability from the share of lesions, over
    bins of equal width, weighted by the detections in each (Naeini et al., AAAI 2015).
    """
    size, said, was = (sums[f"{prefix}bin_{name}"] for name in ("size", "said", "was"))
    total = size.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.abs(said - was)
        worst = np.where(size > 0, gap / size, 0).max(axis=1)
        return {
            f"{prefix}expected_calibration_error": gap.sum(axis=1) / total,
            f"{prefix}largest_calibration_error": np.where(total > 0, worst, np.nan),
            f"{prefix}brier_score": sums[f"{prefix}squared_error"][:, 0] / total,
        }


def reliability_table(sums: Sums, resampled: Sums, basis: str, prefix: str = "") -> pd.DataFrame:
    """Reliability by bin, for a table or a diagram.

    Parameters
    ----------
    sums : dict
        One row: the cohort.
    resampled : dict
        A row per resample.
    basis : str
        What was judged: ``listed`` or ``candidates``.
    prefix : str

    Returns
    -------
    DataFrame
        ``basis bin_low bin_high detections mean_probability lesion_share lesion_share_low
        lesion_share_high``; shares are missing where a bin is empty.
    """
    size, said, was = (sums[f"{prefix}bin_{name}"][0] for name in ("size", "said", "was"))
    bins = len(size)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = resampled[f"{prefix}bin_was"] / resampled[f"{prefix}bin_size"]
        table = pd.DataFrame(
            {
                "basis": basis,
                "bin_low": np.arange(bins) / bins,
                "bin_high": np.arange(1, bins + 1) / bins,
                "detections": size.astype(int),
                "mean_probability": said / size,
                "lesion_share": was / size,
            }
        )
    low, high = np.full(bins, np.nan), np.full(bins, np.nan)
    for number in range(bins):
        values = drawn[:, number][np.isfinite(drawn[:, number])]
        if len(values) and size[number]:
            low[number], high[number] = np.quantile(values, [0.025, 0.975])
    return table.assign(lesion_share_low=low, lesion_share_high=high)


def expected_calibration_error(
    probability: np.ndarray, is_lesion: np.ndarray, bins: int = BINS
) -> float:
    """Expected calibration error of single detections, as `calibration_metrics`.

    Parameters
    ----------
    probability : (n,) array within 0..1
    is_lesion : (n,) array of bool
    bins : int

    Returns
    -------
    float
        Not a number without detections.
    """
    table = pd.DataFrame({"probability": np.asarray(probability, dtype=float)})
    table["outcome"] = np.where(np.asarray(is_lesion, dtype=bool), HIT, "false")
    table["scan"] = "all"
    sums = calibration_sums(pd.DataFrame({"scan": ["all"]}), table, bins=bins)
    return float(calibration_metrics(sums)["expected_calibration_error"][0])
