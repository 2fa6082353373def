"""A rolling upgrade under load: the servers of an older tree are replaced by ours, one by one, over one PostgreSQL.

Invariants, for a peer with the client library of either tree, and for users who log in and refresh by ours:
- no call at a peer fails whose token is good, whichever server issued it;
- no log-in and no refresh fails, once the client library has asked the other replica where one does not answer;
- what was revoked at either server is refused by both peers, and stays refused.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from orders.v1 import orders_pb2, orders_pb2_grpc

from identity.v1 import authentication_pb2, signing_key_pb2, signing_key_pb2_grpc, token_pb2
from identity_client import status
from identity_client.aio import endpoints
from identity_client.aio.endpoints import Endpoints
from identity_client.aio.environment import Connection
from tests.faults.revisions import PRESENT, chosen_revisions, unpack
from tests.population import create_root, log_in_root, populate
from tests.postgres_server import Databases, query
from tests.replicas import Program, Service, free_address, replica, settings_over
from tests.rpc.api import USER_PASSWORD, bearer

pytestmark = pytest.mark.requirement("R4")

ROUNDS = int(os.environ.get("IDENTITY_TEST_ROUNDS", "1"))
REVISIONS = chosen_revisions()
if ROUNDS == 1 and "IDENTITY_TEST_UPGRADE_FROM" not in os.environ:
    REVISIONS = REVISIONS[:1]

VISITS = 4 * ROUNDS
"""How many log-ins with all that follows each stage has to last."""

Tokens = authentication_pb2.TokenSet


@dataclass
class History:
    """What was tried, by stage, and what failed."""

    stage: str = "before"
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def must_succeed(self, kind: str) -> AsyncIterator[None]:
        stage = self.stage
        self.tried[stage, kind] += 1
        try:
            yield
        except grpc.aio.AioRpcError as error:
            self.failures.append(f"{stage}: {kind}: {error.code()} {error.details()}")
            raise

    async def lasts(self, stage: str) -> None:
        """Return once *stage* has seen VISITS visits."""
        self.stage = stage
        async with asyncio.timeout(60 + VISITS):
            while self.tried[stage, "visit"] < VISITS:
                assert self.failures == []
                await asyncio.sleep(0.01)

    def report(self) -> str:
        return ", ".join(f"{stage}: {count} x {kind}" for (stage, kind), count in sorted(self.tried.items()))


class Town:
    """Two replicas, a peer of either tree, and users who know both replicas."""

    def __init__(self, old: Program, new: Program, settings: dict[str, str]) -> None:
        self.old = old
        self.new = new
        self.settings = settings
        self.addresses = addresses = [free_address(), free_address()]
        self.replicas: list[Service] = []
        """Every one that was started; the last two run."""
        self.history = History()
        self.peers: dict[str, orders_pb2_grpc.OrderServiceAsyncStub] = {}
        self.entrances = [self._entrance(*addresses), self._entrance(*reversed(addresses))]
        self.revoked: list[str] = []
        self._is_over = False

    def _entrance(self, *addresses: str) -> Endpoints:
        return Endpoints(Connection(",".join(addresses)))

    async def close(self) -> None:
        for entrance in self.entrances:
            await entrance.close()
        for each in self.replicas:
            await each.stop()

    async def start(self, number: int, program: Program) -> None:
        self.replicas.append(replica(program, self.addresses[number], self.settings))
        await self.replicas[-1].start()

    async def change(self, number: int, program: Program, stage: str) -> None:
        """Put a replica of *program* in the place of one; then *stage* is reached."""
        self.history.stage = f"before {stage}"
        await self.replicas[-2].stop()  # the other one was started after it
        await self.start(number, program)
        await self._find_again(number)
        await self.history.lasts(stage)

    def logged_errors(self) -> list[str]:
        return [line for each in self.replicas for line in each.lines if '"level": "error"' in line]

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for job in (self._visit, self._stay, self._revoke):
                group.create_task(self._repeat(job))
            try:
                yield
            finally:
                self._is_over = True

    async def _repeat(self, job: Callable[[int], Awaitable[None]]) -> None:
        number = 0
        while not self._is_over and not self.history.failures:
            try:
                await job(number)
            except grpc.aio.AioRpcError:
                return  # noted
            number += 1
            await asyncio.sleep(0.01)

    async def log_in(self, at: Endpoints) -> Tokens:
        password = authentication_pb2.PasswordCredential(username="alice", password=USER_PASSWORD)
        async with self.history.must_succeed("log-in"):
            return (await at.authenticate(authentication_pb2.AuthenticateRequest(password=password))).tokens

    async def refresh(self, at: Endpoints, held: Tokens) -> Tokens:
        async with self.history.must_succeed("refresh"):
            return (await at.refresh(token_pb2.RefreshRequest(refresh_token=held.refresh_token))).tokens

    async def call_peers(self, held: Tokens) -> None:
        for name in self.peers:
            async with self.history.must_succeed(f"call of the {name} peer"):
                await self._call(name, held.access_token)

    async def cross(self) -> None:
        """What one replica gave holds at the other, in both directions."""
        ends = [self._entrance(address) for address in self.addresses]
        for here, there in (ends, ends[::-1]):
            held = await self.log_in(here)
            await self.call_peers(held)
            for at in (there, here, there):
                held = await self.refresh(at, held)
                await self.call_peers(held)
        for end in ends:
            await end.close()

    async def _find_again(self, number: int) -> None:
        """Return once users' connections to a replica are there again: they try twice a second. An operator waits."""
        async with endpoints.open_channel(self.addresses[number], None) as channel:
            await channel.channel_ready()

    async def assert_revoked_stay_refused(self) -> None:
        assert self.revoked
        for token in self.revoked:
            for name in self.peers:
                assert await self._is_refused(name, token)

    async def _visit(self, number: int) -> None:
        """Log in at one replica and refresh at the other, where both are there."""
        here, there = self.entrances[number % 2], self.entrances[1 - number % 2]
        held = await self.log_in(here)
        await self.call_peers(held)
        await self.call_peers(await self.refresh(there, held))
        self.history.tried[self.history.stage, "visit"] += 1

    async def _stay(self, number: int) -> None:
        """One session from the first stage to the last."""
        if number == 0:
            self._resident = await self.log_in(self.entrances[0])
        self._resident = await self.refresh(self.entrances[number % 2], self._resident)
        await self.call_peers(self._resident)

    async def _revoke(self, number: int) -> None:
        held, at = await self.log_in(self.entrances[number % 2]), self.entrances[number // 2 % 2]
        await self.call_peers(held)
        async with self.history.must_succeed("revocation"):
            request = token_pb2.RevokeRequest(token=held.access_token)
            await at.call(lambda endpoint: endpoint.tokens.Revoke(request, timeout=endpoints.CALL_SECONDS))
        async with asyncio.timeout(30):
            for name in self.peers:
                while not await self._is_refused(name, held.access_token):
                    await asyncio.sleep(0)
        self.revoked.append(held.access_token)

    async def _call(self, name: str, token: str) -> None:
        await self.peers[name].GetOrder(orders_pb2.GetOrderRequest(order_id="1"), metadata=bearer(token), timeout=30)

    async def _is_refused(self, name: str, token: str) -> bool:
        try:
            await self._call(name, token)
        except grpc.aio.AioRpcError as error:
            assert status.from_rpc_error(error).reason == "TOKEN_REVOKED"
            return True
        return False


async def prepare_key(address: str) -> None:
    """Publish the next signing key."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = signing_key_pb2_grpc.SigningKeyServiceStub(channel)
        await stub.PrepareSigningKey(signing_key_pb2.PrepareSigningKeyRequest(), metadata=await log_in_root(channel))


async def start_peers(stack: AsyncExitStack, town: Town, secret_file: Path, programs: dict[str, Program]) -> None:
    environment = {
        "IDENTITY_ADDRESS": ",".join(town.addresses),
        "IDENTITY_CLIENT_ID": "orders",
        "IDENTITY_CLIENT_SECRET_FILE": str(secret_file),
        "ORDERS_PORT": "0",
    }
    for name, program in programs.items():
        peer = Service("orders", program, ("orders.server",), environment)
        await peer.start()
        stack.push_async_callback(peer.stop)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(peer.address))
        town.peers[name] = orders_pb2_grpc.OrderServiceStub(channel)


@pytest.fixture
async def town(
    revision: str, databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Town]:
    """Two replicas of *revision*, with their schema. Nothing must have failed when the test is over."""
    monkeypatch.setattr(endpoints, "CALL_SECONDS", 30.0)  # a busy machine is no failure
    if revision == PRESENT:
        print("there is no older tree: the present one takes its own place")
    old, new = Program(unpack(revision, tmp_path / "old")), Program()
    assert str(old.tree) in await old.run("identity_client.protos")
    database = databases.create_empty()
    town = Town(old, new, settings_over(database, tmp_path))
    async with AsyncExitStack() as stack:
        stack.callback(databases.drop, database)
        stack.push_async_callback(town.close)
        await old.run("identity.cli", "migrate", **town.settings)
        await create_root(old, town.settings)
        for number in range(2):
            await town.start(number, old)
        secret_file = tmp_path / "orders.secret"
        secret_file.write_text(await populate(town.addresses[0]))
        await start_peers(stack, town, secret_file, {"old": old, "new": new})
        async with town.under_load():
            yield town
        print(f"from {revision}: {town.history.report()}; {len(town.revoked)} revocations")
        assert (town.history.failures, town.logged_errors()) == ([], [])
        await town.assert_revoked_stay_refused()
        states = query(database, "SELECT state FROM signing_keys ORDER BY state")
        assert states == [("active",), ("prepared",)]


@pytest.mark.timeout(180 + 60 * ROUNDS)
@pytest.mark.parametrize("revision", REVISIONS)
async def test_replicas_change_one_by_one_and_no_call_fails(town: Town) -> None:
    await upgrade(town)


@pytest.mark.timeout(180 + 60 * ROUNDS)
@pytest.mark.parametrize("revision", chosen_revisions()[-1:])
async def test_replicas_go_back_to_the_commit_before_and_no_call_fails(town: Town) -> None:
    await upgrade(town)
    for number, stage in enumerate(("old beside new", "old again")):
        await town.change(number, town.old, stage)
        await town.cross()


async def upgrade(town: Town) -> None:
    """As the operator's page says: the schema, then one replica after the other."""
    await town.history.lasts("old beside old")
    town.history.stage = "migration"
    await town.new.run("identity.cli", "migrate", **town.settings)
    await town.history.lasts("old on the new schema")
    await town.change(0, town.new, "new beside old")
    await town.cross()
    await prepare_key(town.addresses[0])
    await town.history.lasts("a key that the old one has not read")
    await town.change(1, town.new, "new beside new")
