"""A service with a million revocations starts, and a peer takes the snapshot over the wire while its event loop is
watched."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterable

from identity_client import aio
from identity_client.trust.entries import EntryKind, id_text, split_records
from tests.bench import database, service
from tests.bench.harness import Figure, resident_megabytes
from tests.bench.material import records
from tests.bench.service import PEER, Place

TICK_SECONDS = 0.001


def run(quick: bool) -> Iterable[Figure]:
    count, rounds = (100_000, 1) if quick else (1_000_000, 5)
    context = multiprocessing.get_context("spawn")
    starting, memory, taking, stalls, idle = [], [], [], [], []
    with service.placed(**service.CHEAP_HASH) as place:
        bare = _bare_megabytes(place)
        _fill(place, count)
        for _ in range(rounds):
            start = time.perf_counter()
            with service.running(place) as ours:
                starting.append(time.perf_counter() - start)
                memory.append(resident_megabytes(ours.process_id) - bare)
                with context.Pool(1) as pool:
                    taken = pool.apply(take, (ours.address, place.peer_secret, count))
            taking.append(taken["seconds"])
            stalls.append(taken["stall"])
            idle.append(taken["idle_stall"])
    settings = place.durability
    yield Figure(f"service with {count:,} revocations: start to SERVING", "s", starting, reach=20, settings=settings)
    yield Figure(f"service with {count:,} revocations: memory for them", "MB", memory, settings=settings)
    yield Figure(f"peer with {count:,} revocations: start to ready", "s", taking, settings=settings)
    yield Figure("longest stall of the peer's event loop meanwhile", "ms", stalls, reach=20, settings=settings)
    yield Figure("longest stall of an idle event loop, as long", "ms", idle)


def _bare_megabytes(place: Place) -> float:
    with service.running(place) as ours:
        return resident_megabytes(ours.process_id)


def _fill(place: Place, count: int) -> None:
    rows = (record for part in records(count, int(time.time()) + 600) for record in split_records(part))
    database.insert(
        place.settings.database,
        "revocations",
        ("version", "kind", "name", "minimum", "expire_time"),
        (
            (version, int(EntryKind.TOKEN), id_text(record[:16]), 0, int.from_bytes(record[16:], "big"))
            for version, record in enumerate(rows, start=1)
        ),
    )
    database.execute(place.settings.database, f"UPDATE feed_head SET version = {count}")


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
