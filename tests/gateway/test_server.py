"""The server against hostile clients, over raw sockets: what is not plainly one request is refused, and nobody holds anything open for ever.

Every row of the table says what the client sends, which statuses it gets, and how many requests reach the provider. The connection is closed after
every refusal of the server, because where the next request begins can no longer be known.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import socket
from pathlib import Path

import pytest

from gateway.hostile import AUTH, BODY, CHUNKS, CL, CLOSED, GOOD, HEALTH, KEPT, LENGTH, ROWS, TE, Client, check_ours, get, post
from gateway.playbook import KEY, START, TEXT, UPSTREAM_KEY, Stage, message, until
from tokenweir.gateway import server
from tokenweir.policies import Policy
from tokenweir.usage import Certainty

BOTH_LOOPS = True

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(message()), message())


@contextlib.asynccontextmanager
async def running(policy: Policy | None = None, **settings):
    """A gateway whose provider answers everything at once."""
    stage = Stage(settings, {}, strict=False, policy=policy or Policy(), loud=False)
    async with stage.run():
        stage.provider.answer = ANSWER
        yield stage


@pytest.fixture
def swept(monkeypatch):
    """Deadlines are looked at often."""
    monkeypatch.setattr(server, "_SWEEP_S", 0.01)


@pytest.mark.parametrize("name", ROWS)
async def test_the_table(name):
    sent, statuses, forwarded = ROWS[name]
    async with running() as stage, Client.of(stage.port) as client:
        client.send(sent)
        ids = set()
        for status in statuses:
            answer = await client.answer()
            assert answer is not None
            assert answer[0] == status, answer
            ids.add(answer[1][b"request-id"])
            if status >= 400:
                check_ours(answer)
        assert len(ids) == len(statuses)
        if name in CLOSED or (statuses[-1] in (400, 413) and name not in KEPT):
            await client.closed()
        else:
            client.send(HEALTH)
            answer = await client.answer()
            assert answer is not None
            assert answer[0] == 200
        assert len(stage.provider.requests) == forwarded
        for served in stage.provider.requests:
            assert served.body == BODY
            assert dict(served.headers) == {
                b"host": f"127.0.0.1:{stage.provider_port}".encode(),
                b"anthropic-version": b"2023-06-01",
                b"content-length": b"%d" % len(BODY),
                b"accept-encoding": b"identity",
                b"x-api-key": UPSTREAM_KEY.encode(),
            }
        await until(lambda: not stage.server.server_state.tasks)
        assert stage.journal.unsettled() == []


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[1] and len(row[0]) < 1000])
async def test_the_table_byte_by_byte(name):
    """However the bytes arrive, the answers are the same."""
    sent, statuses, forwarded = ROWS[name]
    async with running() as stage, Client.of(stage.port) as client:
        client.writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(sent)):
            client.send(sent[at : at + 1])
            await asyncio.sleep(0)
        answers = [await client.answer() for _ in statuses]
        assert [answer[0] for answer in answers if answer] == statuses
        assert len(stage.provider.requests) == forwarded


async def test_more_than_a_few_pipelined_requests_are_a_broken_client():
    """A queue without end would be memory for nothing: the connection is cut, and what was being served is settled."""
    async with running() as stage, Client.of(stage.port) as client:
        stage.provider.answer = None
        client.send(GOOD + HEALTH * 2000)
        assert await client.answer() is None
        await until(lambda: not stage.server.server_state.tasks)
        assert stage.journal.unsettled() == []
        assert len(stage.provider.requests) <= 1


async def test_a_request_behind_a_stream_waits_and_its_slow_head_does_not_end_the_stream(swept):
    async with running(header_timeout_ms=30) as stage, Client.of(stage.port) as client:
        stage.provider.answer = None
        client.send(GOOD)
        await until(lambda: bool(stage.provider.requests))
        client.send(b"\r\nGET /healthz")
        looks = count_looks(stage)
        await until(lambda: looks() > 20)
        stage.provider.requests[0].writer.write(ANSWER)
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 200


def count_looks(stage):
    """How often the sweeper has looked since."""
    (connection,) = stage.server.server_state.connections
    inner, looks = connection.sweep, []

    def sweep(now):
        looks.append(now)
        inner(now)

    connection.sweep = sweep
    return lambda: len(looks)


# Size.


@pytest.mark.parametrize("line", [b"a: " + b"b" * 300_000, b"\r\n".join(b"a%d: b" % i for i in range(30_000))], ids=["one line", "many lines"])
@pytest.mark.parametrize("piece", [1_000_000, 1000])
async def test_a_huge_head_is_refused_in_one_packet_and_in_many(line, piece):
    sent = b"POST /v1/messages HTTP/1.1\r\n" + AUTH + line + b"\r\n\r\n"
    async with running() as stage, Client.of(stage.port) as client:
        for at in range(0, len(sent), piece):
            client.send(sent[at : at + piece])
            await asyncio.sleep(0)
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 431
        check_ours(answer)
        await client.closed()


async def test_a_huge_target_is_refused():
    async with running() as stage, Client.of(stage.port) as client:
        client.send(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 431


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("key", [KEY.encode(), b"sk-wrong"], ids=["key", "no key"])
async def test_the_client_of_a_body_that_is_too_large_gets_to_read_the_answer(chunked, key):
    """It sends on, as clients do, and still finds the refusal: a socket closed at once would take the answer with it."""
    body_bytes = 4_000_000
    head = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: " + key + b"\r\n"
    async with running(body_bytes_max=100_000) as stage, Client.of(stage.port) as client:
        client.send(head + (TE if chunked else b"content-length: %d" % body_bytes) + b"\r\n\r\n")
        for _ in range(40):
            client.send(b"186a0\r\n%b\r\n" % (b" " * 100_000) if chunked else b" " * 100_000)
            await client.writer.drain()
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == (413 if key == KEY.encode() else 401)
        check_ours(answer)
        assert answer[1][b"connection"] == b"close"
        await client.closed()


async def test_a_body_of_exactly_the_limit_passes():
    async with running(body_bytes_max=len(BODY)) as stage:
        for sent, status in ((GOOD, 200), (post(TE, body=CHUNKS), 200), (post(b"content-length: %d" % (len(BODY) + 1), body=BODY + b" "), 413)):
            async with Client.of(stage.port) as client:
                client.send(sent)
                answer = await client.answer()
                assert answer is not None
                assert answer[0] == status


# Expectations.


async def test_the_body_of_a_caller_without_a_key_is_not_asked_for():
    async with running() as stage, Client.of(stage.port) as client:
        client.send(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n" + LENGTH + b"\r\n")
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 401
        await client.closed()


async def test_the_body_of_a_known_caller_is_asked_for():
    async with running() as stage, Client.of(stage.port) as client:
        client.send(post(b"expect: 100-continue", CL, body=b""))
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 100
        client.send(BODY)
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 200
        assert len(stage.provider.requests) == 1


# Time.


@pytest.mark.parametrize("sent", [b"P", b"POST /v1/messages HTTP/1.1\r\nx-api-key: a\r\n"])
async def test_a_head_that_does_not_arrive_is_answered_408(swept, sent):
    async with running(header_timeout_ms=30) as stage, Client.of(stage.port) as client:
        client.send(sent)
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 408
        check_ours(answer)
        await client.closed()


async def test_a_head_that_trickles_is_answered_408_too(swept):
    async with running(header_timeout_ms=50) as stage, Client.of(stage.port) as client:

        async def trickle() -> None:
            client.send(b"GET / HTTP/1.1\r\n")
            while True:
                client.send(b"a: b\r\n")
                await asyncio.sleep(0.002)

        trickling = asyncio.ensure_future(trickle())
        answer = await client.answer()
        trickling.cancel()
        assert answer is not None
        assert answer[0] == 408


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_does_not_arrive_is_answered_408(swept, chunked):
    async with running(body_timeout_ms=30) as stage, Client.of(stage.port) as client:
        client.send(post(TE, body=b"5\r\nabc") if chunked else post(CL, body=BODY[:5]))
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 408
        check_ours(answer)
        await client.closed()
        assert stage.provider.requests == []


async def test_a_body_that_trickles_is_answered_408_too(swept):
    async with running(body_timeout_ms=50) as stage, Client.of(stage.port) as client:

        async def trickle() -> None:
            client.send(post(b"content-length: 100000", body=b""))
            while True:
                client.send(b" ")
                await asyncio.sleep(0.002)

        trickling = asyncio.ensure_future(trickle())
        answer = await client.answer()
        trickling.cancel()
        assert answer is not None
        assert answer[0] == 408


async def test_after_a_refusal_a_body_that_trickles_on_is_not_waited_for(swept, monkeypatch):
    """Answered before its body has come, a connection is left open only so long that the answer can be read."""
    monkeypatch.setattr(server, "LINGER_S", 0.05)
    async with running() as stage, Client.of(stage.port) as client:
        client.send(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nx")
        answer = await client.answer()
        assert answer is not None
        assert answer[0] == 401
        async with asyncio.timeout(10):
            while stage.server.server_state.connections:
                client.send(b"x")
                await asyncio.sleep(0.005)


async def test_a_thousand_idle_connections_are_closed_by_their_deadline(swept):
    """Among them, a healthy client is served."""
    enough, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1000, (enough - 200) // 2)
    async with running(header_timeout_ms=300) as stage:
        idle = [await stage.connect() for _ in range(count)]
        async with Client.of(stage.port) as client:
            client.send(HEALTH)
            answer = await client.answer()
            assert answer is not None
            assert answer[0] == 200
        await until(lambda: not stage.server.server_state.connections)
        for one in idle:
            one.close()


async def test_a_kept_connection_is_closed_when_it_is_not_used(swept):
    async with running(keep_alive_timeout_ms=1000) as stage, Client.of(stage.port) as client:
        client.send(HEALTH)
        assert await client.answer() is not None
        await client.closed()


def rss_bytes() -> int:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


async def test_a_client_that_never_reads_a_large_stream_costs_little_and_is_disconnected(swept):
    """60 MB are offered; what is taken is what the sockets hold. Then the write deadline ends it, and what was seen is booked."""
    async with running(write_timeout_ms=300) as stage:
        stage.provider.answer = None
        client = await stage.connect(receive_bytes=4096)
        stage.client = client
        body = BODY[:-1] + b',"stream":true}'
        await asyncio.get_running_loop().sock_sendall(client, post(b"content-length: %d" % len(body), body=body))
        await until(lambda: bool(stage.provider.requests))
        served = stage.provider.requests[0]
        before = rss_bytes()
        served.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + START)
        piece, offered, peak = TEXT * 1000, 0, 0
        with contextlib.suppress(ConnectionError):
            while offered < 60_000_000 and not served.closed.is_set():
                served.writer.write(piece)
                offered += len(piece)
                async with asyncio.timeout(10):
                    await served.writer.drain()
                peak = max(peak, rss_bytes())
                for connection in stage.server.server_state.connections:
                    assert connection.transport.get_write_buffer_size() <= 2 * server.UNSENT_BYTES_MAX
        await until(lambda: not stage.server.server_state.connections and not stage.server.server_state.tasks)
        assert offered < 60_000_000
        assert peak - before < 16_000_000
        settlement = stage.journal.records[1]
        assert (settlement.certainty, settlement.cut) == (Certainty.PARTIAL, "client")


async def test_a_client_that_leaves_a_small_answer_unread_does_not_hold_its_connection_for_ever(swept):
    """Too little is unsent to pause the writer, and closing waits for it: only a look at the buffer finds this client."""
    async with running(write_timeout_ms=50, keep_alive_timeout_ms=1000) as stage:
        client = await stage.connect(receive_bytes=2048)
        stage.client = client
        await until(lambda: bool(stage.server.server_state.connections))
        (connection,) = stage.server.server_state.connections
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while not connection.transport.get_write_buffer_size() and stage.server.server_state.connections:
                await loop.sock_sendall(client, get(b"/nowhere"))
                await asyncio.sleep(0)
        await until(lambda: not stage.server.server_state.connections)


# The end.


async def test_the_shutdown_cuts_off_who_does_not_even_take_the_end_of_his_stream(monkeypatch):
    """After the deadline nothing can hold the process: connections are cut, handlers cancelled, attempts settled."""
    monkeypatch.setattr(server, "LAST_WORDS_S", 0.05)
    async with running(shutdown_timeout_ms=20) as stage, Client.of(stage.port) as client, Client.of(stage.port) as half:
        stage.provider.answer = None
        client.send(GOOD)
        half.send(post(CL, body=b"{"))
        await until(lambda: len(stage.provider.requests) == 1 and len(stage.server.server_state.tasks) == 2)

        async def stuck(*_: object) -> None:
            await asyncio.Event().wait()

        stage.gateway._answer_fault = stuck
        await stage.server.shutdown()
        assert not stage.server.server_state.connections
        assert not stage.server.server_state.tasks
        assert stage.journal.unsettled() == []
