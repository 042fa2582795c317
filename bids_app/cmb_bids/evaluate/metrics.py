"""Figures from sums. One function serves the cohort, its subsets, resamples and permutations.

Every function takes sums with a row per cohort, resample or permutation, (rows, k) arrays, and
returns a (rows,) array per figure; what divides by nothing is not a number.
"""

from __future__ import annotations

import numpy as np

from cmb_bids.evaluate.calibration import calibration_metrics
from cmb_bids.evaluate.counts import BURDEN_NAMES, Sums
from cmb_bids.evaluate.froc import froc_metrics

CANDIDATE_PREFIX = "candidate_"
Figures = dict[str, np.ndarray]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def detection_metrics(sums: Sums) -> Figures:
    """Sensitivity, precision, F1, false positives, and what scans as a whole were called."""
    of = {name: values[:, 0] for name, values in sums.items()}
    hits, false = of["hits"], of["false_positives"]
    return {
        "scans": of["scans"],
        "lesions": of["lesions"],
        "lesions_ignored": of["ignored"],
        "hits": hits,
        "false_positives": false,
        "sensitivity": _ratio(hits, of["lesions"]),
        "precision": _ratio(hits, hits + false),
        "f1": _ratio(2 * hits, of["lesions"] + hits + false),
        "false_positives_per_scan": _ratio(false, of["scans"]),
        "lesion_free_scans": of["lesion_free"],
        "false_positives_per_lesion_free_scan": _ratio(
            of["lesion_free_false_positives"], of["lesion_free"]
        ),
        "scan_sensitivity": _ratio(of["bearing_called"], of["bearing"]),
        "scan_specificity": _ratio(of["lesion_free_clean"], of["lesion_free"]),
    }


def candidate_metrics(sums: Sums) -> Figures:
    """Share of the lesions that a candidate reaches, and candidates per scan."""
    of = {name: values[:, 0] for name, values in sums.items() if name.startswith("candidate")}
    return {
        "candidates_per_scan": _ratio(of["candidates"], of["candidate_scans"]),
        "candidate_recall_microbleed": _ratio(of["candidate_hits"], of["candidate_lesions"]),
        "candidate_recall_calcification": _ratio(
            of["candidate_calcification_hits"], of["candidate_calcifications"]
        ),
    }


def calcification_metrics(sums: Sums) -> Figures:
    """What labelled calcifications were called."""
    of = {name: values[:, 0] for name, values in sums.items() if name.startswith("calcific")}
    called = of["calcifications_called_microbleed"]
    figures = {
        "calcifications": of["calcifications"],
        "calcifications_called_microbleed": called,
        "calcification_called_microbleed_share": _ratio(called, of["calcifications"]),
    }
    if "calcifications_recognised" in of:
        figures["calcification_sensitivity"] = _ratio(
            of["calcifications_recognised"], of["calcifications_told"]
        )
    return figures


def kappa(confusion: np.ndarray, weighted: bool) -> np.ndarray:
    """Cohen's kappa (Cohen 1960, 1968) of each row.

    Parameters
    ----------
    confusion : (rows, classes ** 2) array
        Truth by call.
    weighted : bool
        Linear weights: two classes off is twice as bad as one. Else any difference is as bad.

    Returns
    -------
    (rows,) array
        1 where both are always of one and the same class.
    """
    classes = round(confusion.shape[1] ** 0.5)
    table = confusion.reshape(-1, classes, classes)
    total = table.sum(axis=(1, 2))
    step = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    weight = step if weighted else (step > 0).astype(float)
    chance = np.einsum("ri,rj,ij->r", table.sum(2), table.sum(1), weight)
    seen = np.einsum("rij,ij->r", table, weight) * total
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(chance > 0, 1 - seen / chance, 1.0)
    return np.where(total > 0, value, np.nan)


def intraclass_correlation(moments: np.ndarray) -> np.ndarray:
    """ICC(2,1), absolute agreement of two counts per scan (Shrout and Fleiss 1979), of each row.

    Parameters
    ----------
    moments : (rows, 6) array
        Number of scans; sums of the first count, the second, their squares and their product.

    Returns
    -------
    (rows,) array
        Not a number below two scans, or where all counts are equal.
    """
    n, first, second, first2, second2, both = moments.T
    with np.errstate(divide="ignore", invalid="ignore"):
        grand = (first + second) / (2 * n)
        between = 2 * ((first2 + 2 * both + second2) / 4 - n * grand**2) / (n - 1)
        raters = n * ((first / n - grand) ** 2 + (second / n - grand) ** 2)
        total = first2 + second2 - 2 * n * grand**2
        error = (total - between * (n - 1) - raters) / (n - 1)
        below = between + error + 2 * (raters - error) / n
        value = (between - error) / below
    return np.where((n > 1) & (below > 1e-9), value, np.nan)


def agreement_metrics(sums: Sums) -> Figures:
    """Agreement of burden class and count per scan."""
    n, truth, called = (sums["moments"][:, k] for k in range(3))
    same = sums["confusion"][:, :: len(BURDEN_NAMES) + 1].sum(axis=1)
    return {
        "burden_class_agreement": _ratio(same, n),
        "burden_kappa": kappa(sums["confusion"], weighted=False),
        "burden_kappa_weighted": kappa(sums["confusion"], weighted=True),
        "count_icc": intraclass_correlation(sums["moments"]),
        "count_bias": _ratio(called - truth, n),
    }


def metrics_of(sums: Sums) -> Figures:
    """All figures that the sums allow."""
    figures = detection_metrics(sums)
    if "calcifications" in sums:
        figures |= calcification_metrics(sums)
    if "candidate_scans" in sums:
        figures |= candidate_metrics(sums)
    if "moments" in sums:
        figures |= agreement_metrics(sums)
    for prefix in ("", CANDIDATE_PREFIX):
        if f"{prefix}bin_size" in sums:
            figures |= calibration_metrics(sums, prefix)
        if f"{prefix}froc_hits" in sums:
            figures |= froc_metrics(sums, prefix)
    return figures
