"""How limits stand: every seat, from the store, in the units of the resource, and never a zero that nobody knows."""

from __future__ import annotations

import pytest

from metering.limit_desk import BLUE, RED, START_US, Desk, limit, settled
from tokenweir.errors import StoreUnavailable
from tokenweir.limits.limit import Cycle, Rolling
from tokenweir.metering.limit_status import LimitStatus, seats
from tokenweir.usage import Usage


async def report(desk: Desk, *limit_ids: str) -> list[LimitStatus]:
    return await desk.standings.report([RED, BLUE], waits={}, limit_ids=limit_ids, now_us=desk.clock.us)


async def test_each_kind_of_limit_says_what_is_used_held_and_left():
    """Money in nano-USD; a rolling limit says when it will have flowed back; concurrency holds and has no reset."""
    desk = Desk(limit("spend", "spend", 10**12), limit("rate", "requests", 60, Rolling(60_000_000)), limit("slots", "concurrency", 3))
    first, second = await desk.admit(), await desk.admit()
    first.add(settled(Usage(10), cost_nanos=1_000), START_US)  # type: ignore[union-attr]
    first.end()  # type: ignore[union-attr]
    spend, rate, slots = await report(desk)
    assert (spend.used, spend.remaining) == (1_000, 10**12 - 1_000 - (spend.held or 0))
    assert (spend.held or 0) > 0
    assert spend.starts_at_us is not None
    assert (rate.used, rate.remaining, rate.resets_at_us) == (2, 58, START_US + 2_000_000)
    assert (slots.used, slots.held, slots.remaining, slots.resets_at_us) == (0, 1, 2, None)
    second.end()  # type: ignore[union-attr]
    assert [one.held for one in await report(desk)] == [0, 0, 0]
    desk.close()


async def test_a_limit_with_seats_has_a_row_for_each():
    """Keys, teams and owners of its scope; sessions are not listed, and their use is said to be unknown."""
    desk = Desk(*(limit(per, "requests", 5, scope={"per": per}) for per in ("key", "team", "user", "session")))
    rows = {one.limit_id: [] for one in await report(desk)}
    for one in await report(desk):
        rows[one.limit_id].append(one.seat)
    assert rows == {"key": ["key_1", "key_2"], "team": ["team_blue", "team_red"], "user": ["ann@example.org", "key_2"], "session": ["*"]}
    assert [one.used for one in await report(desk, "session")] == [None]
    assert [one.remaining for one in await report(desk, "session")] == [None]
    desk.close()


def test_seats_are_those_within_the_scope():
    """A limit on a team has no seat for another team's keys, nor one on a tag for keys without it."""
    assert seats(limit("a", "requests", 1, team="team_blue", scope={"per": "key"}), [RED, BLUE]) == ["key_2"]
    assert seats(limit("a", "requests", 1, scope={"per": "key", "tag": "night"}), [RED, BLUE]) == ["key_1"]
    assert seats(limit("a", "requests", 1, scope={"per": "key", "user": "nobody"}), [RED, BLUE]) == []


async def test_what_the_store_does_not_know_is_looked_up():
    """Right after a start, status shows what the ledger says; when that cannot be read, it fails instead of showing nothing used."""
    desk = Desk(limit("month", "requests", 5, Cycle("month")), complete=False)
    desk.ledger.fails = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await report(desk)
    desk.ledger.fails = None
    desk.ledger.used["month|"] = 4
    assert [(one.used, one.remaining) for one in await report(desk)] == [(4, 1)]
    desk.close()
