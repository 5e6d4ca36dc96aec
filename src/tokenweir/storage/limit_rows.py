"""Rows of limits, grants and requests as values and back, and the questions that read them.

The rule it protects: a limit is read back exactly as it was put in; the columns beside its content are only for finding it. What a gateway asks for
again and again (`changed_limits`) goes by the index of revisions. Change with it: `storage/schema.py`, `limits/limit.py`, `limit_ports.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Column, ColumnElement, Connection, Select, select

from tokenweir.limit_ports import Comment, IncreaseRequest, LimitRecord
from tokenweir.limits.limit import Grant, Limit
from tokenweir.storage.schema import GRANTS, KEYS, LIMIT_REQUEST_COMMENTS, LIMIT_REQUESTS, LIMITS, ORGANIZATIONS, TEAMS

AT_ONCE: Final = 500
"""Most ids in one question: both databases bound the number of parameters."""

RECORDS: Final = (
    select(
        LIMITS.c.content,
        LIMITS.c.removed_at_us,
        LIMITS.c.limit_id,
        ORGANIZATIONS.c.name.label("organization"),
        TEAMS.c.name.label("team"),
        KEYS.c.name.label("key"),
    )
    .outerjoin(ORGANIZATIONS, ORGANIZATIONS.c.organization_id == LIMITS.c.organization_id)
    .outerjoin(TEAMS, TEAMS.c.team_id == LIMITS.c.team_id)
    .outerjoin(KEYS, KEYS.c.key_id == LIMITS.c.key_id)
)
_ALL_GRANTS: Final = select(GRANTS).order_by(GRANTS.c.created_at_us, GRANTS.c.grant_id)
_LIVE_GRANTS: Final = _ALL_GRANTS.where(GRANTS.c.voided_at_us.is_(None))
_decode: Final[Callable[[str], Limit]] = msgspec.json.Decoder(Limit).decode


def changed_limits(connection: Connection, revision: int) -> tuple[LimitRecord, ...]:
    """Limits that were set, given grants or removed after the revision. At a first reading (0) those that are removed are left out."""
    newer = LIMITS.c.revision > revision if revision else LIMITS.c.removed_at_us.is_(None)
    return tuple(limit_records(connection, newer))


def limit_records(connection: Connection, which: ColumnElement[bool]) -> list[LimitRecord]:
    """The limits that the condition on LIMITS chooses, with all their grants (what a voided one burned stays covered), in order of creation."""
    grants: dict[str, list[Grant]] = defaultdict(list)
    for row in connection.execute(_ALL_GRANTS.where(GRANTS.c.limit_id.in_(select(LIMITS.c.limit_id).where(which)))):
        grants[row.limit_id].append(grant_of(row))
    asked = RECORDS.where(which).order_by(LIMITS.c.created_at_us, LIMITS.c.limit_id)
    return [
        LimitRecord(
            limit=_decode(row.content),
            organization=row.organization or "",
            team=row.team or "",
            key=row.key or "",
            grants=tuple(grants.get(row.limit_id, ())),
            removed_at_us=row.removed_at_us,
        )
        for row in connection.execute(asked)
    ]


def stored_limits(connection: Connection, limit_ids: Sequence[str]) -> dict[str, tuple[Limit, int | None]]:
    """Those of the ids that are there, each with when it was removed."""
    asked = select(LIMITS.c.limit_id, LIMITS.c.content, LIMITS.c.removed_at_us)
    rows = _of_ids(connection, asked, LIMITS.c.limit_id, limit_ids)
    return {row.limit_id: (_decode(row.content), row.removed_at_us) for row in rows}


def live_grants(connection: Connection, limit_ids: Sequence[str]) -> list[Grant]:
    """The grants of those limits that are not voided."""
    return [grant_of(row) for row in _of_ids(connection, _LIVE_GRANTS, GRANTS.c.limit_id, limit_ids)]


def pending_requests(connection: Connection, limit_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Request and limit of each request that waits for a decision."""
    asked = select(LIMIT_REQUESTS.c.request_id, LIMIT_REQUESTS.c.limit_id).where(LIMIT_REQUESTS.c.state == "pending")
    return [(row.request_id, row.limit_id) for row in _of_ids(connection, asked, LIMIT_REQUESTS.c.limit_id, limit_ids)]


def requests_where(connection: Connection, which: ColumnElement[bool]) -> list[IncreaseRequest]:
    """The requests that the condition chooses, with their comments, in order of creation."""
    comments: dict[str, list[Comment]] = defaultdict(list)
    chosen = select(LIMIT_REQUESTS.c.request_id).where(which)
    said = select(LIMIT_REQUEST_COMMENTS).where(LIMIT_REQUEST_COMMENTS.c.request_id.in_(chosen)).order_by(LIMIT_REQUEST_COMMENTS.c.number)
    for row in connection.execute(said):
        comments[row.request_id].append(Comment(row.at_us, row.said_by, row.content))
    asked = select(LIMIT_REQUESTS).where(which).order_by(LIMIT_REQUESTS.c.created_at_us, LIMIT_REQUESTS.c.request_id)
    return [_request_of(row, tuple(comments.get(row.request_id, ()))) for row in connection.execute(asked)]


def row_of_limit(limit: Limit) -> dict[str, Any]:
    """All columns but the revision and the removal."""
    return {
        "limit_id": limit.limit_id,
        "organization_id": limit.scope.organization_id,
        "team_id": limit.scope.team_id,
        "key_id": limit.scope.key_id,
        "name": limit.name,
        "content": msgspec.json.encode(limit).decode(),
        "created_at_us": limit.created_at_us,
    }


def row_of_grant(grant: Grant) -> dict[str, Any]:
    """All columns: they are the fields of the value."""
    return msgspec.structs.asdict(grant)


def row_of_request(request: IncreaseRequest) -> dict[str, Any]:
    """All columns; comments have rows of their own."""
    return {name: value for name, value in msgspec.structs.asdict(request).items() if name != "comments"}


def grant_of(row: Any) -> Grant:
    """A row of GRANTS."""
    return Grant(**row._mapping)  # noqa: SLF001 - SQLAlchemy's own name for the row as a mapping


def _request_of(row: Any, comments: tuple[Comment, ...]) -> IncreaseRequest:
    return IncreaseRequest(**row._mapping, comments=comments)  # noqa: SLF001 - same


def _of_ids(connection: Connection, asked: Select[Any], column: Column[str], ids: Sequence[str]) -> Iterable[Any]:
    for start in range(0, len(ids), AT_ONCE):
        yield from connection.execute(asked.where(column.in_(ids[start : start + AT_ONCE])))
