"""What do more simulated cases buy? ``python -m`` this module.

The same network is trained for as many steps on more and more of the same cases. All are judged on
training cases that none of them saw, which carry more lesions and vary more than a cohort.
Everything is simulated.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmb_bids.errors import BadData
from cmb_bids.resnet import AS_IT_IS
from cmb_bids.training.card import METRIC_NAMES, interval, shown, table
from cmb_bids.training.comparison import before_and_after
from cmb_bids.training.fit import FitConfig
from cmb_bids.training.shards import load_case, split_of
from cmb_bids.training.trials import add_arguments, begin, learn, run_trial
from cmb_bids.training.tune import KIND, judged_before

log = logging.getLogger(__name__)

JUDGED_EVERY = 8  # of the training cases, this one is judged and never trained on
SHOWN = ("sensitivity", "precision", "f1", "false_positives_per_case")


def grow(paths: Sequence[Path], counts: Sequence[int], config: FitConfig) -> list[dict[str, Any]]:
    """Train on each number of cases, the fewest first; compare each with the one before.

    Parameters
    ----------
    paths : sequence of path
        Simulated cases.
    counts : sequence of int
        Training cases; each number takes in those of the smaller ones.
    config : FitConfig
        The same for all.

    Raises
    ------
    BadData
        There are not as many cases.
    """
    train = [path for path in paths if split_of(path) == "train"]
    validation = [path for path in paths if split_of(path) == "validation"]
    judged = train[::JUDGED_EVERY]
    others = [path for path in train if path not in set(judged)]
    if not validation or len(others) < max(counts):
        raise BadData(
            "--shards",
            f"{len(others)} training cases beside those judged are fewer than {max(counts)}",
            "Simulate more, or ask for less",
        )
    held_out = [load_case(path, (KIND,)) for path in judged]
    results: list[dict[str, Any]] = []
    before = None
    for count in sorted(counts):
        network = learn(others[:count], validation, config, AS_IT_IS)[0]
        cases = judged_before(network, held_out, AS_IT_IS)
        seen = (cases, network.description.calibration.definite)
        (first, at_first), (now, at_now) = before or seen, seen
        results.append(
            {
                "simulated": True,
                "training_cases": count,
                "training_steps": config.steps,
                "seed": config.seed,
                "cases_judged": len(cases),
                "microbleeds": sum(len(case.microbleeds) for case in cases),
                **before_and_after(first, now, [at_first, at_now]),
            }
        )
        before = seen
        log.info("%d cases done", count)
    return results


def described(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table (Markdown), a row for each number of cases."""
    rows = []
    for number, result in enumerate(results):
        gain = shown(result["difference"]["f1"]["p"]) if number else "-"
        rows.append(
            [
                str(result["training_cases"]),
                *(interval(result["after"][name]) for name in SHOWN),
                gain,
            ]
        )
    first = results[0]
    header = ["training cases, simulated", *(METRIC_NAMES[name] for name in SHOWN)]
    return (
        f"{first['training_steps']} steps each; {first['cases_judged']} cases judged with "
        f"{first['microbleeds']} microbleeds.\n\n" + table([*header, "p (F1, against above)"], rows)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m cmb_bids.training.growth --shards DIRECTORY --counts 60 120 240``."""
    parser = argparse.ArgumentParser(prog="cmb_bids.training.growth", description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="simulated cases")
    parser.add_argument("--counts", type=int, nargs="+", default=[30, 60, 120])
    parser.add_argument("--steps", type=int, default=900, help="of each training (default: 900)")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    config = begin(options)
    paths = sorted(options.shards.glob("case-*.npz"))
    return run_trial(
        lambda: {"simulated": True, "counts": grow(paths, options.counts, config)},
        lambda result: described(result["counts"]),
        options.output,
    )


if __name__ == "__main__":
    sys.exit(main())
