"""A batch as it passes its time: every line gets one outcome, whatever happens in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenweir.periods import parse_instant
from tokenweir.simulator.batches import CANCELED, ERRORED, EXPIRED, FAR_US, SUCCEEDED, Batch, Over, Timing, Wait, Work, plan_delays, plan_timing
from tokenweir.simulator.directives import Directives
from tokenweir.simulator.scenario import BatchTimes

START = 1_795_355_155_000_000
DAY = 86_400_000_000
URL = "http://simulator/results"


def batch_of(count=10, *, delay=0, canceling=0, lifetime=DAY, seed=1, delays=None, hangs=0.0):
    timing = Timing(delay_us=delay, canceling_us=canceling, lifetime_us=lifetime, archive_us=29 * DAY)
    return Batch("msgbatch_1", count=count, created_us=START, timing=timing, seed=seed, delays=delays or {}, hangs=hangs)


def work(batch, now, most=10**9):
    """Work until there is nothing to do; returns each line's index and outcome, and the last step."""
    done = []
    while most:
        step = batch.step(now)
        if isinstance(step, Over | Wait):
            return done, step
        outcome = (ERRORED if step.index % 3 == 0 else SUCCEEDED) if isinstance(step, Work) else step.outcome
        batch.resolve(outcome)
        done.append((step.index, outcome))
        most -= 1
    return done, None


def test_lines_are_worked_on_in_an_order_of_the_seed():
    """The same seed gives the same order, another one another."""
    orders = [[index for index, _ in work(batch_of(50, seed=seed), START)[0]] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(50)) != orders[0]


def test_work_is_spread_evenly_over_the_delay():
    """After a tenth of the time a tenth is done, and the next is waited for."""
    batch = batch_of(10, delay=1_000)
    done, step = work(batch, START + 100)
    assert (len(done), step) == (1, Wait(START + 200))
    assert len(work(batch, START + 999)[0]) == 8
    assert isinstance(work(batch, START + 1_000)[1], Over)
    assert batch.ended_us == START + 1_000


def test_counts_stay_at_processing_until_the_end():
    """As the provider shows them."""
    batch = batch_of(9, delay=900)
    work(batch, START + 500)
    shown = batch.shown(START + 500, URL)
    assert shown["request_counts"] == {"processing": 9, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    assert (shown["processing_status"], shown["results_url"], shown["ended_at"]) == ("in_progress", None, None)
    work(batch, START + 900)
    shown = batch.shown(START + 900, URL)
    assert shown["request_counts"] == {"processing": 0, "succeeded": 6, "errored": 3, "canceled": 0, "expired": 0}
    assert (shown["processing_status"], shown["results_url"]) == ("ended", URL)
    assert parse_instant(shown["ended_at"]) == START + 900
    assert parse_instant(shown["expires_at"]) == START + DAY


def test_cancellation_lets_due_work_go_on_and_closes_the_rest():
    """In between the batch is canceling; the second cancellation changes nothing."""
    batch = batch_of(10, delay=1_000, canceling=200)
    work(batch, START + 300)
    batch.cancel(START + 300)
    batch.cancel(START + 350)
    assert (batch.status, batch.shown(START, URL)["request_counts"]["processing"]) == ("canceling", 10)
    done, step = work(batch, START + 450)
    assert (len(done), step) == (1, Wait(START + 500))
    work(batch, START + 500)
    assert batch.outcomes[CANCELED] == 6
    assert (batch.status, batch.cancel_us) == ("ended", START + 300)


def test_what_was_due_before_the_expiry_is_done_and_the_rest_expires():
    """However late it is looked at."""
    batch = batch_of(10, delay=2 * DAY)
    done, _ = work(batch, START + 9 * DAY)
    assert [outcome for _, outcome in done].count(EXPIRED) == 5 == batch.outcomes[EXPIRED]


def test_the_earlier_of_expiry_and_final_cancellation_decides():
    """A cancellation that would be final after the expiry closes nothing."""
    late, soon = (batch_of(4, delay=FAR_US, canceling=canceling, lifetime=1_000) for canceling in (DAY, 10))
    for batch in (late, soon):
        batch.cancel(START + 900)
        work(batch, START + 5_000)
    assert (late.outcomes[EXPIRED], soon.outcomes[CANCELED]) == (4, 4)


def test_lines_that_hang_and_lines_with_a_delay_of_their_own():
    """They keep the batch from its end."""
    batch = batch_of(5, delays={2: FAR_US, 4: 700})
    assert sorted(index for index, _ in work(batch, START)[0]) == [0, 1, 3]
    assert work(batch, START + 700)[0] == [(4, SUCCEEDED)]
    assert work(batch, START + 701)[1] == Wait(START + DAY)
    half = batch_of(1_000, hangs=0.5)
    assert 400 < len(work(half, START)[0]) < 600


def test_results_are_gone_29_days_after_creation():
    """Then the object says since when, and names no place."""
    batch = batch_of(1)
    work(batch, START)
    assert batch.shown(START + 29 * DAY - 1, URL)["archived_at"] is None
    shown = batch.shown(START + 29 * DAY, URL)
    assert (parse_instant(shown["archived_at"]), shown["results_url"]) == (START + 29 * DAY, None)


MOMENTS = st.sampled_from([0, 1, 99, 100, 250, 400, 1_000])


@settings(max_examples=300)
@given(
    st.integers(1, 12),
    st.sampled_from([0, 90, 500, 3_000, FAR_US]),
    st.sampled_from([0, 50, 700, FAR_US]),
    st.sampled_from([100, 600, 5_000]),
    st.dictionaries(st.integers(0, 11), st.sampled_from([30, 800, FAR_US]), max_size=3),
    st.lists(st.tuples(st.sampled_from(["pass", "cancel", "work", "work some"]), MOMENTS), max_size=14),
)
def test_whatever_happens_every_line_gets_one_outcome(count, delay, canceling, lifetime, delays, story):
    """Counts always sum to the whole, states only move on, nothing is worked on after the expiry, and in the end the batch has ended."""
    batch = batch_of(count, delay=delay, canceling=canceling, lifetime=lifetime, delays=delays)
    now, done, seen = START, [], []
    for what, length in [*story, ("pass", lifetime), ("work", 0)]:
        if what == "pass":
            now += length
        elif what == "cancel":
            batch.cancel(now)
        else:
            done += work(batch, now, most=2 if what == "work some" else 10**9)[0]
        counts = batch.shown(now, URL)["request_counts"]
        assert sum(counts.values()) == count
        assert batch.left + len(done) == count
        assert counts["processing"] == (0 if batch.status == "ended" else count)
        seen.append(batch.status)
    assert sorted(index for index, _ in done) == list(range(count))
    assert seen == sorted(seen, key=["in_progress", "canceling", "ended"].index)
    assert batch.status == "ended"
    assert batch.outcomes == {name: [outcome for _, outcome in done].count(name) for name in batch.outcomes}
    if batch.cancel_us is None:
        assert batch.outcomes[CANCELED] == 0


@pytest.mark.parametrize(
    ("times", "wanted", "timing"),
    [
        (BatchTimes(), Directives(), (0, 0, DAY, 29 * DAY)),
        (BatchTimes(delay_ms=6, speed=2), Directives(), (3_000, 0, DAY // 2, 29 * DAY // 2)),
        (BatchTimes(delay_ms=6), Directives(batch_delay=-1, batch_canceling=2, batch_expires=4), (FAR_US, 2_000, 4_000, 29 * DAY)),
    ],
)
def test_lengths_come_from_directives_then_the_scenario_and_are_divided_by_the_speed(times, wanted, timing):
    """For ever stays for ever."""
    found = plan_timing(times, wanted)
    assert (found.delay_us, found.canceling_us, found.lifetime_us, found.archive_us) == timing
    assert plan_delays({3: 10, 4: -1}, 5) == {3: 2_000, 4: FAR_US}
