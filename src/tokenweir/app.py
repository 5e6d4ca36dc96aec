"""The composition root: the only module that names concrete stores and the real clock. It opens, wires, and closes in order."""

from __future__ import annotations

import time

from tokenweir.periods import Micros


class SystemClock:
    """The machine's clock, with a floor so that a step backwards never yields an earlier instant than one already given."""

    __slots__ = ("_floor_us",)

    def __init__(self) -> None:
        self._floor_us = 0

    def now_us(self) -> Micros:
        """Wall clock in microseconds; never earlier than a value it returned before."""
        now = time.time_ns() // 1_000
        if now < self._floor_us:
            return self._floor_us
        self._floor_us = now
        return now

    def monotonic_ns(self) -> int:
        """For durations."""
        return time.monotonic_ns()
