"""Amounts as people write them, and back: `250k` requests, `1.5M` tokens, `$12.50` of spend. Exact, or refused with a sentence.

The rule it protects: an amount means what it says. No float is involved, nothing is rounded, and what could be read in two ways (`1,5`, `5m`) is not
read at all. Spend is given in US dollars and kept in nano-USD. Change with it: `limit.AMOUNT_MAX`, docs/LIMITS.md.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from tokenweir.limits.limit import AMOUNT_MAX, Resource
from tokenweir.money import NANOS_PER_USD, format_usd

# The digits are spelled out because `\d` matches far more than ASCII.
_AMOUNT: Final = re.compile(r"([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?:\.([0-9]{1,18}))?([kKMB]?)\Z")
_TIMES: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_LENGTH_MAX: Final = 40


def parse_amount(text: str, resource: Resource) -> int:
    """An amount in units of the resource (spend: USD in, nano-USD out); raises ValueError unless it is exact, above zero and not too large."""
    written = text.strip()
    found = _AMOUNT.match(written.removeprefix("$") if resource is Resource.SPEND else written) if len(written) <= _LENGTH_MAX else None
    if found is None:
        raise ValueError(f"amount {text[:_LENGTH_MAX]!r} is not {_kind(resource)}; write it like {_example(resource)}")
    whole, decimals, times = found[1].replace("_", "").replace(",", ""), found[2] or "", _TIMES[found[3]]
    exact = Fraction(int(whole + decimals), 10 ** len(decimals)) * times * (NANOS_PER_USD if resource is Resource.SPEND else 1)
    if exact.denominator != 1:
        finer = "finer than a nano-dollar; nine decimals are the most" if resource is Resource.SPEND else "not a whole number"
        raise ValueError(f"amount {text!r} is {finer}; write it like {_example(resource)}")
    return checked_amount(int(exact), resource)


def checked_amount(amount: int, resource: Resource) -> int:
    """The amount, if a limit of the resource can have it; raises ValueError."""
    if amount < 1:
        raise ValueError(f"amount {format_amount(amount, resource)} is too small; it must be above zero")
    if amount > AMOUNT_MAX:
        raise ValueError(
            f"amount {format_amount(amount, resource)} is too large; the most is {format_amount(AMOUNT_MAX, resource)}, or no limit at all"
        )
    return amount


def format_amount(amount: int, resource: Resource) -> str:
    """For people, and exact: `$1,234.50`, `250,000`."""
    return f"${usd_text(amount, separator=',')}" if resource is Resource.SPEND else f"{amount:,}"


def usd_text(nanos: int, *, separator: str = "") -> str:
    """An exact decimal number of US dollars with at least two decimals: `1234.50`, `0.000000001`."""
    sign = "-" if nanos < 0 else ""
    exact = format_usd(abs(nanos), decimals=9).removeprefix("$").replace(",", separator)
    return sign + exact[:-7] + exact[-7:].rstrip("0")


def _kind(resource: Resource) -> str:
    return "an amount of US dollars" if resource is Resource.SPEND else f"a number of {resource.replace('_', ' ')}"


def _example(resource: Resource) -> str:
    return "12.50, 250 or 1.5k" if resource is Resource.SPEND else "500, 10_000, 250k or 1.5M"
