"""The directory of limits in SQL: what was set, what was granted on top, who asked for more, and the audit of all of it.

The rules it protects: a change is one transaction with its audit records (`storage/changes.py`), all of it or nothing; what a limit counts never
changes under its id, because its buckets would go on with use of something else: such a limit is removed and set anew, and the one that takes its
name is its heir, to whom its grants and open requests go over. A removed limit stays as a row, with its history. Change with it:
`storage/limit_rows.py`, `storage/schema.py`, `limit_ports.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, bindparam, func, insert, select, true, update

from tokenweir.errors import Conflict, NotFound
from tokenweir.limit_ports import Comment, IncreaseRequest, LimitRecord, RequestState
from tokenweir.limits.identity import counts_the_same
from tokenweir.limits.limit import Grant, Limit
from tokenweir.periods import Micros, format_instant
from tokenweir.storage.changes import Audited, changing
from tokenweir.storage.engine import reading
from tokenweir.storage.limit_rows import (
    AT_ONCE,
    grant_of,
    limit_records,
    live_grants,
    pending_requests,
    requests_where,
    row_of_grant,
    row_of_limit,
    row_of_request,
    stored_limits,
)
from tokenweir.storage.schema import GRANTS, LIMIT_REQUEST_COMMENTS, LIMIT_REQUESTS, LIMITS


class SqlLimitDirectory:
    """Limits, grants and requests for more on SQLite or PostgreSQL."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    # Limits.

    def limits(
        self, *, removed: bool = False, named: str = "", organization_id: str = "", team_id: str | None = None, key_id: str | None = None
    ) -> list[LimitRecord]:
        """Limits in order of creation; `named` is an id or a name, an empty team or key asks for limits of nobody in particular."""
        which: ColumnElement[bool] = true() if removed else LIMITS.c.removed_at_us.is_(None)
        if named:
            which &= (LIMITS.c.limit_id == named) | (LIMITS.c.name == named)
        if organization_id:
            which &= LIMITS.c.organization_id == organization_id
        if team_id is not None:
            which &= LIMITS.c.team_id == team_id
        if key_id is not None:
            which &= LIMITS.c.key_id == key_id
        with reading(self._engine) as connection:
            return limit_records(connection, which)

    def put_limits(self, limits: Sequence[Limit], *, removed: Sequence[str] = (), actor: str, now_us: Micros) -> None:
        """Insert limits, or replace those of the same id, and take away others, all or nothing. Those that are the same already change nothing.

        Conflict for a name that another limit has, and for a limit that would count something else than before under its id.
        """
        with reading(self._engine) as connection:
            known = stored_limits(connection, [limit.limit_id for limit in limits])
            if not removed and all(known.get(limit.limit_id) == (limit, None) for limit in limits):
                return
        with changing(self._engine, actor, now_us) as (connection, revision, audited):
            known = stored_limits(connection, [limit.limit_id for limit in limits] + list(removed))
            for limit in limits:
                _require_same(limit, known.get(limit.limit_id))
            gone = [known[one][0] for one in dict.fromkeys(removed) if one in known and known[one][1] is None]
            if unknown := [one for one in removed if one not in known]:
                raise _no_limit(unknown[0])
            _remove(connection, gone, revision, now_us, audited)
            changed = [limit for limit in limits if limit.limit_id in known and known[limit.limit_id][0] != limit]
            new = [limit for limit in limits if limit.limit_id not in known]
            _require_free_names(connection, changed + new)
            _change(connection, changed, {one: before for one, (before, _) in known.items()}, revision, audited)
            if new:
                connection.execute(insert(LIMITS), [row_of_limit(limit) | {"revision": revision} for limit in new])
            for limit in new:
                audited("limit.set", limit.limit_id, None, limit)
            _inherit(connection, gone, new, now_us, actor, audited)

    # Grants.

    def add_grant(self, grant: Grant, *, actor: str, now_us: Micros) -> None:
        """Give more room; NotFound if there is no such limit."""
        with changing(self._engine, actor, now_us) as (connection, revision, audited):
            _add_grant(connection, grant, revision, audited)

    def void_grant(self, grant_id: str, *, actor: str, now_us: Micros) -> Grant:
        """End a grant from now on; NotFound if there is none. Voiding twice changes nothing."""
        with reading(self._engine) as connection:
            before = _grant(connection, grant_id)
            if before.voided_at_us is not None:
                return before
        with changing(self._engine, actor, now_us) as (connection, revision, audited):
            before = _grant(connection, grant_id)
            if before.voided_at_us is not None:
                return before
            connection.execute(update(GRANTS).where(GRANTS.c.grant_id == grant_id).values(voided_at_us=now_us))
            _touch(connection, before.limit_id, revision)
            after = msgspec.structs.replace(before, voided_at_us=now_us)
            audited("grant.voided", grant_id, before, after)
            return after

    def grants(self, *, limit_id: str = "", voided: bool = False) -> list[Grant]:
        """Grants in order of creation."""
        asked = select(GRANTS).order_by(GRANTS.c.created_at_us, GRANTS.c.grant_id)
        if limit_id:
            asked = asked.where(GRANTS.c.limit_id == limit_id)
        if not voided:
            asked = asked.where(GRANTS.c.voided_at_us.is_(None))
        with reading(self._engine) as connection:
            return [grant_of(row) for row in connection.execute(asked)]

    # Requests for more.

    def add_request(self, request: IncreaseRequest, *, actor: str) -> None:
        """Ask for more; NotFound if there is no such limit."""
        with changing(self._engine, actor, request.created_at_us) as (connection, _, audited):
            _require_live(connection, request.limit_id)
            connection.execute(insert(LIMIT_REQUESTS).values(row_of_request(request)))
            for number, comment in enumerate(request.comments, 1):
                _say(connection, request.request_id, number, comment)
            audited("request.created", request.request_id, None, request)

    def comment_request(self, request_id: str, comment: Comment, *, actor: str) -> IncreaseRequest:
        """Say something about a request."""
        with changing(self._engine, actor, comment.at_us) as (connection, _, audited):
            before = _request(connection, request_id)
            _say(connection, request_id, len(before.comments) + 1, comment)
            audited("request.commented", request_id, None, comment)
            return msgspec.structs.replace(before, comments=(*before.comments, comment))

    def decide_request(
        self, request_id: str, state: RequestState, *, grant: Grant | None, comment: Comment | None, actor: str, now_us: Micros
    ) -> IncreaseRequest:
        """Approve (with the grant it makes), deny or withdraw a pending request; Conflict if it is decided already."""
        with changing(self._engine, actor, now_us) as (connection, revision, audited):
            before = _request(connection, request_id)
            if before.state != "pending":
                when = format_instant(before.decided_at_us or now_us)
                raise Conflict(f"request {request_id} was {before.state} by {before.decided_by} at {when} and stays so; ask anew")
            if grant is not None:
                _add_grant(connection, grant, revision, audited)
            after = _decide(connection, before, state, grant, comment, actor, now_us)
            audited(f"request.{state}", request_id, before, after)
            return after

    def requests(self, *, limit_id: str = "", state: str = "") -> list[IncreaseRequest]:
        """Requests in order of creation."""
        which: ColumnElement[bool] = true()
        if limit_id:
            which &= LIMIT_REQUESTS.c.limit_id == limit_id
        if state:
            which &= LIMIT_REQUESTS.c.state == state
        with reading(self._engine) as connection:
            return requests_where(connection, which)

    def request(self, request_id: str) -> IncreaseRequest:
        """One request; NotFound if there is none."""
        with reading(self._engine) as connection:
            return _request(connection, request_id)


# Steps of a change.

_REPLACE: Final = (
    update(LIMITS)
    .where(LIMITS.c.limit_id == bindparam("of_id"))
    .values(name=bindparam("to_name"), content=bindparam("to_content"), revision=bindparam("to_revision"))
)
_STEP_ASIDE: Final = update(LIMITS).where(LIMITS.c.limit_id == bindparam("of_id")).values(name=LIMITS.c.limit_id)
_REMOVE: Final = (
    update(LIMITS).where(LIMITS.c.limit_id == bindparam("of_id")).values(removed_at_us=bindparam("at_us"), revision=bindparam("to_revision"))
)
_MOVE_GRANT: Final = update(GRANTS).where(GRANTS.c.grant_id == bindparam("of_id")).values(limit_id=bindparam("to_limit"))
_MOVE_REQUEST: Final = update(LIMIT_REQUESTS).where(LIMIT_REQUESTS.c.request_id == bindparam("of_id")).values(limit_id=bindparam("to_limit"))


def _require_same(limit: Limit, known: tuple[Limit, int | None] | None) -> None:
    if known is None:
        return
    before, removed_at_us = known
    if removed_at_us is not None:
        raise Conflict(f"limit {limit.limit_id} ({before.name}) was removed at {format_instant(removed_at_us)}; set a new one")
    if not counts_the_same(before, limit):
        raise Conflict(
            f"limit {limit.limit_id} ({before.name}) cannot count something else under the same id; remove it and set one with a new id in its place"
        )


def _require_free_names(connection: Connection, limits: Sequence[Limit]) -> None:
    """Raise Conflict if one of the names belongs to another limit, when all of these have theirs."""
    for (organization_id, name), times in Counter((limit.scope.organization_id, limit.name) for limit in limits).items():
        if times > 1:
            raise Conflict(f"{times} limits of {organization_id} would be named {name!r}; give each its own name")
    ours = {limit.limit_id for limit in limits}
    asked = select(LIMITS.c.limit_id, LIMITS.c.organization_id, LIMITS.c.name).where(LIMITS.c.removed_at_us.is_(None))
    wanted = {(limit.scope.organization_id, limit.name) for limit in limits}
    names = sorted({name for _, name in wanted})
    for start in range(0, len(names), AT_ONCE):
        for row in connection.execute(asked.where(LIMITS.c.name.in_(names[start : start + AT_ONCE]))):
            if row.limit_id not in ours and (row.organization_id, row.name) in wanted:
                raise Conflict(f"another limit is named {row.name!r} ({row.limit_id}); change that one, or choose another name")


def _change(connection: Connection, limits: Sequence[Limit], before: dict[str, Limit], revision: int, audited: Audited) -> None:
    if not limits:
        return
    if renamed := [{"of_id": limit.limit_id} for limit in limits if limit.name != before[limit.limit_id].name]:
        connection.execute(_STEP_ASIDE, renamed)  # so that two limits can exchange their names
    for limit in limits:
        row = row_of_limit(limit)
        values = {"of_id": limit.limit_id, "to_name": limit.name, "to_content": row["content"], "to_revision": revision}
        connection.execute(_REPLACE, values)
        audited("limit.changed", limit.limit_id, before[limit.limit_id], limit)


def _remove(connection: Connection, limits: Sequence[Limit], revision: int, now_us: Micros, audited: Audited) -> None:
    if limits:
        connection.execute(_REMOVE, [{"of_id": limit.limit_id, "at_us": now_us, "to_revision": revision} for limit in limits])
    for limit in limits:
        audited("limit.removed", limit.limit_id, limit, None)


def _inherit(connection: Connection, gone: Sequence[Limit], new: Sequence[Limit], now_us: Micros, actor: str, audited: Audited) -> None:
    """What belongs to a limit that was removed goes over to the new one of its name, if amounts mean the same there; requests without heir end."""
    if not gone:
        return
    by_name = {(limit.scope.organization_id, limit.name): limit for limit in new}
    heirs = {
        limit.limit_id: heir.limit_id
        for limit in gone
        if (heir := by_name.get((limit.scope.organization_id, limit.name))) and heir.resource is limit.resource
    }
    if grants := live_grants(connection, list(heirs)):
        connection.execute(_MOVE_GRANT, [{"of_id": grant.grant_id, "to_limit": heirs[grant.limit_id]} for grant in grants])
    for grant in grants:
        audited("grant.moved", grant.grant_id, {"limit_id": grant.limit_id}, {"limit_id": heirs[grant.limit_id]})
    for request_id, limit_id in pending_requests(connection, [limit.limit_id for limit in gone]):
        if heir_id := heirs.get(limit_id):
            connection.execute(_MOVE_REQUEST, {"of_id": request_id, "to_limit": heir_id})
            audited("request.moved", request_id, {"limit_id": limit_id}, {"limit_id": heir_id})
        else:
            before = _request(connection, request_id)
            after = _decide(connection, before, "withdrawn", None, Comment(now_us, actor, "The limit was removed."), actor, now_us)
            audited("request.withdrawn", request_id, before, after)


def _add_grant(connection: Connection, grant: Grant, revision: int, audited: Audited) -> None:
    _require_live(connection, grant.limit_id)
    connection.execute(insert(GRANTS).values(row_of_grant(grant)))
    _touch(connection, grant.limit_id, revision)
    audited("grant.added", grant.grant_id, None, grant)


def _decide(
    connection: Connection, before: IncreaseRequest, state: RequestState, grant: Grant | None, comment: Comment | None, actor: str, now_us: Micros
) -> IncreaseRequest:
    values: dict[str, Any] = {"state": state, "decided_by": actor, "decided_at_us": now_us, "grant_id": "" if grant is None else grant.grant_id}
    connection.execute(update(LIMIT_REQUESTS).where(LIMIT_REQUESTS.c.request_id == before.request_id).values(values))
    if comment is not None:
        _say(connection, before.request_id, len(before.comments) + 1, comment)
    comments = before.comments if comment is None else (*before.comments, comment)
    return msgspec.structs.replace(before, **values, comments=comments)


def _say(connection: Connection, request_id: str, number: int, comment: Comment) -> None:
    values = {"request_id": request_id, "number": number, "at_us": comment.at_us, "said_by": comment.by, "content": comment.text}
    connection.execute(insert(LIMIT_REQUEST_COMMENTS).values(values))


def _touch(connection: Connection, limit_id: str, revision: int) -> None:
    """Let the gateways read the limit again."""
    connection.execute(update(LIMITS).where(LIMITS.c.limit_id == limit_id).values(revision=revision))


def _require_live(connection: Connection, limit_id: str) -> None:
    if not connection.execute(select(func.count()).where(LIMITS.c.limit_id == limit_id, LIMITS.c.removed_at_us.is_(None))).scalar_one():
        raise _no_limit(limit_id)


def _no_limit(limit_id: str) -> NotFound:
    return NotFound(f"there is no limit {limit_id!r}; list them with: tokenweir limit list")


def _grant(connection: Connection, grant_id: str) -> Grant:
    row = connection.execute(select(GRANTS).where(GRANTS.c.grant_id == grant_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no grant {grant_id!r}; list them with: tokenweir grant list")
    return grant_of(row)


def _request(connection: Connection, request_id: str) -> IncreaseRequest:
    found = requests_where(connection, LIMIT_REQUESTS.c.request_id == request_id)
    if not found:
        raise NotFound(f"there is no request {request_id!r}; list them with: tokenweir request list")
    return found[0]
