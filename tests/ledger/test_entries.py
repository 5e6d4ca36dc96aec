"""Entries: an intent and its settlement joined, and the journal's format that later versions must still read."""

from __future__ import annotations

import msgspec

from bookings import START_US, intent, settlement
from tokenweir.ledger.entries import FLAG_UNKNOWN, Entry, Intent, Settlement, settled_entry, unknown_entry
from tokenweir.usage import Certainty


def test_an_entry_has_everything_of_its_intent_and_its_settlement():
    begun = intent(1, session_id="s", agent_id="a", parent_agent_id="p", client="c", client_retry=2, attempt_no=3)
    done = settlement(begun, speed="fast", inference_geo="us", error_type="e", cut="client", first_byte_us=9, flags=("f",))
    made = settled_entry(begun, done)
    for source in (begun, done):
        for name in source.__struct_fields__:
            if name in Entry.__struct_fields__:
                assert getattr(made, name) == getattr(source, name), name
    assert made.entry_id == made.attempt_id == begun.attempt_id


def test_an_attempt_without_an_end_is_booked_at_its_ceiling_and_flagged():
    made = unknown_entry(intent(1), now_us=START_US + 5)
    assert (made.usage, made.cost_nanos, made.certainty) == (intent(1).ceiling, intent(1).ceiling_nanos, Certainty.CEILING)
    assert (made.status, made.flags, made.ended_at_us) == (0, (FLAG_UNKNOWN,), START_US + 5)


def test_records_are_arrays_whose_order_is_the_format():
    """A worker of this version reads what a gateway of an older one wrote: fields may be added at the end, and nothing else."""
    assert Intent.__struct_fields__[:12] == (
        "attempt_id",
        "request_id",
        "attempt_no",
        "started_at_us",
        "organization_id",
        "team_id",
        "key_id",
        "model_requested",
        "stream",
        "ceiling",
        "ceiling_nanos",
        "card_version",
    )
    assert Settlement.__struct_fields__[:7] == ("attempt_id", "ended_at_us", "status", "certainty", "usage", "cost_nanos", "model")
    whole = msgspec.msgpack.decode(msgspec.msgpack.encode(intent(1)))
    assert whole[0] == 1
    older = msgspec.msgpack.encode(whole[:13])
    assert msgspec.msgpack.decode(older, type=Intent | Settlement).attempt_id == intent(1).attempt_id
    newer = msgspec.msgpack.encode([*whole, "a field of a version to come"])
    assert msgspec.msgpack.decode(newer, type=Intent | Settlement) == intent(1)
