"""The relay: the provider's bytes to the client, untouched, while the meter watches.

The rule it protects: the settlement is in the journal before the last byte is released. A stream settles when its final event has been seen, in
front of the chunk that holds it; a JSON answer is relayed one piece behind and settles in front of its last piece. An answer that breaks off is
never made to look complete.
"""

from __future__ import annotations

from tokenweir.errors import UpstreamCut, UpstreamError
from tokenweir.gateway.delivery import Answer, Refusal
from tokenweir.gateway.passage import Passage
from tokenweir.gateway.upstream import Taken
from tokenweir.metering.holding import Held
from tokenweir.metering.journal import JournalWriter
from tokenweir.metering.limit_answers import headers_of, out_of_room
from tokenweir.metering.meter import Attempt, Outcome
from tokenweir.usage import Certainty
from tokenweir.wire.faults import stream_fault
from tokenweir.wire.headers import forward_response_headers
from tokenweir.wire.messages import Reading, StreamMeter, read_message

JSON_BYTES_MAX = 64 * 1024 * 1024
"""An answer in JSON beyond this is relayed, but its usage is not read (and so booked at its ceiling)."""


class Relay:
    """Relays answers; one for the whole gateway, it holds no state of a request."""

    def __init__(self, *, journal: JournalWriter, strict: bool) -> None:
        self._journal = journal
        self._strict = strict

    async def refusal(self, passage: Passage, refusal: Refusal) -> None:
        """Hand on the provider's refusal as it came."""
        await passage.exchange.answer(refusal.status, _headers(refusal.headers, refusal.upstream_request_id), refusal.body)

    async def answer(self, passage: Passage, answer: Answer, requested_model: str) -> None:
        """Relay an answer to its end and settle its attempt."""
        if answer.stream is not None and answer.attempt is not None:
            await self._stream(passage, answer, answer.stream, answer.attempt)
        else:
            await self._whole(passage, answer, requested_model)

    async def _stream(self, passage: Passage, answer: Answer, meter: StreamMeter, attempt: Attempt) -> None:
        """Most of a stream is poured from socket to socket; from its final event on, each piece waits for what must be done first."""
        exchange, connection = passage.exchange, answer.connection
        held = attempt.held
        await exchange.start(answer.head.status, _headers(answer.head.headers, answer.upstream_request_id, held))
        pouring = _Pouring(passage, meter) if held is None or not held.chain.grows else _PouringWithin(passage, meter, held)
        if held is not None:
            held.on_no_room = lambda link: passage.out_of_room(out_of_room(link))
        exchange.when_writable(connection.resume)
        settled = False
        try:
            if meter.final:
                pouring.final = answer.opening
            else:
                pouring.put(answer.opening)
                await connection.pour(pouring.take)
            if meter.final:
                settled = True
                await self._settle(attempt, _outcome(passage, answer, meter.reading()))
                await exchange.write(pouring.final)
                while chunk := await connection.read():
                    await exchange.write(chunk)
                    await exchange.taken()
            elif meter.reading().certainty is not Certainty.EXACT:
                # Where a length is not framed, this is all that tells a cut from an end.
                raise UpstreamCut("The provider's answer ended before it was complete.")
        except UpstreamError as error:
            if not settled:
                kind = "limit_reached" if passage.ended_by == "limit" else error.code
                await self._settle(attempt, _outcome(passage, answer, meter.reading(), error_type=kind, cut=passage.cut_by))
                await _end_broken_stream(passage, pouring.last, error)
                return
        finally:
            exchange.when_writable(None)
        if not settled:
            await self._settle(attempt, _outcome(passage, answer, meter.reading()))
        await exchange.finish()

    async def _whole(self, passage: Passage, answer: Answer, requested_model: str) -> None:
        """An answer that is not a metered stream: JSON, or a route that costs nothing."""
        exchange, connection, attempt = passage.exchange, answer.connection, answer.attempt
        headers = _headers(answer.head.headers, answer.upstream_request_id, None if attempt is None else attempt.held)
        if answer.head.content_length is not None:
            headers.append((b"content-length", str(answer.head.content_length).encode()))
        pieces: list[bytes] = []
        size = 0
        held = answer.opening
        try:
            while chunk := await connection.read():
                if held:
                    if not exchange.started:
                        await exchange.start(answer.head.status, headers)
                    await exchange.write(held)
                    held = b""
                    await exchange.taken()
                held = chunk
                size += len(chunk)
                if attempt is not None and size <= JSON_BYTES_MAX:
                    pieces.append(chunk)
        except UpstreamError as error:
            if attempt is not None:
                await self._settle(attempt, _outcome(passage, answer, None, error_type=error.code, cut=passage.cut_by))
            if exchange.started:
                exchange.cut()
                return
            passage.go_on()
            raise
        if attempt is not None:
            reading = read_message(b"".join(pieces), requested_model=requested_model) if size <= JSON_BYTES_MAX else None
            await self._settle(attempt, _outcome(passage, answer, reading))
        if not exchange.started:
            await exchange.start(answer.head.status, headers)
        await exchange.finish(held)

    async def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.settle(outcome, last=True)
        if self._strict:
            await self._journal.durable()


class _Pouring:
    """Takes the pieces of a stream as they arrive, up to the one that holds its final event: that one is kept back."""

    __slots__ = ("_exchange", "_feed", "final", "last")

    def __init__(self, passage: Passage, meter: StreamMeter) -> None:
        self._exchange = passage.exchange
        self._feed = meter.feed
        self.final = b""
        self.last = b""
        """The end of what was released, to see whether an event is whole."""

    def take(self, chunk: bytes) -> Taken:
        """Release a piece, unless it is final."""
        if self._feed(chunk):
            self.final = chunk
            return Taken.STOP
        return Taken.MORE if self.put(chunk) else Taken.LATER

    def put(self, chunk: bytes) -> bool:
        """Write a piece at once; whether the client can take more."""
        self.last = chunk[-4:]
        return self._exchange.put(chunk)


class _PouringWithin(_Pouring):
    """The same for a stream that holds room of limits: what it has come to is told to the hold, which may have to grow."""

    __slots__ = ("_held", "_meter")

    def __init__(self, passage: Passage, meter: StreamMeter, held: Held) -> None:
        super().__init__(passage, meter)
        self._meter = meter
        self._held = held

    def take(self, chunk: bytes) -> Taken:
        """Release a piece, unless it is final."""
        taken = super().take(chunk)
        if taken is not Taken.STOP:
            self._held.seen(self._meter.output_seen)
        return taken


def _outcome(passage: Passage, answer: Answer, reading: Reading | None, *, error_type: str = "", cut: str = "") -> Outcome:
    return Outcome(
        status=answer.head.status,
        reading=reading,
        upstream_request_id=answer.upstream_request_id,
        error_type=error_type,
        cut=cut or passage.ended_by,
        first_byte_us=answer.head.first_byte_us,
    )


async def _end_broken_stream(passage: Passage, last: bytes, error: UpstreamError) -> None:
    """Tell the client that its stream broke: by an error event if the last event was whole, by a cut connection otherwise."""
    exchange = passage.exchange
    if exchange.gone:
        return
    if last.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
        match passage.ended_by:
            case "shutdown":
                kind, message = "overloaded_error", "the gateway is shutting down"
            case "limit":
                kind, message = "billing_error", passage.no_room
            case _:
                kind, message = "api_error", error.message
        await exchange.finish(stream_fault(kind, message, exchange.request_id))
    else:
        exchange.cut()


def _headers(headers: list[tuple[bytes, bytes]], upstream_id: str, held: Held | None = None) -> list[tuple[bytes, bytes]]:
    forwarded = forward_response_headers(headers)
    if held is not None and held.chain.links:
        forwarded += headers_of(held)
    if upstream_id:
        forwarded.append((b"x-tokenweir-upstream-request-id", upstream_id.encode("latin-1")))
    return forwarded
