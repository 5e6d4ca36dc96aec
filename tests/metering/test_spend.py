"""Spend: every total agrees with the entries to the nano-dollar, in every zone and grouping."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookings import entry
from tokenweir import app
from tokenweir.ledger.rollups import ZERO, Sums, amounts
from tokenweir.metering.spend import GROUPS, TIME_GRAINS, Query, label, parse_moment, spend, time_zone
from tokenweir.periods import QUARTER_US, SECOND_US, to_datetime, to_micros
from tokenweir.settings import Settings

ZONES = ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Chatham", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago"]
FIRST = to_micros(datetime(2026, 3, 1, tzinfo=UTC))
DAYS = 250
ENTRIES = [
    entry(
        n,
        at_us=FIRST + (n * 7_919 * 61 * SECOND_US) % (DAYS * 86_400 * SECOND_US),
        cost_nanos=n * n,
        model=f"m{n % 3}",
        status=(200, 500)[n % 7 == 0],
    )
    for n in range(700)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with closing(app.open_ledger(Settings(data_dir=tmp_path_factory.mktemp("spend")), create=True)) as ledger:
        ledger.book(ENTRIES)
        yield ledger


def total(entries) -> Sums:
    return Sums(*[sum(column) for column in zip(*map(amounts, entries), strict=True)]) if entries else ZERO


@settings(max_examples=150, deadline=None)
@given(
    since=st.none() | st.integers(-5, DAYS * 96),
    length=st.none() | st.integers(0, DAYS * 96),
    timezone=st.sampled_from(ZONES),
    grain=st.none() | st.sampled_from(TIME_GRAINS),
    by=st.lists(st.sampled_from(["model", "team", "key", "certainty"]), unique=True, max_size=2),
    models=st.none() | st.lists(st.sampled_from(["m0", "m1", "m2", "none"]), max_size=2, min_size=1),
)
def test_any_question_is_answered_with_the_sums_of_the_entries(store, since, length, timezone, grain, by, models):
    since_us = None if since is None else FIRST + since * QUARTER_US
    until_us = None if length is None else (since_us or FIRST) + length * QUARTER_US
    query = Query(since_us, until_us, timezone, grain, tuple(by), {} if models is None else {"model": tuple(models)})
    report = spend(store, query)
    zone = time_zone(timezone)
    chosen = [
        one
        for one in ENTRIES
        if (since_us is None or one.started_at_us >= since_us)
        and (until_us is None or one.started_at_us < until_us)
        and (models is None or one.model in models)
    ]
    assert report.totals == total(chosen)
    groups = {}
    for one in chosen:
        local = to_datetime(one.started_at_us).astimezone(zone)
        when = {
            None: None,
            "15m": to_datetime(one.started_at_us // QUARTER_US * QUARTER_US).astimezone(zone).isoformat(timespec="minutes"),
            "hour": local.replace(minute=0, second=0, microsecond=0).isoformat(timespec="minutes"),
            "day": local.date().isoformat(),
            "month": local.strftime("%Y-%m"),
        }[grain]
        groups.setdefault((when, tuple(getattr(one, GROUPS[name]) for name in by)), []).append(one)
    if timezone != "Australia/Lord_Howe" or grain != "hour":
        assert {((label(row.start_us, grain, zone) if grain else None), row.group): row.sums for row in report.rows} == {
            place: total(entries) for place, entries in groups.items()
        }


def test_a_range_within_a_quarter_is_taken_outward(store):
    one = ENTRIES[5]
    report = spend(store, Query(one.started_at_us, one.started_at_us + 1))
    assert report.since_us % QUARTER_US == report.until_us % QUARTER_US == 0
    assert report.since_us <= one.started_at_us < report.until_us
    assert report.totals.requests >= 1


def test_the_days_of_a_clock_change_have_23_and_25_hours(store, tmp_path):
    zone = ZoneInfo("Europe/Berlin")
    for day, hours in ((29, 23), (25, 25)):
        month = 3 if day == 29 else 10
        begin = to_micros(datetime(2026, month, day, tzinfo=zone))
        end = to_micros(datetime(2026, month, day + 1, tzinfo=zone))
        assert end - begin == hours * 3_600 * SECOND_US
        with closing(app.open_ledger(Settings(data_dir=tmp_path / str(day)), create=True)) as ledger:
            ledger.book([entry(n, at_us=begin - QUARTER_US + n * QUARTER_US) for n in range(hours * 4 + 2)])
            rows = spend(ledger, Query(timezone="Europe/Berlin", grain="day")).rows
            assert [(label(row.start_us, "day", zone)[-2:], row.sums.requests) for row in rows] == [
                (f"{day - 1:02}", 1),
                (f"{day:02}", hours * 4),
                (f"{day + 1:02}", 1),
            ]


def test_an_empty_ledger_and_an_empty_range_have_no_rows(store, tmp_path):
    with closing(app.open_ledger(Settings(data_dir=tmp_path), create=True)) as empty:
        assert spend(empty, Query(grain="day")).rows == ()
    assert spend(store, Query(FIRST - 10**12, FIRST - 10**11)).totals == ZERO


def test_what_is_not_known_is_named(store):
    with pytest.raises(ValueError, match="grouped by"):
        spend(store, Query(by=("cost_nanos; --",)))
    for zone in ("Mars/Olympus", "../../etc/passwd", ""):
        with pytest.raises(ValueError, match="not a time zone"):
            spend(store, Query(timezone=zone))


def test_a_date_is_midnight_where_it_is_asked_for():
    assert parse_moment("2026-11-22", ZoneInfo("Asia/Kathmandu")) == to_micros(datetime(2026, 11, 21, 18, 15, tzinfo=UTC))
    assert parse_moment("2026-11-22T00:00:00Z", ZoneInfo("Asia/Kathmandu")) == to_micros(datetime(2026, 11, 22, tzinfo=UTC))
    with pytest.raises(ValueError, match="not a date"):
        parse_moment("yesterday", UTC)
