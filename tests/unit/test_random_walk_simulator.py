"""The random-walk simulator: physics against formulas, lesions where the truth has them."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from random_walk_simulator import dataset, grid, head, lesions, scanner

SMALL = grid.Protocol("ukb", 3.0, (4.0, 4.0, 6.0), 0.020, 1e6, (2, 2, 3))


@pytest.fixture(scope="module")
def fine():
    return grid.Grid(SMALL)


@pytest.fixture(scope="module")
def drawn(fine):
    return head.build_head(np.random.default_rng(1), fine, SMALL.field_t)


def test_grid_is_centred_and_fits_the_image(fine):
    assert np.all(fine.shape == fine.matrix * SMALL.finer)
    assert [line.mean() for line in fine.lines] == pytest.approx([0, 0, 0])
    assert np.all(fine.nearest(np.array([1.0, 1, 1])) == fine.shape // 2)


def test_a_ball_has_its_volume_and_place(fine):
    centre = np.array([10.0, -20.0, 5.0])
    window, inside = fine.ball(centre, 12.0)
    assert inside.sum() * np.prod(fine.spacing) == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.05)
    middle = [line[w][np.nonzero(inside)[i]].mean() for i, (line, w) in
              enumerate(zip(fine.lines, window, strict=True))]  # fmt: skip
    assert middle == pytest.approx(centre, abs=0.2)
    assert fine.ball(np.array([87.0, 0, 0]), 5.0) is None


def test_field_of_a_ball_is_that_of_a_dipole():
    n, step, radius, chi = 96, 0.5, 3.0, 0.9
    line = (np.arange(n) - n // 2) * step
    away = np.sqrt(sum(a**2 for a in np.meshgrid(line, line, line, indexing="ij")))
    shift = scanner.dipole_field((away <= radius) * chi, np.full(3, step), 3.0) / 3.0 * 1e6
    at = n // 2 + int(8 / step)
    dipole = chi * (radius / 8) ** 3 / 3
    assert shift[n // 2, n // 2, at] == pytest.approx(2 * dipole, rel=0.1)
    assert shift[at, n // 2, n // 2] == pytest.approx(-dipole, rel=0.15)


def test_head_has_a_brain_of_human_size_with_veins_inside(drawn, fine):
    litres = drawn.brain.sum() * np.prod(fine.spacing) / 1e6
    assert 0.9 < litres < 1.6
    assert drawn.veins.any()
    assert (drawn.depth[drawn.veins] < 1.05).all()
    assert np.all(drawn.susceptibility[drawn.veins] == np.float32(head.VEIN_CHI))
    assert not (drawn.substance & ~drawn.brain).any()


def test_lesions_lie_in_the_substance_apart_and_signed(fine):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        one = head.build_head(rng, fine, SMALL.field_t)
        group, found = lesions.draw_lesions(rng, one, fine)
        microbleeds = [lesion for lesion in found if lesion.name == lesions.MICROBLEED]
        assert bool(microbleeds) == (group != "free")
        for i, lesion in enumerate(found):
            assert (lesion.chi > 0) == (lesion.name == lesions.MICROBLEED)
            assert one.substance[tuple(fine.nearest(lesion.centre))]
            assert all(np.linalg.norm(lesion.centre - x.centre) >= 9 for x in found[:i])


def test_a_microbleed_is_dark_and_turns_phase_the_other_way_than_a_calcification(fine):
    def phase_above(chi):
        one = head.build_head(np.random.default_rng(1), fine, SMALL.field_t)
        one.susceptibility[:] = 0
        one.density[:], one.decay[:] = 1, 20
        place = np.array([0.0, 0, 0])
        lesions._paint(one, fine, lesions.Lesion("any", place, 16.0, chi))
        image = scanner.acquire(np.random.default_rng(5), one, fine, SMALL)
        plain = head.build_head(np.random.default_rng(1), fine, SMALL.field_t)
        plain.susceptibility[:] = 0
        plain.density[:], plain.decay[:] = 1, 20
        ratio = image / scanner.acquire(np.random.default_rng(5), plain, fine, SMALL)
        middle = fine.matrix // 2
        above = ratio[middle[0], middle[1], middle[2] + 2]
        return abs(ratio[tuple(middle)]), np.angle(above)

    dark, bleed = phase_above(0.3)
    _, chalk = phase_above(-0.3)
    assert dark < 0.5
    assert bleed > 0.05 > -0.05 > chalk


def test_command_writes_a_dataset_with_its_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "PROTOCOLS", (SMALL,))
    assert dataset.main([str(tmp_path), "--participants", "3", "--seed", "1", "--only", "02"]) == 0
    assert "sub-02" in capsys.readouterr().out
    folder = tmp_path / "sub-02" / "anat"
    phase = nib.load(folder / "sub-02_part-phase_T2starw.nii.gz")
    assert phase.get_data_dtype() == np.int16
    assert abs(np.asarray(phase.dataobj)).max() == pytest.approx(4096, abs=10)
    assert json.loads((folder / "sub-02_part-mag_T2starw.json").read_text())["EchoTime"] == 0.02
    assert not (tmp_path / "sub-01").exists()
    truth = tmp_path / "derivatives" / "truth" / "sub-02" / "anat"
    image, _, _group, found, _ = dataset.simulate(1, 1)
    assert image.shape == phase.shape
    tables = [pd.read_csv(path, sep="\t") for path in sorted(truth.glob("*_dseg.tsv"))]
    assert sum(len(table) for table in tables) == len(found)
    assert list(pd.read_csv(tmp_path / "participants.tsv", sep="\t").participant_id) == [
        "sub-01", "sub-02", "sub-03",
    ]  # fmt: skip
