"""The last room: one cautious estimate at a time may pass a limit that is not strict, and nothing else may."""

from __future__ import annotations

import pytest

from metering.limit_desk import MODEL, RED, START_US, Desk, limit, settled
from tokenweir.limits.bucket import NEVER, Refused, Shortage, Standing
from tokenweir.limits.last_room import last_room
from tokenweir.limits.limit import Rolling
from tokenweir.metering.holding import Held
from tokenweir.metering.limiter import LimitDenied
from tokenweir.usage import Usage


def links_of(*limits):
    desk = Desk(*limits)
    desk.close()
    return desk.book.chain(RED, MODEL, session="", now_us=START_US).links


def test_what_is_left_is_asked_for_instead():
    """Only of the limits that were short; the others keep what was asked of them."""
    links = links_of(limit("spend", "spend", 100), limit("tokens", "tokens", 10**6))
    assert last_room(links, Refused((Shortage(0, Standing(30, 0), NEVER),)), [500, 70]) == [70, 70]


@pytest.mark.parametrize(
    ("made", "standing"),
    [
        (limit("a", "spend", 100, strict=True), Standing(30, 0)),
        (limit("a", "requests", 1), Standing(0, 0)),
        (limit("a", "concurrency", 1), Standing(0, 0)),
        (limit("a", "spend", 100), Standing(100, 0)),
        (limit("a", "spend", 100), Standing(130, 0)),
        (limit("a", "spend", 100), Standing(30, 1)),
    ],
)
def test_the_refusal_stands(made, standing):
    """Where the limit is strict or exact, where nothing is left, and where somebody else holds of it."""
    assert last_room(links_of(made), Refused((Shortage(0, standing, 0),)), [500]) is None


async def test_a_small_budget_can_be_used_up_one_request_after_the_other():
    """An estimate larger than the whole budget does not lock its key out; when it is used up, it is."""
    desk = Desk(limit("small", "spend", 1_000_000))
    admitted = 0
    while isinstance(held := await desk.admit(), Held):
        assert isinstance(await desk.admit(), LimitDenied)  # one at a time
        held.add(settled(Usage(10, output=10), cost_nanos=300_000), START_US)
        held.end()
        admitted += 1
    assert admitted == 4
    assert await desk.stand() == {"small": (1_200_000, 0)}
    assert isinstance(held, LimitDenied)
    assert held.shortage.standing.used >= 1_000_000
    desk.close()


async def test_a_rate_below_one_request_spaces_requests_instead_of_refusing_them_for_ever():
    """A request larger than the burst passes when nothing else runs, and the level then takes its time to flow out."""
    desk = Desk(limit("rate", "tokens", 1_000, Rolling(60_000_000)))
    held = await desk.admit(max_tokens=50_000)
    assert isinstance(held, Held)
    held.add(settled(Usage(3_000)), START_US)
    held.end()
    denied = await desk.admit()
    assert isinstance(denied, LimitDenied)
    desk.clock.us += 121_000_000
    assert isinstance(await desk.admit(), Held)
    desk.close()
