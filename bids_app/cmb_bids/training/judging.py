"""Held-out cases as a contender judges them: calibrated, scored, kept in a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmb_bids.errors import BadData
from cmb_bids.resnet import (
    AS_IT_IS,
    CLASSES,
    CONTRAST_AND_PHASE,
    MIRRORED_AXES,
    Calibration,
    calibrate_scan,
    predict_logits,
)
from cmb_bids.training.contenders import Contender, patches_seen, strengths, targets
from cmb_bids.training.fit import Network, without_margin
from cmb_bids.training.labels import CALCIFICATION, MICROBLEED
from cmb_bids.training.scoring import (
    DEFINITE_BETA,
    MAGNITUDE_DEFINITE_BETA,
    ScoredCase,
    choose_thresholds,
    detection_metrics,
    fit_calibration,
    fit_usual_burden,
    scored_case,
)
from cmb_bids.training.shards import CandidateSet, Case, load_case
from cmb_bids.volumes import written_whole

NO_EVIDENCE = -1e4  # logit of a class that a detector does not know


@dataclass(frozen=True)
class Judged:
    """A held-out case with what a contender said before calibration.

    ``found``: its candidates, without patches; ``logits`` (n, 3).
    """

    case: Case
    found: CandidateSet
    logits: np.ndarray


def looks(contender: Contender) -> Sequence[tuple[int, ...]]:
    """The mirror images that a contender's patches are seen in.

    Those that are compared see each patch once: that is equal for all, and an eighth of the work.
    """
    return MIRRORED_AXES if contender.shipped else AS_IT_IS


def judge(
    contender: Contender,
    network: Network | None,
    paths: Sequence[Path],
    mirrors: Sequence[tuple[int, ...]] = MIRRORED_AXES,
) -> list[Judged]:
    """What a network says about the candidates of cases, one case in memory at a time."""
    judged = []
    for path in paths:
        case = load_case(path, (contender.kind,), patches=network is not None)
        found = case.candidates.get(contender.kind)
        if found is None:
            raise BadData(path, f"has no {contender.kind} candidates", "Simulate the case again")
        logits = np.zeros((len(found.labels), len(CLASSES)), np.float32)
        if network is not None and len(found.labels):
            seen = without_margin(patches_seen(contender, found))
            logits = predict_logits(network, seen, mirrors)
        found = dataclasses.replace(found, patches=np.zeros((0,), np.float16))
        case.candidates = {contender.kind: found}
        judged.append(Judged(case, found, logits))
    return judged


def calibrated(
    contender: Contender, judged: Sequence[Judged]
) -> tuple[Calibration, list[ScoredCase]]:
    """Calibration and thresholds fitted to validation cases, and these cases as it sees them.

    Only shipped networks are calibrated with the candidates' score and the scan's burden: both
    know more than the images that are compared.
    """
    calibration = fit_calibration(
        np.concatenate([one.logits for one in judged]),
        targets(contender, np.concatenate([one.found.labels for one in judged])),
        np.concatenate([one.found.scores for one in judged]) if contender.shipped else None,
    )
    cases = [apply(contender, one, calibration) for one in judged]
    if contender.shipped:
        calibration = dataclasses.replace(calibration, usual_burden=fit_usual_burden(cases))
        cases = [apply(contender, one, calibration) for one in judged]
    definite, possible = choose_thresholds(
        cases, bool(contender.channels), _definite_beta(contender)
    )
    return dataclasses.replace(calibration, definite=definite, possible=possible), cases


def _definite_beta(contender: Contender) -> float:
    """Of the F that decides where definite begins: F1 where detectors are compared by it."""
    if not contender.shipped:
        return 1.0
    return DEFINITE_BETA if contender.channels == CONTRAST_AND_PHASE else MAGNITUDE_DEFINITE_BETA


def apply(contender: Contender, judged: Judged, calibration: Calibration) -> ScoredCase:
    """A case with calibrated probabilities."""
    found = judged.found
    probabilities = calibrate_scan(judged.logits, calibration, found.scores, found.points_mm)
    return scored_case(judged.case, contender.kind, probabilities)


def best_strength(contender: Contender, judged: Sequence[Judged]) -> str:
    """The stored strength that a classical detector does best with on the validation cases.

    Raises
    ------
    BadData
        None of them is stored.
    """
    f1_of: dict[str, float] = {}
    for name in contender.baselines:
        if all(strengths(one.found, name) is not None for one in judged):
            given = [given_strength(one, name) for one in judged]
            calibration, cases = calibrated(contender, given)
            f1_of[name] = detection_metrics(cases, calibration.definite)["f1"] or 0.0
    if not f1_of:
        raise BadData(
            "cases",
            f"hold no strengths of {contender.title} ({', '.join(contender.baselines)})",
            "Simulate them again with this version",
        )
    return max(f1_of, key=lambda name: f1_of[name])


def given_strength(judged: Judged, name: str) -> Judged:
    """The case with a classical detector's strength as the only logit that varies."""
    strength = strengths(judged.found, name)
    assert strength is not None
    logits = np.zeros((len(strength), len(CLASSES)))
    logits[:, MICROBLEED], logits[:, CALCIFICATION] = strength, NO_EVIDENCE
    return dataclasses.replace(judged, logits=logits)


def save_scores(path: Path, cases: Sequence[ScoredCase], description: dict[str, Any]) -> None:
    """Write calibrated probabilities of cases."""
    numbers = np.concatenate([np.full(len(c.labels), c.index, np.int64) for c in cases])
    with written_whole(path) as beside:
        np.savez_compressed(
            beside,
            case=numbers,
            probabilities=np.concatenate([c.probabilities for c in cases]).astype(np.float32),
            description=np.frombuffer(json.dumps(description).encode(), dtype=np.uint8),
        )


def read_scores(
    path: Path, contender: Contender, paths: Sequence[Path]
) -> tuple[list[ScoredCase], dict[str, Any]]:
    """Cases with a contender's probabilities, as `calibrate_and_score` left them."""
    with np.load(path, allow_pickle=False) as stored:
        numbers, probabilities = stored["case"], stored["probabilities"].astype(float)
        description = json.loads(stored["description"].tobytes())
    cases = []
    for case_file in paths:
        case = load_case(case_file, (contender.kind,), patches=False)
        cases.append(scored_case(case, contender.kind, probabilities[numbers == case.index]))
    return cases, description


def calibration_from(content: dict[str, Any]) -> Calibration:
    """A calibration from JSON."""
    tuples = {key: tuple(content[key]) for key in ("bias", "score_weights")}
    return Calibration(**{**content, **tuples})
