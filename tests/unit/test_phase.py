import numpy as np
import pytest

from cmb_bids.errors import BadData, UsageError
from cmb_bids.highpass import homodyne
from cmb_bids.phase import PhaseConfig, combine_unwrapped, process_complex, process_magnitude
from cmb_bids.phase_scaling import wrap
from cmb_bids.polarity import dipole_kernel, head_field
from cmb_bids.swi import SwiConfig
from cmb_bids.volumes import b0_direction, voxel_sizes

TIMES = [0.0094, 0.02]
PPM_TO_RAD_PER_S = 2 * np.pi * 127.74  # at 3 T
BLEED, CALCIFICATION = (28, 40, 10), (52, 40, 10)


def affine_of(sizes=(2.0, 2.0, 3.0), degrees=20.0):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) * np.asarray(sizes)
    return affine


@pytest.fixture(scope="module")
def drawn():
    """A head with a microbleed and a calcification, two echoes, coil phase, an oblique slab."""
    rng = np.random.default_rng(3)
    affine, shape = affine_of(), (80, 96, 44)
    sizes, b0 = voxel_sizes(affine), b0_direction(affine)
    points = (np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2) * sizes
    inside = (((points / (70, 86, 60)) ** 2).sum(1) < 1).reshape(shape)
    cavity = ((((points - (0, 62, -20)) / (24, 16, 20)) ** 2).sum(1) < 1).reshape(shape)
    tissue = inside & ~cavity
    source = np.zeros(shape)
    for at, susceptibility in ((BLEED, 1.0), (CALCIFICATION, -1.0)):
        source[at[0] - 1 : at[0] + 2, at[1] - 1 : at[1] + 2, at[2]] = susceptibility
    kernel = dipole_kernel(shape, sizes, b0, real_input=False)
    local = np.fft.ifftn(np.fft.fftn(source) * kernel).real
    field = PPM_TO_RAD_PER_S * (0.4 * head_field(tissue, sizes, b0) + local)
    x, y, z = ((points / 80).T).reshape(3, *shape)
    coil = 2.5 + x - 0.8 * y * z
    magnitudes, phases = [], []
    for time in TIMES:
        decay = np.exp(-(20 + 60 * np.abs(source)) * time)
        signal = 100 * tissue * decay * np.exp(1j * (coil + field * time))
        signal = signal + rng.normal(0, 1.5, shape) + 1j * rng.normal(0, 1.5, shape)
        magnitudes.append(np.abs(signal).astype(np.float32))
        phases.append(np.angle(signal).astype(np.float32))
    return magnitudes, phases, affine, field, tissue


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("highpass", ["homodyne", "gaussian"])
def test_sign_of_a_lesion_after_the_whole_chain(drawn, sign, highpass):
    magnitudes, phases, affine, _, _ = drawn
    result = process_complex(
        magnitudes, [sign * p for p in phases], TIMES, affine, PhaseConfig(highpass=highpass)
    )
    assert result.report["polarity_sign"] == sign
    assert result.report["polarity_evidence"] == "head"
    assert result.report["polarity_correlation"] * sign > 0.5
    assert not result.report["prefiltered"]
    # B0 runs across the slice, so that a flat source is seen from inside: opposite to a ball.
    bleed, calcification = result.highpass[BLEED], result.highpass[CALCIFICATION]
    assert np.sign(bleed) == -np.sign(calcification) != 0
    above = (BLEED[0], BLEED[1], BLEED[2] + 1)
    assert result.highpass[above] > 0.1 > -0.1 > result.highpass[CALCIFICATION[0], 40, 11]


@pytest.mark.parametrize("unwrapping", ["romeo", "laplacian"])
def test_unwrapped_phase_is_the_field_at_the_reference_echo_time(drawn, unwrapping):
    magnitudes, phases, affine, field, tissue = drawn
    result = process_complex(magnitudes, phases, TIMES, affine, PhaseConfig(unwrapping=unwrapping))
    deep = np.zeros(tissue.shape, bool)
    deep[20:60, 20:60, 10:30] = True
    difference = (result.unwrapped - field * 0.02)[deep]
    assert result.report["reference_echo_time_s"] == 0.02
    tolerance = 0.15 if unwrapping == "romeo" else 0.5
    assert np.median(np.abs(difference - np.median(difference))) < tolerance


def test_without_unwrapping_nothing_else_changes(drawn):
    magnitudes, phases, affine, _, _ = drawn
    plain = process_complex(magnitudes, phases, TIMES, affine)
    without = process_complex(magnitudes, phases, TIMES, affine, PhaseConfig(unwrapping="none"))
    assert without.report["polarity_sign"] == 1
    assert np.array_equal(plain.swi, without.swi)
    assert np.abs(without.unwrapped).max() <= np.float32(np.pi)


def test_vendor_filtered_phase_is_not_filtered_again(drawn):
    magnitudes, phases, affine, _, _ = drawn
    sizes = voxel_sizes(affine)
    filtered = [homodyne(m, p, sizes, 2) for m, p in zip(magnitudes, phases, strict=True)]
    result = process_complex(magnitudes[1:], filtered[1:], TIMES[1:], affine)
    assert result.report["prefiltered"]
    assert (result.report["unwrapping"], result.report["highpass"]) == ("none", "none")
    inside = result.highpass != 0
    assert np.allclose(result.highpass[inside], filtered[1][inside], atol=1e-6)


def test_swi_is_on_the_same_grid_and_never_brighter(drawn):
    magnitudes, phases, affine, _, _ = drawn
    result = process_complex(magnitudes, phases, TIMES, affine)
    for image in result[:5]:
        assert image.shape == magnitudes[0].shape
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
    assert (result.swi <= result.magnitude + 1e-4).all()
    assert (result.minip <= result.swi + 1e-4).all()


def test_order_of_echoes_and_threads_do_not_matter(drawn):
    magnitudes, phases, affine, _, _ = drawn
    plain = process_complex(magnitudes, phases, TIMES, affine)
    turned = process_complex(magnitudes[::-1], phases[::-1], TIMES[::-1], affine, n_threads=2)
    assert np.allclose(plain.swi, turned.swi, atol=1e-3)
    assert turned.report["echo_times_s"] == TIMES


def test_not_a_number_is_no_signal(drawn):
    magnitudes, phases, affine, _, _ = drawn
    magnitudes, phases = [m.copy() for m in magnitudes], [p.copy() for p in phases]
    magnitudes[0][30:32, 30, 10], phases[1][33, 30, 10] = np.nan, np.nan
    result = process_complex(magnitudes, phases, TIMES, affine)
    assert all(np.isfinite(image).all() for image in result[:5])


def test_coil_phase_is_taken_out_of_unwrapped_echoes():
    rate, coil = 100.0, 2.0
    shape, times = (30, 30, 10), [0.01, 0.02]
    unwrapped = [np.full(shape, coil + rate * t, dtype=np.float32) for t in times]
    unwrapped[1] += np.float32(2 * np.pi)  # each echo is free by whole turns
    head = np.ones(shape, bool)
    found = combine_unwrapped(
        unwrapped, [np.ones(shape, np.float32)] * 2, times, 0.02, head, np.ones(3)
    )
    assert np.allclose(found, rate * 0.02, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (5, 5, 2)])
def test_tiny_images_come_through(shape):
    magnitude, phase = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    result = process_complex([magnitude], [phase], [0.02], np.eye(4))
    assert result.swi.shape == shape
    assert result.report["polarity_confidence"] == "weak"
    assert process_magnitude([magnitude], [None], np.eye(4)).minip.shape == shape


def test_no_signal_and_bad_echoes_are_refused():
    one, zero = np.ones((4, 4, 4), np.float32), np.zeros((4, 4, 4), np.float32)
    with pytest.raises(BadData, match="zero everywhere"):
        process_complex([zero], [one], [0.02], np.eye(4))
    with pytest.raises(BadData, match="zero everywhere"):
        process_magnitude([np.full((4, 4, 4), np.nan)], [0.02], np.eye(4))
    with pytest.raises(BadData, match="EchoTime"):
        process_complex([one, one], [one, one], [0.02, 0.02], np.eye(4))
    with pytest.raises(BadData, match="shape"):
        process_complex([one], [one[:2]], [0.02], np.eye(4))


@pytest.mark.parametrize(
    "config", [{"polarity": "vendor"}, {"unwrapping": "none", "highpass": "gaussian"}]
)
def test_settings_that_make_no_sense_are_refused(config):
    one = np.ones((4, 4, 4), np.float32)
    with pytest.raises(UsageError, match="phase"):
        process_complex([one], [one], [0.02], np.eye(4), PhaseConfig(**config))


def test_magnitude_only_combines_echoes(drawn):
    magnitudes, _, affine, _, _ = drawn
    both = process_magnitude(magnitudes, TIMES, affine, SwiConfig(minimum_projection_mm=3.0))
    assert both.report["echo_combination"] == "contrast"
    assert both.report["kind"] == "magnitude"
    assert np.allclose(both.minip, both.magnitude)
    unknown = process_magnitude(magnitudes, [None, None], affine)
    assert unknown.report["echo_combination"] == "sum-of-squares"


def test_wrap_of_nothing():
    assert wrap(np.zeros((0,))).size == 0
