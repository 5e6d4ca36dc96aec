"""Rollups: the sums that every page, export, alert and limit reads, by 15 minutes and by UTC day.

The rule it protects: a rollup cell is nothing but the sum of its entries, so it can be recomputed at any time and must come out equal to the
nano-dollar. An adjustment counts in the bucket of the attempt it corrects. Change with it: `storage/schema.py` (columns) and `metering/spend.py` (group-bys).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from operator import add
from typing import Literal, TypeAlias

import msgspec

from tokenweir.ledger.entries import FLAG_REBOOKING, FLAG_REVERSAL, FLAG_UNPRICED, KIND_ADJUSTMENT, Entry
from tokenweir.periods import DAY_US, QUARTER_US, Micros, day_start, quarter_start

Grain: TypeAlias = Literal["15m", "day"]
GRAIN_US: dict[Grain, int] = {"15m": QUARTER_US, "day": DAY_US}


class Dims(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a cell is told apart by, besides its time."""

    organization_id: str
    team_id: str
    key_id: str
    model: str
    service_tier: str
    speed: str
    inference_geo: str
    certainty: str
    unpriced: int
    """1 if the cost was booked at the conservative rate because the model has no price."""
    kind: str
    source: str


class Sums(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a cell adds up."""

    requests: int = 0
    """Attempts, whatever became of them; a correction that moves an attempt to another cell counts -1 there and +1 here."""
    errors: int = 0
    uncached_input: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0
    output: int = 0
    thinking: int = 0
    web_searches: int = 0
    cost_nanos: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*[mine + theirs for mine, theirs in zip(values(self), values(other), strict=True)])


ZERO = Sums()
SUM_NAMES: tuple[str, ...] = Sums.__struct_fields__
DIM_NAMES: tuple[str, ...] = Dims.__struct_fields__

Cells: TypeAlias = Mapping[tuple[Micros, Dims], tuple[int, ...]]
"""Sums by start of bucket and dimensions, in the order of `SUM_NAMES`."""


class Difference(msgspec.Struct, frozen=True):
    """A cell of a stored rollup that is not the sum of its entries."""

    grain: Grain
    bucket_us: Micros
    dims: Dims
    stored: tuple[int, ...] | None
    """None: there is no such cell, but there should be."""
    recomputed: tuple[int, ...] | None
    """None: there is such a cell, but no entry belongs to it."""


def values(sums: Sums) -> tuple[int, ...]:
    """The numbers in the order of `SUM_NAMES`."""
    return (
        sums.requests,
        sums.errors,
        sums.uncached_input,
        sums.cache_write_5m,
        sums.cache_write_1h,
        sums.cache_read,
        sums.output,
        sums.thinking,
        sums.web_searches,
        sums.cost_nanos,
    )


def dims_of(entry: Entry) -> Dims:
    """The cell an entry belongs to, apart from its time."""
    return Dims(
        entry.organization_id,
        entry.team_id,
        entry.key_id,
        entry.model,
        entry.service_tier,
        entry.speed,
        entry.inference_geo,
        entry.certainty.value,
        1 if FLAG_UNPRICED in entry.flags else 0,
        entry.kind,
        entry.source,
    )


def dims_id(dims: Dims) -> int:
    """A 63-bit number made from the dimensions: the same everywhere, so that nobody has to ask a database for it first."""
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(dims), digest_size=8).digest()) >> 1


def failed(entry: Entry) -> bool:
    """Whether the attempt ended in an error: refused, an error in the stream, or no answer although the client waited for one."""
    return entry.status >= 400 or bool(entry.error_type) or (entry.status == 0 and entry.cut != "client")


def amounts(entry: Entry) -> tuple[int, ...]:
    """What an entry adds to its cell, in the order of `SUM_NAMES`. An adjustment counts no request of its own, unless it moves the attempt."""
    requests = 1
    if entry.kind == KIND_ADJUSTMENT:
        requests = _moved(entry)
    usage = entry.usage
    return (
        requests,
        requests if requests and failed(entry) else 0,
        usage.uncached_input,
        usage.cache_write_5m,
        usage.cache_write_1h,
        usage.cache_read,
        usage.output,
        usage.thinking,
        usage.web_searches,
        entry.cost_nanos,
    )


def accumulate(entries: Iterable[Entry]) -> tuple[dict[tuple[Micros, Dims], tuple[int, ...]], dict[tuple[Micros, Dims], tuple[int, ...]]]:
    """The cells of both grains, 15 minutes and day, that the entries add up to."""
    quarters: dict[tuple[Micros, Dims], list[int]] = {}
    for entry in entries:
        place = (quarter_start(entry.started_at_us), dims_of(entry))
        sums = quarters.get(place)
        quarters[place] = list(amounts(entry)) if sums is None else list(map(add, sums, amounts(entry)))
    days: dict[tuple[Micros, Dims], list[int]] = {}
    for (bucket_us, dims), sums in quarters.items():
        day = days.setdefault((day_start(bucket_us), dims), [0] * len(sums))
        for index, amount in enumerate(sums):
            day[index] += amount
    return {place: tuple(sums) for place, sums in quarters.items()}, {place: tuple(sums) for place, sums in days.items()}


def compare(grain: Grain, stored: Cells, recomputed: Cells) -> list[Difference]:
    """Every cell in which the two differ, in order of time. A cell of nothing but zeros is equal to none."""
    found = []
    for place in stored.keys() | recomputed.keys():
        mine, theirs = stored.get(place), recomputed.get(place)
        if (mine or _NOTHING) != (theirs or _NOTHING):
            found.append(Difference(grain, place[0], place[1], mine, theirs))
    return sorted(found, key=lambda difference: (difference.bucket_us, msgspec.structs.astuple(difference.dims)))


_NOTHING = values(ZERO)


def _moved(entry: Entry) -> int:
    if FLAG_REVERSAL in entry.flags:
        return -1
    return 1 if FLAG_REBOOKING in entry.flags else 0
