"""Rating: from metered usage to a charge. This is the only calculator of money in Tokenweir.

`rate` shows its working line by line; `cost_nanos` is the same sum for the gateway's hot path; `ceiling_cost` is the same again for the dearest that a
request may become. Every segment is priced by its own model and its own prompt length, web searches once per attempt, and the whole is rounded once.
An unknown model takes the fallback and is flagged, never 0. A rule changed here needs its row in docs/RATES.md.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import msgspec

from tokenweir.money import Nanos, apportion, round_ratio
from tokenweir.periods import Micros
from tokenweir.pricing.rate_card import BATCH, FAST, US_GEO, RateCard
from tokenweir.pricing.rows import CLASSES
from tokenweir.usage import Metered, Usage

WEB_SEARCH = "web_search"


class Line(msgspec.Struct, frozen=True):
    """One component of a charge."""

    component: str
    """A token class, or `web_search`."""
    model: str
    quantity: int
    usd_per_mtok: str
    """US dollars per million of the component, exact, with all modifiers applied."""
    nanos: Nanos


class Charge(msgspec.Struct, frozen=True):
    """What an attempt costs, and how that came about; the lines sum to `nanos`."""

    nanos: Nanos
    lines: tuple[Line, ...]
    unpriced: bool
    """Some of it was rated without a rate of that model at that time; to be re-rated once there is one."""
    card_version: str


def rate(card: RateCard, metered: Metered, *, at_us: Micros, batch: bool = False) -> Charge:
    """The charge for an attempt that began at `at_us`. `batch` says that it came from the batch route, whatever the answer says."""
    modifiers = _modifiers(metered, batch=batch)
    parts: dict[tuple[str, str, Fraction], tuple[int, int]] = {}
    unpriced = False
    for segment in metered.segments:
        rates = card.rates(segment.model, modifiers, at_us)
        unpriced = unpriced or rates.unpriced
        is_long = segment.usage.prompt > rates.long_above
        numbers = rates.long if is_long else rates.plain
        prices = rates.long_usd_per_mtok if is_long else rates.plain_usd_per_mtok
        for component, number, price in zip(CLASSES, numbers, prices, strict=True):
            quantity: int = getattr(segment.usage, component)
            if quantity:
                key = component, rates.model or segment.model, price
                parts[key] = parts.get(key, (0, 0))[0] + quantity, number
    searches = metered.usage.web_searches
    if metered.segments and searches:
        number = card.search_rate(at_us)
        # A million searches at `number` nanos over the denominator, in dollars.
        parts[WEB_SEARCH, card.resolve(metered.model) or metered.model, Fraction(number, card.denominator * 1_000)] = searches, number
    nanos = apportion([Fraction(quantity * number, card.denominator) for quantity, number in parts.values()])
    lines = tuple(
        Line(component=component, model=model, quantity=quantity, usd_per_mtok=_text(price), nanos=part)
        for ((component, model, price), (quantity, _)), part in zip(parts.items(), nanos, strict=True)
    )
    return Charge(nanos=sum(nanos), lines=lines, unpriced=unpriced, card_version=card.version)


def cost_nanos(card: RateCard, metered: Metered, *, at_us: Micros, batch: bool = False) -> tuple[Nanos, bool]:
    """The total of `rate`, and whether it is unpriced, without the lines."""
    if not metered.segments:
        return 0, False
    modifiers = _modifiers(metered, batch=batch)
    total = metered.usage.web_searches * card.search_rate(at_us) if metered.usage.web_searches else 0
    unpriced = False
    for segment in metered.segments:
        rates = card.rates(segment.model, modifiers, at_us)
        usage = segment.usage
        uncached, write_5m, write_1h, read = usage.uncached_input, usage.cache_write_5m, usage.cache_write_1h, usage.cache_read
        a, b, c, d, e = rates.long if uncached + write_5m + write_1h + read > rates.long_above else rates.plain
        total += uncached * a + write_5m * b + write_1h * c + read * d + usage.output * e
        if rates.unpriced:
            unpriced = True
    return round_ratio(total, card.denominator), unpriced


def ceiling_cost(card: RateCard, model: str, ceiling: Usage, *, at_us: Micros, speed: str = "", inference_geo: str = "") -> Nanos:
    """The most that any usage within `ceiling` (class by class, however split into segments of this model) can cost.

    What a request leaves open is taken at its dearest: a geography that is not stated may be the workspace's default, a fast request may be served at
    either speed, and a prompt that may pass the long-prompt step is priced by the dearer side of it, class by class.
    """
    dearest = card.dearest(model, fast=speed == "fast", us_geo=inference_geo != "global", at_us=at_us)
    uncached, write_5m, write_1h, read = ceiling.uncached_input, ceiling.cache_write_5m, ceiling.cache_write_1h, ceiling.cache_read
    a, b, c, d, e = dearest.long if uncached + write_5m + write_1h + read > dearest.long_above else dearest.short
    total = uncached * a + write_5m * b + write_1h * c + read * d + ceiling.output * e
    if ceiling.web_searches:
        total += ceiling.web_searches * card.search_rate(at_us)
    return round_ratio(total, card.denominator)


def _modifiers(metered: Metered, *, batch: bool) -> int:
    """Which modifiers the provider's answer says were applied."""
    found = FAST if metered.speed == "fast" else 0
    if metered.inference_geo == "us":
        found |= US_GEO
    if batch or metered.service_tier == "batch":
        found |= BATCH
    return found


def _text(price: Fraction) -> str:
    """Exact decimal text; every price has a finite one, because prices and multipliers are decimal."""
    return f"{(Decimal(price.numerator) / Decimal(price.denominator)).normalize():f}"
