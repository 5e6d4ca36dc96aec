"""How limits stand: what of each is used, held and left, for a caller, for the command line, and for whoever watches.

The rule it protects: what is shown is what is enforced, because both are read from the same store; what the store does not know is looked up in the
ledger first, and never shown as zero. Change with it: `limiter.py`, `cli/limit_status.py`, docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tokenweir.errors import StoreUnavailable
from tokenweir.limit_ports import LimitStore
from tokenweir.limits.book import LimitBook, Link, seat_of
from tokenweir.limits.bucket import Kind, Standing
from tokenweir.limits.limit import Limit
from tokenweir.metering.limit_use import SEEDINGS_MAX, UseLookup
from tokenweir.metering.waiting import LimitWaits
from tokenweir.periods import Micros
from tokenweir.principals import Principal


class LimitStatus(msgspec.Struct, frozen=True):
    """One limit for one seat, in units of its resource (spend in nano-USD)."""

    limit_id: str
    seat: str
    """Whose bucket it is; empty if all share one. `*` stands for sessions, which are not listed one by one."""
    amount: int
    """What the limit says."""
    room: int
    """The amount with grants and carry-over; the burst of a rolling limit that has one."""
    used: int | None
    """None: not known."""
    held: int | None
    """What requests under way may still use."""
    starts_at_us: Micros | None
    resets_at_us: Micros | None
    """When a cycle ends; for a rolling window, when all of it has flowed back; None for concurrency."""
    waits: LimitWaits | None = None
    """How it goes with requests that wait for it."""

    @property
    def remaining(self) -> int | None:
        """What may be asked for now."""
        return None if self.used is None or self.held is None else max(0, self.room - self.used - self.held)


class LimitStandings:
    """Reads how limits stand."""

    def __init__(self, *, store: LimitStore, book: LimitBook, use: UseLookup) -> None:
        self._store = store
        self._book = book
        self._use = use

    async def of_caller(self, principal: Principal, *, now_us: Micros) -> list[tuple[Link, Standing]]:
        """All limits of a caller, whatever they cover; those of sessions are left out. Raises StoreUnavailable."""
        met = [limit for limit in self._book.met(principal, "") if limit.scope.per != "session"]
        return await self._of([(limit, seat_of(limit.scope, principal, "")) for limit in met], now_us=now_us)

    async def report(
        self, principals: Sequence[Principal], *, waits: Mapping[str, LimitWaits], limit_ids: Sequence[str] = (), now_us: Micros
    ) -> list[LimitStatus]:
        """Every limit (or those asked for) for every seat that the principals sit on. Raises StoreUnavailable."""
        limits = [limit for limit, _ in self._book.limits() if not limit_ids or limit.limit_id in limit_ids]
        listed = [(limit, seat) for limit in limits if limit.scope.per != "session" for seat in seats(limit, principals)]
        found = [_status(link, standing, waits, now_us) for link, standing in await self._of(listed, now_us=now_us)]
        return found + [_sessions(limit, waits) for limit in limits if limit.scope.per == "session"]

    async def _of(self, listed: Sequence[tuple[Limit, str]], *, now_us: Micros) -> list[tuple[Link, Standing]]:
        links = [self._book.link(limit, seat, now_us=now_us) for limit, seat in listed]
        if unknown := [link for link in links if not link.known]:
            await self._use.allowances(unknown)
            links = [self._book.link(limit, seat, now_us=now_us) for limit, seat in listed]
        buckets = [link.bucket for link in links]
        for _ in range(SEEDINGS_MAX):
            found = await self._store.standings(buckets, now_us=now_us)
            missing = [link for link, standing in zip(links, found, strict=True) if standing is None]
            if not missing:
                return [(link, standing) for link, standing in zip(links, found, strict=True) if standing is not None]
            await self._store.seed(await self._use.seeds(missing))
        raise StoreUnavailable("what was used of the limits cannot be read now")


def seats(limit: Limit, principals: Iterable[Principal]) -> list[str]:
    """Who has a bucket of the limit, in order; one shared bucket has one seat, which is nobody's."""
    scope = limit.scope
    if not scope.per:
        return [""]
    home = scope.key_id or scope.team_id or scope.organization_id
    inside = (
        principal
        for principal in principals
        if home in (principal.organization_id, principal.team_id, principal.key_id)
        and (not scope.user or scope.user == principal.owner)
        and (not scope.tag or scope.tag in principal.tags)
    )
    return sorted({seat_of(scope, principal, "") for principal in inside})


def _status(link: Link, standing: Standing, waits: Mapping[str, LimitWaits], now_us: Micros) -> LimitStatus:
    limit, bucket = link.limit, link.bucket
    resets_at_us: Micros | None = None
    if bucket.kind is Kind.COUNTER:
        resets_at_us = bucket.ends_us
    elif bucket.kind is Kind.LEVEL:
        resets_at_us = now_us + -(-standing.used * bucket.period_us // bucket.refill)
    return LimitStatus(
        limit_id=limit.limit_id,
        seat=link.seat,
        amount=limit.amount,
        room=bucket.room,
        used=standing.used,
        held=standing.held,
        starts_at_us=link.starts_us if bucket.kind is Kind.COUNTER else None,
        resets_at_us=resets_at_us,
        waits=waits.get(limit.limit_id),
    )


def _sessions(limit: Limit, waits: Mapping[str, LimitWaits]) -> LimitStatus:
    return LimitStatus(
        limit_id=limit.limit_id,
        seat="*",
        amount=limit.amount,
        room=limit.amount,
        used=None,
        held=None,
        starts_at_us=None,
        resets_at_us=None,
        waits=waits.get(limit.limit_id),
    )
