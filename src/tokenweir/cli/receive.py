"""`tokenweir receive`: the receiver of Claude Code's telemetry alone; and `tokenweir telemetry`: its metrics against the ledger."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, fail, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenweir.ledger.entries import Entry
    from tokenweir.ledger_ports import TelemetrySum

_TOKEN_CLASSES = {"input": "uncached_input", "cacheCreation": "cache_write", "cacheRead": "cache_read", "output": "output"}
_FIGURES = (*_TOKEN_CLASSES.values(), "cost_nanos")
USUAL_PORT = 4318


@app.command("receive")
@reporting_failures
def receive(
    *,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help=f"Port; {USUAL_PORT} unless set, 0 lets the system choose.", show_default=False)
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; 127.0.0.1 unless set.", show_default=False)] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    listen_fd: Annotated[int | None, typer.Option("--listen-fd", hidden=True)] = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Receive Claude Code's telemetry (OTLP over HTTP) and book its calls. `serve` does it too, with `[telemetry_receiver] port` set."""
    from tokenweir import processes
    from tokenweir.settings import load_settings

    overrides: dict[str, object] = {"data_dir": data_dir} if data_dir is not None else {}
    if host is not None:
        overrides["telemetry_receiver__host"] = host
    if port is not None:
        overrides["telemetry_receiver__port"] = port
    settings = load_settings(config, **overrides)
    if settings.telemetry_receiver.port is None:
        settings = load_settings(config, **overrides, telemetry_receiver__port=USUAL_PORT)
    code = processes.run_receiver(settings, announce=print_json, listen_fd=listen_fd, supervised=supervised)
    if code:
        fail("ended out of order; the log above says why", code=code)


@app.command("telemetry")
@reporting_failures
def telemetry(
    *,
    since: Annotated[str | None, typer.Option("--since", help="Day (UTC) from which on; seven days ago if not given.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Day (UTC) before which; tomorrow if not given.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Directory that holds the database.", show_default=False)] = None,
) -> None:
    """Compare what Claude Code's metrics say with what the ledger holds for the same sessions and days. Metrics are never added to anything."""
    from tokenweir import app as wiring
    from tokenweir.periods import DAY_US, day_start, parse_instant, to_datetime
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    today_us = day_start(wiring.SystemClock().now_us())
    since_us = day_start(parse_instant(since)) if since else today_us - 7 * DAY_US
    until_us = day_start(parse_instant(until)) if until else today_us + DAY_US
    if until_us <= since_us:
        raise ValueError("--until is not after --since")
    with ExitStack() as stack:
        sums = stack.enter_context(closing(wiring.open_telemetry_sums(settings)))
        ledger = stack.enter_context(closing(wiring.open_ledger(settings)))
        told = _told(sums.telemetry_sums(since_us, until_us))
        with ledger.snapshot() as snapshot:
            booked = _booked(snapshot.entries(since_us=since_us, until_us=until_us), {session for _, session in told})
    rows = [
        {"day": to_datetime(day_us).date().isoformat(), "session": session, **_compared(told[day_us, session], booked[day_us, session])}
        for day_us, session in sorted(told)
    ]
    if as_json:
        print_json({"rows": rows})
        return
    _print(rows)


def _told(sums: Iterable[TelemetrySum]) -> dict[tuple[int, str], dict[str, int]]:
    from tokenweir.wire.telemetry import COST_METRIC

    found: dict[tuple[int, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(_FIGURES, 0))
    for one in sums:
        name = "cost_nanos" if one.metric == COST_METRIC else _TOKEN_CLASSES[one.token_type]
        found[one.day_us, one.session_id][name] += one.amount
    return found


def _booked(entries: Iterable[Entry], sessions: set[str]) -> dict[tuple[int, str], dict[str, int]]:
    from tokenweir.periods import day_start

    found: dict[tuple[int, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(_FIGURES, 0))
    for entry in entries:
        if entry.session_id not in sessions:
            continue
        figures = found[day_start(entry.started_at_us), entry.session_id]
        figures["uncached_input"] += entry.usage.uncached_input
        figures["cache_write"] += entry.usage.cache_write_5m + entry.usage.cache_write_1h
        figures["cache_read"] += entry.usage.cache_read
        figures["output"] += entry.usage.output
        figures["cost_nanos"] += entry.cost_nanos
    return found


def _compared(told: dict[str, int], booked: dict[str, int]) -> dict[str, Any]:
    return {
        "told": told,
        "booked": booked,
        "tokens_agree": all(told[name] == booked[name] for name in _TOKEN_CLASSES.values()),
        "difference_nanos": booked["cost_nanos"] - told["cost_nanos"],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from tokenweir.money import format_usd

    if not rows:
        note("No metrics were received for these days.")
        return
    lines = [
        [
            row["day"],
            row["session"] or "(none)",
            *(f"{sum(row[side][name] for name in _TOKEN_CLASSES.values()):,}" for side in ("told", "booked")),
            format_usd(row["told"]["cost_nanos"]),
            format_usd(row["booked"]["cost_nanos"]),
            "yes" if row["tokens_agree"] else "no",
        ]
        for row in rows
    ]
    numbers = ["tokens told", "tokens booked", "cost told", "cost booked"]
    print_table(["day", "session", *numbers, "tokens agree"], lines, right=numbers)
    if not all(row["tokens_agree"] for row in rows):
        note("Where they differ, events were lost or refused, calls ran over midnight UTC, or the session's calls are booked under another id.")
