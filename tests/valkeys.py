"""A real Valkey or Redis server for tests: `valkey-server` or `redis-server` where one is installed. CI must have one."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tokenweir.settings import LimitSettings

PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")
needs_valkey = pytest.mark.skipif(PROGRAM is None and not os.environ.get("CI"), reason="there is no valkey-server or redis-server here")
"""Skips visibly where there is no server; where CI is set, the test runs and fails."""


class Server:
    """A server on a Unix socket in a directory of its own, that can be frozen, killed and started again."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        if PROGRAM is None:
            raise FileNotFoundError("CI needs valkey-server or redis-server")
        self.folder = folder
        self.socket = folder / "valkey.sock"
        self.port = port
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> SecretStr:
        """Where it is."""
        return SecretStr(f"unix://{self.socket}")

    def start(self) -> None:
        """Start it, with nothing in it, and wait until it answers."""
        arguments = ["--unixsocket", str(self.socket), "--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self._process = subprocess.Popen(
            [str(PROGRAM), *arguments, *self._options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(400):
            try:
                self.ask("PING")
            except OSError:
                time.sleep(0.025)
            else:
                return
        self.kill()
        raise RuntimeError("the server did not start")

    def ask(self, *words: str) -> bytes:
        """Send one command, and give the raw reply; for what a test does behind a store's back."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.socket))
            packed = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
            connection.sendall(b"*%d\r\n%s" % (len(words), packed))
            return connection.recv(65536)

    def freeze(self) -> None:
        """It answers nothing any more, and does not go away."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """It is gone at once, with all it knew."""
        assert self._process is not None
        self._signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait(20)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)


def own_server(*options: str, port: int = 0) -> Server:
    """A server for one test, which must `kill` it."""
    # A path of a socket may have 107 bytes, which a test's own directory can exceed.
    short = Path(tempfile.mkdtemp(prefix="tokenweir-vk-"))
    atexit.register(shutil.rmtree, short, ignore_errors=True)
    return Server(short, *options, port=port)


@functools.cache
def shared_server() -> Server:
    """One server for all tests of this process that only fill and read it; `limit_settings` gives each a prefix of its own."""
    server = own_server()
    atexit.register(server.kill)
    return server


def limit_settings(server: Server, **more: Any) -> LimitSettings:
    """Settings with that server, and a prefix that nobody else's keys have."""
    return LimitSettings(**{"store_url": server.url, "store_prefix": f"t{uuid.uuid4().hex}", "store_timeout_ms": 400} | more)
