"""Everything the provider can do wrong, through the real gateway: the client gets a well-formed error or a broken answer, never one that only looks complete.

Each fault is asked for by a request of its own, all at once before one gateway; then truth and ledger are compared, and each request's attempts are
looked at: at most three, each with its own record.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from processes.books import compare
from processes.calling import Answered, Asked, ask, call
from processes.serving import running_tokenweir
from simulation import running_simulator
from tokenweir.simulator.refusals import NAMED


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and what comes of it."""

    directives: str
    certainty: str
    """Of the last attempt."""
    client: str
    """`complete`; `error` (a whole refusal of status `status`); `broken` (an aborted answer, or a stream that ends with an error event); `passed` (the provider's
    bytes as they came, complete in form and not an answer that a client could take for one); `bare` (a whole message in which the provider stated no usage)."""
    status: int = 200
    attempts: int = 1
    stream: bool = False
    kind: str = ""
    """The type of the error that the client reads."""

    @property
    def name(self) -> str:
        return f"{'stream' if self.stream else 'json'} {self.directives}"


RETRIED = {"rate_limit_error", "ramp_limit", "bad_gateway", "unavailable", "overloaded_error", "compaction_unavailable"}

REFUSALS = [
    Fault(f"refuse={name}", "none", "error", row[0], attempts=3 if name in RETRIED else 1, stream=stream, kind=row[1])
    for name, row in NAMED.items()
    for stream in (False, True)
]
JSON = [
    Fault("output=40", "exact", "complete"),
    Fault("refuse=overloaded_error;retry_after=3600", "none", "error", 529, kind="overloaded_error"),
    Fault("refuse=rate_limit_error;retry_after=-1", "none", "error", 429, kind="rate_limit_error"),
    Fault("refuse=overloaded_error;should_retry=false", "none", "error", 529, kind="overloaded_error"),
    Fault("cut=0", "ceiling", "error", 502, kind="api_error"),
    Fault("cut=0;cut_by=fin", "ceiling", "error", 502, kind="api_error"),
    Fault("cut=40", "ceiling", "broken"),
    Fault("output=90;cut=300;cut_by=fin", "ceiling", "broken"),
    Fault("stall_head=-1", "ceiling", "error", 504, kind="timeout_error"),
    Fault("stall=-1", "ceiling", "broken"),
    Fault("ttfb=300;output=20", "exact", "complete"),
    Fault("slow_head=1", "exact", "complete"),
    Fault("chunk=1", "exact", "complete"),
    Fault("interim=3", "exact", "complete"),
    Fault("truncate=60", "ceiling", "passed"),
    Fault("truncate=0", "ceiling", "passed"),
    Fault("content_length=40", "ceiling", "broken"),
    Fault("content_length=-40", "ceiling", "passed"),
    Fault("trailing=40", "exact", "complete"),
    Fault("no_usage", "ceiling", "bare"),
    Fault("unknown_usage", "exact", "complete"),
    Fault("future", "exact", "complete"),
    Fault("refusal=empty", "exact", "complete"),
    Fault("refusal=midstream", "exact", "complete"),
    Fault("searches=2;output=60", "exact", "complete"),
]
STREAMS = [
    Fault("output=40", "exact", "complete", stream=True),
    Fault("cut=0", "ceiling", "error", 502, stream=True, kind="api_error"),
    *[Fault(f"output=60;cut={at};cut_by={how}", "partial", "broken", stream=True) for at in (700, 900, 1201, 1800) for how in ("rst", "fin")],
    Fault("stall_head=-1", "ceiling", "error", 504, stream=True, kind="timeout_error"),
    Fault("stall=-1;stall_after=0", "ceiling", "error", 504, stream=True, kind="timeout_error"),
    *[Fault(f"output=60;stall=-1;stall_after={events}", "partial", "broken", stream=True) for events in (1, 2, 3, 7)],
    Fault("error_after=0;error=invalid_request_error", "none", "error", 400, stream=True, kind="invalid_request_error"),
    Fault("error_after=0", "none", "error", 529, attempts=3, stream=True, kind="overloaded_error"),
    *[
        Fault(f"output=60;error_after={events};error={kind}", "partial", "broken", stream=True)
        for events in (1, 2, 5)
        for kind in ("overloaded_error", "api_error")
    ],
    *[Fault(f"output=60;truncate={size}", "partial", "broken", stream=True) for size in (700, 1300)],
    Fault("truncate=0", "ceiling", "error", 502, stream=True, kind="api_error"),
    Fault("truncate=20", "ceiling", "error", 502, stream=True, kind="api_error"),
    Fault("chunk=1;output=20", "exact", "complete", stream=True),
    Fault("chunk=7;future;output=20", "exact", "complete", stream=True),
    Fault("interim=2;slow_head=1", "exact", "complete", stream=True),
    Fault("future;output=20", "exact", "complete", stream=True),
    Fault("unknown_usage", "exact", "complete", stream=True),
    Fault("two_deltas;output=20", "exact", "complete", stream=True),
    Fault("bare_delta;output=20", "exact", "complete", stream=True),
    Fault("trailing=40", "exact", "complete", stream=True),
    Fault("no_stop;output=20", "exact", "passed", stream=True),
    Fault("refusal=empty", "exact", "complete", stream=True),
    Fault("refusal=thinking", "exact", "complete", stream=True),
    Fault("refusal=midstream", "exact", "complete", stream=True),
    Fault("compaction=300;output=30", "exact", "complete", stream=True),
    Fault("fallback=claude-opus-4-8;output=30", "exact", "complete", stream=True),
    Fault("advisor=claude-opus-4-8;output=60", "exact", "complete", stream=True),
    Fault("searches=2;output=60", "exact", "complete", stream=True),
]
ALL = [*REFUSALS, *JSON, *STREAMS]
TIMEOUTS = {"UPSTREAM__FIRST_BYTE_TIMEOUT_MS": "2500", "UPSTREAM__IDLE_TIMEOUT_MS": "2500"}


def ask_for(fault: Fault, session: str) -> Asked:
    """The request that meets the fault."""
    tools = {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}]} if "searches" in fault.directives else {}
    return ask(session, stream=fault.stream, directives=fault.directives, **tools)


@dataclass
class Outcome:
    """What became of one fault."""

    asked: Asked
    answer: Answered
    truth: list[dict[str, Any]]
    entries: list[dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    """All faults, through one gateway."""
    home: Path = tmp_path_factory.mktemp("faults")
    with running_simulator(home) as simulator, running_tokenweir(home / "weir", simulator.url, **TIMEOUTS) as weir:
        key = weir.key()
        asked = {fault.name: ask_for(fault, f"f{number}") for number, fault in enumerate(ALL)}

        async def main() -> list[Answered]:
            # A few at once: a cut of one connection must not be taken for the end of a kept one.
            room = asyncio.Semaphore(8)

            async def one(asked: Asked) -> Answered:
                async with room:
                    return await call(weir.url, key, asked)

            return await asyncio.gather(*map(one, asked.values()))

        answers = dict(zip(asked, asyncio.run(main()), strict=True))
        while simulator.state()["open"]:
            time.sleep(0.01)
        truth = simulator.journal()
        weir.booked(lambda entries: len(entries) >= len(truth))
        assert weir.stop() == 0
        ledger, verified = weir.ledger(), weir.verify()
    assert verified.returncode == 0, verified.stdout
    compare(truth, ledger, sessions={one.sha256: one.session for one in asked.values()}).agree()
    assert len(ledger) == len(truth), "every attempt arrived, so every entry has its truth"
    return {
        name: Outcome(
            one,
            answers[name],
            [line for line in truth if line["body_sha256"] == one.sha256],
            sorted((entry for entry in ledger if entry["session_id"] == one.session), key=lambda entry: entry["attempt_no"]),
        )
        for name, one in asked.items()
    }


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)
def test_a_fault_of_the_provider(outcomes, fault):
    """What the client gets, how sure the ledger is, and how often it was tried."""
    outcome = outcomes[fault.name]
    answer, entries = outcome.answer, outcome.entries
    assert len(entries) == len(outcome.truth) <= 3
    assert [entry["attempt_no"] for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[-1]["certainty"] == fault.certainty
    assert len(entries) == fault.attempts
    assert {entry["request_id"] for entry in entries} == {answer.headers["request-id"]} or not answer.status
    match fault.client:
        case "complete":
            assert answer.looks_complete
            assert answer.headers["x-tokenweir-upstream-request-id"] == entries[-1]["upstream_request_id"]
        case "error":
            assert answer.whole
            assert answer.status == fault.status
            error = answer.json
            assert (error["type"], error["error"]["type"]) == ("error", fault.kind)
            assert error["error"]["message"]
        case "broken":
            assert not answer.looks_complete
            # Nothing of it may have been passed on yet: then a whole refusal says what happened.
            assert not answer.whole or (answer.status >= 500 and answer.json["type"] == "error") or answer.events[-1][0] == "error"
        case "passed":
            assert answer.whole
            assert not answer.looks_complete
        case "bare":
            assert answer.whole
            assert answer.json["type"] == "message"


def test_a_stream_without_any_usage_is_not_booked_as_nothing(tmp_path, outcomes):
    """Unknown is never zero: where the provider stated no counts at all, the ledger holds no less than the truth."""
    with running_simulator(tmp_path) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        key = weir.key()
        asyncio.run(call(weir.url, key, ask("none", stream=True, directives="no_usage;output=30")))
        (entry,) = weir.booked(bool)
        (line,) = simulator.journal()
    assert entry["certainty"] in ("partial", "ceiling")
    assert entry["cost_nanos"] >= line["cost_nanos"], "the prompt was not counted, and was booked as if there had been none"


def test_a_provider_that_is_not_there_is_an_error_that_costs_nothing(tmp_path):
    """Nothing was sent, so nothing is booked; the client may come back soon. When the provider is there again, so is the answer."""
    with closing(socket.socket()) as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
    with running_tokenweir(tmp_path / "weir", f"http://127.0.0.1:{port}") as weir:
        key = weir.key()
        answer = asyncio.run(call(weir.url, key, ask("nobody")))
        assert (answer.status, answer.json["error"]["type"]) == (503, "api_error")
        assert answer.json["error"]["message"].startswith("Tokenweir: ")
        assert int(answer.headers["retry-after"]) <= 60
        with running_simulator(tmp_path, options=("--port", str(port))):
            assert asyncio.run(call(weir.url, key, ask("somebody"))).looks_complete
            (entry,) = weir.booked(bool)
    assert entry["session_id"] == "somebody"


def test_a_provider_that_comes_back_is_asked_again_by_the_gateway(tmp_path):
    """Two refusals that ask to come back soon, then an answer: one request of the client, three records, one bill."""
    scenario = {"rules": [{"match": {"until": 2}, "do": {"refuse": "rate_limit_error", "retry_after": 1}}]}
    with running_simulator(tmp_path, scenario=scenario) as simulator, running_tokenweir(tmp_path / "weir", simulator.url) as weir:
        answer = asyncio.run(call(weir.url, weir.key(), ask("thrice", stream=True)))
        assert answer.looks_complete
        ledger = weir.booked(lambda entries: len(entries) == 3)
        truth = simulator.journal()
    compare(truth, ledger).agree()
    assert [(entry["attempt_no"], entry["status"], entry["certainty"]) for entry in ledger] == [(1, 429, "none"), (2, 429, "none"), (3, 200, "exact")]
    assert [entry["cost_nanos"] for entry in ledger[:2]] == [0, 0]
