"""How limits answer: the headers of a success, the refusal of a request, and the sentence that names the limit, its use, its reset and whom to ask.

The rule it protects: what a caller is told is what was decided, from the same numbers. How it is spelled on the wire is `wire/limits.py`; change
together with it and with docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenweir.limits.book import Link
from tokenweir.limits.bucket import NEVER, Kind, Standing
from tokenweir.limits.cycle import window_text
from tokenweir.limits.limit import Cycle, Limit, Resource, Rolling
from tokenweir.metering.holding import Held
from tokenweir.metering.limiter import LimitDenied
from tokenweir.metering.spend import time_zone
from tokenweir.money import format_usd
from tokenweir.periods import DAY_US, SECOND_US, Micros, to_datetime
from tokenweir.wire.faults import Fault
from tokenweir.wire.headers import Header
from tokenweir.wire.limits import (
    BudgetView,
    LimitWords,
    Period,
    RateKind,
    RateView,
    budget_headers,
    budget_refusal,
    busy_refusal,
    closest_period,
    concurrency_refusal,
    ended_stream,
    oauth_usage,
    rate_headers,
    rate_refusal,
    too_large_refusal,
)

_RATES: dict[Resource, RateKind] = {
    Resource.REQUESTS: "requests",
    Resource.INPUT_TOKENS: "input-tokens",
    Resource.OUTPUT_TOKENS: "output-tokens",
    Resource.TOKENS: "tokens",
}
_WARNING = b"x-tokenweir-limit-warning"


# On success.


def headers_of(held: Held) -> tuple[Header, ...]:
    """What the answer to a request tells of its limits: the caller's own rates and budgets, and the limits that were passed with a warning."""
    standings = tuple(zip(held.chain.links, held.standings, strict=False))
    rates = rate_headers(rate_views(standings, held.reserved_at_us))
    budgets = budget_headers(budget_views(standings))
    warned = (held.chain.links[index].limit for index in held.over)
    return (*rates, *budgets, *((_WARNING, limit.limit_id.encode("ascii", "replace")) for limit in warned if not limit.shadow))


def rate_views(standings: Iterable[tuple[Link, Standing]], now_us: Micros) -> list[RateView]:
    """The rolling limits that a caller may know of."""
    views = []
    for link, standing in standings:
        kind = _RATES.get(link.limit.resource)
        if link.bucket.kind is Kind.LEVEL and kind is not None and not link.limit.shadow:
            bucket = link.bucket
            full_us = now_us + -(-standing.used * bucket.period_us // bucket.refill)
            views.append(RateView(kind, bucket.room, bucket.room - standing.used - standing.held, full_us))
    return views


def budget_views(standings: Iterable[tuple[Link, Standing]]) -> list[BudgetView]:
    """The limits of calendar cycles that a caller may know of."""
    return [
        BudgetView(
            period=_period(link),
            used=standing.used,
            held=standing.held,
            amount=link.bucket.room,
            resets_at_us=link.bucket.ends_us,
            pooled=_pooled(link.limit),
            quantity=link.limit.resource.value,  # type: ignore[arg-type] # concurrency has no cycle
        )
        for link, standing in standings
        if link.bucket.kind is Kind.COUNTER and not link.limit.shadow
    ]


def own_usage_json(standings: Iterable[tuple[Link, Standing]]) -> bytes:
    """The answer to a caller that asks how its own budgets stand."""
    return oauth_usage(budget_views(standings))


def _pooled(limit: Limit) -> bool:
    return limit.scope.per not in ("key", "user", "session") and not (limit.scope.key_id or limit.scope.user or limit.scope.session)


def _period(link: Link) -> Period:
    return closest_period((link.bucket.ends_us - link.starts_us) // DAY_US)


# Refusals.


def fault_of_limit(denied: LimitDenied) -> Fault:
    """The refusal as the client gets it."""
    link, shortage = denied.link, denied.shortage
    bucket, standing = link.bucket, shortage.standing
    words = _words(link, standing, denied.units)
    is_exact = link.limit.strict or link.limit.resource in (Resource.REQUESTS, Resource.CONCURRENCY)
    if shortage.wait_us == NEVER and is_exact and standing.used < bucket.room:
        return too_large_refusal(words, rate=bucket.kind is not Kind.COUNTER)
    if bucket.kind is Kind.COUNTER and standing.held and standing.used + (denied.units if is_exact else 1) <= bucket.room:
        return busy_refusal(words, waited=denied.waited)
    rates = rate_views([(link, standing)], denied.now_us)
    match bucket.kind:
        case Kind.GAUGE:
            return concurrency_refusal(words, rates=rates, waited=denied.waited)
        case Kind.LEVEL:
            return rate_refusal(words, wait_us=max(shortage.wait_us, SECOND_US), rates=rates, waited=denied.waited)
        case Kind.COUNTER:
            return budget_refusal(
                words,
                period=_period(link),
                resets_at_us=bucket.ends_us,
                now_us=denied.now_us,
                pooled=_pooled(link.limit),
                waited=denied.waited,
            )


def out_of_room(link: Link) -> str:
    """Why a stream was ended, until when, and whom to ask."""
    return ended_stream(_words(link, Standing(0, 0), 0))


def _words(link: Link, standing: Standing, asked: int) -> LimitWords:
    limit = link.limit
    amount, unit = amount_words(limit.resource, link.bucket.room)
    gauge = link.bucket.kind is Kind.GAUGE
    return LimitWords(
        limit_id=limit.limit_id,
        name=limit.name,
        used=amount_words(limit.resource, standing.held if gauge else standing.used)[0],
        amount=amount,
        unit=unit,
        period=period_words(limit),
        held="" if gauge or not standing.held else amount_words(limit.resource, standing.held)[0],
        asked="" if gauge or limit.resource is Resource.REQUESTS else amount_words(limit.resource, asked)[0],
        resets=reset_words(limit, link.bucket.ends_us),
        contact=limit.contact,
    )


def amount_words(resource: Resource, amount: int) -> tuple[str, str]:
    """An amount and its unit, for people: `("49.87", "USD")`, `("12,000", "output tokens")`."""
    match resource:
        case Resource.SPEND:
            exact = format_usd(abs(amount), decimals=9).removeprefix("$")
            whole, _, decimals = exact.partition(".")
            return f"{'-' if amount < 0 else ''}{whole}.{decimals[:2]}{decimals[2:].rstrip('0')}", "USD"
        case Resource.CONCURRENCY:
            return f"{amount:,}", "requests at once"
        case _:
            return f"{amount:,}", resource.value.replace("_", " ")


def period_words(limit: Limit) -> str:
    """The window in words, such as `this month` or `per 60s`; nothing for concurrency."""
    match limit.window:
        case Cycle(unit="day"):
            return "today"
        case Cycle(unit="days", length_days=days):
            return f"in this cycle of {days} days"
        case Cycle(unit=unit):
            return f"this {unit}"
        case Rolling():
            return "per " + window_text(limit.window).split(":")[1]
        case None:
            return ""


def reset_words(limit: Limit, ends_us: Micros) -> str:
    """When a cycle ends, on the clock of its time zone: `2026-12-01 00:00 Europe/Berlin`; nothing for other windows."""
    if not isinstance(limit.window, Cycle):
        return ""
    local = to_datetime(ends_us).astimezone(time_zone(limit.window.timezone))
    return f"{local:%Y-%m-%d %H:%M} {limit.window.timezone}"
