"""The counting of a replay: callers, the limits they meet, and the buckets, told what was used before the replay begins.

The rule it protects: each attempt counts once. What a calendar cycle had used before the quarter of an hour in which the replay begins comes from the
rollups; all later attempts, and for rolling limits, sessions and what was under way all that are needed, come one by one. Change with it:
`replay_past.py`, `limit_replay.py`, `limits/book.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tokenweir.ledger_ports import LedgerStore
from tokenweir.limits.book import Chain, LimitBook, Link
from tokenweir.limits.bucket import Bucket, Kind, Outcome, Refused, Reserved, Seed, Unseeded
from tokenweir.limits.buckets import Buckets
from tokenweir.limits.cycle import bounds
from tokenweir.limits.grants import needs_use, phases, room
from tokenweir.limits.last_room import last_room
from tokenweir.limits.limit import Cycle, Grant, Limit, Rolling
from tokenweir.limits.queue import Priority
from tokenweir.metering.replay_attempts import SentAttempt
from tokenweir.metering.replay_past import PastUse, by_session
from tokenweir.money import Nanos
from tokenweir.periods import SECOND_US, Micros, quarter_start
from tokenweir.ports import KeyRecord
from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rating import cost_nanos
from tokenweir.principals import Principal
from tokenweir.usage import Metered, Segment

IN_FLIGHT_US: Final = 3_600 * SECOND_US
"""How long before the replay begins an attempt may have begun that was still under way then."""


class Counting:
    """The limits of a replay and how they stand."""

    def __init__(
        self,
        store: LedgerStore,
        limits: Sequence[Limit],
        grants: Mapping[str, Sequence[Grant]],
        keys: Sequence[KeyRecord],
        *,
        card: RateCard,
        names: RateCard,
        since_us: Micros,
    ) -> None:
        self.since_us = since_us
        self.begins_us = quarter_start(since_us)
        """Before it, counters go by the rollups."""
        self.lead_us = min((_lead_us(limit, since_us) for limit in limits), default=since_us)
        """From when on attempts are needed."""
        self.buckets = Buckets()
        self.book = LimitBook(canonical=names.resolve, complete_since_us=since_us)
        self.book.update([(limit, tuple(grants.get(limit.name, ()))) for limit in limits])
        self._card = card
        self._keys = {key.key_id: key for key in keys}
        self._callers: dict[tuple[str, tuple[str, ...]], Principal] = {}
        self._canonical = names.resolve
        self._same_models: dict[tuple[str, str], bool] = {}
        self._covered: dict[tuple[str, str], bool] = {}
        self._past = PastUse(store, covers=self.covers, principal=lambda organization, team, key: self._caller(organization, team, key, None))
        self._remembers = {limit.limit_id for limit, of_limit in self.book.limits() if needs_use(limit, of_limit)}
        self._booked: dict[tuple[str, str], dict[Micros, int]] = {}
        """By limit and seat, what was used in each quarter, for limits whose room depends on it."""

    # Who, and what they meet.

    def caller(self, attempt: SentAttempt) -> Principal:
        """Who sent the attempt: with the tags of then, and the owner that the key has now."""
        return self._caller(attempt.organization_id, attempt.team_id, attempt.key_id, attempt.tags)

    def _caller(self, organization_id: str, team_id: str, key_id: str, tags: tuple[str, ...] | None) -> Principal:
        key = self._keys.get(key_id)
        worn = tags if tags is not None else key.tags if key is not None else ()
        who = self._callers.get((key_id, worn))
        if who is None:
            owner = "" if key is None else key.owner
            who = self._callers[key_id, worn] = Principal(organization_id, team_id, key_id, "", "", "", owner=owner, tags=worn)
        return who

    def priority(self, key_id: str) -> Priority:
        """In which class requests of the key wait."""
        key = self._keys.get(key_id)
        return "normal" if key is None else key.policy.priority

    def chain(self, who: Principal, model: str, others: Sequence[str], session: str, *, now_us: Micros) -> Chain:
        """The limits of a request, with every room in them known."""
        while True:
            chain = self.book.chain(who, model, others=others, session=session, now_us=now_us)
            if not chain.unknown:
                return chain
            for link in chain.unknown:
                self._work_out(link, now_us)

    def covers(self, limit: Limit, model: str) -> bool:
        """Whether the limit counts what the model used."""
        known = self._covered.get((limit.limit_id, model))
        if known is None:
            known = self._covered[limit.limit_id, model] = self.book.covers(limit, model)
        return known

    def others(self, attempt: SentAttempt) -> tuple[str, ...]:
        """Which model answered in the place of the one asked for: it was among those that the request allowed."""
        asked, answered = attempt.model_requested, attempt.model
        if asked == answered:
            return ()
        same = self._same_models.get((asked, answered))
        if same is None:
            known = self._canonical(asked)
            same = self._same_models[asked, answered] = known is not None and known == self._canonical(answered)
        return () if same else (answered,)

    def rated(self, attempt: SentAttempt, model: str) -> Nanos:
        """What the attempt would have cost with another model, for the same usage."""
        metered = Metered(
            model=model,
            usage=attempt.usage,
            segments=(Segment("message", model, attempt.usage),),
            service_tier=attempt.service_tier,
            speed=attempt.speed,
            inference_geo=attempt.inference_geo,
        )
        return cost_nanos(self._card, metered, at_us=attempt.started_us)[0]

    # Counting.

    def reserve(self, hold_id: str, links: Sequence[Link], buckets: Sequence[Bucket], units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Ask all of them for room; what they do not know they are told first."""
        outcome = self.buckets.reserve(hold_id, buckets, units, now_us=now_us)
        if isinstance(outcome, Unseeded):
            self.buckets.seed([Seed(links[index].bucket, self._used_before(links[index]), now_us) for index in outcome.indices])
            outcome = self.buckets.reserve(hold_id, buckets, units, now_us=now_us)
        if isinstance(outcome, Refused) and (less := last_room(links, outcome, units)) is not None:
            again = self.buckets.reserve(hold_id, buckets, less, now_us=now_us)
            outcome = again if isinstance(again, Reserved) else outcome
        return outcome

    def counts_before(self, link: Link, started_us: Micros) -> bool:
        """Whether an attempt that began before the replay is counted by itself: it is not in what the counter is told from the rollups."""
        if link.bucket.kind is not Kind.COUNTER or started_us >= self.begins_us:
            return True
        return by_session(link.limit) and link.bucket.ends_us > self.since_us

    def used(self, link: Link, started_us: Micros, units: int) -> None:
        """Take note of what was used, if the room of the limit depends on it."""
        if link.limit.limit_id in self._remembers and units:
            quarters = self._booked.setdefault((link.limit.limit_id, link.seat), {})
            quarter_us = quarter_start(started_us)
            quarters[quarter_us] = quarters.get(quarter_us, 0) + units

    def _used_before(self, link: Link) -> int:
        """Of a cycle that was under way when the replay begins; levels begin empty, a whole period before it."""
        if link.bucket.kind is not Kind.COUNTER or by_session(link.limit):
            return 0
        return self._past.used(link.limit, link.seat, link.starts_us, self.begins_us)

    def _work_out(self, link: Link, now_us: Micros) -> None:
        """The room of a limit with credits or carry-over."""
        limit, grants = self.book.find(link.limit.limit_id) or (link.limit, ())
        booked = self._booked.get((limit.limit_id, link.seat), {})
        used = [
            self._past.used(limit, link.seat, since_us, min(until_us, self.begins_us))
            + sum(units for quarter_us, units in booked.items() if max(since_us, self.begins_us) <= quarter_us < until_us)
            for since_us, until_us in phases(limit, grants, now_us)
        ]
        self.book.allow(link, room(limit, grants, used, now_us))


def _lead_us(limit: Limit, since_us: Micros) -> Micros:
    """From when on attempts are needed, so that the limit stands as it should when the replay begins."""
    match limit.window:
        case None:
            return since_us - IN_FLIGHT_US
        case Rolling(period_us=period_us):
            return since_us - period_us
        case Cycle() as cycle:
            return bounds(cycle, since_us)[0] if by_session(limit) else quarter_start(since_us)
