"""How commands speak: JSON on request, tables that fit the terminal, failures in one sentence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from tokenweir.errors import OperatorError, TokenweirError

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.", show_default=False)]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Directory that holds the database, journal and secrets.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_json(value: Any) -> None:
    """One JSON document on standard output, ended by a newline."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), title: str | None = None) -> None:
    """A table for people; the columns named in `right` hold numbers. Cell text is printed as it is, never as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    lines = [list(row) for row in rows]
    console = _console()
    if lines and _width(columns, lines) > console.width:
        # Folded or cut, a wide table says nothing: one line for each value is read easily.
        _print_records(console, columns, lines, title)
        return
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in right)
    for row in lines:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def fits(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the terminal has room for these columns side by side."""
    return _width(columns, rows) <= _console().width


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160")))


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """How wide the table needs to be: long words may fold, but no column below 24 characters of what it holds."""
    return sum(3 + max(len(column), *(min(len(row[index]), 24) for row in rows)) for index, column in enumerate(columns))


def _print_records(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    from rich.text import Text

    widest = max(map(len, columns))
    if title:
        console.print(Text(title))
    for row in rows:
        console.print()
        for column, cell in zip(columns, row, strict=True):
            console.print(Text(f"{column:<{widest}}  {cell}"))


def note(text: str) -> None:
    """A remark for the person at the terminal, on standard error so that it never mixes with the answer."""
    sys.stderr.write(text + "\n")


def fail(message: str, *, code: int = 3) -> NoReturn:
    """Say what is wrong in one sentence and stop."""
    sys.stderr.write(f"tokenweir: {message}\n")
    raise typer.Exit(code)


def reporting_failures(command: Callable[P, R]) -> Callable[P, R]:
    """Turn Tokenweir's failures into one sentence and an exit code: 2 for wrong use, 3 for the rest."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TokenweirError as error:
            fail(error.message, code=2 if isinstance(error, OperatorError) else 3)
        except ValueError as error:
            fail(str(error), code=2)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return run
