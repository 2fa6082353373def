"""The middleware itself: between the server and the application, for every request and web socket."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Literal

from identity.v1.authentication_pb2 import GRANT_TYPE_SESSION, GRANT_TYPE_TOKENS
from identity_client.access.rules import Rule, RuleError
from identity_client.access.setup import DEFAULT_GROUP
from identity_client.aio.identity import Identity
from identity_client.errors import (
    CertificateMismatch,
    IdentityError,
    TokenError,
    TokenMalformed,
    TokenOutdated,
)
from identity_client.principal import find_principal, set_principal
from identity_client.web import answers
from identity_client.web.answers import Answer, Refusal
from identity_client.web.asgi import App, Message, Receive, Request, Scope, Send
from identity_client.web.connections import CLOSE_FORBIDDEN, Connections, close_code
from identity_client.web.door import Carrier, Door, Visitor
from identity_client.web.modes import JwtMode, Mode, SessionMode
from identity_client.web.origins import Origins
from identity_client.web.place import Places
from identity_client.web.refusals import WebRefusal
from identity_client.web.routes import Paths, Routes
from identity_client.web.service import Service

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


class IdentityMiddleware:
    """Logs people in and out, and tells *app* who each request and web socket is from: `scope["identity"]` is the
    Principal or None, and so are `current_principal()` and `find_principal()`.

    *identity* is entered by the application's own start-up. *name* is this front end's, as of a service: bearers meant
    for it or one of *groups* are taken. *origins* are the site's own (https://shop.example). *rules* say who may see a
    path and all below it; the longest path counts, and there must be one for `/`. A front end's account needs a role
    with the scope identity.forward besides the role peer.

    *cookies* `session` keeps an opaque session token in one cookie, `jwt` an access and a refresh token in two, for
    *audience* (empty: the default group). The routes are POST *prefix*/login, /logout, /logout-everywhere, /password
    and, for `jwt`, /refresh; *login_page* and *password_page* are pages of the application, open to all. The client's
    address is read from X-Forwarded-For of *trusted_proxies* alone (addresses or networks). Beyond
    *max_staleness_seconds* without the identity service nobody is let in.

    Raises ValueError, RuleError.
    """

    def __init__(
        self,
        app: App,
        *,
        identity: Identity,
        name: str,
        origins: Collection[str],
        rules: Mapping[str, Rule],
        cookies: Literal["session", "jwt"] = "session",
        audience: str = "",
        groups: Collection[str] = (DEFAULT_GROUP,),
        prefix: str = "/session",
        login_page: str = "/login",
        password_page: str = "/password",  # noqa: S107 - a path
        home: str = "/",
        trusted_proxies: Collection[str] = (),
        max_staleness_seconds: float = 30.0,
    ) -> None:
        if cookies not in ("session", "jwt"):
            raise ValueError("cookies is session or jwt")
        if not _PREFIX.fullmatch(prefix):  # it becomes the Path of a cookie
            raise ValueError("prefix is a path such as /session")
        paths, own = Paths(prefix, login_page, password_page, home), Origins(origins)
        self._is_jwt = cookies == "jwt"
        self._mode: Mode = JwtMode(paths.refresh) if self._is_jwt else SessionMode()
        self._app = app
        self._login_page = login_page
        self._door = Door(
            identity,
            name=name,
            groups=groups,
            rules=rules,
            origins=own,
            cookie=self._mode.cookie,
            max_staleness_seconds=max_staleness_seconds,
        )
        for page in (login_page, password_page):
            if not self._door.rule_of(page).public:
                raise RuleError(f"the page {page} must be public: people come to it to log in")
        self._connections = Connections(self._door.judge)
        self._routes = Routes(
            paths,
            self._mode,
            service=Service(identity, GRANT_TYPE_TOKENS if self._is_jwt else GRANT_TYPE_SESSION, audience),
            origins=own,
            places=Places(trusted_proxies),
            check_access=self._door.check_own,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            request = Request(scope)
        except WebRefusal as error:
            await _refuse(scope, error, answers.refusal(error), receive, send)
            return
        if self._routes.has(request.path) and not request.is_websocket:
            await (await self._routes.serve(request, receive)).send(send)
            return
        try:
            visitor = await self._door.admit(request)
        except (IdentityError, WebRefusal) as error:
            await _refuse(scope, error, self._refusal(request, error), receive, send)
            return
        if (
            visitor.cookie_error is not None
            and request.is_navigation
            and self._is_renewable(request, visitor.cookie_error)
        ):
            await self._routes.renewal_of(request).send(send)
            return
        await self._serve(request, visitor, receive, send)

    async def _serve(self, request: Request, visitor: Visitor, receive: Receive, send: Send) -> None:
        scope = {**request.scope, "identity": visitor.principal}
        send = self._marking(request, visitor, send)
        before = find_principal()
        set_principal(visitor.principal)
        try:
            if visitor.principal is None:
                await self._app(scope, receive, send)
            else:
                path = self._door.rule_path(request.path)
                await self._connections.run(self._app, scope, receive, send, path, visitor.principal)
        finally:
            set_principal(before)

    def _refusal(self, request: Request, error: Refusal) -> Answer:
        has_cookie = not request.values(b"authorization")
        if isinstance(error, IdentityError) and has_cookie and self._is_renewable(request, error):
            return self._routes.renewal_of(request)
        is_unknown = answers.http_status(error) == HTTPStatus.UNAUTHORIZED
        if is_unknown and has_cookie and request.is_navigation:
            answer = answers.redirect(
                request.at(self._login_page), next=request.target if request.method == "GET" else ""
            )
        else:
            answer = answers.refusal(error)
        return answer.with_cookies(self._spoilt(request, error) if has_cookie else [])

    def _is_renewable(self, request: Request, error: IdentityError) -> bool:
        """Whether a redirect by way of the renewal mends it: for reading alone, for a body is not sent twice."""
        is_read = request.method == "GET" and not request.is_websocket
        is_dead = isinstance(error, TokenMalformed | CertificateMismatch)
        return self._is_jwt and is_read and isinstance(error, TokenError) and not is_dead

    def _spoilt(self, request: Request, error: Refusal | None) -> list[str]:
        """The Set-Cookie values that take back a cookie which is refused for good.

        Only from a page: requests that a page sends beside each other are answered in any order, and one with the old
        cookie must not clear the new one of a log-in.
        """
        is_for_good = isinstance(error, TokenMalformed if self._is_jwt else TokenError)
        if not is_for_good or isinstance(error, TokenOutdated) or not (request.is_navigation or _is_plain(request)):
            return []
        return self._mode.cleared(request.root)

    def _marking(self, request: Request, visitor: Visitor, send: Send) -> Send:
        """*send* that takes a bad cookie back, and keeps what a cookie let one see out of every cache, unless the
        application says itself how long it may be kept."""
        if visitor.carrier is not Carrier.COOKIE or request.is_websocket:
            return send
        set_cookies = [("set-cookie", value) for value in self._spoilt(request, visitor.cookie_error)]

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                added = list(set_cookies)
                if not any(name.lower() == b"cache-control" for name, _ in headers):
                    added.append(("cache-control", "no-store"))
                headers += [(name.encode(), value.encode("latin-1")) for name, value in added]
                message = {**message, "headers": headers}
            await send(message)

        return marked


async def _refuse(scope: Scope, error: Refusal, answer: Answer, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await answer.send(send)
        return
    await receive()  # websocket.connect
    code = close_code(error) if isinstance(error, IdentityError) else CLOSE_FORBIDDEN
    await send({"type": "websocket.close", "code": code, "reason": error.reason})


def _is_plain(request: Request) -> bool:
    """Whether the browser, if it is one, does not say what its requests are for."""
    return not request.values(b"sec-fetch-mode")
