"""How stores reach the database: one way to read, one way to write, and the time of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from identity.storage.readers import Readers
from identity.storage.sql.common import Moment
from identity.storage.writer import Writer
from identity_client.clock import Clock

T = TypeVar("T")

Work = Callable[[Connection, Moment], T]
"""A piece of a store: gets the connection of its transaction, and the time at which it runs."""


class Access:
    """Reads beside the writer; writes in its turn. Both raise DependencyDown."""

    def __init__(self, writer: Writer, readers: Readers, clock: Clock) -> None:
        self._writer = writer
        self._readers = readers
        self._clock = clock

    async def read(self, work: Work[T]) -> T:
        """Run *work* on one instant of the database."""
        return await self._readers.run(lambda connection: work(connection, Moment(self._clock.now())))

    async def write(self, work: Work[T]) -> T:
        """Run *work* under the write lock; return once it is durable."""
        return await self._writer.run(lambda connection: work(connection, Moment(self._clock.now())))
