"""Replay: what limits would have decided, from the ledger and with a virtual clock, by the code that decides in the gateway.

The limits a request meets (`limits/book.py`), what it asks of them (`limits/demand.py`), the counting (`limits/buckets.py`), the order of waiting
(`limits/queue.py`) and the room with grants (`limits/grants.py`) are those of the gateway; only time, and where usage is known from, are other ones.
Each attempt asks for room when it began and is settled when it ended. The rules it protects: events happen in exact order of time, and at the same
instant room is given back before it is asked for; what was refused is not used; every attempt of a refused request is refused; what was used before
the replay begins is counted first. What is taken for granted is said in the report (`replay_report.assumptions`). Change with it: `limiter.py`,
`holding.py` (which do the same in the gateway), docs/LIMITS.md.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from tokenweir.ledger_ports import LedgerStore
from tokenweir.limits.book import Chain, Link
from tokenweir.limits.bucket import NEVER, Outcome, Refused, Reserved
from tokenweir.limits.demand import demand_of, units_of
from tokenweir.limits.limit import Action, Grant, Limit, Resource
from tokenweir.limits.policy_file import NamedLimit
from tokenweir.limits.queue import Queue, Waiter
from tokenweir.metering.replay_attempts import Disorder, SentAttempt, attempts
from tokenweir.metering.replay_counting import Counting
from tokenweir.metering.replay_report import ReplayReport, Sums, Tally, assumptions
from tokenweir.metering.replay_requests import Decision, Request
from tokenweir.money import Nanos
from tokenweir.periods import SECOND_US, Micros
from tokenweir.ports import KeyRecord
from tokenweir.pricing.rate_card import RateCard

REMEMBERED_US: Final = 3_600 * SECOND_US
"""How long a decision is remembered for later attempts of the same request."""
DOWNGRADES_MAX: Final = 3
LINE_MAX: Final = 1_000
LINE_PER_KEY_MAX: Final = 100
"""The bounds of a waiting line, as in `metering/waiting.py`."""
PROGRESS_EVERY: Final = 5_000


def replay(
    store: LedgerStore,
    limits: Sequence[NamedLimit],
    *,
    grants: Mapping[str, Sequence[Grant]] | None = None,
    keys: Sequence[KeyRecord] = (),
    card: RateCard,
    names: RateCard,
    since_us: Micros,
    until_us: Micros,
    progress: Callable[[int, Micros], None] | None = None,
) -> ReplayReport:
    """What the limits would have decided about the gateway's attempts that began in [since, until), as if they had been set at its beginning.

    `grants` are counted, by name of the limit; `keys` say who owns a key; `card` prices other models, `names` knows names of models as the gateway does.
    `progress` is told now and then how many attempts were replayed, and up to when. Raises ValueError for limits of no use, StoreUnavailable.
    """
    if until_us <= since_us:
        raise ValueError("a replay ends after it begins")
    if not limits:
        raise ValueError("there is no limit to replay")
    known = [replace(one, limit=replace(one.limit, limit_id=f"replayed_{number}", created_at_us=since_us)) for number, one in enumerate(limits)]
    counting = Counting(store, [one.limit for one in known], grants or {}, keys, card=card, names=names, since_us=since_us)
    run, disorder = _Run(counting, known), Disorder()
    with store.snapshot() as snapshot:
        entries = snapshot.entries(since_us=counting.lead_us, until_us=until_us)
        for number, attempt in enumerate(attempts(entries, disorder)):
            run.take(attempt)
            if progress is not None and number % PROGRESS_EVERY == 0:
                progress(number, attempt.started_us)
    run.finish()
    return ReplayReport(
        since_us=since_us,
        until_us=until_us,
        totals=run.totals.totals(),
        limits=tuple(tally.findings() for tally in run.tallies.values()),
        assumptions=assumptions((one.limit for one in limits), with_grants=grants is not None),
        notes=_notes(disorder),
    )


def _notes(disorder: Disorder) -> tuple[str, ...]:
    notes = []
    if disorder.late_attempts:
        notes.append(f"{disorder.late_attempts:,} attempts stand out of order in the ledger and were replayed late.")
    if disorder.late_adjustments:
        notes.append(f"{disorder.late_adjustments:,} corrections stand far from their attempts in the ledger and were not counted.")
    return tuple(notes)


class _Run:
    """One replay."""

    def __init__(self, counting: Counting, limits: Sequence[NamedLimit]) -> None:
        self.tallies = {one.limit.limit_id: Tally(one) for one in limits}
        self.totals = Sums()
        self._counting = counting
        self._news: list[str] = []
        counting.buckets.when_room(self._news.append)
        self._now_us = counting.lead_us
        self._events: list[tuple[Micros, int, int, Request | str]] = []
        """What happens next: a request is settled, or a waiting line is looked at."""
        self._number = 0
        self._decisions: OrderedDict[str, Decision] = OrderedDict()
        self._lines: dict[str, Queue] = {}
        self._waiting: dict[int, Request] = {}

    # Time.

    def take(self, attempt: SentAttempt) -> None:
        """The next attempt in order of time begins."""
        self._advance(attempt.started_us)
        self._now_us = max(self._now_us, attempt.started_us)
        known = self._decisions.get(attempt.request_id)
        if attempt.started_us < self._counting.since_us:
            self._send(Request(attempt, self._counting.caller(attempt), known or self._remember(attempt.request_id)))
            return
        self.totals.attempts += 1
        self.totals.cost_nanos += attempt.cost_nanos
        if known is not None:
            self._follow(attempt, known)
            return
        request = Request(attempt, self._counting.caller(attempt), Decision(self._now_us))
        self._find_limits(request)
        if request.chain.links:
            self.totals.requests += 1
            self._remember(attempt.request_id, request.decision)
            self._begin(request)
        elif attempt.attempt_no == 1:  # what no limit covers is admitted without remembering it
            self.totals.requests += 1
            self.totals.admitted += 1

    def finish(self) -> None:
        """Nothing begins any more: what is under way ends, and who waits gets in or is refused."""
        while self._events:
            self._advance(self._events[0][0])

    def _advance(self, until_us: Micros) -> None:
        while self._events and self._events[0][0] <= until_us:
            at_us, _, _, what = heapq.heappop(self._events)
            self._now_us = max(self._now_us, at_us)
            if isinstance(what, Request):
                self._settle(what)
            else:
                self._look(what)
            while self._news:
                self._look(self._news.pop())

    def _at(self, at_us: Micros, what: Request | str) -> None:
        self._number += 1
        # At the same instant what ends gives its room back before anybody looks whether there is some.
        heapq.heappush(self._events, (at_us, isinstance(what, str), self._number, what))

    def _remember(self, request_id: str, decision: Decision | None = None) -> Decision:
        decisions = self._decisions
        made = decisions[request_id] = decision or Decision(self._now_us)
        while decisions[oldest := next(iter(decisions))].at_us < self._now_us - REMEMBERED_US:
            del decisions[oldest]
        return made

    # Deciding, as `Limiter` does.

    def _begin(self, request: Request) -> None:
        ahead = next((link for link in request.chain.links if link.limit.action is Action.QUEUE and link.bucket.bucket_id in self._lines), None)
        if ahead is not None:
            self._join(request, ahead, 0)
        else:
            self._decide(request)

    def _decide(self, request: Request) -> None:
        """Ask for room, and do what the limits say."""
        outcome = self._try(request)
        while isinstance(outcome, Refused):
            queued = _all_queue(request.chain, outcome)
            if queued is not None:
                self._join(request, *queued)
                return
            other = next((limit for limit in request.short if limit.action is Action.DOWNGRADE), None)
            if other is None or len(request.downgrades) >= DOWNGRADES_MAX:
                self._refuse(request, request.short)
                return
            request.downgrades.append(other)
            request.model = other.downgrade_to
            request.cost_nanos = self._counting.rated(request.attempt, request.model)
            outcome = self._try(request)
        self._admit(request)

    def _try(self, request: Request) -> Outcome:
        attempt = request.attempt
        self._find_limits(request)
        links = request.chain.links
        ceiling = _scaled(attempt.ceiling_nanos, request.cost_nanos, attempt.cost_nanos) if request.downgrades else attempt.ceiling_nanos
        units = [demand_of(link.limit.resource, attempt.usage, ceiling if link.limit.strict else request.cost_nanos) for link in links]
        outcome = self._counting.reserve(attempt.attempt_id, links, request.chain.buckets, units, now_us=self._now_us)
        if isinstance(outcome, Reserved):
            request.reserved = outcome
        elif isinstance(outcome, Refused):
            request.short = [links[shortage.index].limit for shortage in outcome.shortages]
        return outcome

    def _find_limits(self, request: Request) -> None:
        attempt = request.attempt
        others = () if request.model != attempt.model_requested else self._counting.others(attempt)
        request.chain = self._counting.chain(request.who, request.model, others, attempt.session_id, now_us=self._now_us)

    def _admit(self, request: Request) -> None:
        attempt, decision, over = request.attempt, request.decision, set(request.reserved.over)
        self.totals.admitted += 1
        decision.state = "admitted"
        decision.limit_ids = [request.chain.links[index].limit.limit_id for index in over if request.chain.links[index].limit.shadow]
        for index, (link, standing) in enumerate(zip(request.chain.links, request.reserved.standings, strict=True)):
            tally = self.tallies[link.limit.limit_id]
            tally.admitted += 1
            tally.reached(link, standing, self._now_us)
            if index in over:
                tally.shadowed += link.limit.shadow
                tally.warned += not link.limit.shadow
                tally.hit(attempt, self._now_us)
                if not link.limit.shadow:
                    tally.cost(attempt, 0)
        self._shadow(attempt, decision)
        if request.downgrades:
            decision.downgrade = request.downgrades[0]
            decision.model = request.model
            self.totals.downgraded += 1
            tally = self.tallies[decision.downgrade.limit_id]
            tally.downgraded += 1
            tally.hit(attempt, self._now_us)
            self._cheaper(request)
        if request.since_us:
            decision.shift_us = self._now_us - request.since_us
            self.totals.waited += 1
        self._at(attempt.ended_us + decision.shift_us, request)
        later, decision.later = decision.later, []
        for one in later:
            self._follow(one, decision)

    def _refuse(self, request: Request, limits: Sequence[Limit], *, waited: bool = False) -> None:
        decision = request.decision
        decision.state, decision.limit_ids = "refused", [limit.limit_id for limit in limits]
        self.totals.refused += 1
        for limit_id in decision.limit_ids:
            tally = self.tallies[limit_id]
            tally.refused += 1
            tally.refused_after_waiting += waited
            tally.hit(request.attempt, self._now_us)
        for attempt in (request.attempt, *decision.later):
            self._not_sent(attempt, decision)
        decision.later = []

    def _not_sent(self, attempt: SentAttempt, decision: Decision) -> None:
        self.totals.refused_attempts += 1
        self.totals.refused_nanos += attempt.cost_nanos
        for limit_id in decision.limit_ids:
            self.tallies[limit_id].cost(attempt, attempt.cost_nanos)

    def _shadow(self, attempt: SentAttempt, decision: Decision) -> None:
        """The attempt would not have been sent if the shadows were none."""
        if decision.limit_ids:
            self.totals.shadow_nanos += attempt.cost_nanos
        for limit_id in decision.limit_ids:
            self.tallies[limit_id].cost(attempt, attempt.cost_nanos)

    def _cheaper(self, request: Request) -> None:
        """The attempt went to another model."""
        saved = request.attempt.cost_nanos - request.cost_nanos
        self.totals.downgrade_saved_nanos += saved
        if request.decision.downgrade is not None:
            self.tallies[request.decision.downgrade.limit_id].cost(request.attempt, saved)

    def _follow(self, attempt: SentAttempt, decision: Decision) -> None:
        """A later attempt of a request: nobody asks again, it is sent if the request was admitted."""
        if decision.state == "waiting":
            decision.later.append(attempt)
        elif decision.state == "refused":
            self._not_sent(attempt, decision)
        else:
            request = Request(attempt, self._counting.caller(attempt), decision)
            self._shadow(attempt, decision)
            if decision.model:
                request.model, request.cost_nanos = decision.model, self._counting.rated(attempt, decision.model)
                self._cheaper(request)
            self._send(request)

    def _send(self, request: Request) -> None:
        """Count an attempt that no limit can refuse: it began before the replay, or belongs to a request that was admitted."""
        counting, attempt = self._counting, request.attempt
        self._find_limits(request)
        links = request.chain.links
        if attempt.started_us < counting.since_us:
            links = tuple(link for link in links if counting.counts_before(link, attempt.started_us))
        buckets = tuple(replace(link.bucket, enforced=False) for link in links)
        request.chain = Chain(links, buckets, 0)
        if links:
            units = [demand_of(link.limit.resource, attempt.usage, request.cost_nanos) for link in links]
            counting.reserve(attempt.attempt_id, links, buckets, units, now_us=self._now_us)
            self._at(max(self._now_us, attempt.ended_us + request.decision.shift_us), request)

    # Settling, as `Held` does.

    def _settle(self, request: Request) -> None:
        attempt, counting = request.attempt, self._counting
        model = request.decision.model or attempt.model
        used = []
        for link in request.chain.links:
            limit = link.limit
            if limit.resource is Resource.REQUESTS:
                counting.used(link, attempt.started_us + request.decision.shift_us, 1)
                used.append(0)  # one was taken when it was admitted
                continue
            units = units_of(limit.resource, attempt.usage, request.cost_nanos) if counting.covers(limit, model) else 0
            counting.used(link, attempt.started_us + request.decision.shift_us, units)
            used.append(units)
        counting.buckets.settle(attempt.attempt_id, used, now_us=self._now_us)

    # Waiting, as `WaitingRoom` does.

    def _join(self, request: Request, link: Link, wait_us: int) -> None:
        """Wait at the end of the line of a bucket."""
        if request.decision.state != "waiting":
            request.decision.state = "waiting"
            request.since_us = self._now_us
            request.until_us = self._now_us + link.limit.queue_ms * 1_000
        self._number += 1
        key_id, bucket_id = request.who.key_id, link.bucket.bucket_id
        line = self._lines.get(bucket_id) or Queue(length_max=LINE_MAX, length_per_key_max=LINE_PER_KEY_MAX)
        if not line.add(Waiter(self._number, key_id, self._counting.priority(key_id), request.until_us)):
            self._last_look(request, bucket_id)
            return
        self._lines[bucket_id] = line
        self._waiting[self._number] = request
        self._at(request.until_us, bucket_id)
        self._again(request, bucket_id, wait_us)

    def _again(self, request: Request, bucket_id: str, wait_us: int) -> None:
        """Look again when time alone makes room: a level has leaked enough, or a cycle or a grant ends."""
        moments = (self._now_us + wait_us if wait_us > 0 else 0, request.chain.valid_until_us)
        for at_us in moments:
            if self._now_us < at_us < request.until_us:
                self._at(at_us, bucket_id)

    def _look(self, bucket_id: str) -> None:
        """Those whose time is up are refused; the others get in, as long as there is room for the one whose turn it is."""
        line = self._lines.get(bucket_id)
        if line is None:
            return
        for waiter in line.expire(self._now_us):
            self._last_look(self._waiting.pop(waiter.waiter_id), bucket_id)
        while (head := line.head()) is not None:
            request = self._waiting[head.waiter_id]
            outcome = self._try(request)
            queued = _all_queue(request.chain, outcome) if isinstance(outcome, Refused) else None
            if queued is not None and queued[0].bucket.bucket_id == bucket_id:
                self._again(request, bucket_id, queued[1])
                return
            del self._waiting[head.waiter_id]
            if isinstance(outcome, Reserved):
                line.serve(head.waiter_id)
                self._waited_for(request, bucket_id)
                continue
            line.remove(head.waiter_id)
            if queued is not None:
                self._join(request, *queued)
            else:
                self._decide(request)
        self._lines.pop(bucket_id, None)

    def _last_look(self, request: Request, bucket_id: str) -> None:
        """It waits no longer; it is told how the limits stand now, which may be that there is room."""
        outcome = self._try(request)
        if isinstance(outcome, Reserved):
            self._waited_for(request, bucket_id)
        elif any(limit.action is Action.DOWNGRADE for limit in request.short):
            self._decide(request)
        else:
            self._refuse(request, request.short, waited=True)

    def _waited_for(self, request: Request, bucket_id: str) -> None:
        self.tallies[bucket_id.partition("|")[0]].waits(self._now_us - request.since_us)
        self._admit(request)


def _all_queue(chain: Chain, refused: Refused) -> tuple[Link, int] | None:
    """The limit to wait for, and how long at least, if all that have no room let requests wait and will have room one day."""
    shortages = refused.shortages
    if any(shortage.wait_us == NEVER or chain.links[shortage.index].limit.action is not Action.QUEUE for shortage in shortages):
        return None
    return chain.links[shortages[0].index], max(shortage.wait_us for shortage in shortages)


def _scaled(ceiling_nanos: Nanos, cost: Nanos, of_cost: Nanos) -> Nanos:
    """The ceiling of another model, in proportion to what it costs; rounded up."""
    return ceiling_nanos if of_cost <= 0 else -(-ceiling_nanos * cost // of_cost)
