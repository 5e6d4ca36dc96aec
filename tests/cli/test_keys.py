"""The key commands: work in an empty directory, print the secret once, and speak JSON."""

from __future__ import annotations

import json
import re
import stat
from contextlib import closing

import pytest
from typer.testing import CliRunner

from tokenweir import app, key_tokens
from tokenweir.cli.root import app as tokenweir
from tokenweir.control import Control, write_control
from tokenweir.settings import Settings


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWEIR_DATA_DIR", str(tmp_path / "tw"))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, code: int = 0, text: str | None = None):
        result = CliRunner().invoke(tokenweir, list(arguments), input=text)
        assert result.exit_code == code, result.output
        return result

    return invoke


def as_json(result):
    return json.loads(result.stdout)


def grants(tmp_path):
    with closing(app.open_directory(Settings(data_dir=tmp_path / "tw"))) as directory:
        return directory.changes_since(0).grants


def test_a_key_is_created_in_an_empty_directory_with_its_secret_as_one_json_object(run, tmp_path):
    created = as_json(run("key", "create", "--team", "blue", "--name", "laptop", "--json"))
    assert list(created)[:2] == ["id", "secret"]
    assert key_tokens.check(created["secret"])
    assert created["team"] == "blue"
    assert created["priority"] == "normal"
    (grant,) = grants(tmp_path)
    assert grant.digest == key_tokens.digest(created["secret"], app.open_secrets(Settings(data_dir=tmp_path / "tw")).pepper)
    for path in [tmp_path / "tw", *(tmp_path / "tw").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_address_to_paste_is_that_of_the_gateway_that_runs(run, tmp_path):
    """`serve --port` may have chosen another one than the settings say."""
    (tmp_path / "tw").mkdir(exist_ok=True)
    write_control(tmp_path / "tw", Control("http://127.0.0.1:40404", "secret", 1))
    assert "export ANTHROPIC_BASE_URL=http://127.0.0.1:40404\n" in run("key", "create", "--team", "blue", "--name", "laptop").stdout


def test_people_see_the_secret_once_with_what_to_paste(run, monkeypatch):
    monkeypatch.setenv("TOKENWEIR_GATEWAY__PORT", "9191")
    shown = run("key", "create", "--team", "blue", "--name", "laptop").stdout
    token = re.search(r"^    (tw_\S+)$", shown, re.MULTILINE)[1]
    assert key_tokens.check(token)
    assert "export ANTHROPIC_BASE_URL=http://127.0.0.1:9191\n" in shown
    assert f"export ANTHROPIC_API_KEY={token}\n" in shown
    for command in (["key", "list"], ["key", "list", "--json"], ["key", "show", "laptop"], ["key", "show", "laptop", "--json"]):
        later = run(*command).output
        assert token[16:] not in later
        assert token not in later


def test_everything_that_can_be_said_of_a_key_is_kept_and_shown(run):
    options = [
        "--owner",
        "a@b.c",
        "--model",
        "claude-haiku-*",
        "--model",
        "claude-opus-5",
        "--network",
        "10.0.0.0/8",
        "--tag",
        "ci",
        "--expires",
        "90d",
        "--priority",
        "high",
    ]
    created = as_json(run("key", "create", "--team", "blue", "--name", "ci", *options, "--json"))
    shown = as_json(run("key", "show", created["id"], "--json"))
    assert {name: value for name, value in created.items() if name != "secret"} == shown
    assert (shown["owner"], shown["models"], shown["networks"], shown["tags"]) == (
        "a@b.c",
        ["claude-haiku-*", "claude-opus-5"],
        ["10.0.0.0/8"],
        ["ci"],
    )
    assert shown["expires"] > shown["created"]
    assert shown["state"] == "live"
    assert shown["priority"] == as_json(run("key", "list", "--json"))[0]["priority"] == "high"
    assert re.search(r"^\s*priority\s+high\s*$", run("key", "show", created["id"]).stdout, re.MULTILINE)


def test_rotate_and_revoke_by_name(run, tmp_path):
    created = as_json(run("key", "create", "--team", "blue", "--name", "ci", "--json"))
    rotated = as_json(run("key", "rotate", "ci", "--overlap", "2h", "--json"))
    assert rotated["id"] == created["id"]
    assert rotated["secret"] != created["secret"]
    assert rotated["overlap_ends"] > rotated["created"]
    assert len(grants(tmp_path)) == 2
    assert as_json(run("key", "show", "ci", "--json"))["state"] == "rotating"
    assert "Revoked" in run("key", "revoke", "ci").stdout
    assert grants(tmp_path) == ()
    assert as_json(run("key", "list", "--json"))[0]["state"] == "revoked"
    assert "was revoked" in run("key", "rotate", "ci", code=2).stderr


def test_lists_of_one_team_and_of_teams(run):
    for team, name in (("blue", "a"), ("blue", "b"), ("red", "c")):
        run("key", "create", "--team", team, "--name", name)
    assert [key["name"] for key in as_json(run("key", "list", "--team", "blue", "--json"))] == ["a", "b"]
    assert [(team["team"], team["keys"]) for team in as_json(run("team", "list", "--json"))] == [("blue", 2), ("red", 1)]
    assert "blue" in run("team", "list").stdout
    assert "tokenweir team list" in run("key", "list", "--team", "green", code=2).stderr


def test_an_empty_list_says_how_to_begin(run):
    result = run("key", "list")
    assert "tokenweir key create" in result.stderr
    assert as_json(run("key", "list", "--json")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["key", "create", "--team", "", "--name", "x"],
        ["key", "create", "--team", "a", "--name", "x\ny"],
        ["key", "create", "--team", "a", "--name", "x", "--expires", "yesterday"],
        ["key", "create", "--team", "a", "--name", "x", "--expires", "2020-01-01"],
        ["key", "create", "--team", "a", "--name", "x", "--network", "home"],
        ["key", "create", "--team", "a", "--name", "x", "--model", "a b"],
        ["key", "create", "--team", "a", "--name", "x", "--priority", "urgent"],
        ["key", "rotate", "x", "--overlap", "soon"],
        ["key", "rotate", "nobody"],
        ["key", "revoke", "nobody"],
        ["key", "show", "nobody"],
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(run, arguments):
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert re.fullmatch(r"tokenweir: [^\n]+\n", result.stderr)


def test_an_exposed_pepper_stops_every_command_that_needs_it(run, tmp_path):
    run("key", "create", "--team", "blue", "--name", "a")
    (tmp_path / "tw" / "secrets" / "pepper").chmod(0o644)
    assert "chmod 600" in run("key", "create", "--team", "blue", "--name", "b", code=2).stderr
    assert len(as_json(run("key", "list", "--json"))) == 1
