"""Granting: what a grant becomes, when it begins and ends, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limit_office import HOUR, MONTH_END, NOW, limit_office
from tokenweir import limiting
from tokenweir.errors import Conflict, NotFound, TokenweirError
from tokenweir.limits.limit import Cycle
from tokenweir.periods import QUARTER_US, quarter_start

QUARTER = quarter_start(NOW)


@pytest.fixture
def office(tmp_path):
    with limit_office("sqlite", tmp_path) as made:
        made.set(name="month")
        made.set(name="rate", resource="requests", window="rolling:60s")
        made.set(name="five", resource="concurrency", window="", amount="5")
        yield made


def grant(office, limit="month", kind="topup", amount="50", **more):
    return limiting.add_grant(office.limits, limit, kind=kind, amount=amount, **more, **office.changing())


def test_a_top_up_is_a_credit_of_the_running_cycle_from_its_running_quarter_on(office):
    made = grant(office, reason=" launch ").grant
    assert (made.kind, made.amount, made.rollover_max, made.reason) == ("credit", 50_000_000_000, 0, "launch")
    assert (made.effective_at_us, made.expires_at_us, made.created_at_us) == (QUARTER, MONTH_END, NOW)
    assert limiting.show_limit(office.limits, "month").grants == (made,)


def test_a_credit_lasts_until_it_is_burned_or_its_end(office):
    made = grant(office, kind="credit", priority=5, rollover_min="1", rollover_max="20.5").grant
    assert (made.expires_at_us, made.priority, made.rollover_min, made.rollover_max) == (None, 5, 10**9, 20_500_000_000)
    assert grant(office, kind="credit", rollover_max="0").grant.rollover_max == 0
    assert grant(office, kind="credit").grant.rollover_max is None


def test_an_increase_ends_by_itself(office):
    assert grant(office, kind="increase").grant.expires_at_us == MONTH_END
    made = grant(office, "five", "increase", "2", until_us=NOW + HOUR).grant
    assert (made.kind, made.amount, made.effective_at_us, made.expires_at_us) == ("increase", 2, QUARTER, QUARTER + HOUR + QUARTER_US)
    assert grant(office, "rate", "increase", "1k", until_us=NOW + HOUR).grant.amount == 1000


def test_the_end_of_a_cycle_is_that_of_its_own_zone(office):
    office.set(name="tokyo", timezone="Asia/Tokyo")
    assert grant(office, "tokyo").grant.expires_at_us == MONTH_END - 9 * HOUR
    coming = grant(office, "tokyo", "increase", from_us=MONTH_END).grant
    assert coming.expires_at_us == MONTH_END + (31 * 24 - 9) * HOUR


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(starts=st.integers(0, 90 * 24 * HOUR), lasts=st.integers(1, 90 * 24 * HOUR))
def test_grants_lie_on_whole_quarters_and_are_never_shorter_than_was_asked(office, starts, lasts):
    made = grant(office, kind="increase", amount="0.01", from_us=NOW + starts, until_us=NOW + starts + lasts).grant
    assert made.effective_at_us % QUARTER_US == made.expires_at_us % QUARTER_US == 0
    assert NOW + starts - QUARTER_US < made.effective_at_us <= NOW + starts
    assert NOW + starts + lasts <= made.expires_at_us < NOW + starts + lasts + QUARTER_US


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"limit": "nobody"}, "no limit 'nobody'.*limit list"),
        ({"amount": "0"}, "above zero"),
        ({"amount": "x"}, "'x'"),
        ({"amount": "3_999_950"}, r"month would come to \$4,000,050.00; the most is \$4,000,000.00"),
        ({"limit": "five"}, "takes an increase"),
        ({"limit": "rate", "kind": "credit"}, "takes an increase"),
        ({"limit": "five", "kind": "increase"}, "say until when"),
        ({"limit": "rate", "kind": "increase"}, "say until when"),
        ({"kind": "increase", "until_us": NOW}, "has passed"),
        ({"kind": "increase", "from_us": NOW - HOUR}, "has passed"),
        ({"kind": "increase", "from_us": NOW + 9 * HOUR, "until_us": NOW + HOUR}, "later"),
        ({"kind": "credit", "priority": -1}, "priority -1"),
        ({"kind": "credit", "rollover_min": "5", "rollover_max": "4"}, "exchange"),
        ({"kind": "increase", "rollover_max": "4"}, "rollover belongs to credits"),
        ({"reason": "x" * 1001}, "1,000"),
        ({"reason": "a\x00b"}, "printed"),
    ],
)
def test_what_cannot_be_meant_changes_nothing(office, arguments, sentence):
    records = office.audit()
    with pytest.raises((ValueError, TokenweirError), match=sentence):
        grant(office, **arguments)
    assert office.audit() == records
    assert office.limits.grants(voided=True) == []


def test_a_removed_limit_takes_no_grant(office):
    limiting.remove_limit(office.limits, "month", actor="ana", now_us=NOW)
    with pytest.raises(Conflict, match="was removed"):
        grant(office)


def test_grants_are_listed_with_their_limits_and_ended(office):
    one, two = grant(office), grant(office, "five", "increase", "1", until_us=NOW + HOUR)
    listed = {granted.grant.grant_id: granted for granted in limiting.list_grants(office.limits)}
    assert listed == {
        one.grant.grant_id: limiting.Granted(one.grant, limiting.show_limit(office.limits, "month")),
        two.grant.grant_id: limiting.Granted(two.grant, limiting.show_limit(office.limits, "five")),
    }
    ended = limiting.void_grant(office.limits, one.grant.grant_id, actor="ana", now_us=NOW + 3)
    assert (ended.grant.voided_at_us, ended.limit.limit.name, ended.limit.grants) == (NOW + 3, "month", (ended.grant,))
    assert [granted.grant for granted in limiting.list_grants(office.limits)] == [two.grant]
    assert [granted.grant for granted in limiting.list_grants(office.limits, limit="month", voided=True)] == [ended.grant]
    with pytest.raises(NotFound, match="grant list"):
        limiting.void_grant(office.limits, "grant_x", actor="ana", now_us=NOW)


def test_many_limits_are_read_together(office):
    for number in range(25):
        office.set(name=f"n{number}", tag=f"t{number}")
        grant(office, f"n{number}")
    listed = limiting.list_grants(office.limits)
    assert sorted(granted.limit.limit.name for granted in listed) == sorted(f"n{number}" for number in range(25))
    assert all(isinstance(granted.limit.limit.window, Cycle) and granted.limit.limit.limit_id == granted.grant.limit_id for granted in listed)
