"""Delivery: getting a request to the provider and the head of its answer back, in at most three attempts.

The rule it protects: every attempt has its intent in the journal before its first byte leaves, and its own settlement. An attempt is made again
only while the client has seen nothing, and only where the provider has surely not begun to work (no connection, a kept-alive connection that had
ended, a refusal that asks to come back soon). Which refusals those are is decided by `wire.faults.decide_retry`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from tokenweir.errors import ShuttingDown, UpstreamCut, UpstreamError, UpstreamUnreachable
from tokenweir.gateway.exchange import ClientGone
from tokenweir.gateway.passage import Passage
from tokenweir.gateway.upstream import ResponseHead, UpstreamClient, UpstreamConnection
from tokenweir.metering.journal import JournalWriter
from tokenweir.metering.meter import Attempt, Outcome, Ticket
from tokenweir.ports import Clock
from tokenweir.settings import UpstreamSettings
from tokenweir.telemetry import HEADROOM, RETRIES
from tokenweir.wire.faults import decide_retry, read_fault, status_of_error
from tokenweir.wire.headers import UPSTREAM_REQUEST_ID, Headroom, read_headroom
from tokenweir.wire.messages import StreamMeter

REFUSAL_BYTES_MAX = 1024 * 1024
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

    async def deliver(self, passage: Passage, outgoing: Outgoing, ticket: Ticket | None) -> Answer | Refusal:
        """Send until there is an answer or a refusal to hand on.

        Raises UpstreamError, JournalFull, JournalBroken; ClientGone when the client left before an answer began. Attempts are settled in each case.
        """
        attempt_no = 0
        while True:
            attempt_no += 1
            connection = await self._connect(passage, attempt_no)
            attempt = await self._open(ticket, connection)
            passage.take(connection)
            try:
                connection.send(outgoing.method, outgoing.target, outgoing.headers, outgoing.body)
                result = await self._first_answer(connection, attempt, ticket)
            except UpstreamError as error:
                _settle(attempt, Outcome(error_type=error.code, cut=passage.cut_by))
                _raise_if_ended(passage)
                if isinstance(error, UpstreamCut) and getattr(error, "stale", False) and attempt_no < self._settings.attempts_max:
                    RETRIES.labels("stale_connection").inc()
                    continue
                raise
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
            _raise_if_ended(passage)

    async def _connect(self, passage: Passage, attempt_no: int) -> UpstreamConnection:
        """A connection that nothing has been sent on; a failed connect may be tried again, because it costs nothing."""
        for pause_s in (*_CONNECT_AGAIN_S[: self._settings.attempts_max - attempt_no], None):
            try:
                connection = await self._upstream.acquire()
            except UpstreamUnreachable:
                if pause_s is None:
                    raise
                RETRIES.labels("connect").inc()
                await asyncio.sleep(pause_s)
                _raise_if_ended(passage)
                continue
            if passage.ended_by:
                connection.abort()
                _raise_if_ended(passage)
            return connection
        raise UpstreamUnreachable

    async def _open(self, ticket: Ticket | None, connection: UpstreamConnection) -> Attempt | None:
        """Journal the intent; if that fails, nothing has been sent and the connection is given up."""
        if ticket is None:
            return None
        try:
            attempt = ticket.open_attempt()
            if self._strict:
                await self._journal.durable()
        except BaseException:
            connection.abort()
            raise
        return attempt

    async def _first_answer(self, connection: UpstreamConnection, attempt: Attempt | None, ticket: Ticket | None) -> Answer | Refusal:
        head = await connection.head()
        _note_headroom(read_headroom(head.headers))
        upstream_id = _header(head, UPSTREAM_REQUEST_ID)
        if not 200 <= head.status < 300:
            body = await _read_refusal(connection)
            kind, _ = read_fault(head.status, body)
            outcome = Outcome(
                status=head.status,
                refused=True,
                upstream_request_id=upstream_id,
                error_type=kind or f"http_{head.status}",
                first_byte_us=head.first_byte_us,
            )
            _settle(attempt, outcome)
            return Refusal(head.status, head.headers, body, upstream_id)
        if ticket is None or not _header(head, b"content-type").startswith("text/event-stream"):
            return Answer(head, connection, attempt, upstream_id, None, b"")
        stream = StreamMeter(ticket.envelope.model)
        opening = b""
        while not stream.head_known:
            chunk = await connection.read()
            if not chunk:
                break
            opening += chunk
            stream.feed(chunk)
        if stream.head_error is None:
            return Answer(head, connection, attempt, upstream_id, stream, opening)
        kind, error_body = stream.head_error
        connection.abort()
        _settle(
            attempt,
            Outcome(
                status=head.status,
                refused=True,
                upstream_request_id=upstream_id,
                error_type=kind or "error",
                first_byte_us=head.first_byte_us,
            ),
        )
        headers = [(b"content-type", b"application/json")]
        return Refusal(status_of_error(kind), headers, error_body, upstream_id)


def _header(head: ResponseHead, wanted: bytes) -> str:
    for name, value in head.headers:
        if name == wanted:
            return value[:200].decode("latin-1")
    return ""


def _note_headroom(headroom: Headroom) -> None:
    for gauge, room in zip(_HEADROOM, (headroom.requests, headroom.input_tokens, headroom.output_tokens), strict=True):
        if room.remaining is not None:
            gauge.set(room.remaining)


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


def _settle(attempt: Attempt | None, outcome: Outcome) -> None:
    if attempt is not None:
        attempt.settle(outcome)


def _raise_if_ended(passage: Passage) -> None:
    if passage.ended_by == "client":
        raise ClientGone
    if passage.ended_by == "shutdown":
        raise ShuttingDown
