"""`tokenweir import litellm | langfuse | helicone | generic`: booked, or shown first."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tokenweir.cli import app

AT = "2026-11-20 10:00:00"
MODEL = "claude-opus-4-5"
FILES = {
    "litellm": {"request_id": "a", "prompt_tokens": 5, "completion_tokens": 6, "startTime": AT, "model": MODEL, "user": "ada"},
    "langfuse": {"id": "b", "type": "GENERATION", "start_time": AT, "model": MODEL, "usage_details": {"input": 5, "output": 6}, "user_id": "ada"},
    "helicone": {
        "request_id": "c",
        "request_created_at": AT,
        "model": MODEL,
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "request_user_id": "ada",
    },
    "generic": {"at": AT, "m": MODEL, "in": 5, "out": 6, "nr": 1, "who": "ada"},
}
MAPPING = """
name = "x"
[columns]
started_at = "at"
model = "m"
input = "in"
output = "out"
row_id = "nr"
person = "who"
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "mapping.toml").write_text(MAPPING)

    def go(form, *arguments, code=0):
        more = ["--mapping", str(tmp_path / "mapping.toml")] if form == "generic" else []
        result = CliRunner().invoke(app, ["import", form, *arguments, *more, "--data-dir", str(tmp_path / "home")])
        assert result.exit_code == code, result.output
        return result

    return go


@pytest.mark.parametrize("form", FILES)
def test_each_format_is_shown_without_a_trace_and_then_booked_once(run, tmp_path, form):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(FILES[form]) + "\n" + json.dumps({"model": "gpt-4o", "m": "gpt-4o"}) + "\n")
    shown = json.loads(run(form, str(path), "--dry-run", "--json").stdout)
    assert (shown["rows"], shown["calls"], shown["skipped"], shown["refused"]) == (2, 1, 1, 0)
    assert shown["first"][0]["key"] == "person:ada"
    assert not (tmp_path / "home").exists()
    done = json.loads(run(form, str(path), "--json").stdout)
    assert (done["new"], done["rows_skipped"]) == (1, 1)
    assert json.loads(run(form, str(path), "--json").stdout)["matched"] == 1
    usage = json.loads(CliRunner().invoke(app, ["usage", "--json", "--data-dir", str(tmp_path / "home")]).stdout)
    assert (usage["totals"]["requests"], usage["totals"]["output"]) == (1, 6)
    assert usage["totals"]["cost_nanos"] == shown["cost_nanos"] == shown["first"][0]["cost_nanos"]


def test_refused_rows_are_named_and_end_with_one(run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(FILES["litellm"]) + "\n" + json.dumps(FILES["litellm"] | {"prompt_tokens": "?"}) + "\n")
    assert "rows.jsonl:2: prompt_tokens is no count" in run("litellm", str(path), code=1).stderr
    text = run("litellm", str(path), "--dry-run")
    assert "1 refused. Nothing was booked." in text.stderr
    assert "told apart by" in text.stdout


def test_a_file_or_mapping_that_cannot_be_used_is_refused_with_a_sentence(run, tmp_path):
    assert "there is no file" in run("litellm", str(tmp_path / "none.csv"), code=2).stderr
    (tmp_path / "mapping.toml").write_text("name = 1")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert "the mapping cannot be used" in run("generic", str(tmp_path / "rows.jsonl"), code=2).stderr
