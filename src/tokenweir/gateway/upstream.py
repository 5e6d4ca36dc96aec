"""The pool of connections to the provider, and what the rest of the gateway calls.

`acquire()` gives a kept wire if there is one, a new one if there is room, and a place in the queue otherwise. Every wire counts against
`connections_max` from the moment it is dialled to the moment it is closed; a place that becomes free goes to the first in the queue and to nobody else.

Protects: the provider's connection limit and our own memory; no caller overtakes another; nothing is lost when a waiting caller gives up. One
sweeper per pool keeps all deadlines (see upstream_wire.py for why). Redirects are not followed and nothing is retried here: that is for
delivery.py to decide. Change together with `UpstreamSettings`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping

from tokenweir.errors import ShuttingDown, UpstreamBusy, UpstreamUnreachable
from tokenweir.gateway.egress import Egress, choose_proxy, tls_for
from tokenweir.gateway.upstream_connection import ResponseHead, Taken, UpstreamConnection
from tokenweir.gateway.upstream_request import Origin
from tokenweir.gateway.upstream_wire import Wire
from tokenweir.ports import Clock
from tokenweir.settings import UpstreamSettings

__all__ = ["ResponseHead", "Taken", "UpstreamClient", "UpstreamConnection"]

_MS = 1_000_000
LOOKS_PER_DEADLINE = 8
LOOK_S_MIN = 0.005
LOOK_S_MAX = 0.25


class UpstreamClient:
    """A pool of connections to one origin."""

    def __init__(self, settings: UpstreamSettings, *, environment: Mapping[str, str], clock: Clock) -> None:
        """Raises SettingsInvalid if the CA file or the proxy cannot be used."""
        origin = Origin.parse(settings.base_url)
        self.authority = origin.authority.encode("ascii")
        self.base_path = origin.base_path
        self.first_byte_ns = settings.first_byte_timeout_ms * _MS
        self.idle_ns = settings.idle_timeout_ms * _MS
        self.keep_alive_ns = settings.keep_alive_ms * _MS
        self.now_ns = clock.monotonic_ns
        self.connected_total = 0
        """Connections ever made."""
        self._settings = settings
        proxy = choose_proxy(origin, settings.proxy_url, environment)
        self._egress = Egress(origin, proxy=proxy, tls=tls_for(settings.ca_file) if origin.tls else None)
        self._wires: set[Wire] = set()
        self._idle: dict[Wire, None] = {}  # the last one used is taken first: the rest may grow old and be closed
        self._dialling = 0
        self._queue: deque[tuple[asyncio.Future[Wire | None], int]] = deque()  # with the time to give up
        self._closed = False
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def active(self) -> int:
        """Connections that serve an exchange."""
        return len(self._wires) - len(self._idle)

    @property
    def idle(self) -> int:
        """Connections that wait for one."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Callers that wait for a connection."""
        return len(self._queue)

    def __repr__(self) -> str:
        return (
            f"<UpstreamClient {self._egress.origin}{' closed' if self._closed else ''} | Requests: {self.active} active, {self.waiting} waiting | "
            f"Connections: {self.active} active, {self.idle} idle, {self._dialling} dialling, {self.connected_total} ever>"
        )

    async def start(self) -> None:
        """Begin to keep deadlines; without it none would pass."""
        if self._next_look is None and not self._closed:
            self._look()

    async def acquire(self) -> UpstreamConnection:
        """The right to send one request.

        Raises UpstreamUnreachable if no connection could be made (nothing was sent), UpstreamBusy if none became free in time, ShuttingDown after
        `close()`. Every acquired connection must be read to its end or aborted.
        """
        give_up_ns = 0
        while not self._closed:
            if not self._queue:
                while self._idle:
                    wire, _ = self._idle.popitem()
                    if not wire.closed:
                        return wire.open()
                if len(self._wires) + self._dialling < self._settings.connections_max:
                    self._dialling += 1
                    return await self._dial()
            give_up_ns = give_up_ns or self.now_ns() + self._settings.connection_wait_ms * _MS
            granted = await self._wait_in_queue(give_up_ns)
            if granted is None:
                return await self._dial()
            if not granted.closed:
                return granted.open()
        raise ShuttingDown

    async def close(self) -> None:
        """Close idle connections now and the others when their exchange ends; nobody gets a connection any more."""
        self._closed = True
        if self._next_look is not None and not self._wires:
            self._next_look.cancel()
            self._next_look = None
        while self._queue:
            place, _ = self._queue.popleft()
            if not place.done():
                place.set_exception(ShuttingDown())
        closing = list(self._idle)
        for wire in closing:
            wire.close()
        while not all(wire.gone for wire in closing):  # noqa: ASYNC110  the loop closes them within its next turns
            await asyncio.sleep(0)

    # For the wires

    def released(self, wire: Wire) -> None:
        """A wire can serve another exchange: the first in the queue has it."""
        if self._closed:
            wire.close()
            return
        wire.keep(self.now_ns())
        while self._queue:
            place, _ = self._queue.popleft()
            if not place.done():
                place.set_result(wire)
                return
        self._idle[wire] = None

    def lost(self, wire: Wire) -> None:
        """A wire is closed: the first in the queue may dial another."""
        self._wires.discard(wire)
        self._idle.pop(wire, None)
        self._grant_room()

    # Inside

    def _grant_room(self) -> None:
        while self._queue and len(self._wires) + self._dialling < self._settings.connections_max:
            place, _ = self._queue.popleft()
            if not place.done():
                self._dialling += 1
                place.set_result(None)

    async def _wait_in_queue(self, give_up_ns: int) -> Wire | None:
        """Wait for a wire, or for room to dial one (None); the room is then already counted as ours."""
        place: asyncio.Future[Wire | None] = asyncio.get_running_loop().create_future()
        entry = (place, give_up_ns)
        self._queue.append(entry)
        try:
            return await place
        except asyncio.CancelledError:
            if place.cancelled():
                if entry in self._queue:
                    self._queue.remove(entry)
            elif place.exception() is None:  # granted in the same moment: pass it on
                granted = place.result()
                if granted is None:
                    self._dialling -= 1
                    self._grant_room()
                elif not granted.closed:
                    self.released(granted)
            raise

    async def _dial(self) -> UpstreamConnection:
        """Connect; the caller has counted the room for it."""
        loop = asyncio.get_running_loop()
        made: list[Wire] = []

        def make() -> Wire:
            made.append(Wire(self, loop))
            return made[-1]

        try:
            await self._egress.connect(make, self._settings.connect_timeout_ms)
            wire = made[-1]
            if not wire.closed:
                self._wires.add(wire)
                self.connected_total += 1
        except TimeoutError as error:
            raise UpstreamUnreachable(f"No connection to {self._egress.origin} within {self._settings.connect_timeout_ms} ms.") from error
        except (OSError, ssl.CertificateError) as error:
            raise UpstreamUnreachable(f"No connection to {self._egress.origin}: {_reason(error)}.") from error
        finally:
            self._dialling -= 1
            self._grant_room()
        if wire.closed:
            raise UpstreamUnreachable(f"{self._egress.origin} closed the connection at once.")
        if self._closed:
            wire.close()
            raise ShuttingDown
        return wire.open()

    def _look(self) -> None:
        """Keep all deadlines, and look again soon."""
        if self._closed and not self._wires:
            self._next_look = None
            return
        settings = self._settings
        shortest_ms = min(settings.first_byte_timeout_ms, settings.idle_timeout_ms, settings.keep_alive_ms, settings.connection_wait_ms)
        wait_s = min(max(shortest_ms / 1000 / LOOKS_PER_DEADLINE, LOOK_S_MIN), LOOK_S_MAX)
        self._next_look = asyncio.get_running_loop().call_later(wait_s, self._look)
        self.sweep(self.now_ns())

    def sweep(self, now_ns: int) -> None:
        """End every wait whose time is over. A wire that fails to be swept must not keep the others from it."""
        while self._queue and self._queue[0][1] <= now_ns:
            place, _ = self._queue.popleft()
            if not place.done():
                place.set_exception(UpstreamBusy())
        for wire in tuple(self._wires):
            try:
                wire.sweep(now_ns)
            except Exception as error:
                wire.close()
                asyncio.get_running_loop().call_exception_handler({"message": "a connection to the provider could not be swept", "exception": error})


def _reason(error: Exception) -> str:
    """What went wrong, in the words of the system, without its numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
