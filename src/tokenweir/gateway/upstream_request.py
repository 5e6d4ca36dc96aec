"""Writes the head of a request to the provider.

Protects: exactly one request leaves per call. Headers come here already allow-listed, but a line break, a NUL, or a second length or host
in them could still be read as another request (smuggling), so whatever could change the framing is refused here again. Change together with
gateway/upstream_wire.py, which sends what this makes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote, urlsplit

import msgspec

from tokenweir.errors import InvalidRequest

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[\x21-\x7e]*")
_OURS = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"te", b"trailer", b"upgrade", b"keep-alive"})
_BODILESS_METHODS = frozenset({b"GET", b"HEAD", b"DELETE"})


class Origin(msgspec.Struct, frozen=True):
    """Where requests go, as the base URL says."""

    host: str
    port: int
    tls: bool
    base_path: bytes = b""
    """Put before every target; without a slash at its end."""

    @classmethod
    def parse(cls, base_url: str) -> Origin:
        """Read a base URL that settings have validated."""
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        tls = parts.scheme == "https"
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        return cls(host, parts.port or (443 if tls else 80), tls, quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._").encode("ascii"))

    @property
    def authority(self) -> str:
        """Host, and port where it is not the scheme's own."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}"

    @property
    def host_and_port(self) -> str:
        """Host and port, as a proxy is asked for them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


def encode_head(authority: bytes, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body_bytes: int) -> bytes:
    """The request line and all headers, ready to be written before a body of `body_bytes`.

    Raises InvalidRequest if any part could be read as something else than one request.
    """
    if _TARGET.fullmatch(target) is None:
        raise InvalidRequest("The request target holds characters that may not stand in it.")
    if not _is_token(method):
        raise InvalidRequest("The request method is not a token.")
    if (name := _first_unfree(tuple([name for name, _ in headers]))) is not None:
        raise InvalidRequest(f"The header name {name[:60]!r} may not be sent upstream.")
    lines = b"\r\n".join([b": ".join(header) for header in headers])
    breaks = max(len(headers) - 1, 0)
    if lines.count(b"\r") != breaks or lines.count(b"\n") != breaks or b"\0" in lines:
        raise InvalidRequest("A header value holds a line break or a NUL.")
    length = b"" if not body_bytes and method in _BODILESS_METHODS else b"content-length: %d\r\n" % body_bytes
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b%b\r\n" % (method, target, authority, length, lines, b"\r\n" if headers else b"")


@lru_cache(maxsize=64)
def _is_token(text: bytes) -> bool:
    return _TOKEN.fullmatch(text) is not None


@lru_cache(maxsize=512)
def _first_unfree(names: tuple[bytes, ...]) -> bytes | None:
    """The first name that may not be set. Clients send the same names again and again, so a whole head is judged once."""
    return next((name for name in names if not _is_free_name(name)), None)


@lru_cache(maxsize=512)
def _is_free_name(name: bytes) -> bool:
    """Whether a caller may set this header: a token, and none of those that frame the message."""
    return _TOKEN.fullmatch(name) is not None and name.lower() not in _OURS
