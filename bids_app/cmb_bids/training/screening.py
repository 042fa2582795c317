"""Fit the network that screens places for candidates, and measure what it finds.

    python -m cmb_bids.training.screening --work FOLDER [--cases 150] [--seed 500] [--output FOLDER]

Reads the places that `cmb_bids.training.ranking` left in the same work folder. The cases are those
the classifying networks are trained on. One in six of them is left out of the fit: on those the
network is calibrated, and its recall is printed. They are not seen in fitting, but they are scans
to train on, harder than those of a cohort.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist

from cmb_bids import __version__
from cmb_bids.candidate_ranking import MAGNITUDE_ALONE, WITH_PHASE
from cmb_bids.candidates import CandidateConfig, rank_places
from cmb_bids.patches import classifier_patches
from cmb_bids.resnet import (
    AS_IT_IS,
    CONTRAST_AND_PHASE,
    CONTRAST_ONLY,
    MicrobleedNet,
    ModelDescription,
    calibrate,
    predict_logits,
    save_model,
)
from cmb_bids.screening import SCREENING_GEOMETRY, SCREENING_NETWORKS
from cmb_bids.training.fit import MARGIN_VOXELS, FitConfig, Patches, fit, without_margin
from cmb_bids.training.labels import LABEL_OF_NAME
from cmb_bids.training.processed import ProcessedCase, process_case
from cmb_bids.training.ranking import (
    describe_case,
    on_lesion,
    over_cases,
    recall_by_size,
    training_numbers,
)
from cmb_bids.training.scoring import fit_calibration
from cmb_bids.training.steps import class_counts, commit
from cmb_bids.volumes import write_json, written_whole

log = logging.getLogger(__name__)

CHANNELS = {WITH_PHASE: CONTRAST_AND_PHASE, MAGNITUDE_ALONE: CONTRAST_ONLY}
WIDTHS, HIDDEN, DROPOUT = (8, 12, 16), 10, 0.3
LEFT_OUT = 6  # one case in so many
HARDEST = 300  # places of a case that are all learnt from, by the ranking; then one in three
EASIER_STEP = 3


@dataclass(frozen=True)
class Places:
    """The places of one case that the network would look at, of one kind of scan.

    ``table`` (n rows: ``x y z score``), ``labels`` (n,), ``patches`` (n, channels, ...) float16
    with margin, and the case's ``lesions``.
    """

    table: pd.DataFrame
    labels: np.ndarray
    patches: np.ndarray
    lesions: pd.DataFrame


def places_of(number: int, seed: int, work: Path, kept: Path | None, kind: str) -> None:
    """Rank, label and cut the places of one case; skip if that is done."""
    path = _path(work, number, kind)
    if path.is_file():
        return
    described = pd.read_csv(work / f"{number:05d}_{kind}.tsv", sep="\t")
    lesions = pd.read_csv(work / f"{number:05d}_lesions.tsv", sep="\t")
    ranked = rank_places(described, CandidateConfig())[["x", "y", "z", "score"]]
    with written_whole(path) as beside:
        np.savez(
            beside,
            table=ranked.to_numpy(),
            labels=labels_of(ranked, lesions),
            patches=_cut(process_case(number, seed, kept), ranked, kind).astype(np.float16),
        )


def labels_of(places: pd.DataFrame, lesions: pd.DataFrame) -> np.ndarray:
    """Classes (n,) of places: of the nearest lesion where they are on one, -1 where in between."""
    on = on_lesion(places, lesions)
    if lesions.empty:
        return np.where(on == 0, 2, on)
    columns = ["x", "y", "z"]
    nearest = cdist(places[columns].to_numpy(), lesions[columns].to_numpy()).argmin(axis=1)
    kinds = lesions["name"].map(LABEL_OF_NAME).to_numpy()[nearest]
    return np.where(on == 1, kinds, np.where(on == 0, 2, -1))


def _cut(case: ProcessedCase, places: pd.DataFrame, kind: str) -> np.ndarray:
    return classifier_patches(
        case.swi if kind == WITH_PHASE else case.as_magnitude,
        case.highpass if kind == WITH_PHASE else None,
        case.mask,
        case.affine,
        places[["x", "y", "z"]].to_numpy(),
        SCREENING_GEOMETRY.with_margin(MARGIN_VOXELS),
    )


def _path(work: Path, number: int, kind: str) -> Path:
    return work / f"{number:05d}_{kind}_places.npz"


def read_places(work: Path, number: int, kind: str) -> Places:
    """What `places_of` left."""
    with np.load(_path(work, number, kind), allow_pickle=False) as stored:
        table = pd.DataFrame(stored["table"], columns=["x", "y", "z", "score"])
        labels, patches = stored["labels"], stored["patches"]
    lesions = pd.read_csv(work / f"{number:05d}_lesions.tsv", sep="\t")
    return Places(table, labels, patches, lesions)


def learnt_from(labels: np.ndarray) -> np.ndarray:
    """Which places (n,), best ranked first, are learnt from: all lesions, fewer of the easy."""
    rank = np.arange(len(labels))
    chosen = (rank < HARDEST) | (rank % EASIER_STEP == 0) | np.isin(labels, (0, 1))
    return chosen & (labels >= 0)


def fit_screening(
    work: Path, kind: str, numbers: Sequence[int], config: FitConfig
) -> tuple[MicrobleedNet, list[dict[str, Any]], dict[str, int]]:
    """Fit to most of the cases, calibrate on the others, measure recall there.

    Returns
    -------
    network : MicrobleedNet
    recall : list of dict
        As `recall_by_size` gives it, and ``kept_by_ranking``, where no network looked: of a
        ranking that was fitted to these cases too.
    learnt : dict
        Places of each class that were learnt from.
    """
    patches, labels = [], []
    for place, number in enumerate(numbers):
        if place % LEFT_OUT:
            places = read_places(work, number, kind)
            used = learnt_from(places.labels)
            patches.append(places.patches[used])
            labels.append(places.labels[used])
    torch.manual_seed(config.seed)
    description = ModelDescription(
        CHANNELS[kind],
        WIDTHS,
        HIDDEN,
        SCREENING_GEOMETRY,
        name=SCREENING_NETWORKS[len(CHANNELS[kind])],
        version=__version__,
        dropout=DROPOUT,
    )
    learnt = np.concatenate(labels)
    network, _ = fit(MicrobleedNet(description), Patches(np.concatenate(patches), learnt), config)
    assert isinstance(network, MicrobleedNet)
    held_out = [read_places(work, number, kind) for number in numbers[::LEFT_OUT]]
    logits = [_logits(network, places) for places in held_out]
    calibration = fit_calibration(
        np.concatenate(logits),
        np.concatenate([places.labels for places in held_out]),
        np.concatenate([places.table["score"].to_numpy() for places in held_out]),
    )
    network.description = dataclasses.replace(network.description, calibration=calibration)
    odds = [
        1 - calibrate(logit, calibration, places.table["score"].to_numpy())[:, 2]
        for logit, places in zip(logits, held_out, strict=True)
    ]
    return network, _recall(held_out, odds), class_counts(learnt)


def _recall(held_out: Sequence[Places], odds: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    tables, lesions = [p.table for p in held_out], [p.lesions for p in held_out]
    ranked = recall_by_size(tables, lesions, [table["score"].to_numpy() for table in tables])
    screened = recall_by_size(tables, lesions, odds)
    return [
        {**row, "kept_by_ranking": before["kept"]}
        for row, before in zip(screened, ranked, strict=True)
    ]


def _logits(network: MicrobleedNet, places: Places) -> np.ndarray:
    return predict_logits(network, without_margin(places.patches), AS_IT_IS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where places are kept")
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--processed", type=Path, help="where processed scans are kept")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--kind", choices=tuple(CHANNELS), action="append", help="default: both")
    parser.add_argument("--output", type=Path, help="folder to write the networks to")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    numbers = training_numbers(args.cases)
    given = {"seed": args.seed, "work": args.work, "kept": args.processed}
    over_cases(partial(describe_case, **given), numbers, args.workers)
    # Nearly all places are easy; focal loss spends its few weights on the others.
    config = FitConfig(
        seed=args.seed,
        steps=args.steps,
        precision=args.precision,
        focal_gamma=1.0,
        label_smoothing=0.02,
        transplanted=0.0,
        drawn_veins=0.0,
    )
    command = (
        f"python -m cmb_bids.training.screening --cases {args.cases} --seed {args.seed}"
        f" --steps {args.steps} --precision {args.precision}"
    )
    for kind in args.kind or CHANNELS:
        over_cases(partial(places_of, **given, kind=kind), numbers, args.workers)
        network, recall, learnt = fit_screening(args.work, kind, numbers, config)
        print(f"{kind} (simulated, {len(numbers[::LEFT_OUT])} cases left out)")
        shown = pd.DataFrame(recall).drop(columns="proposed")
        print(shown.to_string(index=False), flush=True)
        if args.output:
            data = {"seed": args.seed, "cases": args.cases, "left_out": len(numbers[::LEFT_OUT])}
            training = {"steps": args.steps, "places": learnt, "command": command}
            provenance = {"training": {**training, "commit": commit()}, "data": data}
            save_screening(network, recall, provenance, args.output)
    return 0


def save_screening(
    network: MicrobleedNet, recall: list[dict[str, Any]], provenance: dict[str, Any], folder: Path
) -> None:
    """Write the network, and its card (JSON) beside it."""
    path = folder / f"{network.description.name}.safetensors"
    save_model(network, path, provenance)
    card = {"simulated": True, **provenance, "recall_of_microbleeds_left_out": recall}
    write_json(path.with_suffix(".json"), card)


if __name__ == "__main__":
    raise SystemExit(main())
