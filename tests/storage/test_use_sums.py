"""What was used, told to those who count beside the ledger: the same as entries and rollups say, on both databases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from bookings import START_US, entry
from databases import DATABASES, settings_for
from tokenweir import app
from tokenweir.ledger.adjustments import Truth, correct, standing
from tokenweir.ledger.entries import Entry
from tokenweir.ledger.rollups import Sums
from tokenweir.ledger_ports import Use
from tokenweir.metering.seeding import use_of
from tokenweir.periods import DAY_US, QUARTER_US, day_start
from tokenweir.storage import use_sums
from tokenweir.storage.ledger import SqlLedger
from tokenweir.usage import Certainty, Usage


@pytest.fixture(params=DATABASES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlLedger]:
    with settings_for(request.param, tmp_path) as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
        yield ledger


def filled(store: SqlLedger, count: int = 120) -> list[Entry]:
    """Attempts of five days, some of them corrected, and one call that another source told of."""
    chance = random.Random(5)
    entries = [
        entry(
            n,
            at_us=START_US + chance.randrange(5 * DAY_US),
            begun={"session_id": chance.choice(("", "s1", "s2"))},
            usage=Usage(*(chance.randrange(1000) for _ in range(5))),
            cost_nanos=chance.randrange(10**6),
            model=chance.choice(("m1", "m2")),
        )
        for n in range(count)
    ]
    for one in entries[::7]:
        model = chance.choice((one.model, "m3"))
        truth = Truth(Usage(output=1), 5, model, Certainty.EXACT, (), "test", service_tier=one.service_tier)
        entries += correct(standing([one]), truth, reason="operator: test", now_us=START_US + 6 * DAY_US)
    store.book(entries)
    store.book_told(
        [replace(entries[0], entry_id="f" * 32, attempt_id="f" * 32, source="import", dedup_key="x", message_id="other")], now_us=START_US
    )
    return entries


def without_errors(use: Use) -> Use:
    return replace(use, sums=replace(use.sums, errors=0))


def test_uses_are_those_of_the_entries(store):
    """Attempts and corrections of the gateway's own in the stretch of time, with the requests that rollups count; nobody else's."""
    entries = filled(store)
    since_us, until_us = START_US + DAY_US, START_US + 3 * DAY_US
    with store.snapshot() as snapshot:
        found = list(snapshot.uses(since_us, until_us))
        of_key = list(snapshot.uses(since_us, until_us, only={"key_id": ["key_1"]}))
        made = snapshot.adjustments(START_US + 6 * DAY_US)
        assert snapshot.adjustments(START_US + 7 * DAY_US) == []
    expected = [without_errors(use_of(one)) for one in entries if since_us <= one.started_at_us < until_us]
    assert sorted(found, key=lambda use: use.entry_id) == sorted(expected, key=lambda use: use.entry_id)
    assert {use.entry_id for use in of_key} == {use.entry_id for use in expected if use.key_id == "key_1"}
    assert {use.entry_id for use in made} == {one.entry_id for one in entries if one.kind == "adjustment"}


@pytest.mark.parametrize("seeks_max", [0, use_sums.SEEKS_MAX])
def test_cells_are_the_same_however_they_are_read(store, monkeypatch, seeks_max):
    """One pass over all cells, or a seek for each: the sums are those that every other figure is made of."""
    monkeypatch.setattr(use_sums, "SEEKS_MAX", seeks_max)
    filled(store)
    first = day_start(START_US)
    spans = [("15m", START_US + QUARTER_US, first + DAY_US), ("day", first + DAY_US, first + 4 * DAY_US)]
    with store.snapshot() as snapshot:
        dims = {number: who for number, *who in snapshot.dims({"source": ("gateway",), "model": ("m1", "m2")})}
        for buckets in (False, True):
            found: dict[tuple, Sums] = {}
            for bucket_us, number, sums in snapshot.sums_of(spans, list(dims), buckets=buckets):
                place = bucket_us, tuple(dims[number])
                found[place] = found.get(place, Sums()) + sums
            by = ("organization_id", "team_id", "key_id", "model")
            only = {"source": ("gateway",), "model": ("m1", "m2")}
            assert found == {(cell.bucket_us, cell.group): cell.sums for cell in store.sums(spans, by=by, only=only, buckets=buckets)}
        assert list(snapshot.sums_of(spans, [])) == []


def test_sessions_are_summed_by_who_and_what(store):
    """By id, or by their key where a request named none; with buckets, by quarters of an hour."""
    entries = filled(store)
    since_us, until_us = START_US + DAY_US, START_US + 4 * DAY_US
    with store.snapshot() as snapshot:
        for buckets in (False, True):
            cells = snapshot.session_sums(since_us, until_us, ["s1", "key_2"], buckets=buckets)
            expected: dict[tuple, Sums] = {}
            for one in map(use_of, entries):
                named = one.session_id == "s1" or (not one.session_id and one.key_id == "key_2")
                if named and since_us <= one.started_at_us < until_us:
                    quarter = one.started_at_us - one.started_at_us % QUARTER_US if buckets else 0
                    place = quarter, (one.organization_id, one.team_id, one.key_id, one.model, one.session_id)
                    expected[place] = expected.get(place, Sums()) + without_errors(one).sums
            assert {(cell.bucket_us, cell.group): cell.sums for cell in cells} == expected


def test_attempts_are_found_by_their_request(store):
    """For many requests at once, without corrections and without what others told."""
    entries = filled(store)
    attempts = {one.entry_id: one for one in entries if one.kind == "attempt"}
    asked = [one.request_id for one in list(attempts.values())[::2]] + [f"req_{n}" for n in range(1000)]
    assert {one.entry_id: one for one in store.attempts_of(asked)} == {one.entry_id: one for one in attempts.values() if one.request_id in asked}
