"""Differences: what would change if one rate card took the place of another, and what must not.

The rules it protects: a person sees every price that changes, with the dates it holds for, before it applies; a card that cannot price any more what has
been booked is refused, because history must stay priced. Change with it: `rows.py`, `cli/prices.py`, docs/RATES.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from tokenweir.pricing.rate_card import RateCard
from tokenweir.pricing.rows import CLASSES, CardRows, ModelRow, Prices, RateRow, SearchRow

Change = Literal["added", "removed", "changed"]


class Difference(msgspec.Struct, frozen=True):
    """One thing that would be otherwise."""

    change: Change
    model: str
    """A model of the card, `web search`, `fallback` or `the card`."""
    field: str
    """Such as `rates.output`."""
    effective_from: str | None
    """The first day (UTC) it holds for; None: from the beginning."""
    effective_to: str | None
    """The first day it does not hold for; None: open."""
    before: str
    after: str


def differences(before: CardRows, after: CardRows) -> tuple[Difference, ...]:
    """Every difference, row by row, in the order of the new card; removed models last. Sources and dates of checks are no differences."""
    return tuple(_all(before, after))


def lost_history(before: RateCard, after: RateCard, booked: Iterable[str]) -> tuple[str, ...]:
    """The booked models for which the new card has no price, or none at some time for which the old one has."""
    return tuple(sorted({model for model in booked if model and _loses(before, after, model)}))


def _loses(before: RateCard, after: RateCard, model: str) -> bool:
    if before.resolve(model) is None:
        return False
    if after.resolve(model) is None:
        return True
    borders = {at_us for card in (before, after) for at_us in card.borders(model)}
    return any(after.rates(model, 0, at_us).unpriced and not before.rates(model, 0, at_us).unpriced for at_us in borders)


def _all(before: CardRows, after: CardRows) -> Iterator[Difference]:
    yield from _plain("the card", before.us_geo_multiplier, after.us_geo_multiplier, "us_geo_multiplier")
    yield from _rows("web search", "usd_per_thousand", before.web_search, after.web_search)
    for name in ("usd_per_mtok", "fast_usd_per_mtok"):
        yield from _prices("fallback", name, (None, None), getattr(before.fallback, name), getattr(after.fallback, name))
    yield from _plain("fallback", before.fallback.batch_multiplier, after.fallback.batch_multiplier, "batch_multiplier")
    old = {model.id: model for model in before.models}
    for model in after.models:
        known = old.pop(model.id, None)
        if known is None:
            yield Difference("added", model.id, "model", None, None, "", _described(model))
            yield from _rows(model.id, "rates", (), model.rates)
            yield from _rows(model.id, "fast", (), model.fast)
        else:
            yield from _model(known, model)
    for model in old.values():
        yield Difference("removed", model.id, "model", None, None, _described(model), "")


def _model(before: ModelRow, after: ModelRow) -> Iterator[Difference]:
    for name in ("lifecycle", "retires_on", "context_tokens", "output_tokens_max", "cache_tokens_min", "us_geo_multiplier", "batch_multiplier"):
        yield from _plain(after.id, _text(getattr(before, name)), _text(getattr(after, name)), name)
    yield from _plain(after.id, ", ".join(before.aliases), ", ".join(after.aliases), "aliases")
    yield from _rows(after.id, "rates", before.rates, after.rates)
    yield from _rows(after.id, "fast", before.fast, after.fast)


def _rows(model: str, field: str, before: Iterable[RateRow | SearchRow], after: Iterable[RateRow | SearchRow]) -> Iterator[Difference]:
    """Rows are told apart by the day they begin on; a row that begins on another day is another row."""
    old = {row.effective_from: row for row in before}
    for row in after:
        known = old.pop(row.effective_from, None)
        span = (row.effective_from, row.effective_to)
        if known is not None and known.effective_to != row.effective_to:
            yield Difference("changed", model, f"{field}.effective_to", *span, _text(known.effective_to), _text(row.effective_to))
        yield from _row(model, field, span, known, row)
    for row in old.values():
        yield from _row(model, field, (row.effective_from, row.effective_to), row, None)


def _row(
    model: str, field: str, span: tuple[str | None, str | None], before: RateRow | SearchRow | None, after: RateRow | SearchRow | None
) -> Iterator[Difference]:
    if isinstance(before, SearchRow) or isinstance(after, SearchRow):
        yield from _difference(model, field, span, _amount(before), _amount(after))
        return
    yield from _prices(model, field, span, before.usd_per_mtok if before else None, after.usd_per_mtok if after else None)
    long_before, long_after = (row.long_prompt if row else None for row in (before, after))
    steps = [_text(long.above_prompt_tokens) if long else "" for long in (long_before, long_after)]
    yield from _difference(model, f"{field}.long_prompt.above_prompt_tokens", span, *steps)
    old, new = (long.usd_per_mtok if long else None for long in (long_before, long_after))
    yield from _prices(model, f"{field}.long_prompt", span, old, new)


def _prices(model: str, field: str, span: tuple[str | None, str | None], before: Prices | None, after: Prices | None) -> Iterator[Difference]:
    for name in CLASSES:
        old, new = (getattr(prices, name) if prices else "" for prices in (before, after))
        yield from _difference(model, f"{field}.{name}", span, old, new)


def _plain(model: str, before: str, after: str, field: str) -> Iterator[Difference]:
    return _difference(model, field, (None, None), before, after)


def _difference(model: str, field: str, span: tuple[str | None, str | None], before: str, after: str) -> Iterator[Difference]:
    if before != after:
        yield Difference("changed" if before and after else "removed" if before else "added", model, field, *span, before, after)


def _amount(row: RateRow | SearchRow | None) -> str:
    return row.usd_per_thousand if isinstance(row, SearchRow) else ""


def _described(model: ModelRow) -> str:
    return model.lifecycle if model.retires_on is None else f"{model.lifecycle}, retires on {model.retires_on}"


def _text(value: object) -> str:
    return "" if value is None else str(value)
