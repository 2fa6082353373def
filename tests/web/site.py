"""A small site behind the middleware, and a browserless way to it: what a request says is all up to the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from identity.v1 import account_pb2, role_pb2, session_pb2
from identity_client import web
from identity_client.aio.environment import Connection
from identity_client.aio.identity import Identity
from identity_client.principal import find_principal
from identity_client.trust.source import RevocationSource
from tests.rpc.api import USER_PASSWORD, Api, bearer

ORIGIN = "https://shop.example"
COOKIE = "__Host-session"
RULES = {
    "/": web.Rule(public=True),
    "/account": web.Rule(),
    "/strict": web.Rule(is_confirmed=True),
    "/managers": web.Rule(any_roles=frozenset({"manager"})),
    "/socket": web.Rule(),
    "/events": web.Rule(),
}
SAME = {"sec-fetch-site": "same-origin", "origin": ORIGIN}
"""What a page of the site sends with its requests."""
PAGE = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "navigate", "origin": ORIGIN, "accept": "text/html"}
"""The same when a person sends a form or opens a page."""


async def _whoami(request: Request) -> Response:
    """The caller, as the scope and as the context say it."""
    principal = find_principal()
    assert request.scope["identity"] is principal
    return PlainTextResponse(principal.account_id if principal else "nobody")


async def _kept(_: Request) -> Response:
    return JSONResponse({}, headers={"cache-control": "private, max-age=60"})


class _Events(Response):
    """Events without end. What stops it, and when, is noted at once."""

    def __init__(self, ends: list[str]) -> None:
        super().__init__()
        self._ends = ends

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
                await asyncio.sleep(0.01)
        except OSError as end:
            self._ends.append(f"events {end}")


class Site:
    """The application, and what its long connections saw."""

    def __init__(self, identity: Identity, **settings: Any) -> None:
        self.ends: list[str] = []
        every = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        app = Starlette(
            routes=[
                Route("/account/kept", _kept),
                WebSocketRoute("/socket", self._socket),
                Route("/events", self._events),
                *(Route(path, _whoami, methods=every) for path in ("/", "/account", "/strict", "/managers")),
            ]
        )
        values: dict[str, Any] = {"identity": identity, "name": "storefront", "origins": [ORIGIN], "rules": RULES}
        self.app = web.IdentityMiddleware(app, **(values | settings))

    async def _socket(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text(f"{await socket.receive_text()} from {web.current_principal().account_id}")
        except WebSocketDisconnect as end:
            self.ends.append(f"socket {end.code}")

    async def _events(self, _: Request) -> Response:
        return _Events(self.ends)

    def browser(self, client: tuple[str, int] = ("198.51.100.7", 4711), **headers: str) -> httpx.AsyncClient:
        """A client with a cookie jar of its own."""
        transport = httpx.ASGITransport(self.app, client=client)
        return httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers=headers)


@asynccontextmanager
async def connected(
    api: Api, name: str = "storefront", *roles: str, revocations: RevocationSource | None = None
) -> AsyncIterator[Identity]:
    """An Identity of a front end that may forward where its users are."""
    admin = await api.admin()
    role = role_pb2.CreateRoleRequest(name="front-end", scopes=["identity.forward"])
    await api.roles.CreateRole(role, metadata=admin)
    created = await api.create_service(name, *(roles or ("peer", "front-end")))
    async with Identity(Connection(api.address, name, created.client_secret), revocations=revocations) as identity:
        yield identity


def credentials(username: str = "alice", password: str = USER_PASSWORD) -> dict[str, str]:
    return {"username": username, "password": password}


async def log_in(browser: httpx.AsyncClient, **changes: str) -> httpx.Response:
    answer = await browser.post("/session/login", json=credentials(**changes), headers=SAME)
    assert answer.status_code == 200, answer.text
    return answer


async def until_answer(get: Callable[[], Any], is_wanted: Callable[[httpx.Response], bool]) -> httpx.Response:
    """The first answer that is wanted; TimeoutError after 10 s."""
    async with asyncio.timeout(10):
        while not is_wanted(answer := await get()):
            await asyncio.sleep(0.002)
    assert isinstance(answer, httpx.Response)
    return answer


async def account_id(api: Api, username: str = "alice") -> str:
    request = account_pb2.GetAccountRequest(username=username)
    return (await api.accounts.GetAccount(request, metadata=await api.admin())).account.account_id


async def sessions_of_alice(api: Api) -> list[session_pb2.Session]:
    """Her live sessions in the order of their log-ins, but for that of the question."""
    metadata = bearer((await api.login("alice")).access_token)
    listed = await api.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=metadata)
    return [session for session in listed.sessions if not session.current]


def cookie_of(answer: httpx.Response) -> str:
    """The session token that an answer gives."""
    return SimpleCookie(answer.headers["set-cookie"])[COOKIE].value
