"""Windows: where a calendar cycle begins and ends, worked out from the time alone, and how windows are written.

The rule it protects: every instant belongs to exactly one cycle, and each begins where the one before it ends. So nothing has to reset a limit, and a
gateway that slept through the turn of a month is right when it wakes. A cycle begins at the first instant of a local day, in the calendar of its time
zone: a day can have 23 or 25 hours, and midnight can be missing from it. Change with it: `limit.Cycle`, `limit.Rolling`, docs/LIMITS.md.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable
from datetime import UTC, date, datetime, tzinfo
from functools import lru_cache
from typing import Final, TypeAlias
from zoneinfo import ZoneInfo

from tokenweir.limits.limit import AMOUNT_MAX, Cycle, Resource, Rolling, Window
from tokenweir.money import parse_usd
from tokenweir.periods import DAY_US, SECOND_US, Micros, to_datetime, to_micros

PERIOD_US_MAX: Final = 366 * DAY_US
CYCLE_DAYS_MAX: Final = 366
BURST_NANOS_MIN: Final = 1_000_000
"""The smallest burst of a spend limit, a tenth of a cent: less is a number that was meant in dollars."""

_UNITS_US: Final = {"s": SECOND_US, "m": 60 * SECOND_US, "h": 3600 * SECOND_US, "d": DAY_US}
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# Not from the machine's locale: a gateway and its worker must call a cycle the same.
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_STEP_MONTHS: Final = {"month": 1, "quarter": 3, "year": 12}
_CYCLES: Final = "day, week, month, quarter, year or every:14d"

_Step: TypeAlias = Callable[[date, int], date]
"""The first day of the cycle that a day is in, moved by so many cycles."""

_seen: dict[Cycle, tuple[Micros, Micros]] = {}
"""The last answer for each cycle: nearly every question is about the same one."""


def bounds(cycle: Cycle, at_us: Micros) -> tuple[Micros, Micros]:
    """Start and end (not included) of the cycle that holds the instant. Raises ValueError for a zone or an anchor that `parse_window` would refuse."""
    last = _seen.get(cycle)
    if last is not None and last[0] <= at_us < last[1]:
        return last
    zone, first_day = _calendar(cycle)
    day = to_datetime(at_us).astimezone(zone).date()
    # Where clocks go back over midnight, the day after has begun and the day before comes again: the instants decide, not the local date.
    step = 0
    start_us, end_us = _day_start(first_day(day, 0), zone), _day_start(first_day(day, 1), zone)
    while at_us < start_us:
        step -= 1
        start_us, end_us = _day_start(first_day(day, step), zone), start_us
    while at_us >= end_us:
        step += 1
        start_us, end_us = end_us, _day_start(first_day(day, step + 1), zone)
    if len(_seen) >= 4096:
        _seen.clear()
    _seen[cycle] = start_us, end_us
    return start_us, end_us


def cycle_label(cycle: Cycle, start_us: Micros) -> str:
    """How people call the cycle that begins at `start_us`: `November 2026`, `week of 2026-11-16`, `14 days from 2026-11-16`."""
    day = to_datetime(start_us).astimezone(_zone(cycle.timezone)).date()
    if cycle.unit == "day":
        return day.isoformat()
    if cycle.unit == "week":
        return f"week of {day.isoformat()}"
    if cycle.unit == "days":
        return f"{cycle.length_days} day{'s' if cycle.length_days > 1 else ''} from {day.isoformat()}"
    if cycle.anchor not in ("", "1", "01-01"):
        return f"{cycle.unit} from {day.isoformat()}"
    if cycle.unit == "month":
        return f"{_MONTHS[day.month - 1]} {day.year}"
    return f"Q{(day.month + 2) // 3} {day.year}" if cycle.unit == "quarter" else str(day.year)


def parse_window(text: str, *, resource: Resource, timezone: str = "", anchor: str = "") -> Window:
    """Read a window as people write it; raises ValueError with one sentence that names the field, its value and what would be right.

    `rolling:NUMBER` and s, m, h or d, with `:burst=AMOUNT` if less (or more) than the whole amount may be used at once: in units of the resource, for
    spend in dollars with their sign (`burst=$0.50`). Or `day`, `week`, `month`, `quarter`, `year`, `every:NUMBERd` (also `NUMBERd`), in a time zone
    (default UTC) and from an anchor, see `limit.Cycle`. Empty for concurrency, which has no window.
    """
    text, timezone, anchor = text.strip().lower(), timezone.strip(), anchor.strip()
    if resource is Resource.CONCURRENCY:
        for field, value in (("window", text), ("timezone", timezone), ("anchor", anchor)):
            if value:
                raise ValueError(f"{field} {value!r}: concurrency is counted at every moment and has no {field}; leave it out")
        return None
    if text == "rolling" or text.startswith("rolling:"):
        for field, value in (("timezone", timezone), ("anchor", anchor)):
            if value:
                raise ValueError(f"{field} {value!r}: a rolling window moves with time and has none; leave it out or choose {_CYCLES}")
        return _parse_rolling(text, resource)
    cycle = _parse_cycle(text, timezone, anchor)
    _calendar(cycle)
    return cycle


def window_text(window: Window) -> str:
    """The window as `parse_window` reads it, without time zone and anchor, which are fields of their own. Empty for none."""
    if window is None:
        return ""
    if isinstance(window, Cycle):
        return f"every:{window.length_days}d" if window.unit == "days" else window.unit
    for unit in ("d", "h", "m", "s"):
        size_us = _UNITS_US[unit]
        # A day is written 24h and a minute 60s, as rates are usually told; two of them and more in the larger unit.
        if window.period_us % size_us == 0 and (unit == "s" or window.period_us >= 2 * size_us):
            break
    return f"rolling:{window.period_us // size_us}{unit}" + (f":burst={window.burst}" if window.burst else "")


def _parse_rolling(text: str, resource: Resource) -> Rolling:
    match = re.fullmatch(r"rolling:(\d{1,9})([smhd])(?::burst=(\S+))?", text, re.ASCII)
    if match is None:
        raise ValueError(f"window {text!r} is not a rolling window; write a number and s, m, h or d, like rolling:60s or rolling:5m:burst=20")
    period_us = int(match[1]) * _UNITS_US[match[2]]
    if not SECOND_US <= period_us <= PERIOD_US_MAX:
        raise ValueError(f"window {text!r}: a rolling window is between 1s and 366d long")
    return Rolling(period_us, _parse_burst(match[3], resource) if match[3] else 0)


def _parse_burst(text: str, resource: Resource) -> int:
    spend = resource is Resource.SPEND
    right = "an amount of at least $0.001, like burst=$0.50" if spend else "a whole number from 1, like burst=20"
    try:
        burst = parse_usd(text) if spend and text.startswith("$") else int(text) if text.isdecimal() else 0
    except ValueError:
        burst = 0
    if not (BURST_NANOS_MIN if spend else 1) <= burst <= AMOUNT_MAX:
        raise ValueError(f"burst {text!r} of the window is not {right}")
    return burst


def _parse_cycle(text: str, timezone: str, anchor: str) -> Cycle:
    timezone = "UTC" if timezone.upper() in ("", "Z", "UTC") else timezone
    anchor = anchor.lower()
    match = re.fullmatch(r"(?:every:)?(\d{1,9})d", text, re.ASCII)
    if match is not None:
        return Cycle("days", timezone, anchor, int(match[1]))
    match text:
        case "day" | "quarter" | "year":
            return Cycle(text, timezone, anchor)
        case "week":
            names = [name for name in _WEEKDAYS if len(anchor) >= 3 and name.startswith(anchor)]
            return Cycle("week", timezone, str(_WEEKDAYS.index(names[0]) + 1) if names else anchor)
        case "month":
            return Cycle("month", timezone, "31" if anchor == "last" else anchor.removeprefix("0") if len(anchor) == 2 else anchor)
        case "":
            raise ValueError(f"window is missing; write rolling:60s, {_CYCLES}")
        case _:
            raise ValueError(f"window {text!r} is not known; write rolling:60s, {_CYCLES}")


@lru_cache(maxsize=4096)
def _calendar(cycle: Cycle) -> tuple[tzinfo, _Step]:
    """The zone of the cycle, and where it steps."""
    zone, anchor = _zone(cycle.timezone), cycle.anchor
    if cycle.unit == "day":
        if anchor:
            raise ValueError(f"anchor {anchor!r}: a day begins at midnight and has no anchor; leave it out")
        return zone, _every_days(1, 1)
    if cycle.unit == "week":
        if anchor not in ("", *"1234567"):
            raise ValueError(f"anchor {anchor!r} of a week is not a weekday; write 1 (Monday) to 7 (Sunday)")
        # The first day of all, 1 January of the year 1, is a Monday.
        return zone, _every_days(7, int(anchor or "1"))
    if cycle.unit == "days":
        if not 1 <= cycle.length_days <= CYCLE_DAYS_MAX:
            raise ValueError(f"window 'every:{cycle.length_days}d': a cycle is between 1 and {CYCLE_DAYS_MAX} days long")
        first = _date(anchor) if re.fullmatch(r"\d{4}-\d\d-\d\d", anchor, re.ASCII) else None
        if not anchor:
            raise ValueError(f"anchor is missing; every:{cycle.length_days}d needs the date on which one of its cycles begins, like 2026-11-16")
        if first is None:
            raise ValueError(f"anchor {anchor!r} of every:{cycle.length_days}d is not a date on which a cycle begins; write it like 2026-11-16")
        return zone, _every_days(cycle.length_days, first.toordinal())
    if cycle.unit == "month":
        if anchor and not (re.fullmatch(r"[1-9]\d?", anchor, re.ASCII) and int(anchor) <= 31):
            raise ValueError(f"anchor {anchor!r} of a month is not a day of the month; write 1 to 31, or last")
        return zone, _every_months(1, 1, int(anchor or "1"))
    # 2000 was a leap year: 02-29 is a day, and is the 28th in years that have none.
    first = _date(f"2000-{anchor or '01-01'}") if re.fullmatch(r"(\d\d-\d\d)?", anchor, re.ASCII) else None
    if first is None:
        raise ValueError(f"anchor {anchor!r} of a {cycle.unit} is not the month and day on which the fiscal year begins; write it like 04-01")
    return zone, _every_months(_STEP_MONTHS[cycle.unit], first.month, first.day)


def _every_days(length: int, first: int) -> _Step:
    def first_day(day: date, step: int) -> date:
        return date.fromordinal(first + ((day.toordinal() - first) // length + step) * length)

    return first_day


def _every_months(length: int, month: int, day_of_month: int) -> _Step:
    """Cycles of so many months, one of which begins in `month`, on that day or the month's last."""

    def in_month(index: int) -> date:
        year, month_0 = divmod(index, 12)
        return date(year, month_0 + 1, min(day_of_month, monthrange(year, month_0 + 1)[1]))

    def first_day(day: date, step: int) -> date:
        index = day.year * 12 + day.month - 1
        index -= (index - (month - 1)) % length
        if day < in_month(index):
            index -= length
        return in_month(index + step * length)

    return first_day


def _day_start(day: date, zone: tzinfo) -> Micros:
    """The first instant of the local day, or of the next day there was, where a zone left one out."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    start_us = to_micros(midnight)
    if to_datetime(start_us).astimezone(zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return start_us
    # There is no midnight: clocks went forward over it. Python counts on from before the change, so the change is at this instant or earlier.
    before_us = start_us - 2 * DAY_US
    while start_us - before_us > 1:
        middle_us = (before_us + start_us) // 2
        if to_datetime(middle_us).astimezone(zone).date() >= day:
            start_us = middle_us
        else:
            before_us = middle_us
    return start_us


@lru_cache(maxsize=1024)
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        # These two are whatever the machine is set to, and would count differently on another one.
        if name in ("localtime", "posixrules"):
            raise ValueError(name)
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"timezone {name!r} is not known; write it like Europe/Berlin or UTC") from None


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
