"""A Tokenweir before a simulator, for each client of its own, and the comparison of their books afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from processes.books import compare
from processes.serving import RunningTokenweir, running_tokenweir
from simulation import RunningSimulator, running_simulator


@dataclass
class Rehearsal:
    """Where a client finds everything, and what became of it."""

    weir: RunningTokenweir
    simulator: RunningSimulator
    key: str

    @property
    def url(self) -> str:
        return self.weir.url

    def settled(self) -> list[dict[str, Any]]:
        """The ledger once everything is booked, which must equal the journal of truth: every attempt once, to the token and the nano-dollar.

        Only a stream that the provider broke off with an error is an estimate.
        """
        while self.simulator.state()["open"]:
            time.sleep(0.01)
        truth = self.simulator.journal()
        ledger = self.weir.booked(lambda entries: len(entries) >= len(truth))
        assert self.weir.stop() == 0
        ledger = self.weir.ledger()
        compare(truth, ledger).agree()
        outcomes = {line["request_id"]: line["outcome"] for line in truth}
        estimated = [entry for entry in ledger if entry["certainty"] not in ("exact", "none")]
        assert {outcomes[entry["upstream_request_id"]] for entry in estimated} <= {"error_in_stream"}
        exact = sum(entry["cost_nanos"] for entry in ledger if entry["certainty"] == "exact")
        assert exact == sum(line["cost_nanos"] for line in truth if line["outcome"] == "complete") > 0
        verified = self.weir.verify()
        assert verified.returncode == 0, verified.stdout
        return ledger


@contextmanager
def rehearsing(home: Path) -> Iterator[Rehearsal]:
    with running_simulator(home) as simulator, running_tokenweir(home / "weir", simulator.url) as weir:
        yield Rehearsal(weir, simulator, weir.key("blue", "sdk"))


@pytest.fixture
def rehearsal(tmp_path) -> Iterator[Rehearsal]:
    with rehearsing(tmp_path) as found:
        yield found


@pytest.fixture(scope="session")
def needed() -> Callable[[bool, str], None]:
    """Skips, visibly, where a client is not installed; where everything must be (CI=true), its absence is a failure."""

    def check(present: bool, what: str) -> None:
        if present:
            return
        if os.environ.get("CI") == "true":
            pytest.fail(f"{what} is not here, and CI=true wants it")
        pytest.skip(f"{what} is not here")

    return check
