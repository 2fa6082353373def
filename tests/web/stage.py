"""The storefront and an attacker's site, each on a real port, under host names that a browser takes for neighbours.

shop.site.localhost is the storefront, evil.site.localhost a sibling of the same site, 127.0.0.1 another site.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from html import escape
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from storefront.app import create_app

from identity_client.aio.identity import Identity
from tests.web.serving import listen, serving


class Stage:
    """Where everything is, and what the storefront was asked."""

    def __init__(self) -> None:
        self.origin = ""
        self.sibling = ""
        self.stranger = ""
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        """Method or `WS`, path, and headers of every request to the storefront."""
        self.answers: list[tuple[str, str, int]] = []
        """Method, path and status of every answer."""
        self.held: dict[str, Callable[[], Awaitable[None]]] = {}
        """By path: what its answers wait for."""

    def headers_of(self, method: str, path: str) -> dict[str, str]:
        """Those of the latest such request."""
        return next(headers for *what, headers in reversed(self.seen) if what == [method, path])

    def recording(self, app: Callable[..., Any]) -> Callable[..., Any]:
        async def recorded(scope: Any, receive: Any, send: Any) -> None:
            method = "WS" if scope["type"] == "websocket" else scope["method"]
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            self.seen.append((method, scope["path"], headers))

            async def noting(message: Any) -> None:
                if message["type"] == "http.response.start":
                    self.answers.append((method, scope["path"], message["status"]))
                    if scope["path"] in self.held:
                        await self.held[scope["path"]]()
                await send(message)

            await app(scope, receive, noting)

        return recorded


async def _form(request: Request) -> Response:
    """A page that sends a form as soon as it is opened."""
    inputs = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in request.query_params.items()
        if name != "to"
    )
    to = escape(request.query_params["to"])
    return HTMLResponse(f'<form method="post" action="{to}">{inputs}</form><script>document.forms[0].submit()</script>')


async def _blank(_: Request) -> Response:
    return HTMLResponse("<title>evil</title>")


@asynccontextmanager
async def staged(identity: Identity, cookies: Literal["session", "jwt"]) -> AsyncIterator[Stage]:
    """Both, for an identity that is entered already."""
    stage = Stage()
    shop, evil = listen(), listen()
    stage.origin = f"http://shop.site.localhost:{shop.getsockname()[1]}"
    stage.sibling = f"http://evil.site.localhost:{evil.getsockname()[1]}"
    stage.stranger = f"http://127.0.0.1:{evil.getsockname()[1]}"
    attacker = Starlette(routes=[Route("/form", _form), Route("/", _blank)])
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(stage.recording(create_app(identity, stage.origin, cookies)), shop))
        await stack.enter_async_context(serving(attacker, evil))
        yield stage


async def play(story: Callable[[], None]) -> None:
    """Runs a story of the browser while this loop serves it."""
    await asyncio.to_thread(story)
