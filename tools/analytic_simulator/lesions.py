"""Microbleeds and calcifications: how many, where, how they are shaped and what they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analytic_simulator.anatomy import Anatomy
from analytic_simulator.geometry import F, Grid, rotation, unit
from analytic_simulator.head import Levels
from analytic_simulator.protocol import Protocol
from analytic_simulator.settings import LESIONS, MOST_LESIONS, PATTERNS, PLACES
from analytic_simulator.tissue import Volumes

MICROBLEED, CALCIFICATION = "microbleed", "calcification"
APART_MM = 4  # between the surfaces of two lesions, at least
Masks = dict[str, np.ndarray]


@dataclass(frozen=True)
class Lesion:
    """A rippled ellipsoid.

    Attributes
    ----------
    name : str
        `MICROBLEED` or `CALCIFICATION`.
    centre, radii : ndarray of shape (3,)
        Slab mm; radii along its own axes.
    diameter : float
        Of the sphere of the same volume, mm, but for the ripple.
    axes : ndarray of shape (3, 3)
        Its own axes, as columns.
    ripple : tuple of float, ndarray of shape (3,) and float
        Strength, direction and phase of the waves of its surface.
    chi : float
        Susceptibility, ppm.
    kept : float
        Signal at echo time 0 over that of the tissue it lies in.
    decay : float
        R2* (1/s) that it adds.
    region : str
    """

    name: str
    centre: np.ndarray
    diameter: float
    radii: np.ndarray
    axes: np.ndarray
    ripple: tuple[float, np.ndarray, float]
    chi: float
    kept: float
    decay: float
    region: str

    def contains(self, offsets: np.ndarray) -> np.ndarray:
        """Whether points, given as ``offsets`` (..., 3) in mm from the centre, lie inside."""
        own = offsets @ self.axes
        scaled = np.sqrt(((own / self.radii) ** 2).sum(-1))
        direction = own / (np.linalg.norm(own, axis=-1, keepdims=True) + 1e-6)
        strength, along, phase = self.ripple
        return scaled / (1 + strength * np.cos(3 * (direction @ along) + phase)) < 1

    def box(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """First and last (exclusive) voxel of a grid (3,) that it may reach."""
        reach = max(self.radii) * 1.3
        low = np.floor((self.centre - reach - grid.origin) / grid.spacing).astype(int)
        high = np.ceil((self.centre + reach - grid.origin) / grid.spacing).astype(int) + 1
        return np.maximum(low, 0), np.minimum(high, grid.shape)


def draw_lesion(
    rng: np.random.Generator, name: str, centre: np.ndarray, diameter: float, chi: float,
    region: str, field_t: float,
) -> Lesion:  # fmt: skip
    """Draw the shape and the signal of a lesion whose place, size and strength are known."""
    stretch = np.exp(rng.normal(0, 0.13, 3))
    stretch /= stretch.prod() ** (1 / 3)
    along = unit(rng.normal(size=3))
    axes = rotation(*rng.uniform(0, 360, 3))
    ripple = (rng.uniform(0, 0.12), along, rng.uniform(0, 6))
    stronger = field_t / 3
    if name == MICROBLEED:
        kept, decay = 0.85, (127 * abs(chi) + 23) * stronger
    else:
        kept, decay = rng.uniform(0.25, 0.8), (100 * abs(chi) + 15) * stronger
    radii = diameter / 2 * stretch
    return Lesion(name, centre, diameter, radii, axes, ripple, chi, kept, decay, region)


def paint_lesion(lesion: Lesion, grid: Grid, volumes: Volumes, parts: int = 3) -> None:
    """Put a lesion into the tissue, in place; each voxel is asked at ``parts`` cubed points."""
    low, high = lesion.box(grid)
    if (high <= low).any():
        return
    lines = []
    for axis in range(3):
        steps = (np.arange((high[axis] - low[axis]) * parts) - (parts - 1) / 2) / parts
        first = grid.origin[axis] + grid.spacing[axis] * (low[axis] + steps)
        lines.append(first - lesion.centre[axis])
    inside = lesion.contains(np.stack(np.meshgrid(*lines, indexing="ij"), -1)).astype(F)
    n = [length // parts for length in inside.shape]
    share = inside.reshape(n[0], parts, n[1], parts, n[2], parts).mean((1, 3, 5))
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    volumes.chi[part] = volumes.chi[part] * (1 - share) + share * lesion.chi
    volumes.amplitude[part] *= 1 - share * (1 - lesion.kept)
    volumes.decay[part] += share * lesion.decay


def label_image(lesions: Sequence[Lesion], grid: Grid) -> np.ndarray:
    """Number (from 1) of the lesion that holds the centre of each voxel; at least one voxel each.

    Parameters
    ----------
    lesions : sequence of Lesion
    grid : Grid
        Of the image, in slab mm.

    Returns
    -------
    ndarray of int16
    """
    image = np.zeros(grid.shape, np.int16)
    for number, lesion in enumerate(lesions, start=1):
        low, high = lesion.box(grid)
        lines = [
            o + h * np.arange(a, b) - c
            for o, h, a, b, c in zip(
                grid.origin, grid.spacing, low, high, lesion.centre, strict=True
            )
        ]
        part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        inside = lesion.contains(np.stack(np.meshgrid(*lines, indexing="ij"), -1))
        image[part][inside] = number
        image[grid.index(lesion.centre)] = number
    return image


def place_lesions(
    rng: np.random.Generator, anatomy: Anatomy, group: str, age: float, protocol: Protocol
) -> list[Lesion]:
    """Draw the microbleeds and calcifications of one participant.

    Parameters
    ----------
    rng : numpy.random.Generator
    anatomy : Anatomy
    group : str
        Clinical group, which decides how many microbleeds there are and where.
    age : float
        Years; calcifications come with them.
    protocol : Protocol

    Returns
    -------
    list of Lesion
        Microbleeds first.
    """
    half = anatomy.slab.matrix[2] * protocol.voxel[2] / 2
    height = np.abs(anatomy.grid.axes()[2] + protocol.voxel[2] / 2)
    brain = (anatomy.levels["inner_skull"] < -2) & (height < half - 4)
    places = microbleed_places(anatomy.levels, brain, F(anatomy.head.cortex_mm))
    lesions = _microbleeds(rng, anatomy, places, group, age, protocol.field_t)
    for centre, diameter, region in _calcified(rng, anatomy, brain, places, group, age):
        if len(centre) == 0 or not _is_free(centre[0], diameter, lesions):
            continue
        chi = -float(rng.uniform(0.5, 1.6))
        where = region or region_of(anatomy.levels, anatomy.grid.index(centre[0]))
        lesions.append(draw_lesion(rng, CALCIFICATION, centre[0], diameter, chi, where,
                                   protocol.field_t))  # fmt: skip
    return lesions


def microbleed_places(levels: Levels, brain: np.ndarray, cortex_mm: np.float32) -> Masks:
    """Where each kind of microbleed may lie, on the coarse grid; the names are those of PLACES."""
    distance, core, ventricles = levels["csf_distance"], levels["callosum"], levels["ventricles"]
    surface, height = levels["cerebrum"], levels["z"]
    ganglia = np.minimum(np.minimum(levels["caudate"], levels["putamen"]), levels["pallidum"])
    thalamus, stem = levels["thalamus"], levels["brainstem"]
    hemispheres = brain & (surface < -1.0) & (distance > 0.8) & (ventricles > 1.5) & (stem > 3)
    callosum = brain & (np.abs(levels["x"]) < 14) & (core > -6) & (core < -1) & (ventricles > 1.2)
    arch = (height > 10) | (levels["y"] < -28) | (levels["y"] > 26)
    near = np.minimum(ganglia, thalamus) > 0.5
    between = near & (np.maximum(ganglia, thalamus) < 9)
    junction = np.abs(distance - cortex_mm) < 1.6
    return {
        "junction": hemispheres & junction & (core > 0) & (surface > -26),
        "lobar": hemispheres & (distance < 9) & (core > 0) & (surface > -28) & (ganglia > 2),
        "basal_ganglia": brain & (ganglia < -0.8),
        "thalamus": brain & (thalamus < -1) & (ventricles > 0.8),
        "brainstem": brain & (stem < -2.5) & (height < -6) & (height > -52) & (ventricles > 1.5),
        "cerebellum": brain & (levels["cerebellum"] < -3) & (ventricles > 2),
        "dentate": brain & (levels["dentate"] < 2) & (levels["cerebellum"] < -3),
        "callosum": callosum & arch,
        "deep_white_matter": hemispheres
        & (distance > 10) & (ventricles > 3) & (ganglia > 1) & (thalamus > 1),
        "capsules": hemispheres & between & (distance > 6),
    }  # fmt: skip


def _microbleeds(
    rng: np.random.Generator, anatomy: Anatomy, places: Masks, group: str, age: float,
    field_t: float,
) -> list[Lesion]:  # fmt: skip
    pattern = _draw_pattern(rng, group)
    lesions: list[Lesion] = []
    for _ in range(draw_count(rng, group, age)):
        kind = str(rng.choice(["lobar", "deep"])) if pattern == "mixed" else pattern
        found = _find_place(rng, anatomy, places, pattern, PLACES[kind], lesions)
        if found is None:
            continue
        centre, diameter = found
        chi = float(np.clip(0.8 * np.exp(rng.normal(0, 0.45)), 0.3, 2))
        region = region_of(anatomy.levels, anatomy.grid.index(centre))
        lesions.append(draw_lesion(rng, MICROBLEED, centre, diameter, chi, region, field_t))
    return lesions


def _draw_pattern(rng: np.random.Generator, group: str) -> str:
    """Whether microbleeds are lobar, deep, both, or those of an injury."""
    if group == "TBI":
        return "tbi"
    if group == "healthy":
        return "lobar" if rng.random() < 0.77 else "deep"
    return str(rng.choice(["lobar", "deep", "mixed"], p=PATTERNS[group]))


def draw_count(rng: np.random.Generator, group: str, age: float) -> int:
    """Number of microbleeds of one participant."""
    if group == "healthy":
        affected = rng.random() < (0.06 if age < 60 else 0.2)
        return 1 + int(rng.poisson(0.3)) if affected else 0
    share, more = LESIONS[group]
    if rng.random() >= share:
        return 0
    return min(1 + int(rng.negative_binomial(0.8, 0.8 / (0.8 + more))), MOST_LESIONS)


def _find_place(
    rng: np.random.Generator, anatomy: Anatomy, places: Masks, pattern: str,
    chances: dict[str, float], taken: Sequence[Lesion],
) -> tuple[np.ndarray, float] | None:  # fmt: skip
    """Centre and diameter of a microbleed apart from those there are; None if none was found."""
    levels = anatomy.levels
    odds = np.array(list(chances.values())) / sum(chances.values())
    for _attempt in range(40):
        centres = anatomy.pick(rng, places[str(rng.choice(list(chances), p=odds))], 1)
        diameter = float(np.clip(2.9 * np.exp(rng.normal(0, 0.38)), 1.5, 8))
        if len(centres) == 0 or not _is_free(centres[0], diameter, taken):
            continue
        here = anatomy.grid.index(centres[0])
        y, temporal = levels["y"][here], levels["sylvian"][here] < 0
        # Injury prefers frontal and temporal lobes, amyloid the back of the brain.
        if pattern == "tbi" and levels["callosum"][here] > 0 and rng.random() < 0.5:
            if not (y > 5 or temporal):
                continue
        elif pattern == "lobar" and rng.random() < 0.4 and y > -40 and levels["sylvian"][here] > 0:
            continue
        return centres[0], diameter
    return None


def _is_free(centre: np.ndarray, diameter: float, taken: Sequence[Lesion]) -> bool:
    return all(
        np.linalg.norm(centre - other.centre) > (diameter + other.diameter) / 2 + APART_MM
        for other in taken
    )


Calcified = list[tuple[np.ndarray, float, str | None]]


def _calcified(
    rng: np.random.Generator, anatomy: Anatomy, brain: np.ndarray, places: Masks, group: str,
    age: float,
) -> Calcified:  # fmt: skip
    """Centres (1, 3), or (0, 3) where there is no room, diameters and regions, as by histology."""
    levels = anatomy.levels
    likely = np.clip((age - 25) / 50, 0, 1)
    more = 1.5 if group == "haemodialysis" else 1.0
    chosen: Calcified = []

    def add(where: np.ndarray, sizes: tuple[float, float], region: str | None) -> None:
        centre = anatomy.pick(rng, where, 1)
        chosen.append((centre, rng.uniform(*sizes), region))

    if rng.random() < 0.55 * likely * more:
        add(brain & (levels["pineal"] < -0.5), (2, 5), "pineal")
    plexus = brain & (levels["choroid_plexus"] < -0.8) & (levels["ventricles"] < 0)
    for side in (1, -1):
        if rng.random() < 0.45 * likely * more:
            atrium = plexus & (levels["y"] < -28) & (levels["x"] * side > 0)
            for _ in range(int(rng.integers(1, 3))):
                add(atrium, (1.5, 5), "choroid_plexus")
    if rng.random() < 0.22 * likely * more:
        for side in (1, -1):
            pallidum = (levels["pallidum"] < -1.2) & (levels["x"] * side > 0)
            add(brain & pallidum, (1.8, 5), "pallidum")
    for _ in range(rng.poisson(0.5 * more)):
        tissue = ["lobar", "basal_ganglia", "dentate", "deep_white_matter", "junction"]
        add(places[str(rng.choice(tissue))], (1.5, 4.5), None)
    if rng.random() < 0.12:
        midline = (np.abs(levels["x"]) < 0.8) & (levels["callosum"] > 8) & (levels["z"] > 10)
        add(brain & midline & (levels["cerebrum"] < -2), (2, 5), "falx")
    return chosen


def region_of(levels: Levels, index: tuple[int, ...]) -> str:
    """Name of the region a voxel of the coarse grid lies in; lobes by rough rules."""
    here = {name: float(level[index]) for name, level in levels.items()}
    x, y, z = here["x"], here["y"], here["z"]
    if here["brainstem"] < 0 and z < -4:
        return "brainstem"
    if here["cerebellum"] < 0:
        return "cerebellum"
    if here["thalamus"] < 0:
        return "thalamus"
    if min(here["caudate"], here["putamen"], here["pallidum"]) < 0:
        return "basal_ganglia"
    arch = abs(x) < 15 and -7 < here["callosum"] < 0 and here["ventricles"] > 0
    if arch and (z > 8 or y > 20 or y < -25):
        return "corpus_callosum"
    if here["csf_distance"] > 14 or here["callosum"] < 0:
        return "deep_white_matter"
    if y < -72:
        return "occipital"
    if here["sylvian"] < 0 and abs(x) > 22 and z < 8:
        return "temporal"
    return "frontal" if y > -22 - 0.25 * (z - 30) * 0.5 else "parietal"
