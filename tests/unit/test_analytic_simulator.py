"""The analytic simulator: physics against formulas, lesions where the truth has them, one scan."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from analytic_simulator import (
    anatomy,
    dataset,
    field,
    geometry,
    head,
    lesions,
    protocol,
    scanner,
    settings,
    storage,
    tissue,
    vessels,
)

from cmb_bids.evaluate.files import find_point_files
from cmb_bids.evaluate.points import MICROBLEED

UP = np.array([0, 0, 1.0])
SMALL = protocol.Protocol(
    "3T", 3.0, (0.020,), 0.028, 15.0, (4.0, 4.0, 4.0), "Siemens", False, (1.0, 1.0), 60.0, 0.0,
    0.0, 0.0, "none", "LPS", "rad", 1, False, "T2starw",
)  # fmt: skip


def grid_of(n, spacing):
    spacing = np.array(spacing, dtype=float)
    return geometry.Grid(-(n - 1) / 2 * spacing, spacing, (n, n, n))


def ball(diameter, chi, centre=(0.0, 0.0, 0.0), name=lesions.MICROBLEED):
    return lesions.Lesion(
        name, np.array(centre), diameter, np.full(3, diameter / 2), np.eye(3), (0.0, UP, 0.0),
        chi, 0.85, 100.0, "frontal",
    )  # fmt: skip


def volumes_of(shape, amplitude=1.0, decay=0.0):
    return tissue.Volumes(
        np.full(shape, amplitude, np.float32),
        np.full(shape, decay, np.float32),
        np.zeros(shape, np.float32),
    )


def slab_of(n, spacing):
    """A slab without margin whose fine grid is its image, straight in the scanner."""
    grid = grid_of(n, spacing)
    return anatomy.Slab(grid.shape, 0, 1, grid, grid, np.eye(3), np.zeros(3), np.eye(3),
                        np.zeros(3))  # fmt: skip


def test_field_of_a_ball_is_that_of_a_dipole():
    grid, chi = grid_of(97, (0.5, 0.5, 0.5)), 0.9
    volumes = volumes_of(grid.shape)
    lesions.paint_lesion(ball(8.0, chi), grid, volumes)
    shift = field.dipole_field(volumes.chi, grid.spacing, UP)
    middle, steps = 48, 16
    dipole = chi * (4 / (0.5 * steps)) ** 3
    assert shift[middle, middle, middle + steps] == pytest.approx(2 / 3 * dipole, rel=0.15)
    assert shift[middle + steps, middle, middle] == pytest.approx(-1 / 3 * dipole, rel=0.2)
    assert shift[middle, middle, middle] == pytest.approx(0, abs=0.02)


def test_field_turns_with_the_head():
    grid = grid_of(64, (0.5, 0.5, 0.5))
    volumes = volumes_of(grid.shape)
    lesions.paint_lesion(ball(6.0, 1.0), grid, volumes)
    upright = field.dipole_field(volumes.chi, grid.spacing, UP)
    turned = field.dipole_field(volumes.chi, grid.spacing, np.array([1.0, 0, 0]))
    assert np.allclose(turned, upright.transpose(2, 1, 0), atol=1e-4)


@pytest.mark.parametrize("chi", [0.8, -0.8])
@pytest.mark.parametrize("sign", [1, -1])
def test_sign_of_stored_phase_is_that_of_susceptibility_and_scanner(chi, sign):
    slab = slab_of(48, (0.5, 0.5, 1.0))
    volumes = volumes_of(slab.matrix)
    lesions.paint_lesion(ball(3.0, chi), slab.fine, volumes)
    shift = field.dipole_field(volumes.chi, slab.fine.spacing, UP)
    echo = scanner.gradient_echo(SMALL, slab, volumes, shift, field.steepness(shift), 0.020)
    kept = storage.Storage("int16", 1000.0, False, (True,))
    left_or_right = replace(SMALL, phase_sign=sign, axes="RAS")
    parts = {p.part: p for p in storage.stored_parts(echo, left_or_right, kept, 0)}
    phase, centre = parts["phase"].data, 24
    # Above its poles a paramagnetic ball strengthens the field, at its equator it weakens it.
    assert phase[centre, centre, centre + 2] * chi * sign > 0.05
    assert phase[centre + 4, centre, centre] * chi * sign < -0.05
    magnitude = parts["mag"].data
    assert magnitude[centre, centre, centre] < 0.6 * magnitude[0, 0, 0]


def test_phase_grows_with_echo_time_and_field_as_it_should():
    slab = slab_of(8, (1.0, 1.0, 1.0))
    shift = np.full(slab.matrix, 0.1, np.float32)
    still = np.zeros(slab.matrix, np.float32)
    for field_t, echo_time in ((3.0, 0.01), (3.0, 0.02), (1.5, 0.04)):
        settled = replace(SMALL, field_t=field_t)
        volumes = volumes_of(slab.matrix, 2.0, decay=20.0)
        echo = scanner.gradient_echo(settled, slab, volumes, shift, still, echo_time)
        turns = 2 * np.pi * 42.577 * field_t * echo_time * 0.1
        assert np.angle(echo[4, 4, 4]) == pytest.approx(turns, abs=1e-4)
        assert np.abs(echo[4, 4, 4]) == pytest.approx(2 * np.exp(-20 * echo_time), rel=1e-4)


@pytest.mark.parametrize("how", ["rad", "siemens4095", "siemens4096", "philips_mrad", "ge3142"])
def test_every_scale_of_phase_says_the_same(how):
    angles = np.linspace(-3.1, 3.1, 64, dtype=np.float32).reshape(4, 4, 4)
    image = (5 * np.exp(1j * angles)).astype(np.complex64)
    kept = storage.Storage("int16", 100.0, False, (True,))
    settled = replace(SMALL, phase_storage=how, axes="RAS")
    parts = {p.part: p for p in storage.stored_parts(image, settled, kept, 0)}
    phase = parts["phase"]
    values = phase.slope * phase.data + phase.intercept
    per_radian = {"rad": 1, "siemens4095": 2048 / np.pi, "siemens4096": 4096 / np.pi}.get(how, 1000)
    middle = 2048 if how == "siemens4095" else 0
    assert np.allclose((values - middle) / per_radian, angles, atol=2e-3)
    assert (parts["mag"].data == 500).all()


def test_alternating_real_and_imaginary_hold_the_image():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 4, 6)) + 1j * rng.normal(size=(4, 4, 6))
    settled = replace(SMALL, phase_storage="realimag", alternating_sign=True, phase_sign=-1)
    settled = replace(settled, vendor="GE", axes="RAS")
    kept = storage.draw_storage(rng, settled)
    stored = storage.stored_parts(image.astype(np.complex64), settled, kept, 0)
    parts = {p.part: p.data for p in stored}
    again = (parts["real"] - 1j * parts["imag"]) / storage.COMPLEX_SCALE
    again[:, :, 1::2] *= -1
    assert np.allclose(again, image, atol=2e-3)
    assert np.allclose(parts["mag"], 900 * np.abs(image), atol=1)


def test_crop_and_pad_of_kspace_keep_position_and_mean():
    fine = np.arange(48) / 48
    image = np.exp(-(((fine - 0.41) / 0.08) ** 2))[:, None, None] * np.ones((1, 3, 3), np.complex64)
    small = scanner.crop_spectrum(image, 30, 0)
    coarse = np.arange(30) / 30
    assert small[:, 1, 1].real == pytest.approx(np.exp(-(((coarse - 0.41) / 0.08) ** 2)), abs=2e-3)
    assert np.allclose(scanner.pad_spectrum(small, 48, 0), image, atol=2e-3)


def test_a_tube_fills_its_cross_section_however_thin():
    grid = grid_of(40, (0.5, 0.5, 0.6))
    line = np.stack([np.linspace(-8, 8, 60), np.zeros(60), np.zeros(60)], 1)
    for radius in (0.15, 0.4, 1.0):
        filled = np.zeros(grid.shape, np.float32)
        vessels.stamp(filled, grid, vessels.Tube(line, radius))
        # A tube is drawn half a voxel wide at least, so that thin ones come out a little full.
        area = filled[20].sum() * 0.5 * 0.6
        assert area == pytest.approx(np.pi * radius**2, rel=0.35)
        assert (filled[8:32].max(axis=(1, 2)) > 0).all()  # nowhere broken


def test_what_is_as_wide_as_it_is_long_is_no_vein():
    line = np.stack([np.linspace(0, 6, 20), np.zeros(20), np.zeros(20)], 1)
    assert vessels.Tube(line, 0.3).is_long()
    assert not vessels.Tube(line, 0.9).is_long()  # four widths are 7.2 mm
    assert not vessels.Tube(line[:10], 0.2).is_long()


def test_distances_from_known_shapes():
    x = np.linspace(-20, 20, 80, dtype=np.float32)  # not at the very centre
    sphere = geometry.ellipsoid(x, 0 * x, 0 * x, (1, 0, 0), (6, 6, 6))
    assert sphere == pytest.approx(np.abs(x - 1) - 6, abs=1e-3)
    rod = geometry.capsules(x, 0 * x + 3, 0 * x, [(-5, 0, 0, 1), (5, 0, 0, 1)])
    assert rod == pytest.approx(np.hypot(np.maximum(np.abs(x) - 5, 0), 3) - 1, abs=1e-4)


def test_canonical_coordinates_and_back():
    person = head.Head(np.random.default_rng(4), 60)
    points = np.random.default_rng(5).uniform(-60, 60, (30, 3)).astype(np.float32)
    there = person.from_canonical(points)
    back = np.stack(person.to_canonical(*there.T), 1)
    assert np.abs(there - points).max() > 1
    assert np.abs(back - points).max() < 0.05


def test_older_brains_have_wider_sulci():
    young, old = (head.Head(np.random.default_rng(1), age) for age in (25, 85))
    assert old.sulcal_half_width > young.sulcal_half_width
    assert old.ventricle_size > young.ventricle_size


def test_label_image_holds_each_core():
    grid = grid_of(30, (0.8, 0.8, 1.6))
    drawn = [ball(8.0, 1.0, (3.0, -2.0, 5.0)), ball(0.3, 1.0, (-7.1, 4.3, -6.6))]
    image = lesions.label_image(drawn, grid)
    assert (image == 1).sum() * 0.8 * 0.8 * 1.6 == pytest.approx(np.pi / 6 * 8**3, rel=0.1)
    assert image[grid.index(drawn[1].centre)] == 2  # smaller than a voxel
    assert (image == 2).sum() == 1


@pytest.mark.parametrize("which", ["1p5T", "3T", "ukb"])
def test_drawn_protocols_are_of_their_kind(which):
    drawn = [protocol.draw_protocol(np.random.default_rng(seed), which) for seed in range(40)]
    assert {one.name for one in drawn} == {which}
    assert {one.field_t for one in drawn} == {1.5 if which == "1p5T" else 3.0}
    assert {one.phase_sign for one in drawn} == {1, -1}
    assert all((one.suffix == "MEGRE") == (len(one.echo_times) == 2) for one in drawn)
    of_ge = {one.phase_storage for one in drawn if one.vendor == "GE"}
    assert of_ge <= {"ge3142", "realimag", "rad"}


def test_cohort_has_the_shares_of_its_groups():
    people = dataset.draw_participants(41, 3, "mixed")
    assert {g: sum(p.group == g for p in people) for g in settings.GROUPS} == settings.GROUPS
    assert people[:5] == dataset.draw_participants(5, 3, "mixed")


@pytest.fixture
def coarse_scanner(monkeypatch):
    """Few and large voxels, and participants who surely have lesions."""
    monkeypatch.setattr(anatomy, "COARSE_MM", 3.0)
    monkeypatch.setattr(anatomy, "FINE_MM", 2.5)
    monkeypatch.setattr(anatomy, "FINE_SLICE_MM", 2.0)
    monkeypatch.setattr(field, "BULK_MM", 6.0)
    monkeypatch.setattr(field, "BULK_POINTS", 64)
    monkeypatch.setattr(lesions, "draw_count", lambda *_: 6)

    def small(rng, which):
        drawn = protocol.draw_protocol(rng, which)
        return replace(SMALL, vendor="Siemens", name=drawn.name, oblique_deg=12.0)

    monkeypatch.setattr(dataset, "draw_protocol", small)


def voxel_of(table, affine):
    """Voxel indices, one row a lesion, of the places that a truth table names."""
    return np.round(nib.affines.apply_affine(np.linalg.inv(affine), table[["x", "y", "z"]]))


def test_a_scan_from_start_to_end(tmp_path, coarse_scanner):
    def make(folder, *only):
        arguments = [str(folder), "--participants", "3", "--seed", "5", "--protocol", "3T"]
        assert dataset.main([*arguments, "--only", *only]) == 0
        return folder

    whole, alone = make(tmp_path / "a", "01", "sub-03"), make(tmp_path / "b", "03")
    assert sorted(p.name for p in alone.glob("sub-*")) == ["sub-03"]
    raw, truth = "sub-03/anat", "derivatives/truth/sub-03/anat"
    for path in sorted((whole / raw).glob("*.nii.gz")):
        same = nib.load(alone / raw / path.name)
        assert np.array_equal(np.asarray(nib.load(path).dataobj), np.asarray(same.dataobj))
    magnitude = nib.load(whole / raw / "sub-03_part-mag_T2starw.nii.gz")
    phase = nib.load(whole / raw / "sub-03_part-phase_T2starw.nii.gz").get_fdata()
    assert nib.aff2axcodes(magnitude.affine) == ("L", "P", "S")
    assert np.abs(phase).max() <= np.pi + 1e-6
    table = pd.read_csv(whole / truth / "sub-03_desc-microbleeds_dseg.tsv", sep="\t")
    labels = nib.load(whole / truth / "sub-03_desc-microbleeds_dseg.nii.gz")
    assert np.array_equal(labels.affine, magnitude.affine)
    assert len(table) > 1
    index = tuple(voxel_of(table, labels.affine).astype(int).T)
    assert (np.asarray(labels.dataobj)[index] == table["index"]).all()
    mask = np.asarray(nib.load(whole / truth / "sub-03_desc-brain_mask.nii.gz").dataobj) > 0
    assert mask[index].all()
    image = magnitude.get_fdata()
    assert image[mask].mean() > 3 * image[:, :3].mean()  # air before the forehead
    assert 900 < mask.sum() * 4**3 / 1000 < 2000  # ml
    about = json.loads((whole / truth / "sub-03_desc-microbleeds_dseg.json").read_text())
    assert about["Conditions"]["phase_sign"] == 1
    files = find_point_files(whole / "derivatives" / "truth")
    assert files["sub-03"][MICROBLEED].table.name == "sub-03_desc-microbleeds_dseg.tsv"


def test_a_lesion_darkens_the_image_where_the_truth_has_it(coarse_scanner, monkeypatch):
    """The same draws with and without the microbleeds: what differs is where the table says."""
    monkeypatch.setattr(lesions, "_calcified", lambda *_: [])
    person = dataset.Participant("01", 0, "stroke", 60, "F", replace(SMALL, axes="RPI"))

    def scan():
        return dataset.simulate(np.random.default_rng(7), person)

    with_lesions = scan()
    monkeypatch.setattr(dataset, "paint_lesion", lambda *_: None)
    without = scan()
    table = with_lesions.tables[lesions.MICROBLEED]
    loss = np.abs(without.images[0]) - np.abs(with_lesions.images[0])
    loss = storage.turn_array(loss, "RPI")
    index = voxel_of(table, with_lesions.affine)
    # Every voxel that lost much lies within two voxels of a place in the table, and each has one.
    lost = np.argwhere(loss > 0.1)
    apart = np.linalg.norm(lost[:, None] - index[None], axis=-1)
    assert len(lost) > 0
    assert (apart.min(1) <= 2.5).all()
    large = (table["diameter_mm"] > 2.5).to_numpy()
    assert large.any()
    assert (apart[:, large].min(0) <= 2).all()
