"""Does fine-tuning help on a protocol that training has never seen? ``python -m`` this module.

Trains on all protocols but one, then fine-tunes on a few cases of that one, and prints how both
networks do on other cases of it: its test cases first, then training cases, which no network saw
either. Everything is simulated.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmb_bids.errors import BadData
from cmb_bids.training.card import gain_table
from cmb_bids.training.comparison import before_and_after
from cmb_bids.training.fit import FitConfig
from cmb_bids.training.shards import load_case, split_of
from cmb_bids.training.trials import add_arguments, begin, learn, run_trial
from cmb_bids.training.tune import KIND, judged_before, tune

log = logging.getLogger(__name__)


def transfer(
    paths: Sequence[Path],
    protocol: str,
    config: FitConfig,
    tuning: FitConfig,
    tuning_cases: int,
    most_judged: int,
) -> dict[str, Any]:
    """Train without a protocol, tune on a few of its cases, compare on others of it.

    Parameters
    ----------
    paths : sequence of path
        Simulated cases.
    protocol : str
        The one left out.
    config, tuning : FitConfig
        Of the first training and of the tuning.
    tuning_cases : int
        Cases of the protocol to tune on: its validation cases first, then training cases.
    most_judged : int
        Cases of it to compare on: its test cases first, then training cases not tuned on.

    Raises
    ------
    BadData
        There are not enough cases of the protocol, or of others.
    """
    of = {path: str(load_case(path, ()).recipe.get("protocol")) for path in paths}
    parts = {
        (split, same): [p for p in paths if split_of(p) == split and (of[p] == protocol) == same]
        for split in ("train", "validation", "test")
        for same in (True, False)
    }
    wanted = [("train", False), ("validation", False), ("test", True)]
    if not all(parts[key] for key in wanted):
        raise BadData("--protocol", f"too few cases of {protocol} or of others", "Simulate more")
    labelled = [*parts["validation", True], *parts["train", True]][:tuning_cases]
    unseen = [path for path in parts["train", True] if path not in labelled]
    judged = [*parts["test", True], *unseen][:most_judged]
    learned, patches = learn(parts["train", False], parts["validation", False], config)
    held_out = [load_case(path, (KIND,)) for path in judged]
    cases = [load_case(path, (KIND,)) for path in labelled]
    tuned = tune(learned, cases, [str(case.index) for case in cases], tuning, patches)
    before, after = judged_before(learned, held_out), judged_before(tuned.network, held_out)
    thresholds = [net.description.calibration.definite for net in (learned, tuned.network)]
    return {
        "simulated": True,
        "protocol": protocol,
        "training_cases": len(parts["train", False]),
        "training_steps": config.steps,
        "tuning_cases": len(cases),
        "tuning_microbleeds": sum(int((c.candidates[KIND].labels == 0).sum()) for c in cases),
        "tuning_steps": tuned.steps,
        "seed": config.seed,
        "cases_judged": len(held_out),
        "test_cases_among_them": sum(split_of(path) == "test" for path in judged),
        "microbleeds": sum(len(case.microbleeds) for case in before),
        **before_and_after(before, after, thresholds),
    }


def described(result: dict[str, Any]) -> str:
    """The result as a table (Markdown)."""
    return (
        f"{result['protocol']} left out of training ({result['training_cases']} simulated cases of "
        f"other protocols, {result['training_steps']} steps), then {result['tuning_cases']} of its "
        f"cases with {result['tuning_microbleeds']} microbleeds to tune on "
        f"({result['tuning_steps']} steps); judged on {result['cases_judged']} others of it with "
        f"{result['microbleeds']} microbleeds.\n\n"
        + gain_table(f"{result['protocol']}, simulated", result)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m cmb_bids.training.transfer --shards DIRECTORY --protocol 1.5T``."""
    parser = argparse.ArgumentParser(prog="cmb_bids.training.transfer", description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="simulated cases")
    parser.add_argument("--protocol", required=True, help="left out of training")
    parser.add_argument("--steps", type=int, default=900, help="of training (default: 900)")
    parser.add_argument("--tuning-steps", type=int, default=150, help="default: 150")
    parser.add_argument("--tuning-cases", type=int, default=10, help="default: 10")
    parser.add_argument("--most-judged", type=int, default=40, help="default: 40")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    config = begin(options)
    tuning = dataclasses.replace(config, steps=options.tuning_steps)
    return run_trial(
        lambda: transfer(
            sorted(options.shards.glob("case-*.npz")),
            options.protocol,
            config,
            tuning,
            options.tuning_cases,
            options.most_judged,
        ),
        described,
        options.output,
    )


if __name__ == "__main__":
    sys.exit(main())
