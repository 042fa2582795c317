"""The second simulator: physics against formulas, vessels as drawn, a small cohort end to end."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from second_simulator import dataset, head, lesions, scanner, settings, tissue, vessels

UP = np.array([0, 0, 1.0])


def ball(radius, chi, centre=(0.0, 0.0, 0.0), name="microbleed"):
    return lesions.Spot(
        name, np.array(centre), np.full(3, radius), np.eye(3), np.zeros(4), chi, 1.0, 0.0, "lobar"
    )


def grid_of(n, spacing):
    spacing = np.array(spacing, dtype=float)
    return head.Grid((n, n, n), spacing, -(n - 1) / 2 * spacing)


def test_field_of_a_ball_is_that_of_a_dipole():
    grid = grid_of(96, (0.5, 0.5, 0.5))
    x, y, z = grid.axes()
    radius = 4.0
    inside = np.clip((radius - np.sqrt(x**2 + y**2 + z**2)) / 0.5 + 0.5, 0, 1).astype(np.float32)
    field = tissue.dipole_field(inside, grid.spacing, UP)
    centre = 48
    above, beside = field[centre + 16, centre, centre], field[centre, centre, centre + 16]
    r = abs(grid.first[0] + 0.5 * (centre + 16))
    assert above == pytest.approx(2 / 3 * (radius / r) ** 3, rel=0.15)
    assert beside == pytest.approx(-1 / 3 * (radius / r) ** 3, rel=0.2)
    assert field[centre, centre, centre] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("chi", [0.8, -0.8])
def test_sign_of_a_lesions_phase_is_that_of_its_susceptibility(chi):
    grid, protocol = grid_of(40, (0.5, 0.5, 1.0)), settings.PROTOCOLS["3T"]
    place, factors = lesions.transfer_factors(ball(1.0, chi), grid, UP, protocol)
    around = np.ones(grid.shape, complex)
    around[place] = factors[0]
    # Within the plane through a ball the field is weaker outside, stronger above its poles.
    assert np.angle(around[20, 20, 23]) * chi < 0
    assert np.angle(around[22, 20, 20]) * chi > 0
    assert abs(around[0, 0, 0]) == 1


def test_longer_echo_makes_a_lesion_look_larger():
    grid, protocol = grid_of(60, (0.5, 0.5, 1.0)), settings.PROTOCOLS["3T"]
    sizes = []
    for echo_time in (0.010, 0.020, 0.040):
        spot = ball(1.5, 0.6)
        spot.decay = 127 * 0.6
        longer = replace(protocol, echo_times=(echo_time,))
        factor = lesions.transfer_factors(spot, grid, UP, longer)[1][0]
        sizes.append(lesions.apparent_diameter(factor, grid.spacing, 0.6))
    assert sizes == sorted(sizes)
    assert 1.5 < (sizes[2] / sizes[1]) ** 3 < 4


def test_a_tube_fills_its_cross_section_however_thin():
    grid = grid_of(40, (0.5, 0.5, 1.0))
    for radius in (0.1, 0.25, 1.0):
        filled = np.zeros(grid.shape, np.uint8)
        tube = np.array([[-8.0, 0, 0, 8, 0, 0, radius, radius]])
        vessels._draw_tubes(filled, tube, grid.spacing, grid.first)
        area = filled[:, :, 20].sum() / 255 * 0.5 * 1.0
        assert area == pytest.approx(np.pi * radius**2, rel=0.3)
        assert (filled[:, :, 10:30].max(axis=(0, 1)) > 0).all()  # nowhere broken


def test_veins_join_towards_their_roots():
    rng = np.random.default_rng(0)
    wanted = rng.uniform((-20, -20, 5), (20, 20, 45), (200, 3))
    nodes, parents = vessels.colonise(rng, np.zeros((1, 3)), wanted, reach=60)
    radii = vessels.murray_radii(rng, parents, 5.0)
    grown = np.flatnonzero(parents >= 0)
    assert (parents[grown] < grown).all()
    assert (radii[parents[grown]] >= radii[grown] - 1e-9).all()
    steps = np.linalg.norm(nodes[grown] - nodes[parents[grown]], axis=1)
    assert steps == pytest.approx(1.6)


def test_a_spot_hidden_by_another_keeps_its_line():
    grid = grid_of(20, (1.0, 1.0, 1.0))
    spots = [ball(1.0, -1.0, name="calcification"), ball(3.0, -1.0, name="calcification")]
    image = dataset._label_image(spots, grid)
    scan = scanner.Scan(np.where(image, 0.2, 1.0)[None], image[None] * 0.0, grid.spacing, 0.1)
    brain = np.ones(grid.shape, bool)
    rows = [dataset._row(i + 1, s, scan, image, brain, s.centre) for i, s in enumerate(spots)]
    assert np.isnan(rows[0]["contrast_to_noise"])
    assert rows[1]["contrast_to_noise"] == pytest.approx(8)
    assert (image == 2).sum() == pytest.approx(4 / 3 * np.pi * 27, rel=0.25)


def test_kspace_crop_keeps_position_and_mean():
    n, m = 48, 30
    fine = (np.arange(n) + 0.5) / n
    image = np.exp(-(((fine - 0.41) / 0.08) ** 2))[:, None, None] * np.ones((1, 4, 4))
    spectrum = scanner._resize_spectrum(np.fft.fftn(image), (m, 4, 4)) * (m / n)
    shift = np.exp(2j * np.pi * np.fft.fftfreq(m) * (1 - m / n) / 2)
    small = np.fft.ifftn(spectrum * shift[:, None, None]).real[:, 0, 0]
    coarse = (np.arange(m) + 0.5) / m
    assert small == pytest.approx(np.exp(-(((coarse - 0.41) / 0.08) ** 2)), abs=2e-3)


def test_missing_maps_are_named_with_the_remedy(tmp_path, capsys):
    assert dataset.main([str(tmp_path / "out"), "--maps", str(tmp_path / "none.npz")]) == 66
    assert "none.npz" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("nilearn") is None, reason="nilearn, which carries the maps, absent")
def test_maps_of_nilearn_are_fractions():
    maps = head.load_tissue_maps()
    assert maps["tissue"].shape[0] == 3
    assert 0 <= maps["tissue"].min() <= maps["tissue"].max() <= 1


@pytest.fixture
def drawn_maps(tmp_path):
    """A head of ellipsoids on the template's grid, as an archive that --maps takes."""
    x, y, z = np.ogrid[-98:99, -134:99, -72:117]
    depth = np.sqrt((x / 66) ** 2 + ((y + 17) / 84) ** 2 + ((z - 5) / 70) ** 2)
    hollow = np.sqrt((x / 20) ** 2 + ((y + 15) / 35) ** 2 + ((z - 15) / 15) ** 2) < 1
    brain = depth < 1
    white = brain & (depth < 0.8) & ~hollow
    grey = brain & (depth >= 0.8) & (depth < 0.96)
    path = tmp_path / "maps.npz"
    np.savez(path, **{n: 255 * v.astype(np.uint8) for n, v in
                      {"t1": brain, "gm": grey, "wm": white}.items()})  # fmt: skip
    return path


@pytest.fixture
def coarse_scanner(monkeypatch):
    """Few and large voxels, and participants who surely have lesions."""
    small = replace(settings.PROTOCOLS["ukb"], voxel=(3.0, 3.0, 5.0), fine=(1.2, 1.2, 2.0),
                    slices=(26, 26))  # fmt: skip
    monkeypatch.setitem(settings.PROTOCOLS, "ukb", small)
    monkeypatch.setattr(head, "COARSE_MM", 4.0)
    monkeypatch.setattr(lesions, "MEAN_LESIONS", dict.fromkeys(settings.MEAN_LESIONS, 8.0))


def test_a_cohort_from_start_to_end(tmp_path, drawn_maps, coarse_scanner):
    def make(folder):
        arguments = ["--participants", "1", "--seed", "3", "--protocol", "ukb"]
        assert dataset.main([str(folder), *arguments, "--maps", str(drawn_maps)]) == 0
        return folder

    first, again = make(tmp_path / "a"), make(tmp_path / "b")
    raw, truth = first / "sub-01" / "anat", first / "derivatives" / "truth" / "sub-01" / "anat"
    for path in sorted(raw.glob("*.nii.gz")):
        same = nib.load(again / path.relative_to(first))
        assert np.array_equal(np.asarray(nib.load(path).dataobj), np.asarray(same.dataobj))
    magnitude = nib.load(raw / "sub-01_acq-ukb_echo-2_part-mag_MEGRE.nii.gz")
    phase = nib.load(raw / "sub-01_acq-ukb_echo-2_part-phase_MEGRE.nii.gz")
    mask = np.asarray(nib.load(truth / "sub-01_acq-ukb_desc-brain_mask.nii.gz").dataobj) > 0
    image = magnitude.get_fdata()
    assert image[mask].mean() > 3 * image[:3].mean()
    assert np.abs(phase.get_fdata()).max() <= 4096
    table = pd.read_csv(truth / "sub-01_acq-ukb_desc-microbleeds_dseg.tsv", sep="\t")
    labels = nib.load(truth / "sub-01_acq-ukb_desc-microbleeds_dseg.nii.gz")
    assert len(table) > 0
    assert set(np.unique(labels.dataobj)) == {0, *table["index"]}
    index = np.linalg.inv(labels.affine) @ np.c_[table[["x", "y", "z"]], np.ones(len(table))].T
    found = labels.get_fdata()[tuple(np.round(index[:3]).astype(int))]
    assert (found == table["index"]).all()
    assert mask[tuple(np.round(index[:3]).astype(int))].all()
    assert pd.read_csv(first / "participants.tsv", sep="\t")["age"].between(18, 95).all()
