"""The rate card: what applies to a model at an instant, under the modifiers that the provider reports.

Every combination of model, interval and modifiers is worked out once, when the card is read, as whole numbers over one common denominator. So a
charge is a sum of integer products and is exact, and the charge, the gateway's total and the ceiling cannot disagree: they read the same numbers.
Change together with `rating.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import lcm

import msgspec

from tokenweir.errors import NotFound
from tokenweir.periods import Micros, parse_instant
from tokenweir.pricing.model_ids import spellings
from tokenweir.pricing.rows import CardRows, Lifecycle, ModelRow, RateRow, read_rows

FAST = 1
US_GEO = 2
BATCH = 4
_COMBINATIONS = range(8)

_BEGINNING: Micros = -(2**63)
_END: Micros = 2**63
_NO_STEP = 2**63
_NANOS_PER_TOKEN = 1_000
"""One US dollar per million tokens, in nano-USD per token."""
_SPELLINGS_MAX = 4_096

Five = tuple[Fraction, ...]


class Rates(msgspec.Struct, frozen=True):
    """What the five token classes cost from an instant on, modifiers applied."""

    model: str
    """The model as the card names it; for the fallback, empty."""
    from_us: Micros
    unpriced: bool
    """These are not this model's own rates at this time: the fallback, or the nearest row before its first or after its last date."""
    long_above: int
    """A prompt of more tokens than this takes `long` for all its tokens."""
    plain: tuple[int, int, int, int, int]
    """Nano-USD per token over the card's denominator, in the order of `Usage`."""
    long: tuple[int, int, int, int, int]
    plain_usd_per_mtok: Five
    long_usd_per_mtok: Five


class ModelFacts(msgspec.Struct, frozen=True):
    """What is known of a model besides its prices."""

    model: str
    context_tokens: int
    output_tokens_max: int
    cache_tokens_min: int | None
    """Shorter prefixes are not cached; None if it is not known."""
    lifecycle: Lifecycle
    retires_on: str | None
    aliases: tuple[str, ...]


class Dearest(msgspec.Struct, frozen=True, gc=False):
    """The dearest rates of a model in an interval without a border, over the card's denominator, in the order of `Rates.plain`."""

    from_us: Micros
    until_us: Micros
    short: tuple[int, ...]
    long: tuple[int, ...]
    """If the prompt may pass the long-prompt step."""
    long_above: int


class RateCard:
    """A checked card. Values never change after it is made; it only remembers how ids were spelled."""

    def __init__(self, rows: CardRows, version: str) -> None:
        self.version = version
        """The stated version and a short hash of the content: two different cards never share it."""
        open_rates = [row.checked for m in rows.models for row in (*m.rates, *m.fast) if row.effective_to is None]
        open_searches = [row.checked for row in rows.web_search if row.effective_to is None]
        self.oldest_check = min(rows.fallback.checked, *open_rates, *open_searches)
        """The date on which the rate in force that was checked longest ago was checked; what has ended needs no new check."""
        self._facts = {m.id: _facts(m) for m in rows.models}
        self._names = {name: m.id for m in rows.models for name in (m.id, *m.aliases)}
        exact = {(m.id, mods): _timeline(m, Fraction(rows.us_geo_multiplier), mods) for m in rows.models for mods in _COMBINATIONS}
        exact |= {("", mods): [_fallback(rows, mods)] for mods in _COMBINATIONS}
        # Dollars per thousand searches are tens of thousands of nanos each: 1 USD / 1,000 = 1,000,000 nanos.
        searches = [(_instant(row.effective_from), Fraction(row.usd_per_thousand) * 1_000_000) for row in rows.web_search]
        amounts = [price for pieces in exact.values() for piece in pieces for price in (*piece.plain, *piece.long)]
        self.denominator = lcm(*((price * _NANOS_PER_TOKEN).denominator for price in amounts), *(price.denominator for _, price in searches))
        """Of all numbers in `Rates` and of `search_rate`."""
        self._rates = {key: tuple(p.over(self.denominator, key[0]) for p in reversed(pieces)) for key, pieces in exact.items()}
        self._searches = tuple((start, int(price * self.denominator)) for start, price in reversed(searches))
        self._resolved: dict[str, str | None] = {}
        self._dearest: dict[tuple[str, bool, bool], Dearest] = {}
        self._spelled: dict[tuple[str, int], tuple[Rates, ...]] = {}

    def resolve(self, model_id: str) -> str | None:
        """The card's name for a model id in any known spelling; None if the card does not know the model."""
        try:
            return self._resolved[model_id]
        except KeyError:
            found = next((known for name in spellings(model_id) if (known := self._names.get(name)) is not None), None)
        if len(self._resolved) >= _SPELLINGS_MAX:
            # Ids come from outside: the memory of them is bounded.
            self._resolved.clear()
        self._resolved[model_id] = found
        return found

    def model(self, canonical: str) -> ModelFacts:
        """The facts of a model under the card's name; raises NotFound."""
        try:
            return self._facts[canonical]
        except KeyError:
            raise NotFound(f"The rate card {self.version} has no model {canonical!r}.") from None

    def models(self) -> tuple[ModelFacts, ...]:
        """Every model of the card, in its order."""
        return tuple(self._facts.values())

    def borders(self, model_id: str) -> tuple[Micros, ...]:
        """The instants from which on other rates apply to a model, without modifiers."""
        return tuple(rates.from_us for rates in self._rates[self.resolve(model_id) or "", 0])

    def rates(self, model_id: str, modifiers: int, at_us: Micros) -> Rates:
        """What applies to a model, however spelled, at an instant; the fallback if the card does not know it."""
        pieces = self._spelled.get((model_id, modifiers))
        if pieces is None:
            pieces = self._rates[self.resolve(model_id) or "", modifiers]
            if len(self._spelled) >= _SPELLINGS_MAX:
                self._spelled.clear()
            self._spelled[model_id, modifiers] = pieces
        for rates in pieces:
            if at_us >= rates.from_us:
                return rates
        return pieces[-1]

    def dearest(self, model_id: str, *, fast: bool, us_geo: bool, at_us: Micros) -> Dearest:
        """Class by class, the most that a token of the model can cost at an instant, if it may run fast, or in the US; remembered until rates change."""
        key = (model_id, fast, us_geo)
        known = self._dearest.get(key)
        if known is not None and known.from_us <= at_us < known.until_us:
            return known
        choices = {0, FAST if fast else 0}
        if us_geo:
            choices |= {choice | US_GEO for choice in choices}
        now = [self.rates(model_id, modifiers, at_us) for modifiers in choices]
        borders = [rates.from_us for modifiers in choices for rates in self._rates[self.resolve(model_id) or "", modifiers]]
        short = tuple(max(column) for column in zip(*(rates.plain for rates in now), strict=True))
        found = Dearest(
            from_us=max((border for border in borders if border <= at_us), default=-(2**62)),
            until_us=min((border for border in borders if border > at_us), default=2**62),
            short=short,
            long=tuple(max(column) for column in zip(short, *(rates.long for rates in now), strict=True)),
            long_above=min(rates.long_above for rates in now),
        )
        if len(self._dearest) >= _SPELLINGS_MAX:
            self._dearest.clear()
        self._dearest[key] = found
        return found

    def search_rate(self, at_us: Micros) -> int:
        """Nano-USD per web search, over the denominator."""
        for start, price in self._searches:
            if at_us >= start:
                return price
        return self._searches[-1][1]


def parse_rate_card(text: str) -> RateCard:
    """Read a card; raises RateCardInvalid, naming the model, the field and the value, if anything in it is wrong."""
    rows = read_rows(text)
    return RateCard(rows, f"{rows.version}+{hashlib.sha256(text.encode()).hexdigest()[:8]}")


class _Piece(msgspec.Struct, frozen=True):
    """Rates from an instant on, as exact dollars per million tokens."""

    from_us: Micros
    unpriced: bool
    long_above: int
    plain: Five
    long: Five

    def over(self, denominator: int, model: str) -> Rates:
        """The same as whole numbers over a denominator."""

        def numbers(five: Five) -> tuple[int, int, int, int, int]:
            a, b, c, d, e = (int(price * _NANOS_PER_TOKEN * denominator) for price in five)
            return a, b, c, d, e

        return Rates(
            model=model,
            from_us=self.from_us,
            unpriced=self.unpriced,
            long_above=self.long_above,
            plain=numbers(self.plain),
            long=numbers(self.long),
            plain_usd_per_mtok=self.plain,
            long_usd_per_mtok=self.long,
        )


def _timeline(model: ModelRow, us_geo: Fraction, modifiers: int) -> list[_Piece]:
    """The rates of a model under some modifiers, from the beginning of time on."""
    geo = Fraction(model.us_geo_multiplier) if model.us_geo_multiplier else us_geo
    end = _instant(model.rates[-1].effective_to, _END)
    starts = {_BEGINNING, *_borders(model.rates), *(_borders(model.fast) if modifiers & FAST else ())}
    pieces = []
    for start in sorted(starts):
        # Outside the model's own dates the nearest of them decides, and the rates are flagged.
        at_us = min(max(start, _instant(model.rates[0].effective_from)), end - 1)
        fast = _row_at(model.fast, at_us) if modifiers & FAST else None
        row = fast or _row_at(model.rates, at_us) or model.rates[-1]
        factor = geo if modifiers & US_GEO else Fraction(1)
        # The provider sells no fast batches. Should an answer say both, the dearer reading is booked: the fast rates without the discount.
        if modifiers & BATCH and fast is None:
            factor *= Fraction(model.batch_multiplier)
        plain = tuple(price * factor for price in row.usd_per_mtok.exact())
        step = row.long_prompt
        long = tuple(price * factor for price in step.usd_per_mtok.exact()) if step else plain
        pieces.append(_Piece(start, at_us != start, step.above_prompt_tokens if step else _NO_STEP, plain, long))
    return pieces


def _fallback(card: CardRows, modifiers: int) -> _Piece:
    """The stated conservative rates for a model that the card does not know."""
    prices = card.fallback.fast_usd_per_mtok if modifiers & FAST else card.fallback.usd_per_mtok
    factor = Fraction(card.us_geo_multiplier) if modifiers & US_GEO else Fraction(1)
    if modifiers & BATCH and not modifiers & FAST:
        factor *= Fraction(card.fallback.batch_multiplier)
    plain = tuple(price * factor for price in prices.exact())
    return _Piece(_BEGINNING, unpriced=True, long_above=_NO_STEP, plain=plain, long=plain)


def _borders(rows: Iterable[RateRow]) -> list[Micros]:
    return [parse_instant(date) for row in rows for date in (row.effective_from, row.effective_to) if date is not None]


def _row_at(rows: Sequence[RateRow], at_us: Micros) -> RateRow | None:
    for row in rows:
        if at_us >= _instant(row.effective_from) and at_us < _instant(row.effective_to, _END):
            return row
    return None


def _instant(date: str | None, default: Micros = _BEGINNING) -> Micros:
    return default if date is None else parse_instant(date)


def _facts(model: ModelRow) -> ModelFacts:
    return ModelFacts(
        model=model.id,
        context_tokens=model.context_tokens,
        output_tokens_max=model.output_tokens_max,
        cache_tokens_min=model.cache_tokens_min,
        lifecycle=model.lifecycle,
        retires_on=model.retires_on,
        aliases=model.aliases,
    )
