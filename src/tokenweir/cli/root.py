"""The command tree. A command's module imports what it needs when it runs, so that `tokenweir --help` stays fast."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenweir import __version__

app = typer.Typer(
    name="tokenweir",
    help="Meter, price, limit and show the tokens a team spends on the Claude API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"tokenweir {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Meter, price, limit and show the tokens a team spends on the Claude API."""


# Each command registers itself with `app` when its module is imported.
from tokenweir.cli import credentials as _credentials  # noqa: E402, F401
from tokenweir.cli import demo as _demo  # noqa: E402, F401
from tokenweir.cli import doctor as _doctor  # noqa: E402, F401
from tokenweir.cli import grants as _grants  # noqa: E402, F401
from tokenweir.cli import import_exports as _import_exports  # noqa: E402, F401
from tokenweir.cli import imports as _imports  # noqa: E402, F401
from tokenweir.cli import keys as _keys  # noqa: E402, F401
from tokenweir.cli import ledger as _ledger  # noqa: E402, F401
from tokenweir.cli import limit_history as _limit_history  # noqa: E402, F401
from tokenweir.cli import limit_policy as _limit_policy  # noqa: E402, F401
from tokenweir.cli import limit_replay as _limit_replay  # noqa: E402, F401
from tokenweir.cli import limit_requests as _limit_requests  # noqa: E402, F401
from tokenweir.cli import limit_status as _limit_status  # noqa: E402, F401
from tokenweir.cli import limits as _limits  # noqa: E402, F401
from tokenweir.cli import models as _models  # noqa: E402, F401
from tokenweir.cli import price as _price  # noqa: E402, F401
from tokenweir.cli import prices as _prices  # noqa: E402, F401
from tokenweir.cli import receive as _receive  # noqa: E402, F401
from tokenweir.cli import report as _report  # noqa: E402, F401
from tokenweir.cli import serve as _serve  # noqa: E402, F401
from tokenweir.cli import simulate as _simulate  # noqa: E402, F401
from tokenweir.cli import usage as _usage  # noqa: E402, F401
