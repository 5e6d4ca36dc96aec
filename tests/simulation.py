"""A running simulator for tests: the real command in a process of its own, ready when its ready line has been read."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "sk-ant-sim-red-0123456789"


@dataclass
class RunningSimulator:
    """`url` answers; `journal()` reads the journal of truth as it stands."""

    url: str
    process: subprocess.Popen[str]
    journal_path: Path

    def journal(self) -> list[dict[str, Any]]:
        """One object per attempt that has ended. A complete answer's line is there before its last byte is."""
        return [json.loads(line) for line in self.journal_path.read_text().splitlines()] if self.journal_path.exists() else []

    def state(self) -> dict[str, Any]:
        """The counters of `/sim/state`."""
        with urllib.request.urlopen(f"{self.url}/sim/state", timeout=10) as answer:
            return json.load(answer)

    def stop(self) -> int:
        """End it as an operator would; returns the exit code."""
        self.process.terminate()
        return self.process.wait(20)


@contextmanager
def running_simulator(
    tmp_path: Path, *, scenario: dict[str, Any] | str | None = None, seed: int = 1, options: tuple[str, ...] = ()
) -> Iterator[RunningSimulator]:
    """Start `tokenweir simulator` on a free port. `scenario` is the file's content: an object (JSON) or text (TOML)."""
    journal = tmp_path / "truth.jsonl"
    command = [sys.executable, "-m", "tokenweir", "simulator", "--port", "0", "--journal", str(journal), "--seed", str(seed), *options]
    if scenario is not None:
        file = tmp_path / ("scenario.toml" if isinstance(scenario, str) else "scenario.json")
        file.write_text(scenario if isinstance(scenario, str) else json.dumps(scenario))
        command += ["--scenario", str(file)]
    errors = (tmp_path / "simulator.stderr").open("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            errors.seek(0)
            raise RuntimeError(f"the simulator did not start: {errors.read()}")
        yield RunningSimulator(json.loads(line)["url"], process, journal)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)
        process.stdout.close()
        errors.close()
