"""Augmentation: where the lesion, its phase and what surrounds it end up."""

import numpy as np
import pytest
import torch
from toys import STORED, toy_patches

from cmb_bids.patches import PatchGeometry
from cmb_bids.training.augmentation import augment, transplant, transplanted
from cmb_bids.training.fit import MARGIN_VOXELS

BALL, LINE = 0, 2  # of toy_patches: a microbleed and a vein, labelled as such


@pytest.fixture
def batch():
    patches, labels = toy_patches(30, 2, np.random.default_rng(0))
    return torch.from_numpy(patches.astype(np.float32)), labels


def test_augmentation_keeps_the_lesion_central_and_the_sign_of_the_phase():
    stored = torch.zeros(40, 2, *STORED)
    stored[:, 0] = 1.0
    middle = tuple(slice(n // 2 - 2, n // 2 + 2) for n in STORED)
    stored[:, 0, *middle] = 0.1
    stored[:, 1, *middle] = 1.0
    patches = augment(stored, MARGIN_VOXELS, np.random.default_rng(0))
    assert patches.shape == (40, 2, *PatchGeometry().shape)
    for patch in patches:
        darkest = np.array(np.unravel_index(int(patch[0].argmin()), patch[0].shape))
        off = np.abs(darkest - (np.array(patch[0].shape) - 1) / 2)
        assert (off <= np.array(MARGIN_VOXELS) + 2).all()
    assert patches[:, 1].sum() > 0


def test_a_transplanted_lesion_adds_its_phase_and_multiplies_its_loss(batch):
    stored, labels = batch
    ball, line = stored[labels == BALL][:1], stored[labels == LINE][:1]
    placed = transplant(ball, line)
    at = tuple(n // 2 for n in STORED)
    for channel, expected in ((0, line[0, 0, *at] * ball[0, 0, *at]), (1, 0.8 + 0.8)):
        assert float(placed[0, channel, *at]) == pytest.approx(float(expected), abs=0.2)
    corner = (0, 0, 0)  # 13 mm off
    np.testing.assert_array_equal(placed[0, :, *corner], line[0, :, *corner])


def test_beyond_the_mask_nothing_is_transplanted(batch):
    stored, labels = batch
    ground = stored[labels == LINE][:1].clone()
    ground[:, :, : STORED[0] // 2 + 1] = 0
    placed = transplant(stored[labels == BALL][:1], ground)
    assert not placed[:, :, : STORED[0] // 2 + 1].any()
    home = stored[labels == BALL][:1].clone()
    home[:, :, : STORED[0] // 2 - 3] = 0  # where the lesion's own mask ended there is no loss
    kept = transplant(home, ground)[0, 0, : STORED[0] // 2 - 3]
    np.testing.assert_array_equal(kept, ground[0, 0, : STORED[0] // 2 - 3])


def test_one_channel_is_transplanted_too(batch):
    stored, labels = batch
    ball, line = stored[labels == BALL][:1, :1], stored[labels == LINE][:1, :1]
    both = transplant(torch.cat([ball, ball]), torch.cat([line, line]), ["contrast"])
    assert both.shape == (2, 1, *STORED)
    assert float(both[0, 0, *(n // 2 for n in STORED)]) < 0.15


def test_only_microbleeds_are_transplanted_and_to_bright_grounds(batch):
    stored, labels = batch
    rng = np.random.default_rng(0)
    assert transplanted(stored, labels, 0.0, rng) is stored
    # The toy's lines are dark at their centre: nothing could be seen there.
    assert transplanted(stored, labels, 1.0, rng) is stored
    x, y, z = (n // 2 for n in STORED)
    stored[labels == LINE, 0, x - 2 : x + 2, y - 2 : y + 2, z - 2 : z + 2] = 1.0
    placed = transplanted(stored, labels, 1.0, rng)
    changed = (placed != stored).flatten(1).any(1).numpy()
    np.testing.assert_array_equal(changed, labels == BALL)
    assert (placed[labels == BALL, 0, x, y, z] < 0.4).all()


def test_a_lesion_goes_where_slices_are_about_as_thick(batch):
    stored, labels = batch
    x, y, z = (n // 2 for n in STORED)
    stored[labels == LINE, 0, x - 2 : x + 2, y - 2 : y + 2, z - 2 : z + 2] = 1.0
    thickness = np.where(labels == LINE, 2.0, 3.0)
    rng = np.random.default_rng(0)
    assert transplanted(stored, labels, 1.0, rng, slice_mm=thickness) is stored
    one = np.flatnonzero(labels == BALL)[0]
    thickness[one] = 2.2
    placed = transplanted(stored, labels, 1.0, rng, slice_mm=thickness)
    changed = (placed != stored).flatten(1).any(1).numpy()
    assert np.flatnonzero(changed).tolist() == [one]


def test_a_faint_lesion_stays_at_home(batch):
    stored, labels = batch
    stored[:, 0] = 1.0
    assert transplanted(stored, labels, 1.0, np.random.default_rng(0)) is stored
