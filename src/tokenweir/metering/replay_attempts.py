"""Attempts for the replay: what the gateway sent, from the ledger, in exact order of time, each as it stands after its corrections.

The rule it protects: the order is that of `started_at`, to the microsecond, in bounded memory. The ledger gives entries in order of their ids, which
begin with the millisecond in which they were minted; within it, and where clocks of several gateways differ, a window of time puts them right. An
adjustment has an id of the same millisecond as its attempt, so it is found in the same window. Change with it: `ledger/adjustments.py`, `limit_replay.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from operator import add

import msgspec
from msgspec.structs import astuple

from tokenweir.ledger.entries import FLAG_REVERSAL, KIND_ATTEMPT, Entry
from tokenweir.ledger.sources import GATEWAY
from tokenweir.money import Nanos
from tokenweir.periods import SECOND_US, Micros
from tokenweir.usage import Usage

ORDER_WINDOW_US = 5 * SECOND_US
"""How far apart in time two entries may stand that come in the wrong order."""


class SentAttempt(msgspec.Struct, frozen=True, gc=False):
    """One attempt that the gateway sent, as the ledger has it by now."""

    attempt_id: str
    request_id: str
    """Shared by the attempts of one request."""
    attempt_no: int
    started_us: Micros
    ended_us: Micros
    organization_id: str
    team_id: str
    key_id: str
    model_requested: str
    model: str
    """The model that answered."""
    usage: Usage
    cost_nanos: Nanos
    ceiling_nanos: Nanos
    session_id: str
    tags: tuple[str, ...]
    speed: str
    inference_geo: str
    service_tier: str


class Disorder:
    """What could not be put right, counted."""

    def __init__(self) -> None:
        self.late_attempts = 0
        """Came after the window; they are replayed at the time that was reached."""
        self.late_adjustments = 0
        """Came after their attempt had left the window; they are not counted."""


def attempts(entries: Iterable[Entry], disorder: Disorder) -> Iterator[SentAttempt]:
    """The gateway's attempts in order of `started_us`; entries of other sources are passed over."""
    waiting: list[tuple[Micros, str]] = []
    known: dict[str, list[Entry]] = {}
    latest_us = reached_us = 0
    for entry in entries:
        if entry.source != GATEWAY:
            continue
        same = known.get(entry.attempt_id)
        if same is not None:
            same.append(entry)
        elif entry.kind != KIND_ATTEMPT and entry.started_at_us <= reached_us:
            disorder.late_adjustments += 1
            continue
        else:
            known[entry.attempt_id] = [entry]
            heapq.heappush(waiting, (entry.started_at_us, entry.attempt_id))
            disorder.late_attempts += entry.started_at_us < reached_us
        latest_us = max(latest_us, entry.started_at_us)
        while waiting[0][0] < latest_us - ORDER_WINDOW_US:
            at_us, attempt_id = heapq.heappop(waiting)
            reached_us = max(reached_us, at_us)
            yield from _standing(known.pop(attempt_id))
            if not waiting:
                break
    while waiting:
        yield from _standing(known.pop(heapq.heappop(waiting)[1]))


def _standing(entries: list[Entry]) -> Iterator[SentAttempt]:
    """What the attempt and its corrections come to; nothing if the attempt itself is not there, because it began before."""
    first = next((entry for entry in entries if entry.kind == KIND_ATTEMPT), None)
    if first is None:
        return
    usage, cost_nanos, latest = first.usage, first.cost_nanos, first
    if len(entries) > 1:
        counts = (0,) * len(Usage.__struct_fields__)
        for entry in entries:
            counts = tuple(map(add, counts, astuple(entry.usage)))
        usage, cost_nanos = Usage(*counts), sum(entry.cost_nanos for entry in entries)
        latest = max((entry for entry in entries if FLAG_REVERSAL not in entry.flags), key=lambda one: (one is not first, one.ended_at_us))
    yield SentAttempt(
        attempt_id=first.attempt_id,
        request_id=first.request_id or first.attempt_id,
        attempt_no=first.attempt_no,
        started_us=first.started_at_us,
        ended_us=max(first.ended_at_us, first.started_at_us),
        organization_id=first.organization_id,
        team_id=first.team_id,
        key_id=first.key_id,
        model_requested=first.model_requested or latest.model,
        model=latest.model,
        usage=usage,
        cost_nanos=cost_nanos,
        ceiling_nanos=first.ceiling_nanos,
        session_id=first.session_id,
        tags=first.tags,
        speed=latest.speed,
        inference_geo=latest.inference_geo,
        service_tier=latest.service_tier,
    )
