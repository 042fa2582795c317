"""``cmb-lab benchmark``: what one scan costs, stage by stage; with ``--group``, a cohort.

Runs the participant level on a simulated UK Biobank-like scan (or on a dataset of your own) and
reads each stage's wall time and peak memory from the records the stages leave. With ``--group N``
it runs the group level on N drawn participants instead.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cmb_bids.errors import InputMissing, IOFailure, UsageError
from cmb_bids.inputs import STAGE_SECTIONS
from cmb_bids.volumes import read_json, write_json

STAGES = tuple(STAGE_SECTIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``cmb-lab benchmark``."""
    add = parser.add_argument
    add("bids_dir", nargs="?", type=Path, help="dataset to time (default: one simulated scan)")
    add("--protocol", default="ukb", help="of the simulated scan (default: ukb)")
    add("--n-cpus", type=int, default=2, metavar="N", help="default: 2")
    add("--seed", type=int, default=0, help="of the simulation (default: 0)")
    add("--folder", type=Path, help="where data and results go (default: removed at the end)")
    add("--output", type=Path, metavar="FILE", help="also write the figures as JSON")
    add("--group", type=int, metavar="N", help="time the group level on N drawn participants")


def run(options: argparse.Namespace) -> int:
    """Run the benchmark; returns the exit code.

    Raises
    ------
    InputMissing
        The dataset does not exist.
    IOFailure
        The simulation or the participant level failed.
    """
    if options.bids_dir is not None and not options.bids_dir.is_dir():
        raise InputMissing(options.bids_dir, "there is no such directory", "Check the dataset")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        return _run_in(options.folder.resolve(), options)
    with tempfile.TemporaryDirectory(prefix="cmb-benchmark-") as folder:
        return _run_in(Path(folder), options)


def _run_in(folder: Path, options: argparse.Namespace) -> int:
    if options.group is not None:
        return _run_group_in(folder, options)
    bids_dir = options.bids_dir
    if bids_dir is None:
        bids_dir = folder / "bids"
        simulate = ["simulate", str(bids_dir), "--participants", "1"]
        _run_module("lab", [*simulate, "--protocol", options.protocol, "--seed", options.seed])
    output_dir = folder / "derivatives"
    started = time.time()
    _run_module("cli", [bids_dir, output_dir, "participant", "--n-cpus", options.n_cpus])
    result = {**collect(output_dir), "total_wall_time_s": round(time.time() - started, 1)}
    result["n_cpus"] = options.n_cpus
    print(describe(result))
    if options.output:
        write_json(options.output, result)
    return 0


def _run_group_in(folder: Path, options: argparse.Namespace) -> int:
    """The group level on drawn derivatives, in a process of its own on so many cores."""
    from cmb_bids.statistics.drawn import write_derivatives

    if options.group < 1:
        raise UsageError("--group", "fewer than one participant", "Give a number of participants")
    write_derivatives(folder, options.group, options.seed)
    own = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, own[: options.n_cpus])
    started = time.time()
    try:
        _run_module("cli", [folder / "bids", folder / "derivatives", "group"])
    finally:
        os.sched_setaffinity(0, own)
    page = folder / "derivatives" / "group.html"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "participants": options.group,
        "n_cpus": min(options.n_cpus, len(own)),
        "wall_time_s": round(time.time() - started, 1),
        # On a machine that does other work, too, this is what can be compared.
        "processor_time_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": used.ru_maxrss // 1024,
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }
    print(
        f"Group level on {result['n_cpus']} cores: {result['wall_time_s']:.1f} s "
        f"({result['processor_time_s']:.1f} s of processor) and {result['peak_memory_mb']} MB for "
        f"{result['participants']} drawn participants; "
        f"group.html has {result['page_mb']:.2f} MB"
    )
    if options.output:
        write_json(options.output, result)
    return 0


def _run_module(module: str, arguments: list[Any]) -> None:
    command = [sys.executable, "-m", f"cmb_bids.{module}", *map(str, arguments)]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise IOFailure(
            " ".join(command[2:]),
            f"ended with exit code {done.returncode}",
            "See its messages above",
        )


def collect(output_dir: Path) -> dict[str, Any]:
    """Wall time and peak memory of each stage of each scan.

    Parameters
    ----------
    output_dir : Path
        Of the participant level.

    Returns
    -------
    dict
        ``scans``: scan -> stage -> ``wall_time_s``, ``peak_memory_mb``; ``peak_memory_mb`` of all.
    """
    scans: dict[str, dict[str, Any]] = {}
    for path in sorted((output_dir / "logs" / "scans").rglob("provenance_*.json")):
        record = read_json(path)
        stage = path.stem.removeprefix("provenance_")
        figures = {key: record[key] for key in ("wall_time_s", "peak_memory_mb")}
        scans.setdefault(path.parent.name, {})[stage] = figures
    if not scans:
        raise InputMissing(output_dir, "no stage left a record", "Run the participant level first")
    peaks = [figures["peak_memory_mb"] for scan in scans.values() for figures in scan.values()]
    return {"scans": scans, "peak_memory_mb": max(peaks)}


def describe(result: dict[str, Any]) -> str:
    """The figures as a table of text."""
    lines = []
    for scan, stages in result["scans"].items():
        lines.append(f"{scan:<28}{'wall time':>12}{'peak memory':>14}")
        for stage in (name for name in STAGES if name in stages):
            figures = stages[stage]
            lines.append(
                f"  {stage:<26}{figures['wall_time_s']:>10.1f} s{figures['peak_memory_mb']:>11} MB"
            )
        total = sum(figures["wall_time_s"] for figures in stages.values())
        peak = max(figures["peak_memory_mb"] for figures in stages.values())
        lines.append(f"  {'all stages':<26}{total:>10.1f} s{peak:>11} MB")
    lines.append(
        f"Participant level from start to end on {result['n_cpus']} cores: "
        f"{result['total_wall_time_s']:.1f} s for {len(result['scans'])} scan(s), "
        f"peak memory {result['peak_memory_mb']} MB"
    )
    return "\n".join(lines)
