"""Gathering: transcripts in, answers out, with every core where that is faster than starting the processes.

The rule it protects: nothing is lost in silence. A file that cannot be read, a torn line, a line too long to hold is counted and said; a part of a file that
fails fails the whole. Change together with `scanning.py` (how lines are found) and `reports/answers.py` (how answers are merged).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import msgspec

from tokenweir.importing.places import TranscriptFile
from tokenweir.importing.scanning import MarkedLines
from tokenweir.pricing.rate_card import RateCard
from tokenweir.reports.answers import Answers
from tokenweir.wire.transcripts import TranscriptRow, read_line
from tokenweir.wire.usage_fields import FLAG_UNKNOWN_FIELD

PARALLEL_BYTES_MIN = 96 * 1024 * 1024
"""Less than this is read faster than processes start."""
PART_BYTES = 32 * 1024 * 1024
"""A larger file is read in parts, by several processes."""
TASK_BYTES = 16 * 1024 * 1024
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
    cores = processes or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else processes or os.cpu_count() or 1
    small = sum(file.size for file in files) < PARALLEL_BYTES_MIN
    if cores < 2 or small:
        for parts in _tasks(files):
            _note(outcome, _read_parts(parts, answers, card))
            on_progress(_bytes(parts))
    else:
        _gather_in_processes(list(_tasks(files)), card, cores, answers, outcome, on_progress)
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
    for part in parts:
        try:
            descriptor = os.open(part.file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            outcome.problems.append(f"{part.file.path}: {error.strerror}")
            continue
        try:
            lines = MarkedLines(descriptor, start=part.start, end=part.end, at_line_start=part.start == 0)
            for row in read_rows(part.file, lines, outcome):
                answers.add(row, card)
            if lines.tail:
                _add_tail(part.file, lines.tail, answers, card)
            outcome.oversized += lines.oversized
        except OSError as error:
            outcome.problems.append(f"{part.file.path}: {error.strerror}")
        finally:
            os.close(descriptor)
    return outcome


def _add_tail(file: TranscriptFile, tail: bytes, answers: Answers, card: RateCard) -> None:
    """A last line without its newline counts if it is whole: an object ends with its own brace. Otherwise it is being written, and held back."""
    row = _read(file, tail, Gathered())
    if row is not None:
        answers.add(row, card)


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


# In processes: the card is there before they are forked; parts go over, packed tables come back.


def _gather_in_processes(
    tasks: list[list[Part]], card: RateCard, cores: int, answers: Answers, outcome: Gathered, on_progress: Callable[[int], None]
) -> None:
    import multiprocessing  # noqa: PLC0415 - most reports never need it
    from concurrent.futures import ProcessPoolExecutor, as_completed  # noqa: PLC0415

    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context(method), initializer=_begin, initargs=(card,)) as pool:
        futures = {pool.submit(_read_task, parts): _bytes(parts) for parts in tasks}
        try:
            for future in as_completed(futures):
                gathered = _decode(future.result())
                answers.merge(gathered.packed, gathered.names)
                _note(outcome, gathered)
                on_progress(futures.pop(future))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_card_of_this_process: list[RateCard] = []
_decode = msgspec.msgpack.Decoder(Gathered).decode


def _begin(card: RateCard) -> None:
    _card_of_this_process[:] = [card]


def _read_task(parts: list[Part]) -> bytes:
    answers = Answers()
    outcome = _read_parts(parts, answers, _card_of_this_process[0])
    outcome.packed, outcome.names = answers.packed, answers.names
    return msgspec.msgpack.encode(outcome)
