"""Fit the order of the candidates on simulated scans, and measure candidate recall.

    python -m cmb_bids.training.ranking --work FOLDER [--cases 120] [--seed 500] [--output FILE]

Every proposed place of each case is described and kept in the work folder; a perceptron
(`cmb_bids.candidate_ranking`) learns to tell places on a lesion from the others. The table of
recall that is printed is cross-validated: each case is ranked by a fit that did not see it. The
cases are the first of those that the networks are trained on: nothing here sees a case that is
calibrated or tested on, and scans that are simulated already need not be again.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count, islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from torch import nn

from cmb_bids.candidate_ranking import MAGNITUDE_ALONE, WITH_PHASE, Ranking
from cmb_bids.candidates import CandidateConfig, propose_places
from cmb_bids.same_lesion import suppress_neighbours
from cmb_bids.training.labels import LABEL_OF_NAME
from cmb_bids.training.processed import process_case
from cmb_bids.training.shards import split_at
from cmb_bids.volumes import write_json

log = logging.getLogger(__name__)

NEAR_MM = 3.0  # a kept place this near a lesion has found it
ON_MM, BESIDE_MM = 2.0, 3.5  # to learn from: within the first on it, beyond the second not
POSITION_COLUMNS = ("x", "y", "z", "i", "j", "k", "radius_mm", "contrast")
HIDDEN_UNITS = (24, 12)
STEPS = 700
BATCH = 32768
WEIGHT_DECAY = 0.03
LESION_WEIGHT = 5.0  # a lesion lost costs more than a place looked at in vain
FOLDS = 4
SIZE_EDGES_MM = (0.0, 1.25, 1.5, 2.0, 3.0, np.inf)


def training_numbers(cases: int) -> list[int]:
    """Numbers of the first so many cases that networks are trained on."""
    return list(islice((number for number in count() if split_at(number) == "train"), cases))


def describe_case(number: int, seed: int, work: Path, kept: Path | None = None) -> None:
    """Write the places of one case, with and without phase, and its lesions; skip if there."""
    done = work / f"{number:05d}_lesions.tsv"
    if done.is_file():
        return
    case = process_case(number, seed, kept)
    config = CandidateConfig()
    found = {
        WITH_PHASE: propose_places(
            case.normalized, case.mask, case.affine, case.swi, case.highpass, config
        ),
        MAGNITUDE_ALONE: propose_places(
            case.as_magnitude, case.mask, case.affine, None, None, config
        ),
    }
    for kind, table in found.items():
        table.to_csv(work / f"{number:05d}_{kind}.tsv", sep="\t", index=False, float_format="%.4f")
    lesions = case.truth[case.truth["name"].isin(list(LABEL_OF_NAME))]
    lesions.to_csv(done, sep="\t", index=False)  # last: it says that the case is complete


def on_lesion(places: pd.DataFrame, lesions: pd.DataFrame) -> np.ndarray:
    """Whether each place (n,) is on a lesion, blood or calcium: 1, 0, or -1 where in between.

    On it is within 2 mm or the lesion's radius of its centre; what is beyond that but within
    3.5 mm teaches nothing.
    """
    distances = _distances(places, lesions)
    reach = np.maximum(ON_MM, lesions["diameter_mm"].to_numpy(dtype=float) / 2)
    on, beside = (distances <= reach).any(axis=1), (distances <= BESIDE_MM).any(axis=1)
    return np.where(on, 1, np.where(beside, -1, 0))


def _distances(places: pd.DataFrame, lesions: pd.DataFrame) -> np.ndarray:
    return cdist(
        places[["x", "y", "z"]].to_numpy(dtype=float),
        lesions[["x", "y", "z"]].to_numpy(dtype=float),
    )


def fit_ranking(tables: Sequence[pd.DataFrame], hits: Sequence[np.ndarray], seed: int) -> Ranking:
    """A perceptron that gives places on lesions the higher scores.

    Parameters
    ----------
    tables : sequence of DataFrame
        Places of each case (`cmb_bids.candidates.propose_places`).
    hits : sequence of (n,) arrays
        Which of them are on a lesion, as `on_lesion` tells.
    seed : int
    """
    features = tuple(name for name in tables[0] if name not in POSITION_COLUMNS)
    values = np.concatenate([table[list(features)].to_numpy(dtype=float) for table in tables])
    labels = np.concatenate(hits)
    mean, scale = values.mean(axis=0), values.std(axis=0) + 1e-6
    inputs = np.clip((values[labels >= 0] - mean) / scale, -4, 4).astype(np.float32)
    network = _trained(
        torch.from_numpy(inputs), torch.from_numpy(labels[labels >= 0].astype(np.float32)), seed
    )
    layers = tuple(
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in network
        if isinstance(layer, nn.Linear)
    )
    return Ranking(features, mean, scale, layers)


def _trained(inputs: torch.Tensor, target: torch.Tensor, seed: int) -> nn.Sequential:
    """A perceptron trained on standardised features (n, features) and 0 or 1 (n,)."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    width = inputs.shape[1]
    for units in HIDDEN_UNITS:
        layers += [nn.Linear(width, units), nn.Tanh()]
        width = units
    network = nn.Sequential(*layers, nn.Linear(width, 1))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=STEPS)
    weight = torch.tensor(LESION_WEIGHT)
    for _ in range(STEPS):
        drawn = torch.randint(len(target), (min(BATCH, len(target)),))
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            network(inputs[drawn])[:, 0], target[drawn], pos_weight=weight
        )
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


def recall_of(
    places: pd.DataFrame, lesions: pd.DataFrame, score: np.ndarray, most: int | None
) -> np.ndarray:
    """Which microbleeds (m,) have a place within `NEAR_MM` among the best ``most``, if merged."""
    points = places[["x", "y", "z"]].to_numpy(dtype=float)
    merge_mm = 0.0 if most is None else CandidateConfig().merge_distance_mm
    kept = suppress_neighbours(points, score, merge_mm)[:most]
    return np.asarray((_distances(places.iloc[kept], lesions) <= NEAR_MM).any(axis=0))


def cross_validated_scores(
    tables: Sequence[pd.DataFrame], fit: Callable[[Sequence[int]], Ranking]
) -> list[np.ndarray]:
    """The score of each case's places by a fit to the other folds' cases."""
    scores: list[np.ndarray] = [np.zeros(0)] * len(tables)
    for fold in range(FOLDS):
        ranking = fit([i for i in range(len(tables)) if i % FOLDS != fold])
        for i in range(fold, len(tables), FOLDS):
            scores[i] = ranking.score(tables[i])
    return scores


def recall_by_size(
    tables: Sequence[pd.DataFrame],
    lesions: Sequence[pd.DataFrame],
    scores: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    """Recall of microbleeds by core diameter, places ordered by their scores.

    Returns
    -------
    list of dict
        ``from_mm``, ``below_mm`` (None: no limit), ``microbleeds``, ``kept`` were the best kept as
        candidates, ``screened`` among those that the screening network looks at, ``proposed``
        among all.
    """
    config = CandidateConfig()
    most = {"kept": config.maximum_candidates, "screened": config.maximum_places, "proposed": None}
    sizes: list[np.ndarray] = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in most}
    for table, truth, score in zip(tables, lesions, scores, strict=True):
        bleeds = truth[truth["name"] == "microbleed"]
        sizes.append(bleeds["diameter_mm"].to_numpy(dtype=float))
        for name, limit in most.items():
            found[name].append(recall_of(table, bleeds, score, limit))
    size = np.concatenate(sizes)
    hits = {name: np.concatenate(part) for name, part in found.items()}
    rows = []
    for low, high in [(0.0, np.inf), *pairwise(SIZE_EDGES_MM)]:
        these = (size >= low) & (size < high)
        row = {"from_mm": low, "below_mm": None if np.isinf(high) else high}
        row |= {"microbleeds": int(these.sum())}
        for name, hit in hits.items():
            row[name] = round(float(hit[these].mean()), 3) if these.any() else None
        rows.append(row)
    return rows


def fit_and_measure(
    work: Path, kind: str, numbers: Sequence[int], seed: int
) -> tuple[Ranking, list[dict[str, Any]]]:
    """The ranking of one kind of scan, fitted on all cases, and its cross-validated recall."""
    tables, lesions, hits = [], [], []
    for number in numbers:
        table = pd.read_csv(work / f"{number:05d}_{kind}.tsv", sep="\t")
        truth = pd.read_csv(work / f"{number:05d}_lesions.tsv", sep="\t")
        if len(table):
            tables.append(table)
            lesions.append(truth)
            hits.append(on_lesion(table, truth))

    def fit(chosen: Sequence[int]) -> Ranking:
        return fit_ranking([tables[i] for i in chosen], [hits[i] for i in chosen], seed)

    recall = recall_by_size(tables, lesions, cross_validated_scores(tables, fit))
    return fit(range(len(tables))), recall


def over_cases(work: Callable[[int], None], numbers: Sequence[int], workers: int) -> None:
    """Do something for each case, several at a time."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(work, numbers), start=1):
            log.info("case %d of %d", done, len(numbers))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where places are kept")
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--processed", type=Path, help="where processed scans are kept")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, help="ranking file to write")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    numbers = training_numbers(args.cases)
    describe = partial(describe_case, seed=args.seed, work=args.work, kept=args.processed)
    over_cases(describe, numbers, args.workers)
    result: dict[str, Any] = {}
    for kind in (WITH_PHASE, MAGNITUDE_ALONE):
        ranking, recall = fit_and_measure(args.work, kind, numbers, args.seed)
        # What was measured stays out of the file, which decides what training cases are.
        result[kind] = ranking.as_dict()
        print(f"{kind} (simulated, {args.cases} cases)")
        print(pd.DataFrame(recall).to_string(index=False))
    result["fitted_by"] = (
        f"python -m cmb_bids.training.ranking --cases {args.cases} --seed {args.seed}"
    )
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
