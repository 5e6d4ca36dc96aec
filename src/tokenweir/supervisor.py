"""The supervisor: starts the roles as processes of their own, restarts what dies, and ends them in order.

It holds the listening socket, so that connections made while a gateway restarts wait instead of failing. A role that ends unasked is started
again, at once the first time and more slowly if it keeps ending. On SIGTERM the gateway drains first; the worker then books what the gateway
journaled. If the supervisor itself is killed, its roles see the end of their standard input and end in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tokenweir.errors import OperatorError, TokenweirError
from tokenweir.telemetry import log

_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
_STEADY_S = 10.0
"""A role that lived this long starts again at once when it ends."""
_READY_TIMEOUT_S = 60.0


class RoleFailed(TokenweirError):
    """A role could not be started."""

    code = "role_failed"


class Role:
    """One process that is kept running."""

    def __init__(self, name: str, arguments: Sequence[str], *, pass_fds: Sequence[int] = (), stop_timeout_s: float = 30.0) -> None:
        self.name = name
        self.pid: int | None = None
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._arguments = arguments
        self._pass_fds = pass_fds
        self._stop_timeout_s = stop_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def keep_running(self) -> None:
        """Run the role until it is stopped; raises RoleFailed if it never becomes ready the first time."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await self._run_once()
            if self._ending():
                return
            if not self.ready.done():
                self.ready.set_exception(RoleFailed(f"the {self.name} could not start (exit code {code}); its log is above"))
                return
            failures = 0 if loop.time() - started > _STEADY_S else failures + 1
            pause_s = _PAUSES_S[min(failures, len(_PAUSES_S)) - 1] if failures else 0.0
            log(logging.ERROR, "child_exited", role=self.name, code=code, restart_in_ms=round(pause_s * 1000))
            await asyncio.sleep(pause_s)

    async def stop(self) -> int:
        """End the role in order, by force after its deadline; returns its exit code."""
        self._stopping = True
        process = self._process
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            code = await asyncio.wait_for(process.wait(), self._stop_timeout_s)
            return code if code >= 0 else 1
        except TimeoutError:
            process.kill()
            await process.wait()
            return 1

    def _ending(self) -> bool:
        return self._stopping

    def hurry(self) -> None:
        """Pass on a second signal."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def _run_once(self) -> int:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tokenweir",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._pass_fds,
            start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor alone, which ends the roles in order.
        )
        self.pid = process.pid
        assert process.stdout is not None  # noqa: S101 - asked for above
        line = await process.stdout.readline()
        if line and not self.ready.done():
            self.ready.set_result(json.loads(line))
        code = await process.wait()
        self._process = None
        return code


async def supervise(
    *,
    listener: socket.socket,
    config_arguments: Sequence[str],
    gateway_stop_timeout_s: float,
    announce: Callable[[dict[str, Any]], None],
    receiver_listener: socket.socket | None = None,
    gateways: int = 1,
) -> int:
    """Run gateways on one socket, worker and (with a socket for it) receiver until SIGTERM or SIGINT; returns the exit code (0: all ended in order)."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    worker = Role("worker", ["serve", "--role", "worker", "--supervised", *config_arguments])
    descriptor = listener.fileno()
    fronts = [
        Role(
            "gateway" if gateways == 1 else f"gateway-{number}",
            ["serve", "--role", "gateway", "--supervised", "--listen-fd", str(descriptor), *config_arguments],
            pass_fds=[descriptor],
            stop_timeout_s=gateway_stop_timeout_s,
        )
        for number in range(1, gateways + 1)
    ]

    receivers = [] if receiver_listener is None else [_receiver(receiver_listener, config_arguments)]

    def on_signal() -> None:
        if stop.is_set():
            for gateway in fronts:
                gateway.hurry()
        stop.set()

    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, on_signal)
    async with asyncio.TaskGroup() as tasks:
        for role in (worker, *fronts, *receivers):
            tasks.create_task(role.keep_running())
        code = 1
        try:
            if await _all_ready([worker, *fronts, *receivers], stop):
                announce(
                    {
                        "ready": True,
                        "role": "serve",
                        "gateway": url_of(listener),
                        **({} if receiver_listener is None else {"receiver": url_of(receiver_listener)}),
                        "pids": {"supervisor": os.getpid(), **{role.name: role.pid for role in (*fronts, worker, *receivers)}},
                    }
                )
                await stop.wait()
                log(logging.INFO, "shutting_down", role="supervisor")
        finally:
            listener.close()
            if receiver_listener is not None:
                receiver_listener.close()
            codes = await asyncio.gather(*(role.stop() for role in (*fronts, *receivers)))
            code = max(*codes, await worker.stop())
    return code if stop.is_set() else 1


def _receiver(listener: socket.socket, config_arguments: Sequence[str]) -> Role:
    descriptor = listener.fileno()
    return Role("receiver", ["receive", "--supervised", "--listen-fd", str(descriptor), *config_arguments], pass_fds=[descriptor])


async def _all_ready(roles: Sequence[Role], stop: asyncio.Event) -> bool:
    """Wait until every role is ready (True) or we are told to stop before that (False); raises RoleFailed."""
    stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    try:
        for role in roles:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await asyncio.wait([role.ready, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not role.ready.done():
                return False
            role.ready.result()
        return True
    except TimeoutError:
        raise RoleFailed(f"a role was not ready within {_READY_TIMEOUT_S:.0f} s") from None
    finally:
        stopped.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises OperatorError with a sentence if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OperatorError(f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port") from error
    listener.listen(2048)
    listener.setblocking(False)
    listener.set_inheritable(True)
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket, as a client writes it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def end_with_supervisor() -> None:
    """End this process in order when its supervisor is gone: standard input, a pipe nobody writes to, comes to its end."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()
