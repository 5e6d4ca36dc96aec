"""One plain request to the upstream, outside the data plane: with the standard library's own client, so that a fault of ours cannot hide one of the network.

It goes where the gateway goes: the base URL, the proxy and the certificates of the settings. Used by `doctor` and by the watch over models.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.request
from email.message import Message
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

import msgspec

if TYPE_CHECKING:
    from tokenweir.settings import Settings

BODY_BYTES_MAX: Final = 4 * 1024 * 1024


class Answer(msgspec.Struct, frozen=True):
    """What came back."""

    status: int
    headers: Message
    body: bytes


def ask(settings: Settings, method: str, path: str, headers: dict[str, str]) -> Answer | str:
    """The answer, or one sentence that says where it failed. It holds no header that was sent."""
    base = urlsplit(settings.upstream.base_url)
    host, port = base.hostname or "", base.port or (443 if base.scheme == "https" else 80)
    timeout_s = settings.upstream.connect_timeout_ms / 1000
    proxy = _proxy(settings, host) if base.scheme == "https" else None
    near, near_port = (proxy.hostname or "", proxy.port or 3128) if proxy else (host, port)
    connection: http.client.HTTPConnection
    try:
        if base.scheme == "https":
            trust = ssl.create_default_context(cafile=settings.upstream.ca_file)
            connection = http.client.HTTPSConnection(near, near_port, timeout=timeout_s, context=trust)
        else:
            connection = http.client.HTTPConnection(near, near_port, timeout=timeout_s)
        if proxy:
            connection.set_tunnel(host, port)
        try:
            connection.request(method, base.path + path, headers={"accept-encoding": "identity"} | headers)
            answer = connection.getresponse()
            body = answer.read(BODY_BYTES_MAX + 1)
        finally:
            connection.close()
        return (
            f"{near}:{near_port} sends more than {BODY_BYTES_MAX} bytes"
            if len(body) > BODY_BYTES_MAX
            else Answer(answer.status, answer.headers, body)
        )
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of {near} is not trusted: {error.verify_message}"
    except ssl.SSLError as error:
        return f"no TLS connection to {near}:{near_port}: {error.reason or 'handshake failed'}"
    except TimeoutError:
        return f"{near}:{near_port} does not answer within {timeout_s:g} s"
    except OSError as error:
        return f"no connection to {near}:{near_port}: {error.strerror or error}"
    except http.client.HTTPException as error:
        return f"{near}:{near_port} does not speak HTTP ({type(error).__name__})"


def _proxy(settings: Settings, host: str) -> SplitResult | None:
    text = settings.upstream.proxy_url
    if text is None and not urllib.request.proxy_bypass(host):
        text = urllib.request.getproxies().get("https")
    return urlsplit(text if "://" in text else f"http://{text}") if text else None
