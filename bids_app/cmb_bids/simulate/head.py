"""The head model: its asset, its labels, and how one subject's head is made from it.

The asset is one adult head at 1 mm: a tissue class and a region id per voxel, and a *tissue
level* that runs continuously from cerebrospinal fluid (0) through grey to white matter (1).
Boundaries come from the level, interpolated and then sharpened, so a simulated image on any
grid has smooth outlines, not the blocks of a label image. ``tools/build_simulation_head.py``
makes it.

Three frames are used: *template* (mm of the asset), *world* (scanner RAS+ mm) and *box* (mm
along the acquisition axes, origin at the centre of the field of view).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numba
import numpy as np
from scipy import ndimage

TISSUES = {
    name: label
    for label, name in enumerate(
        [
            "air",
            "fat",
            "soft",
            "skull",
            "csf",
            "ventricle",
            "grey",
            "white",
            "caudate",
            "putamen",
            "pallidum",
            "thalamus",
            "red_nucleus",
            "substantia_nigra",
            "dentate",
            "brainstem",
            "cerebellum_grey",
            "cerebellum_white",
            "sinus_air",
            "choroid_plexus",
            "pineal",
            "falx",
        ]
    )
}
OUTSIDE = ("air", "fat", "soft", "skull", "sinus_air")
NUCLEI_SUSCEPTIBILITY_PPM = {
    "caudate": 0.04,
    "putamen": 0.045,
    "pallidum": 0.13,
    "thalamus": 0.01,
    "red_nucleus": 0.10,
    "substantia_nigra": 0.11,
    "dentate": 0.12,
}
OUTSIDE_SIGNAL = {"fat": 1.4, "soft": 0.60, "skull": 0.12, "air": 0.0, "sinus_air": 0.0}
DISPLACEMENT_SPACING_MM = 6.0
LEVEL_STEPS = 20.0
CHANNELS = 7


@dataclass(frozen=True)
class HeadModel:
    """The asset, unpacked. All arrays (x, y, z) on one 1 mm grid with ``affine``."""

    tissue: np.ndarray
    region: np.ndarray
    level: np.ndarray
    outside_intensity: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @property
    def origin_mm(self) -> np.ndarray:
        return self.affine[:3, 3]


@lru_cache(maxsize=1)
def load_head() -> HeadModel:
    """Read the head model from the package (cached)."""
    path = resources.files("cmb_bids") / "data" / "simulation_head.npz"
    with resources.as_file(path) as file, np.load(file, allow_pickle=False) as stored:
        tissue, region, coded = stored["tissue"], stored["region"], stored["level"]
        affine = stored["affine"]
        brain = np.unpackbits(stored["brain"], count=tissue.size).reshape(tissue.shape)
    intracranial = ~np.isin(tissue, [TISSUES[name] for name in OUTSIDE])
    level = np.where(brain > 0, coded / LEVEL_STEPS, 0).astype(np.float32)
    level[~intracranial] = 0
    # The stored steps are coarse; this blur is finer than the cortex and hides them.
    level = ndimage.gaussian_filter(level, 0.45)
    outside = np.where(intracranial, 0, coded / 6.0).astype(np.float32)
    return HeadModel(tissue, region, level, outside, brain.astype(bool), affine)


@dataclass(frozen=True)
class Pose:
    """Where a head lies: template mm to world mm, and the smooth displacement inside it.

    ``displacement`` (x, y, z, 3) in mm maps a point q of the affinely placed head (template
    coordinates) to the template point q + displacement(q) whose tissue is found there.
    """

    template_to_world: np.ndarray
    displacement: np.ndarray
    displacement_origin_mm: np.ndarray
    displacement_spacing_mm: float


def smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian random field of unit standard deviation, smooth over `sigma` voxels."""
    field = ndimage.gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap"
    )
    return field / max(float(field.std()), 1e-6)


def make_displacement(
    head: HeadModel, rng: np.random.Generator, amplitude_mm: float, ventricles_mm: float
) -> np.ndarray:
    """Random smooth displacement plus enlargement of the ventricles.

    Sampling nearer to the ventricles' middle than where one is makes them larger.
    """
    spacing = DISPLACEMENT_SPACING_MM
    shape = tuple(int(np.ceil(n / spacing)) + 4 for n in head.tissue.shape)
    wide = [smooth_noise(shape, 4.0, rng) for _ in range(3)]
    narrow = [smooth_noise(shape, 2.2, rng) for _ in range(3)]
    field = np.stack([0.8 * a + 0.35 * b for a, b in zip(wide, narrow, strict=True)], axis=-1)
    field *= amplitude_mm
    if ventricles_mm:
        inside = (head.tissue == TISSUES["ventricle"]).astype(np.float32)
        blurred = ndimage.gaussian_filter(inside[::2, ::2, ::2], 3.0)
        slopes = np.stack(np.gradient(blurred), axis=-1)
        slopes *= ventricles_mm / np.abs(slopes).max()
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
        where = (grid - 2) * (spacing / 2.0)
        for axis in range(3):
            field[..., axis] += ndimage.map_coordinates(slopes[..., axis], where, order=1)
    return field.astype(np.float32)


@numba.njit(inline="always")
def _trilinear(volume, x, y, z, out):
    """Interpolate all channels of `volume` (x, y, z, c) at voxel position; clamped at edges."""
    nx, ny, nz, channels = volume.shape
    x = min(max(x, 0.0), nx - 1.001)
    y = min(max(y, 0.0), ny - 1.001)
    z = min(max(z, 0.0), nz - 1.001)
    i, j, k = int(x), int(y), int(z)
    u, v, w = np.float32(x - i), np.float32(y - j), np.float32(z - k)
    one = np.float32(1.0)
    w000, w001 = (one - u) * (one - v) * (one - w), (one - u) * (one - v) * w
    w010, w011 = (one - u) * v * (one - w), (one - u) * v * w
    w100, w101 = u * (one - v) * (one - w), u * (one - v) * w
    w110, w111 = u * v * (one - w), u * v * w
    for c in range(channels):
        out[c] = (
            w000 * volume[i, j, k, c]
            + w001 * volume[i, j, k + 1, c]
            + w010 * volume[i, j + 1, k, c]
            + w011 * volume[i, j + 1, k + 1, c]
            + w100 * volume[i + 1, j, k, c]
            + w101 * volume[i + 1, j, k + 1, c]
            + w110 * volume[i + 1, j + 1, k, c]
            + w111 * volume[i + 1, j + 1, k + 1, c]
        )


@numba.njit(parallel=True, cache=True)
def _sample_labels(tissue, region, brain, to_template, displacement, origin, spacing, shape):
    """Nearest tissue class, region id and brain membership on a grid."""
    nx, ny, nz = shape
    out_tissue = np.zeros((nx, ny, nz), np.uint8)
    out_region = np.zeros((nx, ny, nz), np.uint8)
    out_brain = np.zeros((nx, ny, nz), np.bool_)
    tx, ty, tz = tissue.shape
    for i in numba.prange(nx):
        shift = np.zeros(3, np.float32)
        for j in range(ny):
            for k in range(nz):
                px, py, pz = _place(to_template, i, j, k)
                _trilinear(
                    displacement,
                    (px - origin[0]) / spacing,
                    (py - origin[1]) / spacing,
                    (pz - origin[2]) / spacing,
                    shift,
                )
                a = int(np.round(px + shift[0]))
                b = int(np.round(py + shift[1]))
                c = max(int(np.round(pz + shift[2])), 0)
                if 0 <= a < tx and 0 <= b < ty and c < tz:
                    out_tissue[i, j, k] = tissue[a, b, c]
                    if pz + shift[2] > -0.5:
                        out_region[i, j, k] = region[a, b, c]
                        out_brain[i, j, k] = brain[a, b, c]
    return out_tissue, out_region, out_brain


@numba.njit(inline="always")
def _place(matrix, i, j, k):
    px = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + matrix[0, 3]
    py = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + matrix[1, 3]
    pz = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3]
    return px, py, pz


def grid_to_template_voxel(head: HeadModel, pose: Pose, grid_affine: np.ndarray) -> np.ndarray:
    """Voxel of a grid (its `grid_affine` to world mm) to template voxel, before displacement."""
    return np.linalg.inv(pose.template_to_world @ head.affine) @ grid_affine


def sample_labels(
    head: HeadModel, pose: Pose, grid_affine: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tissue class, region id and brain mask of the posed head on a grid (nearest neighbour).

    Below the lowest slice of the model the neck goes on unchanged (no brain there).
    """
    return _sample_labels(
        head.tissue,
        head.region,
        head.brain,
        grid_to_template_voxel(head, pose, grid_affine),
        pose.displacement,
        _displacement_origin(head, pose),
        pose.displacement_spacing_mm,
        shape,
    )


def _displacement_origin(head: HeadModel, pose: Pose) -> np.ndarray:
    return pose.displacement_origin_mm - head.origin_mm


@dataclass(frozen=True)
class TissueContrast:
    """What each tissue does in this subject at this field strength (SI; ppm).

    Signals are proton density times steady-state (T1) weighting; rates are R2* in 1/s.
    """

    signal_csf: float
    signal_grey: float
    signal_white: float
    rate_csf: float
    rate_grey: float
    rate_white: float
    rate_outside: float
    susceptibility_csf: float
    susceptibility_grey: float
    susceptibility_white: float
    rate_per_nucleus_ppm: float
    fluid_threshold: float

    def as_array(self) -> np.ndarray:
        names = self.__dataclass_fields__
        return np.array([getattr(self, name) for name in names], dtype=np.float32)


def ventricle_walls(head: HeadModel) -> np.ndarray:
    """Where fluid borders on white matter: no grey matter lies between, whatever the level."""
    ventricle = head.tissue == TISSUES["ventricle"]
    nuclei = np.isin(head.tissue, [TISSUES["caudate"], TISSUES["thalamus"]])
    near = ndimage.binary_dilation(ventricle, iterations=3) & ~nuclei
    return ndimage.gaussian_filter(near.astype(np.float32), 0.7)


def tissue_channels(
    head: HeadModel, iron: dict[str, float], rng: np.random.Generator, texture: float
) -> np.ndarray:
    """Continuous maps (x, y, z, 7) of one subject on the template grid.

    Channels: tissue level, intracranial share, signal outside the brain, susceptibility of
    nuclei (ppm), fine texture of the signal, broad texture of R2* (both relative), nearness to
    a ventricle's wall (0 to 1).
    """
    shape = head.tissue.shape
    channels = np.empty((*shape, CHANNELS), np.float32)
    for channel, volume in _constant_channels().items():
        channels[..., channel] = volume
    table = np.zeros(len(TISSUES), np.float32)
    for name, susceptibility in iron.items():
        table[TISSUES[name]] = susceptibility
    channels[..., 3] = ndimage.gaussian_filter(table[head.tissue], 0.6)
    channels[..., 4] = texture * smooth_noise(shape, 0.9, rng)
    broad = smooth_noise(tuple(n // 4 + 2 for n in shape), 1.5, rng)
    zoomed = ndimage.zoom(broad, 4, order=1)[: shape[0], : shape[1], : shape[2]]
    channels[..., 5] = 0.07 * zoomed
    # Sampling beyond the model repeats its outermost voxels: air, but for the neck below.
    channels[[0, -1]] = 0
    channels[:, [0, -1]] = 0
    channels[:, :, -1] = 0
    return channels


@lru_cache(maxsize=1)
def _constant_channels() -> dict[int, np.ndarray]:
    """The channels that are the same for every subject."""
    head = load_head()
    intracranial = ~np.isin(head.tissue, [TISSUES[name] for name in OUTSIDE])
    table = np.zeros(len(TISSUES), np.float32)
    for name, signal in OUTSIDE_SIGNAL.items():
        table[TISSUES[name]] = signal
    outside = table[head.tissue] * (0.55 + 0.45 * np.clip(head.outside_intensity, 0, 1.5))
    share = np.maximum(ndimage.gaussian_filter((~intracranial).astype(np.float32), 0.5), 1e-3)
    return {
        0: head.level,
        1: ndimage.gaussian_filter(intracranial.astype(np.float32), 0.5),
        2: ndimage.gaussian_filter(outside, 0.5) / share,
        6: ventricle_walls(head),
    }


@numba.njit(inline="always")
def _smoothstep(x):
    x = min(max(x, np.float32(0.0)), np.float32(1.0))
    return x * x * (np.float32(3.0) - np.float32(2.0) * x)


# No fastmath: the first process, which compiles, would differ from later ones in last digits.
@numba.njit(parallel=True, cache=True)
def _fill_tissue(
    channels, occupied, to_template, displacement, origin, spacing, p, signal, rate, chi
):
    nx, ny, nz = signal.shape
    ox, oy, oz = occupied.shape
    one = np.float32(1.0)
    for i in numba.prange(nx):
        shift = np.zeros(3, np.float32)
        c = np.zeros(CHANNELS, np.float32)
        for j in range(ny):
            for k in range(nz):
                px, py, pz = _place(to_template, i, j, k)
                # Air far from the head needs no interpolation. Below the model the neck goes on.
                a = int(np.floor(px / 4))
                b = int(np.floor(py / 4))
                d = max(int(np.floor(pz / 4)), 0)
                if not (0 <= a < ox and 0 <= b < oy and d < oz) or not occupied[a, b, d]:
                    signal[i, j, k] = np.float32(0.0)
                    rate[i, j, k] = p[6]
                    chi[i, j, k] = np.float32(0.0)
                    continue
                _trilinear(
                    displacement,
                    (px - origin[0]) / spacing,
                    (py - origin[1]) / spacing,
                    (pz - origin[2]) / spacing,
                    shift,
                )
                _trilinear(channels, px + shift[0], py + shift[1], pz + shift[2], c)
                share = c[1]
                level = c[0]
                if share > 0.02:
                    # Level is diluted where the intracranial share is partial: undo, or the rim
                    # of the brain would look like fluid twice.
                    fluid = one - _smoothstep((level - p[11]) * np.float32(4.0))
                    white = _smoothstep((level - np.float32(0.72)) * np.float32(6.0))
                    white = white * (one - fluid)
                    grey = (one - white - fluid) * (one - c[6])
                    white = one - grey - fluid
                    s = fluid * p[0] + grey * p[1] + white * p[2]
                    r = fluid * p[3] + (grey * p[4] + white * p[5]) * (one + c[5])
                    r += c[3] * p[10]
                    texture = one + c[4] * (one - fluid)
                    signal[i, j, k] = share * s * texture + (one - share) * c[2] * p[1]
                    rate[i, j, k] = share * r + (one - share) * p[6]
                    chi[i, j, k] = share * (fluid * p[7] + grey * p[8] + white * p[9] + c[3])
                else:
                    signal[i, j, k] = c[2] * p[1] * (one + np.float32(2.0) * c[4])
                    rate[i, j, k] = p[6]
                    chi[i, j, k] = np.float32(0.0)


def pad_to_blocks(mask: np.ndarray, block: int = 4) -> np.ndarray:
    """Whether each block of voxels holds any of the mask."""
    padded = np.pad(mask, [(0, -n % block) for n in mask.shape])
    x, y, z = (n // block for n in padded.shape)
    return np.asarray(padded.reshape(x, block, y, block, z, block).max(axis=(1, 3, 5)))


def fill_tissue(
    head: HeadModel,
    pose: Pose,
    channels: np.ndarray,
    contrast: TissueContrast,
    grid_affine: np.ndarray,
    shape: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal, R2* (1/s) and susceptibility (ppm) of the posed head on a grid, float32.

    Fractions of fluid, grey and white matter follow from the interpolated level, so partial
    volume is right on any grid. ``contrast.fluid_threshold`` widens the sulci (atrophy).
    """
    maps = (np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32))
    # Blocks of 4 mm with tissue nearby, with room for the displacement.
    near = pad_to_blocks(head.tissue != TISSUES["air"])
    occupied = ndimage.binary_dilation(near, ndimage.generate_binary_structure(3, 3), 4)
    _fill_tissue(
        channels,
        occupied,
        grid_to_template_voxel(head, pose, grid_affine),
        pose.displacement,
        _displacement_origin(head, pose),
        pose.displacement_spacing_mm,
        contrast.as_array(),
        *maps,
    )
    return maps


def template_to_world(pose: Pose, points_mm: np.ndarray) -> np.ndarray:
    """Carry template points (n, 3) to world mm: the displacement inverted by iteration."""
    points = np.asarray(points_mm, dtype=np.float64)
    placed = points.copy()
    for _ in range(6):
        where = ((placed - pose.displacement_origin_mm) / pose.displacement_spacing_mm).T
        shift = np.stack(
            [
                ndimage.map_coordinates(
                    pose.displacement[..., axis], where, order=1, mode="nearest"
                )
                for axis in range(3)
            ],
            axis=-1,
        )
        placed = points - shift
    return placed @ pose.template_to_world[:3, :3].T + pose.template_to_world[:3, 3]
