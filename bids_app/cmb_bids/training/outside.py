"""What the shipped networks do on scans of simulators that they were not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmb_bids.errors import BadData
from cmb_bids.training.card import interval, last_measured, shown, table
from cmb_bids.volumes import read_json, read_table, write_json

FILE_NAME = "outside.json"
NO_RESULT = ("without_result", "not_counted", "unreadable")
# As `cmb-lab evaluate` calls them, and what the page says.
NUMBERS = {"scans": "scans", "lesions": "microbleeds"}
METRICS = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "false_positives_per_scan": "false positives per scan",
    "false_positives_per_lesion_free_scan": "per lesion-free scan",
    "calcification_called_microbleed_share": "calcifications called microbleed",
    "candidate_recall_microbleed": "with a candidate",
    "expected_calibration_error": "expected calibration error",
}
SUBSETS = {
    "simulator": "simulator",
    "protocol": "protocol",
    "group": "clinical group",
    "diameter_mm": "core diameter, mm",
}


def collect(evaluation: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of an evaluation.

    Parameters
    ----------
    evaluation : path
        Folder that ``cmb-lab evaluate RESULTS COHORT/derivatives/truth --output`` wrote, of a
        cohort of ``tools/outside_cohort.py``.
    metrics : mapping
        Of the network that the results are of.

    Returns
    -------
    dict
        ``command`` that drew the cohort, ``commit`` that has the network, scans without a result,
        and ``by``: subset, group, metric to ``value``, ``low`` and ``high``.

    Raises
    ------
    BadData
        When the labels do not say how the cohort was drawn.
    """
    said = read_json(evaluation / "evaluation.json")
    labels = Path(said["settings"]["labels"])
    generators = read_json(labels / "dataset_description.json").get("GeneratedBy") or [{}]
    command = generators[0].get("Description")
    if not command:
        raise BadData(
            labels / "dataset_description.json",
            "does not say how the cohort was drawn",
            "Evaluate a cohort of tools/outside_cohort.py",
        )
    scans = read_table(evaluation / "evaluation_scans.tsv")
    rows = read_table(evaluation / "evaluation_metrics.tsv")
    by: dict[str, Any] = {}
    for row in rows.to_dict("records"):
        wanted = row["by"] in ("all", *SUBSETS) and row["metric"] in {**NUMBERS, **METRICS}
        if wanted and row["value"] == row["value"]:
            values = {key: _number(row[key]) for key in ("value", "low", "high")}
            group = by.setdefault(row["by"], {}).setdefault(str(row["group"]), {})
            group[row["metric"]] = values
    return {
        "command": command,
        "commit": last_measured(metrics["training"])["commit"],
        "without_result": int(scans["status"].isin(NO_RESULT).sum()),
        "by": by,
    }


def _number(value: Any) -> float | None:
    number = float(value)
    return None if number != number else round(number, 6)


def store(evaluation: Path, models: Path, network: str) -> None:
    """Write what the page says of an evaluation beside the networks."""
    metrics = read_json(models / f"{network}.json")
    write_json(models / FILE_NAME, collect(evaluation, metrics))


def section(outside: Mapping[str, Any]) -> list[str]:
    """The section of the page (Markdown)."""
    parts = [
        "## On simulators it was not trained on",
        f"`{outside['command']}`, then `cmb-bids COHORT RESULTS participant` and `cmb-lab evaluate "
        "RESULTS COHORT/derivatives/truth --output EVALUATION`: the whole pipeline, with the "
        f"network of commit {outside['commit'][:7]}, on a cohort of the simulators in `tools/`, "
        "which share no code with the one that made the training scans. Definite calls, one-to-one "
        f"within 5 mm; 95 % intervals over participants. {_refused(outside['without_result'])}",
        _subset("all of it", outside["by"]["all"]),
    ]
    for name, said in SUBSETS.items():
        if name in outside["by"]:
            parts.append(_subset(said, outside["by"][name]))
    return parts


def _refused(count: int) -> str:
    if not count:
        return "No scan was refused."
    return f"{count} {'scan' if count == 1 else 'scans'} failed a check and had no result."


def _subset(title: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    numbers = [n for n in NUMBERS if any(n in group for group in groups.values())]
    metrics = [m for m in METRICS if any(m in group for group in groups.values())]
    rows = []
    for name, group in groups.items():
        values = [shown(group[n]["value"]) if n in group else "-" for n in numbers]
        values += [_cell(group.get(m)) for m in metrics]
        rows.append([name, *values])
    header = [f"simulated: {title}", *(NUMBERS[n] for n in numbers)]
    return table([*header, *(METRICS[m] for m in metrics)], rows)


def _cell(row: Mapping[str, float | None] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    if row["low"] is None:
        return f"{row['value']:.3f}"
    return interval(row)
