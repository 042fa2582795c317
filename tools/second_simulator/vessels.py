"""Veins, arteries and perivascular spaces, as tapering tubes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from scipy import ndimage
from scipy.spatial import cKDTree

from second_simulator.head import Anatomy, Grid, _resample_axis


def colonise(
    rng: np.random.Generator, roots: np.ndarray, attractors: np.ndarray,
    step: float = 1.6, reach: float = 15.0, kill: float = 2.6,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Grow a forest from roots (n, 3) to attractors (m, 3): space colonisation.

    Returns
    -------
    nodes : (k, 3) array
        Positions in mm; the first n are the roots.
    parents : (k,) array of int
        Always smaller than the node's own number; -1 for roots.
    """
    nodes, parents = roots.copy(), np.full(len(roots), -1)
    children = np.zeros(len(roots), int)
    for _ in range(140):
        if len(attractors) == 0:
            break
        distance, nearest = cKDTree(nodes).query(attractors, distance_upper_bound=reach)
        pulled = np.isfinite(distance) & (children[np.minimum(nearest, len(nodes) - 1)] < 3)
        if not pulled.any():
            break
        towards = (attractors[pulled] - nodes[nearest[pulled]]) / distance[pulled][:, None]
        sums = np.zeros_like(nodes)
        np.add.at(sums, nearest[pulled], towards)
        growing = np.unique(nearest[pulled])
        heading = sums[growing] + rng.normal(0, 0.25, (len(growing), 3))
        heading /= np.linalg.norm(heading, axis=1, keepdims=True) + 1e-9
        new = nodes[growing] + step * heading
        children[growing] += 1
        nodes, parents = np.vstack([nodes, new]), np.concatenate([parents, growing])
        children = np.concatenate([children, np.zeros(len(new), int)])
        attractors = attractors[cKDTree(new).query(attractors)[0] > kill]
    return nodes, parents


def murray_radii(rng: np.random.Generator, parents: np.ndarray, largest: float) -> np.ndarray:
    """Radii (mm) from thin tips towards the roots, their cubes adding up at each bifurcation."""
    cubes = np.zeros(len(parents))
    tips = rng.uniform(0.2, 0.4, len(parents)) ** 3
    for node in range(len(parents) - 1, -1, -1):
        cubes[node] = cubes[node] or tips[node]
        if parents[node] >= 0:
            cubes[parents[node]] += cubes[node]
    return np.minimum(np.cbrt(cubes), largest)


def _polyline(points: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Segments (n, 8): both ends and both radii."""
    radius = np.broadcast_to(radius, len(points))
    return np.column_stack([points[:-1], points[1:], radius[:-1], radius[1:]])


def _drawn(
    rng: np.random.Generator, anatomy: Anatomy, lines: Sequence[Any], taper: float = 0.0
) -> list[np.ndarray]:
    """Both sides of drawn vessels, smoothed, shaken and thin where they begin, in image mm."""
    segments = []
    for points, radius in lines:
        for side in (-1, 1):
            line = np.array(points, float) * (side, 1, 1)
            along = np.linspace(0, len(line) - 1, 14 * (len(line) - 1))
            line = np.column_stack([_resample_axis(line[:, i], 0, along) for i in range(3)])
            shake = ndimage.gaussian_filter1d(rng.normal(0, 1, line.shape), 9, axis=0)
            line += 1.2 * shake / shake.std()
            wide = (
                radius
                * rng.uniform(0.8, 1.25)
                * (np.linspace(1 - taper, 1, len(line)) if taper else np.ones(len(line)))
            )
            segments.append(_polyline(anatomy.to_image(line), wide))
    return segments


def dural_sinuses(anatomy: Anatomy) -> list[tuple[np.ndarray, float]]:
    """Sagittal, straight and transverse sinuses along the inner skull, image mm and radius."""
    cavity = anatomy.layers["cavity"]

    def on_skull(start: np.ndarray, direction: np.ndarray) -> np.ndarray:
        ray = anatomy.to_image(start + np.linspace(15, 120, 211)[:, None] * direction)
        return ray[np.argmax(anatomy.at(cavity, ray) > -1.5)]

    angles = np.deg2rad(np.linspace(12, 187, 60))
    top = [on_skull(np.array([0, -20, 5.0]), np.array([0, np.cos(a), np.sin(a)])) for a in angles]
    lines = [(np.array(top), 3.2)]
    torcula = top[-1]
    galen = anatomy.to_image(np.array([[0.5, -41, 8]]))[0]
    lines.append((galen + np.linspace(0, 1, 20)[:, None] * (torcula - galen), 1.8))
    for side in (-1, 1):
        azimuth = np.deg2rad(np.linspace(268, 330, 25))
        start = np.array([0, -40, -14.0])
        sweep = [on_skull(start, np.array([side * np.cos(a), np.sin(a), -0.05])) for a in azimuth]
        lines.append((np.vstack([torcula, *sweep]), 2.8 if side > 0 else 2.0))
    return lines


def cortical_veins(
    rng: np.random.Generator, anatomy: Anatomy, sinuses: list[tuple[np.ndarray, float]]
) -> np.ndarray:
    """Sulcal veins and their branches that drain into the sinuses, as segments."""
    layers, grid = anatomy.layers, anatomy.grid
    outer = (layers["cavity"] < -0.8) & (layers["brain"] > -24) & (layers["csf"] > 0.35)
    places = _positions(grid, outer)
    wanted = min(len(places), int(rng.uniform(1800, 3600)))
    attractors = places[rng.choice(len(places), wanted, replace=False)]
    attractors = attractors + rng.uniform(-0.7, 0.7, attractors.shape)
    roots = np.vstack([line[::5] for line, _ in sinuses])
    sylvian = [(s * x, y, z) for s in (-1, 1) for x, y, z in ((44, 0, -8), (54, -20, 8))]
    roots = np.vstack([roots, anatomy.to_image(np.array(sylvian, float))])
    nodes, parents = colonise(rng, roots, attractors)
    radii = murray_radii(rng, parents, 1.7)
    # Veins lie in the fluid, not across the gyri: draw each node towards the nearest sulcus.
    _, nearest = cKDTree(places).query(nodes)
    free = parents >= 0
    nodes[free] += 0.65 * (places[nearest[free]] - nodes[free])
    for _ in range(3):
        middle = np.zeros_like(nodes)
        count = np.bincount(parents[free], minlength=len(nodes))
        np.add.at(middle, parents[free], nodes[free])
        inside = free & (count > 0)
        mean = middle[inside] / count[inside][:, None] + nodes[parents[inside]]
        nodes[inside] = 0.5 * nodes[inside] + 0.25 * mean
    child = np.flatnonzero(free)
    up = parents[child]
    thick = np.minimum(radii[up], 1.5 * radii[child])
    return np.column_stack([nodes[child], nodes[up], radii[child], thick])


def medullary_veins(rng: np.random.Generator, anatomy: Anatomy) -> list[np.ndarray]:
    """Thin veins that leave the ventricles' walls and run out through the white matter."""
    layers, grid = anatomy.layers, anatomy.grid
    ventricle = (layers["csf"] > 0.6) & (layers["brain"] < -22) & (anatomy.mni[2] > 0)
    distance = ndimage.distance_transform_edt(~ventricle, sampling=grid.spacing[::-1])
    distance = ndimage.gaussian_filter(distance, 1.5)
    slope = np.gradient(distance, *grid.spacing[::-1])[::-1]
    wall = _positions(grid, (distance > 0.5) & (distance < 3) & (layers["white"] > 0.5))
    if len(wall) == 0:
        return []
    segments = []
    for start in wall[rng.choice(len(wall), int(rng.uniform(120, 400)))]:
        line, turn = [start], rng.normal(0, 0.35, 3)
        for _ in range(int(rng.uniform(6, 26))):
            here = line[-1][None]
            if anatomy.at(layers["white"], here)[0] < 0.35:
                break
            turn = 0.9 * turn + rng.normal(0, 0.1, 3)
            heading = np.array([anatomy.at(s, here)[0] for s in slope]) + turn
            line.append(line[-1] + heading / (np.linalg.norm(heading) + 1e-9))
        if len(line) > 3:
            taper = rng.uniform(0.18, 0.48) * np.linspace(1, 0.4, len(line))
            segments.append(_polyline(np.array(line), taper))
    return segments


def perivascular_spaces(rng: np.random.Generator, anatomy: Anatomy, age: float) -> np.ndarray:
    """Short tubes of fluid in white matter and under the putamen, as segments."""
    layers = anatomy.layers
    deep = (layers["white"] > 0.6) & (layers["brain"] < -8) & (anatomy.mni[2] > -10)
    places = _positions(anatomy.grid, deep)
    chosen = places[rng.choice(len(places), int(rng.uniform(10, 25) * (0.5 + age / 50)))]
    heading = rng.normal((0, 0, 1.5), 1, chosen.shape)
    heading /= np.linalg.norm(heading, axis=1, keepdims=True)
    length = rng.uniform(2, 9, len(chosen))[:, None]
    radius = rng.uniform(0.25, 0.7, len(chosen))
    return np.column_stack([chosen, chosen + length * heading, radius, 0.7 * radius])


def _positions(grid: Grid, where: np.ndarray) -> np.ndarray:
    """Image mm (n, 3) of the voxels of a mask (z, y, x)."""
    return np.argwhere(where)[:, ::-1] * grid.spacing + grid.first


@njit(cache=True)
def _draw_tubes(
    target: np.ndarray, segments: np.ndarray, spacing: np.ndarray, first: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Write the fraction of each voxel that round tubes fill (0..255), the largest of them."""
    n = (target.shape[2], target.shape[1], target.shape[0])
    soft = 0.5 * (spacing[0] + spacing[1])
    parts = max(1, round(spacing[2] / soft))
    low, high = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for s in range(segments.shape[0]):
        a, b = segments[s, 0:3], segments[s, 3:6]
        along = b - a
        square = max(along[0] ** 2 + along[1] ** 2 + along[2] ** 2, 1e-9)
        widest = max(segments[s, 6], segments[s, 7]) + soft + 0.5 * spacing[2]
        for i in range(3):
            low[i] = max(0, int(np.ceil((min(a[i], b[i]) - widest - first[i]) / spacing[i])))
            high[i] = min(n[i] - 1, int((max(a[i], b[i]) + widest - first[i]) / spacing[i]))
        for k in range(low[2], high[2] + 1):
            for j in range(low[1], high[1] + 1):
                for i in range(low[0], high[0] + 1):
                    filled = 0.0
                    x = first[0] + i * spacing[0] - a[0]
                    y = first[1] + j * spacing[1] - a[1]
                    for p in range(parts):
                        z = first[2] + (k + (p + 0.5) / parts - 0.5) * spacing[2] - a[2]
                        t = (x * along[0] + y * along[1] + z * along[2]) / square
                        t = min(max(t, 0.0), 1.0)
                        apart = np.sqrt(
                            (x - t * along[0]) ** 2
                            + (y - t * along[1]) ** 2
                            + (z - t * along[2]) ** 2
                        )
                        radius = (1 - t) * segments[s, 6] + t * segments[s, 7]
                        # A tube thinner than the voxel is drawn as wide as it, and as much fainter.
                        drawn = max(radius, 0.6 * soft)
                        cover = min(max((drawn - apart) / soft + 0.5, 0.0), 1.0)
                        filled += cover * radius**2 / (drawn**2 + soft**2 / 12)
                    value = int(255 * filled / parts + 0.5)
                    if value > target[k, j, i]:
                        target[k, j, i] = value
