"""Servers in processes of their own and a load on them from another: the rate, and what CPU a call costs the server.

The CPU is steadier than the rate: the load generator is as slow as the server. Servers share one core and the load
generator has another: a process that moves between cores takes up to twice as long for the same call.
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

import grpc.aio

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


@dataclass(frozen=True)
class Taken:
    """Calls per second, and the server's CPU seconds (user and system) for each."""

    rate: float
    cpu_seconds: float


@contextmanager
def serving(serve: Callable[..., None], *arguments: object) -> Iterator[tuple[Any, int]]:
    """Runs *serve*, which is also given a pipe, in a process of its own; -> what it said first, and its process id.

    It ends once the pipe brings something. EOFError: it ended before it said anything.
    """
    here, there = _context.Pipe()
    process = _context.Process(target=_serve, args=(serve, *arguments, there))
    process.start()
    there.close()
    assert process.pid is not None
    try:
        yield here.recv(), process.pid
    finally:
        here.close()
        process.join()


def _serve(serve: Callable[..., None], *arguments: object) -> None:
    _stay_on(min)
    serve(*arguments)


def _stay_on(choose: Callable[[set[int]], int]) -> None:
    os.sched_setaffinity(0, {choose(os.sched_getaffinity(0))})


def ended(pipe: Any) -> None:
    """Waits until whoever started this process wants it to end."""
    pipe.poll(None)


def generator() -> Pool:
    """The load generator: one process, on a core of its own where there is one."""
    return _context.Pool(1, _stay_on, (max,))


def in_turns(loads: Sequence[Load], calls: int, rounds: int) -> list[list[Taken]]:
    """What each load took, round by round (A B C, A B C): what slows the machine down slows all of them."""
    with generator() as pool:
        taken = [[pool.apply(take, (load, calls)) for load in loads] for _ in range(rounds)]
    return [list(column) for column in zip(*taken, strict=True)]


def take(load: Load, calls: int) -> Taken:
    """Makes so many calls, IN_FLIGHT at a time, after a tenth of them to warm up. Raises AioRpcError: one failed."""
    return asyncio.run(_take(load, calls))


async def _take(load: Load, calls: int) -> Taken:
    async with grpc.aio.insecure_channel(load.address) as channel:
        method: Any = channel.unary_unary(load.method)
        await _call(method, load, calls // 10)
        cpu, start = cpu_seconds_of(load.process_id), time.perf_counter()
        await _call(method, load, calls)
        elapsed, used = time.perf_counter() - start, cpu_seconds_of(load.process_id) - cpu
    return Taken(calls / elapsed, used / calls)


async def _call(method: Any, load: Load, calls: int) -> None:
    numbers = iter(range(calls))

    async def work() -> None:
        for number in numbers:
            await method(load.requests[number % len(load.requests)], metadata=load.metadata)

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


def cpu_seconds_of(process_id: int) -> float:
    """What a process has used, in user and system; /proc/PID/stat tells it in steps of 10 ms only."""
    return time.clock_gettime((~process_id << 3) | _PROCESS_CLOCK)
