"""Brain mask: the pieces on drawn objects, the whole on the template posing as a scan."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cmb_bids import brain
from cmb_bids.brain import BrainConfig, extract_brain, load_template
from cmb_bids.errors import BadData, InputMissing, UsageError
from cmb_bids.head import block_mean, coarse_steps
from cmb_bids.interfaces.brain import BrainMask, read_given_mask
from cmb_bids.volumes import read_volume, voxel_sizes, write_json, write_volume

CONFIG = BrainConfig()


def rotation_x(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    out = np.eye(4)
    out[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return out


def posed_head(tilt_deg: float, sizes=(4.5, 4.0, 5.0), shape=(44, 51, 38)):
    """The template with the contrast turned over and a coil's shading, tilted, on a scan's grid.

    Returns magnitude, affine, true mask, true regions.
    """
    template = load_template()
    centre = np.array([2.0, 1.0, 12.0])
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = centre - (np.array(shape) - 1) / 2 * sizes
    # Scan world to template world: tilt and shift of a head that is not where the template's is.
    pose = rotation_x(tilt_deg)
    pose[:3, 3] = [6, -9, 11]
    chain = np.linalg.inv(template.affine) @ pose @ affine

    def carry(image, order):
        return ndimage.affine_transform(
            image, chain[:3, :3], chain[:3, 3], output_shape=shape, order=order
        )

    mask = carry(template.mask.astype(np.float32), 1) > 0.5
    head = carry(template.head, 1)
    turned = np.where(mask, 330 - head, 0.6 * head)
    ramp = np.exp(np.linspace(-0.3, 0.3, shape[0]))[:, None, None]
    noise = np.random.default_rng(0).normal(0, 3, (2, *shape))
    magnitude = np.hypot(turned * ramp + noise[0], noise[1])
    return magnitude.astype(np.float32), affine, mask, carry(template.regions, 0)


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.fixture(scope="module")
def tilted():
    magnitude, affine, mask, regions = posed_head(22)
    return magnitude, affine, mask, regions, extract_brain(magnitude, affine)


# ------------------------------------------------------------------ the template


def test_template_is_whole_and_labelled():
    template = load_template()
    assert template.head.shape == template.mask.shape == template.regions.shape
    ratio = template.head[template.mask].mean() / template.head[~template.mask].mean()
    assert ratio > 1.5
    volume = template.mask.sum() * abs(np.linalg.det(template.affine[:3, :3])) / 1000
    assert 1000 < volume < 1500
    labelled = (template.regions > 0) & template.mask
    assert labelled.sum() > 0.9 * template.mask.sum()
    assert set(np.unique(template.regions)) == {0} | {
        label + side
        for side in (0, 100)
        for label in (1, 2, 3, 4, 5, 11, 12, 13, 14, *range(21, 29), 31, 32, 41)
    }


def test_template_sides_and_mni():
    template = load_template()
    where = np.argwhere(np.isin(template.regions, (24, 124)))
    world = where @ template.affine[:3, :3].T + template.affine[:3, 3]
    mni = world @ template.to_mni[:3, :3].T + template.to_mni[:3, 3]
    left = template.regions[tuple(where.T)] == 24
    assert mni[left, 0].mean() < -5
    assert mni[~left, 0].mean() > 5
    # The thalamus lies about 11 mm off the midline at y -19, z 7 of MNI space.
    np.testing.assert_allclose(np.abs(mni.mean(axis=0)), [0, 19, 7], atol=4)


# ------------------------------------------------------------------ the whole stage


def test_tilted_head_is_found(tilted):
    _, _, mask, regions, result = tilted
    assert result.report["gate"] == "pass"
    assert result.report["source"] == "registration"
    assert result.report["reason"] == ""
    assert dice(result.mask, mask) > 0.95
    both = (result.regions > 0) & (regions > 0) & mask
    assert (result.regions[both] == regions[both]).mean() > 0.85
    assert not result.regions[~result.mask].any()
    assert result.mask.dtype == bool
    assert result.normalized.dtype == np.float32
    assert result.regions.dtype == np.int16
    json.dumps(result.report, allow_nan=False)


def test_shading_is_removed(tilted):
    magnitude, _, mask, _, result = tilted
    assert np.median(result.normalized[result.mask]) == pytest.approx(1, abs=0.02)

    def slope(image):
        rows = np.array([np.median(i[m]) for i, m in zip(image, mask, strict=True) if m.any()])
        return np.polyfit(np.arange(rows.size), rows / rows.mean(), 1)[0] * rows.size

    assert abs(slope(result.normalized)) < 0.5 * abs(slope(magnitude))


def test_mni_affine_of_a_scan(tilted):
    _, affine, _, regions, result = tilted
    where = np.argwhere(np.isin(regions, (24, 124)))
    matrix = np.array(result.report["mni_affine"]) @ affine
    mni = where @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(np.abs(mni.mean(axis=0)), [0, 19, 7], atol=5)


def test_same_input_same_result_and_input_untouched(tilted):
    magnitude, affine, _, _, result = tilted
    before = magnitude.copy()
    np.random.seed(7)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    again = extract_brain(magnitude, affine)
    np.testing.assert_array_equal(again.mask, result.mask)
    np.testing.assert_array_equal(again.regions, result.regions)
    np.testing.assert_array_equal(again.normalized, result.normalized)
    np.testing.assert_array_equal(magnitude, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_given_mask_is_used_as_it_is(tilted):
    magnitude, affine, mask, regions, _ = tilted
    result = extract_brain(magnitude, affine, given_mask=mask.astype(np.uint8))
    np.testing.assert_array_equal(result.mask, mask)
    assert result.report["source"] == "derivatives"
    assert result.report["gate"] == "pass"
    both = (result.regions > 0) & (regions > 0)
    assert (result.regions[both] % 100 == regions[both] % 100).mean() > 0.8


def test_too_strict_a_gate_falls_back_to_signal(tilted, monkeypatch):
    magnitude, affine, *_ = tilted
    head = ndimage.binary_fill_holes(magnitude > 30)
    monkeypatch.setattr(brain, "SYN_ITERATIONS", (2, 0))
    strict = replace(CONFIG, maximum_volume_ml=1000.0, large_head_volume_ml=1050.0)
    failed = extract_brain(magnitude, affine, strict)
    assert failed.report["gate"] == "fail"
    assert failed.report["source"] == "signal"
    assert "above 1050 ml" in failed.report["reason"]
    assert not failed.regions.any()
    assert failed.report["mni_affine"] is None
    assert dice(failed.mask, head) > 0.8


# ------------------------------------------------------------------ inputs without a brain


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64])
def test_crop_fails_in_words_at_once(kind):
    magnitude = np.random.default_rng(0).uniform(200, 300, (51, 51, 24)).astype(kind)
    result = extract_brain(magnitude, np.diag([0.47, 0.47, 1.0, 1.0]))
    assert result.report["gate"] == "fail"
    assert "cannot hold a whole brain" in result.report["reason"]
    assert result.report["source"] == "signal"
    assert result.mask.mean() > 0.9
    assert not result.regions.any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 60), (2, 300, 300)])
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_empty_images_do_not_crash(shape, value):
    result = extract_brain(np.full(shape, value, np.float32), np.diag([3.0, 3.0, 3.0, 1]))
    assert result.report["gate"] == "fail"
    assert result.report["reason"]
    assert not result.mask.any()
    assert np.isfinite(result.normalized).all()


def test_not_finite_and_negative_voxels_count_as_nothing():
    magnitude = np.full((20, 20, 20), 100.0, np.float32)
    magnitude[3, 3, 3], magnitude[4, 4, 4], magnitude[5, 5, 5] = np.nan, np.inf, -50
    result = extract_brain(magnitude, np.eye(4))
    assert result.normalized[3, 3, 3] == result.normalized[4, 4, 4] == 0
    assert result.normalized[5, 5, 5] == 0
    assert result.normalized[10, 10, 10] == 1
    assert np.isnan(magnitude[3, 3, 3])


def test_empty_or_misshapen_given_mask_is_refused():
    magnitude = np.ones((10, 10, 10), np.float32)
    with pytest.raises(ValueError, match="empty"):
        extract_brain(magnitude, np.eye(4), given_mask=np.zeros((10, 10, 10)))
    with pytest.raises(ValueError, match="shape"):
        extract_brain(magnitude, np.eye(4), given_mask=np.ones((9, 10, 10)))


# ------------------------------------------------------------------ pieces


@pytest.mark.parametrize(
    ("volume", "coverage", "overlap", "words"),
    [
        (1400, 1.0, 0.95, None),
        (1000, 0.8, 0.75, None),
        (899, 1.0, 0.95, "below 900 ml"),
        (901, 1.0, 0.95, None),
        (1901, 1.0, 0.89, "above 1900 ml"),
        (1901, 1.0, 0.9, None),
        (2200, None, None, None),
        (2201, None, None, "above 2200 ml"),
        (2201, 1.0, 0.99, "above 2200 ml"),
        (1400, 0.5, 0.95, "only 50% of the brain"),
        (1400, 1.0, 0.4, "does not fit"),
    ],
)
def test_gate(volume, coverage, overlap, words):
    reason = brain.gate(volume, coverage, overlap, CONFIG)
    assert reason is None if words is None else words in reason


def test_a_large_head_is_counted_with_a_warning():
    assert brain.doubt(1900, CONFIG) is None
    assert "1950 ml is above 1900 ml" in (brain.doubt(1950, CONFIG) or "")


def test_a_small_head_is_counted_with_a_warning():
    assert brain.doubt(1000, CONFIG) is None
    assert "950 ml is below 1000 ml" in (brain.doubt(950, CONFIG) or "")


def test_refinement_trims_the_rim_and_keeps_dark_spots():
    sizes = np.array([3.0, 3.0, 3.0])
    grid = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1) * 3.0
    centre = np.array([60.0, 60, 60])
    ball = np.linalg.norm(grid - centre, axis=-1) < 45
    image = np.where(ball, 100.0, 2.0).astype(np.float32)
    image[ball & (grid[..., 0] > 90)] = 5  # signal lost at one end
    image[20, 20, 20] = 0  # a lesion
    image[20, 20, 6:8] = 0  # a lesion at the surface
    refined = brain.refine_mask(ball, image, sizes)
    assert refined[20, 20, 20]
    assert refined[20, 20, 7]
    assert not refined[grid[..., 0] > 97].any()
    assert (refined & ~ball).sum() == 0
    assert refined.sum() > 0.9 * (ball & (grid[..., 0] <= 90)).sum()


def test_refinement_keeps_a_large_lesion_at_the_surface():
    sizes = np.array([3.0, 3.0, 3.0])
    grid = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1) * 3.0
    ball = np.linalg.norm(grid - 60, axis=-1) < 45
    lesion = np.linalg.norm(grid - [60, 60, 20], axis=-1) <= 5
    image = np.where(ball & ~lesion, 100.0, 2.0).astype(np.float32)
    refined = brain.refine_mask(ball, image, sizes)
    assert refined[lesion & ball].mean() > 0.8


def test_refinement_of_nothing_is_nothing():
    empty = np.zeros((5, 5, 5), bool)
    assert not brain.refine_mask(empty, np.ones((5, 5, 5), np.float32), np.ones(3)).any()


def test_coarse_grid_does_not_hang_on_rounding():
    assert coarse_steps(np.array([0.5, 0.5, 2.0 + 4e-8])) == (6, 6, 2)
    assert coarse_steps(np.array([0.5, 0.5, 2.0 - 4e-8])) == (6, 6, 2)


def test_mutual_information_of_a_permuted_image_is_small():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=20000)
    turned = np.cos(3 * image)
    assert brain._mutual_information(image, turned) > 2
    assert brain._mutual_information(image, rng.permutation(turned)) < 0.05


SQUEEZED = np.diag([1.1, 1.1, 1.6, 1.0])  # the template is in the upper part of the head
NODDED = brain._start((25, 0), np.zeros(3), np.array([0.0, 0.0, -15.0]))


@pytest.mark.parametrize("wrong", [SQUEEZED, NODDED], ids=["squeezed", "nodded"])
def test_a_template_that_is_not_where_brain_is_seen_is_no_start_though_it_tells_more(
    tmp_path, monkeypatch, wrong
):
    # As on a scan of another simulator: .40 against .35.
    magnitude, affine, _, _ = posed_head(0)
    right = np.eye(4)
    right[:3, 3] = [6, -9, 11]
    offered = iter([wrong @ right, right, wrong @ right, wrong @ right, wrong @ right])
    told = iter([0.40, 0.35, 0.40, 0.38, 0.36])

    def quick(fixed, moving, begin, prefix, seed, shrink):
        return brain._write_affine(next(offered), np.zeros(3), f"{prefix}.mat")

    monkeypatch.setattr(brain, "_affine", quick)
    monkeypatch.setattr(brain, "_mutual_information", lambda first, second: next(told))
    scan = brain._to_ants(magnitude, affine)
    head = ndimage.binary_fill_holes(magnitude > 30)
    centres = np.zeros(3), np.zeros(3)
    file = brain._best_start(scan, scan, affine, head, affine, centres, str(tmp_path), seed=1)
    np.testing.assert_allclose(brain._read_affine(file), right, atol=1e-4)


def test_start_is_right_where_the_field_of_view_ends_at_the_skull_base(tmp_path):
    magnitude, affine, mask, _ = posed_head(-18)
    base = int(np.flatnonzero(mask.any(axis=(0, 1)))[0])
    magnitude, mask = magnitude[..., base:], mask[..., base:]
    affine[:3, 3] += affine[:3, 2] * base
    head = ndimage.binary_fill_holes(magnitude > 30)
    template = load_template()
    steps = coarse_steps(voxel_sizes(template.affine))
    coarse = block_mean(template.head, steps)
    coarse_affine = brain._coarse_affine(template.affine, steps)
    centres = brain._centroid(head, affine), brain._centroid(coarse > 20, coarse_affine)
    images = brain._to_ants(magnitude, affine), brain._to_ants(coarse, coarse_affine)
    file = brain._best_start(*images, affine, head, coarse_affine, centres, str(tmp_path), seed=1)
    chain = np.linalg.inv(template.affine) @ brain._read_affine(file) @ affine
    carried = ndimage.affine_transform(
        template.mask.astype(np.float32), chain[:3, :3], chain[:3, 3], mask.shape, order=1
    )
    assert dice(carried > 0.5, mask) > 0.9


@pytest.mark.parametrize("steps", [(1, 1, 1), (4, 3, 1), (2, 5, 7)])
def test_enlarging_keeps_a_ramp(steps):
    shape = (21, 17, 9)
    affine = np.diag([0.8, 0.9, 3.0, 1.0])
    affine[:3, 3] = [4, -7, 2]
    coarse_shape = tuple(-(-n // s) for n, s in zip(shape, steps, strict=True))
    world = brain.voxel_grid_points(coarse_shape, brain._coarse_affine(affine, steps))
    full = brain.voxel_grid_points(shape, affine)
    inner = tuple(slice(s, (n // s) * s - s) for n, s in zip(shape, steps, strict=True))
    for axis in range(3):
        out = brain._enlarge(world[..., axis], steps, shape)
        assert out.shape == shape
        np.testing.assert_allclose(out[inner], full[..., axis][inner], atol=1e-3)


def test_affine_survives_being_written_for_ants(tmp_path):
    matrix = rotation_x(17)
    matrix[:3, :3] *= 1.1
    matrix[:3, 3] = [4, -20, 9]
    path = brain._write_affine(matrix, np.array([5.0, 6, 7]), str(tmp_path / "a.mat"))
    np.testing.assert_allclose(brain._read_affine(path), matrix, atol=1e-3)


def test_resampled_mask_stays_in_place():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[4:12, 6:14, 8:16] = 1
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    flipped = affine.copy()
    flipped[0, 0], flipped[0, 3] = -2.0, 38.0
    moved = brain.resample_mask(mask, affine, (20, 20, 20), flipped)
    np.testing.assert_array_equal(moved, mask[::-1] > 0)
    finer = brain.resample_mask(mask, affine, (40, 40, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
    assert finer.sum() == pytest.approx(8 * mask.sum(), rel=0.2)


def test_head_is_stripped_or_not():
    affine = np.diag([4.0, 4, 4, 1])
    ball = np.linalg.norm(np.indices((50, 50, 50)) - 25.0, axis=0) < 17
    assert brain._looks_stripped(ball * 100.0, ball, affine, CONFIG)
    assert not brain._looks_stripped(ball * 100.0 + 1, ball, affine, CONFIG)


# ------------------------------------------------------------------ files


def test_interface_on_a_crop(tmp_path):
    affine = np.diag([0.5, 0.5, 1.0, 1.0])
    affine[:3, 3] = 7
    write_volume(tmp_path / "m.nii.gz", np.full((40, 40, 20), 50, np.int16), affine)
    write_json(tmp_path / "scan.json", {"mask": None, "config": {"brain": {}}, "random_seed": 0})
    names = {"out_mask": "mask.nii.gz", "out_normalized": "n.nii.gz", "out_regions": "r.nii.gz"}
    outputs = {name: str(tmp_path / "new" / file) for name, file in names.items()}
    outputs["out_report"] = str(tmp_path / "new" / "brain.json")
    run = BrainMask(
        scan=str(tmp_path / "scan.json"), magnitude=str(tmp_path / "m.nii.gz"), **outputs
    ).run()
    report = json.loads((tmp_path / "new" / "brain.json").read_text())
    assert report["gate"] == "fail"
    assert run.outputs.out_report == outputs["out_report"]
    for name in names:
        volume = read_volume(getattr(run.outputs, name))
        assert volume.data.shape == (40, 40, 20)
        np.testing.assert_allclose(volume.affine, affine)


def test_given_mask_files(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    with pytest.raises(InputMissing):
        read_given_mask(tmp_path / "none.nii.gz", (5, 5, 5), affine)
    write_volume(tmp_path / "empty.nii.gz", np.zeros((5, 5, 5), np.uint8), affine)
    with pytest.raises(BadData, match="empty"):
        read_given_mask(tmp_path / "empty.nii.gz", (5, 5, 5), affine)
    far = affine.copy()
    far[:3, 3] = 500
    write_volume(tmp_path / "far.nii.gz", np.ones((5, 5, 5), np.uint8), far)
    with pytest.raises(BadData, match="overlap"):
        read_given_mask(tmp_path / "far.nii.gz", (5, 5, 5), affine)


def test_unknown_setting_is_refused(tmp_path):
    write_volume(tmp_path / "m.nii.gz", np.ones((5, 5, 5), np.int16), np.eye(4))
    write_json(tmp_path / "scan.json", {"config": {"brain": {"minimum_volume": 3}}})
    out = {f"out_{k}": str(tmp_path / f"{k}.nii.gz") for k in ("mask", "normalized", "regions")}
    interface = BrainMask(
        scan=str(tmp_path / "scan.json"),
        magnitude=str(tmp_path / "m.nii.gz"),
        out_report=str(tmp_path / "r.json"),
        **out,
    )
    with pytest.raises(UsageError, match="minimum_volume"):
        interface.run()


# ------------------------------------------------------------------ real scans


def test_real_head(realdata):
    folder = realdata / "sub-philips3mm" / "anat"
    volume = read_volume(folder / "sub-philips3mm_echo-1_part-mag_MEGRE.nii.gz")
    result = extract_brain(volume.data, volume.affine)
    assert result.report["gate"] == "pass", result.report["reason"]
    assert 1300 < result.report["volume_ml"] < 1600
    labelled = result.mask & (result.regions % 100 > 0)
    assert labelled.sum() > 0.85 * result.mask.sum()
    # Left is left: RAS+ world, so the left thalamus lies at smaller x.
    left, right = (np.argwhere(result.regions == label).mean(axis=0) for label in (24, 124))
    step = volume.affine[:3, :3] @ (right - left)
    assert 12 < step[0] < 32
    assert voxel_sizes(volume.affine).round(2).tolist() == [3, 3, 3]


def test_real_crop_is_flagged(realdata):
    folder = realdata / "sub-romeocrop" / "anat"
    volume = read_volume(folder / "sub-romeocrop_echo-1_part-mag_MEGRE.nii.gz")
    result = extract_brain(volume.data, volume.affine)
    assert result.report["gate"] == "fail"
    assert "field of view" in result.report["reason"]
