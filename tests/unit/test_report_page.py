"""The page: escaped, self-contained, readable by machines, the same every time."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from cmb_bids.report.page import (
    RESEARCH_USE,
    Bullets,
    Cell,
    Details,
    Facts,
    Figure,
    Gallery,
    Section,
    Table,
    Text,
    Widget,
    p_value,
    percent_interval,
    render_page,
    show,
)

HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Outline(HTMLParser):
    """Tags in order, text, attributes; fails where tags do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    def inside(self, tag):
        return [text for name, text in self.text if name == tag]


def every_block():
    return [
        Text(HOSTILE),
        Text(HOSTILE, "warning"),
        Bullets([HOSTILE]),
        Facts([(HOSTILE, HOSTILE), ("n", 40000)]),
        Table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, 1], [Cell(HOSTILE, HOSTILE), 2]], note=HOSTILE),
        Figure(HOSTILE, HOSTILE, png=b"\x89PNG"),
        Gallery([Figure(HOSTILE, HOSTILE, source='fig"ures/<a>.png')]),
        Details(HOSTILE, [Text(HOSTILE), Widget("w", "<b>mine</b>", "1;", {"a": HOSTILE})]),
    ]


def test_everything_from_data_is_escaped():
    page = render_page(HOSTILE, [Section(HOSTILE, every_block())], subtitle=HOSTILE)
    outline = Outline(page)
    assert outline.open == []
    assert "<script>alert" not in page
    # Only the page's own: its script, the widget's, and the widget's data.
    assert outline.count("script") == 3
    assert outline.inside("h1") == [HOSTILE]
    assert outline.inside("h2") == [HOSTILE]
    assert HOSTILE in outline.inside("caption")
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert images[0]["alt"] == HOSTILE
    assert images[1]["src"] == 'fig"ures/<a>.png'
    data = next(text for tag, text in outline.text if tag == "script" and "{" in text[:1])
    assert json.loads(data) == {"a": HOSTILE}


def test_a_browser_may_load_nothing_and_run_only_the_page_s_scripts():
    page = render_page("t", [Section("s", every_block())])
    outline = Outline(page)
    policy = next(a["content"] for tag, a in outline.tags if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    executed = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(executed) == 2
    for script in executed:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "http://" not in page
    assert "https://" not in page


def test_says_that_it_is_no_diagnosis_and_is_the_same_every_time():
    page = render_page("t", [Section("a", [Text("x")], [Section("b")])])
    assert page.count(RESEARCH_USE) == 2
    assert page == render_page("t", [Section("a", [Text("x")], [Section("b")])])


def test_headings_and_contents_follow_the_sections():
    page = render_page("t", [Section("One & two", [], [Section("Below")]), Section("Last")])
    outline = Outline(page)
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert links == ["#content", "#one-two", "#last"]
    assert outline.inside("h3") == ["Below"]
    with pytest.raises(ValueError, match="same anchor"):
        render_page("t", [Section("a"), Section("A")])
    page = render_page("t", [Section("a"), Section("a", anchor="Other 2")])
    assert 'id="other-2"' in page


def test_numbers_stand_right_and_sort_by_value():
    table = Table(
        "t",
        ["name", "n", "share", "p", "empty"],
        [
            ["a", 40000, percent_interval(0.1, 0.05, 0.2), p_value(0.0004), None],
            ["b", None, percent_interval(None, None, None), p_value(float("nan")), float("nan")],
        ],
    )
    assert table.numeric == [False, True, True, True, False]
    assert [cell.text for cell in table.cells[0]] == [
        "a",
        "40\u202f000",
        "10.0 % (5.0 to 20.0)",
        "< .001",
        "n/a",
    ]
    assert [cell.text for cell in table.cells[1]] == ["b", "n/a", "n/a", "n/a", "n/a"]
    page = render_page("t", [Section("s", [table])])
    assert 'class="number" data-value="40000"' in page


def test_a_table_without_rows_says_so():
    assert "No rows." in render_page("t", [Section("s", [Table("t", ["a", "b"], [])])])


def test_a_table_whose_rows_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="1 cells under 2"):
        Table("t", ["a", "b"], [["x"]])


@pytest.mark.parametrize(
    "wrong",
    [
        {"alt": " ", "png": b""},
        {"alt": "a"},
        {"alt": "a", "png": b"", "svg": ""},
        {"alt": "a", "source": "https://example.org/a.png"},
        {"alt": "a", "source": "//example.org/a.png"},
    ],
)
def test_a_figure_needs_words_and_one_image_from_here(wrong):
    with pytest.raises(ValueError):
        Figure("caption", **wrong)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1\u202f234\u202f567"),
        (0.0, "0.00"),
        (1.23456, "1.23"),
        (123.456, "123"),
        (-0.00123, "−0.00123"),
        (1e-9, "1.00e−09"),
        (float("inf"), "∞"),
        (float("nan"), "n/a"),
        (None, "n/a"),
        (True, "yes"),
        ("text", "text"),
    ],
)
def test_numbers_are_shown_as_people_read_them(value, text):
    assert show(value) == text
