"""Features of proposed places: a drawn dipole, ball and tube are told apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cmb_bids.candidate_ranking import MAGNITUDE_ALONE, WITH_PHASE, Ranking, load_ranking
from cmb_bids.place_features import (
    PhaseAround,
    _depth_features,
    _phase_features,
    curvatures,
    dipole_match,
    dipole_pattern,
)
from cmb_bids.volumes import b0_direction

GRIDS = [(0.5, 1.0, 2.0), (0.8, 0.8, 3.0), (1.0, 1.0, 1.0)]
SHAPE = (41, 39, 21)


def dipole(sizes, source, field, amplitude):
    """Phase of a small source on a grid, averaged over voxels, zero within .9 mm."""
    offsets = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    pattern = dipole_pattern(offsets, np.array(source), np.array(sizes), np.array(field), 0.9)
    return amplitude * pattern.reshape(SHAPE)


def turned(degrees):
    angle = np.deg2rad(degrees)
    return np.array([0.0, np.sin(angle), np.cos(angle)])


@pytest.mark.parametrize("sizes", GRIDS)
@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("amplitude", [0.3, -0.3])
def test_a_dipole_is_recognised_with_its_strength_and_sign(sizes, degrees, amplitude):
    source = np.array([20.0, 19.0, 10.0])
    x = np.arange(SHAPE[0])[:, None, None]
    background = 0.3 + 0.01 * x  # what is left of the field of the head
    phase = dipole(sizes, source, turned(degrees), amplitude) + background
    around = PhaseAround(phase, np.ones(SHAPE, bool), np.array(sizes), turned(degrees))
    found = dipole_match(around, source[None])
    assert abs(found["correlation"][0]) > 0.9
    assert np.sign(found["correlation"][0]) == np.sign(amplitude)
    assert found["amplitude"][0] == pytest.approx(amplitude, rel=0.15)


def test_a_source_between_slices_is_recognised():
    sizes, source = (0.8, 0.8, 3.0), np.array([20.0, 19.0, 10.33])
    phase = dipole(sizes, source, turned(0), 1.0)
    around = PhaseAround(phase, np.ones(SHAPE, bool), np.array(sizes), turned(0))
    assert dipole_match(around, source[None])["correlation"][0] > 0.9


def test_noise_slopes_and_empty_masks_are_no_dipoles():
    rng = np.random.default_rng(0)
    sizes, place = np.array([0.8, 0.8, 2.0]), np.array([[20.0, 19.0, 10.0], [0.0, 0.0, 0.0]])
    noise = rng.normal(0, 0.1, SHAPE)
    inside = np.ones(SHAPE, bool)
    found = dipole_match(PhaseAround(noise, inside, sizes, turned(0)), place)
    assert (found["correlation"].abs() < 0.4).all()
    empty = dipole_match(PhaseAround(noise, ~inside, sizes, turned(0)), place)
    assert np.isfinite(empty.to_numpy()).all()
    assert (empty["correlation"].abs() < 1e-3).all()


def test_the_field_follows_the_affine():
    affine = np.diag([-0.8, 0.8, 2.0, 1.0])
    np.testing.assert_allclose(b0_direction(affine), [0, 0, 1])
    sagittal = np.zeros((4, 4))
    sagittal[0, 2] = sagittal[1, 0] = sagittal[2, 1] = sagittal[3, 3] = 1
    np.testing.assert_allclose(b0_direction(sagittal), [0, 1, 0])


def test_ball_and_tube_differ_in_their_least_curvature():
    sizes = np.array([0.8, 0.8, 2.0])
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) - [20, 19, 10]
    position = grid * sizes
    ball = 1 - np.exp(-(position**2).sum(axis=-1) / (2 * 1.5**2))
    tube = 1 - np.exp(-(position[..., 1:] ** 2).sum(axis=-1) / (2 * 1.5**2))
    place = np.array([[20.0, 19.0, 10.0]])
    (of_ball,) = curvatures(ball, place, sizes)
    (of_tube,) = curvatures(tube, place, sizes)
    assert of_ball[0] / of_ball[2] > 0.5
    assert abs(of_tube[0]) / of_tube[2] < 0.05


@pytest.mark.parametrize("kind", [WITH_PHASE, MAGNITUDE_ALONE])
def test_the_shipped_ranking_prefers_a_deep_enclosed_ball(kind):
    ranking = load_ranking(kind)
    ordinary = dict(zip(ranking.features, ranking.mean, strict=True))
    lesion = dict(ordinary)
    for name in ("depth_magnitude", "enclosed_magnitude", "symmetry_magnitude"):
        lesion[name] += 2 * ranking.scale[ranking.features.index(name)]

    plain, better = ranking.score(pd.DataFrame([ordinary, lesion]))
    assert better > plain


def test_a_ranking_survives_being_stored():
    ranking = load_ranking(WITH_PHASE)
    again = Ranking.from_dict(ranking.as_dict())
    assert again.features == ranking.features
    np.testing.assert_array_equal(again.layers[0][0], ranking.layers[0][0])


@pytest.mark.parametrize("sizes", GRIDS)
def test_a_vessel_has_a_dark_line_and_a_ball_none(sizes):
    """Through a vessel goes a line that stays dark; a ball encloses its centre."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) - [20, 19, 10]
    position = grid * np.array(sizes)
    rng = np.random.default_rng(0)
    images = {
        "ball": 1 - 0.6 * np.exp(-(position**2).sum(axis=-1) / (2 * 1.2**2)),
        "tube": 1 - 0.6 * np.exp(-(position[..., 1:] ** 2).sum(axis=-1) / (2 * 1.2**2)),
    }
    brain = np.ones(SHAPE, bool)
    found = {}
    for name, image in images.items():
        noisy = (image + rng.normal(0, 0.01, SHAPE)).astype(np.float32)
        features = _depth_features("x", noisy, np.array([[20.0, 19, 10]]), np.array(sizes), brain)
        found[name] = {key: float(value[0]) for key, value in features.items()}
    for distance in (3, 4.5):
        ball, tube = (found[name][f"line_{distance}mm_x"] for name in ("ball", "tube"))
        assert tube < ball - 1
        assert found["tube"][f"depth_{distance}mm_x"] > tube + 0.5
    assert found["ball"]["enclosed_x"] > found["tube"]["enclosed_x"]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_phase_of_a_dipole_is_opposite_along_and_across_the_field(sign):
    sizes, source = (0.8, 0.8, 2.0), np.array([20.0, 19.0, 10.0])
    phase = dipole(sizes, source, turned(0), 0.8 * sign)
    around = PhaseAround(phase, np.ones(SHAPE, bool), np.array(sizes), turned(0))
    found = {key: float(v[0]) for key, v in _phase_features(around, source[None]).items()}
    assert sign * found["phase_pole_1"] > 0
    assert sign * found["phase_ring_2mm"] < 0


def test_a_vessel_across_the_field_has_phase_at_both_ends():
    y, z = (np.arange(n) - c for n, c in ((SHAPE[1], 19), (SHAPE[2], 10)))
    thin = np.exp(-((0.8 * y[:, None]) ** 2 + (2.0 * z[None, :]) ** 2) / 2)
    phase = np.broadcast_to(0.6 * thin, SHAPE)
    around = PhaseAround(phase, np.ones(SHAPE, bool), np.array((0.8, 0.8, 2.0)), turned(0))
    (line,) = _phase_features(around, np.array([[20.0, 19.0, 10.0]]))["phase_line_3.5mm"]
    assert line == pytest.approx(np.sin(0.6), abs=0.1)
