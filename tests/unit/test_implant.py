"""Known lesions in real scans: what they do to the signal, where they may go, what is written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cmb_bids.evaluate.cohort import read_cohort
from cmb_bids.evaluate.matching import ignored_lesions
from cmb_bids.implant import places
from cmb_bids.implant.dataset import draw_cores
from cmb_bids.implant.effect import implant, lesion_effect, noise_of, seen_diameter_mm
from cmb_bids.implant.places import (
    APART_MM,
    DEPTH_MM,
    FROM_KNOWN_MM,
    Acquisition,
    draw_lesions,
    free_tissue,
)
from cmb_bids.lab import main
from cmb_bids.simulate.lesions import Lesion
from cmb_bids.simulate.physics import sphere_field
from cmb_bids.simulate.protocols import GYROMAGNETIC_RATIO_HZ_PER_T
from cmb_bids.volumes import (
    read_json,
    read_table,
    read_volume,
    voxel_sizes,
    world_to_voxel,
    write_json,
    write_table,
    write_text,
    write_volume,
)

UP = np.array([0.0, 0.0, 1.0])
TE, FIELD = 0.020, 3.0
OBLIQUE = np.array(
    [[0.0, -0.76, 0.75, 10.0], [0.8, 0.0, 0.0, -20.0], [0.0, 0.25, 2.9, 5.0], [0, 0, 0, 1.0]]
)


def ball(centre_mm, diameter_mm=4.0, chi=0.6, signal=0.8, rate=100.0):
    return Lesion(
        "microbleed", np.array(centre_mm, float), np.full(3, diameter_mm / 2), np.eye(3),
        np.zeros(4), chi, rate, signal, 0, "implanted",
    )  # fmt: skip


def effect_of(lesion, shape=(64, 64, 64), voxel=(0.5, 0.5, 0.5), b0=UP):
    return lesion_effect(lesion, shape, np.array(voxel), b0, [TE], FIELD)


@pytest.mark.parametrize("b0", [UP, np.array([0.0, 0.6, 0.8])])
@pytest.mark.parametrize("chi", [0.6, -0.6])
def test_outside_phase_is_that_of_a_sphere(b0, chi):
    lesion = ball([16, 16, 16], chi=chi)
    effect = effect_of(lesion, b0=b0)
    points = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in effect.slices],
                                  indexing="ij"), -1) * 0.5 - lesion.centre_mm  # fmt: skip
    distance = np.linalg.norm(points, axis=-1)
    shell = (distance > 2.8) & (distance < 5)
    radians = 2 * np.pi * GYROMAGNETIC_RATIO_HZ_PER_T * FIELD * TE * 1e-6
    expected = sphere_field(points, 2.0, chi, b0) * radians
    got = np.angle(effect.factors[0])
    assert np.abs(got - expected)[shell].max() < 0.08 * np.abs(expected[shell]).max()


def test_inside_signal_is_lost_by_density_and_decay():
    effect = effect_of(ball([16, 16, 16], diameter_mm=5, signal=0.7, rate=60))
    middle = np.abs(effect.factors[0])[tuple(s // 2 for s in effect.factors[0].shape)]
    assert middle == pytest.approx(0.7 * np.exp(-TE * 60), rel=0.03)


def test_far_away_nothing_changes():
    factor = effect_of(ball([16, 16, 16], diameter_mm=2)).factors[0]
    for face in (factor[0], factor[-1], factor[:, 0], factor[:, :, -1]):
        assert np.abs(face - 1).max() < 2e-3


def test_a_lesion_at_the_edge_is_cut_and_one_outside_refused():
    effect = effect_of(ball([0.4, 16, 31]))
    assert effect.slices[0].start == 0
    assert effect.slices[2].stop == 64
    assert effect.factors[0].shape == tuple(s.stop - s.start for s in effect.slices)
    with pytest.raises(ValueError, match="outside"):
        effect_of(ball([-60, 16, 16]))


def test_one_voxel_of_an_image_can_hold_a_lesion():
    effect = effect_of(ball([0, 0, 0], diameter_mm=2), shape=(1, 1, 1), voxel=(3, 3, 3))
    image = implant([np.ones((1, 1, 1), complex)], [effect], np.random.default_rng(0))[0]
    assert image.shape == (1, 1, 1)
    assert 0.5 < abs(image[0, 0, 0]) < 1


def test_it_lies_where_it_should_on_an_oblique_anisotropic_grid():
    shape = (60, 50, 24)
    acquisition = Acquisition(shape, OBLIQUE, (TE,), FIELD)
    sizes = voxel_sizes(OBLIQUE)
    voxel = np.array([30.2, 24.7, 12.3])
    effect = acquisition.effect(ball(voxel * sizes, diameter_mm=3))
    lost = np.zeros(shape)
    lost[effect.slices] = np.clip(1 - np.abs(effect.factors[0]), 0, None)
    centre = (np.stack(np.indices(shape), -1) * lost[..., None]).sum((0, 1, 2)) / lost.sum()
    assert np.abs((centre - voxel) * sizes).max() < 0.4


def test_larger_and_stronger_ones_look_larger():
    sizes = np.full(3, 0.5)
    looks = [
        seen_diameter_mm(effect_of(ball([16, 16, 16], d, chi)), sizes)
        for d, chi in ((1.5, 0.4), (2.5, 0.4), (2.5, 1.2))
    ]
    assert looks == sorted(looks)
    assert looks[1] > 2.5  # blooming
    assert seen_diameter_mm(effect_of(ball([16, 16, 16], 2.5, -1.2)), sizes) > 2.5


def test_noise_is_measured_and_left_in_the_core():
    rng = np.random.default_rng(3)
    clean = np.full((64, 64, 64), 10.0 + 0j)
    noisy = clean + 0.5 * (rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape))
    assert noise_of(noisy) == pytest.approx(0.5, rel=0.05)
    assert noise_of(np.ones((1, 1, 1), complex)) == 0
    effect = effect_of(ball([16, 16, 16], diameter_mm=6, chi=0.0, signal=0.01, rate=0))
    changed = implant([noisy], [effect], rng)[0]
    core = changed[29:36, 29:36, 29:36]
    assert core.real.std() == pytest.approx(0.5, rel=0.2)
    assert np.allclose(noisy[0], changed[0])


@pytest.fixture
def brain():
    """A ball of brain with a vein through it and fluid in a part."""
    shape, affine = (70, 70, 30), np.diag([0.8, 0.8, 2.0, 1.0])
    x, y, z = np.indices(shape)
    mask = ((x - 35) * 0.8) ** 2 + ((y - 35) * 0.8) ** 2 + ((z - 15) * 2.0) ** 2 < 24**2
    contrast = np.where(mask, 1.0, 0.1)
    contrast[30:33, 30:33] = 0.2
    contrast[45:55, 30:40, 12:18] = 1.8
    return contrast, mask, affine


def test_free_tissue_is_neither_edge_nor_vein_nor_fluid(brain):
    contrast, mask, affine = brain
    free = free_tissue(contrast, mask, affine)
    assert free.any()
    assert not free[31, 31].any()
    assert not free[48:52, 33:37, 14:16].any()
    outside = np.argwhere(~mask) * voxel_sizes(affine)
    for place in np.argwhere(free)[::97]:
        gap = np.linalg.norm(outside - place * voxel_sizes(affine), axis=1).min()
        assert gap > DEPTH_MM
    assert not free_tissue(contrast, np.zeros_like(mask), affine).any()


def test_lesions_are_apart_seen_and_far_from_what_is_known(brain):
    contrast, mask, affine = brain
    free = free_tissue(contrast, mask, affine)
    acquisition = Acquisition(mask.shape, affine, (TE,), FIELD)
    known = np.array([[28.0, 28.0, 40.0]])
    drawn = draw_lesions("calcification", 5, free, acquisition, known, np.random.default_rng(1))
    assert len(drawn) == 5
    centres = np.array([lesion.centre_mm for lesion, _ in drawn])
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    assert gaps[~np.eye(5, dtype=bool)].min() > APART_MM - 2
    assert np.linalg.norm(centres - known, axis=1).min() > FROM_KNOWN_MM - 2
    for lesion, effect in drawn:
        assert lesion.susceptibility_ppm < 0
        assert 2 <= seen_diameter_mm(effect, voxel_sizes(affine)) <= 10


def test_no_room_and_none_that_is_seen_give_no_lesions(brain, monkeypatch):
    contrast, mask, affine = brain
    rng = np.random.default_rng(1)
    long = Acquisition(mask.shape, affine, (0.04,), 1.5)
    nowhere = np.zeros_like(mask)
    assert draw_lesions("microbleed", 3, nowhere, long, np.zeros((0, 3)), rng) == []
    free = free_tissue(contrast, mask, affine)
    assert len(draw_lesions("microbleed", 1, free, long, np.zeros((0, 3)), rng)) == 1
    tiny = np.argwhere(free)[:1]
    one = np.zeros_like(mask)
    one[tuple(tiny[0])] = True
    assert len(draw_lesions("microbleed", 3, one, long, np.zeros((0, 3)), rng)) == 1
    monkeypatch.setattr(places, "LOOKS_MM", (50.0, 60.0))
    assert draw_lesions("microbleed", 2, free, long, np.zeros((0, 3)), rng) == []


def test_small_cores_have_a_voxel():
    placed = [(ball([4.0, 4.0, 6.0], 0.9), None), (ball([16.0, 16.0, 12.0], 6), None)]
    labels = draw_cores(placed, (30, 30, 10), np.diag([0.8, 0.8, 3.0, 1]))
    assert (labels == 1).sum() == 1
    assert labels[5, 5, 2] == 1
    assert 40 < (labels == 2).sum() * 0.8 * 0.8 * 3 < 200


@pytest.fixture
def processed(tmp_path, brain):
    """A left-handed scan with what cmb-bids would have made of it, and one without phase."""
    contrast, mask, affine = brain
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, *mask.shape)) * 0.02
    image = contrast + noise[0] + 1j * noise[1]
    raw, results = tmp_path / "raw", tmp_path / "results"
    write_json(raw / "dataset_description.json", {"Name": "Mine", "BIDSVersion": "1.10.0"})
    write_table(raw / "participants.tsv", pd.DataFrame({"participant_id": ["sub-01", "sub-02"]}))
    write_text(raw / "README", "mine")
    said = {"EchoTime": TE, "MagneticFieldStrength": FIELD, "Manufacturer": "GE"}
    parts = {
        "sub-01/anat/sub-01_part-mag_T2starw": np.abs(image) * 100,
        "sub-01/anat/sub-01_part-phase_T2starw": -np.angle(image),
        "sub-02/anat/sub-02_T2starw": np.abs(image) * 100,
    }
    for name, values in parts.items():
        write_volume(raw / f"{name}.nii.gz", values.astype(np.float32), affine)
        units = {"Units": "rad"} if "phase" in name else {}
        write_json(raw / f"{name}.json", said | units)
    anat = results / "sub-01" / "anat"
    write_volume(anat / "sub-01_desc-swi_T2starw.nii.gz", contrast.astype(np.float32), affine)
    write_volume(anat / "sub-01_desc-brain_mask.nii.gz", mask.astype(np.uint8), affine, np.uint8)
    found = pd.DataFrame([{"index": 1, "x": 40.0, "y": 28.0, "z": 30.0, "diameter_mm": 3.0}])
    write_table(anat / "sub-01_desc-cmb_dseg.tsv", found)
    write_table(anat / "sub-01_desc-calcification_dseg.tsv", found.iloc[:0])
    state = results / "logs" / "scans" / "sub-01" / "sub-01"
    write_json(state / "scan_row.json", {"qc_status": "pass"})
    write_json(state / "complex_phase.json", {"config": {"phase": {"scale": "auto"}}})
    write_json(state / "T2starw_phase.json", {"polarity_sign": -1.0})
    return raw, results


def test_a_dataset_with_lesions_and_its_truth(processed, tmp_path, capsys):
    raw, results = processed
    output = tmp_path / "implanted"
    words = ["implant", str(raw), str(results), str(output)]
    assert main([*words, "--microbleeds", "3", "--calcifications", "1", "--seed", "4"]) == 1
    said = capsys.readouterr().out
    assert "sub-02_T2starw is left out" in said
    assert "has no phase" in said
    truth = output / "derivatives" / "truth" / "sub-01" / "anat"
    table = read_table(truth / "sub-01_desc-truth_dseg.tsv")
    assert table["name"].tolist() == ["microbleed"] * 3 + ["calcification", "microbleed"]
    assert table["certainty"].tolist() == ["definite"] * 4 + ["possible"]
    described = read_json(truth / "sub-01_desc-truth_dseg.json")
    assert set(table.columns) <= set(described)
    name = "sub-01/anat/sub-01_part-{}_T2starw.nii.gz"
    before, after = (read_volume(d / name.format("phase")) for d in (raw, output))
    mag = read_volume(output / name.format("mag")).data
    voxels = np.rint(world_to_voxel(after.affine, table[["x", "y", "z"]].to_numpy()))
    labels = read_volume(truth / "sub-01_desc-truth_dseg.nii.gz").data
    for row, voxel in zip(table.to_dict("records")[:4], voxels.astype(int), strict=False):
        at = tuple(voxel)
        assert labels[at] == row["index"]
        box = tuple(slice(max(v - 3, 0), v + 4) for v in voxel)
        assert (mag[box] < 90).any()
        change = np.angle(np.exp(1j * (after.data[box] - before.data[box].astype(float))))
        points = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in box],
                                      indexing="ij"), -1) - voxel  # fmt: skip
        field = sphere_field(points * voxel_sizes(after.affine), 1.0, 1.0, UP)
        # The files are left-handed: the field of a microbleed is negative in them.
        sign = -1 if row["name"] == "microbleed" else 1
        assert sign * (change * field).sum() > 0
    sidecar = read_json(output / name.format("phase").replace("nii.gz", "json"))
    assert sidecar["Units"] == "rad"
    assert sidecar["Manufacturer"] == "GE"
    assert read_table(output / "participants.tsv")["participant_id"].tolist() == ["sub-01"]


def test_the_truth_is_read_as_labels(processed, tmp_path):
    raw, results = processed
    output = tmp_path / "implanted"
    main(["implant", str(raw), str(results), str(output), "--participant-label", "01"])
    truth = output / "derivatives" / "truth"
    cohort = read_cohort(results, truth)
    assert cohort.simulated
    lesions = cohort.truth[cohort.truth["kind"] == "microbleed"]
    assert ignored_lesions(lesions).sum() == 1
    assert len(lesions) > 2


def test_the_same_seed_gives_the_same_lesions(processed, tmp_path):
    raw, results = processed
    tables = []
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        words = ["implant", str(raw), str(results), str(tmp_path / name), "--seed", seed]
        assert main([*words, "--participant-label", "01"]) == 0
        path = tmp_path / name / "derivatives/truth/sub-01/anat/sub-01_desc-truth_dseg.tsv"
        tables.append(path.read_text())
    assert tables[0] == tables[1] != tables[2]


def test_what_is_wrong_is_said(processed, tmp_path, capsys):
    raw, results = processed
    output = tmp_path / "implanted"
    words = ["implant", str(raw), str(results)]
    assert main([*words, str(results)]) == 64
    assert "not empty" in capsys.readouterr().err
    assert main([*words, str(output), "--microbleeds", "-1"]) == 64
    assert main([*words, str(output), "--microbleeds", "0", "--calcifications", "0"]) == 64
    assert main(["implant", str(raw), str(tmp_path / "absent"), str(output)]) == 66
    state = results / "logs" / "scans" / "sub-01" / "sub-01"
    (state / "T2starw_phase.json").unlink()
    assert main([*words, str(output)]) == 66
    said = capsys.readouterr()
    assert "T2starw_phase.json: is not there. Run cmb-bids" in said.out
    write_json(state / "scan_row.json", {"qc_status": "fail", "qc_reason": "no brain"})
    assert main([*words, str(tmp_path / "more")]) == 66
    assert "no brain" in capsys.readouterr().out
