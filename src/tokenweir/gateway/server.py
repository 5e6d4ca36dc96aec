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
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tokenweir.settings import GatewaySettings
from tokenweir.telemetry import log
from tokenweir.wire.faults import fault_body

CONNECTION = "tokenweir.connection"
"""The key under which a request's scope holds its connection."""
CYCLE = "tokenweir.cycle"
"""The key under which it holds its own request on that connection: with pipelining, the connection's newest one is another."""

PIPELINE_MAX = 8
"""Requests that may wait on a connection behind the one being answered; nobody we know sends even one."""
UNSENT_BYTES_MAX = 32 * 1024
"""More than this unsent, and no more is read from the provider: what a slow reader costs is about this, twice."""
LINGER_S = 5.0
"""How long a client may go on sending what is not read any more, so that it gets to read its answer."""
LAST_WORDS_S = 3.0
"""After the deadline of a shutdown: how long a client may take to read that its stream was ended."""
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
        transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.gone = False
        self.body_late = False
        self._in_head = True
        self._head_bytes = 0
        self._heads = 0
        self._head_since: float | None = self.loop.time()
        self._body_deadline: float | None = None
        self._idle_since: float | None = None
        self._blocked_since: float | None = None
        self._unsent_bytes = 0
        self._parted_until: float | None = None
        self._refusal: tuple[int, str, str] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or we closed; whoever serves it is told at once."""
        self.gone = True
        super().connection_lost(exc)
        if self.on_gone is not None:
            callback, self.on_gone = self.on_gone, None
            callback()
        if self.on_writable is not None:
            self.on_writable()

    def resume_writing(self) -> None:
        """The client took most of what was written."""
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that grows past its bound without completing is refused."""
        if self.gone or self._refusal is not None or self._parted_until is not None:
            return
        self._idle_since = None
        if self._in_head:
            if self._head_since is None:
                self._head_since = self.loop.time()
            partial, heads = self._head_bytes, self._heads
            super().data_received(data)
            # A head that was completed by this piece was measured line by line; what follows it in the piece is body, or little.
            if self._heads == heads and self._head_unfinished():
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
        """One header line, or a trailer: those are dropped, for they come when the head has been acted upon."""
        self._head_bytes += len(name) + len(value) + 4
        if self._in_head:
            self.headers.append((name.lower(), value))
        elif self._head_bytes > self.bounds.header_bytes_max:
            self._refusal = (431, "invalid_request_error", f"head and trailers are larger than {self.bounds.header_bytes_max} bytes")
            raise Refused

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
        problem = self._framing_problem()
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            problem = "only HTTP/1.1 and HTTP/1.0 are spoken here"
        if problem is None and len(self.pipeline) >= PIPELINE_MAX:
            problem = f"more than {PIPELINE_MAX} requests wait on this connection"
        if problem is not None:
            self._refusal = (400, "invalid_request_error", problem)
            raise Refused
        self._in_head = False
        self._heads += 1
        self._head_since = None
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        super().on_headers_complete()
        self.scope[CYCLE] = self.cycle  # type: ignore[literal-required]

    def on_message_complete(self) -> None:
        """The request has arrived whole."""
        self._body_deadline = None
        self._in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer has been written: go on with a request that waits behind it, or be idle. The sweep ends what is idle for long, without a timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, in the provider's error shape, and close."""
        status, kind, message = self._refusal or (400, "invalid_request_error", "this is not a valid HTTP/1.1 request")
        self._refusal = (status, kind, message)
        log(logging.INFO, "refused_connection", reason=message)
        if self._answering():
            cycle = self.cycle
            if self.pipeline or cycle.response_started or not cycle.more_body:
                # An answer is under way on this connection: a second one would be read as its continuation.
                self.transport.abort()
                return
            # The body of the only request makes no sense: this is its answer, and for whoever reads the body the client has gone.
            cycle.disconnected = True
            cycle.message_event.set()
        request_id = self.mint_request_id()
        body = fault_body(kind, f"Tokenweir: {message}", request_id)
        head = (
            f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"request-id: {request_id}\r\nx-should-retry: false\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.part()

    def part(self) -> None:
        """Say that nothing more comes, and let the client finish sending: a socket closed with unread bytes in it takes the answer with it."""
        if self._parted_until is None and not self.transport.is_closing():
            self._parted_until = self.loop.time() + LINGER_S
            self.transport.write_eof()
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """The server stops: close if nothing is under way."""
        if self._parted_until is not None:
            self.transport.close()
        else:
            super().shutdown()

    def expect_body(self) -> None:
        """Start the clock on a request body that has not arrived yet."""
        self._body_deadline = self.loop.time() + self.bounds.body_timeout_ms / 1000

    def sweep(self, now: float) -> None:
        """Enforce the deadlines that have passed."""
        if self._takes_nothing(now) or (self._parted_until is not None and now > self._parted_until):
            self.transport.abort()
        elif self._body_deadline is not None and now > self._body_deadline:
            self._body_deadline = None
            self.body_late = True
            self.cycle.message_event.set()
        elif self._idle_since is not None and now - self._idle_since > self.bounds.keep_alive_timeout_ms / 1000:
            self.transport.close()
        elif self._head_since is not None and self._answering():
            self._head_since = now  # what follows a request that is being answered has all the time until it is
        elif self._head_since is not None and now - self._head_since > self.bounds.header_timeout_ms / 1000:
            self._head_since = None
            if self._head_bytes:
                self._refuse_head(408, "the request head did not arrive in time")
            else:
                self.transport.close()

    def _framing_problem(self) -> str | None:
        """Why the length of the body could be read in two ways; None if it cannot. The parser refuses most of these itself."""
        lengths = encodings = 0
        for name, value in self.headers:
            if name == b"content-length":
                lengths += 1
            elif name == b"transfer-encoding":
                encodings += 1
                if value.strip().lower() != b"chunked":
                    return "transfer-encoding may only be chunked"
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
        if lengths > 1 or encodings > 1 or (lengths and encodings):
            return "the request states the length of its body twice"
        return None

    def _head_unfinished(self) -> bool:
        return self._in_head and self._refusal is None

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _takes_nothing(self, now: float) -> bool:
        """Whether the client has taken no byte for too long. Judged only while nothing is added: then a buffer that shrinks is one that is read."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or (self._answering() and not self.flow.write_paused):
            self._blocked_since = None
            return False
        if self._blocked_since is None or unsent < self._unsent_bytes:
            self._blocked_since = now
        self._unsent_bytes = unsent
        return now - self._blocked_since > self.bounds.write_timeout_ms / 1000

    def _refuse_head(self, status: int, message: str) -> None:
        self._refusal = (status, "invalid_request_error", message)
        self.send_400_response("")


class Parting:
    """In place of a request's transport where no other request may follow it: the connection is parted from, not closed at once."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        """Write to the client."""
        self._connection.transport.write(data)

    def is_closing(self) -> bool:
        """Whether the client's connection is closing."""
        return self._connection.transport.is_closing()

    def close(self) -> None:
        """Part."""
        self._connection.part()


class GatewayServer(Server):
    """uvicorn's server with our shutdown: drain, then end what is left in order, then exit 0."""

    def __init__(self, config: Config, *, on_stopping: Callable[[], None], end_streams: Callable[[], None], grace_ms: int) -> None:
        super().__init__(config)
        self._on_stopping = on_stopping
        self._end_streams = end_streams
        self._grace_s = grace_ms / 1000
        self._sweeper: asyncio.TimerHandle | None = None
        self._signals = 0
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listen, and begin to sweep."""
        await super().startup(sockets=sockets)
        self._sweep()
        self.listening.set()

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
        """Stop listening, let streams finish up to the deadline, then have them ended; who cannot even take that is cut off."""
        loop = asyncio.get_running_loop()
        deadlines = (loop.call_later(self._grace_s, self._end_streams), loop.call_later(self._grace_s + LAST_WORDS_S, self._cut_off))
        try:
            await super().shutdown(sockets=sockets)
        finally:
            for deadline in deadlines:
                deadline.cancel()
            if self._sweeper is not None:
                self._sweeper.cancel()

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.server_state.connections):
            connection.sweep(now)  # type: ignore[union-attr]
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
