"""Training: labels by distance, honest scores, and a run that resumes to the same weights."""

import argparse
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from toys import STORED, toy_case, toy_patches

from cmb_bids.burden_prior import weigh_by_burden
from cmb_bids.errors import UsageError
from cmb_bids.resnet import Calibration, MicrobleedNet, ModelDescription, calibrate
from cmb_bids.training import cli, fingerprint, processed, recipes, shards
from cmb_bids.training.cases import cut_candidates, make_case
from cmb_bids.training.fit import (
    MARGIN_VOXELS,
    FitConfig,
    Patches,
    draw_weights,
    fit,
    sample_batch,
)
from cmb_bids.training.labels import IGNORED, MICROBLEED, OTHER, label_candidates, ranked_hits
from cmb_bids.training.scoring import (
    ScoredCase,
    calibration_error,
    choose_thresholds,
    detection_metrics,
    fit_calibration,
    fit_usual_burden,
    for_elsewhere,
    froc,
)
from cmb_bids.training.shards import load_case, save_case, split_of

SMALL = STORED


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def truth_of(*rows):
    return pd.DataFrame(rows, columns=["name", "x", "y", "z", "diameter_mm"])


def test_labels_are_one_to_one():
    truth = truth_of(
        ("microbleed", 0, 0, 0, 3), ("calcification", 30, 0, 0, 3), ("vein", 60, 0, 0, 3)
    )
    points = [[1, 0, 0], [2.5, 0, 0], [30, 1, 0], [60, 0, 0], [5.5, 0, 0]]
    np.testing.assert_array_equal(label_candidates(points, truth), [0, -1, 1, 2, 2])


def test_large_lesions_reach_further_but_not_beyond_five_mm():
    truth = truth_of(("microbleed", 0, 0, 0, 6), ("microbleed", 50, 0, 0, 20))
    np.testing.assert_array_equal(
        label_candidates([[4.4, 0, 0], [55.5, 0, 0], [54.5, 0, 0]], truth), [0, 2, 0]
    )


def test_nothing_within_scoring_distance_of_a_microbleed_is_taught_as_a_mimic():
    truth = truth_of(("microbleed", 0, 0, 0, 2), ("calcification", 30, 0, 0, 2))
    points = [[0, 0, 0], [0, 0, 4.9], [0, 0, 5.1], [30, 0, 4.9]]
    np.testing.assert_array_equal(label_candidates(points, truth), [0, -1, 2, 2])
    # What lies beside one is no microbleed either where nothing lies on it.
    np.testing.assert_array_equal(label_candidates(points[1:2], truth), [-1])


def test_no_candidates_or_no_lesions():
    in_next_slice = [[0, 0, 0.4], [0, 0, 3.6]]
    calcification = truth_of(("calcification", 0, 0, 0, 2))
    assert list(label_candidates(in_next_slice, calcification)) == [1, 2]
    assert list(label_candidates(in_next_slice, calcification, 4.0)) == [1, -1]
    assert label_candidates(np.zeros((0, 3)), truth_of(("microbleed", 0, 0, 0, 3))).shape == (0,)
    assert (label_candidates(np.zeros((2, 3)), truth_of()) == 2).all()
    assert not ranked_hits(np.zeros((2, 3)), np.ones(2), np.zeros((0, 3))).any()


def test_better_candidates_take_their_lesion_first():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [20, 0, 0]])
    hits = ranked_hits(points, np.array([0.2, 0.9, 0.5]), np.array([[0.0, 0, 0]]))
    np.testing.assert_array_equal(hits, [False, True, False])


def scored(probabilities, labels, protocol="ukb", index=0):
    """A case whose candidates lie 20 mm apart, a lesion under each that is labelled one."""
    labels = np.asarray(labels)
    points = np.arange(len(labels))[:, None] * np.array([[20.0, 0, 0]])
    p = np.asarray(probabilities, dtype=float)
    table = np.stack([p, (1 - p) / 2, (1 - p) / 2], axis=1)
    lesions = pd.DataFrame(points[labels == 0], columns=["x", "y", "z"])
    lesions["diameter_mm"] = 1.0 + np.arange(len(lesions))
    return ScoredCase(index, protocol, "tbi", points, labels, table, lesions)


def test_metrics_count_missed_lesions_and_false_calls():
    case = scored([0.9, 0.3, 0.8, 0.1], [0, 0, 1, 2])
    metrics = detection_metrics([case], 0.5)
    assert metrics["sensitivity"] == 0.5
    assert metrics["precision"] == 0.5
    assert metrics["calcifications_called_microbleed"] == 1.0
    free = scored([0.9, 0.1], [2, 2])
    assert detection_metrics([free], 0.5)["false_positives_per_case_without_microbleeds"] == 1
    assert detection_metrics([free], 0.5)["sensitivity"] is None


def test_froc_never_counts_a_lesion_twice():
    cases = [scored([0.9, 0.8, 0.7, 0.6], [0, 2, 0, 2]), scored([0.1], [2])]
    curve = froc(cases)
    assert curve["0.25"] == 0.5
    assert curve["0.5"] == 1.0
    assert curve["8"] == 1.0


def test_calibration_recovers_temperature_prior_and_weight_of_the_score():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 3)) * 2 + np.array([-1.0, -2.0, 1.0])
    p = calibrate(true, Calibration())
    labels = np.array([rng.choice(3, p=row) for row in p])
    scores = rng.normal(size=4000)
    stated = (true - np.array([1.0, 0.5, 0.0]) - np.outer(scores, [0.8, 0.0, 0.0])) * 3
    fitted = fit_calibration(stated, labels, scores)
    assert fitted.temperature == pytest.approx(3, rel=0.15)
    np.testing.assert_allclose(fitted.score_weights, [0.8, 0.0, 0.0], atol=0.15)
    assert calibration_error(calibrate(stated, fitted, scores), labels) < 0.02
    assert calibration_error(calibrate(stated, Calibration()), labels) > 0.03


def test_thresholds_are_ordered():
    cases = [scored([0.95, 0.7, 0.5, 0.3, 0.05], [0, 0, 2, 0, 2])]
    for probabilities in (True, False):
        definite, possible = choose_thresholds(cases, probabilities)
        assert 0 < possible < definite < 1


def test_threshold_is_half_the_best_f1_or_where_it_is_best():
    # Three lesions; from .6 on two calls, both right: F1 is 4 / 5 there, and lower elsewhere.
    cases = [scored([0.9, 0.6, 0.55, 0.01], [0, 0, 2, 0])]
    assert choose_thresholds(cases, definite_beta=1)[0] == pytest.approx(0.4)
    assert choose_thresholds(cases, probabilities=False)[0] == pytest.approx(0.575)


def test_definite_begins_where_a_false_alarm_weighs_more_than_a_miss():
    # F of beta .5 of two right calls of three lesions.
    cases = [scored([0.9, 0.6, 0.55, 0.01], [0, 0, 2, 0])]
    best = 1.25 * 2 / (1.25 * 2 + 0.25)
    assert choose_thresholds(cases)[0] == pytest.approx(best / 1.25, abs=1e-3)
    nothing_right = [scored([0.9, 0.6], [2, 2])]
    assert choose_thresholds(nothing_right)[0] == pytest.approx(1 / 3, abs=1e-3)


def test_for_scans_from_elsewhere_definite_is_what_is_likelier_than_not():
    at_home = Calibration(0.9, usual_burden=4.0, definite=0.7, possible=0.4)
    there = for_elsewhere(at_home, 4.5)
    assert (there.mimics_elsewhere, there.definite, there.possible) == (4.5, 0.5, 0.1)
    assert (there.temperature, there.usual_burden) == (0.9, 4.0)


def test_burden_that_fits_is_found_again():
    rng = np.random.default_rng(1)
    cases, truth = [], 2.0
    for index in range(150):
        rate = rng.gamma(1.0, 6.0)
        lesions = int(min(rng.poisson(rate), 40))
        labels = np.array([0] * lesions + [2] * 8)
        seen = np.where(
            labels == 0, rng.normal(1.5, 1, len(labels)), rng.normal(-1.5, 1, len(labels))
        )
        # Odds of one seen by itself, in a mixture of as many lesions as there are on average.
        odds = np.exp(3 * seen) * 6 / 8
        cases.append(scored(odds / (1 + odds), labels, index=index))
    fitted = fit_usual_burden(cases)
    assert truth < fitted < 12  # near the mean of others that a lesion has, 6 to 12
    weighed = [
        dataclasses.replace(c, probabilities=weigh_by_burden(c.probabilities, c.points_mm, fitted))
        for c in cases
    ]
    assert _surprise(weighed) < 0.95 * _surprise(cases)


def _surprise(cases):
    p = np.concatenate([case.probabilities[:, 0] for case in cases])
    hit = np.concatenate([case.labels for case in cases]) == 0
    return -np.log(np.where(hit, p, 1 - p)).mean()


def test_nothing_known_is_a_burden_of_one():
    assert fit_usual_burden([]) == pytest.approx(1.0, abs=0.01)


def test_thresholds_of_cases_without_lesions_call_little():
    assert choose_thresholds([scored([0.9, 0.1], [2, 2])])[0] >= 0.2
    assert choose_thresholds([scored([], [])])[0] >= 0.2


def test_mimics_that_look_like_lesions_are_drawn_more_often():
    labels, scores = np.array([0, 1, 2, 2, 2, 2]), np.array([3.0, -9, 3, 0, -6, -99])
    weights = draw_weights(labels, scores)
    np.testing.assert_allclose(weights, [1, 1, np.exp(1.2), 1, np.exp(-2.4), np.exp(-2.4)])


def test_batches_hold_fixed_shares():
    labels = np.array([0] * 5 + [1] * 5 + [2] * 500 + [-1] * 50)
    drawn = labels[sample_batch(labels, 2000, np.random.default_rng(0))]
    assert (drawn >= 0).all()
    assert (drawn == 0).mean() == pytest.approx(0.3, abs=0.05)


def small_network(channels=2, seed=0):
    torch.manual_seed(seed)
    names = ("contrast", "highpass")[:channels]
    return MicrobleedNet(ModelDescription(channels=names, widths=(6, 8, 12), name="toy"))


def test_it_learns_shape_and_sign_of_phase():
    rng = np.random.default_rng(0)
    patches, labels = toy_patches(90, 2, rng)
    config = FitConfig(epochs=4 * 45 * 16 / 90, batch_size=16, average_decay=0.9)
    network, steps = fit(small_network(), Patches(patches, labels), config)
    assert steps == 45
    fresh, expected = toy_patches(30, 2, np.random.default_rng(1))
    inside = tuple(slice(margin, -margin) for margin in MARGIN_VOXELS)
    inner = torch.from_numpy(fresh[:, :, *inside].astype(np.float32))
    with torch.inference_mode():
        found = network(inner).argmax(dim=1).numpy()
    assert (found == expected).mean() > 0.9


def test_resumed_run_ends_with_the_same_weights(tmp_path):
    patches, labels = toy_patches(24, 1, np.random.default_rng(0))

    class Stop(Exception):
        pass

    def stop(network, step):
        if step == 2:
            raise Stop

    config = FitConfig(epochs=4 * 4 * 8 / 24, batch_size=8, checkpoint_every=2)
    whole, steps = fit(small_network(1), Patches(patches, labels), config)
    with pytest.raises(Stop):
        fit(small_network(1), Patches(patches, labels), config, tmp_path / "run", stop)
    resumed, _ = fit(small_network(1, seed=5), Patches(patches, labels), config, tmp_path / "run")
    assert steps == 4
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(value, resumed.state_dict()[key])


def test_one_class_cannot_be_trained():
    with pytest.raises(ValueError, match="two classes"):
        alike = Patches(np.zeros((4, 2, *SMALL), np.float16), np.full(4, 2))
        fit(small_network(), alike, FitConfig())


def test_cases_survive_the_disk(tmp_path):
    case = toy_case(1)
    case.candidates["complex"].baselines["frst_swi"] = np.arange(9, dtype=np.float32)
    save_case(case, tmp_path / "case-00001.npz")
    again = load_case(tmp_path / "case-00001.npz")
    assert again.recipe == case.recipe
    assert again.truth == case.truth
    assert again.split == split_of(tmp_path / "case-00001.npz") == "validation"
    for kind in ("complex", "magnitude"):
        for name, value in vars(case.candidates[kind]).items():
            np.testing.assert_equal(getattr(again.candidates[kind], name), value)
    light = load_case(tmp_path / "case-00001.npz", ("complex",), patches=False)
    assert set(light.candidates) == {"complex"}
    assert not light.candidates["complex"].patches.size


def test_the_split_is_the_papers_and_grows_by_training_cases_only():
    splits = [shards.split_at(i) for i in range(1000)]
    assert {s: splits[:220].count(s) for s in shards.PAPER_SPLIT} == shards.PAPER_SPLIT
    assert set(splits[220:]) == {"train"}
    assert all(s in splits[:20] for s in shards.PAPER_SPLIT)


def test_fewer_training_cases_leave_the_held_out_ones_as_they_are():
    assert shards.wanted_cases(30) == list(range(30))
    chosen = shards.wanted_cases(220, 50)
    splits = [shards.split_at(i) for i in chosen]
    assert {s: splits.count(s) for s in shards.PAPER_SPLIT} == shards.PAPER_SPLIT | {"train": 50}
    train = [i for i in range(220) if shards.split_at(i) == "train"]
    assert [i for i in chosen if shards.split_at(i) == "train"] == train[:50]
    assert shards.wanted_cases(220, 500) == list(range(220))


def arguments(*words):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(list(words))


def test_too_few_cases_and_absent_devices_are_refused(tmp_path):
    with pytest.raises(UsageError):
        cli.run(arguments("--output", str(tmp_path), "--cases", "3"))
    with pytest.raises(UsageError, match="belong together"):
        cli.run(arguments("--output", str(tmp_path), "--labels", str(tmp_path)))
    for device in ["warp", *([] if torch.cuda.is_available() else ["cuda"])]:
        with pytest.raises(UsageError, match="--device"):
            cli.run(arguments("--output", str(tmp_path), "--device", device))


@pytest.fixture
def coarse_protocol(monkeypatch):
    """A protocol of 3 mm voxels: the physics and the pipeline at a hundredth of the cost."""
    protocol = dataclasses.replace(
        recipes.PROTOCOLS["ukb"], matrix=(64, 76, 56), voxel_mm=(2.8, 2.8, 3.1)
    )
    monkeypatch.setattr(recipes, "PROTOCOLS", {"ukb": protocol})
    monkeypatch.setattr(recipes, "PROTOCOL_SHARES", {"ukb": 1.0})
    monkeypatch.setattr(recipes, "OVERSAMPLING", {"ukb": (1.0, 1.0, 1.0)})


def test_a_case_is_made_by_the_pipeline(coarse_protocol, tmp_path):
    case = make_case(1, 3, kept=tmp_path)
    assert case.split == "validation"
    assert set(case.candidates) == {"complex", "magnitude"}
    found = case.candidates["complex"]
    assert found.patches.shape == (len(found.labels), 2, *SMALL)
    assert found.patches.dtype == np.float16
    assert np.isfinite(found.patches).all()
    again, recipe = recipes.draw_recipe(np.random.default_rng([3, 1]), False)
    assert again.seed == recipe.seed == case.recipe["seed"]


def test_a_kept_scan_gives_the_same_case(coarse_protocol, tmp_path, monkeypatch):
    case = make_case(1, 3, kept=tmp_path)
    monkeypatch.setattr(processed, "simulate_scan", None)  # not asked again
    again = make_case(1, 3, kept=tmp_path)
    assert json.dumps(again.recipe) == json.dumps(case.recipe)
    for kind, found in case.candidates.items():
        np.testing.assert_array_equal(again.candidates[kind].patches, found.patches)
        np.testing.assert_array_equal(again.candidates[kind].scores, found.scores)
    with pytest.raises(TypeError):
        make_case(2, 3, kept=tmp_path)


def test_what_lies_far_from_the_brain_decides_nothing(coarse_protocol, monkeypatch):
    # Simulated once: torch sums floats in another order where numba's threads reset its own.
    with monkeypatch.context() as uncropped:
        uncropped.setattr(processed, "_cropped", lambda whole: whole)
        whole = processed.process_case(1, 3)
    cropped = processed._cropped(whole)
    assert cropped.mask.size < whole.mask.size
    found, again = (
        cut_candidates(case, case.normalized, case.swi, case.highpass) for case in (cropped, whole)
    )
    np.testing.assert_allclose(again.points_mm, found.points_mm, atol=1e-6)
    np.testing.assert_allclose(again.patches, found.patches, atol=1e-3)


def test_training_recipes_vary_and_held_out_ones_keep_the_protocol():
    held_out = [recipes.draw_recipe(np.random.default_rng(i), False)[0] for i in range(10)]
    assert all(spec.protocol == recipes.PROTOCOLS[spec.protocol.name] for spec in held_out)
    varied = [recipes.draw_recipe(np.random.default_rng(i), True)[0] for i in range(10)]
    for spec in varied:
        nominal = recipes.PROTOCOLS[spec.protocol.name].field_of_view_mm
        np.testing.assert_allclose(spec.protocol.field_of_view_mm, nominal, rtol=1e-6)
    assert len({spec.protocol.voxel_mm for spec in varied}) == 10


def test_disturbed_mask_moves_its_surface_by_mm():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    x, y, z = np.meshgrid(np.arange(80), np.arange(80), np.arange(40) * 2, indexing="ij")
    distance = np.sqrt((x - 40) ** 2 + (y - 40) ** 2 + (z - 40) ** 2)
    rng = np.random.default_rng(0)
    grown = processed.disturbed_mask(distance < 25, affine, 2.0, 0.0, rng)
    radius = (grown.sum() * 2 * 3 / 4 / np.pi) ** (1 / 3)
    assert radius == pytest.approx(27, abs=0.8)
    wobbly = processed.disturbed_mask(distance < 25, affine, 0.0, 2.0, rng)
    assert 0.6 < (wobbly & (distance < 25)).sum() / (distance < 25).sum() < 1


def test_key_of_the_data_ignores_docstrings_and_layout():
    one = '''"""Says this."""\nx = 1  # why\ndef f(a):\n    """Doc."""\n    return a\n'''
    two = '''"""Says that."""\n\nx = (1)\ndef f(\n    a,\n):\n    """Docs."""\n    return a\n'''
    assert fingerprint.what_it_does(one) == fingerprint.what_it_does(two)
    assert fingerprint.what_it_does(one) != fingerprint.what_it_does(one.replace("1", "2"))
    assert fingerprint.data_key({"seed": 1}) != fingerprint.data_key({"seed": 2})


def test_a_second_call_on_a_lesion_is_neither_hit_nor_false():
    lesions = pd.DataFrame({"x": [0.0], "y": [0.0], "z": [0.0], "diameter_mm": [5.0]})
    points = np.array([[0.5, 0, 0], [2.5, 0, 0], [40, 0, 0]])
    labels = np.array([MICROBLEED, IGNORED, OTHER])
    probabilities = np.array([[0.9, 0, 0.1], [0.95, 0, 0.05], [0.8, 0, 0.2]])
    case = ScoredCase(0, "ukb", "tbi", points, labels, probabilities, lesions)
    measured = detection_metrics([case], 0.5)
    assert measured["sensitivity"] == 1
    assert measured["precision"] == 0.5
    assert froc([case])["0.25"] == 1  # the second one, surer than the first, takes its lesion
    # Where only the second one is called, the lesion is found all the same.
    only = probabilities.copy()
    only[[0, 2], 0] = 0.1
    measured = detection_metrics([dataclasses.replace(case, probabilities=only)], 0.5)
    assert (measured["sensitivity"], measured["precision"]) == (1, 1)
