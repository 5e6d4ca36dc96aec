"""Errors on the wire: how ours are spelled, and what the provider's mean.

The rule: a client library decides by status, `x-should-retry` and `retry-after` what to do next, so each of our refusals must make it do the right thing.
What will fail again is marked `x-should-retry: false`; what may pass soon carries a short `retry-after`. Messages of ours begin with "Tokenweir: ", so
that nobody takes them for the provider's. Change together with `errors.py` (the failures).
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

import msgspec

from tokenweir.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Forbidden,
    InvalidRequest,
    JournalBroken,
    JournalFull,
    NotSupported,
    OperatorError,
    ShuttingDown,
    StoreUnavailable,
    TokenweirError,
    Unauthenticated,
    UpstreamBusy,
    UpstreamCut,
    UpstreamSilent,
    UpstreamUnreachable,
)
from tokenweir.periods import Micros
from tokenweir.wire.headers import Header, Headers, read_retry_after
from tokenweir.wire.sse import encode_event

OURS = "Tokenweir: "
MESSAGE_CHARS_MAX = 2_000

_NO_RETRY: Header = (b"x-should-retry", b"false")


class Fault(msgspec.Struct, frozen=True):
    """A refusal as it goes to the client."""

    status: int
    error_type: str
    message: str
    headers: tuple[Header, ...] = ()


def fault_body(error_type: str, message: str, request_id: str) -> bytes:
    """The body of a refusal, in the provider's envelope."""
    return json.dumps(_envelope(error_type, message, request_id), separators=(",", ":")).encode("ascii")


def stream_fault(error_type: str, message: str, request_id: str) -> bytes:
    """The event that ends a stream which cannot go on."""
    return encode_event("error", _envelope(error_type, message, request_id))


def _envelope(error_type: str, message: str, request_id: str) -> dict[str, Any]:
    text = message if message.startswith(OURS) else OURS + message
    return {"type": "error", "error": {"type": error_type, "message": text[:MESSAGE_CHARS_MAX]}, "request_id": request_id}


def _soon(seconds: int) -> tuple[Header, ...]:
    return ((b"retry-after", str(seconds).encode()),)


# The failure, and the error type and headers that make a client do the right thing. The status is the failure's own hint.
_SPELLED: tuple[tuple[type[TokenweirError], str, tuple[Header, ...]], ...] = (
    (InvalidRequest, "invalid_request_error", ()),
    (Unauthenticated, "authentication_error", (_NO_RETRY,)),
    (Forbidden, "permission_error", (_NO_RETRY,)),
    (BodyTooLarge, "request_too_large", (_NO_RETRY,)),
    (BodyTooSlow, "timeout_error", ()),
    (NotSupported, "not_supported", (_NO_RETRY,)),
    (UpstreamUnreachable, "api_error", _soon(1)),
    (UpstreamBusy, "overloaded_error", _soon(1)),
    (UpstreamSilent, "timeout_error", ()),
    (UpstreamCut, "api_error", ()),
    (JournalFull, "overloaded_error", _soon(5)),
    (JournalBroken, "api_error", _soon(1)),
    (StoreUnavailable, "api_error", _soon(2)),
    (ShuttingDown, "overloaded_error", _soon(1)),
)


def fault_of(error: TokenweirError) -> Fault:
    """How a failure looks to the client. What only the operator can mend, the client is not told in detail."""
    for kind, error_type, headers in _SPELLED:
        if isinstance(error, kind):
            return Fault(error.status_hint, error_type, OURS + error.message, headers)
    if isinstance(error, OperatorError):
        return Fault(
            500, "api_error", OURS + "the gateway is not set up for this request; its operator will find the reason in the log", (_NO_RETRY,)
        )
    if error.fault == "caller":
        return Fault(error.status_hint, "invalid_request_error", OURS + error.message, (_NO_RETRY,))
    return Fault(error.status_hint, "api_error", OURS + error.message, _soon(1) if error.retryable else (_NO_RETRY,))


class Refusal(Protocol):
    """What a denial says of itself; `policies.Denied` is one."""

    @property
    def reason(self) -> str:
        """Which rule refused."""
        ...

    @property
    def message(self) -> str:
        """A sentence for the caller."""
        ...


_DENIALS: dict[str, tuple[int, str]] = {
    "expired": (401, "authentication_error"),
    "revoked": (401, "authentication_error"),
    "network": (403, "permission_error"),
    "model": (400, "invalid_request_error"),
}


def fault_of_denied(denied: Refusal) -> Fault:
    """How a foreseen refusal looks to the client: it stands until somebody changes the key, so it is never retried."""
    status, error_type = _DENIALS.get(denied.reason, (403, "permission_error"))
    return Fault(status, error_type, OURS + denied.message, (_NO_RETRY,))


# The provider's errors.

_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 409: "conflict_error", 413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
_STATUSES = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403, "not_found_error": 404,
    "conflict_error": 409, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip
_CODE = re.compile(r"[a-z0-9_.-]{1,64}")
_ERROR_BYTES_MAX = 256 * 1024


def read_fault(status: int, body: bytes) -> tuple[str, str]:
    """Type and code of an error of the provider (or of what stands before it): from the envelope, or else from the status. The code may be empty."""
    error: Any = None
    if body and len(body) <= _ERROR_BYTES_MAX:
        try:
            error = _decode_any(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            error = None
    error = error.get("error") if isinstance(error, dict) else None
    if not isinstance(error, dict):
        return _type_of(status), ""
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    return _word(error.get("type")) or _type_of(status), _word(code) or _word(error.get("error_code"))


_decode_any = msgspec.json.Decoder().decode


def _type_of(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")


def _word(value: object) -> str:
    return value if isinstance(value, str) and _CODE.fullmatch(value) is not None else ""


def status_of_error(error_type: str) -> int:
    """The status that the provider answers with for a type of error; 500 for one it does not document."""
    return _STATUSES.get(error_type, 500)


_RETRIED = frozenset({502, 503, 529})
_SPEND_LIMITS = ("spend_limit", "billing", "organization_on_hold")
_BACKOFF_MS = 200


def decide_retry(
    status: int,
    headers: Headers,
    body: bytes,
    *,
    attempt_no: int,
    attempts_max: int,
    retry_after_max_ms: int,
    now_us: Micros,
) -> int | None:
    """How many milliseconds to wait before the next attempt, or None to give the answer to the client.

    For answers only, and before the first byte went down. `body` is the error's JSON; a stream that opened with an error has status 200 and the event's
    data, and is judged by its type. Overload is retried after a short wait; a rate limit only if the provider says how long, and that is short; a
    spend limit never, for it stands until somebody acts. What may have done work already (500, 504) is left to the client.
    """
    error_type, code = read_fault(status, body)
    if status < 400:
        status = status_of_error(error_type)
    if attempt_no >= attempts_max or any(name == b"x-should-retry" and value.strip().lower() == b"false" for name, value in headers):
        return None
    if error_type == "billing_error" or any(word in code for word in _SPEND_LIMITS):
        return None
    asked = read_retry_after(headers, now_us=now_us)
    if status == 429:
        return asked if asked is not None and asked <= retry_after_max_ms else None
    if status not in _RETRIED:
        return None
    if asked is not None:
        return asked if asked <= retry_after_max_ms else None
    # Doubling, and spread by the microsecond at hand, so that requests refused together do not come back together.
    step = _BACKOFF_MS << (attempt_no - 1)
    return step + step * (now_us % 1_000) // 1_000
