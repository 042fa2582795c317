"""Images and tables: what is written is read back; what is broken is named."""

import os

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmb_bids import volumes
from cmb_bids.errors import BadData, CannotCreate, InputMissing

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([0.8, 0.8, 3.0]), [-80.0, -100.0, -60.0]
)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, bool])
def test_an_image_is_read_back_as_written(tmp_path, dtype):
    data = (np.arange(60).reshape(3, 4, 5) % 2).astype(dtype)
    volumes.write_volume(tmp_path / "a.nii.gz", data, OBLIQUE)
    back = volumes.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.data, data.astype(np.float32))
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-4)
    assert os.listdir(tmp_path) == ["a.nii.gz"]


def test_slope_and_intercept_are_applied_or_left(tmp_path):
    image = nib.Nifti1Image(np.full((2, 2, 2), 10, np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(tmp_path / "scaled.nii")
    stored = volumes.read_stored(tmp_path / "scaled.nii")
    assert stored.slope == 0.5
    assert stored.intercept == -3
    np.testing.assert_allclose(
        volumes.read_volume(tmp_path / "scaled.nii").data, stored.stored * 0.5 - 3
    )


def test_a_truncated_image_is_named(tmp_path):
    path = tmp_path / "cut.nii.gz"
    volumes.write_volume(path, np.random.default_rng(0).normal(size=(20, 20, 20)), np.eye(4))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(BadData, match=r"cut\.nii\.gz.*truncated"):
        volumes.read_volume(path)


def test_an_absent_image_an_empty_file_and_a_series_are_named(tmp_path):
    with pytest.raises(InputMissing, match=r"no\.nii"):
        volumes.read_volume(tmp_path / "no.nii")
    (tmp_path / "empty.nii").touch()
    with pytest.raises(BadData, match="empty"):
        volumes.read_volume(tmp_path / "empty.nii")
    nib.Nifti1Image(np.zeros((2, 2, 2, 3), np.float32), np.eye(4)).to_filename(tmp_path / "4.nii")
    with pytest.raises(BadData, match="not one volume"):
        volumes.read_volume(tmp_path / "4.nii")


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    with pytest.raises(RuntimeError), volumes.written_whole(tmp_path / "x.txt") as beside:
        beside.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreate):
        volumes.write_text(tmp_path / "file" / "x.txt", "")


def test_a_table_is_written_the_bids_way(tmp_path):
    table = pd.DataFrame({"participant_id": ["NA", "01"], "n": [1.5, None], "yes": [True, None]})
    volumes.write_table(tmp_path / "t.tsv", table, {"n": {"Description": "a number"}})
    assert (tmp_path / "t.tsv").read_text() == (
        "participant_id\tn\tyes\nNA\t1.5\ttrue\n01\tn/a\tn/a\n"
    )
    back = volumes.read_table(tmp_path / "t.tsv")
    assert back["participant_id"].tolist() == ["NA", "01"]
    assert (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("sizes", "expected"), [((3, 0.8, 0.8), 0), ((0.5, 1, 2), 2), ((1, 1, 1), 2), ((1, 5, 1), 1)]
)
def test_the_slice_axis_is_the_coarsest_or_the_one_along_the_field(sizes, expected):
    assert volumes.slice_axis(np.diag([*sizes, 1.0])) == expected


@given(st.tuples(*[st.floats(-1.5, 1.5)] * 3), st.permutations([0, 1, 2]))
def test_field_direction_is_scanner_z_whatever_the_grid(angles, order):
    affine = nib.affines.from_matvec(
        (nib.eulerangles.euler2mat(*angles) @ np.diag([0.5, 1, 2]))[:, order], [1, 2, 3]
    )
    direction = volumes.b0_direction(affine)
    scanner = affine[:3, :3] / volumes.voxel_sizes(affine) @ direction
    np.testing.assert_allclose(scanner, [0, 0, 1], atol=1e-6)
    points = np.array([[3.0, 4.0, 5.0]])
    np.testing.assert_allclose(
        volumes.world_to_voxel(affine, volumes.voxel_to_world(affine, points)), points, atol=1e-6
    )
