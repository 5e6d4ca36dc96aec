"""`tokenweir models status`: what is new or ends, when, and who still uses it."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from typer.testing import CliRunner

from bookings import entry
from simulation import KEY, running_simulator
from tokenweir import app as wiring
from tokenweir.cli.root import app
from tokenweir.ledger_ports import ProviderModel
from tokenweir.periods import DAY_US
from tokenweir.settings import Settings

LISTED = [
    ProviderModel("claude-sonnet-5-5", lifecycle="active"),
    ProviderModel("claude-opus-4-5-20251101", lifecycle="deprecated", deprecated_at="2026-10-01T00:00:00Z", retires_at="2999-01-15T00:00:00Z"),
    ProviderModel("claude-haiku-4-5", lifecycle="active"),
]


@pytest.fixture
def home(tmp_path):
    settings = Settings(data_dir=tmp_path / "home")
    now_us = wiring.SystemClock().now_us()
    with closing(wiring.open_ledger(settings, create=True)) as store:
        store.book([entry(n, at_us=now_us - n * DAY_US, model="claude-opus-4-5") for n in (1, 2, 40)])
        store.book([entry(3, at_us=now_us - DAY_US, model="claude-tomorrow-9")])
    with closing(wiring.open_provider_models(settings)) as models:
        models.keep_listing(LISTED, now_us=now_us - 3 * DAY_US)
        models.keep_listing([*LISTED[:2], ProviderModel("claude-new-6", lifecycle="active")], now_us=now_us - DAY_US)
    return settings.data_dir


def run(home, *arguments, code=0):
    result = CliRunner().invoke(app, ["models", "status", *arguments, "--data-dir", str(home)])
    assert result.exit_code == code, result.output
    return result


def test_every_model_is_told_with_its_state_and_its_users(home):
    found = {model["model"]: model for model in json.loads(run(home, "--json").stdout)["models"]}
    ending = found["claude-opus-4-5-20251101"]
    assert (ending["state"], ending["retires_at"][:10], ending["deprecated_at"][:10]) == ("deprecated", "2999-01-15", "2026-10-01")
    assert sum(user["requests"] for user in ending["used_by"]) == 2  # the one of 40 days ago does not count
    assert (found["claude-new-6"]["new"], found["claude-new-6"]["priced"]) == (True, False)
    assert (found["claude-sonnet-5-5"]["new"], found["claude-sonnet-5-5"]["state"]) == (False, "active")
    assert found["claude-haiku-4-5"]["state"] == "gone"
    assert found["claude-tomorrow-9"]["state"] == "unlisted"


def test_people_are_told_who_must_move(home):
    result = run(home)
    assert "claude-opus-4-5-20251101 retires on 2999-01-15 and is still used by" in " ".join(result.stderr.split())
    assert "claude-new-6" in result.stdout
    assert "claude-sonnet-5-5" not in result.stdout
    assert "claude-sonnet-5-5" in run(home, "--all").stdout


def test_a_date_that_has_passed_is_a_retirement_whatever_the_lifecycle_says(home):
    settings = Settings(data_dir=home)
    with closing(wiring.open_provider_models(settings)) as models:
        models.keep_listing(
            [ProviderModel("claude-opus-4-5-20251101", lifecycle="active", retires_at="2026-01-01")], now_us=wiring.SystemClock().now_us()
        )
    found = {model["model"]: model["state"] for model in json.loads(run(home, "--json").stdout)["models"]}
    assert found["claude-opus-4-5-20251101"] == "retired"


def test_without_a_list_the_rate_card_speaks_and_nothing_is_made(tmp_path):
    found = json.loads(run(tmp_path / "none", "--json").stdout)
    assert found["listed_at"] is None
    assert {model["model"]: model["state"] for model in found["models"]}["claude-sonnet-4-5"] in ("deprecated", "retired")
    assert not (tmp_path / "none").exists()


def test_refreshing_asks_the_provider(tmp_path, monkeypatch):
    with running_simulator(tmp_path) as simulator:
        monkeypatch.setenv("TOKENWEIR_UPSTREAM__BASE_URL", simulator.url)
        monkeypatch.setenv("TOKENWEIR_UPSTREAM__API_KEY", KEY)
        found = json.loads(run(tmp_path / "home", "--refresh", "--json").stdout)
    assert found["listed_at"] is not None
    assert len(found["models"]) > 5
    assert all(model["last_seen_at"] for model in found["models"])


def test_a_provider_that_is_not_there_is_said_in_one_sentence(tmp_path, monkeypatch, unused_tcp_port):
    monkeypatch.setenv("TOKENWEIR_UPSTREAM__BASE_URL", f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.setenv("TOKENWEIR_UPSTREAM__API_KEY", KEY)
    assert "no connection" in run(tmp_path / "home", "--refresh", code=2).stderr


def test_the_doctor_warns_of_models_that_end_and_of_what_has_no_rate(home):
    with closing(wiring.open_ledger(Settings(data_dir=home))) as store:
        store.book([entry(9, at_us=wiring.SystemClock().now_us(), flags=("unpriced", "unknown_usage_field:video_tokens"), model="claude-tomorrow-9")])
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json", "--data-dir", str(home)]).stdout)["checks"]
    warnings = [one["detail"] for one in found if one["state"] == "warn" and one["check"] in ("models", "prices")]
    assert any("claude-opus-4-5" in detail and "retires on" in detail for detail in warnings)
    assert any("claude-tomorrow-9" in detail for detail in warnings)
    assert any("video_tokens" in detail for detail in warnings)
