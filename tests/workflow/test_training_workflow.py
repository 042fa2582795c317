"""The training workflow: what it would do, and that it goes on where it stopped."""

import subprocess
import sys

import pytest

from cmb_bids.lab import main
from cmb_bids.run import project_root

SNAKEFILE = project_root() / "workflow" / "training" / "Snakefile"


def planned(tmp_path, *config, target="everything"):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", target, "--dry-run", "--cores", "4", "--quiet"),
            *("host", "--snakefile", str(SNAKEFILE), "--directory", str(tmp_path)),
            *("--config", f"output={tmp_path / 'models'}", *config),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_one_command_plans_every_step(tmp_path):
    status, said = planned(tmp_path, "cases=220", "block_size=20", "shards=kept")
    assert status == 0, said
    for rule, jobs in {"block": 11, "network": 7, "baseline_scores": 3, "card": 2}.items():
        assert [rule, str(jobs)] in [line.split() for line in said.splitlines()], said
    for rule in ("all_cases", "compare", "failures", "accuracy"):
        assert rule in said


def test_a_block_is_of_the_wanted_cases_alone(tmp_path):
    keys = ("cases=220", "training_cases=54", "block_size=20", "shards=kept")
    status, said = planned(tmp_path, *keys)
    assert status == 0, said
    assert ["block", "6"] in [line.split() for line in said.splitlines()], said


def test_a_wrong_key_is_refused(tmp_path):
    status, said = planned(tmp_path, "device=abacus")
    assert status != 0
    assert "abacus" in said


def test_the_command_launches_the_same_workflow(tmp_path, capfd):
    words = ["train", "--output", str(tmp_path / "out"), "--cases", "20", "--models", "two-channel"]
    assert main([*words, "--until", "cases", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "all_cases" in said
    assert "rule network" not in said


@pytest.mark.parametrize("failing", ["cases.log"])
def test_a_failed_step_is_named_with_its_log(tmp_path, failing, capsys):
    shards = tmp_path / "shards"
    (shards / "blocks").mkdir(parents=True)
    for first in (0, 10):
        (shards / "blocks" / f"{first}-{first + 9}-10.json").write_text("{}")
    words = ["train", "--output", str(tmp_path / "out"), "--cases", "20", "--shards", str(shards)]
    assert main([*words, "--until", "cases"]) == 65
    said = capsys.readouterr().err
    assert failing in said
    assert "20 of 20 cases could not be made" in said
