"""How limits, grants and requests look: field by field for programs, and as words for people. Shared by the commands about them.

The rule it protects: JSON has whole records with plain names, exact amounts as integers in units of the resource (spend in nano-USD, and once more as
decimal text), and null for what is not there. Change with it: docs/LIMITS.md.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenweir.limit_ports import LimitRecord
    from tokenweir.limiting import Asked, Granted
    from tokenweir.limits.limit import Cycle, Grant, Limit, Resource
    from tokenweir.periods import Micros
    from tokenweir.ports import KeyRecord
    from tokenweir.pricing.rate_card import RateCard


def plain_limit(record: LimitRecord, now_us: Micros) -> dict[str, Any]:
    """A limit with its grants as JSON shows it."""
    from tokenweir.limiting import Granted
    from tokenweir.limits.cycle import window_text
    from tokenweir.limits.limit import Cycle

    limit, scope = record.limit, record.limit.scope
    cycle = limit.window if isinstance(limit.window, Cycle) else None
    return {
        "id": limit.limit_id,
        "name": limit.name,
        "scope": {
            "organization": record.organization,
            "organization_id": scope.organization_id,
            "team": record.team or None,
            "team_id": scope.team_id or None,
            "key": record.key or None,
            "key_id": scope.key_id or None,
            "user": scope.user or None,
            "session": scope.session or None,
            "tag": scope.tag or None,
            "per": scope.per or None,
        },
        "resource": limit.resource.value,
        **_amount(limit.amount, limit.resource),
        "window": window_text(limit.window) or None,
        "timezone": None if cycle is None else cycle.timezone,
        "anchor": None if cycle is None else cycle.anchor or None,
        "models": list(limit.models),
        "action": limit.action.value,
        "queue_ms": limit.queue_ms or None,
        "to": limit.downgrade_to or None,
        "strict": limit.strict,
        "shadow": limit.shadow,
        "carry_over": limit.carry_over,
        "contact": limit.contact or None,
        "managed_by": limit.managed_by or None,
        "grants": [plain_grant(Granted(grant, record), now_us) for grant in record.grants if grant.voided_at_us is None],
        "created": _instant(limit.created_at_us),
        "removed": _instant(record.removed_at_us),
    }


def plain_grant(granted: Granted, now_us: Micros) -> dict[str, Any]:
    """A grant as JSON shows it."""
    grant, limit = granted.grant, granted.limit.limit
    return {
        "id": grant.grant_id,
        "limit_id": grant.limit_id,
        "limit": limit.name,
        "kind": grant_kind(grant),
        "resource": limit.resource.value,
        **_amount(grant.amount, limit.resource),
        "state": grant_state(granted, now_us),
        "from": _instant(grant.effective_at_us),
        "until": _instant(grant.expires_at_us),
        "priority": grant.priority,
        "rollover_min": grant.rollover_min,
        "rollover_max": grant.rollover_max,
        "reason": grant.reason or None,
        "created": _instant(grant.created_at_us),
        "voided": _instant(grant.voided_at_us),
    }


def plain_request(asked: Asked, now_us: Micros) -> dict[str, Any]:
    """A request for more as JSON shows it, with the grant that was made of it."""
    from tokenweir.limiting import Granted

    request, limit = asked.request, asked.limit.limit
    return {
        "id": request.request_id,
        "limit_id": request.limit_id,
        "limit": limit.name,
        "resource": limit.resource.value,
        **_amount(request.amount, limit.resource),
        "state": request.state,
        "until": _instant(request.until_us),
        "reason": request.reason,
        "requested_by": request.requested_by,
        "created": _instant(request.created_at_us),
        "decided_by": request.decided_by or None,
        "decided": _instant(request.decided_at_us),
        "grant": None if asked.grant is None else plain_grant(Granted(asked.grant, asked.limit), now_us),
        "comments": [{"at": _instant(one.at_us), "by": one.by, "text": one.text} for one in request.comments],
    }


def grant_kind(grant: Grant) -> str:
    """`credit`, `topup` or `increase`, by the command that gives it: a top-up is a credit of which nothing is left for the next cycle."""
    return "topup" if grant.kind == "credit" and grant.rollover_max == 0 else grant.kind


def grant_state(granted: Granted, now_us: Micros) -> str:
    """`voided`, `ended`, `coming` or `running`."""
    grant = granted.grant
    if grant.voided_at_us is not None:
        return "voided"
    if granted.limit.removed_at_us is not None or (grant.expires_at_us is not None and grant.expires_at_us <= now_us):
        return "ended"
    return "coming" if grant.effective_at_us > now_us else "running"


def amount_of(amount: int, resource: Resource) -> str:
    """`$12.50`, `250,000 tokens`, `5 at the same time`."""
    from tokenweir.limits import drafting
    from tokenweir.limits.limit import Resource

    text = drafting.amount_text(resource, amount)
    match resource:
        case Resource.SPEND:
            return text
        case Resource.CONCURRENCY:
            return f"{text} at the same time"
        case _:
            return f"{text} {resource.replace('_', ' ')}"


def _begins(cycle: Cycle) -> str:
    match cycle.unit:
        case "week":
            return f"from {calendar.day_name[int(cycle.anchor) - 1]}"
        case "month":
            return f"from day {cycle.anchor}"
        case _:
            return f"from {cycle.anchor}"


def window_of(limit: Limit) -> str:
    """`per month (Europe/Berlin, from day 15)`, `in 60s`; empty for concurrency."""
    from tokenweir.limits import drafting
    from tokenweir.limits.cycle import window_text
    from tokenweir.limits.limit import Rolling

    text = window_text(limit.window)
    if isinstance(limit.window, Rolling):
        burst = f", burst {drafting.amount_text(limit.resource, limit.window.burst)}" if limit.window.burst else ""
        return f"in {text.split(':')[1]}{burst}"
    if limit.window is None:
        return ""
    more = ([] if limit.window.timezone == "UTC" else [limit.window.timezone]) + ([_begins(limit.window)] if limit.window.anchor else [])
    return f"per {text}".replace("per every:", "every ") + (f" ({', '.join(more)})" if more else "")


def action_of(limit: Limit) -> str:
    """What happens at the limit: `block`, `queue up to 30s`, `downgrade to claude-haiku-4-5`, and whether it is strict or only watched."""
    from tokenweir.limits import drafting
    from tokenweir.limits.limit import Action

    words = limit.action.value
    if limit.action is Action.QUEUE:
        words += f" up to {drafting.duration_text(limit.queue_ms * 1_000)}"
    elif limit.action is Action.DOWNGRADE:
        words += f" to {limit.downgrade_to}"
    flags = [name for name, on in (("strict", limit.strict), ("shadow", limit.shadow), ("carry-over", limit.carry_over)) if on]
    return ", ".join([words, *flags])


def nobodys_words(limit: Limit, keys: Iterable[KeyRecord], card: RateCard) -> list[str]:
    """A remark for each part of a limit that is nobody's or no model's so far: it may be meant for what is to come, or be a slip of the pen."""
    scope, found = limit.scope, []
    own = [key for key in keys if key.organization_id == scope.organization_id]
    if scope.user and not any(scope.user == key.owner for key in own):
        found.append(f"No key has the owner {scope.user!r} yet; see: tokenweir key list")
    if scope.tag and not any(scope.tag in key.tags for key in own):
        found.append(f"No key has the tag {scope.tag!r} yet; see: tokenweir key list")
    known = [name for facts in card.models() for name in (facts.model, *facts.aliases)]
    found += [
        f"The rate card knows no model {pattern!r}; until there is one, nothing is covered by that."
        for pattern in limit.models
        if card.resolve(pattern) is None and not any(fnmatchcase(name, pattern) for name in known)
    ]
    if limit.downgrade_to and card.resolve(limit.downgrade_to) is None:
        found.append(f"The rate card knows no model {limit.downgrade_to!r} to send requests to.")
    return found


def field_of(record: LimitRecord, field: str) -> str:
    """One field of a limit for people, by its name in `Limit`; for saying what it was before."""
    from tokenweir.limiting import whose_of

    limit = record.limit
    match field:
        case "scope":
            return whose_of(record)
        case "amount":
            return amount_of(limit.amount, limit.resource)
        case "window":
            return window_of(limit) or "none"
        case "models":
            return ", ".join(limit.models) or "all"
        case "queue_ms":
            return f"{limit.queue_ms}ms"
        case "strict" | "shadow" | "carry_over":
            return "yes" if getattr(limit, field) else "no"
        case _:
            return str(getattr(limit, field)) or "none"


def time_left(wait_us: Micros) -> str:
    """How long until then, in its two largest units, rounded up to a second: `8d 6h`, `2h 5m`, `9s`."""
    left = -(-max(0, wait_us) // 1_000_000)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count and len(parts) < 2:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts) or "0s"


def when(at_us: Micros | None, *, none: str = "-") -> str:
    """A time to the second, for people."""
    return none if at_us is None else f"{_instant(at_us)[:19]}Z"


def _amount(amount: int, resource: Resource) -> dict[str, Any]:
    from tokenweir.limits import drafting
    from tokenweir.limits.limit import Resource

    exact = {"amount": amount}
    if resource is not Resource.SPEND:
        return exact
    return exact | {"amount_usd": drafting.amount_text(resource, amount).removeprefix("$").replace(",", "")}


def _instant(at_us: Micros | None) -> Any:
    from tokenweir.periods import format_instant

    return None if at_us is None else format_instant(at_us)
