"""Pictures of the worst misses and the most confident false alarms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cmb_bids.errors import CmbError
from cmb_bids.evaluate.crops import draw_views
from cmb_bids.evaluate.files import agree, entities_of, scan_of
from cmb_bids.evaluate.matching import MISSED, POSITION
from cmb_bids.volumes import Volume, read_volume

# What makes a miss hard to excuse, the first that the labels have.
VISIBILITY = ("contrast_to_noise", "apparent_diameter_mm", "diameter_mm")
RAW_SUFFIXES = ("T2starw", "MEGRE", "swi", "GRE", "T2star", "T2starmap")
PHASE_PARTS = ("phase", "real", "imag")


@dataclass(frozen=True)
class Picture:
    """One case: ``png`` (None where no image was found), its caption, and words for it."""

    png: bytes | None
    caption: str
    alt: str


class Pictures(NamedTuple):
    """``misses`` and ``false_alarms``, the worst first, and how many there are in all."""

    misses: list[Picture]
    false_alarms: list[Picture]
    missed: int
    false: int


class ScanImages(NamedTuple):
    """Paths of what a scan is shown in."""

    magnitude: Path | None
    phase: Path | None


def worst_misses(lesions: pd.DataFrame, most: int) -> pd.DataFrame:
    """Missed lesions, the most visible first."""
    missed = lesions[lesions["outcome"] == MISSED]
    by = [column for column in VISIBILITY if column in missed and missed[column].notna().any()]
    if by:
        missed = missed.sort_values(by, ascending=False, na_position="last", kind="stable")
    return missed.head(most)


def find_images(roots: Sequence[Path], scan: str) -> ScanImages:
    """SWI and high-pass phase of a scan, else its last raw magnitude.

    Parameters
    ----------
    roots : sequence of Path
        Datasets, the first that has something wins.
    scan : str
        Name of the scan.
    """
    mine = entities_of(scan)
    for root in roots:
        files = [
            path
            for path in sorted((root / f"sub-{mine.get('sub')}").glob("**/*.nii*"))
            if agree(mine, entities_of(scan_of(path.name)))
        ]
        # Of several that fit, the one of the very same name.
        files.sort(key=lambda path: scan_of(path.name) != scan)
        described = [(path, entities_of(path.name)) for path in files]
        swi = [path for path, found in described if found.get("desc") == "swi"]
        phase = [path for path, found in described if found.get("desc") == "highpass"]
        if swi:
            return ScanImages(swi[0], phase[0] if phase else None)
        raw = [path for path, found in described if _is_magnitude(path, found)]
        if raw:
            return ScanImages(max(raw, key=lambda p: int(_echo(p))), None)
    return ScanImages(None, None)


def _is_magnitude(path: Path, found: dict[str, str]) -> bool:
    suffix = path.name.split(".")[0].rsplit("_", 1)[-1]
    return suffix in RAW_SUFFIXES and "desc" not in found and found.get("part") not in PHASE_PARTS


def _echo(path: Path) -> str:
    echo = entities_of(path.name).get("echo", "0")
    return echo if echo.isdigit() else "0"


def collect_pictures(
    result: dict[str, Any], roots: Sequence[str | os.PathLike[str]], most: int
) -> Pictures:
    """Draw the worst cases of a result.

    Parameters
    ----------
    result : dict
        From `cmb_bids.evaluate.score.evaluate_cohort`.
    roots : sequence of path-like
        Datasets to look for images in.
    most : int
        Pictures of each kind.
    """
    misses = worst_misses(result["lesions"], most)
    false = result["false_alarms"].head(most)
    folders = [Path(root) for root in roots]
    drawn: dict[tuple[str, int], bytes | None] = {}
    for scan in sorted({*misses["scan"], *false["scan"]}):
        images = _read(find_images(folders, scan))
        for kind, table in (("miss", misses), ("false", false)):
            for number, row in table[table["scan"] == scan].iterrows():
                drawn[kind, int(str(number))] = _draw(images, row)
    return Pictures(
        [_picture("Missed", row, drawn["miss", n], _why_missed(row)) for n, row in _rows(misses)],
        [_picture("False alarm", r, drawn["false", n], _why_false(r)) for n, r in _rows(false)],
        int((result["lesions"]["outcome"] == MISSED).sum()),
        len(result["false_alarms"]),
    )


def _rows(table: pd.DataFrame) -> list[tuple[int, pd.Series]]:
    return [(int(str(number)), row) for number, row in table.iterrows()]


def _read(images: ScanImages) -> tuple[Volume, Volume | None] | None:
    """The images of a scan; None where there are none, or the magnitude is damaged."""
    if images.magnitude is None:
        return None
    try:
        magnitude = read_volume(images.magnitude)
        phase = read_volume(images.phase) if images.phase else None
    except CmbError:
        return None  # a picture that cannot be drawn does not stop the scoring
    same = phase is not None and phase.data.shape == magnitude.data.shape
    return magnitude, phase if same else None


def _draw(images: tuple[Volume, Volume | None] | None, row: pd.Series) -> bytes | None:
    if images is None:
        return None
    magnitude, phase = images
    centre = row[POSITION].to_numpy(dtype=float)
    phase_data = None if phase is None else phase.data
    return draw_views(magnitude.data, magnitude.affine, centre, phase_data)


# ------------------------------------------------------------------ captions


def _number(row: pd.Series, name: str) -> float | None:
    value = pd.to_numeric(row.get(name), errors="coerce") if name in row else np.nan
    return None if pd.isna(value) else float(value)


def _place(row: pd.Series) -> str:
    words = [row.get(name) for name in ("hemisphere", "mars_region")]
    return " ".join(str(word).replace("_", " ") for word in words if not pd.isna(word))


def _why_missed(row: pd.Series) -> list[str]:
    lost = row.get("lost_at")
    words = [] if pd.isna(lost) else [str(lost).replace("_", " ")]
    probability = _number(row, "candidate_probability")
    if words and probability is not None:
        words[0] += f" (p {probability:.2f})"
    contrast = _number(row, "contrast_to_noise")
    return words + ([] if contrast is None else [f"contrast to noise {contrast:.1f}"])


def _why_false(row: pd.Series) -> list[str]:
    probability, lies_on = _number(row, "probability"), row.get("lies_on")
    words = [] if probability is None else [f"p {probability:.2f}"]
    return words + ([] if pd.isna(lies_on) else [f"lies on: {lies_on}"])


def _picture(what: str, row: pd.Series, png: bytes | None, why: list[str]) -> Picture:
    x, y, z = (float(row[axis]) for axis in POSITION)
    parts = [str(row["scan"]), *why]
    size = _number(row, "apparent_diameter_mm") or _number(row, "diameter_mm")
    if size is not None:
        parts.append(f"{size:.1f} mm")
    parts += [_place(row)] if _place(row) else []
    parts.append(f"at {x:.1f}, {y:.1f}, {z:.1f}")
    alt = f"{what} in {row['scan']} at {x:.0f}, {y:.0f}, {z:.0f} mm"
    return Picture(png, " · ".join(parts), alt)
