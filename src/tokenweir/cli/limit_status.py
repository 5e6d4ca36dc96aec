"""`tokenweir limit status`: how every limit stands, from where it is enforced: the gateway's memory, the shared store, or, if no gateway runs, the ledger."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.limits import limit_app
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures

if TYPE_CHECKING:
    from tokenweir.limit_ports import LimitRecord
    from tokenweir.metering.limit_status import LimitStatus
    from tokenweir.settings import Settings

ROWS_MAX = 200
"""Rows of the table for people; more are counted. `--json` has them all."""


@limit_app.command("status")
@reporting_failures
def status(
    limit: Annotated[list[str] | None, typer.Argument(metavar="[LIMIT]...", help="Ids or names; all if none.", show_default=False)] = None,
    team: Annotated[str, typer.Option("--team", help="Only limits of this team and its keys.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """How limits stand now: used, held by requests under way, and left."""
    from tokenweir import app as wiring
    from tokenweir.limiting import list_limits, show_limit
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_limit_directory(settings)) as limits:
        records = [show_limit(limits, one) for one in limit] if limit else list_limits(directory, limits, team=team)
        names = {key.key_id: f"{key.team}/{key.name}" for key in directory.keys(revoked=True)} | {one.team_id: one.team for one in directory.teams()}
    found, source = read_statuses(settings, records)
    if as_json:
        now_us = wiring.SystemClock().now_us()
        print_json([_record(record, one, now_us) for record, one in found])
        return
    if not found:
        note("no limit is set; set one with: tokenweir limit set --team TEAM --resource spend --amount 100 --window month")
        return
    _print(found, names)
    note(f"read from {source}")


def read_statuses(settings: Settings, records: list[LimitRecord]) -> tuple[list[tuple[LimitRecord, LimitStatus]], str]:
    """How the limits stand, one row for each seat, and where that was read. Raises StoreUnavailable."""
    import msgspec

    from tokenweir.control import ask_gateway, read_control
    from tokenweir.metering.limit_status import LimitStatus

    by_id = {record.limit.limit_id: record for record in records}
    answer = None
    if settings.limits.store_url is None and (control := read_control(settings.data_dir)) is not None:
        # The gateway follows the directory within a moment: a limit that was just set is waited for.
        for _ in range(20):
            asked = "&".join(f"limit={limit_id}" for limit_id in by_id) if len(by_id) <= 50 else ""
            answer = ask_gateway(control, f"/internal/limits?{asked}")
            told = msgspec.json.decode(answer, type=list[LimitStatus]) if answer is not None else None
            if told is None or by_id.keys() <= {one.limit_id for one in told} | _without_seats(records):
                break
            time.sleep(0.05)
        if told is not None:
            return [(by_id[one.limit_id], one) for one in told if one.limit_id in by_id], f"the gateway at {control.url}"
    statuses = asyncio.run(_read_stores(settings, records))
    source = "the ledger; no gateway runs" if settings.limits.store_url is None else "the shared store"
    return [(by_id[one.limit_id], one) for one in statuses], source


def _without_seats(records: list[LimitRecord]) -> set[str]:
    """Limits with a bucket for each of something may have none yet."""
    return {record.limit.limit_id for record in records if record.limit.scope.per}


async def _read_stores(settings: Settings, records: list[LimitRecord]) -> list[LimitStatus]:
    """Read the shared store, or count in a memory of our own what the ledger says."""
    from tokenweir import app as wiring
    from tokenweir.limits.book import LimitBook
    from tokenweir.metering.limit_status import LimitStandings
    from tokenweir.metering.limit_use import UseLookup
    from tokenweir.principals import Principal

    clock = wiring.SystemClock()
    book = LimitBook(canonical=wiring.open_names_card(settings).resolve, complete_since_us=None)
    book.update([(record.limit, record.grants) for record in records], whole=True)
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_ledger(settings, create=True)) as ledger:
        principals = [
            Principal(key.organization_id, key.team_id, key.key_id, key.organization, key.team, key.name, key.owner, key.tags)
            for key in directory.keys(revoked=False)
        ]
        store = wiring.open_limit_store(settings, owner=f"status-{wiring.IdMint()(clock.now_us())}")
        lookup = UseLookup(wiring.open_ledger_use(settings, ledger, directory), book)
        try:
            return await LimitStandings(store=store, book=book, use=lookup).report(principals, waits={}, now_us=clock.now_us())
        finally:
            await store.close()
            lookup.close()


def _record(record: LimitRecord, one: LimitStatus, now_us: int) -> dict[str, Any]:
    """The limit as `limit show` prints it, with how it stands."""
    from tokenweir.cli.limit_fields import plain_limit
    from tokenweir.periods import format_instant

    return {
        **plain_limit(record, now_us),
        "seat": one.seat,
        "room": one.room,
        "used": one.used,
        "held": one.held,
        "remaining": one.remaining,
        "starts_at": None if one.starts_at_us is None else format_instant(one.starts_at_us),
        "resets_at": None if one.resets_at_us is None else format_instant(one.resets_at_us),
        "queue": None
        if one.waits is None
        else {
            "waiting": one.waits.waiting,
            "p50_ms": one.waits.p50_us // 1_000,
            "p95_ms": one.waits.p95_us // 1_000,
            "served": one.waits.served,
            "expired": one.waits.expired,
            "refused_full": one.waits.refused_full,
        },
    }


def _print(found: list[tuple[LimitRecord, LimitStatus]], names: dict[str, str]) -> None:
    from tokenweir.metering.limit_answers import amount_words, period_words, reset_words

    rows = []
    for record, one in found[:ROWS_MAX]:
        limit = record.limit

        def words(units: int | None, resource: Any = limit.resource) -> str:
            return "?" if units is None else amount_words(resource, units)[0]

        share = "" if one.used is None or not one.room else f"{100 * (one.used + (one.held or 0)) // one.room} %"
        resets = reset_words(limit, one.resets_at_us) if one.resets_at_us is not None else ""
        unit = amount_words(limit.resource, 0)[1]
        seat = names.get(one.seat, one.seat)
        rows.append(
            [
                limit.limit_id,
                limit.name + (f" · {seat}" if seat else "") + (" (shadow)" if limit.shadow else ""),
                words(one.used),
                words(one.held),
                words(one.room),
                f"{unit} {period_words(limit)}".strip(),
                share,
                resets or (f"{one.waits.waiting} waiting" if one.waits is not None and one.waits.waiting else ""),
            ]
        )
    print_table(["id", "limit", "used", "held", "of", "unit", "full", "resets"], rows, right=("used", "held", "of", "full"))
    if len(found) > ROWS_MAX:
        note(f"and {len(found) - ROWS_MAX} more; --json has them all, or name a limit or a --team")
