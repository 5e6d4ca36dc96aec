"""The client for Valkey and Redis, against a real server that is frozen, killed, locked and flushed."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from pydantic import SecretStr

from tokenweir.errors import SettingsInvalid, StoreUnavailable
from tokenweir.storage.valkey import Address, Script, Valkey, parse_address
from valkeys import Server, needs_valkey, own_server, shared_server

ECHO = Script("return ARGV[1]")


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not seen():  # noqa: ASYNC110 -- what is waited for is whatever the caller says
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def client(url: SecretStr, **more: Any) -> AsyncIterator[Valkey]:
    opened = Valkey(parse_address(url), **{"timeout_ms": 300, "scripts": (ECHO,)} | more)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def server() -> Iterator[Server]:
    started = own_server()
    yield started
    started.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Where the server is


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("valkey://localhost", Address(host="localhost")),
        ("redis://10.0.0.1:7000/3", Address(host="10.0.0.1", port=7000, database=3)),
        ("rediss://:p%40ss@store.example", Address(host="store.example", tls=True, password=SecretStr("p@ss"))),
        ("valkeys://gate:secret@[::1]:6380/1", Address(host="::1", port=6380, tls=True, database=1, user="gate", password=SecretStr("secret"))),
        ("unix:///run/valkey.sock", Address(path="/run/valkey.sock")),
        ("unix://:secret@/run/valkey.sock?db=2", Address(path="/run/valkey.sock", database=2, password=SecretStr("secret"))),
    ],
)
def test_urls(url, address):
    """The usual URLs of both servers are read, passwords unquoted."""
    assert parse_address(SecretStr(url)) == address


@pytest.mark.parametrize(
    "url", ["http://:secret@host", "valkey://", "valkey://:secret@host:port", "redis://:secret@h/db", "unix://:secret@", "valkey://:secret@h/-1"]
)
def test_a_wrong_url_is_one_sentence_without_the_password(url):
    """What is wrong is said without repeating the URL, which holds a password."""
    with pytest.raises(SettingsInvalid, match=r"limits\.store_url") as raised:
        parse_address(SecretStr(url))
    assert "secret" not in str(raised.value)


def test_an_address_does_not_print_its_password():
    """Neither the short nor the long form shows it."""
    address = parse_address(SecretStr("valkey://:secret@host"))
    assert "secret" not in str(address) + repr(address)


async def test_without_its_package_the_client_says_what_to_install(monkeypatch):
    """The package that reads answers is optional; who needs it is told its name."""
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(SettingsInvalid, match=r"pip install 'tokenweir\[valkey\]'"):
        Valkey(Address(host="localhost"))


# Connecting


@needs_valkey
async def test_commands_are_answered_in_their_order():
    """Many commands at once go out on one connection, and each gets its own reply."""
    async with client(shared_server().url, timeout_ms=5_000) as valkey:
        assert await asyncio.gather(*(valkey.call("ECHO", f"{n}") for n in range(500))) == [b"%d" % n for n in range(500)]


@needs_valkey
async def test_passwords_users_and_databases():
    """The client signs in, as the only user or as a named one, and uses the database of its URL."""
    server = own_server("--requirepass", "right")
    try:
        async with client(SecretStr(f"unix://:right@{server.socket}?db=3")) as valkey:
            assert await valkey.call("SET", "here", "yes") == b"OK"
            assert await valkey.call("ACL", "SETUSER", "gate", "on", ">gatepass", "~*", "+@all") == b"OK"
        async with client(SecretStr(f"unix://gate:gatepass@{server.socket}?db=3")) as valkey:
            assert await valkey.call("GET", "here") == b"yes"
            assert await valkey.call("ACL", "WHOAMI") == b"gate"
    finally:
        server.kill()


@needs_valkey
async def test_a_wrong_password():
    """Operations fail at once, the reason is kept for the log, and it does not hold the password."""
    server = own_server("--requirepass", "right")
    try:
        for userinfo, reason in ((":wrong@", "WRONGPASS"), ("", "NOAUTH")):
            async with client(SecretStr(f"unix://{userinfo}{server.socket}")) as valkey:
                assert not valkey.up
                with pytest.raises(StoreUnavailable) as raised:
                    await valkey.call("PING")
                assert reason in valkey.why
                assert "wrong" not in (valkey.why + str(raised.value)).replace("WRONGPASS", "")
    finally:
        server.kill()


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, with its key in the same file."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - dt.timedelta(1), now + dt.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "both.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return file


@needs_valkey
async def test_tls(tmp_path):
    """A server with TLS is used if its certificate is trusted, and not otherwise."""
    file, port = certificate(tmp_path), free_port()
    server = own_server("--tls-port", str(port), "--tls-cert-file", str(file), "--tls-key-file", str(file), "--tls-auth-clients", "no")
    try:
        url = SecretStr(f"valkeys://127.0.0.1:{port}")
        async with client(url, ca_file=file, timeout_ms=1_000) as valkey:
            assert await valkey.call("PING") == b"PONG"
        async with client(url) as valkey:
            assert not valkey.up
            assert "certificate" in valkey.why.lower()
    finally:
        server.kill()
    assert ssl.create_default_context().check_hostname


@needs_valkey
async def test_tcp():
    """A server on a port is used like one on a socket."""
    port = free_port()
    server = own_server(port=port)
    try:
        async with client(SecretStr(f"redis://127.0.0.1:{port}/1")) as valkey:
            assert await valkey.call("PING") == b"PONG"
    finally:
        server.kill()


async def test_no_server_at_all(tmp_path):
    """Where nobody listens, opening returns and operations fail at once."""
    async with client(SecretStr(f"unix://{tmp_path}/nobody.sock")) as valkey:
        with pytest.raises(StoreUnavailable):
            await valkey.call("PING")
        with pytest.raises(StoreUnavailable):
            valkey.post(ECHO, (0, "x"), pytest.fail)


# A server in trouble


@needs_valkey
async def test_a_frozen_server(server):
    """What is under way fails within the bound, what comes later at once, and a server that goes on is used again."""
    changes: list[bool] = []
    async with client(server.url, on_change=lambda up, _: changes.append(up)) as valkey:
        server.freeze()
        posted: list[object] = []
        valkey.post(ECHO, (0, "posted"), posted.append)
        async with asyncio.timeout(5):
            under_way = await asyncio.gather(*(valkey.call("ECHO", "old") for _ in range(50)), return_exceptions=True)
        assert all(isinstance(one, StoreUnavailable) for one in under_way)
        assert posted == [None]
        assert changes == [True, False]
        for _ in range(1_000):
            # At once: the event loop does not even get to run anything else, and the whole takes much less than one bound each.
            with pytest.raises(StoreUnavailable):
                valkey.call("PING").send(None)
        server.thaw()
        await until(lambda: valkey.up)
        assert await valkey.call("ECHO", "new") == b"new"
        assert changes == [True, False, True]


@needs_valkey
async def test_an_idle_connection_to_a_frozen_server_is_noticed(server):
    """Nobody has to ask to find out that the server does not answer."""
    async with client(server.url) as valkey:
        server.freeze()
        await until(lambda: not valkey.up)
        server.thaw()
        await until(lambda: valkey.up)


@needs_valkey
async def test_a_server_that_is_killed_and_started_again(server):
    """The connection ends with the server; the next one is used as soon as it is there, with the scripts it needs."""
    async with client(server.url) as valkey:
        for _ in range(2):
            server.kill()
            await until(lambda: not valkey.up)
            with pytest.raises(StoreUnavailable):
                await valkey.run(ECHO, 0, "x")
            server.start()
            await until(lambda: valkey.up)
            assert await valkey.run(ECHO, 0, "x") == b"x"


@needs_valkey
async def test_a_late_reply_is_nobodys(server):
    """A command whose reply was too late does not lend it to the next one."""
    async with client(server.url) as valkey:
        for n in range(3):
            with pytest.raises(StoreUnavailable):
                await asyncio.gather(valkey.call("DEBUG", "SLEEP", "0.8"), valkey.call("ECHO", f"late {n}"))
            await until(lambda: valkey.up)
            assert await valkey.call("ECHO", f"own {n}") == b"own %d" % n


async def test_bytes_of_a_connection_that_was_given_up_are_not_read():
    """Even if they arrive when the next connection is open already; nor is a reply that nobody asked for."""
    served: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        while line := await reader.readline():
            if b"PING" in line and len(served) > 1:
                writer.write(b"+SECOND\r\n")
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with client(SecretStr(f"valkey://127.0.0.1:{port}"), scripts=()) as valkey:
        with pytest.raises(StoreUnavailable):
            await valkey.call("PING")
        with contextlib.suppress(OSError):
            served[0].write(b"+FIRST\r\n")
        await until(lambda: valkey.up)
        assert await valkey.call("PING") == b"SECOND"
        served[-1].write(b"+NOBODY\r\n")
        await until(lambda: not valkey.up)
        await until(lambda: valkey.up)
        assert await valkey.call("PING") == b"SECOND"
        served[-1].write(b"no reply begins like this\r\n")
        await until(lambda: not valkey.up)
    listening.close()
    for writer in served:
        writer.close()


@needs_valkey
async def test_a_busy_event_loop_is_not_a_late_reply(server):
    """A reply that came in time and waits behind other work of this process is read."""
    async with client(server.url) as valkey:
        asked = asyncio.ensure_future(valkey.call("ECHO", "in time"))
        await asyncio.sleep(0)
        time.sleep(0.8)  # noqa: ASYNC251 -- the event loop is meant to be held up
        assert await asked == b"in time"
        assert valkey.up


@needs_valkey
async def test_scripts_that_the_server_forgot(server):
    """They are loaded again on the spot, also for those that wait for no reply, and for many at once."""
    async with client(server.url, timeout_ms=2_000) as valkey:
        server.ask("SCRIPT", "FLUSH")
        posted: list[object] = []
        valkey.post(ECHO, (0, "posted"), posted.append)
        answers = await asyncio.gather(*(valkey.run(ECHO, 0, f"{n}") for n in range(20)))
        assert answers == [b"%d" % n for n in range(20)]
        assert posted == [b"posted"]


@needs_valkey
async def test_the_servers_no(server):
    """A command that is wrong fails by itself; a server that cannot be written to counts as down until it can."""
    async with client(server.url) as valkey:
        with pytest.raises(StoreUnavailable, match="unknown command"):
            await valkey.call("NONSENSE")
        assert valkey.up
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="OOM"):
            await valkey.call("SET", "k", "v")
        assert not valkey.up
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: valkey.up)
        assert await valkey.call("SET", "k", "v") == b"OK"


@needs_valkey
async def test_somebody_who_stops_waiting(server):
    """The reply of a command that was given up is read and dropped, and the others get theirs."""
    async with client(server.url) as valkey:
        given_up = asyncio.ensure_future(valkey.call("ECHO", "given up"))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await valkey.call("ECHO", "kept") == b"kept"
        with pytest.raises(asyncio.CancelledError):
            await given_up


@needs_valkey
async def test_closing_ends_what_is_under_way(server):
    """Nothing waits for a client that was closed."""
    async with client(server.url) as valkey:
        server.freeze()
        waiting = asyncio.ensure_future(valkey.call("PING"))
        await asyncio.sleep(0)
        await valkey.close()
        with pytest.raises(StoreUnavailable):
            await waiting
        server.thaw()


@needs_valkey
@pytest.mark.parametrize(
    "scenario",
    [
        test_a_frozen_server,
        test_a_server_that_is_killed_and_started_again,
        test_a_late_reply_is_nobodys,
        test_a_busy_event_loop_is_not_a_late_reply,
        test_scripts_that_the_server_forgot,
        test_closing_ends_what_is_under_way,
    ],
)
def test_the_same_on_the_event_loop_of_the_gateway(server, scenario):
    """Gateways run on uvloop, whose timers and transports are its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario(server))
