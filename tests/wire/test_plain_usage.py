"""The short way and the long way through a usage object must agree on all that the short way accepts."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fixtures import FIXTURES, needs_fixtures
from tokenweir.wire.plain_usage import read_plain
from tokenweir.wire.usage_fields import COUNT_MAX, read_metered

counts = st.one_of(st.none(), st.integers(0, 5_000), st.sampled_from([-1, COUNT_MAX, COUNT_MAX + 1, 1.5, "3", True, 2**70]))
words = st.one_of(st.none(), st.sampled_from(["standard", "batch", "fast", "us", "global", "", "new", 7]))


def some(**fields):
    return st.one_of(st.none(), st.just(3), st.fixed_dictionaries({}, optional=fields))


usages = st.fixed_dictionaries(
    {"input_tokens": counts, "output_tokens": counts},
    optional={
        "cache_creation_input_tokens": counts,
        "cache_read_input_tokens": counts,
        "cache_creation": some(ephemeral_5m_input_tokens=counts, ephemeral_1h_input_tokens=counts, new=counts),
        "output_tokens_details": some(thinking_tokens=counts),
        "server_tool_use": some(web_search_requests=counts, web_fetch_requests=counts, code_execution_requests=counts),
        "service_tier": words,
        "speed": words,
        "inference_geo": words,
        "iterations": st.sampled_from([None, []]),
        "new_tokens": counts,
    },
)


@given(usages, st.booleans())
def test_what_the_short_way_accepts_the_long_way_reads_the_same(usage, refused):
    plain = read_plain(json.dumps(usage).encode(), model="m", empty_refusal=refused)
    if plain is not None:
        assert plain == read_metered(usage, model="m", empty_refusal=refused)


@given(usages)
def test_what_the_long_way_flags_the_short_way_leaves_to_it(usage):
    if read_metered(usage, model="m").flags:
        assert read_plain(json.dumps(usage).encode(), model="m", empty_refusal=False) is None


def test_a_usage_object_of_the_usual_form_goes_the_short_way():
    usage = {
        "input_tokens": 8,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        "output_tokens": 12,
        "service_tier": "standard",
        "inference_geo": "not_available",
    }
    plain = read_plain(json.dumps(usage).encode(), model="m", empty_refusal=False)
    assert plain is not None
    assert msgspec.structs.astuple(plain.usage)[:5] == (8, 10, 20, 5, 12)


@needs_fixtures
def test_recorded_usage_reads_the_same_both_ways_and_most_of_it_goes_the_short_way():
    short = 0
    lines = (FIXTURES / "anthropic" / "corpus.jsonl").read_text("utf-8").splitlines()
    recorded = [row["usage"] for row in map(json.loads, lines) if row.get("usage") and "input_tokens" in row["usage"]]
    for usage in recorded:
        plain = read_plain(json.dumps(usage).encode(), model="m", empty_refusal=False)
        if plain is not None:
            short += 1
            assert plain == read_metered(usage, model="m")
    assert short > len(recorded) * 0.7
