"""How far each mode lets a limit be passed: strict never, an estimate by what requests use beyond what they hold, and no further."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from metering.limit_desk import START_US, Desk, limit, settled
from tokenweir.metering.holding import Held
from tokenweir.usage import Usage

ROOM_NANOS = 100_000_000
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 400), st.integers(1, 4_000)), min_size=1, max_size=40)
"""Whether a request comes or the oldest one ends; how much of its ceiling it used, in 400ths; its max_tokens."""


async def play(steps: list[tuple[bool, int, int]], *, strict: bool) -> tuple[int, int]:
    """What was used in the end, and what the requests used beyond what they held."""
    desk = Desk(limit("budget", "spend", ROOM_NANOS, strict=strict))
    running: list[tuple[Held, int, int]] = []
    beyond = 0

    def end_oldest() -> int:
        held, holds, used = running.pop(0)
        held.add(settled(Usage(output=1), cost_nanos=used), START_US)
        held.end()
        return max(0, used - holds)

    for comes, share, max_tokens in steps:
        if comes:
            asking = desk.asking(max_tokens=max_tokens)
            admission = await desk.limiter.admit(asking)
            if isinstance(admission, Held):
                hold = next(one for one in desk.store.buckets.holds() if one.hold_id == asking.request_id)
                running.append((admission, hold.units[0][1], asking.ceiling_nanos * share // 400))
        elif running:
            beyond += end_oldest()
    while running:
        beyond += end_oldest()
    (used, still_held) = (await desk.stand())["budget"]
    desk.close()
    assert still_held == 0
    return used, beyond


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
async def test_a_strict_budget_is_never_passed(steps):
    """Whatever comes in whatever order, as long as no request uses more than its ceiling."""
    used, beyond = await play(steps, strict=True)
    assert used <= ROOM_NANOS
    assert beyond == 0


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
async def test_an_estimated_budget_is_passed_by_no_more_than_its_requests_used_beyond_what_they_held(steps):
    """The bound that docs/LIMITS.md states, the last room included."""
    used, beyond = await play(steps, strict=False)
    assert used <= ROOM_NANOS + beyond
