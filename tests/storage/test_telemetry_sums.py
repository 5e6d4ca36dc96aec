"""Sums of metrics: a point counts once, in whatever order exports are repeated; a running total is taken as it stands."""

from __future__ import annotations

import uuid
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from databases import DATABASES, settings_for
from tokenweir import app
from tokenweir.periods import DAY_US
from tokenweir.principals import Principal
from tokenweir.wire.telemetry import TOKEN_METRIC, MetricPoint

ADA = Principal("org", "team", "key_ada", "org", "team", "ada")
POINT = MetricPoint("a=1", TOKEN_METRIC, "input", "claude-x", "s1", 5 * DAY_US, 5 * DAY_US + 10, 100, cumulative=False)


@pytest.fixture(params=DATABASES)
def sums(request, tmp_path):
    with settings_for(request.param, tmp_path / "home") as chosen:
        app.open_engine(chosen, create=True).dispose()
        with closing(app.open_telemetry_sums(chosen)) as found:
            yield found


def amounts(sums, since_us=0, until_us=2**60):
    return [(one.day_us, one.amount, one.points) for one in sums.telemetry_sums(since_us, until_us)]


def test_points_of_a_series_add_up_and_a_repeated_one_does_not(sums):
    later = replace(POINT, at_us=POINT.at_us + 10, amount=5)
    assert sums.add_points([POINT, later], ADA) == 2
    assert sums.add_points([POINT, later], ADA) == 0
    assert sums.add_points([later], ADA) == 0
    assert amounts(sums) == [(5 * DAY_US, 105, 2)]


def test_other_series_keys_and_days_are_kept_apart(sums):
    sums.add_points([POINT, replace(POINT, series="a=2"), replace(POINT, at_us=POINT.at_us + DAY_US)], ADA)
    sums.add_points([POINT], Principal("org", "team", "key_bob", "org", "team", "bob"))
    assert sorted(amounts(sums)) == [(5 * DAY_US, 100, 1)] * 3 + [(6 * DAY_US, 100, 1)]
    assert amounts(sums, 6 * DAY_US, 7 * DAY_US) == [(6 * DAY_US, 100, 1)]


def test_a_running_total_stands_for_itself_on_the_day_it_began(sums):
    total = replace(POINT, cumulative=True)
    grown = replace(total, at_us=total.at_us + DAY_US, amount=250)
    sums.add_points([total], ADA)
    sums.add_points([grown], ADA)
    sums.add_points([total], ADA)
    assert amounts(sums) == [(5 * DAY_US, 250, 2)]
    sums.add_points([replace(grown, started_at_us=POINT.started_at_us + 1, amount=7)], ADA)  # the program was started anew
    assert sorted(amount for _, amount, _ in amounts(sums)) == [7, 250]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.data())
def test_exports_may_be_repeated_at_will(sums, told, data):
    series = uuid.uuid4()  # the database is the same for every example
    points = [replace(POINT, series=str(series), session_id=str(series), at_us=POINT.at_us + n, amount=amount) for n, amount in enumerate(told)]
    for n in range(len(points)):
        again = data.draw(st.integers(0, n))
        sums.add_points(points[again : n + 1], ADA)
        sums.add_points(points[: n + 1], ADA)
    assert sum(one.amount for one in sums.telemetry_sums(0, 2**60) if one.session_id == str(series)) == sum(told)


def test_texts_with_a_zero_character_are_stored(sums):
    sums.add_points([replace(POINT, model="a\0b", series="\ud800")], ADA)
    assert [one.model for one in sums.telemetry_sums(0, 2**60)] == ["a�b"]
