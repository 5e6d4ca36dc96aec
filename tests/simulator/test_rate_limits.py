"""Token buckets and the headers that tell of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.simulator.rate_limits import Bucket, RateLimiter
from tokenweir.simulator.refusals import Refusal
from tokenweir.simulator.scenario import Limits, LimitTable

WALL = 1_800_000_000.0


def headers(limits, now):
    return dict(line.split(": ") for line in limits.headers(now_s=now, wall_s=WALL + now).decode().splitlines())


def limiter(**amounts):
    return RateLimiter(LimitTable(default=Limits(**amounts)))


def test_a_request_beyond_the_bucket_is_refused_until_it_has_refilled():
    limits = limiter(requests=2).limits("red", "opus-5", fast=False, now_s=0)
    limits.admit(1, described="d", now_s=0)
    limits.admit(1, described="d", now_s=0)
    with pytest.raises(Refusal) as refused:
        limits.admit(1, described="d", now_s=0)
    assert (refused.value.status, refused.value.kind, refused.value.retry_after) == (429, "rate_limit_error", 30)
    limits.admit(1, described="d", now_s=30)


def test_a_refused_request_takes_nothing():
    limits = limiter(requests=10, input_tokens=100).limits("red", "opus-5", fast=False, now_s=0)
    with pytest.raises(Refusal, match="input tokens"):
        limits.admit(101, described="d", now_s=0)
    assert headers(limits, 0)["anthropic-ratelimit-requests-remaining"] == "10"
    limits.admit(100, described="d", now_s=0)


def test_output_can_be_overdrawn_and_then_refuses():
    limits = limiter(output_tokens=60).limits("red", "opus-5", fast=False, now_s=0)
    limits.admit(1, described="d", now_s=0)
    limits.output.take(90, 0)
    with pytest.raises(Refusal, match="output tokens") as refused:
        limits.admit(1, described="d", now_s=0)
    assert refused.value.retry_after == 31
    limits.admit(1, described="d", now_s=31)


def test_the_headers_say_limit_remaining_and_reset_with_tokens_to_the_nearest_thousand():
    limits = limiter(requests=60, input_tokens=60_000, output_tokens=6_000).limits("red", "opus-5", fast=False, now_s=0)
    limits.admit(10_400, described="d", now_s=0)
    found = headers(limits, 0)
    assert found["anthropic-ratelimit-requests-limit"] == "60"
    assert found["anthropic-ratelimit-requests-remaining"] == "59"
    assert found["anthropic-ratelimit-requests-reset"] == "2027-01-15T08:00:01Z"
    assert found["anthropic-ratelimit-input-tokens-remaining"] == "50000"
    assert found["anthropic-ratelimit-input-tokens-reset"] == "2027-01-15T08:00:11Z"
    assert found["anthropic-ratelimit-tokens-limit"] == "66000"
    assert found["anthropic-ratelimit-tokens-remaining"] == "56000"
    assert found["anthropic-ratelimit-tokens-reset"] == "2027-01-15T08:00:11Z"


def test_fast_requests_have_buckets_and_headers_of_their_own():
    table = RateLimiter(LimitTable(classes={"opus-5-fast": Limits(input_tokens=5_000)}))
    fast = table.limits("red", "opus-5", fast=True, now_s=0)
    assert fast is not table.limits("red", "opus-5", fast=False, now_s=0)
    assert headers(fast, 0)["anthropic-fast-input-tokens-limit"] == "5000"


def test_workspaces_have_buckets_of_their_own_and_may_be_set_lower():
    table = RateLimiter(LimitTable(workspaces={"blue": Limits(requests=1)}))
    assert table.limits("blue", "opus-5", fast=False, now_s=0).requests.amount == 1
    assert table.limits("red", "opus-5", fast=False, now_s=0).requests.amount == 1_000_000
    assert table.counting("red", now_s=0) is table.counting("red", now_s=0)


@given(st.integers(1, 1_000), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=40))
def test_no_more_is_ever_admitted_than_the_bucket_and_its_refill(amount, steps):
    bucket, now, taken = Bucket(amount, 0.0), 0.0, 0
    for wait, units in steps:
        now += wait
        if bucket.left(now) >= units:
            bucket.take(units, now)
            taken += units
    assert taken <= amount + amount * now / 60 + 1e-6
