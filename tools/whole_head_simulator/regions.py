"""Where microbleeds may lie, and which region a place belongs to."""

from __future__ import annotations

import numpy as np

from whole_head_simulator.geometry import F
from whole_head_simulator.head import Head
from whole_head_simulator.hulls import sylvian_height

Masks = dict[str, np.ndarray]


def within_slab(head: Head, steep: np.ndarray, half_height_mm: float) -> np.ndarray:
    """Mask of what lies well inside the skull and the slab, where there is signal.

    Parameters
    ----------
    head : Head
    steep : ndarray of bool
        Where the field of air and bone takes the signal away.
    half_height_mm : float
        Half the height of the slab.

    Returns
    -------
    ndarray of bool
    """
    low = np.abs(head.grid.lines()[2]) < half_height_mm - 5
    return low[:, None, None] & ~steep & (head.hulls.inner_skull < -3)


def cerebral_tissue(head: Head, inside: np.ndarray) -> np.ndarray:
    """Mask of tissue of the cerebrum, off its surface and its ventricles."""
    depth = head.brain.depth
    return (head.hulls.cerebrum < -1.5) & (depth > 0.9) & inside & (head.brain.ventricles > 1.5)


def microbleed_places(head: Head, inside: np.ndarray) -> Masks:
    """Where each kind of microbleed may lie; the names are those of ``settings.PLACES``.

    Parameters
    ----------
    head : Head
    inside : ndarray of bool
        As `within_slab` has it.

    Returns
    -------
    dict of str to ndarray of bool
    """
    tissue, below, grey = head.brain.depth, head.hulls.depth, head.matter.deep_grey
    hulls, height = head.hulls, head.points[2]
    cerebrum = cerebral_tissue(head, inside)
    nuclei = cerebrum & (grey > 0.6) & (below > 15)
    deep = (below > 17) & cerebrum & (tissue > 2) | nuclei
    outer = cerebrum & ~deep
    near_callosum = (head.callosal > 0.62) & (head.callosal < 1.05) & (height > 4)
    off_ventricles = inside & (head.brain.ventricles > 2)
    return {
        "lobar": outer & (below < 17),
        "junction": outer & (np.abs(tissue - 2.7) < 1.2) & (below < 19),
        "deep": deep & (head.brain.lateral_ventricles < 30),
        "callosum": cerebrum & (np.abs(head.points[0]) < 13) & near_callosum & (tissue > 3),
        "brainstem": (hulls.brainstem < -2.5) & (height > -52) & (height < 0) & off_ventricles,
        "cerebellum": (hulls.cerebellum < -2.5) & (tissue > 0.5) & off_ventricles,
    }


def region_of(head: Head, place: np.ndarray) -> str:
    """Name of the region that a place (3,), in grid mm, lies in; lobes by rough rules."""

    def at(volume: np.ndarray) -> float:
        return head.grid.sample(volume, place)[0]

    x, y, z = (at(line) for line in head.points)
    side = abs(x)
    if at(head.hulls.brainstem) < 0 and z < 2:
        return "brainstem"
    if at(head.hulls.cerebellum) < 0 and z < 0:
        return "cerebellum"
    for name in ("thalamus", "caudate", "putamen", "pallidum"):
        if at(head.masks[name].astype(F)) > 0.4:
            return "thalamus" if name == "thalamus" else "basal_ganglia"
    if side < 14 and 0.6 < at(head.callosal) < 1.15 and z > 0 and at(head.brain.depth) > 2:
        return "corpus_callosum"
    if 9 < side < 26 and -22 < y < 18 and -8 < z < 18:
        return "internal_capsule"
    if 28 < side < 44 and -30 < y < 22 and abs(z - sylvian_height(y)) < 12:
        return "insula" if side > 34 else "external_capsule"
    if at(head.hulls.depth) > 17 or at(head.brain.lateral_ventricles) < 6:
        return "deep_white_matter"
    return lobe_of(side, y, z)


def lobe_of(side: float, y: float, z: float) -> str:
    """Name of the lobe of a place in template mm; ``side`` is its distance from the midline."""
    if side > 16 and -48 < y < 32 and z < min(2, -5 - 0.3 * (y + 10)):
        return "temporal"
    if y < -62 - 0.5 * max(0, z - 5):
        return "occipital"
    return "frontal" if y > -16 - 0.25 * (z - 20) else "parietal"
