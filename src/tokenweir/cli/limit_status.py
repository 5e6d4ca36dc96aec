"""`tokenweir limit status`: how every limit stands, from where it is enforced: the gateway's memory, the shared store, or, if no gateway runs, the ledger."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.limits import limit_app
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, fits, note, print_json, print_table, reporting_failures

if TYPE_CHECKING:
    from tokenweir.limit_ports import LimitRecord
    from tokenweir.limits.limit import Limit
    from tokenweir.metering.limit_status import LimitStatus
    from tokenweir.periods import Micros
    from tokenweir.settings import Settings

ROWS_MAX = 200
"""Rows of the table for people; more are counted. `--json` has them all."""


@limit_app.command("status")
@reporting_failures
def status(
    limit: Annotated[list[str] | None, typer.Argument(metavar="LIMIT", help="Ids or names; all if none.", show_default=False)] = None,
    team: Annotated[str, typer.Option("--team", help="Only limits of this team and its keys.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """How limits stand now: used, held by requests under way, and left."""
    from tokenweir import app as wiring
    from tokenweir.limiting import list_limits, live_limit
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_limit_directory(settings)) as limits:
        records = [live_limit(limits, one) for one in limit] if limit else list_limits(directory, limits, team=team)
        names = {key.key_id: f"{key.team}/{key.name}" for key in directory.keys(revoked=True)} | {one.team_id: one.team for one in directory.teams()}
    found, source = read_statuses(settings, records)
    order = {record.limit.limit_id: place for place, record in enumerate(records)}
    found.sort(key=lambda one: order[one[1].limit_id])  # stable: the seats of a limit stay as they are
    now_us = wiring.SystemClock().now_us()
    if as_json:
        print_json([_record(record, one, now_us) for record, one in found])
        return
    if not found:
        note("No limits here. Set one with: tokenweir limit set --team TEAM --resource spend --amount 100 --window month")
        return
    _print(found, names, now_us)
    note(f"Read from {source}.")


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


def _print(found: list[tuple[LimitRecord, LimitStatus]], names: dict[str, str], now_us: Micros) -> None:
    from tokenweir.metering.limit_answers import amount_words, period_words

    wide, narrow = [], []
    for record, one in found[:ROWS_MAX]:
        limit = record.limit
        name = limit.name + _whose(one.seat, names) + (" (shadow)" if limit.shadow else "")
        used, held, room = ("-" if units is None else amount_words(limit.resource, units)[0] for units in (one.used, one.held, one.room))
        unit = f"{amount_words(limit.resource, 0)[1]} {period_words(limit)}".strip()
        share = "-" if one.used is None or not one.room else f"{100 * (one.used + (one.held or 0)) // one.room} %"
        wide.append([limit.limit_id, name, used, held, room, unit, share, _resets(limit, one, now_us, short=False)])
        # A narrow terminal has no room for the ids, which `limit list` has, and the share is seen from what is used of what.
        narrow.append([name, f"{used} of {room} {unit}", held, _resets(limit, one, now_us, short=True)])
    columns = ["id", "limit", "used", "held", "of", "unit", "full", "resets"]
    if fits(columns, wide):
        print_table(columns, wide, right=("used", "held", "of", "full"))
    else:
        print_table(["limit", "used", "held", "resets in"], narrow, right=("held",))
    if len(found) > ROWS_MAX:
        note(f"And {len(found) - ROWS_MAX} more; --json has them all, or name a limit or a --team.")


def _whose(seat: str, names: dict[str, str]) -> str:
    if seat == "*":
        return " (sessions are not listed)"
    return f" · {names.get(seat, seat)}" if seat else ""


def _resets(limit: Limit, one: LimitStatus, now_us: Micros, *, short: bool) -> str:
    """When a cycle ends, or all of a rolling limit has flowed back; else how many wait for it."""
    from tokenweir.cli.limit_fields import time_left
    from tokenweir.metering.limit_answers import reset_words

    if one.waits is not None and one.waits.waiting:
        return f"{one.waits.waiting} waiting"
    if one.resets_at_us is None or one.resets_at_us <= now_us:
        return "-"
    left = time_left(one.resets_at_us - now_us)
    return left if short else reset_words(limit, one.resets_at_us) or f"in {left}"
