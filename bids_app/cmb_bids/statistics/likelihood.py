"""Maximising the likelihoods of count models.

The likelihoods and their derivatives are statsmodels'; its own optimiser walks the dispersion on
its natural scale, where it may turn negative, and does not converge on about half of the cohorts
with many zeros. Here the walk is on the logarithm of the dispersion.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

MOST_STEPS = 500
FLATTEST = 1e-6  # of the slope per participant
FLAT = 1e-4  # accepted where floating point ends the walk before
SMALLEST_LOG_ALPHA, LARGEST_LOG_ALPHA = -12.0, 8.0
NO_SPREAD = 1e-4  # dispersions below are none


class CannotFit(ValueError):
    """Why a model could not be fitted, in words for the reader."""


class Fit(NamedTuple):
    """A maximum: ``params`` (p,), the last the dispersion, ``covariance`` (p, p), ``bse`` (p,)
    standard errors, ``llf`` the log likelihood, ``aic``.
    """  # fmt: skip

    params: np.ndarray
    covariance: np.ndarray
    bse: np.ndarray
    llf: float
    aic: float


def maximise(model: Any, start: np.ndarray) -> Fit:
    """The maximum of a statsmodels count model whose last parameter is a dispersion.

    Parameters
    ----------
    model : statsmodels count model
        With ``loglike`` and ``score``.
    start : (p,) array
        The dispersion positive.

    Raises
    ------
    CannotFit
        There is no maximum inside, or it is not a proper one.
    """
    size = len(model.endog)

    def natural(position: np.ndarray) -> np.ndarray:
        params = position.copy()
        params[-1] = np.exp(np.clip(position[-1], SMALLEST_LOG_ALPHA, LARGEST_LOG_ALPHA))
        return params

    def loss(position: np.ndarray) -> tuple[float, np.ndarray]:
        params = natural(position)
        value = -float(model.loglike(params)) / size
        slope = -np.asarray(model.score(params), dtype=float) / size
        slope[-1] *= params[-1]
        if not np.isfinite(value) or not np.isfinite(slope).all():
            return 1e10, np.zeros_like(position)
        return value, slope

    first = np.asarray(start, dtype=float).copy()
    first[-1] = np.log(max(first[-1], NO_SPREAD))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # What overflows on the way says nothing about where the walk ends; that is checked.
        warnings.simplefilter("ignore")
        options = {"gtol": FLATTEST, "maxiter": MOST_STEPS}
        found = minimize(loss, first, jac=True, method="BFGS", options=options)
        params = natural(found.x)
        value, slope = loss(found.x)
        if params[-1] < NO_SPREAD:
            raise CannotFit("there is no more spread than a Poisson distribution has")
        if value >= 1e10 or np.abs(slope).max() > FLAT:
            raise CannotFit("the likelihood was not maximised")
        covariance = _covariance(model, params)
    llf = -value * size
    aic = 2 * len(params) - 2 * llf
    return Fit(params, covariance, np.sqrt(np.diag(covariance)), llf, aic)


def _covariance(model: Any, params: np.ndarray) -> np.ndarray:
    """Inverse of the observed information (p, p), from differences of the score."""
    steps = 1e-5 * np.maximum(np.abs(params), 0.1)
    columns = []
    for position, step in enumerate(steps):
        ahead, behind = params.copy(), params.copy()
        ahead[position] += step
        behind[position] -= step
        difference = np.asarray(model.score(ahead)) - np.asarray(model.score(behind))
        columns.append(-difference / (2 * step))
    information = np.column_stack(columns)
    information = (information + information.T) / 2
    try:
        np.linalg.cholesky(information)
    except np.linalg.LinAlgError as error:
        raise CannotFit("the maximum is not a proper one") from error
    return np.linalg.inv(information)
