"""A running simulator for tests, the real command in a process of its own, and a client that shows an answer's bytes as they came."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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

    def advance(self, milliseconds: int) -> None:
        """Move its clock forward."""
        with urllib.request.urlopen(f"{self.url}/sim/clock?advance_ms={milliseconds}", data=b"", timeout=10) as answer:
            answer.read()

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


@dataclass
class Answer:
    """What came back; `ended` is `clean`, `short` (the framing was not complete) or `reset`."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes
    ended: str

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Complete events by name."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = block.split("\n")
            if len(lines) == 2 and lines[1].startswith("data: "):
                found.append((lines[0].removeprefix("event: "), json.loads(lines[1][6:])))
        return found


def ask(**changes: Any) -> dict[str, Any]:
    """A small valid request."""
    return {"model": "claude-opus-5-5", "max_tokens": 2_000, "messages": [{"role": "user", "content": "Tell me of the sea."}], **changes}


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)


def request_bytes(body: bytes, *, path: str = "/v1/messages", method: str = "POST", headers: dict[str, str] | None = None) -> bytes:
    usual = {
        "host": "simulator",
        "x-api-key": KEY,
        "anthropic-version": "2023-06-01",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    lines = [f"{name}: {value}" for name, value in {**usual, **(headers or {})}.items() if value != ""]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


def read_answer(sock: socket.socket, *, head_only: bool = False) -> Answer:
    """Read one whole answer, or all that comes before the connection ends."""
    raw, ended = b"", "clean"
    while True:
        parsed = _parse(raw, head_only=head_only)
        if parsed is not None and parsed[2]:
            break
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            ended = "reset"
            break
        if not piece:
            ended = "short"
            break
        raw += piece
    parsed = _parse(raw, head_only=head_only)
    if parsed is None:
        return Answer(0, {}, b"", raw, ended)
    head, body, _ = parsed
    status, headers = head
    return Answer(status, headers, body, raw, ended)


def _parse(raw: bytes, *, head_only: bool) -> tuple[tuple[int, dict[str, str]], bytes, bool] | None:
    while raw.startswith(b"HTTP/1.1 1"):
        raw = raw.partition(b"\r\n\r\n")[2]
    head, gap, rest = raw.partition(b"\r\n\r\n")
    if not gap:
        return None
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    found = int(lines[0].split()[1]), headers
    if head_only:
        return found, b"", True
    if "content-length" in headers:
        size = int(headers["content-length"])
        return found, rest[:size], len(rest) >= size
    body = b""
    while True:
        line, gap, rest = rest.partition(b"\r\n")
        if not gap:
            return found, body, False
        size = int(line, 16)
        if size == 0:
            return found, body, rest.startswith(b"\r\n")
        body += rest[:size]
        if len(rest) < size + 2:
            return found, body, False
        rest = rest[size + 2 :]


def post_to(simulator: RunningSimulator, body: Any, *, path: str = "/v1/messages", method: str = "POST", **headers: str) -> Answer:
    """One request on a connection of its own; keyword `x_sim_cut="5"` becomes a header."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(raw, path=path, method=method, headers=named))
        return read_answer(sock, head_only=method == "HEAD")


def wait_until(condition: Callable[[], Any], tries: int = 4_000) -> Any:
    """Ask again until it is so; returns what made it so."""
    pause = threading.Event()
    for _ in range(tries):
        if found := condition():
            return found
        pause.wait(0.005)
    raise AssertionError("it never became so")
