"""SQLite: a file, one connection that writes, and a few beside it that read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url

from identity.storage.access import Work
from identity.storage.readers import THREADS, Readers
from identity.storage.schema import migrate
from identity.storage.sql.common import Moment
from identity.storage.writer import BEGIN, Writer
from identity_client.clock import Clock

T = TypeVar("T")


class SqliteAccess:
    """See access.Access. Brings the schema up to date when it opens."""

    def __init__(self, url: str, clock: Clock) -> None:
        path = make_url(url).database
        if not path:
            raise ValueError("a database in a file is needed: sqlite:///PATH")
        _create_file(Path(path))
        self._engines = [_engine(url, connections=1), _engine(url, connections=THREADS)]
        with self._engines[0].begin() as connection:
            connection.exec_driver_sql(BEGIN)
            migrate(connection)
        self._writer = Writer(self._engines[0])
        self._readers = Readers(self._engines[1])
        self._clock = clock

    async def read(self, work: Work[T], *, is_long: bool = False) -> T:  # noqa: ARG002 - none is given up
        def run(connection: Connection) -> T:
            connection.exec_driver_sql("BEGIN")
            return work(connection, Moment(self._clock.now()))

        return await self._readers.run(run)

    async def look_up(self, work: Work[T]) -> T:
        return await self._readers.run(lambda connection: work(connection, Moment(self._clock.now())))

    async def write(self, work: Work[T], *, is_long: bool = False) -> T:  # noqa: ARG002
        return await self._writer.run(lambda connection: work(connection, Moment(self._clock.now())))

    async def issue(self, work: Work[T]) -> T:
        return await self.write(work)

    def set_doorbell(self, ring: Callable[[], None]) -> None:
        self._writer.on_publish = ring

    async def close(self) -> None:
        self._writer.close()
        self._readers.close()
        for engine in self._engines:
            engine.dispose()


def _create_file(path: Path) -> None:
    """Make the file for its owner alone; SQLite gives its companions the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _engine(url: str, connections: int) -> Engine:
    engine = create_engine(url, pool_size=connections, max_overflow=0, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where we say so: a single SELECT needs none
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
