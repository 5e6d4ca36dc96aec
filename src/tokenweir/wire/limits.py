"""Limits on the wire: the headers that tell a caller how its own limits stand, and the refusals that make a client stop, wait or come back.

The rules it protects: every refusal makes each known client do the right thing (`x-should-retry` and `retry-after` decide it), and nothing that people
have written, such as the name of a limit, ever reaches a header. What is used up until a cycle ends, or can never fit, is marked
`x-should-retry: false`, for a client that obeys a long `retry-after` would sleep for days; what flows back within a minute says when. Shapes: the
provider's own rate limits, and what it documents for gateways with spend limits. Change with it: `faults.py`, `metering/limit_answers.py`, docs/LIMITS.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cmp_to_key, lru_cache
from typing import Literal, TypeAlias

import msgspec

from tokenweir.errors import StoreUnavailable
from tokenweir.periods import SECOND_US, Micros, to_datetime
from tokenweir.wire.faults import OURS, Fault, fault_of
from tokenweir.wire.headers import Header

RateKind: TypeAlias = Literal["requests", "tokens", "input-tokens", "output-tokens"]
Period: TypeAlias = Literal["daily", "weekly", "monthly"]
Quantity: TypeAlias = Literal["spend", "requests", "input_tokens", "output_tokens", "tokens"]

RETRY_AFTER_S_MAX = 60
"""The longest wait that a client is sent into: SDKs obey no more (old ones) or sleep through anything (new ones)."""
NAME_CHARS_MAX = 200
_ROUNDED_FROM = 10_000
_NO_RETRY: Header = (b"x-should-retry", b"false")
_UNIFIED = b"anthropic-ratelimit-unified-"
_NANOS_PER_CENT = 10_000_000


class RateView(msgspec.Struct, frozen=True, gc=False):
    """How one rolling limit of the caller stands. Amounts in units of its kind."""

    kind: RateKind
    limit: int
    remaining: int
    """What may be used now; below zero counts as nothing."""
    reset_us: Micros
    """When all of it may be used again, if nothing more is used."""


class BudgetView(msgspec.Struct, frozen=True, gc=False):
    """How one limit of a calendar cycle stands. Amounts in units of its quantity (spend in nano-USD)."""

    period: Period
    """The closest of the three that the wire knows; see `closest_period`."""
    used: int
    held: int
    amount: int
    resets_at_us: Micros
    pooled: bool = False
    """Several people share it; told with a refusal alone, as the client's documentation has it."""
    quantity: Quantity = "spend"


class LimitWords(msgspec.Struct, frozen=True):
    """What a refusal says of a limit. All texts are for people: numbers, units and times as they should be read."""

    limit_id: str
    name: str
    used: str
    """`49.87`."""
    amount: str
    """`50.00`."""
    unit: str
    """`USD`, `requests`, `output tokens`."""
    period: str = ""
    """`this month`, `per minute`."""
    held: str = ""
    """What requests under way may still use; empty if nothing is held."""
    asked: str = ""
    """What this request needs, where that is worth saying."""
    resets: str = ""
    """`2026-12-01 00:00 Europe/Berlin`."""
    contact: str = ""
    """Whom to ask for more."""


# Headers on answers.


def rate_headers(views: Iterable[RateView]) -> tuple[Header, ...]:
    """The caller's own rates; of several of one kind, the one with the least share left. Without one of tokens, it is the sum of input and output."""
    tightest: dict[RateKind, RateView] = {}
    for view in views:
        known = tightest.get(view.kind)
        if known is None or _tighter(view, known):
            tightest[view.kind] = view
    if "tokens" not in tightest and "input-tokens" in tightest and "output-tokens" in tightest:
        tightest["tokens"] = _sum(tightest["input-tokens"], tightest["output-tokens"])
    return tuple(header for view in tightest.values() for header in _rate_lines(view))


def _tighter(view: RateView, other: RateView) -> bool:
    """Shares are compared by multiplication: exact, and cheap enough for every answer."""
    mine, theirs = max(0, view.remaining) * max(1, other.limit), max(0, other.remaining) * max(1, view.limit)
    return (mine, view.remaining, -view.reset_us) < (theirs, other.remaining, -other.reset_us)


def _sum(one: RateView, other: RateView) -> RateView:
    remaining = max(0, one.remaining) + max(0, other.remaining)
    return RateView("tokens", one.limit + other.limit, remaining, max(one.reset_us, other.reset_us))


_RATE_NAMES: dict[str, tuple[bytes, bytes, bytes]] = {
    kind: (
        b"anthropic-ratelimit-%s-limit" % kind.encode(),
        b"anthropic-ratelimit-%s-remaining" % kind.encode(),
        b"anthropic-ratelimit-%s-reset" % kind.encode(),
    )
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
}


def _rate_lines(view: RateView) -> tuple[Header, Header, Header]:
    limit, remaining, reset = _RATE_NAMES[view.kind]
    left = max(0, min(view.remaining, view.limit))
    if view.kind != "requests" and view.limit >= _ROUNDED_FROM:
        left -= left % 1_000  # as the provider does, but never up: what is promised must be there
    return (limit, b"%d" % view.limit), (remaining, b"%d" % left), (reset, _instant(_seconds_up(view.reset_us)))


@lru_cache(512)
def _instant(second: int) -> bytes:
    """RFC 3339; remembered, because a thousand answers share a second."""
    return to_datetime(second * SECOND_US).strftime("%Y-%m-%dT%H:%M:%SZ").encode("ascii")


def _seconds_up(us: int) -> int:
    return -(-us // SECOND_US)


def budget_headers(views: Iterable[BudgetView]) -> tuple[Header, ...]:
    """The unified headers of a success, of the budget of which the largest share is used; from 75 % and 95 % on they make the client say so."""
    fullest: BudgetView | None = None
    for view in views:
        if fullest is None or _compared(view, fullest) > 0:
            fullest = view
    return () if fullest is None else _standing_lines(min(_percent(fullest), 99), b"%d" % _seconds_up(fullest.resets_at_us))


@lru_cache(512)
def _standing_lines(share: int, reset: bytes) -> tuple[Header, ...]:
    """Of a request that was let through: its budget is not at its end, whatever has been settled since."""
    status = b"allowed_warning" if share >= 75 else b"allowed"
    lines = (
        (_UNIFIED + b"status", status),
        (_UNIFIED + b"reset", reset),
        (_UNIFIED + b"representative-claim", b"overage"),
        (_UNIFIED + b"overage-status", status),
        (_UNIFIED + b"overage-reset", reset),
        (_UNIFIED + b"overage-utilization", b"0.%02d" % share),
    )
    if share < 75:
        return lines
    return (*lines, (_UNIFIED + b"overage-surpassed-threshold", b"0.95" if share >= 95 else b"0.75"))


def _compared(one: BudgetView, other: BudgetView) -> int:
    """Above zero if the first is fuller: by what is used, then by what is held as well, then by the later reset. Exact, by multiplication."""
    mine, theirs = max(1, one.amount), max(1, other.amount)
    return (
        one.used * theirs - other.used * mine
        or (one.used + one.held) * theirs - (other.used + other.held) * mine
        or one.resets_at_us - other.resets_at_us
    )


def _percent(view: BudgetView) -> int:
    """What was used, in whole per cent, rounded down: 75 is said when 75 % are used, not before. What is only held may yet come back."""
    return max(0, view.used) * 100 // view.amount if view.amount > 0 else 100


def closest_period(days: int) -> Period:
    """The period that the wire has for a cycle of so many days."""
    return "daily" if days <= 4 else "weekly" if days <= 18 else "monthly"


# Refusals.


def rate_refusal(words: LimitWords, *, wait_us: int, rates: Iterable[RateView] = (), waited: bool = False) -> Fault:
    """A rolling limit has no room before `wait_us` have passed. Up to a minute the client is told to come back; after that, to leave it.

    `waited`: the request was in the queue, and there was no room in time.
    """
    wait_s = max(1, _seconds_up(wait_us))
    message = _sentence(words, "used", f"has room in {_duration(wait_s)}", waited=waited)
    retry: tuple[Header, ...] = ((b"retry-after", b"%d" % wait_s),)
    if wait_s > RETRY_AFTER_S_MAX:
        retry = (*retry, _NO_RETRY)
    return Fault(429, "rate_limit_error", message, (*retry, *rate_headers(rates)))


def concurrency_refusal(words: LimitWords, *, rates: Iterable[RateView] = (), waited: bool = False) -> Fault:
    """Too many requests are under way: when one of them ends nobody knows, so the client tries again soon."""
    message = _sentence(words, "", "has room when one of them ends", waited=waited)
    return Fault(429, "rate_limit_error", message, ((b"retry-after", b"1"), *rate_headers(rates)))


def busy_refusal(words: LimitWords, *, rates: Iterable[RateView] = (), waited: bool = False) -> Fault:
    """A budget is not used up, but what requests under way may still use leaves no room: they give some of it back, so the client tries again soon."""
    message = _sentence(words, "used", "has room when requests under way end", waited=waited)
    return Fault(429, "rate_limit_error", message, ((b"retry-after", b"1"), *rate_headers(rates)))


def budget_refusal(
    words: LimitWords,
    *,
    period: Period,
    resets_at_us: Micros,
    now_us: Micros,
    pooled: bool = False,
    rates: Iterable[RateView] = (),
    waited: bool = False,
) -> Fault:
    """What a calendar cycle allows is used up (spend, tokens or requests): nothing to retry until it ends, so no client should wait for it.

    `representative-claim` and `overage-status` are left out: with them, Claude Code would hide the sentence.
    """
    reset = b"%d" % _seconds_up(resets_at_us)
    headers = [
        (b"retry-after", b"%d" % max(1, _seconds_up(resets_at_us - now_us))),
        _NO_RETRY,
        (_UNIFIED + b"status", b"rejected"),
        (_UNIFIED + b"reset", reset),
        (_UNIFIED + b"overage-reset", reset),
        (_UNIFIED + b"overage-utilization", b"1"),
        (_UNIFIED + b"overage-surpassed-threshold", b"1"),
        (_UNIFIED + b"overage-period", period.encode("ascii")),
        (_UNIFIED + b"overage-disabled-reason", b"org_spend_cap_reached"),
    ]
    if pooled:
        headers.append((_UNIFIED + b"overage-scope", b"group_pool"))
    ending = f"resets {_plain(words.resets)}" if words.resets else ""
    return Fault(429, "billing_error", _sentence(words, "used", ending, waited=waited), (*headers, *rate_headers(rates)))


def too_large_refusal(words: LimitWords, *, rate: bool, max_tokens_fits: int | None = None, rates: Iterable[RateView] = ()) -> Fault:
    """The request alone asks for more (`words.asked`; empty for a limit of no request at all) than the limit ever holds: it will fail again.

    `rate`: of a rolling limit. `max_tokens_fits`: the largest max_tokens with which the same request would fit; None if there is none, or nobody knows.
    The unified headers are left out: the budget is not used up, and a smaller request passes.
    """
    told = _use(msgspec.structs.replace(words, asked=""), "used")
    if words.asked:
        hint = "a smaller max_tokens or a shorter prompt" if max_tokens_fits is None else f"max_tokens {max_tokens_fits:,}"
        told += f" · this request alone may need {_plain(words.asked)} {_plain(words.unit)}, more than the whole limit · what would fit: {hint}"
    else:
        told += " · no request fits this limit"
    message = f"{OURS}{_name(words)}: {told} · {_ask(words)}"
    return Fault(429, "rate_limit_error" if rate else "billing_error", message, (_NO_RETRY, *rate_headers(rates)))


def ended_stream(words: LimitWords) -> str:
    """Why a stream was ended, without our name before it, which the event of the error has already."""
    what = " ".join(filter(None, (_plain(words.amount), _plain(words.unit), _plain(words.period))))
    resets = f"resets {_plain(words.resets)}" if words.resets else ""
    return f"{_name(words)}: " + " · ".join(filter(None, (f"the stream was ended because {what} are used up", resets, _ask(words))))


def unreadable_budget() -> Fault:
    """Nobody can say how a budget stands, so nothing is spent from it: our failure and not the caller's use, hence never a 429."""
    return fault_of(StoreUnavailable("the limits of this key cannot be read at the moment, and nothing is sent without them; try again shortly"))


def _sentence(words: LimitWords, done: str, ending: str, *, waited: bool) -> str:
    queue = "no room came while it was queued" if waited else ""
    return f"{OURS}{_name(words)}: " + " · ".join(filter(None, (_use(words, done), ending, queue, _ask(words))))


def _use(words: LimitWords, done: str) -> str:
    amount = f"{_plain(words.used)} of {_plain(words.amount)} {_plain(words.unit)}"
    return " ".join(filter(None, (amount, done, _brackets(words), _plain(words.period))))


def _brackets(words: LimitWords) -> str:
    inside = ", ".join(f"{_plain(text)} {what}" for text, what in ((words.held, "held"), (words.asked, "asked for")) if text)
    return f"({inside})" if inside else ""


def _ask(words: LimitWords) -> str:
    command = f"tokenweir request create {_plain(words.limit_id)} --amount AMOUNT --reason TEXT"
    if not words.resets:
        # Nothing ends with a cycle here, so whoever asks says until when.
        command += " --until 2h"
    return f"ask {_plain(words.contact)} or: {command}" if words.contact else f"ask for more: {command}"


def _name(words: LimitWords) -> str:
    return _plain(words.name) or _plain(words.limit_id)


def _plain(text: str) -> str:
    """Without control characters and line breaks: the sentence is shown in terminals, and names are anybody's."""
    return "".join(character if character.isprintable() else " " for character in text[:NAME_CHARS_MAX]).strip()


_DURATIONS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def _duration(seconds: int) -> str:
    """`12 s`, `2 h 5 min`: two units at most, rounded up."""
    for size, unit in _DURATIONS:
        if seconds > size:
            finer, finer_unit = {"d": (3_600, "h"), "h": (60, "min"), "min": (1, "s")}[unit]
            whole, rest = divmod(-(-seconds // finer) * finer, size)
            return f"{whole} {unit}" + (f" {rest // finer} {finer_unit}" if rest else "")
    return f"{seconds} s"


# What a caller may ask: GET /api/oauth/usage.


class Spent(msgspec.Struct, frozen=True):
    """What a caller without a budget has spent, in nano-USD: since the start of the UTC day, week (Monday) and month."""

    daily: int
    weekly: int
    monthly: int


def oauth_usage(views: Sequence[BudgetView], *, spent: Spent | None = None) -> bytes:
    """The caller's own budgets as JSON, amounts in cents, tightest first.

    `extra_usage` is the tightest spend budget (its amount is called `monthly_limit` whatever the period), and the row of it in `limits` is the active one:
    the client shows dollars only where that row and the headers agree on the reset. `spent` is told where there is no spend budget.
    """
    ordered = sorted(views, key=cmp_to_key(_compared), reverse=True)
    shown = next((view for view in ordered if view.quantity == "spend"), None)
    extra: dict[str, object] = {"is_enabled": False, "monthly_limit": None, "used_credits": None, "utilization": None, "currency": "USD"}
    if shown is not None:
        extra |= {
            "is_enabled": True,
            "monthly_limit": _cents(shown.amount),
            "used_credits": _cents(max(0, shown.used)),
            "utilization": _percent(shown),
        }
    elif spent is not None:
        extra |= {"used_credits": _cents(max(0, spent.monthly)), "daily": _unlimited(spent.daily), "weekly": _unlimited(spent.weekly)}
    active = shown or (ordered[0] if ordered else None)
    return msgspec.json.encode({"extra_usage": extra, "limits": [_usage_line(view, active=view is active) for view in ordered]})


def _unlimited(spent: int) -> dict[str, object]:
    return {"limit": None, "used_credits": _cents(max(0, spent)), "utilization": None}


def _usage_line(view: BudgetView, *, active: bool) -> dict[str, object]:
    percent = _percent(view)
    return {
        "kind": view.quantity,
        "group": view.period,
        "percent": percent,
        "resets_at": to_datetime(_seconds_up(view.resets_at_us) * SECOND_US).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "severity": "normal" if percent < 75 else "warning" if percent < 95 else "critical",
        "is_active": active,
    }


def _cents(nanos: int) -> msgspec.Raw:
    """A JSON number without a float: whole cents, or as many decimals as it takes."""
    cents, rest = divmod(abs(nanos), _NANOS_PER_CENT)
    text = f"{cents}.{rest:07d}".rstrip("0") if rest else str(cents)
    return msgspec.Raw(("-" if nanos < 0 else "").encode() + text.encode())
