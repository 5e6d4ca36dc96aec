"""`tokenweir demo`: a simulated Claude API, the gateway before it, and four teams of simulated programs, live in the terminal.

Nothing in it is special: the same commands a user would start, with an embedded store in a folder that is removed at the end. When it ends it
compares the ledger with the simulator's journal of truth, line by line. Change together with `simulator/programs.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenweir.cli.output import fail, print_json, reporting_failures
from tokenweir.cli.root import app

if TYPE_CHECKING:
    from tokenweir.gateway.upstream import UpstreamClient
    from tokenweir.settings import Settings
    from tokenweir.simulator.programs import Call, Program

UPSTREAM_KEY = "sk-ant-sim-demo-0000"
_REFRESH_S = 1.0


@app.command()
@reporting_failures
def demo(
    seconds: Annotated[int, typer.Option("--seconds", min=0, help="End after this time; 0 runs until Ctrl-C.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same programs.")] = 7,
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep the books in this folder; otherwise they are removed at the end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result only, as JSON.")] = False,
) -> None:
    """Show everything at work, with no key and no account: four simulated teams against a simulated Claude API."""
    folder = keep or Path(tempfile.mkdtemp(prefix="tokenweir-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        outcome = asyncio.run(_run(folder, seconds=seconds, seed=seed, quiet=as_json))
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print_json(outcome)
    else:
        _conclude(outcome, keep)
    if outcome["differences"]:
        fail("the ledger and the simulator's journal of truth differ", code=1)


async def _run(folder: Path, *, seconds: int, seed: int, quiet: bool) -> dict[str, Any]:
    from tokenweir.cli.demo_screen import Screen
    from tokenweir.cli.demo_truth import compare
    from tokenweir.settings import load_settings

    ended = asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sig, ended.set)
    if seconds:
        asyncio.get_running_loop().call_later(seconds, ended.set)
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
        screen = Screen(settings, gateway=serve.ready["gateway"], simulator=simulator.ready["url"], quiet=quiet)
        try:
            await _rehearse(settings, serve.ready["gateway"], seed, ended, screen.refresh)
        finally:
            screen.close()
            await serve.stop()
    finally:
        await simulator.stop()
    return compare(settings, truth)


async def _rehearse(settings: Settings, gateway: str, seed: int, ended: asyncio.Event, refresh: Callable[[], None]) -> None:
    """Run all programs until it ends, and keep the screen up to date."""
    from tokenweir.app import SystemClock
    from tokenweir.gateway.upstream import UpstreamClient
    from tokenweir.settings import UpstreamSettings
    from tokenweir.simulator.programs import PROGRAMS

    client = UpstreamClient(UpstreamSettings(base_url=gateway), environment={}, clock=SystemClock())
    await client.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(_program(client, program, token, random.Random(f"{seed} {program.name} {copy}"), ended))  # noqa: S311 - simulated habits
                for program, token in _keys(settings, PROGRAMS)
                for copy in range(program.copies)
            ]
            while not ended.is_set():
                await asyncio.to_thread(refresh)
                try:
                    await asyncio.wait_for(ended.wait(), _REFRESH_S)
                except TimeoutError:
                    continue
            for task in running:
                task.cancel()
    finally:
        await client.close()


def _keys(settings: Settings, programs: tuple[Program, ...]) -> list[tuple[Program, str]]:
    from tokenweir import app as stores
    from tokenweir.issuing import issue_key

    directory, pepper = stores.open_directory(settings), stores.open_secrets(settings).pepper
    now = stores.SystemClock().now_us()
    return [
        (
            program,
            issue_key(
                directory, pepper, team=program.team, name=program.name, actor="demo", now_us=now, entropy=os.urandom
            ).secret.reveal(),
        )
        for program in programs
    ]


async def _program(client: UpstreamClient, program: Program, token: str, chance: random.Random, ended: asyncio.Event) -> None:
    for call in program.habit(chance):
        await asyncio.sleep(call.pause_s)
        if ended.is_set():
            return
        await _send(client, call, token)


async def _send(client: UpstreamClient, call: Call, token: str) -> None:
    from tokenweir.errors import TokenweirError

    connection = await client.acquire()
    headers = [(b"x-api-key", token.encode()), (b"anthropic-version", b"2023-06-01"), (b"content-type", b"application/json")]
    try:
        connection.send(b"POST", b"/v1/messages", headers, call.body)
        head = await connection.head()
        events = 0
        while await connection.read():
            events += 1
            if head.status == 200 and call.patience < 1 and events > 40 * call.patience:
                return
    except TokenweirError:
        return  # A program that fails tries something else next; the ledger has what happened.
    finally:
        if not connection.complete:
            connection.abort()


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
    import json

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
        fail(f"`tokenweir {arguments[0]}` did not start: {log.read_text()[-500:]}")
    return _Started(process, json.loads(line))


def _conclude(outcome: dict[str, Any], keep: Path | None) -> None:
    from tokenweir.cli.output import note
    from tokenweir.money import format_usd

    note("")
    note(
        f"{outcome['attempts']:,} attempts · {outcome['tokens']:,} tokens · {format_usd(outcome['cost_nanos'])} booked. "
        f"{outcome['exact']:,} equal the simulator's journal of truth to the token and the nano-dollar; "
        f"{outcome['flagged']:,} were cut short and are booked as estimates, flagged."
    )
    for line in outcome["differences"]:
        note(f"  differs: {line}")
    if keep is not None:
        note(f"The books are in {keep / 'books'}; ask them with: tokenweir usage --by team --data-dir {keep / 'books'}")
