"""`tokenweir import claude-code | provider-report | status`: what people and programs are told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from tokenweir.cli import app
from transcript_trees import line, write_tree


def run(home, *arguments, code=0):
    result = CliRunner().invoke(app, [*arguments, "--data-dir", str(home)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def tree(tmp_path):
    write_tree(tmp_path / "projects", seed=1, files=3, answers=10)
    return tmp_path / "projects"


def test_it_comes_to_the_totals_of_the_report_on_the_same_tree(home, tree):
    first = json.loads(run(home, "import", "claude-code", str(tree), "--team", "blue", "--owner", "ada@example.org", "--json").stdout)
    assert first["new"] > 0
    assert first["files_read"] == first["files"] == 3
    assert json.loads(run(home, "import", "claude-code", str(tree), "--json").stdout)["files_read"] == 0
    reported = json.loads(CliRunner().invoke(app, ["report", str(tree), "--json"]).stdout)["totals"]
    booked = json.loads(run(home, "usage", "--by", "key", "--json").stdout)
    for name in ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "cost_nanos"):
        assert booked["totals"][name] == reported[name]
    assert {(row["team"], row["key"]) for row in booked["rows"]} == {("blue", "person:ada@example.org")}
    run(home, "ledger", "verify")


def test_people_are_told_of_estimates_by_their_source(home, tree):
    run(home, "import", "claude-code", str(tree))
    assert "told by claude_code_log" in run(home, "usage").stderr


def test_claude_code_s_own_places_are_read_without_a_path(home, tmp_path, monkeypatch):
    folder = tmp_path / "config" / "projects" / "p"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text(line())
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "config"))
    assert "1 new calls" in run(home, "import", "claude-code").stdout
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "nothing"))
    assert "name a file or a folder" in run(home, "import", "claude-code", code=2).stderr


def test_status_shows_files_sources_and_reports(home, tree, tmp_path):
    run(home, "import", "claude-code", str(tree))
    page = tmp_path / "usage.json"
    bucket = {"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z", "results": [{"uncached_input_tokens": 1}]}
    page.write_text(json.dumps({"data": [bucket]}))
    assert json.loads(run(home, "import", "provider-report", str(page), "--json").stdout) == {
        "pages": 1,
        "rows": 1,
        "new_pages": 1,
        "kinds": ["usage"],
    }
    assert "0 kept, 1 known already" in run(home, "import", "provider-report", str(page)).stdout
    status = json.loads(run(home, "import", "status", "--json").stdout)
    assert len(status["imports"]) == 3
    assert {one["source"] for one in status["imports"]} == {"claude_code_log"}
    assert {(one["source"], one["certainty"]) for one in status["sources"]} == {("claude_code_log", "partial")}
    assert [(one["kind"], one["rows"]) for one in status["provider_reports"]] == [("usage", 1)]
    assert json.loads(run(home, "usage", "--by", "certainty", "--json").stdout)["totals"]["requests"] == status["sources"][0]["requests"]
    text = run(home, "import", "status").stdout
    assert all(part in text for part in ("claude_code_log", "partial", "usage.json"))


def test_a_report_that_is_none_is_refused(home, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    assert "x.json: page 1 is no report" in run(home, "import", "provider-report", str(tmp_path / "x.json"), code=2).stderr
    assert "cannot read" in run(home, "import", "provider-report", str(tmp_path / "y.json"), code=2).stderr


def test_an_export_carries_source_certainty_and_what_a_call_is_told_apart_by(home, tmp_path):
    (tmp_path / "a.jsonl").write_text(line("msg_1", "req_1"))
    run(home, "import", "claude-code", str(tmp_path / "a.jsonl"))
    entry = json.loads(run(home, "ledger", "export").stdout)
    assert (entry["source"], entry["certainty"], entry["dedup_key"]) == ("claude_code_log", "partial", "message:msg_1")


def test_follow_books_what_is_written_meanwhile_and_ends_when_it_is_told_to(home, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(line("msg_1", "req_1"))
    command = [sys.executable, "-m", "tokenweir", "import", "claude-code", str(path), "--follow", "--json", "--data-dir", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["new"] == 1
        with path.open("a") as file:
            file.write(line("msg_2", "req_2"))
        assert json.loads(process.stdout.readline())["new"] == 1
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert process.wait(30) == 0, time.monotonic() - started
        assert process.stderr.read() == ""
