"""`tokenweir prices …`: which rate card is in force, what another one would change, and putting it in.

The rules it protects: a card is read whole or refused whole; what it would change is shown and confirmed before it applies; nothing but prices can come in
this way, and history that is booked stays priced. Change with it: `pricing/differences.py`, `app.open_rate_card`, docs/RATES.md.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, fail, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app
from tokenweir.errors import NotFound, OperatorError, RateCardInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenweir.pricing.differences import Difference
    from tokenweir.settings import Settings

prices_app = typer.Typer(help="The rate card: what is in force, what another one would change, putting it in.", no_args_is_help=True)
app.add_typer(prices_app, name="prices")

BUILT_IN = "built-in"
FLAGS_DAYS = 30
SourceOption = Annotated[
    str, typer.Option("--from", help=f"A reviewed rate card: a file, an https URL, or {BUILT_IN!r} for the one of this version.")
]
LoopbackOption = Annotated[bool, typer.Option("--allow-loopback", help="Let the URL lead to this machine, on any port.")]


@prices_app.command("status")
@reporting_failures
def status(*, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show the card in force, when it was checked, which booked models have no rate, and usage fields that nobody knows."""
    settings = _settings(config, data_dir)
    found = price_status(settings)
    if as_json:
        print_json(found)
        return
    sys.stdout.write(f"rate card {found['card_version']} ({found['file'] or BUILT_IN}), rates last checked {found['oldest_check']}\n")
    if found["newer_built_in"]:
        note(f"This version of Tokenweir brings a newer card, {found['built_in_version']}: tokenweir prices diff --from {BUILT_IN}")
    for model in found["unpriced_models"]:
        todo = "run: tokenweir ledger rerate" if model["priced_now"] else "the card needs a row for it"
        note(f"Unpriced: {model['requests']:,} requests to {model['model']}, {model['cost_usd']} USD at a conservative rate; {todo}.")
    for field in found["unknown_usage_fields"]:
        note(
            f"Unknown: usage field {field['field']} in {field['entries']:,} answers of the last {FLAGS_DAYS} days; it may be billed and is not counted."
        )
    if not found["unpriced_models"] and not found["unknown_usage_fields"]:
        sys.stdout.write("every booked model has a rate, and every usage field is known\n")


@prices_app.command("diff")
@reporting_failures
def diff(
    *,
    source: SourceOption,
    allow_loopback: LoopbackOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show, row by row, what a rate card would change. Nothing is changed."""
    settings = _settings(config, data_dir)
    text = _candidate(source, allow_loopback=allow_loopback)
    found = _differences(settings, text)
    if as_json:
        print_json({**_versions(settings, text), "differences": _as_json(found), "refused": _refusal(settings, text)})
        return
    _show(settings, text, found)
    if refusal := _refusal(settings, text):
        note(refusal)


@prices_app.command("update")
@reporting_failures
def update(
    *,
    source: SourceOption,
    yes: Annotated[bool, typer.Option("--yes", help="Apply it without asking.")] = False,
    allow_loopback: LoopbackOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Put a reviewed rate card in force, once what it changes has been shown and confirmed. Booked charges stay as they are."""
    from tokenweir import app as wiring

    settings = _settings(config, data_dir)
    if settings.pricing.card_file is not None:
        raise OperatorError(
            f"the settings name a card, {settings.pricing.card_file}; change that file, or take pricing.card_file out of the settings"
        )
    text = _candidate(source, allow_loopback=allow_loopback)
    if refusal := _refusal(settings, text):
        raise RateCardInvalid(refusal)
    found = _differences(settings, text)
    versions = _versions(settings, text)
    if not as_json:
        _show(settings, text, found)
    if versions["version_before"] == versions["version_after"]:
        _done(versions, found, applied=False, as_json=as_json, remark="This card is in force already.")
        return
    if not yes and (as_json or not sys.stdin.isatty()):
        fail("nothing was changed: look at what it changes (tokenweir prices diff), then run this again with --yes", code=2)
    if not yes and not typer.confirm("Put this card in force?", err=True):
        _done(versions, found, applied=False, as_json=as_json, remark="Nothing was changed.")
        return
    file = wiring.store_rate_card(settings, text)
    remark = f"Stored as {file}; the card before it is kept beside it. Restart tokenweir serve to use it; then: tokenweir ledger rerate"
    _done(versions, found, applied=True, as_json=as_json, remark=remark)


def price_status(settings: Settings) -> dict[str, Any]:
    """What is to be said of the card in force and of what it does not know."""
    from tokenweir import app as wiring
    from tokenweir.pricing.rows import read_rows

    card = wiring.open_rate_card(settings)
    file = wiring.rate_card_file(settings)
    built_in = read_rows(wiring.rate_card_text(None)).version
    ours = read_rows(wiring.rate_card_text(file)).version
    return {
        "card_version": card.version,
        "file": None if file is None else str(file),
        "oldest_check": card.oldest_check,
        "built_in_version": built_in,
        "newer_built_in": file is not None and settings.pricing.card_file is None and built_in > ours,
        "unpriced_models": _unpriced(settings),
        "unknown_usage_fields": _unknown_fields(settings),
    }


def _unpriced(settings: Settings) -> list[dict[str, Any]]:
    """Models of the ledger that were booked at the conservative rate and have not been rated anew."""
    from tokenweir import app as wiring
    from tokenweir.metering.spend import Query, spend
    from tokenweir.money import format_usd

    card, now_us = wiring.open_rate_card(settings), wiring.SystemClock().now_us()
    try:
        with closing(wiring.open_ledger(settings)) as store:
            rows = spend(store, Query(by=("model",), only={"unpriced": ("1",)})).rows
    except NotFound:
        return []
    return [
        {
            "model": row.group[0],
            "requests": row.sums.requests,
            "cost_nanos": row.sums.cost_nanos,
            "cost_usd": format_usd(row.sums.cost_nanos, decimals=9).replace("$", "").replace(",", ""),
            "priced_now": not card.rates(row.group[0], 0, now_us).unpriced,
        }
        for row in rows
        if row.sums.requests > 0
    ]


def _unknown_fields(settings: Settings) -> list[dict[str, Any]]:
    """Usage fields of the last days that the reader did not know."""
    from tokenweir import app as wiring
    from tokenweir.periods import DAY_US
    from tokenweir.wire.usage_fields import FLAG_UNKNOWN_FIELD

    since_us = wiring.SystemClock().now_us() - FLAGS_DAYS * DAY_US
    counts: dict[str, int] = {}
    try:
        with closing(wiring.open_ledger(settings)) as store, store.snapshot() as snapshot:
            for entry in snapshot.entries(since_us=since_us, flag=f"{FLAG_UNKNOWN_FIELD}:"):
                for flag in entry.flags:
                    if flag.startswith(f"{FLAG_UNKNOWN_FIELD}:"):
                        name = flag.removeprefix(f"{FLAG_UNKNOWN_FIELD}:")
                        counts[name] = counts.get(name, 0) + 1
    except NotFound:
        return []
    return [{"field": name, "entries": count} for name, count in sorted(counts.items())]


def _settings(config: Path | None, data_dir: Path | None) -> Settings:
    from tokenweir.settings import load_settings

    return load_settings(config, **({"data_dir": data_dir} if data_dir else {}))


def _candidate(source: str, *, allow_loopback: bool) -> str:
    """The text of the card, checked whole. Raises RateCardInvalid, OperatorError."""
    from tokenweir import app as wiring
    from tokenweir.cli.fetch import fetch
    from tokenweir.pricing.rate_card import parse_rate_card

    if source == BUILT_IN:
        text = wiring.rate_card_text(None)
    elif "://" in source:
        try:
            text = fetch(source, bytes_max=wiring.CARD_BYTES_MAX, allow_loopback=allow_loopback).decode("utf-8")
        except UnicodeDecodeError:
            raise RateCardInvalid("What the URL holds is not UTF-8 text.") from None
    else:
        text = wiring.rate_card_text(Path(source))
    parse_rate_card(text)
    return text


def _differences(settings: Settings, text: str) -> tuple[Difference, ...]:
    from tokenweir import app as wiring
    from tokenweir.pricing.differences import differences
    from tokenweir.pricing.rows import read_rows

    return differences(read_rows(wiring.rate_card_text(wiring.rate_card_file(settings))), read_rows(text))


def _refusal(settings: Settings, text: str) -> str:
    """Why the card may not be put in force, in one sentence; empty if it may."""
    from tokenweir import app as wiring
    from tokenweir.metering.spend import Query, spend
    from tokenweir.pricing.differences import lost_history
    from tokenweir.pricing.rate_card import parse_rate_card

    try:
        with closing(wiring.open_ledger(settings)) as store:
            booked = [row.group[0] for row in spend(store, Query(by=("model",))).rows]
    except NotFound:
        return ""
    lost = lost_history(wiring.open_rate_card(settings), parse_rate_card(text), booked)
    return f"The rate card is refused: it has no rate any more for what is booked of {', '.join(lost)}." if lost else ""


def _versions(settings: Settings, text: str) -> dict[str, str]:
    from tokenweir import app as wiring
    from tokenweir.pricing.rate_card import parse_rate_card

    return {"version_before": wiring.open_rate_card(settings).version, "version_after": parse_rate_card(text).version}


def _as_json(found: Sequence[Difference]) -> list[dict[str, Any]]:
    from msgspec.structs import asdict

    return [asdict(one) for one in found]


def _show(settings: Settings, text: str, found: Sequence[Difference]) -> None:
    versions = _versions(settings, text)
    sys.stdout.write(f"from {versions['version_before']} to {versions['version_after']}\n")
    if not found:
        sys.stdout.write("no price and no fact of a model changes\n")
        return
    rows = [[one.change, one.model, one.field, one.effective_from or "", one.effective_to or "", one.before, one.after] for one in found]
    print_table(["change", "model", "field", "from", "until", "before", "after"], rows, title="USD per million tokens")


def _done(versions: dict[str, str], found: Sequence[Difference], *, applied: bool, as_json: bool, remark: str) -> None:
    if as_json:
        print_json({"applied": applied, **versions, "differences": _as_json(found)})
    note(remark)
