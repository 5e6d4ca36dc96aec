"""The ledger in SQL: entries, rollups and checkpoints, the same code for SQLite and PostgreSQL.

The rules it protects: entries are inserted and never changed or deleted; an entry, what it adds to the rollups, and the checkpoint behind it become
true in one transaction, and only what was really new is added. Writers take their turn, by SQLite's write lock or by an advisory lock, so "was it there
already" has one answer. Change with it: `schema.py`, `ledger/rollups.py`, and the conformance suite in tests/storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, Select, Table, and_, func, literal, or_, select, text, union_all
from sqlalchemy.dialects import postgresql, sqlite

from tokenweir.ledger.entries import KIND_ATTEMPT, Entry
from tokenweir.ledger.rollups import DIM_NAMES, SUM_NAMES, Dims, Grain, Sums, accumulate, dims_id
from tokenweir.ledger.sources import GATEWAY, Booked, fullest
from tokenweir.ledger_ports import Cell, Checkpoint, ImportProgress, LedgerSnapshot, Names, ProviderReport, Use
from tokenweir.periods import DAY_US, Micros
from tokenweir.storage import claims, imports, use_sums
from tokenweir.storage.engine import reading, writing
from tokenweir.storage.entry_rows import COLUMNS, IDS_PER_QUERY, SELECT, as_json, entry_of, row_of, storable
from tokenweir.storage.schema import DIMS, ENTRIES, JOURNAL_CHECKPOINTS, KEYS, ORGANIZATIONS, ROLLUP_15M, ROLLUP_DAY, TEAMS

ROLLUPS: Final[dict[Grain, Table]] = {"15m": ROLLUP_15M, "day": ROLLUP_DAY}
_ROWS_PER_FETCH: Final = 2_000
_LEDGER_LOCK: Final = 0x746F6B656E02


class SqlLedger:
    """The ledger port over an engine."""

    __slots__ = ("_engine", "_insert", "_upsert")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._upsert: Callable[..., Any] = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        mark = "?" if engine.dialect.name == "sqlite" else "%s"
        # SQLAlchemy's own executemany costs more per row than the whole booking; the names come from the schema.
        self._insert = f"INSERT INTO {ENTRIES.name} ({', '.join(COLUMNS)}) VALUES ({', '.join([mark] * len(COLUMNS))})"  # noqa: S608

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def checkpoints(self) -> dict[str, Checkpoint]:
        """The checkpoint of each journal writer that has been read."""
        with reading(self._engine) as connection:
            return {row.writer: Checkpoint(row.writer, row.segment, row.byte_offset) for row in connection.execute(select(JOURNAL_CHECKPOINTS))}

    def book(self, entries: Sequence[Entry], checkpoints: Sequence[Checkpoint] = ()) -> int:
        """Insert the entries that are new, add them to the rollups, move the checkpoints; returns how many were new."""
        once = {entry.entry_id: entry for entry in reversed(entries)}  # the first of two with the same id counts, as in a replay
        with writing(self._engine) as connection:
            self._take_turn(connection)
            there = _known(connection, list(once))
            new = [storable(entry) for entry_id, entry in sorted(once.items()) if entry_id not in there]
            self._append(connection, [*new, *claims.taken_back_by(connection, self._upsert, new)])
            self._move(connection, checkpoints)
        return len(new)

    def book_told(self, told: Sequence[Entry], *, now_us: Micros, progress: ImportProgress | None = None) -> Booked:
        """Book what other sources tell of calls, each call once whoever tells of it, and store the progress with it."""
        records = fullest(map(storable, told))
        with writing(self._engine) as connection:
            self._take_turn(connection)
            entries, booked = claims.settle(connection, self._upsert, records, now_us=now_us)
            self._append(connection, entries)
            if progress is not None:
                imports.store_progress(connection, self._upsert, replace(progress, booked=progress.booked + booked))
        return booked

    def progress_of(self, source: str, places: Sequence[str] | None = None) -> list[ImportProgress]:
        """How far the files of a source have been booked; all of them, or those at the places asked for. An empty source means every one."""
        with reading(self._engine) as connection:
            return imports.progress_of(connection, source, places)

    def keep_reports(self, reports: Sequence[ProviderReport]) -> int:
        """Keep pages of the provider's reports; returns how many were not there yet."""
        with writing(self._engine) as connection:
            return imports.keep_reports(connection, self._upsert, reports)

    def reports(self, kind: str = "") -> list[ProviderReport]:
        """The kept pages of a kind (all if empty), in order of time."""
        with reading(self._engine) as connection:
            return imports.reports(connection, kind)

    def forget_checkpoints(self, writers: Sequence[str]) -> None:
        """Drop the checkpoints of writers whose journal is booked and gone."""
        with writing(self._engine) as connection:
            connection.execute(JOURNAL_CHECKPOINTS.delete().where(JOURNAL_CHECKPOINTS.c.writer.in_(writers)))

    def known(self, entry_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are in the ledger."""
        with reading(self._engine) as connection:
            return _known(connection, entry_ids)

    def entries_of(self, attempt_id: str) -> list[Entry]:
        """The entry of an attempt and its adjustments, in the order they were made; none if the attempt is not in the ledger."""
        mine = or_(
            ENTRIES.c.entry_id == attempt_id, and_(ENTRIES.c.attempt_id == attempt_id, ENTRIES.c.kind == literal("adjustment", literal_execute=True))
        )
        with reading(self._engine) as connection:
            found = [entry_of(row) for row in connection.execute(SELECT.where(mine))]
        return sorted(found, key=lambda entry: (entry.kind != "attempt", entry.ended_at_us, entry.entry_id))

    def attempts_of(self, request_ids: Sequence[str]) -> list[Entry]:
        """The attempts that the gateway metered for these requests, without adjustments."""
        metered = and_(ENTRIES.c.source == literal(GATEWAY, literal_execute=True), ENTRIES.c.kind == literal(KIND_ATTEMPT, literal_execute=True))
        found: list[Entry] = []
        with reading(self._engine) as connection:
            for start in range(0, len(request_ids), IDS_PER_QUERY):
                mine = ENTRIES.c.request_id.in_(request_ids[start : start + IDS_PER_QUERY])
                found += map(entry_of, connection.execute(SELECT.where(metered, mine)))
        return found

    def page(self, *, after: str = "", limit: int = 1000) -> list[Entry]:
        """The next entries in order of `entry_id`, after the given one."""
        with reading(self._engine) as connection:
            query = SELECT.where(ENTRIES.c.entry_id > after).order_by(ENTRIES.c.entry_id).limit(limit)
            return [entry_of(row) for row in connection.execute(query)]

    def extent(self) -> tuple[Micros, Micros] | None:
        """From the start of the first to the end of the last UTC day that has entries; None if there are none."""
        with reading(self._engine) as connection:
            first, last = connection.execute(select(func.min(ROLLUP_DAY.c.bucket_us), func.max(ROLLUP_DAY.c.bucket_us))).one()
        return None if first is None else (first, last + DAY_US)

    def sums(
        self,
        spans: Sequence[tuple[Grain, Micros, Micros]],
        *,
        by: Sequence[str] = (),
        only: Mapping[str, Sequence[str]] | None = None,
        buckets: bool = False,
    ) -> list[Cell]:
        """Rollups over the spans at their grain, added up by dimensions and, with `buckets`, by bucket."""
        if not spans:
            return []
        queries = [self._span(ROLLUPS[grain], since_us, until_us, by, only or {}, buckets) for grain, since_us, until_us in spans]
        cells: dict[tuple[Micros, tuple[str, ...]], list[int]] = {}
        with reading(self._engine) as connection:
            for row in connection.execute(union_all(*queries) if len(queries) > 1 else queries[0]):
                place = (row[0], tuple(map(str, row[1 : 1 + len(by)])))
                sums = cells.setdefault(place, [0] * len(SUM_NAMES))
                for index, amount in enumerate(row[1 + len(by) :]):
                    sums[index] += int(amount)
        return [Cell(bucket_us, group, Sums(*sums)) for (bucket_us, group), sums in sorted(cells.items())]

    def snapshot(self) -> AbstractContextManager[LedgerSnapshot]:
        """One consistent view of everything, read as a stream."""
        return _snapshot(self._engine)

    def _span(
        self, rollup: Table, since_us: Micros, until_us: Micros, by: Sequence[str], only: Mapping[str, Sequence[str]], buckets: bool
    ) -> Select[Any]:
        groups = [DIMS.c[_dim(name)] for name in by]
        bucket = rollup.c.bucket_us if buckets else literal(0).label("bucket_us")
        query = select(bucket, *groups, *[func.sum(rollup.c[name]) for name in SUM_NAMES]).where(
            rollup.c.bucket_us >= since_us, rollup.c.bucket_us < until_us
        )
        if groups or only:
            query = query.join_from(rollup, DIMS, DIMS.c.dims_id == rollup.c.dims_id)
        for name, accepted in only.items():
            query = query.where(DIMS.c[_dim(name)].in_([int(value) for value in accepted] if name == "unpriced" else list(accepted)))
        keys = [*([rollup.c.bucket_us] if buckets else []), *groups]
        return query.group_by(*keys) if keys else query.having(func.count() > 0)

    def _append(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """Insert the entries and add them to the rollups."""
        if not entries:
            return
        connection.exec_driver_sql(self._insert, [row_of(entry) for entry in entries])
        for grain, cells in zip(ROLLUPS, accumulate(entries), strict=True):
            self._add(connection, ROLLUPS[grain], cells)

    def _take_turn(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LEDGER_LOCK})

    def _add(self, connection: Connection, rollup: Table, cells: Mapping[tuple[Micros, Dims], tuple[int, ...]]) -> None:
        """Add the cells to those that are stored."""
        ids = {dims: dims_id(dims) for _, dims in cells}
        dims_rows = [{"dims_id": number, **dict(zip(DIM_NAMES, msgspec.structs.astuple(dims), strict=True))} for dims, number in ids.items()]
        connection.execute(self._upsert(DIMS).on_conflict_do_nothing(), dims_rows)
        insert = self._upsert(rollup)
        added = {name: rollup.c[name] + insert.excluded[name] for name in SUM_NAMES}
        rows = [
            {"bucket_us": bucket_us, "dims_id": ids[dims], **dict(zip(SUM_NAMES, sums, strict=True))} for (bucket_us, dims), sums in cells.items()
        ]
        connection.execute(insert.on_conflict_do_update(index_elements=["bucket_us", "dims_id"], set_=added), rows)

    def _move(self, connection: Connection, checkpoints: Sequence[Checkpoint]) -> None:
        if not checkpoints:
            return
        insert = self._upsert(JOURNAL_CHECKPOINTS)
        moved = {"segment": insert.excluded.segment, "byte_offset": insert.excluded.byte_offset}
        rows = [{"writer": c.writer, "segment": c.segment, "byte_offset": c.offset} for c in checkpoints]
        connection.execute(insert.on_conflict_do_update(index_elements=["writer"], set_=moved), rows)


class _Snapshot:
    """The ledger as one transaction sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def entries(self, *, after: str = "", since_us: Micros | None = None, until_us: Micros | None = None, flag: str = "") -> Iterator[Entry]:
        """Entries in order of `entry_id`, page by page: the transaction keeps the pages consistent, and no page stays open behind the next."""
        query = SELECT.order_by(ENTRIES.c.entry_id).limit(_ROWS_PER_FETCH)
        if since_us is not None:
            query = query.where(ENTRIES.c.started_at_us >= since_us)
        if until_us is not None:
            query = query.where(ENTRIES.c.started_at_us < until_us)
        if flag:
            query = query.where(ENTRIES.c.flags != literal("[]", literal_execute=True), ENTRIES.c.flags.contains(_as_held(flag), autoescape=True))
        while True:
            rows = self._connection.execute(query.where(ENTRIES.c.entry_id > after)).all()
            yield from map(entry_of, rows)
            if len(rows) < _ROWS_PER_FETCH:
                return
            after = rows[-1].entry_id

    def cells(self, grain: Grain) -> Iterator[tuple[Micros, int, Dims | None, tuple[int, ...]]]:
        """All cells of a rollup: bucket, id of the dimensions, the dimensions (None if they are not there), sums."""
        known = {
            row.dims_id: Dims(*(row._mapping[name] for name in DIM_NAMES))  # noqa: SLF001 - SQLAlchemy's public name
            for row in self._connection.execute(select(DIMS))
        }
        rollup = ROLLUPS[grain]
        columns = [rollup.c.bucket_us, rollup.c.dims_id, *[rollup.c[name] for name in SUM_NAMES]]
        for bucket_us, number, *sums in self._connection.execute(select(*columns)):
            yield bucket_us, number, known.get(number), tuple(sums)

    def names(self) -> Names:
        """The names of organizations, teams and keys."""

        def by_id(query: Select[Any]) -> dict[str, str]:
            return {row[0]: row[1] for row in self._connection.execute(query)}

        return Names(
            organizations=by_id(select(ORGANIZATIONS.c.organization_id, ORGANIZATIONS.c.name)),
            teams=by_id(select(TEAMS.c.team_id, TEAMS.c.name)),
            keys=by_id(select(KEYS.c.key_id, KEYS.c.name)),
        )

    def known(self, entry_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are in the ledger."""
        return _known(self._connection, entry_ids)

    def dims(self, only: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, str, str, str, str]]:
        """What cells are told apart by: id of the dimensions, organization, team, key, model; `only` names dimensions and the values asked for."""
        query = select(DIMS.c.dims_id, DIMS.c.organization_id, DIMS.c.team_id, DIMS.c.key_id, DIMS.c.model)
        for name, accepted in only.items():
            query = query.where(DIMS.c[_dim(name)].in_(list(accepted)))
        for rows in self._connection.execute(query).partitions(_ROWS_PER_FETCH):
            yield from ((row[0], row[1], row[2], row[3], row[4]) for row in rows)

    def sums_of(
        self, spans: Sequence[tuple[Grain, Micros, Micros]], dims_ids: Sequence[int], *, buckets: bool = False
    ) -> Iterator[tuple[Micros, int, Sums]]:
        """Rollups of these dimensions over the spans, added up within each span by dimensions and, with `buckets`, by bucket (else 0)."""
        return use_sums.sums_of(self._connection, ROLLUPS, spans, dims_ids, buckets=buckets)

    def uses(self, since_us: Micros, until_us: Micros, *, only: Mapping[str, Sequence[str]] | None = None) -> Iterator[Use]:
        """What each attempt and adjustment of the gateway's own used that began in [since, until)."""
        return use_sums.uses(self._connection, since_us, until_us, only or {})

    def adjustments(self, made_since_us: Micros) -> list[Use]:
        """What adjustments of the gateway's own attempts changed that were made at that moment or later, whenever the attempts began."""
        return use_sums.adjustments(self._connection, made_since_us)

    def session_sums(self, since_us: Micros, until_us: Micros, sessions: Sequence[str], *, buckets: bool = False) -> list[Cell]:
        """Entries of the gateway's own that began in [since, until), by organization, team, key, model and session; with `buckets`, by quarter as well."""
        return use_sums.session_sums(self._connection, since_us, until_us, sessions, buckets=buckets)


@contextmanager
def _snapshot(engine: Engine) -> Iterator[LedgerSnapshot]:
    with reading(engine) as connection:
        yield _Snapshot(connection)


def _known(connection: Connection, entry_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(entry_ids), IDS_PER_QUERY):
        found.update(connection.execute(select(ENTRIES.c.entry_id).where(ENTRIES.c.entry_id.in_(entry_ids[start : start + IDS_PER_QUERY]))).scalars())
    return found


def _dim(name: str) -> str:
    if name not in DIM_NAMES:
        raise ValueError(f"{name!r} is not a dimension; there are {', '.join(DIM_NAMES)}")
    return name


def _as_held(flag: str) -> str:
    """A flag as the column holds it; one that ends in a colon stands for all that begin with it."""
    text = as_json([flag])[1:-1]
    return text.removesuffix('"') if flag.endswith(":") else text
