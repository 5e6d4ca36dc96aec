"""The end of a demo: the ledger against the simulator's journal of truth, attempt by attempt.

What the gateway saw to its end must be equal to the token and the nano-dollar. What was cut short must be flagged. Every line of truth has one entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenweir import app as stores
from tokenweir.ledger.entries import Entry
from tokenweir.periods import SECOND_US, parse_instant
from tokenweir.settings import Settings
from tokenweir.usage import Certainty

_COLUMNS = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "web_searches")


def compare(settings: Settings, truth: Path) -> dict[str, Any]:
    """Counts, totals, and every difference in words."""
    with stores.open_ledger(settings).snapshot() as ledger:
        entries = list(ledger.entries())
    named = {entry.upstream_request_id: entry for entry in entries if entry.upstream_request_id}
    nameless = [entry for entry in entries if not entry.upstream_request_id]
    outcome: dict[str, Any] = {"attempts": 0, "exact": 0, "flagged": 0, "tokens": 0, "cost_nanos": 0, "differences": []}
    for said in sorted(map(json.loads, truth.read_text("utf-8").splitlines()), key=lambda line: str(line["received_at"])):
        entry = named.pop(said["request_id"], None) or _without_a_name(said, nameless)
        if entry is None:
            outcome["differences"].append(f"{said['request_id']} ({said['outcome']}) is not in the ledger")
        elif entry.certainty in {Certainty.PARTIAL, Certainty.CEILING}:
            outcome["flagged"] += 1
        elif difference := _difference(said, entry):
            outcome["differences"].append(difference)
        else:
            outcome["exact"] += 1
    outcome["differences"] += [f"{entry.upstream_request_id} is not in the journal of truth" for entry in named.values()]
    for entry in entries:
        _add(outcome, entry)
    return outcome


def _without_a_name(said: dict[str, Any], nameless: list[Entry]) -> Entry | None:
    """The entry of an attempt that ended before the head of its answer was read: the last that began before it, and its ceiling holds what was billed."""
    received_us = parse_instant(said["received_at"])
    fitting = [
        entry
        for entry in nameless
        if 0 <= received_us - entry.started_at_us < 5 * SECOND_US
        and entry.cost_nanos >= said["cost_nanos"]
        and said["model"] == entry.model_requested
    ]
    if not fitting:
        return None
    found = max(fitting, key=lambda entry: entry.started_at_us)
    nameless.remove(found)
    return found


def _add(outcome: dict[str, Any], entry: Entry) -> None:
    outcome["attempts"] += 1
    outcome["tokens"] += entry.usage.total
    outcome["cost_nanos"] += entry.cost_nanos


def _difference(said: dict[str, Any], entry: Entry) -> str:
    for column in _COLUMNS:
        booked = getattr(entry.usage, column)
        if said["billed"] and booked != said[column]:
            return f"{said['request_id']}: {column} is {booked:,} in the ledger and {said[column]:,} in truth"
    if entry.cost_nanos != said["cost_nanos"]:
        return f"{said['request_id']}: cost is {entry.cost_nanos:,} nanos in the ledger and {said['cost_nanos']:,} in truth"
    return ""
