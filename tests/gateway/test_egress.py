"""Who is asked on the way out, who is trusted, and what a proxy gets to see."""

from __future__ import annotations

import asyncio
import base64
import ssl

import pytest

from scripted_upstream import OK, Peer, Provider, SteppedClock, TestAuthority, answering
from tokenweir.errors import SettingsInvalid, UpstreamUnreachable
from tokenweir.gateway.egress import Egress, Proxy, choose_proxy, is_exempt, tls_for
from tokenweir.gateway.upstream import UpstreamClient
from tokenweir.gateway.upstream_request import Origin
from tokenweir.settings import UpstreamSettings

BOTH_LOOPS = True
API = Origin.parse("https://api.example.test")


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> TestAuthority:
    return TestAuthority(tmp_path_factory.mktemp("authority"))


def client(url: str, environment=None, **settings) -> UpstreamClient:
    return UpstreamClient(UpstreamSettings(base_url=url, **settings), environment=environment or {}, clock=SteppedClock())


async def ask(upstream: UpstreamClient) -> bytes:
    connection = await upstream.acquire()
    connection.send(b"POST", b"/v1/messages", [(b"x-api-key", b"canary-key")], b"{}")
    try:
        await connection.head()
        body = b""
        while chunk := await connection.read():
            body += chunk
        return body
    finally:
        connection.abort()
        await upstream.close()


# The choice


def test_the_environment_names_the_proxy_in_either_case():
    assert choose_proxy(API, None, {}) is None
    assert choose_proxy(API, None, {"HTTPS_PROXY": ""}) is None
    assert choose_proxy(API, None, {"HTTP_PROXY": "http://p:1"}) is None
    assert choose_proxy(API, None, {"HTTPS_PROXY": "http://p:3128"}) == Proxy("p", 3128)
    assert choose_proxy(API, None, {"HTTPS_PROXY": "p:3128", "https_proxy": "q:1/"}) == Proxy("q", 1)


def test_the_setting_beats_the_environment():
    assert choose_proxy(API, "http://s:1", {"HTTPS_PROXY": "http://p:2", "NO_PROXY": "*"}) == Proxy("s", 1)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://127.0.0.1:9", "https://localhost", "https://[::1]:9", "https://a.localhost"])
def test_loopback_and_plain_http_are_never_proxied(url):
    assert choose_proxy(Origin.parse(url), "http://p:1", {"HTTPS_PROXY": "http://p:1"}) is None


@pytest.mark.parametrize(
    ("exempt", "expected"),
    [
        ("", False),
        ("*", True),
        ("example.test", True),
        (".example.test", True),
        ("*.example.test", True),
        ("other.test, API.example.test ", True),
        ("ample.test", False),
        ("i.example.test", False),
        ("api.example.test:443", True),
        ("api.example.test:8443", False),
        ("x.api.example.test", False),
        ("10.0.0.0/8", False),
        (",,", False),
        ("api.example.test.", True),
    ],
)
def test_no_proxy_names(exempt, expected):
    assert is_exempt(API, exempt) is expected


@pytest.mark.parametrize(
    ("host", "exempt", "expected"),
    [
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "10.1.2.3:80", False),
        ("[fd00::1]", "fd00::1", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("[fd00::1]", "[fd00::1]:443", True),
        ("[fd00::1]", "[fd00::1]:80", False),
        ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]", "10.0.0.0/8", False),
    ],
)
def test_no_proxy_addresses_and_networks(host, exempt, expected):
    assert is_exempt(Origin.parse(f"https://{host}"), exempt) is expected


@pytest.mark.parametrize(
    "url", ["https://p:1", "socks5://p:1", "http://", "http://u:canary@p:x", "http://p:1/path", "http://p:1?q", "http://p\r\n:1", "http://p :1"]
)
def test_a_proxy_url_we_cannot_use_is_an_error_of_the_settings_that_does_not_repeat_it(url):
    with pytest.raises(SettingsInvalid) as caught:
        Proxy.parse(url)
    assert "canary" not in caught.value.message


def test_a_proxy_does_not_print_its_password():
    proxy = Proxy.parse("http://user:can%40ary@p:3128")
    assert base64.b64decode(proxy.authorization.removeprefix(b"Basic ")) == b"user:can@ary"
    assert repr(proxy) == "<Proxy p:3128 with credentials>"


# TLS


def test_the_context_always_verifies():
    tls = tls_for(None)
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert tls.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_ca_file_that_cannot_be_used_is_an_error_of_the_settings(tmp_path):
    (tmp_path / "not-a-ca.pem").write_text("hello")
    for path in (tmp_path / "missing.pem", tmp_path / "not-a-ca.pem"):
        with pytest.raises(SettingsInvalid):
            client("https://127.0.0.1", ca_file=path)


async def test_a_trusted_certificate_for_the_right_host_is_accepted_and_http11_agreed(authority):
    agreed = []

    async def script(peer: Peer) -> None:
        agreed.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answering(OK)(peer)

    async with Provider(script, tls=authority.server("127.0.0.1")) as provider:
        assert await ask(client(provider.url, ca_file=authority.ca_file)) == b"hi"
    assert agreed == ["http/1.1"]


async def test_the_name_is_sent_and_checked(authority):
    names = []
    tls = authority.server("localhost")
    tls.sni_callback = lambda _object, name, _context: names.append(name)
    async with Provider(answering(OK), tls=tls) as provider:
        assert await ask(client(f"https://localhost:{provider.port}", ca_file=authority.ca_file)) == b"hi"
    assert names[-1] == "localhost"


async def _no_request(peer: Peer) -> None:
    assert await peer.ended() == b""


@pytest.mark.parametrize(("names", "trusted"), [(("api.example.test",), True), (("127.0.0.1",), False)], ids=["wrong host", "untrusted authority"])
async def test_a_certificate_that_does_not_prove_the_host_is_refused_before_anything_is_sent(authority, names, trusted):
    async with Provider(_no_request, tls=authority.server(*names)) as provider:
        upstream = client(provider.url, ca_file=authority.ca_file if trusted else None)
        with pytest.raises(UpstreamUnreachable) as caught:
            await ask(upstream)
        assert "certificate" in caught.value.message
        assert (upstream.active, upstream.idle, upstream.connected_total) == (0, 0, 0)
        await upstream.close()


async def test_an_old_protocol_is_refused(authority):
    tls = authority.server("127.0.0.1")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        tls.minimum_version, tls.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
    async with Provider(_no_request, tls=tls) as provider:
        with pytest.raises(UpstreamUnreachable):
            await ask(client(provider.url, ca_file=authority.ca_file))


async def test_a_server_without_tls_is_refused(authority):
    async def script(peer: Peer) -> None:
        await peer.send(b"220 mail.example ESMTP\r\n")
        assert b"canary" not in await peer.ended()

    async with Provider(script) as provider:
        with pytest.raises(UpstreamUnreachable):
            await ask(client(f"https://127.0.0.1:{provider.port}", ca_file=authority.ca_file))


# Addresses


async def test_a_dead_address_does_not_keep_us_from_the_next(monkeypatch):
    async with Provider(answering(OK)) as provider:

        async def resolve(self, host, port):
            return ["127.0.0.99", "127.0.0.1"]  # the server listens on the second one only

        monkeypatch.setattr(Egress, "_resolve", resolve)
        assert await ask(client(f"http://localhost:{provider.port}")) == b"hi"


async def test_a_name_without_address_is_unreachable():
    with pytest.raises(UpstreamUnreachable):
        await ask(client("https://does-not-exist.invalid"))


# A real small proxy


class TunnelProxy:
    """Opens tunnels to one port, or answers what it is told to."""

    def __init__(self, target_port: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.target_port = target_port
        self.answer = answer
        self.heads: list[bytes] = []
        self.carried = b""

    async def __call__(self, peer: Peer) -> None:
        self.heads.append(await peer.reader.readuntil(b"\r\n\r\n"))
        await peer.send_bytewise(self.answer)
        if b" 200 " not in self.answer:
            peer.close()
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target_port)

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while piece := await source.read(65536):
                    self.carried += piece
                    sink.write(piece)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.transport.abort()

        try:
            await asyncio.gather(carry(peer.reader, writer), carry(reader, peer.writer))
        finally:
            writer.transport.abort()


async def test_the_tunnel_carries_the_request_and_the_proxy_sees_the_name_only(authority):
    async with Provider(answering(OK), tls=authority.server("api.example.test")) as provider:
        proxy = TunnelProxy(provider.port)
        async with Provider(proxy) as front:
            upstream = client(
                "https://api.example.test", environment={"HTTPS_PROXY": f"http://user:secret@127.0.0.1:{front.port}"}, ca_file=authority.ca_file
            )
            assert await ask(upstream) == b"hi"
    credentials = base64.b64encode(b"user:secret")
    assert proxy.heads == [
        b"CONNECT api.example.test:443 HTTP/1.1\r\nhost: api.example.test:443\r\nproxy-authorization: Basic " + credentials + b"\r\n\r\n"
    ]
    assert b"canary-key" not in proxy.carried


async def test_a_tunnelled_connection_is_kept_and_used_again(authority):
    async with Provider(answering(OK), tls=authority.server("api.example.test")) as provider:
        proxy = TunnelProxy(provider.port)
        async with Provider(proxy) as front:
            upstream = client("https://api.example.test", proxy_url=f"http://127.0.0.1:{front.port}", ca_file=authority.ca_file)
            for reused in (False, True):
                connection = await upstream.acquire()
                assert connection.reused is reused
                connection.send(b"POST", b"/", [], b"x" * 200_000)
                assert (await connection.head()).status == 200
                assert await connection.read() == b"hi"
            await upstream.close()
    assert len(proxy.heads) == 1


async def test_the_certificate_behind_a_proxy_is_checked_as_well(authority):
    async with Provider(_no_request, tls=authority.server("127.0.0.1")) as provider, Provider(TunnelProxy(provider.port)) as front:
        upstream = client("https://api.example.test", proxy_url=f"http://127.0.0.1:{front.port}", ca_file=authority.ca_file)
        with pytest.raises(UpstreamUnreachable) as caught:
            await ask(upstream)
        assert "certificate" in caught.value.message
        await upstream.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 302 Found\r\nlocation: https://elsewhere/\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"",
        b"HTTP/1.1 2",
        b"x" * 20_000,
    ],
    ids=["407", "502", "302", "not HTTP", "nothing", "half", "endless"],
)
async def test_a_proxy_that_opens_no_tunnel_is_unreachable(answer, authority):
    async with Provider(TunnelProxy(1, answer)) as front:
        upstream = client("https://api.example.test", proxy_url=f"http://u:canary@127.0.0.1:{front.port}", ca_file=authority.ca_file)
        with pytest.raises(UpstreamUnreachable) as caught:
            await ask(upstream)
        assert "canary" not in caught.value.message
        assert "canary" not in repr(upstream)
        assert upstream.active == 0
        await upstream.close()


async def test_bytes_pushed_into_the_tunnel_are_refused(authority):
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.write(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await peer.ended()

    async with Provider(script) as front:
        with pytest.raises(UpstreamUnreachable):
            await ask(client("https://api.example.test", proxy_url=f"http://127.0.0.1:{front.port}"))


async def test_a_proxy_that_stalls_uses_up_the_connect_time_and_no_more():
    async def script(peer: Peer) -> None:
        await peer.ended()

    async with Provider(script) as front:
        upstream = client("https://api.example.test", proxy_url=f"http://127.0.0.1:{front.port}", connect_timeout_ms=50)
        with pytest.raises(UpstreamUnreachable) as caught:
            await ask(upstream)
        assert "within 50 ms" in caught.value.message


async def test_an_exempt_origin_is_reached_directly(authority, monkeypatch):
    async def resolve(self, host, port):
        return ["127.0.0.1"]

    monkeypatch.setattr(Egress, "_resolve", resolve)
    async with Provider(answering(OK), tls=authority.server("api.example.test")) as provider:
        environment = {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "example.test"}
        assert await ask(client(f"https://api.example.test:{provider.port}", environment, ca_file=authority.ca_file)) == b"hi"
