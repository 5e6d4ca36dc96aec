"""A real loopback server that does literally what a test tells it, and what is needed around it to test the upstream client."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class SteppedClock:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def now_us(self) -> int:
        return self.ns // 1000

    def monotonic_ns(self) -> int:
        return self.ns

    def step_ms(self, ms: int) -> int:
        self.ns += ms * 1_000_000
        return self.ns


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Wait for a condition, by letting the loop turn."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  the condition is anything a test can see
            await asyncio.sleep(0.001)


class Peer:
    """One connection, as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.no = 0

    async def request(self) -> bytes:
        """One whole request, as bytes; empty at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
        return head + (await self.reader.readexactly(int(length[1])) if length else b"")

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def send_bytewise(self, text: bytes) -> None:
        await self.send(*(text[i : i + 1] for i in range(len(text))))

    def close(self) -> None:
        self.writer.close()

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def ended(self) -> bytes:
        """Everything until the client hangs up."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""


class Provider:
    """The server: runs `script` for each connection; a failure of the script fails the test at the end."""

    def __init__(self, script: Callable[[Peer], Awaitable[None]], *, tls: ssl.SSLContext | None = None, limit: int = 2**16) -> None:
        self._script = script
        self._tls = tls
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=self._limit)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer)
        peer.no = len(self.peers)
        self.peers.append(peer)
        try:
            await self._script(peer)
        except (asyncio.CancelledError, ConnectionError):
            pass
        except Exception as error:
            self.failures.append(error)
        finally:
            self._tasks.discard(task)

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        for peer in self.peers:
            peer.writer.transport.abort()
        while self._tasks:  # noqa: ASYNC110  they end within a few turns
            await asyncio.sleep(0)
        for peer in self.peers:
            with contextlib.suppress(Exception):
                await peer.writer.wait_closed()
        for _ in range(5):
            await asyncio.sleep(0)
        if self.failures:
            raise self.failures[0]


def answering(*answers: bytes) -> Callable[[Peer], Awaitable[None]]:
    """A script that answers the requests of each connection in turn, the last answer for ever."""

    async def script(peer: Peer) -> None:
        no = 0
        while await peer.request():
            await peer.send(answers[min(no, len(answers) - 1)])
            no += 1

    return script


class TestAuthority:
    """A certificate authority of our own, and what it signs."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Weir test authority")])
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, *names: str) -> ssl.SSLContext:
        """A server context for names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        certificate = (
            self._builder(x509.Name([]), key.public_key())
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / f"{names[0].replace(':', '_')}.pem"
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(path)
        tls.set_alpn_protocols(["h2", "http/1.1"])
        return tls

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
