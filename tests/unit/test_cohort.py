"""The group tables, from scans tables alone."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from cmb_bids.cohort import collect_group
from cmb_bids.cohort_statistics import detector_of_card
from cmb_bids.columns import LESION_COLUMNS, SCAN_COLUMNS
from cmb_bids.errors import BadData, InputMissing, UsageError
from cmb_bids.statistics.drawn import write_derivatives

COUNTS = ["cmb_definite", "cmb_possible", "cmb_lobar", "cmb_deep", "cmb_infratentorial"]


def scan_row(filename="anat/sub-01_part-mag_T2starw.nii.gz", definite=0, possible=0, **values):
    row = dict.fromkeys(SCAN_COLUMNS, "n/a")
    row |= dict.fromkeys(COUNTS, "0")
    row |= {"filename": filename, "cmb_definite": str(definite), "cmb_possible": str(possible)}
    row |= {"qc_status": "pass", "input": "complex", "pattern": "none"}
    return row | values


def write_scans(root, folder, rows):
    name = "_".join(folder.split("/"))
    table = root / folder / f"{name}_scans.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(SCAN_COLUMNS), *("\t".join(row.values()) for row in rows)]
    table.write_text("\n".join(lines) + "\n")


def read_tsv(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def read_csv(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_row_per_participant_and_one_per_scan(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row(definite=2, possible=1)])
    write_scans(tmp_path, "sub-02", [scan_row()])
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-01\t71\tF\nsub-02\tn/a\tM\n"
    )
    (tmp_path / "participants.json").write_text('{"age": {"Units": "year"}}')
    summary = collect_group(tmp_path)
    table = read_tsv(tmp_path / "phenotype" / "microbleeds.tsv")
    assert next(iter(table[0])) == "participant_id"
    assert "session_id" not in table[0]
    assert [(r["participant_id"], r["cmb_definite"], r["cmb_total"]) for r in table] == [
        ("sub-01", "2", "3"),
        ("sub-02", "0", "0"),
    ]
    wide = read_csv(tmp_path / "group_microbleeds.csv")
    assert [(r["age"], r["sex"]) for r in wide] == [("71", "F"), ("n/a", "M")]
    assert (summary.participants, summary.scans, summary.positive) == (2, 2, 1)
    assert summary.microbleeds == 2
    assert all(path.is_file() for path in summary.files)


def test_every_column_of_both_tables_is_described(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row()])
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t71\n")
    collect_group(tmp_path)
    said = json.loads((tmp_path / "phenotype" / "microbleeds.json").read_text())
    columns = set(read_tsv(tmp_path / "phenotype" / "microbleeds.tsv")[0])
    assert set(said) == columns - {"participant_id"} | {"MeasurementToolMetadata"}
    wide = read_csv(tmp_path / "group_microbleeds.csv")[0]
    assert list(json.loads((tmp_path / "group_microbleeds.json").read_text())) == list(wide)


def test_a_participant_is_one_row_and_its_sessions_are_in_the_wide_table(tmp_path):
    write_scans(tmp_path, "sub-01/ses-A", [scan_row(definite=1)])
    write_scans(tmp_path, "sub-01/ses-B", [scan_row(definite=3)])
    (tmp_path / "sub-02" / "ses-A" / "anat").mkdir(parents=True)
    summary = collect_group(tmp_path)
    table = read_tsv(tmp_path / "phenotype" / "microbleeds.tsv")
    assert list(table[0])[:2] == ["participant_id", "session_id"]
    assert [(r["session_id"], r["cmb_definite"], r["processing"]) for r in table] == [
        ("ses-A", "1", "processed"),
        ("ses-A", "n/a", "not_processed"),
    ]
    assert [row["n_scans"] for row in table] == ["2", "0"]
    wide = read_csv(tmp_path / "group_microbleeds.csv")
    assert [(row["session_id"], row["cmb_definite"]) for row in wide] == [
        ("ses-A", "1"),
        ("ses-B", "3"),
        ("ses-A", "n/a"),
    ]
    assert (summary.participants, summary.positive, summary.not_processed) == (1, 1, 1)


def test_of_several_scans_the_best_one_is_shown_and_none_are_added_up(tmp_path):
    scans = [
        scan_row("anat/a_failed.nii.gz", definite="n/a", possible="n/a", qc_status="fail"),
        scan_row("anat/b_warn.nii.gz", definite=7, qc_status="warn"),
        scan_row("anat/c_magnitude.nii.gz", definite=6, input="magnitude"),
        scan_row("anat/d_run-2.nii.gz", definite=5),
        scan_row("anat/d.nii.gz", definite=4),
    ]
    write_scans(tmp_path, "sub-01", scans)
    collect_group(tmp_path)
    (row,) = read_tsv(tmp_path / "phenotype" / "microbleeds.tsv")
    assert (row["filename"], row["cmb_definite"], row["n_scans"]) == ("anat/d.nii.gz", "4", "5")
    assert len(read_csv(tmp_path / "group_microbleeds.csv")) == 5


def test_a_flagged_scan_has_no_counts_and_says_so(tmp_path):
    flagged = dict.fromkeys([*COUNTS, "pattern"], "n/a")
    reason = 'mask of 512 ml, "cropped"; see log'
    row = scan_row() | flagged | {"qc_status": "fail", "qc_reason": reason}
    write_scans(tmp_path, "sub-01", [row])
    assert collect_group(tmp_path).flagged == 1
    for table in (
        read_tsv(tmp_path / "phenotype" / "microbleeds.tsv"),
        read_csv(tmp_path / "group_microbleeds.csv"),
    ):
        assert table[0]["qc_reason"] == reason
        assert table[0]["cmb_definite"] == table[0]["cmb_total"] == "n/a"
        assert table[0]["processing"] == "processed"


def test_participants_without_results_are_listed(tmp_path):
    write_scans(tmp_path, "sub-02", [scan_row()])
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    write_scans(tmp_path, "sub-03", [])
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-02\nsub-04\n")
    assert collect_group(tmp_path).not_processed == 3
    table = read_tsv(tmp_path / "phenotype" / "microbleeds.tsv")
    assert [(r["participant_id"], r["processing"], r["cmb_definite"]) for r in table] == [
        ("sub-01", "not_processed", "n/a"),
        ("sub-02", "processed", "0"),
        ("sub-03", "not_processed", "n/a"),
        ("sub-04", "not_processed", "n/a"),
    ]
    assert len(read_csv(tmp_path / "group_microbleeds.csv")) == 4


def test_a_covariate_named_like_a_result_is_kept_apart(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row(definite=2)])
    (tmp_path / "participants.tsv").write_text("participant_id\tcmb_definite\nsub-01\t9\n")
    collect_group(tmp_path)
    (row,) = read_csv(tmp_path / "group_microbleeds.csv")
    assert (row["participants_cmb_definite"], row["cmb_definite"]) == ("9", "2")


def test_columns_of_a_newer_version_are_kept_and_of_an_older_one_missing(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row()])
    (tmp_path / "sub-02").mkdir()
    (tmp_path / "sub-02" / "sub-02_scans.tsv").write_text(
        "filename\tcmb_definite\tmoment\nanat/x.nii.gz\t1\t-3.5\n"
    )
    collect_group(tmp_path)
    table = read_tsv(tmp_path / "phenotype" / "microbleeds.tsv")
    assert [row["moment"] for row in table] == ["n/a", "-3.5"]
    assert table[1]["cmb_possible"] == table[1]["cmb_total"] == "n/a"


def test_the_same_derivatives_give_the_same_bytes(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row(definite=2)])
    first = [path.read_bytes() for path in collect_group(tmp_path).files]
    assert first == [path.read_bytes() for path in collect_group(tmp_path).files]


def test_nothing_processed_is_an_error_and_leaves_no_table(tmp_path):
    with pytest.raises(InputMissing, match="participant level first") as caught:
        collect_group(tmp_path / "absent")
    assert caught.value.exit_code == 66
    write_scans(tmp_path, "sub-01", [])
    with pytest.raises(InputMissing, match=r"sub-\*_scans.tsv"):
        collect_group(tmp_path)
    assert not (tmp_path / "phenotype").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("filename\tcmb_definite\nonly-one-cell\n", "1 cells in row 2"),
        ("file\tcount\na\t1\n", "no column 'filename'"),
        ("filename\tcmb_definite\nanat/x.nii.gz\tmany\n", "'many'"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, text, problem):
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "sub-01_scans.tsv").write_text(text)
    with pytest.raises(BadData, match=problem) as caught:
        collect_group(tmp_path)
    assert "sub-01" in str(caught.value)


def test_a_participant_named_twice_is_refused(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row()])
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-01\nsub-01\n")
    with pytest.raises(BadData, match="sub-01 twice"):
        collect_group(tmp_path)


# ----------------------------------------------------------------------- one bad table


def test_one_damaged_table_is_named_and_stops_nobody(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row(definite=2)])
    (tmp_path / "sub-02").mkdir()
    (tmp_path / "sub-02" / "sub-02_scans.tsv").write_text("filename\tcmb_definite\nx\tmany\n")
    summary = collect_group(tmp_path)
    (problem,) = [p for p in summary.problems if "_scans.tsv" in p.message]
    assert problem.participant_id == "sub-02"
    assert "'many'" in problem.message
    table = read_tsv(tmp_path / "phenotype" / "microbleeds.tsv")
    assert [(r["participant_id"], r["processing"], r["cmb_definite"]) for r in table] == [
        ("sub-01", "processed", "2"),
        ("sub-02", "damaged", "n/a"),
    ]
    statistics = json.loads((tmp_path / "group_statistics.json").read_text())
    assert statistics["participants"]["processed"] == 1
    assert statistics["participants"]["not_processed"] == 1


def test_a_count_from_a_spreadsheet_is_a_count(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row(definite="2.0", possible="1.0")])
    collect_group(tmp_path)
    (row,) = read_tsv(tmp_path / "phenotype" / "microbleeds.tsv")
    assert (row["cmb_definite"], row["cmb_total"]) == ("2", "3")


# ---------------------------------------------------------------------------- lesions


def write_lesions(root, folder, kind, rows, columns=("index", "name", "x_mni", "counted")):
    name = "_".join(folder.split("/"))
    table = root / folder / "anat" / f"{name}_desc-{kind}_dseg.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join("\t".join(row) for row in [columns, *rows]) + "\n")


def test_every_lesion_of_every_scan_has_a_row(tmp_path):
    for folder in ("sub-01/ses-A", "sub-02"):
        name = "_".join(folder.split("/"))
        write_scans(tmp_path, folder, [scan_row(f"anat/{name}_desc-cmb_dseg.nii.gz", definite=1)])
        write_lesions(tmp_path, folder, "cmb", [("1", "microbleed-1", "-31.5", "true")])
    write_lesions(tmp_path, "sub-01/ses-A", "calcification", [])
    write_lesions(
        tmp_path, "sub-02", "calcification",
        [("1", "calcification-1", "2", "true"), ("2", "calcification-2", "n/a", "false")],
    )  # fmt: skip
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tname\nsub-02\t71\tx\n")
    summary = collect_group(tmp_path)
    assert summary.problems == ()
    rows = read_csv(tmp_path / "group_lesions.csv")
    keys = ["participant_id", "session_id", "kind", "index", "age", "participants_name"]
    assert [[row[key] for key in keys] for row in rows] == [
        ["sub-01", "ses-A", "microbleed", "1", "n/a", "n/a"],
        ["sub-02", "n/a", "microbleed", "1", "71", "x"],
        ["sub-02", "n/a", "calcification", "1", "71", "x"],
        ["sub-02", "n/a", "calcification", "2", "71", "x"],
    ]
    assert rows[0]["filename"] == "anat/sub-01_ses-A_desc-cmb_dseg.nii.gz"
    assert rows[0]["x_mni"] == "-31.5"
    assert rows[0]["mars_region"] == "n/a"  # a table of an older version has no such column
    described = json.loads((tmp_path / "group_lesions.json").read_text())
    assert list(described) == list(rows[0])


def test_a_missing_lesion_table_is_named_and_stops_nobody(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row("anat/sub-01_desc-cmb_dseg.nii.gz", definite=1)])
    write_lesions(tmp_path, "sub-01", "cmb", [("1", "microbleed-1", "2", "true")])
    summary = collect_group(tmp_path)
    (problem,) = summary.problems
    assert "desc-calcification" in problem.message
    assert len(read_csv(tmp_path / "group_lesions.csv")) == 1


def test_no_lesions_are_a_header_alone(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row()])
    collect_group(tmp_path)
    assert read_csv(tmp_path / "group_lesions.csv") == []
    header = (tmp_path / "group_lesions.csv").read_text().split("\n")[0].split(",")
    assert header[:4] == ["participant_id", "session_id", "filename", "kind"]
    assert set(LESION_COLUMNS) < set(header)


# -------------------------------------------------------------------------- statistics


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    write_derivatives(folder, 400, seed=1)
    output = folder / "derivatives"
    shutil.copy(folder / "bids" / "participants.tsv", output)
    section = {
        "detector": {
            "sensitivity": 0.9, "n_with": 40, "specificity": 0.95, "n_without": 60, "source": "x",
        }
    }  # fmt: skip
    return output, collect_group(output, section)


def test_statistics_page_and_tables_agree(cohort):
    output, summary = cohort
    assert summary.problems == ()
    assert all(path.is_file() for path in summary.files)
    statistics = json.loads((output / "group_statistics.json").read_text())
    assert statistics["participants"]["positive"] == summary.positive
    first = read_tsv(output / "group_prevalence.tsv")[0]
    assert (first["outcome"], first["age_band"], first["sex"]) == ("any", "all", "all")
    assert (int(first["n"]), int(first["positive"])) == (400, summary.positive)
    assert float(first["corrected_low"]) <= float(first["corrected"])
    terms = sum(max(len(model["terms"]), 1) for model in statistics["models"])
    assert len(read_tsv(output / "group_models.tsv")) == terms
    for row in read_tsv(output / "group_models.tsv"):
        assert row["p"] == "n/a" or int(row["n"]) > 0
    assert "<html" in (output / "group.html").read_text()


def test_reference_table_can_be_used_alone(cohort):
    output, _ = cohort
    rows = read_tsv(output / "group_reference.tsv")
    assert rows
    for row in rows:
        probabilities = [float(v) for k, v in row.items() if k.startswith("probability_")]
        assert sum(probabilities) == pytest.approx(1, abs=0.01)
        assert 1 - probabilities[0] == pytest.approx(float(row["prevalence"]), abs=1e-4)
    said = json.loads((output / "group_reference.json").read_text())
    assert "mid-percentile" in said["ReferenceMetadata"]["Description"]


@pytest.mark.parametrize("table", ["group_prevalence", "group_models", "group_reference"])
def test_every_column_of_the_statistics_is_described(cohort, table):
    output, _ = cohort
    columns = set(read_tsv(output / f"{table}.tsv")[0])
    described = json.loads((output / f"{table}.json").read_text())
    assert set(described) - {"ReferenceMetadata"} == columns


def test_a_covariate_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    write_scans(tmp_path, "sub-01", [scan_row()])
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t71\n")
    with pytest.raises(UsageError, match=r"'weight' is no column of .*participants.tsv.*\(age\)"):
        collect_group(tmp_path, covariates=["age", "weight"])
    with pytest.raises(UsageError, match=r"group\.site_column"):
        collect_group(tmp_path, {"site_column": "place"})
    assert not (tmp_path / "phenotype").exists()


def test_the_model_card_corrects_where_it_counts_participants():
    card = {
        "simulated": True,
        "test": {
            "definite": {
                "cases": 30,
                "cases_without_microbleeds": 10,
                "cases_with_microbleeds_called": 16,
                "cases_without_microbleeds_called": 1,
            }
        },
    }
    detector = detector_of_card(card, "network")
    assert (detector.sensitivity, detector.n_with) == (0.8, 20)
    assert (detector.specificity, detector.n_without) == (0.9, 10)
    assert "simulated" in detector.source
    del card["test"]["definite"]["cases_with_microbleeds_called"]
    assert detector_of_card(card, "network") is None
