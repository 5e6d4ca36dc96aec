"""Bookkeeping: whatever was cut, killed, torn or read twice, the ledger holds each attempt once."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bookings import START_US, WRITER, DictLedger, StoppedClock, intent, settlement
from tokenweir.errors import StoreUnavailable
from tokenweir.ledger.entries import FLAG_UNKNOWN, Settlement, settled_entry, unknown_entry
from tokenweir.metering import journal_files as files
from tokenweir.metering.frames import encode_frame
from tokenweir.metering.journal import JournalWriter
from tokenweir.settings import JournalSettings
from tokenweir.usage import Certainty, Usage
from tokenweir.workers.bookkeeping import FLAG_UNBOOKABLE, Bookkeeper, end_turn, take_turn
from tokenweir.workers.journal_tail import WriterTail

SMALL = JournalSettings(segment_bytes=65_536, reserve_bytes=65_536)
CLOCK = StoppedClock()


def keeper(directory: Path, store: DictLedger, batch: int = 3) -> Bookkeeper:
    return Bookkeeper(directory, store, batch_entries_max=batch, clock=CLOCK)


def settle_up(books: Bookkeeper) -> int:
    new = 0
    for _ in range(10_000):
        new += books.step()
        if books.settled_up:
            return new
    raise AssertionError("bookkeeping does not come to an end")


def book_all(directory: Path, store: DictLedger, batch: int = 3) -> int:
    with closing(keeper(directory, store, batch)) as books:
        return settle_up(books)


def write_segments(directory: Path, *segments: list, writer: str = WRITER) -> None:
    directory.mkdir(exist_ok=True)
    for number, records in enumerate(segments, 1):
        files.segment_path(directory, writer, number).write_bytes(b"".join(map(encode_frame, records)))


def expected(records: list, clock: StoppedClock = CLOCK) -> dict:
    """What the ledger must hold after the writer of these records died."""
    intents = {record.attempt_id: record for record in records if not isinstance(record, Settlement)}
    settled = {record.attempt_id: record for record in records if isinstance(record, Settlement)}
    return {
        name: settled_entry(begun, settled[name]) if name in settled else unknown_entry(begun, now_us=clock.now_us())
        for name, begun in intents.items()
    }


def interleaved(count: int, seed: int = 7, *, unsettled: int = 0) -> list:
    """Records of `count` attempts, in the order of a busy gateway; the last few are never settled."""
    order, records, waiting = random.Random(seed), [], []
    for n in range(count):
        records.append(intent(n))
        if n < count - unsettled:
            waiting.append(settlement(intent(n), cost_nanos=n))
        while waiting and order.random() < 0.5:
            records.append(waiting.pop(order.randrange(len(waiting))))
    return records + waiting


def test_a_living_writer_is_followed_and_its_finished_segments_are_deleted(tmp_path):
    store = DictLedger()
    with closing(JournalWriter(tmp_path, SMALL, writer=WRITER)) as journal, closing(keeper(tmp_path, store, 50)) as books:
        first = intent(0)
        journal.append_intent(first)
        for n in range(1, 600):
            journal.append_intent(intent(n))
            journal.append_settlement(settlement(intent(n)))
        assert settle_up(books) == 599
        assert books.open_intents == 1
        assert files.writers(tmp_path)[WRITER][0] == 1, "an open intent keeps its segment"
        journal.append_settlement(settlement(first))
        assert settle_up(books) == 1
        assert len(files.writers(tmp_path)[WRITER]) == 1, "only the live segment is left"
    assert len(store.booked) == 600


def test_a_dead_writer_is_booked_to_the_end_and_leaves_nothing(tmp_path):
    store, records = DictLedger(), interleaved(40, unsettled=5)
    journal = JournalWriter(tmp_path, SMALL, writer=WRITER)
    for record in records:
        journal.append_settlement(record) if isinstance(record, Settlement) else journal.append_intent(record)
    with closing(keeper(tmp_path, store)) as books:
        settle_up(books)
        assert len(store.booked) == 35, "as long as it lives, an open attempt may still be settled"
        journal.close()
        assert settle_up(books) == 5
    assert store.booked == expected(records)
    unknown = [entry for entry in store.booked.values() if FLAG_UNKNOWN in entry.flags]
    assert {(entry.certainty, entry.status, entry.cost_nanos == entry.ceiling_nanos) for entry in unknown} == {(Certainty.CEILING, 0, True)}
    assert [entry.entry_id for entry in unknown] == sorted(entry.entry_id for entry in unknown)
    assert list(tmp_path.iterdir()) == []
    assert store.moved == {}


def test_every_prefix_of_a_segment_recovers_to_the_same_ledger_as_its_whole_records(tmp_path):
    """A crash image for every byte: what was whole is booked, what was begun is unknown, nothing is twice, nothing is left."""
    records = interleaved(6, unsettled=1)
    frames = [encode_frame(record) for record in records]
    whole = b"".join(frames)
    ends = [sum(map(len, frames[: n + 1])) for n in range(len(frames))]
    for cut in range(len(whole) + 1):
        directory = tmp_path / "journal"
        directory.mkdir()
        files.segment_path(directory, WRITER, 1).write_bytes(whole[:cut])
        store = DictLedger()
        book_all(directory, store)
        assert store.booked == expected(records[: sum(end <= cut for end in ends)])
        assert list(directory.iterdir()) == []
        shutil.rmtree(directory)


def test_a_crash_of_the_worker_after_any_step_and_a_lost_checkpoint_change_nothing(tmp_path):
    records = interleaved(60, unsettled=4)
    cuts = [0, 30, 70, len(records)]
    parts = [records[a:b] for a, b in pairwise(cuts)]
    for steps in range(30):
        for lost in (False, True):
            directory = tmp_path / "journal"
            write_segments(directory, *parts)
            store = DictLedger()
            with closing(keeper(directory, store)) as first:
                for _ in range(steps):
                    first.step()
                for tail in first._tails.values():  # the lock dies with the process
                    if tail._lock is not None:
                        os.close(tail._lock)
                        tail._lock = None
            if lost:
                store.moved.clear()
            book_all(directory, store)
            assert store.booked == expected(records)
            assert list(directory.iterdir()) == []
            shutil.rmtree(directory)


def test_old_segments_that_come_back_from_a_backup_change_nothing(tmp_path, caplog):
    records = interleaved(30)
    store = DictLedger()
    write_segments(tmp_path / "a", records)
    shutil.copytree(tmp_path / "a", tmp_path / "backup")
    book_all(tmp_path / "a", store)
    before = dict(store.booked)
    for seed in range(3):
        order = random.Random(seed)
        write_segments(tmp_path / f"again{seed}", order.choices(records, k=50), order.choices(records, k=20))
        book_all(tmp_path / f"again{seed}", store)
    assert book_all(tmp_path / "backup", store) == 0
    assert store.booked == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(
        st.sampled_from(["begin", "begin", "settle", "settle", "book", "kill gateway", "kill worker", "store down", "store up"]), max_size=60
    )
)
def test_any_order_of_traffic_crashes_and_outages_ends_with_each_attempt_booked_once(tmp_path, actions):
    directory = tmp_path / "journal"
    shutil.rmtree(directory, ignore_errors=True)
    store, written, opened, generation = DictLedger(), [], [], 0
    journal = JournalWriter(directory, SMALL, writer=f"{generation:032x}")
    books = keeper(directory, store)
    try:
        for number, action in enumerate(actions):
            if action == "begin":
                journal.append_intent(intent(number))
                written.append(intent(number))
                opened.append(intent(number))
            elif action == "settle" and opened:
                done = settlement(opened.pop(number % len(opened)), cost_nanos=number)
                journal.append_settlement(done)
                written.append(done)
            elif action == "book":
                try:
                    books.step()
                except StoreUnavailable:
                    assert store.failing
            elif action == "kill gateway":
                journal.close()
                opened, generation = [], generation + 1
                journal = JournalWriter(directory, SMALL, writer=f"{generation:032x}")
            elif action == "kill worker":
                books.close()
                for tail in books._tails.values():
                    if tail._lock is not None:
                        os.close(tail._lock)
                books = keeper(directory, store)
            elif action == "store down":
                store.failing = StoreUnavailable()
            elif action == "store up":
                store.failing = None
        store.failing = None
        journal.close()
        settle_up(books)
        assert store.booked == expected(written)
        assert list(directory.iterdir()) == []
        assert books.open_intents == 0
    finally:
        journal.close()
        books.close()


def test_a_store_that_is_down_is_asked_again_with_the_same_batch(tmp_path):
    write_segments(tmp_path, interleaved(10))
    store = DictLedger()
    with closing(keeper(tmp_path, store)) as books:
        books.step()
        store.failing = StoreUnavailable()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                books.step()
        assert files.writers(tmp_path), "nothing is deleted that is not booked"
        store.failing = None
        settle_up(books)
    assert len(store.booked) == 10


def test_damage_is_said_loudly_and_kept_and_what_is_behind_it_is_booked(tmp_path, caplog):
    records = interleaved(20)
    frames = [encode_frame(record) for record in records]
    damaged = bytearray(b"".join(frames))
    hit = len(frames[0]) + len(frames[1]) // 2
    damaged[hit] ^= 0xFF
    tmp_path.mkdir(exist_ok=True)
    files.segment_path(tmp_path, WRITER, 1).write_bytes(bytes(damaged))
    store = DictLedger()
    book_all(tmp_path, store)
    assert store.booked == expected([record for n, record in enumerate(records) if n != 1 and not (n and record.attempt_id == records[1].attempt_id)])
    events = [(record.getMessage(), record.levelname, record.fields) for record in caplog.records]
    assert ("journal_corrupt", "CRITICAL") in {(event, level) for event, level, _ in events}
    assert next(fields for event, _, fields in events if event == "journal_corrupt")["offset"] == len(frames[0])
    assert [path.name for path in tmp_path.iterdir()] == [f"{WRITER}-00000001.seg.damaged"]


def test_a_missing_segment_is_said_loudly(tmp_path, caplog):
    write_segments(tmp_path, [intent(1)], [intent(2)], [settlement(intent(2)), settlement(intent(1))])
    files.segment_path(tmp_path, WRITER, 2).unlink()
    store = DictLedger()
    book_all(tmp_path, store)
    assert set(store.booked) == {intent(1).attempt_id}
    details = [record.fields["detail"] for record in caplog.records if record.levelname == "CRITICAL"]
    assert details == ["the segment is missing", "a settlement has no intent"]


def test_a_torn_end_of_a_living_writer_is_waited_for(tmp_path):
    lock = files.take_lock(files.lock_path(tmp_path, WRITER))
    path = files.segment_path(tmp_path, WRITER, 1)
    content = encode_frame(intent(1)) + encode_frame(settlement(intent(1)))
    store = DictLedger()
    with closing(keeper(tmp_path, store)) as books:
        for cut in (0, 3, 9, 200, len(content) - 1):
            path.write_bytes(content[:cut])
            assert settle_up(books) == 0
        path.write_bytes(content)
        assert settle_up(books) == 1
        os.close(lock)
        settle_up(books)
    assert list(tmp_path.iterdir()) == []


def test_the_reserve_of_a_full_disk_is_read_like_any_segment(tmp_path):
    lock = files.take_lock(files.lock_path(tmp_path, WRITER))
    write_segments(tmp_path, [intent(1), intent(2)])
    reserve = files.segment_path(tmp_path, WRITER, 2)
    reserve.write_bytes((encode_frame(settlement(intent(1)))).ljust(2_000_000, b"\0"))
    store = DictLedger()
    with closing(keeper(tmp_path, store)) as books:
        assert settle_up(books) == 1
        both = encode_frame(settlement(intent(1))) + encode_frame(settlement(intent(2)))
        with reserve.open("r+b") as file:
            file.write(both)
        assert settle_up(books) == 1
        files.segment_path(tmp_path, WRITER, 3).write_bytes(encode_frame(intent(3)) + encode_frame(settlement(intent(3))))
        assert settle_up(books) == 1
        assert files.writers(tmp_path)[WRITER] == [3]
    os.close(lock)


def test_one_entry_that_no_column_takes_does_not_hold_up_the_others(tmp_path, caplog):
    class Narrow(DictLedger):
        def book(self, entries, checkpoints=()):
            if any(entry.usage.output >= 2**63 for entry in entries):
                raise OverflowError("Python int too large")
            return super().book(entries, checkpoints)

    records = [record for n in range(5) for record in (intent(n), settlement(intent(n), usage=Usage(output=2**63 if n == 2 else n)))]
    write_segments(tmp_path, records)
    store = Narrow()
    book_all(tmp_path, store, 100)
    assert len(store.booked) == 5
    odd = store.booked[intent(2).attempt_id]
    assert (odd.cost_nanos, odd.certainty, odd.flags) == (odd.ceiling_nanos, Certainty.CEILING, (FLAG_UNBOOKABLE,))
    assert FLAG_UNBOOKABLE in [record.fields.get("flag") for record in caplog.records]


def test_an_unknown_attempt_never_ends_before_it_began(tmp_path):
    late = intent(1, at_us=START_US + 10**12)
    write_segments(tmp_path, [late])
    store = DictLedger()
    book_all(tmp_path, store)
    assert store.booked[late.attempt_id].ended_at_us == late.started_at_us


def test_only_one_worker_has_the_turn(tmp_path):
    turn = take_turn(tmp_path)
    assert take_turn(tmp_path) is None
    end_turn(turn)
    again = take_turn(tmp_path)
    assert again is not None
    end_turn(again)


def test_what_a_gateway_wrote_in_its_last_moment_is_read_before_it_is_given_up(tmp_path, monkeypatch):
    """The settlement comes, and the gateway dies, between the last look at the segment and the look at the lock."""
    lock = files.take_lock(files.lock_path(tmp_path, WRITER))
    write_segments(tmp_path, [intent(1)])
    real = WriterTail.bury

    def bury(tail: WriterTail) -> bool:
        if tail._lock is None:
            with files.segment_path(tmp_path, WRITER, 1).open("ab") as file:
                file.write(encode_frame(settlement(intent(1))))
            files.segment_path(tmp_path, WRITER, 2).write_bytes(encode_frame(intent(2)) + encode_frame(settlement(intent(2))))
            os.close(lock)
        return real(tail)

    monkeypatch.setattr(WriterTail, "bury", bury)
    store = DictLedger()
    with closing(keeper(tmp_path, store)) as books:
        books.step()
        settle_up(books)
    assert [entry.certainty for entry in store.booked.values()] == [Certainty.EXACT] * 2
