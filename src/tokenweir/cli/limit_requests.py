"""`tokenweir request …`: ask for more than a limit allows, and decide about it; thin over `limiting`."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from tokenweir.cli.keys import actor
from tokenweir.cli.limits import LimitArgument
from tokenweir.cli.moments import moment
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from tokenweir.limiting import Asked
    from tokenweir.periods import Micros

request_app = typer.Typer(help="Requests for more than a limit allows.", no_args_is_help=True)
app.add_typer(request_app, name="request")

RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST", help="Id of the request.")]


@request_app.command("create")
@reporting_failures
def create(
    limit: LimitArgument,
    *,
    amount: Annotated[str, typer.Option("--amount", help="How much more, in the unit of the limit; spend in USD.")],
    reason: Annotated[str, typer.Option("--reason", help="What it is for.")],
    until: Annotated[
        str,
        typer.Option(
            "--until",
            help="Until when: a date, a time, or how long from now. To the end of the cycle if not said; a rolling limit and concurrency need it.",
        ),
    ] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Ask for more."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    until_us = moment(until, now_us) if until else None
    with closing(wiring.open_limit_directory(settings)) as limits:
        asked = limiting.ask_for_more(
            limits, limit, amount=amount, until_us=until_us, reason=reason, actor=actor(), now_us=now_us, entropy=os.urandom
        )
    _show(asked, now_us, as_json=as_json, done="created; it waits for a decision (tokenweir request approve|deny)")


@request_app.command("list")
@reporting_failures
def list_(
    *,
    limit: Annotated[str, typer.Option("--limit", help="Only those for this limit: its id or name.")] = "",
    state: Annotated[str, typer.Option("--state", help="Only those that are pending, approved, denied or withdrawn.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List requests."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import amount_of, plain_request, when
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        found = limiting.list_requests(limits, limit=limit, state=state)
    if as_json:
        print_json([plain_request(one, now_us) for one in found])
        return
    if not found:
        note("No requests here. Ask for more with: tokenweir request create LIMIT --amount AMOUNT --reason TEXT")
        return
    rows = [
        [
            one.request.request_id,
            one.limit.limit.name,
            amount_of(one.request.amount, one.limit.limit.resource),
            when(one.request.until_us, none="end of the cycle"),
            one.request.state,
            one.request.requested_by,
            when(one.request.created_at_us),
            one.request.reason,
        ]
        for one in found
    ]
    print_table(["request", "limit", "more", "until", "state", "by", "at", "reason"], rows)


@request_app.command("show")
@reporting_failures
def show(request: RequestArgument, *, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show a request with what was said about it."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import amount_of, plain_request, when
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        asked = limiting.show_request(limits, request)
    if as_json:
        print_json(plain_request(asked, now_us))
        return
    one, grant, resource = asked.request, asked.grant, asked.limit.limit.resource
    fields = {
        "id": one.request_id,
        "limit": f"{asked.limit.limit.name} ({one.limit_id})",
        "more": amount_of(one.amount, resource),
        "until": when(one.until_us, none="end of the cycle"),
        "reason": one.reason,
        "asked": f"{one.requested_by} at {when(one.created_at_us)}",
        "state": one.state,
        "decided": f"{one.decided_by} at {when(one.decided_at_us)}" if one.decided_by else "-",
        "grant": "-" if grant is None else f"{grant.grant_id}: {amount_of(grant.amount, resource)} until {when(grant.expires_at_us)}",
    }
    print_table(["field", "value"], list(fields.items()))
    if one.comments:
        print_table(["at", "by", "comment"], [[when(said.at_us), said.by, said.text] for said in one.comments])


@request_app.command("comment")
@reporting_failures
def comment(
    request: RequestArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say about it.")],
    *,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say something about a request."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        asked = limiting.comment(limits, request, text, actor=actor(), now_us=now_us)
    _show(asked, now_us, as_json=as_json, done="commented")


@request_app.command("approve")
@reporting_failures
def approve(
    request: RequestArgument,
    *,
    amount: Annotated[str, typer.Option("--amount", help="Grant this in place of what was asked.")] = "",
    until: Annotated[str, typer.Option("--until", help="Grant it until then in place of what was asked.")] = "",
    comment: Annotated[str, typer.Option("--comment", help="Say something with it.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Approve a request, and increase the limit at once.

    By what was asked and for as long as was asked, if nothing else is said.
    """
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    until_us = moment(until, now_us) if until else None
    with closing(wiring.open_limit_directory(settings)) as limits:
        asked = limiting.approve(limits, request, amount=amount, until_us=until_us, comment=comment, actor=actor(), now_us=now_us, entropy=os.urandom)
    _show(asked, now_us, as_json=as_json, done=_granted(asked))


@request_app.command("deny")
@reporting_failures
def deny(
    request: RequestArgument,
    *,
    comment: Annotated[str, typer.Option("--comment", help="Why.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Refuse a request, and say why."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        asked = limiting.deny(limits, request, comment=comment, actor=actor(), now_us=now_us)
    _show(asked, now_us, as_json=as_json, done="denied")


@request_app.command("withdraw")
@reporting_failures
def withdraw(
    request: RequestArgument,
    *,
    comment: Annotated[str, typer.Option("--comment", help="Say something with it.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Take back a request that is not decided yet."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        asked = limiting.withdraw(limits, request, comment=comment, actor=actor(), now_us=now_us)
    _show(asked, now_us, as_json=as_json, done="withdrawn")


def _granted(asked: Asked) -> str:
    from tokenweir.cli.limit_fields import amount_of, when

    if asked.grant is None:
        return "approved"
    what = amount_of(asked.grant.amount, asked.limit.limit.resource)
    return f"approved: {what} until {when(asked.grant.expires_at_us)} (grant {asked.grant.grant_id})"


def _show(asked: Asked, now_us: Micros, *, as_json: bool, done: str) -> None:
    from tokenweir.cli.limit_fields import amount_of, plain_request

    if as_json:
        print_json(plain_request(asked, now_us))
        return
    more = amount_of(asked.request.amount, asked.limit.limit.resource)
    sys.stdout.write(f"Request {asked.request.request_id} for {more} more in {asked.limit.limit.name} {done}.\n")
