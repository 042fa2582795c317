"""What radial symmetry alone is worth on the test cases, and how the network does by size.

The published first stage ranks places by the fast radial symmetry transform (FRST) and nothing
else. Shards keep the candidates' own score, which also knows depth, so the test cases are
simulated once more from their seeds, and their places ranked by FRST strength alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from cmb_bids.candidates import CandidateConfig, propose_places, suppress_neighbours
from cmb_bids.evaluate import match_points
from cmb_bids.simulate import simulate_scan
from cmb_bids.training.cases import disturbed_mask, draw_recipe, normalise, process_scan
from cmb_bids.training.labels import MICROBLEED
from cmb_bids.training.scoring import ScoredCase, evaluate_ranking
from cmb_bids.training.shards import Case, load_case, split_at, split_of

log = logging.getLogger(__name__)

SYMMETRY = "symmetry_"  # what the features of this kind begin with
SIZE_EDGES_MM = (0.0, 1.5, 2.0, 3.0, np.inf)  # of the lesion's core


def rank_by_frst(index: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Places of a test case, best first by FRST strength in one contrast.

    Parameters
    ----------
    index, seed : int
        As `cmb_bids.training.cases.make_case`.

    Returns
    -------
    dict
        For every contrast: places (n, 3) in mm, at most as many as the pipeline keeps and merged
        at its distance, and their strength (n,).
    """
    rng = np.random.default_rng([seed, index])
    spec, recipe = draw_recipe(rng, split_at(index) == "train")
    scan = simulate_scan(spec, oversampling=recipe.oversampling)
    mask = disturbed_mask(
        scan.brain_mask, scan.affine, recipe.mask_shift_mm, recipe.mask_wobble_mm, rng
    )
    swi, highpass, magnitude = process_scan(scan, recipe)
    normalized = normalise(magnitude, mask, scan.affine, recipe.shading_corrected)
    config = CandidateConfig()
    places = propose_places(normalized, mask, scan.affine, swi, highpass, config)
    points = places[["x", "y", "z"]].to_numpy()
    ranked = {}
    for name in [name for name in places if name.startswith(SYMMETRY)]:
        strength = places[name].to_numpy()
        kept = suppress_neighbours(points, strength, config.merge_distance_mm)
        kept = kept[: config.maximum_candidates]
        ranked[name.removeprefix(SYMMETRY)] = points[kept], strength[kept]
    return ranked


def frst_alone(paths: Sequence[Path], seed: int, workers: int) -> dict[str, Any]:
    """What ranking by FRST alone reaches on the test cases among ``paths``.

    `evaluate_ranking` in the contrast that does best on these very cases: that flatters FRST, not
    the network it is compared with.
    """
    test = [path for path in paths if split_of(path) == "test"]
    cases = [load_case(path, (), patches=False) for path in test]
    log.info("ranking %d test cases by radial symmetry alone", len(cases))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ranked = list(pool.map(partial(rank_by_frst, seed=seed), [c.index for c in cases]))
    results = {
        contrast: evaluate_ranking(
            [_scored(case, *places[contrast]) for case, places in zip(cases, ranked, strict=True)]
        )
        for contrast in ranked[0]
    }
    best = max(results, key=lambda contrast: results[contrast]["best_f1"] or 0.0)
    return {"contrast": best, "cases": len(cases), **results[best]}


def _scored(case: Case, points: np.ndarray, strength: np.ndarray) -> ScoredCase:
    return ScoredCase(
        str(case.recipe.get("protocol", "unknown")),
        points,
        np.full(len(points), -1),
        np.repeat(strength[:, None], 3, axis=1),
        case.lesions_mm("microbleed"),
        case.lesions_mm("calcification"),
    )


def sensitivity_by_size(
    cases: Sequence[ScoredCase], diameters_mm: Sequence[np.ndarray], threshold: float
) -> list[dict[str, Any]]:
    """Sensitivity of calls at a threshold by the diameter of the lesion's core.

    Parameters
    ----------
    cases : sequence of ScoredCase
        With calibrated probabilities.
    diameters_mm : sequence of (m,) arrays
        Of each case's microbleeds.
    threshold : float

    Returns
    -------
    list of dict
        ``from_mm``, ``below_mm`` (None: no limit), ``microbleeds``, ``sensitivity``,
        ``candidate_recall``.
    """
    sizes, found, proposed = [], [], []
    for case, diameters in zip(cases, diameters_mm, strict=True):
        called = case.points_mm[case.probabilities[:, MICROBLEED] >= threshold]
        sizes.append(diameters)
        found.append(_matched(case.microbleeds_mm, called))
        proposed.append(_matched(case.microbleeds_mm, case.points_mm))
    size, hit, seen = (np.concatenate(part) for part in (sizes, found, proposed))
    rows = []
    for low, high in pairwise(SIZE_EDGES_MM):
        these = (size >= low) & (size < high)
        n = int(these.sum())
        rows.append(
            {
                "from_mm": low,
                "below_mm": high if np.isfinite(high) else None,
                "microbleeds": n,
                "sensitivity": round(float(hit[these].mean()), 3) if n else None,
                "candidate_recall": round(float(seen[these].mean()), 3) if n else None,
            }
        )
    return rows


def core_diameters(path: Path) -> np.ndarray:
    """Diameters (m,) in mm of a case's microbleeds."""
    truth = load_case(path, (), patches=False).truth
    return np.array([row["diameter_mm"] for row in truth if row["name"] == "microbleed"])


def _matched(lesions_mm: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Which lesions (m,) have a point of their own within the matching distance."""
    hit = np.zeros(len(lesions_mm), bool)
    hit[[int(pair[0]) for pair in match_points(lesions_mm, points_mm)]] = True
    return hit
