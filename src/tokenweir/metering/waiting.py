"""The room in which requests wait for a limit whose action is `queue`.

The rules it protects: the one whose turn it is tries again when there may be room, and nobody else does; somebody who comes later does not overtake;
whoever leaves, for whatever reason, leaves nothing behind. There is no polling: a try follows news from the store, or the moment at which a rolling limit will have room. News of other processes come through the store as well; should some be lost, or should an operator raise the amount, each waiting line
looks again once a second. A line has one timer, however many wait in it. The order is decided by `limits/queue.py`; change with it, and with
`metering/limiter.py`, whose use of it is:

    with room.place(key_id=..., priority=...) as place:
        while await place.turn(bucket_id, until_us=..., wait_us=hint):
            outcome = await store.reserve(...)
            if isinstance(outcome, Reserved):
                place.admitted()
                return outcome
            bucket_id, hint = ...  # the first bucket that is short now, which may be another one
    refuse, for the reason place.ended
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from itertools import count
from types import TracebackType
from typing import Literal, Self, TypeAlias

import msgspec

from tokenweir.limits.queue import Priority, Queue, Waiter
from tokenweir.periods import SECOND_US, Micros
from tokenweir.ports import Clock
from tokenweir.telemetry import QUEUE_OUTCOMES, QUEUE_WAIT_SECONDS, QUEUE_WAITING

Ended: TypeAlias = Literal["", "admitted", "deadline", "full", "closed", "left"]
"""How a place ended: not yet, with room, without room in time, not let in, at shutdown, or because its request went away."""

RELOOK_US = SECOND_US
"""A line whose head found no room looks again after this time, news or none."""
RECENT_US = 300 * SECOND_US
"""How far back the reported waits go."""
_RECENT_MAX = 512
_LIMITS_MAX = 2_500
_REARM_US = 1_000
"""A timer is never set for sooner, so that a clock and a loop that disagree by a hair do not spin."""


class LimitWaits(msgspec.Struct, frozen=True):
    """Waiting for one limit: how many wait now, and how it went. The times are of the last five minutes, and at most of the last 512 waits."""

    waiting: int = 0
    p50_us: int = 0
    p95_us: int = 0
    """Of those that were admitted after waiting or waited in vain; 0 if there were none."""
    served: int = 0
    expired: int = 0
    refused_full: int = 0
    left: int = 0
    """Since the process began."""


class _Record:
    """What is remembered of one limit: sums since the process began, and the last waits in two rings of plain integers."""

    __slots__ = ("_at_us", "_next", "_waited_us", "expired", "left", "refused_full", "served", "waiting")

    def __init__(self) -> None:
        self.waiting = self.served = self.expired = self.refused_full = self.left = 0
        self._at_us, self._waited_us = array("q"), array("q")
        self._next = 0

    def add_wait(self, now_us: Micros, waited_us: int) -> None:
        if len(self._at_us) < _RECENT_MAX:
            self._at_us.append(now_us)
            self._waited_us.append(waited_us)
        else:
            self._at_us[self._next], self._waited_us[self._next] = now_us, waited_us
        self._next = (self._next + 1) % _RECENT_MAX

    def told(self, now_us: Micros) -> LimitWaits:
        waits = sorted(waited_us for at_us, waited_us in zip(self._at_us, self._waited_us, strict=True) if at_us > now_us - RECENT_US)
        return LimitWaits(
            waiting=self.waiting,
            p50_us=_percentile(waits, 50),
            p95_us=_percentile(waits, 95),
            served=self.served,
            expired=self.expired,
            refused_full=self.refused_full,
            left=self.left,
        )


class _Line:
    """Those that wait for one bucket."""

    __slots__ = ("bucket_id", "look_at_us", "news", "queue", "timer", "timer_at_us", "tried", "trying")

    def __init__(self, bucket_id: str, queue: Queue) -> None:
        self.bucket_id = bucket_id
        self.queue = queue
        self.trying: int | None = None
        """Whose turn it is now, from being told so until it says how it went."""
        self.tried: int | None = None
        """The head that found no room. It tries again for news or at `look_at_us`; any other head tries at once."""
        self.look_at_us: Micros = 0
        self.news = False
        """Room was given back during the try, perhaps too late for it to see."""
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at_us: Micros = 0

    def has_turn(self, place: Place) -> bool | None:
        """True if it is the place's turn now, None if it has to wait."""
        return True if self.trying == place.waiter_id else None


class Place:
    """One request's place in a waiting line; it is in one line at a time. Leaving its `with` block gives the place up."""

    __slots__ = ("_call", "_room", "bucket_id", "ended", "joined_us", "key_id", "priority", "since_us", "until_us", "waiter_id")

    def __init__(self, room: WaitingRoom, waiter_id: int, key_id: str, priority: Priority) -> None:
        self._room = room
        self._call: asyncio.Future[bool] | None = None
        self.waiter_id = waiter_id
        self.key_id = key_id
        self.priority: Priority = priority
        self.bucket_id = ""
        """The line it stands in, or stood in last."""
        self.until_us: Micros = 0
        self.joined_us: Micros = 0
        self.since_us: Micros | None = None
        """When it joined its first line."""
        self.ended: Ended = ""

    async def turn(self, bucket_id: str, *, until_us: Micros, wait_us: int = 0) -> bool:
        """Wait in the bucket's line until it is this request's turn to try; False (see `ended`) when there will be none.

        Asked again, it says that the try found no room. In the same line it then keeps its place; in that of another bucket it goes to the end.
        `wait_us` is after how long time alone makes room (0 or less: unknown).
        """
        if self.ended:
            return False
        stays = bucket_id == self.bucket_id
        trying = self._room.again(self, wait_us) if stays else self._room.change(self, bucket_id, until_us)
        if trying is not None:
            return trying
        self._call = asyncio.get_running_loop().create_future()
        try:
            # Between the call and the moment it is heard, a room that closes may take the place away.
            return await self._call and self.stands
        finally:
            self._call = None

    @property
    def stands(self) -> bool:
        """Whether it has not ended."""
        return not self.ended

    @property
    def waits(self) -> bool:
        """Whether it waits to be called; otherwise it is trying."""
        return self._call is not None

    def admitted(self) -> None:
        """It got in."""
        self._end("admitted")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end("left")

    def _end(self, how: Ended) -> None:
        if not self.ended:
            self._room.leave(self, how)

    def answer(self, *, go: bool) -> None:
        """The room calls it to try, or sends it away."""
        if self._call is not None and not self._call.done():
            self._call.set_result(go)


class WaitingRoom:
    """All waiting lines of one gateway process. It belongs to the thread of the event loop."""

    def __init__(self, clock: Clock, *, waiting_max: int = 2_000, line_max: int = 1_000, line_per_key_max: int = 100) -> None:
        """At most `waiting_max` requests wait in all, for each of them holds its body; `line_max` for one bucket, `line_per_key_max` of one key."""
        self._clock = clock
        self._waiting_max = waiting_max
        self._line_max = line_max
        self._line_per_key_max = line_per_key_max
        self._ids = count(1)
        self._lines: dict[str, _Line] = {}
        self._places: dict[int, Place] = {}
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait now, in all lines."""
        return len(self._places)

    def has_waiters(self, bucket_id: str) -> bool:
        """Whether somebody waits for the bucket: who comes now goes to the end of the line and does not try first."""
        return bucket_id in self._lines

    def place(self, *, key_id: str, priority: Priority = "normal") -> Place:
        """A place for one request; it stands nowhere until its first turn is asked for."""
        return Place(self, next(self._ids), key_id, priority)

    def news(self, bucket_id: str) -> None:
        """Some of what was used or held of the bucket was given back; the callback for `LimitStore.when_room`."""
        line = self._lines.get(bucket_id)
        if line is not None:
            line.news = True
            self._look(line)

    def report(self) -> dict[str, LimitWaits]:
        """How the waiting goes, by limit id; only limits that requests have waited for."""
        now = self._clock.now_us()
        return {limit_id: record.told(now) for limit_id, record in self._records.items()}

    def close(self) -> None:
        """Send everybody away, now and from now on."""
        self._closed = True
        for place in list(self._places.values()):
            if place.waits:
                self.leave(place, "closed")

    # What places ask for.

    def change(self, place: Place, bucket_id: str, until_us: Micros) -> bool | None:
        """Leave the line it is in, if any, and join another one at the end. True if it may try now, False if it has ended, None if it has to wait."""
        now = self._clock.now_us()
        if place.bucket_id:
            self._record(place.bucket_id).add_wait(now, now - place.joined_us)
            self._step_out(place, now)
        place.bucket_id, place.until_us, place.joined_us = bucket_id, until_us, now
        if place.since_us is None:
            place.since_us = now
        line = self._lines.get(bucket_id) or _Line(bucket_id, Queue(length_max=self._line_max, length_per_key_max=self._line_per_key_max))
        waiter = Waiter(place.waiter_id, place.key_id, place.priority, until_us)
        if self._closed:
            self._conclude(place, "closed", now)
        elif until_us <= now:
            self._conclude(place, "deadline", now)
        elif len(self._places) >= self._waiting_max or not line.queue.add(waiter):
            self._conclude(place, "full", now)
        else:
            self._lines[bucket_id] = line
            self._places[place.waiter_id] = place
            self._record(bucket_id).waiting += 1
            QUEUE_WAITING.inc()
            self._look(line)
            return line.has_turn(place)
        return False

    def again(self, place: Place, wait_us: int) -> bool | None:
        """The try found no room: wait for the next reason to try. Answers as `change` does."""
        now = self._clock.now_us()
        if self._closed or place.until_us <= now:
            self.leave(place, "closed" if self._closed else "deadline")
            return False
        line = self._lines[place.bucket_id]
        line.trying = None
        line.tried = place.waiter_id
        line.look_at_us = now + (min(max(wait_us, _REARM_US), RELOOK_US) if wait_us > 0 else RELOOK_US)
        self._look(line)
        return line.has_turn(place)

    def leave(self, place: Place, how: Ended) -> None:
        """Give the place up; the next one in its line has its turn."""
        now = self._clock.now_us()
        if place.bucket_id:
            self._step_out(place, now, served=how == "admitted")
            self._conclude(place, how, now)
        place.ended = how
        place.answer(go=False)

    # The lines.

    def _look(self, line: _Line) -> None:
        """Give the head its turn if there is a reason to try, and set the timer for the next reason."""
        now = self._clock.now_us()
        for waiter in line.queue.expire(now, trying=line.trying):
            place = self._places[waiter.waiter_id]
            self._forget(place)
            self._conclude(place, "deadline", now)
            place.answer(go=False)
        head = line.queue.head()
        if head is None:
            self._lines.pop(line.bucket_id, None)
        elif line.trying is None and (line.news or line.tried != head.waiter_id or line.look_at_us <= now):
            line.news = False
            line.trying, line.tried = head.waiter_id, None
            self._places[head.waiter_id].answer(go=True)
        self._arm(line, now)

    def _arm(self, line: _Line, now: Micros) -> None:
        """One timer for the line: for the next deadline, or the next look of its head."""
        deadline_us = line.queue.next_deadline_us()
        moments = [] if deadline_us is None else [deadline_us]
        if line.trying is None and len(line.queue):
            moments.append(line.look_at_us)
        at_us = min(moments, default=0)
        if line.timer is not None:
            if line.timer_at_us == at_us:
                return
            line.timer.cancel()
            line.timer = None
        if at_us:
            line.timer_at_us = at_us
            line.timer = asyncio.get_running_loop().call_later(max(at_us - now, _REARM_US) / SECOND_US, self._ring, line)

    def _ring(self, line: _Line) -> None:
        line.timer = None
        self._look(line)

    def _step_out(self, place: Place, now: Micros, *, served: bool = False) -> None:
        """Take the place out of its line; the next one may try at once, because it may ask for less."""
        line = self._lines[place.bucket_id]
        if served:
            line.queue.serve(place.waiter_id)
        else:
            line.queue.remove(place.waiter_id)
        if line.trying == place.waiter_id:
            line.trying = None
        self._forget(place)
        self._look(line)

    def _forget(self, place: Place) -> None:
        """The place stands in its line no more."""
        del self._places[place.waiter_id]
        record = self._record(place.bucket_id)
        record.waiting -= 1
        QUEUE_WAITING.dec()

    def _conclude(self, place: Place, how: Ended, now: Micros) -> None:
        """Note how it ended."""
        place.ended = how
        record = self._record(place.bucket_id)
        if how in ("admitted", "deadline"):
            record.add_wait(now, now - place.joined_us)
            QUEUE_WAIT_SECONDS.observe((now - (place.since_us or now)) / SECOND_US)
        record.served += how == "admitted"
        record.expired += how == "deadline"
        record.refused_full += how == "full"
        record.left += how in ("left", "closed")
        QUEUE_OUTCOMES.values[(how,)] += 1

    def _record(self, bucket_id: str) -> _Record:
        """What is remembered of the bucket's limit. The limit that was not heard of for longest is forgotten when there are too many."""
        limit_id = bucket_id.partition("|")[0]
        record = self._records.get(limit_id)
        if record is not None:
            self._records.move_to_end(limit_id)
            return record
        if len(self._records) >= _LIMITS_MAX:
            idle = next((known for known, one in self._records.items() if not one.waiting), None)
            if idle is not None:
                del self._records[idle]
        record = self._records[limit_id] = _Record()
        return record


def _percentile(ordered: list[int], percent: int) -> int:
    """The nearest-rank percentile; 0 of nothing."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0
