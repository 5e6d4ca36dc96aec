"""The receiver's front: OTLP over HTTP, in JSON or Protocol Buffers.

The rules it protects: nobody is heard without a key of ours; what a body may cost is bounded before it is read (its bytes, its bytes unpacked, and those
of all bodies at once); a failure that may pass is answered so that the exporter tries again, any other so that it does not; an answer has the form of
the request. Change together with `booking.py` and docs/TELEMETRY-RECEIVER.md.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from tokenweir.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, NotSupported, ShuttingDown, TokenweirError
from tokenweir.gateway.authentication import Authenticator
from tokenweir.gateway.exchange import ClientGone, Exchange, Receive, Send
from tokenweir.policies import Network
from tokenweir.principals import Principal
from tokenweir.receiver.booking import TelemetryBooks
from tokenweir.telemetry import TELEMETRY_REQUESTS, exposition, log
from tokenweir.wire.otlp import failure, response
from tokenweir.wire.telemetry import read_logs, read_metrics

IN_FLIGHT_BODIES_MAX: Final = 4
"""Whole bodies of the largest size that may be held at once; beyond it exporters are asked to come back."""
RETRY_AFTER_S: Final = 5
_JSON: Final = b"application/json"
_PROTOBUF: Final = b"application/x-protobuf"
_TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"
_SIGNALS: Final = {b"/v1/logs": "logs", b"/v1/metrics": "metrics", b"/v1/traces": "traces"}
_CODES: Final = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 408: 4, 413: 8, 415: 3, 503: 14}
"""Status codes of gRPC, which OTLP has in the body of a failure."""


class Receiver:
    """The ASGI application of the receiver."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        books: TelemetryBooks,
        body_bytes_max: int,
        mint_request_id: Callable[[], str],
        trusted_proxies: tuple[Network, ...] = (),
    ) -> None:
        self._authenticator = authenticator
        self._books = books
        self._body_bytes_max = body_bytes_max
        self._mint_request_id = mint_request_id
        self._proxies = trusted_proxies
        self._held_bytes = 0
        self.stopping = False
        # One thread: bodies are read and booked one after the other, off the event loop; the others wait within the bound above.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="booking")

    def close(self) -> None:
        """Book what has been taken, then let the thread end."""
        self._thread.shutdown(wait=True)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, whatever happens, with one answer."""
        exchange = Exchange(scope, receive, request_id=self._mint_request_id())
        signal = _SIGNALS.get(exchange.path, "")
        protobuf = (exchange.header(b"content-type") or b"").startswith(_PROTOBUF)
        try:
            if self._proxies:
                exchange.trust_forwarded(self._proxies)
            if signal:
                await self._take(exchange, signal, protobuf=protobuf)
            else:
                await self._other(exchange)
        except ClientGone:
            exchange.status = 499
        except TokenweirError as error:
            if isinstance(error, BodyTooLarge | BodyTooSlow):
                exchange.close_after()
            await self._refuse(exchange, _status_of(error), error.message, protobuf=protobuf)
        except Exception as error:
            log(logging.ERROR, "request_failed", request_id=exchange.request_id, error=type(error).__name__)
            logging.getLogger("tokenweir").debug("traceback", exc_info=error)
            await self._refuse(exchange, 500, "the receiver failed to take this export; its log says why", protobuf=protobuf)
        TELEMETRY_REQUESTS.labels(signal or "other", f"{exchange.status // 100}xx").inc()

    async def _take(self, exchange: Exchange, signal: str, *, protobuf: bool) -> None:
        if exchange.method != "POST":
            raise NotSupported(f"{exchange.method} is not for this route; exporters POST to it")
        if self.stopping:
            raise ShuttingDown("the receiver is shutting down; try again")
        grant = await self._authenticator.authenticate(exchange.headers, address=exchange.address)
        kind = (exchange.header(b"content-type") or b"").split(b";")[0].strip().lower()
        if kind not in (_JSON, _PROTOBUF):
            raise _UnknownKind("content-type must be application/json or application/x-protobuf: set OTEL_EXPORTER_OTLP_PROTOCOL=http/json")
        body_bytes = self._hold(exchange)
        try:
            body = await self._body(exchange)
            work = partial(self._read_and_book, signal, body, grant.principal, protobuf)
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._held_bytes -= body_bytes
        await exchange.answer(200, [(b"content-type", _PROTOBUF if protobuf else _JSON)], answer)

    def _hold(self, exchange: Exchange) -> int:
        """Count the body among those that are held; raises _Busy if they are too many."""
        stated = exchange.header(b"content-length")
        unpacked = exchange.header(b"content-encoding") is not None or stated is None
        body_bytes = self._body_bytes_max if unpacked else min(int(stated or b"0"), self._body_bytes_max)
        if self._held_bytes + body_bytes > IN_FLIGHT_BODIES_MAX * self._body_bytes_max:
            raise _Busy("the receiver is busy; try again")
        self._held_bytes += body_bytes
        return body_bytes

    async def _body(self, exchange: Exchange) -> bytes:
        packed = [value.strip().lower() for name, value in exchange.headers if name == b"content-encoding"]
        exchange.headers = [(name, value) for name, value in exchange.headers if name != b"content-encoding"]
        body = await exchange.body(self._body_bytes_max)
        if packed in ([], [b"identity"]):
            return body
        if packed != [b"gzip"]:
            raise _UnknownKind("content-encoding may be gzip only")
        return await asyncio.get_running_loop().run_in_executor(self._thread, _unpack, body, self._body_bytes_max)

    def _read_and_book(self, signal: str, body: bytes, principal: Principal, protobuf: bool) -> bytes:
        """Runs in the booking thread. Spans are accepted, so that exporters are content, and dropped: nothing here needs them."""
        if signal == "traces":
            return response(signal, refused=0, problem="", protobuf=protobuf)
        try:
            reading = (read_logs if signal == "logs" else read_metrics)(body, protobuf=protobuf)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        if signal == "logs":
            self._books.take_logs(reading, principal)
        else:
            self._books.take_metrics(reading, principal)
        return response(signal, refused=reading.refused, problem=reading.problem, protobuf=protobuf)

    async def _other(self, exchange: Exchange) -> None:
        """What is not OTLP: whether the receiver lives, and its metrics for the machine itself."""
        local = exchange.address in ("127.0.0.1", "::1") and exchange.header(b"x-forwarded-for") is None
        if exchange.method == "GET" and exchange.path == b"/healthz":
            await exchange.answer(200, [(b"content-type", _JSON)], b'{"status":"alive"}')
        elif exchange.method == "GET" and exchange.path == b"/readyz":
            ready = self._authenticator.ready and not self.stopping
            await exchange.answer(200 if ready else 503, [(b"content-type", _JSON)], b'{"status":"ready"}' if ready else b'{"status":"not ready"}')
        elif exchange.method == "GET" and exchange.path == b"/metrics" and local:
            await exchange.answer(200, [(b"content-type", _TEXT)], exposition())
        else:
            raise NotSupported("this is the telemetry receiver: it serves POST /v1/logs, /v1/metrics and /v1/traces")

    async def _refuse(self, exchange: Exchange, status: int, message: str, *, protobuf: bool) -> None:
        if exchange.gone or exchange.started:
            return
        headers = [(b"content-type", _PROTOBUF if protobuf else _JSON)]
        if status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        await exchange.answer(status, headers, failure(_CODES.get(status, 13), message, protobuf=protobuf))


class _UnknownKind(InvalidRequest):
    """The body is of a kind that is not understood."""

    status_hint = 415


class _Busy(TokenweirError):
    """Too much is being taken at once."""

    status_hint = 503


def _status_of(error: TokenweirError) -> int:
    """OTLP exporters try again on 503, not on the statuses that the provider's clients know."""
    return {501: 404, 529: 503}.get(error.status_hint, error.status_hint)


def _unpack(body: bytes, bytes_max: int) -> bytes:
    """The body of a gzip stream, which may not become larger than a plain one may be."""
    decoder = zlib.decompressobj(wbits=31)
    try:
        plain = decoder.decompress(body, bytes_max + 1)
    except zlib.error:
        raise InvalidRequest("the body is not gzip") from None
    if len(plain) > bytes_max:
        raise BodyTooLarge(f"the request body is larger than {bytes_max} bytes once it is unpacked")
    if not decoder.eof or decoder.unused_data:
        raise InvalidRequest("the body is not one whole gzip stream")
    return plain
