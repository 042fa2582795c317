"""The command line up to where Snakemake starts: options, exit codes, messages."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import yaml

from cmb_bids import cli, lab, run
from cmb_bids.brain import BrainConfig
from cmb_bids.candidates import CandidateConfig
from cmb_bids.errors import BadData, CannotCreate, InputMissing, UsageError
from cmb_bids.interfaces import base
from cmb_bids.lesions import LesionConfig
from cmb_bids.phase import PhaseConfig
from cmb_bids.swi import SwiConfig

SECTIONS = {
    "phase": PhaseConfig,
    "swi": SwiConfig,
    "brain": BrainConfig,
    "candidates": CandidateConfig,
    "lesions": LesionConfig,
}


@pytest.fixture
def dataset(tmp_path) -> Path:
    root = tmp_path / "bids"
    for part in ("mag", "phase"):
        path = root / f"sub-01/anat/sub-01_part-{part}_T2starw.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


def ending(capsys, *arguments) -> tuple[int, str]:
    """Exit code and what was said."""
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out + said.err


# ------------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "b"],
        ["a", "b", "participant", "--no-such-option"],
        ["a", "b", "participant", "--n-cpus", "0"],
        ["a", "b", "participant", "--n-cpus", "two"],
        ["a", "b", "participant", "--random-seed", "-1"],
        ["a", "b", "group", "--", "--forceall"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(capsys, arguments):
    code, said = ending(capsys, *arguments)
    assert code == 64
    assert said.startswith("cmb-bids: ")


def test_an_unknown_level_has_its_own_code(capsys, dataset, tmp_path):
    code, said = ending(capsys, dataset, tmp_path / "out", "session")
    assert code == 17
    assert "participant or group" in said


def test_an_absent_dataset_is_missing_input(capsys, tmp_path):
    for level in cli.LEVELS:
        code, said = ending(capsys, tmp_path / "absent", tmp_path / "out", level)
        assert code == 66
        assert "absent" in said


def test_an_empty_directory_is_an_invalid_dataset(capsys, tmp_path):
    code, said = ending(capsys, tmp_path, tmp_path / "out", "participant")
    assert code == 16
    assert "dataset_description.json" in said
    assert not (tmp_path / "out").exists()


def test_an_absent_label_is_named(capsys, dataset, tmp_path):
    arguments = ("participant", "--participant-label", "01", "nobody")
    code, said = ending(capsys, dataset, tmp_path / "out", *arguments)
    assert code == 18
    assert "sub-nobody" in said


def test_a_dataset_without_scans_says_what_is_looked_for(capsys, dataset, tmp_path):
    for path in (dataset / "sub-01/anat").iterdir():
        path.unlink()
    code, said = ending(capsys, dataset, tmp_path / "out", "participant")
    assert code == 66
    assert "part-phase" in said


def test_an_output_that_cannot_be_written_is_named(capsys, dataset, tmp_path):
    (tmp_path / "file").write_text("x")
    code, said = ending(capsys, dataset, tmp_path / "file" / "out", "participant")
    assert code == 73
    assert "file" in said


@pytest.mark.skipif(os.getuid() == 0, reason="root can write everywhere")
def test_an_output_without_permission_is_named(capsys, dataset, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    assert ending(capsys, dataset, out, "participant")[0] == 73


@pytest.mark.parametrize("where", ["", "sub-01", "sub-out"])
def test_outputs_among_the_raw_data_are_refused(capsys, dataset, where):
    code, said = ending(capsys, dataset, dataset / where, "participant")
    assert code == 64
    assert "derivatives" in said


def test_an_output_that_holds_raw_data_is_refused(dataset, tmp_path):
    with pytest.raises(CannotCreate, match="raw"):
        run.check_output(tmp_path / "elsewhere", dataset)


def test_the_group_level_needs_results(capsys, dataset, tmp_path):
    code, said = ending(capsys, dataset, tmp_path / "out", "group")
    assert code == 66
    assert "participant level" in said


def test_a_configuration_with_an_unknown_key_is_bad_data(capsys, dataset, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("phase: {unwraping: romeo}")
    code, said = ending(capsys, dataset, tmp_path / "out", "participant", "--config-file", config)
    assert code == 65
    assert "unwraping" in said
    assert "config.yaml" in said


def test_reports_only_needs_results_and_boilerplate_only_makes_the_text(capsys, dataset, tmp_path):
    out = tmp_path / "out"
    code, said = ending(capsys, dataset, out, "participant", "--reports-only")
    assert code == 66
    assert "no complete scan" in said
    code, said = ending(capsys, dataset, out, "participant", "--boilerplate-only")
    assert code == 0
    assert "ROMEO" in (out / "logs" / "CITATION.md").read_text()
    assert not list((out / "logs").glob("2*"))


def test_a_fault_of_the_program_is_one_line_and_a_log(capsys, dataset, tmp_path, monkeypatch):
    def fault(*_):
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(run, "prepare", fault)
    monkeypatch.chdir(tmp_path)
    code, said = ending(capsys, dataset, tmp_path / "out", "participant")
    assert code == 70
    assert len(said.splitlines()) == 1
    log = next(tmp_path.glob("crash-*.log"))
    assert log.name in said
    assert "Traceback" in log.read_text()


def test_an_interrupt_is_said_in_one_line(capsys, dataset, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "prepare", interrupt)
    code, said = ending(capsys, dataset, tmp_path / "out", "participant")
    assert code == 130
    assert "interrupted" in said


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert "cmb-bids" in capsys.readouterr().out


def test_the_laboratory_s_commands_end_with_the_same_codes(capsys):
    assert lab.main([]) == 64
    assert lab.main(["dance"]) == 64
    assert lab.main(["benchmark", "/no/such/dataset"]) == 66
    assert "/no/such/dataset" in capsys.readouterr().err


# --------------------------------------------------------------------------- options


def test_labels_come_from_words_lists_and_files(tmp_path):
    assert cli.read_labels(None) is None
    assert cli.read_labels(["01", "sub-02"]) == ("01", "sub-02")
    assert cli.read_labels(["01,02"]) == ("01", "02")
    plain, table = tmp_path / "labels.txt", tmp_path / "participants.tsv"
    plain.write_text("sub-01\nsub-02 03\n")
    table.write_text("participant_id\tage\nsub-01\t70\nsub-02\t71\n")
    assert cli.read_labels([str(plain)]) == ("sub-01", "sub-02", "03")
    assert cli.read_labels([str(table)]) == ("sub-01", "sub-02")


def test_flags_after_two_dashes_are_snakemake_s():
    options, extra = cli.parse_arguments(["a", "b", "participant", "--", "--forceall", "-p"])
    assert options.level == "participant"
    assert extra == ["--forceall", "-p"]


def test_cores_are_left_to_a_cluster_s_profile():
    options, _ = cli.parse_arguments(["a", "b", "participant"])
    here = cli._resources(options, [])
    assert here.cpus == run.available_cpus()
    assert here.memory_mb > 0
    assert cli._resources(options, ["--profile=slurm"]) == run.Resources(None, None)


def test_the_snakemake_command_says_what_was_asked_for(tmp_path):
    command = run.snakemake_command(
        tmp_path / "m.json", tmp_path, run.Resources(3, 4000),
        dry_run=True, stop_early=True, extra=["--forceall"],
    )  # fmt: skip
    assert command[command.index("--cores") + 1] == "3"
    assert "mem_mb=4000" in command
    assert "--dry-run" in command
    assert "--forceall" in command
    assert "--keep-going" not in command
    assert "--notemp" not in command


@pytest.mark.parametrize("part", [["--until", "candidates"], ["--omit-from=report"]])
def test_a_part_of_the_workflow_leaves_what_the_rest_reads(tmp_path, part):
    command = run.snakemake_command(
        tmp_path / "m.json", tmp_path, run.Resources(3, 4000),
        dry_run=False, stop_early=False, extra=part,
    )  # fmt: skip
    assert "--notemp" in command


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize("section", SECTIONS)
def test_the_shipped_configuration_repeats_the_defaults_of_the_stages(section):
    defaults = dataclasses.asdict(SECTIONS[section]())
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}
    assert run.load_config()[section] == plain


@pytest.mark.parametrize("section", SECTIONS)
def test_schema_and_readme_know_every_key(section):
    root = run.project_root()
    schema = yaml.safe_load((root / "workflow/schemas/config.schema.yaml").read_text())
    known = set(schema["properties"][section]["properties"])
    assert known == {field.name for field in dataclasses.fields(SECTIONS[section])}
    described = (root / "config/README.md").read_text()
    assert not [key for key in known if f"`{key}`" not in described]


def test_a_configuration_file_is_laid_over_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("phase: {unwrapping: laplacian}\nlesions:\n")
    config = run.load_config(path)
    assert config["phase"]["unwrapping"] == "laplacian"
    assert config["phase"]["highpass"] == "homodyne"
    assert config["lesions"] == run.load_config()["lesions"]


@pytest.mark.parametrize(
    "text",
    ["fase: {}", "phase: {unwrapping: magic}", "- a", "a: [", "swi: {power: 0}", "bids_dir: x"],
)
def test_a_configuration_that_makes_no_sense_is_bad_data(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(BadData, match=r"config\.yaml"):
        run.load_config(path)


def test_a_network_that_does_not_exist_is_missing_input(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("network: {model: nowhere.safetensors}")
    with pytest.raises(InputMissing, match="nowhere"):
        run.load_config(path)


# ------------------------------------------------------- environment and dataset files


def test_an_unwritable_home_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/nonexistent/numba")
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.setattr(run.pwd, "getpwuid", lambda _: {}["no such user"])
    environment = run.safe_environment(tmp_path)
    assert environment["HOME"] == str(tmp_path)
    assert environment["NUMBA_CACHE_DIR"].startswith(str(tmp_path))
    assert environment["XDG_CACHE_HOME"].startswith(str(tmp_path))
    assert environment["USER"]
    assert environment["NO_ET"] == "1"


def test_a_good_home_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run.safe_environment(tmp_path / "scratch")["HOME"] == str(tmp_path)


def test_participants_keep_their_values_as_written(dataset, tmp_path):
    (dataset / "participants.tsv").write_text(
        "participant_id\tsite\tage\nsub-01\t007\tn/a\nsub-02\t008\t70\n"
    )
    (dataset / "participants.json").write_text('{"age": {"Units": "year"}}')
    out = tmp_path / "out"
    for label in ("sub-01", "sub-new"):
        (out / label).mkdir(parents=True)
    run.write_participants(dataset, out)
    text = (out / "participants.tsv").read_text()
    assert text == "participant_id\tsite\tage\nsub-01\t007\tn/a\nsub-new\tn/a\tn/a\n"
    assert json.loads((out / "participants.json").read_text())["age"]["Units"] == "year"


def test_a_table_of_participants_that_is_none_is_left_out(dataset, tmp_path):
    (dataset / "participants.tsv").write_text("id\tage\nsub-01\t1\t2\n")
    (tmp_path / "out" / "sub-01").mkdir(parents=True)
    run.write_participants(dataset, tmp_path / "out")
    assert (tmp_path / "out" / "participants.tsv").read_text() == "participant_id\nsub-01\n"


def test_the_scans_table_holds_complete_scans_only_and_goes_with_the_last(tmp_path):
    state = tmp_path / "logs/scans/sub-01"
    for name in ("b", "a"):
        (state / name).mkdir(parents=True)
        row = {"filename": f"anat/{name}.nii.gz", "extra": 1, "cmb_definite": None}
        (state / name / "scan_row.json").write_text(json.dumps(row))
    run.write_scans_table(tmp_path, "sub-01")
    lines = (tmp_path / "sub-01/sub-01_scans.tsv").read_text().splitlines()
    assert lines == [
        "filename\tcmb_definite\textra",
        "anat/a.nii.gz\tn/a\t1",
        "anat/b.nii.gz\tn/a\t1",
    ]
    for name in ("a", "b"):
        (state / name / "scan_row.json").unlink()
    run.write_scans_table(tmp_path, "sub-01")
    assert not (tmp_path / "sub-01/sub-01_scans.tsv").exists()
    assert not (tmp_path / "scans.json").exists()


# -------------------------------------------------------------------- jobs of a stage


def test_a_job_leaves_its_record_and_its_output_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def work():
        os.write(1, b"from compiled code\n")
        return {"interface": "x"}

    base.run_job(work, log=tmp_path / "a" / "x.log", record=tmp_path / "r.json", stage="phase")
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["stage"] == "phase"
    assert record["peak_memory_mb"] > 1
    assert record["wall_time_s"] > 0
    assert (tmp_path / "a" / "x.log").read_text() == "from compiled code\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BadData("a.nii", "is broken", "Mend it"), 65, "a.nii: is broken. Mend it."),
        (MemoryError(), 75, "memory"),
        (OSError(28, "No space left on device", "x"), 74, "No space left"),
        (ValueError("odd"), 70, "ValueError: odd"),
    ],
)
def test_a_failed_job_s_last_line_says_why(tmp_path, error, code, words):
    def work():
        raise RuntimeError("outer") from error

    def plain():
        raise error

    failing = work if isinstance(error, BadData) else plain
    with pytest.raises(SystemExit) as end:
        base.run_job(failing, log=tmp_path / "x.log", record=tmp_path / "r.json", stage="phase")
    assert end.value.code == code
    last = (tmp_path / "x.log").read_text().splitlines()[-1]
    assert last.startswith(base.FAILED)
    assert words in last
    assert not (tmp_path / "r.json").exists()


def test_usage_errors_are_raised_by_the_parser():
    with pytest.raises(UsageError):
        cli.parse_arguments(["a"])
