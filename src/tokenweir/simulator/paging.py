"""Pages of a list: `limit`, `after_id`, `before_id` in the query; `data`, `has_more`, `first_id`, `last_id` in the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs

from tokenweir.simulator.refusals import invalid

Row = TypeVar("Row")
LIMIT_DEFAULT = 20
LIMIT_MAX = 1_000


def list_page(query: str, rows: Sequence[Row], *, ident: Callable[[Row], str], show: Callable[[Row], dict[str, Any]]) -> dict[str, Any]:
    """The page that a query asks for. After an id come the rows that follow it, before an id those just in front of it; `has_more` looks the same way."""
    asked = parse_qs(query)
    limit = asked.get("limit", [str(LIMIT_DEFAULT)])[0]
    if not (limit.isascii() and limit.isdigit()) or not 1 <= int(limit) <= LIMIT_MAX:
        raise invalid(f"limit: Input should be between 1 and {LIMIT_MAX}")
    after, before = asked.get("after_id", [""])[0], asked.get("before_id", [""])[0]
    if after and before:
        raise invalid("Only one of before_id and after_id may be given")
    ids = [ident(row) for row in rows]
    for name, cursor in (("after_id", after), ("before_id", before)):
        if cursor and cursor not in ids:
            raise invalid(f"{name}: no object with the id {cursor}")
    if before:
        stop = ids.index(before)
        start = max(0, stop - int(limit))
        more = start > 0
    else:
        start = ids.index(after) + 1 if after else 0
        stop = min(len(rows), start + int(limit))
        more = stop < len(rows)
    first, last = (ids[start], ids[stop - 1]) if stop > start else (None, None)
    return {"data": [show(row) for row in rows[start:stop]], "has_more": more, "first_id": first, "last_id": last}
