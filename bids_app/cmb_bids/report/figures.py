"""Drawings of the cohort as inline SVG that takes the page's colours.

Drawn with matplotlib's object interface, so that nothing is shared between drawings. Ink, muted
text and grid lines are drawn in colours that stand for the page's own and are replaced in the
SVG; a page in dark colours so has its drawings in them too. The same data give the same text.

matplotlib is imported when something is drawn, not before.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

from cmb_bids.report.page import MISSING, show

PIXELS_PER_INCH = 72  # matplotlib's points become the page's pixels
WIDTH = 700.0
ROW_HEIGHT = 26.0

# Stand for colours of the page's style sheet.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
_PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", GRID: "var(--line)"}
# Distinct for every kind of colour vision (after Okabe and Ito), on light and on dark paper.
SEX_COLOURS = {"F": "#d55e00", "M": "#2b83c6"}
SEX_NAMES = {"F": "women", "M": "men", "all": "everybody"}
OTHER_COLOURS = ("#009e73", "#cc79a7", "#b58900", "#56b4e9")
ACCENT = "#2b83c6"
VERDICT_COLOURS = {"pass": "#3c9a5f", "warn": "#d9a441", "fail": "#c0453b"}

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searched, read aloud, in the page's typeface
    "text.parse_math": False,  # a covariate may be called $x$
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@contextmanager
def drawing(height: float, width: float = WIDTH) -> Iterator[Any]:
    """A figure of so many pixels, under this module's style."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        size = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
        yield Figure(figsize=size, dpi=PIXELS_PER_INCH, layout="constrained")


def to_svg(figure: Any, name: str) -> str:
    """A matplotlib figure as an SVG element for a page.

    Parameters
    ----------
    figure : matplotlib Figure
    name : str
        Starts every identifier in the SVG, so that several drawings share a page.
    """
    from matplotlib import rc_context

    stream = StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href").replace('id="', f'id="{name}-')
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', text)
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return text


def sex_colour(sex: str, position: int = 0) -> str:
    """Colour of a sex; muted for everybody together."""
    if sex == "all":
        return MUTED
    return SEX_COLOURS.get(sex, OTHER_COLOURS[position % len(OTHER_COLOURS)])


def sex_name(sex: str) -> str:
    """How a sex is called on the page; other codes as the data have them."""
    return SEX_NAMES.get(sex, sex)


def _ordered(values: Iterable[str]) -> list[str]:
    """Different values in the order they first appear."""
    return list(dict.fromkeys(values))


def draw_prevalence(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Shares with their intervals by age band, a colour for each sex.

    Parameters
    ----------
    rows : sequence of mapping
        ``age_band``, ``sex``, ``prevalence``, ``low``, ``high``, ``n``.
    name : str
        As `to_svg`.
    """
    bands = _ordered(row["age_band"] for row in rows)
    sexes = _ordered(row["sex"] for row in rows)
    with drawing(300) as figure:
        axes = figure.add_subplot()
        for position, sex in enumerate(sexes):
            shift = (position - (len(sexes) - 1) / 2) * min(0.22, 0.7 / len(sexes))
            own = [r for r in rows if r["sex"] == sex and r["prevalence"] is not None]
            x = [bands.index(r["age_band"]) + shift for r in own]
            y = [100 * r["prevalence"] for r in own]
            below = [100 * (r["prevalence"] - r["low"]) for r in own]
            above = [100 * (r["high"] - r["prevalence"]) for r in own]
            axes.errorbar(
                x, y, yerr=[[max(0, v) for v in below], [max(0, v) for v in above]],
                fmt="o", color=sex_colour(sex, position), ms=6, lw=1.8, capsize=3,
                label=sex_name(sex),
            )  # fmt: skip
        axes.set_xticks(range(len(bands)), bands)
        axes.set_xlim(-0.6, len(bands) - 0.4)
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("age (years)")
        axes.set_ylabel("prevalence (%)")
        if len(sexes) > 1:
            axes.legend(loc="upper left", ncols=len(sexes))
        return to_svg(figure, name)


def draw_burden(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Participants by burden class, with number and share.

    Parameters
    ----------
    rows : sequence of mapping
        ``burden_class`` and ``n``.
    name : str
        As `to_svg`.
    """
    total = sum(row["n"] for row in rows) or 1
    with drawing(80 + ROW_HEIGHT * len(rows)) as figure:
        axes = figure.add_subplot()
        places = range(len(rows))
        axes.barh(places, [100 * row["n"] / total for row in rows], color=ACCENT, height=0.66)
        for place, row in zip(places, rows, strict=True):
            share = 100 * row["n"] / total
            axes.text(share + 1, place, f"{show(row['n'])} ({share:.1f} %)", va="center")
        axes.set_yticks(places, [str(row["burden_class"]) for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 122)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="y", visible=False)
        axes.set_title("microbleeds", fontsize=12, loc="left")
        axes.set_xlabel("share of the analysed participants (%)")
        return to_svg(figure, name)


def draw_forest(terms: Sequence[Mapping[str, Any]], effect: str, name: str) -> str:
    """Ratios with their intervals on a logarithmic axis, one to a row.

    A bound beyond what can be shown ends in an arrow.

    Parameters
    ----------
    terms : sequence of mapping
        ``term``, ``estimate``, ``low``, ``high``: ratios above zero, or None.
    effect : str
        What the ratios are, for the axis.
    name : str
        As `to_svg`.
    """
    known = [t for t in terms if _is_ratio(t["estimate"])]
    first, last = _forest_range(known)
    with drawing(70 + ROW_HEIGHT * len(terms)) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set_xlim(first, last)
        axes.axvline(1, color=MUTED, lw=1.2)
        for place, term in enumerate(terms):
            if not _is_ratio(term["estimate"]):
                axes.text(1, place, " not estimated", va="center", color=MUTED)
                continue
            _draw_ratio(axes, place, term, first, last)
        axes.set_yticks(range(len(terms)), [wrap_label(str(t["term"])) for t in terms])
        axes.set_ylim(len(terms) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{effect} (95 % interval), logarithmic")
        _label_ratios(axes, first, last)
        return to_svg(figure, name)


def shorten(text: str, length: int = 38) -> str:
    """At most so many characters, with an ellipsis where some are left out."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def wrap_label(text: str, length: int = 34) -> str:
    """A label in one line or two, shortened where that is not enough."""
    lines = textwrap.wrap(text, length)
    if len(lines) <= 2:
        return "\n".join(lines)
    return f"{lines[0]}\n{shorten(' '.join(lines[1:]), length)}"


def _is_ratio(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _forest_range(terms: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Ends of the axis: what the intervals reach, within a factor of 200 of one."""
    bounds = [t[key] for t in terms for key in ("estimate", "low", "high") if _is_ratio(t[key])]
    low = max(1 / 200, min([*bounds, 0.8]) / 1.15)
    return low, min(200.0, max([*bounds, 1.25]) * 1.15)


def _draw_ratio(axes: Any, place: int, term: Mapping[str, Any], first: float, last: float) -> None:
    """One row of a forest plot."""
    low = term["low"] if _is_ratio(term["low"]) else 0.0
    high = term["high"] if _is_ratio(term["high"]) else math.inf
    axes.plot([max(low, first), min(high, last)], [place, place], color=ACCENT, lw=2)
    for beyond, end, marker in ((low < first, first, "<"), (high > last, last, ">")):
        if beyond:
            axes.plot(end, place, marker, color=ACCENT, ms=7, clip_on=False)
    if first <= term["estimate"] <= last:
        axes.plot(term["estimate"], place, "s", color=ACCENT, ms=7)
    axes.text(1.02, place, show_ratio(term), transform=axes.get_yaxis_transform(), va="center")


def show_ratio(term: Mapping[str, Any]) -> str:
    """A ratio with its interval, as text."""
    if not _is_ratio(term["estimate"]):
        return MISSING
    estimate, low, high = (_show_bound(term[key]) for key in ("estimate", "low", "high"))
    return f"{estimate} ({low} to {high})"


def _show_bound(value: float | None) -> str:
    """Two decimals where a ratio is near one, fewer or more where it is far."""
    if value is None or not math.isfinite(value) or not 0.1 <= value < 1000:
        return show(value, 2)
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _label_ratios(axes: Any, first: float, last: float) -> None:
    """Plain numbers on the logarithmic axis, as many as stay apart."""
    steps = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
    between = (0.3, 0.4, 0.6, 0.7, 0.8, 1.2, 1.5, 2.5, 3, 4)
    near = last / first < 12
    shown = [s for s in sorted([*steps, *between]) if first <= s <= last]
    shown = [s for s in shown if near or s in steps]
    axes.set_xticks(shown, [f"{s:g}" for s in shown])
    axes.set_xticks([], minor=True)


PERCENTILES = {"p50": "median", "p75": "75th", "p90": "90th", "p95": "95th", "p99": "99th"}


def draw_reference(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Percentiles of the count over age, a panel for each sex.

    Parameters
    ----------
    rows : sequence of mapping
        ``sex``, ``age`` (years), and ``p50`` to ``p99`` (counts).
    name : str
        As `to_svg`.
    """
    sexes = _ordered(row["sex"] for row in rows)
    highest = max([row[key] for row in rows for key in PERCENTILES if row.get(key)], default=1)
    with drawing(330) as figure:
        panels = figure.subplots(1, len(sexes), sharey=True, squeeze=False)[0]
        for position, (sex, axes) in enumerate(zip(sexes, panels, strict=True)):
            own = sorted((r for r in rows if r["sex"] == sex), key=lambda r: r["age"])
            _draw_percentiles(axes, own, sex_colour(sex, position))
            axes.set_title(sex_name(sex), fontsize=12, loc="left")
            axes.set_xlabel("age (years)")
        panels[0].set_ylim(-0.04 * highest, 1.06 * highest)
        panels[0].set_ylabel("definite microbleeds")
        panels[0].yaxis.get_major_locator().set_params(integer=True)
        return to_svg(figure, name)


def _draw_percentiles(axes: Any, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    """One sex's percentiles, each named at its right end; those that end alike share a name."""
    ages = [row["age"] for row in rows]
    ends: dict[float, list[str]] = {}
    for rank, (key, title) in enumerate(PERCENTILES.items()):
        counts = [row.get(key) for row in rows]
        if any(count is None for count in counts):
            continue
        axes.step(
            ages, counts, where="mid", color=colour, lw=1 + 0.35 * rank, alpha=0.4 + 0.15 * rank
        )
        ends.setdefault(float(counts[-1] or 0), []).append(title)
    for count, titles in ends.items():
        axes.annotate(
            ", ".join(titles), (ages[-1], count), (6, 0), textcoords="offset points",
            va="center", fontsize=10,
        )  # fmt: skip
    axes.margins(x=0.02)


def draw_expected_share(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Modelled prevalence over age, a line for each sex, with its interval where there is one.

    Parameters
    ----------
    rows : sequence of mapping
        ``sex``, ``age`` (years), ``prevalence`` (0 to 1); ``prevalence_low`` and
        ``prevalence_high`` where known.
    name : str
        As `to_svg`.
    """
    sexes = _ordered(row["sex"] for row in rows)
    with drawing(260) as figure:
        axes = figure.add_subplot()
        for position, sex in enumerate(sexes):
            own = sorted((r for r in rows if r["sex"] == sex), key=lambda r: r["age"])
            ages, colour = [r["age"] for r in own], sex_colour(sex, position)
            shares = [100 * r["prevalence"] for r in own]
            axes.plot(ages, shares, color=colour, lw=2.2, label=sex_name(sex))
            if all(r.get("prevalence_low") is not None for r in own):
                bounds = [[100 * r[f"prevalence_{end}"] for r in own] for end in ("low", "high")]
                axes.fill_between(ages, *bounds, color=colour, alpha=0.18, lw=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("age (years)")
        axes.set_ylabel("at least one microbleed (%)")
        if len(sexes) > 1:
            axes.legend(loc="upper left")
        return to_svg(figure, name)


def draw_quality(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Shares of scans that pass, pass with a warning, or fail, a bar for each group.

    Parameters
    ----------
    rows : sequence of mapping
        ``group``, ``pass``, ``warn``, ``fail`` (numbers of scans).
    name : str
        As `to_svg`.
    """
    with drawing(90 + ROW_HEIGHT * len(rows)) as figure:
        axes = figure.add_subplot()
        totals = [sum(row[verdict] or 0 for verdict in VERDICT_COLOURS) or 1 for row in rows]
        start = [0.0] * len(rows)
        for verdict, colour in VERDICT_COLOURS.items():
            shares = [100 * (r[verdict] or 0) / t for r, t in zip(rows, totals, strict=True)]
            axes.barh(
                range(len(rows)), shares, left=start, color=colour, height=0.66, label=verdict
            )
            start = [s + share for s, share in zip(start, shares, strict=True)]
        axes.set_yticks(range(len(rows)), [shorten(str(row["group"])) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("share of scans (%)")
        figure.legend(loc="outside upper left", ncols=3)
        return to_svg(figure, name)
