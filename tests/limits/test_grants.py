"""Grants: the room they make, against a simulation that burns one unit after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as dataclass_replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tokenweir.limits.cycle import bounds
from tokenweir.limits.grants import (
    CARRIED_CYCLES_MAX,
    LOOK_AGAIN_US,
    SETTLING_US,
    active,
    balances,
    increases,
    increases_change_at,
    needs_use,
    phases,
    room,
)
from tokenweir.limits.limit import AMOUNT_MAX, Cycle, Grant, Limit, Resource, Rolling, Scope
from tokenweir.periods import DAY_US, QUARTER_US, parse_instant

MONDAY = parse_instant("2026-11-16")
HOUR_US = 4 * QUARTER_US


def limit(amount: int = 100, window: Cycle | Rolling | None = None, *, carry_over: bool = False, created_at_us: int = MONDAY) -> Limit:
    return Limit("lim", "all", Scope("org"), Resource.TOKENS, amount, window or Cycle("day"), carry_over=carry_over, created_at_us=created_at_us)


def grant(name: str, kind: str, amount: int, since_us: int, until_us: int | None = None, **more) -> Grant:
    return Grant(name, "lim", kind, amount, since_us, until_us, created_at_us=more.pop("created_at_us", since_us), **more)


def used_in(uses: list[tuple[int, int]], spans) -> list[int]:
    return [sum(units for at_us, units in uses if since_us <= at_us < until_us) for since_us, until_us in spans]


def asked(made: Limit, grants: list[Grant], uses: list[tuple[int, int]], now_us: int):
    return room(made, grants, used_in(uses, phases(made, grants, now_us)), now_us)


@dataclass
class Simulation:
    """One unit after the other, in the order of time. Knows nothing of phases."""

    made: Limit
    grants: list[Grant]
    left: dict[str, int] = field(default_factory=dict)
    used: int = 0
    of_amount: int = 0
    owed: int = 0
    began: set[str] = field(default_factory=set)
    cycle_ends_us: int = 0
    at_us: int = -1

    def move_to(self, at_us: int) -> None:
        """Let happen what happens between uses: grants end, cycles turn, grants begin."""
        moments = {at_us, *(m for g in self.grants for m in (g.effective_at_us, g.expires_at_us, g.voided_at_us) if m is not None and m <= at_us)}
        start_us = self.cycle_ends_us or bounds(self.made.window, self.made.created_at_us)[0]
        while start_us <= at_us:
            moments.add(start_us)
            start_us = bounds(self.made.window, start_us)[1]
        for moment in sorted(moments):
            if moment > self.at_us:
                self._moment(moment)

    def _moment(self, at_us: int) -> None:
        for gone in [g for g in self.grants if g.grant_id in self.left and not active(g, at_us)]:
            del self.left[gone.grant_id]
        if at_us >= self.cycle_ends_us:
            if self.cycle_ends_us:
                for g in self.grants:
                    if g.grant_id in self.left:
                        kept = max(self.left[g.grant_id], g.rollover_min)
                        self.left[g.grant_id] = kept if g.rollover_max is None else min(kept, g.rollover_max)
            self.cycle_ends_us = bounds(self.made.window, at_us)[1]
            self.used = self.of_amount = 0
            self.owed = self.owed if self.made.carry_over else 0
        for g in self.grants:
            if g.kind == "credit" and active(g, at_us) and g.grant_id not in self.began:
                self.began.add(g.grant_id)
                self.left[g.grant_id] = g.amount
        self.at_us = at_us
        while self.owed and self._burn_one():
            self.owed -= 1

    def _burn_one(self) -> bool:
        amount = self.made.amount + sum(g.amount for g in self.grants if g.kind == "increase" and active(g, self.at_us))
        if self.of_amount < amount:
            self.of_amount += 1
            return True
        full = [g for g in self.grants if self.left.get(g.grant_id)]
        if not full:
            return False
        first = min(full, key=lambda g: (g.priority, g.expires_at_us is None, g.expires_at_us or 0, g.created_at_us, g.grant_id))
        self.left[first.grant_id] -= 1
        return True

    def use(self, units: int) -> None:
        for _ in range(units):
            self.used += 1
            if not self._burn_one():
                self.owed += 1

    def room(self) -> int:
        """How much more could be used and be covered, on top of what was used; less what is owed."""
        trial = dataclass_replace(self, left=dict(self.left), owed=0)
        more = 0
        while trial._burn_one():
            more += 1
        return max(0, self.used + more - self.owed)


def simulate(made: Limit, grants: list[Grant], uses: list[tuple[int, int]], now_us: int) -> Simulation:
    simulation = Simulation(made, grants)
    for at_us, units in sorted(uses):
        if at_us < now_us:
            simulation.move_to(at_us)
            simulation.use(units)
    simulation.move_to(now_us)
    return simulation


quarters = st.integers(0, 6 * 96).map(lambda n: MONDAY + n * QUARTER_US)


@st.composite
def some_grants(draw) -> list[Grant]:
    made = []
    for n in range(draw(st.integers(0, 5))):
        since_us = draw(quarters)
        lasts_us = draw(st.none() | st.integers(1, 3 * 96).map(lambda quarter: quarter * QUARTER_US))
        made.append(
            grant(
                f"g{n}",
                draw(st.sampled_from(["credit", "credit", "increase"])),
                draw(st.integers(0, 25)),
                since_us,
                None if lasts_us is None else since_us + lasts_us,
                priority=draw(st.sampled_from([1, 100])),
                rollover_min=draw(st.sampled_from([0, 0, 5])),
                rollover_max=draw(st.sampled_from([None, None, 0, 3, 10])),
                created_at_us=draw(st.integers(0, 3)),
                voided_at_us=draw(st.none() | st.none() | quarters),
            )
        )
    return made


cycles = st.sampled_from([Cycle("day"), Cycle("day", "Asia/Kathmandu"), Cycle("days", "UTC", "2026-11-17", 2)])
some_uses = st.lists(st.tuples(st.integers(MONDAY, MONDAY + 6 * DAY_US), st.integers(1, 12)), max_size=30)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 15), cycles, st.booleans(), some_grants(), some_uses, st.integers(MONDAY, MONDAY + 6 * DAY_US - 1))
def test_the_room_is_that_of_burning_one_unit_after_the_other(amount, window, carry_over, grants, uses, now_us):
    """Whatever was granted, voided, used and carried over: the fold over phases and the simulation agree to the unit."""
    made = limit(amount, window, carry_over=carry_over)
    uses = [(at_us, units) for at_us, units in uses if at_us < now_us]
    found, told = asked(made, grants, uses, now_us), simulate(made, grants, uses, now_us)
    if carry_over or any(line.kind == "credit" for line in found.lines):
        assert found.room == told.room()
    else:  # no credit matters: what an increase covered that has ended is of no use to anybody
        assert max(found.room, told.used - told.owed) == max(amount + increases(grants, now_us), told.used - told.owed) == told.room()
    assert found.room == max(0, sum(line.units for line in found.lines))
    assert now_us < found.valid_until_us <= bounds(window, now_us)[1]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 15), cycles, st.booleans(), some_grants(), some_uses, st.integers(MONDAY, MONDAY + 6 * DAY_US - 1))
def test_balances_are_those_of_burning_one_unit_after_the_other(amount, window, carry_over, grants, uses, now_us):
    """Each credit's balance agrees with the simulation, is never negative, and what burned is what was used beyond the amount."""
    made = limit(amount, window, carry_over=carry_over)
    uses = [(at_us, units) for at_us, units in uses if at_us < now_us]
    spans = phases(made, grants, now_us)
    since_us = spans[-1][1] if spans else bounds(window, now_us)[0]
    found = balances(made, grants, used_in(uses, spans), used_in(uses, [(since_us, now_us)])[0], now_us)
    told = simulate(made, grants, uses, now_us)
    assert {balance.grant.grant_id: balance.left for balance in found} == told.left
    assert all(balance.left >= 0 for balance in found)
    order = [(b.grant.priority, b.grant.expires_at_us or 2**62, b.grant.created_at_us, b.grant.grant_id) for b in found]
    assert order == sorted(order)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 15), some_grants(), some_uses, st.integers(MONDAY, MONDAY + 6 * DAY_US - 1), st.integers(1, 50))
def test_use_of_the_current_phase_changes_nothing(amount, grants, uses, now_us, more):
    """The room is what may be used, so using some of it does not move it: counters alone decide within a phase."""
    made = limit(amount)
    assert asked(made, grants, uses, now_us) == asked(made, grants, [*uses, (now_us, more)], now_us)


@settings(max_examples=200, deadline=None)
@given(some_grants(), st.integers(MONDAY, MONDAY + 6 * DAY_US - 1))
def test_phases_are_whole_quarters_without_gaps_and_end_before_now(grants, now_us):
    """What must be known is always something that the rollups can tell."""
    spans = phases(limit(), grants, now_us)
    assert all(at_us % QUARTER_US == 0 for span in spans for at_us in span)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert all(since_us < until_us <= now_us for since_us, until_us in spans)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["credit", "increase"]), st.integers(0, 25), st.integers(MONDAY, MONDAY + DAY_US), st.none() | st.integers(1, DAY_US), st.none() | st.integers(MONDAY, MONDAY + DAY_US)), max_size=4), st.integers(MONDAY, MONDAY + DAY_US))  # fmt: skip
def test_increases_hold_until_they_say_they_change(parts, at_us):
    """Between now and the stated change nothing changes, and at it there may be another sum: exact to the microsecond."""
    grants = [
        replace(grant(f"g{n}", kind, amount, since, None if lasts is None else since + lasts), voided_at_us=void)
        for n, (kind, amount, since, lasts, void) in enumerate(parts)
    ]
    change_us = increases_change_at(grants, at_us)
    moments = [m for g in grants for m in (g.effective_at_us, g.expires_at_us, g.voided_at_us) if m is not None]
    for moment in (m for m in moments if m > at_us and (change_us is None or m < change_us)):
        assert increases(grants, moment) == increases(grants, at_us)
    assert change_us is None or change_us > at_us


def test_credits_burn_by_priority_then_expiry_then_age():
    """Of four credits the one with the smaller number goes first, then the one that ends earlier, then the older."""
    made, now_us = limit(10), MONDAY + DAY_US - 1
    day = {"since_us": MONDAY}
    given_now = [
        grant("young", "credit", 10, **day, created_at_us=2),
        grant("old", "credit", 10, **day, created_at_us=1),
        grant("ends", "credit", 10, **day, until_us=MONDAY + 3 * DAY_US, created_at_us=3),
        grant("first", "credit", 10, **day, priority=1, created_at_us=4),
    ]
    left = [
        {b.grant.grant_id: b.left for b in balances(made, given_now, used_in([], phases(made, given_now, now_us)), used, now_us)}
        for used in (10, 15, 25, 35, 45, 60)
    ]
    full = {"first": 10, "ends": 10, "old": 10, "young": 10}
    assert left == [full, full | {"first": 5}, full | {"first": 0, "ends": 5}, full | {"first": 0, "ends": 0, "old": 5},
                    full | {"first": 0, "ends": 0, "old": 0, "young": 5}, dict.fromkeys(full, 0)]  # fmt: skip
    assert list(left[0]) == ["first", "ends", "old", "young"]


def test_a_top_up_lasts_one_cycle_and_a_recurring_credit_is_refilled():
    """`rollover_max` 0 leaves nothing for the next cycle, `rollover_min` brings back what was burned."""
    made = limit(10)
    uses = [(MONDAY + HOUR_US, 17)]
    top_up = [grant("g", "credit", 20, MONDAY, rollover_max=0)]
    assert asked(made, top_up, uses, MONDAY + 2 * HOUR_US).room == 30
    assert asked(made, top_up, uses, MONDAY + DAY_US).room == 10
    recurring = [grant("g", "credit", 20, MONDAY, rollover_min=20, rollover_max=20)]
    assert asked(made, recurring, uses, MONDAY + DAY_US).room == 30
    kept = [grant("g", "credit", 20, MONDAY)]
    assert asked(made, kept, uses, MONDAY + DAY_US).room == 10 + 13
    assert asked(made, [replace(kept[0], rollover_max=5)], uses, MONDAY + DAY_US).room == 10 + 5


def test_what_a_credit_covered_before_it_ended_stays_covered():
    """An expired or voided credit gives nothing more; what it had burned is not charged to another one."""
    made, uses = limit(10), [(MONDAY + HOUR_US, 17)]
    ended = grant("a", "credit", 20, MONDAY, MONDAY + 2 * HOUR_US)
    other = grant("b", "credit", 5, MONDAY, priority=200)
    for gone in (ended, replace(ended, expires_at_us=None, voided_at_us=MONDAY + 2 * HOUR_US)):
        found = asked(made, [gone, other], uses, MONDAY + 3 * HOUR_US)
        assert found.room == 17 + 5
        assert {line.grant_id: line.units for line in found.lines} == {"": 10, "a": 7, "b": 5}


def test_overshoot_is_taken_from_the_next_cycle_only_if_asked_for():
    """What was used beyond the amount of a cycle makes the next one smaller, down to nothing, and the one after it too."""
    uses = [(MONDAY + HOUR_US, 25)]
    rooms = [asked(limit(10, carry_over=True), [], uses, MONDAY + day * DAY_US).room for day in range(4)]
    assert rooms == [10, 0, 5, 10]
    assert asked(limit(10, carry_over=True), [], uses, MONDAY + DAY_US).lines[-1].units == -15
    assert asked(limit(10), [], uses, MONDAY + DAY_US).room == 10


def test_use_before_the_limit_was_set_is_not_carried_over():
    """A limit owes nothing for cycles in which it was not there."""
    made = limit(10, carry_over=True, created_at_us=MONDAY + DAY_US + HOUR_US)
    assert phases(made, [], MONDAY + DAY_US + 2 * HOUR_US) == ()
    assert phases(made, [], MONDAY + 2 * DAY_US) == ((MONDAY + DAY_US, MONDAY + 2 * DAY_US),)
    assert len(phases(limit(10, carry_over=True, created_at_us=0), [], MONDAY)) == CARRIED_CYCLES_MAX


def test_a_change_counts_at_its_instant_and_in_the_books_from_its_quarter_on():
    """A credit of 12:07 is there at 12:07 and not before; one that is voided at 12:07 gives nothing from then on."""
    made, noon = limit(10), MONDAY + 12 * HOUR_US
    minute = 60_000_000
    given = grant("g", "credit", 20, noon + 7 * minute)
    assert [asked(made, [given], [], noon + m * minute).room for m in (6, 7)] == [10, 30]
    assert asked(made, [given], [], noon).valid_until_us == noon + 7 * minute
    assert phases(made, [given], noon + 8 * minute) == ((MONDAY, noon),)
    voided = grant("g", "credit", 20, MONDAY, voided_at_us=noon + 7 * minute)
    assert [asked(made, [voided], [], noon + m * minute).room for m in (6, 7)] == [30, 10]


def test_the_room_is_looked_at_again_while_attempts_of_the_phase_before_may_still_settle():
    """Just after a cut the answer is short-lived; an hour later it holds until something changes."""
    made, given = limit(10), [grant("g", "credit", 20, MONDAY)]
    next_day = MONDAY + DAY_US
    assert asked(made, given, [], next_day + 1).valid_until_us == next_day + 1 + LOOK_AGAIN_US
    assert asked(made, given, [], next_day + SETTLING_US).valid_until_us == next_day + DAY_US


def test_only_credits_and_carrying_over_need_to_know_past_use():
    """A limit without them costs no question, and a window that is not a calendar's never does."""
    credit, increase = grant("c", "credit", 5, MONDAY), grant("i", "increase", 5, MONDAY)
    assert not needs_use(limit(), [increase])
    assert needs_use(limit(), [increase, credit])
    assert needs_use(limit(carry_over=True), [])
    assert not needs_use(limit(window=Rolling(60_000_000)), [credit])
    assert phases(limit(), [increase], MONDAY + 5 * DAY_US + 7) == ()
    long_gone = replace(credit, expires_at_us=MONDAY + HOUR_US)
    assert phases(limit(), [long_gone], MONDAY + 5 * DAY_US) == ()
    with pytest.raises(ValueError, match="no calendar window"):
        room(limit(window=Rolling(60_000_000)), [], [], MONDAY)
    with pytest.raises(ValueError, match="phases need their use"):
        room(limit(), [credit], [1, 2], MONDAY + 5 * DAY_US)


def test_the_room_is_never_more_than_a_store_can_count():
    """Two huge grants do not make a number that a shared store would round."""
    huge = [grant(n, "credit", AMOUNT_MAX, MONDAY) for n in "ab"]
    assert asked(limit(AMOUNT_MAX), huge, [], MONDAY).room == AMOUNT_MAX
