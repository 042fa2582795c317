"""Which result belongs to which labels, and what is known about each scan: BIDS folders in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from cmb_bids.columns import FAIL
from cmb_bids.errors import CmbError, InputMissing, NothingMatched
from cmb_bids.evaluate.files import PointFiles, entities_of, find_point_files, pair_scans, scan_of
from cmb_bids.evaluate.files import agree as names_agree
from cmb_bids.evaluate.grouping import (
    dataset_above,
    describe_scans,
    is_simulated,
    read_field_strengths,
    read_participants,
    read_scan_rows,
)
from cmb_bids.evaluate.matching import POSITION, ignored_lesions, stack
from cmb_bids.evaluate.points import (
    CALCIFICATION,
    CANDIDATE,
    MICROBLEED,
    read_points,
    with_kind,
)
from cmb_bids.volumes import read_table

SCORED = "scored"
PROBABILITIES = "probabilities.tsv"  # of the candidates, by their index
WITHOUT_RESULT, NOT_COUNTED = "without_result", "not_counted"
WITHOUT_LABELS, UNREADABLE = "without_labels", "unreadable"


@dataclass
class Cohort:
    """A cohort's points, ready to be scored.

    ``scans`` has a row per scan with both a result and labels: ``scan participant_id
    session_id``, ``labels`` (the labels' own name of the scan), what it can be grouped by
    (``groups`` names these columns), ``has_candidates`` and ``has_calcifications``. ``truth``,
    ``microbleeds``, ``calcifications`` and ``candidates`` have a row per point with ``scan``,
    ``kind`` and ``x y z``. ``others`` lists the scans that are not scored: ``scan participant_id
    session_id status reason lesions``.
    """

    scans: pd.DataFrame
    truth: pd.DataFrame
    microbleeds: pd.DataFrame
    calcifications: pd.DataFrame
    candidates: pd.DataFrame
    others: pd.DataFrame
    groups: list[str] = field(default_factory=list)
    simulated: bool = False
    name: str = "derivatives"


class _Reader:
    """Collects points of one scan after another, and what went wrong."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = roots
        self.rows: dict[str, list[pd.DataFrame]] = {
            kind: [] for kind in ("truth", MICROBLEED, CALCIFICATION, CANDIDATE)
        }
        self.others: list[dict[str, object]] = []

    def read(self, scan: str, files: Mapping[str | None, PointFiles]) -> pd.DataFrame:
        """All points of one scan with their ``kind``."""
        parts = []
        for kind, one in files.items():
            grid = None if one.image or one.table is None else self._grid(scan, one.table)
            points = read_points(one.table, one.image, grid, measure=kind != CANDIDATE)
            if kind == CANDIDATE and one.table is not None:
                points = self._judged(points, one.table)
            parts.append(with_kind(points, kind).assign(**_identity(scan)))
        return stack(parts)

    def _grid(self, scan: str, table: Path) -> Path | None:
        """An image on the scan's grid, sought first in the table's own dataset."""
        own = [root for root in self.roots if root in table.parents]
        others = [root for root in self.roots if root not in own]
        return _any_image([*own, *others], scan)

    def _judged(self, candidates: pd.DataFrame, table: Path) -> pd.DataFrame:
        """Candidates with what the network said of each, where a cmb-bids output kept it."""
        root = next(root for root in self.roots if root in table.parents)
        folder = table.relative_to(root).parent.parent  # above anat
        kept = root / "logs" / "scans" / folder / table.name.split("_desc-")[0] / PROBABILITIES
        if "probability" in candidates or "index" not in candidates or not kept.is_file():
            return candidates
        said = read_table(kept).rename(columns={"p_microbleed": "probability"})
        return candidates.merge(said[["index", "probability"]], on="index", how="left")

    def leave_out(self, scan: str, status: str, reason: str, lesions: int | None = None) -> None:
        """List a scan that is not scored."""
        why = {"status": status, "reason": reason, "lesions": lesions}
        self.others.append(_identity(scan) | why)


def _identity(scan: str) -> dict[str, object]:
    found = entities_of(scan)
    session = f"ses-{found['ses']}" if "ses" in found else None
    return {
        "scan": scan,
        "participant_id": f"sub-{found.get('sub', scan)}",
        "session_id": session,
    }


def _no_folder(folder: Path) -> InputMissing:
    if folder.is_file():
        return InputMissing(folder, "is a file", "Give the dataset's directory")
    return InputMissing(folder, "is not a directory", "Check the path")


def read_cohort(
    derivatives_dir: str | os.PathLike[str],
    labels_dir: str | os.PathLike[str],
    description: str | None = None,
    labels_description: str | None = None,
    images_dir: str | os.PathLike[str] | None = None,
) -> Cohort:
    """Collect the detections of a derivative dataset and the labels they are held against.

    Parameters
    ----------
    derivatives_dir, labels_dir : path-like
        BIDS derivatives with tables or images of points.
    description, labels_description : str, optional
        As ``description`` of `find_point_files`.
    images_dir : path-like, optional
        Raw dataset: the grid of voxel indices.

    Raises
    ------
    InputMissing
        One of the directories is not there.
    NothingMatched
        No scan has both a result and labels.
    UsageError
        Several files may be a scan's labels.
    """
    derivatives, labels_folder = Path(derivatives_dir), Path(labels_dir)
    for folder in (derivatives, labels_folder):
        if not folder.is_dir():
            raise _no_folder(folder)
    results = find_point_files(derivatives, description)
    results = {s: f for s, f in results.items() if MICROBLEED in f or None in f}
    labels = find_point_files(labels_folder, labels_description)
    roots = [derivatives, labels_folder]
    roots += [Path(images_dir)] if images_dir else []
    roots += [raw for raw in map(dataset_above, (labels_folder, derivatives)) if raw]
    reader = _Reader(roots)
    rows = read_scan_rows(derivatives)
    scans = _read_pairs(reader, results, labels, rows)
    if not scans:
        raise _nothing(derivatives, labels_folder, results, labels, reader)
    known = any("field_strength_t" in row for row in rows.values())
    fields = {} if known else read_field_strengths(roots, [str(row["scan"]) for row in scans])
    described, groups = describe_scans(
        pd.DataFrame(scans), read_participants([labels_folder, *roots]), rows, fields
    )
    stacked = {kind: _stacked(parts) for kind, parts in reader.rows.items()}
    return Cohort(
        described,
        stacked["truth"],
        stacked[MICROBLEED],
        stacked[CALCIFICATION],
        stacked[CANDIDATE],
        pd.DataFrame(
            reader.others,
            columns=["scan", "participant_id", "session_id", "status", "reason", "lesions"],
        ),
        groups,
        is_simulated(roots),
        derivatives.resolve().name,
    )


def _read_pairs(
    reader: _Reader,
    results: Mapping[str, Mapping[str | None, PointFiles]],
    labels: Mapping[str, Mapping[str | None, PointFiles]],
    rows: Mapping[str, Mapping[str, object]],
) -> list[dict[str, object]]:
    """Read what can be scored; list the rest. Returns the rows of the scans that are scored."""
    pairs, doubtful = pair_scans(sorted(results), sorted(labels))
    truth: dict[str, pd.DataFrame] = {}
    for name in sorted(labels):
        try:
            truth[name] = reader.read(name, labels[name])
        except CmbError as error:
            reader.leave_out(name, UNREADABLE, f"labels: {error}")
    scans, used = [], set()
    for scan in sorted(results):
        partner = pairs.get(scan)
        if partner is None:
            reason = (
                "the labels that fit it are not unique" if scan in doubtful else "no labels fit it"
            )
            reader.leave_out(scan, WITHOUT_LABELS, reason)
        elif partner in truth:
            used.add(partner)
            row = _read_result(reader, scan, results[scan], truth[partner], rows.get(scan, {}))
            scans += [row | {"labels": partner}] if row else []
    for name in sorted(set(truth) - used):
        reader.leave_out(name, WITHOUT_RESULT, "no result fits it", _lesions(truth[name]))
    return scans


def _lesions(truth: pd.DataFrame) -> int:
    """Labelled microbleeds that can be hit or missed."""
    lesions = truth[truth["kind"] == MICROBLEED]
    return int((~ignored_lesions(lesions)).sum())


def _read_result(
    reader: _Reader,
    scan: str,
    files: Mapping[str | None, PointFiles],
    truth: pd.DataFrame,
    row: Mapping[str, object],
) -> dict[str, object] | None:
    """Read one result into the reader; None where it cannot be scored."""
    if row.get("qc_status") == FAIL:
        reason = str(row.get("qc_reason"))
        reader.leave_out(scan, NOT_COUNTED, f"quality check failed: {reason}", _lesions(truth))
        return None
    try:
        points = reader.read(scan, files)
    except CmbError as error:
        reader.leave_out(scan, UNREADABLE, str(error), _lesions(truth))
        return None
    for kind in (MICROBLEED, CALCIFICATION, CANDIDATE):
        reader.rows[kind].append(points[points["kind"] == kind])
    reader.rows["truth"].append(truth.assign(**_identity(scan)))
    return _identity(scan) | {
        "has_candidates": CANDIDATE in files,
        "has_calcifications": CALCIFICATION in files
        or bool((points["kind"] == CALCIFICATION).any()),
    }


def _any_image(roots: Sequence[Path], scan: str) -> Path | None:
    """An image on the scan's grid, wherever one is; none that was moved to another space."""
    mine = entities_of(scan)
    for root in roots:
        for path in sorted((root / f"sub-{mine.get('sub')}").glob("**/*.nii*")):
            moved = "space" in entities_of(path.name)
            if not moved and names_agree(mine, entities_of(scan_of(path.name))):
                return path
    return None


def _stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
    columns = ["scan", "participant_id", "session_id", "name", "kind", *POSITION]
    return stack([*parts, pd.DataFrame(columns=columns)])


def _nothing(
    derivatives: Path, labels_folder: Path, results: Mapping, labels: Mapping, reader: _Reader
) -> CmbError:
    """Why no scan can be scored."""
    if not results:
        return NothingMatched(
            derivatives,
            "holds no result: no *_desc-cmb_dseg, *_dseg, *_mask or *_probseg of microbleeds "
            "below sub-*",
            "Give the output directory of a tool, or name its files with --description",
        )
    if not labels:
        return NothingMatched(
            labels_folder,
            "holds no labels: no *_dseg image or table, and no mask of microbleeds, below sub-*",
            "Give a BIDS derivative of labels, or name its files with --labels-description",
        )
    reasons = "; ".join(f"{row['scan']}: {row['reason']}" for row in reader.others[:3])
    return NothingMatched(
        derivatives,
        f"no scan here can be held against labels in {labels_folder} ({reasons})",
        "The names of results and labels must share the subject and contradict in no entity",
    )
