"""`tokenweir limits replay`: what limits would have decided about what was sent, from the ledger. Thin over `metering.limit_replay`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.limits import limit_app
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenweir.ledger_ports import Names
    from tokenweir.limits.limit import Grant
    from tokenweir.limits.policy_file import NamedLimit
    from tokenweir.metering.replay_report import LimitFindings, ReplayReport
    from tokenweir.periods import Micros
    from tokenweir.ports import KeyRecord
    from tokenweir.settings import Settings

limits_app = typer.Typer(help="What limits would have done.", no_args_is_help=True)
app.add_typer(limits_app, name="limits")

KEYS_PRINTED = 3
PROGRESS_AFTER_S = 2.0


@limit_app.command("replay")
@limits_app.command("replay")
@reporting_failures
def replay(
    *,
    policy: Annotated[str, typer.Option("--policy", metavar="FILE", help="Policy file to try; without it, the limits that are set now.")] = "",
    since: Annotated[str, typer.Option("--from", help="Date or time at which the limits are taken to be set.")],
    until: Annotated[str, typer.Option("--to", help="Date or time before which attempts count; now if not given.")] = "",
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of --from and --to, such as Europe/Berlin.")] = "UTC",
    grants: Annotated[bool, typer.Option("--grants", help="Count the grants that limits of the same names have now.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run the limits over the ledger with a virtual clock: what they would have refused, for whom, and what that would have saved.

    Nothing is changed. What is taken for granted is said at the end.
    """
    from tokenweir import app as wiring
    from tokenweir.metering import limit_replay
    from tokenweir.metering.spend import parse_moment, time_zone
    from tokenweir.settings import load_settings

    zone = time_zone(timezone)
    since_us = parse_moment(since, zone)
    until_us = parse_moment(until, zone) if until else wiring.SystemClock().now_us()
    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    limits, of_limits, keys = _limits(settings, policy, with_grants=grants)
    with closing(wiring.open_ledger(settings)) as store:
        report = limit_replay.replay(
            store,
            limits,
            grants=of_limits,
            keys=keys,
            card=wiring.open_rate_card(settings),
            names=wiring.open_names_card(settings),
            since_us=since_us,
            until_us=until_us,
            progress=_progress(since_us, until_us),
        )
        with store.snapshot() as snapshot:
            names = snapshot.names()
    of_keys = {key.key_id: key for key in keys}
    if as_json:
        print_json(_plain(report, of_keys, names))
    else:
        _show(report, of_keys, names)


def _limits(settings: Settings, policy: str, *, with_grants: bool) -> tuple[list[NamedLimit], Mapping[str, Sequence[Grant]] | None, list[KeyRecord]]:
    """The limits to replay, the grants by their names (None if they are not wanted), and all keys."""
    from tokenweir import app as wiring
    from tokenweir.cli.limit_policy import read_policy_file
    from tokenweir.errors import NotFound
    from tokenweir.limiting.policy import places_of
    from tokenweir.limits.policy_file import NamedLimit, resolve

    file = read_policy_file(policy) if policy else None
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_limit_directory(settings)) as limits:
        records = limits.limits()
        keys = directory.keys()
        if file is None:
            wanted = [NamedLimit(one.limit, one.team, one.key) for one in records]
        else:
            places = places_of(directory, file.organization)
            wanted = resolve(file, places)
            records = [one for one in records if one.limit.scope.organization_id == places.organization_id]
    if not wanted:
        raise NotFound(f"{policy} holds no limit" if policy else "no limits are set; name a policy file with --policy")
    return wanted, {one.limit.name: one.grants for one in records} if with_grants else None, keys


def _progress(since_us: Micros, until_us: Micros) -> Callable[[int, Micros], None]:
    """Says how far it is, on standard error, once it takes long."""
    last = time.monotonic()

    def tell(number: int, at_us: Micros) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_AFTER_S:
            last = time.monotonic()
            percent = 100 * max(0, at_us - since_us) // (until_us - since_us)
            note(f"{number:,} attempts replayed, {percent} %")

    return tell


def _plain(report: ReplayReport, keys: Mapping[str, KeyRecord], names: Names) -> dict[str, Any]:
    """The report as JSON shows it."""
    from msgspec.structs import asdict

    from tokenweir.periods import format_instant

    return {
        "from": format_instant(report.since_us),
        "to": format_instant(report.until_us),
        "totals": asdict(report.totals) | {"saved_nanos": report.totals.saved_nanos},
        "limits": [_plain_limit(one, keys, names) for one in report.limits],
        "assumptions": list(report.assumptions),
        "notes": list(report.notes),
    }


def _plain_limit(one: LimitFindings, keys: Mapping[str, KeyRecord], names: Names) -> dict[str, Any]:
    from msgspec.structs import asdict

    from tokenweir.limits.policy_plan import fields_of
    from tokenweir.periods import format_instant

    def key(key_id: str) -> dict[str, str]:
        known = keys.get(key_id)
        name = names.keys.get(key_id, "") if known is None else known.name
        return {"key_id": key_id, "key": name, "team": "" if known is None else known.team, "owner": "" if known is None else known.owner}

    first, peak, limit = one.first, one.peak, one.limit.limit
    counts = asdict(one)
    for name in ("limit", "first", "keys", "peak"):
        del counts[name]
    return {
        "name": limit.name,
        "resource": limit.resource.value,
        "amount": limit.amount,
        "action": limit.action.value,
        "shadow": limit.shadow,
        "fields": fields_of(limit, team=one.limit.team, key=one.limit.key),
        **counts,
        "first": None
        if first is None
        else {"at": format_instant(first.at_us), "request_id": first.request_id, "model": first.model} | key(first.key_id),
        "keys": [key(hits.key_id) | {"requests": hits.requests, "cost_nanos": hits.cost_nanos} for hits in one.keys],
        "peak": None
        if peak is None
        else {
            "units": peak.units,
            "room": peak.room,
            "percent": _percent(peak.units, peak.room),
            "seat": peak.seat,
            "at": format_instant(peak.at_us),
        },
    }


def _percent(units: int, room: int) -> int | None:
    """Rounded down, in whole percent; None of no room."""
    return 100 * units // room if room else None


def _show(report: ReplayReport, keys: Mapping[str, KeyRecord], names: Names) -> None:
    from tokenweir.money import format_usd
    from tokenweir.periods import format_instant

    totals = report.totals
    write = sys.stdout.write
    write(f"{format_instant(report.since_us)[:19]}Z to {format_instant(report.until_us)[:19]}Z: {totals.requests:,} requests")
    write(f" ({totals.attempts:,} attempts), {format_usd(totals.cost_nanos)} spent\n")
    columns = ["limit", "admitted", "refused", "waited", "downgraded", "warned", "shadow", "saved", "peak", "first", "who"]
    rows = [_row(_plain_limit(one, keys, names), one) for one in report.limits]
    print_table(columns, rows, right=["admitted", "refused", "waited", "downgraded", "warned", "shadow", "saved", "peak"])
    write(f"Refused: {totals.refused:,} of {totals.requests:,} requests, {totals.refused_attempts:,} attempts, {format_usd(totals.refused_nanos)}.\n")
    if totals.downgraded:
        write(f"Downgraded: {totals.downgraded:,} requests, {format_usd(totals.downgrade_saved_nanos)} less.\n")
    if totals.waited:
        write(f"Waited and got in: {totals.waited:,} requests.\n")
    if totals.shadow_nanos:
        write(f"Shadow limits had no room for what cost {format_usd(totals.shadow_nanos)}; of that nothing is saved.\n")
    write(f"Saved: {format_usd(totals.saved_nanos)} of {format_usd(totals.cost_nanos)}.\n")
    for text in (*report.assumptions, *report.notes):
        note(text)


def _row(plain: dict[str, Any], one: LimitFindings) -> list[str]:
    from tokenweir.limits.drafting import amount_text
    from tokenweir.money import format_usd

    peak, first = plain["peak"], plain["first"]
    who = [f"{key['key'] or key['key_id']} of {key['team']}: {key['requests']:,}" for key in plain["keys"][:KEYS_PRINTED]]
    if one.keys_hit > KEYS_PRINTED:
        who.append(f"and {one.keys_hit - KEYS_PRINTED:,} more keys")
    percent = "" if peak is None or peak["percent"] is None else f" ({peak['percent']} %)"
    return [
        plain["name"],
        *(f"{plain[name]:,}" for name in ("admitted", "refused", "waited", "downgraded", "warned", "shadowed")),
        format_usd(plain["saved_nanos"]),
        "-" if peak is None else f"{amount_text(one.limit.limit.resource, peak['units'])}{percent}",
        "-" if first is None else f"{first['at'][:19]}Z",
        ", ".join(who) or "-",
    ]
