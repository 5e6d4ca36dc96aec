"""A stand-in for the provider that costs next to nothing: canned answers, as a process of its own.

What is sent back is asked for in the request itself, by `bench:EVENTS:PER_WRITE:INTERVAL_MS;` anywhere in the body (the system prompt, which every
gateway passes on): no events asks for JSON. Every answer has token counts of its own, which are added up, so that a ledger can be compared with
`GET /bench/totals` afterwards. Text events carry the instant they were written (CLOCK_MONOTONIC, the same in every process of a machine), so
that the delay through a gateway can be read from them. Change together with `load.py`, which checks every answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import time
from typing import cast

import uvloop

UPSTREAM_KEY = "sk-ant-bench-upstream-0000000000000000"
MODEL = "claude-sonnet-4-6"
HOST = "127.0.0.1"

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\nrequest-id: req_bench%015d\r\n"
    b"anthropic-organization-id: 7b1c2f64-52a1-4f0e-9c55-0c1d2e3f4a5b\r\n"
    b"anthropic-ratelimit-requests-limit: 4000\r\nanthropic-ratelimit-requests-remaining: 3999\r\n"
    b"anthropic-ratelimit-requests-reset: 2026-11-22T12:00:00Z\r\n"
    b"anthropic-ratelimit-input-tokens-limit: 2000000\r\nanthropic-ratelimit-input-tokens-remaining: 1999000\r\n"
    b"anthropic-ratelimit-output-tokens-limit: 400000\r\nanthropic-ratelimit-output-tokens-remaining: 399000\r\n"
    b"cf-ray: 8f1e2d3c4b5a6978-FRA\r\n\r\n"
)
_USAGE = (
    b'{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,'
    b'"cache_creation":{"ephemeral_5m_input_tokens":%d,"ephemeral_1h_input_tokens":%d},'
    b'"output_tokens":%d,"service_tier":"standard","inference_geo":"global"}'
)
_PROSE = (b"A weir measures a river and regulates it; what passes over the crest is counted, whoever it belongs to. ") * 13
_JSON = (
    b'{"model":"%b","id":"msg_bench%015d","type":"message","role":"assistant","content":[{"type":"text","text":"%b"}],'
    b'"stop_reason":"end_turn","stop_sequence":null,"usage":%b}'
)
_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"%b","id":"msg_bench%015d","type":"message","role":"assistant",'
    b'"content":[],"stop_reason":null,"stop_sequence":null,"usage":%b}        }\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}    }\n\n'
    b'event: ping\ndata: {"type": "ping"}\n\n'
)
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":" a few words; t=###################"}    }\n\n'
)
_STAMP = b"#" * 19
_END = (
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0   }\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":%d,'
    b'"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,"output_tokens":%d}      }\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"           }\n\n'
)
_DIRECTIVE = re.compile(rb"bench:(\d+):(\d+):(\d+);")
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)\r\n")
_WRITE_1H = 512


def directive(events: int, per_write: int, interval_ms: int) -> str:
    """What to put into a request to get this answer."""
    return f"bench:{events}:{per_write}:{interval_ms};"


def counts(number: int) -> tuple[int, int, int, int]:
    """Input, 5-minute cache write, cache read and output of the answer of that number; always of the same width."""
    return 1000 + number % 8999, 1000 + number * 3 % 7000, 10000 + number * 7 % 89999, 100 + number % 899


class Totals:
    """What was served, as the provider would bill it."""

    def __init__(self) -> None:
        self.served = 0
        self.finished = 0
        self.cut = 0
        self.wrong_key = 0
        self.uncached_input = 0
        self.cache_write_5m = 0
        self.cache_write_1h = 0
        self.cache_read = 0
        self.output = 0
        self.open = 0
        self.open_most = 0

    def finish(self, number: int) -> None:
        """The answer of that number has been written whole."""
        fresh, write, read, output = counts(number)
        self.finished += 1
        self.uncached_input += fresh
        self.cache_write_5m += write
        self.cache_write_1h += _WRITE_1H
        self.cache_read += read
        self.output += output


def json_answer(number: int) -> bytes:
    """The body of a JSON answer; all are equally long."""
    fresh, write, read, output = counts(number)
    return _JSON % (MODEL.encode(), number, _PROSE, _USAGE % (fresh, write + _WRITE_1H, read, write, _WRITE_1H, output))


JSON_BYTES = len(json_answer(0))


class Provider(asyncio.Protocol):
    """One connection from a gateway."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0
        self._timer: asyncio.TimerHandle | None = None
        self._streaming = False
        self._delta = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not derive from it
        self._loop = asyncio.get_running_loop()
        self._fd = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._streaming:
            self._totals.cut += 1
            self._totals.open -= 1

    def data_received(self, data: bytes) -> None:
        if self._need:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts, self._need = [], 0
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._wait_for(data, len(data) + 1)
            return
        head = data[: end + 2].lower()
        stated = _LENGTH.search(head)
        whole = end + 4 + (int(stated[1]) if stated else 0)
        if len(data) < whole:
            self._wait_for(data, whole)
        elif len(data) > whole or b"\r\ntransfer-encoding:" in head:
            self._transport.abort()  # Nobody we measure pipelines or sends chunks: refusing is cheaper than a parser.
        elif head.startswith(b"post /v1/messages"):
            self._answer(head, data)
        else:
            body = json.dumps(vars(self._totals)).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    def _wait_for(self, data: bytes, need: int) -> None:
        self._parts, self._have, self._need = [data], len(data), need

    def _answer(self, head: bytes, data: bytes) -> None:
        totals = self._totals
        number = totals.served
        totals.served = number + 1
        if b": " + UPSTREAM_KEY.encode() + b"\r\n" not in head:
            totals.wrong_key += 1
        asked = _DIRECTIVE.search(data)
        events, per_write, interval_ms = map(int, asked.groups()) if asked else (0, 0, 0)
        if not events:
            body = json_answer(number)
            self._transport.write(_HEAD % (b"application/json", b"content-length: %d" % len(body), number) + body)
            totals.finish(number)
            return
        totals.open += 1
        totals.open_most = max(totals.open, totals.open_most)
        self._streaming = True
        fresh, write, read, output = counts(number)
        start = _START % (MODEL.encode(), number, _USAGE % (fresh, write + _WRITE_1H, read, write, _WRITE_1H, 1))
        end = _END % (fresh, write + _WRITE_1H, read, output)
        opening = _HEAD % (b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked", number) + _chunk(start)
        deltas = _chunk(_DELTA * per_write)
        if interval_ms:
            self._transport.write(opening)
            self._pace(number, deltas, events // per_write, interval_ms / 1000, self._loop.time(), _chunk(end) + b"0\r\n\r\n")
        else:
            self._pour(number, opening, deltas, events // per_write, _chunk(end) + b"0\r\n\r\n")

    def _pour(self, number: int, opening: bytes, deltas: bytes, writes: int, ending: bytes) -> None:
        """Write as fast as the other side takes it, each write a system call of its own: the transport would join them."""
        pieces = [opening, *[deltas] * writes, ending]
        for index, piece in enumerate(pieces):
            stamped = piece.replace(_STAMP, b"%019d" % time.monotonic_ns())
            try:
                written = os.write(self._fd, stamped)
            except BlockingIOError:
                written = 0
            except OSError:
                return  # The other side has closed; connection_lost counts it.
            if written < len(stamped):
                self._transport.write(stamped[written:] + b"".join(pieces[index + 1 :]).replace(_STAMP, b"%019d" % time.monotonic_ns()))
                break
        self._finish(number)

    def _pace(self, number: int, deltas: bytes, left: int, interval_s: float, last: float, ending: bytes) -> None:
        """Write one piece each interval; late timers do not add up."""
        if not left:
            self._transport.write(ending)
            self._finish(number)
            return
        due = last + interval_s
        self._timer = self._loop.call_at(due, self._write_paced, number, deltas, left, interval_s, due, ending)

    def _write_paced(self, number: int, deltas: bytes, left: int, interval_s: float, due: float, ending: bytes) -> None:
        self._transport.write(deltas.replace(_STAMP, b"%019d" % time.monotonic_ns()))
        self._pace(number, deltas, left - 1, interval_s, due, ending)

    def _finish(self, number: int) -> None:
        self._streaming = False
        self._timer = None
        self._totals.open -= 1
        self._totals.finish(number)


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


async def serve(seconds_max: float) -> None:
    """Serve on a port of the system's choice, which is printed as one JSON line, until told to end or the time is over."""
    totals = Totals()
    server = await asyncio.get_running_loop().create_server(lambda: Provider(totals), HOST, 0, backlog=4096)
    print(json.dumps({"ready": True, "url": f"http://{HOST}:{server.sockets[0].getsockname()[1]}", "pid": os.getpid()}), flush=True)
    await asyncio.sleep(seconds_max)


def main() -> None:
    """Run as a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds-max", type=float, default=3600.0, help="end after this time, whatever happens (%(default)s)")
    uvloop.run(serve(parser.parse_args().seconds_max))


if __name__ == "__main__":
    main()
