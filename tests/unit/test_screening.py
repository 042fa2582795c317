"""Screening: a dark ball is a likelier lesion than a dark tube, whatever the ranking says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cmb_bids.candidates import (
    CandidateConfig,
    choose_candidates,
    propose_places,
    rank_places,
)
from cmb_bids.frst import draw_ball
from cmb_bids.resnet import CONTRAST_ONLY, load_model
from cmb_bids.screening import SCREENING_NETWORKS, lesion_log_odds, screening_network
from cmb_bids.training.fit import MARGIN_VOXELS, FitConfig
from cmb_bids.training.screening import (
    fit_screening,
    labels_of,
    learnt_from,
    read_places,
    save_screening,
)
from cmb_bids.volumes import read_json

SIZES = np.array([0.8, 0.8, 2.0])
SHAPE = (60, 60, 24)
AFFINE = np.diag([*SIZES, 1.0])
BALL, TUBE, TISSUE = np.array([[14.0, 24.0, 24.0], [34.0, 24.0, 24.0], [24.0, 10.0, 24.0]])


def drawn(seed=0):
    """Tissue with a dark ball of radius 1.6 mm, and a dark tube of radius 0.8 mm along y."""
    rng = np.random.default_rng(seed)
    image = 1 - 0.7 * draw_ball(SHAPE, BALL / SIZES, 1.6, SIZES)
    x, _, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij", sparse=True)
    away = np.hypot(x * SIZES[0] - TUBE[0], z * SIZES[2] - TUBE[2])
    image = image - 0.7 * np.clip(1.3 - away, 0, 1) + rng.normal(0, 0.03, SHAPE)
    mask = np.zeros(SHAPE, bool)
    mask[5:-5, 5:-5, 2:-2] = True
    return image.astype(np.float32), mask


def test_a_ball_is_likelier_than_a_tube_or_tissue():
    image, mask = drawn()
    points = np.stack([BALL, TUBE, TISSUE])
    ball, tube, tissue = lesion_log_odds(image, None, mask, AFFINE, points, np.zeros(3))
    assert ball > tube + 1
    assert ball > tissue + 1


def test_the_networks_fit_their_scans_and_are_small():
    for channels, name in SCREENING_NETWORKS.items():
        model = screening_network(channels)
        assert model.description.name == name
        assert len(model.description.channels) == channels
        assert model.path is not None
        assert model.path.stat().st_size < 500_000
        card = read_json(model.path.with_suffix(".json"))
        assert card["simulated"]
        assert card["training"]["command"].startswith("python -m cmb_bids.training.screening")
        assert card["recall_of_microbleeds_left_out"][0]["kept"] > 0.5
    assert lesion_log_odds(
        *drawn()[:1], None, drawn()[1], AFFINE, np.zeros((0, 3)), np.zeros(0)
    ).shape == (0,)


def test_the_likeliest_places_are_kept_and_neighbours_merged():
    image, mask = drawn()
    config = CandidateConfig(maxima_per_contrast=300, maximum_places=200, maximum_candidates=12)
    places = propose_places(image, mask, AFFINE, None, None, config)
    ranked = rank_places(places, config)
    assert len(ranked) <= 200
    assert (np.diff(ranked["score"]) <= 0).all()
    best = choose_candidates(places, image, mask, AFFINE, None, None, config)
    assert list(best["index"]) == list(range(1, 13))
    assert (np.diff(best["score"]) <= 0).all()
    points = best[["x", "y", "z"]].to_numpy()
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 99 * np.eye(len(points))
    assert apart.min() > config.merge_distance_mm
    assert np.linalg.norm(points[0] - BALL) < 1.0
    assert choose_candidates(places[:0], image, mask, AFFINE, None, None, config).empty


def test_places_take_the_class_of_the_lesion_they_are_on():
    lesions = pd.DataFrame(
        [("microbleed", 0.0, 0.0, 0.0, 2.0), ("calcification", 20.0, 0.0, 0.0, 8.0)],
        columns=["name", "x", "y", "z", "diameter_mm"],
    )
    places = pd.DataFrame({"x": [1.0, 3.0, 10.0, 16.5], "y": 0.0, "z": 0.0})
    assert list(labels_of(places, lesions)) == [0, -1, 2, 1]
    assert list(labels_of(places, lesions[:0])) == [2, 2, 2, 2]
    hard = learnt_from(np.concatenate([np.full(900, 2), [0, -1, 1]]))
    assert hard[:300].all()
    assert hard[300:900].sum() == 200
    assert list(hard[900:]) == [True, False, True]


def write_case(work, number, rng):
    """Places of which those on a lesion are dark in the middle, and of middling rank."""
    n, shape = 60, tuple(size + 2 * m for size, m in zip((16, 16, 12), MARGIN_VOXELS, strict=True))
    points = np.stack([10.0 * np.arange(n), np.zeros(n), np.zeros(n)], axis=1)
    labels = np.full(n, 2)
    labels[20:26], labels[26:28] = 0, 1
    patches = rng.normal(1, 0.05, (n, 1, *shape)).astype(np.float16)
    patches[20:26, :, 8:-8, 8:-8, 7:-7] = 0.2
    patches[26:28, :, 8:-8, 8:-8, 7:-7] = 2.0
    table = np.column_stack([points, -np.arange(n) / 10])
    stem = f"{number:05d}_magnitude_alone"
    np.savez(work / f"{stem}_places.npz", table=table, labels=labels, patches=patches)
    lesions = pd.DataFrame(points[20:28], columns=["x", "y", "z"])
    lesions["name"] = ["microbleed"] * 6 + ["calcification"] * 2
    lesions["diameter_mm"] = 2.0
    lesions.to_csv(work / f"{number:05d}_lesions.tsv", sep="\t", index=False)


def test_the_fit_puts_lesions_first(tmp_path):
    rng = np.random.default_rng(3)
    for number in range(7):
        write_case(tmp_path, number, rng)
    config = FitConfig(seed=1, steps=40, batch_size=32)
    network, recall, learnt = fit_screening(tmp_path, "magnitude_alone", range(7), config)
    assert network.description.name == SCREENING_NETWORKS[1]
    assert learnt == {"microbleed": 30, "calcification": 10, "other": 260}
    assert recall[0]["microbleeds"] == 12  # of the two cases that were left out
    assert recall[0]["kept"] == 1.0
    assert network.description.calibration.temperature != 1.0
    assert len(read_places(tmp_path, 3, "magnitude_alone").table) == 60
    save_screening(network, recall, {"data": {"seed": 1}}, tmp_path)
    card = read_json(tmp_path / f"{SCREENING_NETWORKS[1]}.json")
    assert card["data"] == {"seed": 1}
    assert card["recall_of_microbleeds_left_out"] == recall
    assert load_model(tmp_path / f"{SCREENING_NETWORKS[1]}.safetensors", CONTRAST_ONLY)


@pytest.mark.parametrize("highpass", [None, np.zeros(SHAPE, np.float32)])
def test_an_image_that_is_not_finite_gives_finite_odds(highpass):
    image, mask = drawn()
    image[20:30] = np.nan
    odds = lesion_log_odds(image, highpass, mask, AFFINE, np.stack([BALL, TUBE]), np.zeros(2))
    assert np.isfinite(odds).all()
