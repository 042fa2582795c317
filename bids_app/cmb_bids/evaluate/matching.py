"""Which detection belongs to which lesion: one-to-one pairs of points, scan by scan."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

MATCHING_DISTANCE_MM = 5.0
LARGEST_COUNTED_MM = 10.0
POSITION = ["x", "y", "z"]
HIT, MISSED, FALSE, IGNORED = "hit", "missed", "false", "ignored"
DOUBTFUL = ("possible", "uncertain")  # MARS says possible, BOMBS uncertain


def match_points(
    truth: np.ndarray, found: np.ndarray, distance_mm: float = MATCHING_DISTANCE_MM
) -> np.ndarray:
    """Pair two sets of points one to one.

    Parameters
    ----------
    truth : (n, 3) array
        Positions in mm.
    found : (m, 3) array
        Positions in mm.
    distance_mm : float
        Farther than this is no pair.

    Returns
    -------
    (pairs, 2) array of int
        Rows of ``truth`` and ``found`` that belong together, ordered by the first: as many pairs
        as can be, and of those the choice with the least total distance.
    """
    truth = np.asarray(truth, dtype=float).reshape(-1, 3)
    found = np.asarray(found, dtype=float).reshape(-1, 3)
    if len(truth) == 0 or len(found) == 0:
        return np.empty((0, 2), dtype=int)
    distance = cdist(truth, found)
    near = distance <= distance_mm
    # One forbidden pair costs more than all allowed pairs together.
    forbidden = (min(distance.shape) + 1) * max(distance_mm, 1e-6)
    rows, columns = linear_sum_assignment(np.where(near, distance, forbidden))
    allowed = near[rows, columns]
    return np.stack([rows[allowed], columns[allowed]], axis=1)


def is_true(column: pd.Series) -> np.ndarray:
    """Truth values (n,) of a column that may hold booleans, numbers or their spelling."""
    said = column.astype(str).str.strip().str.lower()
    return said.isin(["true", "1", "1.0", "yes"]).to_numpy()


def ignored_lesions(lesions: pd.DataFrame, largest_mm: float = LARGEST_COUNTED_MM) -> np.ndarray:
    """Which labelled lesions (n,) are neither hit nor missed.

    Possible ones, those over ``largest_mm``, and those that the labels themselves do not count.
    """
    ignored = np.zeros(len(lesions), dtype=bool)
    if "certainty" in lesions:
        said = lesions["certainty"].astype(str).str.strip().str.lower()
        ignored |= said.isin(DOUBTFUL).to_numpy()
    if "diameter_mm" in lesions:
        diameter = pd.to_numeric(lesions["diameter_mm"], errors="coerce")
        ignored |= (diameter > largest_mm).to_numpy()
    if "counted" in lesions:
        ignored |= lesions["counted"].notna().to_numpy() & ~is_true(lesions["counted"])
    return ignored


def counted_detections(detections: pd.DataFrame) -> np.ndarray:
    """Which detections (n,) the tool counts: all where it does not say."""
    if "counted" not in detections:
        return np.ones(len(detections), dtype=bool)
    return detections["counted"].isna().to_numpy() | is_true(detections["counted"])


def definite_detections(detections: pd.DataFrame) -> np.ndarray:
    """Which detections (n,) stand: counted, and not possible only."""
    kept = counted_detections(detections)
    if "certainty" in detections:
        said = detections["certainty"].astype(str).str.strip().str.lower()
        kept &= ~said.isin(DOUBTFUL).to_numpy()
    return kept


def positions(table: pd.DataFrame) -> np.ndarray:
    """Positions (n, 3) in mm of a table with ``x y z``."""
    return np.stack([table[axis].to_numpy(dtype=float) for axis in POSITION], axis=1)


def is_ignored(lesions: pd.DataFrame) -> np.ndarray:
    """The column ``ignored`` (n,); none is where there is no such column."""
    if "ignored" not in lesions:
        return np.zeros(len(lesions), dtype=bool)
    return lesions["ignored"].to_numpy(dtype=bool)


def reach_of(lesions: pd.DataFrame, distance_mm: float = MATCHING_DISTANCE_MM) -> np.ndarray:
    """How far (n,) in mm from its centre a detection still lies on an ignored lesion.

    The matching distance, or its radius: a large one may be found at its rim.
    """
    reach = np.full(len(lesions), distance_mm)
    if "diameter_mm" in lesions:
        half = pd.to_numeric(lesions["diameter_mm"], errors="coerce").to_numpy(dtype=float) / 2
        reach = np.fmax(reach, half)
    return reach


def within_reach(lesions: np.ndarray, reach: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points (m,) lie within ``reach`` (n,) of one of the lesions (n, 3)."""
    if len(lesions) == 0 or len(points) == 0:
        return np.zeros(len(points), dtype=bool)
    return (cdist(lesions, points) <= reach[:, None]).any(axis=0)


def rows_of_scans(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Row numbers of each scan of a table with a ``scan`` column."""
    return {str(scan): rows for scan, rows in table.groupby("scan").indices.items()}


def match(
    truth: pd.DataFrame,
    detections: pd.DataFrame,
    distance_mm: float = MATCHING_DISTANCE_MM,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Match the detections of one scan to its lesions: `match_scans` of one scan.

    Parameters
    ----------
    truth : DataFrame
        ``x y z`` (mm) and, where known, ``ignored`` (bool) and ``diameter_mm``.
    detections : DataFrame
        ``x y z`` (mm).
    distance_mm : float
    """
    scans = pd.DataFrame({"scan": ["one"]})
    matched = match_scans(
        scans, truth.assign(scan="one"), detections.assign(scan="one"), distance_mm
    )
    return matched[0].drop(columns="scan"), matched[1].drop(columns="scan")


def match_scans(
    scans: pd.DataFrame,
    truth: pd.DataFrame,
    detections: pd.DataFrame,
    distance_mm: float = MATCHING_DISTANCE_MM,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Match the detections of each scan of a cohort to its lesions.

    Parameters
    ----------
    scans : DataFrame
        One row per scan evaluated, with or without lesions: ``scan``.
    truth, detections : DataFrame
        Points of all scans: ``scan``, ``x y z`` (mm) and, for lesions, where known, ``ignored``
        (bool) and ``diameter_mm``. Rows of other scans are dropped.
    distance_mm : float

    Returns
    -------
    truth : DataFrame
        With ``outcome`` (``hit``, ``missed`` or ``ignored``), ``distance_mm`` and ``partner``
        (row number of the detection; both missing where not hit).
    detections : DataFrame
        With ``outcome``: ``hit``, ``false`` or ``ignored``.
    """
    truth, detections = (
        table[table["scan"].isin(scans["scan"])].reset_index(drop=True)
        for table in (truth, detections)
    )
    lesions, points = positions(truth), positions(detections)
    ignored, reach = is_ignored(truth), reach_of(truth, distance_mm)
    of_lesions = np.where(ignored, IGNORED, MISSED).astype(object)
    of_points = np.full(len(points), FALSE, dtype=object)
    partner = np.full(len(lesions), np.nan)
    points_of = rows_of_scans(detections)
    for scan, mine in rows_of_scans(truth).items():
        there = points_of.get(scan)
        if there is None:
            continue
        counted, excused = mine[~ignored[mine]], mine[ignored[mine]]
        on_ignored = within_reach(lesions[excused], reach[excused], points[there])
        of_points[there[on_ignored]] = IGNORED
        pairs = match_points(lesions[counted], points[there], distance_mm)
        of_lesions[counted[pairs[:, 0]]] = of_points[there[pairs[:, 1]]] = HIT
        partner[counted[pairs[:, 0]]] = there[pairs[:, 1]]
    hits = np.flatnonzero(np.isfinite(partner))
    distance = np.full(len(lesions), np.nan)
    distance[hits] = np.linalg.norm(lesions[hits] - points[partner[hits].astype(int)], axis=1)
    return (
        truth.assign(outcome=of_lesions, distance_mm=distance, partner=partner),
        detections.assign(outcome=of_points),
    )


def stack(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other; of empty ones, the columns of the first."""
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else parts[0].reset_index(drop=True)
