"""What an attempt is worth to a limit: the units of each resource that it asks for at admission, and that it has used when it is settled.

The rule it protects: the units of a settlement are those that the rollups sum up (`ledger/rollups.py`), so that a counter and the ledger agree to the
unit. What is asked may be more than that, never less than one where a request of nothing would slip through a limit that is used up. Change with it:
`limit.Resource`, `estimate.py` (what is expected), `metering/seeding.py` (what the ledger says was used).
"""

from __future__ import annotations

from tokenweir.limits.limit import Resource
from tokenweir.money import Nanos
from tokenweir.usage import Usage

RESOURCES: tuple[Resource, ...] = tuple(Resource)
"""The order of `all_units` and `all_demands`."""


def units_of(resource: Resource, usage: Usage, cost_nanos: Nanos, *, attempts: int = 1) -> int:
    """What a settlement uses of a resource, in its units (spend: nano-USD). Of concurrency nothing is used: it was held, and is free again."""
    if resource is Resource.SPEND:
        return cost_nanos
    if resource is Resource.TOKENS:
        return usage.uncached_input + usage.cache_write_5m + usage.cache_write_1h + usage.cache_read + usage.output
    if resource is Resource.REQUESTS:
        return attempts
    if resource is Resource.OUTPUT_TOKENS:
        return usage.output
    if resource is Resource.INPUT_TOKENS:
        return usage.uncached_input + usage.cache_write_5m + usage.cache_write_1h
    return 0


def demand_of(resource: Resource, usage: Usage, cost_nanos: Nanos) -> int:
    """What admission asks of a resource, at least 1: a request that is expected to use nothing still needs room, or it would pass a limit that is used up.

    `usage` and `cost_nanos` are the ceiling for a strict limit, and what is expected for another.
    """
    if resource is Resource.REQUESTS or resource is Resource.CONCURRENCY:
        return 1
    return max(1, units_of(resource, usage, cost_nanos))


def all_units(usage: Usage, cost_nanos: Nanos) -> tuple[int, int, int, int, int, int]:
    """`units_of` every resource for one attempt, in the order of `RESOURCES`: for requests that meet many limits."""
    fresh = usage.uncached_input + usage.cache_write_5m + usage.cache_write_1h
    return 1, fresh, usage.output, fresh + usage.cache_read + usage.output, cost_nanos, 0


def all_demands(usage: Usage, cost_nanos: Nanos) -> tuple[int, int, int, int, int, int]:
    """`demand_of` every resource, in the order of `RESOURCES`."""
    fresh = usage.uncached_input + usage.cache_write_5m + usage.cache_write_1h
    total = fresh + usage.cache_read + usage.output
    return 1, fresh or 1, usage.output or 1, total or 1, cost_nanos or 1, 1
