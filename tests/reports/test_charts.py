"""A chart says what its numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.reports.charts import BOTTOM, TOP, Series, bar, line, nice_ceiling, share, stacked_columns

HEIGHT = 300


@given(st.integers(0, 10**15))
def test_a_ceiling_is_the_least_round_number_that_holds_the_value_in_four_round_steps(value):
    ceiling = nice_ceiling(value)
    assert ceiling >= value
    assert ceiling % 4 == 0 or ceiling == 10
    assert ceiling <= max(4, 3 * value)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), min_size=1, max_size=40))
def test_columns_are_as_high_as_their_values_and_titled_with_them(pairs):
    series = [Series("one", "c0", tuple(a for a, _ in pairs)), Series("<two>", "c1", tuple(b for _, b in pairs))]
    svg = stacked_columns([f"2026-11-{n:02}" for n in range(len(pairs))], series, height=HEIGHT, text=str, title="t")
    root = ET.fromstring(svg)
    ceiling = nice_ceiling(max(a + b for a, b in pairs))
    marks = list(root.iter("rect"))
    assert len(marks) == sum((a > 0) + (b > 0) for a, b in pairs)
    for mark in marks:
        value = int(mark.find("title").text.rpartition(" ")[2])
        wanted = (HEIGHT - TOP - BOTTOM) * value / ceiling
        assert abs(float(mark.get("height")) - max(wanted, 0.6)) <= 0.11


def test_a_line_has_a_gap_where_there_is_nothing():
    svg = line(list("abcde"), [100, 200, None, 300, 400], height=100, title="t")
    assert svg.count("<path") == 2
    assert svg.count("<circle") == 4
    ET.fromstring(svg)


def test_what_is_drawn_for_nothing_is_nothing():
    ET.fromstring(stacked_columns([], [], height=100, text=str, title="empty"))
    assert 'width="0.0"' in bar(0, 0, "c0")
    assert (share(None), share(0), share(1000), share(934)) == ("-", "0.0 %", "100.0 %", "93.4 %")


def test_labels_do_not_run_into_each_other():
    svg = stacked_columns([f"2026-W{n:02}" for n in range(200)], [Series("a", "c0", (1,) * 200)], height=100, text=str, title="t")
    places = [float(x) for x in re.findall(r'x="([\d.]+)" y="92" text-anchor="middle"', svg)]
    assert len(places) > 3
    assert min(b - a for a, b in pairwise(places)) >= 60
