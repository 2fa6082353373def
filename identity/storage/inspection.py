"""The database read by somebody else than the service: read-only, while the service runs or when it is stopped."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event, func, make_url, select, text
from sqlalchemy.pool import NullPool

from identity.storage.sql.common import is_postgres
from identity.storage.tables import accounts, audit_events, audit_seals, feed_head

T = TypeVar("T")

_LOOKED_AT_EVENTS = 1_000


async def look(url: str, work: Callable[[Connection], T]) -> T:
    """Run *work* over a connection that can change nothing, in one transaction. Raises DBAPIError, OSError."""
    if url.startswith("postgresql"):
        from identity.storage.postgres import look_only

        return await look_only(url, work)
    with open_read_only(Path(make_url(url).database or "")) as connection:
        return work(connection)


@contextmanager
def open_read_only(path: Path) -> Iterator[Connection]:
    """The file at *path*. Raises DBAPIError."""
    # Without a write-ahead log nobody has the file open: then SQLite needs no helper files, and makes none.
    mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
    uri = f"file:{quote(str(path.absolute()))}?{mode}"
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(uri, uri=True, isolation_level=None),
        poolclass=NullPool,
        hide_parameters=True,
    )

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    with engine.begin() as connection:
        yield connection


def integrity_problems(connection: Connection) -> list[str]:
    """What SQLite itself finds wrong with the file, and rows that refer to nothing. PostgreSQL looks after its own."""
    if is_postgres(connection):
        return []
    found = [line for (line,) in connection.execute(text("PRAGMA integrity_check(20)")) if line != "ok"]
    orphans = [f"a row of {row[0]} refers to nothing" for row in connection.execute(text("PRAGMA foreign_key_check"))]
    return found + orphans[:20]


def newest_time(connection: Connection) -> float | None:
    """The latest time that the newest audit events and their seals say, in Unix seconds; None for an empty log."""
    newest = select(audit_events.c.time_ms).order_by(audit_events.c.event_id.desc()).limit(_LOOKED_AT_EVENTS).subquery()
    times = [
        connection.execute(select(func.max(newest.c.time_ms))).scalar(),
        connection.execute(select(func.max(audit_seals.c.time_ms))).scalar(),
    ]
    return max((time / 1000 for time in times if time is not None), default=None)


def oldest_account_time(connection: Connection) -> int | None:
    """When the oldest account was created, in Unix seconds."""
    oldest: int | None = connection.execute(select(func.min(accounts.c.create_time))).scalar()
    return oldest


def feed_position(connection: Connection) -> tuple[str, int] | None:
    """The epoch and the newest version of the feed."""
    row = connection.execute(select(feed_head.c.epoch, feed_head.c.version)).first()
    return None if row is None else (row.epoch, row.version)
