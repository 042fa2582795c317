"""Measure brain mask and regions against the truth of simulated scans.

    python tools/measure_anatomy.py ukb:4 ukb:8 1.5T:3 3T:2 7T:5

Each argument is a protocol and a seed. Prints a row of the table in docs/anatomy.md.
"""

from __future__ import annotations

import argparse

import numpy as np

from cmb_bids.anatomy import regions_to_mars
from cmb_bids.brain import extract_brain
from cmb_bids.phase import process_complex
from cmb_bids.simulate import sample_subject, simulate_scan

SIDE = 100  # labels of the right hemisphere are this much larger
VENTRICLE = 41  # labels from here on are fluid


def is_tissue(regions: np.ndarray) -> np.ndarray:
    """Voxels with a region, fluid not counted."""
    return (regions % SIDE > 0) & (regions % SIDE < VENTRICLE)


def measure(protocol: str, seed: int) -> str:
    """One row: Dice of the mask, volumes, agreement of MARS class and region."""
    spec = sample_subject(seed=seed, protocol=protocol)
    scan = simulate_scan(spec, oversampling=(1.0, 1.0, 1.0))
    combined = process_complex(scan.magnitudes, scan.phases, scan.echo_times_s, scan.affine)
    found = extract_brain(combined.magnitude, scan.affine)
    dice = 2 * (found.mask & scan.brain_mask).sum() / (found.mask.sum() + scan.brain_mask.sum())
    truth = scan.regions.astype(int)
    both = scan.brain_mask & is_tissue(truth) & is_tissue(found.regions)
    true_region, true_class = regions_to_mars(truth[both])
    region, mars_class = regions_to_mars(found.regions[both])
    volume_ml = scan.brain_mask.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    agreement = [(true_class == mars_class).mean(), (true_region == region).mean()]
    return (
        f"| {protocol} (seed {seed}) | {spec.obliquity_deg:.0f}° | {dice:.3f} | "
        f"{found.report['volume_ml']:.0f} / {volume_ml:.0f} | {agreement[0]:.3f} | "
        f"{agreement[1]:.3f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", nargs="+", metavar="PROTOCOL:SEED")
    for name in parser.parse_args().scans:
        print(measure(name.split(":")[0], int(name.split(":")[1])), flush=True)
