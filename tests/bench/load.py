"""Servers in processes of their own and a load on them from another: the rate, and what CPU a call costs the server.

The CPU is steadier than the rate. Servers share one core and the load generator has another: a process that moves
between cores takes up to twice as long for the same call. The generator is h2load where it is installed and every call
is the same, else grpc.aio; what it could send with its core to itself, its ceiling, comes with every load.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.pool import Pool
from typing import Any

import grpc
import grpc.aio

from tests.bench import h2load
from tests.bench.h2load import Post
from tests.bench.harness import percentile

IN_FLIGHT = 32
_PROCESS_CLOCK = 2  # clock_getcpuclockid(3) of Linux: a clock of another process is named by its id
_context = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Load:
    """Calls of one unary method of the server in process *process_id*; it sends *requests* in turn."""

    address: str
    process_id: int
    method: str
    requests: Sequence[bytes]
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def post(self) -> Post:
        """The same call for h2load, after one that shows what a good reply is. Raises RpcError."""
        with grpc.insecure_channel(self.address) as channel:
            call: Any = channel.unary_unary(self.method)
            reply = call(self.requests[0], metadata=self.metadata, timeout=10)
        return Post.of_grpc(self.address, self.process_id, self.method, self.requests[0], self.metadata, len(reply))


@dataclass(frozen=True)
class Taken:
    """Calls per second, and for each the CPU seconds (user and system) of the server and of the load generator."""

    rate: float
    cpu_seconds: float
    generator_seconds: float
    p50_seconds: float
    p99_seconds: float


@contextmanager
def serving(serve: Callable[..., None], *arguments: object, is_pinned: bool = True) -> Iterator[tuple[Any, int]]:
    """Runs *serve*, which is also given a pipe, in a process of its own; -> what it said first, and its process id.

    It ends once the pipe brings something. EOFError: it ended before it said anything.
    """
    here, there = _context.Pipe()
    process = _context.Process(target=_serve, args=(serve, is_pinned, *arguments, there))
    process.start()
    there.close()
    assert process.pid is not None
    try:
        yield here.recv(), process.pid
    finally:
        here.close()
        process.join()


def _serve(serve: Callable[..., None], is_pinned: bool, *arguments: object) -> None:
    if is_pinned:
        stay_on(min)
    serve(*arguments)


def stay_on(choose: Callable[[set[int]], int]) -> None:
    """Keep this process on one of its cores; those it starts stay there, too."""
    os.sched_setaffinity(0, {choose(os.sched_getaffinity(0))})


def ended(pipe: Any) -> None:
    """Waits until whoever started this process wants it to end."""
    pipe.poll(None)


def generator() -> Pool:
    """The load generator: one process, on a core of its own where there is one."""
    return _context.Pool(1, stay_on, (max,))


def in_turns(loads: Sequence[Load | Post], calls: int, rounds: int) -> list[list[Taken]]:
    """What each load took, round by round (A B C, A B C): what slows the machine down slows all of them.

    A round before them is not counted: node translates what runs often, and caches fill.
    """
    prepared = [_prepared(load) for load in loads]
    with generator() as pool:
        for load in prepared:
            pool.apply(take, (load, calls))
        taken = [[pool.apply(take, (load, calls)) for load in prepared] for _ in range(rounds)]
    return [list(column) for column in zip(*taken, strict=True)]


def _prepared(load: Load | Post) -> Load | Post:
    if isinstance(load, Load) and len(load.requests) == 1 and h2load.is_here():
        return load.post()
    return load


def take(load: Load | Post, calls: int) -> Taken:
    """Makes so many calls, IN_FLIGHT at a time, after a tenth of them to warm up. Raises where one fails."""
    return _take_by_h2load(load, calls) if isinstance(load, Post) else asyncio.run(_take(load, calls))


def _take_by_h2load(post: Post, calls: int) -> Taken:
    h2load.send(post, max(IN_FLIGHT, calls // 10), IN_FLIGHT)
    cpu, own = cpu_seconds_of(post.process_id), h2load.cpu_seconds()
    sent = h2load.send(post, calls, IN_FLIGHT)
    used, generated = cpu_seconds_of(post.process_id) - cpu, h2load.cpu_seconds() - own
    return _taken(calls, sent.seconds, used, generated, sent.latencies)


async def _take(load: Load, calls: int) -> Taken:
    async with grpc.aio.insecure_channel(load.address) as channel:
        method: Any = channel.unary_unary(load.method)
        await _call(method, load, calls // 10)
        cpu, own, start = cpu_seconds_of(load.process_id), time.process_time(), time.perf_counter()
        latencies = await _call(method, load, calls)
        elapsed, used = time.perf_counter() - start, cpu_seconds_of(load.process_id) - cpu
    return _taken(calls, elapsed, used, time.process_time() - own, latencies)


def _taken(calls: int, elapsed: float, used: float, generated: float, latencies: Sequence[float]) -> Taken:
    p50, p99 = (percentile(latencies, share) for share in (0.5, 0.99))
    return Taken(calls / elapsed, used / calls, generated / calls, p50, p99)


async def _call(method: Any, load: Load, calls: int) -> list[float]:
    numbers, latencies = iter(range(calls)), []

    async def work() -> None:
        for number in numbers:
            start = time.perf_counter()
            await method(load.requests[number % len(load.requests)], metadata=load.metadata)
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return latencies


def cpu_seconds_of(process_id: int) -> float:
    """What a process has used, in user and system; /proc/PID/stat tells it in steps of 10 ms only."""
    return time.clock_gettime((~process_id << 3) | _PROCESS_CLOCK)
