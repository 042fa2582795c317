"""``cmb-lab evaluate``: arguments, what is printed, exit codes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cmb_bids.errors import UsageError
from cmb_bids.evaluate.cohort import UNREADABLE, Cohort, read_cohort
from cmb_bids.evaluate.comparison import compare_cohorts
from cmb_bids.evaluate.froc import rate_name
from cmb_bids.evaluate.grouping import dataset_above
from cmb_bids.evaluate.matching import MATCHING_DISTANCE_MM
from cmb_bids.evaluate.metrics import CANDIDATE_PREFIX
from cmb_bids.evaluate.score import evaluate_cohort
from cmb_bids.evaluate.tables import NOT_COMPARABLE, write_result

NOT_DEFINED = "n/a"
SOME_FAILED = 1
GALLERY = 12
PAGE = "evaluation.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``cmb-lab evaluate``."""
    parser.add_argument("derivatives", type=Path, help="results of a tool: a BIDS derivative")
    parser.add_argument("labels", type=Path, help="labels: a BIDS derivative")
    parser.add_argument("--output", type=Path, help="folder for tables, JSON and page")
    parser.add_argument(
        "--compare", type=Path, action="append", default=[], metavar="OTHER",
        help="another tool's results of the same scans; may be repeated",
    )  # fmt: skip
    parser.add_argument("--description", help="desc or label of the results' files to score")
    parser.add_argument("--labels-description", help="desc or label of the labels' files")
    parser.add_argument("--images", type=Path, help="raw dataset, for pictures and voxel indices")
    parser.add_argument(
        "--distance-mm", type=float, default=MATCHING_DISTANCE_MM, help="default: %(default)s"
    )
    parser.add_argument(
        "--bootstrap", type=int, default=1000, help="samples for intervals (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    parser.add_argument(
        "--gallery", type=int, default=GALLERY,
        help="pictures each of misses and of false alarms on the page, 0 to 24 (%(default)s)",
    )  # fmt: skip


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense.

    Raises
    ------
    UsageError
        A number is out of its range.
    """
    for option, value, fits, wanted in (
        ("--distance-mm", arguments.distance_mm, arguments.distance_mm > 0, "above 0"),
        ("--bootstrap", arguments.bootstrap, arguments.bootstrap >= 0, "0 or more"),
        ("--gallery", arguments.gallery, 0 <= arguments.gallery <= 24, "0 to 24"),
    ):
        if not fits:
            raise UsageError(option, f"is {value}", f"Give {wanted}")


def run(arguments: argparse.Namespace) -> int:
    """``cmb-lab evaluate``: print a short table, write tables and page; returns the exit code.

    Raises
    ------
    CmbError
        As `read_cohort` and `check_arguments`; the command line prints it.
    """
    check_arguments(arguments)
    folders = [arguments.derivatives, *arguments.compare]
    cohorts = [
        read_cohort(
            folder,
            arguments.labels,
            arguments.description,
            arguments.labels_description,
            arguments.images,
        )
        for folder in folders
    ]
    for cohort, name in zip(cohorts, unlike_names(folders), strict=True):
        cohort.name = name
    how = (arguments.distance_mm, arguments.bootstrap, arguments.seed)
    results = [evaluate_cohort(cohort, *how) for cohort in cohorts]
    parts = [compare_cohorts(cohorts[0], other, *how) for other in cohorts[1:]]
    comparison = pd.concat(parts, ignore_index=True) if parts else None
    for result in results:
        print(describe(result), end="\n\n")
    if comparison is not None:
        print(describe_comparison(comparison), end="\n\n")
    if arguments.output:
        settings = {
            "derivatives": [str(folder) for folder in folders],
            "labels": str(arguments.labels),
            "distance_mm": arguments.distance_mm,
            "bootstrap": arguments.bootstrap,
            "seed": arguments.seed,
        }
        write_result(arguments.output, results, comparison, settings)
        _write_page(arguments, results, comparison)
        print(f"written: {arguments.output / PAGE} and the tables beside it")
    return _report_unreadable(cohorts)


def _write_page(
    arguments: argparse.Namespace, results: list[dict[str, Any]], comparison: pd.DataFrame | None
) -> None:
    # Drawing is slow to import, and printing needs none of it.
    from cmb_bids.evaluate.gallery import collect_pictures
    from cmb_bids.report.evaluation_page import evaluation_page
    from cmb_bids.volumes import write_text

    raw = map(dataset_above, (arguments.labels, arguments.derivatives))
    roots = [arguments.derivatives, *arguments.compare, arguments.images, arguments.labels, *raw]
    pictures = collect_pictures(results[0], [root for root in roots if root], arguments.gallery)
    write_text(arguments.output / PAGE, evaluation_page(results, comparison, pictures))


def _report_unreadable(cohorts: list[Cohort]) -> int:
    """Name the files that could not be read; exit code 1 where there are any."""
    rows = pd.concat([cohort.others for cohort in cohorts], ignore_index=True)
    reasons = rows.loc[rows["status"] == UNREADABLE, "reason"].drop_duplicates()
    for reason in reasons:
        print(f"cmb-lab evaluate: {reason}", file=sys.stderr)
    return SOME_FAILED if len(reasons) else 0


def unlike_names(folders: list[Path]) -> list[str]:
    """A short name of each folder; its whole path where two are called alike."""
    short = [folder.resolve().name for folder in folders]
    return [
        name if short.count(name) == 1 else str(folder)
        for name, folder in zip(short, folders, strict=True)
    ]


def describe(result: dict[str, Any]) -> str:
    """A short table of the metrics for people to read."""
    metrics, intervals = result["metrics"], result["intervals"]
    lines = [f"{result['name']}, {metrics['scans']} scans of {result['participants']} participants"]
    if result["simulated"]:
        lines.append(f"SIMULATED scans. {NOT_COMPARABLE}")
    for name, value in metrics.items():
        text = short(value)
        if name in intervals and text != NOT_DEFINED:
            low, high = (short(limit) for limit in intervals[name])
            text += f"  ({low} to {high})" if low != NOT_DEFINED else ""
        if not name.startswith(CANDIDATE_PREFIX) or text != NOT_DEFINED:
            lines.append(f"{plain_name(name):58s}{text}")
    short_table = _subset_lines(result["metrics_table"])
    lines += ["", *short_table] if short_table else []
    for title, names in (
        ("labelled but without a usable result", result["unprocessed"]),
        ("without labels, not scored", result["unlabelled"]),
    ):
        if names:
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            lines += ["", f"{title} ({len(names)}): {' '.join(names[:20])}{more}"]
    return "\n".join(lines)


def plain_name(metric: str) -> str:
    """A metric's name for people."""
    return metric.replace("_", " ")


def _subset_lines(table: pd.DataFrame) -> list[str]:
    """Sensitivity, precision and false positives of each subset."""
    columns = ["scans", "lesions", "sensitivity", "precision", "false_positives_per_scan"]
    rows = table[(table["by"] != "all") & table["metric"].isin(columns)]
    if rows.empty:
        return []
    lines = [f"{'by':>20s}  {'group':24s}" + "".join(f"{plain_name(c):>14s}" for c in columns[:4])]
    lines[0] += f"{'false per scan':>16s}"
    for (by, group), part in rows.groupby(["by", "group"], sort=False):
        of = dict(zip(part["metric"], part["value"], strict=True))
        cells = [of.get(column, np.nan) for column in columns]
        counts = [NOT_DEFINED if np.isnan(cell) else f"{cell:.0f}" for cell in cells[:2]]
        shown = [*counts, *(short(float(cell)) for cell in cells[2:])]
        lines.append(f"{by:>20s}  {group:24.24s}" + "".join(f"{cell:>14s}" for cell in shown[:4]))
        lines[-1] += f"{shown[4]:>16s}"
    return lines


def describe_comparison(comparison: pd.DataFrame) -> str:
    """Differences of the figures most asked for."""
    wanted = [
        "sensitivity", "precision", "f1", "false_positives_per_scan",
        "false_positives_per_lesion_free_scan", "calcification_called_microbleed_share",
        "expected_calibration_error", "burden_kappa_weighted", "count_icc", rate_name(1),
    ]  # fmt: skip
    lines = []
    for (reference, other, scans), table in comparison.groupby(
        ["reference", "other", "scans"], sort=False
    ):
        lines.append(f"{other} against {reference}, {scans} scans: difference (95 %), p")
        for row in table[table["metric"].isin(wanted)].itertuples():
            if np.isfinite(row.difference):
                limits = f"({short(row.difference_low)} to {short(row.difference_high)})"
                lines.append(
                    f"{plain_name(row.metric):58s}{short(row.difference)}  {limits}"
                    f"  {short(row.p_value)}"
                )
    return "\n".join(lines)


def short(value: Any) -> str:
    """A figure for people; what divides by nothing has no value."""
    if not isinstance(value, float):
        return str(value)
    return NOT_DEFINED if np.isnan(value) else f"{value:.3f}"
