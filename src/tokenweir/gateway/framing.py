"""Framing: an answer as bytes on the client's connection, written past uvicorn's own `send`.

uvicorn checks every header by two searches and passes every piece through a coroutine and a dictionary; a stream of tokens is mostly that. What is
written here was checked before (`wire.headers`) or is ours. The state of uvicorn's request cycle is kept as `send` would keep it, so that
keep-alive, pipelining and shutdown go on being its business. Change together with `exchange.py`, and look at uvicorn's `RequestResponseCycle`.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_CLOSE = (b"connection", b"close")
_CHUNKED = (b"transfer-encoding", b"chunked")
_BODILESS = frozenset({204, 304})


def begin(cycle: RequestResponseCycle, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Write the status line and the headers. Without a content-length among them the body is chunked; HTTP/1.0 ends it by closing."""
    cycle.response_started = True
    cycle.waiting_for_100_continue = False
    cycle.chunked_encoding = False
    if not any(name == b"content-length" for name, _ in headers) and cycle.scope["method"] != "HEAD" and status not in _BODILESS:
        if cycle.scope["http_version"] == "1.1":
            cycle.chunked_encoding = True
            headers.append(_CHUNKED)
        else:
            cycle.keep_alive = False
    if not cycle.keep_alive:
        headers.append(_CLOSE)
    lines = b"\r\n".join([b": ".join(header) for header in (*cycle.default_headers, *headers)])
    cycle.transport.write(STATUS_LINE[status] + lines + b"\r\n\r\n")


def piece(cycle: RequestResponseCycle, chunk: bytes) -> None:
    """Write a piece of the body."""
    if not chunk or cycle.scope["method"] == "HEAD":
        return
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if cycle.chunked_encoding else chunk)


def end(cycle: RequestResponseCycle, chunk: bytes) -> None:
    """Write the last piece, and let the connection go on to its next request or its end."""
    if cycle.chunked_encoding:
        cycle.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk) if chunk else b"0\r\n\r\n")
    else:
        piece(cycle, chunk)
    cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
