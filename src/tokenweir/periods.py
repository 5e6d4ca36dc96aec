"""Time: instants as integer microseconds since 1970 UTC, and the buckets that rollups use.

Everything below the edges takes the time as an argument. The grains are 15 minutes, because no time zone in use is offset by anything finer, and
one UTC day, because long ranges are read a hundred times faster from it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeAlias

Micros: TypeAlias = int
"""An instant: microseconds since 1970-01-01T00:00:00Z."""

SECOND_US = 1_000_000
QUARTER_US = 15 * 60 * SECOND_US
DAY_US = 86_400 * SECOND_US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def quarter_start(at_us: Micros) -> Micros:
    """The start of the 15-minute bucket that holds `at_us`."""
    return at_us - at_us % QUARTER_US


def day_start(at_us: Micros) -> Micros:
    """The start of the UTC day that holds `at_us`."""
    return at_us - at_us % DAY_US


def to_micros(moment: datetime) -> Micros:
    """The instant of an aware datetime; raises ValueError for one without a zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * SECOND_US + delta.microseconds


def to_datetime(at_us: Micros) -> datetime:
    """The instant as a UTC datetime."""
    seconds, micros = divmod(at_us, SECOND_US)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)


def format_instant(at_us: Micros) -> str:
    """RFC 3339 with microseconds and a Z: `2026-11-22T13:45:00.000000Z`."""
    return to_datetime(at_us).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_instant(text: str) -> Micros:
    """Read a date (midnight UTC) or an RFC 3339 time; one without a zone is taken as UTC. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not a date or time; write it like 2026-11-22 or 2026-11-22T13:45:00Z") from None
    return to_micros(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
