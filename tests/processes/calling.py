"""A client made of a socket, so that a test decides about every byte: what it sends, how far it reads, and how it leaves.

It keeps no connection between requests and understands just as much HTTP as the gateway speaks: a head, then a body by length, by chunks, or to the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

MODEL = "claude-sonnet-4-5"
TEXT = "How high is the tide?"
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Asked:
    """A request, and how to find it again: the session names it in the ledger, the hash of its body in the journal of truth."""

    body: bytes
    session: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


def ask(session: str, *, stream: bool = False, directives: str = "", text: str = TEXT, model: str = MODEL, **fields: Any) -> Asked:
    """A request that is like no other: its session is in its text."""
    body: dict[str, Any] = {"model": model, "max_tokens": 400, "messages": [{"role": "user", "content": f"{text} ({session})"}], **fields}
    if stream:
        body["stream"] = True
    if directives:
        body["metadata"] = {"user_id": f"sim:{directives}"}
    return Asked(json.dumps(body).encode(), session)


class Broken(Exception):
    """The connection ended before the answer did."""


@dataclass
class Answered:
    """What came back, as far as it came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    """The answer came to the end that HTTP promised."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The whole events of a stream."""
        return list(split_events(self.body))

    @property
    def looks_complete(self) -> bool:
        """Whether a client would take this for a successful, complete answer."""
        if not self.whole or self.status != 200:
            return False
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            return any(name == "message_stop" for name, _ in self.events)
        try:
            return bool(self.json.get("type") == "message" and "usage" in self.json)
        except ValueError:
            return False


def split_events(body: bytes) -> list[tuple[str, Any]]:
    """Names and values of the events in a piece of a stream that begins with an event."""
    found = []
    for block in body.split(b"\n\n")[:-1]:
        name, lines = "", []
        for line in block.split(b"\n"):
            if line.startswith(b"event:"):
                name = line[6:].strip().decode()
            elif line.startswith(b"data:"):
                lines.append(line[5:].strip())
        with suppress(ValueError):
            found.append((name, json.loads(b"\n".join(lines))))
    return found


class Call:
    """One request under way."""

    def __init__(self, url: str, key: str, asked: Asked, *, path: str = "/v1/messages") -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._head = _head(path, parts.netloc, key, asked)
        self._asked = asked
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.answer = Answered()

    async def open(self, *, read_buffer_bytes: int = 0) -> None:
        """Connect and send the request whole. With a read buffer size, the client can be one that takes little before it blocks."""
        sock = socket.socket()
        sock.setblocking(False)
        if read_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_buffer_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._address)
        except BaseException:
            sock.close()
            raise
        limit = max(read_buffer_bytes, 64) if read_buffer_bytes else 1 << 20
        self._reader, self._writer = await asyncio.open_connection(sock=sock, limit=limit)
        self._writer.write(self._head + self._asked.body)
        await self._writer.drain()

    async def read_head(self) -> Answered:
        """The status and headers. Raises Broken."""
        assert self._reader is not None
        try:
            raw = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Broken from error
        lines = raw.decode("latin-1").split("\r\n")
        self.answer.status = int(lines[0].split(" ")[1])
        self.answer.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        return self.answer

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes; ends when HTTP says that it ends. Raises Broken if the connection ends before that."""
        assert self._reader is not None
        reader, headers = self._reader, self.answer.headers
        try:
            if headers.get("transfer-encoding") == "chunked":
                while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                    piece = (await reader.readexactly(size + 2))[:-2]
                    self.answer.body += piece
                    yield piece
                await reader.readexactly(2)
            else:
                left = int(headers.get("content-length", "0"))
                while left:
                    piece = await reader.read(min(left, 65536))
                    if not piece:
                        raise Broken
                    left -= len(piece)
                    self.answer.body += piece
                    yield piece
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            raise Broken from error
        self.answer.whole = True

    async def read_events(self, count: int) -> None:
        """Read until so many whole events have come, or all there are."""
        async for _ in self.pieces():
            if len(self.answer.events) >= count:
                return

    async def finish(self) -> Answered:
        """Read to the end, wherever that is, and close."""
        try:
            await self.read_head()
            async for _ in self.pieces():
                pass
        except Broken:
            pass
        finally:
            await self.leave()
        return self.answer

    async def leave(self, how: str = "fin") -> None:
        """Close: `fin` as a program that is done, `rst` as one whose machine is gone."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if how == "rst":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        else:
            writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def call(url: str, key: str, asked: Asked, *, path: str = "/v1/messages") -> Answered:
    """Ask and read to the end. Raises OSError if nothing listens."""
    calling = Call(url, key, asked, path=path)
    await calling.open()
    return await calling.finish()


def _head(path: str, host: str, key: str, asked: Asked) -> bytes:
    headers: Mapping[str, str] = {
        "host": host,
        "x-api-key": key,
        "anthropic-version": "2023-06-01",
        "content-type": "application/json",
        "x-claude-code-session-id": asked.session,
        "content-length": str(len(asked.body)),
        **asked.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
