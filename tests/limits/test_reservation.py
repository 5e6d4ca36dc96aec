"""A hold ends once; nothing of it is given back before the booking is known; a stream holds more in bounded steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.limits.bucket import Bucket, Kind, Standing
from tokenweir.limits.buckets import Buckets
from tokenweir.limits.reservation import (
    EXTENSION_TOKENS_MIN,
    TRANSITIONS,
    Event,
    State,
    after,
    charge_for,
    extends_from,
    next_extension,
)
from tokenweir.usage import Certainty

TOKENS = st.integers(0, 200_000)
UNITS = st.integers(0, 2**52)


def test_a_hold_ends_in_one_of_two_ways():
    assert (after(State.OPEN, Event.SETTLE), after(State.OPEN, Event.RELEASE)) == (State.SETTLED, State.RELEASED)
    assert after(State.OPEN, Event.EXTEND) is State.OPEN


@given(st.lists(st.sampled_from(Event), max_size=8))
def test_what_ended_stays_as_it_ended(events):
    state, ended = State.OPEN, None
    for event in events:
        state = after(state, event)
        if ended is None and event is not Event.EXTEND:
            ended = {Event.SETTLE: State.SETTLED, Event.RELEASE: State.RELEASED}[event]
        assert state is (ended or State.OPEN)


def test_every_state_says_what_may_happen_to_it():
    assert set(TRANSITIONS) == set(State)
    assert {state for state in State if not TRANSITIONS[state]} == {State.SETTLED, State.RELEASED}


@given(UNITS, UNITS)
def test_while_nothing_is_booked_nothing_is_given_back(held, ceiling):
    charged = charge_for(None, held, 0, ceiling)
    assert charged >= held
    assert charged >= ceiling


@given(st.sampled_from(Certainty), UNITS, UNITS, UNITS)
def test_a_settlement_charges_what_the_ledger_books_and_nothing_else(certainty, held, booked, ceiling):
    assert charge_for(certainty, held, booked, ceiling) == booked


STEPS = st.lists(st.tuples(st.sampled_from(Event), st.sampled_from(Certainty), st.integers(0, 50)), max_size=8)


@given(STEPS)
def test_the_counting_store_walks_holds_as_the_table_says(steps):
    """Whatever happens in whatever order: the store holds while the table says open, and then has used what the rule charges, once."""
    bucket, buckets = Bucket("budget||0", Kind.COUNTER, room=10**6, fresh=True), Buckets()
    buckets.reserve("req", [bucket], [40], now_us=0)
    state, held, used = State.OPEN, 40, 0
    for event, certainty, units in steps:
        if event is Event.EXTEND:
            buckets.extend("req", [units], now_us=0)
            held += units if state is State.OPEN else 0
        elif event is Event.RELEASE:
            buckets.settle("req", (), now_us=0)
        else:
            buckets.settle("req", [charge_for(certainty, held, units, 10**6)], now_us=0)
            used += units if state is State.OPEN else 0
        state = after(state, event)
        assert bool(buckets.holds()) == (state is State.OPEN)
        assert buckets.standings([bucket], now_us=0) == [Standing(used, held if state is State.OPEN else 0)]


# Extending.


@given(TOKENS, TOKENS, TOKENS)
def test_a_step_is_asked_for_exactly_from_where_it_is_said(held, seen, ceiling):
    start = extends_from(held, ceiling)
    assert (next_extension(held, seen, ceiling) is not None) == (start is not None and seen >= start)


@given(TOKENS, TOKENS, TOKENS)
def test_a_step_leaves_room_ahead_and_stays_below_the_ceiling(held, seen, ceiling):
    step = next_extension(held, seen, ceiling)
    if step is None:
        return
    assert 0 < step <= ceiling - held
    if held + step < ceiling:
        assert step >= max(EXTENSION_TOKENS_MIN, held // 2)
        assert next_extension(held + step, seen, ceiling) is None, "one step is enough for what was seen"


@given(TOKENS, st.integers(1, 200_000), st.lists(st.integers(1, 900), min_size=1, max_size=200))
def test_a_stream_is_never_ahead_of_what_is_held_by_more_than_its_last_chunk(held, ceiling, chunks):
    """The bound on overshoot of a limit that ends streams: whoever asks after each chunk has asked for all that was seen up to the ceiling."""
    held, seen, steps = min(held, ceiling), 0, 0
    for chunk in chunks:
        seen = min(seen + chunk, ceiling)
        assert seen <= held + chunk
        step = next_extension(held, seen, ceiling)
        held, steps = held + (step or 0), steps + (step is not None)
        assert held >= seen
    assert held <= ceiling


def test_a_long_answer_takes_few_steps():
    """128,000 tokens of output, held from 500 on: the store is asked some 20 times, not once for every chunk."""
    held, steps = 500, 0
    for seen in range(0, 128_001, 10):
        step = next_extension(held, seen, 128_000)
        held, steps = held + (step or 0), steps + (step is not None)
    assert (held, steps) == (128_000, steps)
    assert 10 <= steps <= 20


@pytest.mark.parametrize(
    ("held", "seen", "ceiling", "step"),
    [
        (1_000, 749, 9_000, None),
        (1_000, 750, 9_000, 500),
        (100, 75, 9_000, 256),
        (1_000, 750, 1_200, 200),
        (1_000, 5_000, 1_000, None),
        (0, 0, 10, 10),
    ],
)
def test_steps_as_people_would_work_them_out(held, seen, ceiling, step):
    assert next_extension(held, seen, ceiling) == step
