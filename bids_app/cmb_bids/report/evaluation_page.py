"""The page of an evaluation: what was found, at what price, how surely, and the worst errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cmb_bids.evaluate.counts import BURDEN_NAMES
from cmb_bids.evaluate.gallery import Picture, Pictures
from cmb_bids.evaluate.tables import NOT_COMPARABLE
from cmb_bids.report.evaluation_figures import draw_froc, draw_reliability
from cmb_bids.report.page import (
    MISSING,
    Block,
    Bullets,
    Cell,
    Details,
    Facts,
    Figure,
    Gallery,
    Section,
    Table,
    Text,
    p_value,
    percent,
    render_page,
    show,
)

Result = dict[str, Any]
MOST_SCANS = 300  # rows of the scans table; the TSV has them all
# Figures by the question they answer. Shares are shown in percent.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "Are lesions found?": (
        "sensitivity",
        "sensitivity_all_labelled",
        "scan_sensitivity",
        "candidate_recall_microbleed",
    ),
    "At what price?": (
        "precision",
        "f1",
        "false_positives_per_scan",
        "false_positives_per_lesion_free_scan",
        "scan_specificity",
        "candidates_per_scan",
    ),
    "Is calcium told apart?": (
        "calcification_called_microbleed_share",
        "calcification_sensitivity",
        "candidate_recall_calcification",
    ),
    "Are probabilities true?": (
        "expected_calibration_error",
        "largest_calibration_error",
        "brier_score",
        "candidate_expected_calibration_error",
        "candidate_brier_score",
    ),
    "Does the scan's count agree?": (
        "burden_class_agreement",
        "burden_kappa",
        "burden_kappa_weighted",
        "count_icc",
        "count_bias",
    ),
}
SHARES = {
    "sensitivity", "sensitivity_all_labelled", "scan_sensitivity", "scan_specificity", "precision",
    "f1", "candidate_recall_microbleed", "candidate_recall_calcification",
    "calcification_called_microbleed_share", "calcification_sensitivity",
    "burden_class_agreement",
}  # fmt: skip
COUNTED = ("scans", "lesions", "lesions_ignored", "hits", "false_positives", "lesion_free_scans",
           "calcifications", "calcifications_called_microbleed")  # fmt: skip
UNITS = {"_mm": " (mm)", "_t": " (T)"}
SUBSET_FIGURES = {  # and their names where there is little room
    "sensitivity": "sensitivity",
    "precision": "precision",
    "false_positives_per_scan": "false per scan",
    "candidate_recall_microbleed": "candidate recall",
    "calcification_called_microbleed_share": "calcium called bleed",
}
RULES = (
    "A detection hits a lesion when their centres are within {distance:g} mm; lesions and "
    "detections are paired one to one (Hungarian assignment).",
    "Possible lesions and lesions over 10 mm are neither hit nor missed, and a detection on one "
    "is neither hit nor false.",
    "Definite, counted detections are scored. What possible ones would add is in the subset "
    "'certainty'; the FROC and the reliability take both.",
    "Lesion-free scans count like all others; false positives there are also given on their own.",
    "Intervals are 95 % percentile intervals of a bootstrap over participants. One of no width "
    "says that participants did not differ, not that the figure is certain; with few participants, "
    "and for shares near 0 or 100 %, they are too narrow.",
    "Labelled scans without a usable result are not in the figures, except in 'sensitivity all "
    "labelled', where their lesions are missed.",
)


def evaluation_page(
    results: Sequence[Result], comparison: pd.DataFrame | None, pictures: Pictures
) -> str:
    """The page as text.

    Parameters
    ----------
    results : sequence of dict
        From `cmb_bids.evaluate.score.evaluate_cohort`; the first is the one the page is about.
    comparison : DataFrame, optional
        From `cmb_bids.evaluate.comparison.compare_cohorts`.
    pictures : Pictures
        Of the first result.
    """
    simulated = any(result["simulated"] for result in results)
    first = results[0]
    sections = [_summary(results, simulated)]
    if comparison is not None:
        sections.append(_comparison(comparison))
    sections += [_froc(results, simulated), _reliability(results, simulated)]
    sections += [_subsets(first), _errors(first), *_galleries(pictures), _scans(first)]
    rules = [rule.format(distance=first["scored"].matched.distance_mm) for rule in RULES]
    sections.append(Section("How it is scored", [Bullets(rules)]))
    names = ", ".join(result["name"] for result in results)
    kind = "simulated scans" if simulated else "scans"
    subtitle = f"{names}: {first['metrics']['scans']} {kind}"
    return render_page(
        "Evaluation against labels", sections, subtitle=subtitle, made_by="cmb-lab evaluate"
    )


def plain(metric: str) -> str:
    """A metric's or column's name for people, its unit in brackets."""
    for ending, unit in UNITS.items():
        if metric.endswith(ending):
            metric = metric.removesuffix(ending) + unit
    return metric.replace("_", " ")


def _value(metric: str, value: float) -> str:
    if isinstance(value, float) and (metric in SHARES or "sensitivity_at_" in metric):
        return percent(value)
    return show(float(value) if metric not in COUNTED else int(value))


def _with_interval(metric: str, value: float, low: float, high: float) -> Cell:
    """A figure with its interval, sorted by the figure."""
    if pd.isna(value):
        return Cell(MISSING)
    text = _value(metric, value)
    if not pd.isna(low):
        text += f" ({_value(metric, low)} to {_value(metric, high)})".replace(" %", "")
    return Cell(text, float(value))


# ------------------------------------------------------------------ overall


def _summary(results: Sequence[Result], simulated: bool) -> Section:
    first = results[0]
    metrics = first["metrics"]
    blocks: list[Block] = []
    if simulated:
        blocks.append(
            Text(f"These scans, or the lesions in them, are simulated. {NOT_COMPARABLE}", "warning")
        )
    for result in results:
        blocks += _left_out(result)
    names = ("sensitivity", "precision", "false_positives_per_scan",
             "false_positives_per_lesion_free_scan", "calcification_called_microbleed_share",
             "candidate_recall_microbleed", "expected_calibration_error",
             "burden_kappa_weighted")  # fmt: skip
    blocks.append(Facts([(plain(name), _fact(metrics, name)) for name in names]))
    counted = [[plain(n), *(r["metrics"].get(n) for r in results)] for n in COUNTED]
    columns = ["figure", *(result["name"] for result in results)]
    for title, wanted in QUESTIONS.items():
        cells = {name: [_of(result, name) for result in results] for name in wanted}
        known = {k: row for k, row in cells.items() if any(c.value is not None for c in row)}
        rows = [[plain(name), *row] for name, row in known.items()]
        if rows:
            blocks.append(Table(title, columns, rows))
    blocks.append(Details("Numbers behind it", [Table("Counts", columns, counted)]))
    return Section("Overall", blocks)


def _fact(metrics: dict[str, Any], name: str) -> str:
    value = metrics.get(name)
    return MISSING if value is None or pd.isna(value) else _value(name, value)


def _of(result: Result, name: str) -> Cell:
    if name not in result["metrics"]:
        return Cell(MISSING)
    low, high = result["intervals"].get(name, (None, None))
    return _with_interval(name, result["metrics"][name], low, high)


def _left_out(result: Result) -> list[Block]:
    """What is not in the figures."""
    blocks: list[Block] = []
    for key, words in (
        (
            "unprocessed",
            "labelled scans have no usable result of {name} and are left out",
        ),
        ("unlabelled", "scans of {name} have no labels of their own and are not scored"),
    ):
        number = len(result[key])
        if number:
            text = f"{number} {words.format(name=result['name'])}; see Scans."
            blocks.append(Text(text, "warning" if key == "unprocessed" else "note"))
    return blocks


def _comparison(comparison: pd.DataFrame) -> Section:
    tables: list[Block] = []
    for (reference, other, scans), rows in comparison.groupby(
        ["reference", "other", "scans"], sort=False
    ):
        lines = []
        for row in rows.to_dict("records"):
            name = row["metric"]
            if name in COUNTED or pd.isna(row["difference"]):
                continue
            difference = _with_interval(
                name, row["difference"], row["difference_low"], row["difference_high"]
            )
            values = [_value(name, row["reference_value"]), _value(name, row["other_value"])]
            lines.append([plain(name), *values, difference, p_value(row["p_value"])])
        alike = rows[rows["metric"] == "sensitivity"].iloc[0]
        mine, theirs = int(alike["only_reference"]), int(alike["only_other"])
        note = (
            f"Lesions that only {reference} hit: {mine}; only {other}: {theirs}; exact McNemar p "
            f"{p_value(alike['mcnemar_p']).text}, which takes lesions for independent."
        )
        columns = ["figure", str(reference), str(other), "difference (95 %)", "p"]
        people = rows["participants"].iloc[0]
        caption = f"{other} against {reference}: {scans} scans of {people} participants"
        tables.append(Table(caption, columns, lines, note))
    text = (
        "On the scans that both have. The difference's interval draws the same participants for "
        "both; p is of a permutation test that swaps the two by participant. P-values are not "
        "corrected for their number."
    )
    return Section("Comparison", [Text(text), *tables])


# ------------------------------------------------------------------ curves


def _with_basis(results: Sequence[Result], key: str, basis: str) -> dict[str, pd.DataFrame]:
    """Each tool's rows of one basis, where it has any."""
    tables = {}
    for result in results:
        table = result[key]
        if len(table) and (table["basis"] == basis).any():
            tables[result["name"]] = table[table["basis"] == basis]
    return tables


BASES = {
    "listed": "of the detections that are listed, definite and possible",
    "candidates": "of all candidates",
}


def _froc(results: Sequence[Result], simulated: bool) -> Section:
    blocks: list[Block] = []
    for basis, words in BASES.items():
        curves = _with_basis(results, "froc_curve", basis)
        rates = _with_basis(results, "froc", basis)
        if not curves:
            continue
        kind = " (simulated)" if simulated else ""
        blocks.append(
            Figure(
                f"Sensitivity over false positives per scan {words}{kind}; bars are 95 % intervals."
                " A line ends where the tool has no more detections.",
                "FROC curve; the table below has its values",
                svg=draw_froc(curves, rates, f"froc-{basis}"),
            )
        )
        blocks.append(_froc_table(rates, words))
    return Section("FROC", blocks or [Text("No detection has a probability.", "note")])


def _froc_table(rates: dict[str, pd.DataFrame], words: str) -> Table:
    rows = []
    for tool, table in rates.items():
        for row in table.itertuples():
            cell = _with_interval(
                "sensitivity", row.sensitivity, row.sensitivity_low, row.sensitivity_high
            )
            ends = "" if row.reached else "all detections used"
            rows.append([tool, row.false_positives_per_scan, cell, row.threshold, ends])
    columns = ["results", "false positives per scan", "sensitivity", "from probability", "end"]
    return Table(f"Sensitivity {words}", columns, rows)


def _reliability(results: Sequence[Result], simulated: bool) -> Section:
    blocks: list[Block] = []
    for basis, words in BASES.items():
        tables = _with_basis(results, "reliability", basis)
        if not tables:
            continue
        kind = " (simulated)" if simulated else ""
        blocks.append(
            Figure(
                f"Share of lesions over the probability said, {words}{kind}. On the dashed line "
                "probabilities are true; bars are 95 % intervals.",
                "Reliability diagram; the table below has its values",
                svg=draw_reliability(tables, f"reliability-{basis}"),
                width_px=560,
            )
        )
        rows = []
        for tool, table in tables.items():
            for row in table[table["detections"] > 0].itertuples():
                share = _with_interval(
                    "precision", row.lesion_share, row.lesion_share_low, row.lesion_share_high
                )
                between = f"{row.bin_low:.1f} to {row.bin_high:.1f}"
                rows.append([tool, between, row.detections, percent(row.mean_probability), share])
        columns = ["results", "said", "detections", "mean said", "lesions"]
        blocks.append(Details(f"Table {words}", [Table("Reliability", columns, rows)]))
    return Section("Reliability", blocks or [Text("No detection has a probability.", "note")])


# ------------------------------------------------------------------ subsets and errors


def _subsets(result: Result) -> Section:
    table = result["metrics_table"]
    blocks: list[Block] = []
    constant = []
    for by, part in table[table["by"] != "all"].groupby("by", sort=False):
        groups = list(dict.fromkeys(part["group"]))
        if len(groups) == 1 and by in result["scored"].cohort.groups:
            constant.append(f"{plain(str(by))} {groups[0]}")
        else:
            blocks.append(_subset_table(str(by), part))
    text = (
        f"Of {result['name']}. Sizes are those of the labels. By region, false positives count "
        "where their own table says they lie."
    )
    alike = [Text(f"Alike in all scans: {'; '.join(constant)}.")] if constant else []
    return Section("By subset", [Text(text), *alike, *blocks])


def _subset_table(by: str, part: pd.DataFrame) -> Table:
    """One row per group of scans or lesions, one column per figure that any group has."""
    known = set(part.loc[part["value"].notna(), "metric"])
    figures = [name for name in SUBSET_FIGURES if name in known]
    counted = [name for name in ("scans", "lesions") if name in known]
    rows = []
    for group, own in part.groupby("group", sort=False):
        of = own.set_index("metric")
        counts = [int(of.loc[name, "value"]) for name in counted]
        cells = [
            _with_interval(name, *of.loc[name, ["value", "low", "high"]])
            if name in of.index
            else Cell(MISSING)
            for name in figures
        ]
        rows.append([plain(str(group)), *counts, *cells])
    columns = [plain(by), *counted, *(SUBSET_FIGURES[name] for name in figures)]
    return Table(f"By {plain(by)}", columns, rows)


def _errors(result: Result) -> Section:
    """How far missed lesions got, what false alarms lie on, and how counts disagree."""
    lesions, false = result["lesions"], result["false_alarms"]
    missed = lesions[lesions["outcome"] == "missed"]
    lost = missed["lost_at"].fillna("unknown: the tool lists no candidates").value_counts()
    lies = false["lies_on"].fillna("nothing labelled").value_counts() if len(false) else lost[:0]
    scored = result["scans"][result["scans"]["status"] == "scored"]
    confusion = pd.crosstab(scored["burden_class_labelled"], scored["burden_class_found"])
    confusion = confusion.reindex(index=BURDEN_NAMES, columns=BURDEN_NAMES, fill_value=0)
    rows = [[name, *(int(n) for n in confusion.loc[name])] for name in BURDEN_NAMES]
    return Section(
        "Kinds of error",
        [
            Table(
                f"How far the {len(missed)} missed lesions got",
                ["stage", "lesions"],
                [[plain(str(name)), int(n)] for name, n in lost.items()],
            ),
            Table(
                f"What the {len(false)} false alarms lie on",
                ["what", "false alarms"],
                [[str(name), int(n)] for name, n in lies.items()],
            ),
            Table(
                "Scans by burden class: labelled (rows) and found (columns)",
                ["labelled", *BURDEN_NAMES],
                rows,
            ),
        ],
    )


def _galleries(pictures: Pictures) -> list[Section]:
    how = (
        "SWI above (or magnitude alone), high-pass phase below (black -1 rad, white 1 rad; blood "
        "is bright); on the left in the slice, on the right across slices; 32 mm wide, the "
        "patient's left on the left, ticks point at the centre."
    )
    sections = []
    for title, shown, number, order in (
        ("Worst misses", pictures.misses, pictures.missed, "the most visible first"),
        (
            "Most confident false alarms",
            pictures.false_alarms,
            pictures.false,
            "the most confident first",
        ),
    ):
        drawn = [_figure(picture) for picture in shown if picture.png is not None]
        bare = [picture.caption for picture in shown if picture.png is None]
        blocks: list[Block] = [Text(f"{len(shown)} of {number}, {order}.")]
        if drawn:
            blocks += [Text(how), Gallery(drawn, 226)]
        if bare:
            note = "No image of these was found; --images names the raw dataset."
            blocks += [Text(note, "note"), Bullets(bare)]
        sections.append(Section(title, blocks))
    return sections


def _figure(picture: Picture) -> Figure:
    return Figure(picture.caption, picture.alt, png=picture.png)


def _scans(result: Result) -> Section:
    table = result["scans"]
    out = table[table["status"] != "scored"]
    blocks: list[Block] = []
    if len(out):
        rows = out[["scan", "status", "lesions", "reason"]].astype(object)
        rows = rows.where(rows.notna(), None)
        shown = [[r[0], plain(str(r[1])), r[2], r[3]] for r in rows.to_numpy().tolist()]
        columns = ["scan", "status", "labelled lesions", "reason"]
        blocks.append(Table("Not scored", columns, shown[:MOST_SCANS]))
    columns = ["scan", "lesions", "hits", "false_positives", "calcifications_called_microbleed"]
    scored = table.loc[table["status"] == "scored", columns]
    worst = (scored["lesions"] - scored["hits"] + scored["false_positives"]).astype(int)
    scored = scored.loc[worst.sort_values(ascending=False, kind="stable").index]
    rows = [[r[0], *map(int, r[1:])] for r in scored.head(MOST_SCANS).to_numpy().tolist()]
    some = f", the {MOST_SCANS} with the most errors" if len(scored) > MOST_SCANS else ""
    listed = Table(f"Scored scans{some}", [plain(name) for name in columns], rows)
    blocks.append(Details(f"{len(scored)} scored scans", [listed]))
    return Section("Scans", blocks)
