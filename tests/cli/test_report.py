"""`tokenweir report`: one answer in four forms, from the usual places or from named ones, with nothing written unless asked."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fixtures import FIXTURES, needs_fixtures
from tokenweir.cli.report import _Progress
from tokenweir.cli.root import app

FIGURES = ["uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "thinking", "web_searches", "cost_nanos", "estimated"]


def line(number, *, at="2026-11-01T23:30:00Z", model="claude-haiku-4-5", cwd="/home/ada/weir", session="s", **usage):
    message = {"id": f"m{number}", "model": model, "stop_reason": "end_turn", "usage": {"input_tokens": 1000, "output_tokens": 10, **usage}}
    return json.dumps({"type": "assistant", "requestId": "r", "timestamp": at, "cwd": cwd, "sessionId": session, "message": message}) + "\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / ".claude/projects/-home-ada-weir"
    folder.mkdir(parents=True)
    (folder / "s.jsonl").write_text(line(1) + line(2, at="2026-11-02T10:00:00Z", model="claude-opus-4-5") + line(1))
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def read(*arguments):
    return json.loads(run(*arguments, "--timezone", "UTC", "--json").stdout)


def test_json_has_exactly_the_promised_shape(home):
    answer = read()
    assert list(answer) == ["rows", "totals"]
    assert [list(row) for row in answer["rows"]] == [["period", "model", "project", "session", *FIGURES]] * 2
    assert list(answer["totals"]) == FIGURES
    assert [(row["period"], row["model"], row["project"], row["session"]) for row in answer["rows"]] == [
        ("2026-11-01", "claude-haiku-4-5", None, None),
        ("2026-11-02", "claude-opus-4-5", None, None),
    ]
    # 1,000 tokens at 1 and 5 dollars per million, 10 at 5 and 25.
    assert [row["cost_nanos"] for row in answer["rows"]] == [1_050_000, 5_250_000]
    assert answer["totals"]["cost_nanos"] == 6_300_000
    assert answer["totals"]["estimated"] is False


@pytest.mark.parametrize("by", ["day", "week", "month", "session", "project", "model", "month,project,session,model"])
def test_labels_are_filled_where_grouped_and_totals_stay(home, by):
    answer = read("--by", by)
    names = {"day": "period", "week": "period", "month": "period"}
    wanted = {names.get(name, name) for name in by.split(",")}
    for row in answer["rows"]:
        assert {name for name in ("period", "model", "project", "session") if row[name] is not None} == wanted
    assert answer["totals"] == read()["totals"]


def test_csv_has_the_same_rows_and_no_cell_that_is_a_formula(home):
    evil = home / "evil.jsonl"
    evil.write_text(line(9, cwd='=HYPERLINK("x")') + line(8, cwd=" @SUM(1)") + line(7, cwd="-1+1") + line(6, cwd="\tx"))
    text = run(evil, "--csv", "--by", "project").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["project"] for row in rows] == ["'\tx", "' @SUM(1)", "'-1+1", '\'=HYPERLINK("x")']
    assert [row["cost_nanos"] for row in rows] == ["1050000"] * 4
    assert rows[0]["period"] == ""
    assert list(rows[0]) == ["period", "model", "project", "session", *FIGURES]


def test_people_get_a_table_with_totals_and_what_is_not_certain(home):
    (home / "x.jsonl").write_text(line(3, model="claude-of-tomorrow", moon_tokens=3) + line(4).replace("end_turn", "") + "{broken\n" + '{"usage"\n')
    result = run(home, "--timezone", "UTC")
    assert "2026-11-02" in result.stdout
    assert "total" in result.stdout
    assert "from cache" in result.stdout
    for text in (
        "Unpriced: $",
        "claude-of-tomorrow",
        "Estimated: $0.0010 for 1 answers without a stated end",
        "moon_tokens",
        "Not read: 1 torn lines",
    ):
        assert text in result.stderr


def test_ranges_and_days_are_those_of_the_time_zone(home):
    assert [row["period"] for row in json.loads(run("--timezone", "Asia/Kathmandu", "--json", "--by", "day").stdout)["rows"]] == ["2026-11-02"]
    assert read("--since", "2026-11-02")["totals"]["cost_nanos"] == 5_250_000
    assert read("--until", "2026-11-02")["totals"]["cost_nanos"] == 1_050_000


def test_the_usual_places_follow_the_environment(home, monkeypatch):
    other = home / "elsewhere/projects/p"
    other.mkdir(parents=True)
    (other / "t.jsonl").write_text(line(5))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", f"{home}/elsewhere, {home}/missing")
    assert read()["totals"]["cost_nanos"] == 1_050_000


def test_nothing_found_is_said_and_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    result = run("--json")
    assert json.loads(result.stdout)["rows"] == []
    assert f"there is no {tmp_path}/.claude/projects" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_one_sentence(home):
    assert "no file or folder" in run(home / "typo", code=2).stderr
    assert "cannot group by hour" in run("--by", "hour", code=2).stderr
    assert "choose one of --json" in run("--json", "--csv", code=2).stderr
    assert "not a time zone" in run("--timezone", "Nowhere", code=2).stderr
    assert "not after" in run("--since", "2026-11-02", "--until", "2026-11-01", code=2).stderr
    assert "cannot write" in run("--html", home / "no/such/folder.html", code=2).stderr


def test_the_page_is_written_where_asked_and_nothing_else_is(home):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    result = run("--html", home / "r.html", "--timezone", "UTC", "--json")
    assert f"The report is in {home}/r.html" in result.stderr
    assert "2026-11-01 to 2026-11-02" in (home / "r.html").read_text("utf-8")
    json.loads(result.stdout)
    assert set(home.rglob("*")) - before.keys() == {home / "r.html"}


def test_the_bar_is_drawn_on_a_terminal_and_wiped_away(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with _Progress(10**9) as progress:
        progress._last -= 1
        progress.advance(5 * 10**8)
    assert "50 %" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")
    monkeypatch.setattr(sys, "stderr", quiet := io.StringIO())
    with _Progress(10**9) as progress:
        progress._last -= 1
        progress.advance(10)
    assert quiet.getvalue() == ""


def test_the_command_does_not_load_what_it_does_not_need(home):
    """Half a second for 50 MB leaves no time to import a database library or to read settings."""
    code = "import sys; from tokenweir.cli import app; app(['report','--json'], standalone_mode=False); print(*sorted(sys.modules), file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert "tokenweir.reports.grouping" in loaded
    for heavy in ("sqlalchemy", "alembic", "uvicorn", "tokenweir.settings", "tokenweir.app", "multiprocessing", "tokenweir.reports.html"):
        assert heavy not in loaded


@needs_fixtures
def test_captured_requests_of_claude_code_are_accepted_and_hold_no_answer():
    """The captures are requests and telemetry, no transcripts: read as they are, they add nothing and break nothing."""
    answer = read(FIXTURES / "claude-code", *sorted((FIXTURES / "claude-code").glob("*.json")))
    assert answer["rows"] == []


def test_a_rate_card_that_was_put_in_prices_the_report_as_well(home, tmp_path, monkeypatch):
    """`prices update` stores it in the data directory; two commands must not price the same answer differently."""
    from importlib import resources

    before = read()["totals"]["cost_nanos"]
    card = json.loads((resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8"))
    for model in card["models"]:
        if model["id"] == "claude-haiku-4-5":
            for row in model["rates"]:
                row["usd_per_mtok"] = {name: str(2 * float(price)) for name, price in row["usd_per_mtok"].items()}
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "rates.json").write_text(json.dumps(card))
    monkeypatch.setenv("TOKENWEIR_DATA_DIR", str(tmp_path / "books"))
    assert read()["totals"]["cost_nanos"] > before
