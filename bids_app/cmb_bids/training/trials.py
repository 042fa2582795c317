"""Trials: networks trained to answer one question, and compared on the same cases."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmb_bids.errors import CmbError
from cmb_bids.resnet import MIRRORED_AXES, MicrobleedNet
from cmb_bids.training.contenders import CONTENDERS, Contender, new_network
from cmb_bids.training.fit import FitConfig, Patches, fit
from cmb_bids.training.judging import calibrated, judge
from cmb_bids.training.steps import load_training
from cmb_bids.volumes import write_json

# Trained and calibrated as the shipped two-channel network is.
LEARNER = CONTENDERS["microbleed-two-channel"]
NARROW_LEARNER = dataclasses.replace(LEARNER, wide=False)  # for many short trainings
MOST_KEPT = 6000  # patches to mix in while tuning


def learn(
    train: Sequence[Path],
    validation: Sequence[Path],
    config: FitConfig,
    mirrors: Sequence[tuple[int, ...]] = MIRRORED_AXES,
    learner: Contender = LEARNER,
) -> tuple[MicrobleedNet, Patches]:
    """A network trained on some cases, calibrated on others, and some of what it learned from.

    Parameters
    ----------
    train, validation : sequence of path
        Files of simulated cases.
    config : FitConfig
    mirrors : sequence of tuple
        Of `cmb_bids.resnet.predict_logits`, for the calibration: those it will be judged with.
    learner : Contender, optional
        What is trained: its network, and what that learns from.
    """
    data = load_training(train, learner)
    network, _ = fit(new_network(learner, config.seed), data, config)
    assert isinstance(network, MicrobleedNet)
    calibration, _ = calibrated(learner, judge(learner, network, validation, mirrors))
    network.description = dataclasses.replace(network.description, calibration=calibration)
    rng = np.random.default_rng(config.seed)
    some = np.sort(rng.permutation(len(data.labels))[:MOST_KEPT])
    return network, data.take(some)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that all trials have."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, help="JSON")


def add_outside(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The option that names processed and labelled scans of other simulators."""
    parser.add_argument(
        "--outside",
        type=Path,
        nargs=2,
        action="append",
        default=[],
        required=required,
        metavar=("RESULTS", "LABELS"),
        help="scans of another simulator, processed, and their labels, to judge on; repeatable",
    )


def begin(options: argparse.Namespace) -> FitConfig:
    """Set up logging and threads; how to train."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    return FitConfig(
        seed=options.seed,
        steps=options.steps,
        device=options.device,
        precision=options.precision,
    )


def run_trial(
    trial: Callable[[], dict[str, Any]],
    described: Callable[[dict[str, Any]], str],
    output: Path | None,
) -> int:
    """Run a trial, write its result where it is wanted, print it; returns the exit code."""
    try:
        result = trial()
    except CmbError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if output is not None:
        write_json(output, result)
    print(described(result))
    return 0
