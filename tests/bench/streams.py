"""Many streams of revocations, as if of as many peers: each on a connection of its own, all in one process.

They take in what comes and resume where they were when they are cut, but hold nothing: else this process would be the
measure.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from identity.v1 import trust_pb2
from identity_client.aio.endpoints import CHANNEL_OPTIONS
from tests.bench.load import stay_on
from tests.bench.service import Metadata

_CUT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""How a stream ends that was cut. grpc cancels some, a bare server's too, where thousands connect at once."""
_METHOD = "/identity.v1.TrustService/WatchTrust"
_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
_LONGEST_DELAY_SECONDS = 1.0  # as in identity_client.aio.stream, whose first attempt comes at once, too
_FIRST_DELAY_SECONDS = 0.1
_context = multiprocessing.get_context("spawn")


class Fleet:
    """So many streams, in a process of their own."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def joined(self, timeout_seconds: float = 60) -> float:
        """When every stream had its first heartbeat since this was last asked (time.monotonic). Raises TimeoutError."""
        if not self._pipe.poll(timeout_seconds):
            raise TimeoutError(f"not every stream is there after {timeout_seconds:g} s")
        when: float = self._pipe.recv()
        return when


@contextmanager
def watching(address: str, metadata: Metadata, count: int) -> Iterator[Fleet]:
    """*count* streams from the service at *address*, for as long as they are needed."""
    here, there = _context.Pipe()
    process = _context.Process(target=_watch, args=(address, metadata, count, there))
    process.start()
    there.close()
    try:
        yield Fleet(here)
    finally:
        here.close()
        process.join()


def _watch(address: str, metadata: Metadata, count: int, pipe: Any) -> None:
    stay_on(max)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_Streams(address, metadata, count, pipe).run())


@dataclass
class _Streams:
    address: str
    metadata: Metadata
    count: int
    pipe: Any

    async def run(self) -> None:
        self._here: set[int] = set()
        self._is_whole = False
        tasks = [asyncio.create_task(self._follow(number)) for number in range(self.count)]
        await asyncio.to_thread(self.pipe.poll, None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, number: int) -> None:
        async with grpc.aio.insecure_channel(self.address, options=_OPTIONS) as channel:
            watch: Any = channel.unary_stream(_METHOD, trust_pb2.WatchTrustRequest.SerializeToString)
            request, failures = trust_pb2.WatchTrustRequest(), 0
            while True:
                try:
                    async for event in watch(request, metadata=self.metadata):
                        if number not in self._here and (heartbeat := _heartbeat(event)):
                            request, failures = _resuming(heartbeat), 0
                            self._join(number)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _CUT:
                        raise
                self._here.discard(number)
                self._is_whole = False
                failures += 1
                most = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0**failures)
                await asyncio.sleep(random.uniform(0, most) if failures > 1 else 0)

    def _join(self, number: int) -> None:
        self._here.add(number)
        if len(self._here) == self.count and not self._is_whole:
            self._is_whole = True
            self.pipe.send(time.monotonic())


def _heartbeat(event: bytes) -> trust_pb2.Heartbeat | None:
    message = trust_pb2.WatchTrustResponse.FromString(event)
    return message.heartbeat if message.HasField("heartbeat") else None


def _resuming(heartbeat: trust_pb2.Heartbeat) -> trust_pb2.WatchTrustRequest:
    return trust_pb2.WatchTrustRequest(epoch=heartbeat.epoch, version=heartbeat.version)
