"""The meter: from an admitted request to settlements in the journal, exactly one for every attempt.

A request that its limits have room for (`limiter.py`) gets a `Ticket`; each time it is sent upstream the ticket opens an `Attempt`, whose intent is journaled before the first byte goes
out, and which is settled exactly once, whatever happens: leaving the ticket's `with` block settles what was left open at its ceiling. How an
outcome becomes a settlement is decided by `conclude`, which is pure. Change together with `ledger/entries.py` and `wire/messages.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import msgspec
from msgspec.structs import replace

from tokenweir.ledger.entries import FLAG_UNPRICED, Intent, Settlement
from tokenweir.limits.queue import Priority
from tokenweir.metering.holding import Asking, Held
from tokenweir.metering.limiter import Downgrade, LimitDenied, Limiter
from tokenweir.money import Nanos
from tokenweir.periods import Micros
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import ModelFacts, RateCard
from tokenweir.pricing.rating import ceiling_cost, cost_nanos
from tokenweir.principals import Principal
from tokenweir.telemetry import ATTEMPTS, COST_NANOS, FIRST_BYTE_SECONDS, TOKENS, UNPRICED, USAGE_FLAGS
from tokenweir.usage import Certainty, Usage
from tokenweir.wire.envelope import Envelope, ceiling_usage
from tokenweir.wire.headers import Attribution
from tokenweir.wire.messages import Reading

_UNKNOWN_CONTEXT_TOKENS = 1_000_000
_UNKNOWN_OUTPUT_TOKENS = 128_000


class Journal(Protocol):
    """Where records become durable; see `metering/journal.py`."""

    def append_intent(self, intent: Intent) -> None:
        """Raises JournalFull or JournalBroken; otherwise the intent survives a killed process."""
        ...

    def append_settlement(self, settlement: Settlement) -> None:
        """Raises JournalBroken only."""
        ...


class State(enum.Enum):
    """The life of an attempt."""

    OPEN = enum.auto()
    SETTLED = enum.auto()


class Outcome(msgspec.Struct, frozen=True):
    """What became of an attempt, as far as the gateway saw it."""

    status: int = 0
    """HTTP status of the answer; 0 if none came."""
    refused: bool = False
    """The provider declined before doing any work, by its status or by an error as the first event of a stream."""
    reading: Reading | None = None
    """The usage that was read; None if no answer that could carry usage came."""
    upstream_request_id: str = ""
    error_type: str = ""
    cut: str = ""
    """`client`, `upstream`, `shutdown`, `limit` or `gateway` (a fault of ours) if it was ended early."""
    first_byte_us: int = 0


class Meter:
    """Opens tickets, and turns outcomes into journaled settlements."""

    __slots__ = ("_card", "_clock", "_journal", "_limiter", "_mint")

    def __init__(self, *, journal: Journal, card: RateCard, clock: Clock, mint: Callable[[Micros], str], limiter: Limiter | None = None) -> None:
        self._journal = journal
        self._card = card
        self._clock = clock
        self._mint = mint
        self._limiter = limiter

    async def admit(
        self,
        principal: Principal,
        envelope: Envelope,
        attribution: Attribution,
        *,
        request_id: str,
        priority: Priority = "normal",
        flags: tuple[str, ...] = (),
    ) -> Ticket | LimitDenied | Downgrade:
        """A ticket, if all limits of the request have room for it; `flags` are booked with its attempts.

        Raises StoreUnavailable if a limit that must be read cannot be.
        """
        facts = _facts(self._card, envelope.model)
        ceiling = ceiling_usage(
            envelope,
            context_tokens=facts.context_tokens if facts else _UNKNOWN_CONTEXT_TOKENS,
            output_tokens_max=facts.output_tokens_max if facts else _UNKNOWN_OUTPUT_TOKENS,
        )
        held: Held | None = None
        if self._limiter is not None:
            now_us = self._clock.now_us()
            limited = len(self._limiter.book) > 0
            asking = Asking(
                request_id=request_id,
                principal=principal,
                envelope=envelope,
                session=attribution.session_id,
                priority=priority,
                ceiling=ceiling,
                ceiling_nanos=self._ceiling_nanos(envelope, ceiling, now_us) if limited else 0,
                now_us=now_us,
            )
            admission = await self._limiter.admit(asking) if limited else None
            if isinstance(admission, LimitDenied | Downgrade):
                return admission
            held = admission or self._limiter.unlimited(asking)
            if held.over:
                flags += held.flags
        return Ticket(self, principal, envelope, attribution, ceiling, request_id, held, flags)

    def open_attempt(self, ticket: Ticket) -> Intent:
        """Journal the intent of the ticket's next attempt. Raises JournalFull or JournalBroken: then nothing may be sent."""
        now = self._clock.now_us()
        envelope, who = ticket.envelope, ticket.principal
        intent = Intent(
            attempt_id=self._mint(now),
            request_id=ticket.request_id,
            attempt_no=ticket.attempts + 1,
            started_at_us=now,
            organization_id=who.organization_id,
            team_id=who.team_id,
            key_id=who.key_id,
            model_requested=envelope.model,
            stream=envelope.stream,
            ceiling=ticket.ceiling,
            ceiling_nanos=self._ceiling_nanos(envelope, ticket.ceiling, now),
            card_version=self._card.version,
            session_id=ticket.attribution.session_id,
            agent_id=ticket.attribution.agent_id,
            parent_agent_id=ticket.attribution.parent_agent_id,
            client=ticket.attribution.client,
            client_retry=ticket.attribution.client_retry,
            tags=who.tags,
        )
        self._journal.append_intent(intent)
        return intent

    def _ceiling_nanos(self, envelope: Envelope, ceiling: Usage, now_us: Micros) -> Nanos:
        """The cost of the ceiling at the dearest model that may run a part of it."""
        cost = ceiling_cost(self._card, envelope.model, ceiling, at_us=now_us, speed=envelope.speed, inference_geo=envelope.inference_geo)
        for model in envelope.other_models:
            cost = max(cost, ceiling_cost(self._card, model, ceiling, at_us=now_us, speed=envelope.speed, inference_geo=envelope.inference_geo))
        return cost

    def conclude(self, intent: Intent, outcome: Outcome) -> Settlement:
        """What is to be booked for the attempt, as of now."""
        return conclude(self._card, intent, outcome, now_us=self._clock.now_us())

    def book(self, settlement: Settlement) -> None:
        """Journal how an attempt ended. The caller guarantees that it does so once."""
        self._journal.append_settlement(settlement)
        _count(settlement)


class Attempt:
    """One request to the provider, from its intent to its settlement."""

    __slots__ = ("_flags", "_meter", "held", "intent", "state")

    def __init__(self, meter: Meter, intent: Intent, held: Held | None, flags: tuple[str, ...]) -> None:
        self._meter = meter
        self._flags = flags
        self.intent = intent
        self.held = held
        """What the request holds of its limits."""
        self.state = State.OPEN

    def settle(self, outcome: Outcome, *, last: bool = False) -> None:
        """Journal the outcome; raises RuntimeError if the attempt is settled already, because then usage would be booked twice.

        `last`: no other attempt of the request follows, so what it holds of its limits can be settled with it.
        """
        if self.state is not State.OPEN:
            raise RuntimeError(f"attempt {self.intent.attempt_id} is settled already")
        # An outcome that cannot be priced leaves the attempt open, and so at its ceiling; a journal that fails is not asked a second time.
        settlement = self._meter.conclude(self.intent, outcome)
        if self._flags:
            settlement = replace(settlement, flags=(*settlement.flags, *self._flags))
        self.state = State.SETTLED
        self._meter.book(settlement)
        if self.held is not None:
            self.held.add(settlement, self.intent.started_at_us)
            if last:
                self.held.end()


class Ticket:
    """The right of one request to spend, held by the coroutine that serves it: `with ticket:` guarantees an end for every attempt, and for its holds."""

    __slots__ = ("_current", "_flags", "_meter", "attempts", "attribution", "ceiling", "envelope", "held", "principal", "request_id")

    def __init__(
        self,
        meter: Meter,
        principal: Principal,
        envelope: Envelope,
        attribution: Attribution,
        ceiling: Usage,
        request_id: str,
        held: Held | None = None,
        flags: tuple[str, ...] = (),
    ) -> None:
        self._meter = meter
        self._current: Attempt | None = None
        self._flags = flags
        self.principal = principal
        self.envelope = envelope
        self.attribution = attribution
        self.ceiling = ceiling
        self.request_id = request_id
        self.held = held
        self.attempts = 0

    def open_attempt(self) -> Attempt:
        """Journal the next intent; the attempt before must be settled. Raises JournalFull or JournalBroken."""
        if self._current is not None and self._current.state is State.OPEN:
            raise RuntimeError(f"attempt {self._current.intent.attempt_id} is still open")
        attempt = Attempt(self._meter, self._meter.open_attempt(self), self.held, self._flags)
        self.attempts += 1
        self._current = attempt
        return attempt

    @property
    def may_retry(self) -> bool:
        """Whether the limits have room for another attempt after the last one."""
        return self.held is None or self.held.may_retry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing can end without a settlement: an attempt left open is booked at its ceiling, and nothing stays held."""
        try:
            if self._current is not None and self._current.state is State.OPEN:
                self._current.settle(Outcome(cut="gateway", error_type="gateway_failure" if error is not None else ""))
        finally:
            if self.held is not None:
                self.held.end()


def conclude(card: RateCard, intent: Intent, outcome: Outcome, *, now_us: Micros) -> Settlement:
    """What is booked for an outcome.

    Final usage → EXACT. An answer cut after its first counts → PARTIAL. A refusal → NONE, nothing billed. Anything else was
    sent and not learned → CEILING. Prices are those of the moment the attempt began.
    """
    reading = outcome.reading
    if reading is not None and reading.metered is not None:
        metered = reading.metered
        nanos, unpriced = cost_nanos(card, metered, at_us=intent.started_at_us)
        flags = (*metered.flags, FLAG_UNPRICED) if unpriced else metered.flags
        return Settlement(
            attempt_id=intent.attempt_id,
            ended_at_us=now_us,
            status=outcome.status,
            certainty=reading.certainty,
            usage=metered.usage,
            cost_nanos=nanos,
            model=metered.model,
            upstream_request_id=outcome.upstream_request_id,
            message_id=reading.message_id,
            service_tier=metered.service_tier,
            speed=metered.speed,
            inference_geo=metered.inference_geo,
            stop_reason=reading.stop_reason,
            error_type=outcome.error_type or reading.error_type,
            cut=outcome.cut,
            first_byte_us=outcome.first_byte_us,
            flags=flags,
            raw_usage=reading.raw_usage,
        )
    refused = outcome.refused or (reading is not None and reading.certainty is Certainty.NONE)
    unpriced = not refused and card.resolve(intent.model_requested) is None
    return Settlement(
        attempt_id=intent.attempt_id,
        ended_at_us=now_us,
        status=outcome.status,
        certainty=Certainty.NONE if refused else Certainty.CEILING,
        usage=Usage() if refused else intent.ceiling,
        cost_nanos=0 if refused else intent.ceiling_nanos,
        model=intent.model_requested,
        upstream_request_id=outcome.upstream_request_id,
        error_type=outcome.error_type or (reading.error_type if reading is not None else ""),
        cut=outcome.cut,
        first_byte_us=outcome.first_byte_us,
        flags=(FLAG_UNPRICED,) if unpriced else (),
    )


def _facts(card: RateCard, model: str) -> ModelFacts | None:
    canonical = card.resolve(model)
    return None if canonical is None else card.model(canonical)


_TOKEN_CLASSES = tuple((name, (name,)) for name in ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output"))


def _count(settlement: Settlement) -> None:
    """Move the metrics; they are for watching, the ledger is the truth."""
    ATTEMPTS.values[(settlement.certainty.value,)] += 1
    usage = settlement.usage
    for name, labels in _TOKEN_CLASSES:
        if tokens := getattr(usage, name):
            TOKENS.values[labels] += tokens
    COST_NANOS.values[()] += settlement.cost_nanos
    if settlement.first_byte_us:
        FIRST_BYTE_SECONDS.observe(settlement.first_byte_us / 1e6)
    for flag in settlement.flags:
        UNPRICED.inc() if flag == FLAG_UNPRICED else USAGE_FLAGS.labels(flag.partition(":")[0]).inc()
