"""The migrations make the very tables that the code uses."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from identity.domain.audit_events import AuditFilter
from identity.domain.audit_seals import SealKey
from identity.domain.sealer import Sealer
from identity.storage import database
from identity.storage.database import Stores, open_stores
from identity.storage.inspection import open_read_only
from identity.storage.sql.audit_check import check_audit
from identity.storage.tables import metadata
from tests.clients.issuer import FixedClock

OLD_ROWS = [
    (3, 1_000, "session.open", "ok", "carol", "grant", None, None, "192.0.2.7", "request", "", None),
    (7, 2_000, "role.create", "ok", None, None, "root", "grant", "192.0.2.8", "other", "clerk: ", None),
    (8, 3_000, "session.open", "PASSWORD_WRONG", None, None, None, None, "192.0.2.7", "", "name 1", "key"),
]


async def test_migrated_tables_are_those_of_the_code(stores: Stores, url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_newest_migration_is_the_one_that_the_code_expects() -> None:
    scripts = ScriptDirectory(str(database.__file__).replace("database.py", "migrations"))
    assert scripts.get_current_head() == database.REVISION


async def test_an_old_audit_log_is_kept_numbered_and_sealed(url: str, tmp_path: Path, clock: FixedClock) -> None:
    migrate_to("0001", url)
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection, connection:
        connection.executemany(f"INSERT INTO audit_events VALUES ({', '.join('?' * 12)})", OLD_ROWS)
    stores = await open_stores(url, clock)
    await Sealer(stores.audit_seals, SealKey(bytes(32)), 0, clock).seal()
    events = (await stores.audit.list_page(AuditFilter(), None, 10)).events
    await stores.close()
    assert [(event.event_id, event.action, event.outcome) for event in events] == [
        (3, "session.open", "PASSWORD_WRONG"),
        (2, "role.create", "ok"),
        (1, "session.open", "ok"),
    ]
    assert [event.personal and event.personal.origin for event in events] == ["192.0.2.7", "192.0.2.8", "192.0.2.7"]
    with open_read_only(tmp_path / "identity.db") as read:
        assert check_audit(read, SealKey(bytes(32))).problems == []


def migrate_to(revision: str, url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(database.__file__).replace("database.py", "migrations"))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
