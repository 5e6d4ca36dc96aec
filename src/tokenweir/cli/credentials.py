"""`tokenweir credential …`: the upstream keys of teams and organizations. None is ever taken from an argument, printed or exported."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.keys import actor
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from tokenweir.key_tokens import Secret
    from tokenweir.ports import CredentialRecord

credential_app = typer.Typer(help="Upstream credentials of teams and organizations.", no_args_is_help=True)
app.add_typer(credential_app, name="credential")


@credential_app.command("set")
@reporting_failures
def set_(
    *,
    org: Annotated[bool, typer.Option("--org", help="For the whole organization.")] = False,
    team: Annotated[str, typer.Option("--team", help="For this team, in place of the organization's.")] = "",
    organization: Annotated[str, typer.Option("--organization", help="Which organization, if there are several.")] = "default",
    env: Annotated[str, typer.Option("--env", help="The gateway reads it from this environment variable.")] = "",
    file: Annotated[Path | None, typer.Option("--file", help="The gateway reads it from this private file.")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read it from standard input and keep it encrypted in the database.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Set the upstream credential of an organization or a team; it is bound to the upstream.base_url of the settings."""
    from tokenweir import app as wiring
    from tokenweir import issuing
    from tokenweir.settings import load_settings

    if org == bool(team):
        raise ValueError("say whose credential it is: --org or --team TEAM")
    if bool(env) + (file is not None) + stdin != 1:
        raise ValueError(
            "say where the credential is: --env NAME, --file PATH or --stdin; it is never taken from the command line, which others can see"
        )
    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    if file is not None:
        file = Path(os.path.abspath(file))
        wiring.check_secret_file(file)
    source = f"env:{env}" if env else f"file:{file}" if file is not None else "sealed"
    with closing(wiring.open_directory(settings)) as directory:
        record = issuing.set_credential(
            directory,
            wiring.open_secrets(settings),
            source=source,
            text=_read_secret() if stdin else None,
            base_url=settings.upstream.base_url,
            team=team,
            organization=organization,
            actor=actor(),
            now_us=wiring.SystemClock().now_us(),
            entropy=os.urandom,
        )
    if env and not os.environ.get(env):
        note(f"{env} is not set here; it must be set where the gateway runs.")
    if as_json:
        print_json(_plain(record))
    else:
        sys.stdout.write(f"Set {record.credential_id} for {_whose(record)}, from {_from(record)}, for {record.base_url} only.\n")


@credential_app.command("list")
@reporting_failures
def list_(*, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """List the credentials, without their content."""
    from tokenweir import app as wiring
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    with closing(wiring.open_directory(settings)) as directory:
        records = directory.credentials()
    if as_json:
        print_json([_plain(record) for record in records])
        return
    rows = [[one.credential_id, _whose(one), _from(one), one.base_url, str(_plain(one)["created"])[:19] + "Z"] for one in records]
    print_table(["id", "whose", "from", "upstream", "created"], rows)
    if any(one.base_url != settings.upstream.base_url for one in records):
        note(f"A credential for another upstream than {settings.upstream.base_url} is not used; set it again to use it there.")


@credential_app.command("remove")
@reporting_failures
def remove(
    credential: Annotated[str, typer.Argument(metavar="CREDENTIAL", help="Id of the credential.")],
    *,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove a credential; the team falls back to the organization's, the organization to the one in the settings."""
    from tokenweir import app as wiring
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    with closing(wiring.open_directory(settings)) as directory:
        directory.remove_credential(credential, now_us=wiring.SystemClock().now_us(), actor=actor())
    sys.stdout.write(f"Removed {credential}.\n")


def _read_secret() -> Secret:
    """The credential from standard input; a person at a terminal does not see it typed."""
    from tokenweir.key_tokens import Secret

    if sys.stdin.isatty():
        import getpass

        return Secret(getpass.getpass("Upstream key (not shown): ").strip())
    return Secret(sys.stdin.read(65_536).strip())


def _whose(record: CredentialRecord) -> str:
    return f"team {record.team}" if record.team_id else f"organization {record.organization}"


def _from(record: CredentialRecord) -> str:
    return "the database, encrypted" if record.source == "sealed" else record.source


def _plain(record: CredentialRecord) -> dict[str, Any]:
    from tokenweir.periods import format_instant

    return {
        "id": record.credential_id,
        "organization": record.organization,
        "team": record.team or None,
        "source": record.source,
        "base_url": record.base_url,
        "created": format_instant(record.created_at_us),
    }
