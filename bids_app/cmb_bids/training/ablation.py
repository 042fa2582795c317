"""What does each family of the randomisation buy? ``python -m`` this module.

For each family of the simulated cases a network is trained on cases in which the family hardly
varies, another on as many cases drawn regardless, in which it does. Both are judged on the same
cases, seen by neither, in which the family varies. What the varied training gains there is what
the family buys. For each way in which patches are varied during training, one network is trained
without it and one with it, on the same cases, and both are judged on others. Everything is
simulated.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cmb_bids.errors import BadData, CmbError
from cmb_bids.resnet import AS_IT_IS, MicrobleedNet
from cmb_bids.simulate import PROTOCOLS
from cmb_bids.training.card import METRIC_NAMES, interval, shown, table
from cmb_bids.training.comparison import before_and_after
from cmb_bids.training.fit import FitConfig
from cmb_bids.training.shards import load_case, split_of
from cmb_bids.training.trials import add_arguments, begin, learn
from cmb_bids.training.tune import KIND, judged_before
from cmb_bids.volumes import write_json

log = logging.getLogger(__name__)

Recipe = Mapping[str, Any]
DEFAULT_HALF_HEIGHT = 0.0625  # per mm, of the pipeline's high-pass filter
FEWEST_CASES = 8
SHARE_JUDGED = 0.4  # of the cases in which a family varies; the others may be trained on


def _filter_varies(recipe: Recipe) -> bool:
    factor = recipe["homodyne_half_height_per_mm"] / DEFAULT_HALF_HEIGHT
    return recipe["highpass"] != "homodyne" or abs(math.log(factor)) > 0.25


def _grid_varies(recipe: Recipe) -> bool:
    usual = np.array(PROTOCOLS[recipe["protocol"]].voxel_mm)
    change = np.abs(np.log(np.array(recipe["voxel_mm"]) / usual)).max()
    return bool(change > 0.2) or max(recipe["zero_filling"]) > 1


def _mask_varies(recipe: Recipe) -> bool:
    return abs(recipe["mask_shift_mm"]) > 1.0 or recipe["mask_wobble_mm"] > 1.5


def _signal_varies(recipe: Recipe) -> bool:
    usual = PROTOCOLS[recipe["protocol"]]
    change = abs(math.log(recipe["echo_times_s"][-1] / usual.echo_times_s[-1]))
    return change > 0.15


def _noise_varies(recipe: Recipe) -> bool:
    low, high = PROTOCOLS[recipe["protocol"]].signal_to_noise
    return not low <= recipe["signal_to_noise"] <= high


def _tilt_varies(recipe: Recipe) -> bool:
    return recipe["obliquity_deg"] > 10.0


def _veins_are_short(recipe: Recipe) -> bool:
    return recipe["short_veins"] > 20


def _slab_ends_short(recipe: Recipe) -> bool:
    return max(recipe["uncovered"]) > 0.03


def _field_differs(recipe: Recipe) -> bool:
    return recipe["protocol"] == "1.5T"


# What a family of the cases is, and in which of them it varies.
FAMILIES: dict[str, tuple[str, Callable[[Recipe], bool]]] = {
    "filter": ("high-pass filter of the phase and its width", _filter_varies),
    "grid": ("voxel size, slice thickness, interpolation", _grid_varies),
    "mask": ("errors of the brain mask", _mask_varies),
    "echo": ("echo time", _signal_varies),
    "noise": ("signal to noise beyond the protocol's range", _noise_varies),
    "tilt": ("slices tilted against the field by more than 10 degrees", _tilt_varies),
    "veins": ("pieces of veins, short and coiled", _veins_are_short),
    "slab": ("slabs that end short of the brain", _slab_ends_short),
    "field": ("field strength: 1.5T beside 3T and 7T", _field_differs),
}
# What varies in patches during training: what it is, and the field of `FitConfig` with its share.
PATCH_FAMILIES = {
    "transplants": ("microbleeds put where a mimic is", "transplanted"),
    "drawn-veins": ("veins drawn through and beside what is there", "drawn_veins"),
}


def ablate(
    paths: Sequence[Path], family: str, config: FitConfig, most_cases: int, most_judged: int
) -> dict[str, Any]:
    """Train without and with a family, judge both where it varies.

    Parameters
    ----------
    paths : sequence of path
        Simulated cases.
    family : str
        Of `FAMILIES`.
    config : FitConfig
        The same for both.
    most_cases : int
        Cases to train on, at most.
    most_judged : int
        Cases to judge both on, at most.

    Raises
    ------
    BadData
        There are too few cases with or without the family.
    """
    said, varies = FAMILIES[family]
    train = [path for path in paths if split_of(path) == "train"]
    validation = [path for path in paths if split_of(path) == "validation"]
    family_varies = {path: varies(load_case(path, ()).recipe) for path in train}
    varied = [path for path in train if family_varies[path]]
    plain = [path for path in train if not family_varies[path]]
    judged = varied[: min(round(SHARE_JUDGED * len(varied)), most_judged)]
    cases = min(len(plain), len(train) - len(judged), most_cases)
    if min(cases, len(judged), len(varied) - len(judged)) < FEWEST_CASES or not validation:
        raise BadData(
            "--shards",
            f"{len(varied)} cases in which {said} varies and {len(plain)} in which not are too few",
            "Simulate more",
        )
    # As many as the plain ones that are trained on, drawn from all that are not judged.
    rng = np.random.default_rng(config.seed)
    others = [*plain, *varied[len(judged) :]]
    mixed = [others[i] for i in np.sort(rng.permutation(len(others))[:cases])]
    networks = [_learned(tuple(part), tuple(validation), config) for part in (plain[:cases], mixed)]
    return {
        "family": family,
        "what": said,
        "training_cases": cases,
        "varied": f"{sum(family_varies[path] for path in mixed)} of {cases} cases",
        **_judged(networks, judged, config),
    }


def ablate_patches(
    paths: Sequence[Path], family: str, config: FitConfig, most_cases: int, most_judged: int
) -> dict[str, Any]:
    """Train without and with a way of varying patches, judge both on other training cases.

    Parameters
    ----------
    paths, config, most_cases, most_judged
        As `ablate`.
    family : str
        Of `PATCH_FAMILIES`.

    Raises
    ------
    BadData
        There are too few cases.
    """
    said, share = PATCH_FAMILIES[family]
    train = [path for path in paths if split_of(path) == "train"]
    validation = tuple(path for path in paths if split_of(path) == "validation")
    judged = train[: min(round(SHARE_JUDGED * len(train)), most_judged)]
    learned = tuple(train[len(judged) :][:most_cases])
    if min(len(learned), len(judged)) < FEWEST_CASES or not validation:
        raise BadData("--shards", f"{len(train)} training cases are too few", "Simulate more")
    none: dict[str, Any] = {share: 0.0}
    without = dataclasses.replace(config, **none)
    networks = [_learned(learned, validation, c) for c in (without, config)]
    return {
        "family": family,
        "what": said,
        "training_cases": len(learned),
        "varied": f"{getattr(config, share):.0%} of patches",
        **_judged(networks, judged, config),
    }


@lru_cache(maxsize=2)
def _learned(
    train: tuple[Path, ...], validation: tuple[Path, ...], config: FitConfig
) -> MicrobleedNet:
    """A trained network; one that several families are compared with is trained once."""
    return learn(train, validation, config, AS_IT_IS)[0]


def _judged(
    networks: Sequence[MicrobleedNet], paths: Sequence[Path], config: FitConfig
) -> dict[str, Any]:
    """What two networks, the one without a family first, do on cases that neither saw."""
    held_out = [load_case(path, (KIND,)) for path in paths]
    before, after = (judged_before(network, held_out, AS_IT_IS) for network in networks)
    thresholds = [network.description.calibration.definite for network in networks]
    return {
        "simulated": True,
        "training_steps": config.steps,
        "seed": config.seed,
        "cases_judged": len(held_out),
        "microbleeds": sum(len(case.microbleeds) for case in before),
        **before_and_after(before, after, thresholds),
    }


def described(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table (Markdown), a row per family."""
    shown_metrics = ("sensitivity", "precision", "f1")
    rows = []
    for result in results:
        difference = result["difference"]["f1"]
        rows.append(
            [
                result["what"],
                result["varied"],
                f"{result['cases_judged']} ({result['microbleeds']})",
                *(
                    f"{shown(result['before'][m]['value'])} / {shown(result['after'][m]['value'])}"
                    for m in shown_metrics
                ),
                interval({**difference, "value": difference["difference"]}),
                shown(difference["p"]),
            ]
        )
    header = ["family, simulated", "varied in training", "cases judged (microbleeds)"]
    header += [f"{METRIC_NAMES[name]}, without / with" for name in shown_metrics]
    return table([*header, "gain in F1", "p"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m cmb_bids.training.ablation --shards DIRECTORY``."""
    parser = argparse.ArgumentParser(prog="cmb_bids.training.ablation", description=__doc__)
    names = [*FAMILIES, *PATCH_FAMILIES]
    parser.add_argument("--shards", type=Path, required=True, help="simulated cases")
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=500, help="of each training (default: 500)")
    parser.add_argument("--most-cases", type=int, default=60, help="to train on (default: 60)")
    parser.add_argument("--most-judged", type=int, default=40, help="cases (default: 40)")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    config = begin(options)
    paths = sorted(options.shards.glob("case-*.npz"))
    results = []
    for family in options.families:
        how = ablate if family in FAMILIES else ablate_patches
        try:
            results.append(how(paths, family, config, options.most_cases, options.most_judged))
        except CmbError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        print(described(results[-1:]), flush=True)
        if options.output is not None:
            write_json(options.output, {"simulated": True, "families": results})
    print(described(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
