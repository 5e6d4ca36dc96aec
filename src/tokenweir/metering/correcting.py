"""Correcting the ledger: rating again what had no price, and booking what an operator knows.

The rules it protects: a correction is an adjusting entry that carries the difference (`ledger/adjustments.py`); prices are those of the moment the attempt
began; doing it twice changes nothing. Change with it: `cli/ledger.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenweir.errors import CallerError, Conflict, NotFound
from tokenweir.ledger.adjustments import Standing, Truth, correct, standing, without_unpriced
from tokenweir.ledger.entries import FLAG_REBOOKING, FLAG_REVERSAL, FLAG_UNKNOWN, FLAG_UNPRICED, KIND_ADJUSTMENT, Entry
from tokenweir.ledger_ports import LedgerStore
from tokenweir.money import Nanos
from tokenweir.periods import Micros
from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rating import ceiling_cost, cost_nanos
from tokenweir.usage import Certainty, Metered, Segment, Usage
from tokenweir.wire.messages import read_usage
from tokenweir.wire.usage_fields import FLAG_UNBILLED_REFUSAL

REASON_RERATE = "rerate"


class Correction(msgspec.Struct, frozen=True):
    """One attempt, before and after."""

    attempt_id: str
    model: str
    before_nanos: Nanos
    after_nanos: Nanos
    entries: tuple[Entry, ...]


def rerate(entries: Sequence[Entry], card: RateCard, *, now_us: Micros, only_unpriced: bool = True) -> Correction | None:
    """The correction of an attempt, given its entry and adjustments, by the card; None if nothing changes or there is still no price for it."""
    now = standing(entries)
    latest = now.latest
    if latest.certainty is Certainty.NONE or (only_unpriced and FLAG_UNPRICED not in latest.flags):
        return None
    nanos, unpriced = _rated(now, card)
    if unpriced:
        return None
    truth = _same(now, nanos, without_unpriced(latest.flags, unpriced=False), card)
    return _correction(now, correct(now, truth, reason=REASON_RERATE, now_us=now_us))


def state_usage(
    store: LedgerStore, card: RateCard, attempt_id: str, usage: bytes | None, *, reason: str, now_us: Micros, force: bool = False
) -> Correction | None:
    """Book what an operator knows of an attempt: the provider's usage object, or None for "it never took place". Books it at once.

    Raises NotFound for an unknown attempt; Conflict if the provider's own usage is booked already (unless `force`), or if someone else corrected
    it at the same moment; ValueError for a usage that is not one. None: the ledger says so already.
    """
    entries = store.entries_of(attempt_id)
    if not entries:
        raise NotFound(f"there is no attempt {attempt_id} in the ledger")
    now = standing(entries)
    if now.latest.certainty is Certainty.EXACT and now.latest.kind != KIND_ADJUSTMENT and not force:
        raise Conflict(f"attempt {attempt_id} is booked with the provider's own usage; use --force if you know better")
    entries_new = correct(now, _stated(now, card, usage), reason=f"operator: {reason}", now_us=now_us)
    if not entries_new:
        return None
    if store.book(entries_new) != len(entries_new):
        raise Conflict(f"attempt {attempt_id} was corrected by someone else at the same moment; look at it again")
    return _correction(now, entries_new)


def repriced(entry: Entry, card: RateCard) -> Nanos | None:
    """What an entry should cost by its own usage object, for verification; None if this card or this entry cannot tell."""
    if entry.card_version != card.version or entry.certainty is not Certainty.EXACT or not entry.raw_usage:
        return None
    if entry.kind == KIND_ADJUSTMENT and FLAG_REBOOKING not in entry.flags:
        return None
    metered = _reported(entry)
    if metered is None or metered.usage != entry.usage:
        return None
    return cost_nanos(card, metered, at_us=entry.started_at_us)[0]


def _rated(now: Standing, card: RateCard) -> tuple[Nanos, bool]:
    latest = now.latest
    if latest.certainty is Certainty.CEILING:
        if card.resolve(latest.model) is None:
            return now.cost_nanos, True
        nanos = ceiling_cost(card, latest.model, now.usage, at_us=latest.started_at_us, speed=latest.speed, inference_geo=latest.inference_geo)
        # The ceiling of a model that had its price knew more of the request than the entry does; it stands.
        return (nanos if FLAG_UNPRICED in latest.flags else now.cost_nanos), False
    return cost_nanos(card, _metered(latest, now.usage), at_us=latest.started_at_us)


def _metered(entry: Entry, usage: Usage) -> Metered:
    """What the provider reported, read again from its own object; from the booked counts if they are not (only) its own."""
    metered = _reported(entry)
    if metered is not None and metered.usage == usage:
        return metered
    segments = () if FLAG_UNBILLED_REFUSAL in entry.flags else (Segment("message", entry.model, usage),)
    return Metered(entry.model, usage, segments, service_tier=entry.service_tier, speed=entry.speed, inference_geo=entry.inference_geo)


def _reported(entry: Entry) -> Metered | None:
    if not entry.raw_usage:
        return None
    try:
        return read_usage(entry.raw_usage, model=entry.model, empty_refusal=FLAG_UNBILLED_REFUSAL in entry.flags)
    except CallerError:
        return None


def _same(now: Standing, nanos: Nanos, flags: tuple[str, ...], card: RateCard) -> Truth:
    latest = now.latest
    return Truth(
        usage=now.usage,
        cost_nanos=nanos,
        model=latest.model,
        certainty=latest.certainty,
        flags=flags,
        card_version=card.version,
        raw_usage=latest.raw_usage,
        service_tier=latest.service_tier,
        speed=latest.speed,
        inference_geo=latest.inference_geo,
    )


def _stated(now: Standing, card: RateCard, usage: bytes | None) -> Truth:
    latest = now.latest
    if usage is None:
        return Truth(usage=Usage(), cost_nanos=0, model=latest.model, certainty=Certainty.NONE, flags=(), card_version=card.version)
    try:
        metered = read_usage(usage, model=latest.model)
    except CallerError as error:
        raise ValueError(f"--usage: {error.message}") from error
    nanos, unpriced = cost_nanos(card, metered, at_us=latest.started_at_us)
    kept = tuple(flag for flag in latest.flags if flag not in (FLAG_UNKNOWN, FLAG_REVERSAL, FLAG_REBOOKING))
    return Truth(
        usage=metered.usage,
        cost_nanos=nanos,
        model=latest.model,
        certainty=Certainty.EXACT,
        flags=without_unpriced((*(flag for flag in kept if flag not in metered.flags), *metered.flags), unpriced=unpriced),
        card_version=card.version,
        raw_usage=usage,
        service_tier=metered.service_tier,
        speed=metered.speed,
        inference_geo=metered.inference_geo,
    )


def _correction(now: Standing, entries: tuple[Entry, ...]) -> Correction | None:
    if not entries:
        return None
    return Correction(now.latest.attempt_id, entries[-1].model, now.cost_nanos, now.cost_nanos + sum(entry.cost_nanos for entry in entries), entries)
