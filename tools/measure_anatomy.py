"""Measure brain mask, regions and MNI coordinates against the truth of simulated scans.

    python tools/measure_anatomy.py ukb:4 1.5T:3 3T:2 ukb:8 1.5T:11 7T:5
    python tools/measure_anatomy.py --lesions 60 ukb:4 1.5T:3

Each argument is a protocol and a seed. Printed are the tables of docs/anatomy.md: a row per scan
(mask, voxels), then lesions. A lesion's class is asked twice: where the simulator put it, and where
the pipeline's own candidate for it lies (the nearest within 5 mm). ``--lesions`` places that many
microbleeds in each scan; ``--sites`` asks at that many places besides, drawn from tissue as the
simulator draws its lesions, for an estimate that does not hang on a few dozen.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from cmb_bids.anatomy import label_lesions, regions_to_mars, to_mni
from cmb_bids.brain import extract_brain
from cmb_bids.candidates import find_candidates
from cmb_bids.phase import process_complex
from cmb_bids.simulate import SimulatedScan, sample_subject, simulate_scan
from cmb_bids.simulate.head import load_head, template_to_world
from cmb_bids.simulate.lesions import GROUP_SHARES, REGION_WEIGHTS
from cmb_bids.simulate.scan import box_frame, make_pose, spec_rng
from cmb_bids.volumes import voxel_to_world

SIDE = 100  # labels of the right hemisphere are this much larger
VENTRICLE = 41  # labels from here on are fluid
CLASSES = ("lobar", "deep", "infratentorial")
MATCH_MM = 5.0
GROUP = "population"


def is_tissue(regions: np.ndarray) -> np.ndarray:
    """Voxels with a region, fluid not counted."""
    return (regions % SIDE > 0) & (regions % SIDE < VENTRICLE)


def measure(protocol: str, seed: int, lesions: int, sites: int) -> tuple[str, pd.DataFrame]:
    """A row of the table of scans, and a row per lesion or site with its true and found place."""
    spec = sample_subject(seed=seed, protocol=protocol, group=GROUP, microbleeds=lesions)
    scan = simulate_scan(spec, oversampling=(1.0, 1.0, 1.0))
    combined = process_complex(scan.magnitudes, scan.phases, scan.echo_times_s, scan.affine)
    found = extract_brain(combined.magnitude, scan.affine)
    truth = scan.truth[scan.truth["name"] == "microbleed"].reset_index(drop=True)
    candidates = find_candidates(
        found.normalized, found.mask, scan.affine, combined.swi, combined.highpass
    )
    tables = [
        placed(truth, truth[["x", "y", "z"]].to_numpy(), found.regions, scan, "true position"),
        placed(*detected(truth, candidates), found.regions, scan, "detected position"),
        placed(*random_sites(scan, sites), found.regions, scan, "sites"),
    ]
    row = describe_voxels(f"{protocol} (seed {seed})", scan, found)
    return row, pd.concat(tables).assign(scan=f"{protocol}:{seed}")


def describe_voxels(name: str, scan: SimulatedScan, found: Any) -> str:
    """Mask and voxel agreement of one scan, and how far its MNI coordinates are off."""
    dice = 2 * (found.mask & scan.brain_mask).sum() / (found.mask.sum() + scan.brain_mask.sum())
    truth = scan.regions.astype(int)
    both = scan.brain_mask & is_tissue(truth) & is_tissue(found.regions)
    true_region, true_class = regions_to_mars(truth[both])
    region, mars_class = regions_to_mars(found.regions[both])
    volume_ml = scan.brain_mask.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    agree = (true_class == mars_class).mean(), (true_region == region).mean()
    return (
        f"| {name} | {scan.spec.obliquity_deg:.0f}° | {dice:.3f} | "
        f"{found.report['volume_ml']:.0f} / {volume_ml:.0f} | {agree[0]:.3f} | "
        f"{agree[1]:.3f} | {mni_error(scan, found.report['mni_affine'])} |"
    )


def mni_error(scan: SimulatedScan, mni_affine: Any) -> str:
    """Median and 95th percentile (mm) of MNI coordinates over the brain.

    The simulator's head is Colin27, whose own coordinates are taken for the true ones.
    """
    head = load_head()
    frame = box_frame(scan.spec, spec_rng(scan.spec, 2))
    pose = make_pose(scan.spec, head, frame)
    inside = np.argwhere(is_tissue(head.region.astype(int)))[::2000]
    true = voxel_to_world(head.affine, inside)
    error = np.linalg.norm(to_mni(template_to_world(pose, true), mni_affine) - true, axis=1)
    return f"{np.median(error):.1f} ({np.percentile(error, 95):.1f})"


def detected(truth: pd.DataFrame, candidates: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The lesions that have a candidate, and where it is."""
    tree = cKDTree(candidates[["x", "y", "z"]].to_numpy())
    distance, nearest = tree.query(truth[["x", "y", "z"]].to_numpy())
    hit = distance <= MATCH_MM
    return truth[hit].reset_index(drop=True), candidates[["x", "y", "z"]].to_numpy()[nearest[hit]]


def random_sites(scan: SimulatedScan, count: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Places in tissue, drawn by class and region as the simulator draws its lesions."""
    rng = np.random.default_rng(scan.spec.seed)
    truth = scan.regions.astype(int)
    rows: list[np.ndarray] = []
    for name, share in zip(CLASSES, GROUP_SHARES[GROUP], strict=True):
        weights = REGION_WEIGHTS[name]
        for label, weight in weights.items():
            where = np.argwhere(truth % SIDE == label)
            number = round(count * share * weight / sum(weights.values()))
            if len(where):
                rows.append(where[rng.integers(len(where), size=number)])
    voxels = np.concatenate(rows)
    labels = truth[tuple(voxels.T)]
    region, mars_class = regions_to_mars(labels)
    side = np.where(labels > SIDE, "right", "left")
    table = pd.DataFrame({"mars_region": region, "mars_class": mars_class, "hemisphere": side})
    return table, voxel_to_world(scan.affine, voxels + rng.uniform(-0.5, 0.5, voxels.shape))


def placed(
    truth: pd.DataFrame, points: np.ndarray, regions: np.ndarray, scan: SimulatedScan, asked: str
) -> pd.DataFrame:
    """True and found class, region and side of some points."""
    found = label_lesions(points, regions, scan.affine)
    columns = ["mars_class", "mars_region", "hemisphere"]
    table = truth[columns].add_prefix("true_")
    return table.assign(asked=asked, **{name: found[name] for name in columns})


def report(table: pd.DataFrame) -> None:
    """Print the share of lesions in the right class, region and half, and what is mistaken."""
    print("\n| | number | class agrees | by class | region agrees | side agrees or is midline |")
    print("|---|---|---|---|---|---|")
    for asked, rows in table.groupby("asked", sort=False):
        right = rows["true_mars_class"] == rows["mars_class"]
        by_class = [f"{c} {right[rows['true_mars_class'] == c].mean():.3f}" for c in CLASSES]
        region = (rows["true_mars_region"] == rows["mars_region"]).mean()
        side = (rows["true_hemisphere"] == rows["hemisphere"]) | (rows["hemisphere"] == "midline")
        print(
            f"| {asked} | {len(rows)} | {right.mean():.3f} | {', '.join(by_class)} | "
            f"{region:.3f} | {side.mean():.3f} |"
        )
    sites = table[table["asked"] == table["asked"].iloc[-1]]
    found = sites["mars_class"].fillna("none")
    print("\nTrue class (rows) and class given, over all sites:")
    print(pd.crosstab(sites["true_mars_class"], found).reindex(CLASSES).to_string())
    wrong = sites[sites["true_mars_class"] != sites["mars_class"]]
    pairs = wrong.groupby(["true_mars_region", "mars_region"], dropna=False).size()
    print("\nMost frequent mistakes (share of all):")
    print((pairs.sort_values(ascending=False).head(8) / len(sites)).round(4).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scans", nargs="+", metavar="PROTOCOL:SEED")
    parser.add_argument("--lesions", type=int, default=60, help="microbleeds in each scan")
    parser.add_argument("--sites", type=int, default=2000, help="further places in each scan")
    options = parser.parse_args()
    results = []
    for item in options.scans:
        line, lesions = measure(
            item.split(":")[0], int(item.split(":")[1]), options.lesions, options.sites
        )
        print(line, flush=True)
        results.append(lesions)
    report(pd.concat(results, ignore_index=True))
