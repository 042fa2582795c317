"""The statistics of a cohort on disk: what they are asked for, and the files they end in."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from cmb_bids.cohort_scans import PROCESSED
from cmb_bids.cohort_tables import as_table, write_cells
from cmb_bids.errors import BadData, UsageError
from cmb_bids.statistics import AnalysisSettings, Detector
from cmb_bids.statistics.analysis import analyse_cohort
from cmb_bids.statistics.participants import OUTCOMES
from cmb_bids.volumes import read_json, write_json

logger = logging.getLogger(__name__)

MODELS = Path(__file__).with_name("data") / "models"
LESION_NUMBERS = ("x_mni", "y_mni", "z_mni", "x", "y", "z", "probability", "p_calcification",
                  "diameter_mm", "volume_mm3", "extent_mm")  # fmt: skip

_INTERVAL = {
    "low": {"Description": "Lower limit of the 95 % confidence interval."},
    "high": {"Description": "Upper limit of the 95 % confidence interval."},
}
PREVALENCE_COLUMNS: dict[str, dict[str, Any]] = {
    "outcome": {"Description": "What was counted as positive.", "Levels": OUTCOMES},
    "age_band": {"Description": "Age in years, or 'all' for everybody, of unknown age too."},
    "sex": {"Description": "Sex, or 'all' for everybody, of unknown sex too."},
    "n": {"Description": "Participants with a usable count."},
    "positive": {"Description": "Those of them with the outcome."},
    "prevalence": {"Description": "positive / n."},
    "low": {"Description": "Lower limit of the 95 % Wilson interval of prevalence."},
    "high": {"Description": "Upper limit of the 95 % Wilson interval of prevalence."},
    "corrected": {
        "Description": (
            "Prevalence corrected for the detector's sensitivity and specificity (Rogan & Gladen "
            "1978); for the outcome 'any' only, n/a where those are not known."
        )
    },
    "corrected_low": {
        "Description": "Lower limit of the 95 % interval of corrected (Lang & Reiczigel 2014)."
    },
    "corrected_high": {"Description": "Upper limit of the 95 % interval of corrected."},
}
MODEL_COLUMNS: dict[str, dict[str, Any]] = {
    "outcome": {
        "Description": (
            "What was modelled: having any, lobar, or deep or infratentorial microbleeds; the "
            "pattern; the count of definite microbleeds."
        )
    },
    "model": {"Description": "The model that was used."},
    "n": {"Description": "Participants in the model: those with every covariate."},
    "events": {"Description": "Those of them with the outcome, or with a count above zero."},
    "effect": {"Description": "What the estimate is.", "Levels": {
        "odds ratio": "Ratio of odds", "rate ratio": "Ratio of mean counts"}},
    "reference": {"Description": "Levels that the others are compared with."},
    "term": {"Description": "Covariate, and its step or level; n/a where nothing was fitted."},
    "estimate": {"Description": "The ratio, adjusted for all other terms of the model."},
    **_INTERVAL,
    "p": {"Description": "Two-sided p-value of a ratio of 1, not corrected for multiple tests."},
    "aic": {"Description": "Akaike information criterion of the model; n/a for penalised fits."},
    "notes": {"Description": "What to know about the model; separated by '; '."},
    "problem": {"Description": "Why the model could not be fitted; n/a where it was."},
}  # fmt: skip
REFERENCE_COLUMNS: dict[str, dict[str, Any]] = {
    "sex": {"Description": "Sex, or 'all' where there is one curve for everybody."},
    "age": {"Description": "Whole age; ages with too few participants have no row.",
            "Units": "year"},
    "n_near": {"Description": "Participants of that sex within 2.5 years of that age."},
    "prevalence": {"Description": "Modelled share with at least one definite microbleed."},
    "prevalence_low": {"Description": "Lower limit of the 95 % interval of prevalence."},
    "prevalence_high": {"Description": "Upper limit of the 95 % interval of prevalence."},
    "mean": {"Description": "Modelled mean number of definite microbleeds."},
    **{
        f"p{share}": {"Description": f"Smallest count that at least {share} % do not exceed."}
        for share in (50, 75, 90, 95, 99)
    },
}  # fmt: skip


# --------------------------------------------------------------------------- what is asked


def read_settings(
    directory: Path,
    section: Mapping[str, Any] | None,
    covariates: Iterable[str] | None,
    participants: pd.DataFrame,
    scans: pd.DataFrame,
) -> AnalysisSettings:
    """The settings of the statistics, held against the columns there are.

    Parameters
    ----------
    directory : Path
        The derivative dataset, with participants.json where there is one.
    section : mapping, optional
        Section ``group`` of the configuration.
    covariates : iterable of str, optional
        From the command line.
    participants, scans : DataFrame
        participants.tsv, and the scans rows.

    Raises
    ------
    UsageError
        A column that is asked for does not exist.
    """
    path = directory / "participants.json"
    descriptions: dict[str, Any] = {}
    if path.is_file():
        try:
            descriptions = read_json(path)
        except BadData as error:
            logger.warning("%s Its levels are not used.", error)
    named = None if covariates is None else list(covariates)
    settings = AnalysisSettings.from_config(section, named, descriptions)
    where = "--covariates" if named is not None else "configuration, group.covariates"
    asked = [(where, name) for name in settings.covariates or ()]
    for role in ("age", "sex", "site"):
        if getattr(settings, role):
            asked.append((f"configuration, group.{role}_column", getattr(settings, role)))
    for where, name in asked:
        if name not in participants.columns and name not in scans.columns:
            known = ", ".join(participants.columns) or "none but participant_id"
            raise UsageError(
                where,
                f"'{name}' is no column of {directory / 'participants.tsv'}",
                f"Name one of its columns ({known}), or add it to participants.tsv of the raw "
                "dataset",
            )
    if settings.detector is None:
        settings = replace(settings, detector=shipped_detector(scans))
    return settings


def shipped_detector(scans: pd.DataFrame) -> Detector | None:
    """What the model card says of participants, where all scans were read by one shipped model.

    Returns
    -------
    Detector or None
        None where the models differ, are not shipped, or their card has no such figures.
    """
    used = scans.loc[scans["processing"] == PROCESSED, "model"].unique()
    if len(used) != 1:
        return None
    name, _, version = str(used[0]).partition(" ")
    path = MODELS / f"{Path(name).name}.json"
    if not path.is_file():
        return None
    card = read_json(path)
    if str(card.get("model", {}).get("version")) != version:
        return None
    return detector_of_card(card, name)


def detector_of_card(card: Mapping[str, Any], name: str) -> Detector | None:
    """Sensitivity and specificity for participants, from the counts in a model card."""
    test = card.get("test", {}).get("definite", {})
    keys = ("cases", "cases_without_microbleeds", "cases_with_microbleeds_called",
            "cases_without_microbleeds_called")  # fmt: skip
    if any(test.get(key) is None for key in keys):
        return None
    cases, n_without, found, false = (int(test[key]) for key in keys)
    n_with = cases - n_without
    if not n_with or not n_without or found / n_with <= false / n_without:
        return None
    kind = "simulated test cases" if card.get("simulated", True) else "test cases"
    source = f"card of the model {name}: {n_with} {kind} with microbleeds and {n_without} without"
    return Detector(found / n_with, n_with, 1 - false / n_without, n_without, source)


# ------------------------------------------------------------------------------- the files


def write_statistics(
    directory: Path, chosen: pd.DataFrame, settings: AnalysisSettings, lesions: pd.DataFrame
) -> list[Path]:
    """Analyse a cohort and write what came of it.

    Parameters
    ----------
    directory : Path
        The derivative dataset.
    chosen : DataFrame of text
        A row per participant, with covariates.
    settings : AnalysisSettings
    lesions : DataFrame of text
        Every lesion of every scan.

    Returns
    -------
    list of Path
        group_statistics.json, the tables beside it with their dictionaries, group.html.
    """
    analysis = analyse_cohort(chosen, settings)
    path = directory / "group_statistics.json"
    write_json(path, analysis)
    tables = {
        "group_prevalence": (_prevalence_rows(analysis), PREVALENCE_COLUMNS),
        "group_models": (_model_rows(analysis), MODEL_COLUMNS),
        "group_reference": _reference_rows(analysis),
    }
    files = [path]
    for name, (rows, columns) in tables.items():
        table = directory / f"{name}.tsv"
        described: dict[str, Any] = dict(columns)
        if name == "group_reference":
            described = {**described, **_describe_reference(analysis)}
        write_json(table.with_suffix(".json"), described)
        write_cells(table, as_table(rows, columns))
        files += [table, table.with_suffix(".json")]
    return [*files, *_write_page(directory, analysis, chosen, lesions)]


def _prevalence_rows(analysis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Prevalence with its corrected value beside it."""
    keys = ("outcome", "age_band", "sex")
    corrected = {tuple(row[k] for k in keys): row for row in analysis["corrected_prevalence"]}
    rows = []
    for row in analysis["prevalence"]:
        other = corrected.get(tuple(row[k] for k in keys), {})
        rows.append(
            {
                **row,
                "corrected": other.get("prevalence"),
                "corrected_low": other.get("low"),
                "corrected_high": other.get("high"),
            }
        )
    return rows


def _model_rows(analysis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per term; one without a term for a model that could not be fitted."""
    return [
        {**model, **term, "notes": "; ".join(model["notes"])}
        for model in analysis["models"]
        for term in model["terms"] or [{}]
    ]


def _reference_rows(
    analysis: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A row per sex and age with P(0), P(1), ... in columns of their own."""
    rows = analysis["reference"]["rows"]
    longest = max((len(row["probabilities"]) for row in rows), default=0)
    columns = dict(REFERENCE_COLUMNS)
    for count in range(longest):
        columns[f"probability_{count}"] = {
            "Description": f"Modelled probability of exactly {count} definite microbleeds."
        }
    spread = [
        {**row, **{f"probability_{k}": p for k, p in enumerate(row["probabilities"])}}
        for row in rows
    ]
    return spread, columns


def _describe_reference(analysis: Mapping[str, Any]) -> dict[str, Any]:
    """What the curves are, beside the descriptions of the columns."""
    reference = analysis["reference"]
    return {
        "ReferenceMetadata": {
            "Description": (
                "Number of definite microbleeds by age and sex in one cohort, as one detector "
                "counts them. The mid-percentile of a count k is 100 (P(0) + ... + P(k - 1) + "
                "P(k) / 2); its z-score is the standard normal quantile of that. Between two "
                "whole ages the probabilities are interpolated; other ages are not covered. "
                "Research use only."
            ),
            "Model": reference["model"] or "none",
            "Notes": reference["notes"],
            "Problem": reference["problem"] or "none",
        }
    }


def _write_page(
    directory: Path, analysis: dict[str, Any], chosen: pd.DataFrame, lesions: pd.DataFrame
) -> list[Path]:
    """group.html, with the lesions of the scans that stand for the participants."""
    from cmb_bids.report.group_page import write_group_page

    return [write_group_page(directory / "group.html", analysis, read_lesions(lesions, chosen))]


def read_lesions(lesions: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Lesions of the chosen scans, numbers as numbers and ``counted`` as truth values."""
    keys = ["participant_id", "session_id", "filename"]
    own = lesions.merge(chosen[keys], on=keys, how="inner")
    for name in own.columns.intersection(list(LESION_NUMBERS)):
        own[name] = pd.to_numeric(own[name], errors="coerce")
    return own.assign(counted=own["counted"] == "true")
