"""Imports by real processes: killed at random moments, beside a gateway that serves, and of the very calls that it meters."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from processes.calling import MODEL, Answered, ask, call
from processes.serving import kill, running_tokenweir
from simulation import running_simulator
from transcript_trees import line, write_tree

SEED = int(os.environ.get("TOKENWEIR_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
KILLS = 6
CLASSES = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "thinking", "web_searches", "cost_nanos")


def command(data_dir: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tokenweir", *arguments, "--data-dir", str(data_dir)]


def run(data_dir: Path, *arguments: str) -> str:
    done = subprocess.run(command(data_dir, *arguments), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ledger(data_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in run(data_dir, "ledger", "export").splitlines()]


def net(entries: list[dict[str, Any]]) -> dict[tuple, tuple]:
    """What stands for each call: the sums of its entries, and when and where they are booked; nothing for what was taken back."""
    sums: dict = defaultdict(Counter)
    for entry in entries:
        place = (entry["source"], entry["dedup_key"], entry["started_at"], entry["model"], entry["session_id"], entry["key"], str(entry["tags"]))
        sums[place].update({name: entry[name] for name in CLASSES})
    return {place: tuple(counts[name] for name in CLASSES) for place, counts in sums.items() if any(counts.values())}


def sent_to_its_end(process: subprocess.Popen[str], delay_s: float) -> bool:
    """Whether it ended by itself before the kill that comes after the delay."""
    try:
        return process.wait(delay_s) == 0
    except subprocess.TimeoutExpired:
        kill(process.pid)
        return process.wait(20) == 0


def booked_rows(data_dir: Path) -> int:
    """How many entries a killed import left behind."""
    if not (data_dir / "tokenweir.db").exists():
        return 0
    with closing(sqlite3.connect(data_dir / "tokenweir.db")) as connection, suppress(sqlite3.OperationalError):
        return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])
    return 0


def test_an_import_that_is_killed_at_random_moments_and_run_again_gives_the_same_ledger(tmp_path):
    print("seed", SEED)
    chance = random.Random(SEED)
    write_tree(tmp_path / "tree", seed=SEED % 1000, files=8, answers=250)
    at_once, killed = tmp_path / "at_once", tmp_path / "killed"
    arguments = ("import", "claude-code", str(tmp_path / "tree"), "--owner", "ada")
    run(at_once, *arguments)
    total, left = booked_rows(at_once), set()
    for point in sorted(chance.randrange(total * 3 // 4) for _ in range(KILLS)):
        process = subprocess.Popen(command(killed, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while booked_rows(killed) <= point and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))
        kill(process.pid)
        process.wait(20)
        left.add(booked_rows(killed))
    assert len(left - {0, total}) > 1, "kills came in the middle of the booking"
    run(killed, *arguments)
    once, twice = ledger(at_once), ledger(killed)
    assert net(once) == net(twice)
    assert "No difference" in run(killed, "ledger", "verify")
    assert run(killed, "usage", "--by", "day", "--json") == run(at_once, "usage", "--by", "day", "--json")


def transcript_line(answered: Answered, *, output: int | None = None) -> str:
    """What Claude Code would write of an answer that it got."""
    message = answered.json
    usage = dict(message["usage"])
    written = json.loads(line(message["id"], answered.headers["request-id"], model=message["model"], stop_reason=message["stop_reason"]))
    written["message"]["usage"] = usage if output is None else usage | {"output_tokens": output}
    return json.dumps(written) + "\n"


def test_calls_that_went_through_the_gateway_are_booked_once_whatever_the_transcripts_say(tmp_path):
    """Transcripts of metered calls, some with placeholders, and of calls that went another way, imported while the gateway serves more."""
    with running_simulator(tmp_path) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        key = weir.key()
        answers = [asyncio.run(call(weir.url, key, ask(f"metered-{n}"))) for n in range(10)]
        weir.booked(lambda entries: len(entries) == 10)
        path = tmp_path / "tree" / "a.jsonl"
        path.parent.mkdir()
        outside = "".join(line(f"msg_outside_{n}", f"req_outside_{n}", model=MODEL) for n in range(5))
        path.write_text("".join(transcript_line(one, output=1) + transcript_line(one) for one in answers) + outside)
        done = json.loads(weir.run("import", "claude-code", str(path), "--owner", "ada", "--json").stdout)
        assert (done["new"], done["matched"]) == (5, 10)

        # The worker sleeps while the next calls are made: the transcript is booked first, and taken back when the worker comes to them.
        os.kill(weir.children()["worker"], signal.SIGSTOP)
        try:
            late = [asyncio.run(call(weir.url, key, ask(f"late-{n}"))) for n in range(5)]
            with path.open("a") as file:
                file.write("".join(transcript_line(one) for one in late))
            done = json.loads(weir.run("import", "claude-code", str(path), "--owner", "ada", "--json").stdout)
            assert (done["new"], done["matched"]) == (5, 0)
        finally:
            os.kill(weir.children()["worker"], signal.SIGCONT)
        entries = weir.booked(lambda entries: sum(one["source"] == "gateway" for one in entries) == 15)

        truth = simulator.journal()
        assert len(truth) == 15
        standing = net(entries)
        by_source = Counter(source for source, *_ in standing)
        assert by_source == {"gateway": 15, "claude_code_log": 5}
        metered = sum(counts[-1] for place, counts in standing.items() if place[0] == "gateway")
        outside_nanos = sum(counts[-1] for place, counts in standing.items() if place[0] != "gateway")
        assert sum(one["cost_nanos"] for one in entries) == metered + outside_nanos
        assert [one["reason"] for one in entries if one["kind"] == "adjustment"] == ["superseded: gateway"] * 5
        assert weir.verify().returncode == 0
        assert json.loads(weir.run("usage", "--json").stdout)["totals"]["requests"] == 20


def test_importing_while_the_gateway_serves_loses_nothing_of_either(tmp_path):
    """Two writers: the worker books live calls while imports are booked, some of them killed."""
    write_tree(tmp_path / "tree", seed=7, files=4, answers=120)
    with running_simulator(tmp_path) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        key = weir.key()
        arguments = [sys.executable, "-m", "tokenweir", "import", "claude-code", str(tmp_path / "tree"), "--owner", "ada"]

        async def ask_on(stop: asyncio.Event) -> int:
            count = 0
            while not stop.is_set():
                answered = await call(weir.url, key, ask(f"live-{count}"))
                assert answered.looks_complete
                count += 1
            return count

        async def main() -> int:
            stop = asyncio.Event()
            asking = asyncio.create_task(ask_on(stop))  # noqa: TID251 - awaited below
            chance = random.Random(SEED)
            for _ in range(3):
                process = await asyncio.to_thread(subprocess.Popen, arguments, env=weir.environment, stdout=subprocess.DEVNULL)
                await asyncio.to_thread(sent_to_its_end, process, chance.uniform(0.5, 2.0))
            await asyncio.to_thread(weir.run, "import", "claude-code", str(tmp_path / "tree"), "--owner", "ada")
            stop.set()
            return await asking

        asked = asyncio.run(main())
        entries = weir.booked(lambda entries: sum(one["source"] == "gateway" for one in entries) == asked)
        assert weir.verify().returncode == 0
    alone = tmp_path / "alone"
    run(alone, "import", "claude-code", str(tmp_path / "tree"), "--owner", "ada")
    imported = {place: counts for place, counts in net(entries).items() if place[0] != "gateway"}
    assert imported == net(ledger(alone))
