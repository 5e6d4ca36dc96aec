"""Estimates begin cautious, come close to what a key really uses, follow it when it changes, and cost the same however much was learned."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import FIXTURES, needs_fixtures
from tokenweir.errors import InvalidRequest
from tokenweir.limits import estimate
from tokenweir.limits.estimate import HIDDEN_BYTES, IMAGE_BYTES, PRIOR_OUTPUT_TOKENS, PRIOR_REMOTE_TOKENS, WEB_SEARCHES, Estimator
from tokenweir.usage import Usage
from tokenweir.wire.envelope import CacheTtl, Envelope, ceiling_usage, read_envelope
from tokenweir.wire.messages import read_usage

MODEL = "claude-opus-5"
BOUNDLESS = Usage(uncached_input=10**9, output=10**9)


def asking(text_bytes: int, *, cache_ttl: CacheTtl = "", images: int = 0, remote: bool = False) -> Envelope:
    return Envelope(MODEL, body_bytes=text_bytes, text_bytes=text_bytes, cache_ttl=cache_ttl, images=images, remote_sources=remote)


def expected(estimator: Estimator, text_bytes: int, *, key: str = "key", model: str = MODEL, ceiling: Usage = BOUNDLESS, **fields: object) -> Usage:
    return estimator.expect(key, model, asking(text_bytes, **fields), ceiling)  # type: ignore[arg-type] # of `asking`


def taught(count: int, text_bytes: int, usage: Usage, *, key: str = "key") -> Estimator:
    estimator = Estimator()
    for _ in range(count):
        estimator.learn(key, MODEL, text_bytes, 0, usage)
    return estimator


# Before anything is known.


def test_a_new_key_is_expected_to_use_a_token_for_three_bytes_and_a_usual_answer():
    usage = expected(Estimator(), 90_000)
    assert usage == Usage(uncached_input=(90_000 + HIDDEN_BYTES) // 3, output=PRIOR_OUTPUT_TOKENS)


def test_max_tokens_is_no_estimate_and_still_a_bound():
    ceiling = ceiling_usage(Envelope(MODEL, max_tokens=128_000, body_bytes=60_000), context_tokens=200_000, output_tokens_max=64_000)
    assert expected(Estimator(), 60_000, ceiling=ceiling).output == PRIOR_OUTPUT_TOKENS
    assert expected(Estimator(), 60_000, ceiling=Usage(uncached_input=10**6, output=50)).output == 50


def test_an_image_counts_by_allowance_and_what_is_fetched_as_a_page_or_two():
    assert expected(Estimator(), 1_500, images=3).prompt == (1_500 + 3 * IMAGE_BYTES + HIDDEN_BYTES) // 3
    assert expected(Estimator(), 300, remote=True).prompt == PRIOR_REMOTE_TOKENS


def test_an_unknown_cached_prompt_is_expected_to_be_written_at_the_dearest_time_to_live():
    for ttl, name in (("5m", "cache_write_5m"), ("1h", "cache_write_1h")):
        usage = expected(Estimator(), 90_000, cache_ttl=ttl)
        assert getattr(usage, name) == usage.prompt


def test_searches_are_expected_only_of_a_request_that_may_search():
    assert expected(Estimator(), 100, ceiling=Usage(output=10, web_searches=10)).web_searches == WEB_SEARCHES
    assert expected(Estimator(), 100, ceiling=Usage(output=10, web_searches=1)).web_searches == 1
    assert expected(Estimator(), 100, ceiling=Usage(output=10)).web_searches == 0


# What is learned.


@given(st.integers(100, 900_000), st.floats(0.02, 0.6), st.integers(20, 60_000))
def test_a_key_that_always_does_the_same_is_soon_known(text_bytes, factor, output):
    """One step of a histogram (9 % of a prompt, 19 % of an answer), and what is left of the numbers for everybody, are all that is added."""
    prompt = max(20, int(text_bytes * factor))
    usage = expected(taught(60, text_bytes, Usage(uncached_input=prompt, output=output)), text_bytes)
    assert 0.96 * prompt <= usage.prompt <= 1.1 * prompt + 0.04 * (text_bytes + HIDDEN_BYTES) / 3 + 1
    assert 0.96 * output <= usage.output <= 1.2 * output + 0.04 * PRIOR_OUTPUT_TOKENS


def test_about_one_answer_in_twenty_is_longer_than_expected():
    rng = random.Random(7)
    estimator, longer = Estimator(), 0
    for number in range(4_000):
        output, text_bytes = int(rng.lognormvariate(6, 1)) + 1, rng.randint(5_000, 60_000)
        prompt = int(text_bytes * rng.gauss(0.28, 0.02))
        usage = expected(estimator, text_bytes)
        if number >= 200:
            longer += usage.output < output
            assert usage.prompt < 2 * prompt
        estimator.learn("key", MODEL, text_bytes, 0, Usage(uncached_input=prompt, output=output))
    assert 0.01 <= longer / 3_800 <= 0.08


def test_small_and_large_prompts_of_a_key_have_factors_of_their_own():
    """A tool preamble of 500 tokens is most of a small prompt and nothing of a large one."""
    estimator = Estimator()
    for _ in range(50):
        for text_bytes in (800, 400_000):
            estimator.learn("key", MODEL, text_bytes, 0, Usage(uncached_input=500 + text_bytes // 4, output=100))
    assert 700 <= expected(estimator, 800).prompt <= 800
    assert 100_000 <= expected(estimator, 400_000).prompt <= 115_000


@pytest.mark.parametrize("told", [True, False])
def test_what_a_prompt_fetched_says_nothing_about_its_text(told):
    """Also where nobody said that it fetched something: no text has that many tokens."""
    estimator = taught(50, 2_000, Usage(uncached_input=600, output=50))
    before = expected(estimator, 2_000).prompt
    for _ in range(50):
        estimator.learn("key", MODEL, 2_000, 0, Usage(uncached_input=45_000, output=50), remote=told)
    assert expected(estimator, 2_000).prompt == before
    assert 42_000 <= expected(estimator, 2_000, remote=True).prompt <= 55_000


def test_a_key_that_may_search_and_never_does_is_not_held_to_what_searching_costs():
    estimator = Estimator()
    for _ in range(100):
        estimator.learn("key", MODEL, 6_000, 0, Usage(uncached_input=1_900, output=50), remote=True)
    assert 1_900 <= expected(estimator, 6_000, remote=True).prompt <= 2_600


def test_images_that_are_larger_than_the_allowance_are_learned():
    estimator = Estimator()
    for _ in range(60):
        estimator.learn("key", MODEL, 2_000, 4, Usage(uncached_input=500 + 4 * 3_000, output=50))
    assert 12_000 <= expected(estimator, 2_000, images=4).prompt <= 14_000


def test_a_prompt_that_is_read_from_the_cache_is_expected_to_be_again():
    estimator = taught(60, 90_000, Usage(uncached_input=240, cache_write_1h=1_200, cache_read=22_560, output=300))
    usage = expected(estimator, 90_000, cache_ttl="1h")
    assert usage.cache_read >= 0.85 * usage.prompt
    assert usage.cache_write_5m == 0
    assert usage.cache_write_1h > usage.uncached_input
    five = expected(estimator, 90_000, cache_ttl="5m")
    assert (five.cache_write_1h, five.prompt) == (0, usage.prompt)
    plain = expected(estimator, 90_000)
    assert (plain.uncached_input, plain.prompt) == (usage.prompt, usage.prompt), "a request without a breakpoint caches nothing"


def test_a_key_that_changes_is_followed():
    estimator = taught(1_000, 50_000, Usage(uncached_input=12_000, output=200))
    for _ in range(400):
        estimator.learn("key", MODEL, 50_000, 0, Usage(uncached_input=16_000, output=4_000))
    usage = expected(estimator, 50_000)
    assert usage.prompt >= 16_000 * 0.95
    assert usage.output >= 4_000 * 0.95
    for _ in range(4_000):
        estimator.learn("key", MODEL, 50_000, 0, Usage(uncached_input=12_000, output=200))
    assert expected(estimator, 50_000).output <= 400


@pytest.mark.parametrize("rhythm", [2, 3, 4, 5, 8, 16])
def test_a_rhythm_in_what_a_key_does_hides_nothing(rhythm):
    """Every n-th answer is long; it must be seen although not every settlement of a known key is looked at."""
    estimator = Estimator()
    for number in range(4_000):
        estimator.learn("key", MODEL, 50_000, 0, Usage(uncached_input=12_000, output=5_000 if number % rhythm == 1 else 100))
    assert 4_900 <= expected(estimator, 50_000).output <= 6_000


# Where a key has nothing of its own.


def test_a_new_key_begins_with_what_other_keys_showed_of_the_model():
    estimator = taught(100, 50_000, Usage(uncached_input=12_000, output=300), key="other")
    assert expected(estimator, 50_000, key="new").output < 750 < expected(estimator, 50_000, key="new", model="claude-haiku-5").output


def test_a_busy_key_does_not_speak_for_its_model():
    estimator = taught(10_000, 50_000, Usage(uncached_input=12_000, output=50_000), key="busy")
    for number in range(300):
        for _ in range(16):
            estimator.learn(f"key_{number}", MODEL, 50_000, 0, Usage(uncached_input=12_000, output=100))
    assert expected(estimator, 50_000, key="new").output < 500


def test_keys_do_not_disturb_each_other():
    estimator = taught(200, 50_000, Usage(uncached_input=12_000, output=200), key="one")
    before = expected(estimator, 50_000, key="one").output
    for _ in range(500):
        estimator.learn("two", MODEL, 50_000, 0, Usage(uncached_input=12_000, output=9_000))
    assert expected(estimator, 50_000, key="two").output >= 8_500
    assert expected(estimator, 50_000, key="one").output < before + 900, "only as far as the model's share goes"


# Bounds.


def test_memory_is_bounded_and_forgets_who_was_away_longest(monkeypatch):
    monkeypatch.setattr(estimate, "PAIRS_MAX", 8)
    estimator = Estimator()
    for number in range(50):
        estimator.learn("stays", MODEL, 9_000, 0, Usage(uncached_input=2_000, output=9_000))
        estimator.learn(f"key_{number}", f"model_{number}", 9_000, 0, Usage(uncached_input=2_000, output=9_000))
    assert len(estimator) == 8
    assert expected(estimator, 9_000, key="stays").output > 8_000
    assert expected(estimator, 9_000, key="key_0", model="model_0").output == PRIOR_OUTPUT_TOKENS


def test_among_more_keys_than_can_be_remembered_one_that_goes_on_gets_its_place(monkeypatch):
    """Newcomers take turns for a place; whoever settles often has one soon, and keeps it."""
    monkeypatch.setattr(estimate, "PAIRS_MAX", 8)
    estimator = Estimator()
    for number in range(400):
        estimator.learn(f"key_{number}", "claude-other", 9_000, 0, Usage(uncached_input=2_000, output=100))
        estimator.learn("goes on", MODEL, 9_000, 0, Usage(uncached_input=2_000, output=9_000))
    assert len(estimator) == 8
    assert expected(estimator, 9_000, key="goes on").output > 8_000


USAGES = st.builds(Usage, *[st.integers(0, 10**6)] * 5)
FACTS = st.builds(
    Envelope,
    st.just(MODEL),
    text_bytes=st.integers(0, 10**7),
    images=st.integers(0, 100),
    cache_ttl=st.sampled_from(["", "5m", "1h"]),
    remote_sources=st.booleans(),
    server_tools=st.booleans(),
)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 10**7), st.integers(0, 9), USAGES), max_size=30), FACTS, USAGES)
def test_whatever_was_learned_an_estimate_is_within_the_ceiling_and_reproducible(settled, facts, ceiling):
    found = []
    for _ in range(2):
        estimator = Estimator()
        for key, text_bytes, images, usage in settled:
            estimator.learn(key, MODEL, text_bytes, images, usage)
        found.append(estimator.expect("a", MODEL, facts, ceiling))
    usage = found[0]
    assert found[1] == usage
    assert 0 <= usage.prompt <= ceiling.prompt
    assert 0 <= usage.output <= ceiling.output
    assert min(usage.uncached_input, usage.cache_write_5m, usage.cache_write_1h, usage.cache_read) >= 0
    if not facts.cache_ttl:
        assert usage.uncached_input == usage.prompt
    elif facts.cache_ttl == "5m":
        assert usage.cache_write_1h == 0


@pytest.mark.parametrize("ends", [estimate._TOKENS, estimate._FACTORS, estimate._REMOTE_FACTORS])
@given(buckets=st.lists(st.integers(0, 63), min_size=1, max_size=199))
def test_a_histogram_knows_its_95th_percentile(ends, buckets):
    """Checked against sorting, as long as nothing is forgotten."""
    histogram = estimate._Histogram(ends)
    for count in range(1, len(buckets) + 1):
        histogram.add(buckets[count - 1])
        ranked = sorted(buckets[:count], reverse=True)
        assert histogram.high == ends[min(ranked[count // estimate.CAUTION], 62)]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 63), min_size=200, max_size=900))
def test_a_histogram_forgets_evenly(buckets):
    histogram = estimate._Histogram(estimate._TOKENS)
    for bucket in buckets:
        histogram.add(bucket)
        counts = histogram._counts
        assert histogram._total == sum(counts) < histogram.WINDOW
        assert histogram._above == sum(counts[histogram._at + 1 :]) <= histogram._total // estimate.CAUTION


# On recorded traffic.


@needs_fixtures
def test_recorded_requests_are_covered_without_holding_ceilings():
    """185 recorded requests of many programs, each key a program: 19 of 20 prompts and answers stay within what was expected of them."""
    assert FIXTURES is not None
    settled = []
    for line in (FIXTURES / "anthropic" / "corpus.jsonl").read_text("utf-8").split("\n"):
        record = json.loads(line) if line else {}
        if not (record.get("usage") and isinstance(record.get("request"), dict) and record["path"].startswith("/v1/messages")):
            continue
        try:
            envelope = read_envelope(json.dumps(record["request"], separators=(",", ":"), ensure_ascii=False).encode())
        except InvalidRequest:
            continue
        usage = read_usage(record["usage"], model=envelope.model).usage
        if usage.prompt and usage.output:
            settled.append((record["source"].split("__")[0], envelope, usage))
    assert len(settled) > 150
    estimator, covered, plain, held, ceilings = Estimator(), [0, 0], 0, 0, 0
    for key, envelope, usage in settled:
        ceiling = ceiling_usage(envelope, context_tokens=200_000, output_tokens_max=64_000)
        found = estimator.expect(key, envelope.model, envelope, ceiling)
        remote = envelope.server_tools or envelope.remote_sources
        if not remote:
            plain += 1
            covered[0] += found.prompt >= usage.prompt
            covered[1] += found.output >= usage.output
            held += found.total
            ceilings += ceiling.total
        estimator.learn(key, envelope.model, envelope.text_bytes, envelope.images, usage, remote=remote)
    assert min(covered) >= 0.93 * plain
    assert held < 0.6 * ceilings
