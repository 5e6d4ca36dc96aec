"""Ends what dead gateways hold in a shared store of limits, by what the ledger says of their requests.

A hold never ends by time, because nobody can tell from outside how long a request lasts. Its gateway ends it; and if the gateway died, the worker does, as
soon as it has booked everything that the gateway had journaled: what the attempts of a request used is then in the ledger (what was never learned at its
ceiling), and of a request without an attempt nothing was ever sent.

The rules it protects: counters end equal to the ledger; nothing stays held; a hold ends once, however often and by whomever this is done. The journal
files of a dead writer are its death certificate: the last of them is deleted only when its holds have ended, so a worker that dies in between leaves the
rest to the next one. Owners whose journals are elsewhere are left to the worker there. Change with it: `bookkeeping.py`, `metering/holding.py` (which
ends holds while the gateway lives).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from tokenweir.errors import StoreUnavailable
from tokenweir.ledger.entries import Entry
from tokenweir.ledger_ports import LedgerStore
from tokenweir.limit_ports import LimitDirectory, LimitStore
from tokenweir.limits.book import LimitBook, seat_of
from tokenweir.limits.bucket import Bucket, Hold
from tokenweir.limits.demand import units_of
from tokenweir.limits.limit import Resource
from tokenweir.metering.seeding import KeyDirectory, KeyFacts
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.principals import Principal
from tokenweir.telemetry import log

RETRY_US: Final = 3_000_000
"""How long to leave a store alone that did not answer."""


class LimitRecovery:
    """For one worker. `end_holds` fits `Bookkeeper(lay_to_rest=…)`."""

    def __init__(
        self,
        *,
        open_store: Callable[[str], LimitStore],
        ledger: LedgerStore,
        directory: KeyDirectory,
        limits: LimitDirectory,
        card: RateCard,
        clock: Clock,
    ) -> None:
        """`open_store` opens the shared store in the name of an owner, which shuts out what that owner may still have under way."""
        self._open_store = open_store
        self._ledger = ledger
        self._keys = KeyFacts(directory)
        self._limits = limits
        self._card = card
        self._clock = clock
        self._not_before_us = 0
        self._failing = False

    def end_holds(self, owner: str) -> bool:
        """End all that the dead owner holds; its journal must be booked to the end. False: a store does not answer, so ask again."""
        now_us = self._clock.now_us()
        if now_us < self._not_before_us:
            return False
        try:
            ended = asyncio.run(self._end(owner))
        except StoreUnavailable as error:
            self._not_before_us = now_us + RETRY_US
            if not self._failing:
                log(logging.WARNING, "holds_not_ended", writer=owner, error=error.message)
            self._failing = True
            return False
        self._failing = False
        if ended:
            log(logging.WARNING, "holds_ended", writer=owner, count=ended)
        return True

    async def _end(self, owner: str) -> int:
        store = self._open_store(owner)
        try:
            holds = await store.holds(owner)
            if holds:
                # The event loop is this call's own: nobody else waits while the ledger is read.
                for hold, used, also in self._settlements(holds):
                    store.settle(hold.hold_id, used, also=also, now_us=self._clock.now_us())
                await store.settled()
                if await store.holds(owner):
                    raise StoreUnavailable("somebody else opened the store of limits in the name of the same gateway")
            return len(holds)
        finally:
            await store.close()

    def _settlements(self, holds: Sequence[Hold]) -> list[tuple[Hold, list[int], list[tuple[Bucket, int]]]]:
        """What was used of each hold's buckets, and of others."""
        attempts: dict[str, list[Entry]] = {}
        for entry in self._ledger.attempts_of([hold.hold_id for hold in holds]):
            attempts.setdefault(entry.request_id, []).append(entry)
        book = LimitBook(canonical=self._card.resolve, complete_since_us=None)
        book.update([(record.limit, record.grants) for record in self._limits.limits()])
        return [(hold, *self._settlement(book, hold, attempts.get(hold.hold_id, ()))) for hold in holds]

    def _settlement(self, book: LimitBook, hold: Hold, attempts: Sequence[Entry]) -> tuple[list[int], list[tuple[Bucket, int]]]:
        charged: dict[str, tuple[Bucket, int]] = {}
        for entry in attempts:
            for bucket, units in self._uses(book, entry):
                charged[bucket.bucket_id] = bucket, units + charged.get(bucket.bucket_id, (bucket, 0))[1]
        used = [charged.pop(bucket_id, (None, 0))[1] - _taken(book, bucket_id) for bucket_id, _ in hold.units]
        return used, [(bucket, units) for bucket, units in charged.values() if units]

    def _uses(self, book: LimitBook, entry: Entry) -> list[tuple[Bucket, int]]:
        """What an attempt used of the limits that there are now."""
        owner, tags = self._keys.of(entry.key_id)
        principal = Principal(entry.organization_id, entry.team_id, entry.key_id, "", "", "", owner, tags)
        found = []
        for limit in book.met(principal, entry.session_id):
            if book.covers(limit, entry.model):
                link = book.link(limit, seat_of(limit.scope, principal, entry.session_id), now_us=entry.started_at_us)
                found.append((link.bucket, units_of(limit.resource, entry.usage, entry.cost_nanos)))
        return found


def _taken(book: LimitBook, bucket_id: str) -> int:
    """What was used of the bucket when the request was admitted: one, if it counts requests."""
    found = book.find(bucket_id.partition("|")[0])
    return int(found is not None and found[0].resource is Resource.REQUESTS)
