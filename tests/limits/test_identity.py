"""Which limit is which: what counts the same, what is the same limit, and names that nobody had to think of."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tokenweir.limits.identity import NAME_LENGTH_MAX, changed_fields, counts_the_same, default_name, natural_key, whose
from tokenweir.limits.limit import Action, Cycle, Limit, Resource, Rolling, Scope

MONTHLY = Limit("limit_1", "a", Scope("org", "team"), Resource.SPEND, 10, Cycle("month"), models=("x", "y"))
RATE = replace(MONTHLY, window=Rolling(60_000_000, 5))


@pytest.mark.parametrize(
    "more",
    [
        {"amount": 11},
        {"name": "b"},
        {"action": Action.WARN},
        {"strict": True},
        {"shadow": True},
        {"carry_over": True},
        {"contact": "c"},
        {"models": ("y", "x")},
        {"limit_id": "limit_2"},
        {"managed_by": "file"},
        {"created_at_us": 5},
    ],
)
def test_how_much_there_is_and_what_happens_then_may_change_under_the_same_counters(more):
    changed = replace(MONTHLY, **more)
    assert counts_the_same(MONTHLY, changed)
    assert natural_key(MONTHLY) == natural_key(changed)


@pytest.mark.parametrize(
    ("more", "same_limit"),
    [
        ({"scope": Scope("org", "other")}, False),
        ({"scope": Scope("org", "team", per="key")}, False),
        ({"resource": Resource.TOKENS}, False),
        ({"models": ("x",)}, False),
        ({"models": ()}, False),
        ({"window": Cycle("week")}, False),
        ({"window": Cycle("days", length_days=30, anchor="2026-01-01")}, False),
        ({"window": Rolling(60_000_000)}, False),
        ({"window": None}, False),
        ({"window": Cycle("month", "Asia/Tokyo")}, True),
        ({"window": Cycle("month", anchor="15")}, True),
    ],
)
def test_other_counters_are_needed_for_other_use(more, same_limit):
    changed = replace(MONTHLY, **more)
    assert not counts_the_same(MONTHLY, changed)
    assert (natural_key(MONTHLY) == natural_key(changed)) is same_limit


def test_a_burst_may_change_and_a_period_may_not():
    assert counts_the_same(RATE, replace(RATE, window=Rolling(60_000_000, 9)))
    assert not counts_the_same(RATE, replace(RATE, window=Rolling(61_000_000, 5)))
    assert natural_key(RATE) == natural_key(replace(RATE, window=Rolling(60_000_000)))


def test_fields_that_differ_are_named_in_their_order_without_ids():
    after = replace(MONTHLY, limit_id="limit_2", created_at_us=9, shadow=True, amount=3)
    assert changed_fields(MONTHLY, after) == ("amount", "shadow")
    assert changed_fields(MONTHLY, MONTHLY) == ()


def test_whose_use_it_is_reads_from_the_outside_in():
    scope = Scope("org", "team", "key", user="ana", session="s", tag="t", per="session")
    assert whose(scope, organization="acme", team="red", key="ci") == "key ci of team red, user ana, session s, tag t, per session"
    assert whose(Scope("org"), organization="acme") == "organization acme"
    assert whose(Scope("org", "team_1"), organization="acme") == "team team_1"


def test_a_name_that_is_taken_gets_a_number_and_never_grows_too_long():
    taken: set[str] = set()
    long = replace(MONTHLY, models=("m" * 90, "n" * 90))
    for number in range(1, 12):
        name = default_name(long, taken, organization="acme", team="red")
        assert name not in taken
        assert len(name) == NAME_LENGTH_MAX
        assert number == 1 or name.endswith(f" ({number})")
        taken.add(name)
    assert default_name(RATE, set(), organization="acme", team="red") == "team red · spend · 60s · x, y"
