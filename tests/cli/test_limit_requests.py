"""The request commands: ask, discuss, decide; with who, when and why."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from tokenweir.cli.root import app as tokenweir
from tokenweir.wire.limits import LimitWords, rate_refusal


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data directory in which the first steps are done, to copy."""
    folder = tmp_path_factory.mktemp("home") / "tw"
    for arguments in (
        ("key", "create", "--team", "red", "--name", "ci"),
        ("limit", "set", "--team", "red", "--resource", "spend", "--amount", "100", "--window", "month", "--name", "b"),
    ):
        done = CliRunner().invoke(tokenweir, [*arguments, "--data-dir", str(folder)])
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path / "tw")
    monkeypatch.setenv("TOKENWEIR_DATA_DIR", str(tmp_path / "tw"))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, code: int = 0):
        result = CliRunner().invoke(tokenweir, list(arguments))
        assert result.exit_code == code, result.output
        return result

    return invoke


def as_json(result):
    return json.loads(result.stdout)


def ask(run, *more: str):
    return as_json(run("request", "create", "b", "--amount", "10", "--reason", "a launch", *more, "--json"))


def test_a_request_is_asked_discussed_and_approved(run):
    asked = ask(run)
    assert list(asked) == [
        *("id", "limit_id", "limit", "resource", "amount", "amount_usd", "state", "until", "reason", "requested_by", "created"),
        *("decided_by", "decided", "grant", "comments"),
    ]
    assert (asked["state"], asked["amount"], asked["amount_usd"], asked["until"], asked["grant"]) == ("pending", 10**10, "10.00", None, None)
    assert "commented" in run("request", "comment", asked["id"], "for what exactly?").stdout
    approved = run("request", "approve", asked["id"], "--amount", "5", "--comment", "half of it")
    assert re.search(r"for \$10\.00 more in b approved: \$5\.00 until \S+-01T00:00:00Z \(grant grant_\w{12}\)", approved.stdout)
    done = as_json(run("request", "show", asked["id"], "--json"))
    assert (done["state"], done["grant"]["amount"], done["grant"]["kind"]) == ("approved", 5 * 10**9, "increase")
    assert done["decided_by"].startswith("cli:")
    assert [one["text"] for one in done["comments"]] == ["for what exactly?", "half of it"]
    assert as_json(run("limit", "show", "b", "--json"))["grants"] == [done["grant"]]
    shown = run("request", "show", asked["id"]).stdout
    for words in (asked["id"], "a launch", "approved", "half of it", "$5.00 until"):
        assert words in shown
    assert "was approved" in run("request", "deny", asked["id"], "--comment", "no", code=2).stderr


def test_requests_are_denied_with_a_reason_and_withdrawn(run):
    one, two = ask(run)["id"], ask(run, "--until", "2h")["id"]
    assert "denied" in run("request", "deny", one, "--comment", "not this month").stdout
    assert "withdrawn" in run("request", "withdraw", two).stdout
    assert [(found["state"], found["grant"]) for found in as_json(run("request", "list", "--json"))] == [("denied", None), ("withdrawn", None)]
    assert as_json(run("request", "list", "--state", "pending", "--json")) == []
    assert [found["id"] for found in as_json(run("request", "list", "--limit", "b", "--state", "denied", "--json"))] == [one]
    shown = run("request", "list").stdout
    assert "end of the cycle" in shown
    assert "withdrawn" in shown


def test_an_empty_list_says_how_to_ask(run):
    assert "tokenweir request create" in run("request", "list").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "nobody", "--amount", "5", "--reason", "x"],
        ["create", "b", "--amount", "0", "--reason", "x"],
        ["create", "b", "--amount", "5", "--reason", " "],
        ["create", "b", "--amount", "5", "--reason", "x", "--until", "soon"],
        ["approve", "request_x"],
        ["deny", "request_x", "--comment", "no"],
        ["comment", "request_x", "hm"],
        ["show", "request_x"],
        ["list", "--state", "open"],
    ],
)
def test_wrong_use_is_one_sentence_exit_code_2_and_nothing_changed(run, arguments):
    result = run("request", *arguments, code=2)
    assert result.stdout == ""
    assert re.fullmatch(r"tokenweir: [^\n]+\n", result.stderr)
    assert as_json(run("request", "list", "--json")) == []


@pytest.mark.parametrize("window", [("--resource", "requests", "--window", "rolling:60s"), ("--resource", "concurrency")])
def test_the_command_in_the_refusal_of_a_rate_asks_for_more(run, window):
    """What has no cycle needs an end to be asked for: the sentence names one, and the command works as it stands."""
    limit_id = as_json(run("limit", "set", "--team", "red", "--amount", "5", *window, "--json"))["id"]
    sentence = rate_refusal(LimitWords(limit_id, "rate", "5", "5", "requests"), wait_us=1).message
    program, *arguments = sentence.partition("ask for more: ")[2].replace("AMOUNT", "5").replace("TEXT", "tides").split()
    asked = as_json(run(*arguments, "--json"))
    assert (program, asked["limit_id"], asked["state"]) == ("tokenweir", limit_id, "pending")
