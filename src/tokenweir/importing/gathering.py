"""Gathering: transcripts in, answers out, with every core where that is faster than starting the processes.

The rule it protects: nothing is lost in silence. A file that cannot be read, a torn line, a line too long to hold is counted and said; a part of a file that
fails fails the whole. Change together with `scanning.py` (how lines are found) and `reports/answers.py` (how answers are merged).
"""

from __future__ import annotations

import gc
import os
import selectors
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NoReturn

import msgspec

from tokenweir.errors import OwnError
from tokenweir.importing.places import TranscriptFile
from tokenweir.importing.scanning import MarkedLines, new_buffer
from tokenweir.pricing.rate_card import RateCard
from tokenweir.reports.answers import Answers
from tokenweir.wire.transcripts import TranscriptRow, fuller, read_line
from tokenweir.wire.usage_fields import FLAG_UNKNOWN_FIELD

PARALLEL_BYTES_MIN = 16 * 1024 * 1024
"""Less than this is read by the time other processes have started."""
PART_BYTES = 8 * 1024 * 1024
"""A larger file is read in parts, by several processes."""
TASK_BYTES = 4 * 1024 * 1024
"""About how much one process takes at once."""


class Part(msgspec.Struct, frozen=True):
    """A file, or the lines of it that begin in a range."""

    file: TranscriptFile
    start: int
    end: int | None


class Gathered(msgspec.Struct):
    """What reading some parts gave, and what stood in the way."""

    packed: dict[bytes, bytes] = {}
    names: dict[bytes, str] = {}
    torn: int = 0
    """Lines that are no JSON."""
    oversized: int = 0
    unknown_fields: set[str] = set()
    problems: list[str] = []


def gather(
    files: Sequence[TranscriptFile], card: RateCard, *, on_progress: Callable[[int], None] = lambda _: None, processes: int | None = None
) -> tuple[Answers, Gathered]:
    """All answers in the files, and what stood in the way. `on_progress` is told the bytes that were dealt with since."""
    answers, outcome = Answers(), Gathered()
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = cores if sum(file.size for file in files) >= PARALLEL_BYTES_MIN else 1
    collecting = gc.isenabled()
    gc.disable()  # nothing that is made here is cyclic, and looking for it costs a tenth
    try:
        if processes < 2 or not hasattr(os, "fork"):
            for parts in _tasks(files):
                _note(outcome, _read_parts(parts, answers, card))
                on_progress(_bytes(parts))
        else:
            _gather_in_processes(list(_tasks(files)), card, processes, answers, outcome, on_progress)
    finally:
        if collecting:
            gc.enable()
    answers.settle()
    return answers, outcome


def read_rows(file: TranscriptFile, lines: MarkedLines, outcome: Gathered, *, keep_raw: bool = False) -> Iterator[TranscriptRow]:
    """The rows of marked lines, with what the file's name says where a line does not; torn lines are counted in `outcome`."""
    for line in lines:
        row = _read(file, line, outcome, keep_raw=keep_raw)
        if row is not None:
            yield row


def _read(file: TranscriptFile, line: memoryview | bytes, outcome: Gathered, *, keep_raw: bool = False) -> TranscriptRow | None:
    try:
        row = read_line(line, otherwise_us=file.modified_us, keep_raw=keep_raw)
    except ValueError:
        outcome.torn += 1
        return None
    if row is None:
        return None
    if row.metered.flags:
        outcome.unknown_fields.update(flag.partition(":")[2] for flag in row.metered.flags if flag.startswith(FLAG_UNKNOWN_FIELD))
    if not row.session_id or not row.cwd or file.agent_id:
        row = msgspec.structs.replace(
            row,
            session_id=row.session_id or file.session_id,
            cwd=row.cwd or file.project,
            agent_id=row.agent_id or file.agent_id,
            sidechain=row.sidechain or bool(file.agent_id),
        )
    return row


def _read_parts(parts: Sequence[Part], answers: Answers, card: RateCard) -> Gathered:
    outcome = Gathered()
    buffer = new_buffer()
    best: dict[str, TranscriptRow] = {}
    for part in parts:
        try:
            descriptor = os.open(part.file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            outcome.problems.append(f"{part.file.path}: {error.strerror}")
            continue
        try:
            lines = MarkedLines(descriptor, start=part.start, end=part.end, at_line_start=part.start == 0, buffer=buffer)
            for row in read_rows(part.file, lines, outcome):
                standing = best.get(row.key)
                best[row.key] = row if standing is None else fuller(row, standing)
            tail = _read(part.file, lines.tail, Gathered()) if lines.tail else None
            if tail is not None:
                # A last line without its newline counts if it is whole: an object ends with its own brace. Otherwise it is being written, and held back.
                best[tail.key] = fuller(tail, best.get(tail.key, tail))
            outcome.oversized += lines.oversized
        except OSError as error:
            outcome.problems.append(f"{part.file.path}: {error.strerror}")
        finally:
            os.close(descriptor)
    for row in best.values():
        answers.add(row, card)
    return outcome


def _tasks(files: Sequence[TranscriptFile]) -> Iterator[list[Part]]:
    """The files, largest first, cut and bundled into pieces of work of about the same size."""
    bundle: list[Part] = []
    size = 0
    for file in files:
        if file.size > PART_BYTES:
            starts = range(0, file.size, PART_BYTES)
            yield from ([Part(file, start, None if start == starts[-1] else start + PART_BYTES)] for start in starts)
            continue
        bundle.append(Part(file, 0, None))
        size += file.size
        if size >= TASK_BYTES:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle


def _bytes(parts: Sequence[Part]) -> int:
    return sum((part.end or part.file.size) - part.start for part in parts)


def _note(outcome: Gathered, other: Gathered) -> None:
    outcome.torn += other.torn
    outcome.oversized += other.oversized
    outcome.unknown_fields |= other.unknown_fields
    outcome.problems += other.problems


# In processes. They are forked, so files and card are there already; a pipe that holds the numbers of all tasks is the queue: who reads a number does it.


def _gather_in_processes(
    tasks: list[list[Part]], card: RateCard, cores: int, answers: Answers, outcome: Gathered, on_progress: Callable[[int], None]
) -> None:
    queue, numbers = os.pipe()
    filling = os.fork()
    if filling == 0:
        _fill(numbers, len(tasks))
    os.close(numbers)
    children = [_start(queue, tasks, card) for _ in range(min(cores, len(tasks)))]
    os.close(queue)
    try:
        with selectors.DefaultSelector() as ready:
            for _, results in children:
                ready.register(results, selectors.EVENT_READ)
            while ready.get_map():
                for key, _ in ready.select():
                    header = _read_exactly(key.fd, _HEADER.size)
                    if not header:
                        ready.unregister(key.fd)
                        continue
                    number, size = _HEADER.unpack(header)
                    gathered = _decode(_read_exactly(key.fd, size))
                    answers.merge(gathered.packed, gathered.names)
                    _note(outcome, gathered)
                    on_progress(_bytes(tasks[number]))
    finally:
        for _, results in children:
            os.close(results)  # one that still writes ends of it
        ends = [os.waitpid(child, 0)[1] for child in (filling, *(child for child, _ in children))]
    if any(ends):
        raise OwnError("A process that read transcripts ended early, so nothing is reported; try again with fewer files or more memory.")


_HEADER = struct.Struct("<IQ")
_NUMBER = struct.Struct("<I")
_decode = msgspec.msgpack.Decoder(Gathered).decode


def _fill(numbers: int, count: int) -> NoReturn:
    """Write the numbers of all tasks; in a process of its own, because a pipe holds only so many."""
    with suppress(BrokenPipeError):
        for number in range(count):
            os.write(numbers, _NUMBER.pack(number))
    os._exit(0)


def _start(queue: int, tasks: list[list[Part]], card: RateCard) -> tuple[int, int]:
    """A process that does tasks until there are none; its id, and the pipe on which its results come."""
    results, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, results
    status = 1
    try:
        os.close(results)
        while number := os.read(queue, _NUMBER.size):
            (task,) = _NUMBER.unpack(number)
            answers = Answers()
            outcome = _read_parts(tasks[task], answers, card)
            outcome.packed, outcome.names = answers.packed, answers.names
            content = msgspec.msgpack.encode(outcome)
            _write_all(writing, _HEADER.pack(task, len(content)) + content)
        status = 0
    except BrokenPipeError:
        pass  # nobody waits for it any more
    finally:
        os._exit(status)  # never up into the code of the parent


def _read_exactly(descriptor: int, size: int) -> bytes:
    """So many bytes; none if the pipe has ended, also in the middle."""
    parts = []
    while size and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"" if size else b"".join(parts)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
