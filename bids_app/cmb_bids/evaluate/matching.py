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
    return table[POSITION].to_numpy(dtype=float)


def within_reach(lesions: pd.DataFrame, points: np.ndarray, distance_mm: float) -> np.ndarray:
    """Which points (m,) lie on one of the lesions: a large one may be found at its rim."""
    if len(lesions) == 0 or len(points) == 0:
        return np.zeros(len(points), dtype=bool)
    reach = np.full(len(lesions), distance_mm)
    if "diameter_mm" in lesions:
        half = pd.to_numeric(lesions["diameter_mm"], errors="coerce").fillna(0).to_numpy() / 2
        reach = np.maximum(reach, half)
    return (cdist(positions(lesions), points) <= reach[:, None]).any(axis=0)


def match(
    truth: pd.DataFrame,
    detections: pd.DataFrame,
    distance_mm: float = MATCHING_DISTANCE_MM,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Match the detections of one scan to its lesions.

    Parameters
    ----------
    truth : DataFrame
        ``x y z`` (mm) and, where known, ``ignored`` (bool) and ``diameter_mm``.
    detections : DataFrame
        ``x y z`` (mm).
    distance_mm : float

    Returns
    -------
    truth : DataFrame
        With ``outcome`` (``hit``, ``missed`` or ``ignored``), ``distance_mm`` and ``partner``
        (row number of the detection; both missing where not hit).
    detections : DataFrame
        With ``outcome``: ``hit``, ``false`` or ``ignored``.
    """
    ignored = (
        truth["ignored"].to_numpy(dtype=bool) if "ignored" in truth else np.zeros(len(truth), bool)
    )
    lesions, points = positions(truth), positions(detections)
    pairs = match_points(lesions[~ignored], points, distance_mm)
    hits = np.flatnonzero(~ignored)[pairs[:, 0]]
    of_lesions = np.where(ignored, IGNORED, MISSED).astype(object)
    of_lesions[hits] = HIT
    distance, partner = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    distance[hits] = np.linalg.norm(lesions[hits] - points[pairs[:, 1]], axis=1)
    partner[hits] = pairs[:, 1]
    of_points = np.full(len(detections), FALSE, dtype=object)
    of_points[within_reach(truth[ignored], points, distance_mm)] = IGNORED
    of_points[pairs[:, 1]] = HIT
    return (
        truth.assign(outcome=of_lesions, distance_mm=distance, partner=partner),
        detections.assign(outcome=of_points),
    )


def by_scan(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each scan of a table with a ``scan`` column."""
    return {str(scan): rows for scan, rows in table.groupby("scan")} if len(table) else {}


def match_scans(
    scans: pd.DataFrame,
    truth: pd.DataFrame,
    detections: pd.DataFrame,
    distance_mm: float = MATCHING_DISTANCE_MM,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`match` for every scan of a cohort.

    Parameters
    ----------
    scans : DataFrame
        One row per scan evaluated, with or without lesions: ``scan``.
    truth, detections : DataFrame
        Points of all scans, with a ``scan`` column. Rows of other scans are dropped.
    distance_mm : float

    Returns
    -------
    truth, detections : DataFrame
        As `match`; ``partner`` is the row of the returned detections.
    """
    lesions_of, points_of = by_scan(truth), by_scan(detections)
    matched_truth = [match(truth.iloc[:0], detections.iloc[:0], distance_mm)[0]]
    matched_detections = [match(truth.iloc[:0], detections.iloc[:0], distance_mm)[1]]
    before = 0
    for scan in scans["scan"]:
        lesions, points = lesions_of.get(scan), points_of.get(scan)
        if lesions is None and points is None:
            continue
        lesions, points = match(
            truth.iloc[:0] if lesions is None else lesions,
            detections.iloc[:0] if points is None else points,
            distance_mm,
        )
        matched_truth.append(lesions.assign(partner=lesions["partner"] + before))
        matched_detections.append(points)
        before += len(points)
    return stack(matched_truth), stack(matched_detections)


def stack(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other; of empty ones, the columns of the first."""
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else parts[0].reset_index(drop=True)
