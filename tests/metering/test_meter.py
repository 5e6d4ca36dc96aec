"""The meter: one settlement for every attempt, whatever happens, and never more certain or cheaper than what was seen."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.app import IdMint, open_rate_card
from tokenweir.errors import JournalBroken, JournalFull
from tokenweir.ledger.entries import FLAG_UNPRICED, Intent, Settlement
from tokenweir.metering import meter as meter_module
from tokenweir.metering.meter import Meter, Outcome, State, Ticket, conclude
from tokenweir.principals import Principal
from tokenweir.settings import Settings
from tokenweir.usage import Certainty, Usage
from tokenweir.wire.envelope import Envelope
from tokenweir.wire.headers import Attribution
from tokenweir.wire.messages import StreamMeter, read_message

CARD = open_rate_card(Settings())
PRINCIPAL = Principal("org", "team", "key", "Acme", "red", "ci", tags=("night",))
ENVELOPE = Envelope(model="claude-sonnet-4-5", max_tokens=100, body_bytes=200)
MESSAGE = (
    b'{"id":"msg_1","type":"message","model":"claude-sonnet-4-5","content":[],"stop_reason":"end_turn",'
    b'"usage":{"input_tokens":10,"output_tokens":20,"service_tier":"standard"}}'
)


class Clock:
    def __init__(self) -> None:
        self.us = 1_790_000_000_000_000

    def now_us(self) -> int:
        self.us += 1_000
        return self.us

    def monotonic_ns(self) -> int:
        return self.us * 1000


class Journal:
    def __init__(self) -> None:
        self.records: list[Intent | Settlement] = []
        self.fails: Exception | None = None

    def append_intent(self, intent: Intent) -> None:
        if self.fails:
            raise self.fails
        self.records.append(intent)

    append_settlement = append_intent


class Gauge:
    """A meter with its journal."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.meter = Meter(journal=self.journal, card=CARD, clock=Clock(), mint=IdMint())

    def admit(self, envelope: Envelope = ENVELOPE) -> Ticket:
        """A ticket; without limits nothing is waited for."""
        admission = self.meter.admit(PRINCIPAL, envelope, Attribution(session_id="s1", client="sdk/1", client_retry=2), request_id="req_1")
        with pytest.raises(StopIteration) as done:
            admission.send(None)
        ticket = done.value.value
        assert isinstance(ticket, Ticket)
        return ticket

    @property
    def certainties(self) -> list[str]:
        return [record.certainty.value for record in self.journal.records if isinstance(record, Settlement)]


def test_an_intent_says_who_what_and_the_most_it_can_cost():
    gauge = Gauge()
    with gauge.admit() as ticket:
        attempt = ticket.open_attempt()
        attempt.settle(Outcome(status=400, refused=True))
    intent = gauge.journal.records[0]
    assert isinstance(intent, Intent)
    assert (intent.organization_id, intent.team_id, intent.key_id, intent.tags) == ("org", "team", "key", ("night",))
    assert (intent.request_id, intent.attempt_no, intent.session_id, intent.client, intent.client_retry) == ("req_1", 1, "s1", "sdk/1", 2)
    assert intent.ceiling.output == 100
    assert intent.ceiling.prompt >= ENVELOPE.body_bytes
    assert intent.ceiling_nanos > 0
    assert intent.card_version == CARD.version
    assert len(intent.attempt_id) == 32


def test_leaving_the_ticket_settles_an_open_attempt_at_its_ceiling():
    gauge = Gauge()
    with gauge.admit() as ticket:
        ticket.open_attempt()
    intent, settlement = gauge.journal.records
    assert (settlement.certainty, settlement.cut, settlement.error_type) == (Certainty.CEILING, "gateway", "")
    assert (settlement.usage, settlement.cost_nanos) == (intent.ceiling, intent.ceiling_nanos)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
def test_leaving_it_by_any_exception_does_so_too_and_the_exception_goes_on(error):
    gauge = Gauge()

    def serve() -> None:
        with gauge.admit() as ticket:
            ticket.open_attempt()
            raise error

    with pytest.raises(error):
        serve()
    assert gauge.certainties == ["ceiling"]
    assert gauge.journal.records[1].error_type == "gateway_failure"


def test_a_ticket_that_never_sent_anything_leaves_no_record():
    gauge = Gauge()
    with gauge.admit():
        pass
    assert gauge.journal.records == []


def test_settling_twice_is_refused():
    gauge = Gauge()
    with gauge.admit() as ticket:
        attempt = ticket.open_attempt()
        attempt.settle(Outcome(status=400, refused=True))
        with pytest.raises(RuntimeError, match="settled already"):
            attempt.settle(Outcome())
    assert gauge.certainties == ["none"]


def test_a_second_attempt_while_the_first_is_open_is_refused():
    gauge = Gauge()
    with gauge.admit() as ticket:
        ticket.open_attempt()
        with pytest.raises(RuntimeError, match="still open"):
            ticket.open_attempt()
    assert gauge.certainties == ["ceiling"]


def test_each_attempt_has_its_own_record_and_number():
    gauge = Gauge()
    with gauge.admit() as ticket:
        for _ in range(3):
            ticket.open_attempt().settle(Outcome(status=529, refused=True, error_type="overloaded_error"))
    intents = gauge.journal.records[::2]
    assert [intent.attempt_no for intent in intents] == [1, 2, 3]
    assert len({intent.attempt_id for intent in intents}) == 3


def test_a_full_journal_opens_no_attempt():
    gauge = Gauge()
    gauge.journal.fails = JournalFull()
    with gauge.admit() as ticket:
        with pytest.raises(JournalFull):
            ticket.open_attempt()
        assert ticket.attempts == 0
    assert gauge.journal.records == []


def test_a_broken_journal_is_not_asked_twice_for_one_settlement():
    """It may have written the record before it failed: a second one would be booked twice."""
    gauge = Gauge()
    with gauge.admit() as ticket:
        attempt = ticket.open_attempt()
        gauge.journal.fails = JournalBroken()
        with pytest.raises(JournalBroken):
            attempt.settle(Outcome(status=200))
        gauge.journal.fails = None
    assert attempt.state is State.SETTLED
    assert gauge.certainties == []


def test_an_outcome_that_cannot_be_priced_is_booked_at_the_ceiling(monkeypatch):
    """A fault in reading or rating must not lose the attempt."""
    gauge = Gauge()

    def fails(*_: object, **__: object) -> None:
        raise ArithmeticError

    def serve() -> None:
        with gauge.admit() as ticket:
            attempt = ticket.open_attempt()
            with monkeypatch.context() as patch:
                patch.setattr(meter_module, "cost_nanos", fails)
                attempt.settle(Outcome(status=200, reading=read_message(MESSAGE, requested_model="m")))

    with pytest.raises(ArithmeticError):
        serve()
    assert gauge.certainties == ["ceiling"]


def settled(outcome: Outcome, envelope: Envelope = ENVELOPE) -> tuple[Intent, Settlement]:
    gauge = Gauge()
    with gauge.admit(envelope) as ticket:
        ticket.open_attempt().settle(outcome)
    intent, settlement = gauge.journal.records
    return intent, settlement


def test_final_usage_is_exact():
    intent, settlement = settled(
        Outcome(status=200, reading=read_message(MESSAGE, requested_model="m"), upstream_request_id="req_up", first_byte_us=7)
    )
    assert (settlement.certainty, settlement.usage) == (Certainty.EXACT, Usage(uncached_input=10, output=20))
    assert settlement.cost_nanos == 10 * 3_000 + 20 * 15_000
    assert (settlement.upstream_request_id, settlement.first_byte_us, settlement.message_id) == ("req_up", 7, "msg_1")
    assert (settlement.service_tier, settlement.stop_reason) == ("standard", "end_turn")
    assert settlement.ended_at_us > intent.started_at_us
    assert settlement.raw_usage == b'{"input_tokens":10,"output_tokens":20,"service_tier":"standard"}'


def test_a_cut_stream_is_partial():
    meter = StreamMeter("m")
    meter.feed(b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":9,"output_tokens":1}}}\n\n')
    _, settlement = settled(Outcome(status=200, reading=meter.reading(), cut="client"))
    assert (settlement.certainty, settlement.cut, settlement.usage) == (Certainty.PARTIAL, "client", Usage(uncached_input=9, output=1))


def test_a_refusal_costs_nothing():
    _, settlement = settled(Outcome(status=429, refused=True, error_type="rate_limit_error"))
    assert (settlement.certainty, settlement.usage, settlement.cost_nanos) == (Certainty.NONE, Usage(), 0)
    assert (settlement.status, settlement.error_type) == (429, "rate_limit_error")


@pytest.mark.parametrize("reading", [None, read_message(b"not json", requested_model="m"), StreamMeter("m").reading()])
def test_what_was_sent_and_not_learned_is_the_ceiling(reading):
    intent, settlement = settled(Outcome(status=200, reading=reading))
    assert (settlement.certainty, settlement.usage, settlement.cost_nanos) == (Certainty.CEILING, intent.ceiling, intent.ceiling_nanos)


def test_an_error_that_came_with_200_as_the_whole_answer_costs_nothing():
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}'
    _, settlement = settled(Outcome(status=200, reading=read_message(body, requested_model="m")))
    assert (settlement.certainty, settlement.cost_nanos, settlement.error_type) == (Certainty.NONE, 0, "overloaded_error")


def test_an_unknown_model_is_never_free_and_is_flagged():
    envelope = Envelope(model="claude-novel-9", max_tokens=100, body_bytes=200)
    for outcome in (Outcome(), Outcome(status=200, reading=read_message(MESSAGE.replace(b"sonnet-4-5", b"novel-9"), requested_model="m"))):
        intent, settlement = settled(outcome, envelope)
        assert intent.ceiling_nanos > 0
        assert settlement.cost_nanos > 0
        assert FLAG_UNPRICED in settlement.flags
    _, refused = settled(Outcome(refused=True), envelope)
    assert refused.flags == ()


outcomes = st.builds(
    Outcome,
    status=st.sampled_from([0, 200, 429, 500]),
    refused=st.booleans(),
    reading=st.sampled_from([None, read_message(MESSAGE, requested_model="m"), read_message(b"", requested_model="m")]),
    cut=st.sampled_from(["", "client", "upstream", "shutdown"]),
)


@given(outcome=outcomes)
def test_no_outcome_is_booked_above_its_ceiling_or_below_nothing(outcome):
    gauge = Gauge()
    with gauge.admit() as ticket:
        intent = ticket.open_attempt().intent
    settlement = conclude(CARD, intent, outcome, now_us=intent.started_at_us + 1)
    assert 0 <= settlement.cost_nanos <= intent.ceiling_nanos
    assert settlement.attempt_id == intent.attempt_id


@given(story=st.lists(st.sampled_from(["open", "settle", "refuse", "fail", "leave"]), max_size=12))
def test_whatever_is_done_every_intent_has_one_settlement(story):
    """Any order of opening, settling, failing and leaving; misuse raises and books nothing."""
    gauge = Gauge()
    with contextlib.suppress(ZeroDivisionError), gauge.admit() as ticket:
        attempt = None
        for act in story:
            with contextlib.suppress(RuntimeError):
                if act == "open":
                    attempt = ticket.open_attempt()
                elif act == "leave":
                    break
                elif act == "fail":
                    raise ZeroDivisionError
                elif attempt is not None:
                    attempt.settle(Outcome(status=200, refused=act == "refuse"))
    sent = [r.attempt_id for r in gauge.journal.records if isinstance(r, Intent)]
    ended = [r.attempt_id for r in gauge.journal.records if isinstance(r, Settlement)]
    assert sorted(sent) == sorted(ended)
    assert len(set(sent)) == len(sent)
