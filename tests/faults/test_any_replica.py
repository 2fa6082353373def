"""Three replicas, no sticky routing: each step of a session is taken at another one, and all of them tell the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from identity.v1 import authentication_pb2, session_pb2, token_pb2
from identity_client import aio
from tests.faults.harness.clients import CALL_SECONDS, Client, Crowd, Door
from tests.faults.harness.cluster import Cluster, cluster
from tests.faults.harness.history import OK, Revoke, now, problems
from tests.faults.harness.rounds import SEED, times
from tests.faults.test_outage import Peer, serving
from tests.postgres_server import PostgresServer
from tests.rpc.api import USER_PASSWORD, bearer

REPLICAS = 3
SESSIONS = times(30, 300)
BOUND_SECONDS = 1.0
"""Within which a peer of any replica refuses; measured from the acknowledgement, on a machine that runs all of it."""

pytestmark = [pytest.mark.requirement("R4"), pytest.mark.requirement("R40"), pytest.mark.timeout(900)]


@dataclass
class Scene:
    """A cluster, its clients, and a peer at each replica; `orders` introspects."""

    made: Cluster
    crowd: Crowd
    peers: list[Peer]
    identity: aio.Identity

    def name(self, peer: Peer) -> str:
        return f"peer{self.peers.index(peer)}"


@pytest.fixture
async def scene(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[Scene]:
    async with cluster(postgres, tmp_path, REPLICAS) as made, AsyncExitStack() as stack:
        crowd = Crowd(made, SEED)
        identities = [await stack.enter_async_context(aio.Identity(made.connection(at))) for at in range(REPLICAS)]
        peers = [await stack.enter_async_context(serving(identity)) for identity in identities]
        for at in range(REPLICAS):
            crowd.history.audiences[f"peer{at}"] = frozenset({"orders", "internal"})
        yield Scene(made, crowd, peers, identities[0])
        assert problems(crowd.history, made.ended()) == []
        assert made.half_done() == []
        assert made.unplanned_errors() == []
        await crowd.close()


@pytest.mark.requirement("R13")
@pytest.mark.requirement("R5")
async def test_each_step_of_a_session_may_be_taken_at_another_replica(scene: Scene) -> None:
    chance = scene.crowd.chance("doors")
    for number in range(SESSIONS):
        doors = chance.sample(scene.crowd.doors, REPLICAS)
        client = await log_in(scene, doors[0], number)
        assert await client.refresh_at(doors[1]) == OK
        assert await introspect(scene, client.access, doors[2])
        peer = chance.choice(scene.peers)
        assert await client.show(scene.name(peer), client.access, peer.call("reject", client.access)) == OK
        await log_out(scene, client, doors[2])
        for door in scene.crowd.doors:  # at once: each confirms by the database
            assert await client.refresh_at(door) == "SESSION_ENDED"
            assert await get_session(scene, client, door) == "TOKEN_REVOKED"
        await refused_within_the_bound(scene, client)


async def test_a_restart_of_every_replica_ends_no_session(scene: Scene) -> None:
    """One after the other, as an upgrade does."""
    clients = [await log_in(scene, door, number) for number, door in enumerate(scene.crowd.doors * 3)]
    for replica in scene.made.replicas:
        await asyncio.to_thread(replica.stop)
        for client in clients:
            assert await client.refresh_until_answered() == OK
            assert await client.show("peer0", client.access, scene.peers[0].call("reject", client.access)) == OK
        await asyncio.to_thread(replica.start)


async def log_in(scene: Scene, door: Door, number: int) -> Client:
    password = authentication_pb2.PasswordCredential(username="carol", password=USER_PASSWORD)
    request = authentication_pb2.AuthenticateRequest(password=password)
    outcome, answer = await scene.crowd.ask(door.authentication.Authenticate(request, timeout=CALL_SECONDS))
    assert outcome == OK
    return Client.of(scene.crowd, answer.tokens, number)


async def introspect(scene: Scene, token: str, door: Door) -> bool:
    own = await scene.identity.tokens.get()
    request = token_pb2.IntrospectRequest(token=token)
    outcome, answer = await scene.crowd.ask(door.tokens.Introspect(request, metadata=own.metadata))
    assert outcome == OK
    return bool(answer.active)


async def log_out(scene: Scene, client: Client, door: Door) -> None:
    """By an access token for the service itself, as a user's front end does."""
    start = now()
    outcome, _ = await scene.crowd.ask(
        door.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(client.access), timeout=CALL_SECONDS)
    )
    scene.crowd.history.revokes.append(Revoke(client.session_id, start, now(), outcome))
    assert outcome == OK


async def get_session(scene: Scene, client: Client, door: Door) -> str:
    request = session_pb2.GetSessionRequest()
    call = scene.crowd.ask(door.sessions.GetSession(request, metadata=bearer(client.access), timeout=CALL_SECONDS))

    async def outcome() -> str:
        return (await call)[0]

    return await client.show(door.name, client.access, outcome())


async def refused_within_the_bound(scene: Scene, client: Client) -> None:
    """At every peer, and by the judgement of every replica's own copy: none accepts what starts after the bound."""
    waiting = list(scene.peers)
    while waiting:
        for peer in list(waiting):
            outcome = await client.show(
                scene.name(peer), client.access, peer.call("reject", client.access), BOUND_SECONDS
            )
            if outcome != OK:
                assert outcome == "TOKEN_REVOKED"
                waiting.remove(peer)
