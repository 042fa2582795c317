"""What became of each lesion, detection and scan, as tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cmb_bids.evaluate.cohort import SCORED
from cmb_bids.evaluate.counts import BURDEN_NAMES, Matched, burden_class, tally
from cmb_bids.evaluate.matching import FALSE
from cmb_bids.evaluate.scored import Scored


def lesion_table(matched: Matched) -> pd.DataFrame:
    """A row per labelled microbleed: what became of it."""
    lesions, found = matched.lesions, matched.detections
    partner = lesions["partner"].to_numpy()
    hit = np.isfinite(partner)
    for column in ("index", "probability", "p_calcification", "diameter_mm", "certainty"):
        if column in found:
            values = np.full(len(lesions), None, dtype=object)
            values[hit] = found[column].to_numpy(dtype=object)[partner[hit].astype(int)]
            lesions = lesions.assign(**{f"detection_{column}": values})
    lesions = lesions.rename(columns={"distance_mm": "detection_distance_mm"})
    return lesions.drop(columns=["partner", "ignored", "kind"], errors="ignore")


def false_alarm_table(matched: Matched) -> pd.DataFrame:
    """A row per definite detection that hit nothing, the most confident first."""
    false = matched.detections[matched.detections["outcome"] == FALSE]
    if "probability" in false:
        false = false.sort_values("probability", ascending=False, kind="stable")
    return false.drop(columns=["outcome", "kind"], errors="ignore").reset_index(drop=True)


def scan_table(scored: Scored) -> pd.DataFrame:
    """A row per scan, scored or not."""
    matched, sums = scored.matched, scored.scan_sums
    names = np.array(BURDEN_NAMES)
    called = sums["hits"][:, 0] + sums["false_positives"][:, 0]
    table = matched.scans.drop(columns=["has_candidates", "has_calcifications"])
    table = table.assign(status=SCORED, reason=None)
    for name, column in (
        ("lesions", "lesions"),
        ("lesions_ignored", "ignored"),
        ("hits", "hits"),
        ("false_positives", "false_positives"),
        ("calcifications", "calcifications"),
        ("calcifications_called_microbleed", "calcifications_called_microbleed"),
    ):
        table[name] = sums[column][:, 0].astype(int)
    table["lesion_free"] = sums["lesion_free"][:, 0] > 0
    table["candidates"] = tally(matched.scans, matched.candidates)
    table.loc[~matched.scans["has_candidates"], "candidates"] = np.nan
    table["burden_class_labelled"] = names[burden_class(table["lesions"].to_numpy())]
    table["burden_class_found"] = names[burden_class(called)]
    others = scored.cohort.others
    whole = pd.concat([table, others], ignore_index=True) if len(others) else table
    counts = ["lesions", "lesions_ignored", "hits", "false_positives", "calcifications"]
    counts += ["calcifications_called_microbleed", "candidates"]
    return whole.astype(dict.fromkeys(counts, "Int64"))
