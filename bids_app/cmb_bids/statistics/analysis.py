"""All statistics of a cohort in one dictionary: what group.html shows and the tables hold."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from cmb_bids.burden import BURDEN_CLASSES
from cmb_bids.statistics.models import fit_models
from cmb_bids.statistics.participants import Cohort, prepare
from cmb_bids.statistics.prevalence import correct_prevalence, tabulate_prevalence
from cmb_bids.statistics.protocol import NAME as PROTOCOL
from cmb_bids.statistics.protocol import name_protocols
from cmb_bids.statistics.quality import tabulate_quality
from cmb_bids.statistics.reference import make_reference
from cmb_bids.statistics.settings import AnalysisSettings

DIGITS = 6  # significant; more would only say on which machine it was computed


def analyse_cohort(scans: pd.DataFrame, settings: AnalysisSettings) -> dict[str, Any]:
    """Statistics over a cohort.

    Parameters
    ----------
    scans : DataFrame
        A row per scan (or participant without one), as in group_microbleeds.csv: at least
        ``participant_id`` and ``cmb_definite``. Text or numbers; ``n/a`` or NaN is missing. Of
        several scans of a participant one is used, as in the phenotype table.
    settings : AnalysisSettings

    Returns
    -------
    dict
        Ready for JSON; docs/statistics.md and group_statistics.json describe it. What cannot be
        given is missing or has a ``problem``, and ``limits`` says why.

    Raises
    ------
    KeyError
        ``participant_id`` or ``cmb_definite`` is missing.
    """
    cohort = prepare(scans, settings)
    prevalence = tabulate_prevalence(cohort.people)
    corrected = correct_prevalence(prevalence, settings.detector) if settings.detector else []
    models = fit_models(cohort)
    protocols = name_protocols(cohort.everybody)
    reference: dict[str, Any] = {
        "model": None, "notes": [], "problem": "switched off in the configuration", "rows": []
    }  # fmt: skip
    if settings.reference:
        reference = make_reference(cohort.people, cohort.protocol.values.nunique())
    classes = cohort.people["burden_class"].value_counts()
    analysis = {
        "participants": cohort.totals,
        "covariates": {
            "named": cohort.named,
            "used": [one.name for one in cohort.adjusting],
            "left_out": cohort.left_out,
        },
        "prevalence": prevalence,
        "corrected_prevalence": corrected,
        "models": models,
        "burden": [{"burden_class": c, "n": int(classes.get(c, 0))} for c in BURDEN_CLASSES],
        "reference": reference,
        "quality": _quality(cohort, protocols),
    }
    analysis["limits"] = list_limits(cohort, analysis, settings)
    return plain_numbers(analysis)


def _quality(cohort: Cohort, protocols: pd.Series) -> dict[str, Any]:
    """By site where there is one, else by protocol where there are several."""
    everybody, site = cohort.everybody, cohort.roles.get("site")
    if site is not None:
        return tabulate_quality(everybody, "site", everybody[site])
    if protocols.nunique() > 1:
        return tabulate_quality(everybody, PROTOCOL, protocols)
    return tabulate_quality(everybody, "all", pd.Series("all", index=everybody.index))


def list_limits(cohort: Cohort, analysis: dict[str, Any], settings: AnalysisSettings) -> list[str]:
    """What could not be given and why, in plain sentences."""
    people, totals = cohort.people, cohort.totals
    limits = []
    if totals["analysed"] == 0:
        limits.append("No participant has a count that can be used, so there are no statistics.")
    elif totals["positive"] == 0:
        limits.append(
            f"None of the {totals['analysed']} participants has a definite microbleed: prevalence "
            "has an interval, but nothing can be modelled."
        )
    dropped = totals["not_processed"] + totals["failed_quality"]
    if dropped:
        limits.append(
            f"{dropped} of {totals['total']} participants are not in the statistics: "
            f"{totals['not_processed']} not processed, {totals['failed_quality']} failed the "
            "quality check. If that is not by chance, the figures are biased."
        )
    for role in ("age", "sex"):
        missing = int(people[role].isna().sum())
        if missing:
            limits.append(
                f"{missing} of {len(people)} participants have no usable {role}: they are in the "
                "figures for everybody, not in those by that covariate, nor in models that use it."
            )
    limits += [f"Covariate '{n}' is left out: {why}." for n, why in cohort.left_out.items()
               if n != PROTOCOL]  # fmt: skip
    limits += [_on_protocol(cohort)] if PROTOCOL in cohort.left_out and len(people) else []
    limits += [f"{note[0].upper()}{note[1:]}." for note in cohort.notes]
    if not settings.detector:
        limits.append(
            "Prevalence is not corrected for the detector's errors: no sensitivity and specificity "
            "for participants are given (group.detector in the configuration)."
        )
    limits += [
        f"{_title(model)} could not be fitted: {model['problem']}."
        for model in analysis["models"]
        if model["problem"]
    ]
    if analysis["reference"]["problem"]:
        limits.append(f"No reference curves: {analysis['reference']['problem']}.")
    return limits


def _title(model: dict[str, Any]) -> str:
    return f"The model of '{model['outcome']}'"


def _on_protocol(cohort: Cohort) -> str:
    """Why the protocol is not adjusted for."""
    levels = cohort.protocol.values.unique()
    if len(levels) == 1:
        return f"Models need no adjustment for protocol: all scans are alike ({levels[0]})."
    return f"Models are not adjusted for protocol: {cohort.left_out[PROTOCOL]}."


def plain_numbers(value: Any) -> Any:
    """Numbers rounded to `DIGITS`; what is not finite becomes None, which JSON knows."""
    if isinstance(value, dict):
        return {key: plain_numbers(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_numbers(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
