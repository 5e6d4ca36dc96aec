"""The built-in card against what others say of the same prices. Every difference has its reason here, and a reason that explains nothing fails too."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest

from fixtures import FIXTURES, needs_fixtures
from tokenweir.periods import DAY_US, parse_instant
from tokenweir.pricing.rate_card import BATCH, FAST, US_GEO
from tokenweir.pricing.rating import rate
from tokenweir.usage import Metered, Segment, Usage

NOW = parse_instant("2026-11-22")
CLASSES = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output")


@pytest.fixture(scope="session")
def rows(card_text):
    return json.loads(card_text)


def test_the_file_is_written_one_price_a_line_so_that_a_change_reads_well(card_text):
    assert max(map(len, card_text.splitlines())) <= 260


def test_cache_prices_keep_the_provider_s_stated_ratio_to_input(rows):
    """1.25x and 2x for writes on every model (Claude 3 Haiku's published prices are rounded). Reads differ by model and are only known to be below input."""
    for model in rows["models"]:
        if model["id"] == "claude-3-haiku":
            continue
        for row in (*model["rates"], *model["fast"]):
            for prices in (row["usd_per_mtok"], row.get("long_prompt", row)["usd_per_mtok"]):
                base = Fraction(prices["uncached_input"])
                assert Fraction(prices["cache_write_5m"]) == base * Fraction(5, 4), model["id"]
                assert Fraction(prices["cache_write_1h"]) == base * 2, model["id"]
                assert Fraction(prices["cache_read"]) in {base / 10, base / 20, base / 40}, model["id"]


def test_intervals_meet(rows):
    for model in rows["models"]:
        for before, after in pairwise(model["rates"]):
            assert before["effective_to"] == after["effective_from"], model["id"]


# The price list beside the recordings.

NOT_IN_LIST = {
    "claude-3-7-sonnet": "older than the list",
    "claude-3-5-sonnet": "older than the list",
    "claude-3-opus": "older than the list",
    "claude-3-sonnet": "older than the list",
    "claude-3-haiku": "older than the list",
}
LIST_DIFFERS = {
    ("claude-opus-4-8", "fast from 2026-11-30"): "the list gives fast prices no dates; the provider removes fast mode from Opus 4.8 on 2026-11-30",
    (
        "claude-sonnet-4-5",
        "long prompt before 2026-04-30",
    ): "the list gives only what is billed now; the 1M window of Sonnet 4.5 had the surcharge until it was retired",
}


@needs_fixtures
def test_the_price_list_agrees_row_by_row(card):
    listed = json.loads((FIXTURES / "anthropic" / "claude_prices.json").read_text("utf-8"))
    names = dict(zip(CLASSES, ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output"), strict=True))
    found = set()

    def expect(model, modifiers, at_us, prices, multiplier=1, *, long=None):
        rates = card.rates(model, modifiers, at_us)
        plain = tuple(Fraction(prices[name]) * Fraction(multiplier) for name in names.values())
        assert rates.plain_usd_per_mtok == plain, (model, modifiers, at_us)
        return rates, rates.long_above if long is None else None

    assert card.search_rate(NOW) == Fraction(listed["web_search_usd_per_1000"]) * 1_000_000 * card.denominator
    for model in listed["models"]:
        name = model["id"]
        assert card.resolve(name) == name
        facts = card.model(name)
        assert (facts.context_tokens, facts.output_tokens_max, facts.cache_tokens_min) == (
            model["context"],
            model["max_output"],
            model["prompt_cache_min_tokens"],
        )
        for row in model["prices"]:
            start = parse_instant(row["from"]) if row["from"] else parse_instant("2025-01-01")
            end = parse_instant(row["to"]) if row["to"] else parse_instant("2027-01-01")
            for at_us in (start, start + DAY_US, end - 1):
                rates, _ = expect(name, 0, at_us, row["usd_per_mtok"])
                expect(name, BATCH, at_us, row["usd_per_mtok"], model["batch_multiplier"])
                expect(name, US_GEO, at_us, row["usd_per_mtok"], model["us_geo_multiplier"] or "1.1")
                step = row.get("long_prompt")
                if step:
                    assert rates.long_above == step["above_prompt_tokens"]
                    assert rates.long_usd_per_mtok == tuple(Fraction(step["usd_per_mtok"][n]) for n in names.values())
                elif rates.long != rates.plain:
                    found.add((name, "long prompt before 2026-04-30"))
                fast = model["fast_usd_per_mtok"]
                if fast and at_us >= parse_instant("2026-11-30") and card.rates(name, FAST, at_us).plain == rates.plain:
                    found.add((name, "fast from 2026-11-30"))
                else:
                    expect(name, FAST, at_us, fast or row["usd_per_mtok"])
    assert found == set(LIST_DIFFERS)
    assert {facts.model for facts in card.models()} - {m["id"] for m in listed["models"]} == set(NOT_IN_LIST)


# genai-prices, the public price table of Pydantic. `prompt` is the uncached input that goes with the class under comparison.

NO_ROW = "genai-prices has no row for this model"
NO_OLD_BATCH = "genai-prices has no batch prices for this retired model and silently charges the full price"
LATE_BATCH = "genai-prices knows batch prices from 2026-10-14 only; the discount is older"
RETIRED_WINDOW = "genai-prices keeps the long-prompt surcharge of Sonnet 4.5, whose 1M window was retired on 2026-04-30"
FAST_ENDED = "genai-prices gives fast prices no end; fast mode leaves Opus 4.8 on 2026-11-30"
OLD_READ = "genai-prices lacks the read price of Sonnet 5.5 before 2026-10-07"

OLD = ("claude-opus-4-1", "claude-opus-4-0", "claude-sonnet-4-0", "claude-3-7-sonnet", "claude-3-5-sonnet", "claude-3-5-haiku")
OLDEST = ("claude-3-opus", "claude-3-sonnet", "claude-3-haiku")
LATE = (
    "claude-fable-5-1",
    "claude-fable-5",
    "claude-opus-5-5",
    "claude-opus-5",
    "claude-opus-4-8",
    "claude-opus-4-7",
    "claude-opus-4-6",
    "claude-opus-4-5",
    "claude-sonnet-5-5",
    "claude-sonnet-5",
    "claude-sonnet-4-6",
    "claude-sonnet-4-5",
    "claude-haiku-4-5",
    "claude-haiku-5-5",
)
DAYS = ("2026-03-12", "2026-05-01", "2026-10-06", "2026-10-15", "2026-11-22", "2026-12-01")


def _genai_explanation(model, mode, day, component, prompt):
    """Why the two differ at this place; None if they must agree."""
    if model in ("claude-mythos-5", "claude-mythos-5-1"):
        return NO_ROW
    if model == "claude-sonnet-4-5" and prompt > 200_000 and day > "2026-04-30" and (mode != "batch" or day >= "2026-10-14"):
        return RETIRED_WINDOW
    if mode == "batch" and model in (*OLD, *OLDEST):
        return NO_OLD_BATCH
    if model == "claude-sonnet-5-5" and component == "cache_read" and day < "2026-10-07":
        # In a batch the two differences cancel out: half of 0.20 is their 0.10.
        return None if mode == "batch" and prompt == 0 else OLD_READ
    if mode == "batch" and model in LATE and day < "2026-10-14":
        return LATE_BATCH
    if mode == "fast" and model == "claude-opus-4-8" and day >= "2026-11-30":
        return FAST_ENDED
    return None


def _genai_price(model, mode, day, usage):
    from genai_prices import Usage as TheirUsage
    from genai_prices import calc_price

    context = {"standard": None, "fast": {"speed": "fast"}, "batch": {"processing": "batch"}}[mode]
    theirs = TheirUsage(
        input_tokens=usage.prompt,
        cache_write_tokens=usage.cache_write_5m + usage.cache_write_1h,
        cache_write_1h_tokens=usage.cache_write_1h,
        cache_read_tokens=usage.cache_read,
        output_tokens=usage.output,
    )
    at = datetime.fromisoformat(f"{day}T12:00:00+00:00")
    return calc_price(theirs, model_ref=model, provider_id="anthropic", genai_request_timestamp=at, price_context=context).total_price


@pytest.mark.parametrize("day", DAYS)
def test_genai_prices_agrees_apart_from_explained_differences(card, day):
    pytest.importorskip("genai_prices")
    wrong, explained = [], set()
    for facts in card.models():
        for mode in ("standard", "fast", "batch"):
            for component in CLASSES:
                for prompt in (0, 250_000):
                    usage = Usage(**{"uncached_input": prompt, component: 10_000 + (prompt if component == "uncached_input" else 0)})
                    one = Metered(facts.model, usage, (Segment("message", facts.model, usage),), speed=mode if mode == "fast" else "")
                    at_us = parse_instant(f"{day}T12:00:00Z")
                    ours = Decimal(rate(card, one, at_us=at_us, batch=mode == "batch").nanos) / 10**9
                    try:
                        theirs = _genai_price(facts.model, mode, day, usage)
                    except LookupError:
                        theirs = None
                    reason = _genai_explanation(facts.model, mode, day, component, prompt)
                    if (ours == theirs) is (reason is None):
                        explained.add(reason)
                    else:
                        wrong.append((facts.model, mode, component, prompt, str(ours), str(theirs), reason))
    assert not wrong
    assert NO_ROW in explained


# What an independent client computed for recorded usage objects.


def _compaction_cost(vector, prices):
    """What the compaction entries cost by the price list; none of the recorded ones passes a long-prompt step."""
    exact = Fraction(0)
    for entry in vector["usage"]["iterations"]:
        if entry["type"] == "compaction":
            assert entry.get("cache_creation_input_tokens", 0) == entry.get("cache_read_input_tokens", 0) == 0
            prompt = entry["input_tokens"]
            step = prices.get("long_prompt")
            paid = step["usd_per_mtok"] if step and prompt > step["above_prompt_tokens"] else prices["usd_per_mtok"]
            exact += prompt * Fraction(paid["input"]) + entry["output_tokens"] * Fraction(paid["output"])
    return exact / 10**6


def _expected(vector, prices):
    """The client's cost, corrected where it is known to differ from the bill; and the name of that difference."""
    cost, usage = Fraction(repr(vector["delta"])), vector["usage"]
    if usage["service_tier"] == "batch":
        assert not usage["server_tool_use"]["web_search_requests"]
        return cost / 2, "the client does not know the batch discount"
    if usage["speed"] == "fast" and vector["model"] == "claude-opus-4-6":
        return cost / 6, "the client still prices Opus 4.6 fast at six times standard, which it bills"
    if any(entry["type"] == "compaction" for entry in usage["iterations"]):
        return cost + _compaction_cost(vector, prices[vector["model"]]), "the client leaves out compaction"
    return cost, ""


@needs_fixtures
def test_every_cost_vector_prices_exactly_apart_from_the_named_differences(card):
    from tokenweir.wire.messages import read_usage

    folder = FIXTURES / "anthropic"
    prices = {m["id"]: m["prices"][-1] for m in json.loads((folder / "claude_prices.json").read_text("utf-8"))["models"]}
    wrong, named = [], {}
    lines = (folder / "cost_vectors.jsonl").read_text("utf-8").splitlines()
    for vector in map(json.loads, lines):
        metered = read_usage(json.dumps(vector["usage"]).encode(), model=vector["model"])
        charge = rate(card, metered, at_us=NOW)
        expected, difference = _expected(vector, prices)
        named[difference] = named.get(difference, 0) + 1
        if charge.nanos != round(expected * 10**9):
            wrong.append((vector["model"], vector["case"], charge.nanos, str(round(expected * 10**9)), difference))
        assert not charge.unpriced
    assert not wrong
    assert len(lines) >= 102
    assert {k for k in named if k} == {
        "the client does not know the batch discount",
        "the client still prices Opus 4.6 fast at six times standard, which it bills",
        "the client leaves out compaction",
    }
