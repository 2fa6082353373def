"""A crowd at the door: idle connections, streams, calls whose requests do not come, and a flood of log-ins at once.

Calls with one answer go on meanwhile, what is too much is refused with a delay, and all of it is forgotten when it is
gone. The long form is run by `make attacks`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from identity.v1 import (
    account_pb2,
    account_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
    trust_pb2,
    trust_pb2_grpc,
)
from identity_client import status
from identity_client.errors import Overloaded, Throttled
from tests.faults.dev_server import DevServer
from tests.rpc.api import Metadata, bearer
from tests.rpc.test_limits import GET_KEYS

CONNECTIONS = int(os.environ.get("IDENTITY_TEST_CROWD", "150"))
EACH = CONNECTIONS // 2
"""So many watchers, health streams, half-open calls and log-ins."""

CHANNELS = 4
"""Over so many connections the streams come."""

FLOODING = [f"user-{number}" for number in range(50)]
"""Who logs in: so many that the wait for a password's check is what bounds them, not their own attempts alone."""

HONEST_WORKERS = 4
MAXIMUM_GROWTH_MB = 100
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # with empty SETTINGS
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]

Refusal = Overloaded | Throttled  # RESOURCE_EXHAUSTED, each


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevServer]:
    server = DevServer(tmp_path / "dev")
    server.directory.mkdir(mode=0o700)
    server.start()
    yield server
    server.stop()


class Crowd:
    """Everybody who is there at once; leaving it, all of them go."""

    def __init__(self, dev: DevServer) -> None:
        self._dev = dev
        self._stack = AsyncExitStack()
        self._secrets = dev.secrets
        self._channel = self.connect()
        self.watchers: list[Any] = []

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        await self._stack.aclose()

    def connect(self) -> Any:
        """A channel with a connection of its own."""
        channel = grpc.aio.insecure_channel(self._dev.address, _OWN_CONNECTION)
        self._stack.push_async_callback(channel.close)
        return channel

    async def log_in_service(self, name: str) -> Metadata:
        secret = authentication_pb2.ClientSecretCredential(
            client_id=name, client_secret=self._secrets["client_secrets"][name]
        )
        request = authentication_pb2.AuthenticateRequest(client_secret=secret, audience="identity")
        stub: Any = authentication_pb2_grpc.AuthenticationServiceStub(self._channel)
        return bearer((await stub.Authenticate(request)).access.access_token)

    async def log_in(self, channel: Any, username: str = "", audience: str = "") -> str:
        """The access token of a user: the admin, one of FLOODING, or the service's first."""
        user = self._secrets["admin" if username == "admin" else "user"]
        credential = authentication_pb2.PasswordCredential(
            username=username or user["username"], password=user["password"]
        )
        stub: Any = authentication_pb2_grpc.AuthenticationServiceStub(channel)
        request = authentication_pb2.AuthenticateRequest(password=credential, audience=audience)
        return str((await stub.Authenticate(request)).tokens.access_token)

    async def create_users(self) -> None:
        """FLOODING, with the password of the service's first user."""
        admin = bearer(await self.log_in(self._channel, "admin", "identity"))
        stub: Any = account_pb2_grpc.AccountServiceStub(self._channel)
        password = self._secrets["user"]["password"]
        for username in FLOODING:
            request = account_pb2.CreateUserRequest(username=username, password=password)
            await stub.CreateUser(request, metadata=admin)

    async def idle(self, count: int) -> None:
        """Connections that speak HTTP/2 and call nothing."""
        host, _, port = self._dev.address.rpartition(":")
        for _ in range(count):
            reader, writer = await asyncio.open_connection(host, int(port))
            self._stack.callback(writer.close)
            writer.write(PREFACE)
            assert await reader.readexactly(9)  # the head of the server's SETTINGS

    async def half_open(self, count: int) -> None:
        """Calls of which the headers are sent and no more."""
        channel = self.connect()
        await channel.channel_ready()
        for _ in range(count):
            self._stack.callback(channel.stream_stream(GET_KEYS)().cancel)

    async def watch(self, count: int, *names: str) -> None:
        """Trust streams, for the holders of the credentials *names* in turn; each has had its first message."""
        tokens = [await self.log_in_service(name) for name in names]
        stubs: list[Any] = [trust_pb2_grpc.TrustServiceStub(self.connect()) for _ in range(CHANNELS)]
        self.watchers = [
            stubs[number % CHANNELS].WatchTrust(trust_pb2.WatchTrustRequest(), metadata=tokens[number % len(names)])
            for number in range(count)
        ]
        for message in await asyncio.gather(*(watcher.read() for watcher in self.watchers)):
            assert message is not grpc.aio.EOF

    async def watch_health(self, count: int) -> list[Refusal]:
        """Health streams; -> the refusals."""
        stubs: list[Any] = [health_pb2_grpc.HealthStub(self.connect()) for _ in range(CHANNELS)]
        calls = [stubs[number % CHANNELS].Watch(health_pb2.HealthCheckRequest()) for number in range(count)]
        return await shed(*(first_of(call) for call in calls))

    async def flood(self, count: int) -> list[Refusal]:
        """Log-ins, all at the same moment and with the right password; -> the refusals."""
        names = itertools.islice(itertools.cycle(FLOODING), count)
        return await shed(*(self.log_in(self._channel, name) for name in names))


async def first_of(call: Any) -> Any:
    message = await call.read()
    assert message is not grpc.aio.EOF
    return message


async def shed(*calls: Awaitable[Any]) -> list[Refusal]:
    """Await them all; -> the refusals, of which each says when to come again. Some must be answered."""
    refusals = []
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, grpc.aio.AioRpcError), outcome
            refusal = status.from_rpc_error(outcome)
            assert isinstance(refusal, Refusal), refusal
            assert refusal.retry_after_seconds > 0
            refusals.append(refusal)
    assert len(refusals) < len(calls)
    return refusals


class Honest:
    """Callers who want one answer at a time, on a connection of their own; each call must succeed."""

    def __init__(self, channel: Any, peer: Metadata, token: str) -> None:
        self._tokens: Any = token_pb2_grpc.TokenServiceStub(channel)
        self._trust: Any = trust_pb2_grpc.TrustServiceStub(channel)
        self._peer = peer
        self._token = token

    async def call_while(self, others: Awaitable[Any]) -> tuple[Any, list[float]]:
        """Call until *others* are done, and at least 25 times each; -> what they came to, seconds per call."""
        until = asyncio.ensure_future(others)
        seconds: list[float] = []
        await asyncio.gather(*(self._call(until.done, seconds) for _ in range(HONEST_WORKERS)))
        return await until, sorted(seconds)

    async def _call(self, is_done: Callable[[], bool], seconds: list[float]) -> None:
        count = 0
        while count < 25 or not is_done():
            begin = time.perf_counter()
            request = token_pb2.IntrospectRequest(token=self._token)
            assert (await self._tokens.Introspect(request, metadata=self._peer)).active
            assert (await self._trust.GetKeys(trust_pb2.GetKeysRequest())).key_set.keys
            seconds.append((time.perf_counter() - begin) / 2)
            count += 1


@pytest.mark.requirement("R52")
async def test_in_a_crowd_honest_calls_succeed_and_the_excess_is_told_to_wait(dev: DevServer) -> None:
    async with Crowd(dev) as staying, Crowd(dev) as crowd:
        honest = Honest(staying.connect(), await staying.log_in_service("stock"), await staying.log_in(crowd.connect()))
        _, idle = await honest.call_while(asyncio.sleep(0))
        before = dev.memory_mb

        await staying.create_users()
        await crowd.idle(CONNECTIONS)
        await crowd.watch(EACH, "orders", "billing")
        await crowd.half_open(EACH)
        (at_health, at_log_in), crowded = await honest.call_while(
            asyncio.gather(crowd.watch_health(EACH), crowd.flood(EACH))
        )
        assert len(at_health) > 0
        assert any(isinstance(refusal, Overloaded) for refusal in at_log_in)
        await asyncio.gather(*map(first_of, crowd.watchers))
        assert not any(watcher.done() for watcher in crowd.watchers)  # they are served as before
        amid = dev.memory_mb
        assert amid - before < MAXIMUM_GROWTH_MB

        await crowd.leave()
        _, after = await honest.call_while(recovered(dev, len(at_health)))
        print(
            f"{CONNECTIONS} connections, {EACH} of each other kind; refused: {len(at_health)} health streams, "
            f"{len(at_log_in)} log-ins; {before:.0f} MB before, {amid:.0f} amid, {dev.memory_mb:.0f} after; p99 of "
            + ", ".join(
                f"{name} {p99(of):.1f} ms" for name, of in [("idle", idle), ("amid", crowded), ("after", after)]
            )
        )


async def recovered(dev: DevServer, refused: int) -> None:
    """Return once crowds came and went, more than there are places for their address, and were served as the first."""
    served = 0
    async with asyncio.timeout(30):
        while served < 10:
            async with Crowd(dev) as next_crowd:
                served += len(await next_crowd.watch_health(EACH)) <= refused
                assert await next_crowd.log_in(next_crowd.connect())


def p99(seconds: list[float]) -> float:
    """In milliseconds, of sorted *seconds*."""
    return seconds[int(len(seconds) * 0.99)] * 1_000
