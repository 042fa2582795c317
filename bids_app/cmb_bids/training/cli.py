"""``cmb-lab train``: the training workflow, or fine-tuning on a user's own labelled scans.

The workflow itself is `workflow/training/Snakefile`; this runs it on one machine. Nothing heavy is
imported here, because the workflow reads `command_of`.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmb_bids.errors import BadData, CmbError, UsageError

log = logging.getLogger(__name__)

NETWORKS = {
    "both": ["microbleed-two-channel", "microbleed-one-channel"],
    "two-channel": ["microbleed-two-channel"],
    "one-channel": ["microbleed-one-channel"],
}
TARGETS = ("cases", "networks", "comparison", "everything")
# Options of `cmb-lab train` that are keys of the workflow's configuration.
KEYS = (
    *("shards", "processed", "cases", "training_cases", "block_size", "seed"),
    *("steps", "comparison_steps", "device", "precision", "threads", "init"),
)
# Those that decide what comes out.
SAID = (
    *("cases", "training_cases", "seed", "steps", "comparison_steps"),
    *("threads", "device", "precision", "init"),
)
SHIPPED = "shipped"  # of --init: the networks that come with the package
FEWEST_CASES = 20  # below this a split is empty
FEWEST_TRAINING_CASES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``cmb-lab train``."""
    parser.add_argument("--output", type=Path, required=True, help="where everything is written")
    parser.add_argument("--seed", type=int, help="of data and training (default: 0)")
    parser.add_argument("--workers", type=int, default=1, help="cores to use (default: 1)")
    parser.add_argument("--device", help="cpu (default) or cuda")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of the arithmetic in training (default: float32); bfloat16 halves the time on GPUs "
        "and on processors with amx_bf16, takes a third off it on those with avx512_bf16, and "
        "costs time on others",
    )
    parser.add_argument("--shards", type=Path, help="where simulated cases are kept")
    parser.add_argument(
        "--init",
        help="where to start: shipped, a file or directory (default: shipped for fine-tuning, "
        "random weights on simulated scans)",
    )
    simulated = parser.add_argument_group("training on simulated scans")
    simulated.add_argument(
        "--processed",
        type=Path,
        help="keep processed scans here (40 to 150 MB each), to try other candidates or patches "
        "without simulating again",
    )
    simulated.add_argument("--cases", type=int, help="simulated scans (default: 220)")
    simulated.add_argument(
        "--training-cases",
        type=int,
        help="only so many of the cases that train, and still all that calibrate and test",
    )
    simulated.add_argument(
        "--steps",
        type=int,
        help="of each shipped network (default: 2700); 0 calibrates and measures --init again",
    )
    simulated.add_argument(
        "--comparison-steps", type=int, help="of each network that is compared (default: 900)"
    )
    simulated.add_argument("--threads", type=int, help="of each network's training (default: 1)")
    simulated.add_argument("--block-size", type=int, help="cases of one job (default: 10)")
    simulated.add_argument("--models", choices=list(NETWORKS), default="both", help="default: both")
    simulated.add_argument(
        "--until", choices=TARGETS, default="everything", help="how far to go (default: everything)"
    )
    simulated.add_argument(
        "--data-only", action="store_const", dest="until", const="cases", help="simulate only"
    )
    simulated.add_argument("--dry-run", action="store_true", help="say what would be done")
    simulated.add_argument("snakemake", nargs="*", help="after --, options of Snakemake itself")
    tuning = parser.add_argument_group("fine-tuning on labelled scans of your own")
    tuning.add_argument("--labels", type=Path, help="BIDS derivative with the labels")
    tuning.add_argument("--derivatives", type=Path, help="what cmb-bids made of these scans")
    tuning.add_argument("--epochs", type=float, default=8.0, help="over the labels (default: 8)")


def run(args: argparse.Namespace) -> int:
    """Train on simulated scans, or fine-tune on labelled ones; returns the exit code."""
    if args.workers < 1:
        raise UsageError("--workers", "must be at least 1", "Give the number of cores")
    _check_device(args.device)
    if args.labels is not None or args.derivatives is not None:
        if args.labels is None or args.derivatives is None:
            raise UsageError(
                "--labels and --derivatives",
                "belong together",
                "Give the labels, and what cmb-bids made of the same scans",
            )
        from cmb_bids.training.finetune import finetune

        args.init = args.init or SHIPPED
        finetune(args)
        return 0
    if args.cases is not None and args.cases < FEWEST_CASES:
        raise UsageError(
            "--cases", f"{args.cases} are too few to split", f"Give at least {FEWEST_CASES}"
        )
    if args.training_cases is not None and args.training_cases < FEWEST_TRAINING_CASES:
        raise UsageError(
            "--training-cases",
            f"{args.training_cases} are too few to learn from",
            f"Give at least {FEWEST_TRAINING_CASES}",
        )
    return run_workflow(args)


def _check_device(device: str | None) -> None:
    if device is None or device == "cpu":
        return
    import torch

    try:
        available = torch.device(device).type == "cuda" and torch.cuda.is_available()
    except RuntimeError:
        available = False
    if not available:
        raise UsageError("--device", f"no device {device} is available", "Use --device cpu")


def run_workflow(args: argparse.Namespace) -> int:
    """Launch the training workflow; what is there already is not made again.

    Raises
    ------
    CmbError
        A step failed: its log and its last words.
    """
    from cmb_bids.run import locked, safe_environment

    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / ".lock"):
        status = subprocess.run(
            workflow_command(args), env=safe_environment(output / ".scratch"), check=False
        ).returncode
    if status:
        raise _what_failed(output)
    return 0


def workflow_command(args: argparse.Namespace) -> list[str]:
    """The command line of Snakemake."""
    from cmb_bids.run import project_root

    output = args.output.resolve()
    config = {key: getattr(args, key) for key in KEYS if getattr(args, key) is not None}
    for folder in ("shards", "processed"):
        if folder in config:
            config[folder] = config[folder].resolve()
    if config.get("init", SHIPPED) != SHIPPED:
        config["init"] = Path(config["init"]).resolve()
    config |= {"output": output, "shipped": f"[{','.join(NETWORKS[args.models])}]"}
    return [
        *(sys.executable, "-m", "snakemake", args.until),
        *("--snakefile", str(project_root() / "workflow" / "training" / "Snakefile")),
        *("--directory", str(output)),
        *("--cores", str(args.workers), "--resources", "gpu=1"),
        *("--rerun-triggers", "mtime", "params", "input"),
        *("--rerun-incomplete", "--nolock", "--nocolor", "--scheduler", "greedy"),
        *("--quiet", "host", "reason"),
        *(["--dry-run"] if args.dry_run else []),
        *args.snakemake,
        *("--config", *(f"{key}={value}" for key, value in config.items())),
    ]


def _what_failed(output: Path) -> CmbError:
    from cmb_bids.interfaces.base import FAILED

    logs = sorted((output / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
    remedy = "Mend the cause and give the same command: what is done is kept"
    for path in reversed(logs):
        said = [line for line in path.read_text(errors="replace").splitlines() if line]
        if said and said[-1].startswith(FAILED):
            return BadData(path, said[-1].removeprefix(FAILED).strip(), remedy)
    return BadData(output, "the training workflow stopped; its messages are above", remedy)


def command_of(config: Mapping[str, Any]) -> str:
    """The command that repeats a run of the workflow, for the model card."""
    chosen = list(config["shipped"])
    models = next((name for name, names in NETWORKS.items() if names == chosen), "both")
    parts = ["cmb-lab train --output MODELS"]
    for key in SAID:
        if config.get(key) is not None:
            parts.append(f"--{key.replace('_', '-')} {config[key]}")
    return " ".join([*parts, f"--models {models}"])
