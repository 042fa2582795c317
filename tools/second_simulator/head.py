"""The head: template tissue maps, deformed, inside a skull, scalp, face and air spaces."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as tf
from scipy import fft as sfft
from scipy import ndimage

from second_simulator.settings import (
    AIR_SPACES,
    COARSE_MM,
    EXTRA_SLICES_MM,
    MAP_NAMES,
    MAP_ORIGIN,
    NUCLEI,
    Protocol,
)


class MapsMissing(RuntimeError):
    """The tissue maps are not at hand; the message says how to get them."""


def load_tissue_maps(archive: Path | None = None) -> dict[str, np.ndarray]:
    """ICBM152 T1, grey and white matter at 1 mm, (z, y, x) within 0..1.

    Read from ``archive`` (an .npz with (x, y, z) arrays ``t1 gm wm`` of 0..255) or from the
    nilearn package, which carries the images and is not imported.

    Raises
    ------
    MapsMissing
        Neither is there.
    """
    if archive is not None:
        if not archive.is_file():
            raise MapsMissing(f"{archive}: not there. Leave --maps out to read nilearn's maps.")
        with np.load(archive) as stored:
            images = {name: stored[name] for name in MAP_NAMES}
    else:
        found = importlib.util.find_spec("nilearn")
        if found is None or not found.submodule_search_locations:
            raise MapsMissing(
                "The tissue maps come with nilearn, which is not installed. Install it with "
                "pip install 'nilearn>=0.12,<0.14' (the 'templates' extra), or give --maps."
            )
        folder = Path(found.submodule_search_locations[0]) / "datasets" / "data"
        files = {
            n: folder / f"mni_icbm152_{n}_tal_nlin_sym_09a_converted.nii.gz" for n in MAP_NAMES
        }
        missing = [str(path) for path in files.values() if not path.is_file()]
        if missing:
            raise MapsMissing(f"This nilearn lacks {missing[0]}; version 0.12 or 0.13 has it.")
        images = {name: np.asarray(nib.load(path).dataobj) for name, path in files.items()}
    maps = {
        name: np.ascontiguousarray(image.T).astype(np.float32) / 255
        for name, image in images.items()
    }
    return {"t1": maps["t1"], "tissue": np.stack([maps["gm"], maps["wm"], _fluid(maps)])}


def _fluid(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Cerebrospinal fluid, with the sulci that averaging 152 brains washed out made deep again."""
    inside = maps["t1"] > 0.05
    left = np.clip(1 - maps["gm"] - maps["wm"], 0, 1) * inside
    return np.where(inside, np.clip(3 * left - 2 * ndimage.gaussian_filter(left, 3.5), 0, 1), 1)


class Grid(NamedTuple):
    """A grid along the image axes: shape (z, y, x), spacing and first centre (x, y, z) in mm."""

    shape: tuple[int, int, int]
    spacing: np.ndarray
    first: np.ndarray

    def axes(self) -> list[np.ndarray]:
        """Centres along x, y, z, shaped to broadcast over (z, y, x)."""
        n = self.shape[::-1]
        lines = [self.first[i] + self.spacing[i] * np.arange(n[i]) for i in range(3)]
        return [lines[0][None, None, :], lines[1][None, :, None], lines[2][:, None, None]]

    def index(self, points: np.ndarray) -> np.ndarray:
        """Fractional (z, y, x) indices (3, n) of points (n, 3)."""
        return ((np.atleast_2d(points) - self.first) / self.spacing).T[::-1]


def smooth_noise(rng: np.random.Generator, grid: Grid, length_mm: float) -> np.ndarray:
    """Gaussian random field of unit variance, correlated over about ``length_mm``."""
    step = np.maximum(length_mm / 2.5 / grid.spacing[::-1], 1.0)
    small = tuple(int(np.ceil(n / s)) + 2 for n, s in zip(grid.shape, step, strict=True))
    noise = ndimage.gaussian_filter(rng.standard_normal(small).astype(np.float32), 1.0)
    noise /= noise.std()
    where = [np.linspace(0, n - 1, m) for n, m in zip(small, grid.shape, strict=True)]
    for axis, line in enumerate(where):  # separable cubic interpolation
        noise = _resample_axis(noise, axis, line)
    return noise.astype(np.float32)


def _resample_axis(image: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """Catmull-Rom interpolation of one axis at fractional indices."""
    base = np.floor(places).astype(int)
    t = (places - base).astype(np.float32)
    weights = (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (t**3 - t**2) / 2,
    )
    shape = [1] * image.ndim
    shape[axis] = -1
    last = image.shape[axis] - 1
    return sum(
        np.take(image, np.clip(base + k - 1, 0, last), axis=axis) * w.reshape(shape)
        for k, w in enumerate(weights)
    )


def sample(volumes: np.ndarray, coordinates: Sequence[torch.Tensor]) -> torch.Tensor:
    """Trilinear values of 1 mm MNI volumes (n, z, y, x) at MNI coordinates x, y, z."""
    size = volumes.shape[:0:-1]
    placed = [
        (c - float(o)).mul_(2 / (n - 1)).sub_(1)
        for c, o, n in zip(coordinates, MAP_ORIGIN, size, strict=True)
    ]
    grid = torch.stack(placed, dim=-1)[None]
    source = torch.from_numpy(volumes)[None]
    return tf.grid_sample(source, grid, align_corners=True, padding_mode="border")[0]


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation matrix; angles in degrees about z, x and y."""
    a, b, c = np.deg2rad([yaw, pitch, roll])
    rz = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    ry = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    return rz @ rx @ ry


def ellipsoid(
    mni: Sequence[np.ndarray], centre: Sequence[float], radii: Sequence[float],
    yaw: float = 0.0, pitch: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Roughly the signed distance (mm) from an ellipsoid, negative inside."""
    turn = rotation(yaw, pitch, 0).T
    offset = [m - c for m, c in zip(mni, centre, strict=True)]
    turned = [sum(turn[i, j] * offset[j] for j in range(3)) for i in range(3)]
    scaled = np.sqrt(sum((t / r) ** 2 for t, r in zip(turned, radii, strict=True)))
    return ((scaled - 1) * min(radii)).astype(np.float32)


@dataclass
class Anatomy:
    """One participant's head on the coarse grid, and the way between MNI and image mm."""

    grid: Grid
    inner: tuple[slice, slice, slice]  # the part whose corners are the fine grid's corners
    mni: list[np.ndarray]
    linear: np.ndarray
    layers: dict[str, np.ndarray] = field(default_factory=dict)

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Image mm (n, 3) of MNI points (n, 3): the deformation inverted by fixed point."""
        target = np.atleast_2d(np.asarray(points, dtype=float))
        inverse = np.linalg.inv(self.linear)
        place = target @ inverse.T
        for _ in range(12):
            reached = np.stack([self.at(m, place) for m in self.mni], axis=1)
            place = place - (reached - target) @ inverse.T
        return place

    def box(self, centre: Sequence[float], reach_mm: float) -> tuple[slice, slice, slice]:
        """The coarse voxels within ``reach_mm`` of an MNI point."""
        index = self.grid.index(self.to_image(np.array([centre])))[:, 0]
        far = reach_mm * 1.1 / self.grid.spacing[::-1]
        z, y, x = (
            slice(int(max(0, i - f)), int(max(0, i + f)) + 2)
            for i, f in zip(index, far, strict=True)
        )
        return z, y, x

    def at(self, volume: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Values of a coarse volume at image points (n, 3)."""
        return ndimage.map_coordinates(volume, self.grid.index(points), order=1, mode="nearest")


def build_grids(protocol: Protocol, slices: int) -> tuple[Grid, Grid, tuple[slice, slice, slice]]:
    """The fine simulation grid, and the coarse grid of the whole head that holds its corners."""
    extra = int(np.ceil(EXTRA_SLICES_MM / protocol.voxel[2]))
    counts = [
        2 * round(protocol.field_of_view[0] / protocol.voxel[0] / 2),
        2 * round(protocol.field_of_view[1] / protocol.voxel[1] / 2),
        slices + 2 * extra,
    ]
    extent = np.array(counts) * protocol.voxel
    n = [sfft.next_fast_len(round(c * f)) for c, f in zip(counts, protocol.fine, strict=True)]
    spacing = extent / n
    fine = Grid((n[2], n[1], n[0]), spacing, -(np.array(n) - 1) / 2 * spacing)
    reach = (np.array(n) - 1) * spacing
    inner = np.round(reach / COARSE_MM).astype(int) + 1
    step = reach / (inner - 1)
    # The head goes on beyond the slab: its air spaces disturb the field from there.
    pad = np.maximum(np.ceil((np.array([200.0, 240, 250]) - reach) / 2 / step), 2).astype(int)
    m = inner + 2 * pad
    coarse = Grid((m[2], m[1], m[0]), step, fine.first - pad * step)
    place = [slice(p, p + k) for p, k in zip(pad, inner, strict=True)]
    return fine, coarse, (place[2], place[1], place[0])


def build_anatomy(
    rng: np.random.Generator, grid: Grid, inner: tuple[slice, slice, slice],
    maps: dict[str, np.ndarray], age: float,
) -> Anatomy:  # fmt: skip
    """Deform the template and wrap it in a cavity, skull, scalp, face and air spaces."""
    scale = rng.normal(0.925, 0.02) * (1 + rng.normal(0, 0.02, 3))
    turn = rotation(*rng.normal(0, (4, 5, 3)))
    linear = np.diag(1 / scale) @ turn
    middle = np.array([0, -20, 5]) + rng.normal(0, (1.5, 3, 4))
    x, y, z = grid.axes()
    mni = []
    for i in range(3):
        straight = linear[i, 0] * x + linear[i, 1] * y + linear[i, 2] * z + middle[i]
        bent = 2.6 * smooth_noise(rng, grid, 38) + 0.9 * smooth_noise(rng, grid, 15)
        mni.append((straight + bent).astype(np.float32))
    anatomy = Anatomy(grid, inner, mni, linear)
    _add_shells(rng, anatomy, maps)
    _add_tissue(rng, anatomy, maps, age)
    return anatomy


def _distance_from_brain(template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance (mm) from the closed template brain on a padded 2 mm grid, and its origin."""
    brain = np.pad(template[::2, ::2, ::2] > 0.05, 28)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=3))
    distance = ndimage.distance_transform_edt(~brain) - ndimage.distance_transform_edt(brain)
    return ndimage.gaussian_filter((2 * distance).astype(np.float32), 0.8), MAP_ORIGIN - 56


def _add_shells(rng: np.random.Generator, anatomy: Anatomy, maps: dict[str, np.ndarray]) -> None:
    """Signed distances (mm) from the cavity, skull, head and air spaces; fat and vitreous."""
    mni, grid = anatomy.mni, anatomy.grid
    distance, origin = _distance_from_brain(maps["t1"])
    index = [(mni[i] - origin[i]) / 2 for i in (2, 1, 0)]
    brain = ndimage.map_coordinates(distance, index, order=1, mode="nearest")
    gap = rng.uniform(1.2, 3.0) + 0.7 * smooth_noise(rng, grid, 45)
    gap += 1.5 * np.clip(mni[2] / 80, 0, 1)
    cavity = brain - np.maximum(gap, 0.6)
    temporal = np.exp(-(((np.abs(mni[0]) - 68) / 18) ** 2 + ((mni[2] + 8) / 28) ** 2))
    thick = rng.uniform(5.5, 8) + 1.1 * smooth_noise(rng, grid, 30) - 3 * temporal
    skull = cavity - np.maximum(thick, 2.2)
    scalp = rng.uniform(4.5, 8.0) + 0.7 * smooth_noise(rng, grid, 40) + 6 * temporal
    face = ellipsoid(mni, (0, 36, -62), (62 * rng.uniform(0.9, 1.05), 56, 70))
    neck = np.sqrt((mni[0] / 60) ** 2 + ((mni[1] + 30) / 62) ** 2) - 1
    neck = np.maximum(60 * neck, mni[2] + 55)
    head = np.minimum(np.minimum(skull - np.maximum(scalp, 2), face), neck)
    air = np.full(grid.shape, 50, np.float32)
    for side in (-1, 1):
        for centre, radii in AIR_SPACES:
            size = np.array(radii) * rng.uniform(0.7, 1.2)
            place = np.array(centre) * (side, 1, 1) + rng.normal(0, 1.5, 3)
            box = anatomy.box(place, size.max() + 12)
            near = ellipsoid([m[box] for m in mni], place, size)
            air[box] = np.minimum(air[box], near)
    air += 0.9 * smooth_noise(rng, grid, 8)
    air = np.maximum(np.maximum(air, 1.4 - cavity), head + 2.0)
    fat = np.clip(0.85 + 0.25 * smooth_noise(rng, grid, 12), 0, 1)
    fat *= 1 - 0.8 * temporal
    eye = np.full(grid.shape, 50, np.float32)
    for side in (-1, 1):
        box = anatomy.box((31 * side, 50, -34), 45)
        near = [m[box] for m in mni]
        fat[box][ellipsoid(near, (29 * side, 46, -34), (16, 24, 15)) < 0] = 1.0
        eye[box] = np.minimum(eye[box], ellipsoid(near, (33 * side, 60, -35), (12, 12, 12)))
    anatomy.layers.update(
        brain=brain, cavity=cavity, skull=skull, head=head, air=air, fat=fat, eye=eye
    )


def _add_tissue(
    rng: np.random.Generator, anatomy: Anatomy, maps: dict[str, np.ndarray], age: float
) -> None:
    """Iron, texture and boundary noise, and the tissue fractions on the coarse grid."""
    mni, grid, layers = anatomy.mni, anatomy.grid, anatomy.layers
    iron = np.zeros(grid.shape, np.float32)
    ageing = np.clip(0.35 + age / 80, 0.5, 1.35) * rng.uniform(0.85, 1.15)
    wobble = 0.7 * smooth_noise(rng, grid, 7)
    for name, (centre, radii, yaw, pitch, chi) in NUCLEI.items():
        amount = chi * rng.uniform(0.8, 1.25) * (1.0 if name == "thalamus" else ageing)
        for side in (-1, 1):
            place = np.array(centre) * (side, 1, 1) + rng.normal(0, 0.5, 3)
            box = anatomy.box(place, max(radii) + 5)
            near = [m[box] for m in mni]
            shape = ellipsoid(near, place, radii, -side * yaw, pitch) + wobble[box]
            inside = np.clip(0.5 - shape / 1.8, 0, 1)
            if name == "dentate":  # a folded ribbon, hollow inside
                inside *= np.clip(0.75 + shape / 4, 0.25, 1)
            if name == "putamen":  # iron gathers behind and outside
                inside *= np.clip(1 - (near[1] - centre[1]) / 25, 0.4, 1.6)
            iron[box] = np.maximum(iron[box], amount * inside)
    layers["iron"] = iron * np.clip(1 + 0.15 * smooth_noise(rng, grid, 4), 0.4, 1.6)
    layers["edge"] = smooth_noise(rng, grid, 5) + 0.6 * smooth_noise(rng, grid, COARSE_MM * 2)
    layers["texture"] = smooth_noise(rng, grid, 22) + 0.7 * smooth_noise(rng, grid, 4.5)
    layers["atrophy"] = np.full(
        grid.shape, np.clip(0.9 + (age - 40) / 70 + rng.normal(0, 0.15), 0.65, 1.7), np.float32
    )
    fractions = tissue_fractions(maps, [torch.from_numpy(m) for m in mni], layers)
    for name, fraction in zip(("grey", "white", "csf"), fractions, strict=True):
        layers[name] = fraction.numpy()


def tissue_fractions(
    maps: dict[str, np.ndarray], mni: Sequence[torch.Tensor], layers: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grey, white and CSF fractions: averaged maps made crisp, their edges made personal."""
    edge = torch.as_tensor(layers["edge"])
    grey, white, csf = sample(maps["tissue"], mni)
    solid = (1 - csf) / (grey + white).clamp(min=0.05)
    grey, white, csf = grey * solid, white * solid, csf * torch.as_tensor(layers["atrophy"])
    powers = [
        (grey + 0.10 * edge * (grey * 4).clamp(max=1)).clamp(min=0).square().square(),
        (white - 0.06 * edge * (white * 4).clamp(max=1)).clamp(min=0).square().square(),
        (csf - 0.16 * edge * (csf * 4).clamp(max=1)).clamp(min=0).square().square() + 1e-6,
    ]
    total = powers[0] + powers[1] + powers[2]
    return powers[0] / total, powers[1] / total, powers[2] / total
