"""The network: weights survive the disk, files that are not weights are refused, order is kept."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cmb_bids.errors import BadData, InputMissing, UsageError
from cmb_bids.patches import PatchGeometry
from cmb_bids.resnet import (
    AS_IT_IS,
    CONTRAST_AND_PHASE,
    CONTRAST_ONLY,
    Calibration,
    MicrobleedNet,
    ModelDescription,
    calibrate,
    calibrate_scan,
    load_model,
    predict,
    predict_logits,
    save_model,
    shipped_path,
)


@pytest.fixture
def small():
    torch.manual_seed(0)
    description = ModelDescription(
        widths=(4, 6, 8),
        calibration=Calibration(1.7, (0.1, -0.2, 0.1), definite=0.6, possible=0.2),
        name="toy",
        version="3",
    )
    return MicrobleedNet(description).eval()


def patches_of(n, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, channels, *PatchGeometry().shape)).astype(np.float32)


def test_weights_and_description_survive_the_disk(small, tmp_path):
    path = tmp_path / "toy.safetensors"
    save_model(small, path, {"seed": 1})
    loaded = load_model(path)
    assert loaded.description == small.description
    assert len(loaded.sha256) == 64
    for key, value in small.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[key])


def test_each_patch_is_judged_alone_and_in_order(small, tmp_path):
    save_model(small, tmp_path / "toy.safetensors", {})
    model = load_model(tmp_path / "toy.safetensors")
    patches = patches_of(70)
    together = predict(model, patches, threads=1)
    alone = np.concatenate([predict(model, patches[i : i + 1]) for i in (0, 31, 32, 69)])
    assert together.shape == (70, 3)
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(together[[0, 31, 32, 69]], alone, atol=1e-5)
    np.testing.assert_array_equal(together, predict(model, patches, threads=1))


def test_no_patches(small, tmp_path):
    save_model(small, tmp_path / "toy.safetensors", {})
    assert predict(load_model(tmp_path / "toy.safetensors"), patches_of(0)).shape == (0, 3)


def test_calibration_is_temperature_then_bias():
    logits = np.array([[2.0, 0.0, -1.0]])
    plain = calibrate(logits, Calibration())
    np.testing.assert_allclose(plain, np.exp(logits) / np.exp(logits).sum())
    soft = calibrate(logits, Calibration(temperature=100.0))
    assert soft.max() - soft.min() < 0.02
    weighted = Calibration(score_weights=(1.0, 0.0, 0.0))
    low, high = calibrate(np.repeat(logits, 2, axis=0), weighted, np.array([0.0, 3.0]))[:, 0]
    assert low < high
    with pytest.raises(ValueError, match="scores"):
        calibrate(logits, weighted)
    biased = calibrate(logits, Calibration(bias=(-50.0, 0.0, 0.0)))
    assert biased[0, 0] < 1e-10


def test_missing_weights(tmp_path):
    with pytest.raises(InputMissing):
        load_model(tmp_path / "none.safetensors")


def test_files_that_are_not_networks_are_refused(tmp_path, small):
    text = tmp_path / "text.safetensors"
    text.write_text("not weights")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, str(foreign))
    other = tmp_path / "other.safetensors"
    description = json.dumps({"channels": ["contrast"]})
    save_file(
        {"a": torch.zeros(1)},
        str(other),
        metadata={"format": "cmb-bids-resnet-1", "description": description},
    )
    for path in (text, foreign, other):
        with pytest.raises(BadData):
            load_model(path)


def test_wrong_channels_are_refused(small, tmp_path):
    save_model(small, tmp_path / "toy.safetensors", {})
    with pytest.raises(UsageError):
        load_model(tmp_path / "toy.safetensors", CONTRAST_ONLY)
    with pytest.raises(UsageError):
        shipped_path(("t1",))


def test_it_is_small():
    assert sum(p.numel() for p in MicrobleedNet().parameters()) < 1_000_000


def test_residual_blocks_may_be_wider_than_full_resolution(tmp_path):
    description = ModelDescription(widths=(4, 8, 8), residual_width=6, name="toy")
    network = MicrobleedNet(description).eval()
    assert network.residual[0].first.weight.shape[:2] == (6, 6)
    save_model(network, tmp_path / "toy.safetensors", {})
    again = load_model(tmp_path / "toy.safetensors")
    assert again.description == description
    patches = patches_of(2)
    np.testing.assert_array_equal(
        predict_logits(network, patches), predict_logits(again.network, patches)
    )


def test_the_rest_of_the_scan_weighs_in_where_the_calibration_says_so():
    logits, points = np.zeros((3, 3)), np.arange(3)[:, None] * np.array([[40.0, 0, 0]])
    plain = calibrate_scan(logits, Calibration())
    elsewhere = Calibration(mimics_elsewhere=4.0)
    with pytest.raises(ValueError, match="positions"):
        calibrate_scan(logits, elsewhere)
    found = calibrate_scan(logits, elsewhere, points_mm=points)
    odds = found[:, 0] / (1 - found[:, 0])
    # Two others look like one, each with two chances in three of being none.
    np.testing.assert_allclose(odds, plain[0, 0] / (1 - plain[0, 0]) / (4 * (1 + 4 / 3)))


@pytest.mark.parametrize("channels", [CONTRAST_AND_PHASE, CONTRAST_ONLY])
def test_shipped_weights_load_with_their_calibration(channels):
    path = shipped_path(channels)
    if not path.is_file():
        pytest.skip("no weights shipped yet")
    model = load_model("shipped", channels)
    assert 0 < model.description.calibration.possible <= model.description.calibration.definite < 1
    assert model.description.calibration.usual_burden > 0
    far_apart = np.array([[0.0, 0, 0], [40.0, 0, 0]])
    found = predict(model, patches_of(2, len(channels)), np.zeros(2), points_mm=far_apart)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_mirrored_patch_gets_the_same_scores(axis):
    torch.manual_seed(0)
    network = MicrobleedNet().eval()
    patches = patches_of(3)
    mirrored = np.flip(patches, axis).copy()
    seen, seen_mirrored = (
        predict_logits(network, images, doubtful_log_odds=-np.inf) for images in (patches, mirrored)
    )
    np.testing.assert_allclose(seen, seen_mirrored, atol=1e-5)


def test_only_what_may_be_a_lesion_is_seen_in_its_mirror_images():
    torch.manual_seed(0)
    network = MicrobleedNet().eval()
    patches = patches_of(40)
    once = predict_logits(network, patches, AS_IT_IS)
    odds = np.logaddexp(once[:, 0], once[:, 1]) - once[:, 2]
    middle = float(np.median(odds))
    eight = predict_logits(network, patches, doubtful_log_odds=-np.inf)
    found = predict_logits(network, patches, doubtful_log_odds=middle)
    np.testing.assert_allclose(found[odds < middle], once[odds < middle], atol=1e-5)
    np.testing.assert_allclose(found[odds >= middle], eight[odds >= middle], atol=1e-5)
    assert not np.allclose(once, eight, atol=1e-5)
    assert predict_logits(network, patches[:0]).shape == (0, 3)
