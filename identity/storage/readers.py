"""A few threads that read, beside the one that writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from identity_client.errors import DependencyDown

T = TypeVar("T")

THREADS = 4


class Readers:
    """Runs reads. Connections stay open: to take one from a pool and give it back takes longer than most reads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._idle: list[Connection] = []  # never more than there are threads
        self._threads = ThreadPoolExecutor(THREADS, "sql-reader")

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run *work*. Raises DependencyDown, and whatever *work* raises."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, work)
        except DBAPIError as error:
            raise DependencyDown() from error
        except RuntimeError as error:  # the threads have been ended
            raise DependencyDown() from error

    def close(self) -> None:
        """End the threads once their reads are done."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for connection in self._idle:
            connection.close()

    def _read(self, work: Callable[[Connection], T]) -> T:
        connection = self._taken()
        try:
            with connection.begin():
                return work(connection)
        finally:
            self._idle.append(connection)

    def _taken(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._engine.connect()
