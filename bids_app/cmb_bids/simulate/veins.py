"""Blood vessels: grown as tapering random walks, then rasterised with partial volume.

Six kinds make the mimics of a real susceptibility-weighted image: pial veins that follow the
sulci down a geodesic potential to the dural sinuses (and so merge into trees), medullary veins
that run to the ventricles, fans of them that join in one point before they get there, superficial
veins between white matter and cortex, pieces of veins of which no more than some millimetres
show, and the named deep veins and sinuses drawn as jittered splines. Arteries are drawn like the
latter, without susceptibility. Vessels are grown in template mm and carried to the subject with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
from scipy import interpolate, ndimage
from skimage.graph import MCP_Geometric

from cmb_bids.simulate.head import TISSUES, HeadModel, load_head

GUIDE_SPACING_MM = 2.0
STEP_MM = 0.5
THINNING_MM = (4.0, 12.0)  # over which a vein that joins nothing thins out
MOST_FANS = 30  # of a subject whose veins are of the usual density
FAN_BRANCHES = (3, 9)
FAN_REACH_MM = (5.0, 25.0)  # of a branch, from where it begins to where it joins the others
FAN_TO_WALL_MM = (1.0, 12.0)  # from there to the ventricle
FAN_COSINE = 0.4  # least, between a branch and the vein that it joins
FAN_RADIUS_MM = (0.16, 0.4)  # of a branch where it joins; a vein drains what its branches bring
WIDEST_COLLECTOR_MM = 0.8
SHORT_LENGTH_MM = (3.5, 14.0)
SHORT_RADIUS_MM = (0.18, 0.6)
SHORT_LEAST_WIDTHS = 3.5  # that a short vein is long: one as long as wide would be a bleed's twin
COILED_SHARE = 0.15  # of the short pieces
COIL_RADIUS_MM = (2.0, 5.0)  # a narrower coil would be a blob
COIL_TURN = (np.pi, 2.3 * np.pi)
COIL_PITCH_MM = 4.0  # at most, per turn
COIL_WIDEST = 0.3  # radius of a coiled vein, relative to that of its coil
WIDEST_COILED_MM = 0.9

# Control points in template mm; names starting with "+" are mirrored to the other side.
DEEP_VEINS: dict[str, tuple[list[tuple[float, float, float]], float, float]] = {
    # name: (points, first radius mm, last radius mm)
    "+internal_cerebral": (
        [(3, 4, 9), (3, -10, 15), (3, -24, 12), (2, -35, 9), (0, -42, 9)],
        0.7,
        1.1,
    ),
    "galen": ([(0, -40, 9), (0, -46, 11), (0, -50, 14)], 1.4, 1.7),
    "straight": ([(0, -50, 14), (0, -66, 4), (0, -82, -7), (0, -97, -14)], 1.6, 2.2),
    "+basal": ([(16, 0, -20), (20, -10, -17), (17, -24, -9), (9, -36, 2), (1, -42, 8)], 0.4, 0.9),
    "+thalamostriate": ([(20, -24, 22), (18, -12, 22), (13, 0, 18), (4, 5, 10)], 0.35, 0.85),
    "+septal": ([(10, 26, 10), (5, 22, 6), (3, 14, 9), (3, 5, 9)], 0.25, 0.65),
    "+caudate": ([(19, 14, 22), (15, 10, 19), (8, 6, 13), (4, 5, 10)], 0.25, 0.6),
    "+atrial": ([(26, -52, 14), (20, -46, 14), (10, -42, 11), (1, -42, 10)], 0.3, 0.75),
    "+sylvian": ([(54, -12, 8), (52, 2, -6), (46, 12, -16), (38, 8, -24), (32, 2, -28)], 0.5, 1.1),
}
ARTERIES: dict[str, tuple[list[tuple[float, float, float]], float, float]] = {
    "+middle_cerebral": (
        [(8, 2, -20), (18, 4, -19), (30, 4, -16), (38, 2, -10), (42, -8, 2)],
        1.4,
        0.7,
    ),
    "+anterior_cerebral": (
        [(8, 2, -20), (3, 14, -16), (2, 32, -4), (2, 34, 12), (2, 16, 32)],
        1.1,
        0.5,
    ),
    "+posterior_cerebral": (
        [(2, -14, -24), (12, -20, -18), (19, -34, -8), (14, -52, 0), (8, -74, 4)],
        1.0,
        0.5,
    ),
    "basilar": ([(0, -20, -50), (0, -18, -38), (0, -14, -24)], 1.6, 1.5),
    "+carotid": ([(13, 2, -50), (14, 4, -36), (12, 4, -26), (8, 2, -20)], 2.2, 1.7),
}


@dataclass(frozen=True)
class VesselTree:
    """Vessels as chains of points (n, 3) mm, their radii (n,) mm and chain starts (m + 1,)."""

    points: np.ndarray
    radii: np.ndarray
    starts: np.ndarray

    @classmethod
    def join(cls, chains: list[tuple[np.ndarray, np.ndarray]]) -> VesselTree:
        chains = [c for c in chains if len(c[0]) > 3]
        if not chains:
            return cls(np.zeros((0, 3)), np.zeros(0), np.zeros(1, np.int64))
        lengths = [len(points) for points, _ in chains]
        return cls(
            np.concatenate([points for points, _ in chains]).astype(np.float64),
            np.concatenate([radii for _, radii in chains]).astype(np.float64),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def moved(self, points: np.ndarray) -> VesselTree:
        """The same vessels at other positions."""
        return VesselTree(points, self.radii, self.starts)


@dataclass(frozen=True)
class Guides:
    """Fields that steer growing vessels, on a 2 mm grid over the template."""

    to_sinus: np.ndarray
    to_ventricle: np.ndarray
    to_fluid: np.ndarray
    sinus_distance: np.ndarray
    ventricle_distance: np.ndarray
    sinuses: list[tuple[np.ndarray, np.ndarray]]
    pial_seeds: np.ndarray
    deep_white_seeds: np.ndarray
    superficial_seeds: np.ndarray


def smooth_path(points: np.ndarray, step_mm: float = STEP_MM) -> np.ndarray:
    """Interpolating spline through control points, resampled at equal steps."""
    points = np.asarray(points, dtype=float)
    chord = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    curve = interpolate.PchipInterpolator(chord, points)
    return curve(np.linspace(0, chord[-1], max(4, int(chord[-1] / step_mm))))


def dural_sinuses(head: HeadModel) -> list[tuple[np.ndarray, np.ndarray]]:
    """Superior sagittal and transverse sinuses, traced on the inner skull."""
    origin = head.origin_mm
    middle = round(float(-origin[0]))
    inside = np.asarray(head.brain[middle - 4 : middle + 5].max(axis=0))
    centre = np.array([-20.0, 10.0])
    outline = []
    for angle in np.deg2rad(np.arange(8, 203, 6)):
        direction = np.array([np.cos(angle), np.sin(angle)])
        line = centre + np.arange(20, 130, 0.5)[:, None] * direction
        index = np.round(line - origin[1:]).astype(int)
        valid = ((index >= 0) & (index < inside.shape)).all(axis=1)
        hits = np.zeros(len(line), bool)
        hits[valid] = inside[tuple(index[valid].T)]
        if hits.any():
            y, z = line[np.flatnonzero(hits).max()] + 2.5 * direction
            outline.append((0.0, y, z))
    path = np.array(outline)
    path[:, 1:] = ndimage.gaussian_filter1d(path[:, 1:], 1.0, axis=0, mode="nearest")
    sagittal = smooth_path(path)
    sinuses = [(sagittal, np.linspace(0.7, 3.2, len(sagittal)))]
    end = sagittal[-1]
    for side in (-1, 1):
        lateral = [end]
        for reach, y, z in ((18, -96, -17), (36, -84, -21), (52, -64, -25), (57, -48, -30)):
            lateral.append(np.array([side * reach, y, z]))
        lateral += [np.array([side * 50.0, -42, -42]), np.array([side * 40.0, -42, -55])]
        points = smooth_path(np.array(lateral))
        sinuses.append((points, np.full(len(points), 2.7)))
    return sinuses


def descent(distance: np.ndarray, sigma: float) -> np.ndarray:
    """Unit vectors (x, y, z, 3) down a potential."""
    slopes = np.stack(np.gradient(ndimage.gaussian_filter(distance, sigma)), axis=-1)
    norm = np.linalg.norm(slopes, axis=-1, keepdims=True)
    return (-slopes / np.maximum(norm, 1e-6)).astype(np.float32)


@lru_cache(maxsize=1)
def load_guides() -> Guides:
    """Guidance fields of the head model (computed once per process, about two seconds)."""
    head = load_head()
    tissue = head.tissue[::2, ::2, ::2]
    level = ndimage.uniform_filter(head.level, 2)[::2, ::2, ::2]
    fluid = np.isin(tissue, [TISSUES[n] for n in ("csf", "falx")])
    ventricle = np.isin(tissue, [TISSUES["ventricle"], TISSUES["choroid_plexus"]])
    brain = head.brain[::2, ::2, ::2]
    near_brain = ndimage.binary_dilation(brain | fluid, iterations=1)
    cost = np.where(fluid, 1.0, 2.0 + 14.0 * level**2)
    cost[~near_brain] = 60.0
    cost[ventricle] = 40.0
    sinuses = dural_sinuses(head)
    straight = smooth_path(np.array(DEEP_VEINS["straight"][0]))
    ends = np.concatenate([points for points, _ in sinuses] + [straight[len(straight) // 2 :]])
    index = np.round((ends - head.origin_mm) / GUIDE_SPACING_MM).astype(int)
    index = np.unique(np.clip(index, 0, np.array(cost.shape) - 1), axis=0)
    sinus_distance = MCP_Geometric(cost).find_costs([tuple(row) for row in index])[0]
    sinus_distance = np.minimum(sinus_distance, 2000).astype(np.float32)
    ventricle_distance = ndimage.distance_transform_edt(~ventricle).astype(np.float32) * 2
    fluid_distance = ndimage.distance_transform_edt(~fluid).astype(np.float32) * 2
    white = np.isin(tissue, [TISSUES["white"]])
    solid_edge = fluid & ndimage.binary_dilation(brain & ~fluid)
    upper = np.ones(tissue.shape, bool)
    upper[:, :, : int((-55 - head.origin_mm[2]) / 2)] = False
    grid_to_mm = lambda mask: np.argwhere(mask) * GUIDE_SPACING_MM + head.origin_mm  # noqa: E731
    return Guides(
        descent(sinus_distance, 0.9),
        descent(ventricle_distance, 1.5),
        descent(fluid_distance, 0.8),
        sinus_distance,
        ventricle_distance,
        sinuses,
        grid_to_mm(solid_edge & brain & upper),
        grid_to_mm(white & (ventricle_distance > 8) & (ventricle_distance < 32)),
        grid_to_mm(white & (fluid_distance > 3) & (fluid_distance < 9) & upper),
    )


@numba.njit(cache=True)
def _walk(
    seeds,
    directions,
    potential,
    origin,
    spacing,
    lengths,
    steps,
    wander,
    pull,
    stop,
    patience,
    noise,
):
    """Correlated random walks from each seed down a potential.

    Returns points (m, steps, 3), the number of steps each walk took and whether it arrived.
    """
    count = len(seeds)
    points = np.zeros((count, steps, 3))
    taken = np.zeros(count, np.int64)
    arrived = np.zeros(count, np.bool_)
    nx, ny, nz = potential.shape
    for walker in range(count):
        position = seeds[walker].copy()
        heading = np.zeros(3)
        best, since = 1e9, 0
        for step in range(min(steps, lengths[walker])):
            i = int(np.round((position[0] - origin[0]) / spacing))
            j = int(np.round((position[1] - origin[1]) / spacing))
            k = int(np.round((position[2] - origin[2]) / spacing))
            if not (0 <= i < nx and 0 <= j < ny and 0 <= k < nz):
                break
            points[walker, step] = position
            taken[walker] = step + 1
            if potential[i, j, k] <= stop:
                arrived[walker] = True
                break
            # A walk that no longer descends circles round a minimum: a vein does not.
            if potential[i, j, k] < best:
                best, since = potential[i, j, k], 0
            else:
                since += 1
                if since > patience:
                    break
            norm = 0.0
            for axis in range(3):
                heading[axis] = (
                    (1.0 - pull) * heading[axis]
                    + pull * directions[i, j, k, axis]
                    + wander * noise[walker, step, axis]
                )
                norm += heading[axis] ** 2
            norm = np.sqrt(norm)
            if norm < 1e-6:
                break
            for axis in range(3):
                heading[axis] /= norm
                position[axis] += STEP_MM * heading[axis]
    return points, taken, arrived


def _grow(seeds, directions, potential, lengths, wander, pull, stop, rng, patience=24):
    head = load_head()
    steps = int(max(lengths.max(), 4))
    # Bends of several mm, not a jitter from step to step.
    noise = rng.standard_normal((len(seeds), steps, 3))
    noise = ndimage.gaussian_filter1d(noise, 7.0, axis=1) * np.sqrt(2 * np.sqrt(np.pi) * 7.0)
    return _walk(
        np.ascontiguousarray(seeds, dtype=float),
        directions,
        potential,
        head.origin_mm,
        GUIDE_SPACING_MM,
        lengths.astype(np.int64),
        steps,
        wander,
        pull,
        stop,
        patience,
        noise,
    )


def _pick(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    chosen = points[rng.integers(0, len(points), count)]
    return chosen + rng.uniform(-1, 1, chosen.shape)


def grow_veins(
    rng: np.random.Generator,
    density: float = 1.0,
    calibre: float = 1.0,
    thinning: float = 1.0,
    short: int = 0,
) -> VesselTree:
    """One subject's veins in template mm.

    Parameters
    ----------
    rng : Generator
    density, calibre : float
        Multipliers of the number of small veins and of every radius.
    thinning : float
        Share of the veins that thin out where they end without having reached a sinus or a
        ventricle; the others end bluntly, as if cut.
    short : int
        Number of short pieces of veins, anywhere in the brain and in any direction.
    """
    guides = load_guides()
    chains: list[tuple[np.ndarray, np.ndarray]] = []
    loose: list[bool] = []
    scale = lambda size: calibre * np.exp(rng.normal(0, 0.35, size))  # noqa: E731

    count = int(950 * density)
    lengths = rng.integers(30, 260, count)
    points, taken, arrived = _grow(
        _pick(guides.pial_seeds, count, rng),
        guides.to_sinus,
        guides.sinus_distance,
        lengths,
        0.10,
        0.20,
        1.0,
        rng,
    )
    # A vein is wider the nearer it is to the sinus, and a long one more than a short one.
    for path, n, factor in zip(points, taken, scale(count), strict=True):
        grown = np.linspace(0, n * STEP_MM, n) if n else np.zeros(0)
        radius = 0.15 + 0.0065 * grown
        chains.append((path[:n], factor * np.minimum(radius, 0.9)))
    loose += list(~arrived)

    count = int(420 * density)
    lengths = rng.integers(16, 90, count)
    points, taken, arrived = _grow(
        _pick(guides.deep_white_seeds, count, rng),
        guides.to_ventricle,
        guides.ventricle_distance,
        lengths,
        0.05,
        0.2,
        1.0,
        rng,
    )
    for path, n, factor in zip(points, taken, scale(count), strict=True):
        chains.append((path[:n], factor * np.linspace(0.12, 0.34, max(n, 1))[:n]))
    loose += list(~arrived)
    collectors = [path[:n] for path, n, there in zip(points, taken, arrived, strict=True) if there]
    fans = _fans(collectors, guides.deep_white_seeds, int(rng.uniform(0, MOST_FANS) * density), rng)

    count = int(900 * density)
    lengths = rng.integers(8, 36, count)
    points, taken, arrived = _grow(
        _pick(guides.superficial_seeds, count, rng),
        guides.to_fluid,
        guides.sinus_distance,
        lengths,
        0.06,
        0.25,
        0.0,
        rng,
        patience=1000,
    )
    for path, n, factor in zip(points, taken, scale(count), strict=True):
        chains.append((path[:n], factor * np.linspace(0.10, 0.24, max(n, 1))[:n]))
    loose += list(~arrived)

    named = _named(DEEP_VEINS, rng, calibre)
    named += [
        (points + 0.6 * _wobble(len(points), rng), calibre * radii)
        for points, radii in guides.sinuses
    ]
    fans = [(path, calibre * radii) for path, radii in fans]
    pieces = _short_pieces(guides, short, rng)
    chains += [(path, calibre * radii) for path, radii in pieces]
    loose += [True] * len(pieces)
    return VesselTree.join(_thinned(chains, loose, thinning, rng) + fans + named)


def _short_pieces(
    guides: Guides, count: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Veins of which some millimetres show, before and after which they are too narrow to.

    Across slices such a piece is a dot in two or three of them, paramagnetic, with the dipole of a
    short rod: the mimic closest to a microbleed. Coiled ones are rings and hooks that thick slices
    fill. How many there are differs between heads.
    """
    places = (guides.superficial_seeds, guides.pial_seeds, guides.deep_white_seeds)
    pieces = []
    for kind in rng.choice(3, count, p=(0.4, 0.4, 0.2)):
        path, radius = _coil(rng) if rng.random() < COILED_SHARE else _rod(rng)
        path = path @ np.linalg.qr(rng.standard_normal((3, 3)))[0].T
        pieces.append((_pick(places[kind], 1, rng) + path, np.full(len(path), radius)))
    return pieces


def _rod(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A nearly straight vein about the origin: points (n, 3) mm along the last axis, and radius."""
    radius = float(np.exp(rng.uniform(*np.log(SHORT_RADIUS_MM))))
    length = max(rng.uniform(*SHORT_LENGTH_MM), SHORT_LEAST_WIDTHS * 2 * radius)
    along = np.arange(-length / 2, length / 2, STEP_MM)
    bent = rng.uniform(0, 0.8) * _wobble(len(along), rng)
    return along[:, None] * [0, 0, 1] + bent, radius


def _coil(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A vein that turns about the last axis by half a turn or more, and its radius."""
    coil = rng.uniform(*COIL_RADIUS_MM)
    turn = rng.uniform(*COIL_TURN)
    angle = np.linspace(0, turn, max(6, int(turn * coil / STEP_MM)))
    height = rng.uniform(0, COIL_PITCH_MM) * angle / (2 * np.pi)
    path = np.stack([coil * np.cos(angle), coil * np.sin(angle), height - height[-1] / 2], 1)
    widest = min(WIDEST_COILED_MM, COIL_WIDEST * coil)
    return path, float(np.exp(rng.uniform(np.log(SHORT_RADIUS_MM[0]), np.log(widest))))


def _fans(
    collectors: list[np.ndarray], seeds: np.ndarray, count: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Medullary veins that converge on one point near a ventricle and go on as one vein.

    Where several narrow veins meet, the image shows a dark dot wider than any of them: the mimic
    that a walk on its own never makes. After the zones of convergence of the deep medullary veins
    (Taoka et al., RadioGraphics 2017;37:281).

    Parameters
    ----------
    collectors : list of (n, 3) arrays
        Veins that end at a ventricle, mm; the end of some of them drains a fan.
    seeds : (m, 3) array
        Where branches may begin, mm.
    count : int
    rng : Generator
    """
    long_enough = [path for path in collectors if len(path) * STEP_MM > sum(FAN_TO_WALL_MM)]
    chains: list[tuple[np.ndarray, np.ndarray]] = []
    for index in rng.permutation(len(long_enough))[:count]:
        path = long_enough[index]
        joint = len(path) - 1 - int(rng.uniform(*FAN_TO_WALL_MM) / STEP_MM)
        outward = (path[0] - path[joint]) / np.linalg.norm(path[0] - path[joint])
        reach = seeds - path[joint]
        distance = np.linalg.norm(reach, axis=1)
        near = (distance > FAN_REACH_MM[0]) & (distance < FAN_REACH_MM[1])
        begins = seeds[near & (reach @ outward > FAN_COSINE * distance)]
        if not len(begins):
            continue
        branches = _pick(begins, int(rng.integers(FAN_BRANCHES[0], FAN_BRANCHES[1] + 1)), rng)
        widths = rng.uniform(*FAN_RADIUS_MM, len(branches))
        for begin, width in zip(branches, widths, strict=True):
            straight = smooth_path(np.array([begin, path[joint]]))
            share = np.linspace(0, 1, len(straight))
            bent = 0.6 * _wobble(len(straight), rng) * np.sin(np.pi * share)[:, None]
            chains.append((straight + bent, 0.1 + (width - 0.1) * share))
        collector = min(float(np.sqrt(np.sum(widths**2))), WIDEST_COLLECTOR_MM)
        chains.append((path[joint:], np.full(len(path) - joint, collector)))
    return chains


def _thinned(
    chains: list[tuple[np.ndarray, np.ndarray]],
    loose: list[bool],
    share: float,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The chains, a share of those with a loose end running out to nothing there.

    A vein fades from an image where it gets narrower than the image can show; one that stops at
    full width would look like a microbleed with a tail, which no vein does.
    """
    chosen = np.array(loose) & (rng.random(len(chains)) < share)
    over = rng.uniform(*THINNING_MM, len(chains))
    thinned = []
    for (points, radii), thins, length in zip(chains, chosen, over, strict=True):
        if thins:
            to_end = STEP_MM * np.arange(len(radii))[::-1]
            radii = radii * np.minimum(to_end / length, 1.0)
        thinned.append((points, radii))
    return thinned


def grow_arteries(rng: np.random.Generator, calibre: float = 1.0) -> VesselTree:
    """The large arteries of the base of the brain, template mm."""
    return VesselTree.join(_named(ARTERIES, rng, calibre))


def _wobble(count: int, rng: np.random.Generator, sigma_steps: float = 10.0) -> np.ndarray:
    noise = ndimage.gaussian_filter1d(rng.standard_normal((count, 3)), sigma_steps, axis=0)
    return noise * np.sqrt(2 * np.sqrt(np.pi) * sigma_steps)


def _named(table, rng: np.random.Generator, calibre: float) -> list[tuple[np.ndarray, np.ndarray]]:
    chains = []
    for name, (control, first, last) in table.items():
        for side in (-1.0, 1.0) if name.startswith("+") else (1.0,):
            moved = np.array(control, dtype=float) * [side, 1, 1]
            moved[:-1] += rng.normal(0, 1.0, moved[:-1].shape)
            points = smooth_path(moved)
            points = points + 0.5 * _wobble(len(points), rng)
            radii = np.linspace(first, last, len(points)) * calibre * np.exp(rng.normal(0, 0.15))
            chains.append((points, radii))
    return chains


@numba.njit(cache=True)
def _splat(volume, points, radii, starts, spacing):
    """Deposit the vessels' volume on a grid, in shares of a voxel (trilinear).

    The lumen is filled with small elements, each a disc point times a step: volume is kept
    whatever the vessel's width against the voxel, which is what partial volume is.
    """
    nx, ny, nz = volume.shape
    voxel = spacing[0] * spacing[1] * spacing[2]
    finest = min(spacing[0], spacing[1], spacing[2])
    u, v, t = np.zeros(3), np.zeros(3), np.zeros(3)
    for chain in range(len(starts) - 1):
        for index in range(starts[chain], starts[chain + 1] - 1):
            length = 0.0
            for axis in range(3):
                t[axis] = points[index + 1, axis] - points[index, axis]
                length += t[axis] ** 2
            length = np.sqrt(length)
            if length < 1e-6 or length > 5.0:
                continue
            for axis in range(3):
                t[axis] /= length
            least = 0
            for axis in range(1, 3):
                if abs(t[axis]) < abs(t[least]):
                    least = axis
            u[:] = 0.0
            u[least] = 1.0
            dot = t[least]
            norm = 0.0
            for axis in range(3):
                u[axis] -= dot * t[axis]
                norm += u[axis] ** 2
            for axis in range(3):
                u[axis] /= np.sqrt(norm)
            v[0] = t[1] * u[2] - t[2] * u[1]
            v[1] = t[2] * u[0] - t[0] * u[2]
            v[2] = t[0] * u[1] - t[1] * u[0]
            radius = 0.5 * (radii[index] + radii[index + 1])
            rings = max(1, int(np.ceil(radius / (0.8 * finest))))
            pieces = max(1, int(np.ceil(length / (0.8 * finest))))
            for ring in range(rings):
                inner, outer = radius * ring / rings, radius * (ring + 1) / rings
                middle = 0.0 if rings == 1 else np.sqrt(0.5 * (inner**2 + outer**2))
                around = 1 if rings == 1 else max(4, int(np.ceil(6.28 * middle / (0.8 * finest))))
                share = np.pi * (outer**2 - inner**2) * length / (around * pieces * voxel)
                for turn in range(around):
                    angle = 6.283185307 * turn / around
                    a, b = middle * np.cos(angle), middle * np.sin(angle)
                    for piece in range(pieces):
                        along = length * (piece + 0.5) / pieces
                        x = (points[index, 0] + a * u[0] + b * v[0] + along * t[0]) / spacing[0]
                        y = (points[index, 1] + a * u[1] + b * v[1] + along * t[1]) / spacing[1]
                        z = (points[index, 2] + a * u[2] + b * v[2] + along * t[2]) / spacing[2]
                        i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
                        if i < 0 or j < 0 or k < 0 or i >= nx - 1 or j >= ny - 1 or k >= nz - 1:
                            continue
                        x, y, z = x - i, y - j, z - k
                        volume[i, j, k] += share * (1 - x) * (1 - y) * (1 - z)
                        volume[i, j, k + 1] += share * (1 - x) * (1 - y) * z
                        volume[i, j + 1, k] += share * (1 - x) * y * (1 - z)
                        volume[i, j + 1, k + 1] += share * (1 - x) * y * z
                        volume[i + 1, j, k] += share * x * (1 - y) * (1 - z)
                        volume[i + 1, j, k + 1] += share * x * (1 - y) * z
                        volume[i + 1, j + 1, k] += share * x * y * (1 - z)
                        volume[i + 1, j + 1, k + 1] += share * x * y * z


def rasterise(
    tree: VesselTree, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Share of each voxel that the vessels fill, float32, at most 1.

    Parameters
    ----------
    tree : VesselTree
        Points in mm from the centre of voxel (0, 0, 0) along the grid's axes.
    shape, spacing_mm : three values
        The grid.
    """
    volume = np.zeros(shape, np.float32)
    _splat(volume, tree.points, tree.radii, tree.starts, np.asarray(spacing_mm, dtype=float))
    np.minimum(volume, 1.0, out=volume)
    return volume


def crossings(
    tree: VesselTree,
    slice_normal: np.ndarray,
    rng: np.random.Generator,
    least_radius_mm: float = 0.3,
    spacing_mm: float = 6.0,
    most: int = 80,
) -> np.ndarray:
    """Indices of points where a vessel crosses the slices steeply and so looks like a dot."""
    if not len(tree.points):
        return np.zeros(0, int)
    heading = np.gradient(tree.points, axis=0)
    norm = np.linalg.norm(heading, axis=1)
    steep = np.abs(heading @ slice_normal) > 0.8 * np.maximum(norm, 1e-9)
    candidates = np.flatnonzero(steep & (tree.radii >= least_radius_mm))
    candidates = rng.permutation(candidates)
    kept: list[int] = []
    positions = np.empty((0, 3))
    for index in candidates:
        if len(kept) >= most:
            break
        point = tree.points[index]
        if not len(positions) or np.linalg.norm(positions - point, axis=1).min() > spacing_mm:
            kept.append(int(index))
            positions = np.vstack([positions, point])
    return np.array(sorted(kept), dtype=int)
