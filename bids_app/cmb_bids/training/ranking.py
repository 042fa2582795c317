"""Fit the order of the candidates on simulated scans, and measure candidate recall.

    python -m cmb_bids.training.ranking --work FOLDER [--cases 60] [--seed 7000] [--output FILE]

Every proposed place of each case is described and kept in the work folder; a perceptron
(`cmb_bids.candidate_ranking`) learns to tell places on a lesion from the others. The table of
recall that is printed is cross-validated: each case is ranked by a fit that did not see it. The
cases are of no split: their numbers lie far above any that networks are trained or tested on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from torch import nn

from cmb_bids.candidate_ranking import MAGNITUDE_ALONE, WITH_PHASE, Ranking
from cmb_bids.candidates import CandidateConfig, propose_places, suppress_neighbours
from cmb_bids.training.labels import LABEL_OF_NAME
from cmb_bids.training.processed import process_case
from cmb_bids.volumes import write_json

log = logging.getLogger(__name__)

FIRST_CASE = 1_000_000
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


def describe_case(number: int, seed: int, work: Path, kept: Path | None = None) -> None:
    """Write the places of one case, with and without phase, and its lesions; skip if there."""
    done = work / f"{number:05d}_lesions.tsv"
    if done.is_file():
        return
    case = process_case(FIRST_CASE + number, seed, kept)
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
    places: pd.DataFrame, lesions: pd.DataFrame, score: np.ndarray, config: CandidateConfig
) -> np.ndarray:
    """Which microbleeds (m,) have a place within `NEAR_MM` among the best of the merged ones."""
    points = places[["x", "y", "z"]].to_numpy(dtype=float)
    kept = suppress_neighbours(points, score, config.merge_distance_mm)
    kept = kept[: config.maximum_candidates]
    return np.asarray((_distances(places.iloc[kept], lesions) <= NEAR_MM).any(axis=0))


def cross_validated_recall(
    tables: Sequence[pd.DataFrame],
    lesions: Sequence[pd.DataFrame],
    fit: Callable[[Sequence[int]], Ranking],
) -> list[dict[str, Any]]:
    """Recall of microbleeds by core diameter, each case ranked by a fit to the other folds.

    Returns
    -------
    list of dict
        ``from_mm``, ``below_mm`` (None: no limit), ``microbleeds``, ``recall`` within the kept
        candidates, ``proposed`` before ranking.
    """
    config = CandidateConfig()
    sizes, kept, proposed = [], [], []
    for fold in range(FOLDS):
        ranking = fit([i for i in range(len(tables)) if i % FOLDS != fold])
        for i in range(fold, len(tables), FOLDS):
            bleeds = lesions[i][lesions[i]["name"] == "microbleed"]
            if bleeds.empty:
                continue
            sizes.append(bleeds["diameter_mm"].to_numpy(dtype=float))
            kept.append(recall_of(tables[i], bleeds, ranking.score(tables[i]), config))
            proposed.append((_distances(tables[i], bleeds) <= NEAR_MM).any(axis=0))
    size, hit, seen = (np.concatenate(part) for part in (sizes, kept, proposed))
    rows = []
    for low, high in [(0.0, np.inf), *pairwise(SIZE_EDGES_MM)]:
        these = (size >= low) & (size < high)
        n = int(these.sum())
        rows.append(
            {
                "from_mm": low,
                "below_mm": None if np.isinf(high) else high,
                "microbleeds": n,
                "recall": round(float(hit[these].mean()), 3) if n else None,
                "proposed": round(float(seen[these].mean()), 3) if n else None,
            }
        )
    return rows


def fit_and_measure(
    work: Path, kind: str, cases: int, seed: int
) -> tuple[Ranking, list[dict[str, Any]]]:
    """The ranking of one kind of scan, fitted on all cases, and its cross-validated recall."""
    tables, lesions, hits = [], [], []
    for number in range(cases):
        table = pd.read_csv(work / f"{number:05d}_{kind}.tsv", sep="\t")
        truth = pd.read_csv(work / f"{number:05d}_lesions.tsv", sep="\t")
        if len(table):
            tables.append(table)
            lesions.append(truth)
            hits.append(on_lesion(table, truth))

    def fit(chosen: Sequence[int]) -> Ranking:
        return fit_ranking([tables[i] for i in chosen], [hits[i] for i in chosen], seed)

    return fit(range(len(tables))), cross_validated_recall(tables, lesions, fit)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where places are kept")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--processed", type=Path, help="where processed scans are kept")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, help="ranking file to write")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        describe = partial(describe_case, seed=args.seed, work=args.work, kept=args.processed)
        for number, _ in enumerate(pool.map(describe, range(args.cases))):
            log.info("case %d of %d", number + 1, args.cases)
    result: dict[str, Any] = {}
    for kind in (WITH_PHASE, MAGNITUDE_ALONE):
        ranking, recall = fit_and_measure(args.work, kind, args.cases, args.seed)
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
