"""The parts of the statistics: penalised regression, count models, curves, protocols, coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import nbinom, norm

from cmb_bids.statistics import coverage
from cmb_bids.statistics.covariates import CATEGORICAL, NUMERIC, Covariate, read_covariate
from cmb_bids.statistics.design import build_design
from cmb_bids.statistics.drawn import draw_counts, draw_people, draw_positive_counts
from cmb_bids.statistics.firth import fit_firth
from cmb_bids.statistics.likelihood import CannotFit
from cmb_bids.statistics.models import (
    fit_hurdle,
    fit_negative_binomial,
    fit_zero_inflated,
)
from cmb_bids.statistics.protocol import name_protocols, read_protocol
from cmb_bids.statistics.reference import make_reference, natural_spline, place_on_reference


def two_groups(first, second):
    """(events, n) of two groups as a design with an intercept."""
    matrix = np.repeat([[1.0, 0.0], [1.0, 1.0]], [first[1], second[1]], axis=0)
    outcome = np.concatenate([np.arange(n) < events for events, n in (first, second)])
    return matrix, outcome.astype(float)


@pytest.mark.parametrize(("first", "second"), [((3, 20), (9, 25)), ((0, 10), (5, 12))])
def test_firth_of_two_groups_adds_one_half_to_each_cell(first, second):
    """For one binary covariate the penalty is Haldane's correction (Firth 1993, section 3)."""
    fit = fit_firth(*two_groups(first, second))
    odds = [(events + 0.5) / (n - events + 0.5) for events, n in (first, second)]
    assert fit.estimate == pytest.approx([np.log(odds[0]), np.log(odds[1] / odds[0])], abs=1e-6)
    assert (fit.low < fit.estimate).all()
    assert (fit.estimate < fit.high).all()
    assert np.isfinite(fit.high).all()


def test_firth_of_no_difference_has_p_of_one():
    fit = fit_firth(*two_groups((5, 20), (5, 20)))
    assert fit.estimate[1] == pytest.approx(0, abs=1e-8)
    assert fit.p[1] == pytest.approx(1, abs=1e-6)
    assert fit.low[1] == pytest.approx(-fit.high[1], abs=1e-3)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(3)
    matrix = np.column_stack([np.ones(4000), rng.normal(size=4000)])
    return matrix, rng


def test_negative_binomial_finds_slope_and_dispersion(drawn):
    matrix, _ = drawn
    counts = draw_counts(matrix @ [-1.5, 0.4], 3.0, np.random.default_rng(5))
    fit = fit_negative_binomial(counts, matrix)
    assert np.abs(fit.params - [-1.5, 0.4, 3.0]) == pytest.approx(np.zeros(3), abs=0.5)
    assert (np.abs(fit.params - [-1.5, 0.4, 3.0]) < 4 * fit.bse).all()


def test_poisson_counts_have_no_dispersion_to_fit(drawn):
    matrix, _ = drawn
    counts = np.random.default_rng(8).binomial(1, 0.1, len(matrix)).astype(float)
    with pytest.raises(CannotFit, match="no more spread"):
        fit_negative_binomial(counts, matrix)


def test_extra_zeros_and_hurdles_are_told_apart_from_spread(drawn):
    matrix, _ = drawn
    rng = np.random.default_rng(6)
    counts = draw_counts(matrix @ [1.0, 0.5], 0.5, rng)
    counts[rng.random(len(counts)) < 0.85] = 0
    start = fit_negative_binomial(counts, matrix)
    inflated = fit_zero_inflated(counts, matrix, start)
    assert inflated.params[0] == pytest.approx(np.log(0.85 / 0.15), abs=0.3)
    assert inflated.params[1:3] == pytest.approx([1.0, 0.5], abs=0.2)
    assert inflated.aic < start.aic
    any_part, count_part = fit_hurdle(counts, matrix, start)
    assert count_part.params[1] == pytest.approx(0.5, abs=0.2)
    assert any_part.nobs == len(matrix)


def test_positive_counts_are_positive():
    counts = draw_positive_counts(np.full(500, -2.0), 1.0, np.random.default_rng(1))
    assert counts.min() == 1


# --------------------------------------------------------------------------- reference curves


def people_with_counts(n=3000, seed=2):
    rng = np.random.default_rng(seed)
    people = draw_people(n, rng)
    log_mean = -1.5 + 0.05 * (people["age"] - 65) + 0.3 * (people["sex"] == "M")
    return people.assign(count=draw_counts(log_mean.to_numpy(), 3.0, rng))


@pytest.fixture(scope="module")
def reference():
    return make_reference(people_with_counts())


def test_curves_follow_the_drawn_distribution(reference):
    rows = {(row["sex"], row["age"]): row for row in reference["rows"]}
    assert reference["problem"] is None
    for sex, age in (("F", 50), ("M", 65), ("F", 80)):
        mean = np.exp(-1.5 + 0.05 * (age - 65) + 0.3 * (sex == "M"))
        truth = nbinom.pmf(np.arange(4), 1 / 3, (1 / 3) / (1 / 3 + mean))
        row = rows[sex, age]
        assert row["probabilities"][:4] == pytest.approx(truth, abs=0.04)
        assert row["prevalence"] == pytest.approx(1 - row["probabilities"][0])
        assert row["prevalence_low"] < row["prevalence"] < row["prevalence_high"]
        assert sum(row["probabilities"]) == pytest.approx(1, abs=2e-3)
        assert row["p50"] <= row["p75"] <= row["p90"] <= row["p95"] <= row["p99"]
    assert rows["M", 80]["mean"] > rows["M", 50]["mean"]


def test_percentile_and_z_of_a_count(reference):
    row = next(r for r in reference["rows"] if (r["sex"], r["age"]) == ("M", 70))
    p = row["probabilities"]
    placed = place_on_reference(reference["rows"], "M", 70, 2)
    assert placed["percentile"] == pytest.approx(100 * (p[0] + p[1] + p[2] / 2))
    assert placed["z"] == pytest.approx(norm.ppf(placed["percentile"] / 100))
    values = [place_on_reference(reference["rows"], "M", 70.5, k)["z"] for k in (0, 1, 5, 500)]
    assert values == sorted(values)
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("sex", "age", "count", "problem"),
    [("F", 30, 0, "outside"), ("F", 99, 0, "outside"), ("X", 60, 0, "no sex"),
     ("F", 60, -1, "no count"), ("F", 60, 1.5, "no count")],
)  # fmt: skip
def test_what_the_curves_do_not_cover_is_refused(reference, sex, age, count, problem):
    with pytest.raises(ValueError, match=problem):
        place_on_reference(reference["rows"], sex, age, count)


def test_sparse_ages_are_named_and_empty_ones_left_out():
    people = people_with_counts(800)
    people = people[(people["age"] < 60) | (people["age"] > 75)]
    made = make_reference(people, protocols=2)
    ages = {row["age"] for row in made["rows"]}
    assert 67 not in ages
    assert all(row["n_near"] >= 10 for row in made["rows"])
    assert any("fewer than 30 participants" in note for note in made["notes"])
    assert any("mixes 2 protocols" in note for note in made["notes"])


@pytest.mark.parametrize(
    ("people", "problem"),
    [
        (people_with_counts(50), "too few"),
        (people_with_counts(500).assign(count=0.0), "too few"),
        (people_with_counts(500).assign(age=np.nan), "too few"),
        (people_with_counts(500).assign(age=70.0), "less than 5 years"),
    ],
)
def test_no_curves_where_there_is_too_little(people, problem):
    made = make_reference(people)
    assert problem in made["problem"]
    assert made["rows"] == []


def test_natural_spline_is_straight_beyond_its_knots():
    knots = (50.0, 60.0, 70.0, 80.0)
    for ages in (np.linspace(30, 50, 9), np.linspace(80, 99, 9)):
        bends = np.diff(natural_spline(ages, knots), n=2, axis=0)
        assert np.abs(bends).max() < 1e-9
    assert np.abs(np.diff(natural_spline(np.linspace(50, 80, 9), knots), n=2, axis=0)).max() > 0.01
    assert natural_spline(np.array([60.0, 70.0]), ()).shape == (2, 1)


# -------------------------------------------------------------------------- columns of models


def test_protocols_differ_by_what_changes_the_yield():
    scans = pd.DataFrame(
        {
            "field_strength_t": ["3", "2.89362", "1.5", "n/a"],
            "echo_times_ms": ["20", "20.02", "20", "n/a"],
            "voxel_size_mm": ["0.8x0.8x3", "0.80x0.80x3.0", "0.8x0.8x3", "n/a"],
            "input": ["complex", "complex", "complex", "n/a"],
        }
    )
    names = name_protocols(scans).tolist()
    assert names[0] == names[1] == "3 T, TE 20 ms, 0.8x0.8x3 mm, complex"
    assert names[2].startswith("1.5 T")
    assert names[3] == "unknown protocol"


def test_rare_protocols_are_one_level():
    fields = ["3"] * 30 + ["1.5"] * 20 + ["7"] * 2 + ["1"]
    one = read_protocol(pd.DataFrame({"field_strength_t": fields}))
    assert one.values.value_counts().to_dict() == {"3 T": 30, "1.5 T": 20, "other protocols": 3}
    assert "2 protocols with few participants (3 together)" in one.notes[0]


def test_design_names_steps_and_references():
    age = pd.Series([50.0, 60.0, 70.0, np.nan])
    site = pd.Series(["a", "b", "a", "b"], dtype=object)
    covariates = [Covariate("age", NUMERIC, age), Covariate("site", CATEGORICAL, site)]
    design = build_design(covariates, np.ones(4, dtype=bool), "age")
    assert design.names == ["intercept", "age (per 10 years)", "site: b (against a)"]
    assert design.matrix[:, 1] == pytest.approx([-1, 0, 1])
    assert design.rows.tolist() == [0, 1, 2]
    assert any("1 participants without all covariates" in note for note in design.notes)


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["1", "2.5", "4", "n/a"], NUMERIC), (["0", "1", "0", "1"], CATEGORICAL),
     (["yes", "no", "3", "n/a"], CATEGORICAL)],
)  # fmt: skip
def test_numbers_and_levels(values, kind):
    assert read_covariate(pd.Series(values, dtype=object), "x").kind == kind


def test_levels_of_participants_json_make_numbers_levels():
    coded = read_covariate(pd.Series(["1", "2", "3"]), "x", {"1": "low", "2": "high"})
    assert coded.values.tolist() == ["low", "high", "3"]


# ---------------------------------------------------------------------------------- coverage


def test_the_coverage_study_is_seeded_and_complete():
    first = coverage.run_study(1, 600, seed=3, jobs=1)
    again = coverage.run_study(1, 600, seed=3, jobs=1, names=["logistic", "count"])
    alike = first[first["scenario"].isin(["any, n = 600", "count, n = 600"])]
    pd.testing.assert_frame_equal(alike.reset_index(drop=True), again)
    scenarios = set(first["scenario"])
    assert {"any, n = 600", "count, n = 600", "reference curve, n = 600"} <= scenarios
    assert first["coverage"].isin([0, 1]).all()
    assert "terms are outside" in coverage.describe(first)
