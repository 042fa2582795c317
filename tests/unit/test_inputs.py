"""Which scans a dataset holds, what each consists of, and what is said of the others."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cmb_bids.errors import BadData, InputMissing, InvalidDataset, NothingMatched
from cmb_bids.inputs import (
    STAGE_SECTIONS,
    Selection,
    find_masks,
    index_dataset,
    inherit_sidecar,
    match_mask,
    read_filters,
    read_manifest,
    scan_state,
    write_manifest,
)


@pytest.fixture
def dataset(tmp_path):
    """Makes a dataset of empty images: only names and sidecars matter here."""
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')

    def add(*names: str, **sidecar) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if sidecar:
                stem = name.removesuffix(".gz").removesuffix(".nii")
                (tmp_path / f"{stem}.json").write_text(json.dumps(sidecar))
        return tmp_path

    return add


def complex_scan(start: str, suffix: str = "T2starw") -> list[str]:
    return [f"{start}_part-{part}_{suffix}.nii.gz" for part in ("mag", "phase")]


def only(index):
    assert len(index.scans) == 1, [scan["id"] for scan in index.scans]
    return index.scans[0]


# ---------------------------------------------------------------------- kinds of input


def test_magnitude_and_phase_make_a_complex_scan(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"), EchoTime=0.02, MagneticFieldStrength=3)
    scan = only(index_dataset(root))
    assert (scan["id"], scan["kind"], scan["prefix"]) == ("sub-01_T2starw", "complex", "sub-01")
    assert scan["echoes"][0]["echo_time_s"] == 0.02
    assert scan["field_strength_t"] == 3
    assert scan["echoes"][0]["phase"].endswith("sub-01_part-phase_T2starw.nii.gz")
    assert scan["problem"] is None


def test_echoes_are_one_scan_in_the_order_of_their_numbers(dataset):
    for echo in (10, 2, 1):
        root = dataset(
            *complex_scan(f"sub-01/anat/sub-01_echo-{echo}", "MEGRE"), EchoTime=echo / 1e3
        )
    scan = only(index_dataset(root))
    assert [echo["echo"] for echo in scan["echoes"]] == [1, 2, 10]
    assert [echo["echo_time_s"] for echo in scan["echoes"]] == [0.001, 0.002, 0.01]
    assert scan["output_suffix"] == "MEGRE"


def test_real_and_imaginary_make_a_complex_scan(dataset):
    root = dataset(*(f"sub-01/anat/sub-01_part-{part}_T2starw.nii.gz" for part in ("real", "imag")))
    echo = only(index_dataset(root))["echoes"][0]
    assert echo["real"]
    assert echo["imaginary"]
    assert echo["magnitude"] is None


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("sub-01/anat/sub-01_T2starw.nii.gz", "sub-01"),
        ("sub-01/anat/sub-01_part-mag_T2starw.nii", "sub-01"),
        ("sub-01/anat/sub-01_acq-swi_T2starw.nii.gz", "sub-01_acq-swi"),
        ("sub-01/swi/sub-01_swi.nii.gz", "sub-01_acq-swi"),
        ("sub-01/ses-A/swi/sub-01_ses-A_acq-b_swi.nii.gz", "sub-01_ses-A_acq-bswi"),
    ],
)
def test_magnitude_alone_is_a_magnitude_scan_with_a_warning_that_names_it(dataset, name, prefix):
    index = index_dataset(dataset(name))
    scan = only(index)
    assert (scan["kind"], scan["prefix"], scan["output_suffix"]) == ("magnitude", prefix, "T2starw")
    assert any(name in warning and "no phase" in warning for warning in index.warnings)


def test_the_old_swi_folder_gives_one_scan_without_the_scanner_s_own_products(dataset):
    root = dataset(*complex_scan("sub-01/swi/sub-01", "GRE"), "sub-01/swi/sub-01_swi.nii.gz")
    dataset("sub-01/swi/sub-01_minIP.nii.gz", "sub-01/anat/sub-01_acq-minIP_T2starw.nii.gz")
    scan = only(index_dataset(root))
    assert (scan["id"], scan["prefix"]) == ("sub-01_GRE", "sub-01_acq-GRE")


def test_the_magnitude_may_lack_its_part(dataset):
    root = dataset(
        "sub-01/anat/sub-01_T2starw.nii.gz", "sub-01/anat/sub-01_part-phase_T2starw.nii.gz"
    )
    assert only(index_dataset(root))["kind"] == "complex"


def test_sessions_runs_acquisitions_and_reconstructions_are_scans_of_their_own(dataset):
    starts = [
        "sub-01/ses-A/anat/sub-01_ses-A",
        "sub-01/ses-A/anat/sub-01_ses-A_run-2",
        "sub-01/ses-B/anat/sub-01_ses-B_acq-x",
        "sub-01/ses-B/anat/sub-01_ses-B_acq-x_rec-y",
    ]
    for start in starts:
        root = dataset(*complex_scan(start))
    prefixes = [scan["prefix"] for scan in index_dataset(root).scans]
    assert sorted(prefixes) == sorted(start.rpartition("/")[2] for start in starts)


def test_scans_of_two_suffixes_never_share_a_name(dataset):
    dataset(*complex_scan("sub-01/anat/sub-01"), "sub-01/anat/sub-01_acq-swi_T2starw.nii.gz")
    root = dataset(*complex_scan("sub-01/anat/sub-01_echo-1", "MEGRE"))
    dataset("sub-01/swi/sub-01_acq-z_swi.nii.gz", "sub-01/swi/sub-01_run-1_swi.nii.gz")
    scans = index_dataset(root).scans
    prefixes = [scan["prefix"] for scan in scans]
    assert len(prefixes) == len(set(prefixes)) == 5
    assert "sub-01_acq-MEGRE" in prefixes


# ------------------------------------------------------------------- what cannot be used


def test_phase_without_magnitude_is_a_scan_with_a_problem(dataset):
    root = dataset("sub-01/anat/sub-01_part-phase_T2starw.nii.gz")
    scan = only(index_dataset(root))
    assert "no magnitude" in scan["problem"]
    assert scan["raw"] == []


def test_a_link_to_nothing_is_a_problem_of_that_scan_only(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"), *complex_scan("sub-02/anat/sub-02"))
    path = root / "sub-02/anat/sub-02_part-phase_T2starw.nii.gz"
    path.unlink()
    path.symlink_to("../../.git/annex/objects/absent")
    first, second = index_dataset(root).scans
    assert first["problem"] is None
    assert path.name in second["problem"]


def test_a_broken_sidecar_is_a_problem_of_that_scan_only(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"), *complex_scan("sub-02/anat/sub-02"))
    (root / "sub-02/anat/sub-02_part-mag_T2starw.json").write_text("{EchoTime: 3")
    first, second = index_dataset(root).scans
    assert first["problem"] is None
    assert "not valid JSON" in second["problem"]


def test_labels_that_are_not_those_of_the_folder_are_a_problem(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-02"))
    assert "labels of the folder" in only(index_dataset(root))["problem"]


def test_an_echo_without_phase_is_left_out_and_named(dataset):
    dataset(*complex_scan("sub-01/anat/sub-01_echo-1", "MEGRE"))
    root = dataset("sub-01/anat/sub-01_echo-2_part-mag_MEGRE.nii.gz")
    index = index_dataset(root)
    assert len(only(index)["echoes"]) == 1
    assert any("echo-2" in warning for warning in index.warnings)


# ------------------------------------------------------------------------- the dataset


def test_an_absent_directory_is_missing_input(tmp_path):
    with pytest.raises(InputMissing, match="no such directory"):
        index_dataset(tmp_path / "absent")


def test_a_directory_without_description_is_not_bids(tmp_path):
    with pytest.raises(InvalidDataset, match="dataset_description"):
        index_dataset(tmp_path)


def test_validation_can_be_skipped(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"))
    (root / "dataset_description.json").unlink()
    with pytest.raises(InvalidDataset, match="skip-bids-validation"):
        index_dataset(root)
    assert len(index_dataset(root, skip_validation=True).scans) == 1


def test_a_dataset_without_participants_is_invalid(dataset):
    with pytest.raises(InvalidDataset, match=r"no sub-\*"):
        index_dataset(dataset())


def test_our_own_results_are_no_input(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"))
    made = {"Name": "x", "BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": "cmb-bids"}]}
    (root / "dataset_description.json").write_text(json.dumps(made))
    with pytest.raises(InvalidDataset, match="results of cmb-bids"):
        index_dataset(root)


def test_participants_without_any_scan_are_missing_input_that_says_what_is_looked_for(dataset):
    with pytest.raises(InputMissing, match=r"part-mag.*part-phase.*T2starw.*swi"):
        index_dataset(dataset("sub-01/anat/sub-01_T1w.nii.gz"))


def test_outputs_inside_the_dataset_are_not_read_as_inputs(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"))
    dataset(*complex_scan("derivatives/cmb-bids/sub-01/anat/sub-01_desc-x"))
    assert len(index_dataset(root).scans) == 1


# ------------------------------------------------------------------------- the selection


@pytest.fixture
def four(dataset):
    for subject in ("01", "02"):
        for session in ("A", "B"):
            folder = f"sub-{subject}/ses-{session}/anat"
            root = dataset(*complex_scan(f"{folder}/sub-{subject}_ses-{session}_run-1"))
    return root


def ids(root, **selection):
    return [scan["id"] for scan in index_dataset(root, Selection(**selection)).scans]


def test_labels_select_with_and_without_their_keys(four):
    assert ids(four, participants=("sub-02",)) == [
        "sub-02_ses-A_run-1_T2starw",
        "sub-02_ses-B_run-1_T2starw",
    ]
    assert ids(four, participants=("01",), sessions=("ses-B",)) == ["sub-01_ses-B_run-1_T2starw"]


@pytest.mark.parametrize("selection", [{"participants": ("01", "99")}, {"sessions": ("99",)}])
def test_an_absent_label_is_named(four, selection):
    with pytest.raises(NothingMatched, match="-99"):
        ids(four, **selection)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({"session": "A"}, 2),
        ({"session": ["A", "B"]}, 4),
        ({"run": 1}, 4),
        ({"run": "01"}, 4),
        ({"acquisition": None}, 4),
        ({"session": "*"}, 4),
        ({"datatype": "anat"}, 4),
    ],
)
def test_filters_select_by_entities(four, wanted, count):
    assert len(ids(four, filters={"scan": wanted})) == count
    assert len(ids(four, filters={"T2starw": wanted})) == count


def test_filters_that_leave_nothing_are_reported(four):
    with pytest.raises(NothingMatched, match="no scan is left"):
        ids(four, filters={"scan": {"acquisition": "*"}})


def test_a_filter_file_takes_short_and_long_entity_names(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text('{"t2starw": {"acq": "x", "session": ["A"]}, "scan": {"run": 1}}')
    assert read_filters(path) == {
        "T2starw": {"acquisition": "x", "session": ["A"]},
        "scan": {"run": 1},
    }


@pytest.mark.parametrize(
    "text", ['{"bold": {}}', '{"scan": {"colour": 1}}', "[]", "{", '{"scan":1}']
)
def test_a_filter_file_that_makes_no_sense_is_bad_data(tmp_path, text):
    path = tmp_path / "filter.json"
    path.write_text(text)
    with pytest.raises(BadData, match="filter"):
        read_filters(path)


# ------------------------------------------------------------------------------ sidecars


def test_the_nearest_and_most_specific_sidecar_wins():
    def sidecar(**content):
        return {"part": "mag"}, "T2starw", content

    sidecars = {
        "T2starw.json": ({}, "T2starw", {"a": 1, "b": 1, "c": 1}),
        "part-mag_T2starw.json": sidecar(b=2, c=2),
        "sub-01/anat/sub-01_T2starw.json": ({"subject": "01"}, "T2starw", {"c": 3}),
        "sub-02/anat/sub-02_T2starw.json": ({"subject": "02"}, "T2starw", {"c": 4}),
        "part-phase_T2starw.json": ({"part": "phase"}, "T2starw", {"a": 5}),
        "MEGRE.json": ({}, "MEGRE", {"a": 6}),
    }
    found = inherit_sidecar("sub-01_part-mag_T2starw.nii.gz", "sub-01/anat", sidecars)
    assert found == {"a": 1, "b": 2, "c": 3}


def test_a_sidecar_at_the_top_is_inherited(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"))
    (root / "T2starw.json").write_text('{"EchoTime": 0.03, "PatientName": "x"}')
    (root / "part-phase_T2starw.json").write_text('{"Units": "rad"}')
    echo = only(index_dataset(root))["echoes"][0]
    assert echo["magnitude_sidecar"] == {"EchoTime": 0.03}
    assert echo["phase_sidecar"] == {"EchoTime": 0.03, "Units": "rad"}


# --------------------------------------------------------------------------------- masks


def test_the_mask_of_the_same_run_is_preferred_and_another_s_is_not_taken(dataset, tmp_path):
    root = dataset(
        *complex_scan("sub-01/ses-A/anat/sub-01_ses-A_run-1"),
        *complex_scan("sub-01/ses-A/anat/sub-01_ses-A_run-2"),
        *complex_scan("sub-01/ses-B/anat/sub-01_ses-B_run-1"),
    )
    masks = "derivatives/m/sub-01/ses-A/anat/sub-01_ses-A"
    dataset(
        f"{masks}_desc-brain_mask.nii.gz",
        f"{masks}_run-2_desc-brain_mask.nii.gz",
        f"{masks}_run-1_space-MNI_desc-brain_mask.nii.gz",
        f"{masks}_run-1_desc-lesion_mask.nii.gz",
    )
    index = index_dataset(root, derivatives=[root / "derivatives/m"])
    found = {scan["prefix"]: scan["mask"] and Path(scan["mask"]).name for scan in index.scans}
    assert found == {
        "sub-01_ses-A_run-1": "sub-01_ses-A_desc-brain_mask.nii.gz",
        "sub-01_ses-A_run-2": "sub-01_ses-A_run-2_desc-brain_mask.nii.gz",
        "sub-01_ses-B_run-1": None,
    }
    assert any("sub-01_ses-B" in w and "no brain mask" in w for w in index.warnings)


def test_our_own_mask_fits_the_scan_it_was_made_for(dataset):
    root = dataset(*complex_scan("sub-01/swi/sub-01", "GRE"))
    dataset("derivatives/m/sub-01/anat/sub-01_acq-GRE_desc-brain_mask.nii.gz")
    scan = only(index_dataset(root))
    assert match_mask(scan, find_masks([root / "derivatives/m"], "01"))


def test_a_parcellation_is_found_and_reaches_the_brain_stage_alone(dataset, tmp_path):
    root = dataset(*complex_scan("sub-01/anat/sub-01"))
    dataset("derivatives/p/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz")
    index = index_dataset(root, derivatives=[root / "derivatives/p"])
    given = only(index)["parcellation"]
    assert Path(given["image"]).name == "sub-01_desc-aseg_dseg.nii.gz"
    assert (given["table"], given["numbering"]) == (None, "freesurfer")
    assert not any("derivatives" in warning for warning in index.warnings)
    places = {"bids_dir": root, "output_dir": tmp_path / "out", "work_dir": tmp_path / "work"}
    manifest = write_manifest(index, tmp_path / "run/manifest.json", **places, config={})
    assert manifest["scans"][0]["parcellation"] == given
    state = scan_state(tmp_path / "out", manifest["scans"][0])
    told = {
        stage: json.loads((state / f"complex_{stage}.json").read_text())["parcellation"]
        for stage in ("brain", "lesions")
    }
    assert told == {"brain": given, "lesions": None}


def test_a_parcellation_in_another_space_is_refused_by_name(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"))
    name = "sub-01_space-MNI152NLin6Asym_desc-aseg_dseg.nii.gz"
    dataset(f"derivatives/p/sub-01/anat/{name}")
    index = index_dataset(root, derivatives=[root / "derivatives/p"])
    assert only(index)["parcellation"]["image"] is None
    assert name in only(index)["parcellation"]["refused"]
    warning = next(w for w in index.warnings if name in w)
    assert "built-in atlas is used" in warning


# ------------------------------------------------------------------- memory and manifest


def test_the_index_is_remembered_and_follows_changes(dataset, tmp_path):
    root = dataset(*complex_scan("sub-01/anat/sub-01"), EchoTime=0.02)
    memory = tmp_path / "memory"
    first = index_dataset(root, database_dir=memory).scans
    written = (memory / "index.json").stat().st_mtime_ns
    assert index_dataset(root, database_dir=memory).scans == first
    assert (memory / "index.json").stat().st_mtime_ns == written
    time.sleep(0.02)
    sidecar = root / "sub-01/anat/sub-01_part-mag_T2starw.json"
    sidecar.write_text('{"EchoTime": 0.03}')
    dataset(*complex_scan("sub-01/anat/sub-01_run-2"))
    changed = index_dataset(root, database_dir=memory).scans
    assert [scan["echoes"][0]["echo_time_s"] for scan in changed] == [0.03, 0.03]  # inherited


def manifest_of(root: Path, output: Path, **config):
    index = index_dataset(root)
    return write_manifest(
        index, output / "logs" / "run" / "manifest.json", bids_dir=root, output_dir=output,
        work_dir=output / "work", config=config,
    )  # fmt: skip


def modified(output: Path) -> dict[str, int]:
    files = (output / "logs" / "scans").rglob("*.json")
    return {path.stem.partition("_")[2]: path.stat().st_mtime_ns for path in files}


def test_scan_files_are_touched_only_by_what_concerns_their_stage(dataset, tmp_path):
    root = dataset(*complex_scan("sub-01/anat/sub-01"), EchoTime=0.02)
    output = tmp_path / "out"
    manifest = manifest_of(root, output, phase={"scale": "auto"}, lesions={})
    before = modified(output)
    assert set(before) == set(STAGE_SECTIONS)
    assert read_manifest(output / "logs/run/manifest.json") == manifest
    time.sleep(0.02)
    manifest_of(root, output, phase={"scale": "auto"}, lesions={})
    assert modified(output) == before
    manifest_of(root, output, phase={"scale": "auto"}, lesions={"minimum_diameter_mm": 3})
    after = modified(output)
    assert [stage for stage in before if after[stage] != before[stage]] == ["lesions"]


def test_a_network_trained_anew_is_told_from_the_one_before(dataset, tmp_path):
    root = dataset(*complex_scan("sub-01/anat/sub-01"), EchoTime=0.02)
    output, network = tmp_path / "out", tmp_path / "mine.safetensors"
    network.write_bytes(b"one")
    manifest_of(root, output, network={"model": str(network)})
    before = modified(output)
    time.sleep(0.02)
    network.write_bytes(b"another")
    manifest_of(root, output, network={"model": str(network)})
    after = modified(output)
    assert {stage for stage in before if after[stage] != before[stage]} == {"classify", "lesions"}


def test_a_scan_whose_phase_is_gone_leaves_no_complex_file(dataset, tmp_path):
    root = dataset(*complex_scan("sub-01/anat/sub-01"))
    output = tmp_path / "out"
    manifest_of(root, output)
    (root / "sub-01/anat/sub-01_part-phase_T2starw.nii.gz").unlink()
    manifest_of(root, output)
    names = {path.name.partition("_")[0] for path in (output / "logs/scans").rglob("*.json")}
    assert names == {"magnitude"}


def test_four_hundred_participants_are_indexed_in_a_few_seconds(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for number in range(400):
        folder = tmp_path / f"sub-{number:04}" / "anat"
        folder.mkdir(parents=True)
        for echo in (1, 2):
            for part in ("mag", "phase"):
                stem = folder / f"sub-{number:04}_echo-{echo}_part-{part}_MEGRE"
                Path(f"{stem}.nii.gz").touch()
                Path(f"{stem}.json").write_text(json.dumps({"EchoTime": 0.01 * echo}))
    started = time.process_time()
    assert len(index_dataset(tmp_path).scans) == 400
    assert time.process_time() - started < 3  # 4000 in 30 s


@pytest.mark.skipif(os.getuid() == 0, reason="root can read everything")
def test_an_unreadable_image_is_a_problem(dataset):
    root = dataset(*complex_scan("sub-01/anat/sub-01"))
    (root / "sub-01/anat/sub-01_part-mag_T2starw.nii.gz").chmod(0)
    assert "unreadable" in only(index_dataset(root))["problem"]
