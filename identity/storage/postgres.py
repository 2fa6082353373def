"""PostgreSQL: a few connections, a transaction for each piece of work, and the doorbell between replicas.

Pieces run beside each other, here and at other replicas. What a piece decides by it holds by row locks; where the
database makes it give way (a deadlock, a key that another inserted first), it is run again from its beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from identity.config import ConfigurationError
from identity.storage.access import Work
from identity.storage.direct import run_direct
from identity.storage.durability import SYNCHRONOUS_COMMIT, read_durability
from identity.storage.schema import REVISION, find_revision, migrate
from identity.storage.sql.common import CHANNEL, PUBLISHED, Moment, NeedsTransaction
from identity_client.clock import Clock
from identity_client.errors import DependencyDown, Overloaded

T = TypeVar("T")

WAITING_LIMIT = 5_000
"""The most pieces that wait for a connection; beyond it callers are refused, before memory and delays grow."""

STATEMENT_SECONDS = 10
"""No statement takes longer: the largest are those that end many sessions at once, and rebuild the feed."""

PATIENCE_SECONDS = 4.0
"""How long a caller waits for a piece of work before it is told that the database does not answer: less than the five
seconds for which the client library waits for us. What has begun goes on; what has not is dropped."""

SHORT_PATIENCE_SECONDS = 0.5
"""The same while the database has answered nothing since somebody's patience ended."""

LONG_PATIENCE_SECONDS = 60.0
"""The same for the few pieces that read or change nearly everything."""

_CONNECT_SECONDS = 5.0
_LISTEN_AGAIN_SECONDS = 1.0
_ATTEMPTS = 5
_GIVE_WAY = {"40001", "40P01", "23505"}  # serialisation failure, deadlock, unique violation
_MIGRATION_LOCK = 0x6964656E74697479  # of everybody who migrates

_log = logging.getLogger(__name__)


class PostgresAccess:
    """See access.Access. *connections*: the most that this process opens, but for the one that listens."""

    def __init__(self, url: str, clock: Clock, connections: int) -> None:
        self._url = url
        self._clock = clock
        readers = max(1, connections // 3)
        self._engine = _engine(url, connections)
        self._reading = asyncio.Semaphore(readers)
        self._writing = asyncio.Semaphore(connections - readers)
        self._waiting = 0
        self._is_silent = False
        self._running: set[asyncio.Task[Any]] = set()
        self._ring: Callable[[], None] = lambda: None
        self._listener: asyncio.Task[None] | None = None
        self._is_closed = False

    async def check_schema(self) -> None:
        """Raises ConfigurationError: it is older than this program; DependencyDown.

        A newer one is fine: each release's schema serves the release before it, so that replicas change one by one.
        """
        revision = await self.read(lambda connection, _: find_revision(connection))
        if revision is None or revision < REVISION:
            raise ConfigurationError([f"database: its schema is {revision or 'empty'}: run `identity migrate` first"])

    async def warn_of_losses(self) -> None:
        """Say in the log which settings of the server can lose what we acknowledge. Raises DependencyDown."""
        durability = await self.read(lambda connection, _: read_durability(connection))
        for found, advice in durability.losses():
            _log.warning("PostgreSQL: %s. %s", found, advice)

    async def read(self, work: Work[T], *, is_long: bool = False) -> T:
        async def attempt() -> T:
            async with self._engine.connect() as connection:
                await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                async with connection.begin():
                    return await connection.run_sync(self._timed(work))

        return await self._run(self._reading, attempt, is_long=is_long)

    async def look_up(self, work: Work[T]) -> T:
        return await self._run(self._reading, lambda: run_direct(self._engine, self._timed(work)))

    async def write(self, work: Work[T], *, is_long: bool = False) -> T:
        return await self._run(self._writing, lambda: self._in_transaction(work), is_long=is_long)

    async def issue(self, work: Work[T]) -> T:
        async def attempt() -> T:
            try:
                return await run_direct(self._engine, self._timed(work))
            except NeedsTransaction:
                return await self._in_transaction(work)

        return await self._run(self._writing, attempt)

    async def _in_transaction(self, work: Work[T]) -> T:
        async with self._engine.begin() as connection:
            connection.info.pop(PUBLISHED, None)
            result = await connection.run_sync(self._timed(work))
            has_published = PUBLISHED in connection.info
        if has_published:
            self._ring()  # others hear it by PostgreSQL
        return result

    def set_doorbell(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._listener = asyncio.create_task(self._listen(ring))

    async def close(self) -> None:
        self._is_closed = True
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.dispose()

    def _timed(self, work: Work[T]) -> Callable[[Connection], T]:
        return lambda connection: work(connection, Moment(self._clock.now()))

    async def _run(self, places: asyncio.Semaphore, attempt: Callable[[], Awaitable[T]], *, is_long: bool = False) -> T:
        """Run *attempt* in a task of its own: a caller that leaves neither tears a connection nor halves an act."""
        patience = SHORT_PATIENCE_SECONDS if self._is_silent else PATIENCE_SECONDS
        if is_long:
            patience = LONG_PATIENCE_SECONDS
        task = asyncio.create_task(self._queued(places, attempt, patience))
        self._running.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._done)
        done, _ = await asyncio.wait([task], timeout=patience)
        if not done:
            self._is_silent = True
            raise DependencyDown()
        return task.result()

    async def _queued(self, places: asyncio.Semaphore, attempt: Callable[[], Awaitable[T]], patience: float) -> T:
        if self._is_closed:
            raise DependencyDown()
        if self._waiting >= WAITING_LIMIT:
            raise Overloaded("Too many calls are waiting for the database: repeat the call later.")
        self._waiting += 1
        try:
            await _wait_for_place(places, patience)
            try:
                result = await _attempt_again(attempt)
            finally:
                places.release()
        finally:
            self._waiting -= 1
        self._is_silent = False
        return result

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked has it, or has gone

    async def _listen(self, ring: Callable[[], None]) -> None:
        """Have *ring* called when any replica has published; polling is the net below it."""
        while True:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._listen_once(ring)
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS)

    async def _listen_once(self, ring: Callable[[], None]) -> None:
        ended = asyncio.Event()
        connection = await asyncpg.connect(driver_url(self._url), timeout=_CONNECT_SECONDS)
        try:
            connection.add_termination_listener(lambda _: ended.set())
            await connection.add_listener(CHANNEL, lambda *_: ring())
            ring()  # whatever rang while nobody listened
            await ended.wait()
        finally:
            connection.terminate()


async def migrate_postgres(url: str) -> None:
    """Bring the schema up to date; those who do so at the same moment wait for each other. Raises DependencyDown."""
    engine = _engine(url, connections=1)

    def run(connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        migrate(connection)

    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    except (DBAPIError, OSError, TimeoutError) as error:
        raise DependencyDown(f"The database cannot be migrated: {getattr(error, 'orig', None) or error}") from error
    finally:
        await engine.dispose()


async def look_only(url: str, work: Callable[[Connection], T]) -> T:
    """Run *work* in one transaction that can change nothing. Raises DBAPIError, OSError."""
    engine = _engine(url, connections=1)
    try:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with connection.begin():
                return await connection.run_sync(work)
    finally:
        await engine.dispose()


def driver_url(url: str) -> str:
    """The same, as the driver reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _engine(url: str, connections: int) -> AsyncEngine:
    server_settings = {
        "application_name": "identity",
        "statement_timeout": str(STATEMENT_SECONDS * 1_000),
        "idle_in_transaction_session_timeout": str(STATEMENT_SECONDS * 1_000),
        "timezone": "UTC",
    }
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=STATEMENT_SECONDS,
        hide_parameters=True,
        connect_args={
            "timeout": _CONNECT_SECONDS,
            "command_timeout": STATEMENT_SECONDS + 1.0,  # where the other end is gone without a word
            "server_settings": server_settings,
        },
    )

    @event.listens_for(engine.sync_engine, "connect")
    def wait_for_the_disk(connection: Any, _: object) -> None:
        connection.run_async(lambda driver: driver.execute(SYNCHRONOUS_COMMIT))

    @event.listens_for(engine.sync_engine, "checkout")
    def check(connection: Any, *_: object) -> None:
        if connection.driver_connection.is_closed():  # the database was started anew: that is seen without asking
            raise DisconnectionError

    return engine


async def _wait_for_place(places: asyncio.Semaphore, patience: float) -> None:
    """Raises DependencyDown: whoever asked has been told so, too, and what is late must not be done any more."""
    try:
        async with asyncio.timeout(patience):
            await places.acquire()
    except TimeoutError:
        raise DependencyDown() from None


async def _attempt_again(attempt: Callable[[], Awaitable[T]]) -> T:
    """Run *attempt*, again where it had to give way to another. Raises DependencyDown, and whatever the work raises."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            return await attempt()
        except (DBAPIError, asyncpg.PostgresError) as error:
            if left and getattr(getattr(error, "orig", error), "sqlstate", None) in _GIVE_WAY:
                continue
            raise DependencyDown() from error
        except (OSError, PoolTimeout, TimeoutError, asyncpg.InterfaceError) as error:
            raise DependencyDown() from error
    raise AssertionError("unreachable")
