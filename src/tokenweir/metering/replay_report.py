"""What a replay found: for each limit how often it decided what, for whom, and what that would have saved.

The rule it protects: money is counted once. A refused attempt is in the totals one time, however many limits had no room for it; each of those limits
shows it as its own. Change with it: `limit_replay.py`, `cli/limit_replay.py`, docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tokenweir.limits.book import Link
from tokenweir.limits.bucket import Standing
from tokenweir.limits.limit import Action, Limit, Resource
from tokenweir.limits.policy_file import NamedLimit
from tokenweir.metering.replay_attempts import SentAttempt
from tokenweir.money import Nanos
from tokenweir.periods import Micros

KEYS_SHOWN = 20
"""Keys that a limit names, those it met most often first."""


class Hit(msgspec.Struct, frozen=True):
    """One request that a limit had no room for."""

    at_us: Micros
    request_id: str
    key_id: str
    model: str


class KeyHits(msgspec.Struct, frozen=True):
    """How often a limit had no room for a key."""

    key_id: str
    requests: int
    cost_nanos: Nanos
    """What those requests cost, with all their attempts."""


class Peak(msgspec.Struct, frozen=True):
    """The most that was used and held of a bucket of the limit at a time, after a request was admitted."""

    units: int
    room: int
    seat: str
    at_us: Micros


class LimitFindings(msgspec.Struct, frozen=True):
    """What one limit did. Counts are of requests."""

    limit: NamedLimit
    admitted: int = 0
    refused: int = 0
    """Those it had no room for, and that were refused; another limit may have had none either."""
    refused_after_waiting: int = 0
    """Of those: they waited until the deadline, or found the queue full."""
    downgraded: int = 0
    """Sent to the other model, because of this limit."""
    warned: int = 0
    """Passed although there was no room, with a warning."""
    shadowed: int = 0
    """Passed although there was no room, because the limit is a shadow."""
    waited: int = 0
    """Admitted after they waited for this limit."""
    wait_us_total: int = 0
    wait_us_max: int = 0
    first: Hit | None = None
    keys: tuple[KeyHits, ...] = ()
    keys_hit: int = 0
    """How many keys met it; `keys` names the first of them."""
    saved_nanos: Nanos = 0
    """What refused requests cost and what other models would have cost less; of a shadow, what it would have saved."""
    peak: Peak | None = None


class Totals(msgspec.Struct, frozen=True):
    """What all limits together did."""

    attempts: int = 0
    requests: int = 0
    admitted: int = 0
    refused: int = 0
    refused_attempts: int = 0
    """Of the refused requests, all that were sent."""
    downgraded: int = 0
    waited: int = 0
    cost_nanos: Nanos = 0
    """What was really spent in the time."""
    refused_nanos: Nanos = 0
    """Cost of the refused attempts, each once."""
    downgrade_saved_nanos: Nanos = 0
    """What the other models would have cost less."""
    shadow_nanos: Nanos = 0
    """Cost of the attempts that shadows had no room for, each once; nothing of it is saved."""

    @property
    def saved_nanos(self) -> Nanos:
        """What would have been saved."""
        return self.refused_nanos + self.downgrade_saved_nanos


class ReplayReport(msgspec.Struct, frozen=True):
    """The answer of a replay."""

    since_us: Micros
    until_us: Micros
    totals: Totals
    limits: tuple[LimitFindings, ...]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What in the ledger could not be used as it should."""


class Sums:
    """The totals while the replay runs."""

    __slots__ = Totals.__struct_fields__

    def __init__(self) -> None:
        self.attempts = self.requests = self.admitted = self.refused = self.refused_attempts = self.downgraded = self.waited = 0
        self.cost_nanos = self.refused_nanos = self.downgrade_saved_nanos = self.shadow_nanos = 0

    def totals(self) -> Totals:
        """All of it."""
        return Totals(**{name: getattr(self, name) for name in Totals.__struct_fields__})


class Tally:
    """Counts for one limit while the replay runs."""

    __slots__ = (
        "_keys", "_named", "admitted", "downgraded", "first", "limit", "peak", "peak_units", "refused", "refused_after_waiting", "saved_nanos",
        "shadowed", "wait_us_max", "wait_us_total", "waited", "warned",
    )  # fmt: skip

    def __init__(self, named: NamedLimit) -> None:
        self._named = named
        self.limit = named.limit
        self._keys: dict[str, list[int]] = {}
        self.admitted = self.refused = self.refused_after_waiting = self.downgraded = self.warned = self.shadowed = 0
        self.waited = self.wait_us_total = self.wait_us_max = self.saved_nanos = 0
        self.first: Hit | None = None
        self.peak: Peak | None = None
        self.peak_units = -1

    def reached(self, link: Link, standing: Standing, at_us: Micros) -> None:
        """A request was admitted, and this is how the bucket stands."""
        units = standing.used + standing.held
        if units > self.peak_units:
            self.peak_units = units
            self.peak = Peak(units, link.bucket.room, link.seat, at_us)

    def hit(self, attempt: SentAttempt, at_us: Micros) -> None:
        """There was no room for a request."""
        if self.first is None:
            self.first = Hit(at_us, attempt.request_id, attempt.key_id, attempt.model_requested)
        self._keys.setdefault(attempt.key_id, [0, 0])[0] += 1

    def cost(self, attempt: SentAttempt, saved_nanos: Nanos) -> None:
        """An attempt of such a request, and what would have been saved of it."""
        self._keys.setdefault(attempt.key_id, [0, 0])[1] += attempt.cost_nanos
        self.saved_nanos += saved_nanos

    def waits(self, waited_us: Micros) -> None:
        """A request was admitted after it waited."""
        self.waited += 1
        self.wait_us_total += waited_us
        self.wait_us_max = max(self.wait_us_max, waited_us)

    def findings(self) -> LimitFindings:
        """All of it."""
        ranked = sorted(self._keys.items(), key=lambda one: (-one[1][0], -one[1][1], one[0]))
        return LimitFindings(
            limit=self._named,
            admitted=self.admitted,
            refused=self.refused,
            refused_after_waiting=self.refused_after_waiting,
            downgraded=self.downgraded,
            warned=self.warned,
            shadowed=self.shadowed,
            waited=self.waited,
            wait_us_total=self.wait_us_total,
            wait_us_max=self.wait_us_max,
            first=self.first,
            keys=tuple(KeyHits(key_id, requests, cost) for key_id, (requests, cost) in ranked[:KEYS_SHOWN]),
            keys_hit=len(ranked),
            saved_nanos=self.saved_nanos,
            peak=self.peak,
        )


def assumptions(limits: Iterable[Limit], *, with_grants: bool) -> tuple[str, ...]:
    """What a replay of these limits takes for granted, in sentences for people."""
    every = list(limits)
    said = [
        "Callers do what they did: nobody whose request is refused tries again, changes the request or goes away.",
        "Only what was sent is asked about: what limits refused when it happened is not in the ledger.",
        "Each attempt is charged as it is booked now, with all corrections; owners of keys are those of today, tags those of the attempt.",
        "Limits that are not strict hold what an attempt used: bodies are not in the ledger, so what would have been estimated is not known.",
    ]
    tokens = (Resource.INPUT_TOKENS, Resource.OUTPUT_TOKENS, Resource.TOKENS)
    if any(limit.strict and limit.resource in tokens for limit in every):
        said.append("Strict limits on tokens hold what an attempt used as well: of its ceiling, the ledger knows only what it costs.")
    if any(limit.strict and limit.resource is Resource.SPEND for limit in every):
        said.append("Strict limits on spend hold the ceiling that was journaled with each attempt.")
    if any(limit.action is Action.QUEUE for limit in every):
        said.append("A request that waits begins and ends later by its wait; the queue is that of one gateway process, with its bounds.")
    if any(limit.action is Action.DOWNGRADE for limit in every):
        said.append("Another model is taken to use the same tokens, at its own rates; a strict limit then holds its ceiling in proportion.")
    if any(limit.action is Action.END for limit in every):
        said.append("Streams are not ended: a limit that ends streams is replayed as one that refuses.")
    if not with_grants:
        said.append("Grants are not counted.")
    return tuple(said)
