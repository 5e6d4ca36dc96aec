"""Booking exports of other programs: CSV, JSON lines or one JSON list, plain or gzipped, row by row.

The rules it protects: a row that cannot be believed is refused with its line number and its reason, counted, and holds up no other; reading the file again,
whole or after a kill, books nothing twice, so it is always read from its beginning. Change with it: `imports/` (what a row means), docs/IMPORTS.md.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO, TypeAlias

import msgspec
from msgspec.structs import replace

from tokenweir.importing.claude_code import BATCH_ROWS, Import
from tokenweir.ledger.entries import Entry
from tokenweir.ledger.imported import Account, ImportedCall, told_entry
from tokenweir.ledger_ports import ImportProgress, LedgerStore
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard

ReadRow: TypeAlias = Callable[[dict[str, Any]], ImportedCall | None]
"""The call of a row; None if it is none to the Claude API; ValueError with the reason if it cannot be believed."""

CELL_CHARS_MAX: Final = 64 * 1024 * 1024
"""Bodies in a cell of an export can be large; the largest request is half of this."""
PROBLEMS_SHOWN_MAX: Final = 50


class Taken(msgspec.Struct, frozen=True):
    """What became of one row of the file."""

    line_no: int
    entry: Entry | None = None
    """None: it is no call to the Claude API, or was refused."""
    problem: str = ""
    """Why it was refused."""


def read_export(path: Path, read_row: ReadRow, account: Account, card: RateCard) -> Iterator[Taken]:
    """Every row of the file with what becomes of it. Raises ValueError if the file as a whole cannot be read."""
    try:
        with _opened(path) as file:
            for line_no, row, problem in _rows(path, file):
                yield Taken(line_no, problem=problem) if row is None else _taken(line_no, row, read_row, account, card)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or not text in UTF-8: {error}") from error


def book_export(path: Path, source: str, read_row: ReadRow, store: LedgerStore, account: Account, card: RateCard, *, clock: Clock) -> Import:
    """Book the file, a batch at a time. Raises ValueError if the file as a whole cannot be read; what was booked before stays and is known next time."""
    place = str(path.absolute())
    known = next(iter(store.progress_of(source, [place])), None)
    begun_us = clock.now_us()
    at = ImportProgress(source, place, first_run_at_us=known.first_run_at_us if known else begun_us, last_run_at_us=begun_us)
    done = Import(files=1, files_read=1)
    pending: list[Entry] = []
    problems: list[str] = []
    for taken in read_export(path, read_row, account, card):
        skipped, refused = taken.entry is None and not taken.problem, bool(taken.problem)
        at = replace(
            at,
            line_no=taken.line_no,
            rows_read=at.rows_read + 1,
            rows_skipped=at.rows_skipped + skipped,
            rows_refused=at.rows_refused + refused,
        )
        if refused and len(problems) < PROBLEMS_SHOWN_MAX:
            problems.append(f"{path}:{taken.line_no}: {taken.problem}")
        if taken.entry is not None:
            pending.append(taken.entry)
        if len(pending) >= BATCH_ROWS:
            at = _keep(store, pending, at, clock)
            pending = []
    status = os.stat(place)
    at = replace(
        at,
        inode=status.st_ino,
        size_bytes=status.st_size,
        modified_at_us=status.st_mtime_ns // 1_000,
        byte_offset=status.st_size,
        problem=problems[0] if problems else "",
    )
    at = _keep(store, pending, at, clock)
    if at.rows_refused > len(problems):
        problems.append(f"{path}: and {at.rows_refused - len(problems):,} more rows were refused")
    return replace(
        done,
        rows_read=at.rows_read,
        rows_skipped=at.rows_skipped,
        rows_refused=at.rows_refused,
        booked=at.booked,
        problems=tuple(problems),
    )


def _keep(store: LedgerStore, pending: list[Entry], at: ImportProgress, clock: Clock) -> ImportProgress:
    return replace(at, booked=at.booked + store.book_told(pending, now_us=clock.now_us(), progress=at))


def _taken(line_no: int, row: dict[str, Any], read_row: ReadRow, account: Account, card: RateCard) -> Taken:
    try:
        call = read_row(row)
        return Taken(line_no, None if call is None else told_entry(call, account, card))
    except ValueError as error:
        return Taken(line_no, problem=str(error))


# Files.


def _opened(path: Path) -> TextIO:
    """The text of the file; a byte order mark is no text."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    raw: Any = gzip.open(path, "rb") if zipped else open(path, "rb")  # noqa: SIM115 - closed with the text around it
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _rows(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Line number and row; in place of a row that is none, what is wrong with it."""
    name = path.name.removesuffix(".gz").lower()
    if name.endswith(".csv"):
        yield from _csv_rows(file)
        return
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    file.seek(0)
    if start == "[" or name.endswith(".json"):
        yield from _listed_rows(path, file.read())
    else:
        yield from _line_rows(file)


def _csv_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    csv.field_size_limit(CELL_CHARS_MAX)
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            if None in row:
                yield reader.line_num, None, "has more cells than the head of the file"
            elif None in row.values():
                yield reader.line_num, None, "has fewer cells than the head of the file"
            else:
                yield reader.line_num, dict(row), ""
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is not CSV: {error}") from error


def _listed_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        lines = [line for line in content.splitlines() if line.strip()]
        if len(lines) > 1:  # lines of JSON under the wrong name
            yield from _line_rows(io.StringIO(content))
            return
        raise ValueError(f"{path} is not JSON") from None
    if isinstance(value, dict):
        value = next((value[name] for name in ("data", "rows", "results", "observations") if isinstance(value.get(name), list)), [value])
    for number, row in enumerate(value, start=1):
        yield (number, row, "") if isinstance(row, dict) else (number, None, "is no object")


def _line_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    for line_no, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield line_no, None, "is not JSON"
            continue
        yield (line_no, row, "") if isinstance(row, dict) else (line_no, None, "is no object")
