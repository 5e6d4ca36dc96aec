"""When a stream must hold more than was expected of it, and how much more.

The rule it protects: what is held stays ahead of what was seen, in few steps, and never passes the ceiling; so a limit that ends streams is passed by
less than one step of each stream. What is used in the end is what the ledger books, whether that is less than was held or more. Change with it:
`metering/holding.py` (which asks), `estimate.py` (what is expected), docs/LIMITS.md (the bound).
"""

from __future__ import annotations

from typing import Final

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
