"""The grant commands: more room, when it begins and ends, and what is left out."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import closing

import pytest
from typer.testing import CliRunner

from bookings import entry
from tokenweir import app
from tokenweir.cli.root import app as tokenweir
from tokenweir.settings import Settings


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data directory in which the first steps are done, to copy."""
    folder = tmp_path_factory.mktemp("home") / "tw"
    for arguments in (
        ("key", "create", "--team", "red", "--name", "ci"),
        ("limit", "set", "--team", "red", "--resource", "spend", "--amount", "100", "--window", "month", "--name", "b"),
        ("limit", "set", "--team", "red", "--resource", "concurrency", "--amount", "4", "--name", "four"),
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


def test_a_credit_a_top_up_and_an_increase_are_given_and_shown(run):
    credit = as_json(
        run("grant", "add", "b", "--amount", "50", "--priority", "3", "--rollover-max", "20", "--until", "90d", "--reason", "x", "--json")
    )
    assert list(credit) == [
        *("id", "limit_id", "limit", "kind", "resource", "amount", "amount_usd", "state", "from", "until", "priority"),
        *("rollover_min", "rollover_max", "reason", "created", "voided"),
    ]
    assert (credit["kind"], credit["amount"], credit["amount_usd"], credit["state"]) == ("credit", 50_000_000_000, "50.00", "running")
    assert (credit["limit"], credit["priority"], credit["rollover_max"], credit["reason"]) == ("b", 3, 20_000_000_000, "x")
    topup = run("grant", "topup", "b", "--amount", "12.5")
    assert re.match(r"Granted grant_\w{12} \(top-up\): \$12\.50 for b, from \S+Z to \S+-01T00:00:00Z\.", topup.stdout)
    assert topup.stderr == ""
    increase = run("grant", "increase", "four", "--amount", "2", "--until", "2h")
    assert "(increase): 2 at the same time for four" in increase.stdout
    coming = as_json(run("grant", "increase", "four", "--amount", "1", "--from", "1d", "--until", "2d", "--json"))
    assert coming["state"] == "coming"
    assert [one["kind"] for one in as_json(run("grant", "list", "--json"))] == ["credit", "topup", "increase", "increase"]
    assert as_json(run("limit", "show", "b", "--json"))["grants"][0] == credit
    shown = run("grant", "list", "--limit", "b").stdout
    assert "top-up" in shown
    assert "$12.50" in shown
    assert "four" not in shown
    assert "top-up" in run("limit", "show", "b").stdout


def test_a_rounded_end_is_said(run):
    result = run("grant", "increase", "b", "--amount", "1", "--until", "2099-01-01T00:07:00Z")
    assert "to 2099-01-01T00:15:00Z" in result.stdout
    assert "quarters of an hour" in result.stderr
    assert run("grant", "increase", "b", "--amount", "1", "--until", "2099-01-01T00:15:00Z").stderr == ""


def test_a_grant_is_ended(run):
    given = as_json(run("grant", "topup", "b", "--amount", "5", "--json"))["id"]
    assert run("grant", "void", given).stdout == f"Voided {given} of b.\n"
    ended = as_json(run("grant", "void", given, "--json"))
    assert (ended["state"], ended["voided"] >= ended["created"]) == ("voided", True)
    assert as_json(run("grant", "list", "--json")) == []
    assert as_json(run("grant", "list", "--all", "--json")) == [ended | {"left": None}]
    assert as_json(run("limit", "show", "b", "--json"))["grants"] == []
    assert "tokenweir grant topup" in run("grant", "list").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["topup", "nobody", "--amount", "5"],
        ["topup", "b", "--amount", "0"],
        ["topup", "four", "--amount", "5"],
        ["add", "b", "--amount", "5", "--until", "yesterday"],
        ["add", "b", "--amount", "5", "--until", "2020-01-01"],
        ["add", "b", "--amount", "5", "--from", "2020-01-01"],
        ["add", "b", "--amount", "5", "--rollover-max", "x"],
        ["increase", "four", "--amount", "5"],
        ["void", "grant_x"],
    ],
)
def test_wrong_use_is_one_sentence_exit_code_2_and_nothing_changed(run, arguments):
    result = run("grant", *arguments, code=2)
    assert result.stdout == ""
    assert re.fullmatch(r"tokenweir: [^\n]+\n", result.stderr)
    assert as_json(run("grant", "list", "--all", "--json")) == []


def test_what_is_left_of_a_credit_is_shown(run, tmp_path):
    """120 dollars were used of 100 this month: 20 of the credit of 50 are burned."""
    credit = as_json(run("grant", "add", "b", "--amount", "50", "--json"))
    settings = Settings(data_dir=tmp_path / "tw")
    with closing(app.open_directory(settings)) as directory, closing(app.open_ledger(settings)) as ledger:
        (key,) = directory.keys()
        begun = {"organization_id": key.organization_id, "team_id": key.team_id, "key_id": key.key_id}
        ledger.book([entry(1, at_us=app.SystemClock().now_us(), begun=begun, cost_nanos=120 * 10**9)])
    (shown,) = as_json(run("grant", "list", "--json"))
    assert (shown["id"], shown["left"]) == (credit["id"], 30 * 10**9)
    assert "$30.00" in run("grant", "list").stdout
