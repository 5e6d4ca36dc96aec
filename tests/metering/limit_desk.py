"""A limiter with everything real but the ledger and the clock: what a request meets, holds and is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenweir.app import open_rate_card
from tokenweir.ledger.entries import Settlement
from tokenweir.limits.book import LimitBook, Link
from tokenweir.limits.bucket import Seed
from tokenweir.limits.estimate import Estimator
from tokenweir.limits.grants import Allowance, room
from tokenweir.limits.limit import Cycle, Grant, Limit, Resource, Scope
from tokenweir.metering.holding import Asking
from tokenweir.metering.limit_status import LimitStandings
from tokenweir.metering.limit_use import UseLookup
from tokenweir.metering.limiter import Admission, Limiter
from tokenweir.metering.waiting import WaitingRoom
from tokenweir.pricing.rating import ceiling_cost
from tokenweir.principals import Principal
from tokenweir.settings import Settings
from tokenweir.storage.limit_memory import MemoryLimitStore
from tokenweir.usage import Certainty, Usage
from tokenweir.wire.envelope import Envelope, ceiling_usage

CARD = open_rate_card(Settings())
RED = Principal("org", "team_red", "key_1", "Acme", "red", "ci", owner="ann@example.org", tags=("night",))
BLUE = Principal("org", "team_blue", "key_2", "Acme", "blue", "web")
MODEL = "claude-sonnet-5-5"
START_US = 1_790_000_000_000_000


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.us = START_US

    def now_us(self) -> int:
        return self.us

    def monotonic_ns(self) -> int:
        return self.us * 1_000


class Ledger:
    """What was used before, as a test says it: by bucket id without its cycle."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.asked: list[str] = []
        self.phases: list[int] | None = None
        self.fails: Exception | None = None

    def seeds(self, links: Sequence[Link]) -> list[Seed]:
        if self.fails is not None:
            raise self.fails
        self.asked += [link.bucket.bucket_id for link in links]
        return [Seed(link.bucket, self.used.get(f"{link.limit.limit_id}|{link.seat}", 0), START_US) for link in links]

    def allowance(self, link: Link, grants: Sequence[Grant]) -> Allowance:
        return room(link.limit, grants, self.phases or [], START_US)


class Desk:
    """Limits in memory, for requests of a moment."""

    def __init__(
        self, *limits: Limit, grants: Sequence[Grant] = (), store: Any = None, complete: bool = True, share_percent: int = 25, clock: Any = None
    ) -> None:
        self.clock = clock or Clock()
        self.ledger = Ledger()
        self.store = store or MemoryLimitStore("writer")
        self.book = LimitBook(canonical=CARD.resolve, complete_since_us=0 if complete else None)
        self.book.update([(limit, [grant for grant in grants if grant.limit_id == limit.limit_id]) for limit in limits])
        self.lookup = UseLookup(self.ledger, self.book)
        self.room = WaitingRoom(self.clock)
        self.standings = LimitStandings(store=self.store, book=self.book, use=self.lookup)
        self.limiter = Limiter(
            store=self.store,
            book=self.book,
            use=self.lookup,
            room=self.room,
            card=CARD,
            clock=self.clock,
            estimator=Estimator(),
            local_share_percent=share_percent,
        )
        self._requests = 0

    def asking(self, principal: Principal = RED, *, session: str = "", priority: Any = "normal", **envelope: Any) -> Asking:
        self._requests += 1
        facts = Envelope(**{"model": MODEL, "max_tokens": 1_000, "body_bytes": 300, "text_bytes": 300, **envelope})
        ceiling = ceiling_usage(facts, context_tokens=1_000_000, output_tokens_max=64_000)
        return Asking(
            request_id=f"req_{self._requests}",
            principal=principal,
            envelope=facts,
            session=session,
            priority=priority,
            ceiling=ceiling,
            ceiling_nanos=ceiling_cost(CARD, facts.model, ceiling, at_us=self.clock.now_us()),
            now_us=self.clock.now_us(),
        )

    async def admit(self, principal: Principal = RED, **more: Any) -> Admission:
        return await self.limiter.admit(self.asking(principal, **more))

    async def stand(self, principal: Principal = RED) -> dict[str, tuple[int, int]]:
        """Used and held by limit id."""
        found = await self.standings.of_caller(principal, now_us=self.clock.now_us())
        return {link.limit.limit_id: (standing.used, standing.held) for link, standing in found}

    def close(self) -> None:
        self.lookup.close()


def limit(limit_id: str, resource: str, amount: int, window: Any = None, *, team: str = "", key: str = "", scope: Any = None, **more: Any) -> Limit:
    """A limit on the organization, or on one of its teams or keys; of the calendar month unless it says otherwise."""
    if window is None and resource != "concurrency":
        window = Cycle("month")
    where = {"organization_id": "org", "team_id": team, "key_id": key, **(scope or {})}
    return Limit(limit_id, limit_id, Scope(**where), Resource(resource), amount, window, **more)


def settled(usage: Usage | None = None, *, cost_nanos: int = 0, certainty: Certainty = Certainty.EXACT, model: str = MODEL) -> Settlement:
    """How an attempt ended."""
    return Settlement(
        attempt_id="a", ended_at_us=START_US, status=200, certainty=certainty, usage=usage or Usage(), cost_nanos=cost_nanos, model=model
    )
