"""The steps of the training workflow: files in, files out. Snakemake says in which order.

Layout of an output directory::

    cases.json                    which cases there are, and of which code
    weights/NAME.safetensors      of every network, uncalibrated, with NAME.json on its training
    scores/NAME.npz               calibrated probabilities of all validation and test candidates
    comparison.json, _table.tsv   all contenders on the test cases
    NAME.safetensors, .json, .md  shipped networks: weights with calibration, metrics, card
"""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmb_bids.errors import BadData, UsageError
from cmb_bids.resnet import (
    AS_IT_IS,
    CLASSES,
    LoadedModel,
    MicrobleedNet,
    predict_logits,
    save_model,
)
from cmb_bids.training.contenders import (
    CONTENDERS,
    Contender,
    load_weights,
    new_network,
    patches_seen,
    save_weights,
    started_from,
    targets,
)
from cmb_bids.training.fit import (
    FitConfig,
    Network,
    Patches,
    draw_weights,
    fit,
    sample_batch,
    without_margin,
)
from cmb_bids.training.judging import (
    apply,
    best_strength,
    calibrated,
    calibration_from,
    given_strength,
    judge,
    looks,
    read_scores,
    save_scores,
)
from cmb_bids.training.scoring import evaluate_cases, for_elsewhere
from cmb_bids.training.shards import (
    PAPER_SPLIT,
    case_path,
    existing_cases,
    found_in,
    has_magnitude_run,
    keys_of,
    load_case,
    make_missing,
    split_of,
    wanted_cases,
)
from cmb_bids.volumes import read_json, write_json

log = logging.getLogger(__name__)

HELD_OUT = ("validation", "test")
SHARE_OF_FAILURES_BORNE = 0.05  # of the cases to be made
RESTARTED_LEARNING_RATE = 0.5  # of the usual peak, where a network goes on from earlier weights
STARTS = 3  # of a network that learns nothing
SAMPLE = 600  # patches it is asked about
BETTER_THAN_GUESSING = 0.1
# What card and page say of the training of a network that is only measured again.
KNOWN_OF_A_TRAINING = (
    *("seed", "steps", "batch_size", "transplanted", "drawn_veins", "minutes", "device", "commit"),
    *("cases", "candidates", "parameters"),
)


# ------------------------------------------------------------------------------- cases


def make_block(
    shards: Path,
    first: int,
    last: int,
    settings: dict[str, Any],
    record: Path,
    training_cases: int | None = None,
    processed: str | None = None,
) -> None:
    """Simulate the wanted cases from ``first`` to ``last``, find and cut their candidates.

    A case that fails is noted and left out: `summarise_cases` judges how many may be.
    ``training_cases`` is as in `wanted_cases`; ``processed`` names a folder where processed scans
    are kept.
    """
    numbers = [number for number in wanted_cases(last + 1, training_cases) if number >= first]
    made = make_missing(shards, numbers, settings, Path(processed) if processed else None)
    failed = [i for i in numbers if case_path(shards, i) not in made]
    write_json(record, {"cases": len(made), "failed": failed})


def summarise_cases(
    shards: Path,
    cases: int,
    settings: dict[str, Any],
    output: Path,
    training_cases: int | None = None,
) -> None:
    """Write ``cases.json``: what there is to train, calibrate and test on.

    ``cases`` and ``training_cases`` are as in `wanted_cases`.

    Raises
    ------
    BadData
        More than one in twenty is missing, or a split is empty.
    """
    wanted = wanted_cases(cases, training_cases)
    paths = existing_cases(shards, wanted)
    missing = len(wanted) - len(paths)
    if missing > max(1, SHARE_OF_FAILURES_BORNE * len(wanted)):
        raise BadData(
            shards, f"{missing} of {len(wanted)} cases could not be made", "See their logs"
        )
    split = {name: sum(split_of(path) == name for path in paths) for name in PAPER_SPLIT}
    if not all(split.values()):
        raise BadData(shards, f"a split is empty ({split})", "Simulate at least 20 cases")
    summary = {
        "shards": str(shards.resolve()),
        "cases": cases,
        "training_cases": training_cases,
        "made": len(paths),
        "split": split,
        "keys": keys_of(paths),
        "simulated": True,
        **settings,
    }
    write_json(output, summary)


def cases_of(summary: Path) -> list[Path]:
    """The case files that a ``cases.json`` tells of."""
    content = read_json(summary)
    wanted = wanted_cases(content["cases"], content["training_cases"])
    return existing_cases(Path(content["shards"]), wanted)


# ------------------------------------------------------------------------------ training


def training_cases(paths: Sequence[Path], contender: Contender) -> list[Path]:
    """The cases a contender learns from.

    Shipped networks take all training cases there are. Those compared take the same ones each:
    those that were also run as magnitude-only scans.

    Raises
    ------
    BadData
        There are none.
    """
    train = [path for path in paths if split_of(path) == "train"]
    chosen = train if contender.shipped else [path for path in train if has_magnitude_run(path)]
    if not chosen:
        raise BadData(
            paths[0].parent if paths else "cases",
            "no training case was also run as a magnitude-only scan, so inputs cannot be compared",
            "Simulate more cases",
        )
    return chosen


def load_training(
    paths: Sequence[Path], contender: Contender, scratch: Path | None = None
) -> Patches:
    """What a contender learns from in these cases, ignored candidates left out.

    Shipped networks see more of what looks like a lesion; the compared ones, which are calibrated
    without the candidate's score, draw all alike. The array is made once and filled. Where
    ``scratch`` names a file (.npy) it lies there and not in memory, for thousands of cases would
    not fit; the caller removes it.
    """
    kinds = ("complex", contender.kind)
    labels, scores, slices = [], [], []
    for path in paths:
        case = load_case(path, kinds, patches=False)
        found = found_in(case, contender.kind)
        labels.append(targets(contender, found.labels))
        scores.append(found.scores)
        slices.append(np.full(len(found.scores), case.slice_mm))
    total = sum(int((part >= 0).sum()) for part in labels)
    patches: np.ndarray | None = None
    filled = 0
    for path, label in zip(paths, labels, strict=True):
        used = label >= 0
        if not used.any():
            continue
        # Only what is read from the disk: a case without a magnitude run needs its other set.
        case = load_case(path, (contender.kind,))
        case = case if case.candidates else load_case(path, ("complex",))
        part = patches_seen(contender, found_in(case, contender.kind))[used]
        if patches is None:
            shape = (total, *part.shape[1:])
            patches = (
                np.empty(shape, np.float16)
                if scratch is None
                else np.lib.format.open_memmap(scratch, "w+", np.float16, shape)
            )
        patches[filled : filled + len(part)] = part
        filled += len(part)
    if patches is None:
        raise BadData(paths[0].parent, "has no candidates to train on", "Simulate more cases")
    used = np.concatenate(labels) >= 0
    label, score, slice_mm = (np.concatenate(part)[used] for part in (labels, scores, slices))
    weights = draw_weights(label, score) if contender.shipped else None
    return Patches(patches, label, weights, slice_mm)


def train(
    name: str,
    summary: Path,
    weights: Path,
    *,
    steps: int,
    seed: int,
    device: str = "cpu",
    precision: str = "float32",
    threads: int = 1,
    init: str = "",
) -> None:
    """Train one network; a run that was broken off goes on from its checkpoint.

    Parameters
    ----------
    name : str
        Of a contender.
    summary : path
        ``cases.json``.
    weights : path
        Written, with a JSON on the training beside it.
    steps, seed, device, precision, threads
        Of the training; other numbers of threads sum floats in another order. No steps leave a
        network that is there as it is, to be calibrated and measured again.
    init : str, optional
        Where a shipped network starts, as in `started_from`, at half of the learning rate; by
        default from random weights.

    Raises
    ------
    UsageError
        Neither steps nor a network to start from.
    """
    torch.set_num_threads(threads)
    contender = CONTENDERS[name]
    weights.parent.mkdir(parents=True, exist_ok=True)
    if not steps:
        take_as_it_is(contender, init, weights)
        return
    config = FitConfig(seed=seed, steps=steps, device=device, precision=precision)
    before: LoadedModel | None = None
    if init:
        begun, before = started_from(contender, init)
        peak = RESTARTED_LEARNING_RATE * config.peak_learning_rate
        config = dataclasses.replace(config, peak_learning_rate=peak)
    if not contender.shipped:  # what phase alone shows cannot be put on another ground
        config = dataclasses.replace(config, transplanted=0.0, drawn_veins=0.0)
    if contender.kind == "magnitude":
        config = dataclasses.replace(config, phase_mask_power=0)
    chosen = training_cases(cases_of(summary), contender)
    scratch = weights.with_name(f".{contender.name}.patches.npy")
    data = load_training(chosen, contender, scratch)
    counts = class_counts(data.labels)
    log.info(
        "%s: %d candidates %s of %d cases", contender.name, len(data.labels), counts, len(chosen)
    )
    checkpoint = weights.with_name(f".{contender.name}.checkpoint")
    started = time.monotonic()
    for start in range(STARTS):
        one = dataclasses.replace(config, seed=config.seed + start)
        network, _ = fit(
            begun if init else new_network(contender, one.seed),
            data,
            one,
            resumable(checkpoint, one, data.labels),
        )
        if init or has_learnt(network, data.patches, data.labels, one.seed):
            break
        log.warning("%s learnt nothing from start %d", contender.name, start + 1)
    save_weights(network, weights)
    record = {
        "seed": config.seed,
        "starts": start + 1,
        "steps": steps,
        "batch_size": config.batch_size,
        "transplanted": config.transplanted,
        "drawn_veins": config.drawn_veins,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "device": config.device,
        "precision": config.precision,
        "threads": threads,
        "commit": commit(),
        "cases": len(chosen),
        "candidates": counts,
        "parameters": sum(p.numel() for p in network.parameters()),
        **({"initialised_from": before.identity} if before else {}),
    }
    write_json(weights.with_suffix(".json"), record)
    checkpoint.unlink(missing_ok=True)
    description_of(checkpoint).unlink(missing_ok=True)
    scratch.unlink()


def take_as_it_is(contender: Contender, init: str, weights: Path) -> None:
    """Put a network that is there where a trained one would be, with what is known of its training.

    Raises
    ------
    UsageError
        No network is named, or it does not say how it was trained.
    """
    if not init:
        raise UsageError(
            "--steps", "0 steps and no network to start from", "Give --init too, or some steps"
        )
    network, before = started_from(contender, init)
    training = before.provenance.get("training", {})
    unknown = [name for name in KNOWN_OF_A_TRAINING if name not in training]
    if unknown:
        raise UsageError(
            "--init",
            f"{before.path} does not say how it was trained ({', '.join(unknown)})",
            "Give a network that cmb-lab train wrote and that was not tuned on labelled scans",
        )
    save_weights(network, weights)
    # What was measured again before keeps the data of its training.
    record = {
        "data": before.provenance.get("data", {}),
        **training,
        "measured_again": {**before.identity, "commit": commit()},
    }
    write_json(weights.with_suffix(".json"), record)


def has_learnt(network: Network, patches: np.ndarray, labels: np.ndarray, seed: int) -> bool:
    """Whether a network tells apart what it learned from better than by one class for all.

    Now and then a short training does not leave the plateau it begins on: starting weights in which
    hardly a hidden unit ever answers. What such a network does says nothing of its input.
    """
    chosen = sample_batch(labels, SAMPLE, np.random.default_rng(seed))
    said = predict_logits(network, without_margin(patches[chosen]), AS_IT_IS).argmax(axis=1)
    commonest = np.bincount(labels[chosen]).max() / len(chosen)
    return float((said == labels[chosen]).mean()) > commonest + BETTER_THAN_GUESSING


def resumable(checkpoint: Path, config: FitConfig, labels: np.ndarray) -> Path:
    """The checkpoint, removed first where it is of another run: other settings or other data."""
    run = {**dataclasses.asdict(config), "labels": class_counts(labels)}
    described = description_of(checkpoint)
    if checkpoint.is_file() and not (described.is_file() and read_json(described) == run):
        checkpoint.unlink()
    write_json(described, run)
    return checkpoint


def description_of(checkpoint: Path) -> Path:
    """Where it is written of which run a checkpoint is."""
    return checkpoint.with_suffix(".checkpoint.json")


def class_counts(labels: np.ndarray) -> dict[str, int]:
    """How many candidates there are of each class."""
    return {name: int((labels == index).sum()) for index, name in enumerate(CLASSES)}


def commit() -> str:
    """The commit of the checkout this runs from, marked when files differ; else ``unknown``."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()


# --------------------------------------------------------------------------- calibration


def calibrate_and_score(
    name: str, summary: Path, output: Path, weights: Path | None = None, threads: int = 1
) -> None:
    """Calibrate a contender on the validation cases and score all held-out candidates.

    Parameters
    ----------
    name : str
        Of the contender.
    summary : path
        ``cases.json``.
    output : path
        npz: ``case`` (n,), ``probabilities`` (n, 3), ``description`` (JSON as bytes).
    weights : path, optional
        Of its network; none for a classical detector.
    threads : int, optional
    """
    torch.set_num_threads(threads)
    contender = CONTENDERS[name]
    held_out = {name: [p for p in cases_of(summary) if split_of(p) == name] for name in HELD_OUT}
    network = load_weights(contender, weights) if weights is not None else None
    mirrors = looks(contender)
    judged = {name: judge(contender, network, paths, mirrors) for name, paths in held_out.items()}
    ranked_by = None
    if network is None:
        ranked_by = best_strength(contender, judged["validation"])
        judged = {
            name: [given_strength(one, ranked_by) for one in part] for name, part in judged.items()
        }
    calibration, _ = calibrated(contender, judged["validation"])
    if contender.mimics_elsewhere is not None:
        calibration = for_elsewhere(calibration, contender.mimics_elsewhere)
    cases = [apply(contender, one, calibration) for split in HELD_OUT for one in judged[split]]
    description = {"calibration": dataclasses.asdict(calibration), "ranked_by": ranked_by}
    save_scores(output, cases, description)


# ----------------------------------------------------------------------------- measuring


def finish_model(
    name: str, summary: Path, weights: Path, scores: Path, output: Path, command: str
) -> None:
    """Write a shipped network with its calibration, and what it is worth, beside each other.

    Parameters
    ----------
    name : str
        One of the shipped.
    summary, weights, scores : path
        What the steps before left.
    output : path
        ``NAME.json``; the weights, ``NAME.safetensors``, come beside it.
    command : str
        That repeats the run.
    """
    contender, paths = CONTENDERS[name], cases_of(summary)
    content, training = read_json(summary), read_json(weights.with_suffix(".json"))
    data = {key: content[key] for key in ("cases", "made", "seed", "keys", "split", "simulated")}
    network = load_weights(contender, weights)
    assert isinstance(network, MicrobleedNet)
    _, description = read_scores(scores, contender, [])
    calibration = calibration_from(description["calibration"])
    network.description = dataclasses.replace(network.description, calibration=calibration)
    # What measures a network again is not what made it.
    training.get("measured_again", training)["command"] = command
    measured = {}
    for split in HELD_OUT:
        cases, _ = read_scores(scores, contender, [p for p in paths if split_of(p) == split])
        measured[split] = evaluate_cases(cases, calibration.definite, calibration.possible)
    metrics: dict[str, Any] = {
        "model": {
            "name": network.description.name,
            "version": network.description.version,
            "channels": network.description.channels,
            "geometry": dataclasses.asdict(network.description.geometry),
            "parameters": training["parameters"],
        },
        "simulated": True,
        "data": data,
        "training": training,
        "calibration": dataclasses.asdict(calibration),
        **measured,
    }
    save_model(network, output.with_suffix(".safetensors"), {"training": training, "data": data})
    write_json(output, metrics)
    log.info("%s on simulated test cases: %s", contender.name, metrics["test"]["definite"])
