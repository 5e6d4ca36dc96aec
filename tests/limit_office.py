"""A directory with a team and a key, its limits, and the arguments that every change of them needs."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from databases import settings_for
from tokenweir import app, issuing, limiting
from tokenweir.limits.limit import Cycle, Grant, Limit, Resource, Scope
from tokenweir.settings import Settings
from tokenweir.storage.directory import SqlDirectory
from tokenweir.storage.engine import DATABASE_FILE
from tokenweir.storage.limit_directory import SqlLimitDirectory

NOW = 1_795_000_000_000_000  # 2026-11-18T11:06:40Z
HOUR = 3_600_000_000
MONTH_END = 1_796_083_200_000_000  # 2026-12-01T00:00:00Z


class LimitOffice:
    """Both directories on one database."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = NOW
        self.random = random.Random(7)
        self.directory = SqlDirectory(app.open_engine(settings, create=True), lambda: self.now)
        self.limits = SqlLimitDirectory(app.open_engine(settings))
        self.key = self.issue("ci", "red").key

    def close(self) -> None:
        self.directory.close()
        self.limits.close()

    def changing(self, actor: str = "ana") -> dict[str, Any]:
        return {"actor": actor, "now_us": self.now, "entropy": self.random.randbytes}

    def issue(self, name: str, team: str, **more: Any) -> issuing.IssuedKey:
        return issuing.issue_key(self.directory, b"p" * 32, team=team, name=name, **more, **self.changing())

    def set(self, **more: Any) -> limiting.SetLimit:
        """A spend limit of $100 a month on the team red, unless something else is said."""
        arguments = {"team": "red", "resource": "spend", "amount": "100", "window": "month"} | more
        if arguments.get("organization") or arguments.get("key"):
            arguments["team"] = more.get("team", "")
        return limiting.set_limit(self.directory, self.limits, **arguments, **self.changing())

    def put(self, *limits: Limit, removed: tuple[str, ...] = ()) -> None:
        self.limits.put_limits(limits, removed=removed, actor="ana", now_us=self.now)

    def limit(self, number: int = 1, **more: Any) -> Limit:
        """A value that can be stored."""
        fields: dict[str, Any] = {
            "limit_id": f"limit_{number}",
            "name": f"limit {number}",
            "scope": Scope(self.key.organization_id, self.key.team_id),
            "resource": Resource.TOKENS,
            "amount": 1000,
            "window": Cycle("month"),
            "created_at_us": NOW + number,
        }
        return Limit(**(fields | more))

    def grant(self, number: int = 1, limit_id: str = "limit_1", **more: Any) -> Grant:
        fields = {"grant_id": f"grant_{number}", "limit_id": limit_id, "kind": "credit", "amount": 10, "effective_at_us": NOW}
        return Grant(**(fields | {"created_at_us": NOW + number} | more))

    def audit(self) -> list[tuple[str, str, Any, Any]]:
        """What was recorded about limits, oldest first: action, subject, before, after."""
        of_limits = ("limit.", "grant.", "request.")
        return [
            (one.action, one.subject, one.before and json.loads(one.before), one.after and json.loads(one.after))
            for one in reversed(self.directory.audit_records(limit=10_000))
            if one.action.startswith(of_limits)
        ]

    @property
    def revision(self) -> int:
        return self.directory.changes_since(0).revision


@functools.cache
def _empty_database() -> bytes:
    """A database with the schema and nothing in it: made once, because that takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        app.open_engine(Settings(data_dir=Path(folder)), create=True).dispose()
        return (Path(folder) / DATABASE_FILE).read_bytes()


@contextmanager
def limit_office(kind: str, folder: Path) -> Iterator[LimitOffice]:
    """An office with an empty database of that kind."""
    with settings_for(kind, folder) as settings:
        if kind == "sqlite":
            (app.prepare_data_dir(settings) / DATABASE_FILE).write_bytes(_empty_database())
        office = LimitOffice(settings)
        try:
            yield office
        finally:
            office.close()
