"""The credential commands: whose and from where, never the content."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from typer.testing import CliRunner

from tokenweir import app
from tokenweir.cli.root import app as tokenweir
from tokenweir.settings import Settings

CANARY = "sk-ant-api03-canary-41d7"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWEIR_DATA_DIR", str(tmp_path / "tw"))

    def invoke(*arguments: str, code: int = 0, text: str | None = None):
        result = CliRunner().invoke(tokenweir, ["credential", *arguments], input=text)
        assert result.exit_code == code, result.output
        assert CANARY not in result.output
        return result

    return invoke


def usable(tmp_path) -> list[str]:
    settings = Settings(data_dir=tmp_path / "tw")
    with closing(app.open_directory(settings)) as directory:
        return [app.upstream_key(settings, one) for one in directory.changes_since(0).credentials]


def test_one_from_standard_input_is_sealed_in_an_empty_directory(run, tmp_path):
    run("set", "--org", "--stdin", text=CANARY + "\n")
    assert usable(tmp_path) == [CANARY]
    everything = b"".join(path.read_bytes() for path in (tmp_path / "tw").rglob("*") if path.is_file())
    assert b"sealed" in everything
    assert CANARY.encode() not in everything


def test_one_from_a_private_file_for_a_team(run, tmp_path):
    path = tmp_path / "key"
    path.write_text(CANARY)
    path.chmod(0o644)
    assert "chmod 600" in run("set", "--team", "blue", "--file", str(path), code=2).stderr
    path.chmod(0o600)
    run("set", "--team", "blue", "--file", str(path))
    assert usable(tmp_path) == [CANARY]
    (listed,) = json.loads(run("list", "--json").stdout)
    assert (listed["team"], listed["source"]) == ("blue", f"file:{path}")


def test_one_from_the_environment(run, tmp_path, monkeypatch):
    assert "must be set where the gateway runs" in run("set", "--org", "--env", "TW_TEST_KEY").stderr
    monkeypatch.setenv("TW_TEST_KEY", CANARY)
    assert usable(tmp_path) == [CANARY]


def test_set_again_replaces_and_remove_forgets(run):
    first = json.loads(run("set", "--org", "--env", "A", "--json").stdout)
    second = json.loads(run("set", "--org", "--env", "B", "--json").stdout)
    listed = json.loads(run("list", "--json").stdout)
    assert [one["id"] for one in listed] == [second["id"]] != [first["id"]]
    assert "default" in run("list").stdout
    run("remove", second["id"])
    assert json.loads(run("list", "--json").stdout) == []
    assert "credential list" in run("remove", second["id"], code=2).stderr


def test_one_for_another_upstream_is_pointed_out(run, monkeypatch):
    run("set", "--org", "--env", "A")
    monkeypatch.setenv("TOKENWEIR_UPSTREAM__BASE_URL", "https://other.example")
    assert "https://other.example" in run("list").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--env", "A"],
        ["--org", "--team", "blue", "--env", "A"],
        ["--org"],
        ["--org", "--env", "A", "--stdin"],
        ["--org", "--env", "A=B"],
        ["--org", "--file", "/nowhere/at/all"],
        ["--org", "--stdin"],
    ],
)
def test_wrong_use_is_one_sentence(run, arguments):
    result = run("set", *arguments, code=3 if arguments[-1] in ("--stdin", "/nowhere/at/all") and "--env" not in arguments else 2, text="")
    assert result.stdout == ""
    assert result.stderr.startswith("tokenweir: ")
    assert result.stderr.count("\n") == 1
