"""What was used, for those who count beside the ledger: rollups by the ids of their dimensions, and entries where the rollups are too coarse.

The rule it protects: what is summed here counts as the rollups count it (`ledger.rollups.amounts`); of entries only what the gateway itself metered. A
question about few keys reads a few cells, one about all keys reads each cell once. Change with it: `ledger/rollups.py`, `metering/seeding.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, Table, and_, case, cast, func, literal, or_, select

from tokenweir.ledger.entries import FLAG_REBOOKING, FLAG_REVERSAL, KIND_ADJUSTMENT, KIND_ATTEMPT
from tokenweir.ledger.rollups import GRAIN_US, SUM_NAMES, Grain, Sums
from tokenweir.ledger.sources import GATEWAY
from tokenweir.ledger_ports import Cell, Use
from tokenweir.periods import QUARTER_US, Micros
from tokenweir.storage.entry_rows import IDS_PER_QUERY
from tokenweir.storage.schema import ENTRIES

_E: Final = ENTRIES.c
_ROWS_PER_FETCH: Final = 5_000
SEEKS_MAX: Final = 20_000
"""Up to so many cells are looked up one by one; for more, all cells of the span are read."""
_COUNTS: Final = tuple(name for name in SUM_NAMES if name not in ("requests", "errors"))
_REQUESTS: Final = case(
    (_E.kind == KIND_ATTEMPT, 1),
    (_E.flags.contains(f'"{FLAG_REVERSAL}"'), -1),
    (_E.flags.contains(f'"{FLAG_REBOOKING}"'), 1),
    else_=0,
)
"""As `rollups.amounts` counts requests; errors are no limit's concern and are left out."""
_USES: Final = select(
    _E.entry_id,
    _E.started_at_us,
    _E.ended_at_us,
    _E.organization_id,
    _E.team_id,
    _E.key_id,
    _E.model,
    _E.session_id,
    _REQUESTS,
    *[_E[name] for name in _COUNTS],
).where(_E.source == literal(GATEWAY, literal_execute=True))
_WHO: Final = (_E.organization_id, _E.team_id, _E.key_id, _E.model, _E.session_id)


def sums_of(
    connection: Connection, rollups: Mapping[Grain, Table], spans: Sequence[tuple[Grain, Micros, Micros]], dims_ids: Sequence[int], *, buckets: bool
) -> Iterator[tuple[Micros, int, Sums]]:
    """Cells of these dimensions over the spans."""
    wanted = set(dims_ids)
    for grain, since_us, until_us in spans if wanted else ():
        rollup, step_us = rollups[grain], GRAIN_US[grain]
        # Numbers that are too large for the database's own sums fail there: 2^63 nano-USD are nine billion dollars.
        sums = [cast(func.sum(rollup.c[name]), BigInteger) for name in SUM_NAMES]
        bucket = rollup.c.bucket_us if buckets else literal(0)
        query = select(bucket.label("at"), rollup.c.dims_id, *sums).group_by("at", rollup.c.dims_id)
        starts = range(-(-since_us // step_us) * step_us, until_us, step_us)
        if len(starts) * len(wanted) <= SEEKS_MAX:
            for some in _slices(dims_ids):
                for times in _slices(starts):
                    for row in connection.execute(query.where(rollup.c.bucket_us.in_(times), rollup.c.dims_id.in_(some))):
                        yield row[0], row[1], Sums(*row[2:])
        else:
            whole = query.where(rollup.c.bucket_us >= since_us, rollup.c.bucket_us < until_us)
            for rows in connection.execute(whole).partitions(_ROWS_PER_FETCH):
                yield from ((row[0], row[1], Sums(*row[2:])) for row in rows if row[1] in wanted)


def _slices(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), IDS_PER_QUERY):
        yield values[start : start + IDS_PER_QUERY]


def uses(connection: Connection, since_us: Micros, until_us: Micros, only: Mapping[str, Sequence[str]]) -> Iterator[Use]:
    """What each entry used that began in [since, until)."""
    query = _USES.where(_E.started_at_us >= since_us, _E.started_at_us < until_us)
    for name, accepted in only.items():
        query = query.where(_E[name].in_(list(accepted)))
    return map(use_of_row, connection.execute(query).yield_per(_ROWS_PER_FETCH))


def adjustments(connection: Connection, made_since_us: Micros) -> list[Use]:
    """What adjustments changed that were made at that moment or later, whenever their attempts began."""
    made = (_E.kind == literal(KIND_ADJUSTMENT, literal_execute=True)) & (_E.ended_at_us >= made_since_us)
    return [use_of_row(row) for row in connection.execute(_USES.where(made))]


def use_of_row(row: Sequence[Any]) -> Use:
    """A row of the columns above."""
    return Use(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], Sums(row[8], 0, *row[9:]))


def session_sums(connection: Connection, since_us: Micros, until_us: Micros, sessions: Sequence[str], *, buckets: bool) -> list[Cell]:
    """What the sessions used; a session is named by its id, or by its key if it has none."""
    quarter = (_E.started_at_us - _E.started_at_us % QUARTER_US) if buckets else literal(0)
    sums = [func.sum(_REQUESTS), *[func.sum(_E[name]) for name in _COUNTS]]
    query = (
        select(quarter.label("bucket_us"), *_WHO, *sums)
        .where(_E.source == literal(GATEWAY, literal_execute=True), _E.started_at_us >= since_us, _E.started_at_us < until_us)
        .group_by("bucket_us", *_WHO)
    )
    cells = []
    for start in range(0, len(sessions), IDS_PER_QUERY):
        some = sessions[start : start + IDS_PER_QUERY]
        named = or_(_E.session_id.in_(some), and_(_E.session_id == "", _E.key_id.in_(some)))
        cells += [Cell(row[0], tuple(row[1:6]), Sums(int(row[6]), 0, *map(int, row[7:]))) for row in connection.execute(query.where(named))]
    return cells
