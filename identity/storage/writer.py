"""One thread that writes. What waits is committed together, so that many calls share one fsync; where many calls come,
those of a few milliseconds wait for each other.

Each piece of work runs in its own SAVEPOINT: one that raises undoes itself alone. Nobody hears of success before the
commit; a commit that fails fails all of its pieces. A caller that stops waiting does not stop the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from identity.storage.sql.common import PUBLISHED
from identity_client.errors import DependencyDown, Overloaded

T = TypeVar("T")

BEGIN = "BEGIN IMMEDIATE"
"""Writes wait for each other at their beginning, not in their midst."""

BATCH_LIMIT = 256
"""The most pieces in one transaction: bounds how long the first of them waits."""

WAITING_LIMIT = 10_000
"""The most pieces that wait; beyond it callers are refused at once, before memory and delays grow without end."""


INTERVAL_SECONDS = 0.004
"""How far apart transactions begin in a crowd. Each costs this process as much as several pieces do: begun whenever
one piece is there, they are what limits how many there can be."""

CROWD = 4
"""So many pieces within the interval are a crowd. Nobody who writes one after another is kept waiting."""


class Pace:
    """When the next transaction is to begin."""

    def __init__(self) -> None:
        self._begun: deque[float] = deque([-math.inf] * CROWD, CROWD)  # when the last pieces were, in monotonic time

    def begun(self, now: float, count: int) -> None:
        """A transaction with *count* pieces begins."""
        self._begun.extend([now] * min(count, CROWD))

    def wait_seconds(self, now: float) -> float:
        """How long others are to be waited for."""
        is_crowd = now - self._begun[0] < INTERVAL_SECONDS
        return self._begun[-1] + INTERVAL_SECONDS - now if is_crowd else 0.0


@dataclass(slots=True)
class _Piece:
    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: BaseException | None = field(default=None)

    def run(self, connection: Connection) -> None:
        """Run in a SAVEPOINT. An error of the work is kept for its caller, one of the database ends the batch."""
        driver = _driver_connection(connection)
        driver.execute("SAVEPOINT piece")
        try:
            self.result = self.work(connection)
        except Exception as error:
            if not driver.in_transaction:
                raise  # the database gave up the whole transaction, and with it what ran before in this batch
            driver.execute("ROLLBACK TO piece")
            self.error = error
        driver.execute("RELEASE piece")

    def resolve(self) -> None:
        """Tell the caller, on their event loop; harmless when they are gone."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(_as_ours(self.error))


class Writer:
    """The writing thread over one connection of *engine*."""

    def __init__(self, engine: Engine) -> None:
        self.on_publish: Callable[[], None] = lambda: None
        """Called on the callers' event loop once revocations are committed."""
        self._engine = engine
        self._pieces: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._pace = Pace()
        self._thread = threading.Thread(target=self._run, name="sql-writer", daemon=True)
        self._is_closed = False
        self._thread.start()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run *work* in a transaction; return once it is durable.

        Raises DependencyDown, Overloaded, and whatever *work* raises.
        """
        if self._is_closed:
            raise DependencyDown()
        if self._pieces.qsize() >= WAITING_LIMIT:
            raise Overloaded("Too many changes are waiting to be written: repeat the call later.")
        loop = asyncio.get_running_loop()
        piece = _Piece(work, loop.create_future(), loop)
        self._pieces.put(piece)
        result: T = await piece.future
        return result

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        self._is_closed = True
        self._pieces.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            if batch:
                self._pace.begun(time.monotonic(), len(batch))
                self._write(batch)

    def _next_batch(self) -> tuple[list[_Piece], bool]:
        batch: list[_Piece] = []
        piece = self._pieces.get()
        time.sleep(self._pace.wait_seconds(time.monotonic()))
        while piece is not None:
            batch.append(piece)
            if len(batch) == BATCH_LIMIT:
                return batch, True
            try:
                piece = self._pieces.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _write(self, batch: list[_Piece]) -> None:
        try:
            with self._engine.connect() as connection:
                connection.info.pop(PUBLISHED, None)
                with connection.begin():
                    connection.exec_driver_sql(BEGIN)
                    for piece in batch:
                        piece.run(connection)
                    if not _driver_connection(connection).in_transaction:
                        raise DependencyDown()
                has_published = PUBLISHED in connection.info
        except Exception as error:
            for piece in batch:
                piece.error = error
            has_published = False
        if has_published:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                batch[0].loop.call_soon_threadsafe(self.on_publish)
        _settle(batch)


def _settle(batch: list[_Piece]) -> None:
    """Tell the callers, those of one event loop by waking it once."""
    for loop in dict.fromkeys(piece.loop for piece in batch):
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_resolve_all, [piece for piece in batch if piece.loop is loop])


def _resolve_all(pieces: list[_Piece]) -> None:
    for piece in pieces:
        piece.resolve()


def _driver_connection(connection: Connection) -> Any:
    """What the driver knows of the transaction that we began.

    A full disk or an I/O error can make SQLite roll all of it back by itself, of which SQLAlchemy knows nothing; what
    ran afterwards would commit statement by statement. SAVEPOINTs, too, are begun here: SQLAlchemy would compile each
    anew, at the cost of two more statements for every piece.
    """
    return connection.connection.dbapi_connection


def _as_ours(error: BaseException) -> BaseException:
    """The database's own troubles are one class to callers; the cause stays in the chain for the log."""
    if isinstance(error, DBAPIError | sqlite3.Error):
        ours = DependencyDown()
        ours.__cause__ = error
        return ours
    return error
