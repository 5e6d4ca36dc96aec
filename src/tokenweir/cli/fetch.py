"""Fetching a file that an operator named by its URL, such as a rate card.

The rule it protects: an address in a command never makes this machine talk to itself or to its own network. Only https; the host's addresses are looked
up once, every one of them must be public, and the connection goes to the one that was checked, under the name in the URL; no redirects, no proxies, no
user names, no other port; size and time are bounded. No credential of ours is ever sent. Change with it: docs/RATES.md.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from contextlib import suppress
from typing import Final
from urllib.parse import SplitResult, urlsplit

from tokenweir.errors import OperatorError

TIMEOUT_S: Final = 20.0
_PIECE_BYTES: Final = 64 * 1024
_NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_SIX_TO_FOUR: Final = ipaddress.ip_network("2002::/16")
_TEREDO: Final = ipaddress.ip_network("2001::/32")
_CARRIER_NAT: Final = ipaddress.ip_network("100.64.0.0/10")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def fetch(url: str, *, bytes_max: int, allow_loopback: bool = False) -> bytes:
    """The content at an https URL; raises OperatorError with one sentence that says why there is none."""
    parts = _parts(url)
    host, port = str(parts.hostname), parts.port or 443
    if port != 443 and not allow_loopback:
        raise OperatorError(f"{host}: only port 443 is allowed")
    address = _address(host, port, allow_loopback=allow_loopback)
    connection = _Pinned(host, port, str(address))
    # Each read has a timeout of its own; this one is for all of them together, however slowly the bytes come.
    alarm = threading.Timer(TIMEOUT_S, connection.give_up)
    alarm.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"accept-encoding": "identity", "user-agent": "tokenweir"})
        answer = connection.getresponse()
        if answer.status != 200:
            why = "redirects are not followed" if 300 <= answer.status < 400 else "nothing was taken"
            raise OperatorError(f"{host} answers HTTP {answer.status}; {why}")
        content = _content(answer, bytes_max, host)
        if connection.late:
            raise OperatorError(_late(host))  # what looks like the end was our own cut
        return content
    except ssl.SSLCertVerificationError as error:
        raise OperatorError(f"the certificate of {host} is not trusted: {error.verify_message}") from error
    except TimeoutError:
        raise OperatorError(_late(host)) from None
    except OSError as error:
        if connection.late:
            raise OperatorError(_late(host)) from None
        raise OperatorError(f"no connection to {host}: {error.strerror or type(error).__name__}") from error
    except http.client.HTTPException as error:
        if connection.late:
            raise OperatorError(_late(host)) from None
        raise OperatorError(f"{host} does not speak HTTP ({type(error).__name__})") from error
    finally:
        alarm.cancel()
        connection.let_go()


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet at large, also one that is wrapped in another."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in (*_NAT64, _SIX_TO_FOUR, _TEREDO)) or int(address) < 1 << 32:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in _CARRIER_NAT


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise OperatorError("this is not a URL; write it like https://example.org/rates.json") from None
    if parts.scheme != "https" or not parts.hostname or port == 0:
        raise OperatorError("only https URLs are read; write it like https://example.org/rates.json")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise OperatorError("a URL with a user name is not read")
    if not url.isascii() or not url.isprintable() or any(character in url for character in " \\"):
        raise OperatorError("the URL has characters that do not belong in one; write a host name in its ASCII form")
    return parts


def _address(host: str, port: int, *, allow_loopback: bool) -> Address:
    """The one address to connect to; raises OperatorError unless every address of the host may be connected to."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise OperatorError(f"the host {host} has no address") from None
    addresses = [ipaddress.ip_address(str(sockaddr[0])) for *_, sockaddr in found]
    for address in addresses:
        if not is_public(address) and not (allow_loopback and address.is_loopback):
            raise OperatorError(f"{host} is at {address}, which is not a public address")
    return addresses[0]


def _content(answer: http.client.HTTPResponse, bytes_max: int, host: str) -> bytes:
    content = bytearray()
    while piece := answer.read1(_PIECE_BYTES):
        content += piece
        if len(content) > bytes_max:
            raise OperatorError(f"{host} sends more than {bytes_max} bytes")
    if answer.length:
        raise http.client.IncompleteRead(bytes(content), answer.length)
    return bytes(content)


def _late(host: str) -> str:
    return f"{host} did not answer whole within {TIMEOUT_S:g} s"


class _Pinned(http.client.HTTPSConnection):
    """A connection to an address that was checked, under the name it was checked for."""

    def __init__(self, host: str, port: int, address: str) -> None:
        self._trust = ssl.create_default_context()
        super().__init__(host, port, timeout=TIMEOUT_S, context=self._trust)
        self._address = address
        self._spare: socket.socket | None = None
        self.late = False

    def connect(self) -> None:
        """Connect to the address; the certificate must be for the name."""
        plain = socket.create_connection((self._address, self.port), TIMEOUT_S)
        self._spare = plain.dup()
        self.sock = self._trust.wrap_socket(plain, server_hostname=self.host)

    def give_up(self) -> None:
        """Cut the connection under whoever waits for it."""
        self.late = True
        if self._spare is not None:
            with suppress(OSError):
                self._spare.shutdown(socket.SHUT_RDWR)

    def let_go(self) -> None:
        """Close it, and the handle by which it could be cut; `close` alone is called before an answer without a length has been read."""
        self.close()
        if self._spare is not None:
            self._spare.close()
