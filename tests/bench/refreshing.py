"""Refresh, durable, 32 sessions in flight, each of which renews by the token that its last renewal brought.

Every request is another one, so that the load generator is a Python client: its ceiling stands beside the rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import grpc.aio

from identity.v1 import token_pb2, token_pb2_grpc
from tests.bench import database, service
from tests.bench.harness import Figure, percentile
from tests.bench.load import IN_FLIGHT, Taken, cpu_seconds_of, generator
from tests.bench.service import Caller

NAME = f"Refresh, durable, {IN_FLIGHT} in flight"


def run(quick: bool) -> Iterable[Figure]:
    calls, rounds = (640, 3) if quick else (3_200, 7)
    with service.placed(**service.CHEAP_HASH) as place, service.running(place) as ours:
        with Caller(ours) as caller:
            tokens = [caller.log_in().refresh_token for _ in range(IN_FLIGHT)]
        taken = []
        with generator() as pool:
            for _ in range(rounds + 1):
                one, tokens = pool.apply(renew, (ours.address, ours.process_id, tokens, calls))
                taken.append(one)
        reach = 1_000 if database.is_sqlite(place.settings.database) else 700
        yield from _figures(taken[1:], reach, place.durability)  # the first one warmed up


def _figures(taken: list[Taken], reach: float, settings: str) -> Iterable[Figure]:
    for figure in (
        Figure(NAME, "per s", [one.rate for one in taken], reach, 1_500, more_is_better=True),
        Figure(f"{NAME}: CPU of the server", "us", [one.cpu_seconds * 1e6 for one in taken]),
        Figure(f"{NAME}: p50", "ms", [one.p50_seconds * 1e3 for one in taken]),
        Figure(f"{NAME}: p99", "ms", [one.p99_seconds * 1e3 for one in taken]),
        Figure(
            f"{NAME}: ceiling of the load generator",
            "per s",
            [1 / one.generator_seconds for one in taken],
            more_is_better=True,
        ),
    ):
        yield figure.over(settings)


def renew(address: str, process_id: int, tokens: list[str], calls: int) -> tuple[Taken, list[str]]:
    """*calls* renewals, each session by itself; -> what they took, and the newest tokens. Raises AioRpcError."""

    async def renewing() -> tuple[Taken, list[str]]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub, latencies = token_pb2_grpc.TokenServiceStub(channel), list[float]()
            await channel.channel_ready()
            cpu, own, start = cpu_seconds_of(process_id), time.process_time(), time.perf_counter()
            newest = await asyncio.gather(*(_renew(stub, token, calls // len(tokens), latencies) for token in tokens))
            elapsed, used = time.perf_counter() - start, cpu_seconds_of(process_id) - cpu
            generated = time.process_time() - own
        p50, p99 = (percentile(latencies, share) for share in (0.5, 0.99))
        count = len(latencies)
        return Taken(count / elapsed, used / count, generated / count, p50, p99), newest

    return asyncio.run(renewing())


async def _renew(stub: token_pb2_grpc.TokenServiceAsyncStub, token: str, times: int, latencies: list[float]) -> str:
    for _ in range(times):
        start = time.perf_counter()
        answer = await stub.Refresh(token_pb2.RefreshRequest(refresh_token=token))
        latencies.append(time.perf_counter() - start)
        if answer.tokens.refresh_token == token or not answer.tokens.access_token:
            raise RuntimeError("a renewal brought nothing new")
        token = answer.tokens.refresh_token
    return token
