"""Which record of a call stands, whoever tells of it and in whatever order: one call, booked once, never taken from the gateway."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple, replace

from bookings import START_US
from tellings import NOW_US, metered, net, told
from tokenweir.ledger.entries import FLAG_REBOOKING, FLAG_REVERSAL, FLAG_UNPRICED, KIND_ADJUSTMENT, Entry
from tokenweir.ledger.rollups import dims_of
from tokenweir.ledger.sources import (
    CLAUDE_CODE_LOG,
    CLAUDE_CODE_OTEL,
    FLAG_SIDECHAIN,
    GATEWAY,
    GENERIC,
    LITELLM,
    RANK,
    SOURCES,
    Calls,
    dedup_key,
    fullest,
    fullness,
    names_of,
)
from tokenweir.usage import Usage


class Ledger:
    """The ledger as dictionaries: loads for each batch what the store would, and books what `Calls` decides."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.names: dict[str, str] = {}

    def of(self, attempt_id: str) -> list[Entry]:
        return [one for one in self.entries if one.attempt_id == attempt_id]

    def calls(self, records: list[Entry]) -> Calls:
        names = {name for one in records for name in names_of(one)}
        known = {name: self.names[name] for name in names & self.names.keys()}
        for one in self.entries:
            if one.source == GATEWAY and one.kind != KIND_ADJUSTMENT:
                known |= {name: one.attempt_id for name in names_of(one) if name in names}
        keys = {(one.source, one.dedup_key) for one in records}
        attempts = set(known.values()) | {one.attempt_id for one in self.entries if one.dedup_key and (one.source, one.dedup_key) in keys}
        return Calls(known, [self.of(attempt_id) for attempt_id in sorted(attempts)], now_us=NOW_US)

    def keep(self, calls: Calls) -> None:
        self.entries += calls.entries
        ids = [one.entry_id for one in self.entries]
        assert len(ids) == len(set(ids)), "an entry id was used twice"
        self.names |= calls.names
        for loser in calls.merged:
            for name, attempt_id in self.names.items():
                if attempt_id == loser:
                    self.names[name] = calls.stands_for(loser)

    def hear(self, *records: Entry) -> list[str]:
        records = [one for one in records if one.entry_id not in {known.entry_id for known in self.entries if known.source == GATEWAY}]
        outcomes = []
        seen = list({one.entry_id: one for one in records if one.source == GATEWAY}.values())
        if seen:
            calls = self.calls(seen)
            for one in seen:
                calls.take_gateway(one)
            self.entries += seen
            self.keep(calls)
        others = fullest(one for one in records if one.source != GATEWAY)
        if others:
            calls = self.calls(others)
            outcomes = [calls.take(one) for one in others]
            self.keep(calls)
        return outcomes

    def net(self) -> dict:
        return net(self.entries)

    def cost_nanos(self) -> int:
        return sum(one.cost_nanos for one in self.entries)


def test_sources_are_ranked_with_the_meter_on_the_wire_first():
    assert SOURCES[0] == GATEWAY
    assert RANK[GATEWAY] > RANK[CLAUDE_CODE_OTEL] > RANK[CLAUDE_CODE_LOG] > RANK[LITELLM] > RANK[GENERIC] > 0


def test_a_record_without_any_id_is_refused_because_it_could_be_booked_twice():
    with pytest.raises(ValueError, match="booked twice"):
        dedup_key(message_id="", request_id="", own_id="")


def test_the_same_record_twice_is_booked_once():
    ledger = Ledger()
    assert ledger.hear(told(message="m")) == ["new"]
    assert ledger.hear(told(message="m")) == ["matched"]
    assert len(ledger.entries) == 1


def test_a_row_that_grew_is_reversed_and_booked_anew_so_that_each_cell_stays_the_sum_of_its_entries():
    ledger = Ledger()
    ledger.hear(told(message="m", output=1))
    assert ledger.hear(told(message="m", output=90, at_us=START_US + 3_600_000_000)) == ["grown"]
    first, reversal, rebooking = ledger.entries
    assert FLAG_REVERSAL in reversal.flags
    assert FLAG_REBOOKING in rebooking.flags
    assert {one.attempt_id for one in ledger.entries} == {first.attempt_id}
    assert reversal.started_at_us == first.started_at_us
    assert rebooking.started_at_us == START_US + 3_600_000_000
    assert ledger.cost_nanos() == 1000 + 90
    assert len(ledger.net()) == 1
    assert next(iter(ledger.net().values()))[0] == 1


def test_a_smaller_row_that_comes_late_changes_nothing():
    ledger = Ledger()
    ledger.hear(told(message="m", output=90))
    assert ledger.hear(told(message="m", output=1)) == ["matched"]
    assert len(ledger.entries) == 1


def test_the_row_of_the_main_transcript_stands_before_that_of_a_subagent():
    main, side = told(message="m", output=5), told(message="m", output=50, flags=(FLAG_SIDECHAIN,))
    assert fullness(main) > fullness(side)


def test_a_better_source_takes_the_place_of_a_worse_one():
    ledger = Ledger()
    ledger.hear(told(source=GENERIC, message="m", request="r", output=70))
    assert ledger.hear(told(source=CLAUDE_CODE_LOG, message="m", request="r", output=5)) == ["replaced"]
    assert ledger.cost_nanos() == 1005
    assert [one.reason for one in ledger.entries] == ["", "", f"superseded: {CLAUDE_CODE_LOG}"]


def test_a_worse_source_that_comes_late_is_not_booked_at_all():
    ledger = Ledger()
    ledger.hear(told(source=CLAUDE_CODE_OTEL, request="r"))
    assert ledger.hear(told(source=CLAUDE_CODE_LOG, message="m", request="r")) == ["matched"]
    assert ledger.hear(told(source=CLAUDE_CODE_LOG, message="m", output=99)) == ["matched"], "it is the same call, by way of the row before"
    assert len(ledger.entries) == 1


@pytest.mark.parametrize("names", [{"message": "m"}, {"request": "req_tw_1"}, {"request": "up_1"}])
def test_what_the_gateway_metered_is_never_booked_again_by_whatever_name_it_is_told(names):
    seen = metered(1, message="m", upstream="up_1")
    before, after = Ledger(), Ledger()
    before.hear(told(**names))
    before.hear(seen)
    after.hear(seen)
    assert after.hear(told(**names)) == ["matched"]
    assert before.net() == after.net()
    assert before.cost_nanos() == after.cost_nanos() == seen.cost_nanos


def test_a_request_id_that_another_proxy_made_up_does_not_make_one_call_of_many():
    ledger = Ledger()
    assert ledger.hear(*[told(message=f"m{n}", request="always-the-same") for n in range(3)]) == ["new"] * 3
    assert ledger.hear(told(request="always-the-same")) == ["new"], "alone it is at least told apart within its source"
    assert ledger.hear(told(request="always-the-same")) == ["matched"]
    assert names_of(told(message="m", request="always-the-same")) == ("message:m",)


def test_every_attempt_of_the_gateway_stands_even_if_they_share_a_request():
    ledger = Ledger()
    attempts = [metered(number, request="req_1", upstream=f"up_{number}", message="m" if number == 3 else "") for number in (1, 2, 3)]
    ledger.hear(told(message="m", request="req_1"))
    ledger.hear(*attempts)
    ledger.hear(told(message="m", request="req_1", output=50))
    assert ledger.cost_nanos() == sum(one.cost_nanos for one in attempts)


def test_what_an_operator_stated_is_not_undone_by_reading_the_same_file_again():
    ledger = Ledger()
    ledger.hear(told(message="m"))
    (booked,) = ledger.entries
    ledger.entries.append(
        replace(
            booked,
            entry_id="f" * 32,
            kind=KIND_ADJUSTMENT,
            usage=Usage(*(-count for count in astuple(booked.usage))),
            cost_nanos=-booked.cost_nanos,
            reason="operator: it was a test",
            ended_at_us=NOW_US,
        )
    )
    assert ledger.hear(told(message="m", output=500)) == ["matched"]
    assert ledger.cost_nanos() == 0


def test_another_price_card_alone_does_not_make_a_row_grow():
    ledger = Ledger()
    ledger.hear(told(message="m", flags=(FLAG_UNPRICED,)))
    assert ledger.hear(told(message="m", cost_nanos=77)) == ["matched"]


def test_the_first_attribution_of_a_record_is_kept_when_it_grows():
    ledger = Ledger()
    ledger.hear(told(message="m", team_id="team_a"))
    ledger.hear(told(message="m", output=50, team_id="team_b"))
    assert {one.team_id for one in ledger.entries} == {"team_a"}


# Any order. Few names, so that records meet in every way: directly, by way of a third, and by way of the gateway.

MESSAGES = st.sampled_from(["", "m1", "m2", "m3"])
REQUESTS = st.sampled_from(["", "r1", "r2", "r3"])


@st.composite
def records(draw) -> Entry:
    source = draw(st.sampled_from([GATEWAY, CLAUDE_CODE_OTEL, CLAUDE_CODE_LOG, CLAUDE_CODE_LOG, GENERIC]))
    message, request = draw(MESSAGES), draw(REQUESTS)
    if source == GATEWAY:
        return metered(draw(st.integers(1, 3)), message=message, request=request, upstream=draw(REQUESTS))
    return told(
        source=source,
        message=message,
        request=request,
        own="" if message or request else draw(st.sampled_from(["row-1", "row-2"])),
        output=draw(st.integers(0, 4)),
        at_us=START_US + draw(st.integers(0, 2)) * 900_000_000,
        model=draw(st.sampled_from(["claude-opus-4-5", "claude-haiku-4-5"])),
        session_id=draw(st.sampled_from(["", "s1"])),
        flags=draw(st.sampled_from([(), (FLAG_SIDECHAIN,)])),
    )


@given(st.lists(records(), max_size=8), st.randoms(use_true_random=False))
def test_any_order_and_any_batches_of_the_same_records_give_the_same_net_ledger(told_of, random):
    once: dict[str, Entry] = {}
    told_of = [one for one in told_of if one.source != GATEWAY or once.setdefault(one.entry_id, one) is one]
    nets = []
    for _ in range(3):
        ledger = Ledger()
        replayed = [*told_of, *random.choices(told_of, k=len(told_of) // 2)] if told_of else []
        random.shuffle(replayed)
        while replayed:
            size = random.randint(1, len(replayed))
            ledger.hear(*replayed[:size])
            replayed = replayed[size:]
        nets.append(ledger.net())
        assert all(amounts[0] > 0 for amounts in ledger.net().values()), "a call counts as one request, or not at all"
    assert nets[0] == nets[1] == nets[2]


@given(st.lists(records(), max_size=8))
def test_hearing_everything_again_books_nothing(told_of):
    ledger = Ledger()
    once: dict[str, Entry] = {}
    told_of = [one for one in told_of if one.source != GATEWAY or once.setdefault(one.entry_id, one) is one]
    ledger.hear(*told_of)
    count = len(ledger.entries)
    for one in told_of:
        ledger.hear(one)
    assert len(ledger.entries) == count


def test_an_adjustment_is_in_the_cell_of_what_it_takes_back():
    ledger = Ledger()
    ledger.hear(told(source=GENERIC, message="m"))
    ledger.hear(metered(1, message="m"))
    first, _, reversal = ledger.entries
    assert dims_of(replace(reversal, kind="attempt")) == dims_of(first)
