"""Usage: what one attempt used, in disjoint counts, and how sure we are of it.

The five token classes never overlap: their sum is all tokens. `thinking` is an attribute of `output` (already inside it). A count of 0 was
said to be 0; what was not said is not a `Usage` at all (see `Certainty`). `wire/messages.py` reads these from the provider's numbers.
"""

from __future__ import annotations

import enum

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Tokens by class, and the server tools that were used."""

    uncached_input: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0
    output: int = 0
    thinking: int = 0
    web_searches: int = 0
    web_fetches: int = 0
    code_executions: int = 0

    @property
    def prompt(self) -> int:
        """Tokens of the whole prompt, cached or not; long-prompt rates look at this."""
        return self.uncached_input + self.cache_write_5m + self.cache_write_1h + self.cache_read

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prompt + self.output


class Certainty(enum.StrEnum):
    """How a settlement knows its numbers. Only EXACT may give back more than it took."""

    EXACT = "exact"
    """The final usage was seen."""
    PARTIAL = "partial"
    """The answer was cut: the last counts seen, and an estimate of what was streamed since."""
    CEILING = "ceiling"
    """Nothing was seen after sending: booked at the bound."""
    NONE = "none"
    """The provider refused before doing any work: nothing is billed."""


class Segment(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A part of an attempt that one model ran, and that is billed on its own (an iteration; or the whole attempt)."""

    kind: str
    """`message`, `compaction`, `advisor_message` or `fallback_message`, as the provider names it."""
    model: str
    usage: Usage


class Metered(msgspec.Struct, frozen=True):
    """All that is needed to book and price one attempt, as the provider reported it."""

    model: str
    """The model that answered; what was asked for if the answer does not say."""
    usage: Usage
    """The provider's top-level usage, as finally stated."""
    segments: tuple[Segment, ...]
    """What is billed. One segment equal to `usage` in the plain case; none if the provider bills nothing (a refusal without content)."""
    service_tier: str = ""
    speed: str = ""
    inference_geo: str = ""
    flags: tuple[str, ...] = ()
    """What a person should know of this reading: `unknown_usage_field:NAME`, `iterations_mismatch`, `unbilled_refusal`, `fallback_credit`."""
