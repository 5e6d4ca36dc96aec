"""The routes that reach the provider: messages, which are metered, and those that cost nothing.

The hot path, from the top: authenticate on the headers, read the body within its bounds, read the few facts we need from it, permit, admit,
deliver, relay. The body is forwarded as it was received; only the credential is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tokenweir.errors import InvalidRequest
from tokenweir.gateway.authentication import Authenticator
from tokenweir.gateway.delivery import Courier, Outgoing, Refusal
from tokenweir.gateway.exchange import Exchange, refuse
from tokenweir.gateway.passage import Passage, Passages
from tokenweir.gateway.relay import Relay
from tokenweir.metering.holding import FLAG_LIMIT_DOWNGRADED
from tokenweir.metering.limit_answers import fault_of_limit
from tokenweir.metering.limiter import LimitDenied
from tokenweir.metering.meter import Meter, Ticket
from tokenweir.policies import permit_model
from tokenweir.ports import KeyGrant
from tokenweir.pricing.rate_card import RateCard
from tokenweir.wire.envelope import read_envelope, with_model
from tokenweir.wire.faults import Fault
from tokenweir.wire.headers import attribution, forward_request_headers

R = TypeVar("R")

DOWNGRADES_MAX = 3
"""How often limits may send one request on to another model."""


class Messages:
    """The handlers of `/v1/messages`, `/v1/messages/count_tokens` and `/v1/models`."""

    def __init__(
        self, *, authenticator: Authenticator, meter: Meter, card: RateCard, courier: Courier, relay: Relay, passages: Passages, body_bytes_max: int
    ) -> None:
        self._authenticator = authenticator
        self._meter = meter
        self._card = card
        self._courier = courier
        self._relay = relay
        self._passages = passages
        self._body_bytes_max = body_bytes_max

    async def create(self, exchange: Exchange) -> None:
        """`POST /v1/messages`: everything that spends comes through here."""
        grant = await self._authenticator.authenticate(exchange.headers, address=exchange.address)
        body = await exchange.body(self._body_bytes_max)
        with self._passages.begin(exchange, metered=True) as passage:
            admitted = await self._admit(passage, grant, body)
            if isinstance(admitted, Fault):
                await refuse(exchange, admitted)
                return
            ticket, body = admitted
            with ticket:
                await self._forward(passage, grant, body, ticket)

    async def _admit(self, passage: Passage, grant: KeyGrant, body: bytes) -> tuple[Ticket, bytes] | Fault:
        """The ticket of a request that its key and its limits let pass, with the body to send: as it came, unless a limit names another model."""
        exchange = passage.exchange
        said = attribution(exchange.headers)
        flags: tuple[str, ...] = ()
        for _ in range(DOWNGRADES_MAX + 1):
            envelope = read_envelope(body)
            self._permit(grant, envelope.model)
            passage.go_on()
            admission = await self._in_time(
                passage,
                self._meter.admit(grant.principal, envelope, said, request_id=exchange.request_id, priority=grant.policy.priority, flags=flags),
            )
            if isinstance(admission, Ticket):
                return admission, body
            if isinstance(admission, LimitDenied):
                return fault_of_limit(admission)
            body = with_model(body, admission.model)
            flags += (f"{FLAG_LIMIT_DOWNGRADED}:{admission.link.limit.limit_id}",)
        raise InvalidRequest("the limits of this key send the request from model to model; tell whoever set them")

    async def _in_time(self, passage: Passage, admission: Coroutine[Any, Any, R]) -> R:
        """Wait for the limits, but no longer than the client does."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        passage.on_ended = task.cancel
        try:
            return await admission
        except asyncio.CancelledError:
            if passage.ended_by:
                task.uncancel()
                passage.go_on()
            raise
        finally:
            passage.on_ended = None

    async def count_tokens(self, exchange: Exchange) -> None:
        """`POST /v1/messages/count_tokens`: free, but read as strictly."""
        grant = await self._authenticator.authenticate(exchange.headers, address=exchange.address)
        body = await exchange.body(self._body_bytes_max)
        self._permit(grant, read_envelope(body).model)
        with self._passages.begin(exchange, metered=False) as passage:
            await self._forward(passage, grant, body, None)

    async def models(self, exchange: Exchange) -> None:
        """`GET /v1/models[/{id}]`: free; has no body."""
        grant = await self._authenticator.authenticate(exchange.headers, address=exchange.address)
        if await exchange.body(0):
            raise InvalidRequest("this route takes no body")
        with self._passages.begin(exchange, metered=False) as passage:
            await self._forward(passage, grant, b"", None)

    def _permit(self, grant: KeyGrant, model: str) -> None:
        if not grant.policy.models:
            return
        denied = permit_model(grant.policy, model, self._card.resolve(model) or model)
        if denied is not None:
            raise InvalidRequest(denied.message)

    async def _forward(self, passage: Passage, grant: KeyGrant, body: bytes, ticket: Ticket | None) -> None:
        exchange = passage.exchange
        credential = self._authenticator.credential_for(grant)
        target = exchange.path + b"?" + exchange.query if exchange.query else exchange.path
        headers = forward_request_headers(exchange.headers)
        headers.append((b"x-api-key", credential.encode("latin-1")))
        outgoing = Outgoing(exchange.method.encode("ascii"), target, headers, body)
        result = await self._courier.deliver(passage, outgoing, ticket)
        if isinstance(result, Refusal):
            await self._relay.refusal(passage, result)
        else:
            await self._relay.answer(passage, result, ticket.envelope.model if ticket is not None else "")
