"""SIGKILL of PostgreSQL in a storm of revocations: what was acknowledged is there, nothing is half done."""

from __future__ import annotations

import asyncio
from pathlib import Path
from statistics import median

import pytest

from tests.faults.harness.clients import PAUSE_SECONDS, Client, Crowd
from tests.faults.harness.cluster import cluster
from tests.faults.harness.history import OK, now, problems
from tests.faults.harness.rounds import RECOVERY_SECONDS, SEED, times
from tests.postgres_server import PostgresServer

KILLS = times(2, 30)
SESSIONS_EACH = 1_500
WORKERS = 16

MAY_SAY = {OK, "DEPENDENCY_DOWN", "OVERLOADED", "SESSION_ENDED"}
"""The replicas live: without a commit they say so, and never OK; SESSION_ENDED is for refresh alone."""


@pytest.mark.requirement("R9")
@pytest.mark.requirement("R13")
@pytest.mark.timeout(3600)
async def test_kills_of_the_database_lose_nothing_that_was_acknowledged(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    async with cluster(postgres, tmp_path) as made:
        crowd = Crowd(made, SEED)
        recoveries = []
        for number in range(KILLS):
            opened = await made.open_sessions(SESSIONS_EACH)
            await crowd.log_in_admin()
            clients = [Client(crowd, each, at) for at, each in enumerate(opened)]
            storm = [asyncio.create_task(storm_on(crowd, clients)) for _ in range(WORKERS)]
            await asyncio.sleep(crowd.chance(f"kill {number}").uniform(0.2, 1.5))
            await asyncio.to_thread(postgres.kill)
            crowd.history.crashes.append(now())
            await asyncio.to_thread(postgres.start)
            recoveries.append(await normal_after(crowd, clients))
            clients.clear()  # the storm ends
            await asyncio.gather(*storm)
            assert made.half_done() == []
        assert problems(crowd.history, made.ended()) == []
        assert set(crowd.answers.counts) <= MAY_SAY
        assert crowd.answers.without_delay == 0
        assert made.unplanned_errors() == []
        assert median(recoveries) < RECOVERY_SECONDS
        print(f"{KILLS} kills, {len(crowd.history.acknowledged())} revocations acknowledged, {crowd.answers.counts}")
        print(f"normal {median(recoveries):.3f} s after the return (median), {max(recoveries):.3f} s at the latest")
        await crowd.close()


async def storm_on(crowd: Crowd, clients: list[Client]) -> None:
    """End one session after the other, until there are none; some are renewed before, all are tried afterwards."""
    while clients:
        client = clients.pop()
        if client.chance.random() < 0.3:
            await client.refresh_until_answered()
        is_own = client.chance.random() < 0.5
        while await (client.revoke() if is_own else crowd.revoke(client.session_id, client.door)) != OK:
            await asyncio.sleep(PAUSE_SECONDS)
        await client.refresh()


async def normal_after(crowd: Crowd, clients: list[Client]) -> float:
    """Seconds until each replica has renewed a session."""
    start = now()
    for door in crowd.doors:
        client = clients.pop()
        while await client.refresh_at(door) != OK:
            await asyncio.sleep(PAUSE_SECONDS)
    return now() - start
