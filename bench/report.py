"""What a run says: the table in the terminal, the file with everything, and the line in docs/BENCHMARKS.md."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
DOCUMENT = REPOSITORY / "docs" / "BENCHMARKS.md"
TABLE_HEAD = re.compile(r"^\| date \(UTC\) \|.*\n\|[-|]+\|\n", re.MULTILINE)
"""The head of the table in the document; the newest line comes right below it."""
LIMITS_HEAD = re.compile(r"^\| limits, date \(UTC\) \|.*\n\|[-|]+\|\n", re.MULTILINE)
"""The same for the table of limits."""
TARGETS = {
    "json_ratio": ("CPU per JSON request, times Envoy's", 2.5, "x", False),
    "event_ratio": ("CPU per SSE event (paced), times Envoy's", 1.5, "x", False),
    "fast_ratio": ("CPU per SSE event (fast), times Envoy's", 1.5, "x", False),
    "kb_per_stream": ("memory per slow stream", 40.0, " KB", False),
    "added_p50_ms": ("added p50 at 300 requests/s", 0.5, " ms", False),
    "entries_per_s": ("bookkeeping", 20_000.0, " entries/s", True),
    "limit_us": ("CPU of admission and settlement, 6 limits in memory", 15.0, " µs", False),
    "limit_growth": ("the same with the most keys, times that with the fewest", 1.5, "x", False),
    "limit_store_p99_ms": ("added p99 with Valkey or Redis on this host", 0.6, " ms", False),
}
"""What it must reach: title, value, unit, and whether more is better. Nothing is asserted."""


def commit() -> str:
    """The commit, with a plus sign if the product differs from it."""
    name = _git("rev-parse", "--short", "HEAD") or "unknown"
    return name + ("+" if _git("status", "--porcelain", "--", "src", "requirements", "pyproject.toml") else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}


def summary(result: dict[str, Any]) -> dict[str, float]:
    """The figures that have targets, as far as they were measured in this run."""
    found: dict[str, float] = {}
    ours, envoy, direct = (result["candidates"].get(name, {}) for name in ("tokenweir", "envoy", "direct"))

    def ratio(name: str, scenario: str, field: str) -> None:
        """Of the gateway process, which is what stands in the way; and with the worker, which books beside it and has a figure of its own."""
        theirs = envoy.get(scenario, {}).get(field)
        mine = ours.get(scenario, {})
        gateway = mine.get(f"{field}_by_role", {}).get("gateway")
        if theirs and gateway:
            found[name] = round(gateway / theirs, 2)
            found[f"{name}_with_worker"] = round(mine[field] / theirs, 2)

    ratio("json_ratio", "json", "cpu_us_per_request")
    ratio("event_ratio", "paced", "cpu_us_per_event")
    ratio("fast_ratio", "fast", "cpu_us_per_event")
    if "memory" in ours:
        found["kb_per_stream"] = ours["memory"]["kb_per_stream_cold"]
    mine, floor = (candidate.get("rate", {}).get("latency_us", {}).get("p50") for candidate in (ours, direct))
    if mine is not None and floor is not None:
        found["added_p50_ms"] = round((mine - floor) / 1000, 3)
    if "bookkeeping" in result:
        found["entries_per_s"] = result["bookkeeping"]["entries_per_s"]
    if "limits" in result:
        limits = result["limits"]
        by_keys = [limits["keys"][count]["cpu_us_per_request"] for count in sorted(limits["keys"], key=int)]
        found["limit_us"] = limits["six"]["cpu_us_per_request"]
        found["limit_growth"] = round(by_keys[-1] / by_keys[0], 2)
        if "shared" in limits:
            found["limit_store_p99_ms"] = limits["shared"]["added_p99_ms"]
    return found


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    _show_candidates(result, console)
    table = Table("figure", "measured", "target", "", title="Targets (a figure is recorded, never asserted)", title_justify="left")
    for name, value in result["summary"].items():
        if name not in TARGETS:
            continue
        title, target, unit, more = TARGETS[name]
        reached = value >= target if more else value <= target
        table.add_row(title, f"{_number(value)}{unit}", f"{'≥' if more else '≤'} {_number(target)}{unit}", "reached" if reached else "not yet")
    if result["summary"]:
        console.print(table)
    if "bookkeeping" in result:
        books = result["bookkeeping"]
        console.print(
            f"Bookkeeping: {books['entries_per_s']:,} entries/s, {books['cpu_us_per_entry']} µs of CPU each, {books['attempts']:,} attempts"
        )
    if "limits" in result:
        limits = result["limits"]
        grown = ", ".join(f"{int(count):,} keys {figures['cpu_us_per_request']} µs" for count, figures in limits["keys"].items())
        parts = ", ".join(f"{part} {cpu_us} µs" for part, cpu_us in limits["six"]["parts_us"].items())
        console.print(f"Limits: {limits['six']['cpu_us_per_request']} µs of CPU a request (of it {parts}); {grown}")
    for name, check in result["ledger"].items():
        verdict = f"differs: {check['differences']}" if check["differences"] else "equals what was served"
        console.print(f"Ledger after {name}: {check['attempts']:,} attempts, {check['tokens']:,} tokens: {verdict}")
    for note in result["notes"]:
        console.print(f"Note: {note}", style="yellow")


def _show_candidates(result: dict[str, Any], console: Console) -> None:
    """One column for each candidate."""
    columns = result["candidates"]
    table = Table(title=f"{result['date']}  {result['commit']}  {result['machine']['cpu']}, {result['machine']['cores']} cores", title_justify="left")
    table.add_column("CPU in µs (gateway + worker)")
    for name in columns:
        table.add_column(name, justify="right")

    def add(title: str, scenario: str, cell: Callable[[dict[str, Any]], str]) -> None:
        found = [figures.get(scenario, {}) for figures in columns.values()]
        if any(found):
            table.add_row(title, *(cell(figures) if figures else "-" for figures in found))

    add("JSON 4 KB: requests/s", "json", lambda it: _number(it.get("requests_per_s")))
    add("  CPU per request", "json", lambda it: _with_roles(it, "cpu_us_per_request"))
    add("  share of its core in use", "json", lambda it: f"{it['core_busy']:.0%}")
    add("JSON 195 KB: CPU per request", "big", lambda it: _with_roles(it, "cpu_us_per_request"))
    add("SSE fast: streams/s", "fast", lambda it: _number(it.get("requests_per_s")))
    add("  CPU per stream", "fast", lambda it: _with_roles(it, "cpu_us_per_request"))
    add("  CPU per event", "fast", lambda it: _with_roles(it, "cpu_us_per_event"))
    add("  share of its core in use", "fast", lambda it: f"{it['core_busy']:.0%}")
    add("SSE paced: events/s", "paced", lambda it: _number(it.get("events_per_s")))
    add("  CPU per event", "paced", lambda it: _with_roles(it, "cpu_us_per_event"))
    add("  event delay p50 / p99 µs", "paced", lambda it: _pair(it.get("event_delay_us")))
    add("Fixed rate: requests/s", "rate", lambda it: _number(it.get("requests_per_s")))
    add("  latency p50 / p99 µs", "rate", lambda it: _pair(it.get("latency_us")))
    add("  CPU per request", "rate", lambda it: _with_roles(it, "cpu_us_per_request"))
    add("Slow streams: open at once", "memory", lambda it: f"{it['open_at_once']:,}")
    add("  finished whole", "memory", lambda it: f"{it['completed']:,}")
    add("  KB each, from cold / warm", "memory", lambda it: f"{it['kb_per_stream_cold']:g} / {it['kb_per_stream_warm']:g}")
    add("  resident MB, start / most", "memory", lambda it: f"{it['rss_mb_cold']:g} / {it['rss_mb_most']:g}")
    errors = [sum(sum(scenario.get("errors", {}).values()) for scenario in figures.values()) for figures in columns.values()]
    table.add_row("Errors", *map(str, errors))
    console.print(table)


def _number(value: float | None) -> str:
    """For people: two decimals where they matter."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"


def _pair(percentiles: dict[str, float] | None) -> str:
    return f"{percentiles['p50']:,.0f} / {percentiles['p99']:,.0f}" if percentiles else "-"


def _with_roles(figures: dict[str, Any], field: str) -> str:
    """The whole, and what gateway and worker have of it where there are several."""
    if not figures.get(field):
        return "-"
    roles = figures.get(f"{field}_by_role", {})
    parts = " + ".join(f"{value:.1f}" for role, value in roles.items() if role in ("gateway", "worker"))
    return f"{figures[field]:.1f}" + (f" ({parts})" if parts else "")


def record(result: dict[str, Any]) -> tuple[Path, bool]:
    """Keep everything in a file, and the targets in one line of the document; says whether the document had a place for it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['date'].replace(':', '').replace(' ', '-')}-{result['commit'].rstrip('+')}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    text = DOCUMENT.read_text("utf-8") if DOCUMENT.exists() else ""
    rows = [(TABLE_HEAD, document_row(result))] if any(result["candidates"].values()) or "bookkeeping" in result else []
    if "limits" in result:
        rows.append((LIMITS_HEAD, limits_row(result)))
    listed = False
    for table, row in rows:
        head = table.search(text)
        if head is not None:
            text = f"{text[: head.end()]}{row}\n{text[head.end() :]}"
            listed = True
    if listed:
        DOCUMENT.write_text(text, "utf-8")
    return path, listed


def limits_row(result: dict[str, Any]) -> str:
    """One line of the table of limits."""
    limits, here = result["limits"], result["machine"]
    shared = limits.get("shared")
    cells = [
        result["date"],
        f"`{result['commit']}`",
        f"{here['cpu']}, {here['cores']} cores, Linux {here['kernel']}, Python {here['python']}",
        f"{limits['six']['cpu_us_per_request']:.1f}",
        " / ".join(f"{limits['six']['parts_us'][part]:.1f}" for part in ("buckets", "estimator")),
        " / ".join(f"{figures['cpu_us_per_request']:.1f}" for figures in limits["keys"].values()),
        f"{shared['added_p50_ms']:.2f} / {shared['added_p99_ms']:.2f}" if shared else "-",
        "void" if limits["differences"] else "equal",
    ]
    return "| " + " | ".join(cells) + " |"


def document_row(result: dict[str, Any]) -> str:
    """One line of the table."""
    here, ours = result["machine"], result["candidates"].get("tokenweir", {})
    figures = result["summary"]

    def figure(name: str, form: str) -> str:
        return format(figures[name], form) if name in figures else "-"

    def both(name: str) -> str:
        return f"{figures[name]:.2f} ({figures[f'{name}_with_worker']:.2f})" if name in figures else "-"

    litellm = result["candidates"].get("litellm", {}).get("json", {}).get("cpu_us_per_request")
    mine = ours.get("json", {}).get("cpu_us_per_request")
    cells = [
        result["date"],
        f"`{result['commit']}`",
        f"{here['cpu']}, {here['cores']} cores, Linux {here['kernel']}, Python {here['python']}",
        _with_roles(ours.get("json", {}), "cpu_us_per_request"),
        both("json_ratio"),
        f"1/{litellm / mine:,.0f}" if litellm and mine else "-",
        both("event_ratio"),
        both("fast_ratio"),
        figure("kb_per_stream", "g"),
        figure("added_p50_ms", ".2f"),
        figure("entries_per_s", ",.0f"),
        "void" if result["void"] else "equal",
    ]
    return "| " + " | ".join(cells) + " |"


def now() -> str:
    """Date and time of the run, UTC."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M")
