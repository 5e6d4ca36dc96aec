"""A crowd on a budget for ten: 256 requests at once, fifty times, in the memory of one gateway and in a shared store before four.

Each round is a key with a budget of its own, strict, for exactly ten times the most that one of these requests can cost. The crowd comes at once; then
single requests follow until there is no more room. The ledger must never show more than the budget, and at least nine tenths of it must have been usable.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from processes.calling import Asked, Call
from processes.calling import ask as ask_for
from processes.serving import RunningTokenweir, running_tokenweir
from simulation import running_simulator
from tokenweir import app
from tokenweir.issuing import issue_key
from tokenweir.settings import load_settings
from valkeys import needs_valkey, own_server

ROUNDS = 50
CROWD = 256
CONNECTIONS_MAX = 128
"""How many of the crowd have a socket at a time in this process; the gateway sees no gap between them."""
PATIENCE_S = 120


def ask(number: int) -> Asked:
    """Requests of one size, so that all have one ceiling; answers use most of it."""
    return ask_for(f"{number:06d}", model="claude-haiku-4-5", max_tokens=2_000, directives="output=1900")


@pytest.fixture(params=["memory", pytest.param("valkey", marks=needs_valkey)])
def weir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningTokenweir]:
    with running_simulator(tmp_path) as simulator:
        if request.param == "memory":
            with running_tokenweir(tmp_path / "home", simulator.url) as running:
                yield running
        else:
            server = own_server()
            url = server.url.get_secret_value()
            try:
                with running_tokenweir(tmp_path / "home", simulator.url, "--workers", "4", LIMITS__STORE_URL=url) as running:
                    yield running
            finally:
                server.kill()


async def send(url: str, key: str, asked: Asked) -> int:
    """The status of one request; an answer is read to its end."""
    call = Call(url, key, asked)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await call.open()
            await call.read_head()
            async for _ in call.pieces():
                pass
        return call.answer.status
    finally:
        await call.leave("fin")


async def spend_up(url: str, key: str, numbers: Iterator[int], free: asyncio.Semaphore) -> Counter[int]:
    """The crowd, and then one after the other until two in a row find no room."""

    async def one() -> int:
        async with free:
            return await send(url, key, ask(next(numbers)))

    statuses = Counter(await asyncio.gather(*(one() for _ in range(CROWD))))
    refused = 0
    while refused < 2:
        status = await one()
        statuses[status] += 1
        refused = refused + 1 if status == 429 else 0
    return statuses


async def play(weir: RunningTokenweir, keys: list[str]) -> Counter[int]:
    numbers = iter(range(1, 10**6))
    free = asyncio.Semaphore(CONNECTIONS_MAX)
    statuses: Counter[int] = Counter()
    for key in keys:
        statuses += await spend_up(weir.url, key, numbers, free)
    return statuses


def new_keys(weir: RunningTokenweir) -> list[str]:
    """A key for each round."""
    settings = load_settings(None, data_dir=weir.data_dir)
    with closing(app.open_directory(settings)) as directory:
        pepper, now_us = app.open_pepper(settings, directory), app.SystemClock().now_us()
        return [
            issue_key(directory, pepper, team="race", name=f"{number}", actor="test", now_us=now_us, entropy=os.urandom).secret.reveal()
            for number in range(ROUNDS)
        ]


def status(weir: RunningTokenweir) -> dict[str, dict[str, Any]]:
    """How the limit stands, by key."""
    return {row["seat"]: row for row in json.loads(weir.run("limit", "status", "race", "--json").stdout)}


def test_a_strict_budget_is_never_passed_and_can_be_used(weir):
    """0 nano-dollars over, at least 90 % used, in every one of fifty rounds; then ledger and status agree to the unit and nothing is held."""
    first = weir.key(name="probe")
    assert asyncio.run(send(weir.url, first, ask(0))) == 200
    (probe,) = weir.booked(lambda entries: len(entries) == 1)
    budget_nanos = 10 * probe["ceiling_nanos"]
    amount = f"{budget_nanos // 10**9}.{budget_nanos % 10**9:09d}"
    weir.run("limit", "set", "--org", "--per", "key", "--resource", "spend", "--amount", amount, "--window", "month", "--strict", "--name", "race")
    # A gateway that knows a key knows everything that was set before it was made.
    keys = new_keys(weir)
    for _ in range(40):
        # One at a time, until every gateway has met the last of them: unknown keys in a crowd are refused without a look.
        assert weir.get("/api/oauth/usage", authorization=f"Bearer {keys[-1]}")[0] == 200
    statuses = asyncio.run(play(weir, keys))
    assert set(statuses) == {200, 429}, statuses

    entries = weir.booked(lambda entries: sum(entry["cost_nanos"] > 0 for entry in entries) == statuses[200] + 1)
    spent: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        spent[entry["key"]] += entry["cost_nanos"]
    spent.pop(probe["key"])
    assert len(spent) == ROUNDS
    assert max(spent.values()) <= budget_nanos
    assert min(spent.values()) >= budget_nanos * 9 // 10
    told = status(weir)
    assert {key: row["used"] for key, row in told.items() if key in spent} == dict(spent)
    assert {row["held"] for row in told.values()} == {0}
    assert weir.verify().returncode == 0
