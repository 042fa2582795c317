"""Brain mask, bias-corrected magnitude and region labels of one scan.

A whole-head template is registered to the magnitude (N4, then affine from several starts and
SyN, all by ANTs on a grid of about 3 mm, mutual information because T2*-weighted and
T1-weighted contrasts differ). Its brain mask and region atlas are carried over. A gate on volume
and coverage decides whether the result can be trusted to count in; outside it, a
signal-threshold mask stands in and no region is named.

N4: Tustison et al., IEEE Trans Med Imaging 2010;29:1310-1320. SyN: Avants et al., Med Image Anal
2008;12:26-41. The template's making is described in ``data/README.md``.
"""

from __future__ import annotations

import math
import os
import random
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_bids.head import block_mean, coarse_steps, core_of_head, head_mask
from cmb_bids.intensity import clean_magnitude, normalize_magnitude
from cmb_bids.volumes import voxel_sizes, voxel_to_world, world_to_voxel

TEMPLATE_MASK_LEVEL = 0.5
# The bias field is smooth: 6 mm voxels give the same one as 3 mm in a tenth of the time.
BIAS_SHRINK = 2
# A field of view thinner than this in any direction holds no head to register.
MINIMUM_EXTENT_MM = 70.0
# Below this share of the brain's median a surface voxel is mostly bone, air or a void.
SIGNAL_FRACTION = 0.4
REFINEMENT_MM = 6.0
# A microbleed on the surface, up to 10 mm wide and 15 mm on the coarse grid, takes less than this
# share of the surface within this distance.
SPOT_MM = 12.0
SPOT_SHARE = 0.5
# Nodding is what differs most between positionings; each start is a rotation in degrees (x, z).
STARTS_DEG = ((0, 0), (-25, 0), (25, 0), (0, 25), (0, -25))
# Iterations at twice the working voxel, then at the working voxel.
SYN_ITERATIONS = (40, 10)
# With ANTs' usual 0.2 so few iterations stop short of the edge of brains unlike the template's.
SYN_STEP = 0.3
BRAIN_MARGIN_MM = 15.0
# Affine from each start, and from there on.
QUICK_SHRINK = (4,)
AFFINE_SHRINK = (4, 2)
HISTOGRAM_BINS = 32
# Dice of a given mask and the carried one below which the carried regions are not believed.
MINIMUM_AGREEMENT = 0.8


@dataclass(frozen=True)
class BrainConfig:
    """Settings of the brain stage; the section ``brain`` of the configuration.

    Attributes
    ----------
    working_resolution_mm : float
        Voxel size at which bias field and registration are estimated.
    minimum_volume_ml, maximum_volume_ml : float
        Range of a brain volume that needs no second look.
    small_head_volume_ml : float
        A smaller mask is believed down to this volume, with a warning: some heads are small, and a
        mask that has lost a part of the brain says so (``brain_left_out_share``).
    large_head_volume_ml, large_head_overlap : float
        A larger mask is believed up to this volume, with a warning, where the heads overlap by this
        Dice or more: some people's heads are large, and a mask that ran into the scalp is larger.
    minimum_coverage : float
        Smallest share of the template's brain inside the field of view.
    minimum_head_overlap : float
        Smallest Dice coefficient of template head and scanned head inside the field of view.
    """

    working_resolution_mm: float = 3.0
    minimum_volume_ml: float = 1000.0
    maximum_volume_ml: float = 1900.0
    small_head_volume_ml: float = 900.0
    large_head_volume_ml: float = 2200.0
    large_head_overlap: float = 0.9
    minimum_coverage: float = 0.8
    minimum_head_overlap: float = 0.75


class BrainResult(NamedTuple):
    """What the brain stage makes of one scan, all on the scan's grid."""

    mask: np.ndarray
    normalized: np.ndarray
    regions: np.ndarray
    report: dict[str, Any]


class Template(NamedTuple):
    """Whole head, brain mask, regions (x, y, z), their affine, and the affine to MNI space."""

    head: np.ndarray
    mask: np.ndarray
    regions: np.ndarray
    affine: np.ndarray
    to_mni: np.ndarray


class Registration(NamedTuple):
    """Template coordinates of the scan's coarse grid.

    ``points`` (x, y, z, 3) are template world mm per coarse voxel; ``coverage`` is the share of
    the template brain inside the field of view; ``overlap`` the Dice of the two heads;
    ``matrix`` the affine part, scan to template world.
    """

    points: np.ndarray
    coverage: float
    overlap: float
    matrix: np.ndarray


# ---------------------------------------------------------------- template


@lru_cache(maxsize=1)
def load_template() -> Template:
    """The shipped head template; read once per process."""
    folder = files("cmb_bids") / "data"
    arrays = []
    affine = np.eye(4)
    for name in ("head", "mask", "regions"):
        with as_file(folder / f"template_{name}.nii.gz") as path:
            image: Any = nib.load(path)
            arrays.append(np.asarray(image.dataobj))
            affine = image.affine
    to_mni = np.loadtxt((folder / "template_to_mni.txt").read_text().splitlines())
    head, mask, regions = arrays
    return Template(head.astype(np.float32), mask > 0, regions.astype(np.int16), affine, to_mni)


# ---------------------------------------------------------------- small helpers


def _ants() -> Any:
    """ANTs, held to one thread: its threaded metrics sum in an order that changes the result."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    import ants

    return ants


def _register(seed: int, *arguments: Any, **settings: Any) -> list[str]:
    """Files of the forward transforms that ``ants.registration`` finds, from a fixed seed.

    ANTs takes the seed from a global setting only (its ``random_seed`` argument is swallowed),
    and that setting also reseeds numpy, whose state is the caller's and is put back.
    """
    ants = _ants()
    numpy_state, state = np.random.get_state(), random.getstate()  # noqa: NPY002
    ants.config.set_ants_deterministic(True, seed_value=seed)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(state)
    return list(ants.registration(*arguments, **settings)["fwdtransforms"])


def _to_ants(data: np.ndarray, affine: np.ndarray) -> Any:
    """An ANTs image (LPS) of an (x, y, z) array and its RAS affine; shear is dropped."""
    flip = np.diag([-1.0, -1.0, 1.0])
    sizes = voxel_sizes(affine)
    left, _, right = np.linalg.svd(affine[:3, :3] / sizes)
    return _ants().from_numpy(
        np.ascontiguousarray(data, dtype=np.float32),
        origin=[float(v) for v in flip @ affine[:3, 3]],
        spacing=[float(v) for v in sizes],
        direction=flip @ (left @ right),
    )


def _coarse_affine(affine: np.ndarray, steps: tuple[int, int, int]) -> np.ndarray:
    """Affine of the grid whose voxels are blocks of ``steps`` voxels."""
    out = np.array(affine, dtype=float)
    out[:3, :3] = affine[:3, :3] * np.asarray(steps)
    out[:3, 3] = voxel_to_world(affine, (np.asarray(steps) - 1) / 2)[0]
    return out


def _interpolation_matrix(fine: int, coarse: int, step: int) -> np.ndarray:
    """Weights (fine, coarse) of linear interpolation from block centres, constant past the ends."""
    position = np.clip((np.arange(fine) - (step - 1) / 2) / step, 0, coarse - 1)
    low = np.minimum(position.astype(int), max(coarse - 2, 0))
    weight = position - low
    matrix = np.zeros((fine, coarse), np.float32)
    rows = np.arange(fine)
    matrix[rows, low] = 1 - weight
    matrix[rows, np.minimum(low + 1, coarse - 1)] += weight
    return matrix


def _enlarge(coarse: np.ndarray, steps: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Coarse (x, y, z) array interpolated linearly onto the full grid, float32."""
    out = coarse.astype(np.float32, copy=False)
    for axis, (n, step) in enumerate(zip(shape, steps, strict=True)):
        if step > 1:
            matrix = _interpolation_matrix(n, out.shape[axis], step)
            out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def _ball(radius_mm: float, sizes_mm: np.ndarray) -> np.ndarray:
    """Structuring element of all voxels within ``radius_mm``."""
    reach = np.floor(radius_mm / sizes_mm).astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), axis=-1)
    return ((grid * sizes_mm) ** 2).sum(axis=-1) <= radius_mm**2 + 1e-6


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2.0 * float((first & second).sum()) / total if total else 0.0


def _volume_ml(mask: np.ndarray, affine: np.ndarray) -> float:
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def resample_mask(
    mask: np.ndarray, mask_affine: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> np.ndarray:
    """A mask on another grid, nearest neighbour through scanner space.

    Parameters
    ----------
    mask : (x, y, z) array
        Non-zero inside.
    mask_affine, affine : (4, 4) arrays
        Voxel to scanner mm of the mask and of the wanted grid.
    shape : (3,) int
        Wanted grid.

    Returns
    -------
    (x, y, z) boolean array
    """
    inside = np.nan_to_num(mask) > 0
    if inside.shape == tuple(shape) and np.allclose(mask_affine, affine, atol=1e-3):
        return inside
    matrix = np.linalg.inv(mask_affine) @ affine
    moved = ndimage.affine_transform(
        inside.astype(np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1
    )
    return moved > 0.5


# ---------------------------------------------------------------- bias field


def bias_field(coarse: np.ndarray, coarse_affine: np.ndarray, head: np.ndarray) -> np.ndarray:
    """N4 bias field of a coarse magnitude, mean 1 (geometric) inside the head.

    Parameters
    ----------
    coarse : (x, y, z) float32 array
        Magnitude, about 3 mm.
    coarse_affine : (4, 4) array
    head : (x, y, z) boolean array
        Where there is signal.

    Returns
    -------
    (x, y, z) float32 array, on the same grid
    """
    field = (
        _ants()
        .n4_bias_field_correction(
            _to_ants(coarse, coarse_affine),
            mask=_to_ants(head, coarse_affine),
            shrink_factor=BIAS_SHRINK,
            convergence={"iters": [30, 20, 10], "tol": 1e-4},
            spline_param=[1, 1, 1],
            return_bias_field=True,
        )
        .numpy()
    )
    logarithm = np.log(np.clip(field, 1e-3, 1e3))
    logarithm -= logarithm[head].mean()
    # Far outside the head the spline extrapolates wildly; nothing there needs correcting by more.
    low, high = np.percentile(logarithm[head], [0.5, 99.5])
    return np.exp(np.clip(logarithm, low, high)).astype(np.float32)


# ---------------------------------------------------------------- registration


def register_template(
    coarse: np.ndarray,
    coarse_affine: np.ndarray,
    head: np.ndarray,
    template: Template,
    brain_only: bool = False,
    seed: int = 1,
    start: np.ndarray | None = None,
) -> Registration:
    """Find template coordinates for every voxel of a coarse scan.

    Parameters
    ----------
    coarse : (x, y, z) float32 array
        Bias-corrected magnitude; already stripped if ``brain_only``.
    coarse_affine : (4, 4) array
    head : (x, y, z) boolean array
        Scanned head (the brain, if ``brain_only``).
    template : Template
    brain_only : bool
        Register the template's brain instead of its head.
    seed : int
        Of the random sampling of the metric.
    start : (4, 4) array, optional
        Scan to template world, to begin from; otherwise several starts are tried.

    Returns
    -------
    Registration
    """
    top = float(np.percentile(coarse[head], 99)) if head.any() else 1.0
    fixed = _to_ants(np.minimum(coarse, top) / max(top, 1e-12), coarse_affine)
    steps = coarse_steps(voxel_sizes(template.affine))
    visible = template.head * (template.mask if brain_only else 1)
    moving_affine = _coarse_affine(template.affine, steps)
    moving_array = block_mean(visible, steps)
    moving = _to_ants(moving_array, moving_affine)
    silhouette = moving_array > 0.1 * np.percentile(moving_array, 98)
    with tempfile.TemporaryDirectory(prefix="cmb-brain-") as folder:
        centres = _centroid(head, coarse_affine), _centroid(silhouette, moving_affine)
        if start is None:
            begin = _best_start(
                fixed, moving, coarse_affine, head, moving_affine, centres, folder, seed
            )
        else:
            begin = _write_affine(start, centres[0], f"{folder}/start.mat")
        affine_file = _affine(fixed, moving, begin, f"{folder}/affine_", seed, AFFINE_SHRINK)
        matrix = _read_affine(affine_file)
        overlap = _head_overlap(head, coarse_affine, silhouette, moving_affine, matrix)
        points = voxel_grid_points(coarse.shape, matrix @ coarse_affine)
        box = _brain_box(template, matrix, coarse.shape, coarse_affine)
        if box is not None:
            # Deforming costs most by far, per voxel: only the brain and what borders it deform.
            near, near_affine = _cut(fixed.numpy(), coarse_affine, box)
            displacement = _deform(_to_ants(near, near_affine), moving, affine_file, folder, seed)
            points[box] = voxel_grid_points(near.shape, near_affine) + displacement
    coverage = _coverage(template, matrix, coarse.shape, coarse_affine)
    return Registration(points.astype(np.float32), coverage, overlap, matrix)


def _deform(fixed: Any, moving: Any, affine_file: str, folder: str, seed: int) -> np.ndarray:
    """SyN after an affine: displacement (x, y, z, 3) in RAS mm from fixed to moving points."""
    transforms = _register(
        seed,
        fixed,
        moving,
        "SyNOnly",
        initial_transform=[affine_file],
        syn_metric="mattes",
        syn_sampling=32,
        grad_step=SYN_STEP,
        reg_iterations=SYN_ITERATIONS,
        outprefix=f"{folder}/syn",
    )
    ants = _ants()
    composed = ants.apply_transforms(fixed, moving, transforms, compose=f"{folder}/all")
    return ants.image_read(composed).numpy() * np.array([-1.0, -1.0, 1.0])


def _brain_voxels(template: Template, matrix: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Voxel coordinates in the scan of a sparse sample of the template brain, by the affine."""
    brain = voxel_to_world(template.affine, np.argwhere(template.mask[::4, ::4, ::4]) * 4)
    return world_to_voxel(affine, voxel_to_world(np.linalg.inv(matrix), brain))


def _brain_box(
    template: Template, matrix: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> tuple[slice, ...] | None:
    """Box of the scan that holds the template brain and a margin; None if hardly anything does."""
    voxels = _brain_voxels(template, matrix, affine)
    margin = BRAIN_MARGIN_MM / voxel_sizes(affine)
    low = np.maximum(np.floor(voxels.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(voxels.max(axis=0) + margin) + 1, shape).astype(int)
    if (high - low < 8).any():
        return None
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def _cut(
    image: np.ndarray, affine: np.ndarray, box: tuple[slice, ...]
) -> tuple[np.ndarray, np.ndarray]:
    moved = np.array(affine, dtype=float)
    moved[:3, 3] = voxel_to_world(affine, np.array([b.start for b in box]))[0]
    return image[box], moved


def voxel_grid_points(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """World mm (x, y, z, 3) of every voxel."""
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def _centroid(mask: np.ndarray, affine: np.ndarray, depth_mm: float = 150.0) -> np.ndarray:
    """World centre of a head's upper part, so that a long neck does not pull it down."""
    points = voxel_to_world(affine, np.argwhere(mask))
    if points.size == 0:
        return voxel_to_world(affine, (np.asarray(mask.shape) - 1) / 2)[0]
    top = np.percentile(points[:, 2], 99.5)
    return points[points[:, 2] > top - depth_mm].mean(axis=0)


def _start(rotation_deg: tuple[float, float], fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Matrix from scan to template world (RAS): rotate about x then z, centre on centre."""
    nod, turn = np.deg2rad(rotation_deg)
    cosine, sine = np.cos(nod), np.sin(nod)
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    cosine, sine = np.cos(turn), np.sin(turn)
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x
    matrix[:3, 3] = moving - matrix[:3, :3] @ fixed
    return matrix


_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _write_affine(matrix: np.ndarray, centre: np.ndarray, path: str) -> str:
    """Write a RAS world matrix as an ITK transform with its centre of rotation in the head."""
    ants = _ants()
    lps, centre = _LPS @ matrix @ _LPS, _LPS[:3, :3] @ centre
    offset = lps[:3, 3] + lps[:3, :3] @ centre - centre
    transform = ants.create_ants_transform(
        transform_type="AffineTransform",
        dimension=3,
        matrix=lps[:3, :3],
        translation=offset,
        center=centre,
    )
    ants.write_transform(transform, path)
    return path


def _read_affine(path: str) -> np.ndarray:
    """RAS world matrix of an ITK affine transform."""
    transform = _ants().read_transform(path)
    origin = np.array(transform.apply_to_point((0.0, 0.0, 0.0)))
    columns = [np.array(transform.apply_to_point(tuple(unit))) - origin for unit in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.array(columns).T, origin
    return _LPS @ matrix @ _LPS


def _affine(
    fixed: Any, moving: Any, begin: str, prefix: str, seed: int, shrink: tuple[int, ...]
) -> str:
    """File of the affine that ANTs finds from the one in ``begin``, coarse to fine."""
    [file] = _register(
        seed,
        fixed,
        moving,
        "Affine",
        initial_transform=begin,
        aff_metric="mattes",
        aff_sampling=32,
        aff_random_sampling_rate=0.5,
        aff_iterations=(100,) * len(shrink),
        aff_shrink_factors=shrink,
        aff_smoothing_sigmas=tuple(factor // 2 for factor in shrink),
        outprefix=prefix,
    )
    return file


def _best_start(
    fixed: Any,
    moving: Any,
    fixed_affine: np.ndarray,
    head: np.ndarray,
    moving_affine: np.ndarray,
    centres: tuple[np.ndarray, np.ndarray],
    folder: str,
    seed: int,
) -> str:
    """File of the quick affine, of one from each start, under which scan and template agree most.

    By mutual information (nats) and the Dice of the template's brain and what looks like brain
    without any registration. The outlines of the heads would not do to choose by: a field of view
    that ends at the skull base is filled as well by a head that is tilted and too large. Nor does
    what the images tell by itself: a template squeezed into the upper half of a head may tell more
    than one that is turned a little.
    """
    near = ndimage.binary_dilation(head, iterations=2)
    scan = ndimage.gaussian_filter(fixed.numpy(), 1)[near]
    core, _ = core_of_head(fixed.numpy(), head, voxel_sizes(fixed_affine))
    template, visible = load_template(), moving.numpy()
    best, most = "", -math.inf
    for number, rotation in enumerate(STARTS_DEG):
        begin = _write_affine(_start(rotation, *centres), centres[0], f"{folder}/{number}.mat")
        file = _affine(fixed, moving, begin, f"{folder}/quick{number}_", seed, QUICK_SHRINK)
        to_template = _read_affine(file) @ fixed_affine
        seen = _carried(visible, moving_affine, to_template, near.shape)
        brain = _carried(template.mask, template.affine, to_template, near.shape) > 0.5
        agrees = _mutual_information(scan, ndimage.gaussian_filter(seen, 1)[near])
        agrees += _dice(brain, core)
        if agrees > most:
            best, most = file, agrees
    return best


def _carried(
    image: np.ndarray,
    affine: np.ndarray,
    to_world: np.ndarray,
    shape: tuple[int, ...],
    beyond: float = 0.0,
) -> np.ndarray:
    """An image on the grid whose voxels ``to_world`` (4, 4) takes to the image's world.

    ``beyond`` is what it holds where the image does not reach.
    """
    chain = np.linalg.inv(affine) @ to_world
    return ndimage.affine_transform(
        image.astype(np.float32), chain[:3, :3], chain[:3, 3], shape, order=1, cval=beyond
    )


def _mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Mutual information of two samples, in nats."""
    joint = np.histogram2d(first, second, bins=HISTOGRAM_BINS)[0] / max(first.size, 1)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / apart[filled])).sum())


def _head_overlap(
    head: np.ndarray,
    affine: np.ndarray,
    silhouette: np.ndarray,
    template_affine: np.ndarray,
    matrix: np.ndarray,
) -> float:
    """Dice of the scanned head and the template's, where both fields of view reach."""
    carried = _carried(silhouette, template_affine, matrix @ affine, head.shape, beyond=-1)
    seen = carried >= 0
    return _dice(head & seen, carried > 0.5)


def _coverage(
    template: Template, matrix: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> float:
    """Share of the template brain that falls inside the field of view."""
    voxels = _brain_voxels(template, matrix, affine)
    inside = ((voxels >= -0.5) & (voxels <= np.asarray(shape) - 0.5)).all(axis=1)
    return float(inside.mean())


def sample_template(
    image: np.ndarray,
    template_affine: np.ndarray,
    points: np.ndarray,
    steps: tuple[int, int, int],
    shape: tuple[int, ...],
    order: int,
) -> np.ndarray:
    """A template image at the template coordinates of a scan's full grid.

    Parameters
    ----------
    image : (x, y, z) array
        In template space.
    points : (x', y', z', 3) array
        Template world mm of every coarse voxel.
    steps, shape : (3,) int
        Coarse block size and the scan's full grid.
    order : int
        0 nearest neighbour, 1 linear.

    Returns
    -------
    (x, y, z) array
    """
    inverse = np.linalg.inv(template_affine)
    voxels = points @ inverse[:3, :3].T.astype(np.float32) + inverse[:3, 3].astype(np.float32)
    full = [_enlarge(voxels[..., axis], steps, shape) for axis in range(3)]
    kind = image.dtype if order == 0 else np.float32
    source = image if order == 0 else image.astype(np.float32)
    out = np.zeros(shape, kind)
    # In slabs: three coordinate arrays in float64 would cost 24 bytes a voxel.
    for first in range(0, shape[0], 32):
        slab = slice(first, first + 32)
        ndimage.map_coordinates(source, [c[slab] for c in full], output=out[slab], order=order)
    return out


def _affine_fit(points: np.ndarray, inside: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Least-squares matrix from scan world to template world over the voxels inside."""
    where = np.argwhere(inside)
    world = np.c_[voxel_to_world(affine, where), np.ones(len(where))]
    solution, *_ = np.linalg.lstsq(world, points[inside].astype(float), rcond=None)
    matrix = np.eye(4)
    matrix[:3] = solution.T
    return matrix


# ---------------------------------------------------------------- mask


def refine_mask(brain: np.ndarray, coarse: np.ndarray, sizes_mm: np.ndarray) -> np.ndarray:
    """Trim a carried brain mask to where there is signal; coarse grid.

    Dark voxels leave only where they are joined to the outside (bone, air, signal lost above the
    sinuses), and most of the surface round them leaves too: dark spots inside the brain or on it,
    which may be what the whole tool looks for, stay.
    """
    if not brain.any():
        return brain
    median = float(np.median(coarse[brain]))
    lit = brain & (coarse > SIGNAL_FRACTION * median)
    lit = _largest(ndimage.binary_opening(lit, _ball(4.0, sizes_mm)))
    pad = [(int(n),) * 2 for n in np.ceil(REFINEMENT_MM / sizes_mm)]
    closed = ndimage.binary_closing(np.pad(lit, pad), _ball(REFINEMENT_MM, sizes_mm))
    closed = closed[tuple(slice(p[0], n - p[1]) for p, n in zip(pad, closed.shape, strict=True))]
    kept = ndimage.binary_fill_holes(closed) & brain
    return _largest(kept | _spots(brain, kept, sizes_mm))


def _spots(brain: np.ndarray, kept: np.ndarray, sizes_mm: np.ndarray) -> np.ndarray:
    """What of the brain is not kept although most of the surface over it is."""
    # The image's edge is no surface.
    surface = brain & ~ndimage.binary_erosion(brain, border_value=1)
    ball = _ball(SPOT_MM, sizes_mm).astype(np.float32)
    around, lost = (
        ndimage.convolve(part.astype(np.float32), ball, mode="constant")
        for part in (surface, surface & ~kept)
    )
    mostly_lost = lost > SPOT_SHARE * around
    if not (surface & mostly_lost).any():
        return brain & ~kept
    to_lost, to_kept = (
        ndimage.distance_transform_edt(~part, sampling=sizes_mm)
        for part in (surface & mostly_lost, surface & ~mostly_lost)
    )
    return brain & ~kept & (to_kept < to_lost)


def signal_mask(magnitude: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where there is signal: the stand-in when no brain can be outlined."""
    if not (magnitude > 0).any():
        return np.zeros(magnitude.shape, bool)
    mask, _ = head_mask(magnitude, voxel_sizes(affine))
    return mask


def field_of_view_problem(
    shape: tuple[int, ...], affine: np.ndarray, config: BrainConfig
) -> str | None:
    """Why this field of view cannot hold a brain, in words; None if it can."""
    extent = np.asarray(shape) * voxel_sizes(affine)
    volume = float(np.prod(extent) / 1000)
    least = _least_volume_ml(config)
    if volume < least or extent.min() < MINIMUM_EXTENT_MM:
        size = " x ".join(f"{e:.0f}" for e in extent)
        return (
            f"the field of view ({size} mm, {volume:.0f} ml) cannot hold a whole brain "
            f"(at least {least:.0f} ml)"
        )
    return None


def _least_volume_ml(config: BrainConfig) -> float:
    """Of a mask that can pass."""
    return min(config.minimum_volume_ml, config.small_head_volume_ml)


def gate(
    volume_ml: float, coverage: float | None, overlap: float | None, config: BrainConfig
) -> str | None:
    """Why a mask cannot be trusted, in words; None if it passes.

    Parameters
    ----------
    volume_ml : float
    coverage, overlap : float or None
        See `Registration`; None where there was no registration.
    """
    reasons = []
    least = _least_volume_ml(config)
    if volume_ml < least:
        reasons.append(_not_within(volume_ml, "below", least))
    largest = config.maximum_volume_ml
    if overlap is None or overlap >= config.large_head_overlap:
        largest = max(largest, config.large_head_volume_ml)
    if volume_ml > largest:
        reasons.append(_not_within(volume_ml, "above", largest))
    if coverage is not None and coverage < config.minimum_coverage:
        reasons.append(
            f"only {coverage:.0%} of the brain is inside the field of view "
            f"(at least {config.minimum_coverage:.0%} are needed)"
        )
    if overlap is not None and overlap < config.minimum_head_overlap:
        reasons.append(
            f"the head template does not fit (overlap {overlap:.2f}, "
            f"at least {config.minimum_head_overlap:.2f} is needed)"
        )
    return "; ".join(reasons) or None


def doubt(volume_ml: float, config: BrainConfig) -> str | None:
    """What to look at in a mask that passed its gate, in words; None if there is nothing."""
    if volume_ml > config.maximum_volume_ml:
        return (
            f"{_not_within(volume_ml, 'above', config.maximum_volume_ml)}: a large head, or a mask "
            "with more than brain in it"
        )
    if volume_ml < config.minimum_volume_ml:
        return (
            f"{_not_within(volume_ml, 'below', config.minimum_volume_ml)}: a small head, or a mask "
            "that has lost a part of the brain"
        )
    return None


def _not_within(volume_ml: float, side: str, limit_ml: float) -> str:
    return f"brain mask volume {volume_ml:.0f} ml is {side} {limit_ml:.0f} ml"


# ---------------------------------------------------------------- the stage


def extract_brain(
    magnitude: np.ndarray,
    affine: np.ndarray,
    config: BrainConfig | None = None,
    given_mask: np.ndarray | None = None,
    random_seed: int = 0,
) -> BrainResult:
    """Brain mask, normalized magnitude and regions of one scan.

    Parameters
    ----------
    magnitude : (x, y, z) array
        Any scale; not finite and negative values count as 0.
    affine : (4, 4) array
        Voxel to scanner mm.
    config : BrainConfig, optional
    given_mask : (x, y, z) array, optional
        A brain mask from elsewhere on the same grid; used as it is.
    random_seed : int

    Returns
    -------
    BrainResult
        ``mask`` boolean, ``normalized`` float32 (1 is the median of the brain), ``regions`` int16
        (atlas labels; all 0 where the gate failed), ``report``: ``volume_ml``, ``coverage`` (share
        of the brain inside the field of view), ``head_overlap``, ``share_of_head`` (mask over
        head volume), ``gate`` (pass or fail), ``reason``, ``warning`` (where it passed, but should
        be looked at), ``source`` (registration, derivatives, signal), ``mni_affine`` (scanner mm to
        MNI mm, 4 x 4, or None).

    Raises
    ------
    ValueError
        The given mask is empty or on another grid.
    """
    config = config or BrainConfig()
    image = clean_magnitude(magnitude)
    given = _checked_mask(given_mask, image.shape)
    problem = field_of_view_problem(image.shape, affine, config)
    steps = coarse_steps(voxel_sizes(affine), config.working_resolution_mm)
    coarse = block_mean(image, steps)
    coarse_affine = _coarse_affine(affine, steps)
    head = coarse > 0
    if head.any():
        head = head_mask(image, voxel_sizes(affine))[0]
        head = block_mean(head.astype(np.float32), steps) > 0.5
    if problem is None and head.sum() * abs(np.linalg.det(coarse_affine[:3, :3])) < 1e5:
        problem = "the image holds no head (too little signal)"
    if problem is not None:
        return _without_registration(image, affine, given, problem)

    bias = bias_field(coarse, coarse_affine, head)
    coarse = coarse / bias
    outline = None if given is None else block_mean(given.astype(np.float32), steps) > 0.5
    if outline is None and _looks_stripped(coarse, head, coarse_affine, config):
        outline = head
    registration = register_template(
        coarse if outline is None else coarse * outline,
        coarse_affine,
        head if outline is None else outline,
        load_template(),
        brain_only=outline is not None,
        seed=1 + random_seed,
    )
    full_bias = np.exp(_enlarge(np.log(bias), steps, image.shape))
    return _carry_over(
        image,
        affine,
        full_bias,
        coarse,
        coarse_affine,
        head,
        registration,
        steps,
        given,
        config,
        1 + random_seed,
    )


def _checked_mask(given: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if given is None:
        return None
    if given.shape != shape:
        raise ValueError(f"given mask has shape {given.shape}, the magnitude {shape}")
    inside = np.nan_to_num(given) > 0
    if not inside.any():
        raise ValueError("given mask is empty")
    return inside


def _looks_stripped(
    coarse: np.ndarray, head: np.ndarray, affine: np.ndarray, config: BrainConfig
) -> bool:
    """Whether the skull was removed already: exact zeros round a brain-sized object."""
    return bool(
        (coarse == 0).mean() > 0.3
        and (coarse[~ndimage.binary_dilation(head, iterations=2)] == 0).mean() > 0.99
        and _volume_ml(head, affine) < config.large_head_volume_ml
    )


def _without_registration(
    image: np.ndarray, affine: np.ndarray, given: np.ndarray | None, problem: str
) -> BrainResult:
    mask = signal_mask(image, affine) if given is None else given
    report = {
        "volume_ml": round(_volume_ml(mask, affine), 1),
        "coverage": None,
        "head_overlap": None,
        "share_of_head": None,
        "gate": "fail",
        "reason": problem,
        "source": "signal" if given is None else "derivatives",
        "mni_affine": None,
    }
    regions = np.zeros(image.shape, np.int16)
    return BrainResult(mask, normalize_magnitude(image, mask), regions, report)


def _carry_over(
    image: np.ndarray,
    affine: np.ndarray,
    bias: np.ndarray,
    coarse: np.ndarray,
    coarse_affine: np.ndarray,
    head: np.ndarray,
    registration: Registration,
    steps: tuple[int, int, int],
    given: np.ndarray | None,
    config: BrainConfig,
    seed: int,
) -> BrainResult:
    """Carry mask and regions to the scan, pass them through the gate, and write the report."""
    template = load_template()

    def sample(found: Registration, values: np.ndarray, order: int) -> np.ndarray:
        return sample_template(values, template.affine, found.points, steps, image.shape, order)

    carried = sample(registration, template.mask, 1) > TEMPLATE_MASK_LEVEL
    outline = block_mean(carried.astype(np.float32), steps) > 0.5
    if given is None:
        refined = refine_mask(outline, coarse, voxel_sizes(coarse_affine))
        trimmed = (outline & ~refined).astype(np.float32)
        # Where nothing is trimmed the carried mask draws the edge, finer than the coarse grid.
        mask = _largest(carried & (_enlarge(trimmed, steps, image.shape) < 0.5))
        outline = refined
    else:
        mask = given
    volume = _volume_ml(mask, affine)
    overlap = registration.overlap if given is None else None
    reason = gate(volume, registration.coverage, overlap, config)
    source = "registration" if given is None else "derivatives"
    regions, mni_affine = np.zeros(image.shape, np.int16), None
    believed = reason is None if given is None else _dice(given, carried) >= MINIMUM_AGREEMENT
    if believed:
        if given is None:
            # Scalp and skull decided the first fit; without them the brain's inside decides.
            registration = register_template(
                coarse * outline,
                coarse_affine,
                outline,
                template,
                brain_only=True,
                seed=seed,
                start=registration.matrix,
            )._replace(coverage=registration.coverage, overlap=registration.overlap)
        regions = sample(registration, template.regions, 0) * mask
        fit = _affine_fit(registration.points, outline, coarse_affine)
        mni_affine = np.round(template.to_mni @ fit, 6).tolist()
    if reason is not None and given is None:
        mask, source = signal_mask(image, affine), "signal"
    report = {
        "volume_ml": round(volume, 1),
        "coverage": round(registration.coverage, 4),
        "head_overlap": round(registration.overlap, 4),
        "share_of_head": round(volume / max(_volume_ml(head, coarse_affine), 1e-6), 4),
        "gate": "pass" if reason is None else "fail",
        "reason": reason or "",
        "warning": "" if reason else doubt(volume, config) or "",
        "source": source,
        "mni_affine": mni_affine,
    }
    normalized = normalize_magnitude(image, mask, bias)
    return BrainResult(mask, normalized, regions.astype(np.int16), report)
