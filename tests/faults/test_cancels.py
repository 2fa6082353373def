"""Callers that leave in the middle of a refresh or a revocation: it is done wholly or not at all, and costs nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from identity.storage.database import DEFAULT_CONNECTIONS
from tests.faults.harness.clients import PAUSE_SECONDS, Client, Crowd
from tests.faults.harness.cluster import Cluster, cluster
from tests.faults.harness.history import OK, problems
from tests.faults.harness.rounds import SEED, times
from tests.postgres_server import PostgresServer

CANCELS = times(200, 5_000)
WORKERS = 8
LONGEST_SECONDS = 0.03
"""An undisturbed call of so many at once takes about so long: callers leave at every stage of it."""


@pytest.mark.requirement("R13")
@pytest.mark.requirement("R25")
@pytest.mark.timeout(1800)
async def test_calls_that_are_cancelled_are_done_wholly_or_not_at_all(postgres: PostgresServer, tmp_path: Path) -> None:
    async with cluster(postgres, tmp_path) as made:
        crowd = Crowd(made, SEED)
        await asyncio.gather(*(give_up_again_and_again(made, crowd, number) for number in range(WORKERS)))
        assert crowd.answers.counts["CANCELLED"] >= CANCELS
        await every_connection_is_free(made, crowd)
        assert problems(crowd.history, made.ended()) == []
        assert made.half_done() == []
        assert made.unplanned_errors() == []
        assert set(crowd.answers.counts) <= {OK, "CANCELLED", "SESSION_ENDED"}
        print(f"{crowd.answers.counts}")
        await crowd.close()


async def give_up_again_and_again(made: Cluster, crowd: Crowd, number: int) -> None:
    """Cancel this worker's share of refreshes; every tenth session is ended so, too, and another one comes."""
    cancelled, chance = 0, crowd.chance(f"cancels {number}")
    while cancelled < CANCELS / WORKERS:
        [opened] = await made.open_sessions(1)
        client = Client(crowd, opened, number)
        for _ in range(10):
            delay = chance.uniform(0.0, LONGEST_SECONDS)
            cancelled += await client.refresh_at(chance.choice(crowd.doors), delay) == "CANCELLED"
        assert await client.refresh() == OK
        cancelled += await client.revoke(chance.uniform(0.0, LONGEST_SECONDS)) == "CANCELLED"
        await client.refresh()
        assert await client.revoke() == OK


async def every_connection_is_free(made: Cluster, crowd: Crowd) -> None:
    """No transaction is left open, no more connections than allowed, and each pool bears as many calls as ever."""
    clients = [Client(crowd, each, 0) for each in await made.open_sessions(4 * DEFAULT_CONNECTIONS)]
    for door in crowd.doors:
        assert await asyncio.gather(*(client.refresh_at(door) for client in clients)) == [OK] * len(clients)
    async with asyncio.timeout(10):  # now and then a job of a replica is at work
        while set(states := connection_states(made)) != {"idle"}:
            await asyncio.sleep(PAUSE_SECONDS)
    assert states["idle"] <= DEFAULT_CONNECTIONS * len(made.replicas)


def connection_states(made: Cluster) -> dict[str, int]:
    """What the connections of the pools are doing."""
    of_pools = "datname = current_database() AND application_name = 'identity'"
    return dict(made.query(f"SELECT state, count(*) FROM pg_stat_activity WHERE {of_pools} GROUP BY state"))
