"""The identity service away, and its database hanging: what peers go on doing, for how long, and how they come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from identity.feed.hub import Hub
from identity.storage.readers import THREADS
from identity.v1 import authentication_pb2, authentication_pb2_grpc
from identity_client import aio, status
from identity_client.access.hooks import Hooks
from identity_client.access.options import MethodOptions, OnStale
from identity_client.access.rules import Rule
from identity_client.clock import SystemClock
from tests.clients.probe import until
from tests.faults.dev_server import DevServer
from tests.faults.test_feed import Ends, running_peer, verdict
from tests.rpc.api import Api, bearer

SERVICE = "orders.v1.OrderService"
CHOICES: tuple[OnStale, ...] = ("reject", "confirm", "accept")
METHODS = {kind: f"/{SERVICE}/{kind.title()}" for kind in CHOICES}
STALENESS_SECONDS = 2.0
CALLS = 200
LIFETIME_SECONDS = 600


class Accepted(Hooks):
    """Counts what was judged by old knowledge."""

    def __init__(self) -> None:
        self.count = 0

    def on_accepted_stale(self, method: str) -> None:
        self.count += 1


class Ahead(SystemClock):
    """The machine's time, and some seconds more."""

    seconds = 0.0

    def now(self) -> float:
        return super().now() + self.seconds


class Peer:
    """A guarded service with a method for each choice of `on_stale`."""

    def __init__(self, address: str, hooks: Accepted) -> None:
        self.address = address
        self.accepted = hooks
        self.channel = grpc.aio.insecure_channel(address)

    async def call(self, kind: OnStale, token: str) -> str:
        """`OK`, or the reason of the refusal."""
        method: Any = self.channel.unary_unary(METHODS[kind])
        try:
            await method(b"", metadata=bearer(token))
        except grpc.aio.AioRpcError as error:
            return status.from_rpc_error(error).reason
        return "OK"

    async def call_all(self, token: str) -> dict[OnStale, str]:
        return {kind: await self.call(kind, token) for kind in METHODS}


def connection(service: DevServer, name: str = "orders") -> aio.Connection:
    return aio.Connection(service.address, name, service.secrets["client_secrets"][name])


async def log_in(service: DevServer) -> str:
    """The demo user's access token."""
    user = service.secrets["user"]
    credential = authentication_pb2.PasswordCredential(username=user["username"], password=user["password"])
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub = authentication_pb2_grpc.AuthenticationServiceStub(channel)
        answer = await stub.Authenticate(authentication_pb2.AuthenticateRequest(password=credential))
    return answer.tokens.access_token


@asynccontextmanager
async def serving(identity: aio.Identity, max_staleness_seconds: float = STALENESS_SECONDS) -> AsyncIterator[Peer]:
    """The service `orders`, whether *identity* is ready or not."""

    async def answer(_request: bytes, _context: Any) -> bytes:
        return b""

    hooks = Accepted()
    guard = identity.guard(
        "orders",
        rules={method: Rule() for method in METHODS.values()},
        max_staleness_seconds=max_staleness_seconds,
        methods={method: MethodOptions(on_stale=kind) for kind, method in METHODS.items()},
        hooks=hooks,
    )
    server = grpc.aio.server(interceptors=[guard])
    handlers: dict[str, Any] = {kind.title(): grpc.unary_unary_rpc_method_handler(answer) for kind in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    peer = Peer(f"127.0.0.1:{port}", hooks)
    try:
        yield peer
    finally:
        await peer.channel.close()
        await server.stop(None)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[DevServer]:
    service = DevServer(tmp_path)
    service.start()
    yield service
    service.stop()


@pytest.mark.timeout(120)
async def test_a_peer_verifies_for_max_staleness_without_the_service_then_does_as_declared_and_comes_back(
    service: DevServer,
) -> None:
    token = await log_in(service)
    async with aio.Identity(connection(service)) as identity, serving(identity) as peer:
        assert await peer.call_all(token) == dict.fromkeys(METHODS, "OK")
        service.kill()
        service.wait_killed()
        calls = 0
        while True:
            answers = await peer.call_all(token)
            if identity.trust.staleness() > STALENESS_SECONDS:
                break
            assert answers == dict.fromkeys(METHODS, "OK")
            calls += 1
        assert calls > 0
        before = peer.accepted.count  # the call that was late may have been accepted by then
        for _ in range(3):
            assert await peer.call_all(token) == {
                "reject": "TRUST_STALE",
                "confirm": "DEPENDENCY_DOWN",
                "accept": "OK",
            }
        assert peer.accepted.count == before + 3

        await asyncio.to_thread(service.start)
        start = asyncio.get_running_loop().time()
        await until(lambda: identity.trust.staleness() < STALENESS_SECONDS)
        print(f"normal {asyncio.get_running_loop().time() - start:.3f} s after the service was ready")
        assert await peer.call_all(token) == dict.fromkeys(METHODS, "OK")
        assert peer.accepted.count == before + 3


@pytest.mark.timeout(120)
async def test_a_peer_that_starts_without_the_service_admits_nobody_until_the_service_is_there(
    service: DevServer,
) -> None:
    token = await log_in(service)
    service.kill()
    service.wait_killed()
    identity = aio.Identity(connection(service), start_timeout_seconds=60)
    async with serving(identity) as peer:
        entering = asyncio.ensure_future(identity.__aenter__())
        for _ in range(20):
            assert await peer.call_all(token) == dict.fromkeys(METHODS, "TRUST_STALE")
        assert (entering.done(), identity.is_ready, peer.accepted.count) == (False, False, 0)
        await asyncio.to_thread(service.start)
        await entering
        assert await peer.call_all(token) == dict.fromkeys(METHODS, "OK")
        await identity.__aexit__(None, None, None)


@pytest.mark.requirement("R73")
@pytest.mark.timeout(120)
async def test_a_channel_calls_on_without_the_service_and_after_it_without_a_failed_call(service: DevServer) -> None:
    """The caller's clock says that its token is due to be renewed as soon as there is nobody to renew it."""
    clock = Ahead()
    async with (
        aio.Identity(connection(service)) as identity,
        aio.Identity(connection(service, "billing"), clock=clock) as caller,
        serving(identity, max_staleness_seconds=30) as peer,
        caller.channel(peer.address, audience="orders") as channel,
    ):
        method: Any = channel.unary_unary(METHODS["reject"])
        await method(b"")
        service.kill()
        service.wait_killed()
        clock.seconds = LIFETIME_SECONDS * 0.9
        for _ in range(CALLS):
            await method(b"")
        await asyncio.to_thread(service.start)
        await until(lambda: identity.trust.staleness() < STALENESS_SECONDS)
        for _ in range(CALLS):
            await method(b"")


@pytest.mark.requirement("R9")
async def test_a_replica_whose_sql_hangs_counts_as_stale_though_its_heartbeats_come(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.feed.streams.HEARTBEAT_SECONDS", 0.05)
    assert api.server.house is not None
    hub = api.server.house.hub
    await api.create_user("carol")
    token = (await api.login("carol")).access_token
    ends = Ends()
    async with running_peer(api, "orders", max_staleness_seconds=1.0, metrics=ends) as peer:
        async with hanging_reads(hub):
            await until(lambda: verdict(peer, token) == "TRUST_STALE")
        assert ends.reasons == []
        await until(lambda: verdict(peer, token) == "accepted")


@asynccontextmanager
async def hanging_reads(hub: Hub) -> AsyncIterator[None]:
    """Every thread that reads the database is held fast, as by a disk that no longer answers."""
    released = threading.Event()
    reads = [asyncio.ensure_future(hub._store._access.read(lambda *_: released.wait())) for _ in range(THREADS)]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        released.set()
        await asyncio.gather(*reads)
