"""A running Tokenweir for tests: the real `tokenweir serve` in processes of its own, from an empty folder, with three environment variables.

Commands are run as an operator would run them, while it serves. `ledger()` is what the outside sees of the books: the export, as JSON lines.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

UPSTREAM_KEY = "sk-ant-sim-red-0123456789"
_READY_TIMEOUT_S = 60


@dataclass
class RunningTokenweir:
    """One data directory and the processes that serve it now."""

    home: Path
    environment: dict[str, str]
    options: tuple[str, ...] = ()
    """Of `serve`, such as `("--workers", "4")`."""
    url: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    printed: list[str] = field(default_factory=list)
    """Every line that `serve` has printed."""
    commands: list[str] = field(default_factory=list)
    """What every command has printed, standard error included."""

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    @property
    def log_path(self) -> Path:
        return self.home / "serve.log"

    def log_lines(self) -> list[dict[str, Any]]:
        """The log so far, as objects; a line that a kill cut short is left out."""
        lines = []
        for line in self.log_path.read_text("utf-8", "replace").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def start(self) -> None:
        """Start it and wait for its ready line."""
        log = self.log_path.open("a")
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "tokenweir", "serve", "--port", "0", *self.options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
            )
        finally:
            log.close()
        assert process.stdout is not None
        self.process = process
        line = process.stdout.readline()
        if not line:
            process.wait(20)
            process.stdout.close()
            raise RuntimeError(f"tokenweir serve did not start (exit code {process.returncode}): {self.log_path.read_text()[-4000:]}")
        self.printed.append(line)
        ready = json.loads(line)
        self.url, self.pids = ready["gateway"], ready["pids"]

    def stop(self, *, timeout_s: float = 60) -> int:
        """End it as an operator would; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.reap(timeout_s=timeout_s)

    def reap(self, *, timeout_s: float = 60) -> int:
        """Wait for the supervisor's end, by force after a time; returns the exit code."""
        process, self.process = self.process, None
        assert process is not None
        assert process.stdout is not None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process = process
            self.kill_everything()
            raise
        with suppress(OSError, ValueError):
            self.printed += process.stdout.readlines()
        process.stdout.close()
        return code

    def children(self) -> dict[str, int]:
        """The roles that run under the supervisor now, by name."""
        return {} if self.process is None else children_of(self.process.pid)

    def kill_everything(self) -> int:
        """`kill -9` for the supervisor and all of its roles; returns how many processes that were."""
        assert self.process is not None
        victims = [self.process.pid, *self.children().values()]
        killed = sum(kill(pid) for pid in victims)
        # A role that was being born while we looked is an orphan now, which ends by itself when it reads the end of its standard input.
        with suppress(subprocess.TimeoutExpired):
            self.reap(timeout_s=20)
        return killed

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of Tokenweir beside the one that serves."""
        done = subprocess.run(
            [sys.executable, "-m", "tokenweir", *arguments], check=False, capture_output=True, text=True, env=self.environment, timeout=300
        )
        self.commands.append(done.stdout + done.stderr)
        assert not check or done.returncode == 0, (
            f"tokenweir {' '.join(arguments)}: exit {done.returncode}: {done.stderr[-2000:]}{done.stdout[-2000:]}"
        )
        return done

    def key(self, team: str = "blue", name: str = "robot") -> str:
        """A new key's secret."""
        return str(json.loads(self.run("key", "create", "--team", team, "--name", name, "--json").stdout)["secret"])

    def ledger(self) -> list[dict[str, Any]]:
        """The ledger as exported, in the export's order."""
        return [json.loads(line) for line in self.run("ledger", "export", "--format", "jsonl").stdout.splitlines()]

    def booked(self, enough: Callable[[list[dict[str, Any]]], bool], *, timeout_s: float = 30) -> list[dict[str, Any]]:
        """The ledger as soon as `enough` holds of it."""
        deadline = time.monotonic() + timeout_s
        while not enough(entries := self.ledger()):
            assert time.monotonic() < deadline, f"the ledger never came to what was awaited; it has {len(entries)} entries: {entries[-3:]}"
        return entries

    def verify(self) -> subprocess.CompletedProcess[str]:
        """`tokenweir ledger verify`, whatever it says."""
        return self.run("ledger", "verify", check=False)

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """A plain GET of the gateway."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        text = self.get("/metrics")[2].decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((name + " ", name + "{")))


@contextmanager
def running_tokenweir(home: Path, upstream_url: str, *options: str, **settings: str) -> Iterator[RunningTokenweir]:
    """`tokenweir serve` with these options before `upstream_url`. `settings` are further environment variables, without their prefix: `GATEWAY__ON_DISCONNECT="drain"`."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        "HOME": str(home),
        "TOKENWEIR_DATA_DIR": str(home / "data"),
        "TOKENWEIR_UPSTREAM__BASE_URL": upstream_url,
        "TOKENWEIR_UPSTREAM__API_KEY": UPSTREAM_KEY,
        **{f"TOKENWEIR_{name}": value for name, value in settings.items()},
    }
    running = RunningTokenweir(home, environment, options)
    try:
        running.start()
        yield running
    finally:
        if running.process is not None:
            running.kill_everything()


def children_of(supervisor: int) -> dict[str, int]:
    """The roles under a supervisor: name → pid; of several gateways, `gateway`, `gateway-2` and so on."""
    found: dict[str, int] = {}
    try:
        pids = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    except OSError:
        return found
    for pid in pids:
        with suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"--role" in arguments:
                name = arguments[arguments.index(b"--role") + 1].decode()
                others = sum(role.partition("-")[0] == name for role in found)
                found[f"{name}-{others + 1}" if others else name] = int(pid)
    return found


def kill(pid: int) -> bool:
    """`kill -9`; False if it was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
