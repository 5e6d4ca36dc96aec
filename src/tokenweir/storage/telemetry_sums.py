"""Sums of the metrics of Claude Code, in SQL: a cross-check of the ledger, never part of it.

The rule it protects: a point counts once. The points of one series follow each other in time, so a point that is not later than the last one was sent
before and is dropped, in the same statement that would add it. Change with it: `schema.py`, `wire/telemetry.MetricPoint`, docs/TELEMETRY-RECEIVER.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.dialects import postgresql, sqlite

from tokenweir.ledger_ports import TelemetrySum
from tokenweir.periods import Micros, day_start
from tokenweir.principals import Principal
from tokenweir.storage.engine import reading, writing
from tokenweir.storage.schema import TELEMETRY_SUMS
from tokenweir.wire.telemetry import MetricPoint


class SqlTelemetrySums:
    """The adapter of `ledger_ports.TelemetrySums`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._upsert: Callable[..., Any] = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def add_points(self, points: Sequence[MetricPoint], principal: Principal) -> int:
        """Add the points that are later than the last one of their series; returns how many those were."""
        added = 0
        with writing(self._engine) as connection:
            for point in sorted(points, key=lambda point: (_series_id(point, principal), point.at_us)):
                added += len(connection.execute(self._statement(point, principal).returning(TELEMETRY_SUMS.c.series_id)).all())
        return added

    def telemetry_sums(self, since_us: Micros, until_us: Micros) -> list[TelemetrySum]:
        """The sums of the UTC days in [since, until)."""
        columns = [TELEMETRY_SUMS.c[name] for name in TelemetrySum.__struct_fields__]
        query = select(*columns).where(TELEMETRY_SUMS.c.day_us >= since_us, TELEMETRY_SUMS.c.day_us < until_us)
        with reading(self._engine) as connection:
            return [TelemetrySum(*row) for row in connection.execute(query.order_by(TELEMETRY_SUMS.c.day_us, TELEMETRY_SUMS.c.series_id))]

    def _statement(self, point: MetricPoint, principal: Principal) -> Any:
        insert = self._upsert(TELEMETRY_SUMS).values(
            series_id=_series_id(point, principal),
            day_us=_day(point),
            organization_id=principal.organization_id,
            team_id=principal.team_id,
            key_id=principal.key_id,
            session_id=_stored(point.session_id),
            model=_stored(point.model),
            metric=_stored(point.metric),
            token_type=_stored(point.token_type),
            amount=point.amount,
            points=1,
            last_at_us=point.at_us,
        )
        told, held = insert.excluded, TELEMETRY_SUMS.c
        return insert.on_conflict_do_update(
            index_elements=["series_id"],
            set_={
                "amount": told.amount if point.cumulative else held.amount + told.amount,
                "points": held.points + 1,
                "last_at_us": told.last_at_us,
            },
            where=told.last_at_us > held.last_at_us,
        )


def _day(point: MetricPoint) -> Micros:
    """A running total belongs to the day on which it began: split over days it would count again on each."""
    return day_start(point.started_at_us if point.cumulative else point.at_us)


def _series_id(point: MetricPoint, principal: Principal) -> str:
    began = point.started_at_us if point.cumulative else 0
    text = "\0".join((str(_day(point)), str(began), principal.key_id, point.metric, point.series))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _stored(text: str) -> str:
    return text.replace("\0", "�")
