"""The worker process: books the journal until it is told to stop, then books what is left and ends.

The rules it protects: a store that is down is waited for, with pauses that grow, while the journal holds; SIGTERM ends the process only after all that can
be read is booked; one worker per journal. Change with it: `bookkeeping.py`, `processes.py`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tokenweir.errors import Conflict, StoreUnavailable
from tokenweir.ledger_ports import LedgerStore
from tokenweir.ports import Clock
from tokenweir.settings import WorkerSettings
from tokenweir.telemetry import log
from tokenweir.workers.bookkeeping import Bookkeeper, end_turn, take_turn

TURN_TIMEOUT_S: Final = 20.0
"""How long to wait for the worker before us to end."""
LAST_TRY_S: Final = 5.0
"""How long a stopping worker waits for a store that is down; the journal keeps what is left."""
_PAUSES_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def keep_books(
    directory: Path,
    store: LedgerStore,
    settings: WorkerSettings,
    *,
    clock: Clock,
    stop: threading.Event,
    ready: Callable[[], None] | None = None,
    lay_to_rest: Callable[[str], bool] | None = None,
) -> bool:
    """Book the journal in `directory` until `stop` is set; returns whether everything that could be read is booked. Raises Conflict if another worker stays.

    `lay_to_rest` ends what a dead gateway still holds elsewhere; see `Bookkeeper`.
    """
    turn = _wait_for_turn(directory, stop)
    if turn is None:
        return True
    bookkeeper = Bookkeeper(directory, store, batch_entries_max=settings.batch_entries_max, clock=clock, lay_to_rest=lay_to_rest)
    try:
        if ready is not None:
            ready()
        _until_stopped(bookkeeper, settings, stop)
        return _to_the_end(bookkeeper)
    finally:
        bookkeeper.close()
        end_turn(turn)


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set. Call it before any other thread is started.

    A thread waits for the signals: a handler would run in the main thread, which may hold the event's own lock just then.
    """
    stop = threading.Event()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def wait() -> None:
        signal.sigwait(signals)
        stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


def _until_stopped(bookkeeper: Bookkeeper, settings: WorkerSettings, stop: threading.Event) -> None:
    failures = 0
    while not stop.is_set():
        try:
            bookkeeper.step()
        except StoreUnavailable as error:
            if failures == 0:
                log(logging.ERROR, "store_unavailable", error=error.message)
            stop.wait(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1
            continue
        if failures:
            failures = 0
            log(logging.WARNING, "store_back")
        if bookkeeper.settled_up:
            stop.wait(settings.poll_ms / 1000)


def _to_the_end(bookkeeper: Bookkeeper) -> bool:
    """Book all that can be read. False if the store does not answer."""
    deadline = time.monotonic() + LAST_TRY_S
    while True:
        try:
            if bookkeeper.step() == 0 and bookkeeper.settled_up:
                return True
        except StoreUnavailable as error:
            if time.monotonic() > deadline:
                log(logging.ERROR, "store_unavailable", error=error.message)
                return False
            time.sleep(_PAUSES_S[0])


def _wait_for_turn(directory: Path, stop: threading.Event) -> int | None:
    """The right to book; None if we are stopped before we get it."""
    deadline = time.monotonic() + TURN_TIMEOUT_S
    while (turn := take_turn(directory)) is None:
        if time.monotonic() > deadline:
            raise Conflict(f"another worker is booking the journal in {directory}; only one may")
        if stop.wait(_PAUSES_S[0]):
            return None
    return turn
