"""What does each family of the randomisation buy? ``python -m`` this module.

Some networks are trained on simulated cases drawn regardless, each on others and from other
starting weights; for each family of what varies between cases one is trained on as many cases in
which that family hardly varies. For each way in which patches are varied during training one is
trained without it. All are judged on cases that none has seen, in which the family varies, and on
scans of other simulators. What the networks trained regardless are better by on average is what
the family buys; how far they differ from each other is chance. Everything is simulated.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmb_bids.errors import BadData, CmbError
from cmb_bids.evaluate.cohort import read_cohort
from cmb_bids.resnet import AS_IT_IS, CONTRAST_AND_PHASE, load_model
from cmb_bids.training.card import interval, shown, table
from cmb_bids.training.comparison import counts_of, metrics_of, paired, with_intervals
from cmb_bids.training.families import FAMILIES, cases_in_which_it_varies
from cmb_bids.training.finetune import read_cases
from cmb_bids.training.fit import FitConfig
from cmb_bids.training.scoring import ScoredCase
from cmb_bids.training.shards import Case, load_case, split_of
from cmb_bids.training.trials import NARROW_LEARNER, add_arguments, add_outside, begin, learn
from cmb_bids.training.tune import KIND, judged_before
from cmb_bids.volumes import write_json

log = logging.getLogger(__name__)

FEWEST_JUDGED = 8
JUDGED_EVERY = 4  # training case: never trained on here
# What varies in patches during training: what it is, and the field of `FitConfig` with its share.
PATCH_FAMILIES = {
    "transplants": ("microbleeds put where a mimic is", "transplanted"),
    "drawn-veins": ("veins drawn through and beside what is there", "drawn_veins"),
}


@dataclass(frozen=True)
class Judgement:
    """What one trained network says: held-out cases by file, and other scans.

    ``threshold``: where F1 is highest on the validation cases.
    """

    threshold: float
    at_home: dict[Path, ScoredCase]
    outside: list[ScoredCase]


@dataclass(frozen=True)
class Bench:
    """What all networks have in common: how they are trained, and on what they are judged.

    Attributes
    ----------
    learned : list of path
        Cases to train on.
    judged : list of path
        Cases to judge on.
    validation : list of path
    outside : list of Case
        Labelled scans of other simulators.
    config : FitConfig
    cases : int
        That each network is trained on.
    """

    learned: list[Path]
    judged: list[Path]
    validation: list[Path]
    outside: list[Case]
    config: FitConfig
    cases: int

    @classmethod
    def of(cls, paths: Sequence[Path], outside: list[Case], config: FitConfig, cases: int) -> Bench:
        """The training cases divided into such to learn from and such to judge on.

        Raises
        ------
        BadData
            There are too few.
        """
        train = [path for path in paths if split_of(path) == "train"]
        judged = [path for i, path in enumerate(train) if not i % JUDGED_EVERY]
        learned = [path for i, path in enumerate(train) if i % JUDGED_EVERY]
        validation = [path for path in paths if split_of(path) == "validation"]
        if len(learned) < cases or len(judged) < FEWEST_JUDGED or not validation:
            raise BadData("--shards", f"{len(train)} training cases are too few", "Simulate more")
        return cls(learned, judged, validation, outside, config, cases)

    def drawn(self, paths: Sequence[Path], seed: int) -> list[Path]:
        """As many of these as each network is trained on."""
        order = np.random.default_rng(seed).permutation(len(paths))
        return [paths[i] for i in np.sort(order[: self.cases])]

    def judgement(self, paths: Sequence[Path], config: FitConfig) -> Judgement:
        """Train on these cases, judge on all that is judged."""
        network = learn(paths, self.validation, config, AS_IT_IS, NARROW_LEARNER)[0]
        at_home = {
            path: judged_before(network, [load_case(path, (KIND,))], AS_IT_IS)[0]
            for path in self.judged
        }
        outside = judged_before(network, self.outside, AS_IT_IS)
        return Judgement(network.description.calibration.possible, at_home, outside)


def ablate(
    bench: Bench, name: str, regardless: Sequence[Judgement], cases_seed: int
) -> dict[str, Any]:
    """Train without a family, and compare.

    Parameters
    ----------
    bench : Bench
    name : str
        Of `FAMILIES` or `PATCH_FAMILIES`.
    regardless : sequence of Judgement
        Of the networks that were trained on cases drawn regardless.
    cases_seed : int
        That the cases were simulated with.

    Raises
    ------
    BadData
        There are too few cases with or without the family.
    """
    usual = bench.drawn(bench.learned, bench.config.seed)  # what the first of them learned from
    if name in PATCH_FAMILIES:
        said, share = PATCH_FAMILIES[name]
        none: dict[str, Any] = {share: 0.0}
        judged, config = bench.judged, dataclasses.replace(bench.config, **none)
        chosen = usual
        varied = f"{getattr(bench.config, share):.0%} of patches"
    else:
        family = FAMILIES[name]
        said, config = family.what, bench.config
        judged = cases_in_which_it_varies(bench.judged, family, cases_seed)
        varying = set(cases_in_which_it_varies(bench.learned, family, cases_seed))
        plain = [path for path in bench.learned if path not in varying]
        if len(plain) < bench.cases or len(judged) < FEWEST_JUDGED:
            raise BadData(
                "--shards",
                f"{len(plain)} cases to train on in which '{said}' hardly varies and {len(judged)} "
                "to judge on in which it does are too few",
                "Simulate more, or ask for fewer with --cases",
            )
        chosen = bench.drawn(plain, bench.config.seed)
        varied = f"{len(varying.intersection(usual))} of {bench.cases} cases"
    without = bench.judgement(chosen, config)
    return {
        "family": name,
        "what": said,
        "varied": varied,
        "simulated": True,
        "at_home": _compared(without, regardless, lambda one: [one.at_home[p] for p in judged]),
        "outside": _compared(without, regardless, lambda one: one.outside),
    }


def _compared(
    without: Judgement,
    regardless: Sequence[Judgement],
    cases_of: Callable[[Judgement], list[ScoredCase]],
) -> dict[str, Any] | None:
    """Metrics on the same cases, of several networks those of their mean counts; None if none."""
    cases = cases_of(without)
    if not cases:
        return None

    def counts(one: Judgement) -> np.ndarray:
        return np.array([counts_of(case, one.threshold) for case in cases_of(one)])

    each = [counts(one) for one in regardless]
    mean = np.mean(each, axis=0)
    return {
        "cases_judged": len(cases),
        "microbleeds": sum(len(case.microbleeds) for case in cases),
        "without": with_intervals(counts(without)),
        "regardless": with_intervals(mean),
        "f1_of_each_regardless": [
            round(float(metrics_of(one.sum(axis=0))["f1"]), 4) for one in each
        ],
        "gain": paired(mean, counts(without)),
    }


def scans_outside(pairs: Iterable[Sequence[Path]]) -> list[Case]:
    """Labelled scans with phase of each pair of results and labels.

    Raises
    ------
    InputMissing, NothingMatched, BadData
        As fine-tuning on them would.
    """
    model = load_model("shipped", CONTRAST_AND_PHASE)
    cases: list[Case] = []
    for results, labels in pairs:
        cases += read_cases(results, read_cohort(results, labels), model)[0]
    return cases


def described(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as a table (Markdown), a row per family."""
    rows = []
    for result in results:
        rows.append([result["what"], result["varied"]])
        for where in ("at_home", "outside"):
            rows[-1] += _described_part(result[where])
    header = ["family, simulated", "varied in training"]
    for where in ("at home", "outside"):
        header += [f"judged {where} (microbleeds)", "F1 without", "F1 regardless", "gain", "p"]
    return table(header, rows)


def _described_part(part: Mapping[str, Any] | None) -> list[str]:
    if part is None:
        return ["-"] * 5
    gain, each = part["gain"]["f1"], part["f1_of_each_regardless"]
    regardless = shown(part["regardless"]["f1"]["value"])
    return [
        f"{part['cases_judged']} ({part['microbleeds']})",
        shown(part["without"]["f1"]["value"]),
        f"{regardless} ({shown(min(each))}-{shown(max(each))})",
        interval({**gain, "value": gain["difference"]}),
        shown(gain["p"]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m cmb_bids.training.ablation --shards DIRECTORY``."""
    options = _options(arguments)
    config = begin(options)
    paths = sorted(options.shards.glob("case-*.npz"))
    try:
        bench = Bench.of(paths, scans_outside(options.outside), config, options.cases)
        alike = []
        for i in range(options.repeats):
            one = dataclasses.replace(config, seed=config.seed + i)
            alike.append(bench.judgement(bench.drawn(bench.learned, one.seed), one))
        written: dict[str, Any] = {
            "simulated": True,
            "training_steps": config.steps,
            "training_cases": options.cases,
            "seed": config.seed,
            "families": [],
        }
        for family in options.families:
            written["families"].append(ablate(bench, family, alike, options.cases_seed))
            print(described(written["families"][-1:]), flush=True)
            if options.output is not None:
                write_json(options.output, written)
    except CmbError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(described(written["families"]))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cmb_bids.training.ablation", description=__doc__)
    names = [*FAMILIES, *PATCH_FAMILIES]
    parser.add_argument("--shards", type=Path, required=True, help="simulated cases")
    parser.add_argument(
        "--cases-seed", type=int, default=500, help="they were simulated with (default: 500)"
    )
    add_outside(parser)
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=500, help="of each training (default: 500)")
    parser.add_argument("--cases", type=int, default=60, help="to train on each (default: 60)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="trainings on cases drawn regardless (default: 3)"
    )
    add_arguments(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
