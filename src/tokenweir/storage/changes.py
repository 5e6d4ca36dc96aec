"""Changing the directory: one transaction, one revision, and the audit of what it did.

The rules it protects: a change first takes the next revision, which locks out every other change until it is committed, so a reader who has seen
revision n has seen all up to n; the same transaction writes the audit records, with before and after, so that neither is there without the other.
Change with it: `storage/directory.py`, `storage/limit_directory.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import msgspec
from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from tokenweir.errors import Conflict
from tokenweir.periods import Micros
from tokenweir.storage.engine import writing
from tokenweir.storage.schema import AUDIT, DIRECTORY_REVISION

Audited: TypeAlias = Callable[[str, str, object, object], None]
"""Record an action on a subject, with before and after."""

LATEST: Final = select(DIRECTORY_REVISION.c.revision)
LOCK_OUT_CHANGES: Final = update(DIRECTORY_REVISION).values(revision=DIRECTORY_REVISION.c.revision)
"""Changes nothing, and makes every other change wait."""
_ADVANCE: Final = update(DIRECTORY_REVISION).values(revision=DIRECTORY_REVISION.c.revision + 1).returning(DIRECTORY_REVISION.c.revision)
_AUDITING: Final = insert(AUDIT)


@contextmanager
def changing(engine: Engine, actor: str, now_us: Micros) -> Iterator[tuple[Connection, int, Audited]]:
    """One transaction with its revision; what was audited is written before it is committed. Raises Conflict for an id or name that is taken."""
    records: list[dict[str, Any]] = []

    def audited(action: str, subject: str, before: object, after: object) -> None:
        what = {"action": action, "subject": subject, "before": to_json(before), "after": to_json(after)}
        records.append({"at_us": now_us, "actor": actor} | what)

    try:
        with writing(engine) as connection:
            revision = connection.execute(_ADVANCE).scalar_one()
            yield connection, revision, audited
            if records:
                connection.execute(_AUDITING, records)
    except IntegrityError as error:
        raise Conflict("the database has one of that id or name already") from error


def to_json(value: object) -> str:
    """The value as the columns of JSON text hold it; None is empty."""
    return "" if value is None else msgspec.json.encode(value).decode()
