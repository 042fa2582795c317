"""The head: nested ellipsoids with noise for folds, and veins that walk at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from random_walk_simulator.grid import Grid

SEMIAXES_MM = np.array([65, 80, 58])
STEP_MM = 0.8
VEIN_CHI = 0.40
AIR_CHI = 9.0
BONE_CHI = -2.0


@dataclass
class Head:
    """What is where on the fine grid.

    Attributes
    ----------
    susceptibility, density, decay : ndarray of float32
        In ppm; relative to water; R2* in 1/s.
    depth : ndarray of float32
        0 in the middle of the brain, 1 on its surface.
    brain, substance, veins : ndarray of bool
        Brain with what it holds; brain without sulci and ventricles; blood.
    semiaxes : ndarray, shape (3,)
        Of the brain, mm.
    """

    susceptibility: np.ndarray
    density: np.ndarray
    decay: np.ndarray
    depth: np.ndarray
    brain: np.ndarray
    substance: np.ndarray
    veins: np.ndarray
    semiaxes: np.ndarray


def build_head(rng: np.random.Generator, grid: Grid, field_t: float) -> Head:
    """Draw a head and its veins."""
    x, y, z = grid.axes()
    semiaxes = SEMIAXES_MM * rng.uniform(0.95, 1.05)
    bent = grid.smooth_noise(rng, 40) * 0.03
    depth = np.sqrt((x / semiaxes[0]) ** 2 + (y / semiaxes[1]) ** 2 + (z / semiaxes[2]) ** 2) + bent
    folds = np.abs(grid.smooth_noise(rng, 9))
    brain = depth < 1
    sulci = brain & (depth > 0.86) & (folds < 0.10)
    ventricles = _pair(9, x, lambda side: (side / 6) ** 2 + (y / 26) ** 2 + ((z - 8) / 9) ** 2)
    nuclei = brain & _pair(
        22, x, lambda side: (side / 7) ** 2 + ((y - 4) / 14) ** 2 + ((z - 2) / 9) ** 2
    )
    sinus = (x / 18) ** 2 + ((y - 92) / 16) ** 2 + ((z + 22) / 14) ** 2 < 1
    liquid = sulci | ventricles | ((depth >= 1) & (depth < 1.04))
    cortex = brain & ((depth > 0.93) | ((depth > 0.8) & (folds < 0.45)))
    shape = tuple(grid.shape)
    head = Head(
        np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.full(shape, 20, np.float32),
        depth, brain, brain & ~sulci & ~ventricles, np.zeros(shape, bool), semiaxes,
    )  # fmt: skip
    _paint_tissue(head, cortex, nuclei, liquid, sinus, rng.uniform(0.5, 1.5))
    _add_veins(rng, head, grid, field_t, (x, y, z))
    return head


def _pair(
    from_middle: float, x: np.ndarray, formula: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Inside of an ellipsoid's formula on the left or on the right."""
    return (formula(x + from_middle) < 1) | (formula(x - from_middle) < 1)


def _paint_tissue(
    head: Head, cortex: np.ndarray, nuclei: np.ndarray, liquid: np.ndarray, sinus: np.ndarray,
    iron: float,
) -> None:  # fmt: skip
    """Give every tissue its susceptibility, density and decay; what comes later covers."""
    bone = (head.depth >= 1.04) & (head.depth < 1.12)
    scalp = (head.depth >= 1.12) & (head.depth < 1.2)
    head.susceptibility[(head.depth >= 1.2) | sinus] = AIR_CHI
    head.susceptibility[bone] = BONE_CHI
    head.susceptibility[nuclei] = 0.10 * iron
    for where, density in ((head.brain, 0.72), (cortex, 0.85), (nuclei, 0.75), (liquid, 0.9),
                           (scalp, 0.6), (bone, 0.05), (sinus, 0.0)):  # fmt: skip
        head.density[where] = density
    head.density[liquid] *= 0.75  # long T1
    for where, decay in ((head.brain, 18), (cortex, 15), (liquid, 4), (nuclei, 30)):
        head.decay[where] = decay


def _add_veins(
    rng: np.random.Generator, head: Head, grid: Grid, field_t: float, axes: tuple[np.ndarray, ...]
) -> None:
    """Veins from the surface inwards, thinner with every step, and a sagittal sinus."""
    for _ in range(int(rng.integers(60, 140))):
        outward = rng.normal(size=3)
        outward /= np.linalg.norm(outward)
        point, direction = outward * head.semiaxes * 0.97, -outward
        radius = rng.uniform(0.3, 1.0)
        for _ in range(int(rng.integers(15, 60))):
            direction = direction + rng.normal(size=3) * 0.25
            direction /= np.linalg.norm(direction)
            point, radius = point + direction * STEP_MM, radius * 0.985
            ball = grid.ball(point, radius)
            if ball is None:
                break
            head.veins[ball[0]] |= ball[1]
    x, y, z = axes
    along = np.sqrt((y / head.semiaxes[1]) ** 2 + (z / head.semiaxes[2]) ** 2)
    head.veins |= (np.abs(x) < 2.5) & (np.abs(along - 1.02) < 0.03) & (z > 0)
    head.veins &= head.depth < 1.05
    head.susceptibility[head.veins] = VEIN_CHI
    head.decay[head.veins] = 45 * field_t / 3 + 15
