"""`tokenweir doctor`: looks at everything that must be right before traffic can be served and booked, and says what to do about what is not.

It changes nothing. It sends no key unless `--with-key` asks for it. A check that cannot be made counts as failed, with the reason.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, print_json, reporting_failures
from tokenweir.cli.root import app
from tokenweir.errors import OperatorError, StoreUnavailable, TokenweirError

if TYPE_CHECKING:
    from email.message import Message

    from tokenweir.ports import SealedCredential
    from tokenweir.settings import Settings

CARD_AGE_DAYS_MAX = 60
CLOCK_SKEW_S_MAX = 60
EARLIEST_YEAR = 2026
"""A clock before the year in which this was written is wrong."""
FREE_BYTES_WARN = 1024**3
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: how it is, what was seen, and what to do if it is not well."""

    check: str
    state: State
    detail: str
    remedy: str = ""


@app.command("doctor")
@reporting_failures
def doctor(
    *,
    with_key: Annotated[bool, typer.Option("--with-key", help="Also ask the provider whether it accepts the upstream key of the settings.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Check settings, permissions, database, disk, upstream, credentials, rates and clock; exit 1 if something fails."""
    findings = list(examine(config, data_dir, with_key=with_key))
    failed = any(one.state == "fail" for one in findings)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(one) for one in findings]})
    else:
        for one in findings:
            sys.stdout.write(f"{one.state:<5}{one.check}: {one.detail}\n")
            if one.remedy:
                sys.stdout.write(f"     → {one.remedy}\n")
    if failed:
        raise typer.Exit(1)


def examine(config: Path | None, data_dir: Path | None, *, with_key: bool) -> Iterator[Finding]:
    """Every check in turn. Without settings there is nothing else to look at."""
    from tokenweir.settings import load_settings

    try:
        settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    except OperatorError as error:
        yield Finding("settings", "fail", error.message, "correct the file or the environment variable and run this again")
        return
    yield Finding("settings", "ok", f"read from {config or 'the environment and the defaults'}")
    for check, look in (
        ("data directory", _data_dir),
        ("secrets", _secrets),
        ("database", _database),
        ("journal", _journal),
        ("credentials", _credentials),
        ("limits", _limits),
        ("rate card", _rate_card),
        ("prices", _prices),
        ("models", _models),
        ("upstream", lambda settings: _upstream(settings, with_key=with_key)),
    ):
        yield from _guarded(check, look, settings)


def _guarded(check: str, look: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    try:
        yield from look(settings)
    except TokenweirError as error:
        yield Finding(check, "fail", error.message)
    except OSError as error:
        yield Finding(check, "fail", f"cannot be examined: {error.strerror or type(error).__name__}")


def _data_dir(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    if not folder.exists():
        yield Finding("data directory", "warn", f"{folder} does not exist yet", "tokenweir serve makes it; or name another with --data-dir")
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("data directory", "fail", f"{folder} cannot be written by this account", "run as its owner, or give it to this account")
    elif mode & 0o022:
        yield Finding("data directory", "fail", f"{folder} can be written by others (mode {mode:04o})", f"chmod 700 {folder}")
    elif mode & 0o055:
        yield Finding("data directory", "warn", f"{folder} can be read by others (mode {mode:04o})", f"chmod 700 {folder}")
    else:
        yield Finding("data directory", "ok", str(folder))


def _secrets(settings: Settings) -> Iterator[Finding]:
    from tokenweir import app as wiring

    if not wiring.has_secrets(settings):
        yield Finding(
            "secrets", "warn", "there are no pepper and sealing key yet", "tokenweir serve makes them; copy them to a safe place afterwards"
        )
        return
    pepper = wiring.open_secrets(settings).pepper
    if wiring.examine_database(settings) == []:
        with closing(wiring.open_directory(settings)) as directory:
            directory.require_pepper(pepper, remember=False)
    yield Finding("secrets", "ok", "pepper and sealing key are there, whole, and private")


def _database(settings: Settings) -> Iterator[Finding]:
    from tokenweir import app as wiring

    problems = wiring.examine_database(settings)
    if problems is None:
        yield Finding("database", "warn", "there is no database yet", "tokenweir serve makes it")
    elif problems:
        yield Finding(
            "database", "fail", "; ".join(problems), "stop tokenweir, keep a copy of the data directory, and restore the database from a backup"
        )
    else:
        yield Finding("database", "ok", "answers, has this version's tables, and passes its own check")


def _journal(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    least = settings.journal.reserve_bytes + 2 * settings.journal.segment_bytes
    detail = f"{free / 1024**3:.1f} GiB free on the disk of {settings.data_dir}"
    if free < least:
        yield Finding(
            "journal", "fail", detail, f"make room: new paid work is refused when the journal cannot grow (at least {least / 1024**2:.0f} MiB)"
        )
    elif free < max(FREE_BYTES_WARN, settings.journal.backlog_bytes_max // 4):
        yield Finding("journal", "warn", detail, "make room, or give the data directory a larger disk")
    else:
        yield Finding("journal", "ok", detail)


def _credentials(settings: Settings) -> Iterator[Finding]:
    from tokenweir import app as wiring

    stored: tuple[SealedCredential, ...] = ()
    if wiring.has_secrets(settings) and wiring.examine_database(settings) == []:
        with closing(wiring.open_directory(settings)) as directory:
            stored = directory.changes_since(0).credentials
    configured = settings.upstream.api_key is not None or settings.upstream.api_key_file is not None
    if not configured and not stored:
        yield Finding(
            "credentials",
            "fail",
            "there is no upstream credential",
            "set TOKENWEIR_UPSTREAM__API_KEY, or run: tokenweir credential set --org --stdin",
        )
        return
    for credential in (*([None] if configured else []), *stored):
        what = "the one in the settings" if credential is None else f"{credential.credential_id} ({credential.source})"
        try:
            wiring.upstream_key(settings, credential)
        except TokenweirError as error:
            yield Finding("credentials", "fail", error.message, "set it again: tokenweir credential set")
        else:
            yield Finding("credentials", "ok", f"{what} can be read")


def _limits(settings: Settings) -> Iterator[Finding]:
    import asyncio

    from tokenweir import app as wiring

    count = 0
    if wiring.examine_database(settings) == []:
        with closing(wiring.open_limit_directory(settings)) as limits:
            count = len(limits.limits())
    if settings.limits.store_url is None:
        yield Finding("limits", "ok", f"{count} set; counted in the memory of the one gateway process")
        return

    async def ask() -> None:
        store = wiring.open_limit_store(settings, owner="doctor")
        try:
            await store.standings([], now_us=0)
            await store.holds("doctor")
        finally:
            await store.close()

    try:
        asyncio.run(ask())
    except StoreUnavailable as error:
        remedy = "start the server at limits.store_url, or correct its address; until then budgets refuse and rates fall to a share"
        yield Finding("limits", "fail", error.message, remedy)
    else:
        yield Finding("limits", "ok", f"{count} set; counted in the shared store, which answers")


def _rate_card(settings: Settings) -> Iterator[Finding]:
    from tokenweir import app as wiring

    card = wiring.open_rate_card(settings)
    age_days = (datetime.now(UTC).date() - date.fromisoformat(card.oldest_check)).days
    detail = f"version {card.version}, rates last checked {card.oldest_check}"
    if age_days > CARD_AGE_DAYS_MAX:
        yield Finding("rate card", "warn", f"{detail}: {age_days} days ago", "upgrade tokenweir, or set pricing.card_file to a card with newer rates")
    else:
        yield Finding("rate card", "ok", detail)


def _prices(settings: Settings) -> Iterator[Finding]:
    """What is booked and the rate card or the reader of usage does not know."""
    from tokenweir.cli.prices import FLAGS_DAYS, price_status

    found = price_status(settings)
    if found["newer_built_in"]:
        detail = f"the stored rate card is older than {found['built_in_version']}, which this version brings"
        yield Finding("prices", "warn", detail, "tokenweir prices diff --from built-in")
    for model in found["unpriced_models"]:
        remedy = "tokenweir ledger rerate" if model["priced_now"] else "put in a rate card that knows it: tokenweir prices update"
        yield Finding("prices", "warn", f"{model['requests']:,} requests to {model['model']} are booked at a conservative rate", remedy)
    for field in found["unknown_usage_fields"]:
        detail = f"usage field {field['field']} is not known; it was in {field['entries']:,} answers of the last {FLAGS_DAYS} days"
        yield Finding("prices", "warn", detail, "upgrade tokenweir: the field may be billed and is not counted")
    if not any((found["newer_built_in"], found["unpriced_models"], found["unknown_usage_fields"])):
        yield Finding("prices", "ok", "every booked model has a rate, and every usage field is known")


def _models(settings: Settings) -> Iterator[Finding]:
    """Models that end while somebody still uses them."""
    from tokenweir.cli.models import ending, model_status, when

    found = model_status(settings)
    used = ending(found)
    for model in used:
        teams = ", ".join(sorted({user["team"] for user in model["used_by"]}))
        yield Finding(
            "models", "warn", f"{model['model']} {when(model)} and is still used by {teams}", "move to another model: tokenweir models status"
        )
    if not used:
        listed = "the provider's list has not been read yet" if found["listed_at"] is None else f"listed by the provider at {found['listed_at']}"
        yield Finding("models", "ok", f"no model that is used is about to end; {listed}")


def _upstream(settings: Settings, *, with_key: bool) -> Iterator[Finding]:
    from tokenweir.cli.reach import ask

    reached = ask(settings, "HEAD", "/", {})
    if isinstance(reached, str):
        yield Finding("upstream", "fail", reached, "check upstream.base_url, the network, a proxy (upstream.proxy_url) and upstream.ca_file")
        yield from _clock(None)
        return
    status, headers = reached
    yield Finding("upstream", "ok", f"{settings.upstream.base_url} answers (HTTP {status}; no key was sent)")
    yield from _clock(headers)
    if with_key:
        yield _accepted(settings)


def _accepted(settings: Settings) -> Finding:
    """Whether the provider takes the key of the settings; a list of models costs nothing."""
    from tokenweir import app as wiring
    from tokenweir.cli.reach import ask

    key = wiring.upstream_key(settings, None)
    reached = ask(settings, "GET", "/v1/models?limit=1", {"x-api-key": key, "anthropic-version": "2023-06-01"})
    if isinstance(reached, str):
        return Finding("upstream key", "fail", reached)
    if reached[0] in (401, 403):
        return Finding(
            "upstream key", "fail", f"the provider refuses it (HTTP {reached[0]})", "create a new one with the provider and set upstream.api_key"
        )
    if reached[0] != 200:
        return Finding("upstream key", "warn", f"the provider answers HTTP {reached[0]}, which says nothing about the key", "try again later")
    return Finding("upstream key", "ok", "the provider accepts it")


def _clock(headers: Message | None) -> Iterator[Finding]:
    """Prices and limits depend on the time: the clock must agree with the provider's."""
    from email.utils import parsedate_to_datetime

    now = datetime.now(UTC)
    remedy = "set the clock, and keep it set with NTP"
    if now.year < EARLIEST_YEAR:
        yield Finding("clock", "fail", f"it says {now:%Y-%m-%d}", remedy)
        return
    try:
        skew_s = (now - parsedate_to_datetime(headers["Date"] if headers else "")).total_seconds()
    except (TypeError, ValueError):
        yield Finding("clock", "ok", f"it says {now:%Y-%m-%dT%H:%M:%SZ}; there was nothing to compare it with")
        return
    if abs(skew_s) > CLOCK_SKEW_S_MAX:
        yield Finding("clock", "warn", f"it differs from the provider's by {skew_s:+.0f} s", remedy)
    else:
        yield Finding("clock", "ok", f"it agrees with the provider's within {max(1, abs(round(skew_s)))} s")
