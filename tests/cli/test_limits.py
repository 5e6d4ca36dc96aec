"""The limit commands: what is set is shown, what was there before is said, and what is wrong is one sentence with nothing changed."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from tokenweir.cli.root import app as tokenweir

FIELDS = [
    *("id", "name", "scope", "resource", "amount", "window", "timezone", "anchor", "models", "action", "queue_ms", "to"),
    *("strict", "shadow", "carry_over", "contact", "managed_by", "grants", "created", "removed"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data directory in which the first steps are done, to copy."""
    folder = tmp_path_factory.mktemp("home") / "tw"
    for arguments in (("key", "create", "--team", "red", "--name", "ci"),):
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


RED = ("limit", "set", "--team", "red", "--resource", "spend", "--amount", "100", "--window", "month")


def test_a_limit_is_set_and_shown_with_all_that_was_said(run):
    done = as_json(
        run(
            *("limit", "set", "--key", "ci", "--resource", "output_tokens", "--amount", "1.5M", "--window", "week", "--timezone", "Europe/Berlin"),
            *("--anchor", "3", "--models", "claude-opus-*,claude-sonnet-*", "--models", "x", "--session", "s", "--action", "queue"),
            *("--queue-for", "45s", "--strict", "--shadow", "--carry-over", "--name", "all of it", "--contact", "ana@x", "--json"),
        )
    )
    assert (done.pop("before"), done.pop("changed")) == (None, [])
    assert list(done) == FIELDS
    assert done["id"].startswith("limit_")
    assert {name: value for name, value in done["scope"].items() if not name.endswith("_id")} == {
        "organization": "default",
        "team": "red",
        "key": "ci",
        "user": None,
        "session": "s",
        "tag": None,
        "per": None,
    }
    wanted = {"name": "all of it", "resource": "output_tokens", "amount": 1_500_000, "window": "week", "timezone": "Europe/Berlin", "anchor": "3"}
    wanted |= {"models": ["claude-opus-*", "claude-sonnet-*", "x"], "action": "queue", "queue_ms": 45_000, "to": None, "strict": True}
    wanted |= {"shadow": True, "carry_over": True, "contact": "ana@x", "managed_by": None, "grants": [], "removed": None}
    assert {name: done[name] for name in wanted} == wanted
    assert as_json(run("limit", "show", "all of it", "--json")) == done
    assert as_json(run("limit", "show", done["id"], "--json")) == done
    assert as_json(run("limit", "list", "--json")) == [done]
    shown = run("limit", "show", done["id"]).stdout
    for words in (
        done["id"],
        "all of it",
        "key ci of team red, session s",
        "1,500,000 output tokens per week (Europe/Berlin, from Wednesday)",
        "ana@x",
    ):
        assert words in shown
    assert "queue up to 45s, strict, shadow, carry-over" in shown


def test_spend_is_shown_in_nano_dollars_and_in_dollars(run):
    done = as_json(run(*RED[:-3], "1_234.567890123", "--window", "month", "--json"))
    assert (done["amount"], done["amount_usd"]) == (1_234_567_890_123, "1234.567890123")
    assert "$1,234.567890123 per month" in run("limit", "list").stdout


def test_other_windows_and_actions(run):
    rolling = as_json(run("limit", "set", "--org", "--resource", "requests", "--amount", "10", "--window", "rolling:60s", "--json"))
    assert (rolling["window"], rolling["timezone"], rolling["anchor"], rolling["scope"]["team"]) == ("rolling:60s", None, None, None)
    at_once = as_json(run("limit", "set", "--org", "--per", "key", "--resource", "concurrency", "--amount", "2", "--action", "queue", "--json"))
    assert (at_once["window"], at_once["queue_ms"], at_once["scope"]["per"]) == (None, 30_000, "key")
    lower = ("limit", "set", "--org", "--resource", "tokens", "--amount", "1k", "--window", "every:14d", "--anchor", "2026-01-05")
    down = as_json(run(*lower, "--models", "claude-opus-*", "--action", "downgrade", "--to", "claude-haiku-4-5", "--json"))
    assert (down["window"], down["anchor"], down["to"]) == ("every:14d", "2026-01-05", "claude-haiku-4-5")
    shown = run("limit", "list").stdout
    for words in ("10 requests in 60s", "2 at the same time", "1,000 tokens every 14d", "downgrade to claude-haiku-4-5"):
        assert words in shown


def test_a_change_says_what_it_was_before_and_the_same_again_changes_nothing(run):
    set_ = run(*RED).stdout
    assert re.fullmatch(r"Set limit_\w{12} \(team red · spend · month\): \$100.00 per month for team red; at the limit: block\.\n", set_)
    changed = run(*RED[:-3], "200", "--window", "month", "--action", "warn", "--contact", "ana").stdout
    assert "amount $100.00 → $200.00; action block → warn; contact none → ana." in changed
    again = run(*RED[:-3], "200", "--window", "month", "--action", "warn", "--contact", "ana").stdout
    assert "nothing changed" in again
    done = as_json(run(*RED, "--json"))
    assert done["changed"] == ["amount", "action", "contact"]
    assert (done["before"]["amount"], done["amount"]) == (200_000_000_000, 100_000_000_000)
    assert len(as_json(run("limit", "list", "--json"))) == 1


def test_a_limit_that_counts_something_else_says_so(run):
    run(*RED, "--name", "b")
    run("grant", "topup", "b", "--amount", "5")
    changed = run("limit", "set", "--team", "red", "--resource", "tokens", "--amount", "5", "--window", "day", "--name", "b")
    assert "resource spend → tokens; amount $100.00 → 5 tokens; window per month → per day." in changed.stdout
    assert re.search(r"new id \(before: limit_\w{12}\)", changed.stderr)
    assert "grants ended" in changed.stderr


def test_a_removed_limit_is_listed_only_when_asked_for(run):
    run(*RED)
    gone = run("limit", "remove", "team red · spend · month").stdout
    assert re.fullmatch(r"Removed limit_\w{12} \(team red · spend · month\)\.\n", gone)
    assert as_json(run("limit", "list", "--json")) == []
    (one,) = as_json(run("limit", "list", "--all", "--json"))
    assert one["removed"] > one["created"]
    assert "removed" in run("limit", "list", "--all").stdout
    assert "was removed" in run("limit", "remove", one["id"], code=2).stderr


def test_lists_of_a_team_of_a_key_and_of_nothing(run):
    empty = run("limit", "list")
    assert "tokenweir limit set" in empty.stderr
    run("key", "create", "--team", "blue", "--name", "other")
    run(*RED)
    run("limit", "set", "--key", "ci", "--resource", "concurrency", "--amount", "2")
    run("limit", "set", "--org", "--resource", "concurrency", "--amount", "9")
    assert len(as_json(run("limit", "list", "--json"))) == 3
    assert len(as_json(run("limit", "list", "--team", "red", "--json"))) == 2
    assert len(as_json(run("limit", "list", "--key", "ci", "--json"))) == 1
    assert as_json(run("limit", "list", "--team", "blue", "--json")) == []
    assert "tokenweir team list" in run("limit", "list", "--team", "green", code=2).stderr


def test_a_limit_of_another_organization(run):
    run("key", "create", "--team", "red", "--name", "theirs", "--organization", "acme")
    done = as_json(run("limit", "set", "--org", "--organization", "acme", "--resource", "spend", "--amount", "5", "--window", "day", "--json"))
    assert done["scope"]["organization"] == "acme"
    assert "2 teams" in run(*RED, code=2).stderr
    done = as_json(run(*RED, "--organization", "acme", "--json"))
    assert (done["scope"]["organization"], done["scope"]["team"]) == ("acme", "red")


def test_a_limit_of_a_policy_file_says_that_the_file_will_set_it_back(run, tmp_path):
    from contextlib import closing

    from msgspec.structs import replace

    from tokenweir import app
    from tokenweir.settings import Settings

    run(*RED)
    with closing(app.open_limit_directory(Settings(data_dir=tmp_path / "tw"))) as limits:
        (one,) = limits.limits()
        limits.put_limits([replace(one.limit, managed_by="ours")], actor="x", now_us=1)
    assert run(*RED).stderr == ""
    assert "'ours'" in run(*RED, "--shadow").stderr
    assert "'ours'" in run("limit", "remove", one.limit.limit_id).stderr


def test_the_history_tells_who_changed_what(run):
    first = as_json(run(*RED, "--name", "b", "--json"))["id"]
    run(*RED[:-3], "200", "--window", "month", "--name", "b")
    run("grant", "topup", "b", "--amount", "5", "--reason", "launch")
    request = as_json(run("request", "create", "b", "--amount", "1", "--reason", "more", "--json"))["id"]
    run("request", "comment", request, "hm")
    run("request", "deny", request, "--comment", "no")
    run(*RED[:-3], "200", "--window", "quarter", "--name", "b")
    told = as_json(run("limit", "history", "b", "--json"))
    assert [one["action"] for one in told] == [
        *("limit.set", "limit.changed", "grant.added", "request.created", "request.commented", "request.denied"),
        *("limit.removed", "limit.set", "grant.moved"),
    ]
    assert told[0]["id"] == first
    assert (told[1]["before"]["amount"], told[1]["after"]["amount"]) == (100_000_000_000, 200_000_000_000)
    assert all(one["by"].startswith("cli:") for one in told)
    shown = run("limit", "history", "b").stdout
    for words in ("amount $100.00 → $200.00", "$5.00 · launch", "$1.00 · more", "hm", "no", first, "limit removed"):
        assert words in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resource", "spend", "--amount", "5", "--window", "day"],
        ["--org", "--team", "red", "--resource", "spend", "--amount", "5", "--window", "day"],
        ["--organization", "default", "--resource", "spend", "--amount", "5", "--window", "day"],
        ["--org", "--resource", "coffee", "--amount", "5", "--window", "day"],
        ["--org", "--resource", "spend", "--amount", "five", "--window", "day"],
        ["--org", "--resource", "spend", "--amount", "0.0000000001", "--window", "day"],
        ["--org", "--resource", "tokens", "--amount", "1.5", "--window", "day"],
        ["--org", "--resource", "spend", "--amount", "5", "--window", "fortnight"],
        ["--org", "--resource", "spend", "--amount", "5"],
        ["--org", "--resource", "spend", "--amount", "5", "--window", "month", "--timezone", "Berlin"],
        ["--org", "--resource", "spend", "--amount", "5", "--window", "month", "--anchor", "32"],
        ["--org", "--resource", "spend", "--amount", "5", "--window", "month", "--action", "scold"],
        ["--org", "--resource", "spend", "--amount", "5", "--window", "month", "--queue-for", "5s"],
        ["--org", "--resource", "spend", "--amount", "5", "--window", "month", "--per", "cat"],
        ["--team", "green", "--resource", "spend", "--amount", "5", "--window", "month"],
        ["--key", "green", "--resource", "spend", "--amount", "5", "--window", "month"],
        ["--org", "--organization", "acme", "--resource", "spend", "--amount", "5", "--window", "month"],
        ["--org", "--resource", "spend", "--amount", "5", "--window", "month", "--models", "a b"],
    ],
)
def test_wrong_use_is_one_sentence_exit_code_2_and_nothing_changed(run, arguments):
    result = run("limit", "set", *arguments, code=2)
    assert result.stdout == ""
    assert re.fullmatch(r"tokenweir: [^\n]+\n", result.stderr)
    assert as_json(run("limit", "list", "--all", "--json")) == []


def test_an_unknown_limit_says_how_to_list_them(run):
    for command in ("show", "remove", "history"):
        assert "tokenweir limit list" in run("limit", command, "nobody", code=2).stderr


def test_parts_that_are_nobodys_so_far_are_remarked_upon(run):
    """A slip of the pen in an owner, a tag or a model makes a limit that never counts anything: it is set, and said."""
    told = run(
        *("limit", "set", "--org", "--user", "nobody", "--tag", "none", "--resource", "requests", "--amount", "5", "--window", "day"),
        *("--models", "claude-ops-*,claude-opus-*,claude-sonnet-4-5", "--action", "downgrade", "--to", "claude-nano"),
    ).stderr
    assert [word in told for word in ("'nobody'", "'none'", "'claude-ops-*'", "'claude-nano'")] == [True] * 4
    assert [word in told for word in ("claude-opus-*", "claude-sonnet-4-5")] == [False] * 2


@pytest.mark.parametrize(
    ("window", "anchor", "words"),
    [("week", "7", "per week (from Sunday)"), ("month", "31", "per month (from day 31)"), ("quarter", "02-01", "per quarter (from 02-01)")],
)
def test_where_a_cycle_begins_is_said_in_words(run, window, anchor, words):
    told = run("limit", "set", "--org", "--resource", "requests", "--amount", "5", "--window", window, "--anchor", anchor).stdout
    assert f"5 requests {words} for" in told


def test_the_burst_of_a_budget_is_told_in_dollars(run):
    told = run("limit", "set", "--org", "--resource", "spend", "--amount", "6", "--window", "rolling:2h:burst=$0.50").stdout
    assert "$6.00 in 2h, burst $0.50 for" in told


def test_the_whole_organization_and_a_team_contradict_each_other(run):
    told = run("limit", "set", "--org", "--team", "red", "--resource", "requests", "--amount", "5", "--window", "day", code=2).stderr
    assert "--org is the whole organization" in told
