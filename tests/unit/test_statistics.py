"""Group statistics on drawn cohorts: what is known is found, what cannot be given is said."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.stats import norm

from cmb_bids.errors import UsageError
from cmb_bids.statistics import AnalysisSettings, Detector
from cmb_bids.statistics.analysis import analyse_cohort
from cmb_bids.statistics.drawn import draw_cohort
from cmb_bids.statistics.prevalence import corrected_prevalence, wilson_interval


@pytest.fixture(scope="module")
def scans():
    return draw_cohort(1500, seed=4)


@pytest.fixture(scope="module")
def analysis(scans):
    return analyse_cohort(scans, AnalysisSettings(detector=Detector(0.8, 50, 0.95, 100, "drawn")))


def model_of(analysis, outcome):
    return next(model for model in analysis["models"] if model["outcome"] == outcome)


def row_of(rows, **wanted):
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


# -------------------------------------------------------------------------------- prevalence


@pytest.mark.parametrize(("positive", "n"), [(0, 10), (3, 10), (10, 10), (70, 1000)])
def test_wilson_is_the_closed_form(positive, n):
    z, p = norm.ppf(0.975), positive / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = wilson_interval(positive, n)
    assert interval == pytest.approx((p, centre - half, centre + half), abs=1e-9)


@pytest.mark.parametrize(("positive", "n"), [(0, 0), (2, 1), (-1, 5)])
def test_no_share_of_nobody(positive, n):
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(positive, n)
    with pytest.raises(ValueError, match="no share"):
        corrected_prevalence(positive, n, Detector(0.9, 10, 0.9, 10, "drawn"))


def test_rogan_and_gladen_by_hand():
    # 131 of 1000 called; (.131 + .95 - 1) / (.8 + .95 - 1) = .108
    corrected = corrected_prevalence(131, 1000, Detector(0.8, 50, 0.95, 100, "drawn"))
    assert corrected.estimate == pytest.approx(0.108)
    # n' = 1003.84, p' = .132412, Se' = 41/52, Sp' = 96/102, P' = .100856 (equations 6, 7),
    # dP = -.001264 (17), variance = .0011005 (4): .100856 - .001264 -+ 1.96 * .033174
    assert (corrected.low, corrected.high) == pytest.approx((0.034572, 0.164612), abs=2e-5)


def test_a_faultless_detector_corrects_nothing():
    large = Detector(1.0, 10**6, 1.0, 10**6, "drawn")
    corrected, seen = corrected_prevalence(70, 1000, large), wilson_interval(70, 1000)
    assert corrected.estimate == pytest.approx(0.07)
    assert (corrected.low, corrected.high) == pytest.approx((seen.low, seen.high), abs=2e-3)


def test_correction_stays_a_share_and_holds_its_estimate():
    for positive in (0, 1, 5, 100):
        one = corrected_prevalence(positive, 100, Detector(0.7, 20, 0.8, 20, "drawn"))
        assert 0 <= one.low <= one.estimate <= one.high <= 1


@pytest.mark.parametrize(
    "figures",
    [(0.4, 10, 0.5, 10), (1.2, 10, 0.9, 10), (0.9, 0, 0.9, 10)],
)
def test_an_impossible_detector_is_refused(figures):
    with pytest.raises(UsageError, match=r"group\.detector"):
        Detector(*figures, "drawn")


def test_prevalence_of_every_group_is_counted(scans, analysis):
    women = scans[scans["sex"] == "F"]
    ages = women["age"].astype(float)
    band = women[(ages >= 65) & (ages < 75)]
    row = row_of(analysis["prevalence"], outcome="any", age_band="65-74", sex="F")
    assert row["n"] == len(band)
    assert row["positive"] == (band["cmb_definite"].astype(int) > 0).sum()
    everybody = row_of(analysis["prevalence"], outcome="mixed", age_band="all", sex="all")
    assert everybody["positive"] == (scans["pattern"] == "mixed").sum()
    parts = [r["n"] for r in analysis["prevalence"]
             if r["outcome"] == "any" and r["sex"] == "all" and r["age_band"] != "all"]  # fmt: skip
    assert sum(parts) == len(scans)
    assert {r["outcome"] for r in analysis["corrected_prevalence"]} == {"any"}


# ------------------------------------------------------------------------------------ models


def test_logistic_is_that_of_statsmodels(scans, analysis):
    age = scans["age"].astype(float)
    columns = {
        "one": 1.0,
        "age": (age - age.mean()) / 10,
        "man": (scans["sex"] == "M").astype(float),
        "low": (scans["field_strength_t"] == "1.5").astype(float),
    }
    matrix = pd.DataFrame(columns, index=scans.index)
    fit = sm.Logit((scans["cmb_definite"].astype(int) > 0).astype(float), matrix).fit(disp=0)
    model = model_of(analysis, "any")
    assert model["model"] == "logistic"
    assert (model["n"], model["events"]) == (1500, analysis["participants"]["positive"])
    odds = [term["estimate"] for term in model["terms"]]
    assert odds == pytest.approx(np.exp(fit.params)[1:], rel=1e-4)
    limits = np.exp(fit.conf_int())
    assert [term["low"] for term in model["terms"]] == pytest.approx(limits[0][1:], rel=1e-4)
    assert [term["p"] for term in model["terms"]] == pytest.approx(fit.pvalues[1:], rel=1e-3)
    assert model["terms"][0]["term"] == "age (per 10 years)"
    assert "sex: F" in model["reference"]


def test_count_model_finds_the_drawn_effects(analysis):
    model = model_of(analysis, "count")
    assert model["effect"] == "rate ratio"
    # Age and sex were drawn with log rate ratios of .5 and .3.
    for term, truth in zip(model["terms"], (0.5, 0.3), strict=False):
        assert term["low"] < np.exp(truth) < term["high"]
    tried = {one["model"]: one["aic"] for one in model["alternatives"]}
    assert set(tried) == {
        "Poisson",
        "negative binomial",
        "zero-inflated negative binomial",
        "hurdle negative binomial",
    }
    assert model["aic"] == min(tried.values())


def test_every_model_says_how_many_it_is_about(analysis):
    for model in analysis["models"]:
        assert model["terms"]
        assert model["problem"] is None
        assert 0 < model["events"] < model["n"] <= 1500


def test_patterns_are_compared_with_none(analysis):
    model = model_of(analysis, "pattern")
    names = {term["term"].split(",")[0] for term in model["terms"]}
    assert names == {"strictly lobar", "strictly deep infratentorial", "mixed"}
    assert "pattern: none" in model["reference"]


def test_covariates_the_user_names_are_used(scans):
    analysis = analyse_cohort(scans, AnalysisSettings(covariates=("age", "site", "mask_volume_ml")))
    assert analysis["covariates"]["used"] == ["age", "site", "mask_volume_ml", "protocol"]
    terms = [term["term"] for term in model_of(analysis, "any")["terms"]]
    assert any(term.startswith("mask_volume_ml (per SD of ") for term in terms)
    assert sum(term.startswith("site: ") for term in terms) == 2


def test_separation_is_seen_and_penalised(scans):
    """Nobody on a treatment has a microbleed: maximum likelihood would go to minus infinity."""
    positive = scans["cmb_definite"].astype(int) > 0
    drug = np.where(positive, "no", np.where(np.arange(len(scans)) % 3 == 0, "yes", "no"))
    analysis = analyse_cohort(
        scans.assign(drug=drug), AnalysisSettings(covariates=("age", "drug"), reference=False)
    )
    model = model_of(analysis, "any")
    assert "Firth" in model["model"]
    assert any("profile" in note for note in model["notes"])
    term = row_of(model["terms"], term="drug: yes (against no)")
    assert 0 < term["low"] < term["estimate"] < term["high"] < 0.2
    counts = model_of(analysis, "count")
    assert counts["problem"] is None
    assert any("nobody has a microbleed in: drug: yes" in note for note in counts["notes"])


def test_a_covariate_that_is_the_protocol_takes_its_place(scans):
    renamed = scans.assign(scanner=np.where(scans["field_strength_t"] == "3", "new", "old"))
    analysis = analyse_cohort(renamed, AnalysisSettings(covariates=("scanner",), reference=False))
    model = model_of(analysis, "any")
    assert [term["term"].split(":")[0] for term in model["terms"]] == ["scanner"]
    assert any("protocol cannot be told apart" in note for note in model["notes"])


# ------------------------------------------------------------------ what little there may be


def few(scans, n=10):
    return scans.iloc[:n].copy()


def assert_ready_for_json(analysis):
    json.dumps(analysis, allow_nan=False)


def test_nobody_has_a_microbleed(scans):
    zeros = dict.fromkeys(["cmb_definite", "cmb_lobar", "cmb_deep"], "0")
    analysis = analyse_cohort(scans.assign(**zeros, pattern="none"), AnalysisSettings())
    assert_ready_for_json(analysis)
    row = row_of(analysis["prevalence"], outcome="any", age_band="all", sex="all")
    assert (row["positive"], row["prevalence"], row["low"]) == (0, 0, 0)
    assert row["high"] > 0
    assert all(model["problem"] and not model["terms"] for model in analysis["models"])
    assert analysis["reference"]["rows"] == []
    assert any("None of the 1500 participants" in limit for limit in analysis["limits"])


def test_everybody_has_one(scans):
    ones = {"cmb_definite": "1", "cmb_lobar": "1", "cmb_deep": "0", "pattern": "strictly_lobar"}
    analysis = analyse_cohort(scans.assign(**ones), AnalysisSettings())
    assert_ready_for_json(analysis)
    assert model_of(analysis, "any")["problem"]
    assert model_of(analysis, "pattern")["problem"]


def test_ten_participants(scans):
    analysis = analyse_cohort(few(scans), AnalysisSettings())
    assert_ready_for_json(analysis)
    assert analysis["participants"]["analysed"] == 10
    assert analysis["prevalence"]
    assert all(model["problem"] for model in analysis["models"])
    assert analysis["reference"]["problem"]


@pytest.mark.parametrize("n", [1, 2])
def test_hardly_anybody(scans, n):
    analysis = analyse_cohort(few(scans, n), AnalysisSettings())
    assert_ready_for_json(analysis)
    assert analysis["participants"]["analysed"] == n


def test_nobody_is_analysed(scans):
    analysis = analyse_cohort(scans.assign(qc_status="fail"), AnalysisSettings())
    assert_ready_for_json(analysis)
    assert analysis["participants"]["failed_quality"] == 1500
    assert analysis["prevalence"] == []
    assert any("No participant has a count" in limit for limit in analysis["limits"])


def test_no_covariates_at_all(scans):
    bare = scans.drop(columns=["age", "sex", "site"])
    one = bare[bare["field_strength_t"] == "3"]
    analysis = analyse_cohort(one, AnalysisSettings())
    assert_ready_for_json(analysis)
    assert analysis["covariates"]["used"] == []
    assert set(analysis["covariates"]["left_out"]) == {"age", "sex", "protocol"}
    assert all("no covariate" in model["problem"] for model in analysis["models"])
    assert [row["group"] for row in analysis["quality"]["rows"]] == ["all"]
    assert any("all scans are alike" in limit for limit in analysis["limits"])


def test_sex_is_missing(scans):
    analysis = analyse_cohort(scans.drop(columns=["sex"]), AnalysisSettings())
    assert {row["sex"] for row in analysis["prevalence"]} == {"all"}
    assert analysis["covariates"]["used"] == ["age", "protocol"]
    assert {row["sex"] for row in analysis["reference"]["rows"]} == {"all"}
    assert any("'sex' is left out" in limit for limit in analysis["limits"])


def test_one_site_and_several(scans):
    several = analyse_cohort(scans, AnalysisSettings(reference=False))["quality"]
    assert several["by"] == "site"
    assert [row["group"] for row in several["rows"]] == ["north", "south", "west"]
    assert sum(row["pass"] for row in several["rows"]) == 1500
    assert all(1300 < row["mask_volume_ml_median"] < 1400 for row in several["rows"])
    one = analyse_cohort(scans.assign(site="north"), AnalysisSettings(reference=False))["quality"]
    assert [row["n"] for row in one["rows"]] == [1500]


def test_ages_as_people_write_them(scans):
    ages = scans["age"].astype(object).to_numpy().copy()
    ages[:5] = ["89+", "n/a", "old", "199", ""]
    analysis = analyse_cohort(scans.assign(age=ages), AnalysisSettings())
    said = " ".join(analysis["limits"])
    assert "1 capped ages ('89+')" in said
    assert "'old'" in said
    assert "'199'" in said
    assert "4 of 1500 participants have no usable age" in said
    assert model_of(analysis, "any")["n"] == 1496
    oldest = row_of(analysis["prevalence"], outcome="any", age_band="85+", sex="all")
    assert oldest["n"] >= 1


@pytest.mark.parametrize(
    ("codes", "levels", "expected"),
    [
        ({"F": "female", "M": "MALE"}, {}, {"F", "M"}),
        ({"F": "2", "M": "1"}, {"1": "male", "2": "female"}, {"F", "M"}),
        ({"F": "2", "M": "1"}, {}, {"1", "2"}),
    ],
)
def test_sex_as_people_code_it(scans, codes, levels, expected):
    settings = AnalysisSettings(levels={"Gender": levels}, reference=False)
    coded = scans.assign(Gender=scans["sex"].map(codes)).drop(columns="sex")
    analysis = analyse_cohort(coded, settings)
    assert {row["sex"] for row in analysis["prevalence"]} == {"all", *expected}
    unclear = any("nothing says to be female or male" in limit for limit in analysis["limits"])
    assert unclear == (expected == {"1", "2"})


def test_several_scans_of_a_participant_are_one(scans):
    first = few(scans, 200)
    again = first.assign(session_id="ses-2", qc_status="warn", cmb_definite="9")
    both = pd.concat([again, first], ignore_index=True)
    one, two = (analyse_cohort(s, AnalysisSettings(reference=False)) for s in (first, both))
    assert one["participants"] == two["participants"]
    assert one["prevalence"] == two["prevalence"]


def test_not_processed_is_not_zero(scans):
    some = few(scans, 100).assign(processing="processed")
    some.loc[some.index[:30], "processing"] = "not_processed"
    some.loc[some.index[:30], ["cmb_definite", "cmb_possible", "qc_status"]] = "n/a"
    analysis = analyse_cohort(some, AnalysisSettings(reference=False))
    assert analysis["participants"]["not_processed"] == 30
    assert row_of(analysis["prevalence"], outcome="any", age_band="all", sex="all")["n"] == 70
    assert any("30 of 100 participants are not in" in limit for limit in analysis["limits"])


def test_no_atlas_leaves_patterns_out_and_counts_in(scans):
    lost = dict.fromkeys(["cmb_lobar", "cmb_deep", "cmb_infratentorial", "pattern"], "n/a")
    analysis = analyse_cohort(scans.assign(**lost), AnalysisSettings(reference=False))
    assert model_of(analysis, "any")["problem"] is None
    lobar = row_of(analysis["prevalence"], outcome="lobar", age_band="all", sex="all")
    assert lobar["positive"] == 0
    assert lobar["n"] == 1500 - analysis["participants"]["positive"]


def test_settings_from_the_configuration():
    section = {"covariates": ["age"], "age_bands": [50, 60], "reference": False,
               "detector": {"sensitivity": 0.9, "n_with": 20, "specificity": 0.9,
                            "n_without": 30, "source": "here"}}  # fmt: skip
    described = {"sex": {"Levels": {"1": "male"}}, "note": "text"}
    settings = AnalysisSettings.from_config(section, ["sex", "sex"], described)
    assert settings.covariates == ("sex",)
    assert settings.age_bands == (50.0, 60.0)
    assert settings.detector == Detector(0.9, 20, 0.9, 30, "here")
    assert settings.levels == {"sex": {"1": "male"}}
    with pytest.raises(UsageError, match="do not rise"):
        AnalysisSettings.from_config({"age_bands": [60, 50]})
