"""``cmb-lab train --init shipped --labels ...``: fine-tuning on a user's own labelled scans.

Reads what the participant level left (SWI, high-passed phase, brain mask, candidates) and the
labels, in any form that ``cmb-lab evaluate`` reads. Scans without phase are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from cmb_bids.errors import BadData, CmbError, InputMissing
from cmb_bids.evaluate.cohort import Cohort, read_cohort
from cmb_bids.evaluate.files import scan_of
from cmb_bids.evaluate.matching import ignored_lesions
from cmb_bids.patches import classifier_patches
from cmb_bids.resnet import CONTRAST_AND_PHASE, SHIPPED, LoadedModel, load_model, save_model
from cmb_bids.same_lesion import LEAST_MM, same_place_mm
from cmb_bids.training.card import gain_table, model_card
from cmb_bids.training.comparison import before_and_after
from cmb_bids.training.contenders import CONTENDERS
from cmb_bids.training.fit import MARGIN_VOXELS, FitConfig, Patches
from cmb_bids.training.labels import MICROBLEED, OTHER, label_candidates
from cmb_bids.training.scoring import evaluate_cases
from cmb_bids.training.shards import CandidateSet, Case, split_of
from cmb_bids.training.steps import class_counts, commit, load_training
from cmb_bids.training.tune import KIND, Tuned, judged_before, tune
from cmb_bids.volumes import read_on_grid, read_volume, voxel_sizes, write_json, write_text

log = logging.getLogger(__name__)

NAME = SHIPPED[CONTRAST_AND_PHASE]
UNKNOWN_DIAMETER_MM = 3.0  # of labels that are points: then a candidate within 3 mm is on them
MOST_KEPT_CASES = 40  # of the simulated ones that are mixed in: 0.4 GB


def finetune(args: argparse.Namespace) -> None:
    """Fine-tune and write weights, metrics and card.

    Parameters
    ----------
    args : Namespace
        Of `cmb_bids.training.cli.add_arguments`.

    Raises
    ------
    InputMissing, NothingMatched, BadData
        There are no labels, no results, nothing that fits, or too little.
    """
    torch.set_num_threads(args.workers)
    start = load_model(args.init, CONTRAST_AND_PHASE)
    cohort = read_cohort(args.derivatives, args.labels)
    for row in cohort.others.to_dict("records"):
        log.warning("%s is not used: %s", row["scan"], row["reason"])
    cases, participants = read_cases(args.derivatives, cohort, start)
    labelled = bool((cohort.truth["kind"] == "calcification").any())
    config = FitConfig(
        seed=args.seed or 0, epochs=args.epochs, steps=args.steps, device=args.device or "cpu"
    )
    started = time.monotonic()
    tuned = tune(start.network, cases, participants, config, kept_patches(args.shards), labelled)
    minutes = round((time.monotonic() - started) / 60, 1)
    metrics = _metrics(args, start, cohort, cases, participants, tuned, config, minutes)
    args.output.mkdir(parents=True, exist_ok=True)
    tuned.network.description = dataclasses.replace(
        tuned.network.description, name=f"{start.description.name}-tuned"
    )
    provenance = {key: metrics[key] for key in ("training", "data")}
    save_model(tuned.network, args.output / f"{NAME}.safetensors", provenance)
    write_json(args.output / f"{NAME}.json", metrics)
    write_text(args.output / f"{NAME}.md", model_card(metrics) + what_tuning_bought(metrics))
    print(what_tuning_bought(metrics))
    print(f"To use it: network: {{model: {args.output.resolve() / NAME}.safetensors}}")


def read_cases(
    derivatives: Path, cohort: Cohort, model: LoadedModel
) -> tuple[list[Case], list[str]]:
    """Labelled candidates with their patches, a case per scan, and the participant of each.

    A scan that cannot be read is named and left out.

    Raises
    ------
    BadData
        None is left, or no label has a candidate.
    """
    cases, participants = [], []
    for number, row in enumerate(cohort.scans.to_dict("records")):
        try:
            cases.append(_read_case(derivatives, cohort, str(row["scan"]), number, model))
            participants.append(str(row["participant_id"]))
        except CmbError as error:
            log.warning("%s is not used: %s", row["scan"], error)
    if not cases:
        raise BadData(
            derivatives,
            "holds no labelled scan with SWI, high-passed phase, brain mask and candidates",
            "Give the output of cmb-bids for scans with phase",
        )
    if not any((case.candidates[KIND].labels == MICROBLEED).any() for case in cases):
        raise BadData(
            "--labels",
            "no labelled microbleed has a candidate within 5 mm",
            "Check that x y z are scanner mm (RAS+) of the very scans that were processed",
        )
    return cases, participants


def _read_case(
    derivatives: Path, cohort: Cohort, scan: str, number: int, model: LoadedModel
) -> Case:
    swi = read_volume(_image(derivatives, scan, "desc-swi"))
    shape = swi.data.shape
    highpass = read_on_grid(_image(derivatives, scan, "desc-highpass"), shape)
    mask = read_on_grid(_image(derivatives, scan, "desc-brain_mask"), shape)
    candidates = cohort.candidates[cohort.candidates["scan"] == scan]
    if "score" not in candidates:
        raise InputMissing(
            derivatives / scan, "has no table of candidates with scores", "Run cmb-bids on it"
        )
    points = candidates[["x", "y", "z"]].to_numpy(dtype=float).reshape(-1, 3)
    geometry = model.description.geometry.with_margin(MARGIN_VOXELS)
    patches = classifier_patches(swi.data, highpass, mask, swi.affine, points, geometry)
    truth = cohort.truth[cohort.truth["scan"] == scan]
    labels, counted = label_against(points, truth, same_place_mm(voxel_sizes(swi.affine)))
    found = CandidateSet(
        patches.astype(np.float16), points, labels, candidates["score"].to_numpy(np.float32)
    )
    axes = nib.orientations.io_orientation(swi.affine)[:, 0]
    voxel_mm = voxel_sizes(swi.affine)[np.argsort(axes)].tolist()  # right, anterior, superior
    recipe = {"protocol": "labelled", "scan": scan, "voxel_mm": voxel_mm}
    return Case(number, recipe, counted, {KIND: found})


def label_against(
    points: np.ndarray, truth: pd.DataFrame, same_place: float = LEAST_MM
) -> tuple[np.ndarray, list[dict]]:
    """Label candidates (n,) by a user's labels; rows of the lesions that count.

    Possible lesions and those over 10 mm teach nothing: candidates on them are ignored.
    """
    lesions = truth.assign(name=truth["kind"])
    lesions["diameter_mm"] = (
        pd.to_numeric(lesions["diameter_mm"]).fillna(UNKNOWN_DIAMETER_MM)
        if "diameter_mm" in lesions
        else UNKNOWN_DIAMETER_MM
    )
    ignored = ignored_lesions(lesions)
    labels = label_candidates(points, lesions[~ignored], same_place)
    doubtful = label_candidates(points, lesions[ignored], same_place) != OTHER
    labels[doubtful & (labels == OTHER)] = -1
    columns = ["name", "x", "y", "z", "diameter_mm"]
    return labels, lesions.loc[~ignored, columns].to_dict("records")


def _image(derivatives: Path, scan: str, description: str) -> Path:
    """The image of this description of a scan."""
    folder = derivatives / scan.split("_")[0]
    for path in sorted(folder.glob(f"**/anat/*{description}*.nii.gz")):
        if scan_of(path.name) == scan:
            return path
    raise InputMissing(
        folder, f"has no image *_{description}* of {scan}", "Only scans with phase can be used"
    )


def kept_patches(shards: Path | None) -> Patches | None:
    """Patches of simulated training cases to mix in, where a directory of them is given."""
    if shards is None:
        return None
    paths = [path for path in sorted(shards.glob("case-*.npz")) if split_of(path) == "train"]
    if not paths:
        raise InputMissing(shards, "holds no simulated training cases", "Check --shards")
    return load_training(paths[:MOST_KEPT_CASES], CONTENDERS[NAME])


def _metrics(
    args: argparse.Namespace,
    start: LoadedModel,
    cohort: Cohort,
    cases: Sequence[Case],
    participants: Sequence[str],
    tuned: Tuned,
    config: FitConfig,
    minutes: float,
) -> dict[str, Any]:
    """What the JSON and the card say: all of participants that were held out."""
    before = judged_before(start.network, cases)
    network, calibration = tuned.network, tuned.calibration
    labels = np.concatenate([case.candidates[KIND].labels for case in cases])
    command = f"cmb-lab train --init {start.description.name} --labels LABELS --derivatives RESULTS"
    return {
        "model": {
            "name": f"{start.description.name}-tuned",
            "version": network.description.version,
            "channels": network.description.channels,
            "geometry": dataclasses.asdict(network.description.geometry),
            "parameters": sum(p.numel() for p in network.parameters()),
        },
        "simulated": cohort.simulated,
        "data": {
            "made": len(cases),
            "description": f"cross-validated, starting from {start.description.name}",
            "split": {"participants": len(set(participants)), "parts": tuned.folds},
        },
        "training": {
            "seed": config.seed,
            "steps": tuned.steps,
            "batch_size": config.batch_size,
            "transplanted": config.transplanted,
            "drawn_veins": config.drawn_veins,
            "minutes": minutes,
            "device": config.device,
            "commit": commit(),
            "candidates": class_counts(labels),
            "simulated_cases_mixed_in": args.shards is not None,
            "initialised_from": start.identity,
            "command": f"{command} --seed {config.seed} --epochs {config.epochs:g}",
        },
        "calibration": dataclasses.asdict(calibration),
        "tuning": before_and_after(
            before,
            tuned.cases,
            [start.description.calibration.definite, calibration.definite],
            participants,
        ),
        "test": evaluate_cases(tuned.cases, calibration.definite, calibration.possible),
    }


def what_tuning_bought(metrics: dict[str, Any]) -> str:
    """Before and after (Markdown)."""
    kind = "simulated" if metrics["simulated"] else "labelled scans"
    return (
        f"\n## Before and after tuning ({kind}, participants held out)\n\n"
        f"{gain_table('definite calls', metrics['tuning'])}\n"
    )
