"""One socket to the provider: HTTP/1.1 on an asyncio transport, parsed by llhttp (httptools).

A wire serves one exchange (upstream_connection.py) after another and goes back to its pool (upstream.py) between them:

    KEPT ──open──▶ HEAD ──final head──▶ BODY ──last byte──▶ ENDED ──▶ KEPT again, or closed

Protects: an answer is complete only if its framing says so. What ends early, announces two lengths, is coded in a way we do not know, or comes
when nothing was asked, closes the wire. No timers, tasks or clock readings per read: the pool's sweeper looks at each wire from time to time,
so that deadlines are kept late by at most one look and never early.
"""

from __future__ import annotations

import asyncio
import enum
import socket
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import httptools

from tokenweir.errors import TokenweirError, UpstreamCut, UpstreamSilent
from tokenweir.gateway.upstream_connection import ResponseHead, UpstreamConnection
from tokenweir.gateway.upstream_request import encode_head

HEAD_BYTES_MAX = 64 * 1024
HEADERS_MAX = 256
UNREAD_BYTES_MAX = 32 * 1024
"""More than this unread, and the socket is read no further until the reader has caught up."""
READ_BYTES = 32 * 1024
"""What one read of the socket takes at most: what is on its way when reading stops. The loop's own buffer has 256 KB, too much for each slow reader."""
CHUNK_OVERHEAD_BYTES = 48
"""What a small bytes object costs besides its content, so that an answer in tiny chunks is bounded as well."""
WRITE_BYTES = 256 * 1024
"""A large request body is written in pieces of this size, as the socket takes them."""
JOINED_BYTES_MAX = 32 * 1024
"""A body up to this size is copied behind its head and written at once; beyond it a second write is cheaper."""


class Stage(enum.Enum):
    """How far the present answer is."""

    KEPT = "kept"
    HEAD = "head"
    BODY = "body"
    ENDED = "ended"


# Looking a member up in its enumeration is slow before Python 3.12, and this is done per header line.
_KEPT, _HEAD, _BODY, _ENDED = Stage.KEPT, Stage.HEAD, Stage.BODY, Stage.ENDED


class Pool(Protocol):
    """What a wire needs of its pool."""

    authority: bytes
    base_path: bytes
    first_byte_ns: int
    idle_ns: int
    keep_alive_ns: int
    now_ns: Callable[[], int]

    def released(self, wire: Wire) -> None:
        """The wire can serve another exchange."""
        ...

    def lost(self, wire: Wire) -> None:
        """The wire is closed."""
        ...


_buffer = memoryview(bytearray(READ_BYTES))


class Wire(asyncio.BufferedProtocol):
    """A connected socket. Slotted and free of tasks: a thousand slow streams are a thousand of these."""

    __slots__ = (
        "_barren_bytes",
        "_began_ns",
        "_deadline_ns",
        "_exchange",
        "_first_byte_ns",
        "_framed",
        "_headers",
        "_heard",
        "_interim",
        "_keep",
        "_loop",
        "_method",
        "_outbox",
        "_parser",
        "_pool",
        "_read_paused",
        "_refusal",
        "_served",
        "_stage",
        "_transport",
        "_unsent_bytes",
        "_write_paused",
        "closed",
        "gone",
    )
    # Of the present answer; set by `_reset`.
    _method: bytes
    _headers: list[tuple[bytes, bytes]]
    _barren_bytes: int
    _began_ns: int
    _first_byte_ns: int
    _framed: bool
    _keep: bool
    _interim: bool
    _refusal: str

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.closed = False
        """Nothing can be sent or received any more."""
        self.gone = False
        """The socket itself is closed as well."""
        self._pool = pool
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._exchange: UpstreamConnection | None = None
        self._served = False
        self._stage = _KEPT
        self._deadline_ns = 0
        self._heard = False
        self._read_paused = False
        self._write_paused = False
        self._outbox: memoryview | None = None
        self._unsent_bytes = 0
        self._reset(b"")

    # For the pool

    def open(self) -> UpstreamConnection:
        """Begin an exchange."""
        self._exchange = exchange = UpstreamConnection(self, self._loop, reused=self._served)
        self._served = True
        self._deadline_ns = self._pool.now_ns() + self._pool.idle_ns
        return exchange

    def keep(self, now_ns: int) -> None:
        """Wait for the next exchange, not for ever."""
        self._deadline_ns = now_ns + self._pool.keep_alive_ns

    def close(self) -> None:
        """Close the socket at once. TLS says no farewell: what we have is complete, or known not to be."""
        if not self.closed:
            self.closed = True
            self._outbox = None
            self._parser = None  # it holds our bound methods, and we hold it
            if self._transport is not None:
                self._transport.abort()
            self._pool.lost(self)

    def sweep(self, now_ns: int) -> None:
        """End what takes too long. Called now and then by the pool."""
        if self._unsent_bytes:
            unsent = self._measure_unsent()
            if unsent != self._unsent_bytes:
                self._unsent_bytes = unsent
                self._deadline_ns = now_ns + (self._pool.idle_ns if unsent or self._stage is _BODY else self._pool.first_byte_ns)
        if self._heard:
            self._heard = False
            if self._stage is _BODY:
                self._deadline_ns = now_ns + self._pool.idle_ns
        if now_ns < self._deadline_ns:
            return
        if self._exchange is None:
            self.close()
        elif self._read_paused:
            self._fail(UpstreamCut("The answer of the provider was not read by the gateway for too long."))
        elif self._unsent_bytes:
            self._fail(UpstreamSilent("The provider stopped taking the request and did not answer."))
        elif self._stage is _HEAD:
            self._fail(UpstreamSilent())
        elif self._stage is _BODY:
            self._fail(UpstreamSilent("The provider stopped sending in the middle of its answer."))
        else:
            self._fail(UpstreamCut("The connection was held for too long without being used."))

    # For the exchange

    def send(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Write a request; a large body goes out as the socket takes it."""
        exchange, transport = self._exchange, self._transport
        if exchange is None or transport is None or exchange.bytes_sent:
            raise RuntimeError("one exchange sends one request")
        head = encode_head(self._pool.authority, method, self._pool.base_path + target, headers, len(body))
        self._reset(method)
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._stage = _HEAD
        exchange.bytes_sent = True
        self._began_ns = now_ns = self._pool.now_ns()
        self._unsent_bytes = len(head) + len(body)
        if len(body) <= JOINED_BYTES_MAX:
            self._deadline_ns = now_ns + self._pool.first_byte_ns
            transport.write(head + body)
        else:
            self._deadline_ns = now_ns + self._pool.idle_ns
            self._outbox = memoryview(body)
            transport.write(head)
            self._write_more()

    def drained(self) -> None:
        """The reader took all there was."""
        if self._read_paused:
            self._read_paused = False
            self._heard = True
            if self._transport is not None:
                self._transport.resume_reading()

    def hang_up(self) -> None:
        """The exchange is given up: an unused wire is kept, any other closed."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.bytes_sent and not self.closed:
            self._pool.released(self)
        else:
            self.close()

    # For the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected (and its TLS verified)."""
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's has the methods and not the ancestors
        if self.closed:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
            # An answer may take minutes to begin; a router on the way must not forget us, and a dead peer must show.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)

    def get_buffer(self, sizehint: int) -> memoryview:
        """One buffer serves all wires: what is read into it is parsed before the loop turns to the next."""
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came into the buffer."""
        self.data_received(bytes(_buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Bytes came. The reader is woken once, after all of them are parsed."""
        exchange = self._exchange
        if exchange is None or not exchange.bytes_sent or self._parser is None:
            self._fail(self._cut("The provider sent bytes that nobody had asked for."))
            return
        self._heard = True
        self._barren_bytes += len(data)
        if self._first_byte_ns == 0:
            self._first_byte_ns = self._pool.now_ns()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._stage is not _ENDED:
                self._fail(UpstreamCut(f"The provider's answer makes no sense: {self._refusal or error}"))
                return
            self._keep = False  # garbage behind a complete answer
        if self._stage is _ENDED:
            self._finish(exchange)
        elif self._barren_bytes > HEAD_BYTES_MAX:
            self._fail(UpstreamCut("The provider's answer makes no sense: too many bytes without content"))
        else:
            if exchange.waiting_bytes > UNREAD_BYTES_MAX and not self._read_paused and self._transport is not None:
                self._read_paused = True
                self._transport.pause_reading()
            exchange.wake()

    def eof_received(self) -> None:
        """The provider sends no more. Only an answer without any length may end so."""
        exchange = self._exchange
        if exchange is not None and self._stage is _BODY and not self._framed:
            self._keep = False
            self._finish(exchange)
        else:
            self._fail(self._cut("The provider closed the connection before its answer was complete."))

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self.gone = True
        if exc is None and not self.closed:
            self.eof_received()
        else:
            self._fail(self._cut(f"The connection to the provider broke: {exc}"))
        self._transport = None

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._write_paused = False
        if self._outbox is not None:
            self._write_more()

    # For the parser

    def on_message_begin(self) -> None:
        """Parser: an answer begins; a second one was not asked for."""
        if self._stage is _ENDED:
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser: one header line, or a trailer, which we drop."""
        if self._stage is _HEAD:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Parser: the head is here; decides how the end of the body will be known."""
        exchange, parser = self._exchange, self._parser
        if self._stage is not _HEAD or exchange is None or parser is None:
            return
        headers = self._headers
        if len(headers) > HEADERS_MAX or (
            # A head that fills a whole read is measured; smaller ones are bounded by what has been read.
            self._barren_bytes > HEAD_BYTES_MAX and sum(len(name) + len(value) + 4 for name, value in headers) > HEAD_BYTES_MAX
        ):
            self._refuse("its head is too large")
        status = parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101:
                self._refuse(f"status {status}")
            self._interim = True
            return
        if parser.get_http_version() not in ("1.1", "1.0"):
            self._refuse(f"HTTP/{parser.get_http_version()}")
        fields = dict(headers)
        length = fields.get(b"content-length")  # two of them the parser refuses
        content_length = int(length) if length is not None else None
        if b"transfer-encoding" in fields and [v.strip().lower() for n, v in headers if n == b"transfer-encoding"] != [b"chunked"]:
            self._refuse("its transfer coding is not chunked")
        without_body = status in (204, 304) or self._method == b"HEAD"
        self._framed = without_body or content_length is not None or b"transfer-encoding" in fields
        self._keep = self._framed and parser.should_keep_alive()
        self._stage = _ENDED if without_body else _BODY
        if status >= 300 and self._outbox is not None:
            self._outbox = None  # refused early: it wants no more of the body, and could not tell the rest of it from a request
            self._keep = False
        elapsed_ns = (self._first_byte_ns or self._pool.now_ns()) - self._began_ns
        exchange.began(ResponseHead(status, headers, content_length, max(elapsed_ns, 0) // 1000))

    def on_body(self, body: bytes) -> None:
        """Parser: some bytes of the body."""
        exchange = self._exchange
        if self._stage is _BODY and exchange is not None:
            self._barren_bytes = 0
            exchange.chunks.append(body)
            exchange.waiting_bytes += len(body) + CHUNK_OVERHEAD_BYTES
        else:
            self._keep = False

    def on_message_complete(self) -> None:
        """Parser: that was all of it."""
        if self._interim:
            self._interim = False
            self._headers = []
            self._first_byte_ns = 0
        else:
            self._stage = _ENDED

    # Inside

    def _reset(self, method: bytes) -> None:
        """Forget the previous answer."""
        self._method = method
        self._headers = []
        self._barren_bytes = 0
        self._began_ns = 0
        self._first_byte_ns = 0
        self._framed = False
        self._keep = False
        self._interim = False
        self._refusal = ""

    def _refuse(self, reason: str) -> None:
        """Stop the parser from within one of its callbacks."""
        self._refusal = reason
        raise ValueError(reason)

    def _finish(self, exchange: UpstreamConnection) -> None:
        """The answer is complete: let the exchange go, and keep the wire if both sides are done with it."""
        self._exchange = None
        self._stage = _KEPT
        exchange.ended()
        if self._keep and not self.closed and self._measure_unsent() == 0:
            if self._method == b"HEAD":
                self._parser = None  # it still waits for a body
            self._unsent_bytes = 0
            self.drained()
            self._pool.released(self)
        else:
            self.close()

    def _fail(self, failure: TokenweirError) -> None:
        """The answer will never be complete."""
        exchange, self._exchange = self._exchange, None
        self.close()
        if exchange is not None:
            exchange.failed(failure)

    def _cut(self, message: str) -> UpstreamCut:
        """An early end by the other side; stale if this was a kept wire and no answer had begun."""
        unanswered = self._stage is _KEPT or (self._stage is _HEAD and self._barren_bytes == 0)
        return UpstreamCut(message, stale=self._exchange is not None and self._exchange.reused and unanswered)

    def _write_more(self) -> None:
        while self._outbox is not None and not self._write_paused and not self.closed and self._transport is not None:
            piece, rest = self._outbox[:WRITE_BYTES], self._outbox[WRITE_BYTES:]
            self._outbox = rest if len(rest) else None
            self._transport.write(piece)

    def _measure_unsent(self) -> int:
        """Bytes of the request that the socket has not taken yet."""
        waiting = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return waiting + (len(self._outbox) if self._outbox is not None else 0)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "kept" if self._exchange is None else f"in use ({self._stage.value})"
        return f"<Wire {state}>"
