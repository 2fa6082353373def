"""The migrations make the very tables that the code uses."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from identity.storage import database
from identity.storage.database import Stores
from identity.storage.tables import metadata


async def test_migrated_tables_are_those_of_the_code(stores: Stores, url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_newest_migration_is_the_one_that_the_code_expects() -> None:
    scripts = ScriptDirectory(str(database.__file__).replace("database.py", "migrations"))
    assert scripts.get_current_head() == database.REVISION
