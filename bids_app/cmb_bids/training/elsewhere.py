"""How many mimics are there on scans that the simulator did not make? ``python -m`` this module.

Probabilities are calibrated on simulated validation cases, whose mimics the network has learned
from. On other scans there are others. Their number, relative to the validation cases, is what the
shipped network's calibration takes off (`cmb_bids.burden_prior.weigh_by_look_alikes`). Here it is
fitted to labelled scans of several other simulators, by maximum likelihood. To tell whether it
holds for scans that had no part in it, those of each simulator are judged with the number that
the others give.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from cmb_bids.burden_prior import weigh_by_look_alikes
from cmb_bids.errors import BadData
from cmb_bids.evaluate.calibration import expected_calibration_error
from cmb_bids.evaluate.cohort import read_cohort
from cmb_bids.resnet import CONTRAST_AND_PHASE, load_model
from cmb_bids.training.card import shown, table
from cmb_bids.training.finetune import read_cases
from cmb_bids.training.labels import MICROBLEED
from cmb_bids.training.scoring import ELSEWHERE_POSSIBLE, ScoredCase
from cmb_bids.training.trials import add_outside, run_trial
from cmb_bids.training.tune import judged_before

ONE_GROUP = "all"
BOUNDS = (0.05, 500.0)  # between which the number is sought


@dataclass(frozen=True)
class Group:
    """Labelled scans of one origin, with probabilities that know nothing of elsewhere."""

    name: str
    cases: list[ScoredCase]


def said_elsewhere(case: ScoredCase, mimics_elsewhere: float | None) -> tuple[np.ndarray, ...]:
    """Probabilities (n,) of a microbleed and whether each is one, of candidates with a label."""
    probabilities = case.probabilities
    if mimics_elsewhere is not None:
        probabilities = weigh_by_look_alikes(probabilities, case.points_mm, mimics_elsewhere)
    used = case.labels >= 0
    return probabilities[used, MICROBLEED], case.labels[used] == MICROBLEED


def fit_mimics(cases: Sequence[ScoredCase]) -> float:
    """The number under which the labels of the candidates are likeliest.

    Parameters
    ----------
    cases : sequence of ScoredCase
        Calibrated for the validation cases.
    """

    def loss(logarithm: float) -> float:
        total = 0.0
        for case in cases:
            said, was = said_elsewhere(case, float(np.exp(logarithm)))
            right = np.where(was, said, 1 - said)
            total -= float(np.log(np.maximum(right, 1e-12)).sum())
        return total

    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded")
    return float(np.exp(found.x))


def judged(cases: Sequence[ScoredCase], mimics_elsewhere: float | None) -> dict[str, Any]:
    """How true probabilities are: of all candidates, and of those that are listed."""
    said, was = (
        np.concatenate(each)
        for each in zip(*(said_elsewhere(case, mimics_elsewhere) for case in cases), strict=True)
    )
    listed = said >= ELSEWHERE_POSSIBLE
    return {
        "listed": int(listed.sum()),
        "right": int(was[listed].sum()),
        "mean_probability": float(said[listed].mean()) if listed.any() else None,
        "error_of_listed": expected_calibration_error(said[listed], was[listed]),
        "error_of_all": expected_calibration_error(said, was),
    }


def measure(groups: Sequence[Group]) -> dict[str, Any]:
    """The number from all groups, and each group judged with what the others give.

    Raises
    ------
    BadData
        There is only one group.
    """
    if len(groups) < 2:
        raise BadData("--outside", "holds scans of one origin", "Give those of several simulators")
    everything = [case for group in groups for case in group.cases]
    rows = []
    for group in groups:
        others = [case for one in groups if one is not group for case in one.cases]
        number = fit_mimics(others)
        rows.append(
            {
                "group": group.name,
                "scans": len(group.cases),
                "microbleeds": sum(len(case.microbleeds) for case in group.cases),
                "mimics_elsewhere": number,
                "before": judged(group.cases, None),
                "after": judged(group.cases, number),
            }
        )
    return {"simulated": True, "mimics_elsewhere": fit_mimics(everything), "groups": rows}


def described(result: dict[str, Any]) -> str:
    """The result as a table (Markdown)."""
    rows = []
    for row in result["groups"]:
        rows.append([row["group"], shown(row["scans"]), shown(row["microbleeds"])])
        rows[-1].append(f"{row['mimics_elsewhere']:.2f}")
        for when in ("before", "after"):
            part = row[when]
            rows[-1] += [f"{part['right']} of {part['listed']}", shown(part["mean_probability"])]
            rows[-1] += [f"{part['error_of_listed']:.3f}", f"{part['error_of_all']:.4f}"]
    header = ["simulated by", "scans", "microbleeds", "number from the others"]
    for when in ("as calibrated at home", "with that number"):
        header += [f"{when}: right, of listed", "mean probability", "error of listed", "of all"]
    return f"mimics_elsewhere {result['mimics_elsewhere']:.2f}\n\n" + table(header, rows)


def read_groups(pairs: Sequence[Sequence[Path]]) -> list[Group]:
    """Labelled scans by the column ``simulator`` of their participants.

    Raises
    ------
    InputMissing, NothingMatched, BadData
        As fine-tuning on them would.
    """
    model = load_model("shipped", CONTRAST_AND_PHASE)
    network = model.network
    at_home = replace(network.description.calibration, mimics_elsewhere=None)
    network.description = replace(network.description, calibration=at_home)
    by_name: dict[str, list[ScoredCase]] = {}
    for results, labels in pairs:
        cohort = read_cohort(results, labels)
        cases, participants = read_cases(results, cohort, model)
        known = cohort.scans.drop_duplicates("participant_id").set_index("participant_id")
        for case, participant in zip(judged_before(network, cases), participants, strict=True):
            name = known["simulator"].get(participant) if "simulator" in known else ONE_GROUP
            by_name.setdefault(str(name), []).append(case)
    return [Group(name, by_name[name]) for name in sorted(by_name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m cmb_bids.training.elsewhere --outside RESULTS LABELS``."""
    parser = argparse.ArgumentParser(prog="cmb_bids.training.elsewhere", description=__doc__)
    add_outside(parser, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    return run_trial(lambda: measure(read_groups(options.outside)), described, options.output)


if __name__ == "__main__":
    sys.exit(main())
