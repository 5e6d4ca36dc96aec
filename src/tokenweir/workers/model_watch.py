"""The watch over the provider's models: once a day the list is read and kept, and what is new, deprecated, retired or gone is said in the log.

The rules it protects: the watch never disturbs bookkeeping (a thread of its own, a connection of its own), a provider that cannot be reached is asked
again later and changes nothing, and a list is kept whole or not at all. Change with it: `wire/model_list.py`, `cli/models.py`, docs/RATES.md.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final, Protocol
from urllib.parse import quote

from tokenweir.errors import TokenweirError
from tokenweir.ledger_ports import ProviderModel, ProviderModels
from tokenweir.periods import DAY_US, Micros
from tokenweir.ports import Clock
from tokenweir.settings import Settings
from tokenweir.telemetry import PROVIDER_MODELS, log
from tokenweir.wire.model_list import read_models
from tokenweir.workers.reach import ask

FIRST_LOOK_S: Final = 30.0
"""The first look is made this long after the start, when everything else is up."""
RETRY_S: Final = 3_600.0
_PAGES_MAX: Final = 20
_PAGE_MODELS: Final = 1_000


class ClosingModels(ProviderModels, Protocol):
    """A store of models that is opened for one look."""

    def close(self) -> None:
        """Close the connections."""
        ...


def watch_models(
    settings: Settings, *, open_models: Callable[[], ClosingModels], upstream_key: Callable[[], str], clock: Clock, stop: threading.Event
) -> None:
    """Keep the list fresh until `stop` is set; run it in a thread of its own."""
    pause_s = FIRST_LOOK_S
    while not stop.wait(pause_s):
        try:
            with closing(open_models()) as models:
                pause_s = due_in_s(models.listed(), clock.now_us())
                if pause_s <= 0:
                    look(settings, models, upstream_key(), now_us=clock.now_us())
                    pause_s = DAY_US / 1_000_000
        except TokenweirError as error:
            log(logging.WARNING, "models_unavailable", error=error.message)
            pause_s = RETRY_S
        except ValueError as error:
            log(logging.WARNING, "models_unavailable", error=str(error))
            pause_s = RETRY_S


def due_in_s(known: Sequence[ProviderModel], now_us: Micros) -> float:
    """In how many seconds the list should be read again; 0 or less: now."""
    last_us = max((model.last_seen_at_us for model in known), default=0)
    return (last_us + DAY_US - now_us) / 1_000_000


def look(settings: Settings, models: ProviderModels, key: str, *, now_us: Micros) -> list[ProviderModel]:
    """Read the list from the provider and keep it; returns it. Raises ValueError with a sentence if it cannot be had."""
    listed = _read(settings, key)
    before = {model.model_id: model for model in models.listed()}
    models.keep_listing(listed, now_us=now_us)
    _tell(before, listed)
    return listed


def _read(settings: Settings, key: str) -> list[ProviderModel]:
    found: dict[str, ProviderModel] = {}
    after = ""
    for _ in range(_PAGES_MAX):
        path = f"/v1/models?limit={_PAGE_MODELS}" + (f"&after_id={quote(after, safe='')}" if after else "")
        answer = ask(settings, "GET", path, {"x-api-key": key, "anthropic-version": "2023-06-01"})
        if isinstance(answer, str):
            raise ValueError(answer)  # noqa: TRY004 - it is a sentence about the network, not about a type
        if answer.status != 200:
            raise ValueError(f"the provider answers HTTP {answer.status} to GET /v1/models")
        page = read_models(answer.body)
        for model in page.data:
            found[model.text("id")] = ProviderModel(
                model.text("id"),
                display_name=model.text("display_name"),
                lifecycle=model.text("lifecycle"),
                created_at=model.text("created_at"),
                deprecated_at=model.text("deprecated_at"),
                retires_at=model.text("retires_at"),
            )
        if not page.has_more or not page.last_id or page.last_id == after:
            break
        after = page.last_id
    if not found:
        raise ValueError("the provider lists no models at all, which cannot be right")
    return list(found.values())


def _tell(before: dict[str, ProviderModel], listed: Sequence[ProviderModel]) -> None:
    """Log what is otherwise than at the look before; the first look tells nothing."""
    for lifecycle in ("active", "deprecated", "retired"):
        PROVIDER_MODELS.labels(lifecycle).set(sum((model.lifecycle or "active") == lifecycle for model in listed))
    if not before:
        return
    last_us = max(model.last_seen_at_us for model in before.values())
    now = {model.model_id for model in listed}
    changes = {
        "new": [model.model_id for model in listed if model.model_id not in before],
        "gone": [model.model_id for model in before.values() if model.model_id not in now and model.last_seen_at_us == last_us],
    }
    for lifecycle in ("deprecated", "retired"):
        changes[lifecycle] = [
            model.model_id
            for model in listed
            if model.lifecycle == lifecycle and model.model_id in before and before[model.model_id].lifecycle != lifecycle
        ]
    if any(changes.values()):
        log(logging.WARNING, "models_changed", **changes)
