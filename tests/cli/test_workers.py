"""Several workers behind one port: kept alive, drained together, and measured as one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from identity.config import ConfigurationError
from identity.storage.sealing import MasterKey
from identity.supervisor import Workers, reserve
from identity.v1 import authentication_pb2, authentication_pb2_grpc, trust_pb2, trust_pb2_grpc
from identity_client import aio
from identity_client.trust.metrics import TrustMetrics
from tests.peers.orders import guarding
from tests.population import create_root, populate
from tests.postgres_server import Databases
from tests.replicas import Program
from tests.rpc.api import USER_PASSWORD
from tests.rpc.test_http_listener import get

CONNECTION_AGE_SECONDS = 10
"""The least that can be set."""

CONNECTIONS = 64

SLEEP = "import signal; signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


# -- the supervisor alone ------------------------------------------------------------------------------------------


async def until_running(workers: Workers, *others_than: int) -> dict[int, int]:
    """The process ids, once as many run as should and none of *others_than* is among them."""
    while (
        len(workers.process_ids) < 2
        or not workers.process_ids.keys()
        or set(others_than) & {*workers.process_ids.values()}
    ):
        await asyncio.sleep(0.01)
    return workers.process_ids


async def test_a_worker_that_dies_is_replaced_and_the_other_is_left_alone() -> None:
    ended: list[int] = []
    workers = Workers(lambda _: [sys.executable, "-c", SLEEP], 2, ended.append)
    workers.start()
    first = await until_running(workers)
    os.kill(first[0], signal.SIGKILL)
    second = await until_running(workers, first[0])
    assert ended == [first[0]]
    assert second[1] == first[1]
    await workers.stop(10)
    assert sorted(ended) == sorted([first[0], *second.values()])
    assert workers.process_ids == {}


async def test_a_worker_that_does_not_end_is_killed_after_the_drain(capfd: pytest.CaptureFixture[str]) -> None:
    workers = Workers(lambda _: [sys.executable, "-c", STUBBORN], 1)
    workers.start()
    while "up" not in capfd.readouterr().out:
        await asyncio.sleep(0.01)
    await workers.stop(0.1)
    assert workers.process_ids == {}


def test_a_port_that_somebody_shares_is_still_taken() -> None:
    reserved = reserve("127.0.0.1:0")
    reserved.listen()
    with pytest.raises(ConfigurationError, match="cannot be bound"):
        reserve(f"127.0.0.1:{reserved.getsockname()[1]}")
    reserved.close()


def test_the_supervisor_loads_no_grpc() -> None:
    code = "import identity.supervisor, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"grpc", "sqlalchemy", "prometheus_client"} & set(done.stdout.split())


# -- the whole -----------------------------------------------------------------------------------------------------


class Fleet:
    """`identity serve` with two workers, as a process that is followed by its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def said(self, pattern: str) -> str:
        """The next line that matches; -> its first group."""
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            while line := await self.process.stderr.readline():
                self.lines.append(json.loads(line)["message"])
                if found := re.fullmatch(pattern, self.lines[-1]):
                    return found[1]
        raise AssertionError(f"it ended before it said {pattern}: {self.lines}")

    async def start(self) -> None:
        self.pages = await self.said("metrics and probes are on (.+)")
        self.address = await self.said("2 workers serve (.+)")
        self.workers = {int(await self.said(r"worker (\d+) is ready on .+")) for _ in range(2)}

    async def total(self, name: str) -> float:
        """A metric's sum over its labels."""
        text = (await get(self.pages, "/metrics")).body.decode()
        families = text_string_to_metric_families(text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    async def call(self) -> None:
        """One call over a connection of its own."""
        async with self.connected():
            pass

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """The same; the connection stays open."""
        async with grpc.aio.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            await trust_pb2_grpc.TrustServiceStub(channel).GetKeys(
                trust_pb2.GetKeysRequest(), wait_for_ready=True, timeout=30
            )
            yield


@pytest.fixture
async def fleet(databases: Databases, tmp_path: Path) -> AsyncIterator[Fleet]:
    url = databases.create_empty()
    MasterKey.generate(tmp_path / "master.key")
    environment = os.environ | {
        "IDENTITY_LISTEN": "127.0.0.1:0",
        "IDENTITY_HTTP_LISTEN": "127.0.0.1:0",
        "IDENTITY_ISSUER": "https://id.example",
        "IDENTITY_DATABASE": url,
        "IDENTITY_DATABASE_CONNECTIONS": "4",
        "IDENTITY_MASTER_KEY_FILE": str(tmp_path / "master.key"),
        "IDENTITY_WORKERS": "2",
        "IDENTITY_CONNECTION_AGE_SECONDS": str(CONNECTION_AGE_SECONDS),
    }
    command = (sys.executable, "-m", "identity.cli")
    refused = await asyncio.create_subprocess_exec(
        *command, "serve", env=environment | {"IDENTITY_WORKERS": "1"}, stderr=asyncio.subprocess.PIPE
    )
    assert b"run `identity migrate` first" in (await refused.communicate())[1]
    migrated = await asyncio.create_subprocess_exec(
        *command, "migrate", env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert (await migrated.communicate())[0].startswith(b"the schema is of revision 00")
    await create_root(Program(), environment)
    fleet = Fleet(
        await asyncio.create_subprocess_exec(
            *command, "serve", env=environment, stderr=asyncio.subprocess.PIPE, limit=2**20
        )
    )
    await fleet.start()
    yield fleet
    if fleet.process.returncode is None:
        fleet.process.kill()
        await fleet.process.wait()
    for worker in fleet.workers:
        await ended(worker)
    databases.drop(url)


class Renewals(TrustMetrics):
    """Counts how a stream went on."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.renewals = 0

    def stream_ended(self, reason: str) -> None:
        self.ends.append(reason)

    def stream_renewed(self) -> None:
        self.renewals += 1


def socket_count(process_id: int) -> int:
    """How many sockets a process has open."""
    return sum(str(entry.readlink()).startswith("socket:") for entry in Path(f"/proc/{process_id}/fd").iterdir())


async def ended(process_id: int) -> None:
    """Return once the process is gone."""
    async with asyncio.timeout(30):
        while Path(f"/proc/{process_id}").exists():
            await asyncio.sleep(0.02)


async def test_workers_share_the_calls_outlive_each_other_and_drain_together(fleet: Fleet) -> None:
    for _ in range(20):
        await fleet.call()
    assert await fleet.total("identity_rpc_total") == 20
    assert (await get(fleet.pages, "/readyz")).body == b"ready\n"
    assert (await get(fleet.pages, "/livez")).status == 200
    assert b'"ES256"' in (await get(fleet.pages, "/.well-known/jwks.json")).body

    victim = fleet.workers.pop()
    os.kill(victim, signal.SIGSTOP)
    hanging = await get(fleet.pages, "/livez")
    assert (hanging.status, hanging.body.count(b"does not answer")) == (503, 1)
    assert (await get(fleet.pages, "/readyz")).status == 200
    os.kill(victim, signal.SIGKILL)
    await fleet.call()
    fleet.workers.add(int(await fleet.said(r"worker (\d+) is ready on .+")))
    await fleet.call()
    assert await fleet.total("identity_rpc_total") == 22, "what a dead worker has counted still counts"

    fleet.process.terminate()
    assert await fleet.process.wait() == 0
    for worker in fleet.workers:
        await ended(worker)


async def test_no_worker_outlives_its_supervisor(fleet: Fleet) -> None:
    fleet.process.kill()
    await fleet.process.wait()
    for worker in fleet.workers:
        await ended(worker)


async def test_many_connections_are_shared_by_the_workers(fleet: Fleet) -> None:
    before = {worker: socket_count(worker) for worker in fleet.workers}
    async with AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):
            await stack.enter_async_context(fleet.connected())
        taken = {worker: socket_count(worker) - before[worker] for worker in fleet.workers}
    assert sum(taken.values()) >= CONNECTIONS
    assert all(count > CONNECTIONS / 8 for count in taken.values()), taken  # else once in ten billion runs


@pytest.mark.requirement("R4")
async def test_a_stream_moves_on_when_its_connection_is_old_and_its_peer_fails_no_call(fleet: Fleet) -> None:
    secret, renewals, calls = await populate(fleet.address), Renewals(), 0
    async with (
        aio.Identity(aio.Connection(fleet.address, "orders", secret), metrics=renewals) as identity,
        guarding(identity, "orders", max_staleness_seconds=3) as peer,
        grpc.aio.insecure_channel(fleet.address) as channel,
        asyncio.timeout(90),
    ):
        authentication = authentication_pb2_grpc.AuthenticationServiceStub(channel)
        password = authentication_pb2.PasswordCredential(username="alice", password=USER_PASSWORD)
        request = authentication_pb2.AuthenticateRequest(password=password)
        while renewals.renewals < 2:
            token = (await authentication.Authenticate(request)).tokens.access_token
            for _ in range(20):
                await peer.call(token)
                calls += 1
    assert renewals.ends == []
    assert calls > 0
