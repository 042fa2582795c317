"""Signed magnetic moment of a lesion: a dipole fitted to the unwrapped phase around it.

From outside any small source looks like a dipole, whatever its shape:

    phase = 2 pi gamma B0 TE m / (4 pi) (3 cos^2 theta - 1) / r^3

with m the magnetic moment, the susceptibility against the tissue around times the volume
(ppm mm3), and theta the angle to the main field. Blood is paramagnetic (m > 0), calcium
diamagnetic (m < 0). Unlike a size on an image, a moment does not bloom: it depends neither on
echo time nor on field strength.

The fit is robust weighted least squares for m, a small shift of the centre and a cubic background.
Errors are not those of white noise: veins and borders of tissues have fields of their own. How
much larger they are is measured in the same scan, by fitting dipoles where there is no lesion.

Point dipoles in phase: McAuley G et al., Magn Reson Med 2010;63:106-115. Signals summed as complex
numbers over a voxel, because phase is far from linear there: Cheng YCN et al., Magn Reson Imaging
2009;27:1020-1031. Background, robust weights and uncertainty are this project's own choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from skimage.restoration import unwrap_phase

from cmb_bids.volumes import voxel_to_world, world_to_voxel

GYROMAGNETIC_RATIO_HZ_PER_T = 42.577478518e6

FITTED = "fitted"
FEW_VOXELS = "few_voxels"
NO_PHASE = "no_phase"
NO_FIELD_STRENGTH = "no_field_strength"
FILTERED_PHASE = "filtered_phase"
AGREES, CONTRADICTS, UNCLEAR = "agrees", "contradicts", "unclear"
VERDICT_DEVIATIONS = 2.0

COLUMNS = ["moment_ppm_mm3", "moment_sd_ppm_mm3", "moment_status"]

# Shells. Near voxels carry the signal, far ones mostly the fields of other anatomy.
FIRST_SHELL_MM = 7.0  # before the moment is known
SHELL_MM = (5.0, 11.0)  # smallest and largest
LEAST_SIGNAL = 0.3  # of the tissue's: below it a voxel's phase says little
LEAST_VOXELS = 60  # for 24 unknowns
MOST_FAR_VOXELS = 1000  # more cost time and add nothing, as neighbours err alike

# Voxels. What is acquired in k-space has voxels 1.2 times as wide as they are apart (the full
# width at half height of a sinc).
VOXEL_WIDTH = 1.2
NEAR_MM = 4.0  # closer than this the signal is summed from parts
PART_MM = 0.5  # edge length of those parts

# The core: there is little signal in it, and the field in a sphere is that of its surroundings.
CORE_SUSCEPTIBILITY_PPM = 0.8  # turns a moment into a radius
LEAST_CORE_MM = 1.2  # without it a few voxels at the very centre would decide
CORE_SIGNAL = 0.2
LEAST_COHERENCE = 0.5  # of the parts of a voxel

MODEL_ERROR = 0.15  # of the dipole's phase: lesions are no spheres, voxels no boxes
HUBER_DEVIATIONS = 2.0
ITERATIONS = 8
CENTRE_SD_MM = 0.7  # of a drawn lesion's centroid against its source, along each axis
RELATIVE_SD_PER_MM = 0.06  # of a moment, by the longest voxel edge: what no null position can show
LEAST_RELATIVE_SD = 0.10
DRAWN_FACTOR = 1.25  # of standard deviations: what a lesion drawn off its source adds

NULL_POSITIONS = 60
FEWEST_NULL_POSITIONS = 20
NULL_DISTANCE_MM = 10.0  # to the nearest lesion
USUAL_INFLATION = 4.0  # of errors, where too few null positions can be had


class Phase(NamedTuple):
    """The phase that moments are fitted to.

    ``radians`` (x, y, z), right-handed; ``radians_per_ppm`` from `radians_per_ppm`; ``wrapped``
    says that whole turns are still missing.
    """

    radians: np.ndarray
    radians_per_ppm: float
    wrapped: bool = False


class Surroundings(NamedTuple):
    """Voxels around a lesion: ``offsets`` (n, 3) from its drawn centre in scanner mm, ``phase``
    (n,) in radians, ``signal`` (n,) relative to the tissue's and ``share`` (n,), how many voxels
    each stands for."""

    offsets: np.ndarray
    phase: np.ndarray
    signal: np.ndarray
    share: np.ndarray


class Fit(NamedTuple):
    """A dipole: ``moment`` (ppm mm3), its ``error`` as if noise were white, and ``shift`` (3,) of
    its centre (mm)."""

    moment: float
    error: float
    shift: np.ndarray


def radians_per_ppm(field_strength_t: float, echo_time_s: float) -> float:
    """Phase (rad) that a field shift of 1 ppm makes by an echo time."""
    return 2 * np.pi * GYROMAGNETIC_RATIO_HZ_PER_T * 1e-6 * field_strength_t * echo_time_s


def describe_phase(
    report: Mapping[str, Any], field_strength_t: float | None
) -> tuple[float, bool] | str:
    """What the unwrapped image of the phase stage is, from the stage's report.

    Parameters
    ----------
    report : mapping
        `cmb_bids.phase.SwiResult.report`, or that of a scan without phase.
    field_strength_t : float or None
        Tesla.

    Returns
    -------
    (radians, wrapped) or str
        Radians per ppm of the image, and whether it is still wrapped; or the reason why moments
        cannot be fitted to it.
    """
    reference = report.get("reference_echo_time_s")
    if not reference:
        return NO_PHASE
    if report.get("prefiltered"):
        return FILTERED_PHASE
    if not field_strength_t or not np.isfinite(field_strength_t):
        return NO_FIELD_STRENGTH
    wrapped = report.get("unwrapping") == "none"
    if wrapped:  # then it is the echo nearest to the reference, as it was
        reference = min(report["echo_times_s"], key=lambda time: abs(time - reference))
    return radians_per_ppm(float(field_strength_t), float(reference)), wrapped


def dipole(offsets_mm: np.ndarray) -> np.ndarray:
    """Field of a unit moment: (3 cos^2 theta - 1) / (4 pi r^3), in 1/mm3.

    Parameters
    ----------
    offsets_mm : (..., 3) array
        From the source, in scanner mm: the main field is along the third axis.

    Returns
    -------
    (...) array
    """
    square = np.maximum(np.einsum("...i,...i->...", offsets_mm, offsets_mm), 1e-6)
    return (3 * offsets_mm[..., 2] ** 2 / square - 1) / (4 * np.pi * square**1.5)


def dipole_gradient(offsets_mm: np.ndarray) -> np.ndarray:
    """Derivatives of `dipole` by the offsets, (..., 3) in 1/mm4."""
    square = np.maximum(np.einsum("...i,...i->...", offsets_mm, offsets_mm), 1e-6)[..., None]
    along = offsets_mm[..., 2:]
    slopes = (3 - 15 * along**2 / square) * offsets_mm
    slopes[..., 2:] += 6 * along
    return slopes / (4 * np.pi * square**2.5)


def cubic_terms(offsets_mm: np.ndarray) -> np.ndarray:
    """Polynomials up to third order (n, 20) of offsets (n, 3)."""
    x, y, z = (np.asarray(offsets_mm) / SHELL_MM[0]).T
    squares = (x * x, y * y, z * z)
    cubes = [v * w for v in (x, y, z) for w in squares]
    return np.stack(
        [np.ones_like(x), x, y, z, *squares, x * y, x * z, y * z, *cubes, x * y * z], axis=1
    )


def places_in_voxel(voxel_vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (mm from a voxel's centre) that stand for it near a source, and far from it.

    Near: midpoints of parts of about `PART_MM`. Far, where phase is linear: two Gauss points along
    each edge longer than 1 mm, exact to third order.

    Parameters
    ----------
    voxel_vectors : (3, 3) array
        Columns are the steps between voxels in scanner mm.
    """
    vectors = VOXEL_WIDTH * np.asarray(voxel_vectors, dtype=float)
    sizes = np.sqrt((vectors**2).sum(axis=0))
    parts = np.maximum(np.rint(sizes / PART_MM), 1).astype(int)
    near = [(np.arange(n) + 0.5) / n - 0.5 for n in parts]
    far = [np.array([-0.5, 0.5]) / np.sqrt(3) if s > 1 else np.zeros(1) for s in sizes]
    return _spread(near) @ vectors.T, _spread(far) @ vectors.T


def _spread(axes: list[np.ndarray]) -> np.ndarray:
    """All combinations (n, 3) of places along three axes."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def model_phase(
    moment: float,
    offsets_mm: np.ndarray,
    radians: float,
    places: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Phase of voxels around a dipole.

    Parameters
    ----------
    moment : float
        ppm mm3.
    offsets_mm : (n, 3) array
        From the dipole.
    radians : float
        Per ppm.
    places : two arrays
        From `places_in_voxel`.

    Returns
    -------
    phase : (n,) array
        Radians.
    slopes : (n, 4) array
        Its derivatives by the moment and by the offsets.
    coherence : (n,) array
        Signal left of that of the voxel's parts, 0 to 1.
    """
    n = len(offsets_mm)
    phase, slopes, coherence = np.zeros(n), np.zeros((n, 4)), np.ones(n)
    near = np.einsum("ij,ij->i", offsets_mm, offsets_mm) < NEAR_MM**2
    parts = offsets_mm[~near, None] + places[1]
    slopes[~near, 0] = radians * dipole(parts).mean(axis=1)
    slopes[~near, 1:] = radians * moment * dipole_gradient(parts).mean(axis=1)
    phase[~near] = moment * slopes[~near, 0]
    parts = offsets_mm[near, None] + places[0]
    core = max(np.cbrt(3 * abs(moment) / (4 * np.pi * CORE_SUSCEPTIBILITY_PPM)), LEAST_CORE_MM)
    outside = np.einsum("...i,...i->...", parts, parts) > core**2
    field = np.where(outside, dipole(parts), 0)
    signal = np.where(outside, 1, CORE_SIGNAL) * np.exp(1j * radians * moment * field)
    total = signal.sum(axis=1)
    coherence[near] = np.abs(total) / parts.shape[1]
    safe = np.where(np.abs(total) > 1e-6, total, 1)
    phase[near] = np.angle(safe)
    slopes[near, 0] = radians * ((signal * field).sum(axis=1) / safe).real
    change = np.where(outside[..., None], dipole_gradient(parts), 0)
    change = np.einsum("ij,ijk->ik", signal / safe[:, None], change).real
    slopes[near, 1:] = radians * moment * change
    return phase, slopes, coherence


def fit_dipole(
    around: Surroundings,
    voxel_vectors: np.ndarray,
    radians: float,
    centre_sd_mm: float | None = CENTRE_SD_MM,
    iterations: int = ITERATIONS,
) -> Fit:
    """Fit a dipole and a cubic background to the phase of the voxels around a lesion.

    Gauss-Newton steps of a least-squares fit in which voxels weigh as their signal squared, less
    where the dipole is strong (`MODEL_ERROR`) and less where they do not fit (Huber). After the
    first steps, residuals are taken without whole turns, so that a voxel on a wrong turn does no
    harm. The shift of the centre is held back by its prior; where there is no dipole, nothing
    moves it.

    Parameters
    ----------
    around : Surroundings
    voxel_vectors : (3, 3) array
        Columns are the steps between voxels in scanner mm.
    radians : float
        Per ppm.
    centre_sd_mm : float or None
        Standard deviation of the centre along each axis; None keeps it where it is.
    iterations : int, optional

    Returns
    -------
    Fit
    """
    places = places_in_voxel(voxel_vectors)
    terms = cubic_terms(around.offsets)
    free = 1 if centre_sd_mm is None else 4
    prior = np.full(free + terms.shape[1], 1e-6)
    prior[0] = 0
    prior[1:free] = (USUAL_INFLATION / (centre_sd_mm or 1)) ** 2
    known = np.zeros(len(prior))  # moment, shift, background
    phase = around.phase - np.median(around.phase)
    robust, scale = np.ones(len(phase)), 1.0
    normal = np.eye(len(prior))
    for step in range(iterations):
        shift = known[1:free] if free > 1 else np.zeros(3)
        predicted, slopes, coherence = model_phase(
            known[0], around.offsets - shift, radians, places
        )
        residual = phase - predicted - terms @ known[free:]
        if step > 2:
            residual = np.angle(np.exp(1j * residual))
        design = np.column_stack([slopes[:, 0], -slopes[:, 1:free], terms])
        used = coherence > LEAST_COHERENCE
        variance = scale**2 + (MODEL_ERROR * predicted) ** 2
        weight = around.share * around.signal**2 * robust * used / variance
        normal = (design * weight[:, None]).T @ design + np.diag(prior)
        normal[np.diag_indices_from(normal)] *= 1 + 1e-9
        move = np.linalg.solve(normal, design.T @ (weight * residual) - prior * known)
        known = known + move
        known[1:free] = np.clip(known[1:free], -3 * CENTRE_SD_MM, 3 * CENTRE_SD_MM)
        left = np.abs(residual - design @ move) * around.signal
        scale = 1.4826 * float(np.median(left[used])) + 1e-4 if used.any() else 1.0
        deviation = left / np.sqrt(scale**2 + (MODEL_ERROR * predicted) ** 2)
        robust = np.minimum(1, HUBER_DEVIATIONS / np.maximum(deviation, 1e-9))
    error = float(np.sqrt(np.linalg.inv(normal)[0, 0]))
    return Fit(float(known[0]), error, known[1:free] if free > 1 else np.zeros(3))


def shell_radius(moment: float, radians: float) -> float:
    """Radius (mm) of the voxels to fit: 3 mm plus twice the radius where phase is 1 rad."""
    one_radian = np.cbrt(abs(moment) * radians / (4 * np.pi))
    return float(np.clip(3 + 2 * one_radian, *SHELL_MM))


def surroundings(
    centre: np.ndarray,
    radius_mm: float,
    phase: Phase,
    magnitude: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    labels: np.ndarray | None = None,
    label: int = 0,
) -> Surroundings | None:
    """The voxels within a radius of a place that can be fitted to.

    Parameters
    ----------
    centre : (3,) array
        Voxel indices, fractional.
    radius_mm : float
    phase : Phase
    magnitude : (x, y, z) array
        Any unit.
    mask : (x, y, z) bool array
        Brain.
    affine : (4, 4) array
    labels : (x, y, z) integer array, optional
        Voxels of lesions; those of others than ``label`` are left out.
    label : int, optional

    Returns
    -------
    Surroundings or None
        None where fewer than `LEAST_VOXELS` can be used.
    """
    vectors = np.asarray(affine, dtype=float)[:3, :3]
    # How far a ball reaches along each voxel axis, also where the axes are not at right angles.
    reach = np.ceil(radius_mm * np.linalg.norm(np.linalg.inv(vectors), axis=1)).astype(int)
    middle = np.rint(centre).astype(int)
    first = np.clip(middle - reach, 0, mask.shape)
    last = np.clip(middle + reach + 1, 0, mask.shape)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    use = np.array(mask[box])
    if labels is not None:
        use &= (labels[box] == 0) | (labels[box] == label)
    if not use.any():
        return None
    axes = [np.arange(a, b) - c for a, b, c in zip(first, last, centre, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ vectors.T
    distance = np.linalg.norm(offsets, axis=-1)
    signal, radians = magnitude[box].astype(float), phase.radians[box].astype(float)
    use &= (distance <= radius_mm) & np.isfinite(signal) & np.isfinite(radians)
    tissue = float(np.median(signal[use])) if use.any() else 0.0
    use &= signal > max(LEAST_SIGNAL * tissue, 0)
    if use.sum() < LEAST_VOXELS:
        return None
    if phase.wrapped:
        # It would sort masked values too, and never end where one is not a number.
        masked = np.ma.masked_array(np.where(use, radians, 0), ~use)
        radians = np.ma.filled(unwrap_phase(masked), 0)
    share = np.ones(use.shape)
    far = np.flatnonzero(use & (distance > SHELL_MM[0]))
    step = int(np.ceil(len(far) / MOST_FAR_VOXELS))
    if step > 1:
        use.flat[far] = False
        use.flat[far[::step]] = True
        share.flat[far] = step
    relative = np.minimum(signal[use] / tissue, 1.0)
    return Surroundings(offsets[use], radians[use], relative, share[use])


def error_inflation(
    phase: Phase,
    magnitude: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    lesions_mm: np.ndarray,
    seed: int = 0,
) -> float:
    """How many times larger errors are in this scan than white noise would make them.

    Dipoles are fitted at random places in the brain, at least `NULL_DISTANCE_MM` from any lesion,
    where the moment is zero. 95 % of them shall lie within 1.96 standard deviations.

    Parameters
    ----------
    phase, magnitude, mask, affine
        As `measure_moments`.
    lesions_mm : (n, 3) array
        Scanner mm.
    seed : int, optional

    Returns
    -------
    float
        At least 1; `USUAL_INFLATION` where there are too few places.
    """
    inside = np.flatnonzero(mask)
    if not inside.size:
        return USUAL_INFLATION
    rng = np.random.default_rng(seed)
    chosen = rng.choice(inside, size=min(3 * NULL_POSITIONS, inside.size), replace=False)
    places = np.stack(np.unravel_index(chosen, mask.shape), axis=1)
    if len(lesions_mm):
        gap = cdist(voxel_to_world(affine, places), lesions_mm).min(axis=1)
        places = places[gap > NULL_DISTANCE_MM]
    deviations: list[float] = []
    for place in places:
        around = surroundings(place.astype(float), SHELL_MM[0], phase, magnitude, mask, affine)
        if around is not None:
            vectors = np.asarray(affine)[:3, :3]
            fit = fit_dipole(around, vectors, phase.radians_per_ppm, None, iterations=5)
            deviations.append(abs(fit.moment) / fit.error)
        if len(deviations) == NULL_POSITIONS:
            break
    if len(deviations) < FEWEST_NULL_POSITIONS:
        return USUAL_INFLATION
    return max(1.0, float(np.quantile(deviations, 0.95)) / 1.96)


def measure_moments(
    points_mm: np.ndarray,
    labels: np.ndarray,
    phase: Phase | str,
    magnitude: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
) -> pd.DataFrame:
    """Magnetic moments of all lesions of a scan.

    Each lesion is fitted by itself, then again without the fields of its neighbours.

    Parameters
    ----------
    points_mm : (n, 3) array
        Centres of the lesions in scanner mm.
    labels : (x, y, z) integer array
        Lesion k's voxels hold k + 1; other lesions' voxels are left out of a fit.
    phase : Phase or str
        A text says why there is no phase to fit to, and becomes the status.
    magnitude : (x, y, z) array
        Any unit.
    mask : (x, y, z) bool array
        Brain.
    affine : (4, 4) array
        Voxel to scanner mm.

    Returns
    -------
    DataFrame
        `COLUMNS`, a row per lesion: moment and its standard deviation (ppm mm3), NaN unless
        the status is ``fitted``.

    Raises
    ------
    ValueError
        Images differ in shape.
    """
    points = np.asarray(points_mm, dtype=float).reshape(-1, 3)
    if isinstance(phase, str):
        return _table([None] * len(points), reason=phase)
    for image in (phase.radians, magnitude, mask):
        if image.shape != labels.shape:
            raise ValueError(f"image of shape {image.shape} on a grid of {labels.shape}")
    if not len(points):
        return _table([])
    mask = np.asarray(mask) > 0
    centres = world_to_voxel(affine, points)
    vectors = np.asarray(affine, dtype=float)[:3, :3]
    fits: list[Fit | None] = [None] * len(points)
    for sweep in (0, 1):
        for k, centre in enumerate(centres):
            before = fits[k]
            if sweep == 0:
                radius = FIRST_SHELL_MM
            elif before is None:
                continue
            else:
                radius = shell_radius(before.moment, phase.radians_per_ppm)
            around = surroundings(centre, radius, phase, magnitude, mask, affine, labels, k + 1)
            if around is not None:
                around = _without_neighbours(around, k, points, fits, phase, vectors)
                fits[k] = fit_dipole(around, vectors, phase.radians_per_ppm)
    inflation = error_inflation(phase, magnitude, mask, affine, points)
    longest = float(np.linalg.norm(vectors, axis=0).max())
    return _table(fits, inflation, max(LEAST_RELATIVE_SD, RELATIVE_SD_PER_MM * longest))


def _without_neighbours(
    around: Surroundings,
    lesion: int,
    points_mm: np.ndarray,
    fits: list[Fit | None],
    phase: Phase,
    vectors: np.ndarray,
) -> Surroundings:
    """Take the fields of the other lesions, as far as they are known, out of the phase."""
    rest = around.phase.copy()
    places = places_in_voxel(vectors)
    for other, fit in enumerate(fits):
        if other == lesion or fit is None:
            continue
        away = points_mm[other] + fit.shift - points_mm[lesion]
        # Beyond this a neighbour's field is part of the smooth background.
        if np.linalg.norm(away) < SHELL_MM[1] + shell_radius(fit.moment, phase.radians_per_ppm):
            rest -= model_phase(fit.moment, around.offsets - away, phase.radians_per_ppm, places)[0]
    return around._replace(phase=rest)


def _table(
    fits: list[Fit | None],
    inflation: float = 1.0,
    relative_sd: float = LEAST_RELATIVE_SD,
    reason: str = FEW_VOXELS,
) -> pd.DataFrame:
    """The fits as `COLUMNS`."""
    rows = []
    for fit in fits:
        if fit is None or not np.isfinite([fit.moment, fit.error]).all():
            rows.append((np.nan, np.nan, reason))
        else:
            sd = DRAWN_FACTOR * float(np.hypot(inflation * fit.error, relative_sd * fit.moment))
            rows.append((round(fit.moment, 3), round(max(sd, 0.001), 3), FITTED))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"moment_ppm_mm3": float, "moment_sd_ppm_mm3": float})


def judge(moment: float, sd: float, paramagnetic: bool) -> str | None:
    """Whether the sign of a moment agrees with a kind of lesion.

    Parameters
    ----------
    moment, sd : float
        ppm mm3; NaN where there is none.
    paramagnetic : bool
        The sign expected: blood true, calcium false.

    Returns
    -------
    str or None
        ``agrees`` or ``contradicts`` where the moment is at least `VERDICT_DEVIATIONS` standard
        deviations from zero, else ``unclear``; None without a moment.
    """
    if not np.isfinite([moment, sd]).all():
        return None
    if abs(moment) < VERDICT_DEVIATIONS * sd:
        return UNCLEAR
    return AGREES if (moment > 0) == paramagnetic else CONTRADICTS
