"""Drawn veins: where they run, how strong they are, and what they leave alone."""

import numpy as np
import pytest
import torch
from toys import STORED, toy_patches

from cmb_bids.patches import PatchGeometry
from cmb_bids.simulate.protocols import GYROMAGNETIC_RATIO_HZ_PER_T
from cmb_bids.training import drawn_veins
from cmb_bids.training.drawn_veins import (
    SLICES_MM,
    STEP_MM,
    draw_path,
    draw_vein,
    kept_vein,
    nearest_slice,
    slices_of,
    with_veins,
)

GEOMETRY = PatchGeometry((28, 28, 24))
BALL, NEGATIVE, LINE = 0, 1, 2  # of toy_patches: microbleed, calcification, other
MIDDLE = tuple(n // 2 for n in STORED)


@pytest.fixture
def straight(monkeypatch):
    """Veins along the main field that reach from edge to edge, 2 mm in radius."""
    for name, value in {
        "RADIUS_MM": (2.0, 2.0 + 1e-9),
        "SUSCEPTIBILITY_PPM": (0.1, 0.1),
        "TESLA_SECONDS": (0.06, 0.06),
        "SIGNAL": (1.0, 1.0),
        "TILT_DEGREES": 0.0,
        "BEND_PER_MM": 0.0,
        "LENGTH_MM": (25.0, 25.0),
        "OFF_CENTRE_MM": 0.0,
        "HIGHPASS_MM": 40.0,
        "BROKEN": 0.0,
    }.items():
        monkeypatch.setattr(drawn_veins, name, value)


def test_a_long_vein_along_the_field_has_the_phase_of_an_endless_cylinder(straight):
    _, phase = draw_vein(GEOMETRY, np.random.default_rng(0), 2.0)
    inside = phase[MIDDLE[0] - 1 : MIDDLE[0] + 1, MIDDLE[1] - 1 : MIDDLE[1] + 1]
    outside = phase[MIDDLE[0] + 7, MIDDLE[1]]
    expected = 2 * np.pi * GYROMAGNETIC_RATIO_HZ_PER_T * 1e-6 * 0.06 * 0.1 / 3  # chi / 3
    assert inside.mean() - outside.mean() == pytest.approx(expected, rel=0.1)


def test_the_phase_mask_darkens_what_is_drawn_into_a_susceptibility_weighted_image(straight):
    magnitude, phase = draw_vein(GEOMETRY, np.random.default_rng(0), 2.0, power=0)
    weighted, same = draw_vein(GEOMETRY, np.random.default_rng(0), 2.0, power=4)
    np.testing.assert_array_equal(phase, same)
    assert magnitude[MIDDLE] == pytest.approx(1.0, abs=0.02)  # no loss in the blood itself
    assert weighted[MIDDLE] == pytest.approx((1 - phase[MIDDLE] / np.pi) ** 4, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_a_vein_runs_through_the_origin_and_is_longer_than_a_lesion(seed):
    rng = np.random.default_rng(seed)
    radius, slice_mm = rng.uniform(0.3, 1.1), rng.uniform(0.8, 3)
    points, radii = draw_path(rng, radius, slice_mm)
    assert np.linalg.norm(points, axis=1).min() < 1e-9
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    np.testing.assert_allclose(lengths, STEP_MM)
    assert lengths.sum() >= max(4.5, 8 * radius, 3 * slice_mm) - STEP_MM
    assert radii.max() == pytest.approx(radius)
    assert radii[[0, -1]].max() <= radius


@pytest.mark.parametrize("seed", range(20))
def test_a_broken_vein_is_dots_in_a_row_with_one_at_the_origin(seed, monkeypatch):
    monkeypatch.setattr(drawn_veins, "BROKEN", 1.0)
    radius = 0.5
    points, radii = draw_path(np.random.default_rng(seed), radius, 1.0)
    assert STEP_MM * (len(points) - 1) >= drawn_veins.LEAST_BROKEN_MM - STEP_MM
    in_gap = radii == drawn_veins.IN_A_GAP * radius
    assert not in_gap[np.linalg.norm(points, axis=1).argmin()]
    beads = np.diff(np.flatnonzero(np.diff(np.r_[True, in_gap, True].astype(int))))[::2] * STEP_MM
    assert len(beads) >= 2
    assert beads.max() <= drawn_veins.BEAD_MM[1] + 2 * STEP_MM
    assert radii[~in_gap].max() <= radius


def test_a_broken_vein_is_seen_in_its_beads_and_not_in_its_gaps(monkeypatch):
    straight = {"BROKEN": 1.0, "BEND_PER_MM": 0.0, "LENGTH_MM": (25.0, 25.0), "OFF_CENTRE_MM": 0}
    even = {"BEAD_MM": (3.0, 3.0), "GAP_MM": (3.0, 3.0), "RADIUS_MM": (0.6, 0.6 + 1e-9)}
    for name, value in (straight | even).items():
        monkeypatch.setattr(drawn_veins, name, value)
    monkeypatch.setattr(drawn_veins, "_any_direction", lambda rng: np.array([1.0, 0, 0]))
    loss, _ = draw_vein(GEOMETRY, np.random.default_rng(0), 1.0)
    along = loss[:, MIDDLE[1] - 1 : MIDDLE[1] + 1, MIDDLE[2] - 1 : MIDDLE[2] + 1].min(axis=(1, 2))
    millimetres = (np.arange(len(along)) - (len(along) - 1) / 2) * GEOMETRY.spacing_mm[0]
    beads = [along[np.abs(millimetres - at).argmin()] for at in (-6, 0, 6)]
    gaps = [along[np.abs(millimetres - at).argmin()] for at in (-9, -3, 3, 9)]
    assert max(beads) < 0.8
    assert min(gaps) > 0.9


@pytest.mark.parametrize("slice_mm", [0.5, 0.8, 1.0, 2.0, 3.1, 6.0])
@pytest.mark.parametrize("offset", [0.0, 0.3, 0.99])
def test_slices_and_the_patch_cut_from_them_keep_what_is_even_and_where_things_are(
    slice_mm, offset
):
    acquired, resampled = slices_of(GEOMETRY, slice_mm, offset)
    planes = GEOMETRY.shape[2]
    np.testing.assert_allclose(np.ones(drawn_veins.FINER * planes) @ acquired @ resampled, 1)
    fine = (np.arange(drawn_veins.FINER * planes) + 0.5) / drawn_veins.FINER
    away = round(2 * slice_mm + 1)  # from the ends, where slices reach beyond the patch
    ramp = (fine @ acquired @ resampled)[away : planes - away]
    np.testing.assert_allclose(ramp, np.arange(planes)[away : planes - away] + 0.5, atol=0.3)


def test_a_plane_is_seen_over_two_slices():
    plane = np.zeros(drawn_veins.FINER * GEOMETRY.shape[2])
    plane[24:26] = 1
    wide = [
        np.count_nonzero(plane @ acquired @ resampled)
        for acquired, resampled in (slices_of(GEOMETRY, s, 0.5) for s in (1.0, 2.0, 3.0))
    ]
    assert wide == sorted(wide)
    assert wide[2] >= 5


def test_a_patch_meets_veins_in_slices_about_as_thick_as_its_own(monkeypatch):
    drawn = []

    def spy(number, geometry, slice_mm, power):
        drawn.append(slice_mm)
        return torch.zeros(2, *STORED)

    monkeypatch.setattr(drawn_veins, "kept_vein", spy)
    stored, labels = torch.ones(200, 2, *STORED), np.full(200, 2)
    thickness = np.repeat([1.2, 3.0], 100)
    with_veins(stored, labels, 1.0, np.random.default_rng(0), slice_mm=thickness)
    assert drawn == [nearest_slice(t) for t in thickness]
    drawn.clear()
    with_veins(stored, labels, 1.0, np.random.default_rng(0))
    assert set(drawn) == set(SLICES_MM)


def test_kept_veins_are_seen_and_the_same_each_time():
    vein = kept_vein(3, GEOMETRY, 2.0, 4)
    assert torch.equal(vein, kept_vein.__wrapped__(3, GEOMETRY, 2.0, 4))
    loss, phase = vein
    assert loss.shape == phase.shape == STORED
    centre = loss[tuple(slice(n - 2, n + 2) for n in MIDDLE)]
    assert 0 <= float(centre.min()) < drawn_veins.SEEN
    assert float(phase.max()) > 0.1


def test_veins_run_through_what_is_no_lesion_and_beside_what_is_one():
    patches, labels = toy_patches(30, 2, np.random.default_rng(0))
    stored = torch.from_numpy(patches.astype(np.float32))
    stored[labels == LINE, 0] = 1.0  # a ground that shows a vein
    stored[:, :, 0] = 0  # outside the mask
    drawn = with_veins(stored, labels, 1.0, np.random.default_rng(0))
    assert (drawn != stored).flatten(1).any(1).all()
    assert not drawn[:, :, 0].any()
    centre = (slice(None), 0, *(slice(n - 2, n + 2) for n in MIDDLE))
    darkened = (stored[centre] - drawn[centre]).flatten(1).amax(1).numpy()
    assert (darkened[labels == LINE] > 0.15).all()
    # Beside a lesion a tilted vein may come near it, seldom onto it.
    assert np.median(darkened[labels == BALL]) < 0.1
    assert np.median(darkened[labels == NEGATIVE]) < 0.1


def test_without_a_share_nothing_is_drawn_and_a_dark_ground_is_left_alone():
    patches, labels = toy_patches(9, 2, np.random.default_rng(0))
    stored = torch.from_numpy(patches.astype(np.float32))
    assert with_veins(stored, labels, 0.0, np.random.default_rng(0)) is stored
    drawn = with_veins(stored, labels, 1.0, np.random.default_rng(0))
    assert torch.equal(drawn[labels == LINE], stored[labels == LINE])  # lines are dark


def test_one_channel_of_magnitude_is_drawn_into_too():
    stored = torch.ones(4, 1, *STORED)
    drawn = with_veins(stored, np.full(4, 2), 1.0, np.random.default_rng(0), ["contrast"], 0)
    assert drawn.shape == stored.shape
    assert (drawn < stored).flatten(1).any(1).all()
