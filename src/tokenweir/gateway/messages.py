"""The routes that reach the provider: messages, which are metered, and those that cost nothing.

The hot path, from the top: authenticate on the headers, read the body within its bounds, read the few facts we need from it, permit, admit,
deliver, relay. The body is forwarded as it was received; only the credential is ours.
"""

from __future__ import annotations

from tokenweir.errors import InvalidRequest
from tokenweir.gateway.authentication import Authenticator
from tokenweir.gateway.delivery import Courier, Outgoing, Refusal
from tokenweir.gateway.exchange import Exchange
from tokenweir.gateway.passage import Passages
from tokenweir.gateway.relay import Relay
from tokenweir.metering.meter import Meter, Ticket
from tokenweir.policies import permit_model
from tokenweir.ports import KeyGrant
from tokenweir.pricing.rate_card import RateCard
from tokenweir.wire.envelope import read_envelope
from tokenweir.wire.headers import attribution, forward_request_headers


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
        envelope = read_envelope(body)
        self._permit(grant, envelope.model)
        ticket = self._meter.admit(grant.principal, envelope, attribution(exchange.headers), request_id=exchange.request_id)
        with ticket:
            await self._forward(exchange, grant, body, ticket)

    async def count_tokens(self, exchange: Exchange) -> None:
        """`POST /v1/messages/count_tokens`: free, but read as strictly."""
        grant = await self._authenticator.authenticate(exchange.headers, address=exchange.address)
        body = await exchange.body(self._body_bytes_max)
        self._permit(grant, read_envelope(body).model)
        await self._forward(exchange, grant, body, None)

    async def models(self, exchange: Exchange) -> None:
        """`GET /v1/models[/{id}]`: free; has no body."""
        grant = await self._authenticator.authenticate(exchange.headers, address=exchange.address)
        if await exchange.body(0):
            raise InvalidRequest("this route takes no body")
        await self._forward(exchange, grant, b"", None)

    def _permit(self, grant: KeyGrant, model: str) -> None:
        if not grant.policy.models:
            return
        denied = permit_model(grant.policy, model, self._card.resolve(model) or model)
        if denied is not None:
            raise InvalidRequest(denied.message)

    async def _forward(self, exchange: Exchange, grant: KeyGrant, body: bytes, ticket: Ticket | None) -> None:
        credential = self._authenticator.credential_for(grant)
        target = exchange.path + b"?" + exchange.query if exchange.query else exchange.path
        headers = forward_request_headers(exchange.headers)
        headers.append((b"x-api-key", credential.encode("latin-1")))
        outgoing = Outgoing(exchange.method.encode("ascii"), target, headers, body)
        with self._passages.begin(exchange, metered=ticket is not None) as passage:
            result = await self._courier.deliver(passage, outgoing, ticket)
            if isinstance(result, Refusal):
                await self._relay.refusal(passage, result)
            else:
                await self._relay.answer(passage, result, ticket.envelope.model if ticket is not None else "")
