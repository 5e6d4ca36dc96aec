"""The load: many clients in one process of its own, closed loop (each sends again when answered) or open loop (a fixed rate, come what may).

Every answer is checked: status, length and end of a JSON answer; number of events and last event of a stream. Latency is taken from the moment a
request is written to the moment its answer is complete; the delay of an event from the instant the provider wrote into it. Prints one JSON
object. Change together with `upstream.py`, which makes the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import re
import time
from array import array
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

import upstream

SAMPLES_MAX = 2_000_000
_STAMPED = re.compile(rb"; t=(\d{19})")
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)\r\n")
_DELTA = b"event: content_block_delta\n"
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Plan:
    """What to send, how often, and what to expect."""

    host: str
    port: int
    request: bytes
    events: int
    """Text events in an answer; 0 for JSON."""
    connections: int
    seconds: float
    requests_max: int
    rate: float
    """Requests per second in the open loop; 0 for the closed loop."""
    ramp_s: float
    delays: bool
    exact: bool
    """Whether the body must come through byte for byte (not so with a gateway that writes it anew)."""
    finish_s: float
    """How long after the last request answers may still come."""


class Tally:
    """What happened."""

    def __init__(self) -> None:
        self.started = 0
        self.completed = 0
        self.events = 0
        self.errors: collections.Counter[str] = collections.Counter()
        self.latency_ns = array("q")
        self.delay_ns = array("q")
        self.late_ns = array("q")
        self.first_ns = 0
        self.last_ns = 0


class Caller(asyncio.Protocol):
    """One connection of a client, with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._plan = load.plan
        self._parts: list[bytes] = []
        self._sent_ns = 0
        self.busy = False
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports do not derive from it
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.busy:
            self._fail("connection lost before the answer was complete")
        self._load.closed(self)

    def send(self) -> None:
        """Send the request once more."""
        self.busy = True
        tally = self._load.tally
        tally.started += 1
        self._sent_ns = time.monotonic_ns()
        if not tally.first_ns:
            tally.first_ns = self._sent_ns
        self.transport.write(self._plan.request)

    def data_received(self, data: bytes) -> None:
        plan = self._plan
        if plan.delays:
            self._note_delays(data)
        parts = self._parts
        parts.append(data)
        if plan.events:
            # The end of a stream may be split anywhere; five bytes over the last two pieces see it.
            if data[-5:] == _LAST_CHUNK or (len(data) < 5 and b"".join(parts)[-5:] == _LAST_CHUNK):
                self._done(_stream_problem(b"".join(parts), plan.events))
            elif len(parts) == 1 and not data.startswith(b"HTTP/1.1 200"):
                self._fail(f"status {data[9:12].decode('latin-1')}")
                self.transport.abort()
            return
        if len(parts) > 1:
            data = b"".join(parts)
            self._parts = [data]
        problem = _json_problem(data, exact=plan.exact)
        if problem is not None:
            self._done(problem)

    def _note_delays(self, data: bytes) -> None:
        now = time.monotonic_ns()
        delays = self._load.tally.delay_ns
        if len(delays) < SAMPLES_MAX:
            for stamp in _STAMPED.findall(data):
                delays.append(now - int(stamp))

    def _done(self, problem: str) -> None:
        if problem:
            self._fail(problem)
            self.transport.abort()
            return
        tally = self._load.tally
        tally.last_ns = now = time.monotonic_ns()
        tally.completed += 1
        tally.events += self._plan.events
        if len(tally.latency_ns) < SAMPLES_MAX:
            tally.latency_ns.append(now - self._sent_ns)
        self.busy = False
        self._parts = []
        self._load.answered(self)

    def _fail(self, why: str) -> None:
        self.busy = False
        self._parts = []
        errors = self._load.tally.errors
        errors[why if why in errors or len(errors) < 20 else "other"] += 1


def _json_problem(answer: bytes, *, exact: bool) -> str | None:
    """What is wrong with a JSON answer; empty if nothing is; None if it is not all there yet."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = answer[: end + 2].lower()
    stated = _LENGTH.search(head)
    if stated is None:
        if not answer.endswith(_LAST_CHUNK):
            return None
        body = _dechunked(answer[end + 4 :])
    else:
        body = answer[end + 4 :]
        if len(body) < int(stated[1]):
            return None
    if not answer.startswith(b"HTTP/1.1 200"):
        return f"status {answer[9:12].decode('latin-1')}"
    if exact:
        return "" if len(body) == upstream.JSON_BYTES and body.endswith(b'"inference_geo":"global"}}') else "the body is not what was sent"
    return "" if b'"output_tokens"' in body and b"end_turn" in body else "the body is not what was sent"


def _stream_problem(answer: bytes, events: int) -> str:
    """What is wrong with a whole stream; empty if nothing is."""
    if not answer.startswith(b"HTTP/1.1 200"):
        return f"status {answer[9:12].decode('latin-1')}"
    if answer.count(_DELTA) == events and b'{"type":"message_stop"' in answer[-200:]:
        return ""  # The quick look suffices unless an event was split between chunks.
    body = _dechunked(answer[answer.find(b"\r\n\r\n") + 4 :])
    if len(re.findall(rb'"type": ?"content_block_delta"', body)) != events:
        return "events are missing"
    return "" if b"message_stop" in body[-200:] else "the last event is missing"


def _dechunked(body: bytes) -> bytes:
    pieces = []
    at = 0
    while (line := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:line], 16)
        if not size:
            break
        pieces.append(body[line + 2 : line + 2 + size])
        at = line + 4 + size
    return b"".join(pieces)


class Load:
    """All callers, and when they send."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self._loop = asyncio.get_running_loop()
        self._callers: set[Caller] = set()
        self._idle: list[Caller] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._connects_left = plan.connections * 20 + 1000
        self._stop_at = 0.0
        self._stopped = False
        self._finished = asyncio.Event()

    async def run(self) -> Tally:
        """Send until the time or the number is reached, then wait for what is under way."""
        plan = self.plan
        self._stop_at = self._loop.time() + plan.seconds + plan.ramp_s
        if plan.rate:
            await self._open_loop()
        else:
            for index in range(plan.connections):
                self._loop.call_later(plan.ramp_s * index / plan.connections, self._connect)
        left_s = max(0.0, self._stop_at - self._loop.time())
        self._loop.call_later(left_s, self._stop)
        try:
            await asyncio.wait_for(self._finished.wait(), left_s + plan.finish_s)
        except TimeoutError:
            self.tally.errors["not finished in time"] += sum(caller.busy for caller in self._callers)
        for caller in list(self._callers):
            caller.busy = False
            if caller.open:
                caller.transport.abort()
        return self.tally

    def answered(self, caller: Caller) -> None:
        """An answer is complete."""
        if self.plan.rate:
            self._idle.append(caller)
            self._check_finished()
        elif self._may_send():
            caller.send()
        else:
            caller.transport.close()

    def closed(self, caller: Caller) -> None:
        """A connection has gone; in the closed loop another takes its place, as long as there is something to send."""
        self._callers.discard(caller)
        if caller in self._idle:
            self._idle.remove(caller)
        if not self.plan.rate and self._may_send():
            self._connect()
        self._check_finished()

    def _may_send(self) -> bool:
        return not self._stopped and self.tally.started < self.plan.requests_max and self._loop.time() < self._stop_at

    def _stop(self) -> None:
        self._stopped = True
        self._check_finished()

    def _check_finished(self) -> None:
        enough = self._stopped or self.tally.started >= self.plan.requests_max
        if enough and not self._connecting and not any(caller.busy for caller in self._callers):
            self._finished.set()

    def _connect(self) -> None:
        if self._connects_left <= 0 or not self._may_send():
            return
        self._connects_left -= 1
        task = self._loop.create_task(self._connect_and_send())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_and_send(self) -> None:
        try:
            _, caller = await self._loop.create_connection(lambda: Caller(self), self.plan.host, self.plan.port)
        except OSError as error:
            self.tally.errors[f"cannot connect: {error.strerror}"] += 1
            return
        self._callers.add(caller)
        caller.send()

    async def _open_loop(self) -> None:
        """Send on time, whether or not anything has been answered; a request that has no free connection gets a new one."""
        plan, tally = self.plan, self.tally
        begun = self._loop.time()
        for number in range(min(plan.requests_max, round(plan.rate * plan.seconds))):
            due = begun + number / plan.rate
            if (wait_s := due - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            tally.late_ns.append(round((self._loop.time() - due) * 1e9))
            if self._idle:
                self._idle.pop().send()
            elif len(self._callers) + len(self._connecting) < plan.connections:
                self._connect()
            else:
                tally.errors["no free connection"] += 1


def percentiles_us(samples_ns: array[int]) -> dict[str, float]:
    """Microseconds; empty without samples."""
    if not samples_ns:
        return {}
    ordered = sorted(samples_ns)
    return {f"p{p:g}": round(ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] / 1000, 1) for p in (50, 90, 99, 99.9)}


def request_bytes(url: str, key: str, *, body_bytes: int, events: int, per_write: int, interval_ms: int) -> bytes:
    """One request, of about that many bytes of body, that asks the stand-in for this answer."""
    host = urlsplit(url).netloc
    line = 'He said: "count what passes", and the river\u2019s keeper wrote it down.\n'
    fields: dict[str, object] = {
        "model": upstream.MODEL,
        "max_tokens": 1024,
        "stream": bool(events),
        "system": "You are the keeper of a weir. " + upstream.directive(events, per_write, interval_ms),
        "metadata": {"user_id": "user_bench"},
        "messages": [],
    }
    turn = len(json.dumps({"role": "assistant", "content": [{"type": "text", "text": line * 8}]}, separators=(",", ":"), ensure_ascii=False)) + 16
    turns = max(1, (body_bytes - len(json.dumps(fields))) // turn) | 1  # An odd number: the user has the first and the last word.
    fields["messages"] = [{"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": line * 8}]} for i in range(turns)]
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()  # as the official SDKs write it
    head = (
        f"POST /v1/messages HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\ncontent-type: application/json\r\n"
        f"accept: application/json\r\nuser-agent: Anthropic/Python 2.0.0\r\nx-stainless-lang: python\r\nx-stainless-retry-count: 0\r\n"
        f"x-stainless-package-version: 2.0.0\r\naccept-encoding: identity\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--url", required=True, help="where to send, http://HOST:PORT")
    parser.add_argument("--core", type=int, default=None, help="run on this core alone")
    parser.add_argument("--key", default=upstream.UPSTREAM_KEY, help="what to send as x-api-key")
    parser.add_argument("--connections", type=int, default=64, help="connections at once; in the open loop the most there may be")
    parser.add_argument("--seconds", type=float, default=5.0, help="for how long requests are sent")
    parser.add_argument("--requests-max", type=int, default=1_000_000, help="no more requests than this")
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: requests per second; 0: closed loop")
    parser.add_argument("--ramp-s", type=float, default=0.0, help="closed loop: connections are opened over this time")
    parser.add_argument("--body-bytes", type=int, default=4096, help="size of the request body")
    parser.add_argument("--events", type=int, default=0, help="text events of a stream; 0 asks for JSON")
    parser.add_argument("--per-write", type=int, default=5, help="events in one write of the provider")
    parser.add_argument("--interval-ms", type=int, default=0, help="between two writes; 0: as fast as they are taken")
    parser.add_argument("--finish-s", type=float, default=30.0, help="how long answers may take after the last request")
    parser.add_argument("--delays", action="store_true", help="measure the delay of every event")
    parser.add_argument("--reworded", action="store_true", help="the gateway writes bodies anew: check their meaning, not their bytes")
    return parser.parse_args()


async def run(options: argparse.Namespace) -> dict[str, object]:
    """Run the plan of the command line; returns what is printed."""
    address = urlsplit(options.url)
    plan = Plan(
        host=address.hostname or "",
        port=address.port or 80,
        request=request_bytes(
            options.url,
            options.key,
            body_bytes=options.body_bytes,
            events=options.events,
            per_write=options.per_write,
            interval_ms=options.interval_ms,
        ),
        events=options.events,
        connections=options.connections,
        seconds=options.seconds,
        requests_max=options.requests_max,
        rate=options.rate,
        ramp_s=options.ramp_s,
        delays=options.delays,
        exact=not options.reworded,
        finish_s=options.finish_s,
    )
    tally = await Load(plan).run()
    elapsed_s = max(1e-9, (tally.last_ns - tally.first_ns) / 1e9)
    return {
        "started": tally.started,
        "completed": tally.completed,
        "errors": dict(tally.errors),
        "elapsed_s": round(elapsed_s, 4),
        "requests_per_s": round(tally.completed / elapsed_s, 1),
        "events": tally.events,
        "events_per_s": round(tally.events / elapsed_s, 1),
        "latency_us": percentiles_us(tally.latency_ns),
        "event_delay_us": percentiles_us(tally.delay_ns),
        "send_late_us": percentiles_us(tally.late_ns),
        "cpu_s": round(time.process_time(), 3),
    }


def main() -> None:
    """Run as a process of its own."""
    options = arguments()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    print(json.dumps(uvloop.run(run(options))))


if __name__ == "__main__":
    main()
