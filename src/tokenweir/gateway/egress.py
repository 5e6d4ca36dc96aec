"""The way out of the machine: name, address, proxy, TLS.

Protects: the provider's key goes to the provider alone. Certificates are always verified; a proxy is asked for a tunnel and sees the name of the
provider and nothing else; plain http and loopback origins never leave the machine. Change together with the `[upstream]` settings.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import msgspec

from tokenweir.errors import SettingsInvalid
from tokenweir.gateway.upstream_request import Origin

PROXY_HEAD_BYTES_MAX = 16 * 1024


class ProxyRefused(OSError):
    """The proxy did not open a tunnel."""


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy that can open tunnels."""

    host: str
    port: int
    authorization: bytes = b""

    def __repr__(self) -> str:
        """Without the password."""
        return f"<Proxy {self.host}:{self.port}{' with credentials' if self.authorization else ''}>"

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read `http://[user:password@]host[:port]`; the scheme may be left out. Raises SettingsInvalid, never repeating the URL."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise SettingsInvalid("The proxy URL cannot be read; write it like http://proxy.example:3128.") from error
        if parts.scheme != "http":
            raise SettingsInvalid(f"A proxy is reached over http://, not {parts.scheme}://; what goes through its tunnel is encrypted all the same.")
        if not host or re.search(r"[\x00-\x20\x7f]", url) or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise SettingsInvalid("The proxy URL cannot be read; write it like http://proxy.example:3128.")
        authorization = b""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = b"Basic " + base64.b64encode(pair.encode("utf-8"))
        return cls(host, port or 80, authorization)


def choose_proxy(origin: Origin, proxy_url: str | None, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy to use for an origin, or None. The setting beats the environment; HTTPS_PROXY and NO_PROXY may be written in small letters."""
    if not origin.tls or _is_loopback(origin.host):
        return None
    if proxy_url:
        return Proxy.parse(proxy_url)
    url = environment.get("https_proxy") or environment.get("HTTPS_PROXY") or ""
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if not url.strip() or is_exempt(origin, exempt):
        return None
    return Proxy.parse(url.strip())


def is_exempt(origin: Origin, exempt: str) -> bool:
    """Whether a NO_PROXY list names the origin: `*`, a name (with what is below it), an address, a network; each but `*` with `:port` if need be."""
    address = _address(origin.host)
    for raw in exempt.split(","):
        entry = raw.strip().lower()
        if entry == "*":
            return True
        network = _network(entry.strip("[]"))
        if network is None:
            name, colon, port = entry.rpartition(":")
            if colon and port.isdigit():
                if int(port) != origin.port:
                    continue
                entry = name
                network = _network(entry.strip("[]"))
        if network is not None:
            if address is not None and address in network:
                return True
            continue
        name = entry.removeprefix("*").removeprefix(".").rstrip(".")
        host = origin.host.lower().rstrip(".")
        if name and (host == name or host.endswith("." + name)):
            return True
    return False


def tls_for(ca_file: Path | None) -> ssl.SSLContext:
    """A verifying client context. With `ca_file`, that file alone says whom to trust. Raises SettingsInvalid if it cannot be used."""
    try:
        tls = ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    except (OSError, ValueError) as error:
        raise SettingsInvalid(f"upstream.ca_file {ca_file} cannot be used: {error}") from error
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["http/1.1"])
    return tls


class Egress:
    """Opens sockets to one origin."""

    def __init__(self, origin: Origin, *, proxy: Proxy | None, tls: ssl.SSLContext | None) -> None:
        self.origin = origin
        self.proxy = proxy if origin.tls else None
        self._tls = tls if origin.tls else None

    async def connect(self, make: Callable[[], asyncio.BaseProtocol], timeout_ms: int) -> None:
        """Connect a protocol made by `make` to the origin. Raises OSError (a TLS failure is one) or TimeoutError.

        Addresses are tried one after another; each may use its share of the time that is left, so that one dead address does not take all.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        host, port = (self.proxy.host, self.proxy.port) if self.proxy is not None else (self.origin.host, self.origin.port)
        async with asyncio.timeout_at(deadline):
            addresses = await self._resolve(host, port)
            for left in range(len(addresses), 0, -1):
                try:
                    async with asyncio.timeout((deadline - loop.time()) / left):
                        await self._connect_to(addresses[-left], port, make)
                    return
                except ssl.SSLError:
                    raise  # the origin answered, and is not to be trusted: its other addresses are no better
                except (OSError, TimeoutError):
                    if left == 1:
                        raise
        raise OSError(f"{host} has no address")

    async def _resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a host, in the order of preference of the system."""
        if _address(host) is not None:
            return [host]
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(info[4][0]) for info in found))

    async def _connect_to(self, address: str, port: int, make: Callable[[], asyncio.BaseProtocol]) -> None:
        loop = asyncio.get_running_loop()
        proxy, tls = self.proxy, self._tls
        if proxy is None or tls is None:
            name = self.origin.host if tls is not None else None
            await loop.create_connection(make, address, port, ssl=tls, server_hostname=name)
            return
        transport, tunnel = await loop.create_connection(lambda: _Tunnel(self.origin, proxy), address, port)
        try:
            await tunnel.opened
            protocol = make()
            encrypted = await loop.start_tls(transport, protocol, tls, server_hostname=self.origin.host)
        except BaseException:
            transport.abort()
            raise
        if encrypted is None:
            raise ConnectionResetError("the connection was closed during the TLS handshake")
        protocol.connection_made(encrypted)  # start_tls leaves this to its caller


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel; the answer is all it reads."""

    def __init__(self, origin: Origin, proxy: Proxy) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._origin = origin
        self._authorization = proxy.authorization
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write the question."""
        target = self._origin.host_and_port.encode("ascii")
        credentials = b"proxy-authorization: %b\r\n" % self._authorization if self._authorization else b""
        cast("asyncio.Transport", transport).write(b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (target, target, credentials))

    def data_received(self, data: bytes) -> None:
        """Wait for the end of the answer's head. Bytes behind it would not be from the origin, which waits for us to begin."""
        if self.opened.done():
            return
        self._answer += data
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if not end:
            if len(self._answer) > PROXY_HEAD_BYTES_MAX:
                self._end(ProxyRefused("the proxy sent an endless answer"))
            return
        status = re.match(rb"HTTP/1\.[01] (\d{3})(?: |\r|$)", head)
        if status is None:
            self._end(ProxyRefused("the proxy does not speak HTTP/1.1"))
        elif status[1] == b"407":
            self._end(ProxyRefused("the proxy wants (other) credentials: 407"))
        elif not status[1].startswith(b"2"):
            self._end(ProxyRefused(f"the proxy refused to open a tunnel: {status[1].decode()}"))
        elif rest:
            self._end(ProxyRefused("the proxy sent bytes into the tunnel"))
        else:
            self._end(None)

    def eof_received(self) -> None:
        """The proxy hung up."""
        self._end(ProxyRefused("the proxy closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The proxy is gone."""
        self._end(ProxyRefused("the proxy closed the connection"))

    def _end(self, failure: ProxyRefused | None) -> None:
        if self.opened.done():
            return
        if failure is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(failure)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)
