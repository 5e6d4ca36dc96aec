"""What hostile clients send, and what they must get for it; and a client that sends what it likes.

Every row says what the client sends, which statuses it gets, and how many requests reach the provider. The connection is closed after every refusal
of the server, because where the next request begins can no longer be known.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from gateway.playbook import KEY

BODY = b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}'
HOST = b"host: x\r\n"
AUTH = HOST + b"anthropic-version: 2023-06-01\r\nx-api-key: " + KEY.encode() + b"\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
GOOD = b"POST /v1/messages HTTP/1.1\r\n" + AUTH + LENGTH + b"\r\n" + BODY
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
SMUGGLED = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


def post(*lines: bytes, body: bytes = BODY, target: bytes = b"/v1/messages", version: bytes = b"HTTP/1.1") -> bytes:
    return b"POST " + target + b" " + version + b"\r\n" + AUTH + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def get(target: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n"


TE = b"transfer-encoding: chunked"
CL = LENGTH[:-2]
# What is sent; the statuses that come back; how many requests the provider gets.
ROWS: dict[str, tuple[bytes, list[int], int]] = {
    "a good request": (GOOD, [200], 1),
    "a good chunked request": (post(TE, body=CHUNKS), [200], 1),
    "chunk extensions and trailers": (post(TE, body=b"%x;a=b\r\n%b\r\n0\r\nx-api-key: other\r\n\r\n" % (len(BODY), BODY)), [200], 1),
    "length and chunked": (post(CL, TE, body=CHUNKS), [400], 0),
    "chunked and length": (post(TE, CL, body=CHUNKS), [400], 0),
    "length 0 and chunked, with a request behind": (post(b"content-length: 0", TE, body=b"0\r\n\r\n" + SMUGGLED), [400], 0),
    "two lengths that differ": (post(CL, b"content-length: 3"), [400], 0),
    "two lengths that agree": (post(CL, CL), [400], 0),
    "a list of lengths": (post(CL + b", 5"), [400], 0),
    "a signed length": (post(b"content-length: +5"), [400], 0),
    "a negative length": (post(b"content-length: -1"), [400], 0),
    "a hexadecimal length": (post(b"content-length: 0x5"), [400], 0),
    "a length of two words": (post(b"content-length: 5 5"), [400], 0),
    "a length beyond all integers": (post(b"content-length: 99999999999999999999999"), [400], 0),
    "a length beyond the limit": (post(b"content-length: 999999999", body=b""), [413], 0),
    "an empty length": (post(b"content-length:"), [400], 0),
    "TE twice": (post(TE, TE, body=CHUNKS), [400], 0),
    "TE chunked and identity": (post(TE, b"transfer-encoding: identity", body=CHUNKS), [400], 0),
    "TE chunked, identity": (post(TE + b", identity", body=CHUNKS), [400], 0),
    "TE identity": (post(b"transfer-encoding: identity"), [400], 0),
    "TE gzip, chunked": (post(b"transfer-encoding: gzip, chunked", body=CHUNKS), [400], 0),
    "TE xchunked": (post(b"transfer-encoding: xchunked", body=CHUNKS), [400], 0),
    "TE with a vertical tab": (post(b"transfer-encoding: \x0bchunked", body=CHUNKS), [400], 0),
    "TE quoted": (post(b'transfer-encoding: "chunked"', body=CHUNKS), [400], 0),
    "TE with a space before the colon": (post(b"transfer-encoding : chunked", body=CHUNKS), [400], 0),
    "TE folded": (post(b"transfer-encoding:\r\n chunked", body=CHUNKS), [400], 0),
    "TE in HTTP/1.0": (post(CL, TE, body=CHUNKS, version=b"HTTP/1.0"), [400], 0),
    "a chunk size with a sign": (post(TE, body=b"-1\r\n"), [400], 0),
    "a chunk size beyond all integers": (post(TE, body=b"fffffffffffffffff\r\n"), [400], 0),
    "a chunk longer than it says": (post(TE, body=b"3\r\nabcdef\r\n0\r\n\r\n"), [400], 0),
    "a bare LF in a chunk": (post(TE, body=b"%x\n%b\n0\n\n" % (len(BODY), BODY)), [400], 0),
    "bare LF throughout": (GOOD.replace(b"\r\n", b"\n"), [400], 0),
    "one bare LF": (post(b"a: b\nc: d", CL), [400], 0),
    "a bare CR in a value": (post(b"a: b\rc: d", CL), [400], 0),
    "a NUL in a value": (post(b"a: b\0c", CL), [400], 0),
    "a NUL in a name": (post(b"a\0: b", CL), [400], 0),
    "a folded line": (post(b"a: b\r\n c", CL), [400], 0),
    "a space before the colon": (post(b"a : b", CL), [400], 0),
    "a line without a colon": (post(b"abc", CL), [400], 0),
    "an empty name": (post(b": b", CL), [400], 0),
    "a space before the first header": (b"POST /v1/messages HTTP/1.1\r\n " + AUTH + LENGTH + b"\r\n" + BODY, [400], 0),
    "Authorization twice": (post(b"authorization: Bearer a", b"authorization: Bearer b", CL), [400], 0),
    "x-api-key twice": (post(b"x-api-key: " + KEY.encode(), CL), [400], 0),
    "x-api-key and another bearer": (post(b"authorization: Bearer tw_other", CL), [400], 0),
    "Connection names the key": (post(b"connection: x-api-key", CL), [200], 1),
    "absolute form": (post(CL, target=b"http://127.0.0.1/v1/messages"), [400], 0),
    "absolute form of another host": (post(CL, target=b"http://evil/v1/messages"), [400], 0),
    "no leading slash": (post(CL, target=b"v1/messages"), [400], 0),
    "two leading slashes": (post(CL, target=b"//v1/messages"), [501], 0),
    "an encoded slash": (post(CL, target=b"/v1%2fmessages"), [501], 0),
    "an encoded letter": (post(CL, target=b"/v1/%6dessages"), [501], 0),
    "dots": (post(CL, target=b"/x/../v1/messages"), [501], 0),
    "encoded dots": (post(CL, target=b"/v1/models/%2e%2e/messages"), [501], 0),
    "a backslash": (post(CL, target=b"/v1\\messages"), [501], 0),
    "a space in the target": (post(CL, target=b"/v1/messages x"), [400], 0),
    "a byte beyond ASCII in the target": (post(CL, target=b"/v1/m\xc3\xa9"), [400], 0),
    "a NUL in the target": (post(CL, target=b"/v1/messages\0"), [400], 0),
    "a fragment": (post(CL, target=b"/v1/messages#x"), [200], 1),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", [501], 0),
    "CONNECT": (b"CONNECT api.anthropic.com:443 HTTP/1.1\r\nhost: x\r\n\r\n", [400], 0),
    "a WebSocket upgrade": (post(b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-key: a", b"sec-websocket-version: 13", CL), [400], 0),
    "an h2c upgrade": (post(b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk", CL), [400], 0),
    "the HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], 0),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", [400], 0),
    "HTTP/1.2": (HEALTH.replace(b"1.1", b"1.2"), [400], 0),
    "HTTP/9.9": (HEALTH.replace(b"1.1", b"9.9"), [400], 0),
    "HTTP/1.0": (post(CL, version=b"HTTP/1.0"), [200], 1),
    "a method nobody knows": (b"BREW /v1/messages HTTP/1.1\r\nhost: x\r\n\r\n", [400], 0),
    "a method in lower case": (b"post /v1/messages HTTP/1.1\r\nhost: x\r\n\r\n", [400], 0),
    "garbage": (b"\x00\xff\xfe\x01" * 20 + b"\r\n\r\n", [400], 0),
    "a TLS hello": (bytes.fromhex("16030100c8010000c40303") + bytes(range(189)), [400], 0),
    "a PROXY line": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + HEALTH, [400], 0),
    "empty lines in front": (b"\r\n\r\n" + HEALTH, [200], 0),
    "gzip": (post(b"content-encoding: gzip", CL), [400], 0),
    "gzip and identity": (post(b"content-encoding: gzip", b"content-encoding: identity", CL), [400], 0),
    "a body where none is taken": (b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"content-length: 1\r\n\r\nx", [413], 0),
    "a chunked body where none is taken": (b"GET /v1/models HTTP/1.1\r\n" + AUTH + TE + b"\r\n\r\n1\r\nx\r\n0\r\n\r\n", [413], 0),
    "three in a row": (HEALTH + GOOD + HEALTH, [200, 200, 200], 1),
    "nine in a row": (HEALTH * 9, [200] * 9, 0),
    "a close in between": (HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + HEALTH, [200], 0),
    "nesting beyond all sense": (post(b"content-length: 200011", body=b'{"model":"' + b"[" * 200_001), [400], 0),
    "a key twice": (post(b"content-length: 25", body=b'{"model":"a","model":"b"}'), [400], 0),
}


KEPT = {
    "Authorization twice",
    "x-api-key twice",
    "x-api-key and another bearer",
    "gzip",
    "gzip and identity",
    "a key twice",
    "nesting beyond all sense",
}
"""Refused by what the request says, not by how it is framed: the next one on the connection is served."""
CLOSED = {"a close in between", "HTTP/1.0"}
"""Served, and closed because the client wants it so."""


class Client:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, port: int):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def send(self, sent: bytes) -> None:
        if not self.writer.transport.is_closing():
            self.writer.write(sent)

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes] | None:
        """The next answer; None when the connection is closed."""
        async with asyncio.timeout(10):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
                found = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                return int(head[9:12]), found, await self.reader.readexactly(int(found.get(b"content-length", b"0")))
            except ConnectionError:
                return None
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    raise
                return None

    async def closed(self) -> None:
        """Wait until the other side has closed, and nothing more came."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await self.reader.read() == b""


def check_ours(answer: tuple[int, dict[bytes, bytes], bytes]) -> None:
    """A refusal in the provider's shape that says it is ours."""
    status, headers, body = answer
    value = json.loads(body)
    assert value["type"] == "error"
    assert value["error"]["message"].startswith("Tokenweir: ")
    assert value["request_id"].encode() == headers[b"request-id"]
    assert status >= 400
