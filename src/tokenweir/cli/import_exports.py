"""`tokenweir import litellm | langfuse | helicone | generic`: books exports of other programs, or shows what they would come to. Works while `serve` runs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.imports import OrganizationOption, OwnerOption, TeamOption, account, import_app, settings_of, show
from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures

if TYPE_CHECKING:
    from tokenweir.importing.exports import ReadRow
    from tokenweir.pricing.rate_card import RateCard
    from tokenweir.settings import Settings

MappingOption = Annotated[Path, typer.Option("--mapping", help="TOML file that says which column is what; see docs/IMPORTS.md.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only show the first rows as they would be booked, and count the rest.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="CSV, JSON lines or a JSON list; may be gzipped.")]
ROWS_SHOWN = 10
_SHOWN = {
    "line": "line",
    "started_at": "at",
    "dedup_key": "told apart by",
    "key": "key",
    "model": "model",
    "uncached_input": "input",
    "cache_write_5m": "write 5m",
    "cache_write_1h": "write 1h",
    "cache_read": "cache read",
    "output": "output",
    "cost_nanos": "nanos",
}


@import_app.command("litellm")
@reporting_failures
def litellm(
    *,
    file: FileArgument,
    team: TeamOption = "default",
    owner: OwnerOption = "",
    organization: OrganizationOption = "default",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Book an export of LiteLLM's table LiteLLM_SpendLogs. Rows of other providers, and answers from LiteLLM's own cache, are skipped."""
    from tokenweir.imports import litellm as form

    _export(file, "litellm", form.read, (team, organization, owner), dry_run=dry_run, as_json=as_json, settings=settings_of(config, data_dir))


@import_app.command("langfuse")
@reporting_failures
def langfuse(
    *,
    file: FileArgument,
    team: TeamOption = "default",
    owner: OwnerOption = "",
    organization: OrganizationOption = "default",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Book an export of Langfuse's observations. Only generations of Claude models are calls."""
    from tokenweir.imports import langfuse as form

    _export(file, "langfuse", form.read, (team, organization, owner), dry_run=dry_run, as_json=as_json, settings=settings_of(config, data_dir))


@import_app.command("helicone")
@reporting_failures
def helicone(
    *,
    file: FileArgument,
    team: TeamOption = "default",
    owner: OwnerOption = "",
    organization: OrganizationOption = "default",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Book an export of Helicone's requests. With bodies in the export the provider's own usage is taken."""
    from tokenweir.imports import helicone as form

    _export(file, "helicone", form.read, (team, organization, owner), dry_run=dry_run, as_json=as_json, settings=settings_of(config, data_dir))


@import_app.command("generic")
@reporting_failures
def generic(
    *,
    file: FileArgument,
    mapping: MappingOption,
    team: TeamOption = "default",
    owner: OwnerOption = "",
    organization: OrganizationOption = "default",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Book any other CSV or JSON, by a mapping of its columns."""
    from tokenweir.imports.mapping import parse_mapping, read

    try:
        columns = parse_mapping(mapping.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {mapping}: {error}") from error
    _export(
        file,
        "import",
        lambda row: read(row, columns),
        (team, organization, owner),
        dry_run=dry_run,
        as_json=as_json,
        settings=settings_of(config, data_dir),
    )


def _export(file: Path, source: str, read_row: ReadRow, home: tuple[str, str, str], *, dry_run: bool, as_json: bool, settings: Settings) -> None:
    """Book an export, or show what it would come to. Ends with 1 if rows were refused."""
    from tokenweir import app as wiring
    from tokenweir.importing.exports import book_export

    card = wiring.open_rate_card(settings)
    if dry_run:
        _preview(file, read_row, card, as_json=as_json)
        return
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    who = account(settings, *home)
    with closing(wiring.open_ledger(settings, create=True)) as store:
        done = book_export(file, source, read_row, store, who, card, clock=wiring.SystemClock())
    show(done, as_json=as_json)
    if done.rows_refused:
        raise typer.Exit(1)


def _preview(file: Path, read_row: ReadRow, card: RateCard, *, as_json: bool) -> None:
    """The first rows as they would be booked; nothing is opened but the file."""
    from msgspec.structs import asdict

    from tokenweir.importing.exports import PROBLEMS_SHOWN_MAX, read_export
    from tokenweir.ledger.imported import Account
    from tokenweir.money import format_usd
    from tokenweir.periods import format_instant

    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    counts = {"rows": 0, "calls": 0, "skipped": 0, "refused": 0, "cost_nanos": 0}
    for taken in read_export(file, read_row, Account("", "", "(the account)"), card):
        entry = taken.entry
        counts["rows"] += 1
        counts["refused" if taken.problem else "skipped" if entry is None else "calls"] += 1
        if taken.problem and len(problems) < PROBLEMS_SHOWN_MAX:
            problems.append(f"{file}:{taken.line_no}: {taken.problem}")
        if entry is None:
            continue
        counts["cost_nanos"] += entry.cost_nanos
        if len(lines) < ROWS_SHOWN:
            lines.append(
                {
                    "line": taken.line_no,
                    "started_at": format_instant(entry.started_at_us),
                    "dedup_key": entry.dedup_key,
                    "key": entry.key_id,
                    "model": entry.model,
                    **{name: count for name, count in asdict(entry.usage).items() if name not in ("web_fetches", "code_executions")},
                    "cost_nanos": entry.cost_nanos,
                    "tags": list(entry.tags),
                    "flags": list(entry.flags),
                }
            )
    if as_json:
        print_json({**counts, "first": lines, "problems": problems})
        return
    if lines:
        shown = [[str(line[name]) for name in _SHOWN] + [", ".join(line["flags"])] for line in lines]
        print_table([*_SHOWN.values(), "flags"], shown, right=[name for field, name in _SHOWN.items() if isinstance(lines[0][field], int)])
    for problem in problems:
        note(problem)
    note(
        f"{counts['rows']:,} rows: {counts['calls']:,} calls for {format_usd(counts['cost_nanos'], decimals=9)}, {counts['skipped']:,} skipped, "
        f"{counts['refused']:,} refused. Nothing was booked."
    )
