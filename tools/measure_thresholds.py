"""How far a threshold chosen on few validation cases falls short of the best one.

    python tools/measure_thresholds.py

Draws populations of cases (lesions and mimics with overlapping scores, no images), takes 25 of
them to calibrate and to choose the definite threshold on in four ways, and prints what F1 each
loses on the population, on average and in the worst twentieth, how the threshold varies, and what
sensitivity and precision it has on average:

- highest: where F1 is highest on the 25 cases;
- resampled: the median of that over 100 bootstrap resamples of the cases;
- half: half of the highest F1;
- chosen: where F of beta 0.5 is highest, as `cmb_bids.training.scoring.choose_thresholds` does it.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from cmb_bids.training.scoring import DEFINITE_BETA, GRID, f_curve, fit_calibration

DRAWS, CASES, CANDIDATES, POPULATION = 60, 25, 150, 2000
# Mean score of a lesion, share of mimics that look like one: easy to hard.
SETTINGS = ((5.0, 0.005), (3.0, 0.01), (2.0, 0.02), (1.0, 0.03))


def draw_cases(n, lesion_score, hard, rng):
    """Scores and hits of all candidates, the case of each, and the lesions of each case."""
    lesions = np.where(rng.random(n) < 0.35, 0, rng.poisson(5, n))
    seen = rng.binomial(lesions, 0.97)  # the others have no candidate
    case = np.repeat(np.arange(n), CANDIDATES)
    hits = np.tile(np.arange(CANDIDATES), n) < np.repeat(seen, CANDIDATES)
    mimic = np.where(
        rng.random(len(hits)) < hard,
        rng.normal(-1.5, 1.5, len(hits)),
        rng.normal(-8, 1.5, len(hits)),
    )
    return np.where(hits, rng.normal(lesion_score, 2.0, len(hits)), mimic), hits, case, lesions


def calibrated(scores, hits):
    """A function from scores to probabilities, fitted as networks are."""
    logits = np.stack([scores, np.full(len(scores), -1e4), np.zeros(len(scores))], axis=1)
    fitted = fit_calibration(logits, np.where(hits, 0, 2))
    return lambda values: expit(values / fitted.temperature + fitted.bias[0])


def choices(probability, hits, case, lesions, rng):
    """The four thresholds."""
    curve = f_curve(probability, hits, lesions.sum(), 1.0)
    strict = f_curve(probability, hits, lesions.sum(), DEFINITE_BETA)
    highest = []
    for _ in range(100):
        drawn = rng.integers(0, CASES, CASES)
        rows = np.concatenate([np.flatnonzero(case == i) for i in drawn])
        again = f_curve(probability[rows], hits[rows], lesions[drawn].sum(), 1.0)
        highest.append(GRID[np.argmax(again)])
    return {
        "highest": GRID[np.argmax(curve)],
        "resampled": np.median(highest),
        "half": np.clip(curve.max() / 2, GRID[0], GRID[-1]),
        "chosen": strict.max() / (1 + DEFINITE_BETA**2),
    }


def main():
    rng = np.random.default_rng(0)
    print(
        "| lesion score, hard mimics | choice | F1 lost: mean | 95 % below | threshold: sd ", end=""
    )
    print("| sensitivity | precision |\n|---|---|---|---|---|---|---|")
    for lesion_score, hard in SETTINGS:
        scores, hits, _, lesions = draw_cases(POPULATION, lesion_score, hard, rng)
        lost, chosen, reached = {}, {}, {}
        for _ in range(DRAWS):
            few = draw_cases(CASES, lesion_score, hard, rng)
            probability = calibrated(*few[:2])
            curve = f_curve(probability(scores), hits, lesions.sum(), 1.0)
            for name, threshold in choices(probability(few[0]), *few[1:], rng).items():
                chosen.setdefault(name, []).append(threshold)
                there = curve[np.argmin(np.abs(GRID - threshold))]
                lost.setdefault(name, []).append(curve.max() - there)
                true = (hits & (probability(scores) >= threshold)).sum()
                called = max((probability(scores) >= threshold).sum(), 1)
                reached.setdefault(name, []).append((true / lesions.sum(), true / called))
        for name in lost:
            figures = (np.mean(lost[name]), np.percentile(lost[name], 95), np.std(chosen[name]))
            figures += tuple(np.mean(reached[name], axis=0))
            shown = " | ".join(f"{value:.4f}" for value in figures)
            print(f"| {lesion_score:g}, {hard:g} | {name} | {shown} |")


if __name__ == "__main__":
    main()
