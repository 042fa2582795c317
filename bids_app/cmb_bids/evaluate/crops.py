"""Small views of a lesion: planes through a point, in mm, as a picture. Arrays only."""

from __future__ import annotations

from io import BytesIO

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmb_bids.volumes import slice_axis, voxel_sizes, world_to_voxel

WIDTH_MM = 32.0
PIXELS = 112
PHASE_WINDOW_RAD = 1.0
MARK_MM = (3.5, 6.0)  # ticks begin and end this far from the centre: they leave the lesion free
GAP = 2  # pixels between views
_MARK, _PAPER = 255, 254  # palette entries; the others are greys
_MARK_COLOUR, _PAPER_COLOUR = (255, 176, 0), (128, 128, 128)


def cut_plane(
    volume: np.ndarray,
    affine: np.ndarray,
    centre_mm: np.ndarray,
    plane: tuple[int, int],
    width_mm: float = WIDTH_MM,
    pixels: int = PIXELS,
) -> np.ndarray:
    """A square cut along two voxel axes, resampled linearly.

    Parameters
    ----------
    volume : (x, y, z) array
    affine : (4, 4) array
    centre_mm : (3,) array
        Scanner mm.
    plane : two of 0, 1, 2
        Scanner axes (right, anterior, superior) that the columns and the rows run along; each
        stands for the voxel axis closest to it.
    width_mm : float
    pixels : int

    Returns
    -------
    (pixels, pixels) array
        The patient's left is on the left; anterior or superior is up. Not a number outside.
    """
    orientation = nib.io_orientation(affine)
    sizes = voxel_sizes(affine)
    centre = world_to_voxel(affine, np.asarray(centre_mm, dtype=float))[0]
    offsets = (np.arange(pixels) - (pixels - 1) / 2) * width_mm / pixels
    steps = []
    for axis in plane:
        voxel_axis = int(np.flatnonzero(orientation[:, 0] == axis)[0])
        step = np.zeros(3)
        step[voxel_axis] = orientation[voxel_axis, 1] / sizes[voxel_axis]
        steps.append(step)
    columns, rows = np.meshgrid(offsets, offsets[::-1])
    at = centre[:, None, None] + steps[0][:, None, None] * columns + steps[1][:, None, None] * rows
    # Reading the neighbourhood alone: the whole volume may be large, and is not contiguous.
    low = np.maximum(np.floor(at.min(axis=(1, 2))).astype(int) - 1, 0)
    high = np.minimum(np.ceil(at.max(axis=(1, 2))).astype(int) + 2, volume.shape)
    if (high <= low).any():
        return np.full((pixels, pixels), np.nan)
    block = np.asarray(volume[tuple(map(slice, low, high))], dtype=np.float32)
    return ndimage.map_coordinates(block, at - low[:, None, None], order=1, cval=np.nan)


def planes_of(affine: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """The plane of the slices, and one across them, as `cut_plane` takes them."""
    across = int(nib.io_orientation(affine)[slice_axis(affine), 0])
    within = [axis for axis in range(3) if axis != across]
    through = sorted((within[0], across))
    return (within[0], within[1]), (through[0], through[1])


def _grey(view: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values to palette entries; what lies outside the image is paper."""
    scaled = (view - low) / max(high - low, 1e-9) * (_PAPER - 1)
    grey = np.clip(np.nan_to_num(scaled), 0, _PAPER - 1).astype(np.uint8)
    return np.where(np.isfinite(view), grey, _PAPER).astype(np.uint8)


def mark_centre(view: np.ndarray, width_mm: float = WIDTH_MM) -> np.ndarray:
    """Four ticks that point at the middle of a picture (n, n) of palette entries."""
    view = view.copy()
    pixels = len(view)
    begin, end = (round(mm / width_mm * pixels) for mm in MARK_MM)
    middle = pixels // 2
    for side in (-1, 1):
        ticks = middle + side * np.arange(begin, end + 1)
        view[ticks, middle] = view[middle, ticks] = _MARK
    return view


def draw_views(
    magnitude: np.ndarray,
    affine: np.ndarray,
    centre_mm: np.ndarray,
    phase: np.ndarray | None = None,
) -> bytes:
    """A PNG of a lesion: SWI (or magnitude) above, high-pass phase below where there is one.

    On the left in the plane of the slices, on the right across them.

    Parameters
    ----------
    magnitude : (x, y, z) array
        Shown from 0 to just above its bright tissue.
    affine : (4, 4) array
    centre_mm : (3,) array
        Scanner mm.
    phase : (x, y, z) array, optional
        Radians, shown from -1 (black) to 1 (white).
    """
    from PIL import Image

    planes = planes_of(affine)
    views = [cut_plane(magnitude, affine, centre_mm, plane) for plane in planes]
    known = views[0][np.isfinite(views[0])]
    high = 1.1 * float(np.quantile(known, 0.98)) if len(known) else 1.0
    rows = [[_grey(view, 0.0, high) for view in views]]
    if phase is not None:
        cuts = [cut_plane(phase, affine, centre_mm, plane) for plane in planes]
        rows.append([_grey(cut, -PHASE_WINDOW_RAD, PHASE_WINDOW_RAD) for cut in cuts])
    height = len(rows) * (PIXELS + GAP) - GAP
    canvas = np.full((height, 2 * PIXELS + GAP), _PAPER, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, view in enumerate(row):
            top, left = r * (PIXELS + GAP), c * (PIXELS + GAP)
            canvas[top : top + PIXELS, left : left + PIXELS] = mark_centre(view)
    image = Image.fromarray(canvas, mode="P")
    greys = np.repeat(np.linspace(0, 255, _PAPER).round().astype(int), 3).tolist()
    image.putpalette([*greys, *_PAPER_COLOUR, *_MARK_COLOUR])
    stream = BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
