"""The files of the journal: names, order, and whose they are.

`<writer>-<number>.seg` are the segments of one writer, a gateway process; `<writer>.lock` is locked by it for as long as it lives, so a writer
is dead exactly when its lock can be taken; `<writer>.reserve` is the space it keeps for a full disk. Writer ids are time-ordered, so names sort
by age. Change together with `journal.py` (writes) and `workers/bookkeeping.py` (reads and deletes).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_SEGMENT = re.compile(r"([0-9a-f]{32})-([0-9]{8})\.seg")


class SegmentFile(NamedTuple):
    """One segment; they sort in the order they were written."""

    writer: str
    number: int
    path: Path


def segment_path(directory: Path, writer: str, number: int) -> Path:
    """Where a segment lies."""
    return directory / f"{writer}-{number:08d}.seg"


def list_segments(directory: Path) -> list[SegmentFile]:
    """All segments, in order; other files are ignored."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            match = _SEGMENT.fullmatch(name)
            if match:
                found.append(SegmentFile(match[1], int(match[2]), directory / name))
    return sorted(found)


def journal_bytes(directory: Path) -> int:
    """How much journal lies on disk."""
    total = 0
    for segment in list_segments(directory):
        with contextlib.suppress(FileNotFoundError):
            total += segment.path.stat().st_size
    return total


def lock_writer(directory: Path, writer: str) -> int:
    """Take the lock of a new writer; the returned descriptor holds it until it is closed or the process ends."""
    descriptor = os.open(directory / f"{writer}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_dead(directory: Path, writer: str) -> bool:
    """Whether the writer has ended: the kernel frees its lock however it died."""
    try:
        descriptor = os.open(directory / f"{writer}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove_writer(directory: Path, writer: str) -> None:
    """Remove what a dead writer left beside its segments."""
    for suffix in (".reserve", ".lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(directory / f"{writer}{suffix}")


def writers_without_segments(directory: Path, known: Iterable[str]) -> list[str]:
    """Dead writers that left a lock and no segment."""
    known = set(known)
    with contextlib.suppress(FileNotFoundError):
        return [name[:32] for name in os.listdir(directory) if name.endswith(".lock") and name[:32] not in known and is_dead(directory, name[:32])]
    return []


def sync_directory(directory: Path) -> None:
    """Make new and removed names durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_zeros(path: Path, size: int) -> None:
    """Make a file of that size whose every block exists, durably; leaves nothing behind if there is no room. Raises OSError."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        piece = bytes(64 * 1024)
        left = size
        while left > 0:
            left -= os.write(descriptor, piece[:left])
        os.fsync(descriptor)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
