"""Correcting: what is rated again, and what stands as it is."""

from __future__ import annotations

import pytest

from bookings import START_US, DictLedger, entry
from tokenweir.app import open_rate_card
from tokenweir.errors import Conflict
from tokenweir.ledger.entries import FLAG_UNPRICED
from tokenweir.metering.correcting import repriced, rerate, state_usage
from tokenweir.pricing.rating import ceiling_cost
from tokenweir.settings import Settings
from tokenweir.usage import Certainty, Usage

CARD = open_rate_card(Settings())
MODEL = "claude-sonnet-4-5"
NOW = START_US + 10**9


def test_a_partial_count_is_rated_by_what_was_booked_and_not_by_the_fragment_that_was_seen():
    booked = entry(
        1,
        model=MODEL,
        certainty=Certainty.PARTIAL,
        usage=Usage(output=100),
        raw_usage=b'{"input_tokens":1,"output_tokens":1}',
        flags=(FLAG_UNPRICED,),
    )
    correction = rerate([booked], CARD, now_us=NOW)
    assert correction is not None
    assert correction.after_nanos == 100 * 15_000


def test_a_ceiling_without_a_price_gets_the_ceiling_of_its_model():
    usage = Usage(uncached_input=1000, output=1000)
    booked = entry(1, model=MODEL, certainty=Certainty.CEILING, usage=usage, raw_usage=b"", flags=(FLAG_UNPRICED,))
    correction = rerate([booked], CARD, now_us=NOW)
    assert correction is not None
    assert correction.after_nanos == ceiling_cost(CARD, MODEL, usage, at_us=START_US, speed="", inference_geo="")


@pytest.mark.parametrize(
    "fields",
    [
        {"certainty": Certainty.NONE, "cost_nanos": 0, "usage": Usage(), "flags": (FLAG_UNPRICED,)},
        {"model": "no-such-model", "flags": (FLAG_UNPRICED,)},
        {"flags": ()},
    ],
)
def test_refusals_unknown_models_and_what_had_its_price_stand(fields):
    assert rerate([entry(1, **{"model": MODEL, **fields})], CARD, now_us=NOW) is None


def test_with_a_changed_card_everything_asked_for_is_rated_again_and_only_once():
    booked = [entry(1, model=MODEL, usage=Usage(output=10), raw_usage=b"", cost_nanos=1)]
    correction = rerate(booked, CARD, now_us=NOW, only_unpriced=False)
    assert correction is not None
    assert (correction.before_nanos, correction.after_nanos) == (1, 150_000)
    assert rerate([*booked, *correction.entries], CARD, now_us=NOW, only_unpriced=False) is None


def test_only_one_of_two_operators_who_correct_at_once_succeeds():
    store = DictLedger()
    booked = entry(1, model=MODEL, certainty=Certainty.CEILING)
    store.book([booked])
    seen = store.entries_of(booked.attempt_id)
    assert state_usage(store, CARD, booked.attempt_id, b'{"output_tokens":5}', reason="a", now_us=NOW) is not None
    store.entries_of = lambda _: seen
    with pytest.raises(Conflict, match="someone else"):
        state_usage(store, CARD, booked.attempt_id, b'{"output_tokens":6}', reason="b", now_us=NOW)


def test_only_what_this_card_rated_from_an_exact_count_can_be_checked():
    same = {"begun": {"card_version": CARD.version}, "model": MODEL, "usage": Usage(output=10), "raw_usage": b'{"output_tokens":10}'}
    assert repriced(entry(1, **same), CARD) == 150_000
    assert repriced(entry(1, **same | {"begun": {}}), CARD) is None
    assert repriced(entry(1, **same | {"certainty": Certainty.PARTIAL}), CARD) is None
    assert repriced(entry(1, **same | {"raw_usage": b""}), CARD) is None
    assert repriced(entry(1, **same | {"raw_usage": b'{"output_tokens":11}'}), CARD) is None
