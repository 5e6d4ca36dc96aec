"""`tokenweir grant …`: more room for a limit; thin over `limiting`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.keys import actor
from tokenweir.cli.limits import LimitArgument
from tokenweir.cli.moments import moment
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from pathlib import Path

    from tokenweir.limiting import Granted
    from tokenweir.periods import Micros
    from tokenweir.settings import Settings

grant_app = typer.Typer(help="More room for a limit: credits, top-ups of one cycle, increases for a while.", no_args_is_help=True)
app.add_typer(grant_app, name="grant")

AmountOption = Annotated[str, typer.Option("--amount", help="How much more, in the unit of the limit; spend in USD.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept with it.")]
FromOption = Annotated[str, typer.Option("--from", help="When it begins: a date, a time, or how long from now. Now if not said.")]


@grant_app.command("add")
@reporting_failures
def add(
    limit: LimitArgument,
    *,
    amount: AmountOption,
    begins: FromOption = "",
    until: Annotated[str, typer.Option("--until", help="When what is left of it is lost: a date, a time, or how long from now.")] = "",
    priority: Annotated[int, typer.Option("--priority", help="Credits with a smaller number are burned first.")] = 100,
    rollover_min: Annotated[str, typer.Option("--rollover-min", help="At the end of each cycle, what is left is raised to this.")] = "",
    rollover_max: Annotated[
        str, typer.Option("--rollover-max", help="At the end of each cycle, what is left is cut to this. All is kept if not said.")
    ] = "",
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give a credit, burned over as many cycles as it lasts.

    It is burned when the amount of a cycle is used up.
    """
    more = {"priority": priority, "rollover_min": rollover_min, "rollover_max": rollover_max}
    _add(limit, "credit", begins, until, config, data_dir, as_json=as_json, amount=amount, reason=reason, **more)


@grant_app.command("topup")
@reporting_failures
def top_up(
    limit: LimitArgument,
    *,
    amount: AmountOption,
    priority: Annotated[int, typer.Option("--priority", help="Credits with a smaller number are burned first.")] = 100,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give more for the running cycle alone.

    Nothing of it is left for the next.
    """
    _add(limit, "topup", "", "", config, data_dir, as_json=as_json, amount=amount, reason=reason, priority=priority)


@grant_app.command("increase")
@reporting_failures
def increase(
    limit: LimitArgument,
    *,
    amount: AmountOption,
    begins: FromOption = "",
    until: Annotated[
        str,
        typer.Option(
            "--until",
            help="When it ends by itself: a date, a time, or how long from now. With the cycle if not said; a rolling limit and concurrency need it.",
        ),
    ] = "",
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Raise the amount of a limit for a while."""
    _add(limit, "increase", begins, until, config, data_dir, as_json=as_json, amount=amount, reason=reason)


@grant_app.command("list")
@reporting_failures
def list_(
    *,
    limit: Annotated[str, typer.Option("--limit", help="Only those of this limit: its id or name.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Voided ones too.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List grants."""
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import plain_grant
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        grants = limiting.list_grants(limits, limit=limit, voided=everything)
    left = _left(settings, grants)
    if as_json:
        print_json([{**plain_grant(one, now_us), "left": left.get(one.grant.grant_id)} for one in grants])
        return
    if grants:
        print_grants(grants, now_us, left)
    else:
        note("No grants here. Give one with: tokenweir grant topup LIMIT --amount AMOUNT")


@grant_app.command("void")
@reporting_failures
def void(
    grant: Annotated[str, typer.Argument(metavar="GRANT", help="Id of the grant.")],
    *,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """End a grant now.

    What was used on the strength of it stays used.
    """
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import plain_grant
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_limit_directory(settings)) as limits:
        granted = limiting.void_grant(limits, grant, actor=actor(), now_us=now_us)
    if as_json:
        print_json(plain_grant(granted, now_us))
    else:
        sys.stdout.write(f"Voided {granted.grant.grant_id} of {granted.limit.limit.name}.\n")


def _left(settings: Settings, grants: Sequence[Granted]) -> dict[str, int]:
    """What is left of each credit that burns now, by its id, in units of its limit. Where each seat burns its own, there is no one answer."""
    from tokenweir import app as wiring

    limits = {one.limit.limit.limit_id: one.limit for one in grants if one.grant.kind == "credit" and not one.limit.limit.scope.per}
    if not limits:
        return {}
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_ledger(settings, create=True)) as ledger:
        use = wiring.open_ledger_use(settings, ledger, directory)
        standing = [balance for record in limits.values() for balance in use.balances(record.limit, "", record.grants)]
    return {balance.grant.grant_id: balance.left for balance in standing}


def print_grants(grants: Sequence[Granted], now_us: Micros, left: Mapping[str, int] | None = None) -> None:
    """A table of grants; `left`: of credits, by id."""
    from tokenweir.cli.limit_fields import amount_of, grant_state, when

    rows = [
        [
            one.grant.grant_id,
            one.limit.limit.name,
            _kind(one),
            amount_of(one.grant.amount, one.limit.limit.resource),
            amount_of(left[one.grant.grant_id], one.limit.limit.resource) if left and one.grant.grant_id in left else "-",
            grant_state(one, now_us),
            when(one.grant.effective_at_us),
            when(one.grant.expires_at_us),
            one.grant.reason or "-",
        ]
        for one in grants
    ]
    print_table(["grant", "limit", "kind", "amount", "left", "state", "from", "until", "reason"], rows)


def _add(limit: str, kind: Any, begins: str, until: str, config: Path | None, data_dir: Path | None, *, as_json: bool, **more: Any) -> None:
    from tokenweir import app as wiring
    from tokenweir import limiting
    from tokenweir.cli.limit_fields import amount_of, plain_grant, when
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    from_us = moment(begins, now_us) if begins else None
    until_us = moment(until, now_us) if until else None
    with closing(wiring.open_limit_directory(settings)) as limits:
        granted = limiting.add_grant(
            limits, limit, kind=kind, from_us=from_us, until_us=until_us, actor=actor(), now_us=now_us, entropy=os.urandom, **more
        )
    if as_json:
        print_json(plain_grant(granted, now_us))
        return
    grant, of = granted.grant, granted.limit.limit
    end = f"to {when(grant.expires_at_us)}" if grant.expires_at_us is not None else "without end"
    sys.stdout.write(
        f"Granted {grant.grant_id} ({_kind(granted)}): {amount_of(grant.amount, of.resource)} for {of.name}, from {when(grant.effective_at_us)} {end}.\n"
    )
    if until_us is not None and until_us != grant.expires_at_us:
        note("Grants begin and end on whole quarters of an hour, so its end was moved to the next one.")


def _kind(granted: Granted) -> str:
    from tokenweir.cli.limit_fields import grant_kind

    return grant_kind(granted.grant).replace("topup", "top-up")
