"""Attempts for the replay: in exact order of time whatever the ids are, each with its corrections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bookings import START_US, entry
from tokenweir.ledger.adjustments import Truth, correct, standing
from tokenweir.metering.replay_attempts import ORDER_WINDOW_US, Disorder, attempts
from tokenweir.usage import Certainty, Usage


def corrected(first, *, model=None, cost_nanos=7, usage=None):
    truth = Truth(usage or Usage(1, output=2), cost_nanos, model or first.model, Certainty.EXACT, (), "other")
    return correct(standing([first]), truth, reason="rerate", now_us=first.ended_at_us + 3_600_000_000)


@given(st.lists(st.integers(0, 3_000), max_size=40), st.randoms(use_true_random=False))
def test_attempts_come_in_order_of_the_microsecond_they_began(offsets, random):
    """Ids are in order of the millisecond only, and within it in any order."""
    numbers = list(range(len(offsets)))
    random.shuffle(numbers)
    made = [entry(number, at_us=START_US + offset) for number, offset in zip(numbers, offsets, strict=True)]
    disorder = Disorder()
    found = list(attempts(sorted(made, key=lambda one: one.entry_id), disorder))
    assert [one.started_us for one in found] == sorted(START_US + offset for offset in offsets)
    assert (disorder.late_attempts, disorder.late_adjustments) == (0, 0)


def test_an_attempt_is_told_as_its_corrections_leave_it():
    """Also if they moved it to another model; it is told once."""
    first, second, third = entry(1), entry(2), entry(3)
    entries = sorted([first, *corrected(first), second, *corrected(second, model="claude-haiku-4-5"), third], key=lambda one: one.entry_id)
    found = list(attempts(entries, Disorder()))
    assert [(one.cost_nanos, one.model, one.usage) for one in found] == [
        (7, "claude-opus-4-5", Usage(1, output=2)),
        (7, "claude-haiku-4-5", Usage(1, output=2)),
        (12_345, "claude-opus-4-5", third.usage),
    ]


def test_only_what_the_gateway_sent_is_told():
    """What others told of calls was not sent through it."""
    told = replace(entry(2), source="claude_code_log")
    assert [one.attempt_id for one in attempts([entry(1), told], Disorder())] == [entry(1).attempt_id]


def test_what_cannot_be_put_in_order_is_counted():
    """A correction far from its attempt is left out, an attempt far behind is told late."""
    first = entry(1)
    late = [replace(one, entry_id="f" * 32) for one in corrected(first)]
    behind = entry(3, at_us=START_US - 2 * ORDER_WINDOW_US)
    disorder = Disorder()
    found = list(attempts([first, entry(2, at_us=START_US + 2 * ORDER_WINDOW_US), behind, *late], disorder))
    assert len(found) == 3
    assert (disorder.late_attempts, disorder.late_adjustments) == (1, len(late))


def test_memory_is_bounded_by_the_window_however_long_the_ledger_is():
    """An attempt is told as soon as nothing earlier can come."""
    read = 0

    def endless():
        nonlocal read
        while True:
            yield entry(read, at_us=START_US + read * 1_000_000)
            read += 1

    stream = attempts(endless(), Disorder())
    for _ in range(50):
        next(stream)
    assert read <= 50 + ORDER_WINDOW_US // 1_000_000 + 2
