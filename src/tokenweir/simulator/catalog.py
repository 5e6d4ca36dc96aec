"""The models the simulated API knows: what the provider's own tables say of each, apart from prices.

Context, output and cache minimum come from the rate card where it has the model, so that limits and prices cannot disagree; the rows below are the rest
and the fallback. Retired models stay listed because asking for one is an error of its own. Change together with `pricing/rates.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from tokenweir.pricing.rate_card import RateCard

_DATED = re.compile(r"-\d{8}$")


class SimulatedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    id: str
    display_name: str
    created_at: str
    limit_class: str
    """Models of one class share rate limits."""
    context: int = 1_000_000
    output_max: int = 128_000
    cache_minimum: int = 512
    lifecycle: str = "active"
    fast: str = "no"
    """`yes`; `ignored` (runs and reports standard); `no` (an error)."""
    geo: bool = True
    """Whether `inference_geo` is accepted."""
    answers_as: str = ""
    """The id in answers, where an alias is resolved to a dated id."""

    @property
    def served_id(self) -> str:
        """The id that answers carry."""
        return self.answers_as or self.id


def _row(ident: str, name: str, created: str, limit_class: str, **more: Any) -> SimulatedModel:
    return SimulatedModel(id=ident, display_name=name, created_at=f"{created}T00:00:00Z", limit_class=limit_class, **more)


_OLD: dict[str, Any] = {"context": 200_000, "output_max": 64_000, "geo": False}
MODELS = (
    _row("claude-fable-5-2", "Claude Fable 5.2", "2026-11-09", "fable-5", fast="yes"),
    _row("claude-mythos-5-2", "Claude Mythos 5.2", "2026-11-09", "mythos-5", fast="yes"),
    _row("claude-haiku-5-5", "Claude Haiku 5.5", "2026-10-07", "haiku-5-5"),
    _row("claude-sonnet-5-5", "Claude Sonnet 5.5", "2026-09-22", "sonnet-5-5"),
    _row("claude-fable-5-1", "Claude Fable 5.1", "2026-08-18", "fable-5"),
    _row("claude-opus-5-5", "Claude Opus 5.5", "2026-09-08", "opus-5-5", fast="yes"),
    _row("claude-mythos-5-1", "Claude Mythos 5.1", "2026-08-18", "mythos-5"),
    _row("claude-sonnet-5", "Claude Sonnet 5", "2026-06-16", "sonnet-5", cache_minimum=1_024),
    _row("claude-fable-5", "Claude Fable 5", "2026-05-19", "fable-5"),
    _row("claude-mythos-5", "Claude Mythos 5", "2026-05-19", "mythos-5"),
    _row("claude-opus-5", "Claude Opus 5", "2026-06-02", "opus-5", fast="yes"),
    _row("claude-opus-4-8", "Claude Opus 4.8", "2026-05-05", "opus-4", fast="yes", cache_minimum=1_024),
    _row("claude-opus-4-7", "Claude Opus 4.7", "2026-04-16", "opus-4", cache_minimum=2_048),
    _row("claude-opus-4-6", "Claude Opus 4.6", "2026-02-05", "opus-4", fast="ignored", cache_minimum=4_096),
    _row("claude-sonnet-4-6", "Claude Sonnet 4.6", "2026-02-17", "sonnet-4", cache_minimum=1_024),
    _row("claude-haiku-4-5", "Claude Haiku 4.5", "2025-10-01", "haiku-4-5", cache_minimum=4_096, answers_as="claude-haiku-4-5-20251001", **_OLD),
    _row("claude-opus-4-5", "Claude Opus 4.5", "2025-11-01", "opus-4", cache_minimum=4_096, answers_as="claude-opus-4-5-20251101", **_OLD),
    _row(
        "claude-sonnet-4-5", "Claude Sonnet 4.5", "2025-09-29", "sonnet-4", lifecycle="deprecated", cache_minimum=1_024,
        answers_as="claude-sonnet-4-5-20250929", **_OLD,
    ),
    _row("claude-opus-4-1", "Claude Opus 4.1", "2025-08-05", "opus-4", lifecycle="retired"),
    _row("claude-opus-4", "Claude Opus 4", "2025-05-14", "opus-4", lifecycle="retired"),
    _row("claude-sonnet-4", "Claude Sonnet 4", "2025-05-14", "sonnet-4", lifecycle="retired"),
    _row("claude-3-7-sonnet", "Claude Sonnet 3.7", "2025-02-19", "sonnet-3", lifecycle="retired"),
    _row("claude-3-5-haiku", "Claude Haiku 3.5", "2024-10-22", "haiku-3", lifecycle="retired"),
    _row("claude-mythos-preview", "Claude Mythos Preview", "2026-04-07", "mythos-5", lifecycle="retired"),
)  # fmt: skip


class Catalog:
    """The models of one simulator, with the rate card's facts laid over the table."""

    def __init__(self, card: RateCard, extra: Iterable[tuple[str, str]] = ()) -> None:
        """`extra` are further models as (id, like): they behave as an existing one does."""
        self._by_id: dict[str, SimulatedModel] = {}
        for row in MODELS:
            self._by_id[row.id] = _overlay(row, card)
        for ident, like in extra:
            base = self.find(like)
            if base is None:
                raise ValueError(f"model {ident!r} is to be like {like!r}, which the simulator does not know")
            self._by_id[ident] = msgspec.structs.replace(base, id=ident, display_name=ident, answers_as="", lifecycle="active")

    def find(self, ident: str) -> SimulatedModel | None:
        """The model of an id, with or without its date; None if there is none."""
        return self._by_id.get(ident) or self._by_id.get(_DATED.sub("", ident))

    def active(self) -> list[SimulatedModel]:
        """The models that can be used, newest first."""
        return sorted((m for m in self._by_id.values() if m.lifecycle != "retired"), key=lambda m: m.created_at, reverse=True)


def describe(model: SimulatedModel) -> dict[str, Any]:
    """The model object of `GET /v1/models`."""
    return {
        "type": "model",
        "id": model.served_id,
        "display_name": model.display_name,
        "created_at": model.created_at,
        "lifecycle": model.lifecycle,
        "deprecated_at": None,
        "retires_at": None,
        "line": model.limit_class.split("-")[0],
        "max_input_tokens": model.context,
        "max_tokens": model.output_max,
        "capabilities": {name: {"supported": True} for name in ("batch", "citations", "image_input", "pdf_input", "structured_outputs", "thinking")},
    }


def _overlay(row: SimulatedModel, card: RateCard) -> SimulatedModel:
    name = card.resolve(row.id)
    if name is None:
        return row
    facts = card.model(name)
    return msgspec.structs.replace(
        row,
        context=facts.context_tokens,
        output_max=facts.output_tokens_max,
        cache_minimum=row.cache_minimum if facts.cache_tokens_min is None else facts.cache_tokens_min,
    )
