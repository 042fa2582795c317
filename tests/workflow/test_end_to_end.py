"""The real workflow on a small simulated dataset, from the command line to valid BIDS tables.

One dataset holds a Biobank-like scan, the same scan's magnitude alone, and a broken one: the whole
job, magnitude-only input and a failure that must not touch the others, in one run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bids
import numpy as np
import pytest

from cmb_bids.volumes import read_json, read_table, read_volume, world_to_voxel

CHECKOUT = Path(__file__).resolve().parents[2]


def command(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment without raising."""
    return subprocess.run(
        [str(a) for a in arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        check=False,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )


def cmb_bids(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return command("cmb-bids", *arguments)


def valid_bids(folder: Path, *arguments: str) -> None:
    """Assert that the BIDS validator finds no error."""
    done = command("bids-validator-deno", folder, "--ignoreWarnings", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Two simulated participants, the second one's magnitude as a third, a truncated fourth.

    Beside it, in ``drawn``, a brain mask for the third, as if drawn by hand.
    """
    folder = tmp_path_factory.mktemp("data") / "bids"
    done = command(
        *("cmb-lab", "simulate", folder, "--participants", "2", "--protocol", "ukb"),
        *("--seed", "7", "--lesion-load", "2"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    valid_bids(folder, "-r")
    second = max(p.name for p in folder.glob("sub-*"))
    for copy, wanted in (("sub-magnitude", "part-mag"), ("sub-broken", "part-")):
        (folder / copy / "anat").mkdir(parents=True)
        for path in (folder / second / "anat").iterdir():
            if wanted in path.name:
                shutil.copy(path, folder / copy / "anat" / path.name.replace(second, copy))
    for path in (folder / "sub-broken" / "anat").glob("*part-phase*.nii.gz"):
        path.write_bytes(path.read_bytes()[:5000])
    truth = folder / "derivatives" / "truth"
    drawn = folder.parent / "drawn" / "sub-magnitude" / "anat"
    drawn.mkdir(parents=True)
    shutil.copy(truth / "dataset_description.json", drawn.parents[1])
    shutil.copy(
        truth / second / "anat" / f"{second}_desc-brain_mask.nii.gz",
        drawn / "sub-magnitude_desc-brain_mask.nii.gz",
    )
    table = (folder / "participants.tsv").read_text().splitlines()
    row = table[-1].split("\t")
    table += ["\t".join([copy, *row[1:]]) for copy in ("sub-magnitude", "sub-broken")]
    (folder / "participants.tsv").write_text("\n".join(table) + "\n")
    return folder


@pytest.fixture(scope="module")
def processed(dataset) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = dataset.parent / "derivatives"
    drawn = dataset.parent / "drawn"
    return output, cmb_bids(dataset, output, "participant", "--n-cpus", "2", "-d", drawn)


def whole_participants(dataset: Path) -> list[str]:
    return sorted(p.name for p in dataset.glob("sub-*") if p.name != "sub-broken")


def test_a_broken_scan_is_named_and_the_others_are_whole(dataset, processed):
    output, done = processed
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "sub-broken" in said
    assert "Traceback" not in said
    assert sorted(p.name for p in output.glob("sub-*") if p.is_dir()) >= whole_participants(dataset)
    for name in whole_participants(dataset):
        rows = read_table(output / name / f"{name}_scans.tsv")
        assert len(rows) == 1
        assert rows["qc_status"].notna().all()
    assert not (output / "sub-broken" / "sub-broken_scans.tsv").exists()


def test_everybody_processed_has_a_page_with_pictures(dataset, processed):
    output, _ = processed
    assert sorted(p.stem for p in output.glob("sub-*.html")) == whole_participants(dataset)
    for name in whole_participants(dataset):
        page = (output / f"{name}.html").read_text()
        assert "The picture was not made" not in page
        assert ("There was no phase" in page) == (name == "sub-magnitude")
        assert (output / name / "figures" / f"{name}_desc-overview.png").is_file()


def test_the_outputs_are_valid_bids_with_sensible_images(dataset, processed):
    output, _ = processed
    name = whole_participants(dataset)[1]
    anat = output / name / "anat"
    mask = read_volume(anat / f"{name}_desc-brain_mask.nii.gz")
    swi = read_volume(anat / f"{name}_desc-swi_MEGRE.nii.gz")
    assert swi.data.shape == mask.data.shape
    assert 1.0e6 < (mask.data > 0).sum() * 0.8 * 0.8 * 3 < 1.9e6
    sidecar = read_json(anat / f"{name}_desc-swi_MEGRE.json")
    assert "SkullStripped" in sidecar
    highpass = read_volume(anat / f"{name}_part-phase_desc-highpass_MEGRE.nii.gz").data
    assert abs(float(highpass[mask.data > 0].mean())) < 0.1
    valid_bids(output)


def test_others_find_the_outputs_by_their_entities(processed):
    """With pybids, as a user's own script would."""
    layout = bids.BIDSLayout(processed[0], validate=False, config=["bids", "derivatives"])
    images = layout.get(desc="cmb", suffix="dseg", extension=".nii.gz")
    assert {image.entities["subject"] for image in images} >= {"01", "magnitude"}
    assert len(layout.get(desc="brain", suffix="mask", subject="01", extension=".nii.gz")) == 1


def test_what_is_found_agrees_with_the_truth(dataset, processed):
    output, _ = processed
    done = command(
        "cmb-lab", "evaluate", output, dataset / "derivatives" / "truth",
        "--output", dataset.parent / "evaluation",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = truth = 0
    for name in sorted(p.name for p in (dataset / "derivatives" / "truth").glob("sub-*")):
        anat = dataset / "derivatives" / "truth" / name / "anat"
        rows = read_table(next(anat.glob("*_desc-truth_dseg.tsv")))
        lesions = rows.loc[rows["name"] == "microbleed", ["x", "y", "z"]].to_numpy()
        detected = read_table(
            next((output / name / "anat").glob("*_desc-cmb_dseg.tsv"))
        )[["x", "y", "z"]].to_numpy()  # fmt: skip
        truth += len(lesions)
        for lesion in lesions:
            found += bool(len(detected)) and ((detected - lesion) ** 2).sum(1).min() <= 25
    assert truth >= 2
    assert found / truth > 0.5


def test_magnitude_alone_says_so_in_its_table(processed):
    output, _ = processed
    row = read_table(output / "sub-magnitude" / "sub-magnitude_scans.tsv").iloc[0]
    assert "magnitude" in set(row.astype(str))
    assert not list((output / "sub-magnitude").rglob("*part-phase*"))


def test_a_mask_from_derivatives_is_used_instead_of_our_own(dataset, processed):
    output, _ = processed
    name = "sub-magnitude_desc-brain_mask.nii.gz"
    ours = read_volume(output / "sub-magnitude" / "anat" / name).data > 0
    assert np.array_equal(ours, read_volume(next((dataset.parent / "drawn").rglob(name))).data > 0)
    row = read_table(output / "sub-magnitude" / "sub-magnitude_scans.tsv").iloc[0]
    assert row["mask_source"] == "derivatives"


def test_known_lesions_go_into_what_was_processed(dataset, processed, tmp_path):
    """Scans without phase or without a result are named; the rest is BIDS, with its truth."""
    known = tmp_path / "known"
    done = command("cmb-lab", "implant", dataset, processed[0], known, "--microbleeds", "3")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "sub-magnitude_MEGRE is left out" in done.stdout
    assert "sub-broken_MEGRE is left out" in done.stdout
    written = sorted(path.name for path in known.glob("sub-*"))
    assert len(written) == 2
    valid_bids(known, "-r")
    truth = known / "derivatives" / "truth" / written[0] / "anat"
    table = read_table(truth / f"{written[0]}_desc-truth_dseg.tsv")
    implanted = table[table["certainty"] == "definite"]
    assert implanted["name"].value_counts().to_dict() == {"microbleed": 3, "calcification": 2}
    before, after = (
        read_volume(folder / written[0] / "anat" / f"{written[0]}_echo-2_part-mag_MEGRE.nii.gz")
        for folder in (dataset, known)
    )
    places = np.rint(world_to_voxel(after.affine, implanted[["x", "y", "z"]].to_numpy()))
    for place in map(tuple, places.astype(int)):
        assert after.data[place] < 0.9 * before.data[place]


def test_the_group_level_counts_everybody(dataset, processed):
    output, _ = processed
    done = cmb_bids(dataset, output, "group")
    assert done.returncode == 0, done.stdout + done.stderr
    phenotype = read_table(output / "phenotype" / "microbleeds.tsv")
    assert set(whole_participants(dataset)) <= set(phenotype["participant_id"])
    described = json.loads((output / "phenotype" / "microbleeds.json").read_text())
    assert set(phenotype.columns) - {"participant_id"} <= set(described)
    assert (output / "group_microbleeds.csv").stat().st_size > 0
    valid_bids(output)


def test_a_second_run_does_nothing(dataset, processed):
    output, _ = processed
    names = whole_participants(dataset)
    before = {
        p: p.stat().st_mtime_ns for n in names for p in (output / n).rglob("*") if p.is_file()
    }
    again = ["-d", dataset.parent / "drawn", "--participant-label", *names]
    done = cmb_bids(dataset, output, "participant", *again)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {p: p.stat().st_mtime_ns for n in names for p in (output / n).rglob("*") if p.is_file()}
    assert after == before


def test_snakemake_itself_gives_the_same_tables(dataset, processed):
    output, _ = processed
    small = dataset.parent / "small"
    name = whole_participants(dataset)[1]
    small.mkdir()
    shutil.copytree(dataset / name, small / name)
    for path in dataset.glob("*.*"):
        shutil.copy(path, small)
    done = command(
        *("snakemake", "--cores", "2", "--config", f"bids_dir={small}"),
        f"output_dir={dataset.parent / 'snakemake'}",
        cwd=CHECKOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for table in (output / name).rglob("*.tsv"):
        twin = dataset.parent / "snakemake" / table.relative_to(output)
        assert twin.read_text() == table.read_text()
    assert (dataset.parent / "snakemake" / "group_microbleeds.csv").exists()
