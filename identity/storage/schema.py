"""The schema: which revision a database has, and how it comes to the newest."""

from __future__ import annotations

import secrets
from pathlib import Path

from sqlalchemy import Connection, insert, select, text

from identity.storage.tables import feed_head

REVISION = "0003"
"""The newest migration."""


def migrate(connection: Connection) -> None:
    """Bring the schema to REVISION; loads Alembic, which is slow to import, only where there is something to do."""
    if find_revision(connection) != REVISION:
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    if connection.execute(select(feed_head.c.id)).first() is None:
        connection.execute(insert(feed_head).values(id=1, epoch=secrets.token_hex(8), version=0))


def find_revision(connection: Connection) -> str | None:
    """The newest migration that the database has seen, None for an empty one."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision
