"""`tokenweir report`: what Claude Code used and what it cost, from the transcripts on this disk. No server, no key, and nothing written unless asked."""

from __future__ import annotations

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from tokenweir.cli.output import ConfigOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from tokenweir.importing.gathering import Gathered
    from tokenweir.importing.places import TranscriptFile
    from tokenweir.periods import Micros
    from tokenweir.pricing.rate_card import RateCard
    from tokenweir.reports.answers import Answers
    from tokenweir.reports.grouping import Cells, Row, Sums


class Output(StrEnum):
    """How the rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@app.command("report")
@reporting_failures
def report(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders with transcripts; where Claude Code keeps them if not given.", show_default=False)
    ] = None,
    *,
    by: Annotated[str, typer.Option("--by", help="day, week, month, session, project, model; several with commas.")] = "day,model",
    since: Annotated[str | None, typer.Option("--since", help="Date or time from which on.", show_default=False)] = None,
    until: Annotated[str | None, typer.Option("--until", help="Date or time before which.", show_default=False)] = None,
    timezone: Annotated[
        str | None,
        typer.Option("--timezone", help="Time zone of days and dates, such as Europe/Berlin; this computer's if not given.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Also write the report with charts to this file.", show_default=False)] = None,
    config: ConfigOption = None,
) -> None:
    """Show what Claude Code used and what it cost, from its transcripts on this disk."""
    from tokenweir.reports.grouping import PERIODS, fill_cells, group, read_groups, total

    groups = read_groups(by)
    if as_json and as_csv:
        raise ValueError("choose one of --json and --csv")
    zone, zone_name = _zone(timezone)
    since_us, until_us = (None if text is None else _moment(text, zone) for text in (since, until))
    if since_us is not None and until_us is not None and until_us <= since_us:
        raise ValueError("--until is not after --since")
    card = _card(config)
    answers, gathered, files = _gather(paths, card)
    period = next((name for name in groups if name in PERIODS), "day")
    cells = fill_cells(answers, period=period, zone=zone, since_us=since_us, until_us=until_us)
    rows = group(cells, groups)
    notes = _notes(cells, gathered)
    if html is not None:
        _write_page(html, cells, period=period, zone_name=zone_name, since=since, until=until, card_version=card.version, notes=notes)
    output = Output.JSON if as_json else Output.CSV if as_csv else Output.TABLE
    _print(rows, total(cells), groups, output)
    if output is Output.TABLE and not rows:
        note("Nothing was used in this time." if files else "There are no transcripts.")
    for text in notes:
        note(text)
    if html is not None:
        note(f"The report is in {html}.")


def _card(config: Path | None) -> RateCard:
    """The rate card of the settings, or the one put in with `prices update`, if there is one; else the built-in one, which needs no settings read."""
    data_dir = Path(os.environ.get("TOKENWEIR_DATA_DIR") or Path.home() / ".tokenweir")
    if config is not None or any(name.startswith("TOKENWEIR_PRICING") for name in os.environ) or (data_dir / "rates.json").exists():
        from tokenweir.app import open_rate_card
        from tokenweir.settings import load_settings

        return open_rate_card(load_settings(config))
    from importlib import resources

    from tokenweir.pricing.rate_card import parse_rate_card

    return parse_rate_card((resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8"))


def _gather(paths: Sequence[Path] | None, card: RateCard) -> tuple[Answers, Gathered, Sequence[TranscriptFile]]:
    from tokenweir.importing.gathering import gather
    from tokenweir.importing.places import default_places, find_transcripts

    problems: list[str] = []
    places = paths
    if not places:
        usual = default_places(os.environ, Path.home())
        places = [place for place in usual if place.exists()]
        if not places:
            note(f"Claude Code has written nothing here: there is no {' and no '.join(map(str, usual))}.")
    files = find_transcripts(places, on_problem=problems.append)
    with _Progress(sum(file.size for file in files)) as progress:
        answers, gathered = gather(files, card, on_progress=progress.advance)
    gathered.problems[:0] = problems
    return answers, gathered, files


def _moment(text: str, zone: tzinfo) -> Micros:
    from tokenweir.metering.spend import parse_moment

    return parse_moment(text, zone)


class _Progress:
    """A bar on the terminal, if there is one and the work is long."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._done = 0
        self._shown = False
        self._started = self._last = time.monotonic()
        self._wanted = sys.stderr.isatty() and size > 64 * 1024 * 1024

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def advance(self, size: int) -> None:
        """Take note that so many bytes more are done."""
        self._done += size
        now = time.monotonic()
        if self._wanted and now - self._last >= 0.1:
            self._last, self._shown = now, True
            filled = min(30, 30 * self._done // max(1, self._size))
            speed = self._done / 1_000_000 / (now - self._started)
            sys.stderr.write(f"\rreading {'█' * filled}{'░' * (30 - filled)} {100 * self._done // max(1, self._size):3} %  {speed:,.0f} MB/s\x1b[K")
            sys.stderr.flush()


def _zone(timezone: str | None) -> tuple[tzinfo, str]:
    """The zone that was named, or this computer's, with all its history of changes."""
    from zoneinfo import ZoneInfo

    if timezone is not None:
        from tokenweir.metering.spend import time_zone

        return time_zone(timezone), timezone
    name = os.environ.get("TZ", "").lstrip(":") or os.path.realpath("/etc/localtime").partition("zoneinfo/")[2]
    try:
        return ZoneInfo(name), name
    except (ValueError, OSError, KeyError):
        return ZoneInfo("UTC"), "UTC"  # the computer does not say where it is, or in no name we know


# What is printed.

_COLUMNS = {"uncached_input": "input", "cache_write_5m": "write 5m", "cache_write_1h": "write 1h", "cache_read": "cache read", "output": "output"}
_EXTRA = {"thinking": "thinking", "web_searches": "searches"}


def _print(rows: Sequence[Row], totals: Sums, groups: Sequence[str], output: Output) -> None:
    from tokenweir.reports.grouping import figures

    if output is Output.TABLE:
        _print_table(rows, totals, groups)
        return
    lines = [{**_labels(row), **figures(row.sums)} for row in rows]
    if output is Output.JSON:
        print_json({"rows": lines, "totals": figures(totals)})
    else:
        _print_csv(lines, [*_LABELS, *figures(totals)])


_LABELS = ("period", "model", "project", "session")


def _labels(row: Row) -> dict[str, str | None]:
    return {name: getattr(row, name) for name in _LABELS}


def _print_csv(lines: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(line[name]) for name in columns] for line in lines)


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; names of projects come from anywhere."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    risky = isinstance(value, str) and (value.lstrip().startswith(_FORMULA) or value.startswith(("\t", "\r", "\n")))
    return f"'{value}" if risky else value


_FORMULA = tuple("=+-@|%")


def _print_table(rows: Sequence[Row], totals: Sums, groups: Sequence[str]) -> None:
    from tokenweir.money import format_usd
    from tokenweir.reports.charts import share
    from tokenweir.reports.grouping import PERIODS

    if not rows:
        return
    columns = {**_COLUMNS, **{name: text for name, text in _EXTRA.items() if getattr(totals, name)}}
    labels = [name for name in _LABELS if name in groups or (name == "period" and set(groups) & set(PERIODS))]
    heads = [
        "day" if name == "period" and "day" in groups else next(g for g in groups if g in PERIODS) if name == "period" else name for name in labels
    ]

    def figures(sums: Sums) -> list[str]:
        mark = "~" if sums.doubts else ""
        return [*(f"{getattr(sums, name):,}" for name in columns), share(sums.cache_permille), mark + format_usd(sums.cost_nanos)]

    home = str(Path.home())
    lines = [[*(_shown(getattr(row, name), home) for name in labels), *figures(row.sums)] for row in rows]
    lines.append(["total", *[""] * (len(labels) - 1), *figures(totals)])
    numbers = [*columns.values(), "from cache", "cost"]
    print_table([*heads, *numbers], lines, right=numbers)


def _shown(label: str | None, home: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in label or "")
    return "~" + text.removeprefix(home) if text == home or text.startswith(home + os.sep) else text


def _notes(cells: Cells, gathered: Gathered) -> list[str]:
    """Which part of the totals is not certain, and what could not be read."""
    from tokenweir.money import format_usd
    from tokenweir.reports.answers import BY_SUBAGENT, DOUBTED, UNFINISHED, UNPRICED

    sentences = {
        BY_SUBAGENT: "answers to sub-agents, whose transcripts may miss the final output count",
        UNFINISHED: "answers without a stated end, whose output count may be a placeholder",
        DOUBTED: "answers with a count or time that is missing or cannot be right",
    }
    notes = []
    for doubt in cells.doubts:
        cost = format_usd(doubt.cost_nanos)
        if doubt.reason == UNPRICED:
            models = ", ".join(_shown(model, "\0") for model in cells.unpriced_models[:5])
            notes.append(f"Unpriced: {cost} for {doubt.answers:,} answers of {models}, at a conservative rate.")
        else:
            notes.append(f"Estimated: {cost} for {doubt.answers:,} {sentences[doubt.reason]}.")
    if gathered.unknown_fields:
        notes.append(f"Not counted: usage fields that this version does not know: {', '.join(sorted(gathered.unknown_fields)[:8])}.")
    if gathered.torn:
        notes.append(f"Not read: {gathered.torn:,} torn lines.")
    if gathered.oversized:
        notes.append(f"Not read: {gathered.oversized:,} lines of more than 32 MB that may hold usage.")
    return notes + [f"Not read: {problem}" for problem in gathered.problems[:10]]


def _write_page(
    path: Path, cells: Cells, *, period: str, zone_name: str, since: str | None, until: str | None, card_version: str, notes: Sequence[str]
) -> None:
    from datetime import UTC, datetime

    from tokenweir.reports.grouping import group
    from tokenweir.reports.html import Page, draw_page

    labels = [row.period for row in group(cells, [period])]
    span = f"{labels[0]} to {labels[-1]}" if labels else f"{since or 'the beginning'} to {until or 'now'}"
    page = Page(
        period=period,
        timezone=zone_name,
        range_text=span,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        card_version=card_version,
        notes=tuple(notes),
    )
    try:
        path.write_text(draw_page(cells, page), "utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
