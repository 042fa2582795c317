import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmb_bids.errors import BadData
from cmb_bids.phase_scaling import combine_real_imaginary, mend_alternate_slices, scale_phase, wrap


@pytest.fixture(scope="module")
def radians():
    """Phase that fills a turn, with air at exactly -pi as Philips stores it."""
    phase = np.random.default_rng(0).uniform(-np.pi, np.pi, (24, 20, 12))
    phase[:3] = -np.pi
    phase[3, 0, :2] = (-np.pi, np.nextafter(np.pi, 0))
    return phase


def angle_between(a, b):
    return np.abs(np.angle(np.exp(1j * (a.astype(float) - b))))


STORED = {
    "radians": lambda p: (p.astype(np.float32), 1, 0, "rad"),
    "radians without Units": lambda p: (p.astype(np.float32), 1, 0, None),
    "radians from 0 to 2 pi": lambda p: ((p % (2 * np.pi)).astype(np.float64), 1, 0, "rad"),
    "int16 with the header's slope": lambda p: (
        np.clip(np.round((p + 5e-4) / 9.585e-5), -32768, 32767).astype(np.int16),
        9.585e-5,
        -5e-4,
        "rad",
    ),
    "floats under a slope of thousands": lambda p: (p.astype(np.float32), 1302.0, 0, "rad"),
    "floats under a slope next to nothing": lambda p: (p.astype(np.float32), 1e-4, 0, "rad"),
    "Siemens signed": lambda p: (np.round(p * 4096 / np.pi).astype(np.int16), 1, 0, None),
    "Siemens signed, called rad": lambda p: (
        np.round(p * 4096 / np.pi).astype(np.int16),
        1,
        0,
        "rad",
    ),
    "Siemens by slope 2": lambda p: (
        np.clip(np.round((p + np.pi) * 2048 / np.pi), 0, 4095).astype(np.uint16),
        2,
        -4096,
        "arbitrary",
    ),
    "Siemens unsigned": lambda p: (
        np.clip(np.round((p + np.pi) * 2048 / np.pi), 0, 4095).astype(np.uint16),
        1,
        0,
        "arbitrary",
    ),
    "Siemens unsigned under a bogus slope": lambda p: (
        np.clip(np.round((p + np.pi) * 2048 / np.pi), 0, 4095).astype(np.uint16),
        17.0,
        3.0,
        "arbitrary",
    ),
    "milliradian": lambda p: (np.round(p * 1000).astype(np.int16), 1, 0, None),
    "milliradian by slope": lambda p: (
        np.round((p * 1000 + 3142) / 1.5345).astype(np.int16),
        1.5345,
        -3142,
        "arbitrary",
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_every_way_of_storing_gives_the_same_radians(radians, name):
    stored, slope, intercept, units = STORED[name](radians)
    scaled = scale_phase(stored, slope, intercept, units)
    assert scaled.radians.dtype == np.float32
    assert np.abs(scaled.radians).max() <= np.float32(np.pi)
    assert angle_between(scaled.radians, radians).max() < 2.5e-3
    assert scaled.valid.all()


def test_air_at_minus_pi_stays_there(radians):
    stored, *header = STORED["radians"](radians)
    assert (scale_phase(stored, *header).radians[:3] == np.float32(-np.pi)).all()


def test_a_range_that_does_not_wrap_is_not_stretched():
    phase = np.linspace(-1.2, 0.7, 1000).reshape(10, 10, 10).astype(np.float32)
    assert np.allclose(scale_phase(phase, units="rad").radians, phase)


@pytest.mark.parametrize("units", [None, "arbitrary"])
def test_a_small_range_without_units_is_refused_with_the_remedy(units):
    phase = np.linspace(-1.2, 0.7, 1000).reshape(10, 10, 10).astype(np.float32)
    with pytest.raises(BadData, match=r"sub-01_part-phase.*phase\.scale") as error:
        scale_phase(phase, units=units, path="sub-01_part-phase_T2starw.nii.gz")
    assert error.value.exit_code == 65
    assert np.allclose(scale_phase(phase, units=units, scale="radians").radians, phase)


@pytest.mark.parametrize("top", [255, 1000, 65535])
def test_unknown_integer_ranges_are_refused(top):
    with pytest.raises(BadData, match="no known phase scale"):
        scale_phase(np.arange(0, top + 1, max(1, top // 500)).reshape(-1, 1, 1))


def test_configured_scales_are_obeyed():
    narrow = np.linspace(-1000, 900, 512).reshape(8, 8, 8).astype(np.int16)
    siemens = scale_phase(narrow, scale="siemens").radians
    assert np.allclose(siemens, narrow * np.pi / 4096, atol=1e-5)
    unsigned = scale_phase(narrow + 2048, scale="siemens").radians
    assert np.allclose(unsigned, narrow * np.pi / 2048, atol=1e-5)
    assert np.allclose(scale_phase(narrow, scale="milliradian").radians, narrow / 1000, atol=1e-5)
    stored = scale_phase(narrow / 1000.0, slope=50, scale="stored").radians
    assert np.allclose(stored, narrow / 1000, atol=1e-5)
    with pytest.raises(BadData, match="degrees"):
        scale_phase(narrow, scale="degrees")


def test_what_is_not_finite_becomes_zero_and_is_marked(radians):
    phase = radians.astype(np.float32)
    phase[5, 5, 5], phase[6, 6, 6] = np.nan, np.inf
    scaled = scale_phase(phase, units="rad")
    assert scaled.radians[5, 5, 5] == scaled.radians[6, 6, 6] == 0
    assert (~scaled.valid).sum() == 2


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_phase_without_content_is_refused(value):
    with pytest.raises(BadData, match=r"p\.nii"):
        scale_phase(np.full((3, 3, 3), value, dtype=np.float32), units="rad", path="p.nii")


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_is_none_counts_as_one(radians, slope):
    scaled = scale_phase(radians.astype(np.float32), slope, np.nan, "rad")
    assert angle_between(scaled.radians, radians).max() < 1e-5


@given(st.floats(-1e3, 1e3))
def test_wrap_keeps_the_angle(value):
    phase = np.array([value])
    assert np.abs(wrap(phase)).max() <= np.pi
    assert np.abs(np.exp(1j * wrap(phase)) - np.exp(1j * phase)).max() < 1e-9


@pytest.mark.parametrize("axis", [0, 2])
def test_real_and_imaginary_with_every_second_slice_turned(axis):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 16, 12)], indexing="ij")
    magnitude = 100 * np.exp(-(x**2 + y**2 + z**2))
    signal = magnitude * np.exp(1j * (0.8 * x + 2 * y - 1.5 * z))
    turned = np.moveaxis(signal.copy(), axis, 0)
    turned[1::2] *= -1
    turned = np.moveaxis(turned, 0, axis)
    plain = combine_real_imaginary(signal.real, signal.imag, axis)
    mended = combine_real_imaginary(turned.real.astype(np.int16), turned.imag, axis)
    assert (plain[2], mended[2]) == (False, True)
    assert np.allclose(plain[0], magnitude, rtol=1e-5)
    bright = magnitude > 20
    assert angle_between(plain[1], np.angle(signal))[bright].max() < 1e-4
    assert angle_between(mended[1], np.angle(signal))[bright].max() < 0.06


@pytest.mark.parametrize("axis", [0, 2])
def test_phase_with_every_second_slice_half_a_turn_off(axis):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 16, 12)], indexing="ij")
    magnitude = (100 * np.exp(-(x**2 + y**2 + z**2))).astype(np.float32)
    phase = wrap((3 * x + 2 * y - 4 * z + 2).astype(np.float32))
    turned = np.moveaxis(phase.copy(), axis, 0)
    turned[1::2] = wrap(turned[1::2] - np.pi)
    turned = np.moveaxis(turned, 0, axis)
    as_it_came, untouched = mend_alternate_slices(magnitude, phase, axis)
    mended, flipped = mend_alternate_slices(magnitude, turned, axis)
    assert (untouched, flipped) == (False, True)
    assert as_it_came is phase
    assert mended.dtype == np.float32
    assert angle_between(mended, phase).max() < 1e-5


@pytest.mark.parametrize("shape", [(5, 5, 1), (1, 1, 1)])
def test_a_single_slice_has_no_neighbour_to_disagree_with(shape):
    phase = np.full(shape, 0.5, dtype=np.float32)
    assert mend_alternate_slices(np.ones(shape), phase, 2) == (phase, False)


def test_noise_alone_does_not_alternate():
    rng = np.random.default_rng(0)
    phase = rng.uniform(-np.pi, np.pi, (16, 16, 10)).astype(np.float32)
    assert not mend_alternate_slices(rng.rayleigh(1, phase.shape), phase, 2)[1]
    assert not mend_alternate_slices(np.full(phase.shape, np.nan), phase, 2)[1]
