"""The group page: everything asked of it, from rich data to none."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from html import escape
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from test_report_page import Outline

from cmb_bids.report import figures, lesion_map
from cmb_bids.report.calculator import build_table
from cmb_bids.report.group_page import CANNOT_SAY, write_group_page
from cmb_bids.report.page import RESEARCH_USE, Section, read_asset, render_page
from cmb_bids.statistics.reference import place_on_reference

HOSTILE = "<script>$x$ & site"


def prevalence_rows(outcome="any"):
    bands, sexes = ("45-54", "55-64", "all"), ("F", "M", "all")
    return [
        {"outcome": outcome, "age_band": band, "sex": sex, "n": 400, "positive": 40,
         "prevalence": 0.1, "low": 0.075, "high": 0.133}
        for band in bands
        for sex in sexes
    ]  # fmt: skip


def reference_rows():
    rows = []
    for sex, mean in (("F", 0.2), ("M", 0.4)):
        for age in range(50, 81):
            model = stats.nbinom(0.2, 0.2 / (0.2 + mean * age / 50))
            probabilities = model.pmf(np.arange(40))
            rows.append(
                {"sex": sex, "age": age, "n_near": 30 + age, "prevalence": 1 - probabilities[0],
                 "mean": float(model.mean()), "p50": 0, "p75": 0,
                 "p90": int(model.ppf(0.9)), "p95": int(model.ppf(0.95)),
                 "p99": int(model.ppf(0.99)), "probabilities": probabilities.tolist()}
            )  # fmt: skip
    return rows


def model(**changes):
    terms = [
        {"term": "age (per 10 years)", "estimate": 1.6, "low": 1.5, "high": 1.7, "p": 1e-9},
        {"term": HOSTILE, "estimate": 2.0, "low": 0.01, "high": 1e6, "p": 0.04},
    ]
    whole = {
        "outcome": "any", "model": "logistic", "n": 38123, "events": 4000, "effect": "odds ratio",
        "reference": "sex F", "terms": terms, "aic": 123.4, "problem": None,
        "alternatives": [{"model": "Poisson", "aic": 200.0}], "notes": [HOSTILE],
    }  # fmt: skip
    return {**whole, **changes}


def analysis(**changes):
    whole = {
        "participants": {
            "total": 40000, "processed": 39500, "not_processed": 500, "failed_quality": 600,
            "analysed": 38900, "positive": 4000, "possible_only": 1200,
        },
        "covariates": {"named": ["age"], "used": ["age"], "left_out": {HOSTILE: HOSTILE}},
        "prevalence": prevalence_rows() + prevalence_rows("lobar"),
        "corrected_prevalence": [
            {**row, "sensitivity": 0.9, "specificity": 0.95, "source": HOSTILE}
            for row in prevalence_rows()
        ],
        "models": [model(), model(outcome="mixed", terms=[], problem="3 events are too few")],
        "burden": [{"burden_class": "0", "n": 34900}, {"burden_class": "1", "n": 4000}],
        "reference": {
            "model": "negative binomial", "notes": [HOSTILE], "problem": None,
            "rows": reference_rows(),
        },
        "quality": {
            "by": "site",
            "rows": [
                {"group": HOSTILE, "n": 9, "pass": 7, "warn": 1, "fail": 1, "snr_median": 30.0,
                 "mask_volume_ml_median": None}
            ],
        },
        "limits": [HOSTILE],
    }  # fmt: skip
    return {**whole, **changes}


def lesion_table(n, kinds=("microbleed", "calcification"), seed=3):
    random = np.random.default_rng(seed)
    places = random.normal(size=(n, 3)) * 15 + [0, -20, 10]
    table = pd.DataFrame(places, columns=["x_mni", "y_mni", "z_mni"])
    table["kind"] = random.choice(kinds, n)
    table["certainty"] = random.choice(["definite", "possible"], n)
    table["counted"] = True
    table["participant_id"] = HOSTILE
    table["mars_class"] = random.choice(["lobar", "deep", "n/a"], n)
    return table


def write(tmp_path, **changes):
    lesions = changes.pop("lesions", None)
    parts = changes.pop("parts", None) or analysis(**changes)
    path = write_group_page(tmp_path / "group.html", parts, lesions)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def large_page(tmp_path_factory):
    """Forty thousand participants, twenty thousand lesions."""
    return write(tmp_path_factory.mktemp("page"), lesions=lesion_table(20_000))


def test_the_page_is_whole_escaped_small_and_self_contained(large_page):
    outline = Outline(large_page)
    assert outline.open == []
    assert len(large_page.encode()) < 5_000_000
    assert "http" not in large_page.replace("http-equiv", "")
    assert "<script>$x$" not in large_page
    assert escape(HOSTILE) in large_page
    assert RESEARCH_USE in large_page
    identifiers = [a["id"] for _, a in outline.tags if a.get("id")]
    assert len(identifiers) == len(set(identifiers))
    images = [a for tag, a in outline.tags if tag == "img"]
    assert len(images) == 2  # a density of each kind
    assert all(a["alt"] and a["src"].startswith("data:image/png") for a in images)
    drawings = [a for _, a in outline.tags if a.get("class") == "drawing"]
    assert len(drawings) == 7
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert set(CANNOT_SAY) <= set(outline.inside("li"))


def test_every_p_value_stands_beside_its_n(large_page):
    outline = Outline(large_page)
    row = large_page[large_page.index(">age (per 10 years)</th>") :].split("</tr>")[0]
    assert "1.60 (1.50 to 1.70)" in row
    assert "&lt; .001" in row
    assert "38\u202f123" in row
    assert "4\u202f000" in row
    assert any("3 events are too few" in text for text in outline.inside("p"))


def test_prevalence_shows_both_sexes_and_what_was_left_out(large_page):
    assert "40 / 400" in large_page
    assert "10.0 % (7.5 to 13.3)" in large_page
    assert "sensitivity of 90.0 % and a specificity of 95.0 %" in large_page
    assert "left out: not processed" in large_page


def test_nothing_given_says_what_cannot_be_given(tmp_path):
    path = write_group_page(tmp_path / "group.html", {}, None)
    page = path.read_text()
    assert Outline(page).open == []
    for what in ("Prevalence", "Burden classes", "Models", "A map", "Reference curves"):
        assert f"{what}" in page
    assert page.count("cannot be given") == 7
    assert "calculator-data" not in page


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"reference": {"problem": "10 participants are too few", "rows": []}}, "too few"),
        ({"prevalence": prevalence_rows()[-1:]}, "no sensitivity and specificity"),
        ({"covariates": {"used": [], "left_out": {}}}, "nothing is adjusted"),
        (
            {"prevalence": [r for r in prevalence_rows() if r["age_band"] == "all"]},
            "no prevalence by age band",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path, parts, said):
    assert said in write(tmp_path, parts=parts)


@pytest.mark.parametrize(
    ("lesions", "said"),
    [
        (pd.DataFrame({"kind": ["microbleed"], "x_mni": [None]}), "coordinates"),
        (pd.DataFrame(), "no lesion is listed"),
    ],
)
def test_lesions_that_cannot_be_drawn_are_said(tmp_path, lesions, said):
    assert said in write(tmp_path, parts={"limits": ["x"]}, lesions=lesions)


def test_the_same_analysis_gives_the_same_page(tmp_path):
    parts = {"burden": analysis()["burden"], "models": [model()]}
    assert write(tmp_path, parts=parts) == write(tmp_path, parts=parts)


def test_patterns_are_compared_with_none_one_by_one(tmp_path):
    terms = [
        {"term": f"{pattern}, {term}", "estimate": 2.0, "low": 1.0, "high": 4.0, "p": 0.05}
        for pattern in ("strictly lobar", "mixed")
        for term in ("age (per 10 years)", "sex: M (against F)")
    ]
    page = write(tmp_path, parts={"models": [model(outcome="pattern", terms=terms)]})
    captions = Outline(page).inside("caption")
    assert "Odds ratios, strictly lobar against none, by term" in captions
    assert "Odds ratios, mixed against none, by term" in captions
    assert page.count(">sex: M (against F)</th>") == 2


# ------------------------------------------------------------------------------ drawings


def test_a_drawing_takes_the_page_s_colours_and_brings_nothing_along():
    svg = figures.draw_forest(model()["terms"], "odds ratio", "one")
    assert svg.startswith("<svg")
    for colour in (figures.INK, figures.MUTED, figures.GRID, "http", "<metadata"):
        assert colour not in svg
    assert "currentColor" in svg
    assert "var(--line)" in svg
    assert "&lt;script&gt;$x$ &amp; site" in svg  # text stays text, and no formula
    assert 'id="one-' in svg
    assert svg == figures.draw_forest(model()["terms"], "odds ratio", "one")


@pytest.mark.parametrize("value", [None, 0.0, math.inf, math.nan])
def test_a_ratio_that_is_none_is_said_to_be_missing(value):
    term = {"term": "t", "estimate": value, "low": value, "high": value}
    assert "not estimated" in figures.draw_forest([term], "odds ratio", "x")
    assert figures.show_ratio(term) == "n/a"


# ----------------------------------------------------------------------------------- map


def test_lesions_are_sorted_into_kinds_and_those_not_drawn_are_counted():
    table = pd.DataFrame(
        {
            "x_mni": [1.0, "n/a", 3.0, 4.0, 5.0],
            "y_mni": 0.0,
            "z_mni": [0.0, 0.0, 0.0, 0.0, np.inf],
            "kind": ["microbleed", "microbleed", "calcification", "microbleed", "calcification"],
            "counted": ["true", "true", "false", "false", "false"],
            "certainty": ["possible", "definite", "definite", "definite", "definite"],
        }
    )
    chosen = lesion_map.choose_lesions(table)
    np.testing.assert_array_equal(chosen.points["microbleed"], [[1, 0, 0]])
    np.testing.assert_array_equal(chosen.definite["microbleed"], [False])
    np.testing.assert_array_equal(chosen.points["calcification"], [[3, 0, 0]])
    assert (chosen.unplaced, chosen.not_counted) == (2, 1)


def test_the_background_is_a_brain_in_mni_space():
    background = lesion_map.load_background()
    # Thalami and pons are brain; beside the head and under the cerebellum nothing is.
    inside = lesion_map.inside_brain(
        np.array([[10, -18, 8], [-10, -18, 8], [0, -25, -30], [79, 0, 0], [0, -60, -78]])
    )
    np.testing.assert_array_equal(inside, [True, True, True, False, False])
    assert 1.2e6 < background.inside.sum() * lesion_map.PIXEL_MM**3 < 2.2e6


def test_density_keeps_the_number_of_lesions_and_their_place():
    points = np.array([[20.0, -30.0, 40.0]] * 50)
    for plane, (right, up, _) in lesion_map.PLANES.items():
        image = lesion_map.density(points, plane)
        assert image.sum() / 100 == pytest.approx(50, rel=1e-3)
        peak = np.unravel_index(np.argmax(image), image.shape)
        place = np.array(peak) + lesion_map.LOW_MM[[right, up]] + 0.5
        np.testing.assert_allclose(place, points[0, [right, up]], atol=1)


def test_every_lesion_is_in_one_slab():
    heights = np.array([-100.0, -48.0, -41.0, -39.0, 0.0, 64.0, 120.0])
    points = np.stack([np.zeros(7), np.zeros(7), heights], axis=1)
    np.testing.assert_array_equal(lesion_map.slab_of(points), [0, 0, 0, 1, 3, 7, 7])


def test_microbleeds_and_calcifications_differ_on_the_map():
    """A lesion alone in the left thalamus: its colour is there, left of the middle."""
    colours = {"microbleed": (255, 91, 74), "calcification": (53, 195, 243)}
    for kind, colour in colours.items():
        table = pd.DataFrame({"x_mni": [-30.0], "y_mni": 0.0, "z_mni": 8.0, "kind": kind})
        png = lesion_map.draw_lesion_map(lesion_map.choose_lesions(table), list(colours))
        image = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
        projections = image[: int(image.shape[0] * 0.37), : int(image.shape[1] * 0.3)]
        near = np.abs(projections - colour).sum(axis=2) < 60
        assert near.sum() > 5
        assert np.nonzero(near)[1].mean() < projections.shape[1] / 2


# ---------------------------------------------------------------------------- calculator


def test_the_calculator_s_table_is_the_model_and_ends_where_nobody_is_left():
    rows = reference_rows()
    women, men = build_table(rows)
    assert (women["name"], men["name"]) == ("women", "men")
    assert women["near"][20] == rows[20]["n_near"]
    for shares, row in zip(women["cumulative"], rows, strict=False):
        expected = np.cumsum(row["probabilities"])[: len(shares)]
        np.testing.assert_allclose(shares, expected, atol=1e-5)
        assert len(shares) < 40
        assert shares[-1] == 1


def find_chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    return None


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here to run the page's script")
def test_the_script_gives_what_python_gives(tmp_path):
    rows = [row for row in reference_rows() if row["age"] != 75]  # nobody near 75
    table = build_table(rows)
    asked = [(sex, age, n) for sex in (0, 1) for age in (50, 63.25, 80) for n in (0, 1, 4, 60)]
    page = tmp_path / "page.html"
    script = (
        f"const table = {json.dumps(table)}; const asked = {json.dumps(asked)};"
        "const c = window.cmbCalculator;"
        "document.title = 'done';"
        "document.body.textContent = JSON.stringify({"
        "found: asked.map(([s, a, n]) => c.findPosition(table[s], a, n)),"
        "said: [c.describe(table[0], 49, 1), c.describe(table[0], 60, 1.5),"
        " c.describe(table[0], 70, 2), c.describe(table[0], 74.5, 2)]});"
    )
    page.write_text(
        f"<!DOCTYPE html><body><script>{read_asset('calculator.js')}</script>"
        f"<script>{script}</script>"
    )
    command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [*command, "--disable-background-networking", profile, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "found" not in done.stdout:
        pytest.skip(f"Chromium does not run here: {done.stderr[-200:]}")
    text = done.stdout[done.stdout.index('{"found"') : done.stdout.rindex("}") + 1]
    answer = json.loads(text)
    for (sex, age, count), found in zip(asked, answer["found"], strict=True):
        expected = place_on_reference(rows, "FM"[sex], age, count)
        assert 100 * found["percentile"] == pytest.approx(expected["percentile"], abs=2e-3)
        assert found["beyond"] == (count == 60)
        if not found["beyond"]:
            assert found["z"] == pytest.approx(expected["z"], abs=1e-3)
            assert found["z"] == pytest.approx(stats.norm.ppf(found["percentile"]), abs=1e-7)
    assert "No answer" in answer["said"][0]
    assert "50 to 80 years" in answer["said"][0]
    assert "whole number" in answer["said"][1]
    assert "percentile" in answer["said"][2]
    assert "no diagnosis" in answer["said"][2]
    assert "too few women" in answer["said"][3]


def test_the_calculator_s_form_is_labelled(large_page):
    outline = Outline(render_page("t", [Section("s")]) + large_page)
    assert {a["name"] for tag, a in outline.tags if tag in ("select", "input")} == {
        "sex",
        "age",
        "count",
    }
    assert outline.count("label") == 3
