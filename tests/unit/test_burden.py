"""Counts of a scan: what enters them, what they say when they cannot be trusted."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmb_bids.burden import (
    burden_class,
    name_pattern,
    poisson_binomial,
    probability_of_at_least,
    summarise_scan,
)
from cmb_bids.columns import SCAN_COLUMNS
from cmb_bids.lesions import TABLE_COLUMNS

SCAN = {
    "filename": "anat/sub-01_part-mag_T2starw.nii.gz",
    "kind": "complex",
    "version": "0.1.0",
    "field_strength_t": 3.0,
    "echoes": [{"echo_time_s": 0.0094}, {"echo_time_s": 0.02}],
}
PHASE = {"polarity_sign": -1, "polarity_confidence": "strong"}
BRAIN = {
    "gate": "pass", "reason": None, "source": "registration", "volume_ml": 1432.04,
    "coverage": 0.31,
}  # fmt: skip
MODEL = {"model": "shipped", "version": "1", "channels": ["swi", "phase"]}


def rows(*lesions):
    """Lesion table from (certainty, counted, mars_class, probability)."""
    table = pd.DataFrame(lesions, columns=["certainty", "counted", "mars_class", "probability"])
    table["volume_mm3"] = 10.0
    return table.reindex(columns=TABLE_COLUMNS)


def summarise(microbleeds, calcifications=None, **reports):
    none = pd.DataFrame({name: [] for name in TABLE_COLUMNS})
    return summarise_scan(
        reports.get("scan", SCAN),
        microbleeds,
        none if calcifications is None else calcifications,
        reports.get("phase", PHASE),
        reports.get("brain", BRAIN),
        reports.get("model", MODEL),
    )


def test_the_row_starts_with_the_columns_that_users_rely_on():
    assert list(summarise(rows()))[:10] == [
        "filename", "cmb_definite", "cmb_possible", "cmb_lobar", "cmb_deep",
        "cmb_infratentorial", "calcification", "pattern", "qc_status", "qc_reason",
    ]  # fmt: skip
    assert list(summarise(rows())) == list(SCAN_COLUMNS)


def test_definite_counted_lesions_make_the_counts():
    row = summarise(
        rows(
            ("definite", True, "lobar", 0.9),
            ("definite", True, "deep", 0.8),
            ("definite", False, "infratentorial", 0.99),
            ("possible", True, "lobar", 0.4),
            ("possible", False, "deep", 0.3),
        ),
        rows(("definite", True, "deep", 0.1), ("possible", False, "deep", 0.1)),
    )
    assert [row[f"cmb_{k}"] for k in ("definite", "possible")] == [2, 1]
    assert [row[f"cmb_{k}"] for k in ("lobar", "deep", "infratentorial")] == [1, 1, 0]
    assert row["calcification"] == 2
    assert row["cmb_not_counted"] == 2
    assert row["pattern"] == "mixed"
    assert row["burden_class"] == "2-4"
    assert row["cmb_expected"] == pytest.approx(2.1)
    assert row["p_ge_1"] == pytest.approx(1 - 0.1 * 0.2 * 0.6, abs=1e-4)
    assert row["cmb_volume_mm3"] == 20
    assert (row["qc_status"], row["qc_reason"]) == ("pass", None)


def test_a_scan_without_lesions_counts_zero():
    row = summarise(pd.DataFrame({name: [] for name in TABLE_COLUMNS}))
    assert [row[k] for k in ("cmb_definite", "cmb_lobar", "calcification", "p_ge_1")] == [0] * 4
    assert (row["pattern"], row["burden_class"]) == ("none", "0")


def test_a_scan_with_a_failed_mask_has_no_counts_and_says_why():
    brain = {**BRAIN, "gate": "fail", "reason": "brain mask of 512 ml\n(1000 to 1900 expected)."}
    row = summarise(rows(("definite", False, "lobar", 0.9)), brain=brain)
    numbers = [
        n for n in SCAN_COLUMNS if n.startswith(("cmb_", "p_g", "calc", "burden", "pattern"))
    ]
    assert len(numbers) == 15
    assert all(row[name] is None for name in numbers)
    assert row["qc_status"] == "fail"
    assert row["qc_reason"] == "brain mask of 512 ml (1000 to 1900 expected)"
    assert row["input"] == "complex"


@pytest.mark.parametrize("confidence", ["weak", "conflicting"])
def test_an_unsure_polarity_is_a_warning_that_does_not_remove_counts(confidence):
    phase = {**PHASE, "polarity_confidence": confidence}
    row = summarise(rows(("definite", True, "deep", 0.9)), phase=phase)
    assert row["qc_status"] == "warn"
    assert "sign of the phase" in row["qc_reason"]
    assert row["cmb_definite"] == 1


def test_lesions_without_a_place_leave_the_regions_unknown_not_zero():
    row = summarise(rows(("definite", True, None, 0.9)))
    assert row["cmb_definite"] == 1
    assert [row[k] for k in ("cmb_lobar", "cmb_deep", "cmb_infratentorial", "pattern")] == [
        None
    ] * 4


def test_inputs_model_and_mask_are_stated():
    scan = {**SCAN, "kind": "magnitude", "echoes": [{"echo_time_s": None}]}
    row = summarise(rows(), scan=scan, phase={}, model={"model": "single", "channels": "magnitude"})
    assert row["input"] == "magnitude"
    assert row["model"] == "single"
    assert row["echo_times_ms"] is None
    assert row["polarity"] is None
    both = summarise(rows())
    assert (both["channels"], both["model"]) == ("swi+phase", "shipped 1")
    assert both["echo_times_ms"] == "9.4,20"
    assert both["polarity"] == "left-handed"
    assert both["mask_volume_ml"] == 1432.0


@pytest.mark.parametrize(
    ("count", "name"),
    [(0, "0"), (1, "1"), (2, "2-4"), (4, "2-4"), (5, "5-10"), (10, "5-10"), (11, ">10")],
)
def test_burden_classes(count, name):
    assert burden_class(count) == name


def test_a_negative_count_has_no_burden_class():
    with pytest.raises(ValueError, match="-1"):
        burden_class(-1)


@pytest.mark.parametrize(
    ("counts", "pattern"),
    [
        ((0, 0, 0), "none"),
        ((2, 0, 0), "strictly_lobar"),
        ((0, 1, 0), "strictly_deep_infratentorial"),
        ((0, 0, 3), "strictly_deep_infratentorial"),
        ((1, 0, 1), "mixed"),
    ],
)
def test_patterns(counts, pattern):
    assert name_pattern(*counts) == pattern


@given(st.lists(st.floats(0, 1), max_size=8))
def test_the_number_of_lesions_is_distributed_as_enumeration_says(probabilities):
    expected = np.zeros(len(probabilities) + 1)
    for outcome in itertools.product([0, 1], repeat=len(probabilities)):
        weight = np.prod([p if o else 1 - p for o, p in zip(outcome, probabilities, strict=True)])
        expected[sum(outcome)] += weight
    distribution = poisson_binomial(probabilities)
    np.testing.assert_allclose(distribution, expected, atol=1e-12)
    assert probability_of_at_least(distribution, 0) == pytest.approx(1)
    assert probability_of_at_least(distribution, len(probabilities) + 1) == 0


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="no probability"):
        poisson_binomial([0.5, wrong])


def test_every_column_has_a_description():
    assert all(column["Description"] for column in SCAN_COLUMNS.values())
