"""The arithmetic of a level: exact, never below zero, and the bound on what can be used in a window."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from hypothesis import assume, given
from hypothesis import strategies as st

from tokenweir.limits.bucket import NEVER
from tokenweir.limits.gcra import leak, rescale, wait_us, whole_units

MINUTE_US = 60_000_000
REFILLS = st.integers(1, 4_000_000_000_000_000)
PERIODS = st.integers(1_000_000, 366 * 86_400_000_000)
LEVELS = st.integers(0, 10**30)
TIMES = st.integers(0, 4_000_000_000_000_000)


def test_a_level_leaks_its_refill_in_its_period():
    """Sixty a minute leak one a second, and after a minute nothing is left of sixty."""
    full = 60 * MINUTE_US
    assert leak(full, 0, refill=60, period_us=MINUTE_US, now_us=1_000_000) == (59 * MINUTE_US, 1_000_000)
    assert leak(full, 0, refill=60, period_us=MINUTE_US, now_us=MINUTE_US) == (0, MINUTE_US)
    assert leak(full, 0, refill=60, period_us=MINUTE_US, now_us=10 * MINUTE_US) == (0, 10 * MINUTE_US)


@given(LEVELS, REFILLS, PERIODS, st.lists(st.integers(0, 10**12), max_size=20))
def test_leaking_often_is_leaking_once(level_num, refill, period_us, steps_us):
    """However often a level is looked at, the same is left in the end: nothing is rounded on the way."""
    often, at_us = level_num, 0
    for step_us in steps_us:
        often, at_us = leak(often, at_us, refill=refill, period_us=period_us, now_us=at_us + step_us)
    assert (often, at_us) == leak(level_num, 0, refill=refill, period_us=period_us, now_us=sum(steps_us))


@given(LEVELS, REFILLS, PERIODS, TIMES, TIMES)
def test_the_level_is_the_exact_fraction(level_num, refill, period_us, at_us, passed_us):
    """What is left is the level less the rate times the time, as a fraction, and never less than nothing."""
    left, _ = leak(level_num, at_us, refill=refill, period_us=period_us, now_us=at_us + passed_us)
    assert Fraction(left, period_us) == max(Fraction(0), Fraction(level_num, period_us) - Fraction(refill, period_us) * passed_us)


def test_a_clock_that_steps_back_leaks_nothing_and_no_instant_twice():
    """After a step back of ten seconds nothing leaks until those ten seconds have passed again."""
    level, at_us = leak(60 * MINUTE_US, 0, refill=60, period_us=MINUTE_US, now_us=20_000_000)
    assert (level, at_us) == (40 * MINUTE_US, 20_000_000)
    assert leak(level, at_us, refill=60, period_us=MINUTE_US, now_us=10_000_000) == (level, at_us)
    assert leak(level, at_us, refill=60, period_us=MINUTE_US, now_us=21_000_000) == (39 * MINUTE_US, 21_000_000)


def test_a_clock_that_was_far_ahead_does_not_stop_the_leak():
    """A clock that is set back by a year leaks from the corrected time on; the level is kept, not emptied."""
    year_us = 366 * 24 * 60 * MINUTE_US
    level, at_us = leak(60 * MINUTE_US, year_us, refill=60, period_us=MINUTE_US, now_us=0)
    assert (level, at_us) == (60 * MINUTE_US, 0)
    assert leak(level, at_us, refill=60, period_us=MINUTE_US, now_us=1_000_000) == (59 * MINUTE_US, 1_000_000)


def test_an_empty_level_has_no_past():
    """Where nothing can leak twice, a step back costs nobody anything."""
    assert leak(0, 20_000_000, refill=60, period_us=MINUTE_US, now_us=10_000_000) == (0, 10_000_000)


def wait(level_num: int, **asked: int) -> int:
    return wait_us(level_num, **({"at_us": 0, "now_us": 0, "held": 0, "refill": 60, "period_us": MINUTE_US} | asked))  # type: ignore[arg-type]


def test_waits():
    """A wait is until there is room, and not a microsecond longer."""
    full = 60 * MINUTE_US
    assert wait(full, units=1, room=60) == 1_000_000
    assert wait(full, units=60, room=60) == MINUTE_US
    assert wait(full, units=1, room=61) == 0
    assert wait(full + 1, units=1, room=61) == 1, "a fraction of a microsecond is waited for as a whole one"


def test_a_wait_that_never_ends():
    """More than the room is never to be had, and where nothing leaks nothing is to be waited for."""
    assert wait(0, units=61, room=60) == NEVER
    assert wait(MINUTE_US, units=60, room=60, refill=0) == NEVER
    assert wait(0, units=60, room=60, refill=0) == 0


def test_time_alone_does_not_decide_while_others_hold():
    """What requests under way hold does not leak; until they settle there is no telling."""
    assert wait(0, units=10, held=55, room=60) == 0
    assert wait(10 * MINUTE_US, units=5, held=55, room=60) == 10_000_000


def test_a_wait_counts_the_time_a_clock_has_to_catch_up():
    """After a step back the level begins to leak only when the clock is where it was."""
    assert wait(60 * MINUTE_US, units=1, room=60, at_us=5_000_000) == 6_000_000


@given(LEVELS, REFILLS, PERIODS, st.integers(0, 10**16), st.integers(0, 10**16), st.integers(0, 10**16))
def test_a_wait_ends_when_there_is_room_and_not_before(level_num, refill, period_us, held, units, room):
    """After the wait the request fits, and one microsecond earlier it does not."""
    assume(held + units <= room)
    waited_us = wait(level_num, units=units, held=held, room=room, refill=refill, period_us=period_us)
    level = Fraction(level_num, period_us)
    assert waited_us == max(0, ceil((level + held + units - room) / Fraction(refill, period_us)))
    after, _ = leak(level_num, 0, refill=refill, period_us=period_us, now_us=waited_us)
    assert Fraction(after, period_us) + held + units <= room
    if waited_us:
        before, _ = leak(level_num, 0, refill=refill, period_us=period_us, now_us=waited_us - 1)
        assert Fraction(before, period_us) + held + units > room


@given(LEVELS, PERIODS, PERIODS)
def test_levels_are_told_and_converted_upward(level_num, period_us, new_period_us):
    """A level in whole units, or for another period, is never less than it was, and less than one more."""
    assert whole_units(level_num, period_us) == ceil(Fraction(level_num, period_us))
    converted = rescale(level_num, period_us=period_us, new_period_us=new_period_us)
    assert 0 <= Fraction(converted, new_period_us) - Fraction(level_num, period_us) < Fraction(1, new_period_us)


@given(
    room=st.integers(1, 100),
    refill=st.integers(1, 1000),
    asked=st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 40)), min_size=1, max_size=60),
)
def test_the_bound_on_any_window(room, refill, asked):
    """Whatever is asked when, no window holds more than its share of the refill and the room."""
    period_us = 1_000_000
    level = at_us = now_us = 0
    admitted: list[tuple[int, int]] = []
    for passed_us, units in asked:
        now_us += passed_us
        level, at_us = leak(level, at_us, refill=refill, period_us=period_us, now_us=now_us)
        if level + units * period_us <= room * period_us:
            level += units * period_us
            admitted.append((now_us, units))
    for first, (start_us, _) in enumerate(admitted):
        total = 0
        for moment_us, units in admitted[first:]:
            total += units
            assert total <= Fraction(refill, period_us) * (moment_us - start_us) + room
