"""The journal of truth: one JSON line for each attempt on `/v1/messages`, written when it ends, in whatever way, and exactly once.

A line is one `write` to a file opened for appending, so a killed simulator loses nothing it had written. Beginnings go to a file of their own, if
wanted: an attempt with a beginning and no end was in flight when the simulator died. Columns have the names of the glossary, and money is rated by the
product's own calculator. Change together with docs/SIMULATOR.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from tokenweir.periods import Micros, format_instant
from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rating import cost_nanos
from tokenweir.usage import Metered, Segment, Usage

_encoder = msgspec.json.Encoder()


class Journal:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path | None, *, sync: bool = False) -> None:
        self._sync = sync
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if path is not None else -1
        self.last_attempt = _last_attempt(path) if path is not None else 0
        """The number of the last attempt in the file: a simulator started again goes on counting, so that ids stay unique."""
        if path is not None and _is_torn(path):
            os.write(self._fd, b"\n")

    def append(self, line: dict[str, Any]) -> None:
        """Write one line; durable against a kill when this returns, against a power cut too with `sync`."""
        if self._fd < 0:
            return
        raw = memoryview(_encoder.encode(line) + b"\n")
        while raw:
            raw = raw[os.write(self._fd, raw) :]
        if self._sync:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """No more lines."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Attempt:
    """What is known of one attempt, and its one line."""

    __slots__ = ("_card", "_journal", "_pending", "body_sha256", "facts", "number", "received_us", "request_id", "workspace")

    def __init__(self, number: int, request_id: str, *, received_us: Micros, journal: Journal, card: RateCard) -> None:
        self.number = number
        self.request_id = request_id
        self.received_us = received_us
        self.workspace = ""
        self.body_sha256 = ""
        self.facts: dict[str, Any] = {}
        """Further columns, as they become known."""
        self._pending = True
        self._journal = journal
        self._card = card

    @property
    def ended(self) -> bool:
        """Whether the line is written."""
        return not self._pending

    def end(self, outcome: str, *, now_us: Micros, status: int, bytes_sent: int, bill: Bill | None = None, **facts: Any) -> None:
        """Write the line; only the first call does."""
        if not self._pending:
            return
        self._pending = False
        line: dict[str, Any] = {
            "attempt": self.number,
            "request_id": self.request_id,
            "received_at": _instant(self.received_us),
            "ended_at": _instant(now_us),
            "workspace": self.workspace,
            "status": status,
            "outcome": outcome,
            **_columns(bill, self._card, self.received_us),
            "bytes_sent": bytes_sent,
            "body_sha256": self.body_sha256,
            **self.facts,
            **facts,
        }
        self._journal.append(line)


class Bill(msgspec.Struct, frozen=True):
    """What an attempt would bill."""

    model: str
    usage: Usage
    segments: tuple[Segment, ...]
    """Those that cost money; none for a refusal without content."""
    raw: dict[str, Any]
    """The provider-shaped usage object."""
    service_tier: str
    speed: str
    inference_geo: str


def _columns(bill: Bill | None, card: RateCard, at_us: Micros) -> dict[str, Any]:
    usage = bill.usage if bill else Usage()
    found: dict[str, Any] = {name: getattr(usage, name) for name in _COLUMNS}
    if bill is None:
        return {**found, "billed": False, "cost_nanos": 0, "usage": None, "segments": [], "service_tier": "", "speed": "", "inference_geo": ""}
    metered = Metered(
        model=bill.model,
        usage=usage,
        segments=bill.segments,
        service_tier=bill.service_tier,
        speed=bill.speed,
        inference_geo=bill.inference_geo,
    )
    nanos, unpriced = cost_nanos(card, metered, at_us=at_us)
    found.update(billed=bool(bill.segments), cost_nanos=nanos, unpriced=unpriced, usage=bill.raw, service_tier=bill.service_tier)
    found.update(speed=bill.speed, inference_geo=bill.inference_geo, answered_by=bill.model)
    found["segments"] = [{"kind": s.kind, "model": s.model, **{name: getattr(s.usage, name) for name in _COLUMNS}} for s in bill.segments]
    return found


_minutes: dict[int, str] = {}


def _instant(at_us: Micros) -> str:
    """The same as `format_instant`, three times cheaper because thousands of attempts share a minute."""
    minute, micros = divmod(at_us, 60_000_000)
    prefix = _minutes.get(minute)
    if prefix is None:
        if len(_minutes) > 64:
            _minutes.clear()
        prefix = _minutes[minute] = format_instant(minute * 60_000_000)[:17]
    return f"{prefix}{micros // 1_000_000:02d}.{micros % 1_000_000:06d}Z"


_COLUMNS = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "thinking", "web_searches")


def _is_torn(path: Path) -> bool:
    """Whether the last line lacks its end: a machine that lost power, or a disk that was full."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _last_attempt(path: Path) -> int:
    """The highest attempt number near the end of the file; lines are nearly in order."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 20)))
        lines = file.read().splitlines()
    numbers = [0]
    for line in lines:
        try:
            numbers.append(int(msgspec.json.decode(line)["attempt"]))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue
    return max(numbers)
