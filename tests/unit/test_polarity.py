import numpy as np
import pytest
from scipy import ndimage

from cmb_bids import polarity
from cmb_bids.head import block_mean, core_of_head, head_mask, noise_level, spread
from cmb_bids.polarity import (
    dipole_kernel,
    find_polarity,
    head_correlation,
    head_field,
    local_susceptibility,
    remove_polynomial,
)
from cmb_bids.volumes import b0_direction


def oblique(sizes, degrees=25.0):
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) * np.asarray(sizes)
    return affine


def test_field_of_a_sphere_is_the_closed_form_along_b0():
    radius, sizes = 6.0, np.array([1.0, 1.0, 1.5])
    b0 = np.array([0.0, 0.6, 0.8])
    shape = (64, 64, 48)
    points = (np.indices(shape).reshape(3, -1).T - np.array(shape) // 2) * sizes
    distance = np.linalg.norm(points, axis=1)
    sphere = (distance <= radius).reshape(shape)
    kernel = dipole_kernel(shape, sizes, b0, real_input=False)
    field = np.fft.ifftn(np.fft.fftn(sphere.astype(float)) * kernel).real
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = points @ b0 / distance
        expected = (radius / distance) ** 3 / 3 * (3 * cosine**2 - 1)
    near = (distance > radius + 3) & (distance < 15)
    # A constant is free (k = 0), and a drawn sphere has not quite its volume.
    slope, offset = np.polyfit(expected[near], field.ravel()[near], 1)
    assert slope == pytest.approx(1, abs=0.1)
    assert np.corrcoef(expected[near], field.ravel()[near])[0, 1] > 0.98
    assert field[sphere].mean() == pytest.approx(offset, abs=0.02)


@pytest.mark.parametrize("degrees", [0, 40])
def test_local_susceptibility_finds_the_sign_of_a_source(degrees):
    affine = oblique((0.8, 0.8, 2.0), degrees)
    source = np.zeros((48, 48, 24))
    source[20:23, 20:23, 12] = 1.0
    source[32:35, 20:23, 12] = -1.0
    kernel = dipole_kernel(source.shape, np.array([0.8, 0.8, 2.0]), b0_direction(affine), False)
    phase = np.fft.ifftn(np.fft.fftn(source) * kernel).real
    found = local_susceptibility(phase, affine)
    assert found[21, 21, 12] > 0.4
    assert found[33, 21, 12] < -0.4


def head(affine, shape=(60, 72, 50)):
    """An ellipsoid with an air cavity, in mm round the middle of the grid."""
    points = np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2
    points = points @ affine[:3, :3].T
    inside = ((points / (70, 88, 66)) ** 2).sum(1) < 1
    cavity = (((points - (0, 62, -20)) / (22, 16, 18)) ** 2).sum(1) < 1
    return (inside & ~cavity).reshape(shape)


@pytest.mark.parametrize("degrees", [0, 30])
@pytest.mark.parametrize("sign", [1, -1])
def test_own_field_of_a_head_is_recognised_in_either_sign(sign, degrees):
    affine = oblique((3, 3, 3), degrees)
    tissue = head(affine)
    field = head_field(tissue, np.full(3, 3.0), b0_direction(affine))
    x, y, z = np.indices(tissue.shape) / 30
    phase = sign * 3 * field + 2 * x - y + 0.5 * z + 0.3 * x * y + 4
    core = ndimage.binary_erosion(tissue, iterations=3)
    correlation = head_correlation(phase, tissue, core, affine)
    assert correlation * sign > 0.95


def test_wrong_b0_would_be_seen():
    affine = oblique((3, 3, 3), 0)
    tissue = head(affine)
    core = ndimage.binary_erosion(tissue, iterations=3)
    across = head_field(tissue, np.full(3, 3.0), np.array([1.0, 0, 0]))
    assert head_correlation(across, tissue, core, affine) < 0.3


def crop_with_veins(sign, seed=0):
    """Tissue that fills the grid, with paramagnetic veins at several angles to B0."""
    rng = np.random.default_rng(seed)
    sizes = np.array([0.5, 0.5, 1.0])
    veins = np.zeros((64, 64, 48))
    for _ in range(12):
        direction = rng.normal(size=3)
        start = rng.uniform(0.2, 0.8, 3) * veins.shape * sizes
        for t in np.linspace(-14, 14, 120):
            at = np.round((start + t * direction / np.linalg.norm(direction)) / sizes).astype(int)
            if ((at >= 1) & (at < np.array(veins.shape) - 1)).all():
                veins[at[0] : at[0] + 2, at[1] : at[1] + 2, at[2]] = 1
    kernel = dipole_kernel(veins.shape, sizes, np.array([0, 0, 1.0]), False)
    phase = 3 * np.fft.ifftn(np.fft.fftn(veins) * kernel).real + rng.normal(0, 0.05, veins.shape)
    magnitude = 100 * np.exp(-0.8 * veins) + rng.normal(0, 5, veins.shape)
    return magnitude.astype(np.float32), (sign * phase).astype(np.float32), np.diag([*sizes, 1])


@pytest.mark.parametrize("sign", [1, -1])
def test_veins_speak_where_there_is_no_air(sign):
    magnitude, phase, affine = crop_with_veins(sign)
    core = np.ones(phase.shape, dtype=bool)
    found = find_polarity(phase, phase, magnitude, core, affine)
    assert (found.sign, found.evidence) == (sign, "veins")
    assert np.isnan(found.correlation)


def test_nothing_to_go_by_is_said_to_be_weak():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (32, 32, 16)).astype(np.float32)
    magnitude = (100 + rng.normal(0, 2, noise.shape)).astype(np.float32)
    found = find_polarity(
        noise, noise, magnitude, np.ones(noise.shape, bool), np.diag([2.0, 2.0, 2.0, 1])
    )
    assert (found.sign, found.evidence, found.confidence) == (1, "none", "weak")


@pytest.mark.parametrize(("said", "sign"), [("right-handed", 1), ("left-handed", -1)])
def test_configuration_is_obeyed(said, sign):
    magnitude, phase, affine = crop_with_veins(1)
    found = find_polarity(phase, phase, magnitude, np.ones(phase.shape, bool), affine, said)
    assert (found.sign, found.evidence, found.confidence) == (sign, "configuration", "certain")


def test_polynomial_is_removed_and_the_rest_stays():
    points = np.random.default_rng(0).uniform(-50, 50, (500, 3))
    low = 3 + points @ (1, -2, 0.5) + points[:, 0] * points[:, 1] / 10
    assert np.abs(remove_polynomial(low, points, 2)).max() < 1e-6
    assert np.abs(remove_polynomial(low, points, 1)).max() > 1


def test_blocks_average_and_spread_back():
    image = np.arange(5 * 4 * 3, dtype=float).reshape(5, 4, 3)
    coarse = block_mean(image, (2, 2, 1))
    assert coarse.shape == (3, 2, 3)
    assert coarse[0, 0, 0] == image[:2, :2, 0].mean()
    assert coarse[2, 1, 1] == image[4:, 2:, 1].mean()
    assert spread(coarse, (2, 2, 1), image.shape).shape == image.shape


@pytest.mark.parametrize("sizes", [(3, 3, 3), (1.5, 1.5, 4)])
def test_head_and_core_of_a_drawn_head(sizes):
    rng = np.random.default_rng(0)
    shape = tuple(int(n) for n in np.array([180, 216, 160]) / sizes)
    points = (np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2) * sizes
    radius = np.sqrt(((points / (70, 88, 66)) ** 2).sum(1)).reshape(shape)
    signal = np.where(radius < 0.8, 100, np.where(radius < 0.9, 8, np.where(radius < 1, 90, 0)))
    noise = rng.normal(0, 3, (2, *shape))
    magnitude = np.hypot(signal + noise[0], noise[1]).astype(np.float32)
    magnitude[tuple(n // 2 for n in shape)] = 0  # a void inside is still head
    mask, _ = head_mask(magnitude, np.array(sizes))
    assert 2 * (mask & (radius < 1)).sum() / (mask.sum() + (radius < 1).sum()) > 0.93
    assert mask[tuple(n // 2 for n in shape)]
    core, _ = core_of_head(magnitude, mask, np.array(sizes))
    assert (core & (radius < 0.85)).sum() / core.sum() > 0.98
    assert core.sum() / (radius < 0.8).sum() > 0.7
    level, from_air = noise_level(magnitude)
    assert from_air
    assert level == pytest.approx(3, rel=0.1)


def test_head_that_fills_the_grid_and_one_voxel():
    assert head_mask(np.full((12, 12, 12), 5.0), np.ones(3))[0].all()
    one, _ = head_mask(np.ones((1, 1, 1)), np.ones(3))
    assert one.all()
    assert core_of_head(np.ones((1, 1, 1)), one, np.ones(3))[0].shape == (1, 1, 1)
    assert noise_level(np.zeros((4, 4, 4))) == (0.0, False)


def test_the_scalp_belongs_to_the_head_where_air_is_as_bright_as_the_skull():
    # Air at a third of tissue: a dark skull parts the scalp, a piece of its own, from the brain.
    rng = np.random.default_rng(3)
    shape, sizes = (88, 100, 40), np.array([2.0, 2.0, 4.0])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) - [44, 50, 20]
    radius = np.linalg.norm(grid * sizes / [75, 88, 75], axis=-1)
    lit = (radius < 0.82) | ((radius > 0.92) & (radius < 1))
    magnitude = np.where(lit, 1.0, 0.3) + rng.normal(0, 0.06, shape)
    found, _ = head_mask(magnitude.astype(np.float32), sizes)
    assert found.sum() == pytest.approx((radius < 1).sum(), rel=0.1)


@pytest.mark.parametrize("coils", [1, 12])
def test_the_air_of_many_coils_is_no_head(coils):
    # Sum of squares of many coils: air has a floor, a fifth of tissue, that is far from Rayleigh.
    rng = np.random.default_rng(2)
    shape, sizes = (80, 80, 40), np.array([2.0, 2.0, 4.0])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) - [40, 40, 20]
    head = np.linalg.norm(grid * sizes / [60, 65, 60], axis=-1) < 1
    signal = np.sqrt(12 / coils) * head[..., None] / np.sqrt(12) * np.ones(coils)
    noise = rng.normal(0, 0.04, (*shape, coils)) + 1j * rng.normal(0, 0.04, (*shape, coils))
    magnitude = np.sqrt((np.abs(signal + noise) ** 2).sum(axis=-1)).astype(np.float32)
    level, from_air = noise_level(magnitude)
    found, _ = head_mask(magnitude, sizes)
    assert from_air
    assert level == pytest.approx(0.04, rel=0.15)
    assert found.sum() == pytest.approx(head.sum(), rel=0.1)


@pytest.mark.parametrize(
    ("correlation", "veins", "sign", "evidence", "confidence"),
    [
        (-0.096, -0.198, -1, "head and veins", "weak"),  # a left-handed scan with long echo time
        (0.15, 0.15, 1, "head and veins", "weak"),
        (-0.05, -0.1, 1, "none", "weak"),  # not even together
        (-0.19, 0.24, 1, "none", "weak"),  # they disagree
        (-0.19, np.nan, 1, "none", "weak"),  # one alone is not believed
        (-0.4, -0.1, -1, "head", "strong"),
    ],
)
def test_two_that_hint_at_the_same_are_believed(correlation, veins, sign, evidence, confidence):
    found = polarity._decide(correlation, veins)
    assert (found.sign, found.evidence, found.confidence) == (sign, evidence, confidence)
