"""Measure candidate recall on simulated scans, and fit the ranking weights.

    python tools/measure_candidates.py --seeds 101 102 103 --work FOLDER [--fit]

For every protocol and seed: simulate a scan with 20 microbleeds, process it, take the true brain
mask, find candidates; print the share of lesions with a candidate within 3 and 5 mm. ``--fit``
also fits `WEIGHTS` and `WEIGHTS_WITHOUT_PHASE` of cmb_bids.candidates on these scans and prints
them. Scans and features are kept in the work folder and reused.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from cmb_bids.brain import normalize_magnitude
from cmb_bids.candidates import (
    WEIGHTS,
    WEIGHTS_WITHOUT_PHASE,
    CandidateConfig,
    propose_places,
    score_places,
    suppress_neighbours,
)
from cmb_bids.frst import smoothed
from cmb_bids.phase import process_complex
from cmb_bids.simulate import sample_subject, simulate_scan
from cmb_bids.volumes import voxel_sizes

PROTOCOLS = ("1.5T", "3T", "ukb", "7T")
GROUPS = ("stroke", "haemodialysis", "tbi", "population")
MICROBLEEDS = 20


def even_out(magnitude: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Divide by the local mean in the brain: a stand-in for N4 that takes no time."""
    coarse = (slice(None, None, 4), slice(None, None, 4), slice(None, None, 2))
    sizes = voxel_sizes(affine) * (4, 4, 2)
    weight = smoothed(mask[coarse], sizes, 25.0)
    bias = smoothed(magnitude[coarse] * mask[coarse], sizes, 25.0) / np.maximum(weight, 0.01)
    whole = bias.repeat(4, 0).repeat(4, 1).repeat(2, 2)
    whole = whole[tuple(slice(length) for length in magnitude.shape)]
    return normalize_magnitude(magnitude, mask, np.maximum(whole, 0.01 * float(whole.max())))


def places_of_scan(protocol: str, seed: int, work: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Simulated lesions, and every proposed place with its features; kept as TSV."""
    truth_file = work / f"{protocol}-{seed}_truth.tsv"
    places_file = work / f"{protocol}-{seed}_places.tsv"
    if not places_file.exists():
        group = GROUPS[seed % len(GROUPS)]
        spec = sample_subject(
            seed=seed, protocol=protocol, group=group, microbleeds=MICROBLEEDS, mimic_load=2.0
        )
        scan = simulate_scan(spec)
        result = process_complex(scan.magnitudes, scan.phases, scan.echo_times_s, scan.affine)
        normalized = even_out(result.magnitude, scan.brain_mask, scan.affine)
        began = time.perf_counter()
        places = propose_places(
            normalized,
            scan.brain_mask,
            scan.affine,
            result.swi,
            result.highpass,
            CandidateConfig(),
        )
        print(f"{protocol} {seed}: proposed in {time.perf_counter() - began:.1f} s", flush=True)
        places.to_csv(places_file, sep="\t", index=False)
        scan.truth.to_csv(truth_file, sep="\t", index=False)
    truth = pd.read_csv(truth_file, sep="\t")
    return truth[truth["name"] != "vein"], pd.read_csv(places_file, sep="\t")


def features_of(places: pd.DataFrame, phase: bool) -> pd.DataFrame:
    names = list(WEIGHTS) if phase else ["symmetry_magnitude", "depth", "enclosed"]
    return places[names]


def ranked(places: pd.DataFrame, scores: np.ndarray, config: CandidateConfig) -> np.ndarray:
    """Positions (n, 3) of the candidates kept."""
    points = places[["x", "y", "z"]].to_numpy()
    kept = suppress_neighbours(points, scores, config.merge_distance_mm)
    return points[kept[: config.maximum_candidates]]


def fit_weights(places: pd.DataFrame, phase: bool) -> dict[str, float]:
    """Non-negative logistic regression; lesions weigh the same however many places are on one."""
    near = places["lesion_mm"].to_numpy() < 2
    used = near | (places["lesion_mm"].to_numpy() > 4)
    features = features_of(places, phase)[used]
    near = near[used].astype(float)
    owner = places.loc[used, ["scan", "lesion"]]
    shared = owner.groupby(["scan", "lesion"])["scan"].transform("size").to_numpy()
    weight = np.where(near > 0, 1.0 / shared, 1.0)
    weight[near > 0] *= weight[near == 0].sum() / weight[near > 0].sum() / 3
    weight /= weight.sum()
    spread = features.std().to_numpy() + 1e-9
    scaled = np.c_[np.ones(len(features)), (features - features.mean()) / spread]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logit = scaled @ parameters
        penalty = np.r_[0, parameters[1:]]
        value = (weight * (np.logaddexp(0, logit) - near * logit)).sum()
        slope = scaled.T @ (weight * (1 / (1 + np.exp(-logit)) - near))
        return value + 1e-3 * (penalty**2).sum(), slope + 2e-3 * penalty

    bounds = [(None, None)] + [(0, None)] * features.shape[1]
    start = np.zeros(scaled.shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[1:] / spread
    return dict(zip(features.columns, found.round(2).tolist(), strict=True))


def nearest(points: np.ndarray, targets: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Distance from each point to the nearest target, and which it is."""
    distance = np.linalg.norm(points[:, None] - targets[["x", "y", "z"]].to_numpy(), axis=2)
    return distance.min(axis=1), distance.argmin(axis=1)


def report(scans: dict[str, tuple[pd.DataFrame, pd.DataFrame]], phase: bool) -> pd.DataFrame:
    """Recall by protocol and kind of lesion, and the lesions without a candidate."""
    config, rows = CandidateConfig(), []
    for name, (truth, places) in scans.items():
        used = places if phase else places[places["contrast"] == "magnitude"]
        candidates = ranked(used, score_places(features_of(used, phase)), config)
        lesions = truth[(truth["name"] == "microbleed") | (truth["site"] == "parenchyma")]
        gap = np.linalg.norm(lesions[["x", "y", "z"]].to_numpy()[:, None] - candidates, axis=2).min(
            axis=1
        )
        rows.append(
            lesions.assign(
                scan=name, protocol=name.split("-")[0], gap_mm=gap, candidates=len(candidates)
            )
        )
    table = pd.concat(rows, ignore_index=True)
    table["within_3"], table["within_5"] = table["gap_mm"] < 3, table["gap_mm"] < 5
    print("\nwith phase" if phase else "\nmagnitude only")
    for by in (["name"], ["protocol", "name"]):
        grouped = table.groupby(by)
        summary = grouped[["within_3", "within_5", "candidates"]].mean().round(3)
        summary["median_gap_mm"] = table[table["within_3"]].groupby(by)["gap_mm"].median().round(2)
        print(summary.assign(lesions=grouped.size()).to_string())
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS, choices=PROTOCOLS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--fit", action="store_true", help="fit the weights and print them")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scans = {
        f"{protocol}-{seed}": places_of_scan(protocol, seed, arguments.work)
        for seed in arguments.seeds
        for protocol in arguments.protocols
    }
    if arguments.fit:
        pooled = []
        for name, (truth, places) in scans.items():
            gap, which = nearest(places[["x", "y", "z"]].to_numpy(), truth)
            pooled.append(places.assign(scan=name, lesion_mm=gap, lesion=which))
        everything = pd.concat(pooled, ignore_index=True)
        for phase, weights in ((True, WEIGHTS), (False, WEIGHTS_WITHOUT_PHASE)):
            fitted = fit_weights(everything, phase)
            print("fitted", "with phase:" if phase else "without phase:", fitted)
            weights.update(fitted)
    for phase in (True, False):
        table = report(scans, phase)
        columns = ["scan", "name", "diameter_mm", "susceptibility_ppm", "contrast_to_noise"]
        columns += ["mars_region", "gap_mm"]
        missed = table.loc[~table["within_5"], columns]
        if phase and len(missed):
            print("\nwithout a candidate within 5 mm\n" + missed.to_string(index=False))


if __name__ == "__main__":
    main()
