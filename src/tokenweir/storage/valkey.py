"""A client for Valkey and Redis on one pipelined connection, in which no operation waits for long.

The rules it protects: an operation is answered within its bound or raises StoreUnavailable; a reply is never matched to another command, so a connection
on which one is late is dropped with everything under way on it; while there is no connection every operation fails at once, and somebody else (one task
that this object owns) keeps trying to reopen it, at least once a second. Replies come in the order of the commands: that is the whole protocol.
Change with it: `limit_valkey.py`, which is built on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from pydantic import SecretStr

from tokenweir.errors import SettingsInvalid, StoreUnavailable

CONNECT_S: Final = 1.0
"""Longest time for a connection with TLS; commands on it have their own bound."""
BACKOFF_S: Final = (0.05, 1.0)
"""First and longest pause between two tries to connect."""
HEARTBEAT_S: Final = 1.0
"""An idle connection is asked so often whether it still answers."""

_BROKEN: Final = frozenset(
    {
        "LOADING",
        "READONLY",
        "MASTERDOWN",
        "NOAUTH",
        "NOPERM",
        "CLUSTERDOWN",
        "MOVED",
        "ASK",
        "TRYAGAIN",
        "OOM",
        "MISCONF",
        "BUSY",
        "NOREPLICAS",
        "FENCED",
    }
)
"""Errors that say that the server cannot be used now, or not on this connection."""


class Address(msgspec.Struct, frozen=True):
    """Where a server is. It never prints the password."""

    host: str = ""
    port: int = 6379
    path: str = ""
    """Of a Unix socket; then there is no host."""
    tls: bool = False
    database: int = 0
    user: str = ""
    password: SecretStr | None = None

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


def parse_address(url: SecretStr) -> Address:
    """`valkey://`, `valkeys://` (TLS), `redis://`, `rediss://` with `[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`, or `unix://[…@]/PATH[?db=N]`.

    Raises SettingsInvalid, without the URL in its message, because that holds a password.
    """
    try:
        parts = urlsplit(url.get_secret_value())
        path = unquote(parts.path)
        is_unix = parts.scheme == "unix"
        database = parse_qs(parts.query).get("db", ["0"])[0] if is_unix else path.strip("/") or "0"
        # A trailing at-sign or a user alone is a user without a password.
        address = Address(
            host="" if is_unix else parts.hostname or "",
            port=parts.port or 6379,
            path=path if is_unix else "",
            tls=parts.scheme in ("valkeys", "rediss"),
            database=int(database),
            user=unquote(parts.username or ""),
            password=SecretStr(unquote(parts.password)) if parts.password else None,
        )
    except ValueError:
        address = Address()
        is_unix = False
        parts = urlsplit("")
    if (
        parts.scheme not in ("valkey", "valkeys", "redis", "rediss", "unix")
        or not (address.path if is_unix else address.host)
        or address.database < 0
    ):
        raise SettingsInvalid(
            "limits.store_url is not the URL of a Valkey or Redis server; write it like valkey://:PASSWORD@HOST:6379/0 or unix:///PATH"
        )
    return address


class Script:
    """A script that the server runs as one step."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Sent:
    """A command whose reply has not come yet."""

    __slots__ = ("done", "due", "future", "packed", "script")

    def __init__(
        self, packed: bytes, due: float, future: asyncio.Future[Any] | None, done: Callable[[object], None] | None, script: Script | None
    ) -> None:
        self.packed = packed
        self.due = due
        self.future = future
        self.done = done
        self.script = script


class _Protocol(asyncio.Protocol):
    """Cuts what arrives into replies."""

    def __init__(self, hiredis: Any, on_reply: Callable[[Any], None], on_lost: Callable[[str], None]) -> None:
        self._reader = hiredis.Reader()
        self._broken = hiredis.HiredisError
        self._on_reply = on_reply
        self._on_lost = on_lost
        self.current = True
        """False once it was given up: whatever it still brings is nobody's."""

    def data_received(self, data: bytes) -> None:
        """Bytes of replies."""
        try:
            self._reader.feed(data)
            while self.current and (reply := self._reader.gets()) is not False:
                self._on_reply(reply)
        except self._broken as error:
            self._on_lost(f"the store's answer makes no sense: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side, or the network, ended it."""
        if self.current:
            self._on_lost(f"the connection to the store ended{f': {exc}' if exc else ''}")


class Valkey:
    """One connection, reopened whenever it is lost. It belongs to one event loop."""

    def __init__(
        self,
        address: Address,
        *,
        timeout_ms: int = 100,
        scripts: tuple[Script, ...] = (),
        prepare: Callable[[Callable[..., Awaitable[Any]]], Awaitable[None]] | None = None,
        on_change: Callable[[bool, str], None] | None = None,
        on_message: Callable[[bytes], None] | None = None,
        ca_file: Path | None = None,
    ) -> None:
        """`prepare` is given a function that sends a command, and does what a new connection needs before it is used.

        `on_change` is told when the store begins and ceases to answer, and why. `on_message` gets what is published on subscribed channels.
        """
        try:
            import hiredis  # noqa: PLC0415 -- an optional dependency
        except ImportError as error:
            raise SettingsInvalid("limits.store_url needs the package hiredis; install it with: pip install 'tokenweir[valkey]'") from error
        self._hiredis: Any = hiredis
        self._pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
        self._reply_error: type[Exception] = hiredis.ReplyError
        self._address = address
        # The watch looks twice, so that a reply that is here already and waits behind a busy event loop is still read.
        self._bound_s = timeout_ms / 1000 * 0.9
        self._grace_s = timeout_ms / 1000 * 0.1
        self._scripts = scripts
        self._prepare = prepare
        self._on_change = on_change
        self._on_message = on_message
        self._tls = ssl.create_default_context(cafile=ca_file) if address.tls else None
        self._transport: asyncio.WriteTransport | None = None
        self._protocol: _Protocol | None = None
        self._sent: deque[_Sent] = deque()
        self._watch_timer: asyncio.TimerHandle | None = None
        self._suspect: _Sent | None = None
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.up = False
        """Whether operations are tried; otherwise they fail at once."""
        self.why = "the store was not connected yet"
        """Why not."""

    async def open(self) -> None:
        """Begin; returns after the first try to connect, whatever came of it. Doing it twice changes nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep_open())
        await self._tried.wait()

    async def close(self) -> None:
        """End; what is under way fails."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.drop("the store was closed")

    # Operations.

    async def call(self, *command: str | bytes | int) -> Any:
        """Send a command and wait for its reply. Raises StoreUnavailable."""
        return await self._ask(self._require(), None, command)

    async def run(self, script: Script, *arguments: str | bytes | int) -> Any:
        """Run a script; the arguments begin with the number of keys. Raises StoreUnavailable."""
        return await self._ask(self._require(), script, ("EVALSHA", script.sha, *arguments))

    def post(self, script: Script, arguments: tuple[str | bytes | int, ...], done: Callable[[object], None]) -> None:
        """Write the script's call to the connection now; `done` gets the reply, an exception for the server's no, or None if it was lost.

        Raises StoreUnavailable if there is no connection.
        """
        packed = self._pack(("EVALSHA", script.sha, *arguments))
        self._write(self._require(), _Sent(packed, time.monotonic() + self._bound_s, None, done, script))

    def _require(self) -> asyncio.WriteTransport:
        if not self.up or self._transport is None:
            # `why` names the server: that is for the log, not for whoever sent the request.
            raise StoreUnavailable("the store does not answer now")
        return self._transport

    async def _ask(self, transport: asyncio.WriteTransport, script: Script | None, command: tuple[Any, ...]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._write(transport, _Sent(self._pack(command), time.monotonic() + self._bound_s, future, None, script))
        return await future

    def _write(self, transport: asyncio.WriteTransport, sent: _Sent) -> None:
        transport.write(sent.packed)
        self._sent.append(sent)
        if self._watch_timer is None:
            self._watch_timer = asyncio.get_running_loop().call_later(self._bound_s, self._watch)

    def _watch(self) -> None:
        """The oldest command is due first; if its reply does not come, those of the others cannot come either."""
        self._watch_timer = None
        if not self._sent:
            return
        oldest = self._sent[0]
        left_s = oldest.due - time.monotonic()
        if left_s <= 0:
            if oldest is self._suspect:
                self.drop("the store does not answer in time")
                return
            self._suspect, left_s = oldest, self._grace_s
        self._watch_timer = asyncio.get_running_loop().call_later(left_s, self._watch)

    # Replies.

    def _on_reply(self, reply: Any) -> None:
        if self._on_message is not None and isinstance(reply, list) and reply[0] == b"message":
            self._on_message(reply[2])
            return
        if not self._sent:
            self.drop("the store answered what nobody asked")
            return
        sent = self._sent.popleft()
        if isinstance(reply, self._reply_error):
            self._on_refusal(sent, reply)
        elif sent.done is not None:
            sent.done(reply)
        elif sent.future is not None and not sent.future.done():
            sent.future.set_result(reply)

    def _on_refusal(self, sent: _Sent, error: Exception) -> None:
        code = str(error).split(" ", 1)[0]
        if code == "NOSCRIPT" and sent.script is not None and self._transport is not None:
            # It was not run. Whoever gave it up meanwhile does not want it any more.
            if sent.future is None or not sent.future.done():
                self._write(self._transport, _Sent(self._pack(("SCRIPT", "LOAD", sent.script.text)), sent.due, None, _ignore, None))
                self._write(self._transport, sent)
            return
        if code in _BROKEN:
            self._sent.appendleft(sent)
            self.drop(f"the store refuses: {error}")
        elif sent.done is not None:
            sent.done(error)
        elif sent.future is not None and not sent.future.done():
            sent.future.set_exception(StoreUnavailable(f"the store refuses: {error}"))

    def drop(self, why: str) -> None:
        """Give the connection up, with all that is under way on it."""
        was_up, self.up, self.why = self.up, False, why
        if self._protocol is not None:
            self._protocol.current = False
        if self._transport is not None:
            self._transport.abort()
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        self._transport = self._protocol = self._watch_timer = self._suspect = None
        lost, self._sent = self._sent, deque()
        for sent in lost:
            if sent.done is not None:
                sent.done(None)
            elif sent.future is not None and not sent.future.done():
                sent.future.set_exception(StoreUnavailable(why))
        self._changed.set()
        if was_up and self._on_change is not None:
            self._on_change(False, why)

    # The connection.

    async def _keep_open(self) -> None:
        """Connect, again and again."""
        pause_s = 0.0
        while True:
            lived = False
            try:
                await self._connect()
            except (OSError, TimeoutError, StoreUnavailable) as error:
                self.drop(f"the store at {self._address} cannot be used: {str(error) or 'it does not answer'}")
            else:
                began_s = time.monotonic()
                await self._stay()
                lived = time.monotonic() - began_s > HEARTBEAT_S
            finally:
                self._tried.set()
            pause_s = 0.0 if lived else min(max(2 * pause_s, BACKOFF_S[0]), BACKOFF_S[1])
            await asyncio.sleep(pause_s)

    async def _connect(self) -> None:
        loop, address = asyncio.get_running_loop(), self._address

        def make() -> _Protocol:
            return _Protocol(self._hiredis, self._on_reply, self.drop)

        async with asyncio.timeout(CONNECT_S):
            if address.path:
                transport, protocol = await loop.create_unix_connection(make, address.path)
            else:
                transport, protocol = await loop.create_connection(make, address.host, address.port, ssl=self._tls)
        self._transport, self._protocol = transport, protocol

        async def ask(*command: str | bytes | int) -> Any:
            if self._transport is not transport:
                raise StoreUnavailable(self.why)
            return await self._ask(transport, None, command)

        if address.password is not None:
            password = address.password.get_secret_value()
            await ask("AUTH", address.user, password) if address.user else await ask("AUTH", password)
        if address.database:
            await ask("SELECT", address.database)
        for script in self._scripts:
            await ask("SCRIPT", "LOAD", script.text)
        if self._prepare is not None:
            await self._prepare(ask)
        if self._transport is not transport:
            raise StoreUnavailable(self.why)
        self._changed.clear()
        self.up, self.why = True, ""
        if self._on_change is not None:
            self._on_change(True, "")

    async def _stay(self) -> None:
        """Until the connection is lost; an idle one is asked whether it still answers, so that no request has to find out."""
        self._tried.set()
        while self.up:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._changed.wait()
            if not self._sent:
                with contextlib.suppress(StoreUnavailable):
                    await self.call("PING")


def _ignore(reply: object) -> None:
    """Nobody waits for this reply."""
