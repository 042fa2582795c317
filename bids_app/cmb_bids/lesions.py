"""From classified candidates to lesions: what each is, its extent, its size, where it lies.

A candidate is a point with three probabilities. It becomes a lesion when the probability of
being a microbleed, or a calcification, passes a threshold, unless a surer lesion beside it, or a
red nucleus, accounts for it. `cmb_bids.lesion_drawing` draws it. All lengths are mm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cmb_bids.anatomy import Place, label_lesions, to_mni
from cmb_bids.columns import LESION_COLUMNS
from cmb_bids.lesion_drawing import (
    Blob,
    DrawingConfig,
    draw_blob,
    group_blobs,
    paint_lesions,
    point_blob,
    without_what_it_touches,
)
from cmb_bids.lesion_size import measure_labels
from cmb_bids.moments import AGREES, CONTRADICTS, NO_PHASE, UNCLEAR, Phase, judge, measure_moments
from cmb_bids.red_nuclei import is_red_nucleus
from cmb_bids.same_lesion import FARTHEST_MM, same_place_mm, suppress_neighbours
from cmb_bids.volumes import voxel_sizes, world_to_voxel

MICROBLEED = "microbleed"
CALCIFICATION = "calcification"
CALCIFICATION_PROBABILITY = 0.5
# A second microbleed within 5 mm of a surer one leaves at most this share of the doubt that is left
# to a definite one. What is doubtful there is the first one's bloom, or iron around it.
NEIGHBOUR_DOUBT = 0.5
NEIGHBOUR_DEPTH = 0.75  # and it is at least this share as dark as the surer one
FARTHEST_CENTROID_MM = 3.0  # from the candidate; beyond, the candidate says where the lesion is
DEFINITE = "definite"
POSSIBLE = "possible"

CLASS_COLUMNS = ["p_microbleed", "p_calcification"]
# How often the sign of a clear moment is right for once that it is wrong (docs/lesions.md).
SIGNS_PER_WRONG_ONE = 50.0
LEAST_CHANGE = 0.005  # of a probability, for which lesions are drawn again

FALLBACK_THRESHOLDS = {DEFINITE: 0.5, POSSIBLE: 0.2}  # for a model whose report states none

REGION_COLUMNS = [
    "hemisphere",
    "mars_region",
    "mars_class",
    "bombs_region",
    "bombs_class",
    "structure",
    "region_source",
]
MNI_COLUMNS = ["x_mni", "y_mni", "z_mni"]
TABLE_COLUMNS = list(LESION_COLUMNS)


@dataclass(frozen=True)
class LesionConfig(DrawingConfig):
    """What makes a candidate a lesion and counts it, besides how it is drawn.

    Attributes
    ----------
    definite_probability, possible_probability : float or None
        Thresholds on the network's probability; None takes those of the model.
    minimum_diameter_mm : float
        Extent from which a lesion is counted (STRIVE: 2 mm); smaller ones are listed.
    maximum_diameter_mm : float
        Apparent diameter up to which a lesion is counted (STRIVE: 10 mm); larger ones are listed.
    """

    definite_probability: float | None = None
    possible_probability: float | None = None
    minimum_diameter_mm: float = 2.0
    maximum_diameter_mm: float = 10.0


def decide_thresholds(
    config: LesionConfig, model_thresholds: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """Thresholds (definite, possible): the configuration's, else the model's, else 0.5 and 0.2.

    Raises
    ------
    ValueError
        The possible threshold is above the definite one, or one is outside 0 to 1.
    """
    stated = {**FALLBACK_THRESHOLDS, **(model_thresholds or {})}
    definite = config.definite_probability
    possible = config.possible_probability
    definite = float(stated[DEFINITE] if definite is None else definite)
    # A user who lowers only the definite threshold means the possible one to follow.
    possible = min(float(stated[POSSIBLE]), definite) if possible is None else float(possible)
    if not 0 < possible <= definite <= 1:
        raise ValueError(
            f"lesion thresholds must satisfy 0 < possible <= definite <= 1; "
            f"got possible {possible:g} and definite {definite:g}"
        )
    return definite, possible


def decide_classes(
    probabilities: pd.DataFrame, definite: float, possible: float
) -> tuple[np.ndarray, np.ndarray]:
    """Class and certainty of each candidate.

    The likelier of microbleed and calcification: a microbleed when its probability passes a
    threshold, a calcification when one of the two is likelier than not; a definite one when it is
    that by itself. The thresholds were chosen for microbleeds.

    Parameters
    ----------
    probabilities : DataFrame of n rows
        ``p_microbleed`` and ``p_calcification``; missing values count as zero.
    definite, possible : float
        Thresholds of microbleeds, possible <= definite.

    Returns
    -------
    lesion_class, certainty : (n,) arrays of str
        Both empty strings for a candidate that is neither.
    """
    microbleed, calcification = _blood_and_calcium(probabilities).T
    is_microbleed = (microbleed >= calcification) & (microbleed >= possible)
    likely = microbleed + calcification >= CALCIFICATION_PROBABILITY
    is_calcification = ~is_microbleed & likely & (calcification > microbleed)
    lesion_class = np.where(
        is_microbleed, MICROBLEED, np.where(is_calcification, CALCIFICATION, "")
    )
    sure = np.where(
        is_microbleed, microbleed >= definite, calcification >= CALCIFICATION_PROBABILITY
    )
    certainty = np.where(lesion_class == "", "", np.where(sure, DEFINITE, POSSIBLE))
    return lesion_class, certainty


def empty_table() -> pd.DataFrame:
    """The lesion table of a scan without lesions, with ``lesion_class`` in front."""
    return pd.DataFrame({name: [] for name in ["lesion_class", *TABLE_COLUMNS]})


def segment_lesions(
    candidates: pd.DataFrame,
    probabilities: pd.DataFrame,
    normalized: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    swi: np.ndarray | None = None,
    regions: np.ndarray | None = None,
    config: LesionConfig | None = None,
    model_thresholds: Mapping[str, float] | None = None,
    gate_passed: bool = True,
    places: Mapping[int, Place] | None = None,
    mni_affine: Sequence[Sequence[float]] | None = None,
    phase: Phase | str = NO_PHASE,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Turn classified candidates into lesions with an extent, a size and a place.

    Parameters
    ----------
    candidates : DataFrame
        ``index``, ``x``, ``y``, ``z`` (scanner mm) and ``radius_mm``.
    probabilities : DataFrame
        ``index``, ``p_microbleed``, ``p_calcification`` of each candidate.
    normalized : (x, y, z) array
        Bias-corrected magnitude.
    mask : (x, y, z) array
        Brain, nonzero inside.
    affine : (4, 4) array
        Voxel to scanner mm.
    swi : (x, y, z) array, optional
        Susceptibility-weighted image; microbleeds are drawn on it where given. Calcifications
        are always drawn on the magnitude: the susceptibility weighting darkens the poles of
        their field, not the calcification.
    regions : (x, y, z) integer array, optional
        Atlas labels; without it the place of a lesion is missing.
    config : LesionConfig, optional
    model_thresholds : mapping, optional
        ``definite`` and ``possible`` thresholds of the model.
    gate_passed : bool
        Whether the brain mask can be trusted; if not, no lesion is counted.
    places : mapping, optional
        What codes in ``regions`` stand for, where a parcellation came before the atlas.
    mni_affine : (4, 4) nested sequence, optional
        Scanner to MNI152 mm; without it MNI coordinates are missing, and red nuclei are not told
        from microbleeds.
    phase : Phase or str
        What magnetic moments are fitted to, or why they cannot be.

    Returns
    -------
    table : DataFrame
        ``lesion_class`` (microbleed or calcification), then `TABLE_COLUMNS`; the most probable
        lesions first.
    labels : (x, y, z) int16 array
        Label ``index`` on the voxels of each lesion.

    Raises
    ------
    ValueError
        Images differ in shape, or the thresholds are inconsistent.
    """
    config = config or LesionConfig()
    for image in (mask, swi, regions):
        if image is not None and image.shape != normalized.shape:
            raise ValueError(f"image of shape {image.shape} on a grid of {normalized.shape}")
    definite, possible = decide_thresholds(config, model_thresholds)
    brain = np.asarray(mask) > 0
    images = {CALCIFICATION: normalized, MICROBLEED: normalized if swi is None else swi}

    def drawn(said: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        same_place = same_place_mm(voxel_sizes(affine))
        found = _keep_lesions(candidates, said, definite, possible, same_place)
        rows, blobs = _draw_lesions(found, images, brain, affine, mni_affine, config, definite)
        if not rows:
            nothing = empty_table().assign(candidate=[])
            return nothing, np.zeros(normalized.shape, dtype=np.int16)
        table, labels = _measured(rows, blobs, images[MICROBLEED], affine)
        return _add_moments(table, labels, phase, normalized, brain, affine), labels

    table, labels = drawn(probabilities)
    weighed = weigh_by_signs(table, probabilities)
    changes = np.abs(_blood_and_calcium(weighed) - _blood_and_calcium(probabilities))
    if changes.max(initial=0) > LEAST_CHANGE:
        table, labels = drawn(weighed)
    if not len(table):
        return empty_table(), labels
    # Calcium has a clear moment; what has none is mostly a vein or iron (docs/lesions.md).
    unclear = (table["lesion_class"] == CALCIFICATION) & (table["moment_verdict"] == UNCLEAR)
    table.loc[unclear, "certainty"] = POSSIBLE
    points = table[["x", "y", "z"]].to_numpy(dtype=float)
    table[MNI_COLUMNS] = to_mni(points, mni_affine).round(2)
    if regions is None:
        table = table.assign(**dict.fromkeys(REGION_COLUMNS, None))
    else:
        table[REGION_COLUMNS] = label_lesions(points, regions, affine, places)[REGION_COLUMNS]
    table["counted"] = _is_counted(table, config) & gate_passed
    return table[["lesion_class", *TABLE_COLUMNS]], labels


def _keep_lesions(
    candidates: pd.DataFrame,
    probabilities: pd.DataFrame,
    definite: float,
    possible: float,
    same_place: float,
) -> pd.DataFrame:
    """Candidates that are lesions, the most probable first, ties by position.

    One within ``same_place`` mm of a more probable one is left out: it is the same lesion, its halo
    in the phase or what it touches, and drawn for itself it would be counted twice.
    """
    wanted = ["index", *CLASS_COLUMNS]
    found = candidates.merge(probabilities[wanted], on="index", validate="one_to_one")
    found["candidate"] = found["index"]
    found["lesion_class"], found["certainty"] = decide_classes(found, definite, possible)
    found = found[found["lesion_class"] != ""].copy()
    found[["probability", "p_calcification"]] = _blood_and_calcium(found)
    found["likelier"] = found[["probability", "p_calcification"]].max(axis=1)
    found = found.sort_values(
        ["likelier", "x", "y", "z"], ascending=[False, True, True, True], kind="stable"
    )
    points = found[["x", "y", "z"]].to_numpy(dtype=float)
    found = found.iloc[suppress_neighbours(points, found["likelier"].to_numpy(), same_place)]
    return found.reset_index(drop=True)


def _draw_lesions(
    found: pd.DataFrame,
    images: Mapping[str, np.ndarray],
    brain: np.ndarray,
    affine: np.ndarray,
    mni_affine: Sequence[Sequence[float]] | None,
    config: LesionConfig,
    definite: float,
) -> tuple[list[dict[str, Any]], list[Blob]]:
    """Draw what was called, on the image of its class, without what is no lesion of its own.

    ``found`` has the surest first. The rows and blobs returned keep that order.
    """
    calls: list[tuple[dict[str, Any], Blob]] = []
    kept: list[tuple[dict[str, Any], Blob]] = []
    points = world_to_voxel(affine, found[["x", "y", "z"]].to_numpy(dtype=float))
    for row, point in zip(found.to_dict("records"), points, strict=True):
        image = images[row["lesion_class"]]
        blob = draw_blob(image, brain, affine, point, float(row["radius_mm"]), config)
        if blob is None:  # not darker than around
            blob = point_blob(point, image.shape)
        elif row["lesion_class"] == MICROBLEED:
            blob = without_what_it_touches(blob, affine, config.maximum_diameter_mm)
        is_own = row["lesion_class"] != MICROBLEED or not (
            _belongs_to_a_surer_one(row, blob, calls, definite)
            or is_red_nucleus(blob, _position_mm(row), image, brain, affine, mni_affine, config)
        )
        calls.append((row, blob))
        if is_own:
            kept.append((row, blob))
    return [row for row, _ in kept], [blob for _, blob in kept]


def _belongs_to_a_surer_one(
    row: Mapping[str, Any],
    blob: Blob,
    surer: Sequence[tuple[Mapping[str, Any], Blob]],
    definite: float,
) -> bool:
    """Whether a microbleed is doubtful, or much fainter, beside one of the ``surer`` calls.

    The network was taught nothing of what lies so near a microbleed, which it sees off the centre
    of the patch. The surer call counts whatever became of it: iron beside a red nucleus is no more
    a microbleed than the nucleus.
    """
    return any(
        other["lesion_class"] == MICROBLEED
        and np.linalg.norm(_position_mm(row) - _position_mm(other)) <= FARTHEST_MM
        and (
            1 - row["probability"] > NEIGHBOUR_DOUBT * (1 - definite)
            or blob.seed_depth < NEIGHBOUR_DEPTH * drawn.seed_depth
        )
        for other, drawn in surer
    )


def _position_mm(row: Mapping[str, Any]) -> np.ndarray:
    """Where a candidate is (3,), scanner mm."""
    return np.array([row["x"], row["y"], row["z"]], dtype=float)


def _is_counted(table: pd.DataFrame, config: LesionConfig) -> np.ndarray:
    """Whether lesions are within the limits of size.

    A lesion of one or two thick voxels has the volume of a sphere under 2 mm though it is longer
    in the image, and a reader measures what is longest: the lower limit is on the extent. The
    upper one stays on the diameter, because an extent includes the edges of voxels.
    """
    large_enough = table["extent_mm"] >= config.minimum_diameter_mm
    return (large_enough & (table["diameter_mm"] <= config.maximum_diameter_mm)).to_numpy()


def _measured(
    rows: Sequence[Mapping[str, Any]], blobs: list[Blob], image: np.ndarray, affine: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """Lesions of drawn calls, the surest first: their rows and their voxels' labels."""
    groups = group_blobs(blobs)
    labels = paint_lesions([[blobs[k] for k in group] for group in groups], image, image.shape)
    # The first member of a group is its most probable one.
    table = pd.DataFrame([rows[group[0]] for group in groups])
    return _complete(table, measure_labels(labels, len(groups), affine)), labels


def weigh_by_signs(table: pd.DataFrame, probabilities: pd.DataFrame) -> pd.DataFrame:
    """Probabilities in which the signs of the moments have had their say.

    The sign of a moment that is clear is right `SIGNS_PER_WRONG_ONE` times for once that it is
    wrong, and changes the odds of blood against calcium by as much. So it decides where the network
    doubts between the two, and hardly matters where that is sure.

    Parameters
    ----------
    table : DataFrame
        Lesions: ``candidate``, ``lesion_class`` and ``moment_verdict``.
    probabilities : DataFrame
        ``index``, ``p_microbleed``, ``p_calcification`` of each candidate.

    Returns
    -------
    DataFrame
        Like ``probabilities``; the sum of the two stays.
    """
    clear = table[table["moment_verdict"].isin((AGREES, CONTRADICTS))]
    is_blood = (clear["lesion_class"] == MICROBLEED) == (clear["moment_verdict"] == AGREES)
    rows = pd.Index(probabilities["index"]).get_indexer(clear["candidate"])
    chances = _blood_and_calcium(probabilities)
    said = chances[rows]
    now = said.copy()
    now[np.arange(len(rows)), np.where(is_blood, 0, 1)] *= SIGNS_PER_WRONG_ONE
    chances[rows] = now * (said.sum(axis=1) / now.sum(axis=1))[:, None]
    return probabilities.assign(**dict(zip(CLASS_COLUMNS, chances.T, strict=True)))


def _blood_and_calcium(probabilities: pd.DataFrame) -> np.ndarray:
    """Chances (n, 2) of being a microbleed and a calcification; missing ones are zero."""
    return np.nan_to_num(probabilities[CLASS_COLUMNS].to_numpy(dtype=float, na_value=0.0))


def _complete(table: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Add index, name and measures to the rows of the lesions.

    A lesion is where its voxels are on average, unless that is far from the candidate: then it was
    drawn together with something larger that it touches, whose middle is not the lesion's.
    """
    points = table[["x", "y", "z"]].to_numpy(dtype=float)
    centroids = measured[["x", "y", "z"]].to_numpy(dtype=float)
    near = np.linalg.norm(centroids - points, axis=1) <= FARTHEST_CENTROID_MM
    measured = measured.assign(
        **dict(zip("xyz", np.where(near[:, None], centroids, points.round(2)).T, strict=True))
    )
    table = table.drop(columns=["x", "y", "z"]).reset_index(drop=True)
    table = pd.concat([table, measured], axis=1)
    table["index"] = np.arange(1, len(table) + 1)
    table["name"] = [
        f"{kind}-{index}" for kind, index in zip(table["lesion_class"], table["index"], strict=True)
    ]
    for column in ("probability", "p_calcification"):
        table[column] = table[column].round(4)
    return table


def _add_moments(
    table: pd.DataFrame,
    labels: np.ndarray,
    phase: Phase | str,
    magnitude: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
) -> pd.DataFrame:
    """Add the magnetic moments, and whether they agree with the network's classes."""
    points = table[["x", "y", "z"]].to_numpy(dtype=float)
    moments = measure_moments(points, labels, phase, magnitude, brain, affine)
    moments["moment_verdict"] = [
        judge(moment, sd, kind == MICROBLEED)
        for moment, sd, kind in zip(
            moments["moment_ppm_mm3"],
            moments["moment_sd_ppm_mm3"],
            table["lesion_class"],
            strict=True,
        )
    ]
    return pd.concat([table, moments], axis=1)


def split_class(
    table: pd.DataFrame, labels: np.ndarray, lesion_class: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """Table (`TABLE_COLUMNS`) and label image of one class, numbered from 1.

    Parameters
    ----------
    table, labels
        As `segment_lesions` returns them.
    lesion_class : str
        ``microbleed`` or ``calcification``.
    """
    chosen = table[table["lesion_class"] == lesion_class].reset_index(drop=True)
    renumber = np.zeros(len(table) + 1, dtype=np.int16)
    renumber[chosen["index"].to_numpy(dtype=int)] = np.arange(1, len(chosen) + 1)
    chosen["index"] = np.arange(1, len(chosen) + 1)
    chosen["name"] = [f"{lesion_class}-{index}" for index in chosen["index"]]
    return chosen[TABLE_COLUMNS], renumber[labels]
