"""Our refusals make every client do the right thing; the provider's errors are judged by a table."""

from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir import errors
from tokenweir.errors import TokenweirError
from tokenweir.policies import Denied
from tokenweir.wire.faults import Fault, decide_retry, fault_body, fault_of, fault_of_denied, read_fault, stream_fault
from tokenweir.wire.sse import parse_event

NO_RETRY = (b"x-should-retry", b"false")
NOW_US = 1_795_355_100_000_000

ALL_FAILURES = sorted(
    (kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, TokenweirError)), key=lambda kind: kind.__name__
)


# Ours.


@pytest.mark.parametrize(
    ("failure", "status", "error_type", "headers"),
    [
        (errors.InvalidRequest, 400, "invalid_request_error", ()),
        (errors.Unauthenticated, 401, "authentication_error", (NO_RETRY,)),
        (errors.Forbidden, 403, "permission_error", (NO_RETRY,)),
        (errors.BodyTooLarge, 413, "request_too_large", (NO_RETRY,)),
        (errors.BodyTooSlow, 408, "timeout_error", ()),
        (errors.NotSupported, 501, "not_supported", (NO_RETRY,)),
        (errors.UpstreamUnreachable, 503, "api_error", ((b"retry-after", b"1"),)),
        (errors.UpstreamBusy, 529, "overloaded_error", ((b"retry-after", b"1"),)),
        (errors.UpstreamSilent, 504, "timeout_error", ()),
        (errors.UpstreamCut, 502, "api_error", ()),
        (errors.JournalFull, 529, "overloaded_error", ((b"retry-after", b"5"),)),
        (errors.JournalBroken, 503, "api_error", ((b"retry-after", b"1"),)),
        (errors.StoreUnavailable, 503, "api_error", ((b"retry-after", b"2"),)),
        (errors.ShuttingDown, 529, "overloaded_error", ((b"retry-after", b"1"),)),
    ],
)
def test_each_failure_has_its_shape(failure, status, error_type, headers):
    assert fault_of(failure("why")) == Fault(status, error_type, "Tokenweir: why", headers)


@pytest.mark.parametrize("failure", ALL_FAILURES)
def test_no_failure_leaves_a_client_guessing(failure):
    """Whatever is raised: an error status, a message that says whose it is, and no retry of what cannot succeed."""
    fault = fault_of(failure("why"))
    assert 400 <= fault.status <= 599
    assert fault.message.startswith("Tokenweir: ")
    if failure.fault in ("caller", "operator") and fault.status not in (400, 408):
        assert NO_RETRY in fault.headers
    if any(name == b"retry-after" for name, _ in fault.headers):
        assert failure.retryable


def test_what_the_operator_must_mend_is_not_told_to_callers():
    fault = fault_of(errors.SecretExposed("/etc/tokenweir/key is readable by others"))
    assert fault.status == 500
    assert "/etc" not in fault.message


@pytest.mark.parametrize(
    ("reason", "status", "error_type"),
    [
        ("expired", 401, "authentication_error"),
        ("revoked", 401, "authentication_error"),
        ("network", 403, "permission_error"),
        ("model", 400, "invalid_request_error"),
        ("something new", 403, "permission_error"),
    ],
)
def test_each_denial_has_its_shape(reason, status, error_type):
    assert fault_of_denied(Denied(reason, "no")) == Fault(status, error_type, "Tokenweir: no", (NO_RETRY,))


@given(st.text(), st.text())
def test_bodies_and_events_are_the_providers_envelope_whatever_they_say(message, request_id):
    body = fault_body("api_error", message, request_id)
    envelope = json.loads(body)
    assert envelope["type"] == "error"
    assert envelope["request_id"] == request_id
    assert envelope["error"]["type"] == "api_error"
    assert envelope["error"]["message"].startswith("Tokenweir: ")
    assert read_fault(500, body) == ("api_error", "")
    event = stream_fault("api_error", message, request_id)
    name, inside = parse_event(event.removesuffix(b"\n\n"))
    assert (name, json.loads(inside), event.count(b"\n")) == (b"error", envelope, 3)


def test_a_message_is_marked_as_ours_once():
    assert json.loads(fault_body("api_error", "Tokenweir: x", "req"))["error"]["message"] == "Tokenweir: x"
    assert len(json.loads(fault_body("api_error", "x" * 10_000, "req"))["error"]["message"]) == 2_000


# The provider's.


def error_of(error_type: str, code: str | None = None) -> bytes:
    error = {"type": error_type, "message": "m", **({"details": {"error_code": code}} if code else {})}
    return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()


@pytest.mark.parametrize(
    ("status", "body", "read"),
    [
        (529, error_of("overloaded_error"), ("overloaded_error", "")),
        (429, error_of("rate_limit_error", "ramp_limit_exceeded"), ("rate_limit_error", "ramp_limit_exceeded")),
        (400, error_of("future_error"), ("future_error", "")),
        (413, b"<html>cloudflare</html>", ("request_too_large", "")),
        (502, b"", ("api_error", "")),
        (418, b"{}", ("invalid_request_error", "")),
        (404, b'{"error":"x"}', ("not_found_error", "")),
        (404, b'{"error":{"type":7,"details":[]}}', ("not_found_error", "")),
        (500, b'{"error":{"type":"a\\nb","details":{"error_code":"' + b"x" * 99 + b'"}}}', ("api_error", "")),
        (500, b"[" * 100_000, ("api_error", "")),
        (529, b'{"error":' + b" " * 300_000, ("overloaded_error", "")),
    ],
)
def test_an_error_is_read_from_its_envelope_or_its_status(status, body, read):
    assert read_fault(status, body) == read


AFTER_1S = [(b"retry-after", b"1")]
AFTER_1H = [(b"retry-after", b"3600")]
NEVER = [(b"x-should-retry", b"false"), (b"retry-after", b"1")]

RETRIED = "small backoff"


@pytest.mark.parametrize(
    ("status", "headers", "body", "wait"),
    [
        # Overload: soon again, and as long as was asked for.
        (529, [], error_of("overloaded_error"), RETRIED),
        (529, [], error_of("overloaded_error", "compaction_unavailable"), RETRIED),
        (503, [], b"", RETRIED),
        (502, [], b"<html>", RETRIED),
        (529, AFTER_1S, error_of("overloaded_error"), 1_000),
        (529, AFTER_1H, error_of("overloaded_error"), None),
        (503, NEVER, b"", None),
        # Rate limits: only if it is said how long, and that is short.
        (429, AFTER_1S, error_of("rate_limit_error"), 1_000),
        (429, AFTER_1S, error_of("rate_limit_error", "ramp_limit_exceeded"), 1_000),
        (429, [], error_of("rate_limit_error"), None),
        (429, AFTER_1H, error_of("rate_limit_error"), None),
        (429, NEVER, error_of("rate_limit_error"), None),
        (429, [(b"x-should-retry", b"true")], error_of("rate_limit_error"), None),
        # Spend limits stand until somebody acts.
        (429, AFTER_1S, error_of("rate_limit_error", "enforced_spend_limit_reached"), None),
        (429, AFTER_1S, error_of("rate_limit_error", "contract_spend_limit_reached"), None),
        (429, AFTER_1S, error_of("billing_error"), None),
        (402, AFTER_1S, error_of("billing_error", "linked_organization_spend_limit_reached"), None),
        (503, AFTER_1S, error_of("billing_error"), None),
        # What may have done its work is the client's to repeat; what is wrong stays wrong.
        (500, AFTER_1S, error_of("api_error"), None),
        (504, AFTER_1S, error_of("timeout_error"), None),
        (500, [(b"x-should-retry", b"true")], error_of("api_error"), None),
        (400, AFTER_1S, error_of("invalid_request_error"), None),
        (401, AFTER_1S, error_of("authentication_error"), None),
        (404, [], error_of("not_found_error"), None),
        (408, AFTER_1S, b"", None),
        (409, AFTER_1S, b"", None),
        (413, AFTER_1S, b"", None),
        (302, AFTER_1S, b"", None),
        # Accepted with 200, refused in the first event.
        (200, [], error_of("overloaded_error"), RETRIED),
        (200, AFTER_1S, error_of("rate_limit_error"), 1_000),
        (200, [], error_of("rate_limit_error"), None),
        (200, [], error_of("api_error"), None),
        (200, [], error_of("timeout_error"), None),
        (200, [], error_of("invalid_request_error"), None),
        (200, [], error_of("unheard_of"), None),
        (200, [], b"not json", None),
    ],
)
def test_what_is_tried_again(status, headers, body, wait):
    decided = decide_retry(status, headers, body, attempt_no=1, attempts_max=3, retry_after_max_ms=5_000, now_us=NOW_US)
    if wait is RETRIED:
        assert decided is not None
        assert 200 <= decided < 400
    else:
        assert decided == wait


@pytest.mark.parametrize(("attempt_no", "attempts_max"), [(1, 1), (3, 3), (4, 3)])
def test_attempts_are_bounded(attempt_no, attempts_max):
    decided = decide_retry(529, AFTER_1S, b"", attempt_no=attempt_no, attempts_max=attempts_max, retry_after_max_ms=5_000, now_us=NOW_US)
    assert decided is None


@given(st.integers(0, 10**16))
def test_waits_grow_and_are_spread(now_us):
    first, second = (
        decide_retry(529, [], b"", attempt_no=attempt_no, attempts_max=3, retry_after_max_ms=5_000, now_us=now_us) for attempt_no in (1, 2)
    )
    assert first is not None
    assert second is not None
    assert 200 <= first < 400 <= second < 800
