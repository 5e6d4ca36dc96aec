"""The plan of a policy file: what it would do is shown field by field, and when it is done nothing is left to do."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tokenweir.errors import PolicyInvalid
from tokenweir.limits.limit import Action, Cycle, Limit, Resource, Rolling, Scope
from tokenweir.limits.policy_file import NamedLimit
from tokenweir.limits.policy_plan import FieldChange, Plan, Unmanaged, fields_of, plan, puts_of

NOW_US = 1_795_348_800_000_000
SPEND = Limit("", "month", Scope("org_1", "team_1"), Resource.SPEND, 500_000_000_000, Cycle("month"), managed_by="policy")
RATE = Limit("", "rate", Scope("org_1"), Resource.REQUESTS, 100, Rolling(60_000_000), managed_by="policy")


def set_by(limit: Limit, managed_by: str = "policy", **changes: object) -> NamedLimit:
    return NamedLimit(replace(limit, limit_id=f"limit_{limit.name}", created_at_us=1, managed_by=managed_by, **changes), "red")


def planned(desired: list[Limit], current: list[NamedLimit]) -> Plan:
    return plan([NamedLimit(one, "red") for one in desired], current, organization="default", policy="policy")


def carried_out(made: Plan, current: list[NamedLimit]) -> list[NamedLimit]:
    numbers = count()
    put, removed = puts_of(made, mint=lambda: f"limit_new_{next(numbers)}", now_us=NOW_US)
    there = {one.limit.limit_id: one for one in current if one.limit.limit_id not in removed}
    there.update({limit.limit_id: NamedLimit(limit, "red") for limit in put})
    return list(there.values())


def test_what_is_not_there_is_created_with_every_field_shown():
    """As the file would say it."""
    made = planned([RATE, SPEND], [])
    assert [one.name for one in made.create] == ["month", "rate"]
    assert made.create[0].fields == {
        "for": "team red", "resource": "spend", "amount": "$500.00", "window": "month", "timezone": "UTC", "action": "block",
    }  # fmt: skip
    (month, rate), removed = puts_of(made, mint=iter(["limit_1", "limit_2"]).__next__, now_us=NOW_US)
    assert (month, rate) == (replace(SPEND, limit_id="limit_1", created_at_us=NOW_US), replace(RATE, limit_id="limit_2", created_at_us=NOW_US))
    assert removed == []


def test_a_change_is_shown_field_by_field_and_keeps_the_id():
    """How much there is and what then happens are no reason to count anew."""
    wanted = replace(SPEND, amount=600_000_000_000, action=Action.QUEUE, queue_ms=30_000, contact="ops")
    made = planned([wanted], [set_by(SPEND)])
    (change,) = made.change
    assert change.fields == (
        FieldChange("amount", "$500.00", "$600.00"),
        FieldChange("action", "block", "queue"),
        FieldChange("queue_for", "", "30s"),
        FieldChange("contact", "", "ops"),
    )
    assert not change.recounted
    assert puts_of(made, mint=str, now_us=NOW_US) == ([replace(wanted, limit_id="limit_month", created_at_us=1)], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": Scope("org_1", "team_1", per="key")},
        {"resource": Resource.TOKENS},
        {"models": ("claude-opus-*",)},
        {"window": Cycle("month", "Europe/Berlin")},
        {"window": Rolling(60_000_000)},
    ],
)
def test_a_limit_that_counts_something_else_gets_a_new_id_in_place_of_the_old_one(changes):
    """Because the counters under the old id hold something else."""
    made = planned([replace(SPEND, **changes)], [set_by(SPEND)])
    assert made.change[0].recounted
    (put,), removed = puts_of(made, mint=lambda: "limit_new", now_us=NOW_US)
    assert (put.limit_id, put.created_at_us, removed) == ("limit_new", NOW_US, ["limit_month"])


def test_the_order_of_models_and_the_names_of_the_scope_are_no_difference():
    """What counts the same is the same."""
    models = ("claude-opus-*", "claude-haiku-*")
    current = [NamedLimit(replace(set_by(SPEND).limit, models=models), "formerly red")]
    assert planned([replace(SPEND, models=models[::-1])], current).unchanged == ("month",)


def test_what_the_file_no_longer_names_is_removed_and_what_it_never_brought_is_left_alone():
    """Set by hand, or by another file."""
    by_hand, of_other = set_by(RATE, "", name="by hand"), set_by(RATE, "other", name="other's")
    made = planned([SPEND], [set_by(SPEND), set_by(RATE), by_hand, of_other])
    assert [one.limit_id for one in made.remove] == ["limit_rate"]
    assert made.remove[0].fields["amount"] == "100"
    assert made.unmanaged == (Unmanaged("by hand", "limit_rate", ""), Unmanaged("other's", "limit_rate", "other"))
    assert not made.is_empty
    assert puts_of(made, mint=str, now_us=NOW_US) == ([], ["limit_rate"])


def test_a_limit_set_by_hand_under_the_same_name_is_adopted():
    """And the plan says so, even if nothing else changes."""
    made = planned([SPEND], [set_by(SPEND, "")])
    assert [(one.name, one.adopted, one.fields) for one in made.change] == [("month", True, ())]
    assert puts_of(made, mint=str, now_us=NOW_US)[0][0].managed_by == "policy"


def test_a_limit_of_another_policy_is_not_taken_from_it():
    """All such names are told."""
    with pytest.raises(PolicyInvalid, match=r'"month" belongs to the policy "other"') as raised:
        planned([SPEND, RATE], [set_by(SPEND, "other"), set_by(RATE, "other")])
    assert len(raised.value.message.splitlines()) == 2


def test_a_key_is_shown_with_its_name_team_and_id():
    """Two keys may have one name."""
    limit = replace(SPEND, scope=Scope("org_1", "team_1", "key_1"))
    assert fields_of(limit, team="red", key="ci")["for"] == "key ci of team red (key_1)"
    assert fields_of(limit)["for"] == "key key_1"
    assert fields_of(replace(limit, scope=Scope("org_1")))["for"] == "organization"


SCOPES = st.sampled_from([Scope("org_1"), Scope("org_1", "team_1"), Scope("org_1", "team_1", "key_1"), Scope("org_1", per="user")])
LIMITS = st.builds(
    Limit,
    limit_id=st.just(""),
    name=st.sampled_from("abcd"),
    scope=SCOPES,
    resource=st.sampled_from([Resource.SPEND, Resource.TOKENS]),
    amount=st.integers(1, 3),
    window=st.sampled_from([Cycle("month"), Cycle("day", "Asia/Kathmandu"), Rolling(60_000_000), Rolling(60_000_000, 1)]),
    models=st.sampled_from([(), ("a", "b"), ("b", "a")]),
    action=st.sampled_from([Action.BLOCK, Action.WARN]),
    shadow=st.booleans(),
    managed_by=st.just("policy"),
)
MANAGED = st.sampled_from(["policy", "", "policy", "other"])


@given(
    st.lists(LIMITS, max_size=4, unique_by=lambda one: one.name),
    st.lists(st.tuples(LIMITS, MANAGED), max_size=4, unique_by=lambda one: one[0].name),
)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do_and_never_touches_what_is_not_its_own(desired, before):
    """Whatever there was, whatever is wanted."""
    current = [set_by(limit, managed_by) for limit, managed_by in before]
    try:
        made = planned(desired, current)
    except PolicyInvalid:
        names = {one.name for one in desired}
        assert any(one.limit.managed_by == "other" and one.limit.name in names for one in current)
        return
    after = carried_out(made, current)
    again = planned(desired, after)
    assert again.is_empty
    assert sorted(again.unchanged) == sorted(one.name for one in desired)
    mine = {one.limit.name for one in after if one.limit.managed_by == "policy"}
    assert mine == {one.name for one in desired}
    others = [one for one in current if one.limit.managed_by != "policy" and one.limit.name not in mine]
    assert all(one in after for one in others)
