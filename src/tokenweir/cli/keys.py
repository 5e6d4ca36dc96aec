"""`tokenweir key …` and `tokenweir team list`: thin over `issuing`. A secret is printed once, by `create` and `rotate`, on standard output only."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.moments import duration_ms, moment
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from tokenweir.issuing import IssuedKey
    from tokenweir.periods import Micros
    from tokenweir.ports import KeyRecord
    from tokenweir.settings import Settings

key_app = typer.Typer(help="Create, list, show, rotate and revoke keys.", no_args_is_help=True)
team_app = typer.Typer(help="Teams.", no_args_is_help=True)
app.add_typer(key_app, name="key")
app.add_typer(team_app, name="team")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, or its name if only one key has it.")]
TeamFilter = Annotated[str, typer.Option("--team", help="Only keys of this team.")]


@key_app.command("create")
@reporting_failures
def create(
    *,
    team: Annotated[str, typer.Option("--team", help="Team that the key belongs to; created if there is none of that name.")],
    name: Annotated[str, typer.Option("--name", help="Name of the key; one live key of a team has it.")],
    organization: Annotated[str, typer.Option("--organization", help="Organization of the team; created too.")] = "default",
    owner: Annotated[str, typer.Option("--owner", help="Who answers for the key, such as an email address.")] = "",
    model: Annotated[list[str] | None, typer.Option("--model", help="A model id or pattern that it may use; repeat for more. All if none.")] = None,
    network: Annotated[list[str] | None, typer.Option("--network", help="A network it may be used from; repeat for more.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag for grouping usage; repeat for more.")] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="A date or time, or how long it lives, such as 90d or 12h.")] = None,
    priority: Annotated[str, typer.Option("--priority", help="Its class where requests wait for a limit: high, normal or low.")] = "normal",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Create a key and show its secret, this once."""
    from tokenweir import app as wiring
    from tokenweir import issuing
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    expires_at_us = moment(expires, now_us) if expires else None
    with closing(wiring.open_directory(settings)) as directory:
        issued = issuing.issue_key(
            directory,
            wiring.open_pepper(settings, directory),
            team=team,
            name=name,
            organization=organization,
            owner=owner,
            tags=tag or (),
            models=model or (),
            networks=network or (),
            expires_at_us=expires_at_us,
            priority=priority,
            actor=actor(),
            now_us=now_us,
            entropy=os.urandom,
        )
    _show_issued(issued, settings, as_json=as_json, done="created")


@key_app.command("rotate")
@reporting_failures
def rotate(
    key: KeyArgument,
    *,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the old secret is still accepted, such as 24h; 0s ends it now.")] = "24h",
    team: TeamFilter = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give a key a new secret; the old one is accepted until the overlap ends."""
    from tokenweir import app as wiring
    from tokenweir import issuing
    from tokenweir.settings import load_settings

    overlap_ms = duration_ms(overlap)
    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    with closing(wiring.open_directory(settings)) as directory:
        issued = issuing.rotate_key(
            directory,
            wiring.open_pepper(settings, directory),
            key,
            team=team,
            overlap_ms=overlap_ms,
            actor=actor(),
            now_us=wiring.SystemClock().now_us(),
            entropy=os.urandom,
        )
    _show_issued(issued, settings, as_json=as_json, done="rotated")


@key_app.command("revoke")
@reporting_failures
def revoke(
    key: KeyArgument, *, team: TeamFilter = "", as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Take a key out of use: within a second in every gateway, and for good."""
    from tokenweir import app as wiring
    from tokenweir import issuing
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_directory(settings)) as directory:
        revoked = issuing.revoke_key(directory, key, team=team, actor=actor(), now_us=now_us)
    if as_json:
        print_json(_plain(revoked, now_us))
    else:
        sys.stdout.write(f"Revoked {revoked.key_id} ({revoked.name} of team {revoked.team}).\n")


@key_app.command("list")
@reporting_failures
def list_(*, team: TeamFilter = "", as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """List keys."""
    from tokenweir import app as wiring
    from tokenweir import issuing
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_directory(settings)) as directory:
        keys = issuing.list_keys(directory, team=team)
    if as_json:
        print_json([_plain(key, now_us) for key in keys])
        return
    columns = ["id", "team", "name", "owner", "state", "created", "expires", "models", "networks", "tags"]
    plain = [_plain(key, now_us) for key in keys]
    print_table(columns, [[_cell(one, column) for column in columns] for one in plain])
    if not keys:
        note("No keys yet. Create one with: tokenweir key create --team TEAM --name NAME")


@key_app.command("show")
@reporting_failures
def show(
    key: KeyArgument, *, team: TeamFilter = "", as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Show a key; its secret cannot be shown again."""
    from tokenweir import app as wiring
    from tokenweir import issuing
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_directory(settings)) as directory:
        plain = _plain(issuing.show_key(directory, key, team=team), now_us)
    if as_json:
        print_json(plain)
    else:
        print_table(["field", "value"], [[name.replace("_", " "), _cell(plain, name)] for name in plain])


@team_app.command("list")
@reporting_failures
def list_teams(*, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """List teams, with the number of their live keys."""
    from tokenweir import app as wiring
    from tokenweir.periods import format_instant
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    with closing(wiring.open_directory(settings)) as directory:
        live = [key.team_id for key in directory.keys(revoked=False)]
        teams = [
            {
                "id": one.team_id,
                "team": one.team,
                "organization": one.organization,
                "keys": live.count(one.team_id),
                "created": format_instant(one.created_at_us),
            }
            for one in directory.teams()
        ]
    if as_json:
        print_json(teams)
    else:
        print_table(["id", "team", "organization", "keys", "created"], [[str(cell) for cell in one.values()] for one in teams], right=["keys"])


def actor() -> str:
    """Who the audit names for a change made on this machine."""
    import getpass

    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # an account without a name, as in some containers
        return f"cli:uid-{os.getuid()}"


def _show_issued(issued: IssuedKey, settings: Settings, *, as_json: bool, done: str) -> None:
    from tokenweir.control import read_control
    from tokenweir.periods import format_instant

    key, secret = issued.key, issued.secret.reveal()
    if as_json:
        print_json({"id": key.key_id, "secret": secret} | {k: v for k, v in _plain(key, key.created_at_us).items() if k != "id"})
        return
    overlap = ""
    if key.overlap_ends_at_us is not None:
        overlap = f"The old secret is accepted until {format_instant(key.overlap_ends_at_us)}.\n"
    running = read_control(settings.data_dir)  # it may have been started on another port than the settings say
    url = f"http://{settings.gateway.host}:{settings.gateway.port}" if running is None else running.url
    sys.stdout.write(
        f"Key {key.key_id} ({key.name} of team {key.team}) {done}. {overlap}"
        "This is its secret; it is not kept here and cannot be shown again:\n\n"
        f"    {secret}\n\n"
        "To use it with an SDK or Claude Code:\n\n"
        f"    export ANTHROPIC_BASE_URL={url}\n"
        f"    export ANTHROPIC_API_KEY={secret}\n"
    )


def _plain(key: KeyRecord, now_us: Micros) -> dict[str, Any]:
    """The key as JSON shows it."""
    from tokenweir.key_tokens import hint_of_part
    from tokenweir.periods import format_instant

    def instant(at_us: Micros | None) -> str | None:
        return None if at_us is None else format_instant(at_us)

    return {
        "id": key.key_id,
        "hint": hint_of_part(key.key_id),
        "name": key.name,
        "team": key.team,
        "team_id": key.team_id,
        "organization": key.organization,
        "owner": key.owner,
        "state": _state(key, now_us),
        "tags": list(key.tags),
        "models": list(key.policy.models),
        "networks": list(key.policy.networks),
        "priority": key.policy.priority,
        "created": instant(key.created_at_us),
        "expires": instant(key.policy.expires_at_us),
        "revoked": instant(key.revoked_at_us),
        "overlap_ends": instant(key.overlap_ends_at_us),
    }


def _state(key: KeyRecord, now_us: Micros) -> str:
    if key.revoked_at_us is not None:
        return "revoked"
    if key.policy.expires_at_us is not None and now_us >= key.policy.expires_at_us:
        return "expired"
    if key.overlap_ends_at_us is not None and now_us < key.overlap_ends_at_us:
        return "rotating"
    return "live"


def _cell(plain: dict[str, Any], column: str) -> str:
    value = plain[column]
    if isinstance(value, list):
        return ", ".join(value) or ("any" if column in ("models", "networks") else "-")
    text = str(value or "-")
    return text[:19] + "Z" if column in ("created", "expires", "revoked", "overlap_ends") and value else text
