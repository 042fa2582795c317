import numpy as np
import pytest

from cmb_bids.errors import IOFailure
from cmb_bids.phase_scaling import wrap
from cmb_bids.unwrapping import consistent_echoes, integrate_differences, laplacian, romeo


@pytest.fixture(scope="module")
def ramp():
    x, y, z = np.indices((30, 26, 14))
    return (0.8 * x - 0.4 * y + 0.5 * z - 3).astype(np.float32)


def test_romeo_unwraps_a_ramp_to_a_ramp(ramp):
    magnitude = np.ones_like(ramp)
    mask = np.ones(ramp.shape, dtype=bool)
    (unwrapped,) = romeo([wrap(ramp)], [magnitude], [0.02], mask)
    turns = (unwrapped - ramp) / (2 * np.pi)
    assert np.allclose(turns, np.round(turns.mean()), atol=1e-4)


def test_romeo_takes_each_echo_by_itself_and_leaves_the_outside(ramp):
    coil = 2.9  # does not grow with echo time
    truth = [coil + ramp * 0.5, coil + ramp]
    mask = np.zeros(ramp.shape, dtype=bool)
    mask[3:-3, 3:-3, 2:-2] = True
    found = romeo([wrap(t) for t in truth], [np.ones_like(ramp)] * 2, [0.01, 0.02], mask)
    for unwrapped, t in zip(found, truth, strict=True):
        turns = ((unwrapped - t) / (2 * np.pi))[mask]
        assert np.allclose(turns, np.round(np.median(turns)), atol=1e-4)
        assert (unwrapped[~mask] == 0).all()


def test_phase_within_a_turn_is_not_rescaled():
    phase = np.linspace(-1, 1, 16**3).reshape(16, 16, 16).astype(np.float32)
    (same,) = romeo([phase], [np.ones_like(phase)], [0.02], np.ones(phase.shape, bool))
    assert np.allclose(same, phase, atol=1e-5)


def test_romeo_that_cannot_run_says_so(ramp, monkeypatch):
    monkeypatch.setattr("cmb_bids.unwrapping._niimath", lambda: "/nowhere/niimath")
    with pytest.raises(IOFailure, match="laplacian"):
        romeo([ramp], [np.ones_like(ramp)], [0.02], np.ones(ramp.shape, bool))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0.5, 0.5, 2.0)])
def test_laplacian_unwraps_a_ramp_to_a_ramp(ramp, sizes):
    mask = np.ones(ramp.shape, dtype=bool)
    unwrapped = laplacian(wrap(ramp), mask, np.array(sizes))
    assert np.allclose(unwrapped - unwrapped.mean(), ramp - ramp.mean(), atol=1e-3)
    assert np.abs(wrap(unwrapped - ramp)).max() < 1e-2


def test_integration_of_differences_is_exact():
    image = np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)
    differences = [np.diff(image, axis=a) for a in range(3)]
    found = integrate_differences(differences, image.shape, np.array([0.5, 1.0, 3.0]))
    assert np.allclose(found, image - image.mean(), atol=1e-4)


def test_one_voxel_and_an_empty_mask():
    one = np.ones((1, 1, 1), dtype=np.float32)
    assert laplacian(one, one > 0, np.ones(3)) == pytest.approx(1)
    assert (laplacian(np.ones((4, 4, 4)), np.zeros((4, 4, 4), bool), np.ones(3)) == 0).all()


def test_later_echoes_follow_earlier_ones():
    rate = np.linspace(-4, 4, 50).reshape(50, 1, 1)
    echoes = [wrap(rate * t) for t in (0.5, 1.0, 2.0)]
    agreed = consistent_echoes(echoes, [0.5, 1.0, 2.0])
    assert np.allclose(agreed[2], rate * 2, atol=1e-5)


def test_a_far_echo_is_left_alone():
    echoes = [np.full((1, 1, 1), 1.0), np.full((1, 1, 1), -1.0)]
    assert consistent_echoes(echoes, [0.002, 0.02])[1] == -1.0
