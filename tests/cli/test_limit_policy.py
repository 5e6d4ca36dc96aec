"""`policy plan` and `policy apply`: nothing is changed that was not shown, exit codes tell scripts, and JSON says the same."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from io import StringIO

import pytest
from typer.testing import CliRunner

from tokenweir import app
from tokenweir.cli.root import app as tokenweir
from tokenweir.settings import Settings

FILE = """
[[limit]]
name = "red's month"
team = "red"
resource = "spend"
amount = "500"
window = "month"
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWEIR_DATA_DIR", str(tmp_path / "tw"))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, code: int = 0, text: str | None = None):
        result = CliRunner().invoke(tokenweir, list(arguments), input=text)
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def file(tmp_path, run):
    run("key", "create", "--team", "red", "--name", "ci")
    path = tmp_path / "limits.toml"
    path.write_text(FILE)
    return path


def limits(tmp_path):
    with closing(app.open_limit_directory(Settings(data_dir=tmp_path / "tw"))) as directory:
        return {one.limit.name: one.limit for one in directory.limits()}


def test_a_plan_shows_what_would_change_and_changes_nothing(run, file, tmp_path):
    """Exit code 4 says that there is something to do, 0 that there is not."""
    shown = run("policy", "plan", str(file), code=4).stdout
    assert "+ red's month\n" in shown
    assert "    + amount      $500.00\n" in shown
    assert "1 to create, 0 to change, 0 to remove, 0 unchanged" in shown
    assert limits(tmp_path) == {}
    run("policy", "apply", str(file), "--yes")
    assert run("policy", "plan", str(file)).stdout.endswith("0 to create, 0 to change, 0 to remove, 1 unchanged\n")


def test_applying_twice_does_nothing_the_second_time(run, file, tmp_path):
    """And both say so."""
    first = json.loads(run("policy", "apply", str(file), "--yes", "--json").stdout)
    assert (first["applied"], [one["name"] for one in first["create"]]) == (True, ["red's month"])
    before = limits(tmp_path)
    second = json.loads(run("policy", "apply", str(file), "--json").stdout)
    assert (second["applied"], second["differences"], second["unchanged"]) == (False, False, ["red's month"])
    assert limits(tmp_path) == before
    assert before["red's month"].managed_by == "policy"


def test_a_change_and_a_removal_are_shown_with_before_and_after(run, file):
    """In the text and in JSON."""
    run("policy", "apply", str(file), "--yes")
    run("limit", "set", "--team", "red", "--resource", "requests", "--amount", "5", "--window", "rolling:60s", "--name", "by hand")
    file.write_text(FILE.replace('"500"', '"600"').replace('"month"\n', '"week"\n'))
    shown = run("policy", "plan", str(file), code=4).stdout
    assert "    ~ amount      $500.00 -> $600.00\n" in shown
    assert "    ~ window      month -> week\n" in shown
    assert "its use so far is read from the ledger" in shown
    assert "left alone, because this file has not brought it: by hand" in shown
    plain = json.loads(run("policy", "plan", str(file), "--json", code=4).stdout)
    assert plain["change"][0]["fields"] == [
        {"field": "amount", "before": "$500.00", "after": "$600.00"},
        {"field": "window", "before": "month", "after": "week"},
    ]
    assert plain["change"][0]["recounted"] is True
    assert [one["name"] for one in plain["unmanaged"]] == ["by hand"]
    file.write_text("")
    assert "- red's month" in run("policy", "plan", str(file), code=4).stdout


def test_nothing_is_changed_without_a_yes(run, file, tmp_path, monkeypatch):
    """Not on a terminal, it must be given with the command; on one, it is asked for."""
    refused = run("policy", "apply", str(file), code=2)
    assert "run this again with --yes" in refused.stderr
    run("policy", "apply", str(file), "--json", code=2)
    assert limits(tmp_path) == {}

    class Terminal(StringIO):
        def isatty(self):
            return True

    for answer, names in (("n\n", set()), ("y\n", {"red's month"})):
        monkeypatch.setattr("tokenweir.cli.limit_policy.sys", _WithStdin(Terminal(answer)))
        monkeypatch.setattr("typer.confirm", lambda *_, answer=answer, **__: answer == "y\n")
        run("policy", "apply", str(file))
        assert limits(tmp_path).keys() == names


class _WithStdin:
    """The `sys` module with a terminal as its standard input."""

    def __init__(self, stdin):
        self.stdin = stdin

    def __getattr__(self, name):
        return getattr(sys, name)


def test_a_hand_made_limit_of_the_same_name_is_adopted_and_that_is_said(run, file, tmp_path):
    """Its id stays, so its counters do."""
    run("limit", "set", "--team", "red", "--resource", "spend", "--amount", "500", "--window", "month", "--name", "red's month")
    before = limits(tmp_path)["red's month"]
    assert "it was set by hand and belongs to this file from now on" in run("policy", "plan", str(file), code=4).stdout
    run("policy", "apply", str(file), "--yes")
    after = limits(tmp_path)["red's month"]
    assert (after.limit_id, after.managed_by) == (before.limit_id, "policy")


def test_a_file_can_come_from_standard_input(run, file, tmp_path):
    """With --yes, because nobody can be asked then."""
    run("policy", "plan", "-", text=FILE, code=4)
    run("policy", "apply", "-", text=FILE, code=2)
    run("policy", "apply", "-", "--yes", text=FILE)
    assert limits(tmp_path).keys() == {"red's month"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[[limit]]\nname = 1\n", "limit 1: name = 1: write a text in quotes"),
        (b"\xff", "is not UTF-8 text"),
        (b"[[limit", "this is not TOML"),
        (b"#" * (4 * 1024 * 1024 + 1), "larger than"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "apply"])
def test_what_is_wrong_with_a_file_is_said_with_its_name(run, tmp_path, command, content, said):
    """And nothing is changed: not even a database is made."""
    file = tmp_path / "limits.toml"
    file.write_bytes(content)
    assert said in (refused := run("policy", command, str(file), code=2).stderr)
    assert str(file) in refused
    assert "cannot be read: No such file" in run("policy", command, "nowhere.toml", code=2).stderr
    assert not (tmp_path / "tw").exists()


def test_what_is_not_known_in_a_file_is_said_and_nothing_is_changed(run, file, tmp_path):
    """A team that is not there."""
    file.write_text(FILE.replace('"red"', '"redd"'))
    assert 'did you mean "red"?' in run("policy", "apply", str(file), "--yes", code=2).stderr
    assert limits(tmp_path) == {}


def test_the_help_tells_scripts_what_the_exit_codes_mean(run):
    """They use them."""
    assert "4: there are differences" in " ".join(run("policy", "plan", "--help").stdout.split())
