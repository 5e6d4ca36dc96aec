"""What was used of buckets, as the books say: ledger and journal, for a store of limits that does not know it (any more).

The rules it protects: only what the gateway itself metered counts, in the cycle in which the attempt began, for the model that answered. Checkpoints are
read first, then the journal, then one snapshot of the ledger that gives the sums and says which attempts are in them: nothing is missed or counted twice
while the worker books. What a dead gateway left open counts at its ceiling, as it will be booked; what is under way in a living one is not used yet.
A rolling level is worked out from uses in the order of time, each taken at its end, or from cells at theirs: late rather than early, so that a restart
never gives room away. Change with it: `limits/book.py` (seats), `limits/demand.py` (units), `journal_following.py`, `ledger_ports.LedgerSnapshot`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from tokenweir.ledger.entries import Entry
from tokenweir.ledger.rollups import GRAIN_US, Sums, amounts
from tokenweir.ledger.sources import GATEWAY
from tokenweir.ledger_ports import Checkpoint, LedgerSnapshot, LedgerStore, Use
from tokenweir.limits import grants as granting
from tokenweir.limits.book import Link
from tokenweir.limits.bucket import Bucket, Kind, Seed
from tokenweir.limits.cycle import bounds
from tokenweir.limits.gcra import leak, whole_units
from tokenweir.limits.limit import Cycle, Grant, Limit, Resource, covers
from tokenweir.metering.journal_following import JournalFollower
from tokenweir.metering.spend import Span, spans
from tokenweir.periods import DAY_US, QUARTER_US, SECOND_US, Micros, day_start, quarter_start
from tokenweir.ports import Clock, KeyRecord
from tokenweir.pricing.rate_card import RateCard
from tokenweir.principals import Principal

FINE_PERIOD_US: Final = 3_600 * SECOND_US
"""Levels of periods up to this are worked out from single attempts, those of longer ones from 15-minute cells."""
HORIZON_PERIODS: Final = 4
"""How many periods back a short level is worked out: an older use matters only if it was never empty since."""
ATTEMPT_US_MAX: Final = 900 * SECOND_US
"""How long before its end an attempt may have begun."""
DAY_CELLS_AFTER_US: Final = 2 * DAY_US
"""What lies further back than this counts towards a long level by whole days."""
OVERLAP_US: Final = 300 * SECOND_US
"""How late an adjustment may become visible after the moment that it states."""
NAMED_MAX: Final = 400
"""Up to so many keys or teams are named in a question; for more, all are read."""


class KeyDirectory(Protocol):
    """Who answers for a key and which tags it has; see `ports.Directory`."""

    def keys(self) -> list[KeyRecord]:
        """All keys, the revoked ones too."""
        ...


def units(resource: Resource, sums: Sums) -> int:
    """What sums of the ledger come to in units of a resource; the same as `demand.units_of` of each attempt."""
    match resource:
        case Resource.REQUESTS:
            return sums.requests
        case Resource.INPUT_TOKENS:
            return sums.uncached_input + sums.cache_write_5m + sums.cache_write_1h
        case Resource.OUTPUT_TOKENS:
            return sums.output
        case Resource.TOKENS:
            return sums.uncached_input + sums.cache_write_5m + sums.cache_write_1h + sums.cache_read + sums.output
        case Resource.SPEND:
            return sums.cost_nanos
        case Resource.CONCURRENCY:
            return 0


def use_of(entry: Entry) -> Use:
    """What an entry used."""
    return Use(
        entry.entry_id,
        entry.started_at_us,
        entry.ended_at_us,
        entry.organization_id,
        entry.team_id,
        entry.key_id,
        entry.model,
        entry.session_id,
        Sums(*amounts(entry)),
    )


class AdjustmentFeed:
    """Tells of corrections that others made to the ledger (`ledger adjust`, `rerate`), so that counters follow. Asking is one look at a small index.

    Attempts themselves are not told of: those of a living gateway are settled by itself, and those of one that died were counted when this one started
    (in memory) or are settled from the ledger by its worker (in a shared store).
    """

    def __init__(self, store: LedgerStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._heard: dict[str, Micros] = {}
        self.since_us = clock.now_us() - OVERLAP_US
        """Adjustments that state an earlier moment than this will not be told any more."""

    def news(self) -> list[Use]:
        """Corrections that were not `heard` yet, oldest first. Raises StoreUnavailable; then nothing is missed."""
        now_us = self._clock.now_us()
        with self._store.snapshot() as snapshot:
            found = [use for use in snapshot.adjustments(self.since_us) if use.entry_id not in self._heard]
        if not found:
            self.since_us = max(self.since_us, now_us - OVERLAP_US)
        self._heard = {entry_id: made_us for entry_id, made_us in self._heard.items() if made_us >= self.since_us}
        return sorted(found, key=lambda use: (use.ended_at_us, use.entry_id))

    def heard(self, use: Use) -> None:
        """The counters follow this correction; it need not be told again."""
        self._heard[use.entry_id] = use.ended_at_us


class LedgerUse:
    """Reads use from the books. For one thread."""

    def __init__(
        self,
        store: LedgerStore,
        directory: KeyDirectory,
        journal_dir: Path,
        card: RateCard,
        clock: Clock,
        *,
        feed: AdjustmentFeed | None = None,
        alone_as: str = "",
    ) -> None:
        """`alone_as`: the journal writer of this process, if no other one counts beside it: all other writers are dead then, whoever holds their locks."""
        self._store = store
        self._alone_as = alone_as
        self._keys = KeyFacts(directory)
        self._journal = JournalFollower(journal_dir, use_of)
        self._card = card
        self._clock = clock
        self._feed = feed

    def seeds(self, links: Sequence[Link]) -> list[Seed]:
        """What was used of each bucket, in the order of the links. Raises StoreUnavailable."""
        checkpoints, now_us = self._store.checkpoints(), self._clock.now_us()
        unbooked = self._unbooked(now_us, checkpoints)
        used = [0] * len(links)
        included: list[list[str]] = [[] for _ in links]
        with self._store.snapshot() as snapshot:
            left, read_us = self._not_in(snapshot, unbooked), self._clock.now_us()
            for starts_us in {link.starts_us for link in links if link.bucket.kind is Kind.COUNTER}:
                wanted = self._wanted(links, lambda link, at=starts_us: link.bucket.kind is Kind.COUNTER and link.starts_us == at)  # type: ignore[misc]
                self._count(snapshot, wanted, left, starts_us, max(link.bucket.ends_us for _, link in wanted.links), used)
                self._include(snapshot, wanted, included, now_us)
            short = self._wanted(links, lambda link: link.bucket.kind is Kind.LEVEL and link.bucket.period_us <= FINE_PERIOD_US)
            long = self._wanted(links, lambda link: link.bucket.kind is Kind.LEVEL and link.bucket.period_us > FINE_PERIOD_US)
            self._level(short, _short_events(snapshot, short, left, now_us), used, now_us)
            self._level(long, _long_events(snapshot, long, left, now_us), used, now_us)
        return [Seed(link.bucket, used[index], now_us, tuple(included[index]), read_us) for index, link in enumerate(links)]

    def used(self, limit: Limit, seat: str, since_us: Micros, until_us: Micros) -> int:
        """What was used of a limit by one seat, by attempts that began in [since, until), taken outward to whole quarters. Raises StoreUnavailable."""
        return self.used_in(limit, seat, [(since_us, until_us)])[0]

    def used_in(self, limit: Limit, seat: str, phases: Sequence[granting.Phase]) -> list[int]:
        """The same for several stretches of time, from one snapshot."""
        if not phases:
            return []
        bucket = Bucket(f"{limit.limit_id}|{seat}", Kind.COUNTER, limit.amount)
        wanted = self._wanted([Link(limit, seat, bucket, 0, 0)], lambda _: True)
        unbooked = self._unbooked(self._clock.now_us(), self._store.checkpoints())
        found = []
        with self._store.snapshot() as snapshot:
            left = self._not_in(snapshot, unbooked)
            for since_us, until_us in phases:
                used = [0]
                self._count(snapshot, wanted, left, since_us, until_us, used)
                found.append(used[0])
        return found

    def allowance(self, link: Link, grants: Sequence[Grant]) -> granting.Allowance:
        """The room of the link's limit as its grants and past use leave it. Raises StoreUnavailable."""
        now_us = self._clock.now_us()
        used = self.used_in(link.limit, link.seat, granting.phases(link.limit, grants, now_us))
        return granting.room(link.limit, grants, used, now_us)

    def balances(self, limit: Limit, seat: str, grants: Sequence[Grant]) -> tuple[granting.Balance, ...]:
        """How the credits of a limit stand now for one seat. Raises StoreUnavailable."""
        now_us = self._clock.now_us()
        if not isinstance(limit.window, Cycle):
            return ()
        finished = granting.phases(limit, grants, now_us)
        since_us = finished[-1][1] if finished else bounds(limit.window, now_us)[0]
        *used, used_since = self.used_in(limit, seat, [*finished, (since_us, quarter_start(now_us) + QUARTER_US)])
        return granting.balances(limit, grants, used, used_since, now_us)

    def whose(self, use: Use) -> Principal:
        """Who used it, as far as limits ask; also a key that was revoked. Raises StoreUnavailable."""
        owner, tags = self._keys.of(use.key_id)
        return Principal(use.organization_id, use.team_id, use.key_id, "", "", "", owner, tags)

    # Reading.

    def _unbooked(self, now_us: Micros, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Use]:
        self._journal.catch_up(checkpoints, alone_as=self._alone_as)
        return self._journal.unbooked(now_us=now_us)

    def _not_in(self, snapshot: LedgerSnapshot, unbooked: dict[str, Use]) -> list[Use]:
        known = snapshot.known(list(unbooked) or [""])  # asked in any case: with its first question a snapshot is taken
        self._journal.forget(known)
        return [use for attempt_id, use in unbooked.items() if attempt_id not in known]

    def _wanted(self, links: Sequence[Link], which: Callable[[Link], bool]) -> _Wanted:
        return _Wanted([(index, link) for index, link in enumerate(links) if which(link)], self._keys, self._card)

    def _count(self, snapshot: LedgerSnapshot, wanted: _Wanted, left: Iterable[Use], since_us: Micros, until_us: Micros, used: list[int]) -> None:
        """Add up counters of the same stretch of time."""
        for part in wanted.parts():
            for _, met, sums in part.read(snapshot, spans(since_us, until_us)):
                for index, link in met:
                    used[index] += units(link.limit.resource, sums)
        for use in left:
            if since_us <= use.started_at_us < until_us:
                for index, link in wanted.met_by(use):
                    used[index] += units(link.limit.resource, use.sums)

    def _include(self, snapshot: LedgerSnapshot, wanted: _Wanted, included: list[list[str]], now_us: Micros) -> None:
        since_us = now_us - 3 * OVERLAP_US
        for use in snapshot.adjustments(since_us if self._feed is None else min(since_us, self._feed.since_us)):
            for index, link in wanted.met_by(use):
                if link.starts_us <= use.started_at_us < link.bucket.ends_us:
                    included[index].append(use.entry_id)

    def _level(self, wanted: _Wanted, events: dict[int, list[tuple[Micros, int]]], used: list[int], now_us: Micros) -> None:
        """Let what was used at each moment rise, and leak until now."""
        for index, link in wanted.links:
            refill, period_us = link.bucket.refill, link.bucket.period_us
            level_num, at_us = 0, 0
            for event_us, taken in sorted(events.get(index, ())):
                level_num, at_us = leak(level_num, at_us, refill=refill, period_us=period_us, now_us=event_us)
                level_num += taken * period_us
            level_num, _ = leak(level_num, at_us, refill=refill, period_us=period_us, now_us=now_us)
            used[index] = whole_units(level_num, period_us)


def _short_events(snapshot: LedgerSnapshot, wanted: _Wanted, left: Iterable[Use], now_us: Micros) -> dict[int, list[tuple[Micros, int]]]:
    """When how much was used of short levels, from single attempts."""
    events: dict[int, list[tuple[Micros, int]]] = {}
    if not wanted.links:
        return events
    period_us = max(link.bucket.period_us for _, link in wanted.links)
    since_us = now_us - max(period_us, min(HORIZON_PERIODS * period_us, FINE_PERIOD_US))
    for use in (*snapshot.uses(since_us - ATTEMPT_US_MAX, now_us + DAY_US, only=wanted.only()), *left):
        for index, link in wanted.met_by(use):
            at_us = min(now_us, use.started_at_us if link.bucket.taken else use.ended_at_us)
            taken = units(link.limit.resource, use.sums)
            if at_us >= since_us and taken > 0:
                events.setdefault(index, []).append((at_us, taken))
    return events


def _long_events(snapshot: LedgerSnapshot, wanted: _Wanted, left: Iterable[Use], now_us: Micros) -> dict[int, list[tuple[Micros, int]]]:
    """When how much was used of long levels, from cells of quarters and days, and from what is not booked yet."""
    events: dict[int, list[tuple[Micros, int]]] = {}
    for part in wanted.parts():
        for span in _long_spans(max(link.bucket.period_us for _, link in part.links), now_us):
            for bucket_us, met, sums in part.read(snapshot, [span], buckets=True):
                end_us = min(now_us, bucket_us + GRAIN_US[span[0]])
                for index, link in met:
                    if (taken := units(link.limit.resource, sums)) > 0:
                        events.setdefault(index, []).append((end_us, taken))
    for use in left:
        for index, link in wanted.met_by(use):
            if (taken := units(link.limit.resource, use.sums)) > 0:
                events.setdefault(index, []).append((min(now_us, use.ended_at_us), taken))
    return events


def _long_spans(period_us: int, now_us: Micros) -> list[Span]:
    """The last period in quarters, but what is older than two days in whole days."""
    since_us = quarter_start(now_us - period_us)
    by_day_until_us = day_start(now_us - DAY_CELLS_AFTER_US)
    if since_us >= by_day_until_us:
        return [("15m", since_us, now_us + DAY_US)]
    return [*spans(since_us, by_day_until_us), ("15m", by_day_until_us, now_us + DAY_US)]


class KeyFacts:
    """Owners and tags of keys, read when they are first needed, and again when a key is met that was not there."""

    def __init__(self, directory: KeyDirectory) -> None:
        self._directory = directory
        self._known: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._asked_for: set[str] = set()

    def of(self, key_id: str) -> tuple[str, tuple[str, ...]]:
        """The owner of the key and its tags; none for a key that is not in the directory."""
        found = self._known.get(key_id)
        if found is None and key_id not in self._asked_for:
            self._read()
            self._asked_for.add(key_id)
            found = self._known.get(key_id)
        return found or ("", ())

    def _read(self) -> None:
        self._known = {key.key_id: (key.owner, key.tags) for key in self._directory.keys()}  # noqa: SIM118 - a directory is no dictionary


class _Wanted:
    """Some links, found by who used something."""

    def __init__(self, links: Sequence[tuple[int, Link]], keys: KeyFacts, card: RateCard) -> None:
        self.links = links
        self._keys = keys
        self._card = card
        self._by_home: dict[str, dict[str, tuple[Limit, dict[str, list[tuple[int, Link]]]]]] = {}
        for index, link in links:
            scope = link.limit.scope
            home = self._by_home.setdefault(scope.key_id or scope.team_id or scope.organization_id, {})
            home.setdefault(link.limit.limit_id, (link.limit, {}))[1].setdefault(link.seat, []).append((index, link))
        self._by_session = any(_is_by_session(link.limit) for _, link in links)
        self._by_person = any(link.limit.scope.user or link.limit.scope.tag or link.limit.scope.per == "user" for _, link in links)
        self._covered: dict[tuple[str, str], bool] = {}

    def narrowed(self, which: Callable[[Link], bool]) -> _Wanted:
        """Some of the links."""
        return _Wanted([(index, link) for index, link in self.links if which(link)], self._keys, self._card)

    def parts(self) -> list[_Wanted]:
        """The links by where their use has to be read: the rollups know no sessions."""
        if not self.links:
            return []
        if not self._by_session:
            return [self]
        parts = (self.narrowed(lambda link: not _is_by_session(link.limit)), self.narrowed(lambda link: _is_by_session(link.limit)))
        return [part for part in parts if part.links]

    def met_by(self, use: Use) -> Iterator[tuple[int, Link]]:
        """The links that a use counts towards."""
        return self.of(use.organization_id, use.team_id, use.key_id, use.model, use.session_id)

    def of(self, organization_id: str, team_id: str, key_id: str, model: str, session_id: str) -> Iterator[tuple[int, Link]]:
        """The links that somebody's use of a model counts towards."""
        owner, tags = self._keys.of(key_id) if self._by_person else ("", ())
        for home in (organization_id, team_id, key_id):
            for limit, by_seat in self._by_home.get(home, _NOTHING).values():
                scope = limit.scope
                if (scope.user and scope.user != owner) or (scope.tag and scope.tag not in tags) or (scope.session and scope.session != session_id):
                    continue
                if limit.models and not self._covers(limit, model):
                    continue
                match scope.per:
                    case "team":
                        seat = team_id
                    case "key":
                        seat = key_id
                    case "user":
                        seat = owner or key_id
                    case "session":
                        seat = session_id or key_id
                    case _:
                        seat = ""
                yield from by_seat.get(seat, ())

    def read(
        self, snapshot: LedgerSnapshot, read_spans: Sequence[Span], *, buckets: bool = False
    ) -> Iterator[tuple[Micros, Sequence[tuple[int, Link]], Sums]]:
        """What the ledger says over the spans, of a part: the bucket's start, the links that it counts towards, sums."""
        if self._by_session:
            names = [name for _, link in self.links for name in (link.limit.scope.session, link.seat) if name]
            for cell in snapshot.session_sums(read_spans[0][1], read_spans[-1][2], list(dict.fromkeys(names)), buckets=buckets):
                yield cell.bucket_us, tuple(self.of(*cell.group)), cell.sums
            return
        met: dict[int, tuple[tuple[int, Link], ...]] = {}
        for number, organization_id, team_id, key_id, model in snapshot.dims({"source": (GATEWAY,), **self.only()}):
            if found := tuple(self.of(organization_id, team_id, key_id, model, "")):
                met[number] = found
        for bucket_us, number, sums in snapshot.sums_of(read_spans, list(met), buckets=buckets):
            yield bucket_us, met[number], sums

    def only(self) -> dict[str, list[str]]:
        """What a question can be narrowed to: the keys, else the teams, else the organizations that all links are about."""
        scopes = [(link.limit.scope, link.seat) for _, link in self.links]
        keys = {scope.key_id or (seat if scope.per == "key" else "") for scope, seat in scopes}
        teams = {scope.team_id or (seat if scope.per == "team" else "") for scope, seat in scopes}
        for name, ids in (("key_id", keys), ("team_id", teams), ("organization_id", {scope.organization_id for scope, _ in scopes})):
            if "" not in ids and len(ids) <= NAMED_MAX:
                return {name: sorted(ids)}
        return {}

    def _covers(self, limit: Limit, model: str) -> bool:
        place = limit.limit_id, model
        known = self._covered.get(place)
        if known is None:
            canonical = self._card.resolve(model)
            known = self._covered[place] = covers(limit, model, *(() if canonical is None else (canonical,)))
        return known


def _is_by_session(limit: Limit) -> bool:
    return bool(limit.scope.session) or limit.scope.per == "session"


_NOTHING: dict[str, tuple[Limit, dict[str, list[tuple[int, Link]]]]] = {}
