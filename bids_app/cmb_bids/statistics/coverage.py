"""``python -m cmb_bids.statistics.coverage``: do the 95 % intervals hold the truth in 95 %?

Cohorts are drawn from known effects and analysed by the same functions as real ones; the table
says how often each interval held the truth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cmb_bids.statistics.covariates import CATEGORICAL, NUMERIC, Covariate
from cmb_bids.statistics.design import Design, build_design
from cmb_bids.statistics.drawn import (
    draw_binary,
    draw_counts,
    draw_people,
    draw_positive_counts,
    linear_predictor,
)
from cmb_bids.statistics.models import (
    HURDLE,
    ZERO_PART,
    fit_counts,
    fit_logistic,
    fit_multinomial,
)
from cmb_bids.statistics.participants import PATTERNS
from cmb_bids.statistics.prevalence import corrected_prevalence, wilson_interval
from cmb_bids.statistics.reference import make_reference
from cmb_bids.statistics.settings import Detector

LOWEST, HIGHEST = 0.92, 0.98
# Name of a term -> effect, and its sign: in a small cohort the reference may be the other level.
TERMS = {
    "age (per 10 years)": ("age", 1),
    "sex: M (against F)": ("sex", 1),
    "sex: F (against M)": ("sex", -1),
    "protocol: B (against A)": ("protocol", 1),
    "protocol: A (against B)": ("protocol", -1),
}
ANY = {"intercept": -2.1, "age": 0.5, "sex": 0.3, "protocol": -0.5}
RATE = {"intercept": -1.6, "age": 0.5, "sex": 0.3, "protocol": -0.5}
PATTERN_EFFECTS = {
    "strictly_lobar": {"intercept": -2.2, "age": 0.4, "sex": 0.2, "protocol": -0.5},
    "strictly_deep_infratentorial": {"intercept": -2.8, "age": 0.3, "sex": 0.5, "protocol": -0.3},
    "mixed": {"intercept": -3.0, "age": 0.7, "sex": 0.4, "protocol": -0.6},
}
HURDLE_ANY = {"intercept": -2.0, "age": -0.4, "sex": -0.6, "protocol": 0.4}
HURDLE_RATE = {"intercept": 1.2, "age": 0.6, "sex": 0.5, "protocol": -0.6}


class Held(NamedTuple):
    """Whether one interval held the truth, and how far the estimate was off."""

    scenario: str
    term: str
    held: bool
    error: float
    model: str


def _design(people: pd.DataFrame) -> Design:
    covariates = [
        Covariate("age", NUMERIC, people["age"]),
        Covariate("sex", CATEGORICAL, people["sex"]),
        Covariate("protocol", CATEGORICAL, people["protocol"]),
    ]
    return build_design(covariates, np.ones(len(people), dtype=bool), "age")


def _compare(
    scenario: str, entry: Mapping[str, Any], truth: Mapping[str, float], prefix: str = ""
) -> Iterator[Held]:
    """Each term of a fitted model against its true effect."""
    for term in entry["terms"]:
        if not str(term["term"]).startswith(prefix):
            continue
        name, sign = TERMS[str(term["term"]).removeprefix(prefix)]
        effect = sign * truth[name]
        held = bool(term["low"] <= np.exp(effect) <= term["high"])
        error = sign * float(np.log(term["estimate"]) - effect)
        yield Held(scenario, prefix + name, held, error, str(entry["model"]))


# ------------------------------------------------------------------------------ scenarios


def _logistic(n: int, rng: np.random.Generator) -> Iterator[Held]:
    people = draw_people(n, rng)
    entry = fit_logistic("any", draw_binary(linear_predictor(people, ANY), rng), _design(people))
    yield from _compare(f"any, n = {n}", entry, ANY)


def _few_events(n: int, rng: np.random.Generator) -> Iterator[Held]:
    """A tenth of the participants, so that Firth's penalty comes in."""
    yield from _logistic(n // 10, rng)


def _multinomial(n: int, rng: np.random.Generator) -> Iterator[Held]:
    people = draw_people(n, rng)
    odds = [np.exp(linear_predictor(people, e)) for e in PATTERN_EFFECTS.values()]
    shares = np.column_stack([np.ones(n), *odds])
    limits = np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)
    drawn = (rng.random(n)[:, None] > limits[:, :-1]).sum(axis=1)
    entry = fit_multinomial(np.array(PATTERNS, dtype=object)[drawn], _design(people))
    for name, effects in PATTERN_EFFECTS.items():
        yield from _compare(f"pattern, n = {n}", entry, effects, f"{name.replace('_', ' ')}, ")


def _compare_counts(
    scenario: str, entries: list[dict[str, Any]], truth: Mapping[str, float]
) -> Iterator[Held]:
    """Rate ratios of the chosen model."""
    yield from _compare(scenario, entries[0], truth)


def _negative_binomial(n: int, rng: np.random.Generator) -> Iterator[Held]:
    people = draw_people(n, rng)
    counts = draw_counts(linear_predictor(people, RATE), 4.0, rng)
    yield from _compare_counts(f"count, n = {n}", fit_counts(counts, _design(people)), RATE)


def _zero_inflated(n: int, rng: np.random.Generator) -> Iterator[Held]:
    people = draw_people(n, rng)
    effects = {**RATE, "intercept": 0.8}
    counts = draw_counts(linear_predictor(people, effects), 0.7, rng)
    counts[rng.random(n) < 0.8] = 0
    scenario = f"count with extra zeros, n = {n}"
    yield from _compare_counts(scenario, fit_counts(counts, _design(people)), effects)


def _hurdle(n: int, rng: np.random.Generator) -> Iterator[Held]:
    """Different effects on any and on how many, which only a hurdle can tell apart."""
    people = draw_people(n, rng)
    counts = draw_binary(linear_predictor(people, HURDLE_ANY), rng)
    some = counts > 0
    log_mean = linear_predictor(people, HURDLE_RATE)[some]
    counts[some] = draw_positive_counts(log_mean, 0.7, rng)
    entries = fit_counts(counts, _design(people))
    if entries[0]["model"] != HURDLE:
        yield Held(f"count with a hurdle, n = {n}", "(hurdle not chosen)", False, 0.0, "")
        return
    yield from _compare(f"count with a hurdle, n = {n}", entries[0], HURDLE_RATE)
    (whether,) = [entry for entry in entries if entry["model"] == ZERO_PART]
    yield from _compare(f"count with a hurdle, n = {n}, any part", whether, HURDLE_ANY)


def _prevalence(n: int, rng: np.random.Generator) -> Iterator[Held]:
    for share, size in ((0.07, n // 10), (0.2, n // 10)):
        positive = int(rng.binomial(size, share))
        interval = wilson_interval(positive, size)
        held = interval.low <= share <= interval.high
        error = interval.estimate - share
        yield Held(f"prevalence, n = {size}", f"{share:g}", held, error, "Wilson")


def _corrected(n: int, rng: np.random.Generator) -> Iterator[Held]:
    for share in (0.07, 0.2):
        for sensitivity, with_, specificity, without in ((0.8, 50, 0.95, 100), (0.9, 150, 0.9, 60)):
            apparent = share * sensitivity + (1 - share) * (1 - specificity)
            found = float(rng.binomial(with_, sensitivity)) / with_
            clear = float(rng.binomial(without, specificity)) / without
            positive = int(rng.binomial(n, apparent))
            detector = Detector(found, with_, clear, without, "drawn")
            interval = corrected_prevalence(positive, n, detector)
            held = interval.low <= share <= interval.high
            term = f"{share:g}, {sensitivity:g} of {with_} and {specificity:g} of {without}"
            error = interval.estimate - share
            yield Held(f"corrected prevalence, n = {n}", term, held, error, "Lang-Reiczigel")


def _reference(n: int, rng: np.random.Generator) -> Iterator[Held]:
    """The modelled prevalence at some ages, against the drawn one."""
    people = draw_people(n, rng).assign(protocol="A")
    counts = draw_counts(linear_predictor(people, RATE), 4.0, rng)
    reference = make_reference(people.assign(count=counts))
    rows = {(row["sex"], row["age"]): row for row in reference["rows"]}
    for sex, age in (("F", 50), ("F", 65), ("M", 65), ("M", 80)):
        one = pd.DataFrame({"age": [float(age)], "sex": [sex], "protocol": ["A"]})
        mean = float(np.exp(linear_predictor(one, RATE))[0])
        truth = 1 - (1 + 4.0 * mean) ** (-1 / 4.0)
        row = rows[sex, age]
        held = row["prevalence_low"] <= truth <= row["prevalence_high"]
        error = row["prevalence"] - truth
        yield Held(f"reference curve, n = {n}", f"{sex} {age}", held, error, reference["model"])


SCENARIOS: dict[str, Callable[[int, np.random.Generator], Iterator[Held]]] = {
    "prevalence": _prevalence,
    "corrected": _corrected,
    "logistic": _logistic,
    "few-events": _few_events,
    "multinomial": _multinomial,
    "count": _negative_binomial,
    "extra-zeros": _zero_inflated,
    "hurdle": _hurdle,
    "reference": _reference,
}


# ------------------------------------------------------------------------------- the study


def run_replicate(seed: np.random.SeedSequence, n: int, names: Sequence[str]) -> list[Held]:
    """The scenarios of these names once, each from a seed of its own."""
    seeds = dict(zip(SCENARIOS, seed.spawn(len(SCENARIOS)), strict=True))
    return [
        held for name in names for held in SCENARIOS[name](n, np.random.default_rng(seeds[name]))
    ]


def run_study(
    replicates: int, n: int, seed: int, jobs: int, names: Sequence[str] = tuple(SCENARIOS)
) -> pd.DataFrame:
    """Coverage by scenario and term.

    Parameters
    ----------
    replicates : int
    n : int
        Participants of a cohort (few events and prevalence: a tenth of it).
    seed : int
    jobs : int
        Processes.
    names : sequence of str
        Of `SCENARIOS`; a scenario's figures do not depend on which others run.

    Returns
    -------
    DataFrame
        ``scenario``, ``term``, ``replicates`` with an interval, ``coverage``, ``bias`` (mean
        error; of the logarithm for ratios), ``models`` (how often each was chosen).
    """
    seeds = np.random.SeedSequence(seed).spawn(replicates)
    work = partial(run_replicate, n=n, names=tuple(names))
    if jobs == 1:
        results = [work(one) for one in seeds]
    else:
        with ProcessPoolExecutor(jobs) as pool:
            results = list(pool.map(work, seeds, chunksize=5))
    table = pd.DataFrame([held for result in results for held in result], columns=Held._fields)
    rows = []
    for (scenario, term), group in table.groupby(["scenario", "term"], sort=False):
        chosen = group["model"].value_counts()
        models = ", ".join(f"{name} {count}" for name, count in chosen.items() if name)
        rows.append(
            (scenario, term, len(group), group["held"].mean(), group["error"].mean(), models)
        )
    columns = ["scenario", "term", "replicates", "coverage", "bias", "models"]
    return pd.DataFrame(rows, columns=columns)


def describe(table: pd.DataFrame) -> str:
    """The table as Markdown, and how many terms are outside 92 to 98 %."""
    lines = ["| simulated cohort | term | replicates | coverage | bias | models chosen |"]
    lines.append("|---|---|---|---|---|---|")
    for row in table.itertuples(index=False):
        lines.append(
            f"| {row.scenario} | {row.term} | {row.replicates} | {row.coverage:.3f} "
            f"| {row.bias:+.3f} | {row.models} |"
        )
    outside = int((~table["coverage"].between(LOWEST, HIGHEST)).sum())
    lines.append("")
    lines.append(f"{outside} of {len(table)} terms are outside {LOWEST:.0%} to {HIGHEST:.0%}.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit code 1 where a term is outside 92 to 98 %."""
    parser = argparse.ArgumentParser(prog="cmb_bids.statistics.coverage", description=__doc__)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--participants", type=int, default=2000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    options = parser.parse_args(arguments)
    started = time.time()
    table = run_study(
        options.replicates, options.participants, options.seed, options.jobs, options.scenarios
    )
    print(describe(table))
    print(f"{time.time() - started:.0f} s", file=sys.stderr)
    return int(not table["coverage"].between(LOWEST, HIGHEST).all())


if __name__ == "__main__":
    sys.exit(main())
