"""The simulated API as a server: routes, credentials, one attempt from its first byte to its line in the journal, and the process.

One process, one event loop. What is asked is decided by `intake` and `directives`, what is answered by `composition`, how it goes out by `delivery`; this
module joins them and makes sure that an attempt ends exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
import uvicorn

from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.simulator.catalog import Catalog, describe
from tokenweir.simulator.composition import Answer, Outcome, compose, mint
from tokenweir.simulator.connection import Connection, Ended, Exchange
from tokenweir.simulator.delivery import JSON, Delivery
from tokenweir.simulator.directives import PLAIN, BadDirective, Directives, build, header_directives
from tokenweir.simulator.intake import Ask, body_directives, check_version, decode_body, find_model, prompt_blocks, read_ask
from tokenweir.simulator.prompt_cache import PromptCache
from tokenweir.simulator.rate_limits import ClassLimits, RateLimiter
from tokenweir.simulator.refusals import Refusal, invalid, named
from tokenweir.simulator.scenario import Occasion, Rulebook, Scenario
from tokenweir.simulator.stream import usage_object
from tokenweir.simulator.tokenizer import make_prose
from tokenweir.simulator.truth import Attempt, Bill, Journal

_WORKSPACE = re.compile(r"^sk-ant-sim-([A-Za-z0-9_]+)")
_LOOPBACK = ("127.0.0.1", "::1")


class Simulator:
    """The application."""

    def __init__(self, *, scenario: Scenario, seed: int, card: RateCard, clock: Clock, journal: Journal, begins: Journal | None = None) -> None:
        self._scenario = scenario
        self._seed = seed
        self._card = card
        self._clock = clock
        self._journal = journal
        self._begins = begins
        self._catalog = Catalog(card, ((model.id, model.like) for model in scenario.models))
        self._cache = PromptCache(short_s=scenario.cache.short_ms / 1000, long_s=scenario.cache.long_ms / 1000)
        self._limits = RateLimiter(scenario.limits)
        self._rules = Rulebook(scenario.rules, seed)
        self._prose = make_prose(seed)
        self._attempts = max(journal.last_attempt, begins.last_attempt if begins else 0)
        self._answered = 0
        self._outcomes: dict[str, int] = {}
        self._open: dict[Exchange, bool] = {}
        self._last_headers: list[str] = []
        self._stopping = False
        self._routes: dict[tuple[str, str], Callable[[Exchange, str], Awaitable[None]]] = {
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("GET", "/v1/models"): self._list_models,
            ("HEAD", "/"): self._empty,
            ("GET", "/"): self._empty,
            ("HEAD", "/api/hello"): self._empty,
            ("GET", "/api/hello"): self._empty,
            ("GET", "/healthz"): self._empty,
            ("GET", "/readyz"): self._empty,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive)
        path, method, query = exchange.path, scope["method"], scope["query_string"].decode("latin-1")
        try:
            if path == "/v1/messages" and method == "POST":
                await self._message(exchange)
            elif path == "/sim/state" and method == "GET" and (scope["client"] or ("",))[0] in _LOOPBACK:
                await self._json(exchange, self.state())
            elif (route := self._routes.get((method, path))) is not None:
                await route(exchange, query)
            elif method == "GET" and path.startswith("/v1/models/"):
                await self._one_model(exchange, path.removeprefix("/v1/models/"))
            elif any(known == path for _, known in self._routes) or path == "/v1/messages":
                raise Refusal(405, "invalid_request_error", "Method Not Allowed")
            else:
                raise Refusal(404, "not_found_error", "Not found")
        except Refusal as refusal:
            await self._refuse(exchange, refusal, self._next_id(), b"")
        except Ended:
            exchange.abandon()

    def stop(self) -> None:
        """End every answer that is under way; no new one is begun."""
        self._stopping = True
        for exchange in list(self._open):
            exchange.stop()

    def state(self) -> dict[str, Any]:
        """Counters for tests."""
        return {
            "attempts": self._attempts,
            "open": len(self._open),
            "open_streams": sum(self._open.values()),
            "outcomes": dict(self._outcomes),
            "cached_prefixes": len(self._cache),
            "last_headers": self._last_headers,
            "seed": self._seed,
        }

    async def _message(self, exchange: Exchange) -> None:
        """One attempt: whatever happens, its line is written once."""
        self._attempts += 1
        self._last_headers = sorted({name.decode("latin-1") for name, _ in exchange.headers})
        attempt = Attempt(
            self._attempts, mint("req_011C", self._seed, self._attempts), received_us=self._clock.now_us(), journal=self._journal, card=self._card
        )
        attempt.facts["headers"] = self._last_headers
        self._open[exchange] = False
        if self._stopping:
            exchange.stopping = True
        turn = _Turn(exchange, attempt)
        try:
            await self._attempt(turn)
        except Refusal as refusal:
            turn.facts["error_type"] = refusal.kind
            self._end(turn, "refused", None, status=refusal.status, coming=len(refusal.body(attempt.request_id)))
            with contextlib.suppress(Ended):
                await self._refuse(exchange, refusal, attempt.request_id, turn.headers(self._clock))
        except Ended as ended:
            self._end(turn, ended.outcome, turn.delivery.outcome() if turn.begun and turn.delivery else None)
            if not exchange.client_gone and ended.outcome != "cut":
                exchange.abandon()
        finally:
            self._end(turn, "broken", None)
            del self._open[exchange]

    async def _attempt(self, turn: _Turn) -> None:
        exchange, attempt = turn.exchange, turn.attempt
        body = await exchange.read_body()
        digest = hashlib.sha256(body).digest()
        attempt.body_sha256 = digest.hex()
        if self._begins is not None:
            self._begins.append({"attempt": attempt.number, "request_id": attempt.request_id, "body_sha256": attempt.body_sha256, "event": "begin"})
        attempt.workspace = self._authenticate(exchange, turn.facts)
        values = decode_body(body)
        model, stream = values.get("model"), values.get("stream") is True
        turn.facts["model"] = model if isinstance(model, str) else ""
        turn.facts["stream"] = stream
        self._open[exchange] = stream
        wanted = turn.wanted = self._directives(exchange, values, turn.facts["model"], stream=stream, attempt=attempt)
        if wanted is not PLAIN:
            turn.facts["directives"] = msgspec.to_builtins(wanted)
        if wanted.refuse:
            await exchange.pause(wanted.stall_head)
            raise self._named(wanted)
        check_version(exchange.header(b"anthropic-version"))
        ask = read_ask(values, self._catalog, version=exchange.header(b"anthropic-version"), betas=_betas(exchange))
        await self._answer(turn, ask, digest)

    async def _answer(self, turn: _Turn, ask: Ask, digest: bytes) -> None:
        now_s, workspace, wanted = self._now_s(), turn.attempt.workspace, turn.wanted
        limits = turn.limits = self._limits.limits(workspace, ask.model.limit_class, fast=ask.speed == "fast", now_s=now_s)
        space = f"{workspace}/{ask.model.id}"
        split = self._cache.split(ask.blocks, space=space, settings=ask.cache_settings, minimum=ask.model.cache_minimum, now_s=now_s)
        described = f"org: {self._organization()}, model: {ask.model.id}"
        limits.admit(split.prompt - split.read, described=described, now_s=now_s)
        answer = compose(ask, split, wanted, seed=self._seed, attempt=turn.attempt.number, body_digest=digest, prose=self._prose)
        turn.answer = answer

        def began() -> None:
            turn.begun = True
            self._cache.store(split, started_s=now_s)

        def closing(how: str, outcome: Outcome | None, coming: int) -> None:
            self._end(turn, how, outcome, coming=coming)

        turn.begun = True
        turn.delivery = Delivery(turn.exchange, answer, wanted, self._scenario.pace, began=began, closing=closing)
        lines = _request_id(turn.attempt.request_id) + self._identity(workspace) + turn.headers(self._clock)
        await turn.delivery.send(lines, stream=ask.stream)

    def _end(self, turn: _Turn, how: str, outcome: Outcome | None, *, status: int | None = None, coming: int = 0) -> None:
        """Write the attempt's line, once, and take its output from the limits. `coming` bytes are sent as soon as the line is written."""
        if turn.attempt.ended:
            return
        bill = None
        if outcome is not None and turn.answer is not None:
            bill = _bill(turn.answer, outcome, turn.wanted)
            turn.facts["stop_reason"] = turn.answer.stop_reason if how in ("complete", "mangled") else ""
            turn.facts["message_id"] = turn.answer.message_id
            if turn.limits is not None:
                turn.limits.output.take(bill.usage.output, self._now_s())
        self._outcomes[how] = self._outcomes.get(how, 0) + 1
        exchange = turn.exchange
        sent = exchange.status if status is None else status
        turn.attempt.end(how, now_us=self._clock.now_us(), status=sent, bytes_sent=exchange.body_sent + coming, bill=bill)

    def _directives(self, exchange: Exchange, values: dict[str, Any], model: str, *, stream: bool, attempt: Attempt) -> Directives:
        occasion = Occasion(attempt.number, exchange.path, model, attempt.workspace, stream, exchange.headers)
        try:
            return build(self._rules.directives(occasion), body_directives(values), header_directives(exchange.headers))
        except BadDirective as error:
            raise invalid(str(error)) from None

    @staticmethod
    def _named(wanted: Directives) -> Refusal:
        try:
            return named(wanted.refuse, message=wanted.message, retry_after=wanted.retry_after, should_retry=wanted.should_retry)
        except ValueError as error:
            raise invalid(str(error)) from None

    def _authenticate(self, exchange: Exchange, facts: dict[str, Any]) -> str:
        """The workspace of the credential; raises the provider's 401."""
        key = exchange.header(b"x-api-key")
        if not key:
            scheme, _, token = exchange.header(b"authorization").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else ""
        if not key:
            raise Refusal(401, "authentication_error", "x-api-key header is required")
        facts["key_sha256"] = hashlib.sha256(key.encode("latin-1")).hexdigest()
        if self._scenario.keys and key not in self._scenario.keys:
            raise Refusal(401, "authentication_error", "invalid x-api-key")
        found = _WORKSPACE.match(key)
        return found.group(1) if found else "default"

    async def _count_tokens(self, exchange: Exchange, query: str) -> None:
        body = await exchange.read_body()
        facts: dict[str, Any] = {}
        workspace = self._authenticate(exchange, facts)
        check_version(exchange.header(b"anthropic-version"))
        values = decode_body(body)
        find_model(values, self._catalog)
        limits = self._limits.counting(workspace, now_s=self._now_s())
        limits.admit(0, described=f"org: {self._organization()}, token counting", now_s=self._now_s())
        await self._json(exchange, {"input_tokens": sum(block.tokens for block in prompt_blocks(values))})

    async def _list_models(self, exchange: Exchange, query: str) -> None:
        self._authenticate(exchange, {})
        asked = parse_qs(query)
        limit = asked.get("limit", ["20"])[0]
        if not limit.isdigit() or not 1 <= int(limit) <= 1000:
            raise invalid("limit: Input should be between 1 and 1000")
        rows = self._catalog.active()
        ids = [row.served_id for row in rows]
        start, stop = 0, len(rows)
        if (after := asked.get("after_id", [""])[0]) in ids:
            start = ids.index(after) + 1
        if (before := asked.get("before_id", [""])[0]) in ids:
            stop = ids.index(before)
        page = rows[start:stop][: int(limit)]
        first, last = (page[0].served_id, page[-1].served_id) if page else (None, None)
        more = stop - start > len(page)
        await self._json(exchange, {"data": [describe(row) for row in page], "has_more": more, "first_id": first, "last_id": last})

    async def _one_model(self, exchange: Exchange, ident: str) -> None:
        self._authenticate(exchange, {})
        await self._json(exchange, describe(find_model({"model": ident}, self._catalog)))

    async def _empty(self, exchange: Exchange, query: str) -> None:
        await exchange.start(200, b"content-type: text/plain\r\n" + _request_id(self._next_id()), length=0)
        exchange.finish()

    async def _json(self, exchange: Exchange, value: Any) -> None:
        body = msgspec.json.encode(value)
        await exchange.start(200, JSON + _request_id(self._next_id()), length=len(body))
        await exchange.write(body)
        exchange.finish()

    async def _refuse(self, exchange: Exchange, refusal: Refusal, request_id: str, lines: bytes) -> None:
        body = refusal.body(request_id)
        found = (b"content-type: text/html\r\n" if refusal.html else JSON) + _request_id(request_id) + lines
        if refusal.retry_after is not None:
            found += b"retry-after: %d\r\n" % refusal.retry_after
        if refusal.should_retry is not None:
            found += b"x-should-retry: true\r\n" if refusal.should_retry else b"x-should-retry: false\r\n"
        await exchange.start(refusal.status, found, length=len(body), close=refusal.status == 413)
        await exchange.write(body)
        exchange.finish()

    def _identity(self, workspace: str) -> bytes:
        return f"anthropic-organization-id: {self._organization()}\r\nanthropic-workspace-id: wrkspc_{workspace}\r\n".encode()

    def _organization(self) -> str:
        return f"00000000-0000-4000-8000-{self._seed % (1 << 48):012x}"

    def _next_id(self) -> str:
        """A request id for an answer that is no attempt."""
        self._answered += 1
        return mint("req_011C", self._seed, self._answered, b"other")

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


class _Turn:
    """One attempt in the making."""

    __slots__ = ("answer", "attempt", "begun", "delivery", "exchange", "limits", "wanted")

    def __init__(self, exchange: Exchange, attempt: Attempt) -> None:
        self.exchange = exchange
        self.attempt = attempt
        self.wanted: Directives = PLAIN
        self.answer: Answer | None = None
        self.limits: ClassLimits | None = None
        self.delivery: Delivery | None = None
        self.begun = False
        """Whether work began that is billed even if the client leaves."""

    @property
    def facts(self) -> dict[str, Any]:
        return self.attempt.facts

    def headers(self, clock: Clock) -> bytes:
        """The rate-limit headers, once the limits are known."""
        if self.limits is None:
            return b""
        return self.limits.headers(now_s=clock.monotonic_ns() / 1e9, wall_s=clock.now_us() / 1e6)


def _request_id(ident: str) -> bytes:
    return b"request-id: %s\r\n" % ident.encode()


def _bill(answer: Answer, outcome: Outcome, wanted: Directives) -> Bill:
    return Bill(
        model=answer.model,
        usage=outcome.usage,
        segments=outcome.billed,
        raw=usage_object(outcome, answer, wanted),
        service_tier=answer.service_tier,
        speed=answer.speed,
        inference_geo=answer.inference_geo,
    )


def _betas(exchange: Exchange) -> frozenset[str]:
    return frozenset(
        beta.strip() for name, value in exchange.headers if name == b"anthropic-beta" for beta in value.decode("latin-1").split(",") if beta.strip()
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it accepts connections and leaves signals to us: it must end with exit code 0."""

    def __init__(self, config: uvicorn.Config, *, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by `run`."""
        yield


async def run(simulator: Simulator, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called with the URL once connections are accepted."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    shown, bound = listener.getsockname()[:2]
    config = uvicorn.Config(
        simulator,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, ready=lambda: ready(f"http://[{shown}]:{bound}" if ":" in shown else f"http://{shown}:{bound}"))

    def end() -> None:
        simulator.stop()
        server.should_exit = True

    # What was imported and built lives as long as the process: the collector need not look at it again.
    gc.freeze()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    await server.serve(sockets=[listener])


def ready_line(url: str) -> dict[str, Any]:
    """What is printed when the simulator is ready."""
    return {"ready": True, "role": "simulator", "url": url, "pid": os.getpid()}


def open_journal(path: Path | None, *, sync: bool) -> Journal:
    """The journal at a path; without one nothing is kept."""
    return Journal(path, sync=sync)
