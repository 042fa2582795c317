"""Scoring of points: one-to-one matching, sums, figures, intervals, comparison of two tools."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cmb_bids import evaluate
from cmb_bids.evaluate import bootstrap, calibration, comparison, counts, froc, matching, metrics
from cmb_bids.evaluate.cohort import Cohort
from cmb_bids.evaluate.score import evaluate_cohort

clouds = st.integers(0, 12).flatmap(
    lambda n: arrays(float, (n, 3), elements=st.floats(-12, 12, width=32))
)


def points(*positions, **columns):
    table = pd.DataFrame(np.array(positions, float).reshape(-1, 3), columns=["x", "y", "z"])
    return table.assign(**columns)


# ------------------------------------------------------------------ matching


@given(truth=clouds, found=clouds)
@settings(max_examples=60, deadline=None)
def test_matching_is_one_to_one_near_and_as_large_as_can_be(truth, found):
    pairs = evaluate.match_points(truth, found)
    assert len(set(pairs[:, 0])) == len(pairs) == len(set(pairs[:, 1]))
    assert len(pairs) <= min(len(truth), len(found))
    distance = np.linalg.norm(truth[pairs[:, 0]] - found[pairs[:, 1]], axis=1)
    assert (distance <= 5 + 1e-9).all()
    near = np.linalg.norm(truth[:, None] - found[None], axis=2) <= 5
    left_truth = np.setdiff1d(np.arange(len(truth)), pairs[:, 0])
    left_found = np.setdiff1d(np.arange(len(found)), pairs[:, 1])
    assert not near[np.ix_(left_truth, left_found)].any()


@given(truth=clouds, found=clouds, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_order_and_roles_do_not_matter(truth, found, seed):
    def length(first, second):
        pairs = evaluate.match_points(first, second)
        return len(pairs), np.linalg.norm(first[pairs[:, 0]] - second[pairs[:, 1]], axis=1).sum()

    rng = np.random.default_rng(seed)
    pairs, distance = length(truth, found)
    for first, second in (
        (rng.permutation(truth), rng.permutation(found)),
        (found, truth),
    ):
        assert length(first, second) == (pairs, pytest.approx(distance, abs=1e-6))


@given(cloud=clouds)
@settings(max_examples=20, deadline=None)
def test_nothing_matches_nothing(cloud):
    empty = np.empty((0, 3))
    assert len(evaluate.match_points(empty, cloud)) == len(evaluate.match_points(cloud, empty)) == 0
    assert len(evaluate.match_points(cloud, cloud)) == len(cloud)


@given(truth=clouds, found=clouds, ignored=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=60, deadline=None)
def test_outcomes_add_up(truth, found, ignored):
    lesions = points(*truth, ignored=ignored[: len(truth)])
    lesions, detections = matching.match(lesions, points(*found))
    hits = (lesions["outcome"] == "hit").sum()
    assert hits == (detections["outcome"] == "hit").sum() <= len(detections)
    assert (lesions["outcome"] == "ignored").tolist() == ignored[: len(truth)]
    assert (lesions["distance_mm"].dropna() <= 5 + 1e-9).all()
    assert lesions["distance_mm"].notna().sum() == hits


def test_greedy_choice_would_lose_a_pair():
    truth = np.array([[0, 0, 0], [4, 0, 0.0]])
    found = np.array([[1.9, 0, 0], [8, 0, 0.0]])
    assert len(evaluate.match_points(truth, found)) == 2


def test_two_detections_on_one_lesion_are_a_hit_and_a_false_one():
    truth, found = matching.match(points((0, 0, 0)), points((0, 2, 0), (1, 0, 0)))
    assert truth["outcome"].tolist() == ["hit"]
    assert truth["distance_mm"].tolist() == [1.0]
    assert truth["partner"].tolist() == [1]
    assert found["outcome"].tolist() == ["false", "hit"]


def test_possible_and_large_lesions_are_neither_hit_nor_false():
    lesions = points(
        (0, 0, 0),
        (20, 0, 0),
        (50, 0, 0),
        (70, 0, 0),
        certainty=["definite", "Possible", "definite", None],
        diameter_mm=[3.0, 3.0, 16.0, np.nan],
        counted=["true", "true", "true", "false"],
    )
    lesions["ignored"] = matching.ignored_lesions(lesions)
    assert lesions["ignored"].tolist() == [False, True, True, True]
    found = points((21, 0, 0), (57, 0, 0), (70, 0, 0), (90, 0, 0))
    truth, found = matching.match(lesions, found)
    assert truth["outcome"].tolist() == ["missed", "ignored", "ignored", "ignored"]
    assert found["outcome"].tolist() == ["ignored", "ignored", "ignored", "false"]


def test_ignored_lesion_does_not_take_a_detection_from_a_counted_one():
    lesions = points((0, 0, 0), (3, 0, 0), ignored=[False, True])
    truth, found = matching.match(lesions, points((2.5, 0, 0)))
    assert truth["outcome"].tolist() == ["hit", "ignored"]
    assert found["outcome"].tolist() == ["hit"]


def test_detections_that_are_possible_or_not_counted_do_not_stand():
    found = points((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0))
    assert matching.definite_detections(found).all()
    found["certainty"] = ["definite", "possible", None, "definite"]
    found["counted"] = [True, True, None, False]
    assert matching.counted_detections(found).tolist() == [True, True, True, False]
    assert matching.definite_detections(found).tolist() == [True, False, True, False]


# ------------------------------------------------------------------ a small cohort


def cohort(free_false=0, **changes):
    """Lesions: a has two, b one, c none. Found: one of a's, b's, a false one in a, and in c."""
    scans = pd.DataFrame(
        {
            "scan": ["a", "b", "c"],
            "participant_id": ["1", "2", "3"],
            "session_id": None,
            "labels": ["a", "b", "c"],
            "protocol": ["p", "p", "q"],
            "has_candidates": True,
            "has_calcifications": True,
        }
    )
    truth = points(
        (0, 0, 0),
        (20, 0, 0),
        (60, 0, 0),
        (0, 0, 0),
        scan=["a", "a", "a", "b"],
        name=["microbleed", "microbleed", "calcification", "microbleed"],
        diameter_mm=[4.0, 1.5, 3.0, 2.5],
        mars_class=["lobar", "deep", "lobar", "lobar"],
    )
    truth["kind"] = truth["name"]
    rows = [("a", 0, 0.9), ("a", 60, 0.8), ("b", 1, 0.7)]
    rows += [("c", 10 * i, 0.95) for i in range(free_false)]
    found = points(
        *[(x, 0, 0) for _, x, _ in rows],
        scan=[s for s, _, _ in rows],
        participant_id="",
        probability=[p for _, _, p in rows],
        certainty="definite",
        mars_class="lobar",
    )
    candidates = points((0, 0, 0), (60, 0, 0), (99, 0, 0), scan=["a", "a", "b"])
    others = pd.DataFrame(
        columns=["scan", "participant_id", "session_id", "status", "reason", "lesions"]
    )
    table = {
        "scans": scans,
        "truth": truth,
        "microbleeds": found,
        "calcifications": found.iloc[:0],
        "candidates": candidates,
        "others": others,
    } | changes
    return Cohort(**table, groups=["protocol"])


def test_lesion_free_scans_count():
    clean, bad = (evaluate_cohort(cohort(n), samples=0)["metrics"] for n in (0, 4))
    assert clean["sensitivity"] == bad["sensitivity"] == pytest.approx(2 / 3)
    assert clean["precision"] == pytest.approx(2 / 3)
    assert bad["precision"] == pytest.approx(2 / 7)
    assert clean["false_positives_per_scan"] == pytest.approx(1 / 3)
    assert bad["false_positives_per_lesion_free_scan"] == 4
    assert (clean["scan_specificity"], bad["scan_specificity"]) == (1, 0)
    assert clean["f1"] == pytest.approx(2 / 3)


def test_scan_with_only_ignored_lesions_is_not_lesion_free():
    base = cohort()
    base.truth["certainty"] = ["definite", "definite", "definite", "possible"]
    metrics_ = evaluate_cohort(base, samples=0)["metrics"]
    assert metrics_["lesion_free_scans"] == 1
    assert (metrics_["lesions"], metrics_["lesions_ignored"]) == (2, 1)
    assert metrics_["false_positives"] == 1


def test_calcifications_and_candidates():
    result = evaluate_cohort(cohort(), samples=0)["metrics"]
    assert result["calcifications"] == result["calcifications_called_microbleed"] == 1
    assert result["calcification_called_microbleed_share"] == 1
    assert result["calcification_sensitivity"] == 0
    assert result["candidate_recall_microbleed"] == pytest.approx(1 / 3)
    assert result["candidate_recall_calcification"] == 1
    assert result["candidates_per_scan"] == 1


def test_tool_without_candidates_or_calcifications_has_no_figures_of_them():
    scans = cohort().scans.assign(has_candidates=False, has_calcifications=False)
    result = evaluate_cohort(cohort(scans=scans), samples=0)["metrics"]
    for name in ("candidates_per_scan", "candidate_recall_microbleed", "calcification_sensitivity"):
        assert np.isnan(result[name])
    assert result["calcification_called_microbleed_share"] == 1


def test_each_miss_and_false_alarm_is_explained():
    result = evaluate_cohort(cohort(), samples=0)
    lesions = result["lesions"].set_index("x")
    assert lesions.loc[20, "lost_at"] == "no_candidate"
    assert lesions.loc[20, "outcome"] == "missed"
    hit = result["lesions"].iloc[0]
    assert (hit["outcome"], hit["detection_probability"]) == ("hit", 0.9)
    assert pd.isna(hit["lost_at"])
    assert result["false_alarms"]["lies_on"].tolist() == ["calcification"]
    assert result["false_alarms"]["nearest_lesion_mm"].tolist() == [40]


@pytest.mark.parametrize(
    ("change", "lost_at"),
    [
        ({"certainty": "possible"}, "called_possible"),
        ({"counted": False}, "not_counted"),
        ({"kind": "calcification"}, "called_calcification"),
        ({"kind": "candidate"}, "candidate_rejected"),
    ],
)
def test_how_far_a_missed_lesion_got(change, lost_at):
    base = cohort()
    near = points((21, 0, 0), scan="a", probability=0.3, certainty="definite")
    near = near.assign(**change)
    place = {"calcification": "calcifications", "candidate": "candidates"}
    place = place.get(change.get("kind"), "microbleeds")
    setattr(base, place, pd.concat([getattr(base, place), near], ignore_index=True))
    lesions = evaluate_cohort(base, samples=0)["lesions"].set_index("x")
    assert lesions.loc[20, "lost_at"] == lost_at


def test_subsets_by_protocol_size_and_region():
    table = evaluate_cohort(cohort(2), samples=20)["metrics_table"]
    of = table.set_index(["by", "group", "metric"])["value"]
    assert of["protocol", "p", "scans"] == 2
    assert of["protocol", "q", "false_positives_per_scan"] == 2
    assert np.isnan(of["protocol", "q", "sensitivity"])
    assert of["diameter_mm", "0-2", "sensitivity"] == 0
    assert of["diameter_mm", "2-3", "sensitivity"] == 1
    assert ("diameter_mm", "2-3", "precision") not in of.index
    assert of["mars_class", "deep", "sensitivity"] == 0
    assert of["mars_class", "lobar", "precision"] == pytest.approx(2 / 5)


def test_possible_detections_as_a_second_operating_point():
    base = cohort()
    base.microbleeds.loc[2, "certainty"] = "possible"
    result = evaluate_cohort(base, samples=0)
    assert result["metrics"]["hits"] == 1
    both = result["metrics_table"].query("by == 'certainty' and metric == 'hits'")
    assert both["value"].tolist() == [2]


def test_scans_without_result_weigh_on_their_own_sensitivity():
    base = cohort()
    base.others.loc[0] = ["d", "4", None, "without_result", "", 3]
    base.others.loc[1] = ["e", "5", None, "without_labels", "", None]
    result = evaluate_cohort(base, samples=50)
    assert result["metrics"]["sensitivity"] == pytest.approx(2 / 3)
    assert result["metrics"]["sensitivity_all_labelled"] == pytest.approx(2 / 6)
    assert result["unprocessed"] == ["d"]
    assert result["unlabelled"] == ["e"]
    assert result["scans"].set_index("scan").loc["d", "lesions"] == 3


def test_an_empty_side_has_no_figures_but_no_failure_either():
    base = cohort()
    nothing = evaluate_cohort(cohort(microbleeds=base.microbleeds.iloc[:0]), samples=20)
    assert nothing["metrics"]["sensitivity"] == 0
    assert np.isnan(nothing["metrics"]["precision"])
    no_truth = evaluate_cohort(cohort(truth=base.truth.iloc[:0]), samples=20)
    assert np.isnan(no_truth["metrics"]["sensitivity"])
    assert no_truth["metrics"]["false_positives_per_lesion_free_scan"] == 1
    assert no_truth["lesions"].empty


# ------------------------------------------------------------------ froc and calibration


def test_froc_rises_and_says_when_it_ends():
    table = evaluate_cohort(cohort(6), samples=20)["froc"]
    assert (table["sensitivity"].diff().dropna() >= 0).all()
    by_rate = table.set_index("false_positives_per_scan")
    assert by_rate.loc[0.25, "sensitivity"] == 0  # six false ones rank first
    assert by_rate.loc[4.0, "sensitivity"] == pytest.approx(2 / 3)
    assert by_rate.loc[2.0, "reached"]
    assert not by_rate.loc[8.0, "reached"]


def test_froc_matches_again_at_every_threshold():
    """The likelier detection has the lesion, although the other is nearer."""
    lesions, found = np.zeros((1, 3)), np.array([[0.0, 0, 0], [4, 0, 0]])
    steps = froc.scan_steps(lesions, np.zeros(2, bool), found, np.array([0.2, 0.9]))
    assert steps.levels.tolist() == [0.9, 0.2]
    assert steps.hits.tolist() == [1, 1]
    assert steps.false.tolist() == [0, 1]


def test_second_candidate_on_a_lesion_is_not_false():
    base = cohort()
    two = points((0, 1, 0), (0, 2, 0), (50, 0, 0), scan="b", probability=[0.9, 0.8, 0.1])
    base.candidates = two
    result = evaluate_cohort(base, samples=0)
    curve = result["froc_curve"].query("basis == 'candidates'")
    assert curve["false_positives_per_scan"].max() == pytest.approx(1 / 3)
    # Said .9 (right) and .1 (wrong); the second on the lesion is not judged.
    assert result["metrics"]["candidate_brier_score"] == pytest.approx((0.01 + 0.01) / 2)


@given(truth=clouds, found=clouds, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_steps_are_what_matching_at_that_threshold_gives(truth, found, seed):
    rng = np.random.default_rng(seed)
    lesions = points(*truth, ignored=rng.random(len(truth)) < 0.3, scan="a")
    detections = points(*found, probability=rng.integers(0, 4, len(found)) / 4, scan="a")
    steps = froc.all_steps(pd.DataFrame({"scan": ["a"]}), lesions, detections)[0]
    for level, hits, false in zip(*steps, strict=True):
        _, kept = matching.match(lesions, detections[detections["probability"] >= level])
        assert hits == (kept["outcome"] == "hit").sum()
        assert hits + false <= len(kept)


def test_froc_of_candidates_where_they_have_probabilities():
    base = cohort()
    base.candidates["probability"] = [0.9, 0.4, 0.1]
    table = evaluate_cohort(base, samples=0)["froc"]
    candidates = table[table["basis"] == "candidates"].set_index("false_positives_per_scan")
    assert candidates.loc[0.25, "sensitivity"] == pytest.approx(1 / 3)
    assert set(table["basis"]) == {"listed", "candidates"}


def test_calibration_error():
    rng = np.random.default_rng(0)
    probability = rng.random(20000)
    honest = rng.random(20000) < probability
    error = calibration.expected_calibration_error
    assert error(probability, honest) < 0.02
    assert error([1.0, 1.0], [False, False]) == 1
    assert np.isnan(error([], []))
    assert error([0.95, np.nan], [True, False]) == pytest.approx(0.05)


def test_reliability_bins_and_brier_score():
    result = evaluate_cohort(cohort(), samples=20)
    # Said .9 (right), .8 (wrong: a calcification) and .7 (right).
    assert result["metrics"]["brier_score"] == pytest.approx((0.01 + 0.64 + 0.09) / 3)
    assert result["metrics"]["expected_calibration_error"] == pytest.approx((0.1 + 0.8 + 0.3) / 3)
    assert result["metrics"]["largest_calibration_error"] == pytest.approx(0.8)
    table = result["reliability"].set_index("bin_low").round(6)
    assert table["detections"].sum() == 3
    assert table["lesion_share"].dropna().tolist() == [1, 0, 1]


# ------------------------------------------------------------------ agreement


def test_burden_classes_and_agreement():
    assert counts.burden_class([0, 1, 2, 4, 5, 10, 11, 99]).tolist() == [0, 1, 2, 2, 3, 3, 4, 4]
    truth = np.array([0, 1, 3, 7, 20, 0])

    def agreement(called):
        sums = bootstrap.total(counts.agreement_sums(truth, called))
        return {name: float(value[0]) for name, value in metrics.agreement_metrics(sums).items()}

    same = agreement(truth)
    assert same["burden_kappa"] == same["burden_kappa_weighted"] == pytest.approx(1)
    assert same["count_icc"] == pytest.approx(1)
    near, far = agreement(np.array([1, 1, 3, 7, 20, 0])), agreement(np.array([20, 1, 3, 7, 20, 0]))
    assert near["burden_kappa"] == pytest.approx(far["burden_kappa"], abs=0.06)
    assert near["burden_kappa_weighted"] > far["burden_kappa_weighted"] + 0.1
    assert near["count_bias"] == pytest.approx(1 / 6)
    assert agreement(truth + 5)["count_icc"] < 0.95


def test_kappa_by_hand():
    # 20 and 15 agreed, 5 and 10 not: (.7 - .5) / (1 - .5), Cohen's own arithmetic.
    confusion = np.array([[20.0, 5.0, 10.0, 15.0]])
    assert metrics.kappa(confusion, weighted=False)[0] == pytest.approx(0.4)
    assert metrics.kappa(confusion, weighted=True)[0] == pytest.approx(0.4)


def test_intraclass_correlation_by_analysis_of_variance():
    """Against the mean squares of the two-way table, worked out the long way."""
    first, second = np.array([9.0, 6, 8, 7, 10, 6]), np.array([2.0, 1, 4, 1, 5, 2])
    table = np.stack([first, second], axis=1)
    rows, columns, grand = table.mean(1), table.mean(0), table.mean()
    between = 2 * ((rows - grand) ** 2).sum() / 5
    raters = 6 * ((columns - grand) ** 2).sum()
    error = ((table - rows[:, None] - columns + grand) ** 2).sum() / 5
    expected = (between - error) / (between + error + 2 * (raters - error) / 6)
    moments = counts.agreement_sums(first, second)["moments"].sum(axis=0, keepdims=True)
    assert metrics.intraclass_correlation(moments)[0] == pytest.approx(expected)


# ------------------------------------------------------------------ bootstrap and comparison


def test_bootstrap_repeats_and_covers():
    first, second = (evaluate_cohort(cohort(2), samples=200, seed=3) for _ in range(2))
    assert first["intervals"] == second["intervals"]
    for name in ("sensitivity", "precision", "f1", "false_positives_per_scan", "count_icc"):
        low, high = first["intervals"][name]
        assert low <= first["metrics"][name] <= high


def test_bootstrap_draws_participants_not_scans():
    """Two scans of one participant and one of another: both scans come or go together."""
    sums = {"hits": np.array([[1.0], [2.0], [4.0]])}
    people = bootstrap.participant_sums(sums, pd.Series(["x", "x", "y"]))
    assert people["hits"][:, 0].tolist() == [3, 4]
    weights = bootstrap.resampling_weights(2, 50, seed=1)
    assert (weights.sum(axis=1) == 2).all()
    assert set(bootstrap.weigh(people, weights)["hits"][:, 0]) == {6, 7, 8}


def test_one_participant_has_no_interval():
    base = cohort()
    one = evaluate_cohort(cohort(scans=base.scans.iloc[:1]), samples=50)
    assert one["metrics"]["sensitivity"] == 0.5
    assert np.isnan(one["intervals"]["sensitivity"]).all()


def several(found_share, seed=0, people=30):
    """Cohort of many participants with one lesion each, found in the given share."""
    rng = np.random.default_rng(seed)
    names = [f"{k:02d}" for k in range(people)]
    scans = pd.DataFrame({"scan": names, "participant_id": names, "labels": names})
    scans = scans.assign(session_id=None, has_candidates=False, has_calcifications=False)
    truth = points(*np.zeros((people, 3)), scan=names, name="microbleed", kind="microbleed")
    hit = rng.random(people) < found_share
    found = points(*np.zeros((hit.sum(), 3)), scan=np.array(names)[hit], probability=0.8)
    empty = found.iloc[:0]
    others = pd.DataFrame(columns=["scan", "participant_id", "status", "reason", "lesions"])
    return Cohort(scans, truth, found, empty, empty, others)


def test_comparison_sees_a_difference_and_none_where_there_is_none():
    poor, good = several(0.3), several(0.95, seed=1)
    table = comparison.compare_cohorts(poor, good, samples=400).set_index("metric")
    row = table.loc["sensitivity"]
    assert row["difference"] == pytest.approx(row["other_value"] - row["reference_value"])
    assert 0 < row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["p_value"] < 0.01
    assert row["mcnemar_p"] < 0.001
    assert row["only_other"] > row["only_reference"]
    same = comparison.compare_cohorts(poor, poor, samples=50).set_index("metric").loc["sensitivity"]
    assert (same["difference"], same["p_value"], same["mcnemar_p"]) == (0, 1, 1)


def test_comparison_is_of_shared_scans_whatever_their_names():
    first, second = several(0.5), several(0.5)
    second.scans = second.scans.iloc[:10]
    for table in (second.scans, second.truth, second.microbleeds):
        table["scan"] = "acq-x_" + table["scan"]
    second.truth = second.truth[second.truth["scan"].isin(second.scans["scan"])]
    row = comparison.compare_cohorts(first, second, samples=20).set_index("metric")
    assert row.loc["lesions", "reference_value"] == 10
    assert row.loc["sensitivity", "difference"] == 0
    assert row.loc["sensitivity", "scans"] == 10


@given(
    hits=st.lists(st.integers(0, 5), min_size=2, max_size=8),
    missed=st.integers(0, 4),
    false=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_ratios_stay_within_bounds(hits, missed, false):
    hits = np.array(hits, dtype=float)
    zero = np.zeros_like(hits)
    sums = {
        "scans": zero + 1, "lesions": hits + missed, "ignored": zero, "hits": hits,
        "false_positives": zero + false, "lesion_free": (hits + missed == 0).astype(float),
        "lesion_free_false_positives": zero, "bearing": zero, "bearing_called": zero,
        "lesion_free_clean": zero,
    }  # fmt: skip
    weights = bootstrap.resampling_weights(len(hits), 50)
    drawn = metrics.metrics_of(bootstrap.weigh(counts.as_columns(sums), weights))
    for name in ("sensitivity", "precision", "f1"):
        values = drawn[name][np.isfinite(drawn[name])]
        assert ((values >= 0) & (values <= 1)).all()
