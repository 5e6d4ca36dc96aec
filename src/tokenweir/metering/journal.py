"""The journal's writer: every attempt's intent and settlement, on disk before anyone acts on it.

The rules it protects. A record that was appended survives `kill -9` of this process: it is one plain write() to the page cache. A group commit in a thread
of its own makes it survive a power cut a few milliseconds later; `durable()` waits for that in `strict` mode. When the disk is full, new intents
are refused and settlements go on, into a file that was written in advance for this; with room again, work resumes by itself. The first failed
fsync ends it: what the disk then holds is unknown, so every later append raises and `on_broken` tells the process to end.

One event loop appends, one thread syncs. Change with it: `frames.py` and `journal_files.py` (the format), `workers/bookkeeping.py` (the reader).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from tokenweir.errors import InvalidRequest, JournalBroken, JournalFull
from tokenweir.ledger.entries import Intent, Settlement
from tokenweir.metering import journal_files as files
from tokenweir.metering.frames import FRAME_BYTES_MAX, encode_frame
from tokenweir.settings import JournalSettings
from tokenweir.telemetry import JOURNAL_BACKLOG_BYTES, JOURNAL_FULL, log

LOOK_INTERVAL_NS: Final = 1_000_000_000
"""How often the size of the journal is measured and, on a full disk, room is looked for."""
QUIET_NS: Final = 1_000_000_000
"""After so long without a record the thread sleeps until it is woken."""
FLAG_RAW_USAGE_DROPPED: Final = "raw_usage_dropped"
"""The provider's usage object was too long to be kept as it came; its counts are booked."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_CHUNK: Final = bytes(256 * 1024)


class JournalWriter:
    """The journal of this process. Construct, append, `close()`; a process that just dies leaves a journal that the worker can read."""

    def __init__(self, directory: Path, settings: JournalSettings, *, writer: str, on_broken: Callable[[str], None] | None = None) -> None:
        """Take the lock, write the reserve, open the first segment. `on_broken` is called once, from whichever thread finds out.

        Raises JournalFull if there is no room even for the reserve, JournalBroken if the directory cannot be used.
        """
        self.writer = writer
        self._directory = directory
        self._settings = settings
        self._on_broken = on_broken
        self._segment = 0
        self._fd = -1
        self._at = 0
        """Where the next frame goes in the segment."""
        self._end = settings.segment_bytes
        self._in_reserve = False
        self._appended = 0
        """Bytes of frames since the start; the thread compares it with `_synced`."""
        self._synced = 0
        self._dirty = False
        self._broken = ""
        self._full = False
        self._room = False
        """Set by the thread when a full disk has room again; the next intent then leaves the reserve."""
        self._backlog_bytes = 0
        self._retired: list[int] = []
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._halt = threading.Event()
        """Set when the journal closes: no pause is finished then."""
        self._asleep = False
        self._closing = False
        try:
            self._lock = self._begin()
        except OSError as error:
            if error.errno in _FULL:
                raise JournalFull(f"no room for the journal in {directory}: {error.strerror}") from error
            raise JournalBroken(f"the journal in {directory} cannot be opened: {error.strerror}") from error
        self.look()
        self._thread = threading.Thread(target=self._keep_durable, name="journal-sync", daemon=True)
        self._thread.start()

    # What the event loop calls.

    def append_intent(self, intent: Intent) -> None:
        """Record that an attempt is about to be sent. Raises JournalFull or JournalBroken: then nothing may be sent."""
        if self._full:
            self._leave_reserve()
        if self._backlog_bytes > self._settings.backlog_bytes_max:
            raise JournalFull("the journal is longer than it may be, because it is not being booked: no new paid work is taken")
        try:
            self._write(encode_frame(intent))
        except ValueError as error:
            raise InvalidRequest("what the request says of itself (model, session, tags) is too long to be recorded") from error
        except OSError as error:
            if error.errno not in _FULL:
                raise self._break(f"write: {error.strerror}") from error
            self._enter_reserve()
            raise JournalFull from error

    def append_settlement(self, settlement: Settlement) -> None:
        """Record how an attempt ended; on a full disk into the reserve. Raises JournalBroken only."""
        try:
            frame = encode_frame(settlement)
        except ValueError:
            frame = encode_frame(replace(settlement, raw_usage=b"", flags=(*settlement.flags, FLAG_RAW_USAGE_DROPPED)))
        try:
            self._write(frame)
        except OSError as error:
            if error.errno not in _FULL or self._in_reserve:
                raise self._break(f"write: {error.strerror}") from error
            self._enter_reserve()
            try:
                self._write(frame)
            except OSError as second:
                raise self._break(f"write to the reserve: {second.strerror}") from second

    async def durable(self) -> None:
        """In `strict` mode, return when all that was appended so far survives a power cut; else at once. Raises JournalBroken."""
        if self._broken:
            raise JournalBroken
        if self._settings.durability != "strict" or self._synced >= self._appended:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._guard:
            if not self._broken:
                self._waiters.append((self._appended, loop, waiter))
        if self._broken:  # the thread may have answered all waiters just before this one joined them
            raise JournalBroken
        self._dirty = True
        self._wake.set()
        await waiter

    def close(self) -> None:
        """Sync, close, and let go of the lock. What is left open is booked as unknown by the worker. Closing twice changes nothing."""
        if self._closing:
            return
        self._closing = True
        self._halt.set()
        self._wake.set()
        self._thread.join()
        if not self._broken:
            self._sync()
        self._close_files()

    @property
    def full(self) -> bool:
        """Whether new paid work is refused now."""
        return (self._full and not self._room) or self._backlog_bytes > self._settings.backlog_bytes_max

    @property
    def broken(self) -> str | None:
        """Why the process must end; None while all is well."""
        return self._broken or None

    @property
    def appended_bytes(self) -> int:
        """Bytes that this process has written."""
        return self._appended

    @property
    def backlog_bytes(self) -> int:
        """The size of the journal at the last look, a second ago at most."""
        return self._backlog_bytes

    # Appending.

    def _write(self, frame: bytes) -> None:
        """Write one frame or nothing. Raises OSError with the file as it was before, JournalBroken if it cannot be left so."""
        if self._broken:
            raise JournalBroken
        size = len(frame)
        if self._at + size > self._end and self._at:
            self._next_segment()
        try:
            written = os.write(self._fd, frame)
        except OSError:
            written = 0
            raise
        finally:
            if written != size:
                self._take_back()
        if written != size:
            raise OSError(errno.ENOSPC, "short write")
        self._at += size
        self._appended += size
        self._dirty = True
        if self._asleep:
            self._wake.set()

    def _take_back(self) -> None:
        """Remove a part of a frame, so that the next one follows the last good one."""
        try:
            if self._in_reserve:  # its blocks must stay allocated, so it is zeroed and not cut
                os.pwrite(self._fd, bytes(min(FRAME_BYTES_MAX, self._end - self._at)), self._at)
            else:
                os.ftruncate(self._fd, self._at)
            os.lseek(self._fd, self._at, os.SEEK_SET)
        except OSError as error:
            raise self._break(f"truncate: {error.strerror}") from error

    def _next_segment(self) -> None:
        """Seal the segment and open the next. Raises OSError, with the old one still open, if that is not possible."""
        if self._in_reserve:
            raise OSError(errno.ENOSPC, "the reserve is used up")
        path = files.segment_path(self._directory, self.writer, self._segment + 1)
        self._switch(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), self._settings.segment_bytes)

    def _switch(self, descriptor: int, end: int) -> None:
        """Go on in another file; the thread syncs and closes the one before, then the directory."""
        with self._guard:
            if self._fd >= 0:
                self._retired.append(self._fd)
            self._fd, self._at, self._end = descriptor, 0, end
            self._segment += 1

    # A full disk.

    def _enter_reserve(self) -> None:
        """Refuse intents from now on, and make the reserve the next segment."""
        if self._in_reserve:
            return
        log(logging.ERROR, "journal_full", detail="no room on the disk; new paid work is refused, work in flight is still settled")
        self._full, self._room = True, False
        JOURNAL_FULL.set(1)
        path = files.segment_path(self._directory, self.writer, self._segment + 1)
        try:
            os.rename(files.reserve_path(self._directory, self.writer), path)
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._break(f"reserve: {error.strerror}") from error
        self._switch(descriptor, self._settings.reserve_bytes)
        self._in_reserve = True
        self._dirty = True
        self._wake.set()

    def _leave_reserve(self) -> None:
        """Go on in a plain segment if the thread has found room and written a new reserve; raises JournalFull if not."""
        if not self._room:
            raise JournalFull
        self._in_reserve = False
        try:
            self._next_segment()
        except OSError as error:
            self._in_reserve, self._room = True, False
            raise JournalFull from error
        self._full = self._room = False
        JOURNAL_FULL.set(0)
        log(logging.WARNING, "journal_resumed")

    def look(self) -> None:
        """Measure the journal, and on a full disk look for room: a new reserve, written out, and one more segment. The thread does this every second."""
        try:
            self._backlog_bytes = files.journal_bytes(self._directory)
            JOURNAL_BACKLOG_BYTES.set(self._backlog_bytes)
            if self._full and not self._room:
                self._write_reserve()
                disk = os.statvfs(self._directory)
                self._room = disk.f_bavail * disk.f_frsize >= self._settings.segment_bytes
        except OSError as error:
            if error.errno not in _FULL:
                self._break(f"look: {error.strerror}")

    def _write_reserve(self) -> None:
        """Write the reserve in full: zeros that were really written, because a mere allocation may not be kept by every file system."""
        path = files.reserve_path(self._directory, self.writer)
        size = self._settings.reserve_bytes
        if path.exists() and path.stat().st_size == size:
            return
        unfinished = path.with_suffix(".unfinished")
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                left = size
                while left:
                    left -= os.write(descriptor, _CHUNK[:left])
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(unfinished, path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    # Making it durable.

    def _begin(self) -> int:
        """Lock first, under another name, so that nobody ever sees a lock of ours that is not held; then the reserve and the first segment."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = files.lock_path(self._directory, self.writer)
        early = path.with_suffix(".lock.new")
        lock = files.take_lock(early)
        if lock is None or path.exists():
            raise JournalBroken(f"a journal of the writer {self.writer} is there already")
        os.rename(early, path)
        try:
            self._write_reserve()
            self._next_segment()
            files.sync_directory(self._directory)
        except OSError:
            files.reserve_path(self._directory, self.writer).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            os.close(lock)
            raise
        return lock

    def _keep_durable(self) -> None:
        """The thread: sync when there is something to sync, look around once a second, until closed or broken.

        While there is traffic it looks for itself every few milliseconds, because waking it costs the event loop more than all the rest of a write. It
        sleeps until woken after a quiet while, and always in strict mode, where somebody waits.
        """
        pause_s = 0.0 if self._settings.durability == "strict" else self._settings.fsync_interval_ms / 1000
        looked_ns = busy_ns = time.monotonic_ns()
        while not self._closing and not self._broken:
            if self._dirty:
                self._halt.wait(pause_s)
                self._sync()
                busy_ns = time.monotonic_ns()
            elif pause_s and time.monotonic_ns() - busy_ns < QUIET_NS:
                self._halt.wait(pause_s)
            else:
                self._asleep = True
                if self._nothing_to_do():  # what was appended before this thread lay down did not wake it
                    self._wake.wait(LOOK_INTERVAL_NS / 1e9)
                self._asleep = False
                self._wake.clear()
            now_ns = time.monotonic_ns()
            if now_ns - looked_ns >= LOOK_INTERVAL_NS:
                looked_ns = now_ns
                self.look()

    def _nothing_to_do(self) -> bool:
        return not self._dirty and not self._closing

    def _sync(self) -> None:
        """Sync all that was appended before this call, older segments first, and answer whoever waits for it."""
        self._dirty = False  # before reading the position: what is appended from here on raises it again
        with self._guard:
            target, current, retired = self._appended, self._fd, self._retired
            self._retired = []
        try:
            for descriptor in retired:
                os.fsync(descriptor)
            os.fsync(current)
            if retired:
                files.sync_directory(self._directory)
        except OSError as error:
            self._break(f"fsync: {error.strerror}")
            return
        finally:
            for descriptor in retired:
                os.close(descriptor)
        self._synced = target
        with self._guard:
            due = [waiter for waiter in self._waiters if waiter[0] <= target]
            self._waiters = [waiter for waiter in self._waiters if waiter[0] > target]
        _answer(due, None)

    def _break(self, detail: str) -> JournalBroken:
        """Fence: nothing is appended any more, everyone who waits is told, and the process as well, once."""
        with self._guard:
            first, self._broken = not self._broken, self._broken or detail
            waiting, self._waiters = self._waiters, []
        failure = JournalBroken(f"the journal could not be made durable ({detail}); this process takes no more work and ends")
        if first:
            log(logging.CRITICAL, "journal_broken", detail=detail)
            _answer(waiting, failure)
            self._wake.set()
            if self._on_broken is not None:
                self._on_broken(detail)
        return failure

    def _close_files(self) -> None:
        for descriptor in (*self._retired, self._fd):
            os.close(descriptor)
        self._retired, self._fd = [], -1
        self._broken = self._broken or "closed"
        files.reserve_path(self._directory, self.writer).unlink(missing_ok=True)
        os.close(self._lock)


def _answer(waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]], failure: JournalBroken | None) -> None:
    for _, loop, waiter in waiters:
        try:
            loop.call_soon_threadsafe(_resolve, waiter, failure)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _resolve(waiter: asyncio.Future[None], failure: JournalBroken | None) -> None:
    if waiter.done():
        return
    if failure is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(failure)
