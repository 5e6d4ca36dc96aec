"""Verification finds whatever is changed in the ledger behind its back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bookings import entry
from tokenweir.ledger.adjustments import Truth, correct, standing
from tokenweir.ledger.rollups import accumulate, dims_id
from tokenweir.ledger.verification import verify
from tokenweir.usage import Certainty, Usage

BOOKED = [entry(n, model=f"m{n % 3}", certainty=Certainty.EXACT) for n in range(6)]
BOOKED += correct(standing(BOOKED[:1]), Truth(Usage(output=1), 5, "m9", Certainty.EXACT, (), "v"), reason="r", now_us=10**17)


def stored():
    quarters, days = accumulate(BOOKED)
    return {
        grain: [(bucket_us, dims_id(dims), dims, sums) for (bucket_us, dims), sums in cells.items()]
        for grain, cells in (("15m", quarters), ("day", days))
    }


def look(entries=BOOKED, cells=None, known=None, reprice=lambda _: None):
    there = {one.entry_id for one in BOOKED} if known is None else known
    return verify(entries, cells or stored(), known=lambda ids: set(ids) & there, reprice=reprice)


def test_a_sound_ledger_has_no_findings():
    verdict = look()
    assert verdict.findings == ()
    assert verdict.entries == len(BOOKED)
    assert verdict.cost_nanos == sum(one.cost_nanos for one in BOOKED)


@pytest.mark.parametrize("index", range(len(BOOKED)))
@pytest.mark.parametrize(
    "change",
    [
        {"cost_nanos": 1},
        {"usage": Usage(1)},
        {"model": "other"},
        {"key_id": "other"},
        {"certainty": Certainty.PARTIAL},
        {"started_at_us": 0},
        {"entry_id": "x"},
        {"kind": "gift"},
        {"ended_at_us": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_entry_is_found(index, change):
    entries = list(BOOKED)
    entries[index] = replace(entries[index], **change)
    assert look(entries).findings


def test_a_deleted_or_added_entry_is_found_in_both_rollups():
    for entries in (BOOKED[1:], [*BOOKED, entry(77)]):
        assert {finding.kind for finding in look(entries).findings} >= {"rollup_15m", "rollup_day"}


@pytest.mark.parametrize("grain", ["15m", "day"])
def test_every_changed_number_of_every_cell_is_named(grain):
    cells = stored()
    for index, (bucket_us, number, dims, sums) in enumerate(cells[grain]):
        for column in range(len(sums)):
            changed = {**cells, grain: list(cells[grain])}
            changed[grain][index] = (bucket_us, number, dims, tuple(a + (at == column) for at, a in enumerate(sums)))
            (finding,) = look(cells=changed).findings
            assert finding.kind == f"rollup_{grain}"
            assert str(sums[column] + 1) in finding.message


def test_dimensions_that_are_gone_or_changed_are_found():
    for dims in (None, replace(stored()["day"][0][2], key_id="other")):
        cells = stored()
        bucket_us, number, _, sums = cells["day"][0]
        cells["day"][0] = (bucket_us, number, dims, sums)
        assert "dims" in {finding.kind for finding in look(cells=cells).findings}


def test_an_adjustment_of_an_attempt_that_does_not_exist_is_found():
    assert [finding.kind for finding in look(known=set()).findings] == ["adjustment"] * 2


def test_a_cost_that_is_not_what_the_usage_rates_at_is_found():
    findings = look(reprice=lambda one: one.cost_nanos + (one is BOOKED[2])).findings
    assert [(finding.kind, finding.subject) for finding in findings] == [("cost", BOOKED[2].entry_id)]
