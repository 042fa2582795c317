"""What training cases are made of: storage, masks, classical detectors, and the ranking's fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cmb_bids.candidate_ranking import Ranking
from cmb_bids.simulate.scan import SimulatedScan
from cmb_bids.training.cases import laplacian_of_gaussian
from cmb_bids.training.processed import cut_short, interpolated
from cmb_bids.training.ranking import (
    cross_validated_scores,
    fit_ranking,
    on_lesion,
    recall_by_size,
    recall_of,
    training_numbers,
)
from cmb_bids.training.recipes import draw_recipe
from cmb_bids.training.shards import split_at


@pytest.fixture
def stored():
    """A block of signal with a slow phase, on a grid of .8 x .8 x 3 mm."""
    brain = np.zeros((40, 36, 20), bool)
    brain[8:30, 8:28, 4:16] = True
    x = np.arange(40)[:, None, None]
    magnitude = (1 + brain).astype(np.float32)
    phase = (0.4 * np.sin(x / 4.0) + np.zeros(brain.shape)).astype(np.float32)
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    return SimulatedScan([magnitude], [phase], (0.02,), affine, brain, brain, brain, None, 0, None)


def test_zero_filling_keeps_places_and_values(stored):
    finer = interpolated(stored, (1.5, 1.5, 2.0))
    assert finer.brain_mask.shape == (60, 54, 40)
    np.testing.assert_allclose(np.diag(finer.affine)[:3], [0.8 / 1.5, 0.8 / 1.5, 1.5])
    np.testing.assert_allclose(
        finer.magnitudes[0][::3, ::3, ::2], stored.magnitudes[0][::2, ::2], atol=1e-4
    )
    np.testing.assert_allclose(
        finer.phases[0][::3, ::3, ::2], stored.phases[0][::2, ::2], atol=1e-4
    )
    assert finer.brain_mask.mean() == pytest.approx(stored.brain_mask.mean(), abs=0.01)


def test_nothing_is_done_where_nothing_is_finer(stored):
    assert interpolated(stored, (1.0, 1.0, 1.0)) is stored


def test_a_slab_that_ends_short_keeps_its_place_and_only_its_own_lesions(stored):
    places = [[10.0, 10.0, 3.0 * slice_] for slice_ in (0, 4, 5, 13, 14, 19)]
    truth = pd.DataFrame(places, columns=["x", "y", "z"])
    scan = dataclasses.replace(stored, truth=truth)
    short = cut_short(scan, (0.25, 0.3))
    assert short.brain_mask.shape == (40, 36, 9)
    assert short.magnitudes[0].shape == short.phases[0].shape == (40, 36, 9)
    np.testing.assert_array_equal(short.magnitudes[0], stored.magnitudes[0][:, :, 5:14])
    np.testing.assert_allclose(short.affine @ [0, 0, 0, 1], [0, 0, 15, 1])
    assert list(short.truth["z"]) == [15.0, 39.0]
    assert cut_short(scan, (0.0, 0.0)) is scan


def test_held_out_scans_are_processed_as_the_pipeline_does_by_default():
    recipes = [draw_recipe(np.random.default_rng([5, i]), training=False)[1] for i in range(60)]
    plain = [r for r in recipes if r.homodyne_half_height_per_mm == 0.0625]
    assert 0.5 < len(plain) / len(recipes) < 0.95
    assert all(r.zero_filling == (1.0, 1.0, 1.0) and r.swi_power == 4 for r in recipes)
    assert all(r.uncovered == (0.0, 0.0) for r in recipes)


def test_training_scans_vary():
    drawn = [draw_recipe(np.random.default_rng([5, i]), training=True) for i in range(60)]
    assert {r.highpass for _, r in drawn} == {"homodyne", "gaussian"}
    assert len({r.swi_power for _, r in drawn}) > 1
    assert any(r.zero_filling != (1.0, 1.0, 1.0) for _, r in drawn)
    assert any(s.microbleeds == 0 for s, _ in drawn)
    assert {s.elliptical_shutter for s, _ in drawn} == {True, False}
    assert min(s.partial_fourier for s, _ in drawn) < 0.9
    angles = {s.protocol.flip_angle_deg for s, _ in drawn}
    assert len(angles) > 40
    sliced = [s.protocol.slice_gap for s, _ in drawn if s.protocol.slice_gap is not None]
    assert 0 < len(sliced) < 30
    assert 0 < min(sliced) < max(sliced) < 0.5
    assert 0 < sum(r.uncovered != (0.0, 0.0) for _, r in drawn) < 30
    pieces = [s.short_veins for s, _ in drawn]
    assert min(pieces) == 0
    assert max(pieces) > 50
    assert len({dataclasses.astuple(r) for _, r in drawn}) == 60


def test_laplacian_of_gaussian_is_largest_on_a_dark_ball():
    shape, sizes = (40, 40, 20), np.array([0.8, 0.8, 2.0])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm((grid - [20, 20, 10]) * sizes, axis=-1)
    image = np.where(distance < 2.0, 0.4, 1.0)
    affine = np.diag([*sizes, 1.0])
    points = np.array([[16.0, 16.0, 20.0], [8.0, 8.0, 10.0], [16.0, 16.0, 30.0]])
    ball, tissue, beside = laplacian_of_gaussian(image, np.ones(shape, bool), affine, points)
    assert ball > 0.1
    assert ball > 5 * max(tissue, beside)


def drawn_places(seed):
    """Places of which those on a lesion have the larger feature ``a``."""
    rng = np.random.default_rng(seed)
    lesions = pd.DataFrame(rng.uniform(0, 100, (6, 3)), columns=["x", "y", "z"])
    lesions["name"], lesions["diameter_mm"] = "microbleed", rng.uniform(1, 4, 6)
    points = np.concatenate([lesions[["x", "y", "z"]].to_numpy(), rng.uniform(0, 100, (300, 3))])
    places = pd.DataFrame(points, columns=["x", "y", "z"])
    places["contrast"], places["radius_mm"] = "magnitude", 2.0
    hits = on_lesion(places, lesions)
    places["a"] = hits + rng.normal(0, 0.2, len(places))
    places["b"] = rng.normal(0, 1, len(places))
    return places, lesions, hits


def test_the_fit_finds_what_tells_lesions():
    places, lesions, hits = zip(*(drawn_places(seed) for seed in range(4)), strict=True)
    ranking = fit_ranking(places, hits, seed=0)
    assert ranking.features == ("a", "b")
    assert isinstance(ranking, Ranking)
    assert recall_of(places[0], lesions[0], ranking.score(places[0]), 20).all()
    assert not recall_of(places[0], lesions[0], -ranking.score(places[0]), 20).all()
    scores = cross_validated_scores(
        places,
        lambda chosen: fit_ranking([places[i] for i in chosen], [hits[i] for i in chosen], 0),
    )
    rows = recall_by_size(places, lesions, scores)
    assert rows[0]["microbleeds"] == 24
    assert rows[0]["kept"] == rows[0]["screened"] == rows[0]["proposed"] == 1.0


def test_the_ranking_learns_from_training_cases_alone():
    numbers = training_numbers(170)
    assert len(set(numbers)) == 170
    assert {split_at(number) for number in numbers} == {"train"}
