"""Pictures of one scan: the whole brain with its lesions circled, and each lesion from near.

Everything is drawn with Pillow on arrays, which starts in a tenth of the time matplotlib takes; a
cohort has one such job for every scan. Arrays are (x, y, z) with an affine to scanner mm; in the
pictures the left of the brain is on the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_bids.report.tiles import MOST_TILES, count_rows_and_columns, place_tile
from cmb_bids.volumes import voxel_sizes, world_to_voxel

# Overview.
PANEL_PIXELS_PER_MM = 1.25
PANELS_IN_A_ROW = (5, 6, 7)  # whichever leaves fewest empty places
PANEL_MARGIN_MM = 6.0
FEWEST_PANELS_MM = 3.0  # no two panels are closer than this
CIRCLE_RADIUS_MM = 6.0
OVERSAMPLING = 2  # lines are drawn larger and shrunk, which smooths them

# Close-ups.
CLOSE_UP_MM = 24.0
CLOSE_UP_PIXELS = 96
GAP_PIXELS = 2
SCALE_BAR_MM = 5.0
PHASE_WINDOW = (-1.5, 1.5)  # radians

MICROBLEED_COLOUR = (255, 69, 58)
CALCIFICATION_COLOUR = (64, 200, 255)
OUTLINE_COLOUR = (255, 214, 10)
TEXT_COLOUR = (200, 208, 216)
PAPER = (16, 18, 22)
COLOURS = {"microbleed": MICROBLEED_COLOUR, "calcification": CALCIFICATION_COLOUR}


class Mark(NamedTuple):
    """A lesion on a picture: ``position`` (3,) scanner mm, its kind, label and certainty."""

    position: Sequence[float]
    kind: str
    label: str
    definite: bool


class Picture(NamedTuple):
    """An image to look at: ``data`` (x, y, z), the values shown black and white, a short name."""

    data: np.ndarray
    window: tuple[float, float]
    name: str


# ------------------------------------------------------------------------------- overview


def draw_overview(
    image: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    marks: Sequence[Mark],
    slab_mm: float,
) -> bytes:
    """Slices through the brain, a slab apart, with its outline and every lesion in one of them.

    Parameters
    ----------
    image : (x, y, z) array
        Minimum-intensity projection; dark is dark.
    mask : (x, y, z) bool array
        Brain.
    affine : (4, 4) array
        Voxel to scanner mm.
    marks : sequence of Mark
        Definite lesions get a whole circle, others a broken one.
    slab_mm : float
        Thickness of the projection, and so the distance of the slices.

    Returns
    -------
    bytes
        PNG.
    """
    image, mask, affine = _upright(image, mask, affine)
    sizes = voxel_sizes(affine)
    box = _brain_box(mask, sizes)
    levels = choose_levels(mask, sizes[2], slab_mm)
    top = _bright(image, mask)
    panels = [_draw_panel(image[..., level], mask[..., level], box, sizes, top) for level in levels]
    voxels = world_to_voxel(affine, np.reshape([mark.position for mark in marks], (-1, 3)))
    for mark, voxel in zip(marks, voxels, strict=True):
        panel = int(np.argmin(np.abs(np.array(levels) - voxel[2])))
        start = np.array([side.start for side in box])
        place = (voxel[:2] - start + 0.5) * sizes[:2] * PANEL_PIXELS_PER_MM
        _circle(panels[panel], place, mark)
    heights = [float((affine @ [*np.array(mask.shape[:2]) / 2, level, 1])[2]) for level in levels]
    return _join_panels(panels, heights)


def _upright(
    image: np.ndarray, mask: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes permuted and flipped to run right, anterior and superior as closely as they can."""
    orientation = nib.orientations.io_orientation(affine)
    turned = [nib.orientations.apply_orientation(array, orientation) for array in (image, mask)]
    back = nib.orientations.inv_ornt_aff(orientation, image.shape)
    return turned[0], turned[1] > 0, affine @ back


def _brain_box(mask: np.ndarray, sizes: np.ndarray) -> tuple[slice, slice]:
    """The part of a slice that holds the brain, with a margin; all of it where there is none."""
    box = []
    for axis in (0, 1):
        inside = np.flatnonzero(mask.any(axis=(1 - axis, 2)))
        length = mask.shape[axis]
        margin = round(PANEL_MARGIN_MM / sizes[axis])
        first, last = (inside[0], inside[-1]) if inside.size else (0, length - 1)
        box.append(slice(max(0, first - margin), min(length, last + margin + 1)))
    return box[0], box[1]


def choose_levels(mask: np.ndarray, thickness_mm: float, slab_mm: float) -> list[int]:
    """Slices a slab apart that together show the whole brain, from below.

    Parameters
    ----------
    mask : (x, y, z) bool array
    thickness_mm : float
        Distance of slices.
    slab_mm : float
        Distance of the chosen ones.
    """
    inside = np.flatnonzero(mask.any(axis=(0, 1)))
    first, last = (inside[0], inside[-1]) if inside.size else (0, mask.shape[2] - 1)
    height = (last - first + 1) * thickness_mm
    count = max(1, int(np.ceil(height / max(slab_mm, FEWEST_PANELS_MM))))
    edges = np.linspace(first, last + 1, count + 1)
    return sorted({int(level) for level in (edges[:-1] + edges[1:]) / 2})


def _bright(image: np.ndarray, mask: np.ndarray) -> float:
    """What is shown white: the brightest of the brain but a few voxels."""
    values = image[mask] if mask.any() else image
    values = values[np.isfinite(values)]
    return float(np.percentile(values, 99.5)) if values.size else 1.0


def _grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as (..., 3) uint8 from black to white; what is not finite is black."""
    share = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1)
    level = np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=-1)


def _draw_panel(
    image: np.ndarray, mask: np.ndarray, box: tuple[slice, slice], sizes: np.ndarray, top: float
) -> Any:
    """One slice with the outline of the brain, larger by `OVERSAMPLING`."""
    from PIL import Image

    image, mask = image[box], mask[box]
    scale = sizes[:2] * PANEL_PIXELS_PER_MM * OVERSAMPLING
    size = round(image.shape[0] * scale[0]), round(image.shape[1] * scale[1])
    # Pillow has rows from the top: anterior is up.
    picture = Image.fromarray(_grey(image.T[::-1], 0, top)).resize(size, Image.Resampling.BILINEAR)
    shape = Image.fromarray((255 * mask.T[::-1]).astype(np.uint8))
    inside = np.asarray(shape.resize(size, Image.Resampling.BILINEAR)) > 127
    edge = inside & ~ndimage.binary_erosion(inside)
    pixels = np.array(picture)
    pixels[edge] = OUTLINE_COLOUR
    return Image.fromarray(pixels)


def _circle(panel: Any, place: np.ndarray, mark: Mark) -> None:
    """A circle and the lesion's label on a panel; ``place`` (2,) in pixels from below."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(panel)
    x, y = place[0] * OVERSAMPLING, panel.height - place[1] * OVERSAMPLING
    radius = CIRCLE_RADIUS_MM * PANEL_PIXELS_PER_MM * OVERSAMPLING
    box = (x - radius, y - radius, x + radius, y + radius)
    colour = COLOURS[mark.kind]
    for begin in range(0, 360, 360 if mark.definite else 45):
        draw.arc(box, begin, begin + (360 if mark.definite else 24), fill=colour, width=3)
    font = _font(11 * OVERSAMPLING)
    left = x + radius + font.getlength(mark.label) < panel.width
    side = x + radius + 6 if left else x - radius - 6 - font.getlength(mark.label)
    draw.text((side, y - radius), mark.label, fill=colour, font=font)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _join_panels(panels: Sequence[Any], heights_mm: Sequence[float]) -> bytes:
    """Panels in rows, each with its height."""
    from PIL import Image, ImageDraw

    width, height = (max(getattr(p, side) for p in panels) for side in ("width", "height"))
    columns = min(PANELS_IN_A_ROW, key=lambda n: (-len(panels) % n, -n))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), PAPER)
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % columns * width, number // columns * height))
    size = (sheet.width // OVERSAMPLING, sheet.height // OVERSAMPLING)
    sheet = sheet.resize(size, Image.Resampling.BOX)
    draw = ImageDraw.Draw(sheet)
    for number, level in enumerate(heights_mm):
        x, y = (number % columns * width, number // columns * height)
        words = f"z {level:+.0f} mm"
        draw.text((x // OVERSAMPLING + 3, y // OVERSAMPLING + 2), words, TEXT_COLOUR, _font(11))
    for side, x in (("L", 3), ("R", width // OVERSAMPLING - 12)):
        draw.text((x, height // OVERSAMPLING - 16), side, TEXT_COLOUR, _font(12))
    return pack(sheet.quantize(palette=_palette(), dither=Image.Dither.NONE))


# ------------------------------------------------------------------------------ close-ups


def tile_size(pictures: int) -> tuple[int, int]:
    """Width and height in pixels of one lesion's close-up, from the number of images."""
    side = CLOSE_UP_PIXELS + GAP_PIXELS
    return 3 * side - GAP_PIXELS, pictures * side - GAP_PIXELS


def draw_close_ups(pictures: Sequence[Picture], affine: np.ndarray, positions: np.ndarray) -> bytes:
    """Each lesion in three planes (columns) of every image (rows), on one sheet.

    Parameters
    ----------
    pictures : sequence of Picture
        On one grid.
    affine : (4, 4) array
        Voxel to scanner mm.
    positions : (n, 3) array
        Scanner mm; the first `MOST_TILES` are drawn.

    Returns
    -------
    bytes
        PNG; where each close-up is: `cmb_bids.report.tiles.tiles_of`. A single empty tile where
        there is no lesion.
    """
    from PIL import Image

    positions = np.reshape(positions, (-1, 3))[:MOST_TILES]
    width, height = tile_size(len(pictures))
    rows, columns = count_rows_and_columns(len(positions))
    sheet = Image.new("RGB", (columns * width, rows * height), PAPER)
    for number, position in enumerate(positions):
        tile = _draw_tile(pictures, affine, position)
        sheet.paste(tile, place_tile(number, width, height)[:2])
    return pack(sheet)


def close_up_planes(data: np.ndarray, affine: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Axial, coronal and sagittal squares of `CLOSE_UP_MM` round a point.

    Parameters
    ----------
    data : (x, y, z) array
    affine : (4, 4) array
        Voxel to scanner mm.
    position : (3,) array
        Scanner mm.

    Returns
    -------
    (3, up, right) array
        Rows run from the top; NaN outside the image.
    """
    offsets = (np.arange(CLOSE_UP_PIXELS) + 0.5) / CLOSE_UP_PIXELS * CLOSE_UP_MM - CLOSE_UP_MM / 2
    up, right = np.meshgrid(offsets[::-1], offsets, indexing="ij")
    nothing = np.zeros_like(up)
    planes = [
        np.stack(axes, axis=-1)
        for axes in ((right, up, nothing), (right, nothing, up), (nothing, right, up))
    ]
    points = np.asarray(position) + np.reshape(planes, (-1, 3))
    voxels = world_to_voxel(affine, points)
    low = np.clip(np.floor(voxels.min(axis=0)).astype(int) - 1, 0, data.shape)
    high = np.clip(np.ceil(voxels.max(axis=0)).astype(int) + 2, 0, data.shape)
    if (high <= low).any():
        return np.full((3, *up.shape), np.nan)
    part = np.nan_to_num(data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    # Nearest voxel: what is seen is what was measured.
    nearest = np.rint(voxels).astype(int) - low
    inside = ((nearest >= 0) & (nearest < part.shape)).all(axis=1)
    values = np.full(len(points), np.nan)
    values[inside] = part[tuple(nearest[inside].T)]
    return values.reshape(3, *up.shape)


def _draw_tile(pictures: Sequence[Picture], affine: np.ndarray, position: np.ndarray) -> Any:
    """Close-up of one lesion."""
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", tile_size(len(pictures)), PAPER)
    draw = ImageDraw.Draw(tile)
    step = CLOSE_UP_PIXELS + GAP_PIXELS
    for row, picture in enumerate(pictures):
        planes = close_up_planes(picture.data, affine, position)
        for column, plane in enumerate(planes):
            square = Image.fromarray(_grey(plane, *picture.window))
            tile.paste(square, (column * step, row * step))
            _draw_ticks(draw, column * step, row * step)
        draw.text((3, row * step + 1), picture.name, TEXT_COLOUR, _font(10), stroke_width=1,
                  stroke_fill=(0, 0, 0))  # fmt: skip
    length = SCALE_BAR_MM / CLOSE_UP_MM * CLOSE_UP_PIXELS
    right, bottom = tile.width - 5, tile.height - 5
    draw.line((right - length, bottom, right, bottom), fill=(255, 255, 255), width=2)
    return tile


def _draw_ticks(draw: Any, left: int, top: int) -> None:
    """Marks on the edges that point at the middle, and so leave the lesion free."""
    middle, last = CLOSE_UP_PIXELS // 2, CLOSE_UP_PIXELS - 1
    for line in (
        (left + middle, top, left + middle, top + 5),
        (left + middle, top + last - 5, left + middle, top + last),
        (left, top + middle, left + 5, top + middle),
        (left + last - 5, top + middle, left + last, top + middle),
    ):
        draw.line(line, fill=OUTLINE_COLOUR, width=1)


def pack(sheet: Any) -> bytes:
    """A Pillow image as PNG."""
    stream = BytesIO()
    sheet.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


@cache
def _palette() -> Any:
    """Grey levels, and the colours of lines with what they become where they are smoothed."""
    from PIL import Image

    greys = [(level, level, level) for level in np.linspace(0, 255, 96).round().astype(int)]
    blends = [
        tuple(np.round(share * np.array(colour) + (1 - share) * level).astype(int))
        for colour in (MICROBLEED_COLOUR, CALCIFICATION_COLOUR, OUTLINE_COLOUR)
        for share in (1.0, 0.85, 0.7, 0.5, 0.3)
        for level in (0, 36, 72, 108, 144, 180, 216, 252)
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(value) for colour in [*greys, *blends] for value in colour])
    return palette


def pictures_of(images: Mapping[str, np.ndarray], mask: np.ndarray) -> list[Picture]:
    """Images to look at, in the order given: phase in a fixed window, others up to the brain's top.

    Parameters
    ----------
    images : mapping
        Short name -> (x, y, z) array; 'phase' is in radians.
    mask : (x, y, z) bool array
        Brain.
    """
    return [
        Picture(data, PHASE_WINDOW if name == "phase" else (0.0, _bright(data, mask)), name)
        for name, data in images.items()
    ]
