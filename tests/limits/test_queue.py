"""The order of waiting, against a model so plain that it can be seen to be right, and the promises it makes to those who wait."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenweir.limits.queue import PATIENCE, PRIORITIES, TENTHS, Queue, Waiter

NEVER_US = 10**15
LENGTH, OF_KEY = 20, 4


def filled(*waiters: tuple[str, str], length_max: int = 1_000, of_key: int = 1_000) -> Queue:
    """A queue of (key, priority), numbered from 1."""
    queue = Queue(length_max=length_max, length_per_key_max=of_key)
    for number, (key, priority) in enumerate(waiters, 1):
        queue.add(Waiter(number, key, priority, NEVER_US))
    return queue


def served(queue: Queue, turns: int | None = None) -> list[Waiter]:
    """Those who are served, in turn."""
    order = []
    while (head := queue.head()) is not None and (turns is None or len(order) < turns):
        order.append(head)
        queue.serve(head.waiter_id)
    return order


class NaiveQueue:
    """The same by brute force: a list, from which everything is worked out anew each time."""

    def __init__(self) -> None:
        self.waiting: list[Waiter] = []
        self.told: set[int] = set()
        self.stamps: dict[tuple[str, str], int] = {}
        """When a key of a class began to wait, or had its last turn since."""
        self.passed = dict.fromkeys(PRIORITIES, 0)
        self.time = 0

    def of(self, priority, key_id=None):
        return [one for one in self.waiting if one.priority == priority and key_id in (None, one.key_id)]

    def add(self, waiter):
        if len(self.waiting) * 10 >= TENTHS[waiter.priority] * LENGTH or len(self.of(waiter.priority, waiter.key_id)) >= OF_KEY:
            return False
        self.time += 1
        if not self.of(waiter.priority, waiter.key_id):
            self.stamps[waiter.priority, waiter.key_id] = self.time
        self.waiting.append(waiter)
        return True

    def head(self):
        classes = [priority for priority in PRIORITIES if self.of(priority)]
        if not classes:
            return None
        due = [priority for priority in classes if self.passed[priority] >= PATIENCE]
        chosen = (due or classes)[0]
        key_id = min({one.key_id for one in self.of(chosen)}, key=lambda key: self.stamps[chosen, key])
        return self.of(chosen, key_id)[0]

    def leave(self, waiter):
        self.waiting.remove(waiter)
        if not self.of(waiter.priority):
            self.passed[waiter.priority] = 0

    def serve(self, waiter):
        self.leave(waiter)
        self.time += 1
        self.stamps[waiter.priority, waiter.key_id] = self.time
        self.passed[waiter.priority] = 0
        for below in PRIORITIES[PRIORITIES.index(waiter.priority) + 1 :]:
            self.passed[below] += bool(self.of(below))

    def untold(self):
        return [one for one in self.waiting if one.waiter_id not in self.told]


class QueueMachine(RuleBasedStateMachine):
    """Whatever is done to it, the queue agrees with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(length_max=LENGTH, length_per_key_max=OF_KEY)
        self.model = NaiveQueue()
        self.ids = 0
        self.now_us = 0

    @rule(key=st.sampled_from("abcdefgh"), priority=st.sampled_from(PRIORITIES), patience_us=st.integers(0, 50))
    def join(self, key, priority, patience_us):
        self.ids += 1
        waiter = Waiter(self.ids, key, priority, self.now_us + patience_us)
        assert self.queue.add(waiter) == self.model.add(waiter)

    @precondition(lambda self: self.model.waiting)
    @rule(times=st.integers(1, 9))
    def serve_head(self, times):
        for _ in range(times):
            head = self.model.head()
            assert self.queue.head() == head
            if head is not None:
                self.queue.serve(head.waiter_id)
                self.model.serve(head)

    @precondition(lambda self: self.model.waiting)
    @rule(which=st.integers(0, LENGTH), got_in=st.booleans())
    def anybody_goes(self, which, got_in):
        waiter = self.model.waiting[which % len(self.model.waiting)]
        if got_in:
            self.queue.serve(waiter.waiter_id)
            self.model.serve(waiter)
        else:
            assert self.queue.remove(waiter.waiter_id)
            self.model.leave(waiter)
        assert not self.queue.remove(waiter.waiter_id)
        self.queue.serve(waiter.waiter_id)

    @rule(passing_us=st.integers(0, 30), is_trying=st.booleans())
    def time_passes(self, passing_us, is_trying):
        self.now_us += passing_us
        head = self.model.head()
        trying = head.waiter_id if head is not None and is_trying else None
        late = [one for one in self.model.untold() if one.deadline_us <= self.now_us]
        gone = sorted((one for one in late if one.waiter_id != trying), key=lambda one: (one.deadline_us, one.waiter_id))
        assert self.queue.expire(self.now_us, trying=trying) == gone
        for one in gone:
            self.model.leave(one)
        self.model.told |= {one.waiter_id for one in late}

    @invariant()
    def they_agree(self):
        assert len(self.queue) == len(self.model.waiting)
        assert self.queue.head() == self.model.head()
        assert self.queue.next_deadline_us() == min((one.deadline_us for one in self.model.untold()), default=None)
        assert all(one.waiter_id in self.queue for one in self.model.waiting)
        assert len(self.queue._deadlines) <= 2 * len(self.queue) + 17


QueueMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestQueueAgainstModel = QueueMachine.TestCase


@given(st.lists(st.sampled_from("abcd"), max_size=60))
def test_requests_of_one_key_are_served_in_the_order_they_came(keys):
    order = served(filled(*((key, "normal") for key in keys)))
    for key in "abcd":
        numbers = [one.waiter_id for one in order if one.key_id == key]
        assert numbers == sorted(numbers)
    assert len(order) == len(keys)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1))
def test_while_they_wait_no_key_is_served_more_than_one_time_more_than_another(crowds):
    queue = filled(*((key, "normal") for key, many in crowds.items() for _ in range(many)))
    order = served(queue, turns=len(crowds) * min(crowds.values()))
    for turns in range(len(order) + 1):
        counts = Counter(one.key_id for one in order[:turns])
        assert max(counts[key] for key in crowds) - min(counts[key] for key in crowds) <= 1


@given(st.lists(st.sampled_from(PRIORITIES), min_size=1, max_size=80), st.integers(0, 2**32))
def test_a_class_that_waits_is_never_passed_over_more_often_than_promised(arrivals, seed):
    """One more turn than `PATIENCE` at most, where two classes are due at once; and by each class below it one time at most."""
    queue = filled(*((f"key {seed % 7}", priority) for priority in arrivals))
    order = [PRIORITIES.index(one.priority) for one in served(queue)]
    for place, own in enumerate(order):
        since = max((turn for turn in range(place) if order[turn] == own), default=-1)
        between = order[since + 1 : place]
        assert sum(other < own for other in between) <= PATIENCE + 1
        assert sum(other > own for other in between) <= len(PRIORITIES) - 1 - own


def test_every_eighth_turn_is_the_lower_class_s_while_the_higher_one_is_busy():
    order = served(filled(*[("a", "high")] * 40, *[("b", "low")] * 10), turns=40)
    assert [turn for turn, one in enumerate(order, 1) if one.priority == "low"] == [8, 16, 24, 32, 40]


def test_of_two_classes_that_are_due_the_higher_one_goes_first_and_the_other_one_next():
    order = served(filled(*[("a", "high")] * 30, *[("b", "normal")] * 5, *[("c", "low")] * 5), turns=18)
    assert "".join(one.priority[0] for one in order) == "hhhhhhhnl" * 2


def test_a_class_that_nobody_was_waiting_in_has_no_claim_from_before():
    queue = filled(*[("a", "high")] * 20, ("b", "low"))
    served(queue, turns=6)
    queue.remove(21)
    queue.add(Waiter(99, "b", "low", NEVER_US))
    assert [one.priority for one in served(queue, turns=8)] == ["high"] * 7 + ["low"]


def test_a_key_that_comes_back_at_once_stands_behind_the_others():
    queue = filled(("a", "normal"), ("b", "normal"), ("c", "normal"))
    (first,) = served(queue, turns=1)
    queue.add(Waiter(50, first.key_id, "normal", NEVER_US))
    assert [one.key_id for one in served(queue)] == ["b", "c", "a"]


def test_the_head_stays_the_head_until_it_goes_or_a_higher_one_comes():
    queue = filled(("a", "normal"), ("b", "normal"))
    queue.add(Waiter(10, "c", "low", NEVER_US))
    assert queue.head().waiter_id == 1
    queue.add(Waiter(11, "d", "high", NEVER_US))
    assert queue.head().waiter_id == 11
    queue.remove(11)
    assert queue.head().waiter_id == 1


@pytest.mark.parametrize(("priority", "places"), [("low", 8), ("normal", 9), ("high", 10)])
def test_the_lower_classes_leave_room_for_the_higher_ones(priority, places):
    queue = filled(*((f"key {number}", priority) for number in range(20)), length_max=10)
    assert len(queue) == places
    for above in reversed(PRIORITIES[: PRIORITIES.index(priority)]):
        assert queue.add(Waiter(100 + len(queue), "other", above, NEVER_US))


def test_a_queue_of_one_place_takes_one_of_any_class():
    for priority in PRIORITIES:
        queue = filled(("a", priority), ("b", priority), length_max=1)
        assert len(queue) == 1


def test_one_key_cannot_fill_the_queue():
    queue = filled(*[("a", "normal")] * 10, ("b", "normal"), of_key=3)
    assert [one.key_id for one in served(queue)] == ["a", "b", "a", "a"]


def test_an_expired_one_that_is_trying_keeps_its_place_and_is_told_of_no_more():
    queue = Queue(length_max=10, length_per_key_max=10)
    for number, deadline_us in ((1, 100), (2, 50), (3, 200)):
        queue.add(Waiter(number, "a", "normal", deadline_us))
    assert queue.next_deadline_us() == 50
    assert [one.waiter_id for one in queue.expire(150, trying=1)] == [2]
    assert queue.head().waiter_id == 1
    assert queue.next_deadline_us() == 200
    assert queue.expire(150) == []


def test_deadlines_of_those_that_left_do_not_pile_up_behind_one_that_stays():
    queue = Queue(length_max=10, length_per_key_max=10)
    queue.add(Waiter(1, "a", "normal", 1))
    for number in range(2, 2_000):
        queue.add(Waiter(number, "a", "normal", number))
        (queue.serve if number % 2 else queue.remove)(number)
    assert len(queue._deadlines) < 20
    assert queue.next_deadline_us() == 1
