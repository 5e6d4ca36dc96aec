"""Settings: one frozen tree, read from a TOML file and the environment under the same names, validated once.

Environment beats file. Nested names are joined by two underscores: `TOKENWEIR_UPSTREAM__BASE_URL` is `base_url` in the table `[upstream]`. All
problems are reported together. Secrets are `SecretStr`, which never prints. Every setting is documented in docs/SETTINGS.md, which a test checks.
"""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tokenweir.errors import SecretExposed, SettingsInvalid

Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Bytes = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GatewaySettings(_Table):
    """The data plane: where it listens, and the bounds on what clients may send or hold open."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback is reachable by others: put TLS before it."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8787
    """0 lets the system choose; the chosen port is in the ready line."""
    body_bytes_max: Bytes = 32 * 1024 * 1024
    """Largest request body; the provider's own limit is 32 MB."""
    header_bytes_max: Bytes = 64 * 1024
    """Largest request head."""
    header_timeout_ms: Milliseconds = 10_000
    """Time for a request head to arrive, from the first byte or from connecting."""
    body_timeout_ms: Milliseconds = 120_000
    """Time for a request body to arrive, from the end of its head."""
    keep_alive_timeout_ms: Milliseconds = 75_000
    """How long an idle client connection stays open."""
    write_timeout_ms: Milliseconds = 60_000
    """A client that takes no bytes for so long is disconnected."""
    connections_max: Annotated[int, Field(ge=1)] = 8_192
    """Client connections at once; beyond it requests are answered with 529."""
    on_disconnect: Literal["cancel", "drain"] = "cancel"
    """When a client leaves: close upstream and settle what was seen, or read on to learn the exact bill."""
    drain_timeout_ms: Milliseconds = 120_000
    """How long an answer is read on for a client that left."""
    drains_max: Annotated[int, Field(ge=0)] = 100
    """Streams that may be read on at once for clients that left; beyond it they are cancelled."""
    shutdown_timeout_ms: Milliseconds = 25_000
    """How long streams may finish after SIGTERM before they are ended with an error event."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose `X-Forwarded-For` is believed."""


class UpstreamSettings(_Table):
    """The way to the Claude API."""

    base_url: str = "https://api.anthropic.com"
    """The provider, or what speaks like it. Plain http is for loopback addresses only."""
    api_key: SecretStr | None = None
    """The provider's key, for every team that has no credential of its own."""
    api_key_file: Path | None = None
    """A file that holds that key; nobody else may be able to read it."""
    connect_timeout_ms: Milliseconds = 5_000
    """Time to connect, TLS and proxy included."""
    first_byte_timeout_ms: Milliseconds = 600_000
    """Time to the first byte of an answer."""
    idle_timeout_ms: Milliseconds = 300_000
    """Longest silence within an answer; the provider sends pings."""
    connections_max: Annotated[int, Field(ge=1)] = 2_048
    """Connections to the provider at once."""
    connection_wait_ms: Milliseconds = 10_000
    """How long a request waits for a connection when all are in use."""
    keep_alive_ms: Milliseconds = 30_000
    """Idle connections are closed after this, before the provider does it."""
    attempts_max: Annotated[int, Field(ge=1, le=3)] = 3
    """Attempts per request, all before the first byte of an answer."""
    retry_after_max_ms: Annotated[int, Field(ge=0)] = 5_000
    """A `retry-after` longer than this is passed to the client instead of waited for."""
    proxy_url: str | None = None
    """HTTP proxy for https upstreams; without it `HTTPS_PROXY` and `NO_PROXY` are honoured."""
    ca_file: Path | None = None
    """Certificates to trust in place of the system's."""

    @field_validator("base_url")
    @classmethod
    def _base_url_is_safe(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError(f"{value!r} is not a URL; write it like https://api.anthropic.com")
        if parts.username or parts.query or parts.fragment:
            raise ValueError("a base URL has no user name, query or fragment")
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError("plain http is allowed to a loopback address only; use https")
        return value.rstrip("/")


class JournalSettings(_Table):
    """How usage is made durable before it is acknowledged."""

    durability: Literal["group", "strict"] = "group"
    """`group`: records survive a killed process at once and a power cut after `fsync_interval_ms`. `strict`: every record is synced first."""
    fsync_interval_ms: Milliseconds = 5
    """Pause between two syncs of the journal."""
    segment_bytes: Annotated[int, Field(ge=64 * 1024)] = 16 * 1024 * 1024
    """Size at which a journal file is succeeded by the next."""
    reserve_bytes: Annotated[int, Field(ge=64 * 1024)] = 4 * 1024 * 1024
    """Pre-allocated for settling what is in flight when the disk is full."""
    backlog_bytes_max: Annotated[int, Field(ge=1024 * 1024)] = 4 * 1024 * 1024 * 1024
    """Unbooked journal beyond this refuses new paid work."""


class WorkerSettings(_Table):
    """Bookkeeping."""

    batch_entries_max: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    """Entries booked in one transaction."""
    poll_ms: Milliseconds = 100
    """Longest pause between two looks at the journal."""


class LimitSettings(_Table):
    """Where the state of limits is kept, and what happens when it cannot be asked."""

    store_url: SecretStr | None = None
    """Valkey or Redis, for several gateway processes or hosts: `valkey://[USER]:PASSWORD@HOST:6379/0`, `valkeys://…` with TLS (or `redis://`,
    `rediss://`), or `unix:///PATH`. Without it, the memory of the one gateway process. Its `maxmemory-policy` must be `noeviction`."""
    store_ca_file: Path | None = None
    """Certificates to trust for `valkeys://` in place of the system's."""
    store_timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Longest time for one operation; after it the store counts as down until it answers again."""
    store_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "tokenweir"
    """What the store's keys begin with, for several installations that share a server."""
    local_share_percent: Annotated[int, Field(ge=1, le=100)] = 25
    """While the store is down, what part of a rate or of a number of concurrent requests each process admits by itself: 100 divided by the number of
    processes keeps all of them together within the limit. What a limit on spend or of a calendar cycle covers is refused meanwhile."""

    @field_validator("store_url")
    @classmethod
    def _store_url_is_one(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parts = urlsplit(value.get_secret_value())
                complete = bool(parts.path.strip("/")) if parts.scheme == "unix" else bool(parts.hostname) and parts.port != 0
            except ValueError:
                complete = False
            if not complete or parts.scheme not in ("valkey", "valkeys", "redis", "rediss", "unix"):
                # The value is not repeated: it holds a password.
                raise ValueError("this is not the URL of a Valkey or Redis server; write it like valkey://:PASSWORD@HOST:6379/0 or unix:///PATH")
        return value


class TelemetryReceiverSettings(_Table):
    """The receiver of Claude Code's telemetry (OTLP over HTTP)."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback is reachable by others: put TLS before it."""
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """`serve` starts the receiver if this is set; 4318 is usual, 0 lets the system choose."""
    body_bytes_max: Annotated[int, Field(ge=64 * 1024, le=64 * 1024 * 1024)] = 16 * 1024 * 1024
    """Largest export, also once it is unpacked."""


class PricingSettings(_Table):
    """Where rates come from."""

    card_file: Path | None = None
    """A rate card to use in place of the built-in one."""


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(env_prefix="TOKENWEIR_", env_nested_delimiter="__", frozen=True, extra="forbid", use_attribute_docstrings=True)

    data_dir: Path = Field(default_factory=lambda: Path.home() / ".tokenweir")
    """Directory of database, journal and secrets."""
    secrets_dir: Path | None = None
    """Where the pepper and the sealing key are, if not in `secrets` of the data directory; the same on every host that shares a database."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL of a PostgreSQL database; without it, SQLite in the data directory."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged, as JSON lines on standard error."""
    gateway: GatewaySettings = GatewaySettings()
    """Table `[gateway]`."""
    upstream: UpstreamSettings = UpstreamSettings()
    """Table `[upstream]`."""
    journal: JournalSettings = JournalSettings()
    """Table `[journal]`."""
    worker: WorkerSettings = WorkerSettings()
    """Table `[worker]`."""
    pricing: PricingSettings = PricingSettings()
    """Table `[pricing]`."""
    limits: LimitSettings = LimitSettings()
    """Table `[limits]`."""
    telemetry_receiver: TelemetryReceiverSettings = TelemetryReceiverSettings()
    """Table `[telemetry_receiver]`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment beats the file, whose content comes in as the initial values."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _one_source_of_the_key(self) -> Settings:
        if self.upstream.api_key is not None and self.upstream.api_key_file is not None:
            raise ValueError("set upstream.api_key or upstream.api_key_file, not both")
        return self


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the file (if given) and the environment; `overrides` are command-line options and beat both.

    Raises SettingsInvalid with one line per problem, SecretExposed if the file holds a secret and others can read it.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = tomllib.loads(config.read_text("utf-8"))
        except OSError as error:
            raise SettingsInvalid(f"cannot read {config}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsInvalid(f"{config} is not valid TOML: {error}") from error
        if values.get("upstream", {}).get("api_key") or values.get("database_url") or values.get("limits", {}).get("store_url"):
            require_private(config)
    try:
        settings = Settings(**values)
        for name, value in overrides.items():
            settings = _with(settings, name.split("__"), value)
        return settings
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise SettingsInvalid("\n".join(problems)) from error


def require_private(path: Path) -> None:
    """Raise SecretExposed if group or others can read the file."""
    mode = os.stat(path).st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecretExposed(f"{path} holds a secret and others may read it (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}")


def _with(settings: Settings, path: list[str], value: object) -> Settings:
    """A copy of the tree with one value replaced, validated again."""
    if len(path) == 1:
        return settings.model_copy(update={path[0]: value})
    table = getattr(settings, path[0])
    checked = type(table).model_validate({**{k: getattr(table, k) for k in type(table).model_fields}, path[1]: value})
    return settings.model_copy(update={path[0]: checked})
