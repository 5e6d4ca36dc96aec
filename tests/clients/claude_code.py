"""Claude Code through the gateway, once: `python tests/clients/claude_code.py` (or `make claude-code`). Never a dependency, never part of the tests.

The program inside the PyPI package `claude-agent-sdk` is installed into a throw-away environment and asked to say hi, before a simulated provider. What it
says that it used and what it thinks that it cost is printed beside our ledger. It needs a package index, and about 400 MB for a moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from processes.books import compare
from processes.serving import running_tokenweir
from simulation import running_simulator

PACKAGE = "claude-agent-sdk"


def install(home: Path) -> Path:
    """The program, in an environment of its own."""
    environment = home / "environment"
    venv.create(environment, with_pip=True)
    subprocess.run([environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE], check=True)
    return next(environment.glob("lib/python3*/site-packages/claude_agent_sdk/_bundled/claude"))


def say_hi(program: Path, home: Path, url: str, key: str) -> dict[str, Any]:
    """One question on the command line; its result object."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    command = [program, "-p", "say hi", "--output-format", "json"]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=180, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"Claude Code ended with {done.returncode}: {done.stderr[-2000:]}{done.stdout[-2000:]}")
    return json.loads(done.stdout)


def main(program: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        program = program or install(home)
        (home / "user").mkdir()
        with running_simulator(home) as simulator, running_tokenweir(home / "weir", simulator.url) as weir:
            result = say_hi(program, home / "user", weir.url, weir.key("blue", "claude-code"))
            truth = simulator.journal()
            ledger = weir.booked(lambda entries: len(entries) >= len(truth))
        compare(truth, ledger).agree()
        print(
            "Claude Code:",
            json.dumps({name: result.get(name) for name in ("result", "num_turns", "total_cost_usd", "usage", "modelUsage")}, indent=2),
        )
        for entry in ledger:
            print("ledger:", json.dumps({name: value for name, value in entry.items() if value not in (None, "", 0, [])}, indent=2))
        ours = sum(entry["cost_nanos"] for entry in ledger)
        theirs = round(result["total_cost_usd"] * 1e9)
        print(
            f"{len(ledger)} attempts, ledger and truth agree; ours {ours} nano-USD, Claude Code's own {theirs} nano-USD, difference {ours - theirs}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
