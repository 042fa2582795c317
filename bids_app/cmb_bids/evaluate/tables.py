"""What an evaluation leaves in a folder: tables, their data dictionaries, one JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cmb_bids import __version__
from cmb_bids.volumes import write_json, write_table

NOT_COMPARABLE = (
    "Figures from simulated scans are not comparable with figures published on patients."
)
_TOOL = {"derivatives": {"Description": "Name of the folder whose results are scored."}}
_SCAN = {
    "scan": {"Description": "Entities of the result's file names that tell scans apart."},
    "participant_id": {"Description": "Participant."},
    "session_id": {"Description": "Session; n/a without sessions."},
}
_PLACE = {
    "x": {"Description": "Centre, scanner right.", "Units": "mm"},
    "y": {"Description": "Centre, scanner anterior.", "Units": "mm"},
    "z": {"Description": "Centre, scanner superior.", "Units": "mm"},
}
_LIMITS = (
    "95 % bootstrap interval over participants; n/a for plain numbers, and where fewer than two "
    "participants contribute."
)
_BASIS = {
    "Description": "What was ranked or judged.",
    "Levels": {
        "listed": "Detections that the tool lists and counts, definite and possible",
        "candidates": "Every candidate that has a probability",
    },
}

METRICS_COLUMNS: dict[str, Any] = {
    **_TOOL,
    "by": {"Description": "What the subset is made by: all, or a column of scans or lesions."},
    "group": {"Description": "The subset."},
    "metric": {"Description": "Name of the figure; docs/evaluation.md defines each."},
    "value": {"Description": "Its value; n/a where it divides by nothing."},
    "low": {"Description": f"Lower limit. {_LIMITS}"},
    "high": {"Description": f"Upper limit. {_LIMITS}"},
}
SCANS_COLUMNS: dict[str, Any] = {
    **_TOOL,
    **_SCAN,
    "labels": {"Description": "The labels' own name of the scan."},
    "status": {
        "Description": "Whether the scan is scored.",
        "Levels": {
            "scored": "Has a result and labels",
            "without_result": "Labelled; the tool left nothing",
            "not_counted": "Labelled; the tool's own quality check refused to count it",
            "unreadable": "A file of the result or of the labels is damaged",
            "without_labels": "Has a result and no labels, or labels that fit several scans",
        },
    },
    "reason": {"Description": "Why it is not scored."},
    "lesions": {"Description": "Labelled microbleeds that can be hit or missed."},
    "lesions_ignored": {"Description": "Labelled ones that are possible, or over 10 mm."},
    "hits": {"Description": "Lesions hit by a definite detection."},
    "false_positives": {"Description": "Definite detections that hit nothing."},
    "calcifications": {"Description": "Labelled calcifications."},
    "calcifications_called_microbleed": {
        "Description": "Of these, called a definite microbleed within the matching distance."
    },
    "lesion_free": {"Description": "Whether no microbleed is labelled, not even a possible one."},
    "candidates": {"Description": "Candidates; n/a where the tool has no table of them."},
    "burden_class_labelled": {"Description": "Burden class of lesions: 0, 1, 2-4, 5-10, >10."},
    "burden_class_found": {"Description": "Burden class of hits and false positives together."},
}
LESIONS_COLUMNS: dict[str, Any] = {
    **_TOOL,
    **_SCAN,
    **_PLACE,
    "name": {"Description": "Name of the lesion in the labels."},
    "index": {"Description": "Number of the lesion in the labels."},
    "diameter_mm": {"Description": "Diameter by the labels.", "Units": "mm"},
    "outcome": {
        "Description": "What became of it.",
        "Levels": {
            "hit": "A definite detection is its partner",
            "missed": "None is",
            "ignored": "Possible, over 10 mm or not counted by the labels: neither hit nor missed",
        },
    },
    "detection_distance_mm": {"Description": "Distance to its partner.", "Units": "mm"},
    "detection_index": {"Description": "Its partner's number in the result."},
    "detection_probability": {"Description": "Its partner's probability of a microbleed."},
    "detection_p_calcification": {"Description": "Its partner's probability of a calcification."},
    "detection_diameter_mm": {"Description": "Its partner's diameter.", "Units": "mm"},
    "detection_certainty": {"Description": "Its partner's certainty."},
    "has_candidate": {"Description": "Whether a candidate is paired with it."},
    "lost_at": {
        "Description": "How far a missed lesion got: the last that applies, within the distance.",
        "Levels": {
            "no_candidate": "No candidate is near",
            "candidate_rejected": "A candidate is near that was called nothing",
            "called_calcification": "A calcification was called",
            "called_possible": "A possible microbleed was called",
            "not_counted": "A microbleed was listed, not counted (its size, the scan's quality)",
            "taken_by_neighbour": "The definite detection near it is another lesion's partner",
        },
    },
    "candidate_distance_mm": {
        "Description": "Distance to the nearest candidate of the scan; n/a without one.",
        "Units": "mm",
    },
    "candidate_probability": {
        "Description": "Probability of the nearest candidate, where it is within the distance."
    },
}
FALSE_ALARMS_COLUMNS: dict[str, Any] = {
    **_TOOL,
    **_SCAN,
    **_PLACE,
    "name": {"Description": "Name of the detection in the result."},
    "index": {"Description": "Number of the detection in the result."},
    "probability": {"Description": "Probability of a microbleed; the highest come first."},
    "lies_on": {
        "Description": "Labelled thing that is no microbleed within the matching distance (a "
        "calcification, a vein), or 'microbleed hit by another'; n/a: nothing labelled."
    },
    "nearest_lesion_mm": {
        "Description": "Distance to the nearest labelled microbleed of the scan; n/a without one.",
        "Units": "mm",
    },
}
FROC_COLUMNS: dict[str, Any] = {
    **_TOOL,
    "basis": _BASIS,
    "false_positives_per_scan": {"Description": "Allowance (in the curve: what is spent)."},
    "threshold": {"Description": "Probability from which on detections are called; n/a: none is."},
    "sensitivity": {"Description": "Best sensitivity within the allowance."},
    "sensitivity_low": {"Description": f"Lower limit. {_LIMITS}"},
    "sensitivity_high": {"Description": f"Upper limit. {_LIMITS}"},
    "reached": {"Description": "Whether there are detections enough to spend the allowance."},
}
RELIABILITY_COLUMNS: dict[str, Any] = {
    **_TOOL,
    "basis": _BASIS,
    "bin_low": {"Description": "Lower edge of the probability bin."},
    "bin_high": {"Description": "Upper edge; the last bin holds it, the others do not."},
    "detections": {"Description": "Detections in the bin; those on ignored lesions left out."},
    "mean_probability": {"Description": "What they say on average."},
    "lesion_share": {"Description": "Share of them that hit a lesion."},
    "lesion_share_low": {"Description": f"Lower limit. {_LIMITS}"},
    "lesion_share_high": {"Description": f"Upper limit. {_LIMITS}"},
}
COMPARISON_COLUMNS: dict[str, Any] = {
    "reference": {"Description": "DERIVATIVES of the command."},
    "other": {"Description": "The one it is compared with."},
    "metric": {"Description": "Name of the figure."},
    "reference_value": {"Description": "Its value on the scans that both have."},
    "other_value": {"Description": "The other's value on the same scans."},
    "difference": {"Description": "Other minus reference."},
    "difference_low": {
        "Description": "Lower limit of the 95 % interval, the same participants drawn for both."
    },
    "difference_high": {"Description": "Upper limit."},
    "p_value": {
        "Description": "Two-sided paired permutation test: results of the two swapped by "
        "participant at random. n/a for the FROC."
    },
    "scans": {"Description": "Scans that both have."},
    "participants": {"Description": "Participants of these scans."},
    "only_reference": {"Description": "Lesions that the reference alone hit (sensitivity only)."},
    "only_other": {"Description": "Lesions that the other alone hit (sensitivity only)."},
    "mcnemar_p": {
        "Description": "Exact McNemar test of these lesions; takes lesions for independent "
        "(sensitivity only)."
    },
}
# Table of a result -> columns in order. Others that the labels or the tool have come after.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "metrics_table": ("evaluation_metrics", METRICS_COLUMNS),
    "scans": ("evaluation_scans", SCANS_COLUMNS),
    "lesions": ("evaluation_lesions", LESIONS_COLUMNS),
    "false_alarms": ("evaluation_false_alarms", FALSE_ALARMS_COLUMNS),
    "froc": ("evaluation_froc", FROC_COLUMNS),
    "froc_curve": ("evaluation_froc_curve", FROC_COLUMNS),
    "reliability": ("evaluation_reliability", RELIABILITY_COLUMNS),
}
COMPARISON = "evaluation_comparison"
_FROM_ELSEWHERE = {"Description": "As in the labels, the result or participants.tsv."}


def arrange(table: pd.DataFrame, columns: dict[str, Any]) -> pd.DataFrame:
    """Put described columns first, in order; round what has no meaning beyond six figures."""
    first = [name for name in columns if name in table]
    rest = [name for name in table if name not in columns]
    arranged = table[[*first, *rest]].copy()
    for name in arranged.select_dtypes(include="floating"):
        arranged[name] = arranged[name].replace([np.inf, -np.inf], np.nan).round(6)
    return arranged


def _write(folder: Path, name: str, table: pd.DataFrame, columns: dict[str, Any]) -> None:
    arranged = arrange(table, columns)
    described = {column: columns.get(column, _FROM_ELSEWHERE) for column in arranged}
    write_table(folder / f"{name}.tsv", arranged, described)


def write_result(
    folder: str | os.PathLike[str],
    results: Sequence[dict[str, Any]],
    comparison: pd.DataFrame | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Write the tables of one or several tools and ``evaluation.json`` into ``folder``.

    Parameters
    ----------
    folder : path-like
    results : sequence of dict
        From `cmb_bids.evaluate.score.evaluate_cohort`, the reference first.
    comparison : DataFrame, optional
        From `cmb_bids.evaluate.comparison.compare_cohorts`.
    settings : dict, optional
        What the command was given.
    """
    folder = Path(folder)
    for key, (name, columns) in TABLES.items():
        parts = []
        for result in results:
            table = result[key].copy()
            table.insert(0, "derivatives", result["name"])
            parts.append(table)
        filled = [part for part in parts if len(part)] or parts[:1]
        whole = pd.concat(filled, ignore_index=True)
        empty = len(whole.columns) == 1  # a tool without probabilities has no FROC
        _write(folder, name, whole.reindex(columns=list(columns)) if empty else whole, columns)
    if comparison is not None:
        _write(folder, COMPARISON, comparison, COMPARISON_COLUMNS)
    write_json(folder / "evaluation.json", summary(results, comparison, settings))


def summary(
    results: Sequence[dict[str, Any]],
    comparison: pd.DataFrame | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The headline figures as plain values; what is not a number is None."""
    simulated = any(result["simulated"] for result in results)
    content: dict[str, Any] = {
        "version": __version__,
        "simulated": simulated,
        "note": NOT_COMPARABLE if simulated else "Research use only.",
        "settings": settings or {},
        "derivatives": [_summary_of(result) for result in results],
    }
    if comparison is not None:
        rows = arrange(comparison, COMPARISON_COLUMNS).astype(object)
        content["comparison"] = without_nan(rows.to_dict("records"))
    return content


def _summary_of(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": result["name"],
        "participants": result["participants"],
        "metrics": without_nan(result["metrics"]),
        "intervals_95": {k: without_nan(list(v)) for k, v in result["intervals"].items()},
        "scans_without_result": result["unprocessed"],
        "scans_without_labels": result["unlabelled"],
    }


def without_nan(value: Any) -> Any:
    """JSON has no not-a-number: None."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [without_nan(part) for part in value]
    if value is pd.NA:
        return None
    return None if isinstance(value, float) and not np.isfinite(value) else value
