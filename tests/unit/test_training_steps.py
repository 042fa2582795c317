"""The steps of training on toy cases, the comparison's statistics, cards and pages."""

import argparse
import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toys import toy_case

from cmb_bids.errors import BadData, UsageError
from cmb_bids.patches import PatchGeometry
from cmb_bids.resnet import MicrobleedNet, ModelDescription, load_model, save_model
from cmb_bids.training import accuracy, card, cli, comparison, failures, jobs, judging, steps
from cmb_bids.training.contenders import (
    CONTENDERS,
    REFERENCE,
    new_network,
    started_from,
    strengths,
    targets,
)
from cmb_bids.training.fit import FitConfig, Patches, fit
from cmb_bids.training.scoring import ScoredCase, scored_case
from cmb_bids.training.shards import load_case, save_case

NAME = "microbleed-two-channel"
COMPARED = (NAME, REFERENCE, "swi", "residual-2018", "frst", "laplacian-of-gaussian")
SETTINGS = {"seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Toy cases through all steps, with next to no training."""
    torch.set_num_threads(1)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(
        steps, "FitConfig", partial(steps.FitConfig, batch_size=16, average_decay=0.9)
    )
    out = tmp_path_factory.mktemp("models")
    for index in range(20):
        save_case(toy_case(index), out / "shards" / f"case-{index:05d}.npz")
    summary = out / "cases.json"
    steps.summarise_cases(out / "shards", 20, SETTINGS, summary)
    for name in COMPARED:
        weights = None
        if CONTENDERS[name].channels:
            weights = out / "weights" / f"{name}.safetensors"
            budget = 45 if name == REFERENCE else 2
            steps.train(name, summary, weights, steps=budget, seed=1)
        steps.calibrate_and_score(name, summary, out / "scores" / f"{name}.npz", weights)
    scores, metrics = out / "scores" / f"{NAME}.npz", out / f"{NAME}.json"
    steps.finish_model(
        NAME, summary, out / "weights" / f"{NAME}.safetensors", scores, metrics, "cmb-lab train"
    )
    comparison.compare(summary, COMPARED, out, out / "comparison.json", "cmb-lab others")
    failures.draw_failures(NAME, summary, scores, out / "failures.png", out / "failures.json")
    card.write_card(metrics, out / "comparison.json", out / f"{NAME}.md")
    accuracy.write_page(out, out / "accuracy.md")
    monkeypatch.undo()
    return out


def test_a_shipped_network_is_written_with_its_calibration_and_metrics(folder):
    metrics = json.loads((folder / f"{NAME}.json").read_text())
    assert metrics["simulated"] is True
    assert metrics["data"]["split"] == {"train": 14, "validation": 2, "test": 4}
    assert metrics["test"]["definite"]["microbleeds"] == 12
    assert sum(row["microbleeds"] for row in metrics["test"]["by_core_diameter"]) == 12
    calibration = load_model(folder / f"{NAME}.safetensors").description.calibration
    assert calibration.definite == metrics["calibration"]["definite"]
    assert calibration.possible < calibration.definite
    assert not list(folder.glob("weights/.*"))


def test_only_shipped_networks_meet_transplanted_lesions_and_drawn_veins(folder):
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("weights/*.json")}
    shares = {name: record["transplanted"] for name, record in records.items()}
    assert shares == {NAME: 0.25, REFERENCE: 0, "swi": 0, "residual-2018": 0}
    drawn = {name: record["drawn_veins"] for name, record in records.items()}
    assert drawn == {NAME: 0.3, REFERENCE: 0, "swi": 0, "residual-2018": 0}
    assert "25% of the microbleeds" in (folder / f"{NAME}.md").read_text()


def test_the_comparison_ranks_what_sees_the_sign_of_the_phase_first(folder):
    content = json.loads((folder / "comparison.json").read_text())
    entries = {entry["name"]: entry for entry in content["contenders"]}
    assert set(entries) == set(COMPARED)
    with_phase, without = entries[REFERENCE]["metrics"], entries["swi"]["metrics"]
    assert with_phase["f1"]["value"] > without["f1"]["value"]
    assert entries["swi"]["against_reference"]["f1"]["difference"] < 0
    assert entries["frst"]["ranked_by"].startswith("frst_")
    assert entries["frst"]["metrics"]["f1"]["value"] == 1
    assert entries["residual-2018"]["training"]["parameters"] < 50_000
    strata = {"group", "protocol", "core diameter", "apparent diameter", "by definition"}
    assert set(entries["swi"]["by"]) == strata | {"contrast to noise", "region"}
    assert entries["swi"]["by"]["region"]["deep"]["microbleeds"] == 8
    table = pd.read_csv(folder / "comparison_table.tsv", sep="\t")
    assert set(table["contender"]) == set(COMPARED)


def test_card_and_page_say_simulated_and_do_not_compare_with_patients(folder):
    said = (folder / f"{NAME}.md").read_text()
    for words in ("simulated", "SWI alone", "FRST alone", "cmb-lab train", "never set them"):
        assert words in said
    page = (folder / "accuracy.md").read_text()
    assert "`cmb-lab train`; those of the detectors beside it are of `cmb-lab others`." in page
    for words in ("not comparable", "0.709", "What still fails", "failures.png", "simulated"):
        assert words in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for one, next_one in pairwise(rows):
        if next_one.startswith("| ---"):
            assert one.count("|") == next_one.count("|")


def test_failures_are_listed_and_drawn_small(folder):
    listed = json.loads((folder / "failures.json").read_text())
    counts, metrics = listed["counts"], json.loads((folder / f"{NAME}.json").read_text())
    test = metrics["test"]["definite"]
    assert counts["missed"] == round((1 - test["sensitivity"]) * test["microbleeds"])
    assert counts["false_alarms"] == round(test["false_positives_per_case"] * test["cases"])
    assert (folder / "failures.png").stat().st_size < failures.LARGEST_PICTURE_BYTES
    with Image.open(folder / "failures.png") as picture:
        assert picture.width >= 420


def test_accuracy_command_writes_page_and_picture(folder, tmp_path, capsys):
    assert accuracy.main([str(folder), str(tmp_path / "docs")]) == 0
    assert "images/failures.png" in (tmp_path / "docs" / "accuracy.md").read_text()
    assert (tmp_path / "docs" / "images" / "failures.png").is_file()
    assert accuracy.main([str(tmp_path), str(tmp_path)]) == 66
    assert "comparison.json" in capsys.readouterr().err


def case_of(lesions, points, probabilities, labels=None, index=0):
    """A case with lesions and candidates along a line, in mm."""
    points = np.array([[float(x), 0, 0] for x in points]).reshape(-1, 3)
    p = np.asarray(probabilities, dtype=float)
    table = pd.DataFrame({"x": np.asarray(lesions, float), "y": 0.0, "z": 0.0, "diameter_mm": 3.0})
    labels = np.full(len(points), 2) if labels is None else np.asarray(labels)
    probability = np.stack([p, (1 - p) / 2, (1 - p) / 2], axis=1)
    return ScoredCase(index, "ukb", "tbi", points, labels, probability, table)


def test_counts_of_a_case():
    case = case_of([0, 50], [1, 2, 90], [0.9, 0.8, 0.7], [0, 2, 1])
    counts = dict(zip(comparison.COUNTS, comparison.counts_of(case, 0.5), strict=True))
    assert counts["lesions"] == 2
    assert counts["hits"] == 1
    assert counts["calls"] == 3
    assert counts["calcifications_called"] == counts["calcifications"] == 1
    assert counts["free_cases"] == 0
    free = comparison.counts_of(case_of([], [5], [0.9]), 0.5)
    assert free[comparison.COUNTS.index("free_calls")] == 1


def test_paired_test_sees_a_constant_difference_and_no_other():
    better = np.tile([1.0, 4, 4, 4, 0, 0, 1, 0], (20, 1))
    worse = np.tile([1.0, 4, 2, 4, 0, 0, 1, 1], (20, 1))
    seen = comparison.paired(worse, better)
    assert seen["sensitivity"]["difference"] == -0.5
    assert seen["sensitivity"]["p"] < 0.001
    assert seen["calcifications_called_microbleed"]["low"] == 1
    same = comparison.paired(better, better)
    assert same["f1"]["difference"] == 0
    assert same["f1"]["p"] == 1
    assert same["false_positives_per_lesion_free_case"]["p"] is None


def test_p_of_the_paired_test_is_even_where_nothing_differs():
    rng = np.random.default_rng(0)
    small = 0
    for trial in range(60):
        one, other = (np.zeros((30, len(comparison.COUNTS))) for _ in range(2))
        for counts in (one, other):
            counts[:, 0], counts[:, 1] = 1, 5
            counts[:, 2] = counts[:, 3] = rng.binomial(5, 0.7, 30)
        small += comparison.paired(one, other, seed=trial)["sensitivity"]["p"] <= 0.1
    assert 1 <= small <= 14  # of 60, a tenth are expected


def test_intervals_cover_the_value_and_need_cases():
    counts = np.tile([1.0, 3, 2, 3, 0, 0, 0, 0], (10, 1))
    counts[::2, 2] = 3
    row = comparison.with_intervals(counts)["sensitivity"]
    assert row["low"] < row["value"] < row["high"]
    empty = comparison.with_intervals(np.zeros((0, len(comparison.COUNTS))))
    assert empty["sensitivity"]["value"] is None


def test_only_cases_with_a_magnitude_run_are_learnt_from_in_the_comparison(tmp_path):
    paths = []
    for index in (3, 4, 5):  # all for training
        case = toy_case(index)
        if index == 4:
            del case.candidates["magnitude"]
        case.recipe["swi_as_magnitude"] = index == 5
        paths.append(tmp_path / f"case-{index:05d}.npz")
        save_case(case, paths[-1])
    chosen = steps.training_cases(paths, CONTENDERS["magnitude"])
    assert chosen == steps.training_cases(paths, CONTENDERS["phase"]) == paths[:1]
    shipped = CONTENDERS["microbleed-one-channel"]
    assert steps.training_cases(paths, shipped) == paths
    patches = steps.load_training(paths, shipped).patches
    assert patches.shape[:2] == (27, 1)
    stand_in = load_case(paths[1]).candidates["complex"].patches[:, :1]
    np.testing.assert_array_equal(patches[9:18], stand_in)
    with pytest.raises(BadData, match="magnitude-only"):
        steps.training_cases(paths[1:], CONTENDERS["swi"])
    phase = steps.load_training(paths[:1], CONTENDERS["phase"])
    assert phase.weights is None  # compared on equal terms: all drawn alike
    np.testing.assert_array_equal(phase.slice_mm, 2.0)
    np.testing.assert_array_equal(
        phase.patches, load_case(paths[0]).candidates["complex"].patches[:, 1:]
    )


def test_too_many_missing_cases_are_refused(tmp_path):
    save_case(toy_case(0), tmp_path / "case-00000.npz")
    with pytest.raises(BadData, match="19 of 20 cases could not be made"):
        steps.summarise_cases(tmp_path, 20, SETTINGS, tmp_path / "cases.json")


def test_a_run_with_fewer_training_cases_knows_which_are_its_own(tmp_path):
    for index in range(20):
        save_case(toy_case(index), tmp_path / f"case-{index:05d}.npz")
    summary = tmp_path / "cases.json"
    steps.summarise_cases(tmp_path, 20, SETTINGS, summary, training_cases=10)
    content = json.loads(summary.read_text())
    assert content["split"]["train"] == 10
    assert content["split"]["test"] >= 3
    assert len(steps.cases_of(summary)) == content["made"] == sum(content["split"].values())


def test_a_shipped_network_goes_on_from_earlier_weights(folder, tmp_path):
    summary, before = folder / "cases.json", folder / f"{NAME}.safetensors"
    weights = tmp_path / "weights" / f"{NAME}.safetensors"
    steps.train(NAME, summary, weights, steps=1, seed=2, init=str(folder))
    record = json.loads(weights.with_suffix(".json").read_text())
    assert record["initialised_from"] == {"name": NAME, "sha256": load_model(before).sha256}
    trained, begun = load_file(weights), load_file(before)
    apart = [float((trained[key] - begun[key]).abs().max()) for key in begun if "weight" in key]
    assert 0 < max(apart) < 0.01  # one small step from where it began
    metrics = json.loads((folder / f"{NAME}.json").read_text())
    metrics["training"] = {**metrics["training"], **record}
    assert f"from {NAME} {record['initialised_from']['sha256'][:8]} on, 1 step" in (
        card.model_card(metrics, None)
    )


def test_a_network_is_measured_again_without_training(folder, tmp_path):
    summary, begun = folder / "cases.json", load_file(folder / f"{NAME}.safetensors")
    then = json.loads((folder / f"{NAME}.json").read_text())
    init = folder
    for turn in ("once", "twice"):
        out = tmp_path / turn
        weights, scores = out / "weights" / f"{NAME}.safetensors", out / "scores.npz"
        steps.train(NAME, summary, weights, steps=0, seed=2, init=str(init))
        kept = load_file(weights)
        assert all(torch.equal(kept[key], begun[key]) for key in begun)
        steps.calibrate_and_score(NAME, summary, scores, weights)
        again = out / f"{NAME}.json"
        steps.finish_model(NAME, summary, weights, scores, again, "cmb-lab train --steps 0")
        now = json.loads(again.read_text())
        assert now["test"] == then["test"]
        record = now["training"]
        assert (record["command"], record["data"]) == ("cmb-lab train", then["data"])
        assert record["steps"] == then["training"]["steps"]
        sha256 = load_model(init / f"{NAME}.safetensors").sha256
        assert record["measured_again"]["sha256"] == sha256
        init = out
    said = card.model_card(now, None)
    assert "- Command: `cmb-lab train`\n" in said
    assert "- Command: `cmb-lab train --steps 0`\n" in said
    assert card.measured_by(record) == "cmb-lab train --steps 0"


def test_no_steps_need_a_network_that_is_there(folder, tmp_path):
    with pytest.raises(UsageError, match="no network to start from"):
        steps.train(NAME, folder / "cases.json", tmp_path / "w.safetensors", steps=0, seed=2)


def test_a_network_that_does_not_say_how_it_was_trained_is_not_measured_again(folder, tmp_path):
    known = load_model(folder / f"{NAME}.safetensors")
    for provenance in ({}, {"training": {"seed": 1, "steps": 3}}):  # the second as if tuned
        save_model(known.network, tmp_path / "tuned.safetensors", provenance)
        init = str(tmp_path / "tuned.safetensors")
        weights = tmp_path / "w.safetensors"
        with pytest.raises(UsageError, match=r"tuned\.safetensors does not say .*batch_size"):
            steps.train(NAME, folder / "cases.json", weights, steps=0, seed=2, init=init)
        assert not weights.exists()


def test_weights_of_another_layout_are_no_start(tmp_path):
    other = MicrobleedNet(ModelDescription(name="narrow"))
    save_model(other, tmp_path / "narrow.safetensors", {})
    with pytest.raises(UsageError, match="has other layers"):
        started_from(CONTENDERS[NAME], str(tmp_path / "narrow.safetensors"))


def test_the_start_is_handed_to_the_workflow_and_said_on_the_card(tmp_path):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    given = ["--output", str(tmp_path), "--init", "models", "--models", "two-channel"]
    command = cli.workflow_command(parser.parse_args(given))
    assert f"init={Path('models').resolve()}" in command
    assert not [
        part for part in cli.workflow_command(parser.parse_args(given[:2])) if "init" in part
    ]
    said = cli.command_of({"init": "shipped", "shipped": [NAME], "seed": 1})
    assert said == "cmb-lab train --output MODELS --seed 1 --init shipped --models two-channel"


def test_only_shipped_networks_look_at_mirror_images():
    assert len(judging.looks(CONTENDERS["microbleed-one-channel"])) == 8
    assert {len(judging.looks(CONTENDERS[name])) for name in ("swi", "residual-2018")} == {1}


def test_a_block_keeps_what_is_there_and_names_what_failed(tmp_path, monkeypatch):
    cases = pytest.importorskip("cmb_bids.training.cases")

    def make(index, seed, kept):
        if index == 2:
            raise ValueError("bad luck")
        return toy_case(index)

    monkeypatch.setattr(cases, "make_case", make)
    save_case(toy_case(1), tmp_path / "case-00001.npz")
    before = (tmp_path / "case-00001.npz").stat().st_mtime_ns
    steps.make_block(tmp_path, 0, 3, SETTINGS, tmp_path / "block.json")
    assert json.loads((tmp_path / "block.json").read_text()) == {"cases": 3, "failed": [2]}
    assert (tmp_path / "case-00001.npz").stat().st_mtime_ns == before
    assert load_case(tmp_path / "case-00003.npz").recipe["data_key"] != "toy"


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path):
    labels, checkpoint = np.array([0, 1, 2]), tmp_path / ".x.checkpoint"
    config = steps.FitConfig(steps=3)
    steps.resumable(checkpoint, config, labels)
    checkpoint.write_bytes(b"weights")
    assert steps.resumable(checkpoint, config, labels).is_file()
    assert not steps.resumable(checkpoint, config, labels[:2]).is_file()


def test_the_network_of_2018_is_of_its_size_and_knows_two_classes():
    contender = CONTENDERS["residual-2018"]
    network = new_network(contender, 0).eval()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(47_000, rel=0.02)
    logits = network(torch.randn(2, 1, *PatchGeometry().shape))
    assert (logits[:, 1] < logits[:, 0] - 5).all()
    np.testing.assert_array_equal(targets(contender, np.array([0, 1, 2, -1])), [0, 2, 2, -1])


def test_strengths_are_logarithms_and_may_be_absent():
    found = toy_case(0).candidates["complex"]
    np.testing.assert_allclose(
        strengths(found, "frst_swi"), np.log(found.baselines["frst_swi"] + 1e-6)
    )
    assert strengths(found, "another") is None
    found.baselines.clear()
    judged = [judging.Judged(toy_case(0), found, np.zeros((9, 3)))]
    with pytest.raises(BadData, match="FRST alone"):
        judging.best_strength(CONTENDERS["frst"], judged)


def test_a_step_is_given_what_it_takes_as_what_it_says():
    def step(first, record, threads=1): ...

    # As `from __future__ import annotations` leaves them.
    step.__annotations__ = {"first": "int", "record": "Path", "threads": "int"}
    given = {"first": "7", "record": "a/b", "step": "x:y", "unknown": 1}
    taken = jobs.arguments_for(step, given)
    assert taken["first"] == 7
    assert taken["record"].name == "b"
    assert set(taken) == {"first", "record"}


def test_a_case_without_lesions_has_the_columns_all_the_same():
    case = toy_case(0)
    case.truth = []
    found = case.candidates["complex"]
    scored = scored_case(case, "complex", np.full((len(found.labels), 3), 1 / 3))
    assert {"contrast_to_noise", "mars_class", "diameter_mm"} <= set(scored.microbleeds)
    assert comparison.by_stratum([scored], 0.5)["contrast to noise"] == {}


def test_lesions_are_told_apart_by_whether_they_look_like_a_microbleed():
    lesions = [{"apparent_diameter_mm": size} for size in (1.9, 2.0, 10.0, 10.1, None)]
    named = comparison._by_definition(pd.DataFrame(lesions))
    fits, not_so = "looks 2-10 mm", "smaller or larger"
    assert named.tolist() == [not_so, fits, fits, not_so, "not measured"]


def test_a_network_that_says_one_thing_for_all_has_learnt_nothing():
    rng = np.random.default_rng(0)
    labels = np.array([0, 2] * 40)
    patches = rng.normal(1, 0.02, (80, 1, 28, 28, 24)).astype(np.float16)
    network = new_network(CONTENDERS["swi"], 0).eval()
    torch.nn.init.zeros_(network.head.weight)
    assert not steps.has_learnt(network, patches, labels, 0)
    patches[labels == 0, :, 10:-10, 10:-10, 8:-8] = 0.1
    learnt, _ = fit(
        new_network(CONTENDERS["swi"], 0),
        Patches(patches, labels),
        FitConfig(steps=40, batch_size=16, seed=0),
    )
    assert steps.has_learnt(learnt, patches, labels, 0)
