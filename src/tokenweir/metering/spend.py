"""Spend: the one read side that every page, export, alert and limit uses.

The rule it protects: two totals over the same range agree to the nano-dollar, whatever they are grouped by and in whatever time zone, because all are
sums of the same rollup cells. Parts of the range that are whole UTC days are read from the day grain, the rest from the 15-minute grain. A range is
taken outward to whole quarters of an hour; a `Report` says which range that is. Change with it: `ledger/rollups.py`, `ledger_ports.LedgerStore.sums`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from tokenweir.ledger.rollups import ZERO, Grain, Sums
from tokenweir.ledger_ports import LedgerStore
from tokenweir.periods import DAY_US, QUARTER_US, Micros, day_start, quarter_start, to_datetime, to_micros

TimeGrain: TypeAlias = Literal["15m", "hour", "day", "month"]
TIME_GRAINS: Final[tuple[TimeGrain, ...]] = ("15m", "hour", "day", "month")
GROUPS: Final[dict[str, str]] = {
    "organization": "organization_id",
    "team": "team_id",
    "key": "key_id",
    "model": "model",
    "service_tier": "service_tier",
    "speed": "speed",
    "inference_geo": "inference_geo",
    "certainty": "certainty",
    "unpriced": "unpriced",
    "kind": "kind",
    "source": "source",
}
"""What rows can be grouped and filtered by, and the dimension it is."""

Span: TypeAlias = tuple[Grain, Micros, Micros]


class Query(msgspec.Struct, frozen=True):
    """A question about spend."""

    since_us: Micros | None = None
    """None: from the first entry on."""
    until_us: Micros | None = None
    """Not included. None: to the last entry."""
    timezone: str = "UTC"
    grain: TimeGrain | None = None
    """Group by time as well, in the calendar of the time zone."""
    by: tuple[str, ...] = ()
    """Names from `GROUPS`."""
    only: Mapping[str, tuple[str, ...]] = {}
    """By name from `GROUPS`, the values that count."""


class Row(msgspec.Struct, frozen=True):
    """One group of the answer."""

    start_us: Micros | None
    """When the time bucket begins; None if the query has no grain."""
    group: tuple[str, ...]
    """Ids or values, in the order of `Query.by`."""
    sums: Sums


class Report(msgspec.Struct, frozen=True):
    """The answer: rows in order of time and group, their totals, and the range that was really read."""

    rows: tuple[Row, ...]
    totals: Sums
    since_us: Micros
    until_us: Micros


def spend(store: LedgerStore, query: Query) -> Report:
    """Answer the question. Raises ValueError for a name or a time zone that is not known, StoreUnavailable."""
    zone = time_zone(query.timezone)
    by = [_group(name) for name in query.by]
    only = {_group(name): values for name, values in query.only.items()}
    extent = store.extent()
    since_us = quarter_start(query.since_us if query.since_us is not None else extent[0] if extent else 0)
    until_us = _ceiling(query.until_us if query.until_us is not None else extent[1] if extent else 0)
    if extent is None or until_us <= since_us:
        return Report((), ZERO, since_us, max(since_us, until_us))
    read_since_us, read_until_us = max(since_us, extent[0]), min(until_us, extent[1])
    if read_until_us <= read_since_us:
        return Report((), ZERO, since_us, until_us)
    starts = _starts(read_since_us, read_until_us, query.grain, zone)
    cells = store.sums(_spans(starts, read_until_us, fine=query.grain in ("15m", "hour")), by=by, only=only, buckets=query.grain is not None)
    groups: dict[tuple[Micros | None, tuple[str, ...]], Sums] = {}
    totals = ZERO
    for cell in cells:
        place = (_start_of(cell.bucket_us, query.grain, zone, starts), cell.group)
        groups[place] = groups.get(place, ZERO) + cell.sums
        totals += cell.sums
    rows = tuple(
        Row(start_us, group, sums)
        for (start_us, group), sums in sorted(groups.items(), key=lambda item: (item[0][0] or 0, item[0][1]))
        if sums != ZERO
    )
    return Report(rows, totals, since_us, until_us)


def spans(since_us: Micros, until_us: Micros) -> list[Span]:
    """The range, taken outward to whole quarters, as spans of rollups: whole UTC days from the day grain, the rest from the finer one."""
    return _spans([quarter_start(since_us)], _ceiling(until_us), fine=False)


def time_zone(name: str) -> tzinfo:
    """The time zone of that name; raises ValueError with a sentence."""
    if name.upper() in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone; write it like Europe/Berlin") from None


def parse_moment(moment: str, zone: tzinfo) -> Micros:
    """Read a date (its midnight) or a time; what names no offset is meant in `zone`. Raises ValueError."""
    try:
        at = datetime.fromisoformat(moment.strip())
    except ValueError:
        raise ValueError(f"{moment!r} is not a date or time; write it like 2026-11-22 or 2026-11-22T13:45:00Z") from None
    return to_micros(at if at.tzinfo else at.replace(tzinfo=zone))


def label(start_us: Micros, grain: TimeGrain, zone: tzinfo) -> str:
    """How people write a time bucket: `2026-11`, `2026-11-22`, `2026-11-22T13:45+05:45`."""
    local = to_datetime(start_us).astimezone(zone)
    if grain == "month":
        return local.strftime("%Y-%m")
    return local.date().isoformat() if grain == "day" else local.isoformat(timespec="minutes")


def _group(name: str) -> str:
    if name not in GROUPS:
        raise ValueError(f"{name!r} is nothing that spend can be grouped by; there are {', '.join(GROUPS)}")
    return GROUPS[name]


def _ceiling(at_us: Micros) -> Micros:
    return quarter_start(at_us + QUARTER_US - 1)


def _starts(since_us: Micros, until_us: Micros, grain: TimeGrain | None, zone: tzinfo) -> list[Micros]:
    """Where the pieces of the range begin that must not share a cell: the range itself, and each local day or month in it."""
    starts = [since_us]
    if grain in ("day", "month"):
        starts += [at_us for at_us in map(quarter_start, _midnights(since_us, until_us, grain, zone)) if since_us < at_us < until_us]
    return starts


def _midnights(since_us: Micros, until_us: Micros, grain: TimeGrain | None, zone: tzinfo) -> Iterator[Micros]:
    """The first instant of each local day or month that begins around the range."""
    day = to_datetime(since_us).astimezone(zone).date()
    last = to_datetime(until_us).astimezone(zone).date()
    while day <= last:
        yield _midnight(day, zone)
        day = (day.replace(day=1) + timedelta(days=32)).replace(day=1) if grain == "month" else day + timedelta(days=1)


def _midnight(day: date, zone: tzinfo) -> Micros:
    # Where a change of the clock skips midnight, Python takes the offset before it, which gives the instant of the change: the day's first.
    return to_micros(datetime(day.year, day.month, day.day, tzinfo=zone))


def _spans(starts: Sequence[Micros], until_us: Micros, *, fine: bool) -> list[Span]:
    """The range cut into whole UTC days and the quarters around them, such that no span of days crosses a start."""
    spans: list[Span] = []
    for since_us, end_us in zip(starts, [*starts[1:], until_us], strict=True):
        first, last = day_start(since_us + DAY_US - 1), day_start(end_us)
        if fine or first >= last:
            pieces: list[Span] = [("15m", since_us, end_us)]
        else:
            pieces = [("15m", since_us, first), ("day", first, last), ("15m", last, end_us)]
        for piece in pieces:
            if piece[1] == piece[2]:
                continue
            joins = bool(spans) and spans[-1][0] == piece[0] and spans[-1][2] == piece[1]
            spans.append((piece[0], spans.pop()[1], piece[2]) if joins else piece)
    return spans


def _start_of(bucket_us: Micros, grain: TimeGrain | None, zone: tzinfo, starts: Sequence[Micros]) -> Micros | None:
    if grain is None:
        return None
    if grain == "15m":
        return bucket_us
    local = to_datetime(bucket_us).astimezone(zone)
    if grain == "hour":
        return bucket_us - local.minute * 60_000_000 - local.second * 1_000_000
    start_us = starts[bisect_right(starts, bucket_us) - 1]
    if start_us != starts[0]:
        return start_us
    day = to_datetime(start_us).astimezone(zone).date()
    return _midnight(day.replace(day=1) if grain == "month" else day, zone)
