"""What a proposed place looks like: the features candidates are ranked by.

Each feature is one number per place, bounded and without a unit, so that a ranking learnt on some
scans holds on others: depths are against the local noise, shapes are ratios, the dipole's match
is a correlation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from cmb_bids.frst import Sizes, smoothed

FAINTEST_SYMMETRY = 3e-3  # symmetry below this is noise and counts the same
GREATEST_DEPTH = 60.0  # times the noise; deeper than this is no more likely a lesion
SYMMETRY_REACH_MM = 1.2  # a place takes the best symmetry this near
DEEPEST_RIM_MM, FARTHEST_RIM_MM = -10.0, 3.0  # beyond, the distance to the mask says nothing

SURROUNDINGS_MM = (1.2, 2.0, 3.0, 4.5, 6.5, 8.0)  # where the surroundings of a place are looked at
FIELD_RINGS_MM = (1.2, 2.0, 3.5)  # across the field, where the phase round a place is looked at

DIPOLE_REACH_MM = 5.0
DIPOLE_WINDOW_MM = 2.8  # Gaussian weight round the place
DIPOLE_CORES_MM = (0.9, 1.8)  # radii inside which the source lies and the pattern does not hold
DIPOLE_SAMPLES = (3, 3, 5)  # per voxel, for the average over it
THICK_MM = 1.4  # along thicker voxels the source is tried at thirds of the voxel
SHAPE_REACH_MM = 2.2


class Contrast(NamedTuple):
    """One image that places were looked for in, all (x, y, z) float32."""

    name: str
    image: np.ndarray
    symmetry: np.ndarray
    radius_mm: np.ndarray


class PhaseAround(NamedTuple):
    """What the dipole's match needs, on the scan's own grid.

    ``phase`` and ``inside`` (x, y, z): high-passed phase in radians, wrapped or not, and the
    brain; ``voxel_sizes_mm`` (3,); ``field`` (3,): the main field's direction along the axes.
    """

    phase: np.ndarray
    inside: np.ndarray
    voxel_sizes_mm: np.ndarray
    field: np.ndarray


def _ball_directions(pairs: int = 32) -> np.ndarray:
    """Unit vectors (2 pairs, 3) spread evenly over the sphere (Fibonacci).

    The second half are the opposites of the first.
    """
    steps = np.arange(pairs) + 0.5
    height = 1 - steps / pairs
    angle = np.pi * (1 + 5**0.5) * steps
    ring = np.sqrt(1 - height**2)
    half = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    return np.concatenate([half, -half])


def neighbourhood(radius_mm: float, voxel_sizes_mm: np.ndarray) -> np.ndarray:
    """Boolean ball (a, b, c) of the voxels within ``radius_mm``; at least the voxel itself."""
    half = np.floor(radius_mm / voxel_sizes_mm).astype(int)
    axes = [np.arange(-h, h + 1) * size for h, size in zip(half, voxel_sizes_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return x**2 + y**2 + z**2 <= radius_mm**2


def _local_noise(detail: np.ndarray, noise: float, voxel_sizes_mm: np.ndarray) -> np.ndarray:
    """Spread (x, y, z) of the fine detail within about 6 mm, edges held back to 6 times noise.

    A shallow dark spot in even white matter is worth more than the same among sulci.
    """
    limited = np.minimum(detail**2, (6 * noise) ** 2)
    spread = np.sqrt(smoothed(limited, voxel_sizes_mm, 6.0))
    return np.maximum(spread, 0.3 * noise)


def _depth_features(
    name: str, image: np.ndarray, places: np.ndarray, voxel_sizes_mm: np.ndarray, brain: np.ndarray
) -> Mapping[str, np.ndarray]:
    """How dark each place is against its surroundings, in logarithms of the local noise.

    The core is the darkest voxel within 1 mm. The surroundings are 64 directions at several
    distances, never nearer than a slice. ``depth`` is against their mean, ``enclosed`` against the
    darkest twentieth of them (a vessel goes on and encloses nothing), the best distance counting;
    ``depth_*mm`` against the mean at one distance; ``line_*mm`` against the darkest line through
    the place, of whose two ends the brighter one is taken: a vessel that passes has such a line, a
    lesion beside one has not. Outside the brain the brain's local mean stands in: a cortical
    lesion beside the dark skull is as enclosed as any other, and the skull itself is not deep.
    """
    smooth = smoothed(fill_outside(image, brain, voxel_sizes_mm), voxel_sizes_mm, 0.5)
    detail = smooth - smoothed(smooth, voxel_sizes_mm, 3.0)
    noise = max(1.4826 * float(np.median(np.abs(detail[brain]))), 1e-6)
    local = sample(_local_noise(detail, noise, voxel_sizes_mm), places)
    darkest = ndimage.minimum_filter(
        smooth,
        footprint=neighbourhood(1.0, voxel_sizes_mm),
        mode="nearest",
    )
    core = sample(darkest, places)
    directions = _ball_directions()
    features: dict[str, np.ndarray] = {}
    deepest, enclosed = np.zeros(len(places)), np.zeros(len(places))
    for distance in SURROUNDINGS_MM:
        reach = np.maximum(distance, 1.1 * voxel_sizes_mm) / voxel_sizes_mm
        around = (sample(smooth, places[:, None, :] + directions * reach) - core[:, None]) / (
            local[:, None]
        )
        one_end, other_end = np.split(around, 2, axis=1)
        mean, line = around.mean(axis=1), np.maximum(one_end, other_end).min(axis=1)
        features[f"depth_{distance:g}mm_{name}"] = _compressed(mean)
        features[f"line_{distance:g}mm_{name}"] = _compressed(line)
        deepest = np.maximum(deepest, mean)
        enclosed = np.maximum(enclosed, np.quantile(around, 0.05, axis=1))
    return {
        f"depth_{name}": _compressed(deepest),
        f"enclosed_{name}": _compressed(enclosed),
        **features,
    }


def _compressed(depth: np.ndarray) -> np.ndarray:
    """Logarithm that keeps the sign and does not tell the deepest apart."""
    return np.sign(depth) * np.log1p(np.minimum(np.abs(depth), GREATEST_DEPTH))


def _phase_features(around: PhaseAround, places: np.ndarray) -> Mapping[str, np.ndarray]:
    """Phase at each place and round it: the sine, so that wraps do no harm.

    ``phase_centre``; ``phase_ring_*mm``, the mean over a ring across the field, where a sphere's
    own field opposes what it has along the field; ``phase_line_*mm``, the line across the field
    whose weaker end is strongest: a vessel goes on; ``phase_pole_*``, along the field at one and
    two voxels, and 2 mm at least.
    """
    sizes = around.voxel_sizes_mm
    sine = np.sin(around.phase) * around.inside
    seed = np.eye(3)[np.abs(around.field).argmin()]
    first = np.cross(around.field, seed)
    first /= np.linalg.norm(first)
    second = np.cross(around.field, first)
    angles = np.pi * np.arange(8) / 8
    half = np.outer(np.cos(angles), first) + np.outer(np.sin(angles), second)
    across = np.concatenate([half, -half])
    features = {"phase_centre": sample(sine, places)}
    for distance in FIELD_RINGS_MM:
        ring = sample(sine, places[:, None, :] + across * distance / sizes)
        one_end, other_end = np.split(ring, 2, axis=1)
        weaker = np.where(np.abs(one_end) < np.abs(other_end), one_end, other_end)
        weaker = np.where(one_end * other_end > 0, weaker, 0)
        strongest = np.abs(weaker).argmax(axis=1)
        features[f"phase_ring_{distance:g}mm"] = ring.mean(axis=1)
        features[f"phase_line_{distance:g}mm"] = weaker[np.arange(len(places)), strongest]
    along = float(np.abs(around.field) @ sizes)  # a voxel's length along the field
    for steps in (1, 2):
        distance = max(steps * along, 2.0 * steps)
        poles = np.stack([around.field, -around.field]) * distance / sizes
        features[f"phase_pole_{steps}"] = sample(sine, places[:, None, :] + poles).mean(axis=1)
    return features


def fill_outside(
    image: np.ndarray, inside: np.ndarray, voxel_sizes_mm: Sizes, sigma_mm: float = 4.0
) -> np.ndarray:
    """Replace everything outside a mask by the local mean of what is inside.

    Otherwise the mask's own edge, or the dark skull behind it, makes round dark objects.
    """
    weight = smoothed(inside.astype(np.float32), voxel_sizes_mm, sigma_mm)
    local = smoothed(np.where(inside, image, 0), voxel_sizes_mm, sigma_mm)
    everywhere = float(image[inside].mean()) if inside.any() else 0.0
    mean = np.where(weight > 1e-3, local / np.maximum(weight, 1e-3), everywhere)
    return np.where(inside, image, mean).astype(np.float32)


def sample(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Linear interpolation at ``places`` (..., 3) in voxels."""
    flat = places.reshape(-1, 3).T
    return ndimage.map_coordinates(image, flat, order=1, mode="nearest").reshape(places.shape[:-1])


def _ball_offsets(radius_mm: float, voxel_sizes_mm: np.ndarray) -> np.ndarray:
    """Voxel offsets (m, 3) within ``radius_mm``."""
    return np.argwhere(neighbourhood(radius_mm, voxel_sizes_mm)) - np.floor(
        radius_mm / voxel_sizes_mm
    ).astype(int)


def dipole_pattern(
    offsets: np.ndarray,
    source: np.ndarray,
    voxel_sizes_mm: np.ndarray,
    field: np.ndarray,
    core_mm: float,
) -> np.ndarray:
    """Field of a small magnetised sphere, (3 cos^2 - 1) / r^3, averaged over each voxel.

    Parameters
    ----------
    offsets : (m, 3) array
        Voxels.
    source : (3,) array
        Where the sphere is, voxels.
    voxel_sizes_mm : (3,) array
    field : (3,) array
        Direction of the main field along the voxel axes, of length 1.
    core_mm : float
        Within this radius the pattern is zero.

    Returns
    -------
    (m,) array
        Per mm^3.
    """
    steps = [(np.arange(n) - (n - 1) / 2) / n for n in DIPOLE_SAMPLES]
    inner = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    points = (offsets[:, None, :] - source + inner) * voxel_sizes_mm
    distance = np.linalg.norm(points, axis=-1)
    cosine = (points @ field) / np.maximum(distance, 1e-6)
    pattern = (3 * cosine**2 - 1) / np.maximum(distance, core_mm) ** 3
    return np.where(distance > core_mm, pattern, 0).mean(axis=1)


def dipole_match(around: PhaseAround, places: np.ndarray) -> pd.DataFrame:
    """How much the phase round each place looks like the dipole of a small source.

    Weighted least squares of the sine of the phase (wraps inside a strong lesion then stay
    bounded) on `dipole_pattern`, a constant and a slope, in a Gaussian window.

    Parameters
    ----------
    around : PhaseAround
    places : (n, 3) array
        Voxels of the scan, fractional.

    Returns
    -------
    DataFrame
        ``correlation`` (n,), signed: positive where the source is paramagnetic; ``amplitude``
        (n,) in rad mm^3; ``spread`` (n,), the phase's in the window without its slope, rad.
    """
    sizes = around.voxel_sizes_mm
    offsets = _ball_offsets(DIPOLE_REACH_MM, sizes)
    centres = np.rint(places).astype(int)
    index = np.clip(centres[:, None, :] + offsets, 0, np.array(around.phase.shape) - 1)
    where = (index[..., 0], index[..., 1], index[..., 2])
    values = np.sin(around.phase[where].astype(np.float32))
    squared = ((offsets * sizes) ** 2).sum(axis=1)
    window = np.exp(-squared / (2 * DIPOLE_WINDOW_MM**2)).astype(np.float32)
    weights = window * around.inside[where]
    slopes = np.column_stack([np.ones(len(offsets)), offsets * sizes / DIPOLE_REACH_MM])
    slopes = slopes.astype(np.float32)
    normal = np.einsum("ov,no,ou->nvu", slopes, weights, slopes, optimize=True)
    normal += 1e-3 * np.eye(4, dtype=np.float32)

    def without_slope(signal: np.ndarray) -> np.ndarray:
        right = (weights * signal) @ slopes
        return signal - np.linalg.solve(normal, right[..., None])[..., 0] @ slopes.T

    values = without_slope(values)
    energy = (weights * values**2).sum(axis=1)
    correlation, amplitude = np.zeros(len(places)), np.zeros(len(places))
    for core in DIPOLE_CORES_MM:
        pattern = without_slope(_patterns(offsets, places - centres, around, core))
        power = (weights * pattern**2).sum(axis=1)
        product_ = (weights * pattern * values).sum(axis=1)
        found = product_ / np.sqrt(np.maximum(power * energy, 1e-12))
        better = np.abs(found) > np.abs(correlation)
        correlation = np.where(better, found, correlation)
        amplitude = np.where(better, product_ / np.maximum(power, 1e-9), amplitude)
    spread = np.sqrt(energy / np.maximum(weights.sum(axis=1), 1e-6))
    return pd.DataFrame({"correlation": correlation, "amplitude": amplitude, "spread": spread})


def _patterns(
    offsets: np.ndarray, beside: np.ndarray, around: PhaseAround, core_mm: float
) -> np.ndarray:
    """The pattern (n, m) for sources ``beside`` (n, 3) their voxel's centre, in thirds."""
    thirds = [(-1 / 3, 0.0, 1 / 3) if s > THICK_MM else (0.0,) for s in around.voxel_sizes_mm]
    made = [
        dipole_pattern(offsets, np.array(source), around.voxel_sizes_mm, around.field, core_mm)
        for source in product(*thirds)
    ]
    chosen = np.zeros(len(beside), dtype=int)
    for axis, levels in enumerate(thirds):
        nearest = np.abs(beside[:, axis, None] - np.array(levels)).argmin(axis=1)
        chosen = chosen * len(levels) + nearest
    return np.array(made, dtype=np.float32)[chosen]


def curvatures(image: np.ndarray, places: np.ndarray, voxel_sizes_mm: np.ndarray) -> np.ndarray:
    """Curvatures of the image at each place along its principal directions.

    Eigenvalues of the second derivatives of a quadratic fitted within 2.2 mm, and within a voxel
    at least. In a dark ball all three are positive and alike, in a vessel one is near zero.

    Parameters
    ----------
    image : (x, y, z) array
    places : (n, 3) array
        Voxels, fractional.
    voxel_sizes_mm : (3,) array

    Returns
    -------
    (n, 3) array
        Per mm^2, ascending.
    """
    reach = max(SHAPE_REACH_MM, 1.05 * float(voxel_sizes_mm.max()))
    offsets = _ball_offsets(reach, voxel_sizes_mm)
    x, y, z = (offsets * voxel_sizes_mm).T
    terms = np.column_stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])
    root = np.exp(-(x**2 + y**2 + z**2) / (4 * (0.6 * reach) ** 2))[:, None]
    fit = np.linalg.pinv(terms * root) * root.T
    found = sample(image, places[:, None, :] + offsets) @ fit.T
    second = np.empty((len(places), 3, 3))
    for axis in range(3):
        second[:, axis, axis] = 2 * found[:, 4 + axis]
    for column, (a, b) in enumerate(((0, 1), (0, 2), (1, 2)), start=7):
        second[:, a, b] = second[:, b, a] = found[:, column]
    return np.linalg.eigvalsh(second)


def _shape_features(
    name: str, image: np.ndarray, places: np.ndarray, voxel_sizes_mm: np.ndarray
) -> Mapping[str, np.ndarray]:
    found = curvatures(image, places, voxel_sizes_mm)
    strongest = np.maximum(np.abs(found).max(axis=1), 1e-4)
    return {
        f"least_curvature_{name}": found[:, 0] / strongest,
        f"middle_curvature_{name}": found[:, 1] / strongest,
        f"curvature_{name}": np.log(strongest),
    }


def describe_places(
    contrasts: Sequence[Contrast],
    places: np.ndarray,
    radius_mm: np.ndarray,
    brain: np.ndarray,
    rim_mm: np.ndarray,
    voxel_sizes_mm: np.ndarray,
    around: PhaseAround | None = None,
    scan_places: np.ndarray | None = None,
) -> pd.DataFrame:
    """Features of each place.

    Parameters
    ----------
    contrasts : sequence of Contrast
        The magnitude first, then SWI and phase coherence where there is phase.
    places : (n, 3) array
        Voxels of the contrasts' grid, fractional.
    radius_mm : (n,) array
        Radius of the best symmetry.
    brain, rim_mm : (x, y, z) arrays
        The brain, and the distance to its surface (negative inside), on the contrasts' grid.
    voxel_sizes_mm : (3,) array
    around : PhaseAround, optional
    scan_places : (n, 3) array, optional
        The places in voxels of ``around``.

    Returns
    -------
    DataFrame
        A column per feature; those of SWI and phase are absent where there is none.
    """
    footprint = neighbourhood(SYMMETRY_REACH_MM, voxel_sizes_mm)
    features: dict[str, np.ndarray] = {}
    for contrast in contrasts:
        nearby = ndimage.maximum_filter(contrast.symmetry, footprint=footprint, mode="nearest")
        symmetry = np.maximum(sample(nearby, places), FAINTEST_SYMMETRY)
        features[f"symmetry_{contrast.name}"] = np.log(symmetry)
    for contrast in contrasts[:2]:  # phase coherence has no depth
        features |= _depth_features(contrast.name, contrast.image, places, voxel_sizes_mm, brain)
        features |= _shape_features(contrast.name, contrast.image, places, voxel_sizes_mm)
    features["level"] = np.clip(sample(contrasts[0].image, places), 0, 3)
    features["rim"] = np.clip(sample(rim_mm, places), DEEPEST_RIM_MM, FARTHEST_RIM_MM)
    features["radius"] = np.log(radius_mm)
    if around is not None and scan_places is not None:
        match = dipole_match(around, scan_places)
        # Either sign: calcifications are candidates too.
        features["dipole_correlation"] = np.abs(match["correlation"].to_numpy())
        features["dipole_amplitude"] = np.log(np.abs(match["amplitude"].to_numpy()) + 1e-3)
        features["dipole_sign"] = np.sign(match["correlation"].to_numpy())
        features["phase_spread"] = np.log(match["spread"].to_numpy() + 1e-3)
        features |= _phase_features(around, scan_places)
    return pd.DataFrame(features)
