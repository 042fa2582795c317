"""Quality of known images: the noise, the ghosts and the phase that were put in come out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from cmb_bids.quality import (
    QualityConfig,
    brain_left_out,
    find_phase_encoding,
    find_reasons,
    measure_phase,
    measure_quality,
    motion_ghosting,
    signal_to_noise,
)

SIZES = (2.0, 2.0, 3.0)
SHAPE = (96, 112, 20)
AFFINE = np.diag([*SIZES, 1.0])


def head(noise=0.05, ghost=0.0, texture=0.05, seed=0):
    """Complex head in air and its brain; signal about 1 with smooth and sharp anatomy in it."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij")
    x, y, z = (g * s for g, s in zip(grid, SIZES, strict=True))
    radius = np.sqrt((x / 62) ** 2 + (y / 78) ** 2)
    signal = (radius < 1) * (1 + texture * np.sin(x / 9) * np.cos(y / 7) * np.cos(z / 8))
    signal[(x / 12) ** 2 + (y / 25) ** 2 < 1] *= 0.8  # ventricles
    signal[(radius > 0.86) & (radius < 0.93)] *= 0.2  # skull
    image = signal.astype(complex) + ghost * np.roll(signal, SHAPE[1] // 2, axis=1)
    image += noise * (rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE))
    return image, (radius < 0.86)


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("wanted", [5, 12, 30])
@pytest.mark.parametrize("scale", [1.0, 4000.0])
def test_noise_inside_the_head_is_found_among_anatomy(wanted, scale):
    image, brain = head(noise=1 / wanted)
    measured = signal_to_noise((scale * np.abs(image)).astype(np.float32), brain)
    assert measured == pytest.approx(wanted, rel=0.1)


def test_noise_is_found_where_air_was_set_to_zero():
    image, brain = head(noise=0.05)
    assert signal_to_noise(np.abs(image) * brain, brain) == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("factor", [1.5, 2])
def test_interpolation_does_not_make_an_image_less_noisy(factor):
    image, brain = head(noise=0.05)
    spectrum = np.fft.fftshift(np.fft.fftn(image, axes=(0, 1)), axes=(0, 1))
    pad = [(round(n * (factor - 1) / 2),) * 2 for n in SHAPE[:2]]
    filled = np.fft.ifftshift(np.pad(spectrum, [*pad, (0, 0)]), axes=(0, 1))
    fine = np.abs(np.fft.ifftn(filled, axes=(0, 1))) * factor**2
    index = [np.minimum((np.arange(n) / factor).astype(int), n - 1) for n in fine.shape[:2]]
    fine_brain = brain[np.ix_(*index, np.arange(SHAPE[2]))]
    assert signal_to_noise(fine, fine_brain) == pytest.approx(20, rel=0.25)


def test_without_brain_or_noise_there_is_no_signal_to_noise():
    image, brain = head()
    assert signal_to_noise(np.abs(image), np.zeros_like(brain)) is None
    one = np.zeros_like(brain)
    one[50, 50, 10] = True
    assert signal_to_noise(np.abs(image), one) is None
    assert signal_to_noise(np.ones(SHAPE), brain) is None


def test_a_single_slice_is_measured_in_its_plane():
    image, brain = head(noise=0.05)
    measured = signal_to_noise(np.abs(image[:, :, 10:11]), brain[:, :, 10:11])
    assert measured == pytest.approx(20, rel=0.15)


# ---------------------------------------------------------------- motion


def ghosting(image, brain, **arguments):
    return motion_ghosting(np.abs(image).astype(np.float32), brain, AFFINE, **arguments)


@pytest.mark.parametrize("noise", [0.02, 0.08])
def test_a_ghost_is_found_in_its_strength_whatever_the_noise(noise):
    for strength in (0.05, 0.1):
        image, brain = head(noise=noise, ghost=strength)
        # Where the ghost's skull and ventricles lie there is less of it, hence the tolerance.
        assert ghosting(image, brain) == pytest.approx(strength, rel=0.3)
    image, brain = head(noise=noise)
    assert ghosting(image, brain) < 0.2 * 0.05


def test_a_scalp_that_the_skull_parts_from_the_brain_is_no_ghost():
    image, brain = head(noise=0.0)
    floor = 0.3 + 0.05 * np.random.default_rng(1).standard_normal(SHAPE)  # of many coils
    image = np.hypot(np.abs(image), np.abs(floor))
    assert motion_ghosting(image.astype(np.float32), brain, AFFINE) < 0.02


def test_a_ghost_is_looked_for_along_the_phase_encoding():
    image, brain = head(ghost=0.1)
    assert ghosting(image, brain, phase_encoding_axis=1) == ghosting(image, brain)
    assert ghosting(image, brain, phase_encoding_axis=0) < 0.01
    # Across slices nothing can be seen: both axes of the plane are asked.
    assert ghosting(image, brain, phase_encoding_axis=2) == ghosting(image, brain)
    turned = motion_ghosting(
        np.abs(image).transpose(1, 0, 2),
        brain.transpose(1, 0, 2),
        np.diag([SIZES[1], SIZES[0], SIZES[2], 1.0]),
        phase_encoding_axis=0,
    )
    assert turned == pytest.approx(ghosting(image, brain), rel=1e-3)


def test_more_motion_between_phase_encoding_steps_is_more_ghosting():
    image, brain = head(noise=0.02)
    spectrum = np.fft.fft2(image, axes=(0, 1))
    lines = np.fft.fftfreq(SHAPE[1])
    moved = np.abs(lines - 0.1) < 0.03
    found = []
    for shift_mm in (0, 0.5, 1, 2):
        jolted = spectrum.copy()
        jolted[:, moved] *= np.exp(2j * np.pi * lines[moved] * shift_mm / SIZES[1])[None, :, None]
        found.append(ghosting(np.fft.ifft2(jolted, axes=(0, 1)), brain))
    assert found == sorted(found)
    assert found[-1] > 2 * found[0]


def test_without_air_there_is_no_ghosting():
    image, brain = head(ghost=0.1)
    middle = (slice(36, 60), slice(36, 76))
    assert ghosting(image[middle], brain[middle]) is None
    assert ghosting(np.where(np.abs(image) > 0.3, image, 0), brain) is None
    assert ghosting(image, np.zeros_like(brain)) is None


@pytest.mark.parametrize(
    ("sidecar", "axis"),
    [
        ({"PhaseEncodingDirection": "j-"}, 1),
        ({"PhaseEncodingDirection": "i"}, 0),
        ({"PhaseEncodingAxis": "j"}, 1),
        ({"PhaseEncodingDirection": "k"}, 2),
        ({"PhaseEncodingDirection": None}, None),
        ({"PhaseEncodingDirection": "COL"}, None),
        ({}, None),
    ],
)
def test_the_sidecar_tells_the_phase_encoding(sidecar, axis):
    assert find_phase_encoding(sidecar) == axis


# ---------------------------------------------------------------- phase


def test_the_spread_of_phase_is_that_of_the_tissue_not_of_its_veins():
    rng = np.random.default_rng(1)
    phase = rng.normal(0.05, 0.2, (40, 40, 20))
    phase[::20, ::20] = 2.5  # veins
    found = measure_phase(phase, np.ones(phase.shape, bool))
    assert found["residual_phase_rad"] == pytest.approx(0.2, rel=0.05)
    assert found["phase_jump_share"] < 0.001
    assert found["phase_missing_share"] == 0


def test_a_wrap_is_a_jump_and_a_steep_slope_is_not():
    ramp = np.broadcast_to(np.linspace(0.1, 12, 40)[:, None, None], (40, 10, 10))
    wrapped = np.angle(np.exp(1j * ramp))
    everywhere = np.ones(ramp.shape, bool)
    assert measure_phase(ramp, everywhere)["phase_jump_share"] == 0
    pairs = 39 * 100 + 2 * 40 * 90
    jumps = 100 * int((np.abs(np.diff(wrapped[:, 0, 0])) > np.pi).sum())
    assert jumps == 200
    assert measure_phase(wrapped, everywhere)["phase_jump_share"] == pytest.approx(jumps / pairs)


def test_phase_that_is_not_there_is_missing():
    phase = np.full((10, 10, 10), 0.3)
    phase[:2], phase[2:3] = 0, np.nan
    found = measure_phase(phase, np.ones(phase.shape, bool))
    assert found["phase_missing_share"] == pytest.approx(0.3)
    assert found["residual_phase_rad"] == 0
    nothing = measure_phase(np.zeros((4, 4, 4)), np.ones((4, 4, 4), bool))
    assert nothing == {
        "residual_phase_rad": None, "phase_jump_share": None, "phase_missing_share": 1.0,
    }  # fmt: skip
    assert set(measure_phase(None, np.ones((4, 4, 4), bool)).values()) == {None}
    assert set(measure_phase(phase, np.zeros(phase.shape, bool)).values()) == {None}


# ---------------------------------------------------------------- all of it


def test_all_measures_of_a_scan_and_of_one_without_phase():
    image, brain = head(noise=0.05, ghost=0.1)
    magnitude = np.abs(image)
    magnitude[0, 0, 0] = np.nan
    found = measure_quality(magnitude, brain, AFFINE, np.angle(image), 1)
    assert found["signal_to_noise"] == pytest.approx(20, rel=0.15)
    assert found["motion_ghosting"] > 0.06
    assert found["residual_phase_rad"] == pytest.approx(0.05, rel=0.2)
    alone = measure_quality(magnitude, brain, AFFINE)
    assert alone["residual_phase_rad"] is None
    assert alone["signal_to_noise"] == found["signal_to_noise"]


def test_an_empty_mask_measures_nothing():
    image, brain = head()
    found = measure_quality(np.abs(image), np.zeros_like(brain), AFFINE, np.angle(image))
    assert set(found.values()) == {None}


def test_images_on_different_grids_are_refused():
    image, brain = head()
    with pytest.raises(ValueError, match="shape"):
        measure_quality(np.abs(image), brain[:-1], AFFINE)


def test_reasons_name_what_is_outside_the_limits_and_nothing_else():
    limits = QualityConfig(minimum_signal_to_noise=8, maximum_motion_ghosting=0.04)
    assert find_reasons({}, limits) == []
    at_the_limit = {"signal_to_noise": 8.0, "motion_ghosting": 0.04, "residual_phase_rad": None}
    assert find_reasons(at_the_limit, limits) == []
    [reason] = find_reasons({**at_the_limit, "signal_to_noise": 7.9}, limits)
    assert "7.9" in reason
    assert "at least 8" in reason
    strict = dataclasses.replace(limits, maximum_motion_ghosting=0.03)
    [reason] = find_reasons(at_the_limit, strict)
    assert "4.0% of the brain's signal (at most 3.0%" in reason


def test_the_limits_are_those_of_the_shipped_configuration():
    shipped = yaml.safe_load((Path(__file__).parents[2] / "config" / "config.yaml").read_text())
    assert shipped["quality"] == dataclasses.asdict(QualityConfig())


def test_a_mask_that_lost_the_front_is_noticed():
    image, brain = head()
    whole = brain_left_out(np.abs(image).astype(np.float32), brain, AFFINE)
    cut = brain.copy()
    cut[:, : SHAPE[1] // 3] = False
    lost = brain_left_out(np.abs(image).astype(np.float32), cut, AFFINE)
    assert whole < 0.02
    assert lost == pytest.approx((brain & ~cut).sum() / brain.sum(), abs=0.08)
    (reason,) = find_reasons({"brain_left_out_share": lost})
    assert "leaves out" in reason
    assert find_reasons({"brain_left_out_share": whole}) == []


def test_a_mask_that_lost_the_cerebellum_is_noticed():
    image, brain = head()
    tall = AFFINE @ np.diag([1, 1, 130 / SHAPE[2] / SIZES[2], 1])
    cut = brain.copy()
    cut[:, :, : SHAPE[2] // 3] = False  # the lowest 39 mm; what is lost lies below all of the mask
    whole, lost = (brain_left_out(np.abs(image).astype(np.float32), m, tall) for m in (brain, cut))
    assert whole < 0.02
    assert lost == pytest.approx(1 - 91 / 110, abs=0.04)
    assert find_reasons({"brain_left_out_share": lost})


def test_no_mask_no_share():
    image, brain = head()
    assert brain_left_out(np.abs(image).astype(np.float32), ~brain & brain, AFFINE) is None
    assert brain_left_out(np.zeros(SHAPE, np.float32), brain, AFFINE) is None
