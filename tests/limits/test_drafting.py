"""Drafting: amounts mean exactly what they say, and a limit that contradicts itself is refused in one sentence."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tokenweir.limits.drafting import (
    amount_text,
    check_limit,
    duration_text,
    parse_action,
    parse_amount,
    parse_duration_us,
    parse_resource,
    problems_of,
)
from tokenweir.limits.limit import AMOUNT_MAX, Action, Cycle, Limit, Resource, Rolling, Scope

RIGHT = Limit("limit_1", "red's month", Scope("org_1", "team_1"), Resource.SPEND, 500_000_000_000, Cycle("month"))


@given(st.sampled_from(Resource), st.integers(1, AMOUNT_MAX))
def test_what_is_shown_of_an_amount_is_read_back_as_the_same_amount(resource, amount):
    """People copy what they see."""
    assert parse_amount(resource, amount_text(resource, amount)) == amount


@given(st.sampled_from(Resource), st.integers(1, 10**9), st.integers(0, 6), st.sampled_from(["", "k", "K", "M", "B"]))
def test_an_amount_is_read_exactly_or_not_at_all(resource, digits, decimals, times):
    """Against fractions: nothing is ever rounded."""
    text = f"{digits // 10**decimals}.{digits % 10**decimals:0{decimals}d}{times}" if decimals else f"{digits}{times}"
    exact = Fraction(digits, 10**decimals) * {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}[times]
    exact *= 10**9 if resource is Resource.SPEND else 1
    if exact.denominator == 1 and 1 <= exact <= AMOUNT_MAX:
        assert parse_amount(resource, text) == exact
    else:
        with pytest.raises(ValueError, match=r"whole number|nano-dollar|counted exactly"):
            parse_amount(resource, text)


@pytest.mark.parametrize(
    ("resource", "written", "amount"),
    [
        (Resource.SPEND, "500", 500_000_000_000),
        (Resource.SPEND, 500, 500_000_000_000),
        (Resource.SPEND, " $1,234.50 ", 1_234_500_000_000),
        (Resource.SPEND, "1.5k", 1_500_000_000_000),
        (Resource.SPEND, "0.000000001", 1),
        (Resource.TOKENS, "250k", 250_000),
        (Resource.TOKENS, "1_000_000", 1_000_000),
        (Resource.REQUESTS, 7, 7),
    ],
)
def test_amounts_are_read_as_people_write_them(resource, written, amount):
    """Spend in dollars, all else as counts."""
    assert parse_amount(resource, written) == amount


@pytest.mark.parametrize("resource", [Resource.SPEND, Resource.TOKENS])
@pytest.mark.parametrize(
    "written", ["1,5", "5m", "1e3", "٣", "", "-1", "0", "1 000", "Infinity", "nan", "9" * 41, "4000000000000001000", True, -3, 0]
)
def test_what_could_be_read_in_two_ways_is_not_read(resource, written):
    """Nor what is nothing, or more than can be counted."""
    with pytest.raises(ValueError, match=r"\w"):
        parse_amount(resource, written)


def test_a_float_is_refused_whatever_it_holds():
    """0.1 is not a tenth in it."""
    with pytest.raises(ValueError, match="quotes"):
        parse_amount(Resource.SPEND, 0.5)
    with pytest.raises(ValueError, match="a count"):
        parse_amount(Resource.TOKENS, "$5")


@given(st.integers(1, 10**8), st.sampled_from(["ms", "s", "m", "h", "d", "w"]))
def test_a_duration_is_shown_as_it_can_be_read(number, unit):
    """In the largest unit without a remainder."""
    duration_us = parse_duration_us(f"{number}{unit}")
    assert parse_duration_us(duration_text(duration_us)) == duration_us


@pytest.mark.parametrize(
    "refused", [lambda: parse_duration_us("soon"), lambda: parse_duration_us("5"), lambda: parse_resource("money"), lambda: parse_action("stop")]
)
def test_a_word_that_is_not_known_is_answered_with_those_that_are(refused):
    """One sentence."""
    with pytest.raises(ValueError, match=r"there are|write it like"):
        refused()


SPEND, TOKENS, REQUESTS, AT_ONCE = Resource.SPEND, Resource.TOKENS, Resource.REQUESTS, Resource.CONCURRENCY
OPUS = ("claude-opus-*",)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"contact": "x" * 201}, "contact"),
        ({"amount": 0}, "amount"),
        ({"amount": AMOUNT_MAX + 1}, "amount"),
        ({"window": None}, "window"),
        ({"window": Rolling(1)}, "window"),
        ({"window": Rolling(60_000_000, AMOUNT_MAX + 1)}, "window"),
        ({"window": Cycle("month", "Mars/Base")}, "timezone"),
        ({"window": Cycle("month", anchor="32")}, "anchor"),
        ({"window": Cycle("days", anchor="2026-01-05", length_days=400)}, "window"),
        ({"resource": AT_ONCE, "amount": 5}, "window"),
        ({"models": ("claude opus",)}, "models"),
        ({"models": tuple(f"m{n}" for n in range(101))}, "models"),
        ({"action": Action.QUEUE}, "queue_for"),
        ({"queue_ms": 1}, "queue_for"),
        ({"action": Action.QUEUE, "queue_ms": 600_001}, "queue_for"),
        ({"action": Action.QUEUE, "queue_ms": 5, "resource": REQUESTS, "amount": 5}, "action"),
        ({"action": Action.DOWNGRADE}, "to"),
        ({"action": Action.DOWNGRADE, "downgrade_to": "claude-haiku-*", "models": OPUS}, "to"),
        ({"action": Action.DOWNGRADE, "downgrade_to": "claude-opus-4-5", "models": OPUS}, "models"),
        ({"action": Action.DOWNGRADE, "downgrade_to": "claude-haiku-4-5"}, "models"),
        ({"downgrade_to": "claude-haiku-4-5"}, "to"),
        ({"action": Action.END, "resource": REQUESTS, "amount": 5}, "action"),
        ({"carry_over": True, "window": Rolling(60_000_000)}, "carry_over"),
        ({"scope": Scope("org_1", "team_1", per="team")}, "per"),
        ({"scope": Scope("org_1", "team_1", "key_1", per="key")}, "per"),
        ({"scope": Scope("org_1", "team_1", "key_1", per="user")}, "per"),
        ({"scope": Scope("org_1", user="ada", per="user")}, "per"),
        ({"scope": Scope("org_1", session="s", per="session")}, "per"),
        ({"scope": Scope("org_1", per="people")}, "per"),
        ({"scope": Scope("org_1", "team_1", "key_1", user="ada")}, "user"),
        ({"scope": Scope("org_1", "team_1", "key_1", tag="ci")}, "tag"),
        ({"scope": Scope("org_1", user="a\nb")}, "user"),
    ],
)
def test_a_limit_that_contradicts_itself_is_refused_at_the_part_that_is_wrong(changes, part):
    """One sentence for each, and the first of them is raised."""
    wrong = replace(RIGHT, **changes)
    problems = problems_of(wrong)
    assert part in {where for where, _ in problems}
    with pytest.raises(ValueError, match=r"\w") as raised:
        check_limit(wrong)
    assert str(raised.value) == problems[0][1]
    assert not str(raised.value).endswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strict": True, "shadow": True, "carry_over": True, "contact": "ops@example.com"},
        {"resource": AT_ONCE, "amount": 5, "window": None, "action": Action.QUEUE, "queue_ms": 30_000},
        {"resource": REQUESTS, "amount": 5, "window": Rolling(60_000_000), "action": Action.QUEUE, "queue_ms": 30_000},
        {"resource": TOKENS, "window": Rolling(3_600_000_000, 5), "action": Action.END},
        {"models": OPUS, "action": Action.DOWNGRADE, "downgrade_to": "claude-haiku-4-5"},
        {"scope": Scope("org_1", per="team"), "window": Cycle("quarter", "Europe/Berlin", "02-01")},
        {"scope": Scope("org_1", "team_1", "key_1", per="session")},
    ],
)
def test_what_can_be_meant_is_taken(changes):
    """Nothing is refused that makes sense."""
    assert problems_of(replace(RIGHT, **changes)) == []
    check_limit(replace(RIGHT, **changes))
