"""The page of a cohort: who was analysed, how common, how many, where, and what it cannot say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cmb_bids.report import figures
from cmb_bids.report.calculator import make_calculator
from cmb_bids.report.page import (
    Block,
    Bullets,
    Cell,
    Details,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    p_value,
    percent,
    percent_interval,
    render_page,
    show,
)
from cmb_bids.volumes import write_text

TITLE = "Cerebral microbleeds across the cohort"
ALL = "all"
# What outcomes of the statistics are called here.
OUTCOMES = {
    "any": "At least one definite microbleed",
    "lobar": "At least one lobar microbleed",
    "deep_infratentorial": "At least one deep or infratentorial microbleed",
    "strictly_lobar": "Strictly lobar",
    "strictly_deep_infratentorial": "Strictly deep or infratentorial",
    "mixed": "Lobar, and deep or infratentorial (mixed)",
    "pattern": "Pattern against none",
    "count": "Number of definite microbleeds",
}
CANNOT_SAY = (
    "It does not say whether anyone has a disease. A percentile is a place among these "
    "participants, not a finding about a patient.",
    "It does not say what causes what: everybody was seen once, and who takes part differs from "
    "who does not.",
    "It does not hold for other scanners or protocols. Field strength, echo time and slice "
    "thickness change how many microbleeds are seen two to three times over.",
    "It counts what the detector marked. Missed lesions and false calls are in every number; the "
    "intervals show chance only.",
    "It says nothing of those who were not processed or whose scan failed its check: they are "
    "left out, not counted as free of microbleeds.",
    "Its p-values are not corrected for the number of tests.",
)


def write_group_page(
    path: str | os.PathLike[str],
    analysis: Mapping[str, Any],
    lesions: pd.DataFrame | None,
    title: str = TITLE,
) -> Path:
    """Write the page of a cohort, whole or not at all.

    Parameters
    ----------
    path : path-like
        Where to, usually ``group.html``.
    analysis : mapping
        What `cmb_bids.statistics` found. Parts may be empty or absent; the page then says what
        cannot be given.
    lesions : DataFrame, optional
        All lesions with ``x_mni``, ``y_mni``, ``z_mni`` (mm) and ``kind``.
    title : str, optional

    Raises
    ------
    CannotCreate, IOFailure
        The page cannot be written.
    """
    sections = [
        _participants(analysis),
        _prevalence(analysis),
        _burden(analysis),
        _models(analysis),
        _places(lesions),
        _reference(analysis),
        _quality(analysis),
        _limits(analysis),
    ]
    write_text(path, render_page(title, sections, made_by="cmb-bids, group level"))
    return Path(path)


def outcome_name(outcome: str) -> str:
    """An outcome in words."""
    return OUTCOMES.get(outcome, outcome.replace("_", " "))


def _part(analysis: Mapping[str, Any], name: str) -> Any:
    return analysis.get(name) or {}


def _missing(what: str, why: str | None = None) -> Text:
    return Text(f"{what} cannot be given{f': {why}' if why else ''}.", "note")


# --------------------------------------------------------------------------- participants


def _participants(analysis: Mapping[str, Any]) -> Section:
    """Who was analysed, and with which covariates."""
    people = _part(analysis, "participants")
    names = {
        "total": "participants",
        "analysed": "analysed",
        "positive": "with a definite microbleed",
        "possible_only": "with possible ones only",
        "failed_quality": "left out: failed quality check",
        "not_processed": "left out: not processed",
    }
    facts = [(text, people[name]) for name, text in names.items() if name in people]
    blocks: list[Block] = [Facts(facts)] if facts else [_missing("Numbers of participants")]
    analysed, positive = people.get("analysed"), people.get("positive")
    if analysed and positive is not None:
        blocks.append(
            Text(
                f"{show(positive)} of {show(analysed)} analysed participants "
                f"({percent(positive / analysed)}) have at least one definite microbleed of 2 to "
                "10 mm, as the detector marked them and before any correction."
            )
        )
    return Section("Participants", blocks, [Section("Covariates", _covariates(analysis))])


def _covariates(analysis: Mapping[str, Any]) -> list[Block]:
    covariates = _part(analysis, "covariates")
    used, left_out = covariates.get("used") or [], covariates.get("left_out") or {}
    blocks: list[Block] = []
    if used:
        blocks.append(Text(f"Models adjust for: {', '.join(map(str, used))}."))
    else:
        blocks.append(Text("No covariate could be used, so nothing is adjusted.", "warning"))
    if left_out:
        rows = [[name, str(reason)] for name, reason in left_out.items()]
        blocks.append(Table("Covariates left out", ["covariate", "why"], rows))
    return blocks


# ----------------------------------------------------------------------------- prevalence


def _prevalence(analysis: Mapping[str, Any]) -> Section:
    """Shares by age band and sex, as marked and corrected."""
    rows = list(analysis.get("prevalence") or [])
    if not rows:
        return Section("How common", [_missing("Prevalence", "nobody was analysed")])
    blocks: list[Block] = [
        Text("Intervals are Wilson's, 95 %. They show chance, not errors of the detector.")
    ]
    for outcome in dict.fromkeys(row["outcome"] for row in rows):
        own = [row for row in rows if row["outcome"] == outcome]
        content = [*_prevalence_figure(own, f"prevalence-{outcome}"), _prevalence_table(own)]
        first = outcome == rows[0]["outcome"]
        blocks += content if first else [Details(outcome_name(outcome), content)]
    return Section("How common", blocks, [Section("Corrected prevalence", _corrected(analysis))])


def _prevalence_figure(rows: Sequence[Mapping[str, Any]], name: str) -> list[Block]:
    """The drawing, where there are age bands to draw."""
    by_band = [row for row in rows if row["age_band"] != ALL]
    if not by_band:
        return [Text("Without ages there is no prevalence by age band.", "note")]
    by_sex = [row for row in by_band if row["sex"] != ALL] or by_band
    bands = list(dict.fromkeys(row["age_band"] for row in by_band))
    caption = f"{outcome_name(rows[0]['outcome'])}, by age band and sex."
    alt = f"{caption} Age bands {bands[0]} to {bands[-1]}; the numbers are in the table below."
    return [Figure(caption, alt, svg=figures.draw_prevalence(by_sex, name))]


def _prevalence_table(rows: Sequence[Mapping[str, Any]], corrected: bool = False) -> Table:
    """A row per age band, the sexes side by side."""
    bands = list(dict.fromkeys(row["age_band"] for row in rows))
    bands = [*(band for band in bands if band != ALL), *([ALL] if ALL in bands else [])]
    sexes = list(dict.fromkeys(row["sex"] for row in rows))
    sexes = [*(sex for sex in sexes if sex != ALL), *([ALL] if ALL in sexes else [])]
    found = {(row["age_band"], row["sex"]): row for row in rows}
    what = "corrected (95 % interval)" if corrected else "prevalence (95 % interval)"
    columns = ["age"]
    for sex in sexes:
        columns += [f"{figures.sex_name(sex)}: with / n", f"{figures.sex_name(sex)}: {what}"]
    table = []
    for band in bands:
        cells: list[Any] = ["all ages" if band == ALL else band]
        for sex in sexes:
            row = found.get((band, sex))
            cells += [None, None] if row is None else _prevalence_cells(row)
        table.append(cells)
    title = outcome_name(rows[0]["outcome"])
    return Table(f"{title}, corrected" if corrected else title, columns, table)


def _prevalence_cells(row: Mapping[str, Any]) -> list[Cell]:
    share = row["positive"] / row["n"] if row["n"] else 0.0
    return [
        Cell(f"{show(row['positive'])} / {show(row['n'])}", share),
        percent_interval(row["prevalence"], row["low"], row["high"]),
    ]


def _corrected(analysis: Mapping[str, Any]) -> list[Block]:
    """Prevalence corrected for the detector, or why there is none."""
    rows = list(analysis.get("corrected_prevalence") or [])
    if not rows:
        why = "no sensitivity and specificity of the detector were given"
        return [_missing("Prevalence corrected for the detector's errors", why)]
    first = rows[0]
    given = (
        f"Corrected by Rogan and Gladen's method with a sensitivity of "
        f"{percent(first['sensitivity'])} and a specificity of {percent(first['specificity'])} "
        f"per participant ({first['source']}). It is only as good as these two, and they only "
        "where the scans are like those they were measured on."
    )
    blocks: list[Block] = [Text(given)]
    for outcome in dict.fromkeys(row["outcome"] for row in rows):
        own = [row for row in rows if row["outcome"] == outcome]
        blocks.append(_prevalence_table(own, corrected=True))
    return blocks


# -------------------------------------------------------------------------------- burden


def _burden(analysis: Mapping[str, Any]) -> Section:
    """Participants by number of microbleeds."""
    rows = list(analysis.get("burden") or [])
    total = sum(row["n"] for row in rows)
    if not total:
        return Section("How many", [_missing("Burden classes", "nobody was analysed")])
    caption = f"Definite microbleeds per participant, in classes; n = {show(total)}."
    words = "; ".join(f"{row['burden_class']}: {row['n']}" for row in rows)
    drawing = figures.draw_burden(rows, "burden")
    return Section("How many", [Figure(caption, f"{caption} {words}.", svg=drawing)])


# -------------------------------------------------------------------------------- models


def _models(analysis: Mapping[str, Any]) -> Section:
    """Every model: what was fitted, the ratios, or why there are none."""
    models = list(analysis.get("models") or [])
    if not models:
        return Section("Associations", [_missing("Models")])
    overview = Table(
        "Models",
        ["outcome", "model", "n", "with the outcome", "AIC", "result"],
        [
            [
                outcome_name(model["outcome"]),
                model["model"],
                model["n"],
                model["events"],
                None if model.get("aic") is None else round(model["aic"], 1),
                f"not fitted: {model['problem']}" if model.get("problem") else "below",
            ]
            for model in models
        ],
        note="AIC: Akaike's information criterion; smaller is better, among models of one outcome.",
    )
    blocks: list[Block] = [
        Text(
            "Each ratio is adjusted for the other terms of its model. A ratio of 1 means no "
            "difference; an interval that holds 1 means that chance alone could show it."
        ),
        overview,
    ]
    titles: dict[str, int] = {}
    parts = []
    for number, model in enumerate(models):
        title = outcome_name(model["outcome"])
        titles[title] = titles.get(title, 0) + 1
        if titles[title] > 1:
            title = f"{title} ({titles[title]}): {model['model']}"
        parts.append(Section(title, _model(model, f"model-{number}")))
    return Section("Associations", blocks, parts)


def _size(model: Mapping[str, Any]) -> str:
    """How many are in a model, and how many of them have what it is about."""
    what = "any of the patterns" if model["outcome"] == "pattern" else "the outcome"
    return f"n = {show(model['n'])}, of whom {show(model['events'])} with {what}"


def _model(model: Mapping[str, Any], name: str) -> list[Block]:
    """One model."""
    size = _size(model)
    blocks: list[Block] = [Text(_sentence(f"{model['model']}; {size}"))]
    if model.get("problem"):
        blocks.append(_missing("An estimate", model["problem"]))
    for number, (group, terms) in enumerate(group_terms(model)):
        blocks += _ratios(model, group, terms, f"{name}-{number}")
    if model.get("alternatives"):
        rows = [[a["model"], round(a["aic"], 1)] for a in model["alternatives"]]
        blocks.append(Table("Models compared", ["model", "AIC"], rows))
    if model.get("notes"):
        blocks.append(Bullets([_sentence(note) for note in model["notes"]]))
    return blocks


def group_terms(model: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Terms of a model by what is compared: one group, or one for each pattern.

    Terms of a model of patterns are named "pattern, term".
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for term in model.get("terms") or []:
        pattern, comma, rest = str(term["term"]).partition(", ")
        if model["outcome"] == "pattern" and comma:
            groups.setdefault(f"{pattern} against none", []).append({**term, "term": rest})
        else:
            groups.setdefault("", []).append(dict(term))
    return list(groups.items())


def _ratios(
    model: Mapping[str, Any], group: str, terms: Sequence[Mapping[str, Any]], name: str
) -> list[Block]:
    """Forest plot and table of some terms."""
    effect = f"{model['effect']}s"
    title = effect.capitalize() + (f", {group}" if group else "")
    size = _size(model)
    words = "; ".join(f"{t['term']} {figures.show_ratio(t)}" for t in terms)
    drawing = figures.draw_forest(terms, model["effect"], name)
    rows = [
        [t["term"], Cell(figures.show_ratio(t), t["estimate"]), p_value(t["p"]),
         model["n"], model["events"]]
        for t in terms
    ]  # fmt: skip
    columns = ["term", f"{model['effect']} (95 % interval)", "p", "n", "with the outcome"]
    note = f"Compared with: {model['reference']}." if model.get("reference") else ""
    return [
        Figure(f"{title}; {size}.", f"{title}; {size}. {words}", svg=drawing),
        Table(f"{title}, by term", columns, rows, note=note),
    ]


def _sentence(text: str) -> str:
    """Begins with a capital and ends with a stop."""
    text = str(text).strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


# -------------------------------------------------------------------------------- places


def _places(lesions: pd.DataFrame | None) -> Section:
    """The lesions on the MNI brain."""
    from cmb_bids.report import lesion_map

    title = "Where"
    if lesions is None or not len(lesions) or "kind" not in lesions:
        return Section(title, [_missing("A map", "no lesion is listed")])
    chosen = lesion_map.choose_lesions(lesions)
    numbers = {kind: len(points) for kind, points in chosen.points.items()}
    if not sum(numbers.values()):
        return Section(title, [_missing("A map", "no lesion has coordinates in MNI space")])
    many = max(numbers.values()) > lesion_map.MOST_MARKERS
    maps = [[kind] for kind, n in numbers.items() if n] if many else [list(numbers)]
    blocks: list[Block] = [Text(_describe_places(chosen))]
    for kinds in maps:
        words = " and ".join(f"{show(numbers[kind])} {kind}s" for kind in kinds)
        caption = (
            f"{words[:1].upper()}{words[1:]} on the MNI brain: projected along three axes, and in "
            f"axial slabs of {lesion_map.SLAB_MM:.0f} mm. The left of the brain is on the left."
        )
        png = lesion_map.draw_lesion_map(chosen, kinds)
        blocks.append(Figure(caption, caption, png=png, width_px=1040))
    if "mars_class" in lesions:
        blocks.append(_places_table(lesions))
    return Section(title, blocks)


def _describe_places(chosen: Any) -> str:
    """What the map holds and leaves out."""
    from cmb_bids.report.lesion_map import inside_brain

    every = [points for points in chosen.points.values() if len(points)]
    outside = sum(int((~inside_brain(points)).sum()) for points in every)
    total = sum(map(len, every))
    text = (
        "Each lesion stands where one affine registration of its scan to the template puts it, so "
        "its place is approximate, the more so in brains with wide ventricles. "
        f"{percent(outside / total)} of the lesions fall outside the drawn brain. "
    )
    if chosen.not_counted:
        text += f"Not drawn: {show(chosen.not_counted)} microbleeds that are listed, not counted. "
    if chosen.unplaced:
        text += f"Not drawn: {show(chosen.unplaced)} lesions without MNI coordinates. "
    return text + "A map shows where lesions were called, not where they are likelier than chance."


def _places_table(lesions: pd.DataFrame) -> Table:
    """Lesions by kind, certainty and MARS class."""
    from cmb_bids.report.lesion_map import COLOURS

    table = lesions[lesions["kind"].isin(list(COLOURS))]
    if "counted" in table:
        not_counted = table["counted"].astype(str).str.lower() == "false"
        table = table[~(not_counted & (table["kind"] == "microbleed"))]
    classes = ["lobar", "deep", "infratentorial"]
    place = table["mars_class"].astype(str).where(table["mars_class"].isin(classes), "not placed")
    certainty = table["certainty"].astype(str) if "certainty" in table else "n/a"
    sizes = table.groupby([table["kind"], certainty, place]).size()
    rows = [
        [kind, sure, *(int(own.get((kind, sure, name), 0)) for name in [*classes, "not placed"])]
        for (kind, sure), own in sizes.groupby(level=[0, 1])
    ]
    columns = ["kind", "certainty", *classes, "not placed"]
    return Table("Lesions by MARS class", columns, rows)


# ----------------------------------------------------------------------------- reference


def _reference(analysis: Mapping[str, Any]) -> Section:
    """Burden over age by sex, with the calculator."""
    reference = _part(analysis, "reference")
    rows = list(reference.get("rows") or [])
    title = "Reference curves"
    if not rows:
        why = reference.get("problem") or "no curve was fitted"
        return Section(title, [_missing("Reference curves and the calculator", why)])
    blocks: list[Block] = []
    if reference.get("problem"):
        blocks.append(Text(_sentence(reference["problem"]), "warning"))
    blocks.append(
        Text(
            "Number of definite microbleeds over age by sex, by this model: "
            f"{reference.get('model') or 'not named'}. It describes the participants analysed "
            "here, scanned as they were; it is no norm for other scanners or other people."
        )
    )
    if reference.get("notes"):
        blocks.append(Bullets([_sentence(note) for note in reference["notes"]]))
    ends = f"{min(r['age'] for r in rows):g} to {max(r['age'] for r in rows):g}"
    share = f"Share with at least one definite microbleed over age, {ends} years, as modelled."
    if rows[0].get("prevalence_low") is not None:
        share += " Bands: 95 % intervals."
    curves = f"Percentiles of the number of definite microbleeds over age, {ends} years."
    svg = figures.draw_expected_share(rows, "reference-share")
    blocks.append(Figure(share, f"{share} Numbers are in the table below.", svg=svg))
    svg = figures.draw_reference(rows, "reference")
    blocks.append(Figure(curves, f"{curves} Numbers are in the table below.", svg=svg))
    blocks.append(Details("The numbers behind the curves", [_reference_table(rows)]))
    return Section(title, blocks, [Section("Calculator", _calculator(rows))])


def _calculator(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    return [
        Text(
            "Where a count stands among people of the same age and sex in this cohort. The "
            "percentile is the share with fewer plus half the share with as many; the z-score is "
            "its normal quantile. Ages outside the data are refused."
        ),
        make_calculator(rows),
    ]


def _reference_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    keys = [key for key in figures.PERCENTILES if any(row.get(key) is not None for row in rows)]
    return Table(
        "Definite microbleeds by age and sex, as modelled",
        ["sex", "age", "participants near", "share with any", "mean",
         *(figures.PERCENTILES[key] for key in keys)],
        [
            [
                figures.sex_name(str(row["sex"])), row["age"], row.get("n_near"),
                percent(row.get("prevalence")), row.get("mean"), *(row.get(key) for key in keys),
            ]
            for row in rows
        ],
    )  # fmt: skip


# ------------------------------------------------------------------------------- quality


def _quality(analysis: Mapping[str, Any]) -> Section:
    """Verdicts and measures of quality by site."""
    quality = _part(analysis, "quality")
    rows = list(quality.get("rows") or [])
    if not rows:
        return Section("Quality", [_missing("Quality by group")])
    by = str(quality.get("by") or "group")
    caption = f"Scans by quality verdict and {by}."
    table = Table(
        f"Quality by {by}",
        [by, "scans", "pass", "warn", "fail", "median SNR", "median mask volume (ml)"],
        [
            [row["group"], row["n"], row["pass"], row["warn"], row["fail"],
             row.get("snr_median"), row.get("mask_volume_ml_median")]
            for row in rows
        ],
        note="pass: nothing odd was seen; warn: counted, with a reason to look; fail: not counted. "
        "SNR: signal-to-noise ratio of the magnitude.",
    )  # fmt: skip
    blocks: list[Block] = []
    if len(rows) == 1:
        blocks.append(Text(f"There is one {by}: nothing can be said of differences.", "note"))
    if len(rows) <= 40:
        alt = f"{caption} The numbers are in the table below."
        blocks.append(Figure(caption, alt, svg=figures.draw_quality(rows, "quality")))
    return Section("Quality", [*blocks, table])


# -------------------------------------------------------------------------------- limits


def _limits(analysis: Mapping[str, Any]) -> Section:
    """What to know before any of it is used."""
    limits = [_sentence(limit) for limit in analysis.get("limits") or []]
    found: list[Block] = [Bullets(limits)] if limits else [Text("The data themselves show none.")]
    return Section(
        "Limits",
        [],
        [
            Section("Of these data", found),
            Section("What this page cannot say", [Bullets(CANNOT_SAY)]),
        ],
    )
