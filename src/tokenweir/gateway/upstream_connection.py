"""One exchange with the provider: a request sent, its answer read as it comes.

An `UpstreamConnection` is what the rest of the gateway holds. It lives for one exchange; the socket beneath it (upstream_wire.py) lives longer and
serves many. Keeping the two apart is what makes a late `abort()` harmless: once the answer is complete the exchange has let go of its wire, and
nothing done to it can touch the request of another caller.

Protects: bytes are handed on as soon as they are here, the end of an answer is reported only for a complete one, and what waits for a slow
reader stays bounded.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from tokenweir.errors import TokenweirError, UpstreamCut


class ResponseHead(msgspec.Struct, frozen=True):
    """What stands before the body of an answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """Names in lower case, in the order they came."""
    content_length: int | None
    """As announced; None when the length shows only at the end."""
    first_byte_us: int
    """From sending the request to the first byte of the answer."""


class Line(Protocol):
    """What an exchange needs of the wire beneath it."""

    def send(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Write a request."""
        ...

    def drained(self) -> None:
        """The reader took everything that had arrived."""
        ...

    def hang_up(self) -> None:
        """The exchange is given up: close the socket, or keep it if it has not been used."""
        ...


class Taken(enum.Enum):
    """What a taker says of the piece it was handed."""

    MORE = enum.auto()
    LATER = enum.auto()
    """It took this piece and wants no other until `resume()`."""
    STOP = enum.auto()


class UpstreamConnection:
    """The right to send one request, and its answer."""

    __slots__ = (
        "_failure",
        "_head",
        "_line",
        "_loop",
        "_take",
        "_taking",
        "_took",
        "_waiter",
        "bytes_sent",
        "chunks",
        "complete",
        "reused",
        "waiting_bytes",
    )

    def __init__(self, line: Line, loop: asyncio.AbstractEventLoop, *, reused: bool) -> None:
        self.reused = reused
        """Whether the wire has served an exchange before, so that it may turn out to be stale."""
        self.bytes_sent = False
        """Whether any byte of the request may have reached the provider."""
        self.complete = False
        """Whether the whole answer has arrived. True right after a `read()` means that the next one returns the empty end mark."""
        self.chunks: list[bytes] = []
        """For the wire: body bytes that arrived and were not read yet."""
        self.waiting_bytes = 0
        """For the wire: about how much memory `chunks` holds."""
        self._line: Line | None = line
        self._loop = loop
        self._head: ResponseHead | None = None
        self._failure: TokenweirError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], Taken] | None = None
        self._taking = Taken.MORE
        self._took: BaseException | None = None

    def send(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send the request. Host and content-length are set here.

        Raises InvalidRequest, and sends nothing, if a part of it could break the framing. A connection that is gone already shows in `head()`.
        """
        if self._line is not None:
            self._line.send(method, target, headers, body)

    async def head(self) -> ResponseHead:
        """The head of the final answer; informational ones (1xx) are skipped.

        Raises UpstreamSilent if it did not come in time, UpstreamCut if the connection ended or made no sense.
        """
        while self._head is None:
            if self._failure is not None:
                raise self._failure
            await self._news()
        return self._head

    async def read(self) -> bytes:
        """All body bytes that have arrived since the last read, as early as possible; empty at the end of a complete body.

        Raises UpstreamCut if the body is cut short, UpstreamSilent if the provider stopped sending. What arrived before is returned first.
        """
        while True:
            if self.chunks:
                return self._next()
            if self.complete:
                return b""
            if self._failure is not None:
                raise self._failure
            await self._news()

    async def pour(self, take: Callable[[bytes], Taken]) -> None:
        """Hand what arrives to `take` the moment it arrives, with no task in between, until it says STOP or the body is complete.

        After LATER it gets nothing until `resume()`. Raises what `read()` would, and what `take` raises. After STOP, `read()` goes on.
        """
        self._take, self._taking, self._took = take, Taken.MORE, None
        try:
            self._hand_over()
            while True:
                if self._took is not None:
                    raise self._took
                if self._taking is Taken.STOP or (self.complete and not self.chunks):
                    return
                if self._failure is not None and not self.chunks:
                    raise self._failure
                await self._news()
        finally:
            self._take = None

    def resume(self) -> None:
        """Whoever takes what is poured can take more."""
        if self._take is not None and self._taking is Taken.LATER:
            self._taking = Taken.MORE
            self.wake()

    def abort(self) -> None:
        """Give the exchange up now; whoever waits for it gets UpstreamCut. After a complete answer, and a second time, this does nothing.

        What has arrived can still be read: it may hold the final counts, and then the bill is known.
        """
        line, self._line = self._line, None
        if line is not None:
            self.failed(UpstreamCut("The exchange with the provider was given up by the gateway."))
            line.hang_up()

    def began(self, head: ResponseHead) -> None:
        """For the wire: the head has arrived."""
        self._head = head

    def ended(self) -> None:
        """For the wire: the answer is complete; the exchange lets go."""
        self._line = None
        self.complete = True
        self.wake()

    def failed(self, failure: TokenweirError) -> None:
        """For the wire: the answer will never be complete; the exchange lets go."""
        self._line = None
        if self._failure is None:
            self._failure = failure
        if self._taking is Taken.LATER:
            self._taking = Taken.MORE  # what has arrived is all there will be: nobody needs to be spared it
        self.wake()

    def wake(self) -> None:
        """For the wire: something arrived that a waiting `head()`, `read()` or `pour()` may want."""
        if self._take is not None:
            self._hand_over()
            if self._taking is not Taken.STOP and self._took is None and (self.chunks or not (self.complete or self._failure is not None)):
                return
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _hand_over(self) -> None:
        """Give the taker what there is, while it takes."""
        take = self._take
        while take is not None and self.chunks and self._taking is Taken.MORE and self._took is None:
            try:
                self._taking = take(self._next())
            except BaseException as error:
                # It happened under the transport's callback; it belongs to whoever pours.
                self._took = error

    def _next(self) -> bytes:
        chunks = self.chunks
        taken = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self.chunks = []
        self.waiting_bytes = 0
        if self._line is not None:
            self._line.drained()
        return taken

    async def _news(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("one exchange has one reader")
        self._waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None

    def __repr__(self) -> str:
        if self.complete:
            state = "complete"
        elif self._failure is not None:
            state = f"failed: {self._failure.code}"
        elif self._head is not None:
            state = f"reading {self._head.status}"
        else:
            state = "waiting for the head" if self.bytes_sent else "unused"
        return f"<UpstreamConnection {'reused' if self.reused else 'new'}, {state}, {self.waiting_bytes} bytes unread>"
