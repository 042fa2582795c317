"""Does fine-tuning help on a protocol that training has never seen? ``python -m`` this module.

Trains on all protocols but one, then fine-tunes on a few cases of that one, and prints how both
networks do on its test cases. Everything is simulated.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmb_bids.errors import BadData, CmbError
from cmb_bids.resnet import MicrobleedNet
from cmb_bids.training.card import METRIC_NAMES, interval, shown, table
from cmb_bids.training.comparison import counts_of, paired, with_intervals
from cmb_bids.training.contenders import CONTENDERS, Contender, new_network
from cmb_bids.training.fit import FitConfig, fit
from cmb_bids.training.scoring import ScoredCase, calibration_error
from cmb_bids.training.shards import load_case, split_of
from cmb_bids.training.steps import calibrated, judge, load_training
from cmb_bids.training.tune import KIND, Patches, judged_before, tune
from cmb_bids.volumes import write_json

log = logging.getLogger(__name__)

# As the shipped two-channel network is calibrated.
LEARNER = CONTENDERS["microbleed-two-channel"]
MOST_KEPT = 6000  # patches of the other protocols to mix in while tuning


def transfer(
    paths: Sequence[Path], protocol: str, config: FitConfig, tuning: FitConfig, tuning_cases: int
) -> dict[str, Any]:
    """Train without a protocol, tune on a few of its cases, compare on its test cases.

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
    learned, patches = learn(LEARNER, parts["train", False], parts["validation", False], config)
    test = [load_case(path, (KIND,)) for path in parts["test", True]]
    cases = [load_case(path, (KIND,)) for path in labelled]
    tuned = tune(learned, cases, [str(case.index) for case in cases], tuning, patches)
    before, after = judged_before(learned, test), judged_before(tuned.network, test)
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
        "test_cases": len(test),
        "test_microbleeds": sum(len(case.microbleeds) for case in before),
        **compared(before, after, thresholds),
    }


def learn(
    contender: Contender, train: Sequence[Path], validation: Sequence[Path], config: FitConfig
) -> tuple[MicrobleedNet, Patches]:
    """A calibrated network, and some of what it learned from."""
    patches, labels = load_training(train, contender)
    network, _ = fit(new_network(contender, config.seed), patches, labels, config)
    assert isinstance(network, MicrobleedNet)
    calibration, _ = calibrated(contender, judge(contender, network, validation))
    network.description = dataclasses.replace(network.description, calibration=calibration)
    rng = np.random.default_rng(config.seed)
    some = np.sort(rng.permutation(len(labels))[:MOST_KEPT])
    return network, Patches(patches[some], labels[some])


def compared(
    before: Sequence[ScoredCase], after: Sequence[ScoredCase], thresholds: Sequence[float]
) -> dict[str, Any]:
    counts = [
        np.array([counts_of(case, threshold) for case in cases])
        for cases, threshold in zip((before, after), thresholds, strict=True)
    ]
    errors = [
        calibration_error(
            np.concatenate([case.probabilities for case in cases]),
            np.concatenate([case.labels for case in cases]),
        )
        for cases in (before, after)
    ]
    return {
        "before": with_intervals(counts[0]),
        "after": with_intervals(counts[1]),
        "difference": paired(counts[1], counts[0]),
        "calibration_error": {"before": errors[0], "after": errors[1]},
    }


def described(result: dict[str, Any]) -> str:
    """The result as a table (Markdown)."""
    rows = [
        [
            said,
            interval(result["before"][name]),
            interval(result["after"][name]),
            shown(result["difference"][name]["p"]),
        ]
        for name, said in METRIC_NAMES.items()
    ]
    errors = result["calibration_error"]
    rows.append(
        ["expected calibration error", shown(errors["before"]), shown(errors["after"]), "-"]
    )
    return (
        f"{result['protocol']} left out of training ({result['training_cases']} simulated cases of "
        f"other protocols, {result['training_steps']} steps), then {result['tuning_cases']} of its "
        f"cases with {result['tuning_microbleeds']} microbleeds to tune on "
        f"({result['tuning_steps']} steps); {result['test_cases']} simulated test cases of it with "
        f"{result['test_microbleeds']} microbleeds.\n\n"
        + table([f"{result['protocol']}, simulated", "before", "after tuning", "p"], rows)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m cmb_bids.training.transfer --shards DIRECTORY --protocol 1.5T``."""
    parser = argparse.ArgumentParser(prog="cmb_bids.training.transfer", description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="simulated cases")
    parser.add_argument("--protocol", required=True, help="left out of training")
    parser.add_argument("--steps", type=int, default=900, help="of training (default: 900)")
    parser.add_argument("--tuning-steps", type=int, default=150, help="default: 150")
    parser.add_argument("--tuning-cases", type=int, default=10, help="default: 10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    config = FitConfig(seed=options.seed, steps=options.steps, device=options.device)
    tuning = dataclasses.replace(config, steps=options.tuning_steps)
    try:
        result = transfer(
            sorted(options.shards.glob("case-*.npz")),
            options.protocol,
            config,
            tuning,
            options.tuning_cases,
        )
    except CmbError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.output is not None:
        write_json(options.output, result)
    print(described(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
