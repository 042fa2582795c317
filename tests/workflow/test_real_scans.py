"""Real scans: a whole head at 3 mm and a brain crop that no mask fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cmb_bids.implant.effect import implant
from cmb_bids.simulate.lesions import Lesion
from cmb_bids.volumes import read_json, read_table, read_volume, voxel_sizes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from measure_real_background import Scan, compare


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


@pytest.fixture(scope="module")
def crop(realdata) -> Scan:
    # Upstream does not state the field strength; this one gives the B0 TE of 3T and 20 ms.
    return Scan(realdata, "sub-romeocrop_MEGRE", field_strength_t=5.0)


def test_no_vein_of_the_crop_is_called_a_microbleed(crop):
    judged = crop.judged(crop.images)
    assert len(judged.points) > 50
    assert not (judged.microbleed > judged.definite).any()


@pytest.mark.parametrize("susceptibility_ppm", [0.8, -0.8])
def test_a_lesion_in_real_tissue_is_called_what_it_is(crop, susceptibility_ppm):
    centre = np.array([25, 25, 20]) * voxel_sizes(crop.acquisition.affine)
    name = "microbleed" if susceptibility_ppm > 0 else "calcification"
    lesion = Lesion(
        name, centre, np.full(3, 1.4), np.eye(3), np.zeros(4), susceptibility_ppm,
        rate_per_s=100.0, signal=0.6, region=0, site="implanted",
    )  # fmt: skip
    effect = crop.acquisition.effect(lesion)
    images = implant(crop.images, [effect], np.random.default_rng(0))
    said = compare(crop, lesion, effect, np.zeros((0, 3)), crop.judged(images))
    assert said["has a candidate"]
    assert said["called microbleed"] == (susceptibility_ppm > 0)
    assert said["called calcification"] == (susceptibility_ppm < 0)
    assert said["other microbleeds called"] == 0
