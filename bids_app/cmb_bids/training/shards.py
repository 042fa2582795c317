"""Simulated cases kept on disk, one file each, so that a run can stop and go on."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

KINDS = ("complex", "magnitude")
STORED = ("patches", "points_mm", "labels", "scores")  # arrays of a candidate set, in its order
BASELINE = "baseline"
# The first 220 cases split as the participants of Liu et al. 2019; later ones are for training.
PAPER_SPLIT = {"train": 154, "validation": 25, "test": 41}
MODULES_BEHIND_DATA = (
    "simulate",
    "phase.py",
    "phase_scaling.py",
    "highpass.py",
    "swi.py",
    "brain.py",
    "head.py",
    "candidates.py",
    "candidate_ranking.py",
    "data/models/candidate-ranking.json",
    "place_features.py",
    "frst.py",
    "patches.py",
    "training/cases.py",
    "training/labels.py",
)
SHARE_OF_FAILURES_BORNE = 0.05
THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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


def data_key(settings: dict[str, Any]) -> str:
    """Fingerprint of all that decides what a case holds: settings and the code behind it.

    Comments, docstrings and layout do not count.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    root = Path(str(files("cmb_bids")))
    for name in MODULES_BEHIND_DATA:
        path = root / name
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            text = source.read_text(encoding="utf-8")
            what = _what_it_does(text) if source.suffix == ".py" else text
            digest.update(what.encode())
    return digest.hexdigest()[:12]


def _what_it_does(source: str) -> str:
    """Source code without what does not run: comments, layout, docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def case_path(directory: Path, index: int) -> Path:
    """Where the case of this number lies."""
    return directory / f"case-{index:05d}.npz"


def generate(
    directory: Path, cases: int | Sequence[int], settings: dict[str, Any], workers: int
) -> list[Path]:
    """Make the cases that are missing.

    Parameters
    ----------
    directory : path
    cases : int or sequence of int
        Numbers of the cases, or how many from 0 on.
    settings : dict
        Of `cmb_bids.training.cases.make_case`.
    workers : int
        Processes, one thread each; with 1 the work is done in this process.

    Returns
    -------
    list of path
        All cases there are, in order.

    Raises
    ------
    RuntimeError
        More than one in twenty failed: something is wrong beyond bad luck.
    """
    numbers = range(cases) if isinstance(cases, int) else cases
    missing = [i for i in numbers if not case_path(directory, i).is_file()]
    log.info("%d of %d cases to make in %s", len(missing), len(numbers), directory)
    failed = _make_all(directory, missing, settings, workers) if missing else 0
    if failed > max(1, SHARE_OF_FAILURES_BORNE * len(numbers)):
        raise RuntimeError(f"{failed} of {len(missing)} cases failed; see the messages above")
    return existing_cases(directory, numbers)


def existing_cases(directory: Path, numbers: Sequence[int]) -> list[Path]:
    """Files of those of these cases that could be made."""
    paths = [case_path(directory, i) for i in numbers]
    return [path for path in paths if path.is_file()]


def _make_all(directory: Path, missing: list[int], settings: dict[str, Any], workers: int) -> int:
    failed, key = 0, data_key(settings)
    if workers == 1:
        return sum(not _made_here(directory, i, settings, key) for i in missing)
    context = multiprocessing.get_context("spawn")
    # Libraries read these when they load, in workers before any of our code: so set them here.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        jobs = {pool.submit(_make_one, directory, i, settings, key): i for i in missing}
        for done, job in enumerate(as_completed(jobs), start=1):
            error = job.exception()
            if error is not None:
                failed += 1
                log.warning("case %d failed: %s: %s", jobs[job], type(error).__name__, error)
            if done % 10 == 0 or done == len(jobs):
                log.info("%d/%d cases", done, len(jobs))
    return failed


def _made_here(directory: Path, index: int, settings: dict[str, Any], key: str) -> bool:
    try:
        _make_one(directory, index, settings, key)
    except Exception as error:  # one case must not cost the others
        log.warning("case %d failed: %s: %s", index, type(error).__name__, error)
        return False
    log.info("case %d", index)
    return True


def _one_thread() -> None:
    """Workers share the machine among themselves; libraries must not do so again."""
    import torch

    torch.set_num_threads(1)


def _make_one(directory: Path, index: int, settings: dict[str, Any], key: str) -> None:
    from cmb_bids.training.cases import make_case

    case = make_case(index, **settings)
    case.recipe["data_key"] = key
    save_case(case, case_path(directory, index))


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
