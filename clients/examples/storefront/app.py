"""The storefront: pages for people, JSON for a single-page application, and a socket that tells a tab when its session
has ended. No handler looks at a cookie; `RULES` say who may see what."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from identity_client import aio, web
from storefront import pages

RULES = {
    "/": web.Rule(public=True),
    "/account": web.Rule(),
    "/basket": web.Rule(),
    "/api": web.Rule(),
    "/live": web.Rule(),
    "/till": web.Rule(any_roles=frozenset({"manager"})),
}

_POLICY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


def create_app(identity: aio.Identity, origin: str, cookies: Literal["session", "jwt"] = "session") -> Starlette:
    """The application at *origin* (http://localhost:8000), its log-ins kept as *cookies* says."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with identity:
            print(f"storefront is ready on {origin}", flush=True)
            yield

    middleware = Middleware(
        web.IdentityMiddleware, identity=identity, name="storefront", origins=[origin], rules=RULES, cookies=cookies
    )
    return Starlette(routes=Shop().routes(), lifespan=lifespan, middleware=[middleware])


class Shop:
    """Three teas and everybody's basket, in memory."""

    def __init__(self) -> None:
        self._baskets: dict[str, Counter[str]] = {}

    def routes(self) -> list[Route | WebSocketRoute | Mount]:
        return [
            Route("/", self.home),
            Route("/login", self.login),
            Route("/password", self.password),
            Route("/account", self.account),
            Route("/till", self.till),
            Route("/basket", self.add, methods=["POST"]),
            Route("/app", self.app),
            Route("/api/me", self.me),
            Route("/api/basket", self.add_by_code, methods=["POST"]),
            WebSocketRoute("/live", self.live),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ]

    async def home(self, _: Request) -> Response:
        return _page(pages.home(web.find_principal(), self._basket()))

    async def login(self, request: Request) -> Response:
        return _page(pages.login(request.query_params.get("reason", ""), request.query_params.get("next", "/account")))

    async def password(self, request: Request) -> Response:
        return _page(pages.password(request.query_params.get("reason", "")))

    async def account(self, _: Request) -> Response:
        return _page(pages.account(web.current_principal(), self._basket()))

    async def till(self, _: Request) -> Response:
        return _page(pages.till(web.current_principal(), self._baskets))

    async def app(self, _: Request) -> Response:
        return _page(pages.application())

    async def add(self, request: Request) -> Response:
        self._put(request.query_params.get("item", ""))
        return RedirectResponse("/", 303)

    async def add_by_code(self, request: Request) -> Response:
        self._put(request.query_params.get("item", ""))
        return JSONResponse(self._basket())

    async def me(self, _: Request) -> Response:
        who = web.current_principal()
        return JSONResponse({"account_id": who.account_id, "roles": who.roles, "basket": self._basket()})

    async def live(self, socket: WebSocket) -> None:
        """Says who is logged in, and then nothing: that it is closed is the news."""
        await socket.accept()
        await socket.send_json({"account_id": web.current_principal().account_id})
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            return

    def _put(self, item: str) -> None:
        if item in pages.ITEMS:
            self._baskets.setdefault(web.current_principal().account_id, Counter())[item] += 1

    def _basket(self) -> dict[str, int]:
        who = web.find_principal()
        return dict(self._baskets.get(who.account_id, {})) if who else {}


def _page(content: str) -> Response:
    return HTMLResponse(content, headers=_POLICY)
