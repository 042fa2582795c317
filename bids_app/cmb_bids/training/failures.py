"""What a network still gets wrong on the test cases, as pictures and as a list."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cmb_bids.evaluate import match_points
from cmb_bids.patches import PatchGeometry
from cmb_bids.resnet import CLASSES
from cmb_bids.training.contenders import CONTENDERS
from cmb_bids.training.fit import MARGIN_VOXELS
from cmb_bids.training.judging import read_scores
from cmb_bids.training.labels import MICROBLEED
from cmb_bids.training.scoring import ScoredCase, matched
from cmb_bids.training.shards import case_path, load_case, split_of
from cmb_bids.training.steps import cases_of
from cmb_bids.volumes import write_json, written_whole

MOST_SHOWN = 12  # of each kind
LARGEST_PICTURE_BYTES = 300_000
ENLARGED = 3
PHASE_SHOWN = 1.5  # radians, black to white


@dataclass(frozen=True)
class Failure:
    """A microbleed missed or a call that is false.

    ``candidate`` is its number in the case, -1 where there is none, ``probability`` that
    candidate's; ``what`` the true class of a false alarm or ``microbleed``.
    """

    case: int
    protocol: str
    group: str
    candidate: int
    probability: float | None
    diameter_mm: float | None
    what: str


def misses(case: ScoredCase, threshold: float) -> list[Failure]:
    """Microbleeds without a definite call, with the best candidate within 5 mm if there is one."""
    hit = matched(case.microbleeds_mm, case.called(threshold))
    best = dict.fromkeys(range(len(hit)), -1)
    pairs = match_points(case.microbleeds_mm[~hit], case.points_mm)
    best |= {int(np.flatnonzero(~hit)[lesion]): int(candidate) for lesion, candidate in pairs}
    return [
        Failure(
            case.index,
            case.protocol,
            case.group,
            best[lesion],
            _rounded(case.probabilities[best[lesion], MICROBLEED]) if best[lesion] >= 0 else None,
            _rounded(case.microbleeds["diameter_mm"].iloc[lesion]),
            CLASSES[MICROBLEED],
        )
        for lesion in np.flatnonzero(~hit)
    ]


def false_alarms(case: ScoredCase, threshold: float) -> list[Failure]:
    """Definite calls that no microbleed matches."""
    called = case.calls(threshold)
    pairs = match_points(case.microbleeds_mm, case.points_mm[called])
    false = np.delete(called, pairs[:, 1])
    return [
        Failure(
            case.index,
            case.protocol,
            case.group,
            int(candidate),
            _rounded(case.probabilities[candidate, MICROBLEED]),
            None,
            CLASSES[case.labels[candidate]] if case.labels[candidate] >= 0 else "beside a lesion",
        )
        for candidate in false
    ]


def draw_failures(name: str, summary: Path, scores: Path, picture: Path, listed: Path) -> None:
    """Draw the misses and false alarms of a contender on the test cases, and list them all.

    Parameters
    ----------
    name : str
        Of the contender.
    summary, scores : path
        What the steps before left.
    picture : path
        PNG of at most 300 kB: the largest microbleeds missed, the surest false alarms.
    listed : path
        JSON with all of them, and how many there are of each kind.
    """
    contender, paths = CONTENDERS[name], cases_of(summary)
    test = [path for path in paths if split_of(path) == "test"]
    cases, description = read_scores(scores, contender, test)
    threshold = float(description["calibration"]["definite"])
    missed = [row for case in cases for row in misses(case, threshold)]
    false = [row for case in cases for row in false_alarms(case, threshold)]
    missed.sort(key=lambda row: -(row.diameter_mm or 0))
    false.sort(key=lambda row: -(row.probability or 0))
    content = {
        "simulated": True,
        "model": name,
        "threshold": threshold,
        "cases": len(cases),
        "counts": counted(missed, false),
        "misses": [asdict(row) for row in missed],
        "false_alarms": [asdict(row) for row in false],
    }
    write_json(listed, content)
    shown = {
        "Missed, largest first": [row for row in missed if row.candidate >= 0],
        "False alarms, surest first": false,
    }
    draw_montage(shown, test[0].parent if test else Path(), contender.kind, picture)


def counted(missed: Sequence[Failure], false: Sequence[Failure]) -> dict[str, Any]:
    """How many failures there are of each kind."""
    without = [row for row in missed if row.candidate < 0]
    return {
        "missed": len(missed),
        "missed_without_a_candidate": len(without),
        "missed_by_protocol": dict(Counter(row.protocol for row in missed)),
        "missed_under_2_mm": sum((row.diameter_mm or 0) < 2 for row in missed),
        "false_alarms": len(false),
        "false_alarms_by_truth": dict(Counter(row.what for row in false)),
        "false_alarms_by_protocol": dict(Counter(row.protocol for row in false)),
    }


def draw_montage(rows: dict[str, list[Failure]], shards: Path, kind: str, picture: Path) -> None:
    """Two rows of tiles per kind of failure: contrast, and phase below it; the axial middle."""
    most = MOST_SHOWN
    while True:
        image = _montage({title: found[:most] for title, found in rows.items()}, shards, kind)
        with io.BytesIO() as buffer:
            image.quantize(64).save(buffer, format="PNG", optimize=True)
            content = buffer.getvalue()
        if len(content) <= LARGEST_PICTURE_BYTES or most == 1:
            break
        most -= 1
    with written_whole(picture) as beside:
        beside.write_bytes(content)


def _montage(rows: dict[str, list[Failure]], shards: Path, kind: str) -> Image.Image:
    width, height = (ENLARGED * n for n in PatchGeometry().shape[:2])
    columns = max(1, *(len(found) for found in rows.values()))
    title_height, note_height, gap = 18, 28, 4
    row_height = title_height + 2 * height + note_height + gap
    sheet = Image.new("L", (max(420, columns * (width + gap)), row_height * len(rows)), 255)
    pen = ImageDraw.Draw(sheet)
    for line, (title, found) in enumerate(rows.items()):
        top = line * row_height
        pen.text((2, top + 3), f"{title} (simulated): {len(found)} shown", fill=0)
        for column, failure in enumerate(found):
            left = column * (width + gap)
            patch = load_case(case_path(shards, failure.case), (kind,)).candidates[kind].patches
            for part, tile in enumerate(tiles(patch[failure.candidate])):
                sheet.paste(tile, (left, top + title_height + part * height))
            note = f"{failure.protocol} {failure.what}\np {failure.probability:.2f}"
            if failure.diameter_mm is not None:
                note = (
                    f"{failure.protocol} {failure.diameter_mm:.1f} mm\np {failure.probability:.2f}"
                )
            pen.multiline_text((left, top + title_height + 2 * height + 1), note, fill=0, spacing=1)
    return sheet


def tiles(patch: np.ndarray) -> list[Image.Image]:
    """The axial middle of each channel (X, Y) of a stored patch, anterior up, enlarged."""
    x, y, z = (slice(margin, -margin) for margin in MARGIN_VOXELS)
    inner = patch[:, x, y, z].astype(np.float32)
    middle = inner.shape[3] // 2
    # The darkest of the two middle slices: the centre lies between them.
    contrast = np.clip(inner[0, :, :, middle - 1 : middle + 1].min(axis=2) / 1.5, 0, 1)
    images = [contrast]
    if len(inner) > 1:
        images.append(np.clip(inner[1, :, :, middle] / (2 * PHASE_SHOWN) + 0.5, 0, 1))
    return [
        Image.fromarray((255 * image.T[::-1]).astype(np.uint8)).resize(
            (ENLARGED * image.shape[0], ENLARGED * image.shape[1]), Image.Resampling.BICUBIC
        )
        for image in images
    ]


def _rounded(value: Any) -> float:
    return round(float(value), 3)
