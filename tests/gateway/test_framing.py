"""What is written past uvicorn's `send` must be what `send` would have written, and leave its cycle in the same state."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tokenweir.gateway import framing


class Wire:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def cycle_on(wire, *, method="POST", version="1.1", keep_alive=True):
    answered = []
    cycle = RequestResponseCycle(
        scope={"method": method, "http_version": version},
        transport=wire,
        flow=SimpleNamespace(write_paused=False),
        logger=logging.getLogger("test"),
        access_logger=logging.getLogger("test"),
        access_log=False,
        default_headers=[(b"date", b"now")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: answered.append(True),
    )
    return cycle, answered


def ours(status, headers, pieces, **how):
    wire = Wire()
    cycle, answered = cycle_on(wire, **how)
    framing.begin(cycle, status, list(headers))
    for piece in pieces[:-1]:
        framing.piece(cycle, piece)
    framing.end(cycle, pieces[-1])
    return wire, cycle, answered


async def theirs(status, headers, pieces, **how):
    wire = Wire()
    cycle, answered = cycle_on(wire, **how)
    await cycle.send({"type": "http.response.start", "status": status, "headers": list(headers)})
    for index, piece in enumerate(pieces):
        await cycle.send({"type": "http.response.body", "body": piece, "more_body": index < len(pieces) - 1})
    return wire, cycle, answered


def parts(written):
    head, _, body = written.partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    return line, sorted(headers), body.replace(b"0\r\n\r\n", b"|end")


def whole(body):
    """The content of a chunked body, however it was cut into chunks."""
    content = b""
    while body and not body.startswith(b"|end"):
        size, _, body = body.partition(b"\r\n")
        content, body = content + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return content, body


pieces = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


@given(pieces, st.sampled_from([200, 404, 529]), st.booleans())
def test_a_chunked_answer_is_framed_as_uvicorn_frames_it(chunks, status, keep_alive):
    headers = [(b"content-type", b"text/event-stream")]
    wire, cycle, answered = ours(status, headers, chunks, keep_alive=keep_alive)
    reference, other, also = asyncio.run(theirs(status, headers, chunks, keep_alive=keep_alive))
    assert parts(wire.written)[:2] == parts(reference.written)[:2]
    assert whole(parts(wire.written)[2]) == whole(parts(reference.written)[2])
    assert (wire.closed, cycle.response_complete, answered) == (reference.closed, other.response_complete, also)


@given(pieces, st.sampled_from(["POST", "HEAD"]))
def test_an_answer_of_known_length_is_framed_as_uvicorn_frames_it(chunks, method):
    headers = [(b"content-length", str(sum(map(len, chunks))).encode())]
    wire, cycle, _ = ours(200, headers, chunks, method=method)
    reference, other, _ = asyncio.run(theirs(200, headers, chunks, method=method))
    assert wire.written == reference.written
    assert cycle.response_complete == other.response_complete


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_has_no_framing(status):
    wire, _, _ = ours(status, [], [b""])
    assert b"transfer-encoding" not in wire.written


def test_an_old_client_gets_a_body_that_ends_with_the_connection():
    """HTTP/1.0 knows no chunks."""
    wire, _, _ = ours(200, [], [b"a", b"b"], version="1.0")
    assert wire.written.endswith(b"connection: close\r\n\r\nab")
    assert wire.closed
