"""The group tables, from scans tables alone."""

from __future__ import annotations

import csv
import json
import time

import pytest

from cmb_bids.cohort import collect_group
from cmb_bids.columns import SCAN_COLUMNS
from cmb_bids.errors import BadData, InputMissing

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


def test_a_thousand_participants_take_a_second_or_two(tmp_path):
    for number in range(1000):
        write_scans(tmp_path, f"sub-{number:04d}", [scan_row(definite=number % 3)])
    start = time.perf_counter()
    summary = collect_group(tmp_path)
    assert summary.participants == 1000
    assert time.perf_counter() - start < 5  # 40,000 in a few minutes on the slowest disk
