"""The demo's limits: a monthly quota that is nearly used up, a rate, and a queue; what the programs are told of them, and how they stand.

How they stand is read as `tokenweir limit status` reads it; what was refused is what the programs were told. The team at its quota asks for more now and
then, and somebody says yes. At the end what the limits counted must equal the ledger. Change together with `demo_play.py` and `simulator/programs.py`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import closing
from typing import Any

from tokenweir import app as stores
from tokenweir import limiting
from tokenweir.cli.limit_status import read_statuses
from tokenweir.limit_ports import LimitRecord
from tokenweir.limits.limit import Resource
from tokenweir.metering.limit_answers import amount_words
from tokenweir.metering.limit_status import LimitStatus
from tokenweir.periods import SECOND_US, Micros
from tokenweir.settings import Settings

LIMITS: tuple[dict[str, str], ...] = (
    {"team": "data", "resource": "tokens", "amount": "100k", "window": "month", "name": "data quota", "contact": "lead@example.com"},
    {"team": "support", "resource": "requests", "amount": "18", "window": "rolling:10s", "name": "support rate"},
    {"team": "engineering", "resource": "concurrency", "amount": "1", "action": "queue", "queue_for": "60s", "name": "engineering slots"},
)
"""Of three of the four teams; the fourth does as it likes."""
MORE = "50k"
"""What the team at its quota is given when it asks."""
_ASK_AFTER_S = 15.0
_DRAINED_WITHIN_S = 10.0


class DemoLimits:
    """Sets the limits, remembers what the programs were told of them, and reads how they stand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.refused: Counter[str] = Counter()
        """Refusals by team, as its programs were told."""
        self.told: dict[str, str] = {}
        """What each of them was told last."""
        self.given = 0
        """How often more was asked for and given."""
        self._quota_refused_at: float | None = None
        now_us = stores.SystemClock().now_us()
        with closing(stores.open_directory(settings)) as directory, closing(stores.open_limit_directory(settings)) as limits:
            self.records: list[LimitRecord] = [
                limiting.set_limit(directory, limits, **limit, actor="demo", now_us=now_us, entropy=os.urandom).limit  # type: ignore[arg-type] # all are texts
                for limit in LIMITS
            ]

    def refuse(self, team: str, error_type: str, message: str) -> None:
        """A program of the team was refused with these words."""
        self.refused[team] += 1
        self.told[team] = message
        if error_type == "billing_error" and self._quota_refused_at is None:
            self._quota_refused_at = time.monotonic()

    def read(self) -> list[tuple[LimitRecord, LimitStatus]]:
        """How the limits stand now, in the order of `LIMITS`. Raises StoreUnavailable."""
        found = {one.limit_id: (record, one) for record, one in read_statuses(self._settings, self.records)[0]}
        return [found[record.limit.limit_id] for record in self.records]

    def ask_for_more(self) -> bool:
        """Some time after its first refusal, the team at its quota asks for more, and gets it; True if it did just now."""
        if self._quota_refused_at is None or time.monotonic() - self._quota_refused_at < _ASK_AFTER_S:
            return False
        self._quota_refused_at = None
        now_us = stores.SystemClock().now_us()
        with closing(stores.open_limit_directory(self._settings)) as limits:
            asked = limiting.ask_for_more(
                limits,
                self.records[0].limit.limit_id,
                amount=MORE,
                reason="a deadline",
                actor="data",
                now_us=now_us,
                entropy=os.urandom,
            )
            limiting.approve(limits, asked.request.request_id, comment="until the end of the month", actor="demo", now_us=now_us, entropy=os.urandom)
            self.records = [limiting.show_limit(limits, record.limit.limit_id) for record in self.records]
        self.given += 1
        return True

    def drained(self) -> list[tuple[LimitRecord, LimitStatus]]:
        """How the limits stand when no request holds anything any more."""
        deadline = time.monotonic() + _DRAINED_WITHIN_S
        found = self.read()
        while any(one.held for _, one in found) and time.monotonic() < deadline:
            time.sleep(0.05)
            found = self.read()
        return found

    def conclude(self, drained: list[tuple[LimitRecord, LimitStatus]]) -> dict[str, Any]:
        """What the limits did, and every difference between what they counted and what the ledger says, now that nothing runs."""
        counted = {record.limit.limit_id: one for record, one in drained}
        differences = []
        for record, booked in self.read():
            one = counted[record.limit.limit_id]
            if one.held:
                differences.append(f"{record.limit.name}: {one.held} still held")
            if booked.starts_at_us is not None and booked.starts_at_us == one.starts_at_us and booked.used != one.used:
                differences.append(f"{record.limit.name}: {one.used} in the limit and {booked.used} in the ledger")
        limits = [
            {
                "name": record.limit.name,
                "used": one.used,
                "room": one.room,
                "refused": self.refused[record.team],
                "waited": 0 if one.waits is None else one.waits.served,
            }
            for record, one in drained
        ]
        return {"limits": limits, "given": self.given, "differences": differences}


def used_words(record: LimitRecord, one: LimitStatus) -> str:
    """`9,210 of 12,000`, in units of the resource; of concurrency, how many requests are under way."""
    units = one.held if record.limit.resource is Resource.CONCURRENCY else one.used
    used = "?" if units is None else amount_words(record.limit.resource, units)[0]
    return f"{used} of {amount_words(record.limit.resource, one.room)[0]}"


def held_words(record: LimitRecord, one: LimitStatus) -> str:
    """What requests under way hold; a dash for concurrency, which shows it as used, and for requests, which are used at once."""
    if record.limit.resource in (Resource.CONCURRENCY, Resource.REQUESTS) or one.held is None:
        return "-"
    return amount_words(record.limit.resource, one.held)[0]


def resets_words(one: LimitStatus, now_us: Micros) -> str:
    """How long until it is all free again, in its two largest units: `8d 6h`, `7s`; a dash for what never resets."""
    if one.resets_at_us is None:
        return "-"
    left_s = max(0, -(-(one.resets_at_us - now_us) // SECOND_US))
    parts: list[str] = []
    for name, length_s in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if left_s >= length_s or (name == "s" and not parts):
            parts.append(f"{left_s // length_s}{name}")
            left_s %= length_s
    return " ".join(parts[:2])


def waiting_words(one: LimitStatus) -> str:
    """`2, p95 1.4s`: how many wait now, and how long 95 of 100 waited at most; a dash where nobody waits."""
    if one.waits is None:
        return "-"
    return f"{one.waits.waiting}, p95 {one.waits.p95_us / SECOND_US:.1f}s"
