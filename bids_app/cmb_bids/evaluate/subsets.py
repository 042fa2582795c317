"""Figures of parts of a cohort: by protocol, clinical group, size, region."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from cmb_bids.evaluate.bootstrap import intervals, participant_sums, total, weigh
from cmb_bids.evaluate.counts import (
    Sums,
    agreement_sums,
    as_columns,
    calcification_sums,
    candidate_sums,
    detection_sums,
    match_detections,
)
from cmb_bids.evaluate.matching import counted_detections
from cmb_bids.evaluate.metrics import candidate_metrics, detection_metrics, metrics_of
from cmb_bids.evaluate.scored import Scored

SIZE_EDGES_MM = (0.0, 2.0, 3.0, 5.0, 10.0, np.inf)
CONTRAST_EDGES = (0.0, 2.0, 5.0, 10.0, np.inf)
# Labels of a lesion to group by, and the edges of those that are numbers.
LESION_GROUPS: dict[str, tuple[float, ...] | None] = {
    "diameter_mm": SIZE_EDGES_MM,
    "apparent_diameter_mm": SIZE_EDGES_MM,
    "contrast_to_noise": CONTRAST_EDGES,
    "mars_class": None,
    "mars_region": None,
    "bombs_class": None,
    "hemisphere": None,
}
# What a detection's own table says in the same terms, so that false ones have a group too.
SHARED_GROUPS = ("mars_class", "mars_region", "bombs_class", "hemisphere")
NO_INTERVAL_FOR = (
    "scans", "lesions", "lesions_ignored", "hits", "false_positives", "lesion_free_scans",
    "calcifications", "calcifications_called_microbleed",
)  # fmt: skip


def _group_names(column: pd.Series, edges: tuple[float, ...] | None) -> pd.Series:
    """Name of the group of each row; missing where it has none."""
    if edges is None:
        return column.astype(object).where(column.notna()).map(str, na_action="ignore")
    names = [
        f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g} and more"
        for low, high in pairwise(edges)
    ]
    numbers = pd.to_numeric(column, errors="coerce")
    return pd.cut(numbers, edges, right=False, labels=names)


def _groups(names: pd.Series) -> list[str]:
    if isinstance(names.dtype, pd.CategoricalDtype):
        return [str(name) for name in names.cat.categories if (names == name).any()]
    return sorted(set(names.dropna()))


def scan_subsets(scored: Scored) -> Iterator[tuple[str, str, Sums]]:
    """Sums by participant of the scans of each protocol, field strength, clinical group, ..."""
    scans = scored.matched.scans
    for by in scored.cohort.groups:
        names = _group_names(scans[by], None)
        for group in _groups(names):
            inside = (names == group).to_numpy(dtype=float)[:, None]
            sums = {name: values * inside for name, values in scored.scan_sums.items()}
            yield by, group, participant_sums(sums, scans["participant_id"])


def lesion_subsets(scored: Scored) -> Iterator[tuple[str, str, Sums]]:
    """Sums by participant of the lesions of each size, contrast, region.

    By size there are no false positives: those have no true size. By region those count whose own
    table says where they lie.
    """
    matched = scored.matched
    lesions, detections = matched.lesions, matched.detections
    for by, edges in LESION_GROUPS.items():
        if by not in lesions or not lesions[by].notna().any():
            continue
        names = _group_names(lesions[by], edges)
        places = by in SHARED_GROUPS and by in detections
        for group in _groups(names):
            mine = lesions[(names == group).to_numpy()]
            found = detections[_group_names(detections[by], None) == group] if places else None
            empty = detections.iloc[:0] if found is None else found
            sums = detection_sums(matched.scans, mine, empty) | candidate_sums(matched, mine)
            if found is None:
                del sums["false_positives"]
            yield by, group, participant_sums(as_columns(sums), matched.scans["participant_id"])


def certainty_subset(scored: Scored) -> Sums:
    """Sums by participant if possible detections counted as well."""
    scans, found = scored.matched.scans, scored.cohort.microbleeds
    lesions, detections, called = match_detections(
        scored.cohort, found[counted_detections(found)], scored.matched.distance_mm
    )
    sums = detection_sums(scans, lesions, detections) | calcification_sums(scans, called)
    sums |= agreement_sums(sums["lesions"], sums["hits"] + sums["false_positives"])
    return participant_sums(as_columns(sums), scans["participant_id"])


def _subset_figures(sums: Sums, by: str) -> dict[str, np.ndarray]:
    if by not in LESION_GROUPS:
        return metrics_of(sums)
    whole = "false_positives" in sums
    filled = sums if whole else sums | {"false_positives": np.zeros_like(sums["hits"])}
    figures = detection_metrics(filled)
    wanted = ["lesions", "hits", "sensitivity"]
    wanted += ["false_positives", "precision", "f1"] if whole else []
    recall = candidate_metrics(filled)["candidate_recall_microbleed"]
    return {name: figures[name] for name in wanted} | {"candidate_recall_microbleed": recall}


def metrics_rows(sums: Sums, weights: np.ndarray, by: str, group: str) -> list[dict[str, Any]]:
    """Figures of a subset, a row each: ``by group metric value low high``."""
    values = _subset_figures(total(sums), by)
    # One participant's lesions tell nothing of how participants differ.
    several = (sums["lesions" if by in LESION_GROUPS else "scans"] > 0).sum() > 1
    drawn = weigh(sums, weights)
    limits = intervals(_subset_figures(drawn, by)) if len(weights) and several else {}
    rows = []
    for name, value in values.items():
        low, high = (np.nan, np.nan)
        if name in limits and name not in NO_INTERVAL_FOR and np.isfinite(value[0]):
            low, high = limits[name]
        row = {"by": by, "group": group, "metric": name, "value": float(value[0])}
        rows.append(row | {"low": low, "high": high})
    return rows
