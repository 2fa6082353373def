"""SIGKILL of one replica after the other under load: no session is lost, none revives, no chain forks."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from identity_client import aio
from tests.faults.harness.clients import PAUSE_SECONDS, Client, Crowd
from tests.faults.harness.cluster import Cluster, cluster
from tests.faults.harness.history import OK, now, problems
from tests.faults.harness.rounds import SEED, times
from tests.faults.test_outage import Peer, serving
from tests.postgres_server import PostgresServer

KILLS = times(3, 100)
CLIENTS = 12
LIFETIME_SECONDS = 5
STALENESS_SECONDS = 3.0
BOUND_SECONDS = STALENESS_SECONDS + 0.5
"""A peer whose replica dies hears of a revocation when it has found the other one; until then its copy grows old."""


@pytest.mark.requirement("R4")
@pytest.mark.requirement("R13")
@pytest.mark.requirement("R25")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("log_outs", [False, True], ids=["refresh alone", "with log-outs"])
async def test_kills_of_servers_lose_no_session_and_fork_no_chain(
    postgres: PostgresServer, tmp_path: Path, log_outs: bool
) -> None:
    async with (
        cluster(postgres, tmp_path, access_token_lifetime_seconds=LIFETIME_SECONDS) as made,
        AsyncExitStack() as stack,
    ):
        crowd = Crowd(made, SEED)
        peers = [await running_peer(stack, made, crowd, first) for first in range(len(made.replicas))]
        clients = await join(made, crowd, CLIENTS)
        is_over = asyncio.Event()
        lives = [asyncio.create_task(live(made, crowd, peers, each, is_over, log_outs)) for each in clients]
        await kill_in_turn(made, crowd)
        is_over.set()
        await asyncio.gather(*lives)
        assert problems(crowd.history, made.ended()) == []
        assert made.half_done() == []
        assert made.unplanned_errors() == []
        assert crowd.answers.without_delay == 0
        assert len(crowd.history.acknowledged()) > (KILLS if log_outs else -1)
        assert {use.outcome for use in crowd.history.uses} >= {OK, "WRONG_AUDIENCE", "BAD_SIGNATURE"}
        print(f"{KILLS} kills, {len(crowd.history)} calls: {crowd.answers.counts}")
        await crowd.close()


async def running_peer(stack: AsyncExitStack, made: Cluster, crowd: Crowd, first: int) -> tuple[str, Peer]:
    """A guarded service that follows the replica at place *first*, and the others when that one fails."""
    name = f"peer{first}"
    crowd.history.audiences[name] = frozenset({"orders", "internal"})
    identity = await stack.enter_async_context(aio.Identity(made.connection(first)))
    return name, await stack.enter_async_context(serving(identity, STALENESS_SECONDS))


async def join(made: Cluster, crowd: Crowd, count: int) -> list[Client]:
    """Every fourth holds tokens that the peers must not accept."""
    for_peers = await made.open_sessions(count - count // 4)
    for_others = await made.open_sessions(count // 4, "billing")
    return [Client(crowd, opened, number) for number, opened in enumerate(for_peers + for_others)]


async def kill_in_turn(made: Cluster, crowd: Crowd) -> None:
    """Kill a replica at a random moment, start it again, and so on."""
    chance = crowd.chance("kills")
    for _ in range(KILLS):
        await asyncio.sleep(chance.uniform(0.05, 0.5))
        victim = chance.choice(made.replicas)
        await asyncio.to_thread(victim.kill)
        crowd.history.crashes.append(now())
        await asyncio.to_thread(victim.start)


async def live(
    made: Cluster, crowd: Crowd, peers: list[tuple[str, Peer]], client: Client, is_over: asyncio.Event, log_outs: bool
) -> None:
    """Work until the end, and be able to go on then. With *log_outs*: in one session after the other."""
    while not is_over.is_set():
        draw = client.chance.random()
        outcome = OK
        if draw < 0.6:
            outcome = await client.refresh(twice=draw < 0.1)
        elif draw < 0.95 or not log_outs:
            await show(client, peers)
        else:
            await log_out(client, peers)
            [opened] = await made.open_sessions(1)
            client = client.successor(opened)
        if outcome != OK:
            await asyncio.sleep(PAUSE_SECONDS)
    assert await client.refresh_until_answered() == OK


async def show(client: Client, peers: list[tuple[str, Peer]]) -> None:
    """Show any token that the client has received, or a forged one, to a peer."""
    if not client.received:
        return
    token = client.chance.choice(client.received)
    if client.chance.random() < 0.1:
        content, _, signature = token.rpartition(".")
        token = f"{content}.{signature[::-1]}"
    name, peer = client.chance.choice(peers)
    await client.show(name, token, peer.call("reject", token), BOUND_SECONDS)


async def log_out(client: Client, peers: list[tuple[str, Peer]]) -> None:
    """End the session, and try everything once more."""
    while await client.revoke() != OK:
        await asyncio.sleep(PAUSE_SECONDS)
    await client.refresh()
    await show(client, peers)
