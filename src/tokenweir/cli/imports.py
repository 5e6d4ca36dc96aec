"""`tokenweir import claude-code | provider-report | status`: logs on the own disk, the provider's reports, and what has been read. Works while `serve` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from tokenweir.importing.claude_code import Import, TranscriptImport
    from tokenweir.ledger.imported import Account
    from tokenweir.ledger_ports import ImportProgress
    from tokenweir.settings import Settings

import_app = typer.Typer(help="Book usage that did not pass the gateway: logs and exports of other programs.", no_args_is_help=True)
app.add_typer(import_app, name="import")

TeamOption = Annotated[str, typer.Option("--team", help="Team that the calls are booked to; created if there is none of that name.")]
OrganizationOption = Annotated[str, typer.Option("--organization", help="Organization of the team; created too.")]
OwnerOption = Annotated[
    str,
    typer.Option("--owner", help="The person who made the calls, such as an email address; this account's name if not given.", show_default=False),
]
FOLLOW_S = 2.0
"""Pause between two looks at the files with `--follow`."""


@import_app.command("claude-code")
@reporting_failures
def claude_code(
    *,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]…", help="Files or folders of transcripts; where Claude Code keeps them if not given.")
    ] = None,
    team: TeamOption = "default",
    owner: OwnerOption = "",
    organization: OrganizationOption = "default",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until stopped, and book what is written meanwhile.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Book the transcripts of Claude Code. Running it again books only what is new; a call that the gateway metered is never booked twice."""
    import os

    from tokenweir import app as wiring
    from tokenweir.importing.claude_code import TranscriptImport
    from tokenweir.importing.places import default_places

    places = paths or [place for place in default_places(os.environ, Path.home()) if place.exists()]
    if not places:
        raise ValueError("there are no transcripts where Claude Code keeps them; name a file or a folder")
    settings = settings_of(config, data_dir)
    with ExitStack() as stack:
        stop = stack.enter_context(_stopping()) if follow else None
        who = account(settings, team, organization, owner)
        store = stack.enter_context(closing(wiring.open_ledger(settings, create=True)))
        importer = TranscriptImport(store, who, wiring.open_rate_card(settings), clock=wiring.SystemClock())
        done = _once(importer, places, quiet=as_json)
        show(done, as_json=as_json)
        while stop is not None and not stop.wait(FOLLOW_S):
            done = _once(importer, places, quiet=True, patient=True)
            if done.files_read or done.problems:
                show(done, as_json=as_json)


def _once(importer: TranscriptImport, places: Sequence[Path], *, quiet: bool, patient: bool = False) -> Import:
    from tokenweir.errors import StoreUnavailable
    from tokenweir.importing.claude_code import Import
    from tokenweir.importing.places import find_transcripts

    problems: list[str] = []
    files = find_transcripts(places, on_problem=problems.append)
    try:
        with _progress(sum(file.size for file in files), quiet=quiet) as advance:
            return importer.run(files, on_progress=advance) + Import(problems=tuple(problems))
    except StoreUnavailable as error:
        if not patient:
            raise
        return Import(problems=(error.message,))


@import_app.command("provider-report")
@reporting_failures
def provider_report(
    *,
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Pages of the provider's usage or cost reports, as JSON.")],
    kind: Annotated[
        str, typer.Option("--kind", help="What the pages are, if they do not show it: usage, cost, claude_code, analytics_usage, analytics_cost.")
    ] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Keep pages of the provider's own usage and cost reports, as they are, to reconcile the ledger with. Nothing in them is booked."""
    from tokenweir import app as wiring
    from tokenweir.ledger_ports import ProviderReport
    from tokenweir.wire.reports import read_pages

    now_us = wiring.SystemClock().now_us()
    reports: list[ProviderReport] = []
    for file in files:
        try:
            pages = read_pages(file.read_bytes(), kind=kind)
        except OSError as error:
            raise ValueError(f"cannot read {file}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        origin = str(file.absolute())
        reports += [
            ProviderReport(page.report_id, page.kind, page.starting_at_us, page.ending_at_us, page.rows, now_us, origin, page.content)
            for page in pages
        ]
    with closing(wiring.open_ledger(settings_of(config, data_dir), create=True)) as store:
        kept = store.keep_reports(reports)
    rows = sum(report.rows for report in reports)
    if as_json:
        print_json({"pages": len(reports), "rows": rows, "new_pages": kept, "kinds": sorted({report.kind for report in reports})})
    else:
        sys.stdout.write(f"{len(reports):,} pages with {rows:,} rows: {kept:,} kept, {len(reports) - kept:,} known already. Nothing was booked.\n")


@import_app.command("status")
@reporting_failures
def status(*, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show what has been imported from where, what stands in the ledger by source, and which of the provider's reports are kept."""
    from msgspec.structs import asdict

    from tokenweir import app as wiring
    from tokenweir.metering.spend import Query, spend
    from tokenweir.money import format_usd
    from tokenweir.periods import format_instant

    with closing(wiring.open_ledger(settings_of(config, data_dir))) as store:
        imports = [_import_line(progress) for progress in store.progress_of("")]
        reports = store.reports()
        by_source = spend(store, Query(by=("source", "certainty"))).rows
    sources = [{"source": row.group[0], "certainty": row.group[1], **asdict(row.sums)} for row in by_source]
    kept = [
        {
            "kind": report.kind,
            "starting_at": format_instant(report.starting_at_us),
            "ending_at": format_instant(report.ending_at_us),
            "rows": report.rows,
            "received_at": format_instant(report.received_at_us),
            "origin": report.origin,
        }
        for report in reports
    ]
    if as_json:
        print_json({"imports": imports, "sources": sources, "provider_reports": kept})
        return
    columns = ["source", "place", "read", "new", "corrected", "replaced", "known", "skipped", "refused", "unread_bytes", "last_run", "problem"]
    print_table(
        columns, [["" if line[name] is None else str(line[name]) for name in columns] for line in imports], right=columns[2:10], title="Imports"
    )
    print_table(
        ["source", "certainty", "calls", "cost"],
        [[line["source"], line["certainty"], f"{line['requests']:,}", format_usd(line["cost_nanos"])] for line in sources],
        right=["calls", "cost"],
        title="In the ledger",
    )
    if kept:
        print_table(
            list(kept[0]), [[str(value) for value in line.values()] for line in kept], right=["rows"], title="Reports of the provider, not booked"
        )


def _import_line(progress: ImportProgress) -> dict[str, Any]:
    """Progress as people and programs read it; `unread_bytes` is null if the file is gone."""
    from tokenweir.periods import format_instant

    try:
        unread = max(0, Path(progress.place).stat().st_size - progress.byte_offset)
    except OSError:
        unread = None
    booked = progress.booked
    return {
        "source": progress.source,
        "place": progress.place,
        "read": progress.rows_read,
        "new": booked.new,
        "corrected": booked.grown,
        "replaced": booked.replaced,
        "known": booked.matched,
        "skipped": progress.rows_skipped,
        "refused": progress.rows_refused,
        "unread_bytes": unread,
        "first_run": format_instant(progress.first_run_at_us),
        "last_run": format_instant(progress.last_run_at_us),
        "problem": progress.problem or None,
    }


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that what is being booked is finished first."""
    import signal
    import threading

    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Any]:
    """Draws a bar on the terminal while something takes long; a callable that is told how much more is done."""
    if quiet or not sys.stderr.isatty() or total < 32 * 1024 * 1024:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def show(done: Import, *, as_json: bool) -> None:
    """What a run did, for people or for programs; problems go to standard error."""
    for problem in done.problems:
        note(problem)
    booked = done.booked
    if as_json:
        print_json(
            {
                "files": done.files,
                "files_read": done.files_read,
                "rows_read": done.rows_read,
                "rows_skipped": done.rows_skipped,
                "rows_refused": done.rows_refused,
                "new": booked.new,
                "grown": booked.grown,
                "replaced": booked.replaced,
                "matched": booked.matched,
                "problems": list(done.problems),
            }
        )
        return
    sys.stdout.write(
        f"{done.rows_read:,} rows in {done.files_read:,} of {done.files:,} files: {booked.new:,} new calls, {booked.grown:,} corrected, "
        f"{booked.replaced:,} in place of a worse record, {booked.matched:,} known already; "
        f"{done.rows_skipped:,} skipped, {done.rows_refused:,} refused.\n"
    )
    sys.stdout.flush()


def account(settings: Settings, team: str, organization: str, owner: str) -> Account:
    """Whom the calls are booked to; team and organization are made if there are none of these names."""
    import getpass
    import os

    from tokenweir import app as wiring
    from tokenweir import issuing
    from tokenweir.cli.keys import actor
    from tokenweir.ledger.imported import Account, person_key

    if not owner:
        try:
            owner = getpass.getuser()
        except (OSError, KeyError):
            owner = f"uid-{os.getuid()}"
    owner = issuing.checked_name("owner", owner)
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_directory(settings)) as directory:
        home = issuing.ensure_team(directory, organization, team, actor=actor(), now_us=now_us, entropy=os.urandom)
    return Account(home.organization_id, home.team_id, person_key(owner))


def settings_of(config: Path | None, data_dir: Path | None) -> Settings:
    """The settings of a command."""
    from tokenweir.settings import load_settings

    return load_settings(config, **({"data_dir": data_dir} if data_dir else {}))
