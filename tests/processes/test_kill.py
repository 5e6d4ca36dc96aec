"""Gateway, worker and supervisor are killed at random moments under load, and afterwards ledger and truth agree, attempt by attempt.

TOKENWEIR_KILLS sets how many kills, TOKENWEIR_KILL_SEED how they fall. The report of counts is printed (pytest -s, or on failure).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from processes.books import compare
from processes.crowd import Crowd
from processes.serving import RunningTokenweir, kill, running_tokenweir
from simulation import running_simulator

KILLS = int(os.environ.get("TOKENWEIR_KILLS", "200"))
SEED = int(os.environ.get("TOKENWEIR_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
KILLS_PER_LIFE = 4
"""A supervisor restarts a role that keeps dying more and more slowly; after so many kills of each role it is itself killed, and started anew."""
CLIENTS = 24
TERM = 1 << (signal.SIGTERM - 1)


class Killer:
    """Kills, and keeps count."""

    def __init__(self, weir: RunningTokenweir, chance: random.Random) -> None:
        self.weir = weir
        self.chance = chance
        self.kills: Counter[str] = Counter()
        self.orphans: list[int] = []

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    async def run(self, kills: int) -> None:
        while self.total < kills:
            async with asyncio.TaskGroup() as tasks:
                for role in ("gateway", "worker"):
                    tasks.create_task(self._kill_role(role))
            await self._kill_supervisor()

    async def _kill_role(self, role: str) -> None:
        """Kill a role again and again, whenever it has come back, some 20 to 400 ms after that; now and then while it is still starting."""
        last = 0
        for _ in range(KILLS_PER_LIFE):
            await self._when_back(role, last, started=self.chance.random() < 0.9)
            await asyncio.sleep(self.chance.uniform(0.02, 0.4))
            last = self.weir.children().get(role, 0)
            if last and kill(last):
                self.kills[role] += 1

    async def _when_back(self, role: str, last: int, *, started: bool) -> None:
        """Wait until the role is there again and, if asked for, has come to work."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pid = self.weir.children().get(role, 0)
            if pid not in (0, last) and (not started or _at_work(pid)):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"the {role} did not come back; {self.weir.children()} are there: {self.weir.log_path.read_text()[-3000:]}")

    async def _kill_supervisor(self) -> None:
        """Alone (its roles then end in order, beside those of the next one), or with all its roles; then start it again on the same data."""
        weir = self.weir
        await asyncio.sleep(self.chance.uniform(0.02, 0.4))
        assert weir.process is not None
        if self.chance.random() < 0.3:
            self.orphans += weir.children().values()
            kill(weir.process.pid)
            await asyncio.to_thread(weir.reap)
            self.kills["supervisor alone"] += 1
        else:
            await asyncio.to_thread(weir.kill_everything)
            self.kills["everything"] += 1
        await asyncio.to_thread(weir.start)


def _at_work(pid: int) -> bool:
    """Whether the process handles SIGTERM (catches it, or takes it from the blocked ones), which a role does from the moment it works."""
    with suppress(OSError, ValueError):
        lines = [line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return any(int(mask.strip(), 16) & TERM for name, _, mask in lines if name in ("SigCgt", "SigBlk"))
    return False


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return b"tokenweir" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.mark.alone
def test_no_kill_loses_doubles_or_changes_an_attempt(tmp_path, capsys):
    """After many kills at random moments: nothing missing, nothing doubled, the exact equal to the nano-dollar, the unknown flagged and bounded."""
    chance = random.Random(SEED)
    with running_simulator(tmp_path) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        keys = [weir.key(team, "robot") for team in ("blue", "red", "green")]
        crowd = Crowd(lambda: weir.url, keys, clients=CLIENTS, seed=SEED)
        killer = Killer(weir, chance)
        started = time.monotonic()

        async def main() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(crowd.run())
                await killer.run(KILLS)
                await asyncio.sleep(0.5)
                crowd.end()

        asyncio.run(main())
        spent_s = time.monotonic() - started
        while any(map(_alive, killer.orphans)) or simulator.state()["open"]:
            time.sleep(0.02)
        assert weir.stop() == 0
        weir.start()  # what the last one left is booked by the next
        assert weir.stop() == 0
        verified = weir.verify()
        ledger, truth = weir.ledger(), simulator.journal()
        left = sorted(path.name for path in (weir.data_dir / "journal").iterdir())

    found = compare(truth, ledger, sessions=crowd.sessions)
    report = (
        f"\n{killer.total} kills in {spent_s:.0f} s (seed {SEED}): {dict(killer.kills)}\n{found}\n"
        f"clients: {dict(crowd.outcomes)}; {len(crowd.acknowledged)} acknowledged; journal files left: {left}\nverify: {verified.stdout.strip()}"
    )
    with capsys.disabled():
        print(report)
    assert killer.total >= KILLS
    assert verified.returncode == 0, verified.stdout + verified.stderr
    found.agree()
    exact = {entry["request_id"] for entry in ledger if entry["certainty"] == "exact"}
    lost = {session: request for session, request in crowd.acknowledged.items() if request not in exact}
    assert not lost, f"acknowledged and not booked exactly: {list(lost.items())[:5]}"
    for entry in ledger:
        assert "unknown" not in entry["flags"] or entry["certainty"] == "ceiling"
    assert found.counts["exact"] > 10 * CLIENTS, f"too little was served between the kills to prove anything: {found}"
