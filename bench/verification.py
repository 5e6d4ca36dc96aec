"""Whether the ledger holds what was served: as many attempts, and the same tokens. A benchmark that loses a token is void."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from candidates import TOKENWEIR, totals

_COUNTS = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output")


def compare_ledger(data_dir: Path, provider_url: str, *, timeout_s: float = 60.0) -> dict[str, Any]:
    """Compare the whole ledger with the totals of the stand-in; what differs is in `differences`, which is empty when all is well.

    The export is repeated until the number of attempts is right or the time is over, because booking follows the answers at a small distance.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        served = totals(provider_url)
        booked = booked_sums(data_dir)
        differences = {name: [served[theirs], booked[name]] for name, theirs in _PAIRS.items() if served[theirs] != booked[name]}
        for name in ("duplicates", "not_exact", "free"):
            if booked[name]:
                differences[name] = [0, booked[name]]
        if served["wrong_key"]:
            differences["wrong_key"] = [0, served["wrong_key"]]
        if not differences or time.monotonic() > deadline:
            return {"attempts": booked["attempts"], "tokens": sum(booked[name] for name in _COUNTS), "differences": differences}
        time.sleep(1.0)


_PAIRS = {"attempts": "served"} | {name: name for name in _COUNTS}


def booked_sums(data_dir: Path) -> dict[str, int]:
    """Sums over all entries of the ledger, as its export gives them."""
    sums = dict.fromkeys((*_COUNTS, "attempts", "duplicates", "not_exact", "free"), 0)
    seen: set[str] = set()
    command = [str(TOKENWEIR), "ledger", "export", "--format", "jsonl", "--data-dir", str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as export:
        assert export.stdout is not None
        for line in export.stdout:
            entry = json.loads(line)
            sums["attempts"] += entry["kind"] == "attempt"
            sums["duplicates"] += entry["attempt_id"] in seen
            seen.add(entry["attempt_id"])
            sums["not_exact"] += entry["certainty"] != "exact"
            sums["free"] += entry["cost_nanos"] <= 0
            for name in _COUNTS:
                sums[name] += entry[name]
    if export.returncode != 0:
        sums["attempts"] = -1
    return sums
