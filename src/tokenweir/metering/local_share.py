"""What one process may admit by itself while the shared store of limits does not answer.

The rule it protects: rates and concurrency fall to a stated share of themselves in each process, so that all together stay near the limit; what is
money, or belongs to a calendar cycle, has no local share, and the request must be refused as `StoreUnavailable`. Change with it: docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from tokenweir.errors import StoreUnavailable
from tokenweir.limits.book import Chain, Link
from tokenweir.limits.bucket import NEVER, Bucket, Kind, Outcome, Refused
from tokenweir.limits.buckets import Buckets
from tokenweir.limits.limit import Resource
from tokenweir.periods import Micros


class LocalShare:
    """Buckets of this process alone, each of a part of its limit."""

    def __init__(self, share_percent: int) -> None:
        self._share_percent = share_percent
        self._buckets = Buckets()

    def reserve(self, hold_id: str, chain: Chain, units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Room in the shares of all limits, or in none; raises StoreUnavailable if a limit that may refuse has no share, or too small a one."""
        for link in chain.links:
            if link.bucket.enforced and not _is_rate(link):
                raise StoreUnavailable(f"{link.limit.name} cannot be read now, and without it nothing may be spent")
        outcome = self._buckets.reserve(hold_id, [self._shared(link) for link in chain.links], units, now_us=now_us)
        if isinstance(outcome, Refused):
            for shortage in outcome.shortages:
                link = chain.links[shortage.index]
                # It can never fit the share, but it fits the limit: to say that it is too large would be wrong for good.
                if shortage.wait_us == NEVER and units[shortage.index] <= link.bucket.room:
                    raise StoreUnavailable(f"{link.limit.name} cannot be read now, and the request is larger than what may be used without")
        return outcome

    def settle(self, hold_id: str, used: Sequence[int], *, now_us: Micros) -> None:
        """End a hold that was taken here."""
        self._buckets.settle(hold_id, used, now_us=now_us)

    def _shared(self, link: Link) -> Bucket:
        bucket = link.bucket
        if not _is_rate(link):
            return replace(bucket, fresh=True)  # it never refuses: it only keeps its place in the order
        room = max(1, bucket.room * self._share_percent // 100)
        return replace(bucket, room=room, refill=max(1, bucket.refill * self._share_percent // 100), fresh=True)


def _is_rate(link: Link) -> bool:
    return link.bucket.kind is not Kind.COUNTER and link.limit.resource is not Resource.SPEND
