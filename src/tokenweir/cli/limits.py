"""`tokenweir limit …`: set, list, show and remove limits; thin over `limiting`. How they stand now is `limit status`, in a module of its own."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from tokenweir.cli.keys import actor
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from tokenweir.limiting import SetLimit

limit_app = typer.Typer(help="Limits: who may use how much of what, in which window, and what happens then.", no_args_is_help=True)
app.add_typer(limit_app, name="limit")

LimitArgument = Annotated[str, typer.Argument(metavar="LIMIT", help="Id of the limit, or its name if only one limit has it.")]
OrganizationOption = Annotated[str, typer.Option("--organization", help="Which organization, if there are several.")]
_RESOURCES = "requests, input_tokens, output_tokens, tokens, spend or concurrency"


@limit_app.command("set")
@reporting_failures
def set_(
    *,
    org: Annotated[bool, typer.Option("--org", help="On the whole organization.")] = False,
    team: Annotated[str, typer.Option("--team", help="On this team: its name or id.")] = "",
    key: Annotated[str, typer.Option("--key", help="On this key: its id, or its name if only one key has it.")] = "",
    organization: OrganizationOption = "",
    resource: Annotated[str, typer.Option("--resource", help=f"What is limited: {_RESOURCES}.")],
    amount: Annotated[str, typer.Option("--amount", help="How much: 500, 10_000, 250k, 1.5M; spend in USD, such as 12.50.")],
    window: Annotated[str, typer.Option("--window", help="rolling:60s, day, week, month, quarter, year or every:14d; concurrency has none.")] = "",
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of a calendar window, such as Europe/Berlin. UTC if none.")] = "",
    anchor: Annotated[
        str, typer.Option("--anchor", help="When its cycles begin: weekday 1-7, day of the month, fiscal start MM-DD, or a date.")
    ] = "",
    models: Annotated[
        list[str] | None, typer.Option("--models", help="Model ids or patterns it covers, with commas or repeated. All if none.")
    ] = None,
    user: Annotated[str, typer.Option("--user", help="Only requests with keys of this owner.")] = "",
    session: Annotated[str, typer.Option("--session", help="Only requests of this session.")] = "",
    tag: Annotated[str, typer.Option("--tag", help="Only requests with keys of this tag.")] = "",
    per: Annotated[str, typer.Option("--per", help="Give each team, key, user or session the amount for itself; otherwise they share it.")] = "",
    action: Annotated[str, typer.Option("--action", help="At the limit: block, warn, queue, downgrade or end.")] = "block",
    queue_for: Annotated[str, typer.Option("--queue-for", help="Longest wait, for the action queue. 30s if not said.")] = "",
    to: Annotated[str, typer.Option("--to", metavar="MODEL", help="The other model, for the action downgrade.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Reserve the most a request can use, so that the limit can never be passed.")] = False,
    shadow: Annotated[bool, typer.Option("--shadow", help="Decide and record, and never refuse.")] = False,
    carry_over: Annotated[bool, typer.Option("--carry-over", help="Take what was used too much in a cycle from the next one.")] = False,
    name: Annotated[str, typer.Option("--name", help="What it is called; setting it again under that name changes it.")] = "",
    contact: Annotated[str, typer.Option("--contact", help="Whom to ask for more; named in refusals.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Set a limit, or change it.

    A limit is a statement of how it shall be: an option that is left out is as if it had never been given.
    """
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import nobodys_words
    from tokenweir.settings import load_settings

    if org and (team or key):
        raise ValueError("--org is the whole organization; leave it out, or leave out --team and --key")
    if not (org or team or key):
        raise ValueError("say whose use is limited: --org, --team TEAM or --key KEY")
    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_limit_directory(settings)) as limits:
        done = limiting.set_limit(
            directory,
            limits,
            organization=organization,
            team=team,
            key=key,
            resource=resource,
            amount=amount,
            window=window,
            timezone=timezone,
            anchor=anchor,
            models=_each(models),
            user=user,
            session=session,
            tag=tag,
            per=per,
            action=action,
            queue_for=queue_for,
            to=to,
            strict=strict,
            shadow=shadow,
            carry_over=carry_over,
            name=name,
            contact=contact,
            actor=actor(),
            now_us=now_us,
            entropy=os.urandom,
        )
        nobody = nobodys_words(done.limit.limit, directory.keys(revoked=False), wiring.open_names_card(settings))
    _show_set(done, now_us, as_json=as_json)
    for words in nobody:
        note(words)


@limit_app.command("list")
@reporting_failures
def list_(
    *,
    team: Annotated[str, typer.Option("--team", help="Only those on this team and its keys.")] = "",
    key: Annotated[str, typer.Option("--key", help="Only those on this key.")] = "",
    organization: OrganizationOption = "",
    everything: Annotated[bool, typer.Option("--all", help="Removed ones too.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List limits."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import action_of, amount_of, plain_limit, window_of
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_limit_directory(settings)) as limits:
        records = limiting.list_limits(directory, limits, organization=organization, team=team, key=key, removed=everything)
    if as_json:
        print_json([plain_limit(one, now_us) for one in records])
        return
    if not records:
        note("No limits here. Set one with: tokenweir limit set --team TEAM --resource spend --amount 100 --window month")
        return
    rows = [
        [
            one.limit.limit_id,
            one.limit.name,
            limiting.whose_of(one),
            f"{amount_of(one.limit.amount, one.limit.resource)} {window_of(one.limit)}".strip(),
            ", ".join(one.limit.models) or "all",
            action_of(one.limit),
            "removed" if one.removed_at_us is not None else str(sum(grant.voided_at_us is None for grant in one.grants) or "-"),
        ]
        for one in records
    ]
    print_table(["id", "name", "whose", "limit", "models", "at the limit", "grants"], rows, right=["grants"])


@limit_app.command("show")
@reporting_failures
def show(limit: LimitArgument, *, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show a limit with its grants."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import action_of, amount_of, plain_limit, when, window_of
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        record = limiting.show_limit(limits, limit)
    if as_json:
        print_json(plain_limit(record, now_us))
        return
    one = record.limit
    fields = {
        "id": one.limit_id,
        "name": one.name,
        "organization": record.organization,
        "whose": limiting.whose_of(record),
        "limit": f"{amount_of(one.amount, one.resource)} {window_of(one)}".strip(),
        "models": ", ".join(one.models) or "all",
        "at the limit": action_of(one),
        "ask for more": one.contact or "-",
        "policy": one.managed_by or "-",
        "set": when(one.created_at_us),
        "removed": when(record.removed_at_us),
    }
    print_table(["field", "value"], list(fields.items()))
    if grants := [limiting.Granted(grant, record) for grant in record.grants if grant.voided_at_us is None]:
        from tokenweir.cli.grants import print_grants

        print_grants(grants, now_us)


@limit_app.command("remove")
@reporting_failures
def remove(limit: LimitArgument, *, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Remove a limit.

    Its history stays on record; open requests for more end.
    """
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import plain_limit
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        record = limiting.remove_limit(limits, limit, actor=actor(), now_us=now_us)
    if as_json:
        print_json(plain_limit(record, now_us))
    else:
        sys.stdout.write(f"Removed {record.limit.limit_id} ({record.limit.name}).\n")
    _note_policy(record.limit.managed_by)


def _show_set(done: SetLimit, now_us: int, *, as_json: bool) -> None:
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import action_of, amount_of, field_of, plain_limit, window_of

    record, limit = done.limit, done.limit.limit
    if as_json:
        before = None if done.before is None else plain_limit(done.before, now_us)
        print_json(plain_limit(record, now_us) | {"before": before, "changed": list(done.changed)})
    elif done.before is None:
        what = f"{amount_of(limit.amount, limit.resource)} {window_of(limit)}".strip()
        sys.stdout.write(f"Set {limit.limit_id} ({limit.name}): {what} for {limiting.whose_of(record)}; at the limit: {action_of(limit)}.\n")
    elif not done.changed:
        sys.stdout.write(f"{limit.limit_id} ({limit.name}) is so already; nothing changed.\n")
    else:
        names = {"queue_ms": "longest wait", "downgrade_to": "other model"}
        parts = [f"{names.get(one, one.replace('_', ' '))} {field_of(done.before, one)} → {field_of(record, one)}" for one in done.changed]
        sys.stdout.write(f"Changed {limit.limit_id} ({limit.name}): {'; '.join(parts)}.\n")
    if done.recounted and done.before is not None:
        note(f"It counts something else now, so it has a new id (before: {done.before.limit.limit_id}); its use is read from the ledger anew.")
        if len(record.grants) < sum(grant.voided_at_us is None for grant in done.before.grants):
            note("Its grants ended, because they were amounts of something else.")
    if done.changed:
        _note_policy(limit.managed_by)


def _note_policy(managed_by: str) -> None:
    if managed_by:
        note(f"This limit comes from the policy {managed_by!r}: the next `tokenweir policy apply` sets it back, unless the file says the same.")


def _each(texts: list[str] | None) -> list[str]:
    return [one.strip() for text in texts or () for one in text.split(",") if one.strip()]
