"""Patches: a known object lands where and as large as it should, whatever the storage."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_bids.patches import PatchGeometry, classifier_patches, cut_patches, normalise_patches
from cmb_bids.volumes import voxel_to_world, world_to_voxel

GEOMETRY = PatchGeometry()


def affine_of(voxel_mm=(0.8, 0.8, 3.0), flips=(1, 1, 1), order=(0, 1, 2), oblique=0.0):
    linear = np.zeros((3, 3))
    for stored, world in enumerate(order):
        linear[world, stored] = voxel_mm[stored] * flips[stored]
    c, s = np.cos(oblique), np.sin(oblique)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ linear
    affine[:3, 3] = [-20.0, 11.0, 5.0]
    return affine


def ramp(affine, shape, direction):
    """An image whose value is the distance in mm along a world direction."""
    indices = np.indices(shape).reshape(3, -1).T
    return (voxel_to_world(affine, indices) @ direction).reshape(shape)


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    voxel=st.tuples(*[st.sampled_from([0.5, 0.75, 1.0, 2.0])] * 3),
    axis=st.integers(0, 2),
)
def test_axes_run_right_anterior_superior_in_mm(order, flips, voxel, axis):
    shape = tuple(int(np.ceil(44 / size)) for size in voxel)
    affine = affine_of(voxel, flips, order)
    centre = voxel_to_world(affine, (np.array(shape) - 1) / 2)
    image = ramp(affine, shape, np.eye(3)[axis]) - centre[0, axis]
    patch = cut_patches([image], affine, centre)[0, 0]
    count, spacing = GEOMETRY.shape[axis], GEOMETRY.spacing_mm[axis]
    expected = (np.arange(count) - (count - 1) / 2) * spacing
    profile = np.moveaxis(patch, axis, 0).reshape(count, -1)
    np.testing.assert_allclose(profile, expected[:, None].repeat(profile.shape[1], 1), atol=0.1)


def test_dark_ball_is_in_the_middle_with_its_size():
    affine = affine_of(oblique=np.deg2rad(20))
    shape = (60, 60, 20)
    centre_mm = voxel_to_world(affine, [[31.3, 28.6, 9.4]])
    world = voxel_to_world(affine, np.indices(shape).reshape(3, -1).T)
    distance = np.linalg.norm(world - centre_mm, axis=1).reshape(shape)
    image = np.where(distance < 4, 0.2, 1.0)
    patch = cut_patches([image], affine, centre_mm)[0, 0]
    dark = 1 - patch
    middle = tuple(slice(n // 2 - 1, n // 2 + 1) for n in GEOMETRY.shape)
    assert patch[middle].max() < 0.3
    centroid = [
        np.average(np.arange(n), weights=dark.sum(tuple({0, 1, 2} - {a})))
        for a, n in enumerate(patch.shape)
    ]
    np.testing.assert_allclose(centroid, (np.array(patch.shape) - 1) / 2, atol=0.3)
    volume_mm3 = dark.sum() / 0.8 * np.prod(GEOMETRY.spacing_mm)
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.15)


def test_fine_voxels_are_averaged_not_skipped():
    rng = np.random.default_rng(0)
    affine = np.diag([0.25, 0.25, 0.5, 1.0])
    noise = rng.normal(size=(130, 130, 70)).astype(np.float32)
    patch = cut_patches([noise], affine, voxel_to_world(affine, [[65, 65, 35]]))
    assert patch.std() < 0.3  # 3 x 3 x 4 voxels in each patch voxel


def test_edges_are_continued_and_far_points_do_not_fail():
    affine = affine_of()
    image = np.full((12, 12, 4), 7, dtype=np.int16)
    points = voxel_to_world(affine, [[0, 0, 0], [11, 11, 3], [500, -500, 90]])
    patches = cut_patches([image, image], affine, points)
    assert patches.shape == (3, 2, *GEOMETRY.shape)
    assert patches.dtype == np.float32
    np.testing.assert_allclose(patches, 7, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 3)])
def test_tiny_images(shape):
    patches = cut_patches([np.ones(shape)], np.eye(4), np.zeros((1, 3)))
    np.testing.assert_allclose(patches, 1, rtol=1e-5)


def test_no_candidates_and_no_finite_values():
    affine = np.eye(4)
    image = np.full((8, 8, 8), np.nan, dtype=np.float32)
    none = classifier_patches(image, image, image > 0, affine, np.zeros((0, 3)))
    assert none.shape == (0, 2, *GEOMETRY.shape)
    one = classifier_patches(image, image, image > 0, affine, np.zeros((1, 3)))
    assert np.isfinite(one).all()


def test_volumes_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        cut_patches([np.ones((2, 2, 2)), np.ones((3, 2, 2))], np.eye(4), np.zeros((1, 3)))


def test_patches_follow_the_points_of_a_reoriented_image():
    rng = np.random.default_rng(1)
    affine = affine_of((0.7, 0.9, 2.5), oblique=0.3)
    image = nib.Nifti1Image(rng.normal(size=(50, 48, 18)).astype(np.float32), affine)
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    points = voxel_to_world(affine, [[20.2, 25.1, 9.0], [30, 20, 7.5]])
    original = cut_patches([image.get_fdata()], image.affine, points)
    again = cut_patches([turned.get_fdata()], turned.affine, points)
    np.testing.assert_allclose(original, again, atol=1e-4)


def test_scale_and_shading_do_not_matter():
    rng = np.random.default_rng(2)
    mask = np.ones((1, *GEOMETRY.shape))
    mask[:, :8] = 0
    image = rng.uniform(0.5, 1.5, (1, *GEOMETRY.shape))
    image[:, :8] = 50.0  # scalp
    once = normalise_patches(image, None, mask, GEOMETRY)
    scaled = normalise_patches(image * 4000, None, mask, GEOMETRY)
    np.testing.assert_allclose(once, scaled, rtol=1e-4)
    assert np.median(once[0, 0][mask[0] > 0]) == pytest.approx(1, abs=0.01)
    assert (once[0, 0, :3] == 0).all()  # beyond the rim
    assert once.max() <= 3


def test_phase_is_clipped_to_pi_and_keeps_its_sign():
    ones = np.ones((2, *GEOMETRY.shape))
    phase = np.stack([9 * ones[0], -0.4 * ones[0]])
    patches = normalise_patches(ones, phase, ones, GEOMETRY)
    np.testing.assert_allclose(patches[0, 1], np.pi, rtol=1e-6)
    np.testing.assert_allclose(patches[1, 1], -0.4, rtol=1e-6)


def test_margin_surrounds_the_same_patch():
    rng = np.random.default_rng(3)
    affine = affine_of()
    image = rng.normal(size=(60, 60, 20)).astype(np.float32)
    points = voxel_to_world(affine, [[30, 30, 10]])
    wide = cut_patches([image], affine, points, GEOMETRY.with_margin((2, 2, 1)))
    x, y, z = GEOMETRY.shape
    assert wide.shape == (1, 1, x + 4, y + 4, z + 2)
    narrow = cut_patches([image], affine, points)
    np.testing.assert_allclose(wide[:, :, 2:-2, 2:-2, 1:-1], narrow, atol=1e-5)


def test_world_round_trip_used_by_patches():
    affine = affine_of(oblique=0.2)
    points = np.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(voxel_to_world(affine, world_to_voxel(affine, points)), points)
