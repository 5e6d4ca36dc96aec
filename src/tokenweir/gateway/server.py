"""The HTTP server: uvicorn, with bounds on everything a client may hold open, and a shutdown that ends every stream in order.

uvicorn's own protocol parses and frames; this module adds what a paid data plane needs on top: the size and time of a request's head, the time of
its body, a client that takes no bytes, a call when the client leaves, and refusals in the provider's error shape. One sweep per second looks at
all connections, so no timer is made per request. Change together with `gateway/exchange.py`, which is the only user of a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Generator, Iterable
from types import FrameType
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tokenweir.settings import GatewaySettings
from tokenweir.telemetry import log
from tokenweir.wire.faults import fault_body

CONNECTION = "tokenweir.connection"
"""The key under which a request's scope holds its connection."""

_SWEEP_S = 0.5


class Refused(Exception):
    """The head of a request cannot be accepted; the connection is answered and closed."""


class Connection(HttpToolsProtocol):
    """One client connection, with its deadlines. Times are the event loop's monotonic seconds."""

    bounds: GatewaySettings
    mint_request_id: Callable[[], str]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected; it has until the header deadline to send a whole request head."""
        super().connection_made(transport)
        self.on_gone: Callable[[], None] | None = None
        self.gone = False
        self.body_late = False
        self._in_head = True
        self._head_bytes = 0
        self._head_since: float | None = self.loop.time()
        self._body_deadline: float | None = None
        self._blocked_since: float | None = None
        self._refusal: tuple[int, str, str] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or we closed; whoever serves it is told at once."""
        self.gone = True
        super().connection_lost(exc)
        if self.on_gone is not None:
            callback, self.on_gone = self.on_gone, None
            callback()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that grows past its bound without completing is refused."""
        if self.gone or self._refusal is not None:
            return
        if self._in_head:
            if self._head_since is None:
                self._head_since = self.loop.time()
            partial = self._head_bytes
            super().data_received(data)
            if self._head_unfinished():
                self._head_bytes = max(self._head_bytes, partial + len(data))
                if self._head_bytes > self.bounds.header_bytes_max:
                    self._refuse_head(431, f"the request head is larger than {self.bounds.header_bytes_max} bytes")
        else:
            super().data_received(data)

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Part of the request target."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        self._head_bytes += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: accept it, or refuse what must not be interpreted twice."""
        if self._head_bytes > self.bounds.header_bytes_max:
            self._refusal = (431, "invalid_request_error", f"the request head is larger than {self.bounds.header_bytes_max} bytes")
            raise Refused
        if self.parser.should_upgrade():
            self._refusal = (400, "invalid_request_error", "upgrading the connection is not supported")
            raise Refused
        if not self.url.startswith(b"/") and self.url != b"*":
            self._refusal = (400, "invalid_request_error", "the request target must be a path")
            raise Refused
        problem = _framing_problem(self.headers)
        if problem is not None:
            self._refusal = (400, "invalid_request_error", problem)
            raise Refused
        self._in_head = False
        self._head_since = None
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request has arrived whole."""
        self._body_deadline = None
        self._in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, in the provider's error shape, and close."""
        status, kind, message = self._refusal or (400, "invalid_request_error", "this is not a valid HTTP/1.1 request")
        self._refusal = (status, kind, message)
        log(logging.INFO, "refused_connection", reason=message)
        if self._answering():
            # An answer is under way on this connection: a second one would be read as its continuation.
            self.transport.abort()
            return
        request_id = self.mint_request_id()
        body = fault_body(kind, f"Tokenweir: {message}", request_id)
        head = (
            f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"request-id: {request_id}\r\nx-should-retry: false\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not take what was written."""
        self._blocked_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._blocked_since = None
        super().resume_writing()

    def expect_body(self) -> None:
        """Start the clock on a request body that has not arrived yet."""
        self._body_deadline = self.loop.time() + self.bounds.body_timeout_ms / 1000

    def sweep(self, now: float) -> None:
        """Enforce the deadlines that have passed."""
        if self._blocked_since is not None and now - self._blocked_since > self.bounds.write_timeout_ms / 1000:
            self.transport.abort()
        elif self._body_deadline is not None and now > self._body_deadline:
            self._body_deadline = None
            self.body_late = True
            self.cycle.message_event.set()
        elif self._head_since is not None and now - self._head_since > self.bounds.header_timeout_ms / 1000:
            self._head_since = None
            if self._head_bytes:
                self._refuse_head(408, "the request head did not arrive in time")
            else:
                self.transport.close()

    def _head_unfinished(self) -> bool:
        return self._in_head and self._refusal is None

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _refuse_head(self, status: int, message: str) -> None:
        self._refusal = (status, "invalid_request_error", message)
        self.send_400_response("")


def _framing_problem(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Why the length of the body could be read in two ways; None if it cannot. The parser refuses most of these itself."""
    lengths = 0
    encodings = 0
    for name, value in headers:
        if name == b"content-length":
            lengths += 1
        elif name == b"transfer-encoding":
            encodings += 1
            if value.strip().lower() != b"chunked":
                return "transfer-encoding may only be chunked"
    if lengths > 1 or encodings > 1 or (lengths and encodings):
        return "the request states the length of its body twice"
    return None


class GatewayServer(Server):
    """uvicorn's server with our shutdown: drain, then end what is left in order, then exit 0."""

    def __init__(self, config: Config, *, on_stopping: Callable[[], None], end_streams: Callable[[], None], grace_ms: int) -> None:
        super().__init__(config)
        self._on_stopping = on_stopping
        self._end_streams = end_streams
        self._grace_s = grace_ms / 1000
        self._sweeper: asyncio.TimerHandle | None = None
        self._signals = 0

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, and begin to sweep."""
        await super().startup(sockets=sockets)
        self._sweep()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; a second one ends the streams now."""
        self._signals += 1
        if self._signals == 1:
            self._on_stopping()
            self.should_exit = True
        else:
            asyncio.get_running_loop().call_soon_threadsafe(self._end_streams)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle SIGTERM and SIGINT without raising them again afterwards: an ordered end is exit code 0."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self.handle_exit, sig, None)
        try:
            yield
        finally:
            for sig in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(sig)

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Stop listening, let streams finish up to the deadline, then have them ended."""
        deadline = asyncio.get_running_loop().call_later(self._grace_s, self._end_streams)
        try:
            await super().shutdown(sockets=sockets)
        finally:
            deadline.cancel()
            if self._sweeper is not None:
                self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.server_state.connections):
            connection.sweep(now)  # type: ignore[union-attr]
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
