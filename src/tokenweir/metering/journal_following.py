"""Following the journals of all writers without touching them: what is in them and not in the ledger yet.

The rules it protects: read the checkpoints first, then the journal, then the ledger; and believe the ledger where both know an attempt. Then nothing is
missed and nothing counted twice, although the worker books and deletes at the same time: a file that vanishes was booked before. Nothing here writes,
locks for longer than a look, or reports damage: that is for the worker. Change with it: `journal_files.py`, `frames.py`, `workers/journal_tail.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from tokenweir.ledger.entries import Entry, Intent, Settlement, settled_entry, unknown_entry
from tokenweir.ledger_ports import Checkpoint, Use
from tokenweir.metering import journal_files as files
from tokenweir.metering.frames import Tail, next_frame, scan
from tokenweir.periods import Micros

_CHUNK_BYTES: Final = 1024 * 1024
_BEFORE_ALL: Final = (0, 0)


class JournalFollower:
    """Reads on where it stopped. For one thread."""

    def __init__(self, directory: Path, use_of: Callable[[Entry], Use]) -> None:
        self._directory = directory
        self._use_of = use_of
        self._writers: dict[str, _Writer] = {}

    def catch_up(self, checkpoints: Mapping[str, Checkpoint], *, alone_as: str = "") -> None:
        """Read what was written since the last time. `checkpoints` were read from the ledger just before.

        `alone_as` names the only writer that can be alive: the lock of any other one is then held by the worker that buries it.
        """
        try:
            found = files.writers(self._directory)
        except FileNotFoundError:
            found = {}
        self._writers = {name: self._writers.get(name) or _Writer(self._directory, name) for name in found}
        for name, segments in found.items():
            booked = checkpoints.get(name)
            # Whether it lives is asked before reading: what a dead one wrote is complete then.
            self._writers[name].alive = name == alone_as if alone_as else files.is_alive(self._directory, name)
            self._writers[name].read(segments, _BEFORE_ALL if booked is None else (booked.segment, booked.offset), self._use_of)

    def unbooked(self, *, now_us: Micros) -> dict[str, Use]:
        """By attempt: what was settled, and of dead writers also what was begun, at its ceiling, as the worker will book it. Some may be booked by now."""
        uses: dict[str, Use] = {}
        for writer in self._writers.values():
            uses.update(writer.settled)
            if not writer.alive:
                uses.update({name: self._use_of(unknown_entry(intent, now_us=now_us)) for name, intent in writer.open.items()})
        return uses

    def forget(self, attempt_ids: Iterable[str]) -> None:
        """These are in the ledger."""
        for attempt_id in attempt_ids:
            for writer in self._writers.values():
                writer.settled.pop(attempt_id, None)


class _Writer:
    """How far one writer has been read."""

    __slots__ = ("_directory", "_name", "_offset", "_segment", "alive", "open", "settled")

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._segment = 0
        self._offset = 0
        self.alive = True
        self.open: dict[str, Intent] = {}
        self.settled: dict[str, Use] = {}

    def read(self, segments: list[int], booked: tuple[int, int], use_of: Callable[[Entry], Use]) -> None:
        for segment in segments:
            if segment < self._segment:
                continue
            if segment > self._segment:
                self._segment, self._offset = segment, 0
            self._read_segment(booked, use_of)

    def _read_segment(self, booked: tuple[int, int], use_of: Callable[[Entry], Use]) -> None:
        try:
            descriptor = os.open(files.segment_path(self._directory, self._name, self._segment), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # booked and deleted since it was listed; what began in it is settled and booked as well
            return
        try:
            size = _CHUNK_BYTES
            while True:
                content = os.pread(descriptor, size, self._offset)
                more = len(content) == size
                found = scan(content, more=more)
                for end, record in found.records:
                    self._take(record, (self._segment, self._offset + end) <= booked, use_of)
                self._offset += found.length
                if found.records:
                    continue
                if more:
                    size *= 4
                    continue
                resumed = next_frame(content, 1) if found.tail is Tail.CORRUPT else None
                if resumed is None:
                    return
                self._offset += resumed
        finally:
            os.close(descriptor)

    def _take(self, record: Intent | Settlement, is_booked: bool, use_of: Callable[[Entry], Use]) -> None:
        if isinstance(record, Intent):
            self.open[record.attempt_id] = record
            return
        begun = self.open.pop(record.attempt_id, None)
        if begun is not None and not is_booked:
            self.settled[record.attempt_id] = use_of(settled_entry(begun, record))
