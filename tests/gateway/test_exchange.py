"""The exchange: bodies within their bounds, one answer, and nothing written to who has left."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tokenweir.errors import BodyTooLarge, BodyTooSlow, InvalidRequest
from tokenweir.gateway.exchange import ClientGone, Exchange
from tokenweir.gateway.server import CONNECTION, CYCLE, Parting
from tokenweir.policies import parse_network


class Surroundings:
    """What the server gives an exchange: a connection, a cycle, and messages in turn."""

    def __init__(self, *pieces: bytes, headers=(), address: str = "192.0.2.1", gone_after: bool = False) -> None:
        self.written = b""
        self.connection = SimpleNamespace(
            gone=False,
            on_gone=None,
            body_late=False,
            expected=0,
            transport=SimpleNamespace(abort=self.abort, write=self.write, is_closing=lambda: False),
            flow=SimpleNamespace(write_paused=False),
            part=lambda: None,
        )
        self.connection.expect_body = self.expect_body
        self.aborted = False
        self._messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces] or [
            {"type": "http.request", "body": b"", "more_body": True}
        ]
        if gone_after:
            self._messages.append({"type": "http.disconnect"})
        else:
            self._messages[-1]["more_body"] = False
        scope = {
            CONNECTION: self.connection,
            "method": "POST",
            "http_version": "1.1",
            "raw_path": b"/v1/messages",
            "query_string": b"",
            "headers": list(headers),
            "client": (address, 1),
        }
        self.cycle = scope[CYCLE] = RequestResponseCycle(
            scope=scope,
            transport=self.connection.transport,
            flow=self.connection.flow,
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=lambda: None,
        )
        self.cycle.more_body = False
        self.exchange = Exchange(scope, self.receive, request_id="req_1")

    def abort(self) -> None:
        self.aborted = True

    def expect_body(self) -> None:
        self.connection.expected += 1

    async def receive(self) -> dict:
        return self._messages.pop(0)

    def write(self, data: bytes) -> None:
        self.written += data


@given(pieces=st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_a_body_is_what_arrived_however_it_was_cut(pieces):
    assert asyncio.run(Surroundings(*pieces).exchange.body(1000)) == b"".join(pieces)


@given(pieces=st.lists(st.binary(max_size=20), min_size=1, max_size=8), bound=st.integers(0, 100))
def test_a_body_is_refused_exactly_when_it_is_larger_than_its_bound(pieces, bound):
    whole = b"".join(pieces)
    try:
        assert asyncio.run(Surroundings(*pieces).exchange.body(bound)) == whole
        assert len(whole) <= bound
    except BodyTooLarge:
        assert len(whole) > bound


async def test_a_stated_length_beyond_the_bound_is_refused_before_anything_is_read():
    around = Surroundings(b"x" * 10, headers=[(b"content-length", b"10")])
    with pytest.raises(BodyTooLarge):
        await around.exchange.body(9)
    assert len(around._messages) == 1


async def test_the_clock_starts_only_for_a_body_that_is_not_here_yet():
    whole, parts = Surroundings(b"ab"), Surroundings(b"a", b"b")
    await whole.exchange.body(9)
    await parts.exchange.body(9)
    assert (whole.connection.expected, parts.connection.expected) == (0, 1)


async def test_a_late_body_is_not_waited_for():
    around = Surroundings(b"a", b"b")
    around.connection.body_late = True
    with pytest.raises(BodyTooSlow):
        await around.exchange.body(9)


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd", b"gzip, identity", b"x"])
async def test_a_compressed_body_is_refused_whatever_else_is_said(coding):
    for headers in ([(b"content-encoding", coding)], [(b"content-encoding", coding), (b"content-encoding", b"identity")]):
        with pytest.raises(InvalidRequest):
            await Surroundings(b"x", headers=headers).exchange.body(9)
    assert await Surroundings(b"x", headers=[(b"content-encoding", b"Identity")]).exchange.body(9) == b"x"


async def test_a_client_that_leaves_within_its_body_has_gone():
    with pytest.raises(ClientGone):
        await Surroundings(b"a", gone_after=True).exchange.body(9)


async def test_nothing_is_written_to_a_client_that_left():
    around = Surroundings()
    around.connection.gone = True
    await around.exchange.answer(200, [], b"x")
    await around.exchange.write(b"y")
    assert around.written == b""


async def test_every_answer_carries_the_request_id_and_its_length():
    around = Surroundings()
    await around.exchange.answer(418, [(b"a", b"b")], b"xyz")
    assert around.written == b"HTTP/1.1 418 I'm a Teapot\r\na: b\r\ncontent-length: 3\r\nrequest-id: req_1\r\n\r\nxyz"
    assert around.cycle.response_complete


async def test_an_answer_to_a_request_that_has_not_arrived_whole_ends_the_connection_gently():
    around = Surroundings()
    around.cycle.more_body = True
    await around.exchange.answer(401, [], b"")
    assert around.cycle.keep_alive is False
    assert isinstance(around.cycle.transport, Parting)


async def test_a_cut_is_not_mistaken_for_a_handler_that_forgot_to_answer():
    around = Surroundings()
    around.exchange.cut()
    assert around.aborted
    assert around.cycle.disconnected


PROXIES = (parse_network("10.0.0.0/8"), parse_network("::1"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.1", b"203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", b"198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", b"203.0.113.9, 10.1.1.1", "203.0.113.9"),
        ("10.0.0.1", b"10.2.2.2, 10.1.1.1", "10.2.2.2"),
        ("10.0.0.1", b"unknown", "unknown"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("192.0.2.1", b"203.0.113.9", "192.0.2.1"),
        ("::1", b"203.0.113.9", "203.0.113.9"),
        ("", b"203.0.113.9", ""),
    ],
)
async def test_the_caller_is_the_last_hop_that_is_not_a_trusted_proxy(peer, forwarded, address):
    around = Surroundings(address=peer, headers=[(b"x-forwarded-for", forwarded)] if forwarded else [])
    around.exchange.trust_forwarded(PROXIES)
    assert around.exchange.address == address


async def test_forwarded_for_in_several_lines_is_read_as_one_list():
    """A proxy may add a line of its own; the client's line in front of it proves nothing."""
    headers = [(b"x-forwarded-for", b"1.1.1.1, 203.0.113.9"), (b"x-forwarded-for", b"10.1.1.1")]
    around = Surroundings(address="10.0.0.1", headers=headers)
    around.exchange.trust_forwarded(PROXIES)
    assert around.exchange.address == "203.0.113.9"
