"""Logistic regression with Firth's penalty: finite estimates where events are few or separated.

Firth (1993, Biometrika 80:27) removes the leading bias of maximum likelihood by adding half the
log determinant of the information to the log likelihood. Heinze & Schemper (2002, Stat Med
21:2409) showed that this also solves separation, and that intervals and tests are to come from
the profile of the penalised likelihood rather than from standard errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import chi2

MOST_STEPS = 100
LARGEST_STEP = 3.0  # on the log odds scale, as columns count in steps of size about one
TOLERANCE = 1e-8  # on the penalised score
WIDEST = 200.0  # log odds; no interval is sought beyond


class FirthFit(NamedTuple):
    """``estimate``, ``low``, ``high``, ``p`` (k,) on the log odds scale, and the maximum."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    penalised_log_likelihood: float


class NoConvergence(ValueError):
    """The penalised likelihood was not maximised."""


def gather_alike(matrix: np.ndarray, outcome: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows that are alike, once: matrix (m, k), events (m,) and participants (m,) in each."""
    alike, inverse, sizes = np.unique(matrix, axis=0, return_inverse=True, return_counts=True)
    events = np.bincount(inverse.ravel(), weights=outcome, minlength=len(alike))
    return alike, events, sizes.astype(float)


class _Likelihood:
    """The penalised likelihood of a logistic regression on grouped rows."""

    def __init__(self, matrix: np.ndarray, outcome: np.ndarray) -> None:
        self.matrix, self.events, self.sizes = gather_alike(matrix, outcome)

    def value(self, beta: np.ndarray) -> float:
        linear = self.matrix @ beta
        probability = expit(linear)
        likelihood = self.events @ linear - self.sizes @ np.logaddexp(0, linear)
        sign, log_determinant = np.linalg.slogdet(self._information(probability))
        return float(likelihood + log_determinant / 2) if sign > 0 else -np.inf

    def _information(self, probability: np.ndarray) -> np.ndarray:
        weight = self.sizes * probability * (1 - probability)
        return (self.matrix * weight[:, None]).T @ self.matrix

    def score(self, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Penalised score (k,) and information (k, k)."""
        probability = expit(self.matrix @ beta)
        information = self._information(probability)
        weight = probability * (1 - probability)
        # Diagonal of the hat matrix for one participant of each kind of row.
        leverage = weight * np.einsum(
            "ij,ij->i", self.matrix, np.linalg.solve(information, self.matrix.T).T
        )
        residual = self.events - self.sizes * probability
        residual += self.sizes * leverage * (0.5 - probability)
        return self.matrix.T @ residual, information

    def maximise(self, start: np.ndarray, fixed: int | None = None) -> tuple[np.ndarray, float]:
        """The maximum over all coefficients, or all but one, by Newton steps that never go down.

        Raises
        ------
        NoConvergence
            It is not reached.
        """
        free = np.array([c for c in range(len(start)) if c != fixed])
        beta, value = start.copy(), self.value(start)
        for _ in range(MOST_STEPS):
            try:
                score, information = self.score(beta)
                step = np.linalg.solve(information[np.ix_(free, free)], score[free])
            except np.linalg.LinAlgError as error:
                raise NoConvergence("the information became singular") from error
            if np.abs(score[free]).max(initial=0) < TOLERANCE or np.abs(step).max() < 1e-10:
                return beta, value
            step *= min(1.0, LARGEST_STEP / np.abs(step).max())
            for _ in range(30):
                trial = beta.copy()
                trial[free] += step
                new = self.value(trial)
                if new >= value - 1e-12:
                    break
                step /= 2
            else:
                return beta, value  # no way up is left in floating point
            beta, value = trial, new
        raise NoConvergence(f"not reached in {MOST_STEPS} steps")


def _profile_limit(
    likelihood: _Likelihood, beta: np.ndarray, best: float, column: int, direction: int
) -> float:
    """Where the profile of one coefficient has fallen by half the 95 % point of chi square."""
    fall = chi2.ppf(0.95, 1) / 2
    _, information = likelihood.score(beta)
    step = 2 * np.sqrt(np.linalg.inv(information)[column, column])
    start = beta.copy()

    def above(position: float) -> float:
        nonlocal start
        trial = start.copy()
        trial[column] = position
        start, value = likelihood.maximise(trial, column)
        return value - best + fall

    near, far = beta[column], beta[column] + direction * step
    while above(far) > 0:
        near, far = far, far + direction * step
        step *= 1.5
        if abs(far) > WIDEST:
            return direction * np.inf
    return float(brentq(above, near, far, xtol=1e-5))


def fit_firth(matrix: np.ndarray, outcome: np.ndarray) -> FirthFit:
    """Fit a logistic regression with Firth's penalty.

    Parameters
    ----------
    matrix : (n, k) array
        Columns, the intercept among them.
    outcome : (n,) array of 0 and 1

    Returns
    -------
    FirthFit
        Profile penalised likelihood intervals (95 %) and likelihood ratio tests.

    Raises
    ------
    NoConvergence
        The maximum or a limit was not found, or columns are sums of others.
    """
    likelihood = _Likelihood(np.asarray(matrix, float), np.asarray(outcome, float))
    size = matrix.shape[1]
    beta, best = likelihood.maximise(np.zeros(size))
    low, high, p = np.empty(size), np.empty(size), np.empty(size)
    for column in range(size):
        low[column] = _profile_limit(likelihood, beta, best, column, -1)
        high[column] = _profile_limit(likelihood, beta, best, column, +1)
        without = beta.copy()
        without[column] = 0.0
        _, value = likelihood.maximise(without, column)
        p[column] = chi2.sf(2 * max(best - value, 0.0), 1)
    return FirthFit(beta, low, high, p, best)
