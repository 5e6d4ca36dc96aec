"""Calendar cycles against a calendar that walks days one by one; windows as they are written."""

from __future__ import annotations

from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limit_oracle import first_day, local_day, next_first_day
from tokenweir.limits.cycle import bounds, cycle_label, parse_window, window_text
from tokenweir.limits.limit import AMOUNT_MAX, Cycle, Resource, Rolling
from tokenweir.periods import DAY_US, SECOND_US, format_instant, parse_instant

HOUR_US = 3600 * SECOND_US
ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Chatham"),
    # Zones whose clocks change at midnight, or are half an hour aside.
    *("America/Santiago", "America/Havana", "Asia/Beirut", "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia", "America/St_Johns"),
)
CYCLES = st.one_of(
    st.builds(Cycle, st.just("day"), st.sampled_from(ZONES)),
    st.builds(Cycle, st.just("week"), st.sampled_from(ZONES), st.sampled_from(("", *"1234567"))),
    st.builds(Cycle, st.just("month"), st.sampled_from(ZONES), st.sampled_from(("", *map(str, range(1, 32))))),
    st.builds(
        Cycle,
        st.sampled_from(("quarter", "year")),
        st.sampled_from(ZONES),
        st.sampled_from(("", "01-31", "02-29", "04-01", "08-31", "11-30", "12-31")),
    ),
    st.builds(
        Cycle,
        st.just("days"),
        st.sampled_from(ZONES),
        st.dates().map(str).filter(lambda text: "1990" < text < "2060"),
        st.sampled_from((1, 2, 7, 14, 30, 366)),
    ),
)
INSTANTS = st.integers(parse_instant("1999-01-01"), parse_instant("2040-01-01"))


def of(cycle: Cycle, moment: str) -> tuple[str, str]:
    start_us, end_us = bounds(cycle, parse_instant(moment))
    return format_instant(start_us)[:16], format_instant(end_us)[:16]


@given(CYCLES, INSTANTS)
def test_every_instant_is_in_exactly_one_cycle(cycle, at_us):
    """The cycle of an instant holds it, and is the cycle of its own first and last microsecond, and no other."""
    start_us, end_us = bounds(cycle, at_us)
    assert start_us <= at_us < end_us
    assert bounds(cycle, end_us - 1) == (start_us, end_us) == bounds(cycle, start_us)
    assert bounds(cycle, start_us - 1)[1] == start_us
    assert bounds(cycle, end_us)[0] == end_us


@given(CYCLES.filter(lambda cycle: cycle.timezone != "Pacific/Apia"), INSTANTS)
def test_cycles_are_those_of_a_calendar_on_the_wall(cycle, at_us):
    """A cycle begins with the local day that a person with a calendar would name."""
    zone, wall = ZoneInfo(cycle.timezone), (cycle.unit, cycle.anchor, cycle.length_days)
    start_us, end_us = bounds(cycle, at_us)
    first = first_day(*wall, local_day(zone, at_us))
    assert local_day(zone, start_us) == first > local_day(zone, start_us - 1)
    assert local_day(zone, end_us) == next_first_day(*wall, first) > local_day(zone, end_us - 1)


@pytest.mark.parametrize("zone", sorted(available_timezones() - {"localtime", "posixrules"})[::7])
def test_days_abut_in_every_zone(zone):
    """Day after day through two years, no instant is left out or counted twice, whatever a zone did with its clocks."""
    cycle, at_us = Cycle("day", zone), parse_instant("2010-12-15")
    starts = []
    while at_us < parse_instant("2012-01-15"):
        start_us, at_us = bounds(cycle, at_us)
        starts.append(start_us)
    lengths = {(end_us - start_us) / HOUR_US for start_us, end_us in pairwise(starts)}
    assert lengths <= {21, 22, 23, 23.5, 24, 24.5, 25, 26, 27}
    assert all(local_day(ZoneInfo(zone), start_us) > local_day(ZoneInfo(zone), start_us - 1) for start_us in starts)


def test_days_of_23_and_25_hours():
    """In Berlin the last Sunday of March is an hour short and that of October an hour long."""
    berlin = Cycle("day", "Europe/Berlin")
    assert of(berlin, "2026-03-29T12:00Z") == ("2026-03-28T23:00", "2026-03-29T22:00")
    assert of(berlin, "2026-10-25T12:00Z") == ("2026-10-24T22:00", "2026-10-25T23:00")


def test_a_day_without_a_midnight_begins_with_the_change():
    """In Santiago clocks go from midnight to one in September: the day begins at one."""
    assert of(Cycle("day", "America/Santiago"), "2026-09-06T12:00Z") == ("2026-09-06T04:00", "2026-09-07T03:00")


def test_a_midnight_that_comes_twice_begins_one_day():
    """In Havana clocks go from one back to midnight in November: the day begins with the first."""
    assert of(Cycle("day", "America/Havana"), "2026-11-01T04:30Z") == ("2026-11-01T04:00", "2026-11-02T05:00")
    assert of(Cycle("day", "America/Havana"), "2026-11-01T05:30Z") == ("2026-11-01T04:00", "2026-11-02T05:00")


def test_a_gap_that_begins_before_midnight():
    """In Toronto in 1919 clocks went from half past eleven to half past midnight: the day begins there, and not an hour later."""
    assert of(Cycle("day", "America/Toronto"), "1919-03-31T12:00Z") == ("1919-03-31T04:30", "1919-04-01T04:00")


def test_a_day_that_never_was():
    """Samoa left out 30 December 2011: the 29th ends where the 31st begins, and a fortnight over it is a day short."""
    apia = Cycle("day", "Pacific/Apia")
    assert of(apia, "2011-12-30T09:59Z") == ("2011-12-29T10:00", "2011-12-30T10:00")
    assert of(apia, "2011-12-30T10:00Z") == ("2011-12-30T10:00", "2011-12-31T10:00")
    start_us, end_us = bounds(Cycle("days", "Pacific/Apia", "2011-12-25", 14), parse_instant("2011-12-30T12:00Z"))
    assert end_us - start_us == 13 * DAY_US


@pytest.mark.parametrize(
    ("anchor", "starts"),
    [
        ("29", ("2026-01-29", "2026-02-28", "2026-03-29", "2026-04-29")),
        ("30", ("2026-01-30", "2026-02-28", "2026-03-30", "2026-04-30")),
        ("31", ("2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30")),
        ("15", ("2026-01-15", "2026-02-15", "2026-03-15", "2026-04-15")),
    ],
)
def test_months_that_are_too_short_begin_on_their_last_day(anchor, starts):
    """An anchor on the 31st is the last day of every month, and returns to the 31st after February."""
    for start, end in pairwise(starts):
        assert of(Cycle("month", "UTC", anchor), f"{start}T00:00Z") == (f"{start}T00:00", f"{end}T00:00")


def test_leap_days():
    """In a leap year February's last day is the 29th, and a fiscal year from it begins on the 28th in others."""
    assert of(Cycle("month", "UTC", "30"), "2024-03-01") == ("2024-02-29T00:00", "2024-03-30T00:00")
    assert of(Cycle("year", "UTC", "02-29"), "2026-11-22") == ("2026-02-28T00:00", "2027-02-28T00:00")
    assert of(Cycle("year", "UTC", "02-29"), "2024-02-28") == ("2023-02-28T00:00", "2024-02-29T00:00")


def test_quarters_of_a_fiscal_year():
    """Quarters count from the fiscal start, and each begins on its day or the month's last."""
    assert of(Cycle("quarter"), "2026-11-22") == ("2026-10-01T00:00", "2027-01-01T00:00")
    assert of(Cycle("quarter", "UTC", "02-01"), "2026-11-22") == ("2026-11-01T00:00", "2027-02-01T00:00")
    assert of(Cycle("quarter", "UTC", "01-31"), "2026-11-22") == ("2026-10-31T00:00", "2027-01-31T00:00")
    assert of(Cycle("quarter", "UTC", "08-31"), "2026-11-29") == ("2026-08-31T00:00", "2026-11-30T00:00")
    assert of(Cycle("year", "UTC", "04-01"), "2026-03-31") == ("2025-04-01T00:00", "2026-04-01T00:00")


def test_weeks_and_days_from_an_anchor():
    """A week begins on its weekday; a cycle of days begins on its date and every so many days, before it too."""
    assert of(Cycle("week"), "2026-11-22") == ("2026-11-16T00:00", "2026-11-23T00:00")
    assert of(Cycle("week", "UTC", "7"), "2026-11-22") == ("2026-11-22T00:00", "2026-11-29T00:00")
    assert of(Cycle("days", "UTC", "2026-11-16", 14), "2026-11-22") == ("2026-11-16T00:00", "2026-11-30T00:00")
    assert of(Cycle("days", "UTC", "2026-11-16", 14), "2026-11-15") == ("2026-11-02T00:00", "2026-11-16T00:00")


def test_a_cycle_in_a_zone_with_odd_minutes():
    """Kathmandu is five hours and three quarters ahead, Chatham twelve or thirteen and three quarters."""
    assert of(Cycle("month", "Asia/Kathmandu"), "2026-11-30T18:20Z") == ("2026-11-30T18:15", "2026-12-31T18:15")
    assert of(Cycle("month", "Pacific/Chatham"), "2026-04-15") == ("2026-03-31T10:15", "2026-04-30T11:15")


def test_asking_about_the_past_and_then_the_present():
    """The answer that is remembered is only given for instants that are in it."""
    cycle = Cycle("day", "Europe/Berlin")
    for moment in ("2026-11-22T12:00Z", "2020-01-01T12:00Z", "2026-11-22T12:00Z", "2026-11-22T22:59Z", "2026-11-22T23:00Z"):
        start_us, end_us = bounds(cycle, parse_instant(moment))
        assert start_us <= parse_instant(moment) < end_us


@pytest.mark.parametrize(
    ("cycle", "moment", "label"),
    [
        (Cycle("day", "Asia/Kathmandu"), "2026-11-21T18:15Z", "2026-11-22"),
        (Cycle("week"), "2026-11-22", "week of 2026-11-16"),
        (Cycle("month", "Pacific/Chatham"), "2026-11-22", "November 2026"),
        (Cycle("month", "UTC", "1"), "2026-11-22", "November 2026"),
        (Cycle("month", "UTC", "31"), "2026-11-22", "month from 2026-10-31"),
        (Cycle("quarter"), "2026-11-22", "Q4 2026"),
        (Cycle("quarter", "UTC", "02-01"), "2026-11-22", "quarter from 2026-11-01"),
        (Cycle("year", "UTC", "01-01"), "2026-11-22", "2026"),
        (Cycle("year", "UTC", "04-01"), "2026-11-22", "year from 2026-04-01"),
        (Cycle("days", "UTC", "2026-11-16", 14), "2026-11-22", "14 days from 2026-11-16"),
        (Cycle("days", "UTC", "2026-11-16", 1), "2026-11-22", "1 day from 2026-11-22"),
        (Cycle("day", "America/Santiago"), "2026-09-06T12:00Z", "2026-09-06"),
    ],
)
def test_labels(cycle, moment, label):
    """A cycle is called as people call it, by its local date."""
    assert cycle_label(cycle, bounds(cycle, parse_instant(moment))[0]) == label


@pytest.mark.parametrize(
    ("text", "more", "window"),
    [
        ("rolling:60s", {}, Rolling(60 * SECOND_US)),
        ("rolling:5m", {}, Rolling(300 * SECOND_US)),
        ("ROLLING:24H", {}, Rolling(DAY_US)),
        ("rolling:366d", {}, Rolling(366 * DAY_US)),
        (" rolling:60s:burst=20 ", {}, Rolling(60 * SECOND_US, 20)),
        ("day", {}, Cycle("day")),
        ("day", {"timezone": "utc"}, Cycle("day")),
        ("week", {"anchor": "7"}, Cycle("week", "UTC", "7")),
        ("week", {"anchor": "Sunday"}, Cycle("week", "UTC", "7")),
        ("week", {"anchor": "mon"}, Cycle("week", "UTC", "1")),
        ("month", {"timezone": "Europe/Berlin", "anchor": "last"}, Cycle("month", "Europe/Berlin", "31")),
        ("month", {"anchor": "05"}, Cycle("month", "UTC", "5")),
        ("quarter", {"anchor": "02-29"}, Cycle("quarter", "UTC", "02-29")),
        ("year", {}, Cycle("year")),
        ("14d", {"anchor": "2026-11-16"}, Cycle("days", "UTC", "2026-11-16", 14)),
        ("every:14d", {"anchor": "2026-11-16"}, Cycle("days", "UTC", "2026-11-16", 14)),
    ],
)
def test_windows_are_read(text, more, window):
    """Windows are written as people say them, in small letters or large."""
    assert parse_window(text, resource=Resource.TOKENS, **more) == window


def test_a_burst_of_spend_is_in_dollars():
    """A burst of a spend limit is written in dollars; a small number without their sign was meant in dollars too, and is refused."""
    assert parse_window("rolling:1h:burst=$0.50", resource=Resource.SPEND) == Rolling(HOUR_US, 500_000_000)
    assert parse_window("rolling:1h:burst=500000000", resource=Resource.SPEND) == Rolling(HOUR_US, 500_000_000)
    for text in ("5", "$0.0001", "$-5", "$much", "0"):
        with pytest.raises(ValueError, match=r"burst '.*' of the window is not an amount of at least \$0\.001, like burst=\$0\.50"):
            parse_window(f"rolling:1h:burst={text}", resource=Resource.SPEND)


def test_concurrency_has_no_window():
    """What is counted at every moment has no window, and everything else has one."""
    assert parse_window("", resource=Resource.CONCURRENCY) is None
    for more in ({"text": "day"}, {"text": "", "timezone": "UTC"}, {"text": "", "anchor": "1"}):
        with pytest.raises(ValueError, match=r"'.+': concurrency is counted at every moment and has no (window|timezone|anchor); leave it out"):
            parse_window(resource=Resource.CONCURRENCY, **more)
    with pytest.raises(ValueError, match="window is missing; write rolling:60s, day, week"):
        parse_window(" ", resource=Resource.REQUESTS)


@pytest.mark.parametrize(
    ("text", "more", "sentence"),
    [
        ("rolling", {}, "window 'rolling' is not a rolling window; write a number and s, m, h or d, like rolling:60s or rolling:5m:burst=20"),
        ("rolling:60", {}, "window 'rolling:60' is not a rolling window"),
        ("rolling:1.5h", {}, "window 'rolling:1.5h' is not a rolling window"),
        ("rolling:-1s", {}, "window 'rolling:-1s' is not a rolling window"),
        ("rolling:6\u0660s", {}, "is not a rolling window"),
        ("rolling:60w", {}, "window 'rolling:60w' is not a rolling window"),
        ("rolling:24h/1000", {}, "window 'rolling:24h/1000' is not a rolling window"),
        ("rolling:0s", {}, "window 'rolling:0s': a rolling window is between 1s and 366d long"),
        ("rolling:367d", {}, "window 'rolling:367d': a rolling window is between 1s and 366d long"),
        ("rolling:1m:burst=0", {}, "burst '0' of the window is not a whole number from 1, like burst=20"),
        ("rolling:1m:burst=2.5", {}, "burst '2.5' of the window is not a whole number"),
        ("rolling:1m:burst=²", {}, "burst '²' of the window is not a whole number"),
        (f"rolling:1m:burst={AMOUNT_MAX + 1}", {}, "of the window is not a whole number"),
        ("rolling:1m:burst=$2", {}, "burst '$2' of the window is not a whole number"),
        ("rolling:1m", {"timezone": "UTC"}, "timezone 'UTC': a rolling window moves with time and has none; leave it out or choose day, week"),
        ("rolling:1m", {"anchor": "3"}, "anchor '3': a rolling window moves with time and has none"),
        ("fortnight", {}, "window 'fortnight' is not known; write rolling:60s, day, week, month, quarter, year or every:14d"),
        ("days", {}, "window 'days' is not known"),
        ("day", {"timezone": "Berlin"}, "timezone 'Berlin' is not known; write it like Europe/Berlin or UTC"),
        ("day", {"timezone": "Europe"}, "timezone 'Europe' is not known"),
        ("day", {"timezone": "../../etc/passwd"}, "timezone '../../etc/passwd' is not known"),
        ("day", {"timezone": "Europe/Berlin\0"}, "is not known; write it like Europe/Berlin"),
        ("day", {"timezone": "localtime"}, "timezone 'localtime' is not known"),
        ("day", {"anchor": "3"}, "anchor '3': a day begins at midnight and has no anchor; leave it out"),
        ("week", {"anchor": "8"}, "anchor '8' of a week is not a weekday; write 1 (Monday) to 7 (Sunday)"),
        ("week", {"anchor": "m"}, "anchor 'm' of a week is not a weekday"),
        ("month", {"anchor": "0"}, "anchor '0' of a month is not a day of the month"),
        ("month", {"anchor": "00"}, "anchor '0' of a month is not a day of the month"),
        ("month", {"anchor": "32"}, "anchor '32' of a month is not a day of the month; write 1 to 31, or last"),
        ("month", {"anchor": "-1"}, "anchor '-1' of a month is not a day of the month"),
        ("quarter", {"anchor": "3"}, "anchor '3' of a quarter is not the month and day on which the fiscal year begins; write it like 04-01"),
        ("year", {"anchor": "02-30"}, "anchor '02-30' of a year is not the month and day on which the fiscal year begins"),
        ("year", {"anchor": "13-01"}, "anchor '13-01' of a year is not the month and day"),
        ("14d", {}, "anchor is missing; every:14d needs the date on which one of its cycles begins, like 2026-11-16"),
        ("14d", {"anchor": "2026-02-30"}, "anchor '2026-02-30' of every:14d is not a date on which a cycle begins"),
        ("14d", {"anchor": "20261116"}, "anchor '20261116' of every:14d is not a date on which a cycle begins"),
        ("0d", {"anchor": "2026-11-16"}, "window 'every:0d': a cycle is between 1 and 366 days long"),
        ("367d", {"anchor": "2026-11-16"}, "window 'every:367d': a cycle is between 1 and 366 days long"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(text, more, sentence):
    """Each wrong unit, zone and anchor is refused with its field, its value and what would be right."""
    with pytest.raises(ValueError, match=r"^[a-z]+ ") as wrong:
        parse_window(text, resource=Resource.TOKENS, **more)
    assert sentence in str(wrong.value)
    assert "\n" not in str(wrong.value)


@given(st.one_of(CYCLES, st.builds(Rolling, st.integers(1, 366 * 86_400).map(lambda seconds: seconds * SECOND_US), st.integers(0, AMOUNT_MAX))))
def test_a_window_that_is_written_is_read_again(window):
    """What is written is what was read, with the zone and the anchor beside it."""
    more = {"timezone": window.timezone, "anchor": window.anchor} if isinstance(window, Cycle) else {}
    assert parse_window(window_text(window), resource=Resource.TOKENS, **more) == window


@pytest.mark.parametrize(
    ("window", "text"),
    [
        (None, ""),
        (Rolling(60 * SECOND_US), "rolling:60s"),
        (Rolling(90 * SECOND_US), "rolling:90s"),
        (Rolling(HOUR_US), "rolling:60m"),
        (Rolling(5 * HOUR_US, 7), "rolling:5h:burst=7"),
        (Rolling(DAY_US), "rolling:24h"),
        (Rolling(7 * DAY_US), "rolling:7d"),
        (Cycle("days", "UTC", "2026-11-16", 14), "every:14d"),
        (Cycle("quarter"), "quarter"),
    ],
)
def test_windows_are_written(window, text):
    """Windows are written as rates are usually told."""
    assert window_text(window) == text
