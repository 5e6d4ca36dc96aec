"""Answers: exact lengths, usage that adds up, seeds."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation import ask as request_of
from tokenweir.app import open_rate_card
from tokenweir.settings import Settings
from tokenweir.simulator.catalog import Catalog
from tokenweir.simulator.composition import Tally, compose
from tokenweir.simulator.directives import build
from tokenweir.simulator.intake import read_ask
from tokenweir.simulator.prompt_cache import Split
from tokenweir.simulator.stream import frames, tally_of
from tokenweir.simulator.tokenizer import make_prose

CATALOG = Catalog(open_rate_card(Settings()))
PROSE = make_prose(1)


def answer_to(text="", *, seed=1, split=Split(100), **changes):  # noqa: B008 - a frozen value
    given_ask = read_ask(request_of(**changes), CATALOG, version="2023-06-01", betas=frozenset())
    pairs = dict(pair.split("=") for pair in text.split(";")) if text else {}
    digest = hashlib.sha256(repr(changes).encode()).digest()
    return compose(given_ask, split, build(pairs), seed=seed, attempt=1, body_digest=digest, prose=PROSE)


def whole(answer):
    return Tally(answer).add_all().outcome()


DIRECTIVES = st.fixed_dictionaries(
    {"output": st.integers(0, 400)},
    optional={
        "thinking": st.integers(0, 500),
        "searches": st.integers(0, 4),
        "tool": st.just("tide"),
        "compaction": st.integers(1, 90),
        "advisor": st.just("claude-opus-5-5"),
        "fallback": st.just("claude-opus-5"),
        "refusal": st.sampled_from(["thinking", "midstream"]),
    },
)


@settings(max_examples=300)
@given(DIRECTIVES, st.integers(1, 9))
def test_whatever_is_asked_for_the_length_is_exact_and_every_prefix_of_the_stream_bills_no_less_than_the_one_before(pairs, event_tokens):
    answer = answer_to(";".join(f"{name}={value}" for name, value in pairs.items()))
    wanted = build(pairs)
    full = whole(answer)
    length = max(pairs["output"], "refusal" in pairs)
    assert full.usage.output == length + (0 if full.segments[-1].kind != "compaction" else pairs["compaction"])
    assert full.usage.thinking <= full.usage.output
    rows = list(frames(answer, wanted, event_tokens=event_tokens))
    # Frames stop mattering to the bill once all parts are out, and the last says what the whole says.
    assert tally_of(answer, rows).outcome() == full
    spent = [sum(segment.usage.total for segment in tally_of(answer, rows[:upto]).outcome().segments) for upto in range(0, len(rows) + 1, 3)]
    assert spent == sorted(spent)


def test_an_answer_is_bounded_by_max_tokens():
    answer = answer_to("output=500", max_tokens=40)
    assert (whole(answer).usage.output, answer.stop_reason) == (40, "max_tokens")
    assert answer_to(max_tokens=0).stop_reason == "max_tokens"
    assert whole(answer_to(max_tokens=0)).usage.output == 0


def test_seeds_and_bodies_decide_words_and_lengths():
    assert answer_to() == answer_to()
    assert answer_to(seed=2) != answer_to()
    assert len({whole(answer_to(max_tokens=2_000 + n)).usage.output for n in range(50)}) > 20


def test_a_refusal_without_content_shows_tokens_and_bills_none():
    outcome = whole(answer_to("refusal=empty"))
    assert (outcome.usage.output, outcome.usage.uncached_input, outcome.billed) == (4, 100, ())


def test_a_compaction_is_not_in_the_top_level_but_on_the_bill():
    outcome = whole(answer_to("compaction=70;output=20"))
    assert [segment.kind for segment in outcome.billed] == ["compaction", "message"]
    assert (outcome.billed[0].usage.output, outcome.usage.output, outcome.usage.uncached_input) == (70, 20, 94)


def test_an_advisor_is_billed_at_its_own_model_and_the_top_level_sums_the_executor():
    outcome = whole(answer_to("advisor=claude-opus-5-5;output=20", model="claude-sonnet-5-5"))
    assert [(segment.kind, segment.model) for segment in outcome.billed][1] == ("advisor_message", "claude-opus-5-5")
    assert outcome.usage.output == 20
    assert outcome.usage.uncached_input == sum(segment.usage.uncached_input for segment in outcome.segments if segment.kind == "message")


def test_a_fallback_bills_the_serving_attempt_alone():
    answer = answer_to("fallback=claude-opus-5;output=20")
    outcome = whole(answer)
    assert (answer.model, [segment.kind for segment in outcome.billed]) == ("claude-opus-5", ["fallback_message"])
    assert (outcome.usage.uncached_input, outcome.segments[0].usage.output) == (104, 0)


@pytest.mark.parametrize(("caching", "column"), [(False, "uncached_input"), (True, "cache_write_5m")])
def test_search_results_are_input_and_are_cached_where_caching_is_on(caching, column):
    more = {"cache_control": {"type": "ephemeral"}} if caching else {}
    outcome = whole(answer_to("searches=3;output=50", **more))
    assert outcome.usage.web_searches == 3
    assert getattr(outcome.usage, column) == 5_400 + (0 if caching else 100)
