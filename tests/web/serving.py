"""An ASGI application behind a real server, on a port of loopback of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


def listen() -> socket.socket:
    """A socket on a free port of 127.0.0.1, so that an application can be told its origin before it is made."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


@asynccontextmanager
async def serving(app: Callable[..., Any], listener: socket.socket) -> AsyncIterator[str]:
    """Serves *app* until the block ends; -> host:port."""
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", ws="websockets-sansio", proxy_headers=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    ticking = asyncio.ensure_future(server.main_loop())
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await ticking
        await server.shutdown(sockets=[listener])
