"""Intents, settlements and entries for tests of the journal, the ledger and what reads it; and a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenweir.ledger.entries import Entry, Intent, Settlement, settled_entry
from tokenweir.ledger.rollups import accumulate
from tokenweir.ledger_ports import Checkpoint
from tokenweir.usage import Certainty, Usage

START_US = 1_795_348_800_000_000
"""2026-11-22T12:00:00Z."""
WRITER = "0" * 31 + "1"


def attempt_id(number: int, at_us: int = START_US) -> str:
    return f"{at_us // 1000:012x}{number:020x}"


def intent(number: int, *, at_us: int | None = None, **fields: Any) -> Intent:
    at = START_US + number * 1000 if at_us is None else at_us
    values: dict[str, Any] = {
        "attempt_id": attempt_id(number, at),
        "request_id": f"req_tw_{number}",
        "attempt_no": 1,
        "started_at_us": at,
        "organization_id": "org_1",
        "team_id": f"team_{number % 2}",
        "key_id": f"key_{number % 3}",
        "model_requested": "claude-opus-4-5",
        "stream": bool(number % 2),
        "ceiling": Usage(uncached_input=1000, output=4000),
        "ceiling_nanos": 100_000 + number,
        "card_version": "test",
        "tags": ("a", 'quote"d'),
    }
    return Intent(**values | fields)


def settlement(begun: Intent, **fields: Any) -> Settlement:
    values: dict[str, Any] = {
        "attempt_id": begun.attempt_id,
        "ended_at_us": begun.started_at_us + 500,
        "status": 200,
        "certainty": Certainty.EXACT,
        "usage": Usage(100, 20, 30, 400, 50, 5, 1, 2, 3),
        "cost_nanos": 12_345,
        "model": begun.model_requested,
        "upstream_request_id": "req_up",
        "message_id": "msg_1",
        "stop_reason": "end_turn",
        "service_tier": "standard",
        "raw_usage": b'{"input_tokens":100}',
    }
    return Settlement(**values | fields)


def entry(number: int, *, at_us: int | None = None, begun: dict[str, Any] | None = None, **fields: Any) -> Entry:
    opened = intent(number, at_us=at_us, **(begun or {}))
    return settled_entry(opened, settlement(opened, **fields))


class StoppedClock:
    """Time that only a test moves."""

    def __init__(self, now_us: int = START_US + 3_600_000_000) -> None:
        self.now = now_us

    def now_us(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now * 1000


class DictLedger:
    """The ledger port as a dictionary: what the real stores are compared with."""

    def __init__(self) -> None:
        self.booked: dict[str, Entry] = {}
        self.moved: dict[str, Checkpoint] = {}
        self.times_booked = 0
        self.failing: Exception | None = None

    def _answer(self) -> None:
        if self.failing is not None:
            raise self.failing

    def checkpoints(self) -> dict[str, Checkpoint]:
        self._answer()
        return dict(self.moved)

    def book(self, entries: Sequence[Entry], checkpoints: Sequence[Checkpoint] = ()) -> int:
        self._answer()
        before = len(self.booked)
        for one in entries:
            self.booked.setdefault(one.entry_id, one)
        self.moved.update({checkpoint.writer: checkpoint for checkpoint in checkpoints})
        self.times_booked += 1
        return len(self.booked) - before

    def forget_checkpoints(self, writers: Sequence[str]) -> None:
        self._answer()
        for writer in writers:
            self.moved.pop(writer, None)

    def known(self, entry_ids: Sequence[str]) -> set[str]:
        self._answer()
        return set(entry_ids) & self.booked.keys()

    def entries_of(self, attempt: str) -> list[Entry]:
        found = [one for one in self.booked.values() if one.attempt_id == attempt]
        return sorted(found, key=lambda one: (one.kind != "attempt", one.ended_at_us, one.entry_id))

    def page(self, *, after: str = "", limit: int = 1000) -> list[Entry]:
        return [one for entry_id, one in sorted(self.booked.items()) if entry_id > after][:limit]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"not needed here: {name}")


def cells_of(entries: Iterable[Entry]) -> Any:
    """Both rollups of the entries, without cells of nothing but zeros."""
    return [{place: sums for place, sums in cells.items() if any(sums)} for cells in accumulate(entries)]


@contextmanager
def tmpfs(folder: Path, size_kib: int) -> Any:
    """A file system of that size, or a skipped test where mounting is refused."""
    import subprocess

    import pytest

    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is refused here, so a full disk cannot be made")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
