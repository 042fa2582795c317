import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmb_bids.swi import (
    combine_magnitudes,
    combine_phases,
    minimum_projection,
    phase_mask,
    reference_echo_time,
    weight_by_phase,
)


@given(st.floats(-10, 10))
def test_mask_falls_from_one_to_zero_over_paramagnetic_phase_only(phase):
    (value,) = phase_mask(np.array([phase]))
    expected = 1 if phase <= 0 else max(0, 1 - phase / np.pi)
    assert value == pytest.approx(expected, abs=1e-6)


def test_power_four_times_magnitude():
    swi = weight_by_phase(np.full((1, 1, 3), 80.0), np.array([[[-1.0, np.pi / 2, np.pi]]]), 4)
    assert np.allclose(swi, [[[80, 80 / 16, 0]]], atol=1e-4)


@pytest.mark.parametrize(("size", "axis"), [(2.0, 2), (3.0, 0), (0.5, 1), (20.0, 2)])
def test_projection_is_as_thick_as_asked(size, axis):
    image = np.full((40, 40, 40), 9.0)
    dark = [20, 20, 20]
    image[tuple(dark)] = 1
    low = minimum_projection(image, np.ones(image.shape, bool), 8.0, size, axis)
    assert low.shape == image.shape
    assert (low == 1).sum() == max(1, round(8 / size))
    line = [20, 20, 20]
    line[axis] = slice(None)
    assert (low == 1).sum() == (low[tuple(line)] == 1).sum()


def test_air_takes_no_part_in_the_projection():
    image = np.full((6, 6, 10), 50.0)
    mask = np.zeros(image.shape, dtype=bool)
    mask[1:5, 1:5, 2:8] = True
    image[~mask] = 0.5
    low = minimum_projection(image, mask, 8.0, 2.0, 2)
    assert (low[mask] == 50).all()
    assert (low[~mask] == 0.5).all()


def test_reference_is_the_longest_echo_up_to_customary_contrast():
    assert reference_echo_time([0.0094, 0.02], 3.0) == 0.02
    assert reference_echo_time([0.04]) == 0.04
    assert reference_echo_time([0.005, 0.02, 0.04], 3.0) == pytest.approx(0.025)
    assert reference_echo_time([0.005, 0.02, 0.04], 1.5) == 0.04
    assert reference_echo_time([0.005, 0.01, 0.02], 7.0) == pytest.approx(0.075 / 7)
    assert reference_echo_time([0.03, 0.04], 7.0) == 0.03


def test_contrast_rule_is_the_best_linear_one_for_a_faint_lesion():
    times, signals = [0.0094, 0.02], []
    rng = np.random.default_rng(0)
    shape = (60, 60, 20)
    lesion = np.zeros(shape, dtype=bool)
    lesion[::3] = True
    for time in times:
        r2 = 20 + 4.0 * lesion
        signals.append((100 * np.exp(-r2 * time) + rng.normal(0, 4, shape)).astype(np.float32))
    mask = np.ones(shape, bool)

    def contrast_to_noise(image):
        return (image[~lesion].mean() - image[lesion].mean()) / image[~lesion].std()

    combined, weights = combine_magnitudes(signals, times, mask)
    assert weights[1] > weights[0]
    assert sum(weights) == pytest.approx(1)
    assert contrast_to_noise(combined) > contrast_to_noise(signals[0])
    assert contrast_to_noise(combined) > contrast_to_noise(signals[1])
    for other in ("sum-of-squares", "last"):
        rest, _ = combine_magnitudes(signals, times, mask, other)
        assert contrast_to_noise(combined) > contrast_to_noise(rest)


def test_unknown_echo_times_give_the_root_mean_square():
    combined, _ = combine_magnitudes(
        [np.full((2, 2, 2), 3.0), np.full((2, 2, 2), 4.0)], None, np.ones((2, 2, 2), bool)
    )
    assert np.allclose(combined, np.sqrt(12.5))


def test_phase_is_scaled_to_the_reference_and_lost_echoes_do_not_count():
    rate = 60.0
    phases = [np.full((2, 1, 1), rate * t) for t in (0.005, 0.01, 0.02)]
    magnitudes = [np.full((2, 1, 1), m) for m in (100.0, 90.0, 70.0)]
    phases[2][1], magnitudes[2][1] = 3.0, 0.0
    combined = combine_phases(phases, magnitudes, [0.005, 0.01, 0.02], 0.02)
    assert np.allclose(combined, rate * 0.02)
    nothing = combine_phases(phases, [0 * m for m in magnitudes], [0.005, 0.01, 0.02], 0.02)
    assert (nothing == 0).all()


def test_combined_phase_is_less_noisy_than_its_last_echo():
    rng = np.random.default_rng(0)
    phases = [rng.normal(20 * t, 0.05, (40, 40, 10)) for t in (0.0094, 0.02)]
    combined = combine_phases(phases, [np.ones((40, 40, 10))] * 2, [0.0094, 0.02], 0.02)
    assert combined.mean() == pytest.approx(0.4, abs=0.01)
    assert combined.std() < 0.95 * phases[1].std()
