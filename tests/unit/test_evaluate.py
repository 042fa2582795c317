"""Scoring: one-to-one matching, honest counting of lesion-free scans, files in and out."""

from __future__ import annotations

import argparse
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cmb_bids import evaluate
from cmb_bids.errors import InputMissing, NothingMatched
from cmb_bids.volumes import write_table, write_volume

clouds = st.integers(0, 12).flatmap(
    lambda n: arrays(float, (n, 3), elements=st.floats(-12, 12, width=32))
)


def points(*positions, **columns):
    table = pd.DataFrame(np.array(positions, float).reshape(-1, 3), columns=["x", "y", "z"])
    return table.assign(**columns)


@given(truth=clouds, found=clouds)
@settings(max_examples=60, deadline=None)
def test_matching_is_one_to_one_near_and_as_large_as_can_be(truth, found):
    pairs = evaluate.match_points(truth, found)
    assert len(set(pairs[:, 0])) == len(pairs) == len(set(pairs[:, 1]))
    distance = np.linalg.norm(truth[pairs[:, 0]] - found[pairs[:, 1]], axis=1)
    assert (distance <= 5 + 1e-9).all()
    near = np.linalg.norm(truth[:, None] - found[None], axis=2) <= 5
    left_truth = np.setdiff1d(np.arange(len(truth)), pairs[:, 0])
    left_found = np.setdiff1d(np.arange(len(found)), pairs[:, 1])
    assert not near[np.ix_(left_truth, left_found)].any()


@given(truth=clouds, found=clouds, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_order_and_roles_do_not_matter(truth, found, seed):
    rng = np.random.default_rng(seed)
    count = len(evaluate.match_points(truth, found))
    shuffled = evaluate.match_points(rng.permutation(truth), rng.permutation(found))
    assert len(shuffled) == count == len(evaluate.match_points(found, truth))


def test_greedy_choice_would_lose_a_pair():
    truth = np.array([[0, 0, 0], [4, 0, 0.0]])
    found = np.array([[1.9, 0, 0], [8, 0, 0.0]])
    assert len(evaluate.match_points(truth, found)) == 2


def test_two_detections_on_one_lesion_are_a_hit_and_a_false_one():
    truth, found = evaluate.match(points((0, 0, 0)), points((1, 0, 0), (0, 2, 0)))
    assert truth["hit"].tolist() == [True]
    assert truth["distance_mm"].tolist() == [1.0]
    assert sorted(found["outcome"]) == ["false", "hit"]


def test_possible_and_large_lesions_are_neither_hit_nor_false():
    lesions = points(
        (0, 0, 0),
        (20, 0, 0),
        (50, 0, 0),
        certainty=["definite", "possible", "definite"],
        diameter_mm=[3.0, 3.0, 16.0],
    )
    lesions["ignored"] = evaluate.ignored_lesions(lesions)
    assert lesions["ignored"].tolist() == [False, True, True]
    found = points((21, 0, 0), (57, 0, 0), (90, 0, 0))
    truth, found = evaluate.match(lesions, found)
    assert not truth["hit"].any()
    assert found["outcome"].tolist() == ["ignored", "ignored", "false"]


def test_ignored_lesion_does_not_take_a_detection_from_a_counted_one():
    lesions = points((0, 0, 0), (3, 0, 0), ignored=[False, True])
    truth, found = evaluate.match(lesions, points((2.5, 0, 0)))
    assert truth["hit"].tolist() == [True, False]
    assert found["outcome"].tolist() == ["hit"]


def cohort(free_false=0):
    scans = pd.DataFrame(
        {"scan": ["a", "b", "c"], "participant_id": ["1", "2", "3"], "protocol": ["p", "p", "q"]}
    )
    truth = points((0, 0, 0), (20, 0, 0), (0, 0, 0), scan=["a", "a", "b"], name="microbleed")
    rows = [("a", 0, 0.9), ("a", 60, 0.8), ("b", 1, 0.7)]
    rows += [("c", 10 * i, 0.95) for i in range(free_false)]
    found = points(
        *[(x, 0, 0) for _, x, _ in rows],
        scan=[s for s, _, _ in rows],
        probability=[p for _, _, p in rows],
    )
    return scans, truth, found


def test_lesion_free_scans_count():
    metrics = {}
    for false in (0, 4):
        scans, truth, found = cohort(false)
        counts = evaluate.count_per_scan(scans, *evaluate.match_scans(scans, truth, found))
        metrics[false] = evaluate.summarise(counts)
    assert metrics[0]["sensitivity"] == metrics[4]["sensitivity"] == pytest.approx(2 / 3)
    assert metrics[0]["precision"] == pytest.approx(2 / 3)
    assert metrics[4]["precision"] == pytest.approx(2 / 7)
    assert metrics[0]["false_positives_per_scan"] == pytest.approx(1 / 3)
    assert metrics[4]["false_positives_per_lesion_free_scan"] == 4
    assert metrics[0]["scan_specificity"] == 1
    assert metrics[4]["scan_specificity"] == 0


def test_scan_with_only_ignored_lesions_is_not_lesion_free():
    scans = pd.DataFrame({"scan": ["a"], "participant_id": ["1"]})
    truth = points((0, 0, 0), scan="a", ignored=[True])
    counts = evaluate.count_per_scan(
        scans, *evaluate.match_scans(scans, truth, points().assign(scan=[]))
    )
    assert not counts["lesion_free"].any()
    assert counts["lesions"].sum() == 0


@given(
    hits=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    missed=st.integers(0, 4),
    false=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_ratios_stay_within_bounds(hits, missed, false):
    counts = pd.DataFrame(
        {"participant_id": range(len(hits)), "hits": hits, "false_positives": false}
    )
    counts["lesions"] = counts["hits"] + missed
    counts["lesion_free"] = counts["lesions"] == 0
    metrics = evaluate.summarise(counts)
    intervals = evaluate.bootstrap(counts, samples=50)
    for name in ("sensitivity", "precision", "f1"):
        value, (low, high) = metrics[name], intervals[name]
        assert np.isnan(value) or 0 <= value <= 1
        assert np.isnan(low) or 0 <= low <= high <= 1


def test_bootstrap_repeats_and_covers():
    scans, truth, found = cohort(2)
    counts = evaluate.count_per_scan(scans, *evaluate.match_scans(scans, truth, found))
    first, second = (evaluate.bootstrap(counts, 200, seed=3) for _ in range(2))
    assert first == second
    low, high = first["sensitivity"]
    assert low <= evaluate.summarise(counts)["sensitivity"] <= high


def test_froc_rises_and_says_when_it_ends():
    scans, truth, found = cohort(6)
    table = evaluate.froc(scans, truth, found)
    assert (table["sensitivity"].diff().dropna() >= 0).all()
    by_rate = table.set_index("false_positives_per_scan")
    assert by_rate.loc[0.25, "sensitivity"] == 0  # six false ones rank first
    assert by_rate.loc[4.0, "sensitivity"] == pytest.approx(2 / 3)
    assert by_rate.loc[2.0, "reached"]
    assert not by_rate.loc[8.0, "reached"]


def test_froc_without_detections():
    scans, truth, found = cohort()
    assert (evaluate.froc(scans, truth, found.iloc[:0])["sensitivity"] == 0).all()


def test_calibration_error():
    rng = np.random.default_rng(0)
    probability = rng.random(20000)
    honest = rng.random(20000) < probability
    assert evaluate.expected_calibration_error(probability, honest) < 0.02
    assert evaluate.expected_calibration_error([1.0, 1.0], [False, False]) == 1
    assert np.isnan(evaluate.expected_calibration_error([], []))


def test_burden_classes_and_agreement():
    assert evaluate.burden_class([0, 1, 2, 4, 5, 10, 11, 99]).tolist() == [0, 1, 2, 2, 3, 3, 4, 4]
    counts = np.array([0, 1, 3, 7, 20, 0])
    classes = evaluate.burden_class(counts)
    assert evaluate.weighted_kappa(classes, classes) == pytest.approx(1)
    assert evaluate.weighted_kappa(classes, classes[::-1]) < 1
    assert evaluate.intraclass_correlation(counts, counts) == pytest.approx(1)
    # Shrout and Fleiss 1979, two of their judges' ratings worked by hand: bias lowers agreement.
    assert evaluate.intraclass_correlation(counts, counts + 5) < 0.95


def test_recall_by_groups():
    truth = points(
        (0, 0, 0),
        (9, 9, 9),
        diameter_mm=[1.5, 4.0],
        mars_class=["lobar", "deep"],
        hit=[False, True],
        ignored=False,
    )
    table = evaluate.recall_by(truth)
    assert table.set_index("group").loc["deep", "sensitivity"] == 1
    assert table[table["by"] == "diameter_mm"]["lesions"].tolist() == [1, 1]


def test_lesions_from_images():
    affine = np.diag([2.0, 1, 1, 1])
    numbered = np.zeros((10, 10, 10), int)
    numbered[1:3, 1:3, 1:3], numbered[3, 1, 1] = 4, 9
    assert evaluate.lesions_from_image(numbered, affine)["index"].tolist() == [4, 9]
    table = evaluate.lesions_from_image(numbered > 0, affine)
    assert len(table) == 1  # one number only: touching pieces are one lesion
    assert table["diameter_mm"][0] == pytest.approx(np.cbrt(6 * 18 / np.pi))
    assert evaluate.lesions_from_image(numbered * 0, affine).empty


@pytest.fixture
def folders(tmp_path):
    """Three subjects: two lesions, a calcification called a microbleed; none; a label image."""
    derivatives, labels = tmp_path / "out", tmp_path / "truth"
    header = {"index": [], "name": [], "x": [], "y": [], "z": [], "probability": []}

    def write(folder, subject, description, table, entities=""):
        path = folder / f"sub-{subject}/anat/sub-{subject}{entities}_desc-{description}_dseg.tsv"
        write_table(path, table)

    truth = points((0, 0, 0), (30, 0, 0), (60, 0, 0))
    truth.insert(0, "name", ["microbleed", "microbleed", "calcification"])
    write(labels, "01", "truth", truth.assign(mars_class=["lobar", "deep", "lobar"]))
    write(labels, "02", "truth", truth.iloc[:0])
    image = np.zeros((20, 20, 20), np.int16)
    image[4:6, 4:6, 4:6] = 1
    write_volume(labels / "sub-03/anat/sub-03_desc-manual_dseg.nii.gz", image, np.eye(4))

    found = points((1, 0, 0), (61, 0, 0), (90, 0, 0), probability=[0.9, 0.8, 0.4])
    found = found.assign(name="microbleed", certainty=["definite", "definite", "possible"])
    candidates = points((0, 1, 0), (30, 1, 0), (60, 1, 0), (5, 50, 0), name="candidate")
    write(derivatives, "01", "cmb", found, "_acq-ukb")
    write(derivatives, "01", "candidates", candidates, "_acq-ukb")
    write(derivatives, "01", "calcification", found.iloc[:0], "_acq-ukb")
    write(derivatives, "02", "cmb", pd.DataFrame(header), "_acq-ukb")
    hit = points((4.5, 4.5, 5), probability=[0.7], name="microbleed", certainty="definite")
    write(derivatives, "03", "cmb", hit)
    return derivatives, labels


def test_derivatives_against_labels(folders):
    result = evaluate.evaluate_derivatives(*folders, samples=20)
    metrics = result["metrics"]
    assert metrics["scans"] == 3
    assert (metrics["lesions"], metrics["hits"], metrics["false_positives"]) == (3, 2, 1)
    assert metrics["lesion_free_scans"] == 1
    assert metrics["false_positives_per_lesion_free_scan"] == 0
    assert metrics["calcifications_called_microbleed"] == 1
    assert metrics["calcification_sensitivity"] == 0
    assert metrics["candidate_recall_microbleed"] == pytest.approx(2 / 3)
    assert metrics["candidate_recall_calcification"] == 1
    assert result["by_protocol"]["protocol"].tolist() == ["ukb"]


def test_command_prints_and_writes(folders, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    output = tmp_path / "scores"
    assert evaluate.run(parser.parse_args([*map(str, folders), "--output", str(output)])) == 0
    assert "sensitivity" in capsys.readouterr().out
    content = json.loads((output / "metrics.json").read_text())
    assert content["metrics"]["scans"] == 3
    assert (output / "per_scan.tsv").read_text().count("\n") == 4


def test_missing_folders_and_nothing_in_common(folders, tmp_path, capsys):
    with pytest.raises(InputMissing):
        evaluate.evaluate_derivatives(tmp_path / "nowhere", folders[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingMatched):
        evaluate.evaluate_derivatives(folders[0], tmp_path / "empty")
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    assert evaluate.run(parser.parse_args([str(folders[0]), str(tmp_path / "nowhere")])) == 66
    assert "nowhere" in capsys.readouterr().err


def test_scans_without_result_are_named(folders):
    write_table(
        folders[1] / "sub-04/anat/sub-04_desc-truth_dseg.tsv",
        points((0, 0, 0), name="microbleed"),
    )
    result = evaluate.evaluate_derivatives(*folders, samples=5)
    assert result["unprocessed"] == ["sub-04"]
    assert result["metrics"]["scans_without_result"] == 1
    assert "sub-04" in evaluate.describe(result)


def test_every_pair_of_scans_keeps_apart():
    scans, truth, found = cohort()
    for first, second in itertools.permutations(["a", "b"]):
        moved = found.replace({"scan": {first: second}})
        _, detections = evaluate.match_scans(scans, truth, moved)
        assert (detections["outcome"] == "hit").sum() <= 2
