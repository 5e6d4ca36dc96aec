"""A limit: whose use of what, how much of it, in which window, and what happens when it is reached.

The rule it protects: a limit is complete in itself. Nothing about it depends on when a job ran or on another limit; all limits that cover a request
must have room for it, so an inner limit can only narrow an outer one. Change with it: `bucket.py` (how it is counted), `storage/schema.py`, docs/LIMITS.md.
"""

from __future__ import annotations

import enum
import fnmatch
from typing import Literal, TypeAlias

import msgspec

from tokenweir.periods import Micros

AMOUNT_MAX = 4_000_000_000_000_000
"""Largest amount in units of the resource ($4,000,000 in nano-USD): what a shared store counts without rounding (it has 53-bit numbers)."""


class Resource(enum.StrEnum):
    """What is limited, and the unit of its amounts."""

    REQUESTS = "requests"
    """Attempts sent to the provider; a request counts when it is admitted, a repeated attempt when it is made."""
    INPUT_TOKENS = "input_tokens"
    """As the provider's rate limits count them: uncached input and cache writes; what is read from the cache is free."""
    OUTPUT_TOKENS = "output_tokens"
    TOKENS = "tokens"
    """All tokens: uncached, written to the cache, read from it, and output."""
    SPEND = "spend"
    """Nano-USD."""
    CONCURRENCY = "concurrency"
    """Requests being served at the same time; it has no window."""


class Action(enum.StrEnum):
    """What happens to a request for which a limit has no room."""

    BLOCK = "block"
    """It is refused."""
    WARN = "warn"
    """It passes, and its answer says that the limit was passed."""
    QUEUE = "queue"
    """It waits for room, up to the limit's deadline, and is then refused."""
    DOWNGRADE = "downgrade"
    """It is sent to the limit's other model, if all limits have room for it there."""
    END = "end"
    """It is refused; and a stream that outgrows its reservation is ended when there is no more room."""


Seat: TypeAlias = Literal["", "team", "key", "user", "session"]
"""Who has a bucket of their own within the scope; empty: one bucket for all (pooled)."""


class Scope(msgspec.Struct, frozen=True):
    """Whose requests are counted: an organization, one of its teams, or one key; within it, if named, one user, session or tag."""

    organization_id: str
    team_id: str = ""
    key_id: str = ""
    user: str = ""
    """The owner of the key, as the directory has it; never what a client says of itself."""
    session: str = ""
    """The session id that the client sends. A client can send another one: a limit on sessions narrows, it does not fence."""
    tag: str = ""
    """A tag of the key."""
    per: Seat = ""


class Rolling(msgspec.Struct, frozen=True, tag="rolling"):
    """A window that moves with time: the amount flows back evenly over the period, as the provider's own limits do."""

    period_us: int
    burst: int = 0
    """How much may be used at once; 0 means the whole amount."""


class Cycle(msgspec.Struct, frozen=True, tag="cycle"):
    """A calendar window in a time zone. Where it begins is worked out from the time alone (`cycle.py`), so nothing has to reset it."""

    unit: Literal["day", "week", "month", "quarter", "year", "days"]
    timezone: str = "UTC"
    anchor: str = ""
    """day: nothing. week: 1 (Monday, the default) to 7. month: day of the month 1 to 31, its last day where it is shorter. quarter and year: the
    fiscal start as MM-DD. days: a date YYYY-MM-DD on which a cycle begins."""
    length_days: int = 1
    """How many days a cycle of unit `days` lasts."""


Window: TypeAlias = Rolling | Cycle | None
"""None for concurrency alone."""


class Limit(msgspec.Struct, frozen=True):
    """One limit. Amounts are in units of the resource (spend in nano-USD)."""

    limit_id: str
    name: str
    """What people call it; unique within the organization."""
    scope: Scope
    resource: Resource
    amount: int
    window: Window
    models: tuple[str, ...] = ()
    """Model ids or shell patterns that it covers; none means all."""
    action: Action = Action.BLOCK
    queue_ms: int = 0
    """Longest wait, if the action is `queue`."""
    downgrade_to: str = ""
    """The other model, if the action is `downgrade`."""
    strict: bool = False
    """Reserve the true ceiling of each request, so that it can never be passed; otherwise a learned estimate is reserved."""
    shadow: bool = False
    """Decide and record, never refuse."""
    carry_over: bool = False
    """What was used beyond the amount of a cycle is taken from the next one."""
    contact: str = ""
    """Whom to ask for more; named in refusals."""
    managed_by: str = ""
    """The policy file that it comes from; empty if it was set by hand."""
    created_at_us: Micros = 0

    @property
    def enforced(self) -> bool:
        """Whether it may refuse a request."""
        return not self.shadow and self.action is not Action.WARN


class Grant(msgspec.Struct, frozen=True):
    """More room for a limit with a window: a credit that is burned once the amount is used up, or an increase of the amount for a while."""

    grant_id: str
    limit_id: str
    kind: Literal["credit", "increase"]
    amount: int
    """Units of the limit's resource."""
    effective_at_us: Micros
    expires_at_us: Micros | None = None
    priority: int = 100
    """Credits with a smaller number are burned first, then those that expire earlier, then older ones."""
    rollover_min: int = 0
    rollover_max: int | None = None
    """At the end of each cycle, what is left of a credit is raised to the first and cut to the second; None keeps all of it, 0 makes it a top-up of one cycle."""
    reason: str = ""
    created_at_us: Micros = 0
    voided_at_us: Micros | None = None


def covers(limit: Limit, *names: str) -> bool:
    """Whether the limit counts requests to the model, under any of its names (as sent, canonical)."""
    return not limit.models or any(fnmatch.fnmatchcase(name, pattern) for pattern in limit.models for name in names)
