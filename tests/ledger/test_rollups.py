"""Rollups: a cell is the sum of its entries, in its quarter and in its day."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bookings import START_US, entry
from tokenweir.ledger.entries import FLAG_REBOOKING, FLAG_REVERSAL, FLAG_UNPRICED, KIND_ADJUSTMENT
from tokenweir.ledger.rollups import SUM_NAMES, Sums, accumulate, amounts, compare, dims_id, dims_of, failed, values
from tokenweir.periods import DAY_US, QUARTER_US


@given(st.lists(st.tuples(st.integers(0, 5 * DAY_US), st.integers(-5, 5), st.sampled_from("ab")), max_size=30))
def test_both_grains_add_up_to_the_entries(made):
    entries = [entry(n, at_us=START_US + offset, cost_nanos=cost, model=model) for n, (offset, cost, model) in enumerate(made)]
    for cells, grain_us in zip(accumulate(entries), (QUARTER_US, DAY_US), strict=True):
        assert all(bucket_us % grain_us == 0 for bucket_us, _ in cells)
        total = [sum(column) for column in zip(*cells.values(), strict=True)] or [0] * len(SUM_NAMES)
        assert total == [sum(column) for column in zip(*map(amounts, entries), strict=True)] or not entries
        for one in entries:
            assert (one.started_at_us // grain_us * grain_us, dims_of(one)) in cells


def test_ids_of_dimensions_differ_with_every_dimension_and_fit_a_signed_column():
    first = dims_of(entry(1))
    others = [replace(first, **{name: 1 if name == "unpriced" else "other"}) for name in first.__struct_fields__]
    numbers = {dims_id(dims) for dims in (first, *others)}
    assert len(numbers) == len(others) + 1
    assert all(0 <= number < 2**63 for number in numbers)


def test_unpriced_entries_are_told_apart():
    assert dims_of(entry(1, flags=("x", FLAG_UNPRICED))).unpriced == 1
    assert dims_of(entry(1, flags=("x",))).unpriced == 0


def test_an_attempt_failed_if_it_was_refused_or_got_no_answer_but_not_if_its_client_left():
    assert failed(entry(1, status=429))
    assert failed(entry(1, status=200, error_type="overloaded_error"))
    assert failed(entry(1, status=0))
    assert not failed(entry(1, status=0, cut="client"))
    assert not failed(entry(1, status=200, cut="client"))


def test_an_adjustment_counts_a_request_only_where_it_moves_one():
    plain = replace(entry(1, status=500), kind=KIND_ADJUSTMENT)
    assert amounts(plain)[:2] == (0, 0)
    assert amounts(replace(plain, flags=(FLAG_REVERSAL,)))[:2] == (-1, -1)
    assert amounts(replace(plain, flags=(FLAG_REBOOKING,)))[:2] == (1, 1)


def test_every_cell_that_differs_is_found_and_zero_cells_are_no_difference():
    quarters, _ = accumulate([entry(n, model=f"m{n}") for n in range(4)])
    places = sorted(quarters, key=lambda place: place[1].model)
    changed = {**quarters, places[0]: tuple(amount + 1 for amount in quarters[places[0]])}
    del changed[places[1]]
    extra = (places[2][0] + QUARTER_US, places[2][1])
    changed[extra] = values(Sums(requests=1))
    changed[extra[0] + QUARTER_US, extra[1]] = values(Sums())
    found = compare("15m", changed, quarters)
    assert {(one.bucket_us, one.dims) for one in found} == {places[0], places[1], extra}
    assert compare("15m", quarters, quarters) == []
