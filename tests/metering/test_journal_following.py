"""Following journals without touching them: what is settled, what is open, whose writer is dead."""

from __future__ import annotations

import os
import random
from contextlib import closing

import pytest

from bookings import START_US, WRITER, intent, settlement
from tokenweir.ledger_ports import Checkpoint
from tokenweir.metering import journal_files as files
from tokenweir.metering.frames import encode_frame
from tokenweir.metering.journal import JournalWriter
from tokenweir.metering.journal_following import JournalFollower
from tokenweir.metering.seeding import use_of
from tokenweir.settings import JournalSettings

SMALL = JournalSettings(segment_bytes=65_536, reserve_bytes=65_536)


def seen(follower: JournalFollower) -> dict[str, int]:
    return {name: use.sums.cost_nanos for name, use in follower.unbooked(now_us=START_US).items()}


def open_in(follower: JournalFollower) -> set[str]:
    return set(follower._writers[WRITER].open)


def test_every_prefix_of_a_segment_reads_as_its_whole_records(tmp_path):
    """Cut at any byte, by a crash or because it is just being written: what is whole counts, and reading on finds the rest."""
    records = [record for n in range(3) for record in (intent(n), settlement(intent(n), cost_nanos=n + 1))]
    frames = [encode_frame(record) for record in records]
    whole, path = b"".join(frames), files.segment_path(tmp_path, WRITER, 1)
    ends = [sum(map(len, frames[: n + 1])) for n in range(len(frames))]
    follower = JournalFollower(tmp_path, use_of)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        follower.catch_up({})
        begun = sum(cut >= end for end in ends[::2])
        settled = sum(cut >= end for end in ends[1::2])
        ceilings = {intent(n).attempt_id: intent(n).ceiling_nanos for n in range(settled, begun)}
        assert seen(follower) == {intent(n).attempt_id: n + 1 for n in range(settled)} | ceilings


@pytest.mark.parametrize("seed", range(3))
def test_reading_on_is_the_same_as_reading_anew(tmp_path, seed):
    """Over several segments, with checkpoints that move and segments that are deleted behind them."""
    chance, follower = random.Random(seed), JournalFollower(tmp_path, use_of)
    booked: set[str] = set()
    with closing(JournalWriter(tmp_path, SMALL, writer=WRITER)) as journal:
        for n in range(900):
            journal.append_intent(intent(n))
            if chance.random() < 0.9:
                journal.append_settlement(settlement(intent(n), cost_nanos=n))
            if n % 100 == 99:
                follower.catch_up({})
                anew = JournalFollower(tmp_path, use_of)
                anew.catch_up({})
                assert seen(follower) == {name: nanos for name, nanos in seen(anew).items() if name not in booked}
                assert open_in(follower) == open_in(anew)
                done = chance.sample(sorted(seen(follower)), len(seen(follower)) // 2)
                follower.forget(done)
                booked.update(done)


def test_what_lies_before_the_checkpoint_only_closes_what_was_begun(tmp_path):
    """It is in the ledger already; an attempt that was begun before it and settled behind it is not."""
    frames = [*map(encode_frame, (intent(1), intent(2), settlement(intent(1)), settlement(intent(2), cost_nanos=9)))]
    files.segment_path(tmp_path, WRITER, 1).write_bytes(b"".join(frames))
    follower = JournalFollower(tmp_path, use_of)
    follower.catch_up({WRITER: Checkpoint(WRITER, 1, sum(map(len, frames[:3])))})
    assert seen(follower) == {intent(2).attempt_id: 9}


def test_a_settlement_without_its_intent_was_booked(tmp_path):
    """Its intent's segment is deleted only when the attempt is in the ledger."""
    files.segment_path(tmp_path, WRITER, 2).write_bytes(encode_frame(settlement(intent(1))))
    follower = JournalFollower(tmp_path, use_of)
    follower.catch_up({})
    assert seen(follower) == {}


def test_what_a_living_writer_has_open_is_under_way(tmp_path):
    """It counts only once its writer is dead; looking makes no file and keeps no lock."""
    follower = JournalFollower(tmp_path, use_of)
    journal = JournalWriter(tmp_path, SMALL, writer=WRITER)
    journal.append_intent(intent(1))
    there = sorted(tmp_path.iterdir())
    follower.catch_up({})
    assert (seen(follower), open_in(follower)) == ({}, {intent(1).attempt_id})
    assert sorted(tmp_path.iterdir()) == there
    journal.close()
    follower.catch_up({})
    assert seen(follower) == {intent(1).attempt_id: intent(1).ceiling_nanos}
    lock = files.take_lock(files.lock_path(tmp_path, WRITER))
    assert lock is not None, "nothing holds the lock"
    os.close(lock)
    files.lock_path(tmp_path, WRITER).unlink()
    follower.catch_up({})
    assert not files.lock_path(tmp_path, WRITER).exists()
    assert seen(follower) == {intent(1).attempt_id: intent(1).ceiling_nanos}
    files.segment_path(tmp_path, WRITER, 1).unlink()
    follower.catch_up({})
    assert seen(follower) == {}, "a writer that left nothing was booked to its end"
