from __future__ import annotations

import json
from fractions import Fraction

import pytest

from tokenweir.errors import NotFound
from tokenweir.periods import parse_instant
from tokenweir.pricing.rate_card import BATCH, FAST, US_GEO, parse_rate_card

NOW = parse_instant("2026-11-22")
CLASSES = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output")


def _dollars(card, model, day_us, modifiers=0, *, long=False):
    rates = card.rates(model, modifiers, day_us)
    return [float(x) for x in (rates.long_usd_per_mtok if long else rates.plain_usd_per_mtok)]


def test_the_version_states_the_card_and_its_content(card, card_text):
    assert card.version.startswith("2026-11-22+")
    other = parse_rate_card(card_text.replace('"0.10"', '"0.11"', 1))
    assert other.version.startswith("2026-11-22+")
    assert other.version != card.version
    assert parse_rate_card(card_text).version == card.version


def test_facts_of_a_model(card):
    facts = card.model("claude-haiku-4-5")
    assert (facts.context_tokens, facts.output_tokens_max, facts.cache_tokens_min, facts.lifecycle) == (200_000, 64_000, 4_096, "active")
    assert card.model("claude-sonnet-4-5").retires_on == "2026-11-30"
    assert card.model("claude-opus-4-0").lifecycle == "retired"
    assert card.model("claude-fable-5-2").cache_tokens_min is None
    with pytest.raises(NotFound, match="claude-9"):
        card.model("claude-9")


def test_sonnet_5_5_reads_became_cheaper_on_a_day(card):
    border = parse_instant("2026-10-07")
    assert _dollars(card, "claude-sonnet-5-5", border - 1) == [2, 2.5, 4, 0.20, 10]
    assert _dollars(card, "claude-sonnet-5-5", border) == [2, 2.5, 4, 0.10, 10]


@pytest.mark.parametrize(
    ("model", "border", "plain", "long"),
    [
        ("claude-opus-4-6", "2026-03-13", [5, 6.25, 10, 0.5, 25], [10, 12.5, 20, 1, 37.5]),
        ("claude-sonnet-4-6", "2026-03-13", [3, 3.75, 6, 0.3, 15], [6, 7.5, 12, 0.6, 22.5]),
        ("claude-sonnet-4-5", "2026-04-30", [3, 3.75, 6, 0.3, 15], [6, 7.5, 12, 0.6, 22.5]),
    ],
)
def test_the_long_prompt_surcharge_ended_on_a_day(card, model, border, plain, long):
    at = parse_instant(border)
    before, after = card.rates(model, 0, at - 1), card.rates(model, 0, at)
    assert before.long_above == 200_000
    assert _dollars(card, model, at - 1) == _dollars(card, model, at) == plain
    assert _dollars(card, model, at - 1, long=True) == long
    assert after.long == after.plain


def test_opus_4_8_fast_ends_on_a_day_and_bills_standard_from_then(card):
    border = parse_instant("2026-11-30")
    assert _dollars(card, "claude-opus-4-8", border - 1, FAST) == [10, 12.5, 20, 1, 50]
    assert _dollars(card, "claude-opus-4-8", border, FAST) == [5, 6.25, 10, 0.5, 25]


@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-opus-4-7", "claude-sonnet-5-5", "claude-fable-5-1", "claude-haiku-5-5"])
def test_a_model_without_a_fast_table_bills_standard(card, model):
    assert _dollars(card, model, NOW, FAST) == _dollars(card, model, NOW)


@pytest.mark.parametrize(
    ("model", "border"), [("claude-haiku-5-5", "2026-10-07"), ("claude-fable-5-2", "2026-11-09"), ("claude-mythos-5-2", "2026-11-09")]
)
def test_before_its_first_day_a_model_takes_its_nearest_row_and_is_unpriced(card, model, border):
    at = parse_instant(border)
    assert card.rates(model, 0, at - 1).unpriced
    assert not card.rates(model, 0, at).unpriced
    assert card.rates(model, 0, at - 1).plain == card.rates(model, 0, at).plain


def test_after_its_last_day_a_model_takes_its_nearest_row_and_is_unpriced(card_text):
    content = json.loads(card_text)
    opus = next(m for m in content["models"] if m["id"] == "claude-opus-5")
    opus["rates"][0]["effective_to"] = "2026-12-01"
    opus["fast"] = []
    card = parse_rate_card(json.dumps(content))
    border = parse_instant("2026-12-01")
    assert not card.rates("claude-opus-5", 0, border - 1).unpriced
    assert card.rates("claude-opus-5", 0, border).unpriced
    assert card.rates("claude-opus-5", 0, border).plain == card.rates("claude-opus-5", 0, border - 1).plain


def test_modifiers_multiply_every_class(card):
    base = card.rates("claude-opus-5", 0, NOW).plain_usd_per_mtok
    assert card.rates("claude-opus-5", US_GEO, NOW).plain_usd_per_mtok == tuple(p * Fraction(11, 10) for p in base)
    assert card.rates("claude-opus-5", BATCH, NOW).plain_usd_per_mtok == tuple(p / 2 for p in base)
    assert card.rates("claude-opus-5", BATCH | US_GEO, NOW).plain_usd_per_mtok == tuple(p * Fraction(55, 100) for p in base)
    assert card.rates("claude-opus-5", FAST | US_GEO, NOW).plain_usd_per_mtok == tuple(p * Fraction(22, 10) for p in base)


def test_fast_and_batch_together_take_the_fast_rates_without_discount(card):
    assert card.rates("claude-opus-5", FAST | BATCH, NOW).plain == card.rates("claude-opus-5", FAST, NOW).plain
    assert card.rates("claude-sonnet-5", FAST | BATCH, NOW).plain == card.rates("claude-sonnet-5", BATCH, NOW).plain


def test_the_fallback_is_as_dear_as_any_model_on_offer_in_every_class_and_under_every_modifier(card):
    for modifiers in range(8):
        fallback = card.rates("claude-from-next-year", modifiers, NOW)
        assert fallback.unpriced
        assert fallback.model == ""
        for facts in card.models():
            if facts.lifecycle != "retired":
                rates = card.rates(facts.model, modifiers, NOW)
                assert all(f >= max(p, q) for f, p, q in zip(fallback.plain, rates.plain, rates.long, strict=True)), facts.model


def test_whole_numbers_over_the_denominator_are_exact(card):
    for facts in card.models():
        for modifiers in range(8):
            for at in (parse_instant("2025-01-01"), NOW):
                rates = card.rates(facts.model, modifiers, at)
                for numbers, dollars in ((rates.plain, rates.plain_usd_per_mtok), (rates.long, rates.long_usd_per_mtok)):
                    assert [Fraction(n, card.denominator) for n in numbers] == [d * 1000 for d in dollars]


def test_memory_of_spellings_is_bounded(card_text):
    card = parse_rate_card(card_text)
    for number in range(10_000):
        card.rates(f"stranger-{number}", 0, NOW)
    assert len(card._spelled) <= 4_096


def test_the_oldest_check_is_that_of_a_rate_in_force(card_text):
    content = json.loads(card_text)
    sonnet = next(m for m in content["models"] if m["id"] == "claude-sonnet-5-5")
    sonnet["rates"][0]["checked"] = "2026-01-01"
    assert parse_rate_card(json.dumps(content)).oldest_check == "2026-11-22"
    sonnet["rates"][1]["checked"] = "2026-02-01"
    assert parse_rate_card(json.dumps(content)).oldest_check == "2026-02-01"
