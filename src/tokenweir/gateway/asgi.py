"""The gateway's front: routes, and the one place where failures become answers.

Every route that spends is metered; what Tokenweir does not know how to meter is refused with 501, so nothing passes unmetered. A failure is
translated here once, into the provider's error shape, and says that it is the gateway's. Change together with `wire/faults.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from tokenweir.errors import BodyTooLarge, BodyTooSlow, NotSupported, ShuttingDown, TokenweirError, UpstreamBusy
from tokenweir.gateway.exchange import ClientGone, Exchange, Receive, Send, refuse
from tokenweir.gateway.limits import LimitRoutes
from tokenweir.gateway.messages import Messages
from tokenweir.gateway.passage import Passages
from tokenweir.policies import Network
from tokenweir.telemetry import REQUESTS, exposition, log
from tokenweir.wire.faults import Fault, fault_of

Handler = Callable[[Exchange], Awaitable[None]]

_JSON = [(b"content-type", b"application/json")]
_TEXT = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
_MODELS = b"/v1/models"


class Gateway:
    """The ASGI application of the data plane."""

    def __init__(
        self,
        *,
        messages: Messages,
        limits: LimitRoutes,
        passages: Passages,
        mint_request_id: Callable[[], str],
        ready: Callable[[], str | None],
        trusted_proxies: tuple[Network, ...],
        connections_max: int,
    ) -> None:
        self._messages = messages
        self._passages = passages
        self._mint_request_id = mint_request_id
        self._ready = ready
        self._proxies = trusted_proxies
        self._connections_max = connections_max
        self.stopping = False
        self.connections: Callable[[], int] = lambda: 0
        self._routes: dict[tuple[str, bytes], tuple[str, Handler]] = {
            ("POST", b"/v1/messages"): ("messages", messages.create),
            ("POST", b"/v1/messages/count_tokens"): ("count_tokens", messages.count_tokens),
            ("GET", _MODELS): ("models", messages.models),
            ("GET", b"/api/oauth/usage"): ("limits", limits.own),
            ("GET", b"/internal/limits"): ("limits", limits.everything),
            ("HEAD", b"/"): ("probe", self._empty),
            ("GET", b"/"): ("probe", self._about),
            ("HEAD", b"/api/hello"): ("probe", self._empty),
            ("GET", b"/api/hello"): ("probe", self._about),
            ("GET", b"/healthz"): ("probe", self._healthz),
            ("GET", b"/readyz"): ("probe", self._readyz),
            ("GET", b"/metrics"): ("metrics", self._metrics),
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, whatever happens, with one answer."""
        exchange = Exchange(scope, receive, request_id=self._mint_request_id())
        route, handler = self._route(exchange)
        try:
            if self._proxies:
                exchange.trust_forwarded(self._proxies)
            if self.stopping and route != "probe":
                raise ShuttingDown
            if self.connections() > self._connections_max:
                exchange.close_after()
                raise UpstreamBusy(f"the gateway has {self._connections_max} connections open already")
            await handler(exchange)
        except ClientGone:
            exchange.status = 499
        except TokenweirError as error:
            if isinstance(error, BodyTooLarge | BodyTooSlow):
                exchange.close_after()
            await self._answer_fault(exchange, fault_of(error))
        except Exception as error:
            log(logging.ERROR, "request_failed", request_id=exchange.request_id, error=type(error).__name__)
            logging.getLogger("tokenweir").debug("traceback", exc_info=error)
            await self._answer_fault(exchange, fault_of(TokenweirError("the gateway failed to serve this request; its log says why")))
        _count(route, exchange.status)

    def _route(self, exchange: Exchange) -> tuple[str, Handler]:
        found = self._routes.get((exchange.method, exchange.path))
        if found is not None:
            return found
        if exchange.method == "GET" and exchange.path.startswith(_MODELS + b"/") and _is_one_name(exchange.path[len(_MODELS) + 1 :]):
            return "models", self._messages.models
        return "other", self._not_supported

    async def _answer_fault(self, exchange: Exchange, fault: Fault) -> None:
        """Say what failed, or cut the connection if an answer has begun already."""
        if exchange.gone:
            return
        if exchange.started:
            exchange.cut()
            return
        await refuse(exchange, fault)

    async def _not_supported(self, exchange: Exchange) -> None:
        path = exchange.path[:100].decode("latin-1")
        raise NotSupported(f"{exchange.method} {path} is not served, because the gateway could not meter it")

    async def _empty(self, exchange: Exchange) -> None:
        await exchange.answer(200, [], b"")

    async def _about(self, exchange: Exchange) -> None:
        await exchange.answer(200, _JSON, b'{"service":"tokenweir","documentation":"POST /v1/messages"}')

    async def _healthz(self, exchange: Exchange) -> None:
        await exchange.answer(200, _JSON, b'{"status":"alive"}')

    async def _readyz(self, exchange: Exchange) -> None:
        reason = "shutting down" if self.stopping else self._ready()
        if reason is None:
            await exchange.answer(200, _JSON, b'{"status":"ready"}')
        else:
            await exchange.answer(503, _JSON, b'{"status":"%s"}' % reason.encode("ascii", "replace"))

    async def _metrics(self, exchange: Exchange) -> None:
        """Metrics are for the machine itself; a scraper elsewhere goes through an agent here."""
        if exchange.address not in ("127.0.0.1", "::1") or exchange.header(b"x-forwarded-for") is not None:
            raise NotSupported("metrics are served to this machine only")
        await exchange.answer(200, _TEXT, exposition())


def _is_one_name(name: bytes) -> bool:
    """Whether the rest of a path is one plain model id: nothing that another server could read as a different path."""
    return (
        0 < len(name) <= 256
        and all(byte in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:@[]" for byte in name)
        and b".." not in name
    )


_STATUS_CLASSES = {hundreds: f"{hundreds}xx" for hundreds in range(6)}


def _count(route: str, status: int) -> None:
    REQUESTS.values[route, _STATUS_CLASSES[status // 100]] += 1
