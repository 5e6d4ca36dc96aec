"""Migrations with data in the database: what was booked before is there afterwards, and works with what is new."""

from __future__ import annotations

from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from bookings import START_US, cells_of, entry
from databases import DATABASES, settings_for
from tellings import NOW_US, all_entries, stored_cells, told
from tokenweir import app
from tokenweir.errors import SchemaTooOld
from tokenweir.ledger.rollups import DIM_NAMES, SUM_NAMES, dims_id
from tokenweir.ledger.sources import Booked
from tokenweir.storage import engine as database
from tokenweir.storage.entry_rows import COLUMNS, row_of
from tokenweir.storage.schema import METADATA


@pytest.fixture(params=DATABASES)
def chosen(request, tmp_path):
    with settings_for(request.param, tmp_path / "home") as found:
        yield found


def make_at_0001(chosen, entries) -> None:
    """A database as the first version left it, with entries and rollups."""
    app.prepare_data_dir(chosen)
    engine = database.connect(chosen.data_dir, chosen.database_url and chosen.database_url.get_secret_value())
    script = database._script()

    class UpToTheFirst:
        """The migrations as the first version knew them."""

        def _upgrade_revs(self, _to: str, revision):
            return script._upgrade_revs("0001", revision)

        def __getattr__(self, name: str):
            return getattr(script, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_script", UpToTheFirst)
        database._migrate(engine)
    names = [name for name in COLUMNS if name != "dedup_key"]
    with database.writing(engine) as connection:
        for one in entries:
            row = {name: value for name, value in zip(COLUMNS, row_of(one), strict=True) if name in names}
            connection.execute(text(f"INSERT INTO entries ({', '.join(names)}) VALUES ({', '.join(':' + name for name in names)})"), row)
        for table, cells in zip(("rollup_15m", "rollup_day"), cells_of(entries), strict=True):
            for (bucket_us, dims), sums in cells.items():
                row = {"dims_id": dims_id(dims)} | {name: getattr(dims, name) for name in DIM_NAMES}
                connection.execute(
                    text(f"INSERT INTO dims ({', '.join(row)}) VALUES ({', '.join(':' + name for name in row)}) ON CONFLICT DO NOTHING"), row
                )
                row = {"bucket_us": bucket_us, "dims_id": dims_id(dims)} | dict(zip(SUM_NAMES, sums, strict=True))
                connection.execute(text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(':' + name for name in row)})"), row)
    engine.dispose()


def test_a_ledger_of_the_first_version_is_upgraded_with_all_that_is_in_it(chosen):
    before = [entry(n, at_us=START_US + n * 900_000_000, message_id=f"m{n}", upstream_request_id="") for n in range(50)]
    make_at_0001(chosen, before)
    with pytest.raises(SchemaTooOld, match="0001"):
        app.open_ledger(chosen)
    with closing(app.open_ledger(chosen, upgrade=True)) as ledger:
        assert all_entries(ledger) == sorted(before, key=lambda one: one.entry_id)
        assert stored_cells(ledger) == cells_of(before)
        with database.reading(ledger._engine) as connection:
            assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert ledger.book_told([told("m7"), told("m_new")], now_us=NOW_US) == Booked(new=1, matched=1), (
            "what was metered before the upgrade is known"
        )
        assert ledger.book([before[3], entry(99)]) == 1
        assert stored_cells(ledger) == cells_of(all_entries(ledger))
