from __future__ import annotations

import json

import pytest

from tokenweir.errors import RateCardInvalid
from tokenweir.pricing.rate_card import parse_rate_card


def _model(content, model_id):
    return next(m for m in content["models"] if m["id"] == model_id)


def _set(*path, value):
    """A change to Sonnet 5.5, the model with two intervals."""

    def change(content):
        place = _model(content, "claude-sonnet-5-5")
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def _drop(*path):
    def change(content):
        place = _model(content, "claude-sonnet-5-5")
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


def _top(**fields):
    return lambda content: content.update(fields)


def _fallback(**fields):
    return lambda content: content["fallback"].update(fields)


def _fast_overlap(content):
    rows = _model(content, "claude-opus-4-8")["fast"]
    rows.append({**rows[0], "effective_from": "2026-11-29", "effective_to": None})


REFUSED = {
    "price as number": (_set("rates", 0, "usd_per_mtok", "output", value=10), ["claude-sonnet-5-5", "rates[0].usd_per_mtok.output", "10"]),
    "negative price": (_set("rates", 0, "usd_per_mtok", "output", value="-1"), ["claude-sonnet-5-5", "rates[0].usd_per_mtok.output", '"-1"']),
    "price with exponent": (_set("rates", 1, "usd_per_mtok", "cache_read", value="1e-1"), ["claude-sonnet-5-5", "cache_read", '"1e-1"']),
    "empty price": (_set("rates", 1, "usd_per_mtok", "cache_read", value=""), ["claude-sonnet-5-5", "cache_read", '""']),
    "price with dollar": (_set("rates", 1, "usd_per_mtok", "cache_read", value="$0.1"), ["cache_read", '"$0.1"']),
    "too fine": (_set("rates", 1, "usd_per_mtok", "cache_read", value="0.1234567"), ["cache_read", '"0.1234567"']),
    "class missing": (_drop("rates", 0, "usd_per_mtok", "cache_write_1h"), ["claude-sonnet-5-5", "rates[0].usd_per_mtok", "cache_write_1h"]),
    "unknown field": (
        _set("rates", 0, "usd_per_mtok", "cache_write_2h", value="1"),
        ["claude-sonnet-5-5", "rates[0].usd_per_mtok", "cache_write_2h"],
    ),
    "gap": (
        _set("rates", 1, "effective_from", value="2026-10-08"),
        ["claude-sonnet-5-5", "rates[1].effective_from", '"2026-10-08"', "gap", "2026-10-07"],
    ),
    "overlap": (_set("rates", 1, "effective_from", value="2026-10-06"), ["claude-sonnet-5-5", "rates[1].effective_from", '"2026-10-06"', "overlaps"]),
    "open in the middle": (_set("rates", 0, "effective_to", value=None), ["claude-sonnet-5-5", "rates[1].effective_from", "overlaps"]),
    "second row without start": (_set("rates", 1, "effective_from", value=None), ["claude-sonnet-5-5", "rates[1].effective_from", "null"]),
    "ends before it starts": (_set("rates", 1, "effective_to", value="2026-10-07"), ["claude-sonnet-5-5", "rates[1].effective_to", "after"]),
    "no such day": (_set("rates", 1, "effective_to", value="2026-11-31"), ["claude-sonnet-5-5", "rates[1].effective_to", '"2026-11-31"']),
    "time in a date": (_set("rates", 0, "checked", value="2026-11-22T00:00"), ["claude-sonnet-5-5", "rates[0].checked"]),
    "no rates": (_set("rates", value=[]), ["claude-sonnet-5-5", "rates"]),
    "no source": (_set("rates", 0, "sources", value=[]), ["claude-sonnet-5-5", "rates[0].sources"]),
    "unknown source": (_set("rates", 0, "sources", value=["hearsay"]), ["claude-sonnet-5-5", "rates[0].sources", '"hearsay"']),
    "no date checked": (_drop("rates", 0, "checked"), ["claude-sonnet-5-5", "rates[0]", "checked"]),
    "bad lifecycle": (_set("lifecycle", value="dead"), ["claude-sonnet-5-5", "lifecycle", '"dead"']),
    "geo below one": (_set("us_geo_multiplier", value="0.9"), ["claude-sonnet-5-5", "us_geo_multiplier", '"0.9"']),
    "batch above one": (_set("batch_multiplier", value="1.5"), ["claude-sonnet-5-5", "batch_multiplier", '"1.5"']),
    "free batch": (_set("batch_multiplier", value="0"), ["claude-sonnet-5-5", "batch_multiplier", '"0"']),
    "step of zero": (
        _set(
            "rates",
            0,
            "long_prompt",
            value={
                "above_prompt_tokens": 0,
                "usd_per_mtok": dict.fromkeys(["uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output"], "1"),
            },
        ),
        ["claude-sonnet-5-5", "above_prompt_tokens", "0"],
    ),
    "alias of another": (_set("aliases", value=["claude-opus-5"]), ["claude-opus-5", "already"]),
    "same model twice": (lambda c: c["models"].append(c["models"][0]), ["claude-fable-5-2", "already"]),
    "odd alias": (_set("aliases", value=["Claude 5"]), ["claude-sonnet-5-5", '"Claude 5"']),
    "no context": (_set("context_tokens", value=0), ["claude-sonnet-5-5", "context_tokens", "0"]),
    "fast rows overlap": (_fast_overlap, ["claude-opus-4-8", "fast[1].effective_from", "overlaps"]),
    "model is no object": (lambda c: c["models"].append("claude"), ["model number", "claude"]),
    "no models": (_top(models=[]), ["models"]),
    "models missing": (lambda c: c.pop("models"), ["models"]),
    "other unit": (_top(unit="EUR per million tokens"), ["unit", "EUR"]),
    "no version": (_top(version=" "), ["version"]),
    "search price": (lambda c: c["web_search"][0].update(usd_per_thousand=10), ["web_search[0].usd_per_thousand", "10"]),
    "no search price": (_top(web_search=[]), ["web_search"]),
    "cheap fallback": (_fallback(batch_multiplier="0.4"), ["fallback", "batch_multiplier", '"0.4"']),
    "unknown top field": (_top(discount="0.5"), ["discount"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_bad_row_refuses_the_whole_card_in_a_sentence_that_names_it(card_text, name):
    change, words = REFUSED[name]
    content = json.loads(card_text)
    change(content)
    with pytest.raises(RateCardInvalid) as refusal:
        parse_rate_card(json.dumps(content))
    for word in words:
        assert word in refusal.value.message, refusal.value.message
    assert "\n" not in refusal.value.message
    assert len(refusal.value.message) < 400


@pytest.mark.parametrize("component", ["uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output"])
@pytest.mark.parametrize("field", ["usd_per_mtok", "fast_usd_per_mtok"])
def test_a_fallback_that_is_cheaper_than_a_model_on_offer_is_refused(card_text, field, component):
    content = json.loads(card_text)
    content["fallback"][field][component] = "0.05"
    with pytest.raises(RateCardInvalid, match=rf"fallback: {field}.{component}.*costs more"):
        parse_rate_card(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"card"', "{}", '{"models": 3}', "[" * 100_000, '{"version": "1", "version": "2"}'])
def test_what_is_not_a_card_is_refused(text):
    with pytest.raises(RateCardInvalid):
        parse_rate_card(text)


def test_a_key_given_twice_is_refused(card_text):
    doubled = card_text.replace('"output": "40"', '"output": "40", "output": "4"', 1)
    assert doubled != card_text
    with pytest.raises(RateCardInvalid, match="output stands twice"):
        parse_rate_card(doubled)


def test_every_truncation_of_the_card_is_refused(card_text):
    for length in range(0, len(card_text.rstrip()), 997):
        with pytest.raises(RateCardInvalid):
            parse_rate_card(card_text[:length])


def test_a_fast_mode_may_end_and_come_back(card_text):
    content = json.loads(card_text)
    rows = _model(content, "claude-opus-4-8")["fast"]
    rows.append({**rows[0], "effective_from": "2027-01-01", "effective_to": None})
    parse_rate_card(json.dumps(content))
