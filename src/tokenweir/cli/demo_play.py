"""The demo at work: starts the processes, sets the limits, runs the programs, and compares the books with the truth at the end."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tokenweir import app as stores
from tokenweir.cli.demo_limits import DemoLimits
from tokenweir.cli.demo_screen import Screen
from tokenweir.cli.demo_truth import compare
from tokenweir.cli.output import fail
from tokenweir.errors import TokenweirError
from tokenweir.gateway.upstream import UpstreamClient
from tokenweir.issuing import issue_key
from tokenweir.settings import Settings, UpstreamSettings, load_settings
from tokenweir.simulator.programs import PROGRAMS, Call, Program

UPSTREAM_KEY = "sk-ant-sim-demo-0000"
_REFRESH_S = 1.0
_GIVES_UP_S = 3.0


async def play(folder: Path, *, seconds: int, seed: int, quiet: bool) -> dict[str, Any]:
    """Start everything, run the programs until it ends (after `seconds`, or on a signal if 0), stop in order, compare; returns what was found."""
    ended = asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sig, ended.set)
    log = folder / "demo.log"
    truth = folder / "truth.jsonl"
    simulator = await _start(["simulator", "--port", "0", "--journal", str(truth), "--seed", str(seed), "--pace", "25"], {}, log)
    environment = {
        "TOKENWEIR_DATA_DIR": str(folder / "books"),
        "TOKENWEIR_UPSTREAM__BASE_URL": simulator.ready["url"],
        "TOKENWEIR_UPSTREAM__API_KEY": UPSTREAM_KEY,
    }
    try:
        serve = await _start(["serve", "--port", "0"], environment, log)
        settings = load_settings(None, data_dir=folder / "books")
        if seconds:
            asyncio.get_running_loop().call_later(seconds, ended.set)
        keys = _keys(settings, PROGRAMS)
        limits = DemoLimits(settings)
        screen = Screen(settings, limits, gateway=serve.ready["gateway"], simulator=simulator.ready["url"], quiet=quiet)
        try:
            await _rehearse(keys, limits, serve.ready["gateway"], seed, ended, screen.refresh)
            drained = await asyncio.to_thread(limits.drained)
        finally:
            screen.close()
            await serve.stop()
    finally:
        await simulator.stop()
    outcome, counted = compare(settings, truth), await asyncio.to_thread(limits.conclude, drained)
    return {**outcome, **counted, "differences": outcome["differences"] + counted["differences"]}


async def _rehearse(
    keys: list[tuple[Program, str]], limits: DemoLimits, gateway: str, seed: int, ended: asyncio.Event, refresh: Callable[[], None]
) -> None:
    """Run all programs until it ends, and keep the screen up to date."""
    client = UpstreamClient(UpstreamSettings(base_url=gateway), environment={}, clock=stores.SystemClock())
    await client.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(_program(client, limits, program, token, random.Random(f"{seed} {program.name} {copy}"), ended))  # noqa: S311 - simulated habits
                for program, token in keys
                for copy in range(program.copies)
            ]
            while not ended.is_set():
                await asyncio.to_thread(refresh)
                await asyncio.to_thread(limits.ask_for_more)
                try:
                    await asyncio.wait_for(ended.wait(), _REFRESH_S)
                except TimeoutError:
                    continue
            for task in running:
                task.cancel()
    finally:
        await client.close()


def _keys(settings: Settings, programs: tuple[Program, ...]) -> list[tuple[Program, str]]:

    directory, pepper = stores.open_directory(settings), stores.open_secrets(settings).pepper
    now = stores.SystemClock().now_us()
    return [
        (
            program,
            issue_key(directory, pepper, team=program.team, name=program.name, actor="demo", now_us=now, entropy=os.urandom).secret.reveal(),
        )
        for program in programs
    ]


async def _program(client: UpstreamClient, limits: DemoLimits, program: Program, token: str, chance: random.Random, ended: asyncio.Event) -> None:
    for call in program.habit(chance):
        await asyncio.sleep(call.pause_s)
        if ended.is_set():
            return
        if (refusal := await _send(client, call, token)) is not None:
            limits.refuse(program.team, refusal.error_type, refusal.message)
            await asyncio.sleep(refusal.pause_s)


class _Refusal(msgspec.Struct, frozen=True):
    """What a program was told by a limit, and how long it keeps quiet after that."""

    error_type: str
    message: str
    pause_s: float


async def _send(client: UpstreamClient, call: Call, token: str) -> _Refusal | None:
    """Send one request and read its answer as far as the program's patience goes; what a limit said, if one refused."""
    connection = await client.acquire()
    headers = [(b"x-api-key", token.encode()), (b"anthropic-version", b"2023-06-01"), (b"content-type", b"application/json")]
    try:
        connection.send(b"POST", b"/v1/messages", headers, call.body)
        head = await connection.head()
        events, refused = 0, b""
        while piece := await connection.read():
            events += 1
            if head.status == 200 and call.patience < 1 and events > 40 * call.patience:
                return None
            refused += piece if head.status == 429 else b""
        return _refusal(dict(head.headers), refused) if refused else None
    except TokenweirError:
        return None  # A program that fails tries something else next; the ledger has what happened.
    finally:
        if not connection.complete:
            connection.abort()


def _refusal(headers: dict[bytes, bytes], body: bytes) -> _Refusal:
    """Programs do as they are told: wait as long as a limit says, or, where that would be days, go on with something else."""
    error = json.loads(body)["error"]
    pause_s = _GIVES_UP_S if headers.get(b"x-should-retry") == b"false" else float(headers.get(b"retry-after", b"1"))
    return _Refusal(error["type"], error["message"], pause_s)


class _Started:
    """A command of ours that is running and ready."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self._process = process
        self.ready = ready

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()


async def _start(arguments: list[str], environment: dict[str, str], log: Path) -> _Started:

    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tokenweir",
            *arguments,
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdout is not None  # noqa: S101 - asked for above
    line = await process.stdout.readline()
    if not line:
        fail(f"`tokenweir {arguments[0]}` did not start; its log is in {log}")
    return _Started(process, json.loads(line))
