"""Adjustments: how the ledger learns better without changing an entry.

The rule it protects: what stands for an attempt is the sum of its entry and all its adjustments; a correction adds the difference, so making it twice adds
nothing the second time. If the correction changes what the attempt is told apart by (its model, certainty, state of pricing), all that stands is taken
back where it was booked and booked anew where it belongs. Ids follow from the attempt and the number of corrections before, so that two who correct at
once cannot both succeed. Change with it: `rollups.py` (how adjustments count).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import add, sub

import msgspec
from msgspec.structs import astuple, replace

from tokenweir.ledger.entries import FLAG_REBOOKING, FLAG_REVERSAL, FLAG_UNPRICED, KIND_ADJUSTMENT, KIND_ATTEMPT, Entry
from tokenweir.ledger.rollups import dims_of
from tokenweir.money import Nanos
from tokenweir.periods import Micros
from tokenweir.usage import Certainty, Usage

_MARKS = (FLAG_REVERSAL, FLAG_REBOOKING)


class Standing(msgspec.Struct, frozen=True):
    """What is booked for an attempt by now."""

    latest: Entry
    """The entry, or the last adjustment that was not a reversal: it says what the attempt is told apart by."""
    usage: Usage
    cost_nanos: Nanos
    corrections: int


class Truth(msgspec.Struct, frozen=True):
    """What should be booked for an attempt."""

    usage: Usage
    cost_nanos: Nanos
    model: str
    certainty: Certainty
    flags: tuple[str, ...]
    card_version: str
    raw_usage: bytes = b""
    service_tier: str = ""
    speed: str = ""
    inference_geo: str = ""


def standing(entries: Sequence[Entry]) -> Standing:
    """What the entry of an attempt and its adjustments add up to; raises ValueError without the attempt's own entry."""
    if not entries or entries[0].kind != KIND_ATTEMPT:
        raise ValueError("the attempt itself is not in the ledger")
    usage = (0,) * len(Usage.__struct_fields__)
    for entry in entries:
        usage = tuple(map(add, usage, astuple(entry.usage)))
    latest = max((entry for entry in entries if FLAG_REVERSAL not in entry.flags), key=lambda entry: (entry.kind != KIND_ATTEMPT, entry.ended_at_us))
    return Standing(latest, Usage(*usage), sum(entry.cost_nanos for entry in entries), len(entries) - 1)


def correct(now: Standing, truth: Truth, *, reason: str, now_us: Micros) -> tuple[Entry, ...]:
    """The adjustments that make the ledger say `truth`: none if it does already, one difference, or a reversal with its rebooking."""
    latest = now.latest
    flags = tuple(flag for flag in truth.flags if flag not in _MARKS)
    aim = replace(
        latest,
        kind=KIND_ADJUSTMENT,
        ended_at_us=max(now_us, latest.ended_at_us + 1),
        model=truth.model,
        certainty=truth.certainty,
        card_version=truth.card_version,
        raw_usage=truth.raw_usage,
        service_tier=truth.service_tier,
        speed=truth.speed,
        inference_geo=truth.inference_geo,
        flags=flags,
        reason=reason,
    )
    same_cell = dims_of(replace(latest, kind=KIND_ADJUSTMENT)) == dims_of(aim)
    if same_cell and now.usage == truth.usage and now.cost_nanos == truth.cost_nanos:
        return ()
    if same_cell:
        difference = Usage(*map(sub, astuple(truth.usage), astuple(now.usage)))
        return (replace(aim, entry_id=_id(now, "difference"), usage=difference, cost_nanos=truth.cost_nanos - now.cost_nanos),)
    rebooking = replace(aim, entry_id=_id(now, FLAG_REBOOKING), usage=truth.usage, cost_nanos=truth.cost_nanos, flags=(*flags, FLAG_REBOOKING))
    return (_reversal(now, reason, aim.ended_at_us), rebooking)


def taken_back(entries: Sequence[Entry]) -> bool:
    """Whether all that was booked for the attempt has been reversed, and nothing was booked anew."""
    return sum(FLAG_REVERSAL in entry.flags for entry in entries) > sum(FLAG_REBOOKING in entry.flags for entry in entries)


def take_back(now: Standing, *, reason: str, now_us: Micros) -> Entry:
    """The adjustment that leaves nothing of the attempt, because another record of the same call stands in its place."""
    return _reversal(now, reason, max(now_us, now.latest.ended_at_us + 1))


def book_anew(now: Standing, told: Entry, *, reversed_already: bool, reason: str, now_us: Micros) -> tuple[Entry, ...]:
    """The adjustments after which exactly `told` stands for the attempt, at the time and place that `told` names."""
    ended_at_us = max(now_us, now.latest.ended_at_us + 1, told.ended_at_us)
    rebooking = replace(
        told,
        entry_id=_id(now, FLAG_REBOOKING),
        attempt_id=now.latest.attempt_id,
        kind=KIND_ADJUSTMENT,
        ended_at_us=ended_at_us,
        flags=(*(flag for flag in told.flags if flag not in _MARKS), FLAG_REBOOKING),
        reason=reason,
    )
    return (rebooking,) if reversed_already else (_reversal(now, reason, ended_at_us), rebooking)


def without_unpriced(flags: Sequence[str], *, unpriced: bool) -> tuple[str, ...]:
    """The flags, with `unpriced` among them exactly if it is."""
    kept = tuple(flag for flag in flags if flag != FLAG_UNPRICED)
    return (*kept, FLAG_UNPRICED) if unpriced else kept


def _reversal(now: Standing, reason: str, ended_at_us: Micros) -> Entry:
    latest = now.latest
    return replace(
        latest,
        entry_id=_id(now, FLAG_REVERSAL),
        kind=KIND_ADJUSTMENT,
        ended_at_us=ended_at_us,
        usage=Usage(*(-count for count in astuple(now.usage))),
        cost_nanos=-now.cost_nanos,
        raw_usage=b"",
        flags=(*(flag for flag in latest.flags if flag not in _MARKS), FLAG_REVERSAL),
        reason=reason,
    )


def _id(now: Standing, part: str) -> str:
    """32 hex digits that begin with the attempt's time, so that an adjustment sorts among the attempts of its time."""
    attempt_id = now.latest.attempt_id
    digest = hashlib.blake2b(f"{attempt_id} {now.corrections} {part}".encode(), digest_size=10).hexdigest()
    return attempt_id[:12] + digest
