"""What SQLite's own threads promise: a read sees one instant, and work that fails undoes itself alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select

from identity.storage.database import Stores, open_stores
from identity.storage.sql.common import Moment
from identity.storage.tables import accounts, leases
from tests.clients.issuer import FixedClock
from tests.contract.builders import create_user


@pytest.fixture
async def stores(tmp_path: Path, clock: FixedClock) -> AsyncIterator[Stores]:
    stores = await open_stores(f"sqlite:///{tmp_path}/own.db", clock)
    yield stores
    await stores.close()


async def test_a_read_of_several_statements_sees_one_instant(stores: Stores) -> None:
    has_read, has_written = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    count = select(func.count()).select_from(accounts)

    def work(connection: Connection, _: Moment) -> tuple[int, int]:
        before = connection.execute(count).scalar_one()
        has_read.set()
        asyncio.run_coroutine_threadsafe(has_written.wait(), loop).result(timeout=10)
        return before, connection.execute(count).scalar_one()

    reading = asyncio.ensure_future(stores._access.read(work))
    await asyncio.to_thread(has_read.wait, 10)
    await create_user(stores)
    has_written.set()
    before, after = await reading
    assert before == after


async def test_work_that_fails_after_a_change_undoes_it_and_no_other(stores: Stores) -> None:
    def work(number: int) -> Callable[[Connection, Moment], None]:
        def write(connection: Connection, _: Moment) -> None:
            connection.execute(insert(leases).values(name=str(number), holder="", expire_time_ms=0))
            if number % 2:
                raise KeyError(number)

        return write

    writes = (stores._access.write(work(number)) for number in range(9))
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(result, KeyError) for result in results] == [number % 2 == 1 for number in range(9)]
    names = await stores._access.read(lambda connection, _: connection.execute(select(leases.c.name)).scalars().all())
    assert sorted(names) == ["0", "2", "4", "6", "8"]
