"""Images and tables on disk, and the geometry of a voxel grid.

The only module besides the phase reader that touches NIfTI. Everything written here appears
whole or not at all: it is written beside its final name and then renamed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from cmb_bids.errors import BadData, CannotCreate, InputMissing, IOFailure

ANISOTROPY_OF_SLICES = 1.2  # an axis this much coarser than both others is the slice axis


class Volume(NamedTuple):
    """An image: ``data`` (x, y, z), its 4 x 4 ``affine`` (voxel to scanner mm) and its header."""

    data: np.ndarray
    affine: np.ndarray
    header: Any


class StoredVolume(NamedTuple):
    """An image as stored: values before the header's slope and intercept are applied."""

    stored: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray
    header: Any


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while an image is read into a message about the file."""
    if not path.exists():
        raise InputMissing(path, "the file does not exist", "Check the dataset or fetch it again")
    try:
        yield
    except (BadData, InputMissing):
        raise
    except PermissionError as error:
        raise InputMissing(
            path, f"cannot be read ({error.strerror})", "Check its permissions"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise BadData(
            path,
            f"is not a whole NIfTI image ({type(error).__name__}: {error})",
            "Convert or copy it again; it may be truncated",
        ) from error


def _three_dimensional(array: np.ndarray, path: Path) -> np.ndarray:
    """Drop trailing axes of length one; refuse anything that is not a volume."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.size == 0:
        raise BadData(
            path,
            f"holds an array of shape {array.shape}, not one volume",
            "Give one three-dimensional image per echo and part",
        )
    return array


def read_stored(path: str | os.PathLike[str]) -> StoredVolume:
    """Read an image without applying the header's slope and intercept.

    Parameters
    ----------
    path : path-like
        A NIfTI image.

    Returns
    -------
    StoredVolume
        Stored values (x, y, z) in their on-disk type, slope (1 where the header has none),
        intercept (0 where none), affine, header.

    Raises
    ------
    InputMissing
        The file does not exist.
    BadData
        It is unreadable, truncated, or not one volume.
    """
    path = Path(path)
    with _reading(path):
        image: Any = nib.load(path)
        stored = _three_dimensional(np.asanyarray(image.dataobj.get_unscaled()), path)
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
            raise BadData(path, "has a singular or non-finite affine", "Convert it again")
    return StoredVolume(stored, float(slope), float(intercept), image.affine, image.header)


def read_volume(path: str | os.PathLike[str], dtype: Any = np.float32) -> Volume:
    """Read an image with its slope and intercept applied.

    Parameters
    ----------
    path : path-like
        A NIfTI image.
    dtype : data type, optional
        Type of the returned array; integers are rounded.

    Returns
    -------
    Volume

    Raises
    ------
    InputMissing, BadData
        As `read_stored`.
    """
    stored = read_stored(path)
    values: np.ndarray = stored.stored
    if (stored.slope, stored.intercept) != (1.0, 0.0):
        values = values * np.float64(stored.slope) + np.float64(stored.intercept)
    if np.issubdtype(np.dtype(dtype), np.integer) and not np.issubdtype(values.dtype, np.integer):
        values = np.rint(np.nan_to_num(values))
    return Volume(np.ascontiguousarray(values, dtype=dtype), stored.affine, stored.header)


def read_on_grid(
    path: str | os.PathLike[str], shape: tuple[int, ...], dtype: Any = np.float32
) -> np.ndarray:
    """Values (x, y, z) of an intermediate image that must have the magnitude's shape.

    Raises
    ------
    InputMissing
        As `read_volume`.
    BadData
        As `read_volume`, or the shape is another.
    """
    data = read_volume(path, dtype).data
    if data.shape != shape:
        raise BadData(
            path,
            f"has shape {data.shape}, the magnitude {shape}",
            "Remove the scan's work directory and run again",
        )
    return data


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; rename it to ``path`` once that succeeded."""
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
    except OSError as error:
        raise CannotCreate(
            path, f"cannot be created ({error.strerror})", "Check permissions and free space"
        ) from error
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        # mkstemp makes private files; outputs follow the user's umask like any other.
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        beside.replace(path)
    except OSError as error:
        raise IOFailure(
            path, f"could not be written ({error.strerror})", "Check free space and quota"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def write_volume(
    path: str | os.PathLike[str], data: np.ndarray, affine: np.ndarray, dtype: Any = None
) -> None:
    """Write a NIfTI image, whole or not at all.

    Parameters
    ----------
    path : path-like
        Ends in ``.nii`` or ``.nii.gz``.
    data : (x, y, z) array
        Booleans are written as uint8, float64 as float32.
    affine : (4, 4) array
        Voxel to scanner mm.
    dtype : data type, optional
        On-disk type.
    """
    if dtype is None:
        dtype = {np.dtype(bool): np.uint8, np.dtype(np.float64): np.float32}.get(
            data.dtype, data.dtype
        )
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with written_whole(path) as beside:
        nib.save(image, beside)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON, whole or not at all; numpy scalars and arrays become plain numbers and lists."""
    write_text(path, json.dumps(content, indent=2, default=_plain, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object; `BadData` names the file and the line that is wrong."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputMissing(path, "the file does not exist", "Check the path") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadData(path, f"is not valid JSON ({error})", "Mend the file") from error
    if not isinstance(content, dict):
        raise BadData(path, "does not hold a JSON object", "Mend the file")
    return content


def write_table(
    path: str | os.PathLike[str],
    table: pd.DataFrame,
    columns_described: dict[str, Any] | None = None,
) -> None:
    """Write a BIDS table (TSV), whole or not at all.

    Parameters
    ----------
    path : path-like
        Ends in ``.tsv``.
    table : DataFrame
        Missing values are written ``n/a``; booleans ``true`` and ``false``.
    columns_described : dict, optional
        Column descriptions, written as the JSON beside the table.
    """
    text = table.copy()
    for column in text.columns:
        if (
            text[column].dtype == bool
            or text[column].map(lambda v: isinstance(v, (bool, np.bool_))).any()
        ):
            text[column] = text[column].map(
                lambda v: str(bool(v)).lower() if isinstance(v, (bool, np.bool_)) else v
            )
    write_text(path, text.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))
    if columns_described is not None:
        write_json(Path(path).with_suffix(".json"), columns_described)


def _plain_boolean(value: Any) -> Any:
    """BIDS writes booleans in lower case."""
    return str(bool(value)).lower() if isinstance(value, (bool, np.bool_)) else value


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a BIDS table; ``n/a`` becomes missing. `BadData` names a file that is no table."""
    path = Path(path)
    try:
        # Only n/a is missing: a participant may well be called NA or None. Identifiers stay text.
        return pd.read_csv(
            path,
            sep="\t",
            na_values=["n/a"],
            keep_default_na=False,
            dtype={"participant_id": str, "session_id": str, "name": str, "filename": str},
        )
    except FileNotFoundError:
        raise InputMissing(path, "the file does not exist", "Check the path") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadData(path, f"is not a tab-separated table ({error})", "Mend the file") from error


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Edge lengths (3,) of a voxel in mm."""
    return np.sqrt((np.asarray(affine, dtype=float)[:3, :3] ** 2).sum(axis=0))


def b0_direction(affine: np.ndarray) -> np.ndarray:
    """The main field (scanner z) as a unit vector (3,) along the voxel axes."""
    rotation = np.asarray(affine, dtype=float)[:3, :3] / voxel_sizes(affine)
    direction = np.linalg.solve(rotation, np.array([0.0, 0.0, 1.0]))
    return direction / np.linalg.norm(direction)


def slice_axis(affine: np.ndarray, header: Any = None) -> int:
    """The voxel axis across slices.

    The axis that is clearly coarser than both others; where none is, what the header says;
    where it says nothing, the axis closest to scanner z.
    """
    sizes = voxel_sizes(affine)
    coarsest = int(np.argmax(sizes))
    if sizes[coarsest] > ANISOTROPY_OF_SLICES * np.delete(sizes, coarsest).max():
        return coarsest
    if header is not None and hasattr(header, "get_dim_info"):
        said = header.get_dim_info()[2]
        if said is not None:
            return int(said)
    return int(np.argmax(np.abs(b0_direction(affine))))


def voxel_to_world(affine: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Voxel indices (n, 3) to scanner mm (n, 3)."""
    return nib.affines.apply_affine(affine, np.asarray(indices, dtype=float).reshape(-1, 3))


def world_to_voxel(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Scanner mm (n, 3) to fractional voxel indices (n, 3)."""
    inverse = np.linalg.inv(affine)
    return nib.affines.apply_affine(inverse, np.asarray(points, dtype=float).reshape(-1, 3))
