"""The limiter: asks every limit of a request for room before anything is sent, and holds it while the request runs.

The rules it protects: all limits or none; a request that waits is not overtaken; when the store of limits does not answer, rates and concurrency go on
within this process's share, and everything that is money or belongs to a calendar cycle is refused as `StoreUnavailable`: never "unlimited", and
never a refusal that blames the caller. Which limits a request meets is decided by `limits/book.py`, what it asks of them by `limits/demand.py` and
`limits/estimate.py`; what becomes of the room by `holding.py`; how a refusal reads by `limit_answers.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from tokenweir.errors import ShuttingDown, StoreUnavailable
from tokenweir.limit_ports import LimitStore
from tokenweir.limits.book import EMPTY, Chain, LimitBook, Link
from tokenweir.limits.bucket import NEVER, Kind, Outcome, Refused, Reserved, Shortage, Standing, Unseeded
from tokenweir.limits.demand import all_demands
from tokenweir.limits.estimate import Estimator
from tokenweir.limits.last_room import last_room
from tokenweir.limits.limit import Action
from tokenweir.metering.holding import Asking, Held, Holder
from tokenweir.metering.limit_use import SEEDINGS_MAX, UseLookup
from tokenweir.metering.local_share import LocalShare
from tokenweir.metering.waiting import WaitingRoom
from tokenweir.money import Nanos
from tokenweir.periods import Micros
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rating import ceiling_cost
from tokenweir.telemetry import LIMIT_DECISIONS
from tokenweir.usage import Usage

_DECISIONS = LIMIT_DECISIONS.values
_ADMITTED = ("admitted", "all")


class LimitDenied(msgspec.Struct, frozen=True):
    """A limit has no room for the request: which one, and how it stands."""

    link: Link
    shortage: Shortage
    units: int
    """What was asked of it."""
    now_us: Micros
    waited: bool = False
    """It waited in the queue, and there was no room in time."""


class Downgrade(msgspec.Struct, frozen=True):
    """There is no room for this model; the limit says to send the request to another one."""

    model: str
    link: Link


Admission: TypeAlias = Held | LimitDenied | Downgrade | None


class Limiter:
    """The limits of one gateway process."""

    def __init__(
        self,
        *,
        store: LimitStore,
        book: LimitBook,
        use: UseLookup,
        room: WaitingRoom,
        card: RateCard,
        clock: Clock,
        estimator: Estimator,
        local_share_percent: int,
    ) -> None:
        self.book = book
        self.store = store
        self.room = room
        self.use = use
        self._card = card
        self._clock = clock
        self._estimator = estimator
        self._local = LocalShare(local_share_percent)
        self._holder = Holder(store=store, local=self._local, book=book, card=card, clock=clock, estimator=estimator)
        store.when_room(room.news)

    async def admit(self, asking: Asking) -> Admission:
        """Room for the request in all its limits, held; None if no limit covers it. Raises StoreUnavailable."""
        chain = self._chain(asking, asking.now_us)
        if not chain.links:
            return None
        try:
            return await self._admit(asking, chain)
        except asyncio.CancelledError:
            # The store may have taken the room when nobody was waiting for its answer any more.
            self.store.settle(asking.request_id, (), now_us=self._clock.now_us())
            raise

    def unlimited(self, asking: Asking) -> Held:
        """For a request that no limit covers: nothing is held, and what it uses counts in limits that are set while it runs."""
        return Held(self._holder, asking, EMPTY, Reserved(()), output=0, reserved_at_us=asking.now_us, book_version=self.book.version, is_local=False)

    def _chain(self, asking: Asking, now_us: Micros) -> Chain:
        envelope = asking.envelope
        return self.book.chain(asking.principal, envelope.model, others=envelope.other_models, session=asking.session, now_us=now_us)

    async def _admit(self, asking: Asking, chain: Chain) -> Admission:
        attempt = self._attempt(asking, chain)
        if chain.queues and (ahead := self._queue_ahead(chain)) is not None:
            return await self._wait(attempt, ahead, 0)
        outcome = await self._try(attempt)
        if isinstance(outcome, Refused) and (queued := _all_queue(attempt.chain, outcome)):
            return await self._wait(attempt, *queued)
        return self._concluded(attempt, outcome)

    def _attempt(self, asking: Asking, chain: Chain) -> _Attempt:
        """What the request will ask for: its ceiling of strict limits, what it will probably use (at the dearest rates) of the others."""
        if chain.all_strict:
            return _Attempt(asking, chain, self.book.version, asking.ceiling, asking.ceiling_nanos)
        envelope = asking.envelope
        expected = self._estimator.expect(asking.principal.key_id, envelope.model, envelope, asking.ceiling)
        nanos = 0
        if chain.expects_cost:
            nanos = ceiling_cost(
                self._card, envelope.model, expected, at_us=asking.now_us, speed=envelope.speed, inference_geo=envelope.inference_geo
            )
        return _Attempt(asking, chain, self.book.version, expected, nanos)

    # Asking the store.

    async def _try(self, attempt: _Attempt) -> Outcome:
        """Ask all limits for room; what the store does not know it is told first. Raises StoreUnavailable."""
        asking = attempt.asking
        now_us = asking.now_us
        for look in range(SEEDINGS_MAX):
            if look or attempt.tries:
                now_us = self._clock.now_us()
            if now_us >= attempt.chain.valid_until_us or attempt.chain.unknown or attempt.book_version != self.book.version:
                attempt.ask(await self._completed(asking, now_us), self.book.version)
            chain = attempt.chain
            attempt.tries += 1
            attempt.reserved_at_us = now_us
            try:
                outcome = await self._reserve(asking.request_id, chain, attempt.units, now_us)
            except StoreUnavailable:
                # It may have been taken, and only the answer was lost.
                self.store.settle(asking.request_id, (), now_us=now_us)
                attempt.is_local = True
                return self._local.reserve(asking.request_id, chain, attempt.units, now_us=now_us)
            if not isinstance(outcome, Unseeded):
                attempt.is_local = False
                return outcome
            await self.store.seed(await self.use.seeds([chain.links[index] for index in outcome.indices]))
        raise StoreUnavailable("what was used of the limits cannot be read now")

    async def _reserve(self, hold_id: str, chain: Chain, units: Sequence[int], now_us: Micros) -> Outcome:
        outcome = await self.store.reserve(hold_id, chain.buckets, units, now_us=now_us)
        if isinstance(outcome, Refused) and (less := last_room(chain.links, outcome, units)) is not None:
            again = await self.store.reserve(hold_id, chain.buckets, less, now_us=now_us)
            return again if isinstance(again, Reserved) else outcome
        return outcome

    async def _completed(self, asking: Asking, now_us: Micros) -> Chain:
        """The chain as of now, with every room in it known."""
        for _ in range(SEEDINGS_MAX):
            chain = self._chain(asking, now_us)
            if not chain.unknown:
                return chain
            await self.use.allowances(chain.unknown)
        raise StoreUnavailable("the grants of the limits cannot be worked out now")

    def _concluded(self, attempt: _Attempt, outcome: Outcome, *, waited: bool = False) -> Admission:
        chain = attempt.chain
        if isinstance(outcome, Reserved):
            for index in outcome.over:
                limit = chain.links[index].limit
                _DECISIONS["shadow" if limit.shadow else "warned", limit.resource.value] += 1
            return self._hold(attempt, outcome)
        assert isinstance(outcome, Refused)  # noqa: S101 - `_try` does not answer Unseeded
        now_us = self._clock.now_us()
        worst = max(outcome.shortages, key=lambda shortage: _wait_us(chain.links[shortage.index], shortage, now_us))
        link = chain.links[worst.index]
        other = next((chain.links[s.index] for s in outcome.shortages if chain.links[s.index].limit.action is Action.DOWNGRADE), None)
        if other is not None:
            _DECISIONS["downgraded", other.limit.resource.value] += 1
            return Downgrade(other.limit.downgrade_to, other)
        _DECISIONS["refused", link.limit.resource.value] += 1
        return LimitDenied(link, worst, attempt.units[worst.index], now_us, waited)

    def _hold(self, attempt: _Attempt, reserved: Reserved) -> Held:
        _DECISIONS[_ADMITTED] += 1
        return Held(
            self._holder,
            attempt.asking,
            attempt.chain,
            reserved,
            output=attempt.expected.output,
            reserved_at_us=attempt.reserved_at_us,
            book_version=attempt.book_version,
            is_local=attempt.is_local,
        )

    # Waiting for room.

    def _queue_ahead(self, chain: Chain) -> Link | None:
        """A limit of the chain that others are waiting for already: who comes later goes behind them."""
        if not self.room.waiting:
            return None
        return next((link for link in chain.links if link.limit.action is Action.QUEUE and self.room.has_waiters(link.bucket.bucket_id)), None)

    async def _wait(self, attempt: _Attempt, link: Link, wait_us: int, refused: Refused | None = None) -> Admission:
        """Wait for one's turn, and try again, until there is room or the deadline of the limit has passed. `refused`: what the first try was told."""
        asking = attempt.asking
        until_us = self._clock.now_us() + link.limit.queue_ms * 1_000
        with self.room.place(key_id=asking.principal.key_id, priority=asking.priority) as place:
            while await place.turn(link.bucket.bucket_id, until_us=until_us, wait_us=wait_us):
                outcome = await self._try(attempt)
                queued = _all_queue(attempt.chain, outcome) if isinstance(outcome, Refused) else None
                if queued is None:
                    if isinstance(outcome, Reserved):
                        place.admitted()
                    return self._concluded(attempt, outcome, waited=True)
                link, wait_us, refused = queued
            if place.ended == "closed":
                raise ShuttingDown
        return await self._sent_away(attempt, link, refused)

    async def _sent_away(self, attempt: _Attempt, link: Link, refused: Refused | None) -> Admission:
        """There was no room in time, or no place in the line. It is told how the limit stands; trying once more would be overtaking those who wait."""
        if refused is not None:
            return self._concluded(attempt, refused, waited=True)
        _DECISIONS["refused", link.limit.resource.value] += 1
        now_us = self._clock.now_us()
        (standing,) = await self.store.standings([link.bucket], now_us=now_us)
        index = attempt.chain.links.index(link) if link in attempt.chain.links else 0
        return LimitDenied(link, Shortage(index, standing or Standing(), 0), attempt.units[index], now_us, waited=True)


class _Attempt:
    """One request on its way through admission: its chain may have to be made anew when a cycle ends while it waits."""

    __slots__ = ("_demands", "asking", "book_version", "chain", "expected", "is_local", "reserved_at_us", "tries", "units")

    def __init__(self, asking: Asking, chain: Chain, book_version: int, expected: Usage, expected_nanos: Nanos) -> None:
        self.asking = asking
        self.expected = expected
        self.is_local = False
        self.tries = 0
        self.reserved_at_us = asking.now_us
        self._demands = all_demands(asking.ceiling, asking.ceiling_nanos) + all_demands(expected, expected_nanos)
        self.ask(chain, book_version)

    def ask(self, chain: Chain, book_version: int) -> None:
        """From now on of this chain, made from that version of the book."""
        self.chain = chain
        self.book_version = book_version
        demands = self._demands
        self.units = [demands[place] for place in chain.asks]


def _all_queue(chain: Chain, refused: Refused) -> tuple[Link, int, Refused] | None:
    """The limit to wait for, how long at least, and what was said, if all that have no room let requests wait and will have room one day."""
    shortages: Sequence[Shortage] = refused.shortages
    if any(shortage.wait_us == NEVER or chain.links[shortage.index].limit.action is not Action.QUEUE for shortage in shortages):
        return None
    return chain.links[shortages[0].index], max(shortage.wait_us for shortage in shortages), refused


def _wait_us(link: Link, shortage: Shortage, now_us: Micros) -> int:
    """How long until there is room, for telling which refusal stands longest."""
    if shortage.wait_us == NEVER:
        return 2**62
    return link.bucket.ends_us - now_us if link.bucket.kind is Kind.COUNTER else shortage.wait_us
