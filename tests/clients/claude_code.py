"""Claude Code through the gateway, once: `python tests/clients/claude_code.py` (or `make claude-code`). Never a dependency, never part of the tests.

The program inside the PyPI package `claude-agent-sdk` is installed into a throw-away environment and asked to say hi, before a simulated provider. What it
says that it used and what it thinks that it cost is printed beside our ledger. Then it meets limits: where nothing is to be had, it must show our sentence
and send one request; where it is told when to come back, it must come back then. It needs a package index, and about 400 MB for a moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from processes.books import compare
from processes.serving import RunningTokenweir, running_tokenweir
from simulation import RunningSimulator, running_simulator

PACKAGE = "claude-agent-sdk"


def install(home: Path) -> Path:
    """The program, in an environment of its own."""
    environment = home / "environment"
    venv.create(environment, with_pip=True)
    subprocess.run([environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE], check=True)
    return next(environment.glob("lib/python3*/site-packages/claude_agent_sdk/_bundled/claude"))


def say_hi(program: Path, home: Path, url: str, key: str) -> dict[str, Any]:
    """One question on the command line; its result object, of a refusal too."""
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
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        raise SystemExit(f"Claude Code ended with {done.returncode}: {done.stderr[-2000:]}{done.stdout[-2000:]}") from None


def compare_books(program: Path, home: Path, weir: RunningTokenweir, simulator: RunningSimulator) -> None:
    """What it says of one request, beside the ledger and the journal of truth."""
    result = say_hi(program, home, weir.url, weir.key("blue", "claude-code"))
    if result["is_error"]:
        raise SystemExit(f"Claude Code failed: {result}")
    truth = simulator.journal()
    ledger = weir.booked(lambda entries: len(entries) >= len(truth))
    compare(truth, ledger).agree()
    print("Claude Code:", json.dumps({name: result.get(name) for name in ("result", "num_turns", "total_cost_usd", "usage", "modelUsage")}, indent=2))
    for entry in ledger:
        print("ledger:", json.dumps({name: value for name, value in entry.items() if value not in (None, "", 0, [])}, indent=2))
    ours = sum(entry["cost_nanos"] for entry in ledger)
    theirs = round(result["total_cost_usd"] * 1e9)
    print(f"{len(ledger)} attempts, ledger and truth agree; ours {ours} nano-USD, Claude Code's own {theirs} nano-USD, difference {ours - theirs}")


# What it does at a limit. Each play: the limit, how often it said hi before, the requests that the gateway must see then, and what becomes of the last hi.
LIMITS = {
    "a quota that is used up": (["--resource", "requests", "--amount", "1", "--window", "month"], 1, 1, "1 of 1 requests used this month · resets "),
    "a budget too small for it": (["--resource", "spend", "--amount", "0.01", "--window", "day", "--strict"], 0, 1, "this request alone may need "),
    "a rate with room in minutes": (["--resource", "requests", "--amount", "1", "--window", "rolling:10m"], 1, 1, "has room in "),
    "a rate with room in seconds": (["--resource", "requests", "--amount", "1", "--window", "rolling:5s"], 1, 2, ""),
}


def meet_limits(program: Path, home: Path, weir: RunningTokenweir, simulator: RunningSimulator) -> None:
    """One request where there is nothing to be had, and the sentence shown as it is; one more where it was told to wait."""
    for number, (what, (limit, before, requests, sentence)) in enumerate(LIMITS.items()):
        key, name = weir.key("blue", f"limited-{number}"), f"limited-{number}"
        weir.run("limit", "set", "--key", name, *limit, "--name", what, "--contact", "ops@example.com")
        for _ in range(before):
            say_hi(program, home, weir.url, key)
        meet_limit(program, home, weir, simulator, key, what, requests=requests, sentence=sentence)
    exhaust_budget(program, home, weir, simulator)


def exhaust_budget(program: Path, home: Path, weir: RunningTokenweir, simulator: RunningSimulator) -> None:
    """A budget of just what was spent: it is set when the key has a past, which is read from the ledger."""
    key = weir.key("blue", "spender")
    question = [{"role": "user", "content": "Tell me of the sea."}]
    body = {"model": "claude-opus-5-5", "max_tokens": 20_000, "messages": question, "metadata": {"user_id": "sim:output=20000"}}
    headers = {"x-api-key": key, "content-type": "application/json", "anthropic-version": "2023-06-01"}
    asked = urllib.request.Request(f"{weir.url}/v1/messages", json.dumps(body).encode(), headers)
    urllib.request.urlopen(asked, timeout=60).close()
    ledger = weir.booked(lambda entries: len(entries) >= len(simulator.journal()))
    key_id = ledger[-1]["key"]
    spent = sum(entry["cost_nanos"] for entry in ledger if entry["key"] == key_id)
    amount = f"{spent // 10**9}.{spent % 10**9:09d}"
    options = ["--resource", "spend", "--amount", amount, "--window", "month", "--name", "a budget that is spent", "--contact", "ops@example.com"]
    weir.run("limit", "set", "--key", key_id, *options)
    weir.run("limit", "status")  # answers when the gateway knows of it
    meet_limit(program, home, weir, simulator, key, "a budget that is spent", requests=1, sentence="USD used")


def meet_limit(
    program: Path, home: Path, weir: RunningTokenweir, simulator: RunningSimulator, key: str, what: str, *, requests: int, sentence: str
) -> None:
    """Say hi once, and count."""
    answered, sent = weir.metric("tokenweir_requests_total"), len(simulator.journal())
    scrapes = 1  # asking for the metrics is answered, and counted, itself
    result = say_hi(program, home, weir.url, key)
    answered, sent = weir.metric("tokenweir_requests_total") - answered - scrapes, len(simulator.journal()) - sent
    print(f"{what}: {answered:.0f} requests to the gateway, {sent} to the provider, is_error {result['is_error']}: {result['result']}")
    if sentence:
        assert (answered, sent, result["is_error"]) == (requests, 0, True), result
        assert result["result"].count(f"Tokenweir: {what}: ") == 1, result
        assert sentence in result["result"], result
        assert "ask ops@example.com" in result["result"], result
    else:
        assert (answered, sent, result["is_error"]) == (requests, 1, False), result


def main(program: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        program = program or install(home)
        user = home / "user"
        user.mkdir()
        with running_simulator(home) as simulator, running_tokenweir(home / "weir", simulator.url) as weir:
            compare_books(program, user, weir, simulator)
            meet_limits(program, user, weir, simulator)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
