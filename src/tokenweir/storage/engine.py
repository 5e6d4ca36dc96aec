"""The database: opened, protected, and brought to the schema of this version.

The rules it protects: a commit is on the disk when it returns, because a journal segment is deleted on the strength of it; a reader sees one
consistent state; a newer database is refused, never guessed at. Every failure of the driver leaves here as `StoreUnavailable`. Change with it: `schema.py`, `migrations/`.

SQLite runs in WAL mode with `synchronous=FULL`. `NORMAL` would not lose consistency, but a power cut could take back a commit after the segment
behind it was deleted. One fsync for a batch of up to a thousand entries is a price that cannot be seen. Writers begin with `BEGIN IMMEDIATE`, so that
they wait for each other at the beginning (busy timeout) and never fail half-way with a stale snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tokenweir import __version__
from tokenweir.errors import NotFound, SchemaTooNew, SchemaTooOld, SettingsInvalid, StoreUnavailable
from tokenweir.storage.schema import SCHEMA_REVISION

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

DATABASE_FILE: Final = "tokenweir.db"
BUSY_TIMEOUT_MS: Final = 15_000
_MIGRATION_LOCK: Final = 0x746F6B656E01
_WRITING: Final = "tokenweir_writing"


def connect(data_dir: Path, database_url: str | None = None) -> Engine:
    """An engine for the database of the settings; opens no connection yet. Raises SettingsInvalid for a URL that cannot be used."""
    if database_url is None:
        return _sqlite(data_dir / DATABASE_FILE)
    try:
        url = make_url(database_url)
        if url.get_backend_name() != "postgresql":
            raise SettingsInvalid("database_url must be a PostgreSQL URL; SQLite needs none, it lives in the data directory")
        return create_engine(
            url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=4, connect_args={"connect_timeout": 5}, hide_parameters=True
        )
    except (ArgumentError, ValueError) as error:
        raise SettingsInvalid("database_url cannot be read; write it like postgresql://user@host/database") from error
    except (NoSuchModuleError, ImportError) as error:
        raise SettingsInvalid('PostgreSQL needs the extra "postgres": pip install "tokenweir[postgres]"') from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one consistent state and changes nothing."""
    options: dict[str, Any] = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with _translated(), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is durable when the block ends, or did not happen."""
    with _translated(), engine.connect().execution_options(**{_WRITING: True}) as connection, connection.begin():
        yield connection


def exists(engine: Engine) -> bool:
    """Whether there is a database with a schema in it. Creates nothing."""
    if engine.dialect.name == "sqlite" and not _is_file(engine):
        return False
    with reading(engine) as connection:
        return inspect(connection).has_table("alembic_version")


def require_schema(engine: Engine, *, create: bool = False, upgrade: bool = False) -> None:
    """Make sure that the database has exactly the schema of this version.

    `create` makes it where there is none, `upgrade` brings an older one up: `serve` does both. Other commands only create: an upgrade under a
    running gateway of the version before would be a surprise, so they raise SchemaTooOld. Raises NotFound, SchemaTooOld, SchemaTooNew.
    """
    found = _revision(engine)
    if found == SCHEMA_REVISION:
        return  # without Alembic, whose import would cost every command a quarter of a second
    if found is None:
        if not create:
            raise NotFound(f"there is no database yet at {location(engine)}; start `tokenweir serve` or create a key first")
    elif found not in {step.revision for step in _script().walk_revisions()}:
        raise SchemaTooNew(
            f"the database at {location(engine)} has schema {found}, written by {_written_by(engine)}; this is Tokenweir {__version__}, which "
            f"knows up to {SCHEMA_REVISION}: install the newer version, or restore a backup made before the upgrade"
        )
    elif not upgrade:
        raise SchemaTooOld(
            f"the database at {location(engine)} has schema {found} and Tokenweir {__version__} needs {SCHEMA_REVISION}: start `tokenweir serve` of this "
            "version once, it upgrades the database"
        )
    _migrate(engine)


def problems(engine: Engine) -> list[str]:
    """What the database's own check finds; on PostgreSQL, that it answers is all that is asked."""
    with reading(engine) as connection:
        if engine.dialect.name != "sqlite":
            connection.execute(text("SELECT 1"))
            return []
        return [str(found) for found in connection.execute(text("PRAGMA quick_check(5)")).scalars() if found != "ok"]


def location(engine: Engine) -> str:
    """Where the database is, without any password."""
    return str(engine.url.database) if engine.dialect.name == "sqlite" else engine.url.render_as_string(hide_password=True)


def _sqlite(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "isolation_level": None}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def prepare(raw: Any, _record: object) -> None:
        with closing(raw.cursor()) as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.execute("PRAGMA temp_store=MEMORY")

    @event.listens_for(engine, "do_connect")
    def protect(*_: object) -> None:
        if not path.exists():  # SQLite gives its -wal and -shm files the mode of the database.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITING) else "BEGIN")

    return engine


def _is_file(engine: Engine) -> bool:
    path = Path(str(engine.url.database))
    return path.is_file() and path.stat().st_size > 0


def _script() -> ScriptDirectory:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - only a migration pays for Alembic

    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - same

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _revision(engine: Engine) -> str | None:
    if not exists(engine):
        return None
    with reading(engine) as connection:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)


def _written_by(engine: Engine) -> str:
    with reading(engine) as connection:
        found = connection.execute(text("SELECT value FROM meta WHERE name = 'upgraded_by'")).scalar()
    return f"Tokenweir {found}" if found else "a newer Tokenweir"


def _migrate(engine: Engine) -> None:
    """Run all missing steps in one transaction: whoever is killed in the middle leaves the database as it was. Two at once wait for each other."""
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415 - only a migration pays for Alembic

    script = _script()
    if engine.dialect.name == "sqlite":
        Path(str(engine.url.database)).parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def steps(revision: Any, _context: object) -> Any:
        return script._upgrade_revs("heads", revision)  # noqa: SLF001 - what alembic.command.upgrade itself passes

    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        script_config = _config()
        script_config.attributes["connection"] = connection
        with EnvironmentContext(script_config, script, fn=steps, as_sql=False):
            script.run_env()
        for name, keep in (("created_by", True), ("upgraded_by", False)):
            update = "DO NOTHING" if keep else "DO UPDATE SET value = excluded.value"
            connection.execute(
                text(f"INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) {update}"),  # noqa: S608 - two constants
                {"name": name, "value": __version__},
            )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise StoreUnavailable("the database does not answer: all connections are in use") from error
    except (IntegrityError, DataError, ProgrammingError, NotSupportedError):
        raise  # the statement is at fault, not the database: trying again would fail again
    except DBAPIError as error:
        raise StoreUnavailable(f"the database does not answer: {type(error.orig).__name__}: {str(error.orig).strip().splitlines()[0]}") from error
