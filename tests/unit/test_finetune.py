"""Fine-tuning: what a user's labels teach, what is refused, and what is written."""

import argparse
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from toys import toy_case

from cmb_bids.errors import BadData, InputMissing, NothingMatched
from cmb_bids.resnet import MicrobleedNet, ModelDescription, load_model, save_model
from cmb_bids.training import ablation, cli, comparison, finetune, growth, transfer, trials, tune
from cmb_bids.training.fit import FitConfig, Patches, sample_batch
from cmb_bids.training.shards import save_case
from cmb_bids.volumes import write_table, write_volume

SIZE = (70, 70, 24)
AFFINE = np.diag([0.75, 0.75, 2.0, 1.0])
# Microbleeds, a calcification and a spot that is nothing, voxels.
PLACES = [(15, 15, 8), (50, 15, 8), (15, 50, 8), (50, 50, 8), (33, 33, 17)]
KINDS = ["microbleed", "microbleed", "microbleed", "calcification", "other"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def millimetres(voxels):
    return np.asarray(voxels, dtype=float) * [0.75, 0.75, 2.0]


def write_scan(root, number, rng):
    """One scan as the participant level leaves it."""
    swi = rng.normal(1, 0.03, SIZE).astype(np.float32)
    highpass = rng.normal(0, 0.03, SIZE).astype(np.float32)
    for (x, y, z), kind in zip(PLACES, KINDS, strict=True):
        box = np.s_[x - 2 : x + 3, y - 2 : y + 3, z - 1 : z + 2]
        swi[box] = 0.2
        highpass[box] = {"microbleed": 0.9, "calcification": -0.9, "other": 0.0}[kind]
    anat = root / f"sub-{number:02d}" / "anat"
    stem = anat / f"sub-{number:02d}"
    write_volume(f"{stem}_desc-swi_T2starw.nii.gz", swi, AFFINE)
    write_volume(f"{stem}_part-phase_desc-highpass_T2starw.nii.gz", highpass, AFFINE)
    write_volume(f"{stem}_desc-brain_mask.nii.gz", np.ones(SIZE, np.uint8), AFFINE)
    points = millimetres(PLACES)
    table = pd.DataFrame(points, columns=["x", "y", "z"])
    table.insert(0, "index", np.arange(1, len(table) + 1))
    table.insert(1, "name", "candidate")
    table["score"] = 1.0
    write_table(f"{stem}_desc-candidates_dseg.tsv", table)
    write_table(f"{stem}_desc-cmb_dseg.tsv", table.iloc[:0])


def write_labels(root, number, kinds=("microbleed", "calcification"), **columns):
    rows = [
        {"name": kind, **dict(zip("xyz", millimetres(place) + 0.4, strict=True))}
        for place, kind in zip(PLACES, KINDS, strict=True)
        if kind in kinds
    ]
    table = pd.DataFrame(rows).assign(**columns)
    write_table(root / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_desc-cmb_dseg.tsv", table)


@pytest.fixture
def study(tmp_path):
    """Five participants processed and labelled, and a small network to start from."""
    rng = np.random.default_rng(0)
    for number in range(1, 6):
        write_scan(tmp_path / "results", number, rng)
        write_labels(tmp_path / "labels", number)
    torch.manual_seed(0)
    network = MicrobleedNet(ModelDescription(widths=(4, 6, 8), name="toy"))
    save_model(network, tmp_path / "toy.safetensors", {})
    return tmp_path


def arguments(study, *words):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(
        [
            *("--labels", str(study / "labels"), "--derivatives", str(study / "results")),
            *("--init", str(study / "toy.safetensors"), "--output", str(study / "tuned")),
            *words,
        ]
    )


def test_a_users_labels_make_a_network_that_the_pipeline_can_use(study, capsys, monkeypatch):
    monkeypatch.setattr(finetune, "FitConfig", partial(FitConfig, batch_size=8))
    folder = study / "shards"
    for index in (2, 3, 4):
        save_case(toy_case(index), folder / f"case-{index:05d}.npz")
    assert cli.run(arguments(study, "--steps", "3", "--shards", str(folder))) == 0
    path = study / "tuned" / "microbleed-two-channel.safetensors"
    tuned, start = load_model(path), load_model(study / "toy.safetensors")
    assert tuned.description.name == "toy-tuned"
    assert load_model(study / "tuned").sha256 == tuned.sha256
    changed = tuned.network.state_dict()
    assert any(not torch.equal(v, changed[k]) for k, v in start.network.state_dict().items())
    metrics = json.loads(path.with_suffix(".json").read_text())
    assert metrics["data"]["split"] == {"participants": 5, "parts": 5}
    assert metrics["training"]["candidates"] == {"microbleed": 15, "calcification": 5, "other": 5}
    assert metrics["test"]["definite"]["microbleeds"] == 15
    assert metrics["simulated"] is False
    gain = metrics["tuning"]
    after, before = (gain[when]["sensitivity"]["value"] for when in ("after", "before"))
    assert gain["difference"]["sensitivity"]["difference"] == pytest.approx(
        after - before, abs=2e-4
    )
    assert gain["after"]["sensitivity"]["value"] == pytest.approx(
        metrics["test"]["definite"]["sensitivity"], abs=1e-3
    )
    assert "To use it" in capsys.readouterr().out
    card = path.with_suffix(".md").read_text()
    assert "labelled scans" in card
    assert "Before and after" in card


def test_possible_and_unnamed_lesions_teach_nothing(study):
    truth = pd.DataFrame(
        {
            "kind": ["microbleed", "microbleed"],
            "certainty": ["definite", "possible"],
            **dict(zip("xyz", millimetres(PLACES[:2]).T, strict=True)),
        }
    )
    labels, counted = finetune.label_against(millimetres(PLACES), truth)
    np.testing.assert_array_equal(labels, [0, -1, 2, 2, 2])
    assert len(counted) == 1


def test_calcifications_nobody_labelled_are_not_taught_to_be_nothing():
    case = toy_case(0)
    found = case.candidates["complex"]
    found.labels[found.labels == 1] = 2
    network = MicrobleedNet(ModelDescription(widths=(4, 6, 8)))
    logits = np.zeros((9, 3))
    logits[1] = [0, 9, 0]
    kept = tune._labels(case, logits, network, calcifications_labelled=False)
    np.testing.assert_array_equal(np.flatnonzero(kept == -1), [1])
    np.testing.assert_array_equal(tune._labels(case, logits, network, True), found.labels)


def test_intervals_are_over_participants_and_not_their_scans():
    counts = np.arange(24.0).reshape(3, 8)
    np.testing.assert_array_equal(
        comparison._by_participant(counts, ["b", "a", "b"]), [counts[1], counts[0] + counts[2]]
    )
    assert comparison._by_participant(counts, None) is counts


def test_no_participant_is_on_both_sides():
    participants = [f"sub-{i // 3}" for i in range(30)]
    folds = tune._folds(participants, 0)
    assert set(folds) == set(range(tune.MOST_FOLDS))
    for name in set(participants):
        assert len({f for f, p in zip(folds, participants, strict=True) if p == name}) == 1


def test_new_and_kept_patches_are_drawn_equally_often():
    new, kept = np.array([0, 2, 2]), np.array([0] * 50 + [1] * 10 + [2] * 40)
    parts = Patches(np.zeros(3), new), Patches(np.zeros(100), kept, np.linspace(1, 2, 100))
    joined = Patches.join([tune._evenly(part) for part in parts])
    drawn = sample_batch(joined.labels, 3000, np.random.default_rng(0), joined.weights)
    of_class = drawn[joined.labels[drawn] == 0]
    assert (of_class < 3).mean() == pytest.approx(0.5, abs=0.06)


def refused(study, error, words):
    with pytest.raises(error, match=words):
        cli.run(arguments(study, "--steps", "1"))


def test_labels_that_cannot_be_used_are_refused(study, caplog):
    for number in range(1, 6):
        write_labels(study / "labels", number, x=500.0)
    refused(study, BadData, "no labelled microbleed has a candidate")
    write_labels(study / "labels", 1)
    refused(study, BadData, "only 3 labelled microbleeds")
    path = study / "labels" / "sub-02" / "anat" / "sub-02_desc-cmb_dseg.tsv"
    pd.DataFrame({"name": ["microbleed"]}).to_csv(path, sep="\t", index=False)
    refused(study, BadData, "only 3")
    assert "sub-02 is not used" in caplog.text
    assert "neither x, y, z nor i, j, k" in caplog.text


def test_too_few_participants_and_folders_without_content_are_refused(study):
    for number in (3, 4, 5):
        (study / "labels" / f"sub-{number:02d}" / "anat").rename(study / f"away-{number}")
    refused(study, BadData, "only 2 participants")
    (study / "labels" / "sub-01").rename(study / "away-1")
    (study / "labels" / "sub-02").rename(study / "away-2")
    refused(study, NothingMatched, "holds no labels")
    (study / "empty").mkdir()
    with pytest.raises(InputMissing, match="no simulated training cases"):
        finetune.kept_patches(study / "empty")


def test_scans_without_phase_are_named_and_left_out(study, caplog):
    next((study / "results" / "sub-01").glob("**/*highpass*")).unlink()
    start, cohort = load_model(study / "toy.safetensors"), None
    cohort = finetune.read_cohort(study / "results", study / "labels")
    cases, participants = finetune.read_cases(study / "results", cohort, start)
    assert len(cases) == 4
    assert "sub-01" not in participants
    assert "Only scans with phase" in caplog.text


def test_transfer_compares_before_and_after_on_the_protocol_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trials, "FitConfig", partial(FitConfig, batch_size=8))
    for index in range(13):
        save_case(toy_case(index), tmp_path / f"case-{index:05d}.npz")
    words = ["--shards", str(tmp_path), "--protocol", "ukb", "--steps", "2"]
    words += ["--tuning-steps", "1", "--tuning-cases", "4", "--output", str(tmp_path / "r.json")]
    assert transfer.main(words) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["simulated"] is True
    assert result["tuning_cases"] == 4
    assert result["test_cases_among_them"] == 2  # of 0, 6 and 11 the even ones
    assert result["cases_judged"] == 3  # and 10, which neither network saw
    assert "left out of training" in capsys.readouterr().out
    assert transfer.main([*words[:3], "9.4T"]) == 65


def test_ablation_reads_scans_and_labels_of_other_simulators(study):
    pair = (study / "results", study / "labels")
    cases = ablation.scans_outside([pair, pair])
    assert len(cases) == 10
    (first, *_) = cases
    assert [first.candidates[tune.KIND].labels.tolist(), len(first.truth)] == [[0, 0, 0, 1, 2], 4]
    assert ablation.scans_outside([]) == []


def test_growth_judges_more_and_more_training_cases(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trials, "FitConfig", partial(FitConfig, batch_size=8))
    for index in range(22):
        save_case(toy_case(index), tmp_path / f"case-{index:05d}.npz")
    words = ["--shards", str(tmp_path), "--steps", "2", "--output", str(tmp_path / "r.json")]
    assert growth.main([*words, "--counts", "8", "4"]) == 0
    few, many = json.loads((tmp_path / "r.json").read_text())["counts"]
    assert (few["training_cases"], many["training_cases"]) == (4, 8)
    assert few["difference"]["f1"]["difference"] == 0
    assert many["before"] == few["after"]
    assert many["cases_judged"] == 2  # of 15 training cases every eighth
    assert "training cases, simulated" in capsys.readouterr().out
    assert growth.main([*words, "--counts", "99"]) == 65


def test_tuning_leaves_the_network_it_starts_from_alone():
    torch.manual_seed(0)
    network = MicrobleedNet(ModelDescription(widths=(4, 6, 8)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    cases = [toy_case(i) for i in range(4)]
    config = FitConfig(steps=1, batch_size=8)
    tuned = tune.tune(network, cases, ["a", "b", "c", "c"], config)
    assert tuned.folds == 3
    assert [case.index for case in tuned.cases] == [0, 1, 2, 3]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
