"""The composition root: the only module that names concrete stores and the real clock. It opens, wires, and closes in order."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from pathlib import Path

from sqlalchemy import Engine

from tokenweir.control import CONTROL_FILE
from tokenweir.errors import RateCardInvalid, SettingsInvalid, TokenweirError
from tokenweir.ledger_ports import LedgerStore
from tokenweir.limit_ports import LimitStore
from tokenweir.metering.journal import JournalWriter
from tokenweir.metering.seeding import AdjustmentFeed, LedgerUse
from tokenweir.periods import Micros
from tokenweir.ports import Directory, SealedCredential
from tokenweir.pricing.rate_card import RateCard, parse_rate_card
from tokenweir.settings import Settings
from tokenweir.storage import engine as database
from tokenweir.storage.directory import SqlDirectory
from tokenweir.storage.ledger import SqlLedger
from tokenweir.storage.limit_directory import SqlLimitDirectory
from tokenweir.storage.limit_memory import MemoryLimitStore
from tokenweir.storage.provider_models import SqlProviderModels
from tokenweir.storage.secrets import PEPPER_FILE, SEAL_FILE, FileVault, configured_key, header_safe, open_vault, read_private, secrets_dir
from tokenweir.storage.telemetry_sums import SqlTelemetrySums
from tokenweir.telemetry import log

RATES_FILE = "rates.json"
"""The rate card: the built-in one in its package, and the one in the data directory that `prices update` stored."""
PREVIOUS_RATES_FILE = "rates.previous.json"
CARD_BYTES_MAX = 4 * 1024 * 1024


class SystemClock:
    """The machine's clock, with a floor so that a step backwards never yields an earlier instant than one already given."""

    __slots__ = ("_floor_us",)

    def __init__(self) -> None:
        self._floor_us = 0

    def now_us(self) -> Micros:
        """Wall clock in microseconds; never earlier than a value it returned before."""
        now = time.time_ns() // 1_000
        if now < self._floor_us:
            return self._floor_us
        self._floor_us = now
        return now

    def monotonic_ns(self) -> int:
        """For durations."""
        return time.monotonic_ns()


class IdMint:
    """Makes ids: 128 bits as 32 hex digits, in the order of time, and within a process in the order they were made; unique across processes."""

    __slots__ = ("_count", "_salt")

    def __init__(self) -> None:
        self._salt = os.urandom(5).hex()
        self._count = int.from_bytes(os.urandom(4), "big")

    def __call__(self, now_us: Micros) -> str:
        """48 bits of milliseconds, 40 random bits of this process, and 40 bits that count on from a random start."""
        self._count = count = self._count + 1
        return f"{now_us // 1_000:012x}{self._salt}{count & 0xFFFFFFFFFF:010x}"


def open_rate_card(settings: Settings) -> RateCard:
    """The rate card in force: that of the settings, else the one that was put in with `prices update`, else the built-in one. Raises RateCardInvalid."""
    file = rate_card_file(settings)
    return _read_rate_card(file, 0 if file is None or not file.exists() else file.stat().st_mtime_ns)


def open_names_card(settings: Settings) -> RateCard:
    """The card by whose names keys are permitted models: never one that came in as prices, so that new prices cannot change who may use what."""
    return _read_rate_card(settings.pricing.card_file, 0)


def rate_card_file(settings: Settings) -> Path | None:
    """The file of the rate card in force; None for the built-in one."""
    if settings.pricing.card_file is not None:
        return settings.pricing.card_file
    stored = settings.data_dir / RATES_FILE
    return stored if stored.exists() else None


def rate_card_text(file: Path | None) -> str:
    """The text of a rate card; None is the built-in one. Raises RateCardInvalid."""
    if file is None:
        return (resources.files("tokenweir.pricing") / RATES_FILE).read_text("utf-8")
    try:
        with file.open("rb") as source:
            content = source.read(CARD_BYTES_MAX + 1)
    except OSError as error:
        raise RateCardInvalid(f"The rate card {file} cannot be read: {error.strerror}.") from error
    if len(content) > CARD_BYTES_MAX:
        raise RateCardInvalid(f"The rate card {file} is larger than {CARD_BYTES_MAX} bytes.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RateCardInvalid(f"The rate card {file} is not UTF-8 text.") from error


def store_rate_card(settings: Settings, text: str) -> Path:
    """Put a checked card in the place of the one that `prices update` stored before, which is kept beside it; returns the file."""
    parse_rate_card(text)
    file = prepare_data_dir(settings) / RATES_FILE
    try:
        if file.exists():
            _write_whole(file.with_name(PREVIOUS_RATES_FILE), file.read_bytes())
        _write_whole(file, text.encode())
    except OSError as error:
        raise SettingsInvalid(f"the rate card cannot be stored as {file}: {error.strerror}") from error
    return file


def _write_whole(file: Path, content: bytes) -> None:
    """Write a file so that whoever reads it finds the old content or the new, also after a power cut."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@lru_cache(maxsize=8)
def _read_rate_card(card_file: Path | None, modified_ns: int) -> RateCard:
    """A card, read once for each state of its file."""
    if card_file is None:
        return parse_rate_card(rate_card_text(None))
    text = rate_card_text(card_file)
    try:
        return parse_rate_card(text)
    except RateCardInvalid as error:
        raise RateCardInvalid(f"{card_file}: {error.message}") from error


def open_directory(settings: Settings) -> SqlDirectory:
    """The directory of keys; an empty database is made where there is none. Raises StoreUnavailable, SchemaTooOld, SchemaTooNew."""
    return SqlDirectory(open_engine(settings, create=True), SystemClock().now_us)


def open_limit_directory(settings: Settings) -> SqlLimitDirectory:
    """The directory of limits, in the same database as the keys. Raises StoreUnavailable, SchemaTooOld, SchemaTooNew."""
    return SqlLimitDirectory(open_engine(settings, create=True))


def examine_database(settings: Settings) -> list[str] | None:
    """What is wrong with the database, and None if there is none yet; makes nothing and changes nothing."""
    url = settings.database_url
    engine = database.connect(settings.data_dir, None if url is None else url.get_secret_value())
    try:
        if not database.exists(engine):
            return None
        database.require_schema(engine)
        return database.problems(engine)
    except TokenweirError as error:
        return [error.message]
    finally:
        engine.dispose()


def open_secrets(settings: Settings) -> FileVault:
    """The pepper, the sealing key and the way to the upstream keys; made at first use. Raises SecretExposed."""
    return open_vault(settings)


def open_pepper(settings: Settings, directory: SqlDirectory) -> bytes:
    """The pepper, once it is known to be the one of this directory; raises SettingsInvalid if it is another one."""
    pepper = open_vault(settings).pepper
    directory.require_pepper(pepper)
    return pepper


def has_secrets(settings: Settings) -> bool:
    """Whether the pepper and the sealing key have been made."""
    return all((secrets_dir(settings) / name).exists() for name in (PEPPER_FILE, SEAL_FILE))


def upstream_key(settings: Settings, credential: SealedCredential | None) -> str:
    """One upstream key, without making anything that is not there yet; raises CredentialUnusable or SecretExposed."""
    if credential is None:
        return configured_key(settings)
    return open_vault(settings).upstream_key(credential)


def any_upstream_key(settings: Settings) -> str:
    """An upstream key for what costs nothing: that of the settings, else the first usable one of the directory. Raises CredentialUnusable."""
    stored: tuple[SealedCredential, ...] = ()
    if settings.upstream.api_key is None and settings.upstream.api_key_file is None and has_secrets(settings):
        directory = open_directory(settings)
        try:
            stored = directory.changes_since(0).credentials
        finally:
            directory.close()
    for credential in stored:
        if credential.base_url == settings.upstream.base_url:
            return upstream_key(settings, credential)
    return upstream_key(settings, None)


def check_secret_file(path: Path) -> None:
    """Raise SecretExposed or CredentialUnusable unless the file holds a key that could be sent, and others cannot read it."""
    header_safe(read_private(path))


def prepare_data_dir(settings: Settings) -> Path:
    """Make the data directory, for the owner only, with its journal directory; returns it.

    One that is there already is closed to others if it is empty or holds our database; a directory that serves something else as well keeps its
    mode, and what we put into it is private by itself.
    """
    data_dir = settings.data_dir
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = {path.name for path in data_dir.iterdir()}
        ours = names <= {"journal", "secrets", RATES_FILE, PREVIOUS_RATES_FILE, CONTROL_FILE} or database.DATABASE_FILE in names
        if ours and data_dir.stat().st_mode & 0o077:
            data_dir.chmod(0o700)
        journal_dir(settings).mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingsInvalid(f"the data directory {data_dir} cannot be used: {error.strerror}") from error
    return data_dir


def journal_dir(settings: Settings) -> Path:
    """Where the gateways of this data directory write their journals."""
    return settings.data_dir / "journal"


def open_engine(settings: Settings, *, create: bool = False, upgrade: bool = False) -> Engine:
    """The database, with exactly the schema of this version; see `storage.engine.require_schema` for who may create or upgrade it."""
    url = settings.database_url
    engine = database.connect(settings.data_dir, None if url is None else url.get_secret_value())
    try:
        if create:
            prepare_data_dir(settings)
        database.require_schema(engine, create=create, upgrade=upgrade)
    except BaseException:
        engine.dispose()
        raise
    return engine


def open_ledger(settings: Settings, *, create: bool = False, upgrade: bool = False) -> SqlLedger:
    """The ledger. Raises NotFound if there is no database yet (unless `create`), StoreUnavailable, SchemaTooOld, SchemaTooNew."""
    return SqlLedger(open_engine(settings, create=create, upgrade=upgrade))


def open_telemetry_sums(settings: Settings) -> SqlTelemetrySums:
    """The sums of Claude Code's metrics. Raises NotFound if there is no database yet, StoreUnavailable, SchemaTooOld, SchemaTooNew."""
    return SqlTelemetrySums(open_engine(settings))


def open_limit_store(settings: Settings, *, owner: str) -> LimitStore:
    """Where limits are counted: in the store of the settings, or in the memory of this process. `owner` is the id of its journal."""
    if settings.limits.store_url is None:
        return MemoryLimitStore(owner)
    from tokenweir.storage.limit_valkey import ValkeyLimitStore  # noqa: PLC0415 - what it needs is an extra

    return ValkeyLimitStore(settings.limits, owner=owner, on_change=_note_limit_store)


def _note_limit_store(answers: bool, why: str) -> None:
    if answers:
        log(logging.INFO, "limit_store_back")
    else:
        log(logging.WARNING, "limit_store_unavailable", error=why)


def open_ledger_use(
    settings: Settings, ledger: LedgerStore, directory: Directory, *, feed: AdjustmentFeed | None = None, writer: str = ""
) -> LedgerUse:
    """What the ledger and the journals say was used of limits. `writer` is the journal of the gateway that asks."""
    alone_as = "" if settings.limits.store_url is not None else writer
    return LedgerUse(ledger, directory, journal_dir(settings), open_names_card(settings), SystemClock(), feed=feed, alone_as=alone_as)


def open_provider_models(settings: Settings) -> SqlProviderModels:
    """What the provider lists as its models. Raises NotFound if there is no database yet, StoreUnavailable, SchemaTooOld, SchemaTooNew."""
    return SqlProviderModels(open_engine(settings))


def open_journal(settings: Settings, *, on_broken: Callable[[str], None] | None = None) -> JournalWriter:
    """The journal of this process, under a new writer id. Raises JournalFull, JournalBroken."""
    prepare_data_dir(settings)
    return JournalWriter(journal_dir(settings), settings.journal, writer=IdMint()(SystemClock().now_us()), on_broken=on_broken)
