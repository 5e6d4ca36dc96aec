"""The database: private, migrated whole or not at all, and refused when it is newer."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from databases import DATABASES, settings_for
from tokenweir import app
from tokenweir.errors import NotFound, SchemaTooNew, SchemaTooOld, SettingsInvalid, StoreUnavailable
from tokenweir.settings import Settings
from tokenweir.storage import engine as database
from tokenweir.storage.schema import METADATA


@pytest.fixture(params=DATABASES)
def chosen(request, tmp_path):
    with settings_for(request.param, tmp_path / "home") as found:
        yield found


def test_the_migrations_build_exactly_the_tables_of_the_schema(chosen):
    engine = app.open_engine(chosen, create=True)
    with database.reading(engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert connection.execute(text("SELECT revision FROM directory_revision")).scalars().all() == [0]
    app.open_engine(chosen).dispose()
    engine.dispose()


def test_nothing_is_made_by_looking(chosen):
    with pytest.raises(NotFound, match="tokenweir serve"):
        app.open_engine(chosen)
    assert not chosen.data_dir.exists()


def test_a_newer_database_is_refused_with_a_sentence(chosen):
    engine = app.open_engine(chosen, create=True)
    with database.writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE meta SET value = '7.0.0' WHERE name = 'upgraded_by'"))
    engine.dispose()
    for allowed in ({}, {"create": True, "upgrade": True}):
        with pytest.raises(SchemaTooNew, match=r"schema 9999, written by Tokenweir 7\.0\.0"):
            app.open_engine(chosen, **allowed)


def test_an_older_database_is_upgraded_by_serve_alone(chosen, monkeypatch):
    engine = app.open_engine(chosen, create=True)
    ran: list[str] = []
    monkeypatch.setattr(database, "SCHEMA_REVISION", "9999")
    monkeypatch.setattr(database, "_migrate", lambda *_: ran.append("migrated"))
    with pytest.raises(SchemaTooOld, match="9999"):
        app.open_engine(chosen, create=True)
    assert ran == []
    app.open_engine(chosen, upgrade=True).dispose()
    assert ran == ["migrated"]
    engine.dispose()


def test_a_migration_that_fails_half_way_leaves_nothing_and_can_be_run_again(chosen, monkeypatch):
    engine = database.connect(chosen.data_dir, chosen.database_url and chosen.database_url.get_secret_value())
    app.prepare_data_dir(chosen)
    with monkeypatch.context() as patched:
        patched.setattr(database, "__version__", object())  # no column takes it: fails after all tables were made
        with pytest.raises(Exception, match=r"(?i)adapt|bind"):
            database.require_schema(engine, create=True)
    assert not database.exists(engine)
    database.require_schema(engine, create=True)
    assert database.exists(engine)
    engine.dispose()


def test_two_processes_that_start_at_once_both_find_the_schema(chosen):
    failures: list[BaseException] = []
    barrier = threading.Barrier(3)

    def start() -> None:
        barrier.wait()
        try:
            app.open_engine(chosen, create=True, upgrade=True).dispose()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_sqlite_files_and_folders_are_for_their_owner_only_and_commits_are_durable(tmp_path):
    chosen = Settings(data_dir=tmp_path / "home")
    engine = app.open_engine(chosen, create=True)
    with database.reading(engine) as connection:
        assert {path.name: path.stat().st_mode & 0o777 for path in chosen.data_dir.glob("tokenweir.db*")} == {
            "tokenweir.db": 0o600,
            "tokenweir.db-wal": 0o600,
            "tokenweir.db-shm": 0o600,
        }
        assert chosen.data_dir.stat().st_mode & 0o777 == 0o700
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    engine.dispose()


def test_a_directory_with_other_things_in_it_keeps_its_mode(tmp_path):
    home = tmp_path / "shared"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    (home / "photo.jpg").touch()
    app.prepare_data_dir(Settings(data_dir=home))
    assert home.stat().st_mode & 0o777 == 0o755
    assert (home / "journal").stat().st_mode & 0o777 == 0o700
    empty = tmp_path / "empty"
    empty.mkdir()
    empty.chmod(0o755)
    app.prepare_data_dir(Settings(data_dir=empty))
    assert empty.stat().st_mode & 0o777 == 0o700


def test_a_locked_or_damaged_database_is_a_store_that_does_not_answer(tmp_path, monkeypatch):
    chosen = Settings(data_dir=tmp_path)
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 10)
    engine = app.open_engine(chosen, create=True)
    with closing(sqlite3.connect(tmp_path / database.DATABASE_FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"), database.writing(engine):
            pass
        with database.reading(engine) as connection:
            connection.execute(text("SELECT * FROM entries"))
    engine.dispose()
    (tmp_path / database.DATABASE_FILE).write_bytes(b"this is no database, but long enough" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        app.open_engine(chosen)


def test_a_database_url_that_cannot_be_used_is_one_sentence():
    for url in ("nonsense", "mysql://host/x", "sqlite:///elsewhere.db"):
        with pytest.raises(SettingsInvalid):
            database.connect(None, url)
    assert "secret" not in database.location(database.connect(None, "postgresql://u:secret@h/d"))


def test_the_revision_that_is_checked_without_alembic_is_the_newest_step():
    from tokenweir.storage.engine import _script
    from tokenweir.storage.schema import SCHEMA_REVISION

    assert _script().get_current_head() == SCHEMA_REVISION


def test_a_command_on_an_up_to_date_database_does_not_load_alembic(tmp_path):
    """Its import would cost every command and every start of a process a quarter of a second."""
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path; from tokenweir import app; from tokenweir.settings import load_settings; "
        "settings = load_settings(None, data_dir=Path(sys.argv[1])); "
        "app.open_ledger(settings, create=True).close(); print('alembic' in sys.modules)"
    )
    answers = [subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert answers == ["True\n", "False\n"]
