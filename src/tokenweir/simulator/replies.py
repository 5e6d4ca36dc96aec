"""Short answers: an object, nothing at all, or the provider's error, in one piece and with the faults that were asked for.

Answers to messages go out through `delivery`, results of batches through `batch_results`; everything else through here.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenweir.simulator.connection import Exchange
from tokenweir.simulator.directives import PLAIN, Directives
from tokenweir.simulator.refusals import Refusal

JSON = b"content-type: application/json\r\n"


def request_id_line(ident: str) -> bytes:
    """The `request-id` header."""
    return b"request-id: %s\r\n" % ident.encode()


async def prelude(exchange: Exchange, wanted: Directives, *, ttfb_ms: float = 0) -> None:
    """What may happen before the head of an answer: informational answers, silence, a broken connection."""
    exchange.plan_faults(cut_at=wanted.cut, cut_by=wanted.cut_by, chunk=wanted.chunk)
    if wanted.interim:
        await exchange.interim(wanted.interim)
    await exchange.pause(wanted.stall_head)
    await exchange.pause(ttfb_ms if wanted.ttfb is None else wanted.ttfb)
    if wanted.cut_head:
        await exchange.cut(wanted.cut_by)


async def send_json(exchange: Exchange, value: Any, lines: bytes, wanted: Directives = PLAIN) -> None:
    """Answer 200 with an object; `lines` are further header lines."""
    body = msgspec.json.encode(value)
    if wanted is not PLAIN:
        await prelude(exchange, wanted)
        body = body if wanted.truncate is None else body[: wanted.truncate]
    length = max(0, len(body) + wanted.content_length)
    await exchange.start(200, JSON + lines, length=length, slow_ms=wanted.slow_head, close=wanted.content_length != 0)
    if wanted.stall:
        await exchange.write(body[: len(body) // 2])
        await exchange.pause(wanted.stall)
        body = body[len(body) // 2 :]
    await exchange.write(body)
    exchange.finish(trailing=wanted.trailing)


async def send_empty(exchange: Exchange, lines: bytes) -> None:
    """Answer 200 without a body."""
    await exchange.start(200, b"content-type: text/plain\r\n" + lines, length=0)
    exchange.finish()


async def send_refusal(exchange: Exchange, refusal: Refusal, request_id: str, lines: bytes = b"") -> None:
    """Answer with the provider's error."""
    body = refusal.body(request_id)
    found = (b"content-type: text/html\r\n" if refusal.html else JSON) + request_id_line(request_id) + lines
    if refusal.retry_after is not None:
        found += b"retry-after: %d\r\n" % refusal.retry_after
    if refusal.should_retry is not None:
        found += b"x-should-retry: true\r\n" if refusal.should_retry else b"x-should-retry: false\r\n"
    await exchange.start(refusal.status, found, length=len(body), close=refusal.status == 413)
    await exchange.write(body)
    exchange.finish()
