"""Granting more room: credits, top-ups of one cycle, and increases that end by themselves.

The rules it protects: a grant is never changed, only ended; it begins and ends on whole quarters of an hour, because past use is known by quarters,
and is rounded so that it is never shorter than was asked; credits belong to calendar windows, whose use is known from the ledger. Change with it:
`limits/grants.py` (how they are burned), docs/LIMITS.md.
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

import msgspec

from tokenweir.issuing import Entropy, new_id
from tokenweir.limit_ports import LimitDirectory, LimitRecord
from tokenweir.limiting.finding import limits_of, live_limit, show_limit
from tokenweir.limits import drafting
from tokenweir.limits.cycle import bounds
from tokenweir.limits.limit import AMOUNT_MAX, Cycle, Grant, Limit, Resource
from tokenweir.periods import QUARTER_US, Micros, format_instant, quarter_start

GrantKind: TypeAlias = Literal["credit", "topup", "increase"]
PRIORITY_MAX: Final = 1_000_000
REASON_LENGTH_MAX: Final = 1_000
_NOTHING: Final = re.compile(r"\$?0+(?:\.0+)?\Z").match


class Granted(msgspec.Struct, frozen=True):
    """A grant, and the limit that it is for."""

    grant: Grant
    limit: LimitRecord


def add_grant(
    limits: LimitDirectory,
    limit: str,
    *,
    kind: GrantKind,
    amount: str | int,
    from_us: Micros | None = None,
    until_us: Micros | None = None,
    priority: int = 100,
    rollover_min: str | int = "",
    rollover_max: str | int = "",
    reason: str = "",
    actor: str,
    now_us: Micros,
    entropy: Entropy,
) -> Granted:
    """Give a limit (by id or name) more room; `amount` is in units of its resource (spend in USD), times are rounded outward to quarters.

    A top-up is a credit for the running cycle. An increase ends with the cycle if no end is said. Raises ValueError, NotFound, Conflict.
    """
    found = live_limit(limits, limit)
    resource = found.limit.resource
    if kind != "credit" and (rollover_min != "" or rollover_max != ""):
        raise ValueError(f"rollover belongs to credits; a {kind} has none")
    if not 0 <= priority <= PRIORITY_MAX:
        raise ValueError(f"priority {priority} is not between 0 and {PRIORITY_MAX:,}; smaller numbers are burned first")
    effective_at_us, expires_at_us = checked_span(found.limit, kind, from_us, until_us, now_us)
    grant = Grant(
        grant_id=new_id("grant", entropy),
        limit_id=found.limit.limit_id,
        kind="increase" if kind == "increase" else "credit",
        amount=checked_more(found, amount),
        effective_at_us=effective_at_us,
        expires_at_us=expires_at_us,
        priority=priority,
        rollover_min=_bound(rollover_min, resource) or 0,
        rollover_max=0 if kind == "topup" else _bound(rollover_max, resource),
        reason=checked_text("reason", reason),
        created_at_us=now_us,
    )
    if grant.rollover_max is not None and grant.rollover_min > grant.rollover_max:
        raise ValueError("the least that rolls over is more than the most; exchange the two")
    limits.add_grant(grant, actor=actor, now_us=now_us)
    return Granted(grant, found)


def void_grant(limits: LimitDirectory, grant_id: str, *, actor: str, now_us: Micros) -> Granted:
    """End a grant from now on; ending it twice changes nothing. NotFound if there is none."""
    grant = limits.void_grant(grant_id.strip(), actor=actor, now_us=now_us)
    return Granted(grant, show_limit(limits, grant.limit_id))


def list_grants(limits: LimitDirectory, *, limit: str = "", voided: bool = False) -> list[Granted]:
    """Grants in order of creation: all, or those of one limit."""
    of_id = show_limit(limits, limit).limit.limit_id if limit else ""
    grants = limits.grants(limit_id=of_id, voided=voided)
    of = limits_of(limits, (grant.limit_id for grant in grants))
    return [Granted(grant, of[grant.limit_id]) for grant in grants]


def checked_more(found: LimitRecord, amount: str | int) -> int:
    """How much more, in units of the limit's resource; raises ValueError if that is nothing, or comes to more than can be counted."""
    resource = found.limit.resource
    more = drafting.parse_amount(resource, amount)
    if more < 1:
        raise ValueError(f"amount {amount!r} is no more than there is; write one above zero")
    whole = found.limit.amount + more + sum(grant.amount for grant in found.grants)
    if whole > AMOUNT_MAX:
        text = drafting.amount_text
        raise ValueError(f"with this, limit {found.limit.name} would come to {text(resource, whole)}; the most is {text(resource, AMOUNT_MAX)}")
    return more


def checked_span(limit: Limit, kind: GrantKind, from_us: Micros | None, until_us: Micros | None, now_us: Micros) -> tuple[Micros, Micros | None]:
    """When a grant begins and ends, in whole quarters of an hour; raises ValueError for what does not fit the limit or lies behind."""
    if kind != "increase" and not isinstance(limit.window, Cycle):
        kept = "is counted at every moment" if limit.resource is Resource.CONCURRENCY else "flows back by itself"
        raise ValueError(f"limit {limit.name} has no calendar window: what is used of it {kept}, so it takes an increase, but no credit or top-up")
    if from_us is not None and from_us < quarter_start(now_us):
        raise ValueError(f"from {format_instant(from_us)} has passed; a grant begins now or later")
    starts_us = quarter_start(now_us if from_us is None else from_us)
    if until_us is None and kind != "credit":
        if not isinstance(limit.window, Cycle):
            raise ValueError(f"limit {limit.name} has no cycle that an increase could end with; say until when, such as --until 2h")
        until_us = bounds(limit.window, max(starts_us, now_us))[1]
    if until_us is None:
        return starts_us, None
    if until_us <= now_us:
        raise ValueError(f"until {format_instant(until_us)} has passed; give a time to come")
    ends_us = -(-until_us // QUARTER_US) * QUARTER_US
    if ends_us <= starts_us:
        raise ValueError(f"until {format_instant(until_us)} is not after its beginning at {format_instant(starts_us)}; give a later time")
    return starts_us, ends_us


def checked_text(what: str, text: str) -> str:
    """A remark in one piece; raises ValueError if it is too long or holds what cannot be printed."""
    text = text.strip()
    if len(text) > REASON_LENGTH_MAX:
        raise ValueError(f"the {what} takes at most {REASON_LENGTH_MAX:,} characters, not {len(text):,}")
    if not text.replace("\n", "").isprintable():
        raise ValueError(f"the {what} holds a character that cannot be printed: {text[:100]!r}")
    return text


def _bound(written: str | int, resource: Resource) -> int | None:
    """What may be left over; nothing may, which is no amount for anything else."""
    if written == "" or _NOTHING(str(written).strip()):
        return None if written == "" else 0
    return drafting.parse_amount(resource, written)
