"""Rows add up to the same totals by whatever they are grouped, and periods are those of the time zone."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.periods import parse_instant
from tokenweir.reports.answers import BY_SUBAGENT, UNPRICED, Answer
from tokenweir.reports.grouping import GROUPS, PERIODS, Doubt, figures, fill_cells, group, period_label, read_groups, total

UTC = ZoneInfo("UTC")
NOON_US = parse_instant("2026-11-22T12:00:00Z")
ANSWERS = st.lists(
    st.builds(
        Answer,
        st.integers(NOON_US - 10**13, NOON_US + 10**13),
        st.sampled_from("st"),
        st.sampled_from("pq"),
        st.sampled_from("mn"),
        st.tuples(*[st.integers(0, 9)] * 7),
        st.integers(0, 10**12),
        st.sampled_from([0, BY_SUBAGENT, UNPRICED, BY_SUBAGENT | UNPRICED]),
    ),
    max_size=12,
)


@given(ANSWERS, st.sampled_from(PERIODS), st.sampled_from(["UTC", "Asia/Kathmandu", "America/St_Johns"]), st.sets(st.sampled_from(GROUPS[3:])))
def test_rows_add_up_to_totals_that_are_the_same_by_anything(answers, period, zone, others):
    cells = fill_cells(answers, period=period, zone=ZoneInfo(zone))
    rows = group(cells, [period, *others])
    assert sum(row.sums.cost_nanos for row in rows) == total(cells).cost_nanos == sum(answer.cost_nanos for answer in answers)
    for place, name in enumerate(figures(total(cells))):
        if place < 7:
            assert sum(figures(row.sums)[name] for row in rows) == sum(answer.counts[place] for answer in answers)
    assert sum(row.sums.answers for row in rows) == len(answers)
    assert all((row.model is not None) == ("model" in others) and row.period is not None for row in rows)
    assert [(row.period, row.model or "", row.project or "", row.session or "") for row in rows] == sorted(
        (row.period, row.model or "", row.project or "", row.session or "") for row in rows
    )


@given(ANSWERS, st.integers(NOON_US - 10**13, NOON_US + 10**13))
def test_two_ranges_that_meet_hold_everything_once(answers, border):
    before = total(fill_cells(answers, period="day", zone=UTC, until_us=border))
    after = total(fill_cells(answers, period="day", zone=UTC, since_us=border))
    assert before.answers + after.answers == len(answers)


def test_doubts_are_told_apart_with_what_they_cost():
    answers = [Answer(NOON_US, "s", "p", "m", (0,) * 7, cost, doubts) for cost, doubts in ((5, 0), (7, BY_SUBAGENT), (11, BY_SUBAGENT | UNPRICED))]
    cells = fill_cells(answers, period="day", zone=UTC)
    assert cells.doubts == (Doubt(BY_SUBAGENT, 2, 18), Doubt(UNPRICED, 1, 11))
    assert cells.unpriced_models == ("m",)
    assert figures(total(cells))["estimated"] is True


def test_periods_are_days_iso_weeks_and_months_of_the_zone():
    late = parse_instant("2027-01-01T00:30:00Z")
    assert [period_label(late, period, UTC) for period in PERIODS] == ["2027-01-01", "2026-W53", "2027-01"]
    assert period_label(late, "day", ZoneInfo("America/New_York")) == "2026-12-31"


def test_the_share_of_the_cache_is_rounded_and_absent_without_a_prompt():
    sums = total(fill_cells([Answer(NOON_US, "", "", "", (1, 0, 0, 2, 9, 0, 0), 0, 0)], period="day", zone=UTC))
    assert sums.cache_permille == 667
    assert total(fill_cells([], period="day", zone=UTC)).cache_permille is None


def test_what_to_group_by_is_read_strictly():
    assert read_groups(" week, model,model") == ("week", "model")
    for wrong in ("", "hour", "day,week"):
        with pytest.raises(ValueError, match=r"group by|choose one"):
            read_groups(wrong)
