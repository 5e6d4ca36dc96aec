"""Fetching what an operator named: only public hosts over https, whatever the URL is dressed as; bounded in size and time; never another way."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tokenweir.cli import fetch as fetching
from tokenweir.cli.fetch import fetch, is_public
from tokenweir.errors import OperatorError

FORBIDDEN = [
    "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "0", "0.0.0.0", "localhost", "localhost.",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]", "[0:0:0:0:0:ffff:a9fe:a9fe]", "[::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]", "[fe80::1%251]", "[fc00::1]", "[fd00::1]",
    "[ff02::1]", "[100::1]", "[2001:db8::1]", "169.254.169.254", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "169.254.43518", "10.0.0.1",
    "10.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.1", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1",
    "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
]  # fmt: skip
NOT_READ = [
    "http://example.org/rates.json", "ftp://example.org/x", "file:///etc/passwd", "gopher://example.org", "https://", "https:///x", "//example.org/x",
    "https://user@example.org/x", "https://user:pw@example.org/x", "https://@example.org/x", "https://1.1.1.1@127.0.0.1/x", "https://127.0.0.1#@1.1.1.1/",
    "https://example.org:0/", "https://example.org:99999/", "https://example.org:x/", "https://example.org:8443/x", "https://ex ample.org/",
    "https://example.org\\@127.0.0.1/", "https://\uff45xample.org/", "https://\u2460\u2461\u2466.0.0.1/", "https://example\u3002org/", "https://[::1/", "javascript://x", "HTTPS//x",
]  # fmt: skip


@pytest.fixture
def no_connections(monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"a connection was tried: {arguments}")

    monkeypatch.setattr(fetching.socket, "create_connection", refuse)


@pytest.mark.parametrize("host", FORBIDDEN)
def test_no_spelling_of_a_private_address_is_connected_to(host, no_connections):
    with pytest.raises(OperatorError):
        fetch(f"https://{host}/rates.json", bytes_max=1000)


@pytest.mark.parametrize("url", NOT_READ)
def test_what_is_no_plain_https_url_is_not_read(url, no_connections):
    with pytest.raises(OperatorError):
        fetch(url, bytes_max=1000)


def test_a_host_with_one_private_address_among_others_is_not_connected_to(monkeypatch, no_connections):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(OperatorError, match=r"10\.0\.0\.1, which is not a public address"):
        fetch("https://example.org/", bytes_max=1000)


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(monkeypatch):
    answers = iter(["1.1.1.1", "127.0.0.1"])
    tried = []

    def look_up(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address, *_):
        tried.append(address)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(fetching.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(fetching.socket, "create_connection", connect)
    with pytest.raises(OperatorError, match="no connection"):
        fetch("https://rebinding.example/", bytes_max=1000)
    assert tried == [("1.1.1.1", 443)]


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111"])
def test_a_public_address_is_one(address):
    assert is_public(ipaddress.ip_address(address))


class _Site(BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self):
        match self.path:
            case "/rates.json":
                self._answer(200, b"rates", {})
            case "/elsewhere":
                self._answer(302, b"", {"location": "/rates.json"})
            case "/large":
                self._answer(200, b"x" * 5_000, {})
            case "/short":
                self._answer(200, b"x" * 10, {"content-length": "100"})
            case "/slow":
                self.send_response_only(200)
                self.end_headers()
                while not self.server.over.wait(0.02):
                    try:
                        self.wfile.write(b"x")
                    except OSError:
                        return
            case _:
                self._answer(404, b"", {})

    def _answer(self, status, body, headers):
        self.send_response_only(status)
        for name, value in ({"content-length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def site(tmp_path, monkeypatch, name="localhost"):
    """A server with a certificate for `name` that we trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    own, trusted = tmp_path / "own.pem", tmp_path / "trusted.pem"
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    own.write_bytes(private + trusted.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    server.over = threading.Event()
    server.handle_error = lambda *_: None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}"
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def ipv4_alone(monkeypatch):
    """localhost is 127.0.0.1, whatever this machine's hosts file says."""
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *place, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", place[1]))])


def test_loopback_is_read_when_it_is_allowed_and_only_then(tmp_path, monkeypatch, ipv4_alone):
    with site(tmp_path, monkeypatch) as url:
        assert fetch(f"{url}/rates.json", bytes_max=1000, allow_loopback=True) == b"rates"
        with pytest.raises(OperatorError, match="only port 443"):
            fetch(f"{url}/rates.json", bytes_max=1000)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("/elsewhere", "redirects are not followed"), ("/large", "more than 1000 bytes"), ("/short", "does not speak HTTP"), ("/nowhere", "HTTP 404")],
)
def test_redirects_large_short_and_missing_files_are_refused(tmp_path, monkeypatch, ipv4_alone, path, sentence):
    with site(tmp_path, monkeypatch) as url, pytest.raises(OperatorError, match=sentence):
        fetch(url + path, bytes_max=1000, allow_loopback=True)


def test_a_server_that_drips_is_left_in_time(tmp_path, monkeypatch, ipv4_alone):
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.5)
    with site(tmp_path, monkeypatch) as url, pytest.raises(OperatorError, match="did not answer whole"):
        fetch(f"{url}/slow", bytes_max=10_000_000, allow_loopback=True)


def test_a_certificate_for_another_name_is_not_trusted(tmp_path, monkeypatch, ipv4_alone):
    with site(tmp_path, monkeypatch, name="example.org") as url, pytest.raises(OperatorError, match="is not trusted"):
        fetch(f"{url}/rates.json", bytes_max=1000, allow_loopback=True)


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(tmp_path, monkeypatch, ipv4_alone):
    with site(tmp_path, monkeypatch) as url:
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(OperatorError, match="is not trusted"):
            fetch(f"{url}/rates.json", bytes_max=1000, allow_loopback=True)
