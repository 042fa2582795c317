"""Points of one scan from a table, a label image, a mask or a probability map."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from cmb_bids.errors import BadData, InputMissing
from cmb_bids.evaluate.matching import LARGEST_COUNTED_MM, POSITION
from cmb_bids.volumes import read_stored, read_table, read_volume, voxel_sizes, voxel_to_world

MICROBLEED, CALCIFICATION, CANDIDATE, OTHER = "microbleed", "calcification", "candidate", "other"
# In this order: "microbleed candidates" are candidates.
KINDS = {
    CANDIDATE: re.compile(r"candidate", re.IGNORECASE),
    CALCIFICATION: re.compile(r"calci", re.IGNORECASE),
    MICROBLEED: re.compile(r"micro-?_?ble|cmb|ha?emorrhag", re.IGNORECASE),
}
VOXEL = ["i", "j", "k"]
PROBABILITY_CUT = 0.5
VESSEL = r"(?i)vein|vessel|arter"
_ALL_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def kind_of(words: str) -> str | None:
    """Kind that a name speaks of: microbleed, calcification, candidate; None where it does not."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(words)), None)


def _pieces(inside: np.ndarray) -> np.ndarray:
    """Connected pieces (26 neighbours) of a mask (x, y, z), numbered from 1."""
    return ndimage.label(inside, structure=_ALL_NEIGHBOURS)[0]


def _are_classes(labels: np.ndarray, affine: np.ndarray) -> bool:
    """Whether the numbers of a label image are kinds of tissue rather than single lesions.

    Pieces of one number that lie farther apart than the largest microbleed are several lesions.
    """
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        pieces, count = ndimage.label(labels[box] == number, structure=_ALL_NEIGHBOURS)
        if count < 2:
            continue
        centres = np.array(ndimage.center_of_mass(pieces > 0, pieces, np.arange(1, count + 1)))
        spread = np.ptp(centres * voxel_sizes(affine), axis=0)
        if np.linalg.norm(spread) > LARGEST_COUNTED_MM:
            return True
    return False


def lesions_from_image(values: np.ndarray, affine: np.ndarray) -> pd.DataFrame:
    """Centre and size of each lesion of a label image, a mask or a probability map.

    Parameters
    ----------
    values : (x, y, z) array
        One number per lesion. Where there is a single number, or a number has pieces more than
        10 mm apart (it is a class, not a lesion), each connected piece (26 neighbours) is a
        lesion. Values between 0 and 1 are probabilities: the pieces of at least .5 are lesions.
    affine : (4, 4) array

    Returns
    -------
    DataFrame
        ``index class x y z diameter_mm`` (``class`` is the number in the image) and, from a map,
        ``probability`` (the highest inside); the diameter is that of the ball of the same volume.
    """
    values = np.nan_to_num(np.asarray(values))
    is_map = bool(values.size) and bool(((values > 0) & (values < 1)).any())
    labels = (values >= PROBABILITY_CUT).astype(np.int32) if is_map else values.astype(np.int32)
    labels[labels < 0] = 0
    lesions = labels
    if labels.max(initial=0) > 0 and (labels.max() == labels[labels > 0].min()):
        lesions = _pieces(labels > 0)
    elif _are_classes(labels, affine):
        lesions = _split_classes(labels)
    numbers = np.flatnonzero(np.bincount(lesions.ravel()))
    numbers = numbers[numbers > 0]
    columns = ["index", "class", *POSITION, "diameter_mm"]
    if len(numbers) == 0:
        return pd.DataFrame(columns=columns, dtype=float)
    centres = np.array(ndimage.center_of_mass(lesions > 0, lesions, numbers))
    volume = np.bincount(lesions.ravel())[numbers] * np.prod(voxel_sizes(affine))
    table = pd.DataFrame(voxel_to_world(affine, centres), columns=POSITION)
    table.insert(0, "index", numbers)
    table.insert(1, "class", ndimage.maximum(labels, lesions, numbers).astype(int))
    table["diameter_mm"] = np.cbrt(6 * volume / np.pi)
    return table.assign(probability=ndimage.maximum(values, lesions, numbers)) if is_map else table


def _split_classes(labels: np.ndarray) -> np.ndarray:
    """Number the connected pieces of every class of a label image (x, y, z)."""
    lesions, before = np.zeros_like(labels), 0
    for number in np.unique(labels[labels > 0]):
        pieces = _pieces(labels == number)
        lesions[pieces > 0] = pieces[pieces > 0] + before
        before += int(pieces.max())
    return lesions


def read_points(
    table: Path | None,
    image: Path | None,
    reference: Path | None = None,
    measure: bool = True,
) -> pd.DataFrame:
    """Points of one scan from a table, an image, or both of the same name.

    A table with ``x y z`` holds scanner mm (RAS+), one with ``i j k`` voxel indices from 0 of
    ``image`` or, without one, ``reference``. A table with neither describes the image's numbers.

    Parameters
    ----------
    table : Path, optional
        A TSV.
    image : Path, optional
        A NIfTI image.
    reference : Path, optional
        Any image on the scan's grid.
    measure : bool
        Whether to measure lesions in the image where the table has no ``diameter_mm``.

    Returns
    -------
    DataFrame
        ``x y z`` and whatever else the table has; ``diameter_mm`` where the image gives it.

    Raises
    ------
    InputMissing
        There are no positions and no image, or voxel indices and no image of the grid.
    BadData
        A position is missing or no number, a probability is outside 0 to 1, or a file is damaged.
    """
    if table is None:
        if image is None:
            raise InputMissing("points", "neither a table nor an image is given", "Give one")
        return _measure(image)
    rows = _plain_names(read_table(table))
    if len(rows) == 0 and image is None:
        return rows.reindex(columns=[*rows.columns.difference(POSITION), *POSITION])
    if not set(POSITION) <= set(rows.columns) and set(VOXEL) <= set(rows.columns):
        rows = _from_voxels(rows, table, image or reference)
    _check_probability(rows, table)
    if set(POSITION) <= set(rows.columns):
        _check_positions(rows, table)
        return _with_diameter(rows, image) if measure else rows
    if image is None:
        raise InputMissing(
            table,
            "has neither x, y, z nor i, j, k columns and no image of its name beside it",
            "Add positions in scanner mm (x y z), voxel indices (i j k) or the label image",
        )
    return _look_up(_measure(image), rows, table)


def _plain_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Positions under X, Y, Z or I, J, K are positions too."""
    letters = {*POSITION, *VOXEL}
    return rows.rename(columns={c: c.lower() for c in rows.columns if c.lower() in letters})


def _measure(image: Path) -> pd.DataFrame:
    volume = read_volume(image, dtype=np.float32)
    return lesions_from_image(volume.data, volume.affine)


def _from_voxels(rows: pd.DataFrame, table: Path, image: Path | None) -> pd.DataFrame:
    """Voxel indices to scanner mm."""
    if image is None:
        raise InputMissing(
            table,
            "has voxel indices (i j k) and no image says where the voxels are",
            "Put an image of the scan's grid beside it, name one with --images, "
            "or give scanner mm (x y z)",
        )
    _check_positions(rows, table, VOXEL)
    points = voxel_to_world(read_stored(image).affine, rows[VOXEL].to_numpy(dtype=float))
    return rows.assign(x=points[:, 0], y=points[:, 1], z=points[:, 2])


def _check_positions(rows: pd.DataFrame, table: Path, columns: list[str] | None = None) -> None:
    columns = columns or POSITION
    numbers = rows[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    bad = ~np.isfinite(numbers).all(axis=1)
    if bad.any():
        raise BadData(
            table,
            f"row {int(np.flatnonzero(bad)[0]) + 2} has no position ({' '.join(columns)})",
            "Give numbers, or remove the row; a scan without lesions has a table with a header "
            "only",
        )
    rows[columns] = numbers


def _check_probability(rows: pd.DataFrame, table: Path) -> None:
    if "probability" not in rows:
        return
    numbers = pd.to_numeric(rows["probability"], errors="coerce")
    bad = ~numbers.between(0, 1) & rows["probability"].notna()
    if bad.any():
        raise BadData(
            table,
            f"row {int(np.flatnonzero(bad)[0]) + 2} has a probability that is not within 0 to 1",
            "Scale it, or name the column otherwise; it is then neither ranked nor judged",
        )
    rows["probability"] = numbers


def _with_diameter(rows: pd.DataFrame, image: Path | None) -> pd.DataFrame:
    """Sizes from the image, where the table has none and its ``index`` says which is which."""
    if "diameter_mm" in rows or "index" not in rows or image is None or len(rows) == 0:
        return rows
    measured = _measure(image)
    size = measured.drop_duplicates("class").set_index("class")["diameter_mm"]
    return rows.assign(diameter_mm=rows["index"].map(size).astype(float))


def _look_up(measured: pd.DataFrame, rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Give the lesions of an image the columns of its lookup table."""
    if "index" not in rows:
        raise BadData(
            table,
            "describes a label image without saying which number is which",
            "Add an index column with the numbers in the image",
        )
    rows = rows.rename(columns={"index": "class"}).drop_duplicates("class")
    keep = [c for c in measured.columns if c == "class" or c not in rows]
    return measured[keep].merge(rows, on="class", how="left")


def with_kind(points: pd.DataFrame, kind: str | None) -> pd.DataFrame:
    """Add what each row is.

    Rows are what their ``name`` says, else what the file's name says. Where neither does, they
    are ``other`` (veins, say) beside rows that are named, and microbleeds where none is.

    Parameters
    ----------
    points : DataFrame
    kind : str, optional
        What the file's name speaks of.

    Returns
    -------
    DataFrame
        With ``kind`` and ``name``.
    """
    fallback = kind or MICROBLEED
    if "name" not in points:
        return points.assign(name=fallback, kind=fallback)
    names = points["name"].astype(str)
    said = names.map(kind_of)
    # A scan without lesions may list its vessels alone: they are no lesions for that.
    said = said.mask(said.isna() & names.str.contains(VESSEL), OTHER)
    if kind == CANDIDATE or not said.notna().any():
        return points.assign(kind=fallback)
    return points.assign(kind=said.fillna(kind or OTHER).astype(str))
