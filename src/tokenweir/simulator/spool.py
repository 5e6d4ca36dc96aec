"""Records on disk, so that a batch of 256 MB is held in no memory: appended whole, read by number or from a position on.

Short spools stay in memory; long ones are a file without a name, which the system takes back even if the simulator is killed.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array

_BUFFER_BYTES = 256 * 1024


class Spool:
    """An append-only row of records."""

    def __init__(self) -> None:
        self._ends = array("Q")
        self._fd = -1
        self._stored = 0
        """Bytes in the file; what follows is in the buffer."""
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return self._stored + len(self._buffer)

    def append(self, record: bytes) -> None:
        """Add a record."""
        self._buffer += record
        self._ends.append(self._stored + len(self._buffer))
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def record(self, index: int) -> bytes:
        """One record."""
        start = self._ends[index - 1] if index else 0
        return self.read(start, self._ends[index] - start)

    def read(self, start: int, size: int) -> bytes:
        """Bytes from a position on, fewer at the end."""
        found = b""
        if start < self._stored:
            found = os.pread(self._fd, min(size, self._stored - start), start)
        at = start + len(found) - self._stored
        if len(found) < size and at >= 0:
            found += self._buffer[at : at + size - len(found)]
        return found

    def _flush(self) -> None:
        if self._fd < 0:
            self._fd, path = tempfile.mkstemp(prefix="tokenweir-simulator-")
            os.unlink(path)
            weakref.finalize(self, os.close, self._fd)
        left = memoryview(self._buffer)
        while left:
            left = left[os.write(self._fd, left) :]
        left.release()
        self._stored += len(self._buffer)
        self._buffer = bytearray()
