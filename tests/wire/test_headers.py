"""Only named headers pass, in either direction; what is read from them is bounded; a key is never ambiguous."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import FIXTURES, needs_fixtures
from tokenweir.errors import InvalidRequest, Unauthenticated
from tokenweir.wire.headers import (
    Attribution,
    Headroom,
    Room,
    attribution,
    credentials,
    forward_request_headers,
    forward_response_headers,
    read_headroom,
    read_retry_after,
)

NOW_US = 1_795_355_100_000_000  # 2026-11-22T13:45:00Z

PASS_UP = [
    (b"accept", b"application/json"), (b"content-type", b"application/json"), (b"user-agent", b"Anthropic/Python 2.12.0"),
    (b"anthropic-version", b"2026-10-21"), (b"anthropic-beta", b"a,b"), (b"anthropic-dangerous-direct-browser-access", b"true"), (b"x-app", b"cli"),
    (b"x-stainless-lang", b"python"), (b"x-stainless-retry-count", b"1"), (b"x-claude-code-session-id", b"s"), (b"traceparent", b"00-ab-cd-01"),
]  # fmt: skip
STAY_DOWN = [
    b"host", b"content-length", b"x-api-key", b"authorization", b"proxy-authorization", b"cookie", b"connection", b"keep-alive", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"proxy-connection", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"via",
    b"anthropic-organization-id", b"anthropic-workspace-id", b"anthropic-user-profile-id", b"anthropic-admin-key", b"accept-encoding", b"content-encoding",
    b"expect", b"origin", b"referer", b"x-request-id", b"idempotency-key", b"x-http-method-override", b"x-tokenweir-tag", b"", b"x-claude-code", b"x-stainless",
]  # fmt: skip
PASS_DOWN = [
    (b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"retry-after", b"3"), (b"retry-after-ms", b"2500"),
    (b"x-should-retry", b"false"), (b"anthropic-version", b"2026-10-21"), (b"anthropic-something-new", b"1"), (b"content-encoding", b"gzip"),
]  # fmt: skip
STAY_UP = [
    b"set-cookie", b"strict-transport-security", b"location", b"request-id", b"x-request-id", b"cf-ray", b"server", b"date", b"server-timing", b"connection",
    b"transfer-encoding", b"content-length", b"keep-alive", b"upgrade", b"trailer", b"anthropic-organization-id", b"anthropic-workspace-id",
    b"anthropic-ratelimit-requests-limit", b"anthropic-ratelimit-unified-status", b"anthropic-priority-input-tokens-remaining",
    b"anthropic-fast-output-tokens-reset", b"www-authenticate", b"alt-svc", b"access-control-allow-origin", b"x-envoy-upstream-service-time", b"via",
]  # fmt: skip


def test_a_request_passes_exactly_what_is_named_and_asks_for_identity():
    headers = [*PASS_UP, *((name, b"v") for name in STAY_DOWN)]
    assert forward_request_headers(headers) == [*PASS_UP, (b"accept-encoding", b"identity")]
    assert forward_request_headers([]) == [(b"accept-encoding", b"identity")]


def test_an_answer_passes_exactly_what_is_named():
    assert forward_response_headers([*PASS_DOWN, *((name, b"v") for name in STAY_UP)]) == PASS_DOWN


@pytest.mark.parametrize("connection", [b"anthropic-beta", b"keep-alive, Anthropic-Beta", b"close,x-y , anthropic-beta ,", b" ANTHROPIC-BETA"])
def test_what_connection_names_goes_no_further(connection):
    """A hop may strip what the client declares to be of one hop: then the provider must not see it from us either."""
    headers = [(b"connection", b"x"), (b"anthropic-beta", b"b"), (b"accept", b"a"), (b"connection", connection)]
    assert forward_request_headers(headers) == [(b"accept", b"a"), (b"accept-encoding", b"identity")]
    assert forward_response_headers([(b"connection", b"Retry-After"), (b"retry-after", b"1"), (b"content-type", b"t")]) == [(b"content-type", b"t")]


@pytest.mark.parametrize("value", [b"a\r\nx-api-key: stolen", b"a\nb", b"a\rb", b"a\x00b"])
def test_a_value_that_could_end_a_line_goes_no_further(value):
    assert forward_request_headers([(b"user-agent", value), (b"accept", b"a")]) == [(b"accept", b"a"), (b"accept-encoding", b"identity")]
    assert forward_response_headers([(b"content-type", value), (b"retry-after", b"1")]) == [(b"retry-after", b"1")]


_NAME = st.sampled_from([name for name, _ in [*PASS_UP, *PASS_DOWN]] + STAY_DOWN + STAY_UP) | st.binary(max_size=12)


@given(st.lists(st.tuples(_NAME, st.binary(max_size=20)), max_size=12))
def test_nothing_is_invented_and_nothing_secret_passes(headers):
    up, down = forward_request_headers(headers), forward_response_headers(headers)
    assert all(header in headers for header in up[:-1])
    assert all(header in headers for header in down)
    assert not {name for name, _ in up[:-1]} & set(STAY_DOWN)
    assert not {name for name, _ in down} & set(STAY_UP)


# Credentials.


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"x-api-key", b"tw-1")], "tw-1"),
        ([(b"authorization", b"Bearer tw-1")], "tw-1"),
        ([(b"authorization", b"bEARER   tw-1 ")], "tw-1"),
        ([(b"authorization", b"Bearer tw-1"), (b"x-api-key", b"tw-1")], "tw-1"),
        ([(b"authorization", b""), (b"x-api-key", b"tw-1")], "tw-1"),
        ([(b"authorization", b"Bearer"), (b"x-api-key", b"tw-1")], "tw-1"),
        ([(b"authorization", b"Bearer tw-1"), (b"x-api-key", b"")], "tw-1"),
    ],
)
def test_a_key_is_taken_from_either_header(headers, key):
    assert credentials(headers) == key


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-api-key", b"tw-1"), (b"authorization", b"Bearer tw-2")],
        [(b"x-api-key", b"tw-1"), (b"authorization", b"Basic dHctMQ==")],
        [(b"x-api-key", b"tw-1"), (b"x-api-key", b"tw-1")],
        [(b"x-api-key", b""), (b"x-api-key", b"tw-1")],
        [(b"authorization", b"Bearer tw-1"), (b"authorization", b"Bearer tw-1")],
    ],
)
def test_two_keys_are_refused(headers):
    with pytest.raises(InvalidRequest) as refused:
        credentials(headers)
    assert "tw-" not in refused.value.message


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-api-key", b" ")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic dHctMQ==")],
        [(b"authorization", b"tw-1")],
        [(b"x-api-key", "schlüssel".encode())],
        [(b"x-api-key", b"k" * 513)],
        [(b"X-Api-Key", b"not as ASGI writes it")],
    ],
)
def test_no_key_is_no_caller(headers):
    with pytest.raises(Unauthenticated):
        credentials(headers)


# What the provider says.


def test_headroom_is_read():
    headers = [
        (b"anthropic-ratelimit-requests-limit", b"4000"), (b"anthropic-ratelimit-requests-remaining", b"3999"),
        (b"anthropic-ratelimit-requests-reset", b"2026-11-22T13:45:00Z"), (b"anthropic-ratelimit-tokens-limit", b"2400000"),
        (b"anthropic-ratelimit-input-tokens-remaining", b"1999000"), (b"anthropic-ratelimit-output-tokens-remaining", b"0"), (b"date", b"x"),
    ]  # fmt: skip
    headroom = read_headroom(headers)
    assert headroom == Headroom(Room(4000, 3999, "2026-11-22T13:45:00Z"), Room(2_400_000), Room(remaining=1_999_000), Room(remaining=0))
    assert headroom.requests.reset_us == NOW_US
    assert headroom.tokens.reset_us is None


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"x", b"9" * 40, b"\xff", "٣".encode()])
def test_headroom_that_cannot_be_read_is_left_out(value):
    headroom = read_headroom([(b"anthropic-ratelimit-tokens-limit", value), (b"anthropic-ratelimit-tokens-reset", value)])
    assert headroom.tokens.limit is None
    assert headroom.tokens.reset_us is None


def test_without_headers_there_is_no_headroom():
    assert read_headroom([(b"content-type", b"x")]) == Headroom()


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ([], None),
        ([(b"retry-after", b"3")], 3_000),
        ([(b"retry-after", b"0")], 0),
        ([(b"retry-after", b"1.5")], 1_500),
        ([(b"retry-after", b" 2 ")], 2_000),
        ([(b"retry-after", b"0.0001")], 1),
        ([(b"retry-after-ms", b"250")], 250),
        ([(b"retry-after-ms", b"250"), (b"retry-after", b"9")], 250),
        ([(b"retry-after-ms", b"soon"), (b"retry-after", b"9")], 9_000),
        ([(b"retry-after", b"Sun, 22 Nov 2026 13:45:30 GMT")], 30_000),
        ([(b"retry-after", b"Sun, 22 Nov 2026 13:44:00 GMT")], 0),
        ([(b"retry-after", b"99999999999")], 4_294_967_000),
        ([(b"retry-after", b"-1")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"inf")], None),
        ([(b"retry-after", b"1e3")], None),
        ([(b"retry-after", b"1_0")], None),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"")], None),
        ([(b"retry-after", b"\xff")], None),
        ([(b"retry-after", b"9" * 5_000)], None),
        ([(b"retry-after", b"Sun, 99 Nov 99999 13:45:30 GMT")], None),
    ],
)
def test_the_wait_asked_for_is_read(headers, wait_ms):
    assert read_retry_after(headers, now_us=NOW_US) == wait_ms


@given(st.binary(max_size=40))
def test_any_wait_is_read_or_left_out(value):
    wait = read_retry_after([(b"retry-after", value)], now_us=NOW_US)
    assert wait is None or 0 <= wait <= 4_294_967_000


# What a client says of itself.


def test_a_client_is_described_in_its_own_words():
    headers = [
        (b"x-claude-code-session-id", b"s-1"), (b"x-claude-code-agent-id", b"a-1"), (b"x-claude-code-parent-agent-id", b"a-0"),
        (b"user-agent", b"claude-cli/2.1.330 (external, sdk-cli)"), (b"x-stainless-retry-count", b"2"),
    ]  # fmt: skip
    assert attribution(headers) == Attribution("s-1", "a-1", "a-0", "claude-cli/2.1.330 (external, sdk-cli)", 2)
    assert attribution([]) == Attribution()


@given(st.binary(max_size=2_000), st.binary(max_size=12))
def test_what_a_client_says_is_bounded_and_printable(words, number):
    said = attribution([(b"user-agent", words), (b"x-claude-code-session-id", words), (b"x-stainless-retry-count", number)])
    assert len(said.client) <= 200
    assert len(said.session_id) <= 128
    assert said.client.isprintable()
    assert said.session_id.isprintable()
    assert 0 <= said.client_retry <= 9_999


@needs_fixtures
def test_a_request_of_claude_code_keeps_what_matters_and_loses_its_key():
    assert FIXTURES is not None
    for path in sorted((FIXTURES / "claude-code").glob("*messages.json")):
        headers = [(name.lower().encode(), value.encode()) for name, value in json.loads(path.read_text())["headers"].items()]
        names = {name for name, _ in forward_request_headers(headers)}
        assert {b"anthropic-beta", b"anthropic-version", b"user-agent", b"x-app", b"x-claude-code-session-id"} <= names
        assert not names & {b"x-api-key", b"authorization", b"host", b"content-length", b"connection"}
        assert credentials(headers)
        assert attribution(headers).session_id
