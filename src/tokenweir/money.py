"""Money: an integer number of nano-USD, and the only place where a fraction of one is rounded.

1 USD = 1,000,000,000 nanos, so a signed 64-bit column holds 9.2 billion dollars. Rates are exact fractions (`pricing`); a charge is the exact
sum of its parts, rounded once, half to even. No float ever holds money. Change together with `pricing/rating.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import TypeAlias

Nanos: TypeAlias = int
"""An amount of money in nano-USD."""

NANOS_PER_USD = 1_000_000_000


def round_nanos(exact: Fraction) -> Nanos:
    """The whole nanos nearest to `exact`, ties to even."""
    return round(exact)


def round_ratio(numerator: int, denominator: int) -> Nanos:
    """The same for a ratio of whole numbers; for the hot path, where a Fraction costs more than the sum it ends."""
    whole, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return whole + 1 if twice > denominator or (twice == denominator and whole & 1) else whole


def apportion(exact: Sequence[Fraction]) -> list[Nanos]:
    """Round each part so that the parts sum to the rounded whole.

    Rounds the running total and takes differences, so no part is off by more than one nano and order alone decides who carries the remainder.
    """
    parts: list[Nanos] = []
    running, booked = Fraction(0), 0
    for part in exact:
        running += part
        here = round_nanos(running)
        parts.append(here - booked)
        booked = here
    return parts


def parse_usd(text: str) -> Nanos:
    """Read a decimal amount of US dollars, such as `12.5`; raises ValueError unless it is a whole number of nanos."""
    try:
        amount = Decimal(text.strip().removeprefix("$").replace(",", ""))
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount of US dollars; write it like 12.50") from None
    if not amount.is_finite():
        raise ValueError(f"{text!r} is not an amount of US dollars; write it like 12.50")
    nanos = amount * NANOS_PER_USD
    if nanos != nanos.to_integral_value():
        raise ValueError(f"{text!r} is finer than a nano-dollar; nine decimals are the most")
    return int(nanos)


def format_usd(nanos: Nanos, *, decimals: int | None = None) -> str:
    """Write an amount for a person: `$1,234.56`; small amounts keep enough digits to be seen. Exact when `decimals=9`."""
    sign = "-" if nanos < 0 else ""
    size = abs(nanos)
    if decimals is None:
        decimals = 2 if size == 0 or size >= NANOS_PER_USD else 4 if size >= NANOS_PER_USD // 1000 else 6
    unit = 10 ** (9 - decimals)
    whole, rest = divmod(round(Fraction(size, unit)), 10**decimals)
    return f"{sign}${whole:,}" + (f".{rest:0{decimals}d}" if decimals else "")
