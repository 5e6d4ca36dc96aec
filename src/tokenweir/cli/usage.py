"""`tokenweir usage`: what was used and what it cost, by day, model, team or key; thin over `metering/spend.py`."""

from __future__ import annotations

from contextlib import closing
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenweir.ledger.rollups import Sums
    from tokenweir.ledger_ports import LedgerStore, Names
    from tokenweir.metering.spend import Query, Report, Row, TimeGrain


class Grouping(StrEnum):
    """What `usage` can be shown by."""

    DAY = "day"
    MONTH = "month"
    HOUR = "hour"
    MODEL = "model"
    TEAM = "team"
    KEY = "key"
    ORGANIZATION = "organization"
    CERTAINTY = "certainty"


TIMES: dict[Grouping, TimeGrain] = {Grouping.DAY: "day", Grouping.MONTH: "month", Grouping.HOUR: "hour"}


@app.command("usage")
@reporting_failures
def usage(
    *,
    by: Annotated[Grouping, typer.Option("--by", help="What to group by.")] = Grouping.DAY,
    since: Annotated[str | None, typer.Option("--since", help="Date or time from which on; the first entry if not given.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Date or time before which; now if not given.")] = None,
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of days and dates, such as Europe/Berlin.")] = "UTC",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show requests, tokens and cost. Works while `serve` runs; what a request used is here about a second after it ended."""
    from tokenweir import app as wiring
    from tokenweir.metering.spend import Query, parse_moment, spend, time_zone
    from tokenweir.settings import load_settings

    zone = time_zone(timezone)
    dims: tuple[str, ...] = () if by in TIMES else ("team", "key") if by is Grouping.KEY else (by.value,)
    query = Query(
        since_us=None if since is None else parse_moment(since, zone),
        until_us=None if until is None else parse_moment(until, zone),
        timezone=timezone,
        grain=TIMES.get(by),
        by=dims,
    )
    if query.since_us is not None and query.until_us is not None and query.until_us <= query.since_us:
        raise ValueError("--until is not after --since")
    with closing(wiring.open_ledger(load_settings(config, **({"data_dir": data_dir} if data_dir else {})))) as store:
        report = spend(store, query)
        with store.snapshot() as snapshot:
            names = snapshot.names()
        rows = [{**_labels(row, by, query, names), **_figures(row.sums)} for row in report.rows]
        if as_json:
            print_json({"by": by.value, "timezone": timezone, "rows": rows, "totals": _figures(report.totals)})
            return
        _print(rows, by, report)
        _name_doubts(store, query)


def _labels(row: Row, by: Grouping, query: Query, names: Names) -> dict[str, Any]:
    from tokenweir.metering.spend import label, time_zone

    if by in TIMES:
        return {by.value: label(row.start_us or 0, query.grain or "day", time_zone(query.timezone))}
    if by is Grouping.KEY:
        team, key = row.group
        return {"key": key, "key_name": names.keys.get(key), "team": names.teams.get(team, team)}
    if by is Grouping.TEAM:
        return {"team": names.teams.get(row.group[0], row.group[0]), "team_id": row.group[0]}
    if by is Grouping.ORGANIZATION:
        return {"organization": names.organizations.get(row.group[0], row.group[0]), "organization_id": row.group[0]}
    return {by.value: row.group[0]}


def _figures(sums: Sums) -> dict[str, Any]:
    from msgspec.structs import asdict

    from tokenweir.money import format_usd

    return {**asdict(sums), "cost_usd": format_usd(sums.cost_nanos, decimals=9).replace("$", "").replace(",", "")}


_COLUMNS = {
    "requests": "requests",
    "errors": "errors",
    "uncached_input": "input",
    "cache_write_5m": "write 5m",
    "cache_write_1h": "write 1h",
    "cache_read": "cache read",
    "output": "output",
}


def _print(rows: Sequence[dict[str, Any]], by: Grouping, report: Report) -> None:
    from tokenweir.money import format_usd

    if not rows:
        note("Nothing was used in this time.")
        return
    first = ["team", "key_name"] if by is Grouping.KEY else [by.value]
    lines = [[*(str(row[name] or row.get("key") or "") for name in first), *_cells(row), format_usd(row["cost_nanos"])] for row in rows]
    totals = _figures(report.totals)
    lines.append(["total", *[""] * (len(first) - 1), *_cells(totals), format_usd(report.totals.cost_nanos)])
    head = ["team", "key"] if by is Grouping.KEY else first
    print_table([*head, *_COLUMNS.values(), "cost"], lines, right=[*_COLUMNS.values(), "cost"])


def _cells(figures: dict[str, Any]) -> list[str]:
    return [f"{figures[name]:,}" for name in _COLUMNS]


def _name_doubts(store: LedgerStore, query: Query) -> None:
    """Say which part of the totals is not the provider's own count at a known price."""
    from msgspec.structs import replace

    from tokenweir.ledger.sources import GATEWAY
    from tokenweir.metering.spend import spend
    from tokenweir.money import format_usd

    doubts = {
        "partial": "cut answers, counted as far as they were seen",
        "ceiling": "attempts of unknown outcome, booked at the most they can have cost",
    }
    for row in spend(store, replace(query, grain=None, by=("certainty", "source"))).rows:
        certainty, source = row.group
        if certainty in doubts:
            what = doubts[certainty] if source == GATEWAY else f"calls told by {source}"
            note(f"Estimated: {format_usd(row.sums.cost_nanos)} for {row.sums.requests:,} {what}.")
    unpriced = spend(store, replace(query, grain=None, by=("model",), only={"unpriced": ("1",)}))
    for row in unpriced.rows:
        note(
            f"Unpriced: {format_usd(row.sums.cost_nanos)} for {row.sums.requests:,} requests to {row.group[0]}, at a conservative rate; "
            "once the rate card knows the model, run: tokenweir ledger rerate"
        )
