"""What users of comparable gateways met with limits, on the real product: `tokenweir serve` before the simulator, real sockets, real commands.

The rows are those of limits/test_peers.py, which has a table of what is proven where; here is what only whole processes can show. Rows about calendars
(B12, B13) and about long rates (C2) need a clock that can be moved, and are proven there.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from processes.calling import Answered, Asked, Call, ask, call
from processes.serving import RunningTokenweir, running_tokenweir
from simulation import RunningSimulator, running_simulator
from tokenweir import app
from tokenweir.cli.limit_status import read_statuses
from tokenweir.issuing import issue_key
from tokenweir.limiting import list_limits, remove_limit, set_limit
from tokenweir.metering.limit_status import LimitStatus
from tokenweir.settings import load_settings

PATIENCE_S = 30
CLOCK = app.SystemClock()
FIGURES = {"requests": ("requests",), "spend": ("cost_nanos",), "output_tokens": ("output",)}
"""Which figures of `tokenweir usage --json` make up the units of a resource."""


@dataclass
class Weir:
    """The product, with the commands that these tests repeat done in this process: each would cost most of a second."""

    running: RunningTokenweir
    simulator: RunningSimulator

    def key(self, team: str, name: str = "robot") -> str:
        settings = load_settings(None, data_dir=self.running.data_dir)
        with closing(app.open_directory(settings)) as directory:
            pepper = app.open_pepper(settings, directory)
            issued = issue_key(directory, pepper, team=team, name=name, actor="test", now_us=CLOCK.now_us(), entropy=os.urandom)
        return issued.secret.reveal()

    def limit(self, name: str, **options: Any) -> None:
        """Set it, and wait until the gateway has it."""
        settings = load_settings(None, data_dir=self.running.data_dir)
        with closing(app.open_directory(settings)) as directory, closing(app.open_limit_directory(settings)) as limits:
            set_limit(directory, limits, name=name, actor="test", now_us=CLOCK.now_us(), entropy=os.urandom, **options)
        self.until("the gateway has the limit and a seat", lambda: self.statuses(name) != [])

    def remove(self, name: str) -> None:
        settings = load_settings(None, data_dir=self.running.data_dir)
        with closing(app.open_limit_directory(settings)) as limits:
            remove_limit(limits, name, actor="test", now_us=CLOCK.now_us())

    def status(self, name: str) -> LimitStatus:
        """How its one bucket stands."""
        (found,) = self.statuses(name)
        return found

    def statuses(self, name: str) -> list[LimitStatus]:
        settings = load_settings(None, data_dir=self.running.data_dir)
        with closing(app.open_directory(settings)) as directory, closing(app.open_limit_directory(settings)) as limits:
            records = [record for record in list_limits(directory, limits) if record.limit.name == name]
        return [found for _, found in read_statuses(settings, records)[0]]

    def usage(self, team: str) -> dict[str, int]:
        """What the ledger says of a team."""
        told = json.loads(self.running.run("usage", "--by", "team", "--json").stdout)
        return next((row for row in told["rows"] if row["team"] == team), {})

    def agree(self, team: str, *names: str) -> None:
        """Wait until the limits say what the ledger says of the team, to the unit, and nothing is held. What they are on is the end of their names."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            by_team, stands = self.usage(team), {name: self.status(name) for name in names}
            said = {name: sum(by_team.get(figure, 0) for figure in FIGURES[name.split()[-1]]) for name in names}
            if all((one.used, one.held) == (said[name], 0) for name, one in stands.items()):
                return
            told = {name: (one.used, one.held) for name, one in stands.items()}
            assert time.monotonic() < deadline, f"the ledger says {said}, the limits {told}"

    def ask(self, key: str, *asked: Asked) -> list[Answered]:
        """All at once."""

        async def main() -> list[Answered]:
            return list(await asyncio.gather(*(call(self.running.url, key, one) for one in asked)))

        return asyncio.run(main())

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, f"waited in vain until {what}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def weir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weir]:
    """One product for all tests here, each with a team of its own; in the end nothing is held and the books are in order."""
    home = tmp_path_factory.mktemp("peers")
    with running_simulator(home) as simulator, running_tokenweir(home / "weir", simulator.url, UPSTREAM__FIRST_BYTE_TIMEOUT_MS="700") as running:
        yield Weir(running, simulator)
        assert {one["held"] for one in json.loads(running.run("limit", "status", "--json").stdout)} == {0}
        assert running.stop() == 0
        assert running.verify().returncode == 0


def test_c7_without_a_limit_nothing_is_refused_and_nothing_is_said_of_limits(weir):
    """C7: "none ⇒ never": and the headers of the account behind the gateway are not the caller's."""
    answers = weir.ask(weir.key("free"), *(ask(f"free {n}") for n in range(40)))
    assert {answer.status for answer in answers} == {200}
    assert not [name for answer in answers for name in answer.headers if "ratelimit" in name or name.startswith("x-tokenweir-limit")]


def test_b4_limits_that_come_change_and_go_among_requests_show_what_the_ledger_shows(weir):
    """B4: "enforced value ≡ displayed value, always": also of what was under way when the very first limit was set, was renamed, changed, removed."""
    team = "busy"
    key = weir.key(team)
    names = [f"{team} {resource}" for resource in FIGURES]

    async def change() -> None:
        await asyncio.sleep(0.3)
        for resource, name in zip(FIGURES, names, strict=True):
            await asyncio.to_thread(weir.limit, name, team=team, resource=resource, amount="1000000", window="month")
        await asyncio.sleep(0.3)
        # Other models are counted: the limit gets a new id, and its use is read anew, while requests end.
        for models in (["claude-haiku-*"], []):
            await asyncio.to_thread(weir.limit, names[0], team=team, resource="requests", amount="1000000", window="month", models=models)
            await asyncio.sleep(0.2)
        await asyncio.to_thread(weir.remove, names[1])
        await asyncio.sleep(0.2)
        await asyncio.to_thread(weir.limit, names[1], team=team, resource="spend", amount="2000000", window="month")
        await asyncio.sleep(0.3)

    async def main() -> list[int]:
        statuses: list[int] = []
        ended = False

        async def client(number: int) -> None:
            turn = 0
            while not ended:
                turn += 1
                asked = ask(f"busy {number} {turn}", stream=turn % 2 == 0, directives=f"output={20 + number};ttfb={(number * 37 + turn * 11) % 250}")
                calling = Call(weir.running.url, key, asked)
                await calling.open()
                if (number + turn) % 7 == 0:
                    await asyncio.sleep(0.05)
                    await calling.leave("rst")
                else:
                    statuses.append((await calling.finish()).status)

        async with asyncio.TaskGroup() as clients:
            for number in range(16):
                clients.create_task(client(number))
            try:
                await change()
            finally:
                ended = True
        return statuses

    statuses = asyncio.run(main())
    assert set(statuses) == {200}
    assert len(statuses) > 50
    weir.agree(team, *names)


def test_b4_the_limit_that_is_first_asked_while_a_slow_request_runs_counts_it(weir):
    """The same at rest: one request is under way, limits are set and looked at, and then its client leaves."""
    key, names = weir.key("slow"), ["slow requests", "slow spend"]

    async def main() -> None:
        asked = ask("slow", stream=True, directives="output=40;stall=-1;stall_after=3")
        calling = Call(weir.running.url, key, asked)
        await calling.open()
        await calling.read_head()
        for name in names:
            await asyncio.to_thread(weir.limit, name, team="slow", resource=name.split()[-1], amount="1000", window="month")
            assert (await asyncio.to_thread(weir.status, name)).used == 0, "it is under way, and not used yet"
        await calling.leave("rst")

    asyncio.run(main())
    weir.until("it is counted", lambda: weir.status("slow requests").used == 1)
    weir.agree("slow", *names)


def test_b11_no_other_route_goes_past_a_budget(weir):
    """B11, 4b: batches and whatever else costs are refused before the provider hears of them; what costs nothing stays open under a used-up budget."""
    key = weir.key("routes")
    weir.limit("routes spend", team="routes", resource="spend", amount="0.000000001", window="month", strict=True)
    before = len(weir.simulator.journal())
    line = {"custom_id": "a", "params": json.loads(ask("line").body)}
    for path in ("/v1/messages/batches", "/v1/complete", "/v1/files", "/anthropic/v1/messages", "/v1/chat/completions", "/v1/messages/"):
        answer = asyncio.run(call(weir.running.url, key, Asked(json.dumps({"requests": [line]}).encode(), "routes"), path=path))
        assert answer.status == 501, path
    refused = asyncio.run(call(weir.running.url, key, ask("routes", stream=True), path="/v1/messages?beta=true"))
    assert (refused.status, refused.json["error"]["type"]) == (429, "billing_error")
    assert len(weir.simulator.journal()) == before
    counted = asyncio.run(
        call(weir.running.url, key, Asked(json.dumps({"model": "claude-sonnet-4-5", "messages": []}).encode(), "r"), path="/v1/messages/count_tokens")
    )
    assert counted.status != 429
    assert weir.running.get("/v1/models", **{"x-api-key": key, "anthropic-version": "2023-06-01"})[0] == 200


def test_b15_the_refusal_names_everything_and_an_approved_request_unblocks(weir):
    """B15: "429 body names entity, limit, used, held, reset time"; who is blocked asks, an admin approves, and the next request passes."""
    key = weir.key("asks")
    options = {"team": "asks", "resource": "requests", "amount": 2, "window": "month", "timezone": "Europe/Berlin", "contact": "ana@example.com"}
    weir.limit("asks requests", **options)
    assert [answer.status for answer in weir.ask(key, ask("asks 1"))] == [200]
    assert [answer.status for answer in weir.ask(key, ask("asks 2"))] == [200]
    (refused,) = weir.ask(key, ask("asks 3"))
    assert refused.status == 429
    assert refused.headers["x-should-retry"] == "false"
    for said in ("asks requests", "2 of 2 requests", "this month", "Europe/Berlin", "ana@example.com"):
        assert said in refused.json["error"]["message"]
    made = json.loads(weir.running.run("request", "create", "asks requests", "--amount", "1", "--reason", "a test", "--json").stdout)
    weir.running.run("request", "approve", made["id"], "--comment", "fine")
    weir.until("the approval reached the gateway", lambda: weir.status("asks requests").room == 3)
    assert [answer.status for answer in weir.ask(key, ask("asks 4"))] == [200]
    assert [answer.status for answer in weir.ask(key, ask("asks 5"))] == [429]
    weir.agree("asks", "asks requests")


def test_b16_sessions_that_a_client_invents_are_nobody(weir):
    """B16: "each session a customer with its own default budget": the body's `metadata.user_id` counts nowhere, whatever it says."""
    key = weir.key("inventive")
    weir.limit("inventive requests", team="inventive", resource="requests", amount=3, window="month", per="user")
    statuses = []
    for n in range(5):
        asked = ask(f"inventive {n}", metadata={"user_id": json.dumps({"account_uuid": str(n), "session_id": f"s{n}"})})
        statuses += [answer.status for answer in weir.ask(key, asked)]
    assert statuses == [200, 200, 200, 429, 429]
    assert weir.status("inventive requests").used == 3


def test_c4_c5_c6_slots_are_exact_and_come_back_when_the_provider_is_silent(weir):
    """C4: "exact gauge"; C5: "slots never released after provider timeouts; key dead"; C6: what is refused for want of a slot burns no request."""
    key = weir.key("slots")
    weir.limit("slots concurrency", team="slots", resource="concurrency", amount=2)
    weir.limit("slots requests", team="slots", resource="requests", amount=1_000, window="month")
    for turn in range(3):
        answers = weir.ask(key, *(ask(f"silent {turn} {n}", directives="stall_head=-1") for n in range(6)))
        statuses = sorted(answer.status for answer in answers)
        assert statuses[:4] == [429] * 4
        assert all(status >= 500 for status in statuses[4:]), statuses
        weir.until("the slots are free", lambda: weir.status("slots concurrency").held == 0)
    assert {answer.status for answer in weir.ask(key, ask("lively 1"), ask("lively 2"))} == {200}
    assert weir.status("slots requests").used == 3 * 2 + 2
    weir.agree("slots", "slots requests")


def test_b2_what_an_operator_corrects_is_what_limits_show(weir):
    """B2, B4: an answer that was cut is booked at its ceiling; the correction gives the room back, once, and a revoked key's as well."""
    key = weir.key("cut")
    weir.limit("cut spend", team="cut", resource="spend", amount=1000, window="month")
    weir.ask(key, ask("cut 1", directives="cut_head=true"), ask("cut 2"))
    weir.agree("cut", "cut spend")
    before = weir.status("cut spend").used
    entry, *_ = [one for one in weir.running.ledger() if one["team"] == "cut" and one["certainty"] == "ceiling"]
    weir.running.run("key", "revoke", entry["key"])
    weir.running.run("ledger", "adjust", entry["attempt_id"], "--void", "--reason", "the provider billed nothing")
    weir.until("the correction reached the counter", lambda: weir.status("cut spend").used != before)
    weir.agree("cut", "cut spend")
    assert weir.status("cut spend").used == before - entry["cost_nanos"]
