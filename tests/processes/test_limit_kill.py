"""Gateways are killed while requests hold room, again and again: afterwards nothing is held, and every counter says what the ledger says, to the unit.

In the memory of one gateway, whose successor counts anew from ledger and journal; and in a shared store before four, where the worker ends what the
dead held. A strict budget is never passed, although attempts of dead gateways count at their ceiling. TOKENWEIR_LIMIT_KILLS sets how many rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes.crowd import Crowd
from processes.serving import RunningTokenweir, kill, running_tokenweir
from simulation import RunningSimulator, running_simulator
from valkeys import needs_valkey, own_server

ROUNDS = int(os.environ.get("TOKENWEIR_LIMIT_KILLS", "20"))
SEED = int(os.environ.get("TOKENWEIR_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
CLIENTS = 16
ROUNDS_PER_LIFE = 5
"""A supervisor restarts a gateway that keeps dying more and more slowly; in each such round it is itself killed, with all its roles."""
BUDGET_NANOS = 400_000_000
UNITS = {
    "spend": ("cost_nanos",),
    "requests": ("requests",),
    "tokens": ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output"),
    "output_tokens": ("output",),
}
"""Which figures of `tokenweir usage --json` make up the units of a resource."""


@pytest.fixture(params=["memory", pytest.param("valkey", marks=needs_valkey)])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RunningTokenweir, RunningSimulator]]:
    with running_simulator(tmp_path) as simulator:
        if request.param == "memory":
            with running_tokenweir(tmp_path / "home", simulator.url) as weir:
                yield weir, simulator
            return
        server = own_server()
        try:
            with running_tokenweir(tmp_path / "home", simulator.url, "--workers", "4", LIMITS__STORE_URL=server.url.get_secret_value()) as weir:
                yield weir, simulator
        finally:
            server.kill()


def set_limits(weir: RunningTokenweir) -> None:
    """One of each kind, before there is a key: a gateway that knows a key then knows them all."""
    for name, options in {
        "all-spend": "--org --resource spend --amount 1000 --window month",
        "red-spend": f"--team red --resource spend --amount 0.{BUDGET_NANOS:09d} --window month --strict",
        "blue-tokens": "--team blue --resource tokens --amount 1B --window quarter",
        "all-requests": "--org --resource requests --amount 1M --window month",
        "key-output": "--org --per key --resource output_tokens --amount 1B --window year",
        "haiku-only": "--org --resource requests --amount 1M --window month --models claude-haiku-*",
        "at-once": "--org --resource concurrency --amount 1000",
    }.items():
        weir.run("limit", "set", *options.split(), "--name", name)


def gateways(weir: RunningTokenweir) -> list[int]:
    """Those that are there now; the supervisor's children are all called so."""
    assert weir.process is not None
    found = []
    for pid in Path(f"/proc/{weir.process.pid}/task/{weir.process.pid}/children").read_text().split():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"gateway" in arguments:
            found.append(int(pid))
    return found


async def kill_rounds(weir: RunningTokenweir, expected: int, crowd: Crowd, chance: random.Random) -> Counter[str]:
    """Kill some of the gateways, let the crowd go on, and do it again; now and then kill everything at once."""
    kills: Counter[str] = Counter()
    for number in range(1, ROUNDS + 1):
        answered = sum(crowd.outcomes.values())
        deadline = time.monotonic() + 60
        while len(there := gateways(weir)) < expected or sum(crowd.outcomes.values()) < answered + CLIENTS:
            assert time.monotonic() < deadline, f"{there} are there, {crowd.outcomes}: {weir.log_path.read_text()[-3000:]}"
            await asyncio.sleep(0.02)
        await asyncio.sleep(chance.uniform(0.0, 0.15))
        if number % ROUNDS_PER_LIFE == 0:
            kills["everything"] += 1
            await asyncio.to_thread(weir.kill_everything)
            await asyncio.to_thread(weir.start)
        else:
            victims = chance.sample(there, chance.randrange(1, 1 + min(2, len(there))))
            kills["gateway"] += sum(map(kill, victims))
    return kills


def standings(weir: RunningTokenweir) -> list[dict[str, Any]]:
    return json.loads(weir.run("limit", "status", "--json").stdout)


def usage(weir: RunningTokenweir, by: str) -> dict[str, dict[str, int]]:
    """Figures by team, key or model, and of all under the empty name."""
    told = json.loads(weir.run("usage", "--by", by, "--json").stdout)
    return {"": told["totals"], **{row[by]: row for row in told["rows"]}}


def differences(weir: RunningTokenweir) -> list[str]:
    """Where limits and ledger do not agree, and what is still held."""
    by = {name: usage(weir, name) for name in ("team", "key", "model")}
    found = []
    for row in standings(weir):
        name, resource = row["name"], row["resource"]
        if row["held"] != 0:
            found.append(f"{name} {row['seat']}: {row['held']} held")
        if resource == "concurrency":
            continue
        match name.split("-")[0]:
            case "all":
                figures = [by["team"][""]]
            case "key":
                figures = [by["key"].get(row["seat"], {})]
            case "haiku":
                figures = [one for model, one in by["model"].items() if model.startswith("claude-haiku-")]
            case team:
                figures = [by["team"].get(team, {})]
        said = sum(one.get(figure, 0) for one in figures for figure in UNITS[resource])
        if row["used"] != said:
            found.append(f"{name} {row['seat']}: used {row['used']}, and the ledger says {said}")
    return found


@pytest.mark.alone
def test_after_every_kill_nothing_is_held_and_the_counters_are_the_ledger(served, capsys):
    """Twenty rounds of `kill -9` among requests that hold room; then all is still, and everything agrees."""
    weir, simulator = served
    chance = random.Random(SEED)
    for team in ("red", "blue"):
        weir.key(team, "never-used")
    set_limits(weir)
    keys = [weir.key(team, "robot") for team in ("red", "blue", "green")]
    crowd = Crowd(lambda: weir.url, keys, clients=CLIENTS, seed=SEED)
    expected = len(gateways(weir))

    async def main() -> Counter[str]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.run())
            kills = await kill_rounds(weir, expected, crowd, chance)
            crowd.end()
        return kills

    kills = asyncio.run(main())
    deadline = time.monotonic() + 60
    while simulator.state()["open"] or len(gateways(weir)) < expected or (found := differences(weir)):
        assert time.monotonic() < deadline, "\n".join([f"seed {SEED}, {dict(kills)}, {dict(crowd.outcomes)}", *found])
        time.sleep(0.1)
    entries = weir.ledger()
    with capsys.disabled():
        unknown = sum("unknown" in entry["flags"] for entry in entries)
        print(f"\n{dict(kills)} (seed {SEED}); {len(entries)} attempts, {unknown} of them unknown; clients: {dict(crowd.outcomes)}")
    spent = usage(weir, "team")["red"]["cost_nanos"]
    assert spent <= BUDGET_NANOS
    assert crowd.outcomes["429"], "the budget was too large to prove anything"
    assert spent > BUDGET_NANOS * 8 // 10, "the budget could not be used"
    assert any("unknown" in entry["flags"] for entry in entries), "no request was under way at any kill"
    assert weir.verify().returncode == 0
