"""What all routes of one simulator share: its clock, its journal, its caches and limits, the rules of its scenario, who is who, and its numbers.

The clock can be moved forward (never back), so that lifetimes of a day can be rehearsed without waiting for them. Everything that tells the time asks here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from tokenweir.periods import Micros
from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.simulator.catalog import Catalog
from tokenweir.simulator.composition import mint
from tokenweir.simulator.connection import Exchange
from tokenweir.simulator.directives import BadDirective, Directives, build
from tokenweir.simulator.prompt_cache import PromptCache
from tokenweir.simulator.rate_limits import RateLimiter
from tokenweir.simulator.refusals import Refusal, invalid, named
from tokenweir.simulator.scenario import Occasion, Rulebook, Scenario
from tokenweir.simulator.tokenizer import make_prose
from tokenweir.simulator.truth import Attempt, Journal

_WORKSPACE = re.compile(r"^sk-ant-sim-([A-Za-z0-9_]+)")


class World:
    """One simulator's shared state."""

    def __init__(self, *, scenario: Scenario, seed: int, card: RateCard, clock: Clock, journal: Journal, begins: Journal | None = None) -> None:
        self.scenario = scenario
        self.seed = seed
        self.begins = begins
        self.catalog = Catalog(card, ((model.id, model.like) for model in scenario.models))
        self.cache = PromptCache(short_s=scenario.cache.short_ms / 1000, long_s=scenario.cache.long_ms / 1000)
        self.limits = RateLimiter(scenario.limits)
        self.prose = make_prose(seed)
        self.attempts = max(journal.last_attempt, begins.last_attempt if begins else 0)
        """The number of the last attempt; lines of batches are attempts too."""
        self.outcomes: dict[str, int] = {}
        self.organization = f"00000000-0000-4000-8000-{seed % (1 << 48):012x}"
        self._card = card
        self._clock = clock
        self._journal = journal
        self._rules = Rulebook(scenario.rules, seed)
        self._answered = 0
        self._advanced_us = 0
        self._on_advance: list[Callable[[], None]] = []

    def now_us(self) -> Micros:
        """The simulator's wall clock."""
        return self._clock.now_us() + self._advanced_us

    def now_s(self) -> float:
        """For durations: it moves on with the wall clock when that is moved."""
        return self._clock.monotonic_ns() / 1e9 + self._advanced_us / 1e6

    def advance(self, by_us: Micros) -> None:
        """Move the clock forward and tell those who wait for a time."""
        self._advanced_us += by_us
        for tell in self._on_advance:
            tell()

    def on_advance(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever the clock was moved."""
        self._on_advance.append(tell)

    def next_attempt(self, received_us: Micros) -> Attempt:
        """A new attempt with a number and a request id of its own."""
        self.attempts += 1
        return Attempt(self.attempts, mint("req_011C", self.seed, self.attempts), received_us=received_us, journal=self._journal, card=self._card)

    def next_id(self) -> str:
        """A request id for an answer that is no attempt."""
        self._answered += 1
        return mint("req_011C", self.seed, self._answered, b"other")

    def note(self, outcome: str) -> None:
        """Count how an attempt ended."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def directives(self, occasion: Occasion, *layers: Mapping[str, Any]) -> Directives:
        """What the rules and then the given layers ask for; raises Refusal for what makes no sense."""
        try:
            return build(self._rules.directives(occasion), *layers)
        except BadDirective as error:
            raise invalid(str(error)) from None

    def authenticate(self, exchange: Exchange, facts: dict[str, Any]) -> str:
        """The workspace of the credential; raises the provider's 401. The key's hash goes to `facts`."""
        key = exchange.header(b"x-api-key")
        if not key:
            scheme, _, token = exchange.header(b"authorization").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else ""
        if not key:
            raise Refusal(401, "authentication_error", "x-api-key header is required")
        facts["key_sha256"] = hashlib.sha256(key.encode("latin-1")).hexdigest()
        if self.scenario.keys and key not in self.scenario.keys:
            raise Refusal(401, "authentication_error", "invalid x-api-key")
        found = _WORKSPACE.match(key)
        return found.group(1) if found else "default"

    def identity(self, workspace: str) -> bytes:
        """The header lines that name organization and workspace."""
        return f"anthropic-organization-id: {self.organization}\r\nanthropic-workspace-id: wrkspc_{workspace}\r\n".encode()


def asked_refusal(wanted: Directives) -> Refusal:
    """The refusal that the directives ask for; raises Refusal itself where there is none of that name."""
    try:
        return named(wanted.refuse, message=wanted.message, retry_after=wanted.retry_after, should_retry=wanted.should_retry)
    except ValueError as error:
        raise invalid(str(error)) from None


def check_refusal(name: str) -> None:
    """Refuse the name of an error that there is not."""
    try:
        named(name)
    except ValueError as error:
        raise invalid(str(error)) from None


def read_betas(exchange: Exchange) -> frozenset[str]:
    """The betas that a request asks for."""
    return frozenset(
        beta.strip() for name, value in exchange.headers if name == b"anthropic-beta" for beta in value.decode("latin-1").split(",") if beta.strip()
    )
