"""Booking transcripts: what Claude Code wrote to its log becomes entries of the ledger, and goes on where it stopped.

The rules it protects: what was read and how far are stored in one transaction, so that whoever is killed and started again books the same; an unchanged
file is not opened; a file that shrank or was replaced is read anew, which books nothing twice; a last line that is still being written is taken only if it
is whole, and looked at again. Change with it: `scanning.py`, `wire/transcripts.py` (what a row is), `ledger/sources.py` (which row stands).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
from msgspec.structs import replace

from tokenweir.importing.gathering import Gathered, read_rows
from tokenweir.importing.places import TranscriptFile
from tokenweir.importing.scanning import MarkedLines
from tokenweir.ledger.entries import Entry
from tokenweir.ledger.imported import Account, ImportedCall, told_entry
from tokenweir.ledger.sources import CLAUDE_CODE_LOG, Booked
from tokenweir.ledger_ports import ImportProgress, LedgerStore
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.wire.transcripts import TranscriptRow

BATCH_ROWS = 500
"""Rows booked in one transaction; the gateway's worker waits no longer than one of them takes."""


class Import(msgspec.Struct, frozen=True):
    """What one run over some files did."""

    files: int = 0
    """All files that were found."""
    files_read: int = 0
    """Those that were new or had changed."""
    rows_read: int = 0
    rows_skipped: int = 0
    rows_refused: int = 0
    booked: Booked = Booked()
    problems: tuple[str, ...] = ()

    def __add__(self, other: Import) -> Import:
        return Import(
            self.files + other.files,
            self.files_read + other.files_read,
            self.rows_read + other.rows_read,
            self.rows_skipped + other.rows_skipped,
            self.rows_refused + other.rows_refused,
            self.booked + other.booked,
            self.problems + other.problems,
        )


class TranscriptImport:
    """Books the transcripts that it is given, again and again if asked to."""

    def __init__(self, store: LedgerStore, account: Account, card: RateCard, *, clock: Clock) -> None:
        self._store = store
        self._account = account
        self._card = card
        self._clock = clock
        self._known = {progress.place: progress for progress in store.progress_of(CLAUDE_CODE_LOG)}

    def run(self, files: Sequence[TranscriptFile], *, on_progress: Callable[[int], None] = lambda _: None) -> Import:
        """Book what is new in the files. `on_progress` is told the bytes that were dealt with since. Raises StoreUnavailable; then call it again."""
        done = Import(files=len(files))
        for file in files:
            place = os.path.abspath(file.path)
            try:
                done += self._read(file, place)
            except OSError as error:
                problem = f"{place}: {error.strerror}"
                done += Import(problems=(problem,))
                self._keep([], replace(self._known.get(place) or self._begin(place), problem=problem, last_run_at_us=self._clock.now_us()))
            on_progress(file.size)
        return done

    def _read(self, file: TranscriptFile, place: str) -> Import:
        known = self._known.get(place)
        if known is not None and not known.problem and _same(known, os.stat(place)):
            return Import()
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if known is None or known.inode != status.st_ino or known.byte_offset > status.st_size:
                known = self._begin(place)
            # The size that marks a file as read is stored with its last rows, never before.
            begun = replace(known, inode=status.st_ino, size_bytes=-1, problem="", last_run_at_us=self._clock.now_us())
            return self._book(file, descriptor, begun, status)
        finally:
            os.close(descriptor)

    def _book(self, file: TranscriptFile, descriptor: int, begun: ImportProgress, status: os.stat_result) -> Import:
        lines = MarkedLines(descriptor, start=begun.byte_offset)
        outcome = Gathered()
        pending: list[Entry] = []
        done, at = Import(files_read=1), begun
        for row in read_rows(file, lines, outcome, keep_raw=True):
            pending.append(self._entry(row))
            # What stands before `lines.offset` has been yielded by now, the line of this row included if it was a long one.
            if len(pending) >= BATCH_ROWS and lines.offset > at.byte_offset:
                at, done = self._advance(at, done, pending, byte_offset=lines.offset)
                pending = []
        # A last line without its newline counts if it is whole; the offset stays before it, so it is looked at again.
        tail = cast("MarkedLines", [lines.tail] if lines.tail else [])
        pending += [self._entry(row) for row in read_rows(file, tail, Gathered(), keep_raw=True)]
        refused = outcome.torn + lines.oversized
        at = replace(at, size_bytes=status.st_size, modified_at_us=status.st_mtime_ns // 1_000, rows_refused=at.rows_refused + refused)
        if lines.oversized:
            at = replace(at, problem=f"{lines.oversized} lines were too long to hold and may have stated usage")
        at, done = self._advance(at, done, pending, byte_offset=lines.offset)
        return replace(done, rows_refused=refused)

    def _advance(self, at: ImportProgress, done: Import, pending: Sequence[Entry], *, byte_offset: int) -> tuple[ImportProgress, Import]:
        at = replace(at, byte_offset=byte_offset, rows_read=at.rows_read + len(pending))
        booked = self._keep(pending, at)
        return replace(at, booked=at.booked + booked), done + Import(rows_read=len(pending), booked=booked)

    def _keep(self, pending: Sequence[Entry], progress: ImportProgress) -> Booked:
        booked = self._store.book_told(pending, now_us=self._clock.now_us(), progress=progress)
        self._known[progress.place] = replace(progress, booked=progress.booked + booked)
        return booked

    def _begin(self, place: str) -> ImportProgress:
        return ImportProgress(CLAUDE_CODE_LOG, place, size_bytes=-1, first_run_at_us=self._clock.now_us())

    def _entry(self, row: TranscriptRow) -> Entry:
        return told_entry(call_of(row), self._account, self._card)


def call_of(row: TranscriptRow) -> ImportedCall:
    """What a row of a transcript tells of a call."""
    return ImportedCall(
        source=CLAUDE_CODE_LOG,
        started_at_us=row.at_us,
        metered=row.metered,
        message_id=row.message_id,
        request_id=row.request_id,
        own_id=row.key,
        sidechain=row.sidechain,
        stream=True,
        stop_reason=row.stop_reason,
        session_id=row.session_id,
        agent_id=row.agent_id,
        client=f"claude-code/{row.client_version}" if row.client_version else "claude-code",
        project=row.cwd,
        raw_usage=row.raw_usage,
    )


def _same(known: ImportProgress, status: os.stat_result) -> bool:
    return (known.inode, known.size_bytes, known.modified_at_us) == (status.st_ino, status.st_size, status.st_mtime_ns // 1_000)
