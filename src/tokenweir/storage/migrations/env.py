"""Runs the migrations on the connection that `storage/engine.py` hands over, inside the transaction it has begun."""

from __future__ import annotations

from alembic import context

from tokenweir.storage.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=True)
context.run_migrations()
