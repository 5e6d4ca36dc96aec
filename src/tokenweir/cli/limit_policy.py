"""`tokenweir policy plan|apply`: limits as a file says, shown before they are changed. Thin over `limiting.policy`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, fail, note, print_json, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from tokenweir.limit_ports import LimitDirectory
    from tokenweir.limits.policy_file import PolicyFile
    from tokenweir.limits.policy_plan import Plan
    from tokenweir.ports import Directory

DIFFERENCES = 4
"""Exit code of `plan` if there is something to do."""
FILE_BYTES_MAX = 4 * 1024 * 1024

policy_app = typer.Typer(help="Limits as a policy file says.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="TOML file with [[limit]] tables; - reads standard input.")]


@policy_app.command("plan")
@reporting_failures
def plan(file: FileArgument, *, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show what the file would change. Nothing is changed.

    Exit code 0: nothing to do; 4: there are differences; 2: the file has problems.
    """
    from tokenweir.limiting.policy import plan_policy

    policy = read_policy_file(file)
    with _directories(config, data_dir) as (directory, limits):
        made = plan_policy(directory, limits, policy)
    if as_json:
        print_json(as_plain(made))
    else:
        _show(made)
    if not made.is_empty:
        raise typer.Exit(DIFFERENCES)


@policy_app.command("apply")
@reporting_failures
def apply(
    file: FileArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Change it without asking.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show what the file changes, and change it once confirmed: all of it or nothing. Applying it again does nothing."""
    from tokenweir import app as wiring
    from tokenweir.cli.keys import actor
    from tokenweir.limiting.policy import apply_policy, plan_policy

    policy = read_policy_file(file)
    with _directories(config, data_dir) as (directory, limits):
        made = plan_policy(directory, limits, policy)
        if not as_json:
            _show(made)
        if made.is_empty:
            _done(made, applied=False, as_json=as_json, remark="")
            return
        if not yes and (as_json or file == "-" or not sys.stdin.isatty()):
            fail("nothing was changed: look at what it changes (tokenweir policy plan), then run this again with --yes", code=2)
        if not yes and not typer.confirm("Change the limits so?", err=True):
            _done(made, applied=False, as_json=as_json, remark="Nothing was changed.")
            return
        now_us = wiring.SystemClock().now_us()
        # What was asked about is what is done; what nobody looked at may have become something else meanwhile, and the file decides.
        done = apply_policy(directory, limits, policy, shown=None if yes else made, actor=actor(), now_us=now_us, entropy=os.urandom)
    _done(done, applied=not done.is_empty, as_json=as_json, remark="Done. Gateways follow within a second.")


def read_policy_file(file: str) -> PolicyFile:
    """The policy that the file holds (`-`: standard input). Raises PolicyInvalid, each line of which names the file."""
    from tokenweir.errors import PolicyInvalid
    from tokenweir.limits.policy_file import read_policy

    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            content = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        else:
            with Path(file).open("rb") as source:
                content = source.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise PolicyInvalid(f"it is larger than {FILE_BYTES_MAX:,} bytes")
        return read_policy(content.decode("utf-8"))
    except OSError as error:
        raise PolicyInvalid(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyInvalid(f"{name} is not UTF-8 text") from error
    except PolicyInvalid as error:
        raise PolicyInvalid("\n".join(f"{name}: {line}" for line in error.message.splitlines())) from error


def as_plain(made: Plan) -> dict[str, Any]:
    """The plan as JSON shows it."""
    from msgspec.structs import asdict

    return {
        "organization": made.organization,
        "policy": made.policy,
        "differences": not made.is_empty,
        "create": [{"name": one.name, "fields": dict(one.fields)} for one in made.create],
        "change": [
            {
                "id": one.limit_id,
                "name": one.name,
                "adopted": one.adopted,
                "recounted": one.recounted,
                "fields": [asdict(field) for field in one.fields],
            }
            for one in made.change
        ],
        "remove": [{"id": one.limit_id, "name": one.name, "fields": dict(one.fields)} for one in made.remove],
        "unchanged": list(made.unchanged),
        "unmanaged": [{"id": one.limit_id, "name": one.name, "managed_by": one.managed_by} for one in made.unmanaged],
    }


def _show(made: Plan) -> None:
    """The plan as a diff: + for what is made, ~ for what is changed, - for what is taken away."""
    write = sys.stdout.write
    write(f'policy "{made.policy}" of organization {made.organization}\n')
    for created in made.create:
        write(f"\n+ {created.name}\n")
        for field, text in created.fields.items():
            write(f"    + {field:<10}  {text}\n")
    for change in made.change:
        write(f"\n~ {change.name}  ({change.limit_id})\n")
        for one in change.fields:
            write(f"    ~ {one.field:<10}  {one.before or '(none)'} -> {one.after or '(none)'}\n")
        if change.adopted:
            write("      it was set by hand and belongs to this file from now on\n")
        if change.recounted:
            write("      it counts something else: it gets a new id, and its use so far is read from the ledger\n")
    for removal in made.remove:
        write(f"\n- {removal.name}  ({removal.limit_id})\n")
        for field, text in removal.fields.items():
            write(f"    - {field:<10}  {text}\n")
    write(f"\n{_summary(made)}\n")


def _summary(made: Plan) -> str:
    counts = f"{len(made.create)} to create, {len(made.change)} to change, {len(made.remove)} to remove, {len(made.unchanged)} unchanged"
    if made.unmanaged:
        names = [f"{one.name} (of {one.managed_by})" if one.managed_by else one.name for one in made.unmanaged]
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        counts += f"\nleft alone, because this file has not brought {'it' if len(names) == 1 else 'them'}: {shown}"
    return counts


def _done(made: Plan, *, applied: bool, as_json: bool, remark: str) -> None:
    if as_json:
        print_json({"applied": applied} | as_plain(made))
    if remark:
        note(remark)


@contextmanager
def _directories(config: Path | None, data_dir: Path | None) -> Iterator[tuple[Directory, LimitDirectory]]:
    from tokenweir import app as wiring
    from tokenweir.settings import load_settings

    settings = load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
    with closing(wiring.open_directory(settings)) as directory, closing(wiring.open_limit_directory(settings)) as limits:
        yield directory, limits
