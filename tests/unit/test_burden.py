"""Counts of a scan: what enters them, what they say when they cannot be trusted."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_bids.anatomy import RIGHT, STRUCTURES, label_lesions
from cmb_bids.burden import (
    burden_class,
    chances_of_microbleeds,
    count_by_region,
    estimate_count,
    name_pattern,
    poisson_binomial,
    probability_of_at_least,
    summarise_scan,
)
from cmb_bids.columns import (
    BOMBS_REGIONS,
    MARS_REGIONS,
    SCAN_COLUMNS,
    bombs_columns,
    mars_columns,
    unplaced_column,
)
from cmb_bids.lesions import TABLE_COLUMNS
from cmb_bids.same_lesion import reach_mm, same_place_mm

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
NO_CANDIDATES = pd.DataFrame({name: [] for name in ("x", "y", "z", "p_microbleed")})
GOOD = {"signal_to_noise": 21.04, "motion_ghosting": 0.01, "residual_phase_rad": 0.12}


def rows(*lesions):
    """Lesion table from (certainty, counted, mars_class, probability)."""
    table = pd.DataFrame(lesions, columns=["certainty", "counted", "mars_class", "probability"])
    table["volume_mm3"], table["diameter_mm"] = 10.0, 2.7
    table[["x", "y", "z"]] = [[20.0 * n, 0.0, 0.0] for n in range(len(table))] or None
    return table.reindex(columns=TABLE_COLUMNS)


def candidates(*points):
    """Candidates from (x, y, z, p_microbleed)."""
    return pd.DataFrame(points, columns=["x", "y", "z", "p_microbleed"], dtype=float)


def summarise(microbleeds, calcifications=None, **reports):
    none = pd.DataFrame({name: [] for name in TABLE_COLUMNS})
    return summarise_scan(
        reports.get("scan", SCAN),
        microbleeds,
        none if calcifications is None else calcifications,
        reports.get("candidates", NO_CANDIDATES),
        reports.get("phase", PHASE),
        reports.get("brain", BRAIN),
        reports.get("model", MODEL),
        reports.get("quality", GOOD),
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
        candidates=candidates((0, 0, 0, 0.9), (40, 0, 90, 0.05)),
    )
    assert [row[f"cmb_{k}"] for k in ("definite", "possible")] == [2, 1]
    assert [row[f"cmb_{k}"] for k in ("lobar", "deep", "infratentorial")] == [1, 1, 0]
    assert row["calcification"] == 2
    assert row["cmb_not_counted"] == 2
    assert row["pattern"] == "mixed"
    assert row["burden_class"] == "2-4"
    # Three microbleeds that count, a calcification that might be one, an unlisted candidate.
    assert row["cmb_expected"] == pytest.approx(2.1 + 0.1 + 0.05)
    assert row["p_ge_1"] == pytest.approx(1 - 0.1 * 0.2 * 0.6 * 0.9 * 0.95, abs=1e-4)
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
        n
        for n in SCAN_COLUMNS
        if n.startswith(("cmb_", "p_g", "calc", "burden", "pattern", "mars_", "bombs_"))
    ]
    assert len(numbers) == 16 + 60 + 70
    assert row["signal_to_noise"] == 21.0
    assert all(row[name] is None for name in numbers)
    assert row["qc_status"] == "fail"
    assert row["qc_reason"] == "brain mask of 512 ml (1000 to 1900 expected)"
    assert row["input"] == "complex"


def test_a_mask_to_look_at_warns_and_counts():
    brain = {**BRAIN, "warning": "brain mask volume 1950 ml is above 1900 ml: a large head"}
    row = summarise(rows(("definite", True, "deep", 0.9)), brain=brain)
    assert row["qc_status"] == "warn"
    assert "1950 ml" in row["qc_reason"]
    assert row["cmb_definite"] == 1


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


@settings(max_examples=40, deadline=None)
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


# ---------------------------------------------------------------- regions


SIDES = st.sampled_from(["left", "right", "midline", None])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["definite", "possible"]),
            st.sampled_from([*MARS_REGIONS, None]),
            st.sampled_from([*BOMBS_REGIONS, None]),
            SIDES,
            st.floats(2, 10),
        ),
        max_size=12,
    )
)
def test_the_columns_of_a_scale_add_up_to_the_count(lesions):
    fields = ["certainty", "mars_region", "bombs_region", "hemisphere", "diameter_mm"]
    numbers = count_by_region(pd.DataFrame(lesions, columns=fields))
    for scale, columns_of in (("mars", mars_columns), ("bombs", bombs_columns)):
        for certainty in ("definite", "possible"):
            names = [*columns_of(certainty).values(), unplaced_column(scale, certainty)]
            wanted = sum(lesion[0] == certainty for lesion in lesions)
            assert sum(numbers.pop(name) or 0 for name in names) == wanted
    assert not numbers


def test_a_lesion_is_counted_in_its_region_side_and_size():
    table = pd.DataFrame(
        [
            ("definite", "frontal", "cortex", "left", 4.99),
            ("definite", "frontal", "cortex", "left", 5.0),
            ("definite", "corpus_callosum", "subcortical_white_matter", "midline", 3.0),
            ("possible", "internal_capsule", "internal_external_capsule", "right", 10.0),
            ("possible", None, None, None, 3.0),
        ],
        columns=["certainty", "mars_region", "bombs_region", "hemisphere", "diameter_mm"],
    )
    numbers = {name: number for name, number in count_by_region(table).items() if number}
    assert numbers == {
        "mars_frontal_left": 2,
        "mars_corpus_callosum_midline": 1,
        "mars_internal_capsule_right_possible": 1,
        "mars_unplaced_possible": 1,
        "bombs_cortex_left_below_5mm": 1,
        "bombs_cortex_left_from_5mm": 1,
        "bombs_subcortical_white_matter_midline_below_5mm": 1,
        "bombs_internal_external_capsule_right_from_5mm_uncertain": 1,
        "bombs_unplaced_uncertain": 1,
    }


def test_without_any_place_the_regions_are_unknown_and_all_lesions_unplaced():
    row = summarise(rows(("definite", True, None, 0.9), ("definite", True, None, 0.8)))
    assert row["mars_unplaced"] == row["bombs_unplaced"] == 2
    assert all(row[name] is None for name in mars_columns("definite").values())
    assert all(row[name] is None for name in bombs_columns("definite").values())
    # None of the possible ones is missing: there are none.
    assert all(row[name] == 0 for name in mars_columns("possible").values())


@pytest.mark.parametrize("label", STRUCTURES)
def test_every_place_of_the_atlas_has_its_columns(label):
    """Left, right and, between the halves of an unpaired structure, the midline."""
    regions = np.zeros((20, 5, 5), np.int16)
    regions[:10], regions[10:] = label + RIGHT, label
    points = [[2.0, 2, 2], [9.6, 2, 2], [17.0, 2, 2]]
    places = label_lesions(np.array(points), regions, np.eye(4))
    table = places.assign(certainty="definite", diameter_mm=3.0)
    numbers = count_by_region(table)
    assert numbers["mars_unplaced"] == numbers["bombs_unplaced"] == 0


# ---------------------------------------------------------------- what could count


def test_a_candidate_on_a_listed_lesion_does_not_count_twice():
    lesions = rows(("definite", True, "lobar", 0.9), ("definite", False, "deep", 0.8))
    lesions["diameter_mm"] = [4.0, 12.0]
    found = candidates(
        (0, 0, 0, 0.9), (0, 4.9, 0, 0.3), (0, 5.1, 0, 0.07), (20, 0, 4.9, 0.4), (20, 0, 5.1, 0.02)
    )
    assert sorted(chances_of_microbleeds(lesions, found)) == [0.02, 0.07, 0.9]


@pytest.mark.parametrize(
    ("voxel", "distance"), [((0.5, 0.5, 2.0), 3.0), ((0.8, 0.8, 3.0), 4.0), ((3.0, 1.0, 6.0), 5.0)]
)
def test_two_places_are_one_within_a_slice(voxel, distance):
    assert same_place_mm(voxel) == distance
    assert list(reach_mm(np.array([1.0, 6.0, 20.0]), distance)) == [
        distance,
        max(4.5, distance),
        5.0,
    ]


def test_of_unlisted_candidates_on_one_spot_the_likeliest_counts():
    found = candidates((0, 0, 0, 0.01), (0, 0, 4.9, 0.05), (0, 0, 30, 0.02), (9, 9, 9, np.nan))
    none = pd.DataFrame({name: [] for name in TABLE_COLUMNS})
    assert list(chances_of_microbleeds(none, found)) == [0.05, 0.02]


def test_nothing_that_could_count_is_no_expected_microbleed():
    none = pd.DataFrame({name: [] for name in TABLE_COLUMNS})
    expected = {"cmb_expected": 0, "p_ge_1": 0, "p_ge_2": 0, "p_gt_4": 0, "p_gt_10": 0}
    assert estimate_count(chances_of_microbleeds(none, NO_CANDIDATES)) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_more_microbleeds_are_never_likelier_than_fewer(chances):
    estimate = estimate_count(np.array(chances))
    order = [estimate[name] for name in ("p_ge_1", "p_ge_2", "p_gt_4", "p_gt_10")]
    assert order == sorted(order, reverse=True)
    assert estimate["cmb_expected"] == pytest.approx(sum(chances), abs=1e-4)


# ---------------------------------------------------------------- quality


def test_poor_images_warn_and_are_counted_with_every_reason_named():
    poor = {
        "signal_to_noise": 4.2, "motion_ghosting": 0.08, "residual_phase_rad": 1.5,
        "phase_jump_share": 0.2, "phase_missing_share": 0.3,
    }  # fmt: skip
    row = summarise(rows(("definite", True, "deep", 0.9)), quality=poor)
    assert (row["qc_status"], row["cmb_definite"]) == ("warn", 1)
    reasons = row["qc_reason"].split("; ")
    for reason, said in zip(reasons, ("4.2", "1.50 rad", "20.0%", "30.0%", "8.0%"), strict=True):
        assert said in reason


def test_polarity_shows_its_evidence():
    phase = {
        **PHASE,
        "polarity_evidence": "head and veins",
        "polarity_correlation": -0.5312,
        "polarity_vein_score": None,
    }
    row = summarise(rows(), phase=phase)
    assert row["polarity_evidence"] == "head and veins"
    assert row["polarity_head_correlation"] == -0.531
    assert row["polarity_vein_score"] is None
