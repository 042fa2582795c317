"""Reading results and labels of any tool: tables, images, names, and what cannot be scored."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from cmb_bids.errors import BadData, InputMissing, NothingMatched, UsageError
from cmb_bids.evaluate import evaluate_derivatives, grouping
from cmb_bids.evaluate.cohort import read_cohort
from cmb_bids.evaluate.files import find_point_files, pair_scans, scan_of
from cmb_bids.evaluate.points import kind_of, lesions_from_image, read_points, with_kind
from cmb_bids.lab import main
from cmb_bids.volumes import read_table, write_json, write_table, write_volume

AFFINE = np.array([[-0.8, 0, 0, 40], [0, 0.8, 0, -30], [0, 0, 3.0, -20], [0, 0, 0, 1.0]])


def points(*positions, **columns):
    table = pd.DataFrame(np.array(positions, float).reshape(-1, 3), columns=["x", "y", "z"])
    return table.assign(**columns)


def blobs(*voxels, values=None):
    """Label image with a cube of 8 voxels from each voxel on."""
    image = np.zeros((40, 40, 20), np.int16)
    for number, (i, j, k) in enumerate(voxels):
        image[i : i + 2, j : j + 2, k : k + 2] = 1 if values is None else values[number]
    return image


# ------------------------------------------------------------------ images


def test_numbered_lesions_keep_their_numbers_and_touching_pieces_of_a_mask_are_one():
    affine = np.diag([2.0, 1, 1, 1])
    numbered = np.zeros((10, 10, 10), int)
    numbered[1:3, 1:3, 1:3], numbered[3, 1, 1] = 4, 9
    assert lesions_from_image(numbered, affine)["index"].tolist() == [4, 9]
    table = lesions_from_image(numbered > 0, affine)
    assert len(table) == 1
    assert table["diameter_mm"][0] == pytest.approx(np.cbrt(6 * 18 / np.pi))
    assert lesions_from_image(numbered * 0, affine).empty


def test_centres_are_where_they_were_drawn():
    table = lesions_from_image(blobs((5, 6, 7), (20, 20, 2)), AFFINE)
    expected = [[40 - 0.8 * 5.5, -30 + 0.8 * 6.5, -20 + 3 * 7.5], [40 - 16.4, -30 + 16.4, -12.5]]
    assert np.allclose(np.sort(table[["x", "y", "z"]], axis=0), np.sort(expected, axis=0))


def test_numbers_with_far_pieces_are_classes():
    image = blobs((2, 2, 2), (30, 30, 10), (2, 30, 15), values=[1, 1, 2])
    table = lesions_from_image(image, AFFINE)
    assert len(table) == 3
    assert sorted(table["class"]) == [1, 1, 2]
    near = blobs((2, 2, 2), (6, 2, 2), (30, 30, 10), values=[1, 1, 2])
    assert len(lesions_from_image(near, AFFINE)) == 2  # a lesion in two pieces stays one


def test_probability_map_gives_lesions_and_their_probability():
    image = np.zeros((20, 20, 20))
    image[3:6, 3:6, 3:6] = 0.6
    image[4, 4, 4] = 0.9
    image[12:14, 12:14, 12:14] = 0.4
    table = lesions_from_image(image, np.eye(4))
    assert table[["x", "y", "z"]].to_numpy().tolist() == [[4, 4, 4]]
    assert table["probability"].tolist() == [0.9]


# ------------------------------------------------------------------ tables


def test_voxel_indices_need_and_use_an_image(tmp_path):
    table, image = tmp_path / "a_points.tsv", tmp_path / "a_points.nii.gz"
    write_table(table, pd.DataFrame({"I": [5.0], "J": [6.0], "K": [7.0]}))
    with pytest.raises(InputMissing, match=r"a_points.tsv.*voxel indices.*--images"):
        read_points(table, None)
    write_volume(image, blobs(), AFFINE)
    found = read_points(table, None, image)
    assert np.allclose(found[["x", "y", "z"]], [[36, -25.2, 1]])


def test_lookup_table_names_the_lesions_of_an_image(tmp_path):
    table, image = tmp_path / "a_dseg.tsv", tmp_path / "a_dseg.nii.gz"
    names = {"index": [1, 2], "name": ["microbleed", "calcification"], "certainty": "definite"}
    write_table(table, pd.DataFrame(names))
    with pytest.raises(InputMissing, match=r"neither x, y, z nor i, j, k"):
        read_points(table, None)
    write_volume(image, blobs((2, 2, 2), (30, 30, 10), (2, 30, 15), values=[1, 1, 2]), AFFINE)
    found = with_kind(read_points(table, image), None)
    assert sorted(found["kind"]) == ["calcification", "microbleed", "microbleed"]
    assert found["diameter_mm"].notna().all()
    write_table(table, pd.DataFrame({"name": ["microbleed"]}))
    with pytest.raises(BadData, match="index column"):
        read_points(table, image)


def test_sizes_come_from_the_image_where_the_table_has_none(tmp_path):
    table, image = tmp_path / "a_dseg.tsv", tmp_path / "a_dseg.nii.gz"
    write_table(table, points((0, 0, 0), index=[3]))
    write_volume(image, blobs((2, 2, 2), values=[3]), AFFINE)
    expected = np.cbrt(6 * 8 * 0.8 * 0.8 * 3 / np.pi)
    assert read_points(table, image)["diameter_mm"].tolist() == [pytest.approx(expected)]


def test_row_without_position_is_named(tmp_path):
    table = tmp_path / "a_dseg.tsv"
    write_table(table, points((0, 0, 0), (1, np.nan, 0)))
    with pytest.raises(BadData, match=r"a_dseg.tsv: row 3 has no position"):
        read_points(table, None)


@pytest.mark.parametrize("probability", [1.5, -0.1, "high"])
def test_what_is_no_probability_is_named(tmp_path, probability):
    table = tmp_path / "a_dseg.tsv"
    write_table(table, points((0, 0, 0), probability=[probability]))
    with pytest.raises(BadData, match=r"row 2 has a probability that is not within 0 to 1"):
        read_points(table, None)


def test_header_alone_is_no_lesion(tmp_path):
    table = tmp_path / "a_dseg.tsv"
    write_table(table, pd.DataFrame({"index": [], "name": []}))
    assert read_points(table, None).empty
    assert with_kind(read_points(table, None), None).empty


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("cmb dseg", "microbleed"),
        ("Microbleeds", "microbleed"),
        ("calcification", "calcification"),
        ("cmbcandidates", "candidate"),
        ("brain mask", None),
        ("CMB", "microbleed"),
    ],
)
def test_kinds_by_name(words, kind):
    assert kind_of(words) == kind


def test_rows_are_what_their_names_say():
    rows = points((0, 0, 0), (1, 0, 0), (2, 0, 0), name=["microbleed-1", "calcium", "vein"])
    assert with_kind(rows, None)["kind"].tolist() == ["microbleed", "calcification", "other"]
    assert set(with_kind(rows, "candidate")["kind"]) == {"candidate"}
    assert set(with_kind(rows.assign(name="lesion"), None)["kind"]) == {"microbleed"}
    assert set(with_kind(rows.assign(name="vein"), None)["kind"]) == {"other"}
    assert set(with_kind(rows.drop(columns="name"), "calcification")["kind"]) == {"calcification"}


# ------------------------------------------------------------------ names


def test_a_scan_is_the_entities_that_tell_scans_apart():
    name = "sub-01_ses-A_acq-swi_run-2_echo-1_part-mag_space-T2S_desc-cmb_dseg.nii.gz"
    assert scan_of(name) == "sub-01_ses-A_acq-swi_run-2"


def test_pairing_by_agreeing_names():
    pairs, doubtful = pair_scans(["sub-01_acq-x", "sub-02"], ["sub-01", "sub-02_run-1", "sub-03"])
    assert pairs == {"sub-01_acq-x": "sub-01", "sub-02": "sub-02_run-1"}
    assert doubtful == set()


def test_pairing_does_not_guess_between_sessions_or_runs():
    results = ["sub-01_ses-A", "sub-01_ses-B", "sub-02", "sub-03_acq-a", "sub-03_acq-b"]
    labels = ["sub-01", "sub-02_run-1", "sub-02_run-2", "sub-03"]
    pairs, doubtful = pair_scans(results, labels)
    assert doubtful == {"sub-01_ses-A", "sub-01_ses-B", "sub-02"}
    # One session has one set of scanner coordinates, whatever the acquisition.
    assert pairs == {"sub-03_acq-a": "sub-03", "sub-03_acq-b": "sub-03"}


def test_pairing_prefers_the_same_name():
    names = ["sub-01", "sub-01_run-2"]
    assert pair_scans(names, names)[0] == {name: name for name in names}


def touch(folder, *names):
    for name in names:
        path = folder / name.split("_")[0] / "anat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_that_hold_points_are_told_from_others(tmp_path):
    touch(
        tmp_path, "sub-01_desc-cmb_dseg.tsv", "sub-01_desc-cmb_dseg.nii.gz",
        "sub-01_desc-candidates_dseg.tsv", "sub-01_desc-brain_mask.nii.gz",
        "sub-01_desc-swi_T2starw.nii.gz", "sub-01_desc-cmb_moments.tsv", "sub-01_scans.tsv",
        "sub-02_label-cmb_mask.nii.gz", "sub-03_space-T2S_CMB.nii.gz",
        "sub-04_desc-manual_dseg.nii", "sub-05_desc-aparc_dseg.nii.gz", "sub-05_desc-cmb_dseg.tsv",
    )  # fmt: skip
    found = find_point_files(tmp_path)
    assert set(found["sub-01"]) == {"microbleed", "candidate"}
    assert found["sub-01"]["microbleed"].suffix == "dseg"
    assert found["sub-01"]["microbleed"].image is not None
    assert set(found["sub-02"]) == set(found["sub-03"]) == {"microbleed"}
    assert set(found["sub-04"]) == {None}
    assert set(found["sub-05"]) == {"microbleed"}


def test_two_raters_are_not_added_up(tmp_path):
    touch(tmp_path, "sub-01_desc-first_dseg.tsv", "sub-01_desc-second_dseg.tsv")
    with pytest.raises(UsageError, match=r"desc-first_dseg and .*--labels-description"):
        find_point_files(tmp_path)
    chosen = find_point_files(tmp_path, "second")["sub-01"][None]
    assert chosen.description == "second"


# ------------------------------------------------------------------ groups


def test_groups_of_participants_and_scans():
    scans = pd.DataFrame(
        {"scan": ["sub-1_acq-ukb", "sub-2_acq-ukb"], "participant_id": ["sub-1", "sub-2"]}
    )
    people = pd.DataFrame(
        {"age": [44, 81], "group": ["healthy", "stroke"], "weight": [70.5, 80.1], "site": "one"},
        index=["sub-1", "sub-2"],
    )
    rows = {"sub-1_acq-ukb": {"field_strength_t": 3.0}, "sub-2_acq-ukb": {"field_strength_t": 1.5}}
    described, groups = grouping.describe_scans(scans, people, rows)
    assert groups == ["age", "group", "field_strength_t", "protocol"]
    assert described["age"].tolist() == ["under 50", "80 and over"]
    assert described["protocol"].tolist() == ["ukb", "ukb"]


# ------------------------------------------------------------------ whole datasets


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
    result = evaluate_derivatives(*folders, samples=20)
    metrics = result["metrics"]
    assert metrics["scans"] == 3
    assert (metrics["lesions"], metrics["hits"], metrics["false_positives"]) == (3, 2, 1)
    assert metrics["lesion_free_scans"] == 1
    assert metrics["false_positives_per_lesion_free_scan"] == 0
    assert metrics["calcifications_called_microbleed"] == 1
    assert metrics["calcification_sensitivity"] == 0
    assert metrics["candidate_recall_microbleed"] == 1  # of the one scan with such a table
    assert metrics["candidate_recall_calcification"] == 1
    assert not result["simulated"]
    groups = result["metrics_table"].query("by == 'protocol'")["group"]
    assert set(groups) == {"ukb"}


def test_labels_of_another_tool_as_masks_without_tables(folders, tmp_path):
    """The same result as a mask named as others do gives the same hits."""
    other = tmp_path / "other"
    for subject, voxels in (("01", [(1, 0, 0), (11, 0, 0)]), ("02", []), ("03", [(4, 4, 4)])):
        path = other / f"sub-{subject}" / f"sub-{subject}_space-T2S_CMB.nii.gz"
        write_volume(path, blobs(*voxels), np.eye(4))
    metrics = evaluate_derivatives(other, folders[1], samples=0)["metrics"]
    assert (metrics["scans"], metrics["hits"], metrics["false_positives"]) == (3, 2, 1)
    assert np.isnan(metrics["candidate_recall_microbleed"])
    assert "expected_calibration_error" not in metrics


def test_scans_that_cannot_be_scored_are_listed_with_their_reason(folders):
    derivatives, labels = folders
    write_table(labels / "sub-04/anat/sub-04_desc-truth_dseg.tsv", points((0, 0, 0)))
    write_table(derivatives / "sub-05/anat/sub-05_desc-cmb_dseg.tsv", points((0, 0, 0)))
    write_table(
        derivatives / "sub-01/sub-01_scans.tsv",
        pd.DataFrame(
            {
                "filename": ["anat/sub-01_acq-ukb_desc-cmb_dseg.nii.gz"],
                "qc_status": "fail",
                "qc_reason": "mask of 400 ml",
            }
        ),
    )
    (derivatives / "sub-03/anat/sub-03_desc-cmb_dseg.tsv").write_text("x\ty\tz\n1\t2\t?\n")
    result = evaluate_derivatives(derivatives, labels, samples=5)
    assert result["metrics"]["scans"] == 1
    scans = result["scans"].set_index("scan")
    assert scans["status"].to_dict() == {
        "sub-02_acq-ukb": "scored",
        "sub-01_acq-ukb": "not_counted",
        "sub-03": "unreadable",
        "sub-04": "without_result",
        "sub-05": "without_labels",
    }
    assert "400 ml" in scans.loc["sub-01_acq-ukb", "reason"]
    assert scans.loc["sub-04", "lesions"] == 1
    assert result["metrics"]["sensitivity_all_labelled"] == 0
    assert result["unlabelled"] == ["sub-05"]


def test_sessions_and_runs_are_scans_of_one_participant(tmp_path):
    for folder, shift in (("out", 1), ("truth", 0)):
        for scan in ("sub-01_ses-A", "sub-01_ses-B_run-1", "sub-01_ses-B_run-2", "sub-02_ses-A"):
            subject, session = scan.split("_")[:2]
            path = tmp_path / folder / subject / session / f"anat/{scan}_desc-cmb_dseg.tsv"
            write_table(path, points((shift, 0, 0), name="microbleed"))
    result = evaluate_derivatives(tmp_path / "out", tmp_path / "truth", samples=10)
    assert result["metrics"]["scans"] == result["metrics"]["hits"] == 4
    assert result["participants"] == 2
    assert set(result["scans"]["session_id"]) == {"ses-A", "ses-B"}


def test_field_strength_from_the_raw_dataset_where_the_tool_does_not_say(folders, tmp_path):
    for subject, tesla in (("01", 1.5), ("02", 3)):
        name = f"sub-{subject}_part-mag_T2starw.json"
        write_json(
            tmp_path / "raw" / f"sub-{subject}/anat/{name}", {"MagneticFieldStrength": tesla}
        )
    cohort = read_cohort(*folders, images_dir=tmp_path / "raw")
    assert "field_strength_t" in cohort.groups
    assert cohort.scans["field_strength_t"].dropna().tolist() == [1.5, 3.0]


def test_candidates_get_the_probabilities_that_the_network_gave(folders):
    derivatives, labels = folders
    table = derivatives / "sub-01/anat/sub-01_acq-ukb_desc-candidates_dseg.tsv"
    write_table(table, read_table(table).assign(index=[4, 3, 2, 1]))
    kept = derivatives / "logs/scans/sub-01/sub-01_acq-ukb/probabilities.tsv"
    write_table(kept, pd.DataFrame({"index": [1, 2, 3, 4], "p_microbleed": [0.1, 0.2, 0.3, 0.9]}))
    result = evaluate_derivatives(derivatives, labels, samples=5)
    assert result["scored"].matched.candidates["probability"].tolist() == [0.9, 0.3, 0.2, 0.1]
    assert set(result["froc"]["basis"]) == {"listed", "candidates"}
    assert result["lesions"]["candidate_probability"].tolist()[:2] == [0.9, 0.3]


def test_simulated_labels_are_said_to_be_simulated(folders):
    description = {"GeneratedBy": [{"Name": "cmb-lab simulate"}]}
    write_json(folders[1] / "dataset_description.json", description)
    assert read_cohort(*folders).simulated


def test_messages_name_the_folder_and_the_remedy(folders, tmp_path):
    with pytest.raises(InputMissing, match="nowhere"):
        evaluate_derivatives(tmp_path / "nowhere", folders[1])
    table = folders[1] / "sub-01/anat/sub-01_desc-truth_dseg.tsv"
    with pytest.raises(InputMissing, match="is a file"):
        evaluate_derivatives(folders[0], table)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingMatched, match="holds no labels"):
        evaluate_derivatives(folders[0], tmp_path / "empty")
    with pytest.raises(NothingMatched, match="holds no result"):
        evaluate_derivatives(tmp_path / "empty", folders[1])
    write_table(tmp_path / "apart/sub-99/sub-99_desc-cmb_dseg.tsv", points((0, 0, 0)))
    with pytest.raises(NothingMatched, match=r"sub-99: no labels fit it"):
        evaluate_derivatives(tmp_path / "apart", folders[1])


# ------------------------------------------------------------------ command


def test_command_writes_tables_with_dictionaries_json_and_page(folders, tmp_path, capsys):
    output = tmp_path / "scores"
    arguments = ["evaluate", *map(str, folders), "--output", str(output), "--bootstrap", "20"]
    assert main([*arguments, "--compare", str(folders[1])]) == 0
    printed = capsys.readouterr().out
    assert "sensitivity" in printed
    assert "truth against out" in printed
    content = json.loads((output / "evaluation.json").read_text())
    assert content["derivatives"][0]["metrics"]["scans"] == 3
    assert content["derivatives"][0]["metrics"]["sensitivity"] == pytest.approx(2 / 3)
    assert content["settings"]["distance_mm"] == 5
    tables = sorted(path.stem for path in output.glob("*.tsv"))
    assert tables == [
        "evaluation_comparison", "evaluation_false_alarms", "evaluation_froc",
        "evaluation_froc_curve", "evaluation_lesions", "evaluation_metrics",
        "evaluation_reliability", "evaluation_scans",
    ]  # fmt: skip
    for name in tables:
        columns = set(read_table(output / f"{name}.tsv").columns)
        assert columns == set(json.loads((output / f"{name}.json").read_text()))
    lesions = read_table(output / "evaluation_lesions.tsv")
    assert set(lesions["derivatives"]) == {"out", "truth"}
    assert "Worst misses" in (output / "evaluation.html").read_text()


def test_a_damaged_file_is_named_and_the_rest_is_scored(folders, capsys):
    (folders[1] / "sub-03/anat/sub-03_desc-manual_dseg.nii.gz").write_bytes(b"no image")
    assert main(["evaluate", *map(str, folders), "--bootstrap", "5"]) == 1
    said = capsys.readouterr()
    assert "sub-03_desc-manual_dseg.nii.gz" in said.err
    assert "out, 2 scans" in said.out


@pytest.mark.parametrize(
    ("more", "code"),
    [(["--distance-mm", "0"], 64), (["--gallery", "99"], 64), (["--bootstrap", "-1"], 64)],
)
def test_numbers_out_of_range_are_refused(folders, more, code, capsys):
    assert main(["evaluate", *map(str, folders), *more]) == code
    assert more[0] in capsys.readouterr().err


def test_voxel_indices_take_the_grid_of_their_own_dataset_first(folders):
    derivatives, labels = folders
    voxels = pd.DataFrame({"i": [2.0], "j": [0.0], "k": [0.0], "name": "microbleed"})
    (labels / "sub-01/anat/sub-01_desc-truth_dseg.tsv").unlink()
    write_table(labels / "sub-01/anat/sub-01_desc-truth_points.tsv", voxels)
    for folder, name, affine in (
        (derivatives, "sub-01_acq-ukb_desc-swi_T2starw", np.diag([9.0, 1, 1, 1])),
        (labels, "sub-01_space-MNI_T1w", np.diag([7.0, 1, 1, 1])),
        (labels, "sub-01_T2starw", np.diag([0.5, 1, 1, 1])),
    ):
        write_volume(folder / f"sub-01/anat/{name}.nii.gz", blobs(), affine)
    truth = read_cohort(derivatives, labels).truth
    assert truth[truth["participant_id"] == "sub-01"]["x"].tolist() == [1.0]
