"""`limit status` where no gateway runs: what the ledger says of every limit, in the order of the list, on terminals of any width."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from tokenweir.cli.limit_fields import time_left
from tokenweir.cli.root import app as tokenweir

MINUTE_US, DAY_US = 60_000_000, 86_400_000_000


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWEIR_DATA_DIR", str(tmp_path / "tw"))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, code: int = 0):
        result = CliRunner().invoke(tokenweir, list(arguments))
        assert result.exit_code == code, result.output
        return result

    invoke("key", "create", "--team", "red", "--name", "ci", "--owner", "ana")
    return invoke


@pytest.fixture
def limits(run):
    """Limits of every kind, by name."""
    on = {
        "month": ("--resource", "spend", "--amount", "12.50", "--window", "month", "--timezone", "Asia/Kolkata"),
        "people": ("--resource", "tokens", "--amount", "2M", "--window", "week", "--per", "user", "--shadow"),
        "talks": ("--resource", "output_tokens", "--amount", "9", "--window", "day", "--per", "session"),
        "rate": ("--resource", "requests", "--amount", "60", "--window", "rolling:60s"),
        "slots": ("--resource", "concurrency", "--amount", "4"),
    }
    for name, options in on.items():
        run("limit", "set", "--org", "--name", name, *options)
    return list(on)


def test_every_limit_is_told_in_the_order_of_the_list(run, limits):
    told = json.loads(run("limit", "status", "--json").stdout)
    assert sorted(one["name"] for one in told) == sorted(limits)
    assert [one["id"] for one in told] == [one["id"] for one in json.loads(run("limit", "list", "--json").stdout)]
    month = next(one for one in told if one["name"] == "month")
    assert (month["used"], month["held"], month["remaining"], month["room"]) == (0, 0, 12_500_000_000, 12_500_000_000)
    assert next(one for one in told if one["name"] == "talks")["used"] is None


def test_a_wide_terminal_shows_ids_and_the_clock_of_the_limit(run, limits):
    shown = run("limit", "status").stdout
    assert re.search(r"limit_\w{12} +month +0\.00 +0\.00 +12\.50 +USD this month +0 % +\d{4}-\d\d-\d\d 00:00 Asia/Kolkata", shown)
    assert "people · ana (shadow)" in shown
    assert re.search(r"talks \(sessions are not listed\) +- +- +9 ", shown)


@pytest.mark.parametrize("columns", ["80", "100"])
def test_a_narrow_terminal_shows_a_line_for_each_limit(run, limits, monkeypatch, columns):
    """What is used of what, what is held and how long it lasts fit side by side; nothing is cut."""
    monkeypatch.setenv("COLUMNS", columns)
    shown = run("limit", "status").stdout
    assert max(map(len, shown.splitlines())) <= int(columns)
    assert re.search(r"month +0\.00 of 12\.50 USD this( month)? +0\.00 +\d+[dhm]", shown)
    assert re.search(r"slots +0 of 4 requests at once +0 +-", shown)


def test_a_removed_limit_does_not_stand_any_more(run, limits):
    """What nobody enforces is not shown as if it were; its records are in `limit show` and `limit history`."""
    run("limit", "remove", "slots")
    assert "was removed at" in run("limit", "status", "slots", code=2).stderr
    assert "slots" not in run("limit", "status").stdout


def test_without_limits_it_says_how_to_set_one(run):
    nothing = run("limit", "status")
    assert (nothing.stdout, "tokenweir limit set" in nothing.stderr) == ("", True)
    assert run("limit", "list").stdout == run("grant", "list").stdout == run("request", "list").stdout == ""


@pytest.mark.parametrize(
    ("wait_us", "words"),
    [
        (0, "0s"),
        (1, "1s"),
        (59_000_000, "59s"),
        (MINUTE_US, "1m"),
        (61 * MINUTE_US, "1h 1m"),
        (DAY_US + 5 * MINUTE_US, "1d"),
        (8 * DAY_US + 390 * MINUTE_US, "8d 6h"),
    ],
)
def test_time_that_is_left_is_told_in_its_two_largest_units(wait_us, words):
    assert time_left(wait_us) == words
