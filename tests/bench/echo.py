"""A bare echo on grpc.aio, in a process of its own: what gRPC in Python costs before any work is done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

from tests.bench.load import Load, ended, serving

METHOD = "/echo.v1.EchoService/Echo"


@dataclass(frozen=True)
class Echo:
    """One that runs."""

    address: str
    process_id: int

    def load(self, like: Load) -> Load:
        """The messages and the metadata of *like*, sent here."""
        return replace(like, address=self.address, process_id=self.process_id, method=METHOD)


@contextmanager
def running(is_pinned: bool = True) -> Iterator[Echo]:
    with serving(serve, is_pinned=is_pinned) as (address, process_id):
        yield Echo(address, process_id)


def serve(pipe: Any) -> None:
    """Serve until told to end; says its address."""

    async def run() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handler(_echo),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(f"127.0.0.1:{port}")
        await asyncio.to_thread(ended, pipe)
        await server.stop(None)

    asyncio.run(run())


async def _echo(request: bytes, _context: Any) -> bytes:
    return request


def handler(echo: Any) -> grpc.GenericRpcHandler:
    """What a server is given to answer METHOD by *echo*."""
    _, service, method = METHOD.split("/")
    return grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(echo)})
