"""The worker's loop: waits for a store, ends in order, and never books beside another worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from bookings import WRITER, DictLedger, StoppedClock, intent, settlement
from tokenweir import app
from tokenweir.errors import Conflict, StoreUnavailable
from tokenweir.metering.journal import JournalWriter
from tokenweir.settings import JournalSettings, Settings, WorkerSettings
from tokenweir.workers import runner
from tokenweir.workers.bookkeeping import take_turn

FAST = WorkerSettings(poll_ms=1)
SMALL = JournalSettings(segment_bytes=65_536, reserve_bytes=65_536)


class Watched(DictLedger):
    """Tells when it has booked so many entries, and when it was asked so often while it was down."""

    def __init__(self) -> None:
        super().__init__()
        self.booking = threading.Condition()
        self.refusals = 0

    def book(self, entries, checkpoints=()):
        with self.booking:
            self.booking.notify_all()
            try:
                return super().book(entries, checkpoints)
            except StoreUnavailable:
                self.refusals += 1
                raise

    def wait_for(self, condition) -> None:
        with self.booking:
            assert self.booking.wait_for(condition, 20)


def running(directory, store, stop, results):
    def run() -> None:
        results.append(runner.keep_books(directory, store, FAST, clock=StoppedClock(), stop=stop))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_entries_are_booked_while_it_runs_and_what_is_left_when_it_is_stopped(tmp_path):
    store, stop, results = Watched(), threading.Event(), []
    with closing(JournalWriter(tmp_path, SMALL, writer=WRITER)) as journal:
        thread = running(tmp_path, store, stop, results)
        journal.append_intent(intent(1))
        journal.append_settlement(settlement(intent(1)))
        store.wait_for(lambda: len(store.booked) == 1)
        journal.append_intent(intent(2))
        journal.append_settlement(settlement(intent(2)))
        stop.set()
        thread.join(20)
    assert results == [True]
    assert len(store.booked) == 2
    turn = take_turn(tmp_path)
    assert turn is not None, "the turn is given back"
    os.close(turn)


def test_a_store_that_comes_back_gets_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_PAUSES_S", (0.001,))
    store, stop, results = Watched(), threading.Event(), []
    with closing(JournalWriter(tmp_path, SMALL, writer=WRITER)) as journal:
        store.failing = StoreUnavailable()
        for n in range(10):
            journal.append_intent(intent(n))
            journal.append_settlement(settlement(intent(n)))
        monkeypatch.setattr(store, "checkpoints", dict)
        thread = running(tmp_path, store, stop, results)
        store.wait_for(lambda: store.refusals > 3)
        store.failing = None
        store.wait_for(lambda: len(store.booked) == 10)
        stop.set()
        thread.join(20)
    assert results == [True]


def test_a_store_that_stays_away_leaves_the_journal_for_the_next_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_PAUSES_S", (0.001,))
    monkeypatch.setattr(runner, "LAST_TRY_S", 0.01)
    store, stop, results = Watched(), threading.Event(), []
    store.failing = StoreUnavailable()
    journal = JournalWriter(tmp_path, SMALL, writer=WRITER)
    journal.append_intent(intent(1))
    journal.append_settlement(settlement(intent(1)))
    journal.close()
    stop.set()
    running(tmp_path, store, stop, results).join(20)
    assert results == [False]
    store.failing = None
    running(tmp_path, store, stop, results).join(20)
    assert results == [False, True]
    assert len(store.booked) == 1


def test_a_second_worker_waits_for_its_turn_and_then_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "TURN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(runner, "_PAUSES_S", (0.001,))
    turn = take_turn(tmp_path)
    with pytest.raises(Conflict, match="another worker"):
        runner.keep_books(tmp_path, DictLedger(), FAST, clock=StoppedClock(), stop=threading.Event())
    stop = threading.Event()
    stop.set()
    assert runner.keep_books(tmp_path, DictLedger(), FAST, clock=StoppedClock(), stop=stop)
    os.close(turn)


def test_the_worker_process_books_what_a_dead_gateway_left_and_ends_in_order(tmp_path):
    settings = Settings(data_dir=tmp_path / "home")
    journal = app.open_journal(settings)
    for n in range(20):
        journal.append_intent(intent(n))
        if n % 2:
            journal.append_settlement(settlement(intent(n)))
    journal.close()
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenweir", "serve", "--role", "worker", "--data-dir", str(settings.data_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert json.loads(process.stdout.readline())["role"] == "worker"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with closing(app.open_ledger(settings)) as store:
        found = store.page()
        assert [entry.certainty for entry in found] == ["ceiling", "exact"] * 10
    assert [path.name for path in app.journal_dir(settings).iterdir()] == ["bookkeeper.lock"]
