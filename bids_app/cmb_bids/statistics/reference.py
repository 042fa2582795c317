"""Reference curves: how many microbleeds people of an age and sex have in this cohort.

A negative binomial regression (zero-inflated where the AIC asks for it) with a natural cubic
spline of age gives the whole distribution of the count at each age, so that a person's count
becomes a mid-percentile and a z-score. Nothing is said outside the ages that were seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import nbinom, norm, poisson

from cmb_bids.statistics.likelihood import CannotFit, Fit
from cmb_bids.statistics.models import (
    MANY_ZEROS,
    NEGATIVE_BINOMIAL,
    POISSON,
    ZERO_INFLATED,
    fit_negative_binomial,
    fit_poisson,
    fit_zero_inflated,
)

FEWEST_PEOPLE, FEWEST_POSITIVE = 100, 20
ENOUGH_FOR_CURVES = 50  # positives; with fewer, the logarithm of the mean is straight in age
FEWEST_OF_A_SEX = 50
KNOT_QUANTILES = (0.05, 0.35, 0.65, 0.95)  # Harrell 2015, Regression Modeling Strategies, 2.4.6
NEAR_YEARS = 2.5
FEWEST_NEAR, SPARSE_NEAR = 10, 30
LAST_SHARE, MOST_COUNTS = 0.999, 60
PERCENTILES = (50, 75, 90, 95, 99)
DRAWS = 500
BOTH = "all"


class Curve(NamedTuple):
    """A fitted distribution of counts.

    ``name`` of the distribution, ``parameters`` (p,) as statsmodels orders them with their
    ``covariance`` (p, p), ``knots`` of the spline (none: straight), ``sexes`` compared, the first
    being the reference, ``interaction`` whether the curves of the sexes differ in shape, ``aic``.
    """

    name: str
    parameters: np.ndarray
    covariance: np.ndarray
    knots: tuple[float, ...]
    sexes: tuple[str, ...]
    interaction: bool
    aic: float


def natural_spline(ages: np.ndarray, knots: Sequence[float]) -> np.ndarray:
    """Natural cubic spline: cubic between the knots, straight beyond the outer ones.

    Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, equations 5.4, 5.5,
    with age counted from the first knot in units of the knots' span.

    Parameters
    ----------
    ages : (n,) array
    knots : sequence of K floats, rising
        None, or one or two, give age alone.

    Returns
    -------
    (n, K - 1) array
        (n, 1) where there are fewer than three knots.
    """
    ages = np.asarray(ages, dtype=float)
    if len(knots) < 3:
        return ((ages - 65.0) / 10.0)[:, None]
    first, last = knots[0], knots[-1]
    t = (ages - first) / (last - first)
    k = (np.asarray(knots) - first) / (last - first)

    def d(i: int) -> np.ndarray:
        cubic = np.maximum(t - k[i], 0) ** 3 - np.maximum(t - k[-1], 0) ** 3
        return cubic / (k[-1] - k[i])

    return np.column_stack([t, *(d(i) - d(len(k) - 2) for i in range(len(k) - 2))])


def reference_matrix(
    ages: np.ndarray, sexes: np.ndarray, knots: Sequence[float], levels: Sequence[str],
    interaction: bool,
) -> np.ndarray:  # fmt: skip
    """Columns: intercept, spline, then each further sex and, with interaction, its own spline."""
    spline = natural_spline(ages, knots)
    columns = [np.ones(len(ages))[:, None], spline]
    for level in levels[1:]:
        member = (np.asarray(sexes) == level).astype(float)[:, None]
        columns += [member, *([member * spline] if interaction else [])]
    return np.hstack(columns)


def _fit_form(
    counts: np.ndarray, ages: np.ndarray, sexes: np.ndarray, knots: tuple[float, ...],
    levels: tuple[str, ...], interaction: bool,
) -> tuple[Curve, Any]:  # fmt: skip
    """One form of the curves, negative binomial or, without more spread, Poisson."""
    matrix = reference_matrix(ages, sexes, knots, levels, interaction)
    try:
        name, result = NEGATIVE_BINOMIAL, fit_negative_binomial(counts, matrix)
    except CannotFit:
        name, result = POISSON, fit_poisson(counts, matrix)
    return _as_curve(name, result, knots, levels, interaction), result


def _as_curve(
    name: str, result: Any, knots: tuple[float, ...], levels: tuple[str, ...], interaction: bool
) -> Curve:
    given = result.covariance if isinstance(result, Fit) else result.cov_params()
    covariance = np.asarray(given, dtype=float)
    parameters = np.asarray(result.params, dtype=float)
    return Curve(name, parameters, covariance, knots, levels, interaction, float(result.aic))


def fit_curve(counts: np.ndarray, ages: np.ndarray, sexes: np.ndarray) -> Curve:
    """Curves of the count over age, alike in shape for both sexes or not, by AIC.

    Parameters
    ----------
    counts, ages : (n,) arrays
    sexes : (n,) array of str
        `BOTH` for everybody where sex is unknown.

    Raises
    ------
    CannotFit
        No form converged.
    """
    levels = tuple(sorted(set(sexes)))
    enough = (counts > 0).sum() >= ENOUGH_FOR_CURVES
    knots = tuple(float(k) for k in np.quantile(ages, KNOT_QUANTILES)) if enough else ()
    if len(set(knots)) < len(KNOT_QUANTILES):
        knots = ()
    forms = [(knots, False)]
    if knots:
        forms.append(((), False))
    if len(levels) > 1 and enough:
        forms += [(used, True) for used, _ in list(forms)]
    fitted, reasons = [], []
    for used, interaction in forms:
        try:
            fitted.append(_fit_form(counts, ages, sexes, used, levels, interaction))
        except CannotFit as error:
            reasons.append(str(error))
    if not fitted:
        raise CannotFit("; ".join(dict.fromkeys(reasons)))
    best, result = min(fitted, key=lambda pair: pair[0].aic)
    if best.name == NEGATIVE_BINOMIAL and (counts == 0).mean() > MANY_ZEROS:
        matrix = reference_matrix(ages, sexes, best.knots, levels, best.interaction)
        try:
            inflated = fit_zero_inflated(counts, matrix, result)
        except CannotFit:
            return best
        if inflated.aic < best.aic:
            return _as_curve(ZERO_INFLATED, inflated, best.knots, levels, best.interaction)
    return best


def distribution(
    curve: Curve, ages: np.ndarray, sexes: np.ndarray, counts: np.ndarray,
    parameters: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean count (n,) and P(count <= k) (n, len(counts)) at ages of sexes.

    Parameters
    ----------
    curve : Curve
    ages, sexes : (n,) arrays
    counts : (m,) array
    parameters : (p,) array, optional
        In place of the fitted ones.
    """
    given = curve.parameters if parameters is None else parameters
    matrix = reference_matrix(ages, sexes, curve.knots, curve.sexes, curve.interaction)
    extra, given = (expit(given[0]), given[1:]) if curve.name == ZERO_INFLATED else (0.0, given)
    mean = np.exp(matrix @ given[: matrix.shape[1]])
    if curve.name == POISSON:
        cumulative = poisson.cdf(counts[None, :], mean[:, None])
    else:
        size = 1 / max(float(given[-1]), 1e-8)
        cumulative = nbinom.cdf(counts[None, :], size, (size / (size + mean))[:, None])
    return (1 - extra) * mean, extra + (1 - extra) * cumulative


def _grid(ages: np.ndarray, sexes: np.ndarray) -> pd.DataFrame:
    """Whole ages of each sex with enough people near: ``sex``, ``age``, ``n_near``."""
    rows = []
    for sex in sorted(set(sexes)):
        own = np.sort(ages[sexes == sex])
        for age in range(int(np.ceil(own[0])), int(np.floor(own[-1])) + 1):
            first, last = np.searchsorted(own, [age - NEAR_YEARS, age + NEAR_YEARS])
            if last - first >= FEWEST_NEAR:
                rows.append((sex, age, int(last - first)))
    return pd.DataFrame(rows, columns=["sex", "age", "n_near"])


def _prevalence_limits(curve: Curve, grid: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """95 % limits (n,) of P(count >= 1), from draws of the parameters (seeded)."""
    rng = np.random.default_rng(0)
    try:
        drawn = rng.multivariate_normal(curve.parameters, curve.covariance, DRAWS, method="eigh")
    except (np.linalg.LinAlgError, ValueError):
        return np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    if curve.name != POISSON:
        drawn[:, -1] = np.maximum(drawn[:, -1], 1e-6)
    ages, sexes = grid["age"].to_numpy(float), grid["sex"].to_numpy()
    none = np.array([0])
    shares = [1 - distribution(curve, ages, sexes, none, one)[1][:, 0] for one in drawn]
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    return low, high


def tabulate_reference(curve: Curve, ages: np.ndarray, sexes: np.ndarray) -> list[dict[str, Any]]:
    """The table others reuse: a row per sex and whole age.

    Returns
    -------
    list of dict
        ``sex``, ``age``, ``n_near`` (participants of that sex within 2.5 years), ``prevalence``
        with ``prevalence_low`` and ``prevalence_high``, ``mean``, ``p50`` to ``p99`` (counts),
        ``probabilities`` (P(0), P(1), ...; the same length in all rows).
    """
    grid = _grid(ages, sexes)
    if grid.empty:
        return []
    counts = np.arange(MOST_COUNTS + 1)
    own_ages, own_sexes = grid["age"].to_numpy(float), grid["sex"].to_numpy()
    mean, cumulative = distribution(curve, own_ages, own_sexes, counts)
    reached = (cumulative >= LAST_SHARE).all(axis=0)
    last = int(np.argmax(reached)) if reached.any() else MOST_COUNTS
    cumulative = cumulative[:, : max(last, 5) + 1]
    probabilities = np.diff(cumulative, axis=1, prepend=0.0)
    low, high = _prevalence_limits(curve, grid)
    rows = []
    for i, (sex, age, near) in enumerate(grid.itertuples(index=False)):
        above = [int(np.searchsorted(cumulative[i], share / 100)) for share in PERCENTILES]
        rows.append(
            {"sex": sex, "age": int(age), "n_near": int(near),
             "prevalence": float(1 - probabilities[i, 0]),
             "prevalence_low": float(low[i]), "prevalence_high": float(high[i]),
             "mean": float(mean[i]),
             **{f"p{share}": count for share, count in zip(PERCENTILES, above, strict=True)},
             "probabilities": [float(p) for p in probabilities[i]]}
        )  # fmt: skip
    return rows


def place_on_reference(
    rows: Sequence[Mapping[str, Any]], sex: str, age: float, count: int
) -> dict[str, float]:
    """Percentile and z-score of a count.

    Parameters
    ----------
    rows : sequence of mapping
        Of `tabulate_reference`, or read back from group_reference.json.
    sex : str
        As in the rows.
    age : float
        Years; between two whole ages the probabilities are interpolated.
    count : int
        Definite microbleeds.

    Returns
    -------
    dict
        ``percentile`` = 100 (P(fewer) + P(as many) / 2), the mid-percentile (Lancaster 1961), and
        ``z``, the standard normal quantile of it; no random number enters. Beyond the last count
        of the table half of what is left is taken.

    Raises
    ------
    ValueError
        The sex or the age is not in the table, or the count is negative.
    """
    if count < 0 or count != int(count):
        raise ValueError(f"{count} is no count")
    own = {int(row["age"]): row["probabilities"] for row in rows if row["sex"] == sex}
    if not own:
        known = ", ".join(sorted({str(row["sex"]) for row in rows}))
        raise ValueError(f"the reference has no sex '{sex}', only {known}")
    below, above = int(np.floor(age)), int(np.ceil(age))
    if below not in own or above not in own:
        raise ValueError(
            f"age {age:g} is outside the reference, which for {sex} covers {min(own)} to "
            f"{max(own)} years (and only ages with enough participants)"
        )
    share = age - below
    probabilities = (1 - share) * np.asarray(own[below]) + share * np.asarray(own[above])
    fewer = float(probabilities[:count].sum())
    as_many = float(probabilities[count]) if count < len(probabilities) else 1 - fewer
    middle = float(np.clip(fewer + as_many / 2, 1e-12, 1 - 1e-12))
    return {"percentile": 100 * middle, "z": float(norm.ppf(middle))}


def _eligible(people: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Participants with an age, of a sex with enough people; 'all' where no sex has them."""
    known = people[people["age"].notna() & people["count"].notna()]
    sizes = known["sex"].value_counts()
    enough = sorted(sizes.index[sizes >= FEWEST_OF_A_SEX])
    notes = []
    if not enough:
        notes.append(f"no sex has {FEWEST_OF_A_SEX} participants: one curve for everybody")
        return known.assign(sex=BOTH), notes
    left = known[known["sex"].isin(enough)]
    if len(left) < len(known):
        notes.append(
            f"{len(known) - len(left)} participants of unknown or rare sex are not in the curves"
        )
    return left, notes


def make_reference(people: pd.DataFrame, protocols: int = 1) -> dict[str, Any]:
    """Reference curves of a cohort.

    Parameters
    ----------
    people : DataFrame
        A row per participant with ``count``, ``age`` (years), ``sex``.
    protocols : int
        Number of protocols the cohort was scanned with.

    Returns
    -------
    dict
        ``model``, ``notes``, ``problem`` (None, or why there are no curves), ``rows``
        (`tabulate_reference`).
    """
    empty: dict[str, Any] = {"model": None, "notes": [], "problem": None, "rows": []}
    people, notes = _eligible(people)
    positive = int((people["count"] > 0).sum())
    if len(people) < FEWEST_PEOPLE or positive < FEWEST_POSITIVE:
        problem = (
            f"{len(people)} participants with age and {positive} of them with microbleeds are too "
            f"few for curves ({FEWEST_PEOPLE} and {FEWEST_POSITIVE} are needed)"
        )
        return {**empty, "problem": problem}
    ages = people["age"].to_numpy(float)
    sexes, counts = people["sex"].to_numpy(), people["count"].to_numpy(float)
    if ages.max() - ages.min() < 5:
        return {**empty, "problem": "ages span less than 5 years"}
    try:
        curve = fit_curve(counts, ages, sexes)
    except CannotFit as error:
        return {**empty, "problem": f"the curves could not be fitted: {error}"}
    rows = tabulate_reference(curve, ages, sexes)
    if not rows:
        problem = f"no age has {FEWEST_NEAR} participants of a sex within {NEAR_YEARS:g} years"
        return {**empty, "problem": problem}
    notes += _describe_curve(curve, len(people), positive, rows, protocols)
    return {"model": _name_curve(curve), "notes": notes, "problem": None, "rows": rows}


def _name_curve(curve: Curve) -> str:
    """The model in words."""
    shape = "straight in age" if not curve.knots else "natural cubic spline of age"
    if len(curve.sexes) == 1:
        return f"{curve.name}, {shape}"
    sexes = "a curve for each sex" if curve.interaction else "curves of one shape for the sexes"
    return f"{curve.name}, {shape}, {sexes}"


def _describe_curve(
    curve: Curve, n: int, positive: int, rows: Sequence[Mapping[str, Any]], protocols: int
) -> list[str]:
    """What the reader must know about the curves."""
    notes = [
        f"from {n} participants, {positive} with microbleeds",
        "definite microbleeds as this detector counts them, not corrected for its errors",
    ]
    if curve.knots:
        notes.append("knots at " + ", ".join(f"{knot:.1f}" for knot in curve.knots) + " years")
    for sex in curve.sexes:
        ages = [row["age"] for row in rows if row["sex"] == sex]
        sparse = [row["age"] for row in rows if row["sex"] == sex and row["n_near"] < SPARSE_NEAR]
        if ages:
            notes.append(f"{sex}: ages {min(ages)} to {max(ages)}; no other age is given")
        if sparse:
            notes.append(
                f"{sex}: fewer than {SPARSE_NEAR} participants within {NEAR_YEARS:g} years at "
                f"{_ranges(sparse)}: read with care"
            )
    if protocols > 1:
        notes.append(
            f"the cohort mixes {protocols} protocols; the curves are those of the mixture and hold "
            "for no single scanner"
        )
    return notes


def _ranges(ages: Sequence[int]) -> str:
    """Whole ages as ranges: '45-47, 80'."""
    runs: list[list[int]] = []
    for age in ages:
        if runs and age == runs[-1][1] + 1:
            runs[-1][1] = age
        else:
            runs.append([age, age])
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)
