"""A batch as it passes its time: which line is worked on when, what cancellation and expiry leave over, and the object that is shown of it.

Pure: the time is an argument and no line's content is known here. Lines are worked on in an order drawn from the seed, evenly over the batch's delay. Work
that was due before the batch expired is done, however late it is looked at; what is left when it expires, or when a cancellation is final, is closed. The
counts that are shown stay at `processing` until the batch has ended, as the provider's do. Change together with `batch_work.py`, which does the work.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tokenweir.periods import DAY_US, Micros, format_instant
from tokenweir.simulator.directives import Directives
from tokenweir.simulator.scenario import BatchTimes

FAR_US: Final = 1 << 60
"""Later than everything: what never happens by itself."""
_YEARS_US: Final = 3_650 * DAY_US
"""The furthest instant that is shown."""
SUCCEEDED, ERRORED, CANCELED, EXPIRED = "succeeded", "errored", "canceled", "expired"


class Timing(msgspec.Struct, frozen=True):
    """Lengths of time of one batch, in microseconds; `FAR_US` is for ever."""

    delay_us: int
    canceling_us: int
    lifetime_us: int
    archive_us: int


class Work(msgspec.Struct, frozen=True):
    """A line is due."""

    index: int


class Close(msgspec.Struct, frozen=True):
    """A line is over without having been worked on."""

    index: int
    outcome: str


class Wait(msgspec.Struct, frozen=True):
    """Nothing is to be done before this time, unless the batch is canceled."""

    until_us: Micros


class Over(msgspec.Struct, frozen=True):
    """The batch has ended."""


Step = Work | Close | Wait | Over


class Batch:
    """One batch."""

    def __init__(self, ident: str, *, count: int, created_us: Micros, timing: Timing, seed: int, delays: Mapping[int, int], hangs: float = 0) -> None:
        """`delays` are those of single lines, by index; `hangs` is the share of lines that are never worked on."""
        self.id = ident
        self.count = count
        self.created_us = created_us
        self.expires_us = created_us + timing.lifetime_us
        self.archived_us = created_us + timing.archive_us
        self.cancel_us: Micros | None = None
        self.ended_us: Micros | None = None
        self.outcomes = {SUCCEEDED: 0, ERRORED: 0, CANCELED: 0, EXPIRED: 0}
        self._canceling_us = timing.canceling_us
        self._final_us = FAR_US
        """When the cancellation is final."""
        self._order, self._due = _schedule(count, created_us, timing.delay_us, f"{seed}:{ident}", delays, hangs)
        self._next = 0

    @property
    def left(self) -> int:
        """Lines without an outcome."""
        return self.count - sum(self.outcomes.values())

    @property
    def status(self) -> str:
        """`processing_status`."""
        if self.ended_us is not None:
            return "ended"
        return "in_progress" if self.cancel_us is None else "canceling"

    def cancel(self, now_us: Micros) -> None:
        """Initiate the cancellation; a second one changes nothing."""
        if self.cancel_us is None and self.ended_us is None:
            self.cancel_us = now_us
            self._final_us = min(FAR_US, now_us + self._canceling_us)

    def step(self, now_us: Micros) -> Step:
        """What is to be done now. Every Work and Close given is answered with `resolve` before the next step."""
        if self._next == self.count:
            return self._over(now_us)
        due = self._due[self._next]
        closing = min(self._final_us, self.expires_us)
        if now_us >= self._final_us and self._final_us <= self.expires_us:
            return Close(self._take(), CANCELED)
        if due <= min(now_us, closing):
            return Work(self._take())
        if now_us >= self.expires_us:
            return Close(self._take(), EXPIRED)
        return Wait(min(due, closing))

    def resolve(self, outcome: str) -> None:
        """The line given last has this outcome."""
        self.outcomes[outcome] += 1

    def archived(self, now_us: Micros) -> bool:
        """Whether its results are gone."""
        return now_us >= self.archived_us

    def shown(self, now_us: Micros, results_url: str) -> dict[str, Any]:
        """The provider's object; `results_url` is where its results would be."""
        ended = self.ended_us is not None
        counts = {"processing": 0, **self.outcomes} if ended else {"processing": self.count, **dict.fromkeys(self.outcomes, 0)}
        archived = ended and self.archived(now_us)
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": self.status,
            "request_counts": counts,
            "created_at": format_instant(self.created_us),
            "expires_at": format_instant(self.expires_us),
            "ended_at": _shown_instant(self.ended_us),
            "cancel_initiated_at": _shown_instant(self.cancel_us),
            "archived_at": _shown_instant(self.archived_us if archived else None),
            "results_url": results_url if ended and not archived else None,
        }

    def _take(self) -> int:
        index = self._order[self._next]
        self._next += 1
        return index

    def _over(self, now_us: Micros) -> Over:
        if self.ended_us is None:
            # The time at which it was seen, not that of the last line: nobody who saw it in progress shall read that it had ended before.
            self.ended_us = now_us
            self._order = self._due = array("q")
        return Over()


def plan_timing(times: BatchTimes, wanted: Directives) -> Timing:
    """The lengths of a batch: those of the scenario unless directives say otherwise, all divided by the scenario's speed."""

    def scaled(milliseconds: float) -> int:
        return FAR_US if milliseconds < 0 else min(FAR_US, int(milliseconds * 1_000 / times.speed))

    return Timing(
        delay_us=scaled(times.delay_ms if wanted.batch_delay is None else wanted.batch_delay),
        canceling_us=scaled(times.canceling_ms if wanted.batch_canceling is None else wanted.batch_canceling),
        lifetime_us=min(_YEARS_US, scaled(times.lifetime_ms if wanted.batch_expires is None else wanted.batch_expires)),
        archive_us=min(_YEARS_US, scaled(times.archive_ms)),
    )


def plan_delays(delays_ms: Mapping[int, float], speed: float) -> dict[int, int]:
    """The delays of single lines in microseconds of this simulator."""
    return {index: FAR_US if delay < 0 else int(delay * 1_000 / speed) for index, delay in delays_ms.items()}


def _schedule(count: int, created_us: Micros, delay_us: int, seed: str, delays: Mapping[int, int], hangs: float) -> tuple[array[int], array[int]]:
    """The order of lines and when each is due, earliest first; what never happens is due at `FAR_US`."""
    chance = random.Random(seed)  # noqa: S311 - a rehearsal that can be repeated
    order = list(range(count))
    chance.shuffle(order)
    never = delay_us >= FAR_US
    due = [FAR_US if never else created_us + delay_us * (place + 1) // count for place in range(count)]
    if hangs or delays:
        hung = {index for index in range(count) if chance.random() < hangs} if hangs else set()
        pairs = []
        for at, index in zip(due, order, strict=True):
            later = FAR_US if index in hung else min(FAR_US, created_us + delays.get(index, 0))
            pairs.append((max(at, later), index))
        pairs.sort(key=lambda pair: pair[0])
        due, order = [at for at, _ in pairs], [index for _, index in pairs]
    return array("q", order), array("q", due)


def _shown_instant(at_us: Micros | None) -> str | None:
    return None if at_us is None else format_instant(at_us)
