"""Adjusted models: who has microbleeds, where, and how many.

Fits are statsmodels'; only the penalised logistic regression is `cmb_bids.statistics.firth`. A
model that cannot be fitted gives an entry that says why, never an exception and never a number
that did not converge.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import norm
from statsmodels.discrete.count_model import ZeroInflatedNegativeBinomialP
from statsmodels.discrete.discrete_model import Logit, MNLogit, NegativeBinomialP, Poisson
from statsmodels.discrete.truncated_model import TruncatedLFNegativeBinomialP

from cmb_bids.statistics.design import INTERCEPT, Design, build_design, without_empty_levels
from cmb_bids.statistics.firth import FirthFit, NoConvergence, fit_firth
from cmb_bids.statistics.likelihood import CannotFit, Fit, maximise
from cmb_bids.statistics.participants import PATTERNS, Cohort

FEWEST_EVENTS = 5  # of either kind; below, no model is fitted
EVENTS_PER_TERM = 10.0  # below, Firth's penalty (Peduzzi 1996, J Clin Epidemiol 49:1373)
UNSTABLE_ERROR = 10.0  # standard error of a log ratio that betrays separation
MANY_ZEROS = 0.8
ODDS, RATE = "odds ratio", "rate ratio"
FIT_FAULTS = (np.linalg.LinAlgError, ValueError, FloatingPointError, ZeroDivisionError)
QUANTILE = float(norm.ppf(0.975))

LOGISTIC, FIRTH = "logistic", "logistic, Firth's penalty"
MULTINOMIAL, SEPARATE = "multinomial logistic", "logistic by pattern, Firth's penalty"
POISSON, NEGATIVE_BINOMIAL = "Poisson", "negative binomial"
ZERO_INFLATED, HURDLE = "zero-inflated negative binomial", "hurdle negative binomial"
ZERO_PART = f"{HURDLE}, any part"

Entry = dict[str, Any]


# -------------------------------------------------------------------------------- entries


def _entry(outcome: str, model: str, effect: str, design: Design | None = None) -> Entry:
    """An entry without terms yet."""
    return {
        "outcome": outcome,
        "model": model,
        "n": 0 if design is None else len(design.rows),
        "events": 0,
        "effect": effect,
        "reference": "" if design is None else design.reference,
        "terms": [],
        "aic": None,
        "alternatives": [],
        "notes": [] if design is None else list(design.notes),
        "problem": None,
    }


def _terms(
    names: list[str],
    estimate: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    p: np.ndarray,
    prefix: str = "",
) -> list[dict[str, Any]]:
    """Ratios by name, from the log scale; without the intercept."""
    with np.errstate(over="ignore"):
        ratios = np.exp([estimate, low, high])
    return [
        {
            "term": f"{prefix}{name}",
            "estimate": float(ratios[0, i]),
            "low": float(ratios[1, i]),
            "high": float(ratios[2, i]),
            "p": float(p[i]),
        }
        for i, name in enumerate(names)
        if name != INTERCEPT
    ]


def _wald_terms(
    names: list[str], estimate: np.ndarray, error: np.ndarray, prefix: str = ""
) -> list[dict[str, Any]]:
    """Ratios with Wald intervals and tests."""
    half = QUANTILE * error
    p = 2 * norm.sf(np.abs(estimate) / error)
    return _terms(names, estimate, estimate - half, estimate + half, p, prefix)


def _fit(model: Any, **options: Any) -> Any:
    """A statsmodels fit that converged to a proper maximum.

    Raises
    ------
    CannotFit
        It did not.
    """
    try:
        # Warnings of steps on the way say nothing about where the fit ended; that is checked.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            result = model.fit(disp=0, **options)
            errors = np.asarray(result.bse, dtype=float)
    except FIT_FAULTS as error:
        raise CannotFit(f"the fit failed ({' '.join(str(error).split())[:100]})") from error
    if not result.mle_retvals.get("converged", False) or not np.isfinite(result.llf):
        raise CannotFit("the likelihood was not maximised")
    if not np.isfinite(errors).all():
        raise CannotFit("the standard errors are not defined")
    return result


# ------------------------------------------------------------------------------- logistic


def fit_logistic(outcome: str, values: np.ndarray, design: Design) -> Entry:
    """Odds ratios of having an outcome.

    Maximum likelihood with Wald intervals; Firth's penalty with profile intervals where there
    are fewer than `EVENTS_PER_TERM` events a term, or where separation shows.

    Parameters
    ----------
    outcome : str
    values : (n,) array of 0 and 1
        Of the design's rows.
    design : Design
    """
    entry = _entry(outcome, LOGISTIC, ODDS, design)
    entry["events"] = int(values.sum())
    fewer = int(min(values.sum(), len(values) - values.sum()))
    problem = _too_few(entry, fewer, len(design.names) - 1)
    if problem:
        return {**entry, "problem": problem}
    few = fewer < EVENTS_PER_TERM * (len(design.names) - 1)
    why = f"fewer than {EVENTS_PER_TERM:g} events a term"
    if not few:
        try:
            result = _fit(Logit(values, design.matrix), maxiter=100)
            if result.bse.max() < UNSTABLE_ERROR:
                entry["terms"] = _wald_terms(design.names, result.params, result.bse)
                entry["aic"] = float(result.aic)
                return entry
            why = "a covariate separates those with from those without"
        except CannotFit as error:
            why = str(error)
    return _with_firth(entry, values, design, why)


def _too_few(entry: Entry, fewer: int, terms: int) -> str | None:
    """Why no model is fitted at all; None where one can be."""
    if terms < 1:
        return "no covariate is left to adjust for or to estimate"
    if fewer < FEWEST_EVENTS:
        return (
            f"{entry['events']} of {entry['n']} participants have it: with fewer than "
            f"{FEWEST_EVENTS} of either kind no model is fitted"
        )
    if entry["n"] <= terms + 2:
        return f"{entry['n']} participants are too few for {terms} terms"
    return None


def _with_firth(entry: Entry, values: np.ndarray, design: Design, why: str) -> Entry:
    """The entry with a penalised fit in place of maximum likelihood."""
    entry = {**entry, "model": FIRTH}
    try:
        fit = fit_firth(design.matrix, values)
    except NoConvergence as error:
        return {**entry, "problem": f"the penalised likelihood was not maximised ({error})"}
    note = (
        f"Firth's penalised likelihood with profile intervals, because {why}; the estimates are "
        "drawn towards no effect"
    )
    return {**entry, "terms": _firth_terms(fit, design), "notes": [*entry["notes"], note]}


def _firth_terms(fit: FirthFit, design: Design, prefix: str = "") -> list[dict[str, Any]]:
    return _terms(design.names, fit.estimate, fit.low, fit.high, fit.p, prefix)


# ---------------------------------------------------------------------------- multinomial


def fit_multinomial(patterns: np.ndarray, design: Design) -> Entry:
    """Odds ratios of each pattern against none.

    Where separation or few events forbid one joint fit, each pattern is compared with none in a
    penalised fit of its own (Begg & Gray 1984, Biometrika 71:11).

    Parameters
    ----------
    patterns : (n,) array of str
        Of the design's rows, of `PATTERNS`.
    design : Design
    """
    entry = _entry("pattern", MULTINOMIAL, ODDS, design)
    sizes = {name: int((patterns == name).sum()) for name in PATTERNS}
    entry["events"] = len(patterns) - sizes["none"]
    compared = [name for name in PATTERNS[1:] if sizes[name] >= FEWEST_EVENTS]
    terms = len(design.names) - 1
    for name in PATTERNS[1:]:
        if name not in compared:
            entry["notes"].append(f"{sizes[name]} participants are {name}: too few to compare")
    if terms < 1 or not compared or sizes["none"] < FEWEST_EVENTS:
        problem = _too_few(entry, 0, terms)
        if terms >= 1 and sizes["none"] >= FEWEST_EVENTS:
            problem = f"no pattern has {FEWEST_EVENTS} participants"
        return {**entry, "problem": problem}
    keep = np.isin(patterns, ["none", *compared])
    design, patterns = design.take(keep), patterns[keep]
    entry["n"], entry["events"] = len(patterns), int((patterns != "none").sum())
    entry["reference"] = "; ".join(part for part in ("pattern: none", design.reference) if part)
    if min(sizes[name] for name in compared) >= EVENTS_PER_TERM * terms:
        joint = _joint_multinomial(entry, patterns, compared, design)
        if joint is not None:
            return joint
    return _pattern_by_pattern(entry, patterns, compared, design)


def _joint_multinomial(
    entry: Entry, patterns: np.ndarray, compared: list[str], design: Design
) -> Entry | None:
    """One maximum likelihood fit of all patterns; None where it is not to be trusted."""
    codes = np.array([["none", *compared].index(name) for name in patterns])
    try:
        result = _fit(MNLogit(codes, design.matrix), maxiter=100)
    except CannotFit:
        return None
    errors = np.asarray(result.bse)
    if errors.max() >= UNSTABLE_ERROR:
        return None
    estimates = np.asarray(result.params)
    terms = []
    for column, name in enumerate(compared):
        terms += _wald_terms(
            design.names, estimates[:, column], errors[:, column], f"{_plain(name)}, "
        )
    return {**entry, "terms": terms, "aic": float(result.aic)}


def _pattern_by_pattern(
    entry: Entry, patterns: np.ndarray, compared: list[str], design: Design
) -> Entry:
    """Each pattern against none in a penalised fit of its own."""
    terms: list[dict[str, Any]] = []
    notes = [
        "each pattern is compared with none in a fit of its own with Firth's penalty and profile "
        f"intervals, because of separation or fewer than {EVENTS_PER_TERM:g} events a term"
    ]
    for name in compared:
        keep = np.isin(patterns, ["none", name])
        part = design.take(keep)
        try:
            fit = fit_firth(part.matrix, (patterns[keep] == name).astype(float))
        except NoConvergence as error:
            notes.append(f"{_plain(name)}: the penalised likelihood was not maximised ({error})")
            continue
        terms += _firth_terms(fit, part, f"{_plain(name)}, ")
    problem = None if terms else "no pattern could be compared with none"
    return {
        **entry,
        "model": SEPARATE,
        "terms": terms,
        "notes": [*entry["notes"], *notes],
        "problem": problem,
    }


def _plain(name: str) -> str:
    """A level as words."""
    return name.replace("_", " ")


# --------------------------------------------------------------------------------- counts


def fit_poisson(counts: np.ndarray, matrix: np.ndarray) -> Any:
    """Poisson regression; `CannotFit` where it does not converge."""
    return _fit(Poisson(counts, matrix), maxiter=100)


def fit_negative_binomial(counts: np.ndarray, matrix: np.ndarray) -> Fit:
    """Negative binomial regression, variance mu + alpha mu^2; last parameter alpha.

    Raises
    ------
    CannotFit
        It does not converge, or the counts spread no more than a Poisson distribution.
    """
    start = fit_poisson(counts, matrix)
    mean = np.exp(np.clip(matrix @ start.params, -30, 30))
    # Moment estimate of the dispersion.
    alpha = float((((counts - mean) ** 2 - mean) / mean**2).mean())
    first = np.r_[start.params, np.clip(alpha, 0.1, 20.0)]
    return maximise(NegativeBinomialP(counts, matrix, p=2), first)


def fit_zero_inflated(counts: np.ndarray, matrix: np.ndarray, start: Fit) -> Fit:
    """Negative binomial with a constant share of extra zeros; first parameter its log odds.

    The share being constant, the coefficients are log ratios of the mean count of everybody.

    Parameters
    ----------
    counts : (n,) array
    matrix : (n, k) array
    start : Fit
        The negative binomial regression, where to start from.

    Raises
    ------
    CannotFit
        It does not converge.
    """
    first = np.r_[0.0, start.params]
    first[1] += np.log(2.0)  # as half of the zeros are taken for extra ones
    first[-1] /= 3
    return maximise(ZeroInflatedNegativeBinomialP(counts, matrix, p=2), first)


def fit_hurdle(counts: np.ndarray, matrix: np.ndarray, start: Fit) -> tuple[Any, Fit]:
    """Two parts: logistic for any, zero-truncated negative binomial for how many.

    Returns
    -------
    any_part : statsmodels result
    count_part : Fit
        Their log likelihoods add up.

    Raises
    ------
    CannotFit
        A part does not converge.
    """
    any_part = _fit(Logit((counts > 0).astype(float), matrix), maxiter=100)
    positive = counts > 0
    truncated = TruncatedLFNegativeBinomialP(counts[positive], matrix[positive], truncation=0, p=2)
    return any_part, maximise(truncated, start.params)


def _attempt(name: str, fit: Callable[[], Any], failed: list[str]) -> Any:
    """A fit, or None with the reason added to ``failed``."""
    try:
        return fit()
    except CannotFit as error:
        failed.append(f"{name}: {error}")
        return None


def fit_counts(counts: np.ndarray, design: Design) -> list[Entry]:
    """Rate ratios of the number of microbleeds, by the model with the smallest AIC.

    Poisson and negative binomial are tried; zero-inflated and hurdle negative binomial too where
    more than `MANY_ZEROS` have none. A hurdle has a second entry for its part of any.

    Parameters
    ----------
    counts : (n,) array
        Of the design's rows.
    design : Design
    """
    entry = _entry("count", NEGATIVE_BINOMIAL, RATE, design)
    positive = int((counts > 0).sum())
    entry["events"] = positive
    problem = _too_few(entry, positive, len(design.names) - 1)
    if problem:
        return [{**entry, "problem": problem}]
    design, keep = without_empty_levels(design, counts)
    counts = counts[keep]
    entry |= {"n": len(counts), "notes": list(design.notes), "reference": design.reference}
    problem = _too_few(entry, positive, len(design.names) - 1)
    if problem:
        return [{**entry, "problem": problem}]
    fits, failed = _count_candidates(counts, design.matrix)
    entry["notes"] += [f"not used: {reason}" for reason in failed]
    ranked = sorted(fits, key=lambda name: fits[name][1])
    entry["alternatives"] = [{"model": name, "aic": fits[name][1]} for name in ranked]
    stable = [n for n in ranked if _slope_errors(n, fits[n][0], design).max() < UNSTABLE_ERROR]
    if not stable:
        return [{**entry, "problem": "no count model could be fitted: " + "; ".join(failed or
                 ["a covariate separates those with from those without"])}]  # fmt: skip
    best = stable[0]
    result, aic = fits[best]
    entry |= {"model": best, "aic": aic}
    if positive < EVENTS_PER_TERM * (len(design.names) - 1):
        entry["notes"].append(
            f"{positive} participants with microbleeds are few for {len(design.names) - 1} terms: "
            "read the intervals as rough"
        )
    if best == HURDLE:
        return _hurdle_entries(entry, result, design)
    estimate, error = _slopes(best, result, design)
    entry["terms"] = _wald_terms(design.names, estimate, error)
    return [entry]


def _count_candidates(
    counts: np.ndarray, matrix: np.ndarray
) -> tuple[dict[str, tuple[Any, float]], list[str]]:
    """Fits that converged with their AIC, and why others did not."""
    failed: list[str] = []
    fits: dict[str, tuple[Any, float]] = {}
    poisson = _attempt(POISSON, lambda: fit_poisson(counts, matrix), failed)
    if poisson is not None:
        fits[POISSON] = (poisson, float(poisson.aic))
    binomial = _attempt(NEGATIVE_BINOMIAL, lambda: fit_negative_binomial(counts, matrix), failed)
    if binomial is None:
        return fits, failed
    fits[NEGATIVE_BINOMIAL] = (binomial, float(binomial.aic))
    if (counts == 0).mean() <= MANY_ZEROS:
        return fits, failed
    inflated = _attempt(ZERO_INFLATED, lambda: fit_zero_inflated(counts, matrix, binomial), failed)
    if inflated is not None:
        fits[ZERO_INFLATED] = (inflated, float(inflated.aic))
    hurdle = _attempt(HURDLE, lambda: fit_hurdle(counts, matrix, binomial), failed)
    if hurdle is not None:
        fits[HURDLE] = (hurdle, float(hurdle[0].aic + hurdle[1].aic))
    return fits, failed


def _slopes(name: str, result: Any, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the mean and their standard errors (k,), intercept first."""
    if name == HURDLE:
        result = result[1]
    first = 1 if name == ZERO_INFLATED else 0
    chosen = slice(first, first + len(design.names))
    return np.asarray(result.params)[chosen], np.asarray(result.bse)[chosen]


def _slope_errors(name: str, result: Any, design: Design) -> np.ndarray:
    """Standard errors of the coefficients, of both parts for a hurdle, without intercepts."""
    errors = _slopes(name, result, design)[1][1:]
    return np.r_[errors, np.asarray(result[0].bse)[1:]] if name == HURDLE else errors


def _hurdle_entries(entry: Entry, result: tuple[Any, Any], design: Design) -> list[Entry]:
    """An entry for how many, and one for any."""
    estimate, error = _slopes(HURDLE, result, design)
    note = (
        "two parts: odds of having any, and the rate among those who have some (of the negative "
        "binomial before its zeros are cut off)"
    )
    how_many = {
        **entry,
        "terms": _wald_terms(design.names, estimate, error),
        "notes": [*entry["notes"], note],
    }
    first = result[0]
    terms = _wald_terms(design.names, np.asarray(first.params), np.asarray(first.bse))
    whether = {**how_many, "model": ZERO_PART, "effect": ODDS, "terms": terms}
    return [how_many, whether]


# ------------------------------------------------------------------------------ everything


def fit_models(cohort: Cohort) -> list[Entry]:
    """All models of a cohort: any, lobar, deep or infratentorial; pattern; count."""
    people = cohort.people
    age = cohort.roles.get("age")
    entries = []

    def design_for(usable: np.ndarray) -> Design:
        return build_design(cohort.adjusting, usable, age)

    for outcome in ("any", "lobar", "deep_infratentorial"):
        values = people[outcome].to_numpy(dtype=float)
        design = design_for(~np.isnan(values))
        entries.append(fit_logistic(outcome, values[design.rows], design))
    patterns = people["pattern"]
    design = design_for(patterns.notna().to_numpy())
    entries.append(fit_multinomial(patterns.to_numpy(dtype=object)[design.rows], design))
    counts = people["count"].to_numpy(dtype=float)
    design = design_for(~np.isnan(counts))
    entries += fit_counts(counts[design.rows], design)
    return entries
