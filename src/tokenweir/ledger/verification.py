"""Verification: whether the ledger says the same thing everywhere.

What it decides: entries against themselves (ids, kinds, signs, times), adjustments against the attempts they correct, both rollups against the sums of the
entries, and costs against a rating of the provider's own usage object. Every difference is a finding with a sentence. Change with it: `rollups.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from string import hexdigits

import msgspec
from msgspec.structs import astuple

from tokenweir.ledger.entries import KIND_ADJUSTMENT, KIND_ATTEMPT, Entry
from tokenweir.ledger.rollups import SUM_NAMES, Difference, Dims, Grain, accumulate, compare, dims_id
from tokenweir.money import Nanos
from tokenweir.periods import Micros, format_instant
from tokenweir.usage import Certainty

StoredCell = tuple[Micros, int, Dims | None, tuple[int, ...]]


class Finding(msgspec.Struct, frozen=True):
    """Something in the ledger that cannot be right."""

    kind: str
    """`entry`, `adjustment`, `cost`, `dims`, `rollup_15m` or `rollup_day`."""
    subject: str
    """The id of the entry, or the start of the bucket."""
    message: str


class Verdict(msgspec.Struct, frozen=True):
    """What was looked at, and what is wrong with it."""

    entries: int
    cells: int
    cost_nanos: Nanos
    findings: tuple[Finding, ...]


def verify(
    entries: Iterable[Entry],
    stored: Mapping[Grain, Iterable[StoredCell]],
    *,
    known: Callable[[list[str]], set[str]],
    reprice: Callable[[Entry], Nanos | None],
) -> Verdict:
    """Look at everything. `known` tells which attempts exist; `reprice` what an entry should cost, None if that cannot be told."""
    findings: list[Finding] = []
    adjusted: dict[str, str] = {}
    count, cost_nanos = 0, 0

    def looked_at() -> Iterator[Entry]:
        nonlocal count, cost_nanos
        for entry in entries:
            count += 1
            cost_nanos += entry.cost_nanos
            findings.extend(Finding("entry", entry.entry_id, message) for message in _faults(entry))
            if entry.kind == KIND_ADJUSTMENT:
                adjusted[entry.entry_id] = entry.attempt_id
            expected = reprice(entry)
            if expected is not None and expected != entry.cost_nanos:
                findings.append(
                    Finding("cost", entry.entry_id, f"is booked at {entry.cost_nanos} nano-USD and rates at {expected} by the same card and usage")
                )
            yield entry

    quarters, days = accumulate(looked_at())
    there = known(sorted(set(adjusted.values())))
    findings += [
        Finding("adjustment", entry_id, f"corrects {attempt}, which does not exist") for entry_id, attempt in adjusted.items() if attempt not in there
    ]
    cells = 0
    recomputed: dict[Grain, dict[tuple[Micros, Dims], tuple[int, ...]]] = {"15m": quarters, "day": days}
    for grain, sums in recomputed.items():
        mine: dict[tuple[Micros, Dims], tuple[int, ...]] = {}
        for bucket_us, number, dims, stored_sums in stored[grain]:
            cells += 1
            if dims is None or dims_id(dims) != number:
                findings.append(Finding("dims", str(number), f"the dimensions of a cell at {format_instant(bucket_us)} are missing or were changed"))
                continue
            mine[bucket_us, dims] = stored_sums
        findings += [_described(difference) for difference in compare(grain, mine, sums)]
    return Verdict(count, cells, cost_nanos, tuple(findings))


def _faults(entry: Entry) -> Iterator[str]:
    if len(entry.entry_id) != 32 or not set(entry.entry_id) <= set(hexdigits.lower()):
        yield "has an id that is not 32 hex digits"
    if entry.ended_at_us < entry.started_at_us:
        yield "ends before it begins"
    if entry.kind == KIND_ATTEMPT:
        if entry.entry_id != entry.attempt_id:
            yield f"is an attempt and has another attempt's id, {entry.attempt_id}"
        if entry.cost_nanos < 0 or any(tokens < 0 for tokens in astuple(entry.usage)):
            yield "is an attempt and has a negative count or cost"
        if entry.certainty is Certainty.NONE and entry.cost_nanos:
            yield "was refused and has a cost"
    elif entry.kind == KIND_ADJUSTMENT:
        if entry.entry_id == entry.attempt_id or not entry.reason:
            yield "is an adjustment without an id or reason of its own"
    else:
        yield f"is of an unknown kind, {entry.kind!r}"


def _described(difference: Difference) -> Finding:
    stored, recomputed, dims = difference.stored, difference.recomputed, difference.dims
    where = f"key {dims.key_id}, model {dims.model}, {dims.certainty}"
    if stored is None:
        message = f"has no cell for {where}, though entries add up to {recomputed}"
    elif recomputed is None:
        message = f"has a cell for {where} that no entry belongs to"
    else:
        parts = [f"{name} {mine} instead of {theirs}" for name, mine, theirs in zip(SUM_NAMES, stored, recomputed, strict=True) if mine != theirs]
        message = f"has, for {where}, {', '.join(parts)}"
    return Finding(f"rollup_{difference.grain}", format_instant(difference.bucket_us), message)
