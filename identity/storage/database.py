"""Opens the database: file, connections, schema, stores."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from identity.storage.access import Access
from identity.storage.readers import THREADS, Readers
from identity.storage.sql.accounts import SqlAccountStore
from identity.storage.sql.audit import SqlAuditStore
from identity.storage.sql.audit_seals import SqlAuditSealStore
from identity.storage.sql.credentials import SqlCredentialStore
from identity.storage.sql.fence import SqlFenceStore
from identity.storage.sql.grants import SqlGrantStore
from identity.storage.sql.leases import SqlLeaseStore
from identity.storage.sql.revocations import SqlRevocationStore
from identity.storage.sql.roles import SqlRoleStore
from identity.storage.sql.session_selection import SqlSessionSelection
from identity.storage.sql.sessions import SqlSessionStore
from identity.storage.sql.signing_keys import SqlSigningKeyStore
from identity.storage.sql.sweep import SqlSweeper
from identity.storage.sql.throttle import SqlThrottleStore
from identity.storage.tables import feed_head
from identity.storage.writer import Writer
from identity_client.clock import Clock
from identity_client.errors import DependencyDown

REVISION = "0003"
"""The newest migration."""


class Stores:
    """Every store of one database."""

    def __init__(self, url: str, clock: Clock) -> None:
        path = make_url(url).database
        if not path:
            raise ValueError("a database in a file is needed: sqlite:///PATH")
        _create_file(Path(path))
        self._engines = [_engine(url, "BEGIN IMMEDIATE", connections=1), _engine(url, "BEGIN", connections=THREADS)]
        migrate(self._engines[0])
        self._writer = Writer(self._engines[0])
        self._readers = Readers(self._engines[1])
        self._access = access = Access(self._writer, self._readers, clock)
        self.accounts = SqlAccountStore(access)
        self.roles = SqlRoleStore(access)
        self.sessions = SqlSessionStore(access)
        self.credentials = SqlCredentialStore(access)
        self.grants = SqlGrantStore(access)
        self.session_selection = SqlSessionSelection(access)
        self.sweeper = SqlSweeper(access)
        self.revocations = SqlRevocationStore(access)
        self.signing_keys = SqlSigningKeyStore(access)
        self.fence = SqlFenceStore(access)
        self.leases = SqlLeaseStore(access)
        self.audit = SqlAuditStore(access, clock)
        self.throttle = SqlThrottleStore(access)
        self.audit_seals = SqlAuditSealStore(access)

    def set_doorbell(self, ring: Callable[[], None]) -> None:
        """Have *ring* called, on the event loop, whenever this process has committed a revocation."""
        self._writer.on_publish = ring

    async def close(self) -> None:
        """Finish what waits and close every connection."""
        self._writer.close()
        self._readers.close()
        for engine in self._engines:
            engine.dispose()


async def open_stores(url: str, clock: Clock) -> Stores:
    """Open, and bring the schema up to date. Raises DependencyDown."""
    try:
        return Stores(url, clock)
    except (DBAPIError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise DependencyDown(f"The database {make_url(url).database} cannot be opened: {cause}") from error


def migrate(engine: Engine) -> None:
    """Bring the schema to REVISION; loads Alembic, which is slow to import, only where there is something to do."""
    with engine.begin() as connection:
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


def _create_file(path: Path) -> None:
    """Make the file for its owner alone; SQLite gives its companions the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _engine(url: str, begin: str, connections: int) -> Engine:
    engine = create_engine(url, pool_size=connections, max_overflow=0, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves: the driver begins none for a SELECT
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
