"""PostgreSQL stopped, and PostgreSQL hanging: who notices, after how long, what callers are told, and the return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from identity.domain.values import EndReason
from identity.storage.database import open_stores
from identity.v1 import authentication_pb2
from identity_client import aio
from identity_client.clock import SystemClock
from identity_client.errors import DependencyDown
from tests.contract.builders import ACT, admit_all, create_user, new_session
from tests.faults.harness.clients import CALL_SECONDS, PAUSE_SECONDS, Client, Crowd, Door
from tests.faults.harness.cluster import cluster, new_database
from tests.faults.harness.history import OK, now, problems
from tests.faults.harness.rounds import RECOVERY_SECONDS, ROUNDS, SEED, times
from tests.faults.test_outage import METHODS, Peer, serving
from tests.postgres_server import PostgresServer, query
from tests.rpc.api import USER_PASSWORD

STALENESS_SECONDS = times(3, 30)
OUTAGE_SECONDS = 2 * STALENESS_SECONDS
ANSWER_SECONDS = 8.0 if ROUNDS == 1 else 5.0
"""Within which a replica says that its database does not answer: the client library waits for five seconds. An ordinary
run shares its machine with others."""

WAYS: dict[str, tuple[Callable[[PostgresServer], None], Callable[[PostgresServer], None]]] = {
    "stopped": (PostgresServer.shut_down, PostgresServer.start),
    "hanging": (PostgresServer.pause, PostgresServer.resume),
}


async def test_a_restart_of_the_database_costs_no_call_that_comes_after_it(postgres: PostgresServer) -> None:
    url = await new_database(postgres)
    stores = await open_stores(url, SystemClock())
    await asyncio.gather(*(stores.revocations.head() for _ in range(50)))  # every connection is open
    await asyncio.to_thread(postgres.shut_down)
    await asyncio.to_thread(postgres.start)
    await asyncio.gather(*(stores.revocations.head() for _ in range(50)))
    await stores.close()


async def test_what_callers_were_told_is_not_done_is_done_wholly_if_it_had_begun_and_never_otherwise(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.storage.postgres.PATIENCE_SECONDS", 0.2)
    url = await new_database(postgres)
    stores = await open_stores(url, SystemClock(), connections=3)  # two of which may write
    account = await create_user(stores)
    opened = [await stores.sessions.open(new_session(account), admit_all, ACT) for _ in range(6)]
    blocker = await asyncpg.connect(url)
    async with blocker.transaction():
        await blocker.execute("SELECT * FROM accounts FOR UPDATE")
        ends = [stores.grants.end(session.grant_id, EndReason.REVOKED, "", ACT) for session in opened]
        results = await asyncio.gather(*ends, return_exceptions=True)
        assert {type(result) for result in results} == {DependencyDown}
    await blocker.close()
    await stores.close()
    assert query(url, "SELECT count(*) FROM grants WHERE end_time IS NOT NULL") == [(2,)]
    assert query(url, "SELECT count(*) FROM revocations") == [(2,)]


@pytest.mark.requirement("R9")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
async def test_an_outage_of_the_database_is_borne_for_max_staleness_and_then_as_declared(
    postgres: PostgresServer, tmp_path: Path, way: str
) -> None:
    go_away, come_back = WAYS[way]
    async with cluster(postgres, tmp_path) as made, AsyncExitStack() as stack:
        crowd = Crowd(made, SEED)
        identity = await stack.enter_async_context(aio.Identity(made.connection()))
        peer = await stack.enter_async_context(serving(identity, STALENESS_SECONDS))
        client, ended = (Client(crowd, each, number) for number, each in enumerate(await made.open_sessions(2)))
        assert (await client.refresh(), await ended.refresh(), await ended.revoke()) == (OK, OK, OK)
        opaque = await open_session(crowd)
        await asyncio.to_thread(go_away, postgres)
        start = now()
        async with refused_meanwhile(crowd, client, start + OUTAGE_SECONDS):
            calls = await nobody_notices(peer, identity, client.access)
            noticed = now() - start
            while now() - start < OUTAGE_SECONDS:
                answers = await peer.call_all(client.access)
                assert answers == {"reject": "TRUST_STALE", "confirm": "DEPENDENCY_DOWN", "accept": "OK"}
                assert await peer.call("accept", ended.access) == "TOKEN_REVOKED"
                assert await peer.call("accept", opaque) == "DEPENDENCY_DOWN"  # it never said what that stands for
        await asyncio.to_thread(come_back, postgres)
        recovery = await normal_again(crowd, client, peer)
        assert calls > 0
        assert recovery < RECOVERY_SECONDS
        assert await peer.call("reject", opaque) == OK
        assert await ended.refresh() == "SESSION_ENDED"
        assert problems(crowd.history, made.ended()) == []
        assert made.half_done() == []
        assert made.unplanned_errors() == []
        assert crowd.answers.without_delay == 0
        print(f"{way}: {calls} calls at the peer until it noticed after {noticed:.1f} s; {crowd.answers.counts}")
        print(f"normal {recovery:.3f} s after the return; the slowest refusal took {crowd.answers.slowest:.1f} s")
        await crowd.close()


async def nobody_notices(peer: Peer, identity: aio.Identity, token: str) -> int:
    """-> how many calls went through until the peer's copy was too old."""
    calls = 0
    while True:
        answers = await asyncio.gather(peer.call("reject", token), peer.call("accept", token))
        if identity.trust.staleness() > STALENESS_SECONDS:
            return calls
        assert set(answers) == {OK}
        calls += 1


@asynccontextmanager
async def refused_meanwhile(crowd: Crowd, client: Client, until: float) -> AsyncIterator[None]:
    """Log-ins and refreshes go to every replica all the time, and are told in time that nothing can be done."""
    asking = [asyncio.create_task(_ask_on(crowd, each, until)) for each in _questions(crowd, client)]
    yield
    await asyncio.gather(*asking)


def _questions(crowd: Crowd, client: Client) -> list[Callable[[], Awaitable[str]]]:
    return [
        question
        for door in crowd.doors
        for question in (lambda door=door: log_in(crowd, door), lambda door=door: client.refresh_at(door))
    ]


async def _ask_on(crowd: Crowd, question: Callable[[], Awaitable[str]], until: float) -> None:
    while (start := now()) < until:
        assert await question() == "DEPENDENCY_DOWN"
        taken = now() - start
        assert taken < ANSWER_SECONDS
        crowd.answers.slowest = max(taken, crowd.answers.slowest)
        await asyncio.sleep(10 * PAUSE_SECONDS)


async def log_in(crowd: Crowd, door: Door) -> str:
    password = authentication_pb2.PasswordCredential(username="carol", password=USER_PASSWORD)
    request = authentication_pb2.AuthenticateRequest(password=password)
    return (await crowd.ask(door.authentication.Authenticate(request, timeout=CALL_SECONDS)))[0]


async def open_session(crowd: Crowd) -> str:
    """-> a session token."""
    password = authentication_pb2.PasswordCredential(username="carol", password=USER_PASSWORD)
    kind = authentication_pb2.GRANT_TYPE_SESSION
    request = authentication_pb2.AuthenticateRequest(password=password, grant_type=kind)
    answer = await crowd.doors[0].authentication.Authenticate(request, timeout=CALL_SECONDS)
    return str(answer.session.session_token)


async def normal_again(crowd: Crowd, client: Client, peer: Peer) -> float:
    """Seconds until log-in and refresh at each replica, and each method of the peer, are what they were."""
    start = now()
    for door in crowd.doors:
        while await log_in(crowd, door) != OK:
            await asyncio.sleep(PAUSE_SECONDS)
        while await client.refresh_at(door) != OK:
            await asyncio.sleep(PAUSE_SECONDS)
    while await peer.call_all(client.access) != dict.fromkeys(METHODS, OK):
        await asyncio.sleep(PAUSE_SECONDS)
    return now() - start
