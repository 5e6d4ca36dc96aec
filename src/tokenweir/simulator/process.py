"""The simulator as a process: it listens, says that it is ready, and ends with exit code 0 when told to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from tokenweir.simulator.connection import Connection
from tokenweir.simulator.server import Simulator
from tokenweir.simulator.truth import Journal


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it accepts connections and leaves signals to us: it must end with exit code 0."""

    def __init__(self, config: uvicorn.Config, *, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by `run`."""
        yield


async def run(simulator: Simulator, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called with the URL once connections are accepted."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    shown, bound = listener.getsockname()[:2]
    config = uvicorn.Config(
        simulator,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, ready=lambda: ready(f"http://[{shown}]:{bound}" if ":" in shown else f"http://{shown}:{bound}"))

    def end() -> None:
        simulator.stop()
        server.should_exit = True

    # What was imported and built lives as long as the process: the collector need not look at it again.
    gc.freeze()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    await server.serve(sockets=[listener])


def ready_line(url: str) -> dict[str, Any]:
    """What is printed when the simulator is ready."""
    return {"ready": True, "role": "simulator", "url": url, "pid": os.getpid()}


def open_journal(path: Path | None, *, sync: bool) -> Journal:
    """The journal at a path; without one nothing is kept."""
    return Journal(path, sync=sync)
