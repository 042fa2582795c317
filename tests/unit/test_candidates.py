"""Candidates: lesions drawn in noise are listed where they are, on any grid; mimics cost little."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmb_bids.candidates import (
    COLUMNS,
    COLUMNS_DESCRIBED,
    CandidateConfig,
    find_candidates,
    label_candidates,
    phase_coherence,
)
from cmb_bids.frst import draw_ball
from cmb_bids.place_features import fill_outside
from cmb_bids.same_lesion import suppress_neighbours
from cmb_bids.volumes import (
    read_table,
    read_volume,
    voxel_to_world,
    world_to_voxel,
    write_json,
    write_volume,
)

GRIDS = [(0.5, 1.0, 2.0), (0.5, 0.5, 2.0), (0.8, 0.8, 3.0), (0.4, 0.4, 1.2), (3.0, 3.0, 3.0)]
FEW = CandidateConfig(maxima_per_contrast=100, maximum_candidates=30)
ALL = CandidateConfig(maxima_per_contrast=100)


def oblique(sizes, shape):
    """An affine turned by 20 and 10 degrees, stored right to left, centred somewhere."""
    a, b = np.deg2rad([20, 10])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-sizes[0], sizes[1], sizes[2]])
    affine[:3, 3] = [40, -25, 12]
    return affine


def scan(sizes, lesions, noise=0.03, extent=(40.0, 38.0, 32.0), seed=0):
    """Tissue of 1 with dark balls (centre mm in the box, radius mm); mask 4 mm from the edge."""
    shape = tuple(round(length / size) for length, size in zip(extent, sizes, strict=True))
    image = np.ones(shape, np.float32)
    for centre, radius in lesions:
        voxel = [place / size for place, size in zip(centre, sizes, strict=True)]
        image *= 1 - 0.6 * draw_ball(shape, voxel, radius, sizes)
    image += np.random.default_rng(seed).normal(0, noise, shape).astype(np.float32)
    mask = np.zeros(shape, bool)
    edge = [int(np.ceil(4 / size)) for size in sizes]
    mask[edge[0] : -edge[0], edge[1] : -edge[1], edge[2] : -edge[2]] = True
    affine = oblique(sizes, shape)
    voxels = np.array([centre for centre, _ in lesions]).reshape(-1, 3) / sizes
    return image, mask, affine, voxel_to_world(affine, voxels)


def distance_to(points, table):
    found = table[["x", "y", "z"]].to_numpy()
    return np.linalg.norm(points[:, None] - found[None], axis=2)


@pytest.mark.parametrize("sizes", GRIDS)
def test_lesions_come_first_and_where_they_are(sizes):
    radius = max(1.5, 0.6 * max(sizes))
    lesions = [((11, 24, 10), radius), ((29, 28, 20), radius), ((20, 12, 23), 1.5 * radius)]
    image, mask, affine, points = scan(sizes, lesions)
    table = find_candidates(image, mask, affine, config=FEW)
    distance = distance_to(points, table)
    assert set(distance.argmin(axis=1)) == {0, 1, 2}
    assert distance.min(axis=1).max() < (1.0 if max(sizes) < 3 else 1.5)
    assert list(table["index"]) == list(range(1, len(table) + 1))
    assert table["score"].is_monotonic_decreasing


def test_positions_in_mm_and_voxels_agree():
    image, mask, affine, _ = scan((0.5, 0.5, 2.0), [((20, 20, 18), 2.0)])
    table = find_candidates(image, mask, affine, config=FEW)
    voxels = world_to_voxel(affine, table[["x", "y", "z"]].to_numpy())
    np.testing.assert_allclose(voxels, table[["i", "j", "k"]].to_numpy(), atol=1e-6)
    assert tuple(table.columns) == COLUMNS
    assert set(COLUMNS_DESCRIBED) == set(COLUMNS)


def test_neighbours_four_mm_apart_both_stay():
    image, mask, affine, points = scan(
        (0.8, 0.8, 2.0), [((18, 20, 18), 1.2), ((22.2, 20, 18), 1.2)]
    )
    distance = distance_to(points, find_candidates(image, mask, affine, config=FEW))
    assert distance.min(axis=1).max() < 1.2
    assert len(set(distance.argmin(axis=1))) == 2


def test_lesion_at_the_edge_of_the_mask_is_found():
    image, mask, affine, points = scan((0.8, 0.8, 2.0), [((5, 20, 16), 1.6)])
    image[:4] = 0.0
    table = find_candidates(image, mask, affine, config=FEW)
    assert distance_to(points, table).min() < 2.0


def test_phase_alone_shows_a_lesion_that_magnitude_and_swi_do_not():
    sizes = (0.8, 0.8, 2.0)
    image, mask, affine, points = scan(sizes, [])
    shape = image.shape
    centre = np.array([20, 20, 16.0])
    x, y, z = np.meshgrid(
        *[np.arange(n) * size - c for n, size, c in zip(shape, sizes, centre, strict=True)],
        indexing="ij",
    )
    r = np.maximum(np.sqrt(x**2 + y**2 + z**2), 1.0)
    dipole = 4.0 * (3 * z**2 / r**2 - 1) / r**3
    for sign in (1, -1):
        phase = np.angle(np.exp(1j * (sign * dipole))).astype(np.float32)
        phase += np.random.default_rng(1).normal(0, 0.05, shape).astype(np.float32)
        table = find_candidates(image, mask, affine, swi=image, highpass=phase, config=ALL)
        point = voxel_to_world(affine, centre[None] / sizes)
        nearest = distance_to(point, table)[0].argmin()
        assert distance_to(point, table)[0, nearest] < 1.5
        assert table["contrast"][nearest] == "phase"
    assert len(points) == 0


def test_bright_spots_are_not_first():
    image, mask, affine, points = scan((0.8, 0.8, 2.0), [((20, 20, 16), 2.0)])
    table = find_candidates(2 - image, mask, affine, config=FEW)
    assert distance_to(points, table)[0, 0] > 1.5


def test_never_more_than_the_maximum():
    image, mask, affine, _ = scan((0.8, 0.8, 3.0), [], noise=0.2)
    table = find_candidates(image, mask, affine, config=CandidateConfig(maximum_candidates=7))
    assert len(table) == 7


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_nothing_dark_gives_a_header_only_table(fill):
    shape = (20, 20, 10)
    table = find_candidates(np.full(shape, fill), np.ones(shape, bool), np.eye(4))
    assert len(table) == 0
    assert tuple(table.columns) == COLUMNS


def test_empty_mask_gives_a_header_only_table():
    image, mask, affine, _ = scan((1, 1, 2), [((20, 20, 16), 2.0)])
    assert find_candidates(image, np.zeros_like(mask), affine).empty
    assert tuple(find_candidates(image, np.zeros_like(mask), affine).columns) == COLUMNS


def test_one_voxel_image():
    one = np.ones((1, 1, 1), np.float32)
    assert find_candidates(one, one.astype(bool), np.eye(4), swi=one, highpass=one).empty


def test_values_that_are_not_finite_are_survived():
    image, mask, affine, points = scan((0.8, 0.8, 2.0), [((20, 20, 16), 2.0)])
    image[30, 30, 3:6] = np.nan
    table = find_candidates(image, mask, affine, swi=image, highpass=image * np.nan, config=FEW)
    assert np.isfinite(table[["x", "y", "z", "score"]].to_numpy()).all()
    assert distance_to(points, table).min() < 1.5


def test_integers_and_repeats_give_the_same_table():
    image, mask, affine, _ = scan((0.8, 0.8, 2.0), [((20, 20, 16), 2.0)])
    whole = (image * 1000).astype(np.int16)
    first = find_candidates(whole, mask, affine, config=FEW)
    second = find_candidates(whole.astype(np.float64), mask, affine, config=FEW)
    pd.testing.assert_frame_equal(first, second)


def test_shapes_must_agree():
    image, mask, affine, _ = scan((1, 1, 2), [])
    with pytest.raises(ValueError, match="shape"):
        find_candidates(image, mask, affine, swi=image[1:])


@given(
    points=st.lists(st.tuples(*[st.floats(-20, 20)] * 3), max_size=30),
    distance=st.floats(0.1, 15),
)
@settings(max_examples=40, deadline=None)
def test_suppression_leaves_no_neighbours_and_loses_no_place(points, distance):
    positions = np.array(points, dtype=float).reshape(-1, 3)
    scores = np.arange(len(positions), dtype=float)
    kept = suppress_neighbours(positions, scores, distance)
    left = positions[kept]
    apart = np.linalg.norm(left[:, None] - left[None], axis=2) + 1e9 * np.eye(len(left))
    assert (apart > distance).all()
    if len(positions):
        nearest = np.linalg.norm(positions[:, None] - left[None], axis=2).min(axis=1)
        assert (nearest <= distance).all()
        assert kept[0] == len(positions) - 1


def test_filling_keeps_the_inside_and_evens_the_outside():
    image = np.where(np.arange(40)[:, None, None] < 20, 1.0, -50.0) * np.ones((40, 12, 8))
    inside = image > 0
    filled = fill_outside(image, inside, (1, 1, 1))
    np.testing.assert_array_equal(filled[inside], 1)
    assert filled[~inside].min() > 0.9


def test_coherence_ignores_wraps_and_sees_fast_turns():
    ramp = np.linspace(0, 12, 60)[:, None, None] * np.ones((1, 20, 8))
    spot = ramp.copy()
    spot[30:32, 10:12, 4] += 3.0
    even = phase_coherence(np.cos(ramp), np.sin(ramp), (1, 1, 2))
    seen = phase_coherence(np.cos(spot), np.sin(spot), (1, 1, 2))
    assert even.min() > 0.9
    assert seen[30, 10, 4] < 0.8


def test_label_image_has_every_candidate():
    image, mask, affine, _ = scan((0.8, 0.8, 3.0), [((20, 20, 16), 2.0)], noise=0.1)
    table = find_candidates(image, mask, affine)
    labels = label_candidates(table, image.shape, affine)
    assert labels.dtype == np.int16
    assert set(np.unique(labels)) - {0} == set(table["index"])
    assert not label_candidates(table.iloc[:0], image.shape, affine).any()


def test_files_in_files_out(tmp_path):
    from cmb_bids.interfaces.candidates import FindCandidates

    image, mask, affine, points = scan((0.8, 0.8, 2.0), [((20, 20, 16), 2.0)])
    write_json(tmp_path / "scan.json", {"config": {"candidates": {"maximum_candidates": 9}}})
    write_volume(tmp_path / "magnitude.nii.gz", image, affine)
    write_volume(tmp_path / "mask.nii.gz", mask, affine)
    FindCandidates(
        scan=str(tmp_path / "scan.json"),
        magnitude=str(tmp_path / "magnitude.nii.gz"),
        mask=str(tmp_path / "mask.nii.gz"),
        out_image=str(tmp_path / "out.nii.gz"),
        out_table=str(tmp_path / "out.tsv"),
    ).run()
    table = read_table(tmp_path / "out.tsv")
    assert len(table) == 9
    assert distance_to(points, table)[0, 0] < 1.5
    assert read_volume(tmp_path / "out.nii.gz").data.max() == 9


def test_defaults_fit_json():
    assert CandidateConfig(**json.loads(json.dumps(CandidateConfig().__dict__))).radii_mm


def test_real_head_runs(realdata):
    name = "sub-philips3mm/anat/sub-philips3mm_echo-2_part-mag_MEGRE.nii.gz"
    head = read_volume(realdata / name)
    mask = head.data > np.quantile(head.data, 0.7)
    table = find_candidates(head.data / np.median(head.data[mask]), mask, head.affine)
    assert 0 < len(table) <= 150


def test_units_of_swi_do_not_matter():
    sizes = (0.8, 0.8, 2.0)
    image, mask, affine, _ = scan(sizes, [((20, 20, 16), 2.0), ((12, 25, 20), 1.5)])
    phase = np.zeros(image.shape, np.float32)
    one = find_candidates(image, mask, affine, swi=image, highpass=phase, config=FEW)
    thousand = find_candidates(image, mask, affine, swi=1200 * image, highpass=phase, config=FEW)
    # Both contrasts are one image here: which of the two a place is from is a matter of rounding.
    columns = ["x", "y", "z", "score"]
    pd.testing.assert_frame_equal(one[columns], thousand[columns], rtol=1e-3, atol=1e-2)
