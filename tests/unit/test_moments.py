"""Spheres of known susceptibility, imaged through k-space, must give their moment back."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cmb_bids.moments import (
    AGREES,
    COLUMNS,
    CONTRADICTS,
    DRAWN_FACTOR,
    FEW_VOXELS,
    FILTERED_PHASE,
    FITTED,
    NO_FIELD_STRENGTH,
    NO_PHASE,
    UNCLEAR,
    Phase,
    cubic_terms,
    describe_phase,
    dipole,
    dipole_gradient,
    error_inflation,
    fit_dipole,
    judge,
    measure_moments,
    radians_per_ppm,
    surroundings,
)

ISOTROPIC = np.diag([1.0, 1.0, 1.0, 1.0])
FINE = np.diag([0.5, 0.5, 2.0, 1.0])
UK_BIOBANK = np.diag([0.8, 0.8, 3.0, 1.0])
FLIPPED = np.diag([-0.8, 0.8, 3.0, 1.0])
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(x=0.4, y=-0.2, z=0.1) @ np.diag([-0.8, 0.8, 2.0]), [12.0, -30.0, 40.0]
)
SAGITTAL = nib.affines.from_matvec(np.array([[0, 0, 2.0], [0.8, 0, 0], [0, 0.8, 0]]), [1, 2, 3])
RADIANS = radians_per_ppm(3.0, 0.020)
FINE_MM = 0.4  # at most, of the grid the field is drawn on


def image(affine, spheres, field_mm=26.0, radians=RADIANS, noise=0.0, ramp=(0, 0, 0), taper=0.3):
    """Magnitude and phase (x, y, z), and places (scanner mm), of spheres in even tissue.

    Spheres are (centre mm from the middle, diameter mm, ppm). Their field is the closed form, on a
    finer grid; the complex image is cropped and tapered in k-space, as a scanner does.
    """
    affine = np.asarray(affine, dtype=float)
    sizes = nib.affines.voxel_sizes(affine)
    shape = 2 * np.ceil(field_mm / sizes / 2).astype(int)
    parts = np.ceil(sizes / FINE_MM).astype(int)
    axes = [
        (np.arange(n * p) + 0.5) / p - 0.5 - (n - 1) / 2 for n, p in zip(shape, parts, strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ affine[:3, :3].T
    phase, signal = grid @ np.asarray(ramp), np.ones(grid.shape[:3])
    for centre, diameter, ppm in spheres:
        offsets = grid - centre
        inside = np.linalg.norm(offsets, axis=-1) < diameter / 2
        moment = ppm * np.pi / 6 * diameter**3
        phase += np.where(inside, 0, radians * moment * dipole(offsets))
        signal[inside] = 0.1
    spectrum = np.fft.fftshift(np.fft.fftn(signal * np.exp(1j * phase)))
    keep = tuple(
        slice((f - n) // 2, (f - n) // 2 + n) for f, n in zip(phase.shape, shape, strict=True)
    )
    spectrum = spectrum[keep]
    for axis, (n, fine) in enumerate(zip(shape, phase.shape, strict=True)):
        k = np.arange(n) - n // 2
        edge = np.clip((np.abs(k) / (n / 2) - 1 + taper) / taper, 0, 1)
        # The first voxel of the acquired grid lies further in than that of the fine one.
        filtered = (
            0.5 * (1 + np.cos(0.8 * np.pi * edge)) * np.exp(1j * np.pi * (1 / n - 1 / fine) * k)
        )
        spectrum = spectrum * np.expand_dims(filtered, tuple(a for a in range(3) if a != axis))
    measured = np.fft.ifftn(np.fft.ifftshift(spectrum)) / parts.prod()
    rng = np.random.default_rng(1)
    measured += noise * (rng.normal(size=shape) + 1j * rng.normal(size=shape))
    middle = affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3]
    return np.abs(measured), np.angle(measured), middle + np.array([s[0] for s in spheres])


def interior(shape):
    """Everything but the border, where k-space wraps round."""
    mask = np.zeros(shape, dtype=bool)
    mask[2:-2, 2:-2, 1:-1] = True
    return mask


def measured(affine, spheres, points=None, labels=None, mask=None, wrapped=True, **options):
    radians = options.get("radians", RADIANS)
    magnitude, phase, places = image(affine, spheres, **options)
    mask = interior(phase.shape) if mask is None else mask
    labels = np.zeros(phase.shape, dtype=int) if labels is None else labels
    points = places if points is None else points
    return measure_moments(points, labels, Phase(phase, radians, wrapped), magnitude, mask, affine)


@pytest.mark.parametrize(
    ("affine", "diameter", "ppm"),
    [
        (ISOTROPIC, 1.6, 0.8),
        (ISOTROPIC, 4.0, 0.6),
        (UK_BIOBANK, 2.4, 0.7),
        (FLIPPED, 3.0, -1.0),
        (OBLIQUE, 2.4, 0.7),
        (SAGITTAL, 3.0, -1.0),
    ],
)
def test_a_sphere_gives_its_moment_and_sign(affine, diameter, ppm):
    true = ppm * np.pi / 6 * diameter**3
    found = measured(affine, [((0.3, -0.2, 0.4), diameter, ppm)], noise=0.01).iloc[0]
    assert found["moment_status"] == FITTED
    # Slices of 3 mm along the field ring: what is dark and dephased in one shows in the next.
    tolerance = 0.35 if 3 in nib.affines.voxel_sizes(affine) else 0.15
    assert found["moment_ppm_mm3"] == pytest.approx(true, rel=tolerance)
    assert abs(found["moment_ppm_mm3"] - true) < 2 * found["moment_sd_ppm_mm3"]


def test_the_moment_depends_neither_on_field_nor_on_echo_time():
    sphere = [((0.0, 0.1, 0.2), 2.6, 0.7)]
    moments = [
        measured(FINE, sphere, radians=radians_per_ppm(*protocol))["moment_ppm_mm3"][0]
        for protocol in ((1.5, 0.020), (3.0, 0.020), (3.0, 0.030))
    ]
    assert np.ptp(moments) < 0.1 * np.mean(moments)


def test_radians_per_ppm_at_three_tesla_and_twenty_milliseconds():
    assert radians_per_ppm(3.0, 0.020) == pytest.approx(16.05, abs=0.01)


def test_a_background_noise_and_a_centre_that_is_off_do_little():
    sphere = [((0.3, -0.2, 0.4), 3.0, 0.7)]
    true = 0.7 * np.pi / 6 * 3.0**3
    magnitude, phase, places = image(UK_BIOBANK, sphere, noise=0.03, ramp=(0.3, -0.2, 0.15))
    found = measure_moments(
        np.add(places, (0.7, -0.5, 0.8)),
        np.zeros(phase.shape, dtype=int),
        Phase(phase, RADIANS, True),
        magnitude,
        interior(phase.shape),
        UK_BIOBANK,
    )
    assert found["moment_ppm_mm3"][0] == pytest.approx(true, rel=0.2)
    assert abs(found["moment_ppm_mm3"][0] - true) < 2.5 * found["moment_sd_ppm_mm3"][0]


def test_unwrapped_phase_gives_the_same_and_a_wrong_turn_does_no_harm():
    magnitude, phase, places = image(ISOTROPIC, [((0.1, 0.2, 0.3), 4.5, 0.9)], noise=0.01)
    labels, mask = np.zeros(phase.shape, dtype=int), interior(phase.shape)
    middle = np.array(phase.shape) // 2
    turned = phase + 2 * np.pi
    turned[tuple(np.add(middle, (0, 3, 0)))] += 2 * np.pi
    turned[tuple(np.add(middle, (4, 0, 0)))] -= 2 * np.pi
    moments = [
        measure_moments(places, labels, given, magnitude, mask, ISOTROPIC)["moment_ppm_mm3"][0]
        for given in (Phase(phase, RADIANS, True), Phase(turned, RADIANS, False))
    ]
    assert moments[1] == pytest.approx(moments[0], rel=0.05)


def test_two_neighbours_of_opposite_sign_keep_their_own():
    spheres = [((-3.0, 0.0, 0.2), 3.0, 0.7), ((3.0, 1.0, -0.3), 2.6, -0.9)]
    true = [ppm * np.pi / 6 * diameter**3 for _, diameter, ppm in spheres]
    found = measured(ISOTROPIC, spheres, noise=0.01)["moment_ppm_mm3"]
    np.testing.assert_allclose(found, true, rtol=0.15)


def test_a_lesion_at_the_edge_of_the_mask_keeps_its_sign():
    magnitude, phase, places = image(ISOTROPIC, [((0.2, 0.0, 0.1), 3.0, 0.7)], noise=0.01)
    mask = interior(phase.shape)
    mask[: phase.shape[0] // 2 - 1] = False
    labels = np.zeros(phase.shape, dtype=int)
    phase = Phase(phase, RADIANS, True)
    found = measure_moments(places, labels, phase, magnitude, mask, ISOTROPIC).iloc[0]
    assert found["moment_ppm_mm3"] == pytest.approx(0.7 * np.pi / 6 * 27, rel=0.25)
    corner = measure_moments(
        np.zeros((1, 3)), labels, phase, magnitude, np.ones(mask.shape, bool), ISOTROPIC
    ).iloc[0]
    assert corner["moment_status"] == FITTED
    assert abs(corner["moment_ppm_mm3"]) < 3 * corner["moment_sd_ppm_mm3"] + 0.2


def test_missing_voxels_do_not_spread():
    magnitude, phase, places = image(ISOTROPIC, [((0.2, 0.0, 0.1), 3.0, 0.7)], noise=0.01)
    labels, mask = np.zeros(phase.shape, dtype=int), interior(phase.shape)
    middle = np.array(phase.shape) // 2
    phase[tuple(middle)] = np.nan
    magnitude[tuple(np.add(middle, (3, 0, 0)))] = np.nan
    phase[tuple(np.subtract(middle, (0, 4, 0)))] = np.inf
    found = measure_moments(
        places, labels, Phase(phase, RADIANS, True), magnitude, mask, ISOTROPIC
    ).iloc[0]
    assert found["moment_ppm_mm3"] == pytest.approx(0.7 * np.pi / 6 * 27, rel=0.12)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_without_signal_there_is_no_moment_but_a_reason(value):
    shape = (20, 20, 20)
    found = measure_moments(
        np.array([[10.0, 10.0, 10.0]]),
        np.zeros(shape, dtype=int),
        Phase(np.zeros(shape), RADIANS),
        np.full(shape, value),
        np.ones(shape, dtype=bool),
        ISOTROPIC,
    ).iloc[0]
    assert np.isnan([found["moment_ppm_mm3"], found["moment_sd_ppm_mm3"]]).all()
    assert found["moment_status"] == FEW_VOXELS


def test_constant_phase_has_no_moment_and_a_finite_error():
    shape = (24, 24, 24)
    found = measure_moments(
        np.array([[12.0, 12.0, 12.0]]),
        np.zeros(shape, dtype=int),
        Phase(np.ones(shape), RADIANS),
        np.ones(shape),
        np.ones(shape, dtype=bool),
        ISOTROPIC,
    ).iloc[0]
    assert found["moment_ppm_mm3"] == pytest.approx(0, abs=1e-3)
    assert np.isfinite(found["moment_sd_ppm_mm3"])


def test_a_place_outside_the_image_and_an_empty_mask_have_no_moment():
    shape = (16, 16, 16)
    for mask, point in ((np.zeros(shape, bool), 8.0), (np.ones(shape, bool), 90.0)):
        found = measure_moments(
            np.full((1, 3), point),
            np.zeros(shape, dtype=int),
            Phase(np.zeros(shape), RADIANS),
            np.ones(shape),
            mask,
            ISOTROPIC,
        )
        assert found["moment_status"].tolist() == [FEW_VOXELS]


def test_no_lesions_and_no_phase_give_all_columns():
    labels = np.zeros((4, 4, 4), dtype=int)
    none = measure_moments(
        np.zeros((0, 3)), labels, Phase(labels, RADIANS), labels, labels, ISOTROPIC
    )
    assert list(none.columns) == COLUMNS
    assert len(none) == 0
    reason = measure_moments(np.zeros((2, 3)), labels, NO_PHASE, labels, labels, ISOTROPIC)
    assert reason["moment_status"].tolist() == [NO_PHASE, NO_PHASE]
    assert reason["moment_ppm_mm3"].isna().all()


def test_images_of_another_shape_are_refused():
    labels = np.zeros((4, 4, 4), dtype=int)
    with pytest.raises(ValueError, match="shape"):
        measure_moments(
            np.zeros((1, 3)), labels, Phase(labels[1:], RADIANS), labels, labels, ISOTROPIC
        )


def test_the_stated_error_covers_fields_of_other_anatomy():
    # Smooth random phase errs alike in neighbouring voxels: white noise would be far too sure.
    rng = np.random.default_rng(3)
    shape = (48, 48, 48)
    phase = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    phase *= 0.15 / phase.std()
    phase += rng.normal(scale=0.02, size=shape)
    phase = Phase(phase, RADIANS)
    magnitude, mask = np.ones(shape), np.ones(shape, dtype=bool)
    inflation = error_inflation(phase, magnitude, mask, ISOTROPIC, np.zeros((0, 3)), seed=1)
    assert inflation > 1.5
    z = []
    for centre in rng.uniform(10, 38, size=(40, 3)):
        around = surroundings(centre, 5.0, phase, magnitude, mask, ISOTROPIC)
        fit = fit_dipole(around, np.eye(3), RADIANS)
        z.append(fit.moment / (DRAWN_FACTOR * inflation * fit.error))
    assert 0.85 <= np.mean(np.abs(z) < 1.96) <= 1
    assert 0.5 < np.std(z) < 1.5


def test_the_dipole_is_that_of_the_textbook():
    assert dipole(np.array([0, 0, 2.0])) == pytest.approx(2 / (4 * np.pi * 8))
    assert dipole(np.array([2.0, 0, 0])) == pytest.approx(-1 / (4 * np.pi * 8))
    places = np.random.default_rng(0).uniform(1, 4, size=(20, 3))
    step = 1e-5
    for axis in range(3):
        move = step * np.eye(3)[axis]
        slope = (dipole(places + move) - dipole(places - move)) / (2 * step)
        np.testing.assert_allclose(dipole_gradient(places)[:, axis], slope, rtol=1e-5, atol=1e-9)


def test_the_background_holds_every_cubic():
    x, y, z = offsets = np.random.default_rng(0).uniform(-5, 5, size=(3, 100))
    cubic = 1 + x - y * z + 0.2 * x**3 - 0.1 * x * y * z + 0.3 * z * y**2 - z**2
    terms = cubic_terms(offsets.T)
    assert terms.shape == (100, 20)
    fitted = terms @ np.linalg.lstsq(terms, cubic, rcond=None)[0]
    np.testing.assert_allclose(fitted, cubic, atol=1e-8)


def test_the_phase_is_what_the_stage_says():
    report = {
        "reference_echo_time_s": 0.025,
        "echo_times_s": [0.01, 0.02, 0.03],
        "unwrapping": "romeo",
        "prefiltered": False,
    }
    assert describe_phase(report, 3.0) == (pytest.approx(radians_per_ppm(3.0, 0.025)), False)
    alone = {**report, "unwrapping": "none", "reference_echo_time_s": 0.021}
    assert describe_phase(alone, 1.5) == (pytest.approx(radians_per_ppm(1.5, 0.020)), True)
    assert describe_phase({**report, "prefiltered": True}, 3.0) == FILTERED_PHASE
    assert describe_phase(report, None) == NO_FIELD_STRENGTH
    assert describe_phase({"kind": "magnitude", "echo_times_s": [0.02]}, 3.0) == NO_PHASE
    assert describe_phase({}, None) == NO_PHASE


def test_a_verdict_needs_two_standard_deviations():
    assert judge(3.0, 1.0, True) == AGREES
    assert judge(-3.0, 1.0, False) == AGREES
    assert judge(-3.0, 1.0, True) == CONTRADICTS
    assert judge(1.9, 1.0, False) == UNCLEAR
    assert judge(np.nan, np.nan, True) is None
