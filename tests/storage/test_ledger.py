"""The ledger port, the same promises on SQLite and on PostgreSQL: once, exactly, and with rollups that are the sum of the entries."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from bookings import START_US, WRITER, cells_of, entry
from databases import DATABASES, settings_for
from tokenweir import app
from tokenweir.ledger.entries import FLAG_UNPRICED, Entry
from tokenweir.ledger.rollups import SUM_NAMES, dims_id, values
from tokenweir.ledger_ports import Checkpoint
from tokenweir.periods import DAY_US, QUARTER_US, day_start
from tokenweir.storage.ledger import SqlLedger
from tokenweir.usage import Certainty, Usage


@pytest.fixture(params=DATABASES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlLedger]:
    with settings_for(request.param, tmp_path) as chosen, closing(app.open_ledger(chosen, create=True)) as ledger:
        yield ledger


def stored_cells(ledger: SqlLedger) -> list[dict]:
    found = []
    with ledger.snapshot() as snapshot:
        for grain in ("15m", "day"):
            cells = list(snapshot.cells(grain))
            assert all(dims is not None and dims_id(dims) == number for _, number, dims, _ in cells)
            found.append({(bucket_us, dims): sums for bucket_us, _, dims, sums in cells if any(sums)})
    return found


def all_entries(ledger: SqlLedger) -> list[Entry]:
    with ledger.snapshot() as snapshot:
        return list(snapshot.entries())


def test_an_entry_comes_back_as_it_was_booked(store):
    odd = entry(
        1,
        begun={"session_id": "naïve ☃ 'quoted' %s ?", "client": "x" * 200, "tags": ("a,b", "[]", "")},
        usage=Usage(2**62, 0, 0, 0, -5),
        cost_nanos=-(2**62),
        certainty=Certainty.PARTIAL,
        flags=("unknown_usage_field:x", FLAG_UNPRICED),
        raw_usage=bytes(range(256)),
        status=0,
    )
    assert store.book([odd]) == 1
    assert all_entries(store) == [odd]
    assert store.entries_of(odd.attempt_id) == [odd]


def test_a_character_that_postgresql_does_not_have_is_replaced_in_both(store):
    store.book([entry(1, begun={"model_requested": "a\0b"}, model="a\0b")])
    (found,) = all_entries(store)
    assert found.model == "a\ufffdb"


def test_booking_again_in_any_order_and_number_changes_nothing(store):
    entries = [entry(n, at_us=START_US + n * 400_000_000) for n in range(30)]
    replay = random.Random(1)
    for _ in range(8):
        store.book(replay.choices(entries, k=replay.randint(0, 25)))
    assert store.book(entries + entries) <= 30
    assert store.book(entries) == 0
    assert all_entries(store) == sorted(entries, key=lambda one: one.entry_id)
    assert stored_cells(store) == cells_of(entries)


def test_the_first_booking_of_an_id_stands(store):
    first = entry(1)
    store.book([first])
    assert store.book([entry(1, cost_nanos=99)]) == 0
    assert all_entries(store) == [first]
    assert stored_cells(store) == cells_of([first])


def test_a_booking_that_fails_leaves_nothing_behind(store):
    bad = entry(2, usage=Usage(2**70))
    with pytest.raises(Exception, match=r"(?i)too large|out of range"):
        store.book([entry(1), bad], [Checkpoint(WRITER, 1, 10)])
    assert all_entries(store) == []
    assert store.checkpoints() == {}
    assert stored_cells(store) == [{}, {}]


def test_checkpoints_move_with_their_entries_and_can_be_forgotten(store):
    store.book([entry(1)], [Checkpoint(WRITER, 1, 10)])
    store.book([], [Checkpoint(WRITER, 2, 5), Checkpoint("f" * 32, 1, 1)])
    assert store.checkpoints() == {WRITER: Checkpoint(WRITER, 2, 5), "f" * 32: Checkpoint("f" * 32, 1, 1)}
    store.forget_checkpoints([WRITER, "nobody"])
    assert store.checkpoints() == {"f" * 32: Checkpoint("f" * 32, 1, 1)}


def test_two_who_book_the_same_entries_at_once_book_them_once(store):
    entries = [entry(n) for n in range(200)]
    new: list[int] = []
    barrier = threading.Barrier(4)

    def book() -> None:
        barrier.wait()
        new.extend(store.book(entries[start : start + 20]) for start in range(0, 200, 20))

    threads = [threading.Thread(target=book) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new) == 200
    assert stored_cells(store) == cells_of(entries)


def test_known_ids_pages_and_ranges(store):
    entries = sorted([entry(n) for n in range(1200)], key=lambda one: one.entry_id)
    store.book(entries)
    ids = [one.entry_id for one in entries]
    assert store.known([*ids, "nothing"]) == set(ids)
    assert store.page(limit=7) == entries[:7]
    assert store.page(after=entries[6].entry_id, limit=7) == entries[7:14]
    with store.snapshot() as snapshot:
        ranged = snapshot.entries(since_us=entries[10].started_at_us, until_us=entries[20].started_at_us)
        assert list(ranged) == entries[10:20]
        assert list(snapshot.entries(after=entries[1190].entry_id)) == entries[1191:]


def test_entries_are_found_by_flag_and_not_by_what_looks_like_it(store):
    store.book([entry(1, flags=("unpriced",)), entry(2, flags=("unpriced_not",)), entry(3, flags=("x", "unpriced")), entry(4, flags=("un%iced",))])
    with store.snapshot() as snapshot:
        assert [one.request_id for one in snapshot.entries(flag="unpriced")] == ["req_tw_1", "req_tw_3"]
        assert [one.request_id for one in snapshot.entries(flag="un%iced")] == ["req_tw_4"]


def test_a_snapshot_does_not_see_what_is_booked_after_it(store):
    store.book([entry(1)])
    with store.snapshot() as snapshot:
        assert len(list(snapshot.entries())) == 1
        store.book([entry(2)])
        assert len(list(snapshot.entries())) == 1
        assert sum(sums[0] for *_, sums in snapshot.cells("day")) == 1


def test_sums_by_any_dimension_and_filter_are_those_of_the_entries(store):
    entries = [entry(n, at_us=START_US + n * 1_700_000_000, model=f"m{n % 4}", flags=(FLAG_UNPRICED,) if n % 5 == 0 else ()) for n in range(120)]
    store.book(entries)
    extent = store.extent()
    assert extent == (day_start(entries[0].started_at_us), day_start(entries[-1].started_at_us) + DAY_US)
    cost = SUM_NAMES.index("cost_nanos")
    for by, key in ((["model"], lambda e: (e.model,)), (["team_id", "key_id"], lambda e: (e.team_id, e.key_id)), ([], lambda _: ())):
        for spans in ([("15m", *extent)], [("day", *extent)]):
            cells = store.sums(spans, by=by, only={"unpriced": ["0"], "model": ["m1", "m2"]})
            chosen = [one for one in entries if one.model in ("m1", "m2") and not one.flags]
            expected = {key(one): sum(other.cost_nanos for other in chosen if key(other) == key(one)) for one in chosen}
            assert {cell.group: values(cell.sums)[cost] for cell in cells} == expected
    assert store.sums([("day", 0, DAY_US)]) == []
    with pytest.raises(ValueError, match="not a dimension"):
        store.sums([("day", *extent)], by=["cost_nanos; DROP TABLE entries"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=6), max_size=6))
def test_any_batches_leave_what_a_dictionary_would_hold(store, batches):
    with store._engine.begin() as connection:
        for table in ("entries", "rollup_15m", "rollup_day", "dims"):
            connection.execute(text(f"DELETE FROM {table}"))
    model: dict[str, Entry] = {}
    for batch in batches:
        entries = [entry(n, at_us=START_US + n * QUARTER_US // 3, cost_nanos=1 + variant) for n, variant in batch]
        before = len(model)
        for one in entries:
            model.setdefault(one.entry_id, one)
        assert store.book(entries) == len(model) - before
    assert all_entries(store) == [one for _, one in sorted(model.items())]
    assert stored_cells(store) == cells_of(model.values())
