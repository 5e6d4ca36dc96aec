"""The journal writer: one per gateway process, where usage becomes durable before it is acknowledged.

The rules it protects: a record that was appended survives `kill -9` (it is in the kernel); with `durability = "group"` it survives a power cut
after the next sync, with `"strict"` the caller waits for that sync. The first sync that fails breaks the journal for good, because the kernel may
have dropped the pages it could not write: the process must end. On a full disk new intents are refused and settlements go on into a reserve whose
blocks exist already. Appending is one encode, one checksum and one `pwrite`; syncing happens in a thread. Change together with `frames.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from tokenweir.errors import JournalBroken, JournalFull
from tokenweir.ledger.entries import Intent, Settlement
from tokenweir.metering.frames import encode_frame
from tokenweir.metering.journal_files import journal_bytes, lock_writer, segment_path, sync_directory, write_zeros
from tokenweir.settings import JournalSettings
from tokenweir.telemetry import JOURNAL_BACKLOG_BYTES, JOURNAL_FULL, log

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_LOOK_S = 1.0
"""How often the thread looks at the backlog and, on a full disk, for room."""


class JournalWriter:
    """Appends intents and settlements to the segments of one writer. Append from one thread only."""

    def __init__(self, directory: Path, settings: JournalSettings, *, writer: str, on_broken: Callable[[str], None]) -> None:
        self._directory = directory
        self._settings = settings
        self._writer = writer
        self._on_broken = on_broken
        self._lock = lock_writer(directory, writer)
        self._reserve = directory / f"{writer}.reserve"
        write_zeros(self._reserve, settings.reserve_bytes)
        self._number = 0
        self._limit = settings.segment_bytes
        self._outgrown: list[int] = []
        self._descriptor = self._open_next()
        self._offset = 0
        self._on_reserve = False
        self._backlog = journal_bytes(directory)
        self.full = False
        self.broken: str | None = None
        self._appended = 0
        self._synced = 0
        self._new_names = True
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._waiters_lock = threading.Lock()
        self._closing = False
        self._idle = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._sync_forever, name="journal-sync", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "broken" if self.broken else "full" if self.full else "open"
        return f"<JournalWriter {self._writer[:8]} {state} | segment {self._number} at {self._offset} | {self._appended - self._synced} unsynced>"

    @property
    def backlog_bytes(self) -> int:
        """Journal on disk, of all writers, as last looked at."""
        return self._backlog

    def append_intent(self, intent: Intent) -> None:
        """Record that an attempt will be sent. Raises JournalFull (nothing was written: send nothing) or JournalBroken."""
        if self.full:
            raise JournalFull
        if self._backlog > self._settings.backlog_bytes_max:
            raise JournalFull("the ledger is too far behind: no new paid work is taken until the worker has caught up")
        if not self._append(encode_frame(intent)):
            self._enter_full()
            raise JournalFull

    def append_settlement(self, settlement: Settlement) -> None:
        """Record how an attempt ended, into the reserve if the disk is full. Raises JournalBroken only."""
        frame = encode_frame(settlement)
        if self._append(frame):
            return
        self._enter_full()
        self._move_to_reserve()
        if not self._append(frame):
            self._break("the disk is full and the reserve is used up")
            raise JournalBroken

    async def durable(self) -> None:
        """Wait until everything appended so far is on disk; raises JournalBroken if it never will be."""
        wanted = self._appended
        if self._synced >= wanted:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._waiters_lock:
            self._waiters.append((wanted, loop, future))
        self._wake.set()
        await future

    def close(self) -> None:
        """Sync what is left and let go; the writer is dead from now on."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        for descriptor in (*self._outgrown, self._descriptor, self._lock):
            os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._reserve)

    # Appending, on the event loop's thread.

    def _append(self, frame: bytes) -> bool:
        """Write one frame whole; False if there is no room, and then the segment ends where it ended before."""
        if self.broken is not None:
            raise JournalBroken
        if self._offset + len(frame) > self._limit and not self._succeed():
            return False
        try:
            written = os.pwrite(self._descriptor, frame, self._offset)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self._break(f"writing failed: {error.strerror}")
                raise JournalBroken from error
            written = 0
        if written != len(frame):
            os.ftruncate(self._descriptor, self._limit if self._on_reserve else self._offset)
            return False
        self._offset += written
        self._appended += 1
        if self._idle.is_set():
            self._wake.set()
        return True

    def _succeed(self) -> bool:
        """Go on in the next segment; False if there is no room for one."""
        if self._on_reserve and self.full:
            return False
        try:
            descriptor = self._open_next()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self._break(f"a new segment could not be made: {error.strerror}")
                raise JournalBroken from error
            return False
        self._change_to(descriptor, self._settings.segment_bytes, on_reserve=False)
        return True

    def _open_next(self) -> int:
        path = segment_path(self._directory, self._writer, self._number + 1)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._number += 1
        return descriptor

    def _move_to_reserve(self) -> None:
        """The reserve becomes the next segment: its blocks exist, so writing to it needs no room."""
        path = segment_path(self._directory, self._writer, self._number + 1)
        try:
            os.rename(self._reserve, path)
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self._break(f"the reserve cannot be used: {error.strerror}")
            raise JournalBroken from error
        self._number += 1
        self._change_to(descriptor, self._settings.reserve_bytes, on_reserve=True)

    def _change_to(self, descriptor: int, limit: int, *, on_reserve: bool) -> None:
        self._outgrown.append(self._descriptor)
        self._descriptor, self._limit, self._offset, self._on_reserve = descriptor, limit, 0, on_reserve
        self._new_names = True

    def _enter_full(self) -> None:
        if not self.full:
            self.full = True
            JOURNAL_FULL.set(1)
            log(logging.ERROR, "journal_full", detail="no room on the disk of the journal")
            self._wake.set()

    def _break(self, detail: str) -> None:
        if self.broken is None:
            self.broken = detail
            log(logging.CRITICAL, "journal_broken", detail=detail)
            self._release(failed=True)
            self._on_broken(detail)

    # Syncing, on the thread.

    def _sync_forever(self) -> None:
        pause_s = self._settings.fsync_interval_ms / 1000
        strict = self._settings.durability == "strict"
        since_look = 0.0
        while self.broken is None:
            if self._synced == self._appended:
                self._idle.set()
                if self._synced == self._appended and not self._closing:
                    self._wake.wait(_LOOK_S)
                self._idle.clear()
                self._wake.clear()
                since_look += pause_s
            if not strict and not self._closing:
                threading.Event().wait(pause_s)
            since_look += pause_s
            self._sync()
            if since_look >= _LOOK_S or self._synced == self._appended:
                since_look = 0.0
                self._look_around()
            if self._closing and self._synced == self._appended:
                return

    def _sync(self) -> None:
        wanted = self._appended
        outgrown, self._outgrown = self._outgrown, []
        new_names, self._new_names = self._new_names, False
        try:
            for descriptor in outgrown:
                os.fsync(descriptor)
                os.close(descriptor)
            if wanted > self._synced:
                os.fdatasync(self._descriptor)
            if new_names:
                sync_directory(self._directory)
        except OSError as error:
            self._break(f"syncing failed: {error.strerror}")
            return
        self._synced = wanted
        self._release()

    def _release(self, *, failed: bool = False) -> None:
        with self._waiters_lock:
            due = [waiter for waiter in self._waiters if failed or waiter[0] <= self._synced]
            self._waiters = [waiter for waiter in self._waiters if not (failed or waiter[0] <= self._synced)]
        for _, loop, future in due:
            with contextlib.suppress(RuntimeError):  # the loop may be closed already
                loop.call_soon_threadsafe(_resolve, future, failed)

    def _look_around(self) -> None:
        self._backlog = journal_bytes(self._directory)
        JOURNAL_BACKLOG_BYTES.set(self._backlog)
        if not self.full:
            return
        probe = self._reserve if not self._reserve.exists() else self._directory / f"{self._writer}.probe"
        try:
            write_zeros(probe, self._settings.reserve_bytes)
        except OSError:
            return
        if probe != self._reserve:
            probe.unlink()
        self.full = False
        JOURNAL_FULL.set(0)
        log(logging.WARNING, "journal_resumed")


def _resolve(future: asyncio.Future[None], failed: bool) -> None:
    if not future.done():
        if failed:
            future.set_exception(JournalBroken())
        else:
            future.set_result(None)
