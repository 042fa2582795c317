"""Microbleeds and calcifications: how many, where and what they are of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from whole_head_simulator.fine import FineMap, paint_ovoid
from whole_head_simulator.head import Head
from whole_head_simulator.regions import (
    cerebral_tissue,
    microbleed_places,
    region_of,
    within_slab,
)
from whole_head_simulator.settings import (
    AMYLOID_PLACES,
    AMYLOID_SHARE,
    BURDENS,
    HEALTHY_WITHOUT,
    PLACES,
)

MICROBLEED, CALCIFICATION = "microbleed", "calcification"
APART_MM, CALCIFICATIONS_APART_MM = 5, 0.7  # between the surfaces of two lesions
MICROBLEED_MARGIN, CALCIFICATION_MARGIN = 8, 4  # fine voxels to the border of the grid
LARGE_VEIN_PPM = 0.06  # mean around a place within a large vein


class Lesion(NamedTuple):
    """One lesion: centre (3,) in grid mm, diameter of the sphere of its volume (mm), ppm."""

    name: str
    centre: np.ndarray
    diameter: float
    chi: float
    region: str


def draw_count(rng: np.random.Generator, group: str) -> int:
    """Number of microbleeds of one participant of a clinical group."""
    chance = rng.random()
    if group not in BURDENS:
        return 0 if chance < HEALTHY_WITHOUT else int(rng.integers(1, 3))
    burden = BURDENS[group]
    if chance < burden.without:
        return 0
    more = int(rng.poisson(rng.gamma(burden.shape, burden.mean / burden.shape)))
    return min(burden.at_least + more, burden.most)


def place_lesions(
    rng: np.random.Generator, head: Head, group: str, fine: FineMap, steep: np.ndarray,
    half_height_mm: float,
) -> list[Lesion]:  # fmt: skip
    """Draw the lesions of one participant and put them into the fine map, in place.

    Parameters
    ----------
    rng : numpy.random.Generator
    head : Head
    group : str
        Clinical group, which decides how many microbleeds there are and where.
    fine : FineMap
        With the veins.
    steep : ndarray of bool
        Where, on the head's grid, the field of air and bone takes the signal away.
    half_height_mm : float
        Half the height of the slab.

    Returns
    -------
    list of Lesion
        Microbleeds first.
    """
    inside = within_slab(head, steep, half_height_mm)
    painter = Painter(rng, head, fine)
    painter.microbleeds(microbleed_places(head, inside), _chances(rng, group), group)
    painter.calcify_known_places()
    scattered = cerebral_tissue(head, inside) & (head.brain.depth > 1.5)
    painter.calcify_anywhere(scattered, 1.7 if group == "haemodialysis" else 0.9)
    return painter.lesions


def _chances(rng: np.random.Generator, group: str) -> dict[str, float]:
    """Chances of the places of microbleeds of one participant."""
    if group == "stroke" and rng.random() < AMYLOID_SHARE:
        return AMYLOID_PLACES
    return PLACES[group]


class Painter:
    """Puts lesions into a fine map, apart from each other.

    Parameters
    ----------
    rng : numpy.random.Generator
    head : Head
    fine : FineMap
        Changed in place.
    """

    def __init__(self, rng: np.random.Generator, head: Head, fine: FineMap) -> None:
        self.rng, self.head, self.fine = rng, head, fine
        self.lesions: list[Lesion] = []
        self._taken: list[tuple[np.ndarray, float]] = []

    def _is_free(self, centre: np.ndarray, diameter: float, apart_mm: float) -> bool:
        return not any(
            np.linalg.norm(centre - other) < (diameter + size) / 2 + apart_mm
            for other, size in self._taken
        )

    def paint(
        self, name: str, centre: np.ndarray, diameter: float, chi: float, kept: float,
        region: str | None = None,
    ) -> None:  # fmt: skip
        """Paint one lesion and write it down; the region is looked up where none is given."""
        painted = paint_ovoid(self.rng, self.fine, centre, diameter, chi, kept)
        region = region or region_of(self.head, centre)
        self.lesions.append(Lesion(name, centre, painted, chi, region))
        self._taken.append((centre, diameter))

    def microbleeds(
        self, places: dict[str, np.ndarray], chances: dict[str, float], group: str
    ) -> None:
        """Paint the microbleeds of one participant, or as many as there is room for."""
        rng, grid = self.rng, self.head.grid
        count = draw_count(rng, group)
        names = list(chances)
        odds = np.array([chances[name] for name in names])
        odds /= odds.sum()
        candidates = {name: np.flatnonzero(places[name]) for name in names}
        for _ in range(60 * count + 60):
            if len(self.lesions) >= count:
                break
            mine = candidates[names[rng.choice(len(names), p=odds)]]
            if not len(mine):
                continue
            index = np.array(np.unravel_index(rng.choice(mine), grid.shape))[::-1]
            centre = (index + rng.uniform(-0.5, 0.5, 3)) * grid.spacing + grid.origin
            diameter = float(np.clip(rng.lognormal(np.log(2.45), 0.38), 1.0, 6.0))
            nearest = self.fine.grid.nearest(centre)
            if (
                not self._is_free(centre, diameter, APART_MM)
                or not self.fine.grid.holds(nearest, MICROBLEED_MARGIN)
                or self.fine.mean_around(nearest, 1.2) > LARGE_VEIN_PPM
            ):
                continue
            chi = float(0.3 + 1.2 * rng.beta(1.4, 1.7))
            self.paint(MICROBLEED, centre, diameter, chi, rng.uniform(0.85, 1))

    def calcification(
        self, centre: np.ndarray, diameter: float, region: str | None = None, most: float = 3.0
    ) -> None:
        """Paint a calcification of at most ``most`` ppm (diamagnetic) where there is room."""
        rng = self.rng
        chi = -float(np.clip(np.exp(rng.normal(np.log(0.8), 0.7)), 0.1, most))
        kept = float(np.clip(1 - 0.32 * abs(chi) - rng.uniform(0.05, 0.3), 0.08, 0.9))
        nearest = self.fine.grid.nearest(centre)
        if self.fine.grid.holds(nearest, CALCIFICATION_MARGIN) and self._is_free(
            centre, diameter, CALCIFICATIONS_APART_MM
        ):
            self.paint(CALCIFICATION, centre, diameter, chi, kept, region)

    def _near(self, point: tuple[float, float, float], stray_mm: float) -> np.ndarray:
        """A place (grid mm) about a template point."""
        stray = self.rng.normal(0, stray_mm, 3)
        return self.head.frame.from_template(np.asarray(point, float) + stray)[0]

    def calcify_known_places(self) -> None:
        """Calcify choroid plexus, pineal gland, pallidum and falx, more often with age."""
        rng, age = self.rng, self.head.age
        for side in (-1, 1):
            if rng.random() < 0.35 + 0.5 * age:
                glomus = self._near((side * 25, -41, 11), 1.5)
                for _ in range(rng.integers(1, 4)):
                    centre = glomus + rng.normal(0, 2.4, 3)
                    self.calcification(centre, rng.uniform(1.2, 4.5), "choroid_plexus")
        if rng.random() < 0.4 + 0.4 * age:
            pineal = self._near((0, -33, 3), 0.8)
            for _ in range(rng.integers(1, 3)):
                centre = pineal + rng.normal(0, 1.6, 3)
                self.calcification(centre, rng.uniform(1.5, 4.5), "pineal")
        if rng.random() < 0.1 + 0.35 * age:
            for side in (-1, 1):
                for _ in range(rng.integers(1, 4)):
                    centre = self._near((side * 20, -2, 0), 2.2)
                    self.calcification(centre, rng.uniform(1.0, 3.0), "pallidum", most=1.5)
        if rng.random() < 0.15 + 0.3 * age:
            for _ in range(rng.integers(1, 4)):
                angle, away = np.deg2rad(rng.uniform(40, 140)), rng.uniform(0.8, 1.1)
                y, z = -17 + 60 * np.cos(angle) * away, 12 + 52 * np.sin(angle) * away
                centre = self._near((0, y, z), 0.6)
                self.calcification(centre, rng.uniform(1.5, 4), "falx")

    def calcify_anywhere(self, where: np.ndarray, mean: float) -> None:
        """Scatter calcifications in tissue that look like microbleeds, ``mean`` on average."""
        count = int(self.rng.poisson(mean))
        centres = self.head.grid.pick(self.rng, where, max(count, 1))
        for centre in centres[:count]:
            diameter = float(np.clip(self.rng.lognormal(np.log(2.2), 0.35), 1, 5))
            self.calcification(centre, diameter)
