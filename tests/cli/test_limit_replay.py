"""`limits replay`: a table for people, everything in JSON, and nothing changed."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from typer.testing import CliRunner

from bookings import START_US, entry
from tokenweir import app
from tokenweir.cli.root import app as tokenweir
from tokenweir.periods import format_instant
from tokenweir.settings import Settings

FILE = """
[[limit]]
name = "red's day"
team = "red"
resource = "spend"
amount = "0.00000002"
window = "day"
"""
SINCE, UNTIL = format_instant(START_US), format_instant(START_US + 3_600_000_000)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENWEIR_DATA_DIR", str(tmp_path / "tw"))
    monkeypatch.setenv("COLUMNS", "250")

    def invoke(*arguments: str, code: int = 0):
        result = CliRunner().invoke(tokenweir, list(arguments))
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def file(tmp_path, run):
    """Four requests of 10 nanos by one key of team red, and one by another team; the file has room for 20 a day."""
    red = json.loads(run("key", "create", "--team", "red", "--name", "ci", "--owner", "ann", "--json").stdout)
    blue = json.loads(run("key", "create", "--team", "blue", "--name", "web", "--json").stdout)
    with closing(app.open_directory(Settings(data_dir=tmp_path / "tw"))) as directory:
        homes = {one.key_id: one for one in directory.keys()}  # noqa: SIM118 - a directory is no dictionary
    keys = [red["id"]] * 4 + [blue["id"]]
    entries = [
        entry(
            n,
            at_us=START_US + n * 1_000_000,
            begun={"organization_id": homes[key].organization_id, "team_id": homes[key].team_id, "key_id": key},
            cost_nanos=10,
        )
        for n, key in enumerate(keys)
    ]
    with closing(app.open_ledger(Settings(data_dir=tmp_path / "tw"))) as ledger:
        ledger.book(entries)
    path = tmp_path / "limits.toml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("group", ["limit", "limits"])
def test_json_says_what_each_limit_did_to_whom_and_what_is_saved(run, file, group):
    """Under both names of the group."""
    plain = json.loads(run(group, "replay", "--policy", str(file), "--from", SINCE, "--to", UNTIL, "--json").stdout)
    assert plain["totals"] == {
        "attempts": 5, "requests": 5, "admitted": 3, "refused": 2, "refused_attempts": 2, "downgraded": 0, "waited": 0, "cost_nanos": 50,
        "refused_nanos": 20, "downgrade_saved_nanos": 0, "shadow_nanos": 0, "saved_nanos": 20,
    }  # fmt: skip
    (limit,) = plain["limits"]
    assert {name: limit[name] for name in ("name", "amount", "admitted", "refused", "saved_nanos", "keys_hit")} == {
        "name": "red's day", "amount": 20, "admitted": 2, "refused": 2, "saved_nanos": 20, "keys_hit": 1,
    }  # fmt: skip
    assert {name: limit["keys"][0][name] for name in ("key", "team", "owner", "requests", "cost_nanos")} == {
        "key": "ci", "team": "red", "owner": "ann", "requests": 2, "cost_nanos": 20,
    }  # fmt: skip
    assert limit["first"]["at"] == format_instant(START_US + 2_000_000)
    assert (limit["peak"]["units"], limit["peak"]["room"], limit["peak"]["percent"]) == (20, 20, 100)
    assert plain["assumptions"]
    assert (plain["from"], plain["to"]) == (SINCE, UNTIL)


def test_people_see_a_table_and_what_was_taken_for_granted(run, file, tmp_path):
    """The assumptions go to standard error, so that the answer can be kept."""
    shown = run("limits", "replay", "--policy", str(file), "--from", SINCE, "--to", UNTIL)
    assert "red's day" in shown.stdout
    assert "ci of red: 2" in shown.stdout
    assert "Refused: 2 of 5 requests" in shown.stdout
    assert "Callers do what they did" in shown.stderr
    assert "Callers do what they did" not in shown.stdout
    with closing(app.open_limit_directory(Settings(data_dir=tmp_path / "tw"))) as directory:
        assert directory.limits() == []


def test_without_a_file_the_limits_that_are_set_are_replayed_with_their_grants_if_asked(run, file):
    """So that one can see what a grant would have changed."""
    assert "no limits are set" in run("limits", "replay", "--from", SINCE, "--to", UNTIL, code=2).stderr
    run("policy", "apply", str(file), "--yes")
    run("grant", "add", "red's day", "--amount", "0.00000001")
    plain = json.loads(run("limits", "replay", "--from", SINCE, "--to", UNTIL, "--json").stdout)
    assert plain["totals"]["refused"] == 2
    assert "Grants are not counted." in plain["assumptions"]
    assert "Grants" not in " ".join(json.loads(run("limits", "replay", "--from", SINCE, "--to", UNTIL, "--grants", "--json").stdout)["assumptions"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--from", "yesterday"], "is not a date or time"),
        (["--from", UNTIL, "--to", SINCE], "ends after it begins"),
        (["--from", SINCE, "--timezone", "Mars/Base"], "is not a time zone"),
        (["--from", SINCE, "--policy", "nowhere.toml"], "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_answered_in_one_sentence(run, file, more, said):
    """Exit code 2."""
    assert said in run("limits", "replay", "--policy", str(file), *more, code=2).stderr


def test_days_are_those_of_the_time_zone(run, file):
    """--from and --to are dates of it."""
    plain = json.loads(
        run("limits", "replay", "--policy", str(file), "--from", "2026-11-22", "--to", "2026-11-23", "--timezone", "Asia/Kathmandu", "--json").stdout
    )
    assert plain["from"] == "2026-11-21T18:15:00.000000Z"
