"""The page on accuracy, written from the metrics: ``python -m cmb_bids.training.accuracy``."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmb_bids.errors import CmbError
from cmb_bids.patches import PatchGeometry
from cmb_bids.training import outside
from cmb_bids.training.card import METRIC_NAMES, compared, interval, measured_by, shown, table
from cmb_bids.volumes import read_json, write_text

# Liu et al. 2019, NeuroImage 198:271: their best model, on patients.
PAPER = {"sensitivity": 0.958, "precision": 0.709, "false_positives_per_case": 1.6}
PAPER_SPLIT_SAID = "154 training, 25 validation and 41 test cases"
FIRST = "microbleed-two-channel"


def write_page(models: Path, output: Path, picture: str = "failures.png") -> None:
    """Write the page from what the training workflow left.

    Parameters
    ----------
    models : path
        Directory with ``NAME.json``, ``comparison.json`` and ``failures.json``; with
        ``outside.json`` the page tells of other simulators' scans too.
    output : path
        Markdown.
    picture : str, optional
        The picture of failures, as the page refers to it.
    """
    comparison, failures = (
        read_json(models / "comparison.json"),
        read_json(models / "failures.json"),
    )
    metrics = read_json(models / f"{failures['model']}.json")
    elsewhere = models / outside.FILE_NAME
    found = read_json(elsewhere) if elsewhere.is_file() else None
    write_text(output, page(metrics, comparison, failures, picture, found))


def page(
    metrics: Mapping[str, Any],
    comparison: Mapping[str, Any],
    failures: Mapping[str, Any],
    picture: str,
    elsewhere: Mapping[str, Any] | None = None,
) -> str:
    """The page (Markdown)."""
    parts = [
        "# Accuracy",
        "**Every figure of ours on this page is simulated**, training and test alike: it says how "
        "the method does on the simulator's idea of lesions and mimics. Written by "
        "`python -m cmb_bids.training.accuracy MODELS DOCS` from the metrics that lie beside the "
        "networks; the run that made those is the *Command* of the model card: "
        f"`{measured_by(metrics['training'])}`{_compared_by(metrics, comparison)}.",
        "## Beside the paper",
        beside_the_paper(metrics),
        "## Inputs and older detectors",
        compared(comparison),
        *_strata(comparison),
        "## Calcification with and without phase",
        calcification(comparison),
        "## What still fails",
        what_fails(failures, picture),
        *(outside.section(elsewhere) if elsewhere else []),
    ]
    return "\n\n".join(parts) + "\n"


def _compared_by(metrics: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """The command behind the other detectors' figures, where it is not the network's."""
    command = comparison["command"]
    if command == measured_by(metrics["training"]):
        return ""
    return f"; those of the detectors beside it are of `{command}`"


def beside_the_paper(metrics: Mapping[str, Any]) -> str:
    """The paper's figures and ours, and why they may not be compared."""
    ours = metrics["test"]["definite"]
    split = {**metrics["data"]["split"], "train": metrics["training"]["cases"]}
    rows = [[METRIC_NAMES[name], shown(value), shown(ours[name])] for name, value in PAPER.items()]
    rows += [
        ["cases (training / validation / test)", "154 / 25 / 41", _slashed(split)],
        ["microbleeds in the test cases", "-", shown(ours["microbleeds"])],
    ]
    return (
        table(["", "Liu et al. 2019, patients", "here, simulated"], rows)
        + "\n\n**The two columns are not comparable.** The paper's are of patients, whose lesions "
        "and mimics were marked by raters; ours are of simulated scans, whose lesions and mimics "
        "are those the simulator knows. A precision depends on how many mimics there are: ours "
        "must never be set against 70.9 %. What can be compared are rows of the tables below: "
        "the same simulated cases, seen differently."
    )


def _slashed(split: Mapping[str, int]) -> str:
    return " / ".join(str(split[name]) for name in ("train", "validation", "test"))


def _strata(comparison: Mapping[str, Any]) -> list[str]:
    """Tables of the first contender and the reference by group, protocol, size and region."""
    wanted = (FIRST, comparison["reference"])
    entries = [e for name in wanted for e in comparison["contenders"] if e["name"] == name]
    parts = []
    for entry in entries:
        parts.append(f"## {entry['title']}: by group, protocol, size and region (simulated)")
        for stratum, values in entry["by"].items():
            parts.append(_stratum(stratum, values))
    return parts


def _stratum(name: str, parts: Mapping[str, Any]) -> str:
    metrics = [m for m in METRIC_NAMES if any(m in values for values in parts.values())]
    counts = [c for c in ("cases", "microbleeds") if any(c in v for v in parts.values())]
    rows = [
        [part, *(shown(values[c]) for c in counts), *(interval(values[m]) for m in metrics)]
        for part, values in parts.items()
    ]
    return table([name, *counts, *(METRIC_NAMES[m] for m in metrics)], rows)


def calcification(comparison: Mapping[str, Any]) -> str:
    """How often each input takes a calcification for a microbleed."""
    key = "calcifications_called_microbleed"
    rows = []
    for entry in comparison["contenders"]:
        against = entry.get("against_reference", {}).get(key, {})
        difference = (
            "-"
            if against.get("difference") is None
            else f"{against['difference']:+.3f} ({against['low']:+.2f} to {against['high']:+.2f})"
        )
        rows.append(
            [entry["title"], interval(entry["metrics"][key]), difference, shown(against.get("p"))]
        )
    header = ["simulated", METRIC_NAMES[key], "difference from SWI + phase", "p"]
    return table(header, rows)


def what_fails(failures: Mapping[str, Any], picture: str) -> str:
    """Counts of misses and false alarms by kind, and the picture."""
    patch = PatchGeometry()
    wide, high = (n * mm for n, mm in zip(patch.shape[:2], patch.spacing_mm[:2], strict=True))
    counts = failures["counts"]
    lines = [
        f"`{failures['model']}` at its definite threshold ({shown(failures['threshold'])}), "
        f"{failures['cases']} simulated test cases: **{counts['missed']} missed** microbleeds, of "
        f"which {counts['missed_without_a_candidate']} have no candidate and "
        f"{counts['missed_under_2_mm']} a core under 2 mm{_by(counts['missed_by_protocol'])}; "
        f"**{counts['false_alarms']} false {'alarm' if counts['false_alarms'] == 1 else 'alarms'}**"
        f"{_by(counts['false_alarms_by_truth'])}"
        f"{_by(counts['false_alarms_by_protocol'])}.",
        "",
        f"![Misses and false alarms on simulated test cases]({picture})",
        "",
        f"*{wide:g} x {high:g} mm around each candidate, anterior up; SWI above, high-passed phase "
        "(black -1.5, white +1.5 rad) below. Misses without a candidate cannot be shown. Drawn by "
        "the training workflow (rule `failures`).*",
    ]
    return "\n".join(lines)


def _by(counts: Mapping[str, int]) -> str:
    said = ", ".join(f"{name}: {n}" for name, n in sorted(counts.items()))
    return f" ({said})" if said else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m cmb_bids.training.accuracy MODELS DOCS``."""
    parser = argparse.ArgumentParser(prog="cmb_bids.training.accuracy", description=__doc__)
    parser.add_argument("models", type=Path, help="what cmb-lab train wrote")
    parser.add_argument("docs", type=Path, help="gets accuracy.md and images/failures.png")
    parser.add_argument(
        "--outside", type=Path, metavar="EVALUATION",
        help="what cmb-lab evaluate wrote of a cohort of other simulators; kept in MODELS",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        if options.outside:
            outside.store(options.outside, options.models, FIRST)
        write_page(options.models, options.docs / "accuracy.md", "images/failures.png")
        (options.docs / "images").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.models / "failures.png", options.docs / "images" / "failures.png")
    except CmbError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
