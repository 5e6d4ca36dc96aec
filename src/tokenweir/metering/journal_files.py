"""The files of the journal: their names, their order, and whether their writer lives.

A journal directory holds, for each gateway process ("writer", 32 hex digits, time-ordered):

    WRITER.lock             held with flock for as long as the process lives: the writer is dead exactly when the lock can be taken
    WRITER-00000001.seg     segments, in order; the last one is live
    WRITER.reserve          zeros, which become the next segment when the disk is full

Change with it: `journal.py` (the writer), `workers/bookkeeping.py` (the reader, and the only one who deletes).
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Final

_SEGMENT: Final = re.compile(r"([0-9a-f]{32})-([0-9]{8})\.seg\Z")
_LOCK: Final = re.compile(r"([0-9a-f]{32})\.lock\Z")


def segment_path(directory: Path, writer: str, segment: int) -> Path:
    """The file of one segment."""
    return directory / f"{writer}-{segment:08d}.seg"


def lock_path(directory: Path, writer: str) -> Path:
    """The file whose lock says that the writer lives."""
    return directory / f"{writer}.lock"


def reserve_path(directory: Path, writer: str) -> Path:
    """The file of zeros that becomes a segment when the disk is full."""
    return directory / f"{writer}.reserve"


def writers(directory: Path) -> dict[str, list[int]]:
    """Every writer that left anything, oldest first, with the numbers of its segments in order."""
    found: dict[str, list[int]] = {}
    for name in os.listdir(directory):
        if match := _SEGMENT.match(name):
            found.setdefault(match[1], []).append(int(match[2]))
        elif match := _LOCK.match(name):
            found.setdefault(match[1], [])
    return {writer: sorted(found[writer]) for writer in sorted(found)}


def journal_bytes(directory: Path) -> int:
    """The size of all segments of all writers: what is not booked yet, apart from the start of the live ones."""
    total = 0
    with os.scandir(directory) as files:
        for file in files:
            if _SEGMENT.match(file.name):
                try:
                    total += file.stat().st_size
                except FileNotFoundError:  # booked and deleted between the listing and the look
                    continue
    return total


def take_lock(path: Path) -> int | None:
    """Lock the file, made if missing, and return its descriptor; None if another process holds it. The lock lasts until the descriptor is closed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_alive(directory: Path, writer: str) -> bool:
    """Whether somebody holds the writer's lock: the writer itself, or for a short time the worker that buries it. Makes no file."""
    try:
        descriptor = os.open(lock_path(directory, writer), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sync_directory(directory: Path) -> None:
    """Make names that were added or changed in the directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
