"""The simulator's clock can be moved forward, and everything that tells the time moves with it."""

from __future__ import annotations

from datetime import datetime

import pytest

from simulation import ask, post_to, running_simulator
from tokenweir.simulator.refusals import Refusal
from tokenweir.simulator.scenario import Scenario
from tokenweir.simulator.truth import Journal
from tokenweir.simulator.world import World, check_refusal


class HandClock:
    def now_us(self):
        return 1_000_000

    def monotonic_ns(self):
        return 5_000_000_000


def test_both_clocks_move_and_those_who_wait_are_told(card):
    """The wall clock and the one for durations stay together."""
    world = World(scenario=Scenario(), seed=1, card=card, clock=HandClock(), journal=Journal(None))
    told = []
    world.on_advance(lambda: told.append(world.now_us()))
    world.advance(250_000)
    world.advance(250_000)
    assert (world.now_us(), world.now_s(), told) == (1_500_000, 5.5, [1_250_000, 1_500_000])


def test_a_cached_prefix_expires_when_the_clock_is_moved(tmp_path):
    """And limits refill, and the journal tells the new time."""
    cached = [{"type": "text", "text": "tide " * 900, "cache_control": {"type": "ephemeral"}}]
    with running_simulator(tmp_path, scenario={"limits": {"default": {"requests": 2}}}) as simulator:
        read = []
        for minutes in (0, 4, 6):
            simulator.advance(minutes * 60_000)
            read.append(post_to(simulator, ask(system=cached)).json()["usage"]["cache_read_input_tokens"] > 0)
        times = [datetime.fromisoformat(line["received_at"]) for line in simulator.journal()]
    assert read == [False, True, False]
    assert [round((later - times[0]).total_seconds() / 60) for later in times] == [0, 4, 10]


def test_the_name_of_an_error_is_checked():
    """With 400 for one that there is not."""
    check_refusal("overloaded_error")
    with pytest.raises(Refusal, match="no refusal is called"):
        check_refusal("sleepy")
