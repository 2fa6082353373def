"""Log-ins by password, which cost a hash each: their rate against bare hashing, what others notice meanwhile; and a
flood of them, beside a flood of an echo.

The service has a hashing thread for every core, and is bound to none, as the hashing and the echo beside it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from identity.config import Settings
from identity.v1 import authentication_pb2_grpc, token_pb2
from tests.bench import echo, service
from tests.bench.echo import Echo
from tests.bench.harness import Figure, in_child, percentile, resident_megabytes
from tests.bench.load import Load
from tests.bench.probing import probing
from tests.bench.service import Caller, Service

CORES = os.cpu_count() or 1
USERS = 8 * CORES
FLOOD = 500
PROBES_PER_SECOND = 100

_DEFAULTS = Settings()


def run(quick: bool) -> Iterable[Figure]:
    seconds, rounds = (1.5, 2) if quick else (5.0, 5)
    with (
        service.placed(hash_workers=CORES) as place,
        service.running(place, is_pinned=False) as ours,
        echo.running(is_pinned=False) as echoing,
        Caller(ours) as caller,
    ):
        users = caller.create_users(USERS)
        token = token_pb2.IntrospectRequest(token=caller.access_token())
        probe = ours.load("TokenService/Introspect", token, metadata=caller.bearer())
        settings = f"{place.durability}; Argon2id {_cost()}, {CORES} threads"
        for figure in (*_logging_in(ours, users, probe, seconds, rounds), *_flooded(ours, echoing, probe, rounds)):
            yield figure.over(settings)


def _cost() -> str:
    return f"{_DEFAULTS.hash_memory_kib // 1024} MiB, t={_DEFAULTS.hash_iterations}, p={_DEFAULTS.hash_lanes}"


# -- log-ins -------------------------------------------------------------------------------------------------------


def _logging_in(ours: Service, users: list[str], probe: Load, seconds: float, rounds: int) -> Iterator[Figure]:
    raw, rates, idle, busy = [], [], [], []
    for _ in range(rounds):
        raw.append(in_child(hash_rate, seconds))
        idle.append(_idle_p99(probe, seconds))
        with probing(probe, PROBES_PER_SECOND) as probed:
            rates.append(in_child(log_in_rate, ours.address, users, seconds))
            busy.append(percentile(probed.latencies(), 0.99))
    shares = [100 * rate / bare for rate, bare in zip(rates, raw, strict=True)]
    yield Figure("Argon2id alone", "per s", raw, more_is_better=True)
    yield Figure("log-in by password", "per s", rates, more_is_better=True)
    yield Figure("log-in by password: share of Argon2id alone", "%", shares, reach=90, more_is_better=True)
    yield Figure("Introspect p99, idle", "ms", [one * 1e3 for one in idle])
    yield Figure("Introspect p99 during log-ins", "ms", [one * 1e3 for one in busy])
    yield Figure("Introspect p99 during log-ins, over idle", "x", _over(busy, idle), reach=2)


def _idle_p99(probe: Load, seconds: float) -> float:
    with probing(probe, PROBES_PER_SECOND) as probed:
        time.sleep(seconds)
        return percentile(probed.latencies(), 0.99)


def hash_rate(seconds: float) -> float:
    """Hashes per second of as many threads as there are cores."""
    end = time.perf_counter() + seconds

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            Argon2id(
                salt=os.urandom(16),
                length=32,
                iterations=_DEFAULTS.hash_iterations,
                lanes=_DEFAULTS.hash_lanes,
                memory_cost=_DEFAULTS.hash_memory_kib,
            ).derive(b"a long enough secret")
            count += 1
        return count

    start = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        count = sum(threads.map(work, range(CORES)))
    return count / (time.perf_counter() - start)


def log_in_rate(address: str, users: list[str], seconds: float) -> float:
    """Log-ins per second, one in flight for each of *users*. Raises AioRpcError."""

    async def run() -> float:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = authentication_pb2_grpc.AuthenticationServiceStub(channel)
            start = time.perf_counter()
            counts = await asyncio.gather(*(_log_in(stub, user, start + seconds) for user in users))
            return sum(counts) / (time.perf_counter() - start)

    return asyncio.run(run())


async def _log_in(stub: authentication_pb2_grpc.AuthenticationServiceAsyncStub, user: str, end: float) -> int:
    count = 0
    while time.perf_counter() < end:
        answer = await stub.Authenticate(service.by_password(user))
        if not answer.tokens.access_token:
            raise RuntimeError("a log-in brought no token")
        count += 1
    return count


# -- a flood -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wave:
    """What became of a wave of log-ins that came at once: seconds to each refusal for want of room, how many were
    hashed, and seconds until all were answered."""

    shed: list[float]
    hashed: int
    seconds: float


def _flooded(ours: Service, echoing: Echo, probe: Load, rounds: int) -> Iterator[Figure]:
    idle, during, waves, echoed, echo_during, memory = [], [], [], [], [], []
    for number in range(rounds):
        idle.append(_idle_p99(probe, 2))
        with probing(echoing.load(probe), PROBES_PER_SECOND) as probed:
            echoed.append(in_child(flood_echo, echoing.address))
            echo_during.append(percentile(probed.latencies(), 0.99))
        before = resident_megabytes(ours.process_id)
        with probing(probe, PROBES_PER_SECOND) as probed:
            waves.append(in_child(flood, ours.address, number))
            during.append(percentile(probed.latencies(), 0.99))
        memory.append(resident_megabytes(ours.process_id) - before)
    name = f"flood of {FLOOD} log-ins at once"
    refused, answered = ([percentile(one, 0.99) for one in each] for each in ([w.shed for w in waves], echoed))
    yield Figure(f"{name}: hashed", "", [wave.hashed for wave in waves])
    yield Figure(f"{name}: until all are answered", "s", [wave.seconds for wave in waves])
    yield Figure(f"{name}: refusal, p50", "ms", [percentile(wave.shed, 0.5) * 1e3 for wave in waves])
    yield Figure(f"{name}: refusal, p99", "ms", [one * 1e3 for one in refused], reach=50)
    yield Figure(f"{name}: an echo's answer to as many, p99", "ms", [one * 1e3 for one in answered])
    yield Figure(f"{name}: refusal over an echo's answer, p99", "x", _over(refused, answered))
    yield Figure(f"{name}: Introspect p99, over idle", "x", _over(during, idle), reach=2)
    yield Figure(f"{name}: Introspect p99, over an echo's meanwhile", "x", _over(during, echo_during))
    yield Figure(f"{name}: memory of the service afterwards, more by", "MB", memory)


def _over(values: Iterable[float], others: Iterable[float]) -> list[float]:
    """Round by round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def flood_echo(address: str) -> list[float]:
    """The same messages, answered by an echo: seconds to each answer."""

    async def run() -> list[float]:
        async with grpc.aio.insecure_channel(address) as channel:
            method: Any = channel.unary_unary(echo.METHOD)
            await channel.channel_ready()
            texts = [service.by_password(f"nobody-{place}").SerializeToString() for place in range(FLOOD)]

            async def call(text: bytes) -> float:
                start = time.perf_counter()
                await method(text)
                return time.perf_counter() - start

            return list(await asyncio.gather(*map(call, texts)))

    return asyncio.run(run())


def flood(address: str, number: int) -> Wave:
    """FLOOD log-ins of as many unknown names at once. Raises AioRpcError: an answer that is neither of the two."""

    async def run() -> Wave:
        async with grpc.aio.insecure_channel(address) as channel:
            stub, shed = authentication_pb2_grpc.AuthenticationServiceStub(channel), list[float]()
            await channel.channel_ready()
            start = time.perf_counter()
            names = [f"nobody-{number}-{place}" for place in range(FLOOD)]
            hashed = sum(await asyncio.gather(*(_is_hashed(stub, name, shed) for name in names)))
            return Wave(shed, hashed, time.perf_counter() - start)

    return asyncio.run(run())


async def _is_hashed(
    stub: authentication_pb2_grpc.AuthenticationServiceAsyncStub, name: str, shed: list[float]
) -> bool:
    start = time.perf_counter()
    try:
        await stub.Authenticate(service.by_password(name))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return True
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
    shed.append(time.perf_counter() - start)
    return False
