"""What limits should decide, worked out again in the plainest way: every event is kept, rational numbers are exact, days are walked one by one.

Nothing of `tokenweir.limits` is used here. A level is not leaked step by step, as the engine does, but found from all that was used: it is the most, over
all moments since, of what was used from that moment on less what could leak (Reich's formula for the content of a leaking bucket).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from math import ceil
from zoneinfo import ZoneInfo

DAY = timedelta(days=1)


@lru_cache(maxsize=100_000)
def first_day(unit: str, anchor: str, length: int, day: date) -> date:
    """The day on which the cycle began that `day` is in."""
    return day if _begins(unit, anchor, length, day) else first_day(unit, anchor, length, day - DAY)


@lru_cache(maxsize=100_000)
def next_first_day(unit: str, anchor: str, length: int, day: date) -> date:
    """The day on which the cycle after it begins."""
    day += DAY
    return day if _begins(unit, anchor, length, day) else next_first_day(unit, anchor, length, day)


def _begins(unit: str, anchor: str, length: int, day: date) -> bool:
    match unit:
        case "day":
            return True
        case "week":
            return day.isoweekday() == int(anchor or "1")
        case "days":
            return (day - date.fromisoformat(anchor)).days % length == 0
        case "month":
            return _is_anchor_day(day, int(anchor or "1"))
        case _:
            month, day_of_month = (int(part) for part in (anchor or "01-01").split("-"))
            return (day.month - month) % (3 if unit == "quarter" else 12) == 0 and _is_anchor_day(day, day_of_month)


def _is_anchor_day(day: date, anchor: int) -> bool:
    is_last = (day + DAY).month != day.month
    return day.day == anchor or (is_last and day.day < anchor)


def local_day(zone: ZoneInfo, at_us: int) -> date:
    """The date that a calendar on the wall shows at the instant."""
    return datetime.fromtimestamp(at_us // 1_000_000, zone).date()


class OracleCounter:
    """One cycle of one limit: what was used in it is the sum of all that was used in it."""

    def __init__(self, first: date | None = None) -> None:
        self.first = first
        """The day on which the cycle begins."""
        self.uses: list[int] = []
        self.held: dict[str, int] = {}

    def touch(self, at_us: int) -> None:
        """A counter does not change with time."""

    def use(self, units: int) -> None:
        self.uses.append(units)

    @property
    def used(self) -> int:
        return sum(self.uses)

    def free(self, room: int) -> Fraction | int:
        return room - sum(self.uses) - sum(self.held.values())

    def wait(self, room: int, units: int) -> int:
        return -1 if units > room else 0


class OracleGauge(OracleCounter):
    """Nothing of it is ever used."""

    def use(self, units: int) -> None:
        pass


class OracleLevel(OracleCounter):
    """A rolling limit for one seat."""

    def __init__(self, at_us: int, rate: Fraction) -> None:
        super().__init__()
        self.events: list[tuple[int, Fraction, int]] = []
        """When, at which rate since the event before, and how much was used: nothing, where only the rate changed."""
        self.rate = rate
        self.at_us = at_us
        self.spent = 0
        self.leakable = Fraction(0)
        """What could have leaked since the beginning, while there was anything."""
        self.lowest = Fraction(0)
        """Least of what was used before an event, less what could have leaked until then."""
        self.level = Fraction(0)

    def touch(self, at_us: int) -> None:
        """Time passes, and never back, except where there is nothing that could leak twice."""
        if at_us > self.at_us:
            if self.level:
                self.leakable += self.rate * (at_us - self.at_us)
                self._find()
            self.at_us = at_us
        elif at_us < self.at_us and not self.level:
            self.events.append((self.at_us, self.rate, 0))
            self.at_us = at_us

    def change(self, rate: Fraction) -> None:
        if rate != self.rate:
            self.events.append((self.at_us, self.rate, 0))
            self.rate = rate

    def use(self, units: int) -> None:
        if units > 0:
            self.lowest = min(self.lowest, self.spent - self.leakable)
            self.spent += units
            self.events.append((self.at_us, self.rate, units))
            self._find()

    def _find(self) -> None:
        self.level = max(Fraction(0), self.spent - self.leakable - self.lowest)

    @property
    def used(self) -> int:
        return ceil(self.level)

    def free(self, room: int) -> Fraction | int:
        return room - self.level - sum(self.held.values())

    def wait(self, room: int, units: int) -> int:
        target = room - units - sum(self.held.values())
        if units > room:
            return -1
        return 0 if target < 0 else max(0, ceil((self.level - target) / self.rate))

    def replayed(self) -> Fraction:
        """The level once more, from all events one after the other, as one would do it by hand."""
        level, before_us = Fraction(0), 0
        for at_us, rate, units in self.events:
            level = max(Fraction(0), level - rate * max(0, at_us - before_us)) + units
            before_us = at_us
        return max(Fraction(0), level - self.rate * max(0, self.at_us - before_us))

    def most_in(self, window_us: int) -> int:
        """The most that was used within any window of that length."""
        return max((sum(units for at_us, _, units in self.events if 0 <= at_us - start_us < window_us) for start_us, _, _ in self.events), default=0)
