"""What it saves, and changes, to see only doubtful patches in all their mirror images.

    python tools/measure_looks.py OUTPUT [--name microbleed-two-channel]

OUTPUT is what ``cmb-lab train`` wrote. For each limit of the log odds at first sight
(`cmb_bids.resnet.DOUBTFUL_LOG_ODDS`) the network is calibrated anew on the validation cases, with
what it says when patches below the limit are seen once. Printed are the share of all looks that
this takes, and of the validation and the test cases (simulated) sensitivity, precision and the
logarithmic loss of all candidates.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from cmb_bids.resnet import DOUBTFUL_LOG_ODDS, MIRRORED_AXES, lesion_log_odds
from cmb_bids.training.contenders import CONTENDERS, load_weights
from cmb_bids.training.judging import Judged, apply, calibrated, judge
from cmb_bids.training.scoring import detection_metrics
from cmb_bids.training.shards import split_of
from cmb_bids.training.steps import HELD_OUT, cases_of

LIMITS = (-np.inf, -4.0, -3.0, DOUBTFUL_LOG_ODDS, -1.0, 0.0, np.inf)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--name", default="microbleed-two-channel")
    options = parser.parse_args()
    contender = CONTENDERS[options.name]
    network = load_weights(contender, options.output / "weights" / f"{options.name}.safetensors")
    cases = cases_of(options.output / "cases.json")
    held_out = {part: [path for path in cases if split_of(path) == part] for part in HELD_OUT}
    looks = {
        part: [judge(contender, network, paths, [axes]) for axes in MIRRORED_AXES]
        for part, paths in held_out.items()
    }
    print("| seen again from | looks | split | sensitivity | precision | loss |")
    print("|---|---|---|---|---|---|")
    for limit in LIMITS:
        seen = {part: seen_from(limit, of_part) for part, of_part in looks.items()}
        calibration, _ = calibrated(contender, seen["validation"][0])
        for part, (judged, share) in seen.items():
            scored = [apply(contender, one, calibration) for one in judged]
            found = detection_metrics(scored, calibration.definite)
            print(
                f"| {limit:g} | {share:.2f} | {part} | {found['sensitivity']} | "
                f"{found['precision']} | {loss(scored):.1f} |"
            )


def seen_from(limit: float, looks: list[list[Judged]]) -> tuple[list[Judged], float]:
    """The cases as judged when what is below the limit is seen once, and the share of looks."""
    judged, again, candidates = [], 0, 0
    for views in zip(*looks, strict=True):
        every = np.stack([view.logits for view in views])
        first = every[0]
        doubtful = lesion_log_odds(first) >= limit
        logits = np.where(doubtful[:, None], every.mean(axis=0), first)
        judged.append(replace(views[0], logits=logits))
        again += int(doubtful.sum())
        candidates += len(doubtful)
    others = len(MIRRORED_AXES) - 1
    return judged, (candidates + others * again) / (len(MIRRORED_AXES) * candidates)


def loss(cases) -> float:
    """Sum over the candidates of minus the logarithm of the probability of what they are."""
    total = 0.0
    for case in cases:
        used = case.labels >= 0
        right = case.probabilities[used, case.labels[used]]
        total -= float(np.log(np.maximum(right, 1e-12)).sum())
    return total


if __name__ == "__main__":
    main()
