"""The whole-head simulator: physics against formulas, lesions where the truth has them, a scan."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from whole_head_simulator import (
    acquisition,
    dataset,
    echo,
    field,
    fine,
    frame,
    geometry,
    head,
    lesions,
    noise,
    regions,
    scanner,
    settings,
    shell,
    storage,
    walks,
)

from cmb_bids.evaluate.files import find_point_files
from cmb_bids.evaluate.points import CALCIFICATION, MICROBLEED

UP = np.array([0, 0, 1.0])
# A coarse head, and a small field of view in the middle of it.
SMALL = settings.Protocol(
    "3T", 3.0, 0.020, (0.027, 0.030), (15, 15), (2.0, 2.0, 3.0), (48, 56, 16), (72, 84, 36),
    (60, 60), (1, 0, 0), head_mm=3.0,
)  # fmt: skip


def grid_of(n, spacing):
    """A grid of n samples a side whose middle sample (n // 2) is 0."""
    spacing = np.array(spacing, dtype=float)
    return geometry.Grid(-(n // 2) * spacing, spacing, (n, n, n))


def ball(grid, diameter, chi):
    x, y, z = grid.lines()
    away = np.sqrt(x[None, None, :] ** 2 + y[None, :, None] ** 2 + z[:, None, None] ** 2)
    # A soft border, so that the ball has its volume.
    return chi * np.clip((diameter / 2 - away) / grid.spacing.mean() + 0.5, 0, 1).astype(np.float32)


def straight(protocol):
    """An acquisition along the scanner's axes."""
    return acquisition.Acquisition(
        protocol, 0.028, 15, False, np.eye(3), np.eye(3), np.array([3.0, -20.0, 10.0])
    )


def plain_echo(fine_map, shift):
    """White matter everywhere, one coil, and nothing but the fine map in it."""
    coarse = geometry.Grid(np.full(3, -60.0), np.full(3, 6.0), (21, 21, 21))
    none, all_of_it = np.zeros(coarse.shape, np.float32), np.ones(coarse.shape, np.float32)
    around = shell.Shell(none, none, none, none, none, none, all_of_it)
    matter = head.Matter(10 * all_of_it, none, none, none, around, none, all_of_it)
    signals = {"white": 1.0, "grey": 1.3, "csf": 0.5}
    reader = echo.PlaneReader(coarse, fine_map.grid)
    return echo.EchoModel(
        straight(SMALL), reader, matter, signals, none, none, all_of_it, none, fine_map, shift
    )


@pytest.fixture(scope="module")
def drawn():
    turn = geometry.rotation(8, 2, -3)
    return head.build_head(np.random.default_rng(1), "stroke", turn, SMALL.head_mm)


@pytest.fixture
def few_veins(monkeypatch):
    for name in ("CORTICAL", "MEDULLARY", "SUPERFICIAL", "THROUGH", "CEREBELLAR"):
        monkeypatch.setattr(walks, name, (12, 13))


def test_field_of_a_ball_is_that_of_a_dipole():
    grid = grid_of(96, (0.5, 0.5, 0.5))
    chi, diameter, away = 0.9, 8.0, 10.0
    shift = field.dipole_field(ball(grid, diameter, chi), grid.spacing, UP)
    dipole = chi * (diameter / 2 / away) ** 3
    above, aside, centre = grid.sample(shift, np.array([[0, 0, away], [away, 0, 0], [0, 0, 0]]))
    assert above == pytest.approx(2 / 3 * dipole, rel=0.12)
    assert aside == pytest.approx(-1 / 3 * dipole, rel=0.12)
    assert centre == pytest.approx(0, abs=0.02)


def test_field_turns_with_the_static_field_whatever_the_voxels():
    grid = grid_of(96, (0.5, 0.6, 0.7))
    direction = geometry.rotation(25, -15, 0) @ UP
    aside = geometry.unit(np.cross(direction, [0, 1.0, 0]))
    shift = field.dipole_field(ball(grid, 8.0, 1.0), grid.spacing, direction)
    dipole = (4.0 / 10.0) ** 3
    pole, equator = grid.sample(shift, np.array([10 * direction, 10 * aside]))
    assert pole == pytest.approx(2 / 3 * dipole, rel=0.12)
    assert equator == pytest.approx(-1 / 3 * dipole, rel=0.12)


def test_static_field_is_the_scanners_however_the_slab_is_turned():
    turned = 0
    for seed in range(20):
        one = acquisition.draw_acquisition(np.random.default_rng(seed), SMALL)
        turned += one.oblique
        assert one.axes @ one.field_direction == pytest.approx(UP)
        assert one.oblique == (one.field_direction[2] < 1 - 1e-9)
        # Both grids begin at the same place, and the affine says where that is.
        assert one.fine.origin == pytest.approx(one.image.origin)
        assert one.affine()[:3, 3] == pytest.approx(one.world(one.image.origin))
    assert 0 < turned < 20


def test_an_ovoid_has_its_volume_place_and_strength():
    fine_map = fine.FineMap.empty(grid_of(40, (0.5, 0.6, 0.7)))
    centre = np.array([1.3, -2.1, 0.4])
    rng = np.random.default_rng(3)
    diameter = fine.paint_ovoid(rng, fine_map, centre, 6.0, -0.8, kept=0.4)
    assert diameter == pytest.approx(6.0, rel=0.1)
    volume = np.pi / 6 * diameter**3
    assert fine_map.chi.sum() * 0.5 * 0.6 * 0.7 == pytest.approx(-0.8 * volume, rel=0.1)
    z, y, x = ndimage.center_of_mass(fine_map.chi)
    middle = fine_map.grid.origin + fine_map.grid.spacing * np.array([x, y, z])
    assert middle == pytest.approx(centre, abs=0.3)
    index = fine_map.grid.nearest(centre)
    plane = np.ones(fine_map.grid.shape[1:])
    fine_map.weaken(plane, index[2])
    assert plane[index[1], index[0]] == pytest.approx(0.4)
    assert plane[0, 0] == 1


def test_a_tube_keeps_its_volume_however_thin():
    for radius in (0.1, 0.4, 1.5):
        fine_map = fine.FineMap.empty(grid_of(48, (0.5, 0.5, 0.7)))
        path = np.stack([np.linspace(-8, 8, 40), np.linspace(-2, 2, 40), np.zeros(40)], 1)
        fine.splat_tube(np.random.default_rng(0), fine_map, path, np.full(40, radius))
        length = np.linalg.norm(path[-1] - path[0])
        volume = fine_map.chi.sum() * 0.5 * 0.5 * 0.7
        assert volume == pytest.approx(np.pi * radius**2 * length, rel=0.03)
        assert (fine_map.chi[:, :, 10:38].max(axis=(0, 1)) > 0).all()  # nowhere broken


def test_crop_of_kspace_keeps_mean_and_place():
    before, after = np.arange(48) / 48, np.arange(30) / 30
    image = np.exp(-(((before - 0.41) / 0.08) ** 2))[None] * np.ones((3, 1), np.complex64)
    small = scanner.crop_spectrum(image, 30, 1)
    assert small[1].real == pytest.approx(np.exp(-(((after - 0.41) / 0.08) ** 2)), abs=2e-3)
    assert small.mean() == pytest.approx(image.mean(), abs=1e-6)
    assert scanner.crop_spectrum(image, 48, 1) is image


def test_filter_and_slab_fall_off_at_their_ends():
    frequency = np.fft.fftfreq(64, 0.5)
    filtered = scanner.taper(frequency, 0.5, 0.3)
    assert (filtered[np.abs(frequency) < 0.69] == 1).all()
    assert filtered[32] == pytest.approx(0, abs=1e-6)  # the highest frequency
    assert (scanner.taper(frequency, 0.5, 0.0) == 1).all()
    heights = [scanner.slab_profile(height, 24.0, 2.0) for height in (-24, -20, 0, 23.9)]
    assert heights == pytest.approx([0.25, 1, 1, 0.25 + 0.1 / 3])


def test_two_dimensional_slices_lie_where_partitions_do():
    planes = np.zeros((36, 2, 2), np.complex64)
    planes[12] = 1
    image = scanner._slices(planes, 12)
    assert np.abs(image[:, 0, 0]).argmax() == 4
    assert np.abs(scanner._partitions(planes, 12)[:, 0, 0]).argmax() == 4
    assert image[3:6, 0, 0].sum() == pytest.approx(1 / 3)


def test_noise_has_unit_variance_and_its_wave_length():
    rng, shape = np.random.default_rng(2), (60, 64, 72)
    assert noise.smooth_noise(rng, shape, 2.0).std() == pytest.approx(1, abs=0.05)
    wide = noise.smooth_noise(rng, shape, 9.0)
    assert wide.shape == shape
    assert np.abs(np.diff(wide, axis=1)).mean() < 0.15
    waves = noise.band_passed_noise(rng, shape, 8.0, 0.2)
    spectrum = np.abs(np.fft.fftn(waves)) ** 2
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, waves.shape),
                                                      indexing="ij")))  # fmt: skip
    assert (spectrum * frequency).sum() / spectrum.sum() == pytest.approx(1 / 8, rel=0.1)


def test_distances_from_known_shapes():
    x = np.linspace(-20, 20, 80, dtype=np.float32)  # not at the very centre
    sphere = geometry.ellipsoid((x, 0 * x, 0 * x), (1, 0, 0), (6, 6, 6))
    assert sphere == pytest.approx(np.abs(x - 1) - 6, abs=1e-3)
    rod = geometry.capsule((x, 0 * x + 3, 0 * x), (-5, 0, 0), (5, 0, 0), 1, 1)
    assert rod == pytest.approx(np.hypot(np.maximum(np.abs(x) - 5, 0), 3) - 1, abs=1e-4)
    assert geometry.smooth_minimum(np.array([3.0]), np.array([9.0]), 2) == pytest.approx([3.0])


def test_template_coordinates_and_back(drawn):
    points = np.random.default_rng(5).uniform(-50, 50, (30, 3))
    places = drawn.frame.from_template(points)
    back = np.stack([drawn.grid.sample(line, places) for line in drawn.points], 1)
    assert np.abs(places - points).max() > 3  # turned, scaled and bent
    assert np.abs(back - points).max() < 0.1


def test_a_drawn_frame_keeps_to_its_size():
    one = frame.draw_frame(np.random.default_rng(0), np.eye(3), 3.0)
    lines = one.grid.lines()
    assert [line[0] for line in lines] == pytest.approx(settings.HEAD_ORIGIN_MM)
    last = settings.HEAD_ORIGIN_MM + settings.HEAD_EXTENT_MM
    assert [line[-1] for line in lines] == pytest.approx(last, abs=3)
    # The halved grid reaches beyond, so that refining it needs no guess.
    assert all(2 * (n - 1) >= m - 1 for n, m in zip(one.halved.shape, one.grid.shape, strict=True))


def test_a_head_has_a_brain_of_human_size_in_bone_with_air_around(drawn):
    assert 1000 < drawn.brain_ml < 1900
    matter = drawn.matter
    centre = tuple(drawn.grid.nearest(drawn.frame.from_template([30, -20, 30])[0])[::-1])
    assert matter.brain[centre] == 1
    assert matter.shell.bone[centre] == matter.shell.air[centre] == 0
    assert matter.shell.air[0, 0, 0] == 1
    assert matter.chi[0, 0, 0] == 0
    assert matter.chi[centre] == pytest.approx(-settings.AIR_PPM, abs=0.2)
    atrium = drawn.frame.from_template([26, -40, 13])
    assert drawn.grid.sample(drawn.brain.depth, atrium)[0] < 0  # fluid
    # Along a ray from the middle of the brain upwards there is bone, and fat beyond it.
    column = drawn.frame.from_template([[20, -20, z] for z in range(40, 110)])
    bone = drawn.grid.sample(matter.shell.bone, column)
    fat = drawn.grid.sample(matter.shell.fat, column)
    assert bone.max() > 0.8
    assert 0 < fat.argmax() - bone.argmax() < 20


@pytest.mark.parametrize(
    ("point", "region"),
    [
        ((11, -18, 7), "thalamus"),
        ((-27, 2, 1), "basal_ganglia"),
        ((25, -62, -38), "cerebellum"),
        ((0, -25, -30), "brainstem"),
        ((-24, -22, 30), "deep_white_matter"),
        ((50, -10, -25), "temporal"),
    ],
)
def test_regions_are_where_anatomy_has_them(drawn, point, region):
    assert regions.region_of(drawn, drawn.frame.from_template(point)[0]) == region


def test_lobes_by_their_rules():
    assert regions.lobe_of(30, 45, 20) == "frontal"
    assert regions.lobe_of(30, -50, 45) == "parietal"
    assert regions.lobe_of(20, -90, 5) == "occipital"
    assert regions.lobe_of(50, -10, -25) == "temporal"


def test_places_of_microbleeds_are_apart_from_ventricles_and_surface(drawn):
    inside = regions.within_slab(drawn, np.zeros(drawn.grid.shape, bool), 60.0)
    places = regions.microbleed_places(drawn, inside)
    assert set(places) == {name for chances in settings.PLACES.values() for name in chances}
    for name, mask in places.items():
        assert mask.any(), name
        assert not (mask & (drawn.brain.ventricles < 1)).any()
        assert not (mask & (drawn.hulls.inner_skull > -3)).any()
    assert not (places["deep"] & places["lobar"]).any()


def test_numbers_of_microbleeds_are_those_of_the_groups():
    for group in settings.GROUPS:
        rng = np.random.default_rng(4)
        counts = np.array([lesions.draw_count(rng, group) for _ in range(2000)])
        burden = settings.BURDENS.get(group, settings.Burden(settings.HEALTHY_WITHOUT, 1, 0, 1, 2))
        assert (counts == 0).mean() == pytest.approx(burden.without, abs=0.03)
        assert counts.max() <= burden.most
        assert counts[counts > 0].min() == burden.at_least


def test_veins_of_a_head_lie_within_its_skull(drawn, few_veins):
    veins, widening = walks.draw_veins(np.random.default_rng(6), drawn)
    kinds = {vein.kind for vein in veins}
    assert {"sinus", "deep", "cortical", "medullary", "through", "cerebellar"} <= kinds
    assert 0.8 < widening < 1.25
    for vein in veins:
        assert np.isfinite(vein.path).all()
        outside = drawn.grid.sample(drawn.hulls.inner_skull, vein.path)
        # Sigmoid sinuses leave the skull, and branches stray; the others stay inside, nearly.
        assert vein.kind in ("sinus", "branch") or outside.max() < 4, vein.kind
    for vein in veins:
        if vein.kind == "through":
            course = geometry.unit(vein.path[-1] - vein.path[0])
            assert abs(course[2]) > 0.6
    sinus = veins[0].path
    assert np.abs(drawn.grid.sample(drawn.points[0], sinus)).max() < 4  # midline


@pytest.mark.parametrize(("chi", "kept"), [(0.9, 0.9), (-0.9, 0.3)])
def test_microbleeds_and_calcifications_are_dark_and_turn_phase_opposite_ways(chi, kept):
    grid = straight(SMALL).fine
    fine_map = fine.FineMap.empty(grid)
    index = grid.matrix // 2
    centre = grid.origin + grid.spacing * index
    fine.paint_ovoid(np.random.default_rng(1), fine_map, centre, 5.0, chi, kept)
    model = plain_echo(fine_map, field.dipole_field(fine_map.chi, grid.spacing, UP))
    decay = echo.draw_blood_decay(np.random.default_rng(0), SMALL)
    middle, above = (model.plane(index[2] + offset, decay) for offset in (0, 3))
    # Above its poles a paramagnetic ball strengthens the field, at its equator it weakens it.
    assert np.angle(above[index[1], index[0]]) * chi > 0.1
    assert np.angle(middle[index[1], index[0] + 3]) * chi < -0.05
    assert np.abs(middle[index[1], index[0]]) < 0.5 * np.abs(middle[2, 2])
    assert np.abs(middle[2, 2]) == pytest.approx(1, abs=0.02)


def test_phase_of_a_shift_is_that_of_field_and_echo_time():
    fine_map = fine.FineMap.empty(straight(SMALL).fine)
    model = plain_echo(fine_map, np.full(fine_map.grid.shape, 0.1, np.float32))
    radians = 2 * np.pi * 42.577 * SMALL.field_t * SMALL.echo_time_s * 0.1
    assert np.angle(model.plane(3, 0.0)) == pytest.approx(radians, abs=1e-3)


def test_signal_is_largest_at_the_angle_of_ernst():
    repetition_s, t1_s = 0.03, 0.85
    best = np.rad2deg(np.arccos(np.exp(-repetition_s / t1_s)))
    around = [echo.ernst(1.0, t1_s, repetition_s, best + off) for off in (-3, 0, 3)]
    assert max(around) == around[1]
    assert echo.ernst(0.7, t1_s, 100.0, 90.0) == pytest.approx(0.7)


@pytest.mark.parametrize("vendor", settings.VENDORS)
def test_every_scale_of_phase_says_the_same(vendor):
    chances = tuple(float(name == vendor) for name in settings.VENDORS)
    setting = straight(SMALL._replace(vendor_chances=chances))
    rng = np.random.default_rng(0)
    angles = rng.uniform(-3.1, 3.1, setting.image.shape)
    image = (5 * np.exp(1j * angles)).astype(np.complex64)
    received = scanner.Received(image, 0.05, 100.0, False, False)
    per_radian = {"Siemens": storage.SIEMENS_HALF_TURN / np.pi, "GE": storage.GE_PER_RADIAN}
    signs, back = set(), np.linalg.inv(setting.affine())
    for seed in range(12):
        stored = storage.store(np.random.default_rng(seed), setting, received)
        signs.add(stored.negated)
        # Through the affines, so that flipped arrays say the same about the same place.
        turned = nib.orientations.io_orientation(back @ stored.affine)
        phase = nib.orientations.apply_orientation(stored.phase, turned).transpose(2, 1, 0)
        phase = phase / per_radian.get(vendor, 1) * (-1 if stored.negated else 1)
        assert np.allclose(phase, angles, atol=2e-3)
        assert stored.vendor == vendor
    assert signs == ({True, False} if vendor == "GE" else {False})


def test_flipped_arrays_keep_their_places():
    affine = straight(SMALL).affine()
    flipped = storage.flip_affine(affine, (48, 56, 16), (0, 1))
    assert affine @ [5, 7, 3, 1] == pytest.approx(flipped @ [47 - 5, 55 - 7, 3, 1])


def test_only_air_that_reaches_the_border_is_marked():
    magnitude = np.ones((1, 40, 40), np.float32)
    magnitude[:, :10] = 0
    magnitude[:, 20:30, 20:30] = 0
    phase = np.ones_like(magnitude)
    storage.mark_air(phase, magnitude, 0.5)
    assert (phase[0, :9] == np.float32(-np.pi)).all()
    assert (phase[0, 15:] == 1).all()


def test_cohort_has_the_shares_of_its_groups():
    people = dataset.draw_participants(41)
    assert {g: sum(p.group == g for p in people) for g in settings.GROUPS} == settings.GROUPS
    assert people[:5] == dataset.draw_participants(5)
    assert {person.group for person in people[:4]} == set(settings.GROUPS)
    assert [person.protocol.name for person in people[:4]] == ["1p5T", "3T", "ukb", "1p5T"]
    assert dataset.draw_participants(100)[0].label == "001"


@pytest.fixture
def coarse_scanner(monkeypatch, few_veins):
    """A coarse head with few veins, and participants who surely have microbleeds."""
    monkeypatch.setattr(dataset, "PROTOCOLS", (SMALL,))
    monkeypatch.setattr(lesions, "draw_count", lambda *_: 5)


def voxel_of(table, affine):
    """Voxel indices, one row a lesion, of the places that a truth table names."""
    return np.round(nib.affines.apply_affine(np.linalg.inv(affine), table[["x", "y", "z"]]))


def test_a_scan_from_start_to_end(tmp_path, coarse_scanner, capsys):
    def make(folder, *only):
        arguments = [str(folder), "--participants", "3", "--seed", "5"]
        assert dataset.main([*arguments, "--only", *only]) == 0
        return folder

    whole, alone = make(tmp_path / "a", "01", "sub-03"), make(tmp_path / "b", "03")
    assert "sub-03 TBI 3T Siemens" in capsys.readouterr().out
    assert sorted(p.name for p in alone.glob("sub-*")) == ["sub-03"]
    raw, truth = "sub-03/anat", "derivatives/truth/sub-03/anat"
    for path in [*(whole / raw).iterdir(), *(whole / truth).iterdir()]:  # same seed, same scan
        assert path.read_bytes() == (alone / path.relative_to(whole)).read_bytes()
    magnitude = nib.load(whole / raw / "sub-03_part-mag_T2starw.nii.gz")
    phase = nib.load(whole / raw / "sub-03_part-phase_T2starw.nii.gz")
    assert magnitude.shape == phase.shape == SMALL.matrix
    assert magnitude.get_data_dtype() == phase.get_data_dtype() == np.int16
    assert np.array_equal(magnitude.affine, phase.affine)
    about = json.loads((whole / raw / "sub-03_part-phase_T2starw.json").read_text())
    assert (about["EchoTime"], about["Units"]) == (0.02, "arbitrary")
    table = pd.read_csv(whole / truth / "sub-03_desc-microbleeds_dseg.tsv", sep="\t")
    assert tuple(table.columns) == dataset.COLUMNS
    assert list(table["index"]) == list(range(1, len(table) + 1))
    assert (table.susceptibility_ppm > 0).all()
    index = voxel_of(table, magnitude.affine)
    assert ((index >= 0) & (index < SMALL.matrix)).all()
    calcified = pd.read_csv(whole / truth / "sub-03_desc-calcifications_dseg.tsv", sep="\t")
    assert (calcified.susceptibility_ppm < 0).all()
    files = find_point_files(whole / "derivatives" / "truth")["sub-03"]
    assert files[MICROBLEED].table.name == "sub-03_desc-microbleeds_dseg.tsv"
    assert files[CALCIFICATION].table.name == "sub-03_desc-calcifications_dseg.tsv"
    people = pd.read_csv(whole / "participants.tsv", sep="\t", keep_default_na=False)
    assert list(people.manufacturer) == ["Siemens", "n/a", "Siemens"]


def test_a_lesion_darkens_the_image_where_the_truth_has_it(coarse_scanner, monkeypatch):
    """The same draws with and without the lesions: what differs is where the tables say."""

    def scan():
        return dataset.simulate(7, 0, "stroke", SMALL)

    def paint_elsewhere(rng, fine_map, *arguments):
        return fine.paint_ovoid(rng, fine.FineMap.empty(fine_map.grid), *arguments)

    with_lesions = scan()
    monkeypatch.setattr(lesions, "paint_ovoid", paint_elsewhere)
    without = scan()
    assert len(with_lesions.lesions) == len(without.lesions) > 5
    loss = 1 - with_lesions.stored.magnitude / np.maximum(without.stored.magnitude, 1.0)
    tables = pd.concat([dataset.truth_table(name, with_lesions) for name in dataset.LISTED])
    places = voxel_of(tables, with_lesions.stored.affine)
    bright = without.stored.magnitude > 0.3 * np.percentile(without.stored.magnitude, 90)
    lost = np.argwhere((loss > 0.3) & bright)
    apart = np.linalg.norm((lost[:, None] - places[None]) * SMALL.voxel_mm, axis=-1)
    # What lost much lies near a place in the tables, and each large microbleed lost much.
    assert len(lost) > 0
    assert (apart.min(1) <= 7).all()
    large = ((tables.diameter_mm > 2) & (tables.susceptibility_ppm > 0.5)).to_numpy()
    assert large.any()
    assert (apart[:, large].min(0) <= 3).all()


def test_without_lesions_tables_are_empty_but_for_their_heads(tmp_path):
    received = scanner.Received(np.ones((2, 3, 4), np.complex64), 0.1, 10.0, False, False)
    stored = storage.Stored(
        np.ones((4, 3, 2), np.int16), np.zeros((4, 3, 2)), np.eye(4), "GE", True
    )
    scan = dataset.Simulated(straight(SMALL), received, stored, [], 0.4, 0, 1400.0)
    dataset.write_truth("01", scan, tmp_path)
    for described in dataset.LISTED.values():
        table = pd.read_csv(tmp_path / f"sub-01_desc-{described}_dseg.tsv", sep="\t")
        assert tuple(table.columns) == dataset.COLUMNS
        assert table.empty
