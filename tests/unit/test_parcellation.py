"""A parcellation of the user's own: what its names mean, which scan it fits, how it is merged."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmb_bids.anatomy import RIGHT, STRUCTURES, label_lesions, to_mni
from cmb_bids.errors import BadData
from cmb_bids.given_parcellations import (
    FREESURFER,
    Parcellation,
    choose_parcellation,
    find_parcellations,
)
from cmb_bids.interfaces.brain import add_parcellation, read_labels, read_names, read_places
from cmb_bids.parcellation import (
    DIVIDED_BY_ATLAS,
    FIRST_CODE,
    freesurfer_names,
    interpret_name,
    interpret_names,
    measure_alignment,
    merge_regions,
    resample_labels,
)

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = [-60, -60, -60]
SHAPE = (60, 60, 60)
OBLIQUE = np.array(
    [[0.78, -0.2, 0.1, -40], [0.2, 0.75, -0.6, -30], [0.05, 0.19, 2.9, -40], [0, 0, 0, 1.0]]
)
WHITE = (11, 12, 13, 14, 25, 26, 27, 28)


def distance_from_centre(shape=SHAPE, affine=AFFINE) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every voxel from the world's origin, and its x, in mm."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(world, axis=-1), world[..., 0]


def drawn_atlas() -> np.ndarray:
    """A ball: thalamus inside, then deep white matter, frontal white matter, frontal cortex."""
    radius, x = distance_from_centre()
    atlas = np.zeros(SHAPE, np.int16)
    for limit, label in ((50, 1), (40, 11), (30, 28), (15, 24)):
        atlas[radius <= limit] = label
    atlas[(x > 0) & (atlas > 0)] += RIGHT
    return atlas


def drawn_aseg() -> np.ndarray:
    """FreeSurfer's numbers on the same ball, its thalamus a little larger."""
    radius, x = distance_from_centre()
    aseg = np.zeros(SHAPE, np.int32)
    for limit, (left, right) in ((50, (3, 42)), (40, (2, 41)), (20, (10, 49))):
        aseg[radius <= limit] = np.where(x > 0, right, left)[radius <= limit]
    return aseg


def structures_of(labels: dict[int, str]) -> dict:
    return interpret_names(labels)[0]


# --------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "labels", "side"),
    [
        ("Left-Thalamus-Proper", (24,), "left"),
        ("ctx-rh-parstriangularis", (1,), "right"),
        ("ctx-lh-precuneus", (2,), "left"),
        ("ctx-lh-cuneus", (4,), "left"),
        ("lh_superiortemporal", (3,), "left"),
        ("wm-rh-precentral", (11,), "right"),
        ("wm-lh-insula", WHITE, "left"),
        ("Left-Cerebral-White-Matter", WHITE, "left"),
        ("left cerebral cortex", (1, 2, 3, 4, 5), "left"),
        ("Right-Cerebellum-White-Matter", (32,), "right"),
        ("Cerebelum_Crus1_L", (32,), "left"),
        ("Brain-Stem", (31,), None),
        ("CC_Mid_Anterior", (27,), None),
        ("right ventral DC", (24, 25, 31), "right"),
        ("Left-Inf-Lat-Vent", (41,), "left"),
        ("CSF", (0,), None),
        ("Insula_R", (5,), "right"),
        ("Cingulum_Post_L", (2,), "left"),
        ("G_oc-temp_lat-fusifor", (3,), None),
        ("S_pericallosal", (1,), None),
        ("Inferior Temporal Gyrus, temporooccipital part", (3,), None),
        ("Posterior_limb_of_internal_capsule_L", (25,), "left"),
        ("posterior thalamic radiation (include optic radiation)", (28,), None),
        ("deep grey matter", (21, 22, 23, 24), None),
        ("infratentorial", (31, 32), None),
    ],
)
def test_names_mean_what_anatomists_mean_by_them(name, labels, side):
    found = interpret_name(name)
    assert found is not None
    assert (found.labels, found.side) == (labels, side)


def test_every_freesurfer_name_is_understood():
    _, unknown = interpret_names(freesurfer_names())
    assert unknown == {}
    assert freesurfer_names()[1028] == "ctx-lh-superiorfrontal"
    assert freesurfer_names()[2035] == "ctx-rh-insula"


def test_what_no_rule_fits_is_not_guessed():
    known, unknown = interpret_names({0: "zero", 1: "7Networks_LH_Vis_1", 2: "Left-Putamen"})
    assert (set(known), unknown) == ({2}, {1: "7Networks_LH_Vis_1"})


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_is_not(text):
    found = interpret_name(text)
    assert found is None or all(k in STRUCTURES or k in (0, 41) for k in found.labels)


# -------------------------------------------------------------------------------- images


def test_labels_keep_their_place_on_another_grid():
    labels = np.zeros(SHAPE, np.int32)
    labels[20:26, 30:36, 28:34] = 1028
    moved = resample_labels(labels, AFFINE, (100, 120, 30), OBLIQUE)
    assert set(np.unique(moved)) == {0, 1028}
    where = np.argwhere(moved == 1028) @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3]
    expected = np.argwhere(labels == 1028).mean(axis=0) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    np.testing.assert_allclose(where.mean(axis=0), expected, atol=0.5)


def test_a_name_of_one_structure_overrules_the_atlas():
    regions, places = merge_regions(
        drawn_aseg(), structures_of(freesurfer_names()), drawn_atlas(), AFFINE
    )
    # 18 mm from the centre the atlas says deep white matter, the parcellation thalamus.
    found = label_lesions([[-18, 0, 0], [18, 0, 0]], regions, AFFINE, places)
    assert found["mars_region"].tolist() == ["thalamus", "thalamus"]
    assert found["hemisphere"].tolist() == ["left", "right"]
    assert found["structure"].tolist() == ["Left-Thalamus", "Right-Thalamus"]
    assert found["region_source"].tolist() == ["parcellation", "parcellation"]


def test_undivided_white_matter_is_divided_by_the_atlas():
    regions, places = merge_regions(
        drawn_aseg(), structures_of(freesurfer_names()), drawn_atlas(), AFFINE
    )
    found = label_lesions([[-26, 0, 0], [36, 0, 0]], regions, AFFINE, places)
    assert found["mars_class"].tolist() == ["deep", "lobar"]
    assert found["structure"].tolist() == [
        "Left-Cerebral-White-Matter",
        "Right-Cerebral-White-Matter",
    ]
    assert set(found["region_source"]) == {DIVIDED_BY_ATLAS}


def test_cortex_where_the_atlas_says_white_matter_takes_the_nearest_lobe():
    labels = drawn_aseg()
    labels[labels == 2] = 3  # all of the left is cortex, also where the atlas has white matter
    regions, places = merge_regions(
        labels, structures_of(freesurfer_names()), drawn_atlas(), AFFINE
    )
    found = label_lesions([[-26, 0, 0]], regions, AFFINE, places)
    assert found["bombs_region"].tolist() == ["cortex"]
    assert found["mars_region"].tolist() == ["frontal"]


def test_labels_without_a_meaning_and_uncovered_brain_keep_the_atlas():
    labels = np.zeros(SHAPE, np.int32)
    radius, x = distance_from_centre()
    labels[(radius <= 15) & (x <= 0)] = 7
    labels[(radius <= 15) & (x > 0)] = 8
    regions, places = merge_regions(
        labels, structures_of({7: "Left-Pallidum", 8: "blob"}), drawn_atlas(), AFFINE
    )
    found = label_lesions([[-8, 0, 0], [8, 0, 0], [0, 45, 0]], regions, AFFINE, places)
    assert found["mars_region"].tolist() == ["basal_ganglia", "thalamus", "frontal"]
    assert found["region_source"].tolist() == ["parcellation", "atlas", "atlas"]


def test_a_sulcus_belongs_to_the_parcel_beside_it():
    labels = drawn_aseg()
    labels[30:32, :, :] = 0  # a gap of 4 mm in the middle, x from 0 to 2
    regions, places = merge_regions(
        labels, structures_of(freesurfer_names()), drawn_atlas(), AFFINE
    )
    found = label_lesions([[0.5, 10, 0]], regions, AFFINE, places)
    assert found["region_source"].tolist() == ["parcellation"]


def test_without_an_atlas_names_that_say_it_all_still_place_a_lesion():
    nothing = np.zeros(SHAPE, np.int16)
    structures = structures_of({**freesurfer_names(), 10: "Thalamus", 49: "Thalamus"})
    regions, places = merge_regions(drawn_aseg(), structures, nothing, AFFINE)
    found = label_lesions([[-12, 0, 0], [12, 0, 0], [-36, 0, 0]], regions, AFFINE, places)
    assert found["mars_region"].tolist()[:2] == ["thalamus", "thalamus"]
    assert found["hemisphere"].tolist()[:2] == ["left", "right"]
    assert found["mars_region"].isna().tolist() == [False, False, True]


def test_codes_do_not_meet_the_atlas_labels():
    regions, places = merge_regions(
        drawn_aseg(), structures_of(freesurfer_names()), drawn_atlas(), AFFINE
    )
    assert min(places) >= FIRST_CODE
    assert set(np.unique(regions)) <= set(places) | {0}


# ----------------------------------------------------------------------------- alignment


@pytest.mark.parametrize("shift_mm", [0.0, 8.0, 14.0])
def test_a_parcellation_laid_beside_the_brain_is_measured_as_far_off_as_it_is(shift_mm):
    radius, _ = distance_from_centre()
    moved = AFFINE.copy()
    moved[1, 3] += shift_mm
    parcels = distance_from_centre(affine=moved)[0] <= 42  # smaller all round than the mask
    found = measure_alignment(parcels, radius <= 46, AFFINE)
    assert found.shift_mm == pytest.approx(shift_mm, abs=1.0)


def test_a_few_structures_have_no_outline_to_compare():
    radius, _ = distance_from_centre()
    found = measure_alignment(radius <= 12, radius <= 46, AFFINE)
    assert found == (1.0, None)
    assert measure_alignment(radius < 0, radius <= 46, AFFINE).inside == 0


# --------------------------------------------------------------------------------- files


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(data, affine), path)
    return path


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["index\tname", *rows]) + "\n")
    return path


@pytest.mark.parametrize("name", ["aparc+aseg.mgz", "sub-01_desc-aseg_dseg.nii.gz"])
def test_a_file_of_freesurfer_is_merged_and_reported(tmp_path, name):
    path = save(tmp_path / name, drawn_aseg())
    mask = drawn_atlas() > 0
    given = {"image": str(path), "table": None, "numbering": FREESURFER}
    regions, told = add_parcellation(given, drawn_atlas(), mask, AFFINE)
    told = json.loads(json.dumps(told))
    assert told["parcellation"]["used"]
    assert told["parcellation"]["reason"] == ""
    assert told["parcellation"]["inside"] == pytest.approx(1.0)
    found = label_lesions([[-18, 0, 0]], regions, AFFINE, read_places(told))
    assert found["structure"].tolist() == ["Left-Thalamus"]


def test_a_table_names_what_it_likes_and_the_rest_is_listed(tmp_path, capsys):
    path = save(tmp_path / "sub-01_desc-mine_dseg.nii.gz", drawn_aseg())
    names = table(tmp_path / "t.tsv", "2\tdeep white matter L", "41\tblob", "3\tn/a")
    given = {"image": str(path), "table": str(names), "numbering": None}
    _, told = add_parcellation(given, drawn_atlas(), drawn_atlas() > 0, AFFINE)
    listed = " ".join(told["parcellation"]["not_understood"])
    assert "blob (label 41)" in listed
    assert "label 3" in listed
    assert "blob" in capsys.readouterr().out


def far_off(path: Path) -> Path:
    moved = AFFINE.copy()
    moved[0, 3] += 70
    return save(path, drawn_aseg(), moved)


@pytest.mark.parametrize(
    ("make", "names", "expected"),
    [
        (far_off, None, "does not lie on this scan's brain"),
        (lambda p: save(p, drawn_aseg() * np.float32(1.1)), None, "no labels"),
        (lambda p: p.write_bytes(b"text") and p, None, "not a whole NIfTI image"),
        (lambda p: save(p, drawn_aseg()), ["2\tone", "3\ttwo"], "names no structure"),
        (lambda p: save(p, drawn_aseg()), ["x\tLeft-Putamen"], "index that is no number"),
    ],
)
def test_what_cannot_be_used_is_named_and_the_atlas_stands_in(tmp_path, make, names, expected):
    path = make(tmp_path / "sub-01_desc-aseg_dseg.nii.gz")
    lookup = str(table(tmp_path / "t.tsv", *names)) if names else None
    given = {"image": str(path), "table": lookup, "numbering": FREESURFER}
    regions, told = add_parcellation(given, drawn_atlas(), drawn_atlas() > 0, AFFINE)
    assert np.array_equal(regions, drawn_atlas())
    assert told["places"] == {}
    assert not told["parcellation"]["used"]
    assert expected in told["parcellation"]["reason"]
    assert str(tmp_path) in told["parcellation"]["reason"]


def test_a_head_that_moved_between_the_scans_is_flagged_and_used(tmp_path):
    moved = AFFINE.copy()
    moved[1, 3] += 8
    path = save(tmp_path / "sub-01_desc-aseg_dseg.nii.gz", drawn_aseg(), moved)
    given = {"image": str(path), "table": None, "numbering": FREESURFER}
    _, told = add_parcellation(given, drawn_atlas(), drawn_atlas() > 0, AFFINE)
    assert told["parcellation"]["used"]
    assert told["parcellation"]["shift_mm"] == pytest.approx(8, abs=1.0)
    assert "mm off the scan's brain" in told["parcellation"]["reason"]


def test_tables_and_labels_that_are_none(tmp_path):
    bad = tmp_path / "t.tsv"
    bad.write_text("label\tname\n1\tx\n")
    with pytest.raises(BadData, match="no column index"):
        read_names(bad, None, "image")
    with pytest.raises(BadData, match="no lookup table"):
        read_names(None, None, "image")
    with pytest.raises(BadData, match="no labels"):
        read_labels(save(tmp_path / "a.nii.gz", -drawn_aseg()))


# ------------------------------------------------------------------ which fits which scan


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def scan(**entities: str) -> dict:
    return {"entities": {"subject": "01", **entities}}


def chosen(root: Path, of: dict | None = None, sessions: int = 1) -> tuple[str | None, str | None]:
    best, _ = choose_parcellation(of or scan(), find_parcellations([root], "01"), sessions)
    if best is None:
        return None, None
    names = (best["image"], best["table"])
    return tuple(n and str(Path(n).relative_to(root)) for n in names)


def test_the_most_detailed_one_is_chosen_with_the_dataset_s_table(tmp_path):
    root = touch(
        tmp_path,
        "desc-aparcaseg_dseg.tsv",
        "desc-aseg_dseg.tsv",
        "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz",
        "sub-01/anat/sub-01_desc-aparcaseg_dseg.nii.gz",
        "sub-01/anat/sub-01_dseg.nii.gz",
        "sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-aparcaseg_dseg.nii.gz",
        "sub-01/anat/sub-01_desc-cmb_dseg.nii.gz",
    )
    assert chosen(root) == (
        "sub-01/anat/sub-01_desc-aparcaseg_dseg.nii.gz",
        "desc-aparcaseg_dseg.tsv",
    )


def test_the_table_beside_the_image_comes_before_the_dataset_s(tmp_path):
    root = touch(
        tmp_path,
        "atlas-mine_dseg.tsv",
        "sub-01/anat/sub-01_atlas-mine_dseg.nii.gz",
        "sub-01/anat/sub-01_atlas-mine_dseg.tsv",
    )
    assert chosen(root)[1] == "sub-01/anat/sub-01_atlas-mine_dseg.tsv"


def test_folders_of_freesurfer_and_names_of_synthseg(tmp_path):
    root = touch(tmp_path / "fs", "sub-01/mri/aseg.mgz", "sub-01/mri/aparc+aseg.mgz")
    assert chosen(root) == ("sub-01/mri/aparc+aseg.mgz", None)
    root = touch(tmp_path / "fs2", "sub-01_ses-A/mri/aseg.mgz", "sub-01_ses-B/mri/aseg.mgz")
    assert chosen(root, scan(session="B"), 2)[0] == "sub-01_ses-B/mri/aseg.mgz"
    root = touch(tmp_path / "s", "sub-01/anat/sub-01_T1w_synthseg.nii.gz")
    assert chosen(root)[0] == "sub-01/anat/sub-01_T1w_synthseg.nii.gz"


def test_the_one_drawn_on_the_scan_itself_comes_first(tmp_path):
    root = touch(
        tmp_path,
        "sub-01/anat/sub-01_desc-aparcaseg_dseg.nii.gz",
        "sub-01/anat/sub-01_run-2_space-T2starw_desc-synthseg_dseg.nii.gz",
    )
    assert "space-T2starw" in chosen(root, scan(run="2"))[0]


@pytest.mark.parametrize(
    ("name", "of", "sessions", "expected"),
    [
        ("sub-01/anat/sub-01_space-MNI152_desc-aseg_dseg.nii.gz", scan(), 1, "space MNI152"),
        ("sub-01/anat/sub-01_desc-mine_dseg.nii.gz", scan(), 1, "no lookup table"),
        ("sub-01/ses-A/anat/sub-01_ses-A_desc-aseg_dseg.nii.gz", scan(session="B"), 2, "session A"),
        ("sub-01/anat/sub-01_desc-aseg_dseg.nii.gz", scan(session="B"), 2, "no session"),
    ],
)
def test_others_are_refused_with_cause_and_remedy(tmp_path, name, of, sessions, expected):
    root = touch(tmp_path, name)
    best, refused = choose_parcellation(of, find_parcellations([root], "01"), sessions)
    assert best is None
    assert len(refused) == 1
    assert expected in refused[0]
    assert name in refused[0]


def test_a_single_session_need_not_be_named(tmp_path):
    root = touch(tmp_path, "sub-01/anat/sub-01_desc-aseg_dseg.nii.gz")
    assert chosen(root, scan(session="A"), 1)[0]


def test_no_participant_no_parcellation(tmp_path):
    assert find_parcellations([tmp_path], "01") == []
    assert choose_parcellation(scan(), [], 1) == (None, [])
    lone = Parcellation("x_dseg.nii.gz", {}, None, FREESURFER)
    assert choose_parcellation(scan(), [lone], 1)[0]["image"] == "x_dseg.nii.gz"


# ----------------------------------------------------------------------------------- MNI


def test_points_go_to_mni_space_and_nowhere_without_a_registration():
    affine = [[1.1, 0, 0, 2], [0, 0.9, 0, -3], [0, 0, 1, 4], [0, 0, 0, 1]]
    np.testing.assert_allclose(to_mni([[10, 10, 10]], affine), [[13, 6, 14]])
    assert np.isnan(to_mni([[1, 2, 3]], None)).all()
    assert to_mni(np.zeros((0, 3)), affine).shape == (0, 3)
