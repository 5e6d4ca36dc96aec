"""The property machine of limits: the engine and its calendar against the oracle, decision by decision, over a million of them.

No admission too many, no refusal too many, no wait too long or too short; see `limit_trial.py` for what is compared, `limit_oracle.py` for with what.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from limit_trial import MOMENTS, SEATS, ZONES, Rule, Trial, run_history
from tokenweir.limits.bucket import Kind
from tokenweir.periods import DAY_US, SECOND_US


@pytest.mark.parametrize("part", range(8))
def test_a_million_decisions(part):
    """Over thousands of random histories the engine decides, counts and tells waits exactly as the oracle does."""
    decisions = admitted = 0
    for number in range(250):
        trial = run_history(part * 1_000_000 + number, 500)
        decisions += trial.decisions
        admitted += trial.admitted
    assert decisions >= 125_000
    assert decisions // 5 < admitted < decisions * 4 // 5, "a history that always or never admits proves little"


# The same with shrinking


FLAGS = {"taken": st.booleans(), "enforced": st.booleans(), "ends_streams": st.booleans(), "fresh": st.booleans()}
ROOMS = st.integers(0, 12)
LEVELS = st.builds(
    Rule, st.sampled_from(("rolling:1s", "rolling:60s", "rolling:24h")), st.just(Kind.LEVEL), ROOMS, amount=st.sampled_from((1, 3, 60)), **FLAGS
)
GAUGES = st.builds(Rule, st.just(""), st.just(Kind.GAUGE), ROOMS, enforced=st.booleans(), ends_streams=st.booleans())
COUNTERS = st.one_of(
    st.builds(Rule, st.just(text), st.just(Kind.COUNTER), ROOMS, timezone=st.sampled_from(ZONES), anchor=st.sampled_from(anchors), **FLAGS)
    for text, anchors in (
        ("day", ("",)),
        ("week", ("", "7")),
        ("month", ("", "29", "31")),
        ("quarter", ("", "11-30")),
        ("every:14d", ("2026-11-16",)),
    )
)
CHOICE = st.integers(0, 1_000_000)


class LimitMachine(RuleBasedStateMachine):
    """Any order of operations; hypothesis finds the shortest that disagrees."""

    @initialize(
        rules=st.lists(st.one_of(LEVELS, COUNTERS, GAUGES), min_size=1, max_size=4),
        start_us=st.sampled_from(MOMENTS),
        aside_us=st.integers(0, DAY_US),
    )
    def begin(self, rules: list[Rule], start_us: int, aside_us: int) -> None:
        self.trial = Trial(rules, start_us + aside_us, strict=False)

    @rule(by_us=st.one_of(st.integers(0, 1000), st.integers(0, 100 * SECOND_US), st.integers(0, 40 * DAY_US), st.integers(-899_999, 0)))
    def advance(self, by_us: int) -> None:
        self.trial.advance(by_us)

    @rule(which=CHOICE, by_us=st.integers(-1, 1))
    def to_edge(self, which: int, by_us: int) -> None:
        self.trial.to_edge(which % len(self.trial.rules), by_us)

    @rule(asked=st.lists(st.tuples(st.sampled_from(SEATS), st.integers(0, 13)), min_size=4, max_size=4), mask=st.integers(1, 15))
    def reserve(self, asked: list[tuple[str, int]], mask: int) -> None:
        indices = [index for index in range(len(self.trial.rules)) if mask >> index & 1]
        self.trial.reserve([(index, asked[index][0]) for index in indices], [asked[index][1] for index in indices])

    @precondition(lambda self: self.trial.open)
    @rule(which=CHOICE, more=st.lists(st.integers(0, 5), min_size=4, max_size=4))
    def extend(self, which: int, more: list[int]) -> None:
        hold_id = list(self.trial.open)[which % len(self.trial.open)]
        self.trial.extend(hold_id, more[: len(self.trial.open[hold_id].buckets)])

    @precondition(lambda self: self.trial.open)
    @rule(which=CHOICE, used=st.lists(st.integers(-1, 14), min_size=4, max_size=4))
    def settle(self, which: int, used: list[int]) -> None:
        hold_id = list(self.trial.open)[which % len(self.trial.open)]
        self.trial.settle(hold_id, used[: len(self.trial.open[hold_id].buckets)])

    @rule(which=CHOICE, seat=st.sampled_from(SEATS), units=st.integers(-5, 5))
    def charge(self, which: int, seat: str, units: int) -> None:
        self.trial.charge((which % len(self.trial.rules), seat), units)

    @rule(which=CHOICE, room=ROOMS, amount=st.sampled_from((1, 2, 60)))
    def change(self, which: int, room: int, amount: int) -> None:
        self.trial.change(which % len(self.trial.rules), room, amount)

    def teardown(self) -> None:
        if hasattr(self, "trial"):
            self.trial.finish()


LimitMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
TestLimitMachine = LimitMachine.TestCase
