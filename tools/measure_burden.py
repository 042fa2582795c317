"""Are the probabilities of a scan's number of microbleeds true of simulated scans?

Simulates scans of a cohort like the one the networks were calibrated for, runs the pipeline on
them (with the simulated brain mask, displaced), and prints how many candidates of each probability
are microbleeds, and how `cmb_expected` and `p_ge_1` compare with the truth when they are made from
listed lesions alone and from all candidates. Every scan is simulated, and so is every figure.

    .venv/bin/python tools/measure_burden.py --cases 20

Scans at 7 T are left out: each takes as long as ten others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cmb_bids.burden import chances_of_microbleeds, estimate_count
from cmb_bids.candidates import find_candidates
from cmb_bids.interfaces.classify import classify_candidates
from cmb_bids.lesions import segment_lesions
from cmb_bids.same_lesion import same_place_mm
from cmb_bids.simulate import simulate_scan
from cmb_bids.training.labels import MICROBLEED, label_candidates
from cmb_bids.training.processed import disturbed_mask, normalise, process_scan
from cmb_bids.training.recipes import draw_recipe
from cmb_bids.volumes import voxel_sizes

EDGES = (0, 0.001, 0.01, 0.1, 0.3, 0.6, 1.0001)
LEFT_OUT = "7T"


def process_case(index: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame] | None:
    """Candidates with probabilities and ``label``, lesions, truth; None where it is left out."""
    rng = np.random.default_rng([seed, index])
    spec, recipe = draw_recipe(rng, training=False)
    if recipe.protocol == LEFT_OUT:
        return None
    scan = simulate_scan(spec, oversampling=recipe.oversampling)
    mask = disturbed_mask(
        scan.brain_mask, scan.affine, recipe.mask_shift_mm, recipe.mask_wobble_mm, rng
    )
    swi, highpass, magnitude = process_scan(scan, recipe)
    normalized = normalise(magnitude, mask, scan.affine, recipe.shading_corrected)
    found = find_candidates(normalized, mask, scan.affine, swi, highpass)
    table, report = classify_candidates(
        found, normalized, mask, scan.affine, swi, highpass, threads=1
    )
    lesions, _ = segment_lesions(
        found,
        table,
        normalized,
        mask,
        scan.affine,
        swi=swi,
        model_thresholds=report["thresholds"],
    )
    found = found.merge(table, on="index")
    truth = pd.DataFrame(scan.truth)
    points = found[["x", "y", "z"]].to_numpy(dtype=float)
    found["label"] = label_candidates(points, truth, same_place_mm(voxel_sizes(scan.affine)))
    return found, lesions, truth[truth["name"] == "microbleed"]


def read_or_make(index: int, seed: int, keep: Path) -> list[pd.DataFrame] | None:
    """A case from the folder where it was kept, or made and kept there."""
    paths = [keep / f"{seed}-{index}-{name}.csv" for name in ("candidates", "lesions", "truth")]
    if not paths[-1].is_file():
        case = process_case(index, seed)
        if case is None:
            return None
        keep.mkdir(parents=True, exist_ok=True)
        for path, table in zip(paths, case, strict=True):
            table.to_csv(path, index=False)
    return [pd.read_csv(path) for path in paths]


def print_candidates(candidates: pd.DataFrame) -> None:
    """Expected and true microbleeds among the candidates, by their probability."""
    used = candidates[candidates["label"] >= 0]
    groups = used.groupby(pd.cut(used["p_microbleed"], EDGES, right=False), observed=True)
    print("\n| probability (simulated) | candidates | expected | microbleeds |\n|---|---|---|---|")
    for bounds, group in groups:
        true = int((group["label"] == MICROBLEED).sum())
        said = f"{bounds.left:g} to {min(bounds.right, 1):g}"
        print(f"| {said} | {len(group)} | {group['p_microbleed'].sum():.1f} | {true} |")


def print_counts(cases: list[list[pd.DataFrame]]) -> None:
    """Expected counts and P(at least one) against the truth, for both ways of making them."""
    true = np.array([len(truth) for _, _, truth in cases])
    print(f"\n{len(cases)} simulated scans, {true.sum()} microbleeds, ", end="")
    print(f"{(true == 0).sum()} scans without one\n")
    print("| made from | expected | mean p_ge_1 | Brier score of p_ge_1 | p_ge_1 without lesions |")
    print("|---|---|---|---|---|")
    for name in ("listed lesions", "all candidates"):
        rows = []
        for candidates, lesions, _ in cases:
            others = candidates if name == "all candidates" else candidates[:0]
            rows.append(estimate_count(chances_of_microbleeds(lesions, others)))
        table = pd.DataFrame(rows)
        brier = float(((table["p_ge_1"] - (true > 0)) ** 2).mean())
        free = table["p_ge_1"][true == 0]
        print(
            f"| {name} | {table['cmb_expected'].sum():.1f} | {table['p_ge_1'].mean():.2f} "
            f"| {brier:.3f} | {', '.join(f'{p:.2f}' for p in free)} |"
        )
    print(f"\nScans with a microbleed: {(true > 0).mean():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=9100)
    parser.add_argument("--keep", type=Path, default=Path("build/measure-burden"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases, index = [], 0
    while len(cases) < args.cases:
        case = read_or_make(index, args.seed, args.keep)
        cases += [] if case is None else [case]
        index += 1
    print_candidates(pd.concat([candidates for candidates, _, _ in cases]))
    print_counts(cases)


if __name__ == "__main__":
    main()
