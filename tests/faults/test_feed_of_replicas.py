"""The feed of two replicas through bad wires: peers resume at whichever they reach, and each ends equal to SQL."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from identity.storage.database import open_stores
from identity_client import aio
from identity_client.clock import SystemClock
from identity_client.trust.entries import Entry
from identity_client.trust.state import TrustState
from tests.faults.harness.blocker import block
from tests.faults.harness.clients import Crowd
from tests.faults.harness.cluster import Cluster, Opened, cluster
from tests.faults.harness.history import OK, now
from tests.faults.harness.rounds import SEED, times
from tests.faults.mangler import Mangler
from tests.faults.proxy import Proxy
from tests.postgres_server import PostgresServer

EVENTS = times(2_000, 100_000)
PEERS = 3
WORKERS = 16
BLOCKERS = 4
CUT_SECONDS = 0.3
ADMIN_SECONDS = 300
"""Then the admin's token is half as old as it can become."""


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R4")
@pytest.mark.requirement("R40")
@pytest.mark.timeout(3600)
async def test_every_peer_ends_equal_to_sql_whatever_happens_on_the_way(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity_client.aio.stream._DIVERGED_SNAPSHOT_SECONDS", 0.0)
    async with cluster(postgres, tmp_path) as made, AsyncExitStack() as stack:
        crowd, is_over = Crowd(made, SEED), asyncio.Event()
        await crowd.log_in_admin()
        ways = [
            await stack.enter_async_context(Mangler(replica.address, crowd.chance(f"way to {replica.name}")))
            for replica in made.replicas
        ]
        proxies = [Proxy(way.address) for way in ways]
        addresses = [await proxy.start() for proxy in proxies]
        peers = [await enter(stack, made, addresses[:: (-1) ** number]) for number in range(PEERS)]
        waiting = await made.open_sessions(EVENTS)
        trouble = asyncio.create_task(cut_now_and_then(crowd, proxies, is_over))
        blockers = [
            asyncio.create_task(block(made.url, crowd.chance(f"blocker {number}"), is_over))
            for number in range(BLOCKERS)
        ]
        await asyncio.gather(*(end_all(crowd, waiting, number) for number in range(WORKERS)))
        is_over.set()
        held = sum(await asyncio.gather(*blockers))
        cuts = await trouble
        for way in ways:
            way.calm()
        truth = await sql_truth(made)
        for peer in peers:
            await caught_up(peer, truth)
            assert set(peer.trust.entries()) == set(truth.entries())
            assert peer.trust.digest() == truth.digest()
        assert truth.version == EVENTS
        assert made.half_done() == []
        assert made.unplanned_errors() == []  # no replica found a gap in what it read
        mangled = sum(way.mangled for way in ways)
        assert min(held, cuts, mangled) > 0
        print(f"{EVENTS} events, {held} rows held, {cuts} cuts, {mangled} messages lost, repeated, swapped or late")
        for proxy in proxies:
            await proxy.stop()
        await crowd.close()


async def enter(stack: AsyncExitStack, made: Cluster, addresses: list[str]) -> aio.Identity:
    known = made.connection()
    connection = aio.Connection(",".join(addresses), known.client_id, known.client_secret)
    return await stack.enter_async_context(aio.Identity(connection))


async def end_all(crowd: Crowd, waiting: list[Opened], number: int) -> None:
    """End one session after the other, each at whichever replica."""
    chance, logged_in = crowd.chance(f"worker {number}"), now()
    while waiting:
        if number == 0 and now() - logged_in > ADMIN_SECONDS:
            await crowd.log_in_admin()
            logged_in = now()
        assert await crowd.revoke(waiting.pop().session_id, chance.choice(crowd.doors)) == OK


async def cut_now_and_then(crowd: Crowd, proxies: list[Proxy], is_over: asyncio.Event) -> int:
    """Reset every connection of one way; -> how often."""
    chance, cuts = crowd.chance("cuts"), 0
    while not is_over.is_set():
        await asyncio.sleep(chance.uniform(0, 2 * CUT_SECONDS))
        chance.choice(proxies).cut()
        cuts += 1
    return cuts


async def sql_truth(made: Cluster) -> TrustState:
    """What a peer should hold, read from the database without any feed."""
    stores = await open_stores(made.url, SystemClock())
    epoch, version, batches = await stores.revocations.live_entries()
    await stores.close()
    truth = TrustState(SystemClock())
    truth.begin_snapshot(epoch, version, sum(map(len, batches)))
    for batch in batches:
        truth.add_snapshot(batch)
    if truth.is_arriving:
        truth.swap()
    return truth


async def caught_up(peer: aio.Identity, truth: TrustState) -> None:
    """Wait until the peer holds the newest version, after a snapshot if it noticed that it had missed something."""
    expected: set[Entry] = set(truth.entries())
    async with asyncio.timeout(60):
        while peer.trust.version < truth.version or len(set(peer.trust.entries())) < len(expected):
            await asyncio.sleep(0.1)
