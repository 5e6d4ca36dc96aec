"""Delivery: sends a composed answer, at the pace and with the faults that were asked for, and knows at every moment what has been generated.

The journal's line of a complete answer is written just before its last bytes are released, so that whoever has read an answer to its end finds its line.
An answer that is broken off bills its input and the output generated until then: events handed to the connection, the one that was cut included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

import msgspec

from tokenweir.simulator.composition import Answer, Outcome, Tally
from tokenweir.simulator.connection import Cut, Exchange
from tokenweir.simulator.directives import NEVER, Directives
from tokenweir.simulator.refusals import envelope, named
from tokenweir.simulator.replies import JSON, prelude
from tokenweir.simulator.scenario import Pace
from tokenweir.simulator.stream import PING, Frame, frames, message_object, note_frame

_BATCH_BYTES = 32 * 1024
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"


class Delivery:
    """The sending of one answer."""

    def __init__(
        self,
        exchange: Exchange,
        answer: Answer,
        wanted: Directives,
        pace: Pace,
        *,
        began: Callable[[], None],
        closing: Callable[[str, Outcome | None, int], None],
    ) -> None:
        """`began` is called when the answer begins; `closing` just before its last bytes, with the outcome, what is billed, and how many bytes those are."""
        self._exchange = exchange
        self._answer = answer
        self._wanted = wanted
        self._event_tokens = pace.event_tokens
        self._ping_ms = pace.ping_ms
        self._ttfb_ms = pace.ttfb_ms
        self._event_ms = pace.event_ms if wanted.pace is None else wanted.pace
        self._began = began
        self._closing = closing
        self._tally = Tally(answer)
        self._whole: Outcome | None = None

    def outcome(self) -> Outcome:
        """What has been generated so far."""
        return self._whole or self._tally.outcome()

    async def send(self, lines: bytes, *, stream: bool) -> None:
        """Send it all; raises Ended if it comes to that."""
        await prelude(self._exchange, self._wanted, ttfb_ms=self._ttfb_ms)
        self._began()
        if stream:
            await self._send_events(lines)
        else:
            await self._send_json(lines)

    async def _send_json(self, lines: bytes) -> None:
        wanted, exchange = self._wanted, self._exchange
        if self._event_ms:
            # Nothing is seen of a message before it is whole, but it is generated event by event all the same.
            for frame in frames(self._answer, wanted, event_tokens=self._event_tokens):
                await exchange.pause(self._event_ms)
                note_frame(self._tally, frame)
        outcome = self._whole = Tally(self._answer).add_all().outcome()
        body = msgspec.json.encode(message_object(self._answer, outcome, wanted))
        spoilt = wanted.truncate is not None or wanted.content_length != 0
        if wanted.truncate is not None:
            body = body[: wanted.truncate]
        length = max(0, len(body) + wanted.content_length)
        close = wanted.content_length != 0
        await exchange.start(200, JSON + lines, length=length, slow_ms=wanted.slow_head, close=close)
        if wanted.stall:
            await exchange.write(body[: len(body) // 2])
            await exchange.pause(wanted.stall)
            body = body[len(body) // 2 :]
        if wanted.cut == NEVER or wanted.cut > exchange.body_sent + len(body):
            await exchange.ready()
            self._closing("mangled" if spoilt else "complete", outcome, len(body))
        await exchange.write(body)
        exchange.finish(trailing=wanted.trailing)

    async def _send_events(self, lines: bytes) -> None:
        wanted, exchange = self._wanted, self._exchange
        await exchange.start(200, EVENTS + lines, length=None, slow_ms=wanted.slow_head)
        rows = frames(self._answer, wanted, event_tokens=self._event_tokens)
        if wanted.truncate is not None:
            await self._send_truncated(rows, wanted.truncate)
            return
        singly = bool(self._event_ms or wanted.stall or wanted.chunk or wanted.cut != NEVER or wanted.error_after != NEVER)
        batch: list[Frame] = []
        size = 0
        for at, (frame, last) in enumerate(_marking_last(rows)):
            if at == wanted.error_after:
                await self._send_error(began=at > 0)
                return
            if wanted.stall and at == wanted.stall_after:
                await exchange.pause(wanted.stall)
            if self._event_ms and at:
                await self._wait_an_event()
            batch.append(frame)
            size += len(frame.raw)
            if singly or last or size >= _BATCH_BYTES:
                await self._send_rows(batch, last=last)
                batch, size = [], 0
        exchange.finish(trailing=wanted.trailing)

    async def _send_rows(self, rows: list[Frame], *, last: bool) -> None:
        """Write some events. Those that were released count as generated, the one in which the connection was cut too."""
        wanted, exchange = self._wanted, self._exchange
        piece = rows[0].raw if len(rows) == 1 else b"".join([frame.raw for frame in rows])
        if last and (wanted.cut == NEVER or wanted.cut > exchange.body_sent + len(piece)):
            await exchange.ready()
            self._note(rows)
            self._closing("complete", self.outcome(), len(piece))
            await exchange.write(piece)
            return
        try:
            await exchange.write(piece)
        except Cut:
            self._note(rows)
            raise
        self._note(rows)
        # A reader as fast as we are would never make us wait, and one long stream would keep all others from their turn.
        await asyncio.sleep(0)

    def _note(self, rows: Iterable[Frame]) -> None:
        for frame in rows:
            note_frame(self._tally, frame)

    async def _wait_an_event(self) -> None:
        """The pace between two events; a ping whenever the silence grows long."""
        left = self._event_ms
        while left > self._ping_ms:
            await self._exchange.pause(self._ping_ms)
            await self._exchange.write(PING)
            left -= self._ping_ms
        await self._exchange.pause(left)

    async def _send_error(self, *, began: bool) -> None:
        """An error event inside a 200, then a clean end. In the place of the first event nothing was generated, and nothing is billed."""
        refusal = named(self._wanted.error)
        raw = msgspec.json.encode(envelope(refusal.kind, self._wanted.message or refusal.message))
        event = b"event: error\ndata: %s\n\n" % raw
        await self._exchange.ready()
        self._closing("error_in_stream", self.outcome() if began else None, len(event))
        await self._exchange.write(event)
        self._exchange.finish()

    async def _send_truncated(self, rows: Iterator[Frame], size: int) -> None:
        """Only the first bytes of the stream, and then a clean end, as if that were all."""
        whole = list(rows)
        body = b"".join([frame.raw for frame in whole])[:size]
        self._note(whole)
        await self._exchange.ready()
        self._closing("mangled", self.outcome(), len(body))
        await self._exchange.write(body)
        self._exchange.finish()


def _marking_last(rows: Iterator[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Each event, and whether it is the last."""
    held = next(rows)
    for frame in rows:
        yield held, False
        held = frame
    yield held, True
