"""A scan's pictures show each lesion where it is; its participant's page says the rest."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_report_page import Outline

from cmb_bids import naming
from cmb_bids.errors import BadData
from cmb_bids.interfaces.report import ScanFigures, last_magnitude
from cmb_bids.report import scan_figures
from cmb_bids.report.participant_page import gather_scans, read_methods, render_participant
from cmb_bids.report.scan_figures import CLOSE_UP_PIXELS, Mark, close_up_planes
from cmb_bids.report.tiles import MOST_TILES, TILES_IN_A_ROW, png_size, tiles_of
from cmb_bids.run import write_page, write_stale_pages
from cmb_bids.volumes import write_json, write_table, write_volume

HOSTILE = "<script>alert(1)</script>"
SHAPE = (40, 50, 24)
# Stored left to right as right to left, and with the origin off: 2 x 2 x 3 mm.
AFFINE = np.array([[-2.0, 0, 0, 40], [0, 2, 0, -50], [0, 0, 3, -30], [0, 0, 0, 1]])


def head():
    """A bright ball of brain in the dark, with its mask."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    centre = (np.array(SHAPE) - 1) / 2
    distance = np.linalg.norm((grid - centre) * [2, 2, 3], axis=-1)
    return np.where(distance < 32, 100.0, 5.0).astype(np.float32), distance < 32


def pixels(png):
    return np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)


def like(image, colour, tolerance=40):
    return np.abs(image - np.array(colour)).sum(axis=2) < tolerance


# ------------------------------------------------------------------------------- overview


def test_a_lesion_is_circled_once_where_it_is():
    """One to the right and front of another is right of it and above it on the same panel."""
    image, mask = head()
    places = []
    for position in ((14.0, 16.0, 6.0), (-14.0, -16.0, 6.0)):
        marks = [Mark(position, "microbleed", "", True)]
        sheet = pixels(scan_figures.draw_overview(image, mask, AFFINE, marks, 8.0))
        rows, columns = np.nonzero(like(sheet, scan_figures.MICROBLEED_COLOUR))
        diameter = 2 * scan_figures.CIRCLE_RADIUS_MM * scan_figures.PANEL_PIXELS_PER_MM
        assert np.ptp(rows) == pytest.approx(diameter, abs=2)
        assert np.ptp(columns) == pytest.approx(diameter, abs=2)
        places.append((columns.mean(), rows.mean()))
    moved = np.subtract(places[0], places[1]) / scan_figures.PANEL_PIXELS_PER_MM
    np.testing.assert_allclose(moved, [28, -32], atol=1)


def test_possible_lesions_have_a_broken_circle_and_calcifications_another_colour():
    image, mask = head()
    definite, possible, other = (
        pixels(
            scan_figures.draw_overview(image, mask, AFFINE, [Mark((0, 0, 0), kind, "", sure)], 8.0)
        )
        for kind, sure in (("microbleed", True), ("microbleed", False), ("calcification", True))
    )
    red = scan_figures.MICROBLEED_COLOUR
    assert 0 < like(possible, red).sum() < 0.8 * like(definite, red).sum()
    assert like(other, red).sum() == 0
    assert like(other, scan_figures.CALCIFICATION_COLOUR).sum() > 20


def test_an_empty_mask_still_gives_a_picture():
    image, mask = head()
    png = scan_figures.draw_overview(image, np.zeros_like(mask), AFFINE, [], 8.0)
    assert pixels(png).shape[0] > 50


@pytest.mark.parametrize("slab_mm", [0.5, 8.0, 500.0])
def test_levels_cover_the_brain_once(slab_mm):
    _, mask = head()
    levels = scan_figures.choose_levels(mask, 3.0, slab_mm)
    assert levels == sorted(set(levels))
    assert len(levels) >= 1
    assert all(mask[..., level].any() for level in levels)


# ------------------------------------------------------------------------------ close-ups


def test_a_close_up_has_the_lesion_in_its_middle_and_each_plane_the_right_way_round():
    image, _ = head()
    position = np.array([4.0, -2.0, 3.0])
    i, j, k = np.round(np.linalg.inv(AFFINE) @ [*position, 1]).astype(int)[:3]
    image[i, j, k] = 0  # the lesion
    image[i - 3, j, k] = 20  # 6 mm to the right, as x runs backwards
    image[i, j + 3, k] = 30  # 6 mm to the front
    image[i, j, k + 2] = 40  # 6 mm up
    centre = (AFFINE @ [i, j, k, 1])[:3]
    axial, coronal, sagittal = close_up_planes(image, AFFINE, centre)
    middle, step = CLOSE_UP_PIXELS // 2, round(6 / scan_figures.CLOSE_UP_MM * CLOSE_UP_PIXELS)
    for plane in (axial, coronal, sagittal):
        assert plane[middle, middle] == 0
        assert plane[5, 5] == 100
    assert axial[middle, middle + step] == 20
    assert axial[middle - step, middle] == 30
    assert coronal[middle, middle + step] == 20
    assert coronal[middle - step, middle] == 40
    assert sagittal[middle, middle + step] == 30
    assert sagittal[middle - step, middle] == 40


def test_a_close_up_beyond_the_image_is_empty_there():
    image, _ = head()
    corner = (AFFINE @ [0, 0, 0, 1])[:3]
    axial = close_up_planes(image, AFFINE, corner)[0]
    assert np.isnan(axial[-1, -1])
    assert np.isfinite(axial[CLOSE_UP_PIXELS // 2 - 4, CLOSE_UP_PIXELS // 2 - 4])
    assert np.isnan(close_up_planes(image, AFFINE, np.array([999.0, 0, 0]))).all()


@pytest.mark.parametrize("count", [0, 1, 9, MOST_TILES + 3])
def test_the_page_finds_every_tile_on_the_sheet(count, tmp_path):
    image, mask = head()
    pictures = scan_figures.pictures_of({"SWI": image, "phase": image}, mask)
    positions = np.zeros((count, 3))
    path = tmp_path / "sheet.png"
    path.write_bytes(scan_figures.draw_close_ups(pictures, AFFINE, positions))
    width, height = png_size(path)
    tiles = tiles_of((width, height), count)
    assert len(tiles) == min(count, MOST_TILES)
    for tile in tiles:
        assert (tile.width, tile.height) == scan_figures.tile_size(2)
        assert tile.left + tile.width <= width
        assert tile.top + tile.height <= height
    if count > TILES_IN_A_ROW:
        assert tiles[TILES_IN_A_ROW][:2] == (0, tiles[0].height)


def test_what_is_no_png_has_no_size(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"nothing of the kind, though it is long enough")
    assert png_size(path) is None


# ------------------------------------------------------------------------------ interface


def lesion_rows(count=2):
    return pd.DataFrame(
        {
            "index": range(1, count + 1), "name": [f"microbleed-{n}" for n in range(count)],
            "x": 4.0, "y": -2.0, "z": 3.0, "probability": 0.91, "p_calcification": 0.01,
            "certainty": ["definite", "possible"][:count], "counted": [True, False][:count],
            "diameter_mm": 3.25, "volume_mm3": 18.0, "hemisphere": "right",
            "mars_region": "basal_ganglia", "mars_class": "deep",
        }
    )  # fmt: skip


def write_scan(output, folder="sub-01", prefix="sub-01", kind="complex", **row):
    """A complete scan in a derivative dataset."""
    image, mask = head()
    anat = output / folder / "anat"
    for name in ("swi", "minip"):
        write_volume(anat / f"{prefix}_desc-{name}_T2starw.nii.gz", image, AFFINE)
    write_volume(anat / f"{prefix}_part-phase_desc-highpass_T2starw.nii.gz", image / 100, AFFINE)
    write_volume(anat / f"{prefix}_desc-brain_mask.nii.gz", mask.astype(np.uint8), AFFINE)
    write_table(anat / f"{prefix}_desc-cmb_dseg.tsv", lesion_rows())
    write_table(anat / f"{prefix}_desc-calcification_dseg.tsv", lesion_rows(0))
    state = output / "logs" / "scans" / folder / prefix
    raw = output.parent / "raw.nii.gz"
    write_volume(raw, image, AFFINE)
    echoes = [{"magnitude": str(raw), "echo_time_s": 0.02}, {"magnitude": None}]
    write_json(state / "scan.json", {"echoes": echoes, "config": {"swi": {}}})
    write_json(
        state / "scan_row.json",
        {
            "filename": f"anat/{prefix}_desc-cmb_dseg.nii.gz", "cmb_definite": 1,
            "cmb_possible": 0, "cmb_lobar": 0, "cmb_deep": 1, "cmb_infratentorial": 0,
            "calcification": 0, "pattern": "strictly_deep_infratentorial", "qc_status": "pass",
            "qc_reason": None, "burden_class": "1", "cmb_expected": 0.91, "p_ge_1": 0.91,
            "input": kind, "mask_volume_ml": 1300.0, "mars_thalamus_left": 2, **row,
        },
    )  # fmt: skip
    return anat, state


def draw(output, folder="sub-01", prefix="sub-01", phase=True):
    anat, state = output / folder / "anat", output / "logs" / "scans" / folder / prefix
    paths = {n: str(output / p) for n, p in naming.scan_figures(folder, prefix).items()}
    more = (
        {
            "swi": anat / f"{prefix}_desc-swi_T2starw.nii.gz",
            "highpass": anat / f"{prefix}_part-phase_desc-highpass_T2starw.nii.gz",
        }
        if phase
        else {}
    )
    ScanFigures(
        scan=state / "scan.json",
        minip=anat / f"{prefix}_desc-minip_T2starw.nii.gz",
        mask=anat / f"{prefix}_desc-brain_mask.nii.gz",
        microbleeds_table=anat / f"{prefix}_desc-cmb_dseg.tsv",
        calcifications_table=anat / f"{prefix}_desc-calcification_dseg.tsv",
        out_overview=paths["overview"],
        out_microbleeds=paths["cmb"],
        out_calcifications=paths["calcification"],
        **more,
    ).run()
    return {name: png_size(output / p) for name, p in paths.items()}


@pytest.mark.parametrize(("phase", "images"), [(True, 3), (False, 1)])
def test_pictures_are_drawn_from_files(tmp_path, phase, images):
    output = tmp_path / "out"
    write_scan(output)
    sizes = draw(output, phase=phase)
    width, height = scan_figures.tile_size(images)
    assert sizes["cmb"] == (2 * width, height)
    assert sizes["calcification"] == (width, height)
    assert sizes["overview"][0] > 200


def test_the_longest_echo_with_a_magnitude_is_shown(tmp_path):
    first, last = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    first.touch()
    last.touch()
    echoes = [
        {"magnitude": str(last), "echo_time_s": 0.02},
        {"magnitude": str(first), "echo_time_s": None},
        {"magnitude": "gone.nii.gz", "echo_time_s": 0.03},
    ]
    assert last_magnitude({"echoes": echoes}) == last
    assert last_magnitude({"echoes": [{"magnitude": None}]}) is None


def test_a_table_without_places_is_refused(tmp_path):
    output = tmp_path / "out"
    anat, _ = write_scan(output)
    write_table(anat / "sub-01_desc-cmb_dseg.tsv", lesion_rows().drop(columns=["z", "certainty"]))
    with pytest.raises(Exception, match="lacks columns z, certainty") as caught:
        draw(output)
    assert isinstance(caught.value, BadData) or "BadData" in str(caught.value)


# ----------------------------------------------------------------------------------- page


def page_of(output, participant="sub-01"):
    write_page(output, participant)
    return (output / f"{participant}.html").read_text(encoding="utf-8")


def test_the_page_shows_counts_pictures_and_every_lesion(tmp_path):
    output = tmp_path / "out"
    write_scan(output)
    draw(output)
    (output / "logs" / "CITATION.md").write_text("# Methods\n\nCounted.\n\n## References\n\n- A\n")
    page = page_of(output)
    outline = Outline(page)
    assert outline.open == []
    assert "http" not in page.replace("http-equiv", "")
    images = [a for tag, a in outline.tags if tag == "img"]
    assert [a["src"] for a in images] == [
        "sub-01/figures/sub-01_desc-overview.png",
        "sub-01/figures/sub-01_desc-cmb.png",
        "sub-01/figures/sub-01_desc-cmb.png",
    ]
    assert all((output / a["src"]).is_file() and a["alt"] for a in images)
    assert "object-position: -292px -0px" in images[2]["style"]
    captions = outline.inside("figcaption")
    assert captions[1] == "Microbleed 1, definite: probability 0.91, 3.2 mm, right basal ganglia"
    assert captions[2].endswith("not counted")
    assert "No calcification was found." in outline.inside("p")
    assert "Quality check: pass." in outline.inside("p")
    assert {"Counted.", "References"} <= set(outline.inside("p"))
    assert "mars_thalamus_left" in outline.inside("th")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"qc_status": "warn", "qc_reason": HOSTILE}, "look first at: &lt;script&gt;"),
        ({"qc_status": "fail", "qc_reason": "no brain", "cmb_definite": None}, "no brain."),
        ({"kind": "magnitude"}, "There was no phase"),
    ],
)
def test_the_page_says_what_is_doubtful(tmp_path, row, said):
    output = tmp_path / "out"
    write_scan(output, **row)
    page = page_of(output)
    assert said in page
    assert HOSTILE not in page
    assert "The picture was not made" in page  # none was


def test_the_page_escapes_a_hostile_participant():
    page = render_participant(HOSTILE, [], HOSTILE)
    assert HOSTILE not in page
    assert Outline(page).inside("h1") == [f"Cerebral microbleeds of {HOSTILE}"]


def test_sessions_share_a_page_which_follows_what_is_complete(tmp_path):
    output = tmp_path / "out"
    for session in "AB":
        write_scan(output, f"sub-01/ses-{session}", f"sub-01_ses-{session}")
    page = page_of(output)
    assert "2 scans; they show the same lesions" in page
    assert [s.name for s in gather_scans(output, "sub-01")] == ["sub-01_ses-A", "sub-01_ses-B"]
    (output / "logs/scans/sub-01/ses-A/sub-01_ses-A/scan_row.json").unlink()
    write_stale_pages(output, ["sub-01"], {"sub-01"})
    assert "ses-A" not in (output / "sub-01.html").read_text()
    (output / "logs/scans/sub-01/ses-B/sub-01_ses-B/scan_row.json").unlink()
    write_stale_pages(output, ["sub-01", "sub-02"], {"sub-01"})
    assert not list(output.glob("*.html"))


def test_a_damaged_table_costs_the_page_only(tmp_path, caplog):
    output = tmp_path / "out"
    anat, state = write_scan(output)
    (anat / "sub-01_desc-cmb_dseg.tsv").unlink()
    write_stale_pages(output, ["sub-01"], set())
    assert "sub-01 has no page" in caplog.text
    assert json.loads((state / "scan_row.json").read_text())["cmb_definite"] == 1


def test_a_moment_is_shown_and_a_sign_that_contradicts_is_said(tmp_path):
    output = tmp_path / "out"
    anat, _ = write_scan(output)
    table = lesion_rows().assign(
        moment_ppm_mm3=[14.2, None], moment_sd_ppm_mm3=[2.1, None],
        moment_verdict=["contradicts", None],
    )  # fmt: skip
    write_table(anat / "sub-01_desc-cmb_dseg.tsv", table)
    draw(output)
    captions = Outline(page_of(output)).inside("figcaption")
    assert "magnetic moment 14 ± 2.1 ppm mm³, whose sign contradicts the kind" in captions[1]
    assert "moment" not in captions[2]


def test_methods_are_paragraphs_and_lists():
    blocks = read_methods("# Methods\n\nOne\ntwo.\n\n## References\n\n- A\n- B\n")
    assert [block.kind for block in blocks] == ["text", "text", "bullets"]
    assert blocks[0].text == "One two."
    assert list(blocks[2].items) == ["A", "B"]
