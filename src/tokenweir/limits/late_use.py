"""Use that is settled of a bucket nobody knows yet, while the ledger is perhaps being read for it.

A limit that is set while requests run has a bucket that no store knows. What such a request used when it ends is left to the ledger; but if somebody has
begun to read the ledger a moment before, what they read may have it or not. The rule it protects: a counter begins with what the ledger says, to the
unit. Use that came after the books were opened is added to what was read; where it came while they were being opened, the seed is not believed, and
they are read again. Where requests end so fast that this does not come to an end, the use is added as well, which is never too little. Change with
it: `buckets.py`, `metering/limiter.py` (which reads again), `metering/seeding.py`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from tokenweir.limits.bucket import Seed
from tokenweir.periods import SECOND_US, Micros

LATE_MAX: Final = 4_096
"""So many uses are remembered; no reading of the ledger lasts as long as it takes for more."""
LATE_US: Final = 60 * SECOND_US
"""No reading of the ledger lasts longer than this."""
MARGIN_US: Final = 1_000
"""A settlement is journaled at most so long before it is told of here."""
DOUBTS_MAX: Final = 2
"""How often the ledger is read again for a bucket."""


class LateUse:
    """What was settled lately of buckets that are not known."""

    __slots__ = ("_doubts", "_uses")

    def __init__(self) -> None:
        self._uses: deque[tuple[Micros, str, int]] = deque(maxlen=LATE_MAX)
        self._doubts: dict[str, list[Micros]] = {}
        """When the readings began that were not believed, by bucket."""

    def note(self, bucket_id: str, units: int, now_us: Micros) -> None:
        """So much was used of a bucket that is not known."""
        while self._uses and self._uses[0][0] < now_us - LATE_US:
            self._uses.popleft()
        self._uses.append((now_us, bucket_id, units))

    def beside(self, seed: Seed) -> int | None:
        """What was used besides what the seed says; None if it must be read again, to know."""
        bucket_id = seed.bucket.bucket_id
        late = [(at_us, units) for at_us, found, units in self._uses if at_us >= seed.at_us and found == bucket_id]
        besides = sum(units for _, units in late)
        if all(seed.read_us and at_us >= seed.read_us + MARGIN_US for at_us, _ in late):
            self._doubts.pop(bucket_id, None)
            return besides
        doubts = self._doubts.setdefault(bucket_id, [])
        if seed.at_us not in doubts:
            if len(doubts) >= DOUBTS_MAX:
                del self._doubts[bucket_id]
                return besides
            doubts.append(seed.at_us)
        return None
