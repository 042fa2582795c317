"""Where each lesion's close-up is on the sheet that holds them all.

Shared by what draws the sheet and what shows it; imports nothing heavy.
"""

from __future__ import annotations

import struct
from pathlib import Path

from cmb_bids.report.page import Tile

TILES_IN_A_ROW = 8
MOST_TILES = 200  # browsers refuse images much larger
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def place_tile(number: int, width: int, height: int) -> Tile:
    """The tile ``number`` (from 0) on a sheet of tiles of one size."""
    row, column = divmod(number, TILES_IN_A_ROW)
    return Tile(column * width, row * height, width, height)


def count_rows_and_columns(count: int) -> tuple[int, int]:
    """How many rows and columns a sheet of ``count`` tiles has; at least one of each."""
    shown = min(count, MOST_TILES)
    return max(1, -(-shown // TILES_IN_A_ROW)), max(1, min(TILES_IN_A_ROW, shown))


def tiles_of(sheet_px: tuple[int, int], count: int) -> list[Tile]:
    """The tiles of a sheet.

    Parameters
    ----------
    sheet_px : (width, height)
        Of the whole sheet.
    count : int
        Lesions drawn; those beyond `MOST_TILES` have no tile.
    """
    rows, columns = count_rows_and_columns(count)
    width, height = sheet_px[0] // columns, sheet_px[1] // rows
    return [place_tile(number, width, height) for number in range(min(count, MOST_TILES))]


def png_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG from its first bytes; None where it is none."""
    with path.open("rb") as stream:
        start = stream.read(24)
    if len(start) < 24 or not start.startswith(_SIGNATURE):
        return None
    width, height = struct.unpack(">II", start[16:24])
    return width, height
