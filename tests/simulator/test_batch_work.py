"""The work on a batch, in this process and by a clock in the hand."""

from __future__ import annotations

import asyncio
import json

import pytest

from simulation import ask
from tokenweir.simulator import batch_work
from tokenweir.simulator.batch_work import BatchJob, Origin
from tokenweir.simulator.batches import FAR_US, Batch, Timing
from tokenweir.simulator.directives import PLAIN
from tokenweir.simulator.scenario import Scenario
from tokenweir.simulator.spool import Spool
from tokenweir.simulator.truth import Journal
from tokenweir.simulator.world import World

START = 1_795_355_155_000_000
ORIGIN = Origin("red", "5eed", "2023-06-01", frozenset())


class HandClock:
    def now_us(self):
        return START

    def monotonic_ns(self):
        return 0


class Bench:
    """A world, and what was written in it."""

    def __init__(self, tmp_path, card):
        self.file = tmp_path / "truth.jsonl"
        self.world = World(scenario=Scenario(), seed=1, card=card, clock=HandClock(), journal=Journal(self.file))

    def job(self, *params, wanted=PLAIN, **timing):
        """A batch that has begun."""
        rows = Spool()
        for index, values in enumerate(params):
            rows.append(json.dumps({"custom_id": f"l{index}", "params": values}).encode())
        lengths = Timing(**{"delay_us": 0, "canceling_us": 0, "lifetime_us": 10**9, "archive_us": 10**12, **timing})
        batch = Batch("msgbatch_1", count=len(params), created_us=START, timing=lengths, seed=1, delays={})
        job = BatchJob(self.world, batch, rows, wanted=wanted, origin=ORIGIN)
        self.world.on_advance(job.nudge)
        job.start()
        return job

    def results(self, job):
        return [json.loads(job.results.record(index)) for index in range(len(job.results))]

    def journal(self):
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path, card):
    return Bench(tmp_path, card)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0)


async def test_results_and_journal_say_the_same(bench):
    """Line by line, and each attempt has a number and an id of its own."""
    job = bench.job(*(ask(max_tokens=50 + n) for n in range(40)), ask(model="none"))
    await until(lambda: job.batch.status == "ended")
    found, written = bench.results(job), bench.journal()
    assert [line["custom_id"] for line in found] == [line["custom_id"] for line in written]
    assert [line["result"]["type"] for line in found] == [line["outcome"] for line in written]
    assert [line["attempt"] for line in written] == list(range(1, 42))
    for line, row in zip(found, written, strict=True):
        if row["outcome"] == "succeeded":
            assert (row["usage"], row["message_id"]) == (line["result"]["message"]["usage"], line["result"]["message"]["id"])
            assert row["billed"]
        else:
            assert (row["usage"], row["cost_nanos"], row["error_type"]) == (None, 0, "not_found_error")
    assert job.batch.outcomes == {"succeeded": 40, "errored": 1, "canceled": 0, "expired": 0}


async def test_work_waits_for_its_time_and_wakes_when_the_clock_is_moved(bench):
    """Nothing sleeps until a time that has come."""
    job = bench.job(*(ask() for _ in range(4)), delay_us=4_000_000)
    await until(lambda: job._nudge._waiters)
    assert len(job.results) == 0
    bench.world.advance(2_000_000)
    await until(lambda: len(job.results) == 2)
    assert job.batch.status == "in_progress"
    bench.world.advance(10**9)
    await until(lambda: job.batch.status == "ended")
    assert job.batch.outcomes["succeeded"] == 4


async def test_a_cancellation_wakes_the_work(bench):
    """What waits for ever ends at once."""
    job = bench.job(ask(), ask(), delay_us=FAR_US)
    await until(lambda: job._nudge._waiters)
    job.cancel()
    await until(lambda: job.batch.status == "ended")
    assert [line["result"] for line in bench.results(job)] == [{"type": "canceled"}] * 2


async def test_a_long_batch_gives_way_to_others(bench):
    """Between a few lines everyone else has a turn."""
    job = bench.job(*(ask() for _ in range(100)))
    turns = 0
    while job.batch.status != "ended":
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 100 // 16


async def test_a_fault_of_the_simulator_is_told_and_the_batch_still_ends(bench, monkeypatch):
    """Its owner reads the provider's 500."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))

    def broken(*args, **more):
        raise ZeroDivisionError("a hole")

    monkeypatch.setattr(batch_work, "compose", broken)
    job = bench.job(ask())
    await until(lambda: job.batch.status == "ended")
    assert bench.results(job)[0]["result"]["error"]["error"]["type"] == "api_error"
    assert told == ["a hole"]


async def test_a_stopped_job_writes_no_more(bench):
    """The simulator is ending."""
    job = bench.job(*(ask() for _ in range(100)))
    await until(lambda: len(job.results))
    job.stop()
    await asyncio.gather(job._task, return_exceptions=True)
    assert 0 < len(job.results) == len(bench.journal()) < 100
