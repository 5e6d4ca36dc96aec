"""Records of other sources in SQL: the same decisions as on paper, in one transaction with what they change, on both databases."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import text

from bookings import cells_of
from databases import DATABASES, settings_for
from tellings import NOW_US, all_entries, metered, net, stored_cells, told
from tokenweir import app
from tokenweir.ledger.entries import Entry
from tokenweir.ledger.sources import CLAUDE_CODE_LOG, CLAUDE_CODE_OTEL, GENERIC, Booked
from tokenweir.ledger_ports import ImportProgress
from tokenweir.storage.engine import reading
from tokenweir.storage.ledger import SqlLedger
from tokenweir.usage import Usage


@pytest.fixture(params=DATABASES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlLedger]:
    with settings_for(request.param, tmp_path) as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
        yield ledger


def test_a_record_is_booked_once_and_comes_back_as_it_was(store):
    record = told("m", "r", flags=("estimated",), tags=("project:/a",))
    assert store.book_told([record, record], now_us=NOW_US) == Booked(new=1)
    assert store.book_told([record], now_us=NOW_US) == Booked(matched=1)
    assert all_entries(store) == [record]
    assert stored_cells(store) == cells_of([record])


def test_a_row_that_grows_leaves_rollups_that_are_the_sum_of_the_entries(store):
    store.book_told([told("m", output=1)], now_us=NOW_US)
    assert store.book_told([told("m", output=50)], now_us=NOW_US) == Booked(grown=1)
    entries = all_entries(store)
    assert len(entries) == 3
    assert sum(one.cost_nanos for one in entries) == 1050
    assert stored_cells(store) == cells_of(entries)


@pytest.mark.parametrize("names", [("m", ""), ("", "req_tw_1"), ("", "up_1"), ("m", "req_tw_1")])
def test_a_call_that_the_gateway_metered_is_not_booked_again_whichever_comes_first(store, names):
    seen = metered(1, message="m", upstream="up_1")
    store.book([seen])
    assert store.book_told([told(*names)], now_us=NOW_US) == Booked(matched=1)
    assert all_entries(store) == [seen]


@pytest.mark.parametrize("names", [("m", ""), ("", "req_tw_1"), ("", "up_1"), ("m", "req_tw_1")])
def test_what_was_imported_is_taken_back_when_the_gateway_books_the_call(store, names):
    store.book_told([told(*names), told("other")], now_us=NOW_US)
    seen = metered(1, message="m", upstream="up_1")
    assert store.book([seen, metered(2)]) == 2
    assert store.book([seen]) == 0, "a replay takes nothing back again"
    entries = all_entries(store)
    assert sum(one.cost_nanos for one in entries) == 5001 + 5002 + 1010
    assert stored_cells(store) == cells_of(entries)
    assert store.book_told([told(*names, output=99)], now_us=NOW_US) == Booked(matched=1)


def test_two_records_that_only_a_third_ties_together_are_one_call(store):
    store.book_told([told("m"), told("", "r", source=CLAUDE_CODE_OTEL)], now_us=NOW_US)
    assert store.book_told([told("m", "r")], now_us=NOW_US) == Booked(matched=1)
    assert sum(one.usage.uncached_input for one in all_entries(store)) == 100
    assert store.book_told([told("m", output=500)], now_us=NOW_US) == Booked(matched=1)


def test_a_batch_that_fails_books_nothing_and_leaves_the_progress_where_it_was(store):
    place = ImportProgress(CLAUDE_CODE_LOG, "/a", byte_offset=10)
    store.book_told([told("m")], now_us=NOW_US, progress=place)
    bad = told("n", usage=Usage(2**70))
    with pytest.raises(Exception, match=r"(?i)too large|out of range"):
        store.book_told([told("o"), bad], now_us=NOW_US, progress=replace(place, byte_offset=20))
    assert len(all_entries(store)) == 1
    (found,) = store.progress_of(CLAUDE_CODE_LOG)
    assert (found.byte_offset, found.booked) == (10, Booked(new=1))


def test_many_who_tell_of_the_same_calls_at_once_while_the_gateway_books_them_book_each_once(store):
    numbers = range(1, 41)
    failures: list[BaseException] = []
    barrier = threading.Barrier(3)

    def tell(source: str, *, by_request: bool) -> None:
        records = [told("" if by_request else f"m{n}", f"req_tw_{n}", source=source, output=n) for n in numbers]
        barrier.wait()
        for start in range(0, 40, 7):
            store.book_told(records[start : start + 7], now_us=NOW_US)

    def book() -> None:
        barrier.wait()
        for n in list(numbers)[:30]:
            store.book([metered(n, message=f"m{n}")])

    def run(work, *arguments, **more) -> None:
        try:
            work(*arguments, **more)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(tell, CLAUDE_CODE_LOG), kwargs={"by_request": False}),
        threading.Thread(target=run, args=(tell, CLAUDE_CODE_OTEL), kwargs={"by_request": True}),
        threading.Thread(target=run, args=(book,)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    entries = all_entries(store)
    assert sum(one.cost_nanos for one in entries) == sum(5000 + n for n in range(1, 31)) + sum(1000 + n for n in range(31, 41))
    assert sum(sums[0] for sums in net(entries).values()) == 40
    assert stored_cells(store) == cells_of(entries)


@st.composite
def records(draw) -> Entry:
    message, request = draw(st.sampled_from(["", "m1", "m2", "m3"])), draw(st.sampled_from(["", "r1", "r2"]))
    source = draw(st.sampled_from(["gateway", CLAUDE_CODE_OTEL, CLAUDE_CODE_LOG, GENERIC]))
    if source == "gateway":
        return metered(draw(st.integers(1, 3)), message=message, request=request)
    return told(message, request, source=source, own="" if message or request else "row-1", output=draw(st.integers(0, 3)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records(), max_size=7), st.integers(0, 2**32))
def test_any_order_gives_the_same_net_ledger_in_the_database_too(store, told_of, seed):
    once: dict[str, Entry] = {}
    told_of = [one for one in told_of if one.source != "gateway" or once.setdefault(one.entry_id, one) is one]
    nets = []
    for round_no in range(2):
        with store._engine.begin() as connection:
            for table in ("entries", "call_names", "rollup_15m", "rollup_day"):
                connection.execute(text(f"DELETE FROM {table}"))
        shuffled = list(told_of)
        random.Random(seed + round_no).shuffle(shuffled)
        for one in shuffled:
            store.book([one]) if one.source == "gateway" else store.book_told([one], now_us=NOW_US)
        entries = all_entries(store)
        assert stored_cells(store) == cells_of(entries)
        nets.append(net(entries))
    assert nets[0] == nets[1]


def test_the_indexes_are_used_to_find_what_the_gateway_metered(tmp_path):
    with settings_for("sqlite", tmp_path) as chosen, closing(app.open_ledger(chosen, create=True)) as ledger, reading(ledger._engine) as connection:
        for column in ("message_id", "request_id", "upstream_request_id"):
            query = f"EXPLAIN QUERY PLAN SELECT entry_id FROM entries WHERE {column} IN ('a', 'b') AND source = 'gateway' AND kind = 'attempt'"
            plan = " ".join(row[3] for row in connection.execute(text(query)))
            assert f"entries_by_{column}" in plan
