from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tokenweir.cli import app

USAGE = json.dumps(
    {
        "input_tokens": 10,
        "cache_creation_input_tokens": 3000,
        "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000},
        "cache_read_input_tokens": 50000,
        "output_tokens": 500,
        "server_tool_use": {"web_search_requests": 3},
        "service_tier": "standard",
        "speed": "standard",
        "inference_geo": "us",
    }
)


@pytest.fixture
def price(monkeypatch, tmp_path):
    for name in ("TOKENWEIR_PRICING__CARD_FILE", "TOKENWEIR_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("COLUMNS", "160")

    def run(*args, stdin=None):
        return CliRunner().invoke(app, ["price", *args], input=stdin)

    return run


def _json(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_usage_object_is_priced_line_by_line(price):
    answer = _json(price("--model", "claude-opus-5-5-20260901", "--usage", USAGE, "--at", "2026-11-22", "--json"))
    assert answer["cost_nanos"] == 75_144_000
    assert answer["cost_usd"] == "0.075144000"
    assert answer["model"] == "claude-opus-5-5"
    assert answer["unpriced"] is False
    assert answer["card_version"].startswith("20")
    assert sum(line["nanos"] for line in answer["lines"]) == answer["cost_nanos"]
    assert answer["lines"][0] == {
        "component": "uncached_input",
        "model": "claude-opus-5-5",
        "quantity": 10,
        "usd_per_mtok": "4.4",
        "nanos": 44_000,
    }
    assert [line["component"] for line in answer["lines"]] == [
        "uncached_input",
        "cache_write_5m",
        "cache_write_1h",
        "cache_read",
        "output",
        "web_search",
    ]


def test_the_date_chooses_the_row(price):
    usage = '{"input_tokens": 0, "cache_read_input_tokens": 1000000, "output_tokens": 0}'
    costs = [
        _json(price("--model", "claude-sonnet-5-5", "--usage", usage, "--at", at, "--json"))["cost_usd"]
        for at in ("2026-10-06T23:59:59Z", "2026-10-07", "2026-10-07T02:00:00+05:30")
    ]
    assert costs == ["0.200000000", "0.100000000", "0.200000000"]


def test_without_a_date_it_is_priced_now(price):
    assert _json(price("--model", "claude-opus-5", "--usage", USAGE, "--json"))["at"] > "2026"


def test_a_batch_costs_half_and_its_searches_do_not(price):
    full = _json(price("--model", "claude-opus-5", "--usage", USAGE, "--json"))
    half = _json(price("--model", "claude-opus-5", "--usage", USAGE, "--batch", "--json"))
    assert half["cost_nanos"] - 30_000_000 == (full["cost_nanos"] - 30_000_000) / 2


def test_an_unknown_model_is_priced_and_said_to_be_unpriced(price):
    answer = _json(price("--model", "claude-9", "--usage", USAGE, "--json"))
    assert answer["unpriced"] is True
    assert answer["model"] == "claude-9"
    assert answer["cost_nanos"] > 0
    table = price("--model", "claude-9", "--usage", USAGE)
    assert "Unpriced" in table.stderr


def test_usage_comes_from_a_file_or_from_standard_input(price, tmp_path):
    path = tmp_path / "usage.json"
    path.write_text(USAGE)
    inline = price("--model", "claude-opus-5", "--usage", USAGE, "--at", "2026-11-22", "--json").stdout
    assert price("--model", "claude-opus-5", "--usage", f"@{path}", "--at", "2026-11-22", "--json").stdout == inline
    assert price("--model", "claude-opus-5", "--usage", "-", "--at", "2026-11-22", "--json", stdin=USAGE).stdout == inline


def test_the_table_shows_how_it_was_priced(price):
    result = price("--model", "claude-opus-5", "--usage", USAGE, "--at", "2026-11-22")
    assert result.exit_code == 0
    for text in ("How this was priced", "cache_write_1h", "2,000", "11 per million", "10 per 1,000", "total", "0.100180000"):
        assert text in result.stdout, result.stdout


def test_nothing_used_costs_nothing(price):
    assert _json(price("--model", "claude-opus-5", "--usage", "{}", "--json"))["cost_nanos"] == 0


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("[" * 100_000, "--usage"),
        ('{"input_tokens": "10"}', "input_tokens"),
        ('{"input_tokens": -1}', "input_tokens"),
        ('{"output_tokens": 1.5}', "output_tokens"),
        ('{"cache_creation": 7}', "cache_creation"),
        ('{"iterations": {"type": "message"}}', "iterations"),
        ('{"speed": 3}', "speed"),
        ("@/nowhere/usage.json", "cannot read /nowhere/usage.json"),
    ],
)
def test_a_bad_usage_is_one_sentence_and_exit_2(price, usage, words):
    result = price("--model", "claude-opus-5", "--usage", usage, "--json")
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.startswith("tokenweir: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("at", ["yesterday", "2026-13-01", "", "22.11.2026"])
def test_a_bad_date_is_one_sentence_and_exit_2(price, at):
    result = price("--model", "claude-opus-5", "--usage", "{}", "--at", at)
    assert result.exit_code == 2
    assert "not a date or time" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_card_of_one_s_own_is_used_and_a_bad_one_refused(price, tmp_path, monkeypatch, card_text):
    path = tmp_path / "rates.json"
    path.write_text(card_text.replace('"version": "', '"version": "contract-', 1))
    monkeypatch.setenv("TOKENWEIR_PRICING__CARD_FILE", str(path))
    assert _json(price("--model", "claude-opus-5", "--usage", USAGE, "--json"))["card_version"].startswith("contract-")
    bad = tmp_path / "bad.json"
    bad.write_text(card_text.replace('"output": "40"', '"output": "forty"', 1))
    monkeypatch.setenv("TOKENWEIR_PRICING__CARD_FILE", str(bad))
    result = price("--model", "claude-opus-5", "--usage", USAGE, "--json")
    assert result.exit_code == 2
    assert "claude-fable-5-2" in result.stderr
    assert str(bad) in result.stderr
    monkeypatch.setenv("TOKENWEIR_PRICING__CARD_FILE", str(tmp_path / "none.json"))
    assert "cannot be read" in price("--model", "claude-opus-5", "--usage", USAGE, "--json").stderr


def test_it_creates_nothing_and_needs_no_home(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tokenweir", "price", "--model", "claude-opus-5", "--usage", USAGE, "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"},
    )
    assert json.loads(result.stdout)["cost_nanos"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def card_text():
    from importlib import resources

    return (resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8")
