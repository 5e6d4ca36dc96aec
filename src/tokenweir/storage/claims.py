"""What other sources tell of calls, in SQL: loads what `ledger/sources.py` needs to decide, and stores what it decided.

The rules it protects: everything happens in the transaction of the booking and in the writer's turn, so two who tell of one call at once are heard one
after the other; a batch costs a handful of queries however large it is; as long as nothing was ever imported, the gateway's own booking pays one look at
an empty table. Change with it: `ledger/sources.py`, `schema.py` (CALL_NAMES and the indexes of entries).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, and_, literal, select, update

from tokenweir.ledger.entries import KIND_ADJUSTMENT, KIND_ATTEMPT, Entry
from tokenweir.ledger.sources import GATEWAY, Booked, Calls, names_of
from tokenweir.periods import Micros
from tokenweir.storage.entry_rows import IDS_PER_QUERY, SELECT, entry_of
from tokenweir.storage.schema import CALL_NAMES, ENTRIES

Upsert: TypeAlias = Callable[..., Any]

_METERED_NAMES: Final = {"message": ("message_id",), "request": ("request_id", "upstream_request_id")}
_IS_ATTEMPT: Final = ENTRIES.c.kind == literal(KIND_ATTEMPT, literal_execute=True)
_IS_ADJUSTMENT: Final = ENTRIES.c.kind == literal(KIND_ADJUSTMENT, literal_execute=True)
# Written out, not bound: only then may a database use the partial indexes.
_IS_METERED: Final = and_(ENTRIES.c.source == literal(GATEWAY, literal_execute=True), _IS_ATTEMPT)
_IS_TOLD: Final = and_(ENTRIES.c.dedup_key != literal("", literal_execute=True), _IS_ATTEMPT)


def settle(connection: Connection, upsert: Upsert, told: Sequence[Entry], *, now_us: Micros) -> tuple[list[Entry], Booked]:
    """Decide on the records of a batch; returns what is to be booked and stores the names that were learned."""
    names = list(dict.fromkeys(name for entry in told for name in names_of(entry)))
    known = _named(connection, names) | _metered(connection, names)
    attempt_ids = set(known.values()) | _own_attempts(connection, told)
    calls = Calls(known, _load(connection, attempt_ids), now_us=now_us)
    outcomes = [calls.take(entry) for entry in told]
    _store_names(connection, upsert, calls)
    return calls.entries, Booked(*(outcomes.count(outcome) for outcome in ("new", "grown", "replaced", "matched")))


def taken_back_by(connection: Connection, upsert: Upsert, booked: Sequence[Entry]) -> list[Entry]:
    """What has to be taken back because the gateway metered these attempts itself; they are being booked in the same transaction."""
    seen = [entry for entry in booked if entry.source == GATEWAY and entry.kind == KIND_ATTEMPT]
    if not seen or connection.execute(select(CALL_NAMES.c.name).limit(1)).first() is None:
        return []
    known = _named(connection, list(dict.fromkeys(name for entry in seen for name in names_of(entry))))
    if not known:
        return []
    calls = Calls(known, _load(connection, set(known.values())), now_us=max(entry.ended_at_us for entry in seen))
    for entry in seen:
        calls.take_gateway(entry)
    _store_names(connection, upsert, calls)
    return calls.entries


def _named(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """The attempts that stand for calls of these names, as far as they were ever imported."""
    found: dict[str, str] = {}
    for some in _portions(names):
        found.update((row.name, row.attempt_id) for row in connection.execute(select(CALL_NAMES).where(CALL_NAMES.c.name.in_(some))))
    return found


def _metered(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """The same for what the gateway metered."""
    found: dict[str, str] = {}
    for kind, columns in _METERED_NAMES.items():
        ids = [name.removeprefix(f"{kind}:") for name in names if name.startswith(f"{kind}:")]
        for column in columns:
            for some in _portions(ids):
                query = select(ENTRIES.c[column], ENTRIES.c.entry_id).where(ENTRIES.c[column].in_(some), _IS_METERED)
                found.update((f"{kind}:{row[0]}", row[1]) for row in connection.execute(query))
    return found


def _own_attempts(connection: Connection, told: Sequence[Entry]) -> set[str]:
    """Attempts that were booked for these very records before, whether they still stand or not."""
    found: set[str] = set()
    for source in dict.fromkeys(entry.source for entry in told):
        for some in _portions([entry.dedup_key for entry in told if entry.source == source]):
            query = select(ENTRIES.c.entry_id).where(ENTRIES.c.source == source, ENTRIES.c.dedup_key.in_(some), _IS_TOLD)
            found.update(connection.execute(query).scalars())
    return found


def _load(connection: Connection, attempt_ids: Iterable[str]) -> Iterator[list[Entry]]:
    """The entries of each attempt, its own first."""
    for some in _portions(sorted(attempt_ids)):
        entries: dict[str, list[Entry]] = {attempt_id: [] for attempt_id in some}
        for row in connection.execute(SELECT.where(ENTRIES.c.entry_id.in_(some))):
            entry = entry_of(row)
            entries[entry.attempt_id].insert(0, entry)
        for row in connection.execute(SELECT.where(ENTRIES.c.attempt_id.in_(some), _IS_ADJUSTMENT)):
            entry = entry_of(row)
            entries[entry.attempt_id].append(entry)
        yield from (found for found in entries.values() if found)


def _store_names(connection: Connection, upsert: Upsert, calls: Calls) -> None:
    learned = calls.names
    if learned:
        insert = upsert(CALL_NAMES)
        rows = [{"name": name, "attempt_id": attempt_id} for name, attempt_id in learned.items()]
        connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"attempt_id": insert.excluded.attempt_id}), rows)
    for loser in calls.merged:
        connection.execute(update(CALL_NAMES).where(CALL_NAMES.c.attempt_id == loser).values(attempt_id=calls.stands_for(loser)))


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), IDS_PER_QUERY):
        yield ids[start : start + IDS_PER_QUERY]
