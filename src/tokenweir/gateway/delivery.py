"""Delivery: getting a request to the provider and the head of its answer back, in at most three attempts.

The rule it protects: every attempt has its intent in the journal before its first byte leaves, and its own settlement. An attempt is made again
only while the client has seen nothing, and only where the provider has not begun to work, as far as anybody can tell (no connection, a kept-alive
connection that had ended, a refusal that asks to come back soon). Where that cannot be told for sure, the attempt that went before keeps its ceiling.
Which refusals those are is decided by `wire.faults.decide_retry`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from tokenweir.errors import UpstreamCut, UpstreamError, UpstreamUnreachable
from tokenweir.gateway.passage import Passage
from tokenweir.gateway.upstream import ResponseHead, UpstreamClient, UpstreamConnection
from tokenweir.metering.journal import JournalWriter
from tokenweir.metering.meter import Attempt, Outcome, Ticket
from tokenweir.ports import Clock
from tokenweir.settings import UpstreamSettings
from tokenweir.telemetry import HEADROOM, RETRIES
from tokenweir.wire.faults import decide_retry, read_fault, status_of_error
from tokenweir.wire.headers import UPSTREAM_REQUEST_ID, read_headroom
from tokenweir.wire.messages import StreamMeter

REFUSAL_BYTES_MAX = 1024 * 1024
OPENING_BYTES_MAX = 1024
"""Of a stream that says nothing yet: about 25 pings. The client gives up after 300 s of silence, and pings come every 10 s or so."""
HEADROOM_EVERY_NS = 250_000_000
_CONNECT_AGAIN_S = (0.05, 0.2)
_HEADROOM = tuple(HEADROOM.labels(resource) for resource in ("requests", "input_tokens", "output_tokens"))


class Outgoing(msgspec.Struct, frozen=True):
    """A request as it goes upstream."""

    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


class Refusal(msgspec.Struct, frozen=True):
    """The provider's answer was a refusal, read whole; its attempt is settled."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    upstream_request_id: str


class Answer(msgspec.Struct):
    """The provider began to answer; the body is still to be relayed, and the attempt to be settled."""

    head: ResponseHead
    connection: UpstreamConnection
    attempt: Attempt | None
    upstream_request_id: str
    stream: StreamMeter | None
    """The meter of a stream, which has seen `opening`; None for an answer in JSON."""
    opening: bytes
    """Bytes read already."""


class Courier:
    """Sends requests upstream."""

    def __init__(self, *, upstream: UpstreamClient, journal: JournalWriter, settings: UpstreamSettings, clock: Clock, strict: bool) -> None:
        self._upstream = upstream
        self._journal = journal
        self._settings = settings
        self._clock = clock
        self._strict = strict
        self._headroom_due_ns = 0

    async def deliver(self, passage: Passage, outgoing: Outgoing, ticket: Ticket | None) -> Answer | Refusal:
        """Send until there is an answer or a refusal to hand on.

        Raises UpstreamError, JournalFull, JournalBroken; ClientGone or ShuttingDown when the request was ended before an answer began. Attempts
        are settled in each case.
        """
        attempt_no = 0
        while True:
            attempt_no += 1
            connection = await self._connect(passage, attempt_no)
            attempt = await self._send(passage, connection, outgoing, ticket)
            try:
                head = await connection.head()
            except UpstreamError as error:
                # Bytes that never left cost nothing; behind a kept connection that had ended there may still have been a reader.
                await self._settle(attempt, Outcome(refused=not connection.bytes_sent, error_type=error.code, cut=passage.cut_by))
                passage.go_on()
                unsent = not connection.bytes_sent
                retry = unsent or (isinstance(error, UpstreamCut) and error.stale and (ticket is None or ticket.may_retry))
                if attempt_no < self._settings.attempts_max and retry:
                    RETRIES.labels("stale_connection").inc()
                    continue
                raise
            result = await self._first_answer(passage, connection, head, attempt, ticket)
            if isinstance(result, Answer):
                return result
            wait_ms = decide_retry(
                result.status,
                result.headers,
                result.body,
                attempt_no=attempt_no,
                attempts_max=self._settings.attempts_max,
                retry_after_max_ms=self._settings.retry_after_max_ms,
                now_us=self._clock.now_us(),
            )
            if wait_ms is None:
                return result
            RETRIES.labels("refusal").inc()
            await asyncio.sleep(wait_ms / 1000)

    async def _connect(self, passage: Passage, attempt_no: int) -> UpstreamConnection:
        """A connection that nothing has been sent on; a failed connect may be tried again, because it costs nothing."""
        for pause_s in (*_CONNECT_AGAIN_S[: self._settings.attempts_max - attempt_no], None):
            passage.go_on()
            try:
                return await self._upstream.acquire()
            except UpstreamUnreachable:
                if pause_s is None:
                    raise
                RETRIES.labels("connect").inc()
                await asyncio.sleep(pause_s)
        raise UpstreamUnreachable

    async def _send(self, passage: Passage, connection: UpstreamConnection, outgoing: Outgoing, ticket: Ticket | None) -> Attempt | None:
        """Journal the intent, then send. If it fails before any byte has left, the attempt is settled as one that cost nothing."""
        attempt: Attempt | None = None
        try:
            passage.go_on()
            if ticket is not None:
                attempt = ticket.open_attempt()
                if self._strict:
                    await self._journal.durable()
                    passage.go_on()
            connection.send(outgoing.method, outgoing.target, outgoing.headers, outgoing.body)
        except BaseException:
            unsent = not connection.bytes_sent
            connection.abort()
            if attempt is not None:
                attempt.settle(Outcome(refused=unsent, error_type="not_sent" if unsent else "gateway_failure", cut=passage.ended_by or "gateway"))
            raise
        passage.take(connection)
        return attempt

    async def _first_answer(
        self, passage: Passage, connection: UpstreamConnection, head: ResponseHead, attempt: Attempt | None, ticket: Ticket | None
    ) -> Answer | Refusal:
        """Look at the answer as far as it takes to know whether it is one."""
        self._note_headroom(head)
        upstream_id, content_type = _identity(head)
        outcome = Outcome(status=head.status, upstream_request_id=upstream_id, first_byte_us=head.first_byte_us)
        if not 200 <= head.status < 300:
            body = await _read_refusal(connection)
            kind, _ = read_fault(head.status, body)
            await self._settle(attempt, replace(outcome, refused=True, error_type=kind or f"http_{head.status}"))
            # A status that HTTP does not have is a provider that makes no sense; the client gets one that it can read.
            return Refusal(head.status if head.status < 600 else 500, head.headers, body, upstream_id)
        if ticket is None or not content_type.startswith(b"text/event-stream"):
            return Answer(head, connection, attempt, upstream_id, None, b"")
        stream = StreamMeter(ticket.envelope.model)
        try:
            opening = await _read_opening(connection, stream)
        except UpstreamError as error:
            await self._settle(attempt, replace(outcome, error_type=error.code, cut=passage.cut_by))
            passage.go_on()
            raise
        if stream.head_error is None:
            return Answer(head, connection, attempt, upstream_id, stream, opening)
        kind, error_body = stream.head_error
        connection.abort()
        await self._settle(attempt, replace(outcome, refused=True, error_type=kind or "error"))
        return Refusal(status_of_error(kind), [(b"content-type", b"application/json")], error_body, upstream_id)

    async def _settle(self, attempt: Attempt | None, outcome: Outcome) -> None:
        if attempt is not None:
            attempt.settle(outcome)
            if self._strict:
                await self._journal.durable()

    def _note_headroom(self, head: ResponseHead) -> None:
        """Show what the provider says remains; now and then, because every answer says it anew."""
        now = self._clock.monotonic_ns()
        if now < self._headroom_due_ns:
            return
        self._headroom_due_ns = now + HEADROOM_EVERY_NS
        headroom = read_headroom(head.headers)
        for gauge, room in zip(_HEADROOM, (headroom.requests, headroom.input_tokens, headroom.output_tokens), strict=True):
            if room.remaining is not None:
                gauge.set(room.remaining)


async def _read_opening(connection: UpstreamConnection, stream: StreamMeter) -> bytes:
    """What comes up to the first event that says something. Pings are held back with it, but not so many that the client would think us dead."""
    opening = b""
    while not stream.head_known and len(opening) <= OPENING_BYTES_MAX:
        chunk = await connection.read()
        if not chunk:
            raise UpstreamCut("The provider's answer ended before it had begun.")
        opening += chunk
        stream.feed(chunk)
    return opening


def _identity(head: ResponseHead) -> tuple[str, bytes]:
    """The provider's id of the request, and the type of its answer."""
    upstream_id = content_type = b""
    for name, value in head.headers:
        if name == UPSTREAM_REQUEST_ID:
            upstream_id = value
        elif name == b"content-type":
            content_type = value
    return upstream_id[:200].decode("latin-1"), content_type


async def _read_refusal(connection: UpstreamConnection) -> bytes:
    """The body of an error answer, bounded; what cannot be read does not make the refusal less of one."""
    body = b""
    try:
        while chunk := await connection.read():
            body += chunk
            if len(body) > REFUSAL_BYTES_MAX:
                connection.abort()
                break
    except UpstreamError:
        connection.abort()
    return body
