"""Reading the lines of a transcript that may matter, at the speed of the disk and in bounded memory.

The rules it protects: a line is read whole or not at all, and an unfinished last line is held back (`offset` stands after the last newline); a line too long
to hold is passed over, and counted if its ends say that it held usage. Transcripts contain lines of hundreds of megabytes: snapshots of files.
Change together with `wire/transcripts.py`, which says what a line must contain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from tokenweir.wire.transcripts import MARK

PIECE_BYTES = 512 * 1024
"""Read at once: small enough that what was read is still in the processor's cache when it is searched."""
LINE_BYTES_HELD = 4 * 1024 * 1024
"""A longer line is looked at only if `MARK` is near one of its ends, where an answer's usage is."""
LINE_BYTES_MAX = 32 * 1024 * 1024
"""A longer line is never held. No answer comes near: the provider's own limit on a whole request is this."""
WINDOW_BYTES = 64 * 1024


def new_buffer() -> bytearray:
    """A buffer for `MarkedLines`."""
    return bytearray(LINE_BYTES_HELD + PIECE_BYTES)


class MarkedLines:
    """The complete lines of a file that contain `MARK`, from `start` on; of a part of a file, those that begin before `end`.

    A line is a view that is good until the next one is asked for. `buffer` (from `new_buffer`) saves the making of one for each of many small files.
    """

    def __init__(
        self, descriptor: int, *, start: int = 0, end: int | None = None, at_line_start: bool = True, buffer: bytearray | None = None
    ) -> None:
        self._descriptor = descriptor
        self._buffer = new_buffer() if buffer is None else buffer
        self._base = start if at_line_start or start == 0 else start - 1
        self._skipping = not at_line_start and start > 0
        self._end = end
        self.offset = start
        """After the last newline that was read: where to go on when the file has grown."""
        self.oversized = 0
        """Lines that were too long to hold and may have held usage."""
        self.tail = b""
        """The unfinished last line, if it contains `MARK`: for readers who will not come back."""

    def __iter__(self) -> Iterator[memoryview]:
        buffer = self._buffer
        view = memoryview(buffer)
        fill = 0
        while count := os.preadv(self._descriptor, [view[fill : fill + PIECE_BYTES]], self._base + fill):
            last = buffer.rfind(b"\n", fill, fill + count)
            fill += count
            if self._skipping:
                first = buffer.find(b"\n", 0, fill) + 1
                fill = self._drop(view, first or fill, fill)
                self._skipping = first == 0
                last = buffer.rfind(b"\n", 0, fill)
                if self._skipping:
                    continue
            if self._end is not None and self._base >= self._end:
                return
            if last < 0:
                if fill > LINE_BYTES_HELD:
                    line = self._pass_long_line(view, fill)
                    if line:
                        yield memoryview(line)
                    fill = 0
                continue
            stop, done = last + 1, False
            if self._end is not None and self._base + stop >= self._end:
                # The last line of this part is the one in which `end` lies, or that ends just before it.
                stop, done = buffer.find(b"\n", max(0, self._end - 1 - self._base), stop) + 1, True
            yield from _marked(buffer, view, stop)
            fill = self._drop(view, stop, fill)
            if done:
                return
        if not self._skipping and (self._end is None or self._base < self._end) and buffer.find(MARK, 0, fill) >= 0:
            self.tail = bytes(view[:fill])

    def _drop(self, view: memoryview, stop: int, fill: int) -> int:
        """Forget what was read up to `stop`; how much is left in the buffer."""
        rest = fill - stop
        view[:rest] = bytes(view[stop:fill])
        self._base += stop
        self.offset = self._base
        return rest

    def _pass_long_line(self, view: memoryview, fill: int) -> bytes | None:
        """Find the end of the line that fills the buffer; the line itself, if its ends contain `MARK` and it can be held."""
        start = self._base
        marked = MARK in bytes(view[:WINDOW_BYTES])
        ending = bytes(view[fill - WINDOW_BYTES : fill])
        at = start + fill
        while count := os.preadv(self._descriptor, [view[:PIECE_BYTES]], at):
            piece = bytes(view[:count])
            newline = piece.find(b"\n")
            ending = (ending + piece[: newline if newline >= 0 else count])[-WINDOW_BYTES:]
            if newline < 0:
                at += count
                continue
            length = at + newline - start
            self._base = self.offset = start + length + 1
            if not marked and MARK not in ending:
                return None
            if length > LINE_BYTES_MAX:
                self.oversized += 1
                return None
            return os.pread(self._descriptor, length, start)
        # The line is not finished: what it will be is seen when somebody comes back.
        self._base = at
        return None


def _marked(buffer: bytearray, view: memoryview, stop: int) -> Iterator[memoryview]:
    """The lines up to `stop`, where one ends, that contain `MARK`.

    They are found from the end, because an answer's usage stands behind its content: what is before the mark need not be searched for it.
    """
    find, rfind = buffer.find, buffer.rfind
    lines = []
    end = stop - 1
    while (hit := rfind(MARK, 0, end)) >= 0:
        start = rfind(b"\n", 0, hit) + 1
        lines.append((start, find(b"\n", hit, stop)))
        end = max(start - 1, 0)
    for start, end in reversed(lines):
        yield view[start:end]
