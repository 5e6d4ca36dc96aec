"""The supervisor keeps its roles running and ends them in order; what cannot start is one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

import pytest

from tokenweir import supervisor
from tokenweir.errors import OperatorError
from tokenweir.supervisor import Role, RoleFailed, listen

READY = 'import sys, os; print("{\\"ready\\": true}", flush=True); '


@pytest.fixture
def scripted(monkeypatch):
    """Roles that run a line of Python in place of a command of ours."""
    original = asyncio.create_subprocess_exec

    async def run(program, *arguments, **options):
        return await original(sys.executable, "-c", arguments[2], **options)

    monkeypatch.setattr(supervisor.asyncio, "create_subprocess_exec", run)
    monkeypatch.setattr(supervisor, "_PAUSES_S", (0.0, 0.0, 0.0))


@contextlib.asynccontextmanager
async def running(role):
    task = asyncio.ensure_future(role.keep_running())
    try:
        await asyncio.wait_for(asyncio.shield(role.ready), 20)
        yield task
    finally:
        await role.stop()
        await task


async def _another(role, pid):
    while role.pid == pid:  # noqa: ASYNC110 - another process is waited for, which sets no event here
        await asyncio.sleep(0.01)
    return role.pid


async def test_a_role_that_is_killed_is_started_again(scripted):
    role = Role("gateway", [READY + "sys.stdin.read()"])
    async with running(role):
        first = role.pid
        os.kill(first, signal.SIGKILL)
        assert await asyncio.wait_for(_another(role, first), 20) != first


async def test_a_role_that_cannot_start_fails_with_a_sentence(scripted):
    role = Role("worker", ["import sys; sys.exit(3)"])
    await role.keep_running()
    with pytest.raises(RoleFailed, match=r"the worker could not start \(exit code 3\)"):
        role.ready.result()


async def test_a_role_that_ends_in_order_gives_its_exit_code(scripted):
    role = Role("gateway", ["import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); " + READY + "sys.stdin.read()"])
    async with running(role):
        assert await role.stop() == 0


async def test_a_role_that_dies_of_the_signal_did_not_end_in_order(scripted):
    role = Role("gateway", [READY + "sys.stdin.read()"])
    async with running(role):
        assert await role.stop() == 1


async def test_a_role_that_does_not_end_is_ended_by_force(scripted):
    role = Role("gateway", ["import signal; signal.signal(15, signal.SIG_IGN); " + READY + "sys.stdin.read()"], stop_timeout_s=0.2)
    async with running(role):
        assert await role.stop() == 1


def test_a_port_that_is_taken_is_one_sentence():
    taken = listen("127.0.0.1", 0)
    try:
        port = taken.getsockname()[1]
        with pytest.raises(OperatorError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: .*--port"):
            listen("127.0.0.1", port)
    finally:
        taken.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listener_takes_either_family(host):
    with listen(host, 0) as listener:
        assert listener.getsockname()[0] == host
