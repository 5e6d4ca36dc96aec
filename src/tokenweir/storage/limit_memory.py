"""The store of limits in the memory of one gateway process.

It adds nothing to `limits/buckets.py`: every call is done at once, so each is atomic and none can be slow. What it knows is gone with its process and is
seeded again from the ledger and the journal. Change with it: `limit_ports.LimitStore`, `limit_valkey.py`, the conformance suite of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenweir.limits.bucket import Bucket, Hold, Outcome, Seed, Standing
from tokenweir.limits.buckets import Buckets
from tokenweir.periods import Micros


class MemoryLimitStore:
    """`LimitStore` for one process. `owner` is the journal writer whose holds these are."""

    shared = False

    def __init__(self, owner: str = "") -> None:
        self.buckets = Buckets(owner)

    async def open(self) -> None:
        """It is there."""

    async def reserve(self, hold_id: str, buckets: Sequence[Bucket], units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Take all or nothing."""
        return self.buckets.reserve(hold_id, buckets, units, now_us=now_us)

    async def extend(self, hold_id: str, units: Sequence[int], *, now_us: Micros) -> Outcome:
        """Hold more."""
        return self.buckets.extend(hold_id, units, now_us=now_us)

    def settle(self, hold_id: str, used: Sequence[int], *, also: Sequence[tuple[Bucket, int]] = (), now_us: Micros) -> None:
        """End a hold."""
        self.buckets.settle(hold_id, used, also=also, now_us=now_us)

    async def settled(self) -> None:
        """Everything is told at once."""

    async def charge(self, charge_id: str, charges: Sequence[tuple[Bucket, int]]) -> None:
        """Correct counters."""
        self.buckets.charge(charge_id, charges)

    async def seed(self, seeds: Sequence[Seed]) -> None:
        """Tell what was used."""
        self.buckets.seed(seeds)

    async def standings(self, buckets: Sequence[Bucket], *, now_us: Micros) -> list[Standing | None]:
        """How buckets stand."""
        return self.buckets.standings(buckets, now_us=now_us)

    async def holds(self, owner: str = "") -> list[Hold]:
        """Holds, all or of one owner."""
        return self.buckets.holds(owner)

    def when_room(self, callback: Callable[[str], None]) -> None:
        """Be told when something was given back."""
        self.buckets.when_room(callback)

    async def close(self) -> None:
        """Nothing is waiting to be told."""
