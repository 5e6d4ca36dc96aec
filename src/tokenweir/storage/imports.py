"""How far other sources have been read, and the provider's own reports, in SQL.

The rule it protects: progress is stored in the transaction that books what was read, so a reader that is killed goes on exactly where the ledger is; a
report is kept as it was received, once. Change with it: `schema.py`, `ledger_ports.ImportProgress`, `ledger_ports.ProviderReport`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, select

from tokenweir.ledger.sources import Booked
from tokenweir.ledger_ports import ImportProgress, ProviderReport
from tokenweir.storage.schema import IMPORTS, PROVIDER_REPORTS

Upsert: TypeAlias = Callable[..., Any]

_COUNTS: Final = Booked.__struct_fields__
_PLAIN: Final = tuple(name for name in ImportProgress.__struct_fields__ if name != "booked")
_REPORT_FIELDS: Final = ProviderReport.__struct_fields__


def store_progress(connection: Connection, upsert: Upsert, progress: ImportProgress) -> None:
    """Put the progress in the place of what is stored of the file."""
    row = {name: getattr(progress, name) for name in _PLAIN}
    row |= {f"rows_{name}": getattr(progress.booked, name) for name in _COUNTS}
    insert = upsert(IMPORTS).values(import_id=f"{progress.source} {progress.place}", **row)
    connection.execute(insert.on_conflict_do_update(index_elements=["import_id"], set_={name: insert.excluded[name] for name in row}))


def progress_of(connection: Connection, source: str, places: Sequence[str] | None) -> list[ImportProgress]:
    """Progress, in order of source and place."""
    query = select(IMPORTS).order_by(IMPORTS.c.source, IMPORTS.c.place)
    if source:
        query = query.where(IMPORTS.c.source == source)
    wanted = None if places is None else set(places)
    found = (row._mapping for row in connection.execute(query) if wanted is None or row.place in wanted)  # noqa: SLF001 - SQLAlchemy's public name
    return [ImportProgress(**{name: row[name] for name in _PLAIN}, booked=Booked(*(row[f"rows_{name}"] for name in _COUNTS))) for row in found]


def keep_reports(connection: Connection, upsert: Upsert, reports: Sequence[ProviderReport]) -> int:
    """Insert the pages that are not there yet."""
    ids = [report.report_id for report in reports]
    there = set(connection.execute(select(PROVIDER_REPORTS.c.report_id).where(PROVIDER_REPORTS.c.report_id.in_(ids))).scalars())
    new = {report.report_id: report for report in reports if report.report_id not in there}
    for report in new.values():
        row = {name: getattr(report, name) for name in _REPORT_FIELDS}
        connection.execute(upsert(PROVIDER_REPORTS).values(**row).on_conflict_do_nothing())
    return len(new)


def reports(connection: Connection, kind: str) -> list[ProviderReport]:
    """Pages in order of time."""
    query = select(*[PROVIDER_REPORTS.c[name] for name in _REPORT_FIELDS]).order_by(PROVIDER_REPORTS.c.starting_at_us, PROVIDER_REPORTS.c.report_id)
    if kind:
        query = query.where(PROVIDER_REPORTS.c.kind == kind)
    found = (dict(row._mapping) for row in connection.execute(query))  # noqa: SLF001 - SQLAlchemy's public name
    return [ProviderReport(**row | {"content": bytes(row["content"])}) for row in found]
