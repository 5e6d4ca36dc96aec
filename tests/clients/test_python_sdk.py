"""The official Python SDK, of today and of the last 0.x line, against the running gateway; then ledger and truth are equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from clients import sdk_session

SESSION = Path(sdk_session.__file__)
OLD = Path(sys.prefix) / "old-sdk" / "bin" / "python"
EXACT_MIN = 10


def told(used: list[dict]) -> set[tuple[int, ...]]:
    """The counts that the client was told."""
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    return {tuple(usage.get(name) or 0 for name in names) for usage in used}


def booked(ledger: list[dict]) -> set[tuple[int, ...]]:
    return {
        (entry["uncached_input"], entry["cache_write_5m"] + entry["cache_write_1h"], entry["cache_read"], entry["output"])
        for entry in ledger
        if entry["certainty"] == "exact"
    }


def judge(rehearsal, found: dict) -> None:
    ledger = rehearsal.settled()
    assert len(found["used"]) >= EXACT_MIN
    assert told(found["used"]) <= booked(ledger)


def test_the_official_sdk(rehearsal):
    """Messages, streams, tools, thinking, caching, counting, models, errors, retries, with the SDK's line 2."""
    found = sdk_session.run(rehearsal.url, rehearsal.key)
    assert found["version"].startswith("2.")
    judge(rehearsal, found)


def test_the_last_of_the_old_line(rehearsal, needed):
    """The same with the last 0.x, which `make install-test` puts into an environment of its own."""
    needed(OLD.exists(), f"the old SDK ({OLD})")
    done = subprocess.run([OLD, SESSION, rehearsal.url, rehearsal.key], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["version"].startswith("0.")
    judge(rehearsal, found)
