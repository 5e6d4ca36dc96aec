"""`tokenweir ledger …`: export, verify, rerate, adjust. All of them work while `serve` runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from tokenweir.cli.output import ConfigOption, DataDirOption, JsonOption, note, print_json, print_table, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from tokenweir.ledger.entries import Entry
    from tokenweir.ledger_ports import Names
    from tokenweir.metering.correcting import Correction
    from tokenweir.periods import Micros
    from tokenweir.settings import Settings

ledger_app = typer.Typer(help="Export, verify and correct the ledger.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")

SinceOption = Annotated[str | None, typer.Option("--since", help="Date or time (UTC) from which on attempts began.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Date or time (UTC) before which attempts began.")]
_BATCH = 500


class ExportFormat(StrEnum):
    """The formats of an export."""

    JSONL = "jsonl"
    CSV = "csv"


@ledger_app.command("export")
@reporting_failures
def export(
    *,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="jsonl: one JSON object a line. csv: one row, safe to open in a spreadsheet.")
    ] = ExportFormat.JSONL,
    since: SinceOption = None,
    until: UntilOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write, for its owner only; standard output if not given.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write every entry, in order. Adjustments are entries of their own: sum the cost of all entries with the same attempt_id."""
    from tokenweir import app as wiring

    since_us, until_us = _range(since, until)
    with closing(wiring.open_ledger(_settings(config, data_dir))) as store, store.snapshot() as snapshot, _target(out) as file:
        names = snapshot.names()
        records = (_record(entry, names) for entry in snapshot.entries(since_us=since_us, until_us=until_us))
        if form is ExportFormat.CSV:
            _write_csv(records, file)
        else:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


@ledger_app.command("verify")
@reporting_failures
def verify(*, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Recompute both rollups from the entries, check ids, adjustments and costs. Ends with 1 if anything differs."""
    from msgspec.structs import asdict

    from tokenweir import app as wiring
    from tokenweir.ledger import verification
    from tokenweir.metering.correcting import repriced
    from tokenweir.money import format_usd

    settings = _settings(config, data_dir)
    card = wiring.open_rate_card(settings)
    with closing(wiring.open_ledger(settings)) as store, store.snapshot() as snapshot:
        verdict = verification.verify(
            snapshot.entries(),
            {"15m": snapshot.cells("15m"), "day": snapshot.cells("day")},
            known=store.known,
            reprice=lambda entry: repriced(entry, card),
        )
    if as_json:
        print_json({"ok": not verdict.findings, **asdict(verdict), "findings": [asdict(finding) for finding in verdict.findings]})
    else:
        for finding in verdict.findings:
            sys.stdout.write(f"{finding.kind} {finding.subject}: {finding.message}\n")
        seen = f"{verdict.entries:,} entries and {verdict.cells:,} cells of the rollups, {format_usd(verdict.cost_nanos, decimals=9)} in all"
        sys.stdout.write(f"{len(verdict.findings):,} differences in {seen}.\n" if verdict.findings else f"No difference in {seen}.\n")
    if verdict.findings:
        raise typer.Exit(1)


@ledger_app.command("rerate")
@reporting_failures
def rerate(
    *,
    model: Annotated[str | None, typer.Option("--model", help="All attempts of this model, not only those without a price.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="All attempts that began at this date or time or later, not only those without a price.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Rate again by the rate card of today what had no price, and book the differences. Running it twice changes nothing."""
    from tokenweir import app as wiring

    settings = _settings(config, data_dir)
    since_us, _ = _range(since, None)
    card = wiring.open_rate_card(settings)
    clock = wiring.SystemClock()
    changed: list[Correction] = []
    with closing(wiring.open_ledger(settings)) as store:
        from tokenweir.ledger.entries import FLAG_UNPRICED
        from tokenweir.metering.correcting import rerate as rate_again

        wide = model is not None or since is not None
        with store.snapshot() as snapshot:
            found = snapshot.entries(since_us=since_us, flag="" if wide else FLAG_UNPRICED)
            attempts = list(dict.fromkeys(entry.attempt_id for entry in found if model is None or model in (entry.model, entry.model_requested)))
        # A correction is booked soon after the moment that it states: limits look for late ones, but not for very late ones.
        for start in range(0, len(attempts), _BATCH):
            found_now = (
                rate_again(store.entries_of(attempt_id), card, now_us=clock.now_us(), only_unpriced=not wide)
                for attempt_id in attempts[start : start + _BATCH]
            )
            corrections = [one for one in found_now if one is not None]
            if not dry_run:
                store.book([entry for one in corrections for entry in one.entries])
            changed += corrections
    _show(changed, looked_at=len(attempts), dry_run=dry_run, as_json=as_json)


@ledger_app.command("adjust")
@reporting_failures
def adjust(
    *,
    attempt: Annotated[str, typer.Argument(metavar="ATTEMPT", help="The attempt_id, as the export shows it.")],
    usage: Annotated[str | None, typer.Option("--usage", help="The provider's usage object as JSON.")] = None,
    void: Annotated[bool, typer.Option("--void", help="The provider billed nothing for it.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="How you know; kept with the adjustment.")],
    force: Annotated[bool, typer.Option("--force", help="Even if the provider's own usage is booked.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Book what you know of an attempt whose outcome was not learned, as an adjusting entry."""
    from tokenweir import app as wiring
    from tokenweir.metering.correcting import state_usage

    if (usage is None) == (not void):
        raise ValueError("say what is true: either --usage JSON or --void")
    if not reason.strip():
        raise ValueError("--reason must say how you know")
    settings = _settings(config, data_dir)
    card = wiring.open_rate_card(settings)
    with closing(wiring.open_ledger(settings)) as store:
        correction = state_usage(
            store,
            card,
            attempt,
            None if usage is None else usage.encode(),
            reason=reason.strip(),
            now_us=wiring.SystemClock().now_us(),
            force=force,
        )
    _show([] if correction is None else [correction], looked_at=1, dry_run=False, as_json=as_json)


# Export.


def _record(entry: Entry, names: Names) -> dict[str, Any]:
    """An entry as programs read it: what is not known is null, never 0 or an empty text."""
    from tokenweir.ledger.entries import FLAG_UNKNOWN
    from tokenweir.periods import format_instant

    usage = entry.usage
    unknown = FLAG_UNKNOWN in entry.flags
    return {
        "attempt_id": entry.attempt_id,
        "entry_id": entry.entry_id,
        "kind": entry.kind,
        "started_at": format_instant(entry.started_at_us),
        "ended_at": None if unknown else format_instant(entry.ended_at_us),
        "request_id": entry.request_id or None,
        "upstream_request_id": entry.upstream_request_id or None,
        "message_id": entry.message_id or None,
        "key": entry.key_id,
        "key_name": names.keys.get(entry.key_id),
        "team": names.teams.get(entry.team_id, entry.team_id),
        "organization": names.organizations.get(entry.organization_id, entry.organization_id),
        "model": entry.model or None,
        "model_requested": entry.model_requested or None,
        "status": entry.status or None,
        "certainty": entry.certainty.value,
        "uncached_input": usage.uncached_input,
        "cache_write_5m": usage.cache_write_5m,
        "cache_write_1h": usage.cache_write_1h,
        "cache_read": usage.cache_read,
        "output": usage.output,
        "thinking": usage.thinking,
        "web_searches": usage.web_searches,
        "web_fetches": usage.web_fetches,
        "code_executions": usage.code_executions,
        "service_tier": entry.service_tier or None,
        "speed": entry.speed or None,
        "inference_geo": entry.inference_geo or None,
        "cost_nanos": entry.cost_nanos,
        "ceiling_nanos": entry.ceiling_nanos,
        "card_version": entry.card_version,
        "stop_reason": entry.stop_reason or None,
        "error_type": entry.error_type or None,
        "cut": entry.cut or None,
        "stream": entry.stream,
        "first_byte_us": entry.first_byte_us or None,
        "attempt_no": entry.attempt_no,
        "client_retry": entry.client_retry,
        "session_id": entry.session_id or None,
        "agent_id": entry.agent_id or None,
        "parent_agent_id": entry.parent_agent_id or None,
        "client": entry.client or None,
        "flags": list(entry.flags),
        "tags": list(entry.tags),
        "source": entry.source,
        "reason": entry.reason or None,
        "dedup_key": entry.dedup_key or entry.attempt_id,
    }


EXPORT_FIELDS = (
    "attempt_id",
    "entry_id",
    "kind",
    "started_at",
    "ended_at",
    "request_id",
    "upstream_request_id",
    "message_id",
    "key",
    "key_name",
    "team",
    "organization",
    "model",
    "model_requested",
    "status",
    "certainty",
    "uncached_input",
    "cache_write_5m",
    "cache_write_1h",
    "cache_read",
    "output",
    "thinking",
    "web_searches",
    "web_fetches",
    "code_executions",
    "service_tier",
    "speed",
    "inference_geo",
    "cost_nanos",
    "ceiling_nanos",
    "card_version",
    "stop_reason",
    "error_type",
    "cut",
    "stream",
    "first_byte_us",
    "attempt_no",
    "client_retry",
    "session_id",
    "agent_id",
    "parent_agent_id",
    "client",
    "flags",
    "tags",
    "source",
    "reason",
    "dedup_key",
)
"""The columns of a CSV export, and the keys of a JSON one."""
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - spreadsheets take the full-width forms as well


def _write_csv(records: Iterator[dict[str, Any]], file: TextIO) -> None:
    import csv

    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    writer.writerow(EXPORT_FIELDS)
    for record in records:
        writer.writerow([_cell(value) for value in record.values()])


def _cell(value: Any) -> Any:
    """Numbers as they are; text such that no spreadsheet takes it for a formula."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value
    text = "" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


@contextmanager
def _target(out: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when it is complete."""
    if out is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline="") as file:
            yield file
        unfinished.replace(out)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


# Corrections.


def _show(changed: list[Correction], *, looked_at: int, dry_run: bool, as_json: bool) -> None:
    from tokenweir.money import format_usd

    difference = sum(correction.after_nanos - correction.before_nanos for correction in changed)
    if as_json:
        print_json(
            {
                "looked_at": looked_at,
                "changed": [
                    {
                        "attempt_id": c.attempt_id,
                        "model": c.model,
                        "before_nanos": c.before_nanos,
                        "after_nanos": c.after_nanos,
                        "entries": len(c.entries),
                    }
                    for c in changed
                ],
                "difference_nanos": difference,
                "dry_run": dry_run,
            }
        )
        return
    if not changed:
        note(f"Nothing changes: {looked_at:,} attempts were looked at.")
        return
    rows = [
        [c.attempt_id, c.model, format_usd(c.before_nanos), format_usd(c.after_nanos), format_usd(c.after_nanos - c.before_nanos)] for c in changed
    ]
    print_table(["attempt", "model", "before", "after", "difference"], rows, right=["before", "after", "difference"])
    verb = "would change" if dry_run else "changed"
    note(f"{len(changed):,} of {looked_at:,} attempts {verb}, by {format_usd(difference, decimals=9)} in all.")


def _settings(config: Path | None, data_dir: Path | None) -> Settings:
    from tokenweir.settings import load_settings

    return load_settings(config, **({"data_dir": data_dir} if data_dir else {}))


def _range(since: str | None, until: str | None) -> tuple[Micros | None, Micros | None]:
    from tokenweir.periods import parse_instant

    return (None if since is None else parse_instant(since)), (None if until is None else parse_instant(until))
