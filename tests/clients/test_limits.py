"""Official clients at their limits, before the running product: each stops, waits or comes back as intended, and all figures agree.

What a client sees of its limits, what `limit status` says, what the ledger has and what the provider would bill are four readings of one truth.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clients import limited_session
from clients.test_python_sdk import OLD
from clients.test_typescript_sdk import installed  # noqa: F401 - a fixture
from processes.books import compare
from processes.serving import RunningTokenweir, running_tokenweir
from simulation import RunningSimulator, running_simulator, wait_until
from tokenweir.cli import app

SESSION = Path(limited_session.__file__)
UNIFIED = "anthropic-ratelimit-unified-"
CONTACT = "ops@example.com"
LIMITS = {
    "budget": ["--resource", "spend", "--amount", "0.015", "--window", "month", "--timezone", "Europe/Berlin", "--strict"],
    "rate": ["--resource", "requests", "--amount", "1", "--window", "rolling:3s"],
    "queue": ["--resource", "concurrency", "--amount", "1", "--action", "queue", "--queue-for", "60s"],
    "busy": ["--resource", "concurrency", "--amount", "1"],
    "large": ["--resource", "output_tokens", "--amount", "100", "--window", "rolling:60s", "--strict"],
    "notices": ["--resource", "requests", "--amount", "4", "--window", "day"],
}


@dataclass
class Weir:
    """The product before a simulator, and keys in it."""

    running: RunningTokenweir
    simulator: RunningSimulator

    def command(self, *arguments: str) -> Any:
        """What a command of the real command line answers with `--json`; in this process, because there are many."""
        done = CliRunner(env=self.running.environment).invoke(app, [*arguments, "--json"])
        assert done.exit_code == 0, f"tokenweir {' '.join(arguments)}: {done.output}"
        return json.loads(done.stdout)

    def answered(self) -> Counter[str]:
        """Answers to messages, by status class, as the gateway counted them."""
        text = self.running.get("/metrics")[2].decode()
        found = re.findall(r'^tokenweir_requests_total\{route="messages",status="(\w+)"\} (\S+)$', text, re.MULTILINE)
        return Counter({status: int(float(count)) for status, count in found})


@dataclass
class Stage:
    """An organization of its own for one test."""

    weir: Weir
    organization: str
    keys: dict[str, str] = field(default_factory=dict)
    """Secrets by name."""
    ids: dict[str, str] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    answered_before: Counter[str] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        return self.weir.running.url

    def key(self, name: str, *options: str) -> str:
        made = self.weir.command("key", "create", "--organization", self.organization, "--team", self.organization, "--name", name, *options)
        self.ids[name], self.keys[name] = made["id"], made["secret"]
        return self.keys[name]

    def limit(self, name: str, whose: str, *options: str) -> None:
        """A limit on a key, by its name; or on `--team` or `--org`."""
        scope = {"--org": ["--org", "--organization", self.organization], "--team": ["--team", self.organization]}
        chosen = scope.get(whose) or ["--key", self.ids[whose]]
        made = self.weir.command("limit", "set", *chosen, *options, "--name", name, "--contact", CONTACT)
        self.limits.append(made["id"])

    def in_force(self) -> Stage:
        """As soon as the gateway knows of all limits; asking it how they stand waits for that."""
        self.weir.command("limit", "status", *self.limits)
        return self

    def status(self, *names: str) -> dict[str, dict[str, Any]]:
        """How these limits stand."""
        return {one["name"]: one for one in self.weir.command("limit", "status", *names)}

    def booked(self) -> list[dict[str, Any]]:
        """The ledger of these keys once it has every attempt that reached the provider; both agree."""
        wait_until(lambda: not self.weir.simulator.state()["open"])
        truth = self.weir.simulator.journal()
        ledger = self.weir.running.booked(lambda entries: len(entries) >= len(truth))
        compare(truth, ledger).agree()
        names = {key_id: name for name, key_id in self.ids.items()}
        return [{**entry, "name": names[entry["key"]]} for entry in ledger if entry["key"] in names]

    def answered(self) -> Counter[str]:
        return self.weir.answered() - self.answered_before


@pytest.fixture(scope="module")
def weir(tmp_path_factory) -> Iterator[Weir]:
    home = tmp_path_factory.mktemp("limits")
    with running_simulator(home) as simulator, running_tokenweir(home / "weir", simulator.url) as running:
        yield Weir(running, simulator)


@pytest.fixture
def stage(weir, request) -> Stage:
    return Stage(weir, request.node.name[-40:], answered_before=weir.answered())


@pytest.fixture
def plays(stage) -> Stage:
    """A key for each play, and its limits."""
    for play in limited_session.PLAYS:
        stage.key(play.__name__, *(("--model", "claude-haiku-*") if play.__name__ == "model" else ()))
    for name, options in LIMITS.items():
        stage.limit(name, name, *options)
    return stage.in_force()


# The plays, with each client.


def test_the_official_sdk(plays):
    """Line 2 of the Python SDK, synchronous, streaming and asynchronous."""
    seen = limited_session.run(plays.url, plays.keys)
    assert seen["version"].startswith("2.")
    judge(plays, seen["plays"])


def test_the_last_of_the_old_line(plays, needed):
    """The last 0.x, which waits by itself where it is told to wait longer than a minute."""
    needed(OLD.exists(), f"the old SDK ({OLD})")
    seen = played([str(OLD), str(SESSION)], plays)
    assert seen["version"].startswith("0.")
    judge(plays, seen["plays"])


def test_the_official_typescript_sdk(plays, installed):  # noqa: F811 - a fixture
    """The same plays, as its programs would write them."""
    judge(plays, played(["node", str(installed / "limited.mjs")], plays)["plays"])


def played(command: list[str], stage: Stage) -> dict[str, Any]:
    done = subprocess.run([*command, stage.url, json.dumps(stage.keys)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def judge(stage: Stage, plays: dict[str, Any]) -> None:
    """Each play went as intended; and no request more was made, at the gateway or at the provider, than the client knows of."""
    for name, judged in JUDGES.items():
        judged(plays[name])
    answers = [answer for play in plays.values() for answer in play["answers"]]
    assert stage.answered() == Counter(f"{answer['status'] // 100}xx" for answer in answers)
    ledger = stage.booked()
    passed = {name: sum(answer["status"] == 200 for answer in play["answers"]) for name, play in plays.items()}
    assert Counter(entry["name"] for entry in ledger) == +Counter(passed)
    assert len({answer["headers"]["request-id"] for answer in answers}) == len(answers)
    every_status_agrees(stage, ledger)


def every_status_agrees(stage: Stage, ledger: list[dict[str, Any]]) -> None:
    """Nothing is under way, so nothing is held; and what calendar limits say was used is what the ledger has."""
    status = stage.status("--team", stage.organization)
    assert status.keys() == LIMITS.keys()
    assert [one["held"] for one in status.values()] == [0] * len(status)
    assert status["notices"]["used"] == sum(entry["name"] == "notices" for entry in ledger) == 4
    assert status["budget"]["used"] == sum(entry["cost_nanos"] for entry in ledger if entry["name"] == "budget") > 0


def statuses(play: dict[str, Any]) -> list[int]:
    return [answer["status"] for answer in play["answers"]]


def errors(play: dict[str, Any]) -> list[str]:
    return [ending["error"] for ending in play["endings"]]


def judge_budget(play: dict[str, Any]) -> None:
    """One is paid for; each of the others is refused with a single request, and the program is told why, until when, and whom to ask."""
    assert (statuses(play), errors(play), play["waits"]) == ([200, 429, 429], ["", "RateLimitError", "RateLimitError"], [])
    for answer, ending in zip(play["answers"][1:], play["endings"][1:], strict=True):
        assert ending["type"] == "billing_error"
        assert re.fullmatch(
            r"Tokenweir: budget: 0\.006\d* of 0\.015 USD used \(0\.01\d* asked for\) this month · resets \d{4}-\d\d-01 00:00 Europe/Berlin"
            r" · ask ops@example\.com or: tokenweir request create \S+ --amount AMOUNT --reason TEXT",
            ending["message"],
        ), ending["message"]
        headers = answer["headers"]
        assert (headers["x-should-retry"], headers[UNIFIED + "status"], headers[UNIFIED + "overage-period"]) == ("false", "rejected", "monthly")
        assert headers[UNIFIED + "overage-disabled-reason"] == "org_spend_cap_reached"
        assert not {UNIFIED + "representative-claim", UNIFIED + "overage-status"} & headers.keys()
        assert int(headers[UNIFIED + "reset"]) - int(headers["retry-after"]) <= datetime.now(UTC).timestamp()


def judge_rate(play: dict[str, Any]) -> None:
    """The second is told when to come back, comes back then, and is served: the program sees no error."""
    assert (statuses(play), errors(play)) == ([200, 429, 200], ["", ""])
    refused = play["answers"][1]["headers"]
    (wait_s,) = play["waits"]
    assert 1 <= int(refused["retry-after"]) <= 3
    assert wait_s >= int(refused["retry-after"]) - 0.05
    assert "x-should-retry" not in refused
    for answer in play["answers"]:
        assert (answer["headers"]["anthropic-ratelimit-requests-limit"], answer["headers"]["anthropic-ratelimit-requests-remaining"]) == ("1", "0")
        assert not any(name.startswith(UNIFIED) for name in answer["headers"])


def judge_queue(play: dict[str, Any]) -> None:
    """All are served, and no client is told of a limit."""
    assert (statuses(play), errors(play), play["waits"]) == ([200] * 4, [""] * 4, [])


def judge_busy(play: dict[str, Any]) -> None:
    """The second tries again each second until the first has ended."""
    told = Counter(statuses(play))
    assert told.keys() == {200, 429}
    assert (told[200], errors(play)) == (2, ["", ""])
    refused = [answer["headers"] for answer in play["answers"] if answer["status"] == 429]
    assert {headers["retry-after"] for headers in refused} == {"1"}
    assert all(wait_s >= 0.95 for wait_s in play["waits"])


def judge_model(play: dict[str, Any]) -> None:
    assert (statuses(play), errors(play), play["waits"]) == ([400], ["BadRequestError"], [])
    assert play["endings"][0]["type"] == "invalid_request_error"
    assert "claude-sonnet-4-6" in play["endings"][0]["message"]


def judge_large(play: dict[str, Any]) -> None:
    """It would fail again, so it is tried once; the sentence says what would not."""
    assert (statuses(play), errors(play), play["waits"]) == ([429], ["RateLimitError"], [])
    assert play["endings"][0]["type"] == "rate_limit_error"
    assert re.match(
        r"Tokenweir: large: 0 of 100 output tokens used per \S+ · this request alone may need 400 output tokens, more than the whole limit · what would fit: ",
        play["endings"][0]["message"],
    ), play["endings"][0]["message"]
    assert "retry-after" not in play["answers"][0]["headers"]


def judge_notices(play: dict[str, Any]) -> None:
    """A quarter, a half, three quarters with a notice, the last with the second notice; then no more, once."""
    assert (statuses(play), play["waits"]) == ([200, 200, 200, 200, 429], [])
    told = [
        (
            answer["headers"][UNIFIED + "status"],
            answer["headers"].get(UNIFIED + "overage-utilization"),
            answer["headers"].get(UNIFIED + "overage-surpassed-threshold"),
        )
        for answer in play["answers"]
    ]
    assert told == [
        ("allowed", "0.25", None),
        ("allowed", "0.50", None),
        ("allowed_warning", "0.75", "0.75"),
        ("allowed_warning", "0.99", "0.95"),
        ("rejected", "1", "1"),
    ]
    assert play["endings"][-1]["message"].startswith("Tokenweir: notices: 4 of 4 requests used today · resets ")
    assert len({answer["headers"][UNIFIED + "reset"] for answer in play["answers"]}) == 1


JUDGES = {
    "budget": judge_budget,
    "rate": judge_rate,
    "queue": judge_queue,
    "busy": judge_busy,
    "model": judge_model,
    "large": judge_large,
    "notices": judge_notices,
}


# One truth, read in four places.


@pytest.fixture
def reader(stage) -> Stage:
    """A key under limits of its own, its team's and its organization's. Their rolling windows are so long that nothing flows back during a test."""
    stage.key("reader")
    stage.limit("money", "--org", "--resource", "spend", "--amount", "0.50", "--window", "month")
    stage.limit("pocket", "reader", "--resource", "spend", "--amount", "2.125", "--window", "week", "--timezone", "Asia/Kolkata")
    stage.limit("asks", "--team", "--resource", "requests", "--amount", "9", "--window", "rolling:30d")
    stage.limit("words", "reader", "--resource", "input_tokens", "--amount", "9000", "--window", "rolling:30d")
    stage.limit("words at all", "--team", "--resource", "input_tokens", "--amount", "90000", "--window", "rolling:30d")
    stage.limit("seen only", "reader", "--resource", "spend", "--amount", "0.000001", "--window", "day", "--shadow")
    return stage.in_force()


def standings(stage: Stage) -> dict[str, dict[str, Any]]:
    """How the limits of the organization stand, as soon as nothing is under way."""

    def settled() -> dict[str, dict[str, Any]]:
        found = {name: one for name, one in stage.status().items() if one["scope"]["organization"] == stage.organization}
        return {} if any(one["held"] for one in found.values()) else found

    return dict(wait_until(settled))


def test_headers_and_status_and_ledger_agree(reader):
    """Before each request the status is read; its answer's headers say the same. In the end the ledger has what the status says was used."""
    play = limited_session.Play(reader.url, reader.keys["reader"])
    for number in range(1, 5):
        before = standings(reader)
        assert len(before) == 6
        play.create(ask_of(number), streamed=number % 2 == 0)
        headers = play.seen["answers"][-1]["headers"]
        assert play.seen["answers"][-1]["status"] == 200, play.seen["endings"][-1]
        agree_on_rates(headers, before, number)
        agree_on_budgets(headers, before)
    ledger, status = reader.booked(), standings(reader)
    assert [entry["name"] for entry in ledger] == ["reader"] * 4
    spent = sum(entry["cost_nanos"] for entry in ledger)
    assert [status[name]["used"] for name in ("money", "pocket", "seen only")] == [spent] * 3
    assert status["asks"]["used"] == 4
    counted = sum(entry["uncached_input"] + entry["cache_write_5m"] + entry["cache_write_1h"] for entry in ledger)
    assert [status[name]["used"] for name in ("words", "words at all")] == [counted] * 2
    (row,) = (row for row in reader.weir.command("usage", "--by", "team")["rows"] if row["team"] == reader.organization)
    assert (row["requests"], row["cost_nanos"]) == (4, spent)
    assert status["money"]["remaining"] == 500_000_000 - spent


def ask_of(number: int) -> dict[str, Any]:
    """Each a little larger than the one before."""
    return limited_session.ask(
        f"output={300 + number}", max_tokens=400, messages=[{"role": "user", "content": "How high is the tide? " * 20 * number}]
    )


def agree_on_rates(headers: dict[str, str], before: dict[str, dict[str, Any]], number: int) -> None:
    """What was left before, less what this request takes; of two limits of a kind, the tighter one."""
    told = {name.removeprefix("anthropic-ratelimit-"): value for name, value in headers.items() if name.startswith("anthropic-ratelimit-")}
    assert (told["requests-limit"], told["requests-remaining"]) == ("9", str(9 - number))
    assert before["asks"]["remaining"] == 9 - number + 1
    assert told["input-tokens-limit"] == "9000"
    assert 0 < int(told["input-tokens-remaining"]) < before["words"]["remaining"]
    assert "output-tokens-limit" not in told
    assert datetime.fromisoformat(told["requests-reset"]) > datetime.now(UTC)


def agree_on_budgets(headers: dict[str, str], before: dict[str, dict[str, Any]]) -> None:
    """Of the fuller budget: the share that is used, and when it begins anew. A shadow tells nothing to a client."""
    shares = {name: before[name]["used"] / before[name]["amount"] for name in ("money", "pocket")}
    name = max(shares, key=lambda one: (shares[one], before[one]["resets_at"]))
    percent = before[name]["used"] * 100 // before[name]["amount"]
    assert headers[UNIFIED + "overage-utilization"] == f"0.{percent:02d}"
    assert headers[UNIFIED + "representative-claim"] == "overage"
    assert datetime.fromtimestamp(int(headers[UNIFIED + "overage-reset"]), UTC) == datetime.fromisoformat(before[name]["resets_at"])


def test_a_caller_is_told_of_its_own_budgets(reader):
    """`GET /api/oauth/usage`, as Claude Code asks: exact cents, the fullest budget first, nothing of others, nothing without a key."""
    key = reader.keys["reader"]
    limited_session.Play(reader.url, key).create(ask_of(3))
    (entry,) = reader.booked()
    status = standings(reader)
    told = own_usage(reader, authorization=f"Bearer {key}")
    assert told == own_usage(reader, **{"x-api-key": key})
    spent = entry["cost_nanos"]
    extra = told["extra_usage"]
    assert (extra["is_enabled"], extra["monthly_limit"], extra["currency"]) == (True, 50, "USD")
    assert Decimal(extra["used_credits"]) * 10_000_000 == spent == status["money"]["used"]
    assert [(row["kind"], row["group"], row["percent"], row["is_active"]) for row in told["limits"]] == [
        ("spend", "monthly", spent * 100 // 500_000_000, True),
        ("spend", "weekly", spent * 100 // 2_125_000_000, False),
    ]
    for row, name in zip(told["limits"], ("money", "pocket"), strict=True):
        assert datetime.fromisoformat(row["resets_at"]) == datetime.fromisoformat(status[name]["resets_at"])
    status_code, headers, _ = reader.weir.running.get("/api/oauth/usage")
    assert (status_code, headers["x-should-retry"]) == (401, "false")


def own_usage(stage: Stage, **headers: str) -> dict[str, Any]:
    status, answered, body = stage.weir.running.get("/api/oauth/usage", **headers)
    assert (status, answered["content-type"], answered["cache-control"]) == (200, "application/json", "no-store")
    return dict(json.loads(body, parse_float=Decimal))


def test_who_has_no_limit_is_told_of_none(stage):
    """No header of a limit, of ours or of the provider's, and no amounts; and nothing of what limits others."""
    key = stage.key("free")
    stage.key("other")
    stage.limit("theirs", "other", "--resource", "spend", "--amount", "1", "--window", "month")
    play = limited_session.Play(stage.in_force().url, key)
    play.create(limited_session.ask("output=5"))
    (answer,) = play.seen["answers"]
    assert answer["status"] == 200
    assert not [name for name in answer["headers"] if "ratelimit" in name]
    assert own_usage(stage, **{"x-api-key": key}) == {
        "extra_usage": {"is_enabled": False, "monthly_limit": None, "used_credits": None, "utilization": None, "currency": "USD"},
        "limits": [],
    }


def test_hostile_names_stay_in_the_sentence(stage):
    """A limit may be called anything that the command accepts: headers stay the same, and the sentence is one line of a JSON string."""
    key = stage.key("reader")
    name = 'tide ü 🦅 "}}, x-should-retry: true %s'
    stage.limit(name, "reader", "--resource", "requests", "--amount", "1", "--window", "day")
    play = limited_session.Play(stage.in_force().url, key)
    play.create(*[limited_session.ask("output=5")] * 2)
    assert statuses(play.seen) == [200, 429]
    assert play.seen["answers"][1]["headers"]["x-should-retry"] == "false"
    assert play.seen["endings"][1]["message"].startswith(f"Tokenweir: {name}: 1 of 1 requests used today · ")
    assert play.seen["endings"][1]["message"].isprintable()


def test_who_is_refused_can_ask_for_more_as_the_sentence_says(stage):
    """The command in the refusal is one that there is: typed as it stands, with an amount and a reason, it asks for more of that limit."""
    key = stage.key("reader")
    stage.limit("one a day", "reader", "--resource", "requests", "--amount", "1", "--window", "day")
    play = limited_session.Play(stage.in_force().url, key)
    play.create(*[limited_session.ask("output=5")] * 2)
    sentence = play.seen["endings"][1]["message"]
    program, *arguments = sentence.partition(" or: ")[2].replace("AMOUNT", "5").replace("TEXT", "tides").split()
    assert program == "tokenweir"
    asked = stage.weir.command(*arguments)
    assert stage.limits[0] in arguments
    assert (asked["limit_id"], asked["amount"], asked["reason"]) == (stage.limits[0], 5, "tides")
