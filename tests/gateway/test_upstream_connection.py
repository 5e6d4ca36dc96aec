"""What the gateway sees of an exchange, while it waits and when it gives up."""

from __future__ import annotations

import asyncio

import pytest

from tokenweir.errors import UpstreamCut, UpstreamSilent
from tokenweir.gateway.upstream_connection import ResponseHead, UpstreamConnection

HEAD = ResponseHead(200, [(b"a", b"b")], None, 5)


class RecordingLine:
    def __init__(self) -> None:
        self.events: list[str] = []

    def send(self, method, target, headers, body) -> None:
        self.events.append("send")

    def drained(self) -> None:
        self.events.append("drained")

    def hang_up(self) -> None:
        self.events.append("hang_up")


def opened() -> tuple[UpstreamConnection, RecordingLine]:
    line = RecordingLine()
    return UpstreamConnection(line, asyncio.get_running_loop(), reused=False), line


async def waiting(coroutine) -> asyncio.Task:
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_a_reader_is_woken_by_the_head_then_by_bytes_and_then_by_the_end():
    exchange, line = opened()
    head = await waiting(exchange.head())
    exchange.wake()  # a part of the head
    await asyncio.sleep(0)
    exchange.began(HEAD)
    exchange.wake()
    assert await head is HEAD
    read = await waiting(exchange.read())
    exchange.chunks += [b"a", b"b"]
    exchange.wake()
    exchange.chunks.append(b"c")  # came before the reader had its turn
    assert await read == b"abc"
    assert line.events == ["drained"]
    read = await waiting(exchange.read())
    exchange.ended()
    assert await read == b""
    assert exchange.complete


async def test_the_last_bytes_are_known_to_be_the_last():
    exchange, _ = opened()
    exchange.began(HEAD)
    exchange.chunks.append(b"all")
    exchange.ended()
    assert await exchange.read() == b"all"
    assert exchange.complete
    assert await exchange.read() == b""


async def test_abort_ends_a_pending_read_and_says_so_to_the_wire_once():
    exchange, line = opened()
    read = await waiting(exchange.read())
    exchange.abort()
    exchange.abort()
    with pytest.raises(UpstreamCut):
        await read
    assert line.events == ["hang_up"]


async def test_a_cancelled_reader_may_be_followed_by_another():
    exchange, _ = opened()
    head = await waiting(exchange.head())
    head.cancel()
    with pytest.raises(asyncio.CancelledError):
        await head
    exchange.wake()
    head = await waiting(exchange.head())
    exchange.failed(UpstreamSilent())
    with pytest.raises(UpstreamSilent):
        await head


async def test_two_readers_at_once_are_a_mistake():
    exchange, _ = opened()
    read = await waiting(exchange.read())
    with pytest.raises(RuntimeError):
        await exchange.read()
    exchange.abort()
    with pytest.raises(UpstreamCut):
        await read


async def test_the_first_failure_is_the_one_that_is_told():
    exchange, line = opened()
    exchange.failed(UpstreamSilent())
    exchange.abort()
    exchange.send(b"GET", b"/", [], b"")
    assert line.events == []
    with pytest.raises(UpstreamSilent):
        await exchange.head()
    assert repr(exchange) == "<UpstreamConnection new, failed: upstream_silent, 0 bytes unread>"


async def test_what_arrived_before_the_exchange_was_given_up_can_still_be_read():
    """It may hold the final counts of an answer whose client has left."""
    exchange, line = opened()
    exchange.began(HEAD)
    exchange.chunks += [b"final ", b"counts"]
    exchange.abort()
    assert await exchange.read() == b"final counts"
    with pytest.raises(UpstreamCut):
        await exchange.read()
    assert line.events == ["hang_up"]
