"""What is known of a scan besides its lesions: what its figures can be grouped by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from cmb_bids.errors import BadData
from cmb_bids.evaluate.files import agree, entities_of, scan_of
from cmb_bids.volumes import read_json, read_table

SCAN_COLUMNS_USED = ("field_strength_t", "input", "qc_status")


def dataset_above(folder: Path) -> Path | None:
    """The raw dataset whose ``derivatives`` folder this one lies in."""
    above = folder.resolve().parent
    raw = above.parent
    return raw if above.name == "derivatives" and any(raw.glob("sub-*")) else None


def read_participants(folders: Iterable[Path]) -> pd.DataFrame:
    """Columns of every ``participants.tsv``, by participant; the first folder's win."""
    known = pd.DataFrame()
    for folder in folders:
        path = folder / "participants.tsv"
        if not path.is_file():
            continue
        table = read_table(path)
        if "participant_id" not in table:
            raise BadData(path, "has no participant_id column", "Add it, or remove the file")
        table = table.drop_duplicates("participant_id").set_index("participant_id")
        known = known.combine_first(table) if len(known) else table
    return known


def read_scan_rows(folder: Path) -> dict[str, dict[str, object]]:
    """What the scans tables of a cmb-bids output say of each scan."""
    rows: dict[str, dict[str, object]] = {}
    for path in sorted(
        [*folder.glob("sub-*/sub-*_scans.tsv"), *folder.glob("sub-*/ses-*/*_scans.tsv")]
    ):
        table = read_table(path)
        if "filename" not in table:
            continue
        for row in table.to_dict("records"):
            rows[scan_of(Path(str(row["filename"])).name)] = row
    return rows


def read_field_strengths(folders: Iterable[Path], scans: Iterable[str]) -> dict[str, float]:
    """Field strength in T of each scan, from the first sidecar of its own that says it."""
    roots = list(folders)
    said = {scan: [_field_strength(root, scan) for root in roots] for scan in scans}
    known = {scan: [value for value in values if value] for scan, values in said.items()}
    return {scan: values[0] for scan, values in known.items() if values}


def _field_strength(root: Path, scan: str) -> float | None:
    mine = entities_of(scan)
    for path in sorted((root / f"sub-{mine.get('sub')}").glob("**/*.json")):
        if agree(mine, entities_of(scan_of(path.name))):
            value = read_json(path).get("MagneticFieldStrength")
            if isinstance(value, int | float):
                return float(value)
    return None


def is_simulated(folders: Iterable[Path]) -> bool:
    """Whether one of the datasets says that its scans, or the lesions in them, were simulated."""
    for folder in folders:
        path = folder / "dataset_description.json"
        if path.is_file():
            generators = read_json(path).get("GeneratedBy") or []
            names = [str(g.get("Name", "")) for g in generators if isinstance(g, dict)]
            if any("simulat" in name or "implant" in name for name in names):
                return True
    return False


AGE_EDGES = (0, 50, 60, 70, 80, 200)
AGE_NAMES = ("under 50", "50-59", "60-69", "70-79", "80 and over")
MOST_GROUPS = 12
MOST_NUMBERS = 4


def _grouping_columns(participants: pd.DataFrame) -> pd.DataFrame:
    """Columns of participants with few enough values to group by; age in decades."""
    table = participants.copy()
    if "age" in table:
        age = pd.to_numeric(table["age"], errors="coerce")
        table["age"] = pd.cut(age, AGE_EDGES, right=False, labels=AGE_NAMES).astype(object)
    # Of numbers, those that stand for groups (a field strength), not measurements (a weight).
    most = {
        name: min(MOST_NUMBERS, len(table) // 2)
        if pd.api.types.is_numeric_dtype(table[name])
        else MOST_GROUPS
        for name in table
    }
    return table[[name for name in table if 1 < table[name].nunique() <= most[name]]]


def describe_scans(
    scans: pd.DataFrame,
    participants: pd.DataFrame,
    rows: Mapping[str, Mapping[str, object]],
    fields: Mapping[str, float] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Add to each scan what it can be grouped by.

    Columns of ``participants.tsv``; field strength, input and quality check from the scans table,
    field strength else from ``fields`` (the sidecars'); the acquisition's name, which also serves
    as protocol where no table has one.

    Returns
    -------
    scans : DataFrame
    groups : list of str
        Names of the columns that were added.
    """
    scans = scans.copy()
    before = set(scans.columns)
    known = _grouping_columns(participants)
    for column in known.columns:
        if column not in scans:
            scans[column] = scans["participant_id"].map(known[column])
    for column in SCAN_COLUMNS_USED:
        if column not in scans and any(column in row for row in rows.values()):
            scans[column] = scans["scan"].map({k: v.get(column) for k, v in rows.items()})
    if fields and "field_strength_t" not in scans:
        scans["field_strength_t"] = scans["scan"].map(fields)
    acquisition = scans["scan"].map(lambda scan: entities_of(scan).get("acq"))
    if acquisition.notna().any():
        scans["protocol" if "protocol" not in scans else "acquisition"] = acquisition
    return scans, [c for c in scans.columns if c not in before]
