"""The wheel carries all that the package needs: it runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from engines import CHECKOUT, run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    run([*build, CHECKOUT], 300)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_workflow_configuration_templates_and_networks(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "cmb_bids/_project/Snakefile",
        "cmb_bids/_project/workflow/Snakefile",
        "cmb_bids/_project/config/config.yaml",
        "cmb_bids/data/template_head.nii.gz",
        "cmb_bids/data/models/microbleed-two-channel.safetensors",
        "cmb_bids/data/models/microbleed-one-channel.safetensors",
    ):
        assert wanted in names
    assert not [name for name in names if name.endswith((".pyc", ".nbi", ".nbc", ".checkpoint"))]
    assert wheel.stat().st_size < 20e6


def test_the_wheel_plans_a_run_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], 300)
    anat = tmp_path / "bids" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (tmp_path / "bids" / "dataset_description.json").write_text(
        '{"Name": "one scan", "BIDSVersion": "1.10.0"}'
    )
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    nib.save(image, anat / "sub-01_T2starw.nii.gz")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cmb_bids.cli", tmp_path / "bids", tmp_path / "out"),
            *("participant", "--dry-run"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    for stage in ("magnitude", "brain", "candidates", "classify", "lesions"):
        assert stage in said
    assert str(CHECKOUT / "workflow") not in said
