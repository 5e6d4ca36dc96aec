"""Processes under measurement: start them on a core, read what they cost from /proc, end them.

Only processes that were started here are ever ended, by their id. CPU time is user + system of the process with all its threads, as the kernel
accounts it (in steps of 10 ms, so measure for seconds). Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class BenchFailed(Exception):
    """A candidate did not start, or did not do what was asked; its figures would mean nothing."""


def allow_many_files() -> int:
    """Raise the limit of open files as far as it may be, for a thousand streams; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    core: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stop_timeout_s: float = 40.0,
) -> Iterator[subprocess.Popen[str]]:
    """A process on one core, with every thread and child it makes; ended in order on leaving, by force after the timeout."""
    with log.open("a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509 - no threads have been started yet that could hold a lock
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process, stop_timeout_s)


def _stop(process: subprocess.Popen[str], timeout_s: float) -> None:
    """End the process; what it started ends with its session if it does not end by itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def ready_line(process: subprocess.Popen[str], *, name: str, log: Path, timeout_s: float) -> dict[str, Any]:
    """The JSON object that is the first line of the process's output; BenchFailed with the end of its log if it does not come."""
    lines: queue.Queue[str] = queue.Queue()
    stdout = process.stdout
    assert stdout is not None
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=timeout_s)
        return dict(json.loads(line))
    except (queue.Empty, ValueError) as error:
        raise BenchFailed(f"{name} did not become ready; the end of its log:\n{log_end(log)}") from error


def log_end(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:]) if log.exists() else "(no log)"


def run_load(arguments: Sequence[str], *, core: int, timeout_s: float) -> dict[str, Any]:
    """Run `load.py` on a core and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("load.py")), "--core", str(core), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise BenchFailed(f"the load failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text("ascii").split():
                found += family(int(child))
    return found


def cpu_s(pid: int) -> float:
    """User + system time of a process so far; BenchFailed if it is gone, because then it died under load."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError as error:
        raise BenchFailed(f"process {pid} ended during the measurement") from error
    return (int(fields[11]) + int(fields[12])) * TICK_S


def rss_kb(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE // 1024


def machine_busy_s() -> float:
    """CPU time that the whole machine has spent on anything."""
    fields = [int(field) for field in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) * TICK_S


class MemoryWatch:
    """The highest resident memory of some processes while the watch is open."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most_kb = dict.fromkeys(pids, 0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            for pid in self._pids:
                with contextlib.suppress(OSError):
                    self.most_kb[pid] = max(self.most_kb[pid], rss_kb(pid))


def wait_until_idle(pids: Sequence[int], *, quiet_s: float = 0.4, timeout_s: float = 120.0) -> bool:
    """Wait until the processes do next to nothing: what they had put off is done. False if they never come to rest."""
    if not pids:
        return True
    deadline = time.monotonic() + timeout_s
    before = sum(map(cpu_s, pids))
    while time.monotonic() < deadline:
        time.sleep(quiet_s)
        now = sum(map(cpu_s, pids))
        if now - before <= 0.05 * quiet_s + TICK_S:
            return True
        before = now
    return False
