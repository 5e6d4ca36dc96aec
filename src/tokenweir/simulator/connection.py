"""One exchange on one connection, down to the byte: what a provider's front end could do to a client, this can do on purpose.

Requests are read by uvicorn's parser and flow control; answers are written to the transport directly, because faults (a reset at byte n, a wrong length,
bytes after the end) are exactly what a correct server refuses to send. Nothing else in the simulator knows of sockets.
"""

from __future__ import annotations

import asyncio
import fcntl
import http
import socket
import struct
import termios
from collections.abc import AsyncIterator
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tokenweir.simulator.refusals import Refusal

BODY_BYTES_MAX = 32 * 1024 * 1024
SCOPE_KEY = "tokenweir.connection"
_RESET = struct.pack("ii", 1, 0)
_GARBAGE = b"\x00garbage after the end "


class Ended(Exception):
    """The exchange is over before its answer was complete."""

    outcome = "ended"


class ClientLeft(Ended):
    """The client closed its connection."""

    outcome = "client_left"


class Cut(Ended):
    """The simulator broke the connection off, as directed."""

    outcome = "cut"


class Stopped(Ended):
    """The simulator is ending."""

    outcome = "shutdown"


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which also says at once when the client is gone."""

    gone = False
    waiter: asyncio.Future[None] | None = None

    def on_message_begin(self) -> None:
        """Let the application find its connection."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[SCOPE_KEY] = self

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits on this connection."""
        self.gone = True
        super().connection_lost(exc)
        self.wake()

    def wake(self) -> None:
        """End the pause of the exchange, if it is in one."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Exchange:
    """A request and the answer to it."""

    __slots__ = ("_chunk", "_chunked", "_connection", "_cut_at", "_cut_by", "_cycle", "_head", "_loop", "_receive", "body_sent", "headers", "path", "status", "stopping")  # fmt: skip

    def __init__(self, scope: Any, receive: Any) -> None:
        self._connection: Connection = scope[SCOPE_KEY]
        self._cycle: RequestResponseCycle = receive.__self__
        self._receive = receive
        self._loop = self._connection.loop
        self._head = scope["method"] == "HEAD"
        self._chunked = False
        self._cut_at = -1
        self._cut_by = "rst"
        self._chunk = 0
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.path: str = scope["path"]
        self.body_sent = 0
        self.status = 0
        self.stopping = False

    def header(self, name: bytes) -> str:
        """A request header, or empty."""
        for found, value in self.headers:
            if found == name:
                return value.decode("latin-1")
        return ""

    async def read_body(self) -> bytes:
        """The whole body; raises Refusal above the provider's limit, ClientLeft if it does not come."""
        found = [piece async for piece in self.pieces(BODY_BYTES_MAX)]
        return b"".join(found) if len(found) > 1 else found[0]

    async def pieces(self, bytes_max: int) -> AsyncIterator[bytes]:
        """The body as it comes, at least one piece, none of which is kept here; raises like `read_body`."""
        size = 0
        if int(self.header(b"content-length") or 0) > bytes_max:
            raise Refusal(413, "request_too_large", "Request exceeds the maximum size")
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            size += len(message["body"])
            if size > bytes_max:
                raise Refusal(413, "request_too_large", "Request exceeds the maximum size")
            if not message["more_body"]:
                # A large last piece leaves reading paused, and a paused transport does not notice that the client leaves.
                self._flow.resume_reading()
                yield message["body"]
                return
            yield message["body"]

    def plan_faults(self, *, cut_at: int, cut_by: str, chunk: int) -> None:
        """Break off after so many bytes of body; write in chunks of so many bytes."""
        self._cut_at, self._cut_by, self._chunk = cut_at, cut_by, chunk

    @property
    def client_gone(self) -> bool:
        """Whether the client has closed."""
        return self._connection.gone or self._cycle.disconnected

    async def pause(self, milliseconds: float) -> None:
        """Wait; below 0, until the client leaves. Raises ClientLeft or Stopped as soon as that is so."""
        self._check()
        if milliseconds == 0:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._connection.waiter = waiter
        timer = self._loop.call_later(milliseconds / 1000, self._connection.wake) if milliseconds > 0 else None
        try:
            await waiter
        finally:
            self._connection.waiter = None
            if timer is not None:
                timer.cancel()
        self._check()

    async def ready(self) -> None:
        """Wait until the client has taken enough to be sent more."""
        if self._flow.write_paused and not self.client_gone:
            await self._flow.drain()
        self._check()

    async def interim(self, count: int) -> None:
        """Informational answers before the real one."""
        self._check()
        for _ in range(count):
            self._cycle.transport.write(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")

    async def start(self, status: int, lines: bytes, *, length: int | None, slow_ms: float = 0, close: bool = False) -> None:
        """Write the head; `lines` are whole header lines. Without a length the body is chunked."""
        await self.ready()
        self.status = status
        self._cycle.response_started = True
        if close:
            self._cycle.keep_alive = False
        self._chunked = length is None
        first = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()
        own = b"".join([b"%s: %s\r\n" % pair for pair in self._cycle.default_headers])
        framing = b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length
        head = b"".join((first, own, lines, framing, b"\r\n" if self._cycle.keep_alive else b"connection: close\r\n\r\n"))
        if not slow_ms:
            self._cycle.transport.write(head)
            return
        for at in range(len(head)):
            self._cycle.transport.write(head[at : at + 1])
            await self.pause(slow_ms)

    async def write(self, body: bytes) -> None:
        """Write some of the body, waiting for a slow client; raises Cut where that was planned."""
        await self.ready()
        if self._head:
            return
        if 0 <= self._cut_at <= self.body_sent + len(body):
            self._put(body[: self._cut_at - self.body_sent])
            await self.cut(self._cut_by)
        if not self._chunk:
            self._put(body)
            return
        for at in range(0, len(body), self._chunk):
            self._put(body[at : at + self._chunk])
            await asyncio.sleep(0)
            await self.ready()

    def finish(self, *, trailing: int = 0) -> None:
        """The answer is complete; the connection serves the next request unless it was to close."""
        cycle = self._cycle
        if self._chunked and not self._head:
            cycle.transport.write(b"0\r\n\r\n")
        if trailing:
            cycle.transport.write((_GARBAGE * (trailing // len(_GARBAGE) + 1))[:trailing])
            cycle.keep_alive = False
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    async def cut(self, how: str) -> None:
        """Break the connection: with a reset once what was written has arrived, or with a plain close. Always raises Cut."""
        cycle = self._cycle
        cycle.response_started = cycle.response_complete = True
        if how == "fin":
            cycle.transport.close()
            raise Cut
        for _ in range(200):
            if not cycle.transport.get_write_buffer_size() and not _unacknowledged(cycle.transport):
                break
            await self.pause(1)
        _linger_zero(cycle.transport)
        cycle.transport.abort()
        raise Cut

    def abandon(self) -> None:
        """Close without more, whatever state the answer is in."""
        self._cycle.response_started = self._cycle.response_complete = True
        self._cycle.transport.abort()

    def stop(self) -> None:
        """The simulator is ending: whoever waits here raises Stopped."""
        self.stopping = True
        self._connection.wake()
        self._flow.resume_writing()

    @property
    def _flow(self) -> FlowControl:
        return self._cycle.flow

    def _check(self) -> None:
        if self.client_gone:
            raise ClientLeft
        if self.stopping:
            raise Stopped

    def _put(self, body: bytes) -> None:
        if body:
            self.body_sent += len(body)
            self._cycle.transport.write(b"%x\r\n%s\r\n" % (len(body), body) if self._chunked else body)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes in the kernel that the other side has not acknowledged."""
    found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", found)[0])


def _linger_zero(transport: asyncio.Transport) -> None:
    """Make the close a reset. The option belongs to the connection, so a duplicate descriptor can set it."""
    with socket.fromfd(transport.get_extra_info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


_STATUS_LINES = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
