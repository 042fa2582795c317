"""Lesions of a cohort on the brain, in MNI space: projections and slabs, as PNG.

The background is the head template that the package ships, brought to MNI space by its matrix
(`cmb_bids.brain.load_template`). Every lesion is in each of the three projections once, and in one
axial slab. Few lesions are drawn one by one, many as a density.

matplotlib is imported when a map is drawn, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from cmb_bids.report.page import show
from cmb_bids.volumes import world_to_voxel

# The box that is drawn, MNI mm; it holds the whole brain.
LOW_MM = np.array([-80.0, -116.0, -82.0])
HIGH_MM = np.array([80.0, 80.0, 84.0])
PIXEL_MM = 1.0
SLAB_MM = 16.0
SLAB_CENTRES_MM = tuple(np.arange(-48.0, 77.0, SLAB_MM))
MOST_MARKERS = 600  # above this many of a kind they would hide each other
DENSITY_SIGMA_MM = 4.0
# Axes drawn to the right and upwards, and the axis looked along.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}

COLOURS = {"microbleed": "#ff5b4a", "calcification": "#35c3f3"}
MARKERS = {"microbleed": "o", "calcification": "D"}
COLOUR_MAPS = {"microbleed": "inferno", "calcification": "viridis"}
_PAPER = "#14171b"


class Background(NamedTuple):
    """The brain in MNI space: ``image`` and ``inside`` (x, y, z) on a 1 mm grid from `LOW_MM`."""

    image: np.ndarray
    inside: np.ndarray


@cache
def load_background() -> Background:
    """The shipped head template and its brain mask, resampled to MNI space."""
    from cmb_bids.brain import load_template

    template = load_template()
    shape = np.round((HIGH_MM - LOW_MM) / PIXEL_MM).astype(int)
    to_voxel = np.linalg.inv(template.to_mni @ template.affine)
    matrix = to_voxel[:3, :3] * PIXEL_MM
    offset = to_voxel[:3, :3] @ (LOW_MM + PIXEL_MM / 2) + to_voxel[:3, 3]
    image = ndimage.affine_transform(template.head, matrix, offset, tuple(shape), order=1)
    mask = template.mask.astype(np.float32)
    inside = ndimage.affine_transform(mask, matrix, offset, tuple(shape), order=1) > 0.5
    return Background(image, inside)


class MappedLesions(NamedTuple):
    """Lesions that can be drawn, by kind, and how many cannot.

    ``points`` maps a kind to (n, 3) MNI mm, ``definite`` to (n,) bool; ``unplaced`` have no MNI
    coordinates, ``not_counted`` are microbleeds outside the counted sizes or in failed scans.
    """

    points: dict[str, np.ndarray]
    definite: dict[str, np.ndarray]
    unplaced: int
    not_counted: int


def choose_lesions(lesions: pd.DataFrame) -> MappedLesions:
    """Lesions to draw: counted microbleeds and all calcifications that have MNI coordinates.

    Parameters
    ----------
    lesions : DataFrame
        ``x_mni``, ``y_mni``, ``z_mni`` (mm), ``kind``; ``certainty`` and ``counted`` where known.
    """
    table = lesions.reset_index(drop=True)
    axes = ("x_mni", "y_mni", "z_mni")
    missing = pd.Series(np.nan, index=table.index)
    xyz = np.stack([_numbers(table.get(name, missing)) for name in axes], axis=1)
    kind = table["kind"].astype(str)
    counted = table.get("counted", pd.Series(True, index=table.index)).astype(str).str.lower()
    dropped = (kind == "microbleed") & (counted == "false")
    placed = np.isfinite(xyz).all(axis=1)
    certainty = table.get("certainty", pd.Series("definite", index=table.index)).astype(str)
    points, definite = {}, {}
    for name in COLOURS:
        chosen = ((kind == name) & ~dropped).to_numpy() & placed
        points[name] = xyz[chosen]
        definite[name] = (certainty[chosen] != "possible").to_numpy()
    unplaced = int((kind.isin(list(COLOURS)) & ~dropped & ~placed).sum())
    return MappedLesions(points, definite, unplaced, int(dropped.sum()))


def _numbers(column: Any) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def density(points: np.ndarray, plane: str) -> np.ndarray:
    """Lesions per cm2 of a plane's projection, smoothed.

    Parameters
    ----------
    points : (n, 3) array
        MNI mm.
    plane : str
        A key of `PLANES`.

    Returns
    -------
    (right, up) array
        On the 1 mm grid from `LOW_MM`; sums to the number of points in the box, over 100 mm2.
    """
    right, up, _ = PLANES[plane]
    edges = [np.arange(LOW_MM[axis], HIGH_MM[axis] + 0.5, PIXEL_MM) for axis in (right, up)]
    counts, _, _ = np.histogram2d(points[:, right], points[:, up], bins=edges)
    smoothed = ndimage.gaussian_filter(counts, DENSITY_SIGMA_MM / PIXEL_MM, mode="constant")
    return np.asarray(smoothed * 100 / PIXEL_MM**2)


def slab_of(points: np.ndarray) -> np.ndarray:
    """Which axial slab (index into `SLAB_CENTRES_MM`) each point lies in; the ends take the rest.

    Parameters
    ----------
    points : (n, 3) array
        MNI mm.

    Returns
    -------
    (n,) int array
    """
    index = np.round((points[:, 2] - SLAB_CENTRES_MM[0]) / SLAB_MM)
    return np.clip(index, 0, len(SLAB_CENTRES_MM) - 1).astype(int)


def inside_brain(points: np.ndarray) -> np.ndarray:
    """Which points (n, 3), MNI mm, lie in the drawn brain."""
    grid = np.eye(4)
    grid[:3, :3] *= PIXEL_MM
    grid[:3, 3] = LOW_MM + PIXEL_MM / 2
    background = load_background().inside
    voxels = np.round(world_to_voxel(grid, points)).astype(int)
    valid = ((voxels >= 0) & (voxels < background.shape)).all(axis=1)
    inside = np.zeros(len(points), dtype=bool)
    inside[valid] = background[tuple(voxels[valid].T)]
    return inside


def draw_lesion_map(lesions: MappedLesions, kinds: Sequence[str]) -> bytes:
    """Three projections and the axial slabs, with the lesions of some kinds.

    Parameters
    ----------
    lesions : MappedLesions
    kinds : sequence of str
        Kinds in one map. One kind with more than `MOST_MARKERS` lesions is drawn as a density;
        several kinds are always drawn as markers.

    Returns
    -------
    bytes
        PNG.
    """
    from matplotlib.figure import Figure

    as_density = len(kinds) == 1 and len(lesions.points[kinds[0]]) > MOST_MARKERS
    figure = Figure(figsize=(10.4, 11.2), dpi=100, facecolor=_PAPER)
    rows = figure.add_gridspec(
        4, 1, height_ratios=[1.25, 1, 1, 0.12], hspace=0.1,
        left=0.01, right=0.99, top=0.97, bottom=0.02,
    )  # fmt: skip
    everything = {kind: slice(None) for kind in kinds}
    top = rows[0].subgridspec(1, 3, width_ratios=[160, 160, 196], wspace=0.02)
    panels: list[Any] = []
    for column, plane in enumerate(PLANES):
        axes = figure.add_subplot(top[column])
        panels.append((axes, plane, _middle(plane), everything, f"{plane}, whole brain"))
    half = (len(SLAB_CENTRES_MM) + 1) // 2
    for number, centre in enumerate(SLAB_CENTRES_MM):
        row = rows[1 + number // half].subgridspec(1, half, wspace=0.02)
        axes = figure.add_subplot(row[number % half])
        chosen = {kind: slab_of(lesions.points[kind]) == number for kind in kinds}
        panels.append((axes, "axial", centre, chosen, _slab_title(number)))
    highest = {"whole": 0.0, "slab": 0.0}
    shown = []
    for axes, plane, where, chosen, title in panels:
        scale = "whole" if "whole" in title else "slab"
        _draw_background(axes, plane, where)
        axes.set_title(title, color="#c8d0d8", fontsize=9, pad=3)
        if as_density:
            image = density(lesions.points[kinds[0]][chosen[kinds[0]]], plane)
            shown.append((axes, plane, image, scale))
            highest[scale] = max(highest[scale], float(image.max()))
        else:
            _draw_markers(axes, plane, lesions, chosen)
    for axes, plane, image, scale in shown:
        _draw_density(axes, plane, image, highest[scale], COLOUR_MAPS[kinds[0]])
    legend = figure.add_subplot(rows[3])
    legend.set_axis_off()
    if as_density:
        _density_legend(legend, highest, COLOUR_MAPS[kinds[0]])
    else:
        _marker_legend(legend, kinds)
    return to_png(figure)


def _slab_title(number: int) -> str:
    """Which heights a slab holds; the first and last hold all beyond."""
    low, high = (SLAB_CENTRES_MM[number] + sign * SLAB_MM / 2 for sign in (-1, 1))
    title = f"z {low:+.0f} to {high:+.0f} mm"
    if number == 0:
        title = f"z below {high:+.0f} mm"
    elif number == len(SLAB_CENTRES_MM) - 1:
        title = f"z above {low:+.0f} mm"
    return title.replace("-", "−")


def _middle(plane: str) -> float:
    """Where a projection's background is cut: near the midline, through the deep nuclei."""
    return {"axial": 8.0, "coronal": -18.0, "sagittal": -4.0}[plane]


def _extent(plane: str) -> tuple[float, float, float, float]:
    right, up, _ = PLANES[plane]
    return LOW_MM[right], HIGH_MM[right], LOW_MM[up], HIGH_MM[up]


def _draw_background(axes: Any, plane: str, where_mm: float) -> None:
    """One slice of the brain with its outline; the left of the brain is on the left."""
    background = load_background()
    along = PLANES[plane][2]
    index = round((where_mm - LOW_MM[along]) / PIXEL_MM)
    image = np.take(background.image, index, axis=along)
    inside = np.take(background.inside, index, axis=along)
    grey = np.ma.masked_where(~inside, image)
    top = np.percentile(image[inside], 99.5) if inside.any() else 1.0
    axes.imshow(
        grey.T, cmap="gray", vmin=0, vmax=1.9 * top, origin="lower", extent=_extent(plane),
        interpolation="bilinear",
    )  # fmt: skip
    outline = background.inside.any(axis=along) if where_mm == _middle(plane) else inside
    axes.contour(
        outline.T.astype(float), [0.5], colors="#8793a0", linewidths=0.8, extent=_extent(plane)
    )
    axes.set_axis_off()
    axes.set_xlim(_extent(plane)[:2])
    axes.set_ylim(_extent(plane)[2:])
    words = ("back", "front") if plane == "sagittal" else ("L", "R")
    for x, side, align in zip((0.02, 0.98), words, ("left", "right"), strict=True):
        axes.text(
            x, 0.02, side, transform=axes.transAxes, color="#a4aeb9", fontsize=9,
            ha=align, va="bottom",
        )  # fmt: skip


def _draw_markers(axes: Any, plane: str, lesions: MappedLesions, chosen: dict[str, Any]) -> None:
    """Definite lesions filled, possible ones hollow; fainter where there are many."""
    right, up, _ = PLANES[plane]
    for kind, rows in chosen.items():
        points, definite = lesions.points[kind][rows], lesions.definite[kind][rows]
        alpha = float(np.clip(60 / max(1, len(points)), 0.35, 0.9))
        for sure in (False, True):
            some = points[definite == sure]
            face = COLOURS[kind] if sure else "none"
            axes.scatter(
                some[:, right], some[:, up], s=20, marker=MARKERS[kind], facecolors=face,
                edgecolors=COLOURS[kind], linewidths=0.9, alpha=alpha,
            )  # fmt: skip


def _draw_density(axes: Any, plane: str, image: np.ndarray, highest: float, colours: str) -> None:
    """Density over the brain, clear where there is none."""
    share = image / highest if highest else image
    axes.imshow(
        image.T, cmap=colours, vmin=0, vmax=highest or 1, origin="lower", extent=_extent(plane),
        alpha=np.clip(4 * share, 0, 0.85).T, interpolation="bilinear",
    )  # fmt: skip


def _marker_legend(axes: Any, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for kind in kinds:
        for word, face in (("definite", COLOURS[kind]), ("possible", "none")):
            handles.append(
                Line2D([], [], ls="", marker=MARKERS[kind], ms=6, mfc=face, mec=COLOURS[kind],
                       label=f"{kind}, {word}")
            )  # fmt: skip
    axes.legend(handles=handles, loc="center", ncols=4, frameon=False, labelcolor="#c8d0d8")


def _density_legend(axes: Any, highest: dict[str, float], colours: str) -> None:
    """The colours, with what they stand for in the projections and in the slabs."""
    ramp = axes.inset_axes((0.5, 0.45, 0.4, 0.35))
    ramp.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto", extent=(0, 1, 0, 1))
    ramp.set_yticks([])
    numbers = [
        " | ".join(show(share * highest[scale]) for scale in ("whole", "slab"))
        for share in (0.0, 0.5, 1.0)
    ]
    ramp.set_xticks([0, 0.5, 1], numbers)
    ramp.tick_params(colors="#c8d0d8", labelsize=8)
    text = "lesions per cm² in the projections | in the slabs"
    axes.text(0.47, 0.62, text, color="#c8d0d8", fontsize=9, ha="right", va="center",
              transform=axes.transAxes)  # fmt: skip


def to_png(figure: Any) -> bytes:
    """A matplotlib figure as a small PNG; the same figure gives the same bytes."""
    from PIL import Image

    stream = BytesIO()
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor(), metadata={})
    stream.seek(0)
    packed = BytesIO()
    with Image.open(stream) as image:
        # Six bits a channel look the same and pack to half.
        coarse = image.convert("RGB").point(lambda level: level & 0xFC)
        coarse.save(packed, format="PNG", optimize=True)
    return packed.getvalue()
