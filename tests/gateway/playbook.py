"""Playbooks: a test of the gateway reads as the protocol trace it tests.

`>>` happens to us (a client posts, the provider answers, somebody leaves), `<<` we must do (journal, forward, send, settle), in exactly this order:

    await (Play() >> Post(stream=True) << Intent() << Forward() >> Provider(START) << Head() << Send(START) >> ClientGone() << CloseUpstream() << ...)

Beneath it is the real application on the real server protocol and the real upstream client, over loopback sockets; only the provider is scripted
and the journal records. What we do is noted where we do it (in front of the socket), so the order in a playbook is the order of our own acts. A play
fails if anything happens that no line expects, if a request is left open, or if a connection to the provider is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
from uvicorn import Config

from metering.limit_desk import Desk
from tokenweir import key_tokens
from tokenweir.app import IdMint, SystemClock, open_rate_card
from tokenweir.errors import JournalFull
from tokenweir.gateway.asgi import Gateway
from tokenweir.gateway.authentication import Authenticator
from tokenweir.gateway.delivery import Courier
from tokenweir.gateway.limits import LimitRoutes
from tokenweir.gateway.messages import Messages
from tokenweir.gateway.passage import Passages
from tokenweir.gateway.relay import Relay
from tokenweir.gateway.server import Connection, GatewayServer
from tokenweir.gateway.upstream import UpstreamClient
from tokenweir.ledger.entries import Intent as IntentRecord
from tokenweir.ledger.entries import Settlement
from tokenweir.limits.limit import Limit
from tokenweir.metering.meter import Meter
from tokenweir.policies import Policy, parse_network
from tokenweir.ports import DirectoryChanges, KeyGrant
from tokenweir.principals import Principal
from tokenweir.settings import GatewaySettings, Settings, UpstreamSettings
from tokenweir.usage import Certainty, Usage

PATIENCE_S = 10
"""How long anything is waited for; what is right happens at once."""
MODEL = "claude-sonnet-4-5"
UPSTREAM_KEY = "sk-ant-the-upstream-credential"
KEY = key_tokens.mint(key_tokens.key_part(b"k" * 32), b"a" * 32)
_PEPPER = b"p" * 32


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields}, separators=(',', ':'))}\n\n".encode()


def message(**changes: Any) -> bytes:
    """An answer in JSON: 25 tokens in, 5 out."""
    whole = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 25, "output_tokens": 5},
    }
    return json.dumps(whole | changes).encode()


START = event(
    "message_start", message={**json.loads(message()), "content": [], "stop_reason": None, "usage": {"input_tokens": 25, "output_tokens": 1}}
)
BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
TEXT = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "hello hello hello hello "})
PING = event("ping")
BLOCK_END = event("content_block_stop", index=0)
DELTA = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7})
STOP = event("message_stop")
EVENTS = (START, BLOCK, PING, TEXT, TEXT, BLOCK_END, DELTA, STOP)
STREAM = b"".join(EVENTS)
EXACT = Usage(uncached_input=25, output=7)
OVERLOADED = event("error", error={"type": "overloaded_error", "message": "Overloaded"})


def fault(error_type: str, **details: str) -> bytes:
    """A refusal of the provider."""
    error: dict[str, Any] = {"type": error_type, "message": "no"}
    return json.dumps({"type": "error", "error": {**error, **({"details": details} if details else {})}, "request_id": "req_up"}).encode()


# The stage: everything around the gateway.


class RecordingJournal:
    """A journal that notes what is appended; full, or slow to become durable, when told so."""

    def __init__(self, note: Callable[[str, object], None]) -> None:
        self._note = note
        self.full = False
        self.synced = asyncio.Event()
        self.synced.set()
        self.records: list[IntentRecord | Settlement] = []

    def append_intent(self, intent: IntentRecord) -> None:
        if self.full:
            raise JournalFull
        self.records.append(intent)
        self._note("intent", intent)

    def append_settlement(self, settlement: Settlement) -> None:
        self.records.append(settlement)
        self._note("settle", settlement)

    async def durable(self) -> None:
        self._note("durable", None)
        await self.synced.wait()

    def unsettled(self) -> list[str]:
        """Attempts whose intents and settlements are not one each."""
        sent = [r.attempt_id for r in self.records if isinstance(r, IntentRecord)]
        ended = [r.attempt_id for r in self.records if isinstance(r, Settlement)]
        return sorted({i for i in sent + ended if sent.count(i) != 1 or ended.count(i) != 1})


@dataclass
class Served:
    """One request, as the provider received it."""

    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        lines = self.head.split(b"\r\n")[1:-2]
        return [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]


class ScriptedProvider:
    """A loopback server that reads requests and leaves the answering to the test, or to `answer`."""

    def __init__(self) -> None:
        self.requests: list[Served] = []
        self.waiting: asyncio.Queue[Served] = asyncio.Queue()
        self.answer: bytes | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**17)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await until(lambda: not self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        served: Served | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
                served = Served(head, await reader.readexactly(int(length[1])) if length else b"", writer)
                self.requests.append(served)
                self.waiting.put_nowait(served)
                if self.answer is not None:
                    writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            if served is not None:
                served.closed.set()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class _WatchedTransport:
    """The client's socket, with notes of what we write to it."""

    def __init__(self, inner: asyncio.Transport, note: Callable[[str, object], None]) -> None:
        self._inner = inner
        self._note = note
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._under_way = False
        self._parser = httptools.HttpResponseParser(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, written: bytes) -> None:
        self._parser.feed_data(written)
        self._inner.write(written)

    def abort(self) -> None:
        if self._under_way:
            self._under_way = False
            self._note("cut", None)
        self._inner.abort()

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._under_way = True
            self._note("head", (self._parser.get_status_code(), self._headers))

    def on_body(self, body: bytes) -> None:
        self._note("send", body)

    def on_message_complete(self) -> None:
        if self._under_way:
            self._under_way = False
            self._note("end", None)


class _WatchedUpstream(UpstreamClient):
    """The real client, with a note of each request in front of its socket."""

    note: Callable[[str, object], None]

    async def acquire(self) -> Any:
        return _WatchedConnection(await super().acquire(), self.note)


class _WatchedConnection:
    def __init__(self, inner: Any, note: Callable[[str, object], None]) -> None:
        self._inner = inner
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, method: bytes, target: bytes, headers: Any, body: bytes) -> None:
        self._note("forward", (method, target, headers, body))
        self._inner.send(method, target, headers, body)


PRINCIPAL = Principal("org", "team_red", "key_1", "Acme", "red", "ci", tags=("night",))
CONTROL_TOKEN = "of-this-run"


class _Directory:
    """One key, that may do everything."""

    pepper = _PEPPER

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def changes_since(self, revision: int) -> DirectoryChanges:
        grant = KeyGrant(key_tokens.digest(KEY, _PEPPER), PRINCIPAL, self._policy)
        return DirectoryChanges(1, grants=(grant,))

    def upstream_key(self, credential: object) -> str:
        return UPSTREAM_KEY


class Stage:
    """A whole gateway with its surroundings; `noted` is what it did that no line of the play has expected yet."""

    def __init__(
        self, gateway: dict[str, Any], upstream: dict[str, Any], *, strict: bool, policy: Policy, loud: bool, limits: Sequence[Limit] = ()
    ) -> None:
        self.settings = GatewaySettings(**gateway)
        self._upstream_settings = upstream
        self._strict = strict
        self._policy = policy
        self.desk = Desk(*limits, clock=SystemClock())
        """The limits, counted in memory."""
        self._loud = loud
        self._noted: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.journal = RecordingJournal(self.note)
        self.provider = ScriptedProvider()
        self.client: socket.socket | None = None
        self.others: list[socket.socket] = []
        self.served: Served | None = None

    def note(self, kind: str, value: object) -> None:
        if self._loud:
            self._noted.put_nowait((kind, value))

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[Stage]:
        clock, mint = SystemClock(), IdMint()
        self.card = open_rate_card(Settings())
        self.provider_port = await self.provider.start()
        up = UpstreamSettings(**{"base_url": f"http://127.0.0.1:{self.provider_port}", **self._upstream_settings})
        self.upstream = _WatchedUpstream(up, environment={}, clock=clock)
        self.upstream.note = self.note
        self.passages = Passages(self.settings)
        directory = _Directory(self._policy)
        self.authenticator = Authenticator(directory, directory, clock)  # type: ignore[arg-type]
        self.meter = Meter(journal=self.journal, card=self.card, clock=clock, mint=mint, limiter=self.desk.limiter)
        journal: Any = self.journal
        self.gateway = Gateway(
            messages=Messages(
                authenticator=self.authenticator,
                meter=self.meter,
                card=self.card,
                courier=Courier(upstream=self.upstream, journal=journal, settings=up, clock=clock, strict=self._strict),
                relay=Relay(journal=journal, strict=self._strict),
                passages=self.passages,
                body_bytes_max=self.settings.body_bytes_max,
            ),
            limits=LimitRoutes(
                authenticator=self.authenticator,
                standings=self.desk.standings,
                waits=self.desk.room.report,
                control_token=CONTROL_TOKEN,
                clock=clock,
            ),
            passages=self.passages,
            mint_request_id=lambda: f"req_tw_{mint(clock.now_us())}",
            ready=lambda: None,
            trusted_proxies=tuple(map(parse_network, self.settings.trusted_proxies)),
            connections_max=self.settings.connections_max,
        )
        await self.authenticator.load()
        await self.upstream.start()
        await self._listen(lambda: f"req_tw_{mint(clock.now_us())}")
        try:
            yield self
        finally:
            for client in (self.client, *self.others):
                if client is not None:
                    client.close()
            self._server.end()
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]
            await until(lambda: not self._server.server_state.connections and not self._server.server_state.tasks)
            await self.upstream.close()
            self.desk.close()
            await self.provider.stop()
            await until(lambda: self.upstream.active == 0)
            self.authenticator.close()

    async def _listen(self, mint_request_id: Callable[[], str]) -> None:
        stage = self

        class WatchedServerConnection(Connection):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(_WatchedTransport(transport, stage.note) if stage._loud else transport)

        WatchedServerConnection.bounds = self.settings
        WatchedServerConnection.mint_request_id = staticmethod(mint_request_id)
        config = Config(
            self.gateway, http=WatchedServerConnection, loop="none", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=max(1, self.settings.keep_alive_timeout_ms // 1000),
        )  # fmt: skip
        config.load()
        self._server = StageServer(
            config,
            on_stopping=lambda: setattr(self.gateway, "stopping", True),
            end_streams=self.passages.end_all,
            grace_ms=self.settings.shutdown_timeout_ms,
        )
        self._server.lifespan = config.lifespan_class(config)
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = listener.getsockname()[1]
        await self._server.startup(sockets=[listener])
        self.gateway.connections = lambda: len(self._server.server_state.connections)

    @property
    def server(self) -> StageServer:
        return self._server

    async def connect(self, *, receive_bytes: int | None = None) -> socket.socket:
        """A client's socket, non-blocking."""
        client = socket.socket()
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        return client

    async def next(self, kind: str) -> Any:
        """What we did next, which must be of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            found, value = await self._noted.get()
        assert found == kind, f"expected {kind}, and the gateway did: {found} {_short(value)}"
        return value

    def peek(self) -> str:
        """The kind of what we did next and nobody has looked at; empty if nothing."""
        return self._noted._queue[0][0] if self._noted.qsize() else ""  # type: ignore[attr-defined]

    async def at_rest(self) -> None:
        """Wait until no request is under way; then nothing may have happened that was not expected."""
        await until(lambda: not len(self.passages) and not self._server.server_state.tasks)
        assert not self._noted.qsize(), f"nobody expected: {[(k, _short(v)) for k, v in self._noted._queue]}"  # type: ignore[attr-defined]
        assert self.journal.unsettled() == []
        await until(lambda: self.upstream.active == 0)
        assert self.passages.draining == 0


class StageServer(GatewayServer):
    """The real server, which a test can end at once."""

    def end(self) -> None:
        for server in self.servers:
            server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, by letting the loop turn."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  what is waited for has no event of its own
            await asyncio.sleep(0.001)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "…"


# The play.


class Line:
    """One line of a play."""

    async def perform(self, stage: Stage) -> None:
        raise NotImplementedError


class Play:
    """A screenplay; awaiting it performs it."""

    def __init__(
        self,
        gateway: dict[str, Any] | None = None,
        upstream: dict[str, Any] | None = None,
        *,
        strict: bool = False,
        policy: Policy | None = None,
        limits: Sequence[Limit] = (),
    ) -> None:
        self._make: Callable[[], Stage] = lambda: Stage(
            gateway or {}, upstream or {}, strict=strict, policy=policy or Policy(), loud=True, limits=limits
        )
        self._lines: list[tuple[str, Line]] = []

    def __rshift__(self, happens: Line) -> Play:
        self._lines.append((">>", happens))
        return self

    def __lshift__(self, expected: Line) -> Play:
        self._lines.append(("<<", expected))
        return self

    def __await__(self) -> Generator[Any, None, Stage]:
        return self._perform().__await__()

    async def _perform(self) -> Stage:
        async with self._make().run() as stage:
            for no, (sign, line) in enumerate(self._lines):
                try:
                    await line.perform(stage)
                except (AssertionError, TimeoutError) as error:
                    played = "\n".join(f"    {s} {_short(one)}" for s, one in self._lines[:no])
                    raise AssertionError(
                        f"\n{played}\n  ! {sign} {_short(line)}\n{error or 'did not happen'}; next: {stage.peek() or 'nothing'}"
                    ) from error
            await stage.at_rest()
            return stage


# What happens to us.


@dataclass
class Post(Line):
    """A client sends a request on a connection of its own."""

    path: str = "/v1/messages"
    stream: bool = False
    body: bytes | None = None
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = (("x-api-key", KEY),)

    async def perform(self, stage: Stage) -> None:
        body = self.body
        if body is None:
            wanted = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], "stream": self.stream}
            body = json.dumps(wanted).encode() if self.method == "POST" else b""
        if stage.client is not None:
            stage.client.close()
        stage.client = await stage.connect()
        lines = [f"{self.method} {self.path} HTTP/1.1", "host: gateway", *(f"{n}: {v}" for n, v in self.headers), f"content-length: {len(body)}"]
        await asyncio.get_running_loop().sock_sendall(stage.client, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)


@dataclass
class ClientGone(Line):
    """The client closes its connection, by FIN or by RST."""

    by: str = "fin"

    async def perform(self, stage: Stage) -> None:
        assert stage.client is not None
        if self.by == "rst":
            stage.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stage.client.close()
        stage.client = None
        await until(lambda: not stage.server.server_state.connections)


@dataclass
class Opens(Line):
    """The provider begins an answer of unknown length; by default an event stream."""

    content_type: str = "text/event-stream; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()

    async def perform(self, stage: Stage) -> None:
        assert stage.served is not None
        lines = ["HTTP/1.1 200 OK", "transfer-encoding: chunked", f"content-type: {self.content_type}", "request-id: req_up"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        stage.served.writer.write("\r\n".join([*lines, "", ""]).encode())
        await stage.served.writer.drain()


@dataclass
class Provider(Line):
    """The provider sends a piece of an answer that it has opened."""

    piece: bytes

    async def perform(self, stage: Stage) -> None:
        assert stage.served is not None
        stage.served.writer.write(b"%x\r\n%b\r\n" % (len(self.piece), self.piece))
        with contextlib.suppress(ConnectionError):
            await stage.served.writer.drain()


class Ends(Line):
    """The provider's answer is complete."""

    async def perform(self, stage: Stage) -> None:
        assert stage.served is not None
        stage.served.writer.write(b"0\r\n\r\n")


@dataclass
class Answers(Line):
    """The provider answers at once, with a stated length."""

    status: int = 200
    body: bytes = field(default_factory=message)
    headers: tuple[tuple[str, str], ...] = ()
    sent: int | None = None
    """How much of the body is sent, if not all."""

    async def perform(self, stage: Stage) -> None:
        assert stage.served is not None
        lines = [f"HTTP/1.1 {self.status} X", "content-type: application/json", "request-id: req_up", f"content-length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        stage.served.writer.write("\r\n".join([*lines, "", ""]).encode() + self.body[: self.sent])


class ProviderCuts(Line):
    """The provider closes the connection."""

    async def perform(self, stage: Stage) -> None:
        assert stage.served is not None
        stage.served.writer.close()


class Deadline(Line):
    """The deadline of the shutdown passes."""

    async def perform(self, stage: Stage) -> None:
        stage.gateway.stopping = True
        stage.passages.end_all()


class Synced(Line):
    """The disk has what was journaled."""

    async def perform(self, stage: Stage) -> None:
        stage.journal.synced.set()


@dataclass
class Does(Line):
    """Anything else that happens, as code."""

    act: Callable[[Stage], Any]

    async def perform(self, stage: Stage) -> None:
        result = self.act(stage)
        if asyncio.iscoroutine(result):
            await result


# What we must do.


@dataclass
class Intent(Line):
    """Journal that an attempt will be sent."""

    no: int = 1

    async def perform(self, stage: Stage) -> None:
        intent = await stage.next("intent")
        assert intent.attempt_no == self.no
        assert intent.ceiling_nanos > 0


@dataclass
class Forward(Line):
    """Send the request to the provider, with our credential and not the client's."""

    target: bytes = b"/v1/messages"

    async def perform(self, stage: Stage) -> None:
        _, target, headers, _ = await stage.next("forward")
        assert target == self.target
        assert (b"x-api-key", UPSTREAM_KEY.encode()) in headers
        assert KEY.encode() not in b"".join(value for _, value in headers)
        async with asyncio.timeout(PATIENCE_S):
            stage.served = await stage.provider.waiting.get()


@dataclass
class Head(Line):
    """Begin to answer the client."""

    status: int = 200
    headers: dict[str, str | None] = field(default_factory=dict)
    """Headers that must be there; with None, that must not."""

    async def perform(self, stage: Stage) -> None:
        status, headers = await stage.next("head")
        found = {name.decode(): value.decode() for name, value in headers}
        assert status == self.status, found
        assert found["request-id"].startswith("req_tw_")
        for name, value in self.headers.items():
            assert found.get(name) == value, found


@dataclass
class Send(Line):
    """Send exactly these bytes of the answer, in whatever pieces."""

    body: bytes

    async def perform(self, stage: Stage) -> None:
        sent = b""
        while sent != self.body:
            sent += await stage.next("send")
            assert self.body.startswith(sent), f"sent {_short(sent)}"


class Done(Line):
    """End the answer as complete."""

    async def perform(self, stage: Stage) -> None:
        await stage.next("end")


class Cut(Line):
    """Break the client's connection off, so that nobody takes what came for a complete answer."""

    async def perform(self, stage: Stage) -> None:
        await stage.next("cut")


@dataclass
class ErrorEvent(Line):
    """End a stream with an error event that says it is ours."""

    error_type: str = "api_error"

    async def perform(self, stage: Stage) -> None:
        sent = await stage.next("send")
        name, _, rest = sent.partition(b"\ndata: ")
        value = json.loads(rest)
        assert (name, value["error"]["type"]) == (b"event: error", self.error_type), sent
        assert value["error"]["message"].startswith("Tokenweir: "), sent
        assert value["request_id"].startswith("req_tw_")
        await stage.next("end")


@dataclass
class Refuse(Line):
    """Answer with an error of ours, in the provider's shape."""

    status: int
    error_type: str
    headers: dict[str, str | None] = field(default_factory=dict)

    async def perform(self, stage: Stage) -> None:
        await Head(self.status, {"content-type": "application/json", **self.headers}).perform(stage)
        body = b""
        while stage.peek() == "send" or not body:
            body += await stage.next("send")
        await stage.next("end")
        value = json.loads(body)
        assert value["type"] == "error"
        assert value["error"]["type"] == self.error_type, value
        assert value["error"]["message"].startswith("Tokenweir: "), value
        assert value["request_id"].startswith("req_tw_")


class CloseUpstream(Line):
    """Close the connection to the provider, so that it stops working (and billing)."""

    async def perform(self, stage: Stage) -> None:
        assert stage.served is not None
        async with asyncio.timeout(PATIENCE_S):
            await stage.served.closed.wait()


@dataclass
class Settle(Line):
    """Journal how the attempt ended; what is given must hold."""

    certainty: Certainty
    usage: Usage | None = None
    cut: str = ""
    status: int | None = None
    error_type: str | None = None

    async def perform(self, stage: Stage) -> None:
        settlement = await stage.next("settle")
        intent = next(r for r in stage.journal.records if isinstance(r, IntentRecord) and r.attempt_id == settlement.attempt_id)
        assert (settlement.certainty, settlement.cut) == (self.certainty, self.cut), settlement
        if self.certainty is Certainty.CEILING:
            assert (settlement.usage, settlement.cost_nanos) == (intent.ceiling, intent.ceiling_nanos)
        if self.certainty is Certainty.NONE:
            assert (settlement.usage, settlement.cost_nanos) == (Usage(), 0)
        assert settlement.cost_nanos <= intent.ceiling_nanos
        for name in ("usage", "status", "error_type"):
            wanted = getattr(self, name)
            assert wanted is None or getattr(settlement, name) == wanted, settlement


class Sync(Line):
    """Wait for the disk."""

    async def perform(self, stage: Stage) -> None:
        await stage.next("durable")


class Nothing(Line):
    """Do nothing now, until something else happens."""

    async def perform(self, stage: Stage) -> None:
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not stage.peek()
