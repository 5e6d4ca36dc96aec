"""Limits on the wire: the documented bytes, headers that nobody's names get into, and what the official SDK makes of each refusal."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import anthropic
import httpx2
import pytest
from anthropic._models import FinalRequestOptions
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.errors import StoreUnavailable
from tokenweir.wire.faults import Fault, decide_retry, fault_body, fault_of
from tokenweir.wire.headers import Room, read_headroom
from tokenweir.wire.limits import (
    RETRY_AFTER_S_MAX,
    BudgetView,
    LimitWords,
    RateView,
    Spent,
    budget_headers,
    budget_refusal,
    closest_period,
    concurrency_refusal,
    oauth_usage,
    rate_headers,
    rate_refusal,
    too_large_refusal,
    unreadable_budget,
)

SECOND_US = 1_000_000
USD = 1_000_000_000
RESET_US = 1_786_147_200 * SECOND_US
NOW_US = RESET_US - 37_800 * SECOND_US
UNIFIED = b"anthropic-ratelimit-unified-"

WORDS = LimitWords(
    limit_id="lim_7",
    name="platform month",
    used="49.87",
    amount="50.00",
    unit="USD",
    period="this month",
    held="0.10",
    resets="2026-12-01 00:00 Europe/Berlin",
    contact="anna@example.com",
)


def budget(used: int, amount: int = 500 * USD, *, held: int = 0, period="monthly", quantity="spend", pooled=False, resets_at_us: int = RESET_US):
    return BudgetView(period, used, held, amount, resets_at_us, pooled, quantity)


def exhausted(words: LimitWords = WORDS, *, pooled: bool = False, wait_us: int = 37_800 * SECOND_US) -> Fault:
    return budget_refusal(words, period="daily", resets_at_us=RESET_US, now_us=RESET_US - wait_us, pooled=pooled)


# Rates.


def test_rates_are_spelled_as_the_provider_spells_its_own():
    """Limit, remaining and reset of each kind: whole seconds, and tokens rounded to thousands."""
    assert rate_headers([RateView("requests", 50, 49, RESET_US), RateView("input-tokens", 30_000, 28_999, RESET_US + 1)]) == (
        (b"anthropic-ratelimit-requests-limit", b"50"),
        (b"anthropic-ratelimit-requests-remaining", b"49"),
        (b"anthropic-ratelimit-requests-reset", b"2026-08-08T00:00:00Z"),
        (b"anthropic-ratelimit-input-tokens-limit", b"30000"),
        (b"anthropic-ratelimit-input-tokens-remaining", b"28000"),
        (b"anthropic-ratelimit-input-tokens-reset", b"2026-08-08T00:00:01Z"),
    )


def test_a_small_limit_of_tokens_is_told_to_the_token():
    headers = dict(rate_headers([RateView("tokens", 9_999, 1_234, RESET_US), RateView("requests", 90_000, 12_345, RESET_US)]))
    assert headers[b"anthropic-ratelimit-tokens-remaining"] == b"1234"
    assert read_headroom(rate_headers([RateView("tokens", 10_000, 9_999, RESET_US)])).tokens.remaining == 9_000
    assert read_headroom(rate_headers([RateView("tokens", 900, 901, RESET_US)])).tokens.remaining == 900
    assert headers[b"anthropic-ratelimit-requests-remaining"] == b"12345"


@pytest.mark.parametrize(
    ("views", "shown"),
    [
        (((100, 50), (10, 6)), (100, 50)),  # half is less than three fifths
        (((100, 50), (10, 5)), (10, 5)),  # the same share: the smaller number
        (((100, 1), (10, 0)), (10, 0)),
        (((100, -7), (10, 1)), (100, 0)),  # overdrawn
        (((0, 0), (10, 1)), (0, 0)),
        (((3, 1), (600_000_000_000_000, 199_999_999_999_999)), (600_000_000_000_000, 199_999_999_999_999)),  # to the unit
    ],
)
def test_of_several_limits_the_most_restrictive_is_told(views, shown):
    """The least share left, in whichever order they come."""
    made = [RateView("requests", limit, remaining, RESET_US) for limit, remaining in views]
    for order in (made, made[::-1]):
        room = read_headroom(rate_headers(order)).requests
        assert (room.limit, room.remaining) == shown


def test_without_a_limit_of_all_tokens_it_is_the_sum_of_input_and_output():
    """As the provider documents `tokens`; with one of its own, that one is told."""
    both = [RateView("input-tokens", 30_000, 20_600, RESET_US), RateView("output-tokens", 8_000, 7_500, RESET_US + 9 * SECOND_US)]
    assert read_headroom(rate_headers(both)).tokens == Room(38_000, 28_000, "2026-08-08T00:00:09Z")
    assert read_headroom(rate_headers([*both, RateView("tokens", 35_000, 35_000, RESET_US)])).tokens.limit == 35_000
    assert read_headroom(rate_headers(both[:1])).tokens == Room()


kinds = st.sampled_from(["requests", "tokens", "input-tokens", "output-tokens"])
rate_views = st.builds(
    RateView,
    kind=kinds,
    limit=st.integers(0, 4 * 10**14),
    remaining=st.integers(-(10**14), 4 * 10**14),
    reset_us=st.integers(0, 4_000_000_000 * SECOND_US),
)


@given(st.lists(rate_views, max_size=8))
def test_rates_always_read_back_and_promise_no_more_than_there_is(views):
    """Whatever the numbers: what is read back is one of the limits, is not below zero, and is never more than what remains of any of its kind's share."""
    headers = rate_headers(views)
    assert len({name for name, _ in headers}) == len(headers)
    headroom = read_headroom(headers)
    for kind in {view.kind for view in views}:
        room = getattr(headroom, kind.replace("-", "_"))
        assert room.limit is not None
        assert room.remaining is not None
        assert room.reset_us is not None
        same = [view for view in views if view.kind == kind]
        (shown, *_) = [view for view in same if view.limit == room.limit]
        assert 0 <= room.remaining <= max(0, *(view.remaining for view in same), 0)
        assert room.reset_us >= min(view.reset_us for view in same)
        assert Fraction(room.remaining, max(1, room.limit)) <= min(Fraction(max(0, view.remaining), max(1, view.limit)) for view in same)
        if shown.limit >= 10_000 and kind != "requests":
            assert room.remaining % 1_000 == 0


# Budgets on success.


def test_a_success_tells_of_the_budget_as_documented():
    """The headers that the client documents for "under a cap", and no others."""
    assert budget_headers([budget(int(410.5 * USD))]) == (
        (UNIFIED + b"status", b"allowed_warning"),
        (UNIFIED + b"reset", b"1786147200"),
        (UNIFIED + b"representative-claim", b"overage"),
        (UNIFIED + b"overage-status", b"allowed_warning"),
        (UNIFIED + b"overage-reset", b"1786147200"),
        (UNIFIED + b"overage-utilization", b"0.82"),
        (UNIFIED + b"overage-surpassed-threshold", b"0.75"),
    )
    assert budget_headers([]) == ()


@pytest.mark.parametrize(
    ("used", "status", "utilization", "threshold"),
    [
        (0, b"allowed", b"0.00", None),
        (9, b"allowed", b"0.00", None),
        (10, b"allowed", b"0.01", None),
        (749, b"allowed", b"0.74", None),
        (750, b"allowed_warning", b"0.75", b"0.75"),
        (949, b"allowed_warning", b"0.94", b"0.75"),
        (950, b"allowed_warning", b"0.95", b"0.95"),
        (999, b"allowed_warning", b"0.99", b"0.95"),
        (1_000, b"allowed_warning", b"0.99", b"0.95"),
        (7_000, b"allowed_warning", b"0.99", b"0.95"),
        (-5, b"allowed", b"0.00", None),
    ],
)
def test_notices_come_at_three_quarters_and_at_ninety_five_per_cent(used, status, utilization, threshold):
    headers = dict(budget_headers([budget(used, 1_000)]))
    assert headers[UNIFIED + b"status"] == headers[UNIFIED + b"overage-status"] == status
    assert headers[UNIFIED + b"overage-utilization"] == utilization
    assert headers.get(UNIFIED + b"overage-surpassed-threshold") == threshold


def test_the_fullest_budget_is_told_whatever_is_held():
    """What is held may come back: it decides between equals alone."""
    one = budget(600, 1_000, resets_at_us=RESET_US)
    two = budget(59, 100, held=41, resets_at_us=RESET_US + SECOND_US)
    assert dict(budget_headers([two, one]))[UNIFIED + b"reset"] == b"1786147200"
    three = budget(60, 100, held=1, resets_at_us=RESET_US - SECOND_US)
    assert dict(budget_headers([one, three]))[UNIFIED + b"reset"] == b"1786147199"
    four = budget(6, 10, resets_at_us=RESET_US + SECOND_US)
    for order in ([one, four], [four, one]):
        assert dict(budget_headers(order))[UNIFIED + b"reset"] == b"1786147201"


@given(st.lists(st.builds(budget, st.integers(-100, 10**15), st.integers(0, 10**15), held=st.integers(0, 10**15)), min_size=1, max_size=5))
def test_a_request_that_passed_never_says_that_the_budget_is_used_up(views):
    headers = dict(budget_headers(views))
    utilization = headers[UNIFIED + b"overage-utilization"]
    assert len(utilization) == 4
    assert Decimal("0.00") <= Decimal(utilization.decode()) < 1
    threshold = headers.get(UNIFIED + b"overage-surpassed-threshold")
    assert (threshold is None) == (Decimal(utilization.decode()) < Decimal("0.75")) == (headers[UNIFIED + b"status"] == b"allowed")
    assert threshold is None or Decimal(threshold.decode()) <= Decimal(utilization.decode())


@pytest.mark.parametrize(
    ("days", "period"), [(1, "daily"), (4, "daily"), (5, "weekly"), (7, "weekly"), (14, "weekly"), (28, "monthly"), (92, "monthly")]
)
def test_every_cycle_is_told_as_the_closest_period(days, period):
    assert closest_period(days) == period


# Refusals.


def test_a_budget_that_is_used_up_is_refused_as_documented():
    """The bytes that the client documents for "cap reached", in its order, and the sentence that it shows."""
    assert exhausted() == Fault(
        429,
        "billing_error",
        "Tokenweir: platform month: 49.87 of 50.00 USD used (0.10 held) this month · resets 2026-12-01 00:00 Europe/Berlin"
        " · ask anna@example.com or: tokenweir request create lim_7 --amount AMOUNT --reason TEXT",
        (
            (b"retry-after", b"37800"),
            (b"x-should-retry", b"false"),
            (UNIFIED + b"status", b"rejected"),
            (UNIFIED + b"reset", b"1786147200"),
            (UNIFIED + b"overage-reset", b"1786147200"),
            (UNIFIED + b"overage-utilization", b"1"),
            (UNIFIED + b"overage-surpassed-threshold", b"1"),
            (UNIFIED + b"overage-period", b"daily"),
            (UNIFIED + b"overage-disabled-reason", b"org_spend_cap_reached"),
        ),
    )


def test_a_shared_budget_says_that_it_is_shared():
    assert exhausted(pooled=True).headers[-1] == (UNIFIED + b"overage-scope", b"group_pool")
    assert not any(name == UNIFIED + b"overage-scope" for name, _ in exhausted().headers)


@pytest.mark.parametrize("pooled", [False, True])
def test_nothing_makes_the_client_hide_the_sentence(pooled):
    """With these two, Claude Code would write a line of its own in its place."""
    names = {name for name, _ in exhausted(pooled=pooled).headers}
    assert not names & {UNIFIED + b"representative-claim", UNIFIED + b"overage-status"}


def test_quotas_of_tokens_and_requests_are_refused_like_money():
    words = LimitWords("lim_8", "tokens", "12,000", "12,000", "output tokens", "today", asked="300", resets="2026-11-23 00:00 UTC")
    assert exhausted(words).headers == exhausted().headers
    assert exhausted(words).message == (
        "Tokenweir: tokens: 12,000 of 12,000 output tokens used (300 asked for) today · resets 2026-11-23 00:00 UTC"
        " · ask for more: tokenweir request create lim_8 --amount AMOUNT --reason TEXT"
    )


RATE = LimitWords("lim_9", "burst", "60", "60", "requests", "per minute")


@pytest.mark.parametrize(
    ("wait_us", "seconds", "in_words"),
    [(0, b"1", "1 s"), (1, b"1", "1 s"), (SECOND_US, b"1", "1 s"), (SECOND_US + 1, b"2", "2 s"), (60 * SECOND_US, b"60", "60 s")],
)
def test_a_rate_says_when_to_come_back(wait_us, seconds, in_words):
    """In whole seconds, rounded up, never zero: what comes back then finds room."""
    fault = rate_refusal(RATE, wait_us=wait_us, rates=[RateView("requests", 60, 0, RESET_US)])
    assert (fault.status, fault.error_type) == (429, "rate_limit_error")
    assert fault.message == (
        f"Tokenweir: burst: 60 of 60 requests used per minute · has room in {in_words} · ask for more: tokenweir request create lim_9 --amount AMOUNT --reason TEXT --until 2h"
    )
    assert fault.headers[0] == (b"retry-after", seconds)
    assert read_headroom(fault.headers).requests == Room(60, 0, "2026-08-08T00:00:00Z")
    assert not any(name == b"x-should-retry" for name, _ in fault.headers)


@pytest.mark.parametrize(
    ("seconds", "in_words"),
    [(61, "1 min 1 s"), (120, "2 min"), (3_600, "60 min"), (3_601, "1 h 1 min"), (3_661, "1 h 2 min"), (86_399, "24 h"), (90_000, "1 d 1 h")],
)
def test_nobody_is_sent_to_sleep_by_a_rate(seconds, in_words):
    """A wait of more than a minute is told, and marked so that no client waits for it."""
    fault = rate_refusal(RATE, wait_us=seconds * SECOND_US)
    assert fault.headers[:2] == ((b"retry-after", str(seconds).encode()), (b"x-should-retry", b"false"))
    assert f"has room in {in_words} ·" in fault.message


def test_concurrency_asks_to_come_back_soon():
    words = LimitWords("lim_4", "eight at once", "8", "8", "requests at once", contact="#platform")
    fault = concurrency_refusal(words, rates=[RateView("requests", 60, 9, RESET_US)], waited=True)
    assert (fault.status, fault.error_type, fault.headers[0]) == (429, "rate_limit_error", (b"retry-after", b"1"))
    assert fault.message == (
        "Tokenweir: eight at once: 8 of 8 requests at once · has room when one of them ends · no room came while it was queued"
        " · ask #platform or: tokenweir request create lim_4 --amount AMOUNT --reason TEXT --until 2h"
    )


@pytest.mark.parametrize(("rate", "error_type"), [(True, "rate_limit_error"), (False, "billing_error")])
@pytest.mark.parametrize(("fits", "sentence"), [(None, "a smaller max_tokens or a shorter prompt"), (4_100, "max_tokens 4,100")])
def test_what_can_never_fit_says_what_would(rate, error_type, fits, sentence):
    words = LimitWords("lim_7", "small", "9.10", "10.00", "USD", "this month", held="0.20", asked="12.80", resets="2026-12-01 00:00 UTC")
    fault = too_large_refusal(words, rate=rate, max_tokens_fits=fits)
    assert (fault.status, fault.error_type, fault.headers) == (429, error_type, ((b"x-should-retry", b"false"),))
    assert fault.message == (
        "Tokenweir: small: 9.10 of 10.00 USD used (0.20 held) this month · this request alone may need 12.80 USD, more than the whole limit"
        f" · what would fit: {sentence} · ask for more: tokenweir request create lim_7 --amount AMOUNT --reason TEXT"
    )


def test_a_limit_of_nothing_gives_no_false_hope():
    fault = too_large_refusal(LimitWords("lim_0", "closed", "0", "0", "requests", "today", resets="2026-11-23 00:00 UTC"), rate=False)
    assert (
        fault.message
        == "Tokenweir: closed: 0 of 0 requests used today · no request fits this limit · ask for more: tokenweir request create lim_0 --amount AMOUNT --reason TEXT"
    )
    assert fault.headers == ((b"x-should-retry", b"false"),)


def test_a_budget_that_cannot_be_read_is_our_failure():
    """Never a 429: nobody has used too much. And it is spelled as every failure of a store."""
    fault = unreadable_budget()
    assert (fault.status, fault.error_type, fault.headers) == (503, "api_error", ((b"retry-after", b"2"),))
    assert fault == fault_of(StoreUnavailable(fault.message.removeprefix("Tokenweir: ")))


# Names are anybody's.

HOSTILE = [
    "a\r\nx-should-retry: true",
    "a\n\nevent: message_stop\ndata: {}\n\n",
    "a\x00b\x1b[2Jc",
    "a\u2028b\u2029c\x85d",
    "\u202emoor\u2066",
    "\ud800",
    "ü · 预算 🦅",
    '"}}, {"type": "message"',
    "%s %d {} \\",
    "x" * 100_000,
    "",
]


def every_refusal(text: str) -> list[Fault]:
    words = LimitWords(text, text, text, text, text, text, text, text, text, text)
    rates = [RateView("requests", 60, 0, RESET_US)]
    return [
        exhausted(words, pooled=True),
        rate_refusal(words, wait_us=5 * SECOND_US, rates=rates, waited=True),
        rate_refusal(words, wait_us=500 * SECOND_US, rates=rates),
        concurrency_refusal(words, rates=rates),
        too_large_refusal(words, rate=True, rates=rates),
        too_large_refusal(words, rate=False, max_tokens_fits=7),
    ]


def check_harmless(text: str) -> None:
    for fault, plain in zip(every_refusal(text), every_refusal("plain"), strict=True):
        assert fault.headers == plain.headers
        assert fault.message.isprintable()
        assert fault.message.startswith("Tokenweir: ")
        assert len(fault.message) < 3_000
        body = fault_body(fault.error_type, fault.message, "req_1")
        assert body.isascii()
        assert b"\n" not in body
        assert b"\r" not in body
        error = json.loads(body)
        assert set(error) == {"type", "error", "request_id"}
        assert set(error["error"]) == {"type", "message"}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_reaches_a_header_or_breaks_a_line(text):
    """Whatever people call their limits: the headers are the same, and the sentence is one printable line."""
    check_harmless(text)


@given(st.text(st.characters(), max_size=300))
def test_no_text_at_all_reaches_a_header(text):
    check_harmless(text)


@given(st.lists(rate_views, max_size=4), st.integers(-(10**15), 10**15), st.booleans())
def test_headers_are_plain_lines(views, wait_us, pooled):
    """ASCII, without line breaks, and each name once, whatever the numbers."""
    for fault in (
        rate_refusal(RATE, wait_us=wait_us, rates=views),
        exhausted(pooled=pooled, wait_us=wait_us),
        concurrency_refusal(RATE, rates=views),
    ):
        assert len({name for name, _ in fault.headers}) == len(fault.headers)
        found = dict(fault.headers)
        assert int(found[b"retry-after"]) >= 1
        assert int(found[b"retry-after"]) <= RETRY_AFTER_S_MAX or found[b"x-should-retry"] == b"false"
        for name, value in fault.headers:
            assert name == name.lower()
            assert (name + value).isascii()
            assert value
            assert (name + value).decode().isprintable()


# What clients make of it.


def sdk_decision(fault: Fault) -> tuple[bool, float]:
    """Whether the official SDK would try again, and the seconds that it would wait before."""
    client = anthropic.Anthropic(api_key="k", base_url="http://127.0.0.1:9", max_retries=2)
    body = fault_body(fault.error_type, fault.message, "req_1")
    response = httpx2.Response(
        fault.status,
        headers=[(name.decode(), value.decode()) for name, value in fault.headers],
        content=body,
        request=httpx2.Request("POST", "http://127.0.0.1:9/v1/messages"),
    )
    options = FinalRequestOptions.construct(method="post", url="/v1/messages")
    return client._should_retry(response), client._calculate_retry_timeout(2, options, response.headers)


@pytest.mark.parametrize(
    ("fault", "decision"),
    [
        (rate_refusal(RATE, wait_us=7 * SECOND_US), (True, 7.0)),
        (rate_refusal(RATE, wait_us=0), (True, 1.0)),
        (rate_refusal(RATE, wait_us=60 * SECOND_US), (True, 60.0)),
        (concurrency_refusal(RATE), (True, 1.0)),
        (unreadable_budget(), (True, 2.0)),
    ],
    ids=["rate", "rate at once", "rate a minute", "concurrency", "unreadable"],
)
def test_the_sdk_waits_as_told_and_tries_again(fault, decision):
    assert sdk_decision(fault) == decision


@pytest.mark.parametrize(
    "fault",
    [
        exhausted(),
        exhausted(pooled=True),
        rate_refusal(RATE, wait_us=61 * SECOND_US),
        too_large_refusal(RATE, rate=True),
        too_large_refusal(RATE, rate=False),
    ],
    ids=["budget", "shared budget", "long rate", "too large rate", "too large budget"],
)
def test_the_sdk_leaves_alone_what_would_fail_again(fault):
    assert sdk_decision(fault)[0] is False


@pytest.mark.parametrize("fault", every_refusal("x"))
def test_a_gateway_before_us_does_the_same(fault):
    """Our own judgement of a provider's error, on our own refusals: it retries only what may pass soon."""
    body = fault_body(fault.error_type, fault.message, "req_1")
    wait_ms = decide_retry(fault.status, list(fault.headers), body, attempt_no=1, attempts_max=2, retry_after_max_ms=60_000, now_us=NOW_US)
    assert (wait_ms is None) == ((b"x-should-retry", b"false") in fault.headers)


# GET /api/oauth/usage.


def test_own_usage_is_told_as_documented():
    """The documented example, to the byte."""
    resets_at_us = 1_790_812_800 * SECOND_US
    assert oauth_usage([budget(271_400_000_000, resets_at_us=resets_at_us)]) == (
        b'{"extra_usage":{"is_enabled":true,"monthly_limit":50000,"used_credits":27140,"utilization":54,"currency":"USD"},'
        b'"limits":[{"kind":"spend","group":"monthly","percent":54,"resets_at":"2026-10-01T00:00:00.000Z","severity":"normal","is_active":true}]}'
    )


def test_without_a_budget_nothing_is_enabled():
    """The client then shows no amounts; and what was spent, if that is known, in the three periods that it has."""
    nothing = json.loads(oauth_usage([]))
    assert nothing == {
        "extra_usage": {"is_enabled": False, "monthly_limit": None, "used_credits": None, "utilization": None, "currency": "USD"},
        "limits": [],
    }
    spent = json.loads(oauth_usage([], spent=Spent(daily=12 * USD, weekly=20 * USD, monthly=99 * USD)))["extra_usage"]
    assert (spent["monthly_limit"], spent["used_credits"], spent["utilization"]) == (None, 9_900, None)
    assert spent["daily"] == {"limit": None, "used_credits": 1_200, "utilization": None}
    assert spent["weekly"] == {"limit": None, "used_credits": 2_000, "utilization": None}


def test_of_several_budgets_the_amounts_are_those_of_the_tightest_money():
    """A fuller quota of tokens is in the list, but has no dollars; the active row is the one that the dollars belong to."""
    views = [budget(10, 100), budget(96, 100, quantity="tokens", period="daily"), budget(80 * USD, 100 * USD, period="weekly"), budget(0, 9)]
    answer = json.loads(oauth_usage(views))
    assert (answer["extra_usage"]["monthly_limit"], answer["extra_usage"]["used_credits"], answer["extra_usage"]["utilization"]) == (
        10_000,
        8_000,
        80,
    )
    rows = [(row["kind"], row["group"], row["percent"], row["severity"], row["is_active"]) for row in answer["limits"]]
    assert rows == [
        ("tokens", "daily", 96, "critical", False),
        ("spend", "weekly", 80, "warning", True),
        ("spend", "monthly", 10, "normal", False),
        ("spend", "monthly", 0, "normal", False),
    ]


def test_a_quota_alone_has_no_dollars():
    answer = json.loads(oauth_usage([budget(5, 10, quantity="requests")]))
    assert answer["extra_usage"]["is_enabled"] is False
    assert [(row["kind"], row["percent"], row["is_active"]) for row in answer["limits"]] == [("requests", 50, True)]


def test_more_than_all_of_it_is_said():
    assert json.loads(oauth_usage([budget(150, 100)]))["limits"][0]["percent"] == 150
    assert json.loads(oauth_usage([budget(0, 0)]))["limits"][0]["percent"] == 100


@pytest.mark.parametrize(("used", "severity"), [(74, "normal"), (75, "warning"), (94, "warning"), (95, "critical"), (101, "critical")])
def test_severity_follows_the_notices(used, severity):
    assert json.loads(oauth_usage([budget(used, 100)]))["limits"][0]["severity"] == severity


@given(st.integers(0, 4 * 10**18), st.integers(1, 4 * 10**18))
def test_cents_are_exact(used, amount):
    """Read without a float, they are the nano-dollars again; whole ones have no decimals."""
    body = oauth_usage([budget(used, amount)])
    extra = json.loads(body, parse_float=Decimal)["extra_usage"]
    for cents, nanos in ((extra["used_credits"], used), (extra["monthly_limit"], amount)):
        assert Decimal(cents) * 10_000_000 == nanos
        assert isinstance(cents, int) == (nanos % 10_000_000 == 0)
