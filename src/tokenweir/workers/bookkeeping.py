"""Bookkeeping: every attempt in the journal becomes one entry of the ledger, whatever was killed in between.

The rules it protects: entries, rollups and checkpoint move in one transaction; what was read is kept until that transaction is durable, so a store that
is down costs time and nothing else; reading anything twice changes nothing. What a dead gateway left open is booked as unknown at its ceiling, once. One
bookkeeper per journal directory, by a lock. Change with it: `journal_tail.py`, `ledger_ports.LedgerStore`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from tokenweir.errors import StoreUnavailable
from tokenweir.ledger.entries import Entry
from tokenweir.ledger_ports import Checkpoint, LedgerStore
from tokenweir.metering import journal_files as files
from tokenweir.ports import Clock
from tokenweir.telemetry import log
from tokenweir.usage import Certainty, Usage
from tokenweir.workers.journal_tail import WriterTail

LOCK_FILE: Final = "bookkeeper.lock"
FLAG_UNBOOKABLE: Final = "unbookable"
"""The settlement held numbers that no column takes; booked without them, at the ceiling's cost."""


class Bookkeeper:
    """Books one journal directory. Hold its lock (`take_turn`) while using it."""

    def __init__(
        self, directory: Path, store: LedgerStore, *, batch_entries_max: int, clock: Clock, lay_to_rest: Callable[[str], bool] | None = None
    ) -> None:
        """`lay_to_rest` is told of each dead writer whose journal is booked to the end; what is left of its files stays until it answers True."""
        self._lay_to_rest = lay_to_rest
        self._directory = directory
        self._store = store
        self._batch = batch_entries_max
        self._clock = clock
        self._tails: dict[str, WriterTail] = {}
        self._checkpoints: dict[str, Checkpoint] | None = None
        self._pending: list[Entry] = []
        self._moved: list[Checkpoint] = []
        self._recovered: dict[str, int] = {}
        self.behind = True
        """Whether the last step left something that could have been read."""

    @property
    def open_intents(self) -> int:
        """Attempts in the journal that are not settled yet."""
        return sum(tail.open_intents for tail in self._tails.values())

    @property
    def settled_up(self) -> bool:
        """Whether all that could be read is booked."""
        return not self.behind and not self._pending and not self._moved

    def step(self) -> int:
        """Read on, book a batch, tidy up; returns how many entries were new. Raises StoreUnavailable with nothing lost: just call it again."""
        if self._checkpoints is None:
            self._checkpoints = self._store.checkpoints()
        if not self._pending and not self._moved:
            self._read(self._checkpoints)
        new = self._book()
        self._tidy(self._checkpoints)
        return new

    def close(self) -> None:
        """Close the files, and leave what is not done to the next worker."""
        for tail in self._tails.values():
            tail.let_go()

    def _read(self, checkpoints: dict[str, Checkpoint]) -> None:
        """Fill the next batch, oldest writer first."""
        found = files.writers(self._directory)
        for writer in found:
            if writer not in self._tails:
                self._tails[writer] = WriterTail(self._directory, writer, booked=checkpoints.get(writer))
        self.behind = False
        for writer, tail in self._tails.items():
            room = self._batch - len(self._pending)
            if room <= 0:
                self.behind = True
                return
            self._follow(tail, found.get(writer, []), room)

    def _follow(self, tail: WriterTail, segments: list[int], room: int) -> None:
        if tail.ended and not tail.open_intents:
            return  # booked, and waiting to be laid to rest
        entries = tail.read(segments, room)
        if len(entries) < room and not tail.ended and tail.bury():
            # Only now can nothing be added any more; list and read again.
            entries += tail.read(files.writers(self._directory).get(tail.writer, []), room)
        if tail.ended:
            given_up = list(tail.give_up(now_us=self._clock.now_us()))
            if given_up:
                self._recovered[tail.writer] = len(given_up)
            entries += given_up
        if entries:
            self._pending += entries
            self._moved.append(tail.checkpoint)
        if len(entries) >= room:
            self.behind = True

    def _book(self) -> int:
        new = 0
        if self._pending or self._moved:
            try:
                new = self._store.book(self._pending, self._moved)
            except StoreUnavailable:
                raise
            except Exception:  # noqa: BLE001, RUF100 - one entry that no column takes must not hold up all others
                new = self._book_one_by_one()
            self._pending, self._moved = [], []
        for writer, count in self._recovered.items():
            log(logging.WARNING, "attempts_recovered", writer=writer, count=count)
        self._recovered = {}
        return new

    def _book_one_by_one(self) -> int:
        new = 0
        for entry in self._pending:
            try:
                new += self._store.book([entry])
            except StoreUnavailable:
                raise
            except Exception as error:
                log(logging.CRITICAL, "usage_flag", flag=FLAG_UNBOOKABLE, attempt_id=entry.attempt_id, detail=type(error).__name__)
                flags = (*entry.flags, FLAG_UNBOOKABLE)
                new += self._store.book(
                    [replace(entry, usage=Usage(), cost_nanos=entry.ceiling_nanos, certainty=Certainty.CEILING, first_byte_us=0, flags=flags)]
                )
        self._store.book([], self._moved)
        return new

    def _tidy(self, checkpoints: dict[str, Checkpoint]) -> None:
        """All that was read is durable: delete what nobody needs, and look into settlements that had no intent."""
        gone = [writer for writer, tail in self._tails.items() if tail.ended and not tail.open_intents and self._is_at_rest(writer)]
        for tail in self._tails.values():
            if tail.orphans:
                self._examine(tail)
            tail.tidy()
        if gone:
            self._store.forget_checkpoints(gone)  # before the files: without a checkpoint they would only be read once more
            self.behind = True  # look once more before saying that all is done
        for writer in gone:
            checkpoints.pop(writer, None)
            self._tails.pop(writer).remove()

    def _is_at_rest(self, writer: str) -> bool:
        return self._lay_to_rest is None or self._lay_to_rest(writer)

    def _examine(self, tail: WriterTail) -> None:
        known = self._store.known(tail.orphans)
        for attempt_id in tail.orphans:
            if attempt_id not in known:
                log(logging.CRITICAL, "journal_corrupt", segment=tail.writer, offset=0, detail="a settlement has no intent", attempt_id=attempt_id)
        tail.orphans = []


def take_turn(directory: Path) -> int | None:
    """The right to book this journal, as a descriptor that holds it; None if another worker has it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return files.take_lock(directory / LOCK_FILE)


def end_turn(descriptor: int) -> None:
    """Let another worker book."""
    os.close(descriptor)
