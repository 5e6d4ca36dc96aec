"""A stream holds more in few, bounded steps, and is never ahead of what is held by more than it said last."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.limits.extension import EXTENSION_TOKENS_MIN, extends_from, next_extension

TOKENS = st.integers(0, 200_000)


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
