"""The life of a hold: it is open, and then settled or released, once; and when a stream must hold more.

The rule it protects: *nothing of a hold is given back before it is known what was booked.* What is then used of a bucket is exactly what the ledger
booked, whether that is less than was held or more, so that ledger and limits agree to the unit. How sure a booking is, is decided before (see
`charge_for`), never by a counter. Change with it: `metering/holding.py` (which walks this life), `ledger/entries.py` (what is booked).
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final

from tokenweir.usage import Certainty


class State(enum.Enum):
    """Where a hold is in its life."""

    OPEN = "open"
    """Its units are held in every bucket of its request."""
    SETTLED = "settled"
    """An attempt was booked: what is booked is used, nothing is held."""
    RELEASED = "released"
    """Nothing was ever sent: nothing is used, nothing is held."""


class Event(enum.Enum):
    """What happens to a hold."""

    EXTEND = "extend"
    """A stream outgrows what it expected to use."""
    SETTLE = "settle"
    """What it used is booked; also long after its process died, for the money was spent whether or not anybody was awake."""
    RELEASE = "release"
    """It is sure that nothing was sent: refused before, or no intent to send it was ever journaled. Time alone never makes it sure."""


TRANSITIONS: Final = MappingProxyType(
    {
        State.OPEN: MappingProxyType({Event.EXTEND: State.OPEN, Event.SETTLE: State.SETTLED, Event.RELEASE: State.RELEASED}),
        State.SETTLED: MappingProxyType({}),
        State.RELEASED: MappingProxyType({}),
    }
)
"""There is no expiry: a hold whose owner died is settled or released by what the journal says of it (`workers/limit_recovery.py`)."""


def after(state: State, event: Event) -> State:
    """Where the event takes a hold. One that is over stays as it is: settling, releasing and extending are idempotent by its id."""
    return TRANSITIONS[state].get(event, state)


# What a settlement charges.


def charge_for(certainty: Certainty | None, held_units: int, booked_units: int, ceiling_units: int) -> int:
    """What a hold costs its bucket, once the certainty of its settlement is known; None while nothing is booked.

    - EXACT: what was used. Less than was held: the rest is given back. More: it is used all the same.
    - NONE: nothing was done, 0 is booked, all is given back.
    - PARTIAL: the last counts seen and an estimate of what streamed since, as booked.
    - CEILING: the bound, as booked; for a limit that is not strict this is more than was held.
    - None: the most that it may come to. Nothing is given back.

    Why PARTIAL and CEILING are not raised to what was held: caution is exercised once, where the booking is made. A counter that charged more
    than the ledger books would tell a different number than the ledger, and would lose the difference when it is seeded from the ledger again.
    """
    if certainty is None:
        return max(held_units, ceiling_units)
    return booked_units


# Extending.

EXTENSION_TOKENS_MIN: Final = 256
"""The least that an extension adds: no stream asks the store for every sentence."""


def extends_from(held_tokens: int, ceiling_tokens: int) -> int | None:
    """From how many output tokens on a stream that holds `held_tokens` should hold more: three quarters of them. None if it holds its ceiling."""
    return None if held_tokens >= ceiling_tokens else held_tokens - held_tokens // 4


def next_extension(held_tokens: int, seen_tokens: int, ceiling_tokens: int) -> int | None:
    """How many more output tokens to hold for a stream of which `seen_tokens` were seen; None if what is held suffices.

    A step is half of what is held or `EXTENSION_TOKENS_MIN`, or more if a burst of the stream outran it: after the step at least a quarter of what is
    held is ahead of what was seen. Never beyond the ceiling, which the provider enforces (`max_tokens`, or the model's own maximum).

    The bound on overshoot this gives a limit that ends streams: a stream runs on while its next step is asked for and is ended when the step is
    refused, so each request in flight passes the limit by less than one step. A limit that does not end streams is passed by at most
    `ceiling - held` of each request in flight, and admits nothing new meanwhile.
    """
    start = extends_from(held_tokens, ceiling_tokens)
    if start is None or seen_tokens < start:
        return None
    # `seen` is below three quarters of `held + step` exactly if `held + step` is above four thirds of `seen`.
    step = max(EXTENSION_TOKENS_MIN, held_tokens // 2, seen_tokens * 4 // 3 + 4 - held_tokens)
    return min(step, ceiling_tokens - held_tokens)
