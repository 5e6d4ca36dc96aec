"""What a settlement uses of a limit is what the rollups sum up of it, and nobody asks for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookings import intent, settlement
from tokenweir.ledger.entries import settled_entry
from tokenweir.ledger.rollups import SUM_NAMES, amounts
from tokenweir.limits.demand import RESOURCES, all_demands, all_units, demand_of, units_of
from tokenweir.limits.limit import Resource
from tokenweir.usage import Usage

COUNTS = st.integers(0, 2**40)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
USED = Usage(uncached_input=1, cache_write_5m=20, cache_write_1h=300, cache_read=4_000, output=50_000, thinking=7, web_searches=9)


@pytest.mark.parametrize(
    ("resource", "units"),
    [
        (Resource.REQUESTS, 1),
        (Resource.INPUT_TOKENS, 321),
        (Resource.OUTPUT_TOKENS, 50_000),
        (Resource.TOKENS, 54_321),
        (Resource.SPEND, 600_000),
        (Resource.CONCURRENCY, 0),
    ],
)
def test_each_resource_counts_its_own_part_of_a_settlement(resource, units):
    assert units_of(resource, USED, 600_000) == units


def test_every_resource_is_counted():
    assert {resource for resource in Resource if units_of(resource, USED, 1)} == set(Resource) - {Resource.CONCURRENCY}


@given(USAGES, COUNTS)
def test_units_of_a_settlement_are_what_its_entry_adds_to_the_rollups(usage, cost_nanos):
    """A counter that is seeded from the sums of the ledger goes on where it was."""
    begun = intent(1)
    entry = settled_entry(begun, settlement(begun, usage=usage, cost_nanos=cost_nanos))
    sums = dict(zip(SUM_NAMES, amounts(entry), strict=True))
    written = sums["uncached_input"] + sums["cache_write_5m"] + sums["cache_write_1h"]
    assert {resource: units_of(resource, usage, cost_nanos) for resource in Resource} == {
        Resource.REQUESTS: sums["requests"],
        Resource.INPUT_TOKENS: written,
        Resource.OUTPUT_TOKENS: sums["output"],
        Resource.TOKENS: written + sums["cache_read"] + sums["output"],
        Resource.SPEND: sums["cost_nanos"],
        Resource.CONCURRENCY: 0,
    }


@given(USAGES, COUNTS, USAGES, COUNTS)
def test_units_of_two_attempts_add_up(one, one_nanos, other, other_nanos):
    both = Usage(*(getattr(one, field) + getattr(other, field) for field in Usage.__struct_fields__))
    for resource in Resource:
        assert units_of(resource, both, one_nanos + other_nanos, attempts=2) == units_of(resource, one, one_nanos) + units_of(
            resource, other, other_nanos
        )


@given(USAGES, COUNTS)
def test_what_is_asked_is_at_least_one_and_never_less_than_what_is_used(usage, cost_nanos):
    for resource in Resource:
        assert demand_of(resource, usage, cost_nanos) == max(1, units_of(resource, usage, cost_nanos))


def test_a_request_asks_for_one_place_and_one_request_whatever_it_costs():
    assert (demand_of(Resource.REQUESTS, USED, 10**12), demand_of(Resource.CONCURRENCY, USED, 10**12)) == (1, 1)
    assert demand_of(Resource.CONCURRENCY, Usage(), 0) == 1


@given(USAGES, COUNTS)
def test_all_resources_at_once_are_each_by_itself(usage, cost_nanos):
    assert tuple(Resource) == RESOURCES
    assert all_units(usage, cost_nanos) == tuple(units_of(resource, usage, cost_nanos) for resource in RESOURCES)
    assert all_demands(usage, cost_nanos) == tuple(demand_of(resource, usage, cost_nanos) for resource in RESOURCES)
