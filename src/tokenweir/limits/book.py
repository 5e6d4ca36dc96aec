"""The book of limits: which limits a request meets, and the buckets behind them.

The rule it protects: a request meets every limit of its scope chain (organization, team, key) that covers its model, in one fixed order, whatever was
asked before; what is remembered between requests is forgotten when a limit, a grant or a cycle changes. Rooms that depend on past use (credits,
carry-over) are worked out elsewhere and put in with `allow`. Change with it: `limit.py`, `grants.py`, `metering/limiter.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from tokenweir.limits.bucket import Bucket, Kind
from tokenweir.limits.cycle import bounds
from tokenweir.limits.demand import RESOURCES
from tokenweir.limits.grants import Allowance, increases, increases_change_at, needs_use
from tokenweir.limits.limit import Action, Cycle, Grant, Limit, Resource, Rolling, Scope, covers
from tokenweir.periods import Micros
from tokenweir.principals import Principal

CHAINS_MAX = 131_072
"""Remembered chains and buckets: ids of sessions come from outside, so the memory of them is bounded."""
_FOREVER: Micros = 2**62
_STREAMED = frozenset({Resource.OUTPUT_TOKENS, Resource.TOKENS, Resource.SPEND})


class Link(msgspec.Struct, frozen=True, gc=False):
    """One limit as a request meets it."""

    limit: Limit
    seat: str
    bucket: Bucket
    starts_us: Micros
    """Start of the cycle; 0 for other windows."""
    valid_until_us: Micros
    grows: bool = False
    """More of it may be held while a stream runs: it is estimated, and of a resource that streams use the longer they run."""
    known: bool = True
    """False: its room depends on past use that nobody has looked up yet; see `LimitBook.allow`."""


class Chain(msgspec.Struct, frozen=True):
    """All limits that a request meets, from the organization inward."""

    links: tuple[Link, ...]
    buckets: tuple[Bucket, ...]
    valid_until_us: Micros
    unknown: tuple[Link, ...] = ()
    """Links whose room must be worked out first."""
    resources: tuple[int, ...] = ()
    """Of each link, the place of its resource in `demand.RESOURCES`."""
    asks: tuple[int, ...] = ()
    """The same, in the ceiling's demands followed by the expected ones: a strict limit asks for the ceiling."""
    all_strict: bool = False
    expects_cost: bool = False
    """Somebody needs to know what the request is expected to cost."""
    queues: bool = False
    """One of the limits lets requests wait."""
    grows: bool = False
    """One of the links does."""


EMPTY = Chain((), (), _FOREVER)


def _chain_of(links: tuple[Link, ...]) -> Chain:
    """The chain, with everything worked out that is the same for each request."""
    resources = tuple(RESOURCES.index(link.limit.resource) for link in links)
    return Chain(
        links,
        tuple(link.bucket for link in links),
        min((link.valid_until_us for link in links), default=_FOREVER),
        tuple(link for link in links if not link.known),
        resources,
        tuple(place if link.limit.strict else place + len(RESOURCES) for place, link in zip(resources, links, strict=True)),
        all(link.limit.strict for link in links),
        any(link.limit.resource is Resource.SPEND and not link.limit.strict for link in links),
        any(link.limit.action is Action.QUEUE for link in links),
        any(link.grows for link in links),
    )


class LimitBook:
    """All limits there are, found by scope. Kept by one process and one thread."""

    def __init__(self, *, canonical: Callable[[str], str | None], complete_since_us: Micros | None) -> None:
        """`canonical` gives the rate card's name of a model, if it knows it: patterns are tried on both spellings.

        `complete_since_us`: the store has seen all use since then, so a bucket that began later and is missing is empty. None: it never can.
        """
        self._canonical = canonical
        self.version = 0
        """Another one whenever a limit or a grant has changed."""
        self._complete_since_us = _FOREVER if complete_since_us is None else complete_since_us
        self._limits: dict[str, tuple[Limit, tuple[Grant, ...]]] = {}
        self._by_scope: dict[str, dict[str, Limit]] = {}
        self._sessions = 0
        self._chains: dict[tuple[str, str, str], Chain] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._allowances: dict[tuple[str, str], tuple[Micros, Allowance]] = {}
        """By limit and seat: the start of the cycle, and its room."""

    def __len__(self) -> int:
        return len(self._limits)

    def update(self, changed: Iterable[tuple[Limit, Sequence[Grant]]], removed: Iterable[str] = (), *, whole: bool = False) -> None:
        """Put limits in, or in the place of those of the same id; take others out. `whole`: there are no others."""
        for limit_id in list(self._limits) if whole else removed:
            self._take_out(limit_id)
        for limit, grants in changed:
            self._take_out(limit.limit_id)
            self._limits[limit.limit_id] = (limit, tuple(grants))
            self._by_scope.setdefault(_home(limit.scope), {})[limit.limit_id] = limit
            self._sessions += _by_session(limit)
        self._chains.clear()
        self._links.clear()
        self._allowances.clear()
        self.version += 1

    def _take_out(self, limit_id: str) -> None:
        found = self._limits.pop(limit_id, None)
        if found is not None:
            home = _home(found[0].scope)
            self._sessions -= _by_session(found[0])
            del self._by_scope[home][limit_id]
            if not self._by_scope[home]:
                del self._by_scope[home]

    def limits(self) -> list[tuple[Limit, tuple[Grant, ...]]]:
        """All of them, with their grants."""
        return list(self._limits.values())

    def find(self, limit_id: str) -> tuple[Limit, tuple[Grant, ...]] | None:
        """One of them, with its grants."""
        return self._limits.get(limit_id)

    def chain(self, principal: Principal, model: str, *, others: Sequence[str] = (), session: str, now_us: Micros) -> Chain:
        """The limits of a request for `model`; `others` may run a part of it as well."""
        if not self._limits:
            return EMPTY
        key = (principal.key_id, model, session if self._sessions else "")
        chain = self._chains.get(key) if not others else None
        if chain is not None and now_us < chain.valid_until_us:
            return chain
        names = self._names(model, *others)
        links = tuple(
            self.link(limit, seat_of(limit.scope, principal, session), now_us=now_us)
            for limit in self.met(principal, session)
            if covers(limit, *names)
        )
        chain = _chain_of(links)
        # A request that names several models is rare, and not remembered; nor is a chain that is still to be completed.
        if not others and not chain.unknown:
            if len(self._chains) >= CHAINS_MAX:
                self._chains.clear()
            self._chains[key] = chain
        return chain

    def covers(self, limit: Limit, model: str) -> bool:
        """Whether the limit counts what the model used, however it is spelled."""
        return not limit.models or covers(limit, *self._names(model))

    def same_model(self, one: str, other: str) -> bool:
        """Whether two spellings mean the same model."""
        if one == other:
            return True
        known = self._canonical(one)
        return known is not None and known == self._canonical(other)

    def _names(self, *models: str) -> list[str]:
        canonical = map(self._canonical, models)
        return [*models, *(name for name in canonical if name is not None)]

    def met(self, principal: Principal, session: str) -> Iterable[Limit]:
        """The limits of a caller, from the organization inward, whatever model it asks for."""
        for home in (principal.organization_id, principal.team_id, principal.key_id):
            for limit in self._by_scope.get(home, {}).values():
                scope = limit.scope
                if (
                    (not scope.user or scope.user == principal.owner)
                    and (not scope.tag or scope.tag in principal.tags)
                    and (not scope.session or scope.session == session)
                ):
                    yield limit

    def link(self, limit: Limit, seat: str, *, now_us: Micros) -> Link:
        """The limit for one seat, as of now."""
        link = self._links.get((limit.limit_id, seat))
        if link is not None and link.known and link.starts_us <= now_us < link.valid_until_us:
            return link
        link = self._make_link(limit, seat, now_us)
        if len(self._links) >= CHAINS_MAX:
            self._links.clear()
        self._links[limit.limit_id, seat] = link
        return link

    def allow(self, link: Link, allowance: Allowance) -> None:
        """Say what room a link has that was not known."""
        if len(self._allowances) >= CHAINS_MAX:
            self._allowances.clear()
        self._allowances[link.limit.limit_id, link.seat] = link.starts_us, allowance
        self._links.pop((link.limit.limit_id, link.seat), None)

    def disallow(self, limit: Limit, seat: str) -> None:
        """What was used before is known to be something else by now: a room that depends on it must be worked out again."""
        if self._allowances.pop((limit.limit_id, seat), None) is not None:
            self._links.pop((limit.limit_id, seat), None)
            self._chains.clear()

    def _make_link(self, limit: Limit, seat: str, now_us: Micros) -> Link:
        _, grants = self._limits.get(limit.limit_id, (limit, ()))
        amount = limit.amount + increases(grants, now_us)
        until_us = increases_change_at(grants, now_us) or _FOREVER
        bucket_id = f"{limit.limit_id}|{seat}"
        grows = not limit.strict and limit.resource in _STREAMED
        # What was used before the limit was set counts in it, and no store has seen that.
        complete_since_us = max(self._complete_since_us, limit.created_at_us)
        match limit.window:
            case None:
                return Link(limit, seat, _bucket(limit, bucket_id, Kind.GAUGE, amount, fresh=True), 0, until_us)
            case Rolling(period_us=period_us, burst=burst):
                # A window that reaches back before we were there must be looked up; shorter ones of a shared store are let go of.
                fresh = now_us - period_us >= complete_since_us or (self._complete_since_us == _FOREVER and period_us <= 3_600_000_000)
                room = burst + amount - limit.amount if burst else amount
                bucket = _bucket(limit, bucket_id, Kind.LEVEL, room, refill=amount, period_us=period_us, fresh=fresh)
                if not fresh and self._complete_since_us != _FOREVER:
                    until_us = min(until_us, complete_since_us + period_us)
                return Link(limit, seat, bucket, 0, until_us, grows)
            case Cycle() as cycle:
                starts_us, ends_us = bounds(cycle, now_us)
                until_us, known = min(until_us, ends_us), True
                if needs_use(limit, grants):
                    of_us, allowance = self._allowances.get((limit.limit_id, seat), (starts_us, None))
                    known = allowance is not None and of_us == starts_us and now_us < allowance.valid_until_us
                    if allowance is not None and known:
                        amount, until_us = allowance.room, min(until_us, allowance.valid_until_us)
                bucket = _bucket(limit, f"{bucket_id}|{starts_us}", Kind.COUNTER, amount, fresh=starts_us >= complete_since_us, ends_us=ends_us)
                return Link(limit, seat, bucket, starts_us, until_us, grows, known)


def seat_of(scope: Scope, principal: Principal, session: str) -> str:
    """Whose bucket it is. Who cannot be told apart (no owner, no session) has that of the key, never one that others share."""
    match scope.per:
        case "":
            return ""
        case "team":
            return principal.team_id
        case "key":
            return principal.key_id
        case "user":
            return principal.owner or principal.key_id
        case "session":
            return session or principal.key_id


def _home(scope: Scope) -> str:
    return scope.key_id or scope.team_id or scope.organization_id


def _by_session(limit: Limit) -> bool:
    return bool(limit.scope.session) or limit.scope.per == "session"


def _bucket(
    limit: Limit,
    bucket_id: str,
    kind: Kind,
    room: int,
    *,
    fresh: bool,
    refill: int = 0,
    period_us: int = 0,
    ends_us: Micros = 0,
) -> Bucket:
    return Bucket(
        bucket_id=bucket_id,
        kind=kind,
        room=room,
        enforced=limit.enforced,
        taken=limit.resource is Resource.REQUESTS,
        ends_streams=limit.action is Action.END and limit.enforced,
        refill=refill,
        period_us=period_us,
        fresh=fresh,
        ends_us=ends_us,
    )
