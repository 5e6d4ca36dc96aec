"""Following the journal of one writer: from frames to entries, with the intents that are still open.

The rules it protects: segments are read in order and to their end; an entry is made exactly when both its intent and its settlement have been read; a
segment is deleted only when it is read, followed by another one (or its writer is dead), booked, and no intent that began in it, or in one before it,
is open. After a restart everything that is not deleted is read again, and what lies before the checkpoint is only used to close intents. Damage is
reported with its place and kept on disk. Change with it: `metering/frames.py`, `metering/journal.py`, `bookkeeping.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenweir.ledger.entries import Entry, Intent, Settlement, settled_entry, unknown_entry
from tokenweir.ledger_ports import Checkpoint
from tokenweir.metering import journal_files as files
from tokenweir.metering.frames import FRAME_BYTES_MAX, HEADER_BYTES, Scan, Tail, next_frame, scan
from tokenweir.periods import Micros
from tokenweir.telemetry import log

_CHUNK_BYTES: Final = 256 * 1024
_WHOLE_FRAME_BYTES: Final = FRAME_BYTES_MAX + HEADER_BYTES
DAMAGED_SUFFIX: Final = ".damaged"


class WriterTail:
    """Reads on where it stopped. Nothing here writes to the ledger; `bookkeeping.py` does, and then calls `tidy`."""

    def __init__(self, directory: Path, writer: str, *, booked: Checkpoint | None) -> None:
        self.writer = writer
        self.orphans: list[str] = []
        """Attempts whose settlement was read without an intent: known to the ledger already, or lost to damage."""
        self.ended = False
        """The writer is dead and all it wrote has been read."""
        self._directory = directory
        self._booked = (booked.segment, booked.offset) if booked is not None else (0, 0)
        self._open: dict[str, tuple[int, Intent]] = {}
        self._segments: list[int] = []
        self._segment = 0
        self._offset = 0
        self._fd = -1
        self._lock: int | None = None
        self._damaged: set[tuple[int, int]] = set()

    @property
    def open_intents(self) -> int:
        """Attempts that were begun and are not settled yet."""
        return len(self._open)

    @property
    def checkpoint(self) -> Checkpoint:
        """How far it has read."""
        return Checkpoint(self.writer, self._segment, self._offset)

    def read(self, segments: list[int], limit: int) -> list[Entry]:
        """The entries that are complete by now, at least `limit` of them if there are so many; `segments` are those in the directory."""
        self._segments = segments
        entries: list[Entry] = []
        while len(entries) < limit:
            if not self._read_once(entries) and not self._go_on():
                break
        return entries

    def bury(self) -> bool:
        """Whether the writer is dead; from then on we hold its lock. Call it when `read` had nothing more to give."""
        if self._lock is None:
            self._lock = files.take_lock(files.lock_path(self._directory, self.writer))
        return self._lock is not None

    def give_up(self, *, now_us: Micros) -> Iterator[Entry]:
        """Everything that a dead writer left open, as unknown at its ceiling, in the order it was begun; each is closed as it is taken."""
        for attempt_id in list(self._open):
            _, intent = self._open.pop(attempt_id)
            yield unknown_entry(intent, now_us=max(now_us, intent.started_at_us))

    def tidy(self) -> None:
        """Delete what is not needed any more. Only to be called when all that was read is booked and durable."""
        oldest = min((segment for segment, _ in self._open.values()), default=self._segment)
        if self.ended and not self._open:
            oldest = self._segment + 1
        for segment in [segment for segment in self._segments if segment < oldest]:
            self._discard(segment)
            self._segments.remove(segment)

    def remove(self) -> None:
        """Delete the rest of a dead writer, its lock last, and let go of it."""
        self.close()
        for path in self._directory.glob(f"{self.writer}.*"):
            if path.suffix != ".lock":
                path.unlink(missing_ok=True)
        files.lock_path(self._directory, self.writer).unlink(missing_ok=True)
        self.let_go()

    def let_go(self) -> None:
        """Close everything, and leave the rest to the next worker."""
        self.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def close(self) -> None:
        """Close the segment that is being read."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # Reading.

    def _read_once(self, entries: list[Entry]) -> bool:
        """Read a chunk and take in its records; False if there is nothing (more) to read in this segment."""
        if self._fd < 0 and not self._open_segment():
            return False
        found = self._scan(_CHUNK_BYTES)
        if not found.records and found.tail is not Tail.CLEAN:
            found = self._scan(_WHOLE_FRAME_BYTES)
        for end, record in found.records:
            self._take(record, self._offset + end, entries)
        self._offset += found.length
        return bool(found.records)

    def _scan(self, size: int) -> Scan:
        content = os.pread(self._fd, size, self._offset)
        return scan(content, more=len(content) == size and os.fstat(self._fd).st_size > self._offset + size)

    def _take(self, record: Intent | Settlement, end: int, entries: list[Entry]) -> None:
        if isinstance(record, Intent):
            self._open[record.attempt_id] = (self._segment, record)
            return
        begun = self._open.pop(record.attempt_id, None)
        if (self._segment, end) <= self._booked:
            return
        if begun is None:
            self.orphans.append(record.attempt_id)
        else:
            entries.append(settled_entry(begun[1], record))

    def _go_on(self) -> bool:
        """At the end of what can be read: whether there is more after all, behind damage, in the next segment, or just written."""
        if self._fd < 0:
            return False
        following = [segment for segment in self._segments if segment > self._segment]
        if following or self._lock is not None:
            # Sealed, or its writer is dead: look once more, since this was learned, and what is there now is all.
            found = self._scan(max(_WHOLE_FRAME_BYTES, os.fstat(self._fd).st_size - self._offset))
            if found.records:
                return True
            if found.tail is Tail.CORRUPT or (found.tail is Tail.TORN and following):
                if self._skip_damage():
                    return True
            elif found.tail is Tail.TORN:
                self._report("torn", os.fstat(self._fd).st_size - self._offset, level=logging.WARNING)
        elif self._scan(_WHOLE_FRAME_BYTES).tail is Tail.CORRUPT:
            return self._skip_damage(live=True)
        if following:
            self.close()
            return self._open_segment()
        self.ended = self._lock is not None
        return False

    def _open_segment(self) -> bool:
        following = [segment for segment in self._segments if segment > self._segment]
        if not following:
            self.ended = self._lock is not None
            return False
        if self._segment and following[0] != self._segment + 1:
            log(logging.CRITICAL, "journal_corrupt", segment=f"{self.writer}-{self._segment + 1:08d}.seg", offset=0, detail="the segment is missing")
        self._segment, self._offset = following[0], 0
        self._fd = os.open(files.segment_path(self._directory, self.writer, self._segment), os.O_RDONLY | os.O_CLOEXEC)
        return True

    def _skip_damage(self, *, live: bool = False) -> bool:
        """Report the damage and go on at the next good frame; False if there is none. A live segment may still get one."""
        size = os.fstat(self._fd).st_size
        content = os.pread(self._fd, size - self._offset, self._offset)
        resumed = next_frame(content, 1)
        if resumed is None:
            if not live or content.strip(b"\0"):
                self._report("no good frame follows", len(content))
            return False
        self._report("going on at the next good frame", resumed)
        self._offset += resumed
        return True

    def _report(self, detail: str, skipped_bytes: int, *, level: int = logging.CRITICAL) -> None:
        place = (self._segment, self._offset)
        if place in self._damaged:
            return
        if level == logging.CRITICAL:
            self._damaged.add(place)
        name = files.segment_path(self._directory, self.writer, self._segment).name
        log(level, "journal_corrupt", segment=name, offset=self._offset, skipped_bytes=skipped_bytes, detail=detail)

    def _discard(self, segment: int) -> None:
        """Delete a segment; a damaged one is kept under another name, for a person to look at."""
        path = files.segment_path(self._directory, self.writer, segment)
        if any(place[0] == segment for place in self._damaged):
            path.rename(path.with_name(path.name + DAMAGED_SUFFIX))
        else:
            path.unlink(missing_ok=True)
