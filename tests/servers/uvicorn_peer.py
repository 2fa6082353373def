"""A peer that uvicorn runs with several workers: each answers HTTP, and calls on a guarded gRPC server of its own,
which live as long as the application does."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from identity_client import aio
from tests.clients.shapes import SERVICE, TABLE, Handlers

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
here: dict[str, Any] = {}


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    async with aio.Identity.from_env() as identity:
        server = grpc.aio.server(interceptors=[identity.guard("shapes", rules=TABLE)])
        handlers = grpc.method_handlers_generic_handler(SERVICE, Handlers().table(is_sync=False))
        server.add_generic_rpc_handlers((handlers,))
        here["port"] = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield
        await server.stop(1)
    print("worker left cleanly", flush=True)


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI protocol, by hand."""
    if scope["type"] == "lifespan":
        await receive()
        async with lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = json.dumps({"process_id": os.getpid(), "port": here["port"]}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
