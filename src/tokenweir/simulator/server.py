"""The simulated API as an application: routes, and one attempt from its first byte to its line in the journal.

What is asked is decided by `intake` and `directives`, what is answered by `composition`, how it goes out by `delivery`; this module joins them and makes
sure that an attempt ends exactly once. Batches have routes of their own in `batch_routes`, the process around it all is `process`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from tokenweir.ports import Clock
from tokenweir.pricing.rate_card import RateCard
from tokenweir.simulator.batch_routes import ROOT, BatchRoutes
from tokenweir.simulator.catalog import describe
from tokenweir.simulator.composition import Answer, Outcome, compose
from tokenweir.simulator.connection import Ended, Exchange
from tokenweir.simulator.delivery import Delivery
from tokenweir.simulator.directives import PLAIN, Directives, header_directives
from tokenweir.simulator.intake import Ask, body_directives, check_version, decode_body, find_model, prompt_blocks, read_ask
from tokenweir.simulator.paging import list_page
from tokenweir.simulator.rate_limits import ClassLimits
from tokenweir.simulator.refusals import Refusal, invalid
from tokenweir.simulator.replies import request_id_line, send_empty, send_json, send_refusal
from tokenweir.simulator.scenario import Occasion, Scenario
from tokenweir.simulator.stream import bill_of
from tokenweir.simulator.truth import Attempt, Journal
from tokenweir.simulator.world import World, asked_refusal, read_betas

_LOOPBACK = ("127.0.0.1", "::1")
_ADVANCE_MS_MAX = 400 * 86_400_000


class Simulator:
    """The application."""

    def __init__(self, *, scenario: Scenario, seed: int, card: RateCard, clock: Clock, journal: Journal, begins: Journal | None = None) -> None:
        self._world = World(scenario=scenario, seed=seed, card=card, clock=clock, journal=journal, begins=begins)
        self._batches = BatchRoutes(self._world)
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
            elif path == ROOT or path.startswith(f"{ROOT}/"):
                await self._batch(exchange, method, query)
            elif path.startswith("/sim/") and (scope["client"] or ("",))[0] in _LOOPBACK:
                await self._own_route(exchange, method, query)
            elif (route := self._routes.get((method, path))) is not None:
                await route(exchange, query)
            elif method == "GET" and path.startswith("/v1/models/"):
                await self._one_model(exchange, path.removeprefix("/v1/models/"))
            elif any(known == path for _, known in self._routes) or path == "/v1/messages":
                raise Refusal(405, "invalid_request_error", "Method Not Allowed")
            else:
                raise Refusal(404, "not_found_error", "Not found")
        except Refusal as refusal:
            with contextlib.suppress(Ended):
                await send_refusal(exchange, refusal, self._world.next_id())
        except Ended as ended:
            if ended.outcome != "cut":
                exchange.abandon()

    def stop(self) -> None:
        """End every answer that is under way; no new one is begun."""
        self._stopping = True
        self._batches.stop()
        for exchange in list(self._open):
            exchange.stop()

    def state(self) -> dict[str, Any]:
        """Counters for tests."""
        return {
            "attempts": self._world.attempts,
            "open": len(self._open),
            "open_streams": sum(self._open.values()),
            "outcomes": dict(self._world.outcomes),
            "cached_prefixes": len(self._world.cache),
            "batches": self._batches.state(),
            "last_headers": self._last_headers,
            "seed": self._world.seed,
        }

    async def _own_route(self, exchange: Exchange, method: str, query: str) -> None:
        """Routes that the provider does not have, for tests on the same machine."""
        if (method, exchange.path) == ("POST", "/sim/clock"):
            text = parse_qs(query).get("advance_ms", ["0"])[0]
            if not (text.isascii() and text.isdigit()) or int(text) > _ADVANCE_MS_MAX:
                raise invalid(f"advance_ms: Input should be between 0 and {_ADVANCE_MS_MAX}")
            self._world.advance(int(text) * 1_000)
            await self._json(exchange, {"now_us": self._world.now_us()})
        elif (method, exchange.path) == ("GET", "/sim/state"):
            await self._json(exchange, self.state())
        else:
            raise Refusal(404, "not_found_error", "Not found")

    async def _batch(self, exchange: Exchange, method: str, query: str) -> None:
        """One request on a route of batches; it ends with the simulator like an attempt does, but has no line in the journal."""
        self._open[exchange] = False
        if self._stopping:
            exchange.stopping = True
        try:
            await self._batches.answer(exchange, method, query)
        finally:
            del self._open[exchange]

    async def _message(self, exchange: Exchange) -> None:
        """One attempt: whatever happens, its line is written once."""
        attempt = self._world.next_attempt(self._world.now_us())
        self._last_headers = sorted({name.decode("latin-1") for name, _ in exchange.headers})
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
                await send_refusal(exchange, refusal, attempt.request_id, turn.headers(self._world))
        except Ended as ended:
            self._end(turn, ended.outcome, turn.delivery.outcome() if turn.begun and turn.delivery else None)
            if not exchange.client_gone and ended.outcome != "cut":
                exchange.abandon()
        finally:
            self._end(turn, "broken", None)
            del self._open[exchange]

    async def _attempt(self, turn: _Turn) -> None:
        exchange, attempt, world = turn.exchange, turn.attempt, self._world
        body = await exchange.read_body()
        digest = hashlib.sha256(body).digest()
        attempt.body_sha256 = digest.hex()
        if world.begins is not None:
            world.begins.append({"attempt": attempt.number, "request_id": attempt.request_id, "body_sha256": attempt.body_sha256, "event": "begin"})
        attempt.workspace = world.authenticate(exchange, turn.facts)
        values = decode_body(body)
        model, stream = values.get("model"), values.get("stream") is True
        turn.facts["model"] = model if isinstance(model, str) else ""
        turn.facts["stream"] = stream
        self._open[exchange] = stream
        occasion = Occasion(attempt.number, exchange.path, turn.facts["model"], attempt.workspace, stream, exchange.headers)
        wanted = turn.wanted = world.directives(occasion, body_directives(values), header_directives(exchange.headers))
        if wanted is not PLAIN:
            turn.facts["directives"] = msgspec.to_builtins(wanted)
        if wanted.refuse:
            await exchange.pause(wanted.stall_head)
            raise asked_refusal(wanted)
        version = exchange.header(b"anthropic-version")
        check_version(version)
        await self._answer(turn, read_ask(values, world.catalog, version=version, betas=read_betas(exchange)), digest)

    async def _answer(self, turn: _Turn, ask: Ask, digest: bytes) -> None:
        world, workspace, wanted = self._world, turn.attempt.workspace, turn.wanted
        now_s = world.now_s()
        limits = turn.limits = world.limits.limits(workspace, ask.model.limit_class, fast=ask.speed == "fast", now_s=now_s)
        space = f"{workspace}/{ask.model.id}"
        split = world.cache.split(ask.blocks, space=space, settings=ask.cache_settings, minimum=ask.model.cache_minimum, now_s=now_s)
        described = f"org: {world.organization}, model: {ask.model.id}"
        limits.admit(split.prompt - split.read, described=described, now_s=now_s)
        answer = compose(ask, split, wanted, seed=world.seed, attempt=turn.attempt.number, body_digest=digest, prose=world.prose)
        turn.answer = answer

        def began() -> None:
            turn.begun = True
            world.cache.store(split, started_s=now_s)

        def closing(how: str, outcome: Outcome | None, coming: int) -> None:
            self._end(turn, how, outcome, coming=coming)

        turn.begun = True
        turn.delivery = Delivery(turn.exchange, answer, wanted, world.scenario.pace, began=began, closing=closing)
        lines = request_id_line(turn.attempt.request_id) + world.identity(workspace) + turn.headers(world)
        await turn.delivery.send(lines, stream=ask.stream)

    def _end(self, turn: _Turn, how: str, outcome: Outcome | None, *, status: int | None = None, coming: int = 0) -> None:
        """Write the attempt's line, once, and take its output from the limits. `coming` bytes are sent as soon as the line is written."""
        if turn.attempt.ended:
            return
        bill = None
        if outcome is not None and turn.answer is not None:
            bill = bill_of(turn.answer, outcome, turn.wanted)
            turn.facts["stop_reason"] = turn.answer.stop_reason if how in ("complete", "mangled") else ""
            turn.facts["message_id"] = turn.answer.message_id
            if turn.limits is not None:
                turn.limits.output.take(bill.usage.output, self._world.now_s())
        self._world.note(how)
        exchange = turn.exchange
        sent = exchange.status if status is None else status
        turn.attempt.end(how, now_us=self._world.now_us(), status=sent, bytes_sent=exchange.body_sent + coming, bill=bill)

    async def _count_tokens(self, exchange: Exchange, query: str) -> None:
        body = await exchange.read_body()
        workspace = self._world.authenticate(exchange, {})
        check_version(exchange.header(b"anthropic-version"))
        values = decode_body(body)
        find_model(values, self._world.catalog)
        now_s = self._world.now_s()
        limits = self._world.limits.counting(workspace, now_s=now_s)
        limits.admit(0, described=f"org: {self._world.organization}, token counting", now_s=now_s)
        await self._json(exchange, {"input_tokens": sum(block.tokens for block in prompt_blocks(values))})

    async def _list_models(self, exchange: Exchange, query: str) -> None:
        self._world.authenticate(exchange, {})
        await self._json(exchange, list_page(query, self._world.catalog.active(), ident=lambda model: model.served_id, show=describe))

    async def _one_model(self, exchange: Exchange, ident: str) -> None:
        self._world.authenticate(exchange, {})
        await self._json(exchange, describe(find_model({"model": ident}, self._world.catalog)))

    async def _empty(self, exchange: Exchange, query: str) -> None:
        await send_empty(exchange, request_id_line(self._world.next_id()))

    async def _json(self, exchange: Exchange, value: Any) -> None:
        await send_json(exchange, value, request_id_line(self._world.next_id()))


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

    def headers(self, world: World) -> bytes:
        """The rate-limit headers, once the limits are known."""
        if self.limits is None:
            return b""
        return self.limits.headers(now_s=world.now_s(), wall_s=world.now_us() / 1e6)
