"""Signals of tissues, and the head painted onto the fine grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from analytic_simulator.anatomy import Anatomy
from analytic_simulator.geometry import F, Grid, box, covered
from analytic_simulator.head import CSF_DISTANCE_NEEDS, csf_distance
from analytic_simulator.protocol import Protocol
from analytic_simulator.settings import DECAY_1P5T, TISSUES

OUTSIDE_DECAY = 20  # R2* (1/s) where there is nothing


class Signal(NamedTuple):
    """Of a tissue: signal at echo time 0, R2* (1/s), susceptibility (ppm)."""

    amplitude: np.float32
    decay: np.float32
    chi: np.float32


class Volumes(NamedTuple):
    """The same of every voxel of the fine grid, arrays (x, y, z)."""

    amplitude: np.ndarray
    decay: np.ndarray
    chi: np.ndarray


def tissue_signals(rng: np.random.Generator, protocol: Protocol, age: float) -> dict[str, Signal]:
    """Signal of each tissue by the Ernst equation.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws iron, the density of grey matter and fluid, and the susceptibility of fluid.
    protocol : Protocol
    age : float
        Years; iron gathers with them.

    Returns
    -------
    dict of str to Signal
    """
    at_3t = protocol.field_t > 2
    flip = np.deg2rad(protocol.flip_deg)
    iron = np.clip(1 + 0.006 * (age - 50), 0.6, 1.3) * rng.uniform(0.85, 1.15)
    signals = {}
    for name, tissue in TISSUES.items():
        density = _drawn(rng, tissue.density)
        chi = _drawn(rng, tissue.chi)
        t1 = tissue.t1_3t if at_3t else tissue.t1_1p5t
        left = np.exp(-protocol.repetition_time * 1e3 / t1)
        amplitude = density * np.sin(flip) * (1 - left) / (1 - np.cos(flip) * left)
        decay = tissue.decay * iron if tissue.iron else tissue.decay
        if not at_3t and name != "csf":
            decay = decay * DECAY_1P5T
        chi = chi * iron if tissue.iron else chi
        signals[name] = Signal(F(amplitude), F(decay), F(chi))
    return signals


def _drawn(rng: np.random.Generator, value: float | tuple[float, float]) -> float:
    """The value, or one of its range."""
    return rng.uniform(*value) if isinstance(value, tuple) else value


class Interpolator:
    """Coarse volumes, plane by plane (across x), on a finer grid.

    Parameters
    ----------
    volumes : dict of str to ndarray
        Arrays of the coarse grid's shape.
    coarse, fine : Grid
    """

    def __init__(self, volumes: dict[str, np.ndarray], coarse: Grid, fine: Grid) -> None:
        self.volumes = volumes
        self.lowest = {name: volume.min((1, 2)) for name, volume in volumes.items()}
        self.places = []
        for axis in range(3):
            centres = fine.origin[axis] + fine.spacing[axis] * np.arange(fine.shape[axis])
            index = (centres - coarse.origin[axis]) / coarse.spacing[axis]
            base = np.clip(np.floor(index).astype(int), 0, coarse.shape[axis] - 2)
            self.places.append((base, np.clip(index - base, 0, 1).astype(F)))

    def plane(self, name: str, i: int) -> np.ndarray:
        """Values (y, z) of the fine plane ``i``."""
        volume = self.volumes[name]
        (ix, wx), (iy, wy), (iz, wz) = self.places
        wy = wy[:, None]
        part = volume[ix[i]] * (1 - wx[i]) + volume[ix[i] + 1] * wx[i]
        part = part[iy] * (1 - wy) + part[iy + 1] * wy
        return part[:, iz] * (1 - wz) + part[:, iz + 1] * wz

    def lowest_near(self, name: str, i: int) -> float:
        """The least coarse value on either side of the fine plane ``i``."""
        base = self.places[0][0][i]
        return min(self.lowest[name][base], self.lowest[name][base + 1])


class PlanePainter:
    """Paints tissue over tissue in one plane of the fine grid.

    Parameters
    ----------
    source : Interpolator
        Of the signed distances.
    number : int
        Of the plane.
    volumes : Volumes
        Painted into, in place.
    signals : dict of str to Signal
    voxel : float
        Mean voxel size (mm): boundaries are as wide.
    """

    def __init__(
        self, source: Interpolator, number: int, volumes: Volumes, signals: dict[str, Signal],
        voxel: float,
    ) -> None:  # fmt: skip
        self.source, self.number, self.signals, self.voxel = source, number, signals, voxel
        self.amplitude, self.decay, self.chi = (volume[number] for volume in volumes)
        self._known: dict[str, np.ndarray] = {}

    def level(self, name: str) -> np.ndarray:
        """Signed distance (mm) in this plane."""
        if name not in self._known:
            self._known[name] = self.source.plane(name, self.number)
        return self._known[name]

    def near(self, name: str) -> bool:
        """Whether the structure reaches this plane."""
        return bool(self.source.lowest_near(name, self.number) < 1.5)

    def inside(self, distance: np.ndarray) -> np.ndarray:
        """Share of each voxel inside."""
        return covered(distance, self.voxel)

    def blend(self, share: np.ndarray, tissue: str) -> None:
        """Replace a share (0..1) of each voxel by a tissue."""
        signal = self.signals[tissue]
        for plane, value in zip((self.amplitude, self.decay, self.chi), signal, strict=True):
            plane[...] += share * (value - plane)

    def fill(self, structure: str, tissue: str) -> None:
        """Replace a structure by a tissue, if it reaches this plane."""
        if self.near(structure):
            self.blend(self.inside(self.level(structure)), tissue)


def paint(
    rng: np.random.Generator, anatomy: Anatomy, signals: dict[str, Signal], bulk: np.ndarray
) -> tuple[Volumes, np.ndarray]:
    """Paint the head, without vessels and lesions, onto the fine grid.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the texture of tissue.
    anatomy : Anatomy
    signals : dict of str to Signal
    bulk : ndarray
        Field on the coarse grid (ppm).

    Returns
    -------
    volumes : Volumes
    field : ndarray
        ``bulk`` on the fine grid.
    """
    coarse, fine = anatomy.slab.coarse, anatomy.slab.fine
    texture = ndimage.gaussian_filter(rng.normal(size=coarse.shape).astype(F), 2.0)
    texture = np.clip(texture, -0.2, 0.2)
    texture /= texture.std()
    source = Interpolator(anatomy.levels | {"texture": texture, "field": bulk}, coarse, fine)
    volumes = Volumes(*(np.zeros(fine.shape, F) for _ in range(3)))
    field = np.zeros(fine.shape, F)
    voxel = float(fine.spacing.mean())
    for i in range(fine.shape[0]):
        field[i] = source.plane("field", i)
        plane = PlanePainter(source, i, volumes, signals, voxel)
        plane.decay[:] = OUTSIDE_DECAY
        if plane.level("head").min() > 1:
            continue
        _paint_shell(plane, anatomy.head.skull_mm)
        _paint_cerebrum(plane, F(anatomy.head.sulcal_half_width), F(anatomy.head.cortex_mm))
        _paint_deep(plane)
        _paint_cerebellum(plane, F(anatomy.head.sulcal_half_width))
        _paint_brainstem(plane)
        _paint_air(plane)
        plane.amplitude *= 1 + F(0.018) * plane.level("texture")
    return volumes, field


def _paint_shell(plane: PlanePainter, skull_mm: float) -> None:
    """Skin and fat, muscle, skull with its marrow, and the fluid within."""
    skin, inner, texture = (plane.level(n) for n in ("head", "inner_skull", "texture"))
    plane.blend(plane.inside(skin), "fat")
    plane.blend(plane.inside(skin + 1.6) * F(0.55), "muscle")
    plane.blend(plane.inside(skin + 4.2 + texture * F(0.8)), "muscle")
    plane.amplitude *= 1 + F(0.12) * texture
    if inner.min() < skull_mm + 1:
        plane.blend(plane.inside(inner - F(skull_mm)), "bone")
        middle = np.abs(inner - F(0.5 * skull_mm)) - F(skull_mm * 0.2)
        plane.blend(plane.inside(middle), "marrow")
        plane.blend(plane.inside(inner), "csf")


def _paint_cerebrum(plane: PlanePainter, half_width: np.float32, cortex_mm: np.float32) -> None:
    """Cortex, white matter with the corpus callosum, and the fluid of the sulci."""
    if not plane.near("cerebrum"):
        return
    levels = {name: plane.level(name) for name in CSF_DISTANCE_NEEDS}
    distance = csf_distance(levels, half_width)
    inside = plane.inside(levels["cerebrum"])
    core = levels["callosum"]
    callosum = (np.abs(levels["x"]) < 12) & (core > -6) & (core < 0)
    plane.blend(inside, "grey")
    plane.blend(inside * np.maximum(plane.inside(cortex_mm - distance), callosum), "white")
    plane.blend(inside * plane.inside(distance), "csf")


def _paint_deep(plane: PlanePainter) -> None:
    """Cisterns, deep grey matter, ventricles with the choroid plexus, pineal gland."""
    plane.fill("cisterns", "csf")
    for name in ("thalamus", "caudate", "putamen", "pallidum"):
        plane.fill(name, name)
    if plane.near("ventricles"):
        ventricles = plane.inside(plane.level("ventricles"))
        plane.blend(ventricles * plane.inside(plane.level("inner_skull") + 3), "csf")
        if plane.near("choroid_plexus"):
            choroid = plane.inside(plane.level("choroid_plexus"))
            plane.blend(choroid * ventricles, "choroid_plexus")
    plane.fill("pineal", "pineal")


def _paint_cerebellum(plane: PlanePainter, half_width: np.float32) -> None:
    """Folia, white matter, dentate nucleus, fourth ventricle."""
    if not plane.near("cerebellum"):
        return
    surface = plane.level("cerebellum")
    # 0 in the middle of a sulcus between folia, which are 5 mm apart.
    between = np.abs(np.mod(plane.level("folia"), F(5.0)) - F(2.5))
    sulcus = between - F(0.25) - F(0.2) * half_width
    depth = -surface
    distance = np.minimum(depth, box(sulcus, depth - 10))
    inside = plane.inside(surface)
    plane.blend(inside, "grey")
    plane.blend(inside * plane.inside(F(1.7) - distance), "white")
    plane.blend(inside * plane.inside(distance), "csf")
    plane.fill("dentate", "dentate")
    if plane.near("ventricles"):
        plane.blend(plane.inside(plane.level("ventricles")) * inside, "csf")


def _paint_brainstem(plane: PlanePainter) -> None:
    """The stem in its cisterns, aqueduct and fourth ventricle, and the nuclei of the midbrain."""
    if plane.near("brainstem"):
        stem, height = plane.level("brainstem"), plane.level("z")
        plane.blend(plane.inside(stem - 2) * plane.inside(height + 4), "csf")
        plane.blend(plane.inside(stem) * plane.inside(height + 3), "white")
        if plane.near("ventricles"):
            ventricles = plane.inside(plane.level("ventricles"))
            plane.blend(ventricles * plane.inside(height + 22), "csf")
    for name in ("substantia_nigra", "red_nucleus"):
        plane.fill(name, name)
    plane.fill("eyes", "csf")


def _paint_air(plane: PlanePainter) -> None:
    if plane.near("air"):
        air = plane.inside(plane.level("air"))
        plane.amplitude *= 1 - air
        plane.decay += air * (OUTSIDE_DECAY - plane.decay)
