"""What limits cost a request: CPU of admission with settlement, how that grows with the number of keys, and what a store on the same host adds.

It runs the limiter of the product (`metering/limiter.py`) with the book, the store and the estimator as the gateway has them, in a process of its own
on the candidate's core, without HTTP around it. A 99th percentile over the loopback at 300 requests/s does not separate fractions of a millisecond,
so the time of the store is taken where the request waits for it. What is measured is checked: afterwards the buckets must stand at exactly what was
settled, and nothing may be held; otherwise the figures are void.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import processes
from processes import BenchFailed

SERVERS = ("valkey-server", "redis-server")
MODEL = "claude-sonnet-5-5"
BATCH = 5_000
FRESH = 250
"""Requests that are made at once, just before they are asked for."""
RATE = 300.0


def measure_limits(work: Path, *, requests: int, keys: Sequence[int], core: int, store_core: int, timeout_s: float = 900.0) -> dict[str, Any]:
    """All figures; `keys` are the numbers of keys to try, each with limits of its own."""
    found: dict[str, Any] = {"requests": requests, "keys": {}, "differences": []}
    found["six"] = _run(work, core, timeout_s, "--requests", str(requests), "--keys", "10")
    for count in keys:
        found["keys"][str(count)] = _run(work, core, timeout_s, "--requests", str(requests), "--keys", str(count), "--own")
    paced = ("--requests", str(min(requests, 6_000)), "--keys", "10", "--rate", str(RATE))
    memory = _run(work, core, timeout_s, *paced)
    try:
        with _server(work, store_core) as url:
            if url is not None:
                shared = found["shared"] = _run(work, core, timeout_s, *paced, "--store-url", url)
                shared["added_p50_ms"] = round((shared["admit_us"]["p50"] - memory["admit_us"]["p50"]) / 1_000, 3)
                shared["added_p99_ms"] = round((shared["admit_us"]["p99"] - memory["admit_us"]["p99"]) / 1_000, 3)
    except BenchFailed as error:
        found["differences"].append(f"with a store: {error}")
    runs = [found["six"], memory, *found["keys"].values(), *([found["shared"]] if "shared" in found else [])]
    found["differences"] += [difference for run in runs for difference in run.pop("differences")]
    return found


def _run(work: Path, core: int, timeout_s: float, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), "--core", str(core), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=work)
    if done.returncode != 0:
        raise BenchFailed(f"the limiter could not be measured:\n{done.stderr[-600:]}")
    return dict(json.loads(done.stdout))


@contextlib.contextmanager
def _server(work: Path, core: int) -> Iterator[str | None]:
    """A Valkey or Redis server that keeps nothing on disk, on a Unix socket; None if none is installed."""
    binary = next((found for name in SERVERS if (found := shutil.which(name))), None)
    if binary is None:
        yield None
        return
    socket, log = work / "limits.sock", work / "limit-store.log"
    command = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(work)]
    with processes.running(command, core=core, log=log) as process:
        until = time.monotonic() + 10
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise BenchFailed(f"{binary} did not start; the end of its log:\n{processes.log_end(log)}")
            time.sleep(0.02)
        yield f"unix://{socket}"


# In the process under measurement.


async def _measure(*, requests: int, keys: int, own: bool, rate: float, store_url: str) -> dict[str, Any]:
    desk = _Desk(keys=keys, own=own, store_url=store_url)
    if desk.store.shared:
        await desk.store.open()
    rng = random.Random(1)
    # First everything is met once: chains are made, and the estimator learns.
    await desk.run(max(keys, 2_000), rng)
    # What was made is looked through once now, and not while it is measured: in a gateway that has met its keys, that is long over.
    gc.collect()
    cpu_s, latencies = 0.0, []
    for done in range(0, requests, BATCH):
        count = min(BATCH, requests - done)
        cpu_s += await desk.run(count, rng, latencies if rate else None, rate)
    figures: dict[str, Any] = {"keys": keys, "limits_on_the_chain": desk.chain_length, "cpu_us_per_request": round(cpu_s * 1e6 / requests, 2)}
    if not rate and not store_url:
        figures["parts_us"] = desk.parts(min(requests, 20_000))
    if latencies:
        latencies.sort()
        figures["admit_us"] = {f"p{share}": round(latencies[len(latencies) * share // 100], 1) for share in (50, 90, 99)}
    figures["differences"] = await desk.differences()
    await desk.close()
    return figures


class _Desk:
    """A limiter as the gateway has it, and requests for it."""

    def __init__(self, *, keys: int, own: bool, store_url: str) -> None:
        from tokenweir.app import SystemClock, open_limit_store, open_rate_card
        from tokenweir.ledger.entries import Settlement
        from tokenweir.limits.book import LimitBook
        from tokenweir.limits.estimate import Estimator
        from tokenweir.limits.limit import Cycle, Limit, Resource, Rolling, Scope
        from tokenweir.metering.limit_use import UseLookup
        from tokenweir.metering.limiter import Limiter
        from tokenweir.metering.waiting import WaitingRoom
        from tokenweir.pricing.rating import ceiling_cost
        from tokenweir.principals import Principal
        from tokenweir.settings import LimitSettings, Settings
        from tokenweir.usage import Certainty, Usage
        from tokenweir.wire.envelope import Envelope, ceiling_usage

        settings = Settings(limits=LimitSettings(store_url=store_url or None))
        self.clock = SystemClock()
        card = open_rate_card(settings)
        self.store = open_limit_store(settings, owner="bench")
        self.book = LimitBook(canonical=card.resolve, complete_since_us=None if self.store.shared else 0)
        organization, team, minute, month = Scope("org"), Scope("org", "team"), Rolling(60_000_000), Cycle("month")
        much = 10**15
        limits = [
            Limit("org_spend", "org_spend", organization, Resource.SPEND, much, month),
            Limit("org_input", "org_input", organization, Resource.INPUT_TOKENS, much, minute),
            Limit("team_spend", "team_spend", team, Resource.SPEND, much, month),
            Limit("team_requests", "team_requests", team, Resource.REQUESTS, much, minute),
        ]
        for number in range(keys if own else 1):
            scope = Scope("org", "team", f"key_{number}") if own else team
            limits.append(Limit(f"tokens_{number}", f"tokens_{number}", scope, Resource.TOKENS, much, Cycle("day")))
            limits.append(Limit(f"slots_{number}", f"slots_{number}", scope, Resource.CONCURRENCY, much, None))
        self.book.update([(limit, ()) for limit in limits])
        self.limiter = Limiter(
            store=self.store,
            book=self.book,
            use=UseLookup(_NoLedger(), self.book),
            room=WaitingRoom(self.clock),
            card=card,
            clock=self.clock,
            estimator=Estimator(),
            local_share_percent=25,
        )
        self.principals = [Principal("org", "team", f"key_{number}", "Acme", "red", f"key {number}") for number in range(keys)]
        self.chain_length = len(self.book.chain(self.principals[0], MODEL, session="", now_us=self.clock.now_us()).links)
        self.envelope = Envelope(MODEL, max_tokens=32_000, stream=True, body_bytes=50_000, text_bytes=50_000, cache_ttl="5m")
        self.ceiling = ceiling_usage(self.envelope, context_tokens=200_000, output_tokens_max=64_000)
        self.ceiling_nanos = ceiling_cost(card, MODEL, self.ceiling, at_us=self.clock.now_us())
        usage = Usage(uncached_input=300, cache_write_5m=1_200, cache_read=11_000, output=420)
        self.settlement = Settlement("a", self.clock.now_us(), 200, Certainty.EXACT, usage, 14_000_000, MODEL)
        self.settled = self.asked = 0

    async def run(self, count: int, rng: random.Random, latencies: list[float] | None = None, rate: float = 0.0) -> float:
        """That many requests, each admitted and settled; seconds of CPU. With a rate: one after the other at so many a second."""
        from tokenweir.metering.holding import Asking, Held

        admit, settlement, now = self.limiter.admit, self.settlement, time.perf_counter
        due, cpu_s = now(), 0.0
        for first in range(0, count, FRESH):
            askings = [self._asking(Asking) for _ in range(min(FRESH, count - first))]
            begun = time.process_time()
            for asking in askings:
                if rate:
                    due += rng.expovariate(rate)
                    await asyncio.sleep(max(0.0, due - now()))
                sent = now()
                held = await admit(asking)
                if latencies is not None:
                    latencies.append((now() - sent) * 1e6)
                if not isinstance(held, Held):
                    raise BenchFailed(f"a request was not admitted: {held}")
                held.add(settlement, asking.now_us)
                held.end()
            cpu_s += time.process_time() - begun
        self.settled += count
        await self.store.settled()
        return cpu_s

    def _asking(self, make: Any) -> Any:
        principal = self.principals[self.asked % len(self.principals)]
        self.asked += 1
        request_id = f"req_{self.asked:024d}"
        return make(request_id, principal, self.envelope, "", "normal", self.ceiling, self.ceiling_nanos, self.clock.now_us())

    def parts(self, count: int) -> dict[str, float]:
        """CPU of the parts alone: the buckets (reserve and settle), and the estimator (expect and learn)."""
        from tokenweir.limits.buckets import Buckets
        from tokenweir.limits.demand import demand_of, units_of
        from tokenweir.limits.estimate import Estimator

        now_us = self.clock.now_us()
        chain = self.book.chain(self.principals[0], MODEL, session="", now_us=now_us)
        usage, cost_nanos = self.settlement.usage, self.settlement.cost_nanos
        asked = [demand_of(link.limit.resource, usage, cost_nanos) for link in chain.links]
        used = [
            0 if bucket.taken else units_of(link.limit.resource, usage, cost_nanos) for link, bucket in zip(chain.links, chain.buckets, strict=True)
        ]
        buckets, estimator, envelope = Buckets(), Estimator(), self.envelope
        ids = [f"req_{number:024d}" for number in range(count)]
        begun = time.process_time()
        for number, hold_id in enumerate(ids):
            buckets.reserve(hold_id, chain.buckets, asked, now_us=now_us + number)
            buckets.settle(hold_id, used, now_us=now_us + number)
        counted = time.process_time()
        for _ in ids:
            estimator.expect("key_0", MODEL, envelope, self.ceiling)
            estimator.learn("key_0", MODEL, envelope.text_bytes, 0, usage)
        learned = time.process_time()
        return {"buckets": round((counted - begun) * 1e6 / count, 2), "estimator": round((learned - counted) * 1e6 / count, 2)}

    async def differences(self) -> list[str]:
        """Where the monthly counter of the organization does not stand at what was settled, or something is still held."""
        now_us = self.clock.now_us()
        chain = self.book.chain(self.principals[0], MODEL, session="", now_us=now_us)
        found = []
        for link, standing in zip(chain.links, await self.store.standings(chain.buckets, now_us=now_us), strict=True):
            if standing is None or standing.held:
                found.append(f"{link.limit.limit_id}: {standing}")
            elif link.limit.limit_id == "org_spend" and standing.used != self.settled * self.settlement.cost_nanos:
                found.append(f"{link.limit.limit_id}: {standing.used} used, {self.settled * self.settlement.cost_nanos} settled")
        return found

    async def close(self) -> None:
        self.limiter.use.close()
        await self.store.close()


class _NoLedger:
    """Nothing was used before."""

    def seeds(self, links: Sequence[Any]) -> list[Any]:
        from tokenweir.limits.bucket import Seed

        return [Seed(link.bucket, 0, 0) for link in links]

    def allowance(self, link: Any, grants: Sequence[Any]) -> Any:
        raise BenchFailed(f"no limit here has grants: {link}")


def main() -> None:
    """One measurement, as JSON on standard output."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--keys", type=int, required=True, help="requests come from so many keys in turn")
    parser.add_argument("--own", action="store_true", help="two of the six limits of a request are those of its key")
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second; without it, one after the other")
    parser.add_argument("--store-url", default="", help="a Valkey or Redis server; without it, in memory")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    import uvloop

    figures = uvloop.run(_measure(requests=options.requests, keys=options.keys, own=options.own, rate=options.rate, store_url=options.store_url))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
