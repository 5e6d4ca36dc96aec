"""Asking for more: a request, what is said about it, and the decision.

The rules it protects: a request is decided once, by somebody who is named, and the grant of an approved one is made in the same transaction; a
refusal has a reason. Change with it: `limit_ports.IncreaseRequest`, docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from tokenweir.errors import Conflict
from tokenweir.issuing import Entropy, new_id
from tokenweir.limit_ports import Comment, IncreaseRequest, LimitDirectory, LimitRecord, RequestState
from tokenweir.limiting.finding import limits_of, live_limit, show_limit
from tokenweir.limiting.granting import checked_more, checked_span, checked_text
from tokenweir.limits.limit import Grant
from tokenweir.periods import Micros, format_instant

Verb: TypeAlias = Literal["approve", "deny", "withdraw"]

LIFECYCLE: Final[Mapping[RequestState, Mapping[Verb, RequestState]]] = {
    "pending": {"approve": "approved", "deny": "denied", "withdraw": "withdrawn"},
    "approved": {},
    "denied": {},
    "withdrawn": {},
}
"""What can become of a request. The grant of an approved one can still be ended (`void_grant`)."""


class Asked(msgspec.Struct, frozen=True):
    """A request, and the limit that it is for."""

    request: IncreaseRequest
    limit: LimitRecord
    grant: Grant | None = None
    """What was granted on it, which may be more or less than was asked."""


def ask_for_more(
    limits: LimitDirectory,
    limit: str,
    *,
    amount: str | int,
    until_us: Micros | None = None,
    reason: str,
    actor: str,
    now_us: Micros,
    entropy: Entropy,
) -> Asked:
    """Ask for that much besides what a limit (by id or name) allows; without an end, to the end of its cycle. Raises ValueError, NotFound, Conflict."""
    found = live_limit(limits, limit)
    why = checked_text("reason", reason)
    if not why:
        raise ValueError("say for what more is needed; whoever decides has only that to go by")
    more = checked_more(found, amount)
    ends_us = checked_span(found.limit, "increase", None, until_us, now_us)[1]
    request = IncreaseRequest(
        request_id=new_id("request", entropy),
        limit_id=found.limit.limit_id,
        amount=more,
        until_us=None if until_us is None else ends_us,
        reason=why,
        requested_by=actor,
        created_at_us=now_us,
    )
    limits.add_request(request, actor=actor)
    return Asked(request, found)


def list_requests(limits: LimitDirectory, *, limit: str = "", state: str = "") -> list[Asked]:
    """Requests in order of creation: all, those of one limit, those in one state."""
    if state and state not in LIFECYCLE:
        raise ValueError(f"{state!r} is no state of a request; there are {', '.join(LIFECYCLE)}")
    requests = limits.requests(limit_id=show_limit(limits, limit).limit.limit_id if limit else "", state=state)
    of = limits_of(limits, (request.limit_id for request in requests))
    granted = {request.limit_id for request in requests if request.grant_id}
    grants = limits.grants(limit_id=next(iter(granted)) if len(granted) == 1 else "", voided=True) if granted else []
    by_id = {grant.grant_id: grant for grant in grants}
    return [Asked(request, of[request.limit_id], by_id.get(request.grant_id)) for request in requests]


def show_request(limits: LimitDirectory, request_id: str) -> Asked:
    """One request; NotFound if there is none."""
    return _with_limit(limits, limits.request(request_id.strip()))


def comment(limits: LimitDirectory, request_id: str, text: str, *, actor: str, now_us: Micros) -> Asked:
    """Say something about a request, also after it was decided."""
    said = _said(text, actor, now_us)
    if said is None:
        raise ValueError("say something; an empty comment is none")
    return _with_limit(limits, limits.comment_request(request_id.strip(), said, actor=actor))


def approve(
    limits: LimitDirectory,
    request_id: str,
    *,
    amount: str | int = "",
    until_us: Micros | None = None,
    comment: str = "",
    actor: str,
    now_us: Micros,
    entropy: Entropy,
) -> Asked:
    """Grant what was asked, or the amount and end given here in its place, as an increase that begins at once. Raises ValueError, NotFound, Conflict."""
    request, state = _decidable(limits, request_id, "approve")
    found = live_limit(limits, request.limit_id)
    if until_us is None and request.until_us is not None and request.until_us <= now_us:
        raise Conflict(f"request {request.request_id} asked for more until {format_instant(request.until_us)}, which has passed; say until when")
    more = checked_more(found, amount) if amount != "" else request.amount
    starts_us, ends_us = checked_span(found.limit, "increase", None, request.until_us if until_us is None else until_us, now_us)
    grant = Grant(
        grant_id=new_id("grant", entropy),
        limit_id=found.limit.limit_id,
        kind="increase",
        amount=more,
        effective_at_us=starts_us,
        expires_at_us=ends_us,
        reason=request.reason,
        created_at_us=now_us,
    )
    said = _said(comment, actor, now_us)
    return Asked(limits.decide_request(request.request_id, state, grant=grant, comment=said, actor=actor, now_us=now_us), found, grant)


def deny(limits: LimitDirectory, request_id: str, *, comment: str, actor: str, now_us: Micros) -> Asked:
    """Refuse a request, with the reason. Raises ValueError, NotFound, Conflict."""
    said = _said(comment, actor, now_us)
    if said is None:
        raise ValueError("say why; whoever asked has only that to go by")
    request, state = _decidable(limits, request_id, "deny")
    return _with_limit(limits, limits.decide_request(request.request_id, state, grant=None, comment=said, actor=actor, now_us=now_us))


def withdraw(limits: LimitDirectory, request_id: str, *, comment: str = "", actor: str, now_us: Micros) -> Asked:
    """Take a request back that is not decided yet. Raises NotFound, Conflict."""
    request, state = _decidable(limits, request_id, "withdraw")
    said = _said(comment, actor, now_us)
    return _with_limit(limits, limits.decide_request(request.request_id, state, grant=None, comment=said, actor=actor, now_us=now_us))


def _decidable(limits: LimitDirectory, request_id: str, verb: Verb) -> tuple[IncreaseRequest, RequestState]:
    request = limits.request(request_id.strip())
    state = LIFECYCLE[request.state].get(verb)
    if state is None:
        when = "" if request.decided_at_us is None else f" at {format_instant(request.decided_at_us)}"
        raise Conflict(f"request {request.request_id} was {request.state} by {request.decided_by}{when} and stays so; ask anew")
    return request, state


def _with_limit(limits: LimitDirectory, request: IncreaseRequest) -> Asked:
    found = limits_of(limits, [request.limit_id])[request.limit_id]
    grants = limits.grants(limit_id=request.limit_id, voided=True) if request.grant_id else []
    return Asked(request, found, next((grant for grant in grants if grant.grant_id == request.grant_id), None))


def _said(text: str, actor: str, now_us: Micros) -> Comment | None:
    written = checked_text("comment", text)
    return Comment(now_us, actor, written) if written else None
