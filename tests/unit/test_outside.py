"""Cohorts of other simulators: how they are put together, and what the page says of them."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import outside_cohort

from cmb_bids import lab
from cmb_bids.errors import BadData
from cmb_bids.training import outside

TOY = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("output", type=pathlib.Path)
for name in ("--participants", "--seed", "--only"):
    parser.add_argument(name)
given = parser.parse_args()
if given.seed == "13":
    raise SystemExit("no such luck")
rows = ["participant_id\\tgroup"]
for i in range(int(given.participants)):
    rows.append(f"sub-{i + 1:02d}\\thealthy")
(given.output / "participants.tsv").write_text("\\n".join(rows) + "\\n")
stem = f"sub-{given.only}"
raw, truth = given.output / stem / "anat", given.output / "derivatives/truth" / stem / "anat"
raw.mkdir(parents=True)
truth.mkdir(parents=True)
(raw / f"{stem}_swi.nii.gz").write_text("image")
about = {"Sources": [f"bids:raw:{stem}/anat/{stem}_swi.nii.gz"]}
(truth / f"{stem}_desc-microbleeds_dseg.json").write_text(json.dumps(about))
table = f"index\\tname\\tx\\ty\\tz\\tdiameter_mm\\n1\\tmicrobleed\\t{given.only}\\t0\\t0\\t2.5\\n"
(truth / f"{stem}_desc-microbleeds_dseg.tsv").write_text(table)
print("made", given.only)
"""


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Two simulators that write next to nothing."""
    tools = tmp_path / "tools"
    for name in ("second", "random_walk"):
        folder = tools / f"{name}_simulator"
        folder.mkdir(parents=True)
        (folder / "__main__.py").write_text(TOY)
    monkeypatch.setattr(outside_cohort, "TOOLS", tools)
    return tmp_path / "cohort"


def build(cohort, *more):
    return outside_cohort.main(
        [str(cohort), "--participants", "2", "--simulators", "second", "random_walk", *more]
    )


def test_participants_of_all_simulators_make_one_dataset(toys, capsys):
    assert build(toys, "--workers", "2", "--seed", "4") == 0
    names = ["sub-randomwalk01", "sub-randomwalk02", "sub-second01", "sub-second02"]
    assert sorted(path.name for path in toys.glob("sub-*")) == names
    table = pd.read_csv(toys / "participants.tsv", sep="\t")
    assert table.participant_id.tolist() == names
    assert table.simulator.tolist() == ["random_walk"] * 2 + ["second"] * 2
    truth = toys / "derivatives" / "truth" / "sub-second02" / "anat"
    said = json.loads((truth / "sub-second02_desc-microbleeds_dseg.json").read_text())
    assert said["Sources"] == ["bids:raw:sub-second02/anat/sub-second02_swi.nii.gz"]
    assert (toys / "sub-second02" / "anat" / "sub-second02_swi.nii.gz").is_file()
    assert "--seed 4" in (toys / "dataset_description.json").read_text()


def test_what_is_there_stays_and_what_is_missing_is_made(toys, capsys):
    assert build(toys) == 0
    image = toys / "sub-second01" / "anat" / "sub-second01_swi.nii.gz"
    image.write_text("mine")
    other = toys / "sub-second02" / "anat" / "sub-second02_swi.nii.gz"
    other.unlink()
    other.parent.rmdir()
    other.parent.parent.rmdir()
    capsys.readouterr()
    assert build(toys) == 0
    assert image.read_text() == "mine"
    assert other.read_text() == "image"
    assert capsys.readouterr().out.split() == ["sub-second02:", "made", "02"]


def test_a_simulator_that_fails_is_named_and_leaves_nothing_half(toys, capsys):
    assert build(toys, "--seed", "13") == 1
    error = capsys.readouterr().err
    assert "no such luck" in error
    assert "second_simulator" in error
    assert not list(toys.glob("sub-*"))


def results_of(cohort, folder):
    """A tool that finds the first participant's lesion of each simulator, and one too many."""
    (folder).mkdir()
    for path in cohort.glob("sub-*"):
        anat = folder / path.name / "anat"
        anat.mkdir(parents=True)
        rows = [(1, "microbleed", 1, 0, 0, 0.9)]
        if path.name == "sub-second01":
            rows.append((2, "microbleed", 50, 0, 0, 0.8))
        table = pd.DataFrame(rows, columns=["index", "name", "x", "y", "z", "probability"])
        table.to_csv(anat / f"{path.name}_desc-cmb_dseg.tsv", sep="\t", index=False)
    for path in folder.glob("sub-*02/anat/*.tsv"):
        path.write_text("index\tname\tx\ty\tz\tprobability\n")


def test_page_tells_all_together_and_each_simulator(toys, tmp_path, capsys):
    build(toys, "--seed", "4")
    results_of(toys, tmp_path / "results")
    labels, evaluation = toys / "derivatives" / "truth", tmp_path / "evaluation"
    command = ["evaluate", str(tmp_path / "results"), str(labels), "--output", str(evaluation)]
    assert lab.main([*command, "--bootstrap", "50"]) == 0
    assert "simulated" in capsys.readouterr().out.lower()
    found = outside.collect(evaluation, {"training": {"commit": "0123456789"}})
    everything = found["by"]["all"]["all"]
    assert everything["sensitivity"]["value"] == 0.5
    assert everything["precision"]["value"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["by"]["simulator"]["random_walk"]["false_positives_per_scan"]["value"] == 0
    assert found["by"]["simulator"]["second"]["false_positives_per_scan"]["value"] == 0.5
    assert found["without_result"] == 0
    said = "\n".join(outside.section(found))
    for words in ("--seed 4", "0123456", "| random_walk | 2 | 2 | 0.500", "simulated", "No scan"):
        assert words in said


def test_a_cohort_that_does_not_say_how_it_was_drawn_is_refused(toys, tmp_path, capsys):
    build(toys)
    results_of(toys, tmp_path / "results")
    labels, evaluation = toys / "derivatives" / "truth", tmp_path / "evaluation"
    (labels / "dataset_description.json").write_text('{"Name": "mine", "BIDSVersion": "1.10.0"}')
    lab.main(["evaluate", str(tmp_path / "results"), str(labels), "--output", str(evaluation)])
    with pytest.raises(BadData, match="outside_cohort"):
        outside.collect(evaluation, {"training": {"commit": "0123456789"}})
