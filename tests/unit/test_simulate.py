"""The simulator: physics against closed forms, anatomy and truth against the image."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cmb_bids.errors import UsageError
from cmb_bids.simulate import Protocol, get_protocol, physics, sample_subject, simulate_scan, veins
from cmb_bids.simulate import lesions as lesion_module
from cmb_bids.simulate.cli import add_arguments, interleave, parse_groups, run
from cmb_bids.simulate.dataset import CohortPlan
from cmb_bids.simulate.head import TISSUES, load_head
from cmb_bids.simulate.scan import _leave_out, box_frame, draw_labels, good_size, spec_rng
from cmb_bids.simulate.vendor import store_magnitudes, store_phase
from cmb_bids.volumes import read_stored, read_table

TINY = Protocol(
    "tiny", 3.0, (0.010, 0.020), 0.028, 15.0, (2.0, 2.0, 3.0), (92, 108, 58), (1.0, 1.0, 1.0),
    (40.0, 60.0),
)  # fmt: skip
B0_Z = np.array([0.0, 0.0, 1.0])


def sphere(shape, voxel_mm, radius_mm, value=1.0):
    axes = [(np.arange(n) - n // 2) * v for n, v in zip(shape, voxel_mm, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    inside = np.linalg.norm(points, axis=-1) <= radius_mm
    return (inside * value).astype(np.float32), points


@pytest.fixture(scope="module")
def scan():
    spec = sample_subject(5, TINY, "stroke", obliquity_deg=12, microbleeds=6)
    return simulate_scan(dataclasses.replace(spec, flip_first_axis=False))


# --- physics ---------------------------------------------------------------------------------


def shares_of_a_sphere(shape, voxel_mm, radius_mm, samples=4):
    """How much of each voxel a sphere round the grid's middle fills, and the voxels' centres."""
    offsets = (np.arange(samples) - (samples - 1) / 2) / samples
    fine = [
        ((np.arange(n) - n // 2)[:, None] + offsets).ravel() * v
        for n, v in zip(shape, voxel_mm, strict=True)
    ]
    squared = sum(
        axis.reshape([-1 if a == i else 1 for a in range(3)]) ** 2 for i, axis in enumerate(fine)
    )
    x, y, z = shape
    inside = (squared <= radius_mm**2).reshape(x, samples, y, samples, z, samples)
    _, points = sphere(shape, voxel_mm, radius_mm)
    return inside.mean(axis=(1, 3, 5)).astype(np.float32), points


@pytest.mark.parametrize("tilt_deg", [0, 30, 90])
@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (0.8, 1.0, 1.5)])
def test_the_field_of_a_sphere_is_the_closed_form(tilt_deg, voxel_mm):
    b0 = np.array([np.sin(np.deg2rad(tilt_deg)), 0, np.cos(np.deg2rad(tilt_deg))])
    share, points = shares_of_a_sphere((96, 96, 80), voxel_mm, 6.0)
    field = physics.dipole_field(torch.from_numpy(0.5 * share), voxel_mm, b0).numpy()
    expected = physics.sphere_field(points, 6.0, 0.5, b0)
    distance = np.linalg.norm(points, axis=-1)
    shell = (distance > 9) & (distance < 18)
    assert np.abs(field - expected)[shell].max() < 0.03 * np.abs(expected).max()
    assert abs(field[distance < 4].mean()) < 0.02 * 0.5


@pytest.mark.parametrize("tilt_deg", [0, 25])
def test_the_field_beside_a_small_microbleed_is_nearly_at_its_strength(tilt_deg):
    b0 = np.array([np.sin(np.deg2rad(tilt_deg)), 0, np.cos(np.deg2rad(tilt_deg))])
    voxel_mm = (0.4, 0.4, 0.75)  # of the grid UK Biobank scans are simulated on
    share, points = shares_of_a_sphere((60, 60, 32), voxel_mm, 1.0)
    field = physics.dipole_field(torch.from_numpy(share), voxel_mm, b0).numpy()
    expected = physics.sphere_field(points, 1.0, 1.0, b0)
    distance = np.linalg.norm(points, axis=-1)
    beside = (distance > 1.2) & (distance < 3)
    strength = (field * expected)[beside].sum() / (expected**2)[beside].sum()
    assert strength == pytest.approx(1, abs=0.12)


def test_what_the_fine_grid_averages_is_undone():
    """A point's transform is flat: so is what is acquired of it, whatever the grid's fineness."""
    matrix = (8, 8, 4)
    for factor in (1, 2, 3):
        fine = tuple(factor * n for n in matrix)
        image = torch.zeros(fine, dtype=torch.complex64)
        image[2 * factor, 3 * factor, factor] = 1
        spectrum = physics.acquire(
            lambda start, stop, image=image: image[start:stop], fine, matrix, torch.device("cpu")
        ).abs()
        # At a voxel's centre the grid says only that the point lies somewhere in its voxel.
        averaged = [
            np.sinc(np.fft.fftfreq(n, 1 / n) / m) for n, m in zip(matrix, fine, strict=True)
        ]
        flat = spectrum.numpy() * np.einsum("i,j,k->ijk", *averaged)
        assert np.allclose(flat, flat[0, 0, 0], rtol=1e-4)


def test_paramagnetic_poles_are_positive_and_the_equator_negative():
    source, _ = sphere((48, 48, 48), (1, 1, 1), 3.0)
    field = physics.dipole_field(torch.from_numpy(source), (1, 1, 1), B0_Z)
    assert field[24, 24, 30] > 0 > field[30, 24, 24]


def test_no_source_gives_no_field():
    field = physics.dipole_field(torch.zeros(8, 8, 8), (1, 1, 1), B0_Z)
    assert float(field.abs().max()) == 0
    assert physics.dipole_field(torch.ones(1, 1, 1), (1, 1, 1), B0_Z).shape == (1, 1, 1)


@pytest.mark.parametrize("matrix", [(12, 16, 8), (13, 15, 9), (24, 30, 16)])
def test_cropping_k_space_keeps_the_mean_and_the_place(matrix):
    fine = (24, 30, 16)
    rng = np.random.default_rng(0)
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in fine]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    centre = np.array([0.1, -0.15, 0.05])
    blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) / 0.02)
    image = torch.from_numpy((blob + 0.1 + 0 * rng.random(fine)).astype(np.complex64))
    spectrum = physics.acquire(lambda a, b: image[a:b], fine, matrix, torch.device("cpu"))
    coarse = torch.fft.ifftn(spectrum)
    assert torch.allclose(coarse.mean(), image.mean(), rtol=1e-5)
    weight = coarse.abs().numpy() - 0.1
    for axis in range(3):
        n = matrix[axis]
        place = (np.arange(n) + 0.5) / n - 0.5
        profile = weight.sum(axis=tuple(a for a in range(3) if a != axis))
        assert abs((profile * place).sum() / profile.sum() - centre[axis]) < 0.012


@pytest.mark.parametrize(("matrix", "gap"), [((6, 6, 8), 0.0), ((6, 6, 8), 0.25), ((6, 6, 5), 0.5)])
def test_slices_hold_what_lies_in_them_and_nothing_of_the_gaps(matrix, gap):
    fine = (12, 12, 32)
    cpu = torch.device("cpu")

    def slices(image):
        spectrum = physics.acquire(lambda a, b: image[a:b], fine, matrix, cpu, gap)
        return torch.fft.ifftn(spectrum).abs()[2, 3]

    even = torch.ones(fine, dtype=torch.complex64)
    np.testing.assert_allclose(slices(even), 1.0, atol=1e-5)
    step = fine[2] / matrix[2]
    for plane in range(fine[2]):
        sheet = torch.zeros(fine, dtype=torch.complex64)
        sheet[:, :, plane] = 1
        seen = slices(sheet).numpy()
        place = (plane + 0.5) / step - 0.5  # in slices; .5 between two of them
        off = abs(place - np.arange(matrix[2])) - 0.5 / step
        assert (seen[off >= (1 - gap) / 2] < 1e-5).all()
        whole = off + 1 / step <= (1 - gap) / 2
        np.testing.assert_allclose(seen[whole], 1 / (step * (1 - gap)), rtol=1e-4)


def test_signal_decays_and_turns_with_the_field():
    ones = torch.ones(2, 2, 2)
    block = physics.gradient_echo_blocks(ones, 50 * ones, 0.1 * ones, 0.02, 3.0)(0, 2)
    assert float(block.abs().mean()) == pytest.approx(np.exp(-1), rel=1e-5)
    assert float(block.angle().mean()) == pytest.approx(
        2 * np.pi * 42.577478518 * 3 * 0.1 * 0.02, rel=1e-4
    )


def test_what_is_not_acquired_is_zero():
    spec = sample_subject(1)
    whole = torch.ones((4, 40, 20), dtype=torch.complex64)

    def acquired(**conditions):
        spectrum = whole.clone()
        _leave_out(spectrum, dataclasses.replace(spec, **conditions))
        return torch.fft.fftshift(spectrum.abs(), dim=(1, 2))

    assert acquired().all()
    partial = acquired(partial_fourier=0.75)
    assert partial.mean() == pytest.approx(0.75, abs=0.03)
    assert partial[:, :30].all()  # the first lines and the centre of k-space
    assert not partial[:, 32:].any()
    ellipse = acquired(elliptical_shutter=True)
    assert ellipse.mean() == pytest.approx(np.pi / 4, abs=0.03)
    assert ellipse[:, 20, 10].all()
    assert not ellipse[:, 1, 1].any()
    sliced = dataclasses.replace(spec.protocol, slice_gap=0.1)
    assert acquired(elliptical_shutter=True, protocol=sliced).all()  # no lines across slices


def test_cubic_interpolation_reproduces_a_line():
    weights = physics.cubic_weights(20, -10.0, 1.0, np.linspace(-8, 7, 31))
    line = torch.linspace(-10, 9, 20)
    assert torch.allclose(weights @ line, torch.linspace(-8, 7, 31), atol=1e-5)


# --- vessels and lesions ---------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.1, 0.4, 1.5])
@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 0, 1), (1, 2, 1.5)])
def test_rasterised_vessels_keep_their_volume(radius, direction):
    unit = np.array(direction) / np.linalg.norm(direction)
    points = 12 + np.linspace(-8, 8, 33)[:, None] * unit
    tree = veins.VesselTree.join([(points, np.full(33, radius))])
    spacing = (0.4, 0.5, 1.0)
    share = veins.rasterise(tree, (60, 48, 24), spacing)
    volume = share.sum() * np.prod(spacing)
    assert volume == pytest.approx(np.pi * radius**2 * 16, rel=0.06)


def test_no_vessels_and_vessels_outside_draw_nothing():
    empty = veins.VesselTree.join([])
    assert veins.rasterise(empty, (4, 4, 4), (1, 1, 1)).sum() == 0
    outside = veins.VesselTree.join([(np.full((5, 3), -9.0) + np.eye(5, 3), np.ones(5))])
    assert veins.rasterise(outside, (4, 4, 4), (1, 1, 1)).sum() == 0
    assert len(veins.crossings(empty, B0_Z, np.random.default_rng(0))) == 0


def test_veins_are_many_and_differ_among_subjects():
    a = veins.grow_veins(np.random.default_rng(1))
    b = veins.grow_veins(np.random.default_rng(2), density=0.5)
    assert len(a.starts) > 1.5 * len(b.starts) > 500
    assert 0.05 < np.median(a.radii) < 0.5
    assert a.radii.max() > 1.5
    steps = np.diff(a.points, axis=0)
    turns = (steps[:-1] * steps[1:]).sum(axis=1)
    assert np.median(turns) > 0.8 * veins.STEP_MM**2  # curved, not jagged


def ends_of(tree):
    return np.array([tree.radii[stop - 1] for stop in tree.starts[1:]])


def test_loose_ends_of_veins_thin_out_and_nothing_else_changes():
    blunt = veins.grow_veins(np.random.default_rng(1), thinning=0.0)
    thin = veins.grow_veins(np.random.default_rng(1), thinning=1.0)
    half = veins.grow_veins(np.random.default_rng(1), thinning=0.5)
    assert np.array_equal(blunt.points, thin.points)
    assert (thin.radii <= blunt.radii).all()
    assert (ends_of(blunt) > 0.05).all()
    ended = ends_of(thin) == 0
    assert 0.5 < ended.mean() < 1  # those that reach a sinus or a ventricle do not thin out
    assert 0.3 < (ends_of(half)[ended] == 0).mean() < 0.7
    # Far from the loose end a vein is what it was.
    first = thin.starts[:-1][np.diff(thin.starts) > 2 * veins.THINNING_MM[1] / veins.STEP_MM]
    assert np.array_equal(thin.radii[first], blunt.radii[first])


def collector(length_mm=30.0):
    """A vein that comes down along z and ends at the wall in (0, 0, 0)."""
    z = np.arange(length_mm, -veins.STEP_MM / 2, -veins.STEP_MM)
    return np.stack([np.zeros_like(z), np.zeros_like(z), z], axis=1)


def everywhere(reach_mm=30.0, step_mm=4.0):
    axis = np.arange(-reach_mm, reach_mm + 1, step_mm)
    return np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)


def test_short_pieces_are_veins_and_come_on_top_of_the_others():
    without = veins.grow_veins(np.random.default_rng(3), short=0)
    tree = veins.grow_veins(np.random.default_rng(3), thinning=0.0, short=120)
    plain = veins.grow_veins(np.random.default_rng(3), thinning=0.0)
    assert len(plain.starts) == len(without.starts)
    assert len(tree.starts) - len(plain.starts) == 120
    head = load_head()
    for path, radius in (
        *(veins._rod(np.random.default_rng(i)) for i in range(200)),
        *(veins._coil(np.random.default_rng(i)) for i in range(200)),
    ):
        length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
        assert length > 3
        assert length > 0.8 * veins.SHORT_LEAST_WIDTHS * 2 * radius
    pieces = veins._short_pieces(veins.load_guides(), 300, np.random.default_rng(0))
    centres = np.array([path.mean(axis=0) for path, _ in pieces])
    index = np.rint(centres - head.origin_mm).astype(int)
    assert head.brain[tuple(index.T)].mean() > 0.8
    headings = np.array([path[-1] - path[0] for path, _ in pieces])
    steep = np.abs(headings[:, 2]) / np.linalg.norm(headings, axis=1)
    assert 0.4 < steep.mean() < 0.6  # a half for directions without preference


def test_a_coil_turns_half_round_or_more_and_is_open_inside():
    for seed in range(50):
        path, radius = veins._coil(np.random.default_rng(seed))
        from_axis = np.linalg.norm(path[:, :2], axis=1)
        angle = np.unwrap(np.arctan2(path[:, 1], path[:, 0]))
        assert np.ptp(angle) > 0.99 * np.pi
        assert from_axis.min() - radius > 1.2  # mm of what is not vein


def test_the_veins_of_a_fan_meet_in_one_point_and_drain_as_one():
    fan = veins._fans([collector()], everywhere(), 1, np.random.default_rng(0))
    *branches, (trunk, width) = fan
    assert veins.FAN_BRANCHES[0] <= len(branches) <= veins.FAN_BRANCHES[1]
    joint = trunk[0]
    assert veins.FAN_TO_WALL_MM[0] <= joint[2] <= veins.FAN_TO_WALL_MM[1] + veins.STEP_MM
    assert np.array_equal(trunk[-1], np.zeros(3))
    for points, radii in branches:
        np.testing.assert_allclose(points[-1], joint, atol=1e-9)
        assert np.all(np.diff(radii) > 0)  # it gathers on its way
        assert radii[-1] <= width[0]
        away = points[0] - joint
        assert away[2] > 0  # none comes from the side of the ventricle
        assert np.linalg.norm(away) < veins.FAN_REACH_MM[1] + 2
    drained = np.sqrt(sum(radii[-1] ** 2 for _, radii in branches))
    np.testing.assert_allclose(width, min(drained, veins.WIDEST_COLLECTOR_MM))


def test_where_a_fan_joins_the_image_is_darker_than_any_of_its_veins():
    spacing, shape, corner = (2.0, 2.0, 2.0), (21, 21, 21), np.array([20.0, 20.0, 0.0])
    fan = veins._fans([collector()], everywhere(), 1, np.random.default_rng(1))
    tree = veins.VesselTree.join(fan)
    joint = fan[-1][0][0]
    share = veins.rasterise(tree.moved(tree.points + corner), shape, spacing)
    at_joint = share[tuple(np.round((joint + corner) / spacing).astype(int))]
    apart = share[..., round(joint[2] / spacing[2]) + 3 :]  # where the branches no longer touch
    assert at_joint > 2 * apart.max() > 0


@pytest.mark.parametrize(
    ("paths", "seeds", "count"),
    [([], everywhere(), 3), ([collector(6.0)], everywhere(), 3), ([collector()], everywhere(), 0),
     ([collector()], np.array([[0.0, 0.0, -9.0]]), 3)],
    ids=["no-vein", "short-vein", "none-wanted", "nothing-upstream"],
)  # fmt: skip
def test_no_fan_where_none_can_be(paths, seeds, count):
    assert veins._fans(paths, seeds, count, np.random.default_rng(0)) == []


def blob(**changes):
    values = {
        "name": "microbleed", "centre_mm": np.array([0.3, -0.2, 0.4]),
        "radii_mm": np.array([2.0, 2.5, 1.6]), "axes": np.eye(3), "roughness": np.zeros(4),
        "susceptibility_ppm": 1.0, "rate_per_s": 150.0, "signal": 0.8, "region": 1,
        "site": "parenchyma",
    }  # fmt: skip
    return lesion_module.Lesion(**(values | changes))


def test_a_lesion_fills_its_volume():
    spacing, shape = np.array([0.4, 0.4, 1.0]), (60, 60, 30)
    half = (np.array(shape) - 1) / 2 * spacing
    lesion = blob()
    _, share = lesion_module.occupancy(lesion, shape, spacing, half)
    assert share.sum() * np.prod(spacing) == pytest.approx(
        np.pi / 6 * lesion.diameter_mm**3, rel=0.05
    )
    assert lesion_module.occupancy(blob(centre_mm=np.full(3, 99.0)), shape, spacing, half) is None


def test_a_drawn_disc_is_measured():
    voxel = np.array([0.8, 0.8, 2.0])
    shape = (50, 50, 25)
    axes = [(np.arange(n) - n // 2) * v for n, v in zip(shape, voxel, strict=True)]
    distance = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0)
    image = np.where(distance < 3, 40.0, 100.0)
    cnr, apparent = lesion_module.measure_lesion(image, 5.0, voxel, np.array(shape) // 2, 2.0)
    assert cnr == pytest.approx(12.0)
    assert apparent == pytest.approx(6.0, abs=0.6)


@pytest.mark.parametrize("name", [*lesion_module.GROUP_COUNTS])
def test_counts_follow_the_group(name):
    counts = [
        lesion_module.draw_count(sample_subject(seed, TINY, name), np.random.default_rng(seed))
        for seed in range(400)
    ]
    share = np.mean(np.array(counts) > 0)
    if name in ("healthy", "population"):
        assert 0.02 < share < 0.2
    else:
        assert share > 0.8
        assert np.var(counts) > np.mean(counts)  # overdispersed


# --- the whole scan --------------------------------------------------------------------------


def test_a_scan_holds_what_it_says(scan):
    assert len(scan.magnitudes) == len(scan.phases) == 2
    assert scan.magnitudes[0].shape == TINY.matrix
    assert scan.magnitudes[0].dtype == scan.phases[0].dtype == np.float32
    assert all(np.abs(p).max() <= np.pi + 1e-5 for p in scan.phases)
    volume = scan.brain_mask.sum() * 12 / 1000
    assert 1050 < volume < 1850
    tilt = np.degrees(np.arccos(scan.affine[2, 2] / 3.0))
    assert tilt == pytest.approx(12, abs=0.1)


def test_the_brain_lies_inside_the_field_of_view_with_air_round_the_head(scan):
    index = np.argwhere(scan.brain_mask)
    assert (index.min(axis=0)[:2] > 3).all()
    assert (index.max(axis=0) < np.array(TINY.matrix) - 2).all()
    brain = np.median(scan.magnitudes[0][scan.brain_mask])
    assert np.median(scan.magnitudes[0][:3]) < 0.1 * brain
    assert np.median(scan.magnitudes[0][:, -3:]) < 0.1 * brain


def test_truth_lies_where_it_says(scan):
    lesions = scan.truth[scan.truth["name"] != "vein"]
    assert (lesions["name"] == "microbleed").sum() == 6
    inverse = np.linalg.inv(scan.affine)
    for row in lesions.itertuples():
        at = inverse[:3, :3] @ [row.x, row.y, row.z] + inverse[:3, 3]
        drawn = np.argwhere(scan.lesion_labels == row.index)
        assert len(drawn)
        voxel_mm = np.array(TINY.voxel_mm)
        assert np.linalg.norm((drawn.mean(axis=0) - at) * voxel_mm) < 2.0
    bleeds = lesions[lesions["name"] == "microbleed"]
    assert bleeds["mars_class"].isin(["lobar", "deep", "infratentorial"]).all()
    assert (bleeds["susceptibility_ppm"] > 0).all()
    assert (lesions.loc[lesions["name"] == "calcification", "susceptibility_ppm"] < 0).all()
    assert scan.truth["index"].tolist() == list(range(1, len(scan.truth) + 1))


def test_left_is_left(scan):
    world_x = (np.argwhere(scan.regions > 100) @ scan.affine[:3, :3].T + scan.affine[:3, 3])[:, 0]
    left = (scan.regions > 0) & (scan.regions < 100)
    left_x = (np.argwhere(left) @ scan.affine[:3, :3].T + scan.affine[:3, 3])[:, 0]
    assert world_x.mean() > left_x.mean() + 40


def test_the_same_seed_gives_the_same_scan(scan):
    again = simulate_scan(scan.spec)
    assert np.array_equal(again.magnitudes[1], scan.magnitudes[1])
    assert np.array_equal(again.phases[1], scan.phases[1])
    assert again.truth.equals(scan.truth)
    assert sample_subject(5, TINY, "stroke") == sample_subject(5, TINY, "stroke")
    assert sample_subject(6, TINY, "stroke") != sample_subject(5, TINY, "stroke")


def test_the_process_that_compiles_gives_the_same_scan_as_later_ones(tmp_path):
    """Machine code from numba's cache must do what it did when it was compiled."""
    script = (
        "import hashlib; from test_simulate import TINY, sample_subject, simulate_scan\n"
        "scan = simulate_scan(sample_subject(5, TINY, 'stroke', microbleeds=3))\n"
        "print(hashlib.sha256(scan.magnitudes[0].tobytes()).hexdigest())"
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    said = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert list(tmp_path.rglob("*.nbc"))
    assert said[0] == said[1]


def test_storing_the_first_axis_the_other_way_moves_nothing_in_the_world(scan):
    turned = simulate_scan(dataclasses.replace(scan.spec, flip_first_axis=True))
    assert np.array_equal(turned.magnitudes[0][::-1], scan.magnitudes[0])
    assert np.linalg.det(turned.affine[:3, :3]) < 0 < np.linalg.det(scan.affine[:3, :3])
    last = turned.affine @ [TINY.matrix[0] - 1, 0, 0, 1]
    assert np.allclose(last, scan.affine[:, 3])
    assert turned.truth.equals(scan.truth)


def test_obliquity_turns_the_slices_off_the_main_field():
    for seed in range(5):
        spec = sample_subject(seed, TINY, obliquity_deg=20)
        frame = box_frame(spec, spec_rng(spec, 2))
        assert np.degrees(np.arccos(frame[2, 2])) == pytest.approx(20)
        assert np.allclose(frame @ frame.T, np.eye(3))


def test_regions_never_hold_fluid_and_deep_labels_exist():
    head = load_head()
    assert not head.region[head.tissue == TISSUES["csf"]].any()
    for label in (1, 2, 3, 4, 5, 11, 12, 13, 14, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 41):
        for side in (0, 100):
            assert (head.region == label + side).sum() > 500


def test_labels_of_tiny_lesions_have_at_least_one_voxel():
    lesion = blob(radii_mm=np.full(3, 0.3))
    assert (draw_labels([lesion], (21, 21, 21), np.ones(3)) == 1).sum() == 1


# --- protocols and vendors -------------------------------------------------------------------


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="protocol"):
        get_protocol("9T")
    with pytest.raises(UsageError, match="group"):
        sample_subject(0, "ukb", "martians")


def test_good_sizes_are_even_and_smooth():
    assert [good_size(n) for n in (7, 22, 448, 541)] == [8, 24, 448, 560]


PHASES = np.linspace(-np.pi, np.pi - 1e-3, 400, dtype=np.float32).reshape(4, 10, 10)


@pytest.mark.parametrize(
    ("scale", "decode"),
    [
        ("siemens", lambda v: v * (np.pi / 4096)),
        ("siemens-unsigned", lambda v: v * (np.pi / 2048) - np.pi),
        ("philips", lambda v: v / 1000),
        ("ge", lambda v: v),
        ("radians", lambda v: v),
    ],
)
@pytest.mark.parametrize("polarity", ["right-handed", "left-handed"])
def test_stored_phase_decodes_to_the_phase_and_polarity_flips_it(scale, decode, polarity):
    stored = store_phase(PHASES, scale, polarity)
    sign = -1 if polarity == "left-handed" else 1
    difference = np.angle(np.exp(1j * (decode(stored.astype(float)) - sign * PHASES)))
    assert np.abs(difference).max() < 2 * np.pi / 2048


def test_stored_types_and_ranges():
    assert store_phase(PHASES, "siemens", "right-handed").dtype == np.int16
    unsigned = store_phase(PHASES, "siemens-unsigned", "right-handed")
    assert unsigned.min() >= 0
    assert unsigned.max() <= 4095
    first, second = store_magnitudes([np.full((4, 4, 4), 2.0), np.full((4, 4, 4), 1.0)])
    assert first.dtype == np.int16
    assert int(first[0, 0, 0]) == 2 * int(second[0, 0, 0]) == 2500


# --- datasets --------------------------------------------------------------------------------


def options(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(a) for a in arguments])


def test_groups_take_turns():
    assert sorted(parse_groups("healthy=2,tbi")) == ["healthy", "healthy", "tbi"]
    assert set(interleave({"a": 13, "b": 9, "c": 9, "d": 10})[:4]) == {"a", "b", "c", "d"}
    with pytest.raises(UsageError, match="group-mix"):
        parse_groups("healthy=x")


def test_plans_are_reproducible_and_grow():
    short, long = CohortPlan(3, seed=4), CohortPlan(5, seed=4)
    assert list(short.members()) == list(long.members())[:3]
    mixed = CohortPlan(40, polarity="mixed", phase_scale="mixed")
    members = list(mixed.members())
    assert len({m.phase_scale for m in members}) == 5
    assert len({m.polarity for m in members}) == 2


@pytest.mark.parametrize(
    "wrong", [("--participants", "0"), ("--snr", "-1"), ("--oversampling", "0.5")]
)
def test_impossible_options_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match=wrong[0]):
        run(options(tmp_path / "x", *wrong))


def test_a_dataset_is_whole_resumable_and_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setitem(
        __import__("cmb_bids.simulate.protocols", fromlist=["x"]).PROTOCOLS, "ukb", TINY
    )
    first = tmp_path / "a"
    assert run(options(first, "--participants", 1, "--phase-scale", "ge")) == 0
    image = first / "sub-01" / "anat" / "sub-01_echo-2_part-phase_MEGRE.nii.gz"
    sidecar = json.loads(image.with_name("sub-01_echo-2_part-phase_MEGRE.json").read_text())
    assert sidecar["Units"] == "rad"
    assert sidecar["EchoTime"] == 0.02
    assert read_stored(image).stored.shape == TINY.matrix
    truth = first / "derivatives" / "truth" / "sub-01" / "anat"
    table = read_table(truth / "sub-01_desc-truth_dseg.tsv")
    described = json.loads((truth / "sub-01_desc-truth_dseg.json").read_text())
    assert set(table.columns) <= set(described)
    assert list(read_table(first / "participants.tsv").columns) == [
        "participant_id", "age", "sex", "group", "protocol",
    ]  # fmt: skip

    before = image.stat().st_mtime_ns
    assert run(options(first, "--participants", 1, "--phase-scale", "ge")) == 0
    assert image.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="other settings"):
        run(options(first, "--participants", 1, "--seed", 9))
    second = tmp_path / "b"
    run(options(second, "--participants", 1, "--phase-scale", "ge"))
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(options(tmp_path, "--participants", 1))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
