"""The end of a demo: the ledger against the simulator's journal of truth, attempt by attempt.

What the gateway saw to its end must be equal to the token and the nano-dollar. What was cut short must be flagged. Every line of truth has an entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenweir.ledger.entries import Entry
from tokenweir.settings import Settings
from tokenweir.usage import Certainty

_COLUMNS = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "web_searches")


def compare(settings: Settings, truth: Path) -> dict[str, Any]:
    """Counts, totals, and every difference in words."""
    from tokenweir import app

    entries = {entry.upstream_request_id: entry for entry in app.open_ledger(settings).entries() if entry.upstream_request_id}
    outcome: dict[str, Any] = {"attempts": 0, "exact": 0, "flagged": 0, "tokens": 0, "cost_nanos": 0, "differences": []}
    seen = 0
    with truth.open(encoding="utf-8") as lines:
        for line in lines:
            said = json.loads(line)
            entry = entries.get(said["request_id"])
            if entry is None:
                if said["bytes_sent"]:
                    outcome["differences"].append(f"{said['request_id']} ({said['outcome']}) is not in the ledger")
                continue
            seen += 1
            _add(outcome, entry)
            if entry.certainty in {Certainty.PARTIAL, Certainty.CEILING}:
                outcome["flagged"] += 1
            elif difference := _difference(said, entry):
                outcome["differences"].append(difference)
            else:
                outcome["exact"] += 1
    if len(entries) > seen:
        outcome["differences"].append(f"{len(entries) - seen} entries are not in the journal of truth")
    return outcome


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
