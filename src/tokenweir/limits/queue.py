"""In which order requests that wait for one bucket get their turn.

The rule it protects: nobody is forgotten and nobody pushes in. Classes of priority come first to last, but a class that waits is not passed over
forever: after `PATIENCE` turns of classes above it, the next turn is its own. Within a class keys take turns, one request each, so that a key
that sends a hundred gets no more of them than one that sends two; within a key, first come, first served. The queue is bounded, and its upper
tenths are kept for the higher classes, so that a crowd of low ones cannot lock them out. It knows no time of its own and no effects: those are in
`metering/waiting.py`, which is to be changed with it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Final, Literal, TypeAlias

import msgspec

from tokenweir.periods import Micros

Priority: TypeAlias = Literal["high", "normal", "low"]
PRIORITIES: Final[tuple[Priority, ...]] = ("high", "normal", "low")
"""The classes, first to last."""
PATIENCE: Final = 7
"""So many turns of higher classes a class waits for; the next is its own. Where two classes are due, the higher one goes first."""
TENTHS: Final[dict[Priority, int]] = {"high": 10, "normal": 9, "low": 8}
"""While fewer tenths of the queue than these are full, one of the class is let in."""


class Waiter(msgspec.Struct, frozen=True, gc=False):
    """One request that waits."""

    waiter_id: int
    """Unique in the queue."""
    key_id: str
    priority: Priority
    deadline_us: Micros
    """When it stops waiting."""


class _Class:
    """Those of one priority: the keys in the order of their turns, and the requests of each key in the order they came."""

    __slots__ = ("keys", "passed")

    def __init__(self) -> None:
        self.keys: OrderedDict[str, OrderedDict[int, Waiter]] = OrderedDict()
        self.passed = 0
        """Turns that higher classes had while this one waited, since its own last turn."""


class Queue:
    """The waiting requests of one bucket. Every operation takes constant time, but for the deadlines, which take the logarithm of the length."""

    __slots__ = ("_classes", "_deadlines", "_length_max", "_length_per_key_max", "_waiters")

    def __init__(self, *, length_max: int, length_per_key_max: int) -> None:
        self._length_max = length_max
        self._length_per_key_max = length_per_key_max
        self._classes: dict[Priority, _Class] = {priority: _Class() for priority in PRIORITIES}
        self._waiters: dict[int, Waiter] = {}
        # Deadlines of those that left stay in the heap until they come up or are too many, because taking them out would need a search.
        self._deadlines: list[tuple[Micros, int]] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, waiter_id: int) -> bool:
        return waiter_id in self._waiters

    def add(self, waiter: Waiter) -> bool:
        """Take a place behind those of the same key; False if the queue is full for its class, or for its key."""
        if 10 * len(self._waiters) >= TENTHS[waiter.priority] * self._length_max:
            return False
        keys = self._classes[waiter.priority].keys
        if len(keys.get(waiter.key_id, ())) >= self._length_per_key_max:
            return False
        keys.setdefault(waiter.key_id, OrderedDict())[waiter.waiter_id] = waiter
        self._waiters[waiter.waiter_id] = waiter
        heapq.heappush(self._deadlines, (waiter.deadline_us, waiter.waiter_id))
        return True

    def head(self) -> Waiter | None:
        """Whose turn it is; None if nobody waits. It stays so until that one is served or leaves, or one of a higher class comes."""
        chosen: _Class | None = None
        for one in self._classes.values():
            if not one.keys:
                continue
            if one.passed >= PATIENCE:
                chosen = one
                break
            chosen = chosen or one
        if chosen is None:
            return None
        of_key = next(iter(chosen.keys.values()))
        return next(iter(of_key.values()))

    def serve(self, waiter_id: int) -> None:
        """It got what it waited for: it leaves, and its key and class have had their turn. One that left before changes nothing."""
        waiter = self._waiters.get(waiter_id)
        if waiter is None:
            return
        own = self._classes[waiter.priority]
        self.remove(waiter_id)
        if waiter.key_id in own.keys:
            own.keys.move_to_end(waiter.key_id)
        own.passed = 0
        for priority in PRIORITIES[PRIORITIES.index(waiter.priority) + 1 :]:
            below = self._classes[priority]
            below.passed += bool(below.keys)

    def remove(self, waiter_id: int) -> bool:
        """It leaves, from wherever it stands, without a turn; False if it was not there."""
        waiter = self._waiters.pop(waiter_id, None)
        if waiter is None:
            return False
        own = self._classes[waiter.priority]
        of_key = own.keys[waiter.key_id]
        del of_key[waiter_id]
        if not of_key:
            del own.keys[waiter.key_id]
        if not own.keys:
            own.passed = 0
        if len(self._deadlines) > 2 * len(self._waiters) + 16:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._waiters]
            heapq.heapify(self._deadlines)
        return True

    def next_deadline_us(self) -> Micros | None:
        """The earliest deadline of those that wait and were not told yet."""
        while self._deadlines and self._deadlines[0][1] not in self._waiters:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now_us: Micros, *, trying: int | None = None) -> list[Waiter]:
        """Those whose deadline has come leave, earliest first. The one that is trying keeps its place until its try is over; its deadline is told no more."""
        gone: list[Waiter] = []
        while (deadline_us := self.next_deadline_us()) is not None and deadline_us <= now_us:
            _, waiter_id = heapq.heappop(self._deadlines)
            if waiter_id != trying:
                gone.append(self._waiters[waiter_id])
                self.remove(waiter_id)
        return gone
