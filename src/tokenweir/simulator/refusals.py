"""Every error the provider answers with: status, type, message, code, and whether `retry-after` comes with it.

The envelope is exact: `{"type":"error","error":{…},"request_id":…}`. Change together with `docs/SIMULATOR.md`, which lists the names.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Refusal(Exception):
    """The simulated provider refuses a request; raised where the fault is found, answered in one place."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str = "",
        retry_after: int | None = None,
        should_retry: bool | None = None,
        html: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.code = code
        self.retry_after = retry_after
        self.should_retry = should_retry
        self.html = html

    def body(self, request_id: str) -> bytes:
        """What is sent."""
        if self.html:
            return f"<html><head><title>{self.status}</title></head><body><center><h1>{self.status}</h1></center></body></html>".encode()
        return msgspec.json.encode(envelope(self.kind, self.message, code=self.code, request_id=request_id))


def envelope(kind: str, message: str, *, code: str = "", request_id: str = "") -> dict[str, Any]:
    """The provider's error object; without a request id it is the form used inside streams."""
    error: dict[str, Any] = {"type": kind, "message": message}
    if code:
        error["details"] = {"error_code": code}
    whole: dict[str, Any] = {"type": "error", "error": error}
    if request_id:
        whole["request_id"] = request_id
    return whole


def invalid(message: str) -> Refusal:
    """400: the request is wrong."""
    return Refusal(400, "invalid_request_error", message)


def unknown_model(ident: str) -> Refusal:
    """404: no such model, or a retired one."""
    return Refusal(404, "not_found_error", f"model: {ident}")


_LIMIT = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
_WORKSPACE_LIMIT = "You have reached your specified workspace API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
_RATE = (
    "This request would exceed your organization's rate limit. Please reduce the prompt length or the maximum tokens requested, or try again later."
)

NAMED: dict[str, tuple[int, str, str, str, int | None]] = {
    "invalid_request_error": (400, "invalid_request_error", "The request is invalid, as directed.", "", None),
    "own_spend_limit": (400, "invalid_request_error", _LIMIT, "", None),
    "workspace_spend_limit": (400, "invalid_request_error", _WORKSPACE_LIMIT, "", None),
    "authentication_error": (401, "authentication_error", "invalid x-api-key", "", None),
    "billing_error": (402, "billing_error", "The linked organization has reached its spend limit.", "linked_organization_spend_limit_reached", None),
    "permission_error": (403, "permission_error", "Your API key does not have permission to use the specified resource.", "", None),
    "not_found_error": (404, "not_found_error", "Not found", "", None),
    "request_timeout": (408, "invalid_request_error", "The request was not received in time.", "", None),
    "conflict_error": (409, "conflict_error", "The resource is in conflict.", "", None),
    "precondition_failed": (412, "invalid_request_error", "A precondition failed.", "", None),
    "request_too_large": (413, "request_too_large", "Request exceeds the maximum size", "", None),
    "too_large_after_decoding": (413, "request_too_large", "Request exceeds the maximum size", "request_body_too_large_after_decoding", None),
    "unprocessable": (422, "invalid_request_error", "The request could not be processed.", "", None),
    "rate_limit_error": (429, "rate_limit_error", _RATE, "", 1),
    "spend_cap": (429, "rate_limit_error", "You have reached the monthly spend limit of your usage tier.", "enforced_spend_limit_reached", None),
    "contract_spend_limit": (429, "rate_limit_error", "You have reached the spend limit of your contract.", "contract_spend_limit_reached", None),
    "ramp_limit": (429, "rate_limit_error", "Your usage is growing too quickly. Please scale up gradually.", "ramp_limit_exceeded", 1),
    "headers_too_large": (431, "invalid_request_error", "The request headers are too large.", "", None),
    "client_closed": (499, "invalid_request_error", "The client closed the request.", "", None),
    "api_error": (500, "api_error", "Internal server error", "", None),
    "not_supported": (501, "not_supported", "This endpoint is not supported.", "", None),
    "bad_gateway": (502, "api_error", "Bad gateway", "", None),
    "unavailable": (503, "api_error", "Service unavailable", "", None),
    "timeout_error": (504, "timeout_error", "Request timed out", "", None),
    "overloaded_error": (529, "overloaded_error", "Overloaded", "", None),
    "compaction_unavailable": (529, "overloaded_error", "Compaction is temporarily unavailable.", "compaction_unavailable", None),
}
"""name → (status, type, message, code, retry-after)"""

ALIASES = {"overloaded": "overloaded_error", "rate_limit": "rate_limit_error", "timeout": "timeout_error", "authentication": "authentication_error"}
_BY_STATUS = {str(row[0]): name for name, row in reversed(NAMED.items())}
_BY_STATUS["429"] = "rate_limit_error"


def named(name: str, *, message: str = "", retry_after: int | None = None, should_retry: bool | None = None) -> Refusal:
    """The refusal of that name, or of that status; `html_413` is the edge's answer, which is no JSON. Raises ValueError for an unknown name."""
    if name == "html_413":
        return Refusal(413, "request_too_large", "Payload Too Large", html=True)
    row = NAMED.get(ALIASES.get(name, _BY_STATUS.get(name, name)))
    if row is None:
        raise ValueError(f"no refusal is called {name!r}; known are {', '.join(NAMED)}, and any status of them")
    status, kind, text, code, usual = row
    after = usual if retry_after is None else retry_after if retry_after >= 0 else None
    return Refusal(status, kind, message or text, code=code, retry_after=after, should_retry=should_retry)
