"""A service with a million rows starts, and a peer takes the snapshot over the wire while its event loop is watched."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from identity.config import Settings
from identity.house import LOCAL_ACT, open_house
from identity.server import Server
from identity.storage.sealing import MasterKey
from identity_client import aio
from identity_client.clock import SystemClock
from identity_client.trust.entries import EntryKind, id_text, split_records
from tests.bench.harness import Figure
from tests.bench.material import records

PEER = "orders"
TICK_SECONDS = 0.001


def run(quick: bool) -> Iterable[Figure]:
    count, rounds = (100_000, 1) if quick else (1_000_000, 3)
    context = multiprocessing.get_context("spawn")
    serving, taking, stalls, idle = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        secret = _prepared(context, Path(folder), count)
        for _ in range(rounds):
            here, there = context.Pipe()
            start = time.perf_counter()
            server = context.Process(target=serve, args=(folder, there))
            server.start()
            there.close()
            address = here.recv()
            serving.append(time.perf_counter() - start)
            with context.Pool(1) as pool:
                taken = pool.apply(take, (address, secret, count))
            taking.append(taken["seconds"])
            stalls.append(taken["stall"])
            idle.append(taken["idle_stall"])
            here.send("stop")
            server.join()
    yield Figure(f"service with {count:,} revocations: start to SERVING", "s", serving, reach=20)
    yield Figure(f"peer with {count:,} revocations: start to ready", "s", taking)
    yield Figure("longest stall of the peer's event loop meanwhile", "ms", stalls, reach=20)
    yield Figure("longest stall of an idle event loop, as long", "ms", idle)


def _prepared(context: Any, folder: Path, count: int) -> str:
    """A database with an account for the peer and *count* revocations; -> the peer's secret."""
    with context.Pool(1) as pool:
        secret: str = pool.apply(create_peer, (str(folder),))
    rows = (record for part in records(count, int(time.time()) + 600) for record in split_records(part))
    with closing(sqlite3.connect(folder / "identity.db")) as connection, connection:
        connection.executemany(
            "INSERT INTO revocations (version, kind, name, minimum, expire_time) VALUES (?, ?, ?, 0, ?)",
            (
                (version, int(EntryKind.TOKEN), id_text(record[:16]), int.from_bytes(record[16:], "big"))
                for version, record in enumerate(rows, start=1)
            ),
        )
        connection.execute("UPDATE feed_head SET version = ?", (count,))
    return secret


def create_peer(folder: str) -> str:
    """Makes the database, and in it a service account with the role peer; -> its secret."""

    async def create() -> str:
        house = await open_house(_settings(folder), SystemClock())
        _, _, secret = await house.accounts.create_service(PEER, ("peer",), LOCAL_ACT)
        await house.close()
        return secret

    MasterKey.generate(Path(folder) / "master.key")
    return asyncio.run(create())


def serve(folder: str, pipe: Any) -> None:
    """A server until told to stop; says its address once it is SERVING."""

    async def serving() -> None:
        server = Server(_settings(folder))
        pipe.send(await server.start())
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await server.stop()

    asyncio.run(serving())


def take(address: str, secret: str, count: int) -> dict[str, float]:
    """Starts a peer and watches its event loop until it holds *count* revocations. Seconds, milliseconds."""

    async def taking() -> dict[str, float]:
        lags: list[float] = []
        ticker = asyncio.create_task(_tick(lags))
        await asyncio.sleep(1)
        idle = max(lags)
        lags.clear()
        start = time.perf_counter()
        async with aio.Identity(aio.Connection(address, PEER, secret)) as identity:
            taken = time.perf_counter() - start
            stall = max(lags)
            if identity.trust.entry_count() != count:
                raise RuntimeError(f"the peer holds {identity.trust.entry_count()} of {count}")
        ticker.cancel()
        return {"seconds": taken, "stall": stall * 1e3, "idle_stall": idle * 1e3}

    return asyncio.run(taking())


async def _tick(lags: list[float]) -> None:
    """Notes how much later than asked for each tick comes."""
    while True:
        asked = time.perf_counter() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        lags.append(time.perf_counter() - asked)


def _settings(folder: str) -> Settings:
    return Settings(
        listen="127.0.0.1:0",
        http_listen="",
        database=f"sqlite:///{folder}/identity.db",
        master_key_file=f"{folder}/master.key",
    )
