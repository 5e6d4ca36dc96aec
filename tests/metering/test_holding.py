"""Holds: what a request used ends up in every bucket exactly once, in its own cycle, and nothing stays held."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metering.limit_desk import MODEL, RED, START_US, Desk, limit, settled
from tokenweir.limits.limit import Action, Cycle
from tokenweir.metering.holding import Held
from tokenweir.usage import Certainty, Usage

USAGE = Usage(100, 20, 30, 400, 50)


@pytest.fixture
def desks() -> Iterator[list[Desk]]:
    made: list[Desk] = []
    yield made
    for desk in made:
        desk.close()


async def test_what_was_booked_is_what_is_used_of_each_resource(desks):
    """Each limit counts its own unit, and holds nothing afterwards; ending twice changes nothing."""
    resources = ("requests", "input_tokens", "output_tokens", "tokens", "spend", "concurrency")
    desks.append(desk := Desk(*(limit(name, name, 10**9, action=Action.BLOCK) for name in resources)))
    held = await desk.admit()
    assert isinstance(held, Held)
    assert all(held_units > 0 for name, (_, held_units) in (await desk.stand()).items() if name != "requests")
    held.add(settled(USAGE, cost_nanos=1_234), START_US)
    held.end()
    held.end()
    assert await desk.stand() == {
        "requests": (1, 0), "input_tokens": (150, 0), "output_tokens": (50, 0), "tokens": (600, 0), "spend": (1_234, 0), "concurrency": (0, 0),
    }  # fmt: skip


async def test_a_request_of_which_nothing_was_sent_gives_everything_back(desks):
    """No attempt, no use: not even of the number of requests."""
    desks.append(desk := Desk(limit("requests", "requests", 5), limit("spend", "spend", 10**9)))
    held = await desk.admit()
    held.end()
    assert await desk.stand() == {"requests": (0, 0), "spend": (0, 0)}


async def test_every_attempt_counts(desks):
    """A request that was refused upstream and tried again used two of the requests, as the ledger has two entries."""
    desks.append(desk := Desk(limit("requests", "requests", 5), limit("tokens", "tokens", 10**6)))
    held = await desk.admit()
    held.add(settled(certainty=Certainty.NONE), START_US)
    held.add(settled(USAGE), START_US)
    held.end()
    assert await desk.stand() == {"requests": (2, 0), "tokens": (600, 0)}


async def test_the_model_that_answered_decides_what_is_counted(desks):
    """A limit on one model gets nothing of another one's use, and a limit that was not asked gets what its model used."""
    desks.append(desk := Desk(limit("asked", "tokens", 10**6, models=(MODEL,)), limit("served", "tokens", 10**6, models=("claude-haiku-4-5",))))
    held = await desk.admit()
    held.add(settled(USAGE, model="claude-haiku-4-5"), START_US)
    held.end()
    assert await desk.stand() == {"asked": (0, 0), "served": (600, 0)}


async def test_requests_count_for_the_model_that_answered_too(desks):
    """The ledger books an attempt under the model that answered; so do limits on the number of requests, whichever of the named models it was."""
    limits = [limit("asked", "requests", 9, models=(MODEL,)), limit("served", "requests", 9, models=("claude-haiku-4-5",))]
    desks.append(desk := Desk(*limits))
    for others in ((), ("claude-haiku-4-5",)):
        held = await desk.admit(other_models=others)
        held.add(settled(USAGE, model="claude-haiku-4-5"), START_US)
        held.end()
    assert await desk.stand() == {"asked": (0, 0), "served": (2, 0)}


async def test_a_clock_that_was_set_back_books_where_the_ledger_books(desks):
    """Admitted a moment after midnight by a clock that was ahead, and sent a moment before it by one that is right."""
    desks.append(desk := Desk(limit("day", "tokens", 10**6, Cycle("day"))))
    midnight_us = (await desk.admit()).chain.buckets[0].ends_us
    desk.clock.us = midnight_us
    held = await desk.admit()
    held.add(settled(USAGE), midnight_us - 1)
    held.end()
    assert (await desk.stand())["day"] == (0, 0)
    desk.clock.us = midnight_us - 1
    assert (await desk.stand())["day"][0] == 600


async def test_an_attempt_counts_in_the_cycle_in_which_it_began(desks):
    """Admitted a moment before midnight and sent a moment after: the ledger books it in the new day, and so does the limit."""
    desks.append(desk := Desk(limit("day", "tokens", 10**6, Cycle("day")), limit("requests", "requests", 9, Cycle("day"))))
    held = await desk.admit()
    ends_us = held.chain.buckets[0].ends_us
    held.add(settled(USAGE), ends_us)
    held.end()
    assert await desk.stand() == {"day": (0, 0), "requests": (0, 0)}
    desk.clock.us = ends_us
    assert await desk.stand() == {"day": (600, 0), "requests": (1, 0)}


async def test_a_limit_that_is_set_while_a_request_runs_counts_it(desks):
    """What is under way when a limit appears is charged to it when it ends."""
    old = limit("old", "tokens", 10**6)
    desks.append(desk := Desk(old))
    held = await desk.admit()
    desk.book.update([(limit("new", "tokens", 10**6), ())])
    held.add(settled(USAGE), START_US)
    held.end()
    assert await desk.stand() == {"old": (600, 0), "new": (600, 0)}


async def test_a_stream_that_outgrows_its_estimate_holds_more(desks):
    """What is held follows what is seen, up to the ceiling, and never beyond."""
    desks.append(desk := Desk(limit("output", "output_tokens", 10**6)))
    held = await desk.admit(stream=True, max_tokens=10_000)
    before = (await desk.stand())["output"][1]
    for seen in range(0, 10_001, 100):
        held.seen(seen)
        await desk.limiter._holder.settle_down()
        assert (await desk.stand())["output"][1] >= min(seen, 10_000)
    assert before < (await desk.stand())["output"][1] == 10_000
    held.add(settled(Usage(output=9_999)), START_US)
    held.end()
    assert await desk.stand() == {"output": (9_999, 0)}


async def test_a_strict_hold_never_grows(desks):
    """The ceiling is held from the beginning."""
    desks.append(desk := Desk(limit("output", "output_tokens", 10**6, strict=True)))
    held = await desk.admit(stream=True, max_tokens=10_000)
    assert (await desk.stand())["output"] == (0, 10_000)
    held.seen(9_999)
    assert (await desk.stand())["output"] == (0, 10_000)


async def test_a_stream_is_ended_when_the_limit_says_so(desks):
    """`end`: the hold that cannot grow calls for the end; another action lets the stream run."""
    for action, ended in ((Action.END, ["output"]), (Action.BLOCK, [])):
        desks.append(desk := Desk(limit("output", "output_tokens", 5_000, action=action)))
        held = await desk.admit(stream=True, max_tokens=64_000)
        told: list[str] = []
        held.on_no_room = lambda link, told=told: told.append(link.limit.limit_id)
        for seen in range(0, 8_000, 200):
            held.seen(seen)
            await desk.limiter._holder.settle_down()
            if told:
                break
        assert told == ended
        held.end()


async def test_a_strict_limit_does_not_pay_for_a_second_attempt(desks):
    """After an attempt that may have cost, another one would exceed what is held."""
    for strict in (True, False):
        desks.append(desk := Desk(limit("spend", "spend", 10**12, strict=strict)))
        held = await desk.admit()
        assert held.may_retry
        held.add(settled(certainty=Certainty.NONE), START_US)
        assert held.may_retry
        held.add(settled(USAGE, certainty=Certainty.CEILING, cost_nanos=7), START_US)
        assert held.may_retry is not strict
        held.end()
    assert RED.key_id
