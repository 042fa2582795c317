"""The page of one participant: for each scan what was counted, where, how sure, and on what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmb_bids import naming
from cmb_bids.columns import FAIL, LESION_COLUMNS, PASS, SCAN_COLUMNS, WARN
from cmb_bids.report.page import (
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
    percent,
    render_page,
    show,
)
from cmb_bids.report.tiles import MOST_TILES, png_size, tiles_of
from cmb_bids.volumes import read_json, read_table

MICROBLEEDS, CALCIFICATIONS = "cmb", "calcification"
CONTRADICTS = "contradicts"  # of the column moment_verdict
# Columns of the scans table that the page shows in its own words, or that are counts by region.
_TOLD = ("filename", "qc_status", "qc_reason")
_BY_REGION = ("mars_", "bombs_")
COUNTS = {
    "cmb_definite": "definite microbleeds",
    "cmb_possible": "possible microbleeds",
    "cmb_lobar": "lobar",
    "cmb_deep": "deep",
    "cmb_infratentorial": "infratentorial",
    "calcification": "calcifications",
}
CHANCES = {
    "p_ge_1": "at least 1",
    "p_ge_2": "at least 2",
    "p_gt_4": "more than 4",
    "p_gt_10": "more than 10",
}
HEADINGS = {
    "index": "label",
    "certainty": "certainty",
    "counted": "counted",
    "probability": "P(microbleed)",
    "p_calcification": "P(calcification)",
    "diameter_mm": "diameter (mm)",
    "volume_mm3": "volume (mm³)",
    "extent_mm": "extent (mm)",
    "moment_ppm_mm3": "moment (ppm mm³)",
    "moment_sd_ppm_mm3": "its standard deviation",
    "moment_verdict": "sign of the moment",
    "hemisphere": "side",
    "mars_region": "region (MARS)",
    "mars_class": "class (MARS)",
    "bombs_region": "region (BOMBS)",
    "x": "x (mm)",
    "y": "y (mm)",
    "z": "z (mm)",
}
LIMITS = (
    "Every lesion is a program's call, made by a network that was trained on simulated scans. Look "
    "at each before using it.",
    "Lesions of less than about 2 mm are mostly missed, and vessels seen end on, mineral in the "
    "basal ganglia and edges of air are sometimes called microbleeds.",
    "Diameters include blooming, which grows with field strength and echo time.",
    "Regions come from a registered atlas; close to a boundary they may be wrong.",
)


class ScanReport(NamedTuple):
    """What the page knows of a scan.

    ``name``: its BIDS name; ``row``: its row of the scans table; ``lesions``: rows of the lesion
    tables by kind (`MICROBLEEDS`, `CALCIFICATIONS`); ``figures``: name ('overview' or a kind) ->
    path relative to the page; ``sheets``: kind -> (width, height) in pixels.
    """

    name: str
    row: Mapping[str, Any]
    lesions: Mapping[str, Sequence[Mapping[str, Any]]]
    figures: Mapping[str, str]
    sheets: Mapping[str, tuple[int, int]]


# -------------------------------------------------------------------------- what is there


def gather_scans(output_dir: Path, participant: str) -> list[ScanReport]:
    """Every complete scan of a participant in a derivative dataset.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    participant : str
        With ``sub-``.

    Raises
    ------
    BadData, InputMissing
        A table is damaged or gone.
    """
    state = output_dir / "logs" / "scans"
    found = []
    for row in sorted((state / participant).rglob("scan_row.json")):
        folder, prefix = str(row.parent.parent.relative_to(state)), row.parent.name
        anat = output_dir / folder / "anat"
        lesions = {
            kind: _records(anat / f"{prefix}_desc-{kind}_dseg.tsv")
            for kind in (MICROBLEEDS, CALCIFICATIONS)
        }
        figures, sheets = {}, {}
        for name, relative in naming.scan_figures(folder, prefix).items():
            size = png_size(output_dir / relative) if (output_dir / relative).is_file() else None
            if size:
                figures[name], sheets[name] = relative, size
        found.append(ScanReport(prefix, read_json(row), lesions, figures, sheets))
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    """Rows of a table; missing values are None."""
    rows = read_table(path).to_dict("records")
    return [{str(key): _known(value) for key, value in row.items()} for row in rows]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


# ------------------------------------------------------------------------------- the page


def render_participant(participant: str, scans: Sequence[ScanReport], methods: str) -> str:
    """The page of a participant as text.

    Parameters
    ----------
    participant : str
        With ``sub-``.
    scans : sequence of ScanReport
    methods : str
        Methods text, Markdown (`cmb_bids.naming.methods_text`).
    """
    several = f"{len(scans)} scans; they show the same lesions and are never added up."
    sections = [_scan(scan) for scan in scans]
    sections += [Section("Limits", [Bullets(LIMITS)]), Section("Methods", read_methods(methods))]
    return render_page(
        f"Cerebral microbleeds of {participant}",
        sections,
        subtitle=several if len(scans) > 1 else "",
        made_by="cmb-bids, participant level",
    )


def _scan(scan: ScanReport) -> Section:
    parts = [
        ("The whole brain", _overview(scan)),
        ("Microbleeds", _lesions(scan, MICROBLEEDS, "microbleed")),
        ("Calcifications", _lesions(scan, CALCIFICATIONS, "calcification")),
        ("Quality, protocol and everything else", _everything(scan.row)),
    ]
    sections = [Section(title, blocks, anchor=f"{scan.name} {title}") for title, blocks in parts]
    return Section(scan.name, _result(scan.row), sections)


def _result(row: Mapping[str, Any]) -> list[Block]:
    """Verdict, counts, and how sure they are."""
    blocks: list[Block] = [_verdict(row)]
    if row.get("input") == "magnitude":
        text = (
            "There was no phase: blood and calcium are told apart by their look alone, which is "
            "little."
        )
        blocks.append(Text(text, "warning"))
    blocks.append(Facts([(text, row.get(name)) for name, text in COUNTS.items()]))
    if row.get("qc_status") == FAIL:
        return blocks
    pattern = str(row.get("pattern") or "n/a").replace("_", " ")
    blocks.append(
        Text(
            f"Pattern of the definite ones: {pattern} (a flag for research). Burden class: "
            f"{row.get('burden_class')}. Expected number, by the candidates' probabilities: "
            f"{show(row.get('cmb_expected'))}."
        )
    )
    chances = [[text, percent(row.get(name))] for name, text in CHANCES.items() if name in row]
    note = "From the probabilities of every candidate that could count, no others."
    blocks.append(Table("Probability of a number", ["microbleeds", "probability"], chances, note))
    return blocks


def _verdict(row: Mapping[str, Any]) -> Text:
    reason = row.get("qc_reason") or "no reason was given"
    status = row.get("qc_status")
    if status == PASS:
        return Text("Quality check: pass.")
    if status == WARN:
        return Text(
            f"Quality check: warn. The scan is counted; look first at: {reason}.", "warning"
        )
    if status == FAIL:
        return Text(f"Quality check: fail. Nothing is counted, because {reason}.", "warning")
    return Text(f"Quality check: {show(status)}.", "note")


def _overview(scan: ScanReport) -> list[Block]:
    """The projection, with its legend in words."""
    if "overview" not in scan.figures:
        return [Text("The picture was not made; the run's log says why.", "note")]
    numbers = {kind: len(rows) for kind, rows in scan.lesions.items()}
    caption = (
        "Minimum-intensity projection from below to above, with the outline of the brain mask. "
        "Red: microbleeds by their label, a whole circle if definite, a broken one if possible. "
        "Blue: calcifications (C). The left of the brain is on the left."
    )
    alt = (
        f"Slices through the brain with {numbers[MICROBLEEDS]} microbleeds and "
        f"{numbers[CALCIFICATIONS]} calcifications circled; the tables below say where they are."
    )
    return [Figure(caption, alt, source=scan.figures["overview"])]


def _lesions(scan: ScanReport, kind: str, word: str) -> list[Block]:
    """Close-ups and table of one kind of lesion."""
    rows = scan.lesions[kind]
    if not rows:
        return [Text(f"No {word} was found.")]
    blocks: list[Block] = []
    if kind in scan.figures:
        text = "Columns: axial, coronal, sagittal, 24 mm wide; the bar is 5 mm."
        if scan.row.get("input") != "magnitude":
            text += (
                " Phase is bright where it is positive: in the axial plane blood is bright in its "
                "middle, calcium dark. A magnetic moment is positive for blood and negative for "
                "calcium."
            )
        figures = [
            Figure(_describe(row, word), _describe(row, word), source=scan.figures[kind], tile=tile)
            for row, tile in zip(rows, tiles_of(scan.sheets[kind], len(rows)), strict=False)
        ]
        blocks += [Text(text), Gallery(figures, 300)]
    if len(rows) > MOST_TILES:
        blocks.append(Text(f"The first {MOST_TILES} of {len(rows)} are shown.", "note"))
    return [*blocks, _lesion_table(rows, word)]


def _describe(row: Mapping[str, Any], word: str) -> str:
    """One lesion in a line."""
    place = _words(row.get(name) for name in ("hemisphere", "mars_region"))
    text = f"{word.capitalize()} {row['index']}, {row.get('certainty') or 'n/a'}"
    chance = row.get("probability" if word == "microbleed" else "p_calcification")
    text += f": probability {show(chance, 2)}, {show(row.get('diameter_mm'), 2)} mm, {place}"
    if row.get("moment_ppm_mm3") is not None:
        moment, deviation = (show(row.get(f"moment_{n}ppm_mm3"), 2) for n in ("", "sd_"))
        text += f", magnetic moment {moment} ± {deviation} ppm mm³"
    if row.get("moment_verdict") == CONTRADICTS:
        text += ", whose sign contradicts the kind"
    return text + (", not counted" if is_not_counted(row) else "")


def is_not_counted(row: Mapping[str, Any]) -> bool:
    """Whether a lesion is listed only."""
    return str(row.get("counted", "true")).lower() == "false"


def _words(parts: Iterable[Any]) -> str:
    known = [str(part).replace("_", " ") for part in parts if part]
    return " ".join(known) or "place not known"


def _lesion_table(rows: Sequence[Mapping[str, Any]], word: str) -> Table:
    """Every column of the lesion table but the redundant ones, known columns first."""
    names = [name for name in HEADINGS if name in rows[0]]
    names += [name for name in rows[0] if name not in (*HEADINGS, "name", "bombs_class")]
    columns = [HEADINGS.get(name, _heading(name)) for name in names]
    return Table(
        f"{word.capitalize()}s",
        columns,
        [[_cell(name, row.get(name)) for name in names] for row in rows],
    )


def _heading(name: str) -> str:
    """A column as words, with its unit."""
    units = LESION_COLUMNS.get(name, {}).get("Units")
    return name.replace("_", " ") + (f" ({units})" if units else "")


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return Cell(value.replace("_", " "), value)
    if name in ("probability", "p_calcification") and value is not None:
        return Cell(f"{value:.3f}", value)
    return value


def _everything(row: Mapping[str, Any]) -> list[Block]:
    """Every other column of the scans table, with its meaning."""
    told = {*_TOLD, *COUNTS, *CHANCES}
    names = [n for n in row if n not in told and not n.startswith(_BY_REGION)]
    regions = [n for n in row if n.startswith(_BY_REGION) and row[n]]
    blocks: list[Block] = [Details("Values and what they mean", [_value_table(row, names)])]
    if regions:
        title = "Microbleeds by region and side, where there are any"
        blocks.append(Details(title, [_value_table(row, regions)]))
    return blocks


def _value_table(row: Mapping[str, Any], names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        described = SCAN_COLUMNS.get(name, {})
        unit = described.get("Units")
        value = f"{show(row[name])} {unit}" if unit and row[name] is not None else show(row[name])
        rows.append([name, Cell(value, None), described.get("Description", "")])
    return Table("Columns of the scans table", ["column", "value", "meaning"], rows)


def read_methods(text: str) -> list[Block]:
    """Paragraphs and lists of a simple Markdown text; its headings become paragraphs."""
    blocks: list[Block] = []
    for part in text.replace("\r\n", "\n").split("\n\n"):
        lines = [line.strip() for line in part.splitlines() if line.strip()]
        if not lines or lines == ["# Methods"]:
            continue
        if all(line.startswith("- ") for line in lines):
            blocks.append(Bullets([line.removeprefix("- ") for line in lines]))
        else:
            blocks.append(Text(" ".join(line.lstrip("# ") for line in lines)))
    return blocks
