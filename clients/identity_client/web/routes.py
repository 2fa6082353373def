"""The routes by which people log in and out, change their password, and renew."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qs

from identity_client.errors import CredentialsMissing, IdentityError, Unauthenticated
from identity_client.web import answers, forms
from identity_client.web.answers import Answer, Refusal
from identity_client.web.asgi import Receive, Request
from identity_client.web.modes import JwtMode, Mode
from identity_client.web.origins import Origins
from identity_client.web.place import Place, Places
from identity_client.web.refusals import CredentialsAmbiguous, MethodNotAllowed, PasswordChangeRequired, WebRefusal
from identity_client.web.service import Granted, Service

Handler: TypeAlias = Callable[[Request, Receive], Awaitable[Answer]]

_MOST_PREVIOUS = 2  # sessions that a log-in ends: a browser has one, and whoever sends more is up to something

_log = logging.getLogger(__name__)


class Paths:
    """Where the routes are, below *prefix*, and the application's own pages that people are sent to."""

    def __init__(self, prefix: str, login_page: str, password_page: str, home: str) -> None:
        self.log_in = f"{prefix}/login"
        self.log_out = f"{prefix}/logout"
        self.log_out_everywhere = f"{prefix}/logout-everywhere"
        self.password = f"{prefix}/password"
        self.refresh = f"{prefix}/refresh"
        self.refresh_log_out = f"{prefix}/refresh/logout"
        self.login_page = login_page
        self.password_page = password_page
        self.home = home


class Routes:
    """Serves them. A form of a page is answered by a redirect, with the reason in its query where one is refused; code
    is answered by JSON and a status. All but the renewal of a page take POST from the site's own pages."""

    def __init__(
        self,
        paths: Paths,
        mode: Mode,
        *,
        service: Service,
        origins: Origins,
        places: Places,
        check_access: Callable[[str], None],
    ) -> None:
        self._paths = paths
        self._mode = mode
        self._service = service
        self._origins = origins
        self._places = places
        self._check_access = check_access
        self._handlers: dict[str, Handler] = {
            paths.log_in: self._log_in,
            paths.password: self._change_password,
            paths.log_out: self._log_out,
            paths.log_out_everywhere: self._log_out_everywhere,
        }
        if isinstance(mode, JwtMode):
            self._jwt_mode = mode
            # The refresh cookie does not reach the path of the log-out: the browser repeats its POST where it does.
            self._handlers[paths.log_out] = self._log_out_elsewhere
            self._handlers[paths.refresh_log_out] = self._log_out
            self._handlers[paths.refresh] = self._refresh

    def has(self, path: str) -> bool:
        """Whether *path* is one of them."""
        return path in self._handlers

    async def serve(self, request: Request, receive: Receive) -> Answer:
        """Answers a request for one of them; refusals, too."""
        try:
            self._check(request)
            return await self._handlers[request.path](request, receive)
        except (IdentityError, WebRefusal) as error:
            return answers.refusal(error)

    def renewal_of(self, request: Request) -> Answer:
        """Sends a page's GET by way of the renewal, and back to where it is now."""
        return answers.redirect(request.at(self._paths.refresh), next=request.target)

    def _check(self, request: Request) -> None:
        if request.values(b"authorization"):
            raise CredentialsAmbiguous()
        if request.method == "GET" and request.path == self._paths.refresh:
            self._origins.check_navigation(request)
        elif request.method == "POST":
            self._origins.check(request)
        else:
            raise MethodNotAllowed()

    # -- in ----------------------------------------------------------------------------------------------------

    async def _log_in(self, request: Request, receive: Receive) -> Answer:
        async def log_in(fields: Mapping[str, str], place: Place) -> Granted:
            return await self._service.log_in(fields.get("username", ""), fields.get("password", ""), place)

        return await self._open(request, receive, log_in, self._paths.login_page)

    async def _change_password(self, request: Request, receive: Receive) -> Answer:
        async def change(fields: Mapping[str, str], place: Place) -> Granted:
            username, current, new = (fields.get(name, "") for name in ("username", "password", "new_password"))
            return await self._service.change_password(username, current, new, place)

        return await self._open(request, receive, change, self._paths.password_page)

    async def _open(
        self,
        request: Request,
        receive: Receive,
        prove: Callable[[Mapping[str, str], Place], Awaitable[Granted]],
        page: str,
    ) -> Answer:
        fields = await forms.read_fields(request, receive)
        try:
            granted = await prove(fields, self._places.of(request))
        except (IdentityError, WebRefusal) as error:
            return self._not_opened(request, error, fields, page)
        await self._end_previous(request)
        if request.is_navigation:
            answer = answers.redirect(forms.local_target(fields.get("next"), request.at(self._paths.home)))
        else:
            answer = answers.as_json(HTTPStatus.OK, {"expire_time": granted.expire_time})
        return answer.with_cookies(self._mode.given(granted, request.root))

    def _not_opened(self, request: Request, error: Refusal, fields: Mapping[str, str], page: str) -> Answer:
        if not request.is_navigation:
            return answers.refusal(error)
        if isinstance(error, PasswordChangeRequired):
            page = self._paths.password_page
        return answers.redirect(request.at(page), reason=error.reason, next=forms.local_target(fields.get("next"), ""))

    async def _end_previous(self, request: Request) -> None:
        """Ends what the browser was logged in to before: an offered session is never taken over, and one that nobody
        holds any more should not live on."""
        for bearer in self._mode.offered(request)[:_MOST_PREVIOUS]:
            try:
                await self._service.end([bearer])
            except IdentityError as error:
                _log.warning("the session before a log-in could not be ended: %s", error.reason)

    # -- out ---------------------------------------------------------------------------------------------------

    async def _log_out(self, request: Request, _: Receive) -> Answer:
        """Nothing is taken from the browser before the session has ended: while the identity service is down, the
        log-out is refused and can be repeated."""
        texts = self._mode.texts(request)
        if texts:
            await self._service.end(texts)
        return self._left(request)

    async def _log_out_elsewhere(self, request: Request, _: Receive) -> Answer:
        return answers.redirect(request.at(self._paths.refresh_log_out), HTTPStatus.TEMPORARY_REDIRECT)

    async def _log_out_everywhere(self, request: Request, _: Receive) -> Answer:
        offered = self._mode.offered(request)
        if len(offered) != 1:
            raise CredentialsMissing("This route needs the cookie of a log-in.")
        await self._service.end_all(offered[0])
        return self._left(request)

    def _left(self, request: Request) -> Answer:
        if request.is_navigation:
            answer = answers.redirect(request.at(self._paths.login_page))
        else:
            answer = answers.as_json(HTTPStatus.OK, {})
        return answer.with_cookies(self._mode.cleared(request.root))

    # -- on ----------------------------------------------------------------------------------------------------

    async def _refresh(self, request: Request, _: Receive) -> Answer:
        """Rotates both tokens: for code by POST, for a page by GET and a redirect back to it."""
        is_page = request.method == "GET"
        try:
            granted = await self._service.renew(self._jwt_mode.refresh_token(request))
            self._check_access(granted.bearer)  # or a page would be sent to and fro
        except (Unauthenticated, WebRefusal) as error:
            return self._not_renewed(request, error)
        if is_page:
            answer = answers.redirect(_next(request, request.at(self._paths.home)))
        else:
            answer = answers.as_json(HTTPStatus.OK, {"expire_time": granted.expire_time})
        return answer.with_cookies(self._mode.given(granted, request.root))

    def _not_renewed(self, request: Request, error: Refusal) -> Answer:
        if not request.is_navigation:
            return answers.refusal(error)
        answer = answers.redirect(request.at(self._paths.login_page), next=_next(request, ""))
        return answer.with_cookies(self._mode.cleared(request.root))


def _next(request: Request, otherwise: str) -> str:
    query: bytes = request.scope.get("query_string", b"")
    return forms.local_target(parse_qs(query.decode("latin-1")).get("next", [None])[0], otherwise)
