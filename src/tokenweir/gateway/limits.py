"""The routes that tell how limits stand: to a caller about its own, and to this machine's operator about all of them.

The rule it protects: a caller sees what its own key meets and nothing else; everything is told only to who can read the private file that this process
has written beside its database, and so is its operator. Neither costs anything upstream. Change with it: `metering/limit_status.py`, `control.py`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs

import msgspec

from tokenweir.errors import NotSupported
from tokenweir.gateway.authentication import Authenticator
from tokenweir.gateway.exchange import Exchange
from tokenweir.metering.limit_answers import budget_views
from tokenweir.metering.limit_status import LimitStandings
from tokenweir.metering.waiting import LimitWaits
from tokenweir.ports import Clock
from tokenweir.wire.limits import oauth_usage

_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class LimitRoutes:
    """The handlers of `GET /api/oauth/usage` and `GET /internal/limits`."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        standings: LimitStandings,
        waits: Callable[[], Mapping[str, LimitWaits]],
        control_token: str,
        clock: Clock,
    ) -> None:
        self._authenticator = authenticator
        self._standings = standings
        self._waits = waits
        self._expected = b"Bearer " + control_token.encode()
        self._clock = clock

    async def own(self, exchange: Exchange) -> None:
        """`GET /api/oauth/usage`: the caller's own budgets, as Claude Code asks for them."""
        grant = await self._authenticator.authenticate(exchange.headers, address=exchange.address)
        standings = await self._standings.of_caller(grant.principal, now_us=self._clock.now_us())
        await exchange.answer(200, _JSON, oauth_usage(budget_views(standings)))

    async def everything(self, exchange: Exchange) -> None:
        """`GET /internal/limits?limit=ID`: all limits of all seats, for `tokenweir limit status`."""
        if not hmac.compare_digest(exchange.header(b"authorization") or b"", self._expected):
            raise NotSupported(f"GET {exchange.path.decode('latin-1')} is not served")
        asked: Sequence[str] = parse_qs(exchange.query.decode("latin-1")).get("limit", [])
        report = await self._standings.report(self._authenticator.principals(), waits=self._waits(), limit_ids=asked, now_us=self._clock.now_us())
        await exchange.answer(200, _JSON, msgspec.json.encode(report))
