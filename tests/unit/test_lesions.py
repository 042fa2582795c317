"""Drawn lesions of known size and place must come back with that size and place."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cmb_bids.anatomy import Place
from cmb_bids.lesion_drawing import draw_blob
from cmb_bids.lesion_size import equivalent_diameter, greatest_extent
from cmb_bids.lesions import (
    CALCIFICATION,
    DEFINITE,
    MICROBLEED,
    POSSIBLE,
    TABLE_COLUMNS,
    LesionConfig,
    decide_classes,
    decide_thresholds,
    segment_lesions,
    split_class,
)

ISOTROPIC = np.diag([1.0, 1.0, 1.0, 1.0])
FINE = np.diag([0.5, 0.5, 2.0, 1.0])
VERY_FINE = np.diag([0.7, 0.7, 0.7, 1.0])
UK_BIOBANK = np.diag([0.8, 0.8, 3.0, 1.0])
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(x=0.4, y=-0.2, z=0.1) @ np.diag([-0.7, 0.7, 1.5]), [12.0, -30.0, 40.0]
)


def draw(affine, spheres, field_mm=28.0, shape=None, depth=0.8, blur_mm=0.5, noise=0.0, level=1.0):
    """Tissue at ``level`` with blurred dark spheres [(centre mm from the middle, diameter mm)].

    Drawn on a grid three times finer, then averaged, so that partial volume is there.
    """
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    shape = shape or tuple(int(np.ceil(field_mm / s)) for s in sizes)
    fine = 3
    axes = [(np.arange(n * fine) + 0.5) / fine - 0.5 for n in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    middle = (np.array(shape) - 1) / 2
    world = (grid - middle.astype(np.float32)) @ affine[:3, :3].T.astype(np.float32)
    dark = np.zeros(world.shape[:3], dtype=np.float32)
    for centre, diameter in spheres:
        dark[np.linalg.norm(world - np.float32(centre), axis=-1) <= diameter / 2] = depth
    if blur_mm:
        dark = ndimage.gaussian_filter(dark, blur_mm / (sizes / fine))
    split = [v for n in shape for v in (n, fine)]
    coarse = dark.reshape(split).mean(axis=(1, 3, 5))
    image = level * (1 - coarse) + noise * np.random.default_rng(0).normal(size=shape)
    points = nib.affines.apply_affine(
        affine, middle + np.array([c for c, _ in spheres]) @ np.linalg.inv(affine[:3, :3]).T
    )
    return image.astype(np.float32), points


def listed(points, microbleed=0.9, calcification=0.05, radius_mm=2.0):
    """Candidate and probability tables of some points."""
    n = len(points)
    candidates = pd.DataFrame(np.reshape(points, (n, 3)), columns=["x", "y", "z"])
    candidates.insert(0, "index", np.arange(1, n + 1))
    candidates["radius_mm"] = radius_mm
    probabilities = pd.DataFrame(
        {
            "index": candidates["index"],
            "p_microbleed": np.broadcast_to(microbleed, n).astype(float),
            "p_calcification": np.broadcast_to(calcification, n).astype(float),
        }
    )
    return candidates, probabilities


def segment(image, affine, points, **options):
    listing = {
        k: options.pop(k) for k in ("microbleed", "calcification", "radius_mm") if k in options
    }
    mask = options.pop("mask", np.ones(image.shape, dtype=bool))
    return segment_lesions(*listed(points, **listing), image, mask, affine, **options)


@pytest.mark.parametrize("affine", [ISOTROPIC, FINE, UK_BIOBANK, OBLIQUE])
@pytest.mark.parametrize("diameter", [3.0, 4.0, 6.0, 9.0])
def test_a_sphere_keeps_its_diameter_and_place(affine, diameter):
    offset = np.array([0.3, -0.2, 0.4])
    image, points = draw(affine, [(offset, diameter)], noise=0.03)
    table, labels = segment(image, affine, points, radius_mm=diameter / 2)
    assert len(table) == 1
    coarsest = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).max()
    assert abs(table["diameter_mm"][0] - diameter) < min(0.6 * coarsest, 1.0)
    assert np.linalg.norm(table[["x", "y", "z"]].to_numpy()[0] - points[0]) < 0.5 * coarsest
    voxel = abs(np.linalg.det(affine[:3, :3]))
    assert table["volume_mm3"][0] == pytest.approx((labels == 1).sum() * voxel, abs=0.01)


def test_a_sphere_too_small_or_too_large_is_listed_and_not_counted():
    finest = np.diag([0.4, 0.4, 1.2, 1.0])
    shape = (75, 51, 19)  # odd: the small one lies within a slice
    spheres = [((-11.2, 0, 0), 1.0), ((-6, 0, 0), 4.0), ((6, 0, 0), 12.0)]
    image, points = draw(finest, spheres, shape=shape, blur_mm=0.2)
    table, _ = segment(image, finest, points)
    by_place = table.sort_values("x")
    assert by_place["counted"].tolist() == [False, True, False]
    assert by_place["extent_mm"].iloc[0] < 2
    assert by_place["diameter_mm"].iloc[2] > 10


@pytest.mark.parametrize("affine", [ISOTROPIC, FINE])
@pytest.mark.parametrize("into", [0.5, 1.0])
def test_a_lesion_beside_bone_is_cut_from_it_and_counted(affine, into):
    image, points = draw(affine, [((0, 0, 0), 5.0)], field_mm=40.0)
    height = np.arange(image.shape[2]) * affine[2, 2]
    image[:, :, height < points[0][2] - 2.5 + into] = 0.05
    table, _ = segment(image, affine, points, radius_mm=2.5)
    assert table["counted"].tolist() == [True]
    assert 3 < table["diameter_mm"][0] < 6.5
    middle = table[["x", "y", "z"]].to_numpy(dtype=float)[0]
    assert np.linalg.norm(middle - points[0]) < 2
    voxel = np.linalg.solve(affine[:3, :3], points[0])
    together = draw_blob(image, image > 0, affine, voxel, 2.5, LesionConfig())
    volume = together.inside.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert equivalent_diameter(volume) > 10


@pytest.mark.parametrize(
    ("voxel", "extent", "counted"),
    [((0.5, 0.5, 1.98), 2.10, True), ((0.8, 0.8, 3.0), 3.21, True), ((0.4, 0.4, 1.2), 1.33, False)],
)
def test_a_lesion_of_one_voxel_counts_where_the_voxel_is_2_mm_long(voxel, extent, counted):
    affine = np.diag([*voxel, 1.0])
    image = np.ones((41, 41, 11), dtype=np.float32)
    image[20, 20, 5] = 0.3
    table, labels = segment(image, affine, np.multiply([[20, 20, 5]], voxel))
    assert (labels > 0).sum() == 1
    assert table["extent_mm"][0] == pytest.approx(extent, abs=0.01)
    assert table["diameter_mm"][0] < 2
    assert table["counted"][0] == counted


@settings(max_examples=50, deadline=None)
@given(
    voxels=st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=20, unique=True),
    sizes=st.tuples(*[st.floats(0.3, 3)] * 3),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    shift=st.tuples(*[st.integers(-50, 50)] * 3),
)
def test_an_extent_is_that_of_the_farthest_corners_however_the_grid_lies(
    voxels, sizes, angles, shift
):
    voxels, sizes = np.array(voxels), np.array(sizes)
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(*angles) @ np.diag(sizes))
    between = (np.abs(voxels[:, None] - voxels[None]) + 1) * sizes
    farthest = np.linalg.norm(between, axis=-1).max()  # of a pair of boxes: their outer corners
    assert greatest_extent(voxels + shift, turned) == pytest.approx(farthest, rel=1e-6)
    volume = len(voxels) * sizes.prod()
    assert greatest_extent(voxels, turned) >= equivalent_diameter(volume) - 1e-6


def test_the_size_limits_are_those_of_the_configuration():
    image, points = draw(ISOTROPIC, [((0, 0, 0), 4.0)])
    small = LesionConfig(minimum_diameter_mm=1.0, maximum_diameter_mm=3.0)
    assert not segment(image, ISOTROPIC, points, config=small)[0]["counted"].any()


def test_no_lesion_is_counted_without_a_trusted_brain_mask():
    image, points = draw(ISOTROPIC, [((0, 0, 0), 4.0)])
    table, _ = segment(image, ISOTROPIC, points, gate_passed=False)
    assert len(table) == 1
    assert not table["counted"].any()


def test_a_small_calcification_stays_definite():
    image, points = draw(VERY_FINE, [((0, 0, 0), 1.4)], field_mm=20.0)
    table, _ = segment(image, VERY_FINE, points, microbleed=0.1, calcification=0.7, radius_mm=0.7)
    assert table["diameter_mm"][0] < 2
    assert table[["lesion_class", "certainty"]].iloc[0].tolist() == [CALCIFICATION, DEFINITE]


def test_what_lies_beside_a_surer_detection_is_not_counted_again():
    """The halo of a lesion and a fold it touches were once called beside it (simulated scans)."""
    image, points = draw(ISOTROPIC, [((0, 0, 0), 2.5), ((0, 0, 2.8), 1.5), ((9, 0, 0), 3)])
    table, labels = segment(image, ISOTROPIC, points, microbleed=[0.6, 0.9, 0.7])
    assert table["probability"].tolist() == [0.9, 0.7]
    assert labels.max() == 2
    # A calcification beside it is left out as well: a place is one thing or the other.
    table, _ = segment(
        image, ISOTROPIC, points, microbleed=[0.9, 0.1, 0.7], calcification=[0.05, 0.8, 0.1]
    )
    assert table["lesion_class"].tolist() == [MICROBLEED, MICROBLEED]


def test_two_detections_of_one_lesion_become_one_row_with_the_likelier_probability():
    image, points = draw(UK_BIOBANK, [((0, 0, 0), 8.0)])
    twice = points[0] + np.array([[-2.0, 0, 0], [2.0, 0, 0]])
    table, _ = segment(image, UK_BIOBANK, twice, microbleed=[0.6, 0.9])
    assert table["probability"].tolist() == [0.9]
    assert abs(table["x"][0] - points[0, 0]) < 0.5


@pytest.mark.parametrize(
    ("apart", "second", "kept"),
    [(4.4, 0.7, 1), (4.4, 0.96, 2), (5.2, 0.7, 2)],
    ids=["doubtful", "beyond-doubt", "farther"],
)
def test_a_doubtful_microbleed_close_to_a_surer_one_is_no_second_one(apart, second, kept):
    """Iron round a lesion, likely but not sure, once counted beside it."""
    image, points = draw(FINE, [((0, 0, 0), 3.0), ((apart, 0, 0), 2.5)])
    table, _ = segment(image, FINE, points, microbleed=[0.99, second])
    assert table["probability"].tolist() == [0.99, second][:kept]
    # Beside a calcification, and as a calcification, it is judged for itself.
    table, _ = segment(image, FINE, points, microbleed=[0.01, second], calcification=[0.98, 0.01])
    assert len(table) == 2
    table, _ = segment(image, FINE, points, microbleed=[0.99, 0.1], calcification=[0.01, second])
    assert table["lesion_class"].tolist() == [MICROBLEED, CALCIFICATION]


@pytest.mark.parametrize(("depth", "kept"), [(0.35, 1), (0.78, 2)])
def test_what_is_much_fainter_than_a_surer_microbleed_beside_it_is_its_edge(depth, kept):
    """A vein's end or a sulcus 4 mm from a lesion was called .99 (another simulator's scans)."""
    image, points = draw(FINE, [((0, 0, 0), 3.0), ((12, 0, 0), 0)])
    faint, beside = draw(FINE, [((4.4, 0, 0), 2.5), ((12, 0, 0), 2.5)], depth=depth)
    both = np.minimum(image, faint)
    table, labels = segment(both, FINE, np.vstack([points[:1], beside[:1]]), microbleed=[1, 0.99])
    assert len(table) == kept == labels.max()
    # For itself it is one.
    table, _ = segment(both, FINE, np.vstack([points[:1], beside[1:]]), microbleed=[1, 0.99])
    assert len(table) == 2


@pytest.mark.parametrize("affine", [FINE, UK_BIOBANK])
def test_two_neighbours_stay_two_and_share_no_voxel(affine):
    image, points = draw(affine, [((-2.4, 0, 0), 4.0), ((2.4, 0, 0), 4.0)])
    table, labels = segment(image, affine, points, microbleed=[0.99, 0.99])
    assert len(table) == 2
    assert sorted(np.unique(labels)) == [0, 1, 2]
    assert np.abs(table["diameter_mm"] - 4.0).max() < 1.0
    assert np.abs(np.sort(table["x"]) - np.sort(points[:, 0])).max() < 0.6


def test_neighbours_that_bleed_into_each_other_are_parted_at_the_ridge():
    image, points = draw(FINE, [((-2.05, 0, 0), 4.0), ((2.05, 0, 0), 4.0)], blur_mm=0.8)
    middle = nib.affines.apply_affine(np.linalg.inv(FINE), points.mean(axis=0)).round().astype(int)
    assert image[tuple(middle)] < 0.7  # the ridge itself is below half depth
    table, _ = segment(image, FINE, points, microbleed=[0.99, 0.99])
    assert len(table) == 2
    assert np.ptp(table["volume_mm3"]) < 0.25 * table["volume_mm3"].max()


@pytest.mark.parametrize(("affine", "wide", "near"), [(FINE, 2, 0.8), (UK_BIOBANK, 1, 1.5)])
def test_a_vessel_that_touches_a_lesion_is_cut_off(affine, wide, near):
    image, points = draw(affine, [((0, 0, 0), 4.0)], blur_mm=0.3)
    middle = (np.array(image.shape) - 1) // 2
    # About 1 mm wide, runs to the edge.
    image[middle[0] :, middle[1] : middle[1] + wide, middle[2]] = 0.3
    table, _ = segment(image, affine, points)
    assert abs(table["diameter_mm"][0] - 4.0) < 0.8
    assert np.linalg.norm(table[["x", "y", "z"]].to_numpy()[0] - points[0]) < near


def test_a_bright_rim_inside_a_large_lesion_is_filled_and_does_not_split_it():
    image, points = draw(ISOTROPIC, [((0, 0, 0), 9.0)], blur_mm=0.3)
    centre = tuple((np.array(image.shape) - 1) // 2)
    image[centre[0] - 1 : centre[0] + 2, centre[1] - 1 : centre[1] + 2, centre[2]] = 0.9
    pair = np.vstack([points[0], points[0] + [3.0, 0, 0]])
    table, labels = segment(image, ISOTROPIC, pair, radius_mm=3.0)
    assert len(table) == 1
    assert labels[centre] == 1


@pytest.mark.parametrize("affine", [ISOTROPIC, FINE, OBLIQUE])
def test_a_rim_of_wrapped_phase_inside_a_large_lesion_does_not_make_a_fragment_of_it(affine):
    image, points = draw(affine, [((0, 0, 0), 9.0)], noise=0.03)
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1)
    x, y, z = np.moveaxis((grid - (np.array(image.shape) - 1) / 2) @ affine[:3, :3].T, -1, 0)
    across = np.hypot(x, y)
    # A field has such a rim round its equator; at its poles and the magic angle there is none.
    image[(across > 1.8) & (across < 2.6) & (abs(z) < 1.6)] = 0.9
    table, labels = segment(image, affine, points, radius_mm=4.0)
    assert len(table) == 1
    coarsest = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).max()
    assert abs(table["diameter_mm"][0] - 9.0) < min(0.6 * coarsest, 1.0)
    rim = np.argwhere((image == np.float32(0.9)) & (labels == 0))
    assert len(rim) == 0


@pytest.mark.parametrize("affine", [FINE, UK_BIOBANK, OBLIQUE])
def test_a_small_lesion_in_a_dark_nucleus_is_drawn_and_not_the_nucleus(affine):
    nucleus, _ = draw(affine, [((3, 2, 0), 15.0)], depth=0.25)
    lesion, points = draw(affine, [((0.3, -0.2, 0.4), 3.0)], depth=0.5)
    noise = 0.02 * np.random.default_rng(0).normal(size=nucleus.shape)
    table, _ = segment((nucleus * lesion + noise).astype(np.float32), affine, points)
    assert abs(table["diameter_mm"][0] - 3.0) < 1.0
    coarsest = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).max()
    assert np.linalg.norm(table[["x", "y", "z"]].to_numpy()[0] - points[0]) < 0.5 * coarsest


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), depth=st.floats(0.4, 0.9), affine=st.sampled_from(
    [ISOTROPIC, FINE, UK_BIOBANK]))  # fmt: skip
def test_a_large_lesion_is_drawn_whole_and_not_a_dark_spot_of_its_noise(seed, depth, affine):
    image, points = draw(affine, [((0, 0, 0), 9.0)], depth=depth)
    image += 0.05 * np.random.default_rng(seed).normal(size=image.shape).astype(np.float32)
    table, _ = segment(image, affine, points, radius_mm=4.0)
    assert 7 < table["diameter_mm"][0] < 10


def test_a_lesion_drawn_with_a_larger_neighbour_stays_where_it_was_found():
    image, points = draw(FINE, [((-4, 0, 0), 3), ((2, 0, 0), 9)])
    table, labels = segment(image, FINE, points[:1])
    drawn = nib.affines.apply_affine(FINE, np.argwhere(labels == 1).mean(axis=0))
    assert np.linalg.norm(drawn - points[0]) > 4
    np.testing.assert_allclose(table[["x", "y", "z"]].iloc[0], points[0], atol=0.01)


def test_microbleeds_are_drawn_on_the_swi_and_calcifications_on_the_magnitude():
    magnitude, points = draw(FINE, [((-7, 0, 0), 3.0), ((7, 0, 0), 3.0)])
    swi, _ = draw(FINE, [((-7, 0, 0), 6.0), ((7, 0, 0), 6.0)], level=400.0)
    table, labels = segment(
        magnitude, FINE, points, swi=swi, microbleed=[0.9, 0.1], calcification=[0.0, 0.8]
    )
    size = table.set_index("lesion_class")["diameter_mm"]
    assert size[MICROBLEED] == pytest.approx(6.0, abs=0.6)
    assert size[CALCIFICATION] == pytest.approx(3.0, abs=0.6)
    for kind in (MICROBLEED, CALCIFICATION):
        rows, image = split_class(table, labels, kind)
        assert list(rows.columns) == TABLE_COLUMNS
        assert rows["index"].tolist() == [1]
        assert rows["name"].tolist() == [f"{kind}-1"]
        assert sorted(np.unique(image)) == [0, 1]


def test_a_lesion_stays_inside_the_mask():
    image, points = draw(ISOTROPIC, [((0, 0, 0), 6.0)])
    mask = np.zeros(image.shape, dtype=bool)
    mask[: image.shape[0] // 2] = True
    _, labels = segment(image, ISOTROPIC, points, mask=mask)
    assert (labels > 0).any()
    assert not (labels[~mask] > 0).any()


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
def test_any_number_type_and_scale_give_the_same_lesion(dtype):
    image, points = draw(UK_BIOBANK, [((0, 0, 0), 5.0)])
    reference, _ = segment(image, UK_BIOBANK, points)
    table, _ = segment((200 * image).astype(dtype), UK_BIOBANK, points)
    assert table["diameter_mm"][0] == pytest.approx(reference["diameter_mm"][0], abs=0.15)


def test_missing_voxels_do_not_spread():
    image, points = draw(ISOTROPIC, [((0, 0, 0), 5.0)])
    reference, _ = segment(image, ISOTROPIC, points)
    image[:, :, :5] = np.nan
    image[tuple((np.array(image.shape) - 1) // 2)] = np.nan
    table, _ = segment(image, ISOTROPIC, points)
    assert abs(table["diameter_mm"][0] - reference["diameter_mm"][0]) < 0.5


def test_missing_probabilities_count_as_zero():
    image, points = draw(ISOTROPIC, [((-6, 0, 0), 4.0), ((6, 0, 0), 4.0)])
    table, _ = segment(image, ISOTROPIC, points, microbleed=[np.nan, 0.9], calcification=np.nan)
    assert len(table) == 1
    assert table["p_calcification"][0] == 0


@pytest.mark.parametrize("level", [0.0, 1.0, np.nan])
def test_a_flat_or_empty_image_gives_a_point_lesion_not_a_crash(level):
    image = np.full((9, 9, 9), level, dtype=np.float32)
    table, labels = segment(image, ISOTROPIC, np.array([[4.0, 4.0, 4.0]]))
    assert (labels > 0).sum() == 1
    assert not table["counted"][0]


def test_a_one_voxel_image():
    image = np.ones((1, 1, 1), dtype=np.float32)
    table, labels = segment(image, ISOTROPIC, np.zeros((1, 3)))
    assert labels.tolist() == [[[1]]]
    assert table["volume_mm3"].tolist() == [1.0]


def test_no_candidates_and_none_probable_give_empty_tables_with_all_columns():
    image = np.ones((5, 5, 5), dtype=np.float32)
    for points in (np.zeros((0, 3)), np.array([[2.0, 2.0, 2.0]])):
        table, labels = segment(image, ISOTROPIC, points, microbleed=0.01)
        rows, split = split_class(table, labels, MICROBLEED)
        assert list(rows.columns) == TABLE_COLUMNS
        assert len(rows) == 0
        assert not labels.any()
        assert not split.any()
        assert labels.dtype == split.dtype == np.int16


def test_classes_follow_the_thresholds_and_the_likelier_kind():
    probabilities = pd.DataFrame(
        {
            "p_microbleed": [0.7, 0.3, 0.1, 0.2, 0.5, 0.3, 0.05],
            "p_calcification": [0.1, 0.1, 0.1, 0.75, 0.5, 0.4, 0.4],
        }
    )
    kind, certainty = decide_classes(probabilities, 0.5, 0.25)
    calcium, blood = CALCIFICATION, MICROBLEED
    assert kind.tolist() == [blood, blood, "", calcium, blood, calcium, ""]
    assert certainty.tolist() == [DEFINITE, POSSIBLE, "", DEFINITE, DEFINITE, POSSIBLE, ""]


def test_thresholds_come_from_the_configuration_then_the_model():
    model = {"definite": 0.8, "possible": 0.4}
    assert decide_thresholds(LesionConfig(), model) == (0.8, 0.4)
    assert decide_thresholds(LesionConfig(definite_probability=0.6), model) == (0.6, 0.4)
    assert decide_thresholds(LesionConfig(definite_probability=0.3), model) == (0.3, 0.3)
    assert decide_thresholds(LesionConfig()) == (0.5, 0.2)
    with pytest.raises(ValueError, match=r"possible 0\.9"):
        decide_thresholds(LesionConfig(possible_probability=0.9), model)


def test_images_of_another_shape_are_refused():
    image = np.ones((5, 5, 5), dtype=np.float32)
    with pytest.raises(ValueError, match="shape"):
        segment(image, ISOTROPIC, np.zeros((1, 3)), swi=np.ones((4, 5, 5)))


def test_the_table_has_the_columns_that_users_rely_on():
    assert TABLE_COLUMNS[:16] == [
        "index", "name", "x", "y", "z", "probability", "p_calcification", "certainty", "counted",
        "diameter_mm", "volume_mm3", "hemisphere", "mars_region", "mars_class",
        "bombs_region", "bombs_class",
    ]  # fmt: skip
    later = {"extent_mm", "structure", "region_source", "x_mni", "y_mni", "z_mni", "moment_ppm_mm3"}
    later |= {"moment_sd_ppm_mm3", "moment_status", "moment_verdict"}
    assert later <= set(TABLE_COLUMNS[16:])


def test_a_lesion_has_a_structure_of_the_parcellation_and_mni_coordinates():
    image, points = draw(ISOTROPIC, [((0, 0, 0), 4.0)])
    regions = np.full(image.shape, 1000, np.int16)
    places = {1000: Place(111, "Right-Cerebral-White-Matter", "parcellation+atlas")}
    to_mni = np.diag([2.0, 1.0, 1.0, 1.0])
    table, _ = segment(
        image, ISOTROPIC, points, regions=regions, places=places, mni_affine=to_mni.tolist()
    )
    row = table.iloc[0]
    assert (row["structure"], row["region_source"]) == places[1000][1:]
    assert (row["hemisphere"], row["mars_region"], row["mars_class"]) == (
        "right", "frontal", "lobar",
    )  # fmt: skip
    assert row["x_mni"] == pytest.approx(2 * row["x"], abs=0.02)
    bare, _ = segment(image, ISOTROPIC, points)
    assert bare[["structure", "x_mni"]].isna().all().all()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 12),
)
def test_rows_and_labels_always_agree(seed, count):
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.random((24, 24, 12)), 1.0).astype(np.float32)
    points = rng.uniform(-3, 26, size=(count, 3))
    probability = rng.dirichlet([1, 1, 1], size=count)
    options = {"microbleed": probability[:, 0], "calcification": probability[:, 1]}
    table, labels = segment(image, ISOTROPIC, points, **options)
    again, same = segment(image, ISOTROPIC, points, **options)
    pd.testing.assert_frame_equal(table, again)
    np.testing.assert_array_equal(labels, same)
    assert sorted(set(np.unique(labels)) - {0}) == table["index"].tolist()
    for row in table.itertuples():
        voxels = labels == row.index
        assert row.volume_mm3 == pytest.approx(voxels.sum(), abs=0.01)
        assert row.diameter_mm <= row.extent_mm
        assert row.diameter_mm <= 16
        assert ndimage.label(voxels, np.ones((3, 3, 3)))[1] >= 1
    assert (table["probability"] >= 0).all()
    assert (table[["probability", "p_calcification"]].max(axis=1) >= 0.2).all()


@pytest.mark.parametrize(
    ("blood", "calcium", "called", "verdict", "expected"),
    [
        (0.3, 0.5, "calcification", "contradicts", (0.8 * 15 / 15.5, 0.8 * 0.5 / 15.5)),
        (0.6, 0.1, "microbleed", "contradicts", (0.7 * 0.6 / 5.6, 0.7 * 5 / 5.6)),
        (0.45, 0.4, "microbleed", "agrees", (0.85 * 22.5 / 22.9, 0.85 * 0.4 / 22.9)),
        (0.001, 0.9, "calcification", "contradicts", (0.901 / 19, 0.901 * 18 / 19)),  # too sure
        (0.6, np.nan, "microbleed", "contradicts", (0.6, 0.0)),
        (0.3, 0.5, "calcification", "unclear", (0.3, 0.5)),
        (0.3, 0.5, "calcification", None, (0.3, 0.5)),
    ],
)
def test_a_clear_sign_of_the_moment_decides_between_blood_and_calcium(
    blood, calcium, called, verdict, expected
):
    from cmb_bids.lesions import weigh_by_signs

    said = pd.DataFrame(
        {"index": [4, 7], "p_microbleed": [0.9, blood], "p_calcification": [0.0, calcium]}
    )
    table = pd.DataFrame(
        {
            "candidate": [7, 4],
            "lesion_class": [called, "microbleed"],
            "moment_verdict": [verdict, "agrees"],
        }
    )
    weighed = weigh_by_signs(table, said)
    assert weighed.iloc[0].tolist() == pytest.approx([4, 0.9, 0.0])
    assert weighed.iloc[1].tolist() == pytest.approx([7, *expected])


@pytest.fixture
def stage(tmp_path):
    """The interface of the stage with every input drawn: one microbleed, one calcification."""
    from cmb_bids.interfaces.lesions import Lesions
    from cmb_bids.volumes import write_json, write_table, write_volume

    image, points = draw(FINE, [((-6, 0, 0), 4.0), ((6, 0, 0), 4.0)])
    candidates, probabilities = listed(
        points, microbleed=[0.9, 0.1], calcification=[0.0, 0.8], radius_mm=2.0
    )
    write_volume(tmp_path / "normalized.nii.gz", image, FINE)
    write_volume(tmp_path / "swi.nii.gz", 300 * image, FINE)
    write_volume(tmp_path / "mask.nii.gz", np.ones(image.shape, dtype=bool), FINE)
    # A left frontal lobe all over, as numbered in the atlas.
    write_volume(tmp_path / "regions.nii.gz", np.full(image.shape, 1, dtype=np.int16), FINE)
    write_table(tmp_path / "candidates.tsv", candidates)
    write_table(tmp_path / "probabilities.tsv", probabilities)
    scan = {
        "filename": "anat/sub-01_desc-cmb_dseg.nii.gz", "kind": "complex", "version": "0.1.0",
        "echoes": [], "config": {},
    }  # fmt: skip
    write_json(tmp_path / "scan.json", scan)
    write_json(tmp_path / "brain_report.json", {"gate": "pass", "source": "registration"})
    write_json(tmp_path / "classify_report.json", {"model": "shipped", "channels": ["swi"]})
    write_json(tmp_path / "phase_report.json", {"polarity_sign": 1})

    def run(**changed):
        inputs = {
            name: str(tmp_path / f"{name}.{extension}")
            for names, extension in [
                (("normalized", "swi", "mask", "regions"), "nii.gz"),
                (("candidates", "probabilities"), "tsv"),
                (("scan", "brain_report", "classify_report", "phase_report"), "json"),
            ]
            for name in names
        }
        for kind in ("microbleeds", "calcifications"):
            inputs[f"out_{kind}_image"] = str(tmp_path / "out" / f"{kind}.nii.gz")
            inputs[f"out_{kind}_table"] = str(tmp_path / "out" / f"{kind}.tsv")
        inputs["out_row"] = str(tmp_path / "out" / "row.json")
        inputs |= changed
        Lesions(**{k: v for k, v in inputs.items() if v is not None}).run(cwd=str(tmp_path))
        return tmp_path / "out"

    return run


def test_the_stage_writes_tables_images_and_the_row(stage):
    from cmb_bids.volumes import read_json, read_table, read_volume

    out = stage()
    for kind in ("microbleeds", "calcifications"):
        table = read_table(out / f"{kind}.tsv")
        assert list(table.columns) == TABLE_COLUMNS
        assert table["index"].tolist() == [1]
        assert table["mars_class"].tolist() == ["lobar"]
        assert "true" in (out / f"{kind}.tsv").read_text()
        assert set(read_json(out / f"{kind}.json")) == set(TABLE_COLUMNS)
        image = read_volume(out / f"{kind}.nii.gz", np.int16)
        assert set(np.unique(image.data)) == {0, 1}
        np.testing.assert_allclose(image.affine, FINE)
    row = read_json(out / "row.json")
    assert (row["cmb_definite"], row["cmb_lobar"], row["calcification"]) == (1, 1, 1)
    assert row["calcification_definite"] == 1  # without phase nothing speaks against it
    assert (row["pattern"], row["qc_status"]) == ("strictly_lobar", "pass")


@pytest.fixture
def with_phase(tmp_path):
    """Unwrapped phase of 3 T with dipoles of these moments where the stage's lesions are."""
    from cmb_bids.moments import dipole, radians_per_ppm
    from cmb_bids.volumes import read_json, read_volume, write_json, write_volume

    def write(*moments):
        shape = read_volume(tmp_path / "normalized.nii.gz").data.shape
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        middle = FINE[:3, :3] @ ((np.array(shape) - 1) / 2)
        phase = np.random.default_rng(0).normal(0, 0.02, shape)
        for side, moment in zip((-6, 6), moments, strict=True):
            offsets = grid @ FINE[:3, :3].T - middle - (side, 0, 0)
            phase += radians_per_ppm(3.0, 0.02) * moment * dipole(offsets)
        write_volume(tmp_path / "unwrapped.nii.gz", phase, FINE)
        report = {"polarity_sign": 1, "reference_echo_time_s": 0.02, "unwrapping": "romeo"}
        write_json(tmp_path / "phase_report.json", report)
        scan = read_json(tmp_path / "scan.json") | {"field_strength_t": 3}
        write_json(tmp_path / "at3T.json", scan)
        return {
            "unwrapped": str(tmp_path / "unwrapped.nii.gz"),
            "scan": str(tmp_path / "at3T.json"),
        }

    return write


@pytest.mark.parametrize(
    ("moment", "certainty", "definite"), [(-6.0, "definite", 1), (0.0, "possible", 0)]
)
def test_a_calcification_without_a_clear_moment_is_only_possible(
    stage, with_phase, moment, certainty, definite
):
    from cmb_bids.volumes import read_json, read_table

    out = stage(**with_phase(12.0, moment))
    table = read_table(out / "calcifications.tsv")
    assert table["certainty"].tolist() == [certainty]
    assert table["moment_verdict"].tolist() == ["agrees" if definite else "unclear"]
    row = read_json(out / "row.json")
    assert (row["calcification"], row["calcification_definite"]) == (1, definite)


def test_the_stage_fits_moments_to_the_unwrapped_phase(stage, with_phase, tmp_path):
    from cmb_bids.volumes import read_table, write_table

    at3t = with_phase(12.0, 9.0)  # the network calls the second a calcification
    out = stage(**at3t)
    bleeds = read_table(out / "microbleeds.tsv")  # .1 against .8, and 50 for the sign: blood
    assert not len(read_table(out / "calcifications.tsv"))
    assert bleeds["moment_ppm_mm3"].tolist() == pytest.approx([12.0, 9.0], rel=0.3)
    assert bleeds["moment_verdict"].tolist() == ["agrees", "agrees"]
    assert bleeds["probability"].tolist() == pytest.approx([0.9, 0.9 * 5 / 5.8], abs=1e-4)
    said = read_table(tmp_path / "probabilities.tsv")
    said.loc[1, ["p_microbleed", "p_calcification"]] = 0.001, 0.99  # a network that is sure
    write_table(tmp_path / "sure.tsv", said)
    out = stage(**at3t, probabilities=str(tmp_path / "sure.tsv"))
    bleed, calcification = (
        read_table(out / f"{kind}.tsv").iloc[0] for kind in ("microbleeds", "calcifications")
    )
    assert calcification["moment_ppm_mm3"] == pytest.approx(9.0, rel=0.3)
    assert bleed["moment_verdict"] == "agrees"
    assert calcification["moment_verdict"] == "contradicts"
    assert calcification["p_calcification"] == pytest.approx(0.991 * 0.99 / 1.04, abs=1e-4)
    out = stage(unwrapped=at3t["unwrapped"])  # of unknown field strength
    assert read_table(out / "microbleeds.tsv")["moment_status"].tolist() == ["no_field_strength"]
    out = stage()
    row = read_table(out / "microbleeds.tsv").iloc[0]
    assert row["moment_status"] == "no_field_strength"
    assert row[["moment_ppm_mm3", "moment_verdict"]].isna().all()


def test_the_stage_leaves_header_only_tables_where_nothing_was_found(stage, tmp_path):
    from cmb_bids.volumes import read_json, write_table

    candidates, probabilities = listed(np.zeros((0, 3)))
    write_table(tmp_path / "candidates.tsv", candidates)
    write_table(tmp_path / "probabilities.tsv", probabilities)
    out = stage(swi=None, phase_report=None)
    assert (out / "microbleeds.tsv").read_text() == "\t".join(TABLE_COLUMNS) + "\n"
    assert read_json(out / "row.json")["cmb_definite"] == 0


def test_the_stage_refuses_what_does_not_belong_together(stage, tmp_path):
    from cmb_bids.errors import BadData, UsageError
    from cmb_bids.volumes import read_json, write_json, write_table, write_volume

    write_volume(tmp_path / "small.nii.gz", np.ones((3, 3, 3), dtype=np.float32), FINE)
    with pytest.raises(BadData, match=r"small\.nii\.gz"):
        stage(swi=str(tmp_path / "small.nii.gz"))
    scan = read_json(tmp_path / "scan.json")
    scan["config"]["lesions"] = {"possible_probability": 2}
    write_json(tmp_path / "wrong.json", scan)
    with pytest.raises(UsageError, match="thresholds"):
        stage(scan=str(tmp_path / "wrong.json"))
    write_table(tmp_path / "fewer.tsv", listed(np.zeros((1, 3)))[1])
    with pytest.raises(BadData, match="not the 2 candidates"):
        stage(probabilities=str(tmp_path / "fewer.tsv"))
    assert not (tmp_path / "out").exists()
