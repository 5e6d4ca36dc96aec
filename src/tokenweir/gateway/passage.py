"""A request on its way: who may end it early, and what that does to the connection upstream.

A passage is ended by its client (policy `cancel`: the upstream connection is closed at once; policy `drain`: the answer is read on, without a
reader, to learn the exact bill), by a limit that ends streams, or by the shutdown of the gateway. Whoever waits for upstream bytes then sees `UpstreamCut`, and settles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, Self

from tokenweir.errors import ShuttingDown
from tokenweir.gateway.exchange import ClientGone, Exchange
from tokenweir.gateway.upstream import UpstreamConnection
from tokenweir.settings import GatewaySettings
from tokenweir.telemetry import CLIENTS_LEFT, OPEN_REQUESTS

EndedBy = Literal["", "client", "shutdown", "limit"]


class Passages:
    """All requests under way in this process."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.drain_policy = settings.on_disconnect == "drain"
        self.drain_timeout_s = settings.drain_timeout_ms / 1000
        self.drains_max = settings.drains_max
        self.draining = 0
        self.stopping = False
        self._open: set[Passage] = set()
        OPEN_REQUESTS.set_function(self._open.__len__)

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, exchange: Exchange, *, metered: bool) -> Passage:
        """A request begins; use the passage as a context manager."""
        return Passage(self, exchange, metered=metered)

    def add(self, passage: Passage) -> None:
        """Count it."""
        self._open.add(passage)

    def remove(self, passage: Passage) -> None:
        """Forget it."""
        self._open.discard(passage)

    def end_all(self) -> None:
        """The deadline of the shutdown has passed: end what is left."""
        self.stopping = True
        for passage in list(self._open):
            passage.shut_down()


class Passage:
    """One request between its client and the provider."""

    __slots__ = ("_all", "_connection", "_draining", "_metered", "_timer", "ended_by", "exchange", "no_room", "on_ended")

    def __init__(self, passages: Passages, exchange: Exchange, *, metered: bool) -> None:
        self._all = passages
        self._connection: UpstreamConnection | None = None
        self._draining = False
        self._metered = metered
        self._timer: asyncio.TimerHandle | None = None
        self.exchange = exchange
        self.ended_by: EndedBy = ""
        self.no_room = ""
        """Why a limit ended it, in a sentence."""
        self.on_ended: Callable[[], object] | None = None
        """What stops the request while it waits for room and has no connection yet."""

    def __enter__(self) -> Self:
        self._all.add(self)
        self.exchange.when_gone(self.client_left)
        # What happened before we could be told: nobody calls again.
        if self._all.stopping:
            self.ended_by = "shutdown"
        elif self.exchange.gone:
            self.ended_by = "client"
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no trace: the upstream connection is back in the pool, or closed."""
        self.exchange.when_gone(None)
        self._all.remove(self)
        self._stop_draining()
        if self._connection is not None and not self._connection.complete:
            self._connection.abort()

    @property
    def cut_by(self) -> str:
        """Who is to blame for a cut: the client, our shutdown, or else the provider."""
        return self.ended_by or "upstream"

    def go_on(self) -> None:
        """Raises ClientGone or ShuttingDown if the request was ended meanwhile."""
        if self.ended_by == "client":
            raise ClientGone
        if self.ended_by == "shutdown":
            raise ShuttingDown

    def take(self, connection: UpstreamConnection) -> None:
        """From now on an early end closes this connection."""
        self._connection = connection
        if self.ended_by:
            connection.abort()

    def client_left(self) -> None:
        """The client has gone."""
        self.ended_by = self.ended_by or "client"
        if self._connection is None:
            self._stop_waiting()
            return
        everything = self._all
        if everything.drain_policy and self._metered and everything.draining < everything.drains_max and not everything.stopping:
            everything.draining += 1
            self._draining = True
            self._timer = asyncio.get_running_loop().call_later(everything.drain_timeout_s, self._connection.abort)
            CLIENTS_LEFT.labels("drain").inc()
        else:
            CLIENTS_LEFT.labels("cancel").inc()
            self._connection.abort()

    def shut_down(self) -> None:
        """The gateway ends."""
        self.ended_by = self.ended_by or "shutdown"
        if self._connection is not None:
            self._connection.abort()
        else:
            self._stop_waiting()

    def out_of_room(self, reason: str) -> None:
        """A limit that ends streams has no more room for this one."""
        if not self.ended_by and self._connection is not None:
            self.ended_by, self.no_room = "limit", reason
            self._connection.abort()

    def _stop_waiting(self) -> None:
        if self.on_ended is not None:
            self.on_ended()

    def _stop_draining(self) -> None:
        if self._draining:
            self._draining = False
            self._all.draining -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
