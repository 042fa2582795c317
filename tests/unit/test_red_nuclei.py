"""Red nuclei: a pair of like ovals in the midbrain, and what only resembles one."""

import numpy as np
import pytest
from test_lesions import draw, listed

from cmb_bids.lesions import segment_lesions
from cmb_bids.red_nuclei import PLACE_MNI_MM, REACH_MM, are_alike, mirrored_mm

UK_BIOBANK = np.diag([0.8, 0.8, 3.0, 1.0])
LEFT_HANDED = np.diag([-0.7, 0.7, 1.5, 1.0])
RIGHT, LEFT = (5.0, 0.0, 0.0), (-5.0, 0.5, -0.5)  # mm from the middle of what is drawn


def to_mni(affine, points):
    """An affine under which the middle of the drawn points lies between the red nuclei."""
    moved = np.eye(4)
    moved[:3, 3] = np.array(PLACE_MNI_MM) * (0, 1, 1) - points.mean(axis=0)
    return moved.tolist()


def called(affine, spheres, mni=True, at=(0, 1), shift=(0, 0, 0), **drawing):
    """How many microbleeds are listed of calls at some of the drawn spheres."""
    image, points = draw(affine, spheres, depth=0.4, **drawing)
    mni_affine = np.array(to_mni(affine, points[:2]))
    mni_affine[:3, 3] += shift
    table, labels = segment_lesions(
        *listed(points[list(at)]),
        image,
        np.ones(image.shape, bool),
        affine,
        mni_affine=mni_affine.tolist() if mni else None,
    )
    assert len(np.unique(labels)) == len(table) + 1
    return len(table)


@pytest.mark.parametrize("affine", [np.eye(4), UK_BIOBANK, LEFT_HANDED])
@pytest.mark.parametrize("diameter", [4.5, 6.0])
def test_the_two_nuclei_are_no_microbleeds_whether_one_or_both_are_called(affine, diameter):
    pair = [(RIGHT, diameter), (LEFT, diameter)]
    assert called(affine, pair) == 0
    assert called(affine, pair, at=(0,)) == 0
    assert called(affine, pair, at=(1,)) == 0


def test_they_are_only_where_red_nuclei_are_and_where_the_place_is_known():
    pair = [(RIGHT, 6.0), (LEFT, 6.0)]
    assert called(np.eye(4), pair, mni=False) == 2
    assert called(np.eye(4), pair, shift=(0, 2 * REACH_MM, 0)) == 2
    assert called(np.eye(4), pair, shift=(1.5, -3, 3)) == 0  # registration errs


def test_a_lesion_without_its_like_opposite_stays():
    assert called(np.eye(4), [(RIGHT, 6.0), (LEFT, 0.0)], at=(0,)) == 1
    assert called(np.eye(4), [(RIGHT, 2.5), (LEFT, 6.0)], at=(0,)) == 1  # a small one
    assert called(np.eye(4), [((0, 0, 0), 6.0), ((0, 0, 0), 6.0)], at=(0,)) == 1  # midline


def test_a_bleed_in_a_nucleus_is_darker_than_the_other_one():
    image, points = draw(np.eye(4), [(RIGHT, 6.0), (LEFT, 6.0)], depth=0.35)
    bleed, _ = draw(np.eye(4), [(RIGHT, 5.0), (LEFT, 0.0)], depth=0.9)
    table, _ = segment_lesions(
        *listed(points),
        np.minimum(image, bleed),
        np.ones(image.shape, bool),
        np.eye(4),
        mni_affine=to_mni(np.eye(4), points),
    )
    found = table[["x", "y", "z"]].to_numpy(dtype=float)
    assert np.linalg.norm(found - points[0], axis=1).min() < 1.5


def test_the_mirror_image_is_taken_in_mni_space():
    affine = np.eye(4)
    affine[:3, 3] = (2.0, -20.0, -12.0)  # the midline is at x = -2 mm of the scanner
    there = mirrored_mm(np.array([4.0, -1.0, 1.0]), affine)
    np.testing.assert_allclose(there, [-8.0, -1.0, 1.0])
    np.testing.assert_allclose(mirrored_mm(there, affine), [4.0, -1.0, 1.0])
    assert mirrored_mm(np.array([40.0, -1.0, 1.0]), affine) is None
    assert mirrored_mm(np.array([4.0, -1.0, 1.0]), None) is None


@pytest.mark.parametrize(
    ("depths", "volumes", "alike"),
    [
        ((0.4, 0.4), (100.0, 100.0), True),
        ((0.4, 0.3), (100.0, 60.0), True),
        ((0.8, 0.4), (100.0, 100.0), False),
        ((0.4, 0.4), (200.0, 60.0), False),
        ((0.4, 0.4), (10.0, 10.0), False),
    ],
)
def test_alike_is_by_depth_and_size(depths, volumes, alike):
    assert are_alike(depths, volumes) is alike
    assert are_alike(depths[::-1], volumes[::-1]) is alike
