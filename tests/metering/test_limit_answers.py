"""How limits answer: the refusal that fits the window, the sentence that says what to do, and headers from the numbers that were decided on."""

from __future__ import annotations

import json

import pytest

from metering.limit_desk import RED, START_US, Desk, limit, settled
from tokenweir.limits.bucket import NEVER, Shortage, Standing
from tokenweir.limits.limit import Action, Cycle, Resource, Rolling
from tokenweir.metering.limit_answers import amount_words, budget_views, fault_of_limit, headers_of, out_of_room, period_words, reset_words
from tokenweir.metering.limiter import LimitDenied
from tokenweir.usage import Usage
from tokenweir.wire.limits import oauth_usage


def denied(desk: Desk, standing: Standing, wait_us: int, *, units: int = 1, waited: bool = False) -> LimitDenied:
    (made, _), *_ = desk.book.limits()
    return LimitDenied(desk.book.link(made, "", now_us=START_US), Shortage(0, standing, wait_us), units, START_US, waited)


@pytest.mark.parametrize(
    ("made", "wait_us", "error_type", "retry"),
    [
        (limit("rate", "requests", 5, Rolling(60_000_000)), 7_000_000, "rate_limit_error", None),
        (limit("money", "spend", 5), 0, "billing_error", b"false"),
        (limit("quota", "tokens", 5, Cycle("week")), 0, "billing_error", b"false"),
        (limit("slots", "concurrency", 5), 0, "rate_limit_error", None),
        (limit("huge", "tokens", 6, Rolling(60_000_000), strict=True), NEVER, "rate_limit_error", b"false"),
        (limit("dear", "spend", 6, strict=True), NEVER, "billing_error", b"false"),
        (limit("none", "requests", 0), NEVER, "billing_error", b"false"),
    ],
)
def test_each_window_has_the_refusal_that_makes_clients_do_right(made, wait_us, error_type, retry):
    """Rates are waited for, budgets are not, and what can never fit is not tried again; all are 429."""
    desk = Desk(made)
    fault = fault_of_limit(denied(desk, Standing(5, 1), wait_us))
    desk.close()
    headers = dict(fault.headers)
    assert (fault.status, fault.error_type, headers.get(b"x-should-retry")) == (429, error_type, retry)
    assert made.name in fault.message


@pytest.mark.parametrize(
    ("made", "standing", "units", "busy"),
    [
        (limit("a", "spend", 100, strict=True), Standing(50, 45), 50, True),
        (limit("a", "spend", 100, strict=True), Standing(50, 45), 51, False),
        (limit("a", "spend", 100), Standing(99, 45), 51, True),
        (limit("a", "spend", 100), Standing(100, 45), 1, False),
        (limit("a", "spend", 100), Standing(120, 0), 1, False),
        (limit("a", "requests", 100), Standing(100, 0), 1, False),
    ],
)
def test_a_budget_that_is_only_held_is_busy_and_not_used_up(made, standing, units, busy):
    """While requests under way may still give room back, the client is told to come back; when the money is gone, to stop."""
    desk = Desk(made)
    fault = fault_of_limit(denied(desk, standing, 0, units=units))
    desk.close()
    headers = dict(fault.headers)
    assert (fault.error_type, headers.get(b"x-should-retry"), headers[b"retry-after"] == b"1") == (
        ("rate_limit_error", None, True) if busy else ("billing_error", b"false", False)
    )


def test_the_sentence_of_a_budget_says_all_that_somebody_needs():
    """Name, use, what is held, reset on the clock of the limit, and whom to ask."""
    desk = Desk(limit("red's month", "spend", 50 * 10**9, Cycle("month", "Europe/Berlin"), contact="finance@example.org"))
    message = fault_of_limit(denied(desk, Standing(50_070_000_000, 100_000_000), 0, units=200_000_000)).message
    desk.close()
    for part in (
        "red's month",
        "50.07",
        "50.00 USD",
        "0.10 held",
        "this month",
        "2026-10-01 00:00 Europe/Berlin",
        "finance@example.org",
        "request create",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("resource", "amount", "words"),
    [
        (Resource.SPEND, 49_870_000_000, ("49.87", "USD")),
        (Resource.SPEND, 1, ("0.000000001", "USD")),
        (Resource.SPEND, 1_234_500_000_000, ("1,234.50", "USD")),
        (Resource.SPEND, -10_000_000, ("-0.01", "USD")),
        (Resource.OUTPUT_TOKENS, 12_000, ("12,000", "output tokens")),
        (Resource.CONCURRENCY, 3, ("3", "requests at once")),
    ],
)
def test_amounts_are_exact_and_readable(resource, amount, words):
    """Dollars with at least cents and all digits that matter; counts with separators."""
    assert amount_words(resource, amount) == words


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (Cycle("day"), "today"),
        (Cycle("quarter"), "this quarter"),
        (Cycle("days", anchor="2026-01-05", length_days=14), "in this cycle of 14 days"),
        (Rolling(60_000_000), "per 60s"),
    ],
)
def test_windows_have_words(window, words):
    """A refusal says of which window it speaks."""
    assert period_words(limit("x", "tokens", 1, window)) == words


def test_only_cycles_have_a_reset_to_name():
    """A rolling limit flows back all the time."""
    assert reset_words(limit("x", "tokens", 1, Rolling(60_000_000)), 0) == ""
    assert reset_words(limit("x", "tokens", 1, Cycle("day", "Asia/Kathmandu")), 0) == "1970-01-01 05:30 Asia/Kathmandu"


async def test_headers_show_how_the_limits_stood_when_the_room_was_taken():
    """Rates as remaining units, the fullest budget as its share, warnings by id; shadows show nothing."""
    desk = Desk(
        limit("rate", "requests", 10, Rolling(60_000_000)),
        limit("month", "requests", 10),
        limit("soft", "requests", 0, action=Action.WARN),
        limit("trial", "requests", 0, shadow=True),
    )
    for _ in range(8):
        held = await desk.admit()
    headers = dict(headers_of(held))  # type: ignore[arg-type]
    desk.close()
    assert headers[b"anthropic-ratelimit-requests-remaining"] == b"2"
    assert headers[b"x-tokenweir-limit-warning"] == b"soft"
    assert b"trial" not in b"".join(headers.values())


async def test_own_usage_is_what_the_store_says():
    """Spend in cents, of the tightest month."""
    desk = Desk(limit("month", "spend", 100 * 10**9))
    held = await desk.admit()
    held.add(settled(Usage(10), cost_nanos=27 * 10**9), START_US)  # type: ignore[union-attr]
    held.end()  # type: ignore[union-attr]
    told = json.loads(oauth_usage(budget_views(await desk.standings.of_caller(RED, now_us=START_US))))
    desk.close()
    assert told["extra_usage"]["used_credits"] == 2_700
    assert told["limits"][0]["percent"] == 27


def test_a_stream_that_is_ended_is_told_why():
    """The limit's name and size."""
    desk = Desk(limit("burst", "output_tokens", 5_000, Rolling(60_000_000)))
    (made, _), *_ = desk.book.limits()
    sentence = out_of_room(desk.book.link(made, "", now_us=START_US))
    desk.close()
    assert sentence == (
        "burst: the stream was ended because 5,000 output tokens per 60s are used up"
        f" · ask for more: tokenweir request create {made.limit_id} --amount AMOUNT --reason TEXT --until 2h"
    )
