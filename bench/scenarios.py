"""What is done to a candidate, and what is taken down.

CPU per request is the user + system time of all its processes between two moments at rest, divided by the answers that came through whole: what a
worker puts off is waited for and charged. At low rates every stack costs several times more per request, because it wakes up for each; so look at
the share of the core that was in use beside it. What other processes took from the machine meanwhile is noted, because it spoils the figures.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import processes
from candidates import Running, totals
from processes import BenchFailed


@dataclass(frozen=True)
class Scenario:
    """One kind of load."""

    name: str
    title: str
    load: tuple[str, ...]
    seconds: float
    rounds: int = 1
    per_event: bool = False


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    seconds: float
    rounds: int
    rate_seconds: float
    paced_seconds: float
    slow_streams: int
    slow_events: int
    journal_attempts: int
    limit_requests: int = 0
    limit_keys: tuple[int, ...] = ()


FULL = Sizes(
    seconds=4.0, rounds=3, rate_seconds=12.0, paced_seconds=8.0, slow_streams=1000, slow_events=10, journal_attempts=200_000,
    limit_requests=200_000, limit_keys=(10, 1_000, 100_000),
)  # fmt: skip
QUICK = Sizes(
    seconds=0.8, rounds=1, rate_seconds=1.0, paced_seconds=1.0, slow_streams=200, slow_events=2, journal_attempts=10_000,
    limit_requests=5_000, limit_keys=(10, 1_000),
)  # fmt: skip
HEAVY = Sizes(seconds=8.0, rounds=1, rate_seconds=8.0, paced_seconds=8.0, slow_streams=0, slow_events=0, journal_attempts=0)
"""For a candidate that takes milliseconds for a request."""


def scenarios(sizes: Sizes, *, rate: float, connections: int = 64, streams: int = 30) -> list[Scenario]:
    """The loads of one run, in order."""
    many = ("--connections", str(connections))
    paced = ("--connections", str(streams), "--events", "100", "--per-write", "1", "--interval-ms", "10", "--ramp-s", "1", "--delays")
    return [
        Scenario("json", "JSON, 4 KB bodies, 64 connections", (*many, "--body-bytes", "4096"), sizes.seconds, sizes.rounds),
        Scenario("big", "JSON, 195 KB bodies, 64 connections", (*many, "--body-bytes", "195000"), sizes.seconds, sizes.rounds),
        Scenario("fast", "SSE, 100 events, 5 per write, 64 connections", (*many, "--events", "100"), sizes.seconds, sizes.rounds, per_event=True),
        Scenario("paced", f"SSE, {streams * 100} events/s, one per write", paced, sizes.paced_seconds, per_event=True),
        Scenario("rate", f"JSON at {rate:g} requests/s", ("--connections", "256", "--rate", str(rate)), sizes.rate_seconds),
    ]


def measure(running: Running, provider: tuple[str, int], scenario: Scenario, *, load_core: int) -> dict[str, Any]:
    """Run the scenario's rounds; figures are those of the round with the median CPU time per request, errors those of all rounds."""
    rounds = [_measure_once(running, provider, scenario, load_core=load_core) for _ in range(scenario.rounds)]
    ordered = sorted(rounds, key=lambda figures: figures["cpu_us_per_request"])
    chosen = dict(ordered[(len(ordered) - 1) // 2])
    chosen["completed_in_all_rounds"] = sum(figures["completed"] for figures in rounds)
    chosen["cpu_us_per_request_rounds"] = [figures["cpu_us_per_request"] for figures in rounds]
    chosen["errors"] = {}
    for figures in rounds:
        for why, times in figures["errors"].items():
            chosen["errors"][why] = chosen["errors"].get(why, 0) + times
    return chosen


def _measure_once(running: Running, provider: tuple[str, int], scenario: Scenario, *, load_core: int) -> dict[str, Any]:
    pids, (_, provider_pid) = running.pids, provider
    processes.wait_until_idle(pids)
    before = {pid: processes.cpu_s(pid) for pid in pids}
    ours_before = processes.cpu_s(provider_pid) + time.process_time()
    machine_before, begun = processes.machine_busy_s(), time.monotonic()
    arguments = ["--url", running.url, "--key", running.key, "--seconds", str(scenario.seconds), *scenario.load]
    if not running.exact:
        arguments.append("--reworded")
    result = processes.run_load(arguments, core=load_core, timeout_s=scenario.seconds + 90)
    loaded = {pid: processes.cpu_s(pid) for pid in pids}
    if not processes.wait_until_idle(pids):
        raise BenchFailed(f"after {scenario.title} the candidate did not come to rest within two minutes")
    spent = {pid: processes.cpu_s(pid) - before[pid] for pid in pids}
    ours = processes.cpu_s(provider_pid) + time.process_time() - ours_before + result["cpu_s"] + sum(spent.values())
    foreign_s = max(0.0, processes.machine_busy_s() - machine_before - ours)
    return (
        result
        | _shares(running, result, spent, scenario)
        | {
            "core_busy": round(sum(loaded[pid] - before[pid] for pid in pids) / max(result["elapsed_s"], 1e-9), 3),
            "foreign_cores": round(foreign_s / (time.monotonic() - begun), 3),
            "load_average": os.getloadavg()[0],
        }
    )


def _shares(running: Running, result: dict[str, Any], spent: dict[int, float], scenario: Scenario) -> dict[str, Any]:
    """CPU time per finished request, and per event, in all and by role; 0 where nothing came through."""
    completed = result["completed"]

    def each_us(seconds: float, number: int) -> float:
        return round(seconds * 1e6 / number, 2) if number else 0.0

    whole = sum(spent.values())
    shares: dict[str, Any] = {"cpu_us_per_request": each_us(whole, completed)}
    shares["cpu_us_per_request_by_role"] = {
        role: each_us(sum(spent.get(member, 0.0) for member in _members(running, role)), completed) for role in running.roles
    }
    if scenario.per_event:
        shares["cpu_us_per_event"] = each_us(whole, result["events"])
        shares["cpu_us_per_event_by_role"] = {
            role: each_us(sum(spent.get(member, 0.0) for member in _members(running, role)), result["events"]) for role in running.roles
        }
    return shares


def _members(running: Running, role: str) -> list[int]:
    """The process of a role and its children, without those that are roles themselves."""
    others = {pid for name, pid in running.roles.items() if name != role}
    return [pid for pid in processes.family(running.roles[role]) if pid not in others]


def warm_up(running: Running, *, load_core: int, seconds: float = 1.0) -> None:
    """Open connections and run every path once before anything is taken down."""
    for extra in (["--body-bytes", "4096"], ["--events", "10", "--connections", "16"]):
        arguments = ["--url", running.url, "--key", running.key, "--seconds", str(seconds), *extra]
        result = processes.run_load([*arguments, *([] if running.exact else ["--reworded"])], core=load_core, timeout_s=90)
        if not result["completed"]:
            raise BenchFailed(f"the warm-up brought no answer: {result['errors']}")


def measure_memory(running: Running, provider: tuple[str, int], sizes: Sizes, *, load_core: int) -> dict[str, Any]:
    """Hold many slow streams open at once: growth of the resident memory for each, from right after the start (cold) and from warm."""
    pids = running.pids
    cold = {pid: processes.rss_kb(pid) for pid in pids}
    warm_up(running, load_core=load_core, seconds=0.5)
    processes.wait_until_idle(pids)
    warm = {pid: processes.rss_kb(pid) for pid in pids}
    streams, events = sizes.slow_streams, sizes.slow_events
    arguments = ["--url", running.url, "--key", running.key, "--connections", str(streams), "--requests-max", str(streams), "--delays"]
    arguments += ["--events", str(events), "--per-write", "1", "--interval-ms", "1000", "--ramp-s", "1.5", "--seconds", "2"]
    arguments += ["--finish-s", str(events + 30)]
    with processes.MemoryWatch(pids) as watch:
        result = processes.run_load(arguments, core=load_core, timeout_s=events + 90)
    main = {pid: name for name, pid in running.roles.items() if name in ("gateway", "envoy", "nginx")}
    front = next(iter(main), pids[0])

    def growth(since: dict[int, int]) -> float:
        return round(max(0, watch.most_kb[front] - since[front]) / streams, 1)

    return result | {
        "streams": streams,
        "open_at_once": totals(provider[0])["open_most"],
        "rss_mb_cold": round(cold[front] / 1024, 1),
        "rss_mb_most": round(watch.most_kb[front] / 1024, 1),
        "kb_per_stream_cold": growth(cold),
        "kb_per_stream_warm": growth(warm),
    }
