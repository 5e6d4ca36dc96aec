"""The arithmetic of a rolling limit: a level that rises with use and leaks evenly. Exact, in whole numbers.

This is the generic cell rate algorithm (GCRA), told as a leaking level. In its own words: a limit of `refill` units per `period_us` has an emission
interval of `period_us / refill` microseconds a unit, and keeps one number, the theoretical arrival time (TAT): when everything admitted so far would
have gone out if it had gone out at exactly that rate. A request of `units` moves the TAT on by `units` emission intervals, and conforms if the TAT
is then no further ahead than the delay variation tolerance. The level is the same number seen from the other side: `level = (TAT - now) / interval`,
what has not leaked yet; and the tolerance in units is the `room`. The level is kept because it stays true when the amount of a limit is changed (a
TAT would have to be converted), and because what is held but not yet used stands beside it in the same unit.

The state is two integers: `level_num` and `at_us`, and the level is `level_num / period_us` units. In one microsecond `refill / period_us` units leak,
which is exactly `refill` of `level_num`: nothing is ever divided, so nothing drifts, however often the state is touched.

The rule it protects. Whoever takes only while `level + held + units <= room`, and turns what was held into at most as much use, uses within any
window of W microseconds at most `refill * W / period_us + room` units: the level at the end of the window is what it was at its start, plus what was
used, minus what leaked, which is at most `refill * W / period_us`; and it is between 0 and `room` at both ends. Change with it: `buckets.py`, and
`storage/limit_valkey.py`, which does the same in a script.
"""

from __future__ import annotations

from tokenweir.limits.bucket import NEVER
from tokenweir.periods import Micros


def leak(level_num: int, at_us: Micros, *, refill: int, period_us: int, now_us: Micros) -> tuple[int, Micros]:
    """The level and its time as of `now_us`.

    A clock that was set back leaks nothing, and nothing again until it has caught up: no instant leaks twice. One that is more than a period behind
    was wrong before; the level stays as it is and leaks from now on, or it would stand still for as long as the clock was ahead. An empty level has
    no past.
    """
    passed_us = now_us - at_us
    if passed_us >= 0:
        left = level_num - refill * passed_us
        return (left if left > 0 else 0), now_us  # noqa: FURB136 -- max() costs twice as much, and this is on the hot path
    return level_num, (now_us if not level_num or passed_us < -period_us else at_us)


def wait_us(level_num: int, at_us: Micros, *, held: int, units: int, room: int, refill: int, period_us: int, now_us: Micros) -> int:
    """Microseconds from `now_us` until there is room for `units`, if nothing more is used; the level is one that `leak` made of `now_us`.

    0 if there is room now, and also if what is held stands in the way: then time alone does not decide. NEVER if more is asked than there can be room
    for, or if nothing leaks.
    """
    if units > room:
        return NEVER
    free = room - held - units
    excess_num = level_num - free * period_us
    if free < 0 or excess_num <= 0:
        return 0
    if refill <= 0:
        return NEVER
    return at_us - now_us - (-excess_num // refill)


def whole_units(level_num: int, period_us: int) -> int:
    """The level in whole units, rounded up: what has begun is not free yet."""
    return -(-level_num // period_us)


def rescale(level_num: int, *, period_us: int, new_period_us: int) -> int:
    """The same level for another period, rounded up."""
    return -(-level_num * new_period_us // period_us)
