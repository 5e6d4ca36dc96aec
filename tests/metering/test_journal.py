"""The journal's writer: what was appended is there, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from bookings import WRITER, intent, settlement, tmpfs
from tokenweir.errors import InvalidRequest, JournalBroken, JournalFull
from tokenweir.metering import journal_files as files
from tokenweir.metering.frames import Tail, scan
from tokenweir.metering.journal import FLAG_RAW_USAGE_DROPPED, JournalWriter
from tokenweir.settings import JournalSettings

SMALL = JournalSettings(segment_bytes=65_536, reserve_bytes=65_536)


def records(directory: Path, writer: str = WRITER) -> list[object]:
    """All that a reader finds, with every segment clean."""
    found = []
    for segment in files.writers(directory)[writer]:
        whole = scan(files.segment_path(directory, writer, segment).read_bytes())
        assert whole.tail is Tail.CLEAN
        found += [record for _, record in whole.records]
    return found


def test_records_stand_in_the_order_they_were_appended_over_many_segments(tmp_path):
    expected = []
    with closing(JournalWriter(tmp_path, SMALL, writer=WRITER)) as journal:
        for n in range(800):
            begun = intent(n)
            expected += [begun, settlement(begun)]
            journal.append_intent(begun)
            journal.append_settlement(expected[-1])
        assert records(tmp_path) == expected  # before anything was synced or closed
    assert records(tmp_path) == expected
    assert len(files.writers(tmp_path)[WRITER]) > 2


def test_a_killed_process_leaves_all_that_it_appended(tmp_path):
    program = (
        "import os, sys; sys.path.insert(0, 'tests'); from bookings import *; from pathlib import Path\n"
        "from tokenweir.metering.journal import JournalWriter; from tokenweir.settings import JournalSettings\n"
        "j = JournalWriter(Path(sys.argv[1]), JournalSettings(), writer=WRITER)\n"
        "for n in range(50): j.append_intent(intent(n))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert records(tmp_path) == [intent(n) for n in range(50)]
    lock = files.take_lock(files.lock_path(tmp_path, WRITER))
    assert lock is not None, "a dead writer holds no lock"
    os.close(lock)


def test_a_living_writer_holds_its_lock_and_its_files_are_private(tmp_path):
    with closing(JournalWriter(tmp_path / "journal", SMALL, writer=WRITER)):
        assert files.take_lock(files.lock_path(tmp_path / "journal", WRITER)) is None
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "journal").iterdir()} == {0o600}
        assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700


async def test_strict_durability_waits_for_the_sync_of_all_that_was_appended(tmp_path, monkeypatch):
    gate, synced, real = threading.Event(), [], os.fsync

    def fsync(descriptor: int) -> None:
        gate.wait(10)
        synced.append(descriptor)
        real(descriptor)

    with closing(JournalWriter(tmp_path, JournalSettings(durability="strict"), writer=WRITER)) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        journal.append_intent(intent(1))
        waiting = asyncio.ensure_future(journal.durable())
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        await waiting
        assert synced
        count = len(synced)
        await journal.durable()  # nothing was appended since
        assert len(synced) == count


async def test_group_durability_does_not_wait(tmp_path, monkeypatch):
    with closing(JournalWriter(tmp_path, JournalSettings(fsync_interval_ms=50), writer=WRITER)) as journal:
        journal.append_intent(intent(1))
        await journal.durable()


async def test_the_first_failed_fsync_breaks_the_journal_for_good_and_says_so_once(tmp_path, monkeypatch):
    broken: list[str] = []
    told = threading.Event()

    def on_broken(detail: str) -> None:
        broken.append(detail)
        told.set()

    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(JournalWriter(tmp_path, JournalSettings(durability="strict"), writer=WRITER, on_broken=on_broken)) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        journal.append_intent(intent(1))
        with pytest.raises(JournalBroken):
            await journal.durable()
        assert await asyncio.to_thread(told.wait, 10)
        monkeypatch.undo()  # a disk that works again changes nothing: what it holds is unknown
        with pytest.raises(JournalBroken):
            journal.append_intent(intent(2))
        with pytest.raises(JournalBroken):
            journal.append_settlement(settlement(intent(1)))
        with pytest.raises(JournalBroken):
            await journal.durable()
        assert journal.broken
    assert len(broken) == 1


@pytest.mark.parametrize("written", [0, 1, 7, 8, 100])
def test_a_short_write_is_taken_back_whole(tmp_path, monkeypatch, written):
    """The disk fills in the middle of a frame: the intent is refused, the settlement goes to the reserve, and no half frame stays."""
    real = os.write
    with closing(JournalWriter(tmp_path, SMALL, writer=WRITER)) as journal:
        journal.append_intent(intent(1))
        normal = journal._fd

        def write(descriptor: int, content: bytes) -> int:
            return real(descriptor, content[:written]) if descriptor == normal else real(descriptor, content)

        monkeypatch.setattr(os, "write", write)
        with pytest.raises(JournalFull):
            journal.append_intent(intent(2))
        journal.append_settlement(settlement(intent(1)))
        assert journal.full
        with pytest.raises(JournalFull):
            journal.append_intent(intent(3))
        monkeypatch.undo()
        journal.look()
        assert not journal.full
        journal.append_intent(intent(4))
        assert records(tmp_path) == [intent(1), settlement(intent(1)), intent(4)]


def test_on_a_full_disk_work_in_flight_is_settled_and_new_work_resumes_when_there_is_room(tmp_path):
    with tmpfs(tmp_path / "disk", 512) as disk, closing(JournalWriter(disk / "journal", SMALL, writer=WRITER)) as journal:
        begun = []
        ballast = disk / "ballast"
        with pytest.raises(JournalFull):  # noqa: PT012 - the loop is what fills the disk
            for n in range(100_000):
                journal.append_intent(intent(n))
                begun.append(intent(n))
                if n == 20:
                    with pytest.raises(OSError, match="No space"):
                        ballast.write_bytes(bytes(1024 * 1024))
        journal.look()
        assert journal.full, "there is no room yet"
        for one in begun:
            journal.append_settlement(settlement(one))
        with pytest.raises(JournalFull):
            journal.append_intent(intent(-1))
        ballast.unlink()
        journal.look()  # the thread does this every second
        later = intent(200_000)
        journal.append_intent(later)
        assert records(disk / "journal") == [*begun, *map(settlement, begun), later]
        assert files.reserve_path(disk / "journal", WRITER).stat().st_size == SMALL.reserve_bytes, "ready for the next time"


def test_a_reserve_that_is_used_up_breaks_the_journal(tmp_path):
    with tmpfs(tmp_path / "disk", 256) as disk, closing(JournalWriter(disk / "journal", SMALL, writer=WRITER)) as journal:
        with pytest.raises(OSError, match="No space"):
            (disk / "ballast").write_bytes(bytes(1024 * 1024))
        with pytest.raises(JournalBroken):  # noqa: PT012 - the loop is what uses it up
            for n in range(1000):
                journal.append_settlement(settlement(intent(n)))
        assert journal.broken


def test_a_disk_without_room_for_the_reserve_is_refused_at_the_start(tmp_path):
    with tmpfs(tmp_path / "disk", 32) as disk:
        with pytest.raises(JournalFull):
            JournalWriter(disk / "journal", SMALL, writer=WRITER)
        assert list((disk / "journal").iterdir()) == []


def test_a_journal_that_nobody_books_stops_new_work_and_settles_the_old(tmp_path):
    settings = JournalSettings(segment_bytes=65_536, reserve_bytes=65_536, backlog_bytes_max=1024 * 1024)
    with closing(JournalWriter(tmp_path, settings, writer=WRITER)) as journal:
        foreign = files.segment_path(tmp_path, "f" * 32, 1)
        foreign.write_bytes(bytes(1024 * 1024 + 1))
        journal.look()
        assert journal.full
        with pytest.raises(JournalFull, match="not being booked"):
            journal.append_intent(intent(1))
        journal.append_settlement(settlement(intent(1)))
        foreign.unlink()
        journal.look()
        journal.append_intent(intent(2))


def test_what_is_too_long_to_be_recorded_is_refused_before_and_cut_after_the_money_was_spent(tmp_path):
    with closing(JournalWriter(tmp_path, SMALL, writer=WRITER)) as journal:
        with pytest.raises(InvalidRequest):
            journal.append_intent(intent(1, session_id="x" * 2_000_000))
        journal.append_settlement(settlement(intent(1), raw_usage=b"x" * 2_000_000))
        (kept,) = records(tmp_path)
        assert kept.raw_usage == b""
        assert kept.flags == (FLAG_RAW_USAGE_DROPPED,)
        assert kept.cost_nanos == 12_345


def test_closing_twice_is_closing_once_and_removes_the_reserve(tmp_path):
    journal = JournalWriter(tmp_path, SMALL, writer=WRITER)
    journal.close()
    journal.close()
    assert not files.reserve_path(tmp_path, WRITER).exists()
    with pytest.raises(JournalBroken):
        journal.append_intent(intent(1))


def test_every_record_is_synced_soon_also_those_after_the_first_sync(tmp_path, monkeypatch):
    synced, real = threading.Semaphore(0), os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.release()

    with closing(JournalWriter(tmp_path, JournalSettings(fsync_interval_ms=1), writer=WRITER)) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        for n in range(3):
            while synced.acquire(blocking=False):
                pass
            journal.append_intent(intent(n))
            assert synced.acquire(timeout=10), "nobody synced it"
