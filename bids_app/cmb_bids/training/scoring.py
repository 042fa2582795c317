"""Calibration on the validation cases, and what the network is worth on the test cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar

from cmb_bids.burden_prior import expected_others, weigh_by_others
from cmb_bids.evaluate import match_points
from cmb_bids.resnet import Calibration, calibrate
from cmb_bids.training.labels import CALCIFICATION, IGNORED, MICROBLEED, ranked_hits
from cmb_bids.training.shards import Case

FALSE_POSITIVE_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # per case, where the FROC is read
CALIBRATION_BINS = 10
GRID = np.round(np.arange(0.02, 0.96, 0.01), 2)  # thresholds that are tried
# How many times a miss weighs a false alarm where definite and possible begin.
DEFINITE_BETA, POSSIBLE_BETA = 0.5, 1.0
# Without phase little is sure: at 0.5 a fifth of what is found would not be called any more.
MAGNITUDE_DEFINITE_BETA = 0.75
LOWEST_DEFINITE = 1 / 3  # where one miss weighs two false alarms
# Where probabilities are those of other scans than the validation cases, these cannot tell.
ELSEWHERE_DEFINITE, ELSEWHERE_POSSIBLE = 0.5, 0.1
MOST_OF_DEFINITE = 0.75  # possible begins at this share of definite or lower
# What is known of a simulated lesion; a case without lesions has the columns too.
LESION_COLUMNS = (
    *("x", "y", "z", "diameter_mm", "apparent_diameter_mm"),
    *("contrast_to_noise", "mars_class"),
)
SIZE_EDGES_MM = (0.0, 1.5, 2.0, 3.0, np.inf)  # of the lesion's core
USUAL_BURDENS = (0.05, 50.0)  # between which the one that fits is sought
RIDGE = 1e-2  # on the calibration's five numbers, in candidates: decides only where data do not


@dataclass(frozen=True)
class ScoredCase:
    """Candidates of one held-out case with what the network said, and its lesions.

    ``protocol`` and clinical ``group``; ``points_mm`` (n, 3); ``labels`` (n,); ``probabilities``
    (n, 3) or any (n,) score in column 0; ``microbleeds``: the true ones, a row each with ``x y z``
    and whatever else is known of them.
    """

    index: int
    protocol: str
    group: str
    points_mm: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    microbleeds: pd.DataFrame

    @property
    def microbleeds_mm(self) -> np.ndarray:
        """Their positions (m, 3)."""
        return self.microbleeds[["x", "y", "z"]].to_numpy(dtype=float)

    def calls(self, threshold: float) -> np.ndarray:
        """Which candidates (k,) are called microbleeds, second ones on a lesion left out.

        The lesion stage draws two candidates on one lesion as one (`cmb_bids.lesions`), so that a
        second one is neither a hit nor a false alarm.
        """
        called = np.flatnonzero(self.probabilities[:, MICROBLEED] >= threshold)
        counts = ~self.on_lesion[called]
        counts[match_points(self.microbleeds_mm, self.points_mm[called])[:, 1]] = True
        return called[counts]

    @property
    def on_lesion(self) -> np.ndarray:
        """Candidates (n,) that lie on a microbleed, or beside the candidate of any lesion.

        One of them that matches no microbleed is a second call on one that another has: which of
        them carries the label says where it lies, not which of them is the better.
        """
        return np.isin(self.labels, (MICROBLEED, IGNORED))

    def called(self, threshold: float) -> np.ndarray:
        """Positions (k, 3) of `calls`."""
        return self.points_mm[self.calls(threshold)]


def scored_case(case: Case, kind: str, probabilities: np.ndarray) -> ScoredCase:
    """A simulated case with the probabilities (n, 3) of its candidates of this kind."""
    found = case.candidates[kind]
    rows = [row for row in case.truth if row["name"] == "microbleed"]
    columns = sorted({key for row in rows for key in row} | set(LESION_COLUMNS))
    return ScoredCase(
        case.index,
        str(case.recipe.get("protocol", "unknown")),
        str(case.recipe.get("group", "unknown")),
        found.points_mm,
        found.labels,
        probabilities,
        pd.DataFrame(rows, columns=columns),
    )


def fit_calibration(
    logits: np.ndarray, labels: np.ndarray, scores: np.ndarray | None = None
) -> Calibration:
    """Temperature, class offsets and score weights: probabilities true of the validation cases.

    Training shows the classes in other shares than the pipeline meets them, hence the offsets
    beside the temperature (Guo et al., ICML 2017). The candidate's score knows things that a patch
    does not show, hence its weights.

    Parameters
    ----------
    logits : (n, 3) array
    labels : (n,) array
        Negative ones are not used.
    scores : (n,) array, optional
        Of the candidates; without them their weights are zero.
    """
    used = labels >= 0
    free = 3 if scores is None else 5
    scores = np.zeros(len(labels)) if scores is None else scores
    logits, scores = logits[used].astype(float), scores[used].astype(float)
    target = labels[used].astype(int)

    def calibration_of(parameters: np.ndarray) -> Calibration:
        log_temperature, *rest = (float(value) for value in parameters)
        bias, weights = rest[:2], rest[2:] or [0.0, 0.0]
        return Calibration(
            float(np.exp(log_temperature)), (bias[0], bias[1], 0.0), (weights[0], weights[1], 0.0)
        )

    def loss(parameters: np.ndarray) -> float:
        probabilities = calibrate(logits, calibration_of(parameters), scores)
        chosen = probabilities[np.arange(len(target)), target]
        ridge = RIDGE * float((parameters**2).sum()) / max(len(target), 1)
        return float(-np.log(np.maximum(chosen, 1e-12)).mean()) + ridge

    best = np.round(minimize(loss, np.zeros(free), method="BFGS").x, 4)
    return calibration_of(best)


def for_elsewhere(calibration: Calibration, mimics_elsewhere: float) -> Calibration:
    """The calibration with the probabilities that other scanners' scans have.

    Definite is then what is likelier a microbleed than not, possible what is one in ten times.

    Parameters
    ----------
    calibration : Calibration
        Fitted to validation cases.
    mimics_elsewhere : float
        How many times as common mimics are there (`cmb_bids.training.elsewhere` measures it).
    """
    return replace(
        calibration,
        mimics_elsewhere=mimics_elsewhere,
        definite=ELSEWHERE_DEFINITE,
        possible=ELSEWHERE_POSSIBLE,
    )


def fit_usual_burden(cases: Sequence[ScoredCase]) -> float:
    """The ``usual_burden`` with which validation cases are likeliest (`cmb_bids.burden_prior`).

    Parameters
    ----------
    cases : sequence of ScoredCase
        With the probabilities of each candidate by itself.

    Returns
    -------
    float
        Held near one where the cases say little (a normal prior of its logarithm, sd 1).
    """

    others = [expected_others(c.probabilities[:, MICROBLEED], c.points_mm) for c in cases]

    def loss(log_burden: float) -> float:
        total = log_burden**2 / 2
        burden = float(np.exp(log_burden))
        for case, beside in zip(cases, others, strict=True):
            used = case.labels >= 0
            p = weigh_by_others(case.probabilities, beside, burden)[used, MICROBLEED]
            right = np.where(case.labels[used] == MICROBLEED, p, 1 - p)
            total -= float(np.log(np.maximum(right, 1e-12)).sum())
        return total

    found = minimize_scalar(loss, bounds=np.log(USUAL_BURDENS), method="bounded")
    return round(float(np.exp(found.x)), 3)


def pooled_hits(cases: Sequence[ScoredCase]) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores and hits of all candidates of all cases, and the number of microbleeds.

    Second candidates on a lesion are left out, as in `ScoredCase.calls`.
    """
    scores, hits = [], []
    for case in cases:
        score = case.probabilities[:, MICROBLEED]
        hit = ranked_hits(case.points_mm, score, case.microbleeds_mm)
        counts = hit | ~case.on_lesion
        scores.append(score[counts])
        hits.append(hit[counts])
    lesions = sum(len(case.microbleeds_mm) for case in cases)
    return np.concatenate(scores), np.concatenate(hits), lesions


def choose_thresholds(
    cases: Sequence[ScoredCase], probabilities: bool = True, definite_beta: float = DEFINITE_BETA
) -> tuple[float, float]:
    """Definite and possible thresholds: where false alarms weigh more, and where F1 is highest.

    Where F is highest on a few dozen lesions is mostly chance. How high it is there is not, and
    for calibrated probabilities the threshold that maximises F is F / (1 + beta^2) at its maximum
    (Lipton et al., ECML 2014). `tools/measure_thresholds.py` shows what that buys.

    F1 hardly changes over a wide range around its maximum. Definite begins above that range: most
    people have no microbleed, so that a false one changes what is said of them. Possible begins
    where F1 is highest, about where every second one is right. It is lower than definite by at
    least a quarter, so that there is room between.

    Parameters
    ----------
    cases : sequence of ScoredCase
        For calibration, never for testing.
    probabilities : bool, optional
        Whether the scores are calibrated probabilities; if not, the thresholds are where F is
        highest.
    definite_beta : float, optional
        Of the F that decides where definite begins; 1 where detectors are compared by F1.
    """
    scores, hits, lesions = pooled_hits(cases)
    grid = GRID if probabilities else _levels(scores)

    def best(beta: float) -> float:
        curve = f_curve(scores, hits, lesions, beta, grid)
        return float(curve.max() / (1 + beta**2) if probabilities else grid[curve.argmax()])

    definite, possible = best(definite_beta), best(POSSIBLE_BETA)
    if not probabilities:
        return definite, min(possible, definite * MOST_OF_DEFINITE)
    definite = round(max(definite, LOWEST_DEFINITE), 3)
    return definite, round(min(max(possible, GRID[0]), definite * MOST_OF_DEFINITE), 3)


def _levels(scores: np.ndarray) -> np.ndarray:
    """Thresholds (k,) worth trying on scores of any scale: midway between all that occur.

    At a score itself, the next case's lesions that are a little fainter would be missed.
    """
    levels = np.unique(scores)
    return (levels[1:] + levels[:-1]) / 2 if len(levels) > 1 else GRID


def f_curve(
    scores: np.ndarray,
    hits: np.ndarray,
    lesions: float,
    beta: float,
    thresholds: np.ndarray = GRID,
) -> np.ndarray:
    """F-beta at each threshold."""
    order = np.argsort(-scores, kind="stable")
    called = np.searchsorted(-scores[order], -thresholds, side="right")
    true = np.concatenate([[0], np.cumsum(hits[order])])[called]
    below = beta**2 * lesions + called
    return np.where(below > 0, (1 + beta**2) * true / np.maximum(below, 1), 0.0)


def detection_metrics(cases: Sequence[ScoredCase], threshold: float) -> dict[str, Any]:
    """Sensitivity, precision, F1 and false positives of calls at a threshold.

    One-to-one matching within 5 mm, as `cmb_bids.evaluate` does it. Lesions without a candidate
    count as missed; a second call on one lesion does not count (`ScoredCase.calls`).
    """
    lesions = sum(len(case.microbleeds_mm) for case in cases)
    true = called = 0
    for case in cases:
        points = case.called(threshold)
        true += len(match_points(case.microbleeds_mm, points))
        called += len(points)
    false = called - true
    sensitivity = true / lesions if lesions else None
    precision = true / (true + false) if true + false else None
    free = [case for case in cases if not len(case.microbleeds_mm)]
    false_free = sum(len(case.called(threshold)) for case in free)
    return {
        "cases": len(cases),
        "microbleeds": lesions,
        "threshold": threshold,
        "sensitivity": _rounded(sensitivity),
        "precision": _rounded(precision),
        "f1": _rounded(2 * true / (lesions + true + false) if lesions + true + false else None),
        "false_positives_per_case": _rounded(false / len(cases) if cases else None),
        "cases_without_microbleeds": len(free),
        # Of participants rather than lesions: what the group level corrects prevalence with.
        "cases_with_microbleeds_called": sum(
            len(case.called(threshold)) > 0 and len(case.microbleeds_mm) > 0 for case in cases
        ),
        "cases_without_microbleeds_called": sum(len(c.called(threshold)) > 0 for c in free),
        "false_positives_per_case_without_microbleeds": _rounded(
            false_free / len(free) if free else None
        ),
        "calcifications_called_microbleed": _rounded(_calcifications_called(cases, threshold)),
    }


def _calcifications_called(cases: Sequence[ScoredCase], threshold: float) -> float | None:
    """Share of the calcification candidates that were called microbleeds."""
    called = [
        case.probabilities[case.labels == CALCIFICATION, MICROBLEED] >= threshold for case in cases
    ]
    pooled = np.concatenate(called) if called else np.zeros(0)
    return float(pooled.mean()) if pooled.size else None


def froc(cases: Sequence[ScoredCase]) -> dict[str, float | None]:
    """Sensitivity at fixed false positives per case (interpolated downwards)."""
    scores, hits, lesions = pooled_hits(cases)
    if not lesions:
        return {f"{rate:g}": None for rate in FALSE_POSITIVE_RATES}
    order = np.argsort(-scores, kind="stable")
    true, false = np.cumsum(hits[order]), np.cumsum(~hits[order])
    return {
        f"{rate:g}": _rounded(float(true[false <= rate * len(cases)].max(initial=0)) / lesions)
        for rate in FALSE_POSITIVE_RATES
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Expected calibration error of the microbleed probability (equal-count bins).

    Most candidates are certain non-lesions, so that bins of equal width would be empty but one.
    """
    used = labels >= 0
    probability, truth = probabilities[used, MICROBLEED], labels[used] == MICROBLEED
    if not used.any():
        return None
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, min(CALIBRATION_BINS, len(order)))
    gaps = [abs(probability[b].mean() - truth[b].mean()) * len(b) for b in bins]
    return float(sum(gaps) / len(order))


def candidate_recall(cases: Sequence[ScoredCase]) -> float | None:
    """Share of the microbleeds with a candidate within 5 mm: what no network can exceed."""
    _, hits, lesions = pooled_hits(cases)
    return float(hits.sum() / lesions) if lesions else None


def evaluate_cases(cases: Sequence[ScoredCase], definite: float, possible: float) -> dict[str, Any]:
    """All metrics of a model on held-out cases, over all and by protocol."""
    probabilities = np.concatenate([case.probabilities for case in cases])
    labels = np.concatenate([case.labels for case in cases])
    protocols = sorted({case.protocol for case in cases})
    return {
        "definite": detection_metrics(cases, definite),
        "possible_and_definite": detection_metrics(cases, possible),
        "froc_sensitivity_at_false_positives_per_case": froc(cases),
        "expected_calibration_error": _rounded(calibration_error(probabilities, labels), 4),
        "candidate_recall": _rounded(candidate_recall(cases)),
        "candidates_per_case": _rounded(len(labels) / len(cases), 1),
        "by_core_diameter": sensitivity_by_size(cases, definite),
        "by_protocol": {
            protocol: detection_metrics([c for c in cases if c.protocol == protocol], definite)
            for protocol in protocols
        },
    }


def matched(lesions_mm: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Which lesions (m,) have a point of their own within the matching distance."""
    hit = np.zeros(len(lesions_mm), bool)
    hit[[int(pair[0]) for pair in match_points(lesions_mm, points_mm)]] = True
    return hit


def sensitivity_by_size(cases: Sequence[ScoredCase], threshold: float) -> list[dict[str, Any]]:
    """Sensitivity of calls at a threshold by the diameter of the lesion's core.

    Returns
    -------
    list of dict
        ``from_mm``, ``below_mm`` (None: no limit), ``microbleeds``, ``sensitivity``,
        ``candidate_recall``.
    """
    size = np.concatenate([case.microbleeds["diameter_mm"].to_numpy(float) for case in cases])
    hit = np.concatenate([matched(case.microbleeds_mm, case.called(threshold)) for case in cases])
    seen = np.concatenate([matched(case.microbleeds_mm, case.points_mm) for case in cases])
    rows = []
    for low, high in pairwise(SIZE_EDGES_MM):
        these = (size >= low) & (size < high)
        n = int(these.sum())
        rows.append(
            {
                "from_mm": low,
                "below_mm": high if np.isfinite(high) else None,
                "microbleeds": n,
                "sensitivity": _rounded(hit[these].mean() if n else None),
                "candidate_recall": _rounded(seen[these].mean() if n else None),
            }
        )
    return rows


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(float(value), digits)
