"""Region labels, their names on two scales, and lesions on or beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmb_bids.anatomy import (
    REGION_COLUMNS,
    RIGHT,
    STRUCTURES,
    hemisphere_of,
    label_lesions,
    regions_to_bombs,
    regions_to_mars,
    structure_of,
)

AFFINE = np.array([[0.8, 0, 0, -20], [0, 0.8, 0, -10], [0, 0, 3.0, 5], [0, 0, 0, 1.0]])
OBLIQUE = np.array(
    [[0.78, -0.2, 0.1, 3], [0.2, 0.75, -0.6, -4], [0.05, 0.19, 2.9, 9], [0, 0, 0, 1.0]]
)


def box_of(label: int, at=(10, 12, 5)) -> np.ndarray:
    regions = np.zeros((30, 30, 12), np.int16)
    regions[at[0] : at[0] + 3, at[1] : at[1] + 3, at[2]] = label
    return regions


@pytest.mark.parametrize("label", sorted(STRUCTURES))
def test_every_label_has_both_scales(label):
    structure = structure_of(label + RIGHT)
    assert structure == structure_of(label)
    assert structure.mars_class in {"lobar", "deep", "infratentorial"}
    assert structure.bombs_class in {"lobar", "deep", "posterior_fossa"}
    assert (hemisphere_of(label), hemisphere_of(label + RIGHT)) == ("left", "right")


def test_scales_disagree_on_deep_white_matter():
    deep, callosum = structure_of(28), structure_of(127)
    assert (deep.mars_class, deep.bombs_class) == ("deep", "lobar")
    assert (callosum.mars_class, callosum.bombs_class) == ("deep", "lobar")
    assert structure_of(11).mars_region == "frontal"
    assert structure_of(11).bombs_region == "subcortical_white_matter"


@pytest.mark.parametrize("label", [0, 41, 141, 100, 99, -1])
def test_csf_and_unknown_labels_name_nothing(label):
    assert structure_of(label) is None
    assert hemisphere_of(label) is None
    region, kind = regions_to_mars(np.array([label]))
    assert region[0] is None
    assert kind[0] is None


def test_arrays_of_labels():
    labels = np.array([[1, 132], [0, 28]], np.int16)
    region, kind = regions_to_mars(labels)
    assert region.tolist() == [["frontal", "cerebellum"], [None, "deep_white_matter"]]
    assert kind.tolist() == [["lobar", "infratentorial"], [None, "deep"]]
    region, kind = regions_to_bombs(labels)
    assert region.tolist() == [["cortex", "cerebellum"], [None, "subcortical_white_matter"]]
    assert kind.tolist() == [["lobar", "posterior_fossa"], [None, "lobar"]]


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
def test_point_inside_takes_its_voxel(affine, kind):
    regions = box_of(24 + RIGHT).astype(kind)
    point = affine[:3, :3] @ [11, 13, 5] + affine[:3, 3]
    row = label_lesions(point[None], regions, affine).iloc[0]
    assert row["label"] == 124
    assert list(row[REGION_COLUMNS]) == ["right", "thalamus", "deep", "thalamus", "deep"]


@given(shift=st.floats(-12, 12), axis=st.integers(0, 2))
def test_point_beside_takes_the_nearest_within_five_mm(shift, axis):
    regions = box_of(3)
    centre = AFFINE[:3, :3] @ [11, 13, 5] + AFFINE[:3, 3]
    point = centre.copy()
    point[axis] += shift
    half = (0.8, 0.8, 0.0)[axis]
    gap = max(abs(shift) - half, 0)
    label = label_lesions(point[None], regions, AFFINE)["label"].iloc[0]
    if gap < 4.9:
        assert label == 3
    if gap > 5.1:
        assert label == 0


def test_nearest_of_two_wins():
    regions = np.zeros((20, 20, 20), np.int16)
    regions[5], regions[12] = 1, 3
    points = [[7, 10, 10], [10, 10, 10]]
    assert label_lesions(np.array(points), regions, np.eye(4))["label"].tolist() == [1, 3]


def test_ventricle_is_not_a_place_for_a_lesion():
    regions = box_of(41)
    regions[14, 13, 5] = 21
    point = AFFINE[:3, :3] @ [11, 13, 5] + AFFINE[:3, 3]
    assert label_lesions(point[None], regions, AFFINE)["structure"].iloc[0] == "caudate"


def test_midline_only_for_unpaired_structures():
    for label, expected in ((31, "midline"), (27, "midline"), (1, "left")):
        regions = np.full((20, 6, 6), label, np.int16)
        regions[10:] += RIGHT
        points = np.array([[9.0, 3, 3], [4.0, 3, 3], [15.0, 3, 3]])
        sides = label_lesions(points, regions, np.eye(4))["hemisphere"].tolist()
        assert sides == [expected, "left", "right"]


def test_no_regions_no_names():
    table = label_lesions(np.array([[0.0, 0, 8]]), np.zeros((5, 5, 5), np.int16), AFFINE)
    assert table["label"].tolist() == [0]
    assert table[REGION_COLUMNS].isna().all(axis=None)


def test_no_points_outside_points_and_bad_points():
    regions = box_of(1)
    table = label_lesions(np.zeros((0, 3)), regions, AFFINE)
    assert len(table) == 0
    assert set(REGION_COLUMNS) <= set(table.columns)
    far = np.array([[1e4, 0, 0], [np.nan, 0, 0]])
    assert label_lesions(far, regions, AFFINE)["label"].tolist() == [0, 0]
    one_voxel = np.full((1, 1, 1), 1)
    assert label_lesions(np.zeros((1, 3)), one_voxel, np.eye(4))["label"].tolist() == [1]
