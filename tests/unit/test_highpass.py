import numpy as np
import pytest

from cmb_bids.highpass import (
    already_filtered,
    gaussian_highpass,
    hanning_window,
    homodyne,
    masked_gaussian,
    unwrap_isolated,
)


def wave(n, size, cycles_per_mm, amplitude=0.05):
    """A cosine of the even extension (no leakage), as phase (x, y, z)."""
    index = round(cycles_per_mm * 2 * n * size)
    line = amplitude * np.cos(np.pi * (np.arange(n) + 0.5) * index / n)
    return np.broadcast_to(line[:, None, None], (n, 16, 3)).astype(np.float32), index / (
        2 * n * size
    )


@pytest.mark.parametrize(("n", "size"), [(256, 1.0), (320, 0.5), (128, 0.9), (500, 0.25)])
def test_half_height_is_in_mm_whatever_the_matrix(n, size):
    phase, frequency = wave(n, size, 0.0625)
    high = homodyne(np.ones_like(phase), phase, np.array([size, size, 2.0]), axis=2)
    kept = high[:, 8, 1].std() / phase[:, 8, 1].std()
    expected = 1 - 0.5 * (1 + np.cos(0.5 * np.pi * frequency / 0.0625))
    assert kept == pytest.approx(expected, abs=0.01)
    assert kept == pytest.approx(0.5, abs=0.05)


def test_window_is_one_half_zero():
    window = hanning_window(2048, 0.5, 0.0625)
    frequency = np.arange(2048) / (2 * 2048 * 0.5)
    assert window[0] == 1
    assert window[np.argmin(abs(frequency - 0.0625))] == pytest.approx(0.5, abs=1e-3)
    assert (window[frequency >= 0.125] == 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_homodyne_removes_a_steep_slope_and_an_offset_up_to_the_edge(axis):
    shape = (40, 36, 32)
    x, y, z = np.indices(shape)
    phase = np.angle(np.exp(1j * (2.0 + 0.7 * x - 0.5 * y + 0.9 * z)))
    high = homodyne(np.ones(shape), phase, np.array([0.8, 0.8, 0.8]), axis)
    assert np.abs(high).max() < 0.02


def test_homodyne_keeps_the_sign_of_small_things():
    phase = np.zeros((64, 64, 5), dtype=np.float32)
    phase[31:33, 31:33, 2] = 1.0
    phase[15, 15, 2] = -1.0
    high = homodyne(np.ones_like(phase), phase + 3.0, np.array([0.8, 0.8, 3.0]), 2)
    assert high[31:33, 31:33, 2].min() > 0.8
    assert high[15, 15, 2] < -0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("polarity", [1, -1])
def test_the_wrap_of_a_few_voxels_goes_on_beyond_a_half_turn(axis, polarity):
    x, y = np.indices((24, 20))
    peak = 4.4 * np.exp(-(np.hypot(x - 11, y - 9) ** 2) / 14)
    true = np.repeat(polarity * peak[:, :, None], 3, axis=2).astype(np.float32)
    wrapped = np.angle(np.exp(1j * true)).astype(np.float32)
    assert (np.abs(wrapped - true) > 3).sum() >= 5 * 3
    found = unwrap_isolated(np.moveaxis(wrapped, 2, axis), axis)
    np.testing.assert_allclose(np.moveaxis(found, axis, 2), true, atol=1e-4)


def test_large_wraps_and_what_does_not_wrap_stay_as_they_are():
    half = np.full((20, 20, 2), 2.5, np.float32)
    half[10:] = -2.5
    np.testing.assert_array_equal(unwrap_isolated(half, 2), half)
    mild = np.full((20, 20, 2), -1.4, np.float32)
    mild[10, 10] = 2.0  # a vein in a dip
    np.testing.assert_array_equal(unwrap_isolated(mild, 2), mild)


def test_no_wraps_in_images_of_one_voxel_or_none_and_the_input_is_kept():
    for shape in ((1, 1, 1), (2, 5, 3), (0, 4, 4)):
        assert unwrap_isolated(np.full(shape, 3.0, np.float32), 2).shape == shape
    dot = np.full((9, 9, 1), -3.0, np.float32)
    dot[4, 4] = 3.0
    before = dot.copy()
    assert unwrap_isolated(dot, 2)[4, 4, 0] == pytest.approx(3.0 - 2 * np.pi)
    np.testing.assert_array_equal(dot, before)


def test_masked_gaussian_does_not_look_outside():
    image = np.full((20, 20, 20), 1e6)
    mask = np.zeros(image.shape, dtype=bool)
    mask[5:15, 5:15, 5:15] = True
    image[mask] = 3.0
    smooth = masked_gaussian(image, mask, np.ones(3), 4.0)
    assert np.allclose(smooth[mask], 3.0, atol=1e-4)


def test_gaussian_highpass_is_in_mm_and_flat_at_edges():
    mask = np.ones((40, 40, 20), dtype=bool)
    x, y, z = np.indices(mask.shape)
    phase = (0.3 * x - 0.2 * y + 5 + 0.6 * z).astype(np.float32)
    assert np.abs(gaussian_highpass(phase, mask, np.array([0.5, 0.5, 2.0]), 4.0)).max() < 1e-2
    phase[20, 20, 10] += 2
    high = gaussian_highpass(phase, mask, np.array([0.5, 0.5, 2.0]), 4.0)
    assert high[20, 20, 10] == pytest.approx(2, abs=0.05)


def test_filtered_phase_is_told_from_raw_phase():
    rng = np.random.default_rng(1)
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in (96, 96, 10)], indexing="ij")
    mask = x**2 + y**2 < 0.8
    magnitude = np.where(mask, 100.0, 1.0)
    raw = 6 * (x**2 - y**2) + 2 * y + 1
    phase = np.angle(magnitude * np.exp(1j * raw) + rng.normal(0, 3, x.shape))
    sizes = np.array([2.0, 2.0, 3.0])
    filtered = homodyne(magnitude, phase, sizes, 2)
    assert not already_filtered(magnitude, phase, mask, sizes, 2)
    assert already_filtered(magnitude, filtered, mask, sizes, 2)


def test_one_voxel():
    one = np.ones((1, 1, 1), dtype=np.float32)
    assert homodyne(one, one, np.ones(3), 2) == pytest.approx(0, abs=1e-6)
    assert gaussian_highpass(one, one > 0, np.ones(3), 4.0) == pytest.approx(0, abs=1e-6)
    assert not already_filtered(one, one, one > 0, np.ones(3), 2)
