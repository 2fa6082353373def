"""Redis killed, hung, emptied and replaced by an old copy, again and again, while everything else goes on.

The service is one process, its peers and callers are another. What a call of each kind takes in each phase is told with
`-rP`, and how many times that of the normal one it is at the 99th percentile.

Invariants, for a peer that follows the stream and for one that asks Redis about each call:
- a token whose revocation was acknowledged is accepted by no call that starts more than the bound later;
- no call fails: neither log-ins, refreshes and introspections nor calls of peers.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from identity_client import status
from tests.faults.mirrored_server import MirroredServer
from tests.mirror.conftest import Mirrored
from tests.mirror.test_peers import revoke_token
from tests.peers.orders import Peer, running
from tests.redis_server import RedisServer
from tests.rpc.api import Api, Metadata

ROUNDS = 3 * int(os.environ.get("IDENTITY_TEST_ROUNDS", "1"))
REVOCATIONS = int(os.environ.get("IDENTITY_TEST_REVOCATIONS", "2000"))
BOUND_SECONDS = 2.0
"""The *max_staleness* of both peers: what they state as their bound."""

CALLS = 30 if ROUNDS == 3 else 300
"""How many calls of each kind a fault has to last, and the time before it: hundreds, where the share is told that is
slow. Those that are under way when Redis hangs wait for it, so few calls would make them look many."""


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def server(tmp_path: Path, redis_server: RedisServer) -> Iterator[MirroredServer]:
    started = MirroredServer(tmp_path, redis_server.url, REVOCATIONS)
    yield started
    started.stop()


@pytest.fixture
async def mirrored(server: MirroredServer, redis_server: RedisServer) -> AsyncIterator[Mirrored]:
    """What the server writes, seen from outside."""
    api = Api(None, server.address)  # type: ignore[arg-type]
    yield Mirrored(api, redis_server.url, "identity:", redis_server.client)
    await api.channel.close()


@dataclass
class History:
    """Every call: its kind, when it began, how long it took, and the reason of a refusal, `OK` without one."""

    phase: str = "normal"
    seconds: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)
    accepted_late: list[str] = field(default_factory=list)
    refused: int = 0

    async def made(self, kind: str, call: Awaitable[object]) -> str:
        phase, start = self.phase, time.monotonic()
        try:
            await call
            reason = "OK"
        except grpc.aio.AioRpcError as error:
            reason = status.from_rpc_error(error).reason
        self.seconds[kind, phase].append(time.monotonic() - start)
        return reason

    async def must_succeed(self, kind: str, call: Awaitable[object]) -> None:
        phase = self.phase
        if (reason := await self.made(kind, call)) != "OK":
            self.failures.append(f"{kind} ({phase}): {reason}")

    async def lasts(self, phase: str) -> None:
        """Return once CALLS more calls of each kind were made."""
        self.phase = phase
        kinds = {kind for kind, _ in self.seconds}
        wanted = {kind: self._count(kind) + CALLS for kind in kinds}
        async with asyncio.timeout(100):
            while any(self._count(kind) < count for kind, count in wanted.items()):
                await asyncio.sleep(0.01)

    def _count(self, kind: str) -> int:
        return sum(len(seconds) for (each, _), seconds in self.seconds.items() if each == kind)

    def report(self) -> str:
        lines = [
            f"{kind:18} {phase:8} {len(seconds):6} calls, p50 {_share(seconds, 0.5):6.1f} ms, p99 "
            f"{_share(seconds, 0.99):6.1f} ms, {self._times_normal(kind, seconds):5.2f}x"
            for (kind, phase), seconds in sorted(self.seconds.items())
        ]
        return "\n".join([*lines, f"{self.refused} calls with revoked tokens refused"])

    def _times_normal(self, kind: str, seconds: list[float]) -> float:
        return _share(seconds, 0.99) / _share(self.seconds[kind, "normal"], 0.99)


def _share(seconds: list[float], share: float) -> float:
    return sorted(seconds)[int(share * (len(seconds) - 1))] * 1_000


class Load:
    """Everything that goes on meanwhile."""

    def __init__(self, api: Api, peers: list[Peer], history: History, introspecting: Metadata) -> None:
        self._api = api
        self._peers = peers
        self._history = history
        self._introspecting = introspecting
        self._revoked: list[tuple[str, float]] = []
        self._is_over = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        jobs = (self._log_in, self._refresh, self._introspect, self._call, self._revoke, self._use_revoked)
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(self._repeat(job))
            try:
                yield
            finally:
                self._is_over = True

    async def prepare(self) -> None:
        self._tokens = await self._api.login("dave")

    async def has_aged(self) -> None:
        """Return once a token must be refused: before, nothing that a fault does would be seen."""
        while not self._revoked or time.monotonic() <= self._revoked[0][1] + BOUND_SECONDS:
            await asyncio.sleep(0.01)

    async def _repeat(self, job: Callable[[], Awaitable[None]]) -> None:
        while not self._is_over:
            await job()
            await asyncio.sleep(0.002)

    async def _log_in(self) -> None:
        await self._history.must_succeed("log-in", self._api.login("carol"))

    async def _refresh(self) -> None:
        async def refresh() -> None:
            self._tokens = await self._api.refresh(self._tokens.refresh_token)

        await self._history.must_succeed("refresh", refresh())

    async def _introspect(self) -> None:
        call = self._api.introspect(self._tokens.access_token, self._introspecting)
        await self._history.must_succeed("introspect", call)

    async def _call(self) -> None:
        for peer in self._peers:
            await self._history.must_succeed(peer.name, peer.call(self._tokens.access_token))

    async def _revoke(self) -> None:
        token = (await self._api.login("carol")).access_token
        await self._call_all_with(token)
        await revoke_token(self._api, token)
        self._revoked.append((token, time.monotonic()))
        await asyncio.sleep(0.05)

    async def _call_all_with(self, token: str) -> None:
        for peer in self._peers:
            await self._history.must_succeed(peer.name, peer.call(token))

    async def _use_revoked(self) -> None:
        """The oldest one, and the newest."""
        for token, acknowledged in [*self._revoked[:1], *self._revoked[-3:]]:
            for peer in self._peers:
                start = time.monotonic()
                reason = await self._history.made(f"{peer.name}, revoked", peer.call(token))
                if reason == "OK" and start > acknowledged + BOUND_SECONDS:
                    late = start - acknowledged
                    self._history.accepted_late.append(f"{peer.name} {self._history.phase}: {late:.2f} s after")
                self._history.refused += reason == "TOKEN_REVOKED"


Harm = Callable[[RedisServer, History], Awaitable[None]]


async def kill(server: RedisServer, history: History) -> None:
    server.kill()
    await history.lasts("killed")
    await asyncio.to_thread(server.start)


async def hang(server: RedisServer, history: History) -> None:
    server.pause()
    await history.lasts("hung")
    server.resume()


async def flush(server: RedisServer, history: History) -> None:
    server.client.flushall()


async def fail_over(server: RedisServer, history: History) -> None:
    """To a copy that lacks the last revocations: what a replica may be that takes over."""
    server.client.save()
    await history.lasts("normal")
    server.kill()
    await asyncio.to_thread(server.start)
    (server.folder / "dump.rdb").unlink()


@pytest.mark.requirement("R9")
@pytest.mark.requirement("R27")
@pytest.mark.timeout(3_000)
@pytest.mark.parametrize("harm", [kill, hang, flush, fail_over])
async def test_nothing_revoked_is_accepted_and_no_call_fails(
    mirrored: Mirrored, server: MirroredServer, redis_server: RedisServer, harm: Harm
) -> None:
    api, history = mirrored.api, History()
    await api.create_role("reader", "orders.read", "orders.list")
    for name in ("carol", "dave"):
        await api.create_user(name, "clerk", "reader")
    introspecting = await api.peer("inspector")
    await seconds_until_whole(mirrored, server)
    options: dict[str, Any] = {"max_staleness_seconds": BOUND_SECONDS, "on_stale": "confirm"}
    async with (
        running(api, "streaming", **options) as streaming,
        running(api, "asking", revocations=mirrored.revocations(), **options) as asking,
    ):
        load, rebuilds = Load(api, [streaming, asking], history, introspecting), []
        await load.prepare()
        async with load.running():
            await load.has_aged()
            for _ in range(ROUNDS):
                await history.lasts("normal")
                await harm(redis_server, history)
                history.phase = "building"
                rebuilds.append(await seconds_until_whole(mirrored, server))
    print(history.report())
    print(f"mirror of {REVOCATIONS} whole again within {max(rebuilds):.2f} s, {len(rebuilds)} times")
    assert history.accepted_late == []
    assert history.failures == []
    assert history.refused > 0


async def seconds_until_whole(mirrored: Mirrored, server: MirroredServer) -> float:
    """How long it takes from here until the mirror vouches for everything."""
    start, version = time.monotonic(), await asyncio.to_thread(server.version)
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(is_whole, mirrored, version):
            await asyncio.sleep(0.01)
    return time.monotonic() - start


def is_whole(mirrored: Mirrored, version: int) -> bool:
    is_caught_up = mirrored.sentinel().get("version", -1) >= version
    return is_caught_up and bool(mirrored.client.exists(f"{mirrored.prefix}fresh"))
