"""`tokenweir prices`: a card is shown before it applies, refused whole, replaced whole, and changes prices and nothing else."""

from __future__ import annotations

import json
from contextlib import closing
from importlib import resources

import pytest
from typer.testing import CliRunner

from bookings import START_US, entry
from tokenweir import app as wiring
from tokenweir.cli.root import app
from tokenweir.settings import Settings

BUILT_IN = (resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def run(home, *arguments, code=0):
    result = CliRunner().invoke(app, ["prices", *arguments, "--data-dir", str(home)])
    assert result.exit_code == code, result.output
    return result


def card_file(tmp_path, change=None, name="new.json"):
    content = json.loads(BUILT_IN)
    content["version"] = "2026-12-01"
    if change is not None:
        change(content)
    file = tmp_path / name
    file.write_text(json.dumps(content))
    return str(file)


def dearer(content):
    next(model for model in content["models"] if model["id"] == "claude-sonnet-5-5")["rates"][-1]["usd_per_mtok"]["output"] = "11"


def book(home, **fields):
    with closing(wiring.open_ledger(Settings(data_dir=home), create=True)) as store:
        store.book([entry(1, at_us=START_US, **fields)])


def test_without_anything_the_built_in_card_is_in_force_and_nothing_is_made(home):
    told = json.loads(run(home, "status", "--json").stdout)
    assert (told["file"], told["unpriced_models"], told["unknown_usage_fields"]) == (None, [], [])
    assert told["card_version"].startswith(told["built_in_version"])
    assert not home.exists()


def test_status_names_models_without_a_rate_and_fields_that_nobody_knows(home):
    book(home, model="claude-tomorrow-9", flags=("unpriced",))
    with closing(wiring.open_ledger(Settings(data_dir=home))) as store:
        now_us = wiring.SystemClock().now_us()
        store.book([entry(n, at_us=now_us - n, flags=("unknown_usage_field:video_tokens",)) for n in (2, 3)] + [entry(4, at_us=now_us - 4)])
    told = json.loads(run(home, "status", "--json").stdout)
    assert [(one["model"], one["requests"], one["priced_now"]) for one in told["unpriced_models"]] == [("claude-tomorrow-9", 1, False)]
    assert told["unknown_usage_fields"] == [{"field": "video_tokens", "entries": 2}]
    shown = run(home, "status").output
    assert "claude-tomorrow-9" in shown
    assert "video_tokens" in shown


def test_a_difference_is_shown_and_changes_nothing(home, tmp_path):
    told = json.loads(run(home, "diff", "--from", card_file(tmp_path, dearer), "--json").stdout)
    (one,) = told["differences"]
    assert (one["model"], one["field"], one["before"], one["after"]) == ("claude-sonnet-5-5", "rates.output", "10", "11")
    assert not home.exists()


def test_an_update_applies_after_it_was_confirmed_and_keeps_the_card_before(home, tmp_path):
    settings = Settings(data_dir=home)
    first, second = card_file(tmp_path), card_file(tmp_path, dearer, "second.json")
    run(home, "update", "--from", first, code=2)  # nobody is there to ask
    assert wiring.rate_card_file(settings) is None
    assert json.loads(run(home, "update", "--from", first, "--yes", "--json").stdout)["applied"] is True
    assert wiring.open_rate_card(settings).version.startswith("2026-12-01+")
    told = json.loads(run(home, "update", "--from", second, "--yes", "--json").stdout)
    assert [one["after"] for one in told["differences"]] == ["11"]
    assert (home / "rates.json").read_text() == (tmp_path / "second.json").read_text()
    assert (home / "rates.previous.json").read_text() == (tmp_path / "new.json").read_text()
    assert (home / "rates.json").stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in home.iterdir()) == ["journal", "rates.json", "rates.previous.json"]
    again = json.loads(run(home, "update", "--from", second, "--yes", "--json").stdout)
    assert again["applied"] is False


def test_the_built_in_card_can_be_put_back(home, tmp_path):
    run(home, "update", "--from", card_file(tmp_path, dearer), "--yes")
    run(home, "update", "--from", "built-in", "--yes")
    assert wiring.open_rate_card(Settings(data_dir=home)).version == wiring.open_names_card(Settings(data_dir=home)).version


def test_an_older_stored_card_is_pointed_out(home, tmp_path):
    run(home, "update", "--from", card_file(tmp_path, lambda content: content.update(version="2026-01-01")), "--yes")
    told = json.loads(run(home, "status", "--json").stdout)
    assert told["newer_built_in"] is True


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-3],
        lambda text: text.replace('"unit"', '"permissions": {"key_1": "*"}, "unit"', 1),
        lambda text: text.replace('"output": "40"', '"output": 40', 1),
        lambda text: text.replace('"output": "40"', '"output": "-40"', 1),
        lambda text: text.replace('"effective_to": null', '"effective_to": "2020-01-01"', 1),
        lambda _: "",
        lambda _: "[" * 100_000,
        lambda _: "\xff",
    ],
)
def test_a_bad_card_is_refused_whole_with_one_sentence(home, tmp_path, spoil):
    run(home, "update", "--from", card_file(tmp_path), "--yes")
    file = tmp_path / "bad.json"
    file.write_bytes(spoil(BUILT_IN).encode("latin-1"))
    before = (home / "rates.json").read_bytes()
    result = run(home, "update", "--from", str(file), "--yes", code=2)
    assert len(result.stderr.strip().splitlines()) == 1
    assert (home / "rates.json").read_bytes() == before


def test_a_file_that_is_far_too_large_is_not_read_whole(home, tmp_path):
    file = tmp_path / "huge.json"
    with file.open("wb") as out:
        out.truncate(wiring.CARD_BYTES_MAX + 1)
    assert "larger than" in run(home, "update", "--from", str(file), "--yes", code=2).stderr


def test_history_that_is_booked_cannot_be_taken_away(home, tmp_path):
    book(home, model="claude-sonnet-5-5")

    def without(content):
        content["models"] = [model for model in content["models"] if model["id"] != "claude-sonnet-5-5"]

    result = run(home, "update", "--from", card_file(tmp_path, without), "--yes", code=2)
    assert "claude-sonnet-5-5" in result.stderr
    assert not (home / "rates.json").exists()


def test_new_prices_cannot_change_who_may_use_what(home, tmp_path):
    def renamed(content):
        content["models"][0]["aliases"] = ["claude-cheap-alias"]

    settings = Settings(data_dir=home)
    run(home, "update", "--from", card_file(tmp_path, renamed), "--yes")
    assert wiring.open_rate_card(settings).resolve("claude-cheap-alias") is not None
    assert wiring.open_names_card(settings).resolve("claude-cheap-alias") is None


def test_a_card_that_the_settings_name_is_not_replaced(home, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWEIR_PRICING__CARD_FILE", card_file(tmp_path, name="mine.json"))
    assert "mine.json" in run(home, "update", "--from", card_file(tmp_path), "--yes", code=2).stderr


def test_a_stored_card_that_was_damaged_is_an_error_and_never_the_old_prices(home, tmp_path):
    run(home, "update", "--from", card_file(tmp_path), "--yes")
    (home / "rates.json").write_text("{")
    assert "rates.json" in run(home, "status", code=2).stderr
