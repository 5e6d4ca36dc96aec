"""The last room of a limit: a request that is only estimated to need more than is left is let through alone.

An estimate is cautious, and a small budget may be smaller than the estimate of any request; refusing on it would lock a key out of money that it has. So
where a limit is not strict, has something left, and nothing else is held of it, the request is asked for again with what is left. The rule it
protects: one at a time, so the limit is passed by what a single request uses beyond it, and never at all where it is strict, or counts requests or
concurrency. Change with it: `metering/limiter.py`, `metering/replay_counting.py` (who ask again), docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenweir.limits.book import Link
from tokenweir.limits.bucket import Refused
from tokenweir.limits.limit import Resource

_EXACT = frozenset({Resource.REQUESTS, Resource.CONCURRENCY})


def last_room(links: Sequence[Link], refused: Refused, units: Sequence[int]) -> list[int] | None:
    """What to ask for once more, in the order of the links; None if the refusal stands."""
    lowered = list(units)
    for shortage in refused.shortages:
        link, standing = links[shortage.index], shortage.standing
        left = link.bucket.room - standing.used
        if link.limit.strict or link.limit.resource in _EXACT or standing.held or left <= 0:
            return None
        lowered[shortage.index] = left
    return lowered
