"""From the acknowledgement of a revocation to the first refusal at a peer: with that peer alone, and with 200 streams.

The time ends with the answer that refuses, and so has a call of the peer in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from identity.v1 import revocation_pb2, revocation_pb2_grpc
from identity_client import aio
from identity_client.access.rules import Rule
from tests.bench import echo, service
from tests.bench.harness import Figure, percentile
from tests.bench.load import cpu_seconds_of, ended, generator, serving, stay_on
from tests.bench.service import PEER, Caller, Metadata, Service
from tests.bench.streams import watching

_CALL_LIMIT_SECONDS = 10.0


@dataclass(frozen=True)
class Scene:
    """A service, one guarded peer of it, and how many other streams it has."""

    ours: Service
    peer: str
    others: int


@dataclass(frozen=True)
class Round:
    """Seconds of each revocation from its acknowledgement, and CPU seconds of the service for one."""

    delays: list[float]
    cpu_seconds: float


def run(quick: bool) -> Iterable[Figure]:
    streams, revocations, rounds = (20, 20, 2) if quick else (200, 200, 5)
    taken: list[list[Round]] = [[], []]
    with ExitStack() as stack:
        scenes = [stack.enter_context(_scene(others)) for others in (0, streams - 1)]
        for _ in range(rounds):
            for scene, times in zip(scenes, taken, strict=True):
                times.append(_revoked(scene, revocations))
        settings = scenes[0].ours.place.durability
    for count, times, reach, moonshot in ((1, taken[0], 10, 5), (streams, taken[1], 50, 25)):
        name = f"revoked to refused, {count} stream{'s' if count > 1 else ''}"
        p50, p99 = ([percentile(one.delays, share) * 1e3 for one in times] for share in (0.5, 0.99))
        yield Figure(f"{name}: p50", "ms", p50, settings=settings)
        yield Figure(f"{name}: p99", "ms", p99, reach, moonshot, settings=settings)
        microseconds = [one.cpu_seconds * 1e6 for one in times]
        yield Figure(f"{name}: CPU of the service for each", "us", microseconds, settings=settings)


@contextmanager
def _scene(others: int) -> Iterator[Scene]:
    with ExitStack() as stack:
        place = stack.enter_context(service.placed(**service.CHEAP_HASH))
        ours = stack.enter_context(service.running(place))
        with Caller(ours) as caller:
            own = caller.bearer()
        if others:
            stack.enter_context(watching(ours.address, own, others)).joined()
        address, _ = stack.enter_context(serving(serve_peer, ours.address, place.peer_secret, is_pinned=False))
        yield Scene(ours, address, others)


def serve_peer(address: str, secret: str, pipe: Any) -> None:
    """A guarded echo that follows the service at *address*; says its own address once it is ready."""

    async def serve() -> None:
        rules = {echo.METHOD: Rule()}
        async with aio.Identity(aio.Connection(address, PEER, secret)) as identity:
            server = grpc.aio.server(interceptors=[identity.guard(PEER, rules=rules)])
            server.add_generic_rpc_handlers((echo.handler(_echo),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            pipe.send(f"127.0.0.1:{port}")
            await asyncio.to_thread(ended, pipe)
            await server.stop(None)

    stay_on(max)
    asyncio.run(serve())


async def _echo(request: bytes, _context: Any) -> bytes:
    return request


def _revoked(scene: Scene, count: int) -> Round:
    with Caller(scene.ours) as caller:
        admin = caller.bearer(service.OPERATOR)
        logged_in = [caller.log_in() for _ in range(count)]
    sessions = [(one.session_id, one.access_token) for one in logged_in]
    with generator() as pool:
        cpu = cpu_seconds_of(scene.ours.process_id)
        delays: list[float] = pool.apply(revoke, (scene.ours.address, scene.peer, admin, sessions))
        return Round(delays, (cpu_seconds_of(scene.ours.process_id) - cpu) / count)


def revoke(address: str, peer: str, admin: Metadata, sessions: list[tuple[str, str]]) -> list[float]:
    """Seconds for each of *sessions* (id, access token), one after the other. Raises AioRpcError, TimeoutError."""

    async def run() -> list[float]:
        async with grpc.aio.insecure_channel(address) as ours, grpc.aio.insecure_channel(peer) as theirs:
            stub: Any = revocation_pb2_grpc.RevocationServiceStub(ours)
            call: Any = theirs.unary_unary(echo.METHOD)
            delays = []
            for grant_id, token in sessions:
                await call(b"x", metadata=_bearer(token))  # accepted, and from now on remembered
                await stub.RevokeGrant(revocation_pb2.RevokeGrantRequest(grant_id=grant_id), metadata=admin)
                acknowledged = time.perf_counter()
                async with asyncio.timeout(_CALL_LIMIT_SECONDS):
                    await _refused(call, token)
                delays.append(time.perf_counter() - acknowledged)
            return delays

    return asyncio.run(run())


async def _refused(call: Any, token: str) -> None:
    while True:
        try:
            await call(b"x", metadata=_bearer(token))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            return


def _bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)
