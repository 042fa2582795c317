"""Fine-tuning: a trained network goes on learning, gently, from a few labelled cases.

The cases are divided by participant. Each part is judged by a network tuned on the others; these
judgements fit the calibration and the thresholds of the network that is tuned on all, and say what
tuning is worth on participants it has not seen.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmb_bids.errors import BadData
from cmb_bids.resnet import (
    CLASSES,
    MIRRORED_AXES,
    Calibration,
    MicrobleedNet,
    calibrate_scan,
    predict_logits,
)
from cmb_bids.training.fit import FitConfig, Patches, draw_weights, fit, without_margin
from cmb_bids.training.labels import CALCIFICATION, MICROBLEED, OTHER
from cmb_bids.training.scoring import (
    ScoredCase,
    choose_thresholds,
    fit_calibration,
    fit_usual_burden,
    scored_case,
)
from cmb_bids.training.shards import Case

log = logging.getLogger(__name__)

KIND = "complex"
PEAK_LEARNING_RATE = 3e-4  # a tenth of that of training from the start
MOST_FOLDS = 5
FEWEST_PARTICIPANTS = 3
FEWEST_MICROBLEEDS = 10  # with a candidate: fewer say nothing about calibration
FEWEST_STEPS = 20
CERTAIN_CALCIFICATION = 0.5


@dataclass(frozen=True)
class Tuned:
    """A tuned network with its calibration, and the cases as networks that had not seen them do.

    ``cases`` are calibrated without themselves too, but the thresholds in ``calibration`` were
    chosen on all of them; ``steps`` are those of the last tuning.
    """

    network: MicrobleedNet
    calibration: Calibration
    cases: list[ScoredCase]
    folds: int
    steps: int


def tune(
    network: MicrobleedNet,
    cases: Sequence[Case],
    participants: Sequence[str],
    config: FitConfig,
    kept: Patches | None = None,
    calcifications_labelled: bool = True,
) -> Tuned:
    """Fine-tune a network.

    Parameters
    ----------
    network : MicrobleedNet
        Where to start; left as it is.
    cases : sequence of Case
        Labelled, with patches.
    participants : sequence of str
        Of each case.
    config : FitConfig
        Its epochs are over the candidates of the cases.
    kept : Patches, optional
        Of the data the network was trained on, to draw half of every batch from, so that what it
        knew is not forgotten.
    calcifications_labelled : bool, optional
        If not, candidates that the network takes for calcifications are not used: they would be
        taught to be nothing.

    Raises
    ------
    BadData
        Too few participants, or too few microbleeds with a candidate.
    """
    _check(cases, participants)
    network = copy.deepcopy(network).eval()
    before = [_logits(network, case) for case in cases]
    labels = [
        _labels(case, logits, network, calcifications_labelled)
        for case, logits in zip(cases, before, strict=True)
    ]
    fold_of = _folds(participants, config.seed)
    folds = int(fold_of.max()) + 1
    logits: list[np.ndarray] = list(before)
    for fold in range(folds):
        others = [i for i in range(len(cases)) if fold_of[i] != fold]
        log.info("part %d of %d: tuning on %d cases", fold + 1, folds, len(others))
        known = [cases[i] for i in others], [labels[i] for i in others]
        trial, _ = _fit(network, *known, config, kept)
        for i in np.flatnonzero(fold_of == fold):
            logits[i] = _logits(trial, cases[i])
    judged = _calibrated_apart(cases, logits, labels, fold_of)
    calibration = _calibration(cases, logits, labels)
    log.info("tuning on all %d cases", len(cases))
    final, steps = _fit(network, cases, labels, config, kept)
    final.description = dataclasses.replace(network.description, calibration=calibration)
    return Tuned(final, calibration, judged, folds, steps)


def _check(cases: Sequence[Case], participants: Sequence[str]) -> None:
    if len(set(participants)) < FEWEST_PARTICIPANTS:
        raise BadData(
            "--labels",
            f"only {len(set(participants))} participants can be used",
            f"Label at least {FEWEST_PARTICIPANTS}, so that some can be held out",
        )
    found = sum(int((case.candidates[KIND].labels == MICROBLEED).sum()) for case in cases)
    if found < FEWEST_MICROBLEEDS:
        raise BadData(
            "--labels",
            f"only {found} labelled microbleeds have a candidate within reach",
            f"Give at least {FEWEST_MICROBLEEDS}, and check that x y z are scanner mm (RAS+)",
        )


def _folds(participants: Sequence[str], seed: int) -> np.ndarray:
    """The part (n,) that each case belongs to; all cases of a participant are in one."""
    names = sorted(set(participants))
    order = np.random.default_rng(seed).permutation(len(names))
    part = {names[i]: place % MOST_FOLDS for place, i in enumerate(order)}
    return np.array([part[name] for name in participants])


def _labels(
    case: Case, logits: np.ndarray, network: MicrobleedNet, calcifications_labelled: bool
) -> np.ndarray:
    found = case.candidates[KIND]
    if calcifications_labelled or not len(found.labels):
        return found.labels
    calibration = network.description.calibration
    before = calibrate_scan(logits, calibration, found.scores, found.points_mm)
    doubtful = (found.labels == OTHER) & (before[:, CALCIFICATION] >= CERTAIN_CALCIFICATION)
    return np.where(doubtful, -1, found.labels)


def _fit(
    network: MicrobleedNet,
    cases: Sequence[Case],
    labels: Sequence[np.ndarray],
    config: FitConfig,
    kept: Patches | None,
) -> tuple[MicrobleedNet, int]:
    data = Patches.join(
        [_to_learn_from(case, label) for case, label in zip(cases, labels, strict=True)]
    )
    per_epoch = len(data.labels) / 4 / config.batch_size
    steps = config.steps or max(FEWEST_STEPS, round(config.epochs * per_epoch))
    config = dataclasses.replace(config, steps=steps, peak_learning_rate=PEAK_LEARNING_RATE)
    if kept is not None:
        data = Patches.join([_evenly(data), _evenly(kept)])
    tuned, steps = fit(copy.deepcopy(network), data, config)
    assert isinstance(tuned, MicrobleedNet)
    return tuned, steps


def _to_learn_from(case: Case, labels: np.ndarray) -> Patches:
    found = case.candidates[KIND]
    slices = np.full(len(labels), case.slice_mm)
    return Patches(found.patches, labels, draw_weights(labels, found.scores), slices).take(
        labels >= 0
    )


def _evenly(data: Patches) -> Patches:
    """With weights that add up to one in every class: parts joined are drawn equally often."""
    weights = np.ones(len(data.labels)) if data.weights is None else data.weights.astype(float)
    total = np.bincount(data.labels, weights, minlength=len(CLASSES))
    return dataclasses.replace(data, weights=weights / total[data.labels])


def _logits(
    network: MicrobleedNet, case: Case, mirrors: Sequence[tuple[int, ...]] = MIRRORED_AXES
) -> np.ndarray:
    """Logits (n, 3) of a case's candidates, without the margin kept for training."""
    patches = case.candidates[KIND].patches
    if not len(patches):
        return np.zeros((0, len(CLASSES)), np.float32)
    return predict_logits(network, without_margin(patches), mirrors)


def _calibration(
    cases: Sequence[Case], logits: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> Calibration:
    """Calibration and thresholds from judgements of networks that had not seen the cases."""
    calibration = _probabilities_of(cases, logits, labels)
    judged = [_apply(case, z, calibration) for case, z in zip(cases, logits, strict=True)]
    definite, possible = choose_thresholds(judged)
    return dataclasses.replace(calibration, definite=definite, possible=possible)


def _probabilities_of(
    cases: Sequence[Case], logits: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> Calibration:
    """The calibration without thresholds."""
    scores = [case.candidates[KIND].scores for case in cases]
    calibration = fit_calibration(
        np.concatenate(logits), np.concatenate(labels), np.concatenate(scores)
    )
    judged = [_apply(case, z, calibration) for case, z in zip(cases, logits, strict=True)]
    return dataclasses.replace(calibration, usual_burden=fit_usual_burden(judged))


def _apply(case: Case, logits: np.ndarray, calibration: Calibration) -> ScoredCase:
    found = case.candidates[KIND]
    probabilities = calibrate_scan(logits, calibration, found.scores, found.points_mm)
    return scored_case(case, KIND, probabilities)


def _calibrated_apart(
    cases: Sequence[Case],
    logits: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    fold_of: np.ndarray,
) -> list[ScoredCase]:
    """The cases in order, each part calibrated with the other parts alone."""
    judged = {}
    for fold in sorted(set(fold_of)):
        others = np.flatnonzero(fold_of != fold)
        parts = ([each[i] for i in others] for each in (cases, logits, labels))
        calibration = _probabilities_of(*parts)
        for i in np.flatnonzero(fold_of == fold):
            judged[i] = _apply(cases[i], logits[i], calibration)
    return [judged[i] for i in range(len(cases))]


def judged_before(
    network: MicrobleedNet,
    cases: Sequence[Case],
    mirrors: Sequence[tuple[int, ...]] = MIRRORED_AXES,
) -> list[ScoredCase]:
    """The cases as the network does with the calibration it has."""
    calibration = network.description.calibration
    return [_apply(case, _logits(network, case, mirrors), calibration) for case in cases]
