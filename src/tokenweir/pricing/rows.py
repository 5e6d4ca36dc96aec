"""Rows: the rate card's file, read strictly.

A card with one bad row is refused whole, with a sentence that names the model, the field and the value: a wrong price is worse than an old one.
Change together with `rates.json` and docs/RATES.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, TypeVar

import msgspec

from tokenweir.errors import RateCardInvalid
from tokenweir.periods import parse_instant

T = TypeVar("T")

CLASSES = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
"""The five disjoint token classes, in the order of `Usage`."""

Lifecycle = Literal["active", "deprecated", "retired"]

_AMOUNT = re.compile(r"(?:0|[1-9]\d{0,5})(?:\.\d{1,6})?")
_MULTIPLIER = re.compile(r"\d{1,3}(?:\.\d{1,3})?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_UNIT = "USD per million tokens"


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the file; a field that is not known is a mistake."""


class Prices(_Row, frozen=True):
    """US dollars per million tokens of each class, as decimal text."""

    uncached_input: str
    cache_write_5m: str
    cache_write_1h: str
    cache_read: str
    output: str

    def exact(self) -> tuple[Fraction, ...]:
        """The five prices in the order of `CLASSES`."""
        return tuple(Fraction(getattr(self, name)) for name in CLASSES)


class LongPrompt(_Row, frozen=True):
    """Prices for all tokens of a segment whose prompt is longer than the step."""

    above_prompt_tokens: int
    usd_per_mtok: Prices


class RateRow(_Row, frozen=True):
    """Prices of one model during one interval; `effective_to` is exclusive, null is open."""

    effective_from: str | None
    effective_to: str | None
    usd_per_mtok: Prices
    sources: tuple[str, ...]
    checked: str
    long_prompt: LongPrompt | None = None

    def all_prices(self) -> tuple[Prices, ...]:
        """The prices on both sides of the long-prompt step."""
        return (self.usd_per_mtok, self.long_prompt.usd_per_mtok) if self.long_prompt else (self.usd_per_mtok,)


class SearchRow(_Row, frozen=True):
    """The price of web searches during one interval."""

    effective_from: str | None
    effective_to: str | None
    usd_per_thousand: str
    sources: tuple[str, ...]
    checked: str


class FallbackRow(_Row, frozen=True):
    """What an unknown model is booked at until its price is known."""

    usd_per_mtok: Prices
    fast_usd_per_mtok: Prices
    batch_multiplier: str
    reason: str
    sources: tuple[str, ...]
    checked: str


class ModelRow(_Row, frozen=True):
    """One model: its names, its bounds and its prices through time."""

    id: str
    aliases: tuple[str, ...]
    lifecycle: Lifecycle
    retires_on: str | None
    context_tokens: int
    output_tokens_max: int
    cache_tokens_min: int | None
    us_geo_multiplier: str | None
    """Null where the provider does not offer it; an answer that says `us` all the same is billed at the card's multiplier."""
    batch_multiplier: str
    rates: tuple[RateRow, ...]
    fast: tuple[RateRow, ...]


class CardRows(_Row, frozen=True):
    """The whole file."""

    version: str
    unit: str
    sources: dict[str, str]
    web_search: tuple[SearchRow, ...]
    us_geo_multiplier: str
    fallback: FallbackRow
    models: tuple[ModelRow, ...]


def read_rows(text: str) -> CardRows:
    """Read and check the file; raises RateCardInvalid."""
    try:
        content = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise RateCardInvalid(f"The rate card is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    except RecursionError as error:
        raise RateCardInvalid("The rate card is not valid JSON: it is nested too deeply.") from error
    if not isinstance(content, dict):
        raise RateCardInvalid("The rate card is not a JSON object.")
    models = content.get("models")
    if not isinstance(models, list):
        raise RateCardInvalid("The rate card has no list `models`.")
    read = tuple(_convert(_name_of(model, number), model, ModelRow) for number, model in enumerate(models))
    head = _convert("the card", {**content, "models": []}, CardRows)
    card = msgspec.structs.replace(head, models=read)
    _check_head(card)
    for model in card.models:
        _check_model(model, card.sources)
    _check_names(card.models)
    _check_fallback(card)
    return card


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key given twice hides one of its values, so it is refused."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RateCardInvalid(
                f"The rate card is refused: the field {key} stands twice in one object, the second time as {json.dumps(value)[:80]}."
            )
        found[key] = value
    return found


def _name_of(model: Any, number: int) -> str:
    name = model.get("id") if isinstance(model, dict) else None
    return name if isinstance(name, str) and name else f"model number {number + 1}"


def _convert(owner: str, content: Any, shape: type[T]) -> T:
    try:
        return msgspec.convert(content, shape)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        steps = re.findall(r"\.(\w+)|\[(\d+)\]", path)
        value: Any = content
        for name, index in steps:
            value = value[name] if name else value[int(index)]
        field = path.strip("`.") or "the row"
        raise _refusal(owner, field, value, what[:1].lower() + what[1:]) from error


def _refusal(owner: str, field: str, value: Any, why: str) -> RateCardInvalid:
    shown = json.dumps(value, default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return RateCardInvalid(f"The rate card is refused: {owner}: {field} = {shown}: {why}.")


def _check_head(card: CardRows) -> None:
    owner = "the card"
    if not card.version.strip() or len(card.version) > 64:
        raise _refusal(owner, "version", card.version, "a version of 1 to 64 characters is needed")
    if card.unit != _UNIT:
        raise _refusal(owner, "unit", card.unit, f"only {_UNIT!r} is understood")
    if not card.models:
        raise _refusal(owner, "models", [], "a card needs at least one model")
    _check_multiplier(owner, "us_geo_multiplier", card.us_geo_multiplier, least=Fraction(1))
    _check_intervals("web search", "web_search", card.web_search, gaps=False)
    if card.web_search[-1].effective_to is not None:
        # Models end, and then their rates are flagged; searches go on, and nothing would say that their price is an old one.
        raise _refusal("web search", "web_search.effective_to", card.web_search[-1].effective_to, "the last row must be open")
    for number, row in enumerate(card.web_search):
        _check_origin("web search", f"web_search[{number}]", row, card.sources)
        _check_amount("web search", f"web_search[{number}].usd_per_thousand", row.usd_per_thousand)
    fallback = card.fallback
    _check_origin("fallback", "fallback", fallback, card.sources)
    _check_prices("fallback", "usd_per_mtok", fallback.usd_per_mtok)
    _check_prices("fallback", "fast_usd_per_mtok", fallback.fast_usd_per_mtok)
    _check_multiplier("fallback", "batch_multiplier", fallback.batch_multiplier, most=Fraction(1))
    if not fallback.reason.strip():
        raise _refusal("fallback", "reason", fallback.reason, "say why these rates are conservative")


def _check_model(model: ModelRow, sources: dict[str, str]) -> None:
    owner = model.id or "a model without an id"
    for name in (model.id, *model.aliases):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,99}", name):
            raise _refusal(owner, "id or alias", name, "a name has lower-case letters, digits and dashes")
    if model.retires_on is not None:
        _check_date(owner, "retires_on", model.retires_on)
    for field in ("context_tokens", "output_tokens_max", "cache_tokens_min"):
        count = getattr(model, field)
        if count is not None and count < 1:
            raise _refusal(owner, field, count, "a count of tokens is positive")
    if model.us_geo_multiplier is not None:
        _check_multiplier(owner, "us_geo_multiplier", model.us_geo_multiplier, least=Fraction(1))
    _check_multiplier(owner, "batch_multiplier", model.batch_multiplier, most=Fraction(1))
    _check_intervals(owner, "rates", model.rates, gaps=False)
    # A fast mode may end and come back; in between the plain rates hold.
    _check_intervals(owner, "fast", model.fast, gaps=True)
    for field, rows in (("rates", model.rates), ("fast", model.fast)):
        for number, row in enumerate(rows):
            _check_rate(owner, f"{field}[{number}]", row, sources)


def _check_rate(owner: str, field: str, row: RateRow, sources: dict[str, str]) -> None:
    _check_origin(owner, field, row, sources)
    _check_prices(owner, f"{field}.usd_per_mtok", row.usd_per_mtok)
    if row.long_prompt is None:
        return
    if row.long_prompt.above_prompt_tokens < 1:
        raise _refusal(owner, f"{field}.long_prompt.above_prompt_tokens", row.long_prompt.above_prompt_tokens, "a count of tokens is positive")
    _check_prices(owner, f"{field}.long_prompt.usd_per_mtok", row.long_prompt.usd_per_mtok)


def _check_origin(owner: str, field: str, row: RateRow | SearchRow | FallbackRow, sources: dict[str, str]) -> None:
    if not row.sources:
        raise _refusal(owner, f"{field}.sources", list(row.sources), "every row states where it comes from")
    for source in row.sources:
        if source not in sources:
            raise _refusal(owner, f"{field}.sources", source, "it is not among the sources of the card")
    _check_date(owner, f"{field}.checked", row.checked)


def _check_prices(owner: str, field: str, prices: Prices) -> None:
    for name in CLASSES:
        _check_amount(owner, f"{field}.{name}", getattr(prices, name))


def _check_amount(owner: str, field: str, text: str) -> None:
    if not _AMOUNT.fullmatch(text):
        raise _refusal(owner, field, text, "an amount is decimal text below a million with at most six decimals, such as 0.125")


def _check_multiplier(owner: str, field: str, text: str, *, least: Fraction | None = None, most: Fraction | None = None) -> None:
    if not _MULTIPLIER.fullmatch(text):
        raise _refusal(owner, field, text, "a multiplier is decimal text with at most three decimals, such as 1.1")
    value = Fraction(text)
    if value <= 0 or (least is not None and value < least) or (most is not None and value > most):
        raise _refusal(owner, field, text, f"a multiplier {'of at least ' + str(least) if least else 'above 0 and at most ' + str(most)} is needed")


def _check_date(owner: str, field: str, text: str) -> int:
    try:
        if not _DATE.fullmatch(text):
            raise ValueError(text)
        return parse_instant(text)
    except ValueError:
        raise _refusal(owner, field, text, "a date is written like 2026-11-22") from None


def _check_intervals(owner: str, field: str, rows: Sequence[RateRow | SearchRow], *, gaps: bool) -> None:
    """In order, each one ends where the next begins (or before, where `gaps` are allowed), and only the outer ends are open."""
    if not rows and not gaps:
        raise _refusal(owner, field, [], "at least one row is needed")
    previous: str | None = None
    for number, row in enumerate(rows):
        here = f"{field}[{number}]"
        start = None if row.effective_from is None else _check_date(owner, f"{here}.effective_from", row.effective_from)
        end = None if row.effective_to is None else _check_date(owner, f"{here}.effective_to", row.effective_to)
        if start is not None and end is not None and end <= start:
            raise _refusal(owner, f"{here}.effective_to", row.effective_to, f"it does not lie after effective_from {row.effective_from}")
        if number:
            if previous is None or start is None or start < parse_instant(previous):
                raise _refusal(
                    owner, f"{here}.effective_from", row.effective_from, f"it overlaps the row before, which ends at {previous or 'no date'}"
                )
            if start > parse_instant(previous) and not gaps:
                raise _refusal(owner, f"{here}.effective_from", row.effective_from, f"it leaves a gap after the row before, which ends at {previous}")
        previous = row.effective_to


def _check_names(models: Sequence[ModelRow]) -> None:
    owners: dict[str, str] = {}
    for model in models:
        for name in (model.id, *model.aliases):
            if name in owners:
                raise _refusal(model.id, "id or alias", name, f"{owners[name]} has this name already")
            owners[name] = model.id


def _check_fallback(card: CardRows) -> None:
    """An unknown model must never be booked below what any model that is not retired costs, in any class and under any modifier."""
    fallback = card.fallback
    for model in card.models:
        if model.lifecycle == "retired":
            continue
        for name in CLASSES:
            for field, rows in (("usd_per_mtok", model.rates), ("fast_usd_per_mtok", (*model.rates, *model.fast))):
                stated = getattr(getattr(fallback, field), name)
                if Fraction(stated) < max(Fraction(getattr(prices, name)) for row in rows for prices in row.all_prices()):
                    raise _refusal("fallback", f"{field}.{name}", stated, f"{model.id} costs more")
        if Fraction(fallback.batch_multiplier) < Fraction(model.batch_multiplier):
            raise _refusal("fallback", "batch_multiplier", fallback.batch_multiplier, f"{model.id} has a smaller discount")
        if model.us_geo_multiplier is not None and Fraction(card.us_geo_multiplier) < Fraction(model.us_geo_multiplier):
            raise _refusal("the card", "us_geo_multiplier", card.us_geo_multiplier, f"{model.id} has a greater one")
