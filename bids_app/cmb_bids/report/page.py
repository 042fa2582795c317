"""A self-contained HTML page: text, tables, figures, one style sheet, no outside file.

A page is a list of `Section`, each a list of blocks:

=============  =================================================================
`Text`         a paragraph, a note or a warning
`Bullets`      a list of sentences
`Facts`        a few numbers that are read first
`Table`        rows under column names; sorted by a click on a name
`Figure`       one image with caption and alternative text
`Gallery`      many small figures side by side
`Details`      blocks that are folded until asked for
`Widget`       markup of our own with its script and data (a calculator)
=============  =================================================================

``render_page(title, sections)`` gives the page as text; write it with
`cmb_bids.volumes.write_text`. Everything is escaped except a figure's SVG and a widget's markup,
which only code of this package makes. The page's content security policy lets a browser load
nothing from elsewhere and run no script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from cmb_bids import __version__

RESEARCH_USE = (
    "Research use only. Nothing on this page is a diagnosis, and nothing on it is fit to guide "
    "the care of a patient."
)
MISSING = "n/a"
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Text:
    """A paragraph; ``tone`` is ``plain``, ``note`` (something to know) or ``warning``."""

    text: str
    tone: str = "plain"
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Facts:
    """Pairs (name, value) that are read first; a value is shown as `show` writes it."""

    items: Sequence[tuple[str, Any]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Cell:
    """What a table shows as ``text`` and sorts by ``value`` (a number, text or None)."""

    text: str
    value: float | str | None = None
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of numbers, text, None or `Cell` under column names.

    A column whose values are all numbers or missing is aligned to the right. ``first_is_heading``
    makes the first column the heading of its row.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    first_is_heading: bool = True
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells under {len(self.columns)} column names: {row}")

    @cached_property
    def cells(self) -> list[list[Cell]]:
        """Every value as a `Cell`; once, as the template asks for it in every row."""
        return [[_as_cell(value) for value in row] for row in self.rows]

    @cached_property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        columns = zip(*self.cells, strict=True) if self.rows else ((),) * len(self.columns)
        return [_all_numbers(cell.value for cell in column) for column in columns]


class Tile(NamedTuple):
    """A part of an image, in its pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Figure:
    """An image, given as one of ``svg`` (markup), ``png`` (bytes) or ``source`` (relative path).

    ``alt`` says in words what the image shows, for those who cannot see it. ``width_px`` is the
    most it takes; None lets it fill the column. ``tile`` shows a part of a larger image only.
    """

    caption: str
    alt: str
    svg: str | None = None
    png: bytes | None = None
    source: str | None = None
    width_px: int | None = None
    tile: Tile | None = None
    kind: ClassVar[str] = "figure"

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a figure needs alternative text")
        if sum(given is not None for given in (self.svg, self.png, self.source)) != 1:
            raise ValueError("a figure is an SVG, a PNG or a relative path: give one of them")
        if self.source is not None and ("//" in self.source or ":" in self.source):
            raise ValueError(f"a figure's path is relative to the page, not {self.source}")

    @property
    def address(self) -> str:
        """What the image element points to."""
        if self.png is None:
            return self.source or ""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Gallery:
    """Figures side by side, as many to a row as fit at ``width_px`` each."""

    figures: Sequence[Figure]
    width_px: int = 260
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Details:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: Sequence[Any]
    kind: ClassVar[str] = "details"


@dataclass(frozen=True)
class Widget:
    """Markup and script of this package, with data that the script finds by ``identifier``.

    The data stand as JSON in ``<script type="application/json" id="{identifier}-data">``.
    """

    identifier: str
    markup: str
    script: str
    data: Any
    kind: ClassVar[str] = "widget"


Block = Text | Bullets | Facts | Table | Figure | Gallery | Details | Widget


@dataclass(frozen=True)
class Section:
    """A heading, its blocks, and sections below it (one level).

    Sections are anchors: the identifier is made of ``anchor``, or of the title where none is
    given. Sections with the same title need different anchors.
    """

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = field(default_factory=tuple)
    anchor: str = ""

    @property
    def identifier(self) -> str:
        """Name of the anchor."""
        text = (self.anchor or self.title).lower()
        words = "".join(c if c.isalnum() else " " for c in text).split()
        return "-".join(words) or "section"


def show(value: Any, digits: int = 3) -> str:
    """A value as people read it: whole numbers grouped, others to ``digits`` figures, or n/a."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if hasattr(value, "item"):  # a numpy scalar
        return show(value.item(), digits)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        if value and not 1e-4 <= abs(value) < 1e6:
            return f"{value:.{digits - 1}e}".replace("-", "−")
        places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else digits - 1
        return f"{value:.{places}f}".replace("-", "−")
    return str(value)


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as a percentage."""
    missing = share is None or math.isnan(share)
    return MISSING if missing or share is None else f"{100 * share:.{digits}f} %"


def percent_interval(share: float | None, low: float | None, high: float | None) -> Cell:
    """A share with its interval, as a cell that sorts by the share."""
    if share is None or low is None or high is None or math.isnan(share):
        return Cell(MISSING)
    return Cell(f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})", share)


def p_value(p: float | None) -> Cell:
    """A p-value as a cell: three decimals, or < .001."""
    if p is None or math.isnan(p):
        return Cell(MISSING)
    return Cell("< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0"), p)


def _as_cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if hasattr(value, "item"):
        value = value.item()
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing or isinstance(value, bool) or not isinstance(value, (int, float)):
        return Cell(show(value), None if missing else show(value))
    return Cell(show(value), value)


def _all_numbers(values: Iterable[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, (int, float)) for value in known)


@cache
def read_asset(name: str) -> str:
    """Text of a file in ``report/templates``."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _widgets(blocks: Iterable[Any]) -> Iterable[Widget]:
    for block in blocks:
        if isinstance(block, Widget):
            yield block
        elif isinstance(block, Details):
            yield from _widgets(block.blocks)


def _flat(sections: Iterable[Section]) -> Iterable[Section]:
    for section in sections:
        yield section
        yield from _flat(section.sections)


def _policy(scripts: Iterable[str]) -> str:
    """Content security policy: nothing from elsewhere, no script but these."""
    hashes = [hashlib.sha256(script.encode("utf-8")).digest() for script in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(h).decode('ascii')}'" for h in hashes)
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: 'self'; "
        f"style-src 'unsafe-inline'; script-src {allowed}"
    )


def render_page(
    title: str, sections: Sequence[Section], *, subtitle: str = "", made_by: str = "cmb-bids"
) -> str:
    """The page as text.

    Parameters
    ----------
    title : str
        Heading and name of the page.
    sections : sequence of Section
        In the order they are read; each is listed in the contents.
    subtitle : str
        A line under the heading.
    made_by : str
        The command that made the page, for its last line.

    Returns
    -------
    str
        HTML. The same arguments give the same text: no date, no random name.

    Raises
    ------
    ValueError
        Two sections have the same anchor.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    names = [section.identifier for section in _flat(sections)]
    if len(set(names)) < len(names):
        raise ValueError(f"two sections of one page have the same anchor: {names}")
    scripts = [read_asset("page.js")]
    for section in _flat(sections):
        scripts += [widget.script for widget in _widgets(section.blocks)]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"show": show, "markup": Markup}
    return environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        style=Markup(read_asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        research_use=RESEARCH_USE,
        made_by=made_by,
        version=__version__,
    )
