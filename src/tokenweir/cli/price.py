"""`tokenweir price`: what a usage object costs, and how that comes about. It needs no network and no data directory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenweir.cli.output import ConfigOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app
from tokenweir.errors import CallerError

if TYPE_CHECKING:
    from tokenweir.periods import Micros
    from tokenweir.pricing.rating import Charge, Line
    from tokenweir.usage import Metered


@app.command("price")
@reporting_failures
def price(
    *,
    model: Annotated[str, typer.Option("--model", help="Model id, in any spelling.")],
    usage: Annotated[str, typer.Option("--usage", help="The provider's usage object as JSON; @FILE reads a file, - standard input.")],
    at: Annotated[str | None, typer.Option("--at", help="Date or time at which the request began; now if not given.")] = None,
    batch: Annotated[bool, typer.Option("--batch", help="It came from a message batch.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Price a usage object of the provider."""
    from tokenweir.app import open_rate_card
    from tokenweir.pricing.rating import rate
    from tokenweir.settings import load_settings

    at_us = _instant(at)
    metered = _read(usage, model)
    card = open_rate_card(load_settings(config))
    charge = rate(card, metered, at_us=at_us, batch=batch)
    canonical = card.resolve(metered.model) or metered.model
    if as_json:
        _print_json(charge, canonical, metered, at_us)
    else:
        _print_table(charge, canonical, metered, at_us)


def _instant(at: str | None) -> Micros:
    from tokenweir.app import SystemClock
    from tokenweir.periods import parse_instant

    return SystemClock().now_us() if at is None else parse_instant(at)


def _read(usage: str, model: str) -> Metered:
    """The usage object as metered; raises ValueError with one sentence if it is not one."""
    from tokenweir.wire.messages import read_usage
    from tokenweir.wire.usage_fields import FLAG_BAD_FIELD, is_bad

    text = _text(usage)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--usage is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("--usage is nested too deeply to be a usage object") from error
    if not isinstance(content, dict):
        raise ValueError('--usage is not a JSON object; write it like {"input_tokens": 10, "output_tokens": 5}')  # noqa: TRY004 - a wrong argument
    try:
        metered = read_usage(text, model=model)
    except CallerError as error:
        raise ValueError(f"--usage: {error.message}") from error
    if is_bad(metered.flags):
        # The gateway must book what it can read; a person who asks for a price is better told.
        bad = ", ".join(flag.removeprefix(f"{FLAG_BAD_FIELD}:") for flag in metered.flags if flag.startswith(FLAG_BAD_FIELD))
        raise ValueError(f"--usage has a value that cannot be right in: {bad}")
    return metered


def _text(usage: str) -> bytes:
    if usage == "-":
        return sys.stdin.buffer.read()
    if not usage.startswith("@"):
        return usage.encode()
    try:
        return Path(usage[1:]).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {usage[1:]}: {error.strerror}") from error


def _print_json(charge: Charge, model: str, metered: Metered, at_us: Micros) -> None:
    from msgspec.structs import asdict

    from tokenweir.periods import format_instant

    print_json(
        {
            "cost_nanos": charge.nanos,
            "cost_usd": _usd(charge.nanos),
            "model": model,
            "unpriced": charge.unpriced,
            "card_version": charge.card_version,
            "at": format_instant(at_us),
            "flags": list(metered.flags),
            "lines": [asdict(line) for line in charge.lines],
        }
    )


def _print_table(charge: Charge, model: str, metered: Metered, at_us: Micros) -> None:
    from tokenweir.periods import format_instant

    rows = [[line.component, line.model, f"{line.quantity:,}", _rate_text(line), _usd(line.nanos)] for line in charge.lines]
    print_table(
        ["component", "model", "quantity", "rate in USD", "USD"],
        [*rows, ["total", "", "", "", _usd(charge.nanos)]],
        right=["quantity", "USD"],
        title=f"How this was priced: {model} at {format_instant(at_us)}, rate card {charge.card_version}",
    )
    if charge.unpriced:
        note("Unpriced: the rate card has no rate for a model at that time; a conservative one was used.")
    if not metered.segments:
        note("The provider bills nothing for this answer.")
    for flag in metered.flags:
        note(f"Flag: {flag}")


def _rate_text(line: Line) -> str:
    from decimal import Decimal

    from tokenweir.pricing.rating import WEB_SEARCH

    if line.component == WEB_SEARCH:
        return f"{Decimal(line.usd_per_mtok) / 1000:f} per 1,000"
    return f"{line.usd_per_mtok} per million"


def _usd(nanos: int) -> str:
    """Exact, as plain decimal text."""
    from tokenweir.money import format_usd

    return format_usd(nanos, decimals=9).replace("$", "").replace(",", "")
