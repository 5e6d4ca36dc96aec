"""`tokenweir usage`: the same totals by whatever it is shown, for programs and for people."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from typer.testing import CliRunner

from bookings import START_US, entry, intent
from tokenweir import app as wiring
from tokenweir.cli.root import app
from tokenweir.ledger.entries import FLAG_UNPRICED, unknown_entry
from tokenweir.settings import Settings

HOUR_US = 3_600_000_000
ENTRIES = [entry(n, at_us=START_US + n * HOUR_US, cost_nanos=n * 1_000_000_001, model=f"m{n % 2}") for n in range(24)]


@pytest.fixture
def home(tmp_path):
    settings = Settings(data_dir=tmp_path / "home")
    with closing(wiring.open_ledger(settings, create=True)) as store:
        store.book(ENTRIES)
    return settings.data_dir


def run(home, *arguments, code=0):
    result = CliRunner().invoke(app, ["usage", *arguments, "--data-dir", str(home)])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("by", ["day", "month", "hour", "model", "team", "key", "organization", "certainty"])
@pytest.mark.parametrize("timezone", ["UTC", "Asia/Kathmandu"])
def test_rows_add_up_to_totals_that_are_the_same_by_anything(home, by, timezone):
    answer = json.loads(run(home, "--by", by, "--timezone", timezone, "--json").stdout)
    for name, total in answer["totals"].items():
        if name != "cost_usd":
            assert sum(row[name] for row in answer["rows"]) == total
    assert answer["totals"]["cost_nanos"] == sum(one.cost_nanos for one in ENTRIES)
    assert answer["totals"]["cost_usd"] == "276.000000276"
    assert answer["totals"]["requests"] == 24
    assert all(by in row for row in answer["rows"])


def test_key_rows_carry_id_name_and_team(home):
    rows = json.loads(run(home, "--by", "key", "--json").stdout)["rows"]
    assert {(row["team"], row["key"], row["key_name"]) for row in rows} == {(f"team_{t}", f"key_{k}", None) for t in range(2) for k in range(3)}


def test_days_are_those_of_the_time_zone(home):
    days = {row["day"]: row["requests"] for row in json.loads(run(home, "--timezone", "Asia/Kathmandu", "--json").stdout)["rows"]}
    assert days == {"2026-11-22": 7, "2026-11-23": 17}
    some = json.loads(run(home, "--timezone", "Asia/Kathmandu", "--since", "2026-11-23", "--until", "2026-11-24", "--json").stdout)
    assert some["totals"]["requests"] == 17


def test_people_get_a_table_with_a_totals_line_and_the_doubts_below(home):
    with closing(wiring.open_ledger(Settings(data_dir=home))) as store:
        store.book([unknown_entry(intent(100), now_us=START_US + 10**10), entry(101, model="new-model", flags=(FLAG_UNPRICED,))])
    result = run(home, "--by", "model")
    assert result.stdout.splitlines()[-2].split()[:2] == ["total", "26"] or "total" in result.stdout
    assert "$276.00" in result.stdout
    assert "Estimated: $0.000100 for 1 attempts of unknown outcome" in result.stderr
    assert "new-model, at a conservative rate" in result.stderr


def test_wrong_arguments_are_one_sentence(home):
    assert "not a time zone" in run(home, "--timezone", "Nowhere", code=2).stderr
    assert "not a date" in run(home, "--since", "soon", code=2).stderr
    assert "not after" in run(home, "--since", "2026-11-23", "--until", "2026-11-22", code=2).stderr


def test_an_empty_range_is_said_and_is_no_failure(home):
    result = run(home, "--until", "2020-01-01")
    assert "Nothing was used" in result.stderr
