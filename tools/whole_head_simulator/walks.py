"""Veins that walk: along sulci, through white matter, through cortex and over the cerebellum."""

from __future__ import annotations

import numpy as np

from whole_head_simulator.geometry import unit
from whole_head_simulator.head import Head
from whole_head_simulator.vessels import (
    Vein,
    deep_veins,
    pontine_veins,
    sagittal_sinus,
    sinuses,
    smooth_path,
)

CORTICAL, MEDULLARY, SUPERFICIAL = (190, 280), (70, 130), (70, 120)
THROUGH, CEREBELLAR = (18, 40), (18, 34)
ANOMALY_SHARE = 0.1  # of heads with a developmental venous anomaly
SURFACE_MM = -2.0  # from the skull's inside: beyond that veins run on the surface


class Wander:
    """A direction for each of several walkers that turns slowly at random.

    Parameters
    ----------
    rng : numpy.random.Generator
    count : int
    """

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self.rng = rng
        self.direction = rng.standard_normal((count, 3))

    def turn(self) -> np.ndarray:
        """Turn all directions (count, 3) and return them; their length is about 1.7."""
        noise = self.rng.standard_normal(self.direction.shape)
        self.direction = 0.93 * self.direction + 0.37 * noise
        return self.direction


class Walk:
    """Several walkers and where they have been.

    Parameters
    ----------
    starts : ndarray of shape (count, 3)
        Grid mm.
    """

    def __init__(self, starts: np.ndarray) -> None:
        self.places = starts
        self.going = np.ones(len(starts), bool)
        self._places, self._going = [starts.copy()], [self.going.copy()]

    def step(self, length_mm: float, direction: np.ndarray, going: np.ndarray) -> None:
        """Take a step, all but those that have stopped or are not among ``going``."""
        self.going &= going
        self.places = self.places + length_mm * unit(direction) * self.going[:, None]
        self._places.append(self.places.copy())
        self._going.append(self.going.copy())

    def paths(self) -> list[np.ndarray]:
        """Path (n, 3) of each walker up to where it stopped."""
        places, steps = np.array(self._places), np.array(self._going).sum(0)
        return [places[:count, i] for i, count in enumerate(steps)]


def _project(vectors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Vectors (n, 3) without what lies along unit normals (n, 3)."""
    return vectors - normals * (vectors * normals).sum(1)[:, None]


def draw_veins(rng: np.random.Generator, head: Head) -> tuple[list[Vein], float]:
    """Draw all veins of a head.

    Parameters
    ----------
    rng : numpy.random.Generator
    head : Head

    Returns
    -------
    veins : list of Vein
    widening : float
        What all radii are to be multiplied with.
    """
    richness, widening = rng.uniform(0.7, 1.35), rng.uniform(0.85, 1.2)
    sagittal = sagittal_sinus(head)
    veins = sinuses(rng, head, sagittal) + deep_veins(rng, head)
    veins += cortical_veins(rng, head, sagittal, int(rng.integers(*CORTICAL) * richness))
    veins += medullary_veins(rng, head, int(rng.integers(*MEDULLARY) * richness))
    veins += superficial_veins(rng, head, int(rng.integers(*SUPERFICIAL) * richness))
    veins += through_veins(rng, head, int(rng.integers(*THROUGH)))
    veins += cerebellar_veins(rng, head, int(rng.integers(*CEREBELLAR) * richness))
    veins += pontine_veins(rng, head)
    if rng.random() < ANOMALY_SHARE:
        veins += venous_anomaly(rng, head)
    return [vein for vein in veins if len(vein.path) >= 3], widening


def _cerebrum(head: Head) -> np.ndarray:
    return (head.hulls.cerebrum < -1) & (head.matter.shell.brain > 0.5)


def _white_matter(head: Head) -> np.ndarray:
    return _cerebrum(head) & (head.brain.depth > 3.5) & (head.matter.deep_grey < 0.2)


def cortical_veins(
    rng: np.random.Generator, head: Head, sagittal: np.ndarray, count: int
) -> list[Vein]:
    """Veins that run out of sulci and over the surface towards the superior sagittal sinus.

    Parameters
    ----------
    rng : numpy.random.Generator
    head : Head
    sagittal : ndarray of shape (n, 3)
        Course of the sinus, grid mm.
    count : int

    Returns
    -------
    list of Vein
        With the branches of some.
    """
    depth, folds = head.hulls.depth, head.brain.folds
    sulcus = (folds.distance < 0.8) & folds.known & (head.brain.depth < 0.8)
    starts = head.grid.pick(rng, _cerebrum(head) & sulcus & (depth > 3) & (depth < 17), count)
    if not len(starts):
        return []
    wander = Wander(rng, count)
    thin = rng.uniform(0.2, 0.42, count)
    wide = np.clip(rng.lognormal(np.log(0.62), 0.35, count), 0.3, 1.3)
    reach = rng.uniform(8, 75, count)
    walk, on_surface = Walk(starts), np.zeros(count)
    for number in range(150):
        if number % 10 == 0:
            nearest = [np.argmin(((sagittal - place) ** 2).sum(1)) for place in walk.places]
            # A little in front of the nearest point: these veins join against the flow.
            goals = sagittal[np.clip(np.array(nearest) - 6, 0, len(sagittal) - 1)]
        outside = head.grid.sample(head.hulls.inner_skull, walk.places) > SURFACE_MM
        outside |= on_surface > 0
        out_of_sulcus = _along_sulcus(head, walk.places, wander)
        to_sinus = _over_surface(head, walk.places, wander, goals)
        on_surface += 0.8 * outside
        far = np.linalg.norm(goals - walk.places, axis=1) > 3
        direction = np.where(outside[:, None], to_sinus, out_of_sulcus)
        walk.step(0.8, direction, (on_surface < reach) & far)
    veins = []
    for path, first, last in zip(walk.paths(), thin, wide, strict=True):
        veins += _with_branch(rng, path, first, last)
    return veins


def _along_sulcus(head: Head, places: np.ndarray, wander: Wander) -> np.ndarray:
    """Directions (n, 3) outwards within the sheet of a sulcus."""
    folds = head.brain.folds
    outwards = -unit(head.grid.slope(head.hulls.depth, places, 1.5))
    wave, slope = head.grid.sample(folds.wave, places), head.grid.slope(folds.wave, places)
    normal = unit(slope)
    direction = _project(outwards + 0.55 * wander.turn(), normal)
    off_sheet = np.clip(wave / (np.linalg.norm(slope, axis=1) + 0.05), -1.5, 1.5)
    return unit(direction) - 0.35 * normal * off_sheet[:, None]


def _over_surface(head: Head, places: np.ndarray, wander: Wander, goals: np.ndarray) -> np.ndarray:
    """Directions (n, 3) towards goals (n, 3) along the inside of the skull."""
    skull = head.hulls.inner_skull
    normal = unit(head.grid.slope(skull, places, 1.5))
    direction = unit(_project(goals - places, normal)) + 0.55 * wander.direction
    direction = unit(_project(direction, normal))
    off_surface = np.clip(head.grid.sample(skull, places) - 0.3, -1.2, 1.2)
    return direction - 0.5 * normal * off_surface[:, None]


def _with_branch(
    rng: np.random.Generator, path: np.ndarray, thin: float, wide: float
) -> list[Vein]:
    """A cortical vein that widens, perhaps with a branch that joins half way."""
    count = len(path)
    if count <= 6:
        return []
    path = smooth_path(path, 1.5)
    radius = thin + max(0, wide - thin) * np.sqrt(np.linspace(0, 1, count))
    veins = [Vein("cortical", path, radius)]
    if rng.random() < 0.45 and count > 16:
        joint = int(rng.integers(count // 3, count - 4))
        end, along = path[joint], unit(path[joint] - path[joint - 6])
        aside = unit(np.cross(along, rng.standard_normal(3)))
        start = end - along * rng.uniform(3, 9) + aside * rng.uniform(2, 6)
        bend = end - along * rng.uniform(1, 4) + aside * 0.8
        veins.append(Vein("branch", _bent(start, bend, end, 16), max(0.15, thin)))
    return veins


def _bent(start: np.ndarray, bend: np.ndarray, end: np.ndarray, count: int) -> np.ndarray:
    """A quadratic Bezier curve (count, 3)."""
    t = np.linspace(0, 1, count)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end


def medullary_veins(rng: np.random.Generator, head: Head, count: int) -> list[Vein]:
    """Veins that run through white matter to the lateral ventricle and along its wall."""
    wall = head.brain.lateral_ventricles
    where = _white_matter(head) & (wall > 9) & (wall < 32) & (head.points[2] > 4)
    starts = head.grid.pick(rng, where, count)
    if not len(starts):
        return []
    wander = Wander(rng, count)
    radii = np.clip(rng.lognormal(np.log(0.25), 0.3, count), 0.13, 0.45)
    on_wall, reach = np.zeros(count), rng.uniform(3, 18, count)
    backwards = head.turn @ np.array([0, -0.3, -0.4])
    walk = Walk(starts)
    for _ in range(90):
        normal = unit(head.grid.slope(wall, walk.places, 2.0))
        away = head.grid.sample(wall, walk.places)
        inwards = -normal + 0.22 * wander.turn()
        along = unit(_project(backwards + 0.3 * wander.direction, normal))
        along = along - 0.4 * normal * np.clip(away - 0.3, -1, 1)[:, None]
        arrived = (away < 0.7) | (on_wall > 0)
        on_wall += 0.7 * arrived
        walk.step(0.7, np.where(arrived[:, None], along, inwards), on_wall < reach)
    veins = []
    for path, radius in zip(walk.paths(), radii, strict=True):
        veins += _with_tributaries(rng, smooth_path(path, 1.5), radius)
    return veins


def _with_tributaries(rng: np.random.Generator, path: np.ndarray, radius: float) -> list[Vein]:
    """A medullary vein with up to two thinner ones that join it."""
    count = len(path)
    veins = [Vein("medullary", path, np.linspace(0.75, 1.35, count) * radius)]
    for _ in range(rng.integers(0, 3)):
        if count <= 22:
            continue
        joint = int(rng.integers(6, count // 2 + 4))
        end, along = path[joint], unit(path[joint] - path[joint - 5])
        aside = unit(np.cross(along, rng.standard_normal(3)))
        start = end - along * rng.uniform(3, 10) + aside * rng.uniform(2, 5)
        bend = end - along * 2.5 + aside * 0.6
        veins.append(Vein("branch", _bent(start, bend, end, 18), 0.8 * radius))
    return veins


def superficial_veins(rng: np.random.Generator, head: Head, count: int) -> list[Vein]:
    """Thin veins that run from white matter through cortex to the nearest surface."""
    depth = head.brain.depth
    where = _white_matter(head) & (depth < 9) & (head.hulls.depth < 22)
    starts = head.grid.pick(rng, where, count)
    if not len(starts):
        return []
    wander, walk = Wander(rng, count), Walk(starts)
    outwards = -unit(head.grid.slope(head.hulls.depth, starts, 2.0))
    outwards = unit(outwards + 0.5 * rng.standard_normal((count, 3)))
    for _ in range(40):
        direction = outwards - 0.5 * unit(head.grid.slope(depth, walk.places, 1.5))
        direction = direction + 0.15 * wander.turn()
        walk.step(0.7, direction, head.grid.sample(depth, walk.places) > -0.3)
    radii = np.clip(rng.lognormal(np.log(0.19), 0.3, count), 0.1, 0.35)
    return [
        Vein("superficial", smooth_path(path, 1.2), radius)
        for path, radius in zip(walk.paths(), radii, strict=True)
    ]


def through_veins(rng: np.random.Generator, head: Head, count: int) -> list[Vein]:
    """Short veins that run across the slices, so that each slice shows a dot."""
    depth = head.brain.depth
    where = _cerebrum(head) & (depth > -1.2) & (depth < 3) & (head.hulls.depth > 1)
    veins = []
    for middle in head.grid.pick(rng, where, count):
        length = rng.uniform(4, 16)
        direction = unit(np.array([rng.normal(0, 0.25), rng.normal(0, 0.25), 1.0]))
        t = np.linspace(-0.5, 0.5, 24)[:, None]
        bend = unit(rng.standard_normal(3)) * rng.uniform(0, 0.12) * length
        path = middle + direction * length * t + bend * 4 * t**2
        radius = np.clip(rng.lognormal(np.log(0.36), 0.3), 0.2, 0.75)
        veins.append(Vein("through", path, radius))
    return veins


def cerebellar_veins(rng: np.random.Generator, head: Head, count: int) -> list[Vein]:
    """Veins that come out of the folia and run up over the cerebellum."""
    hull = head.hulls.cerebellum
    where = (hull < -1) & (hull > -12) & (head.brain.depth < 1)
    veins = []
    for start in head.grid.pick(rng, where, count):
        wander, place, path = Wander(rng, 1), start[None].copy(), [start.copy()]
        for _ in range(int(rng.integers(12, 45))):
            normal = unit(head.grid.slope(hull, place, 1.5))
            away = head.grid.sample(hull, place)
            turned = wander.turn()
            if away[0] > -1:
                direction = turned + np.array([0, 0, 1.0])
                direction = unit(direction - normal * (direction * normal).sum())
                direction = direction - 0.4 * normal * np.clip(away - 0.5, -1, 1)
            else:
                direction = unit(normal + 0.4 * wander.direction)
            place = place + 0.8 * direction
            path.append(place[0].copy())
        radius = np.clip(rng.lognormal(np.log(0.3), 0.35), 0.14, 0.8)
        veins.append(Vein("cerebellar", smooth_path(np.array(path), 1.5), radius))
    return veins


def venous_anomaly(rng: np.random.Generator, head: Head) -> list[Vein]:
    """A developmental venous anomaly: a head of thin veins in white matter, and their trunk."""
    depth = head.brain.depth
    found = head.grid.pick(rng, _white_matter(head) & (depth > 5) & (depth < 12), 1)
    if not len(found):
        return []
    centre = found[0]
    outwards = -unit(head.grid.slope(head.hulls.depth, found, 2.0))[0]
    trunk = centre + outwards * np.linspace(0, rng.uniform(15, 25), 40)[:, None]
    trunk = trunk + 0.6 * np.sin(np.linspace(0, 4, 40))[:, None]
    veins = [Vein("anomaly", trunk, rng.uniform(0.6, 0.9))]
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.integers(7, 13)):
        direction = unit(-outwards + 0.9 * rng.standard_normal(3))
        start = centre + direction * rng.uniform(6, 14)
        path = start * (1 - t) + centre * t + np.sin(np.pi * t) * rng.normal(0, 0.8, 3)
        veins.append(Vein("anomaly", path, rng.uniform(0.18, 0.32)))
    return veins
