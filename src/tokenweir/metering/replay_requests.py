"""What a replay knows of a request: what it asks for, and what was decided for all of its attempts. Change with it: `limit_replay.py`."""

from __future__ import annotations

from typing import Literal

from tokenweir.limits.book import EMPTY
from tokenweir.limits.bucket import Reserved
from tokenweir.limits.limit import Limit
from tokenweir.metering.replay_attempts import SentAttempt
from tokenweir.periods import Micros
from tokenweir.principals import Principal


class Request:
    """A request on its way: the attempt that asks, and what becomes of it."""

    __slots__ = ("attempt", "chain", "cost_nanos", "decision", "downgrades", "model", "reserved", "short", "since_us", "until_us", "who")

    def __init__(self, attempt: SentAttempt, who: Principal, decision: Decision) -> None:
        self.attempt = attempt
        self.who = who
        self.decision = decision
        self.model = attempt.model_requested
        self.cost_nanos = attempt.cost_nanos
        self.downgrades: list[Limit] = []
        """The limits that sent it to another model, in their order."""
        self.since_us = self.until_us = 0
        """From when, and until when it waits."""
        self.chain = EMPTY
        self.reserved = Reserved(())
        self.short: list[Limit] = []
        """Limits that had no room when it last asked."""


class Decision:
    """What was decided of a request, for its later attempts."""

    __slots__ = ("at_us", "downgrade", "later", "limit_ids", "model", "shift_us", "state")

    def __init__(self, at_us: Micros) -> None:
        self.at_us = at_us
        self.state: Literal["admitted", "waiting", "refused"] = "admitted"
        self.limit_ids: list[str] = []
        """The limits that refused it; of one that was admitted, the shadows that had no room."""
        self.downgrade: Limit | None = None
        self.model = ""
        """The other model it was sent to."""
        self.shift_us = 0
        """How long it waited."""
        self.later: list[SentAttempt] = []
        """Attempts that followed while it waits in the replay."""
