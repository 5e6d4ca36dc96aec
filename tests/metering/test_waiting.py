"""Waiting for room, on an event loop whose time passes only when everybody waits: exact to the microsecond, and nothing sleeps."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenweir import telemetry
from tokenweir.limits.queue import PRIORITIES
from tokenweir.metering import waiting
from tokenweir.metering.waiting import LimitWaits, WaitingRoom
from tokenweir.periods import SECOND_US

START_US = 1_800_000_000 * SECOND_US
BUCKET = "lim_1|"
MINUTE = 60 * SECOND_US


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time passes only when nothing is left to do; if then nobody has set a timer, everybody would wait forever, and that is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_s = 0.0
        look = self._selector.select

        def select(timeout):
            ready = look(0)
            if timeout is None and not ready:
                raise RuntimeError("everybody waits and no timer is set")
            self.passed_s += 0 if ready else timeout
            return ready

        self._selector.select = select

    def time(self) -> float:
        return self.passed_s

    def now_us(self) -> int:
        return START_US + round(self.passed_s * SECOND_US)

    def monotonic_ns(self) -> int:
        return round(self.passed_s * 1e9)

    @property
    def timers(self) -> int:
        return sum(not handle.cancelled() for handle in self._scheduled)


class Scene:
    """A waiting room, and a bucket of so many places that requests hold for a while."""

    def __init__(self, loop: VirtualLoop, *, places: int = 1, **bounds: int) -> None:
        self.loop = loop
        self.room = WaitingRoom(loop, **bounds)
        self.free = places
        self.tries: list[tuple[float, str]] = []
        self.order: list[str] = []
        self.ends: dict[str, str] = {}

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return round(self.loop.time(), 6)

    async def request(self, name: str, *, key="a", priority="normal", patience_s=60.0, holds_s=1.0, hint_us=0, reply_s=0.0, bucket=BUCKET) -> None:
        """Wait for a place, hold it for a while, give it back."""
        with self.room.place(key_id=key, priority=priority) as place:
            until_us = self.loop.now_us() + round(patience_s * SECOND_US)
            try:
                while await place.turn(bucket, until_us=until_us, wait_us=hint_us):
                    self.tries.append((self.now, name))
                    seen = self.free
                    if reply_s:
                        await asyncio.sleep(reply_s)
                    if seen and self.free:
                        self.free -= 1
                        place.admitted()
                        break
            finally:
                self.ends[name] = place.ended or "gone"
        if place.ended == "admitted":
            self.order.append(name)
            try:
                await asyncio.sleep(holds_s)
            finally:
                self.give_back(bucket)

    def give_back(self, bucket: str = BUCKET) -> None:
        self.free += 1
        self.room.news(bucket)

    def start(self, name: str, **more) -> asyncio.Task[None]:
        return self.loop.create_task(self.request(name, **more), name=name)

    def is_empty(self) -> bool:
        """Nothing is left behind: nobody waits, no line, no timer of a line."""
        return not self.room._places and not self.room._lines and self.loop.timers == 0 and telemetry.QUEUE_WAITING._value.get() == 0


def played(body, **scene):
    """Run `body(scene)` to its end in virtual time; afterwards nothing may be left."""

    async def run():
        made = Scene(asyncio.get_running_loop(), **scene)
        await body(made)
        assert made.is_empty()
        return made

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())


async def settle():
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_who_comes_first_tries_at_once_and_the_next_only_when_room_was_given_back():
    async def body(scene):
        await asyncio.gather(*(scene.start(f"{number}") for number in range(4)))

    scene = played(body)
    assert scene.order == ["0", "1", "2", "3"]
    assert scene.tries == [(0, "0"), (0, "1"), (1, "1"), (1, "2"), (2, "2"), (2, "3"), (3, "3")]


def test_twenty_requests_of_four_keys_pass_one_at_a_time_in_fair_turns():
    async def body(scene):
        tasks = [scene.start(f"{key}{number}", key=key) for key in "abcd" for number in range(5)]
        await settle()
        scene.give_back()
        await asyncio.gather(*tasks)

    scene = played(body, places=0)
    assert scene.order == [f"{key}{number}" for number in range(5) for key in "abcd"]
    assert max(Counter(name for _, name in scene.tries).values()) == 2, "a try when one comes to the head, and one when room is given back"


def test_nobody_polls_a_line_without_news_looks_again_once_a_second_however_many_wait():
    async def body(scene):
        waiting = [scene.start(f"{number}", patience_s=10.5) for number in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0.5)
        assert scene.loop.timers == 1
        await asyncio.gather(*waiting)

    scene = played(body, places=0)
    assert scene.tries == [(second, "0") for second in range(11)]
    assert set(scene.ends.values()) == {"deadline"}


def test_news_that_were_lost_are_made_up_for_by_the_next_look():
    async def body(scene):
        waiting = scene.start("0")
        await asyncio.sleep(0.2)
        scene.free += 1
        await waiting

    scene = played(body, places=0)
    assert scene.tries == [(0, "0"), (1, "0")]


def test_a_rolling_limit_is_tried_at_the_moment_that_it_named():
    async def body(scene):
        scene.loop.call_later(0.25, lambda: setattr(scene, "free", 1))
        await scene.request("0", hint_us=250_000)

    assert played(body, places=0).tries == [(0, "0"), (0.25, "0")]


def test_a_hint_of_next_to_nothing_does_not_spin():
    async def body(scene):
        await scene.request("0", hint_us=1, patience_s=0.01)

    assert len(played(body, places=0).tries) <= 11


@pytest.mark.parametrize("hint_us", [-1, 0])
def test_without_a_hint_the_next_look_is_a_second_later(hint_us):
    async def body(scene):
        await scene.request("0", hint_us=hint_us, patience_s=1.5)

    assert played(body, places=0).tries == [(0, "0"), (1, "0")]


def test_each_is_sent_away_at_its_own_deadline_wherever_it_stands():
    ended_at = {}

    async def body(scene):
        async def wait(name, patience_s):
            await scene.request(name, patience_s=patience_s, holds_s=5)
            ended_at[name] = scene.now

        await asyncio.gather(wait("first", 9), wait("last", 3.25), wait("middle", 1.125), wait("patient", 30))

    scene = played(body)
    assert scene.ends == {"first": "admitted", "last": "deadline", "middle": "deadline", "patient": "admitted"}
    assert (ended_at["middle"], ended_at["last"], ended_at["patient"]) == (1.125, 3.25, 10)


def test_no_time_to_wait_is_a_deadline_at_once():
    async def body(scene):
        await scene.request("0", patience_s=0)

    scene = played(body)
    assert (scene.ends, scene.tries) == ({"0": "deadline"}, [])


def test_one_whose_deadline_comes_during_its_try_may_still_get_in():
    async def body(scene):
        await asyncio.gather(scene.start("slow", patience_s=0.5, reply_s=0.7, holds_s=0), scene.start("next", patience_s=0.6))

    scene = played(body)
    assert scene.ends == {"slow": "admitted", "next": "deadline"}
    assert scene.room.report()["lim_1"].served == 1


def test_and_if_it_does_not_it_is_sent_away():
    async def body(scene):
        await asyncio.gather(scene.start("slow", patience_s=0.5, reply_s=0.7), scene.start("next", patience_s=2, reply_s=0.1))

    scene = played(body, places=0)
    assert scene.ends == {"slow": "deadline", "next": "deadline"}
    assert [name for _, name in scene.tries] == ["slow", "next", "next"]


def test_room_given_back_during_a_try_that_did_not_see_it_leads_to_another_try():
    async def body(scene):
        scene.loop.call_later(0.05, scene.give_back)
        await scene.request("0", reply_s=0.1)

    assert played(body, places=0).tries == [(0, "0"), (0.1, "0")]


def test_nobody_overtakes_while_the_one_whose_turn_it_is_still_tries():
    async def body(scene):
        slow = scene.start("0", reply_s=0.1)
        await asyncio.sleep(0.05)
        assert scene.room.has_waiters(BUCKET)
        assert not scene.room.has_waiters("lim_2|")
        await slow
        assert not scene.room.has_waiters(BUCKET)

    played(body)


def test_a_higher_class_goes_before_one_that_was_waiting_at_the_head():
    async def body(scene):
        scene.free = 0
        tasks = [scene.start("normal"), scene.start("low", priority="low")]
        await settle()
        tasks.append(scene.start("high", priority="high"))
        await settle()
        scene.give_back()
        await asyncio.gather(*tasks)

    assert played(body).order == ["high", "normal", "low"]


@pytest.mark.parametrize("moment", ["waiting", "called", "trying"])
def test_a_request_that_goes_away_frees_its_place_and_the_next_has_its_turn(moment):
    async def body(scene):
        scene.free = 0
        first = scene.start("first", reply_s=0.1)
        await settle()
        second = scene.start("second", key="b", holds_s=0)
        await asyncio.sleep(0.05 if moment == "trying" else 0.2)
        if moment != "trying":
            scene.free = 1
        if moment == "called":
            scene.room.news(BUCKET)
        first.cancel()
        await settle()
        assert scene.room.waiting == (0 if scene.free else 1)
        if moment == "trying":
            scene.give_back()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first

    scene = played(body)
    assert scene.ends == {"first": "gone", "second": "admitted"}
    assert scene.room.report()["lim_1"].left == 1


def test_an_exception_during_a_try_frees_the_place_too():
    async def body(scene):
        async def fail():
            with scene.room.place(key_id="a") as place:
                assert await place.turn(BUCKET, until_us=START_US + MINUTE)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()

    played(body)


def test_a_request_that_finds_another_limit_short_waits_there_and_holds_nobody_up_here():
    async def body(scene):
        scene.free = 1
        with scene.room.place(key_id="a") as place:
            assert await place.turn(BUCKET, until_us=START_US + MINUTE)
            behind = scene.start("behind", key="b", holds_s=0)
            await settle()
            scene.loop.call_later(2, scene.room.news, "lim_2|")
            waiting = scene.loop.create_task(place.turn("lim_2|", until_us=START_US + MINUTE))
            assert await waiting, "the first in a line tries at once"
            await behind
            assert await place.turn("lim_2|", until_us=START_US + MINUTE)
            assert scene.now == 1
            assert await place.turn("lim_2|", until_us=START_US + MINUTE)
            assert scene.now == 2
            place.admitted()

    scene = played(body)
    report = scene.room.report()
    assert (report["lim_1"].served, report["lim_2"].served) == (1, 1)
    assert report["lim_2"].p50_us == 2 * SECOND_US


@pytest.mark.parametrize(
    ("bounds", "keys", "in_queue"),
    [({"line_per_key_max": 2}, "aaab", 3), ({"line_max": 2}, "abcd", 2), ({"waiting_max": 3}, "abcd", 3)],
    ids=["of one key", "in one line", "in all"],
)
def test_a_full_queue_takes_no_more_and_says_so_at_once(bounds, keys, in_queue):
    async def body(scene):
        tasks = [scene.start(f"{number}", key=key, priority="high") for number, key in enumerate(keys)]
        await settle()
        assert scene.room.waiting == in_queue
        assert Counter(scene.ends.values()) == {"full": len(keys) - in_queue}
        scene.give_back()
        await asyncio.gather(*tasks)

    scene = played(body, places=0, **bounds)
    assert scene.room.report()["lim_1"].refused_full == len(keys) - in_queue
    assert len(scene.order) == in_queue


def test_a_room_that_closes_sends_everybody_away_and_lets_nobody_in():
    async def body(scene):
        tasks = [scene.start(f"{number}", reply_s=0.1) for number in range(3)]
        await asyncio.sleep(0.05)
        scene.room.close()
        await asyncio.gather(*tasks)
        await scene.request("late")

    scene = played(body, places=0)
    assert set(scene.ends.values()) == {"closed"}
    assert scene.now == pytest.approx(0.1)


def test_a_place_that_was_called_when_the_room_closed_is_not_called_any_more():
    async def body(scene):
        scene.free = 0
        tasks = [scene.start(f"{number}") for number in range(3)]
        await settle()
        scene.free = 1
        scene.room.news(BUCKET)
        scene.room.close()
        await asyncio.gather(*tasks)

    scene = played(body)
    assert set(scene.ends.values()) == {"closed"}
    assert [name for _, name in scene.tries] == ["0"]
    assert scene.free == 1


def test_the_report_has_percentiles_by_limit_over_the_last_minutes():
    async def body(scene):
        await asyncio.gather(*(scene.start(f"{number}", patience_s=1000) for number in range(100)))
        report = scene.room.report()["lim_1"]
        assert report == LimitWaits(p50_us=49 * SECOND_US, p95_us=94 * SECOND_US, served=100)
        await scene.request("other", bucket="lim_2|key_1")
        assert scene.room.report()["lim_2"] == LimitWaits(served=1)
        await asyncio.sleep(waiting.RECENT_US / SECOND_US)
        assert scene.room.report()["lim_1"] == LimitWaits(served=100)

    played(body)


def test_seats_of_one_limit_are_reported_together_and_wait_apart():
    async def body(scene):
        tasks = [scene.start("one", bucket="lim_1|key_1"), scene.start("two", bucket="lim_1|key_2")]
        await settle()
        assert scene.room.report() == {"lim_1": LimitWaits(waiting=2)}
        scene.give_back("lim_1|key_2")
        await tasks[1]
        scene.give_back("lim_1|key_1")
        await tasks[0]

    assert played(body, places=0).order == ["two", "one"]


def test_what_is_remembered_is_bounded(monkeypatch):
    """Neither many waits nor many limits make it grow; a limit that is waited for is not forgotten."""
    monkeypatch.setattr(waiting, "_LIMITS_MAX", 5)

    async def body(scene):
        for number in range(2 * waiting._RECENT_MAX):
            await scene.request(f"{number}", holds_s=0)
        assert len(scene.room._records["lim_1"]._at_us) == waiting._RECENT_MAX
        scene.free = 0
        kept = scene.start("kept")
        await settle()
        for number in range(20):
            await scene.request(f"other {number}", bucket=f"lim_{number + 10}|", patience_s=0)
        assert len(scene.room.report()) == 5
        assert scene.room.report()["lim_1"].waiting == 1
        scene.give_back()
        await kept

    played(body)


def test_the_metrics_tell_how_long_and_how_it_ended():
    before = Counter(telemetry.QUEUE_OUTCOMES.values)
    waits = sum(telemetry.QUEUE_WAIT_SECONDS._counts)

    async def body(scene):
        await asyncio.gather(scene.start("0"), scene.start("1"), scene.start("2", patience_s=1.5))

    played(body)
    assert Counter(telemetry.QUEUE_OUTCOMES.values) - before == {("admitted",): 2, ("deadline",): 1}
    assert sum(telemetry.QUEUE_WAIT_SECONDS._counts) == waits + 3


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), places=st.integers(1, 3), count=st.integers(1, 60))
def test_whatever_happens_everybody_ends_nobody_sleeps_beside_free_room_and_nothing_is_left(seed, places, count):
    """Requests of all classes come, wait, give up, and are cut off in every state."""
    chance = random.Random(seed)

    async def body(scene):
        async def watch():
            while True:
                await asyncio.sleep(chance.uniform(0.001, 0.3))
                await settle()
                line = scene.room._lines.get(BUCKET)
                assert line is None or line.trying is not None or not scene.free
                assert 0 <= scene.free <= places

        async def come(number):
            await asyncio.sleep(chance.uniform(0, 5))
            task = scene.start(
                f"{number}",
                key=chance.choice("abc"),
                priority=chance.choice(PRIORITIES),
                patience_s=chance.choice([0.05, 1, 20]),
                holds_s=chance.uniform(0, 0.5),
                reply_s=chance.choice([0, 0, 0.01]),
                hint_us=chance.choice([0, -1, 1, 40_000]),
            )
            if chance.random() < 0.3:
                await asyncio.sleep(chance.uniform(0, 0.4))
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        watching = scene.loop.create_task(watch())
        await asyncio.gather(*(come(number) for number in range(count)))
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert scene.free == places

    scene = played(body, places=places, line_max=20, line_per_key_max=8)
    report = scene.room.report().get("lim_1", LimitWaits())
    assert report.waiting == 0
    assert report.served == len(scene.order)
