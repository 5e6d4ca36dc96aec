"""Assembles the processes of Tokenweir from their parts: the gateway, and everything together under the supervisor.

It opens, wires, announces, and closes in order. What stores there are is known to `app.py` only; this module asks it for them. Change together with
`supervisor.py` and `cli/serve.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing
from typing import Any, NoReturn

import uvloop
from uvicorn import Config

from tokenweir import app
from tokenweir.control import Control, remove_control, write_control
from tokenweir.errors import SettingsInvalid
from tokenweir.gateway.asgi import Gateway
from tokenweir.gateway.authentication import Authenticator
from tokenweir.gateway.delivery import Courier
from tokenweir.gateway.limits import LimitRoutes
from tokenweir.gateway.messages import Messages
from tokenweir.gateway.passage import Passages
from tokenweir.gateway.relay import Relay
from tokenweir.gateway.server import Connection, GatewayServer
from tokenweir.gateway.upstream import UpstreamClient
from tokenweir.ledger_ports import LedgerStore
from tokenweir.metering.journal import JournalWriter
from tokenweir.metering.journal_files import take_lock
from tokenweir.metering.meter import Meter
from tokenweir.metering.process_limits import ProcessLimits
from tokenweir.metering.seeding import AdjustmentFeed
from tokenweir.policies import parse_network
from tokenweir.ports import Clock, Directory
from tokenweir.receiver.asgi import Receiver
from tokenweir.receiver.booking import TelemetryBooks
from tokenweir.settings import Settings
from tokenweir.supervisor import RoleFailed, end_with_supervisor, listen, supervise, url_of
from tokenweir.telemetry import log, start_logging
from tokenweir.workers.limit_recovery import LimitRecovery
from tokenweir.workers.model_watch import watch_models
from tokenweir.workers.runner import keep_books, stop_on_signal

Announce = Callable[[dict[str, Any]], None]

LIMITS_LOCK = "limits.lock"
EXIT_FENCED = 70
"""The gateway ended itself because its journal could not be made durable."""


def run_everything(settings: Settings, *, config_arguments: Sequence[str], announce: Announce, gateways: int = 1) -> int:
    """The supervisor with gateways and worker, from an empty folder if need be; returns the exit code."""
    if gateways > 1 and settings.limits.store_url is None:
        raise SettingsInvalid(
            f"{gateways} gateway processes must count limits together: set limits.store_url to a Valkey or Redis server, "
            "such as redis://127.0.0.1:6379/0, or leave --workers at 1"
        )
    start_logging(settings.log_level)
    app.prepare_data_dir(settings)
    app.open_engine(settings, create=True, upgrade=True).dispose()
    with closing(app.open_directory(settings)) as directory:
        app.open_pepper(settings, directory)
    app.open_rate_card(settings)
    listener = listen(settings.gateway.host, settings.gateway.port)
    telemetry = settings.telemetry_receiver
    try:
        return asyncio.run(
            supervise(
                listener=listener,
                config_arguments=config_arguments,
                gateway_stop_timeout_s=settings.gateway.shutdown_timeout_ms / 1000 + 10,
                announce=announce,
                receiver_listener=None if telemetry.port is None else listen(telemetry.host, telemetry.port),
                gateways=gateways,
            )
        )
    except* RoleFailed as failures:
        raise failures.exceptions[0] from None


def run_gateway(settings: Settings, *, announce: Announce, listen_fd: int | None = None) -> int:
    """One gateway process; returns the exit code."""
    start_logging(settings.log_level)
    if listen_fd is None:
        app.prepare_data_dir(settings)
        listener = listen(settings.gateway.host, settings.gateway.port)
    else:
        listener = socket.socket(fileno=listen_fd)
        end_with_supervisor()
    return uvloop.run(_serve(settings, listener, announce))


def run_receiver(settings: Settings, *, announce: Announce, listen_fd: int | None = None, supervised: bool = False) -> int:
    """The telemetry receiver alone; returns the exit code."""
    start_logging(settings.log_level)
    if listen_fd is None:
        app.prepare_data_dir(settings)
        listener = listen(settings.telemetry_receiver.host, settings.telemetry_receiver.port or 0)
    else:
        listener = socket.socket(fileno=listen_fd)
    if supervised:
        end_with_supervisor()
    return uvloop.run(_receive(settings, listener, announce))


def run_worker(settings: Settings, *, announce: Announce, supervised: bool) -> int:
    """The worker process; returns the exit code: 1 if something could be read and not be booked (the journal keeps it)."""
    start_logging(settings.log_level)
    stop = stop_on_signal()
    if supervised:
        end_with_supervisor()
    store = app.open_ledger(settings, create=True, upgrade=True)

    def ready() -> None:
        announce({"ready": True, "role": "worker", "pid": os.getpid()})
        log(logging.INFO, "ready", role="worker")

    watching = threading.Thread(
        target=watch_models,
        args=(settings,),
        kwargs={
            "open_models": lambda: app.open_provider_models(settings),
            "upstream_key": lambda: app.any_upstream_key(settings),
            "clock": app.SystemClock(),
            "stop": stop,
        },
        name="models",
        daemon=True,  # a provider that does not answer must not hold up the end
    )
    watching.start()
    with contextlib.ExitStack() as opened:
        lay_to_rest = _recovery(settings, store, opened)
        done = keep_books(app.journal_dir(settings), store, settings.worker, clock=app.SystemClock(), stop=stop, ready=ready, lay_to_rest=lay_to_rest)
    store.close()
    log(logging.INFO, "stopped", role="worker")
    return 0 if done else 1


def _recovery(settings: Settings, ledger: LedgerStore, opened: contextlib.ExitStack) -> Callable[[str], bool] | None:
    """What ends the holds of dead gateways; nothing has to if each counts in its own memory, which is gone with it."""
    if settings.limits.store_url is None:
        return None
    return LimitRecovery(
        open_store=lambda owner: app.open_limit_store(settings, owner=owner),
        ledger=ledger,
        directory=opened.enter_context(closing(app.open_directory(settings))),
        limits=opened.enter_context(closing(app.open_limit_directory(settings))),
        card=app.open_names_card(settings),
        clock=app.SystemClock(),
    ).end_holds


async def _serve(settings: Settings, listener: socket.socket, announce: Announce) -> int:
    clock, mint = app.SystemClock(), app.IdMint()
    async with contextlib.AsyncExitStack() as opened:
        opened.callback(log, logging.INFO, "stopped", role="gateway")
        opened.enter_context(_alone(settings))
        opened.callback(app.open_engine(settings, create=True, upgrade=True).dispose)
        journal = JournalWriter(app.journal_dir(settings), settings.journal, writer=mint(clock.now_us()), on_broken=_fence)
        opened.callback(journal.close)
        directory = opened.enter_context(closing(app.open_directory(settings)))
        app.open_pepper(settings, directory)
        limits = _limits_of_process(settings, journal, directory, clock, opened)
        authenticator = opened.enter_context(closing(Authenticator(directory, app.open_secrets(settings), clock, on_limits=limits.take)))
        opened.push_async_callback(limits.close)
        upstream = UpstreamClient(settings.upstream, environment=os.environ, clock=clock)
        opened.push_async_callback(upstream.close)
        passages = Passages(settings.gateway)
        control = Control(url_of(listener), secrets.token_urlsafe(32), os.getpid())
        strict = settings.journal.durability == "strict"

        def mint_request_id() -> str:
            return f"req_tw_{mint(clock.now_us())}"

        gateway = Gateway(
            messages=Messages(
                authenticator=authenticator,
                meter=Meter(journal=journal, card=app.open_rate_card(settings), clock=clock, mint=mint, limiter=limits.limiter),
                card=app.open_names_card(settings),
                courier=Courier(upstream=upstream, journal=journal, settings=settings.upstream, clock=clock, strict=strict),
                relay=Relay(journal=journal, strict=strict),
                passages=passages,
                body_bytes_max=settings.gateway.body_bytes_max,
            ),
            limits=LimitRoutes(
                authenticator=authenticator, standings=limits.standings, waits=limits.room.report, control_token=control.token, clock=clock
            ),
            passages=passages,
            mint_request_id=mint_request_id,
            ready=lambda: None if authenticator.ready and journal.broken is None else "starting",
            trusted_proxies=tuple(map(parse_network, settings.gateway.trusted_proxies)),
            connections_max=settings.gateway.connections_max,
        )
        server = _make_server(settings, gateway, passages, mint_request_id)
        await authenticator.load()
        await limits.start(authenticator.principals)
        await upstream.start()
        write_control(settings.data_dir, control)
        opened.callback(remove_control, settings.data_dir, control)
        await _serve_beside(server, listener, announce, authenticator.follow(), limits.follow())
    return 0


async def _serve_beside(server: GatewayServer, listener: socket.socket, announce: Announce, *beside: Coroutine[Any, Any, NoReturn]) -> None:
    """Serve until the end, with what keeps the process up to date beside it."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one) for one in (*beside, _announce_when_listening(server, listener, announce))]
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in running:
                task.cancel()


def _limits_of_process(
    settings: Settings, journal: JournalWriter, directory: Directory, clock: Clock, opened: contextlib.AsyncExitStack
) -> ProcessLimits:
    ledger = opened.enter_context(closing(app.open_ledger(settings)))
    feed = AdjustmentFeed(ledger, clock)
    return ProcessLimits(
        store=app.open_limit_store(settings, owner=journal.writer),
        use=app.open_ledger_use(settings, ledger, directory, feed=feed, writer=journal.writer),
        feed=feed,
        card=app.open_rate_card(settings),
        names=app.open_names_card(settings),
        clock=clock,
        local_share_percent=settings.limits.local_share_percent,
    )


async def _receive(settings: Settings, listener: socket.socket, announce: Announce) -> int:
    clock, mint = app.SystemClock(), app.IdMint()
    card = app.open_rate_card(settings)
    ledger = app.open_ledger(settings, create=True, upgrade=True)
    sums = app.open_telemetry_sums(settings)
    directory = app.open_directory(settings)
    app.open_pepper(settings, directory)
    authenticator = Authenticator(directory, app.open_secrets(settings), clock)

    def mint_request_id() -> str:
        return f"req_tw_{mint(clock.now_us())}"

    receiver = Receiver(
        authenticator=authenticator,
        books=TelemetryBooks(ledger, sums, card, clock),
        body_bytes_max=settings.telemetry_receiver.body_bytes_max,
        mint_request_id=mint_request_id,
        trusted_proxies=tuple(map(parse_network, settings.gateway.trusted_proxies)),
    )

    def stopping() -> None:
        receiver.stopping = True
        log(logging.INFO, "shutting_down", role="receiver")

    server = _http_server(settings, receiver, mint_request_id, on_stopping=stopping, end_streams=lambda: None)
    try:
        await authenticator.load()
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(authenticator.follow())
            announcing = tasks.create_task(_announce_when_listening(server, listener, announce, role="receiver"))
            try:
                await server.serve(sockets=[listener])
            finally:
                following.cancel()
                announcing.cancel()
    finally:
        receiver.close()
        authenticator.close()
        for store in (directory, sums, ledger):
            store.close()
        log(logging.INFO, "stopped", role="receiver")
    return 0


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Make sure that no other process counts the limits of this data directory in a memory of its own, for as long as the block lasts."""
    if settings.limits.store_url is not None:
        yield
        return
    app.prepare_data_dir(settings)
    claim = take_lock(settings.data_dir / LIMITS_LOCK)
    if claim is None:
        raise SettingsInvalid(
            f"another gateway process serves {settings.data_dir} and counts its limits in memory; end it, or set limits.store_url for both"
        )
    try:
        yield
    finally:
        os.close(claim)


def _make_server(settings: Settings, gateway: Gateway, passages: Passages, mint_request_id: Callable[[], str]) -> GatewayServer:
    def stopping() -> None:
        gateway.stopping = True
        log(logging.INFO, "shutting_down", role="gateway", open_requests=len(passages))

    server = _http_server(settings, gateway, mint_request_id, on_stopping=stopping, end_streams=passages.end_all)
    gateway.connections = lambda: len(server.server_state.connections)
    return server


def _http_server(
    settings: Settings,
    application: Gateway | Receiver,
    mint_request_id: Callable[[], str],
    *,
    on_stopping: Callable[[], None],
    end_streams: Callable[[], None],
) -> GatewayServer:
    """A server with the bounds of the gateway on what clients may hold open."""
    Connection.bounds = settings.gateway
    Connection.mint_request_id = staticmethod(mint_request_id)
    return GatewayServer(
        Config(
            application,
            http=Connection,
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=2048,
        ),
        on_stopping=on_stopping,
        end_streams=end_streams,
        grace_ms=settings.gateway.shutdown_timeout_ms,
    )


async def _announce_when_listening(server: GatewayServer, listener: socket.socket, announce: Announce, *, role: str = "gateway") -> None:
    await server.listening.wait()
    announce({"ready": True, "role": role, role: url_of(listener), "pid": os.getpid()})


def _fence(detail: str) -> None:
    """The journal is broken: nothing may be acknowledged any more, so this process ends at once. Called from any thread."""
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(EXIT_FENCED)
