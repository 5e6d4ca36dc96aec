from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.money import round_nanos
from tokenweir.periods import parse_instant
from tokenweir.pricing.rate_card import parse_rate_card
from tokenweir.pricing.rating import ceiling_cost, cost_nanos, rate
from tokenweir.usage import Metered, Segment, Usage

NOW = parse_instant("2026-11-22")
CLASSES = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
MODELS = (
    "claude-fable-5-2",
    "claude-opus-5-5",
    "claude-opus-5",
    "claude-opus-4-8",
    "claude-opus-4-6",
    "claude-sonnet-5-5",
    "claude-sonnet-4-5",
    "claude-haiku-5-5",
    "claude-haiku-4-5-20251001",
    "claude-unheard-of",
)

tokens = st.one_of(st.integers(0, 3), st.integers(0, 250_000), st.sampled_from([99_999, 100_000, 100_001, 200_000, 200_001, 10**12]))
usages = st.builds(
    Usage, uncached_input=tokens, cache_write_5m=tokens, cache_write_1h=tokens, cache_read=tokens, output=tokens, web_searches=st.integers(0, 50)
)
instants = st.sampled_from(
    [
        parse_instant(day) + shift
        for day in ("2026-03-13", "2026-04-30", "2026-10-07", "2026-11-09", "2026-11-22", "2026-11-30")
        for shift in (-1, 0, 1)
    ]
)
speeds = st.sampled_from(["", "standard", "fast"])
geos = st.sampled_from(["", "global", "us", "not_available"])
tiers = st.sampled_from(["", "standard", "priority", "batch"])
segments = st.builds(Segment, kind=st.just("message"), model=st.sampled_from(MODELS), usage=usages)
metereds = st.builds(
    Metered,
    model=st.sampled_from(MODELS),
    usage=usages,
    segments=st.lists(segments, max_size=4).map(tuple),
    service_tier=tiers,
    speed=speeds,
    inference_geo=geos,
)


def metered(model="claude-opus-5", usage=None, **fields):
    usage = usage or Usage()
    return Metered(model=model, usage=usage, segments=(Segment("message", model, usage),), **fields)


def usd(nanos):
    return Decimal(nanos) / 10**9


@given(metereds, instants, st.booleans())
def test_the_lines_sum_to_the_charge_and_the_fast_path_agrees(card, one, at_us, batch):
    charge = rate(card, one, at_us=at_us, batch=batch)
    assert sum(line.nanos for line in charge.lines) == charge.nanos
    assert cost_nanos(card, one, at_us=at_us, batch=batch) == (charge.nanos, charge.unpriced)
    assert charge.card_version == card.version
    assert all(line.nanos >= 0 and line.quantity > 0 for line in charge.lines)


@given(metereds, instants, st.booleans())
def test_the_charge_is_the_exact_sum_of_its_stated_lines_rounded_once(card, one, at_us, batch):
    charge = rate(card, one, at_us=at_us, batch=batch)
    exact = sum((line.quantity * Fraction(line.usd_per_mtok) * 1000 for line in charge.lines), Fraction(0))
    assert charge.nanos == round_nanos(exact)
    for line in charge.lines:
        assert abs(line.nanos - line.quantity * Fraction(line.usd_per_mtok) * 1000) <= 1


@given(usage=usages, more=usages, model=st.sampled_from(MODELS), at_us=instants, speed=speeds, geo=geos, tier=tiers)
def test_more_usage_never_costs_less(*, card, usage, more, model, at_us, speed, geo, tier):
    larger = Usage(*(getattr(usage, f) + getattr(more, f) for f in usage.__struct_fields__))
    rest = {"speed": speed, "inference_geo": geo, "service_tier": tier}
    assert cost_nanos(card, metered(model, larger, **rest), at_us=at_us)[0] >= cost_nanos(card, metered(model, usage, **rest), at_us=at_us)[0]


@given(data=st.data(), ceiling=usages, model=st.sampled_from(MODELS), at_us=instants, speed=speeds, geo=st.sampled_from(["", "global", "us"]))
def test_no_usage_within_a_ceiling_costs_more_than_the_ceiling(*, card, data, ceiling, model, at_us, speed, geo):
    """However it is split into segments, and whatever the answer says of what the request left open."""
    bound = ceiling_cost(card, model, ceiling, at_us=at_us, speed=speed, inference_geo=geo)
    left = {name: getattr(ceiling, name) for name in CLASSES}
    parts = []
    for _ in range(data.draw(st.integers(1, 3))):
        counts = {name: data.draw(st.one_of(st.just(left[name]), st.integers(0, left[name]))) for name in CLASSES}
        left = {name: left[name] - counts[name] for name in CLASSES}
        parts.append(Segment("message", model, Usage(**counts)))
    actual = Metered(
        model=model,
        usage=Usage(web_searches=data.draw(st.integers(0, ceiling.web_searches))),
        segments=tuple(parts),
        service_tier=data.draw(tiers),
        speed=data.draw(st.sampled_from(["standard", "fast"])) if speed == "fast" else data.draw(st.sampled_from(["", "standard"])),
        inference_geo="global" if geo == "global" else data.draw(geos),
    )
    assert cost_nanos(card, actual, at_us=at_us, batch=data.draw(st.booleans()))[0] <= bound


def test_nothing_used_costs_nothing(card):
    charge = rate(card, metered(), at_us=NOW)
    assert (charge.nanos, charge.lines, charge.unpriced) == (0, (), False)


def test_an_answer_that_is_not_billed_costs_nothing_whatever_it_used(card):
    refused = Metered(model="claude-opus-5", usage=Usage(uncached_input=500, output=9, web_searches=3), segments=())
    assert rate(card, refused, at_us=NOW).nanos == 0
    assert cost_nanos(card, refused, at_us=NOW) == (0, False)


def test_huge_counts_stay_exact(card):
    usage = Usage(10**12, 10**12, 10**12, 10**12, 10**12)
    charge = rate(card, metered("claude-haiku-5-5", usage, inference_geo="us", service_tier="batch"), at_us=NOW)
    assert usd(charge.nanos) == Decimal(10**6) * Decimal("4.675") * Decimal("0.55")


@pytest.mark.parametrize(("prompt", "fresh", "read"), [(99_999, "0.1", "0.01"), (100_000, "0.1", "0.01"), (100_001, "0.5", "0.05")])
def test_past_the_step_all_tokens_of_the_prompt_are_dearer(card, prompt, fresh, read):
    for cached in (0, 1, prompt - 1, prompt):
        one = metered("claude-haiku-5-5", Usage(uncached_input=prompt - cached, cache_read=cached))
        expected = ((prompt - cached) * Decimal(fresh) + cached * Decimal(read)) / 10**6
        assert usd(rate(card, one, at_us=NOW).nanos) == usd(cost_nanos(card, one, at_us=NOW)[0]) == expected


def test_a_ceiling_takes_the_dearer_side_class_by_class_even_if_fast_or_long_is_cheaper(card_text):
    content = json.loads(card_text)
    opus = next(m for m in content["models"] if m["id"] == "claude-opus-5")
    opus["fast"][0]["usd_per_mtok"]["cache_read"] = "0.01"
    haiku = next(m for m in content["models"] if m["id"] == "claude-haiku-5-5")
    haiku["rates"][0]["long_prompt"]["usd_per_mtok"]["output"] = "0.01"
    card = parse_rate_card(json.dumps(content))
    bound = ceiling_cost(card, "claude-opus-5", Usage(cache_read=1000, output=1000), at_us=NOW, speed="fast", inference_geo="global")
    assert usd(bound) == Decimal("0.0005") + Decimal("0.05")
    bound = ceiling_cost(card, "claude-haiku-5-5", Usage(uncached_input=100_001, output=10**6), at_us=NOW, inference_geo="global")
    assert usd(bound) == Decimal("0.0500005") + Decimal("0.5")


def test_the_step_looks_at_each_segment_and_not_at_their_sum(card):
    half = Usage(uncached_input=60_000, output=10)
    one = Metered(
        model="claude-haiku-5-5",
        usage=Usage(uncached_input=120_000, output=20),
        segments=(Segment("message", "claude-haiku-5-5", half), Segment("message", "claude-haiku-5-5", half)),
    )
    charge = rate(card, one, at_us=NOW)
    assert usd(charge.nanos) == Decimal("0.01201")
    assert [(line.component, line.quantity) for line in charge.lines] == [("uncached_input", 120_000), ("output", 20)]


def test_each_segment_is_priced_by_its_own_model(card):
    one = Metered(
        model="claude-sonnet-5-5",
        usage=Usage(uncached_input=100, output=10),
        segments=(
            Segment("message", "claude-sonnet-5-5", Usage(uncached_input=100, output=10)),
            Segment("advisor_message", "claude-opus-5", Usage(uncached_input=1000, output=100)),
        ),
    )
    lines = {(line.component, line.model): line.nanos for line in rate(card, one, at_us=NOW).lines}
    assert lines == {
        ("uncached_input", "claude-sonnet-5-5"): 200_000,
        ("output", "claude-sonnet-5-5"): 100_000,
        ("uncached_input", "claude-opus-5"): 5_000_000,
        ("output", "claude-opus-5"): 2_500_000,
    }


def test_web_searches_count_once_and_take_no_modifier(card):
    usage = Usage(uncached_input=1, web_searches=7)
    one = msgspec.structs.replace(
        metered(usage=usage, inference_geo="us", speed="fast"),
        segments=(Segment("message", "claude-opus-5", usage), Segment("message", "claude-opus-5", usage)),
    )
    for batch in (False, True):
        (line,) = [line for line in rate(card, one, at_us=NOW, batch=batch).lines if line.component == "web_search"]
        assert (line.quantity, line.nanos, line.usd_per_mtok) == (7, 70_000_000, "10000")


def test_thinking_and_free_tools_add_nothing(card):
    plain = rate(card, metered(usage=Usage(output=100)), at_us=NOW)
    assert rate(card, metered(usage=Usage(output=100, thinking=90, web_fetches=5, code_executions=2)), at_us=NOW) == plain


@pytest.mark.parametrize("modifiers", [{}, {"speed": "fast"}, {"inference_geo": "us"}, {"service_tier": "batch"}])
def test_an_unknown_model_is_never_free_and_never_cheaper_than_a_known_one(card, modifiers):
    usage = Usage(10, 10, 10, 10, 10)
    charge = rate(card, metered("claude-9-colossus", usage, **modifiers), at_us=NOW)
    assert charge.unpriced
    assert {line.model for line in charge.lines} == {"claude-9-colossus"}
    for facts in card.models():
        if facts.lifecycle != "retired":
            assert charge.nanos >= rate(card, metered(facts.model, usage, **modifiers), at_us=NOW).nanos > 0


def test_one_unknown_segment_makes_the_charge_unpriced(card):
    one = Metered(
        model="claude-opus-5",
        usage=Usage(output=1),
        segments=(Segment("message", "claude-opus-5", Usage(output=1)), Segment("advisor_message", "claude-next", Usage(output=1))),
    )
    assert rate(card, one, at_us=NOW).unpriced
    assert cost_nanos(card, one, at_us=NOW) == (25_000 + 75_000, True)


def test_a_tie_of_half_a_nano_rounds_to_even(card):
    """One 5-minute write on Haiku 5.5 in a batch is 62.5 nanos; three are 187.5."""
    for count, nanos in ((1, 62), (3, 188), (5, 312)):
        one = metered("claude-haiku-5-5", Usage(cache_write_5m=count), service_tier="batch")
        assert rate(card, one, at_us=NOW).nanos == cost_nanos(card, one, at_us=NOW)[0] == nanos


def test_the_rate_of_a_line_is_exact_text(card):
    one = metered("claude-haiku-5-5", Usage(cache_write_5m=10**5), service_tier="batch", inference_geo="us")
    (line,) = rate(card, one, at_us=NOW).lines
    assert (line.usd_per_mtok, line.nanos) == ("0.06875", 6_875_000)


def test_the_batch_route_and_the_batch_tier_mean_the_same(card):
    usage = Usage(1000, 100, 100, 5000, 300)
    by_tier = rate(card, metered(usage=usage, service_tier="batch"), at_us=NOW)
    assert rate(card, metered(usage=usage), at_us=NOW, batch=True) == by_tier
    assert rate(card, metered(usage=usage, service_tier="batch"), at_us=NOW, batch=True) == by_tier
    assert by_tier.nanos * 2 == rate(card, metered(usage=usage), at_us=NOW).nanos


# What users of another gateway found wrong, as prices that must come out.


@pytest.mark.parametrize(
    ("model", "usage", "fields", "dollars"),
    [
        ("claude-haiku-4-5", Usage(uncached_input=1000, output=500, web_searches=7), {}, "0.0735"),
        ("claude-haiku-4-5", Usage(uncached_input=2000, output=1000, web_searches=7), {"service_tier": "batch"}, "0.0735"),
        ("claude-sonnet-5", Usage(cache_write_1h=12_304), {"service_tier": "batch"}, "0.024608"),
        ("claude-haiku-5-5", Usage(cache_write_1h=150_000), {"service_tier": "batch"}, "0.075"),
        ("claude-opus-5", Usage(uncached_input=50_000), {"service_tier": "batch", "inference_geo": "us"}, "0.1375"),
        ("claude-sonnet-5", Usage(uncached_input=25_000, output=20_000, web_searches=7), {}, "0.32"),
        ("claude-sonnet-5", Usage(cache_write_5m=100_000), {}, "0.25"),
        ("claude-sonnet-5", Usage(cache_write_1h=100_000), {}, "0.40"),
        ("claude-sonnet-5", Usage(cache_read=100_000), {}, "0.02"),
        ("claude-haiku-5-5", Usage(uncached_input=150_000), {}, "0.075"),
        ("claude-opus-5", Usage(uncached_input=100_000), {"speed": "fast"}, "1"),
    ],
)
def test_prices_that_another_gateway_gets_wrong(card, model, usage, fields, dollars):
    one = metered(model, usage, **fields)
    assert usd(rate(card, one, at_us=NOW).nanos) == usd(cost_nanos(card, one, at_us=NOW)[0]) == Decimal(dollars)


@pytest.mark.parametrize(
    ("model", "ceiling", "fields", "worst"),
    [
        ("claude-sonnet-5", Usage(cache_write_5m=100_000, output=1_000), {"inference_geo": "global"}, "0.26"),
        ("claude-sonnet-5", Usage(cache_write_1h=100_000, output=1_000), {"inference_geo": "global"}, "0.41"),
        ("claude-opus-5", Usage(uncached_input=100_000, output=1_000), {"speed": "fast", "inference_geo": "global"}, "1.05"),
        ("claude-haiku-5-5", Usage(uncached_input=150_000, output=1_000), {"inference_geo": "global"}, "0.0775"),
        ("claude-haiku-5-5", Usage(cache_write_1h=150_000, output=1_000), {"inference_geo": "global"}, "0.1525"),
        ("claude-sonnet-5", Usage(uncached_input=2_000, output=1_000, web_searches=20), {"inference_geo": "global"}, "0.214"),
        ("claude-sonnet-5", Usage(uncached_input=100_000, output=1_000), {"inference_geo": "us"}, "0.231"),
        ("claude-sonnet-5", Usage(uncached_input=100_000, output=1_000), {}, "0.231"),
        ("claude-fable-5-2", Usage(uncached_input=100_000, output=1_000), {"inference_geo": "global"}, "0.84"),
    ],
)
def test_reservations_that_another_gateway_takes_too_low(card, model, ceiling, fields, worst):
    assert usd(ceiling_cost(card, model, ceiling, at_us=NOW, **fields)) == Decimal(worst)


def test_the_ceiling_of_an_unknown_model_is_never_nothing(card):
    assert ceiling_cost(card, "claude-9", Usage(output=1), at_us=NOW) == 82_500
