"""The demo's limits: set like any others, given more when asked, and shown so that a narrow terminal has room for them."""

from __future__ import annotations

import os

import pytest

from tokenweir import app
from tokenweir.cli import demo_limits
from tokenweir.cli.demo_limits import LIMITS, DemoLimits, held_words, resets_words, used_words, waiting_words
from tokenweir.issuing import issue_key
from tokenweir.metering.limit_status import LimitStatus
from tokenweir.metering.waiting import LimitWaits
from tokenweir.settings import load_settings
from tokenweir.simulator.programs import PROGRAMS

DAY_S = 86_400


@pytest.fixture
def limits(tmp_path):
    settings = load_settings(None, data_dir=tmp_path)
    app.prepare_data_dir(settings)
    directory = app.open_directory(settings)
    pepper = app.open_pepper(settings, directory)
    for program in PROGRAMS:
        issue_key(directory, pepper, team=program.team, name=program.name, actor="test", now_us=1, entropy=os.urandom)
    directory.close()
    return DemoLimits(settings)


def standing(**changes) -> LimitStatus:
    return LimitStatus(
        **{"limit_id": "limit_1", "seat": "", "amount": 1, "room": 1, "used": 0, "held": 0, "starts_at_us": None, "resets_at_us": None, **changes}
    )


def test_three_of_the_teams_have_a_limit_and_each_reads_in_its_own_place(limits):
    found = limits.read()
    assert [record.team for record, _ in found] == [limit["team"] for limit in LIMITS]
    assert {record.team for record, _ in found} < {program.team for program in PROGRAMS}
    assert [used_words(record, one) for record, one in found] == ["0 of 100,000", "0 of 18", "0 of 1"]
    assert [held_words(record, one) for record, one in found] == ["0", "-", "-"]


def test_the_team_at_its_quota_is_given_more_some_time_after_a_refusal_and_only_then(limits, monkeypatch):
    assert not limits.ask_for_more()
    limits.refuse("support", "rate_limit_error", "soon")
    assert not limits.ask_for_more()
    limits.refuse("data", "billing_error", "enough")
    assert not limits.ask_for_more(), "not at once"
    monkeypatch.setattr(demo_limits, "_ASK_AFTER_S", 0)
    assert limits.ask_for_more()
    assert not limits.ask_for_more()
    assert used_words(*limits.read()[0]) == "0 of 150,000"
    assert limits.told == {"support": "soon", "data": "enough"}
    assert limits.refused == {"support": 1, "data": 1}


def test_what_the_limits_counted_otherwise_than_the_ledger_is_a_difference(limits):
    (quota, one), *others = limits.read()
    assert limits.conclude([(quota, one), *others])["differences"] == []
    off = standing(limit_id=quota.limit.limit_id, used=7, room=one.room, starts_at_us=one.starts_at_us)
    assert limits.conclude([(quota, off), *others])["differences"] == ["data quota: 7 in the limit and 0 in the ledger"]
    stuck = standing(limit_id=quota.limit.limit_id, held=5, room=one.room, starts_at_us=one.starts_at_us)
    assert limits.conclude([(quota, stuck), *others])["differences"] == ["data quota: 5 still held"]


@pytest.mark.parametrize(
    ("left_s", "words"),
    [(0, "0s"), (9, "9s"), (60, "1m"), (61, "1m 1s"), (3_600, "1h"), (8 * DAY_S + 6 * 3_600 + 59, "8d 6h"), (DAY_S + 5, "1d 5s"), (-5, "0s")],
)
def test_the_time_until_a_reset_has_two_units_at_most(left_s, words):
    now_us = 10**15
    assert resets_words(standing(resets_at_us=now_us + left_s * 10**6), now_us) == words


def test_what_never_resets_and_where_nobody_waits_is_a_dash():
    assert resets_words(standing(), 0) == "-"
    assert waiting_words(standing()) == "-"
    assert waiting_words(standing(waits=LimitWaits(waiting=2, p95_us=2_430_000))) == "2, p95 2.4s"
