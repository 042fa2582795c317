"""``cmb-lab train``: from a seed to weights, their metrics and their model card."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmb_bids import __version__
from cmb_bids.errors import BadData, UsageError
from cmb_bids.resnet import (
    CLASSES,
    CONTRAST_AND_PHASE,
    CONTRAST_ONLY,
    SHIPPED,
    Calibration,
    MicrobleedNet,
    ModelDescription,
    calibrate,
    load_model,
    predict_logits,
    save_model,
)
from cmb_bids.training.baseline import core_diameters, frst_alone, sensitivity_by_size
from cmb_bids.training.card import model_card
from cmb_bids.training.fit import MARGIN_VOXELS, FitConfig, fit
from cmb_bids.training.scoring import (
    ScoredCase,
    choose_thresholds,
    evaluate_cases,
    evaluate_ranking,
    fit_calibration,
)
from cmb_bids.training.shards import (
    Case,
    data_key,
    generate,
    keys_of,
    load_case,
    load_split,
    split_of,
)
from cmb_bids.volumes import read_json, write_json, write_text

log = logging.getLogger(__name__)

KIND_OF_CHANNELS = {CONTRAST_AND_PHASE: "complex", CONTRAST_ONLY: "magnitude"}
MODELS: dict[str, list[tuple[str, ...]]] = {
    "both": [CONTRAST_AND_PHASE, CONTRAST_ONLY],
    "two-channel": [CONTRAST_AND_PHASE],
    "one-channel": [CONTRAST_ONLY],
}
FEWEST_CASES = 20  # below this a split is empty


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``cmb-lab train``."""
    parser.add_argument("--output", type=Path, required=True, help="where the models are written")
    parser.add_argument(
        "--shards", type=Path, help="where simulated cases are kept (default: OUTPUT/shards-KEY)"
    )
    parser.add_argument("--cases", type=int, default=400, help="simulated scans (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes and threads (default: 1)")
    parser.add_argument("--epochs", type=float, default=12.0, help="per model (default: 12)")
    parser.add_argument(
        "--time-budget-minutes", type=float, help="of training, per model, instead of epochs"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoints in OUTPUT"
    )
    parser.add_argument("--init", type=Path, help="start from the models in this directory")
    parser.add_argument(
        "--models",
        choices=list(MODELS),
        default="both",
        help="which to train (default: both)",
    )
    parser.add_argument("--data-only", action="store_true", help="simulate, do not train")


def run(args: argparse.Namespace) -> int:
    """Simulate what is missing, train, calibrate, evaluate, write; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    _check(args)
    settings: dict[str, Any] = {"seed": args.seed}
    key = data_key(settings)
    shards = args.shards or args.output / f"shards-{key}"
    paths = generate(shards, args.cases, settings, args.workers)
    if args.data_only:
        return 0
    torch.set_num_threads(args.workers)
    for channels in MODELS[args.models]:
        train_model(channels, paths, args, key)
    if any("highpass" in channels for channels in MODELS[args.models]):
        add_baseline(args.output, paths, args)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.cases < FEWEST_CASES:
        raise UsageError(
            "--cases", f"{args.cases} are too few to split", f"Give at least {FEWEST_CASES}"
        )
    if args.workers < 1:
        raise UsageError("--workers", "must be at least 1", "Give the number of processes")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device", "no CUDA device is available", "Use --device cpu")


def train_model(
    channels: tuple[str, ...], paths: Sequence[Path], args: argparse.Namespace, key: str
) -> dict[str, Any]:
    """Train one model and write ``NAME.safetensors``, ``NAME.json`` and ``NAME.md``.

    Parameters
    ----------
    channels : tuple of str
        Which of the two models.
    paths : sequence of path
        The simulated cases.
    args : Namespace
        Of `add_arguments`.
    key : str
        Fingerprint of the code and settings behind the data.

    Returns
    -------
    dict
        What the JSON holds.
    """
    name, kind = SHIPPED[channels], KIND_OF_CHANNELS[channels]
    checkpoint = args.output / f"{name}.checkpoint"
    if not args.resume:
        checkpoint.unlink(missing_ok=True)
    args.output.mkdir(parents=True, exist_ok=True)
    patches, labels = load_split(paths, "train", kind)
    log.info("%s: %d candidates %s", name, len(labels), _class_counts(labels))
    if not len(labels):
        raise BadData(paths[0].parent, "has no candidates to train on", "Simulate more cases")
    config = FitConfig(
        seed=args.seed,
        epochs=args.epochs,
        time_budget_minutes=args.time_budget_minutes,
        device=args.device,
    )
    network = _initial_network(channels, name, args)
    started = time.monotonic()
    network, steps = fit(network, patches, labels, config, checkpoint)
    minutes = round((time.monotonic() - started) / 60, 1)
    training = {
        "seed": args.seed,
        "steps": steps,
        "epochs": round(steps * config.batch_size * 4 / max(1, int((labels >= 0).sum())), 3),
        "batch_size": config.batch_size,
        "minutes": minutes,
        "device": args.device,
        "threads": args.workers,
        "initialised_from": args.init.name if args.init else None,
        "commit": _commit(),
    }
    training["command"] = _command(args, training["epochs"], channels)
    if args.resume:
        training = _recorded_training(args.output / f"{name}.json", steps) or training
    data = {
        "cases": len(paths),
        "seed": args.seed,
        "keys": keys_of(paths),
        "code_key": key,
        "split": {s: sum(split_of(p) == s for p in paths) for s in ("train", "validation", "test")},
        "training_candidates": _class_counts(labels),
        "simulated": True,
    }
    del patches
    return finish_model(network, paths, kind, args.output, training, data)


def add_baseline(output: Path, paths: Sequence[Path], args: argparse.Namespace) -> None:
    """Add to the two-channel model's metrics and card what FRST alone reaches."""
    name = next(name for channels, name in SHIPPED.items() if "highpass" in channels)
    kept = paths[0].parent / f"frst-alone-{len(paths)}.json"  # it depends on the cases alone
    if not kept.is_file():
        write_json(kept, frst_alone(paths, args.seed, args.workers))
    metrics = read_json(output / f"{name}.json")
    metrics["frst_alone"] = read_json(kept)
    write_json(output / f"{name}.json", metrics)
    write_text(output / f"{name}.md", model_card(metrics))


def _recorded_training(path: Path, steps: int) -> dict[str, Any] | None:
    """How a finished run was trained, where it is only measured again."""
    if not path.is_file():
        return None
    training = read_json(path)["training"]
    return training if training["steps"] == steps else None


def finish_model(
    network: MicrobleedNet,
    paths: Sequence[Path],
    kind: str,
    output: Path,
    training: dict[str, Any],
    data: dict[str, Any],
) -> dict[str, Any]:
    """Calibrate on the validation cases, measure on the test cases, write weights and card."""
    validation = list(scored_cases(network, paths, "validation", kind))
    calibration = fit_calibration(
        np.concatenate([logits for _, logits in validation]),
        np.concatenate([case.labels for case, _ in validation]),
        np.concatenate([case.probabilities[:, 0] for case, _ in validation]),
    )
    definite, possible = choose_thresholds([_with(c, z, calibration) for c, z in validation])
    calibration = dataclasses.replace(calibration, definite=definite, possible=possible)
    network.description = dataclasses.replace(network.description, calibration=calibration)
    test = list(scored_cases(network, paths, "test", kind))
    calibrated = [_with(case, logits, calibration) for case, logits in test]
    diameters = [core_diameters(path) for path in paths if split_of(path) == "test"]
    measured = evaluate_cases(calibrated, definite, possible)
    measured["by_core_diameter"] = sensitivity_by_size(calibrated, diameters, definite)
    metrics: dict[str, Any] = {
        "model": {
            "name": network.description.name,
            "version": network.description.version,
            "channels": network.description.channels,
            "geometry": dataclasses.asdict(network.description.geometry),
            "parameters": sum(p.numel() for p in network.parameters()),
        },
        "simulated": True,
        "data": data,
        "training": training,
        "calibration": dataclasses.asdict(calibration),
        "test": measured,
        "validation": evaluate_cases(
            [_with(c, z, calibration) for c, z in validation], definite, possible
        ),
        "symmetry_ranking": evaluate_ranking([case for case, _ in test]),
    }
    name = network.description.name
    save_model(network, output / f"{name}.safetensors", {"training": training, "data": data})
    write_json(output / f"{name}.json", metrics)
    write_text(output / f"{name}.md", model_card(metrics))
    log.info("%s on simulated test cases: %s", name, metrics["test"]["definite"])
    return metrics


def scored_cases(
    network: MicrobleedNet, paths: Sequence[Path], split: str, kind: str
) -> list[tuple[ScoredCase, np.ndarray]]:
    """Cases of a split, the symmetry score in place of probabilities, with the logits (n, 3)."""
    scored = []
    for path in paths:
        if split_of(path) == split:
            case = load_case(path, (kind,))
            scored.append((_by_symmetry(case, kind), _logits(network, case, kind)))
    return scored


def _logits(network: MicrobleedNet, case: Case, kind: str) -> np.ndarray:
    """Scores (n, 3) of a case's candidates, without the margin kept for training."""
    x, y, z = (slice(margin, -margin) for margin in MARGIN_VOXELS)
    patches = case.candidates[kind].patches
    if not len(patches):
        return np.zeros((0, len(CLASSES)), np.float32)
    return predict_logits(network, patches[:, :, x, y, z].astype(np.float32))


def _by_symmetry(case: Case, kind: str) -> ScoredCase:
    found = case.candidates[kind]
    return ScoredCase(
        str(case.recipe.get("protocol", "unknown")),
        found.points_mm,
        found.labels,
        np.repeat(np.asarray(found.scores, dtype=float)[:, None], len(CLASSES), axis=1),
        case.lesions_mm("microbleed"),
        case.lesions_mm("calcification"),
    )


def _with(case: ScoredCase, logits: np.ndarray, calibration: Calibration) -> ScoredCase:
    """The case with the network's probabilities in place of its candidates' scores."""
    scores = case.probabilities[:, 0]
    return dataclasses.replace(case, probabilities=calibrate(logits, calibration, scores))


def _initial_network(
    channels: tuple[str, ...], name: str, args: argparse.Namespace
) -> MicrobleedNet:
    """A fresh network of this seed, or the one in ``--init``."""
    torch.manual_seed(args.seed)
    network = MicrobleedNet(ModelDescription(channels=channels, name=name, version=__version__))
    if args.init is not None:
        weights = load_model(args.init / f"{name}.safetensors", channels).network.state_dict()
        network.load_state_dict(weights)
    return network


def _class_counts(labels: np.ndarray) -> dict[str, int]:
    return {name: int((labels == index).sum()) for index, name in enumerate(CLASSES)}


def _command(args: argparse.Namespace, epochs: float, channels: tuple[str, ...]) -> str:
    """The command that repeats this run; a time budget is given as the epochs it came to."""
    parts = ["cmb-lab train", "--output MODELS", f"--cases {args.cases}", f"--seed {args.seed}"]
    parts += [f"--workers {args.workers}", f"--epochs {epochs:g}", f"--device {args.device}"]
    parts += [f"--models {next(name for name, chosen in MODELS.items() if chosen == [channels])}"]
    return " ".join(parts + ([f"--init {args.init.name}"] if args.init else []))


def _commit() -> str:
    """The commit of the checkout this runs from, marked when files differ; else ``unknown``."""
    root = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()
