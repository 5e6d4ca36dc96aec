"""The pool over real sockets: who gets a connection, what a faulty provider looks like, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import time

import pytest

from scripted_upstream import OK, Peer, Provider, SteppedClock, TestAuthority, answering, until
from tokenweir.errors import InvalidRequest, ShuttingDown, UpstreamBusy, UpstreamCut, UpstreamSilent, UpstreamUnreachable
from tokenweir.gateway.upstream import UpstreamClient, UpstreamConnection
from tokenweir.settings import UpstreamSettings

BOTH_LOOPS = True
H11 = b"HTTP/1.1 200 OK\r\n"
CHUNKED = H11 + b"transfer-encoding: chunked\r\n\r\n"
LARGE_BYTES = 32 * 1024 * 1024


class RealClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("authority"))


def pool(provider: Provider | str, clock=None, **settings) -> UpstreamClient:
    url = provider if isinstance(provider, str) else provider.url
    return UpstreamClient(UpstreamSettings(base_url=url, **settings), environment={}, clock=clock or SteppedClock())


def post(connection: UpstreamConnection, body: bytes = b"{}") -> UpstreamConnection:
    connection.send(b"POST", b"/v1/messages", [(b"x-api-key", b"k")], body)
    return connection


async def body_of(connection: UpstreamConnection) -> bytes:
    body = b""
    while chunk := await connection.read():
        body += chunk
    return body


async def whole(connection: UpstreamConnection) -> bytes:
    await connection.head()
    return await body_of(connection)


async def ask(upstream: UpstreamClient, body: bytes = b"{}") -> tuple[int, bytes, bool]:
    connection = post(await upstream.acquire(), body)
    try:
        head = await connection.head()
        return head.status, await body_of(connection), connection.reused
    finally:
        connection.abort()


def line(upstream: UpstreamClient) -> str:
    return repr(upstream).split("| ", 1)[1].rstrip(">")


# Good answers


async def test_an_exchange_leaves_an_idle_connection_that_the_next_one_uses():
    async with Provider(answering(OK)) as provider:
        upstream = pool(provider)
        assert repr(upstream) == (
            f"<UpstreamClient {provider.url} | Requests: 0 active, 0 waiting | Connections: 0 active, 0 idle, 0 dialling, 0 ever>"
        )
        connection = post(await upstream.acquire())
        assert line(upstream) == "Requests: 1 active, 0 waiting | Connections: 1 active, 0 idle, 0 dialling, 1 ever"
        assert (await connection.head()).status == 200
        assert await connection.read() == b"hi"
        assert connection.complete
        assert await connection.read() == b""
        assert line(upstream) == "Requests: 0 active, 0 waiting | Connections: 0 active, 1 idle, 0 dialling, 1 ever"
        assert await ask(upstream) == (200, b"hi", True)
        assert upstream.connected_total == 1
        await upstream.close()
        assert repr(upstream).startswith(f"<UpstreamClient {provider.url} closed | ")


async def test_what_the_provider_gets_is_exactly_one_request():
    seen = []

    async def script(peer: Peer) -> None:
        while request := await peer.request():
            seen.append(request)
            await peer.send(OK)

    async with Provider(script) as provider:
        upstream = pool(provider.url + "/base/")
        connection = await upstream.acquire()
        with pytest.raises(InvalidRequest):
            connection.send(b"POST", b"/v1/messages", [(b"a", b"b\r\n\r\nGET / HTTP/1.1")], b"{}")
        assert not connection.bytes_sent
        connection.send(b"POST", b"/v1/messages?beta=true", [(b"a", b"b")], b'{"x":1}')
        assert await body_of(connection) == b"hi"
        await upstream.close()
    host = b"127.0.0.1:%d" % provider.port
    assert seen == [b'POST /base/v1/messages?beta=true HTTP/1.1\r\nhost: %b\r\ncontent-length: 7\r\na: b\r\n\r\n{"x":1}' % host]


ANSWERS = {
    "length": H11 + b"content-length: 5\r\n\r\nhello",
    "chunks": CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n",
    "one-byte chunks": CHUNKED + b"".join(b"1\r\n%c\r\n" % c for c in b"hello") + b"0\r\n\r\n",
    "informational first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + H11 + b"content-length: 5\r\n\r\nhello",
    "until the end": H11 + b"connection: close\r\n\r\nhello",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
}


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
async def test_answers_come_through_in_one_piece_or_byte_by_byte(name, bytewise):
    text = ANSWERS[name]
    ends = name in ("until the end", "HTTP/1.0")

    async def script(peer: Peer) -> None:
        while await peer.request():
            await (peer.send_bytewise(text) if bytewise else peer.send(text))
            if ends:
                peer.close()
                return

    async with Provider(script) as provider:
        upstream = pool(provider)
        assert [await ask(upstream) for _ in range(2)] == [(200, b"hello", False), (200, b"hello", not ends)]
        await upstream.close()


async def test_bytes_are_handed_on_as_soon_as_they_come():
    step = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for no in range(3):
            await peer.send(b"2\r\n%d;\r\n" % no)
            await step.wait()
            step.clear()
        await peer.send(b"0\r\n\r\n")

    async with Provider(script) as provider:
        upstream = pool(provider)
        connection = post(await upstream.acquire())
        await connection.head()
        for no in range(3):
            assert await connection.read() == b"%d;" % no
            assert not connection.complete
            step.set()
        assert await connection.read() == b""
        await upstream.close()


async def test_redirects_and_refusals_are_handed_up_as_they_are():
    text = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    async with Provider(answering(text, b"HTTP/1.1 529 \r\ncontent-length: 2\r\n\r\n{}")) as provider:
        upstream = pool(provider)
        assert (await ask(upstream))[:2] == (307, b"")
        assert (await ask(upstream))[:2] == (529, b"{}")
        assert len(provider.peers) == 1
        await upstream.close()


async def test_bytes_behind_a_complete_answer_cost_the_connection():
    async with Provider(answering(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")) as provider:
        upstream = pool(provider)
        for _ in range(3):
            assert await ask(upstream) == (200, b"hi", False)
        assert upstream.idle == 0
        await upstream.close()


# Faults before anything was sent


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_refused_connection_is_unreachable_and_leaves_no_trace():
    upstream = pool(f"http://127.0.0.1:{_closed_port()}", connections_max=1)
    for _ in range(3):
        with pytest.raises(UpstreamUnreachable):
            await upstream.acquire()
    assert line(upstream) == "Requests: 0 active, 0 waiting | Connections: 0 active, 0 idle, 0 dialling, 0 ever"
    await upstream.close()


async def test_a_tls_handshake_that_stalls_is_unreachable_within_the_connect_time():
    async def script(peer: Peer) -> None:
        await peer.ended()

    async with Provider(script) as provider:
        upstream = pool(f"https://127.0.0.1:{provider.port}", connect_timeout_ms=50)
        with pytest.raises(UpstreamUnreachable):
            await upstream.acquire()
        assert upstream.active == 0
        await upstream.close()


# Faults afterwards


async def _hang_up(peer: Peer) -> None:
    peer.close()


async def _reset(peer: Peer) -> None:
    peer.reset()


async def _half_close(peer: Peer) -> None:
    peer.half_close()
    await peer.ended()


@pytest.mark.parametrize("end", [_hang_up, _reset, _half_close])
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 2",
        H11,
        H11 + b"content-length: 10\r\n\r\n",
        H11 + b"content-length: 10\r\n\r\n12345",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
    ],
    ids=["nothing", "half a status", "half a head", "no body", "half a body", "half a chunk", "no last chunk"],
)
async def test_an_answer_that_ends_early_is_cut_however_it_ends(said, end):
    async def script(peer: Peer) -> None:
        await peer.request()
        if said:
            await peer.send(said)
        await end(peer)

    async with Provider(script) as provider:
        upstream = pool(provider)
        connection = post(await upstream.acquire())
        with pytest.raises(UpstreamCut) as caught:
            await whole(connection)
        assert not caught.value.stale
        assert not connection.complete
        assert connection.bytes_sent
        assert (upstream.active, upstream.idle) == (0, 0)
        await upstream.close()


async def test_garbage_is_cut():
    async with Provider(answering(b"SSH-2.0-OpenSSH_9.6\r\n")) as provider:
        upstream = pool(provider)
        with pytest.raises(UpstreamCut):
            await ask(upstream)
        await upstream.close()


@pytest.mark.parametrize("said", [b"", H11, CHUNKED + b"2\r\nhi\r\n"], ids=["before the head", "within the head", "within the body"])
async def test_silence_ends_the_exchange_and_the_connection(said):
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)
        assert await peer.ended() == b""
        gone.set()

    async with Provider(script) as provider:
        upstream = pool(provider, RealClock(), first_byte_timeout_ms=60, idle_timeout_ms=60)
        await upstream.start()
        connection = post(await upstream.acquire())
        with pytest.raises(UpstreamSilent):
            await whole(connection)
        await asyncio.wait_for(gone.wait(), 5)
        await upstream.close()


async def test_a_connection_the_provider_closed_while_idle_is_not_used_again():
    closing = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await closing.wait()
        peer.close()

    async with Provider(script) as provider:
        upstream = pool(provider)
        await ask(upstream)
        assert upstream.idle == 1
        closing.set()
        await until(lambda: upstream.idle == 0)
        assert await ask(upstream) == (200, b"hi", False)
        await upstream.close()


@pytest.mark.parametrize("end", [_hang_up, _reset])
async def test_a_connection_that_is_closed_exactly_when_we_send_is_cut_as_stale(end):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.reader.readexactly(1)  # the next request arrives, and is met by a closed door
        await end(peer)

    async with Provider(script) as provider:
        upstream = pool(provider)
        await ask(upstream)
        connection = post(await upstream.acquire())
        with pytest.raises(UpstreamCut) as caught:
            await connection.head()
        assert (connection.reused, caught.value.stale) == (True, True)
        await upstream.close()


async def test_a_connection_that_died_between_acquire_and_send_is_cut_as_stale_with_nothing_sent():
    async with Provider(answering(OK)) as provider:
        upstream = pool(provider)
        await ask(upstream)
        connection = await upstream.acquire()
        provider.peers[0].reset()
        await until(lambda: upstream.active == 0)
        post(connection)
        with pytest.raises(UpstreamCut) as caught:
            await connection.head()
        assert caught.value.stale
        assert not connection.bytes_sent
        await upstream.close()


# Giving up


@pytest.mark.parametrize("said", [b"", CHUNKED + b"2\r\nhi\r\n"])
async def test_abort_is_seen_by_the_provider_and_by_the_reader(said):
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)
        assert await peer.ended() == b""
        gone.set()

    async with Provider(script) as provider:
        upstream = pool(provider)
        connection = post(await upstream.acquire())
        if said:
            await connection.head()
            assert await connection.read() == b"hi"
        waiting = asyncio.ensure_future(connection.read() if said else connection.head())
        await asyncio.sleep(0)
        connection.abort()
        with pytest.raises(UpstreamCut):
            await waiting
        await asyncio.wait_for(gone.wait(), 5)
        assert (upstream.active, upstream.idle) == (0, 0)
        await upstream.close()


async def test_an_acquired_connection_that_is_not_needed_goes_back():
    async with Provider(answering(OK)) as provider:
        upstream = pool(provider)
        (await upstream.acquire()).abort()
        assert (upstream.active, upstream.idle) == (0, 1)
        assert await ask(upstream) == (200, b"hi", True)
        await upstream.close()


# The pool


async def test_the_connections_are_bounded_and_who_waits_is_served_in_order():
    async with Provider(answering(OK)) as provider:
        upstream = pool(provider, connections_max=2)
        held = [await upstream.acquire() for _ in range(2)]
        order: list[int] = []

        async def caller(no: int) -> None:
            connection = await upstream.acquire()
            order.append(no)
            await body_of(post(connection))

        callers = []
        for no in range(6):
            callers.append(asyncio.ensure_future(caller(no)))
            await asyncio.sleep(0)
        assert line(upstream) == "Requests: 2 active, 6 waiting | Connections: 2 active, 0 idle, 0 dialling, 2 ever"
        for connection in held:
            await body_of(post(connection))
        await asyncio.gather(*callers)
        assert order == list(range(6))
        assert len(provider.peers) == 2
        assert line(upstream) == "Requests: 0 active, 0 waiting | Connections: 0 active, 2 idle, 0 dialling, 2 ever"
        await upstream.close()


async def test_a_closed_connection_makes_room_for_the_first_who_waits():
    async with Provider(answering(OK)) as provider:
        upstream = pool(provider, connections_max=1)
        held = post(await upstream.acquire())
        waiting = asyncio.ensure_future(ask(upstream))
        await asyncio.sleep(0)
        held.abort()
        assert await waiting == (200, b"hi", False)
        assert upstream.connected_total == 2
        await upstream.close()


async def test_who_waits_too_long_is_told_that_all_is_busy():
    clock = SteppedClock()
    async with Provider(answering(OK)) as provider:
        upstream = pool(provider, clock, connections_max=1, connection_wait_ms=100)
        held = post(await upstream.acquire())
        waiting = asyncio.ensure_future(upstream.acquire())
        await asyncio.sleep(0)
        upstream.sweep(clock.step_ms(99))
        assert upstream.waiting == 1
        upstream.sweep(clock.step_ms(1))
        with pytest.raises(UpstreamBusy):
            await waiting
        assert upstream.waiting == 0
        assert await body_of(held) == b"hi"
        await upstream.close()


async def test_these_tests_run_on_both_loops(request):
    assert ("uvloop" in request.node.name) == type(asyncio.get_running_loop()).__module__.startswith("uvloop")


async def test_the_sweeper_runs_by_itself():
    async with Provider(answering(OK)) as provider:
        upstream = pool(provider, RealClock(), connections_max=1, connection_wait_ms=30, keep_alive_ms=30)
        await upstream.start()
        held = await upstream.acquire()
        with pytest.raises(UpstreamBusy):
            await upstream.acquire()
        held.abort()  # unused
        assert upstream.idle == 1
        await until(lambda: upstream.idle == 0)
        await upstream.close()


async def test_a_waiting_caller_that_is_cancelled_leaks_nothing_at_any_moment():
    async with Provider(answering(OK)) as provider:
        upstream = pool(provider, connections_max=1)
        for turns in range(12):
            held = post(await upstream.acquire())
            waiting = [asyncio.ensure_future(ask(upstream)) for _ in range(3)]
            await asyncio.sleep(0)
            if turns % 2:
                held.abort()  # grants room to dial
            else:
                await body_of(held)  # grants the connection
            waiting[0].cancel()  # in the same moment
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting[1].cancel()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert results[2][:2] == (200, b"hi")
            assert (upstream.active, upstream.waiting) == (0, 0)
            assert "0 dialling" in repr(upstream)
        await upstream.close()


async def test_dialling_that_is_cancelled_leaks_no_room(authority):
    async with Provider(answering(OK), tls=authority.server("127.0.0.1")) as provider:
        upstream = pool(provider, connections_max=1, ca_file=authority.ca_file)
        for turns in range(0, 30, 3):
            dialling = asyncio.ensure_future(upstream.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            dialling.cancel()
            result = (await asyncio.gather(dialling, return_exceptions=True))[0]
            if isinstance(result, UpstreamConnection):
                result.abort()
            assert upstream.active == 0
            assert "0 dialling" in repr(upstream)
        assert (await ask(upstream))[:2] == (200, b"hi")
        await upstream.close()


async def test_closing_ends_idle_connections_now_and_active_ones_when_they_are_done():
    step = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.no == 0:
            await step.wait()
        await peer.send(OK)
        await peer.ended()

    async with Provider(script) as provider:
        upstream = pool(provider, connections_max=2)
        active = post(await upstream.acquire())
        await ask(upstream)
        other = post(await upstream.acquire())
        waiting = asyncio.ensure_future(upstream.acquire())
        await asyncio.sleep(0)
        await upstream.close()
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await upstream.acquire()
        assert (upstream.active, upstream.idle) == (2, 0)
        other.abort()
        step.set()
        assert await body_of(active) == b"hi"
        assert (upstream.active, upstream.idle) == (0, 0)


async def test_no_sockets_or_memory_cycles_are_left_behind():
    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.send(OK)

    async with Provider(script) as provider:
        upstream = pool(provider)
        before = len(os.listdir("/proc/self/fd"))
        connections = [post(await upstream.acquire()) for _ in range(20)]
        for connection in connections[:10]:
            await body_of(connection)
        for connection in connections[10:]:
            connection.abort()
        await upstream.close()
        await until(lambda: all(peer.reader.at_eof() for peer in provider.peers))
        for peer in provider.peers:
            peer.writer.close()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        del connections, connection
        gc.collect()
        assert not [found for found in gc.get_objects() if isinstance(found, UpstreamConnection)]


# Backpressure


async def test_a_reader_that_does_not_read_holds_the_provider_back():
    taken = 0
    piece = b"x" * 65_536

    async def script(peer: Peer) -> None:
        nonlocal taken
        await peer.request()
        peer.writer.transport.set_write_buffer_limits(high=0)
        await peer.send(H11 + b"content-length: %d\r\n\r\n" % LARGE_BYTES)
        while taken < LARGE_BYTES:
            peer.writer.write(piece)
            await peer.writer.drain()
            taken += len(piece)

    async with Provider(script) as provider:
        upstream = pool(provider)
        connection = post(await upstream.acquire())
        await connection.head()
        seen = -1
        while seen != taken:  # until it stands still
            seen = taken
            for _ in range(50):
                await asyncio.sleep(0.001)
        assert taken < LARGE_BYTES
        assert connection.waiting_bytes < 1024 * 1024
        total = 0
        while chunk := await connection.read():
            assert len(chunk) < 1024 * 1024
            total += len(chunk)
        assert total == LARGE_BYTES
        assert upstream.idle == 1
        await upstream.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_request_of_32_mb_reaches_a_slow_provider_whole(tls, authority):
    got = 0

    async def script(peer: Peer) -> None:
        nonlocal got
        await peer.reader.readuntil(b"\r\n\r\n")
        while got < LARGE_BYTES:
            got += len(await peer.reader.read(100_000))
            await asyncio.sleep(0)
        await peer.send(OK)

    body = os.urandom(1024) * (LARGE_BYTES // 1024)
    async with Provider(script, tls=authority.server("127.0.0.1") if tls else None) as provider:
        upstream = pool(provider, ca_file=authority.ca_file if tls else None)
        connection = await upstream.acquire()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        post(connection, body)
        assert (await connection.head()).status == 200
        assert await body_of(connection) == b"hi"
        assert got == LARGE_BYTES
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # no second copy of the body
        assert upstream.idle == 1
        await upstream.close()


async def test_a_provider_that_stops_taking_the_request_does_not_hold_us_for_ever():
    async def script(peer: Peer) -> None:
        await asyncio.sleep(3600)

    clock = SteppedClock()
    async with Provider(script) as provider:
        upstream = pool(provider, clock, idle_timeout_ms=1000)
        connection = post(await upstream.acquire(), bytes(LARGE_BYTES))
        waiting = asyncio.ensure_future(connection.head())
        while not waiting.done():
            await asyncio.sleep(0.001)
            upstream.sweep(clock.step_ms(100))
        with pytest.raises(UpstreamSilent):
            await waiting
        await upstream.close()


@pytest.mark.parametrize("end", [None, _hang_up], ids=["stays", "hangs up"])
async def test_a_refusal_before_the_body_is_sent_is_read(end):
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b'HTTP/1.1 413 Too Large\r\ncontent-length: 7\r\nconnection: close\r\n\r\n{"e":1}')
        if end is not None:
            peer.half_close()
        await asyncio.sleep(3600)

    async with Provider(script) as provider:
        upstream = pool(provider)
        assert (await ask(upstream, bytes(LARGE_BYTES)))[:2] == (413, b'{"e":1}')
        assert (upstream.active, upstream.idle) == (0, 0)
        await upstream.close()


async def test_many_exchanges_at_once_do_not_mix():
    async def script(peer: Peer) -> None:
        while request := await peer.request():
            body = request.partition(b"\r\n\r\n")[2]
            await peer.send(CHUNKED, b"%x\r\n%b\r\n" % (len(body), body), b"0\r\n\r\n")

    async with Provider(script) as provider:
        upstream = pool(provider, connections_max=7)

        async def caller(no: int) -> None:
            for turn in range(10):
                body = b"%d-%d" % (no, turn)
                if (no + turn) % 5 == 0:
                    post(await upstream.acquire(), body).abort()
                else:
                    assert (await ask(upstream, body))[1] == body

        await asyncio.gather(*(caller(no) for no in range(40)))
        assert (upstream.active, upstream.waiting) == (0, 0)
        assert upstream.idle <= 7
        await upstream.close()
