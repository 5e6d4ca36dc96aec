"""What a request holds of its limits while it runs, and what becomes of it: extended while a stream outgrows it, settled once.

The rules it protects: a hold ends exactly once; what is then used of each bucket is what the journal booked for the attempts of the request, in the
cycle in which it was admitted, of the limits that cover the model which answered. A limit that was set while the request ran is charged as well.
Change with it: `limits/extension.py` (what may be given back, and when to hold more), `limiter.py` (who takes holds).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from tokenweir.errors import StoreUnavailable
from tokenweir.ledger.entries import Settlement
from tokenweir.limit_ports import LimitStore
from tokenweir.limits.book import Chain, LimitBook, Link
from tokenweir.limits.bucket import Bucket, Refused, Reserved
from tokenweir.limits.demand import all_units, units_of
from tokenweir.limits.estimate import Estimator
from tokenweir.limits.extension import extends_from, next_extension
from tokenweir.limits.limit import Resource
from tokenweir.limits.queue import Priority
from tokenweir.metering.local_share import LocalShare
from tokenweir.money import Nanos
from tokenweir.periods import Micros
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rating import ceiling_cost
from tokenweir.principals import Principal
from tokenweir.telemetry import LIMIT_DECISIONS
from tokenweir.usage import Certainty, Usage
from tokenweir.wire.envelope import Envelope

FLAG_LIMIT_SHADOW = "limit_shadow"
"""A limit that is tried out would have refused the request. The limit's id follows, as in the next two."""
FLAG_LIMIT_WARNED = "limit_warned"
"""The request passed a limit that only warns."""
FLAG_LIMIT_DOWNGRADED = "limit_downgraded"
"""A limit sent the request on to another model."""


ASK_AGAIN_S = 1.0
"""How long to leave a store alone that did not answer."""


class Asking(msgspec.Struct, frozen=True):
    """A request that asks for room."""

    request_id: str
    principal: Principal
    envelope: Envelope
    session: str
    priority: Priority
    ceiling: Usage
    """The most it can use."""
    ceiling_nanos: Nanos
    now_us: Micros


class Holder:
    """Makes holds, and knows what they need to end."""

    __slots__ = ("_tasks", "book", "card", "clock", "estimator", "local", "store")

    def __init__(self, *, store: LimitStore, local: LocalShare, book: LimitBook, card: RateCard, clock: Clock, estimator: Estimator) -> None:
        self.store = store
        self.local = local
        self.book = book
        self.card = card
        self.clock = clock
        self.estimator = estimator
        self._tasks: set[asyncio.Task[None]] = set()

    def soon(self, held: Held, tokens: int) -> None:
        """Hold more for a stream, beside its relaying."""
        task = asyncio.get_running_loop().create_task(held.extend(tokens))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def late(self, request_id: str, also: Sequence[tuple[Bucket, int]]) -> None:
        """A request that met no limit when it began is charged to those that were set while it ran, beside its relaying."""
        task = asyncio.get_running_loop().create_task(self._charge(request_id, also))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _charge(self, request_id: str, also: Sequence[tuple[Bucket, int]]) -> None:
        # An empty hold makes it count once, as every other settlement does; a store that does not answer now is told later.
        while True:
            try:
                await self.store.reserve(request_id, (), (), now_us=self.clock.now_us())
            except StoreUnavailable:
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            self.store.settle(request_id, (), also=also, now_us=self.clock.now_us())
            return

    async def settle_down(self) -> None:
        """Wait until everything that was asked for beside the relaying has been answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class Held:
    """Room taken for one request, owned by its ticket."""

    __slots__ = (
        "_asking", "_book_version", "_ended", "_extend_at", "_holder", "_output", "_settlements", "chain", "is_local", "on_no_room", "over",
        "reserved_at_us", "standings",
    )  # fmt: skip

    def __init__(
        self,
        holder: Holder,
        asking: Asking,
        chain: Chain,
        reserved: Reserved,
        *,
        output: int,
        reserved_at_us: Micros,
        book_version: int,
        is_local: bool,
    ) -> None:
        """`output`: tokens of it that are held. `book_version`: of the book that the chain was made from."""
        self._holder = holder
        self._asking = asking
        self._settlements: list[tuple[Settlement, Micros]] = []
        self._ended = False
        self._book_version = book_version
        self._output = output
        self._extend_at = self._next_look() if chain.grows and asking.envelope.stream else _NEVER
        self.chain = chain
        self.reserved_at_us = reserved_at_us
        self.standings = reserved.standings
        """How the buckets stood when the room was taken."""
        self.over = reserved.over
        """Buckets that had no room, and may not refuse."""
        self.is_local = is_local
        self.on_no_room: Callable[[Link], None] | None = None
        """Called when the stream must end, because a limit that ends streams has no more room."""

    # While it runs.

    def seen(self, output_tokens: int) -> None:
        """The stream has come to so many output tokens, by estimate: hold more if it outgrows what is held. Cheap when it does not."""
        if output_tokens >= self._extend_at:
            more = next_extension(self._output, output_tokens, self._asking.ceiling.output)
            self._output += more or 0
            self._extend_at = self._next_look()
            if more and not self._ended and not self.is_local:
                self._holder.soon(self, more)

    def _next_look(self) -> int:
        start = extends_from(self._output, self._asking.ceiling.output)
        return _NEVER if start is None else start

    async def extend(self, tokens: int) -> None:
        """Hold room for so many more output tokens. A store that does not answer does not end a stream."""
        holder, asking = self._holder, self._asking
        nanos = ceiling_cost(holder.card, asking.envelope.model, Usage(output=tokens), at_us=asking.now_us, speed=asking.envelope.speed)
        units = [_grown(link, tokens, nanos) for link in self.chain.links]
        try:
            outcome = await holder.store.extend(asking.request_id, units, now_us=holder.clock.now_us())
        except StoreUnavailable:
            return
        if isinstance(outcome, Refused) and not self._ended:
            link = self.chain.links[outcome.shortages[0].index]
            LIMIT_DECISIONS.values["ended", link.limit.resource.value] += 1
            if self.on_no_room is not None:
                self.on_no_room(link)

    # How it ends.

    def add(self, settlement: Settlement, started_at_us: Micros) -> None:
        """An attempt of the request was booked, in the cycle in which it began."""
        self._settlements.append((settlement, started_at_us))
        if settlement.certainty is Certainty.EXACT and self.chain.links:
            envelope = self._asking.envelope
            remote = envelope.remote_sources or envelope.server_tools
            learn = self._holder.estimator.learn
            learn(self._asking.principal.key_id, envelope.model, envelope.text_bytes, envelope.images, settlement.usage, remote=remote)

    @property
    def flags(self) -> tuple[str, ...]:
        """What the ledger shall remember of it: limits that were passed, because they only warn or are tried out."""
        limits = (self.chain.links[index].limit for index in self.over)
        return tuple(f"{FLAG_LIMIT_SHADOW if limit.shadow else FLAG_LIMIT_WARNED}:{limit.limit_id}" for limit in limits)

    @property
    def may_retry(self) -> bool:
        """Whether another attempt may follow: not when one that may have cost is booked, and a strict limit holds room for a single one."""
        costly = any(settlement.certainty is not Certainty.NONE for settlement, _ in self._settlements)
        return not (costly and any(link.limit.strict for link in self.chain.links))

    def end(self) -> None:
        """Nothing is held any more, and what was booked is used. Ending twice changes nothing."""
        if self._ended:
            return
        self._ended = True
        holder = self._holder
        also: Sequence[tuple[Bucket, int]] = ()
        if not self.chain.links:
            if also := self._also():
                holder.late(self._asking.request_id, also)
            return
        now_us = holder.clock.now_us()
        if self._is_plain():
            settlement, _ = self._settlements[0]
            units = all_units(settlement.usage, settlement.cost_nanos)
            used = [units[place] if place else 0 for place in self.chain.resources]
        else:
            used, also = [self._used(link) for link in self.chain.links], self._also()
        if self.is_local:
            holder.local.settle(self._asking.request_id, used, now_us=now_us)
        else:
            holder.store.settle(self._asking.request_id, used, also=also, now_us=now_us)

    def _is_plain(self) -> bool:
        """One attempt, by the model that was asked for, in the cycles it was admitted in, under the limits of then: then every link counts all of it."""
        book, envelope = self._holder.book, self._asking.envelope
        if len(self._settlements) != 1 or self._book_version != book.version or envelope.other_models:
            return False
        settlement, started_at_us = self._settlements[0]
        return self.reserved_at_us <= started_at_us < self.chain.valid_until_us and book.same_model(settlement.model, envelope.model)

    def _used(self, link: Link) -> int:
        """What the booked attempts used of a limit; of a calendar cycle, those that began in it."""
        limit, ends_us = link.limit, link.bucket.ends_us or _NEVER
        covers = self._holder.book.covers
        booked = [one for one, started_at_us in self._settlements if link.starts_us <= started_at_us < ends_us and covers(limit, one.model)]
        if limit.resource is Resource.REQUESTS:
            # One was taken at admission. A request of which nothing was sent gives it back.
            return len(booked) - 1
        return sum(units_of(limit.resource, one.usage, one.cost_nanos) for one in booked)

    def _also(self) -> list[tuple[Bucket, int]]:
        """Use of buckets that the hold does not cover: of another model that answered, of a limit that was set since, of the next cycle."""
        asking, chain_begins_us, chain_ends_us = self._asking, self.reserved_at_us, self.chain.valid_until_us
        model = asking.envelope.model
        same = self._holder.book.same_model
        if self._book_version == self._holder.book.version and all(
            same(one.model, model) and chain_begins_us <= started_at_us < chain_ends_us for one, started_at_us in self._settlements
        ):
            return []
        seen = {bucket.bucket_id for bucket in self.chain.buckets}
        also = []
        for settlement, started_at_us in self._settlements:
            chain = self._holder.book.chain(asking.principal, model, others=(settlement.model,), session=asking.session, now_us=started_at_us)
            for link in chain.links:
                if link.bucket.bucket_id not in seen:
                    seen.add(link.bucket.bucket_id)
                    taken = 1 if link.limit.resource is Resource.REQUESTS else 0
                    also.append((link.bucket, self._used(link) + taken))
        return also


_NEVER = 2**62


def _grown(link: Link, tokens: int, nanos: Nanos) -> int:
    if not link.grows:
        return 0
    return nanos if link.limit.resource is Resource.SPEND else tokens
