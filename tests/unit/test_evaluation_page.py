"""Pictures of single lesions, which are shown, and the page around them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cmb_bids.evaluate import evaluate_derivatives
from cmb_bids.evaluate.comparison import compare_cohorts
from cmb_bids.evaluate.crops import (
    GAP,
    PIXELS,
    WIDTH_MM,
    cut_plane,
    draw_views,
    mark_centre,
    planes_of,
)
from cmb_bids.evaluate.gallery import (
    Picture,
    Pictures,
    collect_pictures,
    find_images,
    worst_misses,
)
from cmb_bids.report.evaluation_page import evaluation_page
from cmb_bids.volumes import write_table, write_volume

FLIPPED = np.array([[-1.0, 0, 0, 30], [0, 1.0, 0, -30], [0, 0, 3.0, -30], [0, 0, 0, 1]])
NO_PICTURES = Pictures([], [], 0, 0)


def spot(affine, at_mm, shape=(60, 60, 20)):
    """Volume of ones with a zero at the voxel of a point."""
    volume = np.ones(shape, np.float32)
    index = np.linalg.inv(affine) @ [*at_mm, 1]
    volume[tuple(np.rint(index[:3]).astype(int))] = 0
    return volume


# ------------------------------------------------------------------ cuts


@pytest.mark.parametrize("affine", [FLIPPED, np.diag([1.0, 1, 3, 1])])
@pytest.mark.parametrize(("shift", "side"), [((6, 0, 0), "right"), ((0, 6, 0), "up")])
def test_right_is_right_and_front_is_up(affine, shift, side):
    middle = (affine @ [30, 30, 10, 1])[:3]
    volume = spot(affine, middle + np.array(shift))
    view = cut_plane(volume, affine, middle, (0, 1))
    row, column = np.unravel_index(np.argmin(view), view.shape)
    away = round(6 / WIDTH_MM * PIXELS)
    expected = {"right": (PIXELS // 2, PIXELS // 2 + away), "up": (PIXELS // 2 - away, PIXELS // 2)}
    assert np.allclose((row, column), expected[side], atol=3)


def test_a_cut_across_slices_is_in_mm():
    middle = (FLIPPED @ [30, 30, 10, 1])[:3]
    view = cut_plane(spot(FLIPPED, middle), FLIPPED, middle, (0, 2))
    dark = view < 0.5
    wide, high = dark.any(axis=0).sum(), dark.any(axis=1).sum()
    assert high / wide == pytest.approx(3, rel=0.35)


def test_outside_the_image_is_missing():
    volume = np.ones((10, 10, 10), np.float32)
    view = cut_plane(volume, np.eye(4), np.array([0.0, 5, 5]), (0, 1))
    assert np.isnan(view[:, 0]).all()
    assert (view[PIXELS // 2, PIXELS // 2 + 2 : PIXELS // 2 + 20] == 1).all()
    assert np.isnan(cut_plane(volume, np.eye(4), np.array([500.0, 5, 5]), (0, 1))).all()


def test_planes_follow_the_slices():
    assert planes_of(np.diag([0.8, 0.8, 3, 1])) == ((0, 1), (0, 2))
    sagittal = np.array([[0, 0, 3.0, 0], [0.8, 0, 0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1]])
    assert planes_of(sagittal) == ((1, 2), (0, 1))


def test_ticks_point_at_the_centre_and_leave_it_free():
    view = np.zeros((PIXELS, PIXELS), np.uint8)
    marked = mark_centre(view)
    middle = PIXELS // 2
    assert (marked[middle - 8 : middle + 8, middle - 8 : middle + 8] == 0).all()
    assert (marked == 255).sum() > 20
    assert (view == 0).all()


def test_picture_has_a_row_for_phase_where_there_is_phase():
    volume, middle = np.ones((40, 40, 20), np.float32), np.array([10.0, 0, 0])
    sizes = []
    for phase in (None, np.zeros_like(volume)):
        picture = Image.open(BytesIO(draw_views(volume, FLIPPED, middle, phase)))
        sizes.append(picture.size)
    assert sizes == [(2 * PIXELS + GAP, PIXELS), (2 * PIXELS + GAP, 2 * PIXELS + GAP)]


# ------------------------------------------------------------------ which and from where


def test_most_visible_misses_come_first():
    lesions = pd.DataFrame(
        {
            "outcome": ["missed", "hit", "missed", "missed"],
            "contrast_to_noise": [3.0, 99.0, np.nan, 12.0],
            "diameter_mm": [9.0, 9.0, 9.0, 1.0],
        }
    )
    assert worst_misses(lesions, 10).index.tolist() == [3, 0, 2]
    assert worst_misses(lesions, 1).index.tolist() == [3]
    assert worst_misses(lesions[["outcome"]], 2).index.tolist() == [0, 2]


def test_images_are_swi_and_phase_else_the_last_raw_magnitude(tmp_path):
    derivatives, raw = tmp_path / "out", tmp_path / "raw"
    for folder, name in (
        (derivatives, "sub-01_ses-A_desc-swi_MEGRE.nii.gz"),
        (derivatives, "sub-01_ses-A_part-phase_desc-highpass_MEGRE.nii.gz"),
        (raw, "sub-01_ses-B_echo-1_part-mag_MEGRE.nii.gz"),
        (raw, "sub-01_ses-B_echo-2_part-mag_MEGRE.nii.gz"),
        (raw, "sub-01_ses-B_echo-2_part-phase_MEGRE.nii.gz"),
    ):
        path = folder / "sub-01" / name.split("_")[1] / "anat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    both = find_images([derivatives, raw], "sub-01_ses-A")
    assert "swi" in both.magnitude.name
    assert "highpass" in both.phase.name
    alone = find_images([derivatives, raw], "sub-01_ses-B")
    assert alone.magnitude.name == "sub-01_ses-B_echo-2_part-mag_MEGRE.nii.gz"
    assert alone.phase is None
    assert find_images([derivatives, raw], "sub-01_ses-C").magnitude is None


# ------------------------------------------------------------------ the page


@pytest.fixture
def result(tmp_path):
    """Two scans: one missed lesion with an image, one false alarm without."""
    derivatives, labels = tmp_path / "out", tmp_path / "truth"
    position = pd.DataFrame({"x": [0.0], "y": [0.0], "z": [0.0]})
    position["name"] = "microbleed"
    empty = position.iloc[:0]
    for scan, truth, found in (("01", position, empty), ("02", empty, position)):
        anat = f"sub-{scan}/anat/sub-{scan}"
        write_table(labels / f"{anat}_desc-truth_dseg.tsv", truth)
        write_table(
            derivatives / f"{anat}_desc-cmb_dseg.tsv",
            found.assign(probability=0.8, mars_region="<b>lobe</b>"),
        )
    write_volume(
        derivatives / "sub-01/anat/sub-01_desc-swi_T2starw.nii.gz",
        spot(FLIPPED, (0, 0, 0)),
        FLIPPED,
    )
    return evaluate_derivatives(derivatives, labels, samples=20), derivatives


def test_pictures_of_misses_and_false_alarms(result):
    pictures = collect_pictures(result[0], [result[1]], 5)
    assert (pictures.missed, pictures.false) == (1, 1)
    assert pictures.misses[0].png.startswith(b"\x89PNG")
    assert pictures.false_alarms[0].png is None
    assert pictures.false_alarms[0].caption.startswith("sub-02 · p 0.80")
    assert collect_pictures(result[0], [result[1]], 0).misses == []


def test_a_damaged_image_costs_its_picture_alone(result):
    path = result[1] / "sub-01/anat/sub-01_desc-swi_T2starw.nii.gz"
    path.write_bytes(b"no image")
    assert collect_pictures(result[0], [result[1]], 5).misses[0].png is None


def test_page_stands_alone_is_escaped_and_repeats(result):
    scored, folder = result
    pictures = collect_pictures(scored, [folder], 5)
    page = evaluation_page([scored], None, pictures)
    assert page == evaluation_page([scored], None, pictures)
    assert "data:image/png;base64," in page
    assert "<b>lobe</b>" not in page
    assert "&lt;b&gt;lobe" in page
    assert 'src="http' not in page
    for heading in ("Overall", "FROC", "Reliability", "Worst misses", "How it is scored"):
        assert f">{heading}</h2>" in page
    assert "simulated" not in page.split("<main")[1].lower()


def test_page_of_simulated_scans_and_of_two_tools(result):
    scored, _ = result
    cohort = scored["scored"].cohort
    table = compare_cohorts(cohort, cohort, samples=20)
    page = evaluation_page(
        [scored | {"simulated": True}, scored | {"name": "two"}], table, NO_PICTURES
    )
    assert "not comparable" in page
    assert "Comparison" in page
    assert "McNemar" in page


def test_page_without_probabilities_or_lesions(tmp_path):
    nothing = pd.DataFrame({"x": [], "y": [], "z": []})
    for folder in ("out", "truth"):
        write_table(tmp_path / folder / "sub-01/sub-01_desc-cmb_dseg.tsv", nothing)
    scored = evaluate_derivatives(tmp_path / "out", tmp_path / "truth", samples=5)
    page = evaluation_page([scored], None, Pictures([], [Picture(None, "c", "a")], 0, 1))
    assert "No detection has a probability" in page
    assert "No image of these was found" in page
