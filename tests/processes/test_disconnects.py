"""Clients leave at every event of a stream, in every way, before a gateway that cancels and one that drains: the ledger equals the truth."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path

from processes.books import compare
from processes.calling import Asked, Call, ask, call
from processes.serving import RunningTokenweir, running_tokenweir
from simulation import RunningSimulator, running_simulator

OUTPUT = "output=40;thinking=12"
CLOSED_UPSTREAM_S = 1.0
"""The promise of `cancel`: the provider sees the client leave within this time. Nothing else here looks at a clock to judge."""


class Leavers:
    """Clients that leave at a chosen moment, before one gateway."""

    def __init__(self, weir: RunningTokenweir, simulator: RunningSimulator) -> None:
        self.weir = weir
        self.key = weir.key()
        self.asked: list[Asked] = []
        self.left: dict[str, float] = {}
        self._begins = simulator.journal_path.with_name("begins.jsonl")
        self._simulator = simulator

    async def events_of_a_stream(self) -> int:
        """How many events the stream has that everybody asks for."""
        asked = ask("whole", stream=True, directives=OUTPUT)
        self.asked.append(asked)
        answer = await call(self.weir.url, self.key, asked)
        assert answer.looks_complete
        return len(answer.events)

    async def leave(self, asked: Asked, events: int, how: str) -> None:
        """Ask, read so many events (none: until the provider has begun), leave."""
        self.asked.append(asked)
        calling = Call(self.weir.url, self.key, asked)
        await calling.open()
        if events:
            await calling.read_head()
            await calling.read_events(events)
        else:
            while asked.sha256 not in self._begins.read_text():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.005)
        self.left[asked.sha256] = time.time()
        await calling.leave(how)

    def books(self) -> tuple[list, list]:
        """Truth and ledger once no request is under way anywhere and everything is booked."""
        deadline = time.monotonic() + 30
        while self._simulator.state()["open"] or self.weir.metric("tokenweir_open_requests"):
            assert time.monotonic() < deadline, "a request is still under way"
            time.sleep(0.01)
        truth = self._simulator.journal()
        assert len(truth) == len(self.asked)
        ledger = self.weir.booked(lambda entries: len(entries) >= len(truth))
        assert self.weir.stop() == 0
        verified = self.weir.verify()
        assert verified.returncode == 0, verified.stdout
        compare(truth, ledger, sessions={asked.sha256: asked.session for asked in self.asked}).agree()
        return truth, ledger


def simulator_with_begins(tmp_path: Path, *options: str):
    begins = tmp_path / "begins.jsonl"
    begins.touch()
    return running_simulator(tmp_path, options=("--journal-begins", str(begins), *options))


def seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def test_cancel_closes_upstream_within_a_second_and_books_what_was_seen(tmp_path):
    """At every event, by FIN and by RST: what was streamed is booked as partial, what was stated as final is exact, before the first event it is a ceiling."""
    with simulator_with_begins(tmp_path) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        leavers = Leavers(weir, simulator)

        async def main() -> int:
            count = await leavers.events_of_a_stream()
            async with asyncio.TaskGroup() as tasks:
                for events in range(count):
                    for how in ("fin", "rst"):
                        asked = ask(f"{how}-{events}", stream=True, directives=f"{OUTPUT};stall=-1;stall_after={events}")
                        tasks.create_task(leavers.leave(asked, events, how))
            return count

        count = asyncio.run(main())
        truth, ledger = leavers.books()
    booked = {entry["session_id"]: entry for entry in ledger}
    for line in truth:
        if line["body_sha256"] in leavers.left:
            assert line["outcome"] == "client_left"
            late_s = seconds(line["ended_at"]) - leavers.left[line["body_sha256"]]
            assert late_s < CLOSED_UPSTREAM_S, f"the provider saw the client leave after {late_s:.2f} s"
    for how in ("fin", "rst"):
        found = [booked[f"{how}-{events}"] for events in range(count)]
        assert [entry["certainty"] for entry in found] == ["ceiling", *["partial"] * (count - 2), "exact"]
        assert {entry["cut"] for entry in found} == {"client"}
        # The estimate follows what was streamed, and never runs ahead of it.
        outputs = [entry["output"] for entry in found[1:]]
        assert outputs[-1] == 40
        assert outputs[-2] == 40
        assert sorted(outputs[4:]) == outputs[4:]


def test_drain_reads_on_and_books_exactly(tmp_path):
    """At every event, by FIN and by RST, and before the first one: the answer is read to its end and the bill is the provider's own."""
    with (
        simulator_with_begins(tmp_path) as simulator,
        running_tokenweir(tmp_path / "weir", simulator.url, GATEWAY__ON_DISCONNECT="drain", GATEWAY__DRAINS_MAX="1000") as weir,
    ):
        leavers = Leavers(weir, simulator)

        async def main() -> None:
            count = await leavers.events_of_a_stream()
            async with asyncio.TaskGroup() as tasks:
                for events in range(count):
                    for how in ("fin", "rst"):
                        asked = ask(f"{how}-{events}", stream=True, directives=f"{OUTPUT};stall=600;stall_after={events}")
                        tasks.create_task(leavers.leave(asked, events, how))
                for how in ("fin", "rst"):
                    asked = ask(f"{how}-json", directives=f"{OUTPUT};ttfb=600")
                    tasks.create_task(leavers.leave(asked, 0, how))

        asyncio.run(main())
        truth, ledger = leavers.books()
    assert {line["outcome"] for line in truth} == {"complete"}
    assert {entry["certainty"] for entry in ledger} == {"exact"}
    assert {entry["cut"] for entry in ledger if entry["session_id"] != "whole"} == {"client"}


def test_an_answer_in_one_piece_that_nobody_waits_for_is_booked_at_its_ceiling(tmp_path):
    """Of a JSON answer nothing is seen before its end: cancelled before that, it is the bound that is booked, and the truth is within it."""
    with simulator_with_begins(tmp_path) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        leavers = Leavers(weir, simulator)

        async def main() -> None:
            async with asyncio.TaskGroup() as tasks:
                for wait in ("ttfb=-1", "pace=5", "stall=-1"):
                    for how in ("fin", "rst"):
                        tasks.create_task(leavers.leave(ask(f"{wait}-{how}", directives=f"output=300;{wait}"), 0, how))

        asyncio.run(main())
        _, ledger = leavers.books()
    assert {entry["certainty"] for entry in ledger} == {"ceiling"}
    assert {entry["cut"] for entry in ledger} == {"client"}


def test_a_client_that_stops_reading_is_let_go_and_holds_no_memory(tmp_path):
    """Who takes no bytes for `write_timeout` is disconnected; cancelled or drained, the books agree; meanwhile the gateway holds no more than its buffers."""
    readers = 8
    long_answer = {"directives": "output=128000", "max_tokens": 128_000, "model": "claude-opus-4-8"}  # an event for each token: about 13 MB
    for policy in ("cancel", "drain"):
        home = tmp_path / policy
        home.mkdir()
        with (
            simulator_with_begins(home, "--event-tokens", "1") as simulator,
            running_tokenweir(home / "weir", simulator.url, GATEWAY__ON_DISCONNECT=policy, GATEWAY__WRITE_TIMEOUT_MS="1500") as weir,
        ):
            leavers = Leavers(weir, simulator)
            gateway = weir.children()["gateway"]
            before = resident_bytes(gateway)

            async def main(leavers: Leavers = leavers, simulator: RunningSimulator = simulator, gateway: int = gateway) -> int:
                calls = []
                for number in range(readers):
                    asked = ask(f"stopped-{number}", stream=True, **long_answer)
                    leavers.asked.append(asked)
                    calls.append(Call(leavers.weir.url, leavers.key, asked))
                    await calls[-1].open(read_buffer_bytes=4096)
                    await calls[-1].read_head()
                most = 0
                while leavers.weir.metric("tokenweir_open_requests"):
                    most = max(most, resident_bytes(gateway))
                    await asyncio.sleep(0.02)
                for calling in calls:
                    await calling.leave("rst")
                return most

            most = asyncio.run(main())
            _, ledger = leavers.books()
        assert {entry["certainty"] for entry in ledger} == ({"exact"} if policy == "drain" else {"partial"})
        assert most - before < readers * 4 * 2**20, f"{(most - before) / 2**20:.1f} MB were held for {readers} clients that do not read"


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)
