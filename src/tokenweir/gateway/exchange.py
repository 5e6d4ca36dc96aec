"""One request and its answer, as the handlers see them.

This is all the gateway knows of ASGI, so that the handlers can move to another server without a change. Bodies are read within their bounds,
answers are written with backpressure, and a client that leaves is noticed at once. Change together with `gateway/server.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from tokenweir.errors import BodyTooLarge, BodyTooSlow, InvalidRequest
from tokenweir.gateway import framing
from tokenweir.gateway.server import CONNECTION, CYCLE, Connection, Parting
from tokenweir.policies import Network
from tokenweir.wire.faults import Fault, fault_body

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client left before its request had arrived; there is nobody to answer."""


class Exchange:
    """A request, and the way to answer it."""

    __slots__ = (
        "_connection",
        "_cycle",
        "_receive",
        "_scope",
        "address",
        "headers",
        "method",
        "path",
        "query",
        "request_id",
        "started",
        "status",
    )

    def __init__(self, scope: dict[str, Any], receive: Receive, *, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        self._connection: Connection = scope[CONNECTION]
        self._cycle = scope[CYCLE]
        self.request_id = request_id
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        client = scope["client"]
        self.address: str = client[0] if client else ""
        self.started = False
        self.status = 0

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self._connection.gone

    def when_gone(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called once when the client leaves; None forgets it."""
        self._connection.on_gone = callback

    def when_writable(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called whenever the client can take more; None forgets it."""
        self._connection.on_writable = callback

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, or None; the last one if there are several."""
        found = None
        for key, value in self.headers:
            if key == name:
                found = value
        return found

    async def body(self, bytes_max: int) -> bytes:
        """The whole request body, counted as it arrives. Raises BodyTooLarge, BodyTooSlow, InvalidRequest, ClientGone."""
        for name, value in self.headers:
            if name == b"content-length" and int(value) > bytes_max:
                raise BodyTooLarge(f"the request body has {int(value)} bytes; {bytes_max} is the most")
            if name == b"content-encoding" and value.lower() != b"identity":
                raise InvalidRequest("the request body is compressed; send it as it is, without content-encoding")
        message = await self._next_body()
        if not message["more_body"]:
            return bytes(self._bounded(message["body"], bytes_max))
        self._connection.expect_body()
        body = bytearray(self._bounded(message["body"], bytes_max))
        while message["more_body"]:
            message = await self._next_body()
            if self._connection.body_late:
                raise BodyTooSlow
            body += message["body"]
            self._bounded(body, bytes_max)
        return bytes(body)

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the head of the answer; our request id is on every one."""
        self.started = True
        self.status = status
        cycle = self._cycle
        if cycle.more_body:
            # Answered before it has arrived whole: the rest of it is not read, so nothing that follows on the connection can be either.
            self.close_after()
        if not cycle.keep_alive:
            cycle.transport = Parting(self._connection)
        if not self.gone:
            framing.begin(cycle, status, [*headers, (b"request-id", self.request_id.encode())])

    def put(self, chunk: bytes) -> bool:
        """Write a piece of the body now; whether the client can take more. Does nothing once it has left."""
        connection = self._connection
        if not connection.gone:
            framing.piece(self._cycle, chunk)
        return not connection.flow.write_paused

    async def write(self, chunk: bytes) -> None:
        """Send a piece of the body; does nothing once the client has left. To wait for a slow one, drop the piece and call `taken()`."""
        self.put(chunk)

    async def taken(self) -> None:
        """Wait until the client has taken most of what was written: a client that does not read must not make us read on."""
        if self._connection.flow.write_paused:
            await self._connection.flow.drain()

    async def finish(self, chunk: bytes = b"") -> None:
        """Send the last piece of the body."""
        self._connection.on_gone = None
        if not self.gone:
            framing.end(self._cycle, chunk)

    async def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.finish(body)

    def cut(self) -> None:
        """Close without the proper end, so that nobody takes what was sent for a complete answer."""
        self._cycle.disconnected = True
        self._connection.transport.abort()

    def close_after(self) -> None:
        """Do not keep the connection for another request: what follows on it cannot be trusted."""
        self._cycle.keep_alive = False

    def trust_forwarded(self, proxies: tuple[Network, ...]) -> None:
        """If the peer is a trusted proxy, take the caller's address from `X-Forwarded-For`: the last hop that is not itself trusted."""
        if not proxies or not _within(self.address, proxies):
            return
        forwarded = b",".join(value for name, value in self.headers if name == b"x-forwarded-for")
        hops = [hop.strip() for hop in forwarded.decode("latin-1").split(",")] if forwarded else []
        for hop in reversed(hops):
            self.address = hop
            if not _within(hop, proxies):
                return

    async def _next_body(self) -> dict[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    @staticmethod
    def _bounded(body: bytes | bytearray, bytes_max: int) -> bytes | bytearray:
        if len(body) > bytes_max:
            raise BodyTooLarge(f"the request body is larger than {bytes_max} bytes")
        return body


def _within(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        here = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(here in network for network in networks)


async def refuse(exchange: Exchange, fault: Fault) -> None:
    """Answer with a refusal of ours."""
    await exchange.answer(
        fault.status, [(b"content-type", b"application/json"), *fault.headers], fault_body(fault.error_type, fault.message, exchange.request_id)
    )
