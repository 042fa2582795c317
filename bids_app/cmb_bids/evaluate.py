"""Score detections against labels: matching, metrics, and ``cmb-lab evaluate``.

Rules
-----
* A detection hits a lesion when their centres are within 5 mm; each lesion is hit at most once
  and each detection hits at most one lesion (Hungarian assignment: as many pairs as possible,
  then the least total distance).
* Possible lesions and lesions over 10 mm are neither hit nor missed, and a detection on one is
  neither hit nor false. A detection that is only possible, or is not counted, is left out too.
* Every scan that was processed and labelled counts, lesion-free ones included; false positives
  there are punished, and also given on their own.
* Intervals come from resampling participants, not lesions: lesions of one brain are alike.

Figures from simulated scans say how the parts of the method compare. They are not comparable with
figures published on patients.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cmb_bids.errors import CmbError, InputMissing, NothingMatched
from cmb_bids.volumes import (
    read_table,
    read_volume,
    voxel_sizes,
    voxel_to_world,
    write_json,
    write_table,
)

MATCHING_DISTANCE_MM = 5.0
LARGEST_COUNTED_MM = 10.0
FROC_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SIZE_EDGES_MM = (0.0, 2.0, 3.0, 5.0, 10.0)
CONTRAST_EDGES = (0.0, 2.0, 5.0, 10.0, np.inf)
BURDEN_EDGES = (0, 1, 2, 5, 11)  # classes 0, 1, 2-4, 5-10, >10
POSITION = ["x", "y", "z"]
NOT_DEFINED = "n/a"


# ------------------------------------------------------------------ matching


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


def ignored_lesions(lesions: pd.DataFrame, largest_mm: float = LARGEST_COUNTED_MM) -> np.ndarray:
    """Which labelled lesions (n,) are neither hit nor missed: possible ones, and too large ones."""
    ignored = np.zeros(len(lesions), dtype=bool)
    if "certainty" in lesions:
        ignored |= (lesions["certainty"] == "possible").to_numpy()
    if "diameter_mm" in lesions:
        ignored |= (pd.to_numeric(lesions["diameter_mm"]) > largest_mm).to_numpy()
    return ignored


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
        With ``hit`` (bool) and ``distance_mm`` (missing where not hit).
    detections : DataFrame
        With ``outcome``: ``hit``, ``false`` or ``ignored``.
    """
    truth, detections = truth.copy(), detections.copy()
    ignored = (
        truth["ignored"].to_numpy(dtype=bool) if "ignored" in truth else np.zeros(len(truth), bool)
    )
    lesions, points = truth[POSITION].to_numpy(float), detections[POSITION].to_numpy(float)
    pairs = match_points(lesions[~ignored], points, distance_mm)
    hits = np.flatnonzero(~ignored)[pairs[:, 0]]
    truth["hit"] = np.isin(np.arange(len(truth)), hits)
    truth["distance_mm"] = np.nan
    between = np.linalg.norm(lesions[hits] - points[pairs[:, 1]], axis=1)
    truth.iloc[hits, truth.columns.get_indexer(["distance_mm"])] = between[:, None]
    outcome = np.full(len(detections), "false", dtype=object)
    outcome[_within_reach(truth[ignored], points, distance_mm)] = "ignored"
    outcome[pairs[:, 1]] = "hit"
    detections["outcome"] = outcome
    return truth, detections


def _within_reach(lesions: pd.DataFrame, points: np.ndarray, distance_mm: float) -> np.ndarray:
    """Which points (m,) lie on one of the lesions: a large one may be found at its rim."""
    if len(lesions) == 0 or len(points) == 0:
        return np.zeros(len(points), dtype=bool)
    reach = np.full(len(lesions), distance_mm)
    if "diameter_mm" in lesions:
        half = pd.to_numeric(lesions["diameter_mm"]).fillna(0).to_numpy(float) / 2
        reach = np.maximum(reach, half)
    return (cdist(lesions[POSITION].to_numpy(float), points) <= reach[:, None]).any(axis=0)


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
        One row per scan evaluated, with or without lesions: ``scan``, ``participant_id``.
    truth, detections : DataFrame
        Points of all scans, with a ``scan`` column. Rows of other scans are dropped.
    distance_mm : float

    Returns
    -------
    truth, detections : DataFrame
        As `match`, ignored lesions marked in ``ignored``.
    """
    lesions_of = dict(tuple(truth.groupby("scan"))) if len(truth) else {}
    points_of = dict(tuple(detections.groupby("scan"))) if len(detections) else {}
    matched_truth, matched_detections = [], []
    for scan in scans["scan"]:
        lesions = lesions_of.get(scan, truth.iloc[:0])
        lesions, points = match(lesions, points_of.get(scan, detections.iloc[:0]), distance_mm)
        matched_truth.append(lesions)
        matched_detections.append(points)
    if not matched_truth:
        lesions, points = match(truth.iloc[:0], detections.iloc[:0], distance_mm)
        return lesions, points
    return (
        pd.concat(matched_truth, ignore_index=True),
        pd.concat(matched_detections, ignore_index=True),
    )


# ------------------------------------------------------------------ metrics


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")


def count_per_scan(
    scans: pd.DataFrame, truth: pd.DataFrame, detections: pd.DataFrame
) -> pd.DataFrame:
    """Lesions, hits and false positives of each scan, from tables that `match_scans` returned."""
    counted = truth[~truth["ignored"].astype(bool)] if "ignored" in truth else truth
    table = scans.copy()

    def tally(rows: pd.DataFrame) -> np.ndarray:
        return table["scan"].map(rows.groupby("scan").size()).fillna(0).to_numpy(int)

    table["lesions"] = tally(counted)
    table["hits"] = tally(counted[counted["hit"].astype(bool)])
    table["false_positives"] = tally(detections[detections["outcome"] == "false"])
    # A scan whose only lesions are ignored ones is not lesion-free.
    table["lesion_free"] = tally(truth) == 0
    return table


def summarise(counts: pd.DataFrame) -> dict[str, float]:
    """Metrics of a cohort from `count_per_scan`.

    Returns
    -------
    dict
        ``scans lesions hits false_positives sensitivity precision f1
        false_positives_per_scan lesion_free_scans false_positives_per_lesion_free_scan
        scan_sensitivity scan_specificity``. A ratio without a denominator is not a number.
    """
    lesions, hits = counts["lesions"].sum(), counts["hits"].sum()
    false = counts["false_positives"].sum()
    free = counts[counts["lesion_free"]]
    bearing = counts[counts["lesions"] > 0]
    called = counts["hits"] + counts["false_positives"] > 0
    return {
        "scans": len(counts),
        "lesions": int(lesions),
        "hits": int(hits),
        "false_positives": int(false),
        "sensitivity": _ratio(hits, lesions),
        "precision": _ratio(hits, hits + false),
        "f1": _ratio(2 * hits, lesions + hits + false),
        "false_positives_per_scan": _ratio(false, len(counts)),
        "lesion_free_scans": len(free),
        "false_positives_per_lesion_free_scan": _ratio(free["false_positives"].sum(), len(free)),
        "scan_sensitivity": _ratio(called[bearing.index].sum(), len(bearing)),
        "scan_specificity": _ratio((~called[free.index]).sum(), len(free)),
    }


def bootstrap(
    counts: pd.DataFrame, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the metrics, resampling participants with replacement.

    Parameters
    ----------
    counts : DataFrame
        From `count_per_scan`, with ``participant_id``.
    samples : int
    seed : int

    Returns
    -------
    dict
        (low, high) for each ratio that `summarise` gives; not a number where it never exists.
    """
    ratios = (
        "sensitivity",
        "precision",
        "f1",
        "false_positives_per_scan",
        "false_positives_per_lesion_free_scan",
    )
    table = counts.assign(
        scans=1,
        free=counts["lesion_free"].astype(int),
        free_false=counts["false_positives"].where(counts["lesion_free"], 0),
    )
    columns = ["scans", "lesions", "hits", "false_positives", "free", "free_false"]
    sums = table.groupby("participant_id", sort=True)[columns].sum().to_numpy(float)
    if len(sums) == 0 or samples < 1:
        return dict.fromkeys(ratios, (float("nan"), float("nan")))
    chosen = np.random.default_rng(seed).integers(len(sums), size=(samples, len(sums)))
    scans, lesions, hits, false, free, free_false = sums[chosen].sum(axis=1).T
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (
            hits / lesions,
            hits / (hits + false),
            2 * hits / (lesions + hits + false),
            false / scans,
            free_false / free,
        )
    return {name: _interval(values) for name, values in zip(ratios, drawn, strict=True)}


def _interval(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def froc(
    scans: pd.DataFrame,
    truth: pd.DataFrame,
    detections: pd.DataFrame,
    rates: Sequence[float] = FROC_RATES,
    distance_mm: float = MATCHING_DISTANCE_MM,
    most_thresholds: int = 200,
) -> pd.DataFrame:
    """Sensitivity at given numbers of false positives per scan.

    Matching is repeated at every threshold: a detection below the threshold must not take a
    lesion from one above it.

    Parameters
    ----------
    scans, truth, detections : DataFrame
        As `match_scans`; detections with ``probability``.
    rates : sequence of float
        False positives per scan.
    distance_mm : float
    most_thresholds : int
        More distinct probabilities than this are thinned out evenly.

    Returns
    -------
    DataFrame
        One row per rate: ``false_positives_per_scan`` (allowed), ``threshold`` (on the
        probability; missing where no detection may be made), ``sensitivity`` (the best within
        the allowance), ``reached`` (whether the detections are numerous enough to spend it).
    """
    levels = np.unique(detections["probability"].dropna().to_numpy(float))[::-1]
    if len(levels) > most_thresholds:
        levels = levels[np.linspace(0, len(levels) - 1, most_thresholds).astype(int)]
    points = [(np.nan, 0.0, 0.0 if len(truth) else np.nan)]
    for threshold in levels:
        kept = detections[detections["probability"] >= threshold]
        metrics = summarise(count_per_scan(scans, *match_scans(scans, truth, kept, distance_mm)))
        points.append((threshold, metrics["false_positives_per_scan"], metrics["sensitivity"]))
    curve = np.array(points, dtype=float)
    rows = []
    for rate in rates:
        allowed = curve[curve[:, 1] <= rate]
        best = allowed[np.argmax(np.nan_to_num(allowed[:, 2], nan=-1.0))]
        rows.append((rate, best[0], best[2], bool(curve[-1, 1] >= rate)))
    names = ["false_positives_per_scan", "threshold", "sensitivity", "reached"]
    return pd.DataFrame(rows, columns=names)


def expected_calibration_error(
    probability: np.ndarray, is_lesion: np.ndarray, bins: int = 10
) -> float:
    """Mean distance of the probability from the share of lesions, over bins of equal width.

    Parameters
    ----------
    probability : (n,) array within 0..1
    is_lesion : (n,) array of bool
    bins : int

    Returns
    -------
    float
        Weighted by the detections in each bin; not a number without detections.
    """
    probability = np.asarray(probability, dtype=float)
    known = np.isfinite(probability)
    probability, is_lesion = probability[known], np.asarray(is_lesion, dtype=float)[known]
    if len(probability) == 0:
        return float("nan")
    which = np.minimum((probability * bins).astype(int), bins - 1)
    size = np.bincount(which, minlength=bins)
    said = np.bincount(which, weights=probability, minlength=bins)
    was = np.bincount(which, weights=is_lesion, minlength=bins)
    return float(np.abs(said - was).sum() / size.sum())


def burden_class(counts: Iterable[int]) -> np.ndarray:
    """Class 0..4 of each count: none, one, 2-4, 5-10, more than 10."""
    return np.searchsorted(BURDEN_EDGES, np.asarray(list(counts)), side="right") - 1


def weighted_kappa(first: np.ndarray, second: np.ndarray, classes: int = 5) -> float:
    """Cohen's kappa with linear weights of two ratings 0..classes-1; 1 where both never vary."""
    table = np.zeros((classes, classes))
    np.add.at(table, (np.asarray(first, int), np.asarray(second, int)), 1)
    if table.sum() == 0:
        return float("nan")
    table /= table.sum()
    weight = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    chance = (weight * np.outer(table.sum(1), table.sum(0))).sum()
    seen = (weight * table).sum()
    return 1.0 if chance == 0 else float(1 - seen / chance)


def intraclass_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """ICC(2,1), absolute agreement of two counts per scan (Shrout and Fleiss 1979)."""
    ratings = np.stack([np.asarray(first, float), np.asarray(second, float)], axis=1)
    scans, raters = ratings.shape
    if scans < 2:
        return float("nan")
    grand = ratings.mean()
    between = raters * ((ratings.mean(1) - grand) ** 2).sum() / (scans - 1)
    raters_spread = scans * ((ratings.mean(0) - grand) ** 2).sum() / (raters - 1)
    total = ((ratings - grand) ** 2).sum()
    error = (total - between * (scans - 1) - raters_spread * (raters - 1)) / (
        (scans - 1) * (raters - 1)
    )
    below = between + (raters - 1) * error + raters * (raters_spread - error) / scans
    return float((between - error) / below) if below > 0 else float("nan")


def recall_by(truth: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Share of the counted lesions hit, by size, contrast, region, protocol: what is there.

    Parameters
    ----------
    truth : DataFrame
        From `match_scans`.
    columns : sequence of str, optional
        Default: ``diameter_mm`` and ``contrast_to_noise`` in classes, ``mars_class``,
        ``mars_region``, ``protocol``, ``name``.

    Returns
    -------
    DataFrame
        ``by group lesions hits sensitivity``.
    """
    counted = truth[~truth["ignored"].astype(bool)] if "ignored" in truth else truth
    default = ("diameter_mm", "contrast_to_noise", "mars_class", "mars_region", "protocol")
    edges = {"diameter_mm": SIZE_EDGES_MM, "contrast_to_noise": CONTRAST_EDGES}
    rows = []
    for column in columns or default:
        if column not in counted or len(counted) == 0:
            continue
        groups = counted[column]
        if column in edges:
            groups = pd.cut(pd.to_numeric(groups), edges[column], right=False).astype(str)
        for group, part in counted.groupby(groups, sort=True):
            hits = int(part["hit"].sum())
            rows.append((column, str(group), len(part), hits, _ratio(hits, len(part))))
    return pd.DataFrame(rows, columns=["by", "group", "lesions", "hits", "sensitivity"])


# ------------------------------------------------------------------ files


class Cohort(NamedTuple):
    """What `read_cohort` returns: one table for each kind of row, all with a ``scan`` column."""

    scans: pd.DataFrame
    truth: pd.DataFrame
    microbleeds: pd.DataFrame
    calcifications: pd.DataFrame
    candidates: pd.DataFrame
    unprocessed: list[str]
    unlabelled: list[str]


ENTITY = re.compile(r"(?<![a-zA-Z0-9])([a-z]+)-([a-zA-Z0-9+]+)")
IS_MICROBLEED = re.compile(r"microbleed|cmb|haemorrhage|hemorrhage", re.IGNORECASE)
IS_CALCIFICATION = re.compile(r"calcif", re.IGNORECASE)


def _prefix(path: Path) -> str:
    """Name of the scan a table or image belongs to: everything before ``desc``."""
    return path.name.split("_dseg.")[0].split("_desc-")[0]


def _tables(folder: Path, description: str) -> dict[str, Path]:
    """Point tables of one description, by scan."""
    found = sorted(folder.glob(f"sub-*/**/*_desc-{description}_dseg.tsv"))
    return {_prefix(path): path for path in found}


def _labels(folder: Path) -> dict[str, list[Path]]:
    """Label files by scan: every point table, and every label image."""
    by_scan: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("sub-*/**/*_dseg.*")):
        if path.name.endswith((".tsv", ".nii.gz", ".nii")):
            by_scan.setdefault(_prefix(path), []).append(path)
    return by_scan


def lesions_from_image(labels: np.ndarray, affine: np.ndarray) -> pd.DataFrame:
    """Centre and size of each lesion of a label image.

    Parameters
    ----------
    labels : (x, y, z) array of int
        One number per lesion; or a single number everywhere, and then each connected piece
        (26 neighbours) is a lesion.
    affine : (4, 4) array

    Returns
    -------
    DataFrame
        ``index x y z diameter_mm``; the diameter is that of the ball of the same volume.
    """
    labels = np.asarray(labels, dtype=int)
    numbers = np.unique(labels[labels > 0])
    if len(numbers) == 1:
        labels, count = ndimage.label(labels > 0, structure=np.ones((3, 3, 3)))
        numbers = np.arange(1, count + 1)
    if len(numbers) == 0:
        return pd.DataFrame(columns=["index", *POSITION, "diameter_mm"], dtype=float)
    centres = ndimage.center_of_mass(labels > 0, labels, numbers)
    volume = np.bincount(labels.ravel())[numbers] * np.prod(voxel_sizes(affine))
    table = pd.DataFrame(voxel_to_world(affine, np.array(centres)), columns=POSITION)
    table.insert(0, "index", numbers)
    return table.assign(diameter_mm=np.cbrt(6 * volume / np.pi))


def read_labels(paths: Sequence[Path]) -> pd.DataFrame:
    """Lesions of one scan from its label files.

    A table with ``x y z`` is a point list. A table without is the lookup table of the image of
    the same name, whose lesions are then measured. An image without a table holds microbleeds.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    DataFrame
        ``name x y z`` and whatever other columns the tables have.
    """
    found = []
    tables = {path.name.split(".")[0]: path for path in paths if path.suffix == ".tsv"}
    images = {path.name.split(".")[0]: path for path in paths if path.suffix != ".tsv"}
    for stem in sorted({*tables, *images}):
        table = read_table(tables[stem]) if stem in tables else None
        if table is None or not set(POSITION) <= set(table.columns):
            if stem not in images:
                raise InputMissing(
                    tables[stem],
                    "has no x, y, z columns and no image beside it",
                    "Add positions in scanner mm or the label image",
                )
            image = read_volume(images[stem], dtype=np.int32)
            measured = lesions_from_image(image.data, image.affine)
            table = measured if table is None else measured.merge(table, on="index", how="left")
        if "name" not in table:
            table["name"] = "calcification" if IS_CALCIFICATION.search(stem) else "microbleed"
        found.append(table)
    return pd.concat(found, ignore_index=True)


def _partner(prefix: str, labelled: Sequence[str]) -> str | None:
    """The labelled scan that a processed scan is: of the same name, or the only one of its
    subject and session (labels are often named by subject alone)."""
    if prefix in labelled:
        return prefix
    mine = dict(ENTITY.findall(prefix))
    same = [
        name
        for name in labelled
        if all(mine.get(entity) == value for entity, value in ENTITY.findall(name))
    ]
    return same[0] if len(same) == 1 else None


def read_cohort(
    derivatives_dir: str | os.PathLike[str], labels_dir: str | os.PathLike[str]
) -> Cohort:
    """Collect the detections of a derivative dataset and the labels they are held against.

    Raises
    ------
    InputMissing
        One of the directories is not there.
    NothingMatched
        No scan has both a result and labels.
    """
    derivatives, labels_folder = Path(derivatives_dir), Path(labels_dir)
    for folder in (derivatives, labels_folder):
        if not folder.is_dir():
            raise InputMissing(folder, "is not a directory", "Check the path")
    labels = _labels(labels_folder)
    kinds = {kind: _tables(derivatives, kind) for kind in ("cmb", "calcification", "candidates")}
    rows: dict[str, list[pd.DataFrame]] = {kind: [] for kind in (*kinds, "truth")}
    scans, unlabelled, used = [], [], set()
    for prefix in sorted(kinds["cmb"]):
        partner = _partner(prefix, list(labels))
        if partner is None:
            unlabelled.append(prefix)
            continue
        used.add(partner)
        lesions = read_labels(labels[partner])
        entities = dict(ENTITY.findall(prefix))
        row = {"scan": prefix, "participant_id": f"sub-{entities.get('sub', prefix)}"}
        if "acq" in entities:
            row["protocol"] = entities["acq"]
        scans.append(row)
        rows["truth"].append(lesions.assign(**row))
        for kind, tables in kinds.items():
            if prefix in tables:
                rows[kind].append(read_table(tables[prefix]).assign(**row))
    if not scans:
        raise NothingMatched(
            derivatives,
            f"no scan here has labels in {labels_folder}",
            "Give a cmb-bids output directory and a BIDS derivative with *_desc-*_dseg tables",
        )
    stacked = {kind: _stack(parts) for kind, parts in rows.items()}
    return Cohort(
        pd.DataFrame(scans),
        stacked["truth"],
        stacked["cmb"],
        stacked["calcification"],
        stacked["candidates"],
        sorted(set(labels) - used),
        unlabelled,
    )


def _stack(parts: list[pd.DataFrame]) -> pd.DataFrame:
    columns = ["scan", "participant_id", "name", *POSITION]
    filled = [part for part in parts if len(part)]
    if filled:
        return pd.concat(filled, ignore_index=True)
    return parts[0].iloc[:0] if parts else pd.DataFrame(columns=columns)


def _named(table: pd.DataFrame, pattern: re.Pattern[str]) -> pd.DataFrame:
    return table[table["name"].astype(str).str.contains(pattern)].reset_index(drop=True)


def _definite(detections: pd.DataFrame) -> pd.DataFrame:
    """Detections that stand: neither possible only, nor listed without being counted."""
    kept = np.ones(len(detections), dtype=bool)
    if "certainty" in detections:
        kept &= (detections["certainty"] != "possible").to_numpy()
    if "counted" in detections:
        kept &= (detections["counted"].astype(str).str.lower() != "false").to_numpy()
    return detections[kept]


def evaluate_cohort(
    cohort: Cohort,
    distance_mm: float = MATCHING_DISTANCE_MM,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a cohort.

    Parameters
    ----------
    cohort : Cohort
    distance_mm : float
    samples : int
        Bootstrap samples.
    seed : int

    Returns
    -------
    dict
        ``metrics`` (dict), ``intervals`` (dict of (low, high)), and the tables ``froc``,
        ``per_scan``, ``by_group``, ``by_protocol``, ``candidate_recall``, ``lesions``,
        ``detections``.
    """
    scans = cohort.scans
    lesions = _named(cohort.truth, IS_MICROBLEED)
    lesions["ignored"] = ignored_lesions(lesions)
    calcified = _named(cohort.truth, IS_CALCIFICATION)
    calcified["ignored"] = ignored_lesions(calcified)
    definite = _definite(cohort.microbleeds)
    truth, detections = match_scans(scans, lesions, definite, distance_mm)
    counts = count_per_scan(scans, truth, detections)
    metrics: dict[str, Any] = summarise(counts)
    metrics |= _calcification_metrics(scans, calcified, detections, cohort, distance_mm)
    recall, recall_table = _candidate_metrics(
        scans, lesions, calcified, cohort.candidates, distance_mm
    )
    metrics |= recall
    everything = match_scans(scans, lesions, cohort.microbleeds, distance_mm)[1]
    table = pd.DataFrame(columns=["false_positives_per_scan", "threshold", "sensitivity"])
    if "probability" in cohort.microbleeds:
        judged = everything[everything["outcome"] != "ignored"]
        metrics["expected_calibration_error"] = expected_calibration_error(
            judged["probability"].to_numpy(float), (judged["outcome"] == "hit").to_numpy()
        )
        table = froc(scans, lesions, cohort.microbleeds, distance_mm=distance_mm)
    called = counts["hits"] + counts["false_positives"]
    metrics["burden_kappa"] = weighted_kappa(burden_class(counts["lesions"]), burden_class(called))
    metrics["count_icc"] = intraclass_correlation(counts["lesions"], called)
    metrics["scans_without_result"] = len(cohort.unprocessed)
    return {
        "metrics": metrics,
        "intervals": bootstrap(counts, samples, seed),
        "froc": table,
        "per_scan": counts,
        "by_group": recall_by(truth),
        "by_protocol": _by_protocol(counts),
        "candidate_recall": recall_table,
        "lesions": truth,
        "detections": detections,
    }


def _calcification_metrics(
    scans: pd.DataFrame,
    calcified: pd.DataFrame,
    detections: pd.DataFrame,
    cohort: Cohort,
    distance_mm: float,
) -> dict[str, float]:
    """How many calcifications were called microbleeds, and how many calcifications."""
    free = detections[detections["outcome"] == "false"].drop(columns="outcome")
    wrong = match_scans(scans, calcified, free, distance_mm)[0]
    right = match_scans(scans, calcified, cohort.calcifications, distance_mm)[0]
    wrong, right = wrong[~wrong["ignored"]], right[~right["ignored"]]
    return {
        "calcifications": len(wrong),
        "calcifications_called_microbleed": int(wrong["hit"].sum()),
        "calcification_called_microbleed_share": _ratio(wrong["hit"].sum(), len(wrong)),
        "calcification_sensitivity": _ratio(right["hit"].sum(), len(right)),
    }


def _candidate_metrics(
    scans: pd.DataFrame,
    lesions: pd.DataFrame,
    calcified: pd.DataFrame,
    candidates: pd.DataFrame,
    distance_mm: float,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Share of lesions that have a candidate, and candidates per scan."""
    metrics: dict[str, float] = {"candidates_per_scan": _ratio(len(candidates), len(scans))}
    found = []
    for name, rows in (("microbleed", lesions), ("calcification", calcified)):
        near = match_scans(scans, rows, candidates, distance_mm)[0]
        counted = near[~near["ignored"]]
        metrics[f"candidate_recall_{name}"] = _ratio(counted["hit"].sum(), len(counted))
        found.append(recall_by(near).assign(name=name))
    return metrics, pd.concat(found, ignore_index=True)


def _by_protocol(counts: pd.DataFrame) -> pd.DataFrame:
    """`summarise` for each protocol; empty where scans do not say theirs."""
    if "protocol" not in counts:
        return pd.DataFrame(columns=["protocol"])
    rows = [
        {"protocol": protocol, **summarise(part)}
        for protocol, part in counts.groupby("protocol", sort=True)
    ]
    return pd.DataFrame(rows, columns=None if rows else ["protocol"])


def evaluate_derivatives(
    derivatives_dir: str | os.PathLike[str],
    labels_dir: str | os.PathLike[str],
    distance_mm: float = MATCHING_DISTANCE_MM,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a cmb-bids output directory against a labels derivative.

    Parameters
    ----------
    derivatives_dir : path-like
        Holds ``sub-*_desc-{cmb,calcification,candidates}_dseg.tsv``.
    labels_dir : path-like
        A BIDS derivative with ``*_desc-*_dseg`` point tables (``name x y z``) or label images.
    distance_mm, samples, seed
        As `evaluate_cohort`.

    Returns
    -------
    dict
        As `evaluate_cohort`, with ``unprocessed`` and ``unlabelled`` scans.

    Raises
    ------
    InputMissing, NothingMatched
        As `read_cohort`.
    """
    cohort = read_cohort(derivatives_dir, labels_dir)
    result = evaluate_cohort(cohort, distance_mm, samples, seed)
    return result | {"unprocessed": cohort.unprocessed, "unlabelled": cohort.unlabelled}


# ------------------------------------------------------------------ command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``cmb-lab evaluate``."""
    parser.add_argument("derivatives", type=Path, help="output directory of cmb-bids")
    parser.add_argument("labels", type=Path, help="BIDS derivative with desc-*_dseg labels")
    parser.add_argument("--output", type=Path, help="directory for the tables and the JSON")
    parser.add_argument(
        "--distance-mm", type=float, default=MATCHING_DISTANCE_MM, help="default: %(default)s"
    )
    parser.add_argument(
        "--bootstrap", type=int, default=1000, help="samples for intervals (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """``cmb-lab evaluate``: print a short table, write TSV and JSON; returns the exit code."""
    try:
        result = evaluate_derivatives(
            arguments.derivatives,
            arguments.labels,
            arguments.distance_mm,
            arguments.bootstrap,
            arguments.seed,
        )
        print(describe(result))
        if arguments.output:
            write_result(arguments.output, result)
    except CmbError as error:
        print(f"cmb-lab evaluate: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def describe(result: dict[str, Any]) -> str:
    """A short table of the metrics for people to read."""
    metrics, intervals = result["metrics"], result["intervals"]
    lines = []
    for name, value in metrics.items():
        text = _short(value)
        if name in intervals and text != NOT_DEFINED:
            low, high = intervals[name]
            text += f"  ({_short(low)} to {_short(high)})"
        lines.append(f"{name.replace('_', ' '):46s}{text}")
    if len(result["froc"]):
        lines.append("")
        lines += [
            f"sensitivity at {row.false_positives_per_scan:g} false positives per scan".ljust(46)
            + _short(row.sensitivity)
            + ("" if row.reached else "  (all detections used)")
            for row in result["froc"].itertuples()
        ]
    for name in ("by_group", "by_protocol"):
        if len(result[name]):
            table = result[name].to_string(index=False, float_format="%.3f", na_rep=NOT_DEFINED)
            lines += ["", table]
    if result.get("unprocessed"):
        lines += ["", "labelled but without a result: " + " ".join(result["unprocessed"])]
    return "\n".join(lines)


def _short(value: Any) -> str:
    """A figure for people; what divides by nothing has no value."""
    if not isinstance(value, float):
        return str(value)
    return NOT_DEFINED if np.isnan(value) else f"{value:.3f}"


def write_result(folder: str | os.PathLike[str], result: dict[str, Any]) -> None:
    """Write ``metrics.json`` and one TSV per table into ``folder``."""
    folder = Path(folder)
    content = {
        "metrics": _without_nan(result["metrics"]),
        "intervals_95": {name: _without_nan(pair) for name, pair in result["intervals"].items()},
        "scans_without_result": result.get("unprocessed", []),
        "scans_without_labels": result.get("unlabelled", []),
    }
    write_json(folder / "metrics.json", content)
    for name, table in result.items():
        if isinstance(table, pd.DataFrame):
            write_table(folder / f"{name}.tsv", table)


def _without_nan(value: Any) -> Any:
    """JSON has no not-a-number: null."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
