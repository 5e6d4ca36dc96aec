"""The limiter: all limits or none, the tightest refusal, the right failure when the store is gone, and a waiting line nobody overtakes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from metering.limit_desk import BLUE, MODEL, RED, START_US, Desk, limit, settled
from tokenweir.errors import ShuttingDown, StoreUnavailable
from tokenweir.limits.bucket import NEVER
from tokenweir.limits.limit import Action, Cycle, Grant, Rolling
from tokenweir.metering.holding import Held
from tokenweir.metering.limiter import Downgrade, LimitDenied
from tokenweir.storage.limit_memory import MemoryLimitStore
from tokenweir.usage import Usage

MINUTE = Rolling(60_000_000)


@pytest.fixture
def desks() -> Iterator[list[Desk]]:
    made: list[Desk] = []
    yield made
    for desk in made:
        desk.close()


class Gone(MemoryLimitStore):
    """A store that does not answer."""

    shared = True
    there = False

    async def reserve(self, *args: Any, **more: Any) -> Any:
        if not self.there:
            raise StoreUnavailable
        return await super().reserve(*args, **more)


async def test_without_a_limit_nothing_is_held(desks):
    """A request that no limit covers is not counted anywhere."""
    desks.append(desk := Desk(limit("blue", "requests", 1, team="team_blue")))
    assert await desk.admit(RED) is None
    assert isinstance(await desk.admit(BLUE), Held)


async def test_every_level_of_the_scope_chain_is_asked(desks):
    """Organization, team and key each narrow; the first that is full refuses, whichever it is."""
    limits = [limit("org", "requests", 3), limit("team", "requests", 2, team="team_red"), limit("key", "requests", 1, key="key_1")]
    desks.append(desk := Desk(*limits))
    assert isinstance(await desk.admit(), Held)
    denied = await desk.admit()
    assert isinstance(denied, LimitDenied)
    assert denied.link.limit.limit_id == "key"
    assert await desk.stand() == {"org": (1, 0), "team": (1, 0), "key": (1, 0)}


async def test_a_refusal_takes_nothing_of_any_limit(desks):
    """A request that one limit refuses does not burn the others."""
    desks.append(desk := Desk(limit("rate", "requests", 10, MINUTE), limit("slots", "concurrency", 0)))
    for _ in range(5):
        assert isinstance(await desk.admit(), LimitDenied)
    assert await desk.stand() == {"rate": (0, 0), "slots": (0, 0)}


async def test_the_refusal_that_stands_longest_is_the_one_that_is_told(desks):
    """A used-up month is told before a used-up minute: coming back in a minute would not help."""
    desks.append(desk := Desk(limit("rate", "requests", 1, MINUTE), limit("month", "requests", 1)))
    assert isinstance(await desk.admit(), Held)
    denied = await desk.admit()
    assert isinstance(denied, LimitDenied)
    assert denied.link.limit.limit_id == "month"


async def test_what_can_never_fit_is_told_as_such(desks):
    """A strict budget below the ceiling of one request says so instead of sending the client to wait."""
    desks.append(desk := Desk(limit("tiny", "output_tokens", 500, strict=True)))
    denied = await desk.admit(max_tokens=501)
    assert isinstance(denied, LimitDenied)
    assert denied.shortage.wait_us == NEVER
    assert isinstance(await desk.admit(max_tokens=500), Held)


async def test_a_limit_counts_only_the_models_it_covers_in_any_spelling(desks):
    """A pattern is tried on the id that was sent and on the card's name for it."""
    desks.append(desk := Desk(limit("sonnet", "requests", 1, models=("claude-sonnet-4-5",))))
    assert await desk.admit(model="claude-opus-5-5") is None
    assert isinstance(await desk.admit(model="claude-sonnet-4-5-20250929"), Held)
    assert isinstance(await desk.admit(model="claude-sonnet-4-5"), LimitDenied)


async def test_seats_have_buckets_of_their_own_and_pools_do_not(desks):
    """`per key` gives each key the amount; a pooled limit gives it to all together."""
    desks.append(desk := Desk(limit("each", "requests", 1, scope={"per": "key"}), limit("all", "requests", 5)))
    assert isinstance(await desk.admit(RED), Held)
    assert isinstance(await desk.admit(BLUE), Held)
    assert isinstance(await desk.admit(RED), LimitDenied)
    assert (await desk.stand(BLUE))["all"] == (2, 0)


@pytest.mark.parametrize("within", [{"user": "ann@example.org"}, {"tag": "night"}, {"session": "s1"}])
async def test_users_tags_and_sessions_are_limited_within_a_scope(desks, within):
    """Only requests of that owner, tag or session count."""
    desks.append(desk := Desk(limit("inner", "requests", 1, scope=within)))
    assert isinstance(await desk.admit(RED, session="s1"), Held)
    assert isinstance(await desk.admit(RED, session="s1"), LimitDenied)
    assert await desk.admit(BLUE, session="s2") is None


async def test_a_warning_and_a_trial_pass_and_are_remembered(desks):
    """Limits that may not refuse let the request through; the ledger is told which they were."""
    desks.append(desk := Desk(limit("soft", "requests", 1, action=Action.WARN), limit("trial", "requests", 1, shadow=True)))
    assert (await desk.admit()).flags == ()  # type: ignore[union-attr]
    held = await desk.admit()
    assert isinstance(held, Held)
    assert set(held.flags) == {"limit_warned:soft", "limit_shadow:trial"}


async def test_downgrade_names_the_other_model(desks):
    """When the dear model has no room, the request goes on to the one the limit names."""
    desks.append(desk := Desk(limit("dear", "requests", 1, models=(MODEL,), action=Action.DOWNGRADE, downgrade_to="claude-haiku-4-5")))
    assert isinstance(await desk.admit(), Held)
    admission = await desk.admit()
    assert isinstance(admission, Downgrade)
    assert admission.model == "claude-haiku-4-5"


async def test_an_unknown_counter_is_asked_of_the_ledger_once(desks):
    """What the store does not know is never taken for zero: requests that miss it together ask once, and are held to what the ledger says."""
    desks.append(desk := Desk(limit("month", "requests", 3), complete=False))
    desk.ledger.used["month|"] = 2
    admissions = await asyncio.gather(*(desk.admit() for _ in range(20)))
    assert sum(isinstance(one, Held) for one in admissions) == 1
    assert len(desk.ledger.asked) == 1


@pytest.mark.parametrize("read_again", [False, True])
async def test_what_ends_while_the_ledger_is_read_for_a_new_limit_is_counted_once(desks, read_again):
    """A limit is set while a request runs, and the request ends while somebody reads what was used: before or after its record was read."""
    desks.append(desk := Desk(limit("old", "tokens", 10**9)))
    running = await desk.admit()
    assert isinstance(running, Held)
    desk.book.update([(limit("new", "tokens", 10**9, created_at_us=START_US), ())])
    real = desk.lookup.seeds
    read: list[int] = []

    async def seeds(links):
        desk.clock.us += 10
        found = [replace(seed, at_us=desk.clock.us) for seed in await real(links)]
        if not read:
            desk.clock.us += 10
            running.add(settled(Usage(600)), START_US)
            running.end()
            desk.clock.us += 10
            # From now on the ledger has it; the first reading may have had it already.
            desk.ledger.used["new|"] = 600
            found = [replace(seed, used=600 * read_again) for seed in found]
        read.append(1)
        return found

    desk.limiter.use.seeds = seeds  # type: ignore[method-assign]
    held = await desk.admit()
    assert isinstance(held, Held)
    held.end()
    assert await desk.stand() == {"old": (600, 0), "new": (600, 0)}


async def test_grants_that_change_while_their_room_is_worked_out_are_not_mixed_up(desks):
    """The room that was worked out from the grants of before is not taken for that of now."""
    quarter_us = START_US - START_US % 900_000_000 - 900_000_000
    month = limit("month", "requests", 1)
    one, two = (Grant(name, "month", "credit", 1, effective_at_us=quarter_us) for name in ("one", "two"))
    desks.append(desk := Desk(month, grants=[one]))
    desk.ledger.phases = [0]
    real = desk.ledger.allowance

    def allowance(link, grants):
        made = real(link, grants)
        if len(grants) == 1:
            desk.book.update([(month, (one, two))])
        return made

    desk.ledger.allowance = allowance  # type: ignore[method-assign]
    assert [isinstance(await desk.admit(), Held) for _ in range(4)] == [True, True, True, False]


async def test_a_ledger_that_cannot_be_read_refuses_nothing_as_a_429(desks):
    """An unknown counter and a database that is down: the caller gets a failure of ours, to be tried again."""
    desks.append(desk := Desk(limit("month", "requests", 3), complete=False))
    desk.ledger.fails = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await desk.admit()
    desk.ledger.fails = None
    assert isinstance(await desk.admit(), Held)


async def test_credits_give_room_beyond_the_amount(desks):
    """A credit is looked up before the request is judged."""
    credit = Grant("g", "month", "credit", 1, effective_at_us=START_US - START_US % 900_000_000 - 900_000_000)
    desks.append(desk := Desk(limit("month", "requests", 1), grants=[credit]))
    desk.ledger.phases = [0]
    first, second, third = [await desk.admit() for _ in range(3)]
    assert isinstance(first, Held)
    assert isinstance(second, Held)
    assert isinstance(third, LimitDenied)


async def test_a_new_cycle_is_another_bucket(desks):
    """Nothing resets a counter: when the time has come, requests meet the next one."""
    desks.append(desk := Desk(limit("day", "requests", 1, Cycle("day"))))
    assert isinstance(await desk.admit(), Held)
    assert isinstance(await desk.admit(), LimitDenied)
    desk.clock.us += 86_400_000_000
    assert isinstance(await desk.admit(), Held)


# The store is gone.


async def test_without_the_store_rates_go_on_within_a_local_share(desks):
    """A quarter of a rate and of concurrency is what one process admits alone; afterwards the store decides again."""
    store = Gone("writer")
    desks.append(desk := Desk(limit("rate", "requests", 8, MINUTE), limit("slots", "concurrency", 8), store=store))
    first, second, third = [await desk.admit() for _ in range(3)]
    assert isinstance(first, Held)
    assert isinstance(second, Held)
    assert isinstance(third, LimitDenied)
    first.end()
    second.end()
    store.there = True
    admitted = [await desk.admit() for _ in range(9)]
    assert [isinstance(one, Held) for one in admitted] == [True] * 8 + [False]


@pytest.mark.parametrize("closed", [limit("money", "spend", 10**9), limit("quota", "tokens", 10**9), limit("roll", "spend", 10**9, MINUTE)])
async def test_without_the_store_budgets_fail_closed(desks, closed):
    """Money and calendar cycles have no local share: the request fails as ours, not as the caller's."""
    desks.append(desk := Desk(closed, store=Gone("writer")))
    with pytest.raises(StoreUnavailable, match=closed.name):
        await desk.admit()


async def test_without_the_store_a_request_larger_than_the_share_is_not_called_too_large(desks):
    """It fits its limit, and would be told for good that it does not: that would be a failure of ours told as the caller's."""
    desks.append(desk := Desk(limit("rate", "output_tokens", 2_000, MINUTE, strict=True), store=Gone("writer")))
    with pytest.raises(StoreUnavailable, match="rate"):
        await desk.admit(max_tokens=1_000)
    assert isinstance(await desk.admit(max_tokens=500), Held)
    denied = await desk.admit(max_tokens=2_001)
    assert isinstance(denied, LimitDenied)
    assert denied.shortage.wait_us == NEVER


async def test_without_the_store_limits_that_only_watch_refuse_nothing(desks):
    """A shadow budget that cannot be read lets requests pass."""
    desks.append(desk := Desk(limit("trial", "spend", 10**9, shadow=True), store=Gone("writer")))
    held = await desk.admit()
    assert isinstance(held, Held)
    held.add(settled(Usage(10, output=10), cost_nanos=5), START_US)
    held.end()


# Waiting.


def slots(amount: int, *, queue_ms: int = 30_000) -> Any:
    return limit("slots", "concurrency", amount, action=Action.QUEUE, queue_ms=queue_ms)


async def waiting_for_room(desk: Desk) -> None:
    """Let everybody run until one of them waits."""
    for _ in range(1_000):
        if desk.room.waiting:
            return
        await asyncio.sleep(0)
    raise AssertionError("nobody waits")


async def test_who_waits_gets_the_room_that_is_given_back(desks):
    """Three requests for one slot pass one after the other, in the order they came."""
    desks.append(desk := Desk(slots(1)))
    order: list[int] = []

    async def run(number: int) -> None:
        held = await desk.admit()
        assert isinstance(held, Held)
        order.append(number)
        await asyncio.sleep(0)
        held.end()

    await asyncio.gather(*(run(number) for number in range(3)))
    assert order == [0, 1, 2]
    assert await desk.stand() == {"slots": (0, 0)}
    assert desk.room.waiting == 0


async def test_a_wait_ends_at_its_deadline(desks):
    """No room in time: refused, and told that it waited."""
    desks.append(desk := Desk(slots(1, queue_ms=1)))
    held = await desk.admit()
    waiting = asyncio.ensure_future(desk.admit())
    await waiting_for_room(desk)
    desk.clock.us += 1_000_000
    denied = await waiting
    assert isinstance(denied, LimitDenied)
    assert denied.waited
    assert isinstance(held, Held)


async def test_who_leaves_while_waiting_holds_nothing(desks):
    """A client that goes away frees its place, and a reservation that nobody waited for is given back."""
    desks.append(desk := Desk(slots(1)))
    held = await desk.admit()
    waiting = asyncio.ensure_future(desk.admit())
    await waiting_for_room(desk)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert desk.room.waiting == 0
    held.end()  # type: ignore[union-attr]
    assert await desk.stand() == {"slots": (0, 0)}


async def test_who_comes_later_does_not_overtake(desks):
    """While somebody waits for a limit, a newcomer goes behind, even if there is room at that very moment."""
    desks.append(desk := Desk(slots(1)))
    held = await desk.admit()
    first = asyncio.ensure_future(desk.admit())
    await waiting_for_room(desk)
    held.end()  # type: ignore[union-attr]
    second = asyncio.ensure_future(desk.admit())
    admitted = await first
    assert isinstance(admitted, Held)
    assert not second.done()
    admitted.end()
    assert isinstance(await second, Held)


async def test_a_limit_that_is_raised_or_removed_lets_in_who_waits(desks):
    """Whoever waits is judged by the limits as they are when its turn comes."""
    for changed in ([(slots(2), ())], []):
        desks.append(desk := Desk(slots(1)))
        await desk.admit()
        waiting = asyncio.ensure_future(desk.admit())
        await waiting_for_room(desk)
        desk.book.update(changed, [] if changed else ["slots"])
        desk.room.news("slots|")
        assert isinstance(await waiting, Held)


async def test_a_limit_that_is_set_meanwhile_is_met_by_who_waits(desks):
    """A budget of nothing that appears while somebody queues refuses it when its turn comes."""
    desks.append(desk := Desk(slots(1)))
    held = await desk.admit()
    waiting = asyncio.ensure_future(desk.admit())
    await waiting_for_room(desk)
    desk.book.update([(limit("none", "requests", 0), ())])
    held.end()  # type: ignore[union-attr]
    denied = await waiting
    assert isinstance(denied, LimitDenied)
    assert denied.link.limit.limit_id == "none"


async def test_a_full_line_sends_away_without_a_try(desks):
    """Who finds no place in the line may not slip through in front of it."""
    desks.append(desk := Desk(slots(1)))
    held = await desk.admit()
    waiting = [asyncio.ensure_future(desk.admit()) for _ in range(100)]
    await waiting_for_room(desk)
    for _ in range(10):
        await asyncio.sleep(0)
    held.end()  # type: ignore[union-attr]
    denied = await desk.admit()
    assert isinstance(denied, LimitDenied)
    assert denied.waited
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_room_that_closes_is_no_fault_of_the_caller(desks):
    """At shutdown who waits is told to come back, not that it used too much."""
    desks.append(desk := Desk(slots(1)))
    await desk.admit()
    waiting = asyncio.ensure_future(desk.admit())
    await waiting_for_room(desk)
    desk.room.close()
    with pytest.raises(ShuttingDown):
        await waiting
