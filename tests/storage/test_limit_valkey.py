"""What the shared store of limits promises beyond the suite of all stores: exact arithmetic in a script, several processes, a server in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenweir.errors import SecretExposed, SettingsInvalid, StoreUnavailable
from tokenweir.limits.bucket import Bucket, Hold, Kind, Refused, Reserved, Seed, Standing, Unseeded
from tokenweir.limits.buckets import Buckets
from tokenweir.limits.cycle import PERIOD_US_MAX
from tokenweir.limits.limit import AMOUNT_MAX
from tokenweir.periods import DAY_US, SECOND_US
from tokenweir.settings import LimitSettings, load_settings
from tokenweir.storage import limit_valkey
from tokenweir.storage.limit_packing import SAFE
from tokenweir.storage.limit_valkey import ValkeyLimitStore
from valkeys import Server, limit_settings, needs_valkey, own_server, shared_server

pytestmark = needs_valkey

NOW = time.time_ns() // 1000
COMMON = (Path(limit_valkey.__file__).parent / "limit_scripts" / "common.lua").read_text("utf-8")


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not seen():  # noqa: ASYNC110 -- what is waited for is whatever the caller says
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def opened(settings_: LimitSettings, owner: str = "gateway-1", **more: Any) -> AsyncIterator[ValkeyLimitStore]:
    store = ValkeyLimitStore(settings_, owner=owner, **more)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def server() -> Iterator[Server]:
    started = own_server()
    yield started
    started.kill()


def counter(name: str = "counter", room: int = 10, **more: Any) -> Bucket:
    return Bucket(name, Kind.COUNTER, room, **{"fresh": True, "ends_us": NOW + DAY_US} | more)


def level(name: str = "level", room: int = 10, **more: Any) -> Bucket:
    return Bucket(name, Kind.LEVEL, room, **{"fresh": True, "refill": 10, "period_us": DAY_US} | more)


def gauge(name: str = "gauge", room: int = 10, **more: Any) -> Bucket:
    return Bucket(name, Kind.GAUGE, room, **more)


def keys(server: Server) -> set[str]:
    return set(re.findall(r"\{[^\r\n]+", server.ask("KEYS", "*").decode()))


# Arithmetic


def eval_common(tail: str, *arguments: bytes) -> bytes:
    """Run some lines with what all scripts begin with; numbers come packed, as they do for the scripts."""
    import hiredis

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(shared_server().socket))
        connection.sendall(hiredis.pack_command(("EVAL", COMMON + tail, 2, "{x}:", "{x}:room", b"", "nobody", "", *arguments)))
        reader = hiredis.Reader()
        while (reply := reader.gets()) is False:
            reader.feed(connection.recv(65536))
    assert isinstance(reply, bytes), reply
    return reply


PERIODS = st.one_of(st.integers(1, PERIOD_US_MAX), st.sampled_from([1, 2, 3, SECOND_US, 60 * SECOND_US, DAY_US, 366 * DAY_US, 2**51]))
WHOLES = st.one_of(st.integers(0, SAFE), st.sampled_from([0, 1, AMOUNT_MAX, AMOUNT_MAX - 1, SAFE, 2**52, 2**52 - 1]), st.integers(0, 10**6))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(PERIODS, WHOLES, st.integers(0, 2**52)), min_size=50, max_size=200))
@example([(2**51, SAFE, 2**51 - 1), (366 * DAY_US, AMOUNT_MAX, 366 * DAY_US - 1), (1, SAFE, 0), (3, SAFE, 2)])
def test_a_product_that_no_double_holds_is_divided_exactly(cases):
    """x * y / p is worked out to the last unit for every period and amount there can be, as Python does with whole numbers."""
    cases = [(x % p, y, p) for p, y, x in cases]
    tail = """
    local out = {}
    for i = 1, #ARGV[4] / 24 do
      local quotient, rest = times_over(units_at(ARGV[4], 3 * i - 2), units_at(ARGV[4], 3 * i - 1), units_at(ARGV[4], 3 * i))
      out[i] = struct.pack('<i8i8', quotient, rest)
    end
    return table.concat(out)
    """
    reply = eval_common(tail, b"".join(struct.pack("<3q", *case) for case in cases))
    found = list(struct.iter_unpack("<2q", reply))
    assert found == [divmod(x * y, p) for x, y, p in cases]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Bucket, int, int]]:
    """Uses of one level at all times, with amounts and periods that change. Where the clock is set back now and then, every use is admitted: a script
    does not write down that a level leaked while it was only looked at, so it may leak later what the engine has let go before the clock went back."""
    amounts = st.one_of(st.integers(1, AMOUNT_MAX), st.integers(1, 1000))
    periods = st.one_of(st.integers(SECOND_US, PERIOD_US_MAX), st.sampled_from([SECOND_US, 60 * SECOND_US, DAY_US, PERIOD_US_MAX]))
    refill, period_us, set_back = draw(amounts), draw(periods), draw(st.booleans())
    now_us, steps = NOW, []
    for _ in range(draw(st.integers(5, 30))):
        now_us += draw(st.one_of(st.integers(0, 3 * period_us), st.integers(0, 1000)))
        if set_back and draw(st.integers(0, 3)) == 0:
            now_us -= draw(st.integers(0, 3 * period_us))
        if draw(st.integers(0, 5)) == 0:
            refill, period_us = draw(amounts), draw(st.one_of(st.just(period_us), periods))
        bucket = level("level", refill, refill=refill, period_us=period_us, taken=draw(st.booleans()), enforced=not set_back)
        what = "take" if set_back else draw(st.sampled_from(["take", "take", "look"]))
        steps.append((what, bucket, draw(st.integers(0, refill)), now_us))
    return steps


RUNNER = asyncio.Runner()


@pytest.fixture(scope="module", autouse=True)
def _closed_runner() -> Iterator[None]:
    yield
    RUNNER.close()


LEVEL = level("level", 1, refill=1, period_us=SECOND_US, enforced=False)


@settings(max_examples=60, deadline=None)
@given(histories())
@example([("take", LEVEL, 0, NOW + 1), ("take", LEVEL, 1, NOW), ("take", LEVEL, 0, NOW + SECOND_US)])
def test_levels_leak_to_the_last_fraction_as_in_python(history):
    """A history of a rolling limit is answered by the script, waits included, as by the engine with whole numbers of any size."""
    engine = Buckets("gateway-1")

    async def live() -> None:
        async with opened(limit_settings(shared_server(), store_timeout_ms=5_000), clock="caller") as store:
            for n, (what, bucket, units, now_us) in enumerate(history):
                if what == "look":
                    assert await store.standings([bucket], now_us=now_us) == engine.standings([bucket], now_us=now_us)
                else:
                    answer = await store.reserve(f"h{n}", [bucket], [units], now_us=now_us)
                    assert answer == engine.reserve(f"h{n}", [bucket], [units], now_us=now_us)
                    used = 0 if bucket.taken else units - units // 3
                    store.settle(f"h{n}", [used], now_us=now_us)
                    engine.settle(f"h{n}", [used], now_us=now_us)

    RUNNER.run(live())


async def test_what_cannot_be_counted_stays_at_the_most_there_is():
    """Beyond 2^53 a sum is held at it, and refuses; it does not wrap around or lose its last digits unnoticed."""
    bucket = counter(room=AMOUNT_MAX, enforced=False)
    async with opened(limit_settings(shared_server(), store_timeout_ms=5_000)) as store:
        for n in range(4):
            await store.reserve(f"h{n}", [bucket], [0], now_us=NOW)
            store.settle(f"h{n}", [AMOUNT_MAX], now_us=NOW)
        await store.settled()
        assert await store.standings([bucket], now_us=NOW) == [Standing(SAFE, 0)]
        assert isinstance(await store.reserve("last", [counter(room=AMOUNT_MAX)], [0], now_us=NOW), Refused)


# Several processes

PROCESS = """
import asyncio, sys
from pydantic import SecretStr
from tokenweir.limits.bucket import Bucket, Kind, Reserved
from tokenweir.settings import LimitSettings, load_settings
from tokenweir.storage.limit_valkey import ValkeyLimitStore

async def main(url, prefix, owner):
    store = ValkeyLimitStore(LimitSettings(store_url=SecretStr(url), store_prefix=prefix, store_timeout_ms=10_000), owner=owner)
    await store.open()
    buckets = (
        Bucket("budget", Kind.COUNTER, 10, fresh=True, ends_us=2**51),
        Bucket("rate", Kind.LEVEL, 10, fresh=True, refill=1, period_us=366 * 86_400_000_000),
        Bucket("concurrency", Kind.GAUGE, 10),
    )
    ask = lambda round_, n: store.reserve(f"{owner}-{round_}-{n}", buckets, (1, 1, 1), now_us=0)
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    for round_ in range(50):
        await loop.run_in_executor(None, sys.stdin.readline)
        answers = await asyncio.gather(*(ask(round_, n) for n in range(64)))
        print(sum(isinstance(answer, Reserved) for answer in answers), flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        for n in range(64):
            store.settle(f"{owner}-{round_}-{n}", (), now_us=0)
        await store.settled()
        print("settled", flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def start_process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROCESS, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_four_processes_at_once():
    """256 requests of four processes for a room of ten are exactly ten admissions, fifty times, and nothing is held in between."""
    settings_ = limit_settings(shared_server(), store_timeout_ms=5_000)
    url = shared_server().url.get_secret_value()
    processes = [start_process(url, settings_.store_prefix, f"process-{n}") for n in range(4)]

    def said() -> list[str]:
        return [process.stdout.readline().strip() for process in processes]

    def go() -> None:
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()

    try:
        assert await asyncio.to_thread(said) == ["ready"] * 4
        async with opened(settings_, "watcher") as watcher:
            for _ in range(50):
                go()
                admitted = await asyncio.to_thread(said)
                assert sum(map(int, admitted)) == 10
                assert len(await watcher.holds()) == 10
                go()
                assert await asyncio.to_thread(said) == ["settled"] * 4
                assert await watcher.holds() == []
                everything = [counter("budget"), level("rate"), gauge("concurrency")]
                assert await watcher.standings(everything, now_us=NOW) == [Standing()] * 3
        assert [process.wait(20) for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


async def test_the_holds_of_a_dead_process_are_ended_by_another():
    """Whoever knows what became of them settles them, in the order in which `holds` tells their buckets; nobody else's are touched."""
    settings_ = limit_settings(shared_server(), store_timeout_ms=5_000)
    buckets = (counter("budget"), level("rate", taken=True), gauge("concurrency"))
    dead = ValkeyLimitStore(settings_, owner="dead")
    await dead.reserve("h1", buckets, (4, 1, 1), now_us=NOW)
    await dead.reserve("h2", buckets, (3, 1, 1), now_us=NOW)
    await dead._news.close()
    await dead._valkey.close()
    async with opened(settings_, "alive") as alive, opened(settings_, "worker") as worker:
        await alive.reserve("h3", buckets, (2, 1, 1), now_us=NOW)
        left = {hold.hold_id: hold for hold in await worker.holds("dead")}
        assert left["h1"] == Hold("h1", "dead", (("budget", 4), ("rate", 0), ("concurrency", 1)))
        assert left.keys() == {"h1", "h2"}
        worker.settle("h1", (3, 0, 0), now_us=NOW)
        worker.settle("h2", (), now_us=NOW)
        await worker.settled()
        assert await worker.holds("dead") == []
        assert await worker.standings(buckets, now_us=NOW) == [Standing(3, 2), Standing(3, 0), Standing(0, 1)]
        assert [hold.hold_id for hold in await worker.holds()] == ["h3"]


async def test_news_reach_other_processes():
    """Who was refused in one process is told of room that another gave back; of what nobody was refused nobody is told."""
    settings_ = limit_settings(shared_server(), store_timeout_ms=5_000)
    told: list[str] = []
    async with opened(settings_, "one") as one, opened(settings_, "two") as two:
        one.when_room(told.append)
        for n in range(2):
            await two.reserve(f"h{n}", [gauge(f"g{n}", 1)], [1], now_us=NOW)
        assert isinstance(await one.reserve("h2", [gauge("g1", 1)], [1], now_us=NOW), Refused)
        for n in range(2):
            two.settle(f"h{n}", (), now_us=NOW)
        await until(lambda: bool(told))
        assert told == ["g1"]


async def test_news_that_overtake_the_refusal_are_told_again():
    """Room that is given back while the refusal is on its way to us would be missed: nobody was waiting yet."""
    told: list[str] = []
    async with opened(limit_settings(shared_server(), store_timeout_ms=5_000)) as store:
        await store.reserve("h1", [gauge(room=1)], [1], now_us=NOW)
        store.when_room(told.append)
        refused = asyncio.ensure_future(store.reserve("h2", [gauge(room=1)], [1], now_us=NOW))
        await asyncio.sleep(0)
        store._on_news(b"gauge")
        told.clear()
        assert isinstance(await refused, Refused)
        await until(lambda: bool(told))
        assert told == ["gauge"]


# A store in trouble


async def test_a_store_that_we_let_go_has_not_failed(server):
    """Whoever closes a store is not told that it is unavailable: every command that reads one would warn."""
    changes: list[bool] = []
    async with opened(limit_settings(server), on_change=lambda up, _: changes.append(up)) as store:
        await store.standings([], now_us=NOW)
    assert changes == [True]


async def test_a_frozen_store_takes_nothing_in_the_end(server):
    """A reservation that raised is released when the store goes on, even if the store had read it and does it then; every operation raises meanwhile."""
    changes: list[bool] = []
    buckets = (counter(), gauge())
    async with opened(limit_settings(server), on_change=lambda up, _: changes.append(up)) as store:
        await store.reserve("before", buckets, (1, 1), now_us=NOW)
        server.freeze()
        async with asyncio.timeout(5):
            operations = [store.reserve(f"h{n}", buckets, (1, 1), now_us=NOW) for n in range(5)]
            operations += [
                store.extend("before", (1, 0), now_us=NOW),
                store.standings(buckets, now_us=NOW),
                store.holds(),
                store.charge("c", [(buckets[0], 1)]),
            ]
            answers = await asyncio.gather(*operations, store.seed([Seed(counter("other"), 3, NOW)]), store.settled(), return_exceptions=True)
        assert [type(answer) for answer in answers[:-1]] == [StoreUnavailable] * 10
        for attempt in range(3):
            with pytest.raises(StoreUnavailable):
                store.reserve(f"later-{attempt}", buckets, (1, 1), now_us=NOW).send(None)
        server.thaw()
        await until(lambda: store.up)
        await store.settled()
        (hold,) = await store.holds()
        assert hold.hold_id == "before"
        used, concurrency = await store.standings(buckets, now_us=NOW)
        assert concurrency == Standing(0, 1)
        assert used is not None
        assert used.held == hold.units[0][1]
        store.settle("before", (1, 0), now_us=NOW)
        await store.settled()
        assert [standing.held for standing in await store.standings(buckets, now_us=NOW)] == [0, 0]
        assert changes == [True, False, True]


async def test_commands_of_a_connection_that_was_given_up_are_not_done():
    """What still reaches the server on an old connection, after the new one has begun, is refused there: nothing is taken, extended or ended twice."""
    settings_ = limit_settings(shared_server(), store_timeout_ms=5_000)
    async with opened(settings_) as old, opened(settings_) as new:
        await new.reserve("h1", [counter()], [3], now_us=NOW)
        old.settle("h1", [3], now_us=NOW)
        with pytest.raises(StoreUnavailable):
            await old.reserve("h2", [counter()], [3], now_us=NOW)
        # Each shuts the other out, as soon as it comes back; neither has done anything as the other.
        assert not old.up
        assert old.untold == 2


async def test_a_killed_store_is_told_again(server):
    """After a restart nothing is believed: counters are asked of the ledger, and each process tells again what it holds."""
    settings_ = limit_settings(server)
    budget, slots = counter("budget", fresh=False), gauge("slots", 2)
    async with opened(settings_, "one") as one, opened(settings_, "two") as two:
        await one.seed([Seed(budget, 5, NOW)])
        await one.reserve("h1", (budget, slots), (2, 1), now_us=NOW)
        await one.extend("h1", (1, 0), now_us=NOW)
        await two.reserve("h2", (budget, slots), (1, 1), now_us=NOW)
        server.kill()
        await until(lambda: not one.up and not two.up)
        two.settle("h2", (1, 0), now_us=NOW)
        server.start()
        await until(lambda: one.up and two.up)
        await two.settled()
        assert await one.reserve("h3", (budget, slots), (1, 1), now_us=NOW) == Unseeded((0,))
        assert await one.standings((budget, slots), now_us=NOW) == [None, Standing(0, 1)]
        assert await two.holds() == [Hold("h1", "one", (("budget", 3), ("slots", 1)))]
        # By now the ledger knows of what the second used.
        await one.seed([Seed(budget, 6, NOW)])
        assert isinstance(await one.reserve("h4", (budget, slots), (2, 1), now_us=NOW), Refused)
        assert await one.reserve("h5", (budget, slots), (1, 1), now_us=NOW) == Reserved((Standing(6, 4), Standing(0, 2)))
        one.settle("h1", (3, 0), now_us=NOW)
        one.settle("h5", (1, 0), now_us=NOW)
        await one.settled()
        assert await two.standings((budget, slots), now_us=NOW) == [Standing(10, 0), Standing()]


async def test_a_flushed_store(server):
    """A server that forgot everything while it ran is noticed with the next reservation, which fails, and then is as after a restart."""
    budget, slots = counter("budget", fresh=False), gauge("slots", 2)
    async with opened(limit_settings(server)) as store:
        await store.seed([Seed(budget, 5, NOW)])
        await store.reserve("h1", (budget, slots), (2, 1), now_us=NOW)
        server.ask("FLUSHALL")
        with pytest.raises(StoreUnavailable):
            await store.reserve("h2", (budget, slots), (1, 1), now_us=NOW)
        await until(lambda: store.up)
        assert await store.reserve("h3", (budget, slots), (1, 1), now_us=NOW) == Unseeded((0,))
        assert await store.standings((budget, slots), now_us=NOW) == [None, Standing(0, 1)]
        # A settlement finds its hold, too; what it used is for the ledger to say, as long as nobody asked it.
        server.ask("FLUSHALL")
        store.settle("h1", (2, 0), now_us=NOW)
        await until(lambda: store.up and not store.untold)
        assert await store.standings((budget, slots), now_us=NOW) == [None, Standing()]
        assert await store.holds() == []


async def test_an_old_copy_is_not_believed(server):
    """A server that comes back with what it knew a while ago would give out room that was used since: its earlier life is swept away."""
    budget = counter("budget")
    async with opened(limit_settings(server)) as store:
        await store.reserve("h1", (budget,), (2,), now_us=NOW)
        assert server.ask("SAVE") == b"+OK\r\n"
        store.settle("h1", (2,), now_us=NOW)
        await store.settled()
        before = keys(server)
        server.kill()
        await until(lambda: not store.up)
        server.start()
        await until(lambda: store.up)
        assert await store.standings([counter("budget", fresh=False)], now_us=NOW) == [None]
        assert await store.holds() == []
        lasting = {key for key in before if key.endswith(":life")}
        await until(lambda: not (before - lasting) & keys(server))


async def test_settlements_of_a_store_that_is_down_are_told_later(server, monkeypatch):
    """They wait, at most so many, and are told once the store is back; each counts once."""
    monkeypatch.setattr(limit_valkey, "UNTOLD_MAX", 20)
    buckets = (counter(room=100), gauge(room=100))
    async with opened(limit_settings(server)) as store:
        for n in range(30):
            await store.reserve(f"h{n}", buckets, (1, 1), now_us=NOW)
        server.freeze()
        for n in range(10):
            store.settle(f"h{n}", (1, 0), now_us=NOW)
        await until(lambda: not store.up)
        for n in range(25):
            store.settle(f"h{n}", (1, 0), now_us=NOW)
        assert store.untold == 20
        assert store.untold_dropped == 5
        with pytest.raises(StoreUnavailable):
            await store.settled()
        server.thaw()
        await until(lambda: store.up)
        await store.settled()
        assert store.untold == 0
        assert await store.standings(buckets, now_us=NOW) == [Standing(20, 10), Standing(0, 10)]


async def test_many_settlements_do_not_keep_requests_waiting(server):
    """After a long outage thousands are told bit by bit, and a reservation is answered within its bound meanwhile."""
    bucket = counter(room=AMOUNT_MAX)
    async with opened(limit_settings(server)) as store:
        holds = [f"h{n}" for n in range(3_000)]
        for some in (holds[first : first + 200] for first in range(0, 3_000, 200)):
            await asyncio.gather(*(store.reserve(hold_id, [bucket], [1], now_us=NOW) for hold_id in some))
        server.freeze()
        await until(lambda: not store.up)
        for hold_id in holds:
            store.settle(hold_id, [1], now_us=NOW)
        server.thaw()
        await until(lambda: store.up)
        assert isinstance(await store.reserve("new", [bucket], [1], now_us=NOW), Reserved)
        assert store.untold > 0
        await store.settled()
        assert await store.standings([bucket], now_us=NOW) == [Standing(3_000, 1)]


async def test_a_hold_that_is_taken_again_right_after_the_outage(server):
    """The release of the reservation that raised comes first, whatever else is waiting to be told."""
    async with opened(limit_settings(server)) as store:
        holds = [f"h{n}" for n in range(300)]
        await asyncio.gather(*(store.reserve(hold_id, [counter(room=1000)], [1], now_us=NOW) for hold_id in holds))
        server.freeze()
        again = asyncio.ensure_future(store.reserve("again", [counter(room=1000)], [1], now_us=NOW))
        for hold_id in holds:
            store.settle(hold_id, (), now_us=NOW)
        with pytest.raises(StoreUnavailable):
            await again
        server.thaw()
        await until(lambda: store.up)
        assert isinstance(await store.reserve("again", [counter(room=1000)], [1], now_us=NOW), Reserved)
        await store.settled()
        assert [hold.hold_id for hold in await store.holds()] == ["again"]


async def test_a_request_that_went_away_while_it_asked():
    """A reservation whose caller is cancelled is released, whether or not the store had done it."""
    async with opened(limit_settings(shared_server(), store_timeout_ms=5_000)) as store:
        asking = asyncio.ensure_future(store.reserve("h1", [counter()], [1], now_us=NOW))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await store.settled()
        assert await store.holds() == []
        assert await store.standings([counter()], now_us=NOW) == [Standing()]


async def test_a_request_that_went_away_gives_back_what_was_taken_at_once():
    """Nothing was sent, so the number of requests is what it was: the counter must agree with the ledger, which has no attempt."""
    requests = counter("requests", taken=True)
    async with opened(limit_settings(shared_server(), store_timeout_ms=5_000)) as store:
        asking = asyncio.ensure_future(store.reserve("h1", [requests, counter("tokens")], [1, 5], now_us=NOW))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await store.settled()
        assert await store.standings([requests, counter("tokens")], now_us=NOW) == [Standing(), Standing()]


async def test_requests_under_way_at_a_flush_are_counted_when_they_end(server):
    """What was taken at once is held again after the flush, since the ledger does not know it yet: no room is given out twice, and it is used in the end."""
    requests = counter("requests", room=3, taken=True, fresh=False)
    async with opened(limit_settings(server)) as store:
        await store.seed([Seed(requests, 0, NOW)])
        for hold_id in ("h1", "h2"):
            await store.reserve(hold_id, (requests,), (1,), now_us=NOW)
        server.ask("FLUSHALL")
        with pytest.raises(StoreUnavailable):
            await store.reserve("h3", (requests,), (1,), now_us=NOW)
        await until(lambda: store.up)
        await store.seed([Seed(requests, 0, NOW)])
        assert await store.standings((requests,), now_us=NOW) == [Standing(0, 2)]
        assert isinstance(await store.reserve("h3", (requests,), (1,), now_us=NOW), Reserved)
        assert isinstance(await store.reserve("h4", (requests,), (1,), now_us=NOW), Refused)
        store.settle("h1", (0,), now_us=NOW)  # sent once
        store.settle("h2", (-1,), now_us=NOW)  # never sent
        store.settle("h3", (1,), now_us=NOW)  # sent twice
        await store.settled()
        assert await store.standings((requests,), now_us=NOW) == [Standing(3, 0)]


async def test_numbers_that_no_script_can_count_do_not_keep_a_hold():
    """A provider that states absurd counts ends its hold all the same: the counter is at the most there is."""
    async with opened(limit_settings(shared_server())) as store:
        await store.reserve("h1", [counter("spend", room=AMOUNT_MAX)], [1], now_us=NOW)
        store.settle("h1", [2**70], also=[(counter("other"), 2**70)], now_us=NOW)
        await store.settled()
        assert await store.holds() == []
        assert (await store.standings([counter("spend")], now_us=NOW))[0].held == 0


async def test_scripts_that_the_server_forgot(server):
    """Reservations and settlements go on as if nothing had happened."""
    async with opened(limit_settings(server, store_timeout_ms=2_000)) as store:
        server.ask("SCRIPT", "FLUSH")
        answers = await asyncio.gather(*(store.reserve(f"h{n}", [counter()], [1], now_us=NOW) for n in range(20)))
        assert sum(isinstance(answer, Reserved) for answer in answers) == 10
        server.ask("SCRIPT", "FLUSH")
        for n in range(20):
            store.settle(f"h{n}", [0], now_us=NOW)
        await store.settled()
        assert await store.standings([counter()], now_us=NOW) == [Standing()]


async def test_a_store_without_memory_keeps_nothing_half(server):
    """A server that is full takes a request whole or not at all, and is told the settlements when it has room."""
    buckets = (counter(), gauge())
    async with opened(limit_settings(server)) as store:
        await store.reserve("h1", buckets, (2, 1), now_us=NOW)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        store.settle("h1", (2, 0), now_us=NOW)
        with pytest.raises(StoreUnavailable):
            await store.reserve("h2", buckets, (1, 1), now_us=NOW)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: store.up and not store.untold)
        assert await store.standings(buckets, now_us=NOW) == [Standing(2, 0), Standing()]


async def test_closing_tells_what_is_left():
    """Settlements at the very end reach the store."""
    settings_ = limit_settings(shared_server(), store_timeout_ms=5_000)
    async with opened(settings_) as store:
        await store.reserve("h1", [counter()], [4], now_us=NOW)
        store.settle("h1", [2], now_us=NOW)
    async with opened(settings_, "other") as other:
        assert await other.standings([counter()], now_us=NOW) == [Standing(2, 0)]


async def test_a_settlement_of_another_length_is_a_mistake():
    """It is said where it is made, if the hold is one's own, and counted if not; the hold stays."""
    settings_ = limit_settings(shared_server(), store_timeout_ms=5_000)
    async with opened(settings_, "one") as one, opened(settings_, "two") as two:
        await one.reserve("h1", [counter()], [4], now_us=NOW)
        with pytest.raises(ValueError, match="1 buckets and was settled with 2"):
            one.settle("h1", [1, 2], now_us=NOW)
        two.settle("h1", [1, 2], now_us=NOW)
        await two.settled()
        assert two.refused_settlements == 1
        assert len(await two.holds()) == 1


# What the store keeps, and for how long


async def test_what_expires_and_what_does_not(server):
    """What is held never expires; a counter goes days after its cycle, a level once it is long empty, a gauge at zero, and holds with their end."""

    def expiry() -> dict[str, int]:
        return {key.split(":", 2)[2]: int(server.ask("TTL", key)[1:].strip()) for key in keys(server) if key.count(":") >= 2}

    buckets = (counter(), level(), gauge())
    async with opened(limit_settings(server)) as store:
        await store.reserve("h1", buckets, (5, 5, 1), now_us=NOW)
        held = expiry()
        assert {held[key] for key in ("b:counter", "b:level", "b:gauge", "h:h1", "o:gateway-1")} == {-1}
        store.settle("h1", (5, 5, 0), now_us=NOW)
        await store.charge("adj-1", [(buckets[0], 1)])
        left = expiry()
    assert left.keys() == {"b:counter", "c:counter", "b:level", "f:gateway-1", "owners"}
    ends_s = (buckets[0].ends_us - time.time_ns() // 1000) // SECOND_US + 2 * 86_400
    assert ends_s - 5 <= left["b:counter"] <= ends_s + 5
    assert abs(left["c:counter"] - left["b:counter"]) <= 5
    # Five of ten a day, and the unit that may have begun.
    assert 43_200 <= left["b:level"] <= 43_200 + 8_640 + 600


async def test_installations_do_not_see_each_other(server):
    """Two that share a server have keys of their own, and all keys of one are in one slot of a cluster."""
    async with opened(limit_settings(server, store_prefix="a")) as a, opened(limit_settings(server, store_prefix="b")) as b:
        await a.reserve("h1", [counter()], [10], now_us=NOW)
        assert isinstance(await b.reserve("h1", [counter()], [10], now_us=NOW), Reserved)
        await a.charge("adj-1", [(counter(), 1)])
    assert {key[:4] for key in keys(server)} == {"{a}:", "{b}:"}


async def test_the_levels_follow_the_servers_clock():
    """A process whose clock is wrong cannot make a level leak."""
    bucket = level(taken=True)
    async with opened(limit_settings(shared_server(), store_timeout_ms=5_000)) as store:
        await store.reserve("h1", [bucket], [10], now_us=NOW)
        assert isinstance(await store.reserve("h2", [bucket], [5], now_us=NOW + 365 * DAY_US), Refused)
        # Nor can one that is ahead keep it from leaking.
        await store.seed([Seed(level("ahead", refill=1_000, room=1_000, period_us=SECOND_US), 1_000, NOW + DAY_US)])
        async with asyncio.timeout(10):
            while await store.standings([level("ahead")], now_us=NOW) != [Standing()]:  # noqa: ASYNC110 -- the server's time is the event
                await asyncio.sleep(0.05)


async def test_names_of_any_kind():
    """Owners and sessions come from outside: spaces, line ends, braces and other scripts are kept apart and whole."""
    chance = random.Random(7)
    letters = "ab {}:*\n\r\0é漢😀|"
    names = dict.fromkeys("lim|" + "".join(chance.choice(letters) for _ in range(12)) for _ in range(30))
    async with opened(limit_settings(shared_server(), store_timeout_ms=5_000)) as store:
        buckets = [counter(name) for name in names]
        await store.reserve("h 1\n{x}", buckets, [n % 10 for n in range(len(buckets))], now_us=NOW)
        (hold,) = await store.holds()
        assert hold.hold_id == "h 1\n{x}"
        assert hold.units == tuple((bucket.bucket_id, n % 10) for n, bucket in enumerate(buckets))


async def test_a_store_that_is_not_set():
    """Without a URL there is nothing to open."""
    with pytest.raises(SettingsInvalid):
        ValkeyLimitStore(LimitSettings(), owner="gateway-1")


@pytest.mark.parametrize("url", ["http://:secret@host", "valkey://:secret@:1", "redis://:secret@host:port", "unix://:secret@"])
def test_a_wrong_url_is_told_with_all_other_problems(tmp_path, url):
    """What is wrong with the settings is said without the password."""
    file = tmp_path / "tokenweir.toml"
    file.write_text(f'[limits]\nstore_url = "{url}"\nstore_prefix = "{{x}}"\n')
    file.chmod(0o600)
    with pytest.raises(SettingsInvalid) as raised:
        load_settings(file)
    assert {line.split(":")[0] for line in str(raised.value).splitlines()} == {"limits.store_url", "limits.store_prefix"}
    assert "secret" not in str(raised.value)


def test_a_file_with_the_url_is_private(tmp_path):
    """The URL holds a password, so others must not be able to read the file; and settings do not print it."""
    file = tmp_path / "tokenweir.toml"
    file.write_text('[limits]\nstore_url = "valkey://:hunter2@host"\n')
    file.chmod(0o644)
    with pytest.raises(SecretExposed):
        load_settings(file)
    file.chmod(0o600)
    assert "hunter2" not in repr(load_settings(file))
