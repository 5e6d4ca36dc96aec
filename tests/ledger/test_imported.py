"""An imported call becomes an entry: priced by our card, flagged as an estimate, told apart by the provider's ids."""

from __future__ import annotations

import pytest

from bookings import START_US
from tokenweir import app
from tokenweir.ledger.entries import FLAG_UNPRICED
from tokenweir.ledger.imported import Account, ImportedCall, told_entry
from tokenweir.ledger.rollups import failed
from tokenweir.ledger.sources import CLAUDE_CODE_LOG, FLAG_ESTIMATED, FLAG_SIDECHAIN
from tokenweir.pricing.rating import cost_nanos
from tokenweir.settings import Settings
from tokenweir.usage import Certainty, Metered, Segment, Usage

USAGE = Usage(100, 20, 30, 400, 50)
ACCOUNT = Account("org_1", "team_1", "person:ada")


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return app.open_rate_card(Settings(data_dir=tmp_path_factory.mktemp("home")))


def metered(model: str = "claude-opus-4-5", **fields) -> Metered:
    return Metered(model, USAGE, (Segment("message", model, USAGE),), **fields)


def call(**fields) -> ImportedCall:
    return ImportedCall(**{"source": CLAUDE_CODE_LOG, "started_at_us": START_US, "metered": metered(), "message_id": "msg_1"} | fields)


def test_it_is_priced_by_our_card_and_says_that_it_is_an_estimate(card):
    entry = told_entry(call(sidechain=True), ACCOUNT, card)
    assert entry.cost_nanos == cost_nanos(card, metered(), at_us=START_US)[0]
    assert entry.certainty is Certainty.PARTIAL
    assert entry.flags == (FLAG_ESTIMATED, FLAG_SIDECHAIN)
    assert entry.source == CLAUDE_CODE_LOG
    assert not failed(entry)


def test_a_source_that_knows_is_not_flagged(card):
    assert told_entry(call(certainty=Certainty.EXACT), ACCOUNT, card).flags == ()


def test_an_unknown_model_costs_something_and_is_flagged(card):
    entry = told_entry(call(metered=metered("claude-next-9")), ACCOUNT, card)
    assert entry.cost_nanos > 0
    assert FLAG_UNPRICED in entry.flags


def test_a_batch_is_priced_as_one(card):
    plain, batch = told_entry(call(), ACCOUNT, card), told_entry(call(batch=True), ACCOUNT, card)
    assert batch.cost_nanos * 2 == plain.cost_nanos
    assert batch.service_tier == "batch"


def test_who_made_it_stands_in_place_of_a_key_and_the_project_is_a_tag(card):
    entry = told_entry(call(person="bob@example.org", project="/home/bob/app", tags=("x", "x")), ACCOUNT, card)
    assert entry.key_id == "person:bob@example.org"
    assert entry.tags == ("project:/home/bob/app", "x")
    assert told_entry(call(), ACCOUNT, card).key_id == "person:ada"


@pytest.mark.parametrize(
    ("ids", "key"),
    [
        ({"message_id": "m", "request_id": "r", "own_id": "o"}, "message:m"),
        ({"message_id": "", "request_id": "r", "own_id": "o"}, "request:r"),
        ({"message_id": "", "upstream_request_id": "u"}, "request:u"),
        ({"message_id": "", "own_id": "o"}, "o"),
    ],
)
def test_it_is_told_apart_by_the_provider_s_ids_before_the_source_s_own(card, ids, key):
    assert told_entry(call(**ids), ACCOUNT, card).dedup_key == key


def test_ids_that_are_too_long_stay_apart(card):
    one, other = (told_entry(call(message_id="m" * 500 + end), ACCOUNT, card) for end in "ab")
    assert one.dedup_key != other.dedup_key
    assert len(one.message_id) <= 200


def test_text_from_outside_is_cut_and_has_no_control_characters(card):
    entry = told_entry(call(session_id="a\x1b[31m" + "x" * 500, client="\0"), ACCOUNT, card)
    assert len(entry.session_id) == 200
    assert entry.session_id.isprintable()
    assert entry.client == "\ufffd"
