"""Adjustments: what stands after a correction is the truth, and correcting again adds nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookings import START_US, entry, intent
from tokenweir.ledger.adjustments import Truth, correct, standing, without_unpriced
from tokenweir.ledger.entries import FLAG_REBOOKING, FLAG_REVERSAL, FLAG_UNKNOWN, FLAG_UNPRICED, unknown_entry
from tokenweir.ledger.rollups import accumulate, dims_of
from tokenweir.usage import Certainty, Usage

NOW = START_US + 10**9

truths = st.builds(
    Truth,
    usage=st.builds(Usage, *[st.integers(0, 100)] * 9),
    cost_nanos=st.integers(0, 10**6),
    model=st.sampled_from(["m1", "m2"]),
    certainty=st.sampled_from(list(Certainty)),
    flags=st.sampled_from([(), (FLAG_UNPRICED,), ("x",)]),
    card_version=st.just("v2"),
)


@given(st.lists(truths, min_size=1, max_size=6))
def test_after_any_corrections_the_ledger_says_the_last_truth_in_sum_in_cell_and_once(said):
    booked = [entry(1, model="m1")]
    for truth in said:
        added = correct(standing(booked), truth, reason="test", now_us=NOW)
        assert not {one.entry_id for one in added} & {one.entry_id for one in booked}
        booked += added
        now = standing(booked)
        assert (now.usage, now.cost_nanos) == (truth.usage, truth.cost_nanos)
        assert correct(now, truth, reason="again", now_us=NOW) == ()
        cells = {}
        for (_, dims), sums in accumulate(booked)[1].items():
            place = (dims.model, dims.certainty, dims.unpriced)
            cells[place] = [a + b for a, b in zip(cells.get(place, [0] * 10), sums, strict=True)]
        right = cells.pop((truth.model, truth.certainty.value, int(FLAG_UNPRICED in truth.flags)))
        assert right[0] == 1, "the request is counted where it belongs"
        assert right[-1] == truth.cost_nanos
        assert all(not any(sums) for sums in cells.values()), "and nothing stays anywhere else"
    assert all(one.started_at_us == booked[0].started_at_us for one in booked)


def test_the_same_cell_gets_a_difference_and_another_cell_a_reversal_with_a_rebooking():
    unknown = unknown_entry(intent(1), now_us=NOW)
    now = standing([unknown])
    same = Truth(Usage(output=1), 5, unknown.model, Certainty.CEILING, unknown.flags, "v2")
    (difference,) = correct(now, same, reason="r", now_us=NOW)
    assert (difference.cost_nanos, difference.usage.uncached_input) == (5 - unknown.cost_nanos, -1000)
    assert dims_of(difference).certainty == "ceiling"
    exact = Truth(Usage(output=1), 5, unknown.model, Certainty.EXACT, (), "v2")
    reversal, rebooking = correct(now, exact, reason="r", now_us=NOW)
    assert (reversal.cost_nanos, reversal.flags) == (-unknown.cost_nanos, (FLAG_UNKNOWN, FLAG_REVERSAL))
    assert (rebooking.cost_nanos, rebooking.flags) == (5, (FLAG_REBOOKING,))
    assert {one.attempt_id for one in (reversal, rebooking)} == {unknown.attempt_id}


def test_two_who_correct_at_once_make_the_same_ids_so_that_only_one_succeeds():
    now = standing([entry(1)])
    one = correct(now, Truth(Usage(), 1, "m", Certainty.EXACT, (), "v"), reason="a", now_us=NOW)
    other = correct(now, Truth(Usage(), 2, "m", Certainty.EXACT, (), "v"), reason="b", now_us=NOW + 1)
    assert [e.entry_id for e in one] == [e.entry_id for e in other]


def test_without_its_attempt_nothing_stands():
    with pytest.raises(ValueError, match="not in the ledger"):
        standing([])


def test_the_unpriced_flag_follows_the_price():
    assert without_unpriced(("a", FLAG_UNPRICED), unpriced=False) == ("a",)
    assert without_unpriced(("a",), unpriced=True) == ("a", FLAG_UNPRICED)
