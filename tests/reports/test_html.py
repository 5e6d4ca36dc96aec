"""The page asks nobody for anything, runs nothing, and shows the figures it was given, whatever names come from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from zoneinfo import ZoneInfo

from tokenweir.periods import DAY_US
from tokenweir.reports.answers import Answer
from tokenweir.reports.grouping import fill_cells
from tokenweir.reports.html import MODELS_MAX, PROJECTS_MAX, Page, draw_page
from tokenweir.reports.style import STYLE

AT_US = 1_795_348_536_338_000
PAGE = Page("day", "UTC", "2026-11-01 to 2026-11-22", "2026-11-22 12:00 UTC", "card-1", ("Estimated: $1.00 <b>for</b> one.",))
EVIL = '<script>alert("1")</script><img src=//x onerror=1>'


def cells(count=3, *, name="p"):
    answers = [Answer(AT_US + n * DAY_US, f"s{n}", f"{name}{n}", f"model-{n}", (1, 2, 3, 4, 5, 6, 7), (n + 1) * 10**9, n % 2) for n in range(count)]
    return fill_cells(answers, period="day", zone=ZoneInfo("UTC"))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.all = [], []

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))
        if tag not in {"meta", "rect", "line", "path", "circle"} or not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.open and self.open[-1] in {"meta", "link", "br"}:
            self.open.pop()
        assert self.open.pop() == tag


def tags(page):
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    return parser.all


def test_the_page_is_well_formed_and_asks_no_server_for_anything():
    page = draw_page(cells(), PAGE)
    for tag, attributes in tags(page):
        assert tag not in {"script", "link", "img", "iframe", "object", "base"}
        assert not {"src", "href", "onclick", "style"} & attributes.keys()
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_names_from_outside_are_text():
    page = draw_page(cells(name=EVIL), PAGE)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;for&lt;/b&gt;" in page
    tags(page)


def test_the_figures_are_those_of_the_cells():
    page = draw_page(cells(), PAGE)
    assert "$6.00" in page
    assert "of all classes" in page
    for text in ("model-2", "p2", "s2", "$3.00", "card-1", "2026-11-01 to 2026-11-22"):
        assert text in page


def test_many_models_share_the_last_colour_and_lists_end():
    page = draw_page(cells(40), PAGE)
    used = set(re.findall(r'class="(c\d)"', page))
    assert used <= {f"c{n}" for n in range(MODELS_MAX)}
    assert "others" in page
    assert f"and {40 - PROJECTS_MAX} more" in page
    tags(page)


def test_every_colour_has_a_light_and_a_dark_value():
    for name in re.findall(r"var\((--\w+)\)", STYLE):
        assert STYLE.count(f"{name}:") == 2, name


def test_a_page_about_nothing_says_so():
    page = draw_page(cells(0), PAGE)
    assert "Nothing was used" in page
    tags(page)
