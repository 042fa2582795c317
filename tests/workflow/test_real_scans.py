"""Real scans: a whole head at 3 mm and a brain crop that no mask fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cmb_bids.volumes import read_json, read_table, read_volume


@pytest.fixture(scope="module")
def processed(realdata, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("real") / "derivatives"
    done = subprocess.run(
        [
            Path(sys.executable).parent / "cmb-bids",
            realdata,
            output,
            "participant",
            "--n-cpus",
            "2",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_the_whole_head_gets_a_mask_and_few_detections(processed):
    anat = processed / "sub-philips3mm" / "anat"
    mask = read_volume(anat / "sub-philips3mm_desc-brain_mask.nii.gz")
    millilitres = (mask.data > 0).sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    assert 1300 <= millilitres <= 1600
    unwrapped = read_volume(anat / "sub-philips3mm_part-phase_desc-unwrapped_MEGRE.nii.gz").data
    assert np.isfinite(unwrapped).all()
    assert len(read_table(anat / "sub-philips3mm_desc-cmb_dseg.tsv")) <= 5
    assert len(read_table(anat / "sub-philips3mm_desc-calcification_dseg.tsv")) <= 8
    row = read_table(processed / "sub-philips3mm" / "sub-philips3mm_scans.tsv").iloc[0]
    assert row["qc_status"] != "fail"


def test_the_crop_is_flagged_not_counted(processed):
    row = read_table(processed / "sub-romeocrop" / "sub-romeocrop_scans.tsv").iloc[0]
    assert row["qc_status"] == "fail"
    assert np.isnan(row["cmb_definite"])
    assert "cannot hold a whole brain" in row["qc_reason"]


def test_veins_are_dark_on_the_crop(processed):
    anat = processed / "sub-romeocrop" / "anat"
    swi = read_volume(anat / "sub-romeocrop_desc-swi_MEGRE.nii.gz").data
    highpass = read_volume(anat / "sub-romeocrop_part-phase_desc-highpass_MEGRE.nii.gz").data
    assert read_json(anat / "sub-romeocrop_part-phase_desc-highpass_MEGRE.json")["Units"] == "rad"
    assert np.abs(highpass).max() <= np.pi + 1e-3
    paramagnetic = highpass > np.quantile(highpass, 0.99)
    assert np.median(swi[paramagnetic]) < 0.6 * np.median(swi)
