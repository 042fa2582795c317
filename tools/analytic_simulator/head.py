"""The head as formulas: signed distances (mm, negative inside) of everything in it.

Coordinates are canonical (close to MNI mm) inside; `Head.to_canonical` and `Head.from_canonical`
lead to those of the participant's own head and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analytic_simulator.geometry import (
    F,
    Waves,
    box,
    capsules,
    ellipsoid,
    smooth_maximum,
    smooth_minimum,
)
from analytic_simulator.settings import CEREBRUM_CENTRE, CEREBRUM_RADII

Levels = dict[str, np.ndarray]


class Head:
    """One participant's head.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws what differs between heads.
    age : float
        Years: older brains have wider sulci and ventricles.
    """

    def __init__(self, rng: np.random.Generator, age: float) -> None:
        self.atrophy = float(np.clip((age - 30) / 60 + rng.normal(0, 0.15), 0, 1.2))
        self.scale = np.exp(rng.normal(0, 0.03, 3)).astype(F)
        self.warp = [Waves(rng, 75, 10) for _ in range(3)]
        self.warp_mm = F(rng.uniform(1.0, 2.2))
        self.sulcal_wave = Waves(rng, rng.uniform(21, 26), 26, 0.15)
        self.sulcal_bend = Waves(rng, 24, 14)
        self.sulcal_depth = Waves(rng, 30, 12)
        self.sulcal_half_width = 0.6 + 0.6 * self.atrophy
        self.cortex_mm = rng.uniform(2.5, 3.1)
        self.ventricle_size = (0.75 + 0.55 * self.atrophy) * rng.uniform(0.85, 1.2)
        self.brain_to_skull = 1.6 + 2.2 * self.atrophy
        self.skull_mm, self.scalp_mm = rng.uniform(5, 7.5), rng.uniform(5, 8)
        self.sinus_size = rng.uniform(0.7, 1.3)
        self.folia = Waves(rng, 35, 10)
        self.cells = Waves(rng, 6, 14)  # of the mastoid, and folds of the dentate nucleus

    def to_canonical(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Canonical coordinates of head coordinates, three arrays each (mm)."""
        plain = (x / self.scale[0], y / self.scale[1], z / self.scale[2])
        bent = [c + self.warp_mm * w(*plain) for c, w in zip(plain, self.warp, strict=True)]
        return bent[0], bent[1], bent[2]

    def from_canonical(self, points: np.ndarray) -> np.ndarray:
        """Head coordinates (n, 3) of canonical points (n, 3): the warp inverted by fixed point."""
        target = np.asarray(points, F)
        place: np.ndarray = target.copy()
        for _ in range(3):
            bent = np.stack([w(place[:, 0], place[:, 1], place[:, 2]) for w in self.warp], 1)
            place = target - bent * self.warp_mm
        return place * self.scale

    def shell(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signed distances from the inner skull, the skin and the air spaces."""
        brain = smooth_minimum(cerebrum(x, y, z), cerebellum(x, y, z), 10)
        brain = smooth_minimum(brain, brainstem(x, y, z), 8)
        inner = brain - F(self.brain_to_skull)
        head = inner - F(self.skull_mm + self.scalp_mm)
        face = (
            ((0, 40, -62), (66, 58, 62), 15),
            ((0, 72, -4), (34, 15, 24), 12),
            ((0, 100, -58), (11, 14, 20), 8),
        )
        for centre, radii, width in face:
            head = smooth_minimum(head, ellipsoid(x, y, z, centre, radii), width)
        neck = np.maximum(np.sqrt(x * x + (y + 30) ** 2) - 62, z + 50)
        head = smooth_minimum(head, neck.astype(F), 20)
        air = np.maximum(self._air(x, y, z), 3.0 - brain)  # never inside or touching brain
        return inner.astype(F), head.astype(F), air.astype(F)

    def _air(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Signed distance from frontal, sphenoid, ethmoid and other sinuses, ears and throat."""
        side, size = np.abs(x), self.sinus_size
        air = ellipsoid(side, y, z, (12, 79, -2), (11 * size, 4.5, 11 * size))
        for centre, radii in (
            ((6, 17, -40), (8, 12, 8)),
            ((8, 46, -38), (6, 17, 10)),
            ((30, 48, -66), (13, 16, 15)),
            ((5, 66, -62), (5, 26, 14)),
        ):
            air = np.minimum(air, ellipsoid(side, y, z, centre, radii))
        air = np.minimum(air, capsules(side, y, z, [(95, -22, -52, 4), (48, -22, -50, 3)]))
        mastoid = ellipsoid(side, y, z, (54, -42, -50), (9, 10, 11))
        air = np.minimum(air, np.maximum(mastoid, 2.0 * self.cells(x, y, z)))
        return np.minimum(air, capsules(x, y, z, [(0, 20, -85, 9), (0, 2, -120, 9)]))

    def level_sets(self, head_mm: Sequence[np.ndarray], spacing: float) -> Levels:
        """Every structure on a grid.

        Parameters
        ----------
        head_mm : sequence of three ndarrays
            Head coordinates of the grid's points, broadcast to its shape.
        spacing : float
            Of the grid, the same along all axes (mm).

        Returns
        -------
        dict of str to ndarray
            Signed distances by structure; canonical coordinates ``x y z``; ``sulcus``, the signed
            distance from the nearest sulcal sheet, with its normal ``sulcus_x``, ``sulcus_y`` and
            ``sulcus_z`` along the grid's axes; ``csf_distance``, the distance from fluid at the
            surface of the cerebrum.
        """
        x, y, z = self.to_canonical(*head_mm)
        levels = {"x": x, "y": y, "z": z}
        levels["inner_skull"], levels["head"], levels["air"] = self.shell(x, y, z)
        levels["cerebrum"] = cerebrum(x, y, z)
        levels["cerebellum"] = cerebellum(x, y, z)
        levels["brainstem"] = brainstem(x, y, z)
        levels |= self._sulci(x, y, z, spacing)
        levels |= _midline_and_sylvian(x, y, z)
        levels |= self._fluid(x, y, z)
        levels |= _deep_grey(x, y, z)
        levels |= self._small_parts(x, y, z)
        levels["csf_distance"] = csf_distance(levels, F(self.sulcal_half_width))
        return levels

    def _sulci(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, spacing: float) -> Levels:
        """Sulcal sheets: zeros of a wave on the hull, carried inwards along rays."""
        a, b, c = [
            (p - F(o)) / F(r)
            for p, o, r in zip((x, y, z), CEREBRUM_CENTRE, CEREBRUM_RADII, strict=True)
        ]
        depth = np.maximum(np.sqrt(a * a + b * b + c * c), F(0.15))
        on_hull = [
            F(o) + F(r) * u / depth
            for u, o, r in zip((a, b, c), CEREBRUM_CENTRE, CEREBRUM_RADII, strict=True)
        ]
        on_hull[0] = on_hull[0] + np.where(x > 0, F(0), F(300))  # hemispheres differ
        wave = self.sulcal_wave(*on_hull) + F(0.35) * self.sulcal_bend(x, y, z)
        deep = F(14) + F(7) * np.clip(self.sulcal_depth(*on_hull), -1.2, 1.6)
        slope = np.gradient(wave, spacing)
        steepness = np.sqrt(slope[0] ** 2 + slope[1] ** 2 + slope[2] ** 2 + F(0.02) ** 2)
        normal = {f"sulcus_{n}": s / steepness for n, s in zip("xyz", slope, strict=True)}
        return {"sulcus": np.clip(wave / steepness, -12, 12), "sulcal_depth": deep} | normal

    def _fluid(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Levels:
        """Ventricles and cisterns."""
        side, size = np.abs(x), self.ventricle_size
        body = [(11, 32, 1, 2.6 * size), (10, 20, 13, 4.6 * size), (9.5, 0, 20, 4.4 * size),
                (13, -22, 22, 4.8 * size), (22, -38, 15, 6.6 * size), (27, -44, 6, 5.5 * size),
                (25, -62, 6, 2.2 * size)]  # fmt: skip
        temporal = [
            (27, -42, 4, 4.5 * size), (33, -28, -12, 2.6 * size), (31, -12, -21, 2.0 * size)
        ]  # fmt: skip
        ventricles = np.minimum(capsules(side, y, z, body), capsules(side, y, z, temporal))
        third = ellipsoid(x, y, z, (0, -12, 1), (1.6 + 1.6 * size, 15, 10))
        fourth = ellipsoid(x, y, z, (0, -46, -33), (6, 5, 10))
        ventricles = np.minimum(np.minimum(ventricles, third), fourth)
        suprasellar = ellipsoid(x, y, z, (0, 3, -19), (13, 10, 6))
        quadrigeminal = ellipsoid(x, y, z, (0, -46, -4), (12, 7, 5))
        return {"ventricles": ventricles, "cisterns": np.minimum(suprasellar, quadrigeminal)}

    def _small_parts(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Levels:
        """Dentate nucleus (a folded ribbon), choroid plexus, pineal gland, eyes, folia."""
        side = np.abs(x)
        dentate = ellipsoid(side, y, z, (15, -57, -36), (7.5, 8, 5))
        choroid = [(11, 0, 17, 1.2), (15, -24, 17, 1.3), (22, -38, 12, 3.2), (29, -38, -2, 1.6)]
        folia = y * F(0.35) - z * F(0.9) + F(0.02) * (side - 10) ** 2 * F(0.3)
        return {
            "dentate": np.abs(dentate + 1.5 + 0.8 * self.cells(x, y, z)) - F(1.1),
            "choroid_plexus": capsules(side, y, z, choroid),
            "pineal": ellipsoid(x, y, z, (0, -30, 2), (3, 4.5, 3)),
            "eyes": ellipsoid(side, y, z, (32, 62, -38), (12, 12, 12)),
            "folia": (folia + F(1.5) * self.folia(x, y, z)).astype(F),
        }


def cerebrum(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance from the hull of the cerebrum, temporal lobes included."""
    narrowed = x / (1 - F(0.08) * (y + 17) / 88)
    hull = ellipsoid(narrowed, y, z, CEREBRUM_CENTRE, CEREBRUM_RADII)
    floor = -20 + 8 / (1 + np.exp((y + 25) / 8))
    hull = smooth_maximum(hull, (floor - z).astype(F), 8)
    return smooth_minimum(hull, ellipsoid(np.abs(x), y, z, (45, -10, -24), (20, 43, 20)), 4)


def cerebellum(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance from the hull of the cerebellum."""
    hemispheres = ellipsoid(np.abs(x), y, z, (24, -62, -37), (28, 32, 20))
    return smooth_minimum(hemispheres, ellipsoid(x, y, z, (0, -64, -36), (14, 28, 20)), 5)


def brainstem(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance from the brainstem and the cord below it."""
    line = [(0, -21, -2, 10), (0, -23, -14, 11), (0, -26, -30, 13.5), (0, -36, -54, 8),
            (0, -46, -110, 6)]  # fmt: skip
    return capsules(x * F(0.85), y, z, line)


def _midline_and_sylvian(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Levels:
    """Corpus callosum (an ellipse in the plane of the midline) and where the Sylvian fissure is."""
    along, up = (y + 2) / 36, (z - 4) / 25
    scaled = np.sqrt(along * along + up * up)
    slope = np.sqrt((along / 36) ** 2 + (up / 25) ** 2) + F(1e-6)
    side = np.abs(x)
    return {
        "callosum": (scaled * (scaled - 1) / slope).astype(F),
        "sylvian": ((z + 2 + 0.5 * y) / 1.118).astype(F),
        "sylvian_limit": np.maximum(np.maximum(39 - side, y - 26), -42 - y).astype(F),
    }


def _deep_grey(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Levels:
    """Basal ganglia, thalamus, red nucleus and substantia nigra; some stand askew."""
    side = np.abs(x)
    lentiform = side - F(0.25) * (y - 3) * F(-1)
    tail = [(16, 8, 14, 3.5), (18, -8, 20, 2.6), (20, -22, 22, 1.8)]
    head_of_caudate = ellipsoid(side, y, z, (15, 13, 6), (5.5, 9, 9))
    return {
        "caudate": np.minimum(head_of_caudate, capsules(side, y, z, tail)),
        "putamen": ellipsoid(lentiform, y, z, (27, 3, 2), (4.6, 15, 9)),
        "pallidum": ellipsoid(lentiform, y, z, (19, -2, -1), (4.2, 8.5, 6)),
        "thalamus": ellipsoid(side - F(0.2) * (-18 - y), y, z, (11.5, -17, 8), (8, 13, 8.5)),
        "red_nucleus": ellipsoid(side, y, z, (5, -20, -9), (2.7, 3.2, 3.4)),
        "substantia_nigra": ellipsoid(
            side - F(0.5) * (-(y + 17)), y, z, (10, -17, -12), (2.2, 6, 4)
        ),
    }


CSF_DISTANCE_NEEDS = (
    "cerebrum", "sulcus", "sulcal_depth", "x", "callosum", "sylvian", "sylvian_limit",
)  # fmt: skip


def csf_distance(levels: Mapping[str, np.ndarray], half_width: np.float32) -> np.ndarray:
    """Distance (mm) from the fluid of sulci and fissures and from the hull.

    Parameters
    ----------
    levels : mapping of str to ndarray
        Those of `CSF_DISTANCE_NEEDS`, on any grid.
    half_width : float
        Of a sulcus at the hull, mm; it narrows with depth.

    Returns
    -------
    ndarray
        Negative in fluid.
    """
    depth, reach = -levels["cerebrum"], levels["sulcal_depth"]
    width = half_width * (1 - F(0.35) * np.clip(depth / np.maximum(reach, 3), 0, 1))
    distance = box(np.abs(levels["sulcus"]) - width, depth - reach)
    midline = np.abs(levels["x"]) - F(0.7) - half_width * F(0.5)
    distance = np.minimum(distance, box(midline, -levels["callosum"]))
    sylvian = np.abs(levels["sylvian"]) - F(0.7) - half_width
    distance = np.minimum(distance, box(sylvian, levels["sylvian_limit"]))
    return np.minimum(distance, depth)
