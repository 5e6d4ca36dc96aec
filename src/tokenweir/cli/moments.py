"""Times as people give them to a command: a date, a time, or how long from now."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenweir.periods import Micros

_DURATION = re.compile(r"(\d{1,6})\s*(s|m|h|d|w)\Z")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def moment(text: str, now_us: Micros) -> Micros:
    """A date or time to come, or a duration from now; raises ValueError."""
    from tokenweir.periods import parse_instant

    if _DURATION.match(text.strip()):
        return now_us + duration_ms(text) * 1_000
    try:
        return parse_instant(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a date, a time or a duration; write it like 2027-01-31, 2027-01-31T12:00:00Z or 90d") from None


def duration_ms(text: str) -> int:
    """How long, in milliseconds; raises ValueError."""
    found = _DURATION.match(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a duration; write it like 90d, 24h, 30m or 0s")
    return int(found[1]) * _UNIT_MS[found[2]]
