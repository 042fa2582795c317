"""Microbleeds and calcifications: where, and what they do to the signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from second_simulator.head import Anatomy, Grid, rotation
from second_simulator.settings import (
    EXTRA_SLICES_MM,
    GYROMAGNETIC_MHZ_PER_T,
    MEAN_LESIONS,
    PLACES,
    Protocol,
)
from second_simulator.tissue import dipole_field
from second_simulator.vessels import _positions


@dataclass
class Spot:
    """A microbleed or a calcification: where, how large, and what it is made of."""

    name: str
    centre: np.ndarray  # image mm
    radii: np.ndarray  # mm
    turn: np.ndarray  # 3 x 3
    lobes: np.ndarray  # amplitudes of low-order bumps
    chi: float
    density: float
    decay: float  # added R2*, 1/s
    region: str
    apparent_mm: float = 0.0
    effect: tuple[tuple[slice, slice, slice], list[np.ndarray]] | None = None


def _shape_of(spot: Spot, offsets: list[np.ndarray], soft: float) -> np.ndarray:
    """Fraction of each fine voxel inside the spot."""
    local = [sum(spot.turn[j, i] * offsets[j] for j in range(3)) for i in range(3)]
    x, y, z = (v / r for v, r in zip(local, spot.radii, strict=True))
    length = np.sqrt(x**2 + y**2 + z**2) + 1e-6
    a = spot.lobes
    bump = 1 + (a[0] * x * y + a[1] * y * z + a[2] * (x * x - z * z)) / length**2
    bump += a[3] * x / length
    return np.clip(0.5 - (length - bump) * spot.radii.min() / soft, 0, 1).astype(np.float32)


def transfer_factors(
    spot: Spot, grid: Grid, direction: np.ndarray, protocol: Protocol
) -> tuple[tuple[slice, slice, slice], list[np.ndarray]]:
    """What a spot does to the signal of the voxels about it, for each echo.

    The spot is drawn on a fine grid with its own dipole field; the mean of its complex signal over
    each simulation voxel, relative to the signal without it, is a factor: 1 far away.

    Returns
    -------
    tuple of slice
        The block of the simulation grid.
    list of (z, y, x) complex arrays
    """
    size = float(np.cbrt(np.prod(spot.radii)))
    parts = np.maximum(np.ceil(grid.spacing / (size / 3.2)), 1).astype(int)
    parts = np.minimum(parts, 8)
    centre = np.round((spot.centre - grid.first) / grid.spacing).astype(int)
    reach = np.ceil((6.0 * size + 1.0) / grid.spacing).astype(int)
    fine = grid.spacing / parts
    offsets = []
    for i in range(3):
        n = (2 * reach[i] + 1) * parts[i]
        start = grid.first[i] + (centre[i] - reach[i] - 0.5) * grid.spacing[i] + fine[i] / 2
        offsets.append(start + fine[i] * np.arange(n) - spot.centre[i])
    x, y, z = offsets[0][None, None], offsets[1][None, :, None], offsets[2][:, None, None]
    filled = _shape_of(spot, [x, y, z], float(fine.mean()))
    shift = dipole_field(spot.chi * filled, fine, direction)
    far = np.sqrt(x**2 + y**2 + z**2) / (6.0 * size + 1.0)
    shift *= np.clip((1 - far) / 0.25, 0, 1)  # no step at the border of the block
    counts = (2 * reach + 1)[::-1]
    split = [v for n, p in zip(counts, parts[::-1], strict=True) for v in (n, p)]
    factors = []
    for echo_time in protocol.echo_times:
        turns = 2 * np.pi * GYROMAGNETIC_MHZ_PER_T * protocol.field_t * echo_time
        kept = 1 + filled * (spot.density * np.exp(-echo_time * spot.decay) - 1)
        signal = kept * np.exp(1j * turns * shift).astype(np.complex64)
        factors.append(signal.reshape(split).mean(axis=(1, 3, 5)))
    low, high = centre - reach, centre + reach + 1
    sizes = list(zip(low, high, grid.shape[::-1], strict=True))
    kept_part = [slice(max(0, -a), b - a - max(0, b - n)) for a, b, n in sizes]
    factors = [f[kept_part[2], kept_part[1], kept_part[0]] for f in factors]
    place = [slice(max(0, a), min(b, n)) for a, b, n in sizes]
    return (place[2], place[1], place[0]), factors


def apparent_diameter(factor: np.ndarray, spacing: np.ndarray, chi: float) -> float:
    """Diameter (mm) of the ball of the voxels that lose 30 % or more on SWI."""
    turned = np.clip(np.angle(factor) * np.sign(chi), 0, np.pi) / np.pi
    dark = np.abs(factor) * (1 - turned) ** 4 < 0.7
    return float(np.cbrt(6 * dark.sum() * np.prod(spacing) / np.pi))


def _spot(
    rng: np.random.Generator, name: str, centre: np.ndarray, diameter: float, chi: float,
    region: str, field_t: float,
) -> Spot:  # fmt: skip
    stretch = np.exp(rng.normal(0, 0.13, 3))
    radii = diameter / 2 * stretch / np.cbrt(np.prod(stretch))
    blood = name == "microbleed"
    decay = (127 * abs(chi) + (5 if blood else 30)) * (1.0 if field_t > 2 else 0.5)
    return Spot(
        name, centre, radii, rotation(*rng.uniform(0, 180, 3)), rng.normal(0, 0.13, 4), chi,
        rng.uniform(0.7, 1.0) if blood else rng.uniform(0.1, 0.5), decay, region,
    )  # fmt: skip


def region_of(mni: Sequence[np.ndarray], brain: np.ndarray) -> np.ndarray:
    """0 lobar, 1 deep, 2 infratentorial, from MNI coordinates and depth (mm) below the surface."""
    x, y, z = np.abs(mni[0]), mni[1], mni[2]
    tent = np.where(y > -40, -10.0, 4 - 0.33 * x - 0.42 * np.clip(-60 - y, 0, 60))
    stem = (x < 18) & (y > -42) & (y < -8) & (z < -10)
    below = ((y < -38) & (z < tent)) | stem | ((y < -30) & (x > 8) & (z < -22) & (x < 50))
    core = (x < 34) & (y > -36) & (y < 26) & (z > -8) & (z < 24)
    deep = core | ((brain < -26) & (z > 0))
    return np.where(below, 2, np.where(deep, 1, 0))


def place_microbleeds(
    rng: np.random.Generator, anatomy: Anatomy, group: str, grid: Grid, direction: np.ndarray,
    protocol: Protocol,
) -> list[Spot]:  # fmt: skip
    """Microbleeds of one participant: how many, where and how large goes by the group."""
    mean = MEAN_LESIONS[group]
    count = min(rng.poisson(rng.gamma(1.1, mean / 1.1)), 30)
    layers = anatomy.layers
    in_slab = np.zeros(anatomy.grid.shape, bool)
    in_slab[anatomy.inner] = True
    margin = int(np.ceil((EXTRA_SLICES_MM + 3) / anatomy.grid.spacing[2]))
    in_slab[: anatomy.inner[0].start + margin] = in_slab[anatomy.inner[0].stop - margin :] = False
    region = region_of(anatomy.mni, layers["brain"])
    tissue = in_slab & (layers["csf"] < 0.25) & (layers["brain"] < -2.5)
    junction = (layers["grey"] > 0.08) & (layers["white"] > 0.08)
    chance = [
        np.where(junction, 3.0, 1.0) * (region == 0) * tissue,
        np.where(layers["grey"] > 0.3, 2.0, 1.0) * (region == 1) * tissue,
        1.0 * (region == 2) * tissue,
    ]
    spots: list[Spot] = []
    for kind in rng.choice(3, count, p=PLACES[group]):
        places = np.flatnonzero(chance[kind])
        weights = chance[kind].ravel()[places]
        for _attempt in range(20):
            chosen = np.unravel_index(rng.choice(places, p=weights / weights.sum()), region.shape)
            centre = np.array(chosen)[::-1] * anatomy.grid.spacing + anatomy.grid.first
            centre = centre + rng.uniform(-0.7, 0.7, 3)
            diameter = float(np.clip(np.exp(rng.normal(np.log(2.2), 0.45)), 1, 6))
            chi = float(np.exp(rng.uniform(np.log(0.3), np.log(1.5))))
            name = ("lobar", "deep", "infratentorial")[kind]
            spot = _spot(rng, "microbleed", centre, diameter, chi, name, protocol.field_t)
            spot.effect = transfer_factors(spot, grid, direction, protocol)
            spot.apparent_mm = apparent_diameter(spot.effect[1][-1], grid.spacing, chi)
            apart = [np.linalg.norm(spot.centre - other.centre) for other in spots]
            # What readers count as a microbleed: 2 to 10 mm as it looks, and one by one.
            if 2 <= spot.apparent_mm <= 10 and min(apart, default=99) > 7:
                spots.append(spot)
                break
    return spots


def place_calcifications(
    rng: np.random.Generator, anatomy: Anatomy, age: float, field_t: float
) -> list[Spot]:
    """Pineal, choroid plexus, pallidum, falx, vessel walls and tissue: more with age."""
    likely = np.clip((age - 10) / 60, 0.25, 1)
    chosen: list[tuple[np.ndarray, tuple[float, float], str]] = []  # MNI, diameters, where

    def cluster(
        centre: Sequence[float], spread: float, most: int, sizes: tuple, where: str
    ) -> None:
        for _ in range(rng.integers(1, most + 1)):
            chosen.append((np.array(centre) + rng.normal(0, spread, 3), sizes, where))

    if rng.random() < 0.75 * likely:
        cluster((0, -31, 2), 1.5, 3, (1.5, 4.5), "pineal")
    if rng.random() < 0.7 * likely:
        for side in (-1, 1):
            cluster((24 * side, -42, 8), 3.0, 6, (1.0, 4.0), "choroid_plexus")
    if rng.random() < 0.3 * likely:
        for side in (-1, 1):
            cluster((19 * side, -2, -1), 2.5, 5, (0.8, 3.0), "pallidum")
    if rng.random() < 0.25 * likely:
        cluster((0, rng.uniform(-40, 40), rng.uniform(45, 60)), 4, 3, (2.0, 5.0), "falx")
    if rng.random() < 0.3 * likely:
        for side in (-1, 1):
            cluster((13 * side, 4, -24), 2.5, 5, (1.0, 2.5), "vessel_wall")
    brain = _positions(anatomy.grid, anatomy.layers["brain"] < -5)
    spots = []
    for place, sizes, where in chosen:
        centre = anatomy.to_image(place[None])[0]
        chi = -float(np.exp(rng.uniform(np.log(0.25), np.log(2.6))))
        size = float(np.exp(rng.uniform(*np.log(sizes))))
        spots.append(_spot(rng, "calcification", centre, size, chi, where, field_t))
    for _ in range(rng.poisson(0.7 * likely)):
        centre, size = brain[rng.integers(len(brain))], float(np.exp(rng.uniform(0.2, 1.5)))
        chi = -float(rng.uniform(0.3, 2.5))
        spots.append(_spot(rng, "calcification", centre, size, chi, "parenchyma", field_t))
    return spots
