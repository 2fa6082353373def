"""What a caller of something else notices: calls at a steady rate, however long each takes."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio

from tests.bench.load import Load

_context = multiprocessing.get_context("spawn")


class Probe:
    """Probes from its making until `latencies` is asked for."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def latencies(self) -> list[float]:
        """Ends the probing; -> seconds from when each call was due to its answer. Raises RuntimeError: one failed."""
        self._pipe.send("end")
        found = self._pipe.recv()
        if isinstance(found, str):
            raise RuntimeError(f"a probe failed: {found}")
        latencies: list[float] = found
        return latencies


@contextmanager
def probing(load: Load, per_second: float) -> Iterator[Probe]:
    """Probes by the calls of *load*, the first of which has been answered."""
    here, there = _context.Pipe()
    process = _context.Process(target=_probe, args=(load, per_second, there))
    process.start()
    there.close()
    try:
        here.recv()
        yield Probe(here)
    finally:
        here.close()
        process.join()


def _probe(load: Load, per_second: float, pipe: Any) -> None:
    try:
        pipe.send(asyncio.run(_probed(load, per_second, pipe)))
    except grpc.aio.AioRpcError as error:
        pipe.send(f"{error.code().name} {error.details()}")


async def _probed(load: Load, per_second: float, pipe: Any) -> list[float]:
    async with grpc.aio.insecure_channel(load.address) as channel:
        method: Any = channel.unary_unary(load.method)

        async def call(due: float) -> float:
            while True:
                try:
                    await method(load.requests[0], metadata=load.metadata, timeout=30)
                    return time.perf_counter() - due
                except grpc.aio.AioRpcError as error:
                    # Where thousands connect at once grpc cancels some calls, a bare server's too: as the client
                    # library does, it is repeated, and all of it is waiting.
                    if error.code() is not grpc.StatusCode.CANCELLED:
                        raise

        await call(0)
        pipe.send("ready")
        calls, due = [], time.perf_counter()
        while not pipe.poll():
            calls.append(asyncio.create_task(call(due)))
            due += 1 / per_second
            await asyncio.sleep(max(0, due - time.perf_counter()))
        return list(await asyncio.gather(*calls))
