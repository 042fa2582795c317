"""The workflow with stub stages: failures, re-runs, selections and runs side by side.

The stages' stand-ins (stubs/) keep the file contracts and do next to nothing, so that what is
tested is the running itself. test_end_to_end.py has the real ones.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmb_bids.volumes import read_json, read_table

CHECKOUT = Path(__file__).resolve().parents[2]
STUBS = Path(__file__).with_name("stubs")
SHAPE = (6, 5, 4)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(STUBS), "OMP_NUM_THREADS": "1", **more}


def start(*arguments, module: str = "cmb_bids.cli", **more) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(**more), cwd=CHECKOUT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        # A shell starts what it puts in the background with interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was said."""
    said = process.communicate(timeout=300)[0]
    return process.returncode, said


def cmb_bids(*arguments, **more) -> tuple[int, str]:
    code, said = end(start(*arguments, **more))
    assert "Traceback" not in said
    return code, said


def image(path: Path, shape=SHAPE, affine=None, **sidecar) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).random(shape).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([1, 1, 2, 1]) if affine is None else affine), path)
    stem = path.name.removesuffix(".nii.gz")
    path.with_name(f"{stem}.json").write_text(json.dumps(sidecar))


def complex_scan(root: Path, start: str, suffix: str = "T2starw", **sidecar) -> None:
    for part in ("mag", "phase"):
        image(root / f"{start}_part-{part}_{suffix}.nii.gz", **{"EchoTime": 0.02, **sidecar})


def make_dataset(root: Path, *labels: str) -> Path:
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for label in labels:
        complex_scan(root, f"sub-{label}/anat/sub-{label}")
    rows = "".join(f"sub-{label}\t70\n" for label in labels)
    (root / "participants.tsv").write_text(f"participant_id\tage\n{rows}")
    return root


def files(output: Path) -> dict[Path, int]:
    """When each result was modified; the messages of a run (logs/<run>) do not count."""
    found = {path.relative_to(output): path for path in output.rglob("*") if path.is_file()}
    return {
        name: path.stat().st_mtime_ns
        for name, path in found.items()
        if name.parts[0] != "logs" or name.parts[1] == "scans"
    }


def assert_valid_bids(folder: Path) -> None:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("no BIDS validator: install cmb-bids[test]")
    done = subprocess.run(
        [validator, folder, "--ignoreWarnings"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------- every kind of input


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """T2starw, MEGRE in two sessions, the old swi folder, and magnitude alone."""
    root = make_dataset(tmp_path_factory.mktemp("mixed") / "bids", "01")
    for session in "AB":
        for echo in (1, 2):
            folder = f"sub-02/ses-{session}/anat"
            name = f"sub-02_ses-{session}_echo-{echo}"
            complex_scan(root, f"{folder}/{name}", "MEGRE", EchoTime=echo / 100)
    complex_scan(root, "sub-03/swi/sub-03", "GRE")
    image(root / "sub-04/anat/sub-04_acq-swi_T2starw.nii.gz")
    return root


@pytest.fixture(scope="module")
def processed(mixed) -> Path:
    output = mixed / "derivatives" / "cmb-bids"
    code, said = cmb_bids(mixed, output, "participant")
    assert code == 0, said
    assert "sub-04_acq-swi_T2starw.nii.gz: no phase image" in said
    return output


def test_every_kind_of_input_gives_a_valid_dataset(mixed, processed):
    assert_valid_bids(processed)
    names = {path.name for path in processed.rglob("*.nii.gz")}
    assert {
        "sub-01_part-phase_desc-highpass_T2starw.nii.gz",
        "sub-02_ses-A_desc-swi_MEGRE.nii.gz",
        "sub-03_acq-GRE_desc-swi_T2starw.nii.gz",
        "sub-04_acq-swi_desc-minip_T2starw.nii.gz",
        "sub-04_acq-swi_desc-cmb_dseg.nii.gz",
    } <= names
    assert not [name for name in names if "sub-04" in name and "desc-swi" in name]
    participants = read_table(processed / "participants.tsv")
    assert list(participants["participant_id"]) == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert len(read_table(processed / "sub-02/ses-B/sub-02_ses-B_scans.tsv")) == 1
    assert (processed / "sub-02/ses-B/figures/sub-02_ses-B_desc-overview.png").is_file()
    page = (processed / "sub-02.html").read_text()
    assert "2 scans" in page
    assert "sub-02/ses-A/figures/sub-02_ses-A_desc-overview.png" in page


def test_every_stage_leaves_its_cost_and_no_large_intermediate_stays(processed):
    for stage in ("phase", "brain", "candidates", "classify", "lesions", "report"):
        record = read_json(processed / f"logs/scans/sub-01/sub-01/provenance_{stage}.json")
        assert record["wall_time_s"] > 0
        assert record["peak_memory_mb"] > 0
    assert not list(processed.glob("work/**/*.nii.gz"))


def test_a_second_run_does_nothing_even_without_its_work_directory(mixed, processed):
    before = files(processed)
    shutil.rmtree(processed / "work", ignore_errors=True)
    code, said = cmb_bids(mixed, processed, "participant")
    assert code == 0, said
    assert files(processed) == before


def test_the_rest_goes_on_where_a_part_ended_and_leaves_nothing_large(tmp_path):
    bids, output = make_dataset(tmp_path / "bids", "01"), tmp_path / "out"
    said = cmb_bids(bids, output, "participant", "--", "--until", "candidates")[1]
    assert "was not run to its end" in said
    before = files(output)
    assert list(output.glob("work/**/*_magnitude.nii.gz"))
    code, said = cmb_bids(bids, output, "participant")
    assert code == 0, said
    after = files(output)
    kept = [name for name in before if name.parts[0].startswith("sub-")]
    assert kept
    assert [name for name in kept if after[name] != before[name]] == []
    assert not list(output.glob("work/**/*.nii.gz"))


def test_only_what_a_changed_setting_concerns_runs_again(mixed, processed, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(processed, output, copy_function=shutil.copy2)
    shutil.rmtree(output / "sub-02")
    config = tmp_path / "config.yaml"
    config.write_text("lesions: {maximum_diameter_mm: 8.0}\n")
    arguments = (mixed, output, "participant", "--participant-label", "01")
    code, said = cmb_bids(*arguments, "--config-file", config, "--dry-run")
    assert code == 0, said
    assert "lesions" in said
    assert not (output / "work").exists() or not list((output / "work").rglob("*.nii.gz"))
    before = files(output)
    code, said = cmb_bids(*arguments, "--config-file", config)
    assert code == 0, said
    after = files(output)
    changed = {str(path) for path in after if after[path] != before.get(path)}
    assert "sub-01/anat/sub-01_desc-cmb_dseg.tsv" in changed
    assert not [path for path in changed if "sub-03" in path]


def test_snakemake_alone_gives_the_same_tables_and_the_group_s(mixed, processed, tmp_path):
    output = tmp_path / "out"
    command = (
        *("--cores", 2, "--directory", tmp_path, "--snakefile", CHECKOUT / "Snakefile"),
        *("--config", f"bids_dir={mixed}", f"output_dir={output}"),
        "participant_label=['01','sub-04']",
    )
    code, said = end(start(*command, module="snakemake"))
    assert code == 0, said
    tables = sorted(path.relative_to(output) for path in output.glob("sub-*/**/*.tsv"))
    assert len(tables) == 2 * 4
    for table in tables:
        assert (output / table).read_text() == (processed / table).read_text()
    assert (output / "participants.tsv").read_text().count("sub-") == 2
    assert (output / "group_microbleeds.csv").exists()
    before = files(output)
    code, said = end(start(*command, module="snakemake"))
    assert code == 0, said
    assert "Nothing to be done" in said
    assert files(output) == before


def test_the_group_level_writes_its_tables(mixed, processed):
    code, said = cmb_bids(mixed, processed, "group")
    assert code == 0, said
    assert (processed / "phenotype/microbleeds.tsv").exists()
    assert (processed / "group_microbleeds.csv").exists()


# --------------------------------------------------------------------------- bad input


def test_bad_scans_are_named_with_their_logs_and_the_others_are_complete(tmp_path):
    root = make_dataset(tmp_path / "bids", "good", "shape", "cut", "link", "fault", "lone")
    image(root / "sub-shape/anat/sub-shape_part-phase_T2starw.nii.gz", shape=(6, 5, 3))
    cut = root / "sub-cut/anat/sub-cut_part-mag_T2starw.nii.gz"
    cut.write_bytes(cut.read_bytes()[:100])
    link = root / "sub-link/anat/sub-link_part-mag_T2starw.nii.gz"
    link.unlink()
    link.symlink_to("absent")
    (root / "sub-lone/anat/sub-lone_part-mag_T2starw.nii.gz").unlink()
    complex_scan(root, "sub-shape/anat/sub-shape_run-2")
    output = tmp_path / "out"
    code, said = cmb_bids(root, output, "participant", STUB_FAIL="sub-fault_T2starw:FindCandidates")
    assert code == 1
    assert "Failed participants (5): sub-cut, sub-fault, sub-link, sub-lone, sub-shape" in said
    for words in (
        "sub-shape_part-phase_T2starw.nii.gz: is not on the magnitude's grid",
        "sub-cut_part-mag_T2starw.nii.gz: is not a whole NIfTI image",
        "not fetched?",
        "a fault nobody foresaw",
        "has no magnitude image beside it",
    ):
        assert words in said
    logs = [line.partition("log: ")[2] for line in said.splitlines() if "log: " in line]
    assert len(logs) == 5
    assert all(Path(log).is_file() for log in logs)
    fault = next(log for log in logs if "sub-fault" in log)
    assert "Traceback" in Path(fault).read_text()
    assert len(read_table(output / "sub-good/sub-good_scans.tsv")) == 1
    assert not (output / "sub-cut/sub-cut_scans.tsv").exists()
    rows = read_table(output / "sub-shape/sub-shape_scans.tsv")
    assert list(rows["filename"]) == ["anat/sub-shape_run-2_desc-cmb_dseg.nii.gz"]
    assert_valid_bids(output)
    # Mended, only the mended scan runs, and the table is whole.
    image(root / "sub-shape/anat/sub-shape_part-phase_T2starw.nii.gz")
    before = files(output)
    code, said = cmb_bids(root, output, "participant", "--participant-label", "shape", "good")
    assert code == 0, said
    assert len(read_table(output / "sub-shape/sub-shape_scans.tsv")) == 2
    after = files(output)
    assert not [p for p in before if "sub-good" in str(p) and before[p] != after[p]]


def test_a_scan_that_worked_and_then_fails_leaves_no_row(tmp_path):
    root = make_dataset(tmp_path / "bids", "01", "02")
    output = tmp_path / "out"
    assert cmb_bids(root, output, "participant")[0] == 0
    phase = root / "sub-01/anat/sub-01_part-phase_T2starw.nii.gz"
    phase.write_bytes(phase.read_bytes()[:100])
    code, _ = cmb_bids(root, output, "participant")
    assert code == 1
    assert not (output / "sub-01/sub-01_scans.tsv").exists()
    assert (output / "sub-02/sub-02_scans.tsv").exists()


def test_stop_on_first_crash_starts_nothing_new(tmp_path):
    root = make_dataset(tmp_path / "bids", *(f"{number:02}" for number in range(6)))
    for path in root.glob("sub-*/anat/*_part-phase_T2starw.nii.gz"):
        path.write_bytes(path.read_bytes()[:100])
    output = tmp_path / "out"
    code, _ = cmb_bids(root, output, "participant", "--stop-on-first-crash", "--n-cpus", "1")
    assert code == 1
    assert len(list((output / "logs").glob("2*/sub-*/*_phase.log"))) < 6


# --------------------------------------------------------------------------- options


def test_a_given_mask_is_handed_to_the_brain_stage(tmp_path):
    root = make_dataset(tmp_path / "bids", "01")
    mask = root / "derivatives/m/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    image(mask)
    output, work = tmp_path / "out", tmp_path / "work"
    code, said = cmb_bids(
        root, output, "participant", "-d", root / "derivatives/m", "-w", work, "--mem-mb", 1000
    )
    assert code == 0, said
    assert read_json(output / "logs/scans/sub-01/sub-01/brain.json")["given"] == str(mask)
    assert not (output / "work").exists()
    assert json.loads(next((output / "logs").glob("2*/provenance.json")).read_text())["arguments"]
    config = next((output / "logs").glob("2*/config.yaml")).read_text()
    assert "unwrapping: romeo" in config


def test_reports_only_makes_tables_and_pages_anew_and_nothing_else(tmp_path):
    root = make_dataset(tmp_path / "bids", "01", "02")
    output = tmp_path / "out"
    broken = "sub-02_T2starw:Lesions"
    assert cmb_bids(root, output, "participant", STUB_FAIL=broken)[0] == 1
    table, page = output / "sub-01/sub-01_scans.tsv", output / "sub-01.html"
    before = {path: path.read_text() for path in (table, page)}
    assert not (output / "sub-02.html").exists()
    picture = output / "sub-01/figures/sub-01_desc-overview.png"
    for path in (table, page, picture):
        path.unlink()
    images = {name: at for name, at in files(output).items() if name.suffix == ".gz"}
    config = tmp_path / "config.yaml"
    config.write_text("lesions: {maximum_diameter_mm: 8.0}\n")
    code, said = cmb_bids(root, output, "participant", "--reports-only", "--config-file", config)
    assert code == 0, said
    assert "sub-01_T2starw: the settings have changed" in said
    assert "sub-02_T2starw is not complete" in said
    assert "1 of 1 scans complete" in said
    assert {path: path.read_text() for path in (table, page)} == before
    assert picture.is_file()
    assert {name: at for name, at in files(output).items() if name.suffix == ".gz"} == images


def test_a_scan_without_pictures_keeps_its_counts_and_is_named(tmp_path):
    root = make_dataset(tmp_path / "bids", "01")
    output = tmp_path / "out"
    code, said = cmb_bids(root, output, "participant", STUB_FAIL="sub-01_T2starw:ScanFigures")
    assert code == 1
    assert "counted, but without pictures on its page" in said
    assert "a fault nobody foresaw" in said
    assert len(read_table(output / "sub-01/sub-01_scans.tsv")) == 1
    assert "The picture was not made" in (output / "sub-01.html").read_text()
    code, said = cmb_bids(root, output, "participant")
    assert code == 0, said
    assert "The picture was not made" not in (output / "sub-01.html").read_text()


def test_a_dry_run_writes_no_result(tmp_path):
    root = make_dataset(tmp_path / "bids", "01")
    output = tmp_path / "out"
    code, said = cmb_bids(root, output, "participant", "--dry-run")
    assert code == 0, said
    assert "phase" in said
    assert not list(output.rglob("*.tsv"))
    assert not list((output / "logs").glob("2*"))


# ----------------------------------------------------------- side by side, and interrupted


def test_runs_on_different_participants_into_one_output_lose_nobody(tmp_path):
    labels = ["01", "02", "03"]
    root = make_dataset(tmp_path / "bids", *labels)
    output = tmp_path / "out"
    runs = [
        start(root, output, "participant", "--participant-label", label, "--n-cpus", "1")
        for label in labels
    ]
    for process in runs:
        code, said = end(process)
        assert code == 0, said
    assert list(read_table(output / "participants.tsv")["participant_id"]) == [
        f"sub-{label}" for label in labels
    ]
    for label in labels:
        assert (output / f"sub-{label}/sub-{label}_scans.tsv").exists()
    assert_valid_bids(output)


@pytest.mark.parametrize("asked", ["keyboard", "docker stop"])
def test_an_interrupted_run_ends_cleanly_and_the_next_one_goes_on(tmp_path, asked):
    root = make_dataset(tmp_path / "bids", "01", "02", "03")
    output = tmp_path / "out"
    process = start(root, output, "participant", "--n-cpus", "1")
    deadline = time.monotonic() + 120
    while not list(output.glob("logs/scans/*/*/provenance_phase.json")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    if asked == "keyboard":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    code, said = end(process)
    assert code == 130, said
    assert "Traceback" not in said
    assert "interrupted" in said
    code, said = cmb_bids(root, output, "participant")
    assert code == 0, said
    assert len(list(output.glob("sub-*/*_scans.tsv"))) == 3
