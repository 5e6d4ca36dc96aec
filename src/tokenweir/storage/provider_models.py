"""What the provider lists at `GET /v1/models`, in SQL.

The rule it protects: a model that vanishes from the list is not forgotten; it stays as it was last seen, so that who still uses it can be told. Change
with it: `schema.py`, `ledger_ports.ProviderModel`, `workers/model_watch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec.structs import asdict, replace
from sqlalchemy import Engine, select
from sqlalchemy.dialects import postgresql, sqlite

from tokenweir.ledger_ports import ProviderModel
from tokenweir.periods import Micros
from tokenweir.storage.engine import reading, writing
from tokenweir.storage.schema import PROVIDER_MODELS

_NAMES: Final = ProviderModel.__struct_fields__
_SELECT: Final = select(*[PROVIDER_MODELS.c[name] for name in _NAMES]).order_by(PROVIDER_MODELS.c.model_id)


class SqlProviderModels:
    """The adapter of `ledger_ports.ProviderModels`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._upsert: Callable[..., Any] = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def keep_listing(self, listed: Sequence[ProviderModel], *, now_us: Micros) -> None:
        """Store a whole listing, seen now. Models that are not in it stay as they were last seen."""
        with writing(self._engine) as connection:
            known = {row.model_id: ProviderModel(*row) for row in connection.execute(_SELECT)}
            for model in listed:
                row = asdict(_followed(known.get(model.model_id), model, now_us))
                insert = self._upsert(PROVIDER_MODELS).values(**row)
                connection.execute(insert.on_conflict_do_update(index_elements=["model_id"], set_={name: insert.excluded[name] for name in row}))

    def listed(self) -> list[ProviderModel]:
        """Every model that was ever listed, in order of its id."""
        with reading(self._engine) as connection:
            return [ProviderModel(*row) for row in connection.execute(_SELECT)]


def _followed(before: ProviderModel | None, now: ProviderModel, now_us: Micros) -> ProviderModel:
    """The model as it is listed now, with what is known of its past."""
    if before is None:
        return replace(now, first_seen_at_us=now_us, last_seen_at_us=now_us, changed_at_us=now_us)
    same = (before.lifecycle, before.deprecated_at, before.retires_at) == (now.lifecycle, now.deprecated_at, now.retires_at)
    return replace(now, first_seen_at_us=before.first_seen_at_us, last_seen_at_us=now_us, changed_at_us=before.changed_at_us if same else now_us)
