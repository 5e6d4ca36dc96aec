"""Requests wait for a limit of the real product: one at a time, in fair turns, up to their deadline, and those that leave cost nothing."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from processes.books import compare
from processes.calling import Answered, Asked, Call, ask
from processes.serving import RunningTokenweir, running_tokenweir
from simulation import RunningSimulator, running_simulator
from tokenweir import app
from tokenweir.cli.limit_status import read_statuses
from tokenweir.issuing import issue_key
from tokenweir.limiting import set_limit
from tokenweir.settings import load_settings

PATIENCE_S = 60
CLOCK = app.SystemClock()


@dataclass
class Weir:
    """The product before a simulator; `sent` is every request that must have reached the simulator, by the hash of its body."""

    running: RunningTokenweir
    simulator: RunningSimulator
    begins: Path
    sent: dict[str, str] = field(default_factory=dict)

    def key(self, team: str, name: str, priority: str = "normal") -> str:
        settings = load_settings(None, data_dir=self.running.data_dir)
        with closing(app.open_directory(settings)) as directory:
            return issue_key(
                directory,
                app.open_pepper(settings, directory),
                team=team,
                name=name,
                priority=priority,
                actor="test",
                now_us=CLOCK.now_us(),
                entropy=os.urandom,
            ).secret.reveal()

    def one_at_a_time(self, team: str, *, queue_for: str = "120s") -> None:
        settings = load_settings(None, data_dir=self.running.data_dir)
        with closing(app.open_directory(settings)) as directory, closing(app.open_limit_directory(settings)) as limits:
            made = set_limit(
                directory,
                limits,
                team=team,
                name=team,
                resource="concurrency",
                amount=1,
                action="queue",
                queue_for=queue_for,
                contact="ops@example.com",
                actor="test",
                now_us=CLOCK.now_us(),
                entropy=os.urandom,
            )
        # The answer comes when the gateway that serves knows the limit.
        ((_, found),) = read_statuses(settings, [made.limit])[0]
        assert found.amount == 1

    def status(self, team: str) -> dict[str, Any]:
        (one,) = json.loads(self.running.run("limit", "status", team, "--json").stdout)
        return one

    async def until(self, what: str, is_so) -> None:
        """Wait for something that another process does; `is_so` is asked in a thread, so that the clients here go on."""
        deadline = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(is_so):
            assert time.monotonic() < deadline, f"waited in vain until {what}"

    async def until_waiting(self, count: int) -> None:
        await self.until(f"{count} wait", lambda: self.running.metric("tokenweir_queue_waiting") == count)

    @asynccontextmanager
    async def busy(self, key: str, session: str) -> AsyncIterator[None]:
        """While a request of this key is under way; at the end its client leaves."""
        asked = ask(session, stream=True, directives="output=20;stall=-1;stall_after=1")
        self.sent[asked.sha256] = session
        call = Call(self.running.url, key, asked)
        await call.open()
        await self.until("the first is under way", lambda: asked.sha256 in self.begins.read_text())
        yield
        await call.leave("fin")

    async def join(self, key: str, session: str, waiting: int) -> Waiting:
        """Ask, and wait until so many are in the queue."""
        asked = ask(session, directives="output=8;ttfb=2")
        call = Call(self.running.url, key, asked)
        await call.open()
        await self.until_waiting(waiting)
        return Waiting(asked, call)

    async def finish(self, waiting: Waiting) -> Answered:
        answer = await waiting.call.finish()
        if answer.status == 200:
            self.sent[waiting.asked.sha256] = waiting.asked.session
        return answer

    def truth(self, sessions: set[str]) -> list[tuple[str, float, float]]:
        """Session, begin and end of those requests that reached the simulator, in the order in which they did."""
        lines = [
            (self.sent.get(line["body_sha256"], "?"), _seconds(line["received_at"]), _seconds(line["ended_at"])) for line in self.simulator.journal()
        ]
        return sorted((line for line in lines if line[0] in sessions or line[0] == "?"), key=lambda line: line[1])


@dataclass
class Waiting:
    """A request in the queue."""

    asked: Asked
    call: Call


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


@pytest.fixture(scope="module")
def weir(tmp_path_factory) -> Iterator[Weir]:
    """One product for all tests here, each with a team of its own; in the end its books agree with the truth and no limit holds anything."""
    home = tmp_path_factory.mktemp("queue")
    begins = home / "begins.jsonl"
    begins.touch()
    with running_simulator(home, options=("--journal-begins", str(begins))) as simulator, running_tokenweir(home / "weir", simulator.url) as running:
        made = Weir(running, simulator, begins)
        yield made
        standings = json.loads(running.run("limit", "status", "--json").stdout)
        assert {(one["used"], one["held"], one["queue"]["waiting"]) for one in standings} == {(0, 0, 0)}
        assert running.metric("tokenweir_queue_waiting") == 0
        truth = simulator.journal()
        assert {line["body_sha256"] for line in truth} == made.sent.keys(), "what waited in vain, or left, never reached the provider"
        ledger = running.booked(lambda entries: len(entries) >= len(truth))
        assert running.stop() == 0
        compare(truth, ledger, sessions=made.sent).agree()


def test_twenty_requests_of_four_keys_all_succeed_one_at_a_time_in_fair_turns(weir):
    keys = {name: weir.key("fair", name) for name in "abcd"}
    weir.one_at_a_time("fair")
    names = [f"{name}{number}" for name in "abcd" for number in range(5)]

    async def main():
        async with weir.busy(keys["a"], "fair first"):
            waiting = [await weir.join(keys[name[0]], name, number) for number, name in enumerate(names, 1)]
        return await asyncio.gather(*(weir.finish(one) for one in waiting))

    answers = asyncio.run(main())
    assert {answer.status for answer in answers} == {200}
    truth = weir.truth(set(names))
    assert [session for session, _, _ in truth] == [f"{name}{number}" for number in range(5) for name in "abcd"]
    for (_, _, ended), (session, began, _) in pairwise(truth):
        assert began >= ended, f"{session} reached the provider while another one was there"
    status = weir.status("fair")
    assert (status["used"], status["held"], status["queue"]["served"], status["queue"]["waiting"]) == (0, 0, 20, 0)
    assert 0 < status["queue"]["p50_ms"] <= status["queue"]["p95_ms"]


def test_who_waits_in_vain_is_refused_at_the_deadline_and_told_when_to_come_back(weir):
    key = weir.key("short", "robot")
    weir.one_at_a_time("short", queue_for="400ms")

    async def main():
        async with weir.busy(key, "short first"):
            late = await weir.finish(await weir.join(key, "late", 1))
        await weir.until("the first has ended", lambda: weir.status("short")["held"] == 0)
        again = Call(weir.running.url, key, asked := ask("again"))
        await again.open()
        return late, await weir.finish(Waiting(asked, again))

    late, again = asyncio.run(main())
    assert late.status == 429
    assert late.json["error"]["type"] == "rate_limit_error"
    assert "ops@example.com" in late.json["error"]["message"]
    assert int(late.headers["retry-after"]) >= 1
    assert late.headers.get("x-should-retry") != "false"
    assert again.status == 200
    assert weir.status("short")["queue"]["expired"] == 1


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_client_that_leaves_the_queue_costs_nothing_and_holds_nobody_up(weir, how):
    team = f"gone-{how}"
    key = weir.key(team, "robot")
    weir.one_at_a_time(team)

    async def main():
        async with weir.busy(key, f"{team} first"):
            leaver = await weir.join(key, f"{team} leaver", 1)
            stayer = await weir.join(key, f"{team} stayer", 2)
            await leaver.call.leave(how)
            await weir.until_waiting(1)
        return await weir.finish(stayer)

    assert asyncio.run(main()).status == 200
    queue = weir.status(team)["queue"]
    assert (queue["served"], queue["expired"]) == (1, 0)


def test_a_higher_priority_goes_first(weir):
    keys = {priority: weir.key("classes", priority, priority) for priority in ("low", "normal", "high")}
    weir.one_at_a_time("classes")
    names = [f"{priority}{number}" for priority in keys for number in range(2)]

    async def main():
        async with weir.busy(keys["high"], "classes first"):
            waiting = [await weir.join(keys[name[:-1]], name, number) for number, name in enumerate(names, 1)]
        return await asyncio.gather(*(weir.finish(one) for one in waiting))

    assert {answer.status for answer in asyncio.run(main())} == {200}
    assert [session for session, _, _ in weir.truth(set(names))] == ["high0", "high1", "normal0", "normal1", "low0", "low1"]


def test_at_shutdown_nobody_is_left_waiting(tmp_path):
    begins = tmp_path / "begins.jsonl"
    begins.touch()
    with (
        running_simulator(tmp_path, options=("--journal-begins", str(begins))) as simulator,
        running_tokenweir(tmp_path / "weir", simulator.url, GATEWAY__SHUTDOWN_TIMEOUT_MS="2000") as running,
    ):
        weir = Weir(running, simulator, begins)
        key = weir.key("blue", "robot")
        weir.one_at_a_time("blue")

        async def main():
            async with asyncio.TaskGroup() as tasks, weir.busy(key, "first"):
                waiting = [await weir.join(key, f"waiter {number}", number) for number in (1, 2)]
                stopping = tasks.create_task(asyncio.to_thread(running.stop))
                answers = await asyncio.gather(*(one.call.finish() for one in waiting))
            assert stopping.result() == 0
            return answers

        for answer in asyncio.run(main()):
            assert answer.status == 529
            assert answer.json["type"] == "error"
        assert len(simulator.journal()) == 1
