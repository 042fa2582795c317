"""Veins, sinuses and arteries: lines drawn in the head, and their tubes on the fine grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from analytic_simulator.anatomy import Anatomy
from analytic_simulator.geometry import F, Grid, unit, wobbly_line
from analytic_simulator.settings import (
    BASILAR,
    CEREBRUM_CENTRE,
    CEREBRUM_RADII,
    SIDE_ARTERIES,
    SIDE_VEINS,
    STRAIGHT_SINUS,
    TORCULA,
    TRANSVERSE_SINUS,
    Course,
)
from analytic_simulator.tissue import Signal, Volumes

LEAST_LENGTH_MM, LEAST_LENGTH_WIDTHS = 5.0, 4.0


class Tube(NamedTuple):
    """A vessel: points (n, 3) and radius, both in mm."""

    points: np.ndarray
    radius: float

    def is_long(self) -> bool:
        """Whether it is long enough for a vein.

        Walks get stuck and smoothing shortens lines; what is left of some is as wide as it is
        long: a blob of blood, which neither physics nor a reader tells from a microbleed.
        """
        length = float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())
        return length >= max(LEAST_LENGTH_MM, LEAST_LENGTH_WIDTHS * 2 * self.radius)


def draw_course(rng: np.random.Generator, course: Course, side: int = 1) -> Tube:
    """Draw a named vessel of the right (1) or left (-1) side, canonical mm."""
    points = np.array(course.points, float) * (side, 1, 1)
    if course.shift:
        points = points + rng.normal(0, 1, 3) * course.shift
    line = wobbly_line(rng, points, course.wobble)
    radius = course.radius
    return Tube(line, rng.uniform(*radius) if isinstance(radius, tuple) else radius)


def named_vessels(rng: np.random.Generator) -> tuple[list[Tube], list[Tube]]:
    """Veins with sinuses, and arteries, that every head has; canonical mm."""
    veins = _sagittal_sinus(rng)
    veins.append(draw_course(rng, STRAIGHT_SINUS))
    arteries = []
    dominance = rng.uniform(0.6, 1.4)
    for side, share in ((1, dominance), (-1, 2 - dominance)):
        transverse = draw_course(rng, TRANSVERSE_SINUS, side)
        veins.append(transverse._replace(radius=transverse.radius * share))
        veins += [draw_course(rng, course, side) for course in SIDE_VEINS]
        veins += [_cerebellar_vein(rng, side) for _ in range(3)]
        veins += [_deep_grey_vein(rng, side) for _ in range(3)]
        arteries += [draw_course(rng, course, side) for course in SIDE_ARTERIES]
    arteries.append(draw_course(rng, BASILAR))
    for _ in range(int(rng.integers(26, 46))):
        veins += _bridging_vein(rng)
    return veins, arteries


def _sagittal_sinus(rng: np.random.Generator) -> list[Tube]:
    """Superior sagittal sinus over the midline, wider backwards, down to the torcula."""
    centre, radii = np.array(CEREBRUM_CENTRE, float), np.array(CEREBRUM_RADII, float)
    angles = np.deg2rad(np.linspace(20, 185, 40))
    line = centre + np.stack(
        [0 * angles, np.cos(angles) * (radii[1] + 2), np.sin(angles) * (radii[2] + 2)], 1
    )
    tubes = []
    for part, radius in zip(np.array_split(line, 4), (1.3, 2.2, 3.0, 3.8), strict=True):
        longer = np.vstack([part, part[-1] + (part[-1] - part[-2])])
        tubes.append(Tube(wobbly_line(rng, longer, 0.2), radius))
    tubes.append(Tube(wobbly_line(rng, np.stack([line[-1], np.array(TORCULA)]), 0.2), 4.0))
    return tubes


def _cerebellar_vein(rng: np.random.Generator, side: int) -> Tube:
    """Over the upper surface of the cerebellum."""
    x = side * rng.uniform(4, 30)
    front, middle = rng.normal(0, 1, 3)[0], rng.normal(0, 1, 3)[1]
    line = np.array([(x, -38 + front, -24), (x * 0.9, -60, -17 + middle), (x * 0.6, -82, -22)])
    line = wobbly_line(rng, line + rng.normal(0, 2, 3), 1.0)
    return Tube(line, rng.uniform(0.3, 0.7))


def _deep_grey_vein(rng: np.random.Generator, side: int) -> Tube:
    """Up through the basal ganglia, mostly across axial slices."""
    x, y = side * rng.uniform(18, 28), rng.uniform(-10, 14)
    a, b, c = rng.normal(0, 1, 3)[0], rng.normal(0, 1, 3)[1], rng.normal(0, 1, 3)[2]
    line = [(x, y, -12), (x + a, y + b, 2), (x - side * 4, y + c, 16)]
    return Tube(wobbly_line(rng, line, 0.7), rng.uniform(0.2, 0.4))


def _bridging_vein(rng: np.random.Generator) -> list[Tube]:
    """A cortical vein that climbs over the hemisphere to the sagittal sinus, or none."""
    centre, radii = np.array(CEREBRUM_CENTRE, float), np.array(CEREBRUM_RADII, float)
    side = rng.choice([-1, 1])
    start = np.deg2rad(rng.uniform(25, 165))
    lowest = np.deg2rad(rng.uniform(0, 60))  # 0: lateral, 90: vertex
    elevation = np.linspace(lowest, np.deg2rad(88), 14)
    azimuth = start + np.deg2rad(rng.normal(0, 14)) * np.linspace(0, 1, 14)
    line = np.stack(
        [
            side * np.cos(elevation),
            np.cos(azimuth) * np.sin(np.maximum(elevation, 0.6)),
            np.sin(azimuth) * np.sin(elevation),
        ],
        1,
    )
    line /= np.linalg.norm(line, axis=1, keepdims=True)
    line = centre + line * (radii + 0.8)
    line = line[line[:, 2] > -10]
    if len(line) <= 4:
        return []
    return [Tube(wobbly_line(rng, line, 1.3), rng.uniform(0.45, 1.3))]


def sulcal_veins(rng: np.random.Generator, anatomy: Anatomy) -> list[Tube]:
    """Veins that wander within the sheets of the sulci, many of them across slices; slab mm."""
    levels, grid = anatomy.levels, anatomy.grid
    cerebrum, sheet = levels["cerebrum"], levels["sulcus"]
    depth = levels["sulcal_depth"]
    outwards = anatomy.gradient("cerebrum")
    normals = [levels[f"sulcus_{axis}"] for axis in "xyz"]
    within = (np.abs(sheet) < 1) & (cerebrum < -2) & (-cerebrum < depth)
    tubes = []
    for start in anatomy.pick(rng, within, int(rng.integers(110, 230))):
        place, path = start, [start.copy()]
        radial = rng.random() < 0.55
        heading = unit(rng.normal(size=3))
        for _ in range(int(rng.integers(8, 26))):
            here = grid.index(place)
            normal = _at(normals, here)
            out = _at(outwards, here)
            aim = unit(out) if radial else heading
            heading = 0.6 * heading + 0.4 * aim + 0.25 * rng.normal(size=3)
            heading = unit(heading - normal * (heading @ unit(normal)))
            # A step ahead, and back towards the middle of the sulcus.
            place = place + heading - np.clip(sheet[here], -1, 1) * unit(normal) * 0.7
            if cerebrum[here] > 1 or -cerebrum[here] > depth[here] + 2:
                break
            path.append(place.copy())
        if len(path) > 4:
            line = wobbly_line(rng, path, 0.25)
            tubes.append(Tube(line, 0.3 + 0.8 * rng.beta(1.3, 2.5)))
    return tubes


def medullary_veins(rng: np.random.Generator, anatomy: Anatomy) -> list[Tube]:
    """Thin veins that run through white matter down to the ventricles; slab mm."""
    levels, grid = anatomy.levels, anatomy.grid
    ventricles = levels["ventricles"]
    away = anatomy.gradient("ventricles")
    white = (levels["csf_distance"] > F(anatomy.head.cortex_mm)) & (levels["cerebrum"] < 0)
    white &= (ventricles > 4) & (ventricles < 26)
    white &= (levels["putamen"] > 2) & (levels["pallidum"] > 2) & (levels["z"] > 0)
    tubes = []
    for start in anatomy.pick(rng, white, int(rng.integers(90, 200))):
        place, path = start, [start.copy()]
        heading = rng.normal(0, 0.5, 3)
        for _ in range(30):
            here = grid.index(place)
            if ventricles[here] < 0.3:
                break
            heading = unit(0.5 * heading - 0.6 * _at(away, here) + 0.2 * rng.normal(size=3))
            place = place + heading
            path.append(place.copy())
        if len(path) > 4:
            line = wobbly_line(rng, path, 0.3)
            tubes.append(Tube(line, rng.uniform(0.12, 0.36)))
    return tubes


def penetrating_veins(rng: np.random.Generator, anatomy: Anatomy) -> list[Tube]:
    """Short veins across the cortex and a little beneath; slab mm."""
    levels = anatomy.levels
    outwards = anatomy.gradient("cerebrum")
    distance = levels["csf_distance"]
    cortex = (distance > 0) & (distance < F(anatomy.head.cortex_mm) + 6)
    tubes = []
    for place in anatomy.pick(rng, cortex & (levels["cerebrum"] < 0), 60):
        here = anatomy.grid.index(place)
        heading = unit(_at(outwards, here) + 0.4 * rng.normal(size=3))
        length = rng.uniform(4, 12)
        ends = [place - heading * length / 2, place, place + heading * length / 2]
        line = wobbly_line(rng, ends, 0.3)
        tubes.append(Tube(line, rng.uniform(0.12, 0.35)))
    return tubes


def _at(components: list[np.ndarray], index: tuple[int, ...]) -> np.ndarray:
    """A vector field (three volumes) at a voxel."""
    return np.array([component[index] for component in components])


def add_vessels(
    rng: np.random.Generator, anatomy: Anatomy, volumes: Volumes, signals: dict[str, Signal],
    field_t: float,
) -> list[Tube]:  # fmt: skip
    """Draw all vessels and put them into the tissue, in place.

    Parameters
    ----------
    rng : numpy.random.Generator
    anatomy : Anatomy
    volumes : Volumes
        Changed in place.
    signals : dict of str to Signal
    field_t : float
        Field strength, tesla: blood decays faster at 3 T.

    Returns
    -------
    list of Tube
        The veins, slab mm.
    """
    named, arteries = named_vessels(rng)
    veins = [_to_slab(anatomy, tube) for tube in named]
    kinds: list[Callable[[np.random.Generator, Anatomy], list[Tube]]] = [
        sulcal_veins, medullary_veins, penetrating_veins
    ]  # fmt: skip
    for kind in kinds:
        veins += [vein for vein in kind(rng, anatomy) if vein.is_long()]
    chi = rng.uniform(0.30, 0.45)
    decay = rng.uniform(42, 75) if field_t > 2 else rng.uniform(18, 35)
    # Veins differ in oxygenation: three classes.
    classes: list[tuple[list[Tube], float]] = [([], chi * share) for share in (0.8, 1.0, 1.2)]
    for vein in veins:
        classes[rng.integers(3)][0].append(vein)
    bright = rng.random() < 0.7  # inflow, or flow voids
    grid = anatomy.slab.fine
    for tubes, oxygenation in classes:
        signal = Signal(signals["vein"].amplitude, F(decay), F(oxygenation))
        blend_tubes(volumes, grid, tubes, signal)
    flow = F(1.5) if bright else F(0.12)
    arterial = Signal(signals["grey"].amplitude * flow, F(16), F(0))
    blend_tubes(volumes, grid, [_to_slab(anatomy, tube) for tube in arteries], arterial)
    return veins


def _to_slab(anatomy: Anatomy, tube: Tube) -> Tube:
    return Tube(anatomy.slab.from_head(anatomy.head.from_canonical(tube.points)), tube.radius)


def blend_tubes(volumes: Volumes, grid: Grid, tubes: list[Tube], signal: Signal) -> None:
    """Put vessels of one kind into the tissue, in place."""
    filled = np.zeros(grid.shape, F)
    for tube in tubes:
        stamp(filled, grid, tube)
    where = np.flatnonzero(filled)
    share = filled.reshape(-1)[where]
    for volume, value in zip(volumes, signal, strict=True):
        flat = volume.reshape(-1)
        flat[where] += share * (value - flat[where])


def stamp(filled: np.ndarray, grid: Grid, tube: Tube) -> None:
    """Write the share of each voxel that a tube fills, where it is more than what is there.

    Parameters
    ----------
    filled : ndarray of shape (nx, ny, nz)
        Changed in place.
    grid : Grid
    tube : Tube
        Slab mm. One thinner than half a voxel is drawn that wide and as much fainter.
    """
    spacing, voxel = grid.spacing, float(grid.spacing.mean())
    radius, strength = tube.radius, 1.0
    if radius < 0.5 * voxel:
        radius, strength = 0.5 * voxel, (radius / (0.5 * voxel)) ** 2
    reach = np.ceil((radius + 0.6 * voxel) / spacing).astype(int)
    steps = [np.arange(-n, n + 1) for n in reach]
    around = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    shape = np.array(grid.shape)
    flat = filled.reshape(-1)
    for start in range(0, len(tube.points), 400):  # some at a time, for memory
        index = (tube.points[start : start + 400] - grid.origin) / spacing
        voxels = np.round(index).astype(int)[:, None] + around[None]
        distance = np.sqrt((((voxels - index[:, None]) * spacing) ** 2).sum(-1))
        share = strength * np.clip(0.5 + (radius - distance) / voxel, 0, 1)
        held = (share > 0.01) & ((voxels >= 0) & (voxels < shape)).all(-1)
        i, j, k = voxels[held].T
        np.maximum.at(flat, (i * shape[1] + j) * shape[2] + k, share[held].astype(F))
