"""Run by Alembic, over the connection and in the transaction of whoever migrates."""

from __future__ import annotations

from alembic import context

from identity.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
