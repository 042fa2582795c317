"""Simulated cases kept on disk, one file each, so that a run can stop and go on."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cmb_bids.training.fingerprint import data_key

log = logging.getLogger(__name__)

KINDS = ("complex", "magnitude")
STORED = ("patches", "points_mm", "labels", "scores")  # arrays of a candidate set, in its order
BASELINE = "baseline"
# The first 220 cases split as the participants of Liu et al. 2019; later ones are for training.
PAPER_SPLIT = {"train": 154, "validation": 25, "test": 41}


@dataclass
class CandidateSet:
    """Candidates of one scan as one of the two pipelines finds them.

    ``patches`` (n, channels, X, Y, Z) float16 with margin, ``points_mm`` (n, 3), ``labels`` (n,),
    ``scores`` (n,) of the pipeline's own ranking, and ``baselines``: by the name of a classical
    detector, what it gives each candidate (n,).
    """

    patches: np.ndarray
    points_mm: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    baselines: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Case:
    """One simulated scan: its recipe, its lesions and its candidates."""

    index: int
    recipe: dict[str, Any]
    truth: list[dict[str, Any]]
    candidates: dict[str, CandidateSet]

    @property
    def split(self) -> str:
        """``train``, ``validation`` or ``test``; each case is a participant of its own."""
        return split_at(self.index)

    @property
    def slice_mm(self) -> float:
        """Thickness of the slices as they were acquired."""
        return float(self.recipe["voxel_mm"][2])

    def lesions_mm(self, name: str) -> np.ndarray:
        """Positions (n, 3) of the simulated lesions of this name."""
        rows = [[row["x"], row["y"], row["z"]] for row in self.truth if row["name"] == name]
        return np.array(rows, dtype=float).reshape(-1, 3)


def save_case(case: Case, path: Path) -> None:
    """Write a case as npz (arrays and JSON, nothing pickled), whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for kind, found in case.candidates.items():
        arrays |= {f"{kind}_{name}": getattr(found, name) for name in STORED}
        arrays |= {f"{kind}_{BASELINE}_{name}": v for name, v in found.baselines.items()}
    description = {"index": case.index, "recipe": case.recipe, "truth": case.truth}
    arrays["description"] = np.frombuffer(json.dumps(description).encode(), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial.npz")
    np.savez(beside, **arrays)  # type: ignore[arg-type]
    beside.replace(path)


def load_case(path: Path, kinds: Sequence[str] = KINDS, patches: bool = True) -> Case:
    """Read a case; ``patches=False`` leaves the large arrays out."""
    with np.load(path, allow_pickle=False) as arrays:
        description = json.loads(arrays["description"].tobytes())
        candidates = {
            kind: _read_candidates(arrays, kind, patches)
            for kind in kinds
            if f"{kind}_labels" in arrays
        }
    return Case(description["index"], description["recipe"], description["truth"], candidates)


def _read_candidates(arrays: Any, kind: str, patches: bool) -> CandidateSet:
    stem = f"{kind}_{BASELINE}_"
    wanted = [name for name in STORED if patches or name != "patches"]
    stored = {name: arrays[f"{kind}_{name}"] for name in wanted}
    stored.setdefault("patches", np.zeros((0,), np.float16))
    baselines = [name for name in arrays.files if name.startswith(stem)]
    stored["baselines"] = {name.removeprefix(stem): arrays[name] for name in baselines}
    return CandidateSet(**stored)


def case_path(directory: Path, index: int) -> Path:
    """Where the case of this number lies."""
    return directory / f"case-{index:05d}.npz"


def make_missing(
    directory: Path, numbers: Sequence[int], settings: dict[str, Any], kept: Path | None = None
) -> list[Path]:
    """Make those of these cases that are not there yet, one after the other.

    Parameters
    ----------
    directory : path
    numbers : sequence of int
        Of the cases.
    settings : dict
        Of `cmb_bids.training.cases.make_case`.
    kept : path, optional
        Where processed scans are kept.

    Returns
    -------
    list of path
        All cases there are, in order; one that failed is missing, and the log says why.
    """
    from cmb_bids.training.cases import make_case

    key = data_key(settings)
    for index in numbers:
        path = case_path(directory, index)
        if path.is_file():
            continue
        try:
            case = make_case(index, kept=kept, **settings)
        except Exception as error:  # one case must not cost the others
            log.warning("case %d failed: %s: %s", index, type(error).__name__, error)
            continue
        case.recipe["data_key"] = key
        save_case(case, path)
        log.info("case %d", index)
    return existing_cases(directory, numbers)


def wanted_cases(cases: int, training_cases: int | None = None) -> list[int]:
    """Numbers of the cases of a run: all below ``cases``, or fewer of those that train.

    With ``training_cases`` only the first so many of the training cases are wanted, and still every
    validation and test case: a small run is measured on the same cases as a large one.
    """
    numbers = range(cases)
    train = [number for number in numbers if split_at(number) == "train"]
    left_out = set() if training_cases is None else set(train[training_cases:])
    return [number for number in numbers if number not in left_out]


def existing_cases(directory: Path, numbers: Sequence[int]) -> list[Path]:
    """Files of those of these cases that could be made."""
    paths = [case_path(directory, i) for i in numbers]
    return [path for path in paths if path.is_file()]


def keys_of(paths: Sequence[Path]) -> list[str]:
    """Fingerprints of the code that made these cases; more than one means that it changed."""
    return sorted({str(load_case(p, ()).recipe.get("data_key", "unknown")) for p in paths})


def found_in(case: Case, kind: str) -> CandidateSet:
    """The case's candidates of this kind.

    Where a case was not run as a magnitude-only scan, the SWI of its candidates stands in: the
    one-channel network meets the SWI of scanners too.
    """
    if kind in case.candidates:
        return case.candidates[kind]
    full = case.candidates["complex"]
    return dataclasses.replace(
        full, patches=full.patches[:, :1] if full.patches.size else full.patches
    )


def has_magnitude_run(path: Path) -> bool:
    """Whether a case was also run as a magnitude-only scan, on its magnitude and not on SWI."""
    case = load_case(path, ("magnitude",), patches=False)
    return "magnitude" in case.candidates and not case.recipe.get("swi_as_magnitude", False)


def split_of(path: Path) -> str:
    """The split of a case, from its file's name."""
    return split_at(int(path.stem.split("-")[1]))


def split_at(index: int) -> str:
    """The split of the case of this number: ``train``, ``validation`` or ``test``.

    Of the first 220 exactly 154, 25 and 41, spread evenly so that the first few dozen hold some of
    each; all later ones are for training. A larger run thus adds to the training of a smaller one
    and is measured on the same cases.
    """
    test, validation = PAPER_SPLIT["test"], PAPER_SPLIT["validation"]
    cases = sum(PAPER_SPLIT.values())
    if index >= cases:
        return "train"
    place = index * test % cases  # a permutation: 41 and 220 have no common factor
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"
