"""What every store of limits does: one suite for all of them, each sentence of `limit_ports.LimitStore` a test.

A store that is shared has a clock of its own for levels, so the levels here leak so slowly that no test can notice, except where a test waits for it.
Exact times are tested on the engine itself (tests/limits/test_buckets.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tokenweir.limit_ports import LimitStore
from tokenweir.limits.bucket import NEVER, Bucket, Hold, Kind, Refused, Reserved, Seed, Shortage, Standing, Unseeded
from tokenweir.limits.buckets import Buckets
from tokenweir.limits.limit import AMOUNT_MAX
from tokenweir.periods import DAY_US, SECOND_US
from tokenweir.storage.limit_memory import MemoryLimitStore
from tokenweir.storage.limit_valkey import ValkeyLimitStore
from valkeys import limit_settings, needs_valkey, shared_server

OWNER = "writer-1"
NOW = time.time_ns() // 1000
YEAR_US = 366 * DAY_US


@contextlib.asynccontextmanager
async def memory() -> AsyncIterator[LimitStore]:
    yield MemoryLimitStore(OWNER)


@contextlib.asynccontextmanager
async def valkey() -> AsyncIterator[LimitStore]:
    store = ValkeyLimitStore(limit_settings(shared_server(), store_timeout_ms=5_000), owner=OWNER)
    try:
        yield store
    finally:
        await store.close()


STORES = [
    pytest.param(memory, id="memory"),
    pytest.param(valkey, id="valkey", marks=needs_valkey),
]
"""Each opens a store without any buckets, whose holds are owned by OWNER."""


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[LimitStore]:
    async with request.param() as opened:
        yield opened


def counter(name: str = "counter", room: int = 10, **more: Any) -> Bucket:
    return Bucket(name, Kind.COUNTER, room, **{"fresh": True, "ends_us": NOW + DAY_US} | more)


def level(name: str = "level", room: int = 10, **more: Any) -> Bucket:
    return Bucket(name, Kind.LEVEL, room, **{"fresh": True, "refill": 1, "period_us": YEAR_US} | more)


def gauge(name: str = "gauge", room: int = 10, **more: Any) -> Bucket:
    return Bucket(name, Kind.GAUGE, room, **more)


KINDS = [pytest.param(kind, id=kind.__name__) for kind in (counter, level, gauge)]
USED = [pytest.param(kind, id=kind.__name__) for kind in (counter, level)]


async def standing(store: LimitStore, *buckets: Bucket) -> list[Standing | None]:
    await store.settled()
    return await store.standings(buckets, now_us=NOW)


async def until(told: Callable[[], bool]) -> None:
    """Wait for it; what a shared store tells may take a moment."""
    async with asyncio.timeout(10):
        while not told():  # noqa: ASYNC110 -- what is waited for is whatever the caller says
            await asyncio.sleep(0.005)


# Reserving


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_reserved_is_held(store, kind):
    """What is asked for is held until it is settled, and the answer says how the bucket stands with it."""
    bucket = kind()
    assert await store.reserve("h1", [bucket], [4], now_us=NOW) == Reserved((Standing(0, 4),))
    assert await store.reserve("h2", [bucket], [6], now_us=NOW) == Reserved((Standing(0, 10),))
    assert await standing(store, bucket) == [Standing(0, 10)]


@pytest.mark.parametrize("kind", KINDS)
async def test_no_unit_more_than_there_is_room_for(store, kind):
    """The last unit can be had, and the one after it cannot."""
    bucket = kind()
    assert isinstance(await store.reserve("h1", [bucket], [9], now_us=NOW), Reserved)
    assert await store.reserve("h2", [bucket], [2], now_us=NOW) == Refused((Shortage(0, Standing(0, 9), 0),))
    assert isinstance(await store.reserve("h3", [bucket], [1], now_us=NOW), Reserved)
    assert await store.reserve("h4", [bucket], [1], now_us=NOW) == Refused((Shortage(0, Standing(0, 10), 0),))


async def test_all_or_nothing(store):
    """A request that one bucket has no room for takes nothing of any other, wherever it stands in the row."""
    for place in range(3):
        buckets = [counter(f"c{place}"), level(f"l{place}", taken=True), gauge(f"g{place}")]
        asked = [11 if index == place else 3 for index in range(3)]
        refused = await store.reserve(f"h{place}", buckets, asked, now_us=NOW)
        assert refused == Refused((Shortage(place, Standing(), NEVER),))
        assert await standing(store, *buckets) == [Standing()] * 3
    assert await store.holds() == []


async def test_every_shortage_is_told(store):
    """A refusal names all buckets without room, so that the tightest of them can answer."""
    buckets = [counter("a", 1), counter("b"), gauge("c", 1), level("d", 1)]
    await store.reserve("h1", buckets, [1, 1, 1, 1], now_us=NOW)
    refused = await store.reserve("h2", buckets, [1, 1, 1, 1], now_us=NOW)
    assert refused == Refused((Shortage(0, Standing(0, 1), 0), Shortage(2, Standing(0, 1), 0), Shortage(3, Standing(0, 1), 0)))


@pytest.mark.parametrize("kind", KINDS)
async def test_more_than_there_can_ever_be_room_for(store, kind):
    """A wait for more than the whole room never ends."""
    refused = await store.reserve("h1", [kind(room=5)], [6], now_us=NOW)
    assert refused == Refused((Shortage(0, Standing(), NEVER),))


async def test_the_wait_for_a_level(store):
    """A level says when it will have leaked enough, if nothing is held that stands in the way."""
    bucket = level(room=10, refill=10, period_us=DAY_US, taken=True)
    await store.reserve("h1", [bucket], [10], now_us=NOW)
    refused = await store.reserve("h2", [bucket], [5], now_us=NOW)
    assert isinstance(refused, Refused)
    (shortage,) = refused.shortages
    assert shortage.standing == Standing(10, 0)
    assert DAY_US // 2 - 60 * SECOND_US <= shortage.wait_us <= DAY_US // 2


async def test_a_level_leaks(store):
    """A full level has room again after a while, by itself."""
    bucket = level(room=1000, refill=1000, period_us=SECOND_US, taken=True)
    first = await store.reserve("h0", [bucket], [1000], now_us=time.time_ns() // 1000)
    assert first == Reserved((Standing(1000, 0),))
    # The time of a shared store's clock is the event.
    async with asyncio.timeout(10):
        while not isinstance(await store.reserve("h1", [bucket], [300], now_us=time.time_ns() // 1000), Reserved):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    (after,) = await store.standings([bucket], now_us=time.time_ns() // 1000)
    assert after is not None
    assert after.used <= 1000


async def test_what_is_not_enforced_counts_and_never_refuses(store):
    """A bucket that only warns takes what is asked beyond its room, and is named."""
    buckets = [counter("a", 5, enforced=False), counter("b"), level("c", 2, enforced=False), gauge("d", 9, enforced=False)]
    assert await store.reserve("h1", buckets, [6, 6, 1, 1], now_us=NOW) == Reserved(
        (Standing(0, 6), Standing(0, 6), Standing(0, 1), Standing(0, 1)), (0,)
    )
    assert await store.reserve("h2", buckets, [1, 1, 3, 1], now_us=NOW) == Reserved(
        (Standing(0, 7), Standing(0, 7), Standing(0, 4), Standing(0, 2)), (0, 2)
    )


async def test_what_is_not_enforced_counts_nothing_of_a_refused_request(store):
    """A request that another bucket refuses leaves no trace in one that only warns."""
    buckets = [counter("a", 5, enforced=False), counter("b", 5)]
    assert await store.reserve("h1", buckets, [6, 6], now_us=NOW) == Refused((Shortage(1, Standing(), NEVER),))
    assert await standing(store, *buckets) == [Standing(), Standing()]


@pytest.mark.parametrize("kind", USED)
async def test_what_is_taken_is_used_at_once(store, kind):
    """Requests are used when they are admitted, and settlement gives nothing of them back."""
    bucket = kind(taken=True)
    assert await store.reserve("h1", [bucket], [1], now_us=NOW) == Reserved((Standing(1, 0),))
    store.settle("h1", [0], now_us=NOW)
    assert await standing(store, bucket) == [Standing(1, 0)]


async def test_nothing_asked_of_a_full_bucket_passes_and_of_an_overfull_one_does_not(store):
    """Asking for nothing is a question whether the limit has been passed."""
    bucket = counter(room=2)
    await store.reserve("h1", [bucket], [2], now_us=NOW)
    assert isinstance(await store.reserve("h2", [bucket], [0], now_us=NOW), Reserved)
    store.settle("h1", [3], now_us=NOW)
    await store.settled()
    assert await store.reserve("h3", [bucket], [0], now_us=NOW) == Refused((Shortage(0, Standing(3, 0), 0),))


async def test_the_same_hold_twice(store):
    """A reservation that is repeated, because its answer was lost, answers the same and takes nothing."""
    buckets = [counter("a", 10), counter("b", 3, enforced=False), level("c", taken=True)]
    first = await store.reserve("h1", buckets, [6, 4, 1], now_us=NOW)
    assert first == Reserved((Standing(0, 6), Standing(0, 4), Standing(1, 0)), (1,))
    assert await store.reserve("h1", buckets, [6, 4, 1], now_us=NOW) == first
    assert await standing(store, *buckets) == [Standing(0, 6), Standing(0, 4), Standing(1, 0)]
    assert len(await store.holds()) == 1


async def test_a_request_without_limits(store):
    """A request that meets no limit holds nothing, and can be charged to limits that it met on its way."""
    assert await store.reserve("h1", [], [], now_us=NOW) == Reserved(())
    store.settle("h1", [], also=[(counter(), 3)], now_us=NOW)
    assert await standing(store, counter()) == [Standing(3, 0)]
    assert await store.holds() == []


async def test_a_changed_amount(store):
    """The room is what the request says: a larger amount has more at once, a smaller one less, and what was used stays."""
    await store.reserve("h1", [counter(room=10), level(room=10)], [8, 8], now_us=NOW)
    store.settle("h1", [8, 8], now_us=NOW)
    await store.settled()
    smaller = await store.reserve("h2", [counter(room=5), level(room=5, refill=2)], [1, 1], now_us=NOW)
    assert isinstance(smaller, Refused)
    assert [(shortage.index, shortage.standing) for shortage in smaller.shortages] == [(0, Standing(8, 0)), (1, Standing(8, 0))]
    larger = await store.reserve("h3", [counter(room=20), level(room=20, refill=3)], [12, 12], now_us=NOW)
    assert larger == Reserved((Standing(8, 12), Standing(8, 12)))


async def test_the_largest_amounts_are_counted_exactly(store):
    """Four million dollars in nano-dollars are counted to the last one, over the longest period."""
    buckets = [counter(room=AMOUNT_MAX), level(room=AMOUNT_MAX), gauge(room=AMOUNT_MAX)]
    assert isinstance(await store.reserve("h1", buckets, [AMOUNT_MAX - 1] * 3, now_us=NOW), Reserved)
    assert isinstance(await store.reserve("h2", buckets, [2] * 3, now_us=NOW), Refused)
    assert await store.reserve("h3", buckets, [1] * 3, now_us=NOW) == Reserved((Standing(0, AMOUNT_MAX),) * 3)
    store.settle("h1", [AMOUNT_MAX - 1] * 3, now_us=NOW)
    store.settle("h3", [1] * 3, now_us=NOW)
    assert await standing(store, *buckets) == [Standing(AMOUNT_MAX, 0), Standing(AMOUNT_MAX, 0), Standing()]


async def test_many_at_once(store):
    """256 requests at the same time for a room of ten are exactly ten admissions, and nothing is held once they have ended."""
    bucket = counter(room=10)
    for round_ in range(5):
        answers = await asyncio.gather(*(store.reserve(f"h{round_}-{n}", [bucket], [1], now_us=NOW) for n in range(256)))
        assert sum(isinstance(answer, Reserved) for answer in answers) == 10
        for n in range(256):
            store.settle(f"h{round_}-{n}", [0], now_us=NOW)
        assert await standing(store, bucket) == [Standing()]


# What the store does not know


@pytest.mark.parametrize("kind", USED)
async def test_an_unknown_bucket_is_not_an_empty_one(store, kind):
    """A bucket that the store does not know must be looked up in the ledger first, and nothing is taken meanwhile."""
    known, unknown = gauge(), kind(fresh=False)
    assert await store.reserve("h1", [known, unknown], [1, 1], now_us=NOW) == Unseeded((1,))
    assert await standing(store, known, unknown) == [Standing(), None]
    assert await store.holds() == []


async def test_all_unknown_buckets_are_told_at_once(store):
    """One question to the ledger is enough for a request."""
    buckets = [counter("a", fresh=False), counter("b"), level("c", fresh=False), gauge("d")]
    assert await store.reserve("h1", buckets, [1, 1, 1, 1], now_us=NOW) == Unseeded((0, 2))


async def test_fresh_buckets_and_gauges_stand_at_zero(store):
    """A cycle that has just begun was not used yet, and of a gauge nothing outlives a request."""
    assert await standing(store, counter(), level(), gauge(), gauge("other", fresh=False)) == [Standing()] * 4
    assert await standing(store, counter(fresh=False), level(fresh=False)) == [None, None]


@pytest.mark.parametrize("kind", USED)
async def test_a_seed_is_what_was_used(store, kind):
    """After the ledger was asked, the bucket stands where the ledger says."""
    bucket = kind(fresh=False)
    await store.seed([Seed(bucket, 7, NOW)])
    assert await standing(store, bucket) == [Standing(7, 0)]
    assert isinstance(await store.reserve("h1", [bucket], [4], now_us=NOW), Refused)
    assert await store.reserve("h2", [bucket], [3], now_us=NOW) == Reserved((Standing(7, 3),))


@pytest.mark.parametrize("kind", USED)
async def test_a_seed_does_not_overwrite(store, kind):
    """Of two that ask the ledger at the same time, the later one must not undo what was used since."""
    bucket = kind(fresh=False)
    await store.seed([Seed(bucket, 5, NOW)])
    await store.reserve("h1", [bucket], [2], now_us=NOW)
    store.settle("h1", [2], now_us=NOW)
    await store.settled()
    await store.seed([Seed(bucket, 5, NOW)])
    assert await standing(store, bucket) == [Standing(7, 0)]


async def test_a_seed_of_a_gauge_is_nothing(store):
    """Nothing was used of a gauge."""
    await store.seed([Seed(gauge(), 5, NOW)])
    assert await standing(store, gauge()) == [Standing()]


# Settling


async def test_settlement_exchanges_what_is_held_for_what_was_used(store):
    """Nothing of a hold is held after its end, and its real use is counted, less than was held or more."""
    buckets = [counter("a"), level("b"), gauge("c"), counter("d")]
    await store.reserve("h1", buckets, [5, 5, 5, 5], now_us=NOW)
    await store.reserve("h2", buckets, [1, 1, 1, 1], now_us=NOW)
    store.settle("h1", [2, 3, 0, 12], now_us=NOW)
    assert await standing(store, *buckets) == [Standing(2, 1), Standing(3, 1), Standing(0, 1), Standing(12, 1)]


async def test_settling_twice_changes_nothing(store):
    """A settlement that is told again, also with other numbers, is not counted again."""
    bucket, other = counter(), counter("other")
    await store.reserve("h1", [bucket], [5], now_us=NOW)
    store.settle("h1", [2], also=[(other, 1)], now_us=NOW)
    store.settle("h1", [2], also=[(other, 1)], now_us=NOW)
    await store.settled()
    store.settle("h1", [4], also=[(other, 1)], now_us=NOW)
    assert await standing(store, bucket, other) == [Standing(2, 0), Standing(1, 0)]


async def test_settling_what_was_never_held_changes_nothing(store):
    """Of a hold that nobody took nothing is counted."""
    bucket = counter()
    await store.reserve("h1", [bucket], [5], now_us=NOW)
    store.settle("unknown", [2], also=[(bucket, 2)], now_us=NOW)
    assert await standing(store, bucket) == [Standing(0, 5)]


async def test_an_empty_settlement_is_of_zeros(store):
    """A release gives everything back."""
    buckets = [counter("a"), level("b"), gauge("c")]
    await store.reserve("h1", buckets, [5, 5, 5], now_us=NOW)
    store.settle("h1", (), now_us=NOW)
    assert await standing(store, *buckets) == [Standing()] * 3


async def test_more_or_less_of_what_was_taken(store):
    """What was taken at once is corrected at settlement: by attempts that were made besides, or by -1 for one that never left."""
    buckets = [counter("a", taken=True), counter("b", taken=True)]
    await store.reserve("h1", buckets, [1, 1], now_us=NOW)
    store.settle("h1", [2, -1], now_us=NOW)
    assert await standing(store, *buckets) == [Standing(3, 0), Standing(0, 0)]


async def test_a_level_is_not_given_back(store):
    """What was taken of a level has been leaking since, so a negative use of it is ignored; more of it is counted."""
    bucket = level(taken=True)
    await store.reserve("h1", [bucket], [1], now_us=NOW)
    store.settle("h1", [-1], now_us=NOW)
    assert await standing(store, bucket) == [Standing(1, 0)]
    await store.reserve("h2", [bucket], [1], now_us=NOW)
    store.settle("h2", [2], now_us=NOW)
    assert await standing(store, bucket) == [Standing(4, 0)]


async def test_a_gauge_is_never_used(store):
    """Whatever a settlement says was used of a gauge, it is back at what is held."""
    await store.reserve("h1", [gauge()], [2], now_us=NOW)
    store.settle("h1", [2], now_us=NOW)
    assert await standing(store, gauge()) == [Standing()]


async def test_use_of_other_buckets(store):
    """A settlement may count in buckets that the hold did not cover, those that are known or have just begun; what is not known is left to the ledger."""
    known, fresh, unknown, fresh_level = counter("known"), counter("fresh"), counter("unknown", fresh=False), level("fresh-level")
    await store.reserve("h0", [known], [1], now_us=NOW)
    await store.reserve("h1", [], [], now_us=NOW)
    also = [(known, 2), (fresh, 3), (unknown, 4), (fresh_level, 5), (gauge(), 6)]
    store.settle("h1", [], also=also, now_us=NOW)
    assert await standing(store, known, fresh, unknown, fresh_level, gauge()) == [Standing(2, 1), Standing(3, 0), None, Standing(5, 0), Standing()]
    await store.reserve("h2", [], [], now_us=NOW)
    store.settle("h2", [], also=[(known, -2), (fresh_level, -2)], now_us=NOW)
    assert await standing(store, known, fresh_level) == [Standing(0, 1), Standing(5, 0)]


async def test_nothing_in_flight_is_nothing_held(store):
    """After many requests of many buckets, each settled with what it used, nothing is held of any, and exactly the sum is used."""
    chance = random.Random(20261122)
    buckets = [counter(f"c{n}", room=AMOUNT_MAX) for n in range(5)] + [level("l", room=AMOUNT_MAX), gauge("g", room=AMOUNT_MAX)]
    sums = [0] * len(buckets)
    for n in range(200):
        held = [chance.randrange(10**9) for _ in buckets]
        await store.reserve(f"h{n}", buckets, held, now_us=NOW)
        used = [chance.randrange(units + 1) for units in held]
        store.settle(f"h{n}", used, now_us=NOW)
        sums = [total + units for total, units in zip(sums, used, strict=True)]
    assert await standing(store, *buckets) == [*(Standing(total, 0) for total in sums[:-1]), Standing()]


# Extending


async def test_a_hold_grows(store):
    """A stream that outgrows what it reserved holds more, and its settlement ends all of it."""
    buckets = [counter("a"), level("b"), gauge("c")]
    await store.reserve("h1", buckets, [2, 2, 1], now_us=NOW)
    assert await store.extend("h1", [3, 4, 0], now_us=NOW) == Reserved((Standing(0, 5), Standing(0, 6), Standing(0, 1)))
    store.settle("h1", [4, 4, 0], now_us=NOW)
    assert await standing(store, *buckets) == [Standing(4, 0), Standing(4, 0), Standing()]


async def test_only_a_limit_that_ends_streams_refuses_to_extend(store):
    """What a stream under way uses is counted beyond the room of other limits, which are named."""
    buckets = [counter("a", 5), counter("b", 5, enforced=False), gauge("c", 5), counter("d", 50, ends_streams=True)]
    await store.reserve("h1", buckets, [5, 5, 1, 5], now_us=NOW)
    assert await store.extend("h1", [5, 5, 0, 5], now_us=NOW) == Reserved((Standing(0, 10), Standing(0, 10), Standing(0, 1), Standing(0, 10)), (0, 1))


async def test_a_refused_extension_adds_nothing(store):
    """Where one limit ends the stream, no bucket holds more than before."""
    buckets = [counter("a"), counter("b", 5, ends_streams=True), level("c", 5, ends_streams=True)]
    await store.reserve("h1", buckets, [1, 4, 4], now_us=NOW)
    assert await store.extend("h1", [2, 2, 2], now_us=NOW) == Refused((Shortage(1, Standing(0, 4), 0), Shortage(2, Standing(0, 4), 0)))
    assert await standing(store, *buckets) == [Standing(0, 1), Standing(0, 4), Standing(0, 4)]
    assert await store.extend("h1", [2, 1, 1], now_us=NOW) == Reserved((Standing(0, 3), Standing(0, 5), Standing(0, 5)))


async def test_a_shadow_limit_does_not_end_streams(store):
    """A limit that only decides and records never ends a stream, whatever its action would be."""
    bucket = counter(room=5, ends_streams=True, enforced=False)
    await store.reserve("h1", [bucket], [5], now_us=NOW)
    assert await store.extend("h1", [1], now_us=NOW) == Reserved((Standing(0, 6),), (0,))


async def test_a_bucket_of_which_nothing_more_is_asked_does_not_stand_in_the_way(store):
    """An overfull limit ends a stream only when the stream asks more of it."""
    buckets = [counter("a", 5, ends_streams=True), counter("b")]
    await store.reserve("h1", buckets, [3, 1], now_us=NOW)
    await store.reserve("h2", buckets, [2, 1], now_us=NOW)
    store.settle("h2", [9, 1], now_us=NOW)
    await store.settled()
    assert await store.extend("h1", [0, 1], now_us=NOW) == Reserved((Standing(9, 3), Standing(1, 2)))
    assert isinstance(await store.extend("h1", [1, 1], now_us=NOW), Refused)


async def test_extending_an_ended_hold(store):
    """A stream that was settled meanwhile holds nothing more."""
    bucket = counter()
    await store.reserve("h1", [bucket], [1], now_us=NOW)
    store.settle("h1", [1], now_us=NOW)
    await store.settled()
    assert await store.extend("h1", [3], now_us=NOW) == Reserved(())
    assert await standing(store, bucket) == [Standing(1, 0)]


# Corrections


async def test_a_charge_counts_once(store):
    """An adjustment corrects each counter once, however often it is told."""
    buckets = [counter("a"), counter("b")]
    await store.reserve("h1", buckets, [5, 5], now_us=NOW)
    store.settle("h1", [5, 5], now_us=NOW)
    await store.settled()
    for _ in range(2):
        await store.charge("adj-1", [(buckets[0], -2)])
    await store.charge("adj-1", [(buckets[0], -2), (buckets[1], 3)])
    await store.charge("adj-2", [(buckets[0], -2)])
    assert await standing(store, *buckets) == [Standing(1, 0), Standing(8, 0)]


async def test_a_charge_may_take_a_counter_below_zero(store):
    """A counter follows the ledger, also where an adjustment takes back what was counted elsewhere."""
    bucket = counter()
    await store.seed([Seed(bucket, 1, NOW)])
    await store.charge("adj-1", [(bucket, -3)])
    assert await standing(store, bucket) == [Standing(-2, 0)]
    assert await store.reserve("h1", [bucket], [12], now_us=NOW) == Reserved((Standing(-2, 12),))


async def test_a_charge_leaves_alone_what_is_not_a_known_counter(store):
    """The ledger will tell of an unknown counter, adjustment included; a level and a gauge are not corrected."""
    unknown, high, holding = counter("unknown"), level(), gauge()
    await store.reserve("h1", [high, holding], [2, 2], now_us=NOW)
    await store.charge("adj-1", [(unknown, 5), (high, 5), (holding, 5)])
    assert await standing(store, counter("unknown", fresh=False), high, holding) == [None, Standing(0, 2), Standing(0, 2)]


async def test_a_seed_includes_its_adjustments(store):
    """What the ledger had counted when it was asked is not counted again when the adjustment is told."""
    bucket = counter(fresh=False)
    await store.seed([Seed(bucket, 5, NOW, ("adj-1", "adj-2"))])
    await store.charge("adj-1", [(bucket, 1)])
    await store.charge("adj-3", [(bucket, 1)])
    assert await standing(store, bucket) == [Standing(6, 0)]


# Holds


async def test_holds_have_owners(store):
    """Each hold says who took it and what it holds, until it is settled; what was taken at once is not held."""
    buckets = [counter("a"), level("b", taken=True), gauge("c")]
    await store.reserve("h1", buckets, [5, 1, 1], now_us=NOW)
    await store.reserve("h2", buckets[:1], [2], now_us=NOW)
    await store.extend("h2", [2], now_us=NOW)
    first = Hold("h1", OWNER, (("a", 5), ("b", 0), ("c", 1)))
    second = Hold("h2", OWNER, (("a", 4),))
    assert sorted(await store.holds(), key=lambda hold: hold.hold_id) == [first, second]
    assert sorted(await store.holds(OWNER), key=lambda hold: hold.hold_id) == [first, second]
    assert await store.holds("another") == []
    store.settle("h1", [5, 0, 0], now_us=NOW)
    await store.settled()
    assert await store.holds() == [second]


async def test_room_is_told(store):
    """Whoever was refused is told of each bucket of which something was given back, and of no other."""
    told: list[str] = []
    store.when_room(told.append)
    buckets = [counter("a"), gauge("b"), counter("c", taken=True), level("d")]
    await store.reserve("h1", buckets, [5, 1, 1, 2], now_us=NOW)
    assert isinstance(await store.reserve("h2", buckets, [50, 50, 50, 50], now_us=NOW), Refused)
    store.settle("h1", [1, 0, 0, 2], now_us=NOW)
    await store.settled()
    await until(lambda: {"a", "b", "d"} <= set(told))
    assert "c" not in told
    told.clear()
    await store.charge("adj-1", [(buckets[0], -1)])
    await until(lambda: "a" in told)


async def test_room_can_be_taken_by_whoever_is_told(store):
    """When it is told that there is room, there is."""
    bucket = gauge(room=1)
    answers: list[Any] = []
    tasks: list[asyncio.Task[None]] = []

    async def take() -> None:
        answers.append(await store.reserve("h2", [bucket], [1], now_us=NOW))

    store.when_room(lambda _: tasks.append(asyncio.ensure_future(take())))
    await store.reserve("h1", [bucket], [1], now_us=NOW)
    assert isinstance(await store.reserve("h2", [bucket], [1], now_us=NOW), Refused)
    store.settle("h1", [0], now_us=NOW)
    await store.settled()
    await until(lambda: bool(answers))
    await asyncio.gather(*tasks)
    assert answers[0] == Reserved((Standing(0, 1),))


# All of it together


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_is_answered_as_the_engine_does(store, seed):
    """Random histories of all operations, with names that repeat, leave every store where the engine in memory stands."""
    chance = random.Random(seed)
    engine = Buckets(OWNER)
    every = [make(f"{make.__name__}{n}", chance.randrange(5, 60)) for make in (counter, level, gauge) for n in range(4)]
    lengths: dict[str, int] = {}
    for step in range(250):
        hold_id = f"h{chance.randrange(40)}"
        buckets = [
            Bucket(
                bucket.bucket_id,
                bucket.kind,
                bucket.room,
                enforced=chance.random() < 0.8,
                taken=bucket.kind is not Kind.GAUGE and chance.random() < 0.3,
                ends_streams=chance.random() < 0.5,
                refill=bucket.refill,
                period_us=bucket.period_us,
                fresh=chance.random() < 0.7,
                ends_us=bucket.ends_us,
            )
            for bucket in chance.sample(every, chance.randrange(1, 7))
        ]
        units = [chance.randrange(6) for _ in buckets]
        match chance.choice(["reserve", "reserve", "extend", "settle", "settle", "charge", "seed", "standings"]):
            case "reserve":
                if hold_id in lengths:
                    continue
                answer = await store.reserve(hold_id, buckets, units, now_us=NOW)
                assert without_waits(answer) == without_waits(engine.reserve(hold_id, buckets, units, now_us=NOW))
                if isinstance(answer, Reserved):
                    lengths[hold_id] = len(buckets)
            case "extend":
                more = [chance.randrange(4) for _ in range(lengths.get(hold_id, 2))]
                answer = await store.extend(hold_id, more, now_us=NOW)
                assert without_waits(answer) == without_waits(engine.extend(hold_id, more, now_us=NOW))
            case "settle":
                used = [chance.randrange(-1, 6) for _ in range(lengths.pop(hold_id, 0))]
                also = [(bucket, chance.randrange(4)) for bucket in chance.sample(buckets, chance.randrange(len(buckets)))]
                store.settle(hold_id, used, also=also, now_us=NOW)
                engine.settle(hold_id, used, also=also, now_us=NOW)
                await store.settled()
            case "charge":
                charges = [(bucket, chance.randrange(-3, 4)) for bucket in buckets]
                await store.charge(f"adj-{step // 10}", charges)
                engine.charge(f"adj-{step // 10}", charges)
            case "seed":
                seeds = [Seed(bucket, units, NOW, (f"adj-{step // 10}",)) for bucket, units in zip(buckets, units, strict=True)]
                await store.seed(seeds)
                engine.seed(seeds)
            case _:
                assert await store.standings(buckets, now_us=NOW) == engine.standings(buckets, now_us=NOW)
        held = {hold.hold_id: hold for hold in await store.holds()} if step % 10 == 0 else None
        assert held is None or held == {hold.hold_id: hold for hold in engine.holds()}
    assert await standing(store, *every) == engine.standings(every, now_us=NOW)


def without_waits(answer: Any) -> Any:
    """The answer without the times of levels, which a shared store reads from its own clock."""
    if isinstance(answer, Refused):
        return [(shortage.index, shortage.standing, shortage.wait_us == NEVER, shortage.wait_us == 0) for shortage in answer.shortages]
    return answer
