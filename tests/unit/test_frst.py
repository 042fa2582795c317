"""Radial symmetry: drawn balls are found where they are, whatever the grid; nothing else is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_bids.frst import (
    draw_ball,
    fast_radial_symmetry,
    gradient_per_mm,
    votes_of_ideal_ball,
)

RADII = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
GRIDS = [(1.0, 1.0, 1.0), (0.5, 0.5, 2.0), (0.8, 0.8, 3.0), (0.4, 0.4, 1.2)]


def dark_ball(sizes, radius, centre_mm=(15.0, 15.0, 15.0), noise=0.01, extent=30.0, seed=0):
    """A dark ball of contrast 0.5 in tissue of 1, with a little noise; and its centre in voxels."""
    shape = tuple(round(extent / size) for size in sizes)
    centre = [place / size for place, size in zip(centre_mm, sizes, strict=True)]
    image = 1 - 0.5 * draw_ball(shape, centre, radius, sizes)
    image += np.random.default_rng(seed).normal(0, noise, shape).astype(np.float32)
    return image, np.array(centre)


def peak_of(result):
    return np.unravel_index(np.argmax(result.peak), result.peak.shape)


@pytest.mark.parametrize("sizes", GRIDS)
@pytest.mark.parametrize("radius", [1.5, 2.5, 4.0])
def test_ball_is_found_at_its_place_and_radius(sizes, radius):
    image, centre = dark_ball(sizes, radius)
    result = fast_radial_symmetry(image, sizes, RADII)
    found = peak_of(result)
    away = np.linalg.norm((np.array(found) - centre) * sizes)
    assert away < 1.0 + 0.5 * max(sizes)
    # Thick slices hide the size across them, and small radii are cheaper to fill.
    assert abs(result.radius_mm[found] - radius) <= max(1.0, 0.5 * max(sizes))
    assert result.peak[found] > 0.3


def test_bright_ball_and_dark_tube_are_weaker_than_dark_ball():
    image, _ = dark_ball((1, 1, 1), 2.5)
    ball = fast_radial_symmetry(image, (1, 1, 1), (2.5,)).peak.max()
    bright = fast_radial_symmetry(2 - image, (1, 1, 1), (2.5,)).peak[13:18, 13:18, 13:18].max()
    tube = image.copy()
    tube[:] = image[:, :, 15:16]
    along = fast_radial_symmetry(tube, (1, 1, 1), (2.5,)).peak[:, :, 15].max()
    assert bright < 0.05 * ball
    assert along < 0.5 * ball


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_flipping_the_image_flips_the_result(flips):
    image, _ = dark_ball((1, 1, 1.5), 2.0, centre_mm=(9, 14, 17))
    axes = tuple(axis for axis, flip in enumerate(flips) if flip)
    plain = fast_radial_symmetry(image, (1, 1, 1.5), RADII)
    flipped = fast_radial_symmetry(np.flip(image, axes), (1, 1, 1.5), RADII)
    np.testing.assert_allclose(np.flip(flipped.peak, axes), plain.peak, atol=1e-4)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_transposing_the_image_transposes_the_result(order):
    sizes = (0.8, 1.0, 2.0)
    image, _ = dark_ball(sizes, 2.0, centre_mm=(9, 14, 17))
    plain = fast_radial_symmetry(image, sizes, RADII)
    turned = fast_radial_symmetry(image.transpose(order), [sizes[axis] for axis in order], RADII)
    np.testing.assert_allclose(turned.strength, plain.strength.transpose(order), atol=1e-4)


@given(gain=st.floats(0.1, 1000), offset=st.floats(-100, 100))
@settings(max_examples=15, deadline=None)
def test_brightness_and_contrast_do_not_matter(gain, offset):
    image, _ = dark_ball((1, 1, 2), 2.0, noise=0.02)
    plain = fast_radial_symmetry(image, (1, 1, 2), (2.0,))
    scaled = fast_radial_symmetry(image.astype(float) * gain + offset, (1, 1, 2), (2.0,))
    assert peak_of(scaled) == peak_of(plain)
    assert scaled.peak.max() == pytest.approx(plain.peak.max(), rel=0.05)


def test_threads_do_not_change_the_result():
    image, _ = dark_ball((0.8, 0.8, 3.0), 2.0)
    one = fast_radial_symmetry(image, (0.8, 0.8, 3.0), RADII, threads=1)
    three = fast_radial_symmetry(image, (0.8, 0.8, 3.0), RADII, threads=3)
    for first, second in zip(one, three, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("value", [0, 1, -7.5, 1e6])
def test_constant_image_has_no_symmetry(value):
    result = fast_radial_symmetry(np.full((12, 10, 8), value), (1, 1, 1), RADII)
    assert not result.strength.any()
    assert not result.radius_mm.any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 9), (0, 4, 4)])
def test_tiny_images_are_no_fault(shape):
    assert fast_radial_symmetry(np.ones(shape), (1, 1, 3), RADII).peak.shape == shape


def test_empty_mask_lets_nobody_vote():
    image, _ = dark_ball((1, 1, 1), 2.0)
    assert not fast_radial_symmetry(image, (1, 1, 1), RADII, np.zeros(image.shape, bool)).peak.any()


def test_values_that_are_not_finite_do_not_spread():
    image, centre = dark_ball((1, 1, 1), 2.5)
    image[2, 2, 2], image[28, 3, 3] = np.nan, np.inf
    result = fast_radial_symmetry(image, (1, 1, 1), RADII)
    assert np.isfinite(result.peak).all()
    assert np.linalg.norm(np.array(peak_of(result)) - centre) < 1.5
    assert not fast_radial_symmetry(np.full((5, 5, 5), np.nan), (1, 1, 1), RADII).peak.any()


def test_integers_give_what_floats_give():
    image, _ = dark_ball((1, 1, 1), 2.5)
    whole = (image * 1000).astype(np.int16)
    stored = fast_radial_symmetry(whole, (1, 1, 1), RADII)
    real = fast_radial_symmetry(whole.astype(np.float32), (1, 1, 1), RADII)
    np.testing.assert_array_equal(stored.peak, real.peak)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="dimensions"):
        fast_radial_symmetry(np.ones((4, 4)), (1, 1), RADII)


def test_gradient_is_per_mm():
    ramp = np.arange(20, dtype=np.float32)[None, None, :] * np.ones((6, 6, 1), np.float32)
    x, y, z = gradient_per_mm(ramp, (1, 1, 2.0), 0.5)
    assert np.allclose(x, 0)
    assert np.allclose(y, 0)
    assert z[3, 3, 10] == pytest.approx(0.5)


def test_drawn_ball_has_its_volume():
    sizes = (0.5, 0.5, 2.0)
    ball = draw_ball((40, 40, 12), (19.7, 20.2, 5.6), 4.0, sizes)
    assert ball.sum() * np.prod(sizes) == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.02)


@pytest.mark.parametrize("sizes", GRIDS)
def test_calibration_is_what_a_noise_free_ball_scores(sizes):
    image, _ = dark_ball(
        sizes, 3.0, [round(15 / size) * size for size in sizes], noise=0.0, extent=31.0
    )
    result = fast_radial_symmetry(image, sizes, (3.0,))
    assert 0.7 < result.peak.max() < 6
    assert votes_of_ideal_ball(3.0, tuple(float(size) for size in sizes), 0.6, 0.25) > 1
